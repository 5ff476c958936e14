"""Shared fixtures: where the reference material lies, and a private cache for every test."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from probes import open_material

from audiocl_bench import runner
from audiocl_bench.runner import Material


def pytest_configure() -> None:
    """Make the process fit for tests.

    Under xdist there is a process per core already: threads of their own would wait for each other. A shell starts what
    it sends to the background with Ctrl-C ignored, and tests of Ctrl-C would wait for ever.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for commands that tests start
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Callable[..., Path]:
    """Return a function that resolves a path in the shared reference material, or skips the test with the reason."""
    root = Path(os.environ.get("AUDIOCL_SHARED", "../shared"))
    if not root.is_absolute():
        root = Path(__file__).resolve().parent.parent / root

    def resolve(*parts: str) -> Path:
        path = root.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"needs {'/'.join(parts)} of the shared material (set AUDIOCL_SHARED)")
        return path

    return resolve


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test its own AUDIOCL_HOME, so that tests neither see nor touch the user's cache."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("AUDIOCL_HOME", str(home))
    return home


TINY_CLASSES = ("bell", "cat", "drum", "engine", "frog", "horn")
TINY_CLIPS = 8


@pytest.fixture(scope="session")
def tiny_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the TOML file of a benchmark on 48 made sounds: 6 classes x 8 clips of 0.3 to 0.5 s, in 3 sessions.

    Each class is a chord of its own in noise, so that a nearest class mean does clearly better than chance.
    """
    folder = tmp_path_factory.mktemp("tiny")
    draws = np.random.default_rng(20260801)
    for number, name in enumerate(TINY_CLASSES):
        (folder / "sounds" / name).mkdir(parents=True)
        for clip in range(TINY_CLIPS):
            seconds = np.arange(int(16_000 * draws.uniform(0.3, 0.5))) / 16_000
            pitch = 150 * 1.7**number * draws.uniform(0.97, 1.03)
            chord = sum(np.sin(2 * np.pi * pitch * part * seconds) / part for part in (1, 2, 3))
            wave = 0.2 * chord + 0.02 * draws.standard_normal(len(seconds))
            soundfile.write(folder / "sounds" / name / f"{name}_{clip}.wav", wave, 16_000, subtype="PCM_16")
    description = folder / "tiny.toml"
    description.write_text(
        f"""
[benchmark]
name = "tiny"

[corpus]
kind = "folder"
root = "{(folder / "sounds").as_posix()}"

[stream]
classes_per_session = 2
orders = 2
input_seconds = 0.48
first_session_epochs = 2

[test]
rule = "fraction"
fraction = 0.25
""",
        encoding="utf-8",
    )
    return description


@pytest.fixture(autouse=True)
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a checkpoint after every session, however long a busy disk takes: tests count on it."""
    monkeypatch.setattr(runner, "CHEAP_SAVE", math.inf)


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory in which the tiny benchmark stays prepared, for tests that need no private one."""
    return tmp_path_factory.mktemp("tiny-home")


@pytest.fixture(scope="session")
def tiny_material(tiny_benchmark: Path, tiny_home: Path) -> Material:
    """What `runner.execute` works on: the tiny benchmark, prepared, with the tiny random EAT. Never change it."""
    return open_material(tiny_benchmark, tiny_home)
