"""Boards: which runs stand beside each other, and everything that the page of a board shows.

A **board** is one fair comparison: one benchmark, protocol and backbone, with equal weights, clips and front end. Own
data, miniatures and stand-in networks are boards of their own. An **entry** is one method with one set of settings; its
runs differ in order and seed only. Every score is recomputed from the predictions; all scores are percent.

Runs that failed an audit, declare a leak, disagree with their own predictions or used another split are never ranked
(`Board.set_aside`). Methods that saw all classes at once are shown for reference and never ranked either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from audiocl_bench.files import canonical_json, sha256_json
from audiocl_bench.report.leaderboard.entries import Entry, entries
from audiocl_bench.report.leaderboard.found import Found, Run, mapping, read_run, same_tests, usual_splits
from audiocl_bench.report.leaderboard.naming import slug
from audiocl_bench.report.leaderboard.statistics import Pair, groups, pairwise, streams_needed
from audiocl_bench.report.tables import not_comparable

MOST_COMPARED = 20
"""Ranked entries of a board that get a comparison page with each other: 20 give 190 pages."""


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
    runs = same_tests([read_run(run, splits[int(run.row["order"])]) for run in found])
    fair = [run for run in runs if not run.reason]
    made = sorted(entries(fair), key=lambda entry: (-entry.final.mean, entry.name, entry.slug))
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
