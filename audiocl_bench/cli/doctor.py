"""`audiocl doctor`: what this machine is ready for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder of the corpora (default: data/ in the cache directory)."),
    ] = None,
    results: Annotated[
        str | None, typer.Option("--results", metavar="DIR", help="Where results would go (as `run --results`).")
    ] = None,
) -> None:
    """Say what is ready: versions, devices, backbones, corpora, free space.

    Nothing is downloaded or changed. Exit code 2 if something has to be
    mended; what is merely not there yet is listed with the command for it.
    """
    from itertools import groupby

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from audiocl_bench.doctor import examine
    from audiocl_bench.errors import AudioclError

    marks = {"ready": ("ready", "green"), "missing": ("-", "dim"), "problem": ("PROBLEM", "bold red"), "fact": ("", "")}
    console = Console(highlight=False)
    problems = []
    for area, findings in groupby(examine(data, results), key=lambda finding: finding.area):
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, min_width=20)
        grid.add_column(no_wrap=True, min_width=7)
        grid.add_column(overflow="fold")
        for finding in findings:
            word, style = marks[finding.state]
            grid.add_row(Text(f"  {finding.what}"), Text(word, style=style), Text(finding.told))
            problems += [f"{finding.what}: {finding.told}."] if finding.state == "problem" else []
        console.print(Text(area.capitalize(), style="bold"), grid, Text(), sep="\n")
    if problems:
        raise AudioclError("\n".join(problems))
