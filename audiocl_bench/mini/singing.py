"""Singing techniques in miniature: a glottis that can be pressed, soft, rough or leaking, and a tract of five formants.

A technique decides how pitch, loudness, effort and breath move (`Phrase`); a singer decides the voice they move in.
Effort means what a loud voice changes in the spectrum (a flatter slope); the level is drawn at random for every clip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from audiocl_bench.mini import dsp
from audiocl_bench.mini.dsp import Rng, Wave, between
from audiocl_bench.mini.sounds import SEED
from audiocl_bench.mini.spec import RATE, ClipSpec
from audiocl_bench.seeding import numpy_generator

LENGTH = 40_960
"""Samples of a clip: 2.56 s, 256 rows of log-mel."""

_TEST = ("female2", "male3", "male5")

# First three formants of an adult male voice in Hz (Peterson and Barney 1952, rounded).
_VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
_SHARES = (0.3, 0.22, 0.13, 0.22, 0.13)  # of the vowels: most exercises are sung on open ones


@dataclass(frozen=True)
class Voice:
    """A singer.

    Attributes:
        low: lowest comfortable note in Hz.
        tract: formant frequencies relative to the table's (about 1.17 for a female voice).
        slope: corner in Hz of the glottal spectrum at middle effort; a bright voice has a high one.
        ring: gain of the singer's formant, 0 for an untrained voice.
        breath: noise that leaks through this voice's normal phonation, relative to the voice.
        rate: vibrato rate in Hz.
        colour: microphone gains.
    """

    low: float
    tract: float
    slope: float
    ring: float
    breath: float
    rate: float
    colour: Wave


@dataclass(frozen=True)
class Phrase:
    """What is sung: curves over the clip, each [n] or constant, and the state of the voice.

    Attributes:
        pitch: f0 in Hz, [n].
        gain: loudness envelope, [n].
        effort: 0 (softest) to 1 (loudest): the slope of the spectrum.
        breath: noise relative to the voice; more than 1 is mostly breath.
        jitter: relative variation of the periods.
        shimmer: log variation of the pulses' strengths.
        vowel: one of a e i o u.
        first: factor of the first formant (a raised larynx, an open jaw).
        larynx: factor of all formants.
        ring: factor of the singer's formant.
        lips: rate in Hz at which the lips flutter, 0 for open lips.
    """

    pitch: Wave
    gain: Wave
    vowel: str
    effort: Wave = field(default_factory=lambda: np.full(LENGTH, 0.5))
    breath: float = 0.004
    jitter: float = 0.004
    shimmer: float = 0.04
    first: float = 1.0
    larynx: float = 1.0
    ring: float = 1.0
    lips: float = 0.0


# -------------------------------------------------------------------------------------------------------------- phrases


def _line(voice: Voice, take: Rng, notes: float, *, vibrato: float = 0.0, high: bool = False) -> Phrase:
    """Draw a scale or an arpeggio of `notes` notes a second up and down, or one long note where `notes` is 0.

    Args:
        voice: whose range it lies in.
        take: the draws.
        notes: notes per second.
        vibrato: its extent in semitones, to either side.
        high: use the upper half of the range, as belting does.
    """
    steps = np.array(((0, 2, 4, 5, 7, 9, 11, 12), (0, 4, 7, 12, 16, 12, 7, 4))[int(take.integers(2))])
    vowel = str(take.choice(list(_VOWELS), p=_SHARES))
    tonic = voice.low * 2.0 ** ((take.uniform(0.0, 5.0) + (5.0 if high else 0.0)) / 12.0)
    start, tempo = int(take.integers(8)), notes * between(take, 0.9, 1.1)
    time = dsp.seconds(LENGTH)
    place = (time * tempo + take.random()) if notes else np.zeros(LENGTH)
    order = np.concatenate((steps, steps[-2:0:-1]))
    semitones = order[(start + place.astype(np.intp)) % len(order)].astype(float)
    if not notes:
        semitones += take.uniform(0.0, 5.0)
    glide = max(3, int(RATE * min(0.06, 0.25 / max(tempo, 0.1))))  # the voice slides from note to note
    window = np.hanning(glide + 2)[1:-1]
    semitones = np.convolve(np.pad(semitones, glide, mode="edge"), window / window.sum(), mode="same")[glide:-glide]
    semitones += 0.08 * dsp.wander(take, LENGTH, 2.0) + vibrato * _vibrato(voice, take)
    gain = np.exp(0.12 * dsp.wander(take, LENGTH, 2.0))
    if notes:  # every note has a little attack of its own
        gain *= 1.0 - take.uniform(0.1, 0.45) * np.exp(-((((place + 0.5) % 1.0 - 0.5) / (0.05 * tempo)) ** 2))
    return Phrase(pitch=tonic * 2.0 ** (semitones / 12.0), gain=gain * _breathing(take), vowel=vowel)


def _vibrato(voice: Voice, take: Rng) -> Wave:
    """Return a modulation [LENGTH] of extent 1 that sets in after the first tenths of a second."""
    rate = voice.rate * between(take, 0.93, 1.07) * (1.0 + 0.02 * dsp.wander(take, LENGTH, 1.5))
    return dsp.tone(rate, LENGTH, take.random()) * (dsp.seconds(LENGTH) / take.uniform(0.05, 0.4)).clip(max=1.0)


def _breathing(take: Rng) -> Wave:
    """Return an envelope [LENGTH]: the voice may set in late, or stop before the clip does."""
    start = take.uniform(0.0, 0.35) if take.random() < 0.6 else -0.2
    stop = take.uniform(2.1, 2.5) if take.random() < 0.6 else 3.0
    time = dsp.seconds(LENGTH)
    return ((time - start) / 0.05).clip(0.0, 1.0) * ((stop - time) / 0.08).clip(0.0, 1.0)


def _any_line(voice: Voice, take: Rng, *, vibrato: float = 0.0, high: bool = False) -> Phrase:
    """Draw one long note, or a line at a middle tempo: the techniques that VocalSet records in several contexts."""
    notes = 0.0 if take.random() < 0.4 else between(take, 2.0, 4.0)
    return _line(voice, take, notes, vibrato=vibrato, high=high)


def _effort(take: Rng, low: float, high: float) -> Wave:
    return np.full(LENGTH, take.uniform(low, high))


# ----------------------------------------------------------------------------------------------------------- techniques


def belt(voice: Voice, take: Rng) -> Phrase:
    """Chest voice carried high: raised larynx, first formant pulled up to the second harmonic, strong overtones."""
    phrase = _any_line(voice, take, high=True)
    vowel = str(take.choice(["a", "e", "o"]))
    return replace(phrase, vowel=vowel, effort=_effort(take, 1.05, 1.15), first=1.45, larynx=1.14, ring=0.2)


def breathy(voice: Voice, take: Rng) -> Phrase:
    """Air leaks through a glottis that never closes: noise in the upper formants, little but the first harmonics."""
    phrase = _any_line(voice, take)
    return replace(phrase, effort=_effort(take, 0.0, 0.2), breath=take.uniform(0.22, 0.4), ring=0.0)


def fast_forte(voice: Voice, take: Rng) -> Phrase:
    """Six to eight notes a second with full voice."""
    return replace(_line(voice, take, between(take, 6.0, 8.0)), effort=_effort(take, 0.85, 1.0), ring=3.0)


def fast_piano(voice: Voice, take: Rng) -> Phrase:
    """Six to eight notes a second, softly."""
    return replace(_line(voice, take, between(take, 6.0, 8.0)), effort=_effort(take, 0.05, 0.2), ring=0.5, breath=0.008)


def forte(voice: Voice, take: Rng) -> Phrase:
    """One long note with full voice: flat spectrum, ringing singer's formant, some vibrato."""
    phrase = _line(voice, take, 0.0, vibrato=take.uniform(0.2, 0.35))
    return replace(phrase, effort=_effort(take, 0.95, 1.05), ring=3.0)


def inhaled(voice: Voice, take: Rng) -> Phrase:
    """Sung while breathing in: a rush of air louder than a rough, unsteady voice."""
    phrase = _any_line(voice, take)
    rough = phrase.pitch * np.exp(0.03 * dsp.wander(take, LENGTH, 14.0))
    breath = take.uniform(3.0, 6.0)
    return replace(
        phrase, pitch=rough, effort=_effort(take, 0.3, 0.6), breath=breath, jitter=0.05, shimmer=0.5, larynx=1.1
    )


def lip_trill(voice: Voice, take: Rng) -> Phrase:
    """Lips that flutter 18 to 30 times a second: the voice is chopped and dulled behind them."""
    return replace(
        _any_line(voice, take), vowel="u", lips=between(take, 18.0, 30.0), ring=0.0, effort=_effort(take, 0.3, 0.6)
    )


def messa(voice: Voice, take: Rng) -> Phrase:
    """Messa di voce: one note that grows from nothing to full voice and dies away again, getting bright with it."""
    phrase = _line(voice, take, 0.0, vibrato=take.uniform(0.0, 0.3))
    top = take.uniform(0.4, 0.6) * LENGTH / RATE
    time = dsp.seconds(LENGTH)
    swell = np.where(time < top, time / top, (LENGTH / RATE - time) / (LENGTH / RATE - top)).clip(0.0)
    gain = 10.0 ** (-take.uniform(22.0, 32.0) * (1.0 - swell) / 20.0)
    return replace(phrase, gain=gain, effort=0.05 + 0.9 * swell, ring=1.3)


def pp(voice: Voice, take: Rng) -> Phrase:
    """One long note as soft as can be: hardly more than the first harmonics."""
    return replace(_line(voice, take, 0.0), effort=_effort(take, 0.0, 0.05), ring=0.2, breath=take.uniform(0.01, 0.02))


def slow_forte(voice: Voice, take: Rng) -> Phrase:
    """About two notes a second with full voice."""
    phrase = _line(voice, take, between(take, 1.5, 2.2), vibrato=take.uniform(0.1, 0.25))
    return replace(phrase, effort=_effort(take, 0.85, 1.0), ring=3.0)


def slow_piano(voice: Voice, take: Rng) -> Phrase:
    """About two notes a second, softly."""
    phrase = _line(voice, take, between(take, 1.5, 2.2), vibrato=take.uniform(0.0, 0.2))
    return replace(phrase, effort=_effort(take, 0.05, 0.2), ring=0.4, breath=0.008)


def straight(voice: Voice, take: Rng) -> Phrase:
    """One long note, its pitch held as still as a voice can, at middle effort: no vibrato at all."""
    return replace(_line(voice, take, 0.0), effort=_effort(take, 0.3, 0.45), ring=0.4)


def trill(voice: Voice, take: Rng) -> Phrase:
    """Two notes, a tone or a minor third apart, in turn six to seven times a second: jumps where vibrato sways."""
    phrase = _line(voice, take, 0.0)
    wave = np.sign(dsp.tone(between(take, 5.8, 7.2), LENGTH, take.random()))
    window = np.hanning(RATE // 25)
    jump = np.convolve(wave, window / window.sum(), mode="same")
    interval = float(take.choice((2.0, 2.0, 3.0)))
    pitch = phrase.pitch * 2.0 ** (0.5 * interval * jump / 12.0)
    return replace(phrase, pitch=pitch, gain=phrase.gain * (1.0 + 0.12 * jump), effort=_effort(take, 0.4, 0.7))


def trillo(voice: Voice, take: Rng) -> Phrase:
    """One note struck again and again, ever faster: from some 3 to 11 times a second the voice all but stops."""
    phrase = _line(voice, take, 0.0)
    rate = np.geomspace(between(take, 2.2, 4.0), between(take, 8.0, 12.0), LENGTH)
    place = (np.cumsum(rate) / RATE + take.random()) % 1.0
    strike = (place / 0.12).clip(max=1.0) * ((1.0 - place) / 0.4).clip(max=1.0)
    floor = take.uniform(0.02, 0.12)
    pitch = phrase.pitch * 2.0 ** (-0.5 * (1.0 - strike) / 12.0)  # the pitch sags where the voice stops
    return replace(
        phrase, pitch=pitch, gain=phrase.gain * (floor + (1 - floor) * strike), effort=_effort(take, 0.4, 0.7)
    )


def vibrato(voice: Voice, take: Rng) -> Phrase:
    """The pitch sways as a sine, some 5 times a second, by more than half a semitone to either side."""
    notes = 0.0 if take.random() < 0.75 else between(take, 1.0, 1.6)
    return replace(_line(voice, take, notes, vibrato=take.uniform(0.5, 0.75)), effort=_effort(take, 0.45, 0.75))


def vocal_fry(voice: Voice, take: Rng) -> Phrase:
    """The lowest register: 22 to 48 pulses a second, uneven and so far apart that each one rings out alone."""
    phrase = _line(voice, take, 0.0)
    pitch = between(take, 22.0, 48.0) * np.exp(0.06 * dsp.wander(take, LENGTH, 3.0))
    return replace(phrase, pitch=pitch, jitter=0.07, shimmer=0.25, effort=_effort(take, 0.6, 1.0), ring=0.3)


TECHNIQUES: Mapping[str, Callable[[Voice, Rng], Phrase]] = {
    "belt": belt,
    "breathy": breathy,
    "fast_forte": fast_forte,
    "fast_piano": fast_piano,
    "forte": forte,
    "inhaled": inhaled,
    "lip_trill": lip_trill,
    "messa": messa,
    "pp": pp,
    "slow_forte": slow_forte,
    "slow_piano": slow_piano,
    "straight": straight,
    "trill": trill,
    "trillo": trillo,
    "vibrato": vibrato,
    "vocal_fry": vocal_fry,
}
"""VocalSet's techniques, without `spoken`."""


# ---------------------------------------------------------------------------------------------------------------- voice


def singer(name: str) -> Voice:
    """Draw the voice of a singer, such as "female3"; it is the same in all techniques."""
    rng = numpy_generator(SEED, Singing.name, name, "voice")
    female = name.startswith("female")
    return Voice(
        low=between(rng, 170.0, 230.0) if female else between(rng, 85.0, 125.0),
        tract=rng.uniform(1.1, 1.24) if female else rng.uniform(0.92, 1.08),
        slope=between(rng, 600.0, 850.0),
        ring=rng.uniform(0.5, 1.2),
        breath=rng.uniform(0.002, 0.006),
        rate=rng.uniform(4.6, 5.6),
        colour=dsp.microphone(rng, LENGTH, 0.25),
    )


def sing(voice: Voice, phrase: Phrase, take: Rng) -> Wave:
    """Let a voice sing a phrase: glottal pulses and breath through the tract, [LENGTH] at no particular level."""
    pulses = dsp.glottis(take, phrase.pitch, jitter=phrase.jitter, shimmer=phrase.shimmer)
    # Soft phonation is nearly a sine (its spectrum falls by 6 dB per octave more), loud phonation has the flat slope
    # of a quick closure. Both are rendered once, and effort, which may move, blends them.
    soft = dsp.unit(dsp.one_pole(dsp.one_pole(dsp.one_pole(pulses, 120.0), 0.35 * voice.slope), 0.7 * voice.slope))
    loud = dsp.unit(dsp.one_pole(dsp.one_pole(pulses, 200.0), 2.0 * voice.slope))
    source = (1.0 - phrase.effort) * soft + phrase.effort * loud
    opened = 0.5 + 0.5 * dsp.tone(phrase.pitch, LENGTH)  # breath flows while the folds are apart
    air = dsp.band(take.standard_normal(LENGTH), 300.0, 1200.0, 1) * (0.35 + 0.65 * opened)
    breath = phrase.breath + voice.breath
    source = dsp.unit(source) / max(1.0, breath) + min(1.0, breath) * dsp.unit(air)
    source = np.diff(source * phrase.gain, prepend=0.0)  # the lips radiate the derivative of the flow
    scale = voice.tract * phrase.larynx
    first, second, third = _VOWELS[phrase.vowel]
    formants = np.array([first * phrase.first, second, third, 3400.0, 4500.0, 5500.0, 6500.0]) * scale
    # A singer tunes the first formant to the fundamental where the pitch passes it; the second stays above.
    formants[0] = max(formants[0], 1.02 * float(np.median(phrase.pitch)))
    formants[1] = max(formants[1], 1.25 * formants[0])
    wave = dsp.tract(source, formants, [80, 120, 180, 260, 350, 400, 500])
    ring = 2.0 * voice.ring * phrase.ring * phrase.effort
    wave += ring * dsp.resonate(wave, 2850.0 * scale, 350.0)
    return _fluttered(wave, phrase.lips, take) if phrase.lips else wave


def _fluttered(wave: Wave, hertz: float, take: Rng) -> Wave:
    """Chop a wave as fluttering lips do, and let little above 1 kHz through them."""
    curve = hertz * (1.0 + 0.05 * dsp.wander(take, LENGTH, 4.0))
    gate = (0.5 + 0.5 * dsp.tone(curve, LENGTH, take.random())) ** 1.5
    slap = dsp.band(take.standard_normal(LENGTH), 200.0, 1500.0, 1) * gate**3
    dulled = signal.sosfilt(signal.butter(2, 1100.0, fs=RATE, output="sos"), wave)
    return dsp.unit(dulled) * (0.12 + 0.88 * gate) + 0.12 * dsp.unit(slap)


# --------------------------------------------------------------------------------------------------------------- recipe


class Singing:
    """VocalSet in miniature: 16 techniques x 10 singers x 2 takes of 2.56 s; folds "train" and "test" by singer."""

    name = "mini-vocalset"

    def specs(self) -> tuple[ClipSpec, ...]:
        """Return all 320 clips, sorted by clip id; the test singers are female2, male3 and male5."""
        singers = [f"{sex}{number}" for sex in ("female", "male") for number in range(1, 6)]
        return tuple(
            sorted(
                ClipSpec(f"{label}/{who}_{take}", label, who, "test" if who in _TEST else "train")
                for label in TECHNIQUES
                for who in singers
                for take in (1, 2)
            )
        )

    def phrase(self, spec: ClipSpec) -> Phrase:
        """Return what is sung in a clip: its true pitch and loudness."""
        return TECHNIQUES[spec.label](singer(spec.group), _generator(self.name, spec, "phrase"))

    def render(self, spec: ClipSpec) -> NDArray[np.float32]:
        """Return one clip, float32 [40960], recorded in a room with some noise, at a level that tells nothing."""
        voice = singer(spec.group)
        wave = sing(voice, self.phrase(spec), _generator(self.name, spec, "voice"))
        scene = _generator(self.name, spec, "scene")
        wave = dsp.unit(dsp.room(wave, scene, scene.uniform(0.2, 0.8), scene.uniform(0.0, 0.08)))
        bed = dsp.background(scene, LENGTH)
        wave += 10.0 ** (-scene.uniform(15.0, 40.0) / 20.0) * bed
        return dsp.finish(dsp.recorded(wave, voice.colour), dsp.loudness(scene))


def _generator(recipe: str, spec: ClipSpec, purpose: str) -> Rng:
    return numpy_generator(SEED, recipe, spec.label, spec.group, spec.clip_id, purpose)
