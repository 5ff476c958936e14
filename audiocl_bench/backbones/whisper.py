"""The encoder of Whisper (Radford et al., 2022): two convolutions over time, sine positions, pre-norm blocks.

Names and mathematics follow the published Hugging Face checkpoints (openai/whisper-*); the decoder is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.audio import FrontEnd
from audiocl_bench.backbones.base import MLP, Attention, Backbone, Block, Options, Shapes, hash_weights, install_weights

EPS = 1e-5
STRIDE = 2
"""The second convolution halves the time axis: one token per 20 ms."""

_RENAMED = {
    ".self_attn.": ".attn.",
    ".self_attn_layer_norm.": ".norm1.",
    ".final_layer_norm.": ".norm2.",
    ".fc1.": ".mlp.fc1.",
    ".fc2.": ".mlp.fc2.",
}


@dataclass(frozen=True)
class WhisperConfig:
    """Size of a Whisper encoder: width, blocks, heads, MLP width, mel bins and number of positions (20 ms each)."""

    dim: int
    depth: int
    num_heads: int
    hidden: int
    n_mels: int = 80
    positions: int = 1500


TINY = WhisperConfig(dim=384, depth=4, num_heads=6, hidden=1536)
BASE = WhisperConfig(dim=512, depth=6, num_heads=8, hidden=2048)
SMALL = WhisperConfig(dim=768, depth=12, num_heads=12, hidden=3072)
MEDIUM = WhisperConfig(dim=1024, depth=24, num_heads=16, hidden=4096)
TINY_RANDOM = WhisperConfig(dim=64, depth=2, num_heads=4, hidden=256)


def published_shapes(config: WhisperConfig) -> Shapes:
    """Return the shape of every encoder tensor under its name in the Hugging Face layout, without `model.encoder.`."""
    dim, hidden = config.dim, config.hidden
    shapes: dict[str, tuple[int | None, ...]] = {
        "conv1.weight": (dim, config.n_mels, 3),
        "conv1.bias": (dim,),
        "conv2.weight": (dim, dim, 3),
        "conv2.bias": (dim,),
        "embed_positions.weight": (config.positions, dim),
        "layer_norm.weight": (dim,),
        "layer_norm.bias": (dim,),
    }
    for block in (f"layers.{index}." for index in range(config.depth)):
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{block}{norm}.weight": (dim,), f"{block}{norm}.bias": (dim,)}
        for linear, wide, narrow in (
            ("self_attn.q_proj", dim, dim),
            ("self_attn.k_proj", dim, dim),
            ("self_attn.v_proj", dim, dim),
            ("self_attn.out_proj", dim, dim),
            ("fc1", hidden, dim),
            ("fc2", dim, hidden),
        ):
            shapes[f"{block}{linear}.weight"] = (wide, narrow)
            if linear != "self_attn.k_proj":  # the one projection without a bias
                shapes[f"{block}{linear}.bias"] = (wide,)
    return shapes


def clean_name(name: str) -> str | None:
    """Strip `model.encoder.`, `model.` or `encoder.` from a tensor's name; None for decoder and output tensors."""
    for prefix in ("model.", "encoder."):
        name = name.removeprefix(prefix)
    return None if name.startswith(("decoder.", "proj_out.")) else name


def own_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename encoder tensors of the Hugging Face layout to this module's names."""
    state: dict[str, Tensor] = {}
    for name, value in published.items():
        own = name
        if name.startswith("layers."):
            for old, new in _RENAMED.items():
                own = own.replace(old, new)
            own = "blocks." + own.removeprefix("layers.")
        elif name.startswith("layer_norm."):
            own = "final_norm." + name.removeprefix("layer_norm.")
        elif name == "embed_positions.weight":
            own = "pos_embed"
        state[own] = value
    return state


class PreNormBlock(Block):
    """u = x + attn(LN1(x)); out = u + mlp(LN2(u))."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.attn = Attention(config.dim, config.num_heads, key_bias=False)
        self.norm1 = nn.LayerNorm(config.dim, eps=EPS)
        self.mlp = MLP(config.dim, config.hidden)
        self.norm2 = nn.LayerNorm(config.dim, eps=EPS)

    def attention_input(self, x: Tensor) -> Tensor:
        """Return the input after the block's first LayerNorm."""
        return self.norm1(x)

    def mix(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention output and the MLP to the residual stream."""
        middle = x + attended
        return middle + self.mlp(self.norm2(middle))


class WhisperEncoder(Backbone):
    """Whisper's encoder. Tokens: one per 20 ms, no CLS. Inputs shorter than 30 s use the first T/2 positions."""

    pos_embed: Tensor

    def __init__(self, config: WhisperConfig, options: Options, front_end: FrontEnd) -> None:
        super().__init__(
            options,
            network="whisper",
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            front_end=front_end,
            pools=("mean",),
            multiple=STRIDE,
            max_frames=STRIDE * config.positions,
        )
        self.conv1 = nn.Conv1d(config.n_mels, config.dim, 3, padding=1)
        self.conv2 = nn.Conv1d(config.dim, config.dim, 3, stride=STRIDE, padding=1)
        self.register_buffer("pos_embed", torch.zeros(config.positions, config.dim))
        self.blocks = nn.ModuleList(PreNormBlock(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.dim, eps=EPS)

    def tokens(self, x: Tensor) -> Tensor:
        """Turn normalised log-mels [B, T, M] into [B, T/2, D]: two convolutions with GELU, then positions."""
        self._check_input(x)
        stem = F.gelu(self.conv2(F.gelu(self.conv1(x.transpose(1, 2))))).transpose(1, 2)
        return stem + self.pos_embed[: stem.shape[1]]

    def _close(self, tokens: Tensor) -> Tensor:
        return self.final_norm(tokens)

    def audio_tokens(self, tokens: Tensor) -> Tensor:
        """Return all tokens."""
        return tokens


def build(config: WhisperConfig, published: Mapping[str, Tensor], options: Options) -> WhisperEncoder:
    """Make a frozen Whisper encoder from tensors under their published names (see `published_shapes`), float32.

    Raises:
        ConfigError: pool, layer or frames does not fit the network.
    """
    state = own_state(published)
    frames = STRIDE * config.positions if options.frames is None else options.frames
    front_end = FrontEnd(kind="whisper", n_mels=config.n_mels, frames=frames)
    with torch.device("meta"):
        network = WhisperEncoder(config, options, front_end)
    install_weights(network, state)
    network.weights_hash = hash_weights(state)
    return network


def random_weights(config: WhisperConfig, draw: Callable[[str, tuple[int, ...]], Tensor]) -> dict[str, Tensor]:
    """Return published tensors made by `draw(name, shape)`; positions are Whisper's own sines."""
    weights = {
        name: draw(name, tuple(size for size in shape if size is not None))
        for name, shape in published_shapes(config).items()
        if name != "embed_positions.weight"
    }
    return {**weights, "embed_positions.weight": sine_positions(config.positions, config.dim)}


def sine_positions(count: int, dim: int) -> Tensor:
    """Return [count, dim]: sines, then cosines, of position * 10000^(-i / (dim/2 - 1)), i = 0..dim/2 - 1."""
    half = dim // 2
    # Float64 inside: float32 sines differ in the last bit between machines.
    rates = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, dtype=torch.float64))
    angles = torch.arange(count)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
