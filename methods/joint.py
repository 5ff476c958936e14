"""Joint training: the upper bounds. The whole stream arrives as one session, so nothing can be forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from audiocl_bench.method import Card, MethodConfig, register, setting

from .finetune import FineTune, FineTuneConfig
from .ranpac import RanPAC, RanPACConfig


@dataclass(frozen=True)
class JointConfig(FineTuneConfig):
    """Settings of joint training: fine-tuning's, with epochs that suit the whole stream."""

    epochs: int | None = setting(10, "ours: the loss has flattened; E_0 counts epochs of the first session only", low=1)
    min_steps: int = setting(
        500,
        "ours: more epochs where the whole stream has few clips; ten epochs of 192 clips are 80 steps, after which the "
        "loss still falls (docs/findings.md, section 8)",
        unit="steps",
        low=0,
    )
    lr_head: float = setting(0.05, "ours: 0.01 leaves the head far from done (docs/findings.md)", low=0)


@register("joint")
class Joint(FineTune):
    """LoRA and a linear head, trained on all classes at once (the paper's Joint row): one-session fine-tuning."""

    Config: ClassVar[type[MethodConfig]] = JointConfig
    card = Card(
        paper="the upper bound of the PACE paper's Table 2, EAT + LoRA; recipe of RanPAC (official code 012927f).",
        trains="one LoRA and a linear head, on all classes at once",
        keeps="LoRA and the head; it read every clip",
        deviations=("The head learns as fast as the body: at 0.01 it is far from done after ten epochs.",),
    )
    takes_whole_stream = True


@dataclass(frozen=True)
class JointClosedFormConfig(RanPACConfig):
    """Settings of the closed-form bound: RanPAC's, without adaptation."""

    fsa: bool = setting(False, "ours: frozen features, so it must equal incremental ridge with the same lambda")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {"official": {}}


@register("joint-closed")
class JointClosedForm(RanPAC):
    """Ridge on random features of the whole stream: with `fsa`, LoRA is trained on all classes first."""

    Config = JointClosedFormConfig
    card = Card(
        paper="RanPAC's closed-form head on the union of all sessions.",
        trains="nothing, or with `fsa=true` LoRA on all classes at once",
        keeps="as `ranpac`; it read every clip",
    )
    takes_whole_stream = True
