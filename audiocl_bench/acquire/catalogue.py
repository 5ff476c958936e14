"""Where each corpus can be had: official archives, and mirrors on the Hugging Face Hub.

A size or checksum stands here only if the publisher states it, or if independent projects that downloaded the file
agree on it; what nobody states is None and is then not checked. What counts in the end are the clips: every copy,
wherever it came from, is compared with the frozen index before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from audiocl_bench.errors import unknown_name


@dataclass(frozen=True)
class Archive:
    """One official archive.

    Attributes:
        url: where it is.
        name: file name it is stored under.
        about: its size in bytes as far as known, for the free-space check and for messages.
        size: its exact size in bytes, None if the publisher may repack it.
        checksum: "md5:<hex>" or "sha256:<hex>", None if nobody publishes one.
        stated: who states size and checksum.
    """

    url: str
    name: str
    about: int
    size: int | None
    checksum: str | None
    stated: str


@dataclass(frozen=True)
class Mirror:
    """A copy on the Hugging Face Hub whose columns give back the official file names.

    Attributes:
        repo: repository of the data set.
        config: its configuration, None for the only one.
        splits: splits that together are the corpus.
        revision: commit, so that the copy cannot change.
        audio: column with the audio.
        file: official path of a clip, with {column} in it.
        table: official path of the metadata table.
        columns: columns of that table, in the official order.
        about: bytes to download.
    """

    repo: str
    config: str | None
    splits: tuple[str, ...]
    revision: str | None
    audio: str
    file: str
    table: str
    columns: tuple[str, ...]
    about: int


@dataclass(frozen=True)
class Source:
    """How a corpus is had.

    Attributes:
        corpus: its name.
        archive: the official archive, None if it may not be passed on.
        unpacked: bytes the unpacked corpus takes, rounded up.
        mirror: a copy on the Hub, None if there is none that gives back the official names.
        instead: what to do where there is no archive.
    """

    corpus: str
    archive: Archive | None
    unpacked: int
    mirror: Mirror | None = None
    instead: str = ""


_ESC50_COMMIT = "33c8ce9eb2cf0b1c2f8bcf322eb349b6be34dbb6"

_SOURCES = {
    "esc50": Source(
        corpus="esc50",
        archive=Archive(
            url=f"https://github.com/karolpiczak/ESC-50/archive/{_ESC50_COMMIT}.zip",
            name=f"ESC-50-{_ESC50_COMMIT[:12]}.zip",
            # 645,832,161 bytes for two projects that downloaded this commit. GitHub packs such an archive when it is
            # asked for and promises no particular bytes, so neither size nor checksum is held against it.
            about=645_832_161,
            size=None,
            checksum=None,
            stated="nobody: GitHub packs it on demand; the commit fixes its contents",
        ),
        unpacked=900_000_000,
        mirror=Mirror(
            repo="ashraq/esc50",
            config=None,
            splits=("train",),
            revision="e3e2a63ffff66b9a9735524551e3818e96af03ee",
            audio="audio",
            file="audio/{filename}",
            table="meta/esc50.csv",
            columns=("filename", "fold", "target", "category", "esc10", "src_file", "take"),
            about=773_320_991,
        ),
    ),
    "us8k": Source(
        corpus="us8k",
        archive=Archive(
            url="https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz",
            name="UrbanSound8K.tar.gz",
            about=6_023_741_708,
            size=6_023_741_708,
            checksum="md5:9aa69802bbf37fb986f71ec1483a196e",
            stated="soundata and PaddleSpeech, after Zenodo record 1203745; the size: those who downloaded it",
        ),
        unpacked=7_700_000_000,
        mirror=Mirror(
            repo="danavery/urbansound8K",
            config=None,
            splits=("train",),
            revision="8aa9177a0c5a6949ee4ee4b7fcabb01dfd4ae466",
            audio="audio",
            file="audio/fold{fold}/{slice_file_name}",
            table="metadata/UrbanSound8K.csv",
            columns=("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"),
            about=6_998_085_428,
        ),
    ),
    # google/speech_commands on the Hub is no mirror: its test split has 4,890 clips of a later selection, the official
    # testing list 11,005.
    "sc2": Source(
        corpus="sc2",
        archive=Archive(
            url="https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
            name="speech_commands_v0.02.tar.gz",
            about=2_428_923_189,
            size=2_428_923_189,
            checksum="sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
            stated="MLX Data (checksum), ESPnet (size); the publisher states neither",
        ),
        unpacked=3_900_000_000,
    ),
    # Version 1.1: 3,613 recordings are counted in it, as in the frozen file list, and its known irregular names are
    # those of the list. For version 1.0 (record 1193957, VocalSet.zip) some count 3,613 and some 3,615; 1.2 has 6 GB.
    "vocalset": Source(
        corpus="vocalset",
        archive=Archive(
            url="https://zenodo.org/records/1203819/files/VocalSet11.zip",
            name="VocalSet11.zip",
            about=2_077_243_579,
            size=2_077_243_579,
            checksum="md5:0c09396242f946e7111ad7d8fc649b81",
            stated="Zenodo records 1203819 and 1442513, as quoted by those who downloaded it",
        ),
        unpacked=3_000_000_000,
    ),
    "timit": Source(
        corpus="timit",
        archive=None,
        unpacked=700_000_000,
        instead=(
            "TIMIT is licensed (LDC93S1) and may not be passed on: get a copy from "
            "https://catalog.ldc.upenn.edu/LDC93S1, or find out whether your institution has one"
        ),
    ),
}


def names() -> tuple[str, ...]:
    """Return the names of all corpora."""
    return tuple(_SOURCES)


def downloadable() -> tuple[str, ...]:
    """Return the names of the corpora that have an official archive."""
    return tuple(name for name in _SOURCES if source(name).archive is not None)


def source(name: str) -> Source:
    """Return how the corpus called `name` is had.

    Raises:
        UnknownNameError: no such corpus.
    """
    if name not in _SOURCES:
        raise unknown_name("corpus", name, _SOURCES)
    return _SOURCES[name]
