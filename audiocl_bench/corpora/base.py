"""What every corpus offers, and the file rules they share: stems, suffixes, duplicates, tables, hashes.

A clip is known by its clip id, a path without extension in "/" form; labels and splits hang on clip ids. Which of the
accepted formats holds the audio is therefore no property of the corpus (benchmarks.md, last section: the index hashes
stems and labels, not bytes).
"""

from __future__ import annotations

import csv
import os
import shlex
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from audiocl_bench.errors import CorpusError
from audiocl_bench.files import home, sha256_text

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus")
"""Endings read as audio, in any letter case. TIMIT's `.WAV` may hold NIST SPHERE: libsndfile tells by content."""

COLUMNS = ("clip_id", "path", "label", "group", "fold")
"""Columns of an index, all text; `group` and `fold` are "" where a corpus has none."""

# Left behind by macOS archives; it mirrors the tree with resource forks named like the audio.
_NOT_CORPUS = {"__MACOSX"}


@dataclass(frozen=True)
class CorpusInfo:
    """A corpus' card.

    Attributes:
        name: the short name used in commands and files.
        title: the name people use.
        folder: the official top folder's name.
        licence: under which terms the audio may be used.
        citation: BibTeX entry.
        homepage: where the corpus is described.
        how_to_get: one sentence with the exact command or address; `DIR` stands for the data directory.
        needs_registration: whether the audio is behind a licence agreement or an account.
        aliases: other names the unpacked folder is known to have.
    """

    name: str
    title: str
    folder: str
    licence: str
    citation: str
    homepage: str
    how_to_get: str
    needs_registration: bool
    aliases: tuple[str, ...] = ()


class Clip(NamedTuple):
    """One row of an index. `path` is relative to the corpus root, in "/" form."""

    clip_id: str
    path: str
    label: str
    group: str = ""
    fold: str = ""


class Corpus(ABC):
    """A collection of labelled clips on disk."""

    @property
    @abstractmethod
    def info(self) -> CorpusInfo:
        """The corpus' card."""

    @abstractmethod
    def find(self, data: Path | None) -> Path:
        """Return the corpus' root.

        Args:
            data: the directory the user named (`--data`), or None.

        Raises:
            CorpusError: the corpus is not there; the message says where it was looked for and how to get it.
        """

    @abstractmethod
    def index(self, root: Path) -> pd.DataFrame:
        """List the clips under `root` whose audio exists.

        Returns:
            Data frame with the text columns `COLUMNS`, one row per clip, sorted by clip_id. Only names and tables are
            read, no audio.

        Raises:
            CorpusError: the layout is not the corpus', or a file cannot be given one clip id and one label.
        """


class OfficialCorpus(Corpus):
    """A published corpus in its official layout. A subclass says what the layout needs and how files become clips."""

    @abstractmethod
    def lacks(self, root: Path) -> tuple[str, ...]:
        """Return the parts of the official layout (relative paths) that are not under `root`; empty if all are."""

    @abstractmethod
    def clips(self, root: Path) -> Iterator[Clip]:
        """Yield the clips under a root that lacks nothing."""

    def find(self, data: Path | None) -> Path:
        """Return `data`/<folder>, `data` itself if it is the corpus, or <cache>/data/<folder> (any letter case).

        Raises:
            CorpusError: none of them is the corpus.
        """
        if data is not None:
            data = data.expanduser()
            if not data.is_dir():
                raise CorpusError(
                    f"{data} is not a directory: --data takes the directory that holds {self.info.folder}/. "
                    f"{self._advice(data)}"
                )
        named = {place: child(place, self.info.folder, *self.info.aliases) for place in self._places(data)}
        candidates = [named[data], data] if data is not None else []
        candidates += [folder for place, folder in named.items() if place != data]
        for candidate in candidates:
            if candidate is not None and not self.lacks(candidate):
                return candidate
        for folder in named.values():
            if folder is not None:
                raise self._incomplete(folder, data)
        looked = " and ".join(str(place / self.info.folder) for place in named)
        itself = f", and {data} itself has no {' or '.join(self.lacks(data))}" if data is not None else ""
        raise CorpusError(f"{self.info.title} was not found: looked for {looked}{itself}. {self._advice(data)}")

    def index(self, root: Path) -> pd.DataFrame:
        """List the clips under `root` whose audio exists (see `Corpus.index`); a partial copy gives a shorter index."""
        if not root.is_dir():
            raise CorpusError(f"{self.info.title}: {root} is not a directory. {self._advice(None)}")
        if self.lacks(root):
            raise self._incomplete(root, None)
        index = make_index(self.clips(root))
        if index.empty:
            raise CorpusError(
                f"{self.info.title}: {root} holds no audio ({', '.join(AUDIO_SUFFIXES)}) in the official layout. "
                f"{self._advice(None)}"
            )
        return index

    @staticmethod
    def _places(data: Path | None) -> tuple[Path, ...]:
        return (*([data] if data is not None else []), home() / "data")

    def _incomplete(self, root: Path, data: Path | None) -> CorpusError:
        return CorpusError(
            f"{self.info.title} in {root} is incomplete: {' and '.join(self.lacks(root))} not found there. "
            f"{self._advice(data)}"
        )

    def _advice(self, data: Path | None) -> str:
        """Say how to get the corpus and what to run next."""
        place = "DIR" if data is None else shlex.quote(str(data))
        return f"{self.info.how_to_get.replace('DIR', place)} Then run `audiocl run --data {place} ...`."


def stem(name: str) -> str:
    """Return `name` (a file name or "/" path) without its audio suffix, in Unicode form NFC; other suffixes stay.

    NFC because macOS archives store accents decomposed, and one clip must have one id on every machine.
    """
    suffix = audio_suffix(name)
    return unicodedata.normalize("NFC", name[: -len(suffix)] if suffix else name)


def audio_suffix(name: str) -> str:
    """Return the audio suffix of `name` as written there, or "" if it has none of `AUDIO_SUFFIXES`."""
    lower = name.lower()
    return next((name[-len(suffix) :] for suffix in AUDIO_SUFFIXES if lower.endswith(suffix)), "")


def child(folder: Path, *wanted: str) -> Path | None:
    """Return the entry of `folder` with one of the `wanted` names in any letter case; exact and earlier names first."""
    if not folder.is_dir():
        return None
    entries = [entry.name for entry in _scan(folder)]
    for name in wanted:
        if name in entries:
            return folder / name
        for entry in entries:
            if entry.lower() == name.lower():
                return folder / entry
    return None


def walk_files(root: Path, below: Path | None = None) -> Iterator[str]:
    """Yield the files under `below` (default `root`) as "/" paths relative to `root`, in a fixed order.

    Dotfiles, dot folders and `__MACOSX` are no part of a corpus and are left out. Links are followed.

    Raises:
        CorpusError: a folder cannot be read, an audio file is a dangling link, or folder links run in a circle.
    """
    start = below or root
    prefix = "" if start == root else start.relative_to(root).as_posix() + "/"
    yield from _walk(start, prefix, frozenset())


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise CorpusError(f"{folder} is a link to a folder above it: remove the link.")
    for entry in _scan(folder):
        if entry.name.startswith(".") or entry.name in _NOT_CORPUS:
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", above | {here})
        elif entry.is_file():
            yield prefix + entry.name
        elif audio_suffix(entry.name):
            raise CorpusError(f"{folder / entry.name} is a link to audio that is not there: restore or remove it.")


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as cause:
        raise CorpusError(f"{folder} cannot be read ({cause.strerror or cause}): check its permissions.") from cause


def audio_files(root: Path, below: Path | None = None) -> dict[str, str]:
    """Return {path without suffix, relative to `below`: path relative to `root`} of the audio under `below`.

    Raises:
        CorpusError: two files have one stem, as `x.wav` and `x.flac` (also what `walk_files` raises).
    """
    offset = 0 if below is None or below == root else len(below.relative_to(root).as_posix()) + 1
    found: dict[str, str] = {}
    for path in walk_files(root, below):
        if audio_suffix(path):
            key = stem(path[offset:])
            if key in found:
                raise two_files(root, key, found[key], path)
            found[key] = path
    return found


def two_files(root: Path, clip_id: str, first: str, second: str) -> CorpusError:
    """Build the error for two files that would be one clip."""
    return CorpusError(f"{root / first} and {root / second} would both be the clip '{clip_id}': remove one of them.")


def misplaced(root: Path, path: str, layout: str) -> CorpusError:
    """Build the error for audio that lies where the official layout has none."""
    return CorpusError(
        f"{root / path} does not fit the official layout {layout}: move it to its place or out of {root}."
    )


class TableRow(NamedTuple):
    """One row of a CSV file: the line it ends on (from 1) and its cells by column."""

    line: int
    cells: dict[str, str]


def read_table(path: Path, required: Iterable[str], *, fix: str, delimiter: str = ",") -> list[TableRow]:
    """Read a UTF-8 CSV file with a header line (a byte-order mark is allowed).

    Args:
        path: the file.
        required: columns it must have.
        fix: what to do about a bad file, for the messages; completes "...: <fix>.".
        delimiter: one character between cells.

    Raises:
        CorpusError: the file is missing, not UTF-8, not CSV, has no rows, a row of another length or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except OSError as cause:
        raise CorpusError(f"{path} cannot be read ({cause.strerror or cause}): {fix}.") from cause
    except (UnicodeDecodeError, csv.Error) as cause:
        raise CorpusError(f"{path} is not a UTF-8 CSV file ({cause}): {fix}.") from cause
    absent = [column for column in required if column not in header]
    if absent:
        plural = "columns" if len(absent) > 1 else "column"
        raise CorpusError(
            f"{path} has no {plural} {_quoted(absent)} (it has: {', '.join(header) or 'nothing'}): {fix}."
        )
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise CorpusError(f"{path} has more than one column {_quoted(twice)}: {fix}.")
    if not lines:
        raise CorpusError(f"{path} has a header but no rows: {fix}.")
    for number, cells in lines:
        if len(cells) != len(header):
            raise CorpusError(f"{path} line {number} has {len(cells)} cells for {len(header)} columns: {fix}.")
    return [TableRow(number, dict(zip(header, cells, strict=True))) for number, cells in lines]


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f"'{word}'" for word in words)


def some(items: Sequence[str], limit: int = 3) -> str:
    """Return the first `limit` items, and how many more there are."""
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def clips_of_table(root: Path, table: Path, listed: Iterable[Clip], files: Mapping[str, str]) -> Iterator[Clip]:
    """Join the clips that a metadata table lists (their `path` is ignored) with the audio that exists.

    Args:
        root: the corpus root, for the messages.
        table: the metadata file, for the messages.
        listed: the table's clips.
        files: {clip id: path} of the audio that exists.

    Yields:
        The listed clips whose audio exists.

    Raises:
        CorpusError: a clip is listed twice, or there is audio that the table does not list (it would have no label).
    """
    seen: set[str] = set()
    for clip in listed:
        if clip.clip_id in seen:
            raise CorpusError(f"{table} lists the clip '{clip.clip_id}' twice: restore the official file.")
        seen.add(clip.clip_id)
        if clip.clip_id in files:
            yield clip._replace(path=files[clip.clip_id])
    unlisted = [str(root / path) for clip_id, path in files.items() if clip_id not in seen]
    if unlisted:
        raise CorpusError(
            f"{table} does not list {some(unlisted)}: restore the official file, or move audio that is no part of the "
            f"corpus out of {root}."
        )


def make_index(clips: Iterable[Clip]) -> pd.DataFrame:
    """Return the index of `clips`: columns `COLUMNS`, sorted by clip_id.

    Raises:
        CorpusError: two clips share an id, a clip has no label, or a name cannot be written as one line of UTF-8 text.
    """
    rows = sorted(clips)
    for row in rows:
        for column, value in zip(COLUMNS, row, strict=True):
            if not _one_line(value):
                raise CorpusError(
                    f"{column} {value!r} of {row.path!r} has a tab, a line break or bytes other than UTF-8: rename it."
                )
        if not row.label:
            raise CorpusError(f"{row.path} has an empty label: every clip needs one.")
    for first, second in pairwise(rows):
        if first.clip_id == second.clip_id:
            raise CorpusError(
                f"{first.path} and {second.path} would both be the clip '{first.clip_id}': remove one of them."
            )
    return pd.DataFrame({name: pd.Series([row[i] for row in rows], dtype="str") for i, name in enumerate(COLUMNS)})


def _one_line(value: str) -> bool:
    if any(sign in value for sign in "\t\r\n"):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def index_hash(index: pd.DataFrame) -> str:
    r"""Return the SHA-256 of an index: over the sorted lines "clip_id\tlabel\n", in UTF-8.

    Row order, file format and file contents do not enter; a clip more, less or with another label changes the hash.
    """
    lines = sorted(f"{clip_id}\t{label}\n" for clip_id, label in zip(index["clip_id"], index["label"], strict=True))
    return sha256_text("".join(lines))


def differences(index: pd.DataFrame, expected: pd.DataFrame) -> list[str]:
    """Say how `index` differs from the `expected` clips (columns clip_id, label), one line a clip, sorted by clip id.

    Returns:
        "missing: x", "extra: y" and "relabelled: z (is a, should be b)"; empty if both have the same clips and labels.
    """
    here = dict(zip(index["clip_id"], index["label"], strict=True))
    there = dict(zip(expected["clip_id"], expected["label"], strict=True))
    told = []
    for clip_id in sorted(here.keys() | there.keys()):
        if clip_id not in here:
            told.append(f"missing: {clip_id}")
        elif clip_id not in there:
            told.append(f"extra: {clip_id}")
        elif here[clip_id] != there[clip_id]:
            told.append(f"relabelled: {clip_id} (is {here[clip_id]}, should be {there[clip_id]})")
    return told
