"""RanPAC: random projections and ridge on a pretrained network (McDonnell et al., NeurIPS 2023; official code 012927f).

Phase 1 (optional) adapts the network on the first session only; phase 2 accumulates exact second-order statistics of
random ReLU features and solves a ridge regression after every session.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.heads import RandomProjection, RidgeHead, choose_lambda
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
from audiocl_bench.peft.lora import SessionLoRA
from audiocl_bench.readout import Readout
from audiocl_bench.training import Group, Recipe, TrainingConfig, fit, linear_head, local_labels


@dataclass(frozen=True)
class RanPACConfig(TrainingConfig, ReadoutConfig):
    """Settings of RanPAC; official defaults unless said otherwise."""

    preset: str = setting("official", "'no-fsa' is the row 'RanPAC w/o FSA' of the PACE paper's Table 2")
    fsa: bool = setting(True, "official phase 1; off is the paper's row 'w/o FSA'")
    epochs: int = setting(20, "official", unit="epochs", low=1)
    lr: float = setting(0.01, "official body_lr and head_lr", low=0)
    batch_size: int = setting(48, "official", unit="clips", low=1)
    momentum: float = setting(0.9, "official", low=0, high=1)
    weight_decay: float = setting(5e-4, "official", low=0)
    rank: int = setting(8, "ours: LoRA on K and V of all blocks stands for the official adapter, SSF or VPT", low=1)
    lora_scale: float = setting(1.0, "as PACE", low=0)
    targets: tuple[str, ...] = setting(("k_proj", "v_proj"), "ours: the same places PACE adapts")
    width: int = setting(10_000, "official M; 0 is ridge on raw features", unit="random features", low=0)
    scaling: Literal["ranpac", "acil"] = setting("ranpac", "official N(0, 1)")
    ridge: float | None = setting(None, "none = chosen by search", low=1e-8)
    search: Literal["session", "accumulated"] = setting(
        "session",
        "official: 10^-8..10^8 on the current session's 80/20 split (stratified here, so that no class is lost); "
        "'accumulated' is generalised cross-validation on all statistics so far",
    )

    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {"official": {}, "no-fsa": {"fsa": False}}


@register("ranpac")
class RanPAC(ClosedFormMethod):
    """Ridge regression on random ReLU features, with or without first-session adaptation."""

    Config = RanPACConfig
    card = Card(
        paper="McDonnell et al., RanPAC (NeurIPS 2023); official code RanPAC/RanPAC 012927f.",
        trains="LoRA and a cosine head, in the first session only; with `no-fsa` nothing",
        keeps="LoRA pairs; second-order statistics of random features (square root or packed triangle, float64)",
        deviations=(
            "LoRA on K and V stands for the official choice of adapter, SSF or VPT: the paper's EAT baselines adapt by "
            "LoRA.",
            "The ridge search is exact float64 in its dual form; in float32 the official search returns garbage below "
            "1e-5 when a session has fewer clips than features.",
            "The 80/20 split of the search is stratified, so that no class of a small session is lost.",
        ),
    )
    config: RanPACConfig

    def __init__(self, config: RanPACConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.lora = SessionLoRA(
            backbone,
            blocks=range(backbone.layer),
            targets=config.targets,
            rank=config.rank,
            scale=config.lora_scale,
        )
        self.readout = Readout.of(backbone, config.layers, config.pool)
        self.random = RandomProjection.draw(self.readout.width, config.width, scaling=config.scaling, seed=context.seed)
        self.head = RidgeHead(self.random.out_width)

    def adapt(self, session: Session) -> None:
        """Phase 1: fine-tune LoRA with a cosine classifier (learnable scale) on the first session, then freeze."""
        if session.index > 0 or not self.config.fsa:
            return
        config, context = self.config, self.context
        pairs = self.lora.add(context.generator("lora"))
        head = linear_head(self.backbone.dim, len(session.classes), context.generator("head"), context.device)
        prototypes = torch.nn.Parameter(head.weight.detach())
        sigma = torch.nn.Parameter(torch.ones((), device=context.device))

        def loss(clips: Clips, y: Tensor) -> Tensor:
            cosine = F.normalize(self.backbone.features(clips.mel), dim=-1) @ F.normalize(prototypes, dim=-1).T
            return F.cross_entropy(sigma * cosine, local_labels(y, session.classes))

        trained = (*(p for pair in pairs for p in (pair.A, pair.B)), prototypes, sigma)
        recipe = Recipe(config.epochs, config.batch_size, momentum=config.momentum, weight_decay=config.weight_decay)
        history = fit(session, [Group(trained, config.lr)], loss, recipe, context, stage="adapt")
        context.report.note("adapt_loss", history[-1])
        self.lora.freeze()
        self.encoder_version += 1

    @torch.no_grad()
    def accumulate(self, session: Session) -> None:
        """Phase 2: h = ReLU(f(x) W_r); G += sum h h^T, Q += sum h y^T; lambda from this session's 80/20 split."""
        features, labels = self.session_features(session)
        H = self.random(features)
        self.head.update(H, labels, self.num_seen)
        if self.config.ridge is not None:
            self.head.solve(self.config.ridge)
        elif self.config.search == "accumulated":
            self.head.tune()
        else:
            self.head.solve(choose_lambda(H, labels, self.num_seen, seed=self.context.seed).lam)
        self.context.report.note("lambda", self.head.lam)

    def reset_statistics(self) -> None:
        """Forget G and Q."""
        self.head = RidgeHead(self.random.out_width)

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return what is read of the encoder, f(x) [B, D]."""
        return self.read(batch)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return h W_o with W_o = (G + lambda I)^-1 Q, [B, S_t]."""
        return self.head.logits(self.random(features))

    def state_dict(self) -> State:
        """Return LoRA pairs and ridge statistics with lambda; W_r is redrawn from the seed."""
        return {
            "lora": self.lora.state_dict(),
            "head": self.head.state_dict(),
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built RanPAC."""
        self.lora.load_state_dict(state["lora"])
        self.head.load_state_dict(state["head"])
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]
