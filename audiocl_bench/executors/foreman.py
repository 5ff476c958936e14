"""Hands runs to an engine, gives lost ones out again, keeps account, and stops in good order on Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from audiocl_bench.executors.events import Ended, Event, Lost, Said
from audiocl_bench.executors.unit import Unit

RETRIES = 2
"""How often a run whose process was lost is given out again."""

_TICK = 0.5  # seconds until Ctrl-C is seen and clocks move on


class Engine(Protocol):
    """Where runs are made. A ticket names one attempt at one run."""

    slots: int | None
    """How many runs it takes at once; None for as many as there are."""
    patience: float
    """Seconds that the foreman waits for runs in progress after `stop`; infinite where they end by themselves."""

    def submit(self, batch: Sequence[tuple[int, Unit]]) -> None:
        """Take runs, each with its ticket."""

    def wait(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what happened, by ticket; wait up to `seconds` if nothing did. `Ended` or `Lost` closes a ticket."""

    def stop(self) -> str:
        """Ask the runs in progress to end after their session; return one sentence that says what happens now."""

    def kill(self) -> None:
        """End the runs in progress at once."""

    def close(self) -> None:
        """Leave no process behind that belongs to this one."""


class Board(Protocol):
    """Who shows the runs. They are numbered as they were given."""

    def told(self, number: int, event: Event) -> None:
        """Something happened to a run."""

    def retried(self, number: int, reason: str, attempt: int) -> None:
        """A lost run was given out again, for the `attempt`-th time."""

    def message(self, text: str) -> None:
        """Something the user should read, in one line."""

    def tick(self) -> None:
        """Time has passed."""


def carry_out(units: Sequence[Unit], engine: Engine, board: Board, numbers: Sequence[int]) -> list[Ended]:
    """Make all runs with an engine and return how each of them ended, in the order of `units`.

    Args:
        units: the runs.
        engine: where they are made; closed in the end, whatever happens.
        board: who shows them.
        numbers: under which number the board knows each run.

    Raises:
        KeyboardInterrupt: Ctrl-C. Runs in progress were given time to end after their session; a second Ctrl-C ends
            them at once.
    """
    work = _Work(units, engine, board, numbers)
    try:
        with _presses() as pressed:
            work.until(lambda: bool(pressed))
            if pressed:
                board.message(engine.stop())
                work.start_no_more()
                patient_until = time.monotonic() + engine.patience
                work.until(lambda: len(pressed) > 1 or time.monotonic() > patient_until)
                if len(pressed) > 1:
                    engine.kill()
        if pressed:
            raise KeyboardInterrupt
    finally:
        engine.close()
    return [work.ended[place] for place in range(len(units))]


class _Work:
    """The account of one `carry_out`."""

    def __init__(self, units: Sequence[Unit], engine: Engine, board: Board, numbers: Sequence[int]) -> None:
        self._units, self._engine, self._board, self._numbers = units, engine, board, numbers
        self._waiting = deque(range(len(units)))
        self._stopping = False
        self.ended: dict[int, Ended] = {}
        self._running: dict[int, int] = {}  # place in `units`, by ticket
        self._losses = [0] * len(units)
        self._tickets = 0

    def start_no_more(self) -> None:
        """Leave the runs that wait as they are, and those that are lost from now on."""
        self._stopping = True
        self._waiting.clear()

    def until(self, interrupted: _Interrupted) -> None:
        """Go on until all runs have ended or `interrupted()`."""
        while (self._waiting or self._running) and not interrupted():
            self._submit()
            for ticket, event in self._engine.wait(_TICK):
                self._take(ticket, event)
            self._board.tick()

    def _submit(self) -> None:
        slots = math.inf if self._engine.slots is None else self._engine.slots
        batch = []
        while self._waiting and len(self._running) < slots:
            place = self._waiting.popleft()
            self._running[self._tickets] = place
            batch.append((self._tickets, self._units[place]))
            self._tickets += 1
        if batch:
            self._engine.submit(batch)

    def _take(self, ticket: int, event: Event) -> None:
        if ticket not in self._running:
            return
        place = self._running[ticket]
        number = self._numbers[place]
        if isinstance(event, Said):
            self._board.message(event.text)
            return
        if isinstance(event, Lost):
            del self._running[ticket]
            self._losses[place] += 1
            if self._stopping:
                return
            if self._losses[place] <= RETRIES:
                self._board.retried(number, event.reason, self._losses[place])
                self._waiting.append(place)
                return
            attempts = RETRIES + 1
            event = Ended(
                "failed",
                self._units[place].run_id,
                f"{self._units[place].label} failed: its process was lost {attempts} times: {event.reason}.",
            )
        elif isinstance(event, Ended):
            del self._running[ticket]
        if isinstance(event, Ended):
            self.ended[place] = event
        self._board.told(number, event)


class _Interrupted(Protocol):
    def __call__(self) -> bool: ...


@contextmanager
def _presses() -> Iterator[list[float]]:
    """Collect Ctrl-C instead of letting it break into the work wherever it is; the list holds one time per press.

    Where Ctrl-C means something else already, or in another thread than the first, it is left alone.
    """
    pressed: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(time.monotonic())

    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not mine or before is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
