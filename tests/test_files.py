"""Small shared things: atomic writes, hashes, places, random seeds, error sentences, peak memory."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiocl_bench import errors, files, memory, seeding
from audiocl_bench.errors import AudioclError, ResultsError, StoreError, unknown_name
from audiocl_bench.memory import PeakMemory

ROOT = Path(__file__).resolve().parent.parent


# -------------------------------------------------------------------------------------------------------- atomic writes


def test_a_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.txt"
    with files.atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["c.txt"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


@pytest.mark.parametrize("failure", [RuntimeError("no"), KeyboardInterrupt(), ResultsError("mine"), SystemExit(3)])
def test_a_failure_leaves_the_old_file_and_nothing_else(failure: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")

    def write() -> None:
        with files.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(type(failure)) as raised:
        write()
    assert raised.value is failure, "what is no disk error passes unchanged"
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"^no space left to write .*c\.txt: free some space or point --results / AUDIOCL_HOME"),
        (errno.EDQUOT, r"^no space left to write .*c\.txt: free some space"),
        (errno.EROFS, r"c\.txt cannot be written \(read-only or no permission\): choose another directory\.$"),
        (errno.EACCES, r"c\.txt cannot be written \(read-only or no permission\)"),
        (errno.EIO, r"c\.txt cannot be written \(Input/output error\): choose another directory\.$"),
    ],
)
def test_disk_errors_become_one_sentence_of_the_callers_kind(number: int, said: str, tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")

    def write() -> None:
        with files.atomic_path(target, error=StoreError):
            raise OSError(number, os.strerror(number))

    with pytest.raises(StoreError, match=said):
        write()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def write() -> None:
        with files.atomic_path(tmp_path / "c.txt", error=ResultsError), Path("/dev/full").open("wb") as full:
            full.write(bytes(10))

    with pytest.raises(ResultsError, match="no space left"):
        write()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match=r"file/c\.txt cannot be written \(.*\): choose another directory"):
        files.write_text(tmp_path / "file" / "c.txt", "x", error=ResultsError)


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the kernel's answer to others is put in its place."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(AudioclError, match="read-only or no permission"):
        files.write_text(folder / "c.txt", "x")
    folder.chmod(0o755)
    assert list(folder.iterdir()) == []


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path; from audiocl_bench import files\n"
        "with files.atomic_path(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT)
    assert killed.returncode == -9
    assert target.read_text() == "old"


def test_text_is_utf8_with_lf(tmp_path: Path) -> None:
    files.write_text(tmp_path / "t.txt", "käse\nzwei\n")
    assert (tmp_path / "t.txt").read_bytes() == "käse\nzwei\n".encode()


# --------------------------------------------------------------------------------------------------- hashes and places


def test_hashes_against_hashlib(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example B.1
    assert files.sha256_file(tmp_path / "x") == abc
    assert files.sha256_text("abc") == abc
    assert files.sha256_text("ä") == hashlib.sha256("ä".encode()).hexdigest()
    assert files.sha256_json({"b": 1, "a": [1.5, None]}) == files.sha256_text('{"a":[1.5,null],"b":1}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(JSON)
def test_canonical_json_says_the_same_in_one_way(value: Any) -> None:
    text = files.canonical_json(value)
    assert json.loads(text) == value
    assert files.canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(max_size=3), st.integers(), min_size=2, max_size=5))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert files.sha256_json(dict(reversed(value.items()))) == files.sha256_json(value)


def test_canonical_json_refuses_what_json_has_not() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            files.canonical_json({"x": value})


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUDIOCL_HOME", str(tmp_path))
    assert files.home() == tmp_path
    monkeypatch.setenv("AUDIOCL_HOME", "~/cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.home() == tmp_path / "cache"
    monkeypatch.delenv("AUDIOCL_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.home().name == "audiocl"
    assert files.splits_dir().is_dir()
    assert (files.splits_dir() / "esc50").is_dir()
    assert files.paper_dir().is_dir()


# ------------------------------------------------------------------------------------------------------------- seeding


def test_derived_seeds_are_pinned() -> None:
    """Frozen: a change here would change every split of one's own, every order of clips and every result."""
    assert seeding.derive(0) == int(hashlib.sha256(b"0").hexdigest()[:16], 16) >> 1
    assert seeding.derive(0) == 3456079177858693020
    assert seeding.derive(3, "clip order", "adapt", 0) == 5623123357781254742
    assert seeding.numpy_generator(0, "x").integers(0, 1000, 5).tolist() == [479, 248, 898, 85, 566]
    assert torch.randint(0, 1000, (5,), generator=seeding.torch_generator(0, "x")).tolist() == [647, 660, 217, 591, 306]


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.lists(st.text(max_size=5) | st.integers(-5, 5), max_size=3))
def test_a_seed_fits_both_libraries_and_repeats(seed: int, purpose: list[str | int]) -> None:
    value = seeding.derive(seed, *purpose)
    assert 0 <= value < 2**63
    assert value == seeding.derive(seed, *purpose)
    draws = [seeding.numpy_generator(seed, *purpose).random() for _ in range(2)]
    assert draws[0] == draws[1]
    torch_draws = [float(torch.rand((), generator=seeding.torch_generator(seed, *purpose))) for _ in range(2)]
    assert torch_draws[0] == torch_draws[1]


def test_purposes_do_not_run_into_each_other() -> None:
    purposes: list[tuple[str | int, ...]] = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 1), ("a1",), ("a", 11)]
    purposes.append(("a", 1, 1))
    seeds = {seeding.derive(seed, *purpose) for seed in range(20) for purpose in purposes}
    assert len(seeds) == 20 * len(purposes)


def test_draws_for_different_purposes_are_unrelated() -> None:
    draws = np.stack([seeding.numpy_generator(0, "stage", t).standard_normal(2000) for t in range(8)])
    off = np.corrcoef(draws) - np.eye(8)
    assert np.abs(off).max() < 4 / math.sqrt(2000)


def test_drawing_leaves_global_generators_alone() -> None:
    torch.manual_seed(1)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    torch.rand(3, generator=seeding.torch_generator(0, "x"))
    seeding.numpy_generator(0, "x").random()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


# -------------------------------------------------------------------------------------------------------------- errors


def test_near_names_come_first() -> None:
    known = ["esc50", "us8k", "sc2", "timit2", "timit3", "vocalset"]
    error = unknown_name("benchmark", "ecs50", known, hint="See the list.")
    assert str(error) == "unknown benchmark 'ecs50': did you mean esc50? See the list."
    assert "timit2" in str(unknown_name("benchmark", "timit", known))
    assert "timit3" in str(unknown_name("benchmark", "timit", known))


def test_without_a_near_name_all_are_listed() -> None:
    assert str(unknown_name("method", "qqq", ["b", "a"])) == "unknown method 'qqq': known: a, b."
    assert str(unknown_name("method", "qqq", [])) == "unknown method 'qqq': none are known."


def test_every_error_is_one_a_user_can_act_on() -> None:
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(kinds) >= 11
    assert all(issubclass(kind, AudioclError) for kind in kinds)
    assert all(kind.__doc__ for kind in kinds)


def test_light_modules_import_no_heavy_ones() -> None:
    code = (
        "import sys; from audiocl_bench import errors, files, seeding, config, registry\n"
        "print(sorted({'torch', 'pandas', 'datasets', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# -------------------------------------------------------------------------------------------------------------- memory


def allocate(megabytes: int) -> None:
    held = np.ones(megabytes * 1_000_000, dtype=np.uint8)  # touched, so that it is resident
    assert held[-1] == 1


def test_the_peak_is_that_of_the_stretch_not_of_the_past() -> None:
    cpu = torch.device("cpu")
    allocate(400)
    quiet = PeakMemory(cpu)
    base = quiet.peak_mb()
    busy = PeakMemory(cpu)
    allocate(200)
    peak = busy.peak_mb()
    if not busy._exact:
        pytest.skip("this system keeps no resettable high-water mark")
    assert 150 < peak - base < 350
    assert PeakMemory(cpu).peak_mb() < base + 100, "what was freed is forgotten"


def test_without_a_resettable_mark_the_present_size_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no" / "such")
    peak = PeakMemory(torch.device("cpu")).peak_mb()
    assert 10 < peak < 1e6
