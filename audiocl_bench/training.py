"""The one training loop: methods give parameters, a loss and hooks; the loop gives order, schedule and progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError, DivergedError
from audiocl_bench.method import Clips, Context, MethodConfig, Session, setting

Batch = TypeVar("Batch", Clips, Tensor)

Schedule = Literal["cosine", "constant", "coda", "step"]


@dataclass(frozen=True)
class Recipe:
    """How to train: epochs, clips per batch, optimiser, its decay and its schedule.

    Attributes:
        epochs: passes over the session's clips.
        batch_size: clips per step.
        optimiser: "sgd" (momentum `momentum`) or "adam" (betas 0.9, 0.999).
        weight_decay: L2 term added to the gradient.
        clip: scale gradients down so that their joint norm is at most this; None leaves them.
        schedule: see `rate`.
        step_every: epochs between two decays of the schedule "step".
        step_factor: what each of them multiplies the rate by.
    """

    epochs: int
    batch_size: int
    optimiser: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "cosine"
    clip: float | None = None
    step_every: int = 30
    step_factor: float = 0.1


@dataclass(frozen=True)
class TrainingConfig(MethodConfig):
    """Settings of every method that trains with `fit`: how fast a GPU computes a training step.

    They hold for the forward passes of training steps alone. Every feature, statistic and prediction is computed in
    float32 by the blocks as they are, so that heads and audits mean the same as without.
    """

    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "bfloat16 computes the products of training steps in it (CUDA only)", later=True
    )
    compile: bool = setting(False, "true runs training steps through torch.compile (CUDA only)", later=True)


def faster(config: MethodConfig, backbone: Backbone) -> Callable[[], AbstractContextManager[Any]]:
    """Return what `Context.faster` is to be: the settings of a `TrainingConfig`, for this backbone on its device."""
    if not isinstance(config, TrainingConfig) or not (config.compile or config.precision == "bfloat16"):
        return nullcontext
    blocks = [torch.compile(block) for block in backbone.blocks] if config.compile else None
    device = next(backbone.parameters()).device.type

    @contextmanager
    def surrounding() -> Iterator[None]:
        with ExitStack() as stack:
            if blocks is not None:
                stack.enter_context(backbone.running(blocks))
            if config.precision == "bfloat16":
                stack.enter_context(torch.autocast(device, dtype=torch.bfloat16))
            yield

    return surrounding


def check_device(config: MethodConfig, device: torch.device) -> None:
    """Refuse settings of a `TrainingConfig` that this device is not meant for.

    Raises:
        ConfigError: bfloat16 or compiled blocks without CUDA; the sentence says what to do.
    """
    if device.type == "cuda" or not isinstance(config, TrainingConfig):
        return
    asked = "precision=bfloat16" if config.precision == "bfloat16" else "compile=true" if config.compile else None
    if asked is not None:
        raise ConfigError(f"setting {asked} needs a CUDA device, but this run is on '{device}': add --device cuda.")


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate."""

    parameters: tuple[nn.Parameter, ...]
    lr: float


def fit(
    session: Session,
    groups: Sequence[Group],
    loss: Callable[[Clips, Tensor], Tensor],
    recipe: Recipe,
    context: Context,
    *,
    stage: str,
    projectors: Mapping[nn.Parameter, Callable[[Tensor], Tensor]] | None = None,
) -> list[float]:
    """Train `groups` on one session and return the mean loss of every epoch.

    The order of clips is drawn from (run seed, stage, session), so two calls with equal inputs train identically.

    Args:
        session: the open session.
        groups: parameters by learning rate; only these change.
        loss: mean loss of a batch (Clips, labels [B]) -> scalar tensor.
        recipe: epochs, batch size, optimiser.
        context: the run.
        stage: name for progress and for the seed of the clip order.
        projectors: parameter -> linear map; the parameter's step is replaced by its image. For SGD this equals
            projecting gradient and weight decay before the momentum, for Adam it projects the update.

    Raises:
        ConfigError: the loss became infinite or NaN; the learning rate is too high for this data.
    """
    generator = context.generator("clip order", stage, session.index)

    def batches(epoch: int) -> Iterator[tuple[Clips, Tensor]]:
        del epoch  # one generator for all epochs: every epoch draws another order
        return session.batches(recipe.batch_size, shuffle=generator)

    def faster_loss(clips: Clips, labels: Tensor) -> Tensor:
        with context.faster():
            return loss(clips, labels)

    return _descend(batches, groups, faster_loss, recipe, context, stage, session.index, projectors or {})


def fit_samples(
    draw: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    groups: Sequence[Group],
    loss: Callable[[Tensor, Tensor], Tensor],
    recipe: Recipe,
    context: Context,
    *,
    stage: str,
    session: int,
) -> list[float]:
    """Train `groups` on batches that `draw(epoch)` yields, such as samples of stored class statistics.

    As `fit` otherwise; `recipe.batch_size` is the drawer's business.

    Args:
        draw: epoch -> batches (features [B, D], labels [B]).
        session: number of the current session, for messages.
    """
    return _descend(draw, groups, loss, recipe, context, stage, session, {})


def rate(recipe: Recipe, epoch: int) -> float:
    """Return the factor of the learning rate in a zero-based epoch e of E.

    "constant": 1. "cosine": (1 + cos(pi e / E)) / 2. "coda": cos(99 pi e / (200 (E - 1))), 1 where E = 1 (CODA-Prompt's
    official code divides by zero there; methods.md section 1.3). "step": `step_factor` ^
    floor(e / `step_every`).
    """
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
    if recipe.schedule == "coda":
        return math.cos(99 * math.pi * epoch / (200 * max(recipe.epochs - 1, 1)))
    return recipe.step_factor ** (epoch // recipe.step_every) if recipe.schedule == "step" else 1.0


def _descend(
    batches: Callable[[int], Iterable[tuple[Batch, Tensor]]],
    groups: Sequence[Group],
    loss: Callable[[Batch, Tensor], Tensor],
    recipe: Recipe,
    context: Context,
    stage: str,
    session: int,
    projectors: Mapping[nn.Parameter, Callable[[Tensor], Tensor]],
) -> list[float]:
    parameters = [p for group in groups for p in group.parameters]
    context.report.trainable(sum(p.numel() for p in parameters))
    optimiser = _optimiser(groups, recipe)
    history = []
    for epoch in range(recipe.epochs):
        for part, group in zip(optimiser.param_groups, groups, strict=True):
            part["lr"] = group.lr * rate(recipe, epoch)
        total, clips_seen = 0.0, 0
        for batch, labels in batches(epoch):
            optimiser.zero_grad(set_to_none=True)
            value = loss(batch, labels)
            value.backward()
            if recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            before = {parameter: parameter.detach().clone() for parameter in projectors}
            optimiser.step()
            with torch.no_grad():
                for parameter, project in projectors.items():
                    parameter.copy_(before[parameter] + project(parameter - before[parameter]))
            total += float(value.detach()) * len(labels)
            clips_seen += len(labels)
        mean = total / max(clips_seen, 1)
        if not math.isfinite(mean):
            rates = ", ".join(f"{group.lr:g}" for group in groups)
            raise DivergedError(
                f"training diverged in stage '{stage}' of session {session} (loss {mean}): lower the learning "
                f"rate ({rates})."
            )
        history.append(mean)
        context.report.epoch(stage, epoch + 1, recipe.epochs, clips_seen, mean)
    return history


def _optimiser(groups: Sequence[Group], recipe: Recipe) -> torch.optim.Optimizer:
    parts = [{"params": list(group.parameters), "lr": group.lr} for group in groups]
    if recipe.optimiser == "adam":
        return torch.optim.Adam(parts, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parts, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def linear_head(dim: int, classes: int, generator: torch.Generator, device: torch.device) -> nn.Linear:
    """Return a trainable linear classifier, weights and bias U(+-1/sqrt dim) (PyTorch's default) from `generator`."""
    head = nn.utils.skip_init(nn.Linear, dim, classes)  # PyTorch's own draw would use the global generator
    bound = 1 / math.sqrt(dim)
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * (2 * bound) - bound)
    return head.to(device)


class GrowingHead:
    """A linear classifier that gains rows with every session; rows once added change only if asked to.

    Keeping a session's new rows in a layer of their own while they train leaves the older ones untouched to the byte,
    whatever optimiser and weight decay do (methods.md section 1.5 b, d).

    Attributes:
        weight: [S_t, D]; bias: [S_t]. Neither requires a gradient between sessions.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.weight = nn.Parameter(torch.zeros(0, dim, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(0, device=device), requires_grad=False)

    def append(self, rows: nn.Linear) -> None:
        """Add the rows of a trained layer D -> |C_t| (copied)."""
        self._set(torch.cat([self.weight, rows.weight]), torch.cat([self.bias, rows.bias]))

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits [B, S_t] of features [B, D]."""
        return nn.functional.linear(features, self.weight, self.bias)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of weight and bias."""
        return {"weight": self.weight.detach().clone(), "bias": self.bias.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a head of any size."""
        self._set(state["weight"], state["bias"])

    def _set(self, weight: Tensor, bias: Tensor) -> None:
        device = self.weight.device
        self.weight = nn.Parameter(weight.detach().to(device, copy=True), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().to(device, copy=True), requires_grad=False)


def local_labels(labels: Tensor, classes: Iterable[int]) -> Tensor:
    """Map global labels [B] to positions within `classes` (a session's own classes)."""
    ordered = torch.tensor(sorted(classes), device=labels.device)
    return torch.searchsorted(ordered, labels)
