"""The command line, from the arguments to exit code, standard output and standard error."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from audiocl_bench import backbones, benchmarks, files, registry, splits
from audiocl_bench.cli import main
from audiocl_bench.results import ResultsDir

ROOT = Path(__file__).resolve().parent.parent
QUICK = ("--backbone", "eat-tiny", "--quiet")


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code and the two outputs."""

    code: int
    out: str
    err: str

    @property
    def sentences(self) -> list[str]:
        """The lines that say what is wrong; indented lines list details."""
        return [line for line in self.err.splitlines() if not line.startswith(" ")]


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return a function that runs `audiocl ARGUMENTS` in this process."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(registry, "_added", dict(registry._added))

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["audiocl", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def shell(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def assert_refused(outcome: Outcome, *told: str) -> None:
    """One sentence on standard error, exit code 2, no traceback; the sentence tells what is expected."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err + outcome.out
    assert len(outcome.sentences) == 1, outcome.err
    assert outcome.err.startswith("audiocl: ")
    for text in told:
        assert text in outcome.err


@pytest.fixture(scope="module")
def finished(tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of ncm (two orders) and of joint-closed on the tiny benchmark; tests only read them."""
    results = tmp_path_factory.mktemp("finished") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOCL_HOME", str(tmp_path_factory.mktemp("finished-home")))
        for arguments in (["-m", "ncm", "--orders", "0-1"], ["-m", "joint-closed"]):
            patch.setattr(
                sys,
                "argv",
                ["audiocl", "run", "-b", str(tiny_benchmark), *QUICK, "--results", str(results), *arguments],
            )
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code
    return results


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished results that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "results"))


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    "command", [[], ["run"], ["show"], ["list"], ["splits"], ["splits", "build"], ["list", "corpora"]]
)
@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_fits_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch, command: list[str], columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    outcome = call(*command, "--help")
    assert outcome.code == 0
    assert "Usage: audiocl" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= int(columns)


def test_help_teaches(call: Call) -> None:
    top, run = call("--help").out, call("run", "--help").out
    for text in ("audiocl run -m pace -b esc50 --data", "list benchmarks", "stream", "session", "run it again"):
        assert text in top
    for text in ("audiocl run -m pace -b esc50", ".toml", "pace.msa=false", "paper", "grouped", "Parquet"):
        assert text in run
    assert call().out == top or "Usage: audiocl" in call().out  # no arguments: the same help, on either stream


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from audiocl_bench.cli import main\n"
        "sys.argv = ['audiocl', 'run', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'datasets', 'pyarrow', 'transformers', 'peft'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    done = shell("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")


def test_version(call: Call) -> None:
    from audiocl_bench import __version__

    assert call("--version").out == f"audiocl {__version__}\n"


def test_usage_errors_end_with_code_two(call: Call) -> None:
    for arguments in (["run"], ["run", "--bla"], ["walk"], ["run", "-m", "ncm", "-b", "esc50", "--existing", "maybe"]):
        outcome = call(*arguments)
        assert outcome.code == 2
        assert "Usage" in outcome.err
        assert "Traceback" not in outcome.err


# ---------------------------------------------------------------------------------------------------------------- list


@pytest.mark.parametrize("what", ["methods", "benchmarks", "backbones", "corpora", "settings pace"])
def test_lists_fit_80_columns(call: Call, what: str) -> None:
    outcome = call("list", *what.split())
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80


def test_lists_name_everything(call: Call) -> None:
    for name in registry.names():
        assert re.search(rf"^{re.escape(name)} ", call("list", "methods").out, re.MULTILINE)
    shown = call("list", "benchmarks").out
    for name in benchmarks.names():
        assert re.search(rf"^{name} ", shown, re.MULTILINE)
    assert "315 x 2" in shown
    assert "105,829" in shown
    shown = call("list", "backbones").out
    for name in backbones.names():
        assert re.search(rf"^{re.escape(name)} ", shown, re.MULTILINE)
    shown = call("list", "settings", "pace").out
    for setting in dataclasses.fields(registry.load("pace").Config):
        assert re.search(rf"^{setting.name} ", shown, re.MULTILINE)


def test_list_corpora_says_where_or_how(call: Call, tmp_path: Path) -> None:
    (tmp_path / "ESC-50" / "audio").mkdir(parents=True)
    (tmp_path / "ESC-50" / "meta").mkdir()
    (tmp_path / "ESC-50" / "meta" / "esc50.csv").write_text("filename\n")
    shown = call("list", "corpora", "--data", tmp_path).out
    esc50 = shown.partition("us8k")[0]
    assert "missing" not in esc50
    assert "ESC-50" in esc50
    assert shown.count("missing") == 4
    assert "audiocl data get esc50" in call("list", "corpora").out


# ----------------------------------------------------------------------------------------------------------------- run


def test_run_prints_a_table_and_writes_parquet(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    outcome = call("run", "-m", "ncm", "-b", tiny_benchmark, "--backbone", "eat-tiny", "--results", results)
    assert outcome.code == 0, outcome.err
    assert "tiny · own split · eat-tiny" in outcome.out
    assert "NOT COMPARABLE" in outcome.out
    assert "1 run made, 0 reused" in outcome.out
    assert str(results) in outcome.out.replace("\n", "")
    [run] = pd.read_parquet(results / "runs").to_dict("records")
    assert f"{run['final_accuracy']:.2f}" in outcome.out
    assert f"{run['run_id']}: {run['final_accuracy']:.2f} %" in outcome.err
    assert len(pd.read_parquet(results / "sessions")) == 3
    predictions = pd.read_parquet(results / "predictions")
    assert sorted(predictions["after_session"].unique()) == [0, 1, 2]
    assert run["audit_passed"]
    assert f"audiocl show {run['run_id']}" in outcome.out


def test_rerun_reuses_and_the_three_strategies_differ(call: Call, tiny_benchmark: Path, copied: Path) -> None:
    command = ("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results", copied)
    before = pd.read_parquet(copied / "runs").set_index("run_id")["finished_at"].to_dict()
    [run] = [name for name in before if name.startswith("ncm") and "-o0-" in name]
    stamp = (copied / "runs" / f"{run}.parquet").stat().st_mtime_ns
    assert "0 runs made, 1 reused" in call(*command).out
    assert (copied / "runs" / f"{run}.parquet").stat().st_mtime_ns == stamp
    assert_refused(call(*command, "--existing", "fail"), run, "--existing reuse")
    assert "1 run made, 0 reused" in call(*command, "--existing", "replace").out
    assert (copied / "runs" / f"{run}.parquet").stat().st_mtime_ns > stamp
    assert "1 run made, 0 reused" in call(*command, "--fresh").out
    assert len(ResultsDir(copied).run_ids()) == len(before)


def test_several_methods_benchmarks_orders_and_seeds(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.toml"
    second.write_text(tiny_benchmark.read_text().replace('name = "tiny"', 'name = "second"'))
    arguments = ("-m", "ncm,joint-closed", "-b", tiny_benchmark, "-b", second, "--orders", "1", "--seeds", "0,3")
    outcome = call("run", *arguments, *QUICK, "--results", tmp_path / "r", "--set", "width=32", "--threads", "1")
    assert outcome.code == 0, outcome.err
    runs = pd.read_parquet(tmp_path / "r" / "runs")
    made = set(runs[["method", "benchmark", "order", "seed"]].itertuples(index=False, name=None))
    assert made == {
        (m, b, o, s) for m in ("ncm", "joint-closed") for b in ("tiny", "second") for o in (1,) for s in (0, 3)
    }
    assert "8 runs made" in outcome.out


def settings_of(results: Path, method: str) -> dict[str, object]:
    runs = pd.read_parquet(results / "runs")
    [config] = runs.loc[runs["method"] == method, "method_config"]
    return dict(json.loads(config))


def test_set_wins_over_config_and_a_named_method_over_all(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        'width = 16\n[joint-closed]\nwidth = 24\nridge = 2.0\n[ncm]\nmetric = "euclidean"\n[pace]\nrank = 4\n'
    )
    command = ("run", "-m", "ncm,joint-closed", "-b", tiny_benchmark, *QUICK, "--config", settings)

    assert call(*command, "--results", tmp_path / "a").code == 0
    assert settings_of(tmp_path / "a", "joint-closed")["width"] == 24
    assert settings_of(tmp_path / "a", "ncm")["metric"] == "euclidean"

    assert call(*command, "--results", tmp_path / "b", "--set", "width=8").code == 0
    assert settings_of(tmp_path / "b", "joint-closed")["width"] == 8

    arguments = ("--set", "joint-closed.width=40", "--set", "width=8", "--set", "ncm.metric=cosine")
    assert call(*command, "--results", tmp_path / "c", *arguments).code == 0
    assert settings_of(tmp_path / "c", "joint-closed")["width"] == 40
    assert settings_of(tmp_path / "c", "ncm")["metric"] == "cosine"


def test_backbone_settings_change_the_backbone(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    arguments = ("--set", "backbone.pool=mean", "--set", "backbone.layer=2")
    assert call("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results", tmp_path, *arguments).code == 0
    [notes] = pd.read_parquet(tmp_path / "runs")["notes"]
    backbone = json.loads(notes)["backbone"]
    assert (backbone["pool"], backbone["layer"]) == ("mean", 2)


@pytest.mark.parametrize("option", ["--orders", "--seeds"])
@pytest.mark.parametrize("value", ["", "x", "1-", "-1", "3-1", "0,,1", "1.5", "²"])
def test_bad_lists_of_numbers(call: Call, option: str, value: str) -> None:
    assert_refused(call("run", "-m", "ncm", "-b", "esc50", f"{option}={value}"), option, "0-4")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-m", "rampac"), ("'rampac'", "did you mean ranpac")),
        (("-b", "esc5"), ("'esc5'", "did you mean esc50", ".toml")),
        (("--backbone", "eat-bass"), ("'eat-bass'", "did you mean eat-base")),
        (("--set", "metrix=cosine"), ("'metrix'", "did you mean metric")),
        (("--set", "ncm.metrix=cosine"), ("setting of ncm", "did you mean metric")),
        (("--set", "ncn.metric=cosine"), ("'ncn'", "did you mean ncm")),
        (("--set", "backbone.pol=mean"), ("setting of backbone", "did you mean pool")),
        (("--set", "metric"), ("key=value",)),
        (("--set", "metric=manhattan"), ("'metric'", "cosine, euclidean")),
        (("--set", "backbone.pool=max"), ("pool",)),
        (("--set", "backbone.layer=x"), ("backbone.layer", "whole number")),
        (("--set", "backbone.layer=9"), ("layer", "9")),
        (("--set", "layers=0,9"), ("'layers' is '0,9'", "eat-tiny has the layers 0 to")),
        (("--set", "pool=max"), ("'pool' is 'max'",)),
        (("--config", "nowhere.toml"), ("nowhere.toml", "cannot be read")),
        (("--protocol", "gruped"), ("protocol of tiny", "own")),
        (("--orders", "7"), ("no order 7", "0 to 1")),
        (("--device", "gpu"), ("--device 'gpu'", "cuda")),
        (("--device", "meta"), ("--device 'meta'", "cuda")),
        (("--device", "cuda:77"), ("--device 'cuda:77'", "CUDA devices")),
        (("-m", ","), ("--method", "names nothing")),
        (("-b", "nowhere.toml"), ("nowhere.toml", "correct the path")),
        (("--data", "nowhere"), ("nowhere", "--data")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and str(value[0]).startswith("-") else "",
)
def test_wrong_requests_are_refused(
    call: Call, tiny_benchmark: Path, tmp_path: Path, arguments: tuple[str, str], told: tuple[str, ...]
) -> None:
    given = {"-m": "ncm", "-b": str(tiny_benchmark), "--backbone": "eat-tiny", "--results": str(tmp_path)}
    given[arguments[0]] = arguments[1]
    outcome = call("run", "--quiet", *(text for pair in given.items() for text in pair))
    assert_refused(outcome, *told)
    assert not list(tmp_path.glob("runs/*"))


def test_what_the_backbone_lacks_is_said_before_data_is_made(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOCL_HOME", str(tmp_path / "home"))
    given = ("run", "-m", "strata", "-b", "esc50", "--data", "mini", "--results", tmp_path / "r", "--quiet")
    assert_refused(call(*given, "--backbone", "whisper-tiny-random", "--set", "pool=cls"), "no class token", "mean+std")
    assert_refused(call(*given, "--backbone", "eat-miny"), "did you mean", "eat-mini")
    assert not (tmp_path / "home").exists()


def test_presets_are_run_by_name_beside_the_default(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    given = ("-b", tiny_benchmark, *QUICK, "--set", "width=64", "--results", tmp_path)
    outcome = call("run", "-m", "pace@no-fsa,pace@no-fsa,ranpac@no-fsa,ncm", *given)
    assert outcome.code == 0, outcome.err
    runs = pd.read_parquet(tmp_path / "runs").set_index(["method", "variant"])
    assert set(runs.index) == {("pace", "no-fsa"), ("ranpac", "no-fsa"), ("ncm", "")}
    assert json.loads(runs.loc[("pace", "no-fsa"), "method_config"])["fsa"] is False
    assert "pace@no-fsa" in outcome.out
    assert (runs["trainable_parameters"] == 0).all()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("pace@no-fas", ("no-fas", "no-fsa")),
        ("ncm@paper", ("ncm has no presets", "@paper")),
        ("pcae@paper", ("pcae", "pace")),
        ("pace@", ("preset of pace",)),
    ],
)
def test_an_unknown_preset_is_refused(
    call: Call, tiny_benchmark: Path, tmp_path: Path, method: str, told: tuple[str, ...]
) -> None:
    outcome = call("run", "-m", method, "-b", tiny_benchmark, *QUICK, "--results", tmp_path)
    assert_refused(outcome, *told)


# -------------------------------------------------------------------------------------------------------------- corpora


def test_missing_corpora_are_all_named_with_the_way_to_get_them(call: Call, tmp_path: Path) -> None:
    outcome = call("run", "-m", "ncm", "-b", "esc50", *QUICK, "--data", tmp_path, "--results", tmp_path / "r")
    assert_refused(
        outcome,
        "ESC-50 was not found",
        f"`audiocl data get esc50 --data {tmp_path}`",
        f"audiocl run --data {tmp_path}",
        "--get-data",
    )
    outcome = call("run", "-m", "ncm", "-b", "all", *QUICK, "--data", tmp_path, "--results", tmp_path / "r")
    assert outcome.code == 2
    assert len(outcome.sentences) == 5  # timit2 and timit3 share a corpus
    assert all(line.startswith("audiocl: ") and "was not found" in line for line in outcome.sentences)


def test_partial_corpus_differs_clip_by_clip(call: Call, tmp_path: Path, private_home: Path) -> None:
    frozen = splits.frozen_clips("esc50")
    folder = tmp_path / "data" / "ESC-50"
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rows = [[f"{row.clip_id}.wav", "1", row.label, "src"] for row in frozen.head(3).itertuples()]
    rows[1][2] = "dog" if rows[1][2] != "dog" else "cat"
    rows.append(["9-9-A-9.wav", "1", "cat", "src"])
    with (folder / "meta" / "esc50.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([["filename", "fold", "category", "src_file"], *rows])
    for row in rows:
        (folder / "audio" / row[0]).touch()
    outcome = call("run", "-m", "ncm", "-b", "esc50", *QUICK, "--data", tmp_path / "data", "--results", tmp_path / "r")
    assert_refused(outcome, "differs from the frozen index of esc50 in 1999 clips", "audiocl data", "and 1979 more")
    listed = (private_home / "reports" / "esc50-differences.txt").read_text().splitlines()
    assert len(listed) == 1999
    assert "extra: 9-9-A-9" in listed
    assert any(line.startswith(f"relabelled: {frozen.clip_id[1]} ") for line in listed)
    assert f"missing: {frozen.clip_id[3]}" in listed


@pytest.fixture
def own_corpus(tiny_benchmark: Path, tmp_path: Path) -> Path:
    """A copy of the tiny benchmark that a test may change; returns its TOML file."""
    shutil.copytree(tiny_benchmark.parent / "sounds", tmp_path / "own" / "sounds")
    text = re.sub(r'root = ".*"', 'root = "sounds"', tiny_benchmark.read_text())
    (tmp_path / "own" / "own.toml").write_text(text.replace('name = "tiny"', 'name = "mine"'))
    return tmp_path / "own" / "own.toml"


def test_unreadable_audio_is_listed(call: Call, own_corpus: Path, tmp_path: Path) -> None:
    bad = [own_corpus.parent / "sounds" / name for name in ("bell/bell_0.wav", "cat/cat_3.wav")]
    for path in bad:
        path.write_bytes(b"no audio at all")
    outcome = call("run", "-m", "ncm", "-b", own_corpus, *QUICK, "--results", tmp_path / "r")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("audiocl: mine failed: ")
    for path in bad:
        assert str(path) in outcome.err


def test_a_corpus_that_fails_does_not_stop_another(
    call: Call, own_corpus: Path, tiny_benchmark: Path, tmp_path: Path
) -> None:
    (own_corpus.parent / "sounds" / "bell" / "bell_0.wav").write_bytes(b"no audio at all")
    arguments = ("-b", own_corpus, "-b", tiny_benchmark, "--orders", "0-1")
    outcome = call("run", "-m", "ncm", *arguments, *QUICK, "--results", tmp_path / "r")
    assert outcome.code == 2
    assert outcome.err.count("mine failed: ") == 1  # told once, not for every order
    assert len(ResultsDir(tmp_path / "r").run_ids()) == 2
    assert "tiny · own split" in outcome.out


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("input_seconds", "input_second", ("'input_second'", "did you mean input_seconds")),
        ("[stream]", "[streams]", ("'streams'", "did you mean stream")),
        ("classes_per_session = 2", 'classes_per_session = "two"', ("[stream]", "classes_per_session", "whole number")),
        ("fraction = 0.25", "fraction = 25", ("[test]", "fraction", "between 0 and 1")),
        ("fraction = 0.25", "fraction = ", ("no valid TOML",)),
        ('root = "sounds"', 'root = "noises"', ("[corpus]", "noises")),
        ('root = "sounds"', 'root = "$AUDIOCL_UNSET/x"', ("AUDIOCL_UNSET",)),
    ],
)
def test_wrong_benchmark_files(
    call: Call, own_corpus: Path, tmp_path: Path, before: str, after: str, told: tuple[str, ...]
) -> None:
    text = own_corpus.read_text()
    assert before in text
    own_corpus.write_text(text.replace(before, after))
    assert_refused(call("run", "-m", "ncm", "-b", own_corpus, *QUICK, "--results", tmp_path / "r"), "own.toml", *told)


@pytest.mark.parametrize(("part", "folds"), [("test", '["0"]'), ("train", '["1", "2", "3", "4", "5", "6", "7"]')])
def test_a_test_rule_that_starves_a_class(call: Call, own_corpus: Path, tmp_path: Path, part: str, folds: str) -> None:
    (own_corpus.parent / "sounds" / "frog" / "frog_0.wav").unlink()
    text = own_corpus.read_text().replace('rule = "fraction"\nfraction = 0.25', f'rule = "fold"\nfolds = {folds}')
    own_corpus.write_text(text.replace("[stream]", "fold_regex = '_(\\d)$'\n[stream]"))
    outcome = call("run", "-m", "ncm", "-b", own_corpus, *QUICK, "--results", tmp_path / "r")
    assert_refused(outcome, "own.toml", "'frog'", part)


# ------------------------------------------------------------------------------------------------------------- weights


def test_broken_and_foreign_weights(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    command = ("run", "-m", "ncm", "-b", tiny_benchmark, "--quiet", "--results", tmp_path / "r", "--backbone")
    whole = tmp_path / "resnet.safetensors"
    save_file({"layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}, whole)
    assert_refused(call(*command, whole), str(whole), "ResNet")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-1000])
    assert_refused(call(*command, cut), str(cut), "truncated", "download it again")
    (tmp_path / "text.pt").write_text("not weights")
    assert_refused(call(*command, tmp_path / "text.pt"), "text.pt", "download it again")
    assert_refused(call(*command, tmp_path / "nothing.pt"), "nothing.pt", "does not exist")


# ------------------------------------------------------------------------------------------------------------- results


def set_schema_version(path: Path, version: int) -> None:
    table = pq.read_table(path)
    metadata = {**(table.schema.metadata or {}), b"audiocl_schema_version": str(version).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_results_of_a_newer_schema(call: Call, tiny_benchmark: Path, copied: Path) -> None:
    file = next((copied / "runs").glob("ncm*.parquet"))
    set_schema_version(file, 99)
    for command in (
        ("show",),
        ("show", file.stem),
        ("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK),
    ):
        assert_refused(call(*command, "--results", copied), str(file), "schema 99", "upgrade audiocl")


def test_damaged_results(call: Call, tiny_benchmark: Path, copied: Path) -> None:
    file = next((copied / "runs").glob("ncm*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    assert_refused(call("show", "--results", copied), str(file), "damaged")
    assert_refused(call("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results", copied), str(file), "damaged")


def test_results_that_cannot_be_written(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = ("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results")
    assert_refused(call(*command, tmp_path / "file" / "results"), "cannot be written", "choose another directory")
    assert_refused(call(*command, tmp_path / "file"), str(tmp_path / "file"), "is a file")


def test_read_only_results(call: Call, tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:  # what a read-only file system does; permissions alone do not stop root
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    outcome = call("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results", tmp_path / "results")
    assert_refused(outcome, str(tmp_path / "results"), "read-only", "choose another directory")


@pytest.mark.parametrize("writes", [0, 2], ids=["at once", "in the middle"])
def test_no_space_left(
    call: Call, tiny_benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    command = ("run", "-m", "ncm", "-b", tiny_benchmark, *QUICK, "--results", tmp_path / "r")
    real, left = os.fsync, writes

    def full(handle: int) -> None:
        nonlocal left
        if str(tmp_path) in str(Path(f"/proc/self/fd/{handle}").readlink()):
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left -= 1
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    assert_refused(call(*command), "no space left", str(tmp_path / "r"))
    assert not list((tmp_path / "r").rglob("*.part"))
    assert ResultsDir(tmp_path / "r").run_ids() == ()
    monkeypatch.setattr(files.os, "fsync", real)
    assert call(*command).code == 0


# --------------------------------------------------------------------------------------------------------- interruption

STUBBORN = """
import os
import torch
from audiocl_bench.errors import AudioclError
from audiocl_bench.method import register
from audiocl_methods.ncm import NCM


@register("stubborn")
class Stubborn(NCM):
    '''Nearest class mean that fails in session 1 as the environment says.'''

    def accumulate(self, session):
        failure = os.environ.get("STUBBORN", "")
        if session.index == 1 and failure == "interrupt":
            raise KeyboardInterrupt
        if session.index == 1 and failure == "input":
            raise AudioclError("this will not do: give another setting.")
        if session.index == 1 and failure == "bug":
            torch.zeros(2) @ torch.zeros(3)
        if session.index == 1 and failure == "wait":
            open(os.environ["STUBBORN_FILE"], "w").close()
            import time
            time.sleep(120)
        super().accumulate(session)
"""


@pytest.fixture
def stubborn(tmp_path: Path) -> str:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    return f"{tmp_path / 'stubborn.py'}:Stubborn"


def test_ctrl_c_keeps_finished_sessions(
    call: Call, tiny_benchmark: Path, tmp_path: Path, stubborn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("run", "-m", stubborn, "-b", tiny_benchmark, "--backbone", "eat-tiny", "--results", tmp_path / "r")
    monkeypatch.setenv("STUBBORN", "interrupt")
    outcome = call(*command)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == (
        "audiocl: interrupted; finished sessions are kept, run the same command again to continue."
    )
    assert "Traceback" not in outcome.err
    monkeypatch.setenv("STUBBORN", "")
    outcome = call(*command)
    assert outcome.code == 0
    assert "continuing after session 1 of 3" in outcome.err


@pytest.mark.slow
def test_a_real_interrupt_signal(tiny_benchmark: Path, tmp_path: Path, stubborn: str) -> None:
    arguments = ["run", "-m", stubborn, "-b", str(tiny_benchmark), *QUICK, "--results", str(tmp_path / "r")]
    reached = tmp_path / "reached"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        env={**os.environ, "STUBBORN": "wait", "STUBBORN_FILE": str(reached)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if reached.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().startswith("audiocl: interrupted;")
    assert "Traceback" not in err


def test_a_failing_run_does_not_stop_the_others(
    call: Call, tiny_benchmark: Path, tmp_path: Path, stubborn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUBBORN", "input")
    results = tmp_path / "r"
    command = ("run", "-m", f"{stubborn},ncm", "-b", tiny_benchmark, *QUICK, "--results", results)
    outcome = call(*command)
    assert_refused(outcome, "stubborn on tiny, order 0, seed 0 failed: this will not do: give another setting.")
    assert "ncm" in outcome.out
    assert [run.partition("-")[0] for run in ResultsDir(results).run_ids()] == ["ncm"]
    monkeypatch.setenv("STUBBORN", "")
    assert "1 run made, 1 reused" in call(*command).out


def test_a_bug_in_a_method_leaves_its_traceback_in_a_file(
    call: Call, tiny_benchmark: Path, tmp_path: Path, stubborn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUBBORN", "bug")
    results = tmp_path / "r"
    outcome = call("run", "-m", f"{stubborn},ncm", "-b", tiny_benchmark, *QUICK, "--results", results)
    kept = results / "work" / "traceback.txt"
    assert_refused(outcome, "stubborn on tiny", "RuntimeError", str(kept))
    assert "stubborn.py" in kept.read_text()
    assert len(ResultsDir(results).run_ids()) == 1


# ---------------------------------------------------------------------------------------------------------- own methods


@pytest.mark.parametrize(
    ("code", "name", "told"),
    [
        ("import nothing_like_this", ":Mine", ("fails on import", "ModuleNotFoundError", "nothing_like_this")),
        ("def broken(:", ":Mine", ("fails on import", "SyntaxError")),
        ("class Other: pass", ":Othr", ("'Othr'", "did you mean Other")),
        ("class Mine: pass", ":Mine", ("is not a method",)),
        ("from audiocl_bench.method import Method\nclass Mine(Method): pass", ":Mine", ("incomplete", "learn")),
        ("x = 1", "", ("must name the class",)),
    ],
)
def test_method_files_that_do_not_work(
    call: Call, tiny_benchmark: Path, tmp_path: Path, code: str, name: str, told: tuple[str, ...]
) -> None:
    (tmp_path / "mine.py").write_text(code)
    outcome = call("run", "-m", f"{tmp_path / 'mine.py'}{name}", "-b", tiny_benchmark, *QUICK, "--results", tmp_path)
    assert_refused(outcome, "mine.py", *told)


def test_a_method_file_that_is_not_there(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    outcome = call("run", "-m", f"{tmp_path / 'no.py'}:Mine", "-b", tiny_benchmark, *QUICK, "--results", tmp_path)
    assert_refused(outcome, str(tmp_path / "no.py"), "does not exist")


# ---------------------------------------------------------------------------------------------------------------- show


def test_show_lists_runs_and_shows_one(call: Call, finished: Path) -> None:
    ids = ResultsDir(finished).run_ids()
    outcome = call("show", "--results", finished)
    assert outcome.code == 0
    for run in ids:
        assert run in outcome.out.replace("\n", "")
    whole, part = call("show", ids[0], "--results", finished), call("show", "joint", "--results", finished)
    assert (whole.code, part.code) == (0, 0)
    assert whole.out == part.out
    for text in ("Accuracy (%)", "forgetting", "Costs", "Audit: passed", "Provenance", "split", "weights"):
        assert text in whole.out


def test_show_refuses_unknown_and_ambiguous_runs(call: Call, finished: Path, tmp_path: Path) -> None:
    assert_refused(call("show", "ncm", "--results", finished), "'ncm' matches 2 runs", "give more of the name")
    assert_refused(call("show", "zzz", "--results", finished), "unknown run 'zzz'")
    assert_refused(call("show", "ncm", "--results", tmp_path / "none"), "no runs", "run a benchmark first")
    empty = call("show", "--results", tmp_path / "none")
    assert (empty.code, empty.out) == (0, "No runs yet.\n")


# --------------------------------------------------------------------------------------------------------------- splits


def test_splits_build_and_check(call: Call, shared: Callable[..., Path], tmp_path: Path) -> None:
    manifests = ("--manifests", shared("manifests"))
    outcome = call("splits", "build", "--check", *manifests)
    assert outcome.code == 0, outcome.err
    assert "exactly what the manifests give" in outcome.out
    assert call("splits", "build", *manifests, "--out", tmp_path).code == 0
    for path in sorted(tmp_path.rglob("*.*")):
        assert path.read_bytes() == (files.splits_dir() / path.relative_to(tmp_path)).read_bytes()
    changed = tmp_path / "esc50" / "paper.csv"
    changed.write_text(changed.read_text().replace(",test", ",train", 1))
    assert_refused(call("splits", "build", "--check", *manifests, "--out", tmp_path), "esc50/paper.csv", "line")


def test_splits_need_manifests(call: Call, tmp_path: Path) -> None:
    assert_refused(call("splits", "build", "--manifests", tmp_path / "none"), "--manifests", "esc50.csv")


# -------------------------------------------------------------------------------- from a clone, and as the README says


def test_a_clone_runs_without_installation(tmp_path: Path, tiny_benchmark: Path) -> None:
    clone = tmp_path / "clone"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("audiocl_bench", "methods", "splits", "results"):
        shutil.copytree(ROOT / name, clone / name, ignore=ignore)
    for name in ("cli.py", "pyproject.toml"):
        shutil.copy(ROOT / name, clone / name)
    (clone / "audiocl_bench" / "__init__.py").write_text('"""A copy."""\n\n__version__ = "0.0.0+clone"\n')
    (clone / "methods" / "ncm.py").write_text(
        (ROOT / "methods" / "ncm.py").read_text().replace("Classify by", "Clone of")
    )
    # -S leaves out site-packages and with it the installed audiocl; the path brings back the libraries alone.
    libraries = os.pathsep.join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    done = shell("-S", clone / "cli.py", "--version", cwd=tmp_path, PYTHONPATH=libraries)
    assert done.stdout == "audiocl 0.0.0+clone\n", done.stderr
    done = shell("-S", clone / "cli.py", "list", "methods", cwd=tmp_path, PYTHONPATH=libraries)
    assert "Clone of" in done.stdout, done.stderr
    assert "pace" in done.stdout
    done = shell(clone / "cli.py", "list", "methods", cwd=tmp_path)  # another copy is installed: a clone uses its own
    assert "Clone of" in done.stdout, done.stderr


def readme_block(marker: str, language: str) -> str:
    """Return the fenced block after `<!-- marker -->` in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(rf"<!-- {re.escape(marker)} -->\n```{language}\n(.*?)```", text, re.DOTALL)
    assert len(found) == 1, marker
    return str(found[0])


def test_the_readme_method_runs_and_its_results_are_read_as_told(
    call: Call,
    tiny_benchmark: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("diagonal.py").write_text(readme_block("test: method", "python"))
    arguments = ("-m", "diagonal.py:Diagonal,ncm", "-b", tiny_benchmark, *QUICK, "--results", "audiocl-results")
    outcome = call("run", *arguments)
    assert outcome.code == 0, outcome.err
    runs = pd.read_parquet("audiocl-results/runs").set_index("method")
    assert runs["audit_passed"].all()
    assert runs.loc["diagonal", "final_accuracy"] > 30  # chance is 17

    exec(compile(readme_block("test: pandas", "python"), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert f"{runs.loc['diagonal', 'final_accuracy']:.2f}"[:4] in printed
    assert "bell" in printed


@pytest.mark.slow
def test_the_readme_in_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, pd.DataFrame] = {}
    exec(compile(readme_block("test: api", "python"), "README.md", "exec"), names)
    assert list(names["runs"]["benchmark"]) == ["mini-us8k"]
    assert list(names["sessions"]["session"]) == [0, 1, 2, 3, 4]
    printed = capsys.readouterr().out
    assert "NOT COMPARABLE" in printed
    assert "| PACE" in printed


def test_readme_commands_name_real_options_and_files(call: Call) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = call("run", "--help").out
    lines = re.findall(r"audiocl run[^`\n]*", text)
    assert len(lines) >= 4
    for option in {option for line in lines for option in re.findall(r"(?<=\s)--?[a-z]+", line)}:
        assert re.search(rf"[\s,]{option}[\s,]", known), option
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for name in (*benchmarks.names(), *(n for n in registry.names() if n in ("pace", "ranpac", "ncm", "finetune"))):
        assert f"`{name}`" in text


def test_demo_sounds_are_the_same_always(tmp_path: Path) -> None:
    done = [shell(ROOT / "examples" / "demo" / "make.py", tmp_path / name) for name in ("a", "b")]
    assert all(one.returncode == 0 for one in done), done[0].stderr
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in sorted((tmp_path / name).rglob("*.wav"))}
        for name in ("a", "b")
    )
    assert first == second
    assert len(first) == 60
    assert len(set(first.values())) == 60
