"""Accounts of work: named amounts that add up, and the meter that a rehearsal writes them to.

Amounts, all of one run or a part of it:

    passes, block_runs, needed                as a run reports them (`backbones.base.PassCounter`)
    forward.flops, forward.calls, .clips      encoder blocks and what makes tokens, without a gradient
    train.flops, train.calls                  the same with a gradient, backward pass included
    bank.flops, bank.clips                    what the feature bank computes, once for all runs
    read.clips                                prepared clips that are decoded
    mm.float64, cholesky.float64, ...         floating-point operations of matrix algebra, by kind and type
    bytes.float64, bytes.other                bytes that all other operations read and write
    ops                                       operations of any size, each with its fixed cost
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from audiocl_bench.backbones.base import PassCounter
from audiocl_bench.errors import AudioclError


class CannotCountError(AudioclError):
    """A method does something that a rehearsal cannot count; the text says what."""


class Work(dict[str, float]):
    """Amounts by name; a name that is not there is 0."""

    def __missing__(self, key: str) -> float:
        return 0.0

    def add(self, other: Mapping[str, float], times: float = 1.0) -> None:
        """Add `times` the amounts of another account to this one."""
        for key, amount in other.items():
            self[key] = self[key] + times * amount

    def since(self, before: Mapping[str, float]) -> Work:
        """Return what came on top of an earlier copy of this account."""
        changed = {key: amount - before.get(key, 0.0) for key, amount in self.items()}
        return Work({key: amount for key, amount in changed.items() if amount})

    @classmethod
    def total(cls, parts: list[Work]) -> Work:
        """Return the sum of several accounts."""
        together = cls()
        for part in parts:
            together.add(part)
        return together


class Meter:
    """Where a rehearsal writes its work and its memory down. Copies of a network share their meter.

    Attributes:
        counts: what was counted here, without the passes that the network's own counter has.
        passes: the network's counter.
        live: bytes of tensors that are alive now: of float64 ones (on the CPU, whatever the device), of activations
            that wait for a backward pass and of all others (on the device).
        scale: what operations count for: more than 1 while they work on tokens that stand for more.
        peak: largest sum of them since `new_peak`; `graph_peak` is the activations' part of it.
        device_peak: largest sum of those on the device.
    """

    def __init__(self, passes: PassCounter, patience: float) -> None:
        """Count from nothing; give up after `patience` seconds of computing."""
        self.counts = Work()
        self.passes = passes
        self.live = {"float64": 0.0, "graph": 0.0, "other": 0.0}
        self.peak = self.graph_peak = 0.0
        self.device_peak = 0.0
        self.scale = 1.0
        self.muted = False
        self._patience, self._until = patience, time.process_time() + patience

    def __deepcopy__(self, memo: object) -> Meter:
        del memo
        return self

    def add(self, key: str, amount: float = 1.0) -> None:
        """Add to one amount."""
        if not self.muted:
            self.counts[key] = self.counts[key] + amount

    def snapshot(self) -> Work:
        """Return everything counted so far, passes included."""
        now = Work(self.counts)
        own = {"passes": self.passes.clips, "block_runs": self.passes.block_runs, "needed": self.passes.needed}
        now.add(own)
        return now

    def repeat(self, before: Work, times: float) -> Work:
        """Count what was done since `before` `times` more often, and return it (once)."""
        done = self.snapshot().since(before)
        if times > 0:
            self.counts.add(done, times)
        return done

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Count nothing inside the block; memory is still watched."""
        before, self.muted = self.muted, True
        try:
            yield
        finally:
            self.muted = before

    @contextmanager
    def scaled(self, scale: float) -> Iterator[None]:
        """Let operations count for more inside the block."""
        before, self.scale = self.scale, scale
        try:
            yield
        finally:
            self.scale = before

    def hold(self, size: float, kind: str = "other") -> None:
        """Note that tensors of this size came to life (or went, below zero)."""
        self.live[kind] += size
        if size > 0:
            self.brief(0.0)

    def brief(self, size: float) -> None:
        """Note that this much was needed beside what is alive, and is gone again."""
        graph = self.live["graph"]
        on_device = graph + self.live["other"] + size
        total = on_device + self.live["float64"]
        if total > self.peak:
            self.peak, self.graph_peak = total, graph + (size if graph else 0.0)
        self.device_peak = max(self.device_peak, on_device)

    def new_peak(self) -> None:
        """Forget the peaks so far."""
        self.peak = self.graph_peak = self.device_peak = 0.0
        self.brief(0.0)

    def check_patience(self) -> None:
        """Give up where counting takes too long.

        Raises:
            CannotCountError: the time is over.
        """
        if time.process_time() > self._until:
            raise CannotCountError(
                f"its own code took more than {self._patience:,.0f} s of computing even without an encoder"
            )
