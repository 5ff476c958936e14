"""A sweep: check everything first, then make run after run, then print what was run."""

from __future__ import annotations

import dataclasses
import shlex
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from audiocl_bench import backbones, benchmarks, config, corpora, files, registry, store
from audiocl_bench.acquire import corpora as acquire
from audiocl_bench.acquire.catalogue import downloadable
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.cli.data import bars
from audiocl_bench.cli.progress import Display, progress_display
from audiocl_bench.errors import AudioclError, ConfigError, CorpusError, ResultsError, unknown_name
from audiocl_bench.leak import leak, readings
from audiocl_bench.method import Method
from audiocl_bench.mini.catalogue import PREFIX
from audiocl_bench.report.tables import LeakRow, leak_table, runs_table
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Existing, Material, Plan, execute, learn_all, threads
from audiocl_bench.streams import Stream

MINI = Path("mini")
"""What `--data` takes instead of a folder: run the synthetic miniatures. A folder called so is `$PWD/mini`."""

_BACKBONE_SETTINGS = ("pool", "layer")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the user asked for; see `audiocl run --help` and, with `audit`, `audiocl audit --help`."""

    methods: tuple[str, ...]
    benchmarks: tuple[str, ...]
    backbone: str
    protocol: str | None
    orders: tuple[int, ...]
    seeds: tuple[int, ...]
    data: Path | None
    get_data: bool = False
    results: Path | None = None
    settings: tuple[str, ...]
    config: Path | None = None
    existing: Existing = "reuse"
    fresh: bool = False
    drift: bool = False
    audit: bool = False
    device: str
    threads: int | None
    workers: int | None = None
    quiet: bool


@dataclass(frozen=True)
class _Opened:
    """One stream with the files of its clips."""

    benchmark: Benchmark
    stream: Stream
    clips: pd.DataFrame


def run_sweep(sweep: Sweep) -> None:
    """Make all runs of a sweep and print their table; or, to `audit`, only train them and test them in many batchings.

    Everything that can be wrong with the request is checked before the first run starts; a run that fails later does
    not stop the others.

    Raises:
        AudioclError: bad input, or at least one run failed (all failures are listed).
    """
    results = ResultsDir(sweep.results or files.home() / "results")
    choices = list(dict.fromkeys(_choice(given) for given in sweep.methods))
    methods = list(dict.fromkeys(method for method, _ in choices))
    names = [name for given in sweep.benchmarks for name in (benchmarks.names() if given == "all" else (given,))]
    if sweep.data == MINI:
        names, sweep = [_miniature(name) for name in names], dataclasses.replace(sweep, data=None)
    chosen = [benchmarks.get(name) for name in dict.fromkeys(names)]
    settings = _settings(sweep, methods)
    configs = {
        (method, preset, b): config.build(
            method.Config,
            b.name,
            {**settings[method.name], **({"preset": preset} if preset else {})},
            owner=method.name,
        )
        for method, preset in choices
        for b in chosen
    }
    device = _device(sweep.device)
    if not sweep.audit:
        _check_results(results)
    if sweep.get_data:
        _get_missing(sweep, chosen)
    opened = _open_all(sweep, chosen)
    loaded = {frames: _load(sweep, settings["backbone"], frames) for frames in {b.frames for b in chosen}}

    total = len(opened) * len(choices) * len(sweep.seeds)
    with threads(sweep.threads), progress_display(total, quiet=sweep.quiet) as display:
        maker = (_Auditor if sweep.audit else _Maker)(sweep, results, display)
        for item in opened:
            material = maker.prepare(item, loaded[item.benchmark.frames])
            if material is not None:
                for method, preset in choices:
                    for seed in sweep.seeds:
                        plan = Plan(method, configs[method, preset, item.benchmark], seed, device, sweep.drift)
                        maker.make(plan, material)
        maker.wait_for_others()
    maker.report()
    if maker.failures:
        raise AudioclError("\n".join(maker.failures))


class _Maker:
    """Makes runs one by one and keeps account of them.

    Attributes:
        done: ids of the runs that have a result.
        reused: how many of them had it before.
        failures: what failed, one sentence each.
    """

    def __init__(self, sweep: Sweep, results: ResultsDir, display: Display) -> None:
        self._sweep, self._results, self._display = sweep, results, display
        self._busy: list[tuple[Plan, Material]] = []
        self.done: list[str] = []
        self.reused = 0
        self.failures: list[str] = []

    def prepare(self, item: _Opened, backbone: Backbone) -> Material | None:
        """Decode the clips of a stream, or note the failure once for all its orders."""
        try:
            with self._display.paused():
                prepared = store.prepare(
                    item.clips,
                    backbone.front_end,
                    name=item.benchmark.corpus.info.name,
                    workers=self._sweep.workers,
                    progress=not self._sweep.quiet,
                )
        except AudioclError as error:
            if (failure := f"{item.benchmark.name} failed: {error}") not in self.failures:
                self.failures.append(failure)
            return None
        return Material(item.benchmark, item.stream, prepared, backbone, _index_hash(item.stream))

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
                monitor=self._display,
            )
        except AudioclError as error:
            self.failures.append(f"{name} failed: {error}")
        except Exception as error:
            self.failures.append(f"{name} failed: {self._keep_traceback(error, name)}")
        else:
            if status == "busy":
                self._busy.append((plan, material))
                return
            self.done.append(identity)
            self.reused += status == "reused"
        self._display.run_ended(status)

    def wait_for_others(self) -> None:
        """Take the results of runs that other processes were making, or make them if those gave up."""
        for plan, material in self._busy:
            what = f"{plan.label} on {material.stream.benchmark}"
            self._display.message(f"waiting for another process to finish {what}")
            self.make(plan, material, wait=True)

    def _keep_traceback(self, error: Exception, name: str) -> str:
        """Describe a programming error, most likely in a method, and keep its traceback for the author."""
        file = self._results.path / "work" / "traceback.txt"
        text = f"{name}\n\n{''.join(traceback.format_exception(error))}"
        files.write_text(file, text, error=ResultsError)
        first_line = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first_line} (the traceback is in {file})"

    def report(self) -> None:
        """Print the table of all runs that have a result."""
        if not self.done:
            return
        results, console = self._results, Console()
        table = results.runs()
        console.print(runs_table(table[table["run_id"].isin(self.done)]))
        made = len(self.done) - self.reused
        console.print(
            f"{made} {'run' if made == 1 else 'runs'} made, {self.reused} reused. Results: {results.path}",
            f"In full: audiocl show {self.done[-1]} --results {shlex.quote(str(results.path))}",
            sep="\n",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


class _Auditor(_Maker):
    """Trains instead of making runs, and keeps what testing in other batches gives."""

    def __init__(self, sweep: Sweep, results: ResultsDir, display: Display) -> None:
        super().__init__(sweep, results, display)
        self._found: list[LeakRow] = []

    def make(self, plan: Plan, material: Material, *, wait: bool = False) -> None:
        """Learn the whole stream, then test it batched in every way."""
        del wait
        stream = material.stream
        name = f"{plan.label} on {stream.benchmark}"
        try:
            learned = learn_all(plan, material, monitor=self._display)
            found = readings(learned, seed=plan.seed)
        except AudioclError as error:
            self.failures.append(f"{name} failed: {error}")
        else:
            declared = learned.method.leaks_across_batch
            failed = tuple(check for check, outcome in learned.checks.items() if not outcome["passed"])
            self._found.append(
                LeakRow(plan.label, stream.benchmark, stream.order, found, leak(found), failed, declared)
            )
            if failed and not declared:
                self.failures.append(f"{name} failed its audits: {', '.join(failed)}.")
        self._display.run_ended("audited")

    def report(self) -> None:
        """Print accuracy by batch size, batches by session and mixed."""
        if self._found:
            Console().print(leak_table(self._found))


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


def _get_missing(sweep: Sweep, chosen: list[Benchmark]) -> None:
    """Download the corpora that are not here; those that cannot be downloaded are told before the first byte."""
    names = acquire.missing([benchmark.corpus.info.name for benchmark in chosen], sweep.data)
    with bars(" and ".join(names), quiet=sweep.quiet) as progress:
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
    for given in (from_file, config.parse_overrides(sweep.settings)):
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


def _choice(given: str) -> tuple[type[Method], str]:
    """Read `METHOD` or `METHOD@PRESET`.

    Raises:
        UnknownNameError, ConfigError: there is no such method or preset.
    """
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
