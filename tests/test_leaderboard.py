"""The leaderboard: numbers against those worked out by hand; pages that are whole, safe and repeatable."""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Call, call  # noqa: F401 - a fixture

from audiocl_bench import config, metrics, registry, results
from audiocl_bench.errors import ResultsError
from audiocl_bench.report.leaderboard import boards, duels, serve, site, statistics, svg
from audiocl_bench.report.leaderboard.boards import Board
from audiocl_bench.report.leaderboard.found import find_runs, read_run
from audiocl_bench.report.leaderboard.repeat import command
from audiocl_bench.results import ResultsDir, build_result, make_run_id, result_dirs

ROOT = Path(__file__).resolve().parent.parent
CLASSES = (("bell", "cat"), ("drum", "engine"))
CLIPS = 10


def predictions(right: Mapping[str, int], *, after: tuple[int, ...] = (0, 1), classes: Any = CLASSES) -> pd.DataFrame:
    """`right[name]` of 10 clips of a class are right after the last session, all of them before."""
    rows = []
    for t in after:
        seen = [name for names in classes[: t + 1] for name in names]
        for session in range(t + 1):
            for name in classes[session]:
                other = next((each for each in seen if each != name), name)
                good = right.get(name, CLIPS) if t == len(classes) - 1 else CLIPS
                rows += [(t, f"{name}/{k}", session, name, name if k < good else other) for k in range(CLIPS)]
    return pd.DataFrame(rows, columns=["after_session", "clip_id", "session", "label", "predicted"])


def session_rows(*, whole: bool = False, classes: Any = CLASSES) -> pd.DataFrame:
    cost = {"train_seconds": 2.0, "eval_seconds": 1.0, "train_passes": 30, "eval_passes": 20, "block_runs": 100}
    state = {"peak_memory_mb": 50.0, "trainable_parameters": 7, "kept_bytes": 4000, "encoder_version": 0}
    groups = {len(classes) - 1: tuple(itertools.chain(*classes))} if whole else dict(enumerate(classes))
    return pd.DataFrame(
        [
            {"session": t, "classes": list(names), "train_clips": 20, **cost, **state, "diagnostics": {}}
            for t, names in groups.items()
        ]
    )


def add_run(
    folder: ResultsDir,
    method: str = "ncm",
    order: int = 0,
    seed: int = 0,
    *,
    right: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
    whole: bool = False,
    classes: Any = CLASSES,
    run_id: str | None = None,
    **meta: Any,
) -> str:
    """Store a run of 2 sessions with 2 classes of 10 test clips each and return its id."""
    settings = dict(settings or {"ridge": 1.0})
    facts = {
        "method": method,
        "benchmark": "esc50",
        "protocol": "grouped",
        "backbone": "eat-base",
        "order": order,
        "seed": seed,
        **meta,
    }
    known = {name: facts[name] for name in ("method", "benchmark", "protocol", "backbone", "order", "seed")}
    row = {
        "run_id": run_id or make_run_id(**known, config_hash=repr((settings, sorted(meta.items(), key=repr)))),
        "own_data": False,
        "mini": False,
        "variant": "",
        "stand_in": False,
        "audit_passed": True,
        "audit": {"batch_independence": {"passed": True, "clips": 16}},
        "split_hash": f"{order:064d}",
        "index_hash": "b" * 64,
        "weights_hash": "c" * 64,
        "front_end": {"kind": "kaldi"},
        "method_config": settings,
        "audiocl_version": "0.1.0",
        "git_commit": "d" * 40,
        "device": "cpu",
        "threads": 1,
        "python_version": "3.11.0",
        "library_versions": {"torch": "2.13.0"},
        "platform": "test",
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:01:00+00:00",
        "notes": {"backbone": {"pool": "mean", "layer": 4}},
        **facts,
    }
    after = (len(classes) - 1,) if whole else tuple(range(len(classes)))
    table = predictions(right or {}, after=after, classes=classes)
    return folder.write(build_result(row, session_rows(whole=whole, classes=classes), table))


def with_final(percent: int) -> dict[str, int]:
    """Rights per class whose final accuracy is `percent`, a multiple of 10."""
    return {name: percent // 10 for names in CLASSES for name in names}


def edit(folder: ResultsDir, run_id: str, **changes: Any) -> None:
    """Change columns of a stored runs row, as somebody with another tool would."""
    path = folder.file("runs", run_id)
    table = pq.read_table(path)
    for name, value in changes.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(name), pa.array([value], table.schema.field(name).type))
    pq.write_table(table, path)


@pytest.fixture
def folder(tmp_path: Path) -> ResultsDir:
    return ResultsDir(tmp_path / "results")


def only_board(*folders: ResultsDir) -> Board:
    [(key, found)] = boards.boards(find_runs(folders)).items()
    return boards.read_board(key, found)


# --- Numbers


def test_an_entry_is_the_mean_of_its_runs_with_students_interval(folder: ResultsDir) -> None:
    add_run(folder, order=0, right=with_final(80))
    add_run(folder, order=1, right=with_final(90))
    [entry] = only_board(folder).entries
    assert entry.final.mean == pytest.approx(85)
    # t_{0.975, 1} = 12.7062; s = 10 / sqrt(2); half = t s / sqrt(2) = 12.7062 * 5
    assert entry.final.half_width == pytest.approx(63.531, abs=1e-3)
    assert entry.scores["average_incremental_accuracy"].mean == pytest.approx((100 + 85) / 2)
    assert entry.scores["forgetting"].mean == pytest.approx(15)
    assert entry.curve == pytest.approx([100, 85])
    assert (entry.costs.seconds, entry.costs.passes, entry.costs.kept_bytes, entry.costs.trainable) == (6, 100, 4000, 7)


@pytest.mark.parametrize("whole", [False, True])
def test_scores_are_those_of_the_results_module(folder: ResultsDir, whole: bool) -> None:
    classes = (("a",), ("b", "c", "d"), ("e",))  # sessions of unlike size
    right = {"a": 1, "b": 7, "c": 10, "d": 4, "e": 9}
    run_id = add_run(folder, right=right, classes=classes, whole=whole)
    [found] = find_runs([folder])
    run = read_run(found, found.row["split_hash"])
    assert run.reason == ""
    assert run.scores == pytest.approx(results.score(folder.predictions(run_id)), nan_ok=True)
    assert run.recall == {name: 10.0 * count for name, count in right.items()}
    stored = results.session_scores(folder.predictions(run_id))
    for ours, theirs in ((run.curve, "accuracy"), (run.new, "new_accuracy"), (run.old, "old_accuracy")):
        assert ours == pytest.approx(stored[theirs].to_numpy(), nan_ok=True)


def test_entries_are_ranked_by_their_means_and_incomplete_ones_are_marked(folder: ResultsDir) -> None:
    for order in range(3):
        add_run(folder, "ncm", order, right=with_final(70))
        if order < 1:
            add_run(folder, "ranpac", order, right=with_final(90))
    board = only_board(folder)
    assert [(e.rank, e.name, e.absent_orders) for e in board.entries] == [(1, "ranpac", 2), (2, "ncm", 0)]


def test_settings_make_entries_and_repeats_count_once(folder: ResultsDir) -> None:
    add_run(folder, "pace", right=with_final(60), settings={"rank": 4, "fsa": True, "layers": ["k", "v"]})
    add_run(folder, "pace", right=with_final(80), settings={"rank": 8, "fsa": True, "layers": ["k"]})
    add_run(folder, "pace", right=with_final(100), settings={"rank": 8, "fsa": True, "layers": ["k"]}, run_id="again")
    best, other = only_board(folder).entries
    assert best.differs == (("layers", "k"), ("rank", "8"))
    assert other.differs == (("layers", "k,v"), ("rank", "4"))
    assert best.final.n == 1
    assert best.final.mean == pytest.approx(90)
    assert best.repeats == 1
    assert best.name == f"pace #{best.runs[0].row['config_hash'][:6]}" != other.name
    assert best.slug != other.slug


def test_presets_and_the_code_of_a_file_are_entries_of_their_own(folder: ResultsDir) -> None:
    add_run(folder, "mine", notes={"method_source_sha256": "1" * 64})
    add_run(folder, "mine", notes={"method_source_sha256": "2" * 64})
    add_run(folder, "pace", variant="paper", notes={})
    names = {(entry.label, entry.differs) for entry in only_board(folder).entries}
    assert names == {("mine", (("code", "111111"),)), ("mine", (("code", "222222"),)), ("pace@paper", ())}


def test_own_data_that_changed_makes_entries_of_their_own(folder: ResultsDir) -> None:
    """Runs from before schema 3 do not say which audio they heard: they stay apart only where others differ."""
    own = {"own_data": True, "benchmark": "mine"}
    add_run(folder, "ncm", **own)
    add_run(folder, "ncm", **own, first_session_epochs=5, audio_key="a" * 64, order=1)
    [entry] = only_board(folder).entries
    assert (entry.differs, len(entry.runs)) == ((), 2)
    before = entry.slug
    add_run(folder, "ncm", **own, first_session_epochs=9, audio_key="a" * 64, order=1)
    told = {entry.differs[0][1]: entry.slug for entry in only_board(folder).entries}
    assert set(told) == {"not said", "audio aaaaaaaaaaaa, E_0 = 5", "audio aaaaaaaaaaaa, E_0 = 9"}
    assert len({before, *told.values()}) == 4


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"weights_hash": "e" * 64}, ""),
        ({"index_hash": "e" * 64}, ""),
        ({"protocol": "paper"}, ""),
        ({"backbone": "sslam"}, ""),
        ({"front_end": {"kind": "whisper"}}, ""),
        ({"notes": {"backbone": {"pool": "cls", "layer": 4}}}, ""),
        ({"own_data": True}, "own data"),
        ({"mini": True}, "mini (synthetic data)"),
        ({"stand_in": True}, "stand-in backbone"),
    ],
)
def test_whatever_is_not_the_same_stands_on_a_board_of_its_own(
    folder: ResultsDir, change: dict[str, Any], warning: str
) -> None:
    add_run(folder)
    add_run(folder, "ranpac", **change)
    made = boards.boards(find_runs([folder]))
    assert [len(found) for found in made.values()] == [1, 1]
    assert sorted(key.warning for key in made) == sorted(["", warning])
    assert len({key.slug for key in made}) == 2


def test_comparable_boards_come_first(folder: ResultsDir) -> None:
    add_run(folder, benchmark="aaa", own_data=True)
    add_run(folder, benchmark="zzz")
    assert [key.benchmark for key in boards.boards(find_runs([folder]))] == ["zzz", "aaa"]


def test_joint_training_is_a_reference(folder: ResultsDir) -> None:
    add_run(folder, "joint", whole=True, right=with_final(100))
    add_run(folder, "ncm", right=with_final(50))
    board = only_board(folder)
    assert [entry.name for entry in board.entries] == ["ncm"]
    [joint] = board.references
    assert (joint.rank, joint.groups, joint.final.mean) == (None, "", 100)
    assert math.isnan(joint.scores["forgetting"].mean)
    [pair] = board.pairs
    assert pair.comparison is not None
    assert pair.comparison.difference.mean == pytest.approx(-50)
    assert math.isnan(pair.adjusted)


# --- What is never ranked


def test_failed_audits_and_declared_leaks_are_set_aside(folder: ResultsDir) -> None:
    failing = {"batch_independence": {"passed": False}, "repeatability": {"passed": True}}
    add_run(folder, "leaky", right=with_final(100), audit_passed=False, audit=failing)
    add_run(folder, "published", right=with_final(100), audit_passed=False)
    add_run(folder, "liar", right=with_final(100), audit=failing)
    add_run(folder, "silent", right=with_final(100), audit={})
    add_run(folder, "ncm", right=with_final(30))
    board = only_board(folder)
    assert [entry.name for entry in board.entries] == ["ncm"]
    reasons = {run.label: run.reason for run in board.set_aside}
    assert reasons["leaky"] == reasons["liar"] == "failed its audit: batch independence"
    assert "published leak" in reasons["published"]
    assert "no audit" in reasons["silent"]


def test_an_edited_score_is_set_aside_and_never_shown_as_the_score(folder: ResultsDir) -> None:
    run_id = add_run(folder, right=with_final(50))
    edit(folder, run_id, final_accuracy=99.0)
    [run] = only_board(folder).set_aside
    assert run.reason == "its stored final accuracy is 99, but its predictions give 50"
    assert run.scores["final_accuracy"] == pytest.approx(50)


def test_another_split_is_set_aside(folder: ResultsDir) -> None:
    add_run(folder, "ncm")
    add_run(folder, "ranpac")
    add_run(folder, "pace", split_hash="f" * 64)
    [run] = only_board(folder).set_aside
    assert run.label == "pace"
    assert "its split of order 0 (ffffff)" in run.reason


def test_other_classes_or_clips_under_the_same_split_are_set_aside(folder: ResultsDir) -> None:
    add_run(folder, "ncm")
    add_run(folder, "ranpac")
    add_run(folder, "pace", classes=(("bell", "cat"), ("drum", "frog")))
    fewer = predictions({})
    fewer = fewer[~fewer["clip_id"].str.endswith("/9")]
    known = folder.run(add_run(folder, "lucky"))
    meta = {name: known[name] for name in results.META_COLUMNS}
    folder.write(build_result(meta, session_rows(), fewer), replace=True)
    reasons = {run.label: run.reason for run in only_board(folder).set_aside}
    assert "sessions or classes" in reasons["pace"]
    assert "other clips" in reasons["lucky"]


def test_a_run_in_two_collections_counts_once_and_a_false_copy_is_set_aside(tmp_path: Path) -> None:
    one, same, false = (ResultsDir(tmp_path / name) for name in ("one", "same", "false"))
    for directory, percent in ((one, 50), (same, 50), (false, 100)):
        add_run(directory, right=with_final(percent), run_id="run")
    board = only_board(one, same, false)
    assert [(entry.final.n, entry.final.mean) for entry in board.entries] == [(1, 50)]
    assert [(run.page, run.reason) for run in board.set_aside] == [
        ("run-2", "another run with the same id has other predictions")
    ]


def test_a_file_that_cannot_be_scored_is_named(folder: ResultsDir) -> None:
    run_id = add_run(folder)
    path = folder.file("predictions", run_id)
    pq.write_table(pq.read_table(path).slice(0, 25), path)
    with pytest.raises(ResultsError, match=re.escape(str(path))):
        only_board(folder)


# --- Who can be told apart


def test_holm_by_hand() -> None:
    # Sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1, each at least as large as the one before.
    assert statistics.holm([0.01, 0.04, math.nan, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True
    )
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_group_letters_of_a_chain() -> None:
    # 0 and 2 differ, their neighbour 1 differs from neither.
    assert statistics.groups(3, [(0, 2)]) == ["a", "a b", "b"]
    assert statistics.groups(3, []) == ["a", "a", "a"]
    assert statistics.groups(2, [(0, 1)]) == ["a", "b"]
    assert statistics.groups(0, []) == []
    assert statistics.groups(28, itertools.combinations(range(28), 2))[25:] == ["z", "aa", "ab"]


@given(st.integers(1, 7), st.data())
def test_entries_share_a_letter_if_and_only_if_they_cannot_be_told_apart(count: int, data: st.DataObject) -> None:
    pairs = list(itertools.combinations(range(count), 2))
    different = data.draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    letters = [set(text.split()) for text in statistics.groups(count, sorted(different))]
    assert all(letters)
    for i, j in pairs:
        assert bool(letters[i] & letters[j]) == ((i, j) not in different)


@pytest.mark.parametrize("pairs", [0, 1, 2, 3, 10, 45, 190])
def test_streams_needed_is_the_least_that_can_reach_the_threshold(pairs: int) -> None:
    least = next(n for n in range(1, 30) if metrics.sign_flip_p_value([1.0] * n) <= statistics.ALPHA / max(1, pairs))
    assert statistics.streams_needed(pairs) == least


def test_six_shared_orders_part_two_methods_and_five_do_not(folder: ResultsDir) -> None:
    for order in range(5):
        add_run(folder, "ncm", order, right=with_final(50))
        add_run(folder, "ranpac", order, right=with_final(60))
    board = only_board(folder)
    assert board.too_few
    assert [entry.groups for entry in board.entries] == ["", ""]
    add_run(folder, "ncm", 5, right=with_final(50))
    add_run(folder, "ranpac", 5, right=with_final(60))
    board = only_board(folder)
    assert not board.too_few
    assert [(entry.name, entry.groups) for entry in board.entries] == [("ranpac", "a"), ("ncm", "b")]
    [pair] = board.pairs
    assert pair.p_value == pair.adjusted == 2 / 2**6


def test_pairs_are_over_shared_orders_and_seeds_only(folder: ResultsDir) -> None:
    for key, percent in (((0, 0), 50), ((1, 0), 60), ((1, 1), 90)):
        add_run(folder, "ncm", *key, right=with_final(percent))
    for key, percent in (((0, 0), 40), ((1, 0), 40), ((2, 0), 100)):
        add_run(folder, "ranpac", *key, right=with_final(percent))
    board = only_board(folder)
    [pair] = board.pairs
    assert pair.comparison is not None
    assert pair.comparison.difference.n == 2
    assert pair.comparison.difference.mean == pytest.approx(15)
    assert set(pair.comparison.unmatched) == {(1, 1), (2, 0)}


# --- Two entries side by side


def test_a_duel_by_session_and_class(folder: ResultsDir) -> None:
    add_run(folder, "ncm", 0, right={"bell": 10, "cat": 10, "drum": 10, "engine": 6})
    add_run(folder, "ncm", 1, right={"bell": 10, "cat": 8, "drum": 10, "engine": 8})
    add_run(folder, "ranpac", 0, right={"bell": 5, "cat": 10, "drum": 10, "engine": 8})
    add_run(folder, "ranpac", 1, right={"bell": 7, "cat": 10, "drum": 10, "engine": 6})
    board = only_board(folder)
    [pair] = board.compared
    duel = duels.duel(board, pair)
    assert (duel.first.name, duel.second.name, duel.keys) == ("ncm", "ranpac", ((0, 0), (1, 0)))
    assert [line.name for line in duel.classes] == ["bell", "drum", "engine", "cat"]
    bell = duel.classes[0]
    assert (bell.first, bell.second, bell.difference) == pytest.approx((100, 60, 40))
    expected = metrics.summarise([50.0, 30.0])
    assert bell.half_width == pytest.approx(expected.half_width)
    assert [line.difference for line in duel.last] == pytest.approx([15, 0])
    assert [line.difference for line in duel.curve] == pytest.approx([0, 7.5])
    final = duel.scores[0]
    assert (final.name, final.difference) == ("final_accuracy", pytest.approx(pair.comparison.difference.mean))
    assert final.half_width == pytest.approx(pair.comparison.difference.half_width)


def test_a_duel_with_a_reference_shows_what_both_have(folder: ResultsDir) -> None:
    add_run(folder, "joint", whole=True)
    add_run(folder, "ncm", right=with_final(50))
    board = only_board(folder)
    duel = duels.duel(board, board.pairs[0])
    assert [line.name for line in duel.curve] == ["1"]
    assert "forgetting" not in [line.name for line in duel.scores]
    assert all(math.isnan(line.half_width) for line in duel.classes)


# --- The command


def test_the_command_repeats_the_run_exactly(folder: ResultsDir) -> None:
    method = registry.load("pace")
    [preset, *_] = [name for name in method.Config.sources if name != "official"] or [""]
    wanted = config.build(method.Config, "esc50", {"rank": 3, **({"preset": preset} if preset else {})}, owner="pace")
    add_run(folder, "pace", settings=wanted.as_dict(), variant=wanted.variant, mini=True, device="cuda:0 (H100)")
    words = shlex.split(" ".join(command(only_board(folder).entries[0].runs[0])))
    assert words[:2] == ["audiocl", "run"]
    options = list(zip(words[2::2], words[3::2], strict=True))
    told = dict(options)
    name, _, variant = told["--method"].partition("@")
    assert (name, told["--data"], told["--device"], told["--orders"]) == ("pace", "mini", "cuda:0", "0")
    overrides = config.parse_overrides([value for option, value in options if option == "--set"])
    assert overrides.pop("backbone.pool") == "mean"
    assert overrides.pop("backbone.layer") == "4"
    again = config.build(
        method.Config, "esc50", {**overrides, **({"preset": variant} if variant else {})}, owner="pace"
    )
    assert again == wanted


# --- Drawings


def test_long_streams_are_drawn_in_blocks() -> None:
    T = 95
    matrix = np.full((T, T), np.nan)
    matrix[np.tril_indices(T)] = 40.0
    matrix[90:, :3] = 100.0
    blocks, size = svg.in_blocks(matrix)
    assert size == 3
    assert blocks.shape == (32, 32)
    assert blocks[30, 0] == 100.0
    assert blocks[31, 0] == 100.0
    assert blocks[5, 5] == 40.0
    assert np.isnan(blocks[0, 1])
    small = np.array([[10.0, np.nan], [20.0, 30.0]])
    assert svg.in_blocks(small)[0] is small
    assert str(svg.heat_map(matrix, told="x")).count("<rect") == 32 * 33 / 2 + svg.LEVELS + 1


def test_drawings_say_what_they_show_and_escape_it() -> None:
    drawing = str(svg.sparkline([100.0, math.nan, 40.0], told='<b>"x"'))
    assert 'role="img" aria-label="&lt;b&gt;&#34;x&#34;"' in drawing
    assert 'points="3,3 97,15"' in drawing  # 100 at the top, 40 at 3 + 0.6 x 20; the gap is passed over
    assert "nan" not in drawing
    curves = str(svg.curves([svg.Series("<i>", [1.0, 2.0], [0.5, math.nan])], told="t"))
    assert "&lt;i&gt; 2.0" in curves
    assert "nan" not in curves


@given(st.floats(0, 99), st.floats(0.1, 100))
def test_axes_have_a_few_round_ticks(low: float, reach: float) -> None:
    found = svg.ticks(low, low + reach)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 <= tick <= low + reach + 1e-6 for tick in found)


def test_levels_and_ranges() -> None:
    assert [svg.level(value) for value in (0, 9.9, 10, 99.9, 100)] == [0, 0, 1, 9, 10]
    assert svg.nice_range([81.0, math.nan], [97.0]) == (80.0, 100.0)
    assert svg.nice_range([3.0], [99.0]) == (0.0, 100.0)
    assert svg.nice_range([], []) == (0.0, 100.0)
    assert svg.nice_range([100.0], [100.0]) == (95.0, 100.0)
    assert svg.nice_range([0.0], [0.0]) == (0.0, 5.0)
    assert svg.session_ticks(8) == list(range(8))
    assert svg.session_ticks(315) == list(range(0, 315, 50))


# --- Pages


VOID = {"meta", "link", "br", "input", "img", "hr"}


class Page(HTMLParser):
    """A page, checked while it is read: balanced tags, unique ids, and everything that points somewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path, self.open, self.ids, self.points, self.told = path, [], [], [], []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open, f"{path}: {self.open} left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{self.path}: an attribute twice in {attrs}"
        self._note(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{self.path}: </{tag}> closes nothing"
        assert self.open[-1] == tag, f"{self.path}: </{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def _note(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tags.append((tag, attributes))
        if "id" in attributes:
            assert attributes["id"] not in self.ids, f"{self.path}: id {attributes['id']} twice"
            self.ids.append(attributes["id"])
        self.points += [value for name, value in attributes.items() if name in ("href", "src") and value]
        named = (attributes.get("aria-labelledby"), attributes.get("for"))
        self.told += [one for value in named if value for one in value.split()]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def pages(root: Path) -> Iterator[Page]:
    for path in sorted(root.rglob("*.html")):
        yield Page(path)


def build(folder: ResultsDir, out: Path) -> Path:
    return site.build([folder], out).out


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def full(folder: ResultsDir) -> ResultsDir:
    """Results with everything in them: groups, settings, a reference, runs set aside, three kinds of boards."""
    for order in range(7):
        add_run(folder, "ncm", order, right=with_final(50 + 10 * (order % 2)))
        add_run(folder, "ranpac", order, right=with_final(80))
        if order < 2:
            add_run(folder, "ranpac", order, right=with_final(70), settings={"ridge": 2.0})
        add_run(folder, "joint", order, whole=True)
    add_run(folder, "leaky", audit_passed=False)
    add_run(folder, "ncm", own_data=True, benchmark="mine")
    add_run(folder, "ncm", stand_in=True, backbone="eat-tiny")
    add_run(folder, "once", classes=(("a", "b"),), benchmark="one-session", own_data=True)
    return folder


def test_every_page_is_well_formed_and_every_link_leads_somewhere(full: ResultsDir, tmp_path: Path) -> None:
    root = build(full, tmp_path / "site")
    seen: set[Path] = set()
    for page in pages(root):
        assert page.count("h1") == page.count("main") == page.count("title") == 1, page.path
        assert ("html", {"lang": "en"}) in page.tags
        assert set(page.told) <= set(page.ids), page.path
        assert page.count("caption") == page.count("table"), page.path
        assert all(a.get("scope") for tag, a in page.tags if tag == "th"), page.path
        assert all("role" in a or a.get("aria-hidden") == "true" for tag, a in page.tags if tag == "svg"), page.path
        assert all(a.get("tabindex") == "0" for tag, a in page.tags if a.get("class") == "scroll"), page.path
        assert not any(name.startswith("on") or name == "style" for _, a in page.tags for name in a), page.path
        for target in page.points:
            parts = urllib.parse.urlsplit(target)
            assert not parts.scheme, f"{page.path} leads away: {target}"
            assert not parts.netloc, f"{page.path} leads away: {target}"
            reached = (page.path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page.path
            assert reached.is_relative_to(root), target
            assert reached.is_file(), f"{page.path}: {target}"
            if parts.fragment:
                assert parts.fragment in Page(reached).ids, target
            seen.add(reached)
    orphans = {path for path in root.rglob("*") if path.is_file()} - seen - {root / site.MARK}
    assert orphans == set(), "files that no page leads to"


def test_pages_say_what_matters(full: ResultsDir, tmp_path: Path) -> None:
    root = build(full, tmp_path / "site")
    told = {page.path.relative_to(root).as_posix(): " ".join(page.text.split()) for page in pages(root)}
    board = next(text for name, text in told.items() if name.startswith("boards/esc50-grouped-eat-base"))
    assert "80.00 ± 0.00" in board
    assert "incomplete: 5 orders fewer" in board
    assert "Reference, not ranked" in board
    assert "declares that it reproduces a published leak" in board
    assert "cannot be told apart" in board
    assert "Not comparable" not in board
    for name in ("boards/mine-", "boards/esc50-grouped-eat-tiny"):
        assert "Not comparable." in next(text for path, text in told.items() if path.startswith(name))
    index = told["index.html"]
    assert index.index("Published benchmarks") < index.index("Own data") < index.index("Stand-in backbone")
    run = next(text for name, text in told.items() if name.startswith("runs/ncm-esc50-grouped-eat_base-o0"))
    for expected in ("audiocl run --method ncm", "--set ridge=1.0", "c" * 64, "audit passed", "rank 3 of 3"):
        assert expected in run
    leaky = next(text for name, text in told.items() if name.startswith("runs/leaky"))
    assert "not ranked" in leaky
    duels = [text for name, text in told.items() if "/ranpac" in name and "-vs-ncm" in name]
    # Three pairs are tested: 7 shared orders give p = 2 / 2**7 = 0.0156, times 3 below 0.05; 2 shared orders cannot.
    [apart] = [text for text in duels if "7 shared runs" in text]
    assert "The two can be told apart: p = 0.016, after Holm's correction over the board 0.047." in apart
    [close] = [text for text in duels if "2 shared runs" in text]
    assert "The two cannot be told apart" in close
    assert "p is never below 0.5" in close


def test_the_site_holds_the_runs_and_the_boards_as_data(full: ResultsDir, tmp_path: Path) -> None:
    root = build(full, tmp_path / "site")
    copied = ResultsDir(root / "data")
    assert copied.run_ids() == full.run_ids()
    pd.testing.assert_frame_equal(copied.runs(), full.runs())
    boards = json.loads((root / site.MARK).read_text())["boards"]
    assert len(boards) == 4
    [board] = [each for each in boards if each["benchmark"] == "esc50" and not each["warning"]]
    assert [(e["rank"], e["method"], e["reference"]) for e in board["entries"]] == [
        (1, "ranpac", False),
        (2, "ranpac", False),
        (3, "ncm", False),
        (None, "joint", True),
    ]
    assert board["entries"][2]["scores"]["final_accuracy"]["mean"] == pytest.approx((4 * 50 + 3 * 60) / 7)


def test_equal_results_give_equal_bytes(full: ResultsDir, tmp_path: Path) -> None:
    first = files_of(build(full, tmp_path / "one"))
    shutil.copytree(full.path, tmp_path / "elsewhere" / "copy")
    assert files_of(build(ResultsDir(tmp_path / "elsewhere" / "copy"), tmp_path / "two")) == first


def test_a_site_is_replaced_whole_and_nothing_else_ever_is(folder: ResultsDir, tmp_path: Path) -> None:
    gone = add_run(folder, "gone")
    root = build(folder, tmp_path / "site")
    before = files_of(root)
    for table in results.SCHEMAS:
        folder.file(table, gone).unlink()
    with pytest.raises(ResultsError, match="there are no runs"):
        build(folder, root)
    assert files_of(root) == before
    add_run(folder, "new")
    build(folder, root)
    assert [path.name[:4] for path in (root / "runs").iterdir()] == ["new-"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "site"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ResultsError, match="holds no leaderboard"):
        build(folder, tmp_path / "mine")
    with pytest.raises(ResultsError, match="is a file"):
        build(folder, tmp_path / "mine" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    assert (build(folder, tmp_path / "empty") / "index.html").is_file()


def test_a_damaged_run_stops_the_build_and_leaves_the_old_site(full: ResultsDir, tmp_path: Path) -> None:
    root = build(full, tmp_path / "site")
    before = files_of(root)
    path = full.file("sessions", full.run_ids()[-1])
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(ResultsError, match=re.escape(str(path))):
        build(full, root)
    assert files_of(root) == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["results", "site"]


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE runs; --",
    "../../../etc/passwd",
    "{{ 7 * 7 }} {% raw %}",
    "]]>&amp;\u202e\u0000",
    "$(touch hacked) `id`",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_text(folder: ResultsDir, tmp_path: Path, text: str) -> None:
    classes = ((f"{text} 1", f"{text} 2"), (f"{text} 3", "cat"))
    names = {"benchmark": f"b {text}", "protocol": f"p {text}", "backbone": f"n {text}", "variant": f"v {text}"}
    notes = {text: [text], "backbone": {"pool": text, "layer": text}, "method_source_sha256": text}
    audit = {text: {"passed": True, text: text}}
    common: dict[str, Any] = {**names, "classes": classes, "own_data": True, "notes": notes, "audit": audit}
    common |= {"device": text, "platform": text, "library_versions": {text: text}, "front_end": {text: text}}
    for number, order in itertools.product(range(2), range(2)):
        settings = {text: text, "rank": number}
        add_run(folder, text, order, settings=settings, run_id=f"run-{number}-{order}", **common)
    add_run(folder, text, 2, run_id="aside", audit_passed=False, **{**common, "audit": {text: {"passed": False}}})
    root = build(folder, tmp_path / "site")
    assert all(re.fullmatch(r"[A-Za-z0-9._+=@/-]+", name) for name in files_of(root))
    found = list(pages(root))
    for page in found:
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        assert [Path(a.get("src") or "").name for a in scripts] == ["site.js"], page.path
        assert page.count("img") == 0
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    shown = "".join(page.text for page in found)
    assert text.replace("\u0000", "\ufffd") in shown or text in shown
    # A shell reads the command's hostile words as they were.
    run = read_run(find_runs([folder])[-1], "x")
    assert f"{text}={text}" in shlex.split(" ".join(command(run)))


def test_numbers_that_are_none_do_not_break_a_page(folder: ResultsDir, tmp_path: Path) -> None:
    run_id = add_run(folder)
    edit(folder, run_id, train_seconds=math.inf, peak_memory_mb=None, fresh_final_accuracy=math.nan, git_commit=None)
    root = build(folder, tmp_path / "site")
    text = "".join(page.text for page in pages(root))
    assert "nan" not in text
    assert "inf " not in text
    assert "unknown (not run from a clone)" in text


def test_json_that_is_none_is_said_in_a_sentence(folder: ResultsDir, tmp_path: Path) -> None:
    run_id = add_run(folder)
    edit(folder, run_id, notes="{")
    with pytest.raises(ResultsError, match=f"column 'notes' of run {run_id} is no valid JSON"):
        build(folder, tmp_path / "site")


def test_many_classes_are_shown_by_their_extremes(folder: ResultsDir, tmp_path: Path) -> None:
    names = [f"class{k:03d}" for k in range(240)]
    classes = (tuple(names[:120]), tuple(names[120:]))
    add_run(folder, "ncm", classes=classes)
    add_run(folder, "ranpac", classes=classes, right=dict.fromkeys(names[:100], 3))
    [page] = [page for page in pages(build(folder, tmp_path / "site")) if "compare" in page.path.parts]
    assert "the 50 where the second is, of 240" in " ".join(page.text.split())


@pytest.mark.slow
def test_the_examples_of_the_repository_build(tmp_path: Path) -> None:
    examples = result_dirs(ROOT / "results")
    if not examples:
        pytest.skip("needs results/examples of a clone")
    built = site.build(examples[:1], tmp_path / "site")
    assert built.boards >= 4
    assert built.set_aside == 0
    for page in itertools.islice(pages(built.out), 20):
        assert page.count("h1") == 1


# --- The command line


def test_build_says_what_it_made(call: Call, full: ResultsDir, tmp_path: Path) -> None:  # noqa: F811
    outcome = call("leaderboard", "build", "--results", full.path.parent, "--out", tmp_path / "site")
    assert outcome.code == 0, outcome.err
    assert "4 boards with 7 entries from 27 runs, 1 set aside" in outcome.out
    assert str(tmp_path / "site" / "index.html") in outcome.out.replace("\n", "")


def test_bad_input_is_one_sentence(call: Call, folder: ResultsDir, tmp_path: Path) -> None:  # noqa: F811
    for arguments, told in (
        (("build", "--results", tmp_path / "nowhere", "--out", tmp_path / "site"), "there are no runs in"),
        (("serve", tmp_path), "holds no leaderboard"),
        (("serve", tmp_path, "--results", tmp_path), "not both"),
        (("serve",), "there are no runs in"),
    ):
        outcome = call("leaderboard", *arguments)
        assert outcome.code == 2
        [sentence] = outcome.sentences
        assert told in sentence


@pytest.fixture
def served(full: ResultsDir, tmp_path: Path) -> Iterator[Callable[[str], http.client.HTTPResponse]]:
    server = serve.server(build(full, tmp_path / "site"), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def get(path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        connection.request("GET", path)
        return connection.getresponse()

    yield get
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_server_gives_pages_and_nothing_else(served: Callable[[str], http.client.HTTPResponse]) -> None:
    page = served("/")
    assert page.status == 200
    assert b"<h1>Leaderboard</h1>" in page.read()
    assert "default-src 'none'" in (page.getheader("Content-Security-Policy") or "")
    assert served("/boards/").status == 404, "no listing of folders"
    assert served("/../results/runs").status == 404
    assert served("/%2e%2e/results/runs").status == 404
    assert served("/nothing.html").status == 404


def test_a_port_in_use_is_said(full: ResultsDir, tmp_path: Path) -> None:
    root = build(full, tmp_path / "site")
    with serve.server(root, 0) as taken, pytest.raises(ResultsError, match=r"is in use: give another with --port"):
        serve.server(root, taken.server_address[1])


@pytest.mark.slow
def test_serve_builds_shows_and_ends_with_ctrl_c(full: ResultsDir, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", "leaderboard", "serve", "--results", str(full.path), "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().split()[0]
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=30)
    connection.request("GET", "/about.html")
    assert connection.getresponse().status == 200
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest.strip() == "stopped."
    assert not list(tmp_path.glob("audiocl-leaderboard-*")), "the folder of the site is gone"
