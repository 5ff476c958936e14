"""Errors a person can act on. Every message is one clear sentence naming the file, the field and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AudioclError(Exception):
    """Bad input. The command line prints the message alone and exits with code 2."""


class ConfigError(AudioclError):
    """A setting is unknown, of the wrong type or out of range."""


class DivergedError(ConfigError):
    """Training ended in a loss that is no number: a rate that does not fit."""


class UnknownNameError(AudioclError):
    """A name (method, benchmark, backbone, corpus, setting) that nothing answers to."""


class AudioError(AudioclError):
    """An audio file cannot be decoded, is empty or is too short."""


class CorpusError(AudioclError):
    """A corpus is missing, partial or differs from its frozen index."""


class StreamError(AudioclError):
    """A stream cannot be built as described, or a frozen split file was changed."""


class StoreError(AudioclError):
    """Prepared clips cannot be written or read."""


class CheckpointError(AudioclError):
    """A weight file is broken, unsafe or belongs to another network."""


class ResultsError(AudioclError):
    """Results cannot be written, or were written by a newer schema."""


class MethodError(AudioclError):
    """A method breaks the interface: wrong scores, or a state or diagnostic that cannot be stored."""


class DataAccessError(AudioclError):
    """A method reached for data that its session does not give it."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, hint: str = "") -> UnknownNameError:
    """Build the error for an unknown `name`, listing the nearest valid names first.

    Args:
        kind: what was asked for, in the singular ("method", "benchmark", "setting of pace").
        name: the name as the user typed it.
        known: all valid names.
        hint: one more sentence, for example the command that lists them.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    known_names = f"known: {', '.join(names)}." if names else "none are known."
    told = f"did you mean {', '.join(near)}?" if near else known_names
    return UnknownNameError(f"unknown {kind} '{name}': {told}{' ' + hint if hint else ''}")
