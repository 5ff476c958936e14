"""What a change does to the published numbers: rows that are new, changed or gone, and by how many points."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import pandas as pd

from audiocl_bench import metrics
from audiocl_bench.report.tables import not_comparable
from audiocl_bench.results import SCORES, ResultsDir, own_origin

_PLACE = ["benchmark", "index_hash", "protocol", "backbone", "weights_hash"]
_ROW = ["method", "variant", "config_hash"]
_ORIGIN = "own_origin"
Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True)
class Change:
    """One row of the difference table: a method with its settings on one benchmark, protocol and backbone.

    Attributes:
        status: "new", "changed" or "removed".
        method: METHOD or METHOD@PRESET, with the first digits of the settings' hash where several settings stand side
            by side.
        benchmark, protocol, backbone: where it ran.
        label: why it stands beside nothing ("own data", ...), and which data where own data changed, or "".
        runs: runs before and after.
        before, after: mean final accuracy over orders and seeds in percent, NaN where there is none.
        remark: what else to know.
    """

    status: str
    method: str
    benchmark: str
    protocol: str
    backbone: str
    label: str
    runs: tuple[int, int]
    before: float
    after: float
    remark: str

    @property
    def points(self) -> float:
        """after - before, NaN where either is missing."""
        return self.after - self.before


def all_runs(collections: Iterable[ResultsDir]) -> pd.DataFrame:
    """Return the runs of all collections in one table."""
    return pd.concat([ResultsDir("nowhere").runs(), *(one.runs() for one in collections)], ignore_index=True)


def difference(before: pd.DataFrame, after: pd.DataFrame) -> list[Change]:
    """Compare two runs tables, row by row.

    Runs with different settings, data (own data that changed included) or weights are different rows, never averaged.
    A new row of a method that stood there with other settings says so, with the best mean of those.
    """
    told = {own_origin(run) for runs in (before, after) for run in runs.to_dict("records")} - {""}
    old, new = (_rows(runs, len(told) > 1) for runs in (before, after))
    changes = []
    settings: dict[Key, set[object]] = {}
    for key in {**old, **new}:
        settings.setdefault((*key[:2], *key[3:]), set()).add(key[2])
    for key in sorted({**old, **new}, key=repr):
        was, now = old.get(key), new.get(key)
        if was is not None and now is not None and _same(was, now):
            continue
        some = now if now is not None else was
        assert some is not None
        first = some.iloc[0]
        name = f"{first['method']}@{first['variant']}" if first["variant"] else str(first["method"])
        if len(settings[(*key[:2], *key[3:])]) > 1:
            name += f" #{str(first['config_hash'])[:6]}"
        status = "new" if was is None else "removed" if now is None else "changed"
        changes.append(
            Change(
                status,
                name,
                str(first["benchmark"]),
                str(first["protocol"]),
                str(first["backbone"]),
                _label(first),
                (0 if was is None else len(was), 0 if now is None else len(now)),
                _mean(was),
                _mean(now),
                _remark(key, old) if status == "new" else "",
            )
        )
    return sorted(changes, key=lambda change: (change.label != "", change.benchmark, change.protocol, change.backbone))


def table(changes: Iterable[Change]) -> list[tuple[str, ...]]:
    """Return the difference table as text, one tuple per line; see `COLUMNS`."""
    return [
        (
            change.status,
            change.method,
            change.benchmark + (f" ({change.label})" if change.label else ""),
            change.protocol,
            change.backbone,
            " -> ".join(map(str, change.runs)),
            _percent(change.before),
            _percent(change.after),
            "-" if math.isnan(change.points) else f"{change.points:+.2f}",
            change.remark,
        )
        for change in changes
    ]


COLUMNS = ("", "method", "benchmark", "split", "backbone", "runs", "before %", "after %", "points", "")
"""Headings of `table`: final accuracy, the mean over orders and seeds."""


def _rows(runs: pd.DataFrame, several_origins: bool) -> dict[Key, pd.DataFrame]:
    origins = [own_origin(run) if several_origins else "" for run in runs.to_dict("records")]
    columns = [*_ROW, *_PLACE, _ORIGIN]
    named = runs.assign(**{_ORIGIN: pd.Series(origins, runs.index, dtype=str)})
    return {tuple(group.iloc[0][columns]): group for _, group in named.groupby(columns, sort=True)}


def _label(first: pd.Series) -> str:
    return ", ".join(part for part in (not_comparable(first), str(first[_ORIGIN])) if part)


def _same(was: pd.DataFrame, now: pd.DataFrame) -> bool:
    columns = ["run_id", *SCORES]
    first, second = (frame[columns].sort_values("run_id", ignore_index=True) for frame in (was, now))
    return first.equals(second)


def _mean(rows: pd.DataFrame | None) -> float:
    if rows is None:
        return math.nan
    return metrics.summarise(rows.groupby(["order", "seed"])["final_accuracy"].mean()).mean


def _remark(key: Key, old: dict[Key, pd.DataFrame]) -> str:
    """Say how the same method did before with other settings, on the same data and backbone."""
    before = [_mean(rows) for other, rows in old.items() if (other[0], other[3:]) == (key[0], key[3:])]
    if not before:
        return ""
    return f"with other settings before: {max(before):.2f}" + (f", best of {len(before)}" if len(before) > 1 else "")


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
