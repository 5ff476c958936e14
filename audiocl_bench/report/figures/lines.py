"""Line figures: accuracy over sessions, CKA per block, and sweeps over frozen blocks and adapted sessions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from audiocl_bench.errors import ResultsError
from audiocl_bench.report.figures import paper as published
from audiocl_bench.report.figures import runs as grouping
from audiocl_bench.report.figures.style import (
    FAINT,
    Drawing,
    Page,
    Series,
    legend_line,
    percent_axis,
    plain_axes,
    series,
    styled,
    whole_numbers,
    width_of,
)
from audiocl_bench.report.tables import not_comparable

MOST_LINES = 12
_EVERY_MARKER = 16  # a marker on every session of streams up to this long; about eight on longer ones
_SWEEPS = ("freeze_blocks", "adapted_sessions")


# -------------------------------------------------------------------------------------------------------------- curves


def curves(runs: pd.DataFrame, sessions: pd.DataFrame, *, width: str | float | None = None) -> Drawing:
    """Draw accuracy over the sessions of one stream, one line per method: mean and 95 % t interval.

    The value after session t is the mean over sessions 0..t of the accuracy on their test clips, in percent
    (`metrics.session_averages`). A joint learner, tested only after the last session, is a single mark there.

    Args:
        runs: rows of the runs table, of one benchmark, protocol and backbone.
        sessions: rows of the sessions table; those of other runs are left out.
        width: see `style.width_of`.

    Returns:
        data: one row per label and session with n, mean, low, high.

    Raises:
        ResultsError: the runs are not of one stream, or there are too many methods.
    """
    row = grouping.one_stream(runs)
    named = grouping.labelled(runs)
    grouping.check_number(named["label"], MOST_LINES)
    grouping.require_all(named["run_id"], set(sessions["run_id"]), "sessions")
    merged = sessions.merge(named[["run_id", "label", "method", "order", "seed"]], on="run_id").dropna(
        subset=["accuracy"]
    )
    merged = merged.set_index("label").loc[list(dict.fromkeys(named["label"]))].reset_index()
    data = grouping.means(merged, ("label", "method", "session"), "accuracy")
    data = data.sort_values("session", kind="stable").reset_index(drop=True)
    counts = merged.groupby("label")[["order", "seed"]].apply(lambda part: len(part.drop_duplicates()))
    looks = grouping.each(named["label"], series)
    last = int(named["num_sessions"].max())
    short = [label for label in looks if set(data.loc[data["label"] == label, "session"]) == {last - 1}]
    notes = [
        grouping.interval_note(counts, "band"),
        f"Tested after the last session only: {', '.join(short)}." if short and last > 1 else "",
    ]
    with styled():
        page = Page(
            width_of(width, "single"),
            title=grouping.stream_title(row),
            warning=grouping.stream_warning(row),
            notes=notes,
        )
        axes = page.figure.subplots()
        alpha = 0.13 if len(looks) <= 4 else 0.07
        for number, (label, look) in enumerate(looks.items()):
            part = data[data["label"] == label]
            _line_with_band(axes, part["session"] + 1, part, look, alpha=alpha, markers=_marks(len(part), number))
        plain_axes(axes)
        percent_axis(axes.yaxis, data[["mean", "low", "high"]].to_numpy().clip(0, 100))
        room = max(0.02 * (last - 1), 0.15)
        axes.set_xlim(1 - room, last + room)
        whole_numbers(axes.xaxis, 1, last, most=11 if page.width < 5 else 16)
        axes.set_xlabel("sessions learned")
        axes.set_ylabel("accuracy over sessions so far (%)")
        entries = [
            (legend_line(look), f"{label} (n = {counts[label]})" if len(set(counts)) > 1 else label)
            for label, look in looks.items()
        ]
        figure = page.finish(2.1 if page.width < 5 else 2.8, entries)
    final = data.sort_values("session").groupby("label", sort=False)["mean"].last()
    alt = (
        f"Accuracy over {last} sessions, {grouping.stream_title(row)}. After the last session: "
        + ", ".join(f"{label} {final[label]:.1f} %" for label in looks)
        + "."
    )
    return Drawing("curves", f"curves-{row['benchmark']}", figure, _with_origin(data, row), _told(alt, row))


def _marks(points: int, number: int) -> Any:
    """Return which points of a line get a marker: all of a short line, about eight, shifted per line, of a long one."""
    if points <= _EVERY_MARKER:
        return None
    step = max(1, points // 8)
    return (int(number * step / 5) % step, step)


def _line_with_band(
    axes: Axes,
    x: Any,
    table: pd.DataFrame,
    look: Series,
    *,
    top: float = 100.0,
    alpha: float = 0.13,
    markers: Any = None,
) -> None:
    """Draw one line and the band of its intervals, which stays between 0 and `top`."""
    x = np.asarray(x, dtype=float)
    axes.plot(
        x,
        table["mean"],
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markevery=markers,
        clip_on=len(x) > 1,
        zorder=3,
    )
    if len(x) == 1:
        axes.errorbar(
            x, table["mean"], yerr=grouping.half_widths(table), color=look.colour, capsize=2, elinewidth=0.8, zorder=3
        )
    elif table["low"].notna().any():
        low, high = table["low"].clip(lower=0), table["high"].clip(upper=top)
        axes.fill_between(x, low, high, color=look.colour, alpha=alpha, linewidth=0)
        for edge in (low, high):  # in the line's own style, so that a band belongs to its line without colour too
            axes.plot(x, edge, color=look.colour, linestyle=look.line, linewidth=0.4, alpha=0.7, zorder=2)


# ----------------------------------------------------------------------------------------------------------------- CKA


def cka(
    runs: pd.DataFrame | None,
    sessions: pd.DataFrame | None = None,
    *,
    paper: pd.DataFrame | None = None,
    width: str | float | None = None,
) -> Drawing:
    """Draw how similar each block's features stay to the pretrained ones when all blocks are tuned (Figure 6).

    The similarity is linear CKA between probe and pretrained network on session 1, as PACE's layer probe notes it in
    `sessions.diagnostics` (`layer_cka`). Blocks before the first one under the threshold stay frozen; a ring marks the
    first trained block. One line per benchmark. Runs whose probe gave the same numbers as another's are drawn once.

    Args:
        runs: rows of the runs table; None draws the paper's figure alone.
        sessions: rows of the sessions table.
        paper: `paper.cka()`, drawn in a panel of its own.
        width: see `style.width_of`.

    Returns:
        data: one row per source ("ours", "paper"), benchmark, label and block with n, mean, low, high, chosen (share of
        the runs that train from this block on).

    Raises:
        ResultsError: no run has a layer probe, or runs that are not comparable would stand beside the paper's.
    """
    tables = []
    threshold = math.nan
    if runs is not None:
        assert sessions is not None
        ours, threshold = _probes(runs, sessions)
        tables.append(ours.assign(source="ours"))
        _may_stand_beside(runs, paper)
    if paper is not None:
        tables.append(
            paper.assign(source="paper", label="", n=1, low=math.nan, high=math.nan, chosen=1.0 * paper["chosen"])
        )
        threshold = 0.94 if math.isnan(threshold) else threshold
    if not tables:
        raise ResultsError("there is nothing to draw: give runs, the paper's numbers, or both.")
    data = pd.concat(tables, ignore_index=True)
    data = data[["source", "benchmark", "label", "block", "n", "mean", "low", "high", "chosen"]]
    names = _line_names(data)
    grouping.check_number(names, MOST_LINES)
    data = data.assign(_line=names)
    looks = grouping.each(names, series)
    row = None if runs is None else runs.iloc[0]
    sources = list(dict.fromkeys(data["source"]))
    with styled():
        page = Page(
            width_of(width, "double" if len(sources) > 1 else "single"),
            title=_sweep_title(row),
            warning="" if row is None else grouping.stream_warning(row),
            notes=[
                f"Ring: a run's first trained block, the first one under the dashed line (ρ = {threshold:g}).",
                *_interval_notes(data),
            ],
        )
        panels = np.atleast_1d(page.figure.subplots(1, len(sources), sharey=True, squeeze=True))
        for axes, source in zip(panels, sources, strict=True):
            part = data[data["source"] == source]
            axes.axhline(threshold, color=FAINT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            for name, look in looks.items():
                line = part[part["_line"] == name]
                if len(line):
                    _line_with_band(axes, line["block"], line, look, top=1.0)
                    ring = line[line["chosen"] > 0]
                    axes.plot(ring["block"], ring["mean"], **_RING, color=look.colour)
            plain_axes(axes)
            axes.margins(x=0.06)
            whole_numbers(axes.xaxis, 0, int(part["block"].max()))
            axes.set_xlabel("transformer block (0 = first)")
            axes.set_title(_panel_title(source, row, len(sources)), loc="left")
        panels[0].set_ylabel("CKA, tuned with pretrained")
        lowest = min(float(np.nanmin(data[["mean", "low"]].to_numpy())), 0.85)
        panels[0].set_ylim(max(-0.01, lowest - 0.05), 1.01)
        figure = page.finish(2.0, [(legend_line(look), name) for name, look in looks.items()])
    first = data[data["chosen"] > 0].groupby(["source", "_line"], sort=False, as_index=False)["block"].min()
    alt = "CKA between tuned and pretrained blocks. First trained block: " + ", ".join(
        f"{name} {block} ({source})" for source, name, block in first.itertuples(index=False)
    )
    return Drawing("cka", _stem("cka", data), figure, data.drop(columns="_line"), _told(f"{alt}.", row))


_RING: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 8.5,
    "markerfacecolor": "none",
    "markeredgewidth": 0.9,
    "zorder": 4,
}


def _probes(runs: pd.DataFrame, sessions: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """Return mean similarities per benchmark, label and block, and the threshold the runs used."""
    notes = sessions[["run_id", "diagnostics"]].assign(note=[json.loads(text) for text in sessions["diagnostics"]])
    probed = notes[[isinstance(note, dict) and "layer_cka" in note for note in notes["note"]]]
    probed = runs.merge(probed[["run_id", "note"]], on="run_id")
    if probed.empty:
        raise ResultsError(
            "none of these runs has a layer probe (layer_cka in its diagnostics): choose runs of pace with --method."
        )
    thresholds = {json.loads(text).get("rho_layer") for text in probed["method_config"]}
    if len(thresholds) > 1:
        told = ", ".join(sorted(f"{value:g}" for value in thresholds if value is not None))
        raise ResultsError(f"the probes used several thresholds ({told}): choose one with --where rho_layer=VALUE.")
    parts = []
    for name, group in grouping.streams(probed):
        kept = _without_copies(grouping.labelled(group))
        rows = [
            {
                "benchmark": name,
                "label": run["label"],
                "order": run["order"],
                "seed": run["seed"],
                "block": block,
                "cka": value,
                "chosen": float(block == run["note"].get("frozen_blocks")),
            }
            for _, run in kept.iterrows()
            for block, value in enumerate(run["note"]["layer_cka"])
        ]
        table = pd.DataFrame(rows)
        share = table.groupby(["label", "block"])["chosen"].mean()
        table = grouping.means(table, ("benchmark", "label", "block"), "cka")
        parts.append(
            table.assign(chosen=[share[label, block] for label, block in table[["label", "block"]].to_numpy()])
        )
    [threshold] = thresholds
    return pd.concat(parts, ignore_index=True), math.nan if threshold is None else float(threshold)


def _without_copies(runs: pd.DataFrame) -> pd.DataFrame:
    """Drop groups whose probes all gave, bit for bit, what another group's gave: their settings act after the probe."""
    seen: dict[str, dict[Any, tuple[float, ...]]] = {}
    for _, run in runs.iterrows():
        seen.setdefault(run["label"], {})[run["order"], run["seed"]] = tuple(run["note"]["layer_cka"])
    kept: list[str] = []
    # Groups with more runs stay; among equals the plainest name does.
    for label in sorted(seen, key=lambda name: (-len(seen[name]), len(name), name)):
        if not any(seen[label].items() <= seen[other].items() for other in kept):
            kept.append(label)
    return runs[runs["label"].isin(kept)]


# -------------------------------------------------------------------------------------------------------------- sweeps


@dataclass(frozen=True)
class _Sweep:
    """A figure of accuracy against one setting."""

    kind: str
    setting: str
    column: str
    x_label: str
    run_hint: str
    chosen_note: str
    measured: Callable[[pd.DataFrame], int | None]


def freeze(
    runs: pd.DataFrame | None,
    sessions: pd.DataFrame | None = None,
    *,
    paper: pd.DataFrame | None = None,
    width: str | float | None = None,
) -> Drawing:
    """Draw final accuracy against the number of first blocks that stay frozen (Figure 6): runs that differ in
    `freeze_blocks` only. A ring marks what the layer probe chose in otherwise equal runs.

    Args, raises: as `adapted`.
    """
    return _sweep(_FREEZE, runs, sessions, paper, width)


def adapted(
    runs: pd.DataFrame | None,
    sessions: pd.DataFrame | None = None,
    *,
    paper: pd.DataFrame | None = None,
    width: str | float | None = None,
) -> Drawing:
    """Draw final accuracy against the number of sessions adapted on (Figure 7): runs that differ in `adapted_sessions`
    only. A ring marks where the method's own rule stops in otherwise equal runs.

    Args:
        runs: rows of the runs table; None draws the paper's figure alone.
        sessions: rows of the sessions table.
        paper: `paper.adapted()`, drawn in a panel of its own.
        width: see `style.width_of`.

    Returns:
        data: one row per source, benchmark, label and value with n, mean, low, high (percent), chosen, approximate.

    Raises:
        ResultsError: no two runs differ in this setting, or runs that are not comparable would stand beside the
            paper's.
    """
    return _sweep(_ADAPTED, runs, sessions, paper, width)


def _frozen(sessions: pd.DataFrame) -> int | None:
    """Return how many blocks a run froze, from its diagnostics."""
    found = [json.loads(text).get("frozen_blocks") for text in sessions["diagnostics"]]
    return next((int(value) for value in found if value is not None), None)


def _adapted(sessions: pd.DataFrame) -> int | None:
    """Return on how many sessions a run adapted its encoder: every adaptation raises its version."""
    return int(sessions["encoder_version"].max()) if len(sessions) else None


_FREEZE = _Sweep(
    "freeze",
    "freeze_blocks",
    "frozen_blocks",
    "frozen blocks",
    "audiocl run -m pace --set freeze_blocks=0 (then 1, 2, ...)",
    "Ring: chosen by the layer probe.",
    _frozen,
)
_ADAPTED = _Sweep(
    "adapted",
    "adapted_sessions",
    "adapted_sessions",
    "adapted sessions",
    "audiocl run -m pace --set adapted_sessions=0 (then 1, 2, ...)",
    "Ring: where the stopping rule stops.",
    _adapted,
)


def _sweep(
    sweep: _Sweep,
    runs: pd.DataFrame | None,
    sessions: pd.DataFrame | None,
    paper: pd.DataFrame | None,
    width: str | float | None,
) -> Drawing:
    tables = []
    if runs is not None:
        assert sessions is not None
        tables.append(_swept(sweep, runs, sessions).assign(source="ours", approximate=False))
        _may_stand_beside(runs, paper)
    if paper is not None:
        tables.append(paper.assign(source="paper", label="", n=1, low=math.nan, high=math.nan))
    if not tables:
        raise ResultsError("there is nothing to draw: give runs, the paper's numbers, or both.")
    data = pd.concat(tables, ignore_index=True)
    data = data[["source", "benchmark", "label", sweep.column, "n", "mean", "low", "high", "chosen", "approximate"]]
    names = _line_names(data)
    grouping.check_number(names, MOST_LINES)
    data = data.assign(_line=names)
    looks = grouping.each(names, series)
    row = None if runs is None else runs.iloc[0]
    sources = list(dict.fromkeys(data["source"]))
    ours = data[data["source"] == "ours"]
    notes = [
        sweep.chosen_note if data["chosen"].any() else "",
        "Hollow: read off the paper's plot." if data["approximate"].any() else "",
        *_interval_notes(ours),
    ]
    with styled():
        page = Page(
            width_of(width, "double" if len(sources) > 1 else "single"),
            title=_sweep_title(row),
            warning="" if row is None else grouping.stream_warning(row),
            notes=[" ".join(note for note in notes if note)],
        )
        panels = np.atleast_1d(page.figure.subplots(1, len(sources), sharey=True, squeeze=True))
        for axes, source in zip(panels, sources, strict=True):
            part = data[data["source"] == source]
            for name, look in looks.items():
                line = part[part["_line"] == name]
                if len(line):
                    _swept_line(axes, line, sweep.column, look)
            plain_axes(axes)
            axes.margins(x=0.06)
            whole_numbers(axes.xaxis, int(part[sweep.column].min()), int(part[sweep.column].max()))
            axes.set_xlabel(sweep.x_label)
            axes.set_title(_panel_title(source, row, len(sources)), loc="left")
        panels[0].set_ylabel("final accuracy (%)")
        percent_axis(panels[0].yaxis, data[["mean", "low", "high"]].to_numpy().clip(0, 100))
        figure = page.finish(2.0, [(legend_line(look), name) for name, look in looks.items()])
    best = data.loc[data.groupby(["source", "_line"], sort=False)["mean"].idxmax()]
    alt = f"Final accuracy against {sweep.x_label}. Best: " + ", ".join(
        f"{line} {mean:.1f} % at {at} ({source})"
        for line, mean, at, source in best[["_line", "mean", sweep.column, "source"]].itertuples(index=False)
    )
    return Drawing(sweep.kind, _stem(sweep.kind, data), figure, data.drop(columns="_line"), _told(f"{alt}.", row))


def _swept_line(axes: Axes, line: pd.DataFrame, column: str, look: Series) -> None:
    axes.plot(line[column], line["mean"], color=look.colour, linestyle=look.line, zorder=2)
    for rows, face in ((line[~line["approximate"]], look.colour), (line[line["approximate"]], "white")):
        marker: dict[str, Any] = {
            "marker": look.marker,
            "linestyle": "none",
            "color": look.colour,
            "markerfacecolor": face,
        }
        axes.errorbar(
            rows[column], rows["mean"], yerr=grouping.half_widths(rows), **marker, elinewidth=0.8, capsize=2, zorder=3
        )
    ring = line[line["chosen"]]
    axes.plot(ring[column], ring["mean"], **_RING, color=look.colour)


def _swept(sweep: _Sweep, runs: pd.DataFrame, sessions: pd.DataFrame) -> pd.DataFrame:
    """Return mean final accuracy per benchmark, label and value of the setting, over runs equal in all else."""
    settings = [json.loads(text) for text in runs["method_config"]]
    given = runs.assign(
        given=[held.get(sweep.setting) for held in settings], has=[sweep.setting in held for held in settings]
    )
    given = given[given["has"]].drop(columns="has")
    measured = {str(run_id): sweep.measured(part) for run_id, part in sessions.groupby("run_id")}
    parts = []
    for name, group in grouping.streams(given) if len(given) else []:
        for label, same in grouping.labelled(group, ignoring=[sweep.setting]).groupby("label", sort=False):
            points = _points(sweep, same, measured)
            if points is not None:
                parts.append(points.assign(benchmark=name, label=label))
    if not parts:
        raise ResultsError(
            f"no two of these runs differ in {sweep.setting} alone: make such runs, for example {sweep.run_hint}."
        )
    return pd.concat(parts, ignore_index=True)


def _points(sweep: _Sweep, runs: pd.DataFrame, measured: dict[str, int | None]) -> pd.DataFrame | None:
    """Return one row per value, or None where there is only one value.

    A run that leaves the number to the method's rule only marks the number it came to; it is a point of its own where
    no run was told that number and all such runs came to the same.
    """
    told = runs[runs["given"].notna()]
    if told.empty:
        return None
    told = told.assign(**{sweep.column: told["given"].astype(int)})
    ruled = runs[runs["given"].isna()]
    reached = [value for run_id in ruled["run_id"] if (value := measured.get(run_id)) is not None]
    if len(set(reached)) == 1 and len(reached) == len(ruled) and reached[0] not in set(told[sweep.column]):
        told = pd.concat([told, ruled.assign(**{sweep.column: reached[0]})])
    if told[sweep.column].nunique() < 2:
        return None
    table = grouping.means(told.sort_values(sweep.column, kind="stable"), (sweep.column,), "final_accuracy")
    return table.assign(chosen=table[sweep.column].isin(reached))


# -------------------------------------------------------------------------------------------------------------- shared


def _may_stand_beside(runs: pd.DataFrame, paper: pd.DataFrame | None) -> None:
    if paper is None:
        return
    kinds = sorted({not_comparable(run) for _, run in runs.iterrows()} - {""})
    if kinds:
        raise ResultsError(
            f"the paper's numbers never stand beside runs on {' or '.join(kinds)}: draw them apart (--paper no, and "
            "--paper only)."
        )


def _line_names(data: pd.DataFrame) -> list[str]:
    """Return the name of every row's line: the benchmark, with the method where ours has several there."""
    ours = data[data["source"] == "ours"]
    several = ours.groupby("benchmark")["label"].nunique()
    return [
        f"{benchmark}, {label}" if source == "ours" and several[benchmark] > 1 else str(benchmark)
        for source, benchmark, label in data[["source", "benchmark", "label"]].itertuples(index=False)
    ]


def _sweep_title(row: Any) -> str:
    if row is None:
        return f"The paper's numbers ({published.BACKBONE})"
    return f"{row['protocol']} split, {row['backbone']}"


def _panel_title(source: str, row: Any, panels: int) -> str:
    if panels == 1:
        return ""
    return f"paper ({published.BACKBONE})" if source == "paper" else f"ours ({row['backbone']})"


def _interval_notes(data: pd.DataFrame) -> list[str]:
    ours = data[data["source"] == "ours"]
    return [grouping.interval_note(ours["n"], "band" if "block" in data else "bar")] if len(ours) else []


def _with_origin(data: pd.DataFrame, row: Any) -> pd.DataFrame:
    """Add the stream to a table, so that the table alone says what it is."""
    return data.assign(
        benchmark=row["benchmark"],
        protocol=row["protocol"],
        backbone=row["backbone"],
        not_comparable=not_comparable(row),
    )


def _told(alt: str, row: Any) -> str:
    warning = "" if row is None else grouping.stream_warning(row)
    return f"{alt} {warning}".strip()


def _stem(kind: str, data: pd.DataFrame) -> str:
    names: Sequence[str] = sorted(set(data["benchmark"]))
    if set(data["source"]) == {"paper"}:
        return f"{kind}-paper"
    return f"{kind}-{names[0]}" if len(names) == 1 else kind
