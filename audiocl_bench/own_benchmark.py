"""A benchmark on one's own data: how its class orders and test clips follow from the corpus index.

Nothing is frozen in a file here: the stream is a function of the description and the index, and `Stream.hash` says
whether two people got the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from audiocl_bench import assign, streams
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.errors import AudioclError, ConfigError, CorpusError, StreamError, unknown_name
from audiocl_bench.seeding import numpy_generator
from audiocl_bench.streams import Stream

PROTOCOL = "own"
_ORDER_SEED = 0


@dataclass(frozen=True)
class TestRule:
    """Which clips are test clips.

    Attributes:
        rule: "fraction" (of every class, at random), "fold" (whole folds) or "groups" (no group on both sides).
        fraction: test share of every class; for "fraction", and for "groups" where it chooses the groups or splits a
            class of `split_within`.
        seed: seed of the random choice.
        folds: the test folds.
        groups: the test groups; empty = chosen by `fraction` and `seed`.
        split_within: classes whose clips all come from one group, which are therefore split clip by clip.
    """

    __test__ = False  # tells pytest that this is no test case

    rule: Literal["fraction", "fold", "groups"]
    fraction: float | None = None
    seed: int = 0
    folds: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    split_within: tuple[str, ...] = ()

    def is_test(self, index: pd.DataFrame) -> np.ndarray:
        """Return bool [clips], True = test, for an index sorted by clip id.

        Raises:
            StreamError: a class cannot get both train and test clips, or the index has no folds or groups.
            UnknownNameError: a fold, group or class that the index does not have.
        """
        labels = index["label"].tolist()
        if self.rule == "fraction":
            assert self.fraction is not None
            return assign.stratified(labels, self.fraction, self._generator)
        if self.rule == "fold":
            return assign.by_membership(_filled(index, "fold"), self.folds, kind="fold")
        return self._by_groups(labels, _filled(index, "group"))

    def _by_groups(self, labels: list[str], groups: list[str]) -> np.ndarray:
        assign.require_one_own_group(labels, groups, self.split_within)
        within = np.isin(np.asarray(labels, dtype=object), self.split_within)
        rest = np.flatnonzero(~within)
        is_test = np.zeros(len(labels), dtype=bool)
        if len(rest):
            the_labels, the_groups = [labels[row] for row in rest], [groups[row] for row in rest]
            if self.groups:
                is_test[rest] = assign.by_membership(the_groups, self.groups, kind="group")
            else:
                assert self.fraction is not None
                is_test[rest] = assign.by_groups(the_labels, the_groups, self.fraction, self._generator("groups"))
        rows = np.flatnonzero(within)
        if len(rows):
            assert self.fraction is not None
            is_test[rows] = assign.stratified([labels[row] for row in rows], self.fraction, self._generator)
        return is_test

    def _generator(self, what: str) -> np.random.Generator:
        return numpy_generator(self.seed, "own", "test", self.rule, what)


@dataclass(frozen=True)
class OwnBenchmark(Benchmark):
    """A benchmark described in a TOML file.

    Attributes:
        root: the corpus folder that the file names.
        test: the test rule.
        orders: class orders given as lists; empty = `num_orders` seeded ones.
    """

    root: Path
    test: TestRule
    orders: tuple[tuple[str, ...], ...] = field(default=())

    def find(self, data: Path | None) -> Path:
        """Return the corpus folder: `root`, or with `data` given `data/<name of root>` if it exists, else `data`.

        Raises:
            CorpusError: there is no such folder.
        """
        root = self.root
        if data is not None:
            data = data.expanduser()
            root = data / self.root.name if (data / self.root.name).is_dir() else data
        if not root.is_dir():
            raise CorpusError(
                f"{self.source}, root in [corpus]: there is no folder {root}; correct root, or give the folder with "
                "--data."
            )
        return root

    def checked(self, index: pd.DataFrame) -> pd.DataFrame:
        """Return `index`, sorted by clip id: own data has no frozen clips to differ from."""
        return index.sort_values("clip_id", ignore_index=True)

    def _stream(self, protocol: str, order: int, index: pd.DataFrame | None) -> Stream:
        if index is None:
            raise ConfigError(f"the stream of {self.name} follows from its data: open it, or pass the corpus index.")
        index = self.checked(index)
        try:
            return streams.build(
                benchmark=self.name,
                protocol=protocol,
                order=order,
                classes=self._class_orders(set(index["label"]))[order],
                classes_per_session=self.classes_per_session,
                clip_ids=index["clip_id"].tolist(),
                class_names=index["label"].tolist(),
                is_test=self.test.is_test(index),
            )
        except AudioclError as error:
            raise type(error)(f"{self.source}: {error}") from error

    def _class_orders(self, classes: set[str]) -> list[list[str]]:
        if not self.orders:
            return assign.class_orders(
                classes,
                self.num_orders,
                lambda number, attempt: numpy_generator(_ORDER_SEED, "own", "orders", number, attempt),
            )
        for number, order in enumerate(self.orders):
            for name in order:
                if name not in classes:
                    raise unknown_name(f"class in orders[{number}] of [stream]", name, classes)
            if absent := sorted(classes - set(order)):
                raise StreamError(
                    f"orders[{number}] of [stream] lacks class '{absent[0]}': list every class once, or leave the "
                    "class out with where in [corpus]."
                )
        return [list(order) for order in self.orders]

    def _sizes(self) -> dict[str, int | None]:
        sizes = self.classes_per_session
        classes = len(self.orders[0]) if self.orders else sum(sizes) if isinstance(sizes, tuple) else None
        sessions = None if classes is None else len(streams.session_sizes(classes, sizes))
        return {"classes": classes, "sessions": sessions, "clips": None}


def _filled(index: pd.DataFrame, column: str) -> list[str]:
    values: list[str] = index[column].tolist()
    for clip, value in zip(index["clip_id"], values, strict=True):
        if not value:
            raise StreamError(
                f"clip '{clip}' has no {column}: say in [corpus] where its {column} is found, or change the test rule."
            )
    return values
