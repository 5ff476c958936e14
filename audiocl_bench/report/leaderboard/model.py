"""What the leaderboard shows, computed from stored results: boards, entries, groups, comparisons.

A **board** is one fair comparison: one benchmark, protocol and backbone, with equal weights, clips and front end. Own
data, miniatures and stand-in networks are boards of their own. An **entry** is one method with one set of settings; its
runs differ in order and seed only. Every score is recomputed from the predictions; all scores are percent.

Runs that failed an audit, declare a leak, disagree with their own predictions or used another split are never ranked
(`Board.set_aside`). Methods that saw all classes at once are shown for reference and never ranked either.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from audiocl_bench import metrics
from audiocl_bench.errors import ResultsError
from audiocl_bench.files import canonical_json, sha256_json
from audiocl_bench.metrics import Comparison, Summary
from audiocl_bench.report.tables import not_comparable
from audiocl_bench.results import SCORES, ResultsDir, method_source

ALPHA = 0.05
"""Chance, over all pairs of a board together, of calling any two equal methods different."""

MOST_COMPARED = 20
"""Ranked entries of a board that get a comparison page with each other: 20 give 190 pages."""

_HASH = 6  # characters of a hash that name settings, as in the terminal tables
_SLUG = 80

Key = tuple[int, int]
"""(order, seed): what runs are paired by."""


# ---------------------------------------------------------------------------------------------------------------------
# Runs


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
        return _finite(self.row["train_seconds"]) + _finite(self.row["eval_seconds"])

    @property
    def passes(self) -> float:
        """Clips that went through the whole encoder, in training and testing."""
        return _finite(self.row["train_passes"]) + _finite(self.row["eval_passes"])


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
            f"its split of order {row['order']} ({row['split_hash'][:_HASH]}) is not the one that the other runs "
            f"of this board used ({split_hash[:_HASH]})"
        )
    return ""


def _short(value: float) -> str:
    return "empty" if math.isnan(value) else f"{value:.6g}"


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


def _finite(value: Any) -> float:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else math.nan


# ---------------------------------------------------------------------------------------------------------------------
# Entries


@dataclass(frozen=True)
class Costs:
    """Means over an entry's runs; NaN where a run has no number.

    Attributes:
        seconds: training and testing.
        passes: clips through the whole encoder, training and testing.
        kept_bytes: kept between sessions, after the last one.
        trainable: parameters trained at most in one session.
    """

    seconds: float
    passes: float
    kept_bytes: float
    trainable: float


@dataclass(frozen=True, eq=False)
class Entry:
    """One method with one set of settings on one board.

    Attributes:
        slug: file name part, unique on the board.
        label: `METHOD` or `METHOD@PRESET`.
        config_hash: of method and settings, first characters; "" where the label alone says which entry it is.
        differs: settings, as text, in which it differs from the method's other entries on the board.
        runs: its runs by order and seed.
        scores: score -> summary over (order, seed); repeats of one pair are averaged first.
        curve: [T] mean accuracy so far after each session, NaN where not tested.
        costs: means over runs.
        reference: it learned all classes at once: shown, never ranked.
        rank: place by mean final accuracy, from 1; None for a reference.
        groups: letters of the groups it belongs to (see `groups`); "" where nothing could be told apart.
        absent_orders: how many orders fewer it has than the board's most complete entry.
    """

    slug: str
    label: str
    config_hash: str
    differs: tuple[tuple[str, str], ...]
    runs: tuple[Run, ...]
    scores: Mapping[str, Summary]
    curve: np.ndarray
    costs: Costs
    reference: bool
    rank: int | None = None
    groups: str = ""
    absent_orders: int = 0

    @property
    def name(self) -> str:
        """The label, with the settings' hash where the board has several entries of that label."""
        return f"{self.label} #{self.config_hash}" if self.config_hash else self.label

    @property
    def final(self) -> Summary:
        """Summary of the final accuracy: what entries are ranked by."""
        return self.scores["final_accuracy"]

    @property
    def orders(self) -> tuple[int, ...]:
        """Class orders it was run on, sorted."""
        return tuple(sorted({run.key[0] for run in self.runs}))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds it was run with, sorted."""
        return tuple(sorted({run.key[1] for run in self.runs}))

    @property
    def repeats(self) -> int:
        """Runs beyond one per (order, seed)."""
        return len(self.runs) - len({run.key for run in self.runs})

    def by_stream(self, score: str) -> dict[Hashable, float]:
        """Return {(order, seed): score}; repeats are averaged."""
        return {key: values[score] for key, values in self._by_stream.items()}

    def stack(self, what: str, keys: Sequence[Key]) -> np.ndarray:
        """Return one row per (order, seed): "curve" [n, T], "last" (last row of the matrix) [n, T], "recall" [n, C]."""
        return np.stack([np.mean([_vector(run, what) for run in self._streams[key]], axis=0) for key in keys])

    @cached_property
    def _by_stream(self) -> dict[Key, dict[str, float]]:
        return {
            key: {name: sum(run.scores[name] for run in runs) / len(runs) for name in SCORES}
            for key, runs in self._streams.items()
        }

    @cached_property
    def _streams(self) -> dict[Key, tuple[Run, ...]]:
        return {key: tuple(runs) for key, runs in itertools.groupby(self.runs, key=lambda run: run.key)}


def _vector(run: Run, what: str) -> np.ndarray:
    if what == "curve":
        return run.curve
    return run.matrix[-1] if what == "last" else np.array(list(run.recall.values()))


def _entry(runs: Sequence[Run], *, alone: bool, differs: tuple[tuple[str, str], ...]) -> Entry:
    ordered = tuple(sorted(runs, key=lambda run: (run.key, run.page)))
    first = ordered[0]
    identity = sha256_json([first.label, first.row["config_hash"], first.source_hash, first.whole_stream])
    entry = Entry(
        slug=f"{slug(first.label)[:40]}-{identity[:8]}",
        label=first.label,
        config_hash="" if alone else first.row["config_hash"][:_HASH],
        differs=differs,
        runs=ordered,
        scores={},
        curve=np.zeros(0),
        costs=Costs(
            *(
                float(np.mean([value(run) for run in ordered]))
                for value in (
                    lambda run: run.seconds,
                    lambda run: run.passes,
                    lambda run: _finite(run.row["kept_bytes"]),
                    lambda run: _finite(run.row["trainable_parameters"]),
                )
            )
        ),
        reference=first.whole_stream,
    )
    keys = sorted({run.key for run in ordered})
    return replace(
        entry,
        scores={name: metrics.summarise(entry.by_stream(name).values()) for name in SCORES},
        curve=entry.stack("curve", keys).mean(axis=0),
    )


def _entries(runs: Sequence[Run]) -> list[Entry]:
    """Group runs by method and settings. Runs with different settings, or code, are never averaged together."""
    grouped: dict[tuple[str, bool, str, str], list[Run]] = {}
    for run in runs:
        identity = (run.label, run.whole_stream, run.row["config_hash"], run.source_hash)
        grouped.setdefault(identity, []).append(run)
    made = []
    for identity, members in grouped.items():
        rivals = [other for key, other in grouped.items() if key[:2] == identity[:2]]
        differs = _differences(members[0], [other[0] for other in rivals])
        made.append(_entry(members, alone=len(rivals) == 1, differs=differs))
    return made


def _differences(run: Run, rivals: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    """Return the settings, as text, whose value is not the same in all `rivals`, as `run` has them."""
    all_settings = [rival.settings for rival in rivals]
    names = sorted({name for settings in all_settings for name in settings})
    varying = [name for name in names if len({_setting(settings, name) for settings in all_settings}) > 1]
    found = [(name, _setting(run.settings, name)) for name in varying]
    if len({rival.source_hash for rival in rivals}) > 1:
        found.append(("code", run.source_hash[:_HASH] or "installed"))
    return tuple(found)


def _setting(settings: Mapping[str, Any], name: str) -> str:
    return setting_text(settings[name]) if name in settings else "not set"


def setting_text(value: Any) -> str:
    """Return a setting as `--set` reads it: true, none, 0.5, a,b."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(setting_text(item) for item in value)
    return canonical_json(value) if isinstance(value, dict) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Which entries can be told apart


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


# ---------------------------------------------------------------------------------------------------------------------
# Boards


@dataclass(frozen=True, order=True)
class BoardKey:
    """What all runs of a board have in common.

    Attributes:
        warning: why its numbers stand beside nothing else ("own data", "mini (synthetic data)", ...), or "".
        benchmark, protocol, backbone: as the user names them.
        weights_hash, index_hash: of the backbone's weights and of the clips.
        front_end: canonical JSON of what turns audio into the network's input.
        reading: how the network is read ("layer 4, mean pooling"), or "" where it is not recorded.
    """

    warning: str
    benchmark: str
    protocol: str
    backbone: str
    weights_hash: str
    index_hash: str
    front_end: str
    reading: str

    @property
    def slug(self) -> str:
        """File name of the board's page, without suffix: readable, and unique through its hash."""
        readable = slug(f"{self.benchmark}-{self.protocol}-{self.backbone}")
        return f"{readable}-{sha256_json(list(vars(self).values()))[:8]}"


@dataclass(frozen=True, eq=False)
class Board:
    """One board, ready to be shown.

    Attributes:
        key: what its runs have in common.
        num_sessions, num_classes: the stream.
        entries: ranked entries, best first.
        references: entries that saw all classes at once, best first.
        pairs: comparisons of all of `shown`.
        set_aside: runs that are not ranked, with their reasons.
        most_streams: (order, seed) pairs that two ranked entries share, at most.
        streams_needed: how many the test needs here before any two entries can be told apart.
    """

    key: BoardKey
    num_sessions: int
    num_classes: int
    entries: tuple[Entry, ...]
    references: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    set_aside: tuple[Run, ...]
    most_streams: int
    streams_needed: int

    @property
    def slug(self) -> str:
        """File name of its page, without suffix."""
        return self.key.slug

    @property
    def shown(self) -> tuple[Entry, ...]:
        """Ranked entries, then references."""
        return (*self.entries, *self.references)

    @property
    def runs(self) -> tuple[Run, ...]:
        """All its runs: ranked, references, set aside."""
        return (*(run for entry in self.shown for run in entry.runs), *self.set_aside)

    @property
    def compared(self) -> tuple[Pair, ...]:
        """Pairs that get a page: those of the best `MOST_COMPARED` entries and the references that share a stream."""
        shown = {*range(min(MOST_COMPARED, len(self.entries))), *range(len(self.entries), len(self.shown))}
        return tuple(p for p in self.pairs if p.first in shown and p.second in shown and p.comparison is not None)

    @property
    def too_few(self) -> bool:
        """No two entries share enough streams for the test to tell them apart, whatever their scores are."""
        return len(self.entries) > 1 and self.most_streams < self.streams_needed


def boards(found: Iterable[Found]) -> dict[BoardKey, tuple[Found, ...]]:
    """Sort runs onto boards: those that are comparable with published numbers first, each kind by name."""
    grouped: dict[BoardKey, list[Found]] = {}
    for run in found:
        grouped.setdefault(board_key(run.row), []).append(run)
    return {key: tuple(grouped[key]) for key in sorted(grouped)}


def board_key(row: Mapping[str, Any]) -> BoardKey:
    """Return the board that a run belongs on."""
    backbone = mapping(row, "notes").get("backbone")
    reading = ""
    if isinstance(backbone, dict) and {"layer", "pool"} <= set(backbone):
        reading = f"layer {backbone['layer']}, {backbone['pool']} pooling"
    return BoardKey(
        warning=not_comparable(row),
        benchmark=row["benchmark"],
        protocol=row["protocol"],
        backbone=row["backbone"],
        weights_hash=row["weights_hash"],
        index_hash=row["index_hash"],
        front_end=canonical_json(mapping(row, "front_end")),
        reading=reading,
    )


def read_board(key: BoardKey, found: Sequence[Found]) -> Board:
    """Read the runs of one board and compute everything that its pages show.

    Raises:
        ResultsError: a file is damaged or cannot be scored.
    """
    splits = usual_splits(found)
    runs = _same_tests([read_run(run, splits[int(run.row["order"])]) for run in found])
    fair = [run for run in runs if not run.reason]
    made = sorted(_entries(fair), key=lambda entry: (-entry.final.mean, entry.name, entry.slug))
    ranked, references = ([e for e in made if e.reference is wanted] for wanted in (False, True))
    most_orders = max((len(entry.orders) for entry in ranked), default=0)
    pairs = pairwise([*ranked, *references])
    within = [pair for pair in pairs if pair.second < len(ranked)]
    shared = max((pair.comparison.difference.n for pair in within if pair.comparison), default=0)
    needed = streams_needed(sum(not math.isnan(pair.p_value) for pair in within))
    letters = groups(len(ranked), ((pair.first, pair.second) for pair in within if pair.different))
    return Board(
        key=key,
        num_sessions=max(int(run.row["num_sessions"]) for run in found),
        num_classes=max(int(run.row["num_classes"]) for run in found),
        entries=tuple(
            replace(
                entry,
                rank=place + 1,
                groups=letters[place] if shared >= needed else "",
                absent_orders=most_orders - len(entry.orders),
            )
            for place, entry in enumerate(ranked)
        ),
        references=tuple(references),
        pairs=pairs,
        set_aside=tuple(sorted((run for run in runs if run.reason), key=lambda run: run.page)),
        most_streams=shared,
        streams_needed=needed,
    )


def usual_splits(found: Iterable[Found]) -> dict[int, str]:
    """Return, per order, the split that most runs used (of equals the first by hash).

    Own data can be split anew under an old name; such runs must not be averaged or paired with the others.
    """
    by_order: dict[int, list[str]] = {}
    for run in found:
        by_order.setdefault(int(run.row["order"]), []).append(run.row["split_hash"])
    return {order: _usual(hashes) for order, hashes in by_order.items()}


def _same_tests(runs: Sequence[Run]) -> list[Run]:
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


# ---------------------------------------------------------------------------------------------------------------------
# Two entries side by side


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


# ---------------------------------------------------------------------------------------------------------------------
# Names and commands


def slug(text: str) -> str:
    """Return `text` as a safe part of a file name: letters, digits, ".", "-" and "_", at most 80 characters."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)[:_SLUG].strip("._-") or "x"


def command(run: Run) -> tuple[str, ...]:
    """Return the words of the command that repeats a run, quoted for a shell, options kept with their values.

    It states every setting, so that later defaults change nothing. What the results do not hold stands as a file name
    to be filled in: the TOML file of own data, and the file of a method loaded by path.
    """
    row, notes = run.row, run.notes
    method = "FILE.py:CLASS" if run.source_hash else run.label
    bench = f"{row['benchmark']}.toml" if row["own_data"] else str(row["benchmark"])
    words = [
        "audiocl run",
        _option("--method", method),
        _option("--bench", bench),
        *(["--data mini"] if row["mini"] else []),
        _option("--backbone", row["backbone"]),
        _option("--protocol", row["protocol"]),
        _option("--orders", row["order"]),
        _option("--seeds", row["seed"]),
        _option("--device", str(row["device"]).partition(" ")[0] or "cpu"),
        _option("--threads", row["threads"]),
    ]
    backbone = notes.get("backbone")
    backbone = backbone if isinstance(backbone, dict) else {}
    read = [name for name in ("pool", "layer") if name in backbone]
    words += [_option("--set", f"backbone.{name}={backbone[name]}") for name in read]
    settings = run.settings
    if row["variant"] and settings.get("preset") == row["variant"]:
        del settings["preset"]  # METHOD@PRESET says it
    return (*words, *(_option("--set", f"{name}={setting_text(value)}") for name, value in settings.items()))


def _option(name: str, value: Any) -> str:
    return f"{name} {shlex.quote(str(value))}"
