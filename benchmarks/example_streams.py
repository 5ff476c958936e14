"""Make the runs behind docs/findings.md, or print their table.

    python benchmarks/example_streams.py commands     the audiocl commands, one a line, cheapest evidence first
    python benchmarks/example_streams.py ablations    the same for the parts of Strata
    python benchmarks/example_streams.py table        the Markdown table of the runs in --results
    python benchmarks/example_streams.py overview     final accuracy and seconds: a row per method, a column per stream
    python benchmarks/example_streams.py pairs        differences on the same class orders, with a paired test

Rows are told apart by their settings, so a table can be made of any results directory that holds such runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats
from tabulate import tabulate

from audiocl_bench import config, metrics, registry, request
from audiocl_bench.errors import ConfigError
from audiocl_bench.results import ResultsDir

STREAMS = ("arabic_speakers", "arabic_keywords", "esc50_fold4")
ESC_LIKE_THE_BENCHMARK = {"esc50_fold4": ("pace.adapted_sessions=1",)}  # the preset that `esc50` has
VARIANTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("ncm", "ncm", ()),
    ("ranpac, frozen", "ranpac", ("fsa=false",)),
    ("ranpac, frozen, accumulated search", "ranpac", ("fsa=false", "search=accumulated")),
    ("ranpac", "ranpac", ()),
    ("pace", "pace", ()),
    ("pace, no FSA", "pace", ("fsa=false",)),
    ("pace, no MSA", "pace", ("msa=false",)),
    ("pace, no L_reg", "pace", ("regulariser=none",)),
    ("pace, no projection", "pace", ("projection=none",)),
    ("acil", "acil", ()),
    ("fsa, frozen", "fsa", ("fsa=false",)),
    ("fsa", "fsa", ()),
    ("fsa, FiLM", "fsa", ("trains=film", "lr=0.005")),
    ("l2p", "l2p", ()),
    ("dualprompt", "dualprompt", ()),
    ("sprompt++", "sprompt++", ()),
    ("coda-prompt", "coda-prompt", ()),
    ("hide-prompt", "hide-prompt", ()),
    ("lora-drs", "lora-drs", ()),
    ("finetune", "finetune", ("epochs=2",)),
    ("joint", "joint", ()),
    ("layup", "layup", ()),
    ("strata", "strata", ()),
)
ABLATIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("strata, last layer", "strata", ("layers=last",)),
    ("strata, layers 1 to 4", "strata", ("layers=1,2,3,4",)),
    ("strata, mean only", "strata", ("pool=mean",)),
    ("strata, std only", "strata", ("pool=std",)),
    ("strata, one common scale", "strata", ("standardise=none",)),
    ("strata, first session's scale", "strata", ("standardise=first",)),
    ("strata, fixed strength 1e-4", "strata", ("strength=0.0001",)),
    ("strata, fixed strength 1", "strata", ("strength=1.0",)),
    ("strata, rank 512", "strata", ("rank=512",)),
    ("strata, 2048 random features", "strata", ("width=2048",)),
    ("strata, 8192 random features", "strata", ("width=8192",)),
    ("layup, accumulated search", "layup", ("search=accumulated",)),
    ("ncm, all layers, mean+std", "ncm", ("layers=all", "pool=mean+std")),
    ("ranpac, frozen, all layers, mean+std", "ranpac", ("fsa=false", "layers=all", "pool=mean+std")),
    ("acil, all layers, mean+std", "acil", ("layers=all", "pool=mean+std")),
    ("fsa, frozen, all layers, mean+std", "fsa", ("fsa=false", "layers=all", "pool=mean+std")),
)
"""What each part of Strata is worth, and what other heads make of its readout (docs/strata.md)."""
TUNED: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "eat-mini": (
        ("ranpac, rate for eat-mini", "ranpac", ("lr=0.1",)),
        ("pace, rates for eat-mini", "pace", ("lr_backbone=0.2", "lr_head=0.1")),
    ),
}
"""Rates chosen on training clips alone (training_only.py), for a network that the published ones leave as it is."""
ROWS = (*VARIANTS, *(row for rows in TUNED.values() for row in rows), *ABLATIONS)


def commands(rows: Iterable[tuple[str, str, tuple[str, ...]]], backbone: str, orders: str) -> Iterator[str]:
    """Yield one command per stream and row."""
    for stream in STREAMS:
        for _, method, settings in rows:
            extra = ESC_LIKE_THE_BENCHMARK.get(stream, ()) if method == "pace" else ()
            if extra and any(setting.startswith(("msa", "projection")) for setting in settings):
                continue  # only one session adapts there, so nothing changes
            chosen = " ".join(f"--set {setting}" for setting in (*settings, *extra))
            where = f"-b examples/{stream}.toml --backbone {backbone} --orders {orders}"
            yield f"audiocl run -m {method} {where} --drift {chosen}"


def variant(run: dict[str, Any]) -> str | None:
    """Return the row a run belongs to, by the settings that differ from its method's own; None for no row."""
    stored = json.loads(run["method_config"])
    method = registry.load(run["method"])
    own = config.build(method.Config, run["benchmark"], {}, owner=method.name)
    changed = {name for name, value in stored.items() if _plain(getattr(own, name, None)) != value}
    changed -= {extra.removeprefix("pace.").partition("=")[0] for extra in ESC_LIKE_THE_BENCHMARK["esc50_fold4"]}
    for name, wanted, settings in ROWS:
        pairs = dict(setting.split("=") for setting in settings)
        same = (wanted, "") == (run["method"], run["variant"]) and changed == set(pairs)
        if same and all(str(stored[key]).lower() == value for key, value in pairs.items()):
            return name
    return None


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def labelled(results: ResultsDir, backbone: str, orders: Collection[int]) -> pd.DataFrame:
    """Return the runs of one backbone and these class orders that belong to a row, with its name as `variant`."""
    runs = results.runs()
    runs = runs[(runs["backbone"] == Path(backbone).name) & runs["order"].isin(orders)].copy()
    runs["variant"] = [variant({str(k): v for k, v in run.items()}) for run in runs.to_dict("records")]
    return runs.dropna(subset="variant")


def table(runs: pd.DataFrame) -> str:
    """Return the Markdown table: one row per stream and variant, percent, mean and half width of the 95 % interval."""
    rows = []
    for stream, block in runs.groupby("benchmark", sort=True):
        joint = block[block["variant"] == "joint"]["final_accuracy"].mean()
        for name, _, _ in ROWS:
            part = block[block["variant"] == name]
            if part.empty:
                continue
            fresh = part["fresh_final_accuracy"]
            seconds = part["train_seconds"] + part["eval_seconds"]
            rows.append(
                (
                    stream,
                    name,
                    len(part),
                    _interval(part["final_accuracy"]),
                    _mean(part["average_incremental_accuracy"]),
                    _mean(part["forgetting"]),
                    _mean(fresh - part["final_accuracy"]),
                    _mean(joint - part["final_accuracy"]),
                    f"{seconds.mean():.0f}",
                )
            )
    headers = ("stream", "method", "orders", "final", "avg. incr.", "forgetting", "fresh - stored", "gap to joint", "s")
    return tabulate(rows, headers, tablefmt="github", colalign=("left", "left", *["right"] * 7), disable_numparse=True)


def overview(runs: pd.DataFrame) -> str:
    """Return the Markdown table of final accuracies and seconds: one row per variant, one column per stream.

    Accuracies in percent with their 95 % interval; how many class orders where some are missing; median seconds of
    training and testing a run, by the clock.
    """
    most = runs["order"].nunique()
    rows = []
    for name, _, _ in ROWS:
        accuracies, seconds = [], []
        for stream in STREAMS:
            part = runs[(runs["variant"] == name) & (runs["benchmark"] == stream.replace("_", "-"))]
            few = f" ({len(part)})" if len(part) < most else ""
            accuracies.append("-" if part.empty else _interval(part["final_accuracy"]) + few)
            spent = (part["train_seconds"] + part["eval_seconds"]).median()
            seconds.append("-" if part.empty else f"{spent:.0f}" if spent >= 10 else f"{spent:.1f}")
        if set(accuracies) != {"-"}:
            rows.append((name, *accuracies, ", ".join(seconds)))
    headers = ("method", *(stream.partition("_")[2] for stream in STREAMS), "seconds")
    return tabulate(rows, headers, tablefmt="github", colalign=("left", *["right"] * 4), disable_numparse=True)


def pairs(runs: pd.DataFrame, results: ResultsDir, first: str) -> str:
    """Return the Markdown table of differences in final accuracy: one variant less every other, on the same orders.

    Twice mean, half width of the 95 % interval and p of the paired t-test: over class orders, which share their test
    clips (would other orders agree?), and over test clips, each with the mean over its orders (would other clips?).
    """
    rows = []
    for stream, block in runs.groupby("benchmark", sort=True):
        right = {name: _right(part, results) for name, part in block.groupby("variant")}
        for name, _, _ in ROWS:
            if name == first or name not in right or first not in right:
                continue
            differences = 100.0 * (right[first] - right[name]).dropna(axis=1, how="all")  # [clips, shared orders]
            by_order, by_clip = differences.mean(axis=0), differences.mean(axis=1)
            told = (_interval(by_order), _p(by_order), _interval(by_clip), _p(by_clip))
            rows.append((stream, f"{first} - {name}", len(by_order), *told))
    headers = ("stream", "difference", "orders", "points", "p over orders", "points", "p over clips")
    return tabulate(rows, headers, tablefmt="github", colalign=("left", "left", *["right"] * 5), disable_numparse=True)


def _right(runs: pd.DataFrame, results: ResultsDir) -> pd.DataFrame:
    """Return which test clips are right after the last session: one row per clip, one column per (order, seed)."""
    columns = {}
    for run in runs.to_dict("records"):
        told = results.predictions(str(run["run_id"]))
        last = told[told["after_session"] == told["after_session"].max()]
        columns[int(run["order"]), int(run["seed"])] = pd.Series(
            last["correct"].to_numpy(float), last["clip_id"].astype(str)
        )
    return pd.DataFrame(columns)


def _p(differences: pd.Series) -> str:
    """Return the p of the paired t-test; nothing where the differences are all the same."""
    if len(differences) < 2 or differences.std() < 1e-9:
        return ""
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _mean(values: pd.Series) -> str:
    mean = values.mean()
    return "" if pd.isna(mean) else f"{round(mean, 1) + 0.0:.1f}"  # no -0.0


def _interval(values: pd.Series) -> str:
    summary = metrics.summarise(values.tolist())
    return f"{summary.mean:.1f}" if summary.n < 2 else f"{summary.mean:.1f} ± {summary.half_width:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("commands", "ablations", "table", "overview", "pairs"))
    parser.add_argument("--results", type=Path, default=Path("results/examples"))
    parser.add_argument("--backbone", default="../shared/weights/whisper-tiny.en-encoder")
    parser.add_argument("--orders", default="0-4")
    parser.add_argument("--first", default="strata", help="variant that pairs compares with all others")
    arguments = parser.parse_args()
    try:
        orders = request.numbers(arguments.orders, "--orders")
    except ConfigError as cause:
        parser.error(str(cause))
    if arguments.what in ("table", "overview", "pairs"):
        results = ResultsDir(arguments.results)
        runs = labelled(results, arguments.backbone, orders)
        if runs.empty:
            parser.error(
                f"--results {arguments.results} has no run with {arguments.backbone} in orders {arguments.orders}"
            )
        if arguments.what == "pairs":
            print(pairs(runs, results, arguments.first))
        else:
            print(table(runs) if arguments.what == "table" else overview(runs))
    else:
        tuned = TUNED.get(Path(arguments.backbone).name, ())
        rows = (*VARIANTS, *tuned) if arguments.what == "commands" else ABLATIONS
        print("\n".join(commands(rows, arguments.backbone, arguments.orders)))


if __name__ == "__main__":
    main()
