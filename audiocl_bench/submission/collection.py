"""Checks of a collection of runs, of a pack, and of what a change to `results/` adds."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from dataclasses import field as with_default
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from audiocl_bench import benchmarks, files
from audiocl_bench.acquire.download import amount
from audiocl_bench.errors import AudioclError, ResultsError
from audiocl_bench.files import sha256_file
from audiocl_bench.places import Folder
from audiocl_bench.results import RUNS_SCHEMA, SCHEMAS, ResultsDir, Where, read_table, result_dirs, results_at
from audiocl_bench.submission.bounded import MAX_FILE_BYTES, MAX_RUNS, refusals, shown
from audiocl_bench.submission.checks import Findings, check_run, fingerprint, missing_orders
from audiocl_bench.submission.pack import MANIFEST, TEXTS, unpacked, untrue

TEXT_FILES = ("README.md",)
"""What a collection may hold beside its three tables."""
WORK = "work"
"""Where unfinished runs are kept; part of a results directory, never of a published collection."""
ROOT_FILES = ("README.md", "LICENSE")
PAPER = "paper"

_MAX_TEXT_BYTES = 200_000
_SHOWN_RUNS = 3
_LABELS = {"description": "What it is", "contact": "Whom to ask", "url": "Paper or code"}
_SAME_STREAM = ("benchmark", "protocol", "order", "split_hash", "final_accuracy", "micro_accuracy")


@dataclass(frozen=True)
class Report:
    """Outcome of a verification.

    Attributes:
        source: what was verified, as the user names it.
        runs: rows of the runs table that could be read.
        predictions: prediction rows that the scores were recomputed from.
        problems: why it is refused, one sentence each; empty if all is right.
        notes: what a reader should know.
        texts: description, contact and url of a pack.
    """

    source: str
    runs: pd.DataFrame
    predictions: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    texts: dict[str, str] = with_default(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def published(root: Where | None = None) -> tuple[ResultsDir, ...]:
    """Return the collections at `root`; by default those of the clone this runs from (none in an installed copy)."""
    if root is not None:
        place = results_at(root).place
        if isinstance(place, Folder) and not place.path.is_dir():
            raise ResultsError(f"--against {root} is no directory: point it at a results/ folder of collections.")
        return result_dirs(root)
    folder = files.paper_dir().parent
    return result_dirs(folder) if folder.name == "results" and folder.is_dir() else ()


def verify_pack(path: Path, against: Sequence[ResultsDir] = ()) -> Report:
    """Verify a pack; see `verify_collection`. Nothing in it is executed, and nothing is left behind.

    Raises:
        ResultsError: the pack cannot even be taken apart: see `pack.unpacked`.
    """
    with unpacked(path) as (folder, manifest):
        return _verify_unpacked(path, folder, manifest, against)


def verify_collection(
    folder: Where,
    against: Sequence[ResultsDir] = (),
    *,
    prefix: str | None = None,
    only: Iterable[str] | None = None,
) -> Report:
    """Verify a collection: layout, limits, every run by itself, duplicates, completeness over orders and seeds.

    Args:
        folder: directory with runs/, sessions/ and predictions/, here or elsewhere (it is then copied here first).
        against: published collections, for duplicates and completeness; `folder` itself is left out of them. They are
            read without limits, so they must have been verified.
        prefix: how messages name the folder; default its name and a slash.
        only: verify these runs alone.

    Raises:
        ResultsError: there are no runs in `folder`.
    """
    chosen = None if only is None else tuple(only)
    with _copied(folder, chosen) as results:
        examined = _examine(results, prefix, chosen)
        _relate(examined, against)
        return examined.report()


def verify_collections(folders: Sequence[Where], against: Sequence[ResultsDir] = ()) -> list[Report]:
    """Verify several collections, and then those that passed against `against` and against each other.

    Raises:
        ResultsError: as `verify_collection`.
    """
    with ExitStack() as copies:
        all_examined = [_examine(copies.enter_context(_copied(folder)), None, None) for folder in folders]
        harmless = [examined.results for examined in all_examined if not examined.found.problems]
        for examined in all_examined:
            _relate(examined, [*against, *harmless])
        return [examined.report() for examined in all_examined]


def _copied(folder: Where, run_ids: Iterable[str] | None = None) -> AbstractContextManager[ResultsDir]:
    """Yield a collection as a folder of this machine, without files that are too large for any table."""
    return results_at(folder).on_disk(run_ids, most=max(MAX_FILE_BYTES.values()))


@dataclass(frozen=True)
class _Examined:
    """A collection whose runs were checked one by one."""

    results: ResultsDir
    prefix: str
    run_ids: tuple[str, ...]
    runs: pd.DataFrame
    predictions: int
    found: Findings

    def report(self) -> Report:
        folder = self.results.path
        return Report(
            self.results.name,
            self.runs,
            self.predictions,
            tuple(self.prefix + text.replace(f"{folder}/", "") for text in self.found.problems),
            tuple(_note(text, ids, len(self.run_ids)) for text, ids in self.found.notes.items()),
        )


def _examine(results: ResultsDir, prefix: str | None, only: Sequence[str] | None) -> _Examined:
    """Check layout, limits and every run by itself; nothing is read that was not found harmless."""
    folder, found = results.path, Findings()
    run_ids = results.run_ids() if only is None else tuple(only)
    if not run_ids:
        raise ResultsError(f"{results.name} holds no runs: point at a results directory or a pack.")
    _check_files(folder, run_ids, found)
    rows, predictions = [], 0
    if not found.problems:
        paths = [(results.file(table, run_id), table) for run_id in run_ids for table in SCHEMAS]
        refused = refusals(paths)
        for number, why in refused.items():
            found.wrong(paths[number][0].relative_to(folder).as_posix(), why)
        harmful = {paths[number][0].stem for number in refused}
        for run_id in run_ids:
            row = None if run_id in harmful else _guarded(results, run_id, found)
            if row is not None:
                rows.append(row)
                predictions += _prediction_rows(results, run_id)
    if only is None:
        _check_others(folder, run_ids, found)
    runs = pd.DataFrame(rows, columns=RUNS_SCHEMA.names)
    return _Examined(results, f"{results.name}/" if prefix is None else prefix, run_ids, runs, predictions, found)


def _relate(examined: _Examined, against: Sequence[ResultsDir]) -> None:
    """Look for duplicates of, and missing orders of, runs that are all right by themselves."""
    if not examined.found.problems:
        here = examined.results.place.identity
        others = [other for other in against if other.place.identity != here]
        _duplicates(examined.results, examined.runs, others, examined.found)
        _completeness(examined.runs, others, examined.found)


def add(path: Path, target: Where, against: Sequence[ResultsDir] = ()) -> Report:
    """Verify a pack and, if nothing is wrong, unpack it into the collection `target`, new or existing.

    Raises:
        ResultsError: as `verify_pack`; or `target` has one of the runs already or cannot be written.
    """
    with unpacked(path) as (folder, manifest):
        collection = results_at(target)
        report = _verify_unpacked(path, folder, manifest, [*against, collection])
        if report.passed:
            _copy(ResultsDir(folder), collection, report)
        return report


def _verify_unpacked(path: Path, folder: Path, manifest: dict[str, Any], against: Sequence[ResultsDir]) -> Report:
    prefix = f"{path}: "
    report = verify_collection(folder, against, prefix=prefix, only=sorted(run["run_id"] for run in manifest["runs"]))
    problems = list(report.problems)
    if report.passed:
        told = {run["run_id"]: untrue(run, ResultsDir(folder)) for run in manifest["runs"]}
        problems += [
            f"{prefix}{MANIFEST}: field '{field}' of run {run_id} differs from the run's own row: pack the runs again."
            for run_id, field in told.items()
            if field
        ]
    texts = {name: manifest[name] for name in TEXTS}
    return Report(str(path), report.runs, report.predictions, tuple(problems), report.notes, texts)


def _guarded(results: ResultsDir, run_id: str, found: Findings) -> dict[str, Any] | None:
    """Check one run; what no check foresaw refuses the run in a sentence, too."""
    try:
        return check_run(results, run_id, found)
    except (AudioclError, MemoryError, RecursionError, LookupError, TypeError, ValueError, ArithmeticError) as cause:
        found.wrong(
            f"runs/{run_id}.parquet",
            f"the run cannot be checked ({type(cause).__name__}: {shown(cause)}): run it again with `audiocl run`",
        )
        return None


def _prediction_rows(results: ResultsDir, run_id: str) -> int:
    try:
        return len(results.predictions(run_id))
    except ResultsError:
        return 0


# ---------------------------------------------------------------------------------------------------------------------
# Layout


def _check_files(folder: Path, run_ids: Sequence[str], found: Findings) -> None:
    """Every run has three plain files, none of them too large."""
    if len(run_ids) > MAX_RUNS:
        found.wrong("runs", f"there are {len(run_ids):,} runs, but a collection has at most {MAX_RUNS:,}: split it")
        return
    for table in SCHEMAS:
        for run_id in run_ids:
            name, most = f"{table}/{run_id}.parquet", MAX_FILE_BYTES[table]
            path = folder / name
            if path.is_symlink() or path.parent.is_symlink():
                found.wrong(name, "it is a link: put the file itself there")
            elif not path.is_file():
                found.wrong(name, "the file is missing: every run has one in runs/, sessions/ and predictions/")
            elif (size := path.stat().st_size) > most:
                found.wrong(
                    name, f"it has {amount(size)}, but at most {amount(most)} are read: it is no file of one run"
                )


def _check_others(folder: Path, run_ids: Sequence[str], found: Findings) -> None:
    """Nothing else lies in the folder, but for a text about it and unfinished runs."""
    for path in sorted(folder.iterdir()):
        name = path.name
        if name in SCHEMAS and path.is_dir() and not path.is_symlink():
            wanted = {f"{run_id}.parquet" for run_id in run_ids}
            for stranger in sorted({file.name for file in path.iterdir()} - wanted):
                found.wrong(f"{name}/{shown(stranger)}", "it belongs to no run of this collection: move it out of here")
        elif name in TEXT_FILES and path.is_file() and not path.is_symlink():
            if path.stat().st_size > _MAX_TEXT_BYTES:
                found.wrong(name, f"it has over {amount(_MAX_TEXT_BYTES)}: shorten it")
        elif not (name == WORK and path.is_dir() and not path.is_symlink()):
            found.wrong(shown(name), "it belongs in no collection: only runs/, sessions/, predictions/, README.md do")


# ---------------------------------------------------------------------------------------------------------------------
# Runs among others


def _duplicates(results: ResultsDir, runs: pd.DataFrame, others: Sequence[ResultsDir], found: Findings) -> None:
    """Refuse a run that is published already, and the same predictions under the name of another method."""
    seen: dict[tuple[Any, ...], list[tuple[ResultsDir, dict[str, Any]]]] = {}
    for other in others:
        for row in other.runs().to_dict("records"):
            seen.setdefault(_stream_key(row), []).append((other, {str(k): v for k, v in row.items()}))
    ids = {row["run_id"]: other for rows in seen.values() for other, row in rows}
    for row in runs.to_dict("records"):
        run_id = str(row["run_id"])
        if run_id in ids:
            found.wrong(f"runs/{run_id}.parquet", f"the run is in {ids[run_id].name} already: leave it out")
            continue
        twins = seen.setdefault(_stream_key(row), [])
        mine = fingerprint(results.predictions(run_id)) if twins else ""
        for other, twin in twins:
            if fingerprint(other.predictions(str(twin["run_id"]))) != mine:
                continue
            if twin["method"] == row["method"]:
                found.note(
                    f"the same predictions as another run of {row['method']}, with other settings or seed", run_id
                )
            elif row["comparable"]:
                found.wrong(
                    f"predictions/{run_id}.parquet",
                    f"the same predictions as run {twin['run_id']} of method {shown(twin['method'], 60)}: give them "
                    "once, under one name",
                )
            else:
                found.note(f"the same predictions as a run of {shown(twin['method'], 60)}", run_id)
            break
        twins.append((results, {str(k): v for k, v in row.items()}))


def _stream_key(row: Any) -> tuple[Any, ...]:
    """Runs that differ in this cannot have the same predictions, so their files need not be read."""
    return tuple(round(row[name], 6) if isinstance(row[name], float) else row[name] for name in _SAME_STREAM)


def _completeness(runs: pd.DataFrame, others: Sequence[ResultsDir], found: Findings) -> None:
    """Note which class orders a leaderboard row still lacks, counting what is published already."""
    row_keys = ["method", "variant", "config_hash", "benchmark", "protocol", "backbone", "weights_hash"]
    both = pd.concat([runs, *(other.runs() for other in others)], ignore_index=True)
    mine = set(runs["run_id"])
    for key, group in both[~both["own_data"].astype(bool)].groupby(row_keys, sort=True):
        ours = group[group["run_id"].isin(mine)]
        if ours.empty:
            continue
        method, variant, _, benchmark, protocol, backbone, _ = key
        orders = benchmarks.get(str(benchmark)).num_orders
        name = f"{method}@{variant}" if variant else str(method)
        for seed, of_seed in group.groupby("seed"):
            missing = missing_orders(of_seed["order"].tolist(), orders)
            if missing:
                found.note(
                    f"{name} on {benchmark} ({protocol} split, {backbone}, seed {seed}) lacks "
                    f"order{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}; a full row has 0-{orders - 1}",
                    "",
                )
    for _, group in runs[runs["own_data"].astype(bool)].groupby(row_keys, sort=True):
        have = group.groupby("seed")["order"].apply(lambda orders: tuple(sorted(orders)))
        if have.nunique() > 1:
            first = group.iloc[0]
            found.note(f"{first['method']} on {first['benchmark']} has other orders for one seed than for another", "")


def _note(text: str, run_ids: Sequence[str], total: int) -> str:
    """Say of which runs a note holds."""
    if run_ids == [""]:
        return f"{text}."
    if len(run_ids) == total:
        return f"{text} ({'all runs' if total > 1 else 'the run'})."
    shown_ids = ", ".join(run_ids[:_SHOWN_RUNS])
    return f"{text} ({len(run_ids)} of {total} runs: {shown_ids}{', ...' if len(run_ids) > _SHOWN_RUNS else ''})."


# ---------------------------------------------------------------------------------------------------------------------
# Adding


def _copy(source: ResultsDir, target: ResultsDir, report: Report) -> None:
    """Copy every file, the runs rows last: a run exists if and only if its row does."""
    for table in reversed(list(SCHEMAS)):
        for run_id in report.runs["run_id"]:
            file = source.file(table, run_id)
            read_table(file, table)
            target.place.put({f"{table}/{run_id}.parquet": partial(shutil.copyfile, file)})
    if not target.place.holds("README.md"):
        text = _readme(PurePosixPath(target.name).name, report)
        target.place.put({"README.md": lambda part: part.write_bytes(text.encode("utf-8"))})


def _readme(name: str, report: Report) -> str:
    """What a new collection says of itself: the submitter's words, indented so that they stay plain text."""
    runs = report.runs
    methods, benches = (", ".join(sorted(set(runs[column]))) for column in ("method", "benchmark"))
    lines = [f"# {name}", "", f"{len(runs)} runs: {methods} on {benches}. Checked by `audiocl verify`.", ""]
    for field_name, text in report.texts.items():
        if text:
            lines += [f"{_LABELS[field_name]}:", "", *(f"    {shown(line, 500)}" for line in text.splitlines()), ""]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# A change of results/


def changed_collections(before: Path, after: Path) -> tuple[Path, ...]:
    """Return the collections below `after` that are new, or differ in any file from those below `before`."""
    changed = []
    for collection in result_dirs(after):
        old = before / collection.path.name
        if not old.is_dir() or _contents(old) != _contents(collection.path):
            changed.append(collection.path)
    return tuple(changed)


def _contents(folder: Path) -> dict[str, str]:
    """Return {name: hash of the file, or what else it is}."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link {path.readlink()}"
        elif path.is_file():
            found[name] = sha256_file(path)
    return found


def strangers(root: Path) -> tuple[str, ...]:
    """Return a sentence for everything directly below a published `results/` that belongs to no collection."""
    told = []
    for path in sorted(root.iterdir()):
        allowed = (path.is_dir() and not path.is_symlink() and (path.name == PAPER or (path / "runs").is_dir())) or (
            path.name in ROOT_FILES and path.is_file() and not path.is_symlink()
        )
        if not allowed:
            told.append(f"{root}/{shown(path.name)}: it is no collection (a folder with runs/): move it out of here.")
        elif path.is_dir() and (path / WORK).exists():
            told.append(f"{root}/{path.name}/{WORK}: unfinished runs are not published: leave it out.")
    return tuple(told)
