"""Sheets: tables of cells computed from runs, as Markdown, HTML, LaTeX, CSV or a data frame.

How the runs of one cell become one number:

1. Runs with a failed audit, or of a method that declares a leak, are left out and named in a footnote.
2. Runs with unlike settings, code, weights, features or clips are never averaged. Where several kinds fit a cell, runs
   that know every present setting go before runs made before a setting existed, then the kind with most orders wins,
   then the one with most (order, seed) pairs, then the newest; a footnote counts the others.
3. Repeats of one order and seed are averaged first. The cell is the mean over (order, seed) pairs with the half width
   of its 95 % Student t interval (none for a single pair).

Best is bold: the best mean, at the two decimals shown, of the cells that may be compared: one benchmark, protocol and
network with equal clips and weights, the same (order, seed) pairs, and no method that learned all classes at once. Of
one cell alone nothing is said, and ties are all bold. Own data, miniatures and stand-in networks never share a sheet
with other data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audiocl_bench import backbones, benchmarks, config, files, metrics, places, registry
from audiocl_bench.errors import AudioclError, ConfigError, ResultsError, unknown_name
from audiocl_bench.method import Method
from audiocl_bench.report import sheet_formats
from audiocl_bench.report.commands import Command, Stream, Wanted, commands, ranges
from audiocl_bench.report.tables import not_comparable
from audiocl_bench.results import RUNS_SCHEMA, SCORES, ResultsDir, Where, method_source, own_origin, result_dirs

Format = Literal["markdown", "latex", "csv", "html"]
FORMATS: tuple[Format, ...] = ("markdown", "latex", "csv", "html")
"""What `render` writes; Parquet goes through `Sheet.frame`."""

DIMENSIONS = ("method", "benchmark", "protocol", "backbone", "order", "seed")
"""What the rows and columns of a free sheet may be."""

SCORE_TITLES: Mapping[str, str] = {
    "final_accuracy": "Final accuracy, mean over sessions",
    "micro_accuracy": "Final accuracy, every clip weighs the same",
    "balanced_accuracy": "Final accuracy, every class weighs the same",
    "average_incremental_accuracy": "Average incremental accuracy, by session",
    "average_incremental_accuracy_by_sample": "Average incremental accuracy, by clip",
    "forgetting": "Forgetting (less is better)",
    "backward_transfer": "Backward transfer",
    "plasticity": "Plasticity (a session right after learning it)",
}
PAPER_PROTOCOL = "paper"
PAPER_BACKBONES = ("eat-base", "eat-base-epoch10")
"""EAT base; which of its two releases the paper used is not known."""

BOUND = "Learned all classes at once: a bound, not ranked."
_SMALLER_IS_BETTER = ("forgetting",)
_DIGITS = 2
_NAMED_RUNS = 3  # ids in a footnote; the rest is counted
_SHORT_HASH = 6
_LISTED_SETTINGS = 3  # changed settings in a method's label; more are counted
_RULE = "settings as of today first, then most orders, then the newest"


# ---------------------------------------------------------------------------------------------------------------------
# Sheets


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        row, column: its labels.
        mean: our score in percent, mean over (order, seed) pairs; None where there is none.
        half_width: of the 95 % interval; None for a single pair.
        streams: the (order, seed) pairs.
        run_ids: the runs behind it.
        best: bold.
        paper: the published number; None where there is none.
        notes: footnotes to our score. paper_notes: footnotes to the published number.
        wanted: runs that would fill or complete it; None where nothing is missing or it cannot be told.
    """

    row: str
    column: str
    mean: float | None = None
    half_width: float | None = None
    streams: frozenset[Stream] = frozenset()
    run_ids: tuple[str, ...] = ()
    best: bool = False
    paper: float | None = None
    notes: tuple[str, ...] = ()
    paper_notes: tuple[str, ...] = ()
    wanted: Wanted | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points, or None."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclass(frozen=True)
class Sheet:
    """A table of cells.

    Attributes:
        name: short, for anchors and labels ("table2").
        title: one line.
        setting: one or two sentences: what was measured on what.
        warning: why its numbers stand beside no published ones; "" if they may.
        score: column of the runs table.
        row_heading: what the rows are.
        rows, columns: labels, in order.
        cells: row by row.
        remarks: notes to the whole table.
        hints: what the reader could do to see more; not for print.
        data, results: folders that the commands for missing runs name; None for the default ones.
    """

    name: str
    title: str
    setting: str
    warning: str
    score: str
    row_heading: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    remarks: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    data: Path | None = None
    results: str | None = None

    @property
    def has_paper(self) -> bool:
        """Whether any cell has a published number."""
        return any(cell.paper is not None for cell in self.cells)

    def cell(self, row: str, column: str) -> Cell:
        """Return one cell. Raises KeyError if there is none with these labels."""
        for cell in self.cells:
            if (cell.row, cell.column) == (row, column):
                return cell
        raise KeyError((row, column))

    def footnotes(self) -> tuple[str, ...]:
        """Return the footnotes' texts, each once, in reading order; the first one has number 1."""
        return tuple(dict.fromkeys(text for cell in self.cells for text in (*cell.notes, *cell.paper_notes)))

    def commands(self, *, together: bool = True) -> tuple[Command, ...]:
        """Return the commands that make exactly the missing runs; see `commands.commands`."""
        return commands([cell.wanted for cell in self.cells if cell.wanted is not None], together=together)

    def frame(self) -> pd.DataFrame:
        """Return the tidy table, one row per cell.

        Columns: table, row, column, score, ours, half_width (percent; NaN where none), n ((order, seed) pairs), best,
        paper, difference (points), comparable (may stand beside published numbers), footnotes and run_ids (lists).
        """
        rows = [
            {
                "table": self.name,
                "row": cell.row,
                "column": cell.column,
                "score": self.score,
                "ours": _number(cell.mean),
                "half_width": _number(cell.half_width),
                "n": len(cell.streams),
                "best": cell.best,
                "paper": _number(cell.paper),
                "difference": _number(cell.difference),
                "comparable": not self.warning,
                "footnotes": [*cell.notes, *cell.paper_notes],
                "run_ids": list(cell.run_ids),
            }
            for cell in self.cells
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return render(self)

    def _repr_markdown_(self) -> str:
        """How a notebook shows it."""
        return render(self)


def render(sheet: Sheet | Sequence[Sheet], form: Format = "markdown") -> str:
    """Return one sheet, or several as one document.

    Args:
        sheet: what is shown.
        form: "markdown", "latex" (needs booktabs), "csv" (`Sheet.frame`; lists joined by " | ") or "html" (standalone).

    Raises:
        UnknownNameError: no such format.
    """
    sheets = (sheet,) if isinstance(sheet, Sheet) else tuple(sheet)
    if form == "csv":
        return _csv(frame(sheets))
    write = {"markdown": sheet_formats.markdown, "latex": sheet_formats.latex, "html": sheet_formats.html}.get(form)
    if write is None:
        raise unknown_name("format", form, FORMATS)
    return write(sheets)


def frame(sheets: Iterable[Sheet]) -> pd.DataFrame:
    """Return the tidy tables of several sheets as one."""
    return pd.concat([sheet.frame() for sheet in sheets], ignore_index=True)


def write_parquet(sheets: Iterable[Sheet], path: Path) -> None:
    """Write the tidy tables of sheets (`Sheet.frame`) as one Parquet file.

    Raises:
        ResultsError: the file cannot be written.
    """
    table = pa.Table.from_pandas(frame(sheets), schema=_PARQUET, preserve_index=False).replace_schema_metadata(None)
    with files.atomic_path(path, error=ResultsError) as temporary:
        pq.write_table(table, temporary, compression="zstd")


_PARQUET = pa.schema(
    [(name, pa.string()) for name in ("table", "row", "column", "score")]
    + [("ours", pa.float64()), ("half_width", pa.float64()), ("n", pa.int64()), ("best", pa.bool_())]
    + [("paper", pa.float64()), ("difference", pa.float64()), ("comparable", pa.bool_())]
    + [(name, pa.list_(pa.string())) for name in ("footnotes", "run_ids")]
)


def _csv(table: pd.DataFrame) -> str:
    joined = {name: table[name].map(" | ".join) for name in ("footnotes", "run_ids")}
    return table.assign(**joined).to_csv(index=False, lineterminator="\n")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


Results = Where
"""A results directory, or a path or URL: of one, or of a folder that holds several (`results.result_dirs`)."""


def load_runs(results: Results | Sequence[Results] | None = None) -> pd.DataFrame:
    """Return the runs of one or several results directories; a run that was copied counts once.

    Args:
        results: where the runs are; None is `results/` in the cache directory. A `ResultsDir` may have no runs yet.

    Raises:
        ResultsError: a path holds no runs, or a file is damaged.
    """
    if results is None:
        results = ResultsDir(files.home() / "results")
    given = [results] if isinstance(results, (ResultsDir, str, os.PathLike)) else list(results)
    tables = [folder.runs() for each in given for folder in _folders(each)] or [RUNS_SCHEMA.empty_table().to_pandas()]
    return pd.concat(tables, ignore_index=True).drop_duplicates(ignore_index=True)


def _folders(given: Results) -> tuple[ResultsDir, ...]:
    if isinstance(given, ResultsDir):
        return (given,)
    root = ResultsDir(places.expanded(given))
    if not (found := result_dirs(root)):
        root.run_ids()  # says it where a file is in the way
        raise ResultsError(f"there are no runs in {root.name}: run a benchmark first, or point --results elsewhere.")
    return found


@dataclass(frozen=True)
class Place:
    """What must be equal for two scores to be comparable, besides their streams."""

    benchmark: str
    protocol: str
    backbone: str
    clips: str
    weights: str
    features: str  # pooling and layer
    front_end: str


@dataclass(frozen=True)
class _Kind:
    """Runs that may be averaged: one place, one set of settings, one code."""

    place: Place
    settings: str
    code: str
    earlier: str  # why its settings are not quite those of today


@dataclass(frozen=True)
class Gathered:
    """The number that runs of one method give in one cell, and what to know about it.

    Attributes:
        cell: the cell's score, without labels.
        place: where it was measured; None if there is no run.
        bound: the method learned all classes at once.
        tried: (order, seed) pairs that have a run, those with a failed audit included.
        finished: when its newest run ended, ISO 8601.
    """

    cell: Cell
    place: Place | None = None
    bound: bool = False
    tried: frozenset[Stream] = frozenset()
    finished: str = ""


def gather(runs: pd.DataFrame, score: str, *, earlier: Mapping[str, str] | None = None) -> Gathered:
    """Return the number that runs give in one cell, by the rules at the top of this module.

    Args:
        runs: rows of the runs table that all fit the cell.
        score: one of `results.SCORES`.
        earlier: config_hash -> why a run of those settings does not know all of today's; for those only.
    """
    tried = _streams(runs)
    passed, failed = runs[runs["audit_passed"]], runs[~runs["audit_passed"]]
    notes = [_audit_note(failed)] if len(failed) else []
    if len(passed) == 0:
        return Gathered(Cell("", "", notes=tuple(notes)), tried=tried)
    kinds = pd.Series([_kind(run, earlier or {}) for _, run in passed.iterrows()], index=passed.index)
    if len(set(origins := [own_origin(run) for run in passed.to_dict("records")]) - {""}) > 1:
        # Runs on own or synthetic data that differ in their audio or epochs alone; of older ones nobody knows.
        kinds = pd.Series(
            [
                dataclasses.replace(kind, place=dataclasses.replace(kind.place, clips=f"{kind.place.clips} {origin}"))
                for kind, origin in zip(kinds, origins, strict=True)
            ],
            index=passed.index,
        )
    chosen = max(dict.fromkeys(kinds), key=lambda kind: _preference(kind, passed[kinds == kind]))
    if left := len(passed) - int((kinds == chosen).sum()):
        notes.append(f"{_runs(left)} with other {_unlike(chosen, set(kinds))} left out ({_RULE}).")
    used, older = _one_audio(passed[kinds == chosen])
    if older:
        notes.append(f"{_runs(older)} on other audio or another split of it left out: the newest counts.")
    if chosen.earlier:
        notes.append(chosen.earlier)
    first = used.iloc[0]
    if unlike := unlike_paper(first):
        notes.insert(0, unlike)
    # A run that was tested only after its last session has no curve: it learned the whole stream as one session.
    bound = bool((used["average_incremental_accuracy"].isna() & (used["num_sessions"] > 1)).all())
    if bound:
        notes.append(BOUND)
    summary = metrics.summarise(used.groupby(["order", "seed"])[score].mean())
    if math.isnan(summary.mean):
        notes.append(f"Has no {score.replace('_', ' ')}: it was not tested after every session.")
    cell = Cell(
        "",
        "",
        mean=None if math.isnan(summary.mean) else summary.mean,
        half_width=None if math.isnan(summary.half_width) else summary.half_width,
        streams=_streams(used),
        run_ids=tuple(sorted(set(used["run_id"]))),
        notes=tuple(notes),
    )
    return Gathered(cell, chosen.place, bound, tried, str(used["finished_at"].max()))


def unlike_paper(run: Any) -> str:
    """Return a footnote on how a run's data, network or protocol differs from the paper's, or ""."""
    differences = [text for text in (not_comparable(run),) if text]
    if not run["stand_in"] and run["backbone"] not in PAPER_BACKBONES:
        differences.append(f"backbone {run['backbone']} instead of EAT base")
    if not run["own_data"] and run["protocol"] != PAPER_PROTOCOL:
        differences.append(f"{run['protocol']} split instead of a random 8:2 split of the clips")
    if features := _unusual_features(run):
        differences.append(f"features: {features}")
    return f"Unlike the paper: {', '.join(differences)}." if differences else ""


def _kind(run: pd.Series, earlier: Mapping[str, str]) -> _Kind:
    notes = json.loads(run["notes"])
    network = notes.get("backbone") or {}
    features = f"pool={network.get('pool')}, layer={network.get('layer')}"
    place = Place(
        run["benchmark"],
        run["protocol"],
        run["backbone"],
        run["index_hash"],
        run["weights_hash"],
        features,
        run["front_end"],
    )
    return _Kind(place, run["config_hash"], method_source(run), earlier.get(run["config_hash"], ""))


def _preference(kind: _Kind, runs: pd.DataFrame) -> tuple[Any, ...]:
    """Rank kinds of runs that fit the same cell; see the top of this module. The last parts make it deterministic."""
    orders, streams = runs["order"].nunique(), len(_streams(runs))
    return (not kind.earlier, orders, streams, str(runs["finished_at"].max()), kind.settings, repr(kind.place))


def _unlike(chosen: _Kind, kinds: Collection[_Kind]) -> str:
    """Name what tells other kinds of runs from the chosen one: "settings", "weights and clips"."""
    words = {"front_end": "front end"}
    found = [name for name in ("settings", "code") if len({getattr(kind, name) for kind in kinds}) > 1]
    found += [
        words.get(f.name, f.name)
        for f in dataclasses.fields(Place)
        if len({getattr(kind.place, f.name) for kind in kinds}) > 1
    ]
    return " and ".join(found) or f"settings than {chosen.settings[:6]}"


def _one_audio(runs: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Keep one split and one audio per order and seed, the newest; return the runs and how many are left out.

    The id of a run on own or synthetic data changes with its audio, which older results do not hold otherwise.
    """
    keys = ["order", "seed"]
    changing = runs["own_data"] | runs["mini"]
    known = runs["split_hash"] + runs["run_id"].where(changing, "")
    latest = runs.assign(_known=known).sort_values(["finished_at", "run_id"], kind="stable").groupby(keys)["_known"]
    kept = runs[known == latest.transform("last").reindex(runs.index)]
    return kept, len(runs) - len(kept)


def _unusual_features(run: Any) -> str:
    """Say which features a run used where they are not its network's usual ones (EAT: cls; all blocks)."""
    network = json.loads(run["notes"]).get("backbone") or {}
    found = []
    if network.get("network") == "eat" and network.get("pool", "cls") != "cls":
        found.append(f"pool={network['pool']}")
    if network.get("layer") != network.get("depth"):
        found.append(f"block {network['layer']} of {network['depth']}")
    return ", ".join(found)


def _audit_note(failed: pd.DataFrame) -> str:
    declared = [all(check["passed"] for check in json.loads(text).values()) for text in failed["audit"]]
    parts = []
    for leak, what in ((False, "a failed audit"), (True, "a declared leak")):
        ids = sorted(run for run, says in zip(failed["run_id"], declared, strict=True) if says == leak)
        if ids:
            more = f" and {len(ids) - _NAMED_RUNS} more" if len(ids) > _NAMED_RUNS else ""
            parts.append(f"{_runs(len(ids))} with {what} left out: {', '.join(ids[:_NAMED_RUNS])}{more}.")
    return " ".join(parts)


def _streams(runs: pd.DataFrame) -> frozenset[Stream]:
    return frozenset(zip(runs["order"].astype(int), runs["seed"].astype(int), strict=True))


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@dataclass(frozen=True)
class Difference:
    """How the settings of a run differ from a method's.

    Attributes:
        changed: setting -> the run's value.
        unknown: settings that did not exist when the run was made, and that stand at their defaults.
        lacking: settings that did not exist when the run was made, and that do not.
    """

    changed: Mapping[str, Any] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the run was made with these settings, as far as they existed."""
        return not self.changed and not self.lacking

    @property
    def earlier(self) -> str:
        """A footnote about the unknown settings, or ""."""
        if not self.unknown:
            return ""
        names = ", ".join(f"`{name}`" for name in self.unknown)
        plural = "s" if len(self.unknown) > 1 else ""
        return f"Made before the setting{plural} {names} existed; taken as made with the default{plural}."


def difference(stored: Mapping[str, Any], wanted: config.MethodConfig) -> Difference:
    """Compare the settings stored with a run with a method's settings.

    `preset` is left out: it names settings, and the settings themselves are compared.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(wanted)}
    expected = {name: value for name, value in wanted.as_dict().items() if name != "preset"}
    changed = {name: value for name, value in stored.items() if name != "preset" and expected.get(name, ...) != value}
    absent = [name for name in expected if name not in stored]
    lacking = tuple(name for name in absent if getattr(wanted, name) != defaults[name])
    return Difference(changed, tuple(name for name in absent if name not in lacking), lacking)


def is_packaged(run: pd.Series) -> bool:
    """Whether a run's method was found by name, not in a file whose class may merely be called so."""
    return not method_source(run)


def set_text(name: str, value: Any) -> str:
    """Return a setting as `--set` takes it."""
    if value is None or isinstance(value, bool):
        return f"{name}={str(value).lower()}"
    return f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def method_settings(
    method: type[Method], preset: str, benchmark: str, settings: Sequence[str] = ()
) -> config.MethodConfig:
    """Return the settings with which `audiocl run -m METHOD@PRESET -b BENCHMARK --set ...` runs a method.

    Raises:
        AudioclError: no such preset or setting.
    """
    overrides = {**({"preset": preset} if preset else {}), **config.parse_overrides(settings)}
    return config.build(method.Config, benchmark, overrides, owner=method.name)


@dataclass(frozen=True)
class _Label:
    """How a method is called in a free sheet, and how it is run again (`typed` is "" where that cannot be told)."""

    text: str
    typed: str = ""
    settings: tuple[str, ...] = ()
    earlier: str = ""


def _label(run: pd.Series, method: type[Method] | None, ambiguous: bool) -> _Label:
    """Name a run's method as the user did: METHOD@PRESET and the settings that were changed.

    Args:
        run: a row of the runs table.
        method: its class, if it can be loaded here by name.
        ambiguous: there are runs of other settings under the same name.
    """
    typed = f"{run['method']}@{run['variant']}" if run["variant"] else str(run["method"])
    short = f" #{run['config_hash'][:_SHORT_HASH]}"
    if source := method_source(run):
        return _Label(f"{typed} (code {source[:_SHORT_HASH]}){short if ambiguous else ''}")
    try:
        wanted = method_settings(method, run["variant"], run["benchmark"]) if method is not None else None
    except AudioclError:  # a preset that this version does not have
        wanted = None
    if wanted is not None:
        found = difference(json.loads(run["method_config"]), wanted)
        changed = tuple(set_text(name, value) for name, value in sorted(found.changed.items()))
        if not found.lacking and set(found.changed) <= {f.name for f in dataclasses.fields(wanted)}:
            told = ", ".join((typed, *changed))
            if len(changed) > _LISTED_SETTINGS:
                told = f"{typed}, {len(changed)} settings changed{short}"
            return _Label(told, typed, changed, found.earlier)
    return _Label(f"{typed}{short}" if ambiguous else typed)


def _labels(runs: pd.DataFrame) -> list[_Label]:
    """Return the label of every run."""
    loaded = {name: registry.load(name) for name in set(runs["method"]) & set(registry.names())}
    several = runs.groupby(["method", "variant"])["config_hash"].transform("nunique") > 1
    made: dict[tuple[str, ...], _Label] = {}
    labels = []
    for (_, run), ambiguous in zip(runs.iterrows(), several, strict=True):
        key = (run["method"], run["variant"], run["benchmark"], run["config_hash"], method_source(run))
        if key not in made:
            made[key] = _label(run, loaded.get(run["method"]), bool(ambiguous))
        labels.append(made[key])
    return labels


# ---------------------------------------------------------------------------------------------------------------------
# From gathered cells to a sheet


@dataclass(frozen=True)
class Entry:
    """A cell before it is ranked.

    Attributes:
        cell: with its labels.
        gathered: the number and where it was measured.
        shared: what its rivals share besides benchmark, protocol and network (a class order, say).
        asked: (order, seed) pairs it should have; empty if nobody asked for any.
    """

    cell: Cell
    gathered: Gathered
    shared: tuple[Any, ...] = ()
    asked: frozenset[Stream] = frozenset()


def ranked(entries: Sequence[Entry], score: str) -> tuple[Cell, ...]:
    """Mark the best of the cells that may be compared; say which cells are not ranked or have too few runs.

    Args:
        entries: the cells of one sheet.
        score: which score it is; of forgetting the least is best.
    """
    arenas: dict[tuple[Any, ...], list[int]] = {}
    for position, entry in enumerate(entries):
        place = entry.gathered.place
        if place is not None and entry.cell.mean is not None and not entry.gathered.bound:
            arenas.setdefault((place.benchmark, place.protocol, place.backbone, *entry.shared), []).append(position)
    best: set[int] = set()
    unranked: dict[int, str] = {}
    for positions in arenas.values():
        best |= _compete(entries, positions, score, unranked)
    cells = []
    for position, entry in enumerate(entries):
        notes = list(entry.cell.notes)
        have = entry.cell.streams
        if entry.cell.mean is not None and (missing := entry.asked - have):
            notes.append(f"{len(have & entry.asked)} of {_runs(len(entry.asked))} so far ({_without(missing, have)}).")
        if position in unranked:
            notes.append(unranked[position])
        cells.append(dataclasses.replace(entry.cell, notes=tuple(notes), best=position in best))
    return tuple(cells)


def _compete(entries: Sequence[Entry], positions: Sequence[int], score: str, unranked: dict[int, str]) -> set[int]:
    """Return the best of some cells of one benchmark, protocol and network; tell why others are not ranked."""
    places: dict[Place, list[int]] = {}
    for position in positions:
        place = entries[position].gathered.place
        assert place is not None
        places.setdefault(place, []).append(position)
    main = max(places, key=lambda p: (len(places[p]), max(entries[i].gathered.finished for i in places[p]), repr(p)))
    for place, members in places.items():
        if place != main:
            reason = "Not ranked: made with other weights, features or clips than most cells beside it."
            unranked.update(dict.fromkeys(members, reason))
    union = frozenset[Stream]().union(*(entries[i].cell.streams for i in places[main]))
    rivals = []
    for i in places[main]:
        have = entries[i].cell.streams
        if have == union:
            rivals.append(i)
        else:
            unranked[i] = f"Not ranked: others beside it have more runs ({_without(union - have, have)})."
    if len(rivals) < 2:
        return set()
    sign = -1 if score in _SMALLER_IS_BETTER else 1
    shown = {i: sign * round(entries[i].cell.mean or 0.0, _DIGITS) for i in rivals}
    return {i for i in rivals if shown[i] == max(shown.values())}


def _without(missing: frozenset[Stream], have: frozenset[Stream]) -> str:
    """Name (order, seed) pairs that a cell lacks: "without orders 1-4"."""
    orders, seeds = sorted({order for order, _ in missing}), sorted({seed for _, seed in missing})
    text = f"without order{'s' * (len(orders) > 1)} {ranges(orders)}"
    if {seed for _, seed in missing | have} == {0}:
        return text
    return f"{text} of seed{'s' * (len(seeds) > 1)} {ranges(seeds)}"


def setting_sentence(score: str, where: Sequence[str], cells: Iterable[Cell]) -> str:
    """Return what a sheet's numbers are, on what data, and over how many runs."""
    counts = sorted({len(cell.streams) for cell in cells if cell.mean is not None})
    sentence = f"{SCORE_TITLES[score]}, in percent; {', '.join(where)}."
    if not counts:
        return sentence
    if counts == [1]:
        return f"{sentence} One run per cell."
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{sentence} Mean ± half width of the 95 % interval over {number} (order, seed) pairs."


def checked_score(score: str) -> str:
    """Return the score. Raises UnknownNameError if there is no such score."""
    if score not in SCORES:
        raise unknown_name("score", score, SCORES)
    return score


# ---------------------------------------------------------------------------------------------------------------------
# Free sheets


def blocks(runs: pd.DataFrame, *, rows: str = "method", cols: str = "benchmark") -> list[pd.DataFrame]:
    """Split runs into those that may share a free sheet; comparable runs first.

    Runs on own data stand alone, miniatures and stand-in networks apart from everything else. Whatever is neither row
    nor column (method, benchmark, protocol, backbone) is the same throughout a block.

    Raises:
        UnknownNameError, ConfigError: `rows` or `cols` is no dimension, or they are the same.
    """
    _check_dimensions(rows, cols)
    if len(runs) == 0:
        return []
    return [runs.loc[part] for part in _blocks(runs, _labels(runs), rows, cols)]


def _blocks(runs: pd.DataFrame, labels: Sequence[_Label], rows: str, cols: str) -> list[pd.Index]:
    """Return the index of every block of runs."""
    alone = (runs["benchmark"] + " " + runs["index_hash"]).where(runs["own_data"], "")
    keyed = runs.assign(_apart=~runs["comparable"], _alone=alone, _method=[label.text for label in labels])
    keys = ["_apart", "_alone", "own_data", "mini", "stand_in"]
    keys += [{"method": "_method"}.get(name, name) for name in DIMENSIONS[:4] if name not in (rows, cols)]
    return [block.index for _, block in keyed.groupby(keys, sort=True)]


def free(
    runs: pd.DataFrame,
    *,
    rows: str = "method",
    cols: str = "benchmark",
    score: str = "final_accuracy",
    name: str = "table",
) -> Sheet:
    """Return a sheet of runs that may share one (`blocks` splits others).

    Args:
        runs: rows of the runs table.
        rows, cols: two of `DIMENSIONS`. Orders and seeds that are neither are averaged over.
        score: one of `results.SCORES`.
        name: of the sheet, for anchors.

    Raises:
        UnknownNameError, ConfigError: no such dimension or score.
        ResultsError: no runs, or runs that may not share a sheet.
    """
    _check_dimensions(rows, cols)
    checked_score(score)
    if len(runs) == 0:
        raise ResultsError("there are no runs to make a table of: run a benchmark first, or point --results elsewhere.")
    labels = _labels(runs)
    if len(parts := _blocks(runs, labels, rows, cols)) > 1:
        kinds = "; ".join(dict.fromkeys(_block_words(runs.loc[part[0]], rows, cols) for part in parts))
        raise ResultsError(
            f"these runs may not share a table: {kinds}. Choose some of them, or make a table of each block."
        )
    texts = pd.Series([label.text for label in labels], index=runs.index)
    by_text = {label.text: label for label in labels}
    earlier = {h: label.earlier for h, label in zip(runs["config_hash"], labels, strict=True) if label.earlier}
    values = {
        dim: texts if dim == "method" else runs[dim].map(str if dim not in ("order", "seed") else int)
        for dim in (rows, cols)
    }
    row_values, col_values = (_sorted(dim, values[dim].unique()) for dim in (rows, cols))
    entries = []
    for row in row_values:
        for column in col_values:
            fits = runs[(values[rows] == row) & (values[cols] == column)]
            gathered = gather(fits, score, earlier=earlier)
            shared = tuple(v for dim, v in ((rows, row), (cols, column)) if dim in ("order", "seed"))
            cell = dataclasses.replace(gathered.cell, row=_words(rows, row), column=_words(cols, column))
            cell = dataclasses.replace(cell, wanted=_wanted(cell, gathered, rows, cols, runs, by_text))
            entries.append(Entry(cell, gathered, shared))
    cells = ranked(entries, score)
    first = runs.iloc[0]
    where = [
        f"{first[d]}" if d == "benchmark" else _words(d, first[d]) for d in DIMENSIONS[1:4] if d not in (rows, cols)
    ]
    if "method" not in (rows, cols):
        where.insert(0, texts.iloc[0])
    return Sheet(
        name=name,
        title=f"{SCORE_TITLES[score].partition(',')[0].partition(' (')[0]}: {rows} by {cols}",
        setting=setting_sentence(score, where or ["all runs"], cells),
        warning=not_comparable(first),
        score=score,
        row_heading=rows,
        rows=tuple(_words(rows, row) for row in row_values),
        columns=tuple(_words(cols, column) for column in col_values),
        cells=cells,
    )


def _check_dimensions(rows: str, cols: str) -> None:
    for name in (rows, cols):
        if name not in DIMENSIONS:
            raise unknown_name("row or column of a table", name, DIMENSIONS)
    if rows == cols:
        raise ConfigError(f"--rows and --cols are both {rows}: choose two of {', '.join(DIMENSIONS)}.")


def _words(dim: str, value: Any) -> str:
    """Return a value as a heading that is understood alone: "order 3", "paper split"."""
    if dim in ("order", "seed"):
        return f"{dim} {value}"
    return f"{value} split" if dim == "protocol" else str(value)


def _sorted(dim: str, values: Iterable[Any]) -> list[Any]:
    """Sort benchmarks and networks as their catalogues do, numbers by size, the rest by name."""
    known = {"benchmark": (*benchmarks.names(), *benchmarks.mini_names()), "backbone": backbones.names()}.get(dim, ())
    place = {name: number for number, name in enumerate(known)}
    return sorted(values, key=lambda value: (place.get(value, len(place)), value))


def _block_words(run: pd.Series, rows: str, cols: str) -> str:
    label = not_comparable(run)
    parts = [str(run[dim]) for dim in DIMENSIONS[:4] if dim not in (rows, cols) or (dim == "benchmark" and label)]
    return ", ".join([*parts, *([label] if label else [])]) or "comparable runs"


def _wanted(
    cell: Cell,
    gathered: Gathered,
    rows: str,
    cols: str,
    runs: pd.DataFrame,
    labels: Mapping[str, _Label],
) -> Wanted | None:
    """Return the runs that would fill an empty cell, where its labels say how to make them."""
    if cell.mean is not None or gathered.tried:
        return None
    first = runs.iloc[0]
    told = {rows: cell.row, cols: cell.column}
    label = labels[told["method"]] if "method" in told else next(iter(labels.values()))
    if not label.typed:
        return None
    streams = _streams(runs)
    for place, dim in enumerate(("order", "seed")):
        if dim in told:
            streams = frozenset(s for s in streams if _words(dim, s[place]) == told[dim])
    benchmark, backbone = told.get("benchmark", first["benchmark"]), told.get("backbone", first["backbone"])
    protocol = re.sub(" split$", "", told.get("protocol", first["protocol"]))
    return Wanted(
        label.typed,
        label.settings,
        f"{benchmark}.toml" if first["own_data"] else benchmark,
        "" if first["own_data"] or protocol == PAPER_PROTOCOL else protocol,
        typed_backbone(runs, backbone),
        streams,
    )


def typed_backbone(runs: pd.DataFrame, backbone: str) -> str:
    """Return what `--backbone` takes for a network of that name: the name, or the path that its runs were made with."""
    if backbone in backbones.names():
        return backbone
    for notes in runs[runs["backbone"] == backbone]["notes"]:
        if source := (json.loads(notes).get("backbone") or {}).get("source"):
            return str(source)
    return backbone
