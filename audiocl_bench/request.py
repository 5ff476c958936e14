"""What a person may write for a list of names or of numbers, on the command line and in Python."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from audiocl_bench.errors import ConfigError


def names(given: Iterable[str], option: str) -> tuple[str, ...]:
    """Read names given one by one or separated by commas, each once.

    Args:
        given: the texts.
        option: what they were given for, for the message.

    Raises:
        ConfigError: there is no name.
    """
    found = [part.strip() for item in given for part in item.split(",") if part.strip()]
    if not found:
        raise ConfigError(f"{option} names nothing: give a name, or several separated by commas.")
    return tuple(dict.fromkeys(found))


def numbers(given: str | int | Iterable[int], option: str) -> tuple[int, ...]:
    """Read "0-4,7", 3 or range(5) as whole numbers from 0, each once.

    Args:
        given: text, a number, or numbers.
        option: what they were given for, for the message.

    Raises:
        ConfigError: it is none of these, or empty.
    """
    if not isinstance(given, str):
        return _whole(given, option)
    found: list[int] = []
    for part in given.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"{option} '{given}' must look like 0, 0-4 or 0,2,5.")
        found.extend(range(int(first), int(last or first) + 1))
    return tuple(dict.fromkeys(found))


def _whole(given: int | Iterable[int], option: str) -> tuple[int, ...]:
    try:
        found = [operator.index(number) for number in (given if isinstance(given, Iterable) else (given,))]
    except TypeError:
        found = []
    if not found or min(found) < 0:
        raise ConfigError(f"{option} {given!r} must be whole numbers from 0, such as 0, [0, 2], range(5) or '0-4'.")
    return tuple(dict.fromkeys(found))
