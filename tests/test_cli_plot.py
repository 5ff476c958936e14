"""`audiocl plot`, from the arguments to the files, exit code and outputs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from test_cli import Call, assert_refused, call
from test_figures import FORGOTTEN, LEARNED, probe, store

from audiocl_bench import files
from audiocl_bench.results import ResultsDir

__all__ = ["call"]  # a fixture, used by name

KINDS = ("curves", "bars", "drift", "cka", "freeze", "adapted", "matrix", "cost")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs for every kind of figure, in two directories below one; tests only read them."""
    root = tmp_path_factory.mktemp("plot")
    first, second = ResultsDir(root / "first"), ResultsDir(root / "second")
    for order, matrix in enumerate((LEARNED, FORGOTTEN)):
        store(first, matrix, method="ncm", order=order, fresh_final_accuracy=70.0, benchmark="vocalset")
    for blocks in (0, 1):
        for sessions in (0, 1):
            store(
                second,
                LEARNED if blocks else FORGOTTEN,
                method="pace",
                benchmark="vocalset",
                method_config={"freeze_blocks": blocks, "adapted_sessions": sessions},
                diagnostics=probe(0.97, 0.5, frozen=blocks),
                run_id=f"pace-{blocks}-{sessions}",
            )
    store(second, LEARNED, method="ncm", benchmark="sounds", protocol="own", own_data=True, run_id="own")
    return root


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written(call: Call, stored: Path, tmp_path: Path, kind: str) -> None:
    options = ["--results", stored, "-b", "vocalset", "--out", f"{tmp_path}/"]
    if kind == "matrix":
        options += ["-m", "ncm", "--orders", "1"]
    outcome = call("plot", kind, *options)
    assert outcome.code == 0, outcome
    stem = f"{kind}-vocalset"
    assert written(tmp_path) == sorted(f"{stem}.{suffix}" for suffix in ("png", "svg", "pdf", "parquet"))
    told, *paths = outcome.out.splitlines()
    assert "%" in told or kind == "cka"
    assert paths == [str(tmp_path / f"{stem}.{suffix}") for suffix in ("png", "svg", "pdf", "parquet")]
    data = pd.read_parquet(tmp_path / f"{stem}.parquet")
    if kind == "curves":
        ncm = data[(data["label"] == "ncm") & (data["session"] == 2)]
        assert ncm["mean"].tolist() == pytest.approx([(70 + 40) / 2])
    if kind == "matrix":
        assert data.set_index(["after_session", "session"]).loc[(1, 0), "accuracy"] == pytest.approx(20.0)
    if kind in ("cka", "freeze", "adapted"):  # comparable runs: the paper's numbers stand beside them
        assert set(data["source"]) == {"ours", "paper"}
        assert set(data["benchmark"]) == {"vocalset"}


def test_the_paper_alone_or_not_at_all(call: Call, stored: Path, tmp_path: Path) -> None:
    assert call("plot", "cka", "--paper", "only", "--out", tmp_path / "a").code == 0
    assert set(pd.read_parquet(tmp_path / "a.parquet")["source"]) == {"paper"}
    assert call("plot", "freeze", "--paper", "only", "-b", "us8k,sc2", "--out", tmp_path / "b").code == 0
    assert set(pd.read_parquet(tmp_path / "b.parquet")["benchmark"]) == {"us8k", "sc2"}
    assert (
        call("plot", "cka", "--results", stored, "-b", "vocalset", "--paper", "no", "--out", tmp_path / "c").code == 0
    )
    assert set(pd.read_parquet(tmp_path / "c.parquet")["source"]) == {"ours"}
    assert call("plot", "matrix", "--paper", "only", "-m", "pace-no-projection", "--out", tmp_path / "d").code == 0
    assert set(pd.read_parquet(tmp_path / "d.parquet")["label"]) == {"PACE without projection"}
    assert_refused(
        call("plot", "adapted", "--paper", "only", "-b", "esc50", "--out", tmp_path / "e"),
        "unknown benchmark in this figure of the paper 'esc50'",
    )
    assert not list(tmp_path.glob("e.*"))


def test_where_figures_go(call: Call, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ["plot", "drift", "--results", stored, "-b", "vocalset", "-m", "ncm"]
    assert call(*base, "--out", tmp_path / "one.pdf").code == 0
    assert written(tmp_path) == ["one.parquet", "one.pdf"]
    assert call(*base, "--out", tmp_path / "new" / "two", "--format", "svg,png").code == 0
    assert written(tmp_path / "new") == ["two.parquet", "two.png", "two.svg"]
    assert call(*base, "--out", tmp_path / "new", "--format", "svg").code == 0  # a folder that is there
    assert "drift-vocalset.svg" in written(tmp_path / "new")
    monkeypatch.chdir(tmp_path)
    assert call(*base, "--format", "png").code == 0
    assert written(tmp_path / "figures") == ["drift-vocalset.parquet", "drift-vocalset.png"]


def test_filters_choose(call: Call, stored: Path, tmp_path: Path) -> None:
    out = ["--format", "png", "--out", tmp_path / "x"]
    both = ["plot", "curves", "--results", stored / "first", "--results", stored / "second"]
    assert (
        call(*both, "-b", "vocalset", "-m", "pace,ncm", "--where", "freeze_blocks=1", "--orders", "0", *out).code == 0
    )
    labels = list(dict.fromkeys(pd.read_parquet(tmp_path / "x.parquet")["label"]))
    assert labels == ["pace adapted_sessions=0", "pace adapted_sessions=1", "ncm"]
    assert call(*both, "--protocol", "own", *out).code == 0
    data = pd.read_parquet(tmp_path / "x.parquet")
    assert set(data["not_comparable"]) == {"own data"}
    assert call("plot", "cost", "--results", stored, "-b", "vocalset", "--cost", "passes,bytes", *out).code == 0


def test_results_are_looked_for_in_the_cache(call: Call, tmp_path: Path) -> None:
    assert_refused(call("plot", "curves", "--out", tmp_path / "x"), "there are no runs in", "run a benchmark first")
    store(ResultsDir(files.home() / "results"), LEARNED)
    assert call("plot", "curves", "--out", tmp_path / "x", "--format", "png").code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["curves"], "2 benchmarks (sounds, vocalset), and one figure never mixes them"),
        (["curves", "-b", "vocalse"], "did you mean vocalset?"),
        (["curves", "-m", "nmc"], "did you mean ncm?"),
        (["curves", "-b", "vocalset", "--orders", "x"], "--orders 'x' must look like"),
        (["curves", "-b", "vocalset", "--orders", "7"], "no run has order 7: there are 0, 1."),
        (["curves", "-b", "vocalset", "--where", "msa"], "must look like key=value"),
        (["curves", "-b", "vocalset", "--width", "huge"], "the width of a figure is single"),
        (["curves", "-b", "vocalset", "--format", "gif"], "unknown format of figures 'gif'"),
        (["matrix", "-b", "vocalset"], "5 matrices cannot be told apart"),
        (["cost", "-b", "vocalset", "--cost", "money"], "unknown cost 'money'"),
        (["drift", "-b", "sounds"], "none of these runs measured drift"),
        (["cka", "-m", "ncm"], "none of these runs has a layer probe"),
        (["adapted", "-b", "sounds"], "no two of these runs differ in adapted_sessions alone"),
    ],
)
def test_requests_that_fit_nothing(call: Call, stored: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    assert_refused(call("plot", *arguments, "--results", stored, "--out", tmp_path / "x"), told)
    assert not list(tmp_path.iterdir())


def test_help_fits_the_terminal(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (*KINDS, "features"):
        outcome = call("plot", kind, "--help")
        assert outcome.code == 0
        assert "  audiocl plot " in outcome.out
        assert max(map(len, outcome.out.splitlines())) <= 80


# ------------------------------------------------------------------------------------------------------------ features

TRAIN = ("plot", "features", "--backbone", "eat-tiny", "--quiet", "--threads", "1")


@pytest.mark.slow
def test_features_of_a_learner(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    outcome = call(*TRAIN, "-m", "ncm", "-b", tiny_benchmark, "--classes", "3", "--clips", "4", "--out", tmp_path / "x")
    assert outcome.code == 0, outcome
    assert written(tmp_path) == ["x.parquet", "x.pdf", "x.png", "x.svg"]
    data = pd.read_parquet(tmp_path / "x.parquet")
    assert len(data) == 3 * 2 * 4  # 3 classes of 2 test clips, in two views of two stages
    wide = data.pivot(index=["view", "clip_id"], columns="stage", values="x")
    assert wide["adapted"].to_numpy() == pytest.approx(wide["pretrained"].to_numpy())  # ncm adapts nothing
    assert "own data, stand-in backbone" in outcome.out


def test_features_are_checked_before_training(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    base = (*TRAIN, "-b", tiny_benchmark, "--out", tmp_path / "x")
    assert_refused(call(*base, "-m", "ncm", "--classes", "11"), "shows 2 to 10 classes, not 11")
    assert_refused(call(*base, "-m", "ncm", "--clips", "1"), "shows 2 to 100 clips per class, not 1")
    assert_refused(call(*base, "-m", "ncm", "--width", "0"), "the width of a figure")
    assert_refused(call(*base, "-m", "nmc"), "did you mean ncm?")
    assert_refused(call(*base, "-m", "ncm", "--order", "9"), "order")
