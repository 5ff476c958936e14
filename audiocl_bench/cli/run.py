"""`audiocl run`: make runs, one per (method, benchmark, order, seed)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from audiocl_bench.request import names, numbers

_WHERE, _HOW, _MACHINE = "Where", "How", "Machine"


def run(
    method: Annotated[
        list[str],
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="Method, METHOD@PRESET, or file.py:Class. Repeat or separate by commas.",
        ),
    ],
    bench: Annotated[
        list[str],
        typer.Option(
            "--bench", "--benchmark", "-b", metavar="NAME", help="Benchmark, your own .toml file, or 'all' (the six)."
        ),
    ],
    backbone: Annotated[
        str, typer.Option("--backbone", metavar="NAME", help="Pretrained network, or a path to weights.")
    ] = "eat-base",
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", metavar="NAME", help="paper (random 8:2, the default) or grouped (leak-free)."),
    ] = None,
    orders: Annotated[str, typer.Option("--orders", metavar="LIST", help="Class orders: 0 or 0-4 or 0,2.")] = "0",
    seeds: Annotated[str, typer.Option("--seeds", metavar="LIST", help="Run seeds: 0 or 0-2.")] = "0",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            rich_help_panel=_WHERE,
            help="Folder of the corpora (default: data/ in the cache directory); 'mini' for synthetic miniatures.",
        ),
    ] = None,
    get_data: Annotated[
        bool,
        typer.Option(
            "--get-data", rich_help_panel=_WHERE, help="Download missing corpora first (never done without this)."
        ),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="DIR",
            rich_help_panel=_WHERE,
            help="Where results go, as Parquet (default: results/ in the cache directory).",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            rich_help_panel=_HOW,
            help="Change a setting: rank=4, pace.msa=false, backbone.pool=mean. Repeatable.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            rich_help_panel=_HOW,
            help="TOML file of settings, one table per method; --set wins over it.",
        ),
    ] = None,
    existing: Annotated[
        Literal["reuse", "replace", "fail"],
        typer.Option("--existing", rich_help_panel=_HOW, help="What to do with a run that has a result."),
    ] = "reuse",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", rich_help_panel=_HOW, help="Start every run anew: ignore checkpoints, replace results."
        ),
    ] = False,
    drift: Annotated[
        bool,
        typer.Option(
            "--drift",
            rich_help_panel=_HOW,
            help="Also measure accuracy with all statistics recomputed at the end.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", rich_help_panel=_MACHINE, help="auto, cpu, cuda or cuda:N.")
    ] = "auto",
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, rich_help_panel=_MACHINE, help="CPU threads (default: all)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            rich_help_panel=_MACHINE,
            help="Processes that decode audio (default: one per core).",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=_MACHINE, help="No progress display.")
    ] = False,
) -> None:
    """Run methods on benchmarks and store every prediction.

    Runs are the product of methods, benchmarks, orders and seeds. Audio is
    decoded once per corpus. A run that was interrupted continues at its last
    finished session and ends with the same bytes as an unbroken one.

    [bold]Examples[/bold]

      audiocl run -m pace -b esc50 --data ~/audio

      audiocl run -m ncm,ranpac,pace -b all --orders 0-4 --seeds 0-2

      audiocl run -m pace -b all --data mini --backbone eat-tiny

      audiocl run -m pace -b esc50 --set msa=false --results ablation/

      audiocl run -m my.py:Mine -b my.toml --backbone eat-tiny
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
            quiet=quiet,
        )
    )
