"""The loss curve: a CSV file beside the checkpoint, one row per so many steps, and its picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from audiocl_bench import files
from audiocl_bench.errors import ResultsError

LOSSES = ("distil_frame", "distil_cosine", "distil_class", "eat_frame", "eat_class")
COLUMNS = ("step", "epoch", "lr", "loss", *LOSSES, "eat_spread", "gradient", "clips_per_second", "seconds")
"""`step` counts finished steps; losses are means over the steps since the row before that had them, else empty;
`gradient` is the mean norm before clipping; `seconds` is time spent in steps, over all pieces of the run."""

_TITLES = {
    "distil_frame": "distillation, time patches",
    "distil_cosine": "distillation, 1 - cosine",
    "distil_class": "distillation, class token",
    "eat_frame": "EAT, masked patches",
    "eat_class": "EAT, class token",
}


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row to the curve, with the header where the file is new.

    Raises:
        ResultsError: the file cannot be written.
    """
    try:
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as handle:
            handle.write(_text([row], header=new))
    except OSError as cause:
        raise ResultsError(files.explain_os_error(cause, path)) from cause


def cut(path: Path, step: int) -> None:
    """Drop rows after `step`: those of steps that a killed run had made after its last checkpoint."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            rows = [row for row in csv.DictReader(handle) if _whole(row) and int(row["step"]) <= step]
    except OSError as cause:
        raise ResultsError(f"{path} cannot be read ({cause.strerror or cause}): check the file.") from cause
    files.write_text(path, _text(rows, header=True), error=ResultsError)


def _whole(row: Mapping[str, Any]) -> bool:
    """Tell whether a row was written to its end; a killed process may leave a part of one."""
    return all(row.get(name) is not None for name in COLUMNS) and str(row["step"]).isdecimal()


def _text(rows: Sequence[Mapping[str, Any]], *, header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: _number(row.get(name)) for name in COLUMNS} for row in rows)
    return buffer.getvalue()


def _number(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def read(path: Path) -> pd.DataFrame:
    """Return the curve as a table with `COLUMNS`; an empty one where there is no file."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(COLUMNS))


def draw(table: pd.DataFrame, target: Path) -> None:
    """Draw each part of the loss and the learning rate over steps; nothing where the curve is empty.

    Raises:
        ResultsError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    shown = [name for name in LOSSES if name in table and table[name].notna().any()]
    if not shown:
        return
    figure = Figure(figsize=(7.0, 1.7 * (len(shown) + 1)), layout="constrained")
    axes = figure.subplots(len(shown) + 1, 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, [*shown, "lr"], strict=True):
        known = table[table[name].notna()]
        axis.plot(known["step"], known[name], linewidth=1.0, color="tab:gray" if name == "lr" else "tab:blue")
        axis.set_title(_TITLES.get(name, "learning rate"), fontsize=9, loc="left")
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("step", fontsize=9)
    with files.atomic_path(target, error=ResultsError) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
