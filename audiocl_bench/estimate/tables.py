"""Estimates on the terminal."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from audiocl_bench.estimate.model import Estimate, RunEstimate, Span
from audiocl_bench.report.commands import ranges
from audiocl_bench.report.tables import DASH, duration, megabytes, short_duration

_RIGHT = ("runs", "passes per clip", "first run", "later runs", "peak memory", "kept")
LEGEND = (
    "passes per clip: through the encoder, as a run reports them. first run: with an empty feature bank; later runs "
    "find their pretrained features in it. Times are of one run."
)


def estimate_table(found: Estimate) -> RenderableType:
    """Return the table of an estimate, its totals, and what to know of them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    rows = [("  " + run.method.replace(" ", "\n    "), *_cells(run)) for run in found.runs]  # a setting a line
    table.add_column("method", no_wrap=True)
    for heading in _RIGHT:
        table.add_column(heading, justify="right")
    streams: dict[str, list[int]] = {}
    for number, run in enumerate(found.runs):
        streams.setdefault(run.benchmark, []).append(number)
    for benchmark, numbers in streams.items():
        table.add_row(Text(benchmark, style="bold"))
        for number in numbers:
            table.add_row(*rows[number])
    rates = next(iter(found.rates.values()))
    title = Text(f"Estimate · {found.backbone} on {rates.device}, {rates.threads} CPU thread(s) a run", style="bold")
    notes = [Text(note, style="dim") for note in (LEGEND, *found.notes)]
    clips = [
        Text(
            f"{run.benchmark}: {run.train_clips:,} training and {run.test_clips:,} test clips, "
            f"{short_duration(run.prepare_seconds)} to prepare."
        )
        for run in (found.runs[numbers[0]] for numbers in streams.values())
    ]
    return Group(title, table, Text(), *clips, *map(Text, totals(found)), Text(), *notes)


def _cells(run: RunEstimate) -> list[str]:
    orders = f"{run.runs}" if run.runs == 1 else f"{run.runs} (orders {ranges(run.orders)})"
    if run.problem:
        return [orders, "not known", *[DASH] * (len(_RIGHT) - 2)]
    return [
        orders,
        _span(run.passes_per_clip, lambda value: f"{value:.1f}"),
        _span(run.first_seconds, short_duration),
        _span(run.later_seconds, short_duration),
        _span(run.peak_memory_mb, megabytes),
        _span(run.kept_bytes * 1e-6, megabytes),
    ]


def totals(found: Estimate) -> list[str]:
    """Return the sentences under the table."""
    bank, runs = found.bank_seconds, found.run_seconds
    lines = [
        f"{found.total_runs} {'run' if found.total_runs == 1 else 'runs'}: {_span(runs, _long)}; before them once "
        f"{_long(found.prepare_seconds)} to prepare the audio and {_span(bank, _long)} for features of the pretrained "
        "backbone."
    ]
    everything = found.wall_seconds
    if found.total_runs > 1 or found.jobs > 1:
        how = "one after the other" if found.jobs == 1 else f"{found.jobs} at once"
        lines.append(f"All together, {how}: {_span(everything, _long)}.")
    if unknown := [run.problem for run in found.runs if run.problem]:
        lines.append(f"Left out: {len(unknown)} that cannot be counted.")
    return lines


def _long(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:.1f} days" if days >= 2 else duration(seconds)


def _span(span: Span, told: Callable[[float], str]) -> str:
    low, high = told(span.low), told(span.high)
    if low == high or span.high < 1.01 * span.low:
        return high
    unit = high.partition(" ")[2]
    return f"{low.removesuffix(f' {unit}')} to {high}" if unit.isalpha() else f"{low} to {high}"
