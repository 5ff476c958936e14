"""Worker processes of this machine: one run each at a time, one GPU each where there are GPUs."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from audiocl_bench import files
from audiocl_bench.errors import ResultsError
from audiocl_bench.executors.events import Ended, Event, Lost, pack, unpack
from audiocl_bench.executors.unit import Unit, Workshop
from audiocl_bench.processes import deaf_children, end_with_parent, without_script

_STOP, _LEAVE = "stop", "leave"
_GPUS = "CUDA_VISIBLE_DEVICES"
_LAST_LINES = 3


def gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES spells them."""
    if not torch.cuda.is_available():
        return ()
    given = [name.strip() for name in os.environ.get(_GPUS, "").split(",") if name.strip()]
    return tuple(given) if given else tuple(map(str, range(torch.cuda.device_count())))


@dataclass
class _Worker:
    """One worker process; `ticket` is None while it waits for work."""

    process: SpawnProcess
    connection: Connection
    log: Path
    ticket: int | None = None


class LocalEngine:
    """Makes runs in `jobs` worker processes; meets `audiocl_bench.executors.foreman.Engine`."""

    patience = math.inf

    def __init__(self, jobs: int, devices: Sequence[str], logs: Path) -> None:
        """Prepare for `jobs` processes at once.

        Args:
            jobs: most processes at once.
            devices: GPUs to be given out in turn, as CUDA_VISIBLE_DEVICES spells them; empty to leave that alone.
            logs: folder for what the processes print.

        Raises:
            ResultsError: `logs` cannot be made.
        """
        self.slots: int | None = jobs
        self._devices, self._logs = tuple(devices), logs
        self._workers: list[_Worker | None] = [None] * jobs
        self._lost = False
        try:
            logs.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise ResultsError(files.explain_os_error(cause, logs)) from cause

    def submit(self, batch: Sequence[tuple[int, Unit]]) -> None:
        """Give each run to a process that is free."""
        for ticket, unit in batch:
            for place, worker in enumerate(self._workers):
                if worker is None:
                    worker = self._workers[place] = self._start(place)
                if worker.ticket is None:
                    worker.ticket = ticket
                    self._send(worker, unit.to_json())
                    break

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what the processes said, and which of them died."""
        busy = {w.connection: w for w in self._workers if w is not None and w.ticket is not None}
        found: list[tuple[int, Event]] = []
        for ready in wait(list(busy), seconds):
            worker = busy[ready]  # type: ignore[index]
            assert worker.ticket is not None
            ticket = worker.ticket
            try:
                while worker.ticket is not None and worker.connection.poll():
                    event = unpack(worker.connection.recv())
                    found.append((ticket, event))
                    if isinstance(event, Ended):
                        worker.ticket = None
            except (EOFError, OSError):
                found.append((ticket, Lost(self._obituary(worker))))
                self._lost = True
                self._workers[self._workers.index(worker)] = None
        return found

    def stop(self) -> str:
        """Ask every process to end its run after the session it is in."""
        busy = [worker for worker in self._workers if worker is not None and worker.ticket is not None]
        for worker in busy:
            self._send(worker, _STOP)
        runs = "1 run ends" if len(busy) == 1 else f"{len(busy)} runs end"
        return f"stopping: {runs} after the session in progress; press Ctrl-C again to end now."

    def kill(self) -> None:
        """Kill all processes."""
        for worker in self._workers:
            if worker is not None:
                worker.process.kill()

    def close(self) -> None:
        """End all processes: those without work by themselves, the others by force."""
        living = [worker for worker in self._workers if worker is not None]
        for worker in living:
            if worker.ticket is None:
                self._send(worker, _LEAVE)
            else:
                worker.process.kill()
        for worker in living:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
            worker.process.close()
        self._workers = [None] * len(self._workers)
        if not self._lost:  # else messages name these files
            shutil.rmtree(self._logs, ignore_errors=True)

    def _start(self, place: int) -> _Worker:
        # "spawn", because a fork after torch started its threads can deadlock; a pipe for each, because a queue that
        # all share stays locked when one of them is killed while it writes.
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        log = self._logs / f"worker-{place}.log"
        process = context.Process(target=_serve, args=(theirs, str(log)), name=f"audiocl worker {place}")
        before = os.environ.get(_GPUS)
        if self._devices:
            os.environ[_GPUS] = self._devices[place % len(self._devices)]
        try:
            with deaf_children(), without_script():
                process.start()
        finally:
            if self._devices:
                os.environ.pop(_GPUS, None)
                if before is not None:
                    os.environ[_GPUS] = before
        theirs.close()  # so that the end of the process is the end of the pipe
        return _Worker(process, mine, log)

    @staticmethod
    def _send(worker: _Worker, text: str) -> None:
        with contextlib.suppress(OSError):  # it died: `wait` will see the end of the pipe
            worker.connection.send(text)

    @staticmethod
    def _obituary(worker: _Worker) -> str:
        worker.process.join(10)
        code = worker.process.exitcode
        worker.connection.close()
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            told = f"it was ended by {name}" + (" (out of memory, or killed)" if -code == signal.SIGKILL else "")
        else:
            told = f"it ended with exit code {code}"
        try:
            lines = worker.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        last = " / ".join([line.strip() for line in lines if line.strip()][-_LAST_LINES:])
        return f"{told}, after printing: {last} ({worker.log})" if last else told


class _Pipe:
    """The worker's end of a pipe; meets `audiocl_bench.executors.events.Line`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._stopping = False

    def tell(self, event: Event) -> None:
        try:
            self.connection.send(pack(event))
        except OSError:
            self._stopping = True  # nobody listens any more

    def stopping(self) -> bool:
        while not self._stopping and self.connection.poll():
            self._stopping = self.connection.recv() == _STOP
        return self._stopping


def _serve(connection: Connection, log: str) -> None:
    """Make the runs that come through the pipe, until told to leave. The life of a worker process."""
    _write_to(log)
    end_with_parent()
    workshop, line = Workshop(), _Pipe(connection)
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        if order == _LEAVE:
            return
        if order != _STOP:
            line.tell(workshop.make(Unit.from_json(order), line))


def _write_to(log: str) -> None:
    """Send everything that this process prints, libraries in C included, to a file: the terminal shows the table."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
