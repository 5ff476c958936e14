"""Two entries of a board side by side: by score, session and class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from audiocl_bench.report.leaderboard.boards import Board
from audiocl_bench.report.leaderboard.entries import Entry
from audiocl_bench.report.leaderboard.found import Key
from audiocl_bench.report.leaderboard.statistics import Pair
from audiocl_bench.results import SCORES


@dataclass(frozen=True)
class Line:
    """One line of a comparison, means over the shared (order, seed) pairs.

    Attributes:
        name: score, session or class.
        first, second: the two entries' means, percent.
        difference: mean of first - second, points.
        half_width: half the 95 % interval of the difference; NaN for one pair.
    """

    name: str
    first: float
    second: float
    difference: float
    half_width: float


@dataclass(frozen=True, eq=False)
class Duel:
    """Everything the comparison page of two entries shows.

    Attributes:
        first, second: the entries.
        pair: how they compare by final accuracy.
        keys: (order, seed) pairs that both were run on.
        scores: one line per score that both have.
        curve: one line per session: accuracy on all classes so far, after it.
        last: one line per session: accuracy on its own classes, after the last session.
        classes: one line per class, after the last session; those where the first one gains most come first.
    """

    first: Entry
    second: Entry
    pair: Pair
    keys: tuple[Key, ...]
    scores: tuple[Line, ...]
    curve: tuple[Line, ...]
    last: tuple[Line, ...]
    classes: tuple[Line, ...]


def duel(board: Board, pair: Pair) -> Duel:
    """Compare two entries of a board by score, session and class, over the streams that both were run on."""
    first, second = board.shown[pair.first], board.shown[pair.second]
    keys = tuple(sorted({run.key for run in first.runs} & {run.key for run in second.runs}))
    score_table = [
        np.array([[entry.by_stream(name)[key] for name in SCORES] for key in keys]) for entry in (first, second)
    ]
    sessions = [str(t) for t in range(board.num_sessions)]
    classes = list(first.runs[0].recall)
    by_class = _lines(classes, first.stack("recall", keys), second.stack("recall", keys))
    return Duel(
        first=first,
        second=second,
        pair=pair,
        keys=keys,
        scores=_lines(SCORES, *score_table),
        curve=_lines(sessions, first.stack("curve", keys), second.stack("curve", keys)),
        last=_lines(sessions, first.stack("last", keys), second.stack("last", keys)),
        classes=tuple(sorted(by_class, key=lambda line: (-line.difference, line.name))),
    )


def _lines(names: Sequence[str], first: np.ndarray, second: np.ndarray) -> tuple[Line, ...]:
    """Compare columns: `first` and `second` are [n, k] with one row per shared stream; columns with a NaN are left out.

    The interval is that of `metrics.summarise`, for all columns at once: a page may have hundreds of classes.
    """
    differences = first - second
    n = len(differences)
    half = np.full(len(names), math.nan)
    if n > 1:
        spread = differences.std(axis=0, ddof=1)
        spread[(differences == differences[0]).all(axis=0)] = 0.0
        half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    columns = zip(names, first.mean(axis=0), second.mean(axis=0), differences.mean(axis=0), half, strict=True)
    return tuple(
        Line(name, float(a), float(b), float(d), float(h)) for name, a, b, d, h in columns if not math.isnan(d)
    )
