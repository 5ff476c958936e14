"""What a method is given: sessions that close, batches in a seeded order, generators; and how its state is counted."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiocl_bench.errors import ConfigError, DataAccessError, MethodError
from audiocl_bench.method import (
    Clips,
    Context,
    LazyClips,
    Method,
    Session,
    SilentReporter,
    StreamInfo,
    kept_bytes,
    require_storable,
)
from audiocl_bench.readout import Readout

CPU = torch.device("cpu")
MEL = torch.randn(11, 3, 4, generator=torch.Generator().manual_seed(0))
LABELS = np.array([2, 3, 2, 3, 4, 4, 2, 3, 4, 2, 3])


def session(reads: list[list[int]] | None = None, **options: Any) -> Session:
    def read(rows: np.ndarray) -> Tensor:
        if reads is not None:
            reads.append(rows.tolist())
        return MEL[torch.from_numpy(rows)].clone()

    return Session(1, (2, 3, 4), 2, LABELS, read, CPU, **options)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------ sessions


def test_facts_of_a_session() -> None:
    opened = session()
    assert (opened.index, opened.classes) == (1, (2, 3, 4))
    assert (opened.num_known, opened.num_seen, opened.num_clips) == (2, 5, 11)
    assert opened.labels.dtype == torch.int64
    assert opened.labels.tolist() == LABELS.tolist()


def test_a_joint_session_counts_every_class_once() -> None:
    whole = Session(0, tuple(range(6)), 0, np.arange(6), lambda rows: MEL[rows], CPU)
    assert (whole.num_known, whole.num_seen) == (0, 6)


def test_batches_in_stored_order() -> None:
    batches = list(session().batches(4))
    assert [len(clips) for clips, _ in batches] == [4, 4, 3]
    assert torch.equal(torch.cat([clips.mel for clips, _ in batches]), MEL)
    assert torch.cat([labels for _, labels in batches]).tolist() == LABELS.tolist()
    assert torch.cat([clips.index for clips, _ in batches if clips.index is not None]).tolist() == list(range(11))


@settings(deadline=None)
@given(st.integers(1, 14), st.integers(0, 2**31), st.booleans(), st.sampled_from([0, 1 << 30]))
def test_every_batch_pairs_clips_with_their_labels_and_positions(
    size: int, seed: int, drop_last: bool, cache_bytes: int
) -> None:
    opened = session(cache_bytes=cache_bytes)
    batches = list(opened.batches(size, shuffle=generator(seed), drop_last=drop_last))
    positions: list[int] = []
    for clips, labels in batches:
        assert clips.index is not None
        assert torch.equal(clips.mel, MEL[clips.index])
        assert labels.tolist() == LABELS[clips.index.numpy()].tolist()
        positions += clips.index.tolist()
    kept = 11 // size * size if drop_last else 11
    assert len(positions) == len(set(positions)) == kept
    assert all(len(clips) == size for clips, _ in batches[: 11 // size])
    assert positions == torch.randperm(11, generator=generator(seed))[:kept].tolist()


def test_the_order_follows_the_generator() -> None:
    def order(drawn: torch.Generator) -> list[int]:
        return [int(i) for clips, _ in session().batches(3, shuffle=drawn) for i in clips.index]

    drawn = generator(5)
    first, second = order(drawn), order(drawn)
    assert first == order(generator(5))
    assert first != second, "a second epoch has another order"
    assert first != order(generator(6))


def test_cached_and_uncached_sessions_give_equal_batches_and_read_as_little_as_they_may() -> None:
    reads: dict[int, list[list[int]]] = {0: [], 1 << 30: []}
    given_out = {}
    for room, noted in reads.items():
        opened = session(noted, cache_bytes=room)
        given_out[room] = [clips.mel for _ in range(3) for clips, _ in opened.batches(4, shuffle=generator(1))]
        assert opened.clips_handed_out == 3 * 11
    assert all(torch.equal(a, b) for a, b in zip(given_out[0], given_out[1 << 30], strict=True))
    assert sum(map(len, reads[0])) == 3 * 11
    assert sum(map(len, reads[1 << 30])) == 4 + 11, "the first batch to learn the size, then all clips once"


def test_the_cache_limit_is_exact() -> None:
    whole = MEL.numel() * 4
    for room, cached in ((whole, True), (whole - 1, False)):
        reads: list[list[int]] = []
        opened = session(reads, cache_bytes=room)
        for _ in range(5):
            assert [len(clips.mel) for clips, _ in opened.batches(11)] == [11]
        assert len(reads) == (2 if cached else 5)


def test_log_mels_are_decoded_when_they_are_looked_at_and_once() -> None:
    reads: list[list[int]] = []
    opened = session(reads, cache_bytes=0)
    batches = [clips for clips, _ in opened.batches(4)]
    assert reads == []
    assert [len(clips) for clips in batches] == [4, 4, 3]
    assert opened.clips_handed_out == 11
    assert batches[1].mel is batches[1].mel
    assert reads == [[4, 5, 6, 7]]
    opened.close()
    assert torch.equal(batches[1].mel, MEL[4:8]), "what was looked at is the batch's own"
    with pytest.raises(DataAccessError, match="session 1 is closed"):
        _ = batches[0].mel


def test_what_a_method_does_to_a_batch_stays_in_that_batch() -> None:
    opened = session()
    for clips, labels in opened.batches(4):
        clips.mel.zero_()
        labels.zero_()
    assert torch.equal(torch.cat([clips.mel for clips, _ in opened.batches(4)]), MEL)
    assert torch.cat([labels for _, labels in opened.batches(4)]).tolist() == LABELS.tolist()


def test_the_callers_labels_stay_his() -> None:
    mine = LABELS.copy()
    opened = Session(0, (2, 3, 4), 2, mine, lambda rows: MEL[rows], CPU)
    mine[:] = 0
    assert opened.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_a_closed_session_gives_nothing(cache_bytes: int) -> None:
    opened = session(cache_bytes=cache_bytes)
    running = opened.batches(4)
    next(running)
    opened.close()
    for access in (lambda: next(running), lambda: next(opened.batches(4)), lambda: opened.labels):
        with pytest.raises(DataAccessError, match="session 1 is closed"):
            access()
    assert opened.num_clips == 11
    assert not any(isinstance(value, Tensor) or callable(value) for value in vars(opened).values())


def test_closing_twice_is_fine() -> None:
    opened = session()
    opened.close()
    opened.close()


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="batch_size is"):
        next(session().batches(size))


def test_clips_carry_a_mel_positions_and_own_features_only() -> None:
    clips = Clips(MEL)
    assert vars(clips).keys() == {"mel", "index", "query"}
    assert clips.index is None
    assert clips.query is None
    assert len(clips) == 11
    with pytest.raises(AttributeError):
        clips.label = 1  # type: ignore[attr-defined]
    lazy = LazyClips(lambda: MEL, count=11)
    with pytest.raises(AttributeError):
        lazy.label = 1  # type: ignore[attr-defined]
    again = dataclasses.replace(lazy, query=torch.zeros(11, 1))
    assert again.mel is lazy.mel
    assert (len(again), again.index) == (11, None)


class Reads(Method):
    """Has a `query` of its own kind, or the usual one."""

    def __init__(self) -> None:
        self.readout = Readout((1,), ("mean",), 4)

    learn = encode = classify = state_dict = load_state_dict = None  # type: ignore[assignment]

    def query(self, mel: torch.Tensor) -> torch.Tensor:
        return mel.mean(1)


def test_queries_come_from_where_they_are_cheapest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given with the batch, else the bank's, else computed; an own `query` is never replaced by the bank."""
    asked: list[Readout] = []

    def stored(readout: Readout) -> torch.Tensor:
        asked.append(readout)
        return torch.full((11, 4), 7.0)

    method, given = Reads(), torch.zeros(11, 4)
    assert method.queries(Clips(MEL, query=given)) is given
    assert torch.equal(method.queries(Clips(MEL)), MEL.mean(1))
    assert torch.equal(method.queries(LazyClips(lambda: MEL, count=11, stored=stored)), MEL.mean(1))
    assert asked == []
    monkeypatch.delattr(Reads, "query")
    bare = LazyClips(lambda: pytest.fail("decoded"), count=11, stored=stored)
    assert torch.equal(method.queries(bare), torch.full((11, 4), 7.0))
    assert asked == [method.readout]
    assert method.queries(LazyClips(MEL, query=given, stored=stored)) is given


# ------------------------------------------------------------------------------------------------------------- context


def test_generators_depend_on_seed_and_purpose() -> None:
    def draw(seed: int, *purpose: str | int) -> float:
        context = Context(seed, StreamInfo("x", 3, 6, 2))
        return float(torch.rand((), generator=context.generator(*purpose)))

    assert draw(0, "a", 1) == draw(0, "a", 1)
    assert len({draw(0, "a", 1), draw(1, "a", 1), draw(0, "b", 1), draw(0, "a", 2), draw(0, "a")}) == 5


def test_the_silent_reporter_keeps_notes_and_the_maximum() -> None:
    reporter = SilentReporter()
    reporter.note("a", 1)
    for parameters in (3, 7, 5):
        reporter.trainable(parameters)
    reporter.epoch("stage", 1, 2, 3, 0.5)
    assert reporter.notes == {"a": 1}
    assert reporter.most_trainable == 7


# --------------------------------------------------------------------------------------------------------------- state


def test_kept_bytes_by_hand() -> None:
    assert kept_bytes({"w": torch.zeros(3, 5), "h": torch.zeros(7, dtype=torch.float16)}) == 60 + 14
    assert kept_bytes({"n": 3, "x": 0.5, "flag": True}) == 24
    assert kept_bytes({"name": "abc", "raw": b"12345", "nothing": None}) == 8
    assert kept_bytes({"nested": {"list": [torch.zeros(2), (torch.zeros(1, dtype=torch.int64), 4)]}}) == 8 + 8 + 8
    assert kept_bytes({"array": np.zeros(4)}) == 32
    assert kept_bytes({}) == 0
    assert kept_bytes({"empty": torch.zeros(0), "also": torch.zeros(0, 5)}) == 0


def test_shared_storage_counts_once_and_views_count_what_they_hold() -> None:
    whole = torch.zeros(100)
    assert kept_bytes({"a": whole, "b": whole}) == 400
    assert kept_bytes({"a": whole, "b": whole[10:20], "c": {"d": whole.view(10, 10).T}}) == 400
    assert kept_bytes({"a": whole, "b": whole.clone()}) == 800
    assert kept_bytes({"view": whole[:1]}) == 400, "a view keeps its whole storage alive, and torch.save stores it"
    assert kept_bytes({"expanded": torch.zeros(1).expand(1000)}) == 4


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.bool]),
            st.sampled_from(["own", "same", "view"]),
        ),
        max_size=6,
    )
)
def test_kept_bytes_are_what_torch_saves(parts: list[tuple[int, torch.dtype, str]]) -> None:
    """The storages in a saved file, read back, hold exactly the bytes that were counted."""
    state: dict[str, Tensor] = {}
    for number, (size, dtype, kind) in enumerate(parts):
        before = list(state.values())
        if kind == "own" or not before:
            state[str(number)] = torch.zeros(size, dtype=dtype)
        else:
            state[str(number)] = before[-1] if kind == "same" else before[-1][: len(before[-1]) // 2]
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=True)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in loaded.values()}
    assert kept_bytes(state) == sum(storages.values())
    assert kept_bytes(loaded) == kept_bytes(state)


STORABLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 9), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), STORABLE, max_size=4))
def test_what_is_called_storable_comes_back_from_a_checkpoint(state: dict[str, Any]) -> None:
    require_storable(state, owner="x")
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True) == state


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"a": np.zeros(2)}, r"state_dict\(\)\['a'\] is a numpy.ndarray"),
        ({"a": {"b": [1, np.float64(2)]}}, r"state_dict\(\)\['a'\]\['b'\]\[1\] is a numpy.float64"),
        ({"a": (object(),)}, r"\['a'\]\[0\] is a builtins.object"),
        ({np.int64(1): 2}, r"a key of state_dict\(\) is a numpy.int64"),
        ([Clips(MEL)], r"state_dict\(\)\[0\] is a audiocl_bench.method.Clips"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(state: Any, named: str) -> None:
    with pytest.raises(MethodError, match=f"method mine: .*{named}, which a checkpoint cannot hold"):
        require_storable(state, owner="mine")


def test_tensors_sets_and_state_dicts_of_modules_are_storable() -> None:
    require_storable(torch.nn.Linear(2, 2).state_dict(), owner="x")
    require_storable({"seen": {1, 2}, "p": torch.nn.Parameter(torch.zeros(1)), "b": b"x"}, owner="x")
