"""`audiocl submit`, `audiocl verify` and `.ci/verify-results`, from the arguments to exit code and output."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_cli import QUICK, Call, assert_refused, call, finished

from audiocl_bench.results import ResultsDir
from audiocl_bench.submission import collection

__all__ = ["call", "finished"]  # fixtures

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def no_collections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be a folder without a clone's results/, so that tests do not depend on what is published."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collection, "published", lambda root=None: collection.result_dirs(root) if root else ())
    return tmp_path


def doctor(results: ResultsDir, run_id: str, points: float) -> None:
    path = results.file("runs", run_id)
    stored = pq.read_table(path)
    [row] = stored.to_pylist()
    row["final_accuracy"] += points
    pq.write_table(pa.Table.from_pylist([row], schema=stored.schema), path)


def test_submit_and_verify(call: Call, finished: Path, no_collections: Path) -> None:
    done = call("submit", "ncm", "--results", finished, "--description", "two orders", "--url", "https://example.org/x")
    assert done.code == 0, done.err
    assert "submission.zip: 2 runs" in done.out
    assert "own data" in done.out
    done = call("verify", "submission.zip")
    assert done.code == 0, done.err
    predictions = sum(len(ResultsDir(finished).predictions(i)) for i in ResultsDir(finished).run_ids() if "ncm" in i)
    assert f"2 runs, all right; every score was recomputed from {predictions} predictions." in done.out
    assert "description: two orders" in done.out
    assert "url: https://example.org/x" in done.out
    assert "new" in done.out
    assert done.err == ""


def test_a_pack_is_added_to_a_collection(call: Call, finished: Path, no_collections: Path) -> None:
    call("submit", "ncm", "--results", finished)
    done = call("verify", "submission.zip", "--add", "results/mine")
    assert done.code == 0, done.err
    assert "added to results/mine, which now has 2 runs." in done.out
    assert call("verify", "results/mine").code == 0
    assert call("verify", "results").code == 0
    assert len(pd.read_parquet("results/mine/runs")) == 2
    again = call("verify", "submission.zip", "--add", "results/mine")
    assert again.code == 2
    assert "already" in again.err
    elsewhere = call("verify", "submission.zip", "--against", "results")
    assert elsewhere.code == 2
    assert "is in results/mine already" in elsewhere.err


def test_what_is_wrong_is_said_and_nothing_written(call: Call, finished: Path, no_collections: Path) -> None:
    results = ResultsDir(no_collections / "doctored")
    shutil.copytree(finished, results.path)
    run_id = results.find("ncm-tiny-own-eat_tiny-o0")
    doctor(results, run_id, 1.0)
    told = call("submit", "ncm", "--results", results.path)
    assert_refused(told, f"runs/{run_id}.parquet: final_accuracy is", "but the predictions and sessions give")
    assert not (no_collections / "submission.zip").exists()
    assert_refused(call("verify", results.path), "final_accuracy is")
    doctor(results, run_id, 1000.0)
    doctor(results, results.find("joint_closed"), -1000.0)
    several = call("verify", results.path)
    assert several.code == 2
    assert "2 things are wrong" in several.err
    assert "Traceback" not in several.err


def test_bad_requests(call: Call, finished: Path, no_collections: Path) -> None:
    assert_refused(call("verify", "nothing.zip"), "nothing.zip cannot be read")
    (no_collections / "empty").mkdir()
    assert_refused(call("verify", "empty"), "empty holds no runs")
    assert_refused(call("verify", "empty", "--add", "x"), "--add takes a pack")
    assert_refused(call("submit", "pace", "--results", finished), "unknown run 'pace'")
    assert_refused(call("submit", "x", "--results", "empty"), "there are no runs in empty")
    (no_collections / "text.zip").write_text("hello", encoding="utf-8")
    assert_refused(call("verify", "text.zip"), "text.zip is no submission pack")
    assert_refused(call("submit", "ncm", "--results", finished, "--out", "text.zip"), "holds something else")
    assert_refused(call("submit", "ncm", "--results", finished, "--contact", "x" * 2001), "--contact has 2,001")
    assert_refused(call("verify", "empty", "--before", "gone"), "gone is no directory")


def test_verify_before_shows_the_difference(call: Call, finished: Path, no_collections: Path) -> None:
    call("submit", "ncm-tiny-own-eat_tiny-o0", "--results", finished, "--out", "one.zip")
    call("submit", "ncm-tiny-own-eat_tiny-o1", "joint-closed", "--results", finished, "--out", "two.zip")
    assert call("verify", "one.zip", "--add", "old/results/a").code == 0
    shutil.copytree("old/results", "new/results")
    same = call("verify", "new/results", "--before", "old/results")
    assert same.code == 0, same.err
    assert "no collection is added, changed or removed" in same.out
    assert call("verify", "two.zip", "--add", "new/results/b").code == 0
    done = call("verify", "new/results", "--before", "old/results")
    assert done.code == 0, done.err
    assert "new/results/b: 2 runs, all right" in done.out
    assert "new/results/a" not in done.out  # unchanged, so not verified again
    table = "".join(done.out.partition("What changes")[2].split())
    assert "changed" in table
    assert "1->2" in table
    back = call("verify", "old/results", "--before", "new/results")
    assert "the collection b is removed" in back.out
    Path("new/results/run.py").write_text("print(1)\n", encoding="utf-8")
    assert_refused(call("verify", "new/results", "--before", "old/results"), "run.py: it is no collection")


# ---------------------------------------------------------------------------------------------------------------------
# The CI script, in a repository of its own


def git(repository: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)


def verify_results(repository: Path, *revisions: str) -> subprocess.CompletedProcess[str]:
    audiocl = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'cli.py'))}"
    return subprocess.run(
        [str(ROOT / ".ci" / "verify-results"), *revisions],
        cwd=repository,
        env={**os.environ, "AUDIOCL": audiocl, "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_script_verifies_what_a_change_adds(
    call: Call, finished: Path, no_collections: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = no_collections / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    git(repository, "init", "--initial-branch", "main")
    call("submit", "joint-closed", "--results", finished, "--out", "../joint.zip")
    call("submit", "ncm", "--results", finished, "--out", "../ncm.zip")
    call("verify", "../joint.zip", "--add", "results/first")
    git(repository, "add", ".")
    git(repository, "commit", "--message", "first")
    git(repository, "checkout", "-b", "mine")
    call("verify", "../ncm.zip", "--add", "results/mine")
    git(repository, "add", ".")
    git(repository, "commit", "--message", "mine")
    done = verify_results(repository, "main")
    assert done.returncode == 0, done.stderr
    assert "results/mine: 2 runs, all right" in done.stdout
    assert "results/first" not in done.stdout
    assert "new" in done.stdout

    # What is hidden from archives is seen all the same; so is code, and a link.
    [run_id, *_] = ResultsDir("results/mine").run_ids()
    doctor(ResultsDir("results/mine"), run_id, 1.0)
    Path(".gitattributes").write_text("results/** export-ignore\n", encoding="utf-8")
    Path("results/steal.py").write_text("print(1)\n", encoding="utf-8")
    Path("results/mine/link").symlink_to("/etc/passwd")
    git(repository, "add", ".")
    git(repository, "commit", "--message", "hostile")
    done = verify_results(repository, "main", "mine")
    assert done.returncode == 2
    assert ".gitattributes" in done.stdout
    for told in (f"{run_id}.parquet: final_accuracy is", "results/steal.py: it is no collection", "results/mine/link"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert verify_results(repository, "nowhere").returncode == 2
    assert verify_results(repository).returncode == 2


@pytest.mark.slow
def test_a_mini_run_goes_all_the_way(call: Call, no_collections: Path) -> None:
    """What CONTRIBUTING.md tells a newcomer to try: a miniature, submitted and verified."""
    for arguments in (
        ("run", "-m", "ncm", "-b", "us8k", "--data", "mini", *QUICK, "--orders", "0-4", "--results", "out"),
        ("submit", "ncm", "--results", "out"),
        ("verify", "submission.zip"),
        ("verify", "submission.zip", "--add", "results/mine"),
    ):
        done = call(*arguments)
        assert done.code == 0, done.err
    assert "weights known: those of eat-tiny" in done.out
    assert "synthetic data" in done.out
    assert "lacks order" not in done.out
