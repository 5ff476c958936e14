"""The command line on miniatures (`--data mini`), and missing corpora that `run` may or may not download."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import soundfile
from test_acquire import Server, offer, plant, server, wav, zipped
from test_cli import QUICK, Call, assert_refused, call
from test_mini import FACTS, quicken

from audiocl_bench import benchmarks, splits, sweep
from audiocl_bench.cli import main
from audiocl_bench.mini import catalogue
from audiocl_bench.results import ResultsDir

__all__ = ["call", "server"]  # fixtures, used by name


# ----------------------------------------------------------------------------------------------- which benchmarks run


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The benchmarks that the next `run` would open; nothing is opened or made."""
    names: list[str] = []

    def note(asked: sweep.Sweep, wanted: list[benchmarks.Benchmark]) -> list[object]:
        assert asked.data is None or asked.data != sweep.MINI
        names.extend(benchmark.name for benchmark in wanted)
        return []

    monkeypatch.setattr(sweep, "_open_all", note)
    return names


def test_all_in_miniature_are_the_six(call: Call, chosen: list[str], tmp_path: Path) -> None:
    outcome = call("run", "-m", "ncm", "-b", "all", "--data", "mini", *QUICK, "--results", tmp_path)
    assert outcome.code == 0, outcome.err
    assert tuple(chosen) == benchmarks.mini_names()
    assert len(chosen) == 6


@pytest.mark.parametrize("name", FACTS)
def test_every_benchmark_stands_for_its_miniature(call: Call, chosen: list[str], tmp_path: Path, name: str) -> None:
    real = name.removeprefix("mini-")
    for given, data in ((real, "mini"), (name, "mini"), (f"{real},{name}", "mini"), (name, str(tmp_path))):
        chosen.clear()
        outcome = call("run", "-m", "ncm", "-b", given, "--data", data, *QUICK, "--results", tmp_path)
        assert outcome.code == 0, outcome.err
        assert chosen == [name], (given, data)


def test_a_folder_called_mini_is_still_a_folder(
    call: Call, chosen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mini").mkdir()
    monkeypatch.chdir(tmp_path)
    for data in (tmp_path / "mini", "../" + tmp_path.name + "/mini"):
        assert call("run", "-m", "ncm", "-b", "esc50", "--data", data, *QUICK, "--results", tmp_path).code == 0
    assert chosen == ["esc50", "esc50"]


def test_ones_own_benchmark_has_no_miniature(call: Call, tiny_benchmark: Path, tmp_path: Path) -> None:
    command = ("run", "-m", "ncm", "--data", "mini", *QUICK, "--results", tmp_path)
    assert_refused(call(*command, "-b", f"esc50,{tiny_benchmark}"), "no miniature", str(tiny_benchmark), "--data out")
    assert_refused(call(*command, "-b", "esc5"), "'esc5'", "did you mean esc50")
    assert_refused(call(*command, "-b", "mini-esc5"), "'mini-esc5'", "did you mean mini-esc50")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- a run in miniature


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with mini-us8k as short tones and, in its results, a run of ncm on it."""
    home = tmp_path_factory.mktemp("mini-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUDIOCL_HOME", str(home))
        quicken(patch)
        arguments = ["run", "-m", "ncm", "-b", "us8k", "--data", "mini", *QUICK, "--workers", "1"]
        patch.setattr(sys, "argv", ["audiocl", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    return home


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUDIOCL_HOME", str(home))
    quicken(monkeypatch)
    return home


def test_a_run_in_miniature_is_marked_as_one(home: Path) -> None:
    results = ResultsDir(home / "results")
    [run] = results.runs().to_dict("records")
    assert (run["benchmark"], run["mini"], run["comparable"], run["own_data"]) == ("mini-us8k", True, False, False)
    assert run["run_id"].startswith("ncm-mini_us8k-paper-eat_tiny-o0-s0-")
    assert run["audit_passed"]
    assert len(pd.read_parquet(home / "results" / "sessions")) == 5
    assert run["final_accuracy"] > 30  # a tone per class; chance is 10


def test_tables_and_shows_say_mini(call: Call, at_home: Path) -> None:
    table = call("show")
    assert table.code == 0
    assert "mini-us8k · paper split · eat-tiny" in table.out
    assert "NOT COMPARABLE with published numbers: mini (synthetic data), stand-in backbone" in table.out
    whole = call("show", "ncm-mini")
    assert whole.code == 0
    assert "mini-us8k" in whole.out
    assert "mini (synthetic data)" in whole.out


def test_the_same_request_finds_the_run_however_it_is_named(call: Call, at_home: Path) -> None:
    for arguments in (("-b", "us8k", "--data", "mini"), ("-b", "mini-us8k")):
        outcome = call("run", "-m", "ncm", *arguments, *QUICK)
        assert outcome.code == 0, outcome.err
        assert "0 runs made, 1 reused" in outcome.out
        assert "mini (synthetic data)" in outcome.out


def test_examples_to_listen_to(call: Call, at_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "heard"
    outcome = call("data", "listen", "mini-us8k", "--out", out, "--classes", "5", "--per-class", "3", "--order", "2")
    assert outcome.code == 0, outcome.err
    [sheet] = out.glob("*.png")
    assert outcome.out == f"15 clips beside {sheet}\n"
    assert np.unique(matplotlib.image.imread(sheet)[..., :3].reshape(-1, 3), axis=0).shape[0] > 50
    clips = sorted(out.rglob("*.wav"))
    assert len(clips) == 15
    stream = benchmarks.get("mini-us8k").stream("paper", 2)
    heard = Counter(name for clip in clips for name in stream.classes if name in str(clip.relative_to(out)))
    assert set(heard.values()) == {3}
    assert len(heard) == 5
    assert {stream.classes[0], stream.classes[-1]} <= heard.keys()  # evenly, from the first session to the last
    for clip in clips:
        wave, rate = soundfile.read(clip)
        assert rate == 16_000
        assert len(wave) == 4_000
        assert np.abs(wave).max() > 0.1


def test_the_title_of_the_sheet_says_mini(call: Call, at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []

    def note(*_: object, title: str, **__: object) -> None:
        titles.append(title)
        raise KeyboardInterrupt

    monkeypatch.setattr("audiocl_bench.report.listen.listen", note)
    assert call("data", "listen", "mini-us8k", "--protocol", "grouped").code == 130
    assert titles == ["urban sound in miniature: mini (synthetic, not comparable), grouped split, order 0"]


def test_what_cannot_be_listened_to(call: Call, at_home: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "heard")
    assert_refused(call("data", "listen", "mini-us9k", *out), "did you mean mini-us8k")
    assert_refused(call("data", "listen", "mini-us8k", "--protocol", "group", *out), "did you mean grouped")
    assert_refused(call("data", "listen", "mini-us8k", "--order", "5", *out), "no order 5")
    assert_refused(call("data", "listen", "esc50", "--data", tmp_path, *out), "audiocl data get esc50")
    assert not (tmp_path / "heard").exists()


def test_without_a_synthesiser_only_speech_is_missing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_home: Path
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    outcome = call("run", "-m", "ncm", "-b", "sc2,timit2,timit3", "--data", "mini", *QUICK, "--results", tmp_path)
    assert outcome.code == 2
    told = [line for line in outcome.err.splitlines() if line.startswith("audiocl: ")]
    assert told == [f"audiocl: {name} needs speech synthesis: pip install 'audiocl[mini]'" for name in catalogue.SPOKEN]
    assert "--get-data" not in outcome.err


@pytest.mark.slow
def test_a_real_miniature_from_nothing(call: Call, private_home: Path, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    outcome = call("run", "-m", "ncm", "-b", "sc2", "--data", "mini", *QUICK, "--protocol", "grouped")
    assert outcome.code == 0, outcome.err
    assert "making mini-sc2: 336 clips" in outcome.err
    [run] = ResultsDir(private_home / "results").runs().to_dict("records")
    assert (run["mini"], run["comparable"], run["audit_passed"]) == (True, False, True)
    assert run["final_accuracy"] > 100 / 14  # better than chance, even with random weights
    assert call("data", "listen", "mini-sc2", "--out", tmp_path / "heard").code == 0
    assert len(list((tmp_path / "heard").rglob("*.wav"))) == 28


# ------------------------------------------------------------------------------------------------- run and --get-data

CLASSES = tuple(f"class{number}" for number in range(10))


@pytest.fixture
def small_esc50(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Let the frozen splits of ESC-50 know 30 clips of 10 classes; return the files of the official layout."""
    clips = [
        (f"{fold}-{number}-A-{target}", CLASSES[target], fold, target)
        for number, fold, target in (
            (100 + 10 * fold + target, fold, target) for target in range(10) for fold in (1, 2, 5)
        )
    ]
    rows = "".join(
        f"{clip}.wav,{fold},{target},{name},False,{clip.split('-')[1]},A\n" for clip, name, fold, target in clips
    )
    table = pd.DataFrame(
        {
            "clip_id": [clip for clip, *_ in clips],
            "label": [name for _, name, *_ in clips],
            "part": ["test" if fold == 5 else "train" for *_, fold, _ in clips],
            "reason": "",
        }
    ).sort_values("clip_id", ignore_index=True)
    monkeypatch.setattr(splits, "frozen_clips", lambda name, folder=None: table[["clip_id", "label"]])
    monkeypatch.setattr(splits, "unused_clips", lambda name, folder=None: table[["clip_id", "label", "reason"]].head(0))
    monkeypatch.setattr(splits, "load", lambda name, protocol, folder=None: table[["clip_id", "label", "part"]])
    monkeypatch.setattr(splits, "load_orders", lambda name, folder=None: [list(CLASSES)] * 5)
    audio = {f"audio/{clip}.wav": wav(seed, 4_000) for seed, (clip, *_) in enumerate(clips)}
    return {"meta/esc50.csv": f"filename,fold,target,category,esc10,src_file,take\n{rows}".encode(), **audio}


@pytest.fixture
def offered(small_esc50: dict[str, bytes], server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that has the small ESC-50 where the catalogue looks for it."""
    offer(server, monkeypatch, "esc50", zipped(small_esc50, "ESC-50-33c8ce9/"))
    return server


def test_nothing_is_downloaded_unasked(
    call: Call, offered: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("something was to be downloaded"))
    data = tmp_path / "my audio"
    data.mkdir()
    outcome = call("run", "-m", "ncm", "-b", "esc50", *QUICK, "--data", data, "--results", tmp_path / "r")
    assert_refused(outcome, f"`audiocl data get esc50 --data '{data}'`", "repeat the command with --get-data")
    assert offered.ranges == []
    assert list(data.iterdir()) == []


def test_a_missing_corpus_is_downloaded_if_asked_and_the_run_goes_on(
    call: Call, offered: Server, small_esc50: dict[str, bytes], tmp_path: Path
) -> None:
    data, results = tmp_path / "audio", tmp_path / "r"
    command = ("run", "-m", "ncm", "-b", "esc50", *QUICK, "--data", data, "--results", results, "--workers", "1")
    outcome = call(*command, "--get-data")
    assert outcome.code == 0, outcome.err
    assert "1 run made, 0 reused" in outcome.out
    assert offered.ranges == [None]
    assert (data / "ESC-50" / "meta" / "esc50.csv").read_bytes() == small_esc50["meta/esc50.csv"]
    [run] = ResultsDir(results).runs().to_dict("records")
    assert (run["benchmark"], run["mini"]) == ("esc50", False)

    for extra in ((), ("--get-data",)):  # now that it is here, nothing is fetched again
        assert "0 runs made, 1 reused" in call(*command, *extra).out
    assert offered.ranges == [None]


def test_real_and_miniature_never_share_a_table(
    call: Call, small_esc50: dict[str, bytes], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "ESC-50", small_esc50)
    real = (
        "run",
        "-m",
        "ncm",
        "-b",
        "esc50",
        *QUICK,
        "--data",
        tmp_path,
        "--results",
        tmp_path / "r",
        "--workers",
        "1",
    )
    assert call(*real).code == 0
    for table in ("runs", "sessions", "predictions"):
        for file in (home / "results" / table).glob("*.parquet"):
            (tmp_path / "r" / table / file.name).write_bytes(file.read_bytes())
    shown = call("show", "--results", tmp_path / "r").out
    mini = shown.index(
        "mini-us8k · paper split · eat-tiny\nNOT COMPARABLE with published numbers: mini (synthetic data)"
    )
    own = shown.index("esc50 · paper split · eat-tiny\nNOT COMPARABLE with published numbers: stand-in backbone")
    assert own < mini
    assert shown[own:mini].count("final %") == 1
    assert shown[mini:].count("final %") == 1
    assert shown.count("mini (synthetic data)") == 1


def test_what_cannot_be_downloaded_stops_the_rest(call: Call, offered: Server, tmp_path: Path) -> None:
    command = ("run", "-m", "ncm", "-b", "esc50,timit2", *QUICK, "--data", tmp_path, "--results", tmp_path / "r")
    outcome = call(*command, "--get-data")
    assert_refused(outcome, "TIMIT", f"`audiocl data add timit PATH --data {tmp_path}`")
    assert offered.ranges == []


def test_a_download_that_fails_is_told_and_nothing_runs(call: Call, offered: Server, tmp_path: Path) -> None:
    offered.bodies.clear()
    command = ("run", "-m", "ncm", "-b", "esc50", *QUICK, "--data", tmp_path, "--results", tmp_path / "r")
    outcome = call(*command, "--get-data")
    assert_refused(outcome, "404")
    assert not (tmp_path / "ESC-50").exists()
    assert ResultsDir(tmp_path / "r").run_ids() == ()
