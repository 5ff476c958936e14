"""Heat maps of accuracy matrices, as the paper's Figure 9."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from audiocl_bench import metrics
from audiocl_bench.errors import ResultsError, unknown_name
from audiocl_bench.report.figures import paper as published
from audiocl_bench.report.figures import runs as grouping
from audiocl_bench.report.figures.style import HEAT, TEXT, Drawing, Page, shortened, styled, whole_numbers, width_of
from audiocl_bench.report.tables import not_comparable

MOST_PANELS = 3
_SMALLEST_CELL = 0.185  # inches: "100" in the smallest size of a cell's number
_MOST_CELLS = 64  # along a side; in longer streams a cell is the mean over several sessions
_CELL_TEXT = (6.0, 7.0)  # points, least and most


@dataclass(frozen=True)
class _Panel:
    """One heat map: fractions [T, T] and what stands above it."""

    label: str
    matrix: np.ndarray
    n: int
    forgetting: float  # mean of the runs' own: that of the mean matrix would be smaller

    @property
    def pool(self) -> int:
        """How many sessions a cell is the mean over, in either direction."""
        return math.ceil(len(self.matrix) / _MOST_CELLS)

    def pooled(self) -> np.ndarray:
        """Return the matrix as it is drawn: blocks of `pool` x `pool` sessions averaged over what was tested."""
        return pooled(self.matrix, self.pool)


def pooled(matrix: np.ndarray, size: int) -> np.ndarray:
    """Return [ceil(T / size), ceil(T / size)]: the mean of the filled cells of every block of size x size; else NaN."""
    blocks = math.ceil(len(matrix) / size)
    padded = np.full((blocks * size, blocks * size), np.nan)
    padded[: len(matrix), : len(matrix)] = matrix
    parts = padded.reshape(blocks, size, blocks, size).swapaxes(1, 2).reshape(blocks, blocks, -1)
    filled = ~np.isnan(parts)
    counts = filled.sum(axis=2)
    return np.where(counts > 0, np.where(filled, parts, 0.0).sum(axis=2) / np.maximum(counts, 1), np.nan)


def matrix(runs: pd.DataFrame, predictions: Mapping[str, pd.DataFrame], *, width: str | float | None = None) -> Drawing:
    """Draw accuracy matrices of one stream, up to three methods side by side.

    Row t, column i: accuracy on the test clips of session i after learning session t, in percent. Sessions are numbered
    from 1 in the picture, as in the paper, and from 0 in the table. Several class orders or seeds of a method are
    averaged cell by cell. Cells are numbered where the numbers can be read; a colour bar always tells the scale. In a
    stream of more than 64 sessions a cell is the mean over several sessions in either direction.

    Args:
        runs: rows of the runs table, of one benchmark, protocol and backbone.
        predictions: run id -> prediction table, for all these runs.
        width: see `style.width_of`.

    Returns:
        data: one row per label, after_session and session (the first ones of the cell) with accuracy (percent), n and
        sessions_per_cell.

    Raises:
        ResultsError: the runs are not of one stream, or of more than three methods.
    """
    row = grouping.one_stream(runs)
    named = grouping.labelled(runs)
    grouping.check_number(named["label"], MOST_PANELS, "matrices")
    grouping.require_all(named["run_id"], predictions, "predictions")
    panels = []
    for label, group in named.groupby("label", sort=False):
        by_stream: dict[Any, list[np.ndarray]] = {}
        for run in group.itertuples():
            found = metrics.accuracy_matrix(predictions[str(run.run_id)])
            by_stream.setdefault((run.order, run.seed), []).append(found)
        means = [np.mean(repeats, axis=0) for repeats in by_stream.values()]
        forgetting = [np.mean([metrics.forgetting(one) for one in repeats]) for repeats in by_stream.values()]
        panels.append(_Panel(str(label), np.mean(means, axis=0), len(means), float(np.mean(forgetting))))
    origin = {
        "benchmark": row["benchmark"],
        "protocol": row["protocol"],
        "backbone": row["backbone"],
        "not_comparable": not_comparable(row),
    }
    return _draw(
        panels, grouping.stream_title(row), grouping.stream_warning(row), f"matrix-{row['benchmark']}", origin, width
    )


def paper_matrix(names: tuple[str, ...] = ("pace", "pace-no-msa"), *, width: str | float | None = None) -> Drawing:
    """Draw the paper's own matrices (Figure 9: VocalSet, one class order).

    Args:
        names: of `paper.PANELS`.
        width: see `style.width_of`.

    Raises:
        UnknownNameError: the paper has no such matrix.
    """
    found = published.matrices()
    for name in names:
        if name not in found:
            raise unknown_name("matrix of the paper", name, found)
    panels = [
        _Panel(published.PANELS.get(name, name), found[name], 1, metrics.forgetting(found[name])) for name in names
    ]
    origin = {"benchmark": "vocalset", "protocol": "paper", "backbone": published.BACKBONE, "not_comparable": ""}
    return _draw(panels, f"VocalSet, the paper's numbers ({published.BACKBONE})", "", "matrix-paper", origin, width)


def _draw(
    panels: list[_Panel], title: str, warning: str, stem: str, origin: dict[str, str], width: str | float | None
) -> Drawing:
    inches = width_of(width, "single" if len(panels) == 1 else "double")
    across = len(panels) if inches / len(panels) >= 1.9 else 1
    down = math.ceil(len(panels) / across)
    size = max(len(panel.matrix) for panel in panels)
    low = 10 * math.floor(min(float(np.nanmin(panel.pooled())) for panel in panels) * 10 - 1e-9)
    scale = Normalize(max(0, min(low, 90)), 100)
    # An estimate of the layout, to know what fits a cell before it is drawn.
    side = (inches - 0.75) / across - (0.45 if across == 1 else 0.25)
    averaged = max(panel.n for panel in panels) > 1
    cell = side / size
    numbered = cell >= _SMALLEST_CELL and size <= _MOST_CELLS
    notes = [
        "Cells: mean over class orders and seeds." if averaged else "",
        f"A cell is the mean over {panels[0].pool} × {panels[0].pool} sessions." if panels[0].pool > 1 else "",
        "" if all(not np.isnan(panel.matrix[:, 0]).any() for panel in panels) else "Grey: not tested.",
    ]
    with styled():
        page = Page(inches, title=title, warning=warning, notes=[" ".join(note for note in notes if note)])
        grid = page.figure.subplots(down, across, squeeze=False, sharey=True, sharex=True)
        image = None
        for number, panel in enumerate(panels):
            axes = grid.flat[number]
            image = _heat(axes, panel, scale, cell if numbered else 0.0)
            axes.set_title(_title(panel, side), loc="left", linespacing=1.2)
            axes.tick_params(labelleft=number % across == 0, labelbottom=True)
            axes.set_xlabel("tested on session")
            if number % across == 0:
                axes.set_ylabel("sessions learned")
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        assert image is not None
        bar = page.figure.colorbar(image, ax=list(grid.flat), fraction=0.05, pad=0.02, aspect=22)
        bar.set_label("accuracy (%)")
        bar.outline.set_linewidth(0.5)
        figure: Figure = page.finish(down * (side + 0.72))
    data = pd.concat([_cells(panel) for panel in panels], ignore_index=True).assign(**origin)
    alt = f"Accuracy matrices over {size} sessions, {title}. " + " ".join(
        f"{panel.label}: {_summary(panel)}." for panel in panels
    )
    return Drawing("matrix", stem, figure, data, f"{alt} {warning}".strip())


def _heat(axes: Axes, panel: _Panel, scale: Normalize, cell: float) -> Any:
    size, percent = len(panel.matrix), 100 * panel.pooled()
    end = panel.pool * len(percent) + 0.5
    image = axes.imshow(
        percent,
        cmap=HEAT,
        norm=scale,
        interpolation="nearest",
        extent=(0.5, end, end, 0.5),
        aspect="equal",
    )
    axes.set_xlim(0.5, size + 0.5)
    axes.set_ylim(size + 0.5, 0.5)
    untested = np.isnan(panel.matrix[:, 0])
    for t in np.flatnonzero(untested) if size <= 40 else []:
        axes.barh(t + 1, t + 1, left=0.5, height=1.0, color="#E8E8E8")
    if size > 40 and untested.any():
        axes.fill([0.5, size + 0.5, 0.5], [0.5, size + 0.5, size + 0.5], color="#E8E8E8", zorder=0)
    if cell:
        points = min(max(_CELL_TEXT[0], 72 * cell / 2.9), _CELL_TEXT[1])
        for t, i in np.argwhere(~np.isnan(percent)):
            dark = scale(percent[t, i]) < 0.55
            axes.text(
                i + 1,
                t + 1,
                f"{percent[t, i]:.1f}" if cell > 0.28 else f"{percent[t, i]:.0f}",
                ha="center",
                va="center",
                fontsize=points,
                color="white" if dark else "black",
            )
    for axis in (axes.xaxis, axes.yaxis):
        whole_numbers(axis, 1, size, most=16 if cell else 7)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=1.5)
    return image


def _title(panel: _Panel, inches: float) -> str:
    runs = f" (n = {panel.n})" if panel.n > 1 else ""
    return f"{shortened(panel.label + runs, inches, TEXT)}\n{shortened(_summary(panel), inches + 0.3, TEXT)}"


def _summary(panel: _Panel) -> str:
    final = f"final {100 * metrics.final_accuracy(panel.matrix):.1f} %"
    return final if math.isnan(panel.forgetting) else f"{final}, forgetting {100 * panel.forgetting:.1f}"


def _cells(panel: _Panel) -> pd.DataFrame:
    shown = panel.pooled()
    rows = np.argwhere(~np.isnan(shown))
    if not len(rows):
        raise ResultsError(f"{panel.label} was never tested: its matrix is empty.")
    return pd.DataFrame(
        {
            "label": panel.label,
            "after_session": panel.pool * rows[:, 0],
            "session": panel.pool * rows[:, 1],
            "accuracy": 100 * shown[rows[:, 0], rows[:, 1]],
            "n": panel.n,
            "sessions_per_cell": panel.pool,
        }
    )
