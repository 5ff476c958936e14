"""`audiocl run`: make runs, one per (method, benchmark, order, seed)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from audiocl_bench.cli import options
from audiocl_bench.request import names, numbers


def run(
    method: options.Methods,
    bench: options.Benches,
    backbone: options.Backbone = "eat-base",
    protocol: options.Protocol = None,
    orders: options.Orders = "0",
    seeds: options.Seeds = "0",
    data: options.Data = None,
    get_data: options.GetData = False,
    results: options.Results = None,
    set_: options.Settings = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            rich_help_panel=options.HOW,
            help="TOML file of settings, one table per method; --set wins over it.",
        ),
    ] = None,
    existing: Annotated[
        Literal["reuse", "replace", "fail"],
        typer.Option("--existing", rich_help_panel=options.HOW, help="What to do with a run that has a result."),
    ] = "reuse",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            rich_help_panel=options.HOW,
            help="Start every run anew: ignore checkpoints, replace results.",
        ),
    ] = False,
    drift: Annotated[
        bool,
        typer.Option(
            "--drift",
            rich_help_panel=options.HOW,
            help="Also measure accuracy with all statistics recomputed at the end.",
        ),
    ] = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    executor: options.Executor = None,
    jobs: options.Jobs = None,
    address: options.Address = None,
    slurm: options.Slurm = None,
    quiet: options.Quiet = False,
) -> None:
    """Run methods on benchmarks and store every prediction.

    Runs are the product of methods, benchmarks, orders and seeds. Audio is
    decoded once per corpus. A run that was interrupted continues at its last
    finished session and ends with the same bytes as an unbroken one.

    With --jobs or --executor several runs are made at once. The results are
    the same; on a CPU to the last bit, if --threads is. A run whose process
    is lost is given out again and continues. Ctrl-C ends every run after its
    session, Ctrl-C twice at once; Slurm jobs go on, and the same command
    waits for them again.

    [bold]Examples[/bold]

      audiocl run -m pace -b esc50 --data ~/audio

      audiocl run -m ncm,ranpac,pace -b all --orders 0-4 --seeds 0-2

      audiocl run -m pace -b all --data mini --backbone eat-mini

      audiocl run -m pace -b esc50 --set msa=false --results ablation/

      audiocl run -m my.py:Mine -b my.toml --backbone eat-mini

      audiocl run -m ncm,pace -b all --orders 0-4 --jobs 4 --threads 2

      audiocl run -m pace -b all --executor ray --address auto

      audiocl run -m pace -b all --executor slurm --slurm partition=gpu
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
            get_data=get_data,
            results=results,
            settings=tuple(set_ or ()),
            config=config,
            existing="replace" if fresh else existing,
            fresh=fresh,
            drift=drift,
            device=device,
            threads=threads,
            workers=workers,
            executor=executor,
            jobs=jobs,
            address=address,
            slurm=tuple(slurm or ()),
            quiet=quiet,
        )
    )
