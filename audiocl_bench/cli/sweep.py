"""A sweep on the terminal: its progress, then the table of what was run."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager

from rich.console import Console

from audiocl_bench.acquire.corpora import Progress
from audiocl_bench.cli.data import bars
from audiocl_bench.cli.progress import Display, progress_display
from audiocl_bench.report.tables import leak_table, runs_table
from audiocl_bench.sweep import Outcome, Sweep, make

__all__ = ["Sweep", "Terminal", "run_sweep"]


class Terminal:
    """Shows a sweep on standard error; meets `audiocl_bench.sweep.Presentation`. In a notebook it shows lines."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def downloading(self, names: str) -> AbstractContextManager[Progress | None]:
        """Show the download of corpora."""
        return bars(names, quiet=self._quiet)

    def watching(self, total: int) -> AbstractContextManager[Display]:
        """Show `total` runs."""
        return progress_display(total, quiet=self._quiet)


def run_sweep(sweep: Sweep) -> None:
    """Make all runs of a sweep and print their table; or, to `audit`, print accuracy by test batch.

    Raises:
        AudioclError: bad input, or at least one run failed (all failures are listed).
    """
    outcome = make(sweep, Terminal(quiet=sweep.quiet))
    if outcome.audited:
        Console().print(leak_table(outcome.audited))
    if outcome.done:
        _print_runs(outcome)
    outcome.raise_failures()


def _print_runs(outcome: Outcome) -> None:
    """Print the table of all runs that have a result, and where it is."""
    console, path = Console(), outcome.results.path
    table = outcome.results.runs()
    console.print(runs_table(table[table["run_id"].isin(outcome.done)]))
    made = len(outcome.done) - outcome.reused
    console.print(
        f"{made} {'run' if made == 1 else 'runs'} made, {outcome.reused} reused. Results: {path}",
        f"In full: audiocl show {outcome.done[-1]} --results {shlex.quote(str(path))}",
        sep="\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
