"""Runs as tasks of a Ray cluster: one started here, or one to connect to. Needs `pip install 'audiocl[ray]'`."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from audiocl_bench.errors import ConfigError
from audiocl_bench.executors.events import Ended, Event, Lost, pack, unpack
from audiocl_bench.executors.unit import Unit, Workshop
from audiocl_bench.processes import cores, deaf_children

THREADS = 4
"""CPU threads of a run where neither `--threads` nor `--jobs` decides; less where no node has as many."""

_STORE_BYTES = 80 * 2**20  # units and events are a few hundred bytes each; Ray would take 30 % of the memory


def package() -> Any:
    """Import Ray, quietly.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as cause:
        raise ConfigError(f"--executor ray needs Ray ({cause}): pip install 'audiocl[ray]'.") from cause


class RayEngine:
    """Makes runs as Ray tasks; meets `audiocl_bench.executors.foreman.Engine`.

    Attributes:
        threads: CPU threads of every run.
    """

    patience = math.inf

    def __init__(self, *, address: str | None, jobs: int | None, threads: int | None, gpu: bool | None) -> None:
        """Start Ray here or connect to a cluster.

        Args:
            address: of a cluster ("auto", HOST:PORT, ray://HOST:PORT); None starts Ray on this machine.
            jobs: most runs at once; None for as many as the cluster's cores and GPUs allow.
            threads: CPU threads of a run, which is what it reserves; None to let `jobs` decide, or `THREADS`.
            gpu: reserve a GPU for every run; None to do so where the cluster has any.

        Raises:
            ConfigError: Ray is missing or cannot be started or reached, or no node has what a run needs.
        """
        self._ray = ray = package()
        self._mine = not ray.is_initialized()
        if self._mine:
            self._connect(address)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            if gpu is None:
                gpu = any(node.get("GPU", 0) >= 1 for node in nodes)
            able = [node for node in nodes if node.get("GPU", 0) >= 1] if gpu else nodes
            if not able:
                raise ConfigError("no node of the Ray cluster has a GPU: run with --device cpu, or add one.")
            most = int(max(node.get("CPU", 0) for node in able))
            if threads is None:
                threads = THREADS if jobs is None else int(sum(node.get("CPU", 0) for node in able)) // jobs
                threads = max(1, min(threads, most))
            if threads > most:
                raise ConfigError(
                    f"a run with --threads {threads} fits on no node of the Ray cluster: the largest has {most} cores."
                )
            self.threads, self.slots = threads, jobs
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            )
            self._mailbox = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
            # Lost tasks are given out again by the foreman, who tells the user.
            self._make = ray.remote(_make).options(num_cpus=threads, num_gpus=int(gpu), max_retries=0)
        except BaseException:
            self.close()
            raise
        self._tickets: dict[Any, int] = {}
        self._started: set[int] = set()

    def submit(self, batch: Sequence[tuple[int, Unit]]) -> None:
        """Queue runs in the cluster."""
        for ticket, unit in batch:
            self._tickets[self._make.remote(ticket, unit.to_json(), self._mailbox)] = ticket

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what the tasks said, and which of them were lost."""
        until = time.monotonic() + seconds
        while True:
            refs = list(self._tickets)
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0.1, fetch_local=True)
            found = [(ticket, unpack(text)) for ticket, text in self._mail()]
            self._started.update(ticket for ticket, _ in found)
            found.extend([(self._tickets.pop(ref), self._outcome(ref)) for ref in ready])
            if found or time.monotonic() > until:
                return found

    def stop(self) -> str:
        """Ask every task to end its run after the session it is in; those that wait for a node are taken back."""
        self._ray.get(self._mailbox.stop.remote())
        for ref, ticket in self._tickets.items():
            if ticket not in self._started:  # in the middle of a session it would be broken off
                with contextlib.suppress(Exception):
                    self._ray.cancel(ref)
        return "stopping: runs end after the session in progress; press Ctrl-C again to end now."

    def kill(self) -> None:
        """End all tasks at once."""
        for ref in self._tickets:
            with contextlib.suppress(Exception):
                self._ray.cancel(ref, force=True)

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here; tasks in progress end with their driver."""
        if self._mine:
            self._ray.shutdown()

    def _connect(self, address: str | None) -> None:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address is None:
            options |= {
                "num_cpus": cores(),
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "address": "local",
            }
        else:
            _knock(address)
            options["address"] = address
        try:
            with deaf_children():
                self._ray.init(**options)
        except Exception as cause:  # Ray raises a dozen unrelated classes here
            first = (str(cause).strip().splitlines() or [""])[0]
            if address is None:
                raise ConfigError(
                    f"Ray cannot be started on this machine ({type(cause).__name__}: {first})."
                ) from cause
            raise _unreachable(address, f"{type(cause).__name__}: {first.rstrip('.')}") from cause

    def _mail(self) -> list[tuple[int, str]]:
        try:
            found: list[tuple[int, str]] = self._ray.get(self._mailbox.take.remote())
        except self._ray.exceptions.RayError:
            return []  # its node is gone: the runs go on, unseen
        return found

    def _outcome(self, ref: Any) -> Event:
        errors = self._ray.exceptions
        try:
            return unpack(self._ray.get(ref))
        except errors.TaskCancelledError:
            return Ended("stopped")
        except errors.RayTaskError as error:  # our code cannot even be imported there, or `_make` itself is wrong
            first = (str(error.cause).strip().splitlines() or [""])[0]
            return Ended(
                "failed", failure=f"a worker of the Ray cluster failed ({type(error.cause).__name__}: {first})."
            )
        except errors.RayError as error:
            first = (str(error).strip().splitlines() or [""])[0]
            return Lost(f"{type(error).__name__}: {first.rstrip('.')}")


def _knock(address: str) -> None:
    """Fail now if nobody listens at HOST:PORT: Ray would try again for minutes, with a warning each time.

    Raises:
        ConfigError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto" and the like: Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as cause:
        raise _unreachable(address, str(cause)) from cause


def _unreachable(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"--address {address} cannot be reached ({why}): `ray status` on the head node shows its address; 'auto' finds "
        "a cluster that this machine belongs to."
    )


class _Mailbox:
    """Holds what tasks tell until the driver takes it. A Ray actor on the driver's node."""

    def __init__(self) -> None:
        self._events: list[tuple[int, str]] = []
        self._stopping = False

    def post(self, ticket: int, text: str) -> bool:
        """Take an event; return whether runs shall end."""
        self._events.append((ticket, text))
        return self._stopping

    def take(self) -> list[tuple[int, str]]:
        """Hand all events out, in the order they came."""
        events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """Let runs end after their session."""
        self._stopping = True

    def stopping(self) -> bool:
        """Tell whether runs shall end."""
        return self._stopping


class _Post:
    """A task's line to the mailbox; meets `audiocl_bench.executors.events.Line`."""

    def __init__(self, ticket: int, mailbox: Any) -> None:
        self._ray, self._ticket, self._mailbox = package(), ticket, mailbox

    def tell(self, event: Event) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._mailbox.post.remote(self._ticket, pack(event)))

    def stopping(self) -> bool:
        try:
            return bool(self._ray.get(self._mailbox.stopping.remote()))
        except self._ray.exceptions.RayError:
            return False


_workshops: dict[int, Workshop] = {}  # of this process: Ray uses it again for other tasks


def _make(ticket: int, unit: str, mailbox: Any) -> str:
    """Make a run. A Ray task."""
    workshop = _workshops.setdefault(os.getpid(), Workshop())
    return pack(workshop.make(Unit.from_json(unit), _Post(ticket, mailbox)))
