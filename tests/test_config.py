"""Settings: defaults, presets, overrides from text; bounds; and one sentence for every mistake."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocl_bench import config, registry
from audiocl_bench.config import MethodConfig, setting
from audiocl_bench.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class Sample(MethodConfig):
    rank: int = setting(8, "paper", unit="directions", low=1, high=64)
    lr: float = setting(0.1, "paper", low=0)
    momentum: float = setting(0.9, "paper", high=1)
    msa: bool = setting(True, "paper")
    head: Literal["frozen", "low-lr"] = setting("frozen", "paper")
    copies: Literal[1, 2] = setting(1, "paper")
    epochs: int | None = setting(None, "paper", low=1)
    gamma: float | Literal["auto"] = setting("auto", "paper")
    targets: tuple[str, ...] = setting(("k_proj", "v_proj"), "paper")
    widths: tuple[int, ...] = setting((1, 2), "paper", low=1)
    note: str = setting("", "ours")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"sc2": {"rank": 4, "targets": "q_proj"}}


def build(**overrides: Any) -> Sample:
    return config.build(Sample, "esc50", overrides, owner="sample")


def test_defaults_presets_and_overrides_in_this_order() -> None:
    assert config.build(Sample, "esc50", {}, owner="sample") == Sample()
    preset = config.build(Sample, "sc2", {}, owner="sample")
    assert (preset.rank, preset.targets, preset.lr) == (4, ("q_proj",), 0.1)
    assert config.build(Sample, "sc2", {"rank": "6"}, owner="sample").rank == 6


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rank", "16", 16),
        ("rank", "1e1", 10),
        ("rank", 4.0, 4),
        ("lr", "1e-3", 0.001),
        ("lr", 1, 1.0),
        ("msa", "false", False),
        ("msa", "On", True),
        ("msa", "0", False),
        ("msa", False, False),
        ("head", "low-lr", "low-lr"),
        ("copies", "2", 2),
        ("copies", 2, 2),
        ("epochs", "none", None),
        ("epochs", "None", None),
        ("epochs", "auto", None),
        ("epochs", "3", 3),
        ("gamma", "auto", "auto"),
        ("gamma", "0.5", 0.5),
        ("targets", "q_proj, out_proj", ("q_proj", "out_proj")),
        ("targets", ["q_proj"], ("q_proj",)),
        ("targets", "q_proj", ("q_proj",)),
        ("targets", "", ()),
        ("widths", "3,4", (3, 4)),
        ("widths", [5], (5,)),
        ("widths", 5, (5,)),
        ("note", "a=b", "a=b"),
    ],
)
def test_text_and_toml_values_become_the_settings_type(name: str, text: Any, value: Any) -> None:
    found = getattr(build(**{name: text}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rank", "4.5", "'rank' is '4.5', but it must be a whole number"),
        ("rank", "many", "'rank' is 'many', but it must be a whole number"),
        ("rank", "inf", "must be a whole number"),
        ("rank", "nan", "must be a whole number"),
        ("rank", True, "'rank' is True, but it must be a whole number"),
        ("rank", None, "must be a whole number"),
        ("rank", "0", "'rank' is 0, but it must be 1 to 64"),
        ("rank", "65", "'rank' is 65, but it must be 1 to 64"),
        ("lr", "fast", "'lr' is 'fast', but it must be a number"),
        ("lr", "-1", r"'lr' is -1.0, but it must be at least 0"),
        ("lr", "nan", "'lr' is nan, but it must be a finite number"),
        ("lr", "inf", "'lr' is inf, but it must be a finite number"),
        ("lr", [1, 2], "must be a number"),
        ("momentum", "1.5", "'momentum' is 1.5, but it must be at most 1"),
        ("msa", "perhaps", "'msa' is 'perhaps', but it must be true or false"),
        ("msa", 2, "must be true or false"),
        ("head", "thawed", "'head' is 'thawed', but it must be one of frozen, low-lr"),
        ("head", ["frozen"], "must be one of frozen, low-lr"),
        ("copies", "3", "must be one of 1, 2"),
        ("copies", True, "must be one of 1, 2"),
        ("epochs", "0", "'epochs' is 0, but it must be at least 1"),
        ("epochs", "soon", "'epochs' is 'soon', but it must be a whole number"),
        ("gamma", "none", "must be one of auto"),
        ("widths", "1,x", "'widths' is 'x', but it must be a whole number"),
        ("widths", "4,0", "'widths' is 0, but it must be at least 1"),
    ],
)
def test_a_value_that_does_not_fit_is_named(name: str, text: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(**{name: text})


def test_bounds_are_inclusive_and_checked_without_build() -> None:
    assert (Sample(rank=1).rank, Sample(rank=64).rank, Sample(momentum=1).momentum) == (1, 64, 1)
    with pytest.raises(ConfigError, match="'rank' is 0"):
        Sample(rank=0)
    assert dataclasses.replace(Sample(), rank=2).rank == 2


def test_an_unknown_setting_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown setting of sample 'rnak': did you mean rank"):
        build(rnak=1)
    with pytest.raises(UnknownNameError, match="unknown setting of sample 'presets'"):
        build(presets="{}")


def test_a_preset_for_a_setting_that_does_not_exist_is_named() -> None:
    class Wrong(Sample):
        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"esc50": {"rnk": 1}}

    with pytest.raises(UnknownNameError, match="'rnk': did you mean rank"):
        config.build(Wrong, "esc50", {}, owner="sample")


def test_as_dict_is_plain_json() -> None:
    assert json.loads(json.dumps(Sample().as_dict())) == Sample().as_dict()
    assert Sample().as_dict()["targets"] == ["k_proj", "v_proj"]
    assert "presets" not in Sample().as_dict()


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "rank": st.integers(1, 64),
            "lr": st.floats(0, 10),
            "msa": st.booleans(),
            "epochs": st.none() | st.integers(1, 99),
            "head": st.sampled_from(["frozen", "low-lr"]),
            "targets": st.lists(st.sampled_from(["q_proj", "k_proj"]), max_size=3).map(tuple),
            "widths": st.lists(st.integers(1, 9), max_size=3).map(tuple),
        },
    )
)
def test_a_config_survives_its_json_and_its_text(values: dict[str, Any]) -> None:
    wanted = Sample(**values)
    assert config.build(Sample, "esc50", json.loads(json.dumps(wanted.as_dict())), owner="s") == wanted
    texts = {k: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for k, v in values.items()}
    assert build(**texts) == wanted


@pytest.mark.parametrize("method", registry.names())
def test_every_built_in_setting_has_a_source_and_survives_its_text(method: str) -> None:
    cls = registry.load(method).Config
    for field in dataclasses.fields(cls):
        assert field.metadata["source"], f"{method}.{field.name}"
    for benchmark in ("esc50", *cls.presets):
        built = config.build(cls, benchmark, {}, owner=method)
        assert config.build(cls, benchmark, built.as_dict(), owner=method) == built


# --------------------------------------------------------------------------------------------------- published recipes


@dataclass(frozen=True)
class Published(MethodConfig):
    preset: str = setting("first", "the authors' code")
    rank: int = setting(8, "first", low=1)
    lr: float = setting(0.1, "first", low=0)
    clip: float | None = setting(1.0, "first")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"sc2": {"rank": 4}, "timit2": {"preset": "second"}}
    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "first": {"rank": 8, "lr": 0.1},
        "second": {"rank": 5, "lr": 0.2, "clip": None},
    }


def published(benchmark: str = "esc50", **overrides: Any) -> tuple[str, int, float, float | None]:
    values = config.build(Published, benchmark, overrides, owner="method")
    return values.preset, values.rank, values.lr, values.clip


def test_a_recipe_is_chosen_by_name() -> None:
    assert published() == ("first", 8, 0.1, 1.0)
    assert published(preset="second") == ("second", 5, 0.2, None)
    given = config.parse_overrides(["preset=second", "lr=0.3"])
    assert published(**given) == ("second", 5, 0.3, None)


def test_default_recipe_benchmark_and_override_count_in_this_order() -> None:
    """What says more about this run wins: the benchmark's preset over the recipe, the user over both."""
    assert published("sc2") == ("first", 4, 0.1, 1.0)
    assert published("sc2", preset="second") == ("second", 4, 0.2, None)
    assert published("sc2", preset="second", rank="7", clip="0.5") == ("second", 7, 0.2, 0.5)


def test_a_benchmarks_preset_can_choose_the_recipe() -> None:
    assert published("timit2") == ("second", 5, 0.2, None)
    assert published("timit2", preset="first") == ("first", 8, 0.1, 1.0)


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown preset of method 'secnd': did you mean second"):
        published(preset="secnd")
    with pytest.raises(UnknownNameError, match="unknown preset of method 'esc50'"):
        published(preset="esc50")  # the name of a benchmark is no recipe


def test_a_recipe_with_a_setting_that_does_not_exist_is_named() -> None:
    class Wrong(Published):
        sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {"first": {"rnk": 1}}

    with pytest.raises(UnknownNameError, match="'rnk': did you mean rank"):
        config.build(Wrong, "esc50", {}, owner="method")


def test_a_built_config_builds_itself_again() -> None:
    """What a result records is enough to make the run again, recipe or not."""
    for overrides in ({}, {"preset": "second"}, {"preset": "second", "clip": 2.0}):
        built = config.build(Published, "sc2", overrides, owner="method")
        assert config.build(Published, "sc2", built.as_dict(), owner="method") == built


def test_without_recipes_preset_is_no_setting() -> None:
    with pytest.raises(UnknownNameError, match="unknown setting of sample 'preset'"):
        build(preset="first")


# ------------------------------------------------------------------------------------------------- --set and --config


def test_overrides_are_read() -> None:
    items = ["rank=4", " lr = 0.1 ", "pace.n-stop=3", "note=a=b", "rank=5", "empty="]
    assert config.parse_overrides(items) == {"rank": "5", "lr": "0.1", "pace.n_stop": "3", "note": "a=b", "empty": ""}
    assert config.parse_overrides([]) == {}


@pytest.mark.parametrize("item", ["rank", "=4", "  =4", ""])
def test_an_override_without_key_or_value_is_refused(item: str) -> None:
    with pytest.raises(ConfigError, match="must look like key=value, for example --set rank=8"):
        config.parse_overrides([item])


def test_a_settings_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('seed = 1\n[pace]\nrank = 8\ntargets = ["q_proj"]\n[joint-closed]\nwidth = 10\n')
    assert config.read_file(path) == {
        "seed": 1,
        "pace.rank": 8,
        "pace.targets": ["q_proj"],
        "joint-closed.width": 10,
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), (b"rank = ", "is not valid TOML"), (b'note = "\xff"', "is not valid TOML")],
)
def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"settings file .*settings.toml {said}"):
        config.read_file(path)


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.read_file(tmp_path)
