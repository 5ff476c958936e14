"""Stored runs: read, scored anew from their predictions, and set aside where they cannot be ranked.

All scores are percent. A run that failed an audit, declares a leak, disagrees with its own predictions, used another
split or was tested on other clips keeps its reason in `Run.reason`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from audiocl_bench import metrics
from audiocl_bench.errors import ResultsError
from audiocl_bench.files import sha256_json
from audiocl_bench.report.leaderboard.naming import HASH
from audiocl_bench.results import ResultsDir, method_source

Key = tuple[int, int]
"""(order, seed): what runs are paired by."""


@dataclass(frozen=True)
class Found:
    """One stored run: its row of the runs table and the directory it lies in.

    Attributes:
        row: the row, with Python values; a null is None.
        results: its directory.
        page: file name of its page, without suffix; unique in a site.
        conflict: it has the id of an earlier run but other predictions.
    """

    row: Mapping[str, Any]
    results: ResultsDir
    page: str
    conflict: bool = False


@dataclass(frozen=True)
class Check:
    """Outcome of one audit: its name, whether it passed, and its numbers as JSON values."""

    name: str
    passed: bool
    detail: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One run with what its predictions say.

    Attributes:
        found: where it comes from, and its row.
        matrix: accuracy matrix [T, T] in percent, NaN where not tested.
        scores: every score of `results.SCORES`, recomputed; NaN where it does not exist.
        recall: class -> percent of its clips that are right after the last session.
        sessions: rows of the sessions table, by session.
        checks: audits, in the stored order.
        whole_stream: it learned all classes at once, so it is a reference and no competitor.
        tested: hash of the test clips and their classes.
        reason: why it is not ranked, "" if it is.
    """

    found: Found
    matrix: np.ndarray
    scores: Mapping[str, float]
    recall: Mapping[str, float]
    sessions: tuple[Mapping[str, Any], ...]
    checks: tuple[Check, ...]
    whole_stream: bool
    tested: str
    reason: str

    @property
    def row(self) -> Mapping[str, Any]:
        """The run's row of the runs table."""
        return self.found.row

    @property
    def page(self) -> str:
        """File name of its page, without suffix."""
        return self.found.page

    @property
    def key(self) -> Key:
        """(order, seed)."""
        return int(self.row["order"]), int(self.row["seed"])

    @property
    def label(self) -> str:
        """`METHOD` or `METHOD@PRESET`."""
        return label(self.row)

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings."""
        return mapping(self.row, "method_config")

    @property
    def notes(self) -> dict[str, Any]:
        """The run's notes."""
        return mapping(self.row, "notes")

    @property
    def source_hash(self) -> str:
        """SHA-256 of the file of a method that was loaded by path, else ""."""
        return method_source(self.row)

    @cached_property
    def curve(self) -> np.ndarray:
        """[T] percent: mean accuracy over all sessions so far; NaN where not tested."""
        return session_averages(self.matrix)

    @cached_property
    def new(self) -> np.ndarray:
        """[T] percent: accuracy on each session right after learning it."""
        return np.diagonal(self.matrix)

    @cached_property
    def old(self) -> np.ndarray:
        """[T] percent: mean accuracy over the sessions before the last one learned; NaN after session 0."""
        return np.array([self.matrix[t, :t].mean() if t else math.nan for t in range(len(self.matrix))])

    @property
    def seconds(self) -> float:
        """Seconds of training and testing."""
        return finite(self.row["train_seconds"]) + finite(self.row["eval_seconds"])

    @property
    def passes(self) -> float:
        """Clips that went through the whole encoder, in training and testing."""
        return finite(self.row["train_passes"]) + finite(self.row["eval_passes"])


def find_runs(results: Iterable[ResultsDir]) -> tuple[Found, ...]:
    """Read the row of every run in these directories, sorted by run id.

    A run that stands in several of them with equal predictions counts once. One that shares only its id is kept and
    marked as a conflict.

    Raises:
        ResultsError: a file is damaged, foreign or of a newer schema; the sentence names it.
    """
    found: dict[str, list[Found]] = {}
    for directory in results:
        for run_id in directory.run_ids():
            known = found.setdefault(run_id, [])
            if any(_same_predictions(other.results, directory, run_id) for other in known):
                continue
            page = run_id if not known else f"{run_id}-{len(known) + 1}"
            known.append(Found(directory.run(run_id), directory, page, conflict=bool(known)))
    return tuple(run for run_id in sorted(found) for run in found[run_id])


def _same_predictions(first: ResultsDir, second: ResultsDir, run_id: str) -> bool:
    if first.file("predictions", run_id).read_bytes() == second.file("predictions", run_id).read_bytes():
        return True
    one, two = (directory.predictions(run_id).astype(object) for directory in (first, second))
    return bool(one.equals(two))


def read_run(found: Found, split_hash: str) -> Run:
    """Read one run's sessions and predictions and compute its scores from them.

    Args:
        found: from `find_runs`.
        split_hash: the split that the board's runs of this order used; a run with another one is not ranked.

    Raises:
        ResultsError: the files are damaged, or the predictions are no valid table.
    """
    run_id, directory = found.row["run_id"], found.results
    predictions = directory.predictions(run_id)
    try:
        matrix = metrics.accuracy_matrix(predictions)
    except ResultsError as cause:
        raise ResultsError(f"{directory.file('predictions', run_id)} cannot be scored: {cause}") from cause
    last = predictions[predictions["after_session"] == len(matrix) - 1]
    recall = _recall(last)
    clips = np.bincount(last["session"].to_numpy(), minlength=len(matrix)).astype(np.float64)
    sessions = directory.sessions(run_id).sort_values("session").to_dict("records")
    scores = _scores(matrix, clips, recall)
    checks = _checks(found.row)
    untested = len(matrix) > 1 and bool(np.isnan(matrix[:-1, 0]).all())
    return Run(
        found=found,
        matrix=100.0 * matrix,
        scores=scores,
        recall=recall,
        sessions=tuple({str(name): value for name, value in row.items()} for row in sessions),
        checks=checks,
        whole_stream=untested and len(sessions) == 1,
        tested=sha256_json(sorted(zip(last["clip_id"].astype(str), last["label"].astype(str), strict=True))),
        reason=_reason(found, scores, checks, split_hash),
    )


def _scores(matrix: np.ndarray, clips: np.ndarray, recall: Mapping[str, float]) -> dict[str, float]:
    """Every score in percent, from one accuracy matrix [T, T], the test clips per session [T] and the recalls.

    `results.score` would count the same predictions four times over; the two are tested to be equal.
    """
    by_clip = np.array([matrix[t, : t + 1] @ clips[: t + 1] / clips[: t + 1].sum() for t in range(len(matrix))])
    fractions = {
        "final_accuracy": metrics.final_accuracy(matrix),
        "micro_accuracy": float(by_clip[-1]),
        "balanced_accuracy": sum(recall.values()) / len(recall) / 100.0,
        "average_incremental_accuracy": metrics.average_incremental_accuracy(matrix),
        "average_incremental_accuracy_by_sample": float(by_clip.mean()),
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "plasticity": metrics.plasticity(matrix),
    }
    return {name: 100.0 * value for name, value in fractions.items()}


def session_averages(matrix: np.ndarray) -> np.ndarray:
    """Return [T]: the mean of row t over sessions 0..t of an accuracy matrix in percent."""
    return 100.0 * metrics.session_averages(np.clip(matrix / 100.0, 0.0, 1.0))


def _recall(last: pd.DataFrame) -> dict[str, float]:
    """Percent of right clips per class, classes sorted by name."""
    right = pd.Series(metrics.correct(last)).groupby(last["label"].astype(object).to_numpy()).mean()
    return {str(name): 100.0 * float(share) for name, share in right.sort_index().items()}


def _checks(row: Mapping[str, Any]) -> tuple[Check, ...]:
    return tuple(
        Check(
            str(name),
            isinstance(outcome, dict) and outcome.get("passed") is True,
            {k: v for k, v in outcome.items() if k != "passed"} if isinstance(outcome, dict) else {"outcome": outcome},
        )
        for name, outcome in mapping(row, "audit").items()
    )


def _reason(found: Found, scores: Mapping[str, float], checks: Sequence[Check], split_hash: str) -> str:
    """Say why a run may not be ranked, or return ""."""
    row = found.row
    if failed := [check.name.replace("_", " ") for check in checks if not check.passed]:
        return f"failed its audit: {', '.join(failed)}"
    if not row["audit_passed"]:
        return "declares that it reproduces a published leak: test clips can see each other"
    if not checks:
        return "no audit is recorded with it"
    for name, value in scores.items():
        stored = math.nan if row[name] is None else float(row[name])
        if not (math.isnan(stored) and math.isnan(value)) and not math.isclose(stored, value, abs_tol=1e-9):
            return f"its stored {name.replace('_', ' ')} is {_short(stored)}, but its predictions give {_short(value)}"
    if found.conflict:
        return "another run with the same id has other predictions"
    if row["split_hash"] != split_hash:
        return (
            f"its split of order {row['order']} ({row['split_hash'][:HASH]}) is not the one that the other runs "
            f"of this board used ({split_hash[:HASH]})"
        )
    return ""


def _short(value: float) -> str:
    return "empty" if math.isnan(value) else f"{value:.6g}"


def usual_splits(found: Iterable[Found]) -> dict[int, str]:
    """Return, per order, the split that most runs used (of equals the first by hash).

    Own data can be split anew under an old name; such runs must not be averaged or paired with the others.
    """
    by_order: dict[int, list[str]] = {}
    for run in found:
        by_order.setdefault(int(run.row["order"]), []).append(run.row["split_hash"])
    return {order: _usual(hashes) for order, hashes in by_order.items()}


def same_tests(runs: Sequence[Run]) -> list[Run]:
    """Set aside what was not tested like the rest: other sessions or classes, or other clips of the same split."""
    fair = [run for run in runs if not run.reason]
    if not fair:
        return list(runs)
    shape = _usual([(len(run.matrix), tuple(run.recall)) for run in fair])
    tested = {order: _usual([run.tested for run in fair if run.key[0] == order]) for order in {r.key[0] for r in fair}}
    checked = []
    for run in runs:
        reason = run.reason
        if not reason and (len(run.matrix), tuple(run.recall)) != shape:
            reason = "its sessions or classes are not those of the other runs of this board"
        if not reason and run.tested != tested[run.key[0]]:
            reason = f"it was tested on other clips than the other runs of order {run.key[0]}"
        checked.append(replace(run, reason=reason))
    return checked


def _usual(values: Sequence[Any]) -> Any:
    """Return the most frequent value; of equally frequent ones the first in sorted order."""
    counts: Counter[Any] = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def label(row: Mapping[str, Any]) -> str:
    """Return a run's method as the user names it: `METHOD` or `METHOD@PRESET`."""
    return f"{row['method']}@{row['variant']}" if row["variant"] else str(row["method"])


def mapping(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return a JSON column that holds an object; {} for an empty list or null."""
    try:
        value = json.loads(row[column])
    except (ValueError, RecursionError) as cause:
        raise ResultsError(
            f"column '{column}' of run {row['run_id']} is no valid JSON: write the run again."
        ) from cause
    if value and not isinstance(value, dict):
        return {"value": value}
    return value or {}


def finite(value: Any) -> float:
    """Return a number of a row; NaN for null and for what is not finite."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan
