"""What the measuring scripts share: a comparison as a row, alternate timing, the machine in words, table and chart."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from tabulate import tabulate

from audiocl_bench.report.figures import style
from audiocl_bench.results import provenance

T = TypeVar("T")
Setup = Callable[[], Callable[[], T]]
"""Gets everything ready, outside the clock, and returns the work that is timed."""

Clock = Callable[[], float]
"""`time.perf_counter`, or `time.process_time` where other programs use the machine too."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        part: which part of the benchmark.
        what: what both compute, with sizes.
        reference: how the plain way computes it.
        ours_s, reference_s: seconds, median over `repeats`.
        repeats: how often each was timed.
        error: how far the two answers are apart (see `note` or the part's text).
        tolerance: the most that counts as the same answer.
        note: what else to know; "scaled" where a time was not measured whole.
    """

    part: str
    what: str
    reference: str
    ours_s: float
    reference_s: float
    repeats: int
    error: float
    tolerance: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """Reference seconds by ours: above 1, ours is faster."""
        return self.reference_s / self.ours_s

    @property
    def same(self) -> bool:
        return self.error <= self.tolerance

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "same": self.same}


def alternate(
    ours: Setup[T], reference: Setup[T], *, repeats: int, clock: Clock = time.perf_counter, patience: float = 40.0
) -> tuple[float, float, int, T, T]:
    """Time two ways of computing one thing in turn, in this process, and return the answers of the first turn.

    A slow or fast stretch of a shared machine thereby hits both. The first turn is left out where others follow: it
    also loads libraries. After `patience` seconds no further turn begins, once there are two.

    Args:
        ours, reference: see `Setup`.
        repeats: turns that count.
        clock: what seconds are.
        patience: in seconds of the wall clock.

    Returns:
        median seconds of ours, of the reference, number of turns they are over, the two answers.
    """
    begun = time.perf_counter()
    spent: tuple[list[float], list[float]] = ([], [])
    answers: list[T] = []
    for turn in range(repeats + 1):
        if turn >= 2 and time.perf_counter() - begun > patience:
            break
        # Whoever came first comes second in the next turn, so that neither always finds the other's warm cache.
        both = list(zip(spent, (ours, reference), strict=True))
        for seconds, setup in both[:: -1 if turn % 2 else 1]:
            work = setup()
            start = clock()
            answer = work()
            seconds.append(clock() - start)
            if turn == 0:
                answers.append(answer)
    kept = [seconds[1:] if len(seconds) > 1 else seconds for seconds in spent]
    return statistics.median(kept[0]), statistics.median(kept[1]), len(kept[0]), answers[0], answers[1]


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference as a share of the largest value."""
    if got.shape != want.shape:
        return math.inf
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30))


def machine() -> str:
    """The machine and the libraries that compute, in one line."""
    facts = provenance("cpu")
    load = f"load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    threads = f"{facts['threads']} thread" + "s" * (facts["threads"] != 1)
    return f"{facts['platform']}; {threads}, torch {torch.__version__}; {load}"


def ratio_text(ratio: float) -> str:
    """Two significant digits around 1, whole numbers above 100."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"


def seconds_text(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def table(rows: Sequence[Row]) -> str:
    """The table that is printed: a row per comparison."""
    cells = [
        (
            row.what,
            row.reference,
            seconds_text(row.ours_s),
            seconds_text(row.reference_s),
            f"{ratio_text(row.ratio)} x",
            f"{'yes' if row.same else 'NO'} ({row.error:.0e} <= {row.tolerance:.0e})"
            if row.same
            else f"NO ({row.error:.0e} > {row.tolerance:.0e})",
            row.repeats,
            row.note,
        )
        for row in rows
    ]
    headers = ("what", "plain way", "ours", "plain", "ratio", "same answer", "n", "")
    return tabulate(
        cells,
        headers,
        colalign=("left", "left", "right", "right", "right", "left", "right", "left"),
        disable_numparse=True,
        maxcolwidths=[38, 34, None, None, None, None, None, 24],
    )


def chart(rows: Sequence[Row], path: Path, caption: str, clock: str = "median seconds") -> None:
    """Draw the ratios as horizontal bars from 1 on a logarithmic axis, and write `path` (PNG, SVG or PDF).

    Args:
        rows: from top to bottom; rows of one part share a colour and stand together.
        path: file to write.
        caption: small lines above: machine, data, network.
        clock: what kind of seconds, for the axis.
    """
    places, below = [], 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        below -= 1.0 if before is None or before.part == row.part else 1.5
        places.append(below)
    parts = list(dict.fromkeys(row.part for row in rows))
    low, high = min(0.7, *(row.ratio for row in rows)), max(3.0, *(row.ratio for row in rows))
    with style.styled():
        figure = Figure(figsize=(7.0, 0.95 + 0.2 * -below), layout="constrained")
        axes = figure.add_subplot()
        for place, row in zip(places, rows, strict=True):
            colour = style.COLOURS[parts.index(row.part) % len(style.COLOURS)]
            axes.barh(place, row.ratio - 1, left=1, height=0.66, color=colour)
            scaled = ", scaled" if "scaled" in row.note else ""
            text = f"{ratio_text(row.ratio)} \u00d7"
            times = f"   ({seconds_text(row.ours_s)} : {seconds_text(row.reference_s)}{scaled})"
            label = axes.annotate(
                text, (max(row.ratio, 1.0), place), (3, 0), textcoords="offset points", va="center", weight="bold"
            )
            axes.annotate(times, (1, 0), xycoords=label, va="bottom", color=style.FAINT, fontsize=style.TINY)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlim(low * 0.9, high * (high / low) ** 0.62)  # room for the numbers behind the longest bar
        wide = high > 50
        ticks = [10.0**k for k in range(9)] if wide else [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= high * 1.01] or [1.0]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_yticks(places, [row.what for row in rows])
        axes.set_ylim(below - 0.6, -0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(f"times faster than the plain way (ours : plain, {clock} in one process)", loc="right")
        figure.suptitle(caption, x=0.01, ha="left", fontsize=style.TINY, color=style.FAINT)
        figure.savefig(path, dpi=200)
