"""FSA: adapt on the first session, then discriminant analysis (Panos et al., ICCV 2023; official code e151d89).

All weights, or only the scales and shifts of the normalisations (FSA-FiLM), are fine-tuned on the first session and
then kept. From there on every class c is its mean mu_c, and all share one covariance of the features z = f(x):

    (1)  S = cov + I
    (2)  w_c = S^-1 mu_c,    b_c = -1/2 mu_c^T S^-1 mu_c
    (3)  s_c(x) = z^T w_c + b_c

Sums of z, of z z^T and counts give S and mu_c exactly, so sessions add up to the analysis of all clips at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.heads import LDAHead
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
from audiocl_bench.training import Group, Recipe, TrainingConfig, fit, linear_head, local_labels


@dataclass(frozen=True)
class FSAConfig(TrainingConfig, ReadoutConfig):
    """Settings of first-session adaptation. The official ones are for an EfficientNet; ours for a transformer."""

    preset: str = setting(
        "transformer",
        "ours: rate, epochs and batches for a transformer, covariance within classes; 'official' has the released "
        "code's numbers, 'film' is FSA-FiLM, 'no-fsa' the frozen network",
    )
    fsa: bool = setting(True, "paper; off is its row without adaptation")
    trains: Literal["all", "film"] = setting(
        "all", "paper: every weight; 'film' trains scales and shifts of the normalisations, the paper's FSA-FiLM"
    )
    epochs: int = setting(20, "ours: as RanPAC; official 200", unit="epochs", low=1)
    lr: float = setting(
        1e-5,
        "ours: better than 1e-4 on training clips of three streams (docs/findings.md, section 11); official 0.005, "
        "also for 'film'",
        low=0,
    )
    batch_size: int = setting(48, "ours: as RanPAC, first sessions being small; official 256", unit="clips", low=1)
    decay: float = setting(0.7, "official: the rate's factor after each quarter of the epochs", low=0, high=1)
    dropout: float = setting(0.5, "official: share of features hidden from the temporary head", low=0, high=0.99)
    cov: Literal["within", "total"] = setting(
        "within", "classical: around each class's mean; the released code's is 'total', around the mean of all clips"
    )
    shrink: float = setting(
        1.0, "official: added to the covariance's diagonal; it does not scale with features", low=1e-6
    )

    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "transformer": {},
        "official": {"epochs": 200, "lr": 0.005, "batch_size": 256, "cov": "total"},
        "film": {"trains": "film", "lr": 0.005},
        "no-fsa": {"fsa": False},
    }


@register("fsa")
class FSA(ClosedFormMethod):
    """Fine-tune all weights on the first session, then linear discriminant analysis."""

    Config = FSAConfig
    card = Card(
        paper="Panos, Kobe, Olmeda Reino, Aljundi, Turner, First Session Adaptation (ICCV 2023); official code "
        "aresPanos/fsa e151d89.",
        trains="all weights (with `film` scales and shifts of the normalisations) and a temporary linear head, in the "
        "first session only; with `no-fsa` nothing",
        keeps="the weights it trained; sum and count of each class's features and the sum of all z z^T (packed, "
        "float64)",
        deviations=(
            "The covariance is the pooled within-class one of discriminant analysis; the released code takes that of "
            "all features, differences between classes included (`cov=total`).",
            "The statistics are summed session by session, in float64; the released code computes them from all stored "
            "clips, with the same result.",
            "FiLM's scales and shifts are those of the network's layer normalisations: a transformer has no batch "
            "normalisation.",
        ),
    )
    config: FSAConfig

    def __init__(self, config: FSAConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        self.readout = Readout.of(backbone, config.layers, config.pool)
        self.head = self._head()

    def _head(self) -> LDAHead:
        return LDAHead(self.readout.width, cov=self.config.cov, shrink=self.config.shrink)

    def _body(self) -> dict[str, nn.Parameter]:
        """Return what the first session changes, by name."""
        if not self.config.fsa:
            return {}
        named = dict(self.backbone.named_parameters())
        if self.config.trains == "all":
            return named
        norms = {name for name, module in self.backbone.named_modules() if isinstance(module, nn.LayerNorm)}
        return {name: parameter for name, parameter in named.items() if name.rpartition(".")[0] in norms}

    def adapt(self, session: Session) -> None:
        """Fine-tune with cross-entropy over the first session's classes, through dropout; then drop that head."""
        if session.index > 0 or not self.config.fsa:
            return
        config, context = self.config, self.context
        body = tuple(self._body().values())
        head = linear_head(self.backbone.dim, len(session.classes), context.generator("head"), context.device)
        hidden = context.generator("dropout")

        def loss(clips: Clips, y: Tensor) -> Tensor:
            z = self.backbone.features(clips.mel)
            shown = torch.rand(z.shape, generator=hidden) >= config.dropout
            z = z * shown.to(z) / (1 - config.dropout)
            return F.cross_entropy(head(z), local_labels(y, session.classes))

        for parameter in body:
            parameter.requires_grad_(True)
        recipe = Recipe(
            config.epochs,
            config.batch_size,
            "adam",
            schedule="step",
            step_factor=config.decay,
            step_every=-(-config.epochs // 4),
        )
        history = fit(session, [Group((*body, *head.parameters()), config.lr)], loss, recipe, context, stage="adapt")
        context.report.note("adapt_loss", history[-1])
        self.backbone.requires_grad_(False)
        self.encoder_version += 1

    @torch.no_grad()
    def accumulate(self, session: Session) -> None:
        """Add the session to sum z, sum z z^T and counts, from which Eq. 1 and 2 follow."""
        features, labels = self.session_features(session)
        self.head.update(features, labels, self.num_seen)

    def reset_statistics(self) -> None:
        """Forget all sums."""
        self.head = self._head()

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return z = f(x) [B, D]."""
        return self.read(batch)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the scores of Eq. 3, [B, S_t]."""
        return self.head.logits(features)

    def state_dict(self) -> State:
        """Return the weights that were trained, and the sums."""
        return {
            "body": {name: parameter.detach().clone() for name, parameter in self._body().items()},
            "head": self.head.state_dict(),
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    @torch.no_grad()
    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built FSA."""
        for name, parameter in self._body().items():
            parameter.copy_(state["body"][name])
        self.head.load_state_dict(state["head"])
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]
