"""The `audiocl run` commands that make given runs, in few lines, each run once."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from audiocl_bench import benchmarks
from audiocl_bench.mini.catalogue import PREFIX

Stream = tuple[int, int]
"""A class order and a seed: what a score is averaged over."""

_DEFAULT_BACKBONE = "eat-base"  # of `audiocl run`


@dataclass(frozen=True)
class Wanted:
    """Runs of one method on one benchmark that do not exist yet.

    Attributes:
        method: as typed, `METHOD` or `METHOD@PRESET`.
        settings: changed settings, as `--set` takes them.
        benchmark: as typed: a name (`mini-` names included) or the path of a .toml file.
        protocol: split protocol; "" for the benchmark's default one.
        backbone: as typed, a name or a path.
        streams: (order, seed) pairs.
    """

    method: str
    settings: tuple[str, ...]
    benchmark: str
    protocol: str
    backbone: str
    streams: frozenset[Stream]


@dataclass(frozen=True)
class Command:
    """One `audiocl run`: the product of its methods, benchmarks, orders and seeds.

    Attributes:
        methods, benchmarks, backbone, protocol, settings: as in `Wanted`.
        orders, seeds: ascending.
    """

    methods: tuple[str, ...]
    benchmarks: tuple[str, ...]
    backbone: str
    protocol: str
    settings: tuple[str, ...]
    orders: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def runs(self) -> int:
        """How many runs it makes."""
        return len(self.methods) * len(self.benchmarks) * len(self.orders) * len(self.seeds)

    @property
    def mini(self) -> bool:
        """Whether it runs miniatures."""
        return all(name.startswith(PREFIX) for name in self.benchmarks)

    def text(self, *, data: Path | None = None, results: str | Path | None = None) -> str:
        """Return the command as typed into a shell; what equals the default of `audiocl run` is left out.

        Args:
            data: folder of the corpora, if it is not the default one. Miniatures need none.
            results: folder of results or its URL, if it is not the default one.
        """
        words = ["audiocl", "run", "-m", ",".join(self.methods), "-b", self._benchmarks()]
        if self.mini:
            words += ["--data", "mini"]
        elif data is not None:
            words += ["--data", str(data)]
        if self.backbone != _DEFAULT_BACKBONE:
            words += ["--backbone", self.backbone]
        if self.protocol:
            words += ["--protocol", self.protocol]
        for option, numbers in (("--orders", self.orders), ("--seeds", self.seeds)):
            if numbers != (0,):
                words += [option, ranges(numbers)]
        for setting in self.settings:
            words += ["--set", setting]
        if results is not None:
            words += ["--results", str(results)]
        return shlex.join(words)

    def _benchmarks(self) -> str:
        names = [name.removeprefix(PREFIX) for name in self.benchmarks] if self.mini else list(self.benchmarks)
        return "all" if set(names) == set(benchmarks.names()) else ",".join(names)


def commands(wanted: Iterable[Wanted], *, together: bool = True) -> tuple[Command, ...]:
    """Return commands that make exactly the wanted runs, each once, in the order they are first asked for.

    Args:
        wanted: what is missing; no two entries may ask for the same run.
        together: one command may run several benchmarks. Without it a corpus that is not there stops no other one.
    """
    # Methods first: those that lack the same runs of a benchmark. Changed settings are one method's own.
    lines: dict[Wanted, list[str]] = {}
    for item in wanted:
        if item.streams:
            lines.setdefault(item if item.settings else dataclasses.replace(item, method=""), []).append(item.method)
    # Then benchmarks on which the same methods lack the same runs. `--data` keeps miniatures apart from real ones.
    products: dict[tuple[Wanted, tuple[str, ...], bool], list[str]] = {}
    for key, methods in lines.items():
        common = dataclasses.replace(key, benchmark="" if together else key.benchmark)
        products.setdefault((common, tuple(methods), key.benchmark.startswith(PREFIX)), []).append(key.benchmark)
    return tuple(
        Command(methods, tuple(names), common.backbone, common.protocol, common.settings, orders, seeds)
        for (common, methods, _), names in products.items()
        for orders, seeds in _rectangles(common.streams)
    )


def ranges(numbers: Sequence[int]) -> str:
    """Write numbers as `--orders` reads them: (0, 1, 2, 5) is "0-2,5"."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def _rectangles(streams: frozenset[Stream]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Split (order, seed) pairs into products of orders and seeds that cover each pair once."""
    seeds_of: dict[int, list[int]] = {}
    for order, seed in sorted(streams):
        seeds_of.setdefault(order, []).append(seed)
    orders_of: dict[tuple[int, ...], list[int]] = {}
    for order, seeds in seeds_of.items():
        orders_of.setdefault(tuple(seeds), []).append(order)
    return [(tuple(orders), seeds) for seeds, orders in orders_of.items()]
