"""Benchmarks described in TOML: the shipped examples on real audio, every field, and every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from audiocl_bench import benchmarks
from audiocl_bench.errors import AudioclError, ConfigError, CorpusError, StreamError, UnknownNameError
from audiocl_bench.own_benchmark import OwnBenchmark

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

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
