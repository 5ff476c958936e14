"""What every backbone offers: tokens in, tokens out, with hooks for prefixes, attention inputs and costs."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.audio import FrontEnd
from audiocl_bench.errors import ConfigError
from audiocl_bench.ledger import Ledger, Mark, mark, mark_of, weights_of

Pool = Literal["cls", "mean"]
Prefix = Mapping[int, tuple[Tensor, Tensor]]
AttentionHook = Callable[[int, Tensor], None]
Shapes = Mapping[str, tuple[int | None, ...]]
"""Expected shape of every tensor by name; None matches any size."""


@dataclass
class PassCounter:
    """Work done by a backbone since it was built; a run reports differences of it.

    Attributes:
        clips: clips that entered `tokens`, and those whose tokens or features came out of a cache instead: the passes
            that a method asks for, whoever ran them.
        block_runs: blocks x clips that really went through `run`, in the feature bank on behalf of this run too.
        needed: blocks x clips that had to: those that carry a gradient, those whose clip is not known (masked copies,
            batches with prompts), and of all others each clip once for the same weights (see `ledger`).
        reused: blocks x clips that the feature bank had from earlier runs; they are in neither of the two above.
        ledger: which clips went through which weights.
    """

    clips: int = 0
    block_runs: int = 0
    needed: int = 0
    reused: int = 0
    ledger: Ledger = field(default_factory=Ledger, repr=False)


@dataclass(frozen=True)
class Options:
    """What may be chosen for a backbone beyond its weights.

    Attributes:
        name: registry name, or the name of the weight file or folder.
        source: where the weights come from (hub id and revision, or path), for provenance.
        pool: "cls" or "mean"; None takes the network's default.
        layer: number of blocks that feed the head, 1..depth; None takes all.
        frames: input length T in 10 ms rows; None takes the length of pre-training.
        stand_in: the weights are random, so that numbers made with them mean nothing.
    """

    name: str
    source: str
    pool: str | None = None
    layer: int | None = None
    frames: int | None = None
    stand_in: bool = False


class Attention(nn.Module):
    """Multi-head self-attention with separate projections, so that each one can be adapted by name.

    Args:
        dim: token width D.
        num_heads: H; D is a multiple of H.
        key_bias: whether the key projection has a bias (EAT: yes, Whisper: no).
    """

    def __init__(self, dim: int, num_heads: int, *, key_bias: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"backbone: width {dim} is not a multiple of its {num_heads} heads.")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=key_bias)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Attend [B, N, D] to itself, and to P further key/value pairs where `prefix` gives them.

        Softmax runs over [K_prefix; K]; queries, and so the number of tokens, do not change (prefix tuning,
        spec/methods.md section 2.2).

        Args:
            x: tokens [B, N, D].
            prefix: keys and values, each [B, H, P, D/H] or [1, H, P, D/H]; P may be 0.

        Raises:
            ConfigError: a prefix of another shape.
        """
        query, key, value = (self._split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if prefix is not None:
            key = torch.cat([_expand(prefix[0], key, "key"), key], dim=2)
            value = torch.cat([_expand(prefix[1], value, "value"), value], dim=2)
            if key.shape[2] != value.shape[2]:
                raise ConfigError(
                    f"prefix: {list(prefix[0].shape)} keys need as many values, not {list(prefix[1].shape)}."
                )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, H, N, D/H]."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def _expand(part: Tensor, like: Tensor, role: str) -> Tensor:
    """Broadcast a prefix to the batch of `like` [B, H, N, D/H], refusing any other shape."""
    batch, heads, _, width = like.shape
    fits = part.ndim == 4 and part.shape[0] in (1, batch) and (part.shape[1], part.shape[3]) == (heads, width)
    if not fits:
        raise ConfigError(
            f"prefix: the {role}s are [{batch} or 1, {heads}, P, {width}] here (clips, heads, length, head width), "
            f"not {list(part.shape)}."
        )
    return part.expand(batch, -1, -1, -1)


class MLP(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module, ABC):
    """One transformer block; `attn` is its `Attention`."""

    attn: Attention

    @abstractmethod
    def attention_input(self, x: Tensor) -> Tensor:
        """Return what enters the q, k and v projections [B, N, D] when the block's input is `x`."""

    @abstractmethod
    def mix(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the block's output [B, N, D] from its input and its attention output."""

    def forward(
        self,
        x: Tensor,
        prefix: tuple[Tensor, Tensor] | None = None,
        on_attention_input: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Run the block on tokens [B, N, D]; `on_attention_input` is shown what enters q, k and v."""
        entering = self.attention_input(x)
        if on_attention_input is not None:
            on_attention_input(entering)
        return self.mix(x, self.attn(entering, prefix))


class Backbone(nn.Module, ABC):
    """A pretrained transformer over log-mel patches, frozen and in eval mode when loaded.

    Neither network has dropout or batch statistics, so `train()` changes no output, and row i of a result depends on
    clip i alone.

    Attributes:
        name, source, stand_in: see `Options`.
        network: "eat" or "whisper".
        dim: token width D.
        depth: number of blocks L.
        num_heads: attention heads per block H.
        blocks: the L blocks; each has `.attn` with q_proj, k_proj, v_proj and out_proj.
        front_end: how a waveform becomes this network's input, its number of frames T included.
        pool: "cls" or "mean".
        has_cls: whether token 0 is a class token.
        layer: number of blocks whose output feeds the head, 1..depth.
        multiple: T has to be a multiple of this.
        max_frames: the largest T.
        weights_hash: see `hash_weights`; taken when loaded, before anything is adapted.
        passes: work done so far.
    """

    blocks: nn.ModuleList

    def __init_subclass__(cls, **options: Any) -> None:
        """Let every network's `tokens` pass on which clips they are of."""
        super().__init_subclass__(**options)
        if "tokens" in vars(cls) and not getattr(cls.tokens, "__isabstractmethod__", False):
            cls.tokens = _marking(cls.tokens)  # type: ignore[method-assign,assignment]

    def __init__(
        self,
        options: Options,
        *,
        network: str,
        dim: int,
        depth: int,
        num_heads: int,
        front_end: FrontEnd,
        pools: Sequence[Pool],
        multiple: int,
        max_frames: int,
    ) -> None:
        super().__init__()
        self.name, self.source, self.stand_in = options.name, options.source, options.stand_in
        self.network, self.dim, self.depth, self.num_heads = network, dim, depth, num_heads
        self.front_end, self.multiple, self.max_frames = front_end, multiple, max_frames
        self._check_frames(front_end.frames)
        self.pool: Pool = check_pool(options.name, options.pool, pools)
        self.has_cls = "cls" in pools
        self.layer = check_layer(options.name, options.layer, depth)
        self.weights_hash = ""
        self.passes = PassCounter()
        self._instead: Sequence[Callable[..., Tensor]] | None = None

    @abstractmethod
    def tokens(self, x: Tensor) -> Tensor:
        """Turn normalised log-mels [B, T, M] into the tokens [B, N, D] that enter block 0; counts B clips.

        Any T that is a multiple of `multiple` and at most `max_frames` is taken, also one that differs from
        `front_end.frames`. Further tokens (prompts) may be concatenated to the result before `run`.

        Raises:
            ConfigError: T or M does not fit.
        """

    def run(
        self,
        tokens: Tensor,
        *,
        start: int = 0,
        stop: int | None = None,
        prefix: Prefix | None = None,
        on_attention_input: AttentionHook | None = None,
        outputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Run blocks `start` to `stop` - 1 on tokens and return the last one's output [B, N, D].

        `run(run(t, stop=k), start=k)` equals `run(t)`. A network's closing LayerNorm (Whisper has one, EAT does not)
        counts as part of its last block: it is applied when, and only when, block `depth` - 1 runs.

        Args:
            tokens: [B, N, D]: the result of `tokens`, or the output of block `start` - 1.
            start: first block to run, 0..depth.
            stop: block to stop before, `start`..depth; default `self.layer`.
            prefix: for some blocks (by index) keys and values, see `Attention.forward`.
            on_attention_input: called as f(block index, x [B, N, D]) with the tensor that enters the block's q, k and v
                projections. EAT: the block's input; Whisper: the same after its LayerNorm.
            outputs: a list to which every block's output [B, N, D] is appended.

        Raises:
            ConfigError: `start`, `stop` or a prefix does not fit.
        """
        stop = self.layer if stop is None else stop
        if not 0 <= start <= stop <= self.depth:
            raise ConfigError(f"backbone {self.name}: blocks {start} to {stop} do not lie in 0..{self.depth}.")
        unused = sorted(set(prefix or ()) - set(range(self.depth)))
        if unused:
            raise ConfigError(f"prefix: block {unused[0]} does not exist, {self.name} has blocks 0..{self.depth - 1}.")
        known = mark_of(tokens)
        for index in range(start, stop):
            hook = None if on_attention_input is None else _bind(on_attention_input, index)
            given = (prefix or {}).get(index)
            # A hook is a new function every time, which a compiled block would be compiled anew for.
            block = self.blocks[index] if hook or self._instead is None else self._instead[index]
            tokens = block(tokens, given, hook)
            if index == self.depth - 1:
                tokens = self._close(tokens)
            if outputs is not None:
                outputs.append(tokens)
            known = self._counted(index, tokens, known if given is None else None)
        return tokens if known is None else mark(tokens, known.clips, known.history)

    @contextmanager
    def running(self, blocks: Sequence[Callable[..., Tensor]]) -> Iterator[None]:
        """Inside the block, let `run` call these, such as compiled versions of the blocks, instead of the blocks.

        Args:
            blocks: one callable per block, which computes what the block computes.
        """
        before, self._instead = self._instead, blocks
        try:
            yield
        finally:
            self._instead = before

    def _counted(self, index: int, tokens: Tensor, known: Mark | None) -> Mark | None:
        """Count block `index`, whose output is `tokens`; return what these are, if that is known."""
        passes = self.passes
        passes.block_runs += len(tokens)
        if known is None or tokens.requires_grad:
            passes.needed += len(tokens)
            return None
        history = passes.ledger.name(known.history, (index, weights_of(self._modules_of(index))))
        passes.needed += passes.ledger.first_time(history, known.clips)
        return Mark(known.clips, history)

    def _modules_of(self, index: int) -> list[nn.Module]:
        """Return block `index`, and for the last one what closes the network (see `_close`)."""
        block = self.blocks[index]
        return [block] if index < self.depth - 1 else [block, *self._stem()]

    def _stem(self) -> list[nn.Module]:
        return [child for name, child in self.named_children() if name != "blocks"]

    def _close(self, tokens: Tensor) -> Tensor:
        """Apply what follows the last block; nothing unless a network says otherwise."""
        return tokens

    def pooled(self, tokens: Tensor) -> Tensor:
        """Turn output tokens [B, N, D] into one feature per clip [B, D].

        "cls": token 0. "mean": the mean of all tokens that stand for audio, so without CLS where there is one. Callers
        that put prompt tokens first have to take them off before.
        """
        return tokens[:, 0] if self.pool == "cls" else self.audio_tokens(tokens).mean(dim=1)

    @abstractmethod
    def audio_tokens(self, tokens: Tensor) -> Tensor:
        """Return the tokens that stand for audio, [B, N', D], so without CLS where there is one."""

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled output [B, D] of block `layer` for normalised log-mels [B, T, M]."""
        return self.pooled(self.run(self.tokens(x)))

    def layer_features(self, x: Tensor) -> Tensor:
        """Return the pooled output of every block, [B, depth, D], for normalised log-mels [B, T, M].

        Whisper's row depth - 1 includes the closing LayerNorm; the rows before are its plain residual stream.
        """
        outputs: list[Tensor] = []
        self.run(self.tokens(x), stop=self.depth, outputs=outputs)
        return torch.stack([self.pooled(output) for output in outputs], dim=1)

    def describe(self) -> dict[str, Any]:
        """Return what decides this backbone's features, as plain values, for the provenance of a run."""
        return {
            "name": self.name,
            "network": self.network,
            "source": self.source,
            "weights_hash": self.weights_hash,
            "stand_in": self.stand_in,
            "pool": self.pool,
            "layer": self.layer,
            "depth": self.depth,
            "dim": self.dim,
            "front_end": self.front_end.describe(),
        }

    def _check_frames(self, frames: int) -> None:
        if frames < 1 or frames % self.multiple or frames > self.max_frames:
            raise ConfigError(
                f"backbone {self.name}: frames is a multiple of {self.multiple} up to {self.max_frames} "
                f"(10 ms each), not {frames}."
            )

    def _check_input(self, x: Tensor) -> None:
        """Count a batch of log-mels [B, T, M] after checking its shape."""
        if x.ndim != 3 or x.shape[2] != self.front_end.n_mels:
            raise ConfigError(
                f"backbone {self.name}: the input is [clips, frames, {self.front_end.n_mels} mel bins], "
                f"not {list(x.shape)}."
            )
        self._check_frames(x.shape[1])
        self.passes.clips += x.shape[0]


def _marking(tokens: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @wraps(tokens)
    def marked(self: Backbone, x: Tensor) -> Tensor:
        made, known = tokens(self, x), mark_of(x)
        if known is None or made.requires_grad or mark_of(made) is not None:
            return made
        own = (parameter for parameter in self._parameters.values() if parameter is not None)
        return mark(made, known.clips, self.passes.ledger.name(known.history, weights_of(self._stem(), own)))

    return marked


def _bind(hook: AttentionHook, index: int) -> Callable[[Tensor], None]:
    def show(x: Tensor) -> None:
        hook(index, x)

    return show


def check_pool(name: str, pool: str | None, pools: Sequence[Pool]) -> Pool:
    """Return `pool`, or the first of the network's `pools` for None; ConfigError for a pool it does not have."""
    if pool is None:
        return pools[0]
    for known in pools:
        if pool == known:
            return known
    reason = " (this network has no CLS token)" if pool in get_args(Pool) else ""
    raise ConfigError(f"backbone {name}: pool is {' or '.join(pools)}, not '{pool}'{reason}.")


def check_layer(name: str, layer: int | None, depth: int) -> int:
    """Return `layer`, or `depth` for None; ConfigError unless it is a whole number in 1..depth."""
    if layer is None:
        return depth
    if isinstance(layer, bool) or not isinstance(layer, int) or not 1 <= layer <= depth:
        raise ConfigError(
            f"backbone {name}: layer is a whole number from 1 to {depth} (blocks that feed the head), not {layer}."
        )
    return layer


def install_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a module built on the meta device its weights, freeze it and put it in eval mode."""
    module.load_state_dict(dict(state), strict=True, assign=True)
    module.requires_grad_(False)
    module.eval()


def hash_weights(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hexadecimal) over names, shapes and float32 little-endian values, in the order of names.

    Names are the network's own, so the same weights hash equal whichever file layout they came in.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        digest.update(f"{name}\x00{list(values.shape)}\x00".encode())
        digest.update(np.ascontiguousarray(values, dtype="<f4").data)
    return digest.hexdigest()
