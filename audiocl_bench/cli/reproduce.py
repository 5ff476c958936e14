"""`audiocl reproduce`: the runs that a table of the paper lacks, listed and made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audiocl_bench.cli import options
from audiocl_bench.cli.table import MINI, published

if TYPE_CHECKING:
    from audiocl_bench.report.commands import Command


def reproduce(
    table: Annotated[str, typer.Argument(help="A table of the paper: table1, table2, table3, table4 or table12.")],
    run: Annotated[
        bool, typer.Option("--run", "--yes", "-y", help="Make the missing runs without asking; a script has to say it.")
    ] = False,
    bench: Annotated[
        list[str] | None,
        typer.Option("--bench", "--benchmark", "-b", metavar="NAME", help="Only these (default: the table's)."),
    ] = None,
    backbone: options.Backbone = "eat-base",
    protocol: options.Protocol = None,
    orders: Annotated[
        str | None, typer.Option("--orders", metavar="LIST", help="Class orders: 0 or 0-4 (default: all).")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="LIST", help="Run seeds: 0 or 0-2.")] = None,
    data: options.Data = None,
    get_data: options.GetData = False,
    results: options.Results = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    workers: options.Workers = None,
    executor: options.Executor = None,
    jobs: options.Jobs = None,
    address: options.Address = None,
    slurm: options.Slurm = None,
    quiet: options.Quiet = False,
) -> None:
    """List the runs that a table of the paper lacks, as commands; then make them and print the table.

    At a terminal it asks before it begins; elsewhere it needs --run.

    Commands are made one after the other, benchmark by benchmark; one that fails
    does not stop the others. With --jobs or --executor all runs are made at once
    (see audiocl run --help). Run it again to continue: a run that has a result is
    not made again.

    [bold]Examples[/bold]

      audiocl reproduce table2

      audiocl reproduce table2 --data ~/audio --orders 0 --run

      audiocl reproduce table4 --data mini --backbone eat-mini --run
    """
    from audiocl_bench.cli.sweep import Sweep, run_sweep, run_together
    from audiocl_bench.errors import AudioclError
    from audiocl_bench.report import sheets

    def now() -> sheets.Sheet:
        return published(
            table,
            results=None if results is None else [results],
            bench=bench,
            backbone=backbone,
            protocol=protocol,
            orders=orders,
            seeds=seeds,
            data=data,
            may_be_new=True,
        )

    sheet = now()
    missing = sheet.commands(together=False)
    if not missing:
        typer.echo("No run is missing.\n")
        typer.echo(sheets.render(sheet), nl=False)
        return
    _list(sheet.title, missing, data=sheet.data, results=sheet.results)
    together = executor is not None or (jobs or 1) > 1
    if not (run or _agreed("several at once" if together else "one command after the other")):
        return
    sweeps = [
        Sweep(
            methods=command.methods,
            benchmarks=command.benchmarks,
            backbone=command.backbone,
            protocol=command.protocol or None,
            orders=command.orders,
            seeds=command.seeds,
            data=MINI if command.mini else sheet.data,
            get_data=get_data,
            results=results,
            settings=command.settings,
            device=device,
            threads=threads,
            workers=workers,
            executor=executor,
            jobs=jobs,
            address=address,
            slurm=tuple(slurm or ()),
            quiet=quiet,
        )
        for command in missing
    ]
    failures = []
    if together:
        typer.echo("")
        try:
            run_together(sweeps)
        except AudioclError as error:
            failures.append(str(error))
    else:
        for command, sweep in zip(missing, sweeps, strict=True):
            typer.echo(f"\n$ {command.text(data=sheet.data, results=sheet.results)}")
            try:
                run_sweep(sweep)
            except AudioclError as error:
                failures.append(str(error))
    typer.echo("")
    typer.echo(sheets.render(now()), nl=False)
    if failures:
        raise AudioclError("\n".join(dict.fromkeys(failures)))


def _list(title: str, missing: tuple[Command, ...], *, data: Path | None, results: str | None) -> None:
    """Print how many runs are missing and the commands that make them."""
    count = sum(command.runs for command in missing)
    typer.echo(f"{title}: {count} {'run is' if count == 1 else 'runs are'} missing.\n")
    for command in missing:
        typer.echo(command.text(data=data, results=results))


def _agreed(how: str) -> bool:
    """Ask a person at a terminal; a script that did not say --run gets the list only."""
    if sys.stdin.isatty() and typer.confirm(f"\nMake them now, {how}?"):
        return True
    typer.echo(f"\nNothing was run. Add --run to make them now, {how}.")
    return False
