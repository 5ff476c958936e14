"""`audiocl check`: does a method keep the interface and its promises?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from audiocl_bench.conformance import Outcome, Progress, Report


def check(
    method: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="Name, METHOD@PRESET, or file.py:Class.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, for example --set epochs=1. Repeatable."),
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option("--bench", "-b", metavar="NAME", help="Miniature for whole runs (mini-us8k), or none."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="Make this check only. Repeatable.")
    ] = None,
    backbone: Annotated[
        str, typer.Option("--backbone", metavar="NAME", help="Network to check with; eat-tiny (random) is quicker.")
    ] = "eat-mini",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Run seed.")] = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads (default: all).")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the checks and what they demand.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
) -> None:
    """Examine a method: interface, determinism, resume, audits, memory.

    Most checks take seconds, on a small stream in memory; two make whole
    runs on a miniature benchmark, killed and continued. The network is the
    small one that comes with audiocl, so nothing is downloaded. Exit code 2
    if a check fails, as for every other refusal, else 0.

    [bold]Examples[/bold]

      audiocl check my.py:MyMethod

      audiocl check my-plugin --set epochs=1 --only resume

      audiocl check --list
    """
    from rich.console import Console

    from audiocl_bench import config, conformance, registry, runner
    from audiocl_bench.errors import AudioclError, ConfigError

    if list_:
        from audiocl_bench.report.tables import listing

        rows = [(name, conformance.describe(name)) for name in conformance.names()]
        Console().print(listing(rows, ("check", "what it demands"), "Checks"))
        return
    if method is None:
        raise ConfigError("audiocl check needs a method: a name, or file.py:Class (audiocl list methods shows names).")
    name, at, preset = method.rpartition("@")
    cls = registry.load(name if at else method)
    settings = {**config.parse_overrides(set_ or ()), **({"preset": preset} if at else {})}
    miniatures = tuple(bench) if bench else conformance.MINIATURES
    with runner.threads(threads), _bar(quiet=quiet) as progress:
        report = conformance.check(
            cls,
            settings=settings,
            backbone=backbone,
            miniatures=() if miniatures == ("none",) else miniatures,
            only=only or None,
            seed=seed,
            progress=progress,
        )
    saved = _save_tracebacks(report)
    Console(highlight=False).print(render(report, method, saved))
    if not report.passed:
        failed = ", ".join(outcome.name for outcome in report.failures)
        raise AudioclError(f"method {method} fails {len(report.failures)} of {len(report.outcomes)} checks: {failed}.")


def render(report: Report, method: str, tracebacks: dict[str, Path]) -> RenderableType:
    """Return the report as `rich` prints it: a line per check, and below it the fix where one failed."""
    from itertools import groupby

    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    styles = {"passed": "green", "failed": "bold red", "skipped": "dim"}
    for (status, told), alike in groupby(report.outcomes, key=lambda o: (o.status, o.told)):
        same = list(alike)
        mark = Text(status.upper() if status == "failed" else status, style=styles[status])
        if len(same) > 2:  # what depends on a part that failed
            listed = Text(f"{told} These are {', '.join(o.name for o in same)}.", style="dim")
            grid.add_row(mark, Text(f"{len(same)} checks"), listed)
        else:
            for outcome in same:
                grid.add_row(mark, Text(outcome.name), _told(outcome, tracebacks))
    count = {status: sum(o.status == status for o in report.outcomes) for status in styles}
    last = f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped."
    return Group(Text(f"Conformance of {method}", style="bold"), grid, Text(f"\n{last}"))


def _told(outcome: Outcome, tracebacks: dict[str, Path]) -> RenderableType:
    from rich.text import Text

    told = Text(outcome.told, style="dim" if outcome.status == "skipped" else "")
    if outcome.fix:
        told.append("\nFix: ", style="bold").append(outcome.fix)
    if outcome.name in tracebacks:
        told.append(f"\nFull error: {tracebacks[outcome.name]}", style="dim")
    return told


def _save_tracebacks(report: Report) -> dict[str, Path]:
    """Keep the tracebacks of errors inside the method for its author; return where, by check."""
    import re

    from audiocl_bench import files

    folder = files.home() / "check" / re.sub(r"[^A-Za-z0-9+._-]+", "-", report.method)
    saved = {}
    for outcome in report.outcomes:
        if outcome.traceback:
            saved[outcome.name] = folder / f"{outcome.name}.txt"
            files.write_text(saved[outcome.name], f"{report.method}, {outcome.name}\n\n{outcome.traceback}")
    return saved


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Progress]:
    """Yield the function that shows which check is being made: a bar on a terminal, nothing elsewhere."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        progress.TextColumn("checking"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}", markup=False),
    )
    hidden = quiet or not console.is_interactive
    with progress.Progress(*columns, console=console, transient=True, disable=hidden) as bars:
        task = bars.add_task("")

        def tell(name: str, number: int, total: int) -> None:
            bars.update(task, description=name, completed=number, total=total)

        yield tell
