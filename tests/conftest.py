"""Shared fixtures: where the reference material lies, and a private cache for every test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


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
