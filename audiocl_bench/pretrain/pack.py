"""Packed training clips: log-mels as bytes and a teacher's targets, made once, mapped into memory for training.

    <folder>/manifest.json     what it was made of; written last: a pack exists if and only if this file does
    <folder>/clips.parquet     one row per clip
    <folder>/mel.u8            [all frames, 128] uint8: raw kaldi log-mel, LOW + STEP * value
    <folder>/targets.f16       [all time patches, layers, dim] float16, little-endian; only with a teacher
    <folder>/shards-<key12>/   finished shards of a pack in the making; a later call goes on from there

Every clip is rendered from a generator seeded by (seed, recording, piece, variant) alone and every shard holds the same
clips whoever makes it, so the bytes do not depend on the number of processes or on interruptions.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from audiocl_bench import audio, config, files, seeding
from audiocl_bench.config import MethodConfig, setting
from audiocl_bench.errors import AudioclError, CheckpointError, ConfigError, CorpusError
from audiocl_bench.pretrain import augment, fingerprint, recordings, sources
from audiocl_bench.pretrain.recordings import Limits, Part
from audiocl_bench.pretrain.teacher import PATCH_FRAMES, Teacher
from audiocl_bench.processes import in_processes

MEL_BINS = 128
LOW = math.log(float(torch.finfo(torch.float32).eps))
"""Smallest value of a kaldi log-mel, stored as 0."""

STEP = 0.105
"""Nepers per stored step; 255 steps reach 10.8, which only a sine at full scale passes."""

VERSION = 1
"""Raised whenever equal recordings give other clips or files."""

SHARD_CLIPS = 256
"""Clips per shard: some ten minutes of audio, half a minute of one process with a teacher."""

_TOGETHER = 32  # clips of one length that pass the teacher at once
_TENTH = audio.SAMPLE_RATE // 10
_MANIFEST, _CLIPS, _MEL, _TARGETS = "manifest.json", "clips.parquet", "mel.u8", "targets.f16"
_F16_MAX = float(np.finfo(np.float16).max)
_OURS = "chosen for audiocl"
_PLACES = ("teacher", "held_out")  # settings that name places on this machine


# ------------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class AudioConfig(MethodConfig):
    """Table [audio] of a recipe: which recordings, how often, how varied, and which teacher.

    Attributes:
        packages: names of the catalogue (`sources.CATALOGUE`); empty takes its default ones.
        seed: of all variation.
        teacher: name or path of a Whisper encoder; empty makes a pack without targets.
        held_out: folders whose audio must not be trained on (those of evaluation streams): recordings that equal a file
            there are dropped. A folder that is not there is noted in the manifest.
        max_seconds: longest clip.
        pieces: most pieces of one recording; music_pieces the same for music.
        speech_variants: clips made of every piece of speech, on average (0.5 takes every other piece, drawn by lot);
            sound_variants, music_variants, instrument_variants the same for the other kinds.
        clean: share of the clips whose recordings are changed in level and place alone.
        sequences: share of the speech clips that hold several utterances of one speaker, one after the other.
        mixtures: share of the other clips to which one or two further recordings are added.

    Raises:
        ConfigError: a value is out of range.
    """

    packages: tuple[str, ...] = setting((), "all default packages of the catalogue")
    seed: int = setting(0, _OURS, low=0, high=2**31)
    teacher: str = setting("", _OURS)
    held_out: tuple[str, ...] = setting((), _OURS)
    max_seconds: float = setting(5.0, "length of an ESC-50 clip", unit="s", low=1.0, high=30.0)
    pieces: int = setting(4, _OURS, low=1, high=1000)
    music_pieces: int = setting(6, _OURS, low=1, high=1000)
    speech_variants: float = setting(0.6, _OURS, low=0.0, high=1000.0)
    sound_variants: float = setting(2.2, _OURS, low=0.0, high=1000.0)
    music_variants: float = setting(1.0, _OURS, low=0.0, high=1000.0)
    instrument_variants: float = setting(0.4, _OURS, low=0.0, high=1000.0)
    clean: float = setting(0.25, _OURS, low=0.0, high=1.0)
    sequences: float = setting(0.15, _OURS, low=0.0, high=1.0)
    mixtures: float = setting(0.3, _OURS, low=0.0, high=1.0)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> AudioConfig:
        """Read table [audio] of a recipe.

        Raises:
            ConfigError: an unknown field (the nearest names are listed), a value that does not fit, an unknown package.
        """
        try:
            built = config.build(cls, "", table, owner="table [audio]")
            sources.by_name(built.packages)
        except AudioclError as error:
            text = str(error)
            raise ConfigError(text if "[audio]" in text else f"table [audio]: {text}") from error
        return built

    @property
    def limits(self) -> Limits:
        """How recordings are cut."""
        return Limits(self.max_seconds, self.pieces, self.music_pieces)

    def variants(self, kind: str) -> float:
        """Return how many clips a piece of that kind gives on average."""
        return float(getattr(self, f"{kind}_variants"))


# ------------------------------------------------------------------------------------------------------------ quantised


def quantise(mel: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Store a raw log-mel in bytes: round((mel - LOW) / STEP), held to 0..255."""
    return np.rint((mel - np.float32(LOW)) / np.float32(STEP)).clip(0, 255).astype(np.uint8)


def dequantise(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the log-mel that bytes stand for: LOW + STEP * value."""
    return _LEVELS[stored]


_LEVELS = (LOW + STEP * np.arange(256)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- the pack


@dataclass(frozen=True)
class PackedBatch:
    """Some clips of a pack, cut or padded to one length.

    Attributes:
        mel: raw kaldi log-mels [B, frames, 128] float32, zero rows past the end of a clip.
        lengths: real rows [B] int64.
        targets: the teacher's [B, frames // 16, layers, dim] float32, zeros past the end; None without a teacher.
        valid: bool [B, frames // 16]: time patches with at least one real row.
    """

    mel: Tensor
    lengths: Tensor
    targets: Tensor | None
    valid: Tensor


class Pack:
    """A finished pack, opened with `Pack.open`; safe to share between threads and forked processes.

    Attributes:
        folder: where it lies.
        clips: one row per clip: row, source (speech, sequence, sound, music, instrument, mixture), package, licence,
            variant, frames, group, recording (the keys of all recordings in it).
        teacher: name, weights_hash, layers (their numbers), dim, and mean and std [layers, dim] (float32) over all
            targets; None without a teacher.
        manifest: all of `manifest.json`.
        hash: SHA-256 over the contents, equal for equal bytes.
        mel: [all frames, 128] uint8, memory-mapped; `frame_starts` [clips + 1] says where each clip begins.
        targets: [all patches, layers, dim] float16, memory-mapped, or None; `patch_starts` [clips + 1] likewise.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], clips: pd.DataFrame) -> None:
        self.folder, self.manifest, self.clips = folder, manifest, clips
        self.hash = str(manifest["hash"])
        frames = clips["frames"].to_numpy(dtype=np.int64)
        self.frame_starts = np.concatenate([[0], np.cumsum(frames)])
        self.patch_starts = np.concatenate([[0], np.cumsum(-(-frames // PATCH_FRAMES))])
        self.mel = _mapped(folder / _MEL, np.uint8, (int(self.frame_starts[-1]), MEL_BINS))
        self.teacher: dict[str, Any] | None = None
        self.targets: NDArray[np.float16] | None = None
        if manifest["teacher"] is not None:
            told = manifest["teacher"]
            mean, std = (np.asarray(told[name], dtype=np.float32) for name in ("mean", "std"))
            self.teacher = {**told, "mean": mean, "std": std}
            shape = (int(self.patch_starts[-1]), len(told["layers"]), int(told["dim"]))
            self.targets = _mapped(folder / _TARGETS, np.dtype("<f2"), shape)

    @classmethod
    def open(cls, folder: Path) -> Pack:
        """Open the pack in `folder`.

        Raises:
            CorpusError: there is none, it is not finished, or a file was changed or lost.
        """
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            return cls(folder, manifest, pd.read_parquet(folder / _CLIPS))
        except FileNotFoundError as cause:
            raise CorpusError(
                f"{folder} holds no finished pack ({cause.filename} is missing): prepare it with `audiocl pretrain`."
            ) from cause
        except (OSError, ValueError, KeyError) as cause:
            raise CorpusError(
                f"{folder} holds a damaged pack ({cause}): delete the folder and prepare it again."
            ) from cause

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.clips)

    def batch(self, rows: NDArray[np.int64], frames: int, starts: NDArray[np.int64] | None = None) -> PackedBatch:
        """Read clips, each cut or padded to `frames` rows.

        Args:
            rows: numbers of the clips [B].
            frames: rows of the result, a multiple of 16.
            starts: first row of each cut [B], a multiple of 16 inside the clip; default 0.

        Raises:
            ValueError: `frames` or a start is no multiple of 16, or a start lies outside its clip.
        """
        rows = np.asarray(rows, dtype=np.int64)
        begins = np.zeros(len(rows), np.int64) if starts is None else np.asarray(starts, dtype=np.int64)
        total = self.frame_starts[rows + 1] - self.frame_starts[rows]
        if frames < PATCH_FRAMES or frames % PATCH_FRAMES or (begins % PATCH_FRAMES).any():
            raise ValueError(f"frames and starts are multiples of {PATCH_FRAMES}, frames at least one")
        if begins.shape != rows.shape or (begins < 0).any() or (begins >= total).any():
            raise ValueError("every clip needs one start, inside the clip")
        lengths = np.minimum(total - begins, frames)
        stored = np.zeros((len(rows), frames, MEL_BINS), np.uint8)
        patches = frames // PATCH_FRAMES
        real = -(-lengths // PATCH_FRAMES)
        targets = None
        if self.targets is not None:
            targets = np.zeros((len(rows), patches, *self.targets.shape[1:]), np.float32)
        for place, (row, begin, length, count) in enumerate(zip(rows, begins, lengths, real, strict=True)):
            first = self.frame_starts[row] + begin
            stored[place, :length] = self.mel[first : first + length]
            if targets is not None and self.targets is not None:
                patch = self.patch_starts[row] + begin // PATCH_FRAMES
                targets[place, :count] = self.targets[patch : patch + count]
        mel = torch.from_numpy(dequantise(stored))
        ends = torch.from_numpy(lengths)
        mel *= torch.arange(frames)[None, :, None] < ends[:, None, None]
        valid = torch.arange(patches)[None] < torch.from_numpy(real)[:, None]
        return PackedBatch(mel, ends, None if targets is None else torch.from_numpy(targets), valid)


def _mapped(path: Path, kind: Any, shape: tuple[int, ...]) -> Any:
    expected = math.prod(shape) * np.dtype(kind).itemsize
    if path.stat().st_size != expected:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {expected}")
    return np.memmap(path, dtype=kind, mode="r", shape=shape)


# ------------------------------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class _Plan:
    """What is rendered, as every process reads it from the folder of the shards.

    Attributes:
        config: settings.
        pieces: table of all pieces: columns of `recordings.Part.pieces`, package, licence, and file (of the samples).
        items: [clips, 2]: row of the piece, variant; in the order in which they are packed.
        groups: rows of the speech pieces of every group.
        others: rows of pieces that may be added to a mixture: not speech, and speech.
    """

    config: AudioConfig
    pieces: pd.DataFrame
    items: NDArray[np.int64]
    groups: Mapping[str, NDArray[np.int64]]
    others: tuple[NDArray[np.int64], NDArray[np.int64]]

    @property
    def shards(self) -> int:
        return -(-len(self.items) // SHARD_CLIPS)

    def wave(self, row: int) -> augment.Wave:
        """Return a piece [n], peak 0.9."""
        piece = self.pieces.iloc[row]
        samples = _samples(piece["file"])[piece["offset"] : piece["offset"] + piece["samples"]]
        return samples.astype(np.float32) / 32768.0


@lru_cache(maxsize=256)
def _samples(path: str) -> NDArray[np.int16]:
    return recordings.open_samples(Path(path))


def _pieces(parts: list[Part], excluded: frozenset[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the table of all pieces, each recording once, none of the held-out ones; and how many were dropped."""
    tables = []
    for part in parts:
        licence = part.report["licence"]
        tables.append(part.pieces.assign(package=part.package, licence=licence, file=str(part.samples)))
    table = pd.concat(tables, ignore_index=True)
    held = table["digest"].isin(excluded)
    dropped = {"held_out": int(table.loc[held, "key"].nunique())}
    table = table[~held]
    first = table.groupby("digest", sort=False)["key"].transform("first")
    dropped["in_two_packages"] = int(table.loc[table["key"] != first, "key"].nunique())
    return table[table["key"] == first].reset_index(drop=True), dropped


def _items(table: pd.DataFrame, settings: AudioConfig) -> NDArray[np.int64]:
    """Return (piece, variant) of every clip in a random order, so that any beginning is a fair sample."""
    draws = seeding.numpy_generator(settings.seed, "pretrain", "variants").random(len(table))
    counts = np.floor([settings.variants(kind) + draw for kind, draw in zip(table["kind"], draws, strict=True)])
    counts = counts.astype(np.int64)
    rows = np.repeat(np.arange(len(table)), counts)
    variants = np.concatenate([np.arange(count) for count in counts]) if len(counts) else np.zeros(0, np.int64)
    order = seeding.numpy_generator(settings.seed, "pretrain", "order").permutation(len(rows))
    return np.stack([rows, variants], axis=1)[order].astype(np.int64)


def _plan(settings: AudioConfig, table: pd.DataFrame) -> _Plan:
    speech = table["kind"].to_numpy() == "speech"
    groups = {str(name): rows.to_numpy() for name, rows in table.index[speech].groupby(table["group"][speech]).items()}
    others = (np.flatnonzero(~speech), np.flatnonzero(speech))
    return _Plan(settings, table, _items(table, settings), groups, others)


@lru_cache(maxsize=2)
def _read_plan(folder: Path) -> _Plan:
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return _plan(AudioConfig.from_table(settings), pd.read_parquet(folder / "pieces.parquet"))


# ------------------------------------------------------------------------------------------------------------ rendering


@dataclass(frozen=True)
class Rendered:
    """One clip: 16-bit samples [N], what it is (see `Pack.clips`), and the rows of the pieces in it."""

    pcm: NDArray[np.int16]
    source: str
    parts: tuple[int, ...]


def _render(plan: _Plan, row: int, variant: int) -> Rendered:
    """Render one variant of one piece."""
    piece = plan.pieces.iloc[row]
    rng = seeding.numpy_generator(plan.config.seed, "pretrain", "clip", piece["key"], int(piece["piece"]), variant)
    longest = int(plan.config.max_seconds * audio.SAMPLE_RATE) // _TENTH * _TENTH
    vary = rng.random() >= plan.config.clean
    make = _speech if piece["kind"] == "speech" else _scene
    return make(plan, rng, row, longest, vary=vary)


def _speech(plan: _Plan, rng: augment.Rng, row: int, longest: int, *, vary: bool) -> Rendered:
    parts = [row]
    if rng.random() < plan.config.sequences:
        others = plan.groups[str(plan.pieces.iloc[row]["group"])]
        parts += [int(other) for other in rng.choice(others, size=int(rng.integers(1, 5))) if other != row]
    waves = [plan.wave(part) for part in parts]
    body = augment.sequence(waves, [int(gap) for gap in rng.integers(800, 6400, len(waves))])
    if vary:
        body = augment.vary_source(rng, body, augment.SPEECH)
    body = augment.crop(rng, body, longest)
    spare = int(rng.uniform(0.02, 0.35) * audio.SAMPLE_RATE)
    # At least a second, as the keyword streams have; whole tenths, so that clips of one length come together.
    size = min(longest, max(audio.SAMPLE_RATE, -(-(len(body) + spare) // _TENTH) * _TENTH))
    wave = augment.place(body, size, int(rng.integers(0, size - len(body) + 1)))
    if vary:
        wave = augment.vary_recording(rng, wave, augment.SPEECH)
    wave = augment.to_level(wave, rng.uniform(-36.0, -13.0))
    return Rendered(sources.to_pcm(wave), "sequence" if len(parts) > 1 else "speech", tuple(parts))


def _scene(plan: _Plan, rng: augment.Rng, row: int, longest: int, *, vary: bool) -> Rendered:
    parts = [row]
    turn = rng.random()
    shortest = max(audio.SAMPLE_RATE, longest // 5 // _TENTH * _TENTH)
    low = shortest if turn < 0.15 else min(2 * shortest, longest)
    size = longest if turn > 0.65 else int(rng.integers(low // _TENTH, longest // _TENTH + 1)) * _TENTH
    wave = _laid(plan, rng, row, size, vary=vary)
    if rng.random() < plan.config.mixtures:
        for _ in range(int(rng.integers(1, 3))):
            pool = plan.others[int(rng.random() < 0.25)]
            if not len(pool):
                continue
            other = int(rng.choice(pool))
            wave = augment.add_at_snr(wave, _laid(plan, rng, other, size, vary=vary), rng.uniform(-3.0, 15.0))
            parts.append(other)
    if vary:
        wave = augment.vary_recording(rng, wave, augment.SOUND)
    wave = augment.to_level(wave, rng.uniform(-38.0, -12.0))
    source = "mixture" if len(parts) > 1 else str(plan.pieces.iloc[row]["kind"])
    return Rendered(sources.to_pcm(wave), source, tuple(parts))


def _laid(plan: _Plan, rng: augment.Rng, row: int, size: int, *, vary: bool) -> augment.Wave:
    """Return a piece [size]: cut if it is longer, else once somewhere or again and again, as in ESC-50."""
    body = plan.wave(row)
    if vary:
        body = augment.vary_source(rng, body, augment.SOUND)
    body = augment.crop(rng, body, size)
    if len(body) == size:
        return body
    if rng.random() < 0.5:
        return augment.repeat(rng, body, size)
    return augment.place(body, size, int(rng.integers(0, size - len(body) + 1)))


# --------------------------------------------------------------------------------------------------------------- shards


@lru_cache(maxsize=1)
def _teacher(path: str) -> Teacher:
    return Teacher(path)


def _make_shard(number: int, folder: Path) -> tuple[int, float]:
    """Write shard `number` unless it is there; return its clips and seconds of audio."""
    table = folder / f"{number:05d}.parquet"
    if table.is_file():
        frames = pd.read_parquet(table, columns=["frames"])["frames"]
        return len(frames), float(frames.sum()) / 100.0
    plan = _read_plan(folder)
    items = plan.items[number * SHARD_CLIPS : (number + 1) * SHARD_CLIPS]
    rendered = [_render(plan, int(row), int(variant)) for row, variant in items]
    mels, targets = _features(rendered, plan.config.teacher)
    rows = []
    for (row, variant), clip, mel in zip(items, rendered, mels, strict=True):
        piece = plan.pieces.iloc[row]
        rows.append(
            {
                "source": clip.source,
                "package": piece["package"],
                "licence": piece["licence"],
                "variant": int(variant),
                "frames": len(mel),
                "group": piece["group"],
                "recording": " + ".join(plan.pieces["key"].iloc[list(clip.parts)]),
            }
        )
    with files.atomic_path(folder / f"{number:05d}.mel", error=CorpusError) as temporary:
        temporary.write_bytes(b"".join(mel.tobytes() for mel in mels))
    if targets:
        with files.atomic_path(folder / f"{number:05d}.targets", error=CorpusError) as temporary:
            temporary.write_bytes(b"".join(target.tobytes() for target in targets))
    with files.atomic_path(table, error=CorpusError) as temporary:
        pd.DataFrame(rows).to_parquet(temporary, index=False)
    return len(rows), sum(len(mel) for mel in mels) / 100.0


def _features(clips: list[Rendered], teacher: str) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.float16]]]:
    """Return quantised log-mels and targets (none without a teacher) of clips, in their order, computed by length."""
    mels: dict[int, NDArray[np.uint8]] = {}
    targets: dict[int, NDArray[np.float16]] = {}
    lengths = np.array([len(clip.pcm) for clip in clips])
    with torch.inference_mode():
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length)
            for at in range(0, len(places), _TOGETHER):
                chosen = places[at : at + _TOGETHER]
                waves = torch.from_numpy(np.stack([clips[place].pcm for place in chosen]).astype(np.float32) / 32768.0)
                found = features(waves)
                mels |= dict(zip(map(int, chosen), quantise(found.numpy()), strict=True))
                if teacher:
                    aims = _teacher(teacher).targets(waves, -(-found.shape[1] // PATCH_FRAMES))
                    stored = aims.clamp(-_F16_MAX, _F16_MAX).numpy().astype("<f2")
                    targets |= dict(zip(map(int, chosen), stored, strict=True))
    return [mels[place] for place in range(len(clips))], [targets[place] for place in sorted(targets)]


def features(waves: Tensor) -> Tensor:
    """Return EAT's raw log-mels [B, frames, 128] of waves [B, N]: the mean removed, then kaldi's filter bank."""
    return audio.kaldi_fbank(audio.remove_mean(waves), MEL_BINS)


# ------------------------------------------------------------------------------------------------------------- building


def build(config: AudioConfig, folder: Path, *, workers: int, progress: bool) -> Pack:
    """Make the pack of `config` in `folder`, or go on with one that was begun, or open the finished one.

    Packages are fetched into <AUDIOCL_HOME>/pretrain and decoded there, for later packs too. Interrupted at any moment,
    whole shards stay.

    Args:
        config: table [audio] of the recipe.
        folder: where the pack is made.
        workers: processes, each with one thread.
        progress: show what is done on the error stream.

    Raises:
        CorpusError: packages cannot be fetched, nothing is left to pack, or the disk is full.
        ConfigError: `folder` holds the pack of other settings, or the teacher is no Whisper encoder.
    """
    say = _say if progress else _silent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if (folder / _MANIFEST).is_file():
                return _reopened(config, folder)
            return _build(config, folder, workers, say, progress=progress)
    except OSError as cause:
        raise CorpusError(files.explain_os_error(cause, folder)) from cause


def _reopened(settings: AudioConfig, folder: Path) -> Pack:
    """Open a finished pack if it is the one that the settings ask for, wherever the teacher's weights lie."""
    pack = Pack.open(folder)
    mine, its = settings.as_dict(), dict(pack.manifest["settings"])
    same = all(mine[name] == its.get(name) for name in mine if name not in _PLACES)
    if mine["teacher"] != its["teacher"]:
        same = same and bool(mine["teacher"]) == (pack.teacher is not None) and _same_teacher(mine["teacher"], pack)
    if not same:
        raise ConfigError(f"{folder} holds the pack of another table [audio]: choose another folder, or delete it.")
    return pack


def _same_teacher(path: str, pack: Pack) -> bool:
    try:
        return pack.teacher is not None and _teacher(path).describe()["weights_hash"] == pack.teacher["weights_hash"]
    except CheckpointError:
        return True  # a finished pack does not need the weights, and they need not be at hand


def _build(settings: AudioConfig, folder: Path, workers: int, say: sources.Say, *, progress: bool) -> Pack:
    teacher = _teacher(settings.teacher).describe() if settings.teacher else None
    place = files.home() / "pretrain" / "recordings"
    wanted = sources.by_name(settings.packages)
    parts = recordings.collect(wanted, sources.cache_dir(), place, settings.limits, workers=workers, say=say)
    if not any(len(part.pieces) for part in parts):
        raise CorpusError("no package gave a recording that can be used: name others in table [audio].")
    checked = [Path(name).expanduser() for name in settings.held_out]
    excluded = sources.held_out_digests(path for path in checked if path.is_dir())
    table, dropped = _pieces(parts, excluded)
    made_of = {
        "version": VERSION,
        "settings": {**settings.as_dict(), "teacher": "", "held_out": []},
        "teacher": teacher and teacher["weights_hash"],
        "recordings": [part.report["samples_sha256"] for part in parts],
        "dropped": dropped,
    }
    shards = folder / f"shards-{files.sha256_json(made_of)[:12]}"
    shards.mkdir(exist_ok=True)
    with files.atomic_path(shards / "pieces.parquet", error=CorpusError) as temporary:
        table.to_parquet(temporary, index=False)
    files.write_text(shards / "settings.json", json.dumps(settings.as_dict()), error=CorpusError)
    plan = _plan(settings, table)
    if not len(plan.items):
        raise CorpusError("no clip is asked for: set a number of variants above 0 in table [audio].")
    _make_shards(plan, shards, workers, say, progress=progress)
    manifest = {
        "version": VERSION,
        "settings": settings.as_dict(),
        "mel": {"low": LOW, "step": STEP, "bins": MEL_BINS},
        "held_out": {
            **{"checked": [path.name for path in checked if path.is_dir()], "files": len(excluded)},
            **{"not_there": [path.name for path in checked if not path.is_dir()]},
        },
        "dropped": dropped,
        "packages": [part.report for part in parts],
    }
    pack = _assemble(folder, shards, plan.shards, manifest, teacher)
    for old in folder.glob("shards-*"):  # also those of earlier settings that were never finished
        shutil.rmtree(old, ignore_errors=True)
    return pack


def _make_shards(plan: _Plan, shards: Path, workers: int, say: sources.Say, *, progress: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        work = partial(_make_shard, folder=shards)
        missing = [number for number in range(plan.shards) if not (shards / f"{number:05d}.parquet").is_file()]
        say(f"packing {len(plan.items):,} clips: {len(missing)} of {plan.shards} shards to make")
        with (
            _progress(len(missing), shown=progress) as advance,
            closing(in_processes(work, missing, workers, say=say, start=_one_thread)) as done,
        ):
            for _, (clips, seconds) in done:
                advance(clips, seconds)
    finally:
        torch.set_num_threads(before)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _assemble(folder: Path, shards: Path, count: int, manifest: dict[str, Any], teacher: dict[str, Any] | None) -> Pack:
    """Join the shards: clips.parquet, mel.u8, targets.f16, and last the manifest."""
    numbers = range(count)
    clips = pd.concat([pd.read_parquet(shards / f"{number:05d}.parquet") for number in numbers], ignore_index=True)
    clips.insert(0, "row", np.arange(len(clips)))
    digest = hashlib.sha256(clips.to_csv(index=False, lineterminator="\n").encode())
    _join([shards / f"{number:05d}.mel" for number in numbers], folder / _MEL, digest.update)
    if teacher is not None:
        moments = _Moments((len(teacher["layers"]), int(teacher["dim"])))
        _join([shards / f"{number:05d}.targets" for number in numbers], folder / _TARGETS, digest.update, moments.add)
        mean, std = moments.result()
        teacher = {**teacher, "mean": mean.tolist(), "std": std.tolist()}
    with files.atomic_path(folder / _CLIPS, error=CorpusError) as temporary:
        clips.to_parquet(temporary, index=False)
    counted = clips.groupby(["source"])["frames"].agg(["size", "sum"])
    by_source = {
        str(name): {"clips": int(row["size"]), "seconds": row["sum"] / 100} for name, row in counted.iterrows()
    }
    counted = clips.groupby(["package"])["frames"].agg(["size", "sum"])
    for report in manifest["packages"]:
        if report["package"] in counted.index:
            row = counted.loc[report["package"]]
            report |= {"clips": int(row["size"]), "clip_seconds": float(row["sum"]) / 100}
    totals = {"clips": len(clips), "seconds": float(clips["frames"].sum()) / 100, "by_source": by_source}
    told = {**manifest, "totals": totals, "teacher": teacher, "hash": digest.hexdigest()}
    files.write_text(folder / _MANIFEST, json.dumps(told, indent=1) + "\n", error=CorpusError)
    return Pack.open(folder)


def _join(parts: list[Path], target: Path, *seen: Callable[[bytes], None]) -> None:
    with files.atomic_path(target, error=CorpusError) as temporary, temporary.open("wb") as file:
        for part in parts:
            content = part.read_bytes()
            file.write(content)
            for look in seen:
                look(content)


class _Moments:
    """Mean and standard deviation of targets, summed in float64 shard by shard."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape, self._count = shape, 0
        self._sum, self._squares = np.zeros(shape), np.zeros(shape)

    def add(self, content: bytes) -> None:
        values = np.frombuffer(content, dtype="<f2").reshape(-1, *self._shape).astype(np.float64)
        self._count += len(values)
        self._sum += values.sum(axis=0)
        self._squares += np.square(values).sum(axis=0)

    def result(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = self._sum / max(1, self._count)
        return mean, np.sqrt((self._squares / max(1, self._count) - np.square(mean)).clip(0.0))


# ------------------------------------------------------------------------------------------------------------- progress


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)


def _silent(text: str) -> None:
    del text


@contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """Yield a function to call with the clips and seconds of every finished shard."""
    console = Console(stderr=True)
    begun, sums = time.monotonic(), {"shards": 0, "seconds": 0.0}

    def advance(clips: int, seconds: float) -> None:
        sums["shards"] += 1
        sums["seconds"] += seconds
        bar.advance(task)
        if shown and not console.is_interactive and (sums["shards"] % 10 == 0 or sums["shards"] in (1, total)):
            passed = time.monotonic() - begun
            left = passed / sums["shards"] * (total - sums["shards"])
            rate = sums["seconds"] / max(passed, 1e-9)
            _say(f"{sums['shards']:.0f} of {total} shards, {rate:.1f} s of audio per second, {left / 60:.0f} min left")

    with Progress(console=console, transient=True, disable=not (shown and console.is_interactive)) as bar:
        task = bar.add_task("packing", total=total)
        yield advance


def overlap(pack: Pack, folders: list[Path]) -> pd.DataFrame:
    """Compare the recordings behind a pack with all audio below `folders`, such as those of evaluation streams.

    Two ways: sample by sample (all recordings), and by spectral landmarks (all but speech and notes of instruments),
    which also finds a recording that was cut, scaled or coded differently. A pack made with `held_out` naming these
    folders has no exact copies. The packages must still be decoded below AUDIOCL_HOME.

    Returns:
        one row per pair: package, key, file (below its folder; empty for exact copies), shared and pairs (landmarks; 0
        for exact copies).
    """
    evaluation = [
        (path.relative_to(folder).as_posix(), pcm) for folder in folders for path, pcm in sources.readable(folder)
    ]
    exact = {sources.digest(pcm) for _, pcm in evaluation}
    index = fingerprint.Index(evaluation)
    wanted = {report["samples_sha256"] for report in pack.manifest["packages"]}
    rows: list[tuple[str, str, str, int, int]] = []
    for path in sorted((files.home() / "pretrain" / "recordings").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["samples_sha256"] not in wanted:
            continue
        samples = recordings.open_samples(path.with_suffix(".i16"))
        for piece in pd.read_parquet(path.with_suffix(".parquet")).to_dict("records"):
            if piece["digest"] in exact:
                rows.append((report["package"], piece["key"], "", 0, 0))
            elif piece["kind"] in ("sound", "music"):
                match = index.match(samples[piece["offset"] : piece["offset"] + piece["samples"]])
                if match is not None and match.likely:
                    rows.append((report["package"], piece["key"], match.name, match.shared, match.of))
    found = pd.DataFrame(rows, columns=["package", "key", "file", "shared", "pairs"])
    return found.drop_duplicates(["package", "key", "file"], ignore_index=True)
