"""Entries: the runs of one method with one set of settings, summarised over orders and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from audiocl_bench import metrics
from audiocl_bench.files import sha256_json
from audiocl_bench.metrics import Summary
from audiocl_bench.report.leaderboard.found import Key, Run, finite
from audiocl_bench.report.leaderboard.naming import HASH, setting_text, slug
from audiocl_bench.results import SCORES, own_origin


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
    told = [first.label, first.row["config_hash"], first.source_hash, first.whole_stream]
    identity = sha256_json([*told, own_origin(first.row)] if any(name == "data" for name, _ in differs) else told)
    entry = Entry(
        slug=f"{slug(first.label)[:40]}-{identity[:8]}",
        label=first.label,
        config_hash="" if alone else first.row["config_hash"][:HASH],
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
                    lambda run: finite(run.row["kept_bytes"]),
                    lambda run: finite(run.row["trainable_parameters"]),
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


def entries(runs: Sequence[Run]) -> list[Entry]:
    """Group runs by method and settings. Runs with other settings, code, or own data that changed are not averaged."""
    changed = len({own_origin(run.row) for run in runs} - {""}) > 1
    grouped: dict[tuple[str, bool, str, str, str], list[Run]] = {}
    for run in runs:
        origin = own_origin(run.row) if changed else ""
        identity = (run.label, run.whole_stream, run.row["config_hash"], run.source_hash, origin)
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
        found.append(("code", run.source_hash[:HASH] or "installed"))
    if len({own_origin(rival.row) for rival in rivals} - {""}) > 1:
        found.append(("data", own_origin(run.row) or "not said"))
    return tuple(found)


def _setting(settings: Mapping[str, Any], name: str) -> str:
    return setting_text(settings[name]) if name in settings else "not set"
