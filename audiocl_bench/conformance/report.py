"""What the checks found, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from audiocl_bench.errors import unknown_name

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        name: the check, one of `names()`.
        status: "passed", "failed", or "skipped" (the sentence says why).
        told: one sentence.
        fix: what to change, where the check failed.
        traceback: the full traceback where the method raised an error.
    """

    name: str
    status: Status
    told: str
    fix: str = ""
    traceback: str = ""

    @property
    def passed(self) -> bool:
        """Whether the check passed; a skipped one did not."""
        return self.status == "passed"

    def __str__(self) -> str:
        parts = [f"{self.name} {self.status}: {self.told}", self.fix and f"Fix: {self.fix}", self.traceback]
        return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Report:
    """What all checks found about a method; `report["resume"]` is one outcome."""

    method: str
    outcomes: tuple[Outcome, ...]

    def __getitem__(self, name: str) -> Outcome:
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        raise unknown_name("check", name, [outcome.name for outcome in self.outcomes])

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def __str__(self) -> str:
        return "\n".join([f"conformance of {self.method}", *map(str, self.outcomes)])
