"""Changes to a waveform that make one recording into many: level, speed, tempo, colour, room, noise, company.

Waves are float32 [n] at 16 kHz. Every function is pure; what is random comes from the generator that it is given, so a
clip's variant is the same in every process. Levels are root mean squares over the sounding part (`level`), so that the
silence around an event does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from audiocl_bench.audio import SAMPLE_RATE

Wave = NDArray[np.float32]
Rng = np.random.Generator

_FRAME = SAMPLE_RATE // 50  # 20 ms: the grain of levels
_EDGE = SAMPLE_RATE // 200  # 5 ms: the fade that keeps a cut from clicking
_WINDOW, _HOP, _REACH = 640, 320, 200  # samples of the overlap-add: 40 ms, 20 ms, up to 12.5 ms of shift
_TINY = 1e-9


# --------------------------------------------------------------------------------------------------------------- levels


def level(wave: Wave) -> float:
    """Return the root mean square of the 20 ms frames that lie within 30 dB of the loudest one; 0 for silence."""
    whole = len(wave) // _FRAME * _FRAME
    if not whole:
        return float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0
    power = np.square(wave[:whole].reshape(-1, _FRAME), dtype=np.float64).mean(axis=1)
    return float(np.sqrt(power[power >= 1e-3 * power.max()].mean()))


def to_level(wave: Wave, decibel: float) -> Wave:
    """Scale so that `level` is `decibel` dBFS, or the peak 0.99 where that is reached before; silence stays silence."""
    now = level(wave)
    if now < _TINY:
        return wave
    gain = min(10.0 ** (decibel / 20.0) / now, 0.99 / float(np.abs(wave).max()))
    return (wave * np.float32(gain)).astype(np.float32)


def fade(wave: Wave, samples: int = _EDGE) -> Wave:
    """Fade the first and last `samples` in and out (a quarter of a short wave at most)."""
    size = min(samples, len(wave) // 4)
    if size < 1:
        return wave
    ramp = np.sin(np.linspace(0.0, np.pi / 2.0, size)) ** 2
    faded = wave.copy()
    faded[:size] *= ramp.astype(np.float32)
    faded[-size:] *= ramp[::-1].astype(np.float32)
    return faded


def trim(wave: Wave, decibel: float = 45.0, margin: float = 0.03) -> Wave:
    """Cut off what lies `decibel` below the loudest 20 ms at both ends, but for `margin` seconds."""
    whole = len(wave) // _FRAME * _FRAME
    if not whole:
        return wave
    power = np.square(wave[:whole].reshape(-1, _FRAME), dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(power > max(power.max() * 10.0 ** (-decibel / 10.0), _TINY))
    if not len(loud):
        return wave[:0]
    extra = int(margin * SAMPLE_RATE)
    return wave[max(0, loud[0] * _FRAME - extra) : (loud[-1] + 1) * _FRAME + extra]


# ------------------------------------------------------------------------------------------------------ speed and tempo


def change_speed(wave: Wave, factor: float) -> Wave:
    """Play `factor` times as fast: shorter and higher together, as a tape would.

    The factor is rounded to a fraction with a denominator up to 40 (a sixth of a semitone at worst near 1).

    Returns:
        [ceil(n / factor)].
    """
    ratio = Fraction(factor).limit_denominator(40)
    if ratio == 1 or not len(wave):
        return wave
    return signal.resample_poly(wave, ratio.denominator, ratio.numerator).astype(np.float32)


def change_tempo(wave: Wave, factor: float) -> Wave:
    """Play `factor` times as fast at the same pitch, by overlap-add of similar pieces.

    WSOLA (Verhelst and Roelands, ICASSP 1993): each 40 ms piece is taken from within 12.5 ms of where it belongs, where
    it continues the piece before best.

    Returns:
        [round(n / factor)]; waves shorter than 80 ms come back as they are.
    """
    if factor == 1.0 or len(wave) < 2 * _WINDOW:
        return wave
    length = round(len(wave) / factor)
    padded = np.concatenate([np.zeros(_REACH, np.float32), wave, np.zeros(2 * _WINDOW + 2 * _REACH, np.float32)])
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    out = np.zeros(length + 2 * _WINDOW, np.float32)
    expected = padded[_REACH : _REACH + _WINDOW]
    for start in range(0, length, _HOP):
        place = min(round(start * factor), len(padded) - 2 * _WINDOW - 2 * _REACH)
        search = padded[place : place + 2 * _REACH + _WINDOW]
        likeness = np.correlate(search, expected, mode="valid")
        energy = np.cumsum(np.concatenate([[0.0], np.square(search, dtype=np.float64)]))
        best = int(np.argmax(likeness / np.sqrt(energy[_WINDOW:] - energy[:-_WINDOW] + 1e-6))) if start else _REACH
        out[start : start + _WINDOW] += window * search[best : best + _WINDOW]
        after = place + best + _HOP
        expected = padded[after : after + _WINDOW]
    # The first half window has no piece before it that would complete its sum to 1.
    out[:_HOP] += wave[:_HOP] * (1.0 - window[:_HOP])
    return out[:length]


# --------------------------------------------------------------------------------------------------------------- colour


def equalise(wave: Wave, tilt: float, low: float = 0.0, high: float = SAMPLE_RATE / 2) -> Wave:
    """Tilt the spectrum by `tilt` dB per octave (0 dB at 1 kHz) and keep what lies between `low` and `high` hertz.

    The edges fall by 24 dB per octave; the tilt is held to 18 dB.
    """
    if not len(wave):
        return wave
    size = 1 << (len(wave) + 256).bit_length()
    hertz = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE).clip(20.0)
    decibel = (tilt * np.log2(hertz / 1000.0)).clip(-18.0, 18.0)
    if low > 0.0:
        decibel -= 10.0 * np.log10(1.0 + (low / hertz) ** 8)
    if high < SAMPLE_RATE / 2:
        decibel -= 10.0 * np.log10(1.0 + (hertz / high) ** 8)
    spectrum = np.fft.rfft(wave, size) * 10.0 ** (decibel / 20.0)
    return np.fft.irfft(spectrum, size)[: len(wave)].astype(np.float32)


def impulse_response(rng: Rng, t60: float, wet: float) -> Wave:
    """Draw the answer of a room: the direct sound, then noise that falls by 60 dB in `t60` seconds.

    Args:
        rng: where the noise comes from.
        t60: reverberation time in seconds.
        wet: energy of the tail as a share of the direct sound's.

    Returns:
        [about 16,000 t60], its first sample 1.
    """
    size = max(64, int(SAMPLE_RATE * t60))
    time = np.arange(size) / SAMPLE_RATE
    tail = rng.standard_normal(size) * np.exp(-6.9078 * time / t60)
    gap = int(rng.integers(20, 200))  # 1 to 12 ms until the first wall answers
    tail[:gap] = 0.0
    # Air and walls take the treble first.
    tail = signal.lfilter([0.6], [1.0, -0.4], tail)
    tail *= np.sqrt(wet / (np.square(tail).sum() + _TINY))
    tail[0] = 1.0
    return tail.astype(np.float32)


def reverberate(wave: Wave, response: Wave) -> Wave:
    """Return `wave` as heard in a room, [n]: what would sound on after its end is cut off."""
    return signal.oaconvolve(wave, response)[: len(wave)].astype(np.float32)


def coloured_noise(rng: Rng, n: int, slope: float) -> Wave:
    """Draw noise [n] of level 1 whose spectrum rises by `slope` dB per octave (0 white, -3 pink, -6 brown)."""
    size = max(n, 2 * _FRAME)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hertz = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE).clip(30.0)
    wave = np.fft.irfft(spectrum * (hertz / 1000.0) ** (slope / 6.0206), size)[:n]
    return (wave / (np.sqrt(np.mean(np.square(wave))) + _TINY)).astype(np.float32)


def add_at_snr(wave: Wave, other: Wave, snr: float) -> Wave:
    """Add `other` [n], scaled so that the levels of the two differ by `snr` dB; silence on either side adds nothing."""
    loud, quiet = level(wave), level(other)
    if loud < _TINY or quiet < _TINY:
        return wave
    return wave + other * np.float32(loud / quiet * 10.0 ** (-snr / 20.0))


# -------------------------------------------------------------------------------------------------------------- placing


def place(wave: Wave, n: int, at: int) -> Wave:
    """Return silence [n] with `wave` from sample `at` on; what reaches beyond either end is cut off."""
    out = np.zeros(n, np.float32)
    first, start = max(0, -at), max(0, at)
    part = wave[first : first + max(0, n - start)]
    out[start : start + len(part)] = part
    return out


def repeat(rng: Rng, wave: Wave, n: int) -> Wave:
    """Fill [n] with `wave` again and again, pauses of up to its own length (and 0.6 s) between."""
    out = np.zeros(n, np.float32)
    longest = max(1, min(len(wave), int(0.6 * SAMPLE_RATE)))
    at = int(rng.integers(0, max(1, min(longest, n // 4))))
    while at < n and len(wave):
        part = wave[: n - at] * np.float32(10.0 ** (rng.uniform(-4.0, 0.0) / 20.0))
        out[at : at + len(part)] += part
        at += len(wave) + int(rng.integers(0, longest))
    return out


def crop(rng: Rng, wave: Wave, n: int) -> Wave:
    """Return a random piece [n] of a longer wave, its edges faded; a shorter one as it is."""
    if len(wave) <= n:
        return wave
    at = int(rng.integers(0, len(wave) - n + 1))
    return fade(wave[at : at + n])


def sequence(waves: Sequence[Wave], gaps: Sequence[int]) -> Wave:
    """Put waves one after the other; `gaps` [len(waves) - 1] are the pauses in samples."""
    parts: list[Wave] = []
    for index, wave in enumerate(waves):
        if index:
            parts.append(np.zeros(gaps[index - 1], np.float32))
        parts.append(wave)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


# -------------------------------------------------------------------------------------------------------------- chains


@dataclass(frozen=True)
class Strength:
    """How far a chain goes: chance of every change and its range.

    Attributes:
        semitones: largest change of speed, either way; speed_chance: how often.
        tempo: largest factor of tempo (its inverse is the smallest); tempo_chance: how often.
        colour_chance, room_chance, noise_chance: how often the rest is applied.
        narrow_chance: how often the band is limited, as by a telephone or a small loudspeaker.
    """

    semitones: float = 4.0
    speed_chance: float = 0.6
    tempo: float = 1.25
    tempo_chance: float = 0.25
    colour_chance: float = 0.5
    narrow_chance: float = 0.15
    room_chance: float = 0.3
    noise_chance: float = 0.4


SPEECH = Strength(semitones=3.0)
SOUND = Strength(semitones=5.0, tempo=1.4, tempo_chance=0.2)


def vary_source(rng: Rng, wave: Wave, strength: Strength) -> Wave:
    """Change what sounds: speed and tempo. The result has another length."""
    turn, semitones = rng.random(), rng.uniform(-strength.semitones, strength.semitones)
    if turn < strength.speed_chance:
        wave = change_speed(wave, 2.0 ** (semitones / 12.0))
    turn, stretch = rng.random(), rng.uniform(-1.0, 1.0)
    if turn < strength.tempo_chance:
        wave = change_tempo(wave, float(strength.tempo**stretch))
    return wave


def vary_recording(rng: Rng, wave: Wave, strength: Strength) -> Wave:
    """Change how it was recorded: room, microphone, noise. The result has the same length."""
    turn, t60, wet = rng.random(), rng.uniform(0.15, 1.0), rng.uniform(0.05, 1.0)
    if turn < strength.room_chance:
        wave = reverberate(wave, impulse_response(rng, t60, wet))
    turn, tilt = rng.random(), rng.uniform(-4.0, 4.0)
    narrow, low, high = rng.random(), 80.0 * 5.0 ** rng.random(), 2500.0 * 2.8 ** rng.random()
    if turn < strength.colour_chance or narrow < strength.narrow_chance:
        limits = (low, high) if narrow < strength.narrow_chance else (0.0, SAMPLE_RATE / 2)
        wave = equalise(wave, tilt if turn < strength.colour_chance else 0.0, *limits)
    turn, slope, snr = rng.random(), rng.uniform(-7.0, 1.0), rng.uniform(8.0, 45.0)
    if turn < strength.noise_chance:
        wave = add_at_snr(wave, coloured_noise(rng, len(wave), slope), snr)
    return wave
