"""`audiocl doctor`: what it looks at, what it calls ready, missing or a problem, and that it changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from test_acquire import FOLDER, FROZEN, TREES, frozen, plant, wav
from test_cli import Call, call

from audiocl_bench import __version__, backbones, doctor, splits
from audiocl_bench.acquire import catalogue as sources
from audiocl_bench.doctor import Finding, examine
from audiocl_bench.mini import catalogue
from audiocl_bench.mini.corpus import folder_of

__all__ = ["call", "frozen"]  # fixtures, used by name

_ENTER = stat.S_IXGRP | stat.S_IXOTH
AREAS = ("versions", "devices", "backbones", "corpora", "miniatures", "space")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let every connection fail the test, and keep the user's Hugging Face cache out of it."""

    def refuse(*_: object) -> None:
        pytest.fail("something was to be downloaded")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)


def found(**places: Path) -> dict[str, dict[str, Finding]]:
    """All findings by area and by what was looked at."""
    areas: dict[str, dict[str, Finding]] = {}
    for finding in examine(**places):
        assert finding.what not in areas.setdefault(finding.area, {})
        areas[finding.area][finding.what] = finding
    assert tuple(areas) == AREAS
    return areas


def test_an_empty_home_is_reported_in_full_and_stays_empty(private_home: Path) -> None:
    shutil.rmtree(private_home)
    areas = found()
    assert not private_home.exists()
    assert all(finding.told for area in areas.values() for finding in area.values())
    assert not [f for area in areas.values() for f in area.values() if f.state == "problem"]
    assert {name: finding.told for name, finding in areas["corpora"].items()} == {
        name: f"audiocl data {'add timit PATH' if name == 'timit' else f'get {name}'}" for name in sources.names()
    }
    assert {finding.state for finding in areas["corpora"].values()} == {"missing"}
    assert areas["miniatures"].keys() == set(catalogue.names())
    assert areas["miniatures"]["mini-esc50"].told == "320 clips, made on first use"


def test_versions_and_devices_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    areas = found()
    assert areas["versions"]["audiocl"].told == __version__
    assert f"torch {importlib.metadata.version('torch')}, " in areas["versions"]["libraries"].told
    cpu = areas["devices"]["cpu"]
    assert cpu.state == "ready"
    assert cpu.told.startswith("3 cores, ")
    assert f" of {psutil.virtual_memory().total / 2**30:.1f} GiB" in cpu.told


def test_cuda_devices_are_listed_or_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Some GPU", 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert found()["devices"]["cuda"] == Finding(
        "devices", "cuda", "fact", "no CUDA device that this torch can use; runs go to the CPU"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    devices = found()["devices"]
    assert devices.keys() == {"cpu", "cuda:0", "cuda:1"}
    assert devices["cuda:1"] == Finding("devices", "cuda:1", "ready", "Some GPU, 80 GiB")


def test_backbones_are_ready_only_where_their_weights_are(tmp_path: Path) -> None:
    rows = {row.name: row for row in backbones.list_rows()}
    here = found()["backbones"]
    assert here.keys() == rows.keys()
    for name, row in rows.items():
        assert here[name].state == ("ready" if row.stand_in or row.shipped else "missing"), name
        if row.hub:
            assert here[name].told.endswith(f" MB, fetched on first use from {row.hub}")
    row = rows["eat-base"]
    repository = tmp_path / "hub" / f"models--{row.hub.replace('/', '--')}"
    commit = row.revision if len(row.revision) == 40 else "a" * 40
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / row.revision).write_text(commit)
    (snapshot / row.file).write_bytes(b"weights")
    assert found()["backbones"]["eat-base"] == Finding(
        "backbones", "eat-base", "ready", "weights are in the Hugging Face cache"
    )


def test_a_plugins_broken_backbone_is_a_problem_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "package birds 1.0: entry point bird-eat cannot be imported (No module named 'wings')."
    row = backbones.Row("bird-eat", "", package="birds 1.0", problem=why)
    monkeypatch.setattr(backbones, "list_rows", lambda: (row,))
    assert found()["backbones"] == {"bird-eat": Finding("backbones", "bird-eat", "problem", why.rstrip("."))}


def test_corpora_are_complete_damaged_or_missing(frozen: None, tmp_path: Path) -> None:
    data = tmp_path / "my audio"
    plant(data / FOLDER["esc50"], TREES["esc50"])
    plant(data / FOLDER["timit"], TREES["timit"])
    (data / FOLDER["timit"] / "TRAIN/DR1/FCJF0/SA1.WAV").unlink()
    here = found(data=data)["corpora"]
    assert here["esc50"] == Finding("corpora", "esc50", "ready", f"{len(FROZEN['esc50'])} clips in {data / 'ESC-50'}")
    assert here["timit"].state == "problem"
    assert here["timit"].told == f"partial 1 of 2 in {data / 'TIMIT'}; audiocl data verify timit --data '{data}'"
    assert here["us8k"] == Finding("corpora", "us8k", "missing", f"audiocl data get us8k --data '{data}'")


def test_miniatures_tell_what_they_need(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "espeakng_loader" else real(name)
    )
    folder_of(catalogue.recipe("mini-timit"), private_home / "mini").mkdir(parents=True)
    here = found()["miniatures"]
    assert here["mini-timit"] == Finding("miniatures", "mini-timit", "ready", "240 clips")
    assert here["mini-sc2"].state == "missing"
    assert here["mini-sc2"].told == "needs speech synthesis: pip install 'audiocl[mini]'"
    assert {here[name].state for name in here if name not in catalogue.SPOKEN} == {"ready"}


def test_space_is_that_of_the_disk_the_folder_would_be_on(
    private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> shutil._ntuple_diskusage:
        return shutil._ntuple_diskusage(10**12, 0, 5 * 10**9 if path == tmp_path else 10**9)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    space = found(results=tmp_path / "not" / "yet")["space"]
    assert space["results"] == Finding("space", "results", "ready", f"5.0 GB free for {tmp_path / 'not' / 'yet'}")
    assert space["cache"] == Finding("space", "cache", "problem", f"1.0 GB free for {private_home}")


# ------------------------------------------------------------------------------------------------------ the command


def flat(text: str) -> str:
    return "".join(text.split())


def test_the_command_prints_every_finding_within_80_columns(call: Call, private_home: Path) -> None:
    outcome = call("doctor")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert max(map(len, outcome.out.splitlines())) <= 80
    for area in AREAS:
        assert f"\n{area.capitalize()}\n" in f"\n{outcome.out}"
    shown = flat(outcome.out)
    for finding in examine():
        if finding.area not in ("devices", "space"):  # free memory and space change meanwhile
            assert flat(finding.what) + {"ready": "ready", "missing": "-", "fact": ""}[finding.state] in shown
            assert flat(finding.told) in shown
    assert list(private_home.iterdir()) == []


def test_a_problem_ends_with_code_two_and_says_what_to_mend(
    frozen: None, call: Call, tmp_path: Path, private_home: Path
) -> None:
    plant(tmp_path / FOLDER["us8k"], {**TREES["us8k"], "audio/fold5/9-9-9-9.wav": wav(1)})
    outcome = call("doctor", "--data", tmp_path, "--results", private_home / "here")
    assert outcome.code == 2
    assert outcome.err == f"audiocl: us8k: different in {tmp_path / FOLDER['us8k']}; " + (
        f"audiocl data verify us8k --data {tmp_path}.\n"
    )
    assert "PROBLEM" in outcome.out
    assert flat(f"free for {private_home / 'here'}") in flat(outcome.out)


def test_a_file_where_the_home_should_be(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUDIOCL_HOME", str(tmp_path / "file"))
    outcome = call("doctor")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        f"audiocl: {what}: {folder} cannot be written: set AUDIOCL_HOME or --results."
        for what, folder in (("cache", tmp_path / "file"), ("results", tmp_path / "file" / "results"))
    ]


@pytest.fixture
def lock() -> Iterator[Callable[[Path, int], None]]:
    """Return a function that sets a folder's mode; root, whom modes do not stop, becomes nobody meanwhile."""
    before: dict[Path, int] = {}
    root = os.getuid() == 0

    def change(folder: Path, mode: int) -> None:
        before[folder] = stat.S_IMODE(folder.stat().st_mode)
        folder.chmod(mode)

    def set_mode(folder: Path, wanted: int) -> None:
        change(folder, wanted)
        if root:
            for above in folder.parents:
                if (mode := stat.S_IMODE(above.stat().st_mode)) | _ENTER != mode:  # pytest's own folders
                    change(above, mode | _ENTER)
            os.setresuid(65534, 65534, 0)
            try:
                readable = os.access(splits.splits_dir() / splits.INDEX, os.R_OK)
            except PermissionError:
                readable = False
            if not readable:
                pytest.skip("root's own folder cannot be read by others")

    yield set_mode
    if root:
        os.setresuid(0, 0, 0)
    for folder, mode in before.items():
        folder.chmod(mode)


@pytest.mark.parametrize("mode", [0o000, 0o555], ids=["unreadable", "unwritable"])
def test_a_home_without_permission_is_told_in_words(
    call: Call, private_home: Path, lock: Callable[[Path, int], None], mode: int
) -> None:
    assert call("doctor").code == 0  # also so that everything is imported
    lock(private_home, mode)
    outcome = call("doctor")
    assert outcome.code == 2
    assert "Traceback" not in outcome.out + outcome.err
    told = outcome.err.splitlines()
    assert f"audiocl: cache: {private_home} cannot be written: set AUDIOCL_HOME or --results." in told
    assert len(told) == (4 if mode == 0 else 2)
    if mode == 0:
        assert told[0] == f"audiocl: corpora: {private_home / 'data'} cannot be read (Permission denied)."
        assert told[1].startswith(f"audiocl: miniatures: {private_home / 'mini'}")
    assert "Space" in outcome.out  # what comes after is looked at all the same


def test_damaged_splits_do_not_hide_the_rest(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(splits, "splits_dir", lambda: tmp_path)
    outcome = call("doctor")
    assert outcome.code == 2
    assert outcome.err.startswith(f"audiocl: corpora: no frozen splits: {tmp_path / 'index.json'} is missing; ")
    assert outcome.err.count("\n") == 1
    assert "made on first use" in " ".join(outcome.out.split())
