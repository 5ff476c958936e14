"""Closed-form classifiers on frozen features: ridge on random ReLU features, nearest class mean, LDA.

Everything here is float64, exact and streaming: a head that saw its data session by session, in any order and in any
batch size, equals the head that saw the union at once up to rounding. No head keeps a clip; `state_dict()` is all that
a head keeps and `nbytes` is its size.

Sources: RanPAC (McDonnell et al. 2023; official code, `M`, `lambda` grid, 80/20 choice), ACIL (Zhuang et al. 2022;
official code, `gamma`, buffer), PACE (arXiv 2602.03355, Eq 2 and 3), SimpleCIL, FSA (Panos et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from audiocl_bench.errors import CheckpointError
from audiocl_bench.seeding import numpy_generator

LAMBDAS: tuple[float, ...] = tuple(10.0**exponent for exponent in range(-8, 9))
"""RanPAC's 17 ridge candidates, 1e-8 to 1e8."""

_CHUNK = 512  # rows handled at once: bounds the working memory of an update to a few chunks of features
_PANEL = 512  # edge of the square tiles in the triangular solves and in the lower triangle of a Gram matrix
_EIGH_LIMIT = 2048  # above it, 17 Cholesky factorisations of a Gram matrix take less time than its eigenvectors

State = dict[str, Tensor]


# --------------------------------------------------------------------------------------------------- input checks


def _features(H: Tensor, width: int | None, name: str = "features") -> Tensor:
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


def _labels(labels: Tensor, rows: int, num_classes: int, seen: int = 0) -> Tensor:
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


def _ridge(lam: float) -> float:
    value = float(lam)
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"the ridge must be positive and finite, got {lam}.")
    return value


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return the float64 one-hot matrix [n, num_classes] of integer labels [n] (old classes' columns are zero)."""
    labels = _labels(labels, len(labels), num_classes)
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.float64)


def _tensor(state: Mapping[str, Any], key: str, shape: tuple[int | None, ...], kind: torch.dtype) -> Tensor:
    """Return `state[key]` after checking dtype and shape (None = any), or raise ValueError."""
    if key not in state:
        raise ValueError(f"the head's state lacks '{key}'.")
    value = state[key]
    fits = isinstance(value, Tensor) and value.dtype == kind and value.ndim == len(shape)
    if not fits or any(want is not None and want != got for want, got in zip(shape, value.shape, strict=True)):
        raise ValueError(f"the head's state '{key}' must be {kind} of shape {shape}.")
    return value.detach().to("cpu", copy=True).contiguous()


def _bytes(state: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values())


def _grow_rows(matrix: Tensor, rows: int) -> Tensor:
    """Return `matrix` with zero rows appended up to `rows`."""
    missing = rows - matrix.shape[0]
    return matrix if missing <= 0 else torch.cat([matrix, matrix.new_zeros(missing, *matrix.shape[1:])])


# --------------------------------------------------------------------------------------------- random projection


@dataclass(frozen=True, eq=False)
class RandomProjection:
    """A frozen random layer h = ReLU(f W), drawn once and never trained (RanPAC phase 2; ACIL "buffer").

    The matrix follows from the recipe (dim, width, scaling, seed, purpose), so checkpoints carry the recipe alone.

    Attributes:
        dim: number of features f coming in.
        width: number of random features h going out; 0 means identity (no projection, no ReLU).
        scaling: "ranpac" (entries N(0, 1)) or "acil" (entries U(-1/sqrt(dim), 1/sqrt(dim))). E[h^2] differs by the
            factor 3 dim (2304 at 768), so a ridge chosen under one scaling means nothing under the other.
        seed: seed of the run.
        purpose: what else the draw depends on, see `audiocl_bench.seeding`.
        matrix: W [dim, width] float64; empty for the identity.
    """

    dim: int
    width: int
    scaling: str
    seed: int
    purpose: tuple[str | int, ...]
    matrix: Tensor

    @classmethod
    def draw(
        cls,
        dim: int,
        width: int | None,
        *,
        scaling: Literal["ranpac", "acil"] = "ranpac",
        seed: int,
        purpose: Sequence[str | int] = ("projection",),
    ) -> RandomProjection:
        """Draw the layer. `width` 0 or None gives the identity.

        NumPy draws the entries: its streams do not depend on the processor's vector width, torch's normals do.

        Raises:
            ValueError: a size is negative, or the scaling is unknown.
        """
        width = width or 0
        if dim < 1 or width < 0:
            raise ValueError(f"a random projection needs dim >= 1 and width >= 0, got {dim} and {width}.")
        if scaling not in ("ranpac", "acil"):
            raise ValueError(f"scaling must be 'ranpac' or 'acil', got {scaling!r}.")
        generator = numpy_generator(seed, *purpose)
        if width == 0:
            drawn = np.zeros((dim, 0))
        elif scaling == "ranpac":
            drawn = generator.standard_normal((dim, width))  # RanPAC: W_r ~ N(0, 1), no bias, no scaling
        else:
            drawn = generator.uniform(-1.0, 1.0, (dim, width)) / np.sqrt(dim)  # ACIL: torch's Linear default, no bias
        return cls(dim, width, scaling, seed, tuple(purpose), torch.from_numpy(drawn))

    @property
    def out_width(self) -> int:
        """Number of columns that `__call__` returns: `width`, or `dim` for the identity."""
        return self.width or self.dim

    @property
    def nbytes(self) -> int:
        """Size of the drawn matrix in bytes (0 for the identity)."""
        return self.matrix.numel() * self.matrix.element_size()

    def __call__(self, features: Tensor) -> Tensor:
        """Return h = ReLU(f W) [n, width] in float64 for features [n, dim] of any float type (identity: f itself).

        Raises:
            ValueError: wrong shape, or not finite.
        """
        f = _features(features, self.dim)
        if self.width == 0:
            return f
        return torch.mm(f, self.matrix).relu_()  # RanPAC: h = ReLU(f W_r);  ACIL: phi(x) = ReLU(f W_b)

    def recipe(self) -> dict[str, Any]:
        """Return what `from_recipe` needs to draw the same matrix again, with a digest to prove that it did."""
        return {
            "dim": self.dim,
            "width": self.width,
            "scaling": self.scaling,
            "seed": self.seed,
            "purpose": list(self.purpose),
            "sha256": self.digest(),
        }

    def digest(self) -> str:
        """Return the SHA-256 of the matrix's bytes."""
        import hashlib

        return hashlib.sha256(np.ascontiguousarray(self.matrix.numpy()).data).hexdigest()

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> RandomProjection:
        """Draw the matrix of `recipe()` again.

        Raises:
            CheckpointError: this installation's NumPy draws other numbers than the one that wrote the recipe.
        """
        drawn = cls.draw(
            int(recipe["dim"]),
            int(recipe["width"]),
            scaling=recipe["scaling"],
            seed=int(recipe["seed"]),
            purpose=tuple(recipe["purpose"]),
        )
        if drawn.digest() != recipe["sha256"]:
            raise CheckpointError(
                f"the random projection of seed {drawn.seed} comes out differently here (NumPy {np.__version__}) than "
                "where the checkpoint was written: resume with the NumPy version named in its provenance."
            )
        return drawn


# --------------------------------------------------------------------------------------------- triangular algebra


def _lower_solve(L: Tensor, B: Tensor) -> Tensor:
    """Return L^-1 B for lower-triangular L [n, n], B [n, k]; reads L in place, tile by tile.

    `torch.linalg.solve_triangular` would first copy L, which is a view into a larger buffer here.
    """
    X = B.clone()
    for start in range(0, L.shape[0], _PANEL):
        stop = min(start + _PANEL, L.shape[0])
        if start:
            X[start:stop] -= L[start:stop, :start] @ X[:start]
        X[start:stop] = torch.linalg.solve_triangular(L[start:stop, start:stop], X[start:stop], upper=False)
    return X


def _lower_transposed_solve(L: Tensor, B: Tensor) -> Tensor:
    """Return L^-T B for lower-triangular L [n, n], B [n, k]; reads L in place, tile by tile."""
    X = B.clone()
    for start in reversed(range(0, L.shape[0], _PANEL)):
        stop = min(start + _PANEL, L.shape[0])
        if stop < L.shape[0]:
            X[start:stop] -= L[stop:, start:stop].T @ X[stop:]
        X[start:stop] = torch.linalg.solve_triangular(L[start:stop, start:stop].T, X[start:stop], upper=True)
    return X


def _cholesky(A: Tensor) -> Tensor | None:
    """Return the lower Cholesky factor of A (its lower triangle is read), or None if A is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(A)
    return None if int(failed) or not bool(torch.isfinite(factor.diagonal()).all()) else factor


def _eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Return (eigenvalues, eigenvectors) of a positive semi-definite A; rounding below zero is cut off."""
    values, vectors = torch.linalg.eigh(A, UPLO="L")
    return values.clamp_(min=0.0), vectors


def _add_gram(G: Tensor, H: Tensor) -> None:
    """Add H^T H to the lower triangle of G, tile row by tile row (half the work of the full product)."""
    for start in range(0, G.shape[0], _PANEL):
        stop = min(start + _PANEL, G.shape[0])
        G[start:stop, :stop].addmm_(H[:, start:stop].T, H[:, :stop])


def _pack_lower(G: Tensor) -> Tensor:
    """Return the lower triangle of G [m, m], row after row, as a vector [m (m + 1) / 2]."""
    packed = G.new_empty(G.shape[0] * (G.shape[0] + 1) // 2)
    start = 0
    for row in range(G.shape[0]):
        packed[start : start + row + 1] = G[row, : row + 1]
        start += row + 1
    return packed


def _unpack_lower(packed: Tensor, m: int) -> Tensor:
    """Undo `_pack_lower`; the strict upper triangle is zero."""
    G = packed.new_zeros(m, m)
    start = 0
    for row in range(m):
        G[row, : row + 1] = packed[start : start + row + 1]
        start += row + 1
    return G


# ------------------------------------------------------------------------------------------------------ ridge head


class RidgeHead:
    """Exact streaming ridge regression to one-hot targets (RanPAC, ACIL, PACE sec. 3.4).

    For all features H [n, width] and one-hot labels Y [n, C] seen so far, `solve(lam)` returns

        W = (H^T H + lam I)^-1 H^T Y                                        (RanPAC W_o; fixed point of PACE Eq 2 and 3)

    Two forms of the same statistics, changed over once and invisibly:

    * n < width: rows [R Z], block by block an orthogonal rotation of [H Y]. R^T R = H^T H and R^T Z = H^T Y, so W is
      unchanged, and each update's block is a function of that update's Gram matrix and class sums alone: single clips
      are not stored. W = R^T (R R^T + lam I)^-1 Z costs n^2 instead of width^2 per unknown, and with a fixed ridge
      the Cholesky factor of R R^T + lam I grows by the new rows only.
    * n >= width: G = H^T H (lower triangle) and Q = H^T Y, Cholesky of G + lam I.

    All features are float64 inside, whatever their type outside. Labels may appear in any order and classes may be
    added at any time; a class without samples has a zero column.

    Args:
        width: number of features.
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        self.width = width
        self._samples = 0
        self._classes = 0
        self._lam: float | None = None
        self._tuned_at = 0  # samples at the last `tune`
        self._weights: Tensor | None = None
        # Square-root form.
        self._rows = 0
        self._blocks: list[int] = []
        self._R = torch.empty(0, width, dtype=torch.float64)
        self._Z = torch.empty(0, 0, dtype=torch.float64)
        # Gram form.
        self._G: Tensor | None = None
        self._Q: Tensor | None = None
        # Derived from R, never saved: K = R R^T and L L^T = K + lam I, both [rows, rows] in growing buffers.
        self._K = torch.empty(0, 0, dtype=torch.float64)
        self._K_blocks = 0
        self._L = torch.empty(0, 0, dtype=torch.float64)
        self._L_blocks = 0
        self._L_base = 0  # rows of L that came from one factorisation; the others were grown block by block

    @property
    def num_samples(self) -> int:
        """Number of rows learnt so far."""
        return self._samples

    @property
    def num_classes(self) -> int:
        """Number of columns of W."""
        return self._classes

    @property
    def form(self) -> Literal["rows", "gram"]:
        """Which form the statistics have now: "rows" (fewer samples than features) or "gram"."""
        return "rows" if self._G is None else "gram"

    @property
    def lam(self) -> float | None:
        """The ridge of the last `solve`, None before the first."""
        return self._lam

    @property
    def nbytes(self) -> int:
        """Bytes kept between sessions, i.e. the size of `state_dict()`."""
        if self._G is None:
            numbers = self._rows * (self.width + self._classes) + len(self._blocks)
        else:
            numbers = self.width * (self.width + 1) // 2 + self.width * self._classes
        return 8 * (numbers + 6)

    def gram(self) -> tuple[Tensor, Tensor]:
        """Return (G = H^T H [width, width], Q = H^T Y [width, C]) over everything seen, for inspection."""
        if self._G is not None and self._Q is not None:
            return torch.tril(self._G) + torch.tril(self._G, -1).T, self._Q.clone()
        R, Z = self._kept_rows()
        return R.T @ R, R.T @ Z

    # ............................................................................................ learning

    def update(self, H: Tensor, labels: Tensor, num_classes: int) -> None:
        """Learn rows `H` [n, width] (any float type) with integer `labels` [n] in [0, num_classes).

        `num_classes` counts all classes seen so far; new ones get zero columns first (ACIL: targets of absent classes
        are zero, exactly as in joint one-hot ridge). n may be 0.

        Raises:
            ValueError: wrong shape, NaN or infinity, a label out of range, or fewer classes than before.
        """
        H = _features(H, self.width)
        labels = _labels(labels, H.shape[0], num_classes, self._classes)
        self._add_classes(num_classes)
        self._weights = None
        if self._G is None and self._rows + H.shape[0] >= self.width:
            self._to_gram()
        for start in range(0, H.shape[0], _CHUNK):
            part = H[start : start + _CHUNK]
            targets = one_hot(labels[start : start + _CHUNK], num_classes)
            if self._G is None:
                self._append_block(part, targets)
            else:
                assert self._Q is not None
                _add_gram(self._G, part)  # RanPAC: G += sum h h^T
                self._Q.addmm_(part.T, targets)  # RanPAC: Q += sum h onehot(y)^T
        self._samples += H.shape[0]

    def _add_classes(self, num_classes: int) -> None:
        if num_classes == self._classes:
            return
        if self._Q is not None:
            self._Q = torch.nn.functional.pad(self._Q, (0, num_classes - self._classes))
        else:
            self._Z = torch.nn.functional.pad(self._Z, (0, num_classes - self._classes))
        self._classes = num_classes

    def _kept_rows(self) -> tuple[Tensor, Tensor]:
        return self._R[: self._rows], self._Z[: self._rows]

    def _append_block(self, H: Tensor, Y: Tensor) -> None:
        # U diagonalises H H^T, so U^T H are the block's scaled principal axes: they follow from H^T H alone. U is
        # orthogonal to rounding whatever its accuracy as an eigenbasis, hence no statistic changes.
        _, U = torch.linalg.eigh(H @ H.T)
        count = H.shape[0]
        self._reserve(self._rows + count)
        torch.mm(U.T, H, out=self._R[self._rows : self._rows + count])
        torch.mm(U.T, Y, out=self._Z[self._rows : self._rows + count])
        self._rows += count
        self._blocks.append(count)

    def _reserve(self, rows: int) -> None:
        """Make room for `rows` rows. Untouched room costs no memory, so the buffers double."""
        if rows <= self._R.shape[0]:
            return
        capacity = min(self.width, max(256, 1 << (rows - 1).bit_length()))
        for name in ("_R", "_Z"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(capacity, old.shape[1])
            new[: self._rows] = old[: self._rows]
            setattr(self, name, new)

    def _to_gram(self) -> None:
        """Change over to G = R^T R, Q = R^T Z: the same statistics, since [R Z] is a rotation of [H Y]."""
        R, Z = self._kept_rows()
        self._G = torch.zeros(self.width, self.width, dtype=torch.float64)
        _add_gram(self._G, R)
        self._Q = R.T @ Z
        self._forget_rows()

    def _forget_rows(self) -> None:
        self._rows, self._blocks = 0, []
        self._R = torch.empty(0, self.width, dtype=torch.float64)
        self._Z = torch.empty(0, self._classes, dtype=torch.float64)
        self._K, self._K_blocks = torch.empty(0, 0, dtype=torch.float64), 0
        self._forget_factor()

    def _forget_factor(self) -> None:
        self._L, self._L_blocks, self._L_base = torch.empty(0, 0, dtype=torch.float64), 0, 0

    # ............................................................................................. solving

    def solve(self, lam: float) -> Tensor:
        """Return W [width, C] = (H^T H + lam I)^-1 H^T Y over everything seen, and use it in `logits` from now on.

        `lam` > 0 is the ridge (RanPAC lambda, ACIL gamma), in units of h^2.

        Raises:
            ValueError: the ridge is not positive, or nothing was learnt.
        """
        lam = _ridge(lam)
        if self._classes == 0:
            raise ValueError("the ridge head has learnt nothing yet: call update first.")
        if self._weights is not None and lam == self._lam:
            return self._weights
        if lam != self._lam:
            self._forget_factor()
        self._lam = lam
        self._weights = self._solve_gram(lam) if self._G is not None else self._solve_rows(lam)
        return self._weights

    def _solve_gram(self, lam: float) -> Tensor:
        assert self._G is not None
        assert self._Q is not None
        A = self._G.clone()
        A.diagonal().add_(lam)  # A = R_t^-1 of PACE Eq 2, kept un-inverted
        L = _cholesky(A)
        if L is not None:
            return torch.cholesky_solve(self._Q, L)  # W_t = R_t Q: closed form of PACE Eq 3, RanPAC W_o
        values, V = _eigh(self._G)  # lam is below the rounding of G: the spectrum is cut at zero instead
        return V @ ((V.T @ self._Q) / (values + lam)[:, None])

    def _solve_rows(self, lam: float) -> Tensor:
        R, Z = self._kept_rows()
        if self._rows == 0:
            return torch.zeros(self.width, self._classes, dtype=torch.float64)
        self._grow_gram_of_rows()
        if self._grow_factor(lam):
            L = self._L[: self._rows, : self._rows]
            alpha = _lower_transposed_solve(L, _lower_solve(L, Z))
        else:  # lam is below the rounding of K: the spectrum is cut at zero instead
            values, U = _eigh(self._K[: self._rows, : self._rows])
            alpha = U @ ((U.T @ Z) / (values + lam)[:, None])
        return R.T @ alpha  # push-through identity: R^T (R R^T + lam I)^-1 Z = (R^T R + lam I)^-1 R^T Z

    def _extents(self, first: int) -> Iterator[tuple[int, int]]:
        """Yield (start row, stop row) of the blocks from number `first` on."""
        start = sum(self._blocks[:first])
        for count in self._blocks[first:]:
            yield start, start + count
            start += count

    def _square(self, old: Tensor, used: int) -> Tensor:
        """Return a square buffer as large as R's row capacity, with the first `used` rows of `old` in it."""
        capacity = self._R.shape[0]
        if old.shape[0] == capacity:
            return old
        new = old.new_empty(capacity, capacity)
        new[:used, :used] = old[:used, :used]
        return new

    def _grow_gram_of_rows(self) -> None:
        """Bring the lower triangle of K = R R^T up to date: only new rows are multiplied."""
        self._K = self._square(self._K, sum(self._blocks[: self._K_blocks]))
        for start, stop in self._extents(self._K_blocks):
            self._K[start:stop, :stop] = self._R[start:stop] @ self._R[:stop].T
        self._K_blocks = len(self._blocks)

    def _grow_factor(self, lam: float) -> bool:
        """Bring L with L L^T = K + lam I up to date; return False where K + lam I is not positive definite."""
        if self._L_base:
            self._L = self._square(self._L, sum(self._blocks[: self._L_blocks]))
            for start, stop in self._extents(self._L_blocks):
                # PACE Eq 2 in dual form: L22 L22^T = lam (I + Zh_t R_{t-1} Zh_t^T), the matrix that Eq 2 inverts.
                L21 = _lower_solve(self._L[:start, :start], self._K[start:stop, :start].T).T
                schur = self._K[start:stop, start:stop] - L21 @ L21.T
                schur.diagonal().add_(lam)
                L22 = _cholesky(schur)
                if L22 is None:
                    self._forget_factor()
                    break
                self._L[start:stop, :start] = L21
                self._L[start:stop, start:stop] = L22
                self._L_blocks += 1
        return bool(self._L_base) or self._factor(lam, self._rows)

    def _factor(self, lam: float, rows: int) -> bool:
        """Factor the first `rows` rows of K + lam I at once."""
        A = self._K[:rows, :rows].clone()
        A.diagonal().add_(lam)
        L = _cholesky(A)
        if L is None:
            return False
        self._L = self._square(torch.empty(0, 0, dtype=torch.float64), 0)
        self._L[:rows, :rows] = L
        self._L_base = rows
        done = 0
        for number, count in enumerate(self._blocks, 1):
            done += count
            if done == rows:
                self._L_blocks = number
        return True

    def tune(self, lambdas: Sequence[float] = LAMBDAS, *, growth: float = 1.5) -> float:
        """Choose the ridge from everything seen, once the data has grown by `growth` since the last choice, and solve.

        Generalised cross-validation (Golub, Heath and Wahba 1979, Eq 1.4): with A(lam) = H (H^T H + lam I)^-1 H^T,

            GCV(lam) = (1/n) ||(I - A) Y||^2 / ((1/n) tr(I - A))^2

        which needs no clip, no split and no draw: rotating [H Y] changes neither norm nor trace, so the kept statistics
        are enough. Waiting for `growth` bounds the cost of all choices by a few times that of the last one.

        Returns:
            the ridge in use (the one of the last choice where the data has not grown enough).

        Raises:
            ValueError: nothing was learnt, or a candidate is not positive.
        """
        candidates = _candidates(lambdas)
        if self._samples == 0:
            raise ValueError("the ridge head has learnt nothing yet: call update first.")
        if self._lam is None or self._samples >= growth * self._tuned_at:
            self._tuned_at = self._samples
            self.solve(_choose(candidates, self._gcv(candidates)).lam)
        assert self._lam is not None
        self.solve(self._lam)
        return self._lam

    def _gcv(self, candidates: Sequence[float]) -> list[float]:
        n = self._samples
        if self._G is None:
            self._grow_gram_of_rows()
            values, U = _eigh(self._K[: self._rows, : self._rows])  # R R^T = U diag(e) U^T
            energy = (U.T @ self._kept_rows()[1]).square().sum(1)  # ||(U^T Z)_k||^2
            # I - A has eigenvalues lam / (e + lam); the factor lam cancels, so the smallest ridges keep their digits.
            return [
                float(n * (energy / (values + lam) ** 2).sum() / (1 / (values + lam)).sum() ** 2) for lam in candidates
            ]
        assert self._Q is not None
        values, V = _eigh(self._G)  # H^T H = V diag(v) V^T
        # ||u_k^T Y||^2 for H's left singular vectors u_k: how much of Y lies along each. The eigenvalues below the
        # rounding of G carry none that can be told from noise.
        known = values > values[-1] * self.width * torch.finfo(values.dtype).eps
        along = torch.where(known, (V.T @ self._Q).square().sum(1) / values, 0.0)
        # What no ridge fits (||Y||^2 = n for one-hot Y): exactly nothing where H has as many directions as rows.
        outside = max(n - float(along.sum()), 0.0) if int(known.sum()) < n else 0.0
        errors = []
        for lam in candidates:
            left = lam / (values + lam)  # eigenvalues of I - A on the span of H; sums of these lose no digits
            residual = outside + float((along * left.square()).sum())
            errors.append(n * residual / (n - self.width + float(left.sum())) ** 2)
        return errors

    # .......................................................................................... predicting

    def logits(self, H: Tensor) -> Tensor:
        """Return H W [n, C] in float64 for rows `H` [n, width], solving again where data came since `solve`.

        Raises:
            ValueError: wrong shape, NaN or infinity, or `solve` was never called.
        """
        if self._lam is None:
            raise ValueError("the ridge head has no ridge yet: call solve first.")
        return _features(H, self.width) @ self.solve(self._lam)

    def predict(self, H: Tensor) -> Tensor:
        """Return the class with the largest logit, int64 [n]."""
        return self.logits(H).argmax(1)

    # ................................................................................................ state

    def state_dict(self) -> State:
        """Return everything kept, as plain tensors; `load_state_dict` continues bit for bit."""
        lam = float("nan") if self._lam is None else self._lam
        state = {
            "counts": torch.tensor(
                [self._samples, self._classes, self._rows, self._L_base, self._tuned_at], dtype=torch.int64
            ),
            "lam": torch.tensor(lam, dtype=torch.float64),
        }
        if self._G is not None and self._Q is not None:
            return state | {"G": _pack_lower(self._G), "Q": self._Q.clone()}
        R, Z = self._kept_rows()
        return state | {"R": R.clone(), "Z": Z.clone(), "blocks": torch.tensor(self._blocks, dtype=torch.int64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict()` of a head of the same width returned.

        Raises:
            ValueError: an entry is missing or has another type or shape.
        """
        counts = _tensor(state, "counts", (5,), torch.int64).tolist()
        lam = float(_tensor(state, "lam", (), torch.float64))
        samples, classes, rows, base, tuned_at = (int(count) for count in counts)
        fresh = RidgeHead(self.width)
        fresh._samples, fresh._classes, fresh._tuned_at = samples, classes, tuned_at
        fresh._lam = None if np.isnan(lam) else lam
        if samples >= self.width:
            packed = _tensor(state, "G", (self.width * (self.width + 1) // 2,), torch.float64)
            fresh._G = _unpack_lower(packed, self.width)
            fresh._Q = _tensor(state, "Q", (self.width, classes), torch.float64)
        else:
            R = _tensor(state, "R", (rows, self.width), torch.float64)
            Z = _tensor(state, "Z", (rows, classes), torch.float64)
            fresh._Z = torch.empty(0, classes, dtype=torch.float64)
            fresh._reserve(rows)
            fresh._R[:rows], fresh._Z[:rows] = R, Z
            fresh._rows = rows
            fresh._blocks = [int(count) for count in _tensor(state, "blocks", (None,), torch.int64)]
            if sum(fresh._blocks) != rows:
                raise ValueError("the head's state 'blocks' must sum to its number of rows.")
            if base and fresh._lam is not None:
                fresh._grow_gram_of_rows()
                fresh._factor(fresh._lam, base)  # then grown by the same blocks as before: the same bits
        self.__dict__.update(fresh.__dict__)


# ------------------------------------------------------------------------------------------- choosing the ridge


@dataclass(frozen=True)
class RidgeChoice:
    """Outcome of a search over ridges: the chosen one, all candidates and their mean squared errors."""

    lam: float
    lambdas: tuple[float, ...]
    mse: tuple[float, ...]


def _choose(lambdas: Sequence[float], errors: Sequence[float]) -> RidgeChoice:
    """Return the first minimum among finite errors (`np.argmin` alone would return the position of a NaN)."""
    safe = np.where(np.isfinite(errors), errors, np.inf)
    if not np.isfinite(safe).any():
        raise ValueError(
            "no ridge candidate has a finite validation error: the features are too large for float64 or not finite; "
            "check the backbone's outputs."
        )
    return RidgeChoice(float(lambdas[int(np.argmin(safe))]), tuple(map(float, lambdas)), tuple(map(float, errors)))


def _candidates(lambdas: Sequence[float]) -> tuple[float, ...]:
    if not len(lambdas):
        raise ValueError("the list of ridge candidates is empty.")
    return tuple(_ridge(lam) for lam in lambdas)


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
    lambdas = _candidates(lambdas)
    H_fit = _features(H_fit, None, "H_fit")
    H_val = _features(H_val, H_fit.shape[1], "H_val")
    Y_fit = _features(Y_fit, None, "Y_fit")
    Y_val = _features(Y_val, Y_fit.shape[1], "Y_val")
    if len(H_fit) != len(Y_fit) or len(H_val) != len(Y_val):
        raise ValueError("features and targets must have the same number of rows.")
    if not len(H_fit) or not len(H_val):
        raise ValueError("the ridge search needs at least one row to fit and one to validate.")
    if H_fit.shape[0] < H_fit.shape[1]:
        values, U = _eigh(H_fit @ H_fit.T)
        left = (H_val @ H_fit.T) @ U  # H_val W(lam) = H_val H^T U diag(1 / (e + lam)) U^T Y
        right = U.T @ Y_fit
    else:
        G, Q = torch.zeros(H_fit.shape[1], H_fit.shape[1], dtype=torch.float64), H_fit.T @ Y_fit
        _add_gram(G, H_fit)
        direct = _cholesky_path(G, Q, H_val, Y_val, lambdas) if len(G) > _EIGH_LIMIT else None
        if direct is not None:
            return _choose(lambdas, direct)
        values, V = _eigh(G)
        left = H_val @ V  # H_val W(lam) = H_val V diag(1 / (e + lam)) V^T H^T Y
        right = V.T @ Q
    errors = [float((left @ (right / (values + lam)[:, None]) - Y_val).square_().mean()) for lam in lambdas]
    return _choose(lambdas, errors)


def _cholesky_path(G: Tensor, Q: Tensor, H_val: Tensor, Y_val: Tensor, lambdas: Sequence[float]) -> list[float] | None:
    """Return the validation errors from one Cholesky per candidate, None where a candidate is below G's rounding."""
    errors = []
    for lam in lambdas:
        A = G.clone()
        A.diagonal().add_(lam)
        L = _cholesky(A)
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
    lambdas = _candidates(lambdas)
    H = _features(H, None, "H")
    Y = _features(Y, None, "Y")
    if len(H) != len(Y) or len(H) < 2:
        raise ValueError("leave-one-out needs features and targets of the same number of rows, at least two.")
    errors = []
    if H.shape[0] <= H.shape[1]:
        values, U = _eigh(H @ H.T)
        B, U2 = U.T @ Y, U.square()
        for lam in lambdas:
            shrunk = 1.0 / (values + lam)
            residual = (U @ (B * shrunk[:, None])) / (U2 @ shrunk)[:, None]
            errors.append(float(residual.square_().mean()))
    else:
        values, V = _eigh(H.T @ H)
        P = H @ V
        B, P2 = P.T @ Y, P.square()
        for lam in lambdas:
            shrunk = 1.0 / (values + lam)
            residual = (Y - P @ (B * shrunk[:, None])) / (1.0 - P2 @ shrunk)[:, None]
            errors.append(float(residual.square_().mean()))
    return _choose(lambdas, errors)


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
    H = _features(H, None)
    Y = one_hot(_labels(labels, H.shape[0], num_classes), num_classes)
    if criterion not in ("holdout", "loo"):
        raise ValueError(f"criterion must be 'holdout' or 'loo', got {criterion!r}.")
    if criterion == "loo" or float(Y.sum(0).max()) <= 1:
        return ridge_loo(H, Y, lambdas)
    fit, val = holdout(labels, seed=seed, purpose=purpose, fraction=fraction, stratified=stratified)
    return ridge_path(H[fit], Y[fit], H[val], Y[val], lambdas)


# ------------------------------------------------------------------------------------------ class-mean classifiers


class _ClassMeans:
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
        return _bytes(self.state_dict())

    def update(self, H: Tensor, labels: Tensor, num_classes: int) -> None:
        """Learn rows `H` [n, width] (any float type) with integer `labels` [n] in [0, num_classes); n may be 0.

        Raises:
            ValueError: wrong shape, NaN or infinity, a label out of range, or fewer classes than before.
        """
        H = _features(H, self.width)
        labels = _labels(labels, H.shape[0], num_classes, self.num_classes)
        self._sums = _grow_rows(self._sums, num_classes)
        self._counts = _grow_rows(self._counts, num_classes)
        self._sums = self._sums.index_add(0, labels, H)
        self._counts = self._counts + torch.bincount(labels, minlength=num_classes)

    def logits(self, H: Tensor) -> Tensor:
        """Return float64 scores [n, C] for rows `H` [n, width]; a class without samples scores -inf."""
        H = _features(H, self.width)
        if self.num_samples == 0:
            raise ValueError("the head has learnt nothing yet: call update first.")
        return self._scores(H).masked_fill(self._counts == 0, -torch.inf)

    def _scores(self, H: Tensor) -> Tensor:
        raise NotImplementedError

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
        counts = _tensor(state, "counts", (None,), torch.int64)
        self._sums = _tensor(state, "sums", (len(counts), self.width), torch.float64)
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
        H = _features(H, self.width)
        super().update(H, labels, num_classes)
        self._solved = None
        for start in range(0, H.shape[0], _CHUNK):
            _add_gram(self._M2, H[start : start + _CHUNK])

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
            L = _cholesky(S)
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
        return super().state_dict() | {"M2": _pack_lower(self._M2)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict()` of a head of the same width returned.

        Raises:
            ValueError: an entry is missing or has another type or shape.
        """
        packed = _tensor(state, "M2", (self.width * (self.width + 1) // 2,), torch.float64)
        super().load_state_dict(state)
        self._M2 = _unpack_lower(packed, self.width)
        self._solved = None
