"""Corpora: official layouts with their known irregularities, own data, the index hash, and helpful messages."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocl_bench import audio, corpora
from audiocl_bench.corpora.base import COLUMNS, Clip, audio_suffix, make_index, stem, walk_files
from audiocl_bench.corpora.own import CsvCorpus, FolderCorpus
from audiocl_bench.errors import ConfigError, CorpusError, UnknownNameError

Shared = Callable[..., Path]
SUFFIXES = (".wav", ".flac", ".ogg", ".opus")


def touch(root: Path, *paths: str, content: bytes = b"RIFF") -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def text(root: Path, path: str, *lines: str) -> Path:
    return touch(root, path, content="".join(f"{line}\n" for line in lines).encode())


def rows(index: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    assert tuple(index.columns) == COLUMNS
    assert index["clip_id"].tolist() == sorted(index["clip_id"])
    assert index.index.equals(pd.RangeIndex(len(index)))
    return {row[0]: tuple(row[1:]) for row in index.itertuples(index=False)}


def manifest(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


ESC_HEAD = "filename,fold,target,category,esc10,src_file,take"
ESC_ROWS = ("1-100032-A-0.wav,1,0,dog,True,100032,A", "4-2-B-14.wav,4,14,chirping_birds,False,2,B")
US_HEAD = "slice_file_name,fsID,start,end,salience,fold,classID,class"
US_ROWS = ("100032-3-0-0.wav,100032,0,0.317551,1,5,3,dog_bark", "9-2-0-1.wav,9,0,4,1,10,2,children_playing")


def esc50(root: Path, *suffixes: str) -> Path:
    text(root, "meta/esc50.csv", ESC_HEAD, *ESC_ROWS)
    first, second = suffixes or (".wav", ".wav")
    return touch(root, f"audio/1-100032-A-0{first}", f"audio/4-2-B-14{second}")


def us8k(root: Path) -> Path:
    text(root, "metadata/UrbanSound8K.csv", US_HEAD, *US_ROWS)
    return touch(root, "audio/fold5/100032-3-0-0.wav", "audio/fold10/9-2-0-1.wav")


def sc2(root: Path) -> Path:
    text(root, "testing_list.txt", "backward/0165e0e8_nohash_0.wav", "", "bed/absent_nohash_0.wav")
    text(root, "validation_list.txt", "bed/b2_nohash_1.wav")
    touch(root, "backward/0165e0e8_nohash_0.wav", "bed/b2_nohash_1.wav", "bed/b2_nohash_0.wav")
    return touch(
        root, "_background_noise_/pink_noise.wav", "LICENSE", "README.md", ".DS_Store", "bed/._b2_nohash_0.wav"
    )


def timit(root: Path) -> Path:
    touch(root, "TRAIN/DR1/FCJF0/SA1.WAV", "TRAIN/DR1/FCJF0/SI1027.WAV", "TEST/DR?/MXYZ0/SA1.WAV", content=b"NIST_1A\n")
    return touch(root, "TRAIN/DR1/FCJF0/SA1.TXT", "TRAIN/DR1/FCJF0/SA1.PHN", "README.DOC")


def vocalset(root: Path) -> Path:
    return touch(
        root,
        "FULL/female1/arpeggios/belt/f1_arpeggios_belt_c_a.wav",
        "FULL/female2/arpeggios/vibrado/f2_arpeggios_vibrato_a.wav",
        "FULL/female2/scales/straight/f2_scales_straight_u(1).wav",
        "FULL/female7/long_tones/trillo/f7_ long_trillo_a.wav",
        "__MACOSX/FULL/female1/arpeggios/belt/f1_arpeggios_belt_c_a.wav",
        "FULL/.DS_Store",
    )


TREES: dict[str, Callable[[Path], Path]] = {
    "esc50": esc50,
    "us8k": us8k,
    "sc2": sc2,
    "timit": timit,
    "vocalset": vocalset,
}
EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "esc50": {
        "1-100032-A-0": ("audio/1-100032-A-0.wav", "dog", "100032", "1"),
        "4-2-B-14": ("audio/4-2-B-14.wav", "chirping_birds", "2", "4"),
    },
    "us8k": {
        "fold5/100032-3-0-0": ("audio/fold5/100032-3-0-0.wav", "dog_bark", "100032", "5"),
        "fold10/9-2-0-1": ("audio/fold10/9-2-0-1.wav", "children_playing", "9", "10"),
    },
    "sc2": {
        "backward/0165e0e8_nohash_0": ("backward/0165e0e8_nohash_0.wav", "backward", "0165e0e8", "testing"),
        "bed/b2_nohash_0": ("bed/b2_nohash_0.wav", "bed", "b2", "training"),
        "bed/b2_nohash_1": ("bed/b2_nohash_1.wav", "bed", "b2", "validation"),
    },
    "timit": {
        "FCJF0/SA1": ("TRAIN/DR1/FCJF0/SA1.WAV", "FCJF0", "SA1", "TRAIN"),
        "FCJF0/SI1027": ("TRAIN/DR1/FCJF0/SI1027.WAV", "FCJF0", "SI1027", "TRAIN"),
        "MXYZ0/SA1": ("TEST/DR?/MXYZ0/SA1.WAV", "MXYZ0", "SA1", "TEST"),
    },
    "vocalset": {
        "female1/arpeggios/belt/f1_arpeggios_belt_c_a": (
            "FULL/female1/arpeggios/belt/f1_arpeggios_belt_c_a.wav",
            "belt",
            "female1",
            "",
        ),
        "female2/arpeggios/vibrado/f2_arpeggios_vibrato_a": (
            "FULL/female2/arpeggios/vibrado/f2_arpeggios_vibrato_a.wav",
            "vibrato",
            "female2",
            "",
        ),
        "female2/scales/straight/f2_scales_straight_u(1)": (
            "FULL/female2/scales/straight/f2_scales_straight_u(1).wav",
            "straight",
            "female2",
            "",
        ),
        "female7/long_tones/trillo/f7_ long_trillo_a": (
            "FULL/female7/long_tones/trillo/f7_ long_trillo_a.wav",
            "trillo",
            "female7",
            "",
        ),
    },
}


# The registry and the cards


def test_every_corpus_has_a_complete_card() -> None:
    assert corpora.names() == ("esc50", "us8k", "sc2", "timit", "vocalset")
    for name in corpora.names():
        info = corpora.get(name).info
        assert info.name == name
        assert info.homepage.startswith("https://")
        assert info.citation.startswith("@")
        assert info.citation.count("{") == info.citation.count("}")
        assert f"audiocl data {'add' if info.needs_registration else 'get'} {info.name} " in info.how_to_get
        assert "--data DIR`" in info.how_to_get
        assert all((info.title, info.folder, info.licence))
        assert info.needs_registration == (name == "timit")


def test_unknown_corpus_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="esc50"):
        corpora.get("esc5")


# Layouts


@pytest.mark.parametrize("name", TREES)
def test_official_layout(name: str, tmp_path: Path) -> None:
    assert rows(corpora.get(name).index(TREES[name](tmp_path))) == EXPECTED[name]


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("suffix", [".flac", ".OGG", ".opus", ".Wav"])
def test_reencoded_copy_has_the_same_hash(name: str, suffix: str, tmp_path: Path) -> None:
    corpus = corpora.get(name)
    original = corpus.index(TREES[name](tmp_path / "a"))
    root = TREES[name](tmp_path / "b")
    for path in [root / path for path in walk_files(root) if audio_suffix(path)]:
        path.write_bytes(b"other bytes")
        path.rename(path.with_name(path.name[: -len(audio_suffix(path.name))] + suffix))
    copy = corpus.index(root)
    assert all(path.endswith(suffix) for path in copy["path"])
    assert corpora.index_hash(copy) == corpora.index_hash(original)
    assert corpora.differences(copy, original) == []


@pytest.mark.parametrize("name", ["esc50", "us8k", "sc2", "vocalset"])
def test_two_files_of_one_clip_are_refused(name: str, tmp_path: Path) -> None:
    root = TREES[name](tmp_path)
    path = next(iter(EXPECTED[name].values()))[0]
    twin = path.removesuffix(".wav") + ".flac"
    touch(root, twin)
    with pytest.raises(CorpusError) as caught:
        corpora.get(name).index(root)
    assert str(root / path) in str(caught.value)
    assert str(root / twin) in str(caught.value)


@pytest.mark.parametrize("name", ["esc50", "us8k", "sc2", "timit", "vocalset"])
def test_audio_outside_the_layout_is_named(name: str, tmp_path: Path) -> None:
    root = TREES[name](tmp_path)
    stray = {"esc50": "audio/mine.wav", "us8k": "audio/fold1/mine.wav", "sc2": "mine.wav", "timit": "TRAIN/mine.wav"}
    path = stray.get(name, "FULL/female1/mine.wav")
    touch(root, path)
    with pytest.raises(CorpusError, match=re.escape(str(root / path))):
        corpora.get(name).index(root)


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        ("train/dr1/fcjf0", "sa1.wav"),
        ("Train/Dr1/Fcjf0", "Sa1.WAV"),
        ("data/TRAIN/DR1/FCJF0", "SA1.WAV.wav"),
        ("timit/TIMIT/train/dr1/fcjf0", "sa1.WAV.wav"),
        ("TIMIT/TRAIN/DR1/FCJF0", "SA1.flac"),
    ],
)
def test_timit_in_any_letter_case_and_nesting(folders: str, sentence: str, tmp_path: Path) -> None:
    index = corpora.get("timit").index(touch(tmp_path, f"{folders}/{sentence}"))
    assert rows(index) == {"FCJF0/SA1": (f"{folders}/{sentence}", "FCJF0", "SA1", "TRAIN")}


def test_timit_takes_riff_of_the_twofold_copy(tmp_path: Path) -> None:
    folder = "data/TEST/DR4/MGMM0"
    touch(tmp_path, f"{folder}/SA1.WAV", f"{folder}/SX1.WAV", content=b"NIST_1A\n   1024\n")
    touch(tmp_path, f"{folder}/SA1.WAV.wav", f"{folder}/SX1.WAV.wav", content=b"RIFF....WAVE")
    index = corpora.get("timit").index(tmp_path)
    assert index["clip_id"].tolist() == ["MGMM0/SA1", "MGMM0/SX1"]
    assert index["path"].tolist() == [f"{folder}/SA1.WAV.wav", f"{folder}/SX1.WAV.wav"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("TRAIN/DR1/A/SA1.WAV", b"NIST"), ("TRAIN/DR1/A/SA1.flac", b"fLaC")),
        (("TRAIN/DR1/A/SA1.WAV", b"RIFF"), ("TRAIN/DR1/A/SA1.WAV.wav", b"RIFF")),
        (("TRAIN/DR1/A/SA1.WAV", b"NIST"), ("TEST/DR1/A/SA1.WAV", b"RIFF")),
    ],
)
def test_timit_refuses_other_twins(first: tuple[str, bytes], second: tuple[str, bytes], tmp_path: Path) -> None:
    for path, content in (first, second):
        touch(tmp_path, path, content=content)
    with pytest.raises(CorpusError, match="A/SA1") as caught:
        corpora.get("timit").index(tmp_path)
    assert first[0] in str(caught.value)
    assert second[0] in str(caught.value)


def test_sc2_refuses_lists_that_contradict(tmp_path: Path) -> None:
    root = sc2(tmp_path)
    text(root, "validation_list.txt", "backward/0165e0e8_nohash_0.wav")
    with pytest.raises(CorpusError, match="backward/0165e0e8_nohash_0"):
        corpora.get("sc2").index(root)


# Partial, broken and missing copies


@pytest.mark.parametrize("name", ["esc50", "us8k"])
def test_partial_copy_lists_what_is_there(name: str, tmp_path: Path) -> None:
    corpus = corpora.get(name)
    full = corpus.index(TREES[name](tmp_path))
    gone = full.iloc[0]
    (tmp_path / gone["path"]).unlink()
    part = corpus.index(tmp_path)
    assert part["clip_id"].tolist() == full["clip_id"].tolist()[1:]
    assert corpora.differences(part, full) == [f"missing: {gone['clip_id']}"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("esc50", "meta/esc50.csv"),
        ("us8k", "metadata/UrbanSound8K.csv"),
        ("sc2", "testing_list.txt"),
        ("sc2", "validation_list.txt"),
    ],
)
def test_missing_metadata_is_named_with_the_way_out(name: str, part: str, tmp_path: Path) -> None:
    corpus = corpora.get(name)
    root = TREES[name](tmp_path / corpus.info.folder)
    (root / part).unlink()
    for call in (lambda: corpus.index(root), lambda: corpus.find(tmp_path)):
        with pytest.raises(CorpusError) as caught:
            call()
        message = str(caught.value)
        assert part in message
        assert str(root) in message
        assert corpus.info.how_to_get.split("DIR")[0] in message
        assert "audiocl run --data" in message


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ((ESC_HEAD.replace("category", "class"), ESC_ROWS[0]), "no column 'category'"),
        ((ESC_HEAD, ESC_ROWS[0], ESC_ROWS[0]), "twice"),
        ((ESC_HEAD, ESC_ROWS[0] + ",more"), "line 2 has 8 cells for 7 columns"),
        ((ESC_HEAD,), "no rows"),
        (("",), "no columns"),
        ((ESC_HEAD, '"open'), "not a UTF-8 CSV file"),
        ((ESC_HEAD, ESC_ROWS[0].replace("dog", "")), "empty label"),
    ],
)
def test_broken_metadata(lines: tuple[str, ...], told: str, tmp_path: Path) -> None:
    root = esc50(tmp_path)
    (root / "audio/4-2-B-14.wav").unlink()
    text(root, "meta/esc50.csv", *lines)
    with pytest.raises(CorpusError, match=told):
        corpora.get("esc50").index(root)


def test_metadata_that_is_not_utf8_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    root = esc50(tmp_path)
    table = root / "meta/esc50.csv"
    original = table.read_bytes()
    table.write_bytes(b"\xef\xbb\xbf" + original.replace(b"\n", b"\r\n"))
    assert rows(corpora.get("esc50").index(root)) == EXPECTED["esc50"]
    table.write_bytes(original.replace(b"dog", b"d\xf6g"))
    with pytest.raises(CorpusError, match=r"esc50\.csv is not a UTF-8 CSV"):
        corpora.get("esc50").index(root)


@pytest.mark.parametrize("name", TREES)
def test_corpus_that_is_nowhere(name: str, tmp_path: Path, private_home: Path) -> None:
    corpus = corpora.get(name)
    with pytest.raises(CorpusError) as caught:
        corpus.find(tmp_path)
    message = str(caught.value)
    assert str(tmp_path / corpus.info.folder) in message
    assert str(private_home / "data" / corpus.info.folder) in message
    assert corpus.info.how_to_get.replace("DIR", str(tmp_path)) in message
    assert f"audiocl run --data {tmp_path} ..." in message
    with pytest.raises(CorpusError, match=r"audiocl run --data DIR \.\.\."):
        corpus.find(None)
    with pytest.raises(CorpusError, match="is not a directory"):
        corpus.find(tmp_path / "no_such")
    with pytest.raises(CorpusError, match="is not a directory"):
        corpus.index(tmp_path / "no_such")


def test_layout_without_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "FULL/male1").mkdir(parents=True)
    with pytest.raises(CorpusError, match="holds no audio"):
        corpora.get("vocalset").index(tmp_path)


@pytest.mark.parametrize("name", TREES)
def test_find_in_the_data_folder_in_itself_and_in_the_cache(name: str, tmp_path: Path, private_home: Path) -> None:
    corpus = corpora.get(name)
    other_case = TREES[name](tmp_path / "data" / corpus.info.folder.swapcase())
    assert corpus.find(tmp_path / "data") == other_case
    assert corpus.find(other_case) == other_case
    with pytest.raises(CorpusError):
        corpus.find(None)
    cached = TREES[name](private_home / "data" / corpus.info.folder)
    assert corpus.find(None) == cached
    (tmp_path / "empty").mkdir()
    assert corpus.find(tmp_path / "empty") == cached
    assert corpus.find(other_case) == other_case


def test_find_knows_the_folder_of_the_github_archive(tmp_path: Path) -> None:
    assert corpora.get("esc50").find(esc50(tmp_path / "ESC-50-master").parent) == tmp_path / "ESC-50-master"


def test_links_are_followed_and_broken_ones_named(tmp_path: Path) -> None:
    root = vocalset(tmp_path / "store")
    (tmp_path / "VocalSet").symlink_to(root)
    assert len(corpora.get("vocalset").index(tmp_path / "VocalSet")) == 4
    loop = root / "FULL/female1/back"
    loop.symlink_to(root / "FULL")
    with pytest.raises(CorpusError, match="link to a folder above"):
        corpora.get("vocalset").index(root)
    loop.unlink()
    (root / "FULL/female1/arpeggios/belt/gone.wav").symlink_to(tmp_path / "nowhere.wav")
    with pytest.raises(CorpusError, match=r"gone\.wav is a link to audio that is not there"):
        corpora.get("vocalset").index(root)


# The index, its hash and differences


CLIPS = st.dictionaries(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1), st.sampled_from("abc")
)


@settings(max_examples=50, deadline=None)
@given(CLIPS, st.randoms(use_true_random=False))
def test_hash_depends_on_ids_and_labels_only(labels: dict[str, str], rng: random.Random) -> None:
    def index(items: Iterable[tuple[str, str]], extra: str) -> pd.DataFrame:
        return make_index(Clip(clip_id, f"{extra}{clip_id}.wav", label, extra, extra) for clip_id, label in items)

    items = list(labels.items())
    first = index(items, "x")
    rng.shuffle(items)
    assert corpora.index_hash(index(items, "y")) == corpora.index_hash(first)
    assert corpora.index_hash(first.iloc[::-1]) == corpora.index_hash(first)
    assert corpora.differences(index(items, "y"), first) == []
    if items:
        clip_id, label = items[0]
        relabelled = index([(clip_id, label + "z"), *items[1:]], "x")
        assert corpora.index_hash(relabelled) != corpora.index_hash(first)
        assert corpora.index_hash(index(items[1:], "x")) != corpora.index_hash(first)
        assert corpora.differences(relabelled, first) == [f"relabelled: {clip_id} (is {label}z, should be {label})"]


def test_hash_is_the_documented_one() -> None:
    index = make_index([Clip("b", "b.wav", "dog"), Clip("a", "a.wav", "cat")])
    # printf 'a\tcat\nb\tdog\n' | sha256sum
    assert corpora.index_hash(index) == "29f0f32ed757c87d5a1cdfe03df0f5dbc66777472eececba16f727c142617dea"


def test_differences_name_every_kind() -> None:
    index = make_index([Clip("a", "a.wav", "cat"), Clip("b", "b.wav", "dog"), Clip("d", "d.wav", "cow")])
    expected = pd.DataFrame({"clip_id": ["c", "b", "a"], "label": ["cat", "owl", "cat"]})
    assert corpora.differences(index, expected) == [
        "relabelled: b (is dog, should be owl)",
        "missing: c",
        "extra: d",
    ]


@pytest.mark.parametrize("name", ["a\tb.wav", "a\nb.wav", b"a\xff.wav".decode("utf-8", "surrogateescape")])
def test_names_that_would_break_split_files_are_refused(name: str) -> None:
    with pytest.raises(CorpusError, match="rename it"):
        make_index([Clip(stem(name), name, "x")])


@settings(max_examples=50, deadline=None)
@given(
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.sampled_from(SUFFIXES), st.booleans()
)
def test_stem_drops_one_audio_suffix_in_any_case(name: str, suffix: str, upper: bool) -> None:
    assert stem(name + (suffix.upper() if upper else suffix)) == name
    assert stem(f"{name}.v2{suffix}") == f"{name}.v2"
    assert stem(f"{name}.txt") == f"{name}.txt"


def test_stem_is_the_same_for_both_unicode_forms() -> None:
    assert stem("e\u0301.wav") == stem("\u00e9.flac") == "\u00e9"


# SPHERE


def test_audio_reads_sphere_as_timit_ships_it(tmp_path: Path) -> None:
    samples = (2000 * np.sin(np.arange(8000) / 5)).astype("<i2")
    head = (
        "NIST_1A\n   1024\ndatabase_id -s5 TIMIT\ndatabase_version -s3 1.0\nutterance_id -s8 cjf0_sa1\n"
        f"channel_count -i 1\nsample_count -i {len(samples)}\nsample_rate -i 16000\nsample_min -i -2000\n"
        "sample_max -i 2000\nsample_n_bytes -i 2\nsample_byte_format -s2 01\nsample_sig_bits -i 16\nend_head\n"
    )
    touch(tmp_path, "TRAIN/DR1/FCJF0/SA1.WAV", content=head.encode().ljust(1024) + samples.tobytes())
    index = corpora.get("timit").index(tmp_path)
    wave = audio.load(tmp_path / index["path"][0])
    assert np.array_equal(wave.numpy(), samples.astype(np.float32) / 32768)


# The manifests: names as they are published


def test_ids_of_the_published_names(tmp_path: Path, shared: Shared) -> None:
    wanted = {
        "esc50": "1-100032-A-0",
        "us8k": "fold5/100032-3-0-0",
        "sc2": "backward/0165e0e8_nohash_0",
        "timit": "FCJF0/SA1",
        "vocalset": "female1/arpeggios/belt/f1_arpeggios_belt_c_a",
    }
    for name, clip_id in wanted.items():
        table = shared("manifests", f"{name}.csv")
        # Every 40th name, so that all parts of a corpus occur, and the irregular names of VocalSet.
        some = [
            row
            for i, row in enumerate(manifest(table))
            if i % 40 == 0 or re.search(r"[ (]|vibrado", row.get("path", ""))
        ]
        root = tmp_path / name
        if name in ("esc50", "us8k"):
            touch(
                root, "meta/esc50.csv" if name == "esc50" else "metadata/UrbanSound8K.csv", content=table.read_bytes()
            )
        if name == "esc50":
            expected = {stem(r["filename"]): (r["category"], r["src_file"], r["fold"]) for r in some}
            touch(root, *(f"audio/{r['filename']}" for r in some))
        elif name == "us8k":
            expected = {
                f"fold{r['fold']}/{stem(r['slice_file_name'])}": (r["class"], r["fsID"], r["fold"]) for r in some
            }
            touch(root, *(f"audio/fold{r['fold']}/{r['slice_file_name']}" for r in some))
        else:
            touch(root, *(r["path"] for r in some))
        if name == "sc2":
            for fold in ("testing", "validation"):
                text(root, f"{fold}_list.txt", *(r["path"] for r in some if r["official_split"] == fold))
            expected = {stem(r["path"]): (r["word"], r["speaker"], r["official_split"]) for r in some}
        elif name == "timit":
            expected = {f"{r['speaker']}/{r['sentence']}": (r["speaker"], r["sentence"], r["split"]) for r in some}
        elif name == "vocalset":
            expected = {stem(r["path"]).removeprefix("FULL/"): (r["technique"], r["singer"], "") for r in some}
            assert sum("vibrado" in key for key in expected) == 6
        assert len(expected) == len(some)
        assert clip_id in expected
        found = rows(corpora.get(name).index(root))
        assert {key: row[1:] for key, row in found.items()} == expected


# Real audio


def test_real_esc50_subset(shared: Shared) -> None:
    root = shared("data", "ESC-50")
    corpus = corpora.get("esc50")
    assert corpus.find(root.parent) == root
    index = corpus.index(root)
    assert len(index) == 731
    assert (index["fold"] == "4").sum() == 400
    assert set(index[index["fold"] == "4"].groupby("label").size()) == {8}
    full = pd.DataFrame(
        [(stem(row["filename"]), row["category"]) for row in manifest(shared("manifests", "esc50.csv"))],
        columns=["clip_id", "label"],
    )
    lines = corpora.differences(index, full)
    assert len(lines) == 2000 - 731
    assert all(line.startswith("missing: ") for line in lines)
    assert len(audio.load(root / index["path"][0])) > 16_000


def test_real_esc50_fold_as_own_data(shared: Shared) -> None:
    root = shared("data", "ESC-50")
    fields: dict[str, Any] = {
        "csv": "meta/esc50.csv",
        "path": "audio/{filename}",
        "label": "category",
        "group": "src_file",
        "fold": "fold",
    }
    own = CsvCorpus(root, **fields, where={"fold": "4"})
    index = own.index(own.find(None))
    assert len(index) == 400
    assert index["label"].nunique() == 50
    assert set(index["fold"]) == {"4"}
    everything = CsvCorpus(root, **fields, missing="skip").index(root)
    assert len(everything) == 731
    with pytest.raises(CorpusError, match=r"names 1,269 clips that have no audio file"):
        CsvCorpus(root, **fields).index(root)


def test_real_arabic_keywords_and_speakers(shared: Shared) -> None:
    root = shared("data", "arabic_speech_commands")
    words = FolderCorpus(root, group_regex=r"(\d+)_NO_").index(root)
    assert len(words) == 2400
    assert words["label"].nunique() == 40
    assert "zoom in" in set(words["label"])
    assert set(words.groupby("label").size()) == {60}
    assert words["group"].nunique() == 30
    speakers = FolderCorpus(root, label_regex=r"(\d+)_NO_", group_regex=r"^(?P<word>[^/]+)/").index(root)
    assert set(speakers.groupby("label").size()) == {80}
    assert speakers["group"].tolist() == words["label"].tolist()
    assert speakers["label"].tolist() == words["group"].tolist()


def test_real_speech_commands_sample(shared: Shared) -> None:
    root = shared("data", "speech_commands_v0.01_sample")
    index = corpora.get("sc2").index(corpora.get("sc2").find(root))
    assert len(index) == 300
    assert set(index.groupby("label").size()) == {10}
    lists = {
        fold: set((root / f"{fold}_list.txt").read_text(encoding="utf-8").split()) for fold in ("testing", "validation")
    }
    for fold, path in zip(index["fold"], index["path"], strict=True):
        assert fold == next((name for name, listed in lists.items() if path in listed), "training")
    assert not set(index[index["fold"] == "testing"]["group"]) & set(index[index["fold"] == "training"]["group"])


# Own data: folders


def own_tree(root: Path) -> Path:
    return touch(
        root, "dog/rex_1.wav", "dog/more/rex_2.flac", "cat/tom_1.OGG", "cat/.hidden.wav", "LICENSE", "cat/notes.txt"
    )


def test_folder_corpus(tmp_path: Path) -> None:
    own_tree(tmp_path)
    index = FolderCorpus(tmp_path, group_regex=r"([a-z]+)_\d", fold_regex=r"(?P<fold>\d)$").index(tmp_path)
    assert rows(index) == {
        "cat/tom_1": ("cat/tom_1.OGG", "cat", "tom", "1"),
        "dog/more/rex_2": ("dog/more/rex_2.flac", "dog", "rex", "2"),
        "dog/rex_1": ("dog/rex_1.wav", "dog", "rex", "1"),
    }


def test_named_group_of_the_field_wins(tmp_path: Path) -> None:
    regex = r"^(\w+)/.*?(?P<group>[a-z]+)_(?P<label>\d)$"
    index = FolderCorpus(own_tree(tmp_path), label_regex=regex, group_regex=regex).index(tmp_path)
    assert index["label"].tolist() == ["1", "2", "1"]
    assert index["group"].tolist() == ["tom", "rex", "rex"]


def test_folder_filter(tmp_path: Path) -> None:
    own_tree(tmp_path)
    assert len(FolderCorpus(tmp_path, where={"label": "dog"}).index(tmp_path)) == 2
    both = FolderCorpus(tmp_path, fold_regex=r"(\d)$", where={"label": ["dog", "cat"], "fold": 1})
    assert both.index(tmp_path)["clip_id"].tolist() == ["cat/tom_1", "dog/rex_1"]
    with pytest.raises(CorpusError, match="'cow' fits no clip"):
        FolderCorpus(tmp_path, where={"label": ["dog", "cow"]}).index(tmp_path)
    with pytest.raises(CorpusError, match=r"no clip of .* fits all"):
        FolderCorpus(tmp_path, fold_regex=r"(\d)$", where={"label": "cat", "fold": 2}).index(tmp_path)
    with pytest.raises(UnknownNameError, match="label"):
        FolderCorpus(tmp_path, where={"lable": "dog"})


@pytest.mark.parametrize(
    ("paths", "options", "told"),
    [
        ([], {}, "holds no audio"),
        (["LICENSE"], {}, "holds no audio"),
        (["x.wav", "a/y.wav"], {}, r"x\.wav has no label"),
        (["a/x.wav", "a/x.flac"], {}, "a/x"),
        (["a/x.wav", "a/y.mp3"], {}, r"y\.mp3 is audio in a format that is not read"),
        (["a/x1.wav", "a/y.wav"], {"label_regex": r"(\d)"}, r"label_regex .* finds no label in 'a/y'.*a/y\.wav"),
        (["a/x1.wav", "a/y.wav"], {"group_regex": r"(\d)"}, r"group_regex .* finds no group in 'a/y'"),
        (["a/x1.wav", "a/y.wav"], {"fold_regex": r"y|x(\d)"}, r"fold_regex .* finds no fold in 'a/y'"),
        (["a/x.wav"], {"label_regex": r"(z*)"}, "finds no label"),
    ],
)
def test_folder_problems(paths: list[str], options: dict[str, Any], told: str, tmp_path: Path) -> None:
    touch(tmp_path, *paths)
    with pytest.raises(CorpusError, match=told):
        FolderCorpus(tmp_path, **options).index(tmp_path)


@pytest.mark.parametrize("options", [{"label_regex": "("}, {"group_regex": "abc"}, {"where": {"label": []}}])
def test_folder_description_is_checked_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        FolderCorpus(tmp_path, **options)


def test_own_root_is_found(tmp_path: Path) -> None:
    root = own_tree(tmp_path / "data" / "pets")
    assert FolderCorpus(root).find(None) == root
    assert FolderCorpus(root).find(tmp_path) == root
    assert FolderCorpus(Path("pets")).find(tmp_path / "data") == root
    assert FolderCorpus(Path("pets")).find(root) == root
    with pytest.raises(CorpusError, match="pets"):
        FolderCorpus(Path("pets")).find(tmp_path)
    with pytest.raises(CorpusError, match="not a directory"):
        FolderCorpus(Path("pets")).index(tmp_path / "pets")


# Own data: tables


def table(root: Path, *lines: str) -> Path:
    return text(root, "list.csv", "file,what,who,part", *lines)


def csv_corpus(root: Path, **options: Any) -> CsvCorpus:
    fields: dict[str, Any] = {"csv": "list.csv", "path": "clips/{part}/{file}", "label": "what"}
    return CsvCorpus(root, **(fields | options))


def test_csv_corpus(tmp_path: Path) -> None:
    table(tmp_path, "a.wav,dog,rex,1", "b, cat ,tom,1", "c.mp3,cat,tom,2", '"d, e.v2.wav",dog,rex,2')
    touch(tmp_path, "clips/1/a.flac", "clips/1/b.ogg", "clips/2/c.opus", "clips/2/d, e.v2.WAV", "clips/2/unlisted.wav")
    index = csv_corpus(tmp_path, group="who", fold_regex=r"clips/(\d)/").index(tmp_path)
    assert rows(index) == {
        "clips/1/a": ("clips/1/a.flac", "dog", "rex", "1"),
        "clips/1/b": ("clips/1/b.ogg", "cat", "tom", "1"),
        "clips/2/c": ("clips/2/c.opus", "cat", "tom", "2"),
        "clips/2/d, e.v2": ("clips/2/d, e.v2.WAV", "dog", "rex", "2"),
    }
    kept = csv_corpus(tmp_path, where={"what": "dog", "part": [1, 2]}).index(tmp_path)
    assert kept["clip_id"].tolist() == ["clips/1/a", "clips/2/d, e.v2"]


def test_tsv_and_audio_beside_the_table(tmp_path: Path) -> None:
    text(tmp_path, "list.tsv", "file\twhat", "a.wav\tdog")
    touch(tmp_path, "a.wav")
    index = csv_corpus(tmp_path, csv="list.tsv", path="{file}").index(tmp_path)
    assert rows(index) == {"a": ("a.wav", "dog", "", "")}


@pytest.mark.parametrize(
    ("lines", "options", "told"),
    [
        (
            ["a.wav,dog,rex,1", "b.wav,dog,rex,1"],
            {},
            r"names 1 clips that have no audio file .*clips/1/b.*missing = 'skip'",
        ),
        (["b.wav,dog,rex,1"], {"missing": "skip"}, "none of the 1 clips"),
        (["a.wav,dog,rex,1", "a.flac,dog,rex,1"], {}, "lines 2 and 3 are both the clip 'clips/1/a'"),
        (["a.wav,,rex,1"], {}, "line 2 has no label: fill in the column 'what'"),
        (["a.wav,dog,,1"], {"group": "who"}, "line 2 has no group"),
        (["a.wav,dog,rex,1"], {"where": {"part": "7"}}, r"where\.part = '7' fits no clip"),
        (["../../../x.wav,dog,rex,1"], {}, "no path below the corpus root"),
        (["/etc/x.wav,dog,rex,1"], {"path": "{file}"}, "no path below the corpus root"),
        (["twin.wav,dog,rex,1"], {}, "would both be the clip 'clips/1/twin'"),
        (["a.wav,dog,rex,1"], {"group_regex": r"(\d\d)"}, "group_regex .* finds no group in 'clips/1/a'"),
        (["a.wav,dog,rex,1"], {"csv": "no.csv"}, r"no\.csv cannot be read"),
    ],
)
def test_csv_problems(lines: list[str], options: dict[str, Any], told: str, tmp_path: Path) -> None:
    table(tmp_path, *lines)
    touch(tmp_path, "clips/1/a.wav", "clips/1/twin.wav", "clips/1/twin.flac")
    with pytest.raises(CorpusError, match=told):
        csv_corpus(tmp_path, **options).index(tmp_path)


@pytest.mark.parametrize(
    "options", [{"label": "whta"}, {"group": "whoo"}, {"path": "clips/{fil}"}, {"where": {"parts": "1"}}]
)
def test_csv_unknown_column_suggests_the_nearest(options: dict[str, Any], tmp_path: Path) -> None:
    table(tmp_path, "a.wav,dog,rex,1")
    with pytest.raises(UnknownNameError, match=r"list\.csv.*did you mean"):
        csv_corpus(tmp_path, **options).index(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        {"label": None},
        {"label_regex": "(x)"},
        {"group": "who", "group_regex": "(x)"},
        {"missing": "ignore"},
        {"path": "clips/a.wav"},
        {"delimiter": ";;"},
    ],
)
def test_csv_description_is_checked_at_once(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        csv_corpus(tmp_path, **options)


def test_reencoded_real_audio_decodes(tmp_path: Path) -> None:
    """The accepted suffixes are formats that really decode, Opus in its own suffix included."""
    wave = 0.1 * np.sin(np.arange(16_000) / 20).astype(np.float32)
    for suffix, form, kind in ((".wav", "WAV", "PCM_16"), (".flac", "FLAC", "PCM_16"), (".ogg", "OGG", "VORBIS")):
        (tmp_path / "a").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "a" / f"x{suffix[1:]}{suffix}", wave, 16_000, format=form, subtype=kind)
    soundfile.write(tmp_path / "a" / "xopus.opus", wave, 16_000, format="OGG", subtype="OPUS")
    index = FolderCorpus(tmp_path).index(tmp_path)
    assert len(index) == 4
    for path in index["path"]:
        assert abs(len(audio.load(tmp_path / path)) - 16_000) < 400
