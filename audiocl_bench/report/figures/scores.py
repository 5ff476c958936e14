"""Figures of final scores: first/new/average bars, stored against fresh accuracy, accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from audiocl_bench import metrics
from audiocl_bench.errors import ResultsError, unknown_name
from audiocl_bench.report.figures import runs as grouping
from audiocl_bench.report.figures.style import (
    COLOURS,
    FAINT,
    TEXT,
    TINY,
    Drawing,
    Page,
    legend_line,
    log_axis,
    percent_axis,
    place_labels,
    plain_axes,
    series,
    shortened,
    styled,
    text_width,
    width_of,
)
from audiocl_bench.report.tables import count, megabytes, not_comparable, short_duration

MOST_ROWS = 24
COSTS = {"seconds": "train_seconds", "bytes": "kept_bytes", "passes": "train_passes"}
"""What `cost` draws: name -> column of the runs table."""

_PARTS = {"first": "first session", "new": "later ones", "average": "all"}
_PART_LOOK = {"first": ("#7FB8DD", ""), "new": ("#F0C9AC", "/////"), "average": ("#D5D5D5", "....")}
_COST_LABELS = {
    "seconds": "training time",
    "bytes": "kept between sessions",
    "passes": "training clips through the encoder",
}


# ---------------------------------------------------------------------------------------------------------------- bars


def bars(runs: pd.DataFrame, predictions: Mapping[str, pd.DataFrame], *, width: str | float | None = None) -> Drawing:
    """Draw final accuracy on the first session, on all later ones and on all (Figure 3), per method.

    After the last session: first = A[T-1, 0]; new = mean of A[T-1, 1:]; average = mean of A[T-1, :], in percent.

    Args:
        runs: rows of the runs table, of one benchmark, protocol and backbone.
        predictions: run id -> prediction table, for all these runs.
        width: see `style.width_of`.

    Returns:
        data: one row per label and part ("first", "new", "average") with n, mean, low, high.

    Raises:
        ResultsError: the runs are not of one stream, have one session only, or there are too many methods.
    """
    row = grouping.one_stream(runs)
    named = grouping.labelled(runs)
    grouping.check_number(named["label"], MOST_ROWS, "methods")
    grouping.require_all(named["run_id"], predictions, "predictions")
    rows = []
    for run in named.itertuples():
        final = 100 * metrics.accuracy_matrix(predictions[str(run.run_id)])[-1]
        if len(final) < 2:
            raise ResultsError(f"{run.benchmark} has one session only: there is no first and new to tell apart.")
        values = {"first": final[0], "new": final[1:].mean(), "average": final.mean()}
        rows += [
            {"label": run.label, "part": part, "order": run.order, "seed": run.seed, "accuracy": value}
            for part, value in values.items()
        ]
    data = grouping.means(pd.DataFrame(rows), ("label", "part"), "accuracy")
    labels = list(dict.fromkeys(data["label"]))
    sizes = {str(label): int(n) for label, n in data.groupby("label", sort=False)["n"].first().items()}
    with styled():
        page = Page(
            width_of(width, "single"),
            title=grouping.stream_title(row),
            warning=grouping.stream_warning(row),
            notes=["Final accuracy. " + grouping.interval_note(sizes.values(), "bar")],
        )
        axes = page.figure.subplots()
        tall = 0.26
        for place, part in enumerate(_PARTS):
            table = data[data["part"] == part]
            colour, hatch = _PART_LOOK[part]
            y = np.arange(len(labels)) + (place - 1) * tall
            axes.barh(
                y,
                table["mean"],
                height=tall,
                color=colour,
                hatch=hatch,
                edgecolor="black",
                linewidth=0.5,
                xerr=_within(table),
                error_kw={"elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7},
                gid=part,
            )
            for at, mean in zip(y, table["mean"], strict=True):
                axes.text(102, at, f"{mean:.1f}", va="center", fontsize=TINY)
        plain_axes(axes, grid="x")
        _method_axis(axes, labels, sizes, page.width)
        axes.set_xlabel("final accuracy (%)")
        entries = [
            (Patch(facecolor=_PART_LOOK[part][0], hatch=_PART_LOOK[part][1], edgecolor="black", linewidth=0.5), text)
            for part, text in _PARTS.items()
        ]
        axes.set_xlim(0, 100 * (1 + 0.5 / page.width))  # room for the numbers
        axes.set_xticks([0, 20, 40, 60, 80, 100])
        axes.spines["bottom"].set_bounds(0, 100)
        figure = page.finish(0.45 + 0.42 * len(labels), entries)
    table = data.pivot(index="label", columns="part", values="mean")
    alt = f"Final accuracy on first, new and all sessions, {grouping.stream_title(row)}: " + "; ".join(
        f"{label} {table.loc[label, 'first']:.1f}, {table.loc[label, 'new']:.1f}, {table.loc[label, 'average']:.1f} %"
        for label in labels
    )
    return _drawing("bars", row, figure, data, f"{alt}.")


def _method_axis(axes: Axes, labels: list[str], sizes: Mapping[str, int], width: float) -> int:
    """Put methods on the y axis, the first on top, with their number of runs where these differ.

    Returns:
        the most lines that a label takes.
    """
    several = len(set(sizes.values())) > 1
    names = [_broken(f"{label} ({sizes[label]})" if several else label, width * 0.36) for label in labels]
    axes.set_yticks(range(len(labels)), names, linespacing=1.0)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    if several:
        axes.annotate(
            "(number of runs)",
            (0.0, 1.0),
            (-4, 2),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=FAINT,
        )
    return max(name.count("\n") + 1 for name in names)


def _within(table: pd.DataFrame, prefix: str = "") -> list[list[float]]:
    """Return error bars [2, n] that do not leave 0..100 %."""
    half = grouping.half_widths(table, prefix)[0]
    means = table[f"{prefix}mean"].tolist()
    down = [min(wide, mean) for wide, mean in zip(half, means, strict=True)]
    up = [min(wide, 100 - mean) for wide, mean in zip(half, means, strict=True)]
    return [down, up]


def _broken(label: str, inches: float) -> str:
    """Break a method's label between its settings into at most three lines, and shorten what is still too wide."""
    lines = [""]
    for word in label.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, TEXT) > inches:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > 3:
        lines = [*lines[:2], " ".join(lines[2:])]
    return "\n".join(shortened(line, inches, TEXT) for line in lines)


# --------------------------------------------------------------------------------------------------------------- drift


def drift(runs: pd.DataFrame, *, width: str | float | None = None) -> Drawing:
    """Draw final accuracy as stored, and with all statistics recomputed at the end by the final encoder.

    Their difference is what old statistics lost because the encoder moved on. It is a diagnostic and ranks nothing.

    Args:
        runs: rows of the runs table, of one benchmark, protocol and backbone; those without `fresh_final_accuracy` are
            left out.
        width: see `style.width_of`.

    Returns:
        data: one row per label with n, stored_mean, stored_low, stored_high, fresh_..., lost_mean, lost_low, lost_high:
        percent, and points for lost = fresh - stored, paired over (order, seed).

    Raises:
        ResultsError: no run has the diagnostic, or the runs are not of one stream.
    """
    row = grouping.one_stream(runs)
    measured = grouping.labelled(runs)
    measured = measured[measured["fresh_final_accuracy"].notna()]
    if measured.empty:
        raise ResultsError(
            "none of these runs measured drift: repeat them with `audiocl run ... --drift --existing replace`."
        )
    grouping.check_number(measured["label"], MOST_ROWS, "methods")
    frame = measured.assign(lost=measured["fresh_final_accuracy"] - measured["final_accuracy"])
    columns = {"final_accuracy": "stored", "fresh_final_accuracy": "fresh", "lost": "lost"}
    data = grouping.means(frame, ("label",), columns)
    labels = data["label"].tolist()
    sizes = dict(zip(labels, data["n"], strict=True))
    with styled():
        page = Page(
            width_of(width, "single"),
            title=grouping.stream_title(row),
            warning=grouping.stream_warning(row),
            notes=[
                "Lost: recomputed minus stored, in points, paired over class orders and seeds, with the 95\u00a0% t "
                "interval. A diagnostic, not a ranking."
            ],
        )
        axes = page.figure.subplots()
        y = np.arange(len(labels))
        axes.hlines(y, data["stored_mean"], data["fresh_mean"], color=FAINT, linewidth=1.0, zorder=2)
        stored: dict[str, Any] = {"marker": "o", "color": COLOURS[0]}
        fresh: dict[str, Any] = {"marker": "D", "color": COLOURS[1]}
        axes.plot(data["stored_mean"], y, linestyle="none", **stored, zorder=4, markersize=4.5)
        axes.plot(data["fresh_mean"], y, linestyle="none", **fresh, zorder=3, markersize=6, markerfacecolor="white")
        plain_axes(axes, grid="x")
        most_lines = _method_axis(axes, labels, sizes, page.width)
        percent_axis(axes.xaxis, data[["stored_mean", "fresh_mean"]].to_numpy(), room=0.12, most=4)
        axes.set_xlabel("final accuracy (%)")
        for at, (mean, end) in enumerate(data[["lost_mean", "lost_high"]].itertuples(index=False)):
            half = "" if np.isnan(end) else f" ± {end - mean:.1f}"
            axes.annotate(
                f"{_signed(mean)}{half}",
                (1.0, at),
                (4, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                annotation_clip=False,
            )
        axes.annotate(
            "lost",
            (1.0, 1.0),
            (4, 2),
            xycoords="axes fraction",
            textcoords="offset points",
            va="bottom",
            color=FAINT,
            annotation_clip=False,
        )
        entries = [
            (legend_line(series(0), linestyle="none", **stored, markersize=4.5), "statistics as stored"),
            (
                legend_line(series(1), linestyle="none", **fresh, markersize=6, markerfacecolor="white"),
                "recomputed at the end",
            ),
        ]
        figure = page.finish(0.6 + (0.16 + 0.1 * most_lines) * len(labels), entries)
    alt = f"Final accuracy as stored and recomputed, {grouping.stream_title(row)}: " + "; ".join(
        f"{label} {stored:.1f} and {fresh:.1f} %"
        for label, stored, fresh in data[["label", "stored_mean", "fresh_mean"]].itertuples(index=False)
    )
    return _drawing("drift", row, figure, data, f"{alt}.")


def _signed(value: float) -> str:
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


# ---------------------------------------------------------------------------------------------------------------- cost


def cost(runs: pd.DataFrame, *, costs: tuple[str, ...] = tuple(COSTS), width: str | float | None = None) -> Drawing:
    """Draw final accuracy against cost on logarithmic axes: training seconds, kept bytes, training passes.

    Args:
        runs: rows of the runs table, of one benchmark, protocol and backbone.
        costs: which, of `COSTS`; one panel each.
        width: see `style.width_of`.

    Returns:
        data: one row per label with n, accuracy_mean, accuracy_low, accuracy_high (percent) and the mean of every cost:
        seconds, bytes and passes (clips through the whole encoder), and devices (where the seconds were taken).

    Raises:
        ResultsError: the runs are not of one stream, or there are too many methods.
        UnknownNameError: an unknown cost.
    """
    for name in costs:
        if name not in COSTS:
            raise unknown_name("cost", name, COSTS)
    row = grouping.one_stream(runs)
    named = grouping.labelled(runs)
    grouping.check_number(named["label"], MOST_ROWS, "methods")
    columns = {"final_accuracy": "accuracy", **{column: name for name, column in COSTS.items()}}
    data = grouping.means(named, ("label",), columns)
    data = data.drop(columns=[f"{name}_{end}" for name in COSTS for end in ("low", "high")])
    data = data.rename(columns={f"{name}_mean": name for name in COSTS})
    threads = named["threads"].astype(str) + " thread" + (named["threads"] != 1).map({True: "s", False: ""})
    machines = (named["device"] + ", " + threads).groupby(named["label"], sort=False)
    data["devices"] = data["label"].map(machines.agg(lambda values: "; ".join(sorted(set(values)))))
    labels = data["label"].tolist()
    looks = [series(number) for number in range(len(labels))]
    writers = {"seconds": short_duration, "bytes": lambda value: megabytes(value / 1e6), "passes": count}
    used = sorted(set(data["devices"]))
    notes = [grouping.interval_note(data["n"], "bar")]
    if "seconds" in costs:
        notes.append(
            f"Times on {used[0]}."
            if len(used) == 1
            else f"Times on different machines ({' / '.join(used)}): compare with care."
        )
    with styled():
        inches = width_of(width, "double" if len(costs) > 1 else "single")
        page = Page(
            inches,
            title=grouping.stream_title(row),
            warning=grouping.stream_warning(row),
            notes=[" ".join(notes)],
        )
        across = len(costs) if inches / len(costs) >= 2.0 else 1
        down = -(-len(costs) // across)
        grid = page.figure.subplots(down, across, squeeze=False, sharey=True)
        places = {}
        for number, name in enumerate(costs):
            axes = grid.flat[number]
            x = log_axis(axes, data[name].to_numpy(dtype=float), writers[name], time=name == "seconds")
            places[name] = x
            low, high = _within(data, "accuracy_")
            for at, value, below, above, look in zip(x, data["accuracy_mean"], low, high, looks, strict=True):
                axes.errorbar(
                    [at],
                    [value],
                    yerr=[[below], [above]],
                    marker=look.marker,
                    color=look.colour,
                    ecolor="#AAAAAA",
                    elinewidth=0.7,
                    markersize=4.5,
                    zorder=3,
                )
            plain_axes(axes, grid="both")
            axes.set_xlabel(_COST_LABELS[name])
            if number % across == 0:
                axes.set_ylabel("final accuracy (%)")
        values = data[["accuracy_mean", "accuracy_low", "accuracy_high"]].to_numpy().clip(0, 100)
        percent_axis(grid.flat[0].yaxis, values, room=0.1)
        figure = page.finish(down * (2.0 + 0.09 * max(0, len(labels) - 6)))
        for axes, name in zip(grid.flat, costs, strict=False):
            points = list(zip(places[name], data["accuracy_mean"], strict=True))
            room = axes.get_window_extent().width / figure.dpi * 0.62
            place_labels(
                axes, points, [shortened(label, room, TINY) for label in labels], [look.colour for look in looks]
            )
    alt = f"Final accuracy against cost, {grouping.stream_title(row)}: " + "; ".join(
        f"{label} {told['accuracy_mean']:.1f} % for {', '.join(writers[name](told[name]) for name in costs)}"
        for label, told in ((str(told["label"]), told) for told in data.to_dict("records"))
    )
    return _drawing("cost", row, figure, data, f"{alt}.")


def _drawing(kind: str, row: Any, figure: Any, data: pd.DataFrame, alt: str) -> Drawing:
    origin = {name: row[name] for name in ("benchmark", "protocol", "backbone")}
    data = data.assign(**origin, not_comparable=not_comparable(row))
    return Drawing(kind, f"{kind}-{row['benchmark']}", figure, data, f"{alt} {grouping.stream_warning(row)}".strip())
