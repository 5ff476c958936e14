"""Exact streaming ridge regression (RanPAC; ACIL; PACE Eq 2 and 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from audiocl_bench.heads import _linalg
from audiocl_bench.heads._inputs import State, check_features, check_labels, check_ridge, check_tensor, one_hot
from audiocl_bench.heads._linalg import (
    add_gram,
    cholesky,
    eigh,
    lower_solve,
    lower_transposed_solve,
    pack_lower,
    right_lower_solve,
    unpack_lower,
)
from audiocl_bench.heads.search import LAMBDAS, candidates_of, first_minimum

_TAIL = 16  # a Gram matrix lets up to width / _TAIL rows wait beside it, so kept bytes rise by an eighth at most


class RidgeHead:
    """Exact streaming ridge regression to one-hot targets (RanPAC, ACIL, PACE sec. 3.4).

    For all features H [n, width] and one-hot labels Y [n, C] seen so far, `solve(lam)` returns

        W = (H^T H + lam I)^-1 H^T Y                                        (RanPAC W_o; fixed point of PACE Eq 2 and 3)

    Two forms of the same statistics, changed over once and invisibly:

    * n < width: rows [R Z], block by block an orthogonal rotation of [H Y]. R^T R = H^T H and R^T Z = H^T Y, so W is
      unchanged, and each update's block is a function of that update's Gram matrix and class sums alone: single clips
      are not stored. W = R^T (R R^T + lam I)^-1 Z costs n^2 instead of width^2 per unknown.
    * n >= width: G = H^T H (lower triangle) and Q = H^T Y, Cholesky of G + lam I.

    While the ridge stays, nothing is factored or solved anew for a few new rows [R2 Z2]. With P = (G + lam I)^-1 of all
    rows before, PACE Eq 2 and 3 read

        L22 L22^T = I + R2 P R2^T,    V2 = L22^-1 R2 P,    P <- P - V2^T V2,    W <- W + V2^T L22^-1 (Z2 - R2 W)

    * rows: P is never formed. With L L^T = R R^T + lam I grown by rows, lam P R2^T = R2^T - R^T (L L^T)^-1 R R2^T, and
      L22 (times lam^1/2) is the new diagonal block of L. A session of q rows costs about 2 q n width.
    * Gram: new rows wait beside G, at most width / 16 of them. L factors the waiting-free G + lam I, so that with
      F = L^-1 R^T and Phi (the rows of V) in the coordinates of L, the matrix to factor is I + F^T F, never worse than
      the identity: 2 q width^2, and a factorisation each time the waiting rows are folded into G.

    Down to ridges of 1e-15 ||H||^2 (tests/test_heads.py), W grown so is as near to the exact solution as one
    factorisation of the same statistics. Where growing would cost more, W is solved at once from the same L.

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
        self._blocks: list[int] = []  # rows of each block
        self._block_classes: list[int] = []  # classes seen when it came
        self._R = torch.empty(0, width, dtype=torch.float64)
        self._Z = torch.empty(0, 0, dtype=torch.float64)
        # Gram form.
        self._G: Tensor | None = None
        self._Q: Tensor | None = None
        # Derived, never saved: K = R R^T and L L^T = K + lam I, both [rows, rows] in growing buffers; in the Gram form
        # L L^T = G + lam I without the waiting rows, and Phi for these. W covers the first `_W_blocks` blocks.
        self._K = torch.empty(0, 0, dtype=torch.float64)
        self._K_blocks = 0
        self._L = torch.empty(0, 0, dtype=torch.float64)
        self._L_blocks = 0
        self._Phi = torch.empty(0, width, dtype=torch.float64)
        self._W: Tensor | None = None
        self._W_blocks = 0
        # Where L and W were last computed at once, and not grown: with it, the same bits can be computed again.
        self._L_base = 0  # rows of that factor (Gram form: width); 0 where there is none
        self._W_base = 0  # rows of that solve (Gram form: width)
        self._W_classes = 0  # its columns
        self._last = 0  # rows of the last update: after a large one, no factor is kept for small ones

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
        numbers = self._rows * (self.width + self._classes) + 2 * len(self._blocks)
        if self._G is not None:
            numbers += self.width * (self.width + 1) // 2 + self.width * self._classes
        return 8 * (numbers + 12)

    def gram(self) -> tuple[Tensor, Tensor]:
        """Return (G = H^T H [width, width], Q = H^T Y [width, C]) over everything seen, for inspection."""
        R, Z = self._kept_rows()
        if self._G is None or self._Q is None:
            return R.T @ R, R.T @ Z
        G = self._G.clone()
        add_gram(G, R)
        return G.tril_() + torch.tril(G, -1).T, torch.addmm(self._Q, R.T, Z)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return (R [r, width], Z [r, C]) while statistics are kept as rows: R^T R = G and R^T Z = Q. Not copied.

        Raises:
            ValueError: there are as many samples as features, so that `gram` is what is kept.
        """
        if self._G is not None:
            raise ValueError("the statistics are kept as a Gram matrix now: call gram instead.")
        return self._kept_rows()

    def compress(self, rank: int) -> None:
        """Keep the `rank` leading singular directions of R; nothing happens where there are fewer rows.

        H^T H loses its smallest eigenvalues, at most the (rank + 1)-th one from any direction. While the form is
        "rows", kept bytes no longer grow with the number of samples.

        Raises:
            ValueError: the rank is below 1 or not below the number of features, or the form is "gram" already.
        """
        if not 1 <= rank < self.width:
            raise ValueError(f"the rank must lie in 1..{self.width - 1}, got {rank}.")
        R, Z = self.rows()
        if len(R) <= rank:
            return
        _, U = eigh(R @ R.T)
        leading = U[:, -rank:].T
        R, Z = leading @ R, leading @ Z
        self._forget_rows()
        self._reserve(rank)
        self._R[:rank], self._Z[:rank] = R, Z
        self._rows, self._blocks, self._block_classes, self._weights = rank, [rank], [self._classes], None

    # ............................................................................................ learning

    def update(self, H: Tensor, labels: Tensor, num_classes: int) -> None:
        """Learn rows `H` [n, width] (any float type) with integer `labels` [n] in [0, num_classes).

        `num_classes` counts all classes seen so far; new ones get zero columns first (ACIL: targets of absent classes
        are zero, exactly as in joint one-hot ridge). n may be 0.

        Raises:
            ValueError: wrong shape, NaN or infinity, a label out of range, or fewer classes than before.
        """
        H = check_features(H, self.width)
        labels = check_labels(labels, H.shape[0], num_classes, self._classes)
        self._add_classes(num_classes)
        self._weights = None
        if self._G is None and self._rows + H.shape[0] >= self.width:
            self._to_gram()
        if self._G is not None and not self._may_wait(H.shape[0]):
            self._fold()
        waits = self._G is None or self._L_base > 0
        for start in range(0, H.shape[0], _linalg.CHUNK):
            part = H[start : start + _linalg.CHUNK]
            targets = one_hot(labels[start : start + _linalg.CHUNK], num_classes)
            if waits:
                self._append_block(part, targets)
            else:
                assert self._G is not None
                assert self._Q is not None
                add_gram(self._G, part)  # RanPAC: G += sum h h^T
                self._Q.addmm_(part.T, targets)  # RanPAC: Q += sum h onehot(y)^T
        self._samples += H.shape[0]
        self._last = H.shape[0] or self._last

    def _may_wait(self, rows: int) -> bool:
        """Whether that many new rows may wait beside G for the factor that is there."""
        return self._L_base > 0 and self._rows + rows <= self.width // _TAIL

    def _fold(self) -> None:
        """Add the waiting rows to G and Q; the factor is out of date then."""
        assert self._G is not None
        assert self._Q is not None
        R, Z = self._kept_rows()
        if len(R):
            add_gram(self._G, R)
            self._Q = torch.addmm(self._Q, R.T, Z)
        self._forget_rows()

    def _add_classes(self, num_classes: int) -> None:
        if num_classes == self._classes:
            return
        if self._Q is not None:
            self._Q = torch.nn.functional.pad(self._Q, (0, num_classes - self._classes))
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
        self._block_classes.append(Y.shape[1])

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
        add_gram(self._G, R)
        self._Q = R.T @ Z
        self._forget_rows()

    def _forget_rows(self) -> None:
        self._rows, self._blocks, self._block_classes = 0, [], []
        self._R = torch.empty(0, self.width, dtype=torch.float64)
        self._Z = torch.empty(0, self._classes, dtype=torch.float64)
        self._K, self._K_blocks = torch.empty(0, 0, dtype=torch.float64), 0
        self._forget_factor()

    def _forget_factor(self) -> None:
        self._L, self._L_blocks, self._L_base = torch.empty(0, 0, dtype=torch.float64), 0, 0
        self._Phi = torch.empty(0, self.width, dtype=torch.float64)
        self._W, self._W_blocks, self._W_base, self._W_classes = None, 0, 0, 0

    # ............................................................................................. solving

    def solve(self, lam: float) -> Tensor:
        """Return W [width, C] = (H^T H + lam I)^-1 H^T Y over everything seen, and use it in `logits` from now on.

        `lam` > 0 is the ridge (RanPAC lambda, ACIL gamma), in units of h^2.

        Raises:
            ValueError: the ridge is not positive, or nothing was learnt.
        """
        lam = check_ridge(lam)
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
        # Resumed: the factor and W that were there before the waiting rows.
        if self._L_base and not len(self._L) and not self._factor_gram(lam, self._W_classes):
            self._forget_factor()
        if self._L_base and self._grow_weights_gram():
            return self._all_columns()
        self._fold()
        if not self._factor_gram(lam, self._classes):  # lam is below the rounding of G: its spectrum is cut at zero
            values, V = eigh(self._G)
            return V @ ((V.T @ self._Q) / (values + lam)[:, None])
        weights = self._all_columns()
        if self._last > self.width // _TAIL:  # the next session will hardly be small enough to wait
            self._forget_factor()
        return weights

    def _factor_gram(self, lam: float, classes: int) -> bool:
        """Factor G + lam I and solve for W at once, leaving out the waiting rows; False where it is not definite."""
        assert self._G is not None
        assert self._Q is not None
        A = self._G.clone()
        A.diagonal().add_(lam)
        L = cholesky(A)
        if L is None:
            return False
        self._L, self._L_base, self._W_base, self._W_classes = L, self.width, self.width, classes
        # W_t = R_t Q: closed form of PACE Eq 3, RanPAC W_o
        self._W, self._W_blocks = torch.cholesky_solve(self._Q[:, :classes].contiguous(), L), 0
        return True

    def _grow_weights_gram(self) -> bool:
        """Take the waiting rows into W, block by block; False where a block of I + F^T F overflows."""
        L = self._L
        for start, stop in self._extents(self._W_blocks):
            if not len(self._Phi):
                self._Phi = L.new_empty(self.width // _TAIL, self.width)
            R, known = self._R[start:stop], self._Phi[:start]
            F = lower_solve(L, R.T.contiguous())
            L21 = F.T @ known.T
            schur = F.T @ F - L21 @ L21.T
            schur.diagonal().add_(1.0)
            L22 = cholesky(schur)
            if L22 is None:
                return False
            phi = torch.linalg.solve_triangular(L22, F.T - L21 @ known, upper=False)
            self._Phi[start:stop] = phi
            self._add_to_weights(start, stop, lower_transposed_solve(L, phi.T.contiguous()), L22)
        return True

    def _add_to_weights(self, start: int, stop: int, V: Tensor, L22: Tensor) -> None:
        """Take block [start, stop) into W: W + V L22^-1 (Z - R W), with V [width, stop - start]."""
        # The classes seen when the block came, not those of today: then it never matters when `solve` was called.
        W = self._columns(self._block_classes[self._W_blocks])
        innovation = self._Z[start:stop, : W.shape[1]] - self._R[start:stop] @ W
        step = torch.linalg.solve_triangular(L22, innovation, upper=False)
        self._W = torch.addmm(W, V, step) if W is self._W else W.addmm_(V, step)  # what `solve` returned stays as it is
        self._W_blocks += 1

    def _columns(self, classes: int) -> Tensor:
        """W with zero columns up to `classes`: classes that came later have no row in what W covers."""
        assert self._W is not None
        missing = classes - self._W.shape[1]
        return torch.nn.functional.pad(self._W, (0, missing)) if missing > 0 else self._W

    def _all_columns(self) -> Tensor:
        return self._columns(self._classes)

    def _solve_rows(self, lam: float) -> Tensor:
        R, Z = self._kept_rows()
        if self._rows == 0:
            return torch.zeros(self.width, self._classes, dtype=torch.float64)
        self._grow_gram_of_rows()
        if self._grow_factor(lam):
            self._grow_weights_rows()
            return self._all_columns()
        # lam is below the rounding of K: the spectrum is cut at zero instead
        values, U = eigh(self._K[: self._rows, : self._rows])
        return R.T @ (U @ ((U.T @ Z) / (values + lam)[:, None]))

    def _grow_weights_rows(self) -> None:
        """Bring W up to date with L: block by block, or at once where that is cheaper."""
        if self._W_base and self._W is None:  # resumed: solved and grown over the same blocks as before
            covered = self._W_blocks
            self._solve_at_once(self._W_base, self._W_classes)
            self._grow_weights_to(covered)
        pending = list(self._extents(self._W_blocks))
        n, width, classes = self._rows, self.width, self._classes
        grown = sum((stop - start) * (start * (width + start) + 2 * width * classes) for start, stop in pending)
        if not self._W_base or grown > n * classes * (n + width):
            self._solve_at_once(n, classes)
        else:
            self._grow_weights_to(len(self._blocks))

    def _grow_weights_to(self, blocks: int) -> None:
        """Take blocks into W until it covers that many."""
        for start, stop in list(self._extents(self._W_blocks))[: blocks - self._W_blocks]:
            L21, L22 = self._L[start:stop, :start], self._L[start:stop, start:stop]
            before = right_lower_solve(self._L[:start, :start], L21)  # R2 R^T (L L^T)^-1
            residual = self._R[start:stop] - before @ self._R[:start]  # lam R2 P
            V = torch.linalg.solve_triangular(L22, residual, upper=False)
            self._add_to_weights(start, stop, V.T, L22)

    def _solve_at_once(self, rows: int, classes: int) -> None:
        """Compute W of the first `rows` rows from L by two triangular solves."""
        L = self._L[:rows, :rows]
        alpha = lower_transposed_solve(L, lower_solve(L, self._Z[:rows, :classes].contiguous()))
        # push-through identity: R^T (R R^T + lam I)^-1 Z = (R^T R + lam I)^-1 R^T Z
        self._W = self._R[:rows].T @ alpha
        self._W_base, self._W_classes, self._W_blocks = rows, classes, self._blocks_within(rows)

    def _blocks_within(self, rows: int) -> int:
        """How many blocks the first `rows` rows are."""
        return sum(stop <= rows for _, stop in self._extents(0))

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
        if self._L_base and not len(self._L) and not self._factor(lam, self._L_base):  # resumed
            self._forget_factor()
        if self._L_base:
            self._L = self._square(self._L, sum(self._blocks[: self._L_blocks]))
            for start, stop in self._extents(self._L_blocks):
                # PACE Eq 2 in dual form: L22 L22^T = lam (I + Zh_t R_{t-1} Zh_t^T), the matrix that Eq 2 inverts.
                L21 = lower_solve(self._L[:start, :start], self._K[start:stop, :start].T).T
                schur = self._K[start:stop, start:stop] - L21 @ L21.T
                schur.diagonal().add_(lam)
                L22 = cholesky(schur)
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
        L = cholesky(A)
        if L is None:
            return False
        self._L = self._square(torch.empty(0, 0, dtype=torch.float64), 0)
        self._L[:rows, :rows] = L
        self._L_base, self._L_blocks = rows, self._blocks_within(rows)
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
        candidates = candidates_of(lambdas)
        if self._samples == 0:
            raise ValueError("the ridge head has learnt nothing yet: call update first.")
        if self._lam is None or self._samples >= growth * self._tuned_at:
            self._tuned_at = self._samples
            self.solve(first_minimum(candidates, self._gcv(candidates)).lam)
        assert self._lam is not None
        self.solve(self._lam)
        return self._lam

    def _gcv(self, candidates: Sequence[float]) -> list[float]:
        n = self._samples
        if self._G is None:
            self._grow_gram_of_rows()
            values, U = eigh(self._K[: self._rows, : self._rows])  # R R^T = U diag(e) U^T
            energy = (U.T @ self._kept_rows()[1]).square().sum(1)  # ||(U^T Z)_k||^2
            # I - A has eigenvalues lam / (e + lam); the factor lam cancels, so the smallest ridges keep their digits.
            return [
                float(n * (energy / (values + lam) ** 2).sum() / (1 / (values + lam)).sum() ** 2) for lam in candidates
            ]
        assert self._Q is not None
        self._fold()
        values, V = eigh(self._G)  # H^T H = V diag(v) V^T
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
        return check_features(H, self.width) @ self.solve(self._lam)

    def predict(self, H: Tensor) -> Tensor:
        """Return the class with the largest logit, int64 [n]."""
        return self.logits(H).argmax(1)

    # ................................................................................................ state

    def state_dict(self) -> State:
        """Return everything kept, as plain tensors; `load_state_dict` continues bit for bit."""
        lam = float("nan") if self._lam is None else self._lam
        R, Z = self._kept_rows()
        bases = [int(self._G is not None), self._L_base, self._W_base, self._W_classes, self._W_blocks, self._last]
        state = {
            "counts": torch.tensor(
                [self._samples, self._classes, self._rows, len(self._blocks), self._tuned_at], dtype=torch.int64
            ),
            "bases": torch.tensor(bases, dtype=torch.int64),
            "lam": torch.tensor(lam, dtype=torch.float64),
            "R": R.clone(),
            "Z": Z.clone(),
            "blocks": torch.tensor(self._blocks, dtype=torch.int64),
            "block_classes": torch.tensor(self._block_classes, dtype=torch.int64),
        }
        if self._G is None or self._Q is None:
            return state
        return state | {"G": pack_lower(self._G), "Q": self._Q.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict()` of a head of the same width returned.

        Raises:
            ValueError: an entry is missing or has another type or shape.
        """
        counts = check_tensor(state, "counts", (5,), torch.int64).tolist()
        lam = float(check_tensor(state, "lam", (), torch.float64))
        samples, classes, rows, blocks, tuned_at = (int(count) for count in counts)
        bases = [int(base) for base in check_tensor(state, "bases", (6,), torch.int64)]
        fresh = RidgeHead(self.width)
        fresh._samples, fresh._classes, fresh._tuned_at = samples, classes, tuned_at
        fresh._lam = None if np.isnan(lam) else lam
        is_gram, fresh._L_base, fresh._W_base, fresh._W_classes, fresh._W_blocks, fresh._last = bases
        if is_gram:
            packed = check_tensor(state, "G", (self.width * (self.width + 1) // 2,), torch.float64)
            fresh._G = unpack_lower(packed, self.width)
            fresh._Q = check_tensor(state, "Q", (self.width, classes), torch.float64).clone()
        R = check_tensor(state, "R", (rows, self.width), torch.float64)
        Z = check_tensor(state, "Z", (rows, classes), torch.float64)
        fresh._Z = torch.empty(0, classes, dtype=torch.float64)
        fresh._reserve(rows)
        fresh._R[:rows], fresh._Z[:rows] = R, Z
        fresh._rows = rows
        fresh._blocks = [int(count) for count in check_tensor(state, "blocks", (None,), torch.int64)]
        fresh._block_classes = [int(n) for n in check_tensor(state, "block_classes", (blocks,), torch.int64)]
        if sum(fresh._blocks) != rows or len(fresh._blocks) != blocks:
            raise ValueError("the head's state 'blocks' must sum to its number of rows.")
        edge = self.width if is_gram else rows
        most = (1, edge, edge, classes, blocks, samples)
        if any(not 0 <= base <= top for base, top in zip(bases, most, strict=True)):
            raise ValueError("the head's state 'bases' must lie within its rows, classes and blocks.")
        self.__dict__.update(fresh.__dict__)  # L and W follow at the next solve, by the same steps: the same bits
