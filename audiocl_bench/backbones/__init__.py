"""Pretrained audio backbones: EAT, SSLAM and Whisper encoders, loaded by name or from a weight file."""

from audiocl_bench.backbones.base import Backbone, PassCounter
from audiocl_bench.backbones.registry import Row, cached, list_rows, load, names

__all__ = ["Backbone", "PassCounter", "Row", "cached", "list_rows", "load", "names"]
