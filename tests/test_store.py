"""The store of prepared clips: values, keys, resuming, damage, bad files and concurrent use."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from audiocl_bench import audio, files, store
from audiocl_bench.audio import FrontEnd
from audiocl_bench.errors import ConfigError, StoreError
from audiocl_bench.seeding import numpy_generator
from audiocl_bench.store import Store, prepare

KALDI = FrontEnd("kaldi", 16, 30)
CLIPS = 40


def write_corpus(folder: Path, clips: int = CLIPS) -> pd.DataFrame:
    """Write noise clips of 0.05 to 0.45 s (some longer than the front end's 30 frames) and return their table."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = numpy_generator(0, "store test")
    for number in range(clips):
        noise = rng.normal(0, 0.1, int(rng.integers(800, 7200))).clip(-1, 1)
        soundfile.write(folder / f"c{number:04d}.wav", noise, 16_000, subtype="PCM_16")
    return table_of(folder)


def table_of(folder: Path) -> pd.DataFrame:
    paths = sorted(folder.glob("*.wav"))
    return pd.DataFrame({"clip_id": [path.stem for path in paths], "path": [str(path) for path in paths]})


def rewrite(path: str | Path, seed: int = 1) -> None:
    """Replace an audio file by other noise of the same length and size."""
    samples, rate = soundfile.read(path)
    noise = numpy_generator(seed, "rewrite").normal(0, 0.1, len(samples)).clip(-1, 1)
    soundfile.write(path, noise, rate, subtype="PCM_16")


def shard_bytes(made: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(made.path.glob("shard-*.arrow"))}


def flip(path: Path, position: int) -> None:
    """Change one byte in place and leave the size."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD_CLIPS", 4)


@pytest.fixture
def corpus(tmp_path: Path) -> pd.DataFrame:
    return write_corpus(tmp_path / "corpus")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the audio files decoded in this process, in order."""
    seen: list[str] = []
    load = audio.load

    def counting(path: Path) -> torch.Tensor:
        seen.append(path.stem)
        return load(path)

    monkeypatch.setattr(audio, "load", counting)
    return seen


def make(clips: pd.DataFrame, front_end: FrontEnd = KALDI, name: str = "toy") -> Store:
    return prepare(clips, front_end, name=name, workers=1, progress=False)


def expected(clips: pd.DataFrame, front_end: FrontEnd) -> dict[str, np.ndarray]:
    pairs = zip(clips["clip_id"], clips["path"], strict=True)
    return {clip_id: front_end.extract(audio.load(Path(path))).numpy() for clip_id, path in pairs}


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("front_end", [KALDI, FrontEnd("whisper", 20, 40)], ids=lambda f: f.kind)
def test_random_rows_equal_the_front_end(corpus: pd.DataFrame, front_end: FrontEnd) -> None:
    made = make(corpus, front_end)
    assert len(list(made.path.glob("shard-*.arrow"))) > 5
    direct = expected(corpus, front_end)
    rows = numpy_generator(0, "rows").integers(0, len(made), 3000)
    for row, mel in zip(rows, made.mels(rows), strict=True):
        wanted = direct[made.clip_ids[row]].astype(np.float16).astype(np.float32)
        assert mel.dtype == torch.float32
        np.testing.assert_array_equal(mel.numpy(), wanted)


def test_float16_bounds_the_error(corpus: pd.DataFrame) -> None:
    made = make(corpus)
    for clip_id, mel in expected(corpus, KALDI).items():
        (stored,) = made.mels(made.rows([clip_id]))
        assert stored.shape == mel.shape
        assert (np.abs(stored.numpy() - mel) <= np.abs(mel) * 2.0**-11 + 2.0**-25).all()


def test_batch_is_padded_by_the_front_end(corpus: pd.DataFrame) -> None:
    front_end = FrontEnd("whisper", 20, 40)
    made = make(corpus, front_end)
    rows = [7, 0, 7, 39]
    batch = made.batch(rows)
    assert batch.shape == (4, 40, 20)
    torch.testing.assert_close(batch, front_end.fit(made.mels(rows)), rtol=0, atol=0)
    assert (batch[1, made.frames[0] :] == -10.0).all()
    assert made.batch([]).shape == (0, 40, 20)


def test_rows_keep_the_order_asked_for(corpus: pd.DataFrame) -> None:
    made = make(corpus.sample(frac=1.0, random_state=0))
    assert made.clip_ids == tuple(sorted(corpus["clip_id"]))
    assert made.rows(["c0005", "c0001", "c0005"]).tolist() == [5, 1, 5]
    assert made.rows([]).dtype == np.int64
    with pytest.raises(StoreError, match="clip 'nope' is not in"):
        made.rows(["c0001", "nope"])
    for wrong in ([-1], [CLIPS]):
        with pytest.raises(IndexError):
            made.mels(wrong)


def test_returned_tensors_can_be_changed_without_touching_the_store(corpus: pd.DataFrame) -> None:
    made = make(corpus)
    before = made.batch([0, 1])
    for mel in made.mels([0, 1]):
        mel.zero_()
    torch.testing.assert_close(made.batch([0, 1]), before, rtol=0, atol=0)


def test_datasets_opens_the_shards(corpus: pd.DataFrame) -> None:
    made = make(corpus)
    first = Dataset.from_file(str(made.path / "shard-00000.arrow"))
    assert first.column_names == ["clip_id", "frames", "mel"]
    row = first[1]
    mel = np.frombuffer(row["mel"], "<f2").reshape(row["frames"], KALDI.n_mels)
    np.testing.assert_array_equal(mel.astype(np.float32), made.mels(made.rows([row["clip_id"]]))[0].numpy())
    assert len(made.dataset) == CLIPS
    assert made.dataset[CLIPS - 1]["clip_id"] == made.clip_ids[-1]


def test_a_store_pickles_as_its_path(corpus: pd.DataFrame) -> None:
    made = make(corpus)
    text = pickle.dumps(made)
    assert len(text) < 1000
    again = pickle.loads(text)
    torch.testing.assert_close(again.batch([3, 9]), made.batch([3, 9]), rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------- keys


def test_an_unchanged_corpus_opens_without_reading_audio(
    corpus: pd.DataFrame, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(corpus)
    assert len(decoded) == CLIPS
    monkeypatch.setattr(files, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
    again = make(corpus)
    assert (again.key, again.path, len(decoded)) == (made.key, made.path, CLIPS)
    # The normalisation is not part of what is stored.
    assert make(corpus, FrontEnd("kaldi", 16, 30, mean=-4.0, std=4.0)).key == made.key


def test_a_moved_corpus_keeps_its_store(corpus: pd.DataFrame, tmp_path: Path, decoded: list[str]) -> None:
    made = make(corpus)
    shutil.move(tmp_path / "corpus", tmp_path / "elsewhere")
    again = make(table_of(tmp_path / "elsewhere"))
    assert again.path == made.path
    assert len(decoded) == CLIPS


def test_a_changed_file_gives_another_key_and_only_its_shard_is_made(corpus: pd.DataFrame, decoded: list[str]) -> None:
    made = make(corpus)
    decoded.clear()
    size = Path(corpus["path"][10]).stat().st_size
    rewrite(corpus["path"][10])
    assert Path(corpus["path"][10]).stat().st_size == size
    again = make(corpus)
    assert again.key != made.key
    assert "c0010" in decoded
    assert len(decoded) <= 8, "a shard holds at most twice SHARD_CLIPS"
    direct = expected(corpus, KALDI)["c0010"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(again.mels([10])[0].numpy(), direct)
    assert not np.array_equal(made.mels([10])[0].numpy(), direct), "the older store keeps the older clip"


def test_the_key_covers_ids_and_front_end_but_not_the_name(corpus: pd.DataFrame) -> None:
    renamed = corpus.assign(clip_id=corpus["clip_id"] + "x")
    wider = FrontEnd("kaldi", 17, 30)
    keys = [make(corpus).key, make(renamed).key, make(corpus, wider).key, make(corpus.iloc[1:]).key]
    assert len(set(keys)) == 4
    other = make(corpus, name="a name/with: signs")
    assert other.key == keys[0]
    assert other.path.name == f"a-name-with-signs-{other.key[:12]}"


def test_a_stale_or_broken_fingerprint_is_harmless(
    corpus: pd.DataFrame, private_home: Path, decoded: list[str]
) -> None:
    made = make(corpus)
    (fingerprint,) = (private_home / "fingerprints").iterdir()
    sound = fingerprint.read_text()
    for text in ("", "[]", '{"content": 3, "shards": 4, "fingerprint": 5}', sound[:-40]):
        fingerprint.write_text(text)
        assert make(corpus).path == made.path
    assert fingerprint.read_text() == sound
    # The same size and mtime, but other samples: noticed as soon as the file is decoded.
    status = Path(corpus["path"][0]).stat()
    rewrite(corpus["path"][0])
    os.utime(corpus["path"][0], ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.rmtree(made.path)
    with pytest.raises(StoreError, match="changed while they were being prepared"):
        make(corpus)
    assert make(corpus).key != made.key


@given(ids=st.sets(st.text(max_size=4), min_size=1, max_size=60), data=st.data())
def test_cuts_cover_the_clips_and_heal_after_a_change(ids: set[str], data: st.DataObject) -> None:
    clips = sorted(text.encode("utf-8", "replace").decode() + str(n) for n, text in enumerate(sorted(ids)))
    cuts = store._cuts(clips)
    assert [first for first, _ in cuts] == np.cumsum([0, *(size for _, size in cuts)])[:-1].tolist()
    assert sum(size for _, size in cuts) == len(clips)
    assert all(size <= 2 * store.SHARD_CLIPS for _, size in cuts)
    assert all(size >= store.SHARD_CLIPS // 2 for _, size in cuts[:-1])
    gone = data.draw(st.integers(0, len(clips) - 1))
    shards = {tuple(clips[first : first + size]) for first, size in cuts if first + size <= gone}
    fewer = clips[:gone] + clips[gone + 1 :]
    assert shards <= {tuple(fewer[first : first + size]) for first, size in store._cuts(fewer)}


def test_a_removed_clip_leaves_most_shards(corpus: pd.DataFrame, decoded: list[str]) -> None:
    make(corpus)
    decoded.clear()
    made = make(corpus.drop(index=2))
    assert len(made) == CLIPS - 1
    assert len(decoded) < CLIPS / 2


# ------------------------------------------------------------------------------------------------------------ bytes


def test_bytes_do_not_depend_on_order_place_threads_or_home(corpus: pd.DataFrame, tmp_path: Path) -> None:
    made = make(corpus)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        other = prepare(
            corpus.sample(frac=1.0, random_state=1), KALDI, name="b", home=tmp_path / "h", workers=1, progress=False
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert other.path.parent == tmp_path / "h" / "store"
    assert shard_bytes(other) == shard_bytes(made)


@pytest.mark.slow
def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    clips = write_corpus(tmp_path / "corpus", 80)
    one = make(clips, name="one")
    two = prepare(clips, KALDI, name="two", workers=2, progress=False)
    assert shard_bytes(one) == shard_bytes(two)


# -------------------------------------------------------------------------------------------------------------- damage


def cut_short(made: Store) -> None:
    shard = made.path / "shard-00002.arrow"
    os.truncate(shard, shard.stat().st_size // 2)


def emptied(made: Store) -> None:
    (made.path / "shard-00002.arrow").write_bytes(b"")


def value_flipped(made: Store) -> None:
    flip(made.path / "shard-00002.arrow", (made.path / "shard-00002.arrow").stat().st_size // 2)


def header_flipped(made: Store) -> None:
    flip(made.path / "shard-00002.arrow", 60)


def removed(made: Store) -> None:
    (made.path / "shard-00002.arrow").unlink()


DAMAGES = [cut_short, emptied, value_flipped, header_flipped, removed]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_alone_is_rebuilt(
    damage: Callable[[Store], None],
    corpus: pd.DataFrame,
    decoded: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = make(corpus)
    sound = shard_bytes(made)
    of_shard = Dataset.from_file(str(made.path / "shard-00002.arrow"), in_memory=True)["clip_id"][:]
    decoded.clear()
    damage(made)
    again = make(corpus)
    told = capfd.readouterr().err.strip().splitlines()
    assert shard_bytes(again) == sound
    assert decoded == of_shard
    assert len(told) == 1
    assert "damaged (shard-00002.arrow" in told[0]
    make(corpus)
    assert decoded == of_shard, "the repaired store is sound"
    assert not capfd.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', "half", "types", "key", "shards"])
def test_a_broken_manifest_is_rebuilt_without_decoding(
    text: str, corpus: pd.DataFrame, decoded: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    made = make(corpus)
    manifest = made.path / "manifest.json"
    sound = manifest.read_text()
    known = json.loads(sound)
    changed = {
        "half": sound[: len(sound) // 2],
        "types": json.dumps({**known, "shards": [{**known["shards"][0], "bytes": "many"}, *known["shards"][1:]]}),
        "key": json.dumps({**known, "key": "0" * 64}),
        "shards": json.dumps({**known, "shards": known["shards"][1:]}),
    }
    manifest.write_text(changed.get(text, text))
    make(corpus)
    assert manifest.read_text() == sound
    assert len(decoded) == CLIPS
    assert "manifest.json is unusable" in capfd.readouterr().err


def test_damage_is_found_without_a_manifest_too(corpus: pd.DataFrame, decoded: list[str]) -> None:
    made = make(corpus)
    sound = shard_bytes(made)
    decoded.clear()
    (made.path / "manifest.json").write_text("{")
    flip(made.path / "shard-00001.arrow", len(sound["shard-00001.arrow"]) // 2)
    cut_short(made)
    again = make(corpus)
    assert shard_bytes(again) == sound
    assert 0 < len(decoded) <= 16


def test_every_flipped_byte_of_a_value_is_noticed(corpus: pd.DataFrame) -> None:
    made = make(corpus)
    plan = json.loads((made.path / "manifest.json").read_text())["shards"][0]
    shard = made.path / plan["file"]
    sound = shard.read_bytes()
    kept = store._trusted(shard, plan["inputs"])
    assert kept is not None
    assert kept.sha256 == plan["sha256"]
    wanted = Dataset.from_file(str(shard), in_memory=True)[:]
    for position in numpy_generator(0, "flips").integers(0, len(sound), 300).tolist():
        content = bytearray(sound)
        content[position] ^= 1 << (position % 8)
        shard.write_bytes(content)
        if store._trusted(shard, plan["inputs"]) is not None:  # padding: the values have to be the right ones
            assert Dataset.from_file(str(shard), in_memory=True)[:] == wanted
    assert store._trusted(shard, "0" * 64) is None


def test_a_touched_shard_is_hashed_once(
    corpus: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = make(corpus)
    os.utime(made.path / "shard-00001.arrow")
    hashed: list[str] = []
    hash_file = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: hashed.append(path.name) or hash_file(path))
    make(corpus)
    make(corpus)
    assert hashed == ["shard-00001.arrow"]
    assert not capfd.readouterr().err


def test_opening_a_folder_that_is_no_store(corpus: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened as a store"):
        Store(tmp_path, KALDI)
    with pytest.raises(StoreError, match="was not prepared for 8 mel bins"):
        Store(make(corpus).path, FrontEnd("kaldi", 8, 30))


# ----------------------------------------------------------------------------------------------------------- bad files


def test_all_bad_files_are_listed_at_the_end(
    corpus: pd.DataFrame, tmp_path: Path, private_home: Path, decoded: list[str]
) -> None:
    folder = tmp_path / "corpus"
    sound = {number: (folder / f"c{number:04d}.wav").read_bytes() for number in (3, 20, 31)}
    (folder / "c0003.wav").write_bytes(b"")
    (folder / "c0020.wav").write_bytes(b"no audio at all")
    (folder / "c0031.wav").unlink()
    with pytest.raises(StoreError) as error:
        make(corpus)
    message = str(error.value)
    assert message.startswith("3 audio files of toy cannot be used")
    for number in sound:
        assert f"c{number:04d}.wav" in message
    assert len(decoded) == CLIPS - 1, "the missing file fails before it is decoded, and no other is skipped"
    listed = private_home / "store" / "toy.bad-files.txt"
    assert str(listed) in message
    assert [line.partition(".wav")[0][-5:] for line in listed.read_text().splitlines()] == ["c0003", "c0020", "c0031"]
    decoded.clear()
    for number, content in sound.items():
        (folder / f"c{number:04d}.wav").write_bytes(content)
    made = make(corpus)
    assert {"c0003", "c0020", "c0031"} <= set(decoded)
    assert len(decoded) <= 24, "the sound shards were kept"
    assert not listed.exists()
    assert len(made) == CLIPS


def test_many_bad_files_are_counted(tmp_path: Path, private_home: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(30):
        (folder / f"c{number:04d}.wav").write_bytes(b"")
    with pytest.raises(StoreError) as error:
        make(table_of(folder))
    message = str(error.value)
    assert message.startswith("30 audio files")
    assert message.count("c00") == 20
    assert message.endswith("... and 10 more")
    assert len((private_home / "store" / "toy.bad-files.txt").read_text().splitlines()) == 30


def test_a_file_name_that_is_not_utf8_is_reported(tmp_path: Path, private_home: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    try:
        Path(path).write_bytes(b"")
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    clips = pd.DataFrame({"clip_id": ["cafe"], "path": [path]}, dtype=object)
    with pytest.raises(StoreError, match=r"1 audio file of toy.*") as error:
        make(clips)
    assert "caf\\udce9.wav" in str(error.value)
    assert "caf\\udce9.wav" in (private_home / "store" / "toy.bad-files.txt").read_text("utf-8")
    with pytest.raises(StoreError, match="not valid Unicode"):
        make(pd.DataFrame({"clip_id": ["\udce9"], "path": [path]}, dtype=object))


def test_a_table_of_clips_is_checked(corpus: pd.DataFrame) -> None:
    with pytest.raises(StoreError, match="lacks the column path"):
        make(corpus[["clip_id"]])
    with pytest.raises(StoreError, match="is empty"):
        make(corpus.iloc[:0])
    with pytest.raises(StoreError, match="'c0000' occurs twice"):
        make(pd.concat([corpus, corpus.iloc[:1]]))
    with pytest.raises(ConfigError, match="at least 1"):
        prepare(corpus, KALDI, name="toy", workers=0)


# ------------------------------------------------------------------------------------------------------------- writing


def test_a_place_that_cannot_be_written_is_explained(corpus: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written") as error:
        prepare(corpus, KALDI, name="toy", home=tmp_path / "file", workers=1, progress=False)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_explained_and_finished_shards_stay(
    corpus: pd.DataFrame, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="no space left"):
        make(corpus)
    monkeypatch.setattr(os, "fsync", real)
    made_before = len(decoded)
    make(corpus)
    # The fingerprint took one of the five writes; the shard that met the full disk is made twice.
    assert CLIPS < len(decoded) <= CLIPS + 8
    assert 0 < made_before < CLIPS


def test_a_finished_store_in_a_read_only_home_opens(
    corpus: pd.DataFrame, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(corpus)
    shutil.rmtree(private_home / "fingerprints")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    assert make(corpus).path == made.path
    with pytest.raises(StoreError, match="read-only"):
        make(corpus, FrontEnd("kaldi", 8, 30))


# ----------------------------------------------------------------------------------------- interruption and concurrency

SCRIPT = """
import os, sys, time
from pathlib import Path
import pandas as pd
from audiocl_bench import audio, store
from audiocl_bench.audio import FrontEnd

# Outside the guard, so that worker processes are slowed down too; they import this script because they need the class.
class Mine(FrontEnd):
    pass

pause, load = float(sys.argv[2]), audio.load
def slow(path):
    os.write(1, f"{path.stem}\\n".encode())  # one write, which other processes cannot split
    time.sleep(pause)
    return load(path)
audio.load = slow
store.SHARD_CLIPS = 4

if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).glob("*.wav"))
    clips = pd.DataFrame({"clip_id": [p.stem for p in paths], "path": [str(p) for p in paths]})
    made = store.prepare(clips, Mine("kaldi", 16, 30), name="toy", workers=int(sys.argv[3]))
    print("done", len(made), made.key, flush=True)
"""


def start(tmp_path: Path, pause: float, workers: int = 1, text: str = SCRIPT) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(Path(store.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "corpus"), str(pause), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_preparation_resumes(
    sent: signal.Signals, corpus: pd.DataFrame, tmp_path: Path, private_home: Path, decoded: list[str]
) -> None:
    run = start(tmp_path, pause=0.05)
    wait_for(lambda: len(list(private_home.glob("store/toy-*/shard-*.arrow"))) >= 3)
    run.send_signal(sent)
    printed, _ = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "done" not in printed
    assert not list(private_home.glob("store/toy-*/manifest.json"))
    finished = {path.name: path.stat().st_mtime_ns for path in private_home.glob("store/toy-*/shard-*.arrow")}
    assert len(finished) >= 3
    made = make(corpus)
    assert {name: (made.path / name).stat().st_mtime_ns for name in finished} == finished
    kept = {clip for name in finished for clip in Dataset.from_file(str(made.path / name), in_memory=True)["clip_id"]}
    assert sorted(decoded) == sorted(set(corpus["clip_id"]) - kept)
    assert not list(made.path.glob(".*.part"))
    assert shard_bytes(made) == shard_bytes(
        prepare(corpus, KALDI, name="toy", home=tmp_path / "fresh", workers=1, progress=False)
    )


@pytest.mark.slow
def test_worker_processes_end_with_a_killed_parent(tmp_path: Path, private_home: Path) -> None:
    psutil = pytest.importorskip("psutil")
    write_corpus(tmp_path / "corpus", 120)
    run = start(tmp_path, pause=0.05, workers=2)
    wait_for(lambda: len(list(private_home.glob("store/toy-*/shard-*.arrow"))) >= 3)
    children = psutil.Process(run.pid).children(recursive=True)
    assert len(children) >= 2
    run.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    run.communicate(timeout=60)
    assert not list(private_home.glob("store/toy-*/manifest.json")), "killed before the end"
    finished = {path.name: path.stat().st_mtime_ns for path in private_home.glob("store/toy-*/shard-*.arrow")}
    again = start(tmp_path, pause=0.0, workers=2)
    printed, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    decoded, done = printed.splitlines()[:-1], printed.splitlines()[-1]
    assert done.startswith("done 120")
    assert 0 < len(set(decoded)) == len(decoded) < 120
    assert "are finished already" in told
    assert len(told.splitlines()) == 2
    now = {path.name: path.stat().st_mtime_ns for path in private_home.glob("store/toy-*/shard-*.arrow")}
    assert finished.items() <= now.items()


@pytest.mark.slow
def test_two_processes_at_once_make_one_store(corpus: pd.DataFrame, tmp_path: Path, decoded: list[str]) -> None:
    runs = [start(tmp_path, pause=0.02) for _ in range(2)]
    printed, told = zip(*(run.communicate(timeout=120) for run in runs), strict=True)
    lines = [line for text in printed for line in text.splitlines()]
    assert [run.returncode for run in runs] == [0, 0], told
    ends = {line for line in lines if line.startswith("done")}
    assert len(ends) == 1
    assert sorted(line for line in lines if line not in ends) == sorted(corpus["clip_id"]), "each clip made once"
    made = make(corpus)
    assert not decoded
    assert ends == {f"done {CLIPS} {made.key}"}


@pytest.mark.slow
@pytest.mark.parametrize("needed", [True, False], ids=["workers need the script", "workers do not need it"])
def test_a_script_without_a_main_guard_still_ends_well(needed: bool, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", 80)
    text = SCRIPT.replace('if __name__ == "__main__":', "if True:")
    run = start(tmp_path, pause=0.0, workers=2, text=text if needed else text.replace('Mine("', 'FrontEnd("'))
    printed, told = run.communicate(timeout=120)
    assert run.returncode == 0, told
    assert "done 80" in printed
    assert ("going on in this process" in told) == needed
    assert ("Traceback" in told) == needed


def test_progress_is_two_lines_where_no_terminal_is(corpus: pd.DataFrame, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(corpus, KALDI, name="[toy]", workers=1)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"preparing {CLIPS} clips of [toy]"
    assert lines[1].startswith("preparing [toy] took")
    assert len(lines) == 2
    prepare(corpus, KALDI, name="[toy]", workers=1)
    assert not capfd.readouterr().err


# --------------------------------------------------------------------------------------------------------- real audio


def test_real_clips_of_several_formats(shared: Callable[..., Path]) -> None:
    words = shared("data", "speech_commands_v0.01_sample", "bed")
    sounds = shared("data", "ESC-50", "audio")
    paths = [*sorted(words.glob("*.*"))[:4], *sorted(sounds.glob("*.*"))[:2]]
    clips = pd.DataFrame({"clip_id": [path.stem for path in paths], "path": [str(path) for path in paths]})
    front_end = FrontEnd("kaldi", 128, 512, audio.AUDIOSET_MEAN, audio.AUDIOSET_STD)
    made = make(clips, front_end, "real")
    direct = expected(clips, front_end)
    for clip_id, mel in zip(made.clip_ids, made.mels(range(len(made))), strict=True):
        assert np.abs(mel.numpy() - direct[clip_id]).max() <= 2.0**-7
    assert made.batch(range(len(made))).shape == (len(paths), 512, 128)
