"""A sweep: check everything first, then make run after run. The command line and `audiocl_bench.run` both call `make`.

Nothing is shown here: a `Presentation` says who watches, and `make` returns what came of it.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch

from audiocl_bench import backbones, benchmarks, config, corpora, files, registry, store
from audiocl_bench.acquire import corpora as acquire
from audiocl_bench.acquire.catalogue import downloadable
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.errors import AudioclError, ConfigError, CorpusError, ResultsError, unknown_name
from audiocl_bench.leak import leak, readings
from audiocl_bench.method import Method
from audiocl_bench.mini.catalogue import PREFIX
from audiocl_bench.report.tables import LeakRow
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Existing, Learned, Material, Monitor, Plan, execute, learn_all, threads
from audiocl_bench.streams import Stream

MINI = Path("mini")
"""What `--data` takes instead of a folder: run the synthetic miniatures. A folder called so is `$PWD/mini`."""

_BACKBONE_SETTINGS = ("pool", "layer")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the user asked for; see `audiocl run --help` and, with `audit`, `audiocl audit --help`.

    A method is a name, `METHOD@PRESET`, `file.py:Class` or a class. Settings are `key=value` texts, as `--set` takes
    them, or a mapping of keys to values.
    """

    methods: tuple[str | type[Method], ...]
    benchmarks: tuple[str, ...]
    backbone: str
    protocol: str | None = None
    orders: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0,)
    data: Path | None = None
    get_data: bool = False
    results: Path | None = None
    settings: tuple[str, ...] | Mapping[str, Any] = ()
    config: Path | None = None
    existing: Existing = "reuse"
    fresh: bool = False
    drift: bool = False
    audit: bool = False
    device: str = "auto"
    threads: int | None = None
    workers: int | None = None
    quiet: bool = False


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
        """Show `total` runs."""


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


def _check(sweep: Sweep, presentation: Presentation) -> _Request:
    choices = list(dict.fromkeys(_choice(given) for given in sweep.methods))
    names = [name for given in sweep.benchmarks for name in (benchmarks.names() if given == "all" else (given,))]
    if sweep.data == MINI:
        names, sweep = [_miniature(name) for name in names], dataclasses.replace(sweep, data=None)
    chosen = [benchmarks.get(name) for name in dict.fromkeys(names)]
    settings = _settings(sweep, list(dict.fromkeys(method for method, _ in choices)))
    device = _device(sweep.device)

    def plans(benchmark: Benchmark) -> Iterator[Plan]:
        for method, preset in choices:
            given = {**settings[method.name], **({"preset": preset} if preset else {})}
            built = config.build(method.Config, benchmark.name, given, owner=method.name)
            yield from (Plan(method, built, seed, device, sweep.drift) for seed in sweep.seeds)

    planned = {benchmark: tuple(plans(benchmark)) for benchmark in chosen}
    if not sweep.audit:
        _check_results(ResultsDir(sweep.results or files.home() / "results"))
    if sweep.get_data:
        _get_missing(sweep, chosen, presentation)
    opened = tuple(_open_all(sweep, chosen))
    loaded = {frames: _load(sweep, settings["backbone"], frames) for frames in {b.frames for b in chosen}}
    return _Request(sweep, planned, opened, loaded)


def make(sweep: Sweep, presentation: Presentation) -> Outcome:
    """Make all runs of a sweep; or, to `audit`, only train them and test them in many batchings.

    Everything that can be wrong with the request is checked before the first run starts; a run that fails later does
    not stop the others and is told in the outcome.

    Raises:
        AudioclError: bad input.
    """
    request = _check(sweep, presentation)
    results = ResultsDir(sweep.results or files.home() / "results")
    total = sum(len(request.plans[item.benchmark]) for item in request.opened)
    with threads(sweep.threads), presentation.watching(total) as watcher:
        maker = (_Auditor if sweep.audit else _Maker)(request.sweep, results, watcher)
        for item in request.opened:
            material = maker.prepare(item, request.backbones[item.benchmark.frames])
            if material is not None:
                for plan in request.plans[item.benchmark]:
                    maker.make(plan, material)
        maker.wait_for_others()
    return maker.outcome()


def learn_one(sweep: Sweep, presentation: Presentation) -> tuple[Plan, Material, Learned]:
    """Learn the first stream of a sweep with its first method and seed, and keep the learner; nothing is stored.

    Raises:
        AudioclError: bad input, or what the method raises.
    """
    request = _check(sweep, presentation)
    item = request.opened[0]
    plan = request.plans[item.benchmark][0]
    with threads(sweep.threads), presentation.watching(1) as watcher:
        material = _material(request.sweep, item, request.backbones[item.benchmark.frames], watcher)
        learned = learn_all(plan, material, monitor=watcher)
        watcher.run_ended("learned")
    return plan, material, learned


def _material(sweep: Sweep, item: _Opened, backbone: Backbone, watcher: Watcher) -> Material:
    """Decode the clips of a stream."""
    with watcher.paused():
        prepared = store.prepare(
            item.clips,
            backbone.front_end,
            name=item.benchmark.corpus.info.name,
            workers=sweep.workers,
            progress=not sweep.quiet,
        )
    return Material(item.benchmark, item.stream, prepared, backbone, _index_hash(item.stream))


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

    def prepare(self, item: _Opened, backbone: Backbone) -> Material | None:
        """Decode the clips of a stream, or note the failure once for all its orders."""
        try:
            return _material(self._sweep, item, backbone, self._watcher)
        except AudioclError as error:
            if (failure := f"{item.benchmark.name} failed: {error}") not in self.failures:
                self.failures.append(failure)
            return None

    def make(self, plan: Plan, material: Material, *, wait: bool = False) -> None:
        """Make or reuse one run; one that another process is making is put off unless `wait`."""
        sweep, stream = self._sweep, material.stream
        name = f"{plan.label} on {stream.benchmark}, order {stream.order}, seed {plan.seed}"
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
            self.failures.append(f"{name} failed: {self._keep_traceback(error, name)}")
        else:
            if status == "busy":
                self._busy.append((plan, material))
                return
            self.done.append(identity)
            self.reused += status == "reused"
        self._watcher.run_ended(status)

    def wait_for_others(self) -> None:
        """Take the results of runs that other processes were making, or make them if those gave up."""
        for plan, material in self._busy:
            what = f"{plan.label} on {material.stream.benchmark}"
            self._watcher.message(f"waiting for another process to finish {what}")
            self.make(plan, material, wait=True)

    def _keep_traceback(self, error: Exception, name: str) -> str:
        """Describe a programming error, most likely in a method, and keep its traceback for the author."""
        file = self._results.path / "work" / "traceback.txt"
        text = f"{name}\n\n{''.join(traceback.format_exception(error))}"
        files.write_text(file, text, error=ResultsError)
        first_line = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first_line} (the traceback is in {file})"


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
    pool, layer = options.get("pool"), options.get("layer")
    return backbones.load(
        sweep.backbone,
        pool=None if pool is None else str(pool),
        layer=None if layer is None else config.convert(layer, int, "backbone.layer"),
        frames=frames,
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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device '{name}' is no device: use auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device '{name}' is not supported: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device '{name}' is not there: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


def _check_results(results: ResultsDir) -> None:
    """Fail now rather than after an hour of training: the directory can be read as a whole, and written."""
    results.runs()
    probe = results.path / "work" / ".writable"
    files.write_text(probe, "", error=ResultsError)
    probe.unlink(missing_ok=True)


def _index_hash(stream: Stream) -> str:
    names = [stream.classes[label] for label in stream.labels]
    return corpora.index_hash(pd.DataFrame({"clip_id": list(stream.clip_ids), "label": names}))
