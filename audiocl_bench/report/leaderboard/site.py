"""Write the leaderboard as a folder of plain HTML pages that need no network and no server.

    index.html                      all boards
    about.html                      how to read them
    boards/BOARD.html               one board
    compare/BOARD/A-vs-B.html       two entries of a board
    runs/RUN.html                   one run
    data/{runs,sessions,predictions}/RUN.parquet    its files, as stored
    leaderboard.json                the boards as data
    static/                         style sheet, script, icon

Everything is in the HTML; the script only adds sorting, filtering and picking. Equal results give equal bytes. Whatever
comes from results is escaped, and file names are made of letters, digits and `. _ + = @ -` alone.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from audiocl_bench import benchmarks
from audiocl_bench.errors import ResultsError
from audiocl_bench.files import explain_os_error
from audiocl_bench.metrics import Summary
from audiocl_bench.report import tables
from audiocl_bench.report.leaderboard import boards, duels, svg
from audiocl_bench.report.leaderboard.boards import MOST_COMPARED, Board, BoardKey
from audiocl_bench.report.leaderboard.duels import Duel, Line
from audiocl_bench.report.leaderboard.entries import Entry
from audiocl_bench.report.leaderboard.found import Found, Run, find_runs, mapping
from audiocl_bench.report.leaderboard.naming import setting_text
from audiocl_bench.report.leaderboard.repeat import command
from audiocl_bench.report.leaderboard.statistics import ALPHA, Pair
from audiocl_bench.results import SCHEMAS, ResultsDir

MARK = "leaderboard.json"
"""Every site holds this file; a folder that is not empty and lacks it is never replaced."""

_HERE = Path(__file__).resolve().parent
_NONE = "–"
_MOST_CLASSES = 200  # lines of a comparison by class; of more classes the extremes are shown
_EXTREMES = 50


@dataclass(frozen=True)
class Score:
    """How a score is named and explained on the pages.

    Attributes:
        title: what stands in tables.
        meaning: one sentence.
    """

    title: str
    meaning: str


SCORE_TEXTS: Mapping[str, Score] = {
    "final_accuracy": Score(
        "Final accuracy",
        "After the last session: the accuracy on each session's test clips, averaged over sessions. "
        "Entries are ranked by it.",
    ),
    "micro_accuracy": Score("Final accuracy, by clip", "After the last session; every test clip weighs the same."),
    "balanced_accuracy": Score("Final accuracy, by class", "After the last session; every class weighs the same."),
    "average_incremental_accuracy": Score(
        "Average incremental accuracy", "The accuracy on all sessions so far, averaged over the moments after each."
    ),
    "average_incremental_accuracy_by_sample": Score(
        "Average incremental accuracy, by clip", "The same, with every test clip weighing the same."
    ),
    "forgetting": Score(
        "Forgetting",
        "How far each session but the last fell from its best accuracy before the last session. Lower is better.",
    ),
    "backward_transfer": Score(
        "Backward transfer", "How each session but the last changed since it was learned. Higher is better."
    ),
    "plasticity": Score("Plasticity", "The accuracy on a session right after learning it, averaged over sessions."),
}


@dataclass(frozen=True)
class Built:
    """What was written: the folder, and how many boards, entries, runs, runs that are not ranked, and pages."""

    out: Path
    boards: int
    entries: int
    runs: int
    set_aside: int
    pages: int


def build(results: Sequence[ResultsDir], out: Path) -> Built:
    """Write the leaderboard of these results to the folder `out`, replacing an older leaderboard there.

    The folder changes in one step at the end: whoever reads it sees the old site or the new one.

    Args:
        results: directories of results; a run that stands in two of them with equal predictions counts once.
        out: a folder that does not exist, is empty, or holds a leaderboard.

    Raises:
        ResultsError: there are no runs, a file is damaged or cannot be scored, or `out` cannot be (over)written.
    """
    with ExitStack() as copies:
        return _build([copies.enter_context(directory.on_disk()) for directory in results], out)


def _build(results: Sequence[ResultsDir], out: Path) -> Built:
    found = find_runs(results)
    if not found:
        places = ", ".join(directory.name for directory in results) or "no directory"
        raise ResultsError(f"there are no runs in {places}: run a benchmark first, or point --results elsewhere.")
    out = Path(os.path.abspath(out))  # noqa: PTH100 - a link at `out` is replaced, not what it points to
    _check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            fresh = Path(temporary) / "new"
            built = _Site(fresh).write(found)
            fresh.chmod(0o755)
            _put_in_place(fresh, out, aside=Path(temporary) / "old")
    except OSError as cause:
        raise ResultsError(explain_os_error(cause, out)) from cause
    return Built(out, *built)


def _put_in_place(fresh: Path, out: Path, *, aside: Path) -> None:
    """Move the finished site to `out`; should that fail, give the old one its place back."""
    had = out.exists() or out.is_symlink()
    if had:
        out.rename(aside)
    try:
        fresh.rename(out)
    except OSError:
        if had:
            aside.rename(out)
        raise


def _check_replaceable(out: Path) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise ResultsError(f"{out} is a file: give --out a folder.")
    try:
        if any(out.iterdir()) and not (out / MARK).is_file():
            raise ResultsError(f"{out} is not empty and holds no leaderboard: give --out another folder.")
    except OSError as cause:
        raise ResultsError(explain_os_error(cause, out)) from cause


# ---------------------------------------------------------------------------------------------------------------------
# Pages


class _Site:
    """A site in the making, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = 0
        self.environment = _environment()
        self.environment.globals["files_of"] = _copied

    def write(self, found: Sequence[Found]) -> tuple[int, int, int, int, int]:
        """Write all files, board by board, so that no more than one board is held in memory."""
        self.folder.mkdir()
        cards, data, entries, aside = [], [], 0, 0
        for key, runs in boards.boards(found).items():
            board = boards.read_board(key, runs)
            self._board(board)
            cards.append(_card(board))
            data.append(_as_data(board))
            entries += len(board.shown)
            aside += len(board.set_aside)
        sections = _sections(cards)
        self._page("index.html", "index.html", root="", sections=sections, runs=len(found), boards=len(cards))
        self._page("about.html", "about.html", root="", scores=SCORE_TEXTS, alpha=ALPHA)
        self._text(MARK, _pretty_json({"audiocl_leaderboard": 1, "boards": data}))
        static = self.folder / "static"
        static.mkdir()
        for source in sorted((_HERE / "static").iterdir()):
            if source.suffix in (".css", ".js", ".svg"):
                shutil.copyfile(source, static / source.name)
        return len(cards), entries, len(found), aside, self.pages

    def _board(self, board: Board) -> None:
        ends = [_ends(entry.final) for entry in board.shown]
        axis = svg.nice_range([low for low, _ in ends], [high for _, high in ends])
        curves = [float(value) for entry in board.shown for value in entry.curve]
        compared = {(pair.first, pair.second): pair for pair in board.compared}
        self._page(
            "board.html",
            f"boards/{board.slug}.html",
            root="../",
            board=board,
            axis=axis,
            curve_axis=svg.nice_range(curves, curves),
            compared=compared,
            described=describe(board.key.benchmark),
            most_compared=MOST_COMPARED,
        )
        for pair in board.compared:
            duel = duels.duel(board, pair)
            self._page(
                "compare.html",
                f"compare/{board.slug}/{pair_page(board, pair)}",
                root="../../",
                board=board,
                duel=duel,
                plot=_duel_plot(duel),
                classes=_shown_classes(duel.classes),
                limit=max((abs(line.difference) for line in duel.classes), default=0.0),
            )
        entry_of = {run.page: entry for entry in board.shown for run in entry.runs}
        for run in board.runs:
            self._copy(run.found)
            self._page(
                "run.html",
                f"runs/{run.page}.html",
                root="../",
                board=board,
                run=run,
                entry=entry_of.get(run.page),
                shown=tables.shown_sessions(len(run.matrix)),
                plot=_run_plot(run),
                heat=_heat(run),
                scores=SCORE_TEXTS,
                command=_in_lines(command(run)),
                block=svg.in_blocks(run.matrix)[1],
                blocks=tables.blocks_told(run.row),
                libraries=_versions(run),
                notes=[(name.replace("_", " "), _plain(value)) for name, value in run.notes.items()],
            )

    def _page(self, template: str, path: str, **content: Any) -> None:
        self._text(path, self.environment.get_template(template).render(**content))
        self.pages += 1

    def _text(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode("utf-8", "replace"))  # a lone surrogate in a name has no UTF-8

    def _copy(self, found: Found) -> None:
        for table, path in _copied(found).items():
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.results.file(table, found.row["run_id"]), target)


def _copied(found: Found) -> dict[str, str]:
    """Return {table: path in the site} of a run's files; empty where another run has that name already."""
    run_id = found.row["run_id"]
    return {} if found.conflict else {table: f"data/{table}/{run_id}.parquet" for table in SCHEMAS}


def pair_page(board: Board, pair: Pair) -> str:
    """Return the file name of the page that compares two entries of a board."""
    return f"{board.shown[pair.first].slug}-vs-{board.shown[pair.second].slug}.html"


def describe(benchmark: str) -> str:
    """Return the title of a built-in benchmark, or "" for any other name."""
    known = {*benchmarks.names(), *benchmarks.mini_names()}
    return benchmarks.get(benchmark).title if benchmark in known else ""


# ---------------------------------------------------------------------------------------------------------------------
# What the front page and leaderboard.json say of a board


@dataclass(frozen=True, eq=False)
class _Card:
    board_slug: str
    key: BoardKey
    described: str
    num_sessions: int
    num_classes: int
    best: tuple[Entry, ...]
    entries: int
    runs: int
    set_aside: int


def _card(board: Board) -> _Card:
    return _Card(
        board.slug,
        board.key,
        describe(board.key.benchmark),
        board.num_sessions,
        board.num_classes,
        board.entries[:3],
        len(board.entries),
        len(board.runs),
        len(board.set_aside),
    )


def _sections(cards: Iterable[_Card]) -> list[tuple[str, list[_Card]]]:
    """Sort boards by why they are not comparable; those that are come first."""
    sections: dict[str, list[_Card]] = {}
    for card in cards:
        sections.setdefault(card.key.warning, []).append(card)
    return list(sections.items())


def _as_data(board: Board) -> dict[str, Any]:
    def entry(one: Entry) -> dict[str, Any]:
        return {
            "name": one.name,
            "method": one.label,
            "config_hash": one.runs[0].row["config_hash"],
            "rank": one.rank,
            "groups": one.groups.split(),
            "reference": one.reference,
            "scores": {name: _summary_data(summary) for name, summary in one.scores.items()},
            "runs": [run.page for run in one.runs],
        }

    return {
        **vars(board.key),
        "page": f"boards/{board.slug}.html",
        "entries": [entry(one) for one in board.shown],
        "set_aside": [{"run": run.page, "reason": run.reason} for run in board.set_aside],
    }


def _summary_data(summary: Summary) -> dict[str, Any]:
    return {"n": summary.n, "mean": _or_none(summary.mean), "half_width": _or_none(summary.half_width)}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _pretty_json(value: Any) -> str:
    import json

    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# Drawings


def _in_lines(words: Sequence[str], width: int = 92) -> str:
    """Return a shell command on lines that end in a backslash; an option stays beside its value."""
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < width:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}")
    return " \\\n".join(lines)


def _versions(run: Run) -> str:
    versions = mapping(run.row, "library_versions")
    return ", ".join(f"{name} {_plain(version)}" for name, version in versions.items()) or _NONE


def _ends(summary: Summary) -> tuple[float, float]:
    reach = 0.0 if math.isnan(summary.half_width) else summary.half_width
    return summary.mean - reach, summary.mean + reach


def _spark(entry: Entry, axis: tuple[float, float]) -> Markup:
    return svg.sparkline(entry.curve.tolist(), told=_curve_in_words(entry.curve), low=axis[0], high=axis[1])


def _curve_in_words(curve: np.ndarray) -> str:
    tested = np.flatnonzero(~np.isnan(curve))
    first, last = int(tested[0]), int(tested[-1])
    if first == last:
        return f"{curve[last]:.1f} % after session {last}, the only test"
    return f"from {curve[first]:.1f} % after session {first} to {curve[last]:.1f} % after session {last}"


def _interval(entry: Entry, axis: tuple[float, float]) -> Markup:
    told = f"{_mean_and_interval(entry.final, 2)} on a scale from {axis[0]:g} to {axis[1]:g}"
    return svg.interval(entry.final.mean, entry.final.half_width, *axis, told=told)


def _run_plot(run: Run) -> Markup:
    series = [svg.Series("all", run.curve.tolist())]
    if not run.whole_stream:
        series += [svg.Series("new", run.new.tolist()), svg.Series("old", run.old.tolist())]
    told = f"Accuracy on all sessions so far: {_curve_in_words(run.curve)}. The table below holds every number."
    values = [value for line in series for value in line.values]
    return svg.curves(series, told=told, low=svg.nice_range(values, values)[0])


def _heat(run: Run) -> Markup:
    told = f"Accuracy matrix of {len(run.matrix)} sessions as a heat map; the table below holds its numbers."
    return svg.heat_map(run.matrix, told=told)


def _duel_plot(duel: Duel) -> Markup | None:
    """Draw the difference after each session with its interval; None where the two were not tested after the same."""
    lines = duel.curve
    if len(lines) < 2:
        return None
    count = int(lines[-1].name) + 1
    values, halves = [math.nan] * count, [math.nan] * count
    for line in lines:
        values[int(line.name)], halves[int(line.name)] = line.difference, line.half_width
    ends = [line.difference + sign * _or_zero(line.half_width) for line in lines for sign in (-1, 1)]
    reach = max(1.0, *(abs(value) for value in ends))
    step = 10.0 ** math.floor(math.log10(reach))
    high = min(100.0, math.ceil(reach / step) * step)
    told = (
        f"{duel.first.name} minus {duel.second.name}: {_signed(lines[0].difference)} points after session "
        f"{lines[0].name}, {_signed(lines[-1].difference)} after session {lines[-1].name}. "
        "The table below holds every number."
    )
    series = [svg.Series("difference", values, halves)]
    return svg.curves(series, told=told, low=-high, high=high, zero=True)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _shown_classes(lines: Sequence[Line]) -> list[Line]:
    """Return all classes, or of very many those with the largest differences either way."""
    return list(lines) if len(lines) <= _MOST_CLASSES else [*lines[:_EXTREMES], *lines[-_EXTREMES:]]


# ---------------------------------------------------------------------------------------------------------------------
# Words and numbers


def _percent(value: float | None, digits: int = 1) -> str:
    text = tables.percent(value, digits=digits)
    return _NONE if text == tables.DASH else text.replace("-", "−")


def _signed(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return _NONE
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def _mean_and_interval(summary: Summary, digits: int = 2) -> str:
    if math.isnan(summary.mean):
        return _NONE
    half = summary.half_width
    return _percent(summary.mean, digits) + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def _half(value: float, digits: int = 1) -> str:
    return _NONE if math.isnan(value) else f"± {value:.{digits}f}"


def _dashed(text: str) -> str:
    return _NONE if text == tables.DASH else text


def _p_value(value: float) -> str:
    if math.isnan(value):
        return _NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _sortable(value: float | None) -> str:
    """Return a number for the script to sort by; "" sorts last."""
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _plain(value: Any) -> str:
    """Return a JSON value in plain words: `a = 1, b = yes`."""
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _counted(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=_percent,
        signed=_signed,
        mean=_mean_and_interval,
        half=_half,
        p_value=_p_value,
        sortable=_sortable,
        plain=_plain,
        counted=_counted,
        setting=setting_text,
        amount=lambda value: _dashed(tables.count(value)),
        size=lambda value: _dashed(tables.megabytes(None if value is None else value / 1e6)),
        memory=lambda value: _dashed(tables.megabytes(value)),
        duration=lambda value: _dashed(tables.duration(_tame(value))),
        short_duration=lambda value: _dashed(tables.short_duration(_tame(value))),
    )
    environment.globals.update(
        spark=_spark,
        interval=_interval,
        difference_bar=svg.difference_bar,
        pair_page=pair_page,
        level=svg.level,
        score_texts=SCORE_TEXTS,
        isnan=math.isnan,
    )
    return environment


def _tame(value: float | None) -> float | None:
    """Results may hold any number; an infinite time is shown as none."""
    return None if value is None or not math.isfinite(value) else value
