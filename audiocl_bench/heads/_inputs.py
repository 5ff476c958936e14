"""Input checks shared by the heads: what is wrong is said before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]


def check_features(H: Tensor, width: int | None, name: str = "features") -> Tensor:
    """Return `H` as a finite float64 CPU matrix [n, width], or raise ValueError."""
    H = torch.as_tensor(H)
    if H.ndim != 2:
        raise ValueError(f"{name} must be a matrix [n, width], got shape {tuple(H.shape)}.")
    if width is not None and H.shape[1] != width:
        raise ValueError(f"{name} must have {width} columns, got {H.shape[1]}.")
    if H.is_complex() or H.dtype == torch.bool:
        raise ValueError(f"{name} must be real numbers, got {H.dtype}.")
    H = H.detach().to(device="cpu", dtype=torch.float64)
    # A sum is finite unless an entry is not (or the sum overflows), and costs a fraction of the elementwise test.
    if not bool(torch.isfinite(H.sum())) and not bool(torch.isfinite(H).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return H


def check_labels(labels: Tensor, rows: int, num_classes: int, seen: int = 0) -> Tensor:
    """Return `labels` as int64 [rows] with values in [0, num_classes), or raise ValueError."""
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.shape[0] != rows:
        raise ValueError(f"labels must be a vector of {rows} entries, one a row, got shape {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}.")
    if num_classes < 1 or num_classes < seen:
        raise ValueError(f"num_classes must be at least {max(1, seen)} (classes never disappear), got {num_classes}.")
    labels = labels.detach().to(device="cpu", dtype=torch.int64)
    if rows and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}.")
    return labels


def check_ridge(lam: float) -> float:
    value = float(lam)
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"the ridge must be positive and finite, got {lam}.")
    return value


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return the float64 one-hot matrix [n, num_classes] of integer labels [n] (old classes' columns are zero)."""
    labels = check_labels(labels, len(labels), num_classes)
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.float64)


def check_tensor(state: Mapping[str, Any], key: str, shape: tuple[int | None, ...], kind: torch.dtype) -> Tensor:
    """Return `state[key]` after checking dtype and shape (None = any), or raise ValueError."""
    if key not in state:
        raise ValueError(f"the head's state lacks '{key}'.")
    value = state[key]
    fits = isinstance(value, Tensor) and value.dtype == kind and value.ndim == len(shape)
    if not fits or any(want is not None and want != got for want, got in zip(shape, value.shape, strict=True)):
        raise ValueError(f"the head's state '{key}' must be {kind} of shape {shape}.")
    return value.detach().to("cpu", copy=True).contiguous()


def total_bytes(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values())


def grow_rows(matrix: Tensor, rows: int) -> Tensor:
    """Return `matrix` with zero rows appended up to `rows`."""
    missing = rows - matrix.shape[0]
    return matrix if missing <= 0 else torch.cat([matrix, matrix.new_zeros(missing, *matrix.shape[1:])])
