"""Work in other processes: results as they are done, no leftovers after Ctrl-C or a kill, dead workers survived."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import resource_tracker
from threading import Lock, Thread
from types import ModuleType
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_SCRIPT = "__main__"
_hiding = Lock()


def cores() -> int:
    """Return how many cores this process may use (a container or `taskset` may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    processes: int,
    *,
    say: Callable[[str], None],
    start: Callable[[], None] | None = None,
) -> Generator[tuple[Job, Result], None, None]:
    """Yield (job, work(job)) as each is done, in `processes` other processes; in this one if there is no other way.

    Args:
        work: a function of a module (it is pickled), safe to repeat for the same job.
        jobs: what to do.
        processes: most processes at once; 1 means this process.
        say: told, in one line, when a worker died or an interrupt waits for work in progress.
        start: called once in every new process.
    """
    left = dict(enumerate(jobs))
    processes = min(processes, len(jobs))
    # A daemonic process (a data loader's worker) may not have children.
    if processes > 1 and not multiprocessing.current_process().daemon:
        try:
            with closing(_pool(work, jobs, processes, say, start)) as results:
                for number, result in results:
                    yield left.pop(number), result
        except BrokenProcessPool:
            say("a worker process died (out of memory, or killed): going on in this process.")
    for job in left.values():
        yield job, work(job)


def _pool(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    processes: int,
    say: Callable[[str], None],
    start: Callable[[], None] | None,
) -> Generator[tuple[int, Result], None, None]:
    # "spawn", because a fork after torch started its threads can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(start,))
    try:
        with deaf_children(), without_script((work, start, *jobs[:1])):
            pending: dict[Future[Result], int] = {pool.submit(work, job): n for n, job in enumerate(jobs)}
        for done in as_completed(pending):
            yield pending[done], done.result()
    except KeyboardInterrupt:
        say("stopping as soon as the work in progress is written; the next run goes on from there.")
        raise
    finally:
        # After an error or Ctrl-C: let the running jobs end (a second or two each), so that they are not lost.
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Keep Ctrl-C from processes started meanwhile (they inherit the mask): the parent alone ends them, quietly."""
    # Else the first process starts this helper first, which takes the block away again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def without_script(sent: object = None) -> Iterator[None]:
    """Let processes started meanwhile not import the user's script, unless what they are sent is defined in it.

    "spawn" runs the script again in every process, although our work is in modules of its own; most scripts have no
    `if __name__ == "__main__":`, so that each would start everything anew.
    """
    if _of_script(sent):
        yield
        return
    with _hiding:
        script = sys.modules[_SCRIPT]
        sys.modules[_SCRIPT] = ModuleType(_SCRIPT)
        try:
            yield
        finally:
            sys.modules[_SCRIPT] = script


def _of_script(sent: object) -> bool:
    try:
        return _SCRIPT.encode() in pickle.dumps(sent)
    except Exception:  # what cannot be pickled fails later, with the reason
        return True


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it does: a killed parent cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.join,), daemon=True).start()


def _start_worker(start: Callable[[], None] | None) -> None:
    end_with_parent()  # a pool's worker would wait for ever for work from a parent that was killed
    if start is not None:
        start()


def _end_with(wait: Callable[[], None]) -> None:
    wait()
    os._exit(1)
