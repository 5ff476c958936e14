"""The environmental and urban miniatures: their clips, their determinism, and the acoustic facts of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import signal

from audiocl_bench.audio import kaldi_fbank
from audiocl_bench.mini import dsp, sounds
from audiocl_bench.mini.spec import RATE, ClipSpec, Recipe
from audiocl_bench.seeding import numpy_generator

DRAWS = range(5)
RECIPES = (sounds.Environment(), sounds.Urban())


def clean(synth: Callable[..., np.ndarray], draw: int) -> np.ndarray:
    """Return one draw of a class without room, background and microphone."""
    return dsp.unit(synth(numpy_generator(1, "source", draw), numpy_generator(1, "take", draw), sounds.LENGTH))


def spectrum(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hertz, power = signal.welch(wave, RATE, nperseg=4096)
    return hertz, power


def envelope(wave: np.ndarray, hop: int = 80) -> np.ndarray:
    """RMS in frames of 5 ms."""
    return np.sqrt(np.square(wave[: len(wave) // hop * hop].reshape(-1, hop)).mean(axis=1))


def onsets(wave: np.ndarray, gap: float) -> np.ndarray:
    """Return the times in seconds at which the 5 ms envelope jumps, at most one within `gap` seconds."""
    level = envelope(wave)
    jumps = np.diff(np.maximum(level, 0.02 * level.max()), prepend=0.0)
    peaks, _ = signal.find_peaks(jumps, height=0.2 * jumps.max(), distance=max(1, int(gap * 200)))
    return peaks / 200.0


def periodicity(wave: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the highest normalised autocorrelation between two frequencies, and its frequency."""
    wave = wave - wave.mean()
    size = 2 * len(wave)
    power = np.abs(np.fft.rfft(wave, size)) ** 2
    correlation = np.fft.irfft(power, size)[: len(wave)]
    return _best(correlation / correlation[0], low, high)


def _best(correlation: np.ndarray, low: float, high: float, rate: float = RATE) -> tuple[float, float]:
    first, last = int(rate / high), int(rate / low)
    at = first + int(correlation[first : last + 1].argmax())
    return float(correlation[at]), rate / at


def envelope_rate(wave: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the strongest rate of the 2.5 ms envelope between two rates, as (correlation, rate in Hz)."""
    level = envelope(wave, 40)
    level = level - level.mean()
    correlation = np.correlate(level, level, "full")[len(level) - 1 :]
    return _best(correlation / correlation[0], low, high, 400.0)


def fundamentals(wave: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the fundamental of every 32 ms: the shortest lag where the autocorrelation is near its maximum."""
    found = []
    for start in range(0, len(wave) - 512, 512):
        frame = (wave[start : start + 512] - wave[start : start + 512].mean()) * np.hanning(512)
        correlation = np.correlate(frame, frame, "full")[511:]
        first, last = int(RATE / high), int(RATE / low)
        part = correlation[first : last + 1]
        peaks = signal.find_peaks(part, height=0.85 * part.max())[0]
        if len(peaks):
            found.append(RATE / (first + peaks[0]))
    return np.array(found)


def pitch_track(wave: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the strongest frequency of every 32 ms."""
    hertz, _, power = signal.stft(wave, RATE, nperseg=512, nfft=4096)
    use = (hertz > low) & (hertz < high)
    return hertz[use][np.abs(power)[use].argmax(axis=0)]


def profile(wave: np.ndarray) -> np.ndarray:
    """Return the mean log-mel of a clip, without its level."""
    mean = kaldi_fbank(torch.from_numpy(wave)).mean(dim=0).numpy()
    return mean - mean.mean()


def of(recipe: Recipe, label: str) -> list[ClipSpec]:
    return [spec for spec in recipe.specs() if spec.label == label]


# -------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(("recipe", "clips", "a_class"), [(RECIPES[0], 320, 16), (RECIPES[1], 240, 24)])
def test_specs_are_sorted_unique_and_balanced(recipe: Recipe, clips: int, a_class: int) -> None:
    specs = recipe.specs()
    ids = [spec.clip_id for spec in specs]
    assert ids == sorted(set(ids))
    assert len(ids) == clips
    assert set(Counter(spec.label for spec in specs).values()) == {a_class}
    assert all(spec.clip_id.rpartition("_")[0] == f"{spec.label}/{spec.group}" for spec in specs)
    assert recipe.specs() == specs


def test_folds_keep_a_group_together_and_hold_out_a_quarter() -> None:
    for recipe, folds, held_out in ((RECIPES[0], range(1, 6), {"5"}), (RECIPES[1], range(1, 11), {"9", "10"})):
        specs = recipe.specs()
        assert {spec.fold for spec in specs} == {str(fold) for fold in folds}
        assert len({(s.group, s.fold) for s in specs}) == len({s.group for s in specs})
        for label in {spec.label for spec in specs}:
            mine = of(recipe, label)
            assert 4 * sum(spec.fold in held_out for spec in mine) == len(mine)


def test_a_recording_of_urban_belongs_to_one_class() -> None:
    groups = {(spec.group, spec.label) for spec in RECIPES[1].specs()}
    assert len(groups) == len({group for group, _ in groups}) == 80


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_every_class_renders_sound_within_bounds(recipe: Recipe) -> None:
    for label in dict.fromkeys(spec.label for spec in recipe.specs()):
        wave = recipe.render(of(recipe, label)[3])
        assert wave.dtype == np.float32
        assert wave.ndim == 1
        assert 0.75 * RATE < len(wave) <= sounds.LENGTH
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() <= 0.981
        assert -43.0 < 20.0 * np.log10(dsp.rms(wave)) < -12.0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_a_clip_depends_on_its_spec_alone(recipe: Recipe) -> None:
    specs = recipe.specs()[::97]
    once = [recipe.render(spec) for spec in specs]
    again = [type(recipe)().render(spec) for spec in reversed(specs)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


def test_only_short_events_make_short_clips() -> None:
    urban = RECIPES[1]
    assert all(len(urban.render(s)) == sounds.LENGTH for s in of(urban, "siren")[:3])
    assert min(len(urban.render(s)) for s in of(urban, "gun_shot")[:9]) < 0.8 * sounds.LENGTH


def test_levels_differ_between_clips() -> None:
    levels = [20.0 * np.log10(dsp.rms(RECIPES[0].render(s))) for s in RECIPES[0].specs()[::8]]
    assert max(levels) - min(levels) > 12.0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_clips_of_a_group_differ_but_less_than_those_of_two(recipe: Recipe) -> None:
    within, across = [], []
    for label in (
        "siren",
        "dog" if recipe.name == "mini-esc50" else "dog_bark",
        sorted({s.label for s in recipe.specs()})[0],
    ):
        mine = of(recipe, label)
        takes = len(mine) // 8
        first = [recipe.render(spec) for spec in mine[::takes]]
        second = [recipe.render(spec) for spec in mine[1::takes]]
        assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        one, two = [profile(w) for w in first], [profile(w) for w in second]
        within += [float(np.linalg.norm(a - b)) for a, b in zip(one, two, strict=True)]
        across += [float(np.linalg.norm(a - b)) for i, a in enumerate(one) for j, b in enumerate(two) if i != j]
    assert np.mean(within) < 0.85 * np.mean(across)


# ------------------------------------------------------------------------------------------------ what makes each class


@pytest.mark.parametrize("draw", DRAWS)
def test_crickets_sing_above_2_khz_on_a_narrow_tone(draw: int) -> None:
    hertz, power = spectrum(clean(sounds.crickets, draw))
    assert hertz[power.argmax()] > 2000.0
    assert power[hertz > 2000.0].sum() > 0.95 * power.sum()


@pytest.mark.parametrize("draw", DRAWS)
def test_knocks_come_in_groups_of_three_to_five(draw: int) -> None:
    times = onsets(clean(sounds.door_wood_knock, draw), 0.08)
    groups = np.split(times, np.flatnonzero(np.diff(times) > 0.55) + 1)
    assert all(3 <= len(group) <= 5 for group in groups[:-1])  # the clip's end may cut the last one short
    assert 1 <= len(groups[-1]) <= 5
    gaps = np.diff(groups[0])
    assert gaps.max() < 1.2 * gaps.min()


@pytest.mark.parametrize("draw", DRAWS)
def test_a_clock_ticks_evenly_and_a_typist_does_not(draw: int) -> None:
    ticks = np.diff(onsets(clean(sounds.clock_tick, draw), 0.1))
    keys = np.diff(onsets(clean(sounds.keyboard_typing, draw), 0.03))
    assert ticks.std() < 0.08 * ticks.mean()
    assert keys.std() > 0.25 * keys.mean()


@pytest.mark.parametrize("draw", DRAWS)
def test_a_siren_sweeps_by_more_than_a_major_second(draw: int) -> None:
    wave = clean(sounds.siren, draw)
    track = signal.medfilt(fundamentals(wave, 380.0, 1900.0), 3)
    low, high = np.percentile(track, (10, 90))
    assert 1.12 < high / low < 2.4
    assert 400.0 < low < 1000.0
    assert len(track) > 60  # it has a pitch at nearly every moment


@pytest.mark.parametrize("draw", DRAWS)
def test_an_engine_fires_periodically_and_rain_never(draw: int) -> None:
    engine = dsp.band(clean(sounds.engine, draw), 0.0, 1500.0)
    rain = dsp.band(clean(sounds.rain, draw), 0.0, 1500.0)
    assert periodicity(engine[:6400], 8.0, 120.0)[0] > 0.25
    assert periodicity(rain[:6400], 8.0, 120.0)[0] < 0.15


@pytest.mark.parametrize("draw", DRAWS)
def test_a_helicopter_chops_at_its_blades_rate(draw: int) -> None:
    strength, rate = envelope_rate(clean(sounds.helicopter, draw), 8.0, 26.0)
    assert strength > 0.15
    assert 8.0 < rate < 26.0
    assert envelope_rate(clean(sounds.vacuum_cleaner, draw), 8.0, 26.0)[0] < 0.5 * strength + 0.1


@pytest.mark.parametrize("draw", DRAWS)
def test_a_shot_is_at_its_loudest_at_once_and_dies_away(draw: int) -> None:
    level = envelope(clean(sounds.gun_shot, draw))
    top = int(level.argmax())
    first = int(np.flatnonzero(level > 0.3 * level.max())[0])
    assert level[max(0, first - 6) : max(1, first - 1)].max(initial=0.0) < 0.05 * level[top]
    assert level[-40:].mean() < 0.2 * level[top]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_jackhammer_strikes_12_to_28_times_a_second(draw: int) -> None:
    strength, rate = envelope_rate(clean(sounds.jackhammer, draw), 11.0, 30.0)
    assert strength > 0.3
    assert 11.5 < rate < 29.0


@pytest.mark.parametrize("draw", DRAWS)
def test_fire_is_impulsive_where_rain_is_dense(draw: int) -> None:
    def kurtosis(wave: np.ndarray) -> float:
        high = dsp.band(wave, 1000.0, 8000.0)
        return float((high**4).mean() / (high**2).mean() ** 2)

    assert kurtosis(clean(sounds.crackling_fire, draw)) > 3.0 * kurtosis(clean(sounds.rain, draw))


@pytest.mark.parametrize("draw", DRAWS)
def test_thunder_is_low_and_birds_are_high(draw: int) -> None:
    def centroid(wave: np.ndarray) -> float:
        hertz, power = spectrum(wave)
        return float((hertz * power).sum() / power.sum())

    assert centroid(clean(sounds.thunderstorm, draw)) < 900.0
    assert centroid(clean(sounds.chirping_birds, draw)) > 1800.0


@pytest.mark.parametrize("draw", DRAWS)
def test_a_horn_holds_its_notes_and_children_do_not(draw: int) -> None:
    horn = clean(sounds.car_horn, draw)
    loud = envelope(horn, 800) > 0.5 * envelope(horn, 800).max()
    start = int(np.flatnonzero(loud)[0]) * 800
    assert periodicity(horn[start : start + 2400], 40.0, 900.0)[0] > 0.5
    assert pitch_track(clean(sounds.children_playing, draw), 250.0, 1500.0).std() > 60.0


# ----------------------------------------------------------------------------------------------------------- dsp pieces


def test_a_pulse_train_has_the_pitch_it_was_given() -> None:
    hertz = np.full(RATE, 437.3)
    wave = dsp.glottis(numpy_generator(0), hertz, jitter=0.0, shimmer=0.0)
    power = np.abs(np.fft.rfft(wave * np.hanning(RATE), 8 * RATE)) ** 2
    low = power[: 8 * 600]
    low[: 8 * 200] = 0.0
    assert low.argmax() / 8.0 == pytest.approx(437.3, abs=0.2)


@pytest.mark.parametrize("slope", [-6.0, -3.0, 0.0])
def test_coloured_noise_has_its_slope(slope: float) -> None:
    hertz, power = spectrum(dsp.coloured(numpy_generator(0), 8 * RATE, slope))
    low, high = power[(hertz > 450) & (hertz < 550)].mean(), power[(hertz > 1800) & (hertz < 2200)].mean()
    assert 10.0 * np.log10(high / low) / 2.0 == pytest.approx(slope, abs=0.7)


def test_modes_fall_by_60_db_in_their_time() -> None:
    wave = dsp.modes([1000.0], [0.5], [1.0])
    early, late = np.abs(wave[:160]).max(), np.abs(wave[7840:8000]).max()
    assert 20.0 * np.log10(late / early) == pytest.approx(-58.8, abs=1.0)


def test_a_resonance_has_gain_1_at_its_peak() -> None:
    steady = dsp.resonate(dsp.tone(1200.0, RATE), 1200.0, 100.0)[RATE // 2 :]
    assert np.abs(steady).max() == pytest.approx(1.0, abs=0.02)


def test_events_are_placed_and_cut_at_both_ends() -> None:
    wave = dsp.place(4, [(-1, np.array([9.0, 1.0])), (1, np.array([2.0])), (3, np.array([3.0, 9.0])), (7, np.ones(2))])
    assert wave.tolist() == [1.0, 2.0, 0.0, 3.0]


def test_finish_sets_the_level_and_never_clips() -> None:
    quiet = dsp.finish(dsp.tone(440.0, RATE) + 3.0, -20.0)
    assert 20.0 * np.log10(dsp.rms(quiet)) == pytest.approx(-20.0, abs=0.01)
    click = dsp.finish(np.eye(1, RATE)[0], -20.0)
    assert np.abs(click).max() == pytest.approx(0.98, abs=1e-4)
