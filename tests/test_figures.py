"""Figures: what is drawn equals what is computed by hand, nothing is cut or covered, equal input gives equal bytes."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from probes import Honest, plan_of

from audiocl_bench import runner
from audiocl_bench.errors import ConfigError, ResultsError, UnknownNameError
from audiocl_bench.report import figures
from audiocl_bench.report.figures import features as feature_figures
from audiocl_bench.report.figures import runs as grouping
from audiocl_bench.report.figures import style
from audiocl_bench.report.figures.style import Drawing
from audiocl_bench.results import ResultsDir, build_result
from audiocl_bench.runner import Material

T_2, T_3 = 12.706204736174698, 4.302652729749464  # Student t, 97.5 %, 1 and 2 degrees of freedom


# ------------------------------------------------------------------------------------------------------------- results


def predictions_of(matrix: Sequence[Sequence[int] | None]) -> pd.DataFrame:
    """Ten test clips per session, of class `a<i>`: after session t, matrix[t][i] of them are right, the rest `b<i>`."""
    rows = []
    for after, accuracies in enumerate(matrix):
        for session, right in enumerate(accuracies or ()):
            rows += [
                (after, f"{session}/{clip}", session, f"a{session}", f"{'a' if clip < right else 'b'}{session}")
                for clip in range(10)
            ]
    return pd.DataFrame(rows, columns=["after_session", "clip_id", "session", "label", "predicted"])


def store(
    results: ResultsDir,
    matrix: Sequence[Sequence[int] | None],
    *,
    diagnostics: dict[int, dict[str, Any]] | None = None,
    versions: Sequence[int] | None = None,
    train_seconds: float = 10.0,
    train_passes: int = 100,
    kept_bytes: int = 1000,
    **changes: Any,
) -> str:
    """Store one run whose accuracies are these tenths; return its id."""
    last = len(matrix) - 1
    sessions = [t for t in range(len(matrix)) if matrix[t] is not None]
    classes = [[f"a{t}", f"b{t}"] for t in range(len(matrix))]
    costs = pd.DataFrame(
        {
            "session": sessions,
            "classes": [
                [name for pair in classes for name in pair] if len(sessions) == 1 else classes[t] for t in sessions
            ],
            "train_clips": 20,
            "train_seconds": train_seconds / len(sessions),
            "eval_seconds": 1.0,
            "train_passes": 0,
            "eval_passes": 10,
            "block_runs": 40,
            "peak_memory_mb": 100.0,
            "trainable_parameters": 10,
            "kept_bytes": kept_bytes,
            "encoder_version": [1] * len(sessions) if versions is None else list(versions),
            "diagnostics": [(diagnostics or {}).get(t, {}) for t in sessions],
        }
    )
    costs.loc[0, "train_passes"] = train_passes
    meta: dict[str, Any] = {
        "method": "ranpac",
        "variant": "",
        "benchmark": "us8k",
        "protocol": "paper",
        "backbone": "eat-base",
        "order": 0,
        "seed": 0,
        "own_data": False,
        "mini": False,
        "stand_in": False,
        "audit_passed": True,
        "audit": {},
        "audiocl_version": "0",
        "index_hash": "index",
        "weights_hash": "weights",
        "front_end": {"n_mels": 128},
        "method_config": {},
        "notes": {},
        "device": "cpu",
        "threads": 1,
        "python_version": "3.11",
        "library_versions": {},
        "platform": "test",
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:00:01+00:00",
        **changes,
    }
    meta.setdefault("split_hash", f"split {meta['order']}")
    count = len(results.run_ids())
    meta.setdefault("run_id", f"{meta['method']}-{meta['benchmark']}-{count:04d}")
    assert last >= 0
    return results.write(build_result(meta, costs, predictions_of(matrix)))


@pytest.fixture
def results(tmp_path: Path) -> ResultsDir:
    return ResultsDir(tmp_path / "results")


def chosen(results: ResultsDir, **filters: Any) -> figures.Chosen:
    return figures.select([results], **filters)


def drawn(kind: str, results: ResultsDir, **options: Any) -> Drawing:
    """Draw all runs of a directory."""
    found = chosen(results)
    if kind in ("curves", "cka", "freeze", "adapted"):
        return getattr(figures, kind)(found.runs, found.sessions(), **options)
    if kind in ("matrix", "bars"):
        return getattr(figures, kind)(found.runs, found.predictions(), **options)
    return getattr(figures, kind)(found.runs, **options)


LEARNED = ([9], [8, 7], [6, 5, 10])  # tenths; after the sessions: 90, 75 and 70 % on average
FORGOTTEN = ([10], [2, 10], [0, 3, 9])  # 100, 60, 40


# ---------------------------------------------------------------------------------------------------------------- tidy


def texts(figure: Figure) -> list[Text]:
    """Return all text that is drawn: titles, notes, labels, ticks within their axis, legends."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [axes.title, axes._left_title, axes._right_title, *axes.texts]  # type: ignore[attr-defined]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            found.append(axis.label)
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    for legend in figure.legends:
        found += legend.get_texts()
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def said(figure: Figure) -> str:
    """Return all that a figure says, lines that were broken joined again."""
    return "\n".join(text.get_text().replace("\n", " ") for text in texts(figure)).replace("\u00a0", " ")


def assert_tidy(drawing: Drawing) -> None:
    """No text is cut by the page, and the legend lies on no axes."""
    figure = drawing.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    page = figure.bbox
    for text in texts(figure):
        box = text.get_window_extent(renderer)
        where = (text.get_text(), box.extents.round(1).tolist(), page.extents.tolist())
        assert box.x0 >= page.x0 - 1, where
        assert box.x1 <= page.x1 + 1, where
        assert box.y0 >= page.y0 - 1, where
        assert box.y1 <= page.y1 + 1, where
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        for axes in figure.axes:
            assert not box.overlaps(axes.get_tightbbox(renderer)), "the legend covers an axes or its labels"


# -------------------------------------------------------------------------------------------------------------- curves


def test_curves_are_means_with_t_intervals(results: ResultsDir) -> None:
    # After session 0: 90, 80, 70 (mean 80, s = 10); after session 1: 75, 55, 50 (mean 60, s^2 = 175).
    for order, matrix in enumerate(([[9], [8, 7]], [[8], [6, 5]], [[7], [4, 6]])):
        store(results, matrix, order=order, method="ncm")
    store(results, [[5], [4, 3]], method="zzz")
    drawing = drawn("curves", results)
    data = drawing.data.set_index(["label", "session"])
    assert data.loc[("ncm", 0), ["n", "mean"]].tolist() == [3, pytest.approx(80.0)]
    half = T_3 * 10 / math.sqrt(3)
    assert data.loc[("ncm", 0), ["low", "high"]].tolist() == pytest.approx([80 - half, 80 + half])
    half = T_3 * math.sqrt(175) / math.sqrt(3)
    assert data.loc[("ncm", 1), ["mean", "low", "high"]].tolist() == pytest.approx([60, 60 - half, 60 + half])
    assert data.loc[("zzz", 1), "mean"] == pytest.approx(35.0)
    assert math.isnan(data.loc[("zzz", 1), "low"])
    assert set(drawing.data["not_comparable"]) == {""}

    [axes] = drawing.figure.axes
    ncm, zzz = [line for line in axes.lines if line.get_marker() != "None"]
    assert ncm.get_xdata().tolist() == [1, 2]
    assert ncm.get_ydata().tolist() == pytest.approx([80, 60])
    assert zzz.get_ydata().tolist() == pytest.approx([50, 35])
    assert ncm.get_color() != zzz.get_color()
    assert ncm.get_marker() != zzz.get_marker()
    assert ncm._unscaled_dash_pattern != zzz._unscaled_dash_pattern  # type: ignore[attr-defined]
    [band] = [part for part in axes.collections if isinstance(part, PolyCollection)]
    assert band.get_paths()[0].vertices[:, 1].max() == 100.0  # 104.8 would be no accuracy
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(60 - half)
    assert "us8k, paper split, eat-base" in said(drawing.figure)
    assert "n = 1 to 3" in said(drawing.figure)
    assert {"ncm (n = 3)", "zzz (n = 1)"} <= set(said(drawing.figure).splitlines())
    assert_tidy(drawing)


def test_repeats_of_one_order_and_seed_count_once(results: ResultsDir) -> None:
    for matrix in ([[10], [10, 10]], [[6], [6, 6]]):
        store(results, matrix, order=0)
    store(results, [[5], [5, 5]], order=1)
    data = drawn("curves", results).data
    assert data["n"].tolist() == [2, 2]
    assert data["mean"].tolist() == pytest.approx([65.0, 65.0])  # (80 + 50) / 2
    assert data["high"].tolist() == pytest.approx([65 + T_2 * 15 * math.sqrt(2) / math.sqrt(2)] * 2)


def test_other_settings_are_another_line(results: ResultsDir) -> None:
    store(results, LEARNED, method="pace", method_config={"msa": True, "rank": 8, "preset": "paper"})
    store(results, FORGOTTEN, method="pace", method_config={"msa": False, "rank": 8, "preset": "paper"})
    store(results, FORGOTTEN, method="pace", variant="no-fsa", method_config={"msa": True, "preset": "no-fsa"})
    store(results, LEARNED, method="foo", method_config={"x": 1.5})
    store(results, LEARNED, method="foo", method_config={"x": None})
    store(results, LEARNED, method="bar", method_config={}, audit_passed=False)
    labels = set(drawn("curves", results).data["label"])
    assert labels == {"pace", "pace msa=false", "pace@no-fsa", "foo x=1.5", "foo x=none", "bar (audit failed)"}


def test_a_joint_learner_is_one_mark_at_the_end(results: ResultsDir) -> None:
    store(results, LEARNED)
    store(results, [None, None, [9, 9, 9]], method="joint")
    drawing = drawn("curves", results)
    joint = drawing.data[drawing.data["label"] == "joint"]
    assert joint[["session", "mean"]].to_numpy().tolist() == [[2, pytest.approx(90.0)]]
    assert "Tested after the last session only: joint." in said(drawing.figure)
    assert_tidy(drawing)


def test_a_stream_of_315_sessions_is_readable(results: ResultsDir) -> None:
    draws = np.random.default_rng(0)
    for method in ("ncm", "pace"):
        matrix = [draws.integers(3, 10, t + 1).tolist() for t in range(15)]
        store(results, matrix, method=method)
    found = chosen(results)
    sessions = found.sessions()
    # A stream of 315 sessions without 315 * 316 / 2 predictions: the stored table, stretched.
    longer = pd.concat([sessions[sessions["session"] == t % 15].assign(session=t) for t in range(315)])
    drawing = figures.curves(found.runs.assign(num_sessions=315), longer)
    [axes] = drawing.figure.axes
    assert len(drawing.data) == 630
    places = []
    for line in axes.lines:
        first, step = line.get_markevery()
        assert 6 <= len(range(first, 315, step)) <= 12
        places.append(set(range(first, 315, step)))
    assert not places[0] & places[1]
    ticks = axes.get_xticks().tolist()
    assert ticks[0] == 1
    assert ticks[-1] == 315
    assert len(ticks) <= 10
    assert_tidy(drawing)


# -------------------------------------------------------------------------------------------------------------- matrix


def test_a_matrix_is_the_mean_of_its_runs(results: ResultsDir) -> None:
    store(results, LEARNED, order=0)
    store(results, FORGOTTEN, order=1)
    drawing = drawn("matrix", results)
    expected = [[95, None, None], [50, 85, None], [30, 40, 95]]
    data = drawing.data.set_index(["after_session", "session"])["accuracy"]
    assert len(data) == 6
    for t, i in data.index:
        assert data[t, i] == pytest.approx(expected[t][i])
    image = drawing.figure.axes[0].images[0].get_array()
    assert image.mask.tolist() == [[False, True, True], [False, False, True], [False, False, False]]
    assert image[2].tolist() == pytest.approx(expected[2])
    cells = {text.get_text() for text in drawing.figure.axes[0].texts}
    assert cells == {"95.0", "50.0", "85.0", "30.0", "40.0"}
    # Forgetting: run 0 (90-60 + 70-50) / 2 = 25; run 1 (100-0 + 100-30) / 2 = 85.
    assert "final 55.0 %, forgetting 55.0" in said(drawing.figure)
    assert "ranpac (n = 2)" in said(drawing.figure)
    assert_tidy(drawing)


def test_two_matrices_share_one_scale(results: ResultsDir) -> None:
    store(results, LEARNED)
    store(results, FORGOTTEN, method="finetune")
    for width in ("single", "double"):
        drawing = drawn("matrix", results, width=width)
        images = [axes.images[0] for axes in drawing.figure.axes[:2]]
        assert images[0].norm is images[1].norm
        assert (images[0].norm.vmin, images[0].norm.vmax) == (0, 100)
        assert_tidy(drawing)
    store(results, LEARNED, method="a")
    store(results, LEARNED, method="b")
    with pytest.raises(ResultsError, match=r"4 matrices .* choose at most 3 with --method"):
        drawn("matrix", results)


def test_numbers_in_cells_only_where_they_fit(results: ResultsDir) -> None:
    draws = np.random.default_rng(0)
    store(results, [draws.integers(0, 11, t + 1).tolist() for t in range(40)])
    small, large = drawn("matrix", results), drawn("matrix", results, width=10)
    assert not small.figure.axes[0].texts
    assert len(large.figure.axes[0].texts) == 40 * 41 / 2
    assert len(small.figure.axes[0].get_xticks()) <= 8
    for text in large.figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.width < large.figure.axes[0].get_window_extent().width / 40
    assert_tidy(small)


def test_cells_of_a_long_stream_are_means_over_sessions(results: ResultsDir) -> None:
    draws = np.random.default_rng(0)
    matrix = [draws.integers(0, 11, t + 1).tolist() for t in range(65)]
    store(results, matrix)
    drawing = drawn("matrix", results)
    data = drawing.data.set_index(["after_session", "session"])["accuracy"]
    assert len(data) == 33 * 34 / 2
    assert data[0, 0] == pytest.approx(10 * np.mean([matrix[0][0], *matrix[1]]))
    assert data[10, 4] == pytest.approx(10 * np.mean([*matrix[10][4:6], *matrix[11][4:6]]))
    assert data[64, 0] == pytest.approx(10 * np.mean(matrix[64][:2]))
    assert "A cell is the mean over 2 × 2 sessions." in said(drawing.figure)
    axes = drawing.figure.axes[0]
    assert axes.get_xlim() == (0.5, 65.5)
    assert axes.images[0].get_extent() == [0.5, 66.5, 66.5, 0.5]
    assert axes.get_xticks()[-1] == 65
    assert_tidy(drawing)


def test_the_papers_matrices() -> None:
    # spec/pace.md section 1: Ours final 69.06, forgetting 12.2; panel (b) 61.51 / 18.8; without GP 58.54 / 23.5.
    drawing = figures.paper_matrix(("pace", "pace-no-msa", "pace-no-projection"))
    told = said(drawing.figure)
    for text in ("final 69.1 %, forgetting 12.2", "final 61.5 %, forgetting 18.8", "final 58.5 %, forgetting 23.5"):
        assert text in told
    data = drawing.data[drawing.data["label"] == "PACE"].set_index(["after_session", "session"])["accuracy"]
    assert data[1, 0] == pytest.approx(89.5)
    assert data[7, 7] == pytest.approx(44.8)
    assert_tidy(drawing)
    with pytest.raises(UnknownNameError, match="matrix of the paper 'pase'"):
        figures.paper_matrix(("pase",))


# ----------------------------------------------------------------------------------------------------------------- CKA


def probe(*values: float, frozen: int) -> dict[int, dict[str, Any]]:
    return {0: {"layer_cka": list(values), "frozen_blocks": frozen}}


def test_cka_is_the_mean_of_the_probes(results: ResultsDir) -> None:
    config = {"rho_layer": 0.9}
    store(results, LEARNED, method="pace", order=0, diagnostics=probe(0.95, 0.8, 0.5, frozen=1), method_config=config)
    store(results, LEARNED, method="pace", order=1, diagnostics=probe(0.85, 0.7, 0.3, frozen=0), method_config=config)
    store(results, LEARNED, method="ncm")
    drawing = drawn("cka", results)
    data = drawing.data
    assert data["mean"].tolist() == pytest.approx([0.9, 0.75, 0.4])
    assert data["chosen"].tolist() == [0.5, 0.5, 0.0]
    assert data["high"].tolist() == pytest.approx([0.9 + T_2 * 0.05, 0.75 + T_2 * 0.05, 0.4 + T_2 * 0.1])
    [axes] = drawing.figure.axes
    threshold, *_ = axes.lines
    line, ring = [line for line in axes.lines if line.get_marker() != "None"]
    assert set(threshold.get_ydata()) == {0.9}
    assert line.get_ydata().tolist() == pytest.approx([0.9, 0.75, 0.4])
    assert ring.get_xdata().tolist() == [0, 1]
    assert_tidy(drawing)


def test_probes_that_agree_bit_for_bit_are_drawn_once(results: ResultsDir) -> None:
    first, second = probe(0.95, 0.5, frozen=1), probe(0.97, 0.4, frozen=1)
    for order, found in enumerate((first, second)):
        store(results, LEARNED, method="pace", order=order, diagnostics=found, method_config={"msa": True})
    store(results, LEARNED, method="pace", order=1, diagnostics=second, method_config={"msa": False})
    assert set(drawn("cka", results).data["label"]) == {"pace"}
    store(results, LEARNED, method="pace", order=0, diagnostics=second, method_config={"msa": False})
    assert set(drawn("cka", results).data["label"]) == {"pace", "pace msa=false"}


def test_cka_beside_the_papers(results: ResultsDir) -> None:
    store(results, LEARNED, method="pace", benchmark="esc50", diagnostics=probe(0.96, 0.6, frozen=1))
    paper = figures.paper.cka()
    drawing = drawn("cka", results, paper=paper)
    published = drawing.data[drawing.data["source"] == "paper"].set_index(["benchmark", "block"])
    assert published.loc[("esc50", 1), "mean"] == 0.629
    assert published.loc[("sc2", 2), "chosen"] == 1.0
    assert published["chosen"].sum() == 5
    assert len(drawing.figure.axes) == 2
    assert "paper (EAT-base)" in said(drawing.figure)
    assert_tidy(drawing)
    store(results, LEARNED, method="pace", benchmark="own", own_data=True, diagnostics=probe(0.9, frozen=0))
    with pytest.raises(ResultsError, match="one figure never mixes published benchmarks and own data"):
        drawn("cka", results, paper=paper)
    alone = chosen(results, benchmarks=["own"])
    with pytest.raises(ResultsError, match="never stand beside runs on own data"):
        figures.cka(alone.runs, alone.sessions(), paper=paper)


def test_runs_without_a_probe(results: ResultsDir) -> None:
    store(results, LEARNED)
    with pytest.raises(ResultsError, match="none of these runs has a layer probe"):
        drawn("cka", results)
    with pytest.raises(ResultsError, match="nothing to draw"):
        figures.cka(None)


# -------------------------------------------------------------------------------------------------------------- sweeps


def sweep_runs(results: ResultsDir, **changes: Any) -> None:
    """Final accuracies 50, 70 at 0 and 1 (two orders, +-10), and 60 where the rule stops, after 2."""
    for order, plus in ((0, 1), (1, -1)):
        common: dict[str, Any] = {"method": "pace", "order": order, **changes}
        for sessions, base in ((0, 5), (1, 7)):
            config = {"adapted_sessions": sessions, "rank": 8}
            store(results, [[9], [base + plus, base + plus]], method_config=config, **common)
        config = {"adapted_sessions": None, "rank": 8}
        store(results, [[9], [6 + plus, 6 + plus]], method_config=config, versions=[1, 2], **common)


def test_adapted_sessions(results: ResultsDir) -> None:
    sweep_runs(results)
    store(results, [[9], [1, 1]], method="pace", method_config={"adapted_sessions": 1, "rank": 4})  # another setting
    store(results, [[9], [1, 1]], method="ncm")
    drawing = drawn("adapted", results)
    data = drawing.data
    assert data["adapted_sessions"].tolist() == [0, 1, 2]
    assert data["mean"].tolist() == pytest.approx([50, 70, 60])
    assert data["n"].tolist() == [2, 2, 2]
    assert data["chosen"].tolist() == [False, False, True]
    assert (data["high"] - data["mean"]).tolist() == pytest.approx([T_2 * 10] * 3)
    [axes] = drawing.figure.axes
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([50, 70, 60])
    assert_tidy(drawing)


def test_the_rules_point_is_no_point_where_the_number_was_given_or_differs(results: ResultsDir) -> None:
    sweep_runs(results)
    store(
        results,
        [[9], [1, 1]],
        method="pace",
        order=2,
        method_config={"adapted_sessions": None, "rank": 8},
        versions=[1, 1],
    )
    data = drawn("adapted", results).data
    assert data["adapted_sessions"].tolist() == [0, 1]
    assert data["chosen"].tolist() == [False, True]


def test_frozen_blocks(results: ResultsDir) -> None:
    for frozen, right in ((0, 4), (1, 8), (3, 6)):
        store(results, [[right]], method="pace", method_config={"freeze_blocks": frozen})
    store(results, [[8]], method="pace", method_config={"freeze_blocks": None}, diagnostics=probe(0.9, frozen=1))
    paper = figures.paper.freeze()
    drawing = drawn("freeze", results, paper=paper[paper["benchmark"] == "us8k"])
    ours = drawing.data[drawing.data["source"] == "ours"]
    assert ours[["frozen_blocks", "mean"]].to_numpy().tolist() == [[0, 40.0], [1, 80.0], [3, 60.0]]
    assert ours["chosen"].tolist() == [False, True, False]
    published = drawing.data[drawing.data["source"] == "paper"]
    assert published["mean"].tolist() == [97.08, 97.38, 97.35, 96.93]
    assert published["chosen"].tolist() == [False, True, False, False]
    assert_tidy(drawing)


def test_the_papers_sweep_marks_what_was_read_off_the_plot() -> None:
    drawing = figures.adapted(None, paper=figures.paper.adapted())
    data = drawing.data[drawing.data["benchmark"] == "vocalset"]
    assert data["mean"].tolist() == [61.51, 62.82, 66.78, 64.8, 62.8]
    assert data["approximate"].tolist() == [False, False, False, True, True]
    assert data["chosen"].tolist() == [False, False, True, False, False]
    hollow = [
        len(line.get_xdata())
        for line in drawing.figure.axes[0].lines
        if line.get_markerfacecolor() == "white" and line.get_linestyle() == "None"
    ]
    assert sum(hollow) == figures.paper.adapted()["approximate"].sum()
    assert "Hollow: read off the paper's plot." in said(drawing.figure)
    assert_tidy(drawing)


def test_a_sweep_needs_two_values(results: ResultsDir) -> None:
    store(results, LEARNED, method="pace", method_config={"adapted_sessions": 1})
    store(results, LEARNED, method="pace", method_config={"adapted_sessions": 2, "rank": 4})
    with pytest.raises(ResultsError, match="no two of these runs differ in adapted_sessions alone"):
        drawn("adapted", results)


# -------------------------------------------------------------------------------------------------------------- scores


def test_bars_are_first_new_and_all(results: ResultsDir) -> None:
    store(results, LEARNED, order=0)  # last row 60, 50, 100
    store(results, FORGOTTEN, order=1)  # last row 0, 30, 90
    drawing = drawn("bars", results)
    data = drawing.data.set_index("part")
    assert data["mean"].to_dict() == pytest.approx({"first": 30.0, "new": 67.5, "average": 55.0})
    assert data.loc["new", "high"] == pytest.approx(67.5 + T_2 * 7.5)
    [axes] = drawing.figure.axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == pytest.approx([30.0, 67.5, 55.0])
    assert len({bar.get_hatch() for bar in bars}) == 3
    assert {"30.0", "67.5", "55.0"} <= {text.get_text() for text in axes.texts}
    assert_tidy(drawing)


def test_bars_need_two_sessions(results: ResultsDir) -> None:
    store(results, [[5]])
    with pytest.raises(ResultsError, match="us8k has one session only"):
        drawn("bars", results)


def test_drift_is_paired(results: ResultsDir) -> None:
    for order, fresh in ((0, 75.0), (1, 60.0)):  # stored: 70 and 40
        matrix = (LEARNED, FORGOTTEN)[order]
        store(results, matrix, order=order, fresh_final_accuracy=fresh)
    store(results, LEARNED, method="joint", order=0)
    drawing = drawn("drift", results)
    [row] = drawing.data.to_dict("records")
    assert (row["label"], row["n"]) == ("ranpac", 2)
    assert (row["stored_mean"], row["fresh_mean"], row["lost_mean"]) == pytest.approx((55.0, 67.5, 12.5))
    assert row["lost_high"] == pytest.approx(12.5 + T_2 * 7.5)
    [axes] = drawing.figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [pytest.approx([55.0]), pytest.approx([67.5])]
    assert "+12.5 ± 95.3" in said(drawing.figure)
    assert_tidy(drawing)


def test_drift_has_to_be_measured(results: ResultsDir) -> None:
    store(results, LEARNED)
    with pytest.raises(ResultsError, match=r"none of these runs measured drift: repeat them .*--drift"):
        drawn("drift", results)


def test_cost(results: ResultsDir) -> None:
    store(results, LEARNED, order=0, train_seconds=30.0, train_passes=1000, kept_bytes=0)
    store(results, FORGOTTEN, order=1, train_seconds=90.0, train_passes=3000, kept_bytes=0)
    store(results, FORGOTTEN, method="pace", train_seconds=6000.0, train_passes=50_000, kept_bytes=2_000_000, threads=4)
    drawing = drawn("cost", results)
    row = drawing.data.set_index("label").loc["ranpac"]
    assert (row["seconds"], row["passes"], row["bytes"], row["accuracy_mean"]) == pytest.approx((60, 2000, 0, 55))
    assert row["devices"] == "cpu, 1 thread"
    seconds, kept, passes = drawing.figure.axes
    assert all(axes.get_xscale() == "log" for axes in (seconds, kept, passes))
    assert [line.get_xdata()[0] for line in seconds.lines[:2]] == pytest.approx([6000, 60])
    low, high = seconds.get_ylim()
    assert low >= -1
    assert high <= 101
    assert kept.lines[1].get_xdata()[0] == pytest.approx(1e5)  # nothing kept: a decade left of the least
    ticks = dict(zip(kept.get_xticks(), (text.get_text() for text in kept.get_xticklabels()), strict=True))
    assert ticks[1e5] == "0"
    assert "different machines (cpu, 1 thread / cpu, 4 threads)" in said(drawing.figure)
    for axes in drawing.figure.axes:
        assert {text.get_text() for text in axes.texts} == {"pace", "ranpac"}
    assert_tidy(drawing)
    with pytest.raises(UnknownNameError, match="unknown cost 'money'"):
        drawn("cost", results, costs=("money",))


@settings(max_examples=15, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 0.98)), min_size=1, max_size=9),
    length=st.integers(3, 12),
)
def test_labels_never_cover_each_other_or_a_point(points: list[tuple[float, float]], length: int) -> None:
    with style.styled():
        page = style.Page(3.3, title="x")
        axes = page.figure.subplots()
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        page.finish(2.4)
        labels = [f"{number} " + "m" * length for number in range(len(points))]
        style.place_labels(axes, points, labels, ["black"] * len(points))
        page.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(points)
    for first, second in itertools.combinations(boxes, 2):
        assert style._overlap(first, second) <= 0.02 * first.width * first.height
    for box in boxes:
        for x, y in axes.transData.transform(points):
            assert not (box.x0 < x < box.x1 and box.y0 + 2 < y < box.y1 - 2)


# ------------------------------------------------------------------------------------------------------------ features


def samples(seed: int = 0, **changes: Any) -> feature_figures.Samples:
    """Two classes that overlap before and lie apart afterwards."""
    draws = np.random.default_rng(seed)
    labels = np.repeat([0, 1], 15)
    before = draws.standard_normal((30, 5))
    after = 0.01 * draws.standard_normal((30, 3)) + np.outer(labels, [10.0, 0.0, 0.0])
    clips = pd.DataFrame(
        {"clip_id": [f"c{n}" for n in range(30)], "label": [("dog", "cat")[k] for k in labels]}
    ).assign(session=labels)
    values = {
        "clips": clips,
        "pretrained": before,
        "adapted": after,
        "title": "t",
        "warning": "",
        "stem": "s",
        **changes,
    }
    return feature_figures.Samples(**values)


def test_features_keep_what_pca_keeps() -> None:
    given = samples()
    drawing = feature_figures.features(given)
    data = drawing.data
    assert len(data) == 4 * 30
    for stage, values in (("pretrained", given.pretrained), ("adapted", given.adapted)):
        part = data[(data["stage"] == stage) & (data["view"] == "pca")]
        centred = values - values.mean(0)
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        expected = left[:, :2] * sizes[:2]
        assert np.abs(part[["x", "y"]].to_numpy()) == pytest.approx(np.abs(expected), abs=1e-9)
        assert part["variance_kept"].iloc[0] == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum())
        # Silhouette by its definition (Rousseeuw 1987).
        away = np.linalg.norm(values[:, None] - values[None], axis=2)
        own = np.array([away[i, :15].sum() if i < 15 else away[i, 15:].sum() for i in range(30)]) / 14
        other = np.array([away[i, 15:].mean() if i < 15 else away[i, :15].mean() for i in range(30)])
        assert part["silhouette"].iloc[0] == pytest.approx(((other - own) / np.maximum(own, other)).mean())
    assert "silhouette 1.00" in said(drawing.figure)
    # t-SNE keeps apart what lies apart: the nearest neighbour has the same class.
    tsne = data[(data["stage"] == "adapted") & (data["view"] == "tsne")]
    places = tsne[["x", "y"]].to_numpy()
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(30, np.inf))
    assert (tsne["label"].to_numpy()[gaps.argmin(1)] == tsne["label"].to_numpy()).mean() > 0.9
    shown = [line for line in drawing.figure.axes[0].lines if line.get_gid()]
    assert [len(line.get_xdata()) for line in shown] == [15, 15]
    assert shown[0].get_marker() != shown[1].get_marker()
    assert_tidy(drawing)


def test_features_are_the_same_every_time() -> None:
    first, again = (feature_figures.features(samples(), seed=3).data for _ in range(2))
    pd.testing.assert_frame_equal(first, again, check_exact=True)


def test_features_that_cannot_be_drawn() -> None:
    broken = samples().adapted.copy()
    broken[3, 1] = math.nan
    with pytest.raises(ConfigError, match="the adapted features are not one row of finite numbers"):
        feature_figures.features(samples(adapted=broken))
    one = samples()
    with pytest.raises(ConfigError, match="at least four clips of two classes"):
        feature_figures.features(samples(clips=one.clips.assign(label="dog")))


def test_collecting_features(tiny_material: Material) -> None:
    plan = plan_of(Honest)
    learned = runner.learn_all(plan, tiny_material)
    found = feature_figures.collect(plan, tiny_material, learned, classes=3, per_class=2)
    stream = tiny_material.stream
    assert list(dict.fromkeys(found.clips["label"])) == [stream.classes[k] for k in (0, 2, 5)]  # first, middle, last
    assert found.clips["session"].tolist() == [0, 0, 1, 1, 2, 2]
    rows = np.array([stream.clip_ids.index(clip) for clip in found.clips["clip_id"]])
    assert set(rows) <= set(np.concatenate(learned.tests))
    mel = learned.read(rows)
    assert found.adapted == pytest.approx(mel.mean(1).numpy(), abs=1e-6)
    assert found.pretrained == pytest.approx(tiny_material.backbone.features(mel).detach().numpy(), abs=1e-5)
    assert found.warning == "Not comparable with published numbers: own data, stand-in backbone."
    assert "honest on tiny" in found.title
    assert_tidy(feature_figures.features(found))


# ----------------------------------------------------------------------------------------------------------- selection


def test_filters(results: ResultsDir, tmp_path: Path) -> None:
    store(results, LEARNED, method="pace", method_config={"msa": True}, order=0, run_id="a")
    store(results, LEARNED, method="pace", method_config={"msa": False}, order=1, run_id="b")
    store(results, LEARNED, method="pace", variant="no-fsa", method_config={"msa": True}, seed=1, run_id="c")
    store(results, LEARNED, method="ncm", benchmark="esc50", run_id="d")
    other = ResultsDir(tmp_path / "other")
    store(other, LEARNED, method="pace", method_config={"msa": True}, order=0, run_id="a")
    store(other, LEARNED, method="zed", run_id="e")

    def ids(**filters: Any) -> list[str]:
        return figures.select([results, other], **filters).runs["run_id"].tolist()

    assert ids() == ["d", "a", "b", "c", "e"]
    assert ids(methods=["zed", "pace"]) == ["e", "a", "b"]
    assert ids(methods=["pace@no-fsa"]) == ["c"]
    assert ids(benchmarks=["esc50"]) == ["d"]
    assert ids(methods=["pace"], orders=[1, 7]) == ["b"]
    assert ids(methods=["pace", "zed"], where={"msa": "true"}) == ["a", "e"]
    for filters, message in (
        ({"methods": ["pase"]}, r"unknown method among the stored runs 'pase': did you mean pace"),
        ({"benchmarks": ["us8"]}, r"unknown benchmark among the stored runs 'us8': did you mean us8k"),
        ({"protocols": ["grouped"]}, r"unknown protocol among the stored runs 'grouped'"),
        ({"orders": [5]}, r"no run has order 5: there are 0, 1\."),
        ({"where": {"mse": "true"}}, r"unknown setting of the stored runs 'mse': did you mean msa"),
        ({"where": {"msa": "maybe"}}, r"no run has msa=maybe: there are false, true\."),
    ):
        with pytest.raises((ResultsError, UnknownNameError), match=message):
            ids(**filters)
    with pytest.raises(ResultsError, match=r"there are no runs in .*empty"):
        figures.select([ResultsDir(tmp_path / "empty")])
    store(ResultsDir(tmp_path / "third"), FORGOTTEN, method="pace", run_id="a")
    with pytest.raises(ResultsError, match="tell different results of run a"):
        figures.select([results, ResultsDir(tmp_path / "third")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "esc50"}, r"2 benchmarks \(esc50, us8k\), .*never mixes them: choose one with --bench"),
        ({"protocol": "grouped"}, r"2 protocols \(grouped, paper\).*--protocol"),
        ({"backbone": "sslam"}, r"2 backbones \(eat-base, sslam\).*--backbone"),
        ({"index_hash": "other"}, r"different clips \(index_hash\)"),
        ({"split_hash": "other"}, r"split the clips differently in one class order \(split_hash\)"),
        ({"weights_hash": "other"}, r"different weights of eat-base"),
        ({"front_end": {"n_mels": 80}}, r"in different ways \(n_mels 128; n_mels 80\)"),
        ({"notes": {"backbone": {"pool": "mean"}}}, r"in different ways"),
    ],
)
def test_one_figure_shows_one_stream(results: ResultsDir, changes: dict[str, Any], message: str) -> None:
    store(results, LEARNED)
    store(results, LEARNED, method="ncm", **changes)
    for kind in ("curves", "matrix", "bars", "cost", "drift"):
        with pytest.raises(ResultsError, match=message):
            drawn(kind, results)


def test_random_weights_of_a_stand_in_may_differ(results: ResultsDir) -> None:
    for order, weights in enumerate(("w1", "w2")):
        store(results, LEARNED, order=order, stand_in=True, mini=True, weights_hash=weights)
    drawing = drawn("curves", results)
    assert drawing.data["n"].tolist() == [2, 2, 2]
    warning = "Not comparable with published numbers: mini (synthetic data), stand-in backbone."
    assert warning in said(drawing.figure)
    assert warning in drawing.alt
    assert set(drawing.data["not_comparable"]) == {"mini (synthetic data), stand-in backbone"}


def test_too_many_lines(results: ResultsDir) -> None:
    for number in range(13):
        store(results, LEARNED, method=f"m{number}")
    with pytest.raises(ResultsError, match="13 lines cannot be told apart in one figure: choose at most 12"):
        drawn("curves", results)


# ----------------------------------------------------------------------------------------------------------- appearance


MACHADO = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    t = TO_XYZ @ rgb.clip(0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", list(MACHADO))
def test_colours_differ_for_every_eye(sight: str) -> None:
    seen = [lab(np.array(MACHADO[sight]) @ linear(colour)) for colour in style.COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 16


def test_colours_stand_out_from_paper() -> None:
    assert min(1.05 / (TO_XYZ[1] @ linear(colour) + 0.05) for colour in style.COLOURS) >= 3


def test_every_series_looks_different() -> None:
    looks = [style.series(number) for number in range(40)]
    assert len({(look.colour, look.marker, str(look.line)) for look in looks}) == 40
    for first, second in itertools.pairwise(looks):
        assert first.colour != second.colour
        assert first.marker != second.marker
        assert first.line != second.line


def test_widths_and_letters(results: ResultsDir) -> None:
    store(results, LEARNED)
    for width, inches in ((None, 3.3), ("single", 3.3), ("double", 7.0), ("5.5", 5.5), (4, 4.0)):
        drawing = drawn("curves", results, width=width)
        assert drawing.figure.get_figwidth() == inches
        sizes = {text.get_fontsize() for text in texts(drawing.figure)}
        assert sizes <= {7.0, 8.0}
    for wrong in ("triple", "2.4", 15, "nan"):
        with pytest.raises(ConfigError, match="the width of a figure is single"):
            drawn("curves", results, width=wrong)


@pytest.mark.parametrize("kind", ["curves", "bars", "cost", "drift", "matrix", "cka", "adapted"])
def test_odd_and_long_names_stay_on_the_page(results: ResultsDir, kind: str) -> None:
    names = {
        "backbone": "a_backbone/with-a-very_long-name-" * 2,
        "benchmark": "$x^{my benchmark}$ of كلمات and more words",
    }
    settings = {"a_long_setting_of_it": 0.123456, "another": ["k_proj", "v_proj", "out_proj"], "adapted_sessions": 1}
    for number, changes in enumerate(({}, {"another": "none"}, {"adapted_sessions": 2})):
        store(
            results,
            LEARNED,
            method="a-method-with-a-long-name",
            method_config={**settings, **changes},
            fresh_final_accuracy=71.5,
            own_data=True,
            protocol="own",
            run_id=f"run{number}",
            diagnostics=probe(0.9, 0.2 + 0.1 * number, frozen=1),
            **names,
        )
    for width in ("single", "double"):
        assert_tidy(drawn(kind, results, width=width))


# --------------------------------------------------------------------------------------------------------------- files


def test_files_are_what_they_say(results: ResultsDir, tmp_path: Path) -> None:
    store(results, LEARNED, own_data=True, benchmark="my <sounds> & more", run_id="r")
    drawing = drawn("curves", results)
    written = drawing.save(tmp_path / "out" / "fig.one")
    assert [path.name for path in written] == ["fig.one.png", "fig.one.svg", "fig.one.pdf", "fig.one.parquet"]
    png, svg, pdf, table = written
    assert matplotlib.image.imread(png).shape[1] == 990  # 3.3 in at 300 dpi
    root = ElementTree.parse(svg).getroot()
    assert root.get("width") == "237.6pt"
    assert drawing.alt in "".join(root.itertext())
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert b"/Subtype /Type3" not in pdf.read_bytes()
    pd.testing.assert_frame_equal(pd.read_parquet(table), drawing.data)
    assert pq.read_schema(table).metadata[b"audiocl_figure"] == b"curves"
    only = drawing.save(tmp_path / "only", ["svg"])
    assert [path.suffix for path in only] == [".svg", ".parquet"]
    with pytest.raises(UnknownNameError, match="unknown format of figures 'jpg'"):
        drawing.save(tmp_path / "x", ["jpg"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultsError, match="choose another directory"):
        drawing.save(tmp_path / "file" / "x")


def test_a_notebook_shows_what_a_file_has(results: ResultsDir, tmp_path: Path) -> None:
    store(results, LEARNED, run_id="r")
    drawing = drawn("curves", results)
    shown, how = drawing._repr_mimebundle_(include=None, exclude=None)
    png, _ = drawing.save(tmp_path / "x", ["png"])
    assert shown == {"image/png": png.read_bytes(), "text/plain": drawing.alt}
    pixels = matplotlib.image.imread(png).shape
    assert how["image/png"] == {"width": round(pixels[1] / 2), "height": pytest.approx(pixels[0] / 2, abs=1)}


@pytest.mark.parametrize("kind", ["curves", "matrix", "bars", "cost", "drift"])
def test_the_same_runs_give_the_same_bytes(results: ResultsDir, tmp_path: Path, kind: str) -> None:
    for order, matrix in enumerate((LEARNED, FORGOTTEN)):
        store(results, matrix, order=order, fresh_final_accuracy=75.0)
    store(results, LEARNED, method="ncm", fresh_final_accuracy=70.0)
    first = drawn(kind, results).save(tmp_path / "first")
    time.sleep(1.1)  # a date in a file would change
    with matplotlib.rc_context({"axes.grid": True, "font.size": 20, "savefig.dpi": 30, "svg.hashsalt": "x"}):
        again = drawn(kind, results).save(tmp_path / "again")
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix
        content = one.read_bytes().lower()
        assert b"creationdate" not in content
        assert b"<dc:date>" not in content
        if one.suffix in (".png", ".pdf"):
            assert matplotlib.__version__.encode() not in content


def test_pyplot_stays_out() -> None:
    code = "import sys, audiocl_bench.report.figures.features; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --------------------------------------------------------------------------------------------------------------- ticks


@given(low=st.integers(0, 1), span=st.integers(0, 700), most=st.integers(6, 16))
@settings(max_examples=60, deadline=None)
def test_ticks_on_whole_numbers(low: int, span: int, most: int) -> None:
    axes = Figure().subplots()
    style.whole_numbers(axes.xaxis, low, low + span, most)
    ticks = axes.xaxis.get_major_locator()()
    assert list(ticks) == sorted(set(ticks))
    assert ticks[0] == low
    assert ticks[-1] == low + span
    assert len(ticks) <= most
    assert all(float(tick).is_integer() for tick in ticks)


@given(low=st.floats(1e-3, 1e9), factor=st.floats(1.0, 1e6), time_axis=st.booleans())
@example(low=117489756.0, factor=1.0, time_axis=False)
@settings(max_examples=60, deadline=None)
def test_ticks_on_logarithmic_axes(low: float, factor: float, time_axis: bool) -> None:
    axes = Figure().subplots()
    values = np.array([low, low * factor])
    assert style.log_axis(axes, values, str, time=time_axis).tolist() == values.tolist()
    ticks = axes.xaxis.get_major_locator()()
    left, right = axes.get_xlim()
    assert 1 <= len(ticks) <= 4
    assert all(left <= tick <= right for tick in ticks)
    assert left < low
    assert right > low * factor


def test_intervals_are_told() -> None:
    assert grouping.interval_note([1, 1], "band") == "One run each."
    assert "(n = 2 to 5); band: 95" in grouping.interval_note([5, 2], "band")
    assert "(none for n = 1)" in grouping.interval_note([1, 3], "bar")
