"""The singing miniature: its clips, its determinism, and what the sound of each technique must show."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import signal

from audiocl_bench.mini import dsp, singing
from audiocl_bench.mini.singing import Singing
from audiocl_bench.mini.spec import RATE, ClipSpec
from audiocl_bench.seeding import numpy_generator

RECIPE = Singing()
SINGERS = ("female1", "female4", "male2", "male3")
HOP = 160


def spec_of(label: str, singer: str, take: int = 1) -> ClipSpec:
    return next(s for s in RECIPE.specs() if s.clip_id == f"{label}/{singer}_{take}")


def clean(label: str, singer: str) -> np.ndarray:
    """Sing a clip's phrase without room, background and microphone."""
    voice, phrase = singing.singer(singer), RECIPE.phrase(spec_of(label, singer))
    return dsp.unit(singing.sing(voice, phrase, numpy_generator(1, label, singer)))


def envelope(wave: np.ndarray) -> np.ndarray:
    """RMS of every 10 ms."""
    return np.sqrt(np.square(wave[: len(wave) // HOP * HOP].reshape(-1, HOP)).mean(axis=1))


def pitch(wave: np.ndarray, around: float) -> np.ndarray:
    """Return the pitch in semitones of every 10 ms, from the phase of the first harmonic, relative to `around` Hz."""
    shifted = wave * np.exp(-2j * np.pi * around * np.arange(len(wave)) / RATE)
    width = int(RATE / around * 3)
    window = np.hanning(width)
    heard = signal.fftconvolve(shifted, window / window.sum(), mode="same")
    hertz = around + np.diff(np.unwrap(np.angle(heard))) * RATE / (2 * np.pi)
    return 12.0 * np.log2(np.clip(hertz, 0.5 * around, 2.0 * around)[HOP // 2 :: HOP] / around)


def held(wave: np.ndarray) -> slice:
    """Return the frames of the middle second, where every voice sounds."""
    return slice(80, 180)


def modulation(track: np.ndarray) -> tuple[float, float]:
    """Return rate in Hz and extent in semitones (to either side) of the strongest movement between 3 and 12 Hz."""
    track = signal.detrend(track) * np.hanning(len(track))
    strength = 4.0 * np.abs(np.fft.rfft(track, 2048)) / len(track)
    hertz = np.fft.rfftfreq(2048, HOP / RATE)
    use = (hertz > 3.0) & (hertz < 12.0)
    return float(hertz[use][strength[use].argmax()]), float(strength[use].max())


def slope(wave: np.ndarray) -> float:
    """Return the level above 1.2 kHz relative to that below, in dB."""
    hertz, power = signal.welch(wave, RATE, nperseg=2048)
    return float(10.0 * np.log10(power[hertz > 1200.0].sum() / power[hertz <= 1200.0].sum()))


def harmonic_to_noise(wave: np.ndarray, low: float, high: float) -> float:
    """Return the median harmonic-to-noise ratio in dB of 40 ms frames, from the autocorrelation (Boersma 1993)."""
    found = []
    window = np.hanning(640)
    shape = np.correlate(window, window, "full")[639:]
    for start in range(RATE // 2, 2 * RATE, 800):
        frame = wave[start : start + 640] * window
        correlation = np.correlate(frame, frame, "full")[639:] / shape.clip(1e-9)
        part = correlation[int(RATE / high) : int(RATE / low)] / correlation[0]
        best = float(np.clip(part.max(), 1e-3, 0.999))
        found.append(10.0 * np.log10(best / (1.0 - best)))
    return float(np.median(found))


# --------------------------------------------------------------------------------------------------------------- recipe


def test_specs_are_sorted_unique_and_balanced() -> None:
    specs = RECIPE.specs()
    ids = [spec.clip_id for spec in specs]
    assert ids == sorted(set(ids))
    assert len(ids) == 320
    assert set(Counter(spec.label for spec in specs).values()) == {20}
    assert len({spec.label for spec in specs}) == 16
    assert "belt/female3_1" in ids
    assert all(spec.clip_id.rpartition("_")[0] == f"{spec.label}/{spec.group}" for spec in specs)


def test_three_of_ten_singers_are_for_testing() -> None:
    held_out = {spec.group for spec in RECIPE.specs() if spec.fold == "test"}
    assert held_out == {"female2", "male3", "male5"}
    assert {spec.group for spec in RECIPE.specs() if spec.fold == "train"}.isdisjoint(held_out)
    assert {spec.fold for spec in RECIPE.specs()} == {"train", "test"}


@pytest.mark.parametrize("label", sorted(singing.TECHNIQUES))
def test_every_technique_renders_sound_within_bounds(label: str) -> None:
    wave = RECIPE.render(spec_of(label, "female2"))
    assert wave.dtype == np.float32
    assert wave.shape == (singing.LENGTH,)
    assert np.isfinite(wave).all()
    assert np.abs(wave).max() <= 0.981
    assert -43.0 < 20.0 * np.log10(dsp.rms(wave)) < -12.0
    assert not np.array_equal(wave, RECIPE.render(spec_of(label, "female2", 2)))


def test_a_clip_depends_on_its_spec_alone() -> None:
    specs = RECIPE.specs()[::71]
    once = [RECIPE.render(spec) for spec in specs]
    again = [Singing().render(spec) for spec in reversed(specs)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


def test_women_have_shorter_tracts_and_higher_voices() -> None:
    women, men = ([singing.singer(f"{sex}{n}") for n in range(1, 6)] for sex in ("female", "male"))
    assert min(v.tract for v in women) > max(v.tract for v in men)
    assert min(v.low for v in women) > max(v.low for v in men)


@pytest.mark.slow
def test_the_level_does_not_tell_loud_from_soft() -> None:
    levels = {
        label: [20.0 * np.log10(dsp.rms(RECIPE.render(s))) for s in RECIPE.specs() if s.label == label]
        for label in ("forte", "pp")
    }
    assert abs(np.mean(levels["forte"]) - np.mean(levels["pp"])) < 4.0
    assert min(np.ptp(levels["forte"]), np.ptp(levels["pp"])) > 8.0


# ----------------------------------------------------------------------------------------------------------- techniques


@pytest.mark.parametrize("singer", SINGERS)
def test_the_voice_sings_the_pitch_of_its_phrase(singer: str) -> None:
    phrase = RECIPE.phrase(spec_of("straight", singer))
    heard = pitch(clean("straight", singer), float(np.median(phrase.pitch)))
    assert np.median(np.abs(heard[held(heard)])) < 0.3


@pytest.mark.parametrize("singer", SINGERS)
def test_vibrato_sways_4_to_7_times_a_second_and_a_straight_voice_does_not(singer: str) -> None:
    truth = RECIPE.phrase(spec_of("straight", singer)).pitch
    still = pitch(clean("straight", singer), float(np.median(truth)))
    assert modulation(still[held(still)])[1] < 0.2
    truth = 12.0 * np.log2(RECIPE.phrase(spec_of("vibrato", singer)).pitch[HOP // 2 :: HOP])
    rate, extent = modulation(truth[held(truth)])
    assert 4.0 < rate < 7.0
    assert extent > 0.4


@pytest.mark.parametrize("singer", SINGERS)
def test_a_trill_alternates_two_notes(singer: str) -> None:
    phrase = RECIPE.phrase(spec_of("trill", singer))
    heard = pitch(clean("trill", singer), float(np.median(phrase.pitch)))[held(phrase.pitch)]
    rate, _ = modulation(heard)
    assert 4.5 < rate < 7.5
    truth = 12.0 * np.log2(phrase.pitch[HOP // 2 :: HOP])[held(phrase.pitch)]
    middle = 0.5 * (truth.max() + truth.min())
    near = np.abs(np.abs(truth - middle) - 0.5 * np.ptp(truth)) < 0.25 * np.ptp(truth)
    assert near.mean() > 0.6  # at either note most of the time, seldom between them
    assert np.ptp(truth) > 1.5


@pytest.mark.parametrize("singer", SINGERS)
def test_fry_pulses_fewer_than_80_times_a_second(singer: str) -> None:
    wave = np.abs(clean("vocal_fry", singer))
    smooth = np.convolve(wave, np.hanning(64), mode="same")[RATE // 2 : 2 * RATE]
    peaks, _ = signal.find_peaks(smooth, height=0.15 * np.percentile(smooth, 99), distance=RATE // 120)
    assert 15.0 < len(peaks) / 1.5 < 80.0


@pytest.mark.parametrize("singer", SINGERS)
def test_breath_makes_a_voice_noisier(singer: str) -> None:
    ratios = {
        label: harmonic_to_noise(clean(label, singer), 70.0, 900.0) for label in ("straight", "breathy", "inhaled")
    }
    assert ratios["breathy"] < ratios["straight"] - 3.0
    assert ratios["inhaled"] < ratios["straight"] - 6.0


@pytest.mark.parametrize("singer", SINGERS)
def test_effort_makes_the_spectrum_flatter(singer: str) -> None:
    voice, phrase = singing.singer(singer), RECIPE.phrase(spec_of("forte", singer))
    levels = []
    for effort in (0.0, 0.5, 1.0):
        sung = replace(phrase, effort=np.full(singing.LENGTH, effort), breath=0.0)
        levels.append(slope(singing.sing(voice, sung, numpy_generator(2))))
    assert levels[0] + 3.0 < levels[1] < levels[2]


@pytest.mark.parametrize("singer", SINGERS)
def test_messa_di_voce_swells_and_dies_away(singer: str) -> None:
    level = envelope(clean("messa", singer))
    assert 60 < int(np.convolve(level, np.ones(20), mode="same").argmax()) < 200
    assert max(level[5:20].mean(), level[-20:-5].mean()) < 0.35 * level.max()


@pytest.mark.parametrize("singer", SINGERS)
def test_lips_flutter_15_to_33_times_a_second(singer: str) -> None:
    wave = clean("lip_trill", singer)
    level = np.sqrt(np.convolve(np.square(wave), np.hanning(200), mode="same"))[::32]
    level = level[250:1000] - level[250:1000].mean()
    strength = np.abs(np.fft.rfft(level * np.hanning(len(level)), 4096))
    hertz = np.fft.rfftfreq(4096, 32 / RATE)
    use = hertz > 8.0
    assert 15.0 < hertz[use][strength[use].argmax()] < 33.0


@pytest.mark.parametrize("singer", SINGERS)
def test_trillo_strikes_ever_faster(singer: str) -> None:
    gain = RECIPE.phrase(spec_of("trillo", singer)).gain
    strikes = signal.find_peaks(-gain, prominence=0.3)[0]
    assert len(strikes) >= 6
    gaps = np.diff(strikes[strikes < 2.0 * RATE])
    assert gaps[0] > 1.5 * gaps[-1]


@pytest.mark.parametrize("singer", SINGERS)
def test_fast_lines_have_more_notes_than_slow_ones(singer: str) -> None:
    def notes(label: str) -> int:
        semitones = 12.0 * np.log2(RECIPE.phrase(spec_of(label, singer)).pitch[::HOP])
        smooth = np.convolve(semitones, np.hanning(9) / np.hanning(9).sum(), mode="valid")
        return len(signal.find_peaks(np.abs(np.gradient(smooth)), height=0.08, distance=6)[0])

    assert notes("fast_forte") > 1.5 * notes("slow_forte")
    assert notes("fast_piano") > 1.5 * notes("slow_piano")


@pytest.mark.parametrize("singer", SINGERS)
def test_belting_raises_the_first_formant(singer: str) -> None:
    voice, phrase = singing.singer(singer), RECIPE.phrase(spec_of("belt", singer))
    low = replace(phrase, first=1.0, larynx=1.0, pitch=np.full(singing.LENGTH, 110.0))
    high = replace(low, first=phrase.first, larynx=phrase.larynx)

    def formant(wave: np.ndarray) -> float:
        hertz, power = signal.welch(wave, RATE, nperseg=4096)
        smooth = np.convolve(power, np.hanning(57), mode="same")
        use = (hertz > 250.0) & (hertz < 1600.0)
        return float((hertz[use] * smooth[use]).sum() / smooth[use].sum())

    heard = [formant(singing.sing(voice, sung, numpy_generator(3))) for sung in (low, high)]
    assert heard[1] > 1.1 * heard[0]
