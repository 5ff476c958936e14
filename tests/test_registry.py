"""Methods are found by name, decorator, entry point or file; every mistake gets one sentence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from probes import Honest

from audiocl_bench import registry
from audiocl_bench.errors import ConfigError, UnknownNameError
from audiocl_bench.files import sha256_file
from audiocl_bench.method import register

ROOT = Path(__file__).resolve().parent.parent
BUILT_IN = {"ncm", "ranpac", "pace", "joint", "joint-closed", "finetune"}

MINE = """
from audiocl_bench.method import ClosedFormMethod

class Mine(ClosedFormMethod):
    def accumulate(self, session): ...
    def reset_statistics(self): ...
    def encode(self, batch): ...
    def classify(self, features): ...
    def state_dict(self): return {}
    def load_state_dict(self, state): ...

class Half(ClosedFormMethod):
    def accumulate(self, session): ...

class Other: ...
"""


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_added", dict(registry._added))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("audiocl_user_", "plugin_")):
            del sys.modules[name]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def entry_point(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, target: str, source: str = MINE) -> None:
    """Pretend that a package with this entry point and source is installed."""
    (folder / f"{target.partition(':')[0]}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    found = [EntryPoint(name, target, registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == registry.GROUP else [])


# --------------------------------------------------------------------------------------------------------------- names


def test_built_in_methods_are_listed_and_loaded() -> None:
    assert set(registry.names()) >= BUILT_IN
    assert list(registry.names()) == sorted(registry.names())
    for name in BUILT_IN:
        assert registry.load(name).name == name


def test_listing_names_imports_no_method_and_no_torch() -> None:
    code = (
        "import sys; from audiocl_bench import registry; print(*registry.names());"
        "assert not {'torch', 'audiocl_methods.ncm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= BUILT_IN


def test_the_decorator_names_and_registers_a_class() -> None:
    @register("made-here")
    class MadeHere(Honest):
        pass

    assert MadeHere.name == "made-here"
    assert registry.load("made-here") is MadeHere
    assert "made-here" in registry.names()


@pytest.mark.parametrize(("typed", "meant"), [("pacee", "pace"), ("ran-pac", "ranpac"), ("fine_tune", "finetune")])
def test_a_misspelt_name_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(
        UnknownNameError, match=f"unknown method '{typed}': did you mean .*{meant}.*audiocl list methods"
    ):
        registry.load(typed)


def test_a_name_unlike_any_other_lists_all() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown method 'zzzzz': known: .*finetune, .*joint, .*ranpac"):
        registry.load("zzzzz")


# --------------------------------------------------------------------------------------------------------- entry points


def test_a_plugin_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry_point(monkeypatch, tmp_path, "plugged", "plugin_a:Mine")
    assert "plugged" in registry.names()
    assert "plugin_a" not in sys.modules, "listing does not import"
    cls = registry.load("plugged")
    assert (cls.__name__, cls.name) == ("Mine", "plugged"), "an undecorated class takes the entry point's name"


def test_a_built_in_name_cannot_be_taken_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry_point(monkeypatch, tmp_path, "ncm", "plugin_b:Mine")
    assert registry.load("ncm").__name__ == "NCM"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_of_mine", r"cannot be imported: No module named 'no_such_module_of_mine'"),
        ("x = 1", r"cannot be imported: module 'plugin_c' has no attribute 'Mine'"),
        ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero"),
        ("def broken(:", r"cannot be imported: SyntaxError: "),
        ("class Mine: ...", r"'plugged' is not a method: it must be a class derived from .*Method"),
        ("Mine = 3", r"'plugged' is not a method"),
    ],
)
def test_a_broken_plugin_is_named(source: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entry_point(monkeypatch, tmp_path, "plugged", "plugin_c:Mine", source)
    with pytest.raises(ConfigError, match=said):
        registry.load("plugged")
    assert "ncm" in registry.names(), "others still work"


# --------------------------------------------------------------------------------------------------------------- files


def test_a_class_in_a_file(mine: Path) -> None:
    cls = registry.load(f"{mine}:Mine")
    assert cls.__name__ == "Mine"
    assert cls.name == "mine"
    assert cls.source_hash == sha256_file(mine)


def test_a_decorated_class_in_a_file_keeps_its_name(mine: Path) -> None:
    decorated = MINE.replace("class Mine", "@register('my-own')\nclass Mine")
    mine.write_text(f"from audiocl_bench.method import register\n{decorated}")
    assert registry.load(f"{mine}:Mine").name == "my-own"
    assert registry.load("my-own").__name__ == "Mine"


def test_a_child_of_a_built_in_method_does_not_take_its_name(mine: Path) -> None:
    """Under its parent's name it would be given its parent's results."""
    mine.write_text("from audiocl_methods.ncm import NCM\nclass Better(NCM): ...\n")
    registry.load("ncm")
    better = registry.load(f"{mine}:Better")
    assert better.name == "better"
    assert registry.load("ncm").name == "ncm"


def test_an_edited_file_is_read_again(mine: Path) -> None:
    first = registry.load(f"{mine}:Mine")
    mine.write_text(MINE + "\nADDED = 1\n")
    second = registry.load(f"{mine}:Mine")
    assert first.source_hash != second.source_hash


def test_a_path_may_start_at_home(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(mine.parent))
    assert registry.load("~/mine.py:Mine").name == "mine"


def test_a_file_needs_a_class(mine: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.py' must name the class too, for example .*mine\.py:MyMethod"):
        registry.load(str(mine))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method file .*nowhere\.py does not exist: check the path"):
        registry.load(f"{tmp_path / 'nowhere.py'}:Mine")


def test_a_misspelt_class_is_answered_with_the_nearest(mine: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown class in .*mine\.py 'Mien': did you mean Mine"):
        registry.load(f"{mine}:Mien")


def test_an_incomplete_class_is_told_what_it_lacks(mine: Path) -> None:
    lacking = "classify, encode, load_state_dict, reset_statistics, state_dict"
    with pytest.raises(ConfigError, match=f":Half' is incomplete: it lacks {lacking}\\."):
        registry.load(f"{mine}:Half")


def test_a_class_that_is_no_method_is_refused(mine: Path) -> None:
    with pytest.raises(ConfigError, match=r":Other' is not a method"):
        registry.load(f"{mine}:Other")


@pytest.mark.parametrize(
    ("source", "said"),
    [("import nowhere_at_all", "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError"), ("(", "Syntax")],
)
def test_a_file_that_fails_on_import_is_named(mine: Path, source: str, said: str) -> None:
    mine.write_text(source)
    with pytest.raises(ConfigError, match=rf"method file .*mine\.py fails on import: {said}"):
        registry.load(f"{mine}:Mine")
    assert "audiocl_user_mine" not in sys.modules
