"""S-Prompt++: DualPrompt without G-prompts, as HiDe-Prompt's code names it (thu-ml/HiDe-Prompt 0ed4333).

It takes from S-Prompts (Wang et al., NeurIPS 2022) one prompt per session and nothing shared, and from DualPrompt keys,
prefixes and one head for all classes (methods.md section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from audiocl_bench.method import Card, MethodConfig, register, setting

from .dualprompt import DualPrompt, DualPromptConfig


@dataclass(frozen=True)
class SPromptPPConfig(DualPromptConfig):
    """Settings of S-Prompt++: DualPrompt's, where HiDe's configuration for CIFAR-100 does not differ."""

    preset: str = setting(
        "audio", "ours: HiDe's configuration for CIFAR-100 with PACE's budget of E_0 epochs, as for `dualprompt`"
    )
    g_blocks: tuple[int, ...] = setting((), "HiDe: no G-prompts", low=0)
    g_length: int = setting(5, "unused as long as g_blocks is empty", low=0)
    e_blocks: tuple[int, ...] = setting(
        (0, 1, 2, 3, 4),
        "HiDe; blocks the network lacks are left out, and where none remains its last one is taken",
        low=0,
    )
    e_length: int = setting(20, "HiDe", unit="keys and as many values per block", low=0)
    init_low: float = setting(-1.0, "HiDe, as DualPrompt's PyTorch code: prompts and keys start as U(-1, 1)")
    init_high: float = setting(1.0, "HiDe, see init_low")

    # configs/cifar100_sprompt_5e.py; its default for ImageNet-R is epochs=50 lr=0.005.
    sources: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "audio": {},
        "hide": {"e_length": 20, "pull": 1.0, "init_low": -1.0, "init_high": 1.0, "lr": 0.03, "epochs": 5},
    }


@register("sprompt++")
class SPromptPP(DualPrompt):
    """Learn one prefix with a key per session in the first blocks, and the rows of a linear head."""

    Config: ClassVar[type[MethodConfig]] = SPromptPPConfig
    card = Card(
        paper="HiDe-Prompt's baseline (official code 0ed4333), after Wang et al., S-Prompts (NeurIPS 2022).",
        trains="the session's own prefix and key, and the new rows of a linear head",
        keeps="prefixes, keys and head",
        deviations=("As `dualprompt`: prefixes are gathered correctly and chosen by each clip for itself.",),
    )
