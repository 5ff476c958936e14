"""Runs as Slurm jobs, one each, submitted as an array. Needs `pip install 'audiocl[slurm]'` (submitit).

A job that is preempted or reaches its time limit is put back into the queue and continues at the run's checkpoint. Jobs
outlive the process that submitted them: a note beside the results says which job makes which run, so that the same
command, given again, waits for the jobs that are there instead of submitting others. Events come through files in that
folder, which every node has to see.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from audiocl_bench import files
from audiocl_bench.errors import ConfigError, ResultsError, unknown_name
from audiocl_bench.executors.events import Ended, Event, Lost, Tested, pack, unpack
from audiocl_bench.executors.unit import Unit, Workshop
from audiocl_bench.processes import deaf_children

THREADS = 4
"""CPU threads of a run where neither `--threads` nor `--slurm cpus_per_task=` decides."""
MINUTES = 240
"""Time limit of a job where `--slurm timeout_min=` decides nothing; a longer run takes several turns."""

_TURNS = 200  # how often a job may come back after its time limit
_FRUITLESS = 3  # turns without a finished session after which a run is given up
_CLUSTERS = ("slurm", "local")
_GENERIC = ("cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min", "stderr_to_stdout")
_GRACE = 20.0  # seconds until a job that has ended is given up: shared file systems show its last words late
_OVER = frozenset(
    ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"]
)
_ASK_EVERY = 10.0  # seconds between two questions to Slurm's queue
_PAUSE = {"slurm": 1.0, "local": 0.2}  # seconds between two looks at the files


def package() -> Any:
    """Import submitit.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("submitit")
    except ImportError as cause:
        raise ConfigError(f"--executor slurm needs submitit ({cause}): pip install 'audiocl[slurm]'.") from cause


def parameters(given: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Read `KEY=VALUE` texts as `--slurm` takes them.

    Returns:
        the cluster, "slurm" or "local" (processes of this machine, to try things out), and submitit's parameters.

    Raises:
        ConfigError, UnknownNameError: a text is no KEY=VALUE, or Slurm and submitit know no such parameter.
    """
    submitit = package()
    own = set(submitit.SlurmExecutor._valid_parameters()) - {"nodes", "ntasks_per_node", "mem", "map_count"}
    known = own | set(_GENERIC) | {"cluster", "mem"}
    cluster, found = "slurm", {}
    for item in given:
        key, equals, value = item.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if not equals or not key or not value.strip():
            raise ConfigError(f"--slurm {item!r} must look like KEY=VALUE, for example --slurm partition=gpu.")
        if key not in known:
            raise unknown_name("parameter of --slurm", key, known)
        if key == "cluster":
            if value.strip() not in _CLUSTERS:
                raise ConfigError(f"--slurm cluster={value} must be one of {', '.join(_CLUSTERS)}.")
            cluster = value.strip()
            continue
        found[key if key in _GENERIC else f"slurm_{key}"] = _value(key, value.strip())
    if cluster == "slurm" and (absent := [name for name in ("srun", "sbatch") if shutil.which(name) is None]):
        raise ConfigError(
            f"--executor slurm needs Slurm's commands ({absent[0]} is not found): run it on a login node of the "
            "cluster, or try it out with --slurm cluster=local."
        )
    return cluster, found


def _value(key: str, text: str) -> Any:
    if key in ("setup", "teardown", "srun_args"):
        return [text]
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        number = float(text)
    except ValueError:
        if key in _GENERIC:
            raise ConfigError(f"--slurm {key}={text} must be a number.") from None
        return text
    return int(number) if number == int(number) else number


@dataclass
class _Job:
    """A job that makes a run.

    Attributes:
        unit: the run.
        handle: submitit's job.
        note: file that says which job makes the run.
        events: file that the job writes events into.
        read: bytes of it that were read.
        ended_at: when the job was first seen to be over, in seconds of the monotonic clock.
    """

    unit: Unit
    handle: Any
    note: Path
    events: Path
    read: int = 0
    ended_at: float | None = None


class _Queue:
    """What Slurm's queue says of this user's jobs, asked for all of them at once and not too often.

    `squeue` and not `sacct`, which submitit asks: many clusters keep no accounts, and then it knows nothing.
    """

    def __init__(self) -> None:
        self._states: dict[str, str] | None = None  # by job id; None until the queue has answered
        self._asked = -math.inf

    def forget(self) -> None:
        """Ask again at the next question: jobs were submitted."""
        self._states, self._asked = None, -math.inf

    def over(self, job: str) -> bool:
        """Tell whether a job is neither waiting nor running. While the queue does not answer, none is over."""
        self._ask()
        return self._states is not None and (job not in self._states or self._states[job] in _OVER)

    def state(self, job: str) -> str:
        """Return what the queue says of a job, in its words."""
        return (self._states or {}).get(job, "no longer in the queue")

    def _ask(self) -> None:
        if time.monotonic() - self._asked < _ASK_EVERY:
            return
        self._asked = time.monotonic()
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--user={os.getuid()}"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError):
            return  # what was known stays true until the queue answers again
        self._states = dict(line.split("|", 1) for line in told.split() if "|" in line)


class SlurmEngine:
    """Makes runs as Slurm jobs; meets `audiocl_bench.executors.foreman.Engine`.

    Attributes:
        threads: CPU threads of every run.
    """

    patience = 10.0

    def __init__(self, folder: Path, given: Sequence[str], *, jobs: int | None, threads: int | None, gpu: bool) -> None:
        """Prepare the submission of jobs.

        Args:
            folder: for submitit's files, the jobs' output and events; on a file system that every node sees.
            given: parameters as `--slurm` takes them.
            jobs: most jobs that run at once; None for no limit of ours.
            threads: CPU threads of a run; None for those of `cpus_per_task`, or `THREADS`.
            gpu: ask for one GPU for each job unless a parameter says which.

        Raises:
            ConfigError: submitit or Slurm are missing, or a parameter is wrong.
            ResultsError: the folder cannot be written.
        """
        self._submitit = package()
        self.cluster, chosen = parameters(given)
        self.threads = int(chosen.get("cpus_per_task", THREADS)) if threads is None else threads
        self.slots: int | None = (jobs or 1) if self.cluster == "local" else None
        values: dict[str, Any] = {"name": "audiocl", "cpus_per_task": self.threads, **chosen}
        if "slurm_time" not in values:
            values.setdefault("timeout_min", MINUTES)
        if gpu and not {"gpus_per_node", "slurm_gres", "slurm_gpus_per_task"} & set(values):
            values["gpus_per_node"] = 1
        if jobs is not None and self.cluster == "slurm":
            values["slurm_array_parallelism"] = jobs
        self._folder, self._jobs, self._lost = folder, dict[int, _Job](), False
        self._queue = _Queue()
        # A folder for every submission: "local" takes process ids for job ids, and those come back.
        self._batch = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        try:
            self._batch.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise ResultsError(files.explain_os_error(cause, self._batch)) from cause
        try:
            self._executor = self._submitit.AutoExecutor(
                folder=self._batch, cluster=self.cluster, slurm_max_num_timeout=_TURNS, local_max_num_timeout=_TURNS
            )
            self._executor.update_parameters(**values)
        except (NameError, ValueError, TypeError, AssertionError) as cause:
            first = (str(cause).splitlines() or [""])[0]
            raise ConfigError(f"--slurm: submitit does not take these parameters: {first}") from cause

    def submit(self, batch: Sequence[tuple[int, Unit]]) -> None:
        """Submit runs as one array of jobs; those whose job of an earlier command is still there are waited for.

        Raises:
            ConfigError: Slurm refuses the jobs.
        """
        fresh = []
        for ticket, unit in batch:
            found = self._earlier(unit)
            if found is None:
                fresh.append((ticket, unit))
            else:
                self._jobs[ticket] = found
        if not fresh:
            return
        tasks = [_Task(unit.to_json(), str(self._batch / f"{ticket}.events")) for ticket, unit in fresh]
        try:
            with deaf_children(), _importable():
                handles = self._executor.map_array(_call, tasks)
        except (subprocess.CalledProcessError, self._submitit.core.utils.FailedJobError, RuntimeError) as cause:
            lines = [line for line in str(cause).splitlines() if line.strip()]
            raise ConfigError(f"Slurm refuses the jobs: {lines[-1] if lines else cause}") from cause
        self._queue.forget()
        for (ticket, unit), task, handle in zip(fresh, tasks, handles, strict=True):
            note = self._folder / f"{unit.run_id}.json"
            told = {
                "cluster": self.cluster,
                "folder": str(handle.paths.folder),
                "job": handle.job_id,
                "events": task.events,
            }
            files.write_text(note, json.dumps(told), error=ResultsError)
            self._jobs[ticket] = _Job(unit, handle, note, Path(task.events))

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what the jobs wrote, and which of them are gone."""
        until = time.monotonic() + seconds
        while True:
            found: list[tuple[int, Event]] = []
            for ticket, job in list(self._jobs.items()):
                happened = self._news(job)
                found.extend((ticket, event) for event in happened)
                if any(isinstance(event, (Ended, Lost)) for event in happened):
                    self._lost |= any(isinstance(event, Lost) for event in happened)
                    job.note.unlink(missing_ok=True)
                    del self._jobs[ticket]
            if found or time.monotonic() > until:
                return found
            time.sleep(_PAUSE[self.cluster])

    def stop(self) -> str:
        """Leave the jobs as they are, and say so."""
        count = len(self._jobs)
        jobs = "1 job goes" if count == 1 else f"{count} jobs go"
        return (
            f"{jobs} on in the cluster; the same command, given again, waits for them and shows their results. Press "
            f"Ctrl-C again within {self.patience:.0f} s to cancel them."
        )

    def kill(self) -> None:
        """Cancel all jobs; their runs keep their checkpoints."""
        for job in self._jobs.values():
            if self.cluster == "local":
                _kill_tree(int(job.handle.job_id))
            else:
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    job.handle.cancel(check=False)
            job.note.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove submitit's files if every job ended well. Jobs in progress outlive this process."""
        if not (self._jobs or self._lost):
            shutil.rmtree(self._batch, ignore_errors=True)

    def _earlier(self, unit: Unit) -> _Job | None:
        """Return the job of an earlier command that still makes this run."""
        note = self._folder / f"{unit.run_id}.json"
        try:
            told = json.loads(note.read_text(encoding="utf-8"))
            if told["cluster"] != self.cluster:
                return None
            kind = self._submitit.SlurmJob if self.cluster == "slurm" else self._submitit.LocalJob
            job = _Job(unit, kind(told["folder"], told["job"]), note, Path(told["events"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if self._over(job) else job

    def _news(self, job: _Job) -> list[Event]:
        try:
            with job.events.open("rb") as handle:
                handle.seek(job.read)
                new = handle.read()
        except OSError:
            new = b""
        new = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        job.read += len(new)
        found = [unpack(line) for line in new.decode().splitlines()]
        if found or not self._over(job):
            job.ended_at = None
            return found
        now = time.monotonic()
        job.ended_at = job.ended_at or now
        if now - job.ended_at < (_GRACE if self.cluster == "slurm" else 1.0):
            return []
        told = f"job {job.handle.job_id} ended without a result ({self._state(job)}); see {job.handle.paths.stderr}"
        return [Lost(told)]

    def _over(self, job: _Job) -> bool:
        if self.cluster == "slurm":
            return self._queue.over(job.handle.job_id)
        return not _alive(int(job.handle.job_id), job.handle.paths.folder)

    def _state(self, job: _Job) -> str:
        return self._queue.state(job.handle.job_id) if self.cluster == "slurm" else "its process is gone"


@dataclass
class _Task:
    """What a job is given: a unit and the file for its events."""

    unit: str
    events: str


@dataclass
class _Call:
    """The function of a job, with the `checkpoint` by which submitit lets it come back after a signal.

    Attributes:
        fruitless: turns without a finished session so far.
        tested: sessions finished in this turn.
    """

    fruitless: int = 0
    tested: int = field(default=0, compare=False)

    def __call__(self, task: _Task) -> None:
        """Make the run, and write its events to the file."""
        uncompleted = package().core.utils.UncompletedJobError
        line = _File(Path(task.events), self)
        try:
            line.tell(Workshop(pass_on=(uncompleted,)).make(Unit.from_json(task.unit), line))
        except uncompleted as error:  # raised by submitit's signal handler when it may not come back
            unit = Unit.from_json(task.unit)
            why = "no session ended within the job's time limit: give more with --slurm timeout_min=MINUTES"
            told = why if self.fruitless >= _FRUITLESS - 1 and not self.tested else str(error).rstrip(".")
            line.tell(Ended("failed", unit.run_id, f"{unit.label} failed: {told}."))

    def checkpoint(self, task: _Task) -> Any:
        """Say how to go on after this turn; None to give up. The run's own checkpoint is on the disk already."""
        fruitless = 0 if self.tested else self.fruitless + 1
        if fruitless >= _FRUITLESS:
            return None
        return package().helpers.DelayedSubmission(_Call(fruitless), task)


_call = _Call()


class _File:
    """A job's line: a file that lines are added to; meets `audiocl_bench.executors.events.Line`."""

    def __init__(self, path: Path, call: _Call) -> None:
        self._path, self._call = path, call

    def tell(self, event: Event) -> None:
        if isinstance(event, Tested):
            self._call.tested += 1
        with contextlib.suppress(OSError), self._path.open("ab") as handle:
            handle.write(f"{pack(event)}\n".encode())

    def stopping(self) -> bool:
        return False


@contextmanager
def _importable() -> Iterator[None]:
    """Let jobs find this copy of audiocl, installed or not: they inherit the environment."""
    before = os.environ.get("PYTHONPATH")
    here = str(Path(__file__).resolve().parent.parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([here, before] if before else [here])
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _alive(pid: int, folder: Path) -> bool:
    """Tell whether the process that controls a local job still runs; another process may have got its number."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and str(folder) in process.cmdline()
    except psutil.Error:
        return False


def _kill_tree(pid: int) -> None:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                each.kill()
