"""Prepared clips on disk: every clip is decoded and turned into its log-mel once per front-end setting.

A store is a folder of Arrow shards that the `datasets` library opens memory-mapped, with the columns `clip_id`
(string), `frames` (int32) and `mel` (large_binary: float16, little-endian, [frames, n_mels] in C order, unpadded). A
manifest, written last, lists every shard with its size and SHA-256; a folder without one is unfinished.

    <home>/store/<name>-<key12>/shard-00000.arrow ... manifest.json
    <home>/store/<name>.bad-files.txt        files that stopped the last preparation
    <home>/fingerprints/<name>-<hash16>.json (path, size, mtime) of all clips -> content hashes

The key hashes the clip ids, the bytes of the audio files and the front end, never a path: a moved corpus keeps its
store, a changed file gets another. Each shard also carries the hash of its own inputs, so a new store takes over the
shards of older ones whose clips did not change, and the hash of its own values, so that it can be trusted without a
manifest.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import MemoryMappedTable, concat_tables
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from audiocl_bench import audio, files
from audiocl_bench.audio import FrontEnd
from audiocl_bench.errors import AudioclError, ConfigError, StoreError
from audiocl_bench.memory import MappedPages
from audiocl_bench.processes import cores, in_processes

VERSION = 1
"""Raised whenever the layout of a store changes; part of every key, so that no version reads another's files."""

SHARD_CLIPS = 128
"""Mean number of clips per shard: some 10 MB, one to two seconds of one process."""

_MANIFEST = "manifest.json"
_SCHEMA = pa.schema([("clip_id", pa.string()), ("frames", pa.int32()), ("mel", pa.large_binary())])
_METADATA = b"audiocl"
_MEL = np.dtype("<f2")
_MAX_WORKERS = 8  # a worker holds some 300 MB (torch), and decoding soon waits for the disk
_IN_PROCESS = 64  # starting processes takes seconds: below this many clips it does not pay
_NAMED = 20  # bad files named in the error message; the text file holds all
_HASHED_TOGETHER = 64
HELD = 512 << 20  # bytes looked at until their pages are given back: what a store, or a bank, adds to resident memory


# ------------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class _Shard:
    """One planned shard: rows `first` ... `first + clips - 1` of the sorted clips."""

    file: str
    first: int
    clips: int
    inputs: str


@dataclass(frozen=True)
class _Record:
    """One finished shard, as the manifest lists it."""

    file: str
    clips: int
    bytes: int
    sha256: str
    mtime_ns: int
    inputs: str


@dataclass(frozen=True)
class _Job:
    """What a process needs to build one shard."""

    target: Path
    inputs: str
    clips: list[tuple[str, str]]
    front_end: FrontEnd


@dataclass(frozen=True)
class _Built:
    """What came of a job: a record, or the reasons why there is none."""

    record: _Record | None = None
    bad: tuple[str, ...] = ()
    changed: bool = False


@dataclass(frozen=True)
class _Content:
    """Hashes over (clip id, SHA-256 of the audio file): of all clips, and shard by shard."""

    whole: str
    shards: tuple[str, ...]
    cache: Path


@dataclass(frozen=True)
class _Plan:
    """A store as it should be: where, of which clips (sorted), in which shards."""

    name: str
    slug: str
    path: Path
    key: str
    clips: list[tuple[str, str]]
    front_end: FrontEnd
    content: _Content
    shards: list[_Shard]

    @property
    def bad_list(self) -> Path:
        """Text file that lists the audio files that stopped the last preparation under this name."""
        return self.path.with_name(f"{self.slug}.bad-files.txt")


class _BrokenManifestError(Exception):
    """The manifest cannot be read or does not describe this store."""


# --------------------------------------------------------------------------------------------------------------- store


class Store:
    """Prepared clips, memory-mapped. Made by `prepare`; rows are sorted by clip id.

    Pickles as its path, so that data-loading processes open their own map instead of copying the clips.

    Attributes:
        path: folder of the shards.
        key: SHA-256 over clip ids, audio bytes and front end; its first 12 digits are in the folder's name.
        front_end: front end that made the log-mels and pads them.
        clip_ids: clip id of every row.
        frames: number of log-mel rows (10 ms each) of every clip, int32.
    """

    def __init__(self, path: Path, front_end: FrontEnd) -> None:
        """Open a finished store without checking the shards (`prepare` does).

        Raises:
            StoreError: `path` holds no finished store, or its shards do not fit the manifest or the front end.
        """
        try:
            manifest = _load_manifest(path)
            self._table = concat_tables([MemoryMappedTable.from_file(str(path / r.file)) for r in manifest.records])
            chunks = self._table.table.column("mel").chunks
            self.frames: np.ndarray = self._table.table.column("frames").to_numpy()
        except (_BrokenManifestError, OSError, pa.ArrowException) as cause:
            raise StoreError(f"{path} cannot be opened as a store ({cause}): prepare the clips again.") from cause
        self.path = path
        self.key = manifest.key
        self.front_end = front_end
        self.clip_ids: tuple[str, ...] = tuple(self._table.table.column("clip_id").to_pylist())
        self._row_of = {clip_id: row for row, clip_id in enumerate(self.clip_ids)}
        # One byte view per shard (pages of the mapped file), and where in it each row starts.
        views = [_values_and_offsets(chunk) for chunk in chunks]
        self._values = [values for values, _ in views]
        self._shard = np.repeat(np.arange(len(views)), [len(offsets) - 1 for _, offsets in views])
        self._start = np.concatenate([offsets[:-1] for _, offsets in views])
        lengths = np.concatenate([np.diff(offsets) for _, offsets in views])
        if not np.array_equal(lengths, self.frames.astype(np.int64) * (front_end.n_mels * _MEL.itemsize)):
            raise StoreError(f"{path} was not prepared for {front_end.n_mels} mel bins: prepare the clips again.")
        self._pages = MappedPages(self._values)
        self._pages.give_back()  # the system maps far more than the few pages that opening a shard reads
        self._looked_at: set[int] = set()  # shards whose pages may be resident

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self):,} clips)"

    def __reduce__(self) -> tuple[type[Store], tuple[Path, FrontEnd]]:
        return Store, (self.path, self.front_end)

    @property
    def dataset(self) -> Dataset:
        """The same rows as a `datasets.Dataset` over the same memory map."""
        return Dataset(self._table)

    def rows(self, clip_ids: Iterable[str]) -> np.ndarray:
        """Return the row of every clip id, int64, in the order given.

        Raises:
            StoreError: a clip id is not in the store.
        """
        try:
            return np.fromiter((self._row_of[clip_id] for clip_id in clip_ids), dtype=np.int64)
        except KeyError as unknown:
            raise StoreError(f"clip {unknown} is not in {self.path}: prepare the store with this clip.") from None

    def mels(self, rows: Sequence[int] | np.ndarray) -> list[Tensor]:
        """Return the raw, unpadded log-mels of `rows`: one [n, M] float32 tensor each, in the order given.

        Values are those of `FrontEnd.extract` rounded to float16 (relative error at most 2^-11).

        Raises:
            IndexError: a row is negative or past the end.
        """
        return [torch.from_numpy(mel.astype(np.float32)) for mel in self._stored(rows)]

    def batch(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Return the raw log-mels of `rows`, padded or cut by the front end: [B, frames, M] float32.

        Raises:
            IndexError: a row is negative or past the end.
        """
        found = self._stored(rows)
        fitted = self.front_end.silence(len(found))
        for clip, mel in zip(fitted.numpy(), found, strict=True):
            clip[: len(mel)] = mel[: len(clip)]
        return fitted

    def _stored(self, rows: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Return the log-mels of `rows` as they lie in the map: read-only float16 views [n, M]."""
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows of {self.path} are 0 to {len(self) - 1}, not {wanted.min()} to {wanted.max()}")
        n_mels = self.front_end.n_mels
        lengths = self.frames[wanted].astype(np.int64) * (n_mels * _MEL.itemsize)
        self._look_at(set(self._shard[wanted].tolist()))
        return [
            self._values[shard][start : start + length].view(_MEL).reshape(-1, n_mels)
            for shard, start, length in zip(
                self._shard[wanted].tolist(), self._start[wanted].tolist(), lengths.tolist(), strict=True
            )
        ]

    def _look_at(self, shards: set[int]) -> None:
        """Count the shards that are about to be read; give back the pages of the earlier ones when they are many."""
        held = self._looked_at | shards
        if sum(self._values[shard].nbytes for shard in held) > HELD:
            self._pages.give_back(self._looked_at)
            held = shards
        self._looked_at = held


def _values_and_offsets(chunk: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a large_binary array's bytes and its [length + 1] offsets into them, without copying."""
    _, offsets, values = chunk.buffers()
    view = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    return np.frombuffer(values, dtype=np.uint8), view


# ------------------------------------------------------------------------------------------------------------- prepare


def prepare(
    clips: pd.DataFrame,
    front_end: FrontEnd,
    *,
    name: str,
    home: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Store:
    """Open the store of these clips, after preparing whatever of it is missing, changed or damaged.

    Finished shards survive an interruption (Ctrl-C, a kill, a full disk, unreadable audio) and are not made again.
    Processes that prepare the same store at once wait for each other. The bytes of a shard depend on its clips and the
    front end only, not on the number of processes.

    Args:
        clips: columns `clip_id` (unique) and `path` (absolute); other columns are ignored, the order does not matter.
        front_end: makes and later pads the log-mels.
        name: what the folder is called, usually the corpus; not part of the key.
        home: cache directory; by default `files.home()`.
        workers: number of processes; by default one per available core, at most 8. One, or fewer than 64 clips to
            make, runs in this process.
        progress: show progress (clips/s, time left) on standard error; elsewhere than on a terminal, two lines.

    Raises:
        StoreError: audio files cannot be used (all of them are listed, in full in a text file beside the store), the
            clips are not a proper table, or the store cannot be written.
        ConfigError: `workers` is below 1.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers: at least 1 process is needed, not {workers}.")
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # Reached while a worker imports the user's script. Its parent holds the lock, so going on would wait for ever.
        raise StoreError("clips cannot be prepared on import: put the call under `if __name__ == '__main__':`.")
    home = files.home() if home is None else home
    tell = _Teller(name, progress)
    plan = _planned(_checked(clips), front_end, name, home, tell)
    if not _is_whole(plan):
        with _locked(plan.path, tell):
            if not _is_whole(plan):  # another process may have finished it while this one waited
                _complete(plan, min(_MAX_WORKERS, cores()) if workers is None else workers, tell)
    return Store(plan.path, front_end)


def _planned(clips: list[tuple[str, str]], front_end: FrontEnd, name: str, home: Path, tell: _Teller) -> _Plan:
    """Find the key, the place and the shards of these clips' store."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "clips"
    content = _content(clips, home / "fingerprints", slug, tell)
    key = files.sha256_json({"version": VERSION, "content": content.whole, "front_end": front_end.store_key})
    cuts = _cuts([clip_id for clip_id, _ in clips])
    shards = [
        _Shard(f"shard-{number:05d}.arrow", first, size, _shard_key(inputs, front_end))
        for number, ((first, size), inputs) in enumerate(zip(cuts, content.shards, strict=True))
    ]
    return _Plan(name, slug, home / "store" / f"{slug}-{key[:12]}", key, clips, front_end, content, shards)


def _complete(plan: _Plan, workers: int, tell: _Teller) -> None:
    """Make the missing shards of a store and write its manifest. The caller holds the lock."""
    for leftover in plan.path.glob(".*.part"):
        leftover.unlink(missing_ok=True)
    records, problems = _survey(plan)
    if problems:
        shown = ", ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")
        tell.say(f"the prepared clips in {plan.path} are damaged ({shown}): rebuilding what is affected.")
    records |= _taken_over(plan, records)
    jobs = [
        _Job(plan.path / shard.file, shard.inputs, plan.clips[shard.first : shard.first + shard.clips], plan.front_end)
        for shard in plan.shards
        if shard.file not in records
    ]
    bad: list[str] = []
    changed = False
    finished = sum(record.clips for record in records.values())
    if jobs:
        with tell.track("preparing", len(plan.clips), finished) as advance, closing(_run(jobs, workers, tell)) as run:
            for job, built in run:
                bad.extend(built.bad)
                changed |= built.changed
                if built.record is not None:
                    records[built.record.file] = built.record
                advance(len(job.clips))
    if changed:
        plan.content.cache.unlink(missing_ok=True)
    if bad:
        raise StoreError(_bad_files_message(sorted(bad), plan))
    if changed:
        raise StoreError(f"audio files of {plan.name} changed while they were being prepared: run again.")
    _write_manifest(plan, [records[shard.file] for shard in plan.shards])
    plan.bad_list.unlink(missing_ok=True)


def _bad_files_message(bad: list[str], plan: _Plan) -> str:
    """Write the whole list of unusable files and return the message that names the first of them."""
    lines = [line.encode("utf-8", "backslashreplace").decode("utf-8") for line in bad]
    files.write_text(plan.bad_list, "\n".join(lines) + "\n", error=StoreError)
    more = f"\n  ... and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return (
        f"{len(lines)} audio file{'s' if len(lines) > 1 else ''} of {plan.name} cannot be used; repair or remove, then "
        f"run again (finished clips are kept; full list: {plan.bad_list}):"
        + "".join(f"\n  {line}" for line in lines[:_NAMED])
        + more
    )


def _checked(clips: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (clip id, path) sorted by clip id, or say what is wrong with the table."""
    absent = [column for column in ("clip_id", "path") if column not in clips.columns]
    if absent:
        raise StoreError(f"the table of clips lacks the column {' and '.join(absent)}: give clip_id and path.")
    if clips.empty:
        raise StoreError("the table of clips is empty: give at least one clip.")
    table = sorted((str(clip_id), str(path)) for clip_id, path in zip(clips["clip_id"], clips["path"], strict=True))
    for (clip_id, _), (following, _) in pairwise(table):
        if clip_id == following:
            raise StoreError(f"clip id '{clip_id}' occurs twice in the table of clips: give every clip its own id.")
    try:
        "".join(clip_id for clip_id, _ in table).encode("utf-8")
    except UnicodeEncodeError as cause:
        raise StoreError(f"a clip id is not valid Unicode ({cause.reason}): rename its audio file.") from cause
    return table


# ------------------------------------------------------------------------------------------------------------- content


def _cuts(clip_ids: list[str]) -> list[tuple[int, int]]:
    """Cut sorted clips into shards: (first, number) each, half to twice `SHARD_CLIPS`.

    The cuts depend on the clip ids around them (content-defined chunking), so that a clip more or less moves the
    borders near it only and the other shards can be taken over.
    """
    least, most = max(1, SHARD_CLIPS // 2), 2 * SHARD_CLIPS
    cuts, first = [], 0
    for after, clip_id in enumerate(clip_ids, start=1):
        size = after - first
        draw = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:4], "big")
        if size == most or (size >= least and draw % least == 0):
            cuts.append((first, size))
            first = after
    if first < len(clip_ids):
        cuts.append((first, len(clip_ids) - first))
    return cuts


def _content(clips: list[tuple[str, str]], cache: Path, slug: str, tell: _Teller) -> _Content:
    """Return the content hashes: from the fingerprint cache where no file changed, else by reading all audio."""
    cuts = _cuts([clip_id for clip_id, _ in clips])
    rows = [[clip_id, path, *_size_and_mtime(path)] for clip_id, path in clips]
    # ASCII JSON, because a path may hold bytes that are not UTF-8.
    fingerprint = hashlib.sha256(json.dumps([VERSION, SHARD_CLIPS, rows]).encode()).hexdigest()
    cached = cache / f"{slug}-{fingerprint[:16]}.json"
    known = _load_fingerprint(cached, fingerprint, len(cuts))
    if known is not None:
        return known
    hashes = _hash_all([path for _, path in clips], tell)
    pairs = [(clip_id, digest) for (clip_id, _), digest in zip(clips, hashes, strict=True)]
    shards = tuple(files.sha256_json(pairs[first : first + size]) for first, size in cuts)
    content = _Content(files.sha256_json(pairs), shards, cached)
    if all(map(_is_hash, hashes)):
        entry = {"fingerprint": fingerprint, "content": content.whole, "shards": shards}
        # A finished store in a read-only cache still opens; where it has to be written, that write reports the error.
        with suppress(StoreError):
            files.write_text(cached, files.canonical_json(entry), error=StoreError)
    return content


def _load_fingerprint(cached: Path, fingerprint: str, shards: int) -> _Content | None:
    """Return the content hashes a cache file holds; None where it is absent or broken (it only saves time)."""
    try:
        known = json.loads(cached.read_text("utf-8"))
        content = _Content(known["content"], tuple(known["shards"]), cached)
        if known["fingerprint"] == fingerprint and len(content.shards) == shards:
            return content if all(map(_is_hash, (content.whole, *content.shards))) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _size_and_mtime(path: str) -> tuple[int, int]:
    """Return size and mtime in ns; (-1, -1) for a file that cannot be read, which preparation will report."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path object per file would double the time of 100,000 files
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _hash_all(paths: list[str], tell: _Teller) -> list[str]:
    """Return the SHA-256 of every file, or "unreadable"."""
    groups = [paths[first : first + _HASHED_TOGETHER] for first in range(0, len(paths), _HASHED_TOGETHER)]
    hashes: list[str] = []
    with tell.track("hashing", len(paths), 0, quiet=True) as advance, ThreadPoolExecutor(_MAX_WORKERS) as threads:
        try:
            for found in threads.map(_hash_group, groups):
                hashes.extend(found)
                advance(len(found))
        except KeyboardInterrupt:
            threads.shutdown(cancel_futures=True)
            raise
    return hashes


def _hash_group(paths: list[str]) -> list[str]:
    hashes = []
    for path in paths:
        try:
            hashes.append(files.sha256_file(Path(path)))
        except (OSError, ValueError):
            hashes.append("unreadable")
    return hashes


def _shard_key(inputs: str, front_end: FrontEnd) -> str:
    """Return the hash of all that a shard's bytes depend on."""
    return files.sha256_json({"version": VERSION, "inputs": inputs, "front_end": front_end.store_key})


# -------------------------------------------------------------------------------------------------------------- shards


def _run(jobs: list[_Job], workers: int, tell: _Teller) -> Generator[tuple[_Job, _Built], None, None]:
    """Build shards, in other processes where that pays, and yield each as it is done."""
    few = sum(len(job.clips) for job in jobs) < _IN_PROCESS
    with _one_thread():  # as the workers do
        yield from in_processes(_build, jobs, 1 if few else workers, say=tell.say, start=_start_worker)


def _start_worker() -> None:
    torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one torch thread, as the workers do: sums over several threads may differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _build(job: _Job) -> _Built:
    """Decode the clips of one shard and write it. Reports every bad file instead of stopping at the first."""
    bad: list[str] = []
    pairs: list[tuple[str, str]] = []
    mels: list[np.ndarray] = []
    for clip_id, path in job.clips:
        try:
            pairs.append((clip_id, files.sha256_file(Path(path))))
            mels.append(_mel(Path(path), job.front_end))
        except (AudioclError, OSError, RuntimeError, ValueError) as cause:
            reason = str(cause).replace("\n", " ")
            bad.append(reason if path in reason else f"{path}: {reason}")
    if bad:
        return _Built(bad=tuple(bad))
    if _shard_key(files.sha256_json(pairs), job.front_end) != job.inputs:
        return _Built(changed=True)
    return _Built(_write_shard(job.target, job.inputs, [clip_id for clip_id, _ in job.clips], mels))


def _mel(path: Path, front_end: FrontEnd) -> np.ndarray:
    mel = front_end.extract(audio.load(path)).numpy().astype(_MEL)
    if not len(mel):
        raise StoreError(f"{path} is shorter than one frame: replace the file or leave it out of the data.")
    if not np.isfinite(mel).all():
        raise StoreError(f"{path} has a log-mel that is not finite: export the file again.")
    return mel


def _write_shard(target: Path, inputs: str, clip_ids: list[str], mels: list[np.ndarray]) -> _Record:
    """Write one shard; its bytes follow from the arguments alone."""
    batch = pa.record_batch(
        [
            pa.array(clip_ids, pa.string()),
            pa.array([len(mel) for mel in mels], pa.int32()),
            pa.array([mel.tobytes() for mel in mels], pa.large_binary()),
        ],
        schema=_SCHEMA,
    )
    described = files.canonical_json({"version": VERSION, "inputs": inputs, "values": _values_hash(batch)})
    batch = batch.replace_schema_metadata({_METADATA: described.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    written = memoryview(sink.getvalue())
    with files.atomic_path(target, error=StoreError) as temporary:
        temporary.write_bytes(written)
    return _record(target, written, len(clip_ids), inputs)


def _record(path: Path, content: bytes | memoryview, clips: int, inputs: str) -> _Record:
    digest = hashlib.sha256(content).hexdigest()
    return _Record(path.name, clips, len(content), digest, path.stat().st_mtime_ns, inputs)


def _values_hash(batch: Any) -> str:
    """Return the SHA-256 over the values of a record batch, whatever the bytes around them."""
    clip_ids, frames, mel = (batch.column(name) for name in _SCHEMA.names)
    values, offsets = _values_and_offsets(mel)
    digest = hashlib.sha256(files.canonical_json([clip_ids.to_pylist(), frames.to_pylist()]).encode("utf-8"))
    digest.update(np.diff(offsets).data)
    digest.update(values[offsets[0] : offsets[-1]].data)
    return digest.hexdigest()


def _trusted(path: Path, inputs: str) -> _Record | None:
    """Return the record of a shard that has these inputs and whose values fit its own hash, else None."""
    try:
        content = path.read_bytes()
        with pa.ipc.open_stream(pa.py_buffer(content)) as reader:
            table = reader.read_all()
        table.validate(full=True)
        described = json.loads(table.schema.metadata[_METADATA])
        (batch,) = table.to_batches()
        if described["inputs"] == inputs and described["values"] == _values_hash(batch):
            return _record(path, content, batch.num_rows, inputs)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        pass  # absent, cut short or changed: whatever the reason, it is made again
    return None


def _taken_over(plan: _Plan, records: dict[str, _Record]) -> dict[str, _Record]:
    """Link (or copy) missing shards from other stores of this name that hold the very same clips."""
    wanted = {shard.inputs: plan.path / shard.file for shard in plan.shards if shard.file not in records}
    taken: dict[str, _Record] = {}
    for source in sorted(plan.path.parent.glob(f"{plan.slug}-*/shard-*.arrow")) if wanted else ():
        inputs = _inputs_of(source)
        if inputs not in wanted or source.parent == plan.path:
            continue
        target = wanted[inputs]
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:  # a file system without hard links
            with files.atomic_path(target, error=StoreError) as temporary:
                shutil.copyfile(source, temporary)
        record = _trusted(target, inputs)
        if record is not None:
            taken[target.name] = record
            del wanted[inputs]
    return taken


def _inputs_of(path: Path) -> str:
    """Return the inputs hash a shard claims in its header ("" where it has none)."""
    try:
        with path.open("rb") as handle, pa.ipc.open_stream(handle) as reader:
            return str(json.loads(reader.schema.metadata[_METADATA])["inputs"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return ""


# ------------------------------------------------------------------------------------------------------------ manifest


@dataclass(frozen=True)
class _Manifest:
    key: str
    records: tuple[_Record, ...]


def _load_manifest(path: Path) -> _Manifest:
    """Read a store's manifest (FileNotFoundError where there is none, _BrokenManifestError where it is no use)."""
    try:
        known = json.loads((path / _MANIFEST).read_text("utf-8"))
        records = tuple(_Record(**entry) for entry in known["shards"])
        typed = all(type(getattr(record, f.name)).__name__ == f.type for record in records for f in fields(_Record))
        if known["version"] == VERSION and _is_hash(known["key"]) and records and typed:
            return _Manifest(known["key"], records)
    except (ValueError, KeyError, TypeError) as cause:
        raise _BrokenManifestError(f"{_MANIFEST} is damaged") from cause
    raise _BrokenManifestError(f"{_MANIFEST} is damaged")


def _write_manifest(plan: _Plan, records: list[_Record]) -> None:
    manifest = {
        "version": VERSION,
        "key": plan.key,
        "front_end": plan.front_end.describe(),
        "clips": len(plan.clips),
        "shards": [asdict(record) for record in records],
    }
    files.write_text(plan.path / _MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n", error=StoreError)


def _is_whole(plan: _Plan) -> bool:
    """Tell whether a finished store can be opened as it is."""
    try:
        manifest = _matching_manifest(plan)
    except (OSError, _BrokenManifestError):
        return False
    records, problems = _compared(plan.path, manifest)
    if problems:
        return False
    if tuple(records) != manifest.records:  # copied, say: the next opening need not hash the shards again
        with suppress(StoreError):
            _write_manifest(plan, records)
    return True


def _survey(plan: _Plan) -> tuple[dict[str, _Record], list[str]]:
    """Return the usable shards of a store, finished or not, and what is damaged."""
    problems: list[str] = []
    try:
        records, problems = _compared(plan.path, _matching_manifest(plan))
        return {record.file: record for record in records}, problems
    except FileNotFoundError:
        pass  # unfinished
    except (OSError, _BrokenManifestError):
        problems = [f"{_MANIFEST} is unusable"]
    present = [shard for shard in plan.shards if (plan.path / shard.file).exists()]
    with ThreadPoolExecutor(_MAX_WORKERS) as threads:
        found = threads.map(lambda shard: _trusted(plan.path / shard.file, shard.inputs), present)
        trusted = {record.file: record for record in found if record is not None}
    problems.extend(f"{shard.file} is unusable" for shard in present if shard.file not in trusted)
    return trusted, problems


def _matching_manifest(plan: _Plan) -> _Manifest:
    manifest = _load_manifest(plan.path)
    planned = [(shard.file, shard.clips, shard.inputs) for shard in plan.shards]
    if manifest.key != plan.key or [(r.file, r.clips, r.inputs) for r in manifest.records] != planned:
        raise _BrokenManifestError(f"{_MANIFEST} describes other clips")
    return manifest


def _compared(path: Path, manifest: _Manifest) -> tuple[list[_Record], list[str]]:
    """Compare every shard with the manifest. Returns the sound ones, with their present mtime, and what is wrong."""
    with ThreadPoolExecutor(_MAX_WORKERS) as threads:
        verdicts = list(threads.map(lambda record: _verdict(path / record.file, record), manifest.records))
    return [v for v in verdicts if isinstance(v, _Record)], [v for v in verdicts if isinstance(v, str)]


def _verdict(path: Path, record: _Record) -> _Record | str:
    """Return the record of a sound shard, else what is wrong: size and mtime, and the SHA-256 if that differs."""
    try:
        status = path.stat()
        if status.st_size != record.bytes:
            return f"{path.name} has {status.st_size:,} bytes instead of {record.bytes:,}"
        if status.st_mtime_ns == record.mtime_ns:
            return record
        if files.sha256_file(path) == record.sha256:
            return replace(record, mtime_ns=status.st_mtime_ns)
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as cause:
        return f"{path.name} cannot be read: {cause.strerror}"
    return f"{path.name} was changed"


# ------------------------------------------------------------------------------------------------------ lock and notice


@contextmanager
def _locked(path: Path, tell: _Teller) -> Iterator[None]:
    """Hold the store's lock, which the system frees even when its holder is killed."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell.say(f"another process is preparing {tell.name}: waiting for it.")
            lock.acquire()
    except OSError as cause:
        raise StoreError(files.explain_os_error(cause, path)) from cause
    try:
        yield
    finally:
        lock.release()


class _SpeedColumn(ProgressColumn):
    """Clips per second."""

    def render(self, task: Task) -> Text:
        """Return the speed, or a dash before there is one."""
        return Text(f"{task.speed:,.0f} clips/s" if task.speed else "- clips/s", style="progress.data.speed")


class _Teller:
    """Says on standard error what is going on: a bar on a terminal, a line at the start and at the end elsewhere."""

    def __init__(self, name: str, progress: bool) -> None:
        self.name = name
        self._progress = progress
        self._console = Console(file=sys.stderr)

    def say(self, line: str) -> None:
        """Print one line as it is: file names may look like markup."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def track(self, verb: str, total: int, done: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes the number of clips just finished; `quiet` keeps to terminals."""
        kept = f" ({done:,} are finished already)" if done else ""
        if self._progress and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _SpeedColumn(),
            )
            with Progress(*columns, TimeRemainingColumn(), console=self._console, transient=quiet) as bar:
                task = bar.add_task(f"{verb} {self.name}", total=total, completed=done)
                yield lambda clips: bar.advance(task, clips)
        elif self._progress and not quiet:
            began = time.perf_counter()
            self.say(f"{verb} {total:,} clips of {self.name}{kept}")
            yield lambda clips: None
            taken = time.perf_counter() - began
            self.say(f"{verb} {self.name} took {taken:.1f} s ({(total - done) / max(taken, 1e-9):,.0f} clips/s)")
        else:
            yield lambda clips: None
