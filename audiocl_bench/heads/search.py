"""Choosing the ridge: one factorisation for the whole path, hold-out or exact leave-one-out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from audiocl_bench.heads._inputs import check_features, check_labels, check_ridge, one_hot
from audiocl_bench.heads._linalg import add_gram, cholesky, eigh
from audiocl_bench.seeding import numpy_generator

LAMBDAS: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-8, 9))
"""RanPAC's 17 ridge candidates, 1e-8 to 1e8."""

_EIGH_LIMIT = 2048  # above it, 17 Cholesky factorisations of a Gram matrix take less time than its eigenvectors


@dataclass(frozen=True)
class RidgeChoice:
    """Outcome of a search over ridges: the chosen one, all candidates and their mean squared errors."""

    lam: float
    lambdas: tuple[float, ...]
    mse: tuple[float, ...]


def first_minimum(lambdas: Sequence[float], errors: Sequence[float]) -> RidgeChoice:
    """Return the first minimum among finite errors (`np.argmin` alone would return the position of a NaN)."""
    safe = np.where(np.isfinite(errors), errors, np.inf)
    if not np.isfinite(safe).any():
        raise ValueError(
            "no ridge candidate has a finite validation error: the features are too large for float64 or not finite; "
            "check the backbone's outputs."
        )
    return RidgeChoice(float(lambdas[int(np.argmin(safe))]), tuple(map(float, lambdas)), tuple(map(float, errors)))


def candidates_of(lambdas: Sequence[float]) -> tuple[float, ...]:
    """Return the candidates as checked floats; ValueError for none, or one that is not positive and finite."""
    if not len(lambdas):
        raise ValueError("the list of ridge candidates is empty.")
    return tuple(check_ridge(lam) for lam in lambdas)


def ridge_path(
    H_fit: Tensor, Y_fit: Tensor, H_val: Tensor, Y_val: Tensor, lambdas: Sequence[float] = LAMBDAS
) -> RidgeChoice:
    """Fit ridge for every candidate with one eigendecomposition and choose by validation error (RanPAC's criterion).

    Args:
        H_fit: features [n, width] to fit, with targets Y_fit [n, C].
        Y_fit: one-hot targets; all columns seen so far, so that old classes count as zeros.
        H_val: features [v, width] to validate, v >= 1.
        Y_val: one-hot targets [v, C].
        lambdas: candidates, each > 0.

    Returns:
        The first minimum of mean((H_val W(lam) - Y_val)^2) over all v x C entries; non-finite errors never win.

    Raises:
        ValueError: shapes disagree, an input is not finite, or every error is non-finite.
    """
    lambdas = candidates_of(lambdas)
    H_fit = check_features(H_fit, None, "H_fit")
    H_val = check_features(H_val, H_fit.shape[1], "H_val")
    Y_fit = check_features(Y_fit, None, "Y_fit")
    Y_val = check_features(Y_val, Y_fit.shape[1], "Y_val")
    if len(H_fit) != len(Y_fit) or len(H_val) != len(Y_val):
        raise ValueError("features and targets must have the same number of rows.")
    if not len(H_fit) or not len(H_val):
        raise ValueError("the ridge search needs at least one row to fit and one to validate.")
    if H_fit.shape[0] < H_fit.shape[1]:
        values, U = eigh(H_fit @ H_fit.T)
        left = (H_val @ H_fit.T) @ U  # H_val W(lam) = H_val H^T U diag(1 / (e + lam)) U^T Y
        right = U.T @ Y_fit
    else:
        G, Q = torch.zeros(H_fit.shape[1], H_fit.shape[1], dtype=torch.float64), H_fit.T @ Y_fit
        add_gram(G, H_fit)
        direct = _cholesky_path(G, Q, H_val, Y_val, lambdas) if len(G) > _EIGH_LIMIT else None
        if direct is not None:
            return first_minimum(lambdas, direct)
        values, V = eigh(G)
        left = H_val @ V  # H_val W(lam) = H_val V diag(1 / (e + lam)) V^T H^T Y
        right = V.T @ Q
    errors = [float((left @ (right / (values + lam)[:, None]) - Y_val).square_().mean()) for lam in lambdas]
    return first_minimum(lambdas, errors)


def _cholesky_path(G: Tensor, Q: Tensor, H_val: Tensor, Y_val: Tensor, lambdas: Sequence[float]) -> list[float] | None:
    """Return the validation errors from one Cholesky per candidate, None where a candidate is below G's rounding."""
    errors = []
    for lam in lambdas:
        A = G.clone()
        A.diagonal().add_(lam)
        L = cholesky(A)
        if L is None:
            return None
        errors.append(float((H_val @ torch.cholesky_solve(Q, L) - Y_val).square_().mean()))
    return errors


def ridge_loo(H: Tensor, Y: Tensor, lambdas: Sequence[float] = LAMBDAS) -> RidgeChoice:
    """Choose the ridge by the exact leave-one-out error of all candidates, from one eigendecomposition (PRESS).

    The error of row i under the model fitted to all other rows is (y_i - yhat_i) / (1 - h_ii) with the hat matrix
    h = H (H^T H + lam I)^-1 H^T; its dual form [(K + lam I)^-1 Y]_i / [(K + lam I)^-1]_ii is free of cancellation.

    Args:
        H: features [n, width], n >= 2.
        Y: one-hot targets [n, C].
        lambdas: candidates, each > 0.

    Raises:
        ValueError: shapes disagree, an input is not finite, or every error is non-finite.
    """
    lambdas = candidates_of(lambdas)
    H = check_features(H, None, "H")
    Y = check_features(Y, None, "Y")
    if len(H) != len(Y) or len(H) < 2:
        raise ValueError("leave-one-out needs features and targets of the same number of rows, at least two.")
    errors = []
    if H.shape[0] <= H.shape[1]:
        values, U = eigh(H @ H.T)
        B, U2 = U.T @ Y, U.square()
        for lam in lambdas:
            shrunk = 1.0 / (values + lam)
            residual = (U @ (B * shrunk[:, None])) / (U2 @ shrunk)[:, None]
            errors.append(float(residual.square_().mean()))
    else:
        values, V = eigh(H.T @ H)
        P = H @ V
        B, P2 = P.T @ Y, P.square()
        for lam in lambdas:
            shrunk = 1.0 / (values + lam)
            residual = (Y - P @ (B * shrunk[:, None])) / (1.0 - P2 @ shrunk)[:, None]
            errors.append(float(residual.square_().mean()))
    return first_minimum(lambdas, errors)


def holdout(
    labels: Tensor,
    *,
    seed: int,
    purpose: Sequence[str | int] = ("ridge", "holdout"),
    fraction: float = 0.2,
    stratified: bool = True,
) -> tuple[Tensor, Tensor]:
    """Split rows into (fit, validation) positions, both sorted int64.

    Stratified: every class gives round(fraction x its rows) rows, at least one and never all, so no class is missing
    from either side; a class with a single row stays in fit. Otherwise RanPAC's own rule: shuffle, first 1 - fraction
    fit, which on small sessions can lose whole classes.

    Raises:
        ValueError: the fraction is not inside (0, 1), or no row is left for one side.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"the validation fraction must lie between 0 and 1, got {fraction}.")
    y = np.asarray(torch.as_tensor(labels).cpu())
    generator = numpy_generator(seed, *purpose)
    order = generator.permutation(len(y))
    chosen = np.zeros(len(y), dtype=bool)
    if stratified:
        for label in np.unique(y):
            members = order[y[order] == label]
            if len(members) > 1:
                count = min(max(1, int(np.floor(fraction * len(members) + 0.5))), len(members) - 1)
                chosen[members[:count]] = True
    else:
        chosen[order[int((1.0 - fraction) * len(y)) :]] = True
    if not chosen.any() or chosen.all():
        raise ValueError(
            "the session is too small for a validation split (every class has one clip): use leave-one-out."
        )
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


def choose_lambda(
    H: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seed: int,
    purpose: Sequence[str | int] = ("ridge", "holdout"),
    criterion: Literal["holdout", "loo"] = "holdout",
    fraction: float = 0.2,
    stratified: bool = True,
    lambdas: Sequence[float] = LAMBDAS,
) -> RidgeChoice:
    """Choose the ridge on one session's training rows alone (RanPAC: 80/20 of the current session, MSE to one-hot).

    A session with one row a class cannot be split: it falls back to "loo".

    Args:
        H: features [n, width] of the session.
        labels: integers [n] in [0, num_classes).
        num_classes: all classes seen so far; the error is averaged over all their columns.
        seed: run seed of the split ("loo" draws nothing).
        purpose: what else the draw depends on, for example the session number.
        criterion: "holdout" (RanPAC) or "loo" (exact leave-one-out, no draw, uses every clip on both sides).
        fraction: share of validation rows.
        stratified: split class by class, see `holdout`.
        lambdas: candidates.

    Raises:
        ValueError: bad shapes, labels, fraction or criterion, or a session too small to split.
    """
    H = check_features(H, None)
    Y = one_hot(check_labels(labels, H.shape[0], num_classes), num_classes)
    if criterion not in ("holdout", "loo"):
        raise ValueError(f"criterion must be 'holdout' or 'loo', got {criterion!r}.")
    if criterion == "loo" or float(Y.sum(0).max()) <= 1:
        return ridge_loo(H, Y, lambdas)
    fit, val = holdout(labels, seed=seed, purpose=purpose, fraction=fraction, stratified=stratified)
    return ridge_path(H[fit], Y[fit], H[val], Y[val], lambdas)
