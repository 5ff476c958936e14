"""Class statistics to draw features of earlier classes from, where their clips may no longer be read.

Sources: HiDe-Prompt (Wang et al., NeurIPS 2023; official code, `ca_storage_efficient_method`), SLCA (Zhang et al.,
ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from audiocl_bench import seeding
from audiocl_bench.heads._inputs import State, check_features, check_labels, check_tensor, total_bytes
from audiocl_bench.heads._linalg import cholesky

Kind = Literal["covariance", "variance", "multi-centroid"]


class ClassGaussians:
    """One Gaussian per class, or one per centroid of a class; float64 statistics, taken once per class.

    "covariance": mean and covariance (n - 1 degrees of freedom) of a class. "variance": its diagonal. "multi-centroid":
    k-means splits a class, every centroid keeps its mean and the variance (n degrees of freedom, as published) of each
    feature around it. `jitter` is added to every variance wherever statistics are used. A single clip has variance 0,
    so a class of one clip is a ball of radius sqrt(jitter) around it.

    Args:
        width: number of features D.
        kind: see above.
        centroids: most centroids of a class. A class of n clips gets at most n / 2 (at least 1), since a centroid of
            one clip has no spread, and no more than it has different clips.
        jitter: added to the diagonal (official code: 1e-4), so that 30 clips in 768 dimensions can be drawn from.

    Raises:
        ValueError: a size below 1, a jitter that is not positive and finite, or an unknown kind.
    """

    def __init__(self, width: int, *, kind: Kind = "covariance", centroids: int = 10, jitter: float = 1e-4) -> None:
        if width < 1 or centroids < 1:
            raise ValueError(f"width and centroids must be at least 1, got {width} and {centroids}.")
        if kind not in ("covariance", "variance", "multi-centroid"):
            raise ValueError(f"kind must be 'covariance', 'variance' or 'multi-centroid', got {kind!r}.")
        if not (np.isfinite(jitter) and jitter > 0):
            raise ValueError(f"jitter must be positive and finite, got {jitter}.")
        self.width, self.kind, self.centroids, self.jitter = width, kind, centroids, float(jitter)
        # Component k stands for `size[k]` clips of class `owner[k]`; a covariance is kept as its lower triangle.
        self._owner = torch.zeros(0, dtype=torch.int64)
        self._size = torch.zeros(0, dtype=torch.int64)
        self._means = torch.zeros(0, width, dtype=torch.float64)
        self._spread = torch.zeros(0, self._spread_width, dtype=torch.float64)
        self._factors: dict[int, Tensor] = {}

    @property
    def _spread_width(self) -> int:
        return self.width * (self.width + 1) // 2 if self.kind == "covariance" else self.width

    @property
    def num_classes(self) -> int:
        """One more than the largest label learnt."""
        return int(self._owner.max()) + 1 if len(self._owner) else 0

    @property
    def counts(self) -> Tensor:
        """Rows learnt per class, int64 [C]."""
        return torch.zeros(self.num_classes, dtype=torch.int64).index_add(0, self._owner, self._size)

    @property
    def means(self) -> Tensor:
        """Class means, float64 [C, width]; zero for a class without rows."""
        sums = torch.zeros(self.num_classes, self.width, dtype=torch.float64)
        sums = sums.index_add(0, self._owner, self._means * self._size[:, None])
        return sums / self.counts.clamp(min=1)[:, None]

    @property
    def centres(self) -> Tensor:
        """Means of all components, float64 [K, width]: the class means, or all classes' centroids."""
        return self._means.clone()

    @property
    def owners(self) -> Tensor:
        """The class of every component, int64 [K]."""
        return self._owner.clone()

    @property
    def nbytes(self) -> int:
        """Bytes kept between sessions, i.e. the size of `state_dict()`."""
        return total_bytes(self.state_dict())

    def update(self, H: Tensor, labels: Tensor, *, seed: int = 0) -> None:
        """Learn all rows `H` [n, width] (any float type) of some classes, with integer `labels` [n]; n may be 0.

        Args:
            H: features.
            labels: their classes; a class is learnt once, with all of its rows.
            seed: of k-means, which is seeded by (seed, class) and so does not depend on the other classes.

        Raises:
            ValueError: wrong shape, NaN or infinity, a negative label, or a class that has statistics already.
        """
        H = check_features(H, self.width)
        labels = check_labels(labels, H.shape[0], int(labels.max()) + 1 if len(labels) else 1)
        for label in labels.unique().tolist():
            if bool((self._owner == label).any()):
                raise ValueError(f"class {label} has statistics already: give all rows of a class at once.")
        with self._one_thread():
            for label in labels.unique().tolist():
                rows = H[labels == label]
                parts = self._split(rows, seed, label) if self.kind == "multi-centroid" else [rows]
                self._owner = torch.cat([self._owner, torch.full((len(parts),), label)])
                self._size = torch.cat([self._size, torch.tensor([len(part) for part in parts])])
                self._means = torch.cat([self._means, torch.stack([part.mean(0) for part in parts])])
                self._spread = torch.cat([self._spread, torch.stack([self._spread_of(part) for part in parts])])
        self._factors = {}

    def _one_thread(self) -> AbstractContextManager[Any]:
        """Keep k-means on one thread: sums over several round in a different order every time."""
        if self.kind != "multi-centroid":
            return nullcontext()
        # Here and below: loading scikit-learn takes as long as loading torch, and only k-means needs it.
        from threadpoolctl import threadpool_limits

        return threadpool_limits(limits=1)

    def _split(self, rows: Tensor, seed: int, label: int) -> list[Tensor]:
        """Split a class's rows [n, width] by k-means."""
        points = rows.numpy()
        k = min(self.centroids, max(1, len(points) // 2), len(np.unique(points, axis=0)))
        if k == 1:
            return [rows]
        from sklearn.cluster import KMeans

        state = int(seeding.numpy_generator(seed, "k-means", label).integers(2**32))
        # 10 starts: scikit-learn's default when the official code was written
        found = KMeans(k, n_init=10, random_state=state).fit(points).labels_
        return [rows[torch.from_numpy(found == part)] for part in np.unique(found)]

    def _spread_of(self, rows: Tensor) -> Tensor:
        """Return the lower triangle of the covariance [width (width + 1) / 2], or the variances [width]."""
        if len(rows) == 1:
            return rows.new_zeros(self._spread_width)
        if self.kind == "covariance":
            row, column = torch.tril_indices(self.width, self.width)
            return torch.cov(rows.T).reshape(self.width, self.width)[row, column]
        return rows.var(0, correction=1 if self.kind == "variance" else 0)

    def components(self, label: int) -> tuple[Tensor, Tensor]:
        """Return a class's means [k, width] and covariances [k, width, width] with the jitter, float64.

        k is 1 unless the kind is "multi-centroid". The last two axes are diagonal unless the kind is "covariance".

        Raises:
            ValueError: the class has no statistics.
        """
        mine = self._owner == label
        if not bool(mine.any()):
            raise ValueError(f"class {label} has no statistics: call update with its rows first.")
        spread = self._spread[mine]
        covariance = torch.stack([self._matrix(part) for part in spread])
        return self._means[mine].clone(), covariance

    def _matrix(self, spread: Tensor) -> Tensor:
        """Return a component's covariance [width, width] with the jitter."""
        if self.kind != "covariance":
            return torch.diag(spread + self.jitter)
        row, column = torch.tril_indices(self.width, self.width)
        lower = spread.new_zeros(self.width, self.width)
        lower[row, column] = spread
        full = lower + torch.tril(lower, -1).T
        full.diagonal().add_(self.jitter)
        return full

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one feature for each of `labels` [n], float32 [n, width], with a CPU generator.

        A class's centroids are equally likely, whatever their size (official code: equally many draws of each);
        centroids without spread are left out (as there), unless the class has no other.

        Raises:
            ValueError: a class has no statistics.
        """
        labels = check_labels(labels, len(labels), max(self.num_classes, int(labels.max()) + 1) if len(labels) else 1)
        first, number, order = self._choices(labels)
        pick = torch.rand(len(labels), generator=generator, dtype=torch.float64)
        component = order[first + torch.minimum((pick * number).long(), number - 1)]
        noise = torch.randn(len(labels), self.width, generator=generator, dtype=torch.float64)
        if self.kind != "covariance":
            drawn = self._means[component] + (self._spread[component] + self.jitter).sqrt() * noise
            return drawn.float()
        drawn = self._means[component].float()
        noise = noise.float()
        for k in component.unique().tolist():
            rows = component == k
            drawn[rows] += noise[rows] @ self._factor(k).T  # mu + L z has covariance L L^T
        return drawn

    def _choices(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return, per label, where its components begin and how many there are; and the numbers of components."""
        spreads = self._spread.mean(1) > 0
        lively = torch.zeros(max(self.num_classes, 1), dtype=torch.bool)
        lively[self._owner[spreads]] = True
        usable = (spreads | ~lively[self._owner]).nonzero().flatten()
        owner, position = self._owner[usable].sort(stable=True)
        first = torch.searchsorted(owner, labels)
        number = torch.searchsorted(owner, labels, right=True) - first
        if bool((number == 0).any()):
            raise ValueError(f"class {int(labels[number == 0][0])} has no statistics: call update with its rows first.")
        return first, number, usable[position]

    def _factor(self, component: int) -> Tensor:
        """Return the Cholesky factor of a component's covariance, float32; kept, since epochs draw from it again."""
        if component not in self._factors:
            factor = cholesky(self._matrix(self._spread[component]))
            if factor is None:
                raise ValueError(
                    f"the covariance of class {int(self._owner[component])} is not positive definite even with "
                    f"{self.jitter:g} added to its diagonal: raise the jitter."
                )
            self._factors[component] = factor.float()
        return self._factors[component]

    def state_dict(self) -> State:
        """Return everything kept, as plain tensors."""
        return {
            "owner": self._owner.clone(),
            "size": self._size.clone(),
            "means": self._means.clone(),
            "spread": self._spread.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict()` of statistics of the same width and kind returned.

        Raises:
            ValueError: an entry is missing or has another type or shape.
        """
        owner = check_tensor(state, "owner", (None,), torch.int64)
        size = check_tensor(state, "size", (len(owner),), torch.int64)
        means = check_tensor(state, "means", (len(owner), self.width), torch.float64)
        self._spread = check_tensor(state, "spread", (len(owner), self._spread_width), torch.float64)
        self._owner, self._size, self._means = owner, size, means
        self._factors = {}
