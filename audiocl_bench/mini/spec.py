"""What a miniature corpus is made of: a list of clips known before any sound exists, and a way to render each one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

RATE = 16_000
"""Sample rate of every miniature clip, in Hz."""


@dataclass(frozen=True, order=True)
class ClipSpec:
    """One clip of a miniature corpus.

    Attributes:
        clip_id: "<label>/<group>_<take>", unique within the corpus; also the file's path without suffix.
        label: the class.
        group: what belongs together (a source, a speaker, a sentence, a singer), as in the corpus it stands in for.
        fold: "" or the number of the official fold that it imitates.
    """

    clip_id: str
    label: str
    group: str
    fold: str = ""


class Recipe(Protocol):
    """How one miniature corpus is synthesised."""

    @property
    def name(self) -> str:
        """The miniature corpus' name, such as `mini-esc50`."""

    def specs(self) -> tuple[ClipSpec, ...]:
        """Return all clips, sorted by clip id; needs no synthesiser and no audio."""

    def render(self, spec: ClipSpec) -> np.ndarray:
        """Return the sound of one clip: float32 [samples] in [-1, 1] at `RATE`.

        It depends on the clip alone, not on what was rendered before it.
        """
