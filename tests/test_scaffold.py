"""What `audiocl new-method` and `audiocl new-benchmark` write: whole, working, never over anything that exists."""

from __future__ import annotations

import dataclasses
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_cli import Call, assert_refused, call  # noqa: F401 - a fixture

from audiocl_bench import benchmarks, registry, scaffold
from audiocl_bench.errors import AudioclError, ConfigError
from audiocl_bench.files import sha256_file
from audiocl_bench.results import ResultsDir
from audiocl_bench.scaffold import sounds

LONG = "an-x-very-long-name-of-a-method-to-com-e"


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_added", dict(registry._added))
    return scaffold.new_method("my-idea", tmp_path).folder


# ------------------------------------------------------------------------------------------------------------- methods


def test_a_plugin_has_all_that_a_package_needs(plugin: Path) -> None:
    assert sorted(tree(plugin)) == [
        ".gitignore",
        "README.md",
        "audiocl_my_idea/__init__.py",
        "audiocl_my_idea/method.py",
        "pyproject.toml",
        "tests/test_audiocl_my_idea.py",
    ]
    project = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["name"] == "audiocl-my-idea"
    assert project["project"]["dependencies"] == ["audiocl"]
    assert project["project"]["entry-points"] == {registry.GROUP: {"my-idea": "audiocl_my_idea:MyIdea"}}
    assert project["tool"]["setuptools"]["packages"] == ["audiocl_my_idea"]
    for path in plugin.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\$\{?[a-z_]+", text), f"{path}: a name was not filled in"
            assert max(map(len, text.splitlines())) <= 130, path
    assert stat.S_IMODE(plugin.stat().st_mode) == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_written_class_is_found_and_named(plugin: Path) -> None:
    cls = registry.load(f"{plugin / 'audiocl_my_idea' / 'method.py'}:MyIdea")
    assert cls.name == "my-idea"
    assert cls.card is not None
    assert all(field.metadata["source"] for field in dataclasses.fields(cls.Config))


@pytest.mark.parametrize("name", ["x", "my-idea", LONG, "b2b-3"])
def test_the_code_passes_ruff_whatever_the_name(name: str, tmp_path: Path) -> None:
    folder = scaffold.new_method(name, tmp_path).folder
    package = folder / f"audiocl_{name.replace('-', '_')}"
    for place, arguments in (
        (folder, ["check", "--select", "E,F,W,I,N,UP,B,PT,RUF"]),
        (package, ["check", "--select", "D1", "--ignore", "D107"]),
        (folder, ["format", "--check"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length", "120", str(place)],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_name_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (scaffold.new_method("idea", tmp_path / place).folder for place in ("a", "b"))
    assert tree(first) == tree(second)
    first, second = (scaffold.new_benchmark("birds", tmp_path / place).folder for place in ("a", "b"))
    assert tree(first) == tree(second)


@pytest.mark.slow
def test_the_plugins_own_tests_pass(plugin: Path, tmp_path: Path) -> None:
    """From its folder, as its README says; the one test that needs the entry point needs an installation."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not finds"],
        cwd=plugin,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(plugin), str(Path(__file__).resolve().parent.parent)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b22 passed, 2 skipped, 1 deselected", done.stdout), done.stdout


# ---------------------------------------------------------------------------------------------------------- benchmarks


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return scaffold.new_benchmark("birds", tmp_path).folder


def test_the_benchmark_is_what_its_readme_says(birds: Path) -> None:
    benchmark = benchmarks.get(str(birds / "birds.toml"))
    stream, clips = benchmark.open(None, benchmark.protocols[0], 0)
    assert (benchmark.name, stream.num_classes, stream.num_sessions, len(clips)) == ("birds", 4, 2, 32)
    assert sorted(stream.classes) == ["beep", "hum", "knock", "rustle"]
    for label in range(4):  # one of four recordings of every class is tested, and stands on one side only
        rows = stream.labels == label
        sides = {
            (Path(c).name[0], bool(t)) for c, t, here in zip(stream.clip_ids, stream.is_test, rows, strict=True) if here
        }
        assert len(sides) == 4
        assert sum(test for _, test in sides) == 1


def test_the_samples_are_sounds(birds: Path) -> None:
    paths = sorted((birds / "audio").rglob("*.wav"))
    assert len(paths) == len(sounds.CLASSES) * len(sounds.RECORDINGS) * sounds.CLIPS
    seen = set()
    for path in paths:
        wave, rate = soundfile.read(path)
        assert (rate, len(wave)) == (sounds.RATE, int(sounds.RATE * sounds.SECONDS))
        assert 0.15 < np.abs(wave).max() < 0.75
        seen.add(wave.tobytes())
    assert len(seen) == len(paths)


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ('rule = "groups"', 'rule = "fraction"'),
        ("classes_per_session = 2 ", "classes_per_session = [2, 1, 1] "),
        ('# citation = "@misc{...}"', 'citation = "@misc{...}"'),
        ("group_regex = ", 'label_regex = "^([a-z]+)/"\ngroup_regex = '),
    ],
)
def test_what_the_comments_offer_works(birds: Path, change: str, to: str) -> None:
    toml = birds / "birds.toml"
    text = toml.read_text(encoding="utf-8")
    assert text.count(change) == 1
    toml.write_text(text.replace(change, to), encoding="utf-8")
    stream, _ = benchmarks.get(str(toml)).open(None, "own", 0)
    assert len(stream.clip_ids) == 32


def test_the_benchmark_runs_at_once(birds: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(birds)
    outcome = call("run", "-m", "ncm", "-b", "birds.toml", "--backbone", "eat-tiny", "--quiet", "--results", "r")
    assert outcome.code == 0, outcome.err
    [row] = ResultsDir(birds / "r").runs().to_dict("records")
    assert (row["benchmark"], row["own_data"], row["audit_passed"]) == ("birds", True, True)
    assert row["final_accuracy"] > 50


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("new", [scaffold.new_method, scaffold.new_benchmark])
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("MyIdea", "my-idea"),
        ("my_idea", "my-idea"),
        ("my idea", "my-idea"),
        ("2fast", "fast"),
        ("-x-", "x"),
        ("a--b", "a-b"),
        ("../up", "up"),
        ("/etc/x", "etc-x"),
        ("idée", "id-e"),
        ("x" * 41, "x" * 40),
        ("", ""),
        ("!!", ""),
        ("a\nb", "a-b"),
    ],
)
def test_a_name_that_cannot_be_is_answered_with_one_that_can(new, name: str, near: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be a name: use small letters") as caught:
        new(name, tmp_path)
    assert str(caught.value).endswith(f"for example {near}." if near else "in all.")
    assert list(tmp_path.iterdir()) == []
    if near:
        new(near, tmp_path)


@pytest.mark.parametrize(
    ("new", "name", "told"),
    [
        (scaffold.new_method, "ncm", "there is a method 'ncm' already"),
        (scaffold.new_method, "bench", "audiocl_bench is part of audiocl itself"),
        (scaffold.new_method, "methods", "audiocl_methods is part of audiocl itself"),
        (scaffold.new_method, "class", "a word of Python: choose another name, for example my-class"),
        (scaffold.new_benchmark, "esc50", "there is a benchmark 'esc50' already"),
        (scaffold.new_benchmark, "mini-us8k", "there is a benchmark 'mini-us8k' already"),
    ],
)
def test_a_name_that_is_taken_is_refused(new, name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        new(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- nothing is overwritten


@pytest.mark.parametrize("new", [scaffold.new_method, scaffold.new_benchmark])
def test_nothing_is_overwritten(new, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    new("mine", tmp_path)  # an empty folder is taken
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match="mine exists already, and nothing is overwritten: choose another name"):
        new("mine", tmp_path)
    assert tree(tmp_path) == before
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="exists already"):
            new(name, tmp_path)
    assert (tmp_path / "file").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "mine"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sounds.soundfile, "write", full)
    with pytest.raises(AudioclError, match=r"no space left to write .*birds"):
        scaffold.new_benchmark("birds", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").write_text("a file")
    with pytest.raises(AudioclError, match="birds cannot be written"):
        scaffold.new_benchmark("birds", tmp_path / "out")


# --------------------------------------------------------------------------------------------------- the command line


def test_the_commands_say_what_they_wrote_and_what_is_next(
    call: Call,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("new-method", "my-idea")
    assert outcome.code == 0, outcome.err
    for text in ("my-idea holds the method 'my-idea':", "  audiocl_my_idea/method.py", "  audiocl check my-idea"):
        assert text in outcome.out
    outcome = call("new-benchmark", "birds", "--out", "a b/c")
    assert outcome.code == 0, outcome.err
    assert "  cd 'a b/c/birds'" in outcome.out
    assert "  audio/knock/\n" in outcome.out
    assert (tmp_path / "a b" / "c" / "birds" / "birds.toml").is_file()
    assert_refused(call("new-benchmark", "birds", "--out", "a b/c"), "exists already")
    assert_refused(call("new-method", "My Idea"), "for example my-idea")
