"""The frozen splits: written once from the manifests, verified on every load.

Layout of the folder (`files.splits_dir()`), all files UTF-8 with LF line ends:

    index.json              SHA-256 of every other file, and counts
    <corpus>/paper.csv      clip_id,label,part; sorted by clip_id
    <corpus>/grouped.csv    the same for the other protocol
    <corpus>/unused.csv     clip_id,label,reason: official clips that no split uses (only if there are any)
    <corpus>/orders.json    five class orders: lists of class names (timit2 and timit3 share those of timit)
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from audiocl_bench.errors import StreamError, unknown_name
from audiocl_bench.files import sha256_file, sha256_text, splits_dir, write_text
from audiocl_bench.split_rules import CORPORA, PAPER_RULE, SEED, CorpusTables, corpus_tables

PROTOCOLS = ("paper", "grouped")
INDEX = "index.json"
_FORMAT = 1
_REBUILD = "restore it from the release, or rebuild all splits with `audiocl splits build`"


def build(manifests: Path, out: Path) -> list[Path]:
    """Write all frozen splits and `index.json` below `out`; equal manifests give equal bytes.

    Returns:
        The written files, sorted.

    Raises:
        StreamError: a manifest is missing or damaged, or `out` cannot be written.
    """
    written = []
    for name, text in _texts(manifests).items():
        write_text(out / name, text, error=StreamError)
        written.append(out / name)
    return sorted(written)


def verify(manifests: Path, folder: Path | None = None) -> list[str]:
    """Regenerate the splits in memory and compare them with the frozen files, byte by byte.

    Args:
        manifests: folder of the manifests.
        folder: folder of the frozen splits; default `files.splits_dir()`.

    Returns:
        One line per difference ("esc50/paper.csv: differs ..."); empty if all files are equal.
    """
    folder = splits_dir() if folder is None else folder
    texts = _texts(manifests)
    differences = []
    for name, text in sorted(texts.items()):
        path = folder / name
        if not path.is_file():
            differences.append(f"{name}: missing")
        elif (data := path.read_bytes()) != text.encode("utf-8"):
            differences.append(f"{name}: {_first_difference(data, text.encode('utf-8'))}")
    kept = {path.relative_to(folder).as_posix() for pattern in ("*/*.csv", "*/*.json") for path in folder.glob(pattern)}
    differences += [f"{name}: is not part of the splits" for name in sorted(kept - set(texts))]
    return differences


def load(corpus: str, protocol: str, folder: Path | None = None) -> pd.DataFrame:
    """Read one frozen split: columns clip_id, label, part ("train" | "test"), sorted by clip_id.

    Raises:
        UnknownNameError: no such corpus or protocol.
        StreamError: the file is missing or its SHA-256 is not the one in `index.json`.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("split protocol", protocol, PROTOCOLS)
    return _read_csv(_checked(corpus, f"{protocol}.csv", folder))


def load_orders(corpus: str, folder: Path | None = None) -> list[list[str]]:
    """Read the frozen class orders of a corpus. Raises as `load` does."""
    orders: list[list[str]] = json.loads(_checked(corpus, "orders.json", folder).read_bytes())
    return orders


def frozen_clips(corpus: str, folder: Path | None = None) -> pd.DataFrame:
    """Return clip_id and label of every clip that any split of the corpus uses, sorted. Raises as `load` does."""
    both = pd.concat([load(corpus, protocol, folder) for protocol in PROTOCOLS])[["clip_id", "label"]]
    return both.drop_duplicates("clip_id").sort_values("clip_id", ignore_index=True)


def unused_clips(corpus: str, folder: Path | None = None) -> pd.DataFrame:
    """Return clip_id, label, reason of the official clips that no split uses (often none). Raises as `load` does."""
    if f"{corpus}/unused.csv" not in read_index(folder)["files"]:
        return pd.DataFrame({"clip_id": [], "label": [], "reason": []}, dtype=str)
    return _read_csv(_checked(corpus, "unused.csv", folder))


def read_index(folder: Path | None = None) -> dict[str, Any]:
    """Read `index.json`: `files` (name -> sha256), `corpora` (counts and rules), `seed`, `format`.

    Raises:
        StreamError: it is missing or no JSON of this format.
    """
    path = (splits_dir() if folder is None else folder) / INDEX
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError as cause:
        raise StreamError(f"no frozen splits: {path} is missing; {_REBUILD}.") from cause
    except (OSError, ValueError) as cause:
        raise StreamError(f"{path} cannot be read ({cause}); {_REBUILD}.") from cause
    if not isinstance(index, dict) or index.get("format") != _FORMAT or not isinstance(index.get("files"), dict):
        raise StreamError(f"{path} is not in split format {_FORMAT}: upgrade audiocl, or {_REBUILD}.")
    return index


def _checked(corpus: str, name: str, folder: Path | None) -> Path:
    if corpus not in CORPORA:
        raise unknown_name("corpus with frozen splits", corpus, CORPORA)
    folder = splits_dir() if folder is None else folder
    path = folder / corpus / name
    expected = read_index(folder)["files"].get(f"{corpus}/{name}")
    try:
        actual = sha256_file(path)
    except OSError as cause:
        raise StreamError(f"the frozen split file {path} cannot be read ({cause.strerror}): {_REBUILD}.") from cause
    if actual != expected:
        raise StreamError(f"the frozen split file {path} was changed (SHA-256 differs from {INDEX}): {_REBUILD}.")
    return path


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _texts(manifests: Path) -> dict[str, str]:
    """Return the text of every file of the splits folder, by its POSIX name, index last."""
    texts: dict[str, str] = {}
    counts: dict[str, Any] = {}
    for corpus in CORPORA:
        tables = corpus_tables(corpus, manifests)
        texts[f"{corpus}/paper.csv"] = _csv(tables.paper)
        texts[f"{corpus}/grouped.csv"] = _csv(tables.grouped)
        if len(tables.unused):
            texts[f"{corpus}/unused.csv"] = _csv(tables.unused)
        texts[f"{corpus}/orders.json"] = _orders(tables.orders)
        counts[corpus] = _counts(tables)
    index = {
        "format": _FORMAT,
        "seed": SEED,
        "corpora": counts,
        "files": {name: sha256_text(text) for name, text in texts.items()},
    }
    texts[INDEX] = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return texts


def _counts(tables: CorpusTables) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "classes": len(tables.orders[0]),
        "orders": len(tables.orders),
        "clips": len(tables.paper),
        "unused": len(tables.unused),
    }
    split = {"paper": (tables.paper, PAPER_RULE), "grouped": (tables.grouped, tables.grouped_rule)}
    for protocol, (table, rule) in split.items():
        is_test = table["part"] == "test"
        for part, present in (("train", table[~is_test]), ("test", table[is_test])):
            if without := sorted(set(tables.orders[0]) - set(present["label"])):
                raise StreamError(
                    f"protocol {protocol} leaves class '{without[0]}' without {part} clips: use the full manifest."
                )
        counts[protocol] = {
            "train": int((~is_test).sum()),
            "test": int(is_test.sum()),
            "left_out": len(tables.paper) - len(table),
            "rule": rule,
        }
    return counts


def _csv(table: pd.DataFrame) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.itertuples(index=False, name=None))
    return text.getvalue()


def _orders(orders: list[list[str]]) -> str:
    lines = ",\n".join(json.dumps(order, ensure_ascii=False) for order in orders)
    return f"[\n{lines}\n]\n"


def _first_difference(data: bytes, expected: bytes) -> str:
    ours, theirs = data.split(b"\n"), expected.split(b"\n")
    for number, (mine, wanted) in enumerate(zip(ours, theirs, strict=False), start=1):
        if mine != wanted:
            return f"differs from line {number} on ({mine[:80]!r}, regenerated {wanted[:80]!r})"
    return f"has {len(ours)} lines, regenerated {len(theirs)}"
