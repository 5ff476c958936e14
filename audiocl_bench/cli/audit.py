"""`audiocl audit`: does a learner's accuracy depend on which clips are tested together, and by how much?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from audiocl_bench.request import names, numbers


def audit(
    method: Annotated[
        list[str],
        typer.Option("--method", "-m", metavar="NAME", help="Method, METHOD@PRESET, or file.py:Class."),
    ],
    bench: Annotated[
        list[str],
        typer.Option("--bench", "--benchmark", "-b", metavar="NAME", help="Benchmark, or your own .toml file."),
    ],
    backbone: Annotated[
        str, typer.Option("--backbone", metavar="NAME", help="Pretrained network, or a path to weights.")
    ] = "eat-base",
    protocol: Annotated[str | None, typer.Option("--protocol", metavar="NAME", help="paper or grouped.")] = None,
    orders: Annotated[str, typer.Option("--orders", metavar="LIST", help="Class orders: 0 or 0-4 or 0,2.")] = "0",
    seeds: Annotated[str, typer.Option("--seeds", metavar="LIST", help="Run seeds: 0 or 0-2.")] = "0",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder of the corpora; 'mini' for synthetic miniatures."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in audiocl run. Repeatable."),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads (default: all).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
) -> None:
    """Train a method, run all audits, and test it in batches of many kinds.

    An honest learner's accuracy is the same whatever clips are tested with a
    clip. Published prompt methods gain points when test batches hold one
    session only; this shows how many. Nothing is stored. Exit code 2 if an
    audit fails that the method does not declare as a published leak.

    [bold]Examples[/bold]

      audiocl audit -m my.py:Mine -b us8k --data mini --backbone eat-tiny

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
