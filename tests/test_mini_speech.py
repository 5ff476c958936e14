"""The spoken miniatures: who says what, and that every clip is the same wherever and whenever it is rendered."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from audiocl_bench.errors import CorpusError
from audiocl_bench.mini import espeak, speech
from audiocl_bench.mini.espeak import NATIVE_RATE, OCTAVE, Manner, speak
from audiocl_bench.mini.spec import ClipSpec, Recipe
from audiocl_bench.mini.speech import SPEAKERS, VOICES, WORDS, Keywords, Speakers

RECIPES = (Keywords(), Speakers())
spoken = pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="needs the package espeakng-loader")
each = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def digest(wave: np.ndarray) -> str:
    return hashlib.sha256(wave.tobytes()).hexdigest()


def some(recipe: Recipe, count: int = 8) -> list[ClipSpec]:
    """Return clips from all over a corpus."""
    specs = recipe.specs()
    return [specs[at] for at in np.linspace(0, len(specs) - 1, count).astype(int)]


# ------------------------------------------------------------------------------------------------- lists of clips


@each
def test_specs_are_sorted_unique_and_well_named(recipe: Recipe) -> None:
    specs = recipe.specs()
    assert list(specs) == sorted(specs)
    assert len({spec.clip_id for spec in specs}) == len(specs)
    for spec in specs:
        assert spec.clip_id.startswith(f"{spec.label}/{spec.group}_")


def test_keywords_have_two_takes_per_word_and_voice() -> None:
    specs = Keywords().specs()
    assert len(specs) == 336
    assert Counter((spec.label, spec.group) for spec in specs) == {(w, v): 2 for w in WORDS for v in VOICES}
    assert (len(WORDS), len(VOICES)) == (14, 12)
    assert "yes/v07_1" in {spec.clip_id for spec in specs}


def test_keyword_folds_are_disjoint_in_voices() -> None:
    voices: dict[str, set[str]] = {}
    for spec in Keywords().specs():
        voices.setdefault(spec.fold, set()).add(spec.group)
    assert {fold: len(members) for fold, members in voices.items()} == {"training": 8, "testing": 2, "validation": 2}
    assert sum(map(len, voices.values())) == len(set.union(*voices.values()))


def test_speakers_read_ten_sentences_as_in_timit() -> None:
    specs = Speakers().specs()
    assert len(specs) == 240
    assert Counter(spec.label for spec in specs) == dict.fromkeys(SPEAKERS, 10)
    assert all(spec.fold == spec.group for spec in specs)
    readers = Counter(spec.group for spec in specs)
    assert readers["SA1"] == readers["SA2"] == 24
    assert {readers[name] for name in readers if name.startswith("SX")} == {5}
    assert {readers[name] for name in readers if name.startswith("SI")} == {1}
    assert Counter(name[:2] for name in readers) == {"SA": 2, "SX": 24, "SI": 72}


def test_a_sentence_name_is_one_text_and_a_text_has_one_name() -> None:
    pairs = {pair for speaker in SPEAKERS for pair in speech._sentences(speaker).items()}
    assert len(pairs) == len({name for name, _ in pairs}) == len({text for _, text in pairs}) == 98


# ---------------------------------------------------------------------------------------------- without the library


@each
def test_without_the_library_the_list_stands_and_the_fix_is_told(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    specs = recipe.specs()
    with pytest.raises(CorpusError) as caught:
        recipe.render(specs[0])
    assert str(caught.value) == f"{recipe.name} needs speech synthesis: pip install 'audiocl[mini]'"


def test_the_modules_load_without_the_library() -> None:
    code = "import sys; sys.modules['espeakng_loader'] = None; import audiocl_bench.mini.speech"
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------------------------- the library


@spoken
def test_speech_has_the_pitch_it_is_told() -> None:
    """The period of a vowel is read off its autocorrelation."""

    def period(pitch: int) -> int:
        wave = speak("ah", Manner("en-us+m3", rate=80, pitch=pitch, inflection=0), needed_by="a test")
        middle = wave[len(wave) // 3 :][:4096]
        likeness = np.correlate(middle, middle, "full")[len(middle) - 1 :]
        shortest = NATIVE_RATE // 400
        return shortest + int(likeness[shortest : NATIVE_RATE // 50].argmax())

    assert period(75 - OCTAVE // 2) / period(75) == pytest.approx(2**0.5, rel=0.06)


@spoken
def test_slower_speech_takes_longer() -> None:
    slow, fast = (speak("a test of speed", Manner("en", rate=rate), needed_by="a test") for rate in (100, 200))
    assert len(slow) / len(fast) == pytest.approx(2.0, rel=0.25)


@spoken
def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(CorpusError, match="has no voice 'xx-nowhere'"):
        speak("yes", Manner("xx-nowhere"), needed_by="a test")


@spoken
def test_every_voice_and_variant_exists_in_the_library() -> None:
    """An unknown variant is passed over in silence, so the files themselves are looked for."""
    import espeakng_loader

    data = Path(espeakng_loader.get_data_path())
    accents = {path.name.lower() for path in (data / "lang" / "gmw").iterdir()}
    for person in (*VOICES.values(), *SPEAKERS.values()):
        assert person.accent.lower() in accents
        assert (data / "voices" / "!v" / person.timbre).is_file()


@spoken
def test_a_long_path_to_the_data_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library alone fails from 160 bytes on."""
    import espeakng_loader

    manner = Manner("en-us+f3")
    plain = speak("yes", manner, needed_by="a test")
    link = tmp_path / ("x" * 120) / ("y" * 60)
    link.parent.mkdir()
    link.symlink_to(espeakng_loader.get_data_path())
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(link))
    np.testing.assert_array_equal(speak("yes", manner, needed_by="a test"), plain)


@spoken
def test_data_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import espeakng_loader

    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path / "none"))
    with pytest.raises(CorpusError, match="install the package espeakng-loader again"):
        speak("yes", Manner("en"), needed_by="a test")


@spoken
def test_a_library_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libespeak-ng.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(espeak, "_installation", lambda needed_by: (str(broken), str(tmp_path)))
    with pytest.raises(CorpusError, match=r"libespeak-ng\.so cannot be loaded"):
        speak("yes", Manner("en"), needed_by="a test")


# ----------------------------------------------------------------------------------------------------- rendering


@spoken
@each
def test_a_clip_does_not_depend_on_what_was_rendered_before(recipe: Recipe) -> None:
    specs = some(recipe)
    forwards = {spec: digest(recipe.render(spec)) for spec in specs}
    backwards = {spec: digest(recipe.render(spec)) for spec in reversed(specs)}
    assert forwards == backwards


@spoken
@pytest.mark.slow
def test_another_process_renders_the_same_bytes() -> None:
    code = (
        "import hashlib, json, sys\n"
        "from audiocl_bench.mini.speech import Keywords, Speakers\n"
        "wanted, found = json.loads(sys.argv[1]), {}\n"
        "for recipe in (Speakers(), Keywords()):\n"
        "    for spec in reversed(recipe.specs()):\n"
        "        if spec.clip_id in wanted:\n"
        "            found[spec.clip_id] = hashlib.sha256(recipe.render(spec).tobytes()).hexdigest()\n"
        "print(json.dumps(found))\n"
    )
    here = {spec.clip_id: digest(recipe.render(spec)) for recipe in RECIPES for spec in some(recipe)}
    done = subprocess.run([sys.executable, "-c", code, json.dumps(list(here))], check=True, capture_output=True)
    assert json.loads(done.stdout) == here


@spoken
@each
def test_clips_are_sound_of_the_promised_kind(recipe: Recipe) -> None:
    for spec in some(recipe, 20):
        wave = recipe.render(spec)
        assert wave.dtype == np.float32
        assert wave.ndim == 1
        assert np.isfinite(wave).all()
        assert 10 ** (-31 / 20) < np.abs(wave).max() <= 10 ** (-6 / 20)
        assert 10 ** (-50 / 20) < np.sqrt(np.mean(wave.astype(np.float64) ** 2)) < 10 ** (-12 / 20)
        if recipe.name == "mini-sc2":
            assert len(wave) == 16_000
        else:
            assert 24_000 <= len(wave) <= 40_960


@spoken
@each
def test_all_classes_differ_pairwise(recipe: Recipe) -> None:
    first = {spec.label: spec for spec in reversed(recipe.specs())}
    assert len(first) == {"mini-sc2": 14, "mini-timit": 24}[recipe.name]
    waves = [recipe.render(spec)[:16_000] for spec in first.values()]
    for one, other in combinations(waves, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


@spoken
def test_two_takes_of_a_word_differ() -> None:
    recipe = Keywords()
    one, other = (recipe.render(spec) for spec in recipe.specs()[:2])
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


@spoken
@each
def test_voices_differ_even_without_room_and_noise(recipe: Recipe) -> None:
    """The same text with the same draws in two voices: what is left is the voice."""
    people = VOICES if recipe.name == "mini-sc2" else SPEAKERS
    spread = speech._KEYWORD_SPREAD
    said = [
        speech._say("a", person, spread, np.random.default_rng(0), "a test")
        for person in dict.fromkeys(people.values())
    ]
    assert len(said) == len(people)
    assert len({digest(wave) for wave in said}) == len(people)


# ------------------------------------------------------------------------------------------ effects, closed forms


def gain(before: np.ndarray, after: np.ndarray, hertz: float) -> float:
    """Return what an effect does to a tone, in dB."""
    at = round(hertz * len(before) / 16_000)
    return float(20 * np.log10(np.abs(np.fft.rfft(after)[at]) / np.abs(np.fft.rfft(before)[at])))


def test_tilt_is_in_decibels_per_octave() -> None:
    click = np.zeros(16_000)
    click[8_000] = 1.0
    tilted = speech._tilt(click, -3.0)
    assert [gain(click, tilted, hertz) for hertz in (250, 500, 1000, 4000)] == pytest.approx([0, 0, -3, -9], abs=0.05)


def test_reverberation_has_its_level_and_its_decay() -> None:
    click = np.zeros(16_000)
    click[0] = 1.0
    tail = speech._reverberate(click, -10.0, 0.3, np.random.default_rng(0)) - click
    assert 10 * np.log10(np.sum(tail**2)) == pytest.approx(-10.0, abs=0.01)
    early, late = (np.sum(tail[at : at + 800] ** 2) for at in (0, 2400))  # 0.15 s apart: half of 60 dB
    assert 10 * np.log10(early / late) == pytest.approx(30.0, abs=1.5)


def test_trimming_keeps_what_is_audible() -> None:
    wave = np.concatenate([np.full(50, 1e-4), [1.0, 0.0, -0.5], np.full(70, 1e-4)])
    np.testing.assert_array_equal(speech._trim(wave), [1.0, 0.0, -0.5])


def test_noise_is_as_far_below_the_voice_as_drawn() -> None:
    """With two recordings that differ in nothing but the ratio, their difference is noise alone."""
    said = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)
    loudness = np.sqrt(np.mean(said**2))
    spread = replace(speech._KEYWORD_SPREAD, ripple=0.0, wet=(-200.0, -200.0), telephone=0.0)
    for snr in (5.0, 20.0):
        wave = speech._record(said, 4_000, 16_000, replace(spread, snr=(snr, snr)), np.random.default_rng(1))
        middle = wave[4_000:12_000].astype(np.float64)
        scale = middle @ said / (said @ said)  # the voice's share, by least squares
        noise = wave - scale * np.concatenate([np.zeros(4_000), said, np.zeros(4_000)])
        ratio = 20 * np.log10(scale * loudness / np.sqrt(np.mean(noise**2)))
        assert ratio == pytest.approx(snr, abs=0.3)


@pytest.mark.parametrize("seed", range(12))
def test_backgrounds_are_sound_without_pause(seed: int) -> None:
    noise = speech._background(16_000, np.random.default_rng(seed))
    assert len(noise) == 16_000
    parts = np.sqrt(np.mean(noise.reshape(10, -1) ** 2, axis=1))
    assert parts.min() > 0.05 * parts.max()
