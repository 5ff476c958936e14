"""What a process that makes a run tells the one that waits for it, as one line of JSON each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, TypeAlias

Status = Literal["done", "reused", "failed", "stopped"]
"""How a run ended; "stopped" is a run that was interrupted and keeps its checkpoint."""


@dataclass(frozen=True)
class Started:
    """A run begins, or continues after `done` of its sessions, in process `pid` of the machine `host`."""

    run_id: str
    sessions: int
    done: int
    host: str
    pid: int


@dataclass(frozen=True)
class Epoch:
    """A training stage finished an epoch of `clips` clips in `seconds`."""

    session: int
    stage: str
    epoch: int
    epochs: int
    clips: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Tested:
    """A session was learned and tested; `accuracy` is the mean over sessions so far, a fraction."""

    session: int
    accuracy: float


@dataclass(frozen=True)
class Said:
    """One line for the user."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The run is over.

    Attributes:
        status: how it ended.
        run_id: its id; "" where it failed before that was known.
        failure: why it failed, one sentence; else "".
        bug: traceback of a programming error, most likely of a method; "" for bad input.
    """

    status: Status
    run_id: str = ""
    failure: str = ""
    bug: str = ""


@dataclass(frozen=True)
class Lost:
    """The process that made the run is gone without a word; `reason` says what is known. Told by engines."""

    reason: str


Event: TypeAlias = Started | Epoch | Tested | Said | Ended | Lost
_KINDS = {kind.__name__.lower(): kind for kind in (Started, Epoch, Tested, Said, Ended, Lost)}


class Line(Protocol):
    """The line from a process that makes runs to the one that waits for them."""

    def tell(self, event: Event) -> None:
        """Pass an event on. An error of the line never ends a run."""

    def stopping(self) -> bool:
        """Tell whether the run shall end as soon as a session is finished."""


def pack(event: Event) -> str:
    """Return an event as one line of text."""
    return json.dumps([type(event).__name__.lower(), asdict(event)])


def unpack(text: str) -> Event:
    """Return the event that `pack` made a line of."""
    kind, fields = json.loads(text)
    event: Event = _KINDS[kind](**fields)
    return event
