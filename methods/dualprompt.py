"""DualPrompt (Wang et al., ECCV 2022; official code google-research/l2p dd8836e, methods.md section 2.2).

Prefixes for the attention of a frozen network: G-prompts, shared by all sessions, in its first blocks, and one E-prompt
with a key per session in later blocks. In training the session is known; at test the nearest key names the E-prompt.
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
from audiocl_bench.peft.prompts import cosine_similarity, existing_blocks, gather_prefixes, top_prompts
from audiocl_bench.training import Group, GrowingHead, Recipe, TrainingConfig, fit, linear_head, local_labels

from .l2p import key_match, scaled_rate, uniform


@dataclass(frozen=True)
class DualPromptConfig(TrainingConfig):
    """Settings of DualPrompt. "official" is the JAX code's configuration for CIFAR-100."""

    preset: str = setting(
        "audio",
        "ours: the authors' own recipe with PACE's budget of E_0 epochs; after the official five, prefixes have hardly "
        "moved in sessions of 16 to 240 clips (docs/findings.md, section 9)",
    )
    g_blocks: tuple[int, ...] = setting(
        (0, 1), "official; blocks the network lacks are left out, and where none remains its last one is taken", low=0
    )
    g_length: int = setting(5, "official: L_g", unit="keys and as many values per block", low=0)
    e_blocks: tuple[int, ...] = setting((2, 3, 4), "official; cut to the blocks that exist as g_blocks", low=0)
    e_length: int = setting(5, "official for CIFAR-100: L_e", unit="keys and as many values per block", low=0)
    pull: float = setting(1.0, "official: lambda, weight of the match between queries and the session's key", low=0)
    init_low: float = setting(0.0, "official: prompts and keys start as U(0, 0.01)")
    init_high: float = setting(0.01, "official, see init_low")
    selection: Literal["instance", "batch"] = setting(
        "instance",
        "ours: each test clip chooses for itself; 'batch' is official for CIFAR-100 (one choice per batch, by "
        "majority) and leaks the session of the test clips, so that such runs are marked",
    )
    gather: Literal["correct", "published"] = setting(
        "correct",
        "official; 'published' is the PyTorch ports' reshape without permuting, in training and test: clips get their "
        "neighbours' prefixes, which leaks the session (methods.md section 5, point 1); such runs are marked",
    )
    epochs: int | None = setting(None, "none = the benchmark's E_0, as PACE; officially 5 for CIFAR-100", low=1)
    batch_size: int = setting(24, "official: per device", unit="clips", low=1)
    lr: float = setting(0.03, "official for CIFAR-100: base rate, see lr_batch", low=0)
    lr_batch: int | None = setting(
        256, "official: the rate is lr x batch_size / lr_batch; none = lr as it is", unit="clips", low=1
    )
    clip: float | None = setting(1.0, "official: largest gradient norm", low=0)

    # jax: configs/cifar100_dualprompt.py. pytorch, pytorch-imagenet-r: JH-LEE-KR/dualprompt-pytorch 7eb457d. pilot:
    # sun-hailong/LAMDA-PILOT 2647455. All: Adam, constant rate, no weight decay, optimiser rebuilt per session, G in
    # blocks 0 and 1, E in blocks 2 to 4, one E-prompt per session.
    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "audio": {},
        "jax": {"e_length": 5, "pull": 1.0, "init_low": 0.0, "init_high": 0.01, "lr": 0.03, "epochs": 5},
        "pytorch": {"e_length": 5, "pull": 1.0, "init_low": -1.0, "init_high": 1.0, "lr": 0.03, "epochs": 5},
        "pytorch-imagenet-r": {
            "e_length": 20,
            "pull": 1.0,
            "init_low": -1.0,
            "init_high": 1.0,
            "lr": 0.005,
            "epochs": 50,
        },
        "pilot": {
            "e_length": 5,
            "pull": 0.1,
            "init_low": -1.0,
            "init_high": 1.0,
            "lr": 0.001,
            "lr_batch": None,
            "clip": None,
            "epochs": 5,
        },
    }


@register("dualprompt")
class DualPrompt(Method):
    """Learn shared and per-session attention prefixes, keys, and the rows of a linear head, with the network frozen."""

    Config: ClassVar[type[MethodConfig]] = DualPromptConfig
    card = Card(
        paper="Wang et al., DualPrompt (ECCV 2022); official code google-research/l2p dd8836e, PyTorch port 7eb457d.",
        trains="G-prefixes shared by all sessions, the session's own E-prefix and key, new rows of a linear head",
        keeps="prefixes, keys and head",
        deviations=(
            "Prefixes are gathered as the official code does; the PyTorch ports reshape without moving axes, which "
            "mixes keys, values and clips (`gather=published` does that, and the run is marked).",
            "Every test clip chooses its own E-prefix; for CIFAR-100 the official choice is one per batch "
            "(`selection=batch`, marked).",
            "Each session has an E-prefix of its own, however many sessions a stream has.",
            "Blocks that a shallow network lacks are left out.",
        ),
    )
    config: DualPromptConfig

    def __init__(self, config: DualPromptConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.leaks_across_batch = config.selection == "batch" or config.gather == "published"
        if not config.e_blocks:
            raise ConfigError("setting 'e_blocks' is empty, but E-prompts need at least one block, for example 2,3,4.")
        self.g_blocks = existing_blocks(config.g_blocks, backbone)
        self.e_blocks = existing_blocks(config.e_blocks, backbone)
        # g [n_G, 2, L_g, H, d_h]: keys (0) and values (1) for every G-block
        head = (backbone.num_heads, backbone.dim // backbone.num_heads)
        self.general = self._draw((len(self.g_blocks), 2, config.g_length, *head), "general")
        # e [n_E, 2, M, L_e, H, d_h] and keys [M, D], one of each per session so far
        self.experts = torch.zeros(len(self.e_blocks), 2, 0, config.e_length, *head, device=context.device)
        self.keys = torch.zeros(0, backbone.dim, device=context.device)
        self.head = GrowingHead(backbone.dim, context.device)

    def _draw(self, shape: tuple[int, ...], *purpose: str | int) -> Tensor:
        """Draw prompts or keys as the recipe starts them."""
        draw = self.context.generator(*purpose)
        return uniform(shape, self.config.init_low, self.config.init_high, draw).to(self.context.device)

    # ---- Training ---------------------------------------------------------------------------------------------------

    def learn(self, session: Session) -> None:
        """Minimise CE over the session's classes - lambda mean cos(q, k_t), with the session's own E-prompt e_t.

        What is trained stands in tensors of its own, so the other sessions' prompts and keys keep their bytes.
        """
        config, context = self.config, self.context
        self.num_seen = session.num_seen
        queries = self.session_queries(session)
        general = nn.Parameter(self.general.clone())
        expert, key = (nn.Parameter(part) for part in self._slot(session.index))
        rows = linear_head(
            self.backbone.dim, len(session.classes), context.generator("head", session.index), context.device
        )
        right = torch.zeros(session.num_clips, dtype=torch.bool)  # when last seen in training

        def loss(clips: Clips, y: Tensor) -> Tensor:
            assert clips.index is not None
            own = torch.zeros(len(clips), 1, dtype=torch.long, device=context.device)  # e_t is the only one here
            logits = rows(self.prefixed(clips.mel, own, general, expert))
            labels = local_labels(y, session.classes)
            right[clips.index] = (logits.argmax(1) == labels).cpu()
            match = key_match(cosine_similarity(queries[clips.index], key), own)
            return F.cross_entropy(logits, labels) - config.pull * match

        recipe = Recipe(
            config.epochs or context.stream.first_session_epochs,
            config.batch_size,
            "adam",
            schedule="constant",
            clip=config.clip,
        )
        lr = scaled_rate(config.lr, config.batch_size, config.lr_batch)
        trained = tuple(p for p in (general, expert, key, *rows.parameters()) if p.numel())
        history = fit(session, [Group(trained, lr)], loss, recipe, context, stage="prompts")
        self.general = general.detach()
        self.experts = torch.cat([self.experts, expert.detach()], dim=2)
        self.keys = torch.cat([self.keys, key.detach()])
        self.head.append(rows)
        self.encoder_version += 1
        context.report.note("train_loss", history[-1])
        context.report.note("train_accuracy", float(right.float().mean()))
        nearest = cosine_similarity(queries, self.keys).argmax(1)
        context.report.note("own_key_share", float((nearest == len(self.keys) - 1).float().mean()))
        context.report.note("g_blocks", self.g_blocks)
        context.report.note("e_blocks", self.e_blocks)

    def _slot(self, session: int) -> tuple[Tensor, Tensor]:
        """Return where the session's E-prompt [n_E, 2, 1, L_e, H, d_h] and key [1, D] start.

        The prompt is a copy of the last session's, the key is drawn.
        """
        layers, both, sessions, *prefix = self.experts.shape
        drawn = self._draw((layers, both, 1, *prefix), "expert") if sessions == 0 else self.experts[:, :, -1:].clone()
        return drawn, self._draw((1, self.backbone.dim), "key", session)

    # ---- The prompted network ---------------------------------------------------------------------------------------

    def prefixed(self, mel: Tensor, chosen: Tensor, general: Tensor, experts: Tensor) -> Tensor:
        """Return pooled features [B, D] of the network with prefixes.

        Args:
            mel: normalised log-mels [B, T, M].
            chosen: each clip's E-prompt [B, 1].
            general: G-prompts [n_G, 2, L_g, H, d_h].
            experts: E-prompts [n_E, 2, M, L_e, H, d_h].
        """
        prefix = gather_prefixes(general.unsqueeze(2), torch.zeros_like(chosen), self.g_blocks)
        published = self.config.gather == "published"
        for block, part in gather_prefixes(experts, chosen, self.e_blocks, published_reshape=published).items():
            parts = [prefix[block], part] if block in prefix else [part]
            keys, values = zip(*parts, strict=True)
            prefix[block] = torch.cat(keys, dim=2), torch.cat(values, dim=2)  # h = [p_K; h_K], [p_V; h_V]
        return self.backbone.pooled(self.backbone.run(self.backbone.tokens(mel), prefix=prefix))

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return pooled features [B, D], with the E-prompt of argmax_m cos(q(x), k_m) over the sessions so far."""
        similarity = cosine_similarity(self.queries(batch), self.keys)
        chosen = top_prompts(similarity, 1, batchwise=self.config.selection == "batch")
        return self.prefixed(batch.mel, chosen, self.general, self.experts)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the linear head's logits [B, S_t]."""
        return self.head(features)

    def state_dict(self) -> State:
        """Return prompts, keys and head."""
        return {
            "general": self.general.clone(),
            "experts": self.experts.clone(),
            "keys": self.keys.clone(),
            "head": self.head.state_dict(),
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built learner."""
        for name in ("general", "experts", "keys"):
            setattr(self, name, state[name].to(self.context.device, copy=True))
        self.head.load_state_dict(state["head"])
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]
