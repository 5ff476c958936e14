"""The catalogue, copies of corpora that differ from the frozen clips, and benchmarks described in TOML."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from audiocl_bench import benchmarks, splits
from audiocl_bench.errors import AudioclError, ConfigError, CorpusError, StreamError, UnknownNameError
from audiocl_bench.own_benchmark import OwnBenchmark

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

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


def test_the_partial_esc50_is_not_the_benchmark(shared) -> None:
    with pytest.raises(CorpusError, match=r"in 1269 clips(?s:.)*missing: 1-100038-A-14"):
        benchmarks.get("esc50").open(shared("data"), "paper", 0)


# --- the examples, on real audio ---


def opened(name: str, shared) -> tuple[OwnBenchmark, pd.DataFrame, pd.DataFrame, object]:
    benchmark = benchmarks.get(str(EXAMPLES / f"{name}.toml"))
    assert isinstance(benchmark, OwnBenchmark)
    stream, files = benchmark.open(shared("data"), "own", 0)
    index = benchmark.corpus.index(benchmark.find(shared("data")))
    assert index["clip_id"].tolist() == list(stream.clip_ids)
    return benchmark, index, files, stream


def sides(index: pd.DataFrame, is_test: np.ndarray, column: str) -> tuple[set[str], set[str]]:
    return set(index[~is_test][column]), set(index[is_test][column])


def test_example_esc50_fold4(shared) -> None:
    benchmark, index, files, stream = opened("esc50_fold4", shared)
    assert (stream.num_sessions, set(stream.session_sizes), len(files)) == (10, {5}, 400)
    assert benchmark.frames == 512
    assert 90 <= stream.is_test.sum() <= 110
    washing = (index["label"] == "washing_machine").to_numpy()
    assert stream.is_test[washing].sum() == 2
    train, test = sides(index[~washing], stream.is_test[~washing], "group")
    assert not train & test


@pytest.mark.parametrize(
    ("name", "sessions", "classes", "test_clips", "test_groups"),
    [("arabic_keywords", 8, 40, 800, 10), ("arabic_speakers", 15, 30, 600, 10)],
)
def test_examples_arabic(name, sessions, classes, test_clips, test_groups, shared) -> None:
    benchmark, index, files, stream = opened(name, shared)
    assert (stream.num_sessions, stream.num_classes, len(files)) == (sessions, classes, 2_400)
    assert (int(stream.is_test.sum()), benchmark.frames) == (test_clips, 112)
    assert set(np.bincount(stream.labels[stream.is_test])) == {20}
    train, test = sides(index, stream.is_test, "group")
    assert len(test) == test_groups
    assert not train & test
    seconds = [soundfile.info(path).duration for path in files["path"][:40]]
    assert max(seconds) <= benchmark.frames / 100


# --- TOML descriptions ---

GOOD = {
    "benchmark": 'name = "toy"',
    "corpus": 'kind = "folder"\nroot = "clips"\ngroup_regex = "s([0-9])"\nfold_regex = "_f([0-9])"',
    "stream": "classes_per_session = 2",
    "test": 'rule = "fraction"\nfraction = 0.25',
}


def write(folder: Path, **sections: str | None) -> str:
    """Write a description; by default a good one over 5 classes x 4 speakers x 2 folds of (empty) files."""
    for name in "abcde":
        for speaker in range(4):
            for fold in range(2):
                path = folder / "clips" / name / f"s{speaker}_f{fold}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    text = "\n".join(f"[{name}]\n{body}" for name, body in (GOOD | sections).items() if body is not None)
    (folder / "toy.toml").write_text(text)
    return str(folder / "toy.toml")


def test_defaults_and_stream_of_a_minimal_description(tmp_path: Path) -> None:
    benchmark = benchmarks.get(write(tmp_path))
    told = benchmark.describe()
    assert (told["title"], told["frames"], told["first_session_epochs"], told["orders"]) == ("toy", 512, 10, 5)
    assert (told["protocols"], told["own_data"], told["source"]) == (["own"], True, str(tmp_path / "toy.toml"))
    assert (told["licence"], told["classes"], told["sessions"]) == ("not stated", None, None)
    stream, files = benchmark.open(None, "own", 0)
    assert (stream.session_sizes, len(files), int(stream.is_test.sum())) == ((2, 2, 1), 40, 10)
    assert stream == benchmarks.get(str(tmp_path / "toy.toml")).open(None, "own", 0)[0]
    assert len({benchmark.open(None, "own", order)[0].classes for order in range(5)}) == 5
    with pytest.raises(ConfigError, match="follows from its data"):
        benchmark.stream("own", 0)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ('rule = "fold"\nfolds = [1]', lambda clip: clip.endswith("_f1")),
        ('rule = "fold"\nfolds = ["0"]', lambda clip: clip.endswith("_f0")),
        ('rule = "groups"\ngroups = ["0", "3"]', lambda clip: "s0" in clip or "s3" in clip),
    ],
)
def test_explicit_test_sides(test: str, expected, tmp_path: Path) -> None:
    stream, _ = benchmarks.get(write(tmp_path, test=test)).open(None, "own", 0)
    assert stream.is_test.tolist() == [expected(clip) for clip in stream.clip_ids]


def test_seeds_choose_other_groups(tmp_path: Path) -> None:
    chosen = set()
    for seed in range(8):
        rule = f'rule = "groups"\nfraction = 0.25\nseed = {seed}'
        stream, _ = benchmarks.get(write(tmp_path, test=rule)).open(None, "own", 0)
        groups = {clip.split("/")[1][:2] for clip, test in zip(stream.clip_ids, stream.is_test, strict=True) if test}
        assert len(groups) == 1  # a quarter of four speakers, and the same one in every class
        chosen |= groups
    assert len(chosen) > 1


def test_explicit_orders_and_sizes(tmp_path: Path) -> None:
    orders = '[["e", "d", "c", "b", "a"], ["a", "b", "c", "d", "e"]]'
    text = f"classes_per_session = [3, 1, 1]\norders = {orders}\ninput_seconds = 1.13"
    benchmark = benchmarks.get(write(tmp_path, stream=text))
    stream, _ = benchmark.open(None, "own", 0)
    assert (stream.classes, stream.session_sizes) == (tuple("edcba"), (3, 1, 1))
    assert benchmark.open(None, "own", 1)[0].classes == tuple("abcde")
    assert (benchmark.frames, benchmark.num_orders) == (128, 2)
    assert (benchmark.describe()["classes"], benchmark.describe()["sessions"]) == (5, 3)


@pytest.mark.parametrize(
    ("seconds", "frames"), [(5.12, 512), (1.0, 112), (1.12, 112), (1.121, 112), (1.13, 128), (0.01, 16)]
)
def test_frames_are_whole_patches(seconds: float, frames: int, tmp_path: Path) -> None:
    text = f"classes_per_session = 1\ninput_seconds = {seconds}"
    assert benchmarks.get(write(tmp_path, stream=text)).frames == frames


def test_where_data_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DATA", str(tmp_path))
    corpus = GOOD["corpus"].replace('"clips"', '"$TOY_DATA/clips"')
    path = write(tmp_path, corpus=corpus)
    benchmark = benchmarks.get(path)
    assert benchmark.find(None) == tmp_path / "clips"
    assert benchmark.find(tmp_path) == tmp_path / "clips"
    assert benchmark.find(tmp_path / "clips") == tmp_path / "clips"
    with pytest.raises(CorpusError, match="--data"):
        benchmark.find(tmp_path / "nowhere")
    monkeypatch.delenv("TOY_DATA")
    with pytest.raises(ConfigError, match="TOY_DATA"):
        benchmarks.get(path)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"stream": None}, "has no section [stream]"),
        ({"streams": "x = 1"}, "did you mean stream?"),
        ({"benchmark": 'title = "x"'}, "[benchmark]: field 'name' is missing"),
        ({"benchmark": 'name = "Toy one"'}, "field 'name' must be a short name"),
        ({"benchmark": 'name = "esc50"'}, "another name than a built-in"),
        ({"benchmark": 'name = "toy"\ntitel = "x"'}, "did you mean title?"),
        ({"corpus": 'root = "clips"'}, "field 'kind' is missing"),
        ({"corpus": 'kind = "zip"\nroot = "clips"'}, '"folder" or "csv"'),
        ({"corpus": 'kind = "folder"\nroot = 3'}, "field 'root' must be a text"),
        ({"corpus": 'kind = "folder"\nroot = "clips"\nlabel = "x"'}, 'belongs to kind = "csv"'),
        ({"corpus": 'kind = "csv"\nroot = "clips"\npath = "{x}"'}, "field 'csv' is missing"),
        ({"corpus": 'kind = "csv"\nroot = "."\ncsv = "x"\npath = "{x}"'}, "has no label"),
        ({"corpus": 'kind = "folder"\nroot = "clips"\ngroup_regex = "("'}, "regular expression"),
        ({"corpus": 'kind = "folder"\nroot = "clips"\nwhere = { label = [] }'}, "field 'where' must be a table"),
        ({"stream": "orders = 2"}, "'classes_per_session' is missing"),
        ({"stream": "classes_per_sesion = 2"}, "did you mean classes_per_session?"),
        ({"stream": "classes_per_session = true"}, "whole number of at least 1"),
        ({"stream": "classes_per_session = [2, 0]"}, "whole number of at least 1"),
        ({"stream": "classes_per_session = 2\norders = 0"}, "a number of orders"),
        ({"stream": 'classes_per_session = 2\norders = [["a", "a"]]'}, "names each thing once"),
        ({"stream": "classes_per_session = 2\ninput_seconds = 0"}, "seconds above 0"),
        ({"stream": "classes_per_session = 2\ninput_seconds = inf"}, "seconds above 0"),
        ({"stream": "classes_per_session = 2\nfirst_session_epochs = 1.5"}, "field 'first_session_epochs'"),
        ({"test": "fraction = 0.2"}, "field 'rule' is missing"),
        ({"test": 'rule = "random"'}, '"fraction" or "fold" or "groups"'),
        ({"test": 'rule = "fraction"'}, "field 'fraction' is missing"),
        ({"test": 'rule = "fraction"\nfraction = 1'}, "between 0 and 1"),
        ({"test": 'rule = "fraction"\nfraction = 0.2\nseed = -1'}, "at least 0"),
        ({"test": 'rule = "fraction"\nfraction = 0.2\nfolds = [1]'}, "'folds' has no meaning"),
        ({"test": 'rule = "fold"'}, "field 'folds' is missing"),
        ({"test": 'rule = "fold"\nfolds = [true]'}, "a list of names"),
        ({"test": 'rule = "groups"\ngroups = ["1"]\nfraction = 0.2'}, "'fraction' has no meaning beside"),
        ({"test": 'rule = "groups"\ngroups = ["1"]\nsplit_within = ["a"]'}, "field 'fraction' is missing"),
        (
            {"corpus": 'kind = "folder"\nroot = "clips"', "test": 'rule = "groups"\nfraction = 0.2'},
            "needs the group of every clip: add group_regex",
        ),
    ],
)
def test_mistakes_get_one_sentence_with_file_and_field(sections: dict, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, **sections)
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        benchmarks.get(path)
    assert told in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_toml(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[benchmark\n")
    with pytest.raises(ConfigError, match="no valid TOML"):
        benchmarks.get(str(tmp_path / "x.toml"))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"stream": "classes_per_session = [2, 2]"}, "lists 4 classes in 2 sessions, but there are 5"),
        ({"stream": "classes_per_session = 2\norders = 121"}, "only 120 different orders"),
        ({"stream": 'classes_per_session = 2\norders = [["a", "b"]]'}, "lacks class 'c'"),
        ({"stream": 'classes_per_session = 2\norders = [["a", "b", "c", "d", "e", "f"]]'}, "'f'"),
        ({"test": 'rule = "fold"\nfolds = [7]'}, "unknown fold '7'"),
        ({"test": 'rule = "fold"\nfolds = [0, 1]'}, "has no train clips"),
        ({"test": 'rule = "groups"\ngroups = ["9"]'}, "unknown group '9'"),
        ({"test": 'rule = "groups"\nfraction = 0.2\nsplit_within = ["q"]'}, "'q'"),
        ({"test": 'rule = "groups"\nfraction = 0.2\nsplit_within = ["a"]'}, "has 4 groups and can be split by group"),
    ],
)
def test_rules_that_do_not_fit_the_data(sections: dict, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, **sections)
    with pytest.raises(AudioclError) as caught:
        benchmarks.get(path).open(None, "own", 0)
    assert told in str(caught.value)
    assert path in str(caught.value)


def test_split_within_is_for_a_class_of_one_own_group(tmp_path: Path) -> None:
    corpus = 'kind = "folder"\nroot = "clips"\ngroup_regex = "^(lone|[a-e]/s[0-9])"'
    rule = 'rule = "groups"\nfraction = 0.25'
    path = write(tmp_path, corpus=corpus, test=rule)
    for i in range(8):
        (tmp_path / "clips" / "lone").mkdir(exist_ok=True)
        (tmp_path / "clips" / "lone" / f"{i}.wav").touch()
    with pytest.raises(StreamError, match=r"class 'lone' has a single group \('lone'\).*split_within"):
        benchmarks.get(path).open(None, "own", 0)
    path = write(tmp_path, corpus=corpus, test=rule + '\nsplit_within = ["lone"]')
    stream, _ = benchmarks.get(path).open(None, "own", 0)
    assert stream.is_test[stream.labels == stream.classes.index("lone")].sum() == 2
    shared_group = 'kind = "folder"\nroot = "clips"\ngroup_regex = "(lon|[a-d]/s[0-9]|e/s[1-3]|.$)"'
    path = write(tmp_path, corpus=shared_group, test=rule + '\nsplit_within = ["lone"]')
    (tmp_path / "clips" / "e" / "lon_s9.wav").touch()
    with pytest.raises(StreamError, match="also holds clips of 'e'"):
        benchmarks.get(path).open(None, "own", 0)


def test_csv_description(tmp_path: Path) -> None:
    split_of = ("fit", "fit", "eval", "dev")
    rows = [(f"{word}{i}", word, split_of[i]) for word in ("no", "yes") for i in range(4)]
    (tmp_path / "set" / "wav").mkdir(parents=True)
    for name, _, _ in rows:
        (tmp_path / "set" / "wav" / f"{name}.flac").touch()
    table = "file,word,split\n" + "".join(f"{name}.wav,{word},{split}\n" for name, word, split in rows)
    (tmp_path / "set" / "list.csv").write_text(table)
    corpus = 'kind = "csv"\nroot = "set"\ncsv = "list.csv"\npath = "wav/{file}"\nlabel = "word"\nfold = "split"\n'
    stream_text = "classes_per_session = 1\norders = 2"
    test = 'rule = "fold"\nfolds = ["eval"]'
    path = write(tmp_path, corpus=corpus + 'where = { split = ["fit", "eval"] }', stream=stream_text, test=test)
    stream, files = benchmarks.get(path).open(None, "own", 0)
    assert sorted(stream.clip_ids) == sorted(f"wav/{word}{i}" for word in ("no", "yes") for i in range(3))
    assert [clip for clip, test in zip(stream.clip_ids, stream.is_test, strict=True) if test] == ["wav/no2", "wav/yes2"]
    assert all(Path(path).is_file() for path in files["path"])
