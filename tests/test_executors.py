"""Runs made by worker processes, by a Ray cluster and by jobs: the same bytes as one by one, whoever dies meanwhile."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from rich.console import Console
from test_cli import Call, call

import audiocl_bench as audiocl
from audiocl_bench import registry, sweep
from audiocl_bench.cli import sweep as cli_sweep
from audiocl_bench.cli.sweep import Terminal
from audiocl_bench.errors import AudioclError, ConfigError, UnknownNameError
from audiocl_bench.executors import local, slurm
from audiocl_bench.executors import ray as on_ray
from audiocl_bench.executors.events import Ended, Epoch, Event, Lost, Said, Started, pack, unpack
from audiocl_bench.executors.events import Tested as SessionTested  # pytest would take a `Test...` for tests
from audiocl_bench.executors.foreman import RETRIES, carry_out
from audiocl_bench.executors.table import Name, RunTable
from audiocl_bench.executors.unit import Unit, Workshop, limited, spell
from audiocl_bench.results import ResultsDir
from audiocl_bench.sweep import Outcome, Sweep

__all__ = ["call"]  # a fixture, used by name

ROOT = Path(__file__).resolve().parent.parent
MEASURED = re.compile("seconds|peak_memory|started_at|finished_at|passes|block|git_commit")
"""Columns in which two runs of one thing may differ: what they cost, with caches or without, and when that was."""

METHOD = '''
import os
import time
from pathlib import Path

from audiocl_bench import registry

HERE = Path(__file__).parent


class Held(registry.load("ncm")):
    """NCM that writes down which process learns what, and does what files beside it say.

    hold-SEED-SESSION: stay in the session as long as the file is there; die-SEED-SESSION: kill the process, once;
    doom-SEED-SESSION: kill every process that comes so far; bug-SEED-SESSION: raise an error.
    """

    def learn(self, session):
        super().learn(session)
        place = f"{self.context.seed}-{session.index}"
        with (HERE / "trace").open("a") as trace:
            trace.write(f"{place} {os.getpid()}\\n")
        while (HERE / f"hold-{place}").exists():
            time.sleep(0.02)
        if (HERE / f"die-{place}").exists():
            (HERE / f"die-{place}").unlink()
            os.kill(os.getpid(), 9)
        if (HERE / f"doom-{place}").exists():
            os.kill(os.getpid(), 9)
        if (HERE / f"bug-{place}").exists():
            raise ZeroDivisionError("the method is wrong")
'''


class Here:
    """A folder with the method, its results, and the files that steer it."""

    def __init__(self, folder: Path, benchmark: Path) -> None:
        self.folder, self.benchmark, self.results = folder, benchmark, folder / "results"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "held.py").write_text(METHOD)

    def sweep(self, *, seeds: tuple[int, ...] = (0, 1), methods: tuple[str, ...] = (), **changes: Any) -> Sweep:
        given: dict[str, Any] = {"threads": 1, "quiet": True, "results": self.results, **changes}
        return Sweep(
            methods=methods or (f"{self.folder / 'held.py'}:Held",),
            benchmarks=(str(self.benchmark),),
            backbone="eat-tiny",
            seeds=seeds,
            **given,
        )

    def make(self, **changes: Any) -> Outcome:
        asked = self.sweep(**changes)
        return sweep.make(asked, Terminal(quiet=True))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run `audiocl run` in a process of its own, as a terminal does: the leader of a group."""
        common = ("-m", f"{self.folder / 'held.py'}:Held", "-b", str(self.benchmark), "--backbone", "eat-tiny")
        where = ("--seeds", "0,1", "--threads", "1", "--results", str(self.results))
        # Files and no pipes: a job that goes on after its command would keep a pipe open.
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "cli.py"), "run", *common, *where, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "COLUMNS": "200"},
            )

    def finish(self, process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
        """Wait for a command; return its exit code and what it wrote to the two outputs."""
        code = process.wait(timeout=600)
        return code, (self.folder / "out").read_text(), (self.folder / "err").read_text()

    def mark(self, *names: str) -> None:
        for name in names:
            (self.folder / name).touch()

    def unmark(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink()

    def trace(self) -> list[tuple[str, int]]:
        """(SEED-SESSION, process) of every session that was learned, in order."""
        file = self.folder / "trace"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(place, int(pid)) for place, pid in (line.split() for line in lines)]

    def reached(self, *places: str) -> bool:
        return set(places) <= {place for place, _ in self.trace()}


@pytest.fixture
def here(tmp_path: Path, tiny_benchmark: Path) -> Here:
    return Here(tmp_path / "here", tiny_benchmark)


@pytest.fixture(scope="module")
def sequential(tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Here:
    """The same runs made one after the other in this process, with one thread."""
    made = Here(tmp_path_factory.mktemp("sequential"), tiny_benchmark)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOCL_HOME", str(tmp_path_factory.mktemp("sequential-home")))
        assert len(made.make().done) == 2
    return made


def assert_same(one: Path, other: Path) -> None:
    """Equal bytes of predictions, equal values of everything that is not measured."""
    ids = ResultsDir(one).run_ids()
    assert ids == ResultsDir(other).run_ids()
    for run_id in ids:
        file = f"predictions/{run_id}.parquet"
        assert (one / file).read_bytes() == (other / file).read_bytes()
    for table in ("runs", "sessions"):
        first, second = (
            pd.read_parquet(place / table).sort_values(["run_id"], kind="stable").reset_index(drop=True)
            for place in (one, other)
        )
        kept = [name for name in first.columns if not MEASURED.search(name)]
        assert len(kept) > 5
        pd.testing.assert_frame_equal(first[kept], second[kept])


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------- descriptions and events

EVENTS: tuple[Event, ...] = (
    Started("ncm-x", 25, 3, "node-1", 77),
    Epoch(2, "fit", 1, 10, 640, 1.5, 0.25),
    SessionTested(2, 0.875),
    Said("a line"),
    Ended("failed", "ncm-x", "it failed", "Traceback\n  ..."),
    Lost("it was ended by SIGKILL"),
)
UNIT = Unit(
    label="ncm on tiny, order 0, seed 0",
    run_id="ncm-tiny-x",
    method="ncm",
    settings={"metric": "cosine", "layers": [1, 2], "rate": None},
    benchmark="tiny.toml",
    protocol="own",
    order=0,
    seed=0,
    backbone="eat-tiny",
    pool=None,
    layer=None,
    data=None,
    results="/r",
    home="/h",
    folder="/f",
    device="cpu",
    threads=1,
    drift=False,
    existing="reuse",
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_one_line_and_comes_back_equal(event: Event) -> None:
    assert "\n" not in pack(event)
    assert unpack(pack(event)) == event


def test_an_accuracy_that_is_no_number_comes_back_as_such() -> None:
    event = unpack(pack(SessionTested(0, math.nan)))
    assert isinstance(event, SessionTested)
    assert math.isnan(event.accuracy)


def test_a_unit_is_plain_text_and_comes_back_equal() -> None:
    assert Unit.from_json(UNIT.to_json()) == UNIT
    assert json.loads(UNIT.to_json())["settings"]["layers"] == [1, 2]


class Heard:
    """A line that keeps what it is told; it asks to stop once `after` sessions are tested."""

    def __init__(self, after: float = math.inf) -> None:
        self.events: list[Event] = []
        self.after = after

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def stopping(self) -> bool:
        return sum(isinstance(event, SessionTested) for event in self.events) >= self.after


@pytest.fixture
def units(here: Here, monkeypatch: pytest.MonkeyPatch) -> list[Unit]:
    """The units of the sweep, caught before a worker gets them."""
    caught: list[Unit] = []

    def catch(units: Sequence[Unit], *rest: Any) -> list[Ended]:
        caught.extend(units)
        return [Ended("done", unit.run_id) for unit in units]

    monkeypatch.setattr(sweep, "carry_out", catch)
    here.make(jobs=2)
    return caught


def test_a_unit_makes_the_run_it_names(units: list[Unit], here: Here, sequential: Here) -> None:
    heard = Heard()
    workshop = Workshop()
    for unit in units:
        assert workshop.make(unit, heard) == Ended("done", unit.run_id)
    assert_same(sequential.results, here.results)
    first = heard.events[0]
    assert isinstance(first, Started)
    assert (first.run_id, first.sessions, first.done, first.pid) == (units[0].run_id, 3, 0, os.getpid())
    assert [event.session for event in heard.events if isinstance(event, SessionTested)] == [0, 1, 2, 0, 1, 2]
    assert workshop.make(units[0], heard).status == "reused"


def test_a_run_that_is_told_to_stop_ends_after_its_session_and_goes_on_later(
    units: list[Unit], here: Here, sequential: Here
) -> None:
    for unit in units:
        heard = Heard(after=1)
        assert Workshop().make(unit, heard) == Ended("stopped", unit.run_id)
        assert sum(isinstance(event, SessionTested) for event in heard.events) == 1
        again = Heard()
        assert Workshop().make(unit, again).status == "done"
        assert isinstance(again.events[0], Started)
        assert again.events[0].done == 1
    assert_same(sequential.results, here.results)


def test_a_run_that_is_told_to_stop_in_its_last_session_ends_well(units: list[Unit]) -> None:
    assert Workshop().make(units[0], Heard(after=3)).status == "done"


def test_a_unit_that_would_become_another_run_is_refused(units: list[Unit], here: Here) -> None:
    (here.folder / "held.py").write_text(f"{METHOD}\n# edited meanwhile\n")
    ended = Workshop().make(units[0], Heard())
    assert ended.status == "failed"
    assert units[0].run_id in ended.failure
    assert "other code" in ended.failure
    assert not ended.bug
    assert not ResultsDir(here.results).run_ids()


def test_a_bug_keeps_its_traceback_in_a_file_of_its_run(units: list[Unit], here: Here) -> None:
    here.mark("bug-0-1", "bug-1-0")
    ends = [Workshop().make(unit, Heard()) for unit in units]
    for ended, unit in zip(ends, units, strict=True):
        assert ended.status == "failed"
        assert ended.failure.startswith(f"{unit.label} failed: ZeroDivisionError: the method is wrong (the traceback")
        assert 'ZeroDivisionError("the method is wrong")' in ended.bug
        text = (here.results / "work" / f"{unit.run_id}.traceback.txt").read_text()
        assert text.startswith(f"{unit.label}\n\nTraceback")


def test_a_folder_that_a_worker_does_not_see_is_named(units: list[Unit], tmp_path: Path) -> None:
    ended = Workshop().make(replace(units[0], folder=str(tmp_path / "elsewhere")), Heard())
    assert ended.status == "failed"
    assert str(tmp_path / "elsewhere") in ended.failure
    assert "same path" in ended.failure


def test_every_setting_travels_also_those_of_presets_and_config_files(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that builds the settings anew gets the same run, whatever the defaults and presets are."""
    (tmp_path / "settings.toml").write_text("[ranpac]\nwidth = 48\n")
    caught: list[Unit] = []

    def catch(units: Sequence[Unit], *rest: Any) -> list[Ended]:
        caught.extend(units)
        return [Workshop().make(unit, Heard()) for unit in units]

    monkeypatch.setattr(sweep, "carry_out", catch)
    quick = ("epochs=1", "batch_size=8", "pace.copies=2", "pace.session_epochs=1", "backbone.layer=2")
    asked: dict[str, Any] = {
        "methods": ("ranpac@no-fsa", "pace@no-fsa"),
        "seeds": (3,),
        "settings": (*quick, "pace.width=32"),
        "config": tmp_path / "settings.toml",
    }
    outcome = here.make(**asked, jobs=2)
    assert outcome.failures == ()
    assert [unit.settings["width"] for unit in caught] == [48, 32]
    assert {unit.layer for unit in caught} == {2}
    apart = Here(tmp_path / "apart", here.benchmark)
    assert apart.make(**asked).failures == ()
    assert_same(apart.results, here.results)


def test_a_class_is_spelt_by_its_name_or_its_file(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", dict(registry._added))
    path = here.folder / "held.py"
    assert spell(registry.load("ncm"), "ncm") == "ncm"
    assert spell(registry.load("ncm"), registry.load("ncm")) == "ncm"
    assert spell(registry.load(f"{path}:Held"), f"{path}:Held") == f"{path}:Held"
    spec = importlib.util.spec_from_file_location("held_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "held_module", module)
    spec.loader.exec_module(module)
    assert spell(registry.adopt(module.Held), module.Held) == f"{path}:Held"


def test_a_class_of_a_notebook_is_refused_before_anything_starts(here: Here) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("from audiocl_bench import registry\nclass Typed(registry.load('ncm')):\n    pass\n", namespace)
    with pytest.raises(ConfigError, match=r"Typed exists in this process alone: .*my\.py:Typed"):
        here.make(methods=(namespace["Typed"],), jobs=2)
    assert not (here.results / "runs").exists()


# --------------------------------------------------------------------------------------------------------- the request


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"executor": "dask"}, "unknown executor 'dask': known: local, ray, slurm"),
        ({"jobs": 0}, "--jobs is 0, but at least 1"),
        ({"address": "auto"}, "--address is of a Ray cluster: add --executor ray"),
        ({"address": "auto", "executor": "slurm"}, "--address is of a Ray cluster"),
        ({"slurm": ("partition=gpu",)}, "--slurm KEY=VALUE is for Slurm jobs: add --executor slurm"),
        ({"slurm": ("partition",), "executor": "slurm"}, "must look like KEY=VALUE"),
        ({"slurm": ("partitoin=gpu",), "executor": "slurm"}, "did you mean partition"),
        ({"slurm": ("cluster=moon",), "executor": "slurm"}, "cluster=moon must be one of slurm, local"),
        ({"slurm": ("mem_gb=lots",), "executor": "slurm"}, "mem_gb=lots must be a number"),
        ({"executor": "ray", "device": "cuda:1"}, "names a GPU of this machine: with --executor ray or slurm use cuda"),
    ],
)
def test_what_is_wrong_is_found_before_the_first_worker(here: Here, changes: dict[str, Any], told: str) -> None:
    if changes.get("executor") in ("ray", "slurm"):
        pytest.importorskip({"ray": "ray", "slurm": "submitit"}[changes["executor"]])
    with pytest.raises(AudioclError, match=re.escape(told)):
        here.make(**changes)
    assert not list(here.results.glob("work/*"))


@pytest.mark.parametrize(("executor", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_one_sentence(
    here: Here, executor: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # what an import then says is that it is not there
    with pytest.raises(ConfigError, match=rf"^--executor {executor} needs .*: pip install 'audiocl\[{executor}\]'\.$"):
        here.make(executor=executor)


def test_a_machine_without_slurm_is_told(here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"srun is not found.*login node.*cluster=local"):
        here.make(executor="slurm")


def test_slurm_parameters_are_read_as_submitit_wants_them() -> None:
    pytest.importorskip("submitit")
    given = ("cluster=local", "mem-gb=1.5", "cpus_per_task=4", "partition=gpu", "gres=gpu:1", "exclusive=true")
    cluster, found = slurm.parameters(given)
    assert cluster == "local"
    assert found == {
        "mem_gb": 1.5,
        "cpus_per_task": 4,
        "slurm_partition": "gpu",
        "slurm_gres": "gpu:1",
        "slurm_exclusive": True,
    }


def test_one_job_without_an_executor_stays_in_this_process() -> None:
    asked = Sweep(methods=("ncm",), benchmarks=("us8k",), backbone="eat-tiny")
    assert asked.elsewhere is None
    assert replace(asked, jobs=1).elsewhere is None
    assert replace(asked, jobs=2).elsewhere == "local"
    assert replace(asked, jobs=1, executor="local").elsewhere == "local"
    assert replace(asked, executor="ray").elsewhere == "ray"


@pytest.mark.parametrize(
    ("jobs", "threads", "slots", "each"),
    [(None, None, 1, 6), (2, None, 2, 3), (4, None, 4, 1), (9, None, 9, 1), (4, 2, 4, 2)],
)
def test_jobs_share_the_threads(
    here: Here,
    jobs: int | None,
    threads: int | None,
    slots: int,
    each: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    asked = here.sweep(executor="local", jobs=jobs, threads=threads, device="cpu")
    engine, given = sweep._engine(asked, ResultsDir(here.results))
    assert (engine.slots, given) == (slots, each)


@pytest.mark.parametrize(
    ("visible", "jobs", "slots", "expected"),
    [(None, None, 3, ("0", "1", "2")), ("5,7", None, 2, ("5", "7")), ("5,7", 4, 4, ("5", "7"))],
)
def test_every_worker_gets_a_gpu_of_its_own(
    here: Here,
    visible: str | None,
    jobs: int | None,
    slots: int,
    expected: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3 if visible is None else len(visible.split(",")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    engine, _ = sweep._engine(here.sweep(executor="local", jobs=jobs), ResultsDir(here.results))
    assert engine.slots == slots
    seen = []

    class Process:
        def __init__(self, **options: Any) -> None: ...

        def start(self) -> None:
            seen.append(os.environ["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(local.multiprocessing.get_context("spawn").__class__, "Process", Process)
    assert isinstance(engine, local.LocalEngine)
    for place in range(slots):
        engine._start(place)
    assert seen == [expected[place % len(expected)] for place in range(slots)]
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    chosen, _ = sweep._engine(here.sweep(executor="local", device="cuda:1", jobs=2), ResultsDir(here.results))
    assert isinstance(chosen, local.LocalEngine)
    assert chosen._devices == ()  # the user chose one GPU for all


def test_threads_limit_torch_and_blas_alike() -> None:
    from threadpoolctl import threadpool_info

    def blas() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    before = torch.get_num_threads(), blas()
    with limited(1):
        assert torch.get_num_threads() == 1
        assert blas() == {1}
    assert (torch.get_num_threads(), blas()) == before
    with limited(None):
        assert (torch.get_num_threads(), blas()) == before


def test_runs_that_have_a_result_need_no_worker(
    here: Here, sequential: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(sweep, "_engine", never)
    outcome = replace_results(sequential, here).make(jobs=2)
    assert outcome.reused == 2
    assert outcome.done == tuple(ResultsDir(here.results).run_ids())
    refused = here.make(jobs=2, existing="fail")
    assert refused.done == ()
    assert [failure.count("already has a result") for failure in refused.failures] == [1, 1]


def replace_results(source: Here, target: Here) -> Here:
    shutil.copytree(source.results, target.results)
    return target


def test_fresh_forgets_the_checkpoint_once_and_not_again_on_a_retry(
    units: list[Unit], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Workshop().make(units[0], Heard(after=1)).status == "stopped"
    checkpoint = here.results / "work" / units[0].run_id / "checkpoint.pt"
    assert checkpoint.exists()
    here.make(jobs=2, fresh=True, existing="replace")
    assert not checkpoint.exists()
    fresh = units[-2]
    assert fresh.run_id == units[0].run_id
    assert Workshop().make(fresh, Heard(after=1)).status == "stopped"
    again = Heard()
    assert Workshop().make(fresh, again).status == "done"
    assert isinstance(again.events[0], Started)
    assert again.events[0].done == 1


def test_one_run_asked_for_under_two_names_is_made_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Unit] = []

    def catch(units: Sequence[Unit], *rest: Any) -> list[Ended]:
        caught.extend(units)
        return [Ended("done", unit.run_id) for unit in units]

    monkeypatch.setattr(sweep, "carry_out", catch)
    default = registry.load("pace").Config().preset
    here.make(methods=("pace", f"pace@{default}"), seeds=(0,), jobs=2)
    assert len(caught) == 1


def test_sweeps_made_together_do_not_stop_each_other(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "carry_out", lambda units, *rest: [Ended("done", unit.run_id) for unit in units])
    wrong = replace(here.sweep(jobs=2), benchmarks=("nowhere.toml",))
    outcome = sweep.make_together([here.sweep(jobs=2, seeds=(0,)), wrong], Terminal(quiet=True))
    assert len(outcome.done) == 1
    [failure] = outcome.failures
    assert "nowhere.toml" in failure
    with pytest.raises(ConfigError, match="nowhere"):
        sweep.make_together([wrong], Terminal(quiet=True))


def test_reproduce_makes_all_missing_runs_at_once(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Sequence[Sweep]] = []

    def pretend(sweeps: Sequence[Sweep], presentation: object) -> Outcome:
        given.append(sweeps)
        return Outcome(ResultsDir(tmp_path / "r"), (), 0, (), ("one failed.",), ())

    monkeypatch.setattr(cli_sweep, "make_together", pretend)
    where = ("-b", "us8k,sc2", "--orders", "0", "--results", tmp_path / "r")
    how = ("--executor", "slurm", "--slurm", "partition=gpu", "--jobs", "8", "--quiet")
    outcome = call("reproduce", "table3", *where, *how, "--run")
    assert outcome.code == 2
    assert "audiocl: one failed." in outcome.err
    [sweeps] = given
    assert len(sweeps) > 1
    assert {name for each in sweeps for name in each.benchmarks} == {"us8k", "sc2"}
    assert {(s.executor, s.jobs, s.slurm, s.quiet) for s in sweeps} == {("slurm", 8, ("partition=gpu",), True)}
    assert "several at once" in call("reproduce", "table3", *where, "--jobs", "2").out
    assert len(given) == 1


# --------------------------------------------------------------------------------------------------------- the foreman


class Board:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Event]] = []
        self.retries: list[tuple[int, str, int]] = []
        self.messages: list[str] = []

    def told(self, number: int, event: Event) -> None:
        self.events.append((number, event))

    def retried(self, number: int, reason: str, attempt: int) -> None:
        self.retries.append((number, reason, attempt))

    def message(self, text: str) -> None:
        self.messages.append(text)

    def tick(self) -> None: ...


class Script:
    """An engine that does what a script says for every attempt at a run: events by run id, attempt after attempt."""

    def __init__(self, script: dict[str, list[Event]], slots: int | None = None, patience: float = math.inf) -> None:
        self.slots, self.patience, self._script = slots, patience, script
        self.running: dict[int, Unit] = {}
        self.most, self.order = 0, list[str]()
        self.log: list[str] = []
        self.press_at = -1
        self.waits = 0

    def submit(self, batch: Sequence[tuple[int, Unit]]) -> None:
        for ticket, unit in batch:
            assert ticket not in self.running
            self.running[ticket] = unit
            self.order.append(unit.run_id)
        self.most = max(self.most, len(self.running))

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        self.waits += 1
        if self.waits == self.press_at:
            os.kill(os.getpid(), signal.SIGINT)
            return []
        found = []
        for ticket, unit in list(self.running.items()):
            script = self._script[unit.run_id]
            if script:
                found.append((ticket, script.pop(0)))
                if isinstance(found[-1][1], (Ended, Lost)):
                    del self.running[ticket]
        return found

    def stop(self) -> str:
        self.log.append("stop")
        return "stopping"

    def kill(self) -> None:
        self.log.append("kill")
        self.running.clear()

    def close(self) -> None:
        self.log.append("close")


def asked(*names: str) -> list[Unit]:
    return [replace(UNIT, run_id=name, label=f"run {name}") for name in names]


def test_a_lost_run_is_given_out_again_and_takes_no_other_with_it() -> None:
    script = Script(
        {"a": [Lost("killed"), Ended("done", "a")], "b": [SessionTested(0, 1.0), Ended("done", "b")]}, slots=1
    )
    board = Board()
    ends = carry_out(asked("a", "b"), script, board, [7, 9])
    assert [end.status for end in ends] == ["done", "done"]
    assert script.order == ["a", "b", "a"]  # behind those that wait
    assert board.retries == [(7, "killed", 1)]
    assert script.most == 1
    assert script.log == ["close"]
    assert (9, SessionTested(0, 1.0)) in board.events


def test_a_run_that_is_lost_again_and_again_fails_with_the_reason() -> None:
    script = Script({"a": [Lost("out of memory")] * 9, "b": [Ended("done", "b")]})
    board = Board()
    first, second = carry_out(asked("a", "b"), script, board, [0, 1])
    assert first.status == "failed"
    assert first.run_id == "a"
    assert first.failure == "run a failed: its process was lost 3 times: out of memory."
    assert second.status == "done"
    assert script.order.count("a") == 1 + RETRIES
    assert [attempt for _, _, attempt in board.retries] == [1, 2]


def test_a_failure_is_not_repeated() -> None:
    script = Script({"a": [Ended("failed", "a", "run a failed: bad setting")]})
    [ended] = carry_out(asked("a"), script, Board(), [0])
    assert ended.failure == "run a failed: bad setting"
    assert script.order == ["a"]


def test_ctrl_c_waits_for_the_sessions_in_progress_and_starts_nothing_new() -> None:
    script = Script({"a": [SessionTested(0, 1.0), SessionTested(1, 1.0), Ended("stopped", "a")], "b": []}, slots=1)
    script.press_at = 2
    board = Board()
    with pytest.raises(KeyboardInterrupt):
        carry_out(asked("a", "b"), script, board, [0, 1])
    assert script.log == ["stop", "close"]
    assert script.order == ["a"]
    assert board.messages == ["stopping"]
    assert board.events[-1] == (0, Ended("stopped", "a"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_is_lost_after_ctrl_c_is_not_given_out_again() -> None:
    script = Script({"a": [Lost("killed")]})
    script.press_at = 1
    with pytest.raises(KeyboardInterrupt):
        carry_out(asked("a"), script, Board(), [0])
    assert script.order == ["a"]
    assert script.log == ["stop", "close"]


def test_a_second_ctrl_c_ends_at_once() -> None:
    script = Script({"a": []})
    script.press_at = 2

    def stop() -> str:
        script.log.append("stop")
        script.press_at = script.waits + 2
        return "stopping"

    script.stop = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        carry_out(asked("a"), script, Board(), [0])
    assert script.log == ["stop", "kill", "close"]


def test_where_runs_go_on_by_themselves_ctrl_c_waits_no_longer_than_said() -> None:
    script = Script({"a": []}, patience=0.05)
    script.press_at = 1
    with pytest.raises(KeyboardInterrupt):
        carry_out(asked("a"), script, Board(), [0])
    assert script.log == ["stop", "close"]
    assert script.running


def test_an_error_of_the_engine_closes_it() -> None:
    script = Script({"a": []})

    def refuse(batch: Sequence[tuple[int, Unit]]) -> None:
        raise ConfigError("refused")

    script.submit = refuse  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="refused"):
        carry_out(asked("a"), script, Board(), [0])
    assert script.log == ["close"]


# ----------------------------------------------------------------------------------------------------------- the table


def table(count: int, *, lines: bool = False, quiet: bool = False) -> tuple[RunTable, Console]:
    console = Console(record=True, width=110, height=30, file=open(os.devnull, "w"), force_terminal=not lines)  # noqa: PTH123, SIM115
    names = [Name("pace", "esc50", order, 0) for order in range(count)]
    return RunTable(names, console=console, lines=lines, quiet=quiet), console


def shown(board: RunTable, console: Console, height: int = 30) -> list[str]:
    console.export_text()
    console.print(board.render(height))
    return console.export_text().splitlines()


def row(lines: list[str], order: int) -> list[str]:
    """Return what the table says of a run, after its order and seed."""
    [line] = [line for line in lines if re.match(rf"pace on esc50 +{order} +0 ", line)]
    return line.split()[5:]


def test_the_table_shows_every_state_of_every_run() -> None:
    board, console = table(6)
    board.told(1, Started("pace-1", 25, 2, "vm", 1))
    board.told(1, SessionTested(2, 0.9))
    board.told(1, Epoch(3, "align", 2, 10, 640, 2.0, 0.1))
    board.told(2, Started("pace-2", 25, 24, "vm", 1))
    board.told(2, SessionTested(24, 0.75))
    board.told(2, Ended("done", "pace-2"))
    board.reused(3)
    board.told(4, Ended("failed", "pace-4", "pace failed: no"))
    board.told(5, Started("pace-5", 25, 0, "vm", 1))
    board.retried(5, "it was ended by SIGKILL", 1)
    lines = shown(board, console)
    assert row(lines, 0) == ["waiting"]
    state, bar, *rest = row(lines, 1)
    assert (state, set(bar) <= set("━╸╺")) == ("running", True)
    assert rest[:6] == ["3/25", "align", "2/10", "90.0", "%", "320"]
    assert row(lines, 2)[0] == "done"
    assert row(lines, 2)[2:5] == ["25/25", "75.0", "%"]
    assert row(lines, 3) == ["reused"]
    assert row(lines, 4) == ["failed"]
    assert row(lines, 5)[:2] == ["retried", "(1)"]
    assert lines[-1] == "6 runs: 2 waiting, 1 running, 1 done, 1 reused, 1 failed, 1 given out again"
    assert "node" not in lines[0]


@pytest.mark.parametrize("width", [80, 99, 100, 140])
def test_the_table_fits_the_terminal(width: int) -> None:
    board, console = table(3)
    console.width = width
    board.told(1, Started("pace-1", 315, 310, "vm", 1))
    board.told(1, SessionTested(310, 0.9))
    board.told(1, Epoch(311, "align", 2, 10, 64_000, 2.0, 0.1))
    lines = shown(board, console)
    assert max(map(len, lines)) <= width
    [line] = [line for line in lines if re.search("esc50.*running", line)]
    for told in ("pace on esc50", "311/315", "align 2/10", "90.0 %", "32,000", "0:00"):
        assert told in line


def test_several_machines_are_named() -> None:
    board, console = table(2)
    for number, host in enumerate(("alpha", "beta")):
        board.told(number, Started(f"pace-{number}", 25, 0, host, 1))
    lines = shown(board, console)
    assert row(lines, 0)[-1] == "alpha"
    assert row(lines, 1)[-1] == "beta"


def test_a_small_terminal_shows_what_matters_now() -> None:
    board, console = table(100)
    for number in range(60):
        board.told(number, Started(f"pace-{number}", 5, 0, "vm", 1))
        board.told(number, Ended("done", f"pace-{number}"))
    board.told(60, Started("pace-60", 5, 0, "vm", 1))
    board.told(61, Ended("failed", "pace-61", "no"))
    lines = shown(board, console, height=20)
    assert len(lines) <= 19
    assert row(lines, 60)[0] == "running"
    assert row(lines, 61)[0] == "failed"
    assert any(re.match(r"and \d+ more", line) for line in lines)
    assert "100 runs: 38 waiting, 1 running, 60 done, 1 failed" in lines[-1]


def test_lines_elsewhere_than_on_a_terminal() -> None:
    board, console = table(2, lines=True)
    board.told(0, Started("pace-0", 25, 4, "vm", 1))
    board.told(0, SessionTested(4, 0.5))
    board.retried(0, "it was ended by SIGKILL", 1)
    board.told(0, Ended("done", "pace-0"))
    board.told(1, Ended("failed", "pace-1", "pace on esc50 failed: no"))
    lines = console.export_text().splitlines()
    assert lines[0] == "pace-0: started on vm, continuing after session 4"
    assert lines[1] == "pace on esc50, order 0, seed 0: it was ended by SIGKILL; it is given out again (1)."
    assert re.fullmatch(r"pace-0: 50\.00 % in \d+ s", lines[2])
    assert lines[3] == "pace on esc50 failed: no"


def test_quiet_tells_only_what_went_wrong_on_the_way() -> None:
    board, console = table(1, lines=True, quiet=True)
    board.told(0, Started("pace-0", 25, 0, "vm", 1))
    board.retried(0, "it was ended by SIGKILL", 1)
    board.told(0, Ended("done", "pace-0"))
    [line] = console.export_text().splitlines()
    assert "given out again" in line


# ----------------------------------------------------------------------------------------------- processes that may die


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(here: Here, sequential: Here) -> None:
    outcome = here.make(jobs=2)
    assert outcome.failures == ()
    assert_same(sequential.results, here.results)
    pids = {pid for _, pid in here.trace()}
    assert os.getpid() not in pids
    assert len(pids) == 2
    assert not any(map(alive, pids))
    assert not list(here.results.glob("work/workers-*"))


@pytest.mark.slow
def test_training_gives_the_same_bytes_in_worker_processes(here: Here, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "methods": ("finetune", "ranpac"),
        "seeds": (0,),
        "settings": (
            "finetune.epochs=2",
            "finetune.batch_size=4",
            "finetune.rank=2",
            "ranpac.epochs=2",
            "ranpac.width=64",
        ),
    }
    assert here.make(jobs=2, **asked).failures == ()
    apart = Here(tmp_path / "apart", here.benchmark)
    assert apart.make(**asked).failures == ()
    assert_same(apart.results, here.results)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(here: Here, sequential: Here, capsys: pytest.CaptureFixture[str]) -> None:
    here.mark("die-0-1")
    outcome = here.make(jobs=2)
    assert outcome.failures == ()
    assert_same(sequential.results, here.results)
    places = [place for place, _ in here.trace()]
    assert places.count("0-0") == 1  # it continued at its checkpoint
    assert places.count("0-1") == 2
    assert [places.count(f"1-{session}") for session in range(3)] == [1, 1, 1]
    assert "it was ended by SIGKILL (out of memory, or killed)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_kills_every_worker_and_one_with_a_bug_stop_no_other(here: Here) -> None:
    here.mark("doom-0-1", "bug-1-2")
    outcome = here.make(jobs=2, seeds=(0, 1, 2))
    assert len(outcome.done) == 1
    assert "-s2-" in outcome.done[0]
    doomed, wrong = sorted(outcome.failures)
    assert "seed 0 failed: its process was lost 3 times: it was ended by SIGKILL" in doomed
    assert "seed 1 failed: ZeroDivisionError: the method is wrong (the traceback is in " in wrong
    places = [place for place, _ in here.trace()]
    assert places.count("0-1") == 1 + RETRIES
    assert places.count("1-2") == 1  # a bug is not tried again
    with pytest.raises(AudioclError) as told:
        outcome.raise_failures()
    assert "ZeroDivisionError" in str(told.value.__cause__)
    assert "in learn" in str(told.value.__cause__)


@pytest.mark.slow
def test_python_offers_the_same(here: Here, sequential: Here) -> None:
    runs = audiocl.run(
        f"{here.folder / 'held.py'}:Held",
        here.benchmark,
        backbone="eat-tiny",
        seeds="0-1",
        results=here.results,
        threads=1,
        executor="local",
    )
    assert len(runs) == 2
    assert len({pid for _, pid in here.trace()}) == 1  # one job, in a process of its own
    assert_same(sequential.results, here.results)


@pytest.fixture
def held(here: Here) -> Iterator[Here]:
    """Runs that stay in their second session until told otherwise; no process outlives the test."""
    here.mark("hold-0-1", "hold-1-1")
    yield here
    for _, pid in here.trace():
        if pid != os.getpid() and alive(pid):
            psutil.Process(pid).kill()


@pytest.mark.slow
def test_ctrl_c_ends_runs_after_their_session_and_a_rerun_continues(held: Here, sequential: Here) -> None:
    process = held.start("--jobs", "2")
    wait_for(lambda: held.reached("0-1", "1-1"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and to all workers
    time.sleep(1.5)
    assert process.poll() is None
    held.unmark("hold-0-1", "hold-1-1")
    code, out, err = held.finish(process)
    assert code == 130, err
    assert out == ""
    assert "stopping: 2 runs end after the session in progress; press Ctrl-C again to end now." in err
    assert err.endswith("audiocl: interrupted; finished sessions are kept, run the same command again to continue.\n")
    assert "Traceback" not in err
    assert "given out again" not in err
    workers = {pid for _, pid in held.trace()}
    assert not any(map(alive, workers))
    assert sorted(place for place, _ in held.trace()) == ["0-0", "0-1", "1-0", "1-1"]

    again = held.start("--jobs", "2")
    code, out, err = held.finish(again)
    assert code == 0, err
    # On a slow disk not every session is worth a checkpoint; the first one always is.
    assert len(re.findall("continuing after session [12]", err)) == 2
    places = [place for place, _ in held.trace()]
    assert (places.count("0-0"), places.count("1-0")) == (1, 1)
    assert {"0-2", "1-2"} <= set(places)
    assert_same(sequential.results, held.results)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_processes_at_once(held: Here) -> None:
    process = held.start("--jobs", "2")
    wait_for(lambda: held.reached("0-1", "1-1"))
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.5)
    code, _, err = held.finish(process)
    assert code == 130, err
    assert "Traceback" not in err
    assert not any(alive(pid) for _, pid in held.trace())


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(held: Here) -> None:
    process = held.start("--jobs", "2")
    wait_for(lambda: held.reached("0-1", "1-1"))
    workers = {pid for _, pid in held.trace()}
    assert len(workers) == 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, workers)), 30)


# --------------------------------------------------------------------------------------------------------- Slurm's jobs


class Jobs(Here):
    """Makes jobs with submitit's local executor, or with Slurm where its commands are."""

    cluster = "local"

    def __init__(self, here: Here, cluster: str) -> None:
        super().__init__(here.folder, here.benchmark)
        self.cluster = cluster

    @property
    def options(self) -> tuple[str, ...]:
        return (f"cluster={self.cluster}", "mem_gb=1", "timeout_min=20")

    @property
    def arguments(self) -> tuple[str, ...]:
        given = (text for option in self.options for text in ("--slurm", option))
        return ("--executor", "slurm", "--jobs", "2", *given)


@pytest.fixture(params=["local", "slurm"])
def jobs(here: Here, request: pytest.FixtureRequest) -> Iterator[Jobs]:
    """Somewhere to make jobs; none of them outlives the test."""
    pytest.importorskip("submitit")
    if request.param == "slurm" and shutil.which("sbatch") is None:
        pytest.skip("needs Slurm")
    made = Jobs(here, request.param)
    yield made
    for process in psutil.process_iter(["cmdline"]):
        if str(here.folder) in " ".join(process.info["cmdline"] or ()):
            process.kill()
    for note in made.results.glob("work/slurm/*.json"):
        if request.param == "slurm":
            subprocess.run(["scancel", json.loads(note.read_text())["job"]], check=False)


@pytest.mark.slow
def test_jobs_give_the_bytes_of_one_process_even_if_one_is_killed(
    jobs: Jobs, sequential: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.mark("die-1-1")
    outcome = jobs.make(executor="slurm", slurm=jobs.options, jobs=2)
    assert outcome.failures == ()
    assert_same(sequential.results, jobs.results)
    places = [place for place, _ in jobs.trace()]
    assert (places.count("1-0"), places.count("1-1")) == (1, 2)
    assert re.search(r"job \d+(_0|_1)? ended without a result \(.*\); see .*\.err", capsys.readouterr().err)


@pytest.mark.slow
def test_a_job_that_is_preempted_comes_back_and_continues(jobs: Jobs, sequential: Here) -> None:
    jobs.mark("hold-0-1")
    process = jobs.start(*jobs.arguments)
    wait_for(lambda: jobs.reached("0-1"))
    [pid] = [pid for place, pid in jobs.trace() if place == "0-1"]
    os.kill(pid, signal.SIGUSR2)  # what Slurm sends before it takes a node away
    wait_for(lambda: not alive(pid))
    jobs.unmark("hold-0-1")
    code, out, err = jobs.finish(process)
    assert code == 0, err
    assert "given out again" not in err  # the job itself came back
    assert "continuing after session 1" in err
    assert "2 runs made" in out
    assert_same(sequential.results, jobs.results)


@pytest.mark.slow
def test_jobs_go_on_after_ctrl_c_and_the_same_command_waits_for_them(jobs: Jobs, sequential: Here) -> None:
    jobs.mark("hold-0-1", "hold-1-1")
    process = jobs.start(*jobs.arguments)
    wait_for(lambda: jobs.reached("0-1", "1-1"))
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = jobs.finish(process)
    assert code == 130, err
    assert "2 jobs go on in the cluster; the same command, given again, waits for them and shows their results." in err
    workers = {pid for _, pid in jobs.trace()}
    assert all(map(alive, workers))

    again = jobs.start(*jobs.arguments)
    time.sleep(1)
    jobs.unmark("hold-0-1", "hold-1-1")
    code, out, err = jobs.finish(again)
    assert code == 0, err
    assert "2 runs made" in out or "reused" in out
    assert {pid for _, pid in jobs.trace()} == workers  # no other job made them
    assert len(jobs.trace()) == 6
    assert_same(sequential.results, jobs.results)


@pytest.mark.slow
def test_a_second_ctrl_c_cancels_the_jobs(jobs: Jobs) -> None:
    jobs.mark("hold-0-1", "hold-1-1")
    process = jobs.start(*jobs.arguments)
    wait_for(lambda: jobs.reached("0-1", "1-1"))
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.5)
    code, _, err = jobs.finish(process)
    assert code == 130, err
    assert "Traceback" not in err
    wait_for(lambda: not any(alive(pid) for _, pid in jobs.trace()), 30)
    assert not list(jobs.results.glob("work/slurm/*.json"))


# ------------------------------------------------------------------------------------------------------------------ Ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray cluster of two nodes with one core each, on this machine."""
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    on_ray.package()
    from ray.cluster_utils import Cluster
    from ray.exceptions import RpcError

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    for attempt in range(3):  # on a busy machine a node may not answer within Ray's own minute
        try:
            made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
            made.second = made.add_node(**small)
            break
        except (RpcError, RuntimeError, TimeoutError):
            if attempt == 2:
                raise
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_ray_cluster_gives_the_bytes_of_one_process_though_a_worker_is_killed(
    cluster: Any, held: Here, sequential: Here
) -> None:
    process = held.start("--executor", "ray", "--address", cluster.address)
    wait_for(lambda: held.reached("0-1", "1-1"))  # at once, on nodes of one core each: both nodes are used
    first, second = ({pid for place, pid in held.trace() if place == f"{seed}-1"}.pop() for seed in (0, 1))
    assert first != second
    os.kill(first, signal.SIGKILL)
    held.unmark("hold-0-1", "hold-1-1")
    code, out, err = held.finish(process)
    assert code == 0, err
    assert "2 runs made" in out
    assert "seed 0: WorkerCrashedError" in err
    assert "given out again (1)" in err
    places = [place for place, _ in held.trace()]
    assert [places.count(f"0-{t}") for t in range(3)] == [1, 2, 1]
    assert [places.count(f"1-{t}") for t in range(3)] == [1, 1, 1]
    assert_same(sequential.results, held.results)


@pytest.mark.slow
def test_a_ray_node_that_goes_away_loses_no_run(cluster: Any, held: Here, sequential: Here) -> None:
    process = held.start("--executor", "ray", "--address", cluster.address, "--jobs", "2")
    wait_for(lambda: held.reached("0-1", "1-1"))
    cluster.remove_node(cluster.second, allow_graceful=False)
    held.unmark("hold-0-1", "hold-1-1")
    code, out, err = held.finish(process)
    assert code == 0, err
    assert err.count("given out again (1)") == 1
    assert "2 runs made" in out
    assert_same(sequential.results, held.results)


@pytest.mark.slow
def test_ctrl_c_stops_ray_tasks_after_their_session(cluster: Any, held: Here) -> None:
    process = held.start("--executor", "ray", "--address", cluster.address)
    wait_for(lambda: held.reached("0-1", "1-1"))
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None
    held.unmark("hold-0-1", "hold-1-1")
    code, _, err = held.finish(process)
    assert code == 130, err
    assert "stopping: runs end after the session in progress" in err
    assert "Traceback" not in err
    assert sorted(place for place, _ in held.trace()) == ["0-0", "0-1", "1-0", "1-1"]
    assert len(list(held.results.glob("work/*/checkpoint.pt"))) == 2


@pytest.mark.slow
def test_ray_that_is_not_there_or_too_small_is_told(cluster: Any, here: Here) -> None:
    for arguments, told in (
        (("--address", "127.0.0.1:1"), "--address 127.0.0.1:1 cannot be reached"),
        (
            ("--address", cluster.address, "--threads", "3"),
            "fits on no node of the Ray cluster: the largest has 1 cores",
        ),
        (("--address", cluster.address, "--device", "cuda"), "no node of the Ray cluster has a GPU"),
    ):
        process = here.start("--executor", "ray", *arguments)
        code, _, err = here.finish(process)
        assert code == 2, err
        assert err.rstrip().splitlines()[-1].startswith("audiocl: ")
        assert told in err
        assert "Traceback" not in err


def test_an_unknown_method_is_told_as_ever(here: Here) -> None:
    with pytest.raises(UnknownNameError, match="did you mean ranpac"):
        here.make(methods=("rampac",), jobs=2)
