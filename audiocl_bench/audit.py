"""Checks that keep a result honest, run inside every run and recorded with it. None of them knows a method by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from audiocl_bench.method import Clips, Method

# Float32 sums change with the batch's shape; a leak changes features by a sizeable share of their spread.
FEATURE_TOLERANCE = 1e-3
TIE_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Check:
    """Outcome of one check: its name, whether it passed, and the numbers behind it."""

    name: str
    passed: bool
    detail: dict[str, Any] = field(default_factory=dict)


def report(checks: Iterable[Check]) -> dict[str, Any]:
    """Return the checks as plain values, ready for the `audit` column."""
    return {check.name: {"passed": check.passed, **check.detail} for check in checks}


@torch.no_grad()
def batch_independence(
    method: Method, mel: Tensor, *, batch_sizes: Sequence[int] = (1, 7), seed_order: Tensor
) -> Check:
    """Compare every clip's result in one batch of all with its result in other batches, and in another order.

    A prediction that depends on its batch neighbours leaks the session when test batches come sorted
    (methods.md section 1.4 and 5).

    Args:
        method: the learner after some session.
        mel: normalised log-mel of a test sample [n, T, M].
        batch_sizes: batch sizes to compare with n.
        seed_order: a permutation of n.
    """
    reference = method.encode(Clips(mel)).float()
    scores = method.classify(reference).float()
    spread = float(reference.std()) or 1.0
    worst, changed = 0.0, 0
    variants = [(torch.arange(len(mel)), size) for size in batch_sizes] + [(seed_order, len(mel))]
    for order, size in variants:
        features = torch.cat([method.encode(Clips(mel[rows])) for rows in order.split(size)]).float()
        again = torch.cat([method.classify(part) for part in features.split(size)]).float()
        worst = max(worst, float((features - reference[order]).abs().max()) / spread)
        changed += _changed(scores[order], again)
    return Check(
        "batch_independence",
        worst <= FEATURE_TOLERANCE and changed == 0,
        {"clips": len(mel), "largest_feature_change": worst, "changed_predictions": changed},
    )


def _changed(before: Tensor, after: Tensor) -> int:
    """Count rows whose predicted class differs by more than a tie."""
    rows = torch.arange(len(before), device=before.device)
    first, second = before.argmax(1), after.argmax(1)
    gap = before[rows, first] - before[rows, second]
    return int(((first != second) & (gap > TIE_TOLERANCE * before.std().clamp_min(1e-12))).sum())


@torch.no_grad()
def repeatability(method: Method, mel: Tensor) -> Check:
    """Evaluate twice: the second pass must equal the first bit for bit (evaluation must not change the model)."""
    first = method.classify(method.encode(Clips(mel)))
    second = method.classify(method.encode(Clips(mel)))
    return Check("repeatability", torch.equal(first, second))


def seen_classes_only(method: Method, mel: Tensor, num_seen: int) -> Check:
    """Scores have exactly one column per class seen so far, and no NaN."""
    with torch.no_grad():
        scores = method.classify(method.encode(Clips(mel)))
    right = scores.shape == (len(mel), num_seen) and not bool(scores.isnan().any())
    return Check("seen_classes_only", right, {"columns": int(scores.shape[-1]), "classes_seen": num_seen})


@torch.no_grad()
def state_is_complete(method: Method, rebuild: Callable[[], Method], mel: Tensor) -> Check:
    """A fresh method on the pretrained backbone, given only `state_dict`, must predict bit for bit the same.

    So everything kept is in the state: resume is exact and the kept bytes are the bytes really kept.
    """
    twin = rebuild()
    twin.load_state_dict(method.state_dict())
    same = torch.equal(method.classify(method.encode(Clips(mel))), twin.classify(twin.encode(Clips(mel))))
    return Check("state_is_complete", same)


def data_access(handed_out: Sequence[int], train_clips: Sequence[int]) -> Check:
    """Record the ledger: clips handed out per session, against clips the session has; closed sessions stay closed."""
    return Check("data_access", True, {"clips_read": list(handed_out), "clips_in_session": list(train_clips)})
