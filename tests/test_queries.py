"""Queries: features of the pretrained network, taken once per test clip and run, and never trusted blindly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from learners import CPU, clips_of, network, reader, session
from probes import Honest, Log, open_material, plan_of
from torch import Tensor

from audiocl_bench import runner
from audiocl_bench.method import Clips, Context, Session, State, StreamInfo
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, execute, run_id

TRAIN, TEST, SESSIONS = 12, 4, 3  # clips of every session of the tiny benchmark


class Prompted(Honest):
    """Its encoder changes with every session and starts from queries, as prompt methods do; nothing is trained.

    Attributes:
        asked: every clip a query was taken of, as bytes, in order.
        given: whether a batch came with its queries.
    """

    name = "prompted"
    needs_queries = True
    training = False
    asked: ClassVar[list[bytes]] = []
    given: ClassVar[list[bool]] = []

    def learn(self, session: Session) -> None:
        self.training = True
        self.encoder_version += 1
        super().learn(session)
        self.training = False

    @torch.no_grad()
    def query(self, mel: Tensor) -> Tensor:
        if not self.training:
            self.asked.extend(clip.numpy().tobytes() for clip in mel)
        self.backbone.passes.clips += len(mel)
        return mel.mean(1)

    def encode(self, batch: Clips) -> Tensor:
        query = self.queries(batch)
        if batch.query is not None:
            assert torch.equal(batch.query, batch.mel.mean(1)), "the queries of other clips"
        if not self.training:
            self.given.append(batch.query is not None)
        return query + 0.001 * self.encoder_version * batch.mel.std(1)

    def state_dict(self) -> State:
        return {**super().state_dict(), "encoder_version": self.encoder_version}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.encoder_version = state["encoder_version"]


class Unprompted(Prompted):
    """The same without the runner's help: it takes its queries anew every time."""

    name = "unprompted"
    needs_queries = False


class FailsOnce(Prompted):
    """Raises at the start of session 2 until `mended`."""

    name = "fails-once"
    mended = False

    def learn(self, session: Session) -> None:
        if session.index == 2 and not type(self).mended:
            raise RuntimeError("broken")
        super().learn(session)


@pytest.fixture(autouse=True)
def forget() -> None:
    Prompted.asked.clear()
    Prompted.given.clear()


@pytest.fixture
def no_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the audit, which asks on purpose without kept queries."""
    monkeypatch.setattr(runner._Run, "_audit", lambda self: (True, {"left_out": {"passed": True}}))


def stored_clips(material: Material, sessions: range) -> list[bytes]:
    stream, front_end = material.stream, material.backbone.front_end
    rows = np.concatenate([stream.rows(i, "test") for i in sessions])
    mel = front_end.normalise(material.store.batch(material.store.rows([stream.clip_ids[row] for row in rows])))
    return sorted(clip.numpy().tobytes() for clip in mel)


@pytest.mark.usefixtures("no_audit")
@pytest.mark.parametrize("batch", [64, 3])
def test_every_test_clip_is_asked_once_in_a_run(
    batch: int, tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sessions, three encoders, one query a clip; in batches of three, a session's queries come in two parts."""
    monkeypatch.setattr(runner, "EVAL_BATCH", batch)
    results = ResultsDir(tmp_path / "results")
    identity, _ = execute(plan_of(Prompted), tiny_material, results)
    assert sorted(Prompted.asked) == stored_clips(tiny_material, range(SESSIONS))
    assert all(Prompted.given)
    assert len(Prompted.given) == 6 * math.ceil(TEST / batch)  # sessions 1 + 2 + 3 encoded
    assert results.sessions(identity)["eval_passes"].tolist() == [TEST] * SESSIONS


@pytest.mark.usefixtures("no_audit")
def test_a_method_that_asks_itself_gets_none_and_pays_for_it(tiny_material: Material, tmp_path: Path) -> None:
    results = ResultsDir(tmp_path / "results")
    identity, _ = execute(plan_of(Unprompted), tiny_material, results)
    assert not any(Prompted.given)
    assert results.sessions(identity)["eval_passes"].tolist() == [TEST, 2 * TEST, 3 * TEST]


@pytest.mark.parametrize("batch", [64, 3])
def test_kept_queries_change_no_result(
    batch: int, tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "EVAL_BATCH", batch)
    predictions = []
    for number, method in enumerate((Prompted, Unprompted)):
        results = ResultsDir(tmp_path / str(number))
        identity, _ = execute(plan_of(method), tiny_material, results)
        assert results.run(identity)["audit_passed"]
        predictions.append(results.predictions(identity).drop(columns="run_id"))
    assert predictions[0].equals(predictions[1])


def test_the_audit_asks_anew(tiny_material: Material, tmp_path: Path) -> None:
    """Kept queries would hide a query that depends on its batch."""
    execute(plan_of(Prompted), tiny_material, ResultsDir(tmp_path / "results"))
    tested = 1 + 2 + 3
    assert all(Prompted.given[:tested])
    assert not any(Prompted.given[tested:])
    assert len(Prompted.given) > tested


def test_a_query_that_looks_at_its_neighbours_fails_the_audit(tiny_material: Material, tmp_path: Path) -> None:
    class Leaky(Prompted):
        name = "leaky-query"

        @torch.no_grad()
        def query(self, mel: Tensor) -> Tensor:
            return mel.mean(1) + mel.mean((0, 1))

        def encode(self, batch: Clips) -> Tensor:
            return self.queries(batch)

    results = ResultsDir(tmp_path / "results")
    identity, _ = execute(plan_of(Leaky), tiny_material, results)
    assert not results.run(identity)["audit_passed"]


@pytest.mark.usefixtures("no_audit")
def test_queries_are_kept_across_a_resume(
    tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHEAP_SAVE", math.inf)  # whatever a busy disk takes, write every checkpoint
    results, plan = ResultsDir(tmp_path / "results"), plan_of(FailsOnce)
    with pytest.raises(RuntimeError, match="broken"):
        execute(plan, tiny_material, results)
    assert sorted(Prompted.asked) == stored_clips(tiny_material, range(2))

    Prompted.asked.clear()
    monkeypatch.setattr(FailsOnce, "mended", True)
    log = Log()
    identity, _ = execute(plan, tiny_material, results, monitor=log)
    assert log.started == [(SESSIONS, 2)]
    assert sorted(Prompted.asked) == stored_clips(tiny_material, range(2, 3)), "only the new session's clips"
    assert results.sessions(identity)["eval_passes"].tolist() == [TEST] * SESSIONS

    whole = ResultsDir(tmp_path / "whole")
    unbroken, _ = execute(plan_of(FailsOnce), tiny_material, whole)
    assert unbroken == identity
    assert whole.file("predictions", identity).read_bytes() == results.file("predictions", identity).read_bytes()


def test_the_checkpoint_holds_the_queries_themselves(
    tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHEAP_SAVE", math.inf)
    results, plan = ResultsDir(tmp_path / "results"), plan_of(FailsOnce)
    with pytest.raises(RuntimeError, match="broken"):
        execute(plan, tiny_material, results)
    path = results.path / "work" / run_id(plan, tiny_material) / "checkpoint.pt"
    packed = torch.load(path, weights_only=True)["progress"]["queries"]
    assert packed["lengths"] == [TEST, TEST]
    assert packed["values"].shape == (2 * TEST, tiny_material.backbone.front_end.n_mels)


def test_other_methods_get_no_queries(tiny_material: Material, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(Honest):
        name = "looks"

        def encode(self, batch: Clips) -> Tensor:
            seen.append(batch.query)
            return super().encode(batch)

    execute(plan_of(Looks), tiny_material, ResultsDir(tmp_path / "results"))
    assert seen
    assert all(query is None for query in seen)


@pytest.mark.parametrize("backbone", ["eat-tiny", "whisper-tiny-random"])
def test_queries_are_features_of_the_pretrained_network(
    backbone: str, tiny_benchmark: Path, tiny_home: Path, tmp_path: Path
) -> None:
    """The default: one pass of the backbone, no gradient, kept ones used as they are."""
    material = open_material(tiny_benchmark, tiny_home, backbone)
    method = Honest(Honest.Config(), material.backbone, Context(0, StreamInfo("x", 1, 2, 1)))
    mel = clips_of((0, 1), material.backbone, per_class=2)[0][:, :48]
    parameter = next(material.backbone.parameters())
    try:
        parameter.requires_grad_(True)
        query = method.query(mel)
    finally:
        parameter.requires_grad_(False)
    assert not query.requires_grad
    assert torch.equal(query, material.backbone.features(mel))
    kept = torch.zeros(4, 1)
    assert method.queries(Clips(mel, query=kept)) is kept
    assert torch.equal(method.queries(Clips(mel)), query)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_sessions_queries_stand_in_stored_order(batch_size: int) -> None:
    backbone = network()
    part = session(1, backbone)
    method = Honest(Honest.Config(), backbone, Context(0, StreamInfo("x", 3, 6, 1)))
    queries = method.session_queries(part, batch_size)
    assert queries.shape == (part.num_clips, backbone.dim)
    for clips, _ in part.batches(4, shuffle=torch.Generator().manual_seed(0)):
        assert clips.index is not None
        torch.testing.assert_close(queries[clips.index], backbone.features(clips.mel), rtol=0, atol=1e-5)
    assert backbone.passes.clips == 2 * part.num_clips


def test_a_session_of_one_clip_has_one_query() -> None:
    backbone = network()
    mel, labels = clips_of((3,), backbone, per_class=1)
    part = Session(0, (0,), 0, labels - 3, reader(mel), CPU)
    method = Honest(Honest.Config(), backbone, Context(0, StreamInfo("x", 1, 1, 1)))
    assert torch.equal(method.session_queries(part), backbone.features(mel))
