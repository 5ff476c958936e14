"""The conformance suite: does a method keep the interface, and what it promises, on streams that take seconds?

    report = conformance.check(MyMethod)        # from Python or pytest
    audiocl check my.py:MyMethod                # the same from the command line

Every check knows nothing but the interface. Most work on a stream of three sessions that exists in memory only; two of
them make whole runs, killed and continued, on a miniature benchmark. The backbone is a tiny network with random
weights. Passing says that a method's results can be trusted to be its own, not that they are good.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from audiocl_bench import benchmarks, config
from audiocl_bench.conformance import honesty, interface, memory, runs
from audiocl_bench.conformance.examination import Examination
from audiocl_bench.conformance.honesty import BATCH_SIZES
from audiocl_bench.conformance.report import Outcome, Report, Status
from audiocl_bench.conformance.runs import MINIATURES
from audiocl_bench.conformance.streams import (
    CPU,
    FIRST_EPOCHS,
    FRAMES,
    NETWORK,
    PER_CLASS,
    SESSIONS,
    bytes_of,
    clips_of,
    network,
    open_material,
    open_session,
    reader,
    through_a_file,
    weights,
)
from audiocl_bench.conformance.verdicts import Broken, Fail, Skip, error_text, sentence
from audiocl_bench.errors import unknown_name
from audiocl_bench.method import Method

__all__ = [
    "BATCH_SIZES",
    "CPU",
    "FIRST_EPOCHS",
    "FRAMES",
    "MINIATURES",
    "NETWORK",
    "PER_CLASS",
    "SESSIONS",
    "Outcome",
    "Progress",
    "Report",
    "Status",
    "bytes_of",
    "check",
    "clips_of",
    "describe",
    "names",
    "network",
    "open_material",
    "open_session",
    "reader",
    "through_a_file",
    "weights",
]


Progress = Callable[[str, int, int], None]
"""Told before every check: its name, its number from 0, and how many there are."""

_CHECKS: dict[str, Callable[[Examination], str]] = {
    "description": interface.description,
    "settings": interface.settings,
    "signatures": interface.signatures,
    "builds": interface.builds,
    "learns": interface.learns,
    "features": interface.features,
    "columns": interface.columns,
    "state": honesty.state,
    "pickling": honesty.pickling,
    "batch-independence": honesty.batch_independence,
    "repeatability": honesty.repeatability,
    "encoder-version": honesty.encoder_version,
    "backbone": honesty.backbone,
    "data-access": honesty.data_access,
    "determinism": honesty.determinism,
    "resume": honesty.resume,
    "memory": memory.memory,
    "uneven-classes": interface.uneven_classes,
    "one-clip-classes": interface.one_clip_classes,
    "run": runs.run,
    "run-resume": runs.run_resume,
}


def names() -> tuple[str, ...]:
    """Return the names of all checks, in the order in which they run."""
    return tuple(_CHECKS)


def describe(name: str) -> str:
    """Return what a check demands, in one sentence.

    Raises:
        UnknownNameError: there is no such check.
    """
    if name not in _CHECKS:
        raise unknown_name("check", name, _CHECKS)
    return (_CHECKS[name].__doc__ or "").strip()


def check(
    cls: type[Method],
    *,
    settings: Mapping[str, Any] | None = None,
    backbone: str = NETWORK,
    miniatures: Sequence[str] = MINIATURES,
    only: Sequence[str] | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> Report:
    """Examine a method.

    An error inside the method is an outcome, never an exception; what depends on the part that failed is skipped.

    Args:
        cls: the method class.
        settings: changes to its defaults, for example fewer epochs; texts are read as the setting's type.
        backbone: name or path of the network.
        miniatures: benchmarks on which whole runs are made (`mini-us8k` takes some 20 s to synthesise the first time
            and is kept in the cache); empty skips these two checks.
        only: names of the checks to make; default all of them.
        seed: run seed.
        device: where the method works.
        progress: called before every check.

    Raises:
        UnknownNameError: `only` or `miniatures` names nothing, `settings` names no setting, or there is no such
            backbone.
        ConfigError: a setting has no proper value.
    """
    chosen = names() if only is None else tuple(only)
    for name in chosen:
        describe(name)
    for name in miniatures:
        benchmarks.get(name)
    examination = Examination(cls, dict(settings or {}), backbone, tuple(miniatures), seed, device)
    if settings:
        config.build(cls.Config, "tiny", settings, owner=cls.name or cls.__name__)
    outcomes = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number, name in enumerate(chosen):
            if progress is not None:
                progress(name, number, len(chosen))
            outcomes.append(_judged(name, examination))
            if outcomes[-1].status == "failed":
                examination.failed.add(name)
    return Report(cls.name or cls.__name__, tuple(outcomes))


def _judged(name: str, examination: Examination) -> Outcome:
    """Make one check; whatever happens in it is its outcome."""
    try:
        return Outcome(name, "passed", sentence(_CHECKS[name](examination)))
    except Fail as found:
        return Outcome(name, "failed", sentence(found.told), found.fix)
    except Skip as found:
        return Outcome(name, "skipped", sentence(str(found)))
    except Broken as broken:
        teller = examination.faults.setdefault(broken.fault, name)
        if teller != name:
            return Outcome(name, "skipped", f"cannot be judged: {broken.stage} failed (see {teller}).")
        return Outcome(name, "failed", sentence(broken.told), broken.fix, broken.traceback)
    except Exception as cause:  # a method may give back anything
        told = f"what the method gave back cannot be examined: {error_text(cause)}"
        return Outcome(name, "failed", told, "the traceback shows what was expected.", traceback.format_exc())
