"""Time what the harness itself costs per session: TIMIT's 315 sessions with features that cost nothing to compute.

The stream is the frozen one (630 speakers, order 0); a clip's log-mel is a ready feature (random class centre plus
noise), so that what remains is opening sessions, keeping test features, predicting, scoring and checkpoints. Printed
are milliseconds per session over windows of the stream, the method's own part (learn, encode, classify) apart.

    python benchmarks/harness.py --method ncm --benchmark timit2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn

from audiocl_bench import benchmarks, config, registry
from audiocl_bench.backbones.base import Backbone, PassCounter
from audiocl_bench.method import Method
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan, execute
from audiocl_bench.store import Store
from audiocl_bench.streams import Stream

DIM = 768


class Ready(nn.Module):
    """Looks like a backbone; the clip is the feature already."""

    name, network, dim, depth, layer, pool, weights_hash, stand_in = "ready", "none", DIM, 1, 1, "mean", "0" * 64, True

    def __init__(self) -> None:
        super().__init__()
        self.passes = PassCounter()
        self.front_end = SimpleNamespace(normalise=lambda mel: mel, describe=lambda: {"kind": "ready"})

    def features(self, x: Tensor) -> Tensor:
        self.passes.clips += len(x)
        return x[:, 0]

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


class Features:
    """Looks like a store; gives [B, 1, DIM]."""

    key = "ready"

    def __init__(self, stream: Stream) -> None:
        generator = np.random.default_rng(0)
        centres = generator.normal(size=(stream.num_classes, DIM)).astype(np.float32)
        noise = generator.normal(size=(len(stream.clip_ids), DIM)).astype(np.float32)
        self.values = torch.from_numpy(centres[stream.labels] + 2 * noise)
        self.places = {clip: row for row, clip in enumerate(stream.clip_ids)}

    def rows(self, clip_ids: list[str]) -> np.ndarray:
        return np.array([self.places[clip] for clip in clip_ids])

    def batch(self, rows: np.ndarray) -> Tensor:
        return self.values[torch.from_numpy(rows)][:, None]


def timed(cls: type[Method], spent: list[float]) -> type[Method]:
    """Return the method with the time of its own work added up in `spent[0]`."""

    def around(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begun = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                spent[0] += time.perf_counter() - begun

        return call

    own = {name: around(getattr(cls, name)) for name in ("learn", "encode", "classify", "state_dict")}
    return cast(type[Method], type(cls.__name__, (cls,), own))


class Clock:
    """A monitor that notes when each session ended, and the method's share."""

    def __init__(self, spent: list[float]) -> None:
        self.spent, self.ends, self.own = spent, [], [0.0]  # type: ignore[var-annotated]

    def run_started(self, run_id: str, sessions: int, done: int) -> None:
        self.ends = [time.perf_counter()]

    def session_done(self, session: int, accuracy: float) -> None:
        self.ends.append(time.perf_counter())
        self.own.append(self.spent[0])

    def epoch(self, *_: Any) -> None: ...

    def message(self, text: str) -> None:
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ncm")
    parser.add_argument("--benchmark", default="timit2", choices=benchmarks.names())
    parser.add_argument("--protocol", default="paper", choices=("paper", "grouped"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--windows", type=int, default=7)
    arguments = parser.parse_args()
    begun = time.perf_counter()
    benchmark = benchmarks.get(arguments.benchmark)
    stream = benchmark.stream(arguments.protocol, 0)
    loaded = time.perf_counter() - begun
    spent = [0.0]
    cls = registry.load(arguments.method)
    settings = config.build(
        cls.Config, benchmark.name, config.parse_overrides(tuple(arguments.set)), owner=arguments.method
    )
    material = Material(benchmark, stream, cast(Store, Features(stream)), cast(Backbone, Ready()), "0" * 64)
    clock = Clock(spent)
    with tempfile.TemporaryDirectory() as folder:
        execute(Plan(timed(cls, spent), settings, 0), material, ResultsDir(Path(folder)), monitor=cast(Any, clock))
    total = time.perf_counter() - clock.ends[0]
    whole, own = 1000 * np.diff(clock.ends), 1000 * np.diff(clock.own)
    rows = []
    for part in np.array_split(np.arange(len(whole)), arguments.windows):
        harness = whole[part] - own[part]
        rows.append((f"{part[0] + 1}-{part[-1] + 1}", harness.mean(), np.median(harness), own[part].mean()))
    print(f"{arguments.benchmark}, {arguments.method}: {stream.num_classes} classes, {stream.num_sessions} sessions")
    print(tabulate(rows, ("sessions", "harness ms", "median", "method ms"), floatfmt=".1f"))
    print(f"stream loaded in {loaded:.2f} s; all sessions {whole.sum() / 1000:.1f} s; to the result {total:.1f} s")


if __name__ == "__main__":
    main()
