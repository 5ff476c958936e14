"""Work in other processes: every result once, failures told, dead workers and interrupts survived, no leftovers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from audiocl_bench.processes import cores, in_processes

ROOT = Path(__file__).resolve().parent.parent


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail_at(bad: int, number: int) -> int:
    if number == bad:
        raise ValueError(f"no {number} today")
    return number


def die_at(bad: int, folder: Path, number: int) -> int:
    """Kill the process if it is a worker, once; leave a trace of every call."""
    (folder / f"{number}-{os.getpid()}").touch()
    if number == bad and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


def note_start(folder: Path) -> None:
    (folder / f"start-{os.getpid()}").touch()


def in_daemon(folder: Path) -> None:
    done = list(in_processes(square, range(3), 2, say=print))
    (folder / "pids").write_text(" ".join(str(pid) for _, (_, pid) in done) + f" {os.getpid()}")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_every_job_once_whatever_the_order(said: list[str]) -> None:
    jobs = [3, 1, 3, 2, 0, 7]  # equal jobs are still two
    done = list(in_processes(square, jobs, 2, say=said.append))
    assert sorted(job for job, _ in done) == sorted(jobs)
    assert all(result == job * job for job, (result, _) in done)
    pids = {pid for _, (_, pid) in done}
    assert os.getpid() not in pids
    assert len(pids) <= 2
    assert said == []


@pytest.mark.parametrize(("jobs", "processes"), [([4, 2, 9], 1), ([5], 8)])
def test_one_process_or_one_job_stays_here_and_keeps_the_order(jobs: list[int], processes: int) -> None:
    done = in_processes(square, jobs, processes, say=pytest.fail)
    assert list(done) == [(job, (job * job, os.getpid())) for job in jobs]


SCRIPT = """
import os, sys
from functools import partial
from audiocl_bench.processes import in_processes

print("in", os.getpid(), flush=True)

def double(number):
    return 2 * number

if {guard}:
    for work in ({works}):
        for job, result in in_processes(work, range(4), 2, say=print):
            print(job, result)
    print(sys.modules["__main__"].__file__ == __file__)
"""


def run_script(folder: Path, guard: str, works: str) -> tuple[int, list[str]]:
    """Run a script with these jobs; return how many processes ran its first lines, and what it got, sorted."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(guard=guard, works=works))
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    *lines, restored = done.stdout.splitlines()
    assert restored == "True"
    return len({line for line in lines if line.startswith("in ")}), sorted(line for line in lines if line[0].isdigit())


def test_a_script_is_not_run_again_by_workers_that_need_nothing_of_it(tmp_path: Path) -> None:
    assert run_script(tmp_path, "True", "abs, float") == (
        1,
        ["0 0", "0 0.0", "1 1", "1 1.0", "2 2", "2 2.0", "3 3", "3 3.0"],
    )


@pytest.mark.parametrize("work", ["double", "partial(double)"])
def test_workers_find_what_a_script_defines(work: str, tmp_path: Path) -> None:
    assert run_script(tmp_path, "__name__ == '__main__'", f"{work},") == (3, ["0 0", "1 2", "2 4", "3 6"])


def test_no_jobs() -> None:
    assert list(in_processes(square, [], 4, say=pytest.fail)) == []


def test_the_start_function_runs_once_in_every_process(tmp_path: Path, said: list[str]) -> None:
    done = list(in_processes(square, range(6), 2, say=said.append, start=partial(note_start, tmp_path)))
    started = {int(path.name.removeprefix("start-")) for path in tmp_path.iterdir()}
    assert {pid for _, (_, pid) in done} <= started
    assert len(started) <= 2
    assert os.getpid() not in started


@pytest.mark.parametrize("processes", [1, 2])
def test_the_error_of_a_job_reaches_the_caller(processes: int, said: list[str]) -> None:
    done: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="no 3 today"):
        done.extend(in_processes(partial(fail_at, 3), range(8), processes, say=said.append))
    assert set(done) <= {(number, number) for number in range(8) if number != 3}
    assert len(set(done)) == len(done)
    if processes == 1:
        assert done == [(0, 0), (1, 1), (2, 2)]
    assert said == []


@pytest.mark.parametrize("bad", [0, 5])
def test_a_killed_worker_is_told_and_its_work_is_done_here(bad: int, tmp_path: Path, said: list[str]) -> None:
    done = dict(in_processes(partial(die_at, bad, tmp_path), range(6), 2, say=said.append))
    assert done == {number: 10 * number for number in range(6)}
    assert said == ["a worker process died (out of memory, or killed): going on in this process."]
    pids = {path.name.partition("-")[2] for path in tmp_path.glob(f"{bad}-*")}
    assert str(os.getpid()) in pids
    assert len(pids) == 2


def test_a_caller_that_stops_early_leaves_no_process(said: list[str]) -> None:
    results = in_processes(square, range(50), 2, say=said.append)
    next(results)
    results.close()
    assert multiprocessing.active_children() == []
    assert said == []


def test_a_daemon_may_have_no_children_and_works_alone(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=in_daemon, args=(tmp_path,), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert len(set((tmp_path / "pids").read_text().split())) == 1


def test_cores_are_those_one_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


# -------------------------------------------------------------------------------------------- interrupted from outside

SLOW = """
import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from audiocl_bench.processes import in_processes


def work(folder, number):
    (folder / f"started-{number}-{os.getpid()}").touch()
    time.sleep(1)
    (folder / f"ended-{number}").touch()


if __name__ == "__main__":
    try:
        for _ in in_processes(partial(work, Path(sys.argv[2])), range(20), 2, say=print):
            pass
    except KeyboardInterrupt:
        print("interrupted")
        sys.exit(130)
"""


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process whose two workers are in the middle of their first jobs; it ends with the test."""
    script, folder = tmp_path / "slow.py", tmp_path / "traces"
    script.write_text(SLOW)
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, script, ROOT, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(list(folder.glob("started-*"))) >= 2)
        yield process
    finally:
        for pid in workers_of(folder):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def workers_of(folder: Path) -> set[int]:
    return {int(path.name.split("-")[2]) for path in folder.glob("started-*")}


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_ctrl_c_lets_the_work_in_progress_end(slow: subprocess.Popen[str], tmp_path: Path) -> None:
    os.killpg(slow.pid, signal.SIGINT)  # as a terminal does: to the parent and to all workers
    out, err = slow.communicate(timeout=60)
    assert slow.returncode == 130
    assert out == "stopping as soon as the work in progress is written; the next run goes on from there.\ninterrupted\n"
    assert err == ""  # no traceback of a worker
    started = {path.name.split("-")[1] for path in (tmp_path / "traces").glob("started-*")}
    ended = {path.name.split("-")[1] for path in (tmp_path / "traces").glob("ended-*")}
    assert started == ended
    assert 2 <= len(ended) < 20
    assert not any(map(alive, workers_of(tmp_path / "traces")))


def test_workers_end_with_a_parent_that_is_killed(slow: subprocess.Popen[str], tmp_path: Path) -> None:
    workers = workers_of(tmp_path / "traces")
    assert any(map(alive, workers))
    slow.kill()
    slow.wait()
    wait_for(lambda: not any(map(alive, workers)), 30)
    assert len(list((tmp_path / "traces").glob("ended-*"))) < 20
