"""What a training step gets: which clips, cut where, how augmented, and which patches are seen.

Every choice comes from a generator seeded by (seed, purpose, step or epoch), so a step's batch can be made without any
step before it, and a run that was stopped continues with the batch it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audiocl_bench import audio, files, seeding
from audiocl_bench.backbones.eat import MEL_BINS, MEL_PATCHES, PATCH
from audiocl_bench.errors import ConfigError, CorpusError
from audiocl_bench.pretrain import masks, recipe
from audiocl_bench.pretrain.masks import Visible
from audiocl_bench.pretrain.recipe import Recipe, RunConfig

FLOOR = math.log(float(torch.finfo(torch.float32).eps))
"""The smallest value of a kaldi log-mel; some bins never leave it."""
_FLOOR_SLACK = 0.2  # nepers: packed log-mels are rounded by up to half a step
_FRONT_END = audio.FrontEnd("kaldi", MEL_BINS, 1024, audio.AUDIOSET_MEAN, audio.AUDIOSET_STD)


class PackedBatch(Protocol):
    """Clips as they come from a pack; see `audiocl_bench.pretrain.pack`.

    Attributes:
        mel: raw log-mels [B, T, 128] float32, zero rows past the end.
        lengths: real rows [B].
        targets: [B, T/16, teacher layers, teacher dim] float32, or None.
        valid: bool [B, T/16], time patches that hold real audio.
    """

    @property
    def mel(self) -> Any: ...  # noqa: D102
    @property
    def lengths(self) -> Any: ...  # noqa: D102
    @property
    def targets(self) -> Any: ...  # noqa: D102
    @property
    def valid(self) -> Any: ...  # noqa: D102


class Clips(Protocol):
    """The part of a pack that training uses; `audiocl_bench.pretrain.pack.Pack` is one."""

    @property
    def clips(self) -> pd.DataFrame:
        """One row per clip, with at least the column `frames`."""

    @property
    def teacher(self) -> Mapping[str, Any] | None:
        """Name, weights_hash, layers, dim, and mean and std [layers, dim] of the targets; None without a teacher."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, frames: int, starts: np.ndarray | None = None) -> PackedBatch:
        """Read clips, each from row `starts` (multiples of 16) on, padded or cut to `frames` rows."""


def fingerprint(pack: Clips) -> str:
    """Return a hash of what a pack holds: its own `hash` if it has one, else that of its clips' table and teacher."""
    own = getattr(pack, "hash", None)
    if isinstance(own, str):
        return own
    teacher = pack.teacher
    told = None if teacher is None else {"hash": teacher["weights_hash"], "layers": [int(k) for k in teacher["layers"]]}
    table = files.sha256_text(pack.clips.to_csv(index=False, lineterminator="\n"))
    return files.sha256_json({"clips": table, "teacher": told})


@dataclass(frozen=True)
class Chosen:
    """Clips of one step: row numbers [B], and the length in rows that they are fitted to."""

    rows: np.ndarray
    frames: int


class Plan:
    """Which clips every step takes: each epoch is a new order of all clips, cut into batches of equal length.

    A bucket's batch holds `tokens` patches. What is left of a bucket at the end of an epoch, less than a batch, waits
    for another epoch's order, so that batches of a bucket are equally large.

    Attributes:
        batches: batches per epoch.
        sizes: clips per batch, by bucket.

    Raises:
        CorpusError: the pack holds no clips.
    """

    def __init__(self, frames: np.ndarray, run: RunConfig) -> None:
        if not len(frames):
            raise CorpusError("the pack of training clips is empty: look at table [audio] of the recipe.")
        self._seed, self._buckets = run.seed, np.asarray(run.buckets)
        place = np.minimum(np.searchsorted(self._buckets, frames), len(self._buckets) - 1)
        self._members = [np.flatnonzero(place == index) for index in range(len(self._buckets))]
        patches = self._buckets // PATCH * MEL_PATCHES
        self.sizes = [
            min(len(members), max(1, run.tokens // int(count)))
            for members, count in zip(self._members, patches, strict=True)
        ]
        self._cuts = [
            (bucket, start)
            for bucket, (members, size) in enumerate(zip(self._members, self.sizes, strict=True))
            for start in range(0, len(members) - size + 1 if size else 0, max(1, size))
        ]
        self.batches = len(self._cuts)
        self._epochs: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}
        self._lock = Lock()  # batches may be made by several threads

    def __getitem__(self, step: int) -> Chosen:
        """Return the clips of a zero-based step."""
        epoch, index = divmod(step, self.batches)
        orders, turns = self._order(epoch)
        bucket, start = self._cuts[turns[index]]
        return Chosen(orders[bucket][start : start + self.sizes[bucket]], int(self._buckets[bucket]))

    def _order(self, epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return every bucket's clips in the order of an epoch, and the order of its batches."""
        with self._lock:
            if epoch not in self._epochs:
                draws = seeding.numpy_generator(self._seed, "pretrain", "clip order", epoch)
                orders = [draws.permutation(members) for members in self._members]
                while len(self._epochs) > 1:  # the one before is still needed by threads that are a batch behind
                    del self._epochs[min(self._epochs)]
                self._epochs[epoch] = orders, draws.permutation(self.batches)
            return self._epochs[epoch]


@dataclass(frozen=True)
class Part:
    """Input of one objective.

    Attributes:
        x: normalised log-mels [B, T, 128].
        valid: bool [B, T/16], time patches that hold real audio.
        real: bool [B, T/16 * 8], the same per patch; None where all are real.
        visible: patches the student sees (EAT: of every clone); None means all.
        keys: bool [B, T/16 * 8], patches that may be attended to where `visible` is None; None means all.
        targets: standardised targets [B, T/16, pairs, teacher dim]; distillation only.
    """

    x: Tensor
    valid: Tensor
    real: Tensor | None
    visible: Visible | None
    keys: Tensor | None
    targets: Tensor | None

    def cut(self, piece: slice) -> Part:
        """Return the part of some clips, with all their clones."""
        clips = len(self.x)

        def rows(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            each = len(value) // clips
            return value[each * piece.start : each * piece.stop]

        visible = self.visible
        if visible is not None:
            index = rows(visible.index)
            assert index is not None
            visible = Visible(index, rows(visible.slots))
        return Part(self.x[piece], self.valid[piece], rows(self.real), visible, rows(self.keys), rows(self.targets))

    def to(self, device: torch.device) -> Part:
        """Return the same on another device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=True)

        return Part(
            self.x.to(device, non_blocking=True),
            self.valid.to(device, non_blocking=True),
            move(self.real),
            None if self.visible is None else self.visible.to(device),
            move(self.keys),
            move(self.targets),
        )


@dataclass(frozen=True)
class Batch:
    """One step's input; an objective that the step does not take is None."""

    step: int
    clips: int
    eat: Part | None
    distil: Part | None


class Loader:
    """Makes the batch of any step.

    Args:
        recipe: what is asked for.
        pack: the clips.
        static: lists of visible patches are equally long in all batches of a bucket, which a compiled network wants.

    Raises:
        ConfigError: the recipe distils, but the pack has no targets, or lacks a layer.
        CorpusError: the pack holds no clips.
    """

    def __init__(self, recipe: Recipe, pack: Clips, *, static: bool = False) -> None:
        self._recipe, self._pack, self._static = recipe, pack, static
        self._frames = pack.clips["frames"].to_numpy(dtype=np.int64)
        self.plan = Plan(self._frames, recipe.run)
        self._layers, self._mean, self._std = _teacher(recipe, pack)

    def batch(self, step: int) -> Batch:
        """Make the batch of a zero-based step, on the CPU."""
        eats, distils = recipe.takes(self._recipe.objective, step)
        chosen = self.plan[step]
        patches = chosen.frames // PATCH * MEL_PATCHES
        few = chosen.rows[: max(1, self._recipe.run.eat_tokens // patches)]
        eat = self._part(step, Chosen(few, chosen.frames), "eat") if eats else None
        distil = self._part(step, chosen, "distil") if distils else None
        return Batch(step, len(chosen.rows) if distils else len(few), eat, distil)

    def _part(self, step: int, chosen: Chosen, kind: str) -> Part:
        run, objective = self._recipe.run, self._recipe.objective
        draws = seeding.numpy_generator(run.seed, "pretrain", "view", kind, step)
        starts, ends = _cuts(self._frames[chosen.rows], chosen.frames, objective.crop, draws)
        packed = self._pack.batch(chosen.rows, chosen.frames, starts)
        mel = torch.as_tensor(packed.mel).float()
        lengths, valid = _shortened(packed, ends)
        rows = torch.arange(chosen.frames)[None, :] < lengths[:, None]
        x = self._augmented(mel, rows, step, kind, draws)

        time = valid.numpy()
        cells = np.repeat(time, MEL_PATCHES, axis=1)
        real = None if time.all() else torch.from_numpy(cells)
        if kind == "eat":
            visible = self._clones(time.sum(axis=1), chosen.frames // PATCH, step)
            return Part(x, valid, real, visible, None, None)
        seen = draws.random(len(time)) < objective.padding_seen
        targets = (torch.as_tensor(packed.targets)[:, :, self._layers].float() - self._mean) / self._std
        if objective.hide > 0 and step < objective.hide_until * run.steps:
            kept = masks.hidden(cells, seen, hide=objective.hide, draws=draws)
            width = int(masks.visible_count(np.array([cells.shape[1]]), objective.hide)[0]) if self._static else None
            return Part(x, valid, real, masks.listed(kept, width=width), None, targets)
        keys = cells | seen[:, None]
        return Part(x, valid, real, None, None if keys.all() else torch.from_numpy(keys), targets)

    def _clones(self, times: np.ndarray, grid: int, step: int) -> Visible:
        """Draw the masks of all clones of every clip."""
        run, objective = self._recipe.run, self._recipe.objective
        draws = seeding.numpy_generator(run.seed, "pretrain", "masks", step)
        copies = np.repeat(times.astype(np.int64), objective.clones)
        ratio, block = objective.mask_ratio, objective.mask_block
        visible = masks.inverse_blocks(copies, grid, ratio=ratio, block=block, draws=draws)
        width = int(masks.visible_count(np.array([grid * MEL_PATCHES]), ratio)[0]) if self._static else None
        return masks.listed(visible.reshape(len(copies), -1), width=width)

    def _augmented(self, mel: Tensor, rows: Tensor, step: int, kind: str, draws: np.random.Generator) -> Tensor:
        """Change gain, normalise, mask small bands of time and frequency; padding stays what a backbone sees there."""
        objective, run = self._recipe.objective, self._recipe.run
        decibel = draws.uniform(-objective.gain_db, objective.gain_db, size=len(mel))
        shift = torch.from_numpy((decibel * math.log(10.0) / 10.0).astype(np.float32))[:, None, None]
        # What lies at the floor is digital silence, or a bin that no frequency feeds: no gain lifts it.
        louder = torch.where(mel > FLOOR + _FLOOR_SLACK, (mel + shift).clamp_min(FLOOR), mel)
        x = _FRONT_END.normalise(louder)
        if objective.time_mask > 0 or objective.freq_mask > 0:
            x = audio.mask_time_frequency(
                x,
                time_ratio=objective.time_mask,
                freq_ratio=objective.freq_mask,
                generator=seeding.torch_generator(run.seed, "pretrain", "bands", kind, step),
                random_width=True,
            )
        silence = float(_FRONT_END.normalise(torch.zeros(())))
        return torch.where(rows[:, :, None], x, silence)

    @contextmanager
    def ahead(self, first: int, last: int, *, workers: int) -> Iterator[Iterator[Batch]]:
        """Yield an iterator over the batches of steps `first` to `last` - 1, made ahead by threads if there are any."""
        if workers == 0:
            yield (self.batch(step) for step in range(first, last))
            return
        with ThreadPoolExecutor(workers) as pool:
            waiting: dict[int, Future[Batch]] = {}

            def made() -> Iterator[Batch]:
                for step in range(first, last):
                    for coming in range(step, min(last, step + 2 * workers)):
                        if coming not in waiting:
                            waiting[coming] = pool.submit(self.batch, coming)
                    yield waiting.pop(step).result()

            try:
                yield made()
            finally:
                for future in waiting.values():
                    future.cancel()


def _cuts(lengths: np.ndarray, frames: int, crop: float, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw where clips begin (row, a multiple of 16) and how many time patches they lose at their end.

    A clip that is longer than `frames` gives a window of it anywhere. Then at most the share `crop` of what is left is
    cut away, in whole patches, some of it at the start and the rest at the end.
    """
    over = np.maximum(0, lengths - frames)
    window = draws.integers(0, over // PATCH + 1)
    patches = np.minimum(-(-(lengths - PATCH * window) // PATCH), frames // PATCH)
    lost = draws.integers(0, np.floor(crop * patches).astype(np.int64) + 1)
    front = draws.integers(0, lost + 1)
    return PATCH * (window + front), lost - front


def _shortened(packed: PackedBatch, ends: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return real rows [B] and valid time patches [B, P] after the last `ends` patches of every clip are cut away."""
    lengths = torch.as_tensor(packed.lengths).long()
    valid = torch.as_tensor(packed.valid).bool()
    kept = (valid.sum(dim=1) - torch.from_numpy(ends)).clamp_min(1)
    valid = valid & (torch.arange(valid.shape[1])[None, :] < kept[:, None])
    return torch.minimum(lengths, PATCH * kept), valid


def _teacher(recipe: Recipe, pack: Clips) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the wanted teacher layers stand in the pack [pairs], and their mean and std [pairs, dim]."""
    teacher = pack.teacher
    if recipe.objective.distils <= 0:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.ones(0)
    if teacher is None:
        raise ConfigError(
            f"{recipe.path}, table [objective]: distil_share = {recipe.objective.distils:g} needs a teacher's targets, "
            "but the pack has none: name a teacher in [audio] or set eat_share = 1."
        )
    stored = [int(layer) for layer in teacher["layers"]]
    for layer in recipe.objective.teacher_layers:
        if layer not in stored:
            raise ConfigError(
                f"{recipe.path}, table [objective]: teacher_layers names layer {layer}, but the pack holds layers "
                f"{', '.join(map(str, stored))} of {teacher['name']}."
            )
    place = torch.tensor([stored.index(layer) for layer in recipe.objective.teacher_layers])
    mean, std = (torch.as_tensor(np.asarray(teacher[key], dtype=np.float32)) for key in ("mean", "std"))
    return place, mean[place], std[place].clamp_min(1e-6)
