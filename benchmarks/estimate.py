"""Predicted against measured: what `audiocl estimate` says, beside what runs recorded.

    python benchmarks/estimate.py                       passes and kept bytes of the stored runs in --results
    python benchmarks/estimate.py --since 2026-11-22    of those started since then, time and memory too
    python benchmarks/estimate.py --fresh               time and memory of runs made now, in a cache of their own

Stored runs were made by the code of their day, on machines shared with others: only their counts are compared, unless
--since says which ones this machine made. Their time is by the clock, and longer beside other programs. Fresh
runs are made one after the other in this process on one thread: with an empty feature bank (first run), and again with
another seed (later run). Their time is processor time, which another program beside them changes little; time by the
clock stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tabulate import tabulate

from audiocl_bench import backbones, benchmarks, config, registry
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.estimate import phantom, rates, rehearse
from audiocl_bench.estimate.model import Request, RunEstimate, Span, estimate, memory_of, seconds_of
from audiocl_bench.executors.unit import material
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Plan, execute
from audiocl_bench.streams import Stream

ROOT = Path(__file__).resolve().parent.parent
FILES = {benchmarks.get(str(path)).name: path for path in sorted((ROOT / "examples").glob("*.toml"))}
"""Own benchmarks by the name in the results."""


def stored(
    results: Path, backbone: str, methods: tuple[str, ...], names: tuple[str, ...], most: int, since: str | None
) -> str:
    """Return the table of stored runs: one per method, settings and benchmark, at most `most` of each method."""
    torch.set_num_threads(1)
    runs = ResultsDir(results).runs()
    if since is not None:
        runs = runs[pd.to_datetime(runs["started_at"], utc=True) >= pd.Timestamp(since, tz="UTC")]
    runs = runs[runs["backbone"].str.removesuffix("-encoder") == Path(backbone).name.removesuffix("-encoder")]
    runs = runs[runs["benchmark"].isin(names or list(FILES)) & (runs["method"].isin(methods) | (not methods))]
    runs = runs.drop_duplicates(["method", "benchmark", "method_config"]).groupby(["benchmark", "method"]).head(most)
    networks: dict[int, Any] = {}
    streams: dict[tuple[str, int], tuple[Benchmark, Stream]] = {}
    rows = []
    for run in runs.to_dict("records"):
        benchmark, stream = opened(str(run["benchmark"]), int(run["order"]), streams)
        if benchmark.frames not in networks:
            network, _ = phantom.architecture(backbone, pool=None, layer=None, frames=benchmark.frames)
            body = phantom.anatomy(network)
            here = rates.measured(network, body, torch.device("cpu")) if since is not None else None
            networks[benchmark.frames] = network, body, here
        network, body, here = networks[benchmark.frames]
        method = registry.load(str(run["method"]))
        settings = config.build(method.Config, benchmark.name, json.loads(run["method_config"]), owner=method.name)
        worlds = [
            rehearse(method, settings, benchmark, stream, network, body, world=world) for world in ("calm", "restless")
        ]
        work = run["blocks_needed"] + run["blocks_reused"] if run["blocks_needed"] == run["blocks_needed"] else None
        predicted = [
            span([world.train["passes"] for world in worlds]),
            span([world.test["passes"] for world in worlds]),
            span([world.train["needed"] + world.test["needed"] for world in worlds]),
            span([world.sessions[-1].kept_bytes for world in worlds]),
        ]
        recorded = [run["train_passes"], run["eval_passes"], work, run["kept_bytes"]]
        if here is not None:
            parts = [seconds_of(world, here, body) for world in worlds]
            filled = 0.0 if run["blocks_reused"] else 1.0
            predicted.append(span([part["train"] + part["test"] + filled * part["bank"] for part in parts]))
            predicted.append(span([memory_of(world, here, body)[0] / 1e6 for world in worlds]))
            recorded += [run["train_seconds"] + run["eval_seconds"], run["peak_memory_mb"]]
        pairs = [cell for pair in zip(predicted, recorded, strict=True) for cell in pair]
        rows.append([run["benchmark"], run["method"], f"#{run['config_hash'][:6]}", *pairs])
    titles = ["benchmark", "method", "settings"]
    for what in ("train passes", "eval passes", "blocks", "kept bytes", *(("seconds", "peak MB") if since else ())):
        titles += [what, "recorded"]
    return tabulate(rows, titles, tablefmt="github", missingval="-", intfmt=",", floatfmt=",.0f")


def opened(name: str, order: int, known: dict[tuple[str, int], tuple[Benchmark, Stream]]) -> tuple[Benchmark, Stream]:
    if (name, order) not in known:
        benchmark = benchmarks.get(str(FILES[name]))
        index = benchmark.checked(benchmark.corpus.index(benchmark.find(None)))
        known[name, order] = benchmark, benchmark.stream(benchmark.protocols[0], order, index)
    return known[name, order]


def span(values: list[float]) -> str:
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


class Watch:
    """Processor time and time by the clock of a piece of work."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __call__(self, work: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        self.cpu, self.wall = time.process_time() - cpu, time.perf_counter() - wall
        return result


def fresh(backbone: str, methods: tuple[str, ...], names: tuple[str, ...]) -> Iterator[list[Any]]:
    """Yield one row per method and benchmark: predicted and measured seconds and memory."""
    torch.set_num_threads(1)
    for name in names:
        toml = str(FILES[name]) if name in FILES else name
        found = {
            run.method: run
            for run in estimate(Request(methods=methods, benchmarks=(toml,), backbone=backbone)).runs
            if not run.problem
        }
        for method in methods:
            with tempfile.TemporaryDirectory() as home:
                yield from one_fresh(backbone, method, toml, found[method], Path(home))


def one_fresh(backbone: str, name: str, toml: str, run: RunEstimate, home: Path) -> Iterator[list[Any]]:
    before = os.environ.get("AUDIOCL_HOME")
    os.environ["AUDIOCL_HOME"] = str(home)
    try:
        benchmark = benchmarks.get(toml)
        network = backbones.load(backbone, frames=benchmark.frames)
        stream, clips = benchmark.open(None, benchmark.protocols[0], 0)
        watch, results = Watch(), ResultsDir(home / "results")
        prepared = watch(lambda: material(benchmark, stream, clips, network, workers=1))
        rows = [("prepare", Span(run.prepare_seconds, run.prepare_seconds) * len(os.sched_getaffinity(0)), watch)]
        method = registry.load(name)
        settings = config.build(method.Config, benchmark.name, {}, owner=name)
        ids = []
        for seed, what in ((0, run.first_seconds), (1, run.later_seconds)):
            own = Watch()
            plan = Plan(method, settings, seed)
            ids.append(own(lambda plan=plan: execute(plan, prepared, results))[0])
            rows.append(("later run" if seed else "first run", what, own))
        table: pd.DataFrame = results.runs().set_index("run_id")
        for title, predicted, spent in rows:
            cells = [benchmark.name, name, title, seconds(predicted), f"{spent.cpu:.1f}", f"{spent.wall:.1f}"]
            yield [*cells, ratio(predicted, spent.cpu), "", ""]
        kept, passes = int(table.loc[ids[0], "kept_bytes"]), int(table.loc[ids[0], "train_passes"])
        peak = max(float(table.loc[identity, "peak_memory_mb"]) for identity in ids)
        for title, predicted, recorded in (
            ("peak MB", run.peak_memory_mb, f"{peak:.0f}"),
            ("kept bytes", run.kept_bytes, f"{kept:,}"),
            ("train passes", run.train_passes, f"{passes:,}"),
        ):
            yield [benchmark.name, name, title, *[""] * 4, span([predicted.low, predicted.high]), recorded]
    finally:
        if before is None:
            os.environ.pop("AUDIOCL_HOME")
        else:
            os.environ["AUDIOCL_HOME"] = before


def seconds(value: Span) -> str:
    return f"{value.low:.1f}" if value.exact else f"{value.low:.1f} to {value.high:.1f}"


def ratio(predicted: Span, measured: float) -> str:
    return seconds(predicted * (1 / max(measured, 1e-9)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="make runs now")
    parser.add_argument("--methods", nargs="*", default=None, help="default: all stored; ncm ranpac strata l2p fresh")
    parser.add_argument("--bench", nargs="*", default=None, help="names of example streams")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "examples")
    parser.add_argument("--since", metavar="DATE", help="only stored runs started since then, made on this machine")
    parser.add_argument("--most", type=int, default=1, help="settings of each method and stream")
    parser.add_argument("--shape", default="whisper-tiny.en", help="shape of the stored runs' backbone")
    parser.add_argument("--backbone", default=str(ROOT.parent / "shared" / "weights" / "whisper-tiny.en-encoder"))
    arguments = parser.parse_args()
    names = tuple(arguments.bench or ())
    print(f"{os.cpu_count()} CPUs, torch {torch.__version__}, load average {os.getloadavg()[0]:.1f} at the start\n")
    if arguments.fresh:
        methods = tuple(arguments.methods or ("ncm", "ranpac", "strata", "l2p"))
        titles = (
            "benchmark",
            "method",
            "what",
            "predicted s",
            "processor s",
            "clock s",
            "ratio",
            "predicted",
            "measured",
        )
        rows = []
        for row in fresh(arguments.backbone, methods, names or ("arabic-keywords",)):
            rows.append(row)
            print(*row, file=sys.stderr, flush=True)  # minutes lie between rows
        print(tabulate(rows, titles, tablefmt="github", disable_numparse=True))
    else:
        methods = tuple(arguments.methods or ())
        print(stored(arguments.results, arguments.shape, methods, names, arguments.most, arguments.since))


if __name__ == "__main__":
    main()
