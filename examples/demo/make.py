"""Write the demo's sounds: six kinds of synthetic sound, ten clips of one second each, into `audio/` beside this file.

They stand in for a corpus so that everything can be tried on a machine that has none; demo.toml describes them. Every
clip draws its pitch, timing, level and background noise from a seed made of its class and number, so the files are
always the same.

    python examples/demo/make.py [FOLDER]
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
CLIPS = 10
TIME = np.arange(RATE) / RATE  # seconds


def sine(rng: np.random.Generator) -> np.ndarray:
    """A steady tone of 200 to 2,000 Hz with a few harmonics."""
    pitch = _pitch(rng, 200, 2_000)
    return sum(np.sin(2 * np.pi * k * pitch * TIME) / k**2 for k in (1, 2, 3))


def chirp_up(rng: np.random.Generator) -> np.ndarray:
    """A tone that rises by two to three octaves."""
    pitch = _pitch(rng, 150, 800)
    return _tone(pitch * 2 ** (rng.uniform(2, 3) * TIME))


def chirp_down(rng: np.random.Generator) -> np.ndarray:
    """A tone that falls by two to three octaves."""
    pitch = _pitch(rng, 1_200, 6_400)
    return _tone(pitch * 2 ** (-rng.uniform(2, 3) * TIME))


def noise_bursts(rng: np.random.Generator) -> np.ndarray:
    """White noise switched on and off, two to six times a second."""
    on = np.sin(2 * np.pi * (rng.uniform(2, 6) * TIME + rng.uniform())) > 0
    return 0.5 * rng.standard_normal(RATE) * on


def pulse_train(rng: np.random.Generator) -> np.ndarray:
    """Short clicks, 8 to 40 a second, each ringing at its own pitch."""
    phase = (rng.uniform(8, 40) * TIME + rng.uniform()) % 1
    return np.exp(-25 * phase) * np.sin(2 * np.pi * _pitch(rng, 500, 3_000) * TIME)


def fm_siren(rng: np.random.Generator) -> np.ndarray:
    """A tone that swings around its pitch, three to eight times a second."""
    swing = np.sin(2 * np.pi * (rng.uniform(3, 8) * TIME + rng.uniform()))
    return _tone(_pitch(rng, 400, 1_600) * 2 ** (rng.uniform(0.4, 0.8) * swing))


CLASSES: tuple[Callable[[np.random.Generator], np.ndarray], ...] = (
    sine,
    chirp_up,
    chirp_down,
    noise_bursts,
    pulse_train,
    fm_siren,
)


def make_clip(sound: Callable[[np.random.Generator], np.ndarray], number: int) -> np.ndarray:
    """Return clip `number` of a class: float64 [RATE], peak 0.1 to 0.8, with background noise 20 to 40 dB below it."""
    rng = np.random.default_rng([zlib.crc32(sound.__name__.encode()), number])
    wave = sound(rng)
    wave = wave / np.abs(wave).max() + 10 ** (-rng.uniform(20, 40) / 20) * rng.standard_normal(RATE)
    return rng.uniform(0.1, 0.8) * wave / np.abs(wave).max()


def main(folder: Path) -> None:
    """Write all clips as 16-bit WAV files, folder/<class>/<number>.wav."""
    for sound in CLASSES:
        (folder / sound.__name__).mkdir(parents=True, exist_ok=True)
        for number in range(CLIPS):
            soundfile.write(folder / sound.__name__ / f"{number:02d}.wav", make_clip(sound, number), RATE)
    print(f"{len(CLASSES) * CLIPS} clips of {len(CLASSES)} classes in {folder}")


def _pitch(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a frequency in Hz, evenly over octaves."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _tone(frequency: np.ndarray) -> np.ndarray:
    """Return a sine whose frequency in Hz changes over time."""
    return np.sin(2 * np.pi * np.cumsum(frequency) / RATE)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "audio")
