"""Tables of cells: which runs become which number, what is bold, what is said below, and how formats show it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiocl_bench import benchmarks, config, registry
from audiocl_bench.errors import ConfigError, ResultsError, UnknownNameError
from audiocl_bench.report import sheets
from audiocl_bench.report.commands import Command, Wanted, commands, ranges
from audiocl_bench.report.sheets import Cell, Sheet, blocks, free, load_runs, render
from audiocl_bench.results import ResultsDir, build_result

CLIPS = 50  # test clips of each of two sessions: one clip more is one point more


def store(
    folder: Path,
    method: str,
    benchmark: str = "esc50",
    *,
    points: float = 50.0,
    settings: dict[str, Any] | None = None,
    joint: bool = False,
    forgotten: int = 0,
    notes: dict[str, Any] | None = None,
    run_id: str = "",
    **changes: Any,
) -> str:
    """Store a run whose final accuracy is exactly `points` percent; a whole number of points."""
    right = [math.floor(points / 100 * CLIPS), math.ceil(points / 100 * CLIPS)]
    rows = []
    for after in range(1 if joint else 0, 2):
        for session in range(after + 1):
            hits = right[session] + (forgotten if after == 0 else 0)
            for clip in range(CLIPS):
                label = f"class{session}"
                rows.append((after, f"{label}/{clip}", session, label, label if clip < hits else "none"))
    predictions = pd.DataFrame(rows, columns=["after_session", "clip_id", "session", "label", "predicted"])
    costs = pd.DataFrame(
        {
            "session": range(2),
            "classes": [["class0", "none"], ["class1"]],
            "train_clips": 10,
            "train_seconds": 1.0,
            "eval_seconds": 1.0,
            "train_passes": 1,
            "eval_passes": 1,
            "block_runs": 1,
            "peak_memory_mb": 1.0,
            "trainable_parameters": 1,
            "kept_bytes": 1,
            "encoder_version": 1,
            "diagnostics": [{}, {}],
        }
    )
    if settings is None:
        preset = {"preset": changes["variant"]} if changes.get("variant") else {}
        settings = config.build(registry.load(method).Config, benchmark, preset, owner=method).as_dict()
    meta = {
        "method": method,
        "benchmark": benchmark,
        "protocol": "paper",
        "backbone": "eat-base",
        "order": 0,
        "seed": 0,
        "own_data": False,
        "mini": False,
        "variant": "",
        "stand_in": False,
        "audit_passed": True,
        "audit": {"repeatability": {"passed": True}},
        "split_hash": "5" * 64,
        "index_hash": "1" * 64,
        "weights_hash": "e" * 64,
        "front_end": {"kind": "kaldi"},
        "method_config": settings,
        "audiocl_version": "0.1.0",
        "device": "cpu",
        "threads": 1,
        "python_version": "3.11.0",
        "library_versions": {"torch": "2.13.0"},
        "platform": "test machine",
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:01:00+00:00",
        "notes": {"backbone": {"network": "eat", "pool": "cls", "layer": 12, "depth": 12}} if notes is None else notes,
        **changes,
    }
    parts = (method, changes.get("variant", ""), benchmark, meta["order"], meta["seed"], points)
    meta["run_id"] = run_id or re.sub(r"[^A-Za-z0-9.+-]", "_", "-".join(map(str, parts)))
    return ResultsDir(folder).write(build_result(meta, costs, predictions))


def runs_of(folder: Path) -> pd.DataFrame:
    return load_runs(ResultsDir(folder))


def sheet_of(folder: Path, **options: Any) -> Sheet:
    return free(runs_of(folder), **options)


# ----------------------------------------------------------------------------------------------- one number per cell


def test_mean_and_interval_over_orders(tmp_path: Path) -> None:
    for order, points in enumerate((70, 72, 74)):
        store(tmp_path, "ncm", points=points, order=order)
    cell = sheet_of(tmp_path).cell("ncm", "esc50")
    assert cell.mean == pytest.approx(72.0)
    assert cell.half_width == pytest.approx(4.302653 * 2 / math.sqrt(3), abs=1e-5)  # t_{0.975, 2}, s = 2
    assert cell.streams == {(0, 0), (1, 0), (2, 0)}
    assert len(cell.run_ids) == 3


def test_a_single_run_has_no_interval(tmp_path: Path) -> None:
    store(tmp_path, "ncm", points=70)
    cell = sheet_of(tmp_path).cell("ncm", "esc50")
    assert (cell.mean, cell.half_width) == (pytest.approx(70.0), None)
    assert "± half" not in render(sheet_of(tmp_path))
    assert "One run per cell." in render(sheet_of(tmp_path))


def test_repeats_of_one_order_and_seed_are_averaged_first(tmp_path: Path) -> None:
    store(tmp_path / "here", "ncm", points=60, order=0)
    store(tmp_path / "there", "ncm", points=70, order=0, finished_at="2026-02-01T00:00:00+00:00")
    store(tmp_path / "here", "ncm", points=85, order=1)
    both = [ResultsDir(tmp_path / "here"), ResultsDir(tmp_path / "there")]
    cell = free(load_runs(both)).cell("ncm", "esc50")
    assert cell.mean == pytest.approx((65 + 85) / 2)  # not (60 + 70 + 85) / 3
    assert len(cell.streams) == 2


def test_a_copied_run_counts_once(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        store(tmp_path / folder, "ncm", points=60)
    store(tmp_path / "one", "ncm", points=80, order=1)
    assert len(load_runs(tmp_path)) == 2  # a folder of results directories
    assert free(load_runs(tmp_path)).cell("ncm", "esc50").mean == pytest.approx(70.0)


def test_other_settings_are_another_row_and_said_in_the_users_words(tmp_path: Path) -> None:
    defaults = config.build(registry.load("pace").Config, "us8k", {}, owner="pace").as_dict()
    store(tmp_path, "pace", "us8k", points=60)
    store(tmp_path, "pace", "us8k", points=80, variant="no-msa")
    store(tmp_path, "pace", "us8k", points=90, settings={**defaults, "rank": 4, "msa": False})
    sheet = sheet_of(tmp_path)
    assert sheet.rows == ("pace", "pace, msa=false, rank=4", "pace@no-msa")
    assert [sheet.cell(row, "us8k").mean for row in sheet.rows] == pytest.approx([60, 90, 80])


def test_a_preset_of_the_benchmark_is_no_changed_setting(tmp_path: Path) -> None:
    """PACE adapts once on ESC-50 by its own preset; that is plain `pace` there, and a change elsewhere."""
    on_esc50 = config.build(registry.load("pace").Config, "esc50", {}, owner="pace").as_dict()
    store(tmp_path, "pace", "esc50", points=60)
    store(tmp_path, "pace", "us8k", points=60, settings=on_esc50)
    assert sheet_of(tmp_path).rows == ("pace", "pace, adapted_sessions=1")


def test_many_changed_settings_are_counted_in_the_label(tmp_path: Path) -> None:
    defaults = registry.load("pace").Config().as_dict()
    changed = {"rank": 4, "msa": False, "copies": 2, "width": 10}
    store(tmp_path, "pace", "us8k", settings={**defaults, **changed})
    [row] = sheet_of(tmp_path).rows
    assert re.fullmatch(r"pace, 4 settings changed #[0-9a-f]{6}", row)


def test_a_class_in_a_file_is_not_the_method_of_the_same_name(tmp_path: Path) -> None:
    store(tmp_path, "ncm", points=60)
    store(tmp_path, "ncm", points=90, notes={"method_source_sha256": "abcdef0123"}, run_id="mine")
    assert sheet_of(tmp_path).rows == ("ncm", "ncm (code abcdef)")


def test_methods_that_cannot_be_loaded_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    store(tmp_path, "elsewhere", points=60, settings={"a": 1}, run_id="one")
    assert sheet_of(tmp_path).rows == ("elsewhere",)
    store(tmp_path, "elsewhere", points=90, settings={"a": 2}, run_id="two")
    labels = sheet_of(tmp_path).rows
    assert len(set(labels)) == 2
    assert all(re.fullmatch(r"elsewhere #[0-9a-f]{6}", label) for label in labels)
    assert sheet_of(tmp_path).commands() == ()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weights_hash": "f" * 64}, "weights"),
        ({"index_hash": "2" * 64}, "clips"),
        ({"front_end": {"kind": "other"}}, "front end"),
        ({"notes": {"backbone": {"network": "eat", "pool": "mean", "layer": 12, "depth": 12}}}, "features"),
    ],
)
def test_unlike_runs_are_never_averaged(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    """Most orders win, however new the others are; a footnote counts these."""
    for order in range(3):
        store(tmp_path, "ncm", points=60, order=order)
    later = {"finished_at": "2026-05-01T00:00:00+00:00"}
    for order in range(2):
        store(tmp_path, "ncm", points=90, order=order, run_id=f"other-{order}", **change, **later)
    cell = sheet_of(tmp_path).cell("ncm", "esc50")
    assert cell.mean == pytest.approx(60.0)
    assert any(note.startswith(f"2 runs with other {word} left out") for note in cell.notes)


def test_among_equals_the_newest_counts(tmp_path: Path) -> None:
    store(tmp_path, "ncm", points=60, run_id="old")
    later = {"finished_at": "2026-05-01T00:00:00+00:00"}
    store(tmp_path, "ncm", points=90, run_id="new", weights_hash="a" * 64, **later)
    assert sheet_of(tmp_path).cell("ncm", "esc50").mean == pytest.approx(90.0)


def test_runs_that_know_all_settings_go_before_more_orders(tmp_path: Path) -> None:
    """A setting that did not exist then is taken at its default, and said; it never mixes with today's runs."""
    today = registry.load("ranpac").Config().as_dict()
    then = {name: value for name, value in today.items() if name not in ("search", "preset")}
    for order in range(3):
        store(tmp_path, "ranpac", "us8k", points=60, settings=then, order=order)
    cell = sheet_of(tmp_path).cell("ranpac", "us8k")
    assert cell.mean == pytest.approx(60.0)
    assert any("`search` existed" in note for note in cell.notes)
    store(tmp_path, "ranpac", "us8k", points=90)
    cell = sheet_of(tmp_path).cell("ranpac", "us8k")
    assert cell.mean == pytest.approx(90.0)
    assert any(note.startswith("3 runs with other settings left out") for note in cell.notes)


def test_another_split_or_audio_of_the_same_order_is_left_out(tmp_path: Path) -> None:
    later = {"finished_at": "2026-05-01T00:00:00+00:00"}
    mini = {"mini": True, "benchmark": "mini-us8k"}
    store(tmp_path, "ncm", points=60, run_id="audio-1", **mini)
    store(tmp_path, "ncm", points=90, run_id="audio-2", **mini, **later)
    cell = sheet_of(tmp_path).cell("ncm", "mini-us8k")
    assert cell.mean == pytest.approx(90.0)
    assert cell.run_ids == ("audio-2",)
    assert any(note.startswith("1 run on other audio") for note in cell.notes)


def test_failed_audits_and_declared_leaks_are_left_out_and_named(tmp_path: Path) -> None:
    store(tmp_path, "ncm", points=60)
    failed = {"repeatability": {"passed": False}}
    store(tmp_path, "ncm", points=99, order=1, run_id="bad", audit_passed=False, audit=failed)
    store(tmp_path, "l2p", points=99, run_id="leaky", audit_passed=False)
    sheet = sheet_of(tmp_path)
    assert sheet.cell("ncm", "esc50").mean == pytest.approx(60.0)
    assert "1 run with a failed audit left out: bad." in sheet.cell("ncm", "esc50").notes
    assert sheet.cell("l2p", "esc50").mean is None
    assert "1 run with a declared leak left out: leaky." in sheet.cell("l2p", "esc50").notes
    # Running it again would give the same result: no command fills the cell.
    assert sheet.commands() == ()


def test_a_score_that_a_run_does_not_have_is_no_number(tmp_path: Path) -> None:
    store(tmp_path, "joint", points=60, joint=True)
    cell = sheet_of(tmp_path, score="forgetting").cell("joint", "esc50")
    assert cell.mean is None
    assert any("no forgetting" in note for note in cell.notes)
    assert cell.wanted is None


# -------------------------------------------------------------------------------------------------------------- bold


def best(sheet: Sheet) -> set[tuple[str, str]]:
    return {(cell.row, cell.column) for cell in sheet.cells if cell.best}


def test_the_best_of_a_column_is_bold_and_ties_all(tmp_path: Path) -> None:
    for method, points in (("ncm", 60), ("ranpac", 80), ("pace", 80)):
        store(tmp_path, method, "us8k", points=points)
        store(tmp_path, method, "esc50", points=90 - points)
    assert best(sheet_of(tmp_path)) == {("ranpac", "us8k"), ("pace", "us8k"), ("ncm", "esc50")}
    # Transposed, the same numbers compete: those on one benchmark.
    turned = sheet_of(tmp_path, rows="benchmark", cols="method")
    assert best(turned) == {("us8k", "ranpac"), ("us8k", "pace"), ("esc50", "ncm")}


def test_ties_are_told_at_the_digits_shown(tmp_path: Path) -> None:
    def entry(row: str, mean: float) -> sheets.Entry:
        place = sheets.Place("esc50", "paper", "eat-base", "", "", "", "")
        cell = Cell(row, "esc50", mean=mean, streams=frozenset({(0, 0)}))
        return sheets.Entry(cell, sheets.Gathered(cell, place))

    cells = sheets.ranked([entry("a", 70.001), entry("b", 70.004), entry("c", 69.99)], "final_accuracy")
    assert [cell.best for cell in cells] == [True, True, False]


def test_a_number_alone_is_not_the_best(tmp_path: Path) -> None:
    store(tmp_path, "ncm")
    assert best(sheet_of(tmp_path)) == set()
    assert "Bold" not in render(sheet_of(tmp_path))


def test_the_least_forgetting_is_best(tmp_path: Path) -> None:
    for method, forgotten in (("ncm", 5), ("ranpac", 2)):
        store(tmp_path, method, forgotten=forgotten)
    assert best(sheet_of(tmp_path, score="forgetting")) == {("ranpac", "esc50")}


def test_joint_training_is_a_bound_and_does_not_compete(tmp_path: Path) -> None:
    for method, points in (("ncm", 60), ("ranpac", 70), ("joint", 95)):
        store(tmp_path, method, points=points, joint=method == "joint")
    sheet = sheet_of(tmp_path)
    assert best(sheet) == {("ranpac", "esc50")}
    assert sheets.BOUND in sheet.cell("joint", "esc50").notes


def test_fewer_orders_do_not_compete(tmp_path: Path) -> None:
    for method, points, orders in (("ncm", 60, 3), ("ranpac", 50, 3), ("pace", 90, 1)):
        for order in range(orders):
            store(tmp_path, method, points=points, order=order)
    sheet = sheet_of(tmp_path)
    assert best(sheet) == {("ncm", "esc50")}
    note = "Not ranked: others beside it have more runs (without orders 1-2)."
    assert note in sheet.cell("pace", "esc50").notes


def test_other_weights_do_not_compete(tmp_path: Path) -> None:
    store(tmp_path, "ncm", points=60)
    store(tmp_path, "ranpac", points=70)
    store(tmp_path, "pace", points=90, weights_hash="f" * 64)
    sheet = sheet_of(tmp_path)
    assert best(sheet) == {("ranpac", "esc50")}
    assert any(note.startswith("Not ranked: made with other weights") for note in sheet.cell("pace", "esc50").notes)


def test_nothing_competes_across_networks_or_splits(tmp_path: Path) -> None:
    store(tmp_path, "ncm", points=60)
    store(tmp_path, "ncm", points=70, protocol="grouped", run_id="grouped")
    assert best(sheet_of(tmp_path, rows="protocol", cols="method")) == set()
    store(tmp_path, "ranpac", points=80)
    sheet = sheet_of(tmp_path, rows="method", cols="protocol")
    assert best(sheet) == {("ranpac", "paper split")}


# ---------------------------------------------------------------------------------------- what may share a free sheet


def test_own_data_minis_and_stand_ins_have_sheets_of_their_own(tmp_path: Path) -> None:
    store(tmp_path, "ncm", "esc50")
    store(tmp_path, "ncm", "us8k", protocol="grouped")
    store(tmp_path, "ncm", "esc50", mini=True, run_id="mini")
    store(tmp_path, "ncm", "esc50", stand_in=True, backbone="eat-tiny", run_id="stand-in")
    store(tmp_path, "ncm", "cats", own_data=True, protocol="own")
    store(tmp_path, "ncm", "dogs", own_data=True, protocol="own")
    runs = runs_of(tmp_path)
    parts = blocks(runs)
    assert [len(part) for part in parts] == [1] * 6
    assert sorted(run for part in parts for run in part["run_id"]) == sorted(runs["run_id"])
    assert [bool(part.iloc[0]["comparable"]) for part in parts] == [True, True, False, False, False, False]
    with pytest.raises(ResultsError, match="may not share a table"):
        free(runs)
    labels = [free(part).warning for part in parts]
    assert labels[:2] == ["", ""]
    assert sorted(labels[2:]) == ["mini (synthetic data)", "own data", "own data", "stand-in backbone"]
    # Even where networks or benchmarks are the columns.
    assert len(blocks(runs, rows="method", cols="backbone")) == 6


def test_rows_and_columns_may_be_orders_and_seeds(tmp_path: Path) -> None:
    for order, seed in product(range(2), range(3)):
        store(tmp_path, "ncm", points=60 + 10 * order + 2 * seed, order=order, seed=seed)
    sheet = sheet_of(tmp_path, rows="order", cols="seed")
    assert (sheet.rows, sheet.columns) == (("order 0", "order 1"), ("seed 0", "seed 1", "seed 2"))
    assert sheet.cell("order 1", "seed 2").mean == pytest.approx(74.0)
    assert "ncm, esc50, paper split, eat-base" in sheet.setting
    assert sheet_of(tmp_path, rows="order", cols="benchmark").cell("order 0", "esc50").mean == pytest.approx(62.0)


def test_what_cannot_be_a_sheet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="there are no runs"):
        sheet_of(tmp_path)
    store(tmp_path, "ncm")
    with pytest.raises(UnknownNameError, match="did you mean method"):
        sheet_of(tmp_path, rows="methods")
    with pytest.raises(ConfigError, match="both method"):
        sheet_of(tmp_path, cols="method")
    with pytest.raises(UnknownNameError, match="did you mean forgetting"):
        sheet_of(tmp_path, score="forgeting")
    with pytest.raises(ResultsError, match="no runs in"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="is a file"):
        load_runs(next((tmp_path / "runs").iterdir()))


def test_empty_cells_say_which_command_fills_them(tmp_path: Path) -> None:
    for order in range(3):
        store(tmp_path, "ncm", "us8k", order=order)
    store(tmp_path, "pace", "esc50", variant="no-msa")
    sheet = sheet_of(tmp_path)
    assert [command.text() for command in sheet.commands()] == [
        "audiocl run -m ncm -b esc50 --orders 0-2",
        "audiocl run -m pace@no-msa -b us8k --orders 0-2",
    ]
    assert "audiocl run -m ncm -b esc50 --orders 0-2" in render(sheet)


# --------------------------------------------------------------------------------------------------------- footnotes


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"backbone": "eat-base-epoch10"}, ""),
        ({"protocol": "grouped"}, "Unlike the paper: grouped split instead of a random 8:2 split of the clips."),
        ({"backbone": "sslam-base"}, "Unlike the paper: backbone sslam-base instead of EAT base."),
        ({"mini": True}, "Unlike the paper: mini (synthetic data)."),
        ({"own_data": True, "protocol": "own"}, "Unlike the paper: own data."),
        ({"stand_in": True, "backbone": "eat-tiny"}, "Unlike the paper: stand-in backbone."),
        (
            {"notes": {"backbone": {"network": "eat", "pool": "mean", "layer": 9, "depth": 12}}},
            "Unlike the paper: features: pool=mean, block 9 of 12.",
        ),
        ({"notes": {}}, ""),
    ],
)
def test_what_differs_from_the_paper_is_a_footnote(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    store(tmp_path, "ncm", **change)
    assert "".join(sheet_of(tmp_path).cells[0].notes) == told


def sample() -> Sheet:
    """A sheet with everything: published numbers, bold, footnotes, remarks, a gap, and names that need escaping."""
    odd = "a_b & 50% | *x* <b>"
    common, other = "Common note.", "Set `--rank_x` & see $5."
    wanted = Wanted("ncm", ("k=none",), "esc50", "", "eat-base", frozenset({(0, 0), (1, 0)}))
    return Sheet(
        name="table_9",
        title="Title #1",
        setting="Percent, 100%.",
        warning="",
        score="final_accuracy",
        row_heading="method",
        rows=("first", odd, "empty"),
        columns=("esc50", "us_8k"),
        cells=(
            Cell("first", "esc50", 80.0, 1.25, frozenset({(0, 0), (1, 0)}), ("r1", "r2"), True, 81.5, (common,)),
            Cell("first", "us_8k", 70.0, None, frozenset({(0, 0)}), ("r3",), paper=70.0, notes=(other, common)),
            Cell(odd, "esc50", 60.0, None, frozenset({(0, 0)}), ("r4",), paper=50.0, paper_notes=("Inferred.",)),
            Cell(odd, "us_8k", paper=10.0),
            Cell("empty", "esc50", paper=20.0, wanted=wanted),
            Cell("empty", "us_8k"),
        ),
        remarks=("A remark about `code`.",),
        hints=("A hint.",),
    )


def test_footnotes_are_numbered_once_in_reading_order() -> None:
    assert sample().footnotes() == ("Common note.", "Set `--rank_x` & see $5.", "Inferred.")


# ----------------------------------------------------------------------------------------------------------- formats


def test_markdown() -> None:
    text = render(sample(), "markdown")
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert {len(line) for line in cells} == {4}
    odd = r"a_b & 50% \| \*x\* &lt;b>"
    assert [line for line in cells if not line[0].startswith(":")] == [
        ["method", "", "esc50", "us_8k"],
        ["first", "ours", "**80.00 ± 1.25** [1]", "70.00 [1,2]"],
        ["", "paper", "81.50", "70.00"],
        ["", "ours - paper", "-1.50", "+0.00"],
        [odd, "ours", "60.00", "-"],
        ["", "paper", "50.00 [3]", "10.00"],
        ["", "ours - paper", "+10.00", "-"],
        ["empty", "ours", "-", "-"],
        ["", "paper", "20.00", "-"],
    ]
    assert "[1] Common note.  \n[2] Set `--rank_x` & see $5.  \n[3] Inferred.\n" in text
    assert "```sh\naudiocl run -m ncm -b esc50 --orders 0-1 --set k=none\n```" in text
    assert "A remark about `code`." in text


def test_differences_below_half_a_hundredth_have_no_minus() -> None:
    cell = Cell("a", "b", mean=49.999, paper=50.0)
    sheet = Sheet("t", "T", "S.", "", "final_accuracy", "m", ("a",), ("b",), (cell,))
    assert "+0.00" in render(sheet)
    assert "-0.00" not in render(sheet)


def without_code(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("%"))


def test_latex_is_well_formed() -> None:
    text = render(sample(), "latex")
    body = without_code(text)
    unescaped = re.sub(r"\\[\\{}%&$#_]", "", body)
    depth = 0
    for sign in unescaped:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert "%" not in unescaped
    assert unescaped.count("$") % 2 == 0
    assert re.findall(r"\\(?:begin|end)\{\w+\}", body) == [
        r"\begin{table}",
        r"\begin{tabular}",
        r"\end{tabular}",
        r"\end{table}",
    ]
    assert list(re.findall(r"\\(\w+rule)", body)) == ["toprule", "midrule", "bottomrule"]
    assert r"\begin{tabular}{llrr}" in body
    inside = body[body.index(r"\toprule") : body.index(r"\bottomrule")]
    rows = [line for line in inside.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 9
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {3}
    assert r"\textbf{80.00 $\pm$ 1.25}\textsuperscript{1}" in body
    assert r"a\_b \& 50\% \textbar{} *x* \textless{}b\textgreater{}" in body
    assert r"$-$1.50" in body
    assert "ours $-$ paper" in body
    assert r"\texttt{-{}-rank\_x}" in body
    assert r"\label{tab:table-9}" in body
    assert "% fill: audiocl run -m ncm -b esc50 --orders 0-1 --set k=none" in text
    assert "A hint" not in body


class Page(HTMLParser):
    """Collects what a test needs of a page, and checks that tags are balanced."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[int] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [values for name, values in self.tags if name == tag]


def test_html_is_standalone_and_accessible() -> None:
    text = render(sample(), "html")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html")[0]["lang"] == "en"
    assert "".join(page.texts["title"]) == "Title #1"
    assert page.all("script") == page.all("link") == page.all("img") == []
    assert "http" not in text
    assert "Title #1" in "".join(page.texts["caption"])
    assert [th["scope"] for th in page.all("th")] == ["col"] * 4 + ["rowgroup", *["row"] * 3] * 2 + [
        "rowgroup",
        "row",
    ] + ["row"]
    # A row group's heading spans its lines.
    assert [th["rowspan"] for th in page.all("th") if th["scope"] == "rowgroup"] == ["3", "3", "2"]
    assert page.rows == [4, 4, 3, 3, 4, 3, 3, 4, 3]
    assert page.texts["strong"] == ["Title #1", "80.00 ± 1.25"]
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))
    targets = [(a["href"] or "").removeprefix("#") for a in page.all("a")]
    assert [target.rpartition("-")[2] for target in targets] == ["1", "1", "2", "3"]
    assert set(targets) <= set(ids)
    [region] = [values for _, values in page.tags if values.get("role") == "region"]
    assert region["tabindex"] == "0"
    assert region["aria-labelledby"] in ids
    assert "a_b & 50% | *x* <b>" in page.texts["th"]
    assert page.all("b") == []


def test_several_sheets_are_one_document_with_ids_of_their_own() -> None:
    page = Page(render([sample(), sample()], "html"))
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids)) == 8
    assert {(a["href"] or "").removeprefix("#") for a in page.all("a")} <= set(ids)
    assert render([sample(), sample()], "markdown").count("| method") == 2
    assert render([sample(), sample()], "latex").count(r"\begin{tabular}") == 2
    assert len(pd.read_csv(io.StringIO(render([sample(), sample()], "csv")))) == 12


def test_csv_is_the_tidy_table() -> None:
    rows = list(csv.DictReader(io.StringIO(render(sample(), "csv"))))
    assert len(rows) == 6
    assert {k: rows[0][k] for k in ("row", "column", "ours", "half_width", "n", "best", "paper", "difference")} == {
        "row": "first",
        "column": "esc50",
        "ours": "80.0",
        "half_width": "1.25",
        "n": "2",
        "best": "True",
        "paper": "81.5",
        "difference": "-1.5",
    }
    assert rows[1]["footnotes"] == "Set `--rank_x` & see $5. | Common note."
    assert rows[3]["ours"] == rows[3]["difference"] == ""


def test_parquet_is_the_tidy_table(tmp_path: Path) -> None:
    sheets.write_parquet([sample()], tmp_path / "t.parquet")
    read = pq.read_table(tmp_path / "t.parquet").to_pandas()
    expected = sample().frame()
    assert list(read.columns) == list(expected.columns)
    for name in read.columns:
        for stored, fresh in zip(read[name], expected[name], strict=True):
            assert (list(stored) == fresh) if isinstance(fresh, list) else (stored == fresh or stored != stored)
    with pytest.raises(ResultsError, match="cannot be written"):
        sheets.write_parquet([sample()], tmp_path / "t.parquet" / "below")


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean html"):
        render(sample(), "htm")  # type: ignore[arg-type]


def test_the_warning_stands_above_the_numbers_in_every_format(tmp_path: Path) -> None:
    store(tmp_path, "ncm", "cats", own_data=True, protocol="own", points=62)
    sheet = sheet_of(tmp_path)
    for form in ("markdown", "latex", "html"):
        text = render(sheet, form)
        assert text.index("NOT COMPARABLE with published numbers: own data") < text.index("62.00"), form
    assert not sheet.frame()["comparable"].any()
    assert "paper |" not in render(sheet)


def test_equal_runs_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    for method, number in product(("ncm", "ranpac"), range(3)):
        store(tmp_path, method, points=60 + number, order=number)
    runs = runs_of(tmp_path)
    mixed = runs.iloc[[4, 1, 5, 0, 3, 2]].reset_index(drop=True)
    for form in sheets.FORMATS:
        assert render(free(mixed), form) == render(free(runs), form)


# ---------------------------------------------------------------------------------------------------------- settings


def test_settings_are_compared_not_the_name_of_the_preset() -> None:
    method = registry.load("ranpac")
    wanted = sheets.method_settings(method, "no-fsa", "us8k")
    stored = {**wanted.as_dict(), "preset": "official"}
    assert sheets.difference(stored, wanted).equal
    assert not sheets.difference({**stored, "fsa": True}, wanted).equal
    # A setting that did not exist then stands for its default, and for nothing else.
    assert sheets.difference({k: v for k, v in stored.items() if k != "width"}, wanted).unknown == ("width",)
    lacking = sheets.difference({k: v for k, v in stored.items() if k != "fsa"}, wanted)
    assert (lacking.lacking, lacking.equal) == (("fsa",), False)


@pytest.mark.parametrize("method", ["pace", "l2p", "hide-prompt", "lora-drs", "ncm"])
def test_set_text_is_read_back_as_the_same_value(method: str) -> None:
    cls = registry.load(method)
    settings = cls.Config().as_dict()
    typed = config.parse_overrides([sheets.set_text(name, value) for name, value in settings.items()])
    built = config.build(cls.Config, "x", typed, owner=method).as_dict()
    assert json.loads(json.dumps(built)) == json.loads(json.dumps(settings))


# ---------------------------------------------------------------------------------------------------------- commands


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1))
def test_commands_cover_each_wanted_run_once(streams: set[tuple[int, int]]) -> None:
    wanted = [
        Wanted(method, (), benchmark, "", "eat-base", frozenset(streams))
        for method in ("ncm", "pace@no-msa")
        for benchmark in ("esc50", "us8k")
    ]
    wanted.append(Wanted("pace", ("rank=4",), "esc50", "", "eat-base", frozenset(streams)))
    for together in (True, False):
        made = [
            (method, command.settings, benchmark, order, seed)
            for command in commands(wanted, together=together)
            for method, benchmark, order, seed in product(
                command.methods, command.benchmarks, command.orders, command.seeds
            )
        ]
        asked = [(w.method, w.settings, w.benchmark, *stream) for w in wanted for stream in w.streams]
        assert sorted(made) == sorted(asked)
        assert sum(c.runs for c in commands(wanted, together=together)) == len(asked)
        assert together or all(len(c.benchmarks) == 1 for c in commands(wanted, together=False))


def test_a_command_as_typed() -> None:
    command = Command(("ncm", "pace@no-fsa"), ("us8k", "esc50"), "a b/c.pt", "grouped", (), (0, 1, 2, 4), (0, 1))
    assert command.text(data=Path("d"), results=Path("r")) == (
        "audiocl run -m ncm,pace@no-fsa -b us8k,esc50 --data d --backbone 'a b/c.pt' --protocol grouped "
        "--orders 0-2,4 --seeds 0-1 --results r"
    )
    every = Command(("ncm",), benchmarks.names(), "eat-base", "", ("rank=4",), (0,), (0,))
    assert every.text() == "audiocl run -m ncm -b all --set rank=4"
    mini = Command(("ncm",), benchmarks.mini_names(), "eat-tiny", "", (), (0,), (0,))
    assert mini.text(data=Path("ignored")) == "audiocl run -m ncm -b all --data mini --backbone eat-tiny"


def test_miniatures_and_benchmarks_are_never_one_command() -> None:
    wanted = [Wanted("ncm", (), name, "", "eat-base", frozenset({(0, 0)})) for name in ("us8k", "mini-us8k")]
    assert [command.benchmarks for command in commands(wanted)] == [("us8k",), ("mini-us8k",)]


@given(st.lists(st.integers(0, 30), min_size=1))
def test_ranges_are_read_back(numbers: list[int]) -> None:
    from audiocl_bench.request import numbers as read

    assert read(ranges(numbers), "--orders") == tuple(sorted(set(numbers)))


def test_no_run_is_lost_or_counted_twice_in_a_sheet(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    for method, benchmark, order in product(("ncm", "ranpac"), ("esc50", "us8k"), range(3)):
        if rng.random() < 0.8:
            store(tmp_path, method, benchmark, points=float(rng.integers(30, 90)), order=order)
    runs = runs_of(tmp_path)
    sheet = free(runs)
    assert sorted(run for cell in sheet.cells for run in cell.run_ids) == sorted(runs["run_id"])
    for cell in sheet.cells:
        own = runs[runs["run_id"].isin(cell.run_ids)]["final_accuracy"]
        assert cell.mean == (pytest.approx(own.mean()) if len(own) else None)


def test_own_data_that_changed_meanwhile_is_never_averaged(tmp_path: Path) -> None:
    """Equal settings and clip names, other audio or E_0: the newer kind counts; runs that do not say fit any."""
    own = {"own_data": True, "protocol": "own"}
    changed = {"audio_key": "a" * 64, "first_session_epochs": 10}
    store(tmp_path / "one", "ncm", "birds", order=0, points=40.0, **own, **changed)
    store(tmp_path / "one", "ncm", "birds", order=1, points=50.0, **own)
    assert free(runs_of(tmp_path / "one")).cells[0].mean == pytest.approx(45.0)
    for number, other in enumerate(({"audio_key": "b" * 64}, {"first_session_epochs": 11})):
        folder = tmp_path / f"two-{number}"
        store(folder, "ncm", "birds", order=0, points=40.0, **own, **changed)
        later = {**own, **changed, **other, "finished_at": "2026-02-01T00:00:00+00:00"}
        store(folder, "ncm", "birds", order=1, points=50.0, **later)
        (cell,) = free(runs_of(folder)).cells
        assert cell.mean == pytest.approx(50.0)
        assert any("1 run with other clips left out" in note for note in cell.notes)
