"""Pretrained audio backbones: EAT, SSLAM and Whisper encoders, loaded by name or from a weight file."""

from audiocl_bench import catalogue
from audiocl_bench.backbones.base import Backbone, PassCounter
from audiocl_bench.backbones.registry import Row, cached, list_rows, load, names
from audiocl_bench.errors import unknown_name

__all__ = ["Backbone", "PassCounter", "Row", "cached", "list_rows", "load", "names", "row"]


def row(name: str) -> Row:
    """Return the catalogue's row of a backbone; no weights are read.

    Raises:
        UnknownNameError: no backbone has that name.
    """
    found = {each.name: each for each in list_rows()}
    if name not in found:
        raise unknown_name("backbone", name, found)
    return found[name]


# `audiocl_bench.backbones["eat-base"]` is its row; `load` reads weights.
catalogue.make_mapping(__name__, catalogue.Catalogue("backbones", names, row))
