"""PACE: pretrained audio continual learning (Li, Zhou, Wang; ICLR 2026, arXiv 2602.03355).

Improved first-session adaptation, multi-session adaptation inside a drift-resistant subspace, boundary-aware
regularisation, and an analytic classifier. Stage 1 is session 1, stage 2 sessions 2..T_3, stage 3 the rest (frozen).
The paper counts sessions from 1, the code from 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.audio import mask_time_frequency
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError
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
from audiocl_bench.peft.subspace import attention_covariances, leading_subspace, projector
from audiocl_bench.prefix import FrozenPrefix
from audiocl_bench.readout import Readout
from audiocl_bench.similarity import linear_cka
from audiocl_bench.training import Group, Recipe, TrainingConfig, fit, linear_head, local_labels

# All blocks are tuned in the first session only, by cross-entropy alone: what Table 3 starts from.
_FIRST_SESSION_ONLY = {"msa": False, "freeze_blocks": 0, "regulariser": "none"}


@dataclass(frozen=True)
class PACEConfig(TrainingConfig, ReadoutConfig):
    """Settings of PACE. "stated" means the paper states it; the rest are choices, with their reason."""

    preset: str = setting("paper", "the method as the paper has it; the others are rows of its Tables 1, 3 and 4")
    # First-session adaptation (Sec. 3.2, Algorithm 1)
    fsa: bool = setting(True, "stated; off is the row 'no FSA' (no adaptation at all) of Tables 3 and 4")
    epochs: int | None = setting(None, "stated: E_0 of the benchmark", unit="epochs; none = E_0", low=1)
    epochs_factor: int = setting(1, "stated; 2 is the row 'extended FSA' of Table 1 (Fig. 3: 20 epochs for 10)", low=1)
    head_epochs: int = setting(1, "stated: E_head", unit="epochs", low=0)
    lr_backbone: float = setting(0.05, "stated: eta_bb", low=0)
    lr_head: float = setting(0.01, "stated: eta_head", low=0)
    head: Literal["frozen", "low-lr", "naive"] = setting(
        "frozen", "stated: warmed up, then frozen; 'low-lr' and 'naive' (head at eta_bb) are rows of Table 3"
    )
    rho_layer: float = setting(0.94, "stated; blocks before the first one with CKA under it stay frozen", low=0, high=1)
    freeze_blocks: int | None = setting(None, "none = layer probe; a number skips the probe (Fig. 6)", low=0)
    batch_size: int = setting(24, "stated", unit="clips", low=1)
    rank: int = setting(8, "not stated: HiDe-LoRA of the same group uses 8 on K and V", low=1)
    lora_scale: float = setting(1.0, "not stated: LoRA-DRS adds B A plainly", low=0)
    targets: tuple[str, ...] = setting(("k_proj", "v_proj"), "not stated: HiDe-LoRA and LoRA-DRS adapt K and V")
    optimiser: Literal["sgd", "adam"] = setting("sgd", "not stated: RanPAC's recipe, whose lr names PACE shares")
    momentum: float = setting(0.9, "not stated: RanPAC", low=0, high=1)
    weight_decay: float = setting(5e-4, "not stated: RanPAC", low=0)
    clip: float | None = setting(
        1.0,
        "not stated: largest gradient norm, as in the prompt methods' code; without it eta_bb = 0.05 can diverge",
        low=0,
    )
    # Multi-session adaptation (Sec. 3.3, Eq. 4-5)
    msa: bool = setting(True, "stated; off is the row 'no MSA' of Table 4")
    n_stop: int = setting(220, "stated: adaptation stops once more training clips than this were adapted on", low=0)
    adapted_sessions: int | None = setting(None, "none = by n_stop; a number fixes T_3 (Fig. 7)", low=0)
    lr_session: float | None = setting(None, "not stated: learning rate of stage 2; none = lr_backbone", low=0)
    session_epochs: int | None = setting(None, "not stated: epochs of stage 2; none = those of stage 1", low=1)
    projection: Literal["onto", "complement", "none"] = setting(
        "onto", "Eq. 5 and LoRA-DRS's code: inside the leading subspace; 'none' is the row 'no GP' of Table 4"
    )
    projection_norm: Literal["none", "fro"] = setting(
        "fro", "not stated: LoRA-DRS divides by the Frobenius norm; without it stored statistics go stale (findings)"
    )
    rho_svd: float = setting(0.99, "stated: share of the spectrum that the subspace keeps", low=0, high=1)
    # Boundary-aware regularisation (Eq. 6-8)
    regulariser: Literal["both", "later", "none"] = setting(
        "both", "Fig. 4 draws it into stages 1 and 2; 'none' is the row 'no L_reg' of Table 4"
    )
    regulariser_weight: float = setting(1.0, "not stated", low=0)
    copies: int = setting(20, "stated: N_p masked copies per clip", low=1)
    copies_per_step: int = setting(1, "not stated: masked copies that stand for S_i in one step", low=1)
    temporary: Literal["head", "class-means"] = setting(
        "head",
        "not stated: what classifies masked copies on the previous backbone, the warmed-up head or the class means",
    )
    rho_boundary: float = setting(0.3, "stated: rho_p, error rate over the copies that marks a clip", low=0, high=1)
    margin: float = setting(0.25, "stated: delta", low=0)
    time_mask: float = setting(0.2, "not stated: r_T, share of the frames", low=0, high=1)
    freq_mask: float = setting(0.2, "not stated: r_F, share of the mel bins", low=0, high=1)
    boundary_clips: int = setting(512, "ours: most clips of a session that are perturbed", unit="clips", low=1)
    # Analytic classifier (Eq. 2-3)
    width: int = setting(8192, "stated: D_proj; 0 classifies raw features", unit="random features", low=0)
    scaling: Literal["ranpac", "acil"] = setting("ranpac", "not stated: RanPAC's N(0, 1); only gamma's scale differs")
    gamma: float | None = setting(None, "not stated; none = chosen by gamma_rule", low=1e-8)
    gamma_rule: Literal["accumulated", "first"] = setting(
        "accumulated",
        "not stated: generalised cross-validation on all statistics so far; RanPAC's search on session 1, then fixed "
        "('first'), takes 1e-8 where two classes are easily told apart and fails later (docs/findings.md)",
    )

    # Coarse-grained ESC-50: the paper's result equals first-session adaptation alone although n_stop would adapt twice.
    # The miniatures have 16 to 38 clips a session: N_stop in miniature, so that their first one or two sessions adapt
    # and the others meet a frozen network, as on the real streams.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "esc50": {"adapted_sessions": 1},
        "mini-esc50": {"adapted_sessions": 1},
        "mini-us8k": {"n_stop": 30},
        "mini-sc2": {"n_stop": 30},
        "mini-timit2": {"n_stop": 30},
        "mini-timit3": {"n_stop": 40},
        "mini-vocalset": {"n_stop": 40},
    }
    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "no-fsa": {"fsa": False},
        "naive-fsa": {**_FIRST_SESSION_ONLY, "head": "naive"},
        "extended-fsa": {**_FIRST_SESSION_ONLY, "head": "naive", "epochs_factor": 2},
        "low-head-lr": {**_FIRST_SESSION_ONLY, "head": "low-lr"},
        "learn-and-freeze": {**_FIRST_SESSION_ONLY, "head": "frozen"},
        "no-msa": {"msa": False},
        "no-regulariser": {"regulariser": "none"},
        "no-projection": {"projection": "none"},
    }


@register("pace")
class PACE(ClosedFormMethod):
    """Adapt early sessions with LoRA, keep later blocks' drift small, classify in closed form."""

    Config = PACEConfig
    card = Card(
        paper="Li, Zhou and Wang, PACE (ICLR 2026, arXiv 2602.03355); no public code.",
        trains="LoRA of the first session (blocks chosen by a layer probe, head warmed up and frozen), then one LoRA "
        "per session until more than 220 clips were adapted on; each session's temporary head is dropped",
        keeps="LoRA pairs; second-order statistics of random features (square root or packed triangle, float64)",
        deviations=(
            "What the paper leaves open (LoRA rank, optimiser, ridge, masks, temporary model) is chosen as each "
            "setting's source says, and compared in docs/findings.md.",
            "Session updates are divided by the projector's Frobenius norm, as LoRA-DRS's code does: without it the "
            "stored statistics go stale.",
            "The ridge is tuned by generalised cross-validation on all statistics so far; a search on session 1 alone "
            "breaks where two classes are easily told apart.",
        ),
    )
    config: PACEConfig

    def __init__(self, config: PACEConfig, backbone: Backbone, context: Context) -> None:
        super().__init__(config, backbone, context)
        if config.freeze_blocks is not None and config.freeze_blocks >= backbone.layer:
            raise ConfigError(
                f"setting 'freeze_blocks' is {config.freeze_blocks}, but {backbone.name} runs {backbone.layer} blocks: "
                f"freeze at most {backbone.layer - 1}, or set fsa=false to adapt none."
            )
        self.lora: SessionLoRA | None = None
        self.first_block = 0  # L_tune: blocks before it stay as pretrained
        self.clips_adapted = 0
        self.stopped = not config.fsa
        self.readout = Readout.of(backbone, config.layers, config.pool)
        self.random = RandomProjection.draw(self.readout.width, config.width, scaling=config.scaling, seed=context.seed)
        self.ridge = RidgeHead(self.random.out_width)

    # ---- Adaptation: stages 1 and 2 ---------------------------------------------------------------------------------

    def adapt(self, session: Session) -> None:
        """Run first- or multi-session adaptation while it has not stopped."""
        if self._stops_before(session):
            self.stopped = True
            return
        if session.index == 0:
            self.first_block = self._probe(session) if self.config.freeze_blocks is None else self.config.freeze_blocks
            self.context.report.note("frozen_blocks", self.first_block)
            self.lora = self._lora(self.backbone, range(self.first_block, self.backbone.layer))
        self._adapt_on(session)
        self.clips_adapted += session.num_clips
        self.encoder_version += 1

    def _stops_before(self, session: Session) -> bool:
        """Stage 3 begins once sum_{i<=T_3} N_i > N_stop."""
        if self.stopped or (session.index > 0 and not self.config.msa):
            return True
        if self.config.adapted_sessions is not None:
            return session.index >= self.config.adapted_sessions
        return self.clips_adapted > self.config.n_stop

    def _probe(self, session: Session) -> int:
        """Algorithm 1, step A: how many first blocks stay frozen, by CKA between a probe and the pretrained network."""
        before = self._layer_features(self.backbone, session)
        probe = copy.deepcopy(self.backbone)
        probe.passes = self.backbone.passes  # the probe's cost is the method's cost
        lora = self._lora(probe, range(probe.layer))
        pairs = lora.add(self.context.generator("lora", "probe"))
        head = self._head(session, "probe")
        fit(
            session,
            [
                Group(tuple(p for pair in pairs for p in (pair.A, pair.B)), self.config.lr_backbone),
                Group(tuple(head.parameters()), self.config.lr_head),
            ],
            lambda clips, y: F.cross_entropy(head(probe.features(clips.mel)), local_labels(y, session.classes)),
            self._recipe(self._epochs(session)),
            self.context,
            stage="probe",
        )
        after = self._layer_features(probe, session)
        similarity = [linear_cka(before[:, k], after[:, k]) for k in range(self.backbone.layer)]  # s_k
        self.context.report.note("layer_cka", similarity)
        changed = [k for k, s in enumerate(similarity) if s < self.config.rho_layer]
        return changed[0] if changed else self.backbone.layer - 1

    @staticmethod
    @torch.no_grad()
    def _layer_features(backbone: Backbone, session: Session) -> Tensor:
        return torch.cat([backbone.layer_features(clips.mel) for clips, _ in session.batches(64)]).cpu()

    def _adapt_on(self, session: Session) -> None:
        """Algorithm 1, steps B and C, on one session; from the second session on, inside the subspace of Eq. 5."""
        assert self.lora is not None
        config, t = self.config, session.index
        head = self._head(session, t)
        prefix = FrozenPrefix(self.backbone, session, stop=self.first_block)  # blocks before L_tune: once per clip
        self.lora.freeze()

        # B. Warm the head up on the frozen backbone.
        before = torch.empty(0)  # z of the previous backbone [N_t, D], once per clip
        if (config.head != "naive" and config.head_epochs > 0) or self._regularises(session):
            before = self._frozen_features(session, prefix)
        if config.head != "naive" and config.head_epochs > 0:
            fit(
                session,
                [Group(tuple(head.parameters()), config.lr_head)],
                lambda clips, y: F.cross_entropy(head(before[clips.index]), local_labels(y, session.classes)),
                self._recipe(config.head_epochs),
                self.context,
                stage="head",
            )

        def cross_entropy(clips: Clips, y: Tensor) -> Tensor:
            return F.cross_entropy(head(prefix.features(clips)), local_labels(y, session.classes))

        loss: Callable[[Clips, Tensor], Tensor] = cross_entropy
        if self._regularises(session):
            loss = self._with_regulariser(cross_entropy, head, session, prefix, before)
        P = self._projectors(session)  # seen by the model before this session's pair exists

        # C. Train W_t = W_0 + sum_{tau<t} B_tau A_tau + B_t A_t with the head frozen.
        pairs = self.lora.add(self.context.generator("lora", t))
        lr = config.lr_backbone if t == 0 or config.lr_session is None else config.lr_session
        groups = [Group(tuple(p for pair in pairs for p in (pair.A, pair.B)), lr)]
        if config.head == "frozen":
            head.requires_grad_(False)
        else:
            groups.append(Group(tuple(head.parameters()), config.lr_head if config.head == "low-lr" else lr))
        projectors: dict[nn.Parameter, Callable[[Tensor], Tensor]] = {}
        for pair in pairs:
            if pair.block in P:  # Eq. 5; A acts on the block's input, B on its output, both through the same subspace
                projectors[pair.A] = partial(_times, P[pair.block])
                projectors[pair.B] = P[pair.block].matmul
        recipe = self._recipe(self._epochs(session))
        history = fit(session, groups, loss, recipe, self.context, stage="adapt", projectors=projectors)
        self.context.report.note("adapt_loss", history[-1])
        self.lora.freeze()

    def _projectors(self, session: Session) -> dict[int, Tensor]:
        """P_{U_t} per block: U_t spans what the subtracted model W_0 - sum_{tau<t} B_tau A_tau sees of this session."""
        assert self.lora is not None
        if session.index == 0 or self.config.projection == "none":
            return {}
        with self.lora.subtracted(self.lora.names):
            batches = (clips for clips, _ in session.batches(64))
            covariances = attention_covariances(self.backbone, batches, self.lora.blocks)  # X^ucov_t
        subspaces = {block: leading_subspace(C, self.config.rho_svd) for block, C in covariances.items()}
        self.context.report.note("subspace_dims", [subspaces[block].shape[1] for block in self.lora.blocks])
        return {
            block: projector(U, self.config.projection, self.config.projection_norm).to(self.context.device)
            for block, U in subspaces.items()
        }

    # ---- Boundary-aware regularisation, Eq. 6-8 ---------------------------------------------------------------------

    def _regularises(self, session: Session) -> bool:
        when = self.config.regulariser
        return self.config.regulariser_weight > 0 and (when == "both" or (when == "later" and session.index > 0))

    def _with_regulariser(
        self,
        cross_entropy: Callable[[Clips, Tensor], Tensor],
        head: nn.Linear,
        session: Session,
        prefix: FrozenPrefix,
        before: Tensor,
    ) -> Callable[[Clips, Tensor], Tensor]:
        """Return the loss CE + weight * mean_i L_reg(i); `before` are features of the previous backbone [N_t, D]."""
        config = self.config
        means, boundary, owner = self._boundary(head, session, before)
        generator = self.context.generator("masked copies", session.index)

        def loss(clips: Clips, y: Tensor) -> Tensor:
            if not len(boundary):
                return cross_entropy(clips, y)  # B_t is empty: the minimum of Eq. 8 is infinite, L_reg is zero
            assert clips.index is not None
            count, local = len(clips), local_labels(y, session.classes)
            copies = [self._masked(clips.mel, generator) for _ in range(config.copies_per_step)]
            raw = prefix.features(clips, torch.cat(copies))
            z = F.normalize(raw, dim=-1).view(1 + config.copies_per_step, count, -1)  # S_i: the clip and its copies
            pull = (z - means[local]).square().sum(-1).mean(0)
            far = 2 - 2 * z[0] @ boundary.T  # squared distances of unit vectors
            own = clips.index[:, None].to(far.device) == owner[None]
            push = far.masked_fill(own, torch.inf).min(1).values
            L_reg = F.relu(config.margin + pull - push)  # Eq. 8
            return F.cross_entropy(head(raw[:count]), local) + config.regulariser_weight * L_reg.mean()

        return loss

    @torch.no_grad()
    def _boundary(self, head: nn.Linear, session: Session, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the boundary set B_t with the temporary model (previous backbone, and `temporary`).

        Args:
            head: the warmed-up head.
            session: the open session.
            before: features of the previous backbone [N_t, D].

        Returns:
            class means mu [C_t, D], boundary features b [n, D] (misclassified masked copies of boundary-prone clips),
            and the position of the clip that each b comes from [n]; all L2-normalised.
        """
        config, count = self.config, len(session.classes)
        generator = self.context.generator("boundary copies", session.index)
        sums = torch.zeros(count, self.backbone.dim, device=self.context.device)
        own = local_labels(session.labels, session.classes).to(sums.device)
        means = F.normalize(sums.index_add(0, own, F.normalize(before, dim=-1)), dim=-1)
        found, owners, perturbed, prone = [], [], 0, 0
        order = self.context.generator("boundary clips", session.index)
        for clips, y in session.batches(16, shuffle=order):
            assert clips.index is not None
            room = config.boundary_clips - perturbed
            if room <= 0:
                break
            mel, index, local = clips.mel[:room], clips.index[:room], local_labels(y, session.classes)[:room]
            perturbed += len(mel)
            # x~^k = Q(x, r_T, r_F)
            raw = self.backbone.features(torch.cat([self._masked(mel, generator) for _ in range(config.copies)]))
            z = F.normalize(raw, dim=-1)
            scores = head(raw) if config.temporary == "head" else z @ means.T
            wrong = (scores.argmax(1).view(config.copies, -1) != local).float()
            marked = wrong.mean(0) > config.rho_boundary  # Eq. 6-7
            prone += int(marked.sum())
            keep = (wrong.bool() & marked).view(-1)
            found.append(z[keep])
            owners.append(index.to(raw.device).repeat(config.copies)[keep])
        self.context.report.note("boundary_prone", prone)
        return means, torch.cat(found), torch.cat(owners)

    def _frozen_features(self, session: Session, prefix: FrozenPrefix) -> Tensor:
        """Return z [N_t, D] of the backbone as it is before this session's pair: f_0 until one was trained."""
        if self.encoder_version == 0 and self.readout == Readout.of(self.backbone):
            return self.session_queries(session)
        return prefix.session_features()

    def _masked(self, mel: Tensor, generator: torch.Generator) -> Tensor:
        return mask_time_frequency(
            mel,
            time_ratio=self.config.time_mask,
            freq_ratio=self.config.freq_mask,
            generator=generator,
            random_width=False,
        )

    def _head(self, session: Session, *purpose: str | int) -> nn.Linear:
        generator = self.context.generator("head", *purpose)
        return linear_head(self.backbone.dim, len(session.classes), generator, self.context.device)

    def _epochs(self, session: Session) -> int:
        first = (self.config.epochs or self.context.stream.first_session_epochs) * self.config.epochs_factor
        return first if session.index == 0 else self.config.session_epochs or first

    def _recipe(self, epochs: int) -> Recipe:
        config = self.config
        return Recipe(
            epochs, config.batch_size, config.optimiser, config.momentum, config.weight_decay, clip=config.clip
        )

    def _lora(self, backbone: Backbone, blocks: range) -> SessionLoRA:
        config = self.config
        return SessionLoRA(backbone, blocks=blocks, targets=config.targets, rank=config.rank, scale=config.lora_scale)

    # ---- Analytic classifier, Eq. 2-3 -------------------------------------------------------------------------------

    @torch.no_grad()
    def accumulate(self, session: Session) -> None:
        """Add the session to the ridge statistics; Eq. 2-3 as their batch solution, equal and safer."""
        features, labels = self.session_features(session)
        H = self.random(features)
        self.ridge.update(H, labels, self.num_seen)
        if self.config.gamma is not None:
            self.ridge.solve(self.config.gamma)
        elif self.config.gamma_rule == "accumulated":
            self.ridge.tune()
        elif self.ridge.lam is None:
            self.ridge.solve(choose_lambda(H, labels, self.num_seen, seed=self.context.seed).lam)
        self.context.report.note("gamma", self.ridge.lam)

    def reset_statistics(self) -> None:
        """Start the ridge statistics anew."""
        self.ridge = RidgeHead(self.random.out_width)

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        """Return what is read of the encoder, z [B, D]."""
        return self.read(batch)

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return zh W_t [B, S_t]."""
        return self.ridge.logits(self.random(features))

    def state_dict(self) -> State:
        """Return LoRA pairs, ridge statistics and the counters; the random projection is redrawn from the seed."""
        return {
            "lora": None if self.lora is None else self.lora.state_dict(),
            "ridge": self.ridge.state_dict(),
            "first_block": self.first_block,
            "clips_adapted": self.clips_adapted,
            "stopped": self.stopped,
            "num_seen": self.num_seen,
            "encoder_version": self.encoder_version,
        }

    def load_state_dict(self, state: State) -> None:
        """Restore a freshly built PACE."""
        self.first_block = state["first_block"]
        if state["lora"] is not None:
            self.lora = self._lora(self.backbone, range(self.first_block, self.backbone.layer))
            self.lora.load_state_dict(state["lora"])
        self.ridge.load_state_dict(state["ridge"])
        self.clips_adapted, self.stopped = state["clips_adapted"], state["stopped"]
        self.num_seen, self.encoder_version = state["num_seen"], state["encoder_version"]


def _times(P: Tensor, step: Tensor) -> Tensor:
    return step @ P
