"""`audiocl estimate`: time and memory of runs before they start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from audiocl_bench.cli import options


def estimate(
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="As for run; 'all-paper' is every row of the paper's Table 2. Repeat or separate by commas.",
        ),
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option(
            "--bench", "--benchmark", "-b", metavar="NAME", help="Benchmark, your own .toml file, or 'all' (the six)."
        ),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table", metavar="TABLE", help="All runs of a table of the paper, as for reproduce; 'all' for all tables."
        ),
    ] = None,
    backbone: options.Backbone = "eat-base",
    protocol: options.Protocol = None,
    orders: Annotated[
        str | None,
        typer.Option("--orders", metavar="LIST", help="Class orders: 0 or 0-4 (default: 0; all for --table)."),
    ] = None,
    seeds: options.Seeds = "0",
    data: options.Data = None,
    set_: options.Settings = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", rich_help_panel=options.HOW, help="TOML file of settings."),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    jobs: options.Jobs = None,
    rates: Annotated[
        Path | None,
        typer.Option(
            "--rates",
            metavar="FILE",
            rich_help_panel=options.MACHINE,
            help="Speeds of another machine (TOML), instead of measuring this one.",
        ),
    ] = None,
    write_rates: Annotated[
        Path | None,
        typer.Option(
            "--write-rates",
            metavar="FILE",
            rich_help_panel=options.MACHINE,
            help="Write this machine's speeds there, for --rates elsewhere.",
        ),
    ] = None,
    recalibrate: Annotated[
        bool,
        typer.Option(
            "--recalibrate", rich_help_panel=options.MACHINE, help="Measure again, instead of using what was kept."
        ),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Predict time and memory of runs before they start.

    Every method is rehearsed: its own code goes through the real stream with a
    phantom of the backbone that computes nothing, and what it asks for is
    counted. Times follow from the speeds of this machine, measured in a few
    seconds and kept, or of another one with --rates. Neither audio of the six
    benchmarks nor weights of a named backbone are needed.

    A number is a range where it depends on what the features will be like.

    [bold]Examples[/bold]

      audiocl estimate -m pace -b esc50

      audiocl estimate -m all-paper -b all --orders 0-4 --jobs 4

      audiocl estimate --table table2 --device cuda --rates h100.toml

      audiocl estimate -m ncm -b esc50 --device cuda --write-rates h100.toml
    """
    import json

    import torch
    from rich.console import Console

    from audiocl_bench.errors import ConfigError
    from audiocl_bench.estimate import rates as speeds
    from audiocl_bench.estimate.model import Request
    from audiocl_bench.estimate.model import estimate as count
    from audiocl_bench.estimate.tables import estimate_table
    from audiocl_bench.request import names, numbers
    from audiocl_bench.runner import threads as limited

    if write_rates is not None and rates is not None:
        raise ConfigError("--write-rates writes what is measured here: leave --rates out.")
    console = Console(stderr=True)
    share = None if threads is None and jobs is None else threads or max(1, torch.get_num_threads() // (jobs or 1))
    given = (0,) if not table else None
    request = Request(
        methods=names(method, "--method") if method else (),
        benchmarks=names(bench, "--bench") if bench else (),
        tables=names(table, "--table") if table else (),
        backbone=backbone,
        protocol=protocol,
        orders=numbers(orders, "--orders") if orders is not None else given,
        seeds=numbers(seeds, "--seeds"),
        data=data,
        settings=tuple(set_ or ()),
        config=config,
        device=device,
        rates=rates,
        recalibrate=recalibrate,
        jobs=jobs or 1,
    )
    with limited(share):
        if quiet or json_ or not console.is_interactive:
            found = count(request)
        else:
            with console.status("") as status:
                found = count(request, status.update)
    if write_rates is not None:
        if len(found.rates) > 1:
            raise ConfigError("--write-rates holds the speeds for one clip length: estimate benchmarks of one length.")
        speeds.write(write_rates, next(iter(found.rates.values())))
    if json_:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        Console().print(estimate_table(found))
