"""Mapped pages and freed memory are given back: resident memory falls, values stay, and nothing else is touched."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
import torch

from audiocl_bench import bank, memory, store
from audiocl_bench.audio import FrontEnd
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.readout import Readout
from audiocl_bench.runner import Material

SIZE = 32 << 20


class Repeated(Readout):
    """Features so wide that few clips fill many pages."""

    @property
    def width(self) -> int:
        return 2000 * super().width

    def __call__(self, backbone: Backbone, mel: torch.Tensor) -> torch.Tensor:
        return super().__call__(backbone, mel).repeat(1, 2000)


pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")


def resident(kind: str) -> int:
    """Bytes of RssFile or RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not GNU's")
def test_freed_memory_is_given_back() -> None:
    """Blocks that are freed between others stay with the process until it is told to give them back."""
    blocks = [torch.full((16_384,), float(number)) for number in range(1024)]  # 64 KiB each
    held = [block for number, block in enumerate(blocks) if number % 8 == 7]
    del blocks
    before = resident("RssAnon")
    memory.give_back_freed()
    assert before - resident("RssAnon") > SIZE
    assert all(bool((block == 8 * number + 7).all()) for number, block in enumerate(held))


def test_mapped_pages_are_let_go_and_come_back(tmp_path: Path) -> None:
    want = np.random.default_rng(0).integers(0, 255, SIZE, dtype=np.uint8)
    want.tofile(tmp_path / "file")
    mapped = np.frombuffer(pa.memory_map(str(tmp_path / "file")).read_buffer(), dtype=np.uint8)
    view = mapped[1000:-1000]  # not on the edges of pages
    assert np.array_equal(view, want[1000:-1000])
    before = resident("RssFile")
    memory.MappedPages([view]).give_back()
    assert before - resident("RssFile") > 0.9 * SIZE
    assert np.array_equal(mapped, want)


def test_memory_that_is_no_file_keeps_its_values(tmp_path: Path) -> None:
    """The advice would erase it: the array's own memory, and pages that a process may write."""
    own = np.arange(SIZE // 8)
    writable = np.memmap(tmp_path / "file", np.int64, "w+", shape=(SIZE // 8,))
    writable[:] = own
    changed = np.memmap(tmp_path / "file", np.int64, "c")  # copy on write: what is written lies in memory only
    changed[:] = own + 1
    memory.MappedPages([own, writable, changed, own[:0]]).give_back()
    assert np.array_equal(own, np.arange(SIZE // 8))
    assert np.array_equal(changed, own + 1)
    assert np.array_equal(writable, own)


def test_nothing_happens_where_the_system_does_not_say_what_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MAPS", tmp_path / "none")
    own = np.arange(5000)
    memory.MappedPages([own]).give_back([0])
    assert np.array_equal(own, np.arange(5000))


def test_only_the_arrays_named_are_let_go(tmp_path: Path) -> None:
    views = []
    for number in range(3):
        np.full(SIZE // 4, number, dtype=np.uint8).tofile(tmp_path / f"{number}")
        views.append(np.frombuffer(pa.memory_map(str(tmp_path / f"{number}")).read_buffer(), dtype=np.uint8))
    assert [int(view.sum(dtype=np.int64)) for view in views] == [number * SIZE // 4 for number in range(3)]
    before, pages = resident("RssFile"), memory.MappedPages(views)
    pages.give_back([0, 2])
    assert 0.45 * SIZE < before - resident("RssFile") < 0.6 * SIZE
    pages.give_back()
    assert before - resident("RssFile") > 0.7 * SIZE


def test_a_store_read_through_holds_few_of_its_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the same values as one that holds them all."""
    monkeypatch.setattr(store, "SHARD_CLIPS", 2)
    noise = torch.randn(40, 16_000 * 8, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    for number, wave in enumerate(noise):
        soundfile.write(tmp_path / f"{number:02d}.wav", wave, 16_000)
    paths = [str(tmp_path / f"{number:02d}.wav") for number in range(40)]
    clips = pd.DataFrame({"clip_id": [f"{number:02d}" for number in range(40)], "path": paths})
    made = store.prepare(clips, FrontEnd("kaldi", 128, 800), name="noise", workers=1, progress=False)
    total = sum(len(values) for values in made._values)
    assert total > 7_000_000
    assert len(made._values) >= 10
    monkeypatch.setattr(store, "HELD", 10**12)
    want = [made.batch([row]) for row in range(40)]
    all_held = resident("RssFile")
    monkeypatch.setattr(store, "HELD", total // 5)
    got = [made.batch([row]) for row in range(40)]
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    assert all_held - resident("RssFile") > total // 2
    assert sum(made._values[shard].nbytes for shard in made._looked_at) <= total // 5


def test_a_bank_read_through_holds_few_of_its_pages(tiny_material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the same values as one that holds them all."""
    backbone, clips = tiny_material.backbone, len(tiny_material.store)
    plain = Readout.of(backbone)
    what = Repeated(plain.layers, plain.statistics, plain.dim)
    total = 4 * what.width * clips
    assert total > 30_000_000

    def read_through(held: int) -> tuple[torch.Tensor, int]:
        monkeypatch.setattr(bank, "HELD", held)
        opened = bank.FeatureBank(tiny_material.store, backbone, what, torch.device("cpu"))
        before = resident("RssFile")
        features = opened.read(np.arange(clips))
        return features, resident("RssFile") - before

    read_through(total)  # computes them
    want, all_held = read_through(total)
    got, few_held = read_through(total // 5)
    assert torch.equal(got, want)
    assert all_held > 0.9 * total
    assert few_held < 0.4 * total
