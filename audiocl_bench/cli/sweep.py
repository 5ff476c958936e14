"""A sweep: check everything first, then make run after run, then print what was run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from audiocl_bench import backbones, benchmarks, config, corpora, files, registry, store
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.cli.progress import progress_display
from audiocl_bench.config import MethodConfig
from audiocl_bench.errors import AudioclError, ConfigError, CorpusError, ResultsError, unknown_name
from audiocl_bench.method import Method
from audiocl_bench.report.tables import runs_table
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Existing, Material, Plan, execute, threads
from audiocl_bench.streams import Stream

_BACKBONE_SETTINGS = ("pool", "layer")


@dataclass(frozen=True)
class Sweep:
    """What the user asked for; see `audiocl run --help`."""

    methods: tuple[str, ...]
    benchmarks: tuple[str, ...]
    backbone: str
    protocol: str | None
    orders: tuple[int, ...]
    seeds: tuple[int, ...]
    data: Path | None
    results: Path | None
    settings: tuple[str, ...]
    config: Path | None
    existing: Existing
    fresh: bool
    drift: bool
    device: str
    threads: int | None
    workers: int | None
    quiet: bool


@dataclass(frozen=True)
class _Opened:
    """One stream with the files of its clips."""

    benchmark: Benchmark
    stream: Stream
    clips: pd.DataFrame


def run_sweep(sweep: Sweep) -> None:
    """Make all runs of a sweep and print their table.

    Everything that can be wrong with the request is checked before the first run starts; a run that fails later does
    not stop the others.

    Raises:
        AudioclError: bad input, or at least one run failed (all failures are listed).
    """
    console = Console()
    results = ResultsDir(sweep.results or files.home() / "results")
    methods = [registry.load(name) for name in sweep.methods]
    chosen = [
        benchmarks.get(name)
        for given in sweep.benchmarks
        for name in (benchmarks.names() if given == "all" else (given,))
    ]
    settings = _settings(sweep, methods)
    configs = {(m, b): config.build(m.Config, b.name, settings[m.name], owner=m.name) for m in methods for b in chosen}
    device = _device(sweep.device)
    _check_writable(results)
    loaded = {b.frames: _load(sweep, settings["backbone"], b.frames) for b in chosen}
    opened = _open_all(sweep, chosen)

    with threads(sweep.threads):
        done, failures = _make_runs(sweep, methods, configs, loaded, opened, results, device)
    if done:
        table = results.runs()
        console.print(runs_table(table[table["run_id"].isin(done)]))
        console.print(f"Results: {results.path}   (audiocl show RUN --results {results.path})", soft_wrap=True)
    if failures:
        raise AudioclError("; ".join(failures))


def _make_runs(
    sweep: Sweep,
    methods: list[type[Method]],
    configs: Mapping[tuple[type[Method], Benchmark], MethodConfig],
    loaded: Mapping[int, Backbone],
    opened: list[_Opened],
    results: ResultsDir,
    device: torch.device,
) -> tuple[list[str], list[str]]:
    """Make or reuse every run; return the ids that have a result, and one sentence per failure."""
    done: list[str] = []
    failures: list[str] = []
    busy: list[tuple[Plan, Material]] = []
    total = len(opened) * len(methods) * len(sweep.seeds)
    with progress_display(total, quiet=sweep.quiet) as monitor:
        for item in opened:
            backbone = loaded[item.benchmark.frames]
            with monitor.paused():
                prepared = store.prepare(
                    item.clips,
                    backbone.front_end,
                    name=item.benchmark.corpus.info.name,
                    workers=sweep.workers,
                    progress=not sweep.quiet,
                )
            material = Material(item.benchmark, item.stream, prepared, backbone, _index_hash(item.stream))
            for method in methods:
                for seed in sweep.seeds:
                    plan = Plan(method, configs[method, item.benchmark], seed, device, sweep.drift)
                    try:
                        identity, status = execute(
                            plan, material, results, existing=sweep.existing, fresh=sweep.fresh, monitor=monitor
                        )
                    except AudioclError as error:
                        failures.append(f"{method.name} on {item.stream.benchmark}, order {item.stream.order}: {error}")
                        monitor.run_ended("failed")
                        continue
                    monitor.run_ended(status)
                    if status == "busy":
                        busy.append((plan, material))
                    else:
                        done.append(identity)
        for plan, material in busy:
            monitor.message(f"waiting for another process to finish {plan.method.name} on {material.stream.benchmark}")
            done.append(execute(plan, material, results, existing="reuse", wait=True, monitor=monitor)[0])
    return done, failures


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
        raise CorpusError("\n".join(missing))
    return opened


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
    backbone. --set wins over --config.

    Raises:
        UnknownNameError: no chosen method knows a key.
    """
    given: dict[str, Any] = {}
    if sweep.config is not None:
        given.update(config.read_file(sweep.config))
    given.update(config.parse_overrides(sweep.settings))
    known = {m.name: set(m.Config.__dataclass_fields__) for m in methods} | {"backbone": set(_BACKBONE_SETTINGS)}
    sorted_: dict[str, dict[str, Any]] = {name: {} for name in known}
    for key, value in given.items():
        owner, dot, name = key.rpartition(".")
        if dot:
            owner = owner.replace("_", "-") if owner not in known else owner
            if owner not in known:
                raise unknown_name("owner of a setting", owner, known, hint="Settings look like method.key=value.")
            if name not in known[owner]:
                raise unknown_name(f"setting of {owner}", name, known[owner])
            sorted_[owner][name] = value
            continue
        owners = [m for m in known if m != "backbone" and name in known[m]]
        if not owners:
            every = {setting for m in methods for setting in known[m.name]}
            raise unknown_name(f"setting of {', '.join(m.name for m in methods)}", name, every)
        for m in owners:
            sorted_[m].setdefault(name, value)
    return sorted_


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device '{name}' is no device: use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device '{name}' is not there: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


def _check_writable(results: ResultsDir) -> None:
    """Fail now rather than after an hour of training."""
    if results.path.exists() and not results.path.is_dir():
        raise ResultsError(f"--results {results.path} is a file: name a directory.")
    files.write_text(results.path / "work" / ".writable", "", error=ResultsError)
    (results.path / "work" / ".writable").unlink(missing_ok=True)


def _index_hash(stream: Stream) -> str:
    names = [stream.classes[label] for label in stream.labels]
    return corpora.index_hash(pd.DataFrame({"clip_id": list(stream.clip_ids), "label": names}))
