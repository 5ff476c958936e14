"""Packs and their verification: an honest pack passes whole; every hostile one is built here for real and refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiocl_bench import audit, backbones, benchmarks, corpora, registry, runner
from audiocl_bench.audit import Check
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.config import build
from audiocl_bench.errors import AudioclError, ResultsError
from audiocl_bench.files import sha256_file, sha256_json
from audiocl_bench.results import PREDICTIONS_SCHEMA, SCHEMAS, ResultsDir, build_result
from audiocl_bench.runner import Material, Plan
from audiocl_bench.submission import bounded, checks, collection, difference, pack, probe
from audiocl_bench.submission.collection import Report

ROOT = Path(__file__).resolve().parent.parent
BENCHMARK = "vocalset"  # the smallest of the six: 8 sessions, some 300 test clips

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def quick_probe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe files in this process, where a test needs none that may die: starting one takes longer than the test."""
    if "own_process" not in request.fixturenames:
        monkeypatch.setattr(collection, "refusals", probe_here)


def probe_here(files: Sequence[tuple[Path, str]]) -> dict[int, str]:
    answers = [probe.refusal(str(path), dict(bounded.LIMITS[table])) for path, table in files]
    return {number: told for number, told in enumerate(answers) if told}


@pytest.fixture
def own_process() -> None:
    """Probe files as it is really done."""


# ---------------------------------------------------------------------------------------------------------------------
# Honest runs, without audio: the frozen stream, made-up predictions, everything else as the runner writes it


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A tiny network that says it is eat-base, fetched from where that is."""
    network = backbones.load("eat-tiny", frames=benchmarks.get(BENCHMARK).frames)
    [row] = [row for row in backbones.list_rows() if row.name == "eat-base"]
    network.name, network.source, network.stand_in = row.name, row.source, False
    network.weights_hash = hashlib.sha256(b"eat-base").hexdigest()
    return network


def make(
    results: ResultsDir,
    backbone: Backbone,
    *,
    method: str = "ncm",
    order: int = 0,
    seed: int = 0,
    skill: float = 0.6,
    guesses: int | None = None,
    settings: dict[str, Any] | None = None,
) -> str:
    """Write a run as the runner would, with a learner that is right about a share `skill` of the clips."""
    benchmark = benchmarks.get(BENCHMARK)
    stream = benchmark.stream("paper", order)
    cls = registry.load(method)
    names = [stream.classes[label] for label in stream.labels]
    index_hash = corpora.index_hash(pd.DataFrame({"clip_id": list(stream.clip_ids), "label": names}))
    plan = Plan(cls, build(cls.Config, BENCHMARK, settings or {}, owner=method), seed)
    identity = runner.run_id(plan, Material(benchmark, stream, None, backbone, index_hash))  # type: ignore[arg-type]
    whole = cls.takes_whole_stream
    last = stream.num_sessions - 1
    draws = np.random.default_rng([order, seed] if guesses is None else guesses)
    sessions, predictions = [], []
    for t in [last] if whole else range(stream.num_sessions):
        rows = np.concatenate([stream.rows(i, "test") for i in range(t + 1)])
        known = sum(stream.session_sizes[: t + 1])
        guess = np.where(draws.random(len(rows)) < skill, stream.labels[rows], draws.integers(known, size=len(rows)))
        predictions.append(
            pd.DataFrame(
                {
                    "after_session": t,
                    "clip_id": [stream.clip_ids[row] for row in rows],
                    "session": stream.session_of_class[stream.labels[rows]],
                    "label": [stream.classes[label] for label in stream.labels[rows]],
                    "predicted": [stream.classes[label] for label in guess],
                }
            )
        )
        mine = range(stream.num_sessions) if whole else [t]
        sessions.append(
            {
                "session": t,
                "classes": [stream.classes[c] for i in mine for c in stream.session_classes(i)],
                "train_clips": sum(len(stream.rows(i, "train")) for i in mine),
                "train_seconds": 1.5,
                "eval_seconds": 0.5,
                "train_passes": 100,
                "eval_passes": 20,
                "block_runs": 120,
                "peak_memory_mb": 512.0,
                "trainable_parameters": 0,
                "kept_bytes": 4096,
                "encoder_version": 0,
                "diagnostics": {},
            }
        )
    meta = {
        "run_id": identity,
        "method": method,
        "benchmark": BENCHMARK,
        "protocol": "paper",
        "backbone": backbone.name,
        "order": order,
        "seed": seed,
        "own_data": False,
        "mini": False,
        "variant": plan.config.variant,
        "stand_in": backbone.stand_in,
        "audit_passed": True,
        "audit": audit.report(Check(name, True) for name in checks.AUDITS),
        "audiocl_version": "0.1.0",
        "git_commit": "0123456789" * 4,
        "split_hash": stream.hash,
        "index_hash": index_hash,
        "weights_hash": backbone.weights_hash,
        "front_end": backbone.front_end.describe(),
        "method_config": plan.config.as_dict(),
        "notes": {"backbone": backbone.describe()},
        "device": "cpu",
        "threads": 1,
        "python_version": "3.11.9",
        "library_versions": {"torch": "2.6.0"},
        "platform": "Linux",
        "started_at": "2026-01-01T10:00:00+00:00",
        "finished_at": "2026-01-01T10:10:00+00:00",
    }
    return results.write(build_result(meta, pd.DataFrame(sessions), pd.concat(predictions, ignore_index=True)))


@pytest.fixture(scope="module")
def honest(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> ResultsDir:
    """Two runs of ncm, orders 0 and 1. Never change them."""
    results = ResultsDir(tmp_path_factory.mktemp("honest") / "results")
    for order in (0, 1):
        make(results, backbone, order=order)
    return results


@pytest.fixture(scope="module")
def one(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> ResultsDir:
    """One run of ncm. Never change it: `mine` is a copy."""
    results = ResultsDir(tmp_path_factory.mktemp("one") / "results")
    make(results, backbone)
    return results


@pytest.fixture
def mine(one: ResultsDir, tmp_path: Path) -> ResultsDir:
    """A copy of one honest run, to be doctored."""
    shutil.copytree(one.path, tmp_path / "mine")
    return ResultsDir(tmp_path / "mine")


def edit(results: ResultsDir, table: str, change: Callable[[Rows], Rows | None]) -> None:
    """Rewrite a table of the only run: `change` gets its rows, and changes them or returns others."""
    [run_id] = results.run_ids()
    path = results.file(table, run_id)
    stored = pq.read_table(path)
    rows = stored.to_pylist()
    changed = change(rows)
    pq.write_table(pa.Table.from_pylist(rows if changed is None else changed, schema=stored.schema), path)


def write_rows(results: ResultsDir, table: str, content: pa.Table, *, keep: bool = True) -> None:
    """Replace a table of the only run by another Arrow table, with the metadata that audiocl looks for."""
    [run_id] = results.run_ids()
    path = results.file(table, run_id)
    metadata = pq.read_schema(path).metadata if keep else {}
    pq.write_table(content.replace_schema_metadata(metadata), path, compression="zstd")


def set_fields(**fields: Any) -> Callable[[Rows], None]:
    """Return a change that sets columns of every row."""

    def change(rows: Rows) -> None:
        for row in rows:
            row.update(fields)

    return change


def packed(results: ResultsDir, out: Path) -> Path:
    """Pack all runs of a directory; the manifest is true of whatever its files have become."""
    pack.write(results, results.run_ids(), out)
    return out


def refused(report: Report, *told: str) -> None:
    """The report has a problem with all of these words, and every problem is one line that ends in a full stop."""
    assert not report.passed
    assert all(problem.endswith(".") and "\n" not in problem for problem in report.problems)
    hits = [problem for problem in report.problems if all(text in problem for text in told)]
    assert hits, report.problems


# ---------------------------------------------------------------------------------------------------------------------
# The honest case


@pytest.mark.usefixtures("own_process")
def test_an_honest_pack_passes(honest: ResultsDir, tmp_path: Path) -> None:
    report = collection.verify_pack(packed(honest, tmp_path / "p.zip"))
    assert report.problems == ()
    assert sorted(report.runs["run_id"]) == list(honest.run_ids())
    assert report.predictions == sum(len(honest.predictions(run_id)) for run_id in honest.run_ids())


def test_notes_say_what_is_missing_and_what_is_unknown(honest: ResultsDir, tmp_path: Path) -> None:
    notes = collection.verify_pack(packed(honest, tmp_path / "p.zip")).notes
    assert any("ncm on vocalset" in note and "lacks orders 2, 3, 4" in note for note in notes)
    assert any("weights of eat-base" in note and "cannot be checked" in note for note in notes)


def test_weights_that_ship_with_audiocl_are_known(backbone: Backbone, tmp_path: Path) -> None:
    shipped, network = backbones.load("eat-mini", frames=64), copy.copy(backbone)
    network.name, network.source, network.weights_hash = shipped.name, shipped.source, shipped.weights_hash
    make(ResultsDir(tmp_path / "true"), network)
    report = collection.verify_collection(tmp_path / "true")
    assert report.problems == ()
    assert any("weights known: those of eat-mini, shipped" in note for note in report.notes)

    network.weights_hash = backbone.weights_hash
    make(ResultsDir(tmp_path / "false"), network)
    refused(collection.verify_collection(tmp_path / "false"), "the weights hash is not that of the eat-mini")


def test_five_orders_are_complete_also_across_collections(
    honest: ResultsDir, backbone: Backbone, tmp_path: Path
) -> None:
    others = ResultsDir(tmp_path / "others")
    for order in (2, 3, 4):
        make(others, backbone, order=order)
    report = collection.verify_collection(honest.path, [others])
    assert report.passed
    assert not [note for note in report.notes if "lacks order" in note]


def test_same_runs_same_bytes(honest: ResultsDir, tmp_path: Path) -> None:
    first, second = honest.run_ids()
    pack.write(honest, [first, second], tmp_path / "a.zip", description="d")
    copy = ResultsDir(tmp_path / "copy")
    shutil.copytree(honest.path, copy.path)
    for file in copy.path.rglob("*.parquet"):
        os.utime(file, (1_000_000, 1_000_000))
    pack.write(copy, [second, first, first], tmp_path / "b.zip", description="d")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    pack.write(honest, [first, second], tmp_path / "c.zip", description="e")
    assert (tmp_path / "a.zip").read_bytes() != (tmp_path / "c.zip").read_bytes()


def test_files_go_into_the_pack_as_they_are(honest: ResultsDir, tmp_path: Path) -> None:
    path = packed(honest, tmp_path / "p.zip")
    with zipfile.ZipFile(path) as bundle:
        for run_id in honest.run_ids():
            for table in SCHEMAS:
                assert bundle.read(f"{table}/{run_id}.parquet") == honest.file(table, run_id).read_bytes()
        manifest = json.loads(bundle.read("manifest.json"))
    assert [run["run_id"] for run in manifest["runs"]] == list(honest.run_ids())
    assert manifest["runs"][0]["config"] == json.loads(honest.run(honest.run_ids()[0])["method_config"])
    assert manifest["runs"][0]["environment"]["libraries"] == {"torch": "2.6.0"}


def test_a_pack_never_overwrites_something_else(honest: ResultsDir, tmp_path: Path) -> None:
    out = packed(honest, tmp_path / "p.zip")
    packed(honest, out)  # the same once more is no loss
    out.write_text("my thesis", encoding="utf-8")
    with pytest.raises(ResultsError, match="holds something else"):
        packed(honest, out)
    assert out.read_text(encoding="utf-8") == "my thesis"


def test_choosing_runs(honest: ResultsDir, backbone: Backbone, tmp_path: Path) -> None:
    results = ResultsDir(tmp_path / "r")
    shutil.copytree(honest.path, results.path)
    pace = make(results, backbone, method="pace")
    variant = make(results, backbone, method="pace", settings={"preset": "no-msa"})
    assert pack.choose(results, ["ncm"]) == honest.run_ids()
    assert set(pack.choose(results, ["pace"])) == {pace, variant}
    assert pack.choose(results, ["pace@no-msa"]) == (variant,)
    assert pack.choose(results, ["ncm-vocalset-paper-eat_base-o1", "ncm"]) == honest.run_ids()
    with pytest.raises(ResultsError, match="matches 2 runs"):
        pack.choose(results, ["ncm-vocal"])
    with pytest.raises(AudioclError, match="unknown run 'nothing'"):
        pack.choose(results, ["nothing"])


def test_the_audits_are_those_of_the_runner() -> None:
    source = Path(runner.__file__).read_text(encoding="utf-8")
    assert all(f"audit.{name}(" in source for name in checks.AUDITS)
    assert source.count("            audit.") == len(checks.AUDITS)


def test_joint_training_passes_and_is_called_so(backbone: Backbone, tmp_path: Path) -> None:
    results = ResultsDir(tmp_path / "r")
    make(results, backbone, method="joint-closed")
    report = collection.verify_collection(results.path)
    assert report.problems == ()
    assert any("upper reference" in note for note in report.notes)


@pytest.mark.slow
def test_the_repository_s_own_collections_pass() -> None:
    report = collection.verify_collection(ROOT / "results" / "examples")
    assert report.problems == ()
    assert any("cannot be checked without the audio" in note for note in report.notes)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that do not follow


@pytest.mark.parametrize("score", ["final_accuracy", "micro_accuracy", "forgetting", "plasticity"])
def test_an_edited_score_is_refused(mine: ResultsDir, tmp_path: Path, score: str) -> None:
    edit(mine, "runs", lambda rows: rows[0].update({score: rows[0][score] + 0.01}))
    refused(collection.verify_pack(packed(mine, tmp_path / "p.zip")), score, "the predictions and sessions give")


def test_an_edited_session_accuracy_is_refused(mine: ResultsDir) -> None:
    edit(mine, "sessions", lambda rows: rows[3].update(accuracy=rows[3]["accuracy"] + 1))
    refused(collection.verify_collection(mine.path), "session 3: accuracy")


def test_edited_predictions_are_refused(mine: ResultsDir) -> None:
    def improve(rows: Rows) -> None:
        for row in [row for row in rows if not row["correct"]][-3:]:
            row.update(predicted=row["label"], correct=True)

    edit(mine, "predictions", improve)
    refused(collection.verify_collection(mine.path), "final_accuracy", "the predictions and sessions give")


def test_a_false_correct_column_is_refused(mine: ResultsDir) -> None:
    edit(mine, "predictions", set_fields(correct=True))
    refused(collection.verify_collection(mine.path), "predictions/", "correct")


@pytest.mark.parametrize(
    ("table", "field", "value", "told"),
    [
        ("runs", "final_accuracy", float("nan"), "finite"),
        ("runs", "forgetting", float("nan"), "finite"),
        ("runs", "plasticity", float("inf"), "finite"),
        ("runs", "micro_accuracy", 101.0, "0 to 100"),
        ("runs", "backward_transfer", -101.0, "-100 to 100"),
        ("runs", "fresh_final_accuracy", 100.5, "0 to 100"),
        ("runs", "train_seconds", -1.0, "0 or more"),
        ("runs", "kept_bytes", -1, "0 or more"),
        ("sessions", "new_accuracy", float("nan"), "finite"),
        ("sessions", "peak_memory_mb", float("-inf"), "finite"),
    ],
)
def test_numbers_out_of_range_are_refused(mine: ResultsDir, table: str, field: str, value: float, told: str) -> None:
    edit(mine, table, set_fields(**{field: value}))
    refused(collection.verify_collection(mine.path), table, field, told)


# ---------------------------------------------------------------------------------------------------------------------
# Predictions that are not those of the benchmark


def of_last(rows: Rows) -> Rows:
    return [row for row in rows if row["after_session"] == 7]


def swap_label(rows: Rows) -> None:
    """Call a wrong answer right by changing the clip's label, everywhere."""
    wrong = next(row for row in of_last(rows) if not row["correct"] and row["session"] == 7)
    for row in rows:
        if row["clip_id"] == wrong["clip_id"]:
            row.update(label=wrong["predicted"], correct=row["predicted"] == wrong["predicted"])


def drop_a_clip(rows: Rows) -> Rows:
    gone = of_last(rows)[0]["clip_id"]
    return [row for row in rows if row["clip_id"] != gone]


def drop_a_session(rows: Rows) -> Rows:
    return [row for row in rows if row["after_session"] != 3]


def predict_the_future(rows: Rows) -> None:
    first = next(row for row in rows if row["after_session"] == 0)
    first.update(predicted=of_last(rows)[-1]["label"] if first["label"] != of_last(rows)[-1]["label"] else "x")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: [*rows, rows[-1]], "is there twice"),
        (lambda rows: [*rows[:-1], {**rows[-1], "clip_id": rows[-2]["clip_id"]}], "is there twice"),
        (drop_a_clip, "test clips are missing"),
        (drop_a_session, "missing"),
        (lambda rows: rows[0].update(clip_id="m1_fast_belt_a"), "is no test clip of this stream"),
        (swap_label, "is not the clip's class"),
        (predict_the_future, "was not learned by then"),
        (lambda rows: rows[0].update(predicted="no such class"), "was not learned by then"),
        (lambda rows: rows[-1].update(session=0), "is not the one that brought its class"),
        (lambda rows: rows[-1].update(after_session=9), "session does not count"),
        (lambda rows: rows[-1].update(after_session=10**9), "after_session must be"),
        (lambda rows: rows[0].update(after_session=-1), "after_session must be"),
        (lambda rows: rows[0].update(predicted="\x1b[2Jsing"), "odd name"),
        (lambda rows: rows[0].update(clip_id="x" * 600), "odd name"),
        (lambda rows: [], "another run than its name says"),
    ],
)
def test_other_clips_labels_or_sessions_are_refused(
    mine: ResultsDir, change: Callable[[Rows], Rows | None], told: str
) -> None:
    edit(mine, "predictions", change)
    report = collection.verify_collection(mine.path)
    refused(report, "predictions/" if "count" not in told else "sessions/", told)
    assert "\x1b" not in "".join(report.problems)


def test_a_training_clip_is_no_test_clip(mine: ResultsDir) -> None:
    stream = benchmarks.get(BENCHMARK).stream("paper", 0)
    trained = stream.clip_ids[int(stream.rows(0, "train")[0])]
    edit(mine, "predictions", lambda rows: rows[0].update(clip_id=trained))
    refused(collection.verify_collection(mine.path), trained, "is no test clip of this stream")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[1].update(classes=rows[2]["classes"]), "classes of session 1"),
        (lambda rows: rows[1].update(train_clips=1), "train_clips of session 1 is 1"),
        (lambda rows: rows[:-1], "session does not count 0 to 7"),
        (lambda rows: [*rows, rows[-1]], "session does not count 0 to 7"),
    ],
)
def test_other_sessions_are_refused(mine: ResultsDir, change: Callable[[Rows], Rows | None], told: str) -> None:
    edit(mine, "sessions", change)
    refused(collection.verify_collection(mine.path), "sessions/", told)


# ---------------------------------------------------------------------------------------------------------------------
# Provenance that is not true


def change_config(rows: Rows) -> None:
    settings = {**json.loads(rows[0]["method_config"]), "metric": "euclidean"}
    rows[0]["method_config"] = json.dumps(settings)


def change_config_and_hash(rows: Rows) -> None:
    change_config(rows)
    settings = json.loads(rows[0]["method_config"])
    rows[0]["config_hash"] = sha256_json({"method": rows[0]["method"], "config": settings})


def fail_audit(rows: Rows) -> None:
    outcome = json.loads(rows[0]["audit"])
    outcome["batch_independence"]["passed"] = False
    rows[0].update(audit=json.dumps(outcome), audit_passed=True)


def forget_audit(rows: Rows) -> None:
    outcome = json.loads(rows[0]["audit"])
    del outcome["state_is_complete"]
    rows[0]["audit"] = json.dumps(outcome)


def change_note(key: str, value: Any) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        notes = json.loads(rows[0]["notes"])
        notes["backbone"][key] = value
        rows[0]["notes"] = json.dumps(notes)

    return change


def random_weights(rows: Rows) -> None:
    digest = backbones.load("eat-tiny").weights_hash
    rows[0]["weights_hash"] = digest
    change_note("weights_hash", digest)(rows)


TOMORROW = (datetime.now(UTC) + timedelta(days=3)).isoformat(timespec="seconds")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_config, ("config_hash",)),
        (change_config_and_hash, ("run_id is not the one its settings",)),
        (set_fields(split_hash="0" * 64), ("split_hash is not that of the frozen split",)),
        (set_fields(index_hash="0" * 64), ("index_hash is not that of the frozen clips",)),
        (set_fields(split_hash="../.."), ("split_hash", "no SHA-256")),
        (set_fields(order=1), ("split_hash",)),
        (set_fields(order=7), ("has no order 7",)),
        (set_fields(protocol="grouped"), ("split_hash",)),
        (set_fields(protocol="easy"), ("unknown protocol",)),
        (set_fields(benchmark="esc50"), ("split_hash",)),
        (set_fields(benchmark="my-data"), ("own data must be marked",)),
        (set_fields(own_data=True, comparable=False), ("own_data is true",)),
        (set_fields(own_data=True, benchmark="mini-vocalset", protocol="paper", comparable=False), ("no own data",)),
        (set_fields(mini=True, comparable=False), ("mini is true",)),
        (set_fields(comparable=False), ("comparable does not follow",)),
        (set_fields(seed=5), ("run_id does not name",)),
        (set_fields(method="pace"), ("config_hash",)),
        (set_fields(variant="no-msa"), ("variant is 'no-msa'",)),
        (set_fields(weights_hash="1" * 64), ("notes.backbone.weights_hash",)),
        (change_note("layer", 1), ("run_id is not the one",)),
        (change_note("front_end", {}), ("notes.backbone.front_end",)),
        (set_fields(notes="{}"), ("notes do not describe the backbone",)),
        (random_weights, ("stand_in is false, but eat-tiny has random weights",)),
        (fail_audit, ("audit 'batch_independence' failed",)),
        (forget_audit, ("audit has no outcome of 'state_is_complete'",)),
        (set_fields(audit_passed=False), ("declares a leak",)),
        (set_fields(audit="{}"), ("audit has no outcome",)),
        (set_fields(started_at="2026-01-01 10:00"), ("started_at", "no ISO 8601 time")),
        (set_fields(started_at="yesterday"), ("started_at", "no ISO 8601 time")),
        (set_fields(started_at="2026-01-01T11:00:00+00:00"), ("finished_at lies before",)),
        (set_fields(finished_at=TOMORROW), ("finished_at", "cannot be")),
        (set_fields(started_at="1970-01-01T00:00:00+00:00"), ("started_at", "cannot be")),
        (set_fields(git_commit="main; rm -rf /"), ("git_commit", "no commit")),
        (set_fields(method_config="{not json"), ("method_config is not valid JSON",)),
        (set_fields(method_config="[" * 100_000), ("method_config", "nested")),
        (set_fields(method_config='{"lr": NaN}'), ("method_config", "NaN is no JSON number")),
        (set_fields(method_config='{"lr": 1e999}'), ("method_config", "too large")),
        (set_fields(audit='{"a": 1, "a": 2}'), ("audit", "twice")),
        (set_fields(library_versions="[]"), ("library_versions is no JSON object",)),
        (set_fields(device="cpu\x1b[31m"), ("device", "control characters")),
        (set_fields(platform="x" * 5_000), ("platform", "longer than 1,000")),
    ],
)
def test_untrue_provenance_is_refused(
    mine: ResultsDir, change: Callable[[Rows], Rows | None], told: tuple[str, ...]
) -> None:
    edit(mine, "runs", change)
    refused(collection.verify_collection(mine.path), "runs/", *told)


def test_shorter_inputs_are_not_the_benchmark(mine: ResultsDir) -> None:
    def change(rows: Rows) -> None:
        front_end = {**json.loads(rows[0]["front_end"]), "frames": 128}
        rows[0]["front_end"] = json.dumps(front_end)
        change_note("front_end", front_end)(rows)

    edit(mine, "runs", change)
    refused(collection.verify_collection(mine.path), "front_end.frames is 128, but vocalset is heard for 512")


def test_a_renamed_run_is_refused(mine: ResultsDir) -> None:
    [run_id] = mine.run_ids()
    for table in SCHEMAS:
        mine.file(table, run_id).rename(mine.file(table, "ncm-vocalset-best"))
    refused(collection.verify_collection(mine.path), "another run than its name says")


def test_a_run_under_a_name_of_its_own_is_refused(mine: ResultsDir) -> None:
    for table in SCHEMAS:
        edit(mine, table, set_fields(run_id="ncm-vocalset-paper-eat_base-o0-s0-00000000"))
        path = mine.file(table, mine.run_ids()[0]) if table != "runs" else None
        if path is not None:
            path.rename(path.with_name("ncm-vocalset-paper-eat_base-o0-s0-00000000.parquet"))
    path = mine.file("runs", mine.run_ids()[0])
    path.rename(path.with_name("ncm-vocalset-paper-eat_base-o0-s0-00000000.parquet"))
    refused(collection.verify_collection(mine.path), "run_id is not the one its settings, split and weights give")


# ---------------------------------------------------------------------------------------------------------------------
# Tables that are no tables


def test_a_schema_from_the_future_is_refused(mine: ResultsDir) -> None:
    [run_id] = mine.run_ids()
    for table in SCHEMAS:
        path = mine.file(table, run_id)
        content = pq.read_table(path)
        metadata = {**content.schema.metadata, b"audiocl_schema_version": b"99"}
        pq.write_table(content.replace_schema_metadata(metadata), path)
    refused(collection.verify_collection(mine.path), "schema 99", "upgrade audiocl")


def retyped(column: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(content: pa.Table) -> pa.Table:
        at = content.schema.get_field_index(column)
        return content.set_column(at, pa.field(column, kind), content.column(column).cast(kind))

    return change


def extended(content: pa.Table) -> pa.Table:
    """Give a column an extension type, which other versions of pyarrow would have unpickled."""
    at = content.schema.get_field_index("diagnostics")
    field = pa.field(
        "diagnostics",
        pa.string(),
        nullable=False,
        metadata={b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(1)},
    )
    return content.set_column(at, field, content.column("diagnostics"))


def known_extension(content: pa.Table) -> pa.Table:
    at = content.schema.get_field_index("diagnostics")
    values = pa.ExtensionArray.from_storage(pa.json_(), content.column("diagnostics").combine_chunks())
    return content.set_column(at, pa.field("diagnostics", pa.json_(), nullable=False), values)


def nested(content: pa.Table) -> pa.Table:
    at = content.schema.get_field_index("kept_bytes")
    values = pa.array([{"a": value} for value in content.column("kept_bytes").to_pylist()])
    return content.set_column(at, "kept_bytes", values)


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("runs", retyped("final_accuracy", pa.float32())),
        ("runs", retyped("order", pa.int64())),
        ("runs", retyped("notes", pa.large_string())),
        ("runs", lambda content: content.drop_columns(["seed"])),
        ("runs", lambda content: content.append_column("rank", pa.array([1]))),
        ("sessions", nested),
        ("predictions", retyped("clip_id", pa.string())),
        ("predictions", lambda content: content.rename_columns(["a", *content.column_names[1:]])),
    ],
)
def test_odd_types_and_columns_are_refused(
    mine: ResultsDir, table: str, change: Callable[[pa.Table], pa.Table]
) -> None:
    [run_id] = mine.run_ids()
    content = pq.read_table(mine.file(table, run_id))
    write_rows(mine, table, change(content))
    refused(collection.verify_collection(mine.path), f"{table}/", "schema")


@pytest.mark.parametrize("change", [known_extension, extended])
def test_extension_types_are_refused(mine: ResultsDir, change: Callable[[pa.Table], pa.Table]) -> None:
    [run_id] = mine.run_ids()
    write_rows(mine, "sessions", change(pq.read_table(mine.file("sessions", run_id))))
    refused(collection.verify_collection(mine.path), "sessions/", "extension type in column 'diagnostics'")


def test_a_foreign_parquet_file_is_refused(mine: ResultsDir) -> None:
    write_rows(mine, "predictions", pa.table({"x": [1]}), keep=False)
    refused(collection.verify_collection(mine.path), "predictions/", "not written by audiocl")


class _Boom:
    """Makes a file if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("content", ["pickle", "text", "empty", "half", "tail"])
@pytest.mark.usefixtures("own_process")
def test_what_is_no_parquet_is_refused(mine: ResultsDir, tmp_path: Path, content: str) -> None:
    [run_id] = mine.run_ids()
    path = mine.file("sessions", run_id)
    data = path.read_bytes()
    contents = {
        "pickle": pickle.dumps(_Boom(tmp_path / "boom")),
        "text": b"run_id,session\n",
        "empty": b"",
        "half": data[: len(data) // 2],
        "tail": data[:100] + bytes(len(data) - 500) + data[-400:],
    }
    path.write_bytes(contents[content])
    refused(collection.verify_collection(mine.path), "sessions/", "damaged or no Parquet file")
    assert not (tmp_path / "boom").exists()


@pytest.mark.usefixtures("own_process")
def test_too_many_rows_are_refused_before_they_are_read(mine: ResultsDir, tmp_path: Path) -> None:
    """Eleven million rows in a few kilobytes."""
    [run_id] = mine.run_ids()
    rows = 11_000_000
    one_word = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([run_id]))
    zeros = pa.array(np.zeros(rows, np.int32))
    columns = [one_word, zeros, one_word, zeros, one_word, one_word, pa.array(np.zeros(rows, bool))]
    write_rows(mine, "predictions", pa.table(columns, names=PREDICTIONS_SCHEMA.names))
    assert mine.file("predictions", run_id).stat().st_size < 10_000_000
    report = collection.verify_pack(packed(mine, tmp_path / "p.zip"))
    refused(report, "states 11,000,000 rows, but at most 10,000,000 are read")


def test_a_long_list_in_one_row_is_refused_before_it_is_read(mine: ResultsDir) -> None:
    def change(rows: Rows) -> None:
        rows[0]["classes"] = ["a"] * 1_100_000

    edit(mine, "sessions", change)
    refused(collection.verify_collection(mine.path), "values in one column")


@pytest.mark.usefixtures("own_process")
def test_text_that_unpacks_beyond_memory_is_refused(
    mine: ResultsDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long text, stored once and meant by every row: nothing in the metadata tells how much it becomes."""
    monkeypatch.setattr(bounded, "PROBE_MEMORY", 400_000_000)
    [run_id] = mine.run_ids()
    content = pq.read_table(mine.file("sessions", run_id))
    many = pa.concat_tables([content] * 120)
    at = many.schema.get_field_index("diagnostics")
    long = pa.array(["x" * 5_000_000])
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(many), np.int32)), long)
    # Written as a dictionary, but the file's own account says plain text, so a reader makes every row's copy.
    path = mine.file("sessions", run_id)
    metadata = content.schema.metadata
    shadow = many.set_column(at, pa.field("diagnostics", words.type, nullable=False), words)
    with pq.ParquetWriter(path, shadow.schema.with_metadata(metadata), store_schema=False, compression="zstd") as out:
        out.write_table(shadow.replace_schema_metadata(metadata))
    assert path.stat().st_size < 1_000_000
    refused(collection.verify_pack(packed(mine, tmp_path / "p.zip")), "sessions/", "more than the memory allowed")


@pytest.mark.parametrize("words", [["cat", "dog", "cat"], ["cat", None]])
def test_a_dictionary_with_a_word_twice_or_none_is_refused(words: list[str | None]) -> None:
    """Writers join such words, readers stumble over them."""
    batch = pa.record_batch([pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(words))], names=["predicted"])
    assert "lists a word twice or an empty one in column 'predicted'" in probe._odd(batch)
    fine = pa.record_batch([pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["cat", "dog"]))], names=["p"])
    assert probe._odd(fine) == ""


@pytest.mark.usefixtures("own_process")
def test_a_file_that_kills_the_reader_is_refused(
    mine: ResultsDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text(
        "import os, signal, sys\nsys.stdin.read()\nprint(0)\nprint('')\nprint(1, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(bounded, "_PROBE", deadly)
    report = collection.verify_collection(mine.path)
    refused(report, "sessions/", "made the Parquet reader crash")
    refused(report, "predictions/", "was not read")


@pytest.mark.usefixtures("own_process")
def test_a_reader_that_cannot_start_is_no_fault_of_the_file(
    mine: ResultsDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_library\n", encoding="utf-8")
    monkeypatch.setattr(bounded, "_PROBE", broken)
    with pytest.raises(ResultsError, match=r"could not start .*no_such_library"):
        collection.verify_collection(mine.path)


def test_too_large_a_file_is_refused_unread(mine: ResultsDir) -> None:
    [run_id] = mine.run_ids()
    with mine.file("runs", run_id).open("r+b") as handle:
        handle.truncate(11_000_000)
    refused(collection.verify_collection(mine.path), "runs/", "at most 10.0 MB")


# ---------------------------------------------------------------------------------------------------------------------
# Archives that are no packs


@pytest.fixture(scope="module")
def good(one: ResultsDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(one, tmp_path_factory.mktemp("good") / "good.zip")


def rebuilt(good: Path, out: Path, *, manifest: Callable[[dict[str, Any]], Any] | None = None, **more: bytes) -> Path:
    """Write a pack's members anew, its manifest changed, with further members."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "manifest.json" and manifest is not None:
                content = json.loads(data)
                changed = manifest(content)
                data = changed if isinstance(changed, bytes) else json.dumps(changed or content).encode()
            target.writestr(name, data)
        for name, data in more.items():
            target.writestr(name, data)
    return out


def refuses(path: Path, *told: str) -> None:
    with pytest.raises(ResultsError) as raised:
        collection.verify_pack(path)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    for text in told:
        assert text in sentence, sentence


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path / "missing.zip", "cannot be read")
    for name, data in {"empty": b"", "text": b"hello", "png": b"\x89PNG\r\n\x1a\n", "pk": b"PK\x03\x04"}.items():
        (tmp_path / name).write_bytes(data)
        refuses(tmp_path / name)


def test_a_tar_is_refused(one: ResultsDir, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar.gz", "w:gz") as bundle:
        bundle.add(one.path, "pack")
    refuses(tmp_path / "p.tar.gz", "is no submission pack")


def test_a_truncated_pack_is_refused(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    for share in (0.01, 0.3, 0.7, 0.99):
        (tmp_path / "cut.zip").write_bytes(data[: int(share * len(data))])
        refuses(tmp_path / "cut.zip", "truncated")
    (tmp_path / "cut.zip").write_bytes(data[:-1])
    refuses(tmp_path / "cut.zip")
    middle = len(data) // 2
    (tmp_path / "hole.zip").write_bytes(data[:middle] + data[middle + 50 :])
    refuses(tmp_path / "hole.zip")


def test_a_flipped_bit_is_refused(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bit.zip").write_bytes(data)
    refuses(tmp_path / "bit.zip", "damaged")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.parquet",
        "runs/../../evil.parquet",
        "/etc/evil.parquet",
        "C:/evil.parquet",
        "runs\\evil.parquet",
        "runs/evil.pkl",
        "evil.pkl",
        "runs/evil.parquet.py",
        "runs/.hidden.parquet",
        "runs/sub/evil.parquet",
        "predictions/",
        "__MACOSX/._x",
        "setup.py",
        "runs/evil\n.parquet",
        "Runs/x.parquet",
    ],
)
def test_a_foreign_member_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "boom"
    path = rebuilt(good, tmp_path / "p.zip", **{name: pickle.dumps(_Boom(mark))})
    refuses(path)
    assert not mark.exists()
    assert {file.name for file in tmp_path.iterdir()} == {"p.zip"}


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_is_refused(good: Path, tmp_path: Path, kind: int) -> None:
    path = rebuilt(good, tmp_path / "p.zip")
    with zipfile.ZipFile(path, "a") as bundle:
        info = zipfile.ZipInfo("runs/link.parquet")
        info.create_system, info.external_attr = 3, (kind | 0o777) << 16
        bundle.writestr(info, "/etc/passwd")
    refuses(path, "runs/link.parquet", "link" if kind == stat.S_IFLNK else "device")


def test_a_member_that_comes_twice_is_refused(good: Path, tmp_path: Path) -> None:
    path = rebuilt(good, tmp_path / "p.zip")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as bundle:
        bundle.writestr("manifest.json", "{}")
    refuses(path, "twice")


def test_a_member_that_the_manifest_does_not_list_is_refused(good: Path, tmp_path: Path) -> None:
    refuses(rebuilt(good, tmp_path / "p.zip", **{"runs/extra.parquet": b"x"}), "runs/extra.parquet", "does not list")


def test_a_decompression_bomb_is_refused_unopened(good: Path, tmp_path: Path) -> None:
    path = rebuilt(good, tmp_path / "p.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("predictions/bomb.parquet", bytes(100_000_000))
    assert path.stat().st_size < 1_000_000
    refuses(path, "predictions/bomb.parquet is compressed")


def test_a_member_that_overstates_its_size_is_refused(good: Path, tmp_path: Path) -> None:
    """Its header claims 100 MB, stored, in a file of some kilobytes."""
    data = bytearray(good.read_bytes())
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)  # the second entry of the directory
    data[at + 20 : at + 28] = struct.pack("<LL", 100_000_000, 100_000_000)
    (tmp_path / "p.zip").write_bytes(data)
    refuses(tmp_path / "p.zip")


def test_members_that_overlap_are_refused(good: Path, tmp_path: Path) -> None:
    """Two entries of the directory that mean the same bytes: the classic way to a bomb without compression."""
    with zipfile.ZipFile(good) as bundle:
        infos = bundle.infolist()
        predictions = max(infos, key=lambda info: info.file_size)
        content = {info.filename: bundle.read(info) for info in infos}
    size = sum(map(len, content.values()))
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as target:
        for name, data in content.items():
            target.writestr(name, data)
        where = target.getinfo(predictions.filename)
        for number in range(size // predictions.file_size + 3):
            twin = zipfile.ZipInfo(f"predictions/twin{number}.parquet")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(twin, field, getattr(where, field))
            target.filelist.append(twin)
            target.NameToInfo[twin.filename] = twin
        target._didModify = True  # type: ignore[attr-defined]
    refuses(tmp_path / "p.zip", "overlap")


def test_a_crowded_directory_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as bundle:
        for number in range(7_000):
            bundle.writestr(f"runs/{number}.parquet", b"")
    refuses(tmp_path / "p.zip", "more than 6,001 members")


def test_an_encrypted_member_is_refused(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "p.zip").write_bytes(data)
    refuses(tmp_path / "p.zip", "encrypted")


# ---------------------------------------------------------------------------------------------------------------------
# Manifests that lie


def of_first(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["runs"][0].update(fields)

    return change


def lie_about(table: str, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["runs"][0]["files"][table][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lie_about("predictions", "sha256", "0" * 64), ("predictions/", "is not the file")),
        (lie_about("runs", "bytes", 1), ("runs/", "is not the file")),
        (lie_about("runs", "bytes", "many"), ("runs/", "is not the file")),
        (lambda content: content["runs"].append(content["runs"][0]), ("lists a run twice",)),
        (lambda content: content["runs"].clear(), ("lists no runs",)),
        (lambda content: content.update(version=2), ("version", "upgrade audiocl")),
        (lambda content: content.update(results_schema=99), ("results_schema", "99", "upgrade audiocl")),
        (lambda content: content.update(version=True), ("version", "no whole number")),
        (lambda content: content.update(format="zip"), ("format",)),
        (lambda content: content.update(run="rm -rf /"), ("unknown ones (run)",)),
        (lambda content: {k: v for k, v in content.items() if k != "licence"}, ("lacks fields", "licence")),
        (lambda content: content.update(licence="mine alone"), ("CC0-1.0",)),
        (lambda content: content.update(description="x" * 3_000), ("description", "2,000")),
        (lambda content: content.update(contact=["a"]), ("contact",)),
        (of_first(run_id="../../evil"), ("entry 0 of 'runs'",)),
        (of_first(run_id="other"), ("lacks predictions/other.parquet",)),
        (of_first(score=99.0), ("entry 0 of 'runs'",)),
        (of_first(files={}), ("entry 0 of 'runs'",)),
        (lambda content: [content], ("format",)),
        (lambda content: b"not json", ("not valid JSON",)),
        (lambda content: b"\xff\xfe", ("not valid JSON",)),
        (lambda content: b"[" * 1_000_000, ("nested",)),
        (lambda content: b'{"format": NaN}', ("NaN is no JSON number",)),
        (lambda content: b'{"format": 1, "format": 2}', ("twice",)),
        (lambda content: b'{"version": ' + b"9" * 5_000 + b"}", ("not valid JSON",)),
    ],
)
def test_a_lying_manifest_is_refused(
    good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], told: tuple[str, ...]
) -> None:
    refuses(
        rebuilt(good, tmp_path / "p.zip", manifest=change),
        "manifest.json" if "lacks predictions" not in told[0] else "",
        *told,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "pace"),
        ("benchmark", "esc50"),
        ("seed", 3),
        ("config", {"metric": "euclidean"}),
        ("environment", {}),
        ("config_hash", "0" * 64),
    ],
)
def test_a_manifest_that_says_other_than_the_run_is_refused(good: Path, tmp_path: Path, field: str, value: Any) -> None:
    path = rebuilt(good, tmp_path / "p.zip", manifest=of_first(**{field: value}))
    refused(collection.verify_pack(path), "manifest.json", f"'{field}'")


def test_a_manifest_too_large_to_read_is_refused(good: Path, tmp_path: Path) -> None:
    path = rebuilt(good, tmp_path / "p.zip", manifest=lambda content: b" " * 33_000_000)
    refuses(path, "manifest.json", "at most 32.0 MB")


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def test_what_belongs_in_no_collection_is_refused(mine: ResultsDir, tmp_path: Path) -> None:
    (mine.path / "README.md").write_text("mine\n", encoding="utf-8")
    assert collection.verify_collection(mine.path).passed
    (mine.path / "runs" / "model.pkl").write_bytes(pickle.dumps(_Boom(tmp_path / "boom")))
    (mine.path / "setup.py").write_text("print(1)\n", encoding="utf-8")
    report = collection.verify_collection(mine.path)
    refused(report, "runs/model.pkl", "move it out")
    refused(report, "setup.py", "belongs in no collection")
    assert not (tmp_path / "boom").exists()


def test_links_are_refused(mine: ResultsDir, tmp_path: Path) -> None:
    [run_id] = mine.run_ids()
    path = mine.file("predictions", run_id)
    shutil.move(path, tmp_path / "elsewhere.parquet")
    path.symlink_to(tmp_path / "elsewhere.parquet")
    refused(collection.verify_collection(mine.path), "predictions/", "it is a link")


def test_missing_files_and_runs_without_a_row_are_refused(mine: ResultsDir, backbone: Backbone) -> None:
    second = make(mine, backbone, order=1)
    mine.file("runs", second).unlink()
    refused(collection.verify_collection(mine.path), f"sessions/{second}.parquet", "belongs to no run")
    [run_id] = mine.run_ids()
    mine.file("sessions", run_id).unlink()
    refused(collection.verify_collection(mine.path), f"sessions/{run_id}.parquet", "missing")
    with pytest.raises(ResultsError, match="holds no runs"):
        collection.verify_collection(mine.path / "work")


def test_a_pack_becomes_a_collection(good: Path, one: ResultsDir, honest: ResultsDir, tmp_path: Path) -> None:
    target = tmp_path / "results" / "new"
    assert collection.add(good, target).passed
    [run_id] = one.run_ids()
    for table in SCHEMAS:
        assert sha256_file(ResultsDir(target).file(table, run_id)) == sha256_file(one.file(table, run_id))
    assert collection.verify_collection(target).passed
    again = collection.add(good, target)
    refused(again, run_id, "already", "leave it out")
    more = tmp_path / "more.zip"
    pack.write(honest, [honest.find("o1")], more, description="# two\n<script>", contact="a@b.c")
    assert collection.add(more, target).passed
    assert ResultsDir(target).run_ids() == honest.run_ids()
    assert (target / "README.md").read_text(encoding="utf-8").startswith("# new\n")


def test_nothing_is_added_of_a_pack_that_is_refused(mine: ResultsDir, tmp_path: Path) -> None:
    edit(mine, "runs", lambda rows: rows[0].update(final_accuracy=99.0))
    report = collection.add(packed(mine, tmp_path / "p.zip"), tmp_path / "results" / "new")
    assert not report.passed
    assert not (tmp_path / "results").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Duplicates


def test_a_published_run_is_not_taken_again(honest: ResultsDir, good: Path, one: ResultsDir) -> None:
    refused(collection.verify_pack(good, [honest]), one.run_ids()[0], "already", "leave it out")
    assert collection.verify_collection(honest.path, [honest]).passed  # a collection is no duplicate of itself


def test_the_same_predictions_under_another_method_s_name_are_refused(
    one: ResultsDir, backbone: Backbone, tmp_path: Path
) -> None:
    copied = ResultsDir(tmp_path / "copied")
    run_id = make(copied, backbone, method="pace")  # draws as the run of ncm did
    refused(collection.verify_collection(copied.path, [one]), run_id, "the same predictions", "ncm")
    make(copied, backbone, method="ncm")
    refused(collection.verify_collection(copied.path), "the same predictions", "under one name")
    other = ResultsDir(tmp_path / "other")
    make(other, backbone, method="pace", guesses=77)
    assert collection.verify_collection(other.path, [one]).passed


def test_the_same_predictions_with_other_settings_are_noted(
    one: ResultsDir, backbone: Backbone, tmp_path: Path
) -> None:
    again = ResultsDir(tmp_path / "again")
    make(again, backbone, settings={"metric": "euclidean"})
    report = collection.verify_collection(again.path, [one])
    assert report.problems == ()
    assert any("the same predictions as another run of ncm" in note for note in report.notes)


# ---------------------------------------------------------------------------------------------------------------------
# The difference table


def test_difference_tells_new_changed_and_removed(backbone: Backbone, tmp_path: Path) -> None:
    old, new = ResultsDir(tmp_path / "old" / "a"), ResultsDir(tmp_path / "new" / "a")
    for results in (old, new):
        make(results, backbone, method="ranpac", skill=0.5)
    make(old, backbone, order=0, skill=0.4)
    make(old, backbone, method="acil")
    make(new, backbone, order=0, skill=0.4)
    make(new, backbone, order=1, skill=0.9)
    make(new, backbone, method="pace", skill=0.8)
    make(new, backbone, method="ranpac", skill=0.7, settings={"fsa": False})
    changes = {
        (change.status, change.method.partition(" ")[0]): change
        for change in difference.difference(old.runs(), new.runs())
    }
    assert set(changes) == {("new", "pace"), ("new", "ranpac"), ("changed", "ncm"), ("removed", "acil")}
    ncm = changes["changed", "ncm"]
    before = old.runs().set_index("method")["final_accuracy"]["ncm"]
    after = new.runs().query("method == 'ncm'")["final_accuracy"].mean()
    assert ncm.runs == (1, 2)
    assert (ncm.before, ncm.after, ncm.points) == pytest.approx((before, after, after - before))
    ranpac = old.runs().set_index("method")["final_accuracy"]["ranpac"]
    assert changes["new", "ranpac"].remark == f"with other settings before: {ranpac:.2f}"
    assert "#" in changes["new", "ranpac"].method
    assert np.isnan(changes["new", "pace"].points)
    assert difference.difference(new.runs(), new.runs()) == []
    assert all(len(line) == len(difference.COLUMNS) for line in difference.table(changes.values()))


def test_own_data_that_changed_is_another_row_of_the_difference(backbone: Backbone, tmp_path: Path) -> None:
    old = ResultsDir(tmp_path / "a")
    make(old, backbone)
    before = old.runs().assign(own_data=True, audio_key="a" * 64, first_session_epochs=5)
    assert difference.difference(before, before) == []
    after = before.assign(audio_key="b" * 64, run_id="other", final_accuracy=before["final_accuracy"] + 1)
    changes = difference.difference(before, after)
    assert [(change.status, change.runs) for change in changes] == [("removed", (1, 0)), ("new", (0, 1))]
    assert [change.label for change in changes] == [
        "own data, audio aaaaaaaaaaaa, E_0 = 5",
        "own data, audio bbbbbbbbbbbb, E_0 = 5",
    ]


def test_changed_collections(honest: ResultsDir, backbone: Backbone, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for root in (before, after):
        for name in ("same", "touched"):
            shutil.copytree(honest.path, root / name)
    make(ResultsDir(after / "touched"), backbone, order=2)
    make(ResultsDir(after / "added"), backbone, order=3)
    assert [path.name for path in collection.changed_collections(before, after)] == ["added", "touched"]
    (after / "virus.exe").write_bytes(b"MZ")
    (after / "same" / "work").mkdir()
    told = collection.strangers(after)
    assert len(told) == 2
    assert any("virus.exe" in text for text in told)
    assert any("same/work" in text for text in told)


# ---------------------------------------------------------------------------------------------------------------------
# Reading safely


def test_shown_takes_commands_out_of_text() -> None:
    assert bounded.shown("a\x1b[31mb\nc\u202ed\x00") == "a?[31mb c?d?"
    assert len(bounded.shown("x" * 1_000)) == 120
    assert bounded.shown("قلم 語 é") == "قلم 語 é"


def test_the_fingerprint_ignores_names_and_order(one: ResultsDir) -> None:
    table = one.predictions(one.run_ids()[0])
    assert checks.fingerprint(table) == checks.fingerprint(table.sample(frac=1, random_state=3).assign(run_id="x"))
    flipped = table.assign(predicted=table["label"])
    assert checks.fingerprint(table) != checks.fingerprint(flipped)


def test_the_probe_needs_pyarrow_alone(good: Path, one: ResultsDir) -> None:
    """It must not import what could run code of a pack's making, nor be slow to start."""
    source = "import runpy, sys; runpy.run_path(sys.argv[1]); print('pandas' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", source, str(bounded._PROBE)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_unforeseen_trouble_refuses_in_one_sentence(mine: ResultsDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: Any) -> None:
        raise KeyError("what nobody\nthought of")

    monkeypatch.setattr(collection, "check_run", stumble)
    refused(collection.verify_collection(mine.path), "cannot be checked (KeyError")
