"""What is shipped: the wheel's contents, an installation outside the clone, and the pinned versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import audiocl_bench

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def python(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Run a Python of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=540,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def distribution(requirement: str) -> str:
    """Return the normalised name of the distribution that a requirement or pin is about (PEP 503)."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found.group()).lower()


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in pins)
    pinned = {distribution(line) for line in pins}
    assert len(pinned) == len(pins)
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in [*PROJECT["project"]["dependencies"], *(item for extra in extras for item in extra)]:
        assert distribution(requirement) in pinned | {"audiocl"}, requirement  # an extra may take in another of ours


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == audiocl_bench.__version__


def test_every_package_folder_is_declared() -> None:
    declared = set(PROJECT["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "audiocl_bench").rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} <= declared
    mapped = PROJECT["tool"]["setuptools"]["package-dir"].values()
    assert all((ROOT / folder).is_dir() for folder in mapped)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of what the clone holds, so that nothing is left behind in it."""
    source = tmp_path_factory.mktemp("source") / "audiocl"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("audiocl_bench", "methods", "splits", "results", "tests", "docs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source, cwd=out)
    [built] = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_what_it_should_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    top = {name.partition("/")[0] for name in names}
    assert top == {"audiocl_bench", "audiocl_methods", f"audiocl-{audiocl_bench.__version__}.dist-info"}
    for folder, inside in (
        ("audiocl_bench", "audiocl_bench"),
        ("methods", "audiocl_methods"),
        ("splits", "audiocl_bench/_splits"),
        ("results/paper", "audiocl_bench/_paper"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".csv", ".json", ".typed", ".safetensors"):
                assert f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" in names, path
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("/LICENSE") for name in names)
    assert wheel.stat().st_size < 11e6


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=elsewhere)
    code = (
        "import sys, audiocl_bench\n"
        "from audiocl_bench.cli import main\n"
        "assert audiocl_bench.__file__.startswith(sys.argv[1]), audiocl_bench.__file__\n"
        "sys.argv = ['audiocl', *sys.argv[2:]]\n"
        "main()\n"
    )
    shown = {
        what: python("-c", code, target, "list", what, cwd=elsewhere, PYTHONPATH=str(target), COLUMNS="80")
        for what in ("methods", "benchmarks", "backbones")
    }
    assert all(name in shown["methods"] for name in ("ncm", "ranpac", "pace", "joint"))
    assert "timit3" in shown["benchmarks"]
    assert "eat-mini" in shown["backbones"]
    code = (
        "import sys, audiocl_methods.pace\n"
        "from audiocl_bench import backbones, benchmarks, files\n"
        "assert audiocl_methods.pace.__file__.startswith(sys.argv[1])\n"
        "assert str(files.splits_dir()).startswith(sys.argv[1])\n"
        "assert (files.paper_dir() / 'table2.csv').is_file()\n"
        "assert not backbones.load('eat-mini', frames=64).stand_in\n"
        "for name in benchmarks.names():\n"
        "    print(f'{name}={benchmarks.get(name).stream(\"paper\", 0).num_classes}')\n"
    )
    loaded = python("-c", code, target, cwd=elsewhere, PYTHONPATH=str(target))
    assert loaded.split() == ["esc50=50", "us8k=10", "sc2=35", "timit2=630", "timit3=630", "vocalset=16"]
