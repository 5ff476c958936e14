"""Which entries of a board can be told apart: paired tests, corrected for their number, and group letters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from audiocl_bench import metrics
from audiocl_bench.metrics import Comparison
from audiocl_bench.report.leaderboard.entries import Entry

ALPHA = 0.05
"""Chance, over all pairs of a board together, of calling any two equal methods different."""


@dataclass(frozen=True)
class Pair:
    """Two entries of a board, compared by final accuracy over the (order, seed) pairs that both were run on.

    Attributes:
        first, second: positions in `Board.shown`; the first one ranks higher or is a competitor.
        comparison: paired comparison, None if they share no (order, seed).
        p_value: exact sign-flip test up to 20 pairs, paired t-test beyond; NaN if there is none.
        adjusted: p after Holm's correction over all pairs of ranked entries; NaN for a reference.
    """

    first: int
    second: int
    comparison: Comparison | None
    p_value: float
    adjusted: float

    @property
    def different(self) -> bool:
        """The two can be told apart at `ALPHA`."""
        return self.adjusted <= ALPHA


def pairwise(entries: Sequence[Entry]) -> tuple[Pair, ...]:
    """Compare all pairs of entries; only those of ranked ones are tested, with Holm's step-down correction (1979)."""
    pairs = []
    for i, j in itertools.combinations(range(len(entries)), 2):
        first, second = entries[i].by_stream("final_accuracy"), entries[j].by_stream("final_accuracy")
        comparison = metrics.compare(first, second) if set(first) & set(second) else None
        p = math.nan
        if comparison is not None and comparison.difference.n > 1:
            exact = comparison.sign_flip_p_value
            p = comparison.t_p_value if math.isnan(exact) else exact
        pairs.append(Pair(i, j, comparison, p, math.nan))
    tested = [
        k for k, pair in enumerate(pairs) if not (entries[pair.first].reference or entries[pair.second].reference)
    ]
    adjusted = holm([pairs[k].p_value for k in tested])
    for k, value in zip(tested, adjusted, strict=True):
        pairs[k] = replace(pairs[k], adjusted=value)
    return tuple(pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted by Holm (1979), "A simple sequentially rejective multiple test procedure".

    NaN stays NaN and does not count as a test.
    """
    ranked = sorted((p, k) for k, p in enumerate(p_values) if not math.isnan(p))
    adjusted, worst = [math.nan] * len(p_values), 0.0
    for place, (p, k) in enumerate(ranked):
        worst = max(worst, min(1.0, (len(ranked) - place) * p))
        adjusted[k] = worst
    return adjusted


def streams_needed(pairs: int) -> int:
    """Return how many shared (order, seed) pairs the exact test needs before any of `pairs` pairs can be told apart.

    With n of them its p is at least 2 / 2**n, and Holm's first threshold is `ALPHA` / pairs.
    """
    return math.ceil(1 - math.log2(ALPHA / max(1, pairs)))


def groups(count: int, different: Iterable[tuple[int, int]]) -> list[str]:
    """Return the group letters of `count` entries, best first: entries that share a letter cannot be told apart.

    Insert-and-absorb algorithm of Piepho (2004), "An algorithm for a letter-based representation of all-pairwise
    comparisons", J. Comput. Graph. Stat. 13: every pair in `different` shares no letter, every other pair at least one.
    """
    columns = [frozenset(range(count))]
    for i, j in different:
        split: list[frozenset[int]] = []
        for column in columns:
            split += [column - {i}, column - {j}] if {i, j} <= column else [column]
        unique = sorted(set(split), key=lambda column: (-len(column), sorted(column)))
        columns = []
        for column in unique:
            if not any(column <= larger for larger in columns):
                columns.append(column)
    columns.sort(key=sorted)
    return [" ".join(_letter(k) for k, column in enumerate(columns) if i in column) for i in range(count)]


def _letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    text = ""
    while number >= 0:
        number, rest = divmod(number, 26)
        text, number = chr(ord("a") + rest) + text, number - 1
    return text
