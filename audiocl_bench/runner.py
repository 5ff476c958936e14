"""One run = (method, benchmark, protocol, order, seed): sessions one by one, resumable, every prediction kept."""

from __future__ import annotations

import copy
import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from audiocl_bench import audit, files, seeding
from audiocl_bench.backbones.base import Backbone, PassCounter
from audiocl_bench.bank import RunFeatures
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.config import MethodConfig
from audiocl_bench.errors import MethodError, ResultsError
from audiocl_bench.ledger import mark
from audiocl_bench.memory import PeakMemory, give_back_freed
from audiocl_bench.method import (
    ClosedFormMethod,
    Context,
    LazyClips,
    Method,
    Session,
    State,
    StreamInfo,
    kept_bytes,
    require_storable,
)
from audiocl_bench.readout import Readout
from audiocl_bench.results import ResultsDir, build_result, make_run_id, provenance
from audiocl_bench.store import Store
from audiocl_bench.streams import Stream
from audiocl_bench.training import check_device, faster

Existing = Literal["reuse", "replace", "fail"]
Status = Literal["done", "reused", "busy"]

EVAL_BATCH = 64
AUDIT_CLIPS = 16
CLASSIFY_BATCH = 1024  # rows of features: a wide random projection of them in float64 stays under 100 MB
CHEAP_SAVE = 0.005  # seconds; a checkpoint that took less is written after every session ...
CHECKPOINT_RATIO = 20  # ... and a dearer one when this many times its cost has passed since


class Monitor(Protocol):
    """Who watches runs: the command line's progress display, or nobody (`Silent`)."""

    def run_started(self, run_id: str, sessions: int, done: int) -> None:
        """A run begins, or continues after `done` sessions."""

    def epoch(self, session: int, stage: str, epoch: int, epochs: int, clips: int, seconds: float, loss: float) -> None:
        """A training stage finished an epoch of `clips` clips in `seconds`."""

    def session_done(self, session: int, accuracy: float) -> None:
        """A session was learned and tested; `accuracy` is the mean over sessions so far, a fraction."""

    def message(self, text: str) -> None:
        """Something the user should read, in one line."""


class Silent:
    """A monitor that shows nothing."""

    def run_started(self, run_id: str, sessions: int, done: int) -> None:
        """Show nothing."""

    def epoch(self, session: int, stage: str, epoch: int, epochs: int, clips: int, seconds: float, loss: float) -> None:
        """Show nothing."""

    def session_done(self, session: int, accuracy: float) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Material:
    """What a run works on: the stream, its prepared clips and the pretrained backbone (copied, never changed)."""

    benchmark: Benchmark
    stream: Stream
    store: Store
    backbone: Backbone
    index_hash: str


@dataclass(frozen=True)
class Plan:
    """One run to be made.

    Raises:
        ConfigError: a setting that the device is not meant for.
    """

    method: type[Method]
    config: MethodConfig
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    measure_drift: bool = False

    def __post_init__(self) -> None:
        check_device(self.config, self.device)

    @property
    def label(self) -> str:
        """The method as the user names it, `METHOD` or `METHOD@PRESET`."""
        return f"{self.method.name}@{self.config.variant}" if self.config.variant else self.method.name


def run_id(plan: Plan, material: Material) -> str:
    """Return the run's id: readable, and different whenever anything that decides the predictions differs."""
    backbone, stream = material.backbone, material.stream
    settings = {
        "config": plan.config.as_dict(),
        "split": stream.hash,
        "index": material.index_hash,
        "weights": backbone.weights_hash,
        "pool": backbone.pool,
        "layer": backbone.layer,
        "front_end": backbone.front_end.describe(),
    }
    if plan.method.source_hash:
        settings["source"] = plan.method.source_hash
    if material.benchmark.own_data or material.benchmark.mini:  # not frozen: what the owner or our synthesis may change
        settings["own"] = {"epochs": material.benchmark.first_session_epochs, "audio": material.store.key}
    return make_run_id(
        method=plan.method.name,
        benchmark=stream.benchmark,
        protocol=stream.protocol,
        backbone=backbone.name,
        order=stream.order,
        seed=plan.seed,
        config_hash=files.sha256_json(settings),
    )


def execute(
    plan: Plan,
    material: Material,
    results: ResultsDir,
    *,
    existing: Existing = "reuse",
    fresh: bool = False,
    wait: bool = False,
    monitor: Monitor | None = None,
) -> tuple[str, Status]:
    """Make one run, or reuse or continue what is there.

    Args:
        plan: method, settings, seed, device.
        material: stream, clips and backbone.
        results: where the result goes; unfinished runs keep their checkpoint in its folder `work`.
        existing: what happens when the run already has a result: "reuse" it, "replace" it, or "fail".
        fresh: ignore a checkpoint and start at the first session.
        wait: wait for another process that is making the same run (then reuse its result); else return "busy".
        monitor: who is told about progress.

    Returns:
        the run's id, and whether it was done now, reused, or is busy elsewhere.

    Raises:
        ResultsError: the result exists and `existing` is "fail", or the directory cannot be written.
        AudioclError: whatever bad input the method or data raises; finished sessions stay checkpointed.
    """
    identity = run_id(plan, material)
    work = results.work / identity
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ResultsError(files.explain_os_error(cause, work)) from cause
    lock = FileLock(work.parent / f"{identity}.lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        return identity, "busy"
    except OSError as cause:
        raise ResultsError(files.explain_os_error(cause, work)) from cause
    try:
        if results.has(identity):
            if existing == "reuse":
                _clean(results, identity)
                wants_drift = plan.measure_drift and issubclass(plan.method, ClosedFormMethod)
                if wants_drift and results.run(identity)["fresh_final_accuracy"] is None:
                    _tell(monitor, f"{identity} is kept although its drift was not measured: --existing replace does.")
                return identity, "reused"
            if existing == "fail":
                raise ResultsError(f"run {identity} already has a result: use --existing reuse or --existing replace.")
        _Run(plan, material, identity, work / "checkpoint.pt", monitor or Silent()).complete(results, fresh=fresh)
        _clean(results, identity)
        return identity, "done"
    finally:
        lock.release()


@dataclass(frozen=True)
class Learned:
    """A learner after its last session, with what it takes to test it in other ways than a run does.

    Attributes:
        method: the learner.
        checks: outcome of every audit, as stored with a run.
        tests: rows of the test clips of every session, in the order a run tests them.
        labels: label of every row.
        read: rows -> normalised log-mels [B, T, M] on the learner's device.
    """

    method: Method
    checks: dict[str, Any]
    tests: list[np.ndarray]
    labels: np.ndarray
    read: Callable[[np.ndarray], Tensor]


def learn_all(plan: Plan, material: Material, *, monitor: Monitor | None = None) -> Learned:
    """Learn a whole stream as a run does, audit the learner and return it; nothing is stored."""
    run = _Run(plan, material, run_id(plan, material), Path("nowhere"), monitor or Silent())
    return run.learned()


def _clean(results: ResultsDir, identity: str) -> None:
    """Remove the checkpoint, and the unfinished files that killed processes left. Call only with the run's lock."""
    shutil.rmtree(results.work / identity, ignore_errors=True)
    results.tidy(identity)


def _tell(monitor: Monitor | None, text: str) -> None:
    (monitor or Silent()).message(text)


@dataclass
class _Progress:
    """What a run has done so far; with the method's state it is the whole checkpoint."""

    next_session: int = 0
    started_at: str = ""
    predicted: list[Tensor] = field(default_factory=list)  # after each evaluated session, int32 over its tested rows
    costs: list[dict[str, Any]] = field(default_factory=list)
    features: dict[int, Tensor] = field(default_factory=dict)  # test features by session, for `features_version`
    features_version: int = -1
    counted: list[dict[str, Any]] = field(default_factory=list)  # see `RunFeatures.state_dict`


class _Run:
    """The life of one run in memory."""

    def __init__(self, plan: Plan, material: Material, identity: str, checkpoint: Path, monitor: Monitor) -> None:
        self.plan, self.material, self.identity = plan, material, identity
        self.checkpoint, self.monitor = checkpoint, monitor
        self.stream = material.stream
        self.whole = plan.method.takes_whole_stream
        self.reporter = _SessionReporter(monitor)
        self.progress = _Progress(started_at=_now())
        self._shuffled: dict[int, np.ndarray] = {}
        self._saved_at, self._save_seconds = -math.inf, 0.0
        self._places = material.store.rows(self.stream.clip_ids)
        self.method = self._build()
        self._features = RunFeatures(material.store, material.backbone, plan.device, monitor.message)

    # ---- the life of a run ------------------------------------------------------------------------------------------

    def complete(self, results: ResultsDir, *, fresh: bool) -> None:
        if not fresh:
            self._resume()
        last = self.stream.num_sessions - 1
        steps = [last] if self.whole else list(range(self.stream.num_sessions))
        self.monitor.run_started(self.identity, len(steps), sum(t < self.progress.next_session for t in steps))
        for t in steps:
            if t >= self.progress.next_session:
                self._session(t)
        passed, checks = self._audit()
        notes: dict[str, Any] = {"backbone": self.material.backbone.describe()}
        if self.plan.method.source_hash:
            notes["method_source_sha256"] = self.plan.method.source_hash
        fresh_accuracy = self._fresh_accuracy() if isinstance(self.method, ClosedFormMethod) else None
        self._write(results, passed, checks, notes, fresh_accuracy)
        if not passed:
            failed = ", ".join(name for name, check in checks.items() if not check["passed"])
            self.monitor.message(f"AUDIT FAILED for {self.identity}: {failed}. The result is marked.")

    def learned(self) -> Learned:
        last = self.stream.num_sessions - 1
        steps = [last] if self.whole else list(range(self.stream.num_sessions))
        self.monitor.run_started(self.identity, len(steps), 0)
        for t in steps:
            self._learn(t)
            self.monitor.session_done(t, math.nan)
        self._predict(last)
        _, checks = self._audit()
        tests = [self._test_rows(i) for i in range(self.stream.num_sessions)]
        read = self._reader(np.arange(len(self.stream.clip_ids)))
        return Learned(self.method, checks, tests, self.stream.labels, lambda rows: read(rows).to(self.plan.device))

    def _learn(self, t: int) -> Session:
        """Let the method learn session t; return the session, closed."""
        self.reporter.begin(t)
        session = self._open(t)
        try:
            with self._global_generator("session", t):
                self.method.learn(session)
        finally:
            session.close()
        return session

    def _build(self) -> Method:
        backbone = copy.deepcopy(self.material.backbone).to(self.plan.device)
        info = StreamInfo(
            self.stream.benchmark,
            1 if self.whole else self.stream.num_sessions,
            self.stream.num_classes,
            self.material.benchmark.first_session_epochs,
        )
        steps = faster(self.plan.config, backbone)
        context = Context(self.plan.seed, info, self.plan.device, self.reporter, steps)
        with self._global_generator("build"):
            return self.plan.method(self.plan.config, backbone, context)

    @contextmanager
    def _global_generator(self, *purpose: str | int) -> Iterator[None]:
        """Seed torch's global generator inside the block, for layers that draw from it, and restore it afterwards."""
        device = self.plan.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seeding.derive(self.plan.seed, "global generator", *purpose))
            yield

    def _session(self, t: int) -> None:
        """Learn session t, test all sessions so far, write the checkpoint."""
        method, passes = self.method, self.method.backbone.passes
        give_back_freed()
        memory = PeakMemory(self.plan.device)
        before = _work(passes)
        begun, clips = time.perf_counter(), passes.clips
        session = self._learn(t)
        train_seconds, train_clips = time.perf_counter() - begun, passes.clips - clips

        begun, clips = time.perf_counter(), passes.clips
        predicted = self._predict(t)
        state = method.state_dict()
        require_storable(state, owner=self.plan.method.name)
        self.progress.predicted.append(predicted)
        self.progress.costs.append(
            {
                "session": t,
                "train_clips": session.num_clips,
                "clips_read": session.clips_handed_out,
                "train_seconds": train_seconds,
                "eval_seconds": time.perf_counter() - begun,
                "train_passes": train_clips,
                "eval_passes": passes.clips - clips,
                **{name: now - before[name] for name, now in _work(passes).items()},
                "peak_memory_mb": memory.peak_mb(),
                "trainable_parameters": self.reporter.most_trainable,
                "kept_bytes": kept_bytes(state),
                "encoder_version": method.encoder_version,
                "diagnostics": dict(self.reporter.notes),
            }
        )
        self.progress.next_session = t + 1
        self._save_if_due(state)
        self.monitor.session_done(t, self._accuracy(predicted, t))

    # ---- what the method may see ------------------------------------------------------------------------------------

    def _open(self, t: int) -> Session:
        """Open session t for learning; for a joint method, all sessions as one."""
        stream = self.stream
        sessions = range(stream.num_sessions) if self.whole else [t]
        rows = np.concatenate([stream.rows(i, "train") for i in sessions])
        classes = tuple(label for i in sessions for label in stream.session_classes(i))
        places = self._places[rows]
        return Session(
            0 if self.whole else t,
            classes,
            min(classes),
            stream.labels[rows],
            self._reader(rows),
            self.plan.device,
            stored=lambda positions, readout: self._stored(readout, places[positions]),
            numbers=places,
        )

    def _stored(self, readout: Readout, places: np.ndarray) -> Tensor | None:
        """Return what the feature bank has of these clips, counted as passes of this run's network."""
        return self._features.read(readout, places, self.method.backbone.passes)

    def _reader(self, rows: np.ndarray) -> Callable[[np.ndarray], Tensor]:
        store, front_end, places = self.material.store, self.material.backbone.front_end, self._places[rows]
        return lambda positions: front_end.normalise(store.batch(places[positions]))

    def _clips(self, rows: np.ndarray) -> LazyClips:
        """Return test clips as a method gets them: decoded, or looked up in the feature bank, when it asks."""
        read, places = self._reader(rows), self._places[rows]
        return LazyClips(
            lambda: mark(read(np.arange(len(rows))).to(self.plan.device), places),
            count=len(rows),
            stored=lambda readout: self._stored(readout, places),
        )

    def _test_rows(self, i: int) -> np.ndarray:
        """Test clips of session i, in an order that tells nothing of their class."""
        if i not in self._shuffled:
            rows = self.stream.rows(i, "test")
            self._shuffled[i] = rows[seeding.numpy_generator(self.plan.seed, "test order", i).permutation(len(rows))]
        return self._shuffled[i]

    @torch.no_grad()
    def _predict(self, t: int) -> Tensor:
        """Predict the test clips of sessions 0..t; `encode` runs once per clip and encoder version."""
        progress, method = self.progress, self.method
        if progress.features_version != method.encoder_version:
            progress.features, progress.features_version = {}, method.encoder_version
        for i in range(t + 1):
            if i not in progress.features:
                rows = self._test_rows(i)
                batches = np.array_split(rows, range(EVAL_BATCH, len(rows), EVAL_BATCH))
                progress.features[i] = torch.cat([method.encode(self._clips(batch)) for batch in batches]).cpu()
                if (found := len(progress.features[i])) != len(rows):
                    raise MethodError(
                        f"method {self.plan.method.name}: encode gave {found} features for the {len(rows)} test clips "
                        f"of session {i}, but one row per clip is needed."
                    )
        # All sessions at once: TIMIT has 315 of them with a handful of clips each.
        features = torch.cat([progress.features[i] for i in range(t + 1)])
        return torch.cat([self._classified(part, t) for part in features.split(CLASSIFY_BATCH)])

    def _classified(self, features: Tensor, t: int) -> Tensor:
        """Return the predicted labels, int32; refuse what is no prediction now, not after the last session."""
        scores = self.method.classify(features.to(self.plan.device))
        wanted, found = (len(features), int(sum(self.stream.session_sizes[: t + 1]))), tuple(scores.shape)
        if found != wanted:
            raise MethodError(
                f"method {self.plan.method.name}: after session {t} the scores of {wanted[0]} test clips have "
                f"shape {list(found)}, but one row per clip and one column per class seen is {list(wanted)}."
            )
        if count := int(scores.isnan().any(dim=1).sum()):
            raise MethodError(
                f"method {self.plan.method.name}: after session {t} the scores of {count} of {len(scores)} test "
                "clips are NaN; training may have diverged (lower the learning rate)."
            )
        return scores.argmax(1).to("cpu", torch.int32)

    def _tested_rows(self, t: int) -> np.ndarray:
        return np.concatenate([self._test_rows(i) for i in range(t + 1)])

    def _accuracy(self, predicted: Tensor, t: int) -> float:
        """Mean over sessions 0..t of the accuracy on their test clips."""
        rows = self._tested_rows(t)
        right = predicted.numpy() == self.stream.labels[rows]
        session = self.stream.session_of_class[self.stream.labels[rows]]
        return float(np.mean(np.bincount(session, right, t + 1) / np.bincount(session, minlength=t + 1)))

    # ---- checkpoint -------------------------------------------------------------------------------------------------

    def _save_if_due(self, state: State) -> None:
        """Write the checkpoint, unless it is dear and was just written.

        What a kill can lose is thereby never more than `CHECKPOINT_RATIO` times what saving it would have cost. Some of
        TIMIT's 315 sessions are far shorter than the writing of all statistics.
        """
        last = self.progress.next_session == self.stream.num_sessions
        wait = CHECKPOINT_RATIO * self._save_seconds if self._save_seconds > CHEAP_SAVE else 0.0
        if last or time.perf_counter() - self._saved_at >= wait:
            begun = time.perf_counter()
            self._save(state)
            self._saved_at = time.perf_counter()
            self._save_seconds = self._saved_at - begun

    def _save(self, state: State) -> None:
        progress = self.progress
        # Many small tensors are slow to store: 315 sessions of TIMIT have four test clips each.
        features = [progress.features[i] for i in range(len(progress.features))]
        progress.counted = self._features.state_dict()
        packed = {**vars(progress), "predicted": _pack(progress.predicted), "features": _pack(features)}
        content = {"progress": packed, "state": state}
        # Into a Python file, because closing it says OSError on a full disk; torch alone says RuntimeError.
        with files.atomic_path(self.checkpoint, error=ResultsError) as temporary, temporary.open("wb") as stream:
            torch.save(content, stream)

    def _resume(self) -> None:
        for part in self.checkpoint.parent.glob(f".{self.checkpoint.name}.*.part"):  # of a process that was killed
            part.unlink(missing_ok=True)
        if not self.checkpoint.is_file():
            return
        try:
            with zipfile.ZipFile(self.checkpoint) as archive:  # torch.load does not look at the checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            content["progress"].pop("queries", None)  # kept by earlier versions
            progress = _Progress(**content["progress"])
            progress.predicted = _unpack(content["progress"]["predicted"])
            progress.features = dict(enumerate(_unpack(content["progress"]["features"])))
            self.method.load_state_dict(content["state"])
            self._features.load_state_dict(progress.counted)
        except Exception as cause:
            self.monitor.message(f"{self.checkpoint} is unreadable ({type(cause).__name__}): starting again.")
            self.method = self._build()
            return
        self.progress = progress
        self.method.encoder_version = progress.features_version  # a method need not keep it itself

    # ---- the end of a run -------------------------------------------------------------------------------------------

    def _audit(self) -> tuple[bool, dict[str, Any]]:
        stream, method = self.stream, self.method
        rows = np.concatenate([stream.rows(i, "test") for i in range(stream.num_sessions)])
        pick = seeding.numpy_generator(self.plan.seed, "audit")
        sample = pick.permutation(rows)[:AUDIT_CLIPS]
        mel = self._reader(sample)(np.arange(len(sample))).to(self.plan.device)
        order = torch.from_numpy(pick.permutation(len(sample)))
        costs = self.progress.costs
        stored = {
            int(row): features
            for i, part in self.progress.features.items()
            for row, features in zip(self._test_rows(i), part, strict=True)
        }
        checks = [
            audit.features_are_current(method, mel, torch.stack([stored[int(row)] for row in sample])),
            audit.batch_independence(method, mel, seed_order=order),
            audit.repeatability(method, mel),
            audit.seen_classes_only(method, mel, stream.num_classes),
            audit.state_is_complete(method, self._build, mel),
            audit.data_access([c["clips_read"] for c in costs], [c["train_clips"] for c in costs]),
        ]
        passed = all(check.passed for check in checks) and not self.method.leaks_across_batch
        return passed, audit.report(checks)

    def _fresh_accuracy(self) -> float | None:
        """Final accuracy (percent) with the head's statistics recomputed by the final encoder, or None if not wanted.

        Free where the encoder has not changed since the first session's statistics were taken.
        """
        assert isinstance(self.method, ClosedFormMethod)
        last = self.stream.num_sessions - 1
        if self.whole or self.progress.costs[0]["encoder_version"] == self.method.encoder_version:
            return 100 * self._accuracy(self.progress.predicted[-1], last)
        if not self.plan.measure_drift:
            return None
        self.method.reset_statistics()
        for t in range(self.stream.num_sessions):
            session = self._open(t)
            self.method.num_seen = session.num_seen
            self.method.accumulate(session)
            session.close()
        return 100 * self._accuracy(self._predict(last), last)

    def _write(
        self, results: ResultsDir, passed: bool, checks: dict[str, Any], notes: dict[str, Any], fresh: float | None
    ) -> None:
        plan, material, stream = self.plan, self.material, self.stream
        backbone = material.backbone
        meta = {
            "run_id": self.identity,
            "method": plan.method.name,
            "benchmark": stream.benchmark,
            "protocol": stream.protocol,
            "backbone": backbone.name,
            "order": stream.order,
            "seed": plan.seed,
            "fresh_final_accuracy": fresh,
            "own_data": material.benchmark.own_data,
            "mini": material.benchmark.mini,
            "variant": self.plan.config.variant,
            "stand_in": backbone.stand_in,
            "audit_passed": passed,
            "audit": checks,
            "first_session_epochs": material.benchmark.first_session_epochs,
            "split_hash": stream.hash,
            "index_hash": material.index_hash,
            "audio_key": material.store.key,
            "weights_hash": backbone.weights_hash,
            "front_end": backbone.front_end.describe(),
            "method_config": plan.config.as_dict(),
            "notes": notes,
            "started_at": self.progress.started_at,
            "finished_at": _now(),
            **provenance(plan.device),
        }
        sessions = pd.DataFrame(self.progress.costs).drop(columns="clips_read")
        sessions["classes"] = [
            list(stream.classes) if self.whole else [stream.classes[c] for c in stream.session_classes(t)]
            for t in sessions["session"]
        ]
        results.write(build_result(meta, sessions, self._predictions()), replace=True)

    def _predictions(self) -> pd.DataFrame:
        """One row per (session after which was tested, test clip)."""
        stream, names = self.stream, np.array(self.stream.classes, dtype=object)
        parts = []
        for cost, predicted in zip(self.progress.costs, self.progress.predicted, strict=True):
            rows = self._tested_rows(cost["session"])
            parts.append(
                pd.DataFrame(
                    {
                        "after_session": cost["session"],
                        "clip_id": [stream.clip_ids[row] for row in rows],
                        "session": stream.session_of_class[stream.labels[rows]],
                        "label": names[stream.labels[rows]],
                        "predicted": names[predicted.numpy()],
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)


def _work(passes: PassCounter) -> dict[str, int]:
    """Return the columns of the results that count blocks x clips."""
    return {"block_runs": passes.block_runs, "blocks_needed": passes.needed, "blocks_reused": passes.reused}


def _pack(parts: list[Tensor]) -> dict[str, Any]:
    """Join tensors along their first axis, with their lengths."""
    return {"values": torch.cat(parts) if parts else torch.zeros(0), "lengths": [len(part) for part in parts]}


def _unpack(packed: dict[str, Any]) -> list[Tensor]:
    return list(packed["values"].split(packed["lengths"])) if packed["lengths"] else []


class _SessionReporter:
    """Collect a session's diagnostics and pass progress on to the monitor."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.begin(0)

    def begin(self, session: int) -> None:
        self._session, self._clock = session, time.perf_counter()
        self.notes: dict[str, Any] = {}
        self.most_trainable = 0

    def epoch(self, stage: str, epoch: int, epochs: int, clips: int, loss: float) -> None:
        now = time.perf_counter()
        self._monitor.epoch(self._session, stage, epoch, epochs, clips, now - self._clock, loss)
        self._clock = now

    def note(self, name: str, value: Any) -> None:
        self.notes[name] = _plain(value, name)

    def trainable(self, parameters: int) -> None:
        self.most_trainable = max(self.most_trainable, parameters)


def _plain(value: Any, name: str) -> Any:
    """Return a diagnostic as JSON would give it back; scalars become numbers, what is not finite becomes null."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(item, name) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, name) for key, item in value.items()}
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        raise MethodError(
            f"the diagnostic '{name}' is a {type(value).__name__}: note a number, a text, or a list or dict of them."
        ) from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` CPU threads inside the block (None: leave as it is)."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
