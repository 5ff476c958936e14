"""A stream: which classes arrive in which session, and which clips are train and test clips.

A `Stream` knows clip ids, never files. Its hash covers everything that decides what a method sees, so two results with
equal stream hashes were obtained on the same data in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np

from audiocl_bench.errors import StreamError
from audiocl_bench.files import sha256_json

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")


@dataclass(frozen=True, eq=False)
class Stream:
    """One class-incremental stream. Label k is the position of class k in the order of arrival.

    Attributes:
        benchmark: name of the benchmark, for messages and results.
        protocol: split protocol ("paper", "grouped", or "own" for own data).
        order: number of the class order.
        classes: class names in arrival order; session t holds the next `session_sizes[t]` of them.
        session_sizes: number of classes of each session.
        clip_ids: the clips, [n].
        labels: int64 [n], label of each clip. Read-only.
        is_test: bool [n], True for test clips. Read-only.

    Raises:
        StreamError: the parts do not form a stream: repeated or empty names, sessions that do not use every class once,
            repeated clip ids, labels out of range, or a class without train or without test clips.
    """

    benchmark: str
    protocol: str
    order: int
    classes: tuple[str, ...]
    session_sizes: tuple[int, ...]
    clip_ids: tuple[str, ...]
    labels: np.ndarray
    is_test: np.ndarray

    def __post_init__(self) -> None:
        """Freeze the arrays and check that this is a stream."""
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "session_sizes", tuple(int(size) for size in self.session_sizes))
        object.__setattr__(self, "clip_ids", tuple(self.clip_ids))
        object.__setattr__(self, "labels", _frozen(self.labels, np.dtype(np.int64), self._where("labels")))
        object.__setattr__(self, "is_test", _frozen(self.is_test, np.dtype(np.bool_), self._where("is_test")))
        self._check_sessions()
        self._check_clips()

    def _where(self, field: str) -> str:
        return f"stream {self.benchmark} ({self.protocol}), {field}"

    def _check_sessions(self) -> None:
        if not self.classes or any(not name for name in self.classes):
            raise StreamError(f"{self._where('classes')}: needs at least one class, and no empty class name.")
        if twice := _repeated(self.classes):
            raise StreamError(f"{self._where('classes')}: class '{twice}' appears twice; name each class once.")
        if any(size < 1 for size in self.session_sizes):
            raise StreamError(f"{self._where('session_sizes')}: every session needs at least one class.")
        if sum(self.session_sizes) != len(self.classes):
            raise StreamError(
                f"{self._where('session_sizes')}: the sizes add up to {sum(self.session_sizes)}, but there are "
                f"{len(self.classes)} classes; each class belongs to exactly one session."
            )

    def _check_clips(self) -> None:
        if not len(self.clip_ids) == len(self.labels) == len(self.is_test):
            raise StreamError(
                f"{self._where('clip_ids')}: {len(self.clip_ids)} clip ids, {len(self.labels)} labels and "
                f"{len(self.is_test)} parts; they must be equally many."
            )
        if twice := _repeated(self.clip_ids):
            raise StreamError(f"{self._where('clip_ids')}: clip '{twice}' appears twice; clip ids must be unique.")
        if len(self.labels) and (self.labels.min() < 0 or self.labels.max() >= len(self.classes)):
            raise StreamError(f"{self._where('labels')}: labels must lie in 0..{len(self.classes) - 1}.")
        for part, mask in (("train", ~self.is_test), ("test", self.is_test)):
            empty = np.flatnonzero(np.bincount(self.labels[mask], minlength=len(self.classes)) == 0)
            if len(empty):
                more = f" (and {len(empty) - 1} more classes)" if len(empty) > 1 else ""
                raise StreamError(
                    f"{self._where(part)}: class '{self.classes[empty[0]]}' has no {part} clips{more}; "
                    "choose another test rule, or leave the class out."
                )

    def __eq__(self, other: object) -> bool:
        """Streams are equal if every field is, array contents and row order included."""
        if not isinstance(other, Stream):
            return NotImplemented
        return (
            (self.benchmark, self.protocol, self.order) == (other.benchmark, other.protocol, other.order)
            and (self.classes, self.session_sizes) == (other.classes, other.session_sizes)
            and self.clip_ids == other.clip_ids
            and np.array_equal(self.labels, other.labels)
            and np.array_equal(self.is_test, other.is_test)
        )

    def __hash__(self) -> int:
        return hash((self.benchmark, self.protocol, self.order, self.hash))

    @cached_property
    def hash(self) -> str:
        """SHA-256 over protocol, classes in order, session sizes and every (clip id, class name, part).

        The rows are sorted by clip id first, so the hash does not depend on the order in which clips were listed.
        """
        rows = sorted(
            (clip, self.classes[label], PARTS[test])
            for clip, label, test in zip(self.clip_ids, self.labels.tolist(), self.is_test.tolist(), strict=True)
        )
        return sha256_json(
            {"protocol": self.protocol, "classes": self.classes, "session_sizes": self.session_sizes, "clips": rows}
        )

    @property
    def num_sessions(self) -> int:
        """T, the number of sessions."""
        return len(self.session_sizes)

    @property
    def num_classes(self) -> int:
        """Number of classes of the whole stream."""
        return len(self.classes)

    @cached_property
    def session_of_class(self) -> np.ndarray:
        """int64 [num_classes]: the zero-based session of each label. Read-only."""
        sessions = np.repeat(np.arange(self.num_sessions, dtype=np.int64), self.session_sizes)
        sessions.setflags(write=False)
        return sessions

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        return (0, *accumulate(self.session_sizes))

    def session_classes(self, t: int) -> tuple[int, ...]:
        """Return the labels of session `t`, ascending.

        Raises:
            StreamError: there is no session `t`.
        """
        if not 0 <= t < self.num_sessions:
            raise StreamError(f"{self._where('sessions')}: no session {t}; sessions are 0..{self.num_sessions - 1}.")
        return tuple(range(self._starts[t], self._starts[t + 1]))

    def rows(self, t: int, part: Part) -> np.ndarray:
        """Return the positions in `clip_ids` of session `t`'s train or test clips, int64, ascending.

        Raises:
            StreamError: there is no session `t`, or `part` is neither "train" nor "test".
        """
        if part not in PARTS:
            raise StreamError(f"{self._where('part')}: '{part}' is no part; use 'train' or 'test'.")
        labels = self.session_classes(t)
        mine = (self.labels >= labels[0]) & (self.labels <= labels[-1])
        return np.flatnonzero(mine & (self.is_test == (part == "test")))


def session_sizes(num_classes: int, classes_per_session: int | Sequence[int]) -> tuple[int, ...]:
    """Return the number of classes of each session.

    Args:
        num_classes: classes of the whole stream.
        classes_per_session: one number (what remains forms a last, smaller session) or the list of all sizes.

    Raises:
        StreamError: a size below one, or a list that does not add up to `num_classes`.
    """
    if isinstance(classes_per_session, int):
        if classes_per_session < 1:
            raise StreamError(f"classes_per_session is {classes_per_session}: give at least 1.")
        whole, rest = divmod(num_classes, classes_per_session)
        return (classes_per_session,) * whole + ((rest,) if rest else ())
    sizes = tuple(classes_per_session)
    if any(size < 1 for size in sizes) or sum(sizes) != num_classes:
        raise StreamError(
            f"classes_per_session lists {sum(sizes)} classes in {len(sizes)} sessions, but there are {num_classes} "
            "classes: give sizes of at least 1 that add up, or one number."
        )
    return sizes


def build(
    *,
    benchmark: str,
    protocol: str,
    order: int,
    classes: Sequence[str],
    classes_per_session: int | Sequence[int],
    clip_ids: Sequence[str],
    class_names: Sequence[str],
    is_test: np.ndarray,
) -> Stream:
    """Build a stream from class names per clip; rows are sorted by clip id.

    Args:
        benchmark: name of the benchmark.
        protocol: name of the split protocol.
        order: number of the class order.
        classes: class names in arrival order.
        classes_per_session: see `session_sizes`.
        clip_ids: [n] clip ids.
        class_names: [n] class name of each clip.
        is_test: bool [n].

    Raises:
        StreamError: a clip's class is not in `classes`, or see `Stream`.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    if foreign := sorted(set(class_names) - set(label_of)):
        raise StreamError(
            f"stream {benchmark} ({protocol}): clips of class '{foreign[0]}', which is not in the class "
            "order; add it to the order."
        )
    rows = sorted(range(len(clip_ids)), key=clip_ids.__getitem__)
    return Stream(
        benchmark=benchmark,
        protocol=protocol,
        order=order,
        classes=tuple(classes),
        session_sizes=session_sizes(len(classes), classes_per_session),
        clip_ids=tuple(clip_ids[row] for row in rows),
        labels=np.array([label_of[class_names[row]] for row in rows], dtype=np.int64),
        is_test=np.asarray(is_test)[rows],
    )


def _frozen(values: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    array = np.array(values)  # a copy: the caller's array stays writable and cannot change the stream
    if array.ndim != 1 or (array.size and array.dtype.kind not in ("b" if dtype.kind == "b" else "iu")):
        raise StreamError(f"{where}: must be a one-dimensional array of {dtype.name}.")
    array = array.astype(dtype, copy=False)
    array.setflags(write=False)
    return array


def _repeated(names: Sequence[str]) -> str | None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    return name if count > 1 else None
