"""Checks that keep a result honest, run inside every run and recorded with it. None of them knows a method by name."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import torch
from torch import Tensor

from audiocl_bench.method import Clips, Method

P = ParamSpec("P")

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


def _guarded(check: Callable[P, Check]) -> Callable[P, Check]:
    """Turn an exception inside a check into a failed check: after hours of training a result is marked, not lost."""

    @functools.wraps(check)
    def run(*args: P.args, **kwargs: P.kwargs) -> Check:
        try:
            with torch.no_grad():
                return check(*args, **kwargs)
        except Exception as cause:
            return Check(check.__name__, False, {"error": f"{type(cause).__name__}: {cause}"})

    return run


@_guarded
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
    reference = method.encode(Clips(mel))
    scores = method.classify(reference)
    changes, changed = [0.0], 0
    variants = [(torch.arange(len(mel)), size) for size in batch_sizes] + [(seed_order, len(mel))]
    for order, size in variants:
        features = torch.cat([method.encode(Clips(mel[rows])) for rows in order.split(size)])
        again = torch.cat([method.classify(part) for part in features.split(size)])
        changes.append(_change(reference[order], features))
        changed += _changed(scores[order].float(), again.float())
    worst = max(changes)
    return Check(
        "batch_independence",
        worst <= FEATURE_TOLERANCE and changed == 0,
        {"clips": len(mel), "largest_feature_change": _finite(worst), "changed_predictions": changed},
    )


def _change(before: Tensor, after: Tensor) -> float:
    """Largest change of a feature as a share of the features' spread; infinite where one is no finite number."""
    if before.shape != after.shape:
        return math.inf
    before, after = before.double(), after.double()
    change = float((after - before).abs().max()) / (float(before.std()) or 1.0)
    return change if math.isfinite(change) else math.inf


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _changed(before: Tensor, after: Tensor) -> int:
    """Count rows whose predicted class differs by more than a tie."""
    rows = torch.arange(len(before), device=before.device)
    first, second = before.argmax(1), after.argmax(1)
    gap = before[rows, first] - before[rows, second]
    finite = before[before.isfinite()]  # a method may mask a class by -inf
    spread = finite.std() if len(finite) > 1 else before.new_zeros(())
    return int(((first != second) & (gap > TIE_TOLERANCE * spread.clamp_min(1e-12))).sum())


@_guarded
def features_are_current(method: Method, mel: Tensor, stored: Tensor) -> Check:
    """Encode a test sample again: the run's test features `stored` [n, D] must be those of the present encoder.

    They are not if a method changed its encoder and left `encoder_version` as it was.
    """
    change = _change(stored, method.encode(Clips(mel)).to(stored.device))
    return Check("features_are_current", change <= FEATURE_TOLERANCE, {"largest_feature_change": _finite(change)})


@_guarded
def repeatability(method: Method, mel: Tensor) -> Check:
    """Evaluate twice: equal scores bit for bit, and the kept state unchanged (evaluation must not change the model)."""
    before = _digest(method.state_dict())
    first = method.classify(method.encode(Clips(mel)))
    second = method.classify(method.encode(Clips(mel)))
    same_scores, same_state = torch.equal(first, second), _digest(method.state_dict()) == before
    return Check("repeatability", same_scores and same_state, {"same_scores": same_scores, "same_state": same_state})


def _digest(state: Any) -> str:
    """SHA-256 of a state's structure and values."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)}".encode())
            for key, item in value.items():
                digest.update(repr(key).encode())
                add(item)
        elif isinstance(value, (list, tuple)):
            digest.update(f"list {len(value)}".encode())
            for item in value:
                add(item)
        else:
            digest.update(repr(sorted(value, key=repr) if isinstance(value, set) else value).encode())

    add(state)
    return digest.hexdigest()


@_guarded
def seen_classes_only(method: Method, mel: Tensor, num_seen: int) -> Check:
    """Scores have exactly one column per class seen so far, and no NaN."""
    scores = method.classify(method.encode(Clips(mel)))
    right = scores.shape == (len(mel), num_seen) and not bool(scores.isnan().any())
    return Check("seen_classes_only", right, {"columns": int(scores.shape[-1]), "classes_seen": num_seen})


@_guarded
def state_is_complete(method: Method, rebuild: Callable[[], Method], mel: Tensor) -> Check:
    """A fresh method on the pretrained backbone, given only `state_dict`, must predict bit for bit the same.

    So everything kept is in the state: resume is exact and the kept bytes are the bytes really kept.
    """
    twin = rebuild()
    twin.load_state_dict(_on_cpu(method.state_dict()))
    same = torch.equal(method.classify(method.encode(Clips(mel))), twin.classify(twin.encode(Clips(mel))))
    return Check("state_is_complete", same)


def _on_cpu(state: Any) -> Any:
    """Return the state as a checkpoint gives it back: with tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().cpu()
    if isinstance(state, dict):
        return {key: _on_cpu(item) for key, item in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_cpu(item) for item in state)
    return state


def data_access(handed_out: Sequence[int], train_clips: Sequence[int]) -> Check:
    """Record the ledger: clips handed out per session, against clips the session has; closed sessions stay closed."""
    return Check("data_access", True, {"clips_read": list(handed_out), "clips_in_session": list(train_clips)})
