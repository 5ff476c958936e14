"""The catalogue of benchmarks: one row of data per benchmark, and what every benchmark can do.

A row joins a corpus, its frozen splits (`splits`) and the facts of the benchmark; a TOML file (`toml_benchmark`)
describes a benchmark on one's own data in the same terms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from audiocl_bench import catalogue, corpora, splits, streams
from audiocl_bench.corpora.base import Corpus
from audiocl_bench.errors import ConfigError, CorpusError, unknown_name
from audiocl_bench.files import home, write_text
from audiocl_bench.mini.catalogue import PREFIX
from audiocl_bench.split_rules import NUM_ORDERS
from audiocl_bench.streams import Stream

_SHOWN = 20  # differences listed in a message; the rest is in the written report


@dataclass(frozen=True)
class Benchmark(ABC):
    """One benchmark: which clips, in which sessions, heard for how long.

    Attributes:
        name: what the user types.
        title: one line for tables.
        corpus: reader of its audio files.
        protocols: names of its split protocols, the default first.
        num_orders: number of class orders, 0..num_orders-1.
        classes_per_session: classes of each session, one number or a list of all sizes.
        frames: input length in 10 ms frames; longer clips are cut, shorter ones padded.
        first_session_epochs: E_0, epochs of first-session adaptation.
        own_data: True for a user's own data, whose results never share a table with the published benchmarks.
        source: the TOML file, None for built-in benchmarks.
        mini: True for a synthetic miniature, whose results never share a table with the published benchmarks either.
    """

    name: str
    title: str
    corpus: Corpus
    protocols: tuple[str, ...]
    num_orders: int
    classes_per_session: int | tuple[int, ...]
    frames: int
    first_session_epochs: int
    own_data: bool
    source: Path | None
    mini: bool = field(default=False, kw_only=True)

    def stream(self, protocol: str, order: int, index: pd.DataFrame | None = None) -> Stream:
        """Return the stream of a protocol and class order.

        Args:
            protocol: one of `protocols`.
            order: number of the class order.
            index: the corpus index. Own data needs it; a built-in benchmark reads its frozen files and ignores it
                (`checked` compares an index with them).

        Raises:
            UnknownNameError: no such protocol.
            ConfigError: no such order, or own data without `index`.
            StreamError: a frozen file was changed, or the description gives no valid stream.
        """
        if protocol not in self.protocols:
            raise unknown_name(f"protocol of {self.name}", protocol, self.protocols)
        if not 0 <= order < self.num_orders:
            raise ConfigError(f"{self.name} has no order {order}: give 0 to {self.num_orders - 1}.")
        return self._stream(protocol, order, index)

    def open(self, data: Path | None, protocol: str, order: int) -> tuple[Stream, pd.DataFrame]:
        """Find the corpus, check it, and return the stream with the files of exactly its clips.

        Args:
            data: folder that holds the corpus, or None for the default place.
            protocol: one of `protocols`.
            order: number of the class order.

        Returns:
            The stream, and a table of clip_id and path (absolute, str), rows in the order of `stream.clip_ids`.

        Raises:
            CorpusError: the corpus is missing or differs from the frozen clips.
            Others: as `stream`.
        """
        if protocol not in self.protocols or not 0 <= order < self.num_orders:
            self.stream(protocol, order)  # raises before the disk is searched
        root = self.find(data)
        index = self.checked(self.corpus.index(root))
        stream = self.stream(protocol, order, index)
        paths = dict(zip(index["clip_id"], index["path"], strict=True))
        absolute = root.resolve()
        files = [str(absolute / paths[clip]) for clip in stream.clip_ids]
        return stream, pd.DataFrame({"clip_id": list(stream.clip_ids), "path": files})

    def find(self, data: Path | None) -> Path:
        """Return the corpus's folder. Raises CorpusError if it is not found."""
        return self.corpus.find(data)

    @abstractmethod
    def checked(self, index: pd.DataFrame) -> pd.DataFrame:
        """Return `index` if it may be used for this benchmark, else raise CorpusError."""

    @abstractmethod
    def _stream(self, protocol: str, order: int, index: pd.DataFrame | None) -> Stream: ...

    @abstractmethod
    def _sizes(self) -> dict[str, int | None]:
        """Return classes, sessions and clips; None where only the data can tell."""

    def describe(self) -> dict[str, Any]:
        """Return the facts of the benchmark as plain values, for `audiocl list benchmarks` and provenance."""
        per_session = self.classes_per_session
        return {
            "name": self.name,
            "title": self.title,
            "corpus": self.corpus.info.name,
            "corpus_title": self.corpus.info.title,
            "licence": self.corpus.info.licence,
            **self._sizes(),
            "classes_per_session": per_session if isinstance(per_session, int) else list(per_session),
            "frames": self.frames,
            "input_seconds": self.frames / 100,
            "first_session_epochs": self.first_session_epochs,
            "protocols": list(self.protocols),
            "orders": self.num_orders,
            "own_data": self.own_data,
            "mini": self.mini,
            "source": None if self.source is None else str(self.source),
        }


@dataclass(frozen=True)
class FrozenBenchmark(Benchmark):
    """A built-in benchmark: its clips, parts and orders come from the frozen split files.

    Attributes:
        num_classes: classes of the stream.
        num_clips: clips of the `paper` protocol.
    """

    num_classes: int
    num_clips: int

    def checked(self, index: pd.DataFrame) -> pd.DataFrame:
        """Compare a copy of the corpus with the frozen clips, clip by clip.

        Clips of the official corpus that no split uses may be present or absent.

        Raises:
            CorpusError: clips are missing, relabelled or extra. The message lists the first 20 and names a text file
                under `files.home()/reports` that lists all.
        """
        corpus = self.corpus.info.name
        found = frozen_differences(corpus, index, splits.frozen_clips(corpus))
        if found:
            report = home() / "reports" / f"{corpus}-differences.txt"
            write_text(report, "".join(f"{line}\n" for line in found), error=CorpusError)
            shown = "\n".join(f"  {line}" for line in found[:_SHOWN])
            more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise CorpusError(
                f"this copy of {self.corpus.info.title} differs from the frozen index of {self.name} in {len(found)} "
                f"clips (all listed in {report}), so a result on it would not be the benchmark: restore the official "
                f"copy, or describe this one as a benchmark of your own in a TOML file. "
                f"{self.corpus.info.how_to_get.replace('DIR', '<the folder of --data>')}\n{shown}{more}"
            )
        return index

    def _stream(self, protocol: str, order: int, index: pd.DataFrame | None) -> Stream:
        corpus = self.corpus.info.name
        table = splits.load(corpus, protocol)
        return streams.build(
            benchmark=self.name,
            protocol=protocol,
            order=order,
            classes=splits.load_orders(corpus)[order],
            classes_per_session=self.classes_per_session,
            clip_ids=table["clip_id"].tolist(),
            class_names=table["label"].tolist(),
            is_test=(table["part"] == "test").to_numpy(dtype=bool),
        )

    def _sizes(self) -> dict[str, int | None]:
        sessions = streams.session_sizes(self.num_classes, self.classes_per_session)
        return {"classes": self.num_classes, "sessions": len(sessions), "clips": self.num_clips}


def frozen_differences(corpus: str, index: pd.DataFrame, frozen: pd.DataFrame) -> list[str]:
    """Say how an index differs from a corpus' frozen clips (`splits.frozen_clips`), as `corpora.differences` does.

    Clips of the official corpus that no split uses may be present or absent.
    """
    unused = splits.unused_clips(corpus)[["clip_id", "label"]]
    unused = unused[unused["clip_id"].isin(index["clip_id"])]
    return corpora.differences(index, pd.concat([frozen, unused]))


@dataclass(frozen=True)
class _Row:
    """One built-in benchmark as data (source: the six benchmarks, spec table)."""

    corpus: str
    title: str
    classes: int
    per_session: int
    clips: int
    epochs: int
    frames: int = 512


_CATALOGUE: dict[str, _Row] = {
    "esc50": _Row("esc50", "ESC-50, environmental sound", 50, 5, 2_000, 10),
    "us8k": _Row("us8k", "UrbanSound8K, urban sound", 10, 2, 8_732, 15),
    "sc2": _Row("sc2", "Speech Commands v0.02, spoken keyword", 35, 5, 105_829, 1),
    "timit2": _Row("timit", "TIMIT, speaker identity, 2 speakers per session", 630, 2, 6_300, 30),
    "timit3": _Row("timit", "TIMIT, speaker identity, 3 speakers per session", 630, 3, 6_300, 30),
    "vocalset": _Row("vocalset", "VocalSet, singing technique", 16, 2, 1_520, 6),
}

# The same in miniature, synthetic, for machines without corpora: E_0 as above, except where one epoch is two steps.
_MINI: dict[str, _Row] = {
    "mini-esc50": _Row("mini-esc50", "environmental sound in miniature", 20, 2, 320, 10, 256),
    "mini-us8k": _Row("mini-us8k", "urban sound in miniature", 10, 2, 240, 15, 256),
    "mini-sc2": _Row("mini-sc2", "spoken keyword in miniature", 14, 2, 336, 5, 112),
    "mini-timit2": _Row("mini-timit", "speaker identity in miniature, 2 per session", 24, 2, 240, 30, 256),
    "mini-timit3": _Row("mini-timit", "speaker identity in miniature, 3 per session", 24, 3, 240, 30, 256),
    "mini-vocalset": _Row("mini-vocalset", "singing technique in miniature", 16, 2, 320, 6, 256),
}


def names() -> tuple[str, ...]:
    """Return the names of the six built-in benchmarks, in catalogue order."""
    return tuple(_CATALOGUE)


def mini_names() -> tuple[str, ...]:
    """Return the names of their miniatures, in the same order: `mini-` and the name of the real one."""
    return tuple(_MINI)


def get(name_or_path: str) -> Benchmark:
    """Return a built-in benchmark by name, or the benchmark that a TOML file describes.

    Args:
        name_or_path: one of `names()` or `mini_names()`, or the path of a `.toml` file.

    Raises:
        UnknownNameError: no such built-in benchmark.
        ConfigError: the TOML file is missing or wrong; the message names file and field.
    """
    if name_or_path.endswith(".toml"):
        from audiocl_bench import toml_benchmark  # here, because it builds on this module

        return toml_benchmark.read(Path(name_or_path))
    row = {**_CATALOGUE, **_MINI}.get(name_or_path)
    if row is None:
        raise unknown_name(
            "benchmark",
            name_or_path,
            mini_names() if name_or_path.startswith(PREFIX) else names(),
            hint="For your own data give the path of a .toml description.",
        )
    return FrozenBenchmark(
        name=name_or_path,
        title=row.title,
        corpus=corpora.get(row.corpus),
        protocols=splits.PROTOCOLS,
        num_orders=NUM_ORDERS,
        classes_per_session=row.per_session,
        frames=row.frames,
        first_session_epochs=row.epochs,
        own_data=False,
        source=None,
        num_classes=row.classes,
        num_clips=row.clips,
        mini=name_or_path in _MINI,
    )


# `audiocl_bench.benchmarks["esc50"]`: the miniatures are listed too, after the six; a TOML file's path works as well.
catalogue.make_mapping(__name__, catalogue.Catalogue("benchmarks", lambda: (*names(), *mini_names()), get))
