"""Progress of a sweep: bars on a terminal, one line per finished run elsewhere. Both go to standard error."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Shows runs, sessions and epochs; meets `audiocl_bench.runner.Monitor`."""

    def __init__(self, console: Console, progress: Progress, total: int, *, bars: bool, quiet: bool) -> None:
        self._console, self._progress, self._bars, self._quiet = console, progress, bars, quiet
        self._runs = progress.add_task("runs", total=total, detail="")
        self._sessions = progress.add_task("sessions", total=None, visible=False, detail="")
        self._epochs = progress.add_task("epochs", total=None, visible=False, detail="")
        self._current = ""
        self._started = time.monotonic()
        self._accuracy = 0.0

    def run_started(self, run_id: str, sessions: int, done: int) -> None:
        """Start the session bar at the sessions already finished."""
        self._current, self._started = run_id, time.monotonic()
        self._progress.update(self._runs, detail=run_id)
        self._progress.reset(self._sessions, total=sessions, completed=done, visible=True, detail="")
        if done:
            self.message(f"{run_id}: continuing after session {done} of {sessions}")

    def epoch(self, session: int, stage: str, epoch: int, epochs: int, clips: int, seconds: float, loss: float) -> None:
        """Show the stage, its loss and its speed."""
        speed = clips / seconds if seconds > 0 else 0.0
        detail = f"session {session} {stage}: loss {loss:.3f}, {speed:.0f} clips/s"
        if epoch == 1:
            self._progress.reset(self._epochs, total=epochs, visible=True)
        self._progress.update(self._epochs, completed=epoch, detail=detail)

    def session_done(self, session: int, accuracy: float) -> None:
        """Advance the session bar and show the accuracy so far."""
        self._accuracy = accuracy
        self._progress.update(self._epochs, visible=False)
        detail = "" if math.isnan(accuracy) else f"accuracy {100 * accuracy:.1f} %"
        self._progress.update(self._sessions, advance=1, detail=detail)

    def run_ended(self, status: str) -> None:
        """Advance the run bar; without bars, print one line."""
        self._progress.advance(self._runs)
        self._progress.update(self._sessions, visible=False)
        if status == "done" and not self._bars and not self._quiet:
            seconds = time.monotonic() - self._started
            self._console.print(
                f"{self._current}: {100 * self._accuracy:.2f} % in {seconds:.0f} s", soft_wrap=True, highlight=False
            )

    def message(self, text: str) -> None:
        """Print one line above the bars."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bars away while something else shows its own progress."""
        live = self._bars and self._progress.live.is_started
        if live:
            self._progress.stop()
        try:
            yield
        finally:
            if live:
                self._progress.start()


@contextmanager
def progress_display(total: int, *, quiet: bool) -> Iterator[Display]:
    """Yield a `Display` for `total` runs; bars only on an interactive terminal."""
    console = Console(stderr=True)
    bars = console.is_interactive and not quiet
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    progress = Progress(*columns, console=console, transient=True, disable=not bars)
    with progress:
        yield Display(console, progress, total, bars=bars, quiet=quiet)
