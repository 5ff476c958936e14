"""LoRA on chosen projections of chosen blocks, one pair per adapted session, through the `peft` library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from audiocl_bench.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from audiocl_bench.backbones.base import Backbone


SUM = "sum"
"""Name of the adapter that holds the sum of folded pairs."""


class Pair(NamedTuple):
    """One low-rank pair: the layer's weight becomes W + scale * B A, with A [r, d_in] and B [d_out, r]."""

    block: int
    projection: str
    A: nn.Parameter
    B: nn.Parameter


class SessionLoRA:
    """LoRA pairs of all adapted sessions on one backbone. Their sum is active; only the newest pair trains.

    Adapters are named `s0`, `s1`, ... in order of `add`; `fold` puts one named `sum` in the place of all there are, and
    counting starts again. The backbone's own weights stay untouched and frozen.
    """

    def __init__(
        self, backbone: Backbone, *, blocks: Sequence[int], targets: Sequence[str], rank: int, scale: float = 1.0
    ) -> None:
        """Prepare LoRA on `targets` (for example k_proj, v_proj) of the attention of `blocks` (zero-based).

        Raises:
            UnknownNameError: a target is no projection of the backbone's attention.
            ConfigError: there is no target or no block.
        """
        known = [name for name, _ in backbone.blocks[0].get_submodule("attn").named_children()]
        for target in targets:
            if target not in known:
                raise unknown_name("LoRA target (setting 'targets')", target, known)
        if not targets or not blocks:
            missing = "target" if not targets else "block"
            raise ConfigError(f"LoRA has no {missing} to adapt: 'targets' takes {', '.join(known)}, blocks 0 and up.")
        self.backbone = backbone
        self.blocks = tuple(blocks)
        self.targets = tuple(targets)
        self.rank = rank
        self.scale = scale
        self.names: tuple[str, ...] = ()

    def add(self, generator: torch.Generator, *, sparse: bool = False) -> tuple[Pair, ...]:
        """Hang a new pair on every target and make it the only trainable one.

        A is Kaiming-uniform with a = sqrt 5 (U(+-1/sqrt d_in)), B is zero, so the network's output does not change.

        Args:
            generator: CPU generator of the entries.
            sparse: LoRA-DRS: every column of B has one entry N(0, 0.01^2) in a random row, so B A is not quite zero.
        """
        name = f"s{sum(name != SUM for name in self.names)}"
        self._inject(name)
        for pair in self.pairs(name):
            bound = 1 / math.sqrt(pair.A.shape[1])
            draw = torch.rand(pair.A.shape, generator=generator) * (2 * bound) - bound
            with torch.no_grad():
                pair.A.copy_(draw)
                pair.B.zero_()
                if sparse:
                    rows = torch.randint(pair.B.shape[0], (self.rank,), generator=generator)
                    entries = 0.01 * torch.randn(self.rank, generator=generator)
                    pair.B[rows, torch.arange(self.rank)] = entries.to(pair.B.device)
        self.freeze()
        for pair in self.pairs(name):
            pair.A.requires_grad_(True)
            pair.B.requires_grad_(True)
        return self.pairs(name)

    def pairs(self, name: str) -> tuple[Pair, ...]:
        """Return the pairs of one adapter, by block, then projection in the order of `targets`."""
        return tuple(
            Pair(block, target, layer.lora_A[name].weight, layer.lora_B[name].weight)
            for block, target, layer in self._layers()
        )

    def freeze(self) -> None:
        """Stop training: no parameter of the backbone or of any pair requires a gradient."""
        self.backbone.requires_grad_(False)

    def fold(self) -> None:
        """Put the sum of all pairs in the place of the pairs; the network's output stays the same up to rounding.

        Per layer the sum is kept as a pair A = I [d_in, d_in], B = sum B A [d_out, d_in], of which only B counts in
        `state_dict`: fewer numbers, and one product instead of many, once there are more than d / (2 r) pairs.
        """
        if not self.names:
            return
        sums = [
            torch.stack([pair.B.detach().double() @ pair.A.detach().double() for pair in pairs]).sum(0)
            for pairs in zip(*(self.pairs(name) for name in self.names), strict=True)
        ]
        gone = [name for name in self.names if name != SUM]
        configs: Any = self.backbone.peft_config
        if SUM not in self.names:
            self._inject_sum()
        for pair, total in zip(self.pairs(SUM), sums, strict=True):
            with torch.no_grad():
                pair.B.copy_(total)
        self.names = (SUM,)
        self._activate(self.names, self.scale)
        for name in gone:
            del configs[name]
            for _, _, layer in self._layers():
                layer.delete_adapter(name)
        self.freeze()

    @contextmanager
    def subtracted(self, names: Sequence[str]) -> Iterator[None]:
        """Run the backbone with W_0 - sum of the pairs in `names`, and no other pair (PACE Sec. 3.4; LoRA-DRS)."""
        self._activate(names, -self.scale)
        try:
            yield
        finally:
            self._activate(self.names, self.scale)

    def state_dict(self) -> dict[str, Tensor]:
        """Return every pair's A and B, keyed `adapter.block.projection.A|B`; the identities of `fold` are left out."""
        return {
            f"{name}.{pair.block}.{pair.projection}.{part}": tensor.detach().clone()
            for name in self.names
            for pair in self.pairs(name)
            for part, tensor in (("A", pair.A), ("B", pair.B))
            if name != SUM or part == "B"
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the pairs of `state`, adding the adapters that are missing; all end frozen and active."""
        for name in dict.fromkeys(key.split(".")[0] for key in state):
            if name not in self.names:
                self._inject_sum() if name == SUM else self._inject(name)
            for pair in self.pairs(name):
                with torch.no_grad():
                    if name != SUM:
                        pair.A.copy_(state[f"{name}.{pair.block}.{pair.projection}.A"])
                    pair.B.copy_(state[f"{name}.{pair.block}.{pair.projection}.B"])
        self.freeze()

    def _inject_sum(self) -> None:
        self._inject(SUM, self.backbone.dim)
        for pair in self.pairs(SUM):
            with torch.no_grad():
                pair.A.copy_(torch.eye(self.backbone.dim))

    def _inject(self, name: str, rank: int | None = None) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        blocks = "|".join(map(str, self.blocks))
        config = LoraConfig(
            r=rank or self.rank,
            lora_alpha=rank or self.rank,
            lora_dropout=0.0,
            bias="none",
            target_modules=rf"blocks\.({blocks})\.attn\.({'|'.join(self.targets)})",
        )
        # peft draws initial values from the global generator (they are overwritten): keep that draw contained. Its
        # warning about several adapters is about what is wanted here.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, self.backbone, adapter_name=name)
        self.names = (*self.names, name)
        self.backbone.eval()
        self._activate(self.names, self.scale)

    def _activate(self, names: Sequence[str], scale: float) -> None:
        if not self.names:
            return  # no pair was added yet: the layers are plain ones
        for _, _, layer in self._layers():
            trains = {parameter: parameter.requires_grad for parameter in layer.parameters()}
            layer.set_adapter(list(names))  # also flips requires_grad, which is ours to decide
            for parameter, flag in trains.items():
                parameter.requires_grad_(flag)
            for name in names:
                layer.scaling[name] = scale

    def _layers(self) -> Iterator[tuple[int, str, Any]]:
        for block in self.blocks:
            for target in self.targets:
                yield block, target, getattr(self.backbone.blocks[block].attn, target)
