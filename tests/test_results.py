"""The Parquet schema: round trips, refusals, determinism, concurrency and recomputation."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiocl_bench import results as results_module
from audiocl_bench.errors import ResultsError, UnknownNameError
from audiocl_bench.results import (
    META_COLUMNS,
    RUNS_SCHEMA,
    SCHEMA_VERSION,
    SCHEMAS,
    SCORES,
    ResultsDir,
    RunResult,
    build_result,
    build_run_row,
    git_commit,
    make_run_id,
    provenance,
    score,
    session_scores,
    utc_now,
)

CLASSES = [["dog", "rain"], ["crow [x]", "sneeze"], ["clock", "saw"]]


def make_predictions(*, joint: bool = False, clips: int = 3, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for after in range(2, 3) if joint else range(3):
        seen = [name for names in CLASSES[: after + 1] for name in names]
        for session in range(after + 1):
            for label in CLASSES[session]:
                for k in range(clips + session):  # sessions of unlike size
                    predicted = label if rng.random() < 0.6 else seen[int(rng.integers(len(seen)))]
                    rows.append((after, f"{label}/{k}", session, label, predicted))
    return pd.DataFrame(rows, columns=["after_session", "clip_id", "session", "label", "predicted"])


def make_sessions(**changes: Any) -> pd.DataFrame:
    rows = [
        {
            "session": t,
            "classes": names,
            "train_clips": 10 + t,
            "train_seconds": 1.5,
            "eval_seconds": 0.25,
            "train_passes": 20,
            "eval_passes": 6,
            "block_runs": 312,
            "peak_memory_mb": 100.0 + t,
            "trainable_parameters": 500 if t == 0 else 0,
            "kept_bytes": 1000 * (t + 1),
            "encoder_version": 1,
            "diagnostics": {"loss": 0.5},
            **changes,
        }
        for t, names in enumerate(CLASSES)
    ]
    return pd.DataFrame(rows)


def make_meta(run_id: str = "ncm-esc50-0", **changes: Any) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "method": "ncm",
        "benchmark": "esc50",
        "protocol": "grouped",
        "backbone": "eat-base",
        "order": 0,
        "seed": 0,
        "own_data": False,
        "mini": False,
        "variant": "",
        "stand_in": False,
        "audit_passed": True,
        "audit": {"batch": {"passed": True}},
        "split_hash": "a" * 64,
        "index_hash": "b" * 64,
        "weights_hash": "c" * 64,
        "front_end": {"kind": "kaldi", "n_mels": 128},
        "method_config": {"ridge": 1.0},
        "audiocl_version": "0.1.0",
        "device": "cpu",
        "threads": 1,
        "python_version": "3.11.0",
        "library_versions": {"torch": "2.13.0"},
        "platform": "test",
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:01:00+00:00",
        **changes,
    }


def make_result(run_id: str = "ncm-esc50-0", *, seed: int = 0, joint: bool = False, **meta: Any) -> RunResult:
    return build_result(make_meta(run_id, seed=seed, **meta), make_sessions(), make_predictions(joint=joint, seed=seed))


@pytest.fixture
def folder(tmp_path: Path) -> ResultsDir:
    return ResultsDir(tmp_path / "results")


# --- Round trips


def test_everything_written_is_read_back(folder: ResultsDir) -> None:
    result = make_result()
    assert not folder.has("ncm-esc50-0")
    assert folder.write(result) == "ncm-esc50-0"
    assert folder.has("ncm-esc50-0")
    assert folder.run_ids() == ("ncm-esc50-0",)

    row = folder.run("ncm-esc50-0")
    assert list(row) == RUNS_SCHEMA.names
    assert {k: v for k, v in row.items() if k != "fresh_final_accuracy"} == {
        k: v for k, v in result.run.items() if k != "fresh_final_accuracy"
    }
    assert row["fresh_final_accuracy"] is None
    assert row["audit"] == '{"batch":{"passed":true}}'

    sessions = folder.sessions("ncm-esc50-0")
    assert sessions["classes"].tolist() == CLASSES
    assert math.isnan(sessions["old_accuracy"][0])
    assert sessions["diagnostics"].tolist() == ['{"loss":0.5}'] * 3
    expected = session_scores(make_predictions())
    pd.testing.assert_frame_equal(sessions[list(expected.columns)], expected, check_dtype=False)

    predictions = folder.predictions("ncm-esc50-0")
    pd.testing.assert_frame_equal(
        predictions[["after_session", "clip_id", "session", "label", "predicted"]],
        make_predictions().sort_values(["after_session", "clip_id"], ignore_index=True),
        check_dtype=False,
        check_categorical=False,
    )
    assert (predictions["correct"] == (predictions["label"].astype(str) == predictions["predicted"].astype(str))).all()


def test_plain_pandas_reads_all_runs(folder: ResultsDir) -> None:
    for seed in range(3):
        folder.write(make_result(f"run-{seed}", seed=seed, joint=seed == 2))
    for table, schema in SCHEMAS.items():
        frame = pd.read_parquet(folder.path / table)
        assert list(frame.columns) == schema.names
        assert set(frame["run_id"]) == {"run-0", "run-1", "run-2"}
    pd.testing.assert_frame_equal(folder.runs(), pd.read_parquet(folder.path / "runs"))
    assert len(folder.sessions()) == 9
    # One run's own words survive beside other runs' words.
    together = pd.read_parquet(folder.path / "predictions").query("run_id == 'run-1'")
    assert together["predicted"].astype(str).tolist() == folder.predictions("run-1")["predicted"].astype(str).tolist()


def test_scores_are_percent_and_computed_from_the_predictions() -> None:
    predictions = make_predictions()
    row = build_run_row(make_meta(), make_sessions(), predictions)
    last = predictions[predictions["after_session"] == 2]
    hit = last["label"] == last["predicted"]
    assert row["micro_accuracy"] == pytest.approx(100 * hit.mean())
    assert row["final_accuracy"] == pytest.approx(100 * hit.groupby(last["session"]).mean().mean())
    assert row["balanced_accuracy"] == pytest.approx(100 * hit.groupby(last["label"]).mean().mean())
    assert {name: row[name] for name in SCORES} == score(predictions)


def test_totals_follow_from_the_sessions() -> None:
    row = build_run_row(make_meta(), make_sessions(), make_predictions())
    assert (row["train_seconds"], row["eval_seconds"], row["train_passes"], row["eval_passes"]) == (4.5, 0.75, 60, 18)
    assert (row["peak_memory_mb"], row["trainable_parameters"], row["kept_bytes"]) == (102.0, 500, 3000)
    assert (row["block_runs"], row["num_sessions"], row["num_classes"]) == (936, 3, 6)
    assert row["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize(("own", "stand_in"), [(False, False), (True, False), (False, True), (True, True)])
def test_only_built_in_data_and_real_weights_are_comparable(own: bool, stand_in: bool) -> None:
    row = build_run_row(make_meta(own_data=own, stand_in=stand_in), make_sessions(), make_predictions())
    assert row["comparable"] is (not own and not stand_in)
    mini = build_run_row(make_meta(own_data=own, stand_in=stand_in, mini=True), make_sessions(), make_predictions())
    assert mini["comparable"] is False


def test_joint_run_has_nulls_where_scores_do_not_exist(folder: ResultsDir) -> None:
    folder.write(make_result("joint", joint=True))
    row = folder.run("joint")
    assert row["forgetting"] is row["average_incremental_accuracy"] is None
    assert row["final_accuracy"] > 0
    assert folder.sessions("joint")["accuracy"].notna().tolist() == [False, False, True]
    assert folder.recompute("joint") == {}


def test_unmeasured_memory_is_null(folder: ResultsDir) -> None:
    folder.write(build_result(make_meta("m"), make_sessions(peak_memory_mb=None), make_predictions()))
    assert folder.run("m")["peak_memory_mb"] is None
    assert folder.recompute("m") == {}


def test_an_empty_or_absent_directory_reads_as_no_runs(folder: ResultsDir) -> None:
    assert folder.run_ids() == ()
    assert list(folder.runs().columns) == RUNS_SCHEMA.names
    assert len(folder.sessions()) == 0
    assert not folder.path.exists()


# --- What the writer refuses


def test_meta_must_be_complete_and_holds_no_scores() -> None:
    for name in META_COLUMNS:
        if name in {
            *("fresh_final_accuracy", "git_commit", "notes", "config_hash"),
            *("first_session_epochs", "audio_key"),
        }:
            continue
        meta = make_meta()
        del meta[name]
        with pytest.raises(ResultsError, match=name):
            build_run_row(meta, make_sessions(), make_predictions())
    with pytest.raises(ResultsError, match="takes no final_accuracy"):
        build_run_row(make_meta(final_accuracy=99.0), make_sessions(), make_predictions())
    with pytest.raises(ResultsError, match="'notes' cannot be stored as JSON"):
        build_run_row(make_meta(notes={"x": math.nan}), make_sessions(), make_predictions())


@pytest.mark.parametrize("name", [*SCORES, "train_seconds", "comparable", "kept_bytes"])
def test_a_typed_in_number_is_refused(folder: ResultsDir, name: str) -> None:
    result = make_result()
    value = not result.run[name] if name == "comparable" else result.run[name] + 1
    with pytest.raises(ResultsError, match=name):
        folder.write(RunResult({**result.run, name: value}, result.sessions, result.predictions))
    assert folder.run_ids() == ()


@pytest.mark.parametrize(
    ("table", "change", "says"),
    [
        ("run", lambda r: {**r, "seed": "three"}, "'seed'"),
        ("run", lambda r: {**r, "device": None}, "'device' .* empty"),
        ("run", lambda r: {**r, "extra": 1}, "unknown columns: extra"),
        ("run", lambda r: {k: v for k, v in r.items() if k != "platform"}, "lacks platform"),
        ("run", lambda r: {**r, "run_id": "../escape"}, "no run id"),
        ("run", lambda r: {**r, "run_id": None}, "no run id"),
        ("sessions", lambda s: s.drop(columns="encoder_version"), "lacks encoder_version"),
        ("sessions", lambda s: pd.concat([s, s]), "twice"),
        ("sessions", lambda s: s.iloc[:0], "empty"),
        ("sessions", lambda s: s.assign(accuracy=99.0), "session 0: accuracy"),
        ("predictions", lambda p: p.drop(columns="clip_id"), "lacks the column clip_id"),
        ("predictions", lambda p: p.assign(clip_id="one"), "twice"),
        ("predictions", lambda p: p.assign(predicted="saw"), "predicts class 'saw' after session 0"),
        ("predictions", lambda p: p.assign(predicted="cat"), "predicts class 'cat'"),
    ],
)
def test_bad_results_are_refused_and_leave_nothing(folder: ResultsDir, table: str, change: Any, says: str) -> None:
    good = make_result()
    parts = {"run": good.run, "sessions": good.sessions, "predictions": good.predictions}
    parts[table] = change(parts[table])
    with pytest.raises(ResultsError, match=says):
        folder.write(RunResult(**parts))
    assert not folder.path.exists()


def test_an_existing_run_is_kept_unless_it_is_to_be_replaced(folder: ResultsDir) -> None:
    folder.write(make_result(seed=0))
    before = folder.run("ncm-esc50-0")
    other = RunResult(**{**vars(make_result(seed=1))})
    with pytest.raises(ResultsError, match="already in"):
        folder.write(other)
    assert folder.run("ncm-esc50-0") == before
    folder.write(other, replace=True)
    assert folder.run("ncm-esc50-0")["seed"] == 1
    assert folder.recompute("ncm-esc50-0") == {}


@pytest.mark.parametrize(
    ("code", "says"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "read-only"), (errno.EIO, "cannot be written")]
)
@pytest.mark.parametrize("failing", ["runs", "sessions", "predictions"])
def test_a_failed_write_leaves_the_old_run(
    folder: ResultsDir, monkeypatch: pytest.MonkeyPatch, code: int, says: str, failing: str
) -> None:
    folder.write(make_result(seed=0))
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    real = pq.write_table

    def write(table: pa.Table, where: Path, **options: Any) -> None:
        if where.parent.name == failing:
            raise OSError(code, os.strerror(code))
        real(table, where, **options)

    monkeypatch.setattr(pq, "write_table", write)
    with pytest.raises(ResultsError, match=says):
        folder.write(make_result(seed=1), replace=True)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a directory")
    folder = ResultsDir(tmp_path / "results")
    with pytest.raises(ResultsError, match="is a file"):
        folder.runs()
    with pytest.raises(ResultsError, match="cannot be written"):
        folder.write(make_result())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only directories")
def test_a_read_only_directory_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ResultsError, match="read-only or no permission"):
        ResultsDir(tmp_path / "results").write(make_result())


# --- What the reader refuses


def rewrite(path: Path, change: Any) -> None:
    """Rewrite one stored file: `change` gets and returns the Arrow table."""
    with pq.ParquetFile(path) as handle:
        table = handle.read()
    pq.write_table(change(table), path)


def test_a_newer_schema_says_upgrade(folder: ResultsDir) -> None:
    folder.write(make_result())
    path = folder.file("runs", "ncm-esc50-0")
    newer = {results_module._VERSION_KEY: b"7", results_module._TABLE_KEY: b"runs"}
    rewrite(path, lambda t: t.append_column("new", pa.array([1])).replace_schema_metadata(newer))
    with pytest.raises(ResultsError, match=r"schema 7.*up to 3: upgrade audiocl") as caught:
        folder.runs()
    assert str(path) in str(caught.value)


LATER = {
    1: ("mini", "variant", "blocks_needed", "blocks_reused", "first_session_epochs", "audio_key"),
    2: ("blocks_needed", "blocks_reused", "first_session_epochs", "audio_key"),
}


@pytest.mark.parametrize("version", [1, 2])
def test_older_schemas_are_read_with_what_they_did_not_know(version: int, folder: ResultsDir) -> None:
    folder.write(make_result())
    written, sessions = folder.run("ncm-esc50-0"), folder.sessions("ncm-esc50-0")
    for table in ("runs", "sessions", "predictions"):
        old = {results_module._VERSION_KEY: str(version).encode(), results_module._TABLE_KEY: table.encode()}

        def older(content: pa.Table, table: str = table, old: dict[bytes, bytes] = old) -> pa.Table:
            content = content.drop_columns([name for name in LATER[version] if name in content.column_names])
            if table == "runs":
                at = content.column_names.index("schema_version")
                field = results_module.RUNS_SCHEMA.field("schema_version")
                content = content.set_column(at, field, pa.array([version], pa.int32()))
            return content.replace_schema_metadata(old)

        rewrite(folder.file(table, "ncm-esc50-0"), older)
    found = folder.run("ncm-esc50-0")
    assert found == written
    assert [found[name] for name in ("mini", "variant")] == [False, ""]
    assert all(found[name] is None for name in LATER[2])
    pd.testing.assert_frame_equal(folder.sessions("ncm-esc50-0"), sessions)
    assert folder.recompute("ncm-esc50-0") == {}


def test_counted_blocks_are_summed_and_a_null_makes_the_sum_null(folder: ResultsDir) -> None:
    costs = make_sessions().assign(blocks_needed=[5, 7, 9], blocks_reused=[0, None, 3])
    result = build_result(make_meta(first_session_epochs=10, audio_key="a" * 64), costs, make_predictions())
    folder.write(result)
    row = folder.run(result.run["run_id"])
    assert (row["blocks_needed"], row["blocks_reused"]) == (21, None)
    assert (row["first_session_epochs"], row["audio_key"]) == (10, "a" * 64)
    sessions = folder.sessions(result.run["run_id"])
    assert sessions["blocks_needed"].tolist() == [5, 7, 9]
    assert sessions["blocks_reused"].isna().tolist() == [False, True, False]
    assert folder.recompute(result.run["run_id"]) == {}
    wrong = RunResult({**result.run, "blocks_needed": 22}, result.sessions, result.predictions)
    with pytest.raises(ResultsError, match="blocks_needed"):
        folder.write(wrong, replace=True)


@pytest.mark.parametrize("table", ["runs", "sessions", "predictions"])
def test_damaged_files_are_named(folder: ResultsDir, table: str) -> None:
    folder.write(make_result())
    path = folder.file(table, "ncm-esc50-0")
    whole = path.read_bytes()
    read = {"runs": folder.runs, "sessions": folder.sessions, "predictions": lambda: folder.predictions("ncm-esc50-0")}
    for damaged in (b"", b"hello", whole[: len(whole) // 2], whole[:-4] + b"XXXX"):
        path.write_bytes(damaged)
        with pytest.raises(ResultsError, match="damaged or no Parquet file") as caught:
            read[table]()
        assert str(path) in str(caught.value)


def test_a_flipped_bit_in_the_data_is_found(folder: ResultsDir) -> None:
    folder.write(make_result())
    path = folder.file("predictions", "ncm-esc50-0")
    whole = path.read_bytes()
    with pq.ParquetFile(path) as handle:
        column = handle.metadata.row_group(0).column(5)  # predicted
    start, size = column.dictionary_page_offset, column.total_compressed_size
    for position in range(start, start + size):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            predictions = folder.predictions("ncm-esc50-0")
        except ResultsError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:  # a flip in a page header's spare field changes nothing that is read
            path.write_bytes(whole)
            pd.testing.assert_frame_equal(predictions, folder.predictions("ncm-esc50-0"))


def test_foreign_parquet_is_named(folder: ResultsDir) -> None:
    folder.write(make_result())
    pd.DataFrame({"run_id": ["x"]}).to_parquet(folder.path / "runs" / "x.parquet")
    with pytest.raises(ResultsError, match=r"x\.parquet was not written by audiocl as a runs table"):
        folder.runs()
    folder.file("runs", "x").write_bytes(folder.file("sessions", "ncm-esc50-0").read_bytes())
    with pytest.raises(ResultsError, match="was not written by audiocl as a runs table"):
        folder.runs()


def test_changed_columns_and_renamed_files_are_named(folder: ResultsDir) -> None:
    folder.write(make_result())
    path = folder.file("runs", "ncm-esc50-0")
    copy = folder.file("runs", "copy")
    copy.write_bytes(path.read_bytes())
    with pytest.raises(ResultsError, match="another run than its name says"):
        folder.run("copy")
    rewrite(path, lambda t: t.drop_columns(["seed"]))
    with pytest.raises(ResultsError, match="'seed' is missing"):
        folder.run("ncm-esc50-0")


def test_a_missing_part_is_named(folder: ResultsDir) -> None:
    folder.write(make_result())
    folder.file("predictions", "ncm-esc50-0").unlink()
    with pytest.raises(ResultsError, match=r"predictions.*is missing"):
        folder.predictions("ncm-esc50-0")
    with pytest.raises(UnknownNameError, match="did you mean ncm-esc50-0"):
        folder.run("ncm-esc50-1")


def test_unfinished_files_are_no_runs(folder: ResultsDir) -> None:
    folder.write(make_result())
    folder.file("runs", "ncm-esc50-0").unlink()
    (folder.path / "runs" / ".half.parquet.abc.part").write_bytes(b"half")
    assert folder.run_ids() == ()
    assert len(folder.sessions()) == 0


# --- Determinism, concurrency, recomputation


def test_predictions_bytes_depend_on_the_predictions_alone(tmp_path: Path) -> None:
    a, b = ResultsDir(tmp_path / "a"), ResultsDir(tmp_path / "b")
    result = make_result()
    a.write(result)
    shuffled = result.predictions.sample(frac=1.0, random_state=3).astype({"label": "category", "clip_id": "category"})
    later = {**result.run, "finished_at": "2027-01-01T00:00:00+00:00", "threads": 8}
    b.write(RunResult(later, result.sessions.iloc[::-1], shuffled))
    for table, same in (("predictions", True), ("sessions", True), ("runs", False)):
        files = [folder.file(table, "ncm-esc50-0").read_bytes() for folder in (a, b)]
        assert (files[0] == files[1]) is same, table


def _write_some(path: str, worker: int) -> None:
    for k in range(4):
        ResultsDir(path).write(make_result(f"worker-{worker}-{k}", seed=worker))


def _check_after_concurrent_writes(folder: ResultsDir, count: int) -> None:
    assert len(folder.runs()) == count
    assert all(folder.recompute(run_id) == {} for run_id in folder.run_ids())
    assert not list(folder.path.rglob("*.part"))


def _read_while(folder: ResultsDir, busy: Any) -> None:
    """Read beside the writers: every run seen is a whole run."""
    while busy():
        folder.runs()
        for run_id in folder.run_ids():
            assert len(folder.predictions(run_id)) == len(make_predictions())


def test_concurrent_threads_write_different_runs(folder: ResultsDir) -> None:
    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(_write_some, str(folder.path), worker) for worker in range(3)]
        _read_while(folder, lambda: not all(one.done() for one in writing))
        for one in writing:
            one.result()
    _check_after_concurrent_writes(folder, 12)


@pytest.mark.slow
def test_concurrent_processes_write_different_runs(folder: ResultsDir) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_some, args=(str(folder.path), w)) for w in range(3)]
    for worker in workers:
        worker.start()
    _read_while(folder, lambda: any(worker.is_alive() for worker in workers))
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    _check_after_concurrent_writes(folder, 12)


def _set(table: pa.Table, name: str, value: Any) -> pa.Table:
    position = table.schema.get_field_index(name)
    values = [value, *table.column(name).to_pylist()[1:]]
    return table.set_column(position, table.schema.field(name), pa.array(values, type=table.schema.field(name).type))


@pytest.mark.parametrize(
    ("table", "column", "value", "found"),
    [
        ("runs", "final_accuracy", 99.0, "final_accuracy"),
        ("runs", "forgetting", None, "forgetting"),
        ("runs", "comparable", False, "comparable"),
        ("runs", "train_passes", 1, "train_passes"),
        ("sessions", "new_accuracy", 99.0, "session 0: new_accuracy"),
        ("sessions", "kept_bytes", 1, None),
    ],
)
def test_recompute_finds_what_was_changed(
    folder: ResultsDir, table: str, column: str, value: Any, found: str | None
) -> None:
    folder.write(make_result())
    assert folder.recompute("ncm-esc50-0") == {}
    stored = pq.ParquetFile(folder.file(table, "ncm-esc50-0")).read().column(column)[0].as_py()
    rewrite(folder.file(table, "ncm-esc50-0"), lambda t: _set(t, column, value))
    differences = folder.recompute("ncm-esc50-0")
    if found is None:  # only the last session's kept bytes enter the runs row
        assert differences == {}
    else:
        assert list(differences) == [found]
        assert differences[found] == (value, pytest.approx(stored))


def test_recompute_finds_changed_predictions(folder: ResultsDir) -> None:
    folder.write(make_result())
    path = folder.file("predictions", "ncm-esc50-0")
    flipped = not folder.predictions("ncm-esc50-0")["correct"].iloc[0]
    rewrite(path, lambda t: _set(t, "correct", flipped))
    assert list(folder.recompute("ncm-esc50-0")) == ["correct"]


def test_recompute_finds_a_prediction_that_was_made_right(folder: ResultsDir) -> None:
    folder.write(make_result())
    table = folder.predictions("ncm-esc50-0")
    wrong = int(np.flatnonzero((table["after_session"] == 2) & ~table["correct"])[0])
    words = table["predicted"].astype(str).tolist()
    words[wrong] = str(table["label"].iloc[wrong])

    def change(t: pa.Table) -> pa.Table:
        field = t.schema.field("predicted")
        return t.set_column(5, field, pa.array(words).dictionary_encode().cast(field.type))

    rewrite(folder.file("predictions", "ncm-esc50-0"), change)
    found = folder.recompute("ncm-esc50-0")
    assert {"final_accuracy", "micro_accuracy", "balanced_accuracy", "session 2: accuracy", "correct"} <= set(found)
    stored, fresh = found["micro_accuracy"]
    assert fresh - stored == pytest.approx(100 / (table["after_session"] == 2).sum())


# --- Names


def test_find(folder: ResultsDir) -> None:
    with pytest.raises(ResultsError, match="no runs in"):
        folder.find("x")
    for name in ("ncm-esc50", "ncm-esc50-s1", "pace-vocalset", "pace-us8k"):
        folder.write(make_result(name))
    assert folder.find("ncm-esc50") == "ncm-esc50"  # exact beats prefix
    assert folder.find("pace-v") == "pace-vocalset"
    assert folder.find("us8k") == "pace-us8k"
    with pytest.raises(ResultsError, match="matches 2 runs: pace-us8k, pace-vocalset"):
        folder.find("pace")
    with pytest.raises(UnknownNameError, match="did you mean pace-vocalset"):
        folder.find("pace-vocaslet")
    with pytest.raises(UnknownNameError, match="known: ncm-esc50"):
        folder.find("qqqqq")


def test_run_ids_are_readable_safe_and_told_apart() -> None:
    settings = {"method": "my.py:Mine", "benchmark": "own/bench.toml", "protocol": "paper", "backbone": "a b/ü"}
    first = make_run_id(**settings, order=1, seed=2, config_hash="x")
    assert first == make_run_id(**settings, order=1, seed=2, config_hash="x")
    assert first != make_run_id(**settings, order=1, seed=2, config_hash="y")
    assert first.startswith("my.py_Mine-own_bench.toml-paper-a_b-o1-s2-")
    assert ResultsDir("anywhere").file("runs", first).name == f"{first}.parquet"
    long = make_run_id(**{**settings, "method": "m" * 500}, order=0, seed=0, config_hash="x")
    assert len(long) < 200


# --- Provenance


def test_provenance_fills_its_columns(folder: ResultsDir) -> None:
    told = provenance("cpu")
    assert told["device"] == "cpu"
    assert told["threads"] >= 1
    assert {"torch", "numpy", "pyarrow"} <= set(told["library_versions"])
    folder.write(make_result(**told))
    assert folder.run("ncm-esc50-0")["python_version"] == told["python_version"]
    assert pd.Timestamp(utc_now()).tzname() == "UTC"


def test_git_commit_of_a_clone_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "audiocl"\n')
    assert git_commit(tmp_path) is None  # no commit yet
    git("add", "pyproject.toml")
    git("commit", "-q", "-m", "first")
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "new.txt").write_text("results are no code")
    assert git_commit(tmp_path) == commit
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text("x = 1\n")
    assert git_commit(tmp_path) == commit + "+dirty"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert git_commit(tmp_path) is None
