"""Networks for counting: a real one's anatomy, and a phantom that looks like it and computes nothing.

A phantom has every module, shape and attribute of the real network, so that methods adapt it, prompt it, copy it and
save it as ever. Its blocks return what they are given and write down which work that stands for. Its tokens are few
(`TOKENS` a clip) and carry made-up features: in the world "calm" clips of a class look alike and are told apart
easily, and training changes nothing; in "restless" every pass gives new noise. What a method makes depend on its
features lies between the two.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiocl_bench import backbones
from audiocl_bench.audio import FrontEnd
from audiocl_bench.backbones import eat, whisper
from audiocl_bench.backbones.base import Backbone, Options, PassCounter
from audiocl_bench.errors import ConfigError
from audiocl_bench.estimate.hollow import Hollow
from audiocl_bench.estimate.work import CannotCountError, Meter

World = Literal["calm", "restless"]

TOKENS = 11
"""Tokens of a clip in a phantom: a size that hardly any other axis has, so that kept tokens are recognised."""

_FRAMES = 16  # of a phantom's log-mels, at least
_ROW_BYTES = 4


# ------------------------------------------------------------------------------------------------------- architecture


def architecture(spec: str, *, pool: str | None, layer: int | None, frames: int) -> tuple[Backbone, str]:
    """Return a network of a backbone's shape, and which weights it has: "random", or "real" ones.

    A named EAT, SSLAM or Whisper needs no weight file: its shape is known. Random values stand in all it computes with
    in `anatomy` and `rates`: its first block and what makes tokens; the memory of the others is never touched. A path
    and a plugin's network are loaded.

    Raises:
        UnknownNameError, CheckpointError, ConfigError: as `backbones.load`.
    """
    row = next((row for row in backbones.list_rows() if row.name == spec), None)
    if row is None or row.config is None:
        return backbones.load(spec, pool=pool, layer=layer, frames=frames), "real"
    options = Options(row.name, row.source, pool, layer, frames, row.stand_in)
    config = row.config
    with torch.device("meta"):
        if isinstance(config, eat.EATConfig):
            front = FrontEnd(kind="kaldi", n_mels=eat.MEL_BINS, frames=frames)
            network: Backbone = eat.EAT(config, options, front, time_patches=eat.MAX_TIME_PATCHES)
        else:
            front = FrontEnd(kind="whisper", n_mels=config.n_mels, frames=frames)
            network = whisper.WhisperEncoder(config, options, front)
    network = network.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    used = [network.blocks[0], *(child for name, child in network.named_children() if name != "blocks")]
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for part in used:
        for parameter in part.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
    for name, value in (*network.named_buffers(recurse=False), *network.named_parameters(recurse=False)):
        del name
        value.zero_()
    for part in used:
        for name, parameter in part.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return network, "random"


# ------------------------------------------------------------------------------------------------------------ anatomy


@dataclass(frozen=True)
class Anatomy:
    """What a clip costs in a network, counted from its operations.

    Attributes:
        tokens: N of one clip.
        frames, n_mels: of its log-mel.
        depth: number of blocks.
        parameters: numbers in all tensors, buffers included.
        stem_flops: floating-point operations until block 0.
        linear, square: a block takes `linear` N + `square` N^2 operations for N tokens.
        pass_bytes: of a block, most bytes alive at once beside input and weights, per token, without a gradient.
        kept_bytes: of a block, bytes per token that the backward pass needs; `all_kept_bytes` where its weights train.
        back_bytes: of a block, bytes per token that the backward pass needs for a moment beside them.
    """

    tokens: int
    frames: int
    n_mels: int
    depth: int
    parameters: int
    stem_flops: float
    linear: float
    square: float
    pass_bytes: float
    kept_bytes: float
    all_kept_bytes: float
    back_bytes: float

    @property
    def mel_bytes(self) -> int:
        """Bytes of one clip's log-mel, float32."""
        return self.frames * self.n_mels * _ROW_BYTES

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, float32."""
        return self.parameters * _ROW_BYTES

    def block_flops(self, tokens: float, prefix: float = 0.0) -> float:
        """Return the operations of a block for one clip of so many tokens, with a prefix of keys and values."""
        return self.linear * tokens + self.square * tokens * (tokens + prefix)

    def clip_flops(self, blocks: int) -> float:
        """Return the operations of one clip through the first blocks."""
        return self.stem_flops + blocks * self.block_flops(self.tokens)


def anatomy(network: Backbone) -> Anatomy:
    """Count a network's first block and what makes tokens; the block is run once on one clip, with a gradient."""
    front = network.front_end
    block, mel = network.blocks[0], torch.zeros(1, front.frames, front.n_mels)
    # Attributes of the block itself only: its input's token width.
    passes = network.passes.clips
    with torch.no_grad():
        tokens = network.tokens(mel)
    network.passes.clips = passes
    count, dim = int(tokens.shape[1]), network.dim
    once, twice = (_flops(block, torch.zeros(1, length, dim)) for length in (count, 2 * count))
    square = max(twice - 2 * once, 0.0) / (2 * count**2)
    linear = once / count - square * count
    return Anatomy(
        tokens=count,
        frames=front.frames,
        n_mels=front.n_mels,
        depth=network.depth,
        parameters=sum(value.numel() for value in network.state_dict().values()),
        stem_flops=_stem_flops(network, mel),
        linear=linear,
        square=square,
        pass_bytes=_pass_bytes(block, tokens) / count,
        kept_bytes=_kept_bytes(block, tokens) / count,
        back_bytes=_back_bytes(block, tokens) / count,
        all_kept_bytes=_kept_bytes(copy.deepcopy(block).requires_grad_(True), tokens) / count,
    )


def _flops(block: nn.Module, tokens: Tensor) -> float:
    meter = Meter(PassCounter(), math.inf)
    with torch.no_grad(), Hollow(meter):
        block(tokens)
    return sum(amount for key, amount in meter.counts.items() if key.startswith("mm."))


def _stem_flops(network: Backbone, mel: Tensor) -> float:
    """Count convolutions and linear layers on the way to the tokens."""
    total = 0.0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        del inputs
        total += 2.0 * output.numel() * module.weight[0].numel()

    handles = [part.register_forward_hook(count) for part in _stem(network)]
    passes = network.passes.clips
    try:
        with torch.no_grad():
            network.tokens(mel)
    finally:
        network.passes.clips = passes
        for handle in handles:
            handle.remove()
    return total


def _stem(network: Backbone) -> Iterator[nn.Conv1d | nn.Conv2d | nn.Linear]:
    """Yield all convolutions and linear layers of a network outside its blocks."""
    for name, child in network.named_children():
        if name != "blocks":
            yield from (part for part in child.modules() if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Linear)))


def _pass_bytes(block: nn.Module, tokens: Tensor) -> float:
    """Return the most bytes alive at once while a block runs without a gradient."""
    meter = Meter(PassCounter(), math.inf)
    with torch.no_grad(), Hollow(meter, real=True):
        block(tokens)
    return meter.peak


def _kept_bytes(block: nn.Module, tokens: Tensor) -> float:
    """Return the bytes that a block's backward pass needs, its weights left out, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = block(tokens.detach().requires_grad_())
    assert output is not None
    return float(sum(t.untyped_storage().nbytes() for where, t in kept.items() if where not in weights))


def _back_bytes(block: nn.Module, tokens: Tensor) -> float:
    """Return the most bytes alive at once in a block's backward pass beyond what the forward pass left."""
    meter = Meter(PassCounter(), math.inf)
    with torch.enable_grad(), Hollow(meter, real=True):
        output = block(tokens.detach().clone().requires_grad_()).sum()
        before = sum(meter.live.values())
        meter.new_peak()
        output.backward()
    return max(meter.peak - before, 0.0)


# ------------------------------------------------------------------------------------------------------------ phantom


@dataclass
class Nature:
    """What all copies of one phantom share.

    Attributes:
        meter: where work goes.
        anatomy: of the real network.
        world: how made-up features behave.
        centres: [classes, D], for the world "calm".
        generator: of all noise.
    """

    meter: Meter
    anatomy: Anatomy
    world: World
    centres: Tensor
    generator: torch.Generator

    def __deepcopy__(self, memo: object) -> Nature:
        del memo
        return self


def phantom(network: Backbone, nature: Nature) -> Backbone:
    """Return a phantom of a network; its parameters are the network's own, unless it is copied."""
    made = copy.copy(network)
    made._modules = dict(network._modules)
    made.front_end = dataclasses.replace(network.front_end, frames=_frames(network))
    made.passes = nature.meter.passes
    made.weights_hash = "phantom"
    made.__class__ = type(f"Phantom{type(network).__name__}", (type(network),), {"tokens": _tokens})
    made.nature = nature  # type: ignore[assignment]
    blocks = []
    for block in network.blocks:
        own = copy.copy(block)
        own._modules = dict(block._modules)
        own.__class__ = type(f"Phantom{type(block).__name__}", (type(block),), {"forward": _block})
        own.nature = nature  # type: ignore[assignment]
        own.plain = (  # type: ignore[assignment]
            sum(parameter.numel() for parameter in block.parameters()),
            sum(parameter.ndim > 1 for parameter in block.parameters()),
        )
        blocks.append(own)
    made.blocks = nn.ModuleList(blocks)
    return made


def quiet(network: Backbone) -> Backbone:
    """Return a phantom that shares everything but the counter of passes: for the feature bank."""
    own = copy.copy(network)
    own.passes = PassCounter()
    return own


def mels(network: Backbone, labels: Tensor) -> Tensor:
    """Return log-mels [B, T, M] of a phantom for clips of these classes [B]; all cells hold the class, plus one."""
    value = labels.to(torch.float32)[:, None, None] + 1
    return value.expand(-1, network.front_end.frames, network.front_end.n_mels)


def mel_share(network: Backbone, anatomy: Anatomy) -> float:
    """Return a phantom's bytes per log-mel as a share of the real ones."""
    return network.front_end.frames / anatomy.frames


def _frames(network: Backbone) -> int:
    return -(-_FRAMES // network.multiple) * network.multiple


def _tokens(self: Any, x: Tensor) -> Tensor:
    """Take log-mels for the made-up tokens of their classes.

    Where what makes tokens trains, its backward pass is counted: weights only, for nothing trains before it.
    """
    self._check_input(x)
    nature: Nature = self.nature
    clips = len(x)
    trains = torch.is_grad_enabled() and any(part.weight.requires_grad for part in _stem(self))
    kind, factor = ("train", 2.0) if trains else ("forward", 1.0)
    nature.meter.add(f"{kind}.flops", factor * clips * nature.anatomy.stem_flops)
    nature.meter.add("forward.clips", clips)
    labels = (x.amax((1, 2)) - 1).long().clamp(0, len(nature.centres) - 1)
    noise = torch.randn(clips, 1, self.dim, generator=nature.generator)
    level = nature.centres[labels][:, None] + 0.05 * noise if nature.world == "calm" else noise
    ripple = torch.linspace(-1.0, 1.0, TOKENS)[None, :, None]
    return level * (1 + 0.1 * ripple) + 0.01 * ripple


def _block(
    self: Any,
    x: Tensor,
    prefix: tuple[Tensor, Tensor] | None = None,
    on_attention_input: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Write down what a block would do with tokens [B, N, D], and return them."""
    nature: Nature = self.nature
    meter, body = nature.meter, nature.anatomy
    meter.check_patience()
    if on_attention_input is not None:
        with meter.scaled(body.tokens / TOKENS):
            on_attention_input(x)
    clips, length = len(x), float(x.shape[1])
    tokens = body.tokens + length - TOKENS if length >= TOKENS else body.tokens * length / TOKENS
    keys = 0.0 if prefix is None else float(prefix[0].shape[2])
    numbers, matrices = self.plain
    trained, own, own_matrices = [], 0, 0
    for parameter in self.parameters():
        own += parameter.numel()
        own_matrices += parameter.ndim > 1
        if parameter.requires_grad:
            trained.append(parameter)
    flops = clips * (body.block_flops(tokens, keys) + 2.0 * tokens * (own - numbers))
    extra = own_matrices - matrices  # low-rank matrices beside the block's own, two a pair
    moved = 2.0 * extra * clips * tokens * x.shape[2] * _ROW_BYTES if extra else 0.0
    given = [part for part in prefix or () if part.requires_grad]
    graded = torch.is_grad_enabled() and (x.requires_grad or bool(trained) or bool(given))
    share = min(sum(parameter.numel() for parameter in trained) / max(numbers, 1), 1.0)
    kind, factor = ("train", 2.0 + share) if graded else ("forward", 1.0)
    meter.add(f"{kind}.flops", factor * flops)
    meter.add(f"{kind}.calls", 2.0 if graded else 1.0)
    meter.add("ops", 3.0 * extra * factor)
    meter.add("bytes.other", moved * factor)
    meter.brief(clips * tokens * body.pass_bytes)
    if not graded:
        return x.view(x.shape)
    kept = body.kept_bytes + share * (body.all_kept_bytes - body.kept_bytes)
    if own > numbers and trained:  # what is trained beside the block's own weights needs the block's input
        kept += _ROW_BYTES * x.shape[2]
    held = _Held(meter, clips * tokens * kept, clips * tokens * body.back_bytes)
    connected: Tensor = _Through.apply(held, x, *trained, *given)
    return connected


class _Held:
    """Activations that wait for the backward pass, and what that needs beside them for a moment."""

    def __init__(self, meter: Meter, size: float, brief: float) -> None:
        self._meter, self._size, self._brief = meter, size, brief
        meter.hold(size, "graph")

    def backward(self) -> None:
        self._meter.brief(self._brief)
        self.release()

    def release(self) -> None:
        self._meter.hold(-self._size, "graph")
        self._size = 0.0

    def __del__(self) -> None:
        self.release()


class _Through(torch.autograd.Function):
    """Hands a tensor on and connects parameters to it, whose gradients are zero."""

    @staticmethod
    def forward(ctx: Any, held: _Held, x: Tensor, *others: Tensor) -> Tensor:
        ctx.held, ctx.shapes = held, [(other.shape, other.dtype) for other in others]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.held.backward()
        nothing = (torch.zeros(shape, dtype=dtype) for shape, dtype in ctx.shapes)
        return (None, grads[0], *nothing)


@contextmanager
def untouched(network: Backbone) -> Iterator[None]:
    """Refuse, inside the block, whatever computes with the insides of a phantom's block."""

    def refuse(module: nn.Module, inputs: Any) -> None:
        del module, inputs
        raise CannotCountError("it computes with parts of the encoder's blocks by itself")

    parts = [child for block in network.blocks for child in block.children()]
    handles = [part.register_forward_pre_hook(refuse) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_path(spec: str) -> None:
    """Refuse a backbone that is neither a name nor a path, before anything is counted."""
    if spec not in backbones.names() and not Path(spec).expanduser().exists():
        raise ConfigError(f"backbone '{spec}' is neither a name (`audiocl list backbones`) nor a path.")
