"""Streams: any class count and session size gives a partition; the hash sees what it should and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocl_bench import streams
from audiocl_bench.errors import StreamError
from audiocl_bench.streams import Stream


def make(num_classes: int = 5, sizes: int | tuple[int, ...] = 2, per_class: int = 3, **changes) -> Stream:
    """A stream whose class k has `per_class` clips, the first of them for test."""
    names = [f"class{k}" for k in range(num_classes)]
    rows = [(f"{name}/{i}", name, i == 0) for name in names for i in range(per_class)]
    fields = {
        "benchmark": "toy",
        "protocol": "paper",
        "order": 0,
        "classes": names,
        "classes_per_session": sizes,
        "clip_ids": [row[0] for row in rows],
        "class_names": [row[1] for row in rows],
        "is_test": np.array([row[2] for row in rows]),
    }
    return streams.build(**(fields | changes))


@given(num_classes=st.integers(1, 40), size=st.integers(1, 45), per_class=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_sessions_and_parts_partition_classes_and_clips(num_classes: int, size: int, per_class: int) -> None:
    stream = make(num_classes, size, per_class)
    classes = [label for t in range(stream.num_sessions) for label in stream.session_classes(t)]
    assert classes == list(range(num_classes))
    assert all(n == size for n in stream.session_sizes[:-1])
    assert 1 <= stream.session_sizes[-1] <= size
    rows = np.concatenate([stream.rows(t, part) for t in range(stream.num_sessions) for part in streams.PARTS])
    assert sorted(rows.tolist()) == list(range(num_classes * per_class))
    for t in range(stream.num_sessions):
        for part in streams.PARTS:
            mine = stream.rows(t, part)
            assert set(stream.labels[mine].tolist()) == set(stream.session_classes(t))
            assert set(stream.is_test[mine].tolist()) == {part == "test"}
            assert (stream.session_of_class[stream.labels[mine]] == t).all()


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_listed_session_sizes_are_kept(sizes: list[int]) -> None:
    assert make(sum(sizes), tuple(sizes)).session_sizes == tuple(sizes)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_hash_ignores_row_order_and_sees_everything_else(data: st.DataObject) -> None:
    stream = make(6, 2, 4)
    n = len(stream.clip_ids)
    shuffle = data.draw(st.permutations(range(n)))
    moved = replace(
        stream,
        clip_ids=tuple(stream.clip_ids[i] for i in shuffle),
        labels=stream.labels[shuffle],
        is_test=stream.is_test[shuffle],
    )
    assert moved.hash == stream.hash

    row = data.draw(st.integers(0, n - 1).filter(lambda i: not stream.is_test[i]))  # every class has 3 train clips
    parts = stream.is_test.copy()
    parts[row] = True
    labels = stream.labels.copy()
    labels[row] = (labels[row] + data.draw(st.integers(1, 5))) % 6
    renamed = (*stream.clip_ids[:row], "other", *stream.clip_ids[row + 1 :])
    order = data.draw(st.permutations(stream.classes).filter(lambda p: tuple(p) != stream.classes))
    changed = [
        replace(stream, is_test=parts),
        replace(stream, labels=labels),
        replace(stream, clip_ids=renamed),
        replace(stream, classes=tuple(order)),
        replace(stream, session_sizes=(3, 3)),
        replace(stream, protocol="grouped"),
    ]
    assert len({stream.hash, *(other.hash for other in changed)}) == 7


def test_hash_is_the_documented_one() -> None:
    stream = Stream(
        "toy", "own", 3, ("é", "a"), (1, 1), ("y", "x", "w", "v"), np.array([0, 0, 1, 1]), np.array([True, False] * 2)
    )
    text = (
        '{"classes":["é","a"],"clips":[["v","a","train"],["w","a","test"],["x","é","train"],["y","é","test"]],'
        '"protocol":"own","session_sizes":[1,1]}'
    )
    assert stream.hash == hashlib.sha256(text.encode()).hexdigest()


def test_equality_and_hash() -> None:
    assert make() == make()
    assert len({make(), make()}) == 1
    assert make() != make(sizes=3)
    assert make() != replace(make(), order=1)
    assert make() != "stream"


def test_arrays_are_private_and_read_only() -> None:
    parts = np.array([True, False] * 2)
    stream = make(2, 1, 2, is_test=parts)
    parts[:] = False
    assert stream.is_test.tolist() == [True, False] * 2
    for array in (stream.labels, stream.is_test, stream.session_of_class):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert stream.labels.dtype == np.int64


def test_rows_are_sorted_by_clip_id() -> None:
    stream = make(2, 1, 2, clip_ids=["d", "c", "b", "a"])
    assert stream.clip_ids == ("a", "b", "c", "d")
    assert stream.labels.tolist() == [1, 1, 0, 0]
    assert stream.is_test.tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clip_ids": ("a", "a", "c", "d")}, "clip 'a' appears twice"),
        ({"classes": ("x", "x")}, "class 'x' appears twice"),
        ({"classes": ("x", "")}, "no empty class name"),
        ({"session_sizes": (1,)}, "add up to 1, but there are 2"),
        ({"session_sizes": (2, 0)}, "at least one class"),
        ({"labels": np.array([0, 0, 1, 2])}, "0..1"),
        ({"labels": np.array([0, 0, 1, -1])}, "0..1"),
        ({"labels": np.array([0.0, 0.0, 1.0, 1.0])}, "int64"),
        ({"labels": np.array([0, 0, 1])}, "equally many"),
        ({"is_test": np.array([1, 0, 1, 0])}, "bool"),
        ({"is_test": np.array([True, False, False, False])}, "class 'y' has no test clips"),
        ({"is_test": np.array([True, True, True, True])}, "class 'x' has no train clips (and 1 more"),
        ({"labels": np.array([0, 0, 0, 0])}, "class 'y' has no train clips"),
    ],
)
def test_what_is_no_stream_is_refused(changes: dict, told: str) -> None:
    clips, labels, parts = ("a", "b", "c", "d"), np.array([0, 0, 1, 1]), np.array([True, False] * 2)
    good = Stream("toy", "own", 0, ("x", "y"), (1, 1), clips, labels, parts)
    with pytest.raises(StreamError) as caught:
        replace(good, **changes)
    assert told in str(caught.value)


def test_wrong_questions_are_refused() -> None:
    stream = make(4, 2)
    for t in (-1, 2):
        with pytest.raises(StreamError, match=f"no session {t}"):
            stream.session_classes(t)
    with pytest.raises(StreamError, match="'valid' is no part"):
        stream.rows(0, "valid")  # type: ignore[arg-type]
    with pytest.raises(StreamError, match="lists 4 classes in 2 sessions, but there are 5"):
        make(5, (2, 2))
    with pytest.raises(StreamError, match="at least 1"):
        make(5, 0)
    with pytest.raises(StreamError, match="clips of class 'class1', which is not in the class order"):
        make(2, 1, classes=["class0"])
