"""Strata: read every layer, standardise, solve. Nothing is trained, so nothing drifts (docs/strata.md).

A pretrained audio network does not lose what its last layer no longer shows: speakers stand in early layers, words in
late ones. Mean and standard deviation over time of every layer's tokens go into one exact ridge regression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.heads import RandomProjection, StandardisedRidge
from audiocl_bench.method import (
    Card,
    Clips,
    ClosedFormMethod,
    Context,
    ReadoutConfig,
    Session,
    State,
    register,
    setting,
)
from audiocl_bench.readout import Readout


@dataclass(frozen=True)
class StrataConfig(ReadoutConfig):
    """Settings of Strata. All were chosen on training clips (docs/strata.md)."""

    layers: str = setting("all", "ours: convolution stem or patches (0) and every block")
    pool: str = setting("mean+std", "ours: level and variation over time")
    standardise: Literal["streaming", "first", "none"] = setting(
        "streaming", "ours: by all clips so far, exact; 'first': by the first session's; 'none': one common factor"
    )
    strength: float | None = setting(None, "ours: none = generalised cross-validation on all clips so far", low=1e-9)
    rank: int | None = setting(None, "ours: none = exact; a number bounds the kept bytes", unit="directions", low=2)
    width: int = setting(
        0, "ours: 0 = none; random ReLU features of the readout, for networks too wide to keep", unit="features", low=0
    )


@register("strata")
class Strata(ClosedFormMethod):
    """Ridge on standardised statistics of all layers of the frozen network."""

    Config = StrataConfig
    card = Card(
        paper="ours; multi-layer readout for continual learning of images: Ahrens et al., LayUP (TMLR 2024).",
        trains="nothing",
        keeps="second-order statistics of all layers' features (square root or packed triangle, float64), their mean "
        "and variance",
    )
    config: StrataConfig

    def __init__(self, config: StrataConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.readout = Readout.of(backbone, config.layers, config.pool)  # Eq. 1
        self.random = RandomProjection.draw(self.readout.width, config.width, scaling="acil", seed=context.seed)
        self.head = self._head()

    def _head(self) -> StandardisedRidge:
        return StandardisedRidge(self.random.out_width, scale=self.config.standardise, rank=self.config.rank)

    @torch.no_grad()
    def accumulate(self, session: Session) -> None:
        """Fold the session into the sums (Eq. 2), choose the strength from them (Eq. 5) and solve (Eq. 4)."""
        features, labels = self.session_features(session)
        self.head.update(self.random(features), labels, self.num_seen)
        if self.config.strength is None:
            self.head.tune()
        else:
            self.head.solve(self.config.strength)
        self.context.report.note("strength", self.head.tau)

    def reset_statistics(self) -> None:
        """Forget all sums."""
        self.head = self._head()

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return phi(x) [B, layers x statistics x D], Eq. 1."""
        return self.read(batch)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the scores of Eq. 6, [B, S_t]."""
        return self.head.logits(self.random(features))

    def state_dict(self) -> State:
        """Return the sums and the strength."""
        return {"head": self.head.state_dict(), "num_seen": self.num_seen}

    def load_state_dict(self, state: State) -> None:
        """Restore the sums and the strength."""
        self.head.load_state_dict(state["head"])
        self.num_seen = state["num_seen"]
