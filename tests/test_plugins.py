"""Outside packages: a scaffold that is really installed and run, and backbones found by entry point, good and bad."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_cli import Call, assert_refused, call  # noqa: F401 - a fixture
from torch import Tensor

from audiocl_bench import backbones, scaffold
from audiocl_bench.audio import FrontEnd
from audiocl_bench.backbones import eat, registry
from audiocl_bench.backbones.base import Backbone, Options, hash_weights
from audiocl_bench.errors import CheckpointError, ConfigError, UnknownNameError
from audiocl_bench.results import ResultsDir

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------------------ a real plugin


def python(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Run a Python of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=540,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_scaffold_is_installed_checked_and_run(tmp_path: Path) -> None:
    """From an empty folder: new-method, a wheel installed elsewhere, its own pytest, `check` and `run` by name."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    cli = ROOT / "cli.py"
    shown = python(cli, "new-method", "fresh-idea", cwd=elsewhere)
    assert "audiocl check fresh-idea" in shown
    plugin = elsewhere / "fresh-idea"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", site)
    python(*pip, plugin, cwd=elsewhere)
    path = os.pathsep.join([str(site), str(ROOT)])

    listed = python(cli, "list", "methods", cwd=elsewhere, PYTHONPATH=path)
    assert "fresh-idea" in listed
    assert "(from audiocl_fresh_idea)" in " ".join(listed.split())
    # Outside its folder, so that the installed package is tested and not the source beside the tests.
    tests = python("-m", "pytest", "-q", "-p", "no:cacheprovider", plugin / "tests", cwd=elsewhere, PYTHONPATH=path)
    assert "failed" not in tests
    assert "2 skipped" in tests  # the two whole runs, which follow here
    checked = python(cli, "check", "fresh-idea", cwd=elsewhere, PYTHONPATH=path)
    assert "21 passed, 0 failed, 0 skipped" in checked
    python(
        *(cli, "run", "-m", "fresh-idea", "-b", "us8k", "--data", "mini", "--backbone", "eat-tiny", "--quiet"),
        *("--results", "results", "--set", "shrink=0.5"),
        cwd=elsewhere,
        PYTHONPATH=path,
    )
    [row] = ResultsDir(elsewhere / "results").runs().to_dict("records")
    assert (row["method"], row["audit_passed"], row["mini"]) == ("fresh-idea", True, True)
    assert '"shrink": 0.5' in row["method_config"].replace(":0.5", ": 0.5")


# ----------------------------------------------------------------------------------------------------------- backbones


class Mean(Backbone):
    """A network of one block that cannot attend: enough of the interface to be run."""

    def __init__(self, options: Options, dim: int = 8) -> None:
        super().__init__(
            options,
            network="mean",
            dim=dim,
            depth=1,
            num_heads=1,
            front_end=FrontEnd(kind="kaldi", n_mels=dim, frames=options.frames or 32),
            pools=("mean",),
            multiple=1,
            max_frames=1000,
        )
        self.blocks = torch.nn.ModuleList([_Scale(dim)])

    def tokens(self, x: Tensor) -> Tensor:
        self._check_input(x)
        return x

    def audio_tokens(self, tokens: Tensor) -> Tensor:
        return tokens


class _Scale(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((dim,), 2.0))

    def forward(self, x: Tensor, prefix: object = None, hook: object = None) -> Tensor:
        return x * self.weight


def build_mean(options: Options, file: Path | None) -> Backbone:
    assert file is None
    return Mean(options)


GOOD = backbones.Row("ignored", "mean of the log-mel", build=build_mean, numbers=8, page="https://example.org/mean")


def no_features(options: Options, file: Path | None) -> Backbone:
    network = Mean(options)
    network.blocks[0].weight.data.fill_(torch.nan)
    return network


def wrong_depth(options: Options, file: Path | None) -> Backbone:
    network = Mean(options)
    network.depth = 2
    network.layer = 1
    return network


def raises(options: Options, file: Path | None) -> Backbone:
    raise RuntimeError("no such weights\nsecond line")


def no_network(options: Options, file: Path | None) -> Backbone:
    return torch.nn.Linear(2, 2)  # type: ignore[return-value]


def late() -> backbones.Row:
    return GOOD


def explodes() -> backbones.Row:
    raise SystemExit("no")


def row_of(build: Callable[..., Backbone]) -> backbones.Row:
    return backbones.Row("x", "a plugin", build=build, numbers=8)


Offer = Callable[..., None]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Return a function that pretends that a package `plugin_nets` offers these things as backbones."""
    module = ModuleType("plugin_nets")
    monkeypatch.setitem(sys.modules, "plugin_nets", module)

    def pretend(**things: object) -> None:
        vars(module).update(things)
        entries = [EntryPoint(name.replace("_", "-"), f"plugin_nets:{name}", registry.GROUP) for name in things]
        entries.append(EntryPoint("nowhere", "plugin_that_is_gone:ROW", registry.GROUP))
        monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else [])

    return pretend


def test_a_backbone_of_a_plugin_is_listed_and_loaded(offer: Offer) -> None:
    offer(mean_mel=GOOD, made_late=late)
    assert backbones.names()[-3:] == ("made-late", "mean-mel", "nowhere")
    row = {row.name: row for row in backbones.list_rows()}["mean-mel"]
    assert (row.title, row.parameters, row.network, row.stand_in) == ("mean of the log-mel", 8, "own", False)
    assert row.source == "https://example.org/mean, in plugin_nets"
    assert backbones.cached("mean-mel")
    loaded = backbones.load("mean-mel", frames=40)
    assert (loaded.name, loaded.stand_in, loaded.source) == ("mean-mel", False, row.source)
    assert loaded.front_end.frames == 40
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.weights_hash == hash_weights({"blocks.0.weight": torch.full((8,), 2.0)})
    assert loaded.passes.clips == 0
    mel = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.features(mel), 2 * mel.mean(1))
    with pytest.raises(ConfigError, match="backbone made-late: layer is a whole number from 1 to 1"):
        backbones.load("made-late", layer=2)


def test_without_a_source_its_weights_count_as_random(offer: Offer) -> None:
    offer(plain=row_of(build_mean))
    assert backbones.load("plain").stand_in
    assert backbones.load("plain").source == "random weights (plugin_nets)"


def test_published_weights_of_a_known_network_need_no_code(
    offer: Offer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    state = eat.random_weights(eat.TINY, registry.draw_weight)
    save_file({f"model.{name}": value for name, value in _hub_names(state).items()}, tmp_path / "bird.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "eat", "embed_dim": 96, "depth": 3, "num_heads": 4}')
    asked = []

    def deliver(repository: str, file: str, **options: object) -> str:
        asked.append((repository, file, options["revision"]))
        return str(tmp_path / file)

    monkeypatch.setattr(registry, "hf_hub_download", deliver)
    offer(bird=backbones.Row("x", "birds", eat.TINY, "someone/bird", revision="abc", file="bird.safetensors"))
    loaded = backbones.load("bird", frames=64)
    assert asked == [("someone/bird", "bird.safetensors", "abc")]
    assert (loaded.name, loaded.source, loaded.stand_in) == ("bird", "hf:someone/bird@abc", False)
    assert loaded.weights_hash == backbones.load("eat-tiny").weights_hash
    wrong = backbones.Row("x", "birds", eat.TINY, "someone/bird", sha256="0" * 64, file="bird.safetensors")
    offer(bird=wrong)
    with pytest.raises(CheckpointError, match="is not the pinned bird"):
        backbones.load("bird")


def _hub_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    stems = {
        "patch_embed": "local_encoder",
        "cls_token": "extra_tokens",
        "pos_embed": "fixed_positional_encoder.positions",
    }
    return {
        name.replace(name.split(".")[0], stems.get(name.split(".")[0], name.split(".")[0]), 1): value.clone()
        for name, value in state.items()
    }


@pytest.mark.parametrize(
    ("thing", "error", "said"),
    [
        (3, ConfigError, r"backbone bad of package plugin_nets \(plugin_nets:bad\) is a int, not an .*Row: mend or"),
        (explodes, ConfigError, r"package plugin_nets .* cannot be imported \(SystemExit: no\): mend or uninstall"),
        (backbones.Row("x", "y"), ConfigError, "needs a config .* or a build function"),
        (backbones.Row("x", "y", eat.TINY), ConfigError, "has a config but no hub repository"),
        (row_of(raises), CheckpointError, r"package plugin_nets cannot be built \(RuntimeError: no such weights\): "),
        (row_of(no_network), ConfigError, "package plugin_nets built a Linear, not an .*Backbone"),
        (row_of(no_features), ConfigError, r"shape \[1, 8\] for one silent clip, but \[1, 8\] finite numbers"),
        (row_of(wrong_depth), ConfigError, "says it has 2 blocks and has 1"),
    ],
)
def test_a_broken_plugin_is_named_and_harms_no_other(
    offer: Offer, thing: object, error: type[Exception], said: str
) -> None:
    offer(bad=thing, good=GOOD)
    with pytest.raises(error, match=said) as caught:
        backbones.load("bad")
    assert "\n" not in str(caught.value)
    assert backbones.load("good").name == "good"
    assert backbones.load("eat-tiny", frames=64).name == "eat-tiny"
    assert [row.name for row in backbones.list_rows()][-3:] == ["bad", "good", "nowhere"]


def test_a_plugin_that_is_gone_says_so(offer: Offer, call: Call, tiny_benchmark: Path) -> None:  # noqa: F811
    offer(good=GOOD)
    with pytest.raises(ConfigError, match=r"backbone nowhere of package plugin_that_is_gone .*No module named"):
        backbones.load("nowhere")
    assert not backbones.cached("nowhere")
    outcome = call("list", "backbones")
    assert outcome.code == 0
    assert "good" in outcome.out
    assert "CANNOT BE USED: backbone nowhere of package plugin_that_is_gone" in " ".join(outcome.out.split())
    assert max(map(len, outcome.out.splitlines())) <= 80
    refused = call("run", "-m", "ncm", "-b", tiny_benchmark, "--backbone", "nowhere")
    assert_refused(refused, "plugin_that_is_gone")


def test_our_names_cannot_be_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    before = backbones.load("eat-tiny", frames=64).weights_hash
    entries = [EntryPoint("eat-tiny", "plugin_nets:anything", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    assert backbones.names().count("eat-tiny") == 1
    assert backbones.load("eat-tiny", frames=64).weights_hash == before


def test_a_misspelt_plugin_is_answered_with_its_name(offer: Offer) -> None:
    offer(mean_mel=GOOD)
    with pytest.raises(UnknownNameError, match="did you mean mean-mel"):
        backbones.load("meanmel")


def test_a_plugins_backbone_runs(offer: Offer, call: Call, tmp_path: Path) -> None:  # noqa: F811
    offer(mean_mel=backbones.Row("x", "y", build=_mels_of_a_benchmark, numbers=128))
    made = scaffold.new_benchmark("mine", tmp_path)
    results = tmp_path / "results"
    outcome = call(
        *("run", "-m", "ncm", "-b", made.folder / "mine.toml", "--backbone", "mean-mel", "--quiet"),
        *("--results", results),
    )
    assert outcome.code == 0, outcome.err
    [row] = ResultsDir(results).runs().to_dict("records")
    assert (row["backbone"], row["stand_in"]) == ("mean-mel", True)


def _mels_of_a_benchmark(options: Options, file: Path | None) -> Backbone:
    return Mean(options, dim=128)
