"""Dense float64 algebra the heads share: triangular solves in tiles, Gram matrices, packed triangles."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 512  # rows handled at once: bounds the working memory of an update to a few chunks of features
PANEL = 512  # edge of the square tiles in the triangular solves and in the lower triangle of a Gram matrix


def lower_solve(L: Tensor, B: Tensor) -> Tensor:
    """Return L^-1 B for lower-triangular L [n, n], B [n, k]; reads L in place, tile by tile.

    `torch.linalg.solve_triangular` would first copy L, which is a view into a larger buffer here.
    """
    X = B.clone()
    for start in range(0, L.shape[0], PANEL):
        stop = min(start + PANEL, L.shape[0])
        if start:
            X[start:stop] -= L[start:stop, :start] @ X[:start]
        X[start:stop] = torch.linalg.solve_triangular(L[start:stop, start:stop], X[start:stop], upper=False)
    return X


def lower_transposed_solve(L: Tensor, B: Tensor) -> Tensor:
    """Return L^-T B for lower-triangular L [n, n], B [n, k]; reads L in place, tile by tile."""
    X = B.clone()
    for start in reversed(range(0, L.shape[0], PANEL)):
        stop = min(start + PANEL, L.shape[0])
        if stop < L.shape[0]:
            X[start:stop] -= L[stop:, start:stop].T @ X[stop:]
        X[start:stop] = torch.linalg.solve_triangular(L[start:stop, start:stop].T, X[start:stop], upper=True)
    return X


def right_lower_solve(L: Tensor, B: Tensor) -> Tensor:
    """Return B L^-1 for lower-triangular L [n, n], B [k, n]: (L^-T B^T)^T, faster for few rows of a row-major L."""
    X = B.clone(memory_format=torch.contiguous_format)
    for start in reversed(range(0, L.shape[0], PANEL)):
        stop = min(start + PANEL, L.shape[0])
        tile = L[start:stop, start:stop]
        X[:, start:stop] = torch.linalg.solve_triangular(tile, X[:, start:stop], upper=False, left=False)
        if start:
            X[:, :start].addmm_(X[:, start:stop], L[start:stop, :start], alpha=-1)
    return X


def cholesky(A: Tensor) -> Tensor | None:
    """Return the lower Cholesky factor of A (its lower triangle is read), or None if A is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(A)
    return None if int(failed) or not bool(torch.isfinite(factor.diagonal()).all()) else factor


def eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Return (eigenvalues, eigenvectors) of a positive semi-definite A; rounding below zero is cut off."""
    values, vectors = torch.linalg.eigh(A, UPLO="L")
    return values.clamp_(min=0.0), vectors


def add_gram(G: Tensor, H: Tensor) -> None:
    """Add H^T H to the lower triangle of G, tile row by tile row (half the work of the full product)."""
    for start in range(0, G.shape[0], PANEL):
        stop = min(start + PANEL, G.shape[0])
        G[start:stop, :stop].addmm_(H[:, start:stop].T, H[:, :stop])


def lower_gram_of_rows(X: Tensor) -> Tensor:
    """Return X X^T, its lower triangle (other entries are zero or of the diagonal tiles), in half the full work."""
    K = X.new_zeros(X.shape[0], X.shape[0])
    for start in range(0, X.shape[0], PANEL):
        stop = min(start + PANEL, X.shape[0])
        K[start:stop, :stop] = X[start:stop] @ X[:stop].T
    return K


def pack_lower(G: Tensor) -> Tensor:
    """Return the lower triangle of G [m, m], row after row, as a vector [m (m + 1) / 2]."""
    packed = G.new_empty(G.shape[0] * (G.shape[0] + 1) // 2)
    start = 0
    for row in range(G.shape[0]):
        packed[start : start + row + 1] = G[row, : row + 1]
        start += row + 1
    return packed


def unpack_lower(packed: Tensor, m: int) -> Tensor:
    """Undo `_pack_lower`; the strict upper triangle is zero."""
    G = packed.new_zeros(m, m)
    start = 0
    for row in range(m):
        G[row, : row + 1] = packed[start : start + row + 1]
        start += row + 1
    return G
