"""Results on disk: one versioned Parquet schema, one writer, one reader, and where a number came from.

A results directory holds three tables as folders with one file per run, so that plain pandas reads them all:

    pandas.read_parquet(DIR / "runs")           one row per run: scores, costs, provenance
    pandas.read_parquet(DIR / "sessions")       one row per (run, session)
    pandas.read_parquet(DIR / "predictions")    one row per (run, after_session, test clip)

Units: every accuracy-like column of `runs` and `sessions` is in percent; `*_seconds` in seconds; `peak_memory_mb` in
10**6 bytes; `kept_bytes` in bytes. JSON columns hold canonical JSON text. A score that a run does not have is null.

Work: `*_passes` are clips whose way through the encoder the method asked for. They count the same whether a pass was
run, or its features lay in the feature bank, or its first blocks in memory, so that runs with and without kept features
can be compared. The other columns are in clips times encoder blocks. `block_runs` were really run, for the feature bank
on behalf of this run too; `blocks_needed` had to be: every clip once through blocks that do not train, every time
through those that do (see `ledger`); `blocks_reused` lay in the bank from earlier runs and are in neither. Over a whole
run, block_runs / blocks_needed says how much was run in vain (1 is best); a run that found all it needed has 0 of both.
Sessions differ more, because the bank works ahead in chunks of clips. Null in results of before these were counted.

Scores are computed from the predictions (`score`), never typed in: `ResultsDir.write` refuses a row that disagrees with
its predictions and `ResultsDir.recompute` finds one that was changed later. `runs/<run_id>.parquet` is moved into place
last, so a run exists if and only if its runs row does. A predictions file depends on the predictions alone (and on the
pyarrow version): equal predictions give equal bytes.

The directory may lie on another file system (`s3://bucket/folder`, see `places`); its files are the same to the byte.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from audiocl_bench import __version__, metrics
from audiocl_bench.errors import ResultsError, UnknownNameError, unknown_name
from audiocl_bench.files import canonical_json, home, sha256_json
from audiocl_bench.places import Folder, Place, Remote, place

SCHEMA_VERSION = 3
"""2 added `mini` and `variant` to the runs table; 3 `first_session_epochs`, `audio_key`, and to runs and sessions
`blocks_needed` and `blocks_reused`. In older results those of 3 are null."""

_VERSION_KEY = b"audiocl_schema_version"
_TABLE_KEY = b"audiocl_table"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,199}")
_FILE = re.compile(rf"(runs|sessions|predictions)/{_RUN_ID.pattern}\.parquet")
_LIBRARIES = (
    "torch",
    "peft",
    "transformers",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "soundfile",
)


# ---------------------------------------------------------------------------------------------------------------------
# Schema


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


_WORD = pa.dictionary(pa.int32(), pa.string())

RUNS_SCHEMA = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("method", pa.string()),
        _field("benchmark", pa.string()),
        _field("protocol", pa.string()),
        _field("backbone", pa.string()),
        _field("order", pa.int32()),
        _field("seed", pa.int64()),
        # Scores, percent, computed from the predictions.
        _field("final_accuracy", pa.float64()),
        _field("micro_accuracy", pa.float64()),
        _field("balanced_accuracy", pa.float64()),
        _field("average_incremental_accuracy", pa.float64(), nullable=True),
        _field("average_incremental_accuracy_by_sample", pa.float64(), nullable=True),
        _field("forgetting", pa.float64(), nullable=True),
        _field("backward_transfer", pa.float64(), nullable=True),
        _field("plasticity", pa.float64(), nullable=True),
        # Drift diagnostic, percent: final accuracy with the head's statistics recomputed at the end on all training
        # clips. It breaks the exemplar-free rule on purpose and is never ranked; null when not measured.
        _field("fresh_final_accuracy", pa.float64(), nullable=True),
        _field("own_data", pa.bool_()),
        _field("mini", pa.bool_()),
        _field("variant", pa.string()),  # the method's preset where it is not its default one, else ""
        _field("stand_in", pa.bool_()),
        _field("comparable", pa.bool_()),
        _field("audit_passed", pa.bool_()),
        _field("audit", pa.string()),
        _field("num_sessions", pa.int32()),
        _field("num_classes", pa.int32()),
        # Costs, over all sessions.
        _field("train_seconds", pa.float64()),
        _field("eval_seconds", pa.float64()),
        _field("train_passes", pa.int64()),
        _field("eval_passes", pa.int64()),
        _field("block_runs", pa.int64()),
        _field("blocks_needed", pa.int64(), nullable=True),
        _field("blocks_reused", pa.int64(), nullable=True),
        _field("peak_memory_mb", pa.float64(), nullable=True),
        _field("trainable_parameters", pa.int64()),
        _field("kept_bytes", pa.int64()),
        # Provenance.
        _field("schema_version", pa.int32()),
        _field("audiocl_version", pa.string()),
        _field("git_commit", pa.string(), nullable=True),
        _field("first_session_epochs", pa.int32(), nullable=True),  # E_0 of the benchmark
        _field("split_hash", pa.string()),
        _field("index_hash", pa.string()),
        _field("audio_key", pa.string(), nullable=True),  # of the prepared clips: their audio and front end
        _field("weights_hash", pa.string()),
        _field("front_end", pa.string()),
        _field("method_config", pa.string()),
        _field("config_hash", pa.string()),
        _field("device", pa.string()),
        _field("threads", pa.int32()),
        _field("python_version", pa.string()),
        _field("library_versions", pa.string()),
        _field("platform", pa.string()),
        _field("started_at", pa.string()),
        _field("finished_at", pa.string()),
        _field("notes", pa.string()),
    ]
)

SESSIONS_SCHEMA = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("session", pa.int32()),
        _field("classes", pa.list_(pa.string())),
        _field("train_clips", pa.int64()),
        # Percent, computed from the predictions; null where the model was not evaluated.
        _field("accuracy", pa.float64(), nullable=True),
        _field("new_accuracy", pa.float64(), nullable=True),
        _field("old_accuracy", pa.float64(), nullable=True),
        _field("train_seconds", pa.float64()),
        _field("eval_seconds", pa.float64()),
        _field("train_passes", pa.int64()),
        _field("eval_passes", pa.int64()),
        _field("block_runs", pa.int64()),
        _field("blocks_needed", pa.int64(), nullable=True),
        _field("blocks_reused", pa.int64(), nullable=True),
        _field("peak_memory_mb", pa.float64(), nullable=True),
        _field("trainable_parameters", pa.int64()),
        _field("kept_bytes", pa.int64()),
        _field("encoder_version", pa.int64()),
        _field("diagnostics", pa.string()),
    ]
)

PREDICTIONS_SCHEMA = pa.schema(
    [
        _field("run_id", _WORD),
        _field("after_session", pa.int32()),
        _field("clip_id", _WORD),
        _field("session", pa.int32()),
        _field("label", _WORD),
        _field("predicted", _WORD),
        _field("correct", pa.bool_()),
    ]
)

SCHEMAS: Mapping[str, pa.Schema] = {
    "runs": RUNS_SCHEMA,
    "sessions": SESSIONS_SCHEMA,
    "predictions": PREDICTIONS_SCHEMA,
}

#: Score columns of the runs table, all in percent and all computed from the predictions.
SCORES = (
    "final_accuracy",
    "micro_accuracy",
    "balanced_accuracy",
    "average_incremental_accuracy",
    "average_incremental_accuracy_by_sample",
    "forgetting",
    "backward_transfer",
    "plasticity",
)
_SESSION_SCORES = ("accuracy", "new_accuracy", "old_accuracy")
_SESSION_TOTALS = ("train_seconds", "eval_seconds", "train_passes", "eval_passes", "block_runs")
_OPTIONAL_TOTALS = ("blocks_needed", "blocks_reused")  # null where a session's is
_DERIVED = (
    *SCORES,
    *_SESSION_TOTALS,
    *_OPTIONAL_TOTALS,
    "comparable",
    "num_sessions",
    "num_classes",
    "peak_memory_mb",
    "trainable_parameters",
    "kept_bytes",
    "schema_version",
)
_JSON_COLUMNS = ("audit", "front_end", "method_config", "library_versions", "notes")
_OPTIONAL_META: Mapping[str, Any] = {
    "fresh_final_accuracy": None,
    "git_commit": None,
    "notes": {},
    "first_session_epochs": None,
    "audio_key": None,
}

#: What `build_run_row` wants to be told; every other column of the runs table is computed.
META_COLUMNS = tuple(name for name in RUNS_SCHEMA.names if name not in _DERIVED)


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def score(predictions: pd.DataFrame) -> dict[str, float]:
    """Return every score of a prediction table in percent, keyed as in `SCORES`; NaN where a score does not exist.

    Raises:
        ResultsError: the table is not a valid prediction table (see `metrics.accuracy_matrix`).
    """
    matrix = metrics.accuracy_matrix(predictions)
    fractions = {
        "final_accuracy": metrics.final_accuracy(matrix),
        "micro_accuracy": metrics.micro_accuracy(predictions),
        "balanced_accuracy": metrics.balanced_accuracy(predictions),
        "average_incremental_accuracy": metrics.average_incremental_accuracy(matrix),
        "average_incremental_accuracy_by_sample": metrics.average_incremental_accuracy_by_sample(predictions),
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": metrics.backward_transfer(matrix),
        "plasticity": metrics.plasticity(matrix),
    }
    return {name: 100.0 * value for name, value in fractions.items()}


def session_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row per session: session, accuracy, new_accuracy, old_accuracy, in percent.

    accuracy: mean over the sessions learned so far; new_accuracy: on the session just learned; old_accuracy: mean over
    the sessions before it (NaN after session 0). NaN where the model was not evaluated.
    """
    matrix = metrics.accuracy_matrix(predictions)
    old = [matrix[t, :t].mean() if t else math.nan for t in range(len(matrix))]
    return pd.DataFrame(
        {
            "session": np.arange(len(matrix)),
            "accuracy": 100.0 * metrics.session_averages(matrix),
            "new_accuracy": 100.0 * np.diagonal(matrix),
            "old_accuracy": 100.0 * np.array(old),
        }
    )


# ---------------------------------------------------------------------------------------------------------------------
# Building a result


@dataclass(frozen=True)
class RunResult:
    """Everything that is stored of one run.

    Attributes:
        run: the row of the runs table, from `build_run_row`.
        sessions: one row per session, columns of `SESSIONS_SCHEMA` (run_id may be left out).
        predictions: one row per (after_session, test clip), columns of `PREDICTIONS_SCHEMA` (run_id and correct may be
            left out); labels are class names.
    """

    run: dict[str, Any]
    sessions: pd.DataFrame
    predictions: pd.DataFrame


def build_run_row(meta: Mapping[str, Any], sessions: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, Any]:
    """Return the row of the runs table: `meta` plus everything that follows from sessions and predictions.

    Args:
        meta: the columns `META_COLUMNS`. JSON columns may be given as values or as JSON text. May be left out:
            fresh_final_accuracy, git_commit, notes, first_session_epochs, audio_key, and config_hash (default: hash of
            method and method_config).
        sessions: one row per session with its costs and classes.
        predictions: the prediction table.

    Raises:
        ResultsError: a column is missing, unknown or no valid JSON; or the predictions are invalid.
    """
    row = {**_OPTIONAL_META, **meta}
    if unknown := sorted(set(row) - set(META_COLUMNS)):
        raise ResultsError(f"the runs row is computed from the predictions and takes no {', '.join(unknown)}.")
    for name in _JSON_COLUMNS:
        if name in row:
            row[name] = _json_text(row[name], name)
    if "config_hash" not in row and {"method", "method_config"} <= set(row):
        row["config_hash"] = sha256_json({"method": row["method"], "config": json.loads(row["method_config"])})
    if missing := [name for name in META_COLUMNS if name not in row]:
        raise ResultsError(f"the runs row of {row.get('run_id', 'a run')} lacks {', '.join(missing)}.")
    _check_sessions(sessions)
    row["schema_version"] = SCHEMA_VERSION
    row.update(score(predictions))
    row.update(_derived(row, sessions, predictions))
    return {name: row[name] for name in RUNS_SCHEMA.names}


def build_result(meta: Mapping[str, Any], sessions: pd.DataFrame, predictions: pd.DataFrame) -> RunResult:
    """Return the complete result of one run; see `build_run_row`.

    Args:
        meta: as for `build_run_row`.
        sessions: one row per session: the columns of `SESSIONS_SCHEMA` except run_id and the three accuracies, which
            are computed here. `diagnostics` may hold values or JSON text. blocks_needed and blocks_reused may be left
            out where they were not counted.
        predictions: the columns after_session, clip_id, session, label, predicted.
    """
    _check_sessions(sessions, ("diagnostics",))
    scored = sessions.drop(columns=[name for name in _SESSION_SCORES if name in sessions.columns])
    scored = scored.merge(session_scores(predictions), on="session", how="left", validate="one_to_one")
    for name in _OPTIONAL_TOTALS:
        # Whole numbers or null: pandas would make floats of whole numbers beside a null.
        values = scored[name].tolist() if name in scored.columns else [None] * len(scored)
        scored[name] = pd.array([pd.NA if pd.isna(value) else int(value) for value in values], dtype="Int64")
    scored["diagnostics"] = [_json_text(value, "diagnostics") for value in scored["diagnostics"]]
    row = build_run_row(meta, scored, predictions)
    scored["run_id"] = row["run_id"]
    tested = predictions.assign(run_id=row["run_id"], correct=metrics.correct(predictions))
    return RunResult(row, scored[SESSIONS_SCHEMA.names], tested[PREDICTIONS_SCHEMA.names])


def make_run_id(
    *, method: str, benchmark: str, protocol: str, backbone: str, order: int, seed: int, config_hash: str
) -> str:
    """Return a readable run id that is a valid file name: equal settings give equal ids, so a rerun is recognised."""
    parts = [method, benchmark, protocol, backbone, f"o{order}", f"s{seed}"]
    readable = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", part).strip("._") or "x" for part in parts)
    return f"{readable[:180]}-{sha256_json([*parts, config_hash])[:8]}"


def _derived(row: Mapping[str, Any], sessions: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, Any]:
    """Columns of the runs row, other than scores, that follow from the rest."""
    ordered = sessions.sort_values("session")
    peak = pd.to_numeric(ordered["peak_memory_mb"]).max()
    return {
        **{name: np.asarray(ordered[name]).sum().item() for name in _SESSION_TOTALS},
        **{name: _total(ordered[name]) if name in ordered.columns else None for name in _OPTIONAL_TOTALS},
        "comparable": not (row["own_data"] or row["mini"] or row["stand_in"]),
        "num_sessions": int(predictions["after_session"].max()) + 1,
        "num_classes": len({name for classes in ordered["classes"] for name in classes}),
        "peak_memory_mb": float(peak),
        "trainable_parameters": int(ordered["trainable_parameters"].max()),
        "kept_bytes": int(ordered["kept_bytes"].iloc[-1]),
    }


def _total(values: pd.Series) -> int | None:
    return None if values.isna().any() else int(values.sum())


def _check_sessions(sessions: pd.DataFrame, more: Iterable[str] = ()) -> None:
    """Check what has to hold before totals are taken: the columns are there and there is one row per session."""
    used = ("session", "classes", *_SESSION_TOTALS, "peak_memory_mb", "trainable_parameters", "kept_bytes", *more)
    metrics.require_columns(sessions, used)
    if len(sessions) == 0 or sessions["session"].duplicated().any():
        raise ResultsError("the sessions table needs one row per session: it is empty or lists a session twice.")


def _json_text(value: Any, name: str) -> str:
    try:
        return canonical_json(json.loads(value) if isinstance(value, str) else value)
    except (TypeError, ValueError) as cause:
        raise ResultsError(f"column '{name}' cannot be stored as JSON: {cause}.") from cause


# ---------------------------------------------------------------------------------------------------------------------
# The directory


class ResultsDir:
    """A directory of results: reads and writes the three tables. Creating the object touches no file.

    Every read raises `ResultsError` with one sentence naming the file when it is damaged, not audiocl's, written by a
    newer schema, or out of reach.

    Attributes:
        place: where it lies.
    """

    def __init__(self, where: str | os.PathLike[str] | Place) -> None:
        """Take a path, a URL (see `places.place`) or a place.

        Raises:
            ResultsError: a URL cannot be read.
        """
        self.place = where if isinstance(where, Folder | Remote) else place(where)

    def __repr__(self) -> str:
        return f"ResultsDir({self.place.typed!r})"

    @property
    def path(self) -> Path:
        """The folder of this machine that it is. Raises ResultsError for one elsewhere, see `on_disk`."""
        if isinstance(self.place, Remote):
            raise ResultsError(f"{self.name} is no folder of this machine: copy it here first.")
        return self.place.path

    @property
    def name(self) -> str:
        """How messages name it."""
        return self.place.name

    @property
    def work(self) -> Path:
        """Folder of this machine where unfinished runs keep their locks and checkpoints."""
        return self.place.work

    def file(self, table: str, run_id: str) -> Path:
        """Return the path of one run's file in one table ("runs", "sessions", "predictions")."""
        return self.path / _file(table, run_id)

    def run_ids(self) -> tuple[str, ...]:
        """Return the ids of all runs, sorted; empty when the directory does not exist."""
        names = self.place.listed("runs")
        return tuple(sorted(n.removesuffix(".parquet") for n in names if n.endswith(".parquet") and n[0] not in "._"))

    def has(self, run_id: str) -> bool:
        """Return whether the run is complete, that is, whether its runs row exists."""
        return self.place.holds(_file("runs", run_id))

    def runs(self) -> pd.DataFrame:
        """Return all rows of the runs table, sorted by run id."""
        return _frame("runs", self.place.each(partial(self._read, "runs"), self.run_ids()))

    def run(self, run_id: str) -> dict[str, Any]:
        """Return one run's row; a null is None."""
        return dict(self._read("runs", run_id).to_pylist()[0])

    def sessions(self, run_id: str | None = None) -> pd.DataFrame:
        """Return the sessions of one run, or of all runs; `classes` holds lists of class names."""
        run_ids = self.run_ids() if run_id is None else (run_id,)
        frame = _frame("sessions", self.place.each(partial(self._read, "sessions"), run_ids))
        frame["classes"] = [list(classes) for classes in frame["classes"]]
        return frame

    def predictions(self, run_id: str) -> pd.DataFrame:
        """Return one run's predictions; run_id, clip_id, label and predicted are categoricals."""
        return self._read("predictions", run_id).to_pandas()

    def write(self, result: RunResult, *, replace: bool = False) -> str:
        """Store a run and return its id.

        All three files are written in full before any is moved into place, so a full disk leaves nothing behind.

        Args:
            result: from `build_result`, or assembled by hand.
            replace: overwrite a run with the same id.

        Raises:
            ResultsError: the run exists, a column is missing or of the wrong type, a score disagrees with the
                predictions, or the directory cannot be written.
        """
        run_id = _valid_run_id(result.run.get("run_id"))
        if self.has(run_id) and not replace:
            raise ResultsError(f"run {run_id} is already in {self.name}: ask for it to be replaced, or keep it.")
        tables = _arrow_tables(result)
        if wrong := _differences(result.run, result.sessions, result.predictions):
            raise ResultsError(_disagreement(run_id, wrong))
        written: dict[str, Callable[[Path], Any]] = {}
        for table in ("predictions", "sessions", "runs"):  # the row last
            written[_file(table, run_id)] = partial(_write_parquet, tables[table])
        self.place.put(written)
        return run_id

    def find(self, query: str) -> str:
        """Return the one run id that equals `query`, else starts with it, else contains it.

        Raises:
            UnknownNameError: no run matches (the nearest names are listed).
            ResultsError: several runs match (they are listed), or there are no runs.
        """
        ids = self.run_ids()
        if not ids:
            raise ResultsError(
                f"there are no runs in {self.name}: run a benchmark first, or point --results elsewhere."
            )
        if query in ids:
            return query
        for matches in ([i for i in ids if i.startswith(query)], [i for i in ids if query in i]):
            if len(matches) == 1:
                return matches[0]
            if matches:
                shown = ", ".join(matches[:8]) + (f" and {len(matches) - 8} more" if len(matches) > 8 else "")
                raise ResultsError(f"'{query}' matches {len(matches)} runs: {shown}; give more of the name.")
        raise _unknown_run(query, ids)

    def recompute(self, run_id: str) -> dict[str, tuple[Any, Any]]:
        """Recompute everything that follows from the predictions and return {what: (stored, recomputed)} differences.

        Covers the scores and totals of the runs row, the accuracies of the sessions table and the `correct` column.
        Empty for an untouched run. Numbers are equal when they differ by less than 1e-9.
        """
        return _differences(self.run(run_id), self.sessions(run_id), self.predictions(run_id))

    @contextmanager
    def on_disk(self, run_ids: Iterable[str] | None = None, *, most: int = 2**40) -> Iterator[ResultsDir]:
        """Yield these results as a folder of this machine: themselves, or a copy for as long as the block lasts.

        Args:
            run_ids: the runs whose files are copied, with a README.md; None for all. Of other files a copy has the
                names and sizes only.
            most: size of the largest file that is copied, in bytes.

        Raises:
            ResultsError: they cannot be read, or this disk is full. Errors of the block name these results, not the
                copy.
        """
        wanted = None if run_ids is None else {_file(table, run_id) for run_id in run_ids for table in SCHEMAS}

        def copied(name: str) -> bool:
            return name == "README.md" or (bool(_FILE.fullmatch(name)) if wanted is None else name in wanted)

        with self.place.on_disk(copied, most) as folder:
            yield ResultsDir(folder)

    def tidy(self, run_id: str) -> None:
        """Remove the unfinished files of a run that killed processes left. Call only with the run's lock."""
        for table in SCHEMAS:
            self.place.tidy(f"{table}/.{_valid_run_id(run_id)}.parquet.*.part")

    def _read(self, table: str, run_id: str) -> pa.Table:
        name = _file(table, run_id)
        source = self.place.source(name)
        if source is None:
            if not self.has(run_id):
                raise _unknown_run(run_id, self.run_ids())
            raise ResultsError(f"{self.name}/{name} is missing: run {run_id} again.")
        return _parsed(source, table, run_id, f"{self.name}/{name}")


Where: TypeAlias = str | os.PathLike[str] | ResultsDir
"""A directory of results: a path, a URL such as s3://bucket/folder, or the directory itself."""


def results_at(where: Where | None) -> ResultsDir:
    """Return the directory of results at a place; None is `results/` in the cache directory."""
    if isinstance(where, ResultsDir):
        return where
    return ResultsDir(home() / "results" if where is None else where)


def read_each(table: str, where: Mapping[str, ResultsDir]) -> dict[str, pd.DataFrame]:
    """Read the sessions or predictions of several runs, many at once where they lie elsewhere.

    Args:
        table: "sessions" or "predictions".
        where: the directory of every run, by run id.

    Returns:
        {run id: table}, in the same order.
    """
    first = next((results.place for results in where.values() if isinstance(results.place, Remote)), Folder(Path()))

    def read(item: tuple[str, ResultsDir]) -> pd.DataFrame:
        run_id, results = item
        return results.sessions(run_id) if table == "sessions" else results.predictions(run_id)

    return dict(zip(where, first.each(read, where.items()), strict=True))


def method_source(run: Mapping[Any, Any] | pd.Series) -> str:
    """Return the SHA-256 of the code of a method that came from a file or from Python, "" for an installed one.

    Settings alone do not tell two versions of an edited method apart; their runs are never averaged together.

    Args:
        run: a row of the runs table.
    """
    notes = json.loads(run["notes"])
    return str(notes.get("method_source_sha256", "")) if isinstance(notes, dict) else ""


def own_origin(run: Mapping[Any, Any] | pd.Series) -> str:
    """Return what tells runs on own or synthetic data apart that look alike: audio and E_0; "" where nothing does.

    Frozen data has neither: its index hash says it all, and another encoding of the same audio is the same data.
    Results of before schema 3 do not say.

    Args:
        run: a row of the runs table.
    """
    audio, epochs = run.get("audio_key"), run.get("first_session_epochs")
    if not (run["own_data"] or run["mini"]) or pd.isna(audio) or pd.isna(epochs):
        return ""
    return f"audio {str(audio)[:12]}, E_0 = {int(epochs)}"


def result_dirs(root: Where) -> tuple[ResultsDir, ...]:
    """Return the results directories at `root`: itself if it holds runs, else every folder directly below that does.

    This is the layout of the repository's `results/`: one folder per collection of runs, sorted by name.
    """
    return tuple(ResultsDir(found) for found in results_at(root).place.holders("runs"))


def read_table(path: Path, table: str) -> pa.Table:
    """Read one Parquet file of the table "runs", "sessions" or "predictions" and check that it is what it claims.

    Raises:
        ResultsError: one sentence naming the file: damaged, foreign, newer schema, other columns, or another run's.
    """
    return _parsed(path, table, path.stem, str(path))


def _parsed(source: Any, table: str, run_id: str, path: str) -> pa.Table:
    """Read what `source` (a path, or bytes in memory) holds of a run's table; `path` is how messages name it."""
    expected = SCHEMAS[table]
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as handle:
            metadata = handle.schema_arrow.metadata or {}
            _check_version(path, table, metadata)
            content = handle.read().replace_schema_metadata(None)
        content.validate(full=True)
    except PermissionError as cause:
        raise ResultsError(f"{path} cannot be read (no permission): check its permissions.") from cause
    except (pa.ArrowException, OSError, UnicodeDecodeError) as cause:
        raise ResultsError(f"{path} is damaged or no Parquet file: delete it and run again.") from cause
    content = _upgraded(content, table, int(metadata[_VERSION_KEY]))
    if not content.schema.equals(expected):
        raise ResultsError(
            f"{path} has other columns than schema {SCHEMA_VERSION} ({_schema_change(content, expected)})."
        )
    if set(content.column("run_id").unique().to_pylist()) != {run_id} or (table == "runs" and len(content) != 1):
        raise ResultsError(f"{path} holds another run than its name says: give the file back its own name.")
    return content


_ADDED: Mapping[str, tuple[tuple[int, str, Any], ...]] = {
    "runs": (
        (2, "mini", False),
        (2, "variant", ""),
        (3, "blocks_needed", None),
        (3, "blocks_reused", None),
        (3, "first_session_epochs", None),
        (3, "audio_key", None),
    ),
    "sessions": ((3, "blocks_needed", None), (3, "blocks_reused", None)),
}
"""Columns that a schema added, with what is read in older tables: in the order of the table's columns."""


def _upgraded(content: pa.Table, table: str, version: int) -> pa.Table:
    """Bring a table of an older schema up to date, see `SCHEMA_VERSION`."""
    if version >= SCHEMA_VERSION:
        return content
    schema = SCHEMAS[table]
    for since, name, value in _ADDED.get(table, ()):
        if version < since and name not in content.column_names:
            at, field = schema.get_field_index(name), schema.field(name)
            content = content.add_column(
                min(at, content.num_columns), field, pa.array([value] * len(content), field.type)
            )
    if table == "runs" and "schema_version" in content.column_names:
        at = content.column_names.index("schema_version")
        newer = pa.array([SCHEMA_VERSION] * len(content), pa.int32())
        content = content.set_column(at, schema.field("schema_version"), newer)
    return content


def _check_version(path: str, table: str, metadata: Mapping[bytes, bytes]) -> None:
    version = metadata.get(_VERSION_KEY, b"").decode("ascii", "replace")
    if not version.isdigit() or metadata.get(_TABLE_KEY) != table.encode():
        raise ResultsError(f"{path} was not written by audiocl as a {table} table: move it out of this directory.")
    if int(version) > SCHEMA_VERSION:
        raise ResultsError(
            f"{path} has results schema {version}, but this audiocl ({__version__}) reads up to {SCHEMA_VERSION}: "
            "upgrade audiocl."
        )


def _schema_change(content: pa.Table, expected: pa.Schema) -> str:
    found = content.schema
    for name in expected.names:
        if name not in found.names:
            return f"'{name}' is missing"
        if not found.field(name).equals(expected.field(name)):
            return f"'{name}' is {found.field(name).type}, not {expected.field(name).type}"
    extra = [name for name in found.names if name not in expected.names]
    return f"unexpected '{extra[0]}'" if extra else "their order differs"


def _file(table: str, run_id: Any) -> str:
    return f"{table}/{_valid_run_id(run_id)}.parquet"


def _frame(table: str, parts: Iterable[pa.Table]) -> pd.DataFrame:
    return pa.concat_tables([SCHEMAS[table].empty_table(), *parts]).to_pandas()


def _write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def _valid_run_id(run_id: Any) -> str:
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise ResultsError(f"'{run_id}' is no run id: use letters, digits and . _ + = @ - (at most 200, no slash).")
    return run_id


def _unknown_run(query: str, ids: tuple[str, ...]) -> UnknownNameError:
    nearest = ids if len(ids) <= 8 else difflib.get_close_matches(query, ids, n=8, cutoff=0.0)
    return unknown_name("run", query, nearest)


# ---------------------------------------------------------------------------------------------------------------------
# Data frames to Arrow


def _arrow_tables(result: RunResult) -> dict[str, pa.Table]:
    """Convert to the three explicit schemas, checking columns, types and that the tables agree with each other."""
    run_id = result.run["run_id"]
    _check_sessions(result.sessions)
    sessions = result.sessions.assign(run_id=run_id).sort_values("session")
    predictions = result.predictions.assign(run_id=run_id, correct=metrics.correct(result.predictions))
    metrics.require_columns(predictions, ("after_session", "clip_id"))
    # One order of rows, whatever order they came in: equal predictions must give equal bytes.
    predictions = predictions.astype({"clip_id": object}).sort_values(["after_session", "clip_id"], kind="stable")
    if predictions.duplicated(["after_session", "clip_id"]).any():
        raise ResultsError(f"run {run_id} predicts a clip twice after one session: write one row per clip.")
    _check_known_classes(run_id, sessions, predictions)
    columns: dict[str, Mapping[str, Iterable[Any]]] = {
        "runs": {name: [value] for name, value in result.run.items()},
        "sessions": {str(name): sessions[name].tolist() for name in sessions.columns},
        "predictions": {str(name): predictions[name].tolist() for name in predictions.columns},
    }
    return {name: _arrow_table(name, values, run_id) for name, values in columns.items()}


def _arrow_table(table: str, columns: Mapping[str, Iterable[Any]], run_id: str) -> pa.Table:
    schema = SCHEMAS[table]
    if missing := [name for name in schema.names if name not in columns]:
        raise ResultsError(f"the {table} table of run {run_id} lacks {', '.join(missing)}.")
    if extra := [name for name in columns if name not in schema.names]:
        raise ResultsError(f"the {table} table of run {run_id} has unknown columns: {', '.join(extra)}.")
    arrays = []
    for field in schema:
        try:
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            values = pa.array(columns[field.name], type=kind, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as cause:
            raise ResultsError(
                f"column '{field.name}' of the {table} table of run {run_id} must hold {field.type}: {cause}"
            ) from cause
        if values.null_count and not field.nullable:
            raise ResultsError(f"column '{field.name}' of the {table} table of run {run_id} has an empty value.")
        arrays.append(values.dictionary_encode() if pa.types.is_dictionary(field.type) else values)
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION).encode(), _TABLE_KEY: table.encode()}
    return pa.Table.from_arrays(arrays, schema=schema.with_metadata(metadata))


def _check_known_classes(run_id: str, sessions: pd.DataFrame, predictions: pd.DataFrame) -> None:
    """Every label and every prediction after session t names a class that sessions 0..t brought."""
    since: dict[str, int] = {}
    for session, classes in zip(sessions["session"].tolist(), sessions["classes"].tolist(), strict=True):
        since.update(dict.fromkeys(classes, session))
    for column in ("label", "predicted"):
        used = predictions[["after_session", column]].astype({column: object}).groupby(column)["after_session"].min()
        for name, earliest in used.items():
            if name not in since or since[str(name)] > earliest:
                what = "tests" if column == "label" else "predicts"
                raise ResultsError(
                    f"run {run_id} {what} class '{name}' after session {earliest}, "
                    "but no session up to then brought it."
                )


# ---------------------------------------------------------------------------------------------------------------------
# Stored against recomputed


def _differences(
    run: Mapping[str, Any], sessions: pd.DataFrame, predictions: pd.DataFrame
) -> dict[str, tuple[Any, Any]]:
    fresh = {**score(predictions), **_derived(run, sessions, predictions)}
    found = {name: (run.get(name), value) for name, value in fresh.items() if not _same(run.get(name), value)}
    expected = session_scores(predictions).set_index("session").to_dict("index")
    for stored in sessions.to_dict("records"):
        for name in _SESSION_SCORES:
            t = int(stored["session"])
            value = expected[t][name] if t in expected else math.nan
            if not _same(stored.get(name), value):
                found[f"session {t}: {name}"] = (stored.get(name), value)
    if "correct" in predictions.columns:
        stored_correct, real = predictions["correct"].to_numpy(dtype=bool), metrics.correct(predictions)
        if (stored_correct != real).any():
            found["correct"] = (int(stored_correct.sum()), int(real.sum()))
    return found


def _same(stored: Any, fresh: Any) -> bool:
    stored, fresh = (None if value is None or value != value else value for value in (stored, fresh))
    if stored is None or fresh is None:
        return stored is fresh
    return math.isclose(stored, fresh, rel_tol=1e-9, abs_tol=1e-9)


def _disagreement(run_id: str, wrong: Mapping[str, tuple[Any, Any]]) -> str:
    name, (stored, fresh) = next(iter(wrong.items()))
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return (
        f"run {run_id} says {name} is {stored}, but its predictions and sessions give {fresh}{more}: rebuild the row."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Provenance


def provenance(device: Any) -> dict[str, Any]:
    """Return the provenance columns that describe this machine and installation.

    Keys: audiocl_version, git_commit (of the clone audiocl runs from; None outside a clone; "+dirty" when its code was
    changed), device, threads, python_version, library_versions (dict), platform.

    Args:
        device: the torch device, or its name ("cpu", "cuda:0").
    """
    import torch

    name = str(device)
    if name.startswith("cuda") and torch.cuda.is_available():
        name = f"{name} ({torch.cuda.get_device_name(torch.device(name))})"
    return {
        "audiocl_version": __version__,
        "git_commit": git_commit(Path(__file__).resolve().parent.parent),
        "device": name,
        "threads": torch.get_num_threads(),
        "python_version": platform.python_version(),
        "library_versions": library_versions(),
        "platform": f"{platform.platform()}, {_processor()}, {os.cpu_count()} CPUs",
    }


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that can change a number, without importing them."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit(root: Path) -> str | None:
    """Return the commit checked out at `root`, with "+dirty" when code differs from it; None if it is no audiocl clone.

    A package installed inside some other project's repository is not a clone of audiocl: `root` must be the top of the
    repository and hold audiocl's own pyproject.toml.
    """
    project = root / "pyproject.toml"
    try:
        if not (root / ".git").exists() or 'name = "audiocl"' not in project.read_text(encoding="utf-8"):
            return None
        commit = _git(root, "rev-parse", "--verify", "HEAD")
        code = ("audiocl_bench", "methods", "splits", "cli.py", "pyproject.toml")
        return commit + ("+dirty" if _git(root, "status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20, encoding="utf-8"
    )
    return done.stdout.strip()


def _processor() -> str:
    """Return the processor's model name; times mean little without it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1).strip() if found else (platform.processor() or platform.machine())
