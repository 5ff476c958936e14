"""Sequential fine-tuning: the lower bound. One expanding linear head, no protection against forgetting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.method import Card, Clips, Context, Method, MethodConfig, Session, State, register, setting
from audiocl_bench.peft.lora import SessionLoRA
from audiocl_bench.training import Group, GrowingHead, Recipe, TrainingConfig, fit, linear_head


@dataclass(frozen=True)
class FineTuneConfig(TrainingConfig):
    """Settings of sequential fine-tuning. The training recipe is RanPAC's; joint training shares it."""

    trains: Literal["lora", "all"] = setting("lora", "the paper's joint row is EAT + LoRA; 'all' trains every weight")
    logits: Literal["seen", "local"] = setting("seen", "'seen' is the naive lower bound; 'local' hides old classes")
    epochs: int | None = setting(5, "ours: forgetting is complete long before; none = the benchmark's E_0", low=1)
    min_steps: int = setting(0, "ours: no least number; see `joint`", unit="steps", low=0)
    lr_backbone: float = setting(0.05, "as PACE's eta_bb for LoRA; use 1e-4 for trains=all", low=0)
    lr_head: float = setting(0.01, "as PACE's eta_head", low=0)
    batch_size: int = setting(24, "as PACE", unit="clips", low=1)
    optimiser: Literal["sgd", "adam"] = setting("sgd", "RanPAC's recipe")
    momentum: float = setting(0.9, "RanPAC's recipe", low=0, high=1)
    weight_decay: float = setting(5e-4, "RanPAC's recipe", low=0)
    clip: float | None = setting(1.0, "as PACE: largest gradient norm", low=0)
    rank: int = setting(8, "as PACE", low=1)
    lora_scale: float = setting(1.0, "as PACE", low=0)
    targets: tuple[str, ...] = setting(("k_proj", "v_proj"), "as PACE")


@register("finetune")
class FineTune(Method):
    """Train one LoRA (or all weights) and an expanding linear head on each session in turn."""

    Config: ClassVar[type[MethodConfig]] = FineTuneConfig
    card = Card(
        paper="the usual lower bound; recipe of RanPAC's joint row (official code 012927f).",
        trains="one LoRA (or all weights) and a linear head, on every session in turn",
        keeps="LoRA (or all weights) and the head",
    )
    config: FineTuneConfig

    def __init__(self, config: FineTuneConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.lora = SessionLoRA(
            backbone,
            blocks=range(backbone.layer),
            targets=config.targets,
            rank=config.rank,
            scale=config.lora_scale,
        )
        if config.trains == "lora":
            self.lora.add(context.generator("lora"))
        self.head = GrowingHead(backbone.dim, context.device)

    def learn(self, session: Session) -> None:
        """Grow the head by the new classes (old rows copied), then train with cross-entropy.

        With logits "local" the old rows stay outside training: their gradient would be zero, but weight decay and
        Adam's step would move them all the same (methods.md section 1.5 d).
        """
        config, context = self.config, self.context
        self.num_seen = session.num_seen
        generator = context.generator("head", session.index)
        first = session.num_known if config.logits == "local" else 0  # the first class whose row is trained
        rows = linear_head(self.backbone.dim, session.num_seen - first, generator, context.device)
        if first == 0:
            with torch.no_grad():
                rows.weight[: session.num_known] = self.head.weight
                rows.bias[: session.num_known] = self.head.bias

        def loss(clips: Clips, y: Tensor) -> Tensor:
            return F.cross_entropy(rows(self.backbone.features(clips.mel)), y - first)

        body = self._body()
        for parameter in body:
            parameter.requires_grad_(True)
        steps = -(-session.num_clips // config.batch_size)  # of an epoch
        epochs = max(config.epochs or context.stream.first_session_epochs, -(-config.min_steps // steps))
        recipe = Recipe(
            epochs, config.batch_size, config.optimiser, config.momentum, config.weight_decay, clip=config.clip
        )
        groups = [Group(body, config.lr_backbone), Group(tuple(rows.parameters()), config.lr_head)]
        history = fit(session, groups, loss, recipe, context, stage="train")
        context.report.note("train_loss", history[-1])
        self.backbone.requires_grad_(False)
        if first > 0:
            self.head.append(rows)
        else:
            self.head.load_state_dict(rows.state_dict())
        self.encoder_version += 1

    def _body(self) -> tuple[nn.Parameter, ...]:
        if self.config.trains == "all":
            return tuple(self.backbone.parameters())
        return tuple(p for pair in self.lora.pairs("s0") for p in (pair.A, pair.B))

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return pooled features [B, D]."""
        return self.backbone.features(batch.mel)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the linear head's logits [B, S_t]."""
        return self.head(features)

    def state_dict(self) -> State:
        """Return head and LoRA (or all weights)."""
        body = self.lora.state_dict() if self.config.trains == "lora" else self.backbone.state_dict()
        return {
            "body": {name: tensor.detach().clone() for name, tensor in body.items()},
            "head": self.head.state_dict(),
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built learner."""
        if self.config.trains == "lora":
            self.lora.load_state_dict(state["body"])
        else:
            self.backbone.load_state_dict(state["body"])
        self.head.load_state_dict(state["head"])
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]
