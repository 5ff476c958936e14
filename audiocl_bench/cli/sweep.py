"""A sweep on the terminal: its progress, then the table of what was run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.console import Console

from audiocl_bench.acquire.corpora import Progress
from audiocl_bench.cli.data import bars
from audiocl_bench.cli.progress import Display, progress_display
from audiocl_bench.executors.table import Name, RunTable, run_table
from audiocl_bench.report.tables import leak_table, runs_table
from audiocl_bench.sweep import Outcome, Sweep, make, make_together

__all__ = ["Sweep", "Terminal", "run_sweep", "run_together"]


class Terminal:
    """Shows a sweep on standard error; meets `audiocl_bench.sweep.Presentation`. In a notebook it shows lines."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def downloading(self, names: str) -> AbstractContextManager[Progress | None]:
        """Show the download of corpora."""
        return bars(names, quiet=self._quiet)

    def watching(self, total: int) -> AbstractContextManager[Display]:
        """Show `total` runs, made one after the other."""
        return progress_display(total, quiet=self._quiet)

    def tabling(self, names: Sequence[Name]) -> AbstractContextManager[RunTable]:
        """Show runs that an executor makes at once."""
        return run_table(names, quiet=self._quiet)


def run_sweep(sweep: Sweep) -> None:
    """Make all runs of a sweep and print their table; or, to `audit`, print accuracy by test batch.

    Raises:
        AudioclError: bad input, or at least one run failed (all failures are listed).
    """
    _tell(make(sweep, Terminal(quiet=sweep.quiet)))


def run_together(sweeps: Sequence[Sweep]) -> None:
    """Make all runs of several sweeps at once, with their executor, and print their table.

    Raises:
        AudioclError: at least one sweep is wrong or one run failed (all failures are listed).
    """
    _tell(make_together(sweeps, Terminal(quiet=sweeps[0].quiet)))


def _tell(outcome: Outcome) -> None:
    if outcome.audited:
        Console().print(leak_table(outcome.audited))
    if outcome.done:
        _print_runs(outcome)
    outcome.raise_failures()


def _print_runs(outcome: Outcome) -> None:
    """Print the table of all runs that have a result, and where it is."""
    console, place = Console(), outcome.results.place
    table = outcome.results.runs()
    console.print(runs_table(table[table["run_id"].isin(outcome.done)]))
    made = len(outcome.done) - outcome.reused
    console.print(
        f"{made} {'run' if made == 1 else 'runs'} made, {outcome.reused} reused. Results: {place.name}",
        f"In full: audiocl show {outcome.done[-1]} --results {shlex.quote(place.typed)}",
        sep="\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
