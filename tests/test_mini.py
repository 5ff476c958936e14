"""Miniature corpora and benchmarks: making them once and whole, their frozen splits, what each stands in for."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from audiocl_bench import benchmarks, corpora, split_rules, splits
from audiocl_bench.errors import AudioError, CorpusError, UnknownNameError
from audiocl_bench.mini import catalogue, corpus
from audiocl_bench.mini.corpus import folder_of, make
from audiocl_bench.mini.spec import RATE, ClipSpec, Recipe
from audiocl_bench.processes import in_processes

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Quick:
    """The real list of a miniature's clips with a short tone per clip instead of its sound, and a count of them."""

    name: str
    rendered: int = 0

    def specs(self) -> tuple[ClipSpec, ...]:
        return catalogue.recipe(self.name).specs()

    def render(self, spec: ClipSpec) -> np.ndarray:
        self.rendered += 1
        pitch = 200 + 97 * (sum(spec.label.encode()) % 40) + sum(spec.clip_id.encode()) % 13
        return (0.3 * np.sin(2 * np.pi * pitch * np.arange(RATE // 4) / RATE)).astype(np.float32)


@dataclass(frozen=True)
class Some:
    """A few clips of a real miniature: other processes find its synthesis by name."""

    name: str
    chosen: tuple[ClipSpec, ...]

    def specs(self) -> tuple[ClipSpec, ...]:
        return self.chosen

    def render(self, spec: ClipSpec) -> np.ndarray:
        return catalogue.recipe(self.name).render(spec)


def quicken(patch: pytest.MonkeyPatch) -> dict[str, Quick]:
    """Let miniatures be made of short tones, in this process; return the recipes that were used."""
    used: dict[str, Quick] = {}

    def recipe(name: str) -> Recipe:
        catalogue.recipe(name)  # an unknown name stays one
        return used.setdefault(name, Quick(name))

    def alone(work, jobs, processes, **options):
        return in_processes(work, jobs, 1, **options)

    patch.setattr(corpus, "recipe", recipe)
    patch.setattr(corpus, "in_processes", alone)
    return used


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Quick]:
    return quicken(monkeypatch)


def tree_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# ------------------------------------------------------------------------------------------------------- made once


def test_a_miniature_is_made_on_first_use_and_never_again(quick: dict[str, Quick], private_home: Path) -> None:
    benchmark = benchmarks.get("mini-us8k")
    stream, clips = benchmark.open(None, "paper", 0)
    folder = folder_of(quick["mini-us8k"], private_home / "mini")
    assert len(clips) == quick["mini-us8k"].rendered - 1 == 240  # the first clip once more, to see that it can be done
    for path in clips["path"]:
        assert Path(path).parent.parent == folder
        sound = soundfile.info(path)
        assert (sound.samplerate, sound.channels, sound.subtype) == (RATE, 1, "PCM_16")
    before = stamps(folder)
    assert benchmark.open(None, "grouped", 3)[0].num_sessions == stream.num_sessions
    assert benchmark.open(Path("anywhere"), "paper", 0)[1].equals(clips)
    assert quick["mini-us8k"].rendered == 241
    assert stamps(folder) == before


def test_the_wav_files_hold_what_was_rendered(quick: dict[str, Quick], private_home: Path) -> None:
    root = corpora.get("mini-sc2").find(None)
    for spec in quick["mini-sc2"].specs()[::50]:
        wave, _ = soundfile.read(root / f"{spec.clip_id}.wav")
        np.testing.assert_allclose(wave, quick["mini-sc2"].render(spec), atol=2**-15)
    index = corpora.get("mini-sc2").index(root)
    rows = {(s.clip_id, s.label, s.group, s.fold, f"{s.clip_id}.wav") for s in quick["mini-sc2"].specs()}
    assert set(index[["clip_id", "label", "group", "fold", "path"]].itertuples(index=False, name=None)) == rows


def test_bytes_depend_neither_on_place_nor_processes_nor_order(tmp_path: Path) -> None:
    specs = catalogue.recipe("mini-esc50").specs()[::10]
    assert len(specs) > corpus._CHUNK  # else one process would do all
    first = make(Some("mini-esc50", specs), tmp_path / "a", workers=2)
    second = make(Some("mini-esc50", specs[::-1]), tmp_path / "b", workers=1)
    assert first.name == second.name
    names = {f"{spec.clip_id}.wav" for spec in specs}
    made = tree_of(first)
    assert made.keys() == {*names, "SHA256SUMS"}
    assert len({made[name] for name in names}) == len(names)
    assert {name: made[name] for name in names} == {name: tree_of(second)[name] for name in names}


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_list_of_sums_is_one_that_sha256sum_reads(quick: dict[str, Quick], private_home: Path) -> None:
    root = corpora.get("mini-us8k").find(None)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    checked = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(": OK") == 240


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_it_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["clip", "SHA256SUMS"])
@pytest.mark.parametrize("damage", [remove, empty, flip_a_bit, make_it_a_folder])
def test_a_missing_or_damaged_file_is_noticed_and_made_again(
    quick: dict[str, Quick],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    few = Some("mini-us8k", Quick("mini-us8k").specs()[:12])
    root = make(few, tmp_path)
    whole = tree_of(root)
    assert "damaged" not in capsys.readouterr().err
    damage(root / (f"{few.chosen[7].clip_id}.wav" if name == "clip" else name))
    assert make(few, tmp_path) == root
    assert tree_of(root) == whole
    assert "is damaged: it is made again" in " ".join(capsys.readouterr().err.split())
    assert make(few, tmp_path) == root
    assert capsys.readouterr().err == ""


def test_a_sound_of_ones_own_in_the_folder_is_refused(quick: dict[str, Quick], private_home: Path) -> None:
    root = corpora.get("mini-us8k").find(None)
    shutil.copy(next(root.rglob("*.wav")), root / "mine.wav")
    with pytest.raises(CorpusError, match=r"mine\.wav is no clip of mini-us8k: move it out"):
        benchmarks.get("mini-us8k").open(None, "paper", 0)


def test_changed_code_makes_another_corpus_and_clears_the_old_one(
    quick: dict[str, Quick], private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, other = corpora.get("mini-us8k").find(None), corpora.get("mini-sc2").find(None)
    code = tmp_path / "mini"
    shutil.copytree(Path(corpus.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(corpus, "__file__", str(code / "corpus.py"))
    assert corpora.get("mini-us8k").find(None) == old  # another place, the same code
    with (code / "sounds.py").open("a") as handle:
        handle.write("# louder\n")
    new = corpora.get("mini-us8k").find(None)
    assert new != old
    assert {path.name for path in new.parent.glob("mini-*")} == {new.name, other.name}


# ----------------------------------------------------------------------------------------------------- interruptions


def left_in(place: Path) -> set[str]:
    return {path.name for path in place.iterdir() if not path.name.endswith(".lock")}


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_making_leaves_no_corpus(
    quick: dict[str, Quick], private_home: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    real = Quick.render

    def stops(self: Quick, spec: ClipSpec) -> np.ndarray:
        if self.rendered == 100:
            raise failure
        return real(self, spec)

    monkeypatch.setattr(Quick, "render", stops)
    with pytest.raises(KeyboardInterrupt if failure is KeyboardInterrupt else CorpusError, match=r"no space left|^$"):
        corpora.get("mini-us8k").find(None)
    assert left_in(private_home / "mini") == set()
    monkeypatch.setattr(Quick, "render", real)
    benchmarks.get("mini-us8k").open(None, "paper", 0)
    assert left_in(private_home / "mini") == {folder_of(quick["mini-us8k"], private_home / "mini").name}


def test_a_killed_making_leaves_nothing_that_is_taken_for_a_corpus(quick: dict[str, Quick], private_home: Path) -> None:
    code = "from audiocl_bench import corpora; corpora.get('mini-esc50').find(None)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if list((private_home / "mini").rglob("*.wav")):
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list((private_home / "mini").rglob("*.wav"))
    folder = folder_of(Quick("mini-esc50"), private_home / "mini")
    assert not folder.exists()
    assert corpora.get("mini-esc50").find(None) == folder
    assert left_in(private_home / "mini") == {folder.name}
    assert len(list(folder.rglob("*.wav"))) == 320


def test_a_recipe_that_renders_nothing_is_told(
    quick: dict[str, Quick], private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wave in (np.zeros(0, np.float32), np.zeros((2, 9), np.float32), np.array([np.nan], np.float32)):
        monkeypatch.setattr(Quick, "render", lambda self, spec, wave=wave: wave)
        with pytest.raises(AudioError, match="mini-us8k rendered no sound for 'air_conditioner/"):
            corpora.get("mini-us8k").find(None)
    assert left_in(private_home / "mini") == set()


def test_a_home_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: dict[str, Quick]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUDIOCL_HOME", str(tmp_path / "file"))
    with pytest.raises(CorpusError, match=r"file/mini/mini-us8k-\w+ cannot be written") as caught:
        corpora.get("mini-us8k").find(None)
    assert len(str(caught.value).splitlines()) == 1


# ------------------------------------------------------------------------------------------------- speech synthesis


@pytest.mark.parametrize("name", catalogue.SPOKEN)
def test_without_a_synthesiser_the_command_to_install_it_is_told(
    private_home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(CorpusError) as caught:
        corpora.get(name).find(None)
    assert str(caught.value) == f"{name} needs speech synthesis: pip install 'audiocl[mini]'"
    assert left_in(private_home / "mini") == set()


@pytest.mark.parametrize("name", sorted(set(catalogue.names()) - set(catalogue.SPOKEN)))
def test_only_speech_needs_a_synthesiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    folder = make(Some(name, catalogue.recipe(name).specs()[:2]), tmp_path, workers=1)
    assert len(list(folder.rglob("*.wav"))) == 2


# ------------------------------------------------------------------------------------------------------ frozen splits


@pytest.mark.parametrize("name", catalogue.names())
def test_the_frozen_splits_are_those_of_the_recipe(name: str, tmp_path: Path) -> None:
    specs = catalogue.recipe(name).specs()
    frozen = splits.frozen_clips(name)
    assert list(frozen.itertuples(index=False, name=None)) == [(s.clip_id, s.label) for s in specs]
    assert splits.unused_clips(name).empty
    made = split_rules.corpus_tables(name, tmp_path)  # an empty folder: a miniature has no manifest
    pd.testing.assert_frame_equal(made.paper, splits.load(name, "paper"), check_dtype=False)
    pd.testing.assert_frame_equal(made.grouped, splits.load(name, "grouped"), check_dtype=False)
    assert made.orders == splits.load_orders(name)


def test_an_altered_recipe_is_not_the_benchmark(
    quick: dict[str, Quick], private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *others = Quick("mini-us8k").specs()
    altered = (ClipSpec(first.clip_id, "siren", first.group, first.fold), *others)
    monkeypatch.setattr(Quick, "specs", lambda self: altered)
    with pytest.raises(CorpusError, match="in 2 clips") as caught:
        benchmarks.get("mini-us8k").open(None, "paper", 0)
    assert f"  relabelled: {first.clip_id} (is siren, should be {first.label})" in str(caught.value)
    assert f"  missing: {second.clip_id}" in str(caught.value)


# --------------------------------------------------------------------------------------------------------- benchmarks

# name: classes, sessions, classes per session, clips, corpus
FACTS = {
    "mini-esc50": (20, 10, 2, 320, "mini-esc50"),
    "mini-us8k": (10, 5, 2, 240, "mini-us8k"),
    "mini-sc2": (14, 7, 2, 336, "mini-sc2"),
    "mini-timit2": (24, 12, 2, 240, "mini-timit"),
    "mini-timit3": (24, 8, 3, 240, "mini-timit"),
    "mini-vocalset": (16, 8, 2, 320, "mini-vocalset"),
}


def test_every_benchmark_has_a_miniature_of_its_own_name() -> None:
    assert benchmarks.mini_names() == tuple(f"mini-{name}" for name in benchmarks.names()) == tuple(FACTS)
    assert {benchmarks.get(name).corpus.info.name for name in FACTS} == set(catalogue.names())
    with pytest.raises(UnknownNameError, match=r"did you mean mini-esc50"):
        benchmarks.get("mini-esc")
    with pytest.raises(UnknownNameError, match="mini-us8k"):
        catalogue.recipe("us8k")


@pytest.mark.parametrize("name", FACTS)
def test_a_miniature_is_built_as_what_it_stands_in_for(name: str) -> None:
    mini, real = benchmarks.get(name), benchmarks.get(name.removeprefix("mini-"))
    assert (mini.mini, real.mini, mini.own_data) == (True, False, False)
    assert mini.title.endswith(("in miniature", "in miniature, 2 per session", "in miniature, 3 per session"))
    assert (mini.protocols, mini.num_orders) == (real.protocols, real.num_orders) == (("paper", "grouped"), 5)
    here, there = mini.describe(), real.describe()
    classes, sessions, per_session, clips, corpus_name = FACTS[name]
    assert (here["classes"], here["sessions"], here["classes_per_session"]) == (classes, sessions, per_session)
    assert (here["clips"], here["corpus"], here["mini"]) == (clips, corpus_name, True)
    # A speaker stream keeps its 2 or 3 new speakers, every other one its number of sessions.
    kept = "classes_per_session" if name.startswith("mini-timit") else "sessions"
    assert here[kept] == there[kept]
    if name != "mini-sc2":  # there one epoch would be two steps
        assert mini.first_session_epochs == real.first_session_epochs


@pytest.mark.parametrize("protocol", splits.PROTOCOLS)
@pytest.mark.parametrize("name", FACTS)
def test_sessions_of_every_order(name: str, protocol: str) -> None:
    classes, sessions, per_session, clips, corpus_name = FACTS[name]
    benchmark = benchmarks.get(name)
    groups = {spec.clip_id: (spec.label, spec.group) for spec in catalogue.recipe(corpus_name).specs()}
    seen = set()
    for order in range(5):
        stream = benchmark.stream(protocol, order)
        assert (stream.num_classes, stream.num_sessions, len(stream.clip_ids)) == (classes, sessions, clips)
        assert stream.session_sizes == (per_session,) * sessions
        assert list(stream.classes) == splits.load_orders(corpus_name)[order]
        assert [stream.classes[label] for label in stream.labels] == [groups[clip][0] for clip in stream.clip_ids]
        for t in range(sessions):
            for part in ("train", "test"):  # no class of a session without clips on either side
                labels = {int(stream.labels[row]) for row in stream.rows(t, part)}
                assert labels == set(range(t * per_session, (t + 1) * per_session))
        seen.add(stream.classes)
        if protocol == "grouped":
            sides = {bool(test): set() for test in (True, False)}
            for clip, test in zip(stream.clip_ids, stream.is_test, strict=True):
                sides[bool(test)].add(groups[clip][1])
            assert sides[True]
            assert not sides[True] & sides[False]
    assert len(seen) == 5


@pytest.mark.parametrize("name", catalogue.names())
def test_a_fifth_of_every_class_is_for_testing(name: str) -> None:
    table = splits.load(name, "paper")
    for _, clips in table.groupby("label"):
        assert (clips["part"] == "test").sum() == (2 * len(clips) + 5) // 10
