"""Prompts as inputs of a frozen backbone: choosing them per clip, prepending tokens, prefixes for attention.

Shared by L2P, DualPrompt, S-Prompt++, CODA-Prompt and HiDe-Prompt (methods.md sections 2.1 to 2.4). Everything works
row by row: what is chosen for one clip never depends on its neighbours, unless a reproduction of published leaks asks
for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from audiocl_bench.errors import ConfigError

if TYPE_CHECKING:
    from audiocl_bench.backbones.base import Backbone

NORM_FLOOR = 1e-12
"""Smallest squared norm a vector is divided by (L2P, official code)."""


def normalised(vectors: Tensor) -> Tensor:
    """Scale the last axis to unit length: v / sqrt(max(sum v^2, 1e-12))."""
    return vectors * vectors.square().sum(-1, keepdim=True).clamp_min(NORM_FLOOR).rsqrt()


def cosine_similarity(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the cosines [B, M] between queries [B, D] and keys [M, D]."""
    return normalised(queries) @ normalised(keys).T


def top_prompts(similarity: Tensor, k: int, *, batchwise: bool = False) -> Tensor:
    """Return the indices [B, k] of each clip's k nearest prompts, nearest first.

    Args:
        similarity: [B, M] with M >= k.
        batchwise: published behaviour of L2P: the k prompts that occur most often among the batch's choices serve all
            of its clips (ties: the smaller index). It leaks the session where test batches come from one session
            (methods.md section 5, point 2).

    Raises:
        ConfigError: k is larger than the pool.
    """
    if k > similarity.shape[1]:
        raise ConfigError(f"prompts: {k} prompts are to be chosen from a pool of {similarity.shape[1]}: lower top_k.")
    chosen = similarity.topk(k, dim=1).indices
    if not batchwise:
        return chosen
    counts = torch.bincount(chosen.flatten(), minlength=similarity.shape[1])
    return counts.argsort(descending=True, stable=True)[:k].expand(len(similarity), -1)


def run_prompted(backbone: Backbone, mel: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Run the backbone with prompt tokens before all others, which carry no position code.

    Args:
        backbone: gives `tokens` and `run`.
        mel: normalised log-mels [B, T, M].
        prompts: [B, P, D].

    Returns:
        Output tokens at the prompt positions [B, P, D], and all others [B, N, D] as `Backbone.pooled` takes them.
    """
    count = prompts.shape[1]
    output = backbone.run(torch.cat([prompts, backbone.tokens(mel)], dim=1))
    return output[:, :count], output[:, count:]


def gather_prefixes(
    pool: Tensor, chosen: Tensor, blocks: Sequence[int], *, published_reshape: bool = False
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return keys and values for `Backbone.run(prefix=...)`, each clip's own.

    Args:
        pool: [n, 2, M, P, H, D/H]: for each of n blocks keys (0) and values (1) of M prefixes of length P.
        chosen: prefix indices [B, k]; those of one clip are concatenated in this order.
        blocks: the n blocks the pool belongs to.
        published_reshape: published PyTorch behaviour of DualPrompt and HiDe-Prompt: [n, 2, B, ...] is reshaped to
            [n, B, 2, ...] without moving the axes, so that clip b gets as its keys what belongs to another clip
            (methods.md section 5, point 1). It leaks the session.

    Returns:
        block -> (keys [B, H, k P, D/H], values alike).
    """
    layers, _, _, length, heads, width = pool.shape
    batch, k = chosen.shape
    gathered = pool[:, :, chosen]  # [n, 2, B, k, P, H, D/H]
    if not published_reshape:
        gathered = gathered.transpose(1, 2)
    prefixes = gathered.reshape(layers, batch, 2, k * length, heads, width).transpose(3, 4)
    return {block: (layer[:, 0], layer[:, 1]) for block, layer in zip(blocks, prefixes, strict=True)}


def split_heads(rows: Tensor, num_heads: int) -> Tensor:
    """Turn prefix rows [..., P, D] into [..., P, H, D/H]."""
    return rows.unflatten(-1, (num_heads, -1))


def existing_blocks(wanted: Sequence[int], backbone: Backbone) -> tuple[int, ...]:
    """Return the wanted blocks that feed this backbone's head, in order; its last one where it has none of them."""
    found = tuple(block for block in sorted(set(wanted)) if block < backbone.layer)
    return found if found or not wanted else (backbone.layer - 1,)
