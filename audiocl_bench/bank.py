"""Features of the pretrained network on disk: computed once, shared by all methods, orders, seeds, runs and processes.

    <home>/features/<backbone>-<key12>/features.f32    [clips of the store, width] float32, little-endian
                                       chunks.u64      one number per chunk of rows: 0, or 2^32 + CRC-32 of its bytes
                                       manifest.json   what the features are of

The key hashes all that decides a value: weights, network, front end with its number of frames, content key of the
store, what is read (`Readout.describe`), the code that computes it, and the kind of device, whose low bits differ.

Features are computed in fixed chunks of consecutive store rows, on the CPU with one thread for each chunk, so that the
bits of a row depend neither on who asked first, nor on a batch, nor on the number of threads. Chunks are written one
group after the other: values, a flush to the disk, then their numbers. A chunk whose bytes do not fit its number (torn,
damaged, of someone else) is computed again. Processes that fill a bank together share the chunks out among themselves
by locks that the system frees when their holder dies.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import os
import re
import shutil
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from audiocl_bench import audio, files, readout
from audiocl_bench.backbones.base import Backbone, PassCounter
from audiocl_bench.errors import AudioclError, ConfigError
from audiocl_bench.memory import MappedPages
from audiocl_bench.readout import Readout
from audiocl_bench.store import HELD, Store

try:
    import fcntl
except ImportError:  # a system without locks of parts of files: processes may compute a chunk twice, with equal bytes
    fcntl = None  # type: ignore[assignment]

VERSION = 1
"""Raised whenever the layout changes; part of every key."""

CHUNK = 32
"""Clips per chunk."""

SWITCH = "AUDIOCL_FEATURES"
"""Environment variable: "off" leaves the bank unused."""

LIMIT = "AUDIOCL_FEATURES_GB"
"""Environment variable: the most that all banks together may take, in 10^9 bytes."""

_DEFAULT_LIMIT = 100.0
_SPARE = 10**9  # bytes of the disk that a bank leaves free
_MOST_THREADS = 8  # a chunk of EAT-base holds some 300 MB of activations
_PATIENCE = 10.0  # seconds of computing before it is told what takes so long, and again after each such time
_NAMES = ("features.f32", "chunks.u64", "manifest.json")
_WHOLE = 1 << 32
_SLUG = re.compile(r"[^A-Za-z0-9._-]+")


class BankError(AudioclError):
    """The bank cannot be used; features are then computed without it."""


def folder(home: Path | None = None) -> Path:
    """Return the folder of all banks."""
    return (files.home() if home is None else home) / "features"


def describe(store: Store, backbone: Backbone, what: Readout, device: torch.device) -> dict[str, Any]:
    """Return what decides the features, as plain values: the contents of a bank's key.

    Raises:
        BankError: the weights have no hash, or the network's code has no file, so that nothing could be recognised.
    """
    if not backbone.weights_hash:
        raise BankError(f"backbone {backbone.name} has no weights_hash, by which its features could be recognised.")
    return {
        "version": VERSION,
        "chunk": CHUNK,
        "dtype": "float32",
        "device": device.type,
        "store": store.key,
        "clips": len(store),
        "weights": backbone.weights_hash,
        "network": [backbone.network, backbone.dim, backbone.depth, backbone.num_heads],
        "front_end": backbone.front_end.describe(),
        "readout": what.describe(),
        "code": _code_hash(backbone),
    }


def _code_hash(backbone: Backbone) -> str:
    """Hash the files of all code between a log-mel and a feature: whoever changes one gets other banks."""
    classes = [kind for part in {type(m) for m in backbone.modules()} | {type(backbone)} for kind in part.__mro__]
    modules = {m for kind in classes if (m := inspect.getmodule(kind)) and not _is_library(m.__name__)}
    try:
        paths = {inspect.getfile(module) for module in modules | {audio, readout}}
        return files.sha256_json(sorted(files.sha256_file(Path(path)) for path in paths))
    except (TypeError, OSError) as cause:
        raise BankError(f"the code of backbone {backbone.name} is in no file, so its features are not kept.") from cause


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in ("torch", "builtins", "abc", "typing", "collections")


class FeatureBank:
    """The bank of one backbone, store, readout and kind of device.

    Attributes:
        path: its folder.
        blocks: encoder blocks behind one row.
        computed: rows computed by this object.
        made: bool [chunks]: those that this object computed.
    """

    def __init__(
        self,
        store: Store,
        backbone: Backbone,
        what: Readout,
        device: torch.device,
        *,
        home: Path | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Open the bank, or make an empty one.

        Args:
            store: the clips.
            backbone: the network as it was pretrained; it is not changed, and its passes are not counted.
            what: what is read of it.
            device: where features are computed.
            home: cache directory, by default `files.home()`.
            tell: told in one line when a bank is rebuilt and when computing takes long.

        Raises:
            BankError: no space, no permission, or nothing to recognise the features by.
        """
        described = describe(store, backbone, what, device)
        key = files.sha256_json(described)
        slug = _SLUG.sub("-", backbone.name).strip(".-") or "backbone"
        self.path = folder(home) / f"{slug}-{key[:12]}"
        self.blocks = what.layers[-1]
        self.computed = 0
        self._store, self._backbone, self._readout, self._device, self._tell = store, backbone, what, device, tell
        self._width = what.width
        self._chunks = -(-len(store) // CHUNK)
        self._manifest = {"key": key, "width": what.width, "made_of": described}
        self._network: Backbone | None = None
        self._told_at = 0.0
        self.made = np.zeros(self._chunks, dtype=bool)
        self._trusted = np.zeros(self._chunks, dtype=bool)
        self._damaged: set[int] = set()
        try:
            if not self._is_sound():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(self.path.with_name(f"{self.path.name}.lock")):
                    if not self._is_sound():
                        self._create()
            # One opening for reading and writing: should somebody put new files in their place, both stay with these.
            self._handles = [_opened(self.path / name) for name in _NAMES[:2]]
            weakref.finalize(self, _close, self._handles)
            maps = [os.fdopen(os.dup(handle), "rb") for handle in self._handles]
            with maps[0], maps[1]:
                self._values = np.memmap(maps[0], "<f4", "r", shape=(len(store), self._width))
                self._numbers = np.memmap(maps[1], "<u8", "r", shape=(self._chunks,))
            self._pages, self._looked_at = MappedPages([self._values]), 0
        except OSError as cause:
            raise BankError(files.explain_os_error(cause, self.path)) from cause

    def __len__(self) -> int:
        return len(self._store)

    def has(self, rows: np.ndarray) -> np.ndarray:
        """Tell of every store row [n] whether its features are there and sound, bool [n]."""
        chunks = np.unique(rows // CHUNK)
        there = np.zeros(self._chunks, dtype=bool)
        there[chunks] = [self._is_whole(int(chunk)) for chunk in chunks]
        return there[rows // CHUNK]

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Return the features [n, width] of store rows [n], float32 on the CPU, computing the chunks that are missing.

        Raises:
            BankError: a chunk cannot be written, for want of space say.
        """
        missing = [int(chunk) for chunk in np.unique(rows // CHUNK) if not self._is_whole(int(chunk))]
        if missing:
            try:
                self._fill(missing)
            except OSError as cause:
                raise BankError(files.explain_os_error(cause, self.path)) from cause
        features = np.empty((len(rows), self._width), dtype=np.float32)
        step = max(HELD // (4 * self._width), 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            self._look_at(len(part))
            features[start : start + step] = self._values[part]
        return torch.from_numpy(features)

    def _look_at(self, rows: int) -> None:
        """Count the rows that are about to be read; give back the pages of the earlier ones when they are many."""
        if 4 * self._width * (self._looked_at + rows) > HELD:
            self._pages.give_back()
            self._looked_at = 0
        self._looked_at += rows

    # ---- the files --------------------------------------------------------------------------------------------------

    def _is_sound(self) -> bool:
        """Tell whether the files are there, of this key, and of the right size."""
        sizes = (4 * self._width * len(self._store), 8 * self._chunks)
        try:
            known = json.loads((self.path / _NAMES[2]).read_text("utf-8"))
            return known == self._manifest and sizes == tuple((self.path / n).stat().st_size for n in _NAMES[:2])
        except (OSError, ValueError):
            return False

    def _create(self) -> None:
        """Make empty files in the place of whatever is there. The caller holds the lock."""
        if self.path.is_dir() and any((self.path / name).exists() for name in _NAMES):
            self._tell(f"the features in {self.path} are damaged: they are computed again.")
        need = 4 * self._width * len(self._store)
        self.path.mkdir(parents=True, exist_ok=True)
        limit = _limit()
        if need + size(self.path.parent) > limit:
            raise BankError(
                f"the kept features in {self.path.parent} would pass {limit / 1e9:g} GB: "
                f"clear them with `audiocl data features --clear`, or raise {LIMIT}."
            )
        if need + _SPARE > shutil.disk_usage(self.path).free:
            raise BankError(
                f"{need / 1e9:.1f} GB for features do not fit on the disk of {self.path.parent}: free some space, or "
                "point AUDIOCL_HOME at another disk."
            )
        (self.path / _NAMES[2]).unlink(missing_ok=True)
        for name, length in zip(_NAMES[:2], (need, 8 * self._chunks), strict=True):
            with files.atomic_path(self.path / name, error=BankError) as temporary, temporary.open("wb") as stream:
                stream.truncate(length)  # holes: space is taken as chunks are written
        files.write_text(
            self.path / _NAMES[2], json.dumps(self._manifest, indent=1, sort_keys=True) + "\n", error=BankError
        )

    def _is_whole(self, chunk: int) -> bool:
        """Tell whether a chunk is complete and its bytes fit; they are looked at once by every process."""
        if not self._trusted[chunk] and self._numbers[chunk]:
            rows = _rows(chunk, len(self._store))
            self._look_at(len(rows))
            sound = int(self._numbers[chunk]) == _number(self._values[rows].tobytes())
            if not sound and chunk not in self._damaged:
                self._damaged.add(chunk)
                self._tell(f"features in {self.path} are damaged (chunk {chunk}): they are computed again.")
            self._trusted[chunk] = sound
        return bool(self._trusted[chunk])

    # ---- computing --------------------------------------------------------------------------------------------------

    def _fill(self, missing: Sequence[int]) -> None:
        """Compute missing chunks: first those that nobody else is computing, then what is left once the others end."""
        began = self._told_at = time.monotonic()
        threads = min(torch.get_num_threads(), _MOST_THREADS) if self._device.type == "cpu" else 1
        with contextlib.ExitStack() as open_files:
            values, numbers = (open_files.enter_context(os.fdopen(os.dup(handle), "r+b")) for handle in self._handles)
            left, done = list(missing), 0
            others: list[int] = []
            while left or others:
                wait = not left
                group: list[int] = []
                while (left or (wait and others)) and len(group) < (1 if wait else 4 * threads):
                    chunk = left.pop(0) if left else others.pop(0)
                    if not _claim(numbers.fileno(), chunk, wait=wait):
                        others.append(chunk)
                    elif self._is_whole(chunk):  # somebody finished it meanwhile
                        _release(numbers.fileno(), chunk)
                    else:
                        group.append(chunk)
                try:
                    made = self._compute(group, threads)
                    for chunk, rows in made:
                        values.seek(4 * self._width * chunk * CHUNK)
                        values.write(rows)
                    if made:
                        values.flush()
                        os.fsync(values.fileno())
                    for chunk, rows in made:
                        numbers.seek(8 * chunk)
                        numbers.write(np.array([_number(rows)], "<u8").tobytes())
                        numbers.flush()
                        self._trusted[chunk] = self.made[chunk] = True
                finally:
                    for chunk in group:
                        _release(numbers.fileno(), chunk)
                done += len(group)
                self._say(done, len(missing), began)

    def _say(self, done: int, total: int, began: float) -> None:
        now = time.monotonic()
        if done < total and now - self._told_at >= _PATIENCE:
            self._told_at = now
            rest = (now - began) / max(done, 1) * (total - done)
            self._tell(
                f"features of the pretrained {self._backbone.name} are computed once and kept: "
                f"{done * CHUNK:,} of {total * CHUNK:,} clips, about {rest:,.0f} s left."
            )

    def _compute(self, chunks: Sequence[int], threads: int) -> list[tuple[int, bytes]]:
        """Return the bytes of every chunk."""
        if not chunks:
            return []
        network = self._pretrained()
        with _one_thread():
            if threads == 1 or len(chunks) == 1:
                made = [self._encode(network, chunk) for chunk in chunks]
            else:
                with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                    made = list(pool.map(lambda chunk: self._encode(network, chunk), chunks))
        for chunk in chunks:
            self.computed += len(_rows(chunk, len(self._store)))
        return list(zip(chunks, made, strict=True))

    def _encode(self, network: Backbone, chunk: int) -> bytes:
        rows = _rows(chunk, len(self._store))
        mel = network.front_end.normalise(self._store.batch(rows)).to(self._device)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            return self._readout(network, mel).float().cpu().numpy().astype("<f4").tobytes()

    def _pretrained(self) -> Backbone:
        """Return the network on the device, with a counter of its own."""
        if self._network is None:
            own = self._backbone
            here = next(own.parameters()).device == self._device
            self._network = copy.copy(own) if here else copy.deepcopy(own).to(self._device)
            self._network.passes = PassCounter()
        return self._network


def _opened(path: Path) -> int:
    """Open a file to read and write, or only to read where it may not be written."""
    try:
        return os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except PermissionError:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def _close(handles: Sequence[int]) -> None:
    for handle in handles:
        with contextlib.suppress(OSError):
            os.close(handle)


def _rows(chunk: int, clips: int) -> np.ndarray:
    return np.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, clips))


def _number(content: bytes) -> int:
    return _WHOLE + zlib.crc32(content)


def _claim(handle: int, chunk: int, *, wait: bool) -> bool:
    """Lock a chunk for this process; tell whether that was possible. With `wait` it always is, in the end."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 8, 8 * chunk)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _release(handle: int, chunk: int) -> None:
    if fcntl is not None:
        fcntl.lockf(handle, fcntl.LOCK_UN, 8, 8 * chunk)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one torch thread: sums over several threads may differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _limit() -> float:
    text = os.environ.get(LIMIT, "")
    try:
        return 1e9 * (float(text) if text else _DEFAULT_LIMIT)
    except ValueError:
        raise ConfigError(f"{LIMIT} is '{text}', but it must be a number of GB.") from None


# ---- what is there --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BankInfo:
    """A bank on disk: its folder, backbone readout and clips as the manifest says, and the bytes that it takes."""

    path: Path
    clips: int
    layers: tuple[int, ...]
    statistics: tuple[str, ...]
    complete: float
    bytes: int


def listing(home: Path | None = None) -> list[BankInfo]:
    """Return all banks, by name; a folder that is none is left out."""
    found = []
    for path in sorted(folder(home).glob("*/")):
        try:
            made_of = json.loads((path / _NAMES[2]).read_text("utf-8"))["made_of"]
            numbers = np.fromfile(path / _NAMES[1], "<u8")
            found.append(
                BankInfo(
                    path,
                    int(made_of["clips"]),
                    tuple(made_of["readout"]["layers"]),
                    tuple(made_of["readout"]["statistics"]),
                    float((numbers > 0).mean()) if len(numbers) else 1.0,
                    _bytes_of(path),
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def size(path: Path | None = None) -> int:
    """Return the bytes on disk of all banks."""
    return sum(_bytes_of(each) for each in (folder() if path is None else path).glob("*/"))


def clear(home: Path | None = None) -> int:
    """Delete all banks and return the bytes that became free. Runs that are under way keep what they opened."""
    freed = 0
    for path in folder(home).glob("*/"):
        if not any((path / name).exists() for name in _NAMES):
            continue  # not ours
        freed += _bytes_of(path)
        for name in reversed(_NAMES):
            (path / name).unlink(missing_ok=True)
        for part in path.glob(".*.part"):
            part.unlink(missing_ok=True)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.rmdir()
    return freed


def _bytes_of(path: Path) -> int:
    total = 0
    for name in _NAMES:
        with contextlib.suppress(OSError):
            status = (path / name).stat()
            total += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    return total


# ---- what a run takes of it -----------------------------------------------------------------------------------------


class RunFeatures:
    """What a run takes of the banks: opens them when first asked, and keeps account of the work that stands behind.

    A clip counts once per run as a pass of the encoder, as if the run had made it; its blocks count as `reused` where
    the bank had them, else as needed. The blocks of whole chunks that were computed count as run.
    """

    def __init__(
        self,
        store: Store,
        backbone: Backbone,
        device: torch.device,
        tell: Callable[[str], None],
    ) -> None:
        """Take features of `store` under `backbone`, computed on `device`; `tell` gets what the user should read."""
        self._store, self._backbone, self._device = store, backbone, device
        self._tell = tell
        self._off = os.environ.get(SWITCH, "").lower() in ("off", "0", "no", "false")
        self._banks: dict[Readout, FeatureBank | None] = {}
        self._asked: dict[Readout, np.ndarray] = {}  # rows that this run took, and chunks that it computed, packed:
        self._own: dict[Readout, np.ndarray] = {}  # both survive a restart, so that nothing is counted twice

    def read(self, what: Readout, rows: np.ndarray, passes: PassCounter) -> torch.Tensor | None:
        """Return f_0 [n, width] of store rows [n] on the device, counted in `passes`, or None without a bank."""
        bank = self._bank(what)
        if bank is None:
            return None
        asked = self._asked.setdefault(what, np.zeros(len(self._store), dtype=bool))
        own = self._own.setdefault(what, np.zeros(len(bank.made), dtype=bool))
        fresh = np.unique(rows[~asked[rows]])
        before = bank.computed
        try:
            had = bank.has(fresh)
            features = bank.read(rows)
        except BankError as cause:
            self._tell(f"{cause} This run goes on without kept features.")
            self._banks[what] = None
            return None
        finally:
            passes.block_runs += (bank.computed - before) * bank.blocks
        own |= bank.made
        asked[fresh] = True
        earlier = int((had & ~own[fresh // CHUNK]).sum())
        passes.clips += len(fresh)
        passes.reused += earlier * bank.blocks
        passes.needed += (len(fresh) - earlier) * bank.blocks
        return features.to(self._device)

    def _bank(self, what: Readout) -> FeatureBank | None:
        if self._off:
            return None
        if what not in self._banks:
            try:
                self._banks[what] = FeatureBank(self._store, self._backbone, what, self._device, tell=self._tell)
            except BankError as cause:
                self._tell(f"{cause} This run goes on without kept features.")
                self._banks[what] = None
        return self._banks[what]

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what was counted, for a checkpoint."""
        return [
            {
                **what.describe(),
                "dim": what.dim,
                "asked": torch.from_numpy(np.packbits(asked)),
                "own": torch.from_numpy(np.packbits(self._own[what])),
            }
            for what, asked in self._asked.items()
        ]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Restore what was counted."""
        chunks = -(-len(self._store) // CHUNK)
        for entry in state:
            what = Readout(tuple(entry["layers"]), tuple(entry["statistics"]), int(entry["dim"]))
            for kept, name, count in ((self._asked, "asked", len(self._store)), (self._own, "own", chunks)):
                kept[what] = np.unpackbits(entry[name].numpy(), count=count).astype(bool)
