"""HiDe-Prompt: hierarchical decomposition (Wang et al., NeurIPS 2023; official code 0ed4333, thu-ml/HiDe-Prompt).

Three parts per session t. Task-identity inference (TII) guesses a clip's session from the pretrained network's feature;
within-task prediction (WTP) trains a prefix of attention keys and values for this session; task-adaptive prediction
(TAP) aligns the classifier over all classes on features drawn from class statistics. A test clip takes the prefix of
the session that TII infers for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError
from audiocl_bench.heads import ClassGaussians
from audiocl_bench.method import Card, Clips, Context, Method, MethodConfig, Session, State, register, setting
from audiocl_bench.peft.prompts import cosine_similarity, existing_blocks, gather_prefixes
from audiocl_bench.training import (
    Group,
    GrowingHead,
    Recipe,
    TrainingConfig,
    fit,
    fit_samples,
    linear_head,
    local_labels,
)

BASE_BATCH = 256
"""Learning rates called "base" are multiplied by batch size / 256 (official code)."""


@dataclass(frozen=True)
class HiDePromptConfig(TrainingConfig):
    """Settings of HiDe-Prompt; "official" means the official code's, for all recipes, "recipe" differs between them."""

    preset: str = setting(
        "audio",
        "ours: `self-supervised` with PACE's budget of E_0 epochs. That is the official script for iBOT, DINO and "
        "MoCo v3, which learnt without labels as EAT did; of its two data sets ImageNet-R, whose sessions are small "
        "and far from pre-training, as here",
    )
    # Prompts
    length: int = setting(20, "recipe", unit="keys, and as many values, per block", low=1)
    blocks: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4),
        "official; blocks the network lacks are left out, and where none remains its last one is taken",
        low=0,
    )
    init: float = setting(1.0, "official: prompts start from U(-1, 1)", low=0)
    mixing: float = setting(0.01, "recipe: m, share of the mean of earlier prompts (prompt_momentum)", low=0, high=1)
    gather: Literal["correct", "published"] = setting(
        "correct",
        "'published' repeats the official reshape, which mixes up keys, values and the clips of a batch: such runs "
        "leak and are marked",
    )
    # Within-task prediction
    epochs: int | None = setting(None, "none = the benchmark's E_0, as PACE; 50 in the recipe", unit="epochs", low=1)
    schedule: Literal["cosine", "constant", "step"] = setting("constant", "recipe; 'step' is 0.1 every 30 epochs")
    batch_size: int = setting(24, "official", unit="clips", low=1)
    lr: float = setting(0.03, "official base rate of the prompts", unit="x batch size / 256", low=0)
    head_rate: float = setting(0.1, "official larger_prompt_lr: the head's share of the prompts' rate", low=0)
    clip: float | None = setting(1.0, "official: largest gradient norm", low=0)
    weight_decay: float = setting(
        0.0, "official code's effective value: of its two options the first default wins", low=0
    )
    regulariser: float = setting(0.5, "recipe: weight of the contrastive regulariser", low=0)
    temperature: float = setting(0.8, "official", low=1e-3)
    normalise_cr: bool = setting(False, "official; on divides features and means by their norms, where CR saturates")
    # Class statistics
    statistics: Literal["multi-centroid", "covariance", "variance"] = setting("multi-centroid", "official")
    centroids: int = setting(10, "official; at most half of a class's clips", low=1)
    jitter: float = setting(1e-4, "official: added to every variance", low=1e-12)
    # Task-adaptive prediction
    align_epochs: int = setting(30, "official crct_epochs; 0 = no alignment", unit="epochs", low=0)
    align_lr: float = setting(0.005, "official ca_lr, which is not scaled by the batch size here", low=0)
    align_samples: int = setting(
        120, "official 5 x 24: samples per class or centroid and epoch, and per minibatch; K_t minibatches", low=1
    )
    momentum: float = setting(0.9, "official, of both alignments", low=0, high=1)
    # Task-identity inference
    tii: Literal["mlp", "means"] = setting("mlp", "official; 'means' is ours: cosine to the class means, no training")
    tii_structure: tuple[int, ...] = setting(
        (2,), "official; hidden widths / D, none = linear; 4,4 for 5-datasets", low=1
    )
    tii_epochs: int = setting(20, "official", unit="epochs", low=1)
    tii_lr: float = setting(5e-4, "official base rate", unit="x batch size / 256", low=0)
    tii_align_lr: float = setting(
        0.005, "official base rate; unlike TAP's it is scaled", unit="x batch size / 256", low=0
    )
    tii_align_samples: int = setting(24, "official: the batch size, used as in TAP", low=1)

    # Official training scripts (training_scripts/train_{cifar100,imr}_{vit,ibot,dino,mocov3}.sh).
    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "audio": {},
        "cifar100": {"length": 5, "mixing": 0.01, "epochs": 50, "schedule": "step", "regulariser": 0.1},
        "imagenet-r": {"length": 20, "mixing": 0.01, "epochs": 150, "schedule": "cosine", "regulariser": 0.5},
        "self-supervised": {"length": 20, "mixing": 0.01, "epochs": 50, "schedule": "constant", "regulariser": 0.5},
        "self-supervised-cifar100": {
            "length": 5,
            "mixing": 0.1,
            "epochs": 20,
            "schedule": "step",
            "regulariser": 0.1,
        },
    }


class ResidualMLP(nn.Module):
    """TII's features: LN(z + W_2 GELU(W_1 z)), D -> D.

    With several hidden widths the middle layer is followed by a LayerNorm instead of the GELU; with none nothing
    is done (official MlpMapping).

    Args:
        dim: D.
        structure: hidden widths as multiples of D.
        generator: of the initial weights.
        device: where the weights lie.
    """

    def __init__(self, dim: int, structure: tuple[int, ...], generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        widths = [dim, *(ratio * dim for ratio in structure), dim]
        layers: list[nn.Module] = []
        for number, (wide, narrow) in enumerate(pairwise(widths) if structure else ()):
            layers.append(linear_head(wide, narrow, generator, device))
            if number < len(structure):
                middle = number > 0 and number == len(structure) // 2
                layers.append(nn.LayerNorm(narrow, device=device) if middle else nn.GELU())
        self.net = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim, device=device) if structure else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        """Map [B, D] to [B, D]."""
        return self.norm(z + self.net(z)) if len(self.net) else z


def contrastive(anchors: Tensor, features: Tensor, temperature: float, *, normalise: bool = False) -> Tensor:
    """Return CR: every row of Z = [anchors; features] has to be most similar to itself.

    CR = mean_i -log softmax(Z Z^T / temperature)_ii >= 0.

    Args:
        anchors: means of earlier classes, or their centroids [K, D]; constants.
        features: features of the batch [B, D].
        temperature: 0.8 in the official code.
        normalise: compare directions only. Without it CR is about 0 where |h|^2 is large and about equal for all.
    """
    Z = torch.cat([anchors.detach(), features])
    Z = F.normalize(Z, dim=-1) if normalise else Z
    return F.cross_entropy(Z @ Z.T / temperature, torch.arange(len(Z), device=Z.device))


@register("hide-prompt")
class HiDePrompt(Method):
    """A prefix for every session, a guess of the session per clip, and a classifier aligned on drawn features."""

    Config: ClassVar[type[MethodConfig]] = HiDePromptConfig
    card = Card(
        paper="Wang et al., HiDe-Prompt (NeurIPS 2023); official code thu-ml/HiDe-Prompt 0ed4333.",
        trains="per session: a small MLP and head that infer the session, a prefix, and a head aligned on features "
        "drawn from class statistics",
        keeps="prefixes, both heads, the MLP, statistics of every class (means and variances of up to 10 centroids)",
        deviations=(
            "Prefixes are gathered correctly; the official reshape mixes the clips of a batch (`gather=published` does "
            "that, and the run is marked).",
            "The three parts follow each other within a session; the official code trains the inference for the whole "
            "stream first and loads its checkpoints.",
            "A class has at most half as many centroids as clips: k-means with 10 needs more clips than ESC-50 has.",
            "Only classes seen so far are scored.",
        ),
    )
    config: HiDePromptConfig

    def __init__(self, config: HiDePromptConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        if not config.blocks:
            raise ConfigError("setting 'blocks' is empty, but a prefix needs at least one block, for example 0,1,2.")
        self.blocks = existing_blocks(config.blocks, backbone)
        self.leaks_across_batch = config.gather == "published"
        dim, device = backbone.dim, context.device
        shape = (len(self.blocks), 2, 0, config.length, backbone.num_heads, dim // backbone.num_heads)
        self.pool = torch.zeros(shape, device=device)  # [n, 2, t + 1, P, H, D/H]: one prompt per session
        self.head = GrowingHead(dim, device)
        self.statistics = self._gaussians()  # of features under their own session's prompt
        self.session_of: list[int] = []  # class -> session
        self.mlp = ResidualMLP(dim, config.tii_structure, context.generator("tii"), device).requires_grad_(False)
        self.tii_head = GrowingHead(dim, device)
        self.tii_statistics = self._gaussians()  # of f_0, before the MLP

    def _gaussians(self) -> ClassGaussians:
        config = self.config
        return ClassGaussians(
            self.backbone.dim, kind=config.statistics, centroids=config.centroids, jitter=config.jitter
        )

    def learn(self, session: Session) -> None:
        """Learn a session: TII, WTP, TAP."""
        t = self.pool.shape[2]
        self.num_seen = session.num_seen
        self.session_of += [t] * (session.num_seen - session.num_known)
        self._learn_inference(session)
        self._learn_prompt(session)
        self._learn_classifier(session)
        self.context.report.note("prompted_blocks", list(self.blocks))
        self.encoder_version += 1

    # ---- (a) Task-identity inference --------------------------------------------------------------------------------

    def _learn_inference(self, session: Session) -> None:
        """Train MLP and new rows on f_0 (softmax over C_t), add f_0's statistics, align all on samples."""
        config, context, t = self.config, self.context, session.index
        queries, labels = self.session_queries(session), session.labels
        if config.tii == "mlp":
            rows = linear_head(
                self.backbone.dim, len(session.classes), context.generator("tii head", t), context.device
            )
            own = local_labels(labels, session.classes).to(queries.device)
            order = context.generator("tii order", t)

            def draw(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
                del epoch
                for part in torch.randperm(len(own), generator=order).split(config.batch_size):
                    places = part.to(queries.device)
                    yield queries[places], own[places]

            self.mlp.requires_grad_(True)
            history = fit_samples(
                draw,
                [Group((*self.mlp.parameters(), *rows.parameters()), self._scaled(config.tii_lr))],
                lambda z, y: F.cross_entropy(rows(self.mlp(z)), y),
                Recipe(config.tii_epochs, config.batch_size, "adam", schedule="constant", clip=config.clip),
                context,
                stage="tii",
                session=t,
            )
            context.report.note("tii_loss", history[-1])
            self.mlp.requires_grad_(False)
            self.tii_head.append(rows)
        self.tii_statistics.update(queries, labels, seed=context.seed)
        if config.tii == "mlp":
            self._align("tii align", session, self.tii_head, self.tii_statistics, self.mlp)
        guessed = self.infer_sessions(queries).flatten()
        context.report.note("tii_accuracy", float((guessed == self.pool.shape[2]).double().mean()))

    @torch.no_grad()
    def infer_sessions(self, queries: Tensor) -> Tensor:
        """Return the session [B, 1] of the class that TII predicts from f_0(x) [B, D]."""
        if self.config.tii == "mlp":
            scores = self.tii_head(self.mlp(queries))
        else:
            scores = cosine_similarity(queries, self.tii_statistics.means.to(queries))
        return torch.tensor(self.session_of, device=queries.device)[scores.argmax(1)][:, None]

    # ---- (b) Within-task prediction ---------------------------------------------------------------------------------

    def _learn_prompt(self, session: Session) -> None:
        """Train slot t and the rows of C_t on this session: CE over C_t + reg CR."""
        config, context, t = self.config, self.context, session.index
        slot = self._new_slot(t)
        rows = linear_head(self.backbone.dim, len(session.classes), context.generator("head", t), context.device)
        anchors = self.statistics.centres.to(context.device, torch.float32)
        batches = -(-session.num_clips // config.batch_size)
        seen_cr: deque[float] = deque(maxlen=batches)  # the last epoch's

        def loss(clips: Clips, y: Tensor) -> Tensor:
            prompt = self._mixed(slot)[:, :, None]
            h = self.prompted(clips.mel, torch.zeros(len(clips), 1, dtype=torch.int64, device=y.device), prompt)
            cross_entropy = F.cross_entropy(rows(h), local_labels(y, session.classes))
            if config.regulariser == 0:
                return cross_entropy
            cr = contrastive(anchors, h, config.temperature, normalise=config.normalise_cr)
            seen_cr.append(float(cr.detach()))
            return cross_entropy + config.regulariser * cr

        rate = self._scaled(config.lr)
        recipe = Recipe(
            config.epochs or context.stream.first_session_epochs,
            config.batch_size,
            "adam",
            weight_decay=config.weight_decay,
            schedule=config.schedule,
            clip=config.clip,
        )
        groups = [Group((slot,), rate), Group(tuple(rows.parameters()), rate * config.head_rate)]
        history = fit(session, groups, loss, recipe, context, stage="prompt")
        context.report.note("train_loss", history[-1])
        if seen_cr:
            context.report.note("contrastive", sum(seen_cr) / len(seen_cr))
        self.head.append(rows)
        with torch.no_grad():  # p_t <- (1 - m) p_t + m mean(p_0..p_{t-1}); earlier slots stay as they are
            self.pool = torch.cat([self.pool, self._mixed(slot)[:, :, None]], dim=2)

    def _new_slot(self, t: int) -> nn.Parameter:
        """Return p_t [n, 2, P, H, D/H]: a copy of p_{t-1}, the first one from U(-1, 1)."""
        if self.pool.shape[2]:
            return nn.Parameter(self.pool[:, :, -1].clone())
        shape = (*self.pool.shape[:2], *self.pool.shape[3:])
        drawn = torch.rand(shape, generator=self.context.generator("prompt", t))
        return nn.Parameter(((2 * drawn - 1) * self.config.init).to(self.context.device))

    def _mixed(self, slot: Tensor) -> Tensor:
        """Return the prompt in effect: (1 - m) p_t + m mean(p_0..p_{t-1}), the mean held constant; p_0 as it is."""
        m = self.config.mixing
        return (1 - m) * slot + m * self.pool.mean(2) if self.pool.shape[2] and m > 0 else slot

    def prompted(self, mel: Tensor, sessions: Tensor, pool: Tensor | None = None) -> Tensor:
        """Return features [B, D] of log-mels [B, T, M], each clip under its session's prompt.

        Args:
            mel: normalised log-mels.
            sessions: numbers of prompts [B, 1].
            pool: prompts [n, 2, M, P, H, D/H]; None takes the stored ones.
        """
        prefix = gather_prefixes(
            self.pool if pool is None else pool,
            sessions,
            self.blocks,
            published_reshape=self.config.gather == "published",
        )
        return self.backbone.pooled(self.backbone.run(self.backbone.tokens(mel), prefix=prefix))

    # ---- (c) Task-adaptive prediction -------------------------------------------------------------------------------

    def _learn_classifier(self, session: Session) -> None:
        """Add the statistics of C_t under prompt t, then align the head over S_t on samples of all classes."""
        own = self.pool.shape[2] - 1
        with torch.no_grad():
            features = torch.cat(
                [
                    self.prompted(clips.mel, torch.full((len(clips), 1), own, device=y.device))
                    for clips, y in session.batches(self.config.batch_size)
                ]
            )
        self.statistics.update(features, session.labels, seed=self.context.seed)
        self._align("align", session, self.head, self.statistics)
        right = self.classify(features).argmax(1).cpu() == session.labels
        self.context.report.note("train_accuracy", float(right.double().mean()))  # with the right prompt

    def _align(
        self,
        stage: str,
        session: Session,
        head: GrowingHead,
        statistics: ClassGaussians,
        mlp: ResidualMLP | None = None,
    ) -> None:
        """Train a head (and TII's MLP) over S_t on features drawn from N(mu_c, Sigma_c); from the second session on.

        Every epoch draws equally many samples of all seen classes, shuffles them, and uses the first K_t minibatches
        (official: as many as there are old classes; the rest of the draw is unused, so it is not drawn here).
        """
        config, context, t = self.config, self.context, session.index
        if session.num_known == 0 or config.align_epochs == 0:
            return
        tii = mlp is not None
        size = config.tii_align_samples if tii else config.align_samples
        rate = self._scaled(config.tii_align_lr) if tii else config.align_lr
        generator = context.generator(stage, t)
        per_class = size * (config.centroids if config.statistics == "multi-centroid" else 1)
        everything = torch.arange(session.num_seen).repeat_interleave(per_class)

        def draw(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            del epoch
            order = torch.randperm(len(everything), generator=generator)
            for part in order.split(size)[: session.num_known]:
                y = everything[part]
                yield statistics.sample(y, generator).to(context.device), y.to(context.device)

        def loss(z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(head(z if mlp is None else mlp(z)), y)

        trained = (head.weight, head.bias, *(mlp.parameters() if mlp is not None else ()))
        for parameter in trained:
            parameter.requires_grad_(True)
        recipe = Recipe(config.align_epochs, size, "sgd", config.momentum, schedule="cosine")
        history = fit_samples(draw, [Group(trained, rate)], loss, recipe, context, stage=stage, session=t)
        for parameter in trained:
            parameter.requires_grad_(False)
            parameter.grad = None
        context.report.note(f"{stage.replace(' ', '_')}_loss", history[-1])

    def _scaled(self, base: float) -> float:
        return base * self.config.batch_size / BASE_BATCH

    # ---- Prediction and state ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return features [B, D] under the prompt of the session that TII infers from f_0(x)."""
        return self.prompted(batch.mel, self.infer_sessions(self.queries(batch)))

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the aligned head's logits [B, S_t]."""
        return self.head(features)

    def state_dict(self) -> State:
        """Return prompts, head, TII's MLP and head, and the class statistics of both."""
        trained = {name: value.detach().clone() for name, value in self.mlp.state_dict().items()}
        return {
            "pool": self.pool.clone(),
            "head": self.head.state_dict(),
            "statistics": self.statistics.state_dict(),
            "mlp": trained if self.config.tii == "mlp" else {},
            "tii_head": self.tii_head.state_dict(),
            "tii_statistics": self.tii_statistics.state_dict(),
            "session_of": list(self.session_of),
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built HiDe-Prompt."""
        self.pool = state["pool"].to(self.context.device, copy=True)
        self.head.load_state_dict(state["head"])
        self.statistics.load_state_dict(state["statistics"])
        if state["mlp"]:
            self.mlp.load_state_dict(state["mlp"])
        self.tii_head.load_state_dict(state["tii_head"])
        self.tii_statistics.load_state_dict(state["tii_statistics"])
        self.session_of = list(state["session_of"])
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]
