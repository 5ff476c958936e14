"""EAT (Chen et al., IJCAI 2024) and SSLAM (Alex et al., ICLR 2025), which is the same network with other weights.

Patches of 16 x 16 log-mel cells, fixed 2-D sine positions, one CLS token, one LayerNorm, then post-norm blocks; no
LayerNorm after the last block. Source: spec/eat.md section 2, read off the official code (cwx-worst-one/EAT).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from audiocl_bench.audio import AUDIOSET_MEAN, AUDIOSET_STD, FrontEnd
from audiocl_bench.backbones.base import MLP, Attention, Backbone, Block, Options, Shapes, hash_weights, install_weights
from audiocl_bench.errors import CheckpointError

PATCH = 16
MEL_BINS = 128
MEL_PATCHES = MEL_BINS // PATCH
EPS = 1e-6
DEFAULT_FRAMES = 1024
MAX_TIME_PATCHES = 768
"""Time patches that published weights store positions for (about two minutes)."""
POSITION_TOLERANCE = 1e-3
"""Stored positions differ from the formula by up to 2.5e-4 where they went through float16 (spec/eat.md section 3)."""
AVEX_MEAN, AVEX_STD = -5.553, 4.606
"""Input statistics of the Earth Species avex/esp-aves2 checkpoints (spec/eat.md section 3)."""

_STEMS = {
    "local_encoder.proj.": "patch_embed.proj.",
    "extra_tokens": "cls_token",
    "fixed_positional_encoder.positions": "pos_embed",
    "context_encoder.norm.": "pre_norm.",
}
_HEADS_AND_DECODERS = ("decoder.", "_ema", "fc_norm.", "head.", "classifier.")


@dataclass(frozen=True)
class EATConfig:
    """Size of an EAT: token width, blocks, heads and the ratio of MLP width to token width."""

    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return int(self.dim * self.mlp_ratio)


BASE = EATConfig(dim=768, depth=12, num_heads=12)
LARGE = EATConfig(dim=1024, depth=24, num_heads=16)
MINI = EATConfig(dim=224, depth=6, num_heads=7)
"""The size of recipes/eat-mini.toml."""
TINY = EATConfig(dim=96, depth=3, num_heads=4)


def published_shapes(config: EATConfig) -> Shapes:
    """Return the shape of every backbone tensor under its clean published name (fused qkv; spec/eat.md section 3)."""
    dim, hidden = config.dim, config.hidden
    shapes: dict[str, tuple[int | None, ...]] = {
        "patch_embed.proj.weight": (dim, 1, PATCH, PATCH),
        "patch_embed.proj.bias": (dim,),
        "cls_token": (1, 1, dim),
        "pos_embed": (1, None, dim),
        "pre_norm.weight": (dim,),
        "pre_norm.bias": (dim,),
    }
    for block in (f"blocks.{index}." for index in range(config.depth)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (dim,), f"{block}{norm}.bias": (dim,)}
        for linear, wide, narrow in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", hidden, dim),
            ("mlp.fc2", dim, hidden),
        ):
            shapes |= {f"{block}{linear}.weight": (wide, narrow), f"{block}{linear}.bias": (wide,)}
    return shapes


def clean_name(name: str) -> str | None:
    """Map a tensor's name in any published layout to its clean name; None for what is not the backbone.

    Layouts: Hugging Face (`model.`), fairseq pre-training (`modality_encoders.IMAGE.`), fairseq fine-tuning (`model.`
    and the former), avex (`backbone.model.`). Decoder, EMA teacher, fc_norm and heads are not the backbone.
    """
    for prefix in ("backbone.", "model.", "modality_encoders.IMAGE."):
        name = name.removeprefix(prefix)
    if name.startswith(_HEADS_AND_DECODERS):
        return None
    for old, new in _STEMS.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def own_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename clean published tensors to this module's names; the fused qkv [3 D, D] is split into its thirds."""
    state: dict[str, Tensor] = {}
    for name, value in published.items():
        if ".attn.qkv." in name:
            for role, part in zip("qkv", value.chunk(3, dim=0), strict=True):
                state[name.replace(".qkv.", f".{role}_proj.")] = part.clone()
        else:
            state[name.replace(".attn.proj.", ".attn.out_proj.").replace("patch_embed.proj.", "patch_embed.")] = value
    return state


def position_code(time_patches: int, dim: int) -> Tensor:
    """Return the fixed 2-D sine code [1, 8 * time_patches, dim], row t * 8 + f for time patch t and mel patch f.

    Channels [0, dim/2) code f and [dim/2, dim) code t, each as dim/4 sines followed by dim/4 cosines of
    position / 10000^(i / (dim/4)) (spec/eat.md section 2). The official code works in NumPy float32, whose powers and
    sines differ in the last bit between machines; here those two steps are float64, rounded, so that the bytes do not
    (at most 5e-5 apart at the far end of the table).
    """
    quarter = dim // 4
    exponents = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
    rates = (1.0 / 10000.0 ** exponents.astype(np.float64)).astype(np.float32)

    def code(count: int) -> np.ndarray:
        angle = np.outer(np.arange(count, dtype=np.float32), rates).astype(np.float64)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)

    mel = np.tile(code(MEL_PATCHES), (time_patches, 1))
    time = np.repeat(code(time_patches), MEL_PATCHES, axis=0)
    return torch.from_numpy(np.concatenate([mel, time], axis=1)[None])


def _extended(positions: Tensor, where: str) -> Tensor:
    """Check stored positions against the formula and extend them to `MAX_TIME_PATCHES`.

    Row t * 8 + f depends on (t, f) only, so shorter tables are prefixes of longer ones.
    """
    rows, dim = positions.shape[1], positions.shape[2]
    if rows == 0 or rows % MEL_PATCHES:
        raise CheckpointError(f"{where}: pos_embed has {rows} rows, but an EAT has a multiple of {MEL_PATCHES}.")
    formula = position_code(max(MAX_TIME_PATCHES, rows // MEL_PATCHES), dim)
    worst = float((positions - formula[:, :rows]).abs().max())
    if worst >= POSITION_TOLERANCE:
        warnings.warn(
            f"{where}: stored positions differ from the EAT formula by up to {worst:.1e}; the stored ones are used.",
            stacklevel=4,
        )
    return torch.cat([positions, formula[:, rows:]], dim=1)


class PostNormBlock(Block):
    """r = LN1(x + attn(x)); out = LN2(r + mlp(r)) (data2vec block with layer_norm_first = False)."""

    def __init__(self, config: EATConfig) -> None:
        super().__init__()
        self.attn = Attention(config.dim, config.num_heads)
        self.norm1 = nn.LayerNorm(config.dim, eps=EPS)
        self.mlp = MLP(config.dim, config.hidden)
        self.norm2 = nn.LayerNorm(config.dim, eps=EPS)

    def attention_input(self, x: Tensor) -> Tensor:
        """Return the block's raw input: post-norm blocks do not normalise before attention."""
        return x

    def mix(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add, normalise, MLP, add, normalise."""
        middle = self.norm1(x + attended)
        return self.norm2(middle + self.mlp(middle))


class EAT(Backbone):
    """EAT or SSLAM. Tokens: CLS at index 0, then T/16 x 8 patches in time-major order."""

    pos_embed: Tensor

    def __init__(self, config: EATConfig, options: Options, front_end: FrontEnd, *, time_patches: int) -> None:
        super().__init__(
            options,
            network="eat",
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            front_end=front_end,
            pools=("cls", "mean"),
            multiple=PATCH,
            max_frames=PATCH * time_patches,
        )
        self.patch_embed = nn.Conv2d(1, config.dim, PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.register_buffer("pos_embed", torch.zeros(1, MEL_PATCHES * time_patches, config.dim))
        self.pre_norm = nn.LayerNorm(config.dim, eps=EPS)
        self.blocks = nn.ModuleList(PostNormBlock(config) for _ in range(config.depth))

    def tokens(self, x: Tensor) -> Tensor:
        """Turn normalised log-mels [B, T, 128] into [B, 1 + T/16 * 8, D]: patches + positions, CLS first, LayerNorm."""
        self._check_input(x)
        patches = self.patch_embed(x.unsqueeze(1)).flatten(2).transpose(1, 2)
        patches = patches + self.pos_embed[:, : patches.shape[1]]
        return self.pre_norm(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches], dim=1))

    def audio_tokens(self, tokens: Tensor) -> Tensor:
        """Return the patches: all tokens but CLS."""
        return tokens[:, 1:]


def build(
    config: EATConfig,
    published: Mapping[str, Tensor],
    options: Options,
    *,
    mean: float = AUDIOSET_MEAN,
    std: float = AUDIOSET_STD,
) -> EAT:
    """Make a frozen EAT from tensors under their clean published names (see `published_shapes`), float32.

    Raises:
        ConfigError: pool, layer or frames does not fit the network.
        CheckpointError: the position table has a length that no EAT has.
    """
    state = own_state(published)
    fingerprint = hash_weights(state)  # before the positions are extended, which adds nothing that was learned
    state["pos_embed"] = _extended(state["pos_embed"], options.source)
    frames = DEFAULT_FRAMES if options.frames is None else options.frames
    front_end = FrontEnd(kind="kaldi", n_mels=MEL_BINS, frames=frames, mean=mean, std=std)
    with torch.device("meta"):
        network = EAT(config, options, front_end, time_patches=state["pos_embed"].shape[1] // MEL_PATCHES)
    install_weights(network, state)
    network.weights_hash = fingerprint
    return network


def random_weights(config: EATConfig, draw: Callable[[str, tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
    """Return clean published tensors made by `draw(name, shape)`; positions follow the formula (64 time patches)."""
    shapes = published_shapes(config)
    weights = {name: draw(name, _fixed(shape)) for name, shape in shapes.items() if name != "pos_embed"}
    return {**weights, "pos_embed": position_code(64, config.dim)}


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size is not None)
