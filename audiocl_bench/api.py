"""audiocl from Python: make runs, read them with pandas, tables and figures. `import audiocl_bench as audiocl`."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from audiocl_bench import places, registry, request
from audiocl_bench.backbones import Row
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.catalogue import Catalogue
from audiocl_bench.errors import AudioclError, ConfigError, ResultsError, unknown_name
from audiocl_bench.executors import Name as Executor
from audiocl_bench.method import Method
from audiocl_bench.results import SCORES, SESSIONS_SCHEMA, ResultsDir, Where, read_each, result_dirs, results_at
from audiocl_bench.runner import Existing
from audiocl_bench.sweep import Sweep, make

if TYPE_CHECKING:
    from audiocl_bench.report.figures import Drawing
    from audiocl_bench.report.sheets import Sheet

__all__ = ["Results", "load_results", "methods", "plot", "run", "table"]

_IDENTITY = ("run_id", "method", "variant", "benchmark", "protocol", "backbone", "order", "seed")

methods: Catalogue[type[Method]] = Catalogue("methods", registry.names, registry.load)
"""Method classes by name; `my.py:MyMethod` works as well and is not listed."""


def run(
    method: str | type[Method] | Iterable[str | type[Method]],
    bench: str | Path | Benchmark | Iterable[str | Path | Benchmark],
    *,
    backbone: str | Path | Row = "eat-base",
    protocol: str | None = None,
    orders: str | int | Iterable[int] = 0,
    seeds: str | int | Iterable[int] = 0,
    data: str | Path | None = None,
    get_data: bool = False,
    results: Where | None = None,
    settings: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    existing: Existing = "reuse",
    fresh: bool = False,
    drift: bool = False,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    jobs: int | None = None,
    address: str | None = None,
    slurm: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Make the runs of every method, benchmark, order and seed, as `audiocl run` does; runs with a result are reused.

    A method class written in a notebook or at a prompt is identified by its source and the source of what it uses
    there, so that an edited class makes a new run (see `audiocl_bench.method_source`).

    Args:
        method: a name, `METHOD@PRESET`, `my.py:MyMethod`, a class derived from `Method`, or several of them.
        bench: a name, the path of a `.toml` file, a benchmark of `audiocl.benchmarks`, several of them, or "all" (the
            six).
        backbone: a name, a path to weights, or a row of `audiocl.backbones`.
        protocol: "paper" or "grouped"; None for the benchmark's first one.
        orders: class orders: 0, [0, 2], range(5) or "0-4".
        seeds: run seeds, likewise.
        data: folder of the corpora, None for the default place, or "mini" for the synthetic miniatures.
        get_data: download missing corpora first.
        results: where results go: a folder, or a URL such as "s3://bucket/folder"; None for `results/` in the cache
            directory.
        settings: changed settings: {"rank": 4, "pace.msa": False, "backbone.pool": "mean"}.
        config: TOML file of settings; `settings` win over it.
        existing: what to do with a run that has a result: "reuse", "replace" or "fail".
        fresh: start every run anew: ignore checkpoints, replace results.
        drift: also measure accuracy with all statistics recomputed at the end.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of a run; None for all, shared by `jobs`.
        workers: processes that decode audio; None for one per core.
        executor: "local" (processes of this machine), "ray" or "slurm"; None makes one run after the other here, or
            uses "local" for more than one job. A method class must then be written in a file, not in a notebook.
        jobs: runs at once; None for one per GPU (or 1), and for what a cluster allows.
        address: of a Ray cluster; None starts Ray on this machine.
        slurm: parameters of Slurm jobs: {"partition": "gpu", "timeout_min": 120}.
        progress: show progress: bars on a terminal, a line per finished run in a notebook.

    Returns:
        the rows of the runs table (see `audiocl_bench.results`), one per run made or reused, in the order in which the
        runs ended; accuracies in percent.

    Raises:
        AudioclError: bad input, which is found before the first run starts; or runs that failed, all of them named.
            The other runs are made and kept, and a bug in a method is the error's cause. Messages name the options of
            `audiocl run`; the arguments here have the same names.
    """
    if registry.importing() or getattr(multiprocessing.current_process(), "_inheriting", False):
        # Another process needs a class of the user's script, and its parent would wait for ever if it made runs too.
        raise AudioclError("runs cannot be made on import: put the call under `if __name__ == '__main__':`.")
    if existing not in ("reuse", "replace", "fail"):
        raise ConfigError(f"existing is {existing!r}, but it must be 'reuse', 'replace' or 'fail'.")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}, but at least 1 is needed.")
    from audiocl_bench.cli.sweep import Terminal

    asked = Sweep(
        methods=_listed(method, "method", type),
        benchmarks=tuple(_benchmark(each) for each in _listed(bench, "bench", (os.PathLike, Benchmark))),
        backbone=backbone.name if isinstance(backbone, Row) else str(backbone),
        protocol=protocol,
        orders=request.numbers(orders, "orders"),
        seeds=request.numbers(seeds, "seeds"),
        data=None if data is None else Path(data).expanduser(),
        get_data=get_data,
        results=None if results is None else _at(results),
        settings={} if settings is None else settings,
        config=None if config is None else Path(config).expanduser(),
        existing="replace" if fresh else existing,
        fresh=fresh,
        drift=drift,
        device=str(device),
        threads=threads,
        workers=workers,
        executor=executor,
        jobs=jobs,
        address=address,
        slurm=tuple(f"{key}={value}" for key, value in (slurm or {}).items()),
        quiet=not progress,
    )
    outcome = make(asked, Terminal(quiet=asked.quiet))
    outcome.raise_failures()
    return _read([outcome.results]).of(outcome.done).runs


@dataclass(frozen=True, eq=False)
class Results:
    """Stored runs as pandas tables.

    Attributes:
        runs: one row per run: scores in percent, costs, audits, provenance (`audiocl_bench.results.RUNS_SCHEMA`).
    """

    runs: pd.DataFrame = field(repr=False)
    _places: Mapping[str, ResultsDir] = field(repr=False)  # by run id

    def __len__(self) -> int:
        return len(self.runs)

    def __repr__(self) -> str:
        return f"<{len(self)} {'run' if len(self) == 1 else 'runs'}: .runs, .sessions, .predictions(RUN)>"

    @cached_property
    def sessions(self) -> pd.DataFrame:
        """One row per run and session: which run it is (method, benchmark, order ...), accuracies in percent, costs."""
        parts = list(read_each("sessions", self._places).values())
        rows = pd.concat(parts) if parts else SESSIONS_SCHEMA.empty_table().to_pandas()
        return self.runs[list(_IDENTITY)].merge(rows, on="run_id", how="inner", validate="one_to_many")

    def of(self, run_ids: Iterable[str]) -> Results:
        """Return these runs alone, in this order. Raises UnknownNameError for one that is not here."""
        wanted = list(run_ids)
        for run_id in wanted:
            if run_id not in self._places:
                raise unknown_name("run", run_id, self._places)
        runs = self.runs.set_index("run_id", drop=False).loc[wanted].reset_index(drop=True)
        return Results(runs, {run_id: self._places[run_id] for run_id in wanted})

    def predictions(self, run: str) -> pd.DataFrame:
        """Read a run's predictions: one row per session after which was tested and test clip.

        Args:
            run: a run id, or a part of one that no other run shares.

        Raises:
            UnknownNameError: no run matches.
            ResultsError: several runs match, or the file is damaged.
        """
        matches = [run] if run in self._places else [run_id for run_id in self._places if run in run_id]
        if not matches:
            raise unknown_name("run", run, self._places)
        if len(matches) > 1:
            raise ResultsError(f"'{run}' matches {len(matches)} runs: {', '.join(matches)}; give more of the name.")
        return self._places[matches[0]].predictions(matches[0])


def load_results(path: Where | Iterable[Where] | None = None) -> Results:
    """Read stored runs.

    Args:
        path: a directory of results, a folder of such directories, or several of either, by path or by a URL such as
            "s3://bucket/folder"; None for `results/` in the cache directory, which may be empty.

    Raises:
        ResultsError: there are no runs, a file is damaged or newer than this audiocl, or two directories tell
            different results of one run. A run that two directories tell alike is read once.
    """
    if path is None:
        return _read([results_at(None)])
    stored: list[ResultsDir] = []
    for each in [path] if isinstance(path, (str, os.PathLike, ResultsDir)) else path:
        root = _at(each)
        if not (found := result_dirs(root)):
            root.run_ids()  # says it where a file is in the way
            raise ResultsError(f"there are no runs in {root.name}: run a benchmark first, or name another directory.")
        stored.extend(found)
    return _read(stored)


def table(number: int | str, results: Where | Iterable[Where] | None = None, **options: Any) -> Sheet:
    """Return a table of the paper (1, 2, 3, 4 or 12) with our numbers beside the published ones.

    It shows itself in a notebook; `frame()` is a pandas table, one row per cell.

    Args:
        number: the table.
        results: where our runs are, as for `load_results`.
        options: of `audiocl_bench.report.paper.table`: backbone, protocol, mini, benchmarks, orders, seeds, score.
    """
    from audiocl_bench.report import paper

    if results is not None and not isinstance(results, (str, os.PathLike, ResultsDir)):
        results = list(results)
    return paper.table(number, results, **options)


_DRAWN_FROM = {
    **dict.fromkeys(("curves", "cka", "freeze", "adapted"), "sessions"),
    **dict.fromkeys(("matrix", "bars"), "predictions"),
    **dict.fromkeys(("cost", "drift"), "runs"),
}


def plot(
    kind: str,
    results: Results | Where | Iterable[Where] | None = None,
    *,
    runs: pd.DataFrame | None = None,
    **options: Any,
) -> Drawing:
    """Draw a figure of stored runs of one benchmark, protocol and backbone.

    Args:
        kind: "curves" (accuracy over sessions), "matrix" (accuracy on every session after every session), "bars"
            (accuracy on first, new and all classes), "cost" (accuracy against costs), "drift", "cka", "freeze" or
            "adapted".
        results: stored runs, as for `load_results`.
        runs: those to draw: rows of their runs table. None for all.
        options: of the function of this name in `audiocl_bench.report.figures`.

    Returns:
        the drawing: `figure` (matplotlib), `data` (what is drawn), `save(PATH)`.

    Raises:
        UnknownNameError: no such kind of figure, or a run that is not among the results.
        ResultsError: the runs do not belong into one figure.
    """
    from audiocl_bench.report import figures

    if kind not in _DRAWN_FROM:
        raise unknown_name("figure", kind, _DRAWN_FROM)
    stored = results if isinstance(results, Results) else load_results(results)
    rows = stored.runs if runs is None else runs
    drawn = stored.of(rows["run_id"])
    tables: tuple[Any, ...] = ()
    if _DRAWN_FROM[kind] == "sessions":
        tables = (drawn.sessions[SESSIONS_SCHEMA.names],)
    elif _DRAWN_FROM[kind] == "predictions":
        tables = (read_each("predictions", drawn._places),)
    return getattr(figures, kind)(drawn.runs, *tables, **options)


def _read(stored: list[ResultsDir]) -> Results:
    where: dict[str, ResultsDir] = {}
    tables: list[pd.DataFrame] = []
    for place in stored:
        rows = place.runs()
        known = rows["run_id"].isin(list(where))
        for run_id in rows["run_id"][known]:
            first, second = where[run_id].run(run_id), place.run(run_id)
            if any(first[name] != second[name] for name in SCORES):
                raise ResultsError(
                    f"{where[run_id].name} and {place.name} tell different results of run {run_id}: name one of them."
                )
        if not tables or not known.all():
            tables.append(rows[~known])
        where.update(dict.fromkeys(rows["run_id"][~known], place))
    return Results(pd.concat(tables, ignore_index=True), where)


def _listed(given: Any, option: str, kinds: Any) -> tuple[Any, ...]:
    """Return what was given one by one, in a list or as text with commas: texts and things of `kinds`, each once."""
    one = isinstance(given, (str, type, os.PathLike, Benchmark)) or not isinstance(given, Iterable)
    found: list[Any] = []
    for each in [given] if one else given:
        if not isinstance(each, (str, kinds)):
            raise ConfigError(f"{option} is {each!r}, but a name is needed; see the help of audiocl.run.")
        found.extend(request.names([each], option) if isinstance(each, str) else [each])
    if not found:
        raise ConfigError(f"{option} names nothing: give a name, or several.")
    return tuple(dict.fromkeys(found))


def _benchmark(given: str | Path | Benchmark) -> str:
    if isinstance(given, Benchmark):
        return given.name if given.source is None else str(given.source)
    return str(given)


def _at(given: Where) -> ResultsDir:
    return given if isinstance(given, ResultsDir) else ResultsDir(places.expanded(given))
