"""Which miniature stands in for which corpus, and who synthesises it."""

from __future__ import annotations

from importlib import import_module

from audiocl_bench.errors import unknown_name
from audiocl_bench.mini.spec import Recipe

PREFIX = "mini-"
"""Every miniature corpus and benchmark is called `mini-` and the name of the real one."""

# corpus -> (module, class); a module is imported when its recipe is first asked for.
_RECIPES = {
    "mini-esc50": ("sounds", "Environment"),
    "mini-us8k": ("sounds", "Urban"),
    "mini-sc2": ("speech", "Keywords"),
    "mini-timit": ("speech", "Speakers"),
    "mini-vocalset": ("singing", "Singing"),
}

SPOKEN = ("mini-sc2", "mini-timit")
"""Those that need the extra `mini`: a speech synthesiser."""


def names() -> tuple[str, ...]:
    """Return the names of the miniature corpora."""
    return tuple(_RECIPES)


def recipe(name: str) -> Recipe:
    """Return the recipe of a miniature corpus.

    Raises:
        UnknownNameError: there is no such miniature.
    """
    if name not in _RECIPES:
        raise unknown_name("miniature corpus", name, _RECIPES)
    module, cls = _RECIPES[name]
    made: Recipe = getattr(import_module(f"audiocl_bench.mini.{module}"), cls)()
    return made
