"""A voice out of the espeak-ng library, which the PyPI package `espeakng-loader` brings along.

The library keeps state from one utterance to the next (the place in its pitch flutter, the phases of its oscillators,
the memory of its resonators, its random numbers), and neither its random seed nor a new initialisation resets all of
it. So it is loaded afresh for every utterance and unloaded after it, which costs about 3 ms beside the 2 ms that the
speaking takes: what is said depends on the arguments alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from audiocl_bench.errors import CorpusError

NATIVE_RATE = 22_050
"""Sample rate of what the library speaks, in Hz."""

OCTAVE = 65
"""Steps of pitch to an octave, as measured on its voices (0.35 to 0.4 octaves for 25 steps)."""

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_UTF8 = 1
_BY_CHARACTER = 1
_RATE, _PITCH, _RANGE, _WORD_GAP = 1, 3, 4, 7

_LONGEST_PATH = 120  # bytes: the library keeps its data folder in 160, and file names below it are added
_SEED = 1


@dataclass(frozen=True)
class Manner:
    """How something is said.

    Attributes:
        voice: a voice of espeak-ng and, after a plus sign, a variant: "en-us+f3".
        rate: words per minute, 80 to 450.
        pitch: 0 to 99; 50 is the variant's own pitch, and `OCTAVE` steps make an octave.
        inflection: range of the pitch, 0 (monotone) to 99; 50 is the usual one.
        word_gap: extra pause between words, in units of 10 ms.
    """

    voice: str
    rate: int = 175
    pitch: int = 50
    inflection: int = 50
    word_gap: int = 0


def speak(text: str, manner: Manner, *, needed_by: str) -> np.ndarray:
    """Return a text spoken aloud: float32 [samples] in [-1, 1] at `NATIVE_RATE`, never empty.

    Args:
        text: what is said, in English.
        manner: who says it, and how.
        needed_by: what cannot be made without it, for the error.

    Raises:
        CorpusError: the package `espeakng-loader` is not installed, or its library does not work here.
    """
    library_path, data = _installation(needed_by)
    pieces: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def collect(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    with _short_path(data) as folder, _loaded(library_path) as library:
        if library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(folder), _DO_NOT_EXIT) != NATIVE_RATE:
            raise CorpusError(f"espeak-ng does not start with {data}: install the package espeakng-loader again.")
        library.espeak_SetSynthCallback(collect)
        library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
        if library.espeak_SetVoiceByName(manner.voice.encode()) != 0:
            raise CorpusError(f"espeak-ng in {data} has no voice '{manner.voice}': install another espeakng-loader.")
        settings = ((_RATE, manner.rate), (_PITCH, manner.pitch), (_RANGE, manner.inflection))
        for parameter, value in (*settings, (_WORD_GAP, manner.word_gap)):
            library.espeak_SetParameter(parameter, value, 0)
        said = text.encode()
        size = ctypes.c_size_t(len(said) + 1)
        library.espeak_Synth(said, size, 0, _BY_CHARACTER, 0, _UTF8, None, None)
        library.espeak_Terminate()
    samples = np.frombuffer(b"".join(pieces), dtype=np.int16)
    if not samples.any():
        raise CorpusError(f"espeak-ng in {data} said nothing for '{text}': install another espeakng-loader.")
    return samples.astype(np.float32) / np.float32(32768)


def _installation(needed_by: str) -> tuple[str, str]:
    """Return where the library and its data lie."""
    try:
        loader = import_module("espeakng_loader")
    except ImportError as cause:
        raise CorpusError(f"{needed_by} needs speech synthesis: pip install 'audiocl[mini]'") from cause
    try:
        return loader.get_library_path(), loader.get_data_path()
    except RuntimeError as cause:
        raise CorpusError(f"espeakng-loader is incomplete ({cause}): install the package again.") from cause


@contextmanager
def _short_path(data: str) -> Iterator[str]:
    """Yield a path to the data that fits into the library's buffer: a link where the real one is long."""
    if len(os.fsencode(data)) <= _LONGEST_PATH:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="audiocl-") as folder:
        link = Path(folder) / "espeak-ng-data"
        link.symlink_to(data, target_is_directory=True)
        yield str(link)


@contextmanager
def _loaded(path: str) -> Iterator[ctypes.CDLL]:
    """Load the library with fresh state, and unload it."""
    try:
        library = ctypes.CDLL(path)
    except OSError as cause:
        raise CorpusError(f"{path} cannot be loaded ({cause}): install espeakng-loader for this machine.") from cause
    try:
        yield library
    finally:
        _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    """Give a library back to the system, which then forgets its state; ctypes has no public call for it."""
    import _ctypes

    name = "FreeLibrary" if sys.platform == "win32" else "dlclose"
    getattr(_ctypes, name)(library._handle)
