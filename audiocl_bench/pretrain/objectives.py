"""The two objectives: EAT's masked latent prediction, and distillation of several layers of a teacher.

Both are means over clips of means over a clip's own patches, so a clip counts the same however long it is, and padding
takes part in nothing. All losses are computed in float32, whatever precision the network ran in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiocl_bench.backbones import eat
from audiocl_bench.backbones.eat import MEL_PATCHES
from audiocl_bench.pretrain.masks import Visible
from audiocl_bench.pretrain.network import Learner, embed, passed, pick
from audiocl_bench.pretrain.recipe import ObjectiveConfig

_INSTANCE_EPS = _LAYER_EPS = 1e-5
_STD_EPS = 1e-6


def eat_targets(results: Sequence[Tensor], real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what EAT's student predicts, from the EMA teacher's layer results.

    Each layer result is normalised per clip and channel over the clip's real patches (instance norm, variance with
    1/n), then averaged over layers, then normalised per patch over channels (layer norm). The class target is the mean
    over real patches (spec/eat.md section 2).

    Args:
        results: per block [B, N, D], patches only.
        real: bool [B, N]; None where all patches are real.

    Returns:
        patch targets [B, N, D] (those of padding mean nothing) and class targets [B, D], float32.
    """
    total = torch.zeros((), device=results[0].device)
    weight = _weights(real, results[0].shape[:2], results[0].device)[:, :, None]  # sums to 1 per clip
    for result in results:
        values = result.float()
        centred = values - (values * weight).sum(dim=1, keepdim=True)
        variance = (centred.square() * weight).sum(dim=1, keepdim=True)
        total = total + centred * (variance + _INSTANCE_EPS).rsqrt()
    targets = F.layer_norm(total / len(results), total.shape[-1:], eps=_LAYER_EPS)
    return targets, (targets * weight).sum(dim=1)


def _weights(chosen: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    """Return weights [B, N] that average over the chosen cells of every row; rows without any are 0."""
    if chosen is None:
        return torch.full(shape, 1.0 / shape[1], device=device)
    counts = chosen.sum(dim=1, keepdim=True)
    return chosen / counts.clamp_min(1)


def eat_loss(
    learner: Learner,
    teacher: eat.EAT,
    x: Tensor,
    real: Tensor | None,
    visible: Visible,
    noise: Tensor,
    objective: ObjectiveConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute EAT's loss of a batch, teacher's pass included.

    One pass of the teacher serves all clones of a clip; the student runs on visible patches alone. Frame loss: squared
    error, mean over channels, of the masked real patches. Utterance loss: the same for the class token against the
    class target. The official code sums over channels and divides by sqrt(dim), which is a constant factor.

    Args:
        learner: student and decoder.
        teacher: the EMA network.
        x: normalised log-mels [B, T, 128].
        real: bool [B, N], patches that hold real audio; None where all do.
        visible: visible patches of B * clones rows, the clones of a clip side by side.
        noise: contents of masked cells [B * clones, N, width of the decoder].
        objective: weights.

    Returns:
        the weighted loss and its parts: frame, class, and `spread`, the standard deviation of class targets over the
        clips, mean over channels, which goes to 0 when all clips look alike to the teacher.
    """
    assert learner.decoder is not None
    with torch.no_grad():
        seen = passed(teacher, embed(teacher, x), real)
        targets, class_targets = eat_targets([result[:, 1:] for result in seen.results], real)
    rows, patches = noise.shape[:2]
    clones = rows // x.shape[0]
    output = passed(learner.student, pick(embed(learner.student, x), visible), visible.slots).outputs[-1]
    real_rows = None if real is None else real.repeat_interleave(clones, dim=0)
    grid = learner.decoder(output[:, 1:], visible, noise, real_rows)

    masked = torch.ones(rows, patches + 1, dtype=torch.bool, device=x.device)  # unused slots point to the last column
    masked = masked.scatter(1, visible.place(patches), False)[:, :patches]
    masked = masked if real_rows is None else masked & real_rows
    predicted = learner.decoder.proj(grid).float().unflatten(0, (-1, clones))
    squared = (predicted - targets[:, None]).square().mean(dim=3).flatten(0, 1)
    frame = (squared * _weights(masked, masked.shape, x.device)).sum() / rows
    error = output[:, 0].float() - class_targets.repeat_interleave(clones, dim=0)
    utterance = error.square().mean()
    loss = objective.eat_frame_weight * frame + objective.eat_class_weight * utterance
    spread = class_targets.std(dim=0, correction=0).mean()
    return loss, {"eat_frame": frame.detach(), "eat_class": utterance.detach(), "eat_spread": spread}


def distil_loss(
    learner: Learner,
    x: Tensor,
    visible: Visible | None,
    keys: Tensor | None,
    targets: Tensor,
    valid: Tensor,
    objective: ObjectiveConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of predicting a teacher's layers.

    A student's time patch is the mean over those of its 8 mel patches that it sees. Per pair of layers: smooth L1
    (threshold 1, mean over channels) plus `cosine_weight` * (1 - cosine), of the valid time patches of which the
    student sees anything. From the class token of the last block, for each teacher layer: smooth L1 to the mean and to
    the standard deviation (1/n) over the clip's valid time patches.

    Args:
        learner: student and heads.
        x: normalised log-mels [B, T, 128].
        visible: the patches that the student sees; None means all.
        keys: bool [B, N], patches that may be attended to where `visible` is None; None means all.
        targets: standardised outputs of the teacher [B, T/16, pairs, teacher dim], in the order of `teacher_layers`.
        valid: bool [B, T/16], time patches that hold real audio.
        objective: weights.

    Returns:
        the weighted loss and its parts: frame (smooth L1), cosine (1 - cosine), class.
    """
    assert learner.distiller is not None
    patches = embed(learner.student, x)
    if visible is None:
        outputs = passed(learner.student, patches, keys).outputs
        counts = None
    else:
        outputs = passed(learner.student, pick(patches, visible), visible.slots).outputs
        counts = _counts(visible, valid.shape[1])
    chosen = valid if counts is None else valid & (counts > 0)
    cells = _weights(chosen, chosen.shape, x.device)  # [B, P]
    clips = cells.sum(dim=1).sum().clamp_min(1)  # clips of which anything is predicted

    weights = torch.tensor(objective.layer_weights, device=x.device)
    weights = weights / weights.sum()
    in_time: dict[int, Tensor] = {}
    frame = cosine = torch.zeros((), device=x.device)
    for pair, (layer, head) in enumerate(zip(learner.distiller.student_layers, learner.distiller.frames, strict=True)):
        if layer not in in_time:
            in_time[layer] = _over_mel(outputs[layer - 1][:, 1:], visible, counts, valid.shape[1])
        predicted, wanted = head(in_time[layer]).float(), targets[:, :, pair]
        error = F.smooth_l1_loss(predicted, wanted, reduction="none").mean(dim=2)
        angle = 1.0 - F.cosine_similarity(predicted, wanted, dim=2)
        frame = frame + weights[pair] * (error * cells).sum() / clips
        cosine = cosine + weights[pair] * (angle * cells).sum() / clips

    statistics = learner.distiller.class_statistics(outputs[-1][:, 0]).float()
    error = F.smooth_l1_loss(statistics, over_time(targets, valid), reduction="none").mean(dim=(2, 3))  # [B, pairs]
    clip = (error * weights).sum(dim=1).mean()
    loss = (
        objective.distil_frame_weight * (frame + objective.cosine_weight * cosine)
        + objective.distil_class_weight * clip
    )
    parts = {"distil_frame": frame, "distil_cosine": cosine, "distil_class": clip}
    return loss, {name: part.detach() for name, part in parts.items()}


def over_time(targets: Tensor, valid: Tensor) -> Tensor:
    """Return mean and standard deviation (1/n) over valid time patches: [B, P, L, D] -> [B, L, 2, D]."""
    weight = _weights(valid, valid.shape, valid.device)[:, :, None, None]
    mean = (targets * weight).sum(dim=1)
    variance = ((targets - mean[:, None]).square() * weight).sum(dim=1)
    return torch.stack([mean, (variance + _STD_EPS).sqrt()], dim=2)


def _counts(visible: Visible, time: int) -> Tensor:
    """Return how many mel patches of every time patch are visible [R, P]."""
    ones = torch.ones(visible.index.shape, device=visible.index.device) if visible.slots is None else visible.slots
    zeros = torch.zeros(len(visible.index), time, device=visible.index.device)
    return zeros.scatter_add(1, visible.index // MEL_PATCHES, ones.float())


def _over_mel(tokens: Tensor, visible: Visible | None, counts: Tensor | None, time: int) -> Tensor:
    """Average patch tokens [R, V, D] over the visible mel patches of each time patch: [R, P, D]."""
    if visible is None or counts is None:
        return tokens.unflatten(1, (time, MEL_PATCHES)).mean(dim=2)
    tokens = tokens if visible.slots is None else tokens * visible.slots[:, :, None]
    place = (visible.index // MEL_PATCHES)[:, :, None].expand_as(tokens)
    sums = torch.zeros(len(tokens), time, tokens.shape[2], dtype=tokens.dtype, device=tokens.device)
    return sums.scatter_add(1, place, tokens) / counts.clamp_min(1)[:, :, None].to(tokens.dtype)
