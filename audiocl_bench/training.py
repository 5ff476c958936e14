"""The one training loop: methods give parameters, a loss and hooks; the loop gives order, schedule and progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips, Context, Session


@dataclass(frozen=True)
class Recipe:
    """How to train: epochs, clips per batch, optimiser, its decay and its schedule.

    Attributes:
        epochs: passes over the session's clips.
        batch_size: clips per step.
        optimiser: "sgd" (momentum `momentum`) or "adam" (betas 0.9, 0.999).
        weight_decay: L2 term added to the gradient.
        clip: scale gradients down so that their joint norm is at most this; None leaves them.
        schedule: "cosine" anneals per epoch from lr to 0, lr (1 + cos(pi e / E)) / 2; "constant" does not.
    """

    epochs: int
    batch_size: int
    optimiser: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float | None = None


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
    parameters = [p for group in groups for p in group.parameters]
    context.report.trainable(sum(p.numel() for p in parameters))
    optimiser = _optimiser(groups, recipe)
    generator = context.generator("clip order", stage, session.index)
    history = []
    for epoch in range(recipe.epochs):
        if recipe.schedule == "cosine":
            for part, group in zip(optimiser.param_groups, groups, strict=True):
                part["lr"] = group.lr * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
        total, clips_seen = 0.0, 0
        for clips, labels in session.batches(recipe.batch_size, shuffle=generator):
            optimiser.zero_grad(set_to_none=True)
            value = loss(clips, labels)
            value.backward()
            if recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            before = {parameter: parameter.detach().clone() for parameter in projectors or ()}
            optimiser.step()
            with torch.no_grad():
                for parameter, project in (projectors or {}).items():
                    parameter.copy_(before[parameter] + project(parameter - before[parameter]))
            total += float(value.detach()) * len(clips)
            clips_seen += len(clips)
        mean = total / max(clips_seen, 1)
        if not math.isfinite(mean):
            rates = ", ".join(f"{group.lr:g}" for group in groups)
            raise ConfigError(
                f"training diverged in stage '{stage}' of session {session.index} (loss {mean}): lower the learning "
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


def local_labels(labels: Tensor, classes: Iterable[int]) -> Tensor:
    """Map global labels [B] to positions within `classes` (a session's own classes)."""
    ordered = torch.tensor(sorted(classes), device=labels.device)
    return torch.searchsorted(ordered, labels)
