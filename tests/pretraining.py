"""A pack of training clips in memory, and small recipes, for tests of pre-training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from audiocl_bench.pretrain.recipe import ModelConfig, ObjectiveConfig, OptimiserConfig, Recipe, RunConfig

FLOOR = -15.942385


@dataclass(frozen=True)
class Packed:
    mel: np.ndarray
    lengths: np.ndarray
    targets: np.ndarray | None
    valid: np.ndarray


class MemoryPack:
    """Clips of four kinds of sound (bands of mel bins that blink), with targets that tell band and rhythm."""

    def __init__(self, frames: tuple[int, ...] = (98, 60, 98, 40, 98, 120, 150, 98), *, dim: int = 12) -> None:
        draws = np.random.default_rng(7)
        self.mels, self.told = [], []
        mix = draws.standard_normal((3, 4, dim)).astype(np.float32)
        for index, length in enumerate(frames):
            kind, patches = index % 4, -(-length // 16)
            on = (np.arange(length) // (16 * (1 + kind % 2))) % 2 == 0
            mel = draws.normal(-8.0, 0.3, (length, 128)).astype(np.float32)
            mel[:, 32 * kind : 32 * kind + 32] += 6.0 * on[:, None]
            mel[:, 3] = FLOOR
            facts = np.zeros((patches, 4), dtype=np.float32)
            facts[:, kind] = [on[16 * patch : 16 * patch + 16].mean() + 0.5 for patch in range(patches)]
            self.mels.append(mel)
            self.told.append(np.stack([facts @ part for part in mix], axis=1))
        stacked = np.concatenate(self.told)
        self._teacher: dict[str, Any] | None = {
            "name": "made",
            "weights_hash": "0" * 64,
            "layers": [0, 1, 4],
            "dim": dim,
            "mean": stacked.mean(axis=0),
            "std": stacked.std(axis=0),
        }
        count = len(frames)
        self.clips = pd.DataFrame(
            {
                "row": range(count),
                "source": ["made-a", "made-b"] * (count // 2) + ["made-a"] * (count % 2),
                "package": "none",
                "licence": "CC0-1.0",
                "variant": 0,
                "frames": list(frames),
                "group": [str(index) for index in range(count)],
            }
        )

    @property
    def teacher(self) -> dict[str, Any] | None:
        return self._teacher

    def __len__(self) -> int:
        return len(self.mels)

    def batch(self, rows: np.ndarray, frames: int, starts: np.ndarray | None = None) -> Packed:
        begin = np.zeros(len(rows), dtype=np.int64) if starts is None else starts
        assert not (begin % 16).any()
        mel = np.zeros((len(rows), frames, 128), dtype=np.float32)
        targets = np.zeros((len(rows), frames // 16, *self.told[0].shape[1:]), dtype=np.float32)
        lengths = np.zeros(len(rows), dtype=np.int64)
        for place, (row, start) in enumerate(zip(rows, begin, strict=True)):
            cut = self.mels[row][start : start + frames]
            assert len(cut)
            lengths[place] = len(cut)
            mel[place, : len(cut)] = cut
            told = self.told[row][start // 16 : start // 16 + frames // 16]
            targets[place, : len(told)] = told
        valid = np.arange(frames // 16)[None, :] * 16 < lengths[:, None]
        return Packed(mel, lengths, None if self._teacher is None else targets, valid)


def tiny(*, model: dict[str, Any] | None = None, objective: dict[str, Any] | None = None, **run: Any) -> Recipe:
    """A recipe of a 2-block network that takes milliseconds a step."""
    small = {"student_layers": (1, 2, 2), "teacher_layers": (0, 1, 4), "clones": 3, "decoder_layers": 2}
    small |= {"decoder_dim": 16, "decoder_groups": 4, "eat_share": 0.5}
    base = Recipe(
        ModelConfig(dim=16, depth=2, heads=2),
        ObjectiveConfig(**(small | (objective or {}))),
        OptimiserConfig(lr=3e-3),
        RunConfig(**({"steps": 12, "buckets": (64, 112, 160), "tokens": 160, "eat_tokens": 120, "log_every": 3} | run)),
        {},
    )
    return replace(base, model=ModelConfig(**({"dim": 16, "depth": 2, "heads": 2} | (model or {}))))
