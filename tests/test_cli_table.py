"""`audiocl table` and `audiocl reproduce`, from the arguments to exit code and output."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from test_cli import Call, assert_refused, call
from test_sheets import store

from audiocl_bench.cli import sweep
from audiocl_bench.errors import AudioclError
from audiocl_bench.results import ResultsDir

__all__ = ["call"]  # a fixture, used by name


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    for method, points in (("ncm", 60), ("pace", 80)):
        for order in range(2):
            store(folder, method, "us8k", points=points, order=order)
    store(folder, "ncm", "cats", own_data=True, protocol="own", backbone="mine")
    return folder


def test_a_table_of_the_paper_is_markdown_on_the_terminal(call: Call, results: Path) -> None:
    outcome = call("table", "2", "--results", results, "--orders", "0-1")
    assert outcome.code == 0, outcome.err
    assert re.search(r"\| PACE +\| ours +\|", outcome.out)
    assert "80.00 ± 0.00" in outcome.out
    assert "-17.49" in outcome.out
    # What fills the gaps is told for the same results.
    assert f"--results {results}" in outcome.out


def test_a_free_table_has_a_block_for_own_data(call: Call, results: Path) -> None:
    outcome = call("table", "--rows", "method", "--cols", "benchmark", "--results", results)
    assert outcome.code == 0, outcome.err
    assert outcome.out.index("**80.00 ± 0.00**") < outcome.out.index("NOT COMPARABLE") < outcome.out.index("cats")
    assert call("table", "--results", results).out == outcome.out  # the default rows and columns


def test_filters_and_scores(call: Call, results: Path) -> None:
    options = ("--results", results, "-b", "us8k", "--backbone", "eat-base", "--protocol", "paper", "--seeds", "0")
    outcome = call("table", *options, "--orders", "1", "--score", "forgetting", "--rows", "benchmark")
    assert outcome.code == 0, outcome.err
    assert "Forgetting: benchmark by method" in outcome.out
    assert "One run per cell." in outcome.out
    assert "cats" not in outcome.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("table", "5"), "unknown table of the paper '5'"),
        (("table", "2", "--rows", "method"), "leave --rows and --cols out"),
        (("table", "--cols", "methods"), "did you mean method"),
        (("table", "--score", "accuracy"), "unknown score 'accuracy'"),
        (("table", "-b", "us8"), "unknown benchmark among the runs 'us8': did you mean us8k"),
        (("table", "--orders", "7"), "unknown order among the runs '7'"),
        (("table", "--data", "mini"), "no runs of miniatures"),
        (("table", "--data", "somewhere"), "--data DIR goes with a table of the paper"),
        (("table", "--format", "parquet"), "needs --out"),
        (("table", "--out", "table.txt"), "does not tell a format"),
        (("table", "2", "--orders", "x"), "must look like"),
        (("table", "2", "--backbone", "eat"), "unknown backbone 'eat'"),
        (("reproduce", "table7"), "unknown table of the paper 'table7'"),
        (("reproduce", "2", "--bench", "us8"), "unknown benchmark 'us8'"),
    ],
)
def test_bad_input_is_one_sentence(call: Call, results: Path, arguments: tuple[str, ...], told: str) -> None:
    assert_refused(call(*arguments, "--results", results), told)


def test_missing_results_are_refused(call: Call, tmp_path: Path) -> None:
    assert_refused(call("table", "2", "--results", tmp_path / "nowhere"), "there are no runs in")
    assert_refused(call("table"), "there are no runs to make a table of")


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("t.md", "| PACE"),
        ("t.tex", r"\toprule"),
        ("t.csv", "table,row,column,score,ours"),
        ("t.html", "<!DOCTYPE html>"),
    ],
)
def test_the_format_follows_the_file(call: Call, results: Path, tmp_path: Path, name: str, holds: str) -> None:
    outcome = call("table", "2", "--results", results, "--out", tmp_path / name)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{tmp_path / name}: 1 table, 1 numbers of ours.\n"
    assert holds in (tmp_path / name).read_text(encoding="utf-8")


def test_parquet_and_format_win_over_the_name(call: Call, results: Path, tmp_path: Path) -> None:
    outcome = call("table", "--results", results, "--out", tmp_path / "t.parquet")
    assert outcome.code == 0, outcome.err
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert set(frame["table"]) == {"table-1", "table-2"}
    assert frame.set_index("row").loc["pace", "ours"] == pytest.approx(80.0)
    outcome = call("table", "2", "--results", results, "--format", "latex", "--out", tmp_path / "t.md")
    assert r"\midrule" in (tmp_path / "t.md").read_text(encoding="utf-8")


def test_reproduce_lists_exactly_what_is_missing(call: Call, results: Path) -> None:
    outcome = call("reproduce", "table3", "--orders", "0-2", "-b", "us8k,sc2", "--results", results, "--data", "/d")
    assert outcome.code == 0, outcome.err
    every = "pace@no-fsa,pace@naive-fsa,pace@low-head-lr,pace@learn-and-freeze"
    assert outcome.out.splitlines() == [
        "Table 3 of the paper: improved first-session adaptation, coarse-grained benchmarks: 28 runs are missing.",
        "",
        f"audiocl run -m {every} -b us8k --data /d --orders 0-2 --results {results}",
        f"audiocl run -m {every},pace -b sc2 --data /d --orders 0-2 --results {results}",
        f"audiocl run -m pace -b us8k --data /d --orders 2 --results {results}",
        "",
        "Nothing was run. Add --run to make them now, one command after the other.",
    ]


@pytest.mark.parametrize("agreed", [True, False])
def test_reproduce_asks_a_person(call: Call, results: Path, monkeypatch: pytest.MonkeyPatch, agreed: bool) -> None:
    made: list[sweep.Sweep] = []
    monkeypatch.setattr(sweep, "run_sweep", made.append)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda question: agreed)
    outcome = call("reproduce", "table3", "--orders", "0", "-b", "us8k", "--results", results)
    assert outcome.code == 0, outcome.err
    assert len(made) == outcome.out.count("\n$ audiocl run") == int(agreed)
    assert ("Nothing was run." in outcome.out) != agreed


def test_reproduce_runs_what_it_lists(
    call: Call, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other; a failing one stops no other one, and the table comes at the end."""
    asked: list[sweep.Sweep] = []

    def pretend(wanted: sweep.Sweep) -> None:
        asked.append(wanted)
        if wanted.benchmarks == ("sc2",):
            raise AudioclError("no corpus here.")
        for method in wanted.methods:
            assert isinstance(method, str)
            for order in wanted.orders:
                store(results, "pace", "us8k", points=70, order=order, variant=method.partition("@")[2])

    monkeypatch.setattr(sweep, "run_sweep", pretend)
    options = (
        "--orders",
        "0-2",
        "-b",
        "us8k,sc2",
        "--results",
        results,
        "--threads",
        "1",
        "--quiet",
        "--device",
        "cpu",
    )
    outcome = call("reproduce", "table3", *options, "--yes")
    assert_refused(outcome, "no corpus here.")
    assert [(s.benchmarks, len(s.methods), s.orders) for s in asked] == [
        (("us8k",), 4, (0, 1, 2)),
        (("sc2",), 5, (0, 1, 2)),
        (("us8k",), 1, (2,)),
    ]
    assert {(s.results, s.threads, s.quiet, s.device, s.data, s.protocol) for s in asked} == {
        (str(results), 1, True, "cpu", None, None)
    }
    assert "70.00 ± 0.00" in outcome.out
    # Only what is still missing is asked for again.
    assert call("reproduce", "table3", *options).out.count("audiocl run") == 1
    done = call("reproduce", "table3", *options[:2], "-b", "us8k", *options[4:])
    assert done.out.startswith("No run is missing.")
    assert "| improved FSA" in done.out


@pytest.mark.slow
def test_reproduce_makes_real_runs(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    """On own data, with the random network; its settings fill the table they were asked for."""
    options = ("-b", tiny_benchmark, "--backbone", "eat-tiny", "--orders", "0", "--results", tmp_path / "r")
    outcome = call("reproduce", "table3", *options, "--run", "--quiet", "--threads", "1", "--workers", "1")
    assert outcome.code == 0, outcome.err
    assert len(ResultsDir(tmp_path / "r").run_ids()) == 5
    assert "NOT COMPARABLE with published numbers: own data, stand-in backbone." in outcome.out
    assert call("reproduce", "table3", *options).out.startswith("No run is missing.")
    assert "numbers of ours" in call("table", "3", *options, "--out", tmp_path / "t.html").out
