"""How a check ends, and how an error inside a method becomes its outcome."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from audiocl_bench.errors import AudioclError

T = TypeVar("T")


class Fail(Exception):  # noqa: N818 - it ends a check, it is no error
    """Ends a check as failed."""

    def __init__(self, told: str, fix: str) -> None:
        super().__init__(told)
        self.told, self.fix = told, fix


class Skip(Exception):  # noqa: N818
    """Ends a check as skipped."""


class Broken(Exception):  # noqa: N818
    """The method raised an error, or gave back nonsense, in some stage."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(stage)
        self.stage, self.cause = stage, cause

    @property
    def fault(self) -> tuple[Any, ...]:
        """What makes two of them the same mistake: part of the interface, kind of error, and line."""
        part, frames = self.stage.partition(" ")[0], traceback.extract_tb(self.cause.__traceback__)
        if isinstance(self.cause, Fail):
            return part, self.cause.fix
        return part, type(self.cause), frames[-1].filename, frames[-1].lineno

    @property
    def told(self) -> str:
        """What happened, as one sentence."""
        if isinstance(self.cause, Fail):
            return f"{self.stage}: {self.cause.told}"
        return f"{self.stage} failed: {error_text(self.cause)}"

    @property
    def fix(self) -> str:
        """What to change."""
        if isinstance(self.cause, Fail):
            return self.cause.fix
        known = isinstance(self.cause, AudioclError)
        return "do what the sentence says." if known else "the traceback shows the line."

    @property
    def traceback(self) -> str:
        """The full traceback of an error that the method raised, else ""."""
        return "" if isinstance(self.cause, Fail) else "".join(traceback.format_exception(self.cause))


def sentence(text: str) -> str:
    """Return a text with a full stop at its end."""
    return text if text.endswith(".") else f"{text}."


def error_text(cause: BaseException) -> str:
    """Return the first line of an error as a sentence, with its type where it is none of ours."""
    first = (str(cause).splitlines() or [""])[0].rstrip(".")
    if isinstance(cause, AudioclError):
        return f"{first}."
    return f"{type(cause).__name__}: {first}." if first else f"{type(cause).__name__}."


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Turn any error of the method inside the block into a `Broken` of this stage."""
    try:
        yield
    except (Broken, Skip):
        raise
    except (Exception, SystemExit) as cause:  # sys.exit() inside a method must not end the examination
        raise Broken(name, cause) from cause


def attempt(stage: str, action: Callable[[], T]) -> T | Broken:
    """Return what `action` returns, or how it failed."""
    try:
        with in_stage(stage):
            return action()
    except Broken as broken:
        return broken


def need(value: T | Broken) -> T:
    """Return a value, or raise how it failed."""
    if isinstance(value, Broken):
        raise value
    return value


def kind_of(value: Any) -> str:
    """Return the type of a value with its article: "a tuple", "nothing (None)"."""
    if value is None:
        return "nothing (None)"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def listed(items: Sequence[Any]) -> str:
    """Return one or more items as a text: "a, b and c"."""
    shown = [str(item) for item in items]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
