"""Which forward passes were necessary: a ledger of clips and of what was computed of them.

A method may run its encoder as often as it likes; a good schedule runs a frozen block once per clip. To tell the two
apart without asking the method, the runner writes on every batch of log-mels which clips they are (`mark`), and the
backbone passes that on: from log-mels to tokens, from tokens to the output of every block, together with a name of all
weights they went through. What is made of the same clip by the same weights is the same work. Masked copies, batches
that a method puts together itself, prompts and tokens that carry a gradient have no mark: they always count as needed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

_MARK = "_audiocl_mark"
_MOST_BYTES = 64 << 20  # of the ledger; beyond it everything is forgotten, so that work may count as needed twice

History = int
"""Name of a chain of weights that tokens went through; 0 is a log-mel."""


@dataclass(frozen=True)
class Mark:
    """What a tensor is: row i was made of clip `clips[i]` by the weights named `history`."""

    clips: np.ndarray
    history: History = 0


def mark(tensor: Tensor, clips: np.ndarray | None, history: History = 0) -> Tensor:
    """Write on a tensor [B, ...] which clips it holds, and return it; None leaves it unmarked.

    Args:
        tensor: any tensor; a mark does not outlive a change of its values.
        clips: numbers of clips [B], int64, unique within a run.
        history: see `Ledger.name`.
    """
    if clips is not None:
        setattr(tensor, _MARK, (Mark(clips, history), tensor._version))
    return tensor


def mark_of(tensor: Tensor) -> Mark | None:
    """Return what a tensor was marked with, or None if it was not, or was changed since."""
    found, version = getattr(tensor, _MARK, (None, -1))
    return found if found is not None and version == tensor._version and len(found.clips) == len(tensor) else None


def weights_of(modules: Iterable[nn.Module], parameters: Iterable[Tensor] = ()) -> Hashable:
    """Name the present weights of some modules: equal names, equal function.

    Parameters count by identity and by PyTorch's counter of changes in place, adapters of `peft` by which of them are
    active and how they are scaled. A change past the counter (through `.data`) is not seen.
    """
    parts: list[Any] = [(id(parameter), parameter._version) for parameter in parameters]
    for module in modules:
        for part in module.modules():
            parts.extend((id(own), own._version) for own in part._parameters.values() if own is not None)
            if (scaling := getattr(part, "scaling", None)) is not None and isinstance(scaling, dict):
                parts.append((tuple(getattr(part, "active_adapters", ())), tuple(scaling.items())))
    return tuple(parts)


class Ledger:
    """Which clips went through which weights already."""

    def __init__(self) -> None:
        self._names: dict[Hashable, History] = {}
        self._seen: dict[History, np.ndarray] = {}

    def name(self, history: History, step: Hashable) -> History:
        """Return the name of `history` followed by one more step (a module's number and its weights)."""
        return self._names.setdefault((history, step), len(self._names) + 1)

    def first_time(self, history: History, clips: np.ndarray) -> int:
        """Count the clips that were not here before, each once, and remember them."""
        seen = self._seen.get(history, np.zeros(0, dtype=bool))
        if len(clips) and (most := int(clips.max()) + 1) > len(seen):
            seen = np.concatenate([seen, np.zeros(most - len(seen), dtype=bool)])
        fresh = np.unique(clips[~seen[clips]])
        seen[fresh] = True
        self._seen[history] = seen
        if sum(map(len, self._seen.values())) > _MOST_BYTES:
            self._seen.clear()
        return len(fresh)
