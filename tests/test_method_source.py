"""The hash of a method class: as its file where it has one, else its source and that of what it uses."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from audiocl_bench.files import sha256_file
from audiocl_bench.method_source import source_hash

NAMESPACE = "cells_of_a_notebook"
CELLS = {
    "settings": """
from dataclasses import dataclass
import torch
from torch import Tensor
WIDTH = 3
GRID = torch.arange(4.0)

@dataclass(frozen=True)
class Config:
    rank: int = 4
""",
    "helper": """
def scaled(values):
    return [WIDTH * value for value in values]
""",
    "unrelated": """
def draw(values):
    return sorted(values)
""",
    "parent": """
class Parent:
    def encode(self, values):
        return values
""",
    "method": """
class Mine(Parent):
    '''My method.'''

    Config = Config
    steps = 5

    def learn(self, values):
        return [self.weigh(value) for value in scaled(values)]

    @staticmethod
    @torch.no_grad()
    def weigh(value, factor=2):
        return (lambda x: x * factor + GRID.sum())(value)

    @property
    def dim(self):
        return Tensor(self.steps).shape
""",
}


@pytest.fixture
def typed() -> Iterator[Callable[..., type]]:
    """Return a function that runs cells one by one, as a kernel does, and returns the class `Mine`."""
    before = dict(linecache.cache)

    def run(keep_source: bool = True, **edited: str) -> type:
        module = ModuleType(NAMESPACE)
        sys.modules[NAMESPACE] = module
        for name, source in {**CELLS, **edited}.items():
            file = f"/nowhere/ipykernel/{name}-{hash(source)}.py" if keep_source else "<typed>"
            if keep_source:
                linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
            exec(compile(source, file, "exec"), vars(module))
        return vars(module)["Mine"]

    yield run
    sys.modules.pop(NAMESPACE, None)
    linecache.cache.clear()
    linecache.cache.update(before)


@pytest.mark.parametrize(("keep_source", "kind"), [(True, "inline"), (False, "compiled")])
def test_equal_source_gives_equal_hashes_and_says_what_it_is(
    typed: Callable[..., type], keep_source: bool, kind: str
) -> None:
    first, second = source_hash(typed(keep_source)), source_hash(typed(keep_source))
    assert first == second
    digest, _, said = first.partition(":")
    assert len(digest) == 64
    assert said == kind


@pytest.mark.parametrize("keep_source", [True, False])
@pytest.mark.parametrize(
    ("cell", "old", "new"),
    [
        ("method", "scaled(values)]", "scaled(values[::-1])]"),
        ("method", "steps = 5", "steps = 6"),
        ("method", "factor=2", "factor=3"),
        ("method", "x * factor", "x + factor"),
        ("method", "Tensor(self.steps).shape", "Tensor(self.steps).ndim"),
        ("helper", "WIDTH * value", "WIDTH + value"),
        ("parent", "return values", "return values * 2"),
        ("settings", "WIDTH = 3", "WIDTH = 4"),
        ("settings", "arange(4.0)", "arange(1.0, 5.0)"),
        ("settings", "rank: int = 4", "rank: int = 8"),
        ("settings", "from torch import Tensor", "from torch.nn import Parameter as Tensor"),
    ],
)
def test_an_edit_of_what_a_method_uses_gives_another_hash(
    typed: Callable[..., type], keep_source: bool, cell: str, old: str, new: str
) -> None:
    assert old in CELLS[cell]
    before = source_hash(typed(keep_source))
    assert source_hash(typed(keep_source, **{cell: CELLS[cell].replace(old, new)})) != before


@pytest.mark.parametrize("keep_source", [True, False])
def test_an_edit_of_anything_else_does_not(typed: Callable[..., type], keep_source: bool) -> None:
    before = source_hash(typed(keep_source))
    unrelated = CELLS["unrelated"].replace("sorted", "list") + "\nOTHER = 7\n"
    assert source_hash(typed(keep_source, unrelated=unrelated)) == before
    assert source_hash(typed(keep_source, method="\n\n# moved down\n" + CELLS["method"])) == before


def test_a_class_of_a_file_has_the_hash_of_the_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_own_method.py"
    file.write_text("class Mine:\n    def learn(self):\n        return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import my_own_method  # type: ignore[import-not-found]

    assert source_hash(my_own_method.Mine) == sha256_file(file)
    sys.modules.pop("my_own_method")


def test_a_file_of_ones_own_that_a_cell_uses_counts(
    typed: Callable[..., type], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_helpers.py").write_text("def scaled(values):\n    return values\n")
    monkeypatch.syspath_prepend(tmp_path)
    for cell in ("from my_helpers import scaled", "import my_helpers\ndef scaled(v): return my_helpers.scaled(v)"):
        before = source_hash(typed(helper=cell))
        assert source_hash(typed(helper=cell)) == before
        with (tmp_path / "my_helpers.py").open("a") as file:
            file.write("MORE = 1\n")
        assert source_hash(typed(helper=cell)) != before
    sys.modules.pop("my_helpers")


def test_things_that_refer_to_themselves_end(typed: Callable[..., type]) -> None:
    loop = "LOOP = []\nLOOP.append(LOOP)\ndef scaled(values):\n    return scaled(LOOP) or Mine\n"
    assert source_hash(typed(helper=loop)) == source_hash(typed(helper=loop))
