"""The feature bank: equal bits whoever asks and however, shared by processes, and never trusted when it is damaged."""

from __future__ import annotations

import copy
import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probes import open_material

from audiocl_bench import bank
from audiocl_bench.backbones.base import Backbone, PassCounter
from audiocl_bench.bank import CHUNK, BankError, FeatureBank, RunFeatures
from audiocl_bench.method import Clips
from audiocl_bench.readout import Readout
from audiocl_bench.runner import Material

CPU = torch.device("cpu")
CLIPS = 48


@pytest.fixture
def two_layers(tiny_material: Material) -> Readout:
    return Readout.of(tiny_material.backbone, "0,2", "mean+std")


def direct(material: Material, what: Readout) -> torch.Tensor:
    """The features of all clips, chunk by chunk with one thread, by the backbone itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = torch.arange(len(material.store)).split(CHUNK)
        mels = [material.backbone.front_end.normalise(material.store.batch(part.numpy())) for part in rows]
        with torch.no_grad():
            return torch.cat([what(material.backbone, mel) for mel in mels])
    finally:
        torch.set_num_threads(threads)


def opened(material: Material, what: Readout, **options: Any) -> FeatureBank:
    return FeatureBank(material.store, material.backbone, what, CPU, **options)


def values_of(found: FeatureBank) -> bytes:
    return (found.path / "features.f32").read_bytes()


# ----------------------------------------------------------------------------------------------------------- the values


@pytest.mark.parametrize("network", ["eat-tiny", "whisper-tiny-random"])
def test_rows_are_the_bits_of_the_backbone_in_the_same_chunks(
    network: str, tiny_benchmark: Path, tiny_home: Path
) -> None:
    material = open_material(tiny_benchmark, tiny_home, network)
    what = Readout.of(material.backbone, "1,2", "mean+std")
    want = direct(material, what)
    before = copy.copy(material.backbone.passes)
    found = opened(material, what)
    rows = np.array([40, 3, 3, 47, 0])
    assert torch.equal(found.read(rows), want[rows])
    assert found.read(rows).dtype == torch.float32
    assert torch.equal(found.read(np.arange(CLIPS)), want)
    assert material.backbone.passes == before, "nobody's passes were counted"
    assert found.computed == CLIPS
    assert (found.blocks, len(found)) == (2, CLIPS)


def test_bits_do_not_depend_on_who_asks_first_or_on_threads(
    tiny_material: Material, two_layers: Readout, tmp_path: Path
) -> None:
    written = []
    for number, (first, threads) in enumerate((([47], 1), ([0], 2), (range(CLIPS), 3))):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found = opened(tiny_material, two_layers, home=tmp_path / str(number))
            found.read(np.array(list(first)))
            found.read(np.arange(CLIPS))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        written.append(values_of(found))
    assert written[0] == written[1] == written[2]


def test_only_chunks_that_were_asked_for_are_computed(tiny_material: Material, two_layers: Readout) -> None:
    found = opened(tiny_material, two_layers)
    assert not found.has(np.arange(CLIPS)).any()
    found.read(np.array([CHUNK + 1]))
    assert found.computed == CLIPS - CHUNK
    assert found.made.tolist() == [False, True]
    assert found.has(np.array([0, CHUNK, CLIPS - 1])).tolist() == [False, True, True]
    again = opened(tiny_material, two_layers)
    again.read(np.array([CLIPS - 1]))
    assert again.computed == 0


def test_whatever_decides_a_feature_has_a_bank_of_its_own(
    tiny_material: Material, tiny_benchmark: Path, tiny_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = Readout.of(tiny_material.backbone)
    paths = [opened(tiny_material, what).path, opened(tiny_material, Readout.of(tiny_material.backbone, "0,2")).path]
    other = copy.copy(tiny_material.backbone)
    other.weights_hash = "0" * 64
    paths.append(FeatureBank(tiny_material.store, other, what, CPU).path)
    longer = copy.copy(tiny_material.backbone)
    longer.front_end = longer.front_end.__class__(**{**vars(longer.front_end), "frames": 64})
    paths.append(FeatureBank(tiny_material.store, longer, what, CPU).path)
    described = bank.describe(tiny_material.store, tiny_material.backbone, what, torch.device("cuda"))
    assert described != bank.describe(tiny_material.store, tiny_material.backbone, what, CPU)
    monkeypatch.setattr(tiny_material.store, "key", "1" * 64)
    paths.append(opened(tiny_material, what).path)
    monkeypatch.setattr(bank, "_code_hash", lambda backbone: "edited")
    paths.append(opened(tiny_material, what).path)
    assert len(set(paths)) == len(paths)
    assert opened(tiny_material, what).path == paths[-1]


def test_weights_without_a_hash_have_no_bank(tiny_material: Material) -> None:
    nameless = copy.copy(tiny_material.backbone)
    nameless.weights_hash = ""
    with pytest.raises(BankError, match="no weights_hash"):
        FeatureBank(tiny_material.store, nameless, Readout.of(nameless), CPU)


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("how", ["bit", "cut", "alien", "manifest", "numbers", "gone"])
def test_damage_is_told_and_mended(how: str, tiny_material: Material, two_layers: Readout) -> None:
    whole = opened(tiny_material, two_layers)
    want = whole.read(np.arange(CLIPS))
    values, numbers, manifest = (whole.path / name for name in ("features.f32", "chunks.u64", "manifest.json"))
    if how == "bit":
        content = bytearray(values.read_bytes())
        content[len(content) // 2] ^= 1
        values.write_bytes(content)
    elif how == "cut":
        os.truncate(values, values.stat().st_size - 4)
    elif how == "alien":
        values.write_bytes(b"not ours")
    elif how == "manifest":
        manifest.write_text("{")
    elif how == "numbers":
        numbers.write_bytes(np.array([2**32 + 5, 7], "<u8").tobytes())
    else:
        numbers.unlink()
    told: list[str] = []
    found = opened(tiny_material, two_layers, tell=told.append)
    assert torch.equal(found.read(np.arange(CLIPS)), want)
    assert all("damaged" in text and str(whole.path) in text for text in told)
    assert len(told) == (2 if how == "numbers" else 1)
    silent: list[str] = []
    assert torch.equal(opened(tiny_material, two_layers, tell=silent.append).read(np.arange(CLIPS)), want)
    assert silent == []


def test_values_without_their_number_do_not_count(tiny_material: Material, two_layers: Readout) -> None:
    """A torn write: the values are (half) there, the number is not."""
    found = opened(tiny_material, two_layers)
    want = found.read(np.arange(CLIPS))
    (found.path / "chunks.u64").write_bytes(bytes(16))
    content = bytearray(values_of(found))
    content[: len(content) // 3] = bytes(len(content) // 3)
    (found.path / "features.f32").write_bytes(content)
    again = opened(tiny_material, two_layers)
    assert torch.equal(again.read(np.arange(CLIPS)), want)
    assert again.computed == CLIPS


def test_new_files_in_the_place_of_open_ones_confuse_nobody(tiny_material: Material, two_layers: Readout) -> None:
    old = opened(tiny_material, two_layers)
    want = direct(tiny_material, two_layers)
    assert bank.clear() >= 0
    new = opened(tiny_material, two_layers)
    assert torch.equal(new.read(np.array([0])), want[:1])
    assert torch.equal(old.read(np.arange(CLIPS)), want)
    assert torch.equal(new.read(np.arange(CLIPS)), want)


# -------------------------------------------------------------------------------------------------------------- no room


def features_of(material: Material, told: list[str]) -> tuple[RunFeatures, PassCounter]:
    return RunFeatures(material.store, material.backbone, CPU, told.append), PassCounter()


def test_a_full_disk_ends_the_bank_and_not_the_run(
    tiny_material: Material, two_layers: Readout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    told: list[str] = []
    features, passes = features_of(tiny_material, told)
    opened(tiny_material, two_layers)  # its empty files are there already
    monkeypatch.setattr(os, "fsync", full)
    assert features.read(two_layers, np.arange(4), passes) is None
    assert features.read(two_layers, np.arange(4), passes) is None
    assert len(told) == 1
    assert told[0].startswith("no space left to write")
    assert told[0].endswith("This run goes on without kept features.")
    assert passes.clips == 0


@pytest.mark.parametrize("why", ["disk", "limit"])
def test_what_does_not_fit_is_not_begun(
    why: str, tiny_material: Material, two_layers: Readout, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "disk":
        usage = bank.shutil.disk_usage("/")
        monkeypatch.setattr(bank.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    else:
        monkeypatch.setenv(bank.LIMIT, "0.00001")
    told: list[str] = []
    features, passes = features_of(tiny_material, told)
    assert features.read(two_layers, np.arange(4), passes) is None
    assert ("do not fit on the disk" if why == "disk" else "--clear") in told[0]
    assert bank.listing() == []


def test_the_bank_can_be_switched_off(
    tiny_material: Material, two_layers: Readout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(bank.SWITCH, "off")
    features, passes = features_of(tiny_material, [])
    assert features.read(two_layers, np.arange(4), passes) is None
    assert not bank.folder().exists()


def test_banks_are_listed_and_cleared(tiny_material: Material, two_layers: Readout) -> None:
    found = opened(tiny_material, two_layers)
    found.read(np.array([0]))
    (bank.folder() / "mine").mkdir()
    (bank.folder() / "mine" / "notes.txt").write_text("keep")
    (info,) = bank.listing()
    assert (info.path, info.clips, info.layers, info.statistics) == (found.path, CLIPS, (0, 2), ("mean", "std"))
    assert info.complete == 0.5
    assert 0 < info.bytes <= bank.size()
    assert bank.clear() == info.bytes
    assert bank.listing() == []
    assert (bank.folder() / "mine" / "notes.txt").read_text() == "keep"


# ----------------------------------------------------------------------------------------------------------- accounting


def test_work_is_counted_once_and_by_who_did_it(tiny_material: Material) -> None:
    what = Readout.of(tiny_material.backbone)
    depth = tiny_material.backbone.depth
    first, mine = features_of(tiny_material, [])
    first.read(what, np.array([0, 1, 1]), mine)
    assert (mine.clips, mine.block_runs, mine.needed, mine.reused) == (2, CHUNK * depth, 2 * depth, 0)
    first.read(what, np.array([1, 2]), mine)
    assert (mine.clips, mine.block_runs, mine.needed, mine.reused) == (3, CHUNK * depth, 3 * depth, 0)
    other, his = features_of(tiny_material, [])
    other.read(what, np.array([5, CLIPS - 1]), his)
    tail = CLIPS - CHUNK
    assert (his.clips, his.block_runs, his.needed, his.reused) == (2, tail * depth, depth, depth)
    # A restart that is given what was counted counts on as if nothing had happened.
    again, now = features_of(tiny_material, [])
    again.load_state_dict(first.state_dict())
    again.read(what, np.array([2, 3]), now)
    assert (now.clips, now.block_runs, now.needed, now.reused) == (1, 0, depth, 0)


# ------------------------------------------------------------------------------------------------------------ processes


class Slow(Readout):
    """Waits before each chunk, and says when it begins."""

    def __call__(self, backbone: Backbone, mel: torch.Tensor) -> torch.Tensor:
        with (Path(os.environ["AUDIOCL_HOME"]) / f"began-{os.getpid()}").open("a") as begun:
            begun.write("x")
        time.sleep(0.3)
        return super().__call__(backbone, mel)


def fill(toml: Path, home: Path, cache: Path, start: Any, chunk: int) -> None:
    """Fill a bank in a process of its own, in small chunks so that there is something to share out."""
    os.environ["AUDIOCL_HOME"] = str(cache)
    bank.CHUNK = chunk
    torch.set_num_threads(1)
    material = open_material(toml, home)
    plain = Readout.of(material.backbone)
    what = Slow(plain.layers, plain.statistics, plain.dim)
    start.wait(60)
    opened(material, what).read(np.arange(CLIPS))


@pytest.fixture
def spawned(tiny_benchmark: Path, tiny_home: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    open_material(tiny_benchmark, tiny_home)
    monkeypatch.setattr(bank, "CHUNK", 4)
    context = multiprocessing.get_context("spawn")
    gates: list[Any] = []  # a gate that nobody holds is gone before the children have found it

    def start(count: int) -> list[Any]:
        gates.append(context.Barrier(count))
        arguments = (tiny_benchmark, tiny_home, private_home, gates[-1], 4)
        children = [context.Process(target=fill, args=arguments) for _ in range(count)]
        for child in children:
            child.start()
        return children

    return start


def chunks_begun(home: Path) -> list[int]:
    return [len(path.read_text()) for path in home.glob("began-*")]


@pytest.mark.slow
def test_two_processes_share_the_work_and_write_equal_bytes(
    spawned: Any, tiny_material: Material, private_home: Path, tmp_path: Path
) -> None:
    for child in spawned(2):
        child.join(120)
        assert child.exitcode == 0
    begun = chunks_begun(private_home)
    assert len(begun) == 2, "both worked"
    assert sum(begun) == CLIPS // 4, "no chunk was computed twice"
    what = Readout.of(tiny_material.backbone)
    shared = opened(tiny_material, what)
    assert shared.has(np.arange(CLIPS)).all()
    alone = opened(tiny_material, what, home=tmp_path / "alone")
    alone.read(np.arange(CLIPS))
    assert values_of(shared) == values_of(alone)


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_finished_and_blocks_nobody(
    spawned: Any, tiny_material: Material, private_home: Path, tmp_path: Path
) -> None:
    (child,) = spawned(1)
    deadline = time.monotonic() + 60
    what = Readout.of(tiny_material.backbone)
    while sum(chunks_begun(private_home)) < 6:  # groups of four are written together
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    found = opened(tiny_material, what)
    there = int(found.has(np.arange(CLIPS)).sum())
    assert 0 < there < CLIPS
    found.read(np.arange(CLIPS))
    assert found.computed == CLIPS - there
    alone = opened(tiny_material, what, home=tmp_path / "alone")
    alone.read(np.arange(CLIPS))
    assert values_of(found) == values_of(alone)


def test_the_manifest_says_what_the_features_are_of(tiny_material: Material, two_layers: Readout) -> None:
    said = json.loads((opened(tiny_material, two_layers).path / "manifest.json").read_text())
    assert said["made_of"]["readout"] == {"layers": [0, 2], "statistics": ["mean", "std"]}
    assert said["made_of"]["store"] == tiny_material.store.key
    assert said["width"] == two_layers.width
    assert Clips(torch.zeros(1, 2, 3)).stored(two_layers) is None
