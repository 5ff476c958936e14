"""Which patches a student sees: EAT's inverse block masks, random hiding, and the lists of visible patches.

Patches of a clip form a grid of time x 8 mel patches, flattened time-major (index = time * 8 + mel), as in the network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from audiocl_bench.backbones.eat import MEL_PATCHES


@dataclass(frozen=True)
class Visible:
    """Visible patches of every row, listed in rising order.

    Attributes:
        index: int64 [R, V], patch index; 0 in slots that are not used.
        slots: bool [R, V], True where the slot holds a patch; None where all do.
    """

    index: Tensor
    slots: Tensor | None

    def place(self, patches: int) -> Tensor:
        """Return `index` with `patches`, one past the last patch, in slots that are not used."""
        return self.index if self.slots is None else torch.where(self.slots, self.index, patches)

    def to(self, device: torch.device) -> Visible:
        """Return the lists on another device."""
        slots = None if self.slots is None else self.slots.to(device, non_blocking=True)
        return Visible(self.index.to(device, non_blocking=True), slots)


def visible_count(patches: np.ndarray, ratio: float) -> np.ndarray:
    """Return how many of `patches` stay visible when `ratio` of them are masked: rounded, at least 1."""
    return np.maximum(1, np.floor((1.0 - ratio) * patches + 0.5).astype(np.int64))


def block_side(times: np.ndarray, ratio: float, block: int) -> np.ndarray:
    """Return the side of a visible block in patches: `block`, or less where the grid or its visible share is small.

    A single block must not hold more patches than stay visible, so that short clips keep blocks too.
    """
    keep = visible_count(times * MEL_PATCHES, ratio)
    largest = np.floor(np.sqrt(keep.astype(np.float64)) + 1e-9).astype(np.int64)
    return np.minimum.reduce([np.full_like(times, block), times, np.full_like(times, MEL_PATCHES), largest])


def inverse_blocks(times: np.ndarray, grid: int, *, ratio: float, block: int, draws: np.random.Generator) -> np.ndarray:
    """Draw EAT's inverse block masks: square blocks of patches stay visible, the rest is masked.

    Blocks are laid one after the other, each wholly inside the clip's real patches, until the wanted number of patches
    is visible; of the last block only as many new patches count as are still missing, chosen at random. So every clip
    has exactly `visible_count` visible patches.

    Args:
        times: [R] real time patches of every row, each 1..grid.
        grid: time patches of the batch.
        ratio: share of real patches that are masked.
        block: side of a block in patches; shorter on small grids, see `block_side`.
        draws: generator.

    Returns:
        bool [R, grid, 8], True where a patch is visible; never beyond a row's real patches.
    """
    rows = len(times)
    keep = visible_count(times * MEL_PATCHES, ratio)
    side = block_side(times, ratio, block)
    visible = np.zeros((rows, grid, MEL_PATCHES), dtype=bool)
    time, mel = np.arange(grid)[None, :], np.arange(MEL_PATCHES)[None, :]
    missing = keep.copy()
    while missing.any():
        corner = draws.random((2, rows))
        first_time = np.floor(corner[0] * (times - side + 1)).astype(np.int64)[:, None]
        first_mel = np.floor(corner[1] * (MEL_PATCHES - side + 1)).astype(np.int64)[:, None]
        in_time = (time >= first_time) & (time < first_time + side[:, None])
        in_mel = (mel >= first_mel) & (mel < first_mel + side[:, None])
        fresh = in_time[:, :, None] & in_mel[:, None, :] & ~visible & (missing > 0)[:, None, None]
        for row in np.flatnonzero(fresh.sum(axis=(1, 2)) > missing):
            cells = np.flatnonzero(fresh[row])
            surplus = draws.permutation(cells)[missing[row] :]
            fresh[row].reshape(-1)[surplus] = False
        visible |= fresh
        missing = keep - visible.sum(axis=(1, 2))
    return visible


def hidden(valid: np.ndarray, seen: np.ndarray, *, hide: float, draws: np.random.Generator) -> np.ndarray:
    """Choose at random which patches a distilled student sees.

    Args:
        valid: bool [B, N], patches that hold real audio.
        seen: bool [B], clips whose padding is seen too, as a frozen backbone sees it.
        hide: share of patches hidden, of the real ones and of the padding alike.
        draws: generator.

    Returns:
        bool [B, N], True where a patch is seen: at least one real patch per clip.
    """
    clips, patches = valid.shape
    real = valid.sum(axis=1)
    all_kept = visible_count(np.full(clips, patches), hide)
    kept = np.minimum(visible_count(real, hide), real)
    padding = np.where(seen, np.clip(all_kept - kept, 0, patches - real), 0)
    # Real patches first, then padding, each in random order: the rank of a patch within its kind decides.
    keys = draws.random((clips, patches)) + np.where(valid, 0.0, 1.0)
    rank = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
    return np.where(valid, rank < kept[:, None], rank - real[:, None] < padding[:, None])


def listed(visible: np.ndarray, *, width: int | None = None) -> Visible:
    """List the visible patches of every row.

    Args:
        visible: bool [R, N].
        width: slots per row; None takes the largest number of visible patches.
    """
    counts = visible.sum(axis=1)
    slots = int(counts.max(initial=1)) if width is None else width
    order = np.argsort(~visible, axis=1, kind="stable")[:, :slots]
    used = np.arange(slots)[None, :] < counts[:, None]
    index = torch.from_numpy(np.where(used, order, 0).astype(np.int64))
    return Visible(index, None if used.all() else torch.from_numpy(used))
