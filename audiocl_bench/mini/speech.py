"""Miniatures of Speech Commands and TIMIT: short words and sentences, spoken by a synthesiser of the formant kind.

A voice (`Person`) is a fixed point of accent, timbre, pitch, vocal-tract length, speed, spectral tilt and breath. Every
clip varies around it and is heard through a room, a microphone and a background of its own (`_record`). Level, colour
and noise differ from clip to clip on purpose: statistics of a spectrogram see mostly those, while a trained network
looks through them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import fft, signal

from audiocl_bench.mini.espeak import NATIVE_RATE, OCTAVE, Manner, speak
from audiocl_bench.mini.spec import RATE, ClipSpec
from audiocl_bench.seeding import numpy_generator

_SEED = 2024
_STEPS = NATIVE_RATE // 50  # 22,050 to 16,000 Hz is 441 to 320: vocal-tract lengths come in steps of 1/441


@dataclass(frozen=True)
class Person:
    """One voice.

    Attributes:
        accent: a voice of espeak-ng, such as "en-us".
        timbre: a variant of espeak-ng, such as "f3".
        pitch: in espeak-ng's steps (50 is the variant's own pitch, 65 more make an octave).
        formants: factor on all formant frequencies; above 1 is a shorter vocal tract. Pitch and rate stay as they are.
        rate: words per minute.
        tilt: spectral tilt above 500 Hz in dB per octave.
        breath: strength of breath noise; 0 is none, 0.06 clearly audible.
    """

    accent: str
    timbre: str
    pitch: int
    formants: float = 1.0
    rate: int = 125
    tilt: float = 0.0
    breath: float = 0.0


@dataclass(frozen=True)
class _Spread:
    """How far the clips of a corpus vary: each pair is the range of a uniform draw."""

    pitch: tuple[float, float]  # steps around the person's own
    formants: tuple[float, float]  # factor on the person's own
    rate: tuple[float, float]  # factor on the person's own
    inflection: tuple[int, int]
    level: tuple[float, float]  # peak, dBFS
    snr: tuple[float, float]  # dB
    ripple: float  # largest gain of the microphone's and the room's colour, dB
    wet: tuple[float, float]  # reverberation against direct sound, dB
    telephone: float  # share of clips


# ----------------------------------------------------------------------------------------------------------- keywords

# Easily confused: go and no, five and nine (and right), off and on (and stop), up and off.
WORDS = (
    *("down", "five", "go", "happy", "left", "nine", "no"),
    *("off", "on", "right", "six", "stop", "up", "yes"),
)
"""The words of `Keywords`, all from Speech Commands."""

VOICES = {
    "v01": Person("en-us", "m3", 45),
    "v02": Person("en-us", "f2", 50, 0.98),
    "v03": Person("en", "m7", 52, 1.03),
    "v04": Person("en-gb-x-rp", "f4", 42, 1.0),
    "v05": Person("en-gb-scotland", "m2", 40, 0.96),
    "v06": Person("en-029", "f3", 55, 1.04),
    "v07": Person("en-gb-x-gbclan", "m4", 60, 1.08),
    "v08": Person("en-us", "m8", 50, 1.02),
    "v09": Person("en-us", "f5", 48, 1.03),
    "v10": Person("en-gb-x-rp", "m1", 46, 1.0),
    "v11": Person("en", "f1", 52, 0.97),
    "v12": Person("en-us", "croak", 55, 1.05),
}
"""The voices of `Keywords`."""

_KEYWORD_TAKES = 2
_KEYWORD_SAMPLES = RATE
_KEYWORD_FOLDS = {"v09": "testing", "v10": "testing", "v11": "validation", "v12": "validation"}
_KEYWORD_SPREAD = _Spread(
    pitch=(-6.0, 6.0),
    formants=(0.97, 1.03),
    rate=(0.85, 1.2),
    inflection=(20, 80),
    level=(-20.0, -11.0),
    snr=(12.0, 32.0),
    ripple=1.5,
    wet=(-26.0, -8.0),
    telephone=0.06,
)


class Keywords:
    """`mini-sc2`: 14 words, 12 voices, two takes each, in frames of one second."""

    @property
    def name(self) -> str:
        """Its name."""
        return "mini-sc2"

    def specs(self) -> tuple[ClipSpec, ...]:
        """Return the 336 clips; the fold is that of Speech Commands' lists: training, testing or validation."""
        return tuple(
            sorted(
                ClipSpec(f"{word}/{voice}_{take}", word, voice, _KEYWORD_FOLDS.get(voice, "training"))
                for word in WORDS
                for voice in VOICES
                for take in range(1, _KEYWORD_TAKES + 1)
            )
        )

    def render(self, spec: ClipSpec) -> np.ndarray:
        """Return the sound of one clip: float32 [16000].

        Raises:
            CorpusError: the synthesiser is not installed.
        """
        draws = numpy_generator(_SEED, self.name, spec.clip_id)
        said = _say(spec.label, VOICES[spec.group], _KEYWORD_SPREAD, draws, self.name)[:_KEYWORD_SAMPLES]
        start = int(draws.uniform(0.0, _KEYWORD_SAMPLES - len(said)))
        return _record(said, start, _KEYWORD_SAMPLES, _KEYWORD_SPREAD, draws)


# ----------------------------------------------------------------------------------------------------------- speakers

# Speakers in a row share accent and timbre, two by two: these are the ones to tell apart.
SPEAKERS = {
    "F01": Person("en-us", "f2", 44, 0.96, 158, -1.0, 0.00),
    "F02": Person("en-us", "f2", 58, 1.04, 172, 1.0, 0.03),
    "F03": Person("en-us", "f5", 40, 0.98, 170, 0.5, 0.05),
    "F04": Person("en-us", "f5", 55, 1.06, 160, -1.5, 0.00),
    "F05": Person("en-gb-x-rp", "f4", 42, 0.97, 150, 1.0, 0.00),
    "F06": Person("en-gb-x-rp", "f4", 56, 1.05, 178, -1.0, 0.04),
    "F07": Person("en-gb-scotland", "f3", 46, 0.95, 165, 0.0, 0.02),
    "F08": Person("en-gb-scotland", "f3", 60, 1.03, 150, -2.0, 0.00),
    "F09": Person("en-029", "f1", 40, 1.00, 168, -1.0, 0.06),
    "F10": Person("en-029", "f1", 54, 1.07, 155, 1.0, 0.00),
    "F11": Person("en-us-nyc", "f4", 48, 0.94, 175, 1.5, 0.00),
    "F12": Person("en-us-nyc", "f4", 62, 1.02, 162, -0.5, 0.05),
    "M01": Person("en-us", "m3", 38, 0.96, 160, 0.0, 0.00),
    "M02": Person("en-us", "m3", 52, 1.04, 174, -1.5, 0.03),
    "M03": Person("en-us", "m7", 46, 0.98, 150, 1.0, 0.04),
    "M04": Person("en-us", "m7", 60, 1.06, 166, -1.0, 0.00),
    "M05": Person("en-gb-x-rp", "m1", 40, 0.97, 178, -0.5, 0.00),
    "M06": Person("en-gb-x-rp", "m1", 55, 1.05, 156, 1.5, 0.05),
    "M07": Person("en-gb-scotland", "m2", 44, 0.94, 152, 1.0, 0.00),
    "M08": Person("en-gb-scotland", "m2", 58, 1.02, 170, -1.0, 0.03),
    "M09": Person("en-029", "m4", 40, 1.00, 164, -2.0, 0.02),
    "M10": Person("en-029", "m4", 54, 1.08, 150, 0.5, 0.00),
    "M11": Person("en-gb-x-gbclan", "m8", 44, 0.96, 172, 0.0, 0.06),
    "M12": Person("en-gb-x-gbclan", "m8", 58, 1.04, 158, -1.5, 0.00),
}
"""The speakers of `Speakers`."""

# The two sentences that everybody reads, in TIMIT and here.
_EVERYBODY = {
    "SA1": "She had your dark suit in greasy wash water all year.",
    "SA2": "Don't ask me to carry an oily rag like that.",
}

_SHARED = (
    "The kettle began to whistle before breakfast was ready.",
    "Two grey cats slept under the garden bench.",
    "Please put the heavy boxes beside the door.",
    "Our train leaves the station at half past nine.",
    "He poured fresh coffee into a chipped blue mug.",
    "Nobody noticed the small hole in the fence.",
    "My sister plays the violin on Thursday evenings.",
    "A cold wind blew through the open window.",
    "They painted the kitchen walls bright yellow.",
    "Could you lend me your umbrella for an hour?",
    "The old bridge shakes when a truck goes by.",
    "We picked a basket of ripe cherries together.",
    "His jacket pocket was full of loose change.",
    "Rain is likely over the hills this weekend.",
    "She folded the letter and hid it in a book.",
    "The baker opens his shop just after six.",
    "Which of these roads goes down to the beach?",
    "Thick smoke rose above the village chimney.",
    "I forgot to water the plants again today.",
    "The judge asked everyone to remain quiet.",
    "Fresh snow covered the path to the cabin.",
    "Turn the volume down before the baby wakes.",
    "An orange boat drifted slowly past the pier.",
    "You should measure the shelf before you buy it.",
)
_SHARED_EACH = 5

# A sentence of one's own is one of 9 beginnings with one of 8 ends: 72, three for each of 24 speakers.
_BEGINNINGS = (
    *("The young farmer", "My tall neighbour", "A tired doctor", "Her eldest brother", "The new teacher"),
    *("Every good sailor", "Our friendly postman", "That famous painter", "His clever daughter"),
)
_ENDS = (
    *("keeps a spare key in the shed.", "never drinks tea without sugar.", "took a short walk by the river."),
    *("found a purple glove on the bus.", "wants to buy a cheaper bicycle.", "told us a joke about two horses."),
    *("will visit the museum on Friday.", "cooked a large pot of vegetable soup."),
)
_OWN_EACH = 3

_SENTENCE_LIMIT = 40_960  # 2.56 s
_SENTENCE_SPREAD = _Spread(
    pitch=(-6.0, 6.0),
    formants=(0.99, 1.01),
    rate=(0.9, 1.12),
    inflection=(30, 70),
    level=(-24.0, -14.0),
    snr=(14.0, 34.0),
    ripple=1.5,
    wet=(-26.0, -10.0),
    telephone=0.0,
)


class Speakers:
    """`mini-timit`: 24 speakers, ten sentences each, cut to 2.56 s."""

    @property
    def name(self) -> str:
        """Its name."""
        return "mini-timit"

    def specs(self) -> tuple[ClipSpec, ...]:
        """Return the 240 clips; group and fold are the sentence: SA1 and SA2 (everybody), SX... and SI... ."""
        return tuple(
            sorted(
                ClipSpec(f"{speaker}/{sentence}_1", speaker, sentence, sentence)
                for speaker in SPEAKERS
                for sentence in _sentences(speaker)
            )
        )

    def render(self, spec: ClipSpec) -> np.ndarray:
        """Return the sound of one clip: float32 [at most 40960].

        Raises:
            CorpusError: the synthesiser is not installed.
        """
        draws = numpy_generator(_SEED, self.name, spec.clip_id)
        text = _sentences(spec.label)[spec.group]
        said = _say(text, SPEAKERS[spec.label], _SENTENCE_SPREAD, draws, self.name)
        start = int(draws.uniform(0.02, 0.15) * RATE)
        length = min(start + len(said) + int(draws.uniform(0.05, 0.2) * RATE), _SENTENCE_LIMIT)
        return _record(said[: length - start], start, length, _SENTENCE_SPREAD, draws)


def _sentences(speaker: str) -> dict[str, str]:
    """Return the ten sentences of a speaker: name -> text."""
    number = list(SPEAKERS).index(speaker)
    shared = [(number + 5 * step) % len(_SHARED) for step in range(_SHARED_EACH)]
    own = range(_OWN_EACH * number, _OWN_EACH * (number + 1))
    return {
        **_EVERYBODY,
        **{f"SX{at + 1:02d}": _SHARED[at] for at in shared},
        # 8 and 9 have no common divisor, so 72 numbers give 72 pairs
        **{f"SI{at + 1:02d}": f"{_BEGINNINGS[at % 9]} {_ENDS[at % 8]}" for at in own},
    }


# ------------------------------------------------------------------------------------------------------------ the voice


def _say(text: str, person: Person, spread: _Spread, draws: np.random.Generator, needed_by: str) -> np.ndarray:
    """Return a text in a person's voice: [samples] at 16 kHz, without silence around it."""
    formants = person.formants * draws.uniform(*spread.formants)
    steps = round(_STEPS * formants)
    rate = person.rate * draws.uniform(*spread.rate)
    # Played faster, a voice is also higher and quicker: both are taken back beforehand.
    pitch = person.pitch + draws.uniform(*spread.pitch) - OCTAVE * np.log2(formants)
    manner = Manner(
        voice=f"{person.accent}+{person.timbre}",
        rate=max(80, round(rate / formants)),
        pitch=int(np.clip(round(pitch), 0, 99)),
        inflection=int(draws.integers(*spread.inflection)),
    )
    wave = speak(text, manner, needed_by=needed_by)
    wave = signal.resample_poly(wave.astype(np.float64), 320, steps)
    return _breathe(_tilt(_trim(wave), person.tilt), person.breath, draws)


def _trim(wave: np.ndarray) -> np.ndarray:
    """Cut off what is 45 dB below the peak at both ends."""
    loud = np.flatnonzero(np.abs(wave) > 10 ** (-45 / 20) * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1]


def _tilt(wave: np.ndarray, slope: float) -> np.ndarray:
    """Tilt the spectrum above 500 Hz by `slope` dB per octave."""
    return _shape(wave, lambda hertz: slope * np.log2(np.maximum(hertz, 500.0) / 500.0))


def _breathe(wave: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """Add noise above 2 kHz that follows the loudness of the voice."""
    if share == 0.0:
        return wave
    loudness = np.convolve(np.abs(wave), np.full(320, 1 / 320), mode="same")[: len(wave)]
    noise = signal.lfilter(*signal.butter(2, 2000, "highpass", fs=RATE), draws.standard_normal(len(wave)))
    return wave + 4.0 * share * loudness * noise


# ------------------------------------------------------------------------------------------------------- the recording


def _record(said: np.ndarray, start: int, length: int, spread: _Spread, draws: np.random.Generator) -> np.ndarray:
    """Return what a microphone hears: a voice from `start` on in `length` samples, float32, with a room and noise."""
    scene = np.zeros(length)
    scene[start : start + len(said)] = said
    loudness = _rms(said)
    scene = _reverberate(scene, draws.uniform(*spread.wet), draws.uniform(0.08, 0.35), draws)
    scene = _colour(scene, spread.ripple, draws)
    noise = _background(length, draws)
    scene += noise * (loudness / _rms(noise) * 10 ** (-draws.uniform(*spread.snr) / 20))
    if draws.random() < spread.telephone:
        scene = signal.sosfilt(signal.butter(4, (300, 3400), "bandpass", fs=RATE, output="sos"), scene)
    peak = 10 ** (draws.uniform(*spread.level) / 20)
    return (scene * (peak / np.abs(scene).max())).astype(np.float32)


def _reverberate(wave: np.ndarray, wet: float, seconds: float, draws: np.random.Generator) -> np.ndarray:
    """Add the tail of a room: noise that decays by 60 dB in `seconds`, `wet` dB against the direct sound."""
    time = np.arange(int(seconds * RATE)) / RATE
    tail = draws.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    tail *= 10 ** (wet / 20) / np.sqrt(np.sum(tail**2))
    return wave + signal.fftconvolve(wave, tail)[: len(wave)]


def _colour(wave: np.ndarray, most: float, draws: np.random.Generator) -> np.ndarray:
    """Bend the spectrum: a curve through random gains of up to `most` dB at each octave from 125 Hz to 8 kHz."""
    gains = draws.uniform(-most, most, 7)
    return _shape(wave, lambda hertz: np.interp(np.log2(np.maximum(hertz, 125.0) / 125.0), np.arange(7), gains))


def _background(length: int, draws: np.random.Generator) -> np.ndarray:
    """Return one of four backgrounds: white noise, far voices, pink noise, mains hum."""
    kind = draws.integers(4)
    white = draws.standard_normal(length)
    if kind == 0:
        return white
    if kind == 1:
        return _far_voices(white, draws)
    pink = _shape(white, lambda hertz: -10 * np.log10(np.maximum(hertz, 30.0) / 30.0))
    if kind == 2:
        return pink
    mains = draws.choice((50.0, 60.0)) * (1 + draws.uniform(-0.002, 0.002))
    time = np.arange(length) / RATE
    hum = np.zeros(length)
    for part in range(1, 13):
        hum += draws.uniform(0.2, 1.0) / part * np.sin(2 * np.pi * (mains * part * time + draws.random()))
    return hum / _rms(hum) + 0.3 * pink / _rms(pink)


def _far_voices(white: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Return noise in three bands of speech, each swelling about as often as syllables do."""
    sum_ = np.zeros(len(white))
    time = np.arange(len(white)) / RATE
    for low, high, gain in ((150, 500, 1.0), (500, 1500, 0.5), (1500, 4000, 0.2)):
        band = signal.sosfilt(signal.butter(2, (low, high), "bandpass", fs=RATE, output="sos"), white)
        swell = sum(np.sin(2 * np.pi * (draws.uniform(2, 7) * time + draws.random())) for _ in range(3))
        sum_ += gain * band / _rms(band) * np.exp(0.5 * swell)
    return sum_


def _shape(wave: np.ndarray, gain: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Give the spectrum a gain in dB that is a function of the frequency in Hz."""
    size = fft.next_fast_len(len(wave), real=True)  # a transform of prime length takes many times longer
    factor = 10 ** (gain(fft.rfftfreq(size, 1 / RATE)) / 20)
    return fft.irfft(fft.rfft(wave, size) * factor, size)[: len(wave)]


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave**2)))
