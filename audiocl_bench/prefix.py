"""Blocks that do not train, run once per clip of a session: what enters the first trained block is kept and reused.

    prefix = FrozenPrefix(self.backbone, session, stop=first_trained_block)
    z = prefix.features(clips)                # as backbone.features(clips.mel), without the first blocks
    z = prefix.features(clips, copies)        # the clips, then copies [C, T, M] that are new every time

Kept tokens are computed in fixed chunks of consecutive clips, whatever batches ask for them, and without a gradient.
Clips past the memory budget go through the first blocks in the batch they come in, every time. That is the same
function of the same weights; in float32 its last bits may depend on a batch's size (on a CPU, Whisper's tokens moved by
up to 1e-5 in a batch of one clip and by nothing in larger ones), as those of every pass do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError
from audiocl_bench.ledger import mark, mark_of
from audiocl_bench.method import Clips, Session

CHUNK = 32
"""Clips that go through the first blocks together."""

BUDGET = 1 << 30
"""Most bytes of tokens that are kept of a session."""


class FrozenPrefix:
    """Tokens that enter block `stop`, kept for the clips of one session while it is open.

    Make it when the blocks before `stop` have the weights they will keep, and another one once they changed.
    """

    def __init__(self, backbone: Backbone, session: Session, *, stop: int, budget: int = BUDGET) -> None:
        """Keep nothing yet.

        Args:
            backbone: the network; its blocks before `stop` (and what makes tokens) must not train meanwhile.
            session: the open session. Everything kept is dropped when it closes.
            stop: first block that trains, or is given prompts, 0..`backbone.layer`.
            budget: bytes of tokens to keep at most.

        Raises:
            ConfigError: the network has no block `stop`.
        """
        if not 0 <= stop <= backbone.layer:
            raise ConfigError(f"prefix: {backbone.name} has blocks 0 to {backbone.layer - 1}: none starts at {stop}.")
        self._backbone, self._session, self._stop, self._budget = backbone, session, stop, budget
        self._done = torch.zeros(-(-session.num_clips // CHUNK), dtype=torch.bool)
        self._kept: Tensor | None = None  # [room, N, D]: tokens of the session's first clips
        self._room = session.num_clips  # clips that are kept, until the first ones show how large their tokens are
        self._history: int | None = None  # what the ledger calls the first blocks
        session.on_close(self._drop)

    def tokens(self, clips: Clips) -> Tensor:
        """Return what enters block `stop` [B, N, D] of clips of the session, without a gradient."""
        passes = self._backbone.passes
        before = passes.clips
        # What is kept also feeds statistics, so it is float32 where training steps are not.
        with torch.no_grad(), torch.autocast(clips.mel.device.type, enabled=False):
            tokens = self._run(clips.mel) if clips.index is None else self._looked_up(clips.index)
        passes.clips = before + len(clips)  # passes that the method asks for, whether or not the blocks were run
        return tokens

    def features(self, clips: Clips, copies: Tensor | None = None) -> Tensor:
        """Return pooled features [B (+ C), D] of clips, and after them of copies [C, T, M] that are no clips as stored.

        The blocks from `stop` on are run now, all rows together.
        """
        tokens = self.tokens(clips)
        if copies is not None:
            with torch.no_grad():
                tokens = torch.cat([tokens, self._run(copies)])
        return self._backbone.pooled(self._backbone.run(tokens, start=self._stop))

    @torch.no_grad()
    def session_features(self, batch_size: int = 64) -> Tensor:
        """Return pooled features [N_t, D] of all clips of the session in stored order, by the network as it is now."""
        return torch.cat([self.features(clips) for clips, _ in self._session.batches(batch_size)])

    def _looked_up(self, index: Tensor) -> Tensor:
        """Return the tokens of positions [B], computing chunks that are missing and have room."""
        for chunk in torch.div(index[index < self._room], CHUNK, rounding_mode="floor").unique().tolist():
            if not self._done[chunk] and chunk * CHUNK < self._room:
                self._compute(chunk)
        inside = index < self._room
        if self._kept is None or not inside.any():
            return self._run(self._session.clips(index).mel)
        if not inside.all():
            late = self._run(self._session.clips(index[~inside]).mel)
            tokens = late.new_empty(len(index), *late.shape[1:])
            tokens[~inside], tokens[inside] = late, self._kept[index[inside]]
        else:
            tokens = self._kept[index]
        return tokens if self._history is None else mark(tokens, self._session.numbers(index), self._history)

    def _compute(self, chunk: int) -> None:
        first = chunk * CHUNK
        rows = torch.arange(first, min(first + CHUNK, self._session.num_clips))
        made = self._run(self._session.clips(rows).mel)
        if self._kept is None:
            fits = self._budget // max(made[0].numel() * made.element_size(), 1)
            self._room = self._session.num_clips if fits >= self._session.num_clips else fits // CHUNK * CHUNK
            self._kept = made.new_empty(self._room, *made.shape[1:])
            known = mark_of(made)
            self._history = None if known is None else known.history
        if first < self._room:
            self._kept[first : first + len(made)] = made
            self._done[chunk] = True

    def _run(self, mel: Tensor) -> Tensor:
        return self._backbone.run(self._backbone.tokens(mel), stop=self._stop)

    def _drop(self) -> None:
        self._kept = None
        self._done.zero_()
