"""Queries: features of the pretrained network, taken once per clip whoever asks, and never trusted blindly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from learners import CPU, clips_of, network, reader, session
from probes import Honest, Log, open_material, plan_of
from torch import Tensor

from audiocl_bench import bank, runner
from audiocl_bench.method import Clips, Context, Session, State, StreamInfo
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, execute, run_id

TRAIN, TEST, SESSIONS = 12, 4, 3  # clips of every session of the tiny benchmark


class Prompted(Honest):
    """Its encoder changes with every session and starts from f_0, as prompt methods do; nothing is trained."""

    name = "prompted"

    def __init__(self, config: Any, backbone: Any, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.sums = torch.zeros(0, backbone.dim)

    def learn(self, session: Session) -> None:
        self.encoder_version += 1
        super().learn(session)

    def encode(self, batch: Clips) -> Tensor:
        return self.queries(batch) * (1 + 0.001 * self.encoder_version)

    def state_dict(self) -> State:
        return {**super().state_dict(), "encoder_version": self.encoder_version}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.encoder_version = state["encoder_version"]


class OwnQuery(Prompted):
    """A plugin of earlier days: a query of its own kind, and the attribute that once asked the runner to keep it."""

    name = "own-query"
    needs_queries = True
    asked: ClassVar[list[int]] = []

    def __init__(self, config: Any, backbone: Any, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.sums = torch.zeros(0, backbone.front_end.n_mels)

    @torch.no_grad()
    def query(self, mel: Tensor) -> Tensor:
        self.asked.append(len(mel))
        return mel.mean(1)


class FailsOnce(Prompted):
    """Raises at the start of session 2 until `mended`."""

    name = "fails-once"
    mended = False

    def learn(self, session: Session) -> None:
        if session.index == 2 and not type(self).mended:
            raise RuntimeError("broken")
        super().learn(session)


@pytest.fixture
def decoded(tiny_material: Material, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all batches of log-mels that are decoded."""
    sizes: list[int] = []
    real = tiny_material.store.batch

    def batch(rows: Any) -> Tensor:
        sizes.append(len(rows))
        return real(rows)

    monkeypatch.setattr(tiny_material.store, "batch", batch)
    return sizes


@pytest.fixture
def no_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the audit, which encodes on purpose without the bank."""
    monkeypatch.setattr(runner._Run, "_audit", lambda self: (True, {"left_out": {"passed": True}}))


def run(method: Any, material: Material, folder: Path, **settings: Any) -> tuple[dict[str, Any], Any, bytes]:
    results = ResultsDir(folder)
    identity, _ = execute(plan_of(method, **settings), material, results)
    return results.run(identity), results.sessions(identity), results.file("predictions", identity).read_bytes()


@pytest.mark.parametrize("batch", [64, 3])
def test_f0_of_every_clip_is_taken_once_in_a_run(
    batch: int, tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sessions, three encoders: a method that asks in every encode is charged one pass a clip."""
    monkeypatch.setattr(runner, "EVAL_BATCH", batch)
    row, sessions, _ = run(Prompted, tiny_material, tmp_path)
    assert sessions["train_passes"].tolist() == [TRAIN] * SESSIONS
    assert sessions["eval_passes"].tolist() == [TEST] * SESSIONS
    depth = tiny_material.backbone.depth
    assert sessions["blocks_needed"].tolist() == [(TRAIN + TEST) * depth] * SESSIONS
    assert sessions["blocks_reused"].tolist() == [0] * SESSIONS
    # 48 clips are two chunks, both of which session 0 needs.
    assert sessions["block_runs"].tolist() == [SESSIONS * (TRAIN + TEST) * depth, 0, 0]
    assert row["block_runs"] == row["blocks_needed"]
    assert row["audit_passed"], "fresh features are those of the bank up to rounding"


@pytest.mark.usefixtures("no_audit")
@pytest.mark.parametrize("method", [Prompted, "ncm", "joint-closed"])
def test_a_second_run_runs_and_decodes_nothing(
    method: Any, tiny_material: Material, tmp_path: Path, decoded: list[int]
) -> None:
    cold = run(method, tiny_material, tmp_path / "cold")
    assert sum(decoded) == SESSIONS * (TRAIN + TEST), "every clip once"
    decoded.clear()
    warm = run(method, tiny_material, tmp_path / "warm")
    assert decoded == []
    assert (warm[0]["block_runs"], warm[0]["blocks_needed"]) == (0, 0)
    assert warm[0]["blocks_reused"] == cold[0]["blocks_needed"] == cold[0]["block_runs"]
    passes = ["train_passes", "eval_passes"]
    assert warm[1][passes].equals(cold[1][passes]), "published costs are those of a run that keeps nothing"
    assert warm[2] == cold[2]


@pytest.mark.parametrize("method", ["ncm", "ranpac", "joint-closed"])
def test_another_method_finds_what_the_first_one_left(method: str, tiny_material: Material, tmp_path: Path) -> None:
    run(Prompted, tiny_material, tmp_path / "first")
    settings = {"fsa": False} if method == "ranpac" else {}
    row, _, _ = run(method, tiny_material, tmp_path / "second", **settings)
    assert row["block_runs"] == 0
    assert row["blocks_reused"] == SESSIONS * (TRAIN + TEST) * tiny_material.backbone.depth
    assert row["audit_passed"]


def test_without_the_bank_the_results_are_the_same(
    tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _, _ = run("ncm", tiny_material, tmp_path / "kept")
    monkeypatch.setenv(bank.SWITCH, "off")
    bare, sessions, _ = run("ncm", tiny_material, tmp_path / "bare")
    for name in ("final_accuracy", "train_passes", "eval_passes", "blocks_needed", "audit_passed"):
        assert kept[name] == bare[name]
    assert sessions["block_runs"].tolist() == [(TRAIN + TEST) * tiny_material.backbone.depth] * SESSIONS


def test_work_in_vain_is_told(tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bank, a method that asks for f_0 in every session runs the same clips again."""
    monkeypatch.setenv(bank.SWITCH, "off")
    _, sessions, _ = run(Prompted, tiny_material, tmp_path)
    depth = tiny_material.backbone.depth
    assert sessions["block_runs"].tolist() == [(TRAIN + TEST * (t + 1)) * depth for t in range(SESSIONS)]
    assert sessions["blocks_needed"].tolist() == [(TRAIN + TEST) * depth] * SESSIONS


def test_an_own_query_is_asked_and_never_replaced(tiny_material: Material, tmp_path: Path) -> None:
    OwnQuery.asked.clear()
    row, _, _ = run(OwnQuery, tiny_material, tmp_path)
    assert row["audit_passed"]
    assert (row["block_runs"], row["blocks_reused"]) == (0, 0)
    tested = sum(TEST * (t + 1) for t in range(SESSIONS))
    assert sum(OwnQuery.asked) >= SESSIONS * TRAIN + tested
    assert row["final_accuracy"] > 2 * 100 / 6


def test_a_query_that_looks_at_its_neighbours_fails_the_audit(tiny_material: Material, tmp_path: Path) -> None:
    class Leaky(OwnQuery):
        name = "leaky-query"

        @torch.no_grad()
        def query(self, mel: Tensor) -> Tensor:
            return mel.mean(1) + mel.mean((0, 1))

    assert not run(Leaky, tiny_material, tmp_path)[0]["audit_passed"]


def test_a_changed_backbone_does_not_hide_behind_the_bank(tiny_material: Material, tmp_path: Path) -> None:
    """It spoils its backbone, and the bank still has the right features: the audit encodes without it."""

    class Spoils(Prompted):
        name = "spoils"

        def learn(self, session: Session) -> None:
            super().learn(session)
            with torch.no_grad():
                for parameter in self.backbone.parameters():
                    parameter.mul_(1.5)

    row = run(Spoils, tiny_material, tmp_path)[0]
    assert not row["audit_passed"]
    assert not json.loads(row["audit"])["features_are_current"]["passed"]


@pytest.mark.usefixtures("no_audit")
def test_nothing_is_counted_twice_across_a_resume(
    tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "CHEAP_SAVE", math.inf)  # whatever a busy disk takes, write every checkpoint
    results, plan = ResultsDir(tmp_path / "results"), plan_of(FailsOnce)
    with pytest.raises(RuntimeError, match="broken"):
        execute(plan, tiny_material, results)
    monkeypatch.setattr(FailsOnce, "mended", True)
    log = Log()
    identity, _ = execute(plan, tiny_material, results, monitor=log)
    assert log.started == [(SESSIONS, 2)]
    sessions = results.sessions(identity)
    assert sessions["train_passes"].tolist() == [TRAIN] * SESSIONS
    assert sessions["eval_passes"].tolist() == [TEST] * SESSIONS
    depth = tiny_material.backbone.depth
    assert sessions["blocks_needed"].tolist() == [(TRAIN + TEST) * depth] * SESSIONS, "its own chunks are not a gift"
    assert sessions["blocks_reused"].tolist() == [0] * SESSIONS


def test_a_checkpoint_with_queries_of_an_earlier_version_is_read(
    tiny_material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, plan = ResultsDir(tmp_path / "results"), plan_of(FailsOnce)
    with pytest.raises(RuntimeError, match="broken"):
        execute(plan, tiny_material, results)
    path = results.path / "work" / run_id(plan, tiny_material) / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    del content["progress"]["counted"]
    content["progress"]["queries"] = {"values": torch.zeros(8, 3), "lengths": [4, 4]}
    for cost in content["progress"]["costs"]:
        del cost["blocks_needed"], cost["blocks_reused"]
    torch.save(content, path)
    monkeypatch.setattr(FailsOnce, "mended", True)
    log = Log()
    identity, _ = execute(plan, tiny_material, results, monitor=log)
    assert (log.started, log.messages) == ([(SESSIONS, 2)], [])
    assert results.run(identity)["blocks_needed"] is None


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
