"""Small methods with one known property each, and runs in child processes that are killed at a chosen point."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiocl_bench import backbones, benchmarks, config, corpora, registry, runner, store
from audiocl_bench.method import Clips, ClosedFormMethod, Method, MethodConfig, Session, State
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan

QUICK: dict[str, dict[str, Any]] = {
    "ncm": {},
    "ranpac": {"epochs": 2, "width": 64, "batch_size": 4, "ridge": 1.0, "lora_scale": 2.0},
    "finetune": {"epochs": 2, "batch_size": 4, "rank": 2},
    "joint": {"epochs": 2, "batch_size": 8, "rank": 2, "min_steps": 0},
    "joint-closed": {"width": 64, "ridge": 1.0},
}


def open_material(toml: Path, home: Path, backbone: str = "eat-tiny", order: int = 0) -> Material:
    """Open a benchmark of one's own with prepared clips and a tiny backbone."""
    benchmark = benchmarks.get(str(toml))
    stream, clips = benchmark.open(None, benchmark.protocols[0], order)
    network = backbones.load(backbone, frames=benchmark.frames)
    prepared = store.prepare(clips, network.front_end, name=benchmark.name, home=home, workers=1, progress=False)
    names = [stream.classes[label] for label in stream.labels]
    index = clips[["clip_id"]].assign(label=names)
    return Material(benchmark, stream, prepared, network, corpora.index_hash(index))


def plan_of(method: str | type[Method], seed: int = 0, *, drift: bool = False, **settings: Any) -> Plan:
    """Plan a run of a built-in method with quick settings, or of a probe."""
    if isinstance(method, str):
        cls, given = registry.load(method), {**QUICK[method], **settings}
        return Plan(cls, config.build(cls.Config, "tiny", given, owner=method), seed, measure_drift=drift)
    return Plan(method, method.Config(**settings), seed, measure_drift=drift)


class Log:
    """A monitor that writes down everything it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.epochs: list[tuple[int, str, int]] = []
        self.sessions: list[tuple[int, float]] = []
        self.messages: list[str] = []

    def run_started(self, run_id: str, sessions: int, done: int) -> None:
        self.started.append((sessions, done))

    def epoch(self, session: int, stage: str, epoch: int, epochs: int, clips: int, seconds: float, loss: float) -> None:
        self.epochs.append((session, stage, epoch))

    def session_done(self, session: int, accuracy: float) -> None:
        self.sessions.append((session, accuracy))

    def message(self, text: str) -> None:
        self.messages.append(text)


# ---------------------------------------------------------------------------------------------------------- methods


class Honest(ClosedFormMethod):
    """Nearest class mean of the mean log-mel. It needs no backbone, so a run takes milliseconds."""

    name = "honest"
    Config = MethodConfig

    def __init__(self, config: MethodConfig, backbone: Any, context: Any) -> None:
        super().__init__(config, backbone, context)
        self.reset_statistics()

    def reset_statistics(self) -> None:
        self.sums = torch.zeros(0, self.backbone.front_end.n_mels)
        self.counts = torch.zeros(0)

    def accumulate(self, session: Session) -> None:
        features, labels = self.session_features(session)
        grow = session.num_seen - len(self.counts)
        self.sums = torch.cat([self.sums, torch.zeros(grow, self.sums.shape[1])]).index_add(0, labels, features)
        self.counts = torch.cat([self.counts, torch.zeros(grow)]).index_add(0, labels, torch.ones(len(labels)))

    def encode(self, batch: Clips) -> Tensor:
        return batch.mel.mean(1)

    def classify(self, features: Tensor) -> Tensor:
        return -torch.cdist(features, self.sums / self.counts[:, None])

    def state_dict(self) -> State:
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: State) -> None:
        self.sums, self.counts = state["sums"], state["counts"]


# ------------------------------------------------------------------------------------------------- killed processes


@dataclass(frozen=True)
class Job:
    """One run in a process of its own.

    Attributes:
        kill: where the process kills itself (SIGKILL): an event of `_arm` and its number; None runs to the end.
        keep: copy the last checkpoint of a finished run here, to compare final states.
        report: file that is told "STATUS STARTED DONE" at the end.
    """

    toml: Path
    home: Path
    results: Path
    method: str
    report: Path
    settings: dict[str, Any] = field(default_factory=dict)
    kill: tuple[str, int] | None = None
    keep: Path | None = None
    wait: bool = False
    hold: float = 0.0


class _Deadly(Log):
    """Count events; the chosen one kills the process, so nothing (no `finally`, no buffer) runs after it."""

    def __init__(self, job: Job, checkpoint: Path) -> None:
        super().__init__()
        self._job, self._checkpoint = job, checkpoint
        self._seen: dict[str, int] = {}

    def happened(self, event: str) -> None:
        number = self._seen.get(event, 0)
        self._seen[event] = number + 1
        if self._job.kill == (event, number):
            os.kill(os.getpid(), signal.SIGKILL)

    def run_started(self, run_id: str, sessions: int, done: int) -> None:
        super().run_started(run_id, sessions, done)
        self.happened("started")

    def epoch(self, session: int, stage: str, epoch: int, epochs: int, clips: int, seconds: float, loss: float) -> None:
        super().epoch(session, stage, epoch, epochs, clips, seconds, loss)
        self.happened("epoch")

    def session_done(self, session: int, accuracy: float) -> None:
        super().session_done(session, accuracy)
        time.sleep(self._job.hold)
        if self._job.keep is not None:
            self._job.keep.write_bytes(self._checkpoint.read_bytes())
        self.happened("saved")


def work(job: Job) -> None:
    """Make a run, and die where the job says. Called in a child process."""
    torch.set_num_threads(1)
    os.environ["AUDIOCL_HOME"] = str(job.results.with_suffix(".home"))  # kept features are this folder's own
    material, plan = open_material(job.toml, job.home), plan_of(job.method, **job.settings)
    results = ResultsDir(job.results)
    checkpoint = results.path / "work" / runner.run_id(plan, material) / "checkpoint.pt"
    monitor = _Deadly(job, checkpoint)
    _arm(monitor)
    _, status = runner.execute(plan, material, results, wait=job.wait, monitor=monitor)
    done = monitor.started[0][1] if monitor.started else -1
    job.report.write_text(f"{status} {done} {len(monitor.sessions)}")


def _arm(monitor: _Deadly) -> None:
    """Let the points between the monitor's calls be deadly too."""

    def before(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            monitor.happened(event)
            return function(*args, **kwargs)

        return wrapped

    save = torch.save

    def save_half(content: Any, stream: Any) -> None:
        stream.write(b"half a checkpoint")
        stream.flush()
        monitor.happened("saving")
        stream.seek(0)
        stream.truncate()
        save(content, stream)

    torch.save = save_half
    runner.require_storable = before("tested", runner.require_storable)
    runner.audit.report = before("audited", runner.audit.report)
    runner._clean = before("written", runner._clean)
    move = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if Path(target).suffix == ".parquet":
            monitor.happened("moving")
        return move(self, target)

    Path.replace = replace
