"""Classifiers made of class means: nearest class mean and linear discriminant analysis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from audiocl_bench.heads import _linalg
from audiocl_bench.heads._inputs import State, check_features, check_labels, check_tensor, grow_rows, total_bytes
from audiocl_bench.heads._linalg import add_gram, cholesky, pack_lower, unpack_lower


class _ClassMeans(ABC):
    """Streaming class sums s_c [C, width] and counts n_c [C]."""

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        self.width = width
        self._sums = torch.zeros(0, width, dtype=torch.float64)
        self._counts = torch.zeros(0, dtype=torch.int64)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self._sums.shape[0]

    @property
    def num_samples(self) -> int:
        """Number of rows learnt so far."""
        return int(self._counts.sum())

    @property
    def counts(self) -> Tensor:
        """Rows learnt per class, int64 [C]."""
        return self._counts.clone()

    @property
    def means(self) -> Tensor:
        """Class means [C, width]; zero for a class without samples."""
        return self._sums / self._counts.clamp(min=1)[:, None]

    @property
    def nbytes(self) -> int:
        """Bytes kept between sessions, i.e. the size of `state_dict()`."""
        return total_bytes(self.state_dict())

    def update(self, H: Tensor, labels: Tensor, num_classes: int) -> None:
        """Learn rows `H` [n, width] (any float type) with integer `labels` [n] in [0, num_classes); n may be 0.

        Raises:
            ValueError: wrong shape, NaN or infinity, a label out of range, or fewer classes than before.
        """
        H = check_features(H, self.width)
        labels = check_labels(labels, H.shape[0], num_classes, self.num_classes)
        self._sums = grow_rows(self._sums, num_classes)
        self._counts = grow_rows(self._counts, num_classes)
        self._sums = self._sums.index_add(0, labels, H)
        self._counts = self._counts + torch.bincount(labels, minlength=num_classes)

    def logits(self, H: Tensor) -> Tensor:
        """Return float64 scores [n, C] for rows `H` [n, width]; a class without samples scores -inf."""
        H = check_features(H, self.width)
        if self.num_samples == 0:
            raise ValueError("the head has learnt nothing yet: call update first.")
        return self._scores(H).masked_fill(self._counts == 0, -torch.inf)

    @abstractmethod
    def _scores(self, H: Tensor) -> Tensor: ...

    def predict(self, H: Tensor) -> Tensor:
        """Return the class with the largest score, int64 [n]."""
        return self.logits(H).argmax(1)

    def state_dict(self) -> State:
        """Return everything kept, as plain tensors."""
        return {"sums": self._sums.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict()` of a head of the same width returned.

        Raises:
            ValueError: an entry is missing or has another type or shape.
        """
        counts = check_tensor(state, "counts", (None,), torch.int64)
        self._sums = check_tensor(state, "sums", (len(counts), self.width), torch.float64)
        self._counts = counts


class NCMHead(_ClassMeans):
    """Nearest class mean over raw features (SimpleCIL: cosine to the raw means, scale 1).

    The mean is taken first and normalised afterwards. Scores are cosines, or negative squared Euclidean distances.
    A zero vector has cosine 0 to everything. Keeps C x width sums and C counts.

    Args:
        width: number of features.
        metric: "cosine" (SimpleCIL) or "euclidean".
    """

    def __init__(self, width: int, *, metric: Literal["cosine", "euclidean"] = "cosine") -> None:
        if metric not in ("cosine", "euclidean"):
            raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}.")
        super().__init__(width)
        self.metric = metric

    def _scores(self, H: Tensor) -> Tensor:
        means = self.means
        if self.metric == "cosine":
            return _unit(H) @ _unit(means).T  # SimpleCIL: cos(f0(x), p_c)
        return -torch.cdist(H, means, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _unit(X: Tensor) -> Tensor:
    """Return rows of unit length; zero rows stay zero. Scaled by the largest entry first, so squares never overflow."""
    largest = X.abs().amax(1, keepdim=True)
    X = X / torch.where(largest > 0, largest, 1.0)
    norm = X.norm(dim=1, keepdim=True)
    return X / torch.where(norm > 0, norm, 1.0)


class LDAHead(_ClassMeans):
    """Linear discriminant analysis with one shared covariance, streaming and exact (FSA's head).

    logits = z^T w_c + b_c with w_c = S^-1 mu_c, b_c = -1/2 mu_c^T S^-1 mu_c, S = cov + shrink I, no class priors.
    Keeps n_c, s_c and M2 = sum z z^T (lower triangle).

    Args:
        width: number of features.
        cov: "within" (classical LDA: pooled within-class, n - C degrees of freedom) or "total" (FSA's released code:
            covariance of all features pooled, n - 1).
        shrink: the multiple of the identity that is added (FSA: 1, absolute, so rescaling features changes the model).
    """

    def __init__(self, width: int, *, cov: Literal["within", "total"] = "within", shrink: float = 1.0) -> None:
        if cov not in ("within", "total"):
            raise ValueError(f"cov must be 'within' or 'total', got {cov!r}.")
        if not (np.isfinite(shrink) and shrink >= 0):
            raise ValueError(f"shrink must be finite and not negative, got {shrink}.")
        super().__init__(width)
        self.cov = cov
        self.shrink = float(shrink)
        self._M2 = torch.zeros(width, width, dtype=torch.float64)
        self._solved: tuple[Tensor, Tensor] | None = None

    def update(self, H: Tensor, labels: Tensor, num_classes: int) -> None:
        """Learn rows `H` [n, width] with integer `labels` [n] in [0, num_classes), see `NCMHead.update`."""
        H = check_features(H, self.width)
        super().update(H, labels, num_classes)
        self._solved = None
        for start in range(0, H.shape[0], _linalg.CHUNK):
            add_gram(self._M2, H[start : start + _linalg.CHUNK])

    def covariance(self) -> Tensor:
        """Return the shared covariance [width, width] without the shrinkage.

        With no degrees of freedom left (one row per class, or one row in all) it is zero.
        """
        n = self.num_samples
        M2 = torch.tril(self._M2) + torch.tril(self._M2, -1).T
        if self.cov == "total":  # (M2 - s s^T / n) / (n - 1)
            total = self._sums.sum(0)
            freedom, explained = n - 1, torch.outer(total, total) / max(n, 1)
        else:  # (M2 - sum_c s_c s_c^T / n_c) / (n - C)
            freedom = n - int((self._counts > 0).sum())
            explained = self._sums.T @ self.means
        if freedom < 1:
            return torch.zeros_like(M2)
        scatter = (M2 - explained) / freedom
        return (scatter + scatter.T) / 2

    def _discriminants(self) -> tuple[Tensor, Tensor]:
        """Return (w [width, C], b [C])."""
        if self._solved is None:
            S = self.covariance()
            S.diagonal().add_(self.shrink)
            L = cholesky(S)
            if L is None:
                raise ValueError(
                    f"the shared covariance of {self.num_samples} rows in {self.width} dimensions is singular: "
                    f"raise shrink above {self.shrink:g} (FSA uses 1)."
                )
            means = self.means
            w = torch.cholesky_solve(means.T, L)  # FSA: w_c = S^-1 mu_c
            self._solved = w, -0.5 * (means.T * w).sum(0)  # FSA: b_c = -1/2 mu_c^T S^-1 mu_c
        return self._solved

    def _scores(self, H: Tensor) -> Tensor:
        w, b = self._discriminants()
        return H @ w + b

    def state_dict(self) -> State:
        """Return everything kept, as plain tensors."""
        return super().state_dict() | {"M2": pack_lower(self._M2)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict()` of a head of the same width returned.

        Raises:
            ValueError: an entry is missing or has another type or shape.
        """
        packed = check_tensor(state, "M2", (self.width * (self.width + 1) // 2,), torch.float64)
        super().load_state_dict(state)
        self._M2 = unpack_lower(packed, self.width)
        self._solved = None
