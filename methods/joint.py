"""Joint training: the upper bounds. The whole stream arrives as one session, so nothing can be forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from audiocl_bench.method import MethodConfig, register, setting

from .finetune import FineTune, FineTuneConfig
from .ranpac import RanPAC, RanPACConfig


@dataclass(frozen=True)
class JointConfig(FineTuneConfig):
    """Settings of joint training: fine-tuning's, with epochs that suit the whole stream."""

    epochs: int | None = setting(10, "ours: the loss has flattened; E_0 counts epochs of the first session only", low=1)
    lr_head: float = setting(0.05, "ours: 0.01 leaves the head far from done (docs/findings.md)", low=0)


@register("joint")
class Joint(FineTune):
    """LoRA and a linear head, trained on all classes at once (the paper's Joint row): one-session fine-tuning."""

    Config: ClassVar[type[MethodConfig]] = JointConfig
    takes_whole_stream = True


@dataclass(frozen=True)
class JointClosedFormConfig(RanPACConfig):
    """Settings of the closed-form bound: RanPAC's, without adaptation."""

    fsa: bool = setting(False, "ours: frozen features, so it must equal incremental ridge with the same lambda")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}


@register("joint-closed")
class JointClosedForm(RanPAC):
    """Ridge on random features of the whole stream: with `fsa`, LoRA is trained on all classes first."""

    Config = JointClosedFormConfig
    takes_whole_stream = True
