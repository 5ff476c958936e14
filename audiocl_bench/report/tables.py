"""Results in the terminal: a compact table of runs, one run in full, and plain listings.

Every function returns something `rich` can print. All accuracies are percent, as stored. Text from users (class names,
notes) is never read as rich markup, and nothing is told by colour alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from audiocl_bench import metrics
from audiocl_bench.results import SCORES, ResultsDir, method_source, own_origin

if TYPE_CHECKING:
    from audiocl_bench.leak import Reading

DASH = "-"
_CONDENSE_ABOVE = 12  # longest stream whose sessions are all shown
_EDGE = 3  # sessions shown in full at either end of a longer stream
_SCORE_TITLES = {
    "final_accuracy": "final accuracy (mean over sessions, the paper's score)",
    "micro_accuracy": "final accuracy, every clip weighs the same",
    "balanced_accuracy": "final accuracy, every class weighs the same",
    "average_incremental_accuracy": "average incremental accuracy, by session",
    "average_incremental_accuracy_by_sample": "average incremental accuracy, by clip",
    "forgetting": "forgetting (best before the last session minus last)",
    "backward_transfer": "backward transfer",
    "plasticity": "plasticity (a session right after learning it)",
}


# ---------------------------------------------------------------------------------------------------------------------
# Many runs


def runs_table(runs: pd.DataFrame) -> RenderableType:
    """Return the compact table shown after a run: one row per benchmark and method, best first.

    Benchmarks under one protocol with one backbone stand in one table; own data always stands alone. Scores are means
    over (order, seed) with the half width of the 95 % Student t interval; repeats of one order and seed are averaged
    first. Runs with different settings, data or weights are never averaged together. Tables on own or synthetic data or
    with a stand-in backbone are labelled and come last.

    Args:
        runs: rows of the runs table (`ResultsDir.runs()`).
    """
    if len(runs) == 0:
        return Text("No runs yet.")
    blocks: list[RenderableType] = []
    # A stand-in's random weights may differ from run to run; real weights that differ are another backbone.
    weights = runs["weights_hash"].where(~runs["stand_in"], "stand-in")
    keyed = runs.assign(_not_comparable=~runs["comparable"], _weights=weights)
    keyed["_alone"] = (keyed["benchmark"] + keyed["index_hash"]).where(keyed["own_data"], "")
    keys = ["_not_comparable", "_alone", "protocol", "backbone", "own_data", "mini", "stand_in", "_weights"]
    for _, block in keyed.groupby(keys, sort=True):
        blocks += [_block_table(block), Text()]
    return Group(*blocks, Text(_runs_legend(runs), style="dim"))


def _block_table(block: pd.DataFrame) -> RenderableType:
    first = block.iloc[0]
    several = block["benchmark"].nunique() > 1
    what = f"{block['benchmark'].nunique()} benchmarks" if several else first["benchmark"]
    title = Text(f"{what} · {first['protocol']} split · {first['backbone']}", style="bold")
    if label := not_comparable(first):
        title.append(f"\nNOT COMPARABLE with published numbers: {label}", style="yellow")
    table = _plain_table()
    if several:
        table.add_column("benchmark", overflow="fold")
    table.add_column("method", overflow="fold")
    for heading in ("runs", "final %", "avg inc %", "forgetting", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("audit", no_wrap=True)
    names = block["method"] + ("@" + block["variant"]).where(block["variant"] != "", "")
    for (benchmark, _), runs in block.assign(method=names).groupby(["benchmark", "index_hash"]):
        sources = pd.Series([method_source(run) for run in runs.to_dict("records")], runs.index, dtype=str)
        told = runs["config_hash"].str[:6] + (" " + sources.str[:6]).where(sources != "", "")
        origins = pd.Series([own_origin(run) for run in runs.to_dict("records")], runs.index, dtype=str)
        if len(set(origins) - {""}) > 1:  # own data that changed meanwhile
            told += (" " + origins).where(origins != "", "")
        variants = told.groupby(runs["method"]).transform("nunique") > 1
        named = runs.assign(_variant=told.where(variants, ""))
        groups = named.groupby(["method", "_variant"])
        rows = [_method_cells(str(method), str(variant), group) for (method, variant), group in groups]
        # Best first; a benchmark's rows are one fair comparison.
        for number, (_, cells) in enumerate(sorted(rows, key=lambda row: -row[0])):
            table.add_row(*([str(benchmark) if number == 0 else ""] if several else []), *cells)
    return Group(title, table)


def _method_cells(method: str, variant: str, runs: pd.DataFrame) -> tuple[float, list[RenderableType]]:
    """Return the mean final accuracy (to sort by) and the cells of one method's row."""
    averaged = runs.groupby(["order", "seed"])[["final_accuracy", "average_incremental_accuracy", "forgetting"]]
    per_stream = averaged.mean()
    summaries = [metrics.summarise(per_stream[name]) for name in per_stream.columns]
    name = Text(method)
    if variant:
        name.append(f" #{variant}", style="dim")
    number = str(len(per_stream)) + ("*" if len(per_stream) < len(runs) else "")
    seconds = float((runs["train_seconds"] + runs["eval_seconds"]).mean())
    failed = int((~runs["audit_passed"]).sum())
    audit = Text(f"FAILED {failed}/{len(runs)}", style="bold red") if failed else Text("passed")
    scores = [_mean_and_interval(summary, digits) for summary, digits in zip(summaries, (2, 1, 1), strict=True)]
    return summaries[0].mean, [name, number, *scores, short_duration(seconds), audit]


def _mean_and_interval(summary: metrics.Summary, digits: int) -> str:
    if math.isnan(summary.mean):
        return DASH
    interval = "" if math.isnan(summary.half_width) else f" ± {summary.half_width:.{digits}f}"
    return f"{summary.mean:.{digits}f}{interval}"


def _runs_legend(runs: pd.DataFrame) -> str:
    legend = "± half width of the 95 % interval over runs (none for one run). time: training and testing, mean per run."
    origins = pd.Series([own_origin(run) for run in runs.to_dict("records")], runs.index, dtype=str)
    told = ["method", "benchmark", "protocol", "backbone", "config_hash", "order", "seed", "_origin"]
    if runs.assign(_origin=origins).duplicated(told).any():
        legend += "\n* repeats of the same order and seed are averaged first and count once."
    return legend


@dataclass(frozen=True)
class LeakRow:
    """One audited learner.

    Attributes:
        method: as the user names it; benchmark, order: its stream.
        readings: its accuracies by batching; leak: what batches of one session give over single clips, points.
        failed: audits that failed.
        declared: it reproduces a published leak on purpose.
    """

    method: str
    benchmark: str
    order: int
    readings: tuple[Reading, ...]
    leak: float
    failed: tuple[str, ...]
    declared: bool


def leak_table(rows: Sequence[LeakRow]) -> RenderableType:
    """Return final accuracy by test batch: one line for batches by session, one for mixed ones."""
    sizes = sorted({reading.batch_size for row in rows for reading in row.readings})
    table = _plain_table()
    for heading in ("method", "benchmark", "order", "test batches"):
        table.add_column(heading, overflow="fold")
    for size in sizes:
        table.add_column(f"{size} clips" if size > 1 else "1 clip", justify="right", no_wrap=True)
    table.add_column("leak", justify="right", no_wrap=True)
    table.add_column("audit", no_wrap=True)
    for row in rows:
        for mixed in (False, True):
            by_size = {reading.batch_size: reading.accuracy for reading in row.readings if reading.mixed == mixed}
            names = ("", "", "", "mixed") if mixed else (row.method, row.benchmark, str(row.order), "by session")
            told = ("", "") if mixed else (f"{row.leak:+.2f}", "FAILED" if row.failed else "passed")
            table.add_row(*map(Text, names), *(f"{by_size[size]:.2f}" for size in sizes), *map(Text, told))
    legend = (
        "Final accuracy (%) of one trained learner, its test clips batched in different ways. leak: points that "
        "batches of one session give over single clips; 0 where a prediction depends on its own clip alone."
    )
    failures = [Text(f"{row.method} on {row.benchmark}: {_failure(row)}") for row in rows if row.failed]
    return Group(Text("Accuracy by test batch", style="bold"), table, Text(), *failures, Text(legend, style="dim"))


def _failure(row: LeakRow) -> str:
    reason = "; it reproduces a published leak on purpose." if row.declared else "."
    return f"failed {', '.join(row.failed)}{reason}"


def not_comparable(run: Any) -> str:
    """Return why a run's numbers stay apart from the paper's ("own data", "mini (synthetic data)", ...), or ""."""
    reasons = {
        "own data": run["own_data"],
        "mini (synthetic data)": run["mini"],
        "stand-in backbone": run["stand_in"],
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


# ---------------------------------------------------------------------------------------------------------------------
# One run


def show_run(results: ResultsDir, run_id: str) -> RenderableType:
    """Return everything stored about one run: origin, scores, accuracy matrix, sessions, costs, audit and notes.

    Raises:
        ResultsError: the run's files are missing, damaged or newer than this audiocl.
        UnknownNameError: no such run.
    """
    run, sessions, predictions = results.run(run_id), results.sessions(run_id), results.predictions(run_id)
    matrix = metrics.accuracy_matrix(predictions)
    parts = [
        _header(run),
        _scores(run),
        matrix_table(matrix),
        _learning_table(sessions),
        _cost_table(sessions),
        _totals(run),
        _audit(run),
        _json_table("Notes", run["notes"]),
        _provenance(run),
    ]
    spaced: list[RenderableType] = []
    for part in parts:
        if part is not None:
            spaced += [part, Text()]
    return Group(*spaced[:-1])


def _header(run: dict[str, Any]) -> RenderableType:
    title = Text(run["run_id"], style="bold")
    if label := not_comparable(run):
        title.append(f"\nNOT COMPARABLE with published numbers: {label}", style="yellow")
    pairs = {
        "method": run["method"],
        "benchmark": f"{run['benchmark']}, {run['protocol']} split, order {run['order']}, seed {run['seed']}",
        "stream": f"{run['num_sessions']} sessions, {run['num_classes']} classes",
        "backbone": run["backbone"],
        "settings": _plain_json(run["method_config"]),
        "ran": f"{run['started_at']} to {run['finished_at']}",
    }
    return Group(title, _pairs(pairs))


def _scores(run: dict[str, Any]) -> RenderableType:
    table = _plain_table()
    table.add_column("score")
    table.add_column("%", justify="right")
    for name in SCORES:
        table.add_row(_SCORE_TITLES[name], percent(run[name], digits=2))
    if run["fresh_final_accuracy"] is not None:
        table.add_row(
            "with statistics recomputed at the end (diagnostic)", percent(run["fresh_final_accuracy"], digits=2)
        )
    return Group(Text("Scores", style="bold"), table)


def matrix_table(matrix: np.ndarray) -> RenderableType:
    """Return an accuracy matrix [T, T] of fractions as a table in percent; long streams are condensed.

    Row: after which session; column: which session's test clips. Rows that were not evaluated are left out.
    """
    T = len(matrix)
    evaluated = {t for t in range(T) if not np.isnan(matrix[t, 0])}
    columns = _with_gaps(shown_sessions(T))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("after", justify="right", style="bold")
    for i in columns:
        table.add_column("…" if i is None else str(i), justify="right", no_wrap=True, min_width=1 if i is None else 5)
    for t in columns if len(evaluated) == T else [t for t in columns if t in evaluated]:
        if t is None:
            table.add_row("…")
        else:
            table.add_row(str(t), *_matrix_cells(matrix[t], t, columns))
    heading = [
        Text("Accuracy (%)", style="bold"),
        Text("row: after learning session …, column: test clips of session …"),
    ]
    notes = []
    if len(evaluated) < T:
        notes.append(Text(f"Tested after {len(evaluated)} of {T} sessions only.", style="dim"))
    if len(columns) > len(shown_sessions(T)):
        notes.append(Text(f"{len(shown_sessions(T))} of {T} sessions shown.", style="dim"))
    return Group(*heading, table, *notes)


def _matrix_cells(row: np.ndarray, t: int, columns: list[int | None]) -> list[str]:
    """Return the cells of one row up to the diagonal; the table leaves the rest of the row empty."""
    return ["…" if i is None else f"{100 * row[i]:.1f}" for i in columns[: columns.index(t) + 1]]


def shown_sessions(num_sessions: int) -> list[int]:
    """Return the sessions a table shows: all up to 12, else the first 3, every k-th, and the last 3 (at most 10)."""
    if num_sessions <= _CONDENSE_ABOVE:
        return list(range(num_sessions))
    first, last = range(_EDGE), range(num_sessions - _EDGE, num_sessions)
    room = 4  # one number and one gap mark each: what fits 80 columns
    step = math.ceil((num_sessions - 2 * _EDGE) / room)
    middle = [t for t in range(0, num_sessions, _round_step(step)) if _EDGE <= t < num_sessions - _EDGE]
    return [*first, *middle, *last]


def _round_step(step: int) -> int:
    """Round a stride up to 1, 2, 5 or 10 times a power of ten, so that the sessions shown are round numbers."""
    scale = 10 ** int(math.log10(step))
    return next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= step)


def _with_gaps(sessions: Sequence[int]) -> list[int | None]:
    """Put None wherever sessions are left out between two that are shown."""
    out: list[int | None] = []
    for position, t in enumerate(sessions):
        if position and sessions[position - 1] != t - 1:
            out.append(None)
        out.append(t)
    return out


def _learning_table(sessions: pd.DataFrame) -> RenderableType:
    table = _plain_table()
    table.add_column("session", justify="right")
    for heading in ("clips", "all", "new", "old"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("new classes", overflow="ellipsis", no_wrap=True)
    for row in _session_rows(sessions):
        if row is None:
            table.add_row(*["…"] * 6)
            continue
        accuracies = [percent(row[name]) for name in ("accuracy", "new_accuracy", "old_accuracy")]
        names = Text(f"{len(row['classes'])}: {', '.join(row['classes'])}")
        table.add_row(str(row["session"]), f"{row['train_clips']:,}", *accuracies, names)
    title = Text("Sessions", style="bold")
    return Group(title, Text("training clips; accuracy (%) on all classes so far, new ones, old ones"), table)


def _cost_table(sessions: pd.DataFrame) -> RenderableType:
    table = _plain_table()
    headings = ("session", "train", "test", "train\npasses", "test\npasses", "peak\nmemory", "trainable", "kept")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in _session_rows(sessions):
        if row is None:
            table.add_row(*["…"] * len(headings))
            continue
        table.add_row(
            str(row["session"]),
            short_duration(row["train_seconds"]),
            short_duration(row["eval_seconds"]),
            count(row["train_passes"]),
            count(row["eval_passes"]),
            megabytes(row["peak_memory_mb"]),
            count(row["trainable_parameters"]),
            megabytes(row["kept_bytes"] / 1e6),
        )
    return Group(Text("Costs per session", style="bold"), table)


def _session_rows(sessions: pd.DataFrame) -> list[dict[str, Any] | None]:
    rows = sessions.sort_values("session").to_dict("records")
    return [
        None if i is None else {str(k): v for k, v in rows[i].items()} for i in _with_gaps(shown_sessions(len(rows)))
    ]


def _totals(run: dict[str, Any]) -> RenderableType:
    passes = f"{count(run['train_passes'])} clips training, {count(run['eval_passes'])} testing"
    pairs = {
        "time": f"{duration(run['train_seconds'])} training, {duration(run['eval_seconds'])} testing",
        "encoder passes": f"{passes} ({blocks_told(run)})",
        "peak memory": megabytes(run["peak_memory_mb"]),
        "trainable": f"{run['trainable_parameters']:,} parameters at most in one session",
        "kept": f"{megabytes(run['kept_bytes'] / 1e6)} between sessions, at the end",
    }
    return Group(Text("Costs of the run", style="bold"), _pairs(pairs))


def blocks_told(run: Mapping[str, Any]) -> str:
    """Say how many blocks were run for how many clips, how many had to be, and how many lay in the feature bank."""
    told = f"{count(run['block_runs'])} clip-blocks run"
    if run["blocks_needed"]:
        told += f", {run['block_runs'] / run['blocks_needed']:.2f} times what was needed"
    if run["blocks_reused"]:
        told += f", {count(run['blocks_reused'])} reused from earlier runs"
    return told


def _audit(run: dict[str, Any]) -> RenderableType:
    verdict = Text("passed") if run["audit_passed"] else Text("FAILED", style="bold red")
    heading = Text("Audit: ", style="bold").append_text(verdict)
    checks = json.loads(run["audit"])
    return Group(heading, _pairs({k: _plain_value(v) for k, v in checks.items()})) if _is_filled(checks) else heading


def _json_table(title: str, text: str) -> RenderableType | None:
    content = json.loads(text)
    if not content:
        return None
    body = (
        _pairs({k: _plain_value(v) for k, v in content.items()}) if _is_filled(content) else Text(_plain_value(content))
    )
    return Group(Text(title, style="bold"), body)


def _provenance(run: dict[str, Any]) -> RenderableType:
    pairs = {
        "audiocl": f"{run['audiocl_version']}, commit {run['git_commit'] or 'unknown (not run from a clone)'}",
        "split": run["split_hash"],
        "index": run["index_hash"],
        "weights": run["weights_hash"],
        "config": run["config_hash"],
        "front end": _plain_json(run["front_end"]),
        "device": f"{run['device']}, {run['threads']} threads",
        "platform": run["platform"],
        "Python": run["python_version"],
        "libraries": _plain_json(run["library_versions"]),
    }
    return Group(Text("Provenance", style="bold"), _pairs(pairs))


# ---------------------------------------------------------------------------------------------------------------------
# Listings and cells


def listing(rows: Iterable[Sequence[Any]], columns: Sequence[str], title: str | None = None) -> RenderableType:
    """Return a plain table for `audiocl list ...`; None is shown as "-", booleans as yes and no.

    Args:
        rows: one sequence of values per line, as many as there are columns.
        columns: headings.
        title: printed above, left-aligned.

    Raises:
        ValueError: a row is longer or shorter than `columns`.
    """
    filled = [list(row) for row in rows]
    for row in filled:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} values for {len(columns)} columns: {row}")
    table = _plain_table()
    for position, heading in enumerate(columns):
        numbers = [isinstance(row[position], int | float | np.number) for row in filled if row[position] is not None]
        booleans = any(isinstance(row[position], bool | np.bool_) for row in filled)
        right = bool(numbers) and all(numbers) and not booleans
        table.add_column(Text(heading), justify="right" if right else "left", overflow="fold")
    for row in filled:
        table.add_row(*(Text(_plain_value(value)) for value in row))
    return Group(Text(title, style="bold"), table) if title else table


def percent(value: float | None, *, digits: int = 1) -> str:
    """Return a percentage without its sign, or "-" where there is none."""
    return DASH if value is None or math.isnan(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """Return a count in at most 6 characters: 950, 12.3 k, 1.2 M."""
    if value is None or math.isnan(value):
        return DASH
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= scale:
            return f"{value / (1e3 if unit == 'k' else scale):.1f} {unit}"
    return f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    """Return a size given in 10**6 bytes as kB, MB or GB."""
    if value is None or math.isnan(value):
        return DASH
    if value >= 1000:
        return f"{value / 1000:.2f} GB"
    if value >= 1 or value == 0:
        return f"{value:.1f} MB"
    return f"{value * 1000:.1f} kB"


def duration(seconds: float | None) -> str:
    """Return a time as 0.42 s, 12.3 s, 4 min 05 s or 2 h 07 min."""
    if seconds is None or math.isnan(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{min(seconds, 59.9):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def short_duration(seconds: float | None) -> str:
    """Return a time in at most 8 characters: 0.42 s, 12.3 s, 4.1 min, 2.1 h."""
    if seconds is None or math.isnan(seconds) or seconds < 59.95:
        return duration(seconds)
    return f"{seconds / 60:.1f} min" if seconds < 59.95 * 60 else f"{seconds / 3600:.1f} h"


def _plain_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)


def _pairs(pairs: dict[str, str]) -> Table:
    """Return a borderless two-column table of names and wrapped values."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(name.replace("_", " ")), Text(value))
    return table


def _is_filled(content: Any) -> bool:
    return isinstance(content, dict) and bool(content)


def _plain_json(text: str) -> str:
    return _plain_value(json.loads(text)) or "none"


def _plain_value(value: Any) -> str:
    """Return a JSON value as plain words: `a=1, b=yes`."""
    if value is None:
        return DASH
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{k}={_plain_value(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain_value(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
