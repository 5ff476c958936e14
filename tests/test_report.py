"""Terminal tables: what they say, that they fit, and that nothing depends on colour or on markup in names."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console, RenderableType

from audiocl_bench.errors import UnknownNameError
from audiocl_bench.report import tables
from audiocl_bench.results import ResultsDir, build_result


def render(shown: RenderableType, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False, color_system=None, legacy_windows=False)
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return text


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def make_runs(*rows: dict[str, Any]) -> pd.DataFrame:
    base = {
        "method": "ranpac",
        "benchmark": "esc50",
        "protocol": "grouped",
        "backbone": "eat-base",
        "order": 0,
        "seed": 0,
        "final_accuracy": 70.0,
        "average_incremental_accuracy": 80.0,
        "forgetting": 5.0,
        "own_data": False,
        "mini": False,
        "variant": "",
        "stand_in": False,
        "audit_passed": True,
        "train_seconds": 80.0,
        "eval_seconds": 10.0,
        "index_hash": "i",
        "weights_hash": "w",
        "config_hash": "c0ffee00",
        "notes": "{}",
    }
    frame = pd.DataFrame([{**base, **row} for row in rows])
    return frame.assign(comparable=~(frame["own_data"] | frame["mini"] | frame["stand_in"]))


def store(folder: Path, run_id: str, sessions: int, *, joint: bool = False, **changes: Any) -> ResultsDir:
    """Store one run whose method gets exactly the first of each class's two clips right."""
    classes = [[f"a[red]{t}", f"b{t}"] for t in range(sessions)]
    rows = []
    for after in range(sessions - 1 if joint else 0, sessions):
        for session in range(after + 1):
            for position, label in enumerate(classes[session]):
                other = classes[session][1 - position]
                rows += [(after, f"{label}/0", session, label, label), (after, f"{label}/1", session, label, other)]
    predictions = pd.DataFrame(rows, columns=["after_session", "clip_id", "session", "label", "predicted"])
    costs = pd.DataFrame(
        {
            "session": range(sessions),
            "classes": classes,
            "train_clips": 1234,
            "train_seconds": 75.0,
            "eval_seconds": 2.5,
            "train_passes": 2468,
            "eval_passes": 4,
            "block_runs": 29664,
            "peak_memory_mb": 812.5,
            "trainable_parameters": 1_200_000,
            "kept_bytes": 3_500_000,
            "encoder_version": 1,
            "diagnostics": [{} for _ in classes],
        }
    )
    meta = {
        "run_id": run_id,
        "method": "ranpac",
        "benchmark": "esc50",
        "protocol": "grouped",
        "backbone": "eat-base",
        "order": 2,
        "seed": 7,
        "own_data": False,
        "mini": False,
        "variant": "",
        "stand_in": False,
        "audit_passed": True,
        "audit": {"batch_independence": {"passed": True, "largest_difference": 1e-7}},
        "split_hash": "5" * 64,
        "index_hash": "1" * 64,
        "weights_hash": "e" * 64,
        "front_end": {"kind": "kaldi"},
        "method_config": {"ridge": 1.0, "whiten": False},
        "audiocl_version": "0.1.0",
        "device": "cpu",
        "threads": 2,
        "python_version": "3.11.0",
        "library_versions": {"torch": "2.13.0"},
        "platform": "test machine",
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:01:00+00:00",
        "notes": {"chosen_layer": 7},
        **changes,
    }
    results = ResultsDir(folder)
    results.write(build_result(meta, costs, predictions))
    return results


# --- Many runs


def test_one_run_has_no_interval_and_three_have_the_students() -> None:
    one = render(tables.runs_table(make_runs({})))
    assert lines_with(one, "ranpac", "70.00", "80.0", "5.0", "1.5 min", "passed")
    assert "70.00 ±" not in one
    three = render(tables.runs_table(make_runs(*({"seed": s, "final_accuracy": 70.0 + s} for s in range(3)))))
    half = 4.30265 * 1.0 / math.sqrt(3)  # t_{0.975, 2}, s = 1
    assert lines_with(three, "ranpac", " 3 ", f"71.00 ± {half:.2f}")


def test_methods_are_ranked_and_audits_told_in_words() -> None:
    runs = make_runs(
        {"method": "ncm", "final_accuracy": 50.0, "audit_passed": False},
        {"method": "ncm", "final_accuracy": 52.0, "seed": 1},
        {"method": "pace", "final_accuracy": 90.0},
        {"method": "joint", "final_accuracy": 95.0, "forgetting": None, "average_incremental_accuracy": None},
    )
    text = render(tables.runs_table(runs))
    assert text.index("joint") < text.index("pace") < text.index("ncm")
    assert lines_with(text, "ncm", "FAILED 1/2")
    assert lines_with(text, "joint", "95.00", " - ")


def test_what_differs_is_never_averaged() -> None:
    runs = make_runs(
        {"final_accuracy": 10.0},
        {"final_accuracy": 20.0, "protocol": "paper"},
        {"final_accuracy": 30.0, "backbone": "sslam"},
        {"final_accuracy": 40.0, "config_hash": "abcdef12"},
        {"final_accuracy": 50.0, "weights_hash": "another"},
    )
    text = render(tables.runs_table(runs))
    for value in ("10.00", "20.00", "30.00", "40.00", "50.00"):
        assert len(lines_with(text, value)) == 1
    assert lines_with(text, "ranpac #abcdef", "40.00")
    assert lines_with(text, "ranpac #c0ffee", "10.00")
    assert lines_with(text, "ranpac ", "20.00")


def test_variants_go_by_their_name() -> None:
    runs = make_runs({"final_accuracy": 60.0}, {"variant": "no-fsa", "config_hash": "abcdef12"})
    text = render(tables.runs_table(runs))
    assert lines_with(text, "ranpac@no-fsa ", "70.00")
    assert lines_with(text, "ranpac ", "60.00")
    assert "#" not in text


def test_benchmarks_share_a_table_and_own_data_stands_alone() -> None:
    rows = [
        {"benchmark": "us8k", "final_accuracy": 40.0},
        {"benchmark": "us8k", "method": "pace"},
        {"benchmark": "esc50"},
    ]
    text = render(tables.runs_table(make_runs(*rows)))
    assert text.startswith("2 benchmarks")
    assert text.count("final %") == 1
    assert lines_with(text, "esc50", "ranpac", "70.00")
    assert text.index("esc50") < text.index("us8k") < text.index("40.00")
    assert len(lines_with(text, "us8k")) == 1  # named once, best first
    assert lines_with(text, "us8k", "pace", "70.00")
    alone = render(tables.runs_table(make_runs(*({**row, "own_data": True} for row in rows))))
    assert alone.count("final %") == 2


def test_repeats_count_once() -> None:
    runs = make_runs({"final_accuracy": 60.0}, {"final_accuracy": 80.0}, {"final_accuracy": 90.0, "seed": 1})
    text = render(tables.runs_table(runs))
    assert lines_with(text, "ranpac", " 2* ", "80.00 ±")  # mean of 70 and 90
    assert "averaged first" in text


def test_two_versions_of_an_edited_method_are_never_averaged() -> None:
    edited = '{"method_source_sha256": "abcdef0123"}'
    text = render(tables.runs_table(make_runs({"final_accuracy": 60.0}, {"final_accuracy": 90.0, "notes": edited})))
    assert len(lines_with(text, "ranpac #c0ffee", "60.00")) == 1
    assert len(lines_with(text, "ranpac #c0ffee abcdef", "90.00")) == 1


@pytest.mark.parametrize(
    ("why", "label"),
    [
        (("own_data",), "own data"),
        (("mini",), "mini (synthetic data)"),
        (("stand_in",), "stand-in backbone"),
        (("own_data", "stand_in"), "own data, stand-in backbone"),
    ],
)
def test_what_cannot_be_compared_is_labelled_and_apart(why: tuple[str, ...], label: str) -> None:
    runs = make_runs({"final_accuracy": 99.0, **dict.fromkeys(why, True)}, {"final_accuracy": 50.0})
    text = render(tables.runs_table(runs))
    assert text.index("50.00") < text.index(f"NOT COMPARABLE with published numbers: {label}") < text.index("99.00")
    assert text.count("final %") == 2  # two tables


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_number_is_cut_off(width: int) -> None:
    rows = [
        {"method": "a-method-with-a-rather-long-name", "seed": s, "final_accuracy": f, "train_seconds": 123456.0}
        for s, f in enumerate((0.0, 100.0))
    ]
    text = render(tables.runs_table(make_runs(*rows, {"audit_passed": False})), width)
    assert lines_with(text, "50.00 ± 635.31", "34.3 h", "passed")
    assert "…" not in text


def test_no_runs() -> None:
    assert "No runs yet" in render(tables.runs_table(make_runs({}).iloc[:0]))


# --- One run


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_run_in_full(tmp_path: Path, width: int) -> None:
    text = render(tables.show_run(store(tmp_path, "my-run", 3), "my-run"), width)
    for words in (
        ("my-run",),
        ("benchmark", "esc50, grouped split, order 2, seed 7"),
        ("settings", "ridge=1, whiten=no"),
        ("stream", "3 sessions, 6 classes"),
        ("final accuracy (mean over sessions", "50.00"),
        ("forgetting", "0.00"),
        ("1  50.0  50.0",),
        ("2  1,234  50.0  50.0  50.0", "2: a[red]2, b2"),
        ("1.2 min", "2.5 s", "2,468", "812.5 MB", "1.2 M", "3.5 MB"),
        ("time", "3 min 45 s training, 7.5 s testing"),
        ("1,200,000 parameters",),
        ("Audit: passed",),
        ("batch independence", "passed=yes"),
        ("chosen layer", "7"),
        ("split", "5" * 64),
        ("weights", "e" * 64),
        ("commit unknown",),
        ("libraries", "torch=2.13.0"),
    ):
        assert lines_with(text, *words), words
    assert "NOT COMPARABLE" not in text


def test_a_failed_audit_and_a_stand_in_are_said_in_words(tmp_path: Path) -> None:
    results = store(tmp_path, "r", 2, audit_passed=False, stand_in=True, notes={}, git_commit="abc+dirty")
    text = render(tables.show_run(results, "r"))
    assert "Audit: FAILED" in text
    assert "NOT COMPARABLE with published numbers: stand-in backbone" in text
    assert "Notes" not in text
    assert "commit abc+dirty" in text


def test_the_drift_diagnostic_shows_only_where_measured(tmp_path: Path) -> None:
    assert "recomputed" not in render(tables.show_run(store(tmp_path, "without", 2), "without"))
    results = store(tmp_path, "with", 2, fresh_final_accuracy=61.25)
    assert lines_with(render(tables.show_run(results, "with")), "recomputed at the end", "61.25")


def test_joint_run_says_what_was_not_tested(tmp_path: Path) -> None:
    text = render(tables.show_run(store(tmp_path, "joint", 3, joint=True), "joint"))
    assert "Tested after 1 of 3 sessions only." in text
    assert lines_with(text, "2  50.0  50.0  50.0")
    assert lines_with(text, "forgetting", " -")


def test_unknown_run(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean my-run"):
        tables.show_run(store(tmp_path, "my-run", 2), "my-rum")


def test_long_streams_are_condensed(tmp_path: Path) -> None:
    text = render(tables.show_run(store(tmp_path, "long", 40), "long"), 80)
    assert "of 40 sessions shown." in text
    assert lines_with(text, "after", " 0 ", " 10 ", " 20 ", " 30 ", " 39")
    assert lines_with(text, "39  50.0  50.0  50.0 …  50.0 …")


@pytest.mark.parametrize("sessions", [*range(1, 60), 210, 315, 1000])
def test_shown_sessions_fit_and_keep_both_ends(sessions: int) -> None:
    shown = tables.shown_sessions(sessions)
    assert shown == sorted(set(shown))
    assert shown[0] == 0
    assert shown[-1] == sessions - 1
    assert (shown == list(range(sessions))) == (sessions <= 12)
    matrix = np.where(np.tri(sessions, dtype=bool), 1.0, np.nan)
    text = render(tables.matrix_table(matrix), 80)
    assert lines_with(text, f"{sessions - 1} 100.0")[-1].count("100.0") == len(shown)


# --- Listings and cells


def test_listing() -> None:
    rows = [("esc50", 2000, True, None), ("us8k", 8732, False, "[bold]kept as it is[/bold]")]
    text = render(tables.listing(rows, ["name", "clips", "own", "note"], "Benchmarks"))
    assert text.startswith("Benchmarks\n")
    assert lines_with(text, "esc50", " 2000", "yes", "-")
    assert lines_with(text, "us8k", " 8732", "no", "[bold]kept as it is[/bold]")
    assert "name" in render(tables.listing([], ["name"]))
    with pytest.raises(ValueError, match="1 values for 2 columns"):
        tables.listing([("x",)], ["a", "b"])


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [
        (0.424, "0.42 s", "0.42 s"),
        (12.34, "12.3 s", "12.3 s"),
        (59.97, "59.9 s", "1.0 min"),
        (245, "4 min 05 s", "4.1 min"),
        (3599.7, "1 h 00 min", "1.0 h"),
        (7620, "2 h 07 min", "2.1 h"),
        (None, "-", "-"),
        (math.nan, "-", "-"),
    ],
)
def test_durations(seconds: float | None, long: str, short: str) -> None:
    assert tables.duration(seconds) == long
    assert tables.short_duration(seconds) == short


def test_counts_and_sizes() -> None:
    assert [tables.count(v) for v in (0, 9_999, 12_340, 1.25e6, 3e9, None)] == [
        "0",
        "9,999",
        "12.3 k",
        "1.2 M",
        "3.0 G",
        "-",
    ]
    assert [tables.megabytes(v) for v in (0, 0.0021, 12.34, 2048.0, None)] == [
        "0.0 MB",
        "2.1 kB",
        "12.3 MB",
        "2.05 GB",
        "-",
    ]
    assert [tables.percent(v) for v in (12.345, math.nan, None)] == ["12.3", "-", "-"]
