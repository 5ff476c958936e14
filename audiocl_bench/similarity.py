"""Similarity of two representations of the same clips."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cka(X: Tensor, Y: Tensor) -> float:
    """Linear centred kernel alignment of two feature sets, in [0, 1] (Kornblith et al. 2019, Eq. 5 in feature form).

    CKA = ||Yc^T Xc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F), with columns centred. Computed from n x n Gram matrices when
    there are fewer clips than features. Invariant to rotation and isotropic scale of either side.

    Args:
        X: [n, p] features, n >= 2.
        Y: [n, q] features of the same clips.

    Returns:
        The alignment; 1.0 when both sides are constant (nothing differs).

    Raises:
        ValueError: different numbers of rows, or fewer than two.
    """
    if X.shape[0] != Y.shape[0] or X.shape[0] < 2:
        raise ValueError(f"CKA needs the same clips on both sides and at least two, got {X.shape[0]} and {Y.shape[0]}")
    Xc = X.double() - X.double().mean(0)
    Yc = Y.double() - Y.double().mean(0)
    if X.shape[0] <= max(X.shape[1], Y.shape[1]):
        K, L = Xc @ Xc.T, Yc @ Yc.T
        cross, own_x, own_y = (K * L).sum(), torch.linalg.matrix_norm(K), torch.linalg.matrix_norm(L)
    else:
        cross = torch.linalg.matrix_norm(Yc.T @ Xc) ** 2
        own_x, own_y = torch.linalg.matrix_norm(Xc.T @ Xc), torch.linalg.matrix_norm(Yc.T @ Yc)
    constant = [_is_constant(whole.double(), centred) for whole, centred in ((X, Xc), (Y, Yc))]
    if any(constant):
        return float(all(constant))
    return float((cross / (own_x * own_y)).clamp(0.0, 1.0))


def _is_constant(whole: Tensor, centred: Tensor) -> bool:
    """All rows equal, up to the rounding of their mean (centring equal rows need not give exact zeros)."""
    return bool(torch.linalg.matrix_norm(centred) <= 1e-13 * torch.linalg.matrix_norm(whole))
