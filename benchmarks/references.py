"""The plain way of computing what audiocl computes: what one writes first, for the papers' equations, with no tricks.

Nothing here keeps, batches or reuses anything, and nothing counts work. `run.py` times these functions beside ours and
checks that both give the same answer (tests/test_benchmarks_run.py states how closely).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import audio
from audiocl_bench.backbones.base import Attention, Backbone

RATE = 16_000

# ------------------------------------------------------------------------------------------------------------- log-mels


@lru_cache
def kaldi_triangles(n_mels: int) -> Tensor:
    """Kaldi's mel triangles [n_mels, 257], 20 Hz to 8 kHz, bin by bin."""

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    low, high = mel(20), mel(RATE / 2)
    step = (high - low) / (n_mels + 1)
    bank = torch.zeros(n_mels, 257)
    for row in range(n_mels):
        left, centre, right = (low + (row + k) * step for k in range(3))
        for column in range(256):
            here = mel(column * RATE / 512)
            if left < here < right:
                bank[row, column] = (here - left) / step if here <= centre else (right - here) / step
    return bank


def kaldi_logmel(wave: Tensor, n_mels: int = 128) -> Tensor:
    """EAT's log-mel [n, n_mels] of one clip [N], as Kaldi's recipe is written down: step by step."""
    wave = wave - wave.mean()
    frames = torch.stack([wave[start : start + 400] for start in range(0, len(wave) - 399, 160)])
    frames = frames - frames.mean(dim=1, keepdim=True)
    emphasised = frames.clone()
    emphasised[:, 1:] -= 0.97 * frames[:, :-1]
    emphasised[:, 0] -= 0.97 * frames[:, 0]
    power = torch.fft.rfft(emphasised * torch.hann_window(400, periodic=False), n=512).abs() ** 2
    return torch.log(torch.clamp(power @ kaldi_triangles(n_mels).T, min=torch.finfo(torch.float32).eps))


@lru_cache
def slaney_triangles(n_mels: int) -> Tensor:
    """Whisper's mel triangles [n_mels, 201] (Slaney: linear to 1 kHz, logarithmic above, each of area 1)."""

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    top = 15 + 27 * math.log(8) / math.log(6.4)
    edges = [hertz(k * top / (n_mels + 1)) for k in range(n_mels + 2)]
    bank = torch.zeros(n_mels, 201)
    for row, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        for column in range(201):
            here = column * 40.0
            height = min((here - left) / (centre - left), (right - here) / (right - centre))
            bank[row, column] = max(0.0, height) * 2 / (right - left)
    return bank


def whisper_logmel(wave: Tensor, n_mels: int = 80, seconds: float = 30.0) -> Tensor:
    """Whisper's log-mel [100 `seconds`, n_mels] of one clip [N]: padded to 30 s as published, before its clamp."""
    padded = F.pad(wave, (0, max(0, int(seconds * RATE) - len(wave))))[: int(seconds * RATE)]
    spectrum = torch.stft(padded, 400, 160, window=torch.hann_window(400), return_complex=True)
    power = spectrum[:, :-1].abs() ** 2
    return torch.log10(torch.clamp(slaney_triangles(n_mels) @ power, min=1e-10)).T


def logmel(kind: str, wave: Tensor, n_mels: int) -> Tensor:
    """One clip's log-mel by either front end."""
    return kaldi_logmel(wave, n_mels) if kind == "kaldi" else whisper_logmel(wave, n_mels)


def read_clips(paths: Sequence[Path], kind: str, n_mels: int, frames: int) -> Tensor:
    """Decode every file and compute its log-mel, one clip after the other, cut or padded to [B, frames, n_mels]."""
    batch = torch.full((len(paths), frames, n_mels), 0.0 if kind == "kaldi" else -10.0)
    for row, path in zip(batch, paths, strict=True):
        mel = logmel(kind, audio.load(path), n_mels)[:frames]
        row[: len(mel)] = mel
    return batch


# -------------------------------------------------------------------------------------------------------------- network


def attention(module: Attention, x: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt d) V of tokens [B, N, D] with `module`'s projections: the whole [B, H, N, N] matrix at once.

    "Attention Is All You Need" (Vaswani et al. 2017), Eq 1.
    """
    batch, tokens, dim = x.shape
    width = dim // module.num_heads
    q, k, v = (
        project(x).view(batch, tokens, module.num_heads, width).permute(0, 2, 1, 3)
        for project in (module.q_proj, module.k_proj, module.v_proj)
    )
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(width), dim=-1)
    return module.out_proj((weights @ v).permute(0, 2, 1, 3).reshape(batch, tokens, dim))


def tokens(backbone: Backbone, mel: Tensor) -> Tensor:
    """What enters block 0, by the network's own layers called directly."""
    network = cast("dict[str, Callable[[Tensor], Tensor]]", dict(backbone.named_children()))
    pos = cast(Tensor, backbone.pos_embed)
    if backbone.network == "whisper":
        stem = F.gelu(network["conv2"](F.gelu(network["conv1"](mel.transpose(1, 2))))).transpose(1, 2)
        return stem + pos[: stem.shape[1]]
    patches = network["patch_embed"](mel.unsqueeze(1)).flatten(2).transpose(1, 2)
    patches = patches + pos[:, : patches.shape[1]]
    cls = cast(Tensor, backbone.cls_token).expand(len(mel), -1, -1)
    return network["pre_norm"](torch.cat([cls, patches], dim=1))


def blocks(backbone: Backbone, x: Tensor) -> Tensor:
    """All blocks in a plain loop."""
    for block in backbone.blocks[: backbone.layer]:
        x = block(x)
    closes = backbone.network == "whisper" and backbone.layer == backbone.depth
    return cast(nn.Module, backbone.final_norm)(x) if closes else x


def features(backbone: Backbone, mel: Tensor) -> Tensor:
    """Pooled features [B, D] of log-mels [B, T, M]: every block of the network, every time."""
    x = blocks(backbone, tokens(backbone, mel))
    return x[:, 0] if backbone.pool == "cls" else (x[:, 1:] if backbone.has_cls else x).mean(dim=1)


def train(
    forward: Callable[[Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    mel: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    clip: float,
    generator: torch.Generator,
) -> None:
    """A bare training loop over log-mels in memory: shuffle, forward, backward, clip, SGD; a cosine rate by epochs."""
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    for epoch in range(epochs):
        optimiser.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for rows in torch.randperm(len(mel), generator=generator).split(batch_size):
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(forward(mel[rows]), labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimiser.step()


def features_by_session(
    extract: Callable[[Tensor], Tensor], read: Callable[[Sequence[int]], Tensor], sessions: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Test features after every session, extracted again for all test clips of the sessions so far, in batches of 64.

    Args:
        extract: log-mels [B, T, M] -> features [B, D].
        read: clips -> log-mels.
        sessions: test clips of every session.
    """
    found = []
    for last in range(len(sessions)):
        clips = [clip for part in sessions[: last + 1] for clip in part]
        batches = [clips[start : start + 64] for start in range(0, len(clips), 64)]
        with torch.no_grad():
            found.append(torch.cat([extract(read(batch)) for batch in batches]))
    return found


# ---------------------------------------------------------------------------------------------------------------- ridge


def dense_solve(G: Tensor, Q: Tensor, lam: float) -> Tensor:
    """W = (G + lam I)^-1 Q as RanPAC's official code has it: an LU of the whole matrix, in the type of `G`."""
    return torch.linalg.solve(G + lam * torch.eye(len(G), dtype=G.dtype), Q)


def refactorised(R: Tensor, Z: Tensor, lam: float) -> Tensor:
    """W = (R^T R + lam I)^-1 R^T Z from the kept rows, nothing kept between sessions: the smaller system, factored."""
    if len(R) < R.shape[1]:
        K = R @ R.T
        K.diagonal().add_(lam)
        return R.T @ torch.cholesky_solve(Z, torch.linalg.cholesky(K))
    G = R.T @ R
    G.diagonal().add_(lam)
    return torch.cholesky_solve(R.T @ Z, torch.linalg.cholesky(G))
