"""Sample sounds of a new benchmark: four classes, four recordings of each, two clips per recording. No recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from audiocl_bench.seeding import numpy_generator

RATE = 16_000
SECONDS = 0.5
RECORDINGS = ("a", "b", "c", "d")
CLIPS = 2  # per recording
_TIME = np.arange(int(RATE * SECONDS)) / RATE
_SEED = 20260901

Draws = np.random.Generator


def beep(source: Draws, take: Draws) -> np.ndarray:
    """Two or three beeps of one pitch."""
    pitch, times = source.uniform(700, 2200), int(take.integers(2, 4))
    on = ((times * _TIME / SECONDS + take.uniform(0, 0.2)) % 1) < 0.5
    return np.sin(2 * np.pi * pitch * _TIME) * on


def hum(source: Draws, take: Draws) -> np.ndarray:
    """A steady hum with overtones."""
    pitch = source.uniform(70, 180)
    parts = [np.sin(2 * np.pi * (pitch * k * _TIME + take.random())) / k for k in range(1, 7)]
    return np.sum(parts, axis=0)


def knock(source: Draws, take: Draws) -> np.ndarray:
    """Short knocks that ring."""
    pitch, rate = source.uniform(250, 900), take.uniform(4, 9)
    phase = (rate * _TIME + take.random()) % 1
    return np.exp(-30 * phase / rate * 4) * np.sin(2 * np.pi * pitch * _TIME)


def rustle(source: Draws, take: Draws) -> np.ndarray:
    """Noise that swells."""
    swell = source.uniform(3, 9)
    return take.standard_normal(len(_TIME)) * (1.2 + np.sin(2 * np.pi * (swell * _TIME + take.random())))


CLASSES: tuple[Callable[[Draws, Draws], np.ndarray], ...] = (beep, hum, knock, rustle)


def clip(sound: Callable[[Draws, Draws], np.ndarray], recording: str, number: int) -> np.ndarray:
    """Return one clip: float64 [RATE * SECONDS], peak 0.2 to 0.7, always the same for the same arguments.

    Clips of one recording share the object (`source`), as clips cut from one file do.
    """
    source = numpy_generator(_SEED, "scaffold", sound.__name__, recording)
    take = numpy_generator(_SEED, "scaffold", sound.__name__, recording, number)
    wave = sound(source, take)
    wave = wave / np.abs(wave).max() + 0.02 * take.standard_normal(len(wave))
    return np.asarray(take.uniform(0.2, 0.7) * wave / np.abs(wave).max())


def write(folder: Path) -> None:
    """Write all clips as 16-bit WAV files: folder/<class>/<recording>_<number>.wav."""
    for sound in CLASSES:
        (folder / sound.__name__).mkdir(parents=True)
        for recording in RECORDINGS:
            for number in range(1, CLIPS + 1):
                path = folder / sound.__name__ / f"{recording}_{number}.wav"
                soundfile.write(path, clip(sound, recording, number), RATE, subtype="PCM_16")
