"""A run: what it costs, what it may see, and that nothing (a kill least of all) changes what it writes."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import learners
import numpy as np
import pandas as pd
import pytest
import torch
from probes import QUICK, Honest, Job, Log, open_material, plan_of, work
from torch import Tensor, nn

from audiocl_bench import backbones, config, files, registry, runner
from audiocl_bench.errors import ConfigError, DataAccessError, MethodError, ResultsError
from audiocl_bench.method import Clips, Method, Session, State
from audiocl_bench.results import SCORES, ResultsDir
from audiocl_bench.runner import Material, Plan, execute, run_id

ROOT = Path(__file__).resolve().parent.parent
TRAIN, TEST = 12, 4  # clips of every session


@pytest.fixture
def results(tmp_path: Path) -> ResultsDir:
    return ResultsDir(tmp_path / "results")


def run(plan: Plan, material: Material, results: ResultsDir, **options: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    """Make a run and return its row and its sessions."""
    identity, status = execute(plan, material, results, **options)
    assert status == "done"
    return results.run(identity), results.sessions(identity)


def checkpoint_of(plan: Plan, material: Material, results: ResultsDir) -> Path:
    return results.path / "work" / run_id(plan, material) / "checkpoint.pt"


class BugError(Exception):
    """What a method's own bug raises."""


class FailsAt(Honest):
    """Raises in session `at` until `mended`."""

    name = "fails-at"
    at, mended = 1, False

    def learn(self, session: Session) -> None:
        if session.index == self.at and not type(self).mended:
            for _ in session.batches(4):
                pass
            raise BugError
        super().learn(session)


# ----------------------------------------------------------------------------------------------- a run from end to end


def test_a_run_tests_every_clip_of_every_session_seen(tiny_material: Material, results: ResultsDir) -> None:
    stream = tiny_material.stream
    row, sessions = run(plan_of("ncm"), tiny_material, results)
    predictions = results.predictions(row["run_id"])
    for t in range(stream.num_sessions):
        tested = predictions[predictions["after_session"] == t]
        expected = {
            stream.clip_ids[r]: stream.classes[stream.labels[r]] for i in range(t + 1) for r in stream.rows(i, "test")
        }
        assert dict(zip(tested["clip_id"], tested["label"], strict=True)) == expected
        assert set(tested["predicted"]) <= {stream.classes[c] for i in range(t + 1) for c in stream.session_classes(i)}
    assert sessions["classes"].tolist() == [[stream.classes[c] for c in stream.session_classes(t)] for t in range(3)]
    assert row["audit_passed"]
    assert results.recompute(row["run_id"]) == {}
    assert row["final_accuracy"] > 2 * 100 / 6, "chords of different pitch are easily told apart"
    assert (row["own_data"], row["stand_in"], row["comparable"]) == (True, True, False)


def test_predictions_are_those_of_the_method_alone(tiny_material: Material, results: ResultsDir) -> None:
    """Recompute the probe's last predictions from the store with NumPy, without runner, session or method."""
    stream, store, front_end = tiny_material.stream, tiny_material.store, tiny_material.backbone.front_end
    row, _ = run(plan_of(Honest), tiny_material, results)
    features = front_end.normalise(store.batch(store.rows(stream.clip_ids))).mean(1).double().numpy()
    train = ~stream.is_test
    means = np.stack([features[train & (stream.labels == c)].mean(0) for c in range(stream.num_classes)])
    nearest = np.linalg.norm(features[:, None] - means, axis=2).argmin(1)
    last = results.predictions(row["run_id"]).query("after_session == 2").set_index("clip_id")["predicted"]
    assert {stream.clip_ids[r]: stream.classes[nearest[r]] for r in np.flatnonzero(stream.is_test)} == last.to_dict()


@pytest.mark.parametrize("backbone", ["eat-tiny", "whisper-tiny-random"])
def test_a_frozen_encoder_sees_every_clip_once(
    backbone: str, tiny_benchmark: Path, tiny_home: Path, results: ResultsDir
) -> None:
    material = open_material(tiny_benchmark, tiny_home, backbone)
    row, sessions = run(plan_of("ncm"), material, results)
    assert sessions["train_passes"].tolist() == [TRAIN] * 3
    assert sessions["eval_passes"].tolist() == [TEST] * 3, "test clips of old sessions are not encoded again"
    depth = material.backbone.depth
    assert sessions["blocks_needed"].tolist() == [(TRAIN + TEST) * depth] * 3
    assert row["block_runs"] == row["blocks_needed"] == 3 * (TRAIN + TEST) * depth
    assert (row["train_passes"], row["eval_passes"]) == (3 * TRAIN, 3 * TEST)
    assert sessions["encoder_version"].tolist() == [0, 0, 0]


def test_an_adapting_encoder_encodes_the_test_clips_again(tiny_material: Material, results: ResultsDir) -> None:
    _, sessions = run(plan_of("finetune"), tiny_material, results)
    assert sessions["encoder_version"].tolist() == [1, 2, 3]
    assert sessions["eval_passes"].tolist() == [TEST, 2 * TEST, 3 * TEST]
    assert sessions["train_passes"].tolist() == [TRAIN * QUICK["finetune"]["epochs"]] * 3


def test_costs_of_a_training_method(tiny_material: Material, results: ResultsDir) -> None:
    row, sessions = run(plan_of("finetune"), tiny_material, results)
    network = tiny_material.backbone
    lora = network.depth * 2 * 2 * network.dim * QUICK["finetune"]["rank"]
    heads = [(network.dim + 1) * classes for classes in (2, 4, 6)]
    assert sessions["trainable_parameters"].tolist() == [lora + head for head in heads]
    assert row["trainable_parameters"] == lora + heads[-1]
    numbers = 2 * 8  # num_seen and encoder_version
    assert sessions["kept_bytes"].tolist() == [4 * (lora + head) + numbers for head in heads]
    assert row["kept_bytes"] == 4 * (lora + heads[-1]) + numbers
    assert (sessions["train_seconds"] > 0).all()
    assert (sessions["peak_memory_mb"] > 0).all()


def test_equal_runs_write_equal_bytes_and_other_seeds_other_ones(tiny_material: Material, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        results = ResultsDir(tmp_path / str(number))
        identity, _ = execute(plan_of("finetune", seed), tiny_material, results)
        found.append((identity, results.file("predictions", identity).read_bytes()))
    assert found[0] == found[1]
    assert found[2][0] != found[0][0]


def test_the_pretrained_backbone_is_never_changed(tiny_material: Material, results: ResultsDir) -> None:
    before = {name: value.clone() for name, value in tiny_material.backbone.state_dict().items()}
    passes = tiny_material.backbone.passes.clips
    run(plan_of("finetune", trains="all", lr_backbone=0.001), tiny_material, results)
    after = tiny_material.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert tiny_material.backbone.passes.clips == passes


@pytest.mark.parametrize("name", registry.names())
def test_a_finished_run_holds_no_memory(
    name: str, tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a cycle of references: Python collects those late, when the next run has its own network and statistics.
    made: list[weakref.ref[Any]] = []
    build = runner._Run.__init__

    def watched(self: runner._Run, *arguments: Any) -> None:
        build(self, *arguments)
        made.extend(map(weakref.ref, (self, self.method, self.method.backbone, self._features)))

    monkeypatch.setattr(runner._Run, "__init__", watched)
    cls = registry.load(name)
    settings = config.build(cls.Config, "tiny", learners.QUICK[name], owner=name)
    torch.optim.SGD([torch.zeros(1)])  # the first optimiser of a process imports what leaves its callers' frames behind
    gc.collect()
    gc.disable()
    try:
        execute(Plan(cls, settings, 0, measure_drift=True), tiny_material, results)
        assert len(made) == 4
        assert [type(part()).__name__ for part in made if part() is not None] == []
    finally:
        gc.enable()


def test_a_joint_method_sees_the_whole_stream_as_one_session(tiny_material: Material, results: ResultsDir) -> None:
    log = Log()
    row, sessions = run(plan_of("joint"), tiny_material, results, monitor=log)
    assert len(sessions) == 1
    only = sessions.iloc[0]
    assert (only["session"], only["train_clips"]) == (2, 3 * TRAIN)
    assert only["classes"] == list(tiny_material.stream.classes)
    predictions = results.predictions(row["run_id"])
    assert predictions["after_session"].unique().tolist() == [2]
    assert len(predictions) == 3 * TEST
    assert row["forgetting"] is None
    assert row["average_incremental_accuracy"] is None
    assert log.started == [(1, 0)]
    assert log.sessions == [(2, pytest.approx(row["final_accuracy"] / 100))]
    assert row["audit_passed"]


def test_the_monitor_hears_session_averages(tiny_material: Material, results: ResultsDir) -> None:
    log = Log()
    _, sessions = run(plan_of("ncm"), tiny_material, results, monitor=log)
    assert log.started == [(3, 0)]
    assert [t for t, _ in log.sessions] == [0, 1, 2]
    assert [100 * a for _, a in log.sessions] == pytest.approx(sessions["accuracy"].tolist())


# ------------------------------------------------------------------------------------------------------------ drift


class Drifting(Honest):
    """Its encoder turns round (x becomes -x) after session 0, so old means are useless and fresh ones right."""

    name = "drifting"
    sign = 1.0

    def adapt(self, session: Session) -> None:
        if session.index == 1:
            self.sign, self.encoder_version = -1.0, 1

    def encode(self, batch: Clips) -> Tensor:
        return self.sign * super().encode(batch)

    def state_dict(self) -> State:
        return {**super().state_dict(), "sign": self.sign}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.sign = state["sign"]


@pytest.mark.parametrize("method", ["ncm", "ranpac", "joint-closed", Honest])
def test_fresh_accuracy_is_the_stored_one_where_the_encoder_rests(
    method: str | type[Method], tiny_material: Material, results: ResultsDir
) -> None:
    row, _ = run(plan_of(method), tiny_material, results)
    assert row["fresh_final_accuracy"] == pytest.approx(row["final_accuracy"], abs=1e-9)


def test_fresh_accuracy_of_a_moving_encoder_is_measured_when_asked(tiny_material: Material, tmp_path: Path) -> None:
    row, _ = run(plan_of(Drifting), tiny_material, ResultsDir(tmp_path / "a"))
    assert row["fresh_final_accuracy"] is None
    measured, sessions = run(plan_of(Drifting, drift=True), tiny_material, ResultsDir(tmp_path / "b"))
    honest, _ = run(plan_of(Honest), tiny_material, ResultsDir(tmp_path / "c"))
    assert measured["final_accuracy"] == row["final_accuracy"] < honest["final_accuracy"]
    assert measured["fresh_final_accuracy"] == pytest.approx(honest["final_accuracy"])
    assert sessions["train_passes"].tolist() == [0, 0, 0], "the second look is not charged to the method"


def test_a_kept_result_without_drift_is_not_silently_kept(tiny_material: Material, results: ResultsDir) -> None:
    run(plan_of(Drifting), tiny_material, results)
    log = Log()
    assert execute(plan_of(Drifting, drift=True), tiny_material, results, monitor=log)[1] == "reused"
    assert "drift was not measured" in log.messages[0]
    row, _ = run(plan_of(Drifting, drift=True), tiny_material, results, existing="replace")
    assert row["fresh_final_accuracy"] is not None


# --------------------------------------------------------------------------------------------- what a method may see


class Watcher(Honest):
    """Writes down what it is given."""

    name = "watcher"
    seen: list[dict[str, Any]]
    tested: list[Clips]

    def learn(self, session: Session) -> None:
        clips = [c for c, _ in session.batches(5)]
        order = torch.cat([c.index for c in clips if c.index is not None])
        type(self).seen.append(
            {
                "mel": torch.cat([c.mel for c in clips]),
                "order": order.tolist(),
                "labels": session.labels.clone(),
                "facts": (session.index, session.classes, session.num_known, session.num_seen, session.num_clips),
            }
        )
        self.tested_from = len(type(self).tested)
        super().learn(session)
        del type(self).tested[self.tested_from :]  # its own training clips

    def encode(self, batch: Clips) -> Tensor:
        type(self).tested.append(batch)
        return super().encode(batch)


def test_a_session_holds_its_own_clips_and_no_others(tiny_material: Material, results: ResultsDir) -> None:
    Watcher.seen, Watcher.tested = [], []
    stream, store, front_end = tiny_material.stream, tiny_material.store, tiny_material.backbone.front_end
    run(plan_of(Watcher), tiny_material, results)
    assert len(Watcher.seen) == 3
    for t, seen in enumerate(Watcher.seen):
        rows = stream.rows(t, "train")
        own = front_end.normalise(store.batch(store.rows([stream.clip_ids[r] for r in rows])))
        assert torch.equal(seen["mel"], own)
        assert seen["labels"].tolist() == stream.labels[rows].tolist()
        assert seen["order"] == list(range(TRAIN))
        assert seen["facts"] == (t, stream.session_classes(t), 2 * t, 2 * t + 2, TRAIN)


def test_test_clips_come_without_label_index_or_order(tiny_material: Material, results: ResultsDir) -> None:
    Watcher.seen, Watcher.tested = [], []
    stream, store, front_end = tiny_material.stream, tiny_material.store, tiny_material.backbone.front_end
    run(plan_of(Watcher), tiny_material, results)
    given = {"_mel", "_count", "_stored", "index", "query"}
    assert all(set(vars(clips)) in (given, {"mel", "index", "query"}) for clips in Watcher.tested)
    assert all(clips.index is None and clips.query is None for clips in Watcher.tested)
    # Clips of two classes in stored order would stand class by class; in the order tested they must not.
    first = Watcher.tested[0].mel
    rows = stream.rows(0, "test")
    stored = front_end.normalise(store.batch(store.rows([stream.clip_ids[r] for r in rows])))
    order = [next(i for i in range(TEST) if torch.equal(stored[i], mel)) for mel in first]
    assert sorted(order) == list(range(TEST))
    assert order != list(range(TEST))


class Hoarder(Honest):
    """Holds on to something of session 0 and uses it in session 1."""

    name = "hoarder"
    how = "session"

    def learn(self, session: Session) -> None:
        if session.index == 0:
            self.held = session
            self.stream = session.batches(5)
            next(self.stream)
        elif self.how == "session":
            next(iter(self.held.batches(5)))
        elif self.how == "generator":
            next(self.stream)
        else:
            _ = self.held.labels
        super().learn(session)


@pytest.mark.parametrize("how", ["session", "generator", "labels"])
def test_a_closed_session_cannot_be_read(
    how: str, tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hoarder, "how", how)
    with pytest.raises(DataAccessError, match="session 0 is closed: a method may read only"):
        execute(plan_of(Hoarder), tiny_material, results)
    assert results.run_ids() == ()


class LooksDuringTest(Honest):
    """Keeps the session and reads it when it is tested."""

    name = "looks-during-test"

    def learn(self, session: Session) -> None:
        super().learn(session)
        self.held = session

    def classify(self, features: Tensor) -> Tensor:
        _ = self.held.labels
        return super().classify(features)


def test_a_session_is_closed_before_the_test(tiny_material: Material, results: ResultsDir) -> None:
    with pytest.raises(DataAccessError):
        execute(plan_of(LooksDuringTest), tiny_material, results)


def test_a_method_knows_only_these_facts_of_the_stream(tiny_material: Material, results: ResultsDir) -> None:
    found: list[Any] = []

    class Asks(Honest):
        name = "asks"

        def learn(self, session: Session) -> None:
            found.append(self.context)
            super().learn(session)

    run(plan_of(Asks, 7), tiny_material, results)
    assert vars(found[0].stream) == {
        "benchmark": "tiny",
        "num_sessions": 3,
        "num_classes": 6,
        "first_session_epochs": 2,
    }
    assert found[0].seed == 7


# -------------------------------------------------------------------------------------------------- wrong predictions


class Columns(Honest):
    name = "columns"
    extra = 1

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        return scores[:, :-1] if self.extra < 0 else torch.cat([scores, scores[:, :1]], 1)


@pytest.mark.parametrize("extra", [-1, 1])
def test_scores_of_the_wrong_width_stop_at_the_first_session(
    extra: int, tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Columns, "extra", extra)
    with pytest.raises(MethodError, match=rf"after session 0 .* shape \[4, {2 + extra}\], but .* is \[4, 2\]"):
        execute(plan_of(Columns), tiny_material, results)


class NotANumber(Honest):
    name = "nan"

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        if scores.shape[1] > 2:
            scores[0, 0] = torch.nan
        return scores


def test_nan_scores_stop_the_run_and_keep_what_was_learned(tiny_material: Material, results: ResultsDir) -> None:
    plan, log = plan_of(NotANumber), Log()
    with pytest.raises(MethodError, match="after session 1 the scores of 1 of 8 test clips are NaN"):
        execute(plan, tiny_material, results, monitor=log)
    assert [t for t, _ in log.sessions] == [0]
    assert checkpoint_of(plan, tiny_material, results).is_file()


class LosesRows(Honest):
    name = "loses-rows"

    def encode(self, batch: Clips) -> Tensor:
        return super().encode(batch)[:1] if batch.index is None else super().encode(batch)


def test_features_of_too_few_clips_are_refused(tiny_material: Material, results: ResultsDir) -> None:
    with pytest.raises(MethodError, match="encode gave 1 features for the 4 test clips of session 0"):
        execute(plan_of(LosesRows), tiny_material, results)


class KeepsArrays(Honest):
    name = "keeps-arrays"

    def state_dict(self) -> State:
        return {"head": {"means": [self.sums.numpy()]}}


def test_a_state_that_cannot_be_stored_is_refused_after_the_first_session(
    tiny_material: Material, results: ResultsDir
) -> None:
    with pytest.raises(MethodError, match=r"state_dict\(\)\['head'\]\['means'\]\[0\] is a numpy.ndarray"):
        execute(plan_of(KeepsArrays), tiny_material, results)


class Notes(Honest):
    name = "notes"
    value: Any = None

    def accumulate(self, session: Session) -> None:
        super().accumulate(session)
        self.context.report.note("x", type(self).value)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (float("nan"), "null"),
        (np.float32(0.5), "0.5"),
        (np.float64("inf"), "null"),
        (np.arange(3), "[0,1,2]"),
        (torch.tensor(2.5), "2.5"),
        ((1, torch.tensor([True])), "[1,[true]]"),
        ({"a": np.int64(3), 2: None}, '{"2":null,"a":3}'),
        ("text", '"text"'),
    ],
)
def test_notes_are_stored_as_plain_values(
    value: Any, stored: str, tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Notes, "value", value)
    _, sessions = run(plan_of(Notes), tiny_material, results)
    assert sessions["diagnostics"].tolist() == [f'{{"x":{stored}}}'] * 3


def test_a_note_that_cannot_be_stored_fails_at_once(
    tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Notes, "value", Path())
    with pytest.raises(MethodError, match="the diagnostic 'x' is a"):
        execute(plan_of(Notes), tiny_material, results)


def test_notes_of_the_drift_measurement_do_not_overwrite_the_runs(tiny_material: Material, results: ResultsDir) -> None:
    class Counts(Drifting):
        name = "counts"
        calls = 0

        def accumulate(self, session: Session) -> None:
            super().accumulate(session)
            self.calls += 1
            self.context.report.note("calls", self.calls)

    _, sessions = run(plan_of(Counts, drift=True), tiny_material, results)
    assert sessions["diagnostics"].tolist() == [f'{{"calls":{n}}}' for n in (1, 2, 3)]


class GlobalDraws(Honest):
    """Draws a projection from PyTorch's global generator, as a layer's default initialisation does."""

    name = "global-draws"

    def __init__(self, config: Any, backbone: Any, context: Any) -> None:
        super().__init__(config, backbone, context)
        self.layer = nn.Linear(backbone.front_end.n_mels, backbone.front_end.n_mels)

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        return self.layer(super().encode(batch))

    def learn(self, session: Session) -> None:
        super().learn(session)
        self.context.report.note("draw", float(torch.rand(())))


def test_draws_from_the_global_generator_follow_the_run_seed(tiny_material: Material, tmp_path: Path) -> None:
    rows, notes = [], []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        state = torch.random.get_rng_state()
        row, sessions = run(plan_of(GlobalDraws, seed), tiny_material, ResultsDir(tmp_path / str(number)))
        assert torch.equal(torch.random.get_rng_state(), state), "the caller's generator is left alone"
        rows.append(row)
        notes.append(sessions["diagnostics"].tolist())
    assert notes[0] == notes[1]
    assert notes[0] != notes[2]
    assert len(set(notes[0])) == 3
    assert rows[0]["audit_passed"]


# ---------------------------------------------------------------------------------------- existing results, run ids


def test_existing_results_are_reused_replaced_or_refused(tiny_material: Material, results: ResultsDir) -> None:
    plan, log = plan_of("ncm"), Log()
    identity, status = execute(plan, tiny_material, results)
    assert status == "done"
    written = results.file("runs", identity).read_bytes()
    assert execute(plan, tiny_material, results, monitor=log) == (identity, "reused")
    assert log.started == []
    assert results.file("runs", identity).read_bytes() == written
    with pytest.raises(ResultsError, match="already has a result: use --existing reuse or --existing replace"):
        execute(plan, tiny_material, results, existing="fail", monitor=log)
    assert log.started == []
    assert execute(plan, tiny_material, results, existing="replace", monitor=log) == (identity, "done")
    assert log.started == [(3, 0)]
    assert results.file("runs", identity).read_bytes() != written, "its costs were measured anew"


def test_a_finished_run_leaves_no_checkpoint(tiny_material: Material, results: ResultsDir) -> None:
    plan = plan_of("ncm")
    identity, _ = execute(plan, tiny_material, results)
    assert [path.name for path in (results.path / "work").iterdir()] == [f"{identity}.lock"]


def test_leftovers_of_killed_processes_are_removed(tiny_material: Material, results: ResultsDir) -> None:
    plan = plan_of("ncm")
    identity = run_id(plan, tiny_material)
    part = checkpoint_of(plan, tiny_material, results).with_name(".checkpoint.pt.abc.part")
    part.parent.mkdir(parents=True)
    part.touch()
    for table in ("runs", "predictions"):
        (results.path / table).mkdir()
        (results.path / table / f".{identity}.parquet.abc.part").touch()
    execute(plan, tiny_material, results)
    assert list(results.path.rglob("*.part")) == []


def test_run_ids_change_with_whatever_changes_predictions(
    tiny_material: Material, tiny_benchmark: Path, tiny_home: Path, tmp_path: Path
) -> None:
    def variant(**changes: Any) -> Material:
        return Material(**{**vars(tiny_material), **changes})

    base = plan_of("ranpac")
    longer = tmp_path / "longer.toml"
    longer.write_text(tiny_benchmark.read_text().replace("first_session_epochs = 2", "first_session_epochs = 3"))
    ids = {
        "base": run_id(base, tiny_material),
        "seed": run_id(plan_of("ranpac", 1), tiny_material),
        "setting": run_id(plan_of("ranpac", rank=2), tiny_material),
        "method": run_id(plan_of("ncm"), tiny_material),
        "order": run_id(base, open_material(tiny_benchmark, tiny_home, order=1)),
        "epochs": run_id(base, open_material(longer, tiny_home)),
        "network": run_id(base, open_material(tiny_benchmark, tiny_home, "whisper-tiny-random")),
        "pool": run_id(base, variant(backbone=backbones.load("eat-tiny", frames=48, pool="mean"))),
        "layer": run_id(base, variant(backbone=backbones.load("eat-tiny", frames=48, layer=2))),
        "frames": run_id(base, variant(backbone=backbones.load("eat-tiny", frames=64))),
        "index": run_id(base, variant(index_hash="0")),
    }
    assert len(set(ids.values())) == len(ids)
    assert run_id(plan_of("ranpac"), open_material(tiny_benchmark, tiny_home)) == ids["base"]
    assert run_id(plan_of("ranpac", drift=True), tiny_material) == ids["base"]


def test_run_ids_change_with_the_audio_of_ones_own_data(tiny_benchmark: Path, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    original = tiny_benchmark.parent / "sounds"
    subprocess.run(["cp", "-r", str(original), str(sounds)], check=True)
    toml = tmp_path / "copy.toml"
    toml.write_text(tiny_benchmark.read_text().replace(original.as_posix(), sounds.as_posix()))
    first = run_id(plan_of("ncm"), open_material(toml, tmp_path / "home"))
    clips = sorted(sounds.rglob("*.wav"))
    clips[0].write_bytes(clips[1].read_bytes())
    assert run_id(plan_of("ncm"), open_material(toml, tmp_path / "home")) != first


# ------------------------------------------------------------------------------------------------------- checkpoints


def test_a_failing_session_loses_nothing(
    tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailsAt, "at", 2)
    monkeypatch.setattr(runner, "CHEAP_SAVE", math.inf)  # whatever a busy disk takes
    plan, log = plan_of(FailsAt), Log()
    with pytest.raises(BugError):
        execute(plan, tiny_material, results, monitor=log)
    assert [t for t, _ in log.sessions] == [0, 1]
    assert checkpoint_of(plan, tiny_material, results).is_file()
    assert results.run_ids() == ()
    monkeypatch.setattr(FailsAt, "mended", True)
    again = Log()
    row, sessions = run(plan, tiny_material, results, monitor=again)
    assert again.started == [(3, 2)]
    assert [t for t, _ in again.sessions] == [2]
    assert sessions["session"].tolist() == [0, 1, 2]
    whole, _ = run(plan_of(Honest), tiny_material, results)
    assert [row[name] for name in SCORES] == [whole[name] for name in SCORES]


@pytest.mark.parametrize(("ratio", "saved"), [(0.0, [1, 2, 3]), (1e9, [1, 3])])
def test_dear_checkpoints_are_written_less_often(
    ratio: float, saved: list[int], tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is skipped, the first session and the last one are kept."""
    monkeypatch.setattr(runner, "CHEAP_SAVE", -1.0)
    monkeypatch.setattr(runner, "CHECKPOINT_RATIO", ratio)
    told: list[int] = []
    save = runner._Run._save
    monkeypatch.setattr(
        runner._Run, "_save", lambda self, state: (told.append(self.progress.next_session), save(self, state))
    )
    run(plan_of(Honest), tiny_material, results)
    assert told == saved


def test_fresh_ignores_a_checkpoint(
    tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, log = plan_of(FailsAt), Log()
    with pytest.raises(BugError):
        execute(plan, tiny_material, results)
    monkeypatch.setattr(FailsAt, "mended", True)
    run(plan, tiny_material, results, fresh=True, monitor=log)
    assert log.started == [(3, 0)]
    assert [t for t, _ in log.sessions] == [0, 1, 2]


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "bit":  # inside a tensor, where torch.load does not look at the checksum
        place = content.find(torch.load(path, weights_only=True)["state"]["sums"].numpy().tobytes())
        assert place > 0
        content[place + 3] ^= 0x40
    elif how == "cut":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    elif how == "foreign":
        torch.save({"something": "else"}, path)
        return
    elif how == "unsafe":
        torch.save({"progress": {}, "state": Log()}, path)
        return
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["bit", "cut", "empty", "foreign", "unsafe"])
def test_a_damaged_checkpoint_is_reported_and_the_run_starts_again(
    how: str, tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, log = plan_of(FailsAt), Log()
    with pytest.raises(BugError):
        execute(plan, tiny_material, results)
    damage(checkpoint_of(plan, tiny_material, results), how)
    monkeypatch.setattr(FailsAt, "mended", True)
    row, _ = run(plan, tiny_material, results, monitor=log)
    assert log.started == [(3, 0)]
    assert len(log.messages) == 1
    assert "checkpoint.pt is unreadable" in log.messages[0]
    assert log.messages[0].endswith("starting again.")
    whole, _ = run(plan_of(Honest), tiny_material, results)
    assert [row[name] for name in SCORES] == [whole[name] for name in SCORES]


def test_a_state_that_half_loads_does_not_stay(
    tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method changed since the checkpoint: what its load_state_dict did before it failed must be forgotten."""
    plan = plan_of(FailsAt)
    with pytest.raises(BugError):
        execute(plan, tiny_material, results)

    def half(self: FailsAt, state: State) -> None:
        if not half_done:
            half_done.append(True)
            self.sums = state["sums"] + 1e6
            raise KeyError("a new name")
        Honest.load_state_dict(self, state)

    half_done: list[bool] = []
    monkeypatch.setattr(FailsAt, "load_state_dict", half)
    monkeypatch.setattr(FailsAt, "mended", True)
    row, _ = run(plan, tiny_material, results)
    whole, _ = run(plan_of(Honest), tiny_material, results)
    assert row["final_accuracy"] == whole["final_accuracy"]
    assert row["audit_passed"]


class ForgetsVersion(Drifting):
    """Does not keep `encoder_version` in its state."""

    name = "forgets-version"
    mended = False

    def learn(self, session: Session) -> None:
        if session.index == 2 and not type(self).mended:
            raise BugError
        super().learn(session)


def test_the_encoder_version_survives_a_resume(
    tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(ForgetsVersion)
    with pytest.raises(BugError):
        execute(plan, tiny_material, results)
    monkeypatch.setattr(ForgetsVersion, "mended", True)
    row, sessions = run(plan, tiny_material, results)
    assert sessions["encoder_version"].tolist() == [0, 1, 1]
    assert row["fresh_final_accuracy"] is None, "the encoder moved, although a rebuilt method counts from 0"


class Bulky(Honest):
    """Keeps more than a write buffer holds, so that the disk fails inside torch.save and not at the end."""

    name = "bulky"

    def state_dict(self) -> State:
        return {**super().state_dict(), "much": torch.zeros(100_000)}


@pytest.mark.parametrize("method", [Honest, Bulky])
def test_a_full_disk_is_said_in_one_sentence(
    method: type[Method], tiny_material: Material, results: ResultsDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return opened(Path("/dev/full") if mode == "wb" else self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ResultsError, match=r"^no space left to write .*checkpoint\.pt: free some space"):
        execute(plan_of(method), tiny_material, results)
    assert list(results.path.rglob("*.part")) == []


def test_results_that_cannot_be_written_are_refused_before_training(tiny_material: Material, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = Log()
    with pytest.raises(ResultsError, match="cannot be written"):
        execute(plan_of("ncm"), tiny_material, ResultsDir(tmp_path / "file"), monitor=log)
    assert log.started == []


# ------------------------------------------------------------------------------------------- kills and two processes


@pytest.fixture(scope="module")
def children() -> Any:
    """Processes that fork from a server which has imported everything and runs no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["probes", "peft", "torch._dynamo"])  # what a first training step imports
    with pytest.MonkeyPatch.context() as patch:  # the server finds modules by PYTHONPATH alone
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        forkserver.ensure_running()
    return context


def spawn(children: Any, job: Job) -> Any:
    child = children.Process(target=work, args=(job,))
    child.start()
    return child


def finish(child: Any) -> int:
    child.join(120)
    assert child.exitcode is not None
    return child.exitcode


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def compare(whole: Path, broken: Path, whole_state: Path, broken_state: Path) -> None:
    """Predictions byte for byte, scores, counted costs and the final state are those of an unbroken run."""
    first, second = ResultsDir(whole), ResultsDir(broken)
    (identity,) = first.run_ids()
    assert second.run_ids() == (identity,)
    assert first.file("predictions", identity).read_bytes() == second.file("predictions", identity).read_bytes()
    counted = (*SCORES, "fresh_final_accuracy", "audit", "audit_passed", "kept_bytes", "train_passes", "eval_passes")
    rows = first.run(identity), second.run(identity)
    assert [rows[0][name] for name in counted] == [rows[1][name] for name in counted]
    assert second.recompute(identity) == {}
    kept = ["session", "diagnostics", "encoder_version", "trainable_parameters", "kept_bytes"]
    sessions = [table.sessions(identity) for table in (first, second)]
    pd.testing.assert_frame_equal(sessions[0][kept], sessions[1][kept])
    # What a killed process had computed for the feature bank is found there by the next one.
    needed = [table["blocks_needed"] + table["blocks_reused"] for table in sessions]
    pd.testing.assert_series_equal(*needed)
    states = [torch.load(path, weights_only=True) for path in (whole_state, broken_state)]
    assert equal(states[0]["state"], states[1]["state"])
    assert equal(states[0]["progress"]["features"], states[1]["progress"]["features"])
    assert not list(broken.rglob("*.part"))
    assert [path.suffix for path in (broken / "work").iterdir()] == [".lock"]


# Where the process dies, one start after the other, and with how many finished sessions each start begins.
DEATHS: dict[str, list[tuple[tuple[str, int], int]]] = {
    "ncm": [
        (("started", 0), 0),
        (("tested", 0), 0),
        (("saving", 0), 0),
        (("saved", 0), 0),
        (("saved", 1), 1),
        (("audited", 0), 3),
        (("moving", 0), 3),
        (("moving", 1), 3),
        (("moving", 2), 3),
    ],
    "finetune": [
        (("epoch", 0), 0),
        (("saved", 0), 0),
        (("epoch", 1), 1),
        (("saving", 0), 1),
        (("saved", 0), 1),
        (("tested", 0), 2),
        (("written", 0), 2),
    ],
    "ranpac": [(("epoch", 1), 0), (("saving", 1), 0), (("saved", 0), 1)],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", list(DEATHS))
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    method: str, children: Any, tiny_benchmark: Path, tiny_home: Path, tmp_path: Path
) -> None:
    open_material(tiny_benchmark, tiny_home)

    def job(folder: str, **more: Any) -> Job:
        return Job(
            tiny_benchmark, tiny_home, tmp_path / folder, method, tmp_path / f"{folder}.txt",
            keep=tmp_path / f"{folder}.pt", **more,
        )  # fmt: skip

    assert finish(spawn(children, job("whole"))) == 0
    assert (tmp_path / "whole.txt").read_text() == "done 0 3"
    for kill, _ in DEATHS[method]:
        assert finish(spawn(children, job("broken", kill=kill))) == -signal.SIGKILL, kill
        assert not (tmp_path / "broken.txt").exists()
    assert finish(spawn(children, job("broken"))) == 0
    status = (tmp_path / "broken.txt").read_text().split()[0]
    assert status == ("reused" if DEATHS[method][-1][0][0] == "written" else "done")
    compare(tmp_path / "whole", tmp_path / "broken", tmp_path / "whole.pt", tmp_path / "broken.pt")


def test_a_killed_run_continues_at_its_last_finished_session(
    children: Any, tiny_benchmark: Path, tiny_home: Path, tmp_path: Path
) -> None:
    open_material(tiny_benchmark, tiny_home)

    def job(folder: str, **more: Any) -> Job:
        return Job(
            tiny_benchmark, tiny_home, tmp_path / folder, "finetune", tmp_path / f"{folder}.txt",
            keep=tmp_path / f"{folder}.pt", **more,
        )  # fmt: skip

    unbroken = spawn(children, job("whole"))
    assert finish(spawn(children, job("broken", kill=("epoch", 3)))) == -signal.SIGKILL
    (checkpoint,) = (tmp_path / "broken" / "work").glob("*/checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["progress"]["next_session"] == 1
    assert finish(spawn(children, job("broken"))) == 0
    assert (tmp_path / "broken.txt").read_text() == "done 1 2"
    assert finish(unbroken) == 0
    compare(tmp_path / "whole", tmp_path / "broken", tmp_path / "whole.pt", tmp_path / "broken.pt")


def test_two_processes_make_one_run(children: Any, tiny_benchmark: Path, tiny_home: Path, tmp_path: Path) -> None:
    """The first holds the run for a while after each session; the second finds it busy, the third waits and reuses."""
    material = open_material(tiny_benchmark, tiny_home)
    results = ResultsDir(tmp_path / "results")

    def job(name: str, **more: Any) -> Job:
        return Job(tiny_benchmark, tiny_home, results.path, "ncm", tmp_path / f"{name}.txt", **more)

    first = spawn(children, job("first", hold=0.7))
    checkpoint = checkpoint_of(plan_of("ncm"), material, results)
    deadline = time.monotonic() + 60
    while not checkpoint.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    third = spawn(children, job("third", wait=True))
    assert execute(plan_of("ncm"), material, results)[1] == "busy"
    assert execute(plan_of("ncm"), material, results, existing="replace", fresh=True)[1] == "busy"
    assert (finish(first), finish(third)) == (0, 0)
    assert (tmp_path / "first.txt").read_text() == "done 0 3"
    assert (tmp_path / "third.txt").read_text() == "reused -1 0"
    identity = run_id(plan_of("ncm"), material)
    assert results.run_ids() == (identity,)
    assert results.recompute(identity) == {}


def test_the_lock_of_a_failed_run_is_released(tiny_material: Material, results: ResultsDir) -> None:
    plan = plan_of(FailsAt)
    for _ in range(2):
        with pytest.raises(BugError):
            execute(plan, tiny_material, results)


@pytest.mark.slow
def test_the_command_line_resumes_after_a_kill(tiny_benchmark: Path, tmp_path: Path) -> None:
    """The real program, killed by the kernel as soon as a checkpoint appears."""
    environment = {**os.environ, "AUDIOCL_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    settings = ("epochs=6", "batch_size=1", "rank=2")

    def command(folder: str) -> list[str]:
        what = ["-m", "finetune", "-b", str(tiny_benchmark), "--backbone", "eat-tiny", "--device", "cpu"]
        how = ["--results", str(tmp_path / folder), "--threads", "1", "--quiet"]
        chosen = [word for item in settings for word in ("--set", item)]
        return [sys.executable, str(ROOT / "cli.py"), "run", *what, *how, *chosen]

    def finished(folder: str) -> None:
        done = subprocess.run(command(folder), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    finished("whole")
    started = subprocess.Popen(command("broken"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "broken").glob("work/*/checkpoint.pt")) and started.poll() is None:
        time.sleep(0.005)
    started.kill()
    assert started.wait() == -signal.SIGKILL
    finished("broken")
    whole, broken = ResultsDir(tmp_path / "whole"), ResultsDir(tmp_path / "broken")
    (identity,) = whole.run_ids()
    assert broken.run_ids() == (identity,)
    assert whole.file("predictions", identity).read_bytes() == broken.file("predictions", identity).read_bytes()
    first, second = whole.run(identity), broken.run(identity)
    assert [first[name] for name in SCORES] == [second[name] for name in SCORES]


# --------------------------------------------------------------------------------------------------------- messages


def test_a_failed_audit_marks_the_result_and_says_so(tiny_material: Material, results: ResultsDir) -> None:
    class Leaky(Honest):
        name = "leaky"

        def encode(self, batch: Clips) -> Tensor:
            features = super().encode(batch)
            return features - features.mean(0)

    log = Log()
    row, _ = run(plan_of(Leaky), tiny_material, results, monitor=log)
    assert row["audit_passed"] is False
    assert any("AUDIT FAILED" in text and "batch_independence" in text for text in log.messages)


def test_a_method_that_declares_its_leak_is_marked_too(tiny_material: Material, results: ResultsDir) -> None:
    class Declared(Honest):
        name = "declared"
        leaks_across_batch = True

    assert run(plan_of(Declared), tiny_material, results)[0]["audit_passed"] is False


def test_diverging_training_ends_in_a_sentence(tiny_material: Material, results: ResultsDir) -> None:
    with pytest.raises(ConfigError, match="training diverged in stage 'train' of session 0"):
        execute(plan_of("finetune", trains="all", lr_backbone=1e30, lr_head=1e30), tiny_material, results)


def test_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with runner.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with runner.threads(None):
        assert torch.get_num_threads() == before


def test_the_private_cache_is_private() -> None:
    assert "home" in str(files.home())
