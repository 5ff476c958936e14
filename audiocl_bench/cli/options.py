"""Options that several commands share, so that one name means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

WHERE, HOW, MACHINE = "Where", "How", "Machine"
"""Panels of `--help`."""

Methods = Annotated[
    list[str],
    typer.Option(
        "--method",
        "-m",
        metavar="NAME",
        help="Method, METHOD@PRESET, or file.py:Class. Repeat or separate by commas.",
    ),
]
Method = Annotated[str, typer.Option("--method", "-m", metavar="NAME", help="Method, METHOD@PRESET, or file.py:Class.")]
Benches = Annotated[
    list[str],
    typer.Option(
        "--bench", "--benchmark", "-b", metavar="NAME", help="Benchmark, your own .toml file, or 'all' (the six)."
    ),
]
Bench = Annotated[
    str, typer.Option("--bench", "--benchmark", "-b", metavar="NAME", help="Benchmark, or your own .toml file.")
]
Backbone = Annotated[str, typer.Option("--backbone", metavar="NAME", help="Pretrained network, or a path to weights.")]
Protocol = Annotated[
    str | None,
    typer.Option("--protocol", metavar="NAME", help="paper (random 8:2, the default) or grouped (leak-free)."),
]
Orders = Annotated[str, typer.Option("--orders", metavar="LIST", help="Class orders: 0 or 0-4 or 0,2.")]
Seeds = Annotated[str, typer.Option("--seeds", metavar="LIST", help="Run seeds: 0 or 0-2.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        rich_help_panel=WHERE,
        help="Folder of the corpora (default: data/ in the cache directory); 'mini' for synthetic miniatures.",
    ),
]
GetData = Annotated[
    bool,
    typer.Option("--get-data", rich_help_panel=WHERE, help="Download missing corpora first (never done without this)."),
]
Results = Annotated[
    str | None,
    typer.Option(
        "--results",
        metavar="DIR",
        rich_help_panel=WHERE,
        help="Where results go, as Parquet: a folder or s3://BUCKET/FOLDER (default: results/ in the cache directory).",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        rich_help_panel=HOW,
        help="Change a setting: rank=4, pace.msa=false, backbone.pool=mean. Repeatable.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", rich_help_panel=MACHINE, help="auto, cpu, cuda or cuda:N.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        rich_help_panel=MACHINE,
        help="CPU threads of a run (default: all, shared by --jobs).",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        rich_help_panel=MACHINE,
        help="Processes that decode audio (default: one per core).",
    ),
]
Executor = Annotated[
    Literal["local", "ray", "slurm"] | None,
    typer.Option(
        "--executor",
        rich_help_panel=MACHINE,
        help="Make runs at once: in processes (local), on a Ray cluster, as Slurm jobs. Default: one by one, here.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N",
        min=1,
        rich_help_panel=MACHINE,
        help="Runs at once (local: one per GPU, else 1; ray, slurm: what the cluster allows).",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        rich_help_panel=MACHINE,
        help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT (default: one is started here).",
    ),
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE",
        rich_help_panel=MACHINE,
        help="Slurm: partition=gpu, timeout_min=120, mem_gb=16, cpus_per_task=4, gres=gpu:1. Repeatable.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=MACHINE, help="No progress display.")]
