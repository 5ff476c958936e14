"""Ridge on standardised features, exact and streaming, its strength chosen without a test or validation clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from audiocl_bench.heads._inputs import State, check_features, check_labels, check_tensor, one_hot
from audiocl_bench.heads._linalg import CHUNK, cholesky, eigh, lower_gram_of_rows
from audiocl_bench.heads.ridge import RidgeHead

Scale = Literal["streaming", "first", "none"]
_System = tuple[Tensor, Tensor, Tensor | None, Tensor]

STRENGTHS: tuple[float, ...] = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 7))
"""Candidates of the ridge strength tau, 1e-5 to 1e3 in half decades; see `StandardisedRidge`."""


class StandardisedRidge:
    """Ridge regression to one-hot targets on features that are centred and divided by their standard deviation.

    The head of Strata; equations are numbered as in docs/strata.md.

    Mean and standard deviation are those of all rows seen so far, although rows are never seen again: with
    h = [(f - a) / b, 1] for any fixed a and b > 0, the sums H^T H and H^T Y hold count, mean and variance too. With the
    rotation [R Z] = U [H Y] (2) that `RidgeHead` keeps, and r the column of R that belongs to the constant 1,

        X = (I - r r^T / r^T r) R_f D,    Yc = (I - r r^T / r^T r) Z,    D = diag(1 / sigma)                    (3)

    are a rotation of the standardised features and the centred targets, since U (I - 1 1^T / n) U^T takes the part
    along r = U 1 away. Hence, exactly as if all rows were at hand,

        W = (X^T X + lam I)^-1 X^T Yc = X^T (X X^T + lam I)^-1 Yc,    lam = tau p                               (4)
        scores(f) = ybar + ((f - mean) D) W                                                                     (6)

    with p the number of features, so that tau means the same for any number of them. tau is the first minimum of
    generalised cross-validation (Golub, Heath and Wahba 1979) over all rows and classes seen so far, of which centring
    takes one degree of freedom: with the eigenvalues e_k > 0 of X X^T and the energy of Yc along each,

        GCV(tau) = m sum_k energy_k / (e_k + lam)^2 / (sum_k 1 / (e_k + lam))^2,    m = n - 1                   (5)

    Once rows outnumber features the same is computed from the Gram matrix. No clip is kept; a and b (mean and standard
    deviation of the first update) only condition the numbers.

    Args:
        width: number of features p.
        scale: whose standard deviation divides: "streaming" (all rows so far), "first" (the first update's) or "none".
        rank: keep only this many leading directions of R after every update (None: all, exact). Fewer kept bytes, and
            an approximation; mean and variance stay exact.
    """

    def __init__(self, width: int, *, scale: Scale = "streaming", rank: int | None = None) -> None:
        if width < 1 or (rank is not None and not 2 <= rank < width):
            raise ValueError(f"width must be at least 1 and rank lie in 2..{width - 1}, got {width} and {rank}.")
        self.width, self.scale, self.rank = width, scale, rank
        self._sums = RidgeHead(width + 1)
        self._shift = torch.zeros(width, dtype=torch.float64)
        self._divisor = torch.ones(width, dtype=torch.float64)
        self._moments = torch.zeros(2, width, dtype=torch.float64)  # sums of (f - a) / b and of its square
        self._counts = torch.zeros(0, dtype=torch.float64)  # rows of each class
        self._tau = float("nan")
        self._tuned_at = 0
        self._solution: tuple[Tensor, Tensor] | None = None  # weights [p, C] on (f - a) / b, and the constant [C]

    @property
    def num_samples(self) -> int:
        """Number of rows learnt so far."""
        return int(self._counts.sum())

    @property
    def tau(self) -> float:
        """Ridge strength in use; NaN before the first `tune` or `solve`."""
        return self._tau

    @property
    def nbytes(self) -> int:
        """Bytes kept between sessions, i.e. the size of `state_dict()`."""
        return sum(value.nbytes for value in self.state_dict().values())

    def update(self, F: Tensor, labels: Tensor, num_classes: int) -> None:
        """Learn rows `F` [n, p] (any float type) with integer `labels` [n] in [0, num_classes).

        Raises:
            ValueError: wrong shape, NaN or infinity, a label out of range, or fewer classes than before.
        """
        F = check_features(F, self.width)
        labels = check_labels(labels, len(F), num_classes, len(self._counts))
        if self.num_samples == 0 and len(F):
            self._shift = F.mean(0)
            spread = F.std(0, correction=0)
            self._divisor = torch.where(spread > 0, spread, 1.0)
        h = (F - self._shift) / self._divisor
        self._moments += torch.stack([h.sum(0), h.square().sum(0)])
        grown = torch.nn.functional.pad(self._counts, (0, num_classes - len(self._counts)))
        self._counts = grown + one_hot(labels, num_classes).sum(0)
        H = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
        if self.rank is None:
            self._sums.update(H, labels, num_classes)
        else:  # in parts, so that rows never outnumber features
            step = max(min(CHUNK, self.width - self.rank), 1)
            for start in range(0, max(len(H), 1), step):
                self._sums.update(H[start : start + step], labels[start : start + step], num_classes)
                self._sums.compress(self.rank)
        self._solution = None

    def tune(self, strengths: Sequence[float] = STRENGTHS, *, growth: float = 1.5) -> float:
        """Choose tau by (5) once the data has grown by `growth` since the last choice, solve, and return tau.

        Raises:
            ValueError: fewer than two rows were learnt.
        """
        if self.num_samples < 2:
            raise ValueError("the head has learnt fewer than two rows: call update first.")
        if np.isnan(self._tau) or self.num_samples >= growth * self._tuned_at:
            system = self._system()
            errors = self._errors(system, strengths)
            self._fit(system, _check_strength(strengths[int(np.argmin(errors))]))
            self._tuned_at = self.num_samples
        elif self._solution is None:
            self._fit(self._system(), self._tau)
        return self._tau

    def cross_validation(self, strengths: Sequence[float] = STRENGTHS) -> list[float]:
        """Return GCV (5) for every strength tau: an estimate of the squared error on rows not seen."""
        return self._errors(self._system(), strengths)

    def _errors(self, system: _System, strengths: Sequence[float]) -> list[float]:
        m = self.num_samples - 1
        A, B, X, _ = system
        if X is not None:
            values, U = eigh(A)
            known = values > values[-1] * len(X) * torch.finfo(values.dtype).eps  # centring has left a null direction
            values, energy = values[known], (U[:, known].T @ B).square().sum(1)
        else:
            values, V = eigh(A)
            known = values > values[-1] * self.width * torch.finfo(values.dtype).eps
            values, energy = values[known], (V[:, known].T @ B).square().sum(1) / values[known]
        # What no ridge fits: nothing where X has as many directions as the centred targets.
        total = float(self.num_samples - self._counts.square().sum() / self.num_samples)  # ||Yc||^2
        outside = max(total - float(energy.sum()), 0.0) if len(values) < m else 0.0
        errors = []
        for tau in strengths:
            lam = tau * self.width
            # Everything over lam: the smallest ridges keep their digits.
            free = float((1 / (values + lam)).sum()) + (m - len(values)) / lam
            errors.append(m * (float((energy / (values + lam).square()).sum()) + outside / lam**2) / free**2)
        return errors

    def solve(self, tau: float) -> None:
        """Fit (4) with strength `tau` > 0 to everything seen, for `logits`.

        Raises:
            ValueError: tau is not positive, or nothing was learnt.
        """
        tau = _check_strength(tau)
        if self.num_samples == 0:
            raise ValueError("the head has learnt nothing yet: call update first.")
        self._fit(self._system(), tau)

    def _fit(self, system: _System, tau: float) -> None:
        self._tau = tau
        A, B, X, inverse = system
        W = _solve(A, B, tau * self.width)
        if X is not None:
            W = X.T @ W
        weights = W * inverse[:, None]  # on (f - a) / b instead of (f - mean) / sigma
        mean = self._moments[0] / self.num_samples
        self._solution = weights, self._counts / self.num_samples - mean @ weights

    def logits(self, F: Tensor) -> Tensor:
        """Return (6) [n, C] in float64 for rows `F` [n, p], solving again where data came since.

        Raises:
            ValueError: wrong shape, NaN or infinity, or neither `tune` nor `solve` was ever called.
        """
        if np.isnan(self._tau):
            raise ValueError("the head has no ridge strength yet: call tune or solve first.")
        if self._solution is None:
            self.solve(self._tau)
        assert self._solution is not None
        weights, constant = self._solution
        return (check_features(F, self.width) - self._shift) / self._divisor @ weights + constant

    def _inverse_deviation(self) -> Tensor:
        """1 / sigma of (f - a) / b, [p]; 0 for a feature that never varied, which then takes no part."""
        mean, square = self._moments / self.num_samples
        variance = square - mean.square()
        varies = variance > square * 1e-12  # below it, the difference of two sums is rounding
        if self.scale == "first":  # b is already the first update's deviation
            return varies.double()
        # "none": the features' own units, up to one common factor that keeps tau's meaning (mean variance 1).
        wanted = variance * self._divisor.square()
        common = wanted[varies].mean() if bool(varies.any()) else wanted.new_ones(())
        plain = self._divisor / common.sqrt()
        return torch.where(varies, variance.rsqrt() if self.scale == "streaming" else plain, 0.0)

    def _system(self) -> _System:
        """Return X X^T, Yc, X and 1 / sigma while statistics are rows, else X^T X, X^T Yc, None and 1 / sigma.

        Every new row moves mean and deviation of all features, so all of X changes and no factor of an earlier session
        can be grown; the product is made once for the choice of tau and the fit.
        """
        if self._sums.form == "gram":
            S, Q, inverse = self._standardised_gram()
            return S, Q, None, inverse
        X, Yc, inverse = self._standardised_rows()
        return lower_gram_of_rows(X), Yc, X, inverse

    def _standardised_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return X and Yc of (3), and 1 / sigma."""
        R, Z = self._sums.rows()
        r, inverse = R[:, -1:], self._inverse_deviation()
        unit = r / r.norm()
        X = (R[:, :-1] - unit @ (unit.T @ R[:, :-1])) * inverse
        return X, Z - unit @ (unit.T @ Z), inverse

    def _standardised_gram(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return X^T X, X^T Yc and 1 / sigma from the sums H^T H and H^T Y."""
        G, Q = self._sums.gram()
        inverse, n = self._inverse_deviation(), self.num_samples
        total = self._moments[0]
        S = (G[:-1, :-1] - torch.outer(total, total) / n) * inverse[:, None] * inverse
        return S, (Q[:-1] - torch.outer(total, self._counts) / n) * inverse[:, None], inverse

    def state_dict(self) -> State:
        """Return everything kept, as plain tensors; `load_state_dict` continues bit for bit."""
        sums = {f"sums.{name}": value for name, value in self._sums.state_dict().items()}
        return sums | {
            "affine": torch.stack([self._shift, self._divisor]),
            "moments": self._moments.clone(),
            "counts": self._counts.clone(),
            "tau": torch.tensor([self._tau, self._tuned_at], dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict()` of a head of the same settings returned.

        Raises:
            ValueError: an entry is missing or has another type or shape.
        """
        affine = check_tensor(state, "affine", (2, self.width), torch.float64)
        moments = check_tensor(state, "moments", (2, self.width), torch.float64)
        counts = check_tensor(state, "counts", (None,), torch.float64)
        tau, tuned_at = check_tensor(state, "tau", (2,), torch.float64).tolist()
        sums = RidgeHead(self.width + 1)
        sums.load_state_dict(
            {name.removeprefix("sums."): value for name, value in state.items() if name.startswith("sums.")}
        )
        self._sums, self._moments, self._counts = sums, moments.clone(), counts.clone()
        self._shift, self._divisor = affine[0].clone(), affine[1].clone()
        self._tau, self._tuned_at, self._solution = float(tau), int(tuned_at), None


def _check_strength(tau: float) -> float:
    if not (tau > 0 and np.isfinite(tau)):
        raise ValueError(f"the ridge strength must be positive and finite, got {tau}.")
    return float(tau)


def _solve(A: Tensor, B: Tensor, lam: float) -> Tensor:
    """Return (A + lam I)^-1 B for a positive semi-definite A."""
    shifted = A.clone()
    shifted.diagonal().add_(lam)
    factor = cholesky(shifted)
    if factor is not None:
        return torch.cholesky_solve(B, factor)
    values, vectors = eigh(A)  # lam is below the rounding of A
    return vectors @ ((vectors.T @ B) / (values + lam)[:, None])
