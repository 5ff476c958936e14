"""What reproducing the whole paper costs: the tables of docs/scale.md.

    python benchmarks/scale.py --cache DIR

Every method is rehearsed on every benchmark (`audiocl_bench.estimate`: its own code, on a phantom of EAT base that
computes nothing), and what it asks for is priced twice: with the rates of this machine, one thread, measured now or
kept; and with those of `benchmarks/assumed_gpu.toml`, which are assumptions. Where the cost depends on the features it
is the upper end. Rehearsals are kept in --cache: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from audiocl_bench import benchmarks, config, files, registry
from audiocl_bench.estimate import Rates, phantom, rates, rehearse
from audiocl_bench.estimate.model import memory_of, seconds_of
from audiocl_bench.report.tables import short_duration

METHODS = (
    "joint",
    "l2p",
    "dualprompt",
    "sprompt++",
    "coda-prompt",
    "hide-prompt",
    "lora-drs",
    "acil",
    "ranpac@no-fsa",
    "ranpac",
    "pace",
    "ncm",
    "layup",
    "strata",
)
BACKBONE = "eat-base"
ORDERS = 5
MACHINES = (("32 CPU cores", "cpu", 32), ("one GPU", "gpu", 1), ("8 GPUs", "gpu", 8))
ASSUMED = Path(__file__).with_name("assumed_gpu.toml")


def cost(method: str, bench: str, cpu: Rates, gpu: Rates, network: Any, body: Any) -> dict[str, Any]:
    """Rehearse one run; return its seconds by device and part, its passes, memory and kept bytes."""
    name, _, preset = method.partition("@")
    cls, benchmark = registry.load(name), benchmarks.get(bench)
    settings = config.build(cls.Config, bench, {"preset": preset} if preset else {}, owner=name)
    stream = benchmark.stream(benchmark.protocols[0], 0)
    rehearsed = rehearse(cls, settings, benchmark, stream, network, body, world="restless")
    return {
        "cpu": seconds_of(rehearsed, cpu, body),
        "gpu": seconds_of(rehearsed, gpu, body),
        "passes": (rehearsed.train["passes"] + rehearsed.test["passes"]) / len(stream.clip_ids),
        "memory": memory_of(rehearsed, cpu, body)[0],
        "kept": rehearsed.sessions[-1].kept_bytes,
    }


def all_costs(cache: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the cost of every method on every benchmark, from the cache where it has been counted."""
    torch.set_num_threads(1)
    gpu = rates.read(ASSUMED)
    found, bodies = {}, {}
    for bench in benchmarks.names():
        frames = benchmarks.get(bench).frames
        if frames not in bodies:
            network, _ = phantom.architecture(BACKBONE, pool=None, layer=None, frames=frames)
            body = phantom.anatomy(network)
            bodies[frames] = network, body, rates.measured(network, body, torch.device("cpu"))
        network, body, cpu = bodies[frames]
        for method in METHODS:
            path = cache / f"{bench}-{method}.json"
            if not path.exists():
                begun = time.monotonic()
                files.write_text(path, json.dumps(cost(method, bench, cpu, gpu, network, body)) + "\n")
                print(f"{bench} {method}: counted in {short_duration(time.monotonic() - begun)}", flush=True)
            found[method, bench] = json.loads(path.read_text(encoding="utf-8"))
    return found


def run_seconds(told: dict[str, Any], device: str) -> float:
    """Return the seconds of a run whose pretrained features are in the bank."""
    return float(sum(told[device][part] for part in ("train", "test", "audit")))


def features_seconds(costs: dict[tuple[str, str], dict[str, Any]], bench: str, device: str) -> float:
    """Return the seconds of all pretrained features of a benchmark: those of the method that reads most of them."""
    return float(max(costs[method, bench][device]["bank"] for method in METHODS))


def tables(costs: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Return the Markdown tables."""
    benches = benchmarks.names()
    parts = []
    for device, title in (("cpu", "One run, on one CPU core"), ("gpu", "One run, on the assumed GPU")):
        rows = [
            [
                "*features of the pretrained network, once*",
                *(short_duration(features_seconds(costs, b, device)) for b in benches),
            ]
        ]
        rows += [[f"`{m}`", *(short_duration(run_seconds(costs[m, b], device)) for b in benches)] for m in METHODS]
        parts += [f"**{title}**", tabulate(rows, ["method", *benches], tablefmt="github", disable_numparse=True)]
    rows = [[f"`{m}`", *(f"{costs[m, b]['passes']:,.1f}" for b in benches)] for m in METHODS]
    parts += ["**Passes through the encoder per clip**"]
    parts += [tabulate(rows, ["method", *benches], tablefmt="github", disable_numparse=True)]
    rows = [
        [f"`{m}`", *(f"{costs[m, b]['memory'] / 1e9:.1f}, {costs[m, b]['kept'] / 1e6:,.1f}" for b in benches)]
        for m in METHODS
    ]
    parts += ["**Peak memory of the process on a CPU (GB), and what the method keeps (MB)**"]
    parts += [tabulate(rows, ["method", *benches], tablefmt="github", disable_numparse=True)]
    rows = []
    for bench in (*benches, "all six"):
        chosen = benches if bench == "all six" else (bench,)
        cells = []
        for _, device, count in MACHINES:
            runs = ORDERS * sum(run_seconds(costs[m, b], device) for m in METHODS for b in chosen)
            cells.append(short_duration((runs + sum(features_seconds(costs, b, device) for b in chosen)) / count))
        rows.append([bench, *cells])
    parts += [f"**Everything: {len(METHODS)} methods, {ORDERS} class orders**"]
    titles = ["benchmark", *(name for name, _, _ in MACHINES)]
    parts += [tabulate(rows, titles, tablefmt="github", disable_numparse=True)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("scale-cache"))
    print(tables(all_costs(parser.parse_args().cache)))


if __name__ == "__main__":
    main()
