"""LoRA subtraction for drift-resistant space (LoRA-DRS, Liu and Chang, CVPR 2025; official code 836ad29).

Every session trains a LoRA pair of its own beside the sum of all earlier ones. From the second session on, steps stay
inside the leading subspace of what the network sees of the new clips once all earlier pairs are *subtracted*. The
classifier is the nearest class mean; means are taken once and never refreshed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.heads import NCMHead
from audiocl_bench.method import (
    Card,
    Clips,
    ClosedFormMethod,
    Context,
    MethodConfig,
    Session,
    State,
    register,
    setting,
)
from audiocl_bench.peft.lora import SessionLoRA
from audiocl_bench.peft.subspace import attention_covariances, leading_subspace, projector
from audiocl_bench.training import Group, Recipe, TrainingConfig, fit, linear_head, local_labels


@dataclass(frozen=True)
class LoRADRSConfig(TrainingConfig):
    """Settings of LoRA-DRS; official defaults unless said otherwise."""

    preset: str = setting(
        "audio",
        "ours: the official CIFAR-100 recipe with PACE's budget, E_0 epochs in batches of 24; batches of 128 leave a "
        "session of 16 to 240 clips one or two steps an epoch",
    )
    rank: int = setting(10, "official", low=1)
    lora_scale: float = setting(1.0, "official: plain sum of B A", low=0)
    targets: tuple[str, ...] = setting(("k_proj", "v_proj"), "official, in every block")
    epochs: int | None = setting(None, "none = the benchmark's E_0, as PACE; officially 20 for cifar100", low=1)
    first_epochs: int | None = setting(
        None, "epochs of the first session (official init_epoch, 40 for imagenet-r); none = epochs", low=1
    )
    lr: float = setting(5e-4, "official, for LoRA", low=0)
    lr_head: float = setting(2e-3, "official for cifar100; 5e-4 for imagenet-r", low=0)
    batch_size: int = setting(24, "as PACE; officially 128", unit="clips", low=1)
    energy: float = setting(0.99, "official: share of the eigenvalues' sum that the subspace keeps", low=0, high=1)
    projection: Literal["onto", "complement", "none"] = setting(
        "onto", "official: inside the leading subspace; the others for comparison"
    )
    projection_norm: Literal["fro", "none"] = setting(
        "fro", "official: P is divided by its Frobenius norm, which shortens LoRA's steps by sqrt k"
    )
    triplet: float = setting(0.05, "official lambda for cifar100; 0.2 for imagenet-r", low=0)
    margin: float = setting(1.0, "official for cifar100; 2.0 for imagenet-r", low=0)

    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "audio": {},
        "cifar100": {"epochs": 20, "batch_size": 128, "lr_head": 2e-3, "triplet": 0.05, "margin": 1.0},
        "imagenet-r": {
            "epochs": 50,
            "first_epochs": 40,
            "batch_size": 128,
            "lr_head": 5e-4,
            "triplet": 0.2,
            "margin": 2.0,
        },
    }


@register("lora-drs")
class LoRADRS(ClosedFormMethod):
    """Adapt in every session inside the drift-resistant subspace, classify by the nearest stored class mean."""

    Config: ClassVar[type[MethodConfig]] = LoRADRSConfig
    card = Card(
        paper="Liu and Chang, LoRA-DRS (CVPR 2025); official code scarlet0703/LoRA-Sub-DRS 836ad29.",
        trains="a LoRA pair in every block and a head for the session's classes, in every session; the head is dropped",
        keeps="LoRA pairs, or their sum where that is smaller, and sum and count of each class's features",
        deviations=(
            "The covariance pass reads clips as they are; the official one sees training augmentation.",
            "The schedule always ends with the session's own epochs; the official one turns negative where the first "
            "session is longer.",
            "Pairs are added up once they would outgrow their sum, which changes features by rounding only.",
        ),
    )
    config: LoRADRSConfig

    def __init__(self, config: LoRADRSConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.lora = SessionLoRA(
            backbone, blocks=range(backbone.layer), targets=config.targets, rank=config.rank, scale=config.lora_scale
        )
        self.head = NCMHead(backbone.dim, metric="cosine")

    def adapt(self, session: Session) -> None:
        """Train W_t = W_0 + sum_{j<t} B_j A_j + B_t A_t and a head of the session's own, which is then dropped."""
        config, context, classes = self.config, self.context, session.classes
        P = self._projectors(session)  # seen by the network before this session's pair exists
        pairs = self.lora.add(context.generator("lora", session.index), sparse=True)
        head = linear_head(self.backbone.dim, len(classes), context.generator("head", session.index), context.device)
        prototypes = self._prototypes()

        def loss(clips: Clips, y: Tensor) -> Tensor:
            features = self.backbone.features(clips.mel)
            local = local_labels(y, classes)
            atl = augmented_triplet(F.normalize(features, dim=-1), local, prototypes, config.margin)
            return F.cross_entropy(head(features), local) + config.triplet * atl  # CE LOCAL + lambda ATL

        projectors: dict[nn.Parameter, Callable[[Tensor], Tensor]] = {}
        for pair in pairs:
            if pair.block in P:  # the Adam update, not the gradient: A's from the right, B's from the left
                projectors[pair.A] = partial(_times, P[pair.block])
                projectors[pair.B] = P[pair.block].matmul
        recipe = Recipe(self._epochs(session), config.batch_size, "adam", schedule="coda")
        groups = [
            Group(tuple(p for pair in pairs for p in (pair.A, pair.B)), config.lr),
            Group(tuple(head.parameters()), config.lr_head),  # not projected
        ]
        history = fit(session, groups, loss, recipe, context, stage="adapt", projectors=projectors)
        context.report.note("train_loss", history[-1])
        self.lora.freeze()
        if 2 * config.rank * len(self.lora.names) > self.backbone.dim:
            self.lora.fold()  # their sum is now smaller than the pairs: TIMIT has 315 sessions
        self.encoder_version += 1

    def _projectors(self, session: Session) -> dict[int, Tensor]:
        """P_l = V_k V_k^T / |V_k V_k^T|_F per block, from E[x x^T] under W_0 - sum_{j<t} B_j A_j; none in session 0."""
        config = self.config
        if session.index == 0 or config.projection == "none":
            return {}
        with self.lora.subtracted(self.lora.names):
            batches = (clips for clips, _ in session.batches(64))
            covariances = attention_covariances(self.backbone, batches, self.lora.blocks)
        subspaces = {block: leading_subspace(C, config.energy) for block, C in covariances.items()}
        self.context.report.note("subspace_dims", [subspaces[block].shape[1] for block in self.lora.blocks])
        return {
            block: projector(V, config.projection, config.projection_norm).to(self.context.device)
            for block, V in subspaces.items()
        }

    def _prototypes(self) -> Tensor:
        """Stored means of the old classes [C, D], of length one."""
        means = self.head.means[self.head.counts > 0]
        return F.normalize(means, dim=-1).to(self.context.device, torch.float32)

    def _epochs(self, session: Session) -> int:
        epochs = self.config.epochs or self.context.stream.first_session_epochs
        return self.config.first_epochs or epochs if session.index == 0 else epochs

    def accumulate(self, session: Session) -> None:
        """Take the means of the session's classes with the network as it is now."""
        features, labels = self.session_features(session)
        self.head.update(features, labels, self.num_seen)
        right = self.head.predict(features) == labels.cpu()
        self.context.report.note("train_accuracy", float(right.double().mean()))

    def reset_statistics(self) -> None:
        """Forget all class means."""
        self.head = NCMHead(self.backbone.dim, metric="cosine")

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return pooled features [B, D]."""
        return self.backbone.features(batch.mel)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return cosines to the class means [B, S_t]: nearest mean once both have length one."""
        return self.head.logits(features)

    def state_dict(self) -> State:
        """Return LoRA pairs (or their sum) and class means."""
        return {
            "lora": self.lora.state_dict(),
            "head": self.head.state_dict(),
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built LoRA-DRS."""
        self.lora.load_state_dict(state["lora"])
        self.head.load_state_dict(state["head"])
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]


def augmented_triplet(z: Tensor, y: Tensor, prototypes: Tensor, margin: float) -> Tensor:
    """Return the augmented triplet loss, mean_i max(0, d_ap(i) - d_an(i) + margin).

    d_ap is the distance to the farthest clip of the same class in the batch (0 for a clip alone in its class), d_an
    that to the nearest clip of another class or the nearest prototype. A batch of one class has no such clip; the
    official code then takes d_an = d_ap + margin before it looks at prototypes, which gives the same loss as leaving
    clips out of the minimum, as here.

    Args:
        z: features [B, D] of length one.
        y: labels [B].
        prototypes: means of old classes [C, D] of length one; C may be 0.
        margin: the margin.
    """
    same = y[:, None] == y[None]
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    between = _distances(z, z).masked_fill(itself, 0)
    d_ap = between.masked_fill(~same, 0).max(1).values
    d_an = torch.cat([between.masked_fill(same, torch.inf), _distances(z, prototypes)], dim=1).min(1).values
    return F.relu(d_ap - d_an + margin).mean()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Distances [n, m] between vectors of length one. The floor keeps the root's slope finite (official)."""
    return (2 - 2 * x @ y.T).clamp_min(1e-12).sqrt()


def _times(P: Tensor, step: Tensor) -> Tensor:
    return step @ P
