"""One run as plain values that any process can read, and the workshop that makes runs from such descriptions."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from audiocl_bench import backbones, benchmarks, config, corpora, files, registry, store
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.errors import AudioclError, ConfigError, ResultsError
from audiocl_bench.executors.events import Ended, Epoch, Event, Line, Said, Started, Tested
from audiocl_bench.method import Method
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Existing, Material, Plan, execute, run_id, threads
from audiocl_bench.streams import Stream

ASK_AGAIN = 1.0
"""Seconds until a run that another process is making is asked for again."""

_EPOCHS_APART = 0.5  # seconds between two epochs that are told


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One run to be made, in plain values.

    Attributes:
        label: how messages name it: method, benchmark, order and seed.
        run_id: id that the run must get; a worker that finds another one sees other code or other data.
        method: a name, or `file.py:Class`.
        settings: every setting of the method by name.
        benchmark: a name, or the path of a .toml file.
        protocol, order, seed: which stream, and which draws.
        backbone: a name or a path.
        pool, layer: settings of the backbone; None for its defaults.
        data: folder of the corpora, None for the default place.
        results: folder of the results, absolute, or its URL with the credentials it takes.
        home: audiocl's cache directory, absolute.
        folder: working directory that relative paths are relative to.
        device: "auto", "cpu", "cuda" or "cuda:N", as seen by the worker.
        threads: CPU threads; they decide the last bits of a result, so every engine gets them said.
        drift: also measure accuracy with all statistics recomputed at the end.
        existing: what to do with a run that has a result.
    """

    label: str
    run_id: str
    method: str
    settings: dict[str, Any]
    benchmark: str
    protocol: str
    order: int
    seed: int
    backbone: str
    pool: str | None
    layer: int | None
    data: str | None
    results: str = dataclasses.field(repr=False)
    home: str
    folder: str
    device: str
    threads: int
    drift: bool
    existing: Existing

    def to_json(self) -> str:
        """Return the description as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


# ------------------------------------------------------------------------------------ what a run is made of, and called


def label(plan: Plan, stream: Stream) -> str:
    """Name a run for a person: method, benchmark, order and seed."""
    return f"{plan.label} on {stream.benchmark}, order {stream.order}, seed {plan.seed}"


def index_hash(stream: Stream) -> str:
    """Return the hash of a stream's clips and labels."""
    names = [stream.classes[number] for number in stream.labels]
    return corpora.index_hash(pd.DataFrame({"clip_id": list(stream.clip_ids), "label": names}))


def material(
    benchmark: Benchmark,
    stream: Stream,
    clips: pd.DataFrame,
    backbone: Backbone,
    *,
    workers: int | None = None,
    progress: bool = False,
) -> Material:
    """Decode the clips of a stream, or open what is decoded.

    Args:
        benchmark: whose stream it is.
        stream: the stream.
        clips: its clip ids and files, as `Benchmark.open` returns them.
        backbone: whose front end hears them.
        workers: processes that decode; None for one per core.
        progress: show the progress of decoding.
    """
    prepared = store.prepare(
        clips, backbone.front_end, name=benchmark.corpus.info.name, workers=workers, progress=progress
    )
    return Material(benchmark, stream, prepared, backbone, index_hash(stream))


def spell(method: type[Method], given: str | type[Method]) -> str:
    """Return the text by which another process finds a method class: its name, or `file.py:Class`.

    Args:
        method: the class.
        given: how the user named it.

    Raises:
        ConfigError: the class is in no file that could be read again.
    """
    if isinstance(given, str) and ".py" in given:
        return given.rpartition("@")[0] or given
    if not method.source_hash:
        return method.name
    module = sys.modules.get(method.__module__)
    file = getattr(module, "__file__", None)
    if file and files.sha256_file(Path(file)) == method.source_hash and _defines(Path(file), method.__qualname__):
        return f"{Path(file).resolve()}:{method.__qualname__}"
    raise ConfigError(
        f"method class {method.__qualname__} exists in this process alone: write it at the top level of a file and "
        f"name it my.py:{method.__name__}, or make its runs here, without an executor."
    )


def _defines(file: Path, name: str) -> bool:
    """Tell whether a Python file has a class of this name that importing it would make."""
    tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
    return any(isinstance(node, ast.ClassDef) and node.name == name for node in ast.walk(tree))


def explain_bug(error: BaseException, name: str, file: Path) -> str:
    """Describe a programming error, most likely in a method, and keep its traceback in `file` for the author."""
    text = f"{name}\n\n{''.join(traceback.format_exception(error))}"
    files.write_text(file, text, error=ResultsError)
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line} (the traceback is in {file})"


@contextmanager
def limited(count: int | None) -> Iterator[None]:
    """Use `count` CPU threads inside the block, in torch and in NumPy's BLAS alike (None: leave both as they are)."""
    if count is None:
        yield
        return
    with threads(count), threadpool_limits(count, user_api="blas"):
        yield


# --------------------------------------------------------------------------------------------------------- the workshop


class Stopped(BaseException):
    """Ends a run between two sessions. No `Exception`, so that no method takes it for an error of its own."""


class Workshop:
    """Makes runs in this process, one after the other; what the next one needs too is kept."""

    def __init__(self, pass_on: tuple[type[BaseException], ...] = ()) -> None:
        """Make a workshop; exceptions of the classes `pass_on` are the caller's, not a bug of the method."""
        self._pass_on = pass_on
        self._networks: dict[tuple[Any, ...], Backbone] = {}
        self._opened: tuple[tuple[Any, ...], Material] | None = None

    def make(self, unit: Unit, line: Line) -> Ended:
        """Make one run, and tell `line` what happens. Returns how it ended; only `pass_on` is ever raised."""
        try:
            with limited(unit.threads):
                ended = self._make(unit, line)
        except Stopped:
            ended = Ended("stopped", unit.run_id)
        except AudioclError as error:
            ended = Ended("failed", unit.run_id, f"{unit.label} failed: {error}")
        except self._pass_on:
            raise
        except Exception as error:
            ended = self._bug(unit, error)
        return ended

    def _make(self, unit: Unit, line: Line) -> Ended:
        _settle(unit)
        plan, material = self._plan(unit), self._material(unit)
        if (found := run_id(plan, material)) != unit.run_id:
            raise ConfigError(
                f"the worker on {socket.gethostname()} would make {found} instead of {unit.run_id}: it sees other "
                "code, data or weights than the process that asked."
            )
        relay, results, existing, told = _Relay(line), ResultsDir(unit.results), unit.existing, False
        while True:
            identity, status = execute(plan, material, results, existing=existing, monitor=relay)
            if status != "busy":
                return Ended(status, identity)
            if not told:
                line.tell(Said(f"waiting for another process to finish {unit.label}"))
            existing, told = "reuse", True
            if line.stopping():
                raise Stopped
            time.sleep(ASK_AGAIN)

    def _plan(self, unit: Unit) -> Plan:
        method = registry.load(unit.method)
        built = config.build(method.Config, unit.benchmark, unit.settings, owner=method.name)
        name = ("cuda" if torch.cuda.is_available() else "cpu") if unit.device == "auto" else unit.device
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"--device '{name}' is not there: {socket.gethostname()} shows this process no GPU.")
        return Plan(method, built, unit.seed, device, unit.drift)

    def _material(self, unit: Unit) -> Material:
        """Return what the run works on; the last one is kept, for the runs of many methods on one stream."""
        network = (unit.backbone, unit.pool, unit.layer)
        key = (network, unit.benchmark, unit.protocol, unit.order, unit.data, unit.home, unit.folder)
        if self._opened is None or self._opened[0] != key:
            benchmark = benchmarks.get(unit.benchmark)
            stream, clips = benchmark.open(None if unit.data is None else Path(unit.data), unit.protocol, unit.order)
            place = (*network, benchmark.frames)
            if place not in self._networks:
                self._networks = {
                    place: backbones.load(unit.backbone, pool=unit.pool, layer=unit.layer, frames=benchmark.frames)
                }
            self._opened = key, material(benchmark, stream, clips, self._networks[place])
        return self._opened[1]

    def _bug(self, unit: Unit, error: Exception) -> Ended:
        # A file of its own for every run: two may fail at once.
        file = ResultsDir(unit.results).work / f"{unit.run_id}.traceback.txt"
        try:
            told = explain_bug(error, unit.label, file)
        except AudioclError as full:
            told = f"{type(error).__name__}: {error} (no traceback: {full})"
        trace = "".join(traceback.format_exception(error))
        return Ended("failed", unit.run_id, f"{unit.label} failed: {told}", trace)


def _settle(unit: Unit) -> None:
    """Take over the working directory and the cache directory of the process that asked."""
    os.environ["AUDIOCL_HOME"] = unit.home
    try:
        if Path.cwd() != Path(unit.folder):
            os.chdir(unit.folder)
    except OSError as cause:
        raise ConfigError(
            f"{unit.folder} cannot be entered on {socket.gethostname()} ({cause.strerror}): the working directory, the "
            "results and the data must lie where every worker sees them under the same path."
        ) from cause


class _Relay:
    """Passes on what the runner tells; meets `audiocl_bench.runner.Monitor`. Ends the run where the line says so."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._left = 0
        self._told = 0.0

    def run_started(self, run_id: str, sessions: int, done: int) -> None:
        self._left = sessions - done
        self._tell(Started(run_id, sessions, done, socket.gethostname(), os.getpid()))

    def epoch(self, session: int, stage: str, epoch: int, epochs: int, clips: int, seconds: float, loss: float) -> None:
        now = time.monotonic()
        if now - self._told >= _EPOCHS_APART:
            self._told = now
            self._tell(Epoch(session, stage, epoch, epochs, clips, seconds, loss))

    def session_done(self, session: int, accuracy: float) -> None:
        self._left -= 1
        self._tell(Tested(session, accuracy))
        # After the last session only audits and the writing are left.
        if self._left > 0 and self._line.stopping():
            raise Stopped

    def message(self, text: str) -> None:
        self._tell(Said(text))

    def _tell(self, event: Event) -> None:
        self._line.tell(event)
