"""ACIL: analytic class-incremental learning by recursive least squares (Zhuang et al., NeurIPS 2022; code 0afd6bf).

Random ReLU features phi(x) = ReLU(f(x) W_b) and a ridge classifier. With R_0 = I / gamma, the paper updates for every
minibatch (Phi [n, m], one-hot Y [n, C])

    R <- R - R Phi^T (I + Phi R Phi^T)^-1 Phi R        W <- W + R Phi^T (Y - Phi W)

whose fixed point is the batch solution W = (Phi^T Phi + gamma I)^-1 Phi^T Y over everything seen. `RidgeHead` keeps
Phi^T Phi and Phi^T Y instead of R and solves that in float64: the same W (tests/test_acil.py), without the drift of R
that makes the recursion diverge at small gamma in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from audiocl_bench.method import Card, register, setting

from .ranpac import RanPAC, RanPACConfig


@dataclass(frozen=True)
class ACILConfig(RanPACConfig):
    """Settings of ACIL. Those of first-session adaptation are RanPAC's and count only with `fsa`."""

    preset: str = setting(
        "official", "official, for CIFAR-100; 'imagenet' has the wider official buffer, 'fsa' adapts as RanPAC"
    )
    fsa: bool = setting(False, "off: the paper's ACL row; ACIL's base training from scratch has no use here")
    width: int = setting(8192, "official buffer for CIFAR-100; 0 is ridge on raw features", unit="features", low=0)
    scaling: Literal["ranpac", "acil"] = setting(
        "acil", "official: U(+-1/sqrt D), PyTorch's default; h^2 is 3 D times smaller than with RanPAC's N(0, 1)"
    )
    ridge: float | None = setting(
        0.1, "official gamma; belongs to this scaling and to float64; none = RanPAC's search", low=1e-8
    )

    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {"width": 8192},
        "imagenet": {"width": 16384},
        "fsa": {"fsa": True},
    }


@register("acil")
class ACIL(RanPAC):
    """Exact recursive ridge on random features with a fixed gamma; the sessions' order and borders do not matter."""

    Config = ACILConfig
    card = Card(
        paper="Zhuang et al., ACIL (NeurIPS 2022); official code ZHUANGHP/Analytic-continual-learning 0afd6bf.",
        trains="nothing, or with the preset `fsa` what RanPAC trains in the first session",
        keeps="second-order statistics of random features (square root or packed triangle, float64)",
        deviations=(
            "The statistics are kept instead of the recursion's inverse R: the same classifier, exactly, for every "
            "order and batch size; the recursion loses digits with every batch.",
            "The official base training of a network from scratch is left out, since the backbone is pretrained.",
        ),
    )
