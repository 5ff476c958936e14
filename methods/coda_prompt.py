"""CODA-Prompt: prompts made of weighted components (Smith et al., CVPR 2023; official code 6417d4f).

Every prompted block has its own components p_m, keys k_m and attention vectors a_m. A session trains the rows it owns;
rows of earlier sessions take part, but stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Card, Clips, Context, Method, MethodConfig, Session, State, register, setting
from audiocl_bench.peft.prompts import existing_blocks, split_heads
from audiocl_bench.seeding import numpy_generator
from audiocl_bench.training import Group, GrowingHead, Recipe, TrainingConfig, fit, linear_head, local_labels

POOL = 100
"""M of the official configs."""


@dataclass(frozen=True)
class CODAPromptConfig(TrainingConfig):
    """Settings of CODA-Prompt; official defaults unless said otherwise."""

    preset: str = setting(
        "audio",
        "ours: the official recipe with PACE's budget, E_0 epochs in batches of 24. Batches of 128 leave a session of "
        "16 to 240 clips one or two steps an epoch (docs/findings.md, section 9)",
    )
    components: int | None = setting(
        None,
        "none = official M = 100, or one a session where a stream has more of them: with M below the number of "
        "sessions a session would own floor(M / T) = 0 components and learn no prompt",
        low=1,
    )
    length: int = setting(8, "official: rows of a prompt, half of them keys, half values", low=2)
    blocks: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4),
        "official; blocks the network lacks are left out, and where none remains its last one is taken",
        low=0,
    )
    ortho: float = setting(0.0, "official release: mu = 0 (orthogonal start instead); the paper used more", low=0)
    init: Literal["gram-schmidt", "qr"] = setting(
        "gram-schmidt",
        "official: minus the projections on all earlier rows, which leaves new rows only nearly orthogonal to trained "
        "ones; 'qr' makes them exactly so",
    )
    epochs: int | None = setting(None, "none = the benchmark's E_0, as PACE; officially 20 for cifar100", low=1)
    lr: float = setting(1e-2, "ours, on training clips (docs/findings.md, section 10); officially 1e-3", low=0)
    batch_size: int = setting(
        24,
        "as PACE; officially 128, dropping a last smaller batch, which is kept here: a TIMIT session has 16 clips",
        unit="clips",
        low=1,
    )

    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "audio": {},
        "cifar100": {"epochs": 20, "lr": 1e-3, "batch_size": 128},
        "imagenet-r": {"epochs": 50, "lr": 1e-3, "batch_size": 128},
    }


class Components(NamedTuple):
    """Rows of all prompted blocks: p [n, m, L, D], keys k [n, m, D], attention vectors a [n, m, D]."""

    p: Tensor
    k: Tensor
    a: Tensor


@register("coda-prompt")
class CODAPrompt(Method):
    """Mix each clip's prefixes from components, weighted by its pretrained features; train the newest rows and head."""

    Config: ClassVar[type[MethodConfig]] = CODAPromptConfig
    card = Card(
        paper="Smith et al., CODA-Prompt (CVPR 2023); official code GT-RIPL/CODA-Prompt 6417d4f.",
        trains="the session's own components, keys and attention vectors, and the new rows of a linear head, in every "
        "session",
        keeps="components, keys and attention vectors of all sessions so far, and the head",
        deviations=(
            "There are as many components as sessions where a stream has more than 100 sessions: floor(M / T) of the "
            "official M = 100 would give TIMIT's 315 sessions none.",
            "A last, smaller batch is used; dropping it, as the official code does, drops sessions of 16 clips.",
            "The official schedule divides by zero where a session is trained for one epoch; that epoch runs at the "
            "full rate.",
        ),
    )
    config: CODAPromptConfig

    def __init__(self, config: CODAPromptConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        if config.length % 2:
            raise ConfigError(
                f"setting 'length' is {config.length}, but a prompt is half keys, half values: it must be even."
            )
        if not config.blocks:
            raise ConfigError("setting 'blocks' is empty, but a prompt needs at least one block, for example 0,1,2.")
        self.blocks = existing_blocks(config.blocks, backbone)
        self.owned = owned_components(config.components, context.stream.num_sessions)
        n, D = len(self.blocks), backbone.dim
        self.components = Components(
            *(torch.zeros(n, 0, *shape, device=context.device) for shape in ((config.length, D), (D,), (D,)))
        )
        self.head = GrowingHead(D, context.device)

    def learn(self, session: Session) -> None:
        """Draw the session's own rows, train them and the new classes' head rows with CE over those classes alone."""
        config, context, classes = self.config, self.context, session.classes
        queries = self.session_queries(session)  # f_0(x), once per clip
        trained = tuple(nn.Parameter(rows) for rows in self._new_rows(session.index))
        own = Components(*trained)
        head = linear_head(self.backbone.dim, len(classes), context.generator("head", session.index), context.device)

        def loss(clips: Clips, y: Tensor) -> Tensor:
            assert clips.index is not None
            components = _joined(self.components, own)  # earlier rows carry no gradient
            logits = head(self._features(clips.mel, queries[clips.index.to(queries.device)], components))
            value = F.cross_entropy(logits, local_labels(y, classes))  # LOCAL: new head rows only
            return value + config.ortho * _ortho(components) if config.ortho else value

        epochs = config.epochs or context.stream.first_session_epochs
        recipe = Recipe(epochs, config.batch_size, "adam", schedule="coda")
        groups = [Group((*trained, *head.parameters()), config.lr)]
        history = fit(session, groups, loss, recipe, context, stage="train")
        self.components = Components(*(rows.detach() for rows in _joined(self.components, own)))
        self.head.append(head)
        self.num_seen = session.num_seen
        self.encoder_version += 1
        context.report.note("train_loss", history[-1])
        context.report.note("train_accuracy", self._accuracy(session, queries))

    def _new_rows(self, t: int) -> Components:
        """Draw the rows that session t owns, by block: Gaussian, orthogonal to earlier rows, of length one."""
        draws = numpy_generator(self.context.seed, "components", t)
        drawn = []
        for part in self.components:
            blocks = [
                orthogonal_rows(earlier.flatten(1).cpu().numpy(), self.owned, draws, exact=self.config.init == "qr")
                for earlier in part
            ]
            rows = torch.from_numpy(np.stack(blocks)).to(part)
            drawn.append(rows.view(len(blocks), self.owned, *part.shape[2:]))
        return Components(*drawn)

    def _features(self, mel: Tensor, q: Tensor, components: Components) -> Tensor:
        """Pooled features [B, D] of clips whose prefixes are mixed for their queries q [B, D]."""
        half = self.config.length // 2
        prefix = {}
        for block, p, k, a in zip(self.blocks, *components, strict=True):
            prompt = torch.einsum("bm,mld->bld", component_weights(q, k, a), p)  # sum_m weight_bm p_m
            heads = split_heads(prompt, self.backbone.num_heads).transpose(1, 2)
            prefix[block] = (heads[:, :, :half], heads[:, :, half:])  # keys, values
        return self.backbone.pooled(self.backbone.run(self.backbone.tokens(mel), prefix=prefix))

    @torch.no_grad()
    def _accuracy(self, session: Session, queries: Tensor) -> float:
        right = 0
        for clips, y in session.batches(64):
            assert clips.index is not None
            features = self.encode(Clips(clips.mel, query=queries[clips.index.to(queries.device)]))
            right += int((self.classify(features).argmax(1) == y).sum())
        return right / session.num_clips

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return pooled features [B, D], each clip with the prefixes its own query asks for."""
        return self._features(batch.mel, self.queries(batch), self.components)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the linear head's logits [B, S_t]."""
        return self.head(features)

    def state_dict(self) -> State:
        """Return the rows that sessions so far own, and the head."""
        return {
            "components": {name: rows.clone() for name, rows in self.components._asdict().items()},
            "head": self.head.state_dict(),
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built CODA-Prompt."""
        device = self.context.device
        self.components = Components(**{name: rows.to(device, copy=True) for name, rows in state["components"].items()})
        self.head.load_state_dict(state["head"])
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]


def owned_components(components: int | None, sessions: int) -> int:
    """Return floor(M / T), the components that each of T sessions owns; None takes M = max(100, T).

    Raises:
        ConfigError: M is smaller than T.
    """
    pool = max(POOL, sessions) if components is None else components
    if pool < sessions:
        raise ConfigError(
            f"setting 'components' is {pool}, but the stream has {sessions} sessions and each has to own one at least: "
            f"set components to {sessions} or more, or to none."
        )
    return pool // sessions


def component_weights(q: Tensor, k: Tensor, a: Tensor) -> Tensor:
    """Return cos(q_b * a_m, k_m) [B, m] for queries q [B, D], keys k [m, D] and attention vectors a [m, D].

    <q * a, k> = q (a * k)^T and |q * a|^2 = q^2 (a^2)^T, so that no [B, m, D] tensor is needed. Norms are at least
    1e-12 (official).
    """
    norms = (q.square() @ a.square().T).clamp_min(1e-24).sqrt()
    return q @ (a * F.normalize(k, dim=1)).T / norms


def orthogonal_rows(earlier: np.ndarray, count: int, draws: np.random.Generator, *, exact: bool = False) -> np.ndarray:
    """Draw Gaussian rows, take off their projections on all rows before them, and scale them to length one.

    Args:
        earlier: rows [n, D] that are there already.
        count: rows to draw.
        draws: the generator.
        exact: project on an orthonormal basis of `earlier`; else on its rows one by one (classical Gram-Schmidt, as in
            the official code), which is the same where they are orthogonal.

    Returns:
        rows [count, D], float64. A row with D or more rows before it is a random direction.
    """
    width = earlier.shape[1]
    basis = earlier.astype(np.float64)
    if exact and len(basis):
        basis = np.linalg.qr(basis.T)[0].T
    basis /= np.maximum(np.linalg.norm(basis, axis=1, keepdims=True), 1e-12)
    rows = np.empty((count, width))
    for number in range(count):
        drawn = draws.standard_normal((width,))
        before = np.concatenate([basis, rows[:number]])
        # With D rows before it no direction is free: the sum of projections would only repeat one of them.
        row = drawn - before.T @ (before @ drawn) if len(before) < width else drawn
        rows[number] = row / np.linalg.norm(row)
    return rows


def _joined(earlier: Components, own: Components) -> Components:
    return Components(*(torch.cat(pair, dim=1) for pair in zip(earlier, own, strict=True)))


def _ortho(components: Components) -> Tensor:
    """Sum over blocks of ortho(k) + ortho(a) + ortho(p flattened), ortho(Z) = mean((Z Z^T - I)^2)."""
    total = components.k.new_zeros(())
    for part in components:
        Z = part.flatten(2)
        gap = Z @ Z.transpose(1, 2) - torch.eye(Z.shape[1], device=Z.device)
        total = total + gap.square().mean((1, 2)).sum()
    return total
