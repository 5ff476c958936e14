"""Targets from a teacher: the tokens of a Whisper encoder, averaged over the time patches of EAT.

EAT's patches are 16 rows of 10 ms; Whisper has a token per 20 ms, so that patch p takes tokens 8 p to 8 p + 7, fewer at
the end of a clip. The teacher hears each clip at its own length, without the 30 s window it was trained with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from audiocl_bench import backbones
from audiocl_bench.audio import HOP_SAMPLES, whisper_logmel
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.backbones.whisper import STRIDE
from audiocl_bench.errors import CheckpointError, ConfigError

PATCH_FRAMES = 16
"""Rows of 10 ms in a time patch of EAT."""

TOKENS = PATCH_FRAMES // STRIDE
"""Whisper's tokens in a time patch."""


class Teacher:
    """A frozen Whisper encoder and its targets.

    Args:
        path: name or path of the weights (see `backbones.load`).

    Attributes:
        layers: number of targets per time patch: what enters block 0, then the output of every block.
        dim: width of a target.

    Raises:
        ConfigError: the weights are no Whisper encoder's.
        CheckpointError, UnknownNameError: the weights cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        try:
            self._network: Backbone = backbones.load(path)
        except CheckpointError as cause:  # which advises `--backbone`
            what = str(cause).partition(": ")[0]
            raise CheckpointError(
                f"the teacher is missing, {what}: give a folder with a Whisper encoder's weights as `--teacher PATH`, "
                "or a name or path as `teacher` under [audio] in the recipe."
            ) from cause
        if self._network.network != "whisper":
            raise ConfigError(
                f"teacher = '{path}' is a network of kind {self._network.network}: name a Whisper encoder."
            )
        self.layers, self.dim = self._network.depth + 1, self._network.dim

    def describe(self) -> dict[str, Any]:
        """Return name, hash of the weights, numbers of the layers and width, as plain values."""
        return {
            "name": self._network.name,
            "weights_hash": self._network.weights_hash,
            "layers": list(range(self.layers)),
            "dim": self.dim,
        }

    def inputs(self, waves: Tensor) -> Tensor:
        """Turn waves of one length [B, N] into normalised log-mels [B, T, M]: T = N / 160, rounded up to even."""
        rows = -(-waves.shape[1] // HOP_SAMPLES)
        rows += rows % STRIDE
        mel = whisper_logmel(waves, self._network.front_end.n_mels, window=HOP_SAMPLES * rows)
        silent = rows - mel.shape[1]
        if silent > 0:
            mel = torch.nn.functional.pad(mel, (0, 0, 0, silent), value=-10.0)
        return self._network.front_end.normalise(mel)

    @torch.inference_mode()
    def tokens(self, waves: Tensor) -> Tensor:
        """Return all layers' tokens [B, T / 2, layers, dim] of waves of one length [B, N]."""
        stem = self._network.tokens(self.inputs(waves))
        outputs: list[Tensor] = [stem]
        self._network.run(stem, stop=self._network.depth, outputs=outputs)
        return torch.stack(outputs, dim=2)

    @torch.inference_mode()
    def targets(self, waves: Tensor, patches: int) -> Tensor:
        """Return the targets [B, patches, layers, dim] of waves of one length [B, N].

        Args:
            waves: 16 kHz, in [-1, 1].
            patches: time patches that hold at least one row of the clip.
        """
        return average(self.tokens(waves), patches)


def average(tokens: Tensor, patches: int) -> Tensor:
    """Average tokens [B, N, ...] over time patches of 8: [B, patches, ...]; the last may have fewer, at least one.

    Raises:
        ValueError: there are no tokens for the last patch.
    """
    if tokens.shape[1] <= TOKENS * (patches - 1):
        raise ValueError(f"{tokens.shape[1]} tokens do not reach into patch {patches - 1}")
    parts = tokens[:, : TOKENS * patches].split(TOKENS, dim=1)
    return torch.stack([part.mean(dim=1) for part in parts], dim=1)
