"""Scores of a class-incremental run: pure functions of one accuracy matrix or one prediction table.

Notation: T sessions, zero-based. `A` is the accuracy matrix [T, T]; A[t, i] is the accuracy on the test clips of
session i's classes after learning session t, i <= t; NaN above the diagonal. A row is either complete (all of 0..t) or
missing (all NaN: the model was not evaluated after that session, as in joint training, which has only the last row).
A score that needs a missing row is NaN.

A prediction table has one row per (after_session, test clip) with at least the columns `after_session`, `session`
(the session that introduced the clip's class), `label` (the clip's class) and `predicted`.

Everything here is a fraction in [0, 1]; percent appears only where results are stored or shown. Bad input raises
`ResultsError` with one sentence.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from audiocl_bench.errors import ResultsError

PREDICTION_COLUMNS = ("after_session", "session", "label", "predicted")
_EXACT_SIGN_FLIP_LIMIT = 20  # 2**20 sign patterns: a few MB and milliseconds


# ---------------------------------------------------------------------------------------------------------------------
# Prediction tables


@dataclass(frozen=True)
class _Counts:
    """A checked prediction table reduced to counts: per (row t, session i), and the last row's clips."""

    clips: np.ndarray  # [T, T] int64
    correct: np.ndarray  # [T, T] int64
    last_label: np.ndarray  # [n] class codes of the clips evaluated after the last session
    last_correct: np.ndarray  # [n] bool


def correct(predictions: pd.DataFrame) -> np.ndarray:
    """Return [rows] bool: is the predicted class the clip's class?

    Raises:
        ResultsError: a value is missing, or labels and predictions are of different kinds (names against numbers).
    """
    require_columns(predictions, ("label", "predicted"))
    label, predicted = (_plain(predictions[name], name) for name in ("label", "predicted"))
    if len(label) and type(label[0]) is not type(predicted[0]):
        raise ResultsError(
            f"the prediction table compares labels of type {type(label[0]).__name__} with predictions of type "
            f"{type(predicted[0]).__name__}: write both as class names or both as numbers."
        )
    return np.asarray(label == predicted, dtype=bool)


def accuracy_matrix(predictions: pd.DataFrame) -> np.ndarray:
    """Return A [T, T] float64 from a prediction table; T is the last `after_session` plus one.

    A[t, i] = correct clips / all clips among the rows with after_session = t and session = i
    (spec/methods.md section 1.2; a_{t,i} of Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", section 3).

    Raises:
        ResultsError: columns missing, session numbers negative or beyond `after_session`, a row that leaves out a
            session learned before it, a session tested on differing numbers of clips, or a class in two sessions.
    """
    counts = _count(predictions)
    with np.errstate(invalid="ignore"):
        return counts.correct / np.where(counts.clips > 0, counts.clips, np.nan)


def micro_accuracy(predictions: pd.DataFrame) -> float:
    """Return correct clips / all clips after the last session; every clip weighs the same."""
    return float(_count(predictions).last_correct.mean())


def balanced_accuracy(predictions: pd.DataFrame) -> float:
    """Return the mean over classes of the class's recall after the last session; every class weighs the same.

    Equals scikit-learn's `balanced_accuracy_score` on the last row (Brodersen et al. 2010).
    """
    counts = _count(predictions)
    clips = np.bincount(counts.last_label)
    right = np.bincount(counts.last_label, weights=counts.last_correct.astype(np.float64), minlength=len(clips))
    return float((right[clips > 0] / clips[clips > 0]).mean())


def average_incremental_accuracy_by_sample(predictions: pd.DataFrame) -> float:
    """Return mean_t (correct clips / all clips after session t); NaN when a row is missing.

    The sample-averaged form (iCaRL, Rebuffi et al. 2017; PILOT). It differs from the session-averaged form,
    `average_incremental_accuracy`, whenever sessions have test sets of different sizes (spec/methods.md section 1.2).
    """
    counts = _count(predictions)
    clips, right = counts.clips.sum(axis=1), counts.correct.sum(axis=1)
    return float(np.mean(right / clips)) if (clips > 0).all() else math.nan


# ---------------------------------------------------------------------------------------------------------------------
# One accuracy matrix


def final_accuracy(matrix: np.ndarray) -> float:
    """Return (1/T) sum_i A[T-1, i]: the paper's "average Top-1 accuracy" (spec/pace.md section 1)."""
    return float(_checked(matrix)[-1].mean())


def session_averages(matrix: np.ndarray) -> np.ndarray:
    """Return [T]: A_t = (1/(t+1)) sum_{i<=t} A[t, i] (spec/methods.md section 1.2); NaN for a missing row."""
    A = _checked(matrix)
    return np.array([A[t, : t + 1].mean() for t in range(len(A))])


def average_incremental_accuracy(matrix: np.ndarray) -> float:
    """Return (1/T) sum_t (1/(t+1)) sum_{i<=t} A[t, i]: the mean of `session_averages`; NaN when a row is missing."""
    return float(session_averages(matrix).mean())


def forgetting(matrix: np.ndarray) -> float:
    """Return (1/(T-1)) sum_{i<T-1} (max_{i<=t<=T-2} A[t, i] - A[T-1, i]), in [-1, 1].

    Chaudhry et al. 2018, "Riemannian Walk", section 3.2: the best accuracy BEFORE the last session minus the last one,
    so it is negative where the last session helped. NaN for T = 1 or when a row is missing.
    """
    A = _checked(matrix)
    if len(A) < 2 or not _complete(A):
        return math.nan
    best = np.nanmax(A[:-1, :-1], axis=0)
    return float((best - A[-1, :-1]).mean())


def backward_transfer(matrix: np.ndarray) -> float:
    """Return (1/(T-1)) sum_{i<T-1} (A[T-1, i] - A[i, i]), in [-1, 1].

    Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", equation 3. NaN for T = 1 or when a row is missing.
    """
    A = _checked(matrix)
    if len(A) < 2 or not _complete(A):
        return math.nan
    return float((A[-1, :-1] - np.diagonal(A)[:-1]).mean())


def plasticity(matrix: np.ndarray) -> float:
    """Return (1/T) sum_t A[t, t]: accuracy on a session right after learning it; NaN when a row is missing."""
    return float(np.diagonal(_checked(matrix)).mean())


def gap_to_joint(final: float, joint_final: float) -> float:
    """Return joint_final - final: what learning in sessions costs against learning all classes at once, in [-1, 1]."""
    for name, value in (("final", final), ("joint_final", joint_final)):
        if not math.isnan(value) and not 0.0 <= value <= 1.0:
            raise ResultsError(f"gap_to_joint: {name} is {value}, but an accuracy is a fraction from 0 to 1.")
    return joint_final - final


# ---------------------------------------------------------------------------------------------------------------------
# Over orders and seeds


@dataclass(frozen=True)
class Summary:
    """Mean of n values with its two-sided Student t confidence interval.

    Attributes:
        n: number of values.
        mean: arithmetic mean, NaN when a value is NaN.
        std: sample standard deviation (n - 1), NaN for n = 1.
        low: lower end of the interval, NaN for n = 1.
        high: upper end of the interval, NaN for n = 1.
        level: coverage, for example 0.95.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float
    level: float

    @property
    def half_width(self) -> float:
        """Half the interval's width: the number after the plus-minus sign; NaN for n = 1."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of two methods over the (order, seed) pairs that both were run on.

    Attributes:
        difference: summary of the differences first - second.
        t_p_value: two-sided paired t-test; NaN for fewer than two pairs or when all differences are equal.
        sign_flip_p_value: two-sided exact sign-flip permutation test; NaN beyond 20 pairs (use the t-test there).
            With n pairs it cannot be below 2 / 2**n: five pairs never reach 0.05.
        unmatched: (order, seed) pairs that only one of the two methods was run on, and that were left out.
    """

    difference: Summary
    t_p_value: float
    sign_flip_p_value: float
    unmatched: tuple[Hashable, ...]


def summarise(values: Iterable[float], *, level: float = 0.95) -> Summary:
    """Return mean and interval mean +- t_{(1+level)/2, n-1} s / sqrt(n) (Student 1908) of independent runs' scores.

    A NaN among the values makes every number NaN: a mean over "the runs that have the score" would mislead.

    Raises:
        ResultsError: no value, an infinite value, or a level outside (0, 1).
    """
    x = np.fromiter((float(v) for v in values), dtype=np.float64)
    if len(x) == 0:
        raise ResultsError("a summary needs at least one run: none was given.")
    if np.isinf(x).any():
        raise ResultsError("a summary needs finite scores: one is infinite.")
    if not 0.0 < level < 1.0:
        raise ResultsError(f"the confidence level is {level}, but it must lie between 0 and 1 (0.95 for 95 %).")
    n, mean = len(x), float(x.mean())
    if n == 1 or math.isnan(mean):
        return Summary(n, mean, math.nan, math.nan, math.nan, level)
    # Equal values have no spread; subtracting their rounded mean would invent one.
    std = 0.0 if (x == x[0]).all() else float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half, level)


def compare(first: Mapping[Hashable, float], second: Mapping[Hashable, float], *, level: float = 0.95) -> Comparison:
    """Compare two methods by their scores on the same streams: keys are (order, seed), values the scores.

    Raises:
        ResultsError: the two methods share no key, or a shared score is NaN or infinite.
    """
    shared = sorted((key for key in first if key in second), key=repr)
    if not shared:
        raise ResultsError("the two methods share no (order, seed): run both with the same --order and --seed.")
    differences = np.array([float(first[key]) - float(second[key]) for key in shared])
    if not np.isfinite(differences).all():
        raise ResultsError("a paired comparison needs a score for every shared run: one is missing.")
    summary = summarise(differences, level=level)
    unmatched = tuple(sorted(set(first) ^ set(second), key=repr))
    return Comparison(summary, _t_p_value(summary), sign_flip_p_value(differences), unmatched)


def sign_flip_p_value(differences: Iterable[float]) -> float:
    """Return the exact two-sided p-value of the sign-flip permutation test (Fisher 1935, section 21).

    p = share of the 2**n sign patterns s with |sum_i s_i d_i| >= |sum_i d_i|. NaN for n = 0 or n > 20.
    """
    d = np.fromiter((float(v) for v in differences), dtype=np.float64)
    if not 0 < len(d) <= _EXACT_SIGN_FLIP_LIMIT:
        return math.nan
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    # Sums that are equal on paper differ in the last bits, depending on the order of addition.
    tolerance = 1e-12 * float(np.abs(d).sum())
    return float((np.abs(sums) >= abs(float(d.sum())) - tolerance).mean())


def by_order_and_seed(runs: pd.DataFrame, score: str) -> dict[Hashable, float]:
    """Return {(order, seed): score} of one method's runs, the input of `compare`.

    Args:
        runs: rows of the runs table, of one method on one benchmark, protocol and backbone.
        score: name of a score column.

    Raises:
        ResultsError: the column is absent, or two runs have the same order and seed.
    """
    require_columns(runs, ("order", "seed", score))
    keys = list(zip(runs["order"].astype(int).tolist(), runs["seed"].astype(int).tolist(), strict=True))
    if len(set(keys)) != len(keys):
        order, seed = next(key for key in keys if keys.count(key) > 1)
        raise ResultsError(f"two runs have order {order} and seed {seed}: keep one of them for a paired comparison.")
    return dict(zip(keys, runs[score].astype(float).tolist(), strict=True))


def _t_p_value(summary: Summary) -> float:
    """Two-sided p of t = mean / (s / sqrt(n)); NaN without spread, where it would claim certainty from two runs."""
    if summary.n < 2 or summary.std <= 1e-12 * max(1.0, abs(summary.mean)):
        return math.nan
    t = summary.mean / (summary.std / math.sqrt(summary.n))
    return float(2 * stats.t.sf(abs(t), summary.n - 1))


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def _checked(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix as float64 after checking shape, range and which cells are filled."""
    A = np.asarray(matrix, dtype=np.float64)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise ResultsError(f"an accuracy matrix is square [T, T] with T >= 1; this one has shape {list(A.shape)}.")
    filled = ~np.isnan(A)
    if filled[np.triu_indices(len(A), k=1)].any():
        raise ResultsError("an accuracy matrix is empty (NaN) above the diagonal: no session is tested before it.")
    learned = np.tri(len(A), dtype=bool)
    partial = filled.any(axis=1) & ~(filled | ~learned).all(axis=1)
    if partial.any():
        raise ResultsError(
            f"row {int(partial.argmax())} of the accuracy matrix is partly filled: test every session learned so far."
        )
    if not filled[-1].any():
        raise ResultsError("the last row of the accuracy matrix is missing: evaluate after the last session.")
    values = A[filled]
    if values.min() < 0.0 or values.max() > 1.0:
        raise ResultsError("an accuracy is a fraction from 0 to 1; divide percentages by 100 first.")
    return A


def _complete(A: np.ndarray) -> bool:
    return bool(~np.isnan(A[:, 0]).any())


def _count(predictions: pd.DataFrame) -> _Counts:
    """Check a prediction table and reduce it to counts."""
    require_columns(predictions, PREDICTION_COLUMNS)
    if len(predictions) == 0:
        raise ResultsError("the prediction table is empty: nothing was evaluated.")
    after, session = (_whole_numbers(predictions[name], name) for name in ("after_session", "session"))
    if (session > after).any():
        row = int((session > after).argmax())
        raise ResultsError(
            f"the prediction table tests a class of session {session[row]} after session {after[row]}: "
            "only classes learned so far can be tested."
        )
    right = correct(predictions)
    label = pd.factorize(_plain(predictions["label"], "label"))[0]
    T = int(after.max()) + 1
    if len(predictions) < T:  # also keeps a nonsense number from asking for a huge matrix
        raise ResultsError(
            f"the prediction table has after_session {T - 1} but only {len(predictions)} rows: "
            "every session learned needs at least one test clip."
        )
    _check_disjoint(label, session, predictions)
    cell = after * T + session
    clips = np.bincount(cell, minlength=T * T).reshape(T, T)
    hits = np.bincount(cell[right], minlength=T * T).reshape(T, T)
    _check_rows(clips)
    last = after == T - 1
    return _Counts(clips, hits, label[last], right[last])


def _check_disjoint(label: np.ndarray, session: np.ndarray, predictions: pd.DataFrame) -> None:
    pairs = np.unique(np.stack([label, session]), axis=1)
    codes, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        row = int((label == codes[counts.argmax()]).argmax())
        raise ResultsError(
            f"the prediction table puts class '{predictions['label'].iloc[row]}' into more than one session: "
            "sessions must have disjoint classes."
        )


def _check_rows(clips: np.ndarray) -> None:
    """Every evaluated row tests all sessions learned so far, each on the same number of clips as in the last row."""
    for t in np.flatnonzero(clips.any(axis=1))[::-1]:  # the last row first: the others are held against it
        wrong = np.flatnonzero(clips[t, : t + 1] != clips[-1, : t + 1])
        missing = np.flatnonzero(clips[t, : t + 1] == 0)
        if len(missing):
            raise ResultsError(
                f"the prediction table has no test clips of session {missing[0]} after session {t}: "
                "test every session learned so far."
            )
        if len(wrong):
            i = wrong[0]
            raise ResultsError(
                f"session {i} is tested on {clips[t, i]} clips after session {t} but on {clips[-1, i]} after the last "
                "session: test the same clips every time."
            )


def require_columns(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise `ResultsError` naming every column of `names` that the table lacks."""
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ResultsError(f"the table lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}.")


def _plain(column: pd.Series, name: str) -> np.ndarray:
    """Return a column as an object array of Python values, so that categoricals with unlike categories compare."""
    if column.isna().any():
        raise ResultsError(f"the prediction table has an empty value in column '{name}': every clip needs one.")
    values: Any = column.astype(object).to_numpy(dtype=object)
    if len(values) and isinstance(values[0], np.integer | int):
        return np.array([int(v) for v in values], dtype=object)
    return values


def _whole_numbers(column: pd.Series, name: str) -> np.ndarray:
    values = column.to_numpy()
    if not np.issubdtype(values.dtype, np.integer):
        raise ResultsError(f"column '{name}' of the prediction table must hold whole numbers (sessions from 0).")
    if (values < 0).any():
        raise ResultsError(f"column '{name}' of the prediction table has a negative number: sessions start at 0.")
    return values.astype(np.int64)
