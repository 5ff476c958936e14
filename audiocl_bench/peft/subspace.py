"""Subspaces that LoRA updates are kept in: covariance of attention inputs, its leading directions, projectors.

Source: LoRA subtraction for drift-resistant space (official code), as PACE's Eq. 5 uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from audiocl_bench.backbones.base import Backbone
    from audiocl_bench.method import Clips


@torch.no_grad()
def attention_covariances(backbone: Backbone, batches: Iterable[Clips], blocks: Iterable[int]) -> dict[int, Tensor]:
    """Return per block the mean uncentred covariance C = (1/#tokens) sum x x^T of the attention's input.

    Args:
        backbone: the network as it shall be seen (for example with LoRA pairs subtracted).
        batches: clips, mel [B, T, M].
        blocks: zero-based block numbers.

    Returns:
        block -> C [D, D], float64 on the CPU.
    """
    wanted = set(blocks)
    sums = {block: torch.zeros(backbone.dim, backbone.dim, dtype=torch.float64) for block in wanted}
    tokens = dict.fromkeys(wanted, 0)

    def collect(block: int, x: Tensor) -> None:
        if block in wanted:
            rows = x.reshape(-1, x.shape[-1])
            sums[block] += (rows.T @ rows).double().cpu()
            tokens[block] += rows.shape[0]

    for clips in batches:
        backbone.run(backbone.tokens(clips.mel), on_attention_input=collect)
    return {block: sums[block] / max(tokens[block], 1) for block in wanted}


def leading_subspace(covariance: Tensor, energy: float) -> Tensor:
    """Return U [D, k], the fewest leading eigenvectors whose eigenvalues reach the share `energy` of their sum.

    Args:
        covariance: symmetric positive semi-definite [D, D].
        energy: share in (0, 1]; eigenvalues, not their squares, are summed (LoRA-DRS). 1 keeps all D directions, also
            those without energy, so that nothing is projected away.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if energy >= 1:
        return vectors
    share = torch.cumsum(values, 0) / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    # The 1e-12 lets a share that is reached exactly count as reached in spite of rounding in the cumulative sum.
    count = int(torch.searchsorted(share, torch.tensor(energy - 1e-12, dtype=torch.float64)).item()) + 1
    return vectors[:, : min(count, vectors.shape[1])]


def projector(
    U: Tensor, direction: Literal["onto", "complement"] = "onto", norm: Literal["none", "fro"] = "none"
) -> Tensor:
    """Return P [D, D] float32: U U^T ("onto") or I - U U^T ("complement"), divided by its Frobenius norm for "fro".

    The norm of U U^T is sqrt k, so "fro" shortens every step by that factor (LoRA-DRS divides, PACE does not say).
    """
    P, rank = U @ U.T, U.shape[1]
    if direction == "complement":
        P, rank = torch.eye(U.shape[0], dtype=U.dtype) - P, U.shape[0] - rank
    if norm == "fro":
        # The rank, not the computed norm: an empty complement is rounding noise, which its own norm would blow up.
        P = P / math.sqrt(max(rank, 1))
    return P.float()
