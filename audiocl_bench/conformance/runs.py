"""Checks that make whole runs on a miniature benchmark, killed and continued."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from audiocl_bench import config, runner
from audiocl_bench.conformance.examination import Examination
from audiocl_bench.conformance.streams import open_material
from audiocl_bench.conformance.verdicts import Broken, Fail, Skip, in_stage, listed
from audiocl_bench.errors import AudioclError
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan

MINIATURES = ("mini-us8k",)


class _Stopped(Exception):  # noqa: N818
    """Ends a run after a session, as a kill does."""


class _StopAfter(runner.Silent):
    def __init__(self, session: int) -> None:
        self._session = session

    def session_done(self, session: int, accuracy: float) -> None:
        del accuracy
        if session == self._session:
            raise _Stopped


@dataclass(frozen=True)
class _Made:
    """A finished run: its row and its predictions."""

    row: Mapping[str, Any]
    predictions: pd.DataFrame


def _miniature(e: Examination, name: str) -> tuple[Plan, Material]:
    def make() -> tuple[Plan, Material]:
        try:
            material = open_material(name, e.backbone_name)
        except AudioclError as error:
            raise Skip(f"{name} cannot be had here: {error}") from error
        with in_stage("building the settings"):
            chosen = config.build(e.cls.Config, name, e.settings, owner=e.label)
        return Plan(e.cls, chosen, e.seed, e.device), material

    e.first().all()
    return e.once(f"material {name}", make)


def _made_run(e: Examination, name: str) -> _Made:
    plan, material = _miniature(e, name)

    def make() -> _Made:
        with tempfile.TemporaryDirectory(prefix="audiocl-check-") as folder, in_stage(f"a run on {name}"):
            results = ResultsDir(Path(folder))
            identity, _ = runner.execute(plan, material, results)
            return _Made(dict(results.run(identity)), results.predictions(identity))

    return e.once(f"run {name}", make)


def run(e: Examination) -> str:
    """A whole run on a miniature benchmark ends with a result, and its audits pass."""
    if not e.miniatures:
        raise Skip("no miniature benchmark was asked for.")
    told = []
    for name in e.miniatures:
        made = _made_run(e, name)
        audits = _audits(made.row)
        leaky = bool(getattr(e.first().method, "leaks_across_batch", False))
        failed = [
            check
            for check, outcome in audits.items()
            if not outcome["passed"] and not (leaky and check == "batch_independence")
        ]
        if failed:
            raise Fail(
                f"on {name} the run ends, but its audits fail: {listed(failed)}",
                "mend what the checks above found; a result whose audit failed is never ranked.",
            )
        told.append(f"{name}: {made.row['final_accuracy']:.0f} % (random network: no meaning)")
    return f"{', '.join(told)}; all audits passed."


def _audits(row: Mapping[str, Any]) -> dict[str, Any]:
    import json

    stored = row["audit"]
    found: dict[str, Any] = json.loads(stored) if isinstance(stored, str) else dict(stored)
    return found


def run_resume(e: Examination) -> str:
    """A run that is killed after every session and continued predicts what an unbroken run predicts."""
    if not e.miniatures:
        raise Skip("no miniature benchmark was asked for.")
    if found := [name for name in ("state", "repeatability", "determinism", "resume") if name in e.failed]:
        raise Skip(f"cannot be judged: a learner that continues is another one already (see {listed(found)}).")
    kills = 0
    for name in e.miniatures:
        unbroken = _made_run(e, name)
        plan, material = _miniature(e, name)
        with tempfile.TemporaryDirectory(prefix="audiocl-check-") as folder:
            results = ResultsDir(Path(folder))
            for t in range(0 if e.cls.takes_whole_stream else material.stream.num_sessions):
                try:
                    with in_stage(f"a run on {name} that was continued at session {t}"):
                        runner.execute(plan, material, results, monitor=_StopAfter(t))
                except Broken as broken:
                    if not isinstance(broken.cause, _Stopped):
                        raise
                    kills += 1
            with in_stage(f"the end of a run on {name} that was killed"):
                identity, _ = runner.execute(plan, material, results)
            made = results.predictions(identity)
        if not made.equals(unbroken.predictions):
            count = int((made["predicted"].to_numpy() != unbroken.predictions["predicted"].to_numpy()).sum())
            raise Fail(
                f"on {name}, {count} of {len(made)} predictions differ after the run was killed and continued",
                "keep in state_dict whatever a later session needs (see state and resume).",
            )
    return f"killed {kills} times and continued, the predictions are equal."
