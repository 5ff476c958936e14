"""The tables of the PACE paper (Li, Zhou and Wang, ICLR 2026, arXiv 2602.03355): what was published, beside our runs.

The published numbers are data (`results/paper/*.csv`, shipped in the wheel), compiled from secondary sources; a column
`trust` says how sure a row is. What stands here is which of our methods, with which preset and settings, is which row.
A run fills a cell if it was made by name with exactly the row's settings on the column's benchmark; see `sheets` for
how several runs become one number.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd

from audiocl_bench import backbones, benchmarks, registry, request
from audiocl_bench.errors import ConfigError, ResultsError, unknown_name
from audiocl_bench.files import paper_dir
from audiocl_bench.method import Method
from audiocl_bench.mini.catalogue import PREFIX
from audiocl_bench.own_benchmark import PROTOCOL as OWN_PROTOCOL
from audiocl_bench.report import sheets
from audiocl_bench.report.commands import Stream, Wanted
from audiocl_bench.report.sheets import Entry, Gathered, Sheet

SCORE = "final_accuracy"
"""The paper's score."""

SOURCE = (
    "The paper is PACE (ICLR 2026, arXiv 2602.03355); its numbers come from secondary sources, and it states neither "
    "its clips nor its class order."
)
_TRUST = {
    "medium": "Published number known from one digest of the paper only.",
    "inferred": "Published number inferred from other tables and figures of the paper.",
}
_BACKBONE = "eat-base"
_SHOWN_ELSEWHERE = 4  # groups of runs that a remark names


@dataclass(frozen=True)
class Row:
    """One row of a published table and how it is run.

    Attributes:
        key: in the first column of the table's CSV.
        title: as shown.
        method, preset: `METHOD@PRESET`; "" is the default preset.
        settings: changed settings, as `--set` takes them.
    """

    key: str
    title: str
    method: str
    preset: str = ""
    settings: tuple[str, ...] = ()

    @property
    def typed(self) -> str:
        """The method as `audiocl run -m` takes it."""
        return f"{self.method}@{self.preset}" if self.preset else self.method


@dataclass(frozen=True)
class Spec:
    """One published table.

    Attributes:
        number: in the paper.
        title: what it shows.
        heading: what its rows are.
        rows: in the paper's order.
        notes: (row key or "", benchmark) -> footnotes to published numbers; "" is every row.
        remarks: notes to the whole table.
        told: which method is which row; "" to list every row.
    """

    number: int
    title: str
    heading: str
    rows: tuple[Row, ...]
    notes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    told: str = ""

    @property
    def name(self) -> str:
        """For anchors and the command line: "table2"."""
        return f"table{self.number}"


# Table 12 is naive first-session adaptation with the first blocks frozen, without later sessions: its row "none" equals
# Table 3's "naive FSA" (ESC-50 92.25, SC2 90.53) and the others equal Fig. 6's naive FSA with 0 to 2 frozen blocks. So
# the head trains at eta_bb and there is no L_reg (preset `naive-fsa`); only the layer probe and its threshold differ.
_RHO = ("0.90", "0.92", "0.94", "0.96", "0.99")

_SPECS = (
    Spec(
        1,
        "first-session adaptation where classes are fine-grained",
        "strategy",
        (
            Row("no FSA", "no FSA", "pace", "no-fsa"),
            Row("naive FSA", "naive FSA", "pace", "naive-fsa"),
            Row("extended FSA", "extended FSA", "pace", "extended-fsa"),
            Row("joint", "joint", "joint"),
        ),
        {
            ("naive FSA", "timit2"): "Printed in a column named TIMIT-2, but Table 2 has this number for TIMIT-3 and "
            "85.63 for TIMIT-2: one of the paper's tables is mislabelled.",
            ("extended FSA", "timit2"): "Printed in a column named TIMIT-2, whose naive FSA is TIMIT-3's: it may be "
            "TIMIT-3's too.",
            ("naive FSA", "vocalset"): "Table 2 has 62.82.",
        },
    ),
    Spec(
        2,
        "all methods on all benchmarks",
        "method",
        (
            Row("joint", "Joint (LoRA)", "joint"),
            Row("l2p", "L2P", "l2p"),
            Row("dualprompt", "DualPrompt", "dualprompt"),
            Row("sprompt++", "S-Prompt++", "sprompt++"),
            Row("hide-prompt", "HiDe-Prompt", "hide-prompt"),
            Row("lora-drs", "LoRA-DRS", "lora-drs"),
            Row("ranpac-no-fsa", "RanPAC without FSA", "ranpac", "no-fsa"),
            Row("ranpac", "RanPAC", "ranpac"),
            Row("pace", "PACE", "pace"),
        ),
        remarks=(
            "The paper also compares ACL (here `acil`) and sequential fine-tuning (`finetune`); those numbers are not "
            "known. `audiocl table --rows method --cols benchmark` shows every method.",
        ),
    ),
    Spec(
        3,
        "improved first-session adaptation, coarse-grained benchmarks",
        "strategy",
        (
            Row("no FSA", "no FSA", "pace", "no-fsa"),
            Row("naive FSA", "naive FSA", "pace", "naive-fsa"),
            Row("+ low head LR", "+ low head LR", "pace", "low-head-lr"),
            Row("+ learn and freeze", "+ learn and freeze", "pace", "learn-and-freeze"),
            Row("improved FSA", "improved FSA", "pace"),
        ),
    ),
    Spec(
        4,
        "components of PACE, fine-grained benchmarks",
        "variant",
        (
            Row("full", "full", "pace"),
            Row("no FSA", "no FSA", "pace", "no-fsa"),
            Row("no MSA", "no MSA", "pace", "no-msa"),
            Row("no L_reg", "no L_reg", "pace", "no-regulariser"),
            Row("no gradient projection", "no gradient projection", "pace", "no-projection"),
        ),
    ),
    Spec(
        12,
        "sensitivity to rho_layer",
        "rho_layer",
        (
            *(Row(rho, rho, "pace", "naive-fsa", ("freeze_blocks=none", f"rho_layer={float(rho)}")) for rho in _RHO),
            Row("none", "none (no block frozen)", "pace", "naive-fsa"),
        ),
        {("", "timit2"): "The source's column is named TIMIT-3, but its values are TIMIT-2's (85.63, as in Table 2)."},
        remarks=(
            "The paper does not say what else these rows have. Its row without a threshold equals naive FSA in Table "
            "3, so all rows are naive FSA, with the blocks frozen that the layer probe finds.",
        ),
        told="Rows: none is `pace@naive-fsa`; the others add `--set freeze_blocks=none --set rho_layer=VALUE`.",
    ),
)
NUMBERS = tuple(spec.number for spec in _SPECS)


def spec(number: int | str) -> Spec:
    """Return what is known of a table: 2, "2" and "table2" are the same.

    Raises:
        UnknownNameError: the paper has no such table, or it is not one of accuracies.
    """
    text = str(number).strip().lower().removeprefix("table").strip()
    for found in _SPECS:
        if text == str(found.number):
            return found
    raise unknown_name("table of the paper", str(number), [str(n) for n in NUMBERS])


@dataclass(frozen=True)
class Published:
    """The numbers of one table.

    Attributes:
        benchmarks: its columns, in the paper's order.
        accuracy: (row key, benchmark) -> percent.
        trust: row key -> "high", "medium" or "inferred".
    """

    benchmarks: tuple[str, ...]
    accuracy: Mapping[tuple[str, str], float]
    trust: Mapping[str, str]


@lru_cache(maxsize=len(_SPECS))
def published(number: int) -> Published:
    """Read the published numbers of a table (`files.paper_dir()/table<number>.csv`).

    Raises:
        ResultsError: the file is missing or damaged.
    """
    path = paper_dir() / f"table{number}.csv"
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            head, *lines = [line for line in csv.reader(handle) if line]
        names = tuple(name for name in head[1:] if name != "trust")
        rows = [dict(zip(head, line, strict=True)) for line in lines]
        accuracy = {(row[head[0]], name): float(row[name]) for row in rows for name in names if row[name]}
        return Published(names, accuracy, {row[head[0]]: row.get("trust", "high") for row in rows})
    except (OSError, ValueError) as cause:
        raise ResultsError(f"{path} cannot be read ({cause}): restore it from the release.") from cause


# ---------------------------------------------------------------------------------------------------------------------
# Our numbers beside them


@dataclass(frozen=True)
class _Column:
    """One benchmark of a sheet: its name in the runs, and as typed; the paper's benchmark it stands for."""

    name: str
    typed: str
    own: bool
    mini: bool
    paper: str


@dataclass(frozen=True)
class _Asked:
    """What runs a sheet shows."""

    columns: tuple[_Column, ...]
    protocol: str
    backbone: str  # as in the runs
    typed_backbone: str
    orders: tuple[int, ...] | None
    seeds: tuple[int, ...] | None


def table(
    number: int | str,
    results: sheets.Results | Sequence[sheets.Results] | None = None,
    *,
    backbone: str = _BACKBONE,
    protocol: str | None = None,
    mini: bool = False,
    benchmarks: Sequence[str] | None = None,
    orders: str | int | Iterable[int] | None = None,
    seeds: str | int | Iterable[int] | None = None,
    score: str = SCORE,
) -> Sheet:
    """Return a table of the paper with our numbers beside the published ones.

    Published numbers and differences stand beside runs on the real benchmarks only: a table of miniatures, of own data
    or of a stand-in network shows ours alone.

    Args:
        number: 1, 2, 3, 4 or 12; "table2" is read as 2.
        results: where our runs are, as for `sheets.load_runs`.
        backbone: a name, or the path given to `audiocl run`.
        protocol: "paper" (random 8:2, the default) or "grouped".
        mini: the miniatures instead of the benchmarks.
        benchmarks: columns; default those of the paper's table. One name or .toml file of own data is a table of its
            own.
        orders, seeds: class orders and seeds ([0, 2], range(5) or "0-4") that count, and that every cell should have.
            Default: all that there are; a cell should have all orders of its benchmark.
        score: one of `results.SCORES`; the paper has the final accuracy only.

    Raises:
        UnknownNameError: no such table, benchmark, protocol, network or score.
        ConfigError: benchmarks that may not share a table.
        ResultsError: results are damaged.
    """
    chosen, numbers = spec(number), published(spec(number).number)
    sheets.checked_score(score)
    columns = _columns(benchmarks, numbers, mini=mini)
    own = columns[0].own
    if protocol is not None and protocol not in (known := (OWN_PROTOCOL,) if own else ("paper", "grouped")):
        raise unknown_name("split protocol", protocol, known)
    asked = _Asked(
        columns,
        protocol or (OWN_PROTOCOL if own else sheets.PAPER_PROTOCOL),
        backbone_name(backbone),
        backbone,
        None if orders is None else request.numbers(orders, "orders"),
        None if seeds is None else request.numbers(seeds, "seeds"),
    )
    everything = sheets.load_runs(results)
    _check_known(asked, everything)
    asked = dataclasses.replace(asked, typed_backbone=_typed(backbone, everything))
    runs = everything[everything["method"].isin({row.method for row in chosen.rows})]
    warning = _warning(asked, runs)
    beside = not warning and score == SCORE
    methods = {name: registry.load(name) for name in dict.fromkeys(row.method for row in chosen.rows)}
    entries: list[Entry] = []
    matched: set[str] = set()
    for row in chosen.rows:
        for column in columns:
            fits, earlier = _fitting(row, methods[row.method], column, asked, runs)
            matched.update(fits["run_id"])
            entry = _entry(row, column, asked, sheets.gather(fits, score, earlier=earlier))
            entries.append(_with_paper(entry, row, column, chosen, numbers) if beside else entry)
    cells = sheets.ranked(entries, score)
    remarks = (_rows_remark(chosen), *chosen.remarks)
    where = [f"{asked.protocol} split", asked.backbone]
    return Sheet(
        name=chosen.name,
        title=f"Table {chosen.number} of the paper: {chosen.title}",
        setting=sheets.setting_sentence(score, where, cells),
        warning=warning,
        score=score,
        row_heading=chosen.heading,
        rows=tuple(row.title for row in chosen.rows),
        columns=tuple(column.name for column in columns),
        cells=cells,
        remarks=(*remarks, SOURCE) if beside else remarks,
        hints=_hints(asked, runs, matched, numbers.benchmarks),
    )


def backbone_name(given: str) -> str:
    """Return what the runs call a network: its name, or the name of the file or folder."""
    path = Path(given).expanduser()
    if given in backbones.names() or not path.exists():
        return given
    return path.resolve().name if path.is_dir() else path.stem


def _typed(backbone: str, runs: pd.DataFrame) -> str:
    return backbone if Path(backbone).expanduser().exists() else sheets.typed_backbone(runs, backbone)


def _columns(given: Sequence[str] | None, numbers: Published, *, mini: bool) -> tuple[_Column, ...]:
    """Return the columns of a sheet.

    Raises:
        ConfigError: own data beside other data, or miniatures beside real benchmarks.
    """
    names = list(dict.fromkeys(numbers.benchmarks if given is None else given))
    columns = tuple(_column(name, mini=mini) for name in names)
    if not columns:
        raise ConfigError("--bench names nothing: give a benchmark, or leave it out.")
    if len(columns) > 1 and (any(c.own for c in columns) or len({c.mini for c in columns}) > 1):
        raise ConfigError(
            f"{', '.join(names)} may not share a table: own data stands alone, miniatures apart from the benchmarks."
        )
    return columns


def _column(given: str, *, mini: bool) -> _Column:
    known, miniatures = benchmarks.names(), benchmarks.mini_names()
    if given in known and mini:
        given = f"{PREFIX}{given}"
    if given in known or given in miniatures:
        return _Column(given, given, False, given in miniatures, given.removeprefix(PREFIX))
    if given.endswith(".toml"):
        return _Column(benchmarks.get(given).name, given, True, False, "")
    return _Column(given, f"{given}.toml", True, False, "")


def _fitting(
    row: Row, method: type[Method], column: _Column, asked: _Asked, runs: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the runs with exactly a row's settings, and for `sheets.gather` which of them know fewer settings."""
    here = _in_setting(runs, asked, column)
    here = here[here["method"] == row.method]
    wanted = sheets.method_settings(method, row.preset, column.name, row.settings)
    fits, earlier = [], {}
    for _, run in here.iterrows():
        found = sheets.difference(json.loads(run["method_config"]), wanted)
        fits.append(found.equal and sheets.is_packaged(run))
        if found.equal and found.earlier:
            earlier[str(run["config_hash"])] = found.earlier
    return here[pd.Series(fits, index=here.index, dtype=bool)], earlier


def _entry(row: Row, column: _Column, asked: _Asked, gathered: Gathered) -> Entry:
    """Return one cell of ours, and what is missing in it."""
    streams = _asked_streams(asked, column, gathered)
    missing = streams - gathered.tried
    cell = dataclasses.replace(
        gathered.cell,
        row=row.title,
        column=column.name,
        wanted=_wanted(row, column, asked, missing) if missing else None,
    )
    return Entry(cell, gathered, asked=streams)


def _in_setting(runs: pd.DataFrame, asked: _Asked, column: _Column) -> pd.DataFrame:
    """Return the runs on a column's data with the asked protocol, network, orders and seeds."""
    fits = (
        (runs["benchmark"] == column.name)
        & (runs["own_data"] == column.own)
        & (runs["mini"] == column.mini)
        & (runs["protocol"] == asked.protocol)
        & (runs["backbone"] == asked.backbone)
    )
    for name, numbers in (("order", asked.orders), ("seed", asked.seeds)):
        if numbers is not None:
            fits &= runs[name].isin(numbers)
    return runs[fits]


def _asked_streams(asked: _Asked, column: _Column, gathered: Gathered) -> frozenset[Stream]:
    """Return the (order, seed) pairs a cell should have: those asked for, else all orders with the seeds it has."""
    orders, seeds = asked.orders, asked.seeds
    if orders is None:
        described = not column.own or Path(column.typed).is_file()
        orders = tuple(range(benchmarks.get(column.typed).num_orders)) if described else _numbers(gathered, 0) or (0,)
    if seeds is None:
        seeds = _numbers(gathered, 1) or (0,)
    return frozenset((order, seed) for order in orders for seed in seeds)


def _numbers(gathered: Gathered, place: int) -> tuple[int, ...]:
    return tuple(sorted({stream[place] for stream in gathered.tried}))


def _wanted(row: Row, column: _Column, asked: _Asked, missing: frozenset[Stream]) -> Wanted:
    protocol = "" if asked.protocol in (sheets.PAPER_PROTOCOL, OWN_PROTOCOL) else asked.protocol
    return Wanted(row.typed, row.settings, column.typed, protocol, asked.typed_backbone, missing)


def _with_paper(entry: Entry, row: Row, column: _Column, chosen: Spec, numbers: Published) -> Entry:
    """Add the published number with its footnotes."""
    value = numbers.accuracy.get((row.key, column.paper))
    if value is None:
        return entry
    told = (
        _TRUST.get(numbers.trust[row.key], ""),
        chosen.notes.get((row.key, column.paper), ""),
        chosen.notes.get(("", column.paper), ""),
    )
    cell = dataclasses.replace(entry.cell, paper=value, paper_notes=tuple(text for text in told if text))
    return dataclasses.replace(entry, cell=cell)


def _warning(asked: _Asked, runs: pd.DataFrame) -> str:
    """Say why a sheet's numbers stand beside no published ones, or ""."""
    reasons = []
    if asked.columns[0].own:
        reasons.append("own data")
    if asked.columns[0].mini:
        reasons.append("mini (synthetic data)")
    random = {row.name for row in backbones.list_rows() if row.stand_in}
    if asked.backbone in random or runs[runs["backbone"] == asked.backbone]["stand_in"].any():
        reasons.append("stand-in backbone")
    return ", ".join(reasons)


def _rows_remark(chosen: Spec) -> str:
    """Say which method with which preset is which row."""
    return chosen.told or f"Rows: {'; '.join(f'{row.title} is `{row.typed}`' for row in chosen.rows)}."


def _check_known(asked: _Asked, runs: pd.DataFrame) -> None:
    """Refuse a network or a benchmark that is neither known nor in the results.

    Raises:
        UnknownNameError: there is no such network or benchmark.
    """
    names = [*backbones.names(), *runs["backbone"].unique()]
    if asked.backbone not in names and not Path(asked.typed_backbone).expanduser().exists():
        raise unknown_name("backbone", asked.typed_backbone, names, hint="A path to weights works too.")
    for column in asked.columns:
        own = runs[runs["own_data"]]["benchmark"].unique()
        if column.own and not Path(column.typed).is_file() and column.name not in own:
            raise unknown_name("benchmark", column.name, [*benchmarks.names(), *own])


def _hints(
    asked: _Asked, runs: pd.DataFrame, matched: Collection[str], published_on: Collection[str]
) -> tuple[str, ...]:
    """Say which runs of a table's methods it does not show, and how to see them."""
    shown = pd.Series(False, index=runs.index)
    for column in asked.columns:
        shown |= runs.index.isin(_in_setting(runs, asked, column).index)
    hints = []
    if left := int((shown & ~runs["run_id"].isin(list(matched))).sum()):
        hints.append(
            f"{left} more run{'s' * (left > 1)} of these methods here have settings of no row: "
            "`audiocl table --rows method --cols benchmark` shows all."
        )
    related = runs["own_data"] | runs["benchmark"].str.removeprefix(PREFIX).isin(list(published_on))
    rest = runs[~shown & related]
    told = []
    bench = rest["benchmark"].where(rest["own_data"], "")
    for (name, own, mini, protocol, backbone), group in rest.groupby(
        [bench, "own_data", "mini", "protocol", "backbone"], sort=True
    ):
        options = [f"--bench {name}"] if own else ["--data mini"] if mini else []
        options += [f"--backbone {backbone}"] if backbone != _BACKBONE else []
        options += [f"--protocol {protocol}"] if protocol not in (sheets.PAPER_PROTOCOL, OWN_PROTOCOL) else []
        told.append(f"{len(group)} with `{' '.join(options)}`" if options else f"{len(group)} without options")
    if told:
        more = f" and {len(told) - _SHOWN_ELSEWHERE} other settings" if len(told) > _SHOWN_ELSEWHERE else ""
        hints.append(f"Runs of these methods that are not shown: {', '.join(told[:_SHOWN_ELSEWHERE])}{more}.")
    return tuple(hints)


__all__ = ["NUMBERS", "SCORE", "Published", "Row", "Spec", "backbone_name", "published", "spec", "table"]
