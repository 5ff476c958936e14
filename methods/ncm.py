"""Nearest class mean on frozen features (SimpleCIL's cosine form, or Euclidean). No training at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.heads import NCMHead
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
class NCMConfig(ReadoutConfig):
    """Settings of nearest class mean."""

    metric: Literal["cosine", "euclidean"] = setting("cosine", "SimpleCIL: cosine to the raw class mean")


@register("ncm")
class NCM(ClosedFormMethod):
    """Classify by the nearest class mean of frozen pretrained features."""

    Config = NCMConfig
    card = Card(
        paper="Zhou et al., SimpleCIL (IJCV 2024); official code LAMDA-PILOT 2647455.",
        trains="nothing",
        keeps="sum and count of each class's features",
    )
    config: NCMConfig

    def __init__(self, config: NCMConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.readout = Readout.of(backbone, config.layers, config.pool)
        self.head = NCMHead(self.readout.width, metric=config.metric)

    def accumulate(self, session: Session) -> None:
        """p_c = mean of f(x) over class c's training clips."""
        features, labels = self.session_features(session)
        self.head.update(features, labels, self.num_seen)

    def reset_statistics(self) -> None:
        """Forget all class means."""
        self.head = NCMHead(self.readout.width, metric=self.config.metric)

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return frozen pooled features [B, D]."""
        return self.read(batch)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return cos(f(x), p_c), or the negative squared distance, [B, S_t]."""
        return self.head.logits(features)

    def state_dict(self) -> State:
        """Return class sums and counts."""
        return {"head": self.head.state_dict(), "num_seen": self.num_seen}

    def load_state_dict(self, state: State) -> None:
        """Restore class sums and counts."""
        self.head.load_state_dict(state["head"])
        self.num_seen = state["num_seen"]
