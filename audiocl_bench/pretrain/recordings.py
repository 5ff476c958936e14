"""Decoded recordings on disk: each package once, as 16 kHz pieces that any process maps into memory.

    <AUDIOCL_HOME>/pretrain/recordings/<package>-<key12>.i16        samples of all pieces, one after the other
                                                    .parquet    one row per piece
                                                    .json       what was kept and what was left out; written last

The key hashes the .deb, the soundfont player and the limits below, so that packs with equal audio share the files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from audiocl_bench import audio, files
from audiocl_bench.errors import AudioError, CorpusError
from audiocl_bench.pretrain import augment, sources, synthesis
from audiocl_bench.pretrain.sources import Package, Recording, Say
from audiocl_bench.processes import in_processes

VERSION = 1
"""Raised whenever equal files give other pieces."""

SILENT = 0.003
"""A recording whose peak stays below this (-50 dBFS) is left out as silent."""

SHORTEST = 0.03
"""Seconds of sound below which a recording is left out."""

PEAK = 0.9
"""Peak that every piece is stored with, so that 16 bits hold quiet recordings too."""

_SAMPLE = np.dtype("<i2")
_MANY = 400  # recordings of one package that a process decodes at a time: about half a minute's work


@dataclass(frozen=True)
class Limits:
    """How recordings are cut.

    Attributes:
        seconds: longest piece.
        pieces: most pieces of one recording, spread evenly over it; music_pieces the same for music.
    """

    seconds: float
    pieces: int
    music_pieces: int


@dataclass(frozen=True)
class Part:
    """The pieces of one package.

    Attributes:
        package: its name.
        samples: file of all samples, int16.
        pieces: table with the columns key, piece, offset, samples, kind, group, digest (of the whole recording).
        report: counts and provenance, as `manifest.json` lists them.
    """

    package: str
    samples: Path
    pieces: pd.DataFrame
    report: dict[str, Any]


def collect(
    wanted: Iterable[sources.Source], cache: Path, place: Path, limits: Limits, *, workers: int, say: Say
) -> list[Part]:
    """Fetch the packages of `wanted` and return their pieces, decoded unless they are there.

    Args:
        wanted: rows of the catalogue.
        cache: folder of the .deb files.
        place: folder of the decoded pieces.
        limits: how recordings are cut.
        workers: processes that decode.
        say: told, in one line, what happens.

    Raises:
        CorpusError: a package cannot be fetched (see `sources.fetch`), or the disk is full.
    """
    parts = []
    for package in sources.fetch(wanted, cache, say=say):
        found, player = _recordings(package, cache, say)
        if found is None:
            continue
        part = _part(package, found, player, place, limits, workers, say)
        parts.append(part)
    return parts


def _recordings(package: Package, cache: Path, say: Say) -> tuple[list[Recording] | None, str]:
    """Return a package's recordings, and the version of what played them; None if nothing here can play them."""
    if package.source.package != sources.SOUNDFONT:
        return sources.recordings(package), ""
    player = synthesis.find_player(cache, say)
    return (None, "") if player is None else (synthesis.render(package, player, cache, say), player.version)


def _part(
    package: Package, found: list[Recording], player: str, place: Path, limits: Limits, workers: int, say: Say
) -> Part:
    name = package.source.package
    rules = {key: value for key, value in asdict(package.source).items() if key in ("kind", "kinds", "drop", "group")}
    made_of = {"deb": package.sha256, "player": player, "rules": rules, "limits": asdict(limits), "version": VERSION}
    stem = place / f"{name}-{files.sha256_json(made_of)[:12]}"
    samples, table, report = (stem.with_name(stem.name + end) for end in (".i16", ".parquet", ".json"))
    if not report.is_file():
        say(f"decoding {name}: {len(found)} recordings")
        counts, rows = _decode(found, samples, limits, workers, say)
        with files.atomic_path(table, error=CorpusError) as temporary:
            rows.to_parquet(temporary, index=False)
        told = {
            "package": name,
            "version": package.version,
            "file": package.file,
            "bytes": package.size,
            "sha256": package.sha256,
            "licence": package.source.licence,
            "licences_in_copyright_file": list(package.licences),
            "holds": package.source.holds,
            **({"fluidsynth": player} if player else {}),
            **counts,
            "pieces": len(rows),
            "seconds": round(float(rows["samples"].sum()) / audio.SAMPLE_RATE, 1),
            "samples_sha256": files.sha256_file(samples),
        }
        files.write_text(report, json.dumps(told, indent=1) + "\n", error=CorpusError)
    return Part(name, samples, pd.read_parquet(table), json.loads(report.read_text(encoding="utf-8")))


def _decode(
    found: list[Recording], target: Path, limits: Limits, workers: int, say: Say
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Write the pieces of recordings, and return the counts of what was kept and the table of the pieces."""
    chunks = [tuple(found[at : at + _MANY]) for at in range(0, len(found), _MANY)]
    done = dict(in_processes(partial(_cut_all, limits=limits), chunks, workers, say=say))
    counts: Counter[str] = Counter({"recordings": len(found), "unreadable": 0, "silent": 0, "repeated": 0})
    rows: list[dict[str, Any]] = []
    reasons: list[str] = []
    seen: set[str] = set()
    offset = 0
    with files.atomic_path(target, error=CorpusError) as temporary, temporary.open("wb") as file:
        for recording, cut in (
            (recording, cut) for chunk in chunks for recording, cut in zip(chunk, done[chunk], strict=True)
        ):
            if isinstance(cut, str):
                counts["unreadable"] += 1
                reasons.append(f"{recording.key}: {cut}")
                continue
            if not cut.pieces:
                counts["silent"] += 1
                continue
            if cut.digest in seen:
                counts["repeated"] += 1
                continue
            seen.add(cut.digest)
            for number, piece in enumerate(cut.pieces):
                file.write(piece.tobytes())
                rows.append(
                    {
                        "key": recording.key,
                        "piece": number,
                        "offset": offset,
                        "samples": len(piece),
                        "kind": recording.kind,
                        "group": recording.group,
                        "digest": cut.digest,
                    }
                )
                offset += len(piece)
    columns = ["key", "piece", "offset", "samples", "kind", "group", "digest"]
    # The first few reasons are enough to see what is wrong with a package.
    return {**counts, "unreadable_examples": reasons[:5]}, pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class Cut:
    """A recording's digest and its pieces (int16, peak `PEAK`); no pieces if it is silent or too short."""

    digest: str
    pieces: tuple[NDArray[np.int16], ...]


def _cut_all(chunk: tuple[Recording, ...], limits: Limits) -> list[Cut | str]:
    """Cut many recordings; a recording that cannot be decoded gives the reason."""
    out: list[Cut | str] = []
    for recording in chunk:
        try:
            out.append(cut(sources.read(recording.path), recording.kind == "music", limits))
        except AudioError as cause:
            out.append(str(cause).replace(str(recording.path), "the file"))
    return out


def cut(pcm: NDArray[np.int16], music: bool, limits: Limits) -> Cut:
    """Cut a recording [N] into pieces: silence off both ends, at most so long and so many as the limits say."""
    digest = sources.digest(pcm)
    wave = pcm.astype(np.float32) / 32768.0
    if not len(wave) or float(np.abs(wave).max()) < SILENT:
        return Cut(digest, ())
    wave = augment.trim(wave)
    if len(wave) < SHORTEST * audio.SAMPLE_RATE:
        return Cut(digest, ())
    pieces = (augment.trim(piece) for piece in _spread(wave, limits, music=music))
    return Cut(digest, tuple(_stored(piece) for piece in pieces if float(np.abs(piece).max(initial=0.0)) >= SILENT))


def _spread(wave: augment.Wave, limits: Limits, *, music: bool) -> Iterator[augment.Wave]:
    """Yield equal pieces that cover a wave, or as many of the longest as are allowed, evenly spread over it."""
    longest = int(limits.seconds * audio.SAMPLE_RATE)
    allowed = limits.music_pieces if music else limits.pieces
    needed = -(-len(wave) // longest)
    if needed <= allowed:
        for start, end in zip(*_bounds(len(wave), needed), strict=True):
            yield wave[start:end]
        return
    for start in np.linspace(0, len(wave) - longest, allowed).astype(int):
        yield wave[start : start + longest]


def _bounds(length: int, count: int) -> tuple[list[int], list[int]]:
    edges = [length * index // count for index in range(count + 1)]
    return edges[:-1], edges[1:]


def _stored(wave: augment.Wave) -> NDArray[np.int16]:
    return sources.to_pcm(wave * np.float32(PEAK / float(np.abs(wave).max()))).astype(_SAMPLE)


def open_samples(path: Path) -> NDArray[np.int16]:
    """Map the samples of a part into memory."""
    return np.memmap(path, dtype=_SAMPLE, mode="r") if path.stat().st_size else np.zeros(0, _SAMPLE)
