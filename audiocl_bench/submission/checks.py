"""Checks of one run: everything that can be held against its predictions, this version's frozen splits, or itself."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from audiocl_bench import audit, backbones, benchmarks, corpora, own_benchmark, registry
from audiocl_bench.backbones.registry import list_rows
from audiocl_bench.errors import AudioclError, ResultsError
from audiocl_bench.files import sha256_json
from audiocl_bench.results import RUNS_SCHEMA, SCORES, SESSIONS_SCHEMA, ResultsDir, make_run_id, read_table
from audiocl_bench.streams import Stream
from audiocl_bench.submission.bounded import MAX_JSON_BYTES, MAX_NAME, MAX_SESSIONS, parse_json, shown

AUDITS = tuple(
    check.__name__
    for check in (
        audit.batch_independence,
        audit.data_access,
        audit.features_are_current,
        audit.repeatability,
        audit.seen_classes_only,
        audit.state_is_complete,
    )
)
"""The audits of a run, all of which a submitted run must have passed."""

_SIGNED = ("forgetting", "backward_transfer")
_PERCENT = (*SCORES, "fresh_final_accuracy", "accuracy", "new_accuracy", "old_accuracy")
_HASHES = ("split_hash", "index_hash", "weights_hash", "config_hash", "audio_key")
_JSON = ("audit", "front_end", "method_config", "library_versions", "notes")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HASH = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}(\+dirty)?")
_EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)
_CLOCK_ROOM = timedelta(days=1)  # clocks and time zones differ
_LONGEST_TEXT = 1_000
_OWN_PACKAGE = "audiocl_methods."
_AGAIN = "run it again with `audiocl run`"


@dataclass
class Findings:
    """What a verification found out.

    Attributes:
        problems: what refuses the results, one sentence each.
        notes: what a reader should know, each with the runs it holds for.
    """

    problems: list[str] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def wrong(self, where: str, text: str) -> None:
        """Add a problem of the file `where`."""
        sentence = f"{where}: {text}."
        if sentence not in self.problems:
            self.problems.append(sentence)

    def note(self, text: str, run_id: str) -> None:
        """Add a note; equal notes of several runs become one."""
        self.notes.setdefault(text, []).append(run_id)


@dataclass(frozen=True)
class Expected:
    """What a stream's predictions must cover.

    Attributes:
        classes: class names of each session.
        clips: test clips -> (session, class name).
        train_clips: training clips of each session, None where only the data can tell.
    """

    classes: tuple[tuple[str, ...], ...]
    clips: Mapping[str, tuple[int, str]]
    train_clips: tuple[int, ...] | None


@functools.lru_cache(maxsize=64)
def frozen_stream(benchmark: str, protocol: str, order: int) -> tuple[Stream, str]:
    """Return a built-in benchmark's stream and the hash of its clips and labels, from the frozen splits alone.

    Raises:
        AudioclError: no such benchmark, protocol or order.
    """
    stream = benchmarks.get(benchmark).stream(protocol, order)
    labels = [stream.classes[label] for label in stream.labels]
    return stream, corpora.index_hash(pd.DataFrame({"clip_id": list(stream.clip_ids), "label": labels}))


@functools.lru_cache(maxsize=1)
def weights_at_hand() -> Mapping[str, backbones.Row]:
    """Return {weights hash: row} of the backbones that are made here or shipped: those known without a download."""
    return {backbones.load(row.name).weights_hash: row for row in list_rows() if row.stand_in or row.shipped}


@functools.lru_cache(maxsize=1)
def own_methods() -> tuple[str, ...]:
    """Return the methods that come with audiocl."""
    return tuple(name for name, target in registry.targets().items() if target.startswith(_OWN_PACKAGE))


def check_run(results: ResultsDir, run_id: str, found: Findings) -> dict[str, Any] | None:
    """Check one run, whose files were found harmless, and return its row (None if it cannot be read).

    Problems name the file relative to the collection, the field and the fix.
    """
    before = len(found.problems)
    try:
        row: dict[str, Any] = read_table(results.file("runs", run_id), "runs").to_pylist()[0]
        sessions: list[dict[str, Any]] = read_table(results.file("sessions", run_id), "sessions").to_pylist()
        predictions = results.predictions(run_id)
    except ResultsError as cause:
        found.problems.append(str(cause))
        return None
    checker = _Run(results, row, sessions, predictions, found)
    checker.row_is_sane()
    if len(found.problems) > before:
        return row  # what follows builds on fields that are wrong already
    checker.origin()
    checker.sessions_and_predictions()
    checker.scores()
    return row


class _Run:
    """One run's three tables under examination."""

    def __init__(
        self,
        results: ResultsDir,
        row: dict[str, Any],
        sessions: list[dict[str, Any]],
        predictions: pd.DataFrame,
        found: Findings,
    ) -> None:
        self.results, self.row, self.sessions, self.predictions = results, row, sessions, predictions
        self.found, self.id = found, str(row["run_id"])
        self.json: dict[str, Any] = {}

    def wrong(self, table: str, text: str) -> None:
        self.found.wrong(f"{table}/{self.id}.parquet", text)

    def note(self, text: str) -> None:
        self.found.note(text, self.id)

    # ---- every field by itself --------------------------------------------------------------------------------------

    def row_is_sane(self) -> None:
        """Numbers finite and in range, texts short and printable, JSON readable, times possible."""
        self._numbers("runs", RUNS_SCHEMA, self.row, "")
        for session in self.sessions[:MAX_SESSIONS]:
            self._numbers("sessions", SESSIONS_SCHEMA, session, f" of session {session['session']}")
        self._texts()
        self._times()
        self._audits()

    def _numbers(self, table: str, schema: Any, values: Mapping[str, Any], where: str) -> None:
        for name in schema.names:
            value = values[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            low = -100.0 if name in _SIGNED else 0.0
            high = 100.0 if name in _PERCENT else math.inf
            if not math.isfinite(value):
                self.wrong(table, f"{name}{where} is {value}, but it must be a finite number: {_AGAIN}")
            elif not low - 1e-9 <= value <= high + 1e-9:
                bounds = f"{low:g} to {high:g}" if high < math.inf else "0 or more"
                self.wrong(table, f"{name}{where} is {value:g}, but it must be {bounds}: {_AGAIN}")

    def _texts(self) -> None:
        for name, value in self.row.items():
            if not isinstance(value, str):
                continue
            longest = MAX_JSON_BYTES if name in _JSON else _LONGEST_TEXT
            if len(value) > longest or _CONTROL.search(value):
                self.wrong(
                    "runs", f"{name} is longer than {longest:,} characters or holds control characters: {_AGAIN}"
                )
            elif name in _HASHES and not _HASH.fullmatch(value):
                self.wrong("runs", f"{name} is '{shown(value, 80)}', which is no SHA-256: {_AGAIN}")
            elif name in _JSON:
                self._read_json(name, value)
        commit = self.row["git_commit"]
        if commit is not None and not _COMMIT.fullmatch(commit):
            self.wrong("runs", f"git_commit is '{shown(commit, 80)}', which is no commit: {_AGAIN}")

    def _read_json(self, name: str, text: str) -> None:
        try:
            value = parse_json(text, name)
        except ResultsError as cause:
            self.wrong("runs", str(cause).rstrip("."))
            return
        if not isinstance(value, dict):
            self.wrong("runs", f"{name} is no JSON object: {_AGAIN}")
        self.json[name] = value

    def _times(self) -> None:
        times = []
        for name in ("started_at", "finished_at"):
            try:
                time = datetime.fromisoformat(self.row[name])
            except ValueError:
                time = datetime.min
            if time.tzinfo is None:
                self.wrong("runs", f"{name} is '{shown(self.row[name], 40)}', which is no ISO 8601 time: {_AGAIN}")
            elif not _EARLIEST <= time <= datetime.now(UTC) + _CLOCK_ROOM:
                self.wrong("runs", f"{name} is {time.isoformat()}, which cannot be: set the clock and {_AGAIN}")
            else:
                times.append(time)
        if len(times) < 2:
            return
        if times[1] < times[0]:
            self.wrong("runs", f"finished_at lies before started_at: set the clock and {_AGAIN}")
        spent = float(self.row["train_seconds"]) + float(self.row["eval_seconds"])
        if spent > 1.05 * (times[1] - times[0]).total_seconds() + 60:
            self.note("more seconds of training and testing than passed between started_at and finished_at")

    def _audits(self) -> None:
        checks = self.json.get("audit")
        if not isinstance(checks, dict):
            return
        for name in AUDITS:
            outcome = checks.get(name)
            if not isinstance(outcome, dict) or not isinstance(outcome.get("passed"), bool):
                self.wrong("runs", f"audit has no outcome of '{name}': {_AGAIN}, which audits every run")
            elif not outcome["passed"]:
                self.wrong("runs", f"audit '{name}' failed: mend the method (`audiocl audit` shows it) and {_AGAIN}")
        if not self.row["audit_passed"] and all(isinstance(c, dict) and c.get("passed") for c in checks.values()):
            self.wrong(
                "runs", "audit_passed is false, since the method declares a leak between test clips: leave it out"
            )

    # ---- where the run comes from -----------------------------------------------------------------------------------

    def origin(self) -> None:
        """Identity, flags, hashes of settings, split, clips and weights, and the run id that follows from them."""
        row = self.row
        self._flags()
        fresh = sha256_json({"method": row["method"], "config": self.json["method_config"]})
        if fresh != row["config_hash"]:
            self.wrong("runs", f"config_hash is not the hash of method and method_config: {_AGAIN}")
        if row["variant"] and self.json["method_config"].get("preset") != row["variant"]:
            self.wrong("runs", f"variant is '{shown(row['variant'])}', but method_config has another preset: {_AGAIN}")
        self._backbone()
        stream = self._stream()
        self._run_id(stream)
        if (row["git_commit"] or "").endswith("+dirty"):
            self.note("made with code that differs from its git commit")
        if "method_source_sha256" in self.json["notes"] or row["method"] not in own_methods():
            self.note(
                f"{shown(row['method'], 60)} is no method that comes with audiocl: say where its code is, with --url"
            )

    def _flags(self) -> None:
        row, name = self.row, shown(self.row["benchmark"])
        own, built_in = row["own_data"], (*benchmarks.names(), *benchmarks.mini_names())
        if own and (row["benchmark"] in benchmarks.names() or row["protocol"] != own_benchmark.PROTOCOL):
            self.wrong("runs", f"own_data is true, but '{name}' ({shown(row['protocol'])}) is no own data: {_AGAIN}")
        elif not own and row["benchmark"] not in built_in:
            self.wrong("runs", f"benchmark '{name}' is not built in, but own_data is false: own data must be marked")
        if row["mini"] != (not own and row["benchmark"] in benchmarks.mini_names()):
            self.wrong("runs", f"mini is {str(row['mini']).lower()}, which is untrue of benchmark '{name}': {_AGAIN}")
        if row["comparable"] != (not (own or row["mini"] or row["stand_in"])):
            self.wrong("runs", f"comparable does not follow from own_data, mini and stand_in: {_AGAIN}")

    def _backbone(self) -> None:
        """Compare what is said of the backbone twice; say of its weights whether they are known."""
        row, said = self.row, self.json["notes"].get("backbone")
        if not isinstance(said, dict):
            self.wrong("runs", f"notes do not describe the backbone: {_AGAIN}")
            return
        facts = {
            "name": row["backbone"],
            "weights_hash": row["weights_hash"],
            "stand_in": row["stand_in"],
            "front_end": self.json["front_end"],
        }
        for key, value in facts.items():
            if said.get(key) != value:
                self.wrong("runs", f"notes.backbone.{key} differs from the run's own {key}: {_AGAIN}")
        known = {entry.name: entry for entry in list_rows()}.get(row["backbone"])
        real = weights_at_hand().get(row["weights_hash"])
        random = next((entry for entry in (real, known) if entry and entry.stand_in), None)
        if not row["stand_in"] and random:
            self.wrong("runs", f"stand_in is false, but {random.name} has random weights: {_AGAIN}")
        if known and known.shipped and said.get("source") == known.source and real != known:
            self.wrong("runs", f"the weights hash is not that of the {known.name} that audiocl ships: {_AGAIN}")
        elif real is not None:
            self.note(f"weights known: those of {real.name}, {'random numbers' if real.stand_in else real.source}")
        elif known is None:
            self.note(
                f"weights unknown: '{shown(row['backbone'], 60)}' is no backbone of this version; their hash tells them"
            )
        elif said.get("source") != known.source:
            self.note(f"weights unknown: called '{known.name}' but not read from {known.source}")
        else:
            self.note(
                f"weights of {known.name}, by its own account from {known.source}; their hash cannot be checked here"
            )

    def _stream(self) -> Stream | None:
        """Return the frozen stream, after holding the hashes of split and clips against it; None for own data."""
        row = self.row
        if row["own_data"]:
            kept = "the test rule and the audio" if self._says_origin() else "the test rule and the hash in the run id"
            self.note(
                f"own data: the clip list, the class order, {kept} cannot be checked without the audio and its TOML "
                "file; all else was"
            )
            return None
        try:
            stream, index_hash = frozen_stream(row["benchmark"], row["protocol"], row["order"])
        except AudioclError as cause:
            self.wrong("runs", str(cause).rstrip("."))
            return None
        if row["split_hash"] != stream.hash:
            self.wrong("runs", f"split_hash is not that of the frozen split of this version: {_AGAIN}")
        if row["index_hash"] != index_hash:
            self.wrong("runs", f"index_hash is not that of the frozen clips of this version: {_AGAIN}")
        benchmark = benchmarks.get(row["benchmark"])
        if row["first_session_epochs"] not in (None, benchmark.first_session_epochs):
            self.wrong("runs", f"first_session_epochs is not {benchmark.first_session_epochs}: {_AGAIN}")
        frames, heard = benchmark.frames, self.json["front_end"].get("frames")
        if heard != frames:
            self.wrong(
                "runs",
                f"front_end.frames is {shown(heard, 20)}, but {row['benchmark']} is heard for {frames}: {_AGAIN}",
            )
        return stream

    def _says_origin(self) -> bool:
        """Whether the row says what own and synthetic data put into the run id; results before schema 3 do not."""
        return self.row["first_session_epochs"] is not None and self.row["audio_key"] is not None

    def _run_id(self, stream: Stream | None) -> None:
        """Make the run id again from what decides the predictions, as `runner.run_id` does."""
        row, said = self.row, self.json["notes"].get("backbone", {})
        readable = {key: row[key] for key in ("method", "benchmark", "protocol", "backbone", "order", "seed")}
        settings: dict[str, Any] = {
            "config": self.json["method_config"],
            "split": row["split_hash"],
            "index": row["index_hash"],
            "weights": row["weights_hash"],
            "pool": said.get("pool") if isinstance(said, dict) else None,
            "layer": said.get("layer") if isinstance(said, dict) else None,
            "front_end": self.json["front_end"],
        }
        if "method_source_sha256" in self.json["notes"]:
            settings["source"] = self.json["notes"]["method_source_sha256"]
        own, told = row["own_data"] or row["mini"], self._says_origin()
        if own and told:
            settings["own"] = {"epochs": row["first_session_epochs"], "audio": row["audio_key"]}
        fresh = make_run_id(**readable, config_hash=sha256_json(settings))
        if row["mini"] and stream is not None:
            what = "audio" if told else "hash in the run id"
            self.note(f"synthetic data: the {what} cannot be checked without making it; all else was")
        hashed = told if own else stream is not None
        if fresh.rpartition("-")[0] != self.id.rpartition("-")[0]:
            self.wrong(
                "runs",
                f"run_id does not name the run's method, benchmark, protocol, backbone, order and seed: {_AGAIN}",
            )
        elif hashed and fresh != self.id:
            self.wrong("runs", f"run_id is not the one its settings, split and weights give ({fresh}): {_AGAIN}")

    # ---- sessions and predictions -----------------------------------------------------------------------------------

    def sessions_and_predictions(self) -> None:
        """Classes and clips of every session are the stream's, each test clip once after each session, labels right."""
        row, before = self.row, len(self.found.problems)
        last = int(self.predictions["after_session"].max()) if len(self.predictions) else -1
        first = int(self.predictions["after_session"].min()) if len(self.predictions) else -1
        if not 0 <= first <= last < MAX_SESSIONS:
            self.wrong("predictions", f"after_session must be 0 to {MAX_SESSIONS - 1}: {_AGAIN}")
            return
        numbers = sorted(session["session"] for session in self.sessions)
        whole = numbers == [last] and last > 0
        if not whole and numbers != list(range(last + 1)):
            self.wrong("sessions", f"session does not count 0 to {last}, the sessions tested: {_AGAIN}")
            return
        self._names()
        if len(self.found.problems) > before:
            return
        expected = self._frozen() if not row["own_data"] else self._own(last, whole)
        if expected is None:
            return
        self._check_sessions(expected, last, whole)
        if len(self.found.problems) == before:
            self._check_predictions(expected, last, whole)
        if whole:
            self.note("learned all classes at once (joint training): an upper reference, not an incremental learner")

    def _names(self) -> None:
        """Names of classes and clips are short and printable, since people will read them."""
        classes = {name for session in self.sessions for name in session["classes"]}
        for column in ("clip_id", "label", "predicted"):
            names = set(self.predictions[column].cat.categories) | (classes if column == "label" else set())
            odd = [n for n in names if not isinstance(n, str) or not 0 < len(n) <= MAX_NAME or _CONTROL.search(n)]
            if odd:
                self.wrong(
                    "predictions", f"{column} has the odd name '{shown(min(map(str, odd)))}': rename it and {_AGAIN}"
                )

    def _frozen(self) -> Expected | None:
        row = self.row
        try:
            stream, _ = frozen_stream(row["benchmark"], row["protocol"], row["order"])
        except AudioclError:
            return None  # told already
        names = [stream.classes[label] for label in stream.labels]
        sessions = stream.session_of_class[stream.labels].tolist()
        return Expected(
            tuple(tuple(stream.classes[c] for c in stream.session_classes(t)) for t in range(stream.num_sessions)),
            {
                clip: (session, name)
                for clip, session, name, test in zip(stream.clip_ids, sessions, names, stream.is_test, strict=True)
                if test
            },
            tuple(len(stream.rows(t, "train")) for t in range(stream.num_sessions)),
        )

    def _own(self, last: int, whole: bool) -> Expected | None:
        """What own data must be to agree with itself: the classes of its sessions, the clips of its last test."""
        by_session: list[list[str]] = [[] for _ in range(last + 1)]
        final = self.predictions[self.predictions["after_session"] == last]
        rows = list(zip(final["clip_id"], final["session"].tolist(), final["label"], strict=True))
        clips: dict[str, tuple[int, str]] = {}
        for clip, session, label in rows:
            if not 0 <= session <= last:
                self.wrong("predictions", f"session {session} of clip '{shown(clip)}' does not exist: {_AGAIN}")
                return None
            clips[clip] = (session, label)
        if whole:
            for session, label in sorted({(session, label) for _, session, label in rows}):
                by_session[session].append(label)
        else:
            for entry in self.sessions:
                by_session[entry["session"]] = list(entry["classes"])
        return Expected(tuple(map(tuple, by_session)), clips, None)

    def _check_sessions(self, expected: Expected, last: int, whole: bool) -> None:
        classes = expected.classes
        if len(classes) != last + 1:
            self.wrong("sessions", f"there are {last + 1} sessions, but the stream has {len(classes)}: {_AGAIN}")
            return
        flat = [name for names in classes for name in names]
        if len(set(flat)) != len(flat):
            self.wrong("sessions", f"classes lists a class twice: every class belongs to one session, {_AGAIN}")
            return
        for session in self.sessions:
            t = session["session"]
            wanted = flat if whole else list(classes[t])
            if session["classes"] != wanted and not (
                whole and self.row["own_data"] and sorted(session["classes"]) == sorted(flat)
            ):
                self.wrong("sessions", f"classes of session {t} are not those that the stream brings then: {_AGAIN}")
            if expected.train_clips is not None:
                clips = sum(expected.train_clips) if whole else expected.train_clips[t]
                if session["train_clips"] != clips:
                    self.wrong(
                        "sessions", f"train_clips of session {t} is {session['train_clips']}, not {clips}: {_AGAIN}"
                    )

    def _check_predictions(self, expected: Expected, last: int, whole: bool) -> None:
        """Compare row by row, in whole columns: TIMIT has 200,000 rows."""
        table, wrong = self.predictions, functools.partial(self.wrong, "predictions")
        clips = sorted(expected.clips)
        place = {clip: number for number, clip in enumerate(clips)}
        class_session = {name: t for t, names in enumerate(expected.classes) for name in names}
        number_of = {name: number for number, name in enumerate(class_session)}
        after, session = table["after_session"].to_numpy(np.int64), table["session"].to_numpy(np.int64)
        clip = _codes(table["clip_id"], place.get)
        label, predicted = _codes(table["label"], number_of.get), _codes(table["predicted"], number_of.get)

        def told(rows: np.ndarray) -> str:
            row = table.iloc[int(np.flatnonzero(rows)[0])]
            more = int(rows.sum()) - 1
            others = f" (and {more:,} rows more)" if more else ""
            return f"clip '{shown(row['clip_id'])}' after session {row['after_session']}{others}"

        if (unknown := clip < 0).any():
            wrong(f"{told(unknown)} is no test clip of this stream: {_AGAIN}")
            return
        right_session = np.array([expected.clips[name][0] for name in clips], dtype=np.int64)
        right_label = np.array([number_of.get(expected.clips[name][1], -2) for name in clips], dtype=np.int64)
        introduced = np.array(list(class_session.values()), dtype=np.int64)
        if (rows := label != right_label[clip]).any():
            wrong(f"label of {told(rows)} is not the clip's class: {_AGAIN}")
        if (rows := session != right_session[clip]).any():
            wrong(f"session of {told(rows)} is not the one that brought its class: {_AGAIN}")
        if (rows := (predicted < 0) | ((introduced[predicted] > after) & (not whole))).any():
            wrong(f"predicted of {told(rows)} is a class that was not learned by then: {_AGAIN}")
        if (rows := right_session[clip] > after).any():
            wrong(f"{told(rows)} is tested before its class was learned: {_AGAIN}")
        key = after * len(clips) + clip
        if (rows := pd.Series(key).duplicated().to_numpy()).any():
            wrong(f"{told(rows)} is there twice: test every clip once, {_AGAIN}")
        for t in [last] if whole else range(last + 1):
            here = np.zeros(len(clips), dtype=bool)
            here[clip[after == t]] = True
            missing = np.flatnonzero((right_session <= t) & ~here)
            if len(missing):
                wrong(
                    f"after session {t}, {len(missing):,} test clips are missing (the first is "
                    f"'{shown(clips[missing[0]])}'): {_AGAIN}"
                )
                break
        if whole and (after != last).any():
            wrong(f"a run that learned all classes at once is tested after session {last} only: {_AGAIN}")

    # ---- scores -----------------------------------------------------------------------------------------------------

    def scores(self) -> None:
        """Recompute everything that follows from the predictions."""
        try:
            differences = self.results.recompute(self.id)
        except ResultsError as cause:
            self.wrong("predictions", str(cause).rstrip("."))
            return
        for name, (stored, fresh) in list(differences.items())[:5]:
            table = "sessions" if name.startswith("session ") else "predictions" if name == "correct" else "runs"
            self.wrong(
                table, f"{name} is {_value(stored)}, but the predictions and sessions give {_value(fresh)}: {_AGAIN}"
            )


def fingerprint(predictions: pd.DataFrame) -> str:
    """Return a hash of what was predicted, whatever the run is called and however its rows are ordered."""
    columns = predictions[["after_session", "clip_id", "predicted"]].astype({"clip_id": object, "predicted": object})
    ordered = columns.sort_values(["after_session", "clip_id"], kind="stable")
    return sha256_json([ordered[name].tolist() for name in columns.columns])


def _codes(column: pd.Series, number: Callable[[str], int | None]) -> np.ndarray:
    """Return the number of every row's word, -1 where it has none; int64."""
    found = [number(word) for word in column.cat.categories]
    lookup = np.array([-1 if value is None else value for value in found], dtype=np.int64)
    return lookup[column.cat.codes.to_numpy(np.int64)] if len(lookup) else np.zeros(0, dtype=np.int64)


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else shown(value, 40)


def missing_orders(orders: Sequence[int], wanted: int) -> list[int]:
    """Return the class orders of 0..wanted-1 that are not among `orders`."""
    return sorted(set(range(wanted)) - set(orders))
