"""Signal tools of the miniature corpora: pulses, noises, resonators, rooms, microphones, levels.

Waves are float64 [n] at `RATE`. Nothing loops over samples; loops run over events, partials or resonators.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from audiocl_bench.mini.spec import RATE

Wave = NDArray[np.float64]
Rng = np.random.Generator

_TAPS = np.arange(-7, 9)  # samples around a pulse that carry its windowed sinc
_ACTIVE_FRAME = RATE // 50
_PEAK = 0.98


# ---------------------------------------------------------------------------------------------------------------- draws


def between(rng: Rng, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform: for frequencies, rates and durations."""
    return float(low * (high / low) ** rng.random())


def seconds(n: int) -> Wave:
    """Return the time of every sample in seconds, [n]."""
    return np.arange(n) / RATE


def wander(rng: Rng, n: int, hertz: float) -> Wave:
    """Return a smooth random curve [n] of unit spread with about `hertz` bends per second."""
    knots = rng.standard_normal(max(4, int(n / RATE * hertz) + 4))
    at = (rng.random() + seconds(n) * hertz) % (len(knots) - 2)
    index = at.astype(np.intp)
    blend = 0.5 - 0.5 * np.cos(np.pi * (at - index))
    return knots[index] * (1.0 - blend) + knots[index + 1] * blend


def beats(rng: Rng, n: int, hertz: float, *, looseness: float) -> list[int]:
    """Return onsets in samples, about `hertz` a second from a random start; `looseness` 0 is a clock, 0.5 is sloppy."""
    period = RATE / hertz
    count = int(n / period) + 2
    gaps = period * np.exp(looseness * rng.standard_normal(count))
    onsets = rng.random() * min(period, 0.5 * n) + np.concatenate(([0.0], np.cumsum(gaps)))
    return [int(at) for at in onsets if at < n - RATE // 50]


def scattered(rng: Rng, n: int, hertz: float) -> NDArray[np.intp]:
    """Return the samples of a Poisson process with `hertz` events a second, sorted."""
    return np.sort(rng.integers(0, n, rng.poisson(hertz * n / RATE)))


# -------------------------------------------------------------------------------------------------------------- sources


def tone(hertz: Wave | float, n: int, phase: float = 0.0) -> Wave:
    """Return a sine [n] whose frequency may move."""
    return np.sin(2.0 * np.pi * (phase + np.cumsum(np.broadcast_to(hertz, (n,))) / RATE))


def harmonics(hertz: Wave | float, amplitudes: Sequence[float] | NDArray[np.floating], n: int) -> Wave:
    """Return the sum of harmonics 1, 2, ... of a moving fundamental; what would pass 7.6 kHz is left out."""
    curve = np.broadcast_to(hertz, (n,))
    phase = 2.0 * np.pi * np.cumsum(curve) / RATE
    wave = np.zeros(n)
    for number, amplitude in enumerate(amplitudes, 1):
        if number * curve.min() > 7600.0:
            break
        wave += amplitude * np.sin(number * phase) * (number * curve < 7600.0)
    return wave


def pulse_train(at: Wave, amplitudes: Wave | float, n: int) -> Wave:
    """Return band-limited pulses [n] at fractional sample positions, so that a high pitch stays in tune."""
    whole = np.floor(at).astype(np.intp)
    offset = _TAPS[None] - (at - whole)[:, None]
    kernel = np.sinc(0.95 * offset) * np.cos(np.pi * offset / (2.0 * len(_TAPS))).clip(0.0) ** 2
    wave = np.zeros(n + 2 * len(_TAPS))
    index = (whole[:, None] + _TAPS[None] + len(_TAPS)).clip(0, len(wave) - 1)
    np.add.at(wave, index, kernel * np.broadcast_to(amplitudes, at.shape)[:, None])
    return wave[len(_TAPS) : len(_TAPS) + n]


def glottis(rng: Rng, hertz: Wave, *, jitter: float, shimmer: float) -> Wave:
    """Return pulses that follow a pitch curve [n] in Hz; `jitter` varies periods, `shimmer` strengths (relative)."""
    phase = np.cumsum(hertz) / RATE
    at = np.interp(np.arange(0.5, phase[-1]), phase, np.arange(float(len(hertz))))
    if not len(at):
        return np.zeros(len(hertz))
    period = RATE / hertz[at.astype(np.intp)]
    at = np.sort(at + jitter * period * rng.standard_normal(len(at)))
    # The square root of the period keeps the level of a gliding pitch: more pulses a second, each of them weaker.
    strength = np.sqrt(period) * np.exp(shimmer * rng.standard_normal(len(at)))
    return pulse_train(at, strength, len(hertz))


def coloured(rng: Rng, n: int, slope: float) -> Wave:
    """Return noise [n] of RMS 1 whose spectrum rises by `slope` dB per octave (0 white, -3 pink, -6 brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hertz = np.fft.rfftfreq(n, 1.0 / RATE).clip(20.0)
    wave = np.fft.irfft(spectrum * (hertz / 1000.0) ** (slope / 6.02), n)
    return wave / rms(wave)


def moving_noise(rng: Rng, n: int, hertz: Wave, octaves: float) -> Wave:
    """Return noise [n] in a band of `octaves` around a centre that moves, built from 14 fixed bands."""
    centres = np.geomspace(80.0, 7000.0, 14)
    axis = np.log2(np.fft.rfftfreq(n, 1.0 / RATE).clip(10.0))
    step = np.log2(centres[1] / centres[0])
    bands = np.cos(0.5 * np.pi * (np.abs(axis - np.log2(centres)[:, None]) / step).clip(max=1.0))
    parts = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * bands, n)
    coarse = np.log2(hertz[::64])
    gains = np.exp(-0.5 * ((np.log2(centres)[:, None] - coarse) / max(octaves / 2.0, 0.5 * step)) ** 2)
    return sum_rows(parts * np.repeat(gains, 64, axis=1)[:, :n] / np.sqrt(centres)[:, None])


def sum_rows(rows: NDArray[np.float64]) -> Wave:
    """Add up the rows of [m, n] in their order."""
    total: Wave = rows.sum(axis=0)
    return total


# ------------------------------------------------------------------------------------------------- events and envelopes


def decay(n: int, t60: float) -> Wave:
    """Return an exponential [n] that falls by 60 dB in `t60` seconds."""
    return np.exp(-6.91 * seconds(n) / t60)


def burst(n: int, attack: float, t60: float) -> Wave:
    """Return an envelope [n]: a smooth rise of `attack` seconds, then a fall by 60 dB in `t60` seconds."""
    rise = np.sin(0.5 * np.pi * (seconds(n) / attack).clip(max=1.0)) ** 2
    return rise * np.exp(-6.91 * (seconds(n) - attack).clip(0.0) / t60)


def arch(n: int, edge: float = 0.5) -> Wave:
    """Return an envelope [n] that rises over its first `edge` (a share) and falls over its last."""
    place = np.linspace(0.0, 1.0, n)
    return np.sin(0.5 * np.pi * (np.minimum(place, 1.0 - place) / edge).clip(max=1.0)) ** 2


def modes(hertz: Sequence[float] | Wave, t60: Sequence[float] | Wave, gains: Sequence[float] | Wave) -> Wave:
    """Return what a struck body rings like: damped sines, as long as the slowest takes to fall by 60 dB."""
    frequencies, times = np.asarray(hertz, float), np.asarray(t60, float)
    time = seconds(int(times.max() * RATE) + 16)
    rows = np.sin(2.0 * np.pi * frequencies[:, None] * time) * np.exp(-6.91 * time / times[:, None])
    return sum_rows(rows * np.asarray(gains, float)[:, None] * (frequencies < 7800.0)[:, None])


def place(n: int, events: Iterable[tuple[int, Wave]]) -> Wave:
    """Add up events (onset in samples, wave); what reaches beyond [0, n) is cut off."""
    wave = np.zeros(n)
    for onset, event in events:
        first = max(0, -onset)
        part = event[first : first + max(0, n - max(0, onset))]
        wave[max(0, onset) : max(0, onset) + len(part)] += part
    return wave


def spikes(rng: Rng, n: int, hertz: float, spread: float) -> Wave:
    """Return random pulses, `hertz` a second, of either sign; log strengths have the standard deviation `spread`."""
    at = scattered(rng, n, hertz)
    wave = np.zeros(n)
    np.add.at(wave, at, np.exp(spread * rng.standard_normal(len(at))) * rng.choice((-1.0, 1.0), len(at)))
    return wave


# -------------------------------------------------------------------------------------------------------------- filters


def band(wave: Wave, low: float, high: float, order: int = 2) -> Wave:
    """Keep what lies between `low` and `high` Hz; a limit of 0 or of 7.9 kHz and more does not limit."""
    if low > 0.0:
        wave = signal.sosfilt(signal.butter(order, low, "highpass", fs=RATE, output="sos"), wave)
    if high < 7900.0:
        wave = signal.sosfilt(signal.butter(order, high, "lowpass", fs=RATE, output="sos"), wave)
    return wave


def resonate(wave: Wave, hertz: float, width: float) -> Wave:
    """Pass `wave` through one resonance of `width` Hz with gain 1 at its peak, nothing at 0 Hz."""
    radius = np.exp(-np.pi * width / RATE)
    denominator = [1.0, -2.0 * radius * np.cos(2.0 * np.pi * min(hertz, 7800.0) / RATE), radius**2]
    filtered: Wave = signal.lfilter([0.5 * (1.0 - radius**2), 0.0, -0.5 * (1.0 - radius**2)], denominator, wave)
    return filtered


def body(wave: Wave, hertz: Sequence[float], widths: Sequence[float], gains: Sequence[float]) -> Wave:
    """Pass `wave` through parallel resonances."""
    total = np.zeros(len(wave))
    for centre, width, gain in zip(hertz, widths, gains, strict=True):
        total += gain * resonate(wave, centre, width)
    return total


def tract(wave: Wave, formants: Sequence[float] | Wave, widths: Sequence[float]) -> Wave:
    """Pass `wave` through a chain of formants (all-pole, gain 1 at 0 Hz), as a vocal tract does."""
    sections = []
    for centre, width in zip(formants, widths, strict=True):
        if centre < 7600.0:
            radius = np.exp(-np.pi * width / RATE)
            poles = [1.0, -2.0 * radius * np.cos(2.0 * np.pi * centre / RATE), radius**2]
            sections.append([sum(poles), 0.0, 0.0, *poles])
    filtered: Wave = signal.sosfilt(np.array(sections), wave)
    return filtered


def one_pole(wave: Wave, hertz: float) -> Wave:
    """Fall by 6 dB per octave above `hertz`."""
    pole = np.exp(-2.0 * np.pi * hertz / RATE)
    filtered: Wave = signal.lfilter([1.0 - pole], [1.0, -pole], wave)
    return filtered


# ------------------------------------------------------------------------------------------------ places and recordings


def room(wave: Wave, rng: Rng, t60: float, wet: float) -> Wave:
    """Add the tail of a room: noise that falls by 60 dB in `t60` seconds, its energy `wet` times the direct sound's."""
    tail = band(rng.standard_normal(int(RATE * min(t60, 0.8))), 150.0, 5000.0, 1)
    tail *= decay(len(tail), t60)
    answer = np.concatenate(([1.0], np.zeros(60), np.sqrt(wet / np.square(tail).sum()) * tail))
    heard: Wave = signal.oaconvolve(wave, answer)[: len(wave)]
    return heard


def microphone(rng: Rng, n: int, strength: float) -> Wave:
    """Draw a recording's colour: the gains [n // 2 + 1] of a tilt and three bumps, scaled by `strength`, and limits."""
    hertz = np.fft.rfftfreq(n, 1.0 / RATE).clip(10.0)
    octave = np.log2(hertz / 1000.0)
    decibel = rng.uniform(-3.0, 3.0) * octave
    for _ in range(3):
        decibel += rng.uniform(-8.0, 8.0) * np.exp(
            -0.5 * ((octave - rng.uniform(-3.0, 2.8)) / rng.uniform(0.3, 1.0)) ** 2
        )
    decibel *= strength
    low, high = between(rng, 25.0, 200.0), between(rng, 8000.0 * 2.0**-strength, 9000.0)
    decibel -= 10.0 * np.log10(1.0 + (low / hertz) ** 4) + 10.0 * np.log10(1.0 + (hertz / high) ** 8)
    return 10.0 ** (decibel.clip(-60.0, 20.0) / 20.0)


def recorded(wave: Wave, gains: Wave) -> Wave:
    """Apply a `microphone` to a wave of the length it was drawn for."""
    return np.fft.irfft(np.fft.rfft(wave) * gains, len(wave))


def background(rng: Rng, n: int) -> Wave:
    """Draw what else is heard: noise that breathes, often mains hum, often something far away; active level 1."""
    wave = coloured(rng, n, rng.uniform(-7.0, 1.0)) * np.exp(0.25 * wander(rng, n, 1.5))
    if rng.random() < 0.4:
        mains = rng.choice((50.0, 60.0))
        wave += rng.uniform(0.1, 0.8) * harmonics(mains, rng.random(12) / np.arange(1, 13), n)
    if rng.random() < 0.5:  # traffic: a swell of low noise
        swell = np.exp(wander(rng, n, 0.6))
        wave += rng.uniform(0.2, 1.0) * coloured(rng, n, -9.0) * swell
    for _ in range(rng.poisson(1.0)):  # a far thing that sounds, calls or falls: short, dull, of any pitch
        size = int(RATE * between(rng, 0.05, 0.6))
        pitch = between(rng, 150.0, 1800.0) * np.linspace(1.0, rng.uniform(0.8, 1.25), size)
        sounding = harmonics(pitch, [1.0, 0.4, 0.2], size) if rng.random() < 0.6 else rng.standard_normal(size)
        onset = int(rng.integers(-size // 2, n - size // 2))
        wave += rng.uniform(0.1, 0.8) * place(n, [(onset, band(sounding * arch(size, 0.3), 100.0, 2500.0, 1))])
    return wave / active_level(wave)


# --------------------------------------------------------------------------------------------------------------- levels


def rms(wave: NDArray[np.floating]) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.square(wave).mean()))


def loudness(rng: Rng) -> float:
    """Draw a level in dBFS (RMS): -27.5 on average, between -40 and -15, most within 4 dB of the average."""
    return -27.5 + float(np.clip(4.0 * rng.standard_normal(), -12.5, 12.5))


def active_level(wave: Wave) -> float:
    """Return the RMS of the loudest tenth of the 20 ms frames: the level of the event, not of the pauses around it."""
    frames = wave[: len(wave) // _ACTIVE_FRAME * _ACTIVE_FRAME].reshape(-1, _ACTIVE_FRAME)
    power = np.sort(np.square(frames).mean(axis=1))
    return float(np.sqrt(power[-max(1, len(power) // 10) :].mean())) + 1e-12


def unit(wave: Wave) -> Wave:
    """Scale to active level 1."""
    return wave / active_level(wave)


def finish(wave: Wave, decibel: float) -> NDArray[np.float32]:
    """Remove the mean, scale to an RMS of `decibel` dBFS, or to a peak of 0.98 if that is lower, as float32."""
    wave = wave - wave.mean()
    gain = min(10.0 ** (decibel / 20.0) / (rms(wave) + 1e-12), _PEAK / (np.abs(wave).max() + 1e-12))
    return (gain * wave).astype(np.float32)
