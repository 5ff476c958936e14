"""All runs of a sweep in one table that is redrawn while they go on; elsewhere than on a terminal, a line per event."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from audiocl_bench.executors.events import Ended, Epoch, Event, Said, Started, Tested

State = Literal["waiting", "running", "done", "reused", "failed", "retried", "stopped"]
_STYLES: dict[State, str] = {
    "waiting": "dim",
    "running": "cyan",
    "done": "green",
    "reused": "green dim",
    "failed": "red bold",
    "retried": "yellow",
    "stopped": "yellow",
}
_FIRST = ("running", "failed", "retried", "stopped", "waiting", "done", "reused")  # what is shown where room is short
_AROUND = 6  # lines of a terminal that are no rows: head, rule, what is left out, the counts, the prompt
_WIDE = 100  # columns from which there is room for bars


@dataclass(frozen=True)
class Name:
    """What the table calls a run."""

    method: str
    benchmark: str
    order: int
    seed: int


@dataclass
class _Row:
    name: Name
    state: State
    run_id: str = ""
    host: str = ""
    sessions: int = 0
    done: int = 0
    accuracy: float = math.nan
    speed: float = math.nan
    stage: str = ""
    losses: int = 0
    began: float = 0.0
    seconds: float = math.nan
    changed: float = 0.0


class RunTable:
    """Shows runs; meets `audiocl_bench.executors.foreman.Board`."""

    def __init__(self, names: Sequence[Name], *, console: Console, lines: bool, quiet: bool) -> None:
        """Make a table of runs that wait.

        Args:
            names: the runs, in the order of their numbers.
            console: where to.
            lines: print a line per event instead of redrawing a table.
            quiet: of these lines, print only those that say what went wrong.
        """
        self._rows = [_Row(name, "waiting") for name in names]
        self._console, self._lines, self._quiet = console, lines, quiet
        self._retries = 0

    def __rich__(self) -> RenderableType:
        return self.render(self._console.height)

    def reused(self, number: int) -> None:
        """Say that a run has a result already."""
        self._rows[number].state = "reused"

    def told(self, number: int, event: Event) -> None:
        """Take down what happened to a run."""
        row = self._rows[number]
        row.changed = time.monotonic()
        if isinstance(event, Started):
            row.state, row.run_id, row.host = "running", event.run_id, event.host
            row.sessions, row.done, row.began = event.sessions, event.done, time.monotonic()
            row.stage, row.speed = "", math.nan
            after = f", continuing after session {event.done}" if event.done else ""
            self._line(f"{event.run_id}: started on {event.host}{after}")
        elif isinstance(event, Epoch):
            row.stage = f"{event.stage} {event.epoch}/{event.epochs}"
            row.speed = event.clips / event.seconds if event.seconds > 0 else math.nan
        elif isinstance(event, Tested):
            row.done, row.accuracy, row.stage = row.done + 1, event.accuracy, ""
        elif isinstance(event, Said):
            self.message(event.text)
        elif isinstance(event, Ended):
            self._ended(row, event)

    def retried(self, number: int, reason: str, attempt: int) -> None:
        """Take down that a run was given out again."""
        row = self._rows[number]
        row.state, row.losses, row.changed = "retried", attempt, time.monotonic()
        self._retries += 1
        self.message(f"{self._title(row)}: {reason}; it is given out again ({attempt}).")

    def message(self, text: str) -> None:
        """Print one line above the table."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def tick(self) -> None:
        """Do nothing: `Live` redraws by itself."""

    def render(self, height: int) -> RenderableType:
        """Return the table as it is now, with as many rows as fit into `height` lines."""
        shown = self._chosen(max(3, height - _AROUND))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("run", no_wrap=True, overflow="ellipsis", min_width=12)
        table.add_column("order", justify="right", no_wrap=True, min_width=5)
        table.add_column("seed", justify="right", no_wrap=True, min_width=4)
        table.add_column("state", no_wrap=True, min_width=7)
        table.add_column("session", no_wrap=True)
        table.add_column("accuracy", justify="right", no_wrap=True)
        table.add_column("clips/s", justify="right", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        several = len({row.host for row in self._rows if row.host}) > 1
        if several:
            table.add_column("node", no_wrap=True, overflow="ellipsis", max_width=16)
        for row in shown:
            cells = self._cells(row)
            table.add_row(*cells, *([row.host] if several else []))
        left_out = len(self._rows) - len(shown)
        more = [Text(f"and {left_out} more", style="dim")] if left_out else []
        return Group(table, *more, self._counts())

    def _cells(self, row: _Row) -> list[RenderableType]:
        style = _STYLES[row.state]
        state = f"{row.state} ({row.losses})" if row.losses and row.state in ("retried", "running") else row.state
        begun = row.sessions > 0
        seconds = time.monotonic() - row.began if row.state == "running" else row.seconds
        progress: RenderableType = ""
        if begun:
            told = Text(f"{row.done}/{row.sessions} ").append(row.stage, style="dim")
            progress = told
            if self._console.width >= _WIDE:
                progress = grid = Table.grid(padding=(0, 1, 0, 0))
                grid.add_row(
                    ProgressBar(row.sessions, row.done, 10, complete_style="cyan", finished_style="green"), told
                )
        return [
            Text(f"{row.name.method} on {row.name.benchmark}"),
            str(row.name.order),
            str(row.name.seed),
            Text(state, style=style),
            progress,
            "" if math.isnan(row.accuracy) else f"{100 * row.accuracy:.1f} %",
            "" if row.state != "running" or math.isnan(row.speed) else f"{row.speed:,.0f}",
            "" if math.isnan(seconds) else _clock(seconds),
        ]

    def _counts(self) -> Text:
        count = Counter(row.state for row in self._rows)
        text = Text(f"{len(self._rows)} runs: ")
        count["waiting"] += count.pop("retried", 0)
        parts = [(f"{count[state]} {state}", style) for state, style in _STYLES.items() if count[state]]
        if self._retries:
            parts.append((f"{self._retries} given out again", _STYLES["retried"]))
        for place, (part, style) in enumerate(parts):
            text.append(", " if place else "").append(part, style=style)
        return text

    def _chosen(self, room: int) -> list[_Row]:
        """Return the rows that fit, those that matter most now, in the order of the runs."""
        if len(self._rows) <= room:
            return self._rows
        ranked = sorted(
            range(len(self._rows)), key=lambda n: (_FIRST.index(self._rows[n].state), -self._rows[n].changed, n)
        )
        return [self._rows[number] for number in sorted(ranked[:room])]

    def _ended(self, row: _Row, event: Ended) -> None:
        row.state, row.stage = event.status, ""
        row.seconds = time.monotonic() - row.began if row.began else math.nan
        if event.status == "failed":
            if not self._quiet:  # all failures are told again at the end
                self.message(event.failure)
        elif event.status == "done":
            self._line(f"{event.run_id}: {100 * row.accuracy:.2f} % in {row.seconds:.0f} s")
        else:
            self._line(f"{event.run_id}: {event.status}")

    def _line(self, text: str) -> None:
        if self._lines and not self._quiet:
            self.message(text)

    @staticmethod
    def _title(row: _Row) -> str:
        name = row.name
        return f"{name.method} on {name.benchmark}, order {name.order}, seed {name.seed}"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes, seconds_ = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{seconds_:02}" if hours else f"{minutes}:{seconds_:02}"


@contextmanager
def run_table(names: Sequence[Name], *, quiet: bool) -> Iterator[RunTable]:
    """Yield a `RunTable` on standard error: redrawn on an interactive terminal, lines elsewhere."""
    console = Console(stderr=True)
    live = console.is_interactive and not quiet
    table = RunTable(names, console=console, lines=not live, quiet=quiet)
    if not live:
        yield table
        return
    with Live(table, console=console, refresh_per_second=4, transient=True):
        yield table
