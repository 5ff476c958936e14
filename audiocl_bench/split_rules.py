"""How the frozen splits of the five corpora are derived from their file manifests, and those of their miniatures.

`corpus_tables` is the whole recipe; `splits` writes its output down and reads it back. A benchmark never calls this at
run time: what counts is the frozen file. The rules (spec: the six benchmarks, "Two split protocols"):

paper    stratified 8:2 at random: round-half-up(0.2 n) test clips of every class.
grouped  nothing related on both sides. esc50: test = fold 5; us8k: test = folds 9 and 10; sc2: test = the official
         testing and validation lists; timit: test = sentences SA1 and SA2; vocalset: test = the official test singers.

Two corpora need more than the rule says, because their own folds are not clean:

- ESC-50 and UrbanSound8K have recordings (Freesound ids) that sit in a test fold and in a training fold, under
  different labels: 209698 and 234879 in ESC-50, 180937 in UrbanSound8K. The official test folds stay whole, so that
  numbers stay comparable; the clips of those recordings in the training folds (2 and 79) are left out of `grouped`.
- VocalSet: `spoken` is dropped, byte-identical copies (`...(1).wav`) are dropped, and 95 clips per technique are
  drawn, as many as the smallest technique has. Both protocols share this pool of 1,520 clips: the official test
  singers have 17 to 29 of each technique's 95 clips, about as many as the 19 of `paper`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import pandas as pd

from audiocl_bench import assign
from audiocl_bench.errors import StreamError
from audiocl_bench.mini.catalogue import PREFIX, recipe
from audiocl_bench.mini.catalogue import names as mini_names
from audiocl_bench.seeding import numpy_generator

SEED = 260203355
"""The seed of every draw: the paper's arXiv number, 2602.03355, without the dot."""

TEST_FRACTION = Fraction(1, 5)
VOCALSET_CLIPS_PER_CLASS = 95
NUM_ORDERS = 5


@dataclass(frozen=True)
class Rule:
    """What makes a clip a test clip under `grouped`, and in words, of the corpus and of its miniature."""

    is_test: Callable[[pd.DataFrame], pd.Series]
    text: str
    mini_text: str


@dataclass(frozen=True)
class CorpusTables:
    """Everything frozen about one corpus.

    Attributes:
        paper, grouped: clip_id, label, part; sorted by clip_id.
        unused: clip_id, label, reason: clips of the official corpus that no split uses.
        orders: class orders, each a list of all class names.
        grouped_rule: the rule of `grouped` in words.
        groups: clip_id, group: what may not be on both sides of `grouped` (not written; for checks).
    """

    paper: pd.DataFrame
    grouped: pd.DataFrame
    unused: pd.DataFrame
    orders: list[list[str]]
    grouped_rule: str
    groups: pd.DataFrame


def corpus_tables(corpus: str, manifests: Path) -> CorpusTables:
    """Derive the frozen tables of `corpus` from its manifest. Deterministic: depends on the manifest's content alone.

    Raises:
        StreamError: the manifest is missing, lacks a column, or names a clip twice.
    """
    clips = _READERS[corpus](manifests).sort_values("clip_id", ignore_index=True)
    if clips["clip_id"].duplicated().any():
        twice = clips.loc[clips["clip_id"].duplicated(), "clip_id"].iloc[0]
        raise StreamError(f"{manifests / corpus}.csv names clip '{twice}' twice: use the manifest as shipped.")
    used = clips[clips["unused"] == ""].reset_index(drop=True)
    unused = clips[clips["unused"] != ""].reset_index(drop=True)
    labels = used["label"].tolist()
    paper = assign.stratified(
        labels, TEST_FRACTION, lambda label: numpy_generator(SEED, "splits", corpus, "paper", label)
    )
    rule = GROUPED_RULES[corpus.removeprefix(PREFIX)]
    in_test = rule.is_test(used).astype(bool)
    # A group that reaches the test side is not allowed on the training side: its training clips are left out.
    keep = in_test | ~used["group"].isin(set(used.loc[in_test, "group"]))
    return CorpusTables(
        paper=_table(used, pd.Series(paper)),
        grouped=_table(used[keep].reset_index(drop=True), in_test[keep].reset_index(drop=True)),
        unused=unused[["clip_id", "label", "unused"]].rename(columns={"unused": "reason"}),
        orders=assign.class_orders(
            set(labels), NUM_ORDERS, lambda number, attempt: numpy_generator(SEED, "orders", corpus, number, attempt)
        ),
        grouped_rule=rule.text if corpus in GROUPED_RULES else rule.mini_text,
        groups=used[["clip_id", "group"]],
    )


def _table(clips: pd.DataFrame, is_test: pd.Series) -> pd.DataFrame:
    return clips[["clip_id", "label"]].assign(part=is_test.map({True: "test", False: "train"}))


def _manifest(manifests: Path, name: str, *columns: str) -> pd.DataFrame:
    path = manifests / f"{name}.csv"
    try:
        # Everything is text: "1e5" is a speaker and "nan" could be a word.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as cause:
        raise StreamError(f"no manifest {path}: point --manifests at the folder that holds {name}.csv.") from cause
    except (OSError, ValueError) as cause:
        raise StreamError(f"{path} cannot be read as CSV ({cause}): use the manifest as shipped.") from cause
    for column in columns:
        if column not in table.columns:
            raise StreamError(f"{path} has no column '{column}': use the manifest as shipped.")
    return table


def _clips(clip_id: pd.Series, label: pd.Series, group: pd.Series, fold: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"clip_id": clip_id, "label": label, "group": group, "fold": fold, "unused": ""})


def _stem(paths: pd.Series) -> pd.Series:
    return paths.str.replace(r"\.[^./]+$", "", regex=True)


def _esc50(manifests: Path) -> pd.DataFrame:
    rows = _manifest(manifests, "esc50", "filename", "fold", "category", "src_file")
    return _clips(_stem(rows["filename"]), rows["category"], rows["src_file"], rows["fold"])


def _us8k(manifests: Path) -> pd.DataFrame:
    rows = _manifest(manifests, "us8k", "slice_file_name", "fsID", "fold", "class")
    clip_id = "fold" + rows["fold"] + "/" + _stem(rows["slice_file_name"])
    return _clips(clip_id, rows["class"], rows["fsID"], rows["fold"])


def _sc2(manifests: Path) -> pd.DataFrame:
    rows = _manifest(manifests, "sc2", "path", "word", "speaker", "official_split")
    return _clips(_stem(rows["path"]), rows["word"], rows["speaker"], rows["official_split"])


def _timit(manifests: Path) -> pd.DataFrame:
    rows = _manifest(manifests, "timit", "speaker", "sentence")
    speaker, sentence = rows["speaker"].str.upper(), rows["sentence"].str.upper()
    return _clips(speaker + "/" + sentence, speaker, sentence, sentence)


def _vocalset(manifests: Path) -> pd.DataFrame:
    rows = _manifest(manifests, "vocalset", "path", "singer", "technique")
    extra = _manifest(manifests, "vocalset_extra", "path", "official_split")
    rows = rows.merge(extra, on="path", how="left", validate="one_to_one")
    clip_id = _stem(rows["path"]).str.removeprefix("FULL/")
    clips = _clips(clip_id, rows["technique"], rows["singer"], rows["official_split"])
    clips = clips.sort_values("clip_id", ignore_index=True)  # the draw below depends on the order
    clips.loc[clips["label"] == "spoken", "unused"] = "technique not used"
    clips.loc[clips["clip_id"].str.endswith("(1)"), "unused"] = "byte-identical copy"
    for label, able in clips[clips["unused"] == ""].groupby("label"):
        drawn = assign.shuffled(able.index.tolist(), numpy_generator(SEED, "splits", "vocalset", "pool", str(label)))
        clips.loc[drawn[VOCALSET_CLIPS_PER_CLASS:], "unused"] = "not drawn"
    return clips


def _mini(corpus: str, manifests: Path) -> pd.DataFrame:
    """List a miniature's clips; they follow from the code, so no manifest is read."""
    specs = pd.DataFrame([(s.clip_id, s.label, s.group, s.fold) for s in recipe(corpus).specs()])
    return _clips(*(specs[column] for column in range(4)))


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "esc50": _esc50,
    "us8k": _us8k,
    "sc2": _sc2,
    "timit": _timit,
    "vocalset": _vocalset,
    **{name: partial(_mini, name) for name in mini_names()},
}

GROUPED_RULES: dict[str, Rule] = {
    "esc50": Rule(
        lambda c: c["fold"] == "5",
        "test = fold 5; training clips of its recordings left out",
        "test = fold 5 (sources disjoint)",
    ),
    "us8k": Rule(
        lambda c: c["fold"].isin(["9", "10"]),
        "test = folds 9 and 10; training clips of their recordings left out",
        "test = folds 9 and 10 (recordings disjoint)",
    ),
    "sc2": Rule(
        lambda c: c["fold"] != "training",
        "test = official testing and validation lists (speakers disjoint)",
        "test = testing and validation voices (voices disjoint)",
    ),
    "timit": Rule(
        lambda c: c["fold"].isin(["SA1", "SA2"]),
        "test = sentences SA1 and SA2 (text unseen in training)",
        "test = sentences SA1 and SA2 (text unseen in training)",
    ),
    "vocalset": Rule(
        lambda c: c["fold"] == "test",
        "test = official test singers (singers disjoint)",
        "test = test singers (singers disjoint)",
    ),
}
CORPORA = tuple(_READERS)
PAPER_RULE = "stratified per class, 8:2 at random"
