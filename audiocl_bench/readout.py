"""What is read from a backbone: which layers, which statistics of their tokens. One encoder pass, however many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.config import MethodConfig, setting
from audiocl_bench.errors import ConfigError

Statistic = Literal["cls", "mean", "std"]


@dataclass(frozen=True)
class ReadoutConfig(MethodConfig):
    """Settings of every method that classifies what it reads from the encoder in closed form."""

    layers: str = setting(
        "last",
        "the paper and all its baselines read the last layer",
        unit="last, all, last:K, or numbers such as 0,2,4 (0 is what enters the first block)",
        later=True,
    )
    pool: str = setting(
        "default",
        "default is the backbone's own pooling",
        unit="cls, mean, std, joined by + (mean+std)",
        later=True,
    )


@dataclass(frozen=True)
class Readout:
    """Statistics over a clip's tokens, taken at some layers: features [B, width].

    Features are ordered by layer, then statistic, then channel.

    Attributes:
        layers: ascending; 0 is what enters block 0 (patches or convolution stem, with positions), k the output of
            block k, 1..depth.
        statistics: "cls" (token 0), "mean" and "std" (over the tokens that stand for audio; std divides by their
            number).
        dim: token width D.
    """

    layers: tuple[int, ...]
    statistics: tuple[Statistic, ...]
    dim: int

    @classmethod
    def of(cls, backbone: Backbone, layers: str = "last", pool: str = "default") -> Readout:
        """Read the settings `layers` and `pool` for a backbone; its own `layer` is the last one.

        Raises:
            ConfigError: a layer or statistic that the backbone does not have.
        """
        return cls(_layers(backbone, layers), _statistics(backbone, pool), backbone.dim)

    @property
    def width(self) -> int:
        """Number of features per clip."""
        return len(self.layers) * len(self.statistics) * self.dim

    def describe(self) -> dict[str, Any]:
        """Return what decides the features beside the backbone, as plain values."""
        return {"layers": list(self.layers), "statistics": list(self.statistics)}

    def __call__(self, backbone: Backbone, mel: Tensor) -> Tensor:
        """Return features [B, width] of normalised log-mels [B, T, M], from one pass through the blocks needed."""
        tokens = backbone.tokens(mel)
        outputs = [tokens]
        backbone.run(tokens, stop=self.layers[-1], outputs=outputs)
        return torch.cat([self._summary(backbone, outputs[layer]) for layer in self.layers], dim=1)

    def _summary(self, backbone: Backbone, tokens: Tensor) -> Tensor:
        audio = backbone.audio_tokens(tokens)
        parts = {
            "cls": lambda: tokens[:, 0],
            "mean": lambda: audio.mean(dim=1),
            "std": lambda: audio.std(dim=1, correction=0),
        }
        return torch.cat([parts[statistic]() for statistic in self.statistics], dim=1)


def _layers(backbone: Backbone, text: str) -> tuple[int, ...]:
    last = backbone.layer
    named: Mapping[str, range] = {"last": range(last, last + 1), "all": range(last + 1)}
    if text in named:
        return tuple(named[text])
    kind, _, count = text.partition(":")
    try:
        if kind == "last":
            chosen = [int(count)]
            layers = tuple(range(max(last - chosen[0] + 1, 0), last + 1))
        else:
            chosen = [int(part) for part in text.replace("[", "").replace("]", "").split(",")]
            layers = tuple(sorted(set(chosen)))
    except ValueError:
        raise ConfigError(
            f"setting 'layers' is '{text}', but it must be last, all, last:K, or layer numbers such as 0,2,4."
        ) from None
    if not layers or min(chosen) < 0 or layers[-1] > last:
        raise ConfigError(f"setting 'layers' is '{text}', but {backbone.name} has the layers 0 to {last}.")
    return layers


def _statistics(backbone: Backbone, text: str) -> tuple[Statistic, ...]:
    if text == "default":
        return (backbone.pool,)
    known: tuple[Statistic, ...] = get_args(Statistic)
    parts = [part.strip() for part in text.split("+")]
    statistics = tuple(statistic for statistic in known if statistic in parts)
    if len(statistics) != len(parts):
        raise ConfigError(f"setting 'pool' is '{text}', but it joins {', '.join(known)} by +, each once (mean+std).")
    if "cls" in statistics and not backbone.has_cls:
        raise ConfigError(f"setting 'pool' is '{text}', but {backbone.name} has no class token: use mean or mean+std.")
    return statistics
