"""Example clips and the contact sheet: which clips are chosen, what the WAV files hold, what the picture shows."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocl_bench import audio
from audiocl_bench.errors import AudioError, ConfigError, CorpusError, ResultsError
from audiocl_bench.report import listen as module
from audiocl_bench.report.listen import SHEET, listen, mel_position, safe_names

DPI, PANEL, ROW = 130, 3.1 + 0.22, 0.95 + 0.34  # pixels per inch; a column and a row of the sheet, in inches


def tone(path: Path, hertz: float, seconds: float = 0.4, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(int(rate * seconds)) / rate
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * t), rate, subtype="PCM_16")
    return path


@pytest.fixture
def clips(tmp_path: Path) -> pd.DataFrame:
    """Three classes in two sessions: five clips of `horn`, five of `bell tower`, one of `Cat`."""
    rows = []
    for label, count, session, hertz in (("horn", 5, 1, 200), ("bell tower", 5, 0, 900), ("Cat", 1, 1, 500)):
        for take in range(count):
            path = tone(tmp_path / "in" / f"{label}-{take}.wav", hertz + 40 * take, 0.3 + 0.1 * take)
            rows.append((f"{label}/take {take}", str(path), label, "test" if take == 0 else "train", session))
    return pd.DataFrame(rows, columns=["clip_id", "path", "label", "part", "session"])


def pixels(path: Path) -> np.ndarray:
    """Return a picture as [height, width, channels] in 0..1."""
    return np.asarray(matplotlib.image.imread(path))


# --- what is written ---


def test_files_are_where_the_result_says(clips: pd.DataFrame, tmp_path: Path) -> None:
    result = listen(clips, tmp_path / "out", title="Test", seconds=0.5)
    assert result.sheet == tmp_path / "out" / SHEET
    assert [path.parent.name for path in result.clips] == ["bell_tower", "bell_tower", "horn", "horn", "Cat"]
    assert all(path.is_file() for path in result.clips)
    kept = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert kept == {result.sheet, *result.clips}


def test_wav_files_hold_the_clip_as_it_is_heard(tmp_path: Path) -> None:
    # 16 kHz mono 16 bit comes out bit for bit; stereo at 44.1 kHz as `audio.load` hears it, to the nearest step.
    draws = np.random.default_rng(0)
    exact = draws.integers(-32768, 32768, 8_000).astype(np.int16)
    soundfile.write(tmp_path / "exact.wav", exact, 16_000, subtype="PCM_16")
    soundfile.write(tmp_path / "stereo.flac", 0.3 * draws.standard_normal((9_000, 2)).clip(-3, 3), 44_100)
    table = pd.DataFrame(
        [("exact", str(tmp_path / "exact.wav"), "a", "train"), ("stereo", str(tmp_path / "stereo.flac"), "b", "train")],
        columns=["clip_id", "path", "label", "part"],
    )
    first, second = listen(table, tmp_path / "out", title="Test", seconds=0.1).clips
    for path in (first, second):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16_000, 1, "PCM_16", "WAV")
    assert np.array_equal(soundfile.read(first, dtype="int16")[0], exact)
    heard = audio.load(tmp_path / "stereo.flac").numpy()
    written = soundfile.read(second, dtype="int16")[0] / 32768
    assert len(written) == len(heard)  # the whole clip, although the sheet shows 0.1 s of it
    assert np.abs(written - np.clip(heard, -1, 32767 / 32768)).max() <= 0.5001 / 32768


def test_a_second_run_gives_the_same_bytes(clips: pd.DataFrame, tmp_path: Path) -> None:
    first = listen(clips, tmp_path / "one", title="Test", seconds=0.5)
    shuffled = clips.sample(frac=1, random_state=1).sort_values("session", kind="stable")
    again = listen(clips, tmp_path / "two", title="Test", seconds=0.5)
    assert first.sheet.read_bytes() == again.sheet.read_bytes()
    assert [p.read_bytes() for p in first.clips] == [p.read_bytes() for p in again.clips]
    drawn = listen(shuffled, tmp_path / "three", title="Test", seconds=0.5)
    assert {p.relative_to(tmp_path / "three") for p in drawn.clips} == {
        p.relative_to(tmp_path / "one") for p in first.clips
    }
    assert b"Software" not in first.sheet.read_bytes()
    assert b"matplotlib" not in first.sheet.read_bytes().lower()


def test_the_users_matplotlib_settings_change_nothing(clips: pd.DataFrame, tmp_path: Path) -> None:
    plain = listen(clips, tmp_path / "plain", title="Test", seconds=0.5).sheet.read_bytes()
    with matplotlib.rc_context({"axes.grid": True, "font.size": 20, "image.cmap": "jet", "savefig.dpi": 30}):
        odd = listen(clips, tmp_path / "odd", title="Test", seconds=0.5).sheet.read_bytes()
        assert matplotlib.rcParams["font.size"] == 20
    assert odd == plain


def test_pyplot_stays_out() -> None:
    import subprocess

    code = "import sys, audiocl_bench.report.listen; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- which clips ---


def test_another_seed_draws_others_and_one_class_does_not_touch_another(clips: pd.DataFrame, tmp_path: Path) -> None:
    def names(table: pd.DataFrame, seed: int) -> set[str]:
        got = listen(table, tmp_path / f"{seed}-{len(table)}", title="t", seconds=0.3, seed=seed).clips
        return {path.name for path in got if path.parent.name == "horn"}

    assert len({frozenset(names(clips, seed)) for seed in range(6)}) > 1
    assert names(clips, 3) == names(clips[clips["label"] == "horn"], 3)


@given(count=st.integers(1, 700), most=st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_classes_are_taken_evenly(count: int, most: int) -> None:
    places = module._evenly(count, most)
    assert len(places) == len(set(places)) == min(count, most)
    assert places[0] == 0
    if len(places) > 1:
        assert places[-1] == count - 1
        steps = np.diff(places)
        assert steps.max() - steps.min() <= 1


def test_classes_come_in_the_order_of_arrival(clips: pd.DataFrame, tmp_path: Path) -> None:
    def order(table: pd.DataFrame, **options: int) -> list[str]:
        got = listen(table, tmp_path / "out", title="t", seconds=0.3, per_class=1, **options).clips
        return [path.parent.name for path in got]

    assert order(clips) == ["bell_tower", "horn", "Cat"]
    assert order(clips.drop(columns="session")) == ["horn", "bell_tower", "Cat"]
    assert order(clips, classes=2) == ["bell_tower", "Cat"]
    assert order(clips, classes=1) == ["bell_tower"]


def test_classes_with_number_names_work(clips: pd.DataFrame, tmp_path: Path) -> None:
    table = clips.assign(label=clips["label"].map({"horn": 1, "bell tower": 2, "Cat": 3}))
    assert len(listen(table, tmp_path / "out", title="t", seconds=0.3).clips) == 5


# --- the picture ---


def test_the_page_grows_with_rows_and_columns(clips: pd.DataFrame, tmp_path: Path) -> None:
    def size(**options: int) -> np.ndarray:
        result = listen(clips, tmp_path / "out", title="Test", seconds=0.5, **options)
        return np.array(pixels(result.sheet).shape[:2])

    three, two = size(per_class=5), size(per_class=5, classes=2)  # wide enough for the notes on one line
    assert (three - two).tolist() == pytest.approx([ROW * DPI, 0], abs=1)
    wide, wider = size(per_class=3), size(per_class=4)
    assert (wider - wide)[1] == pytest.approx(PANEL * DPI, abs=1)
    assert size(per_class=8)[1] == size(per_class=5)[1]  # no class has more than five: no empty columns


def test_one_class_with_one_clip_is_a_sheet(clips: pd.DataFrame, tmp_path: Path) -> None:
    result = listen(clips[clips["label"] == "Cat"], tmp_path / "out", title="One", seconds=5.12)
    assert len(result.clips) == 1
    height, width = pixels(result.sheet).shape[:2]
    assert width == pytest.approx(5.2 * DPI, abs=1)
    assert 1.5 * DPI < height < 3 * DPI


def test_the_sheet_says_what_it_shows(clips: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(module._Page, "text", lambda self, x, y, text, **style: said.append(" ".join(text.split())))
    title = "ESC-50, esc50, mini (synthetic; not comparable), a title so long that it needs more than a single line"
    listen(clips, tmp_path / "out", title=title, seconds=0.5, classes=2)
    assert said[0] == title
    assert said[1].startswith(
        "2 of 3 classes, evenly over the order of arrival; up to 2 clips each, drawn with seed 0."
    )
    assert "Input length 0.5 s" in said[1]
    assert {"bell tower", "Cat", "session 0", "session 1", "Cat/take 0 test, 0.30 s"} <= set(said)
    said.clear()
    listen(clips[clips["label"] == "horn"], tmp_path / "out", title="t", seconds=0.5, per_class=5)
    assert said[1].startswith("the only class; 5 clips each")
    assert said[1].endswith("(2 of 5 clips are longer).")  # 0.6 and 0.7 s


@pytest.mark.parametrize("hertz", [150.0, 500.0, 1_000.0, 3_000.0, 6_000.0])
def test_ticks_are_where_a_tone_shows(hertz: float) -> None:
    wave = torch.sin(2 * math.pi * hertz * torch.arange(16_000) / 16_000)
    loudest = int(audio.kaldi_fbank(wave).mean(dim=0).argmax())
    assert loudest == pytest.approx(mel_position(hertz) - 0.5, abs=1.0)  # bin i reaches from i to i + 1


def test_the_colours_share_one_scale_and_end_with_the_clip(tmp_path: Path) -> None:
    # Loud and quiet noise, the quiet clip half as long: its panel is darker, and light grey in its second half.
    draws = np.random.default_rng(1).standard_normal(16_000).clip(-3, 3)
    soundfile.write(tmp_path / "loud.wav", 0.3 * draws, 16_000)
    soundfile.write(tmp_path / "quiet.wav", 0.003 * draws[:8_000], 16_000)
    table = pd.DataFrame(
        [(name, str(tmp_path / f"{name}.wav"), name, "train") for name in ("loud", "quiet")],
        columns=["clip_id", "path", "label", "part"],
    )
    picture = pixels(listen(table, tmp_path / "out", title="t", seconds=1.0).sheet)[..., :3]
    height, width = picture.shape[:2]
    right = width - 0.2 * DPI
    if width == int(5.2 * DPI):  # the page has its least width: the panels do not reach its right edge
        right = (0.2 + module._text_width("session 000", 6.5) + 0.1 + 0.42 + 3.1) * DPI
    bottoms = [height - (0.45 + 0.25 * 0.34) * DPI - ROW * DPI, height - (0.45 + 0.25 * 0.34) * DPI]

    def patch(row: int, share: float) -> np.ndarray:
        x, y = int(right - 3.1 * DPI * (1 - share)), int(bottoms[row] - 0.475 * DPI)
        return picture[y - 20 : y + 20, x - 20 : x + 20].reshape(-1, 3).mean(axis=0)

    assert patch(0, 0.25).sum() > patch(1, 0.25).sum() + 0.5
    assert patch(1, 0.75) == pytest.approx([0xE4 / 255] * 3, abs=0.01)
    assert patch(0, 0.75) == pytest.approx(patch(0, 0.25), abs=0.1)


@pytest.mark.filterwarnings("error")
def test_names_that_mean_something_elsewhere(tmp_path: Path) -> None:
    path = str(tone(tmp_path / "x.wav", 400))
    labels = ["../up", "a$b$c^{", "-rf", ".hidden", "كلمة", "话", "x" * 300, "a/b", "a b"]
    table = pd.DataFrame([(f"{n}/..//clip $_{n}$", path, label, "train") for n, label in enumerate(labels)])
    table.columns = ["clip_id", "path", "label", "part"]
    result = listen(table, tmp_path / "out", title="$x^{", seconds=0.3)
    assert len(set(result.clips)) == len(labels)
    for clip in result.clips:
        assert clip.is_file()
        assert clip.resolve().parent.parent == (tmp_path / "out").resolve()
        assert not clip.name.startswith((".", "-"))
        assert not clip.parent.name.startswith((".", "-"))


@given(names=st.lists(st.text(max_size=150), min_size=1, max_size=8, unique=True))
@settings(max_examples=200, deadline=None)
def test_safe_names_are_safe_and_distinct(names: list[str]) -> None:
    safe = safe_names(names)
    assert set(safe) == set(names)
    assert len({name.casefold() for name in safe.values()}) == len(names)
    for name in safe.values():
        assert name
        assert not name.startswith((".", "-"))
        assert not set(name) & set("/\\\0 :*?\"'<>|$\n")
        assert len(name) <= 110


def test_safe_names_are_plain_where_they_can_be() -> None:
    assert safe_names(["dog", "female1/arpeggios/f1_a (1)"]) == {
        "dog": "dog",
        "female1/arpeggios/f1_a (1)": "female1_arpeggios_f1_a_1",
    }
    clash = safe_names(["a b", "a/b", "A_b"])
    assert all(name.casefold().startswith("a_b-") for name in clash.values())


# --- what goes wrong ---


def test_unreadable_audio_is_named_and_nothing_is_written(clips: pd.DataFrame, tmp_path: Path) -> None:
    broken = tmp_path / "in" / "Cat-0.wav"
    broken.write_bytes(b"this is no audio")
    with pytest.raises(AudioError, match=r"Cat-0\.wav cannot be decoded as audio"):
        listen(clips, tmp_path / "out", title="t", seconds=0.5)
    assert not (tmp_path / "out").exists()
    broken.unlink()
    with pytest.raises(AudioError, match=r"Cat-0\.wav does not exist"):
        listen(clips, tmp_path / "out", title="t", seconds=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 0}, "per_class lies between 1 and 8, not 0"),
        ({"classes": 51}, "classes lies between 1 and 50, not 51"),
        ({"seconds": 0.0}, "seconds is at least 0.025"),
        ({"seconds": math.nan}, "seconds is at least 0.025"),
    ],
)
def test_settings_out_of_range(clips: pd.DataFrame, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listen(clips, tmp_path / "out", **{"title": "t", "seconds": 0.5, **options})


def test_a_table_without_clips_or_columns(clips: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="the table of clips is empty"):
        listen(clips.iloc[:0], tmp_path / "out", title="t", seconds=0.5)
    with pytest.raises(CorpusError, match="no column 'part'"):
        listen(clips.drop(columns="part"), tmp_path / "out", title="t", seconds=0.5)


def test_an_output_folder_that_is_a_file(clips: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(ResultsError, match="choose another directory"):
        listen(clips, tmp_path / "out", title="t", seconds=0.5)


@pytest.mark.slow
def test_fifty_classes_of_real_sound(shared, tmp_path: Path) -> None:
    from audiocl_bench import benchmarks

    root = shared("data", "ESC-50")
    index = benchmarks.get("esc50").corpus.index(root)
    index = index[index["fold"] == "4"]
    table = pd.DataFrame(
        {
            "clip_id": index["clip_id"],
            "path": [str(root / path) for path in index["path"]],
            "label": index["label"],
            "part": "train",
        }
    )
    result = listen(table, tmp_path / "out", title="ESC-50 fold 4", seconds=5.12, classes=50, per_class=1)
    assert len(result.clips) == 50
    assert pixels(result.sheet).shape[0] > 50 * ROW * DPI


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("dog", ["dog"]),
        ("Geschwindigkeitsbegrenzungsanlage", ["Geschwindi…ungsanlage"]),
        ("one_word_and_another_word_more", ["one_word_and_another_", "word_more"]),
        ("", [""]),
    ],
)
def test_class_names_are_broken_between_words(name: str, lines: list[str]) -> None:
    assert module._name_lines(name) == lines
