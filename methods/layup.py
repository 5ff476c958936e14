"""LayUP: prototypes from several layers, decorrelated by their Gram matrix (Ahrens et al., TMLR 2024, 2312.08888).

RanPAC's ridge without the random projection, on the concatenated features of the last k layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from audiocl_bench.method import Card, register, setting

from .ranpac import RanPAC, RanPACConfig


@dataclass(frozen=True)
class LayUPConfig(RanPACConfig):
    """Settings of LayUP. Those of first-session adaptation are RanPAC's and count only with `fsa`."""

    preset: str = setting("frozen", "frozen: the pretrained network as it is; 'fsa' adapts on the first session first")
    layers: str = setting("last:6", "paper: k = 6 of 12 layers; a shallower network gives all it has")
    fsa: bool = setting(False, "the frozen rows of the paper; its full method is the preset 'fsa'")
    width: int = setting(0, "paper: no random projection", unit="random features; 0 is none", low=0)

    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {"frozen": {}, "fsa": {"fsa": True}}


@register("layup")
class LayUP(RanPAC):
    """Ridge on the concatenated class tokens (or means over tokens) of the last layers."""

    Config = LayUPConfig
    card = Card(
        paper="Ahrens, Lehmann, Lee and Wermter, LayUP (TMLR 2024, arXiv 2312.08888).",
        trains="nothing, or with the preset `fsa` what RanPAC trains in the first session",
        keeps="second-order statistics of the layers' features (square root or packed triangle, float64)",
        deviations=(
            "A network without a class token (Whisper) gives the mean of its tokens.",
            "With `fsa` the adapter is LoRA on K and V with a cosine head, as in our RanPAC; the paper's are those of "
            "its image baselines.",
            "The ridge search is RanPAC's on the current session, stratified and in float64.",
        ),
    )
