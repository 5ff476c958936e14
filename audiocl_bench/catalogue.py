"""Catalogues that read like a mapping: `benchmarks["esc50"]`, `"pace" in methods`, `list(backbones)`. Loads lazily."""

from __future__ import annotations

import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from types import ModuleType
from typing import Any, TypeVar

from audiocl_bench.errors import UnknownNameError

T = TypeVar("T")


class UnknownKeyError(UnknownNameError, KeyError):
    """A name that a catalogue does not hold; also a KeyError, because a mapping's caller expects one."""

    __str__ = Exception.__str__  # KeyError would show the sentence in quotes


class Catalogue(Mapping[str, T]):
    """A read-only mapping from names to what they stand for; each thing is loaded when it is asked for.

    Indexing may understand more than the names that are listed (a path, say); `in`, iteration and length go by names.

    Raises:
        UnknownKeyError: on indexing with a name that nothing answers to; the nearest names are listed.
    """

    def __init__(self, kind: str, names: Callable[[], Iterable[str]], load: Callable[[str], T]) -> None:
        """Make a catalogue of `kind` (in the plural) whose names are `names()` and whose things are `load(name)`."""
        self._kind, self._names, self._load = kind, names, load

    def __getitem__(self, name: Any) -> T:
        try:
            return self._load(str(name))
        except UnknownNameError as error:
            raise UnknownKeyError(str(error)) from None

    def __contains__(self, name: object) -> bool:
        return name in tuple(self._names())

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._names()))

    def __len__(self) -> int:
        return len(tuple(self._names()))

    def __repr__(self) -> str:
        return f"<{len(self)} {self._kind}: {', '.join(self)}>"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)


class CatalogueModule(ModuleType):
    """A module with a catalogue that can itself be read as that mapping; see `make_mapping`.

    No `Mapping` by inheritance: that would take away the module's hash, and its equality with itself alone.
    """

    catalogue: Catalogue[Any]

    def __getitem__(self, name: str) -> Any:
        return self.catalogue[name]

    def __contains__(self, name: object) -> bool:
        return name in self.catalogue

    def __iter__(self) -> Iterator[str]:
        return iter(self.catalogue)

    def __len__(self) -> int:
        return len(self.catalogue)

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return self.catalogue.keys()

    def values(self) -> ValuesView[Any]:
        """Return what the names stand for, each loaded when it is reached."""
        return self.catalogue.values()

    def items(self) -> ItemsView[str, Any]:
        """Return pairs of a name and what it stands for."""
        return self.catalogue.items()

    def __repr__(self) -> str:
        return repr(self.catalogue)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.catalogue)


def make_mapping(module: str, catalogue: Catalogue[Any]) -> None:
    """Let the module of this name be read as `catalogue` too.

    The import system puts a submodule into its package under its own name, whoever imports it first. So
    `audiocl_bench.benchmarks` is always the module, and only the module can answer `audiocl_bench.benchmarks["esc50"]`.
    """
    this = sys.modules[module]
    this.__class__ = CatalogueModule
    this.catalogue = catalogue  # type: ignore[attr-defined]
