"""`audiocl audit`: does a learner's accuracy depend on which clips are tested together, and by how much?"""

from __future__ import annotations

from audiocl_bench.cli import options
from audiocl_bench.request import names, numbers


def audit(
    method: options.Methods,
    bench: options.Benches,
    backbone: options.Backbone = "eat-base",
    protocol: options.Protocol = None,
    orders: options.Orders = "0",
    seeds: options.Seeds = "0",
    data: options.Data = None,
    set_: options.Settings = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Train a method, run all audits, and test it in batches of many kinds.

    An honest learner's accuracy is the same whatever clips are tested with a
    clip. Published prompt methods gain points when test batches hold one
    session only; this shows how many. Nothing is stored. Exit code 2 if an
    audit fails that the method does not declare as a published leak.

    [bold]Examples[/bold]

      audiocl audit -m my.py:Mine -b us8k --data mini --backbone eat-mini

      audiocl audit -m dualprompt --set gather=published -b my.toml
    """
    from audiocl_bench.cli.sweep import Sweep, run_sweep

    run_sweep(
        Sweep(
            methods=names(method, "--method"),
            benchmarks=names(bench, "--bench"),
            backbone=backbone,
            protocol=protocol,
            orders=numbers(orders, "--orders"),
            seeds=numbers(seeds, "--seeds"),
            data=data,
            settings=tuple(set_ or ()),
            audit=True,
            device=device,
            threads=threads,
            quiet=quiet,
        )
    )
