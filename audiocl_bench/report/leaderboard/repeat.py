"""The command that repeats a run."""

from __future__ import annotations

import shlex
from typing import Any

from audiocl_bench.report.leaderboard.found import Run
from audiocl_bench.report.leaderboard.naming import setting_text


def command(run: Run) -> tuple[str, ...]:
    """Return the words of the command that repeats a run, quoted for a shell, options kept with their values.

    It states every setting, so that later defaults change nothing. What the results do not hold stands as a file name
    to be filled in: the TOML file of own data, and the file of a method loaded by path.
    """
    row, notes = run.row, run.notes
    method = "FILE.py:CLASS" if run.source_hash else run.label
    bench = f"{row['benchmark']}.toml" if row["own_data"] else str(row["benchmark"])
    words = [
        "audiocl run",
        _option("--method", method),
        _option("--bench", bench),
        *(["--data mini"] if row["mini"] else []),
        _option("--backbone", row["backbone"]),
        _option("--protocol", row["protocol"]),
        _option("--orders", row["order"]),
        _option("--seeds", row["seed"]),
        _option("--device", str(row["device"]).partition(" ")[0] or "cpu"),
        _option("--threads", row["threads"]),
    ]
    backbone = notes.get("backbone")
    backbone = backbone if isinstance(backbone, dict) else {}
    read = [name for name in ("pool", "layer") if name in backbone]
    words += [_option("--set", f"backbone.{name}={backbone[name]}") for name in read]
    settings = run.settings
    if row["variant"] and settings.get("preset") == row["variant"]:
        del settings["preset"]  # METHOD@PRESET says it
    return (*words, *(_option("--set", f"{name}={setting_text(value)}") for name, value in settings.items()))


def _option(name: str, value: Any) -> str:
    return f"{name} {shlex.quote(str(value))}"
