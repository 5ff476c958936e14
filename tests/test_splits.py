"""Choosing test clips and class orders, and the frozen split files: properties, facts of the corpora, tampering."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocl_bench import assign, split_rules, splits
from audiocl_bench.errors import StreamError, UnknownNameError
from audiocl_bench.seeding import numpy_generator

# --- choosing test clips ---


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(40, 0.2, 8), (10, 0.2, 2), (95, 0.2, 19), (429, 0.2, 86), (5, 0.5, 3), (5, 0.1, 1), (15, Fraction(1, 10), 2)],
)
def test_share_rounds_half_up(count: int, fraction: float, expected: int) -> None:
    assert assign.share(count, fraction) == expected


@given(counts=st.lists(st.integers(2, 30), min_size=1, max_size=6), percent=st.integers(1, 99), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_stratified_share_of_every_class(counts: list[int], percent: int, seed: int) -> None:
    labels = [f"c{k}" for k, count in enumerate(counts) for _ in range(count)]
    mask = assign.stratified(labels, percent / 100, lambda label: numpy_generator(seed, label))
    for k, count in enumerate(counts):
        chosen = sum(bool(m) for m, label in zip(mask, labels, strict=True) if label == f"c{k}")
        assert chosen == min(max(1, (count * percent + 50) // 100), count - 1)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_groups_inside_classes_never_cross_and_reach_every_class(data: st.DataObject) -> None:
    groups_of = data.draw(st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=6), min_size=1, max_size=5))
    labels = [f"c{k}" for k, sizes in enumerate(groups_of) for size in sizes for _ in range(size)]
    groups = [f"c{k}g{g}" for k, sizes in enumerate(groups_of) for g, size in enumerate(sizes) for _ in range(size)]
    mask = assign.by_groups(labels, groups, 0.25, numpy_generator(data.draw(st.integers(0, 50))))
    test_groups, train_groups = set(np.array(groups)[mask]), set(np.array(groups)[~mask])
    assert not test_groups & train_groups
    assert set(np.array(labels)[mask]) == set(np.array(labels)[~mask]) == set(labels)
    for k, sizes in enumerate(groups_of):
        chosen = int(mask[[label == f"c{k}" for label in labels]].sum())
        target = max(1, assign.share(sum(sizes), 0.25))
        assert chosen <= target or chosen == min(sizes)  # above its target only by the repair pass, and then the least


@pytest.mark.parametrize(
    ("sizes", "allowed"), [([4, 4], {4}), ([2, 2, 4], {2}), ([1, 2, 2, 3], {1, 2}), ([1] * 8, {2})]
)
def test_source_sizes_of_esc50(sizes: list[int], allowed: set[int]) -> None:
    groups = [f"g{g}" for g, size in enumerate(sizes) for _ in range(size)]
    for seed in range(20):
        assert int(assign.by_groups(["c"] * 8, groups, 0.25, numpy_generator(seed)).sum()) in allowed


def test_groups_across_classes_give_every_class_the_same_share() -> None:
    rows = [(f"word{w}", f"speaker{s}") for w in range(7) for s in range(30)]
    mask = assign.by_groups([r[0] for r in rows], [r[1] for r in rows], 0.33, numpy_generator(3))
    assert Counter(r[0] for r, m in zip(rows, mask, strict=True) if m) == {f"word{w}": 10 for w in range(7)}
    assert len({r[1] for r, m in zip(rows, mask, strict=True) if m}) == 10


def test_a_class_that_cannot_be_split_by_group_is_named() -> None:
    with pytest.raises(StreamError, match=r"class 'b' has a single group .*split_within"):
        assign.by_groups(["a", "a", "b", "b"], ["1", "2", "3", "3"], 0.5, numpy_generator(0))
    with pytest.raises(StreamError, match="class 'a' gets no test clips, because each of its 2 groups"):
        assign.by_groups(["a", "a", "b", "c"], ["1", "2", "1", "2"], 0.5, numpy_generator(0))


def test_class_orders_are_distinct_permutations() -> None:
    orders = assign.class_orders({"a", "b", "c"}, 6, lambda number, attempt: numpy_generator(0, number, attempt))
    assert sorted(map(tuple, orders)) == sorted(set(map(tuple, orders)))
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    with pytest.raises(StreamError, match="only 6 different orders"):
        assign.class_orders({"a", "b", "c"}, 7, lambda number, attempt: numpy_generator(0, number, attempt))


# --- the frozen files ---

# corpus: classes, clips, then (train, test) of paper and grouped
FACTS = {
    "esc50": (50, 2_000, (1_600, 400), (1_598, 400)),
    "us8k": (10, 8_732, (6_985, 1_747), (7_000, 1_653)),
    "sc2": (35, 105_829, (84_663, 21_166), (84_843, 20_986)),
    "timit": (630, 6_300, (5_040, 1_260), (5_040, 1_260)),
    "vocalset": (16, 1_520, (1_216, 304), (1_159, 361)),
}


@pytest.mark.parametrize("corpus", FACTS)
def test_frozen_counts(corpus: str) -> None:
    classes, clips, *parts = FACTS[corpus]
    assert len(splits.frozen_clips(corpus)) == clips
    for protocol, (train, test) in zip(splits.PROTOCOLS, parts, strict=True):
        table = splits.load(corpus, protocol)
        assert list(table.columns) == ["clip_id", "label", "part"]
        assert table["clip_id"].is_unique
        assert table["clip_id"].tolist() == sorted(table["clip_id"])
        assert table["part"].value_counts().to_dict() == {"train": train, "test": test}
        assert table.groupby("label")["part"].nunique().eq(2).all()
        assert table["label"].nunique() == classes
    orders = splits.load_orders(corpus)
    assert len({tuple(order) for order in orders}) == 5
    assert all(sorted(order) == sorted(set(table["label"])) for order in orders)


@pytest.mark.parametrize(("corpus", "per_class"), [("esc50", 8), ("timit", 2), ("vocalset", 19)])
def test_paper_test_clips_per_class(corpus: str, per_class: int) -> None:
    table = splits.load(corpus, "paper")
    assert set(table[table["part"] == "test"]["label"].value_counts()) == {per_class}


@pytest.mark.parametrize("corpus", ["us8k", "sc2"])
def test_paper_test_clips_are_a_fifth_of_uneven_classes(corpus: str) -> None:
    table = splits.load(corpus, "paper")
    for _, clips in table.groupby("label"):
        assert (clips["part"] == "test").sum() == (2 * len(clips) + 5) // 10


def group_of(corpus: str, clip_id: str) -> str:
    """What may not be on both sides, read off the clip id."""
    if corpus == "esc50":
        return clip_id.split("-")[1]
    if corpus == "us8k":
        return clip_id.split("/")[1].split("-")[0]
    if corpus == "sc2":
        return clip_id.split("/")[1].split("_nohash_")[0]
    return clip_id.split("/")[1 if corpus == "timit" else 0]  # timit: sentence; vocalset: singer


@pytest.mark.parametrize("corpus", FACTS)
def test_grouped_has_nothing_related_on_both_sides(corpus: str) -> None:
    table = splits.load(corpus, "grouped")
    sides = {part: {group_of(corpus, clip) for clip in rows["clip_id"]} for part, rows in table.groupby("part")}
    assert not sides["train"] & sides["test"]


def test_grouped_test_sides_are_the_official_ones() -> None:
    def test_ids(corpus: str) -> list[str]:
        table = splits.load(corpus, "grouped")
        return table[table["part"] == "test"]["clip_id"].tolist()

    assert {clip[0] for clip in test_ids("esc50")} == {"5"}
    folds = Counter(clip.split("/")[0] for clip in test_ids("us8k"))
    assert folds == {"fold9": 816, "fold10": 837}
    assert {group_of("timit", clip) for clip in test_ids("timit")} == {"SA1", "SA2"}
    singers = {group_of("vocalset", clip) for clip in test_ids("vocalset")}
    assert singers == {"female2", "female8", "male3", "male5", "male10"}


def test_vocalset_pool() -> None:
    table = splits.load("vocalset", "paper")
    assert set(table["label"].value_counts()) == {95}
    assert "spoken" not in set(table["label"])
    assert not table["clip_id"].str.endswith("(1)").any()
    assert set(splits.load("vocalset", "grouped")["clip_id"]) == set(table["clip_id"])
    unused = splits.unused_clips("vocalset")
    assert not set(unused["clip_id"]) & set(table["clip_id"])
    assert unused["reason"].value_counts().to_dict() == {
        "not drawn": 2_070,
        "technique not used": 20,
        "byte-identical copy": 3,
    }
    assert splits.unused_clips("esc50").empty


def test_files_use_lf_and_index_lists_all(tmp_path: Path) -> None:
    folder = splits.splits_dir()
    index = splits.read_index()
    files = {p.relative_to(folder).as_posix() for suffix in ("csv", "json") for p in folder.glob(f"*/*.{suffix}")}
    assert set(index["files"]) == files
    assert not any(b"\r" in (folder / name).read_bytes() for name in files)
    assert index["corpora"]["esc50"]["grouped"]["test"] == 400


def test_frozen_files_stay_frozen() -> None:
    """Published results name these splits: a change here makes them incomparable, and must never happen in passing."""
    index = (splits.splits_dir() / "index.json").read_bytes()
    assert hashlib.sha256(index).hexdigest() == "88e7c424b4ad2293383f1e0a869a63a53baa92385362d11d08e088a9dd5f0dc6"
    official = {name: sha for name, sha in splits.read_index()["files"].items() if not name.startswith("mini-")}
    # The official ones must stay even where a miniature has to change.
    digest = hashlib.sha256(json.dumps(official, sort_keys=True).encode()).hexdigest()
    assert digest == "1be9667c241d5f03fb2a4b81e1a12e62d244a35c015b0c2ac3204e792babaddd"
    for name, expected in splits.read_index()["files"].items():
        assert hashlib.sha256((splits.splits_dir() / name).read_bytes()).hexdigest() == expected


def test_regenerated_splits_are_byte_identical(shared, tmp_path: Path) -> None:
    manifests = shared("manifests")
    written = splits.build(manifests, tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in written} == {*splits.read_index()["files"], "index.json"}
    for path in written:
        assert path.read_bytes() == (splits.splits_dir() / path.relative_to(tmp_path)).read_bytes()
    (tmp_path / "timit/orders.json").unlink()
    (tmp_path / "esc50/old.csv").write_text("x")
    swapped = (tmp_path / "us8k/paper.csv").read_text().replace(",test", ",train", 1)
    (tmp_path / "us8k/paper.csv").write_text(swapped)
    told = splits.verify(manifests, tmp_path)
    assert [line.split(":")[0] for line in told] == ["timit/orders.json", "us8k/paper.csv", "esc50/old.csv"]
    assert "missing" in told[0]
    assert "differs from line" in told[1]


def test_grouped_agrees_with_the_manifest_groups(shared) -> None:
    for corpus in split_rules.CORPORA:
        tables = split_rules.corpus_tables(corpus, shared("manifests"))
        grouped = tables.grouped.merge(tables.groups, on="clip_id")
        assert grouped.groupby("group")["part"].nunique().eq(1).all()
        assert len(grouped) == len(tables.grouped)


def test_changed_or_missing_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    (folder / "esc50").mkdir(parents=True)
    shutil.copy(splits.splits_dir() / "index.json", folder)
    for name in ("paper.csv", "orders.json"):
        shutil.copy(splits.splits_dir() / "esc50" / name, folder / "esc50")
    assert len(splits.load("esc50", "paper", folder)) == 2_000
    path = folder / "esc50/paper.csv"
    path.write_bytes(path.read_bytes().replace(b",test", b",train", 1))
    with pytest.raises(StreamError, match=r"paper\.csv was changed .*audiocl splits build"):
        splits.load("esc50", "paper", folder)
    with pytest.raises(StreamError, match=r"grouped\.csv cannot be read"):
        splits.load("esc50", "grouped", folder)
    with pytest.raises(StreamError, match=r"index\.json is missing"):
        splits.load_orders("esc50", tmp_path)
    (folder / "index.json").write_text(json.dumps({"format": 2, "files": {}}))
    with pytest.raises(StreamError, match="split format 1"):
        splits.load_orders("esc50", folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(StreamError, match="cannot be read"):
        splits.load_orders("esc50", folder)


def test_wrong_names_and_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="grouped"):
        splits.load("esc50", "group")
    with pytest.raises(UnknownNameError, match="esc50"):
        splits.load("esc-50", "paper")
    with pytest.raises(StreamError, match="--manifests"):
        splits.build(tmp_path, tmp_path / "out")
    (tmp_path / "esc50.csv").write_text("filename,fold\na.wav,1\n")
    with pytest.raises(StreamError, match="no column 'category'"):
        splits.build(tmp_path, tmp_path / "out")
    columns = "filename,fold,category,src_file\n"
    (tmp_path / "esc50.csv").write_text(columns + "a.wav,1,dog,1\n" * 2)
    with pytest.raises(StreamError, match="'a' twice"):
        splits.build(tmp_path, tmp_path / "out")
    (tmp_path / "esc50.csv").write_text(columns + "a.wav,1,dog,1\nb.wav,2,dog,2\n")
    with pytest.raises(StreamError, match="different orders"):
        splits.build(tmp_path, tmp_path / "out")
