"""Your own recordings as a corpus, described by data alone: a folder of class folders, or audio with a CSV table.

Two descriptions, both used by benchmarks written in TOML:

    FolderCorpus(root=Path("arabic_speech_commands"), group_regex=r"(\\d+)_NO_")
    CsvCorpus(root=Path("ESC-50"), csv="meta/esc50.csv", path="audio/{filename}", label="category", group="src_file",
              fold="fold", where={"fold": "4"})

A clip id is the path below the root without the audio suffix; regular expressions are searched in it, so that no label
can depend on the file format. A regular expression gives the text of its group named like the field, else of its first
named group, else of its first group. A CSV path finds the file with the same stem whatever its audio suffix.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pandas as pd

from audiocl_bench.corpora.base import (
    AUDIO_SUFFIXES,
    Clip,
    Corpus,
    CorpusInfo,
    TableRow,
    audio_files,
    audio_suffix,
    make_index,
    read_table,
    some,
    stem,
    two_files,
    walk_files,
)
from audiocl_bench.errors import ConfigError, CorpusError, unknown_name

T = TypeVar("T")

Where = Mapping[str, str | int | bool | Sequence[str | int | bool]]
"""Which clips to keep: field or column -> the value, or the values, it may have. Compared as text."""

# Audio that is not read here. Leaving it out in silence would shrink a corpus unnoticed.
_OTHER_AUDIO = (".mp3", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".aifc", ".au", ".caf", ".sph", ".webm", ".amr")
_FIELDS = ("label", "group", "fold")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class _OwnCorpus(Corpus):
    """What both kinds share: the root, the name, the regular expressions and the filter."""

    root: Path
    label_regex: str | None = field(default=None, kw_only=True)
    group_regex: str | None = field(default=None, kw_only=True)
    fold_regex: str | None = field(default=None, kw_only=True)
    where: Where = field(default_factory=dict, kw_only=True, hash=False)
    name: str = field(default="own", kw_only=True)
    licence: str = field(default="not stated", kw_only=True)
    citation: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        for name in _FIELDS:
            _compiled(name, self._regex(name))
        for key, value in self.where.items():
            if not _wanted(value):
                raise ConfigError(f"where.{key} of corpus '{self.name}' is an empty list: name the values to keep.")

    @property
    def info(self) -> CorpusInfo:
        """The corpus' card, as far as the description tells."""
        return CorpusInfo(
            name=self.name,
            title=self.name,
            folder=self.root.name,
            licence=self.licence,
            citation=self.citation,
            homepage="",
            how_to_get=(
                f"Put the recordings into a folder {self.root} of the directory named with --data, or change `root` in "
                "the benchmark file."
            ),
            needs_registration=False,
        )

    def find(self, data: Path | None) -> Path:
        """Return the root: as given if absolute, else below `data`, `data` itself if named so, else as given.

        Raises:
            CorpusError: there is no such folder.
        """
        root = self.root.expanduser()
        places = [root]
        if data is not None and not root.is_absolute():
            data = data.expanduser()
            places = [data / root, *([data] if data.resolve().name == root.name else []), root]
        for place in places:
            if place.is_dir():
                return place
        looked = " and ".join(map(str, places))
        raise CorpusError(f"corpus '{self.name}' was not found: looked for {looked}. {self.info.how_to_get}")

    def index(self, root: Path) -> pd.DataFrame:
        """List the clips under `root` (see `Corpus.index`) that pass the filter.

        Raises:
            CorpusError: the root or the table is missing or unfit, a file or row has no label, group or fold although
                the description gives one, two files are one clip, or no clip is left.
            UnknownNameError: the description names a column that does not exist.
        """
        if not root.is_dir():
            raise CorpusError(f"corpus '{self.name}': {root} is not a directory. {self.info.how_to_get}")
        return make_index(self._clips(root))

    @abstractmethod
    def _clips(self, root: Path) -> Iterator[Clip]: ...

    def _regex(self, name: str) -> str | None:
        expression: str | None = getattr(self, f"{name}_regex")
        return expression

    def _searched(self, name: str, root: Path, clip_id: str, path: str) -> str:
        """Return the field `name` as its regular expression finds it in the clip id."""
        expression = self._regex(name)
        pattern = _compiled(name, expression)
        if pattern is None:
            return ""
        match = pattern.search(clip_id)
        groups = pattern.groupindex
        group = name if name in groups else min(groups.values(), default=1)
        found = match[group] if match else None
        if not found:
            raise CorpusError(
                f"{name}_regex '{expression}' finds no {name} in '{clip_id}' ({root / path}, searched without the "
                f"suffix): change {name}_regex or move the file out of {root}."
            )
        return found


@dataclass(frozen=True)
class FolderCorpus(_OwnCorpus):
    """A folder of class folders, searched recursively.

    Attributes:
        root: the folder; relative to the data directory, or absolute.
        label_regex: finds the label in the clip id; None takes the name of the first-level folder.
        group_regex: finds what belongs together (a speaker, a recording); None leaves it empty.
        fold_regex: finds the fold; None leaves it empty.
        where: keeps clips by their label, group or fold.
        name: the corpus' name in results.
        licence: under which terms the audio may be used.
        citation: BibTeX entry.

    Raises:
        ConfigError: a regular expression is broken or has no group, or a filter is empty.
        UnknownNameError: `where` names something else than label, group or fold.
    """

    def __post_init__(self) -> None:
        """Check the description."""
        super().__post_init__()
        for key in self.where:
            if key not in _FIELDS:
                raise unknown_name("field in where", key, _FIELDS)

    def _clips(self, root: Path) -> Iterator[Clip]:
        files = audio_files(root)
        _refuse_other_audio(root)
        if not files:
            raise CorpusError(
                f"{root} holds no audio ({', '.join(AUDIO_SUFFIXES)}): point `root` at the class folders."
            )
        clips = [self._clip(root, clip_id, path) for clip_id, path in files.items()]
        kept = _filter([(clip, clip._asdict()) for clip in clips], self.where, str(root))
        return iter(kept)

    def _clip(self, root: Path, clip_id: str, path: str) -> Clip:
        values = {name: self._searched(name, root, clip_id, path) for name in _FIELDS}
        if self.label_regex is None:
            label, slash, _ = clip_id.partition("/")
            if not slash:
                raise CorpusError(
                    f"{root / path} has no label, it lies in no class folder: move it into one, or set label_regex."
                )
            values["label"] = label
        return Clip(clip_id, path, **values)


@dataclass(frozen=True)
class CsvCorpus(_OwnCorpus):
    """Audio whose labels stand in a CSV table. Audio that the table does not list is no part of the corpus.

    Attributes:
        root: the folder; relative to the data directory, or absolute.
        csv: the table, relative to the root; UTF-8 with a header line.
        path: where a row's audio is, relative to the root, with columns in braces: "audio/{filename}". The audio suffix
            may be another one than the file's, or be left out.
        label, group, fold: column that gives the field.
        label_regex, group_regex, fold_regex: finds the field in the clip id, instead of a column.
        where: keeps rows by the values of columns.
        missing: "error" refuses rows whose audio is missing, "skip" leaves them out.
        delimiter: between cells; None means a tab for `.tsv` and a comma else.
        name: the corpus' name in results.
        licence: under which terms the audio may be used.
        citation: BibTeX entry.

    Raises:
        ConfigError: the description is contradictory or incomplete, or a regular expression is broken.
    """

    csv: str
    path: str
    label: str | None = None
    group: str | None = None
    fold: str | None = None
    missing: str = "error"
    delimiter: str | None = None

    def __post_init__(self) -> None:
        """Check the description."""
        super().__post_init__()
        for name in _FIELDS:
            if getattr(self, name) is not None and self._regex(name) is not None:
                raise ConfigError(f"corpus '{self.name}' sets both {name} and {name}_regex: keep one of them.")
        if self.label is None and self.label_regex is None:
            raise ConfigError(f"corpus '{self.name}' has no label: set label (a column) or label_regex.")
        if self.missing not in ("error", "skip"):
            raise ConfigError(f"missing of corpus '{self.name}' is '{self.missing}': use 'error' or 'skip'.")
        if not _PLACEHOLDER.search(self.path):
            raise ConfigError(
                f"path '{self.path}' of corpus '{self.name}' names no column: write, say, audio/{{filename}}."
            )
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"delimiter '{self.delimiter}' of corpus '{self.name}' must be one character.")

    def _clips(self, root: Path) -> Iterator[Clip]:
        table = root / self.csv
        delimiter = self.delimiter or ("\t" if table.suffix.lower() == ".tsv" else ",")
        rows = read_table(
            table, (), fix="correct the file, or csv and delimiter in the benchmark file", delimiter=delimiter
        )
        self._check_columns(table, rows[0].cells)
        rows = _filter([(row, row.cells) for row in rows], self.where, str(table))
        files = _Folders(root)
        lines: dict[str, int] = {}
        absent: list[str] = []
        for row in rows:
            clip_id = self._clip_id(table, row)
            if clip_id in lines:
                raise CorpusError(
                    f"{table} lines {lines[clip_id]} and {row.line} are both the clip '{clip_id}': keep one of them."
                )
            lines[clip_id] = row.line
            path = files.find(clip_id)
            if path is None:
                absent.append(clip_id)
            else:
                yield Clip(
                    clip_id, path, **{name: self._value(name, root, table, row, clip_id, path) for name in _FIELDS}
                )
        if absent and self.missing == "error":
            raise CorpusError(
                f"{table} names {len(absent):,} clips that have no audio file under {root} ({some(absent)}): add the "
                "files, choose rows with `where`, or set missing = 'skip'."
            )
        if len(absent) == len(rows):
            raise CorpusError(
                f"none of the {len(rows):,} clips that {table} names has an audio file under {root}: check path."
            )

    def _check_columns(self, table: Path, cells: Mapping[str, str]) -> None:
        named = [
            *_PLACEHOLDER.findall(self.path),
            *(c for c in map(self._column, _FIELDS) if c is not None),
            *self.where,
        ]
        for column in named:
            if column not in cells:
                raise unknown_name(f"column of {table}", column, cells)

    def _column(self, name: str) -> str | None:
        column: str | None = getattr(self, name)
        return column

    def _clip_id(self, table: Path, row: TableRow) -> str:
        path = _PLACEHOLDER.sub(lambda match: row.cells[match[1]], self.path)
        suffix = next((s for s in _OTHER_AUDIO if path.lower().endswith(s)), "")
        clip_id = posixpath.normpath(stem(path[: -len(suffix)] if suffix else path))
        if clip_id.startswith(("/", "../")) or clip_id in (".", ".."):
            raise CorpusError(
                f"{table} line {row.line}: '{path}' is no path below the corpus root: correct the row or path."
            )
        return clip_id

    def _value(self, name: str, root: Path, table: Path, row: TableRow, clip_id: str, path: str) -> str:
        column = self._column(name)
        if column is None:
            return self._searched(name, root, clip_id, path)
        value = unicodedata.normalize("NFC", row.cells[column].strip())
        if not value:
            raise CorpusError(f"{table} line {row.line} has no {name}: fill in the column '{column}'.")
        return value


class _Folders:
    """Finds audio by stem and lists each folder once; a large root with a small table is not searched through."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listed: dict[str, dict[str, list[str]]] = {}

    def find(self, clip_id: str) -> str | None:
        """Return the path, relative to the root, of the one audio file with this stem, or None."""
        folder, _, name = clip_id.rpartition("/")
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        paths = self._listed[folder].get(name, [])
        if len(paths) > 1:
            raise two_files(self._root, clip_id, paths[0], paths[1])
        return paths[0] if paths else None

    def _list(self, folder: str) -> dict[str, list[str]]:
        place = self._root / folder
        if not place.is_dir():
            return {}
        stems: dict[str, list[str]] = {}
        try:
            entries = sorted(entry.name for entry in place.iterdir() if audio_suffix(entry.name) and entry.is_file())
        except OSError as cause:
            raise CorpusError(f"{place} cannot be read ({cause.strerror or cause}): check its permissions.") from cause
        for entry in entries:
            stems.setdefault(stem(entry), []).append(f"{folder}/{entry}" if folder else entry)
        return stems


def _compiled(name: str, expression: str | None) -> re.Pattern[str] | None:
    if expression is None:
        return None
    try:
        pattern = re.compile(expression)
    except re.error as cause:
        raise ConfigError(f"{name}_regex '{expression}' is no regular expression: {cause}.") from cause
    if not pattern.groups:
        raise ConfigError(f"{name}_regex '{expression}' has no group: put brackets around the part that is the {name}.")
    return pattern


def _wanted(value: str | int | bool | Sequence[str | int | bool]) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else (str(value),)


def _filter(items: Sequence[tuple[T, Mapping[str, str]]], where: Where, source: str) -> list[T]:
    """Keep the items whose cells have the wanted values. A value that no item has is a mistake, not an empty result."""
    for key, value in where.items():
        present = {cells[key] for _, cells in items}
        for wanted in _wanted(value):
            if wanted not in present:
                raise CorpusError(f"where.{key} = '{wanted}' fits no clip of {source}: correct or remove it.")
    kept = [item for item, cells in items if all(cells[key] in _wanted(value) for key, value in where.items())]
    if not kept:
        raise CorpusError(f"no clip of {source} fits all of where ({', '.join(where)}): loosen it.")
    return kept


def _refuse_other_audio(root: Path) -> None:
    for path in walk_files(root):
        if path.lower().endswith(_OTHER_AUDIO):
            raise CorpusError(
                f"{root / path} is audio in a format that is not read: convert it to FLAC, or move it out of {root}."
            )
