"""The paper's own figures as data (`results/paper`): what ours are drawn beside."""

from __future__ import annotations

import numpy as np
import pandas as pd

from audiocl_bench.errors import ResultsError
from audiocl_bench.files import paper_dir

BACKBONE = "EAT-base"
"""The network behind the paper's numbers."""

PANELS = {"pace": "PACE", "pace-no-msa": "PACE without MSA", "pace-no-projection": "PACE without projection"}
"""The matrices of Figure 9, by the name they are asked for."""


def cka() -> pd.DataFrame:
    """Return Figure 6's similarities: benchmark, block (0..3), mean (CKA), chosen (first block that is trained)."""
    table = _read("fig6_cka.csv")
    long = _long(table, "layer", "block", ["benchmark", "frozen_layers"])
    return long.assign(chosen=long["block"] == long["frozen_layers"]).drop(columns="frozen_layers")


def freeze() -> pd.DataFrame:
    """Return Figure 6's accuracies: benchmark, frozen_blocks (0..3), mean (percent), chosen, approximate (false)."""
    table = _read("fig6_freeze.csv")
    long = _long(table, "freeze", "frozen_blocks", ["benchmark"])
    chosen = _read("fig6_cka.csv").set_index("benchmark")["frozen_layers"]
    return long.assign(chosen=long["frozen_blocks"] == long["benchmark"].map(chosen), approximate=False)


def adapted() -> pd.DataFrame:
    """Return Figure 7: benchmark, adapted_sessions, mean (percent), chosen, approximate (read off the plot)."""
    table = _read("fig7_msa.csv").rename(columns={"accuracy": "mean", "approx": "approximate"})
    return table.astype({"chosen": bool, "approximate": bool})


def matrices() -> dict[str, np.ndarray]:
    """Return Figure 9's accuracy matrices [8, 8] of VocalSet as fractions, by name; NaN above the diagonal."""
    table = _read("fig9.csv")
    found = {}
    for name, cells in table.groupby("method", sort=False):
        size = int(cells["after_session"].max())
        matrix = np.full((size, size), np.nan)
        matrix[cells["after_session"] - 1, cells["test_session"] - 1] = cells["accuracy"] / 100
        found[str(name)] = matrix
    return found


def _read(name: str) -> pd.DataFrame:
    path = paper_dir() / name
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as cause:
        raise ResultsError(f"{path} cannot be read ({cause}): install audiocl again.") from cause


def _long(table: pd.DataFrame, prefix: str, name: str, keep: list[str]) -> pd.DataFrame:
    """Turn columns prefix0, prefix1, ... into rows."""
    columns = [column for column in table.columns if column.removeprefix(prefix).isdecimal()]
    long = table.melt(id_vars=keep, value_vars=columns, var_name=name, value_name="mean")
    long[name] = long[name].str.removeprefix(prefix).astype(int)
    return long.sort_values(["benchmark", name], kind="stable", ignore_index=True)
