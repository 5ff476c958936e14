"""The catalogue of built-in benchmarks, and copies of corpora that differ from the frozen clips."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from audiocl_bench import benchmarks, splits
from audiocl_bench.errors import ConfigError, CorpusError, UnknownNameError

# --- the catalogue ---

# name: classes, sessions, classes per session, clips, E_0 (the table of the six benchmarks)
FACTS = {
    "esc50": (50, 10, 5, 2_000, 10),
    "us8k": (10, 5, 2, 8_732, 15),
    "sc2": (35, 7, 5, 105_829, 1),
    "timit2": (630, 315, 2, 6_300, 30),
    "timit3": (630, 210, 3, 6_300, 30),
    "vocalset": (16, 8, 2, 1_520, 6),
}


def test_catalogue_states_the_published_facts(shared) -> None:
    assert benchmarks.names() == tuple(FACTS)
    with shared("paper", "protocol.csv").open(newline="") as handle:
        for row in csv.DictReader(handle):
            told = benchmarks.get(row["benchmark"]).describe()
            for field in ("classes", "sessions", "classes_per_session", "clips", "first_session_epochs"):
                assert told[field] == int(row[field]), (row["benchmark"], field)


@pytest.mark.parametrize("name", FACTS)
def test_built_in_streams(name: str) -> None:
    classes, sessions, per_session, clips, epochs = FACTS[name]
    benchmark = benchmarks.get(name)
    assert (benchmark.frames, benchmark.first_session_epochs, benchmark.num_orders) == (512, epochs, 5)
    assert (benchmark.protocols, benchmark.own_data, benchmark.source) == (("paper", "grouped"), False, None)
    stream = benchmark.stream("paper", 0)
    assert (stream.num_classes, stream.num_sessions, len(stream.clip_ids)) == (classes, sessions, clips)
    assert set(stream.session_sizes) == {per_session}
    assert stream.benchmark == name
    assert stream == benchmark.stream("paper", 0)
    assert stream.clip_ids == benchmark.stream("paper", 4).clip_ids
    assert len({benchmark.stream(protocol, 0).hash for protocol in benchmark.protocols} | {stream.hash}) == 2
    told = benchmark.describe()
    assert (told["classes"], told["sessions"], told["clips"], told["own_data"]) == (classes, sessions, clips, False)


def test_orders_differ_and_follow_the_files() -> None:
    benchmark = benchmarks.get("us8k")
    streams = [benchmark.stream("paper", order) for order in range(5)]
    assert len({stream.hash for stream in streams}) == 5
    assert [list(stream.classes) for stream in streams] == splits.load_orders("us8k")
    assert benchmarks.get("timit2").stream("paper", 3).classes == benchmarks.get("timit3").stream("paper", 3).classes


def test_sessions_of_the_paper_split_have_its_clip_counts() -> None:
    for name, train, test in [("esc50", 160, 40), ("timit2", 16, 4), ("timit3", 24, 6), ("vocalset", 152, 38)]:
        stream = benchmarks.get(name).stream("paper", 1)
        for t in range(stream.num_sessions):
            assert (len(stream.rows(t, "train")), len(stream.rows(t, "test"))) == (train, test)


@pytest.mark.parametrize("protocol", splits.PROTOCOLS)
@pytest.mark.parametrize(("name", "per_session", "sessions"), [("timit2", 2, 315), ("timit3", 3, 210)])
def test_the_stream_of_630_speakers(name: str, per_session: int, sessions: int, protocol: str) -> None:
    benchmark, orders = benchmarks.get(name), splits.load_orders("timit")
    for order in range(benchmark.num_orders):
        stream = benchmark.stream(protocol, order)
        assert (stream.num_classes, stream.num_sessions, len(stream.clip_ids)) == (630, sessions, 6_300)
        assert list(stream.classes) == orders[order]
        speakers = [clip.partition("/")[0] for clip in stream.clip_ids]
        assert [stream.classes[label] for label in stream.labels] == speakers
        new = [stream.classes[t * per_session : (t + 1) * per_session] for t in range(sessions)]
        assert sum(map(len, new)) == 630
        for t in range(sessions):
            for part, clips_of_one in (("train", 8), ("test", 2)):
                heard = Counter(speakers[row] for row in stream.rows(t, part))
                assert heard == dict.fromkeys(new[t], clips_of_one)
        tested = {clip for clip, test in zip(stream.clip_ids, stream.is_test, strict=True) if test}
        assert len(tested) == 1_260
        if protocol == "grouped":
            assert {clip.partition("/")[2] for clip in tested} == {"SA1", "SA2"}


def test_wrong_names_orders_and_protocols() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean esc50\?"):
        benchmarks.get("esc-50")
    with pytest.raises(ConfigError, match=r"no benchmark file .*nothing\.toml"):
        benchmarks.get("nothing.toml")
    benchmark = benchmarks.get("esc50")
    with pytest.raises(UnknownNameError, match="paper"):
        benchmark.stream("papper", 0)
    for order in (-1, 5):
        with pytest.raises(ConfigError, match="give 0 to 4"):
            benchmark.stream("paper", order)
    with pytest.raises(UnknownNameError, match="grouped"):
        benchmark.open(Path("nowhere"), "group", 0)


# --- a user's copy ---


def frozen_index(corpus: str, *, unused: bool = False) -> pd.DataFrame:
    clips = splits.frozen_clips(corpus)
    if unused:
        clips = pd.concat([clips, splits.unused_clips(corpus)[["clip_id", "label"]]])
    return clips.assign(path=clips["clip_id"] + ".wav", group="", fold="").reset_index(drop=True)


def test_a_true_copy_is_accepted() -> None:
    for name in ("esc50", "timit3", "vocalset"):
        index = frozen_index(benchmarks.get(name).corpus.info.name)
        assert benchmarks.get(name).checked(index) is index
    index = frozen_index("vocalset", unused=True)
    assert len(index) == 3_613
    assert benchmarks.get("vocalset").checked(index) is index


def test_a_different_copy_is_refused_clip_by_clip(private_home: Path) -> None:
    index = frozen_index("esc50")
    dog = index.index[index["label"] == "dog"][0]
    index.loc[dog, "label"] = "cat"
    extra = pd.DataFrame([{"clip_id": "9-1-A-0", "label": "dog", "path": "9-1-A-0.wav", "group": "", "fold": ""}])
    copy = pd.concat([index.drop(index.index[-30:]), extra])
    with pytest.raises(CorpusError) as caught:
        benchmarks.get("esc50").checked(copy)
    message = str(caught.value)
    report = private_home / "reports" / "esc50-differences.txt"
    assert "in 32 clips" in message
    assert str(report) in message
    assert len(message.splitlines()) == 1 + 20 + 1
    assert message.endswith("and 12 more")
    lines = report.read_text().splitlines()
    assert Counter(line.split(":")[0] for line in lines) == {"missing": 30, "extra": 1, "relabelled": 1}
    assert f"relabelled: {index.loc[dog, 'clip_id']} (is cat, should be dog)" in lines
    assert all(f"  {line}" in message for line in lines[:20])


def vocalset_copy(folder: Path) -> Path:
    """All frozen clips of VocalSet as empty files: indexing reads names only."""
    for clip in frozen_index("vocalset")["clip_id"]:
        path = folder / "VocalSet" / "FULL" / f"{clip}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_open_gives_files_for_exactly_the_stream(tmp_path: Path) -> None:
    data = vocalset_copy(tmp_path)
    unused = splits.unused_clips("vocalset")["clip_id"].iloc[0]
    (data / "VocalSet" / "FULL" / f"{unused}.wav").parent.mkdir(parents=True, exist_ok=True)
    (data / "VocalSet" / "FULL" / f"{unused}.wav").touch()
    stream, files = benchmarks.get("vocalset").open(data, "grouped", 2)
    assert stream == benchmarks.get("vocalset").stream("grouped", 2)
    assert list(files.columns) == ["clip_id", "path"]
    assert tuple(files["clip_id"]) == stream.clip_ids
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in files["path"])
    assert all(path.endswith(f"{clip}.flac") for clip, path in zip(files["clip_id"], files["path"], strict=True))
    Path(files["path"].iloc[0]).rename(data / "VocalSet" / "FULL" / "female1" / "scales" / "belt" / "new.wav")
    with pytest.raises(CorpusError, match="in 2 clips"):
        benchmarks.get("vocalset").open(data, "grouped", 2)


def test_timit_opens_from_its_official_layout(tmp_path: Path) -> None:
    clips = frozen_index("timit")
    for number, clip in enumerate(clips["clip_id"]):
        speaker, _, sentence = clip.partition("/")
        folder = tmp_path / "TIMIT" / ("TEST" if speaker[1] < "D" else "TRAIN") / f"DR{number // 10 % 8 + 1}" / speaker
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{sentence}.WAV").touch()
    for name, sessions in (("timit2", 315), ("timit3", 210)):
        stream, files = benchmarks.get(name).open(tmp_path, "grouped", 4)
        assert (stream.num_sessions, len(files), stream.classes) == (
            sessions,
            6_300,
            tuple(splits.load_orders("timit")[4]),
        )
        for clip, path in zip(stream.clip_ids, files["path"], strict=True):
            assert path.endswith(f"/{clip}.WAV")


def test_the_partial_esc50_is_not_the_benchmark(shared) -> None:
    with pytest.raises(CorpusError, match=r"in 1269 clips(?s:.)*missing: 1-100038-A-14"):
        benchmarks.get("esc50").open(shared("data"), "paper", 0)
