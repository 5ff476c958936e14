"""A sweep: check everything first, then make run after run. The command line and `audiocl_bench.run` both call `make`.

Runs are made one after the other in this process, or by an executor (`audiocl_bench.executors`) that makes several at
once. Nothing is shown here: a `Presentation` says who watches, and `make` returns what came of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import pandas as pd
import torch
from filelock import FileLock, Timeout

from audiocl_bench import backbones, benchmarks, config, files, registry
from audiocl_bench.acquire import corpora as acquire
from audiocl_bench.acquire.catalogue import downloadable
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.errors import AudioclError, ConfigError, CorpusError, unknown_name
from audiocl_bench.executors import Name as Executor
from audiocl_bench.executors.events import Ended
from audiocl_bench.executors.foreman import Board, Engine, carry_out
from audiocl_bench.executors.table import Name
from audiocl_bench.executors.unit import Unit, explain_bug, label, limited, material, spell
from audiocl_bench.leak import leak, readings
from audiocl_bench.method import Method
from audiocl_bench.mini.catalogue import PREFIX
from audiocl_bench.readout import Readout, ReadoutConfig
from audiocl_bench.report.tables import LeakRow
from audiocl_bench.results import ResultsDir, Where, results_at
from audiocl_bench.runner import Existing, Learned, Material, Monitor, Plan, Silent, execute, learn_all, run_id
from audiocl_bench.streams import Stream

MINI = Path("mini")
"""What `--data` takes instead of a folder: run the synthetic miniatures. A folder called so is `$PWD/mini`."""

_BACKBONE_SETTINGS = ("pool", "layer")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the user asked for; see `audiocl run --help` and, with `audit`, `audiocl audit --help`.

    A method is a name, `METHOD@PRESET`, `file.py:Class` or a class. Settings are `key=value` texts, as `--set` takes
    them, or a mapping of keys to values. Without `executor`, and with at most one job, runs are made in this process.
    """

    methods: tuple[str | type[Method], ...]
    benchmarks: tuple[str, ...]
    backbone: str
    protocol: str | None = None
    orders: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    data: Path | None = None
    get_data: bool = False
    results: Where | None = None
    settings: tuple[str, ...] | Mapping[str, Any] = ()
    config: Path | None = None
    existing: Existing = "reuse"
    fresh: bool = False
    drift: bool = False
    audit: bool = False
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    executor: Executor | None = None
    jobs: int | None = None
    address: str | None = None
    slurm: tuple[str, ...] = ()
    quiet: bool = False

    @property
    def elsewhere(self) -> Executor | None:
        """The executor that makes the runs, or None for this process."""
        return self.executor or ("local" if (self.jobs or 1) > 1 else None)


class Watcher(Monitor, Protocol):
    """Who watches a sweep run by run, beside what a `Monitor` is told of each."""

    def run_ended(self, status: str) -> None:
        """A run is "done", "reused", "audited" or "failed"."""

    def paused(self) -> AbstractContextManager[None]:
        """Show nothing while something else shows its own progress."""


class Presentation(Protocol):
    """Who shows a sweep to the user."""

    def downloading(self, names: str) -> AbstractContextManager[acquire.Progress | None]:
        """Show the download of corpora."""

    def watching(self, total: int) -> AbstractContextManager[Watcher]:
        """Show `total` runs, made one after the other."""

    def tabling(self, names: Sequence[Name]) -> AbstractContextManager[Table]:
        """Show runs that an executor makes at once."""


class Table(Board, Protocol):
    """Who shows runs that an executor makes."""

    def reused(self, number: int) -> None:
        """Say that a run has a result already."""


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep.

    Attributes:
        results: where the results are.
        done: ids of the runs that have a result, in the order they were asked for or finished.
        reused: how many of them had it before.
        audited: what an audit found.
        failures: what failed, one sentence each.
        bugs: the programming errors among the causes of failures, most likely of a method.
    """

    results: ResultsDir
    done: tuple[str, ...]
    reused: int
    audited: tuple[LeakRow, ...]
    failures: tuple[str, ...]
    bugs: tuple[Exception, ...]

    def raise_failures(self) -> None:
        """Raise one AudioclError that lists all failures, if there are any; its cause is the first bug among them."""
        if self.failures:
            raise AudioclError("\n".join(self.failures)) from (self.bugs[0] if self.bugs else None)


@dataclass(frozen=True)
class _Opened:
    """One stream with the files of its clips."""

    benchmark: Benchmark
    stream: Stream
    clips: pd.DataFrame


@dataclass(frozen=True)
class _Request:
    """A sweep after everything that could be wrong with it was checked: what its runs are made of."""

    sweep: Sweep
    plans: Mapping[Benchmark, tuple[Plan, ...]]
    opened: tuple[_Opened, ...]
    backbones: Mapping[int, Backbone]  # by frames
    options: Mapping[str, Any]  # of the backbone: pool and layer, where they are given
    spelt: Mapping[type[Method], str]  # how another process finds a method


def _check(sweep: Sweep, presentation: Presentation) -> _Request:
    _check_executor(sweep)
    asked = [(given, _choice(given)) for given in sweep.methods]
    choices = list(dict.fromkeys(choice for _, choice in asked))
    names = [name for given in sweep.benchmarks for name in (benchmarks.names() if given == "all" else (given,))]
    if sweep.data == MINI:
        names, sweep = [_miniature(name) for name in names], dataclasses.replace(sweep, data=None)
    chosen = [benchmarks.get(name) for name in dict.fromkeys(names)]
    settings = _settings(sweep, list(dict.fromkeys(method for method, _ in choices)))
    spelt = {} if sweep.elsewhere is None else {method: spell(method, given) for given, (method, _) in asked}
    device = device_of(sweep.device, there=sweep.elsewhere in ("ray", "slurm"))

    def plans(benchmark: Benchmark) -> Iterator[Plan]:
        for method, preset in choices:
            given = {**settings[method.name], **({"preset": preset} if preset else {})}
            built = config.build(method.Config, benchmark.name, given, owner=method.name)
            yield from (Plan(method, built, seed, device, sweep.drift) for seed in sweep.seeds)

    planned = {benchmark: tuple(plans(benchmark)) for benchmark in chosen}
    if not sweep.audit:
        _check_results(results_at(sweep.results), sweep.elsewhere)
    loaded = {frames: _load(sweep, settings["backbone"], frames) for frames in {b.frames for b in chosen}}
    for network, plan in ((loaded[benchmark.frames], plan) for benchmark, made in planned.items() for plan in made):
        if isinstance(plan.config, ReadoutConfig):
            Readout.of(network, plan.config.layers, plan.config.pool)  # refused before data is fetched and decoded
    if sweep.get_data:
        _get_missing(sweep, chosen, presentation)
    opened = tuple(_open_all(sweep, chosen))
    return _Request(sweep, planned, opened, loaded, settings["backbone"], spelt)


def make(sweep: Sweep, presentation: Presentation) -> Outcome:
    """Make all runs of a sweep, here or with its executor; or, to `audit`, only train and test them in many batchings.

    Everything that can be wrong with the request is checked before the first run starts; a run that fails later does
    not stop the others and is told in the outcome.

    Raises:
        AudioclError: bad input.
    """
    if sweep.elsewhere is not None and not sweep.audit:
        return make_together([sweep], presentation)
    request = _check(sweep, presentation)
    results = results_at(sweep.results)
    total = sum(len(request.plans[item.benchmark]) for item in request.opened)
    with limited(sweep.threads), presentation.watching(total) as watcher:
        maker = (_Auditor if sweep.audit else _Maker)(request.sweep, results, watcher)
        for item in request.opened:
            with watcher.paused():
                prepared = maker.prepare(request, item)
            if prepared is not None:
                for plan in request.plans[item.benchmark]:
                    maker.make(plan, prepared)
        maker.wait_for_others()
    return maker.outcome()


def make_together(sweeps: Sequence[Sweep], presentation: Presentation) -> Outcome:
    """Make the runs of several sweeps at once, with an executor.

    Everything that can be wrong with the requests is checked, and all clips are decoded, before the first run starts.
    Runs that have a result are told apart here; the others are made by the executor.

    Args:
        sweeps: what is asked for; they share results, executor, device and threads.
        presentation: who shows it.

    Raises:
        AudioclError: bad input. Where there are several sweeps, one that cannot be made stops no other one and is told
            in the outcome.
        KeyboardInterrupt: Ctrl-C; finished sessions are kept.
    """
    first = sweeps[0]
    ledger = _Ledger(results_at(first.results))
    for sweep in sweeps:
        try:
            ledger.ask(_check(sweep, presentation))
        except AudioclError as error:
            if len(sweeps) == 1:
                raise
            ledger.failures.append(str(error))
    with presentation.tabling([name for name, _ in ledger.asked]) as table:
        for text in ledger.messages:
            table.message(text)
        waiting = {number: unit for number, (_, unit) in enumerate(ledger.asked) if isinstance(unit, Unit)}
        for number in range(len(ledger.asked)):
            if number not in waiting:
                table.reused(number)
        if waiting:
            engine, threads = _engine(first, ledger.results)
            units = [dataclasses.replace(unit, threads=threads) for unit in waiting.values()]
            for ended in carry_out(units, engine, table, list(waiting)):
                ledger.note(ended)
    return ledger.outcome()


class _Ledger:
    """What is asked of an executor, and what came of it.

    Attributes:
        asked: every run as the table names it, with its unit, or with its id where a result is there.
        messages: what the user should read before the first run starts.
        failures: what failed, one sentence each.
    """

    def __init__(self, results: ResultsDir) -> None:
        self.results = results
        self.asked: list[tuple[Name, Unit | str]] = []
        self.messages: list[str] = []
        self.failures: list[str] = []
        self._bugs: list[Exception] = []
        self._done: list[str] = []
        self._reused = 0
        self._known: set[str] = set()

    def ask(self, request: _Request) -> None:
        """Decode the clips of every stream of a request and note its runs."""
        for item in request.opened:
            try:
                prepared = _material(request, item)
            except AudioclError as error:
                if (failure := f"{item.benchmark.name} failed: {error}") not in self.failures:
                    self.failures.append(failure)
                continue
            for plan in request.plans[item.benchmark]:
                self._ask(request, item, plan, prepared)

    def note(self, ended: Ended) -> None:
        """Note how a run ended."""
        if ended.status in ("done", "reused"):
            self._done.append(ended.run_id)
            self._reused += ended.status == "reused"
        else:
            self.failures.append(ended.failure or f"{ended.run_id} was stopped from outside.")
            if ended.bug:
                self._bugs.append(BugElsewhereError(ended.bug))

    def outcome(self) -> Outcome:
        """Return the account."""
        return Outcome(self.results, tuple(self._done), self._reused, (), tuple(self.failures), tuple(self._bugs))

    def _ask(self, request: _Request, item: _Opened, plan: Plan, prepared: Material) -> None:
        sweep, stream = request.sweep, item.stream
        identity = run_id(plan, prepared)
        if identity in self._known:  # `pace` and `pace@paper` may be one run
            return
        self._known.add(identity)
        name = Name(plan.label, stream.benchmark, stream.order, plan.seed)
        if sweep.existing != "replace" and self.results.has(identity):
            try:
                _, status = execute(
                    plan, prepared, self.results, existing=sweep.existing, monitor=_Notes(self.messages)
                )
            except AudioclError as error:
                self.failures.append(f"{label(plan, stream)} failed: {error}")
                return
            if status == "reused":
                self._done.append(identity)
                self._reused += 1
                self.asked.append((name, identity))
                return
        if sweep.fresh:
            _forget(self.results, identity)
        self.asked.append((name, _unit(request, item, plan, identity, self.results)))


class _Notes(Silent):
    """Keeps messages for later."""

    def __init__(self, messages: list[str]) -> None:
        self._messages = messages

    def message(self, text: str) -> None:
        """Keep a message."""
        self._messages.append(text)


class BugElsewhereError(Exception):
    """A programming error, most likely of a method, in another process; the text is its traceback there."""


def _unit(request: _Request, item: _Opened, plan: Plan, identity: str, results: ResultsDir) -> Unit:
    sweep, (pool, layer) = request.sweep, _pool_and_layer(request.options)
    there = sweep.elsewhere in ("ray", "slurm")
    return Unit(
        label=label(plan, item.stream),
        run_id=identity,
        method=request.spelt[plan.method],
        settings=dataclasses.asdict(plan.config),
        benchmark=item.benchmark.name if item.benchmark.source is None else str(item.benchmark.source),
        protocol=item.stream.protocol,
        order=item.stream.order,
        seed=plan.seed,
        backbone=sweep.backbone,
        pool=pool,
        layer=layer,
        data=None if sweep.data is None else str(sweep.data),
        results=results.place.address,
        home=str(files.home().absolute()),
        folder=str(Path.cwd()),
        device=sweep.device if there else str(plan.device),
        threads=0,  # the engine knows
        drift=sweep.drift,
        existing=sweep.existing,
    )


def _forget(results: ResultsDir, identity: str) -> None:
    """Remove the checkpoint of a run that shall start anew: a second attempt then continues only what the first did."""
    lock = FileLock(results.work / f"{identity}.lock")
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        shutil.rmtree(results.work / identity, ignore_errors=True)


def _engine(sweep: Sweep, results: ResultsDir) -> tuple[Engine, int]:
    """Return what makes the runs of a sweep, and the CPU threads that each of them gets."""
    work = results.work.absolute()
    if sweep.elsewhere == "ray":
        from audiocl_bench.executors.ray import RayEngine

        gpu = {"auto": None, "cuda": True}.get(sweep.device, False)
        on_ray = RayEngine(address=sweep.address, jobs=sweep.jobs, threads=sweep.threads, gpu=gpu)
        return on_ray, on_ray.threads
    if sweep.elsewhere == "slurm":
        from audiocl_bench.executors.slurm import SlurmEngine

        on_slurm = SlurmEngine(
            work / "slurm", sweep.slurm, jobs=sweep.jobs, threads=sweep.threads, gpu=sweep.device == "cuda"
        )
        return on_slurm, on_slurm.threads
    from audiocl_bench.executors import local

    device = device_of(sweep.device)
    gpus = local.gpus() if device.type == "cuda" and device.index is None else ()
    jobs = sweep.jobs or len(gpus) or 1
    threads = sweep.threads or max(1, torch.get_num_threads() // jobs)
    return local.LocalEngine(jobs, gpus, work / f"workers-{os.getpid()}"), threads


def learn_one(sweep: Sweep, presentation: Presentation) -> tuple[Plan, Material, Learned]:
    """Learn the first stream of a sweep with its first method and seed, and keep the learner; nothing is stored.

    Raises:
        AudioclError: bad input, or what the method raises.
    """
    request = _check(sweep, presentation)
    item = request.opened[0]
    plan = request.plans[item.benchmark][0]
    with limited(sweep.threads), presentation.watching(1) as watcher:
        with watcher.paused():
            prepared = _material(request, item)
        learned = learn_all(plan, prepared, monitor=watcher)
        watcher.run_ended("learned")
    return plan, prepared, learned


def _material(request: _Request, item: _Opened) -> Material:
    """Decode the clips of a stream."""
    sweep, backbone = request.sweep, request.backbones[item.benchmark.frames]
    return material(item.benchmark, item.stream, item.clips, backbone, workers=sweep.workers, progress=not sweep.quiet)


class _Maker:
    """Makes runs one by one and keeps account of them.

    Attributes:
        done: ids of the runs that have a result.
        reused: how many of them had it before.
        audited: what an audit found.
        failures: what failed, one sentence each.
        bugs: the programming errors among their causes.
    """

    def __init__(self, sweep: Sweep, results: ResultsDir, watcher: Watcher) -> None:
        self._sweep, self._results, self._watcher = sweep, results, watcher
        self._busy: list[tuple[Plan, Material]] = []
        self.done: list[str] = []
        self.reused = 0
        self.audited: list[LeakRow] = []
        self.failures: list[str] = []
        self.bugs: list[Exception] = []

    def outcome(self) -> Outcome:
        """Return the account."""
        done, audited, failures = tuple(self.done), tuple(self.audited), tuple(self.failures)
        return Outcome(self._results, done, self.reused, audited, failures, tuple(self.bugs))

    def prepare(self, request: _Request, item: _Opened) -> Material | None:
        """Decode the clips of a stream, or note the failure once for all its orders."""
        try:
            return _material(request, item)
        except AudioclError as error:
            if (failure := f"{item.benchmark.name} failed: {error}") not in self.failures:
                self.failures.append(failure)
            return None

    def make(self, plan: Plan, material: Material, *, wait: bool = False) -> None:
        """Make or reuse one run; one that another process is making is put off unless `wait`."""
        sweep = self._sweep
        name = label(plan, material.stream)
        status = "failed"
        try:
            identity, status = execute(
                plan,
                material,
                self._results,
                existing="reuse" if wait else sweep.existing,
                fresh=sweep.fresh,
                wait=wait,
                monitor=self._watcher,
            )
        except AudioclError as error:
            self.failures.append(f"{name} failed: {error}")
        except Exception as error:
            self.bugs.append(error)
            told = explain_bug(error, name, self._results.work / "traceback.txt")
            self.failures.append(f"{name} failed: {told}")
        else:
            if status == "busy":
                self._busy.append((plan, material))
                return
            self.done.append(identity)
            self.reused += status == "reused"
        self._watcher.run_ended(status)

    def wait_for_others(self) -> None:
        """Take the results of runs that other processes were making, or make them if those gave up."""
        for plan, prepared in self._busy:
            what = f"{plan.label} on {prepared.stream.benchmark}"
            self._watcher.message(f"waiting for another process to finish {what}")
            self.make(plan, prepared, wait=True)


class _Auditor(_Maker):
    """Trains instead of making runs, and keeps what testing in other batches gives."""

    def make(self, plan: Plan, material: Material, *, wait: bool = False) -> None:
        """Learn the whole stream, then test it batched in every way."""
        del wait
        stream = material.stream
        name = f"{plan.label} on {stream.benchmark}"
        try:
            learned = learn_all(plan, material, monitor=self._watcher)
            found = readings(learned, seed=plan.seed)
        except AudioclError as error:
            self.failures.append(f"{name} failed: {error}")
        else:
            declared = learned.method.leaks_across_batch
            failed = tuple(check for check, outcome in learned.checks.items() if not outcome["passed"])
            self.audited.append(
                LeakRow(plan.label, stream.benchmark, stream.order, found, leak(found), failed, declared)
            )
            if failed and not declared:
                self.failures.append(f"{name} failed its audits: {', '.join(failed)}.")
        self._watcher.run_ended("audited")


def _open_all(sweep: Sweep, chosen: list[Benchmark]) -> list[_Opened]:
    """Open every stream; a missing corpus does not hide another one."""
    opened: list[_Opened] = []
    missing: dict[str, None] = {}
    for benchmark in chosen:
        for order in sweep.orders:
            try:
                stream, clips = benchmark.open(sweep.data, sweep.protocol or benchmark.protocols[0], order)
            except CorpusError as error:
                missing[str(error)] = None
                break
            opened.append(_Opened(benchmark, stream, clips))
    if missing:
        absent = acquire.missing([benchmark.corpus.info.name for benchmark in chosen], sweep.data)
        able = set(absent) & set(downloadable()) and not (sweep.get_data or sweep.audit)
        hint = " Or repeat the command with --get-data: it downloads what can be downloaded first." if able else ""
        raise CorpusError("\n".join(missing) + hint)
    return opened


def _get_missing(sweep: Sweep, chosen: list[Benchmark], presentation: Presentation) -> None:
    """Download the corpora that are not here; those that cannot be downloaded are told before the first byte."""
    names = acquire.missing([benchmark.corpus.info.name for benchmark in chosen], sweep.data)
    with presentation.downloading(" and ".join(names)) as progress:
        acquire.get_missing(names, sweep.data, progress=progress)


def _load(sweep: Sweep, options: Mapping[str, Any], frames: int) -> Backbone:
    pool, layer = _pool_and_layer(options)
    return backbones.load(sweep.backbone, pool=pool, layer=layer, frames=frames)


def _pool_and_layer(options: Mapping[str, Any]) -> tuple[str | None, int | None]:
    pool, layer = options.get("pool"), options.get("layer")
    return (
        None if pool is None else str(pool),
        None if layer is None else config.convert(layer, int, "backbone.layer"),
    )


def _settings(sweep: Sweep, methods: list[type[Method]]) -> dict[str, dict[str, Any]]:
    """Sort settings of --config and --set by the method (or "backbone") they belong to.

    A plain `key` belongs to every chosen method that knows it, `method.key` to that method, `backbone.key` to the
    backbone; `method.key` wins over `key`, and --set over --config. A --config file may serve several sweeps: its
    tables for methods that are not run now are left alone.

    Raises:
        UnknownNameError: no chosen method knows a key.
    """
    known = {m.name: {f.name for f in dataclasses.fields(m.Config)} for m in methods}
    known["backbone"] = set(_BACKBONE_SETTINGS)
    elsewhere = set(registry.names()) - set(known)
    from_file = config.read_file(sweep.config) if sweep.config is not None else {}
    from_file = {key: value for key, value in from_file.items() if key.rpartition(".")[0] not in elsewhere}
    sorted_: dict[str, dict[str, Any]] = {name: {} for name in known}
    for given in (from_file, _overrides(sweep.settings)):
        plain = {key: value for key, value in given.items() if "." not in key}
        for key, value in plain.items():
            owners = [m.name for m in methods if key in known[m.name]]
            if not owners:
                every = {setting for m in methods for setting in known[m.name]}
                raise unknown_name(f"setting of {', '.join(m.name for m in methods)}", key, every)
            for owner in owners:
                sorted_[owner][key] = value
        for key, value in given.items():
            if key not in plain:
                owner, _, name = key.rpartition(".")
                owner = owner.replace("_", "-") if owner not in known else owner
                if owner not in known:
                    raise unknown_name("owner of a setting", owner, known, hint="Settings look like method.key=value.")
                if name not in known[owner]:
                    raise unknown_name(f"setting of {owner}", name, known[owner])
                sorted_[owner][name] = value
    return sorted_


def _overrides(settings: tuple[str, ...] | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings by key, given as texts or as the mapping itself."""
    if not isinstance(settings, Mapping):
        return config.parse_overrides(settings)
    for key in settings:
        if not isinstance(key, str):
            raise ConfigError(f"settings has the key {key!r}: keys are texts such as 'rank' or 'pace.rank'.")
    return settings


def _choice(given: str | type[Method]) -> tuple[type[Method], str]:
    """Read `METHOD` or `METHOD@PRESET`, or take a class as it is.

    Raises:
        UnknownNameError, ConfigError: there is no such method or preset, or the class is no method.
    """
    if not isinstance(given, str):
        return registry.adopt(given), ""
    name, at, preset = given.rpartition("@")
    if not at:
        return registry.load(given), ""
    method = registry.load(name)
    if preset not in method.Config.sources:
        if not method.Config.sources:
            raise ConfigError(f"method {name} has no presets: write {name} without '@{preset}'.")
        raise unknown_name(f"preset of {name}", preset, method.Config.sources)
    return method, preset


def _miniature(name: str) -> str:
    """Return the miniature of a benchmark: `esc50` -> `mini-esc50`."""
    if name.endswith(".toml"):
        raise ConfigError(f"--data mini has no miniature of {name}: leave --data out, or choose one of the six.")
    return name if name in benchmarks.mini_names() else f"{PREFIX}{benchmarks.get(name).name}"


def device_of(name: str, *, there: bool = False) -> torch.device:
    """Return the device of a name; `there` is on other machines, which are asked when a run starts on them."""
    if there and name in ("auto", "cuda"):
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device '{name}' is no device: use auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device '{name}' is not supported: use auto, cpu, cuda or cuda:N.")
    if there and device.type == "cuda":
        raise ConfigError(f"--device '{name}' names a GPU of this machine: with --executor ray or slurm use cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device '{name}' is not there: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


def _check_executor(sweep: Sweep) -> None:
    """Fail now if the executor or what it needs is not there, or an option belongs to another one."""
    if sweep.executor not in (None, *get_args(Executor)):
        raise unknown_name("executor", str(sweep.executor), get_args(Executor))
    if sweep.jobs is not None and sweep.jobs < 1:
        raise ConfigError(f"--jobs is {sweep.jobs}, but at least 1 is needed.")
    if sweep.address is not None and sweep.elsewhere != "ray":
        raise ConfigError("--address is of a Ray cluster: add --executor ray.")
    if sweep.slurm and sweep.elsewhere != "slurm":
        raise ConfigError("--slurm KEY=VALUE is for Slurm jobs: add --executor slurm.")
    if sweep.elsewhere == "ray":
        from audiocl_bench.executors import ray

        ray.package()
    elif sweep.elsewhere == "slurm":
        from audiocl_bench.executors import slurm

        slurm.parameters(sweep.slurm)


def _check_results(results: ResultsDir, elsewhere: Executor | None) -> None:
    """Fail now rather than after an hour of training: the directory can be read as a whole, and written."""
    if elsewhere is not None and results.place.private:
        raise ConfigError(
            f"{results.name} lies in the memory of this process, and an executor's processes cannot write there: give "
            "--results another place, or make the runs here, without --executor and --jobs."
        )
    results.runs()
    results.place.check()
