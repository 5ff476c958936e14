"""L2P: learning to prompt (Wang et al., CVPR 2022; official code google-research/l2p dd8836e, methods.md section 2.1).

A pool of prompts with keys is learned in front of a frozen network. A clip's query, its feature under the network as
pretrained, chooses the prompts whose keys are nearest. They are prepended to its tokens, and the mean of their outputs
is classified. Prompts carry no position code, as in the official code, so their order plays no role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Card, Clips, Context, Method, MethodConfig, Session, State, register, setting
from audiocl_bench.peft.prompts import cosine_similarity, run_prompted, top_prompts
from audiocl_bench.training import Group, GrowingHead, Recipe, TrainingConfig, fit, linear_head, local_labels


@dataclass(frozen=True)
class L2PConfig(TrainingConfig):
    """Settings of L2P. "port" is the PyTorch port's configuration for CIFAR-100, "official" the authors' JAX code.

    Whatever the preset, prompts come first and carry no position code, as in the official code.
    """

    preset: str = setting(
        "audio",
        "ours: the PyTorch port with PACE's budget, E_0 epochs in batches of 24. The official prompts start 100 times "
        "smaller, and sessions of 16 to 240 clips have too few steps to grow them (docs/findings.md, section 9)",
    )
    pool: int = setting(10, "port and official: M", unit="prompts", low=1)
    length: int = setting(5, "port: L_p", unit="tokens of a prompt", low=1)
    top_k: int = setting(5, "port: N", unit="prompts chosen per clip", low=1)
    pull: float = setting(0.1, "port: lambda, weight of the match between queries and chosen keys", low=0)
    init_low: float = setting(-1.0, "port: prompts and keys start as U(-1, 1)")
    init_high: float = setting(1.0, "port, see init_low")
    slots: Literal["shared", "own"] = setting(
        "shared",
        "official for CIFAR-100: every session trains the whole pool; 'own' (5-datasets): session t trains its own "
        "top_k prompts, started as a copy of the last session's, while the pool has that many",
    )
    selection: Literal["instance", "batch"] = setting(
        "instance",
        "ours: each clip chooses for itself; 'batch' is published in training and test (one choice per batch, by "
        "majority) and leaks the session of the test clips, so that such runs are marked",
    )
    epochs: int | None = setting(None, "none = the benchmark's E_0, as PACE; 5 in the port and officially", low=1)
    batch_size: int = setting(
        24,
        "as PACE; 16 in the port, and officially per device, whose eight devices 128 reproduces with their rate",
        unit="clips",
        low=1,
    )
    lr: float = setting(0.03, "port and official: base rate, see lr_batch", low=0)
    lr_batch: int | None = setting(
        256, "port and official: the rate is lr x batch_size / lr_batch; none = lr as it is", unit="clips", low=1
    )
    clip: float | None = setting(1.0, "port and official: largest gradient norm", low=0)

    # jax: configs/cifar100_l2p.py. jax-5datasets: configs/five_datasets_l2p.py. pytorch: JH-LEE-KR/l2p-pytorch f7bc994.
    # pilot: sun-hailong/LAMDA-PILOT 2647455. All: Adam, constant rate, no weight decay, optimiser rebuilt per session.
    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "audio": {},
        "jax": {
            "length": 10,
            "top_k": 4,
            "pull": 1.0,
            "init_low": 0.0,
            "init_high": 0.01,
            "epochs": 5,
            "batch_size": 16,
        },
        "jax-5datasets": {
            "pool": 20,
            "length": 10,
            "top_k": 4,
            "pull": 0.5,
            "init_low": 0.0,
            "init_high": 0.01,
            "slots": "own",
            "epochs": 5,
            "batch_size": 16,
        },
        "pytorch": {"epochs": 5, "batch_size": 16},
        "pilot": {"epochs": 5, "batch_size": 16, "lr": 0.001875, "lr_batch": None, "clip": None},
    }


@register("l2p")
class L2P(Method):
    """Learn a pool of prompts and keys, and the rows of a linear head, with the network frozen."""

    Config: ClassVar[type[MethodConfig]] = L2PConfig
    card = Card(
        paper="Wang et al., L2P (CVPR 2022); official code google-research/l2p dd8836e, PyTorch port f7bc994.",
        trains="prompts and keys of a shared pool, and the new rows of a linear head, in every session",
        keeps="pool, keys and head",
        deviations=(
            "Every clip chooses its own prompts; all official configurations choose once per batch, at test too, which "
            "leaks the session (`selection=batch` does that, and the run is marked).",
            "Prompts come first and carry no position code, as in the official code and unlike the PyTorch port.",
            "Only classes seen so far are scored; the PyTorch port lets untrained ones compete.",
        ),
    )
    config: L2PConfig

    def __init__(self, config: L2PConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        if config.top_k > config.pool:
            raise ConfigError(
                f"setting 'top_k' is {config.top_k}, but the pool holds {config.pool} prompts: lower it or raise pool."
            )
        self.leaks_across_batch = config.selection == "batch"
        draw, bounds = context.generator("prompts"), (config.init_low, config.init_high)
        self.prompts = uniform((config.pool, config.length, backbone.dim), *bounds, draw).to(context.device)  # P
        self.keys = uniform((config.pool, backbone.dim), *bounds, draw).to(context.device)  # K
        self.head = GrowingHead(backbone.dim, context.device)

    # ---- Training ---------------------------------------------------------------------------------------------------

    def learn(self, session: Session) -> None:
        """Minimise CE over the session's classes - lambda R, with R the match of queries and chosen keys."""
        config, context = self.config, self.context
        self.num_seen = session.num_seen
        queries = self.session_queries(session)
        slots = self._slots(session.index)
        prompts, keys = nn.Parameter(self.prompts[slots]), nn.Parameter(self.keys[slots])  # copies
        rows = linear_head(
            self.backbone.dim, len(session.classes), context.generator("head", session.index), context.device
        )
        right = torch.zeros(session.num_clips, dtype=torch.bool)  # when last seen in training

        def loss(clips: Clips, y: Tensor) -> Tensor:
            assert clips.index is not None
            features, match = self.prompted(clips.mel, queries[clips.index], prompts, keys)
            logits, labels = rows(features), local_labels(y, session.classes)
            right[clips.index] = (logits.argmax(1) == labels).cpu()
            return F.cross_entropy(logits, labels) - config.pull * match

        recipe = Recipe(
            config.epochs or context.stream.first_session_epochs,
            config.batch_size,
            "adam",
            schedule="constant",
            clip=config.clip,
        )
        lr = scaled_rate(config.lr, config.batch_size, config.lr_batch)
        groups = [Group((prompts, keys, *rows.parameters()), lr)]
        history = fit(session, groups, loss, recipe, context, stage="prompts")
        self.prompts[slots], self.keys[slots] = prompts.detach(), keys.detach()
        self.head.append(rows)
        self.encoder_version += 1
        context.report.note("train_loss", history[-1])
        context.report.note("train_accuracy", float(right.float().mean()))
        chosen = top_prompts(cosine_similarity(queries, self.keys), config.top_k)
        context.report.note("prompts_used", len(chosen.unique()))

    def _slots(self, session: int) -> Tensor:
        """Return the pool's indices that this session trains, after copying where it starts from the last session's."""
        k, pool = self.config.top_k, self.config.pool
        if self.config.slots == "shared" or (session + 1) * k > pool:  # a pool used up is shared from then on
            return torch.arange(pool)
        slots = torch.arange(session * k, (session + 1) * k)
        if session > 0:
            self.prompts[slots] = self.prompts[slots - k]  # keys are not copied
        return slots

    # ---- The prompted network ---------------------------------------------------------------------------------------

    def prompted(self, mel: Tensor, queries: Tensor, prompts: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean prompt output of every clip [B, D], and R.

        Args:
            mel: normalised log-mels [B, T, M].
            queries: f_0(x) [B, D].
            prompts: [m, L_p, D].
            keys: [m, D].
        """
        similarity = cosine_similarity(queries, keys)  # gamma(q(x), k_m)
        chosen = top_prompts(similarity, self.config.top_k, batchwise=self.config.selection == "batch")
        outputs, _ = run_prompted(self.backbone, mel, prompts[chosen].flatten(1, 2))  # [P_s1; ..; P_sN; x]
        return outputs.mean(1), key_match(similarity, chosen)

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return the mean output of the chosen prompts [B, D]."""
        return self.prompted(batch.mel, self.queries(batch), self.prompts, self.keys)[0]

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the linear head's logits [B, S_t]."""
        return self.head(features)

    def state_dict(self) -> State:
        """Return pool, keys and head."""
        return {
            "prompts": self.prompts.clone(),
            "keys": self.keys.clone(),
            "head": self.head.state_dict(),
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built L2P."""
        self.prompts = state["prompts"].to(self.context.device, copy=True)
        self.keys = state["keys"].to(self.context.device, copy=True)
        self.head.load_state_dict(state["head"])
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]


def key_match(similarity: Tensor, chosen: Tensor) -> Tensor:
    """Return R = mean over clips of the sum over their k chosen keys of cos(q, k), a scalar in [-k, k].

    Args:
        similarity: cosines [B, M].
        chosen: key indices [B, k].
    """
    return similarity.gather(1, chosen).sum(1).mean()


def scaled_rate(lr: float, batch_size: int, lr_batch: int | None) -> float:
    """Return lr x batch_size / lr_batch, or lr where a recipe does not scale it (methods.md section 5, point 8)."""
    return lr if lr_batch is None else lr * batch_size / lr_batch


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draw a CPU tensor from U(low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low
