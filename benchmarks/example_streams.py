"""Make the runs behind docs/findings.md, or print their table.

    python benchmarks/example_streams.py commands     the audiocl commands, one a line, cheapest evidence first
    python benchmarks/example_streams.py table        the Markdown table of the runs in --results

Rows are told apart by their settings, so a table can be made of any results directory that holds such runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from audiocl_bench import metrics
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
    ("l2p", "l2p", ()),
    ("dualprompt", "dualprompt", ()),
    ("sprompt++", "sprompt++", ()),
    ("coda-prompt", "coda-prompt", ()),
    ("hide-prompt", "hide-prompt", ()),
    ("lora-drs", "lora-drs", ()),
    ("finetune", "finetune", ("epochs=2",)),
    ("joint", "joint", ()),
)


def commands(backbone: str, orders: str) -> Iterator[str]:
    """Yield one command per stream and variant."""
    for stream in STREAMS:
        for _, method, settings in VARIANTS:
            extra = ESC_LIKE_THE_BENCHMARK.get(stream, ()) if method == "pace" else ()
            if extra and any(setting.startswith(("msa", "projection")) for setting in settings):
                continue  # only one session adapts there, so nothing changes
            chosen = " ".join(f"--set {setting}" for setting in (*settings, *extra))
            where = f"-b examples/{stream}.toml --backbone {backbone} --orders {orders}"
            yield f"audiocl run -m {method} {where} --drift {chosen}"


def variant(run: dict[str, Any]) -> str | None:
    """Return the row a run belongs to, or None."""
    config = json.loads(run["method_config"])
    found = None
    for name, method, settings in VARIANTS:
        pairs = [setting.partition("=")[::2] for setting in settings]
        if (method, "") == (run["method"], run["variant"]) and all(str(config[k]).lower() == v for k, v in pairs):
            others = {key for n, m, s in VARIANTS if m == method for key in (x.partition("=")[0] for x in s)}
            plain = others - {key for key, _ in pairs}
            default = {"fsa": True, "msa": True, "regulariser": "both", "projection": "onto", "search": "session"}
            if all(config[key] == default.get(key, config[key]) for key in plain):
                found = name
    return found


def table(results: ResultsDir) -> str:
    """Return the Markdown table: one row per stream and variant, percent, mean and half width of the 95 % interval."""
    runs = results.runs()
    runs["variant"] = [variant({str(k): v for k, v in run.items()}) for run in runs.to_dict("records")]
    rows = []
    for stream, block in runs.dropna(subset="variant").groupby("benchmark", sort=True):
        joint = block[block["variant"] == "joint"]["final_accuracy"].mean()
        for name, _, _ in VARIANTS:
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


def _mean(values: pd.Series) -> str:
    mean = values.mean()
    return "" if pd.isna(mean) else f"{round(mean, 1) + 0.0:.1f}"  # no -0.0


def _interval(values: pd.Series) -> str:
    summary = metrics.summarise(values.tolist())
    return f"{summary.mean:.1f}" if summary.n < 2 else f"{summary.mean:.1f} ± {summary.half_width:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("commands", "table"))
    parser.add_argument("--results", type=Path, default=Path("results/examples"))
    parser.add_argument("--backbone", default="../shared/weights/whisper-tiny.en-encoder")
    parser.add_argument("--orders", default="0-2")
    arguments = parser.parse_args()
    if arguments.what == "commands":
        print("\n".join(commands(arguments.backbone, arguments.orders)))
    else:
        print(table(ResultsDir(arguments.results)))


if __name__ == "__main__":
    main()
