"""Which runs a figure shows, what each group of them is called, and their means with intervals.

A group is what may be averaged: one method with one set of settings, on one benchmark and protocol, with one backbone's
weights; only class order and seed differ within it. A figure shows groups of one stream of data (`one_stream`) unless
its lines are benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from audiocl_bench import config, metrics, registry
from audiocl_bench.errors import AudioclError, ResultsError, unknown_name
from audiocl_bench.report.tables import not_comparable
from audiocl_bench.results import SCORES, ResultsDir, method_source, read_each

_STREAM = {
    "benchmark": "--bench",
    "protocol": "--protocol",
    "backbone": "--backbone",
}
_ABSENT = "absent"


# ----------------------------------------------------------------------------------------------------------- selection


@dataclass(frozen=True)
class Chosen:
    """Runs of one or several results directories.

    Attributes:
        runs: their rows of the runs table, in the order the methods were asked for.
        where: the directory of every run, by run id.
    """

    runs: pd.DataFrame
    where: Mapping[str, ResultsDir]

    def sessions(self) -> pd.DataFrame:
        """Return the sessions of all runs."""
        return pd.concat(list(read_each("sessions", self._where()).values()), ignore_index=True)

    def predictions(self) -> dict[str, pd.DataFrame]:
        """Return the predictions of every run, by run id."""
        return read_each("predictions", self._where())

    def _where(self) -> dict[str, ResultsDir]:
        return {run_id: self.where[run_id] for run_id in self.runs["run_id"]}


def select(
    directories: Sequence[ResultsDir],
    *,
    methods: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    protocols: Sequence[str] = (),
    backbones: Sequence[str] = (),
    orders: Sequence[int] = (),
    seeds: Sequence[int] = (),
    where: Mapping[str, str] | None = None,
) -> Chosen:
    """Return the runs that pass every filter; an empty filter passes all.

    Args:
        directories: results directories; a run that lies in several counts once.
        methods: METHOD or METHOD@PRESET; a METHOD alone means runs of its default preset, and all presets where there
            are no such runs.
        benchmarks, protocols, backbones: names.
        orders, seeds: numbers.
        where: setting -> value; keeps runs whose method has that setting with that value.

    Raises:
        ResultsError, UnknownNameError: nothing is left; the sentence names the filter and what there is.
    """
    kept: dict[str, ResultsDir] = {}
    frames = []
    for directory in directories:
        frame = directory.runs()
        new = [run_id not in kept for run_id in frame["run_id"]]
        for run_id in frame["run_id"][[not first for first in new]]:
            _agree(kept[run_id], directory, run_id)
        kept |= dict.fromkeys(frame["run_id"][new], directory)
        frames.append(frame[new])
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        looked = ", ".join(directory.name for directory in directories)
        raise ResultsError(f"there are no runs in {looked}: run a benchmark first, or point --results elsewhere.")
    runs = pd.concat(filled, ignore_index=True)
    for column, wanted in (("benchmark", benchmarks), ("protocol", protocols), ("backbone", backbones)):
        runs = _with_names(runs, column, wanted)
    runs = _with_methods(runs, methods)
    for column, numbers in (("order", orders), ("seed", seeds)):
        if numbers:
            left = runs[runs[column].isin(list(numbers))]
            if left.empty:
                raise ResultsError(f"no run has {column} {_listed(numbers)}: there are {_listed(runs[column])}.")
            runs = left
    for key, value in (where or {}).items():
        runs = _with_setting(runs, key, value)
    return Chosen(runs.reset_index(drop=True), kept)


def _agree(first: ResultsDir, second: ResultsDir, run_id: str) -> None:
    one, other = first.run(run_id), second.run(run_id)
    if any(one[name] != other[name] for name in SCORES):
        raise ResultsError(
            f"{first.name} and {second.name} tell different results of run {run_id}: give only one of them with "
            "--results."
        )


def _with_names(runs: pd.DataFrame, column: str, wanted: Sequence[str]) -> pd.DataFrame:
    if not wanted:
        return runs
    for name in wanted:
        if name not in set(runs[column]):
            raise unknown_name(f"{column} among the stored runs", name, set(runs[column]))
    return runs[runs[column].isin(list(wanted))]


def _with_methods(runs: pd.DataFrame, wanted: Sequence[str]) -> pd.DataFrame:
    names = runs["method"] + ("@" + runs["variant"]).where(runs["variant"] != "", "")
    if not wanted:
        return runs.assign(_name=names).sort_values(["_name", "run_id"], kind="stable").drop(columns="_name")
    parts = []
    for name in wanted:
        part = runs[names == name]
        if part.empty:
            part = runs[runs["method"] == name]
        if part.empty:
            raise unknown_name("method among the stored runs", name, set(names))
        parts.append(part)
    return pd.concat(parts).drop_duplicates("run_id")


def _with_setting(runs: pd.DataFrame, key: str, value: str) -> pd.DataFrame:
    """Keep runs with the setting; methods without it stay, so that others can stand beside them."""
    held = [json.loads(text).get(key, _ABSENT) for text in runs["method_config"]]
    if all(item == _ABSENT for item in held):
        known = {name for text in runs["method_config"] for name in json.loads(text)}
        raise unknown_name("setting of the stored runs", key, known)
    keep = [item == _ABSENT or _value(item) == value.lower() for item in held]
    if not any(kept and item != _ABSENT for kept, item in zip(keep, held, strict=True)):
        present = sorted({_value(item) for item in held if item != _ABSENT})
        raise ResultsError(f"no run has {key}={value}: there are {', '.join(present)}.")
    return runs[keep]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(set(numbers)))


# -------------------------------------------------------------------------------------------------------------- stream


def one_stream(runs: pd.DataFrame) -> pd.Series:
    """Return a row that stands for all runs after checking that they share benchmark, data, backbone and weights.

    Raises:
        ResultsError: there are no runs, or they are of several streams; the sentence names the option that chooses.
    """
    if runs.empty:
        raise ResultsError("there are no runs to draw: choose others, or run a benchmark first.")
    for column, option in _STREAM.items():
        found = list(dict.fromkeys(runs[column]))
        if len(found) > 1:
            raise ResultsError(
                f"the runs are of {len(found)} {column}s ({', '.join(sorted(found))}), and one figure never mixes "
                f"them: choose one with {option}."
            )
    _same(runs)
    return runs.iloc[0]


def streams(runs: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the runs benchmark by benchmark, for figures whose lines are benchmarks; all else must be shared.

    Raises:
        ResultsError: there are no runs, or they differ in protocol, backbone, or in whether they are comparable.
    """
    if runs.empty:
        raise ResultsError("there are no runs to draw: choose others, or run a benchmark first.")
    for column, option in (("protocol", "--protocol"), ("backbone", "--backbone")):
        if runs[column].nunique() > 1:
            raise ResultsError(
                f"the runs are of several {column}s ({', '.join(sorted(set(runs[column])))}), and one figure never "
                f"mixes them: choose one with {option}."
            )
    kinds = sorted({not_comparable(row) for _, row in runs.iterrows()})
    if len(kinds) > 1:
        told = " and ".join(kind or "published benchmarks" for kind in kinds)
        raise ResultsError(f"one figure never mixes {told}: choose benchmarks of one kind with --bench.")
    groups = [(str(name), group) for name, group in runs.groupby("benchmark", sort=True)]
    for _, group in groups:
        _same(group)
    return groups


def _same(runs: pd.DataFrame) -> None:
    """Check that runs of one benchmark, protocol and backbone really saw the same clips and the same network."""
    first = runs.iloc[0]
    where = f"runs on {first['benchmark']}"
    fix = "keep them in separate directories and point --results at one."
    if runs["index_hash"].nunique() > 1:
        raise ResultsError(f"{where} are on different clips (index_hash), so no figure can compare them: {fix}")
    if (runs.groupby("order")["split_hash"].nunique() > 1).any():
        raise ResultsError(f"{where} split the clips differently in one class order (split_hash): {fix}")
    weights = runs["weights_hash"].where(~runs["stand_in"].astype(bool), "stand-in")
    if weights.nunique() > 1:
        raise ResultsError(f"{where} used different weights of {first['backbone']} (weights_hash): {fix}")
    views = {_encoder(row) for _, row in runs.iterrows()}
    if len(views) > 1:
        told = "; ".join(sorted(views))
        raise ResultsError(f"{where} used {first['backbone']} in different ways ({told}): {fix}")


def _encoder(run: Any) -> str:
    """Return what else decides the features of a backbone: pooling, layer and front end."""
    notes = json.loads(run["notes"])
    backbone = notes.get("backbone", {}) if isinstance(notes, dict) else {}
    front = json.loads(run["front_end"])
    told = {"pool": backbone.get("pool"), "layer": backbone.get("layer"), **(front if isinstance(front, dict) else {})}
    return ", ".join(f"{key} {value}" for key, value in told.items() if value is not None)


def stream_title(run: Any) -> str:
    """Return "BENCHMARK, PROTOCOL split, BACKBONE" of a run."""
    return f"{run['benchmark']}, {run['protocol']} split, {run['backbone']}"


def stream_warning(run: Any) -> str:
    """Return the sentence that keeps runs on own, synthetic or stand-in material apart, or ""."""
    label = not_comparable(run)
    return f"Not comparable with published numbers: {label}." if label else ""


# -------------------------------------------------------------------------------------------------------------- labels


def labelled(runs: pd.DataFrame, *, ignoring: Sequence[str] = ()) -> pd.DataFrame:
    """Return the runs with a column `label`: equal for runs that may be averaged, different for all others.

    A label is METHOD or METHOD@PRESET. Where runs of it differ in settings, those that differ are named as on the
    command line (`pace msa=false`), the method's own defaults unnamed. Runs that failed their audit say so.

    Args:
        runs: rows of the runs table of one benchmark.
        ignoring: settings that a figure varies on purpose; they neither tell groups apart nor are named.
    """
    names = runs["method"] + ("@" + runs["variant"]).where(runs["variant"] != "", "")
    settings = [_settings(row, ignoring) for _, row in runs.iterrows()]
    labels: list[str] = [""] * len(runs)
    for name in dict.fromkeys(names):
        mine = [i for i, other in enumerate(names) if other == name]
        told = _distinct(str(name), runs.iloc[mine], [settings[i] for i in mine], ignoring)
        for i, label in zip(mine, told, strict=True):
            labels[i] = label
    frame = runs.assign(label=labels)
    failed = ~frame["audit_passed"].astype(bool)
    marked = {
        label: f"{label} (audit failed)" if group.all() else f"{label} (audit failed {group.sum()}/{len(group)})"
        for label, group in failed.groupby(frame["label"])
        if group.any()
    }
    frame["label"] = frame["label"].map(lambda label: marked.get(label, label))
    return frame


def _settings(run: Any, ignoring: Sequence[str]) -> dict[str, str]:
    """Return all settings of a run as text, with the source of a method that lies in a file."""
    held = {key: _value(value) for key, value in json.loads(run["method_config"]).items() if key not in ignoring}
    if source := method_source(run):
        held["source"] = source[:6]
    return held


def _distinct(name: str, runs: pd.DataFrame, settings: list[dict[str, str]], ignoring: Sequence[str]) -> list[str]:
    """Return one label per run of one METHOD@PRESET: the shortest that tells different settings apart."""
    keys = list(dict.fromkeys(key for held in settings for key in held))
    varying = [key for key in keys if len({held.get(key, _ABSENT) for held in settings}) > 1]
    if not varying:
        return [name] * len(settings)
    usual = _defaults(runs.iloc[0])
    short = [
        _named(name, held, [key for key in varying if held.get(key, _ABSENT) != usual.get(key)]) for held in settings
    ]
    if _tells_apart(short, settings):
        return short
    return [_named(name, held, varying) for held in settings]


def _tells_apart(labels: list[str], settings: list[dict[str, str]]) -> bool:
    pairs = {(label, tuple(sorted(held.items()))) for label, held in zip(labels, settings, strict=True)}
    return len(pairs) == len({label for label, _ in pairs})


def _named(name: str, held: dict[str, str], keys: Sequence[str]) -> str:
    return " ".join([name, *(f"{key}={held.get(key, _ABSENT)}" for key in keys)])


def _defaults(run: Any) -> dict[str, str]:
    """Return the settings a method has on this benchmark when nothing is set; empty if it is not installed."""
    if run["method"] not in registry.names():
        return {}
    try:
        method = registry.load(run["method"])
        chosen = {"preset": run["variant"]} if run["variant"] else {}
        built = config.build(method.Config, run["benchmark"], chosen, owner=run["method"])
    except AudioclError:  # a preset that this version no longer has
        return {}
    return {key: _value(value) for key, value in built.as_dict().items()}


def _value(value: Any) -> str:
    """Return a setting as it is written on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return ",".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


# --------------------------------------------------------------------------------------------------------------- means


def means(frame: pd.DataFrame, by: Sequence[str], values: Mapping[str, str] | str) -> pd.DataFrame:
    """Return mean and 95 % t interval over (order, seed), one row per group of `by`, in the order of appearance.

    Repeats of one order and seed are averaged first and count once.

    Args:
        frame: columns `by`, order, seed and the value.
        by: columns that make a group.
        values: name of the value's column, or {column: prefix} for several.

    Returns:
        columns `by`, n, mean, low, high (with "PREFIX_" before the last three for several values). low and high are NaN
        for n = 1.
    """
    columns = {values: ""} if isinstance(values, str) else {key: f"{prefix}_" for key, prefix in values.items()}
    rows = []
    for key, group in frame.groupby(list(by), sort=False, observed=True):
        per_stream = group.groupby(["order", "seed"])[list(columns)].mean()
        row: dict[str, Any] = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        row["n"] = len(per_stream)
        for column, prefix in columns.items():
            summary = metrics.summarise(per_stream[column])
            row |= {f"{prefix}mean": summary.mean, f"{prefix}low": summary.low, f"{prefix}high": summary.high}
        rows.append(row)
    return pd.DataFrame(rows)


def interval_note(counts: Iterable[int], shown: str) -> str:
    """Return the note that says what a mean is over and what `shown` ("band", "bar") is."""
    found = sorted(set(counts))
    if found == [1]:
        return "One run each."
    told = f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]} to {found[-1]}"
    alone = " (none for n = 1)" if found[0] == 1 else ""
    return f"Mean over class orders and seeds ({told}); {shown}: 95\u00a0% t interval{alone}."


def check_number(labels: Iterable[str], most: int, what: str = "lines") -> None:
    """Refuse a figure with too many series to be told apart.

    Raises:
        ResultsError: there are more than `most`.
    """
    number = len(set(labels))
    if number > most:
        raise ResultsError(
            f"{number} {what} cannot be told apart in one figure: choose at most {most} with --method, --bench or "
            "--where KEY=VALUE."
        )


def require_all(run_ids: Iterable[str], there: Collection[str], what: str) -> None:
    """Refuse runs without their other table.

    Raises:
        ResultsError: one is missing.
    """
    for run_id in run_ids:
        if run_id not in there:
            raise ResultsError(f"the {what} of run {run_id} were not given: give those of all runs.")


def half_widths(table: pd.DataFrame, prefix: str = "") -> list[list[float]]:
    """Return error bars [2, n] of a table from `means`; 0 where there is no interval."""
    half = ((table[f"{prefix}high"] - table[f"{prefix}low"]) / 2).fillna(0.0).tolist()
    return [half, half]


def each(items: Iterable[str], make: Callable[[int], Any]) -> dict[str, Any]:
    """Return {item: make(position)} for the distinct items, in the order of appearance."""
    return {item: make(position) for position, item in enumerate(dict.fromkeys(items))}
