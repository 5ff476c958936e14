"""`audiocl show`: one run in full."""

from __future__ import annotations

from typing import Annotated

import typer


def show(
    run: Annotated[
        str | None, typer.Argument(help="A run id, or an unambiguous part of it; without it all runs are listed.")
    ] = None,
    results: Annotated[
        str | None,
        typer.Option("--results", metavar="DIR", help="Directory of results (default: results/ in the cache)."),
    ] = None,
) -> None:
    """Show a run: accuracy matrix, scores, costs, audits and provenance; or the table of all runs.

    [bold]Examples[/bold]

      audiocl show

      audiocl show pace-esc50-paper

    The tables are plain Parquet: pandas.read_parquet("DIR/runs"), .../sessions, .../predictions.
    """
    from rich.console import Console

    from audiocl_bench.report import tables
    from audiocl_bench.results import results_at

    stored = results_at(results)
    console = Console()
    if run is not None:
        console.print(tables.show_run(stored, stored.find(run)))
        return
    runs = stored.runs()
    console.print(tables.runs_table(runs))
    if len(runs):
        rows = [
            (run_id, tables.percent(score))
            for run_id, score in zip(runs["run_id"], runs["final_accuracy"], strict=True)
        ]
        console.print(tables.listing(rows, ("run", "final accuracy %"), "Runs"))
