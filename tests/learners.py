"""Tiny streams, tiny networks and quick settings: what the tests of the methods share."""

from __future__ import annotations

import copy
import functools
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch

from audiocl_bench import config, conformance, registry
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.conformance import CPU, FRAMES, SESSIONS, bytes_of, clips_of, reader, through_a_file, weights
from audiocl_bench.method import Clips, Context, Method, Session, StreamInfo

__all__ = [
    "CPU",
    "FRAMES",
    "NETWORKS",
    "QUICK",
    "SESSIONS",
    "build",
    "bytes_of",
    "clips_of",
    "everything_read",
    "learn",
    "module",
    "network",
    "opened",
    "reader",
    "session",
    "steps",
    "through_a_file",
    "weights",
    "whole",
]

NETWORKS = ("eat-tiny", "whisper-tiny-random")
RECIPE = {"batch_size": 6, "momentum": 0.9, "weight_decay": 5e-4, "lora_scale": 1.0, "rank": 2}
TWO_RATES = {"optimiser": "sgd", "lr_backbone": 0.05, "lr_head": 0.01, "clip": 1.0}
QUICK: dict[str, dict[str, Any]] = {
    "ncm": {},
    "ranpac": {**RECIPE, "lr": 0.01, "epochs": 1, "width": 64},
    "pace": {
        **RECIPE,
        **TWO_RATES,
        "epochs": 1,
        "session_epochs": 1,
        "width": 64,
        "copies": 2,
        "copies_per_step": 1,
        "boundary_clips": 8,
        "projection_norm": "none",
    },
    "finetune": {**RECIPE, **TWO_RATES, "epochs": 1},
    "joint": {**RECIPE, **TWO_RATES, "epochs": 1, "min_steps": 0},
    "joint-closed": {"width": 64},
    "l2p": {"pool": 6, "length": 2, "top_k": 2, "epochs": 1, "batch_size": 6, "lr": 0.01, "lr_batch": None},
    "dualprompt": {"e_length": 3, "epochs": 1, "batch_size": 6, "lr": 0.01, "lr_batch": None},
    "coda-prompt": {"components": 6, "length": 4, "epochs": 1, "batch_size": 6, "lr": 0.01},
    "lora-drs": {"rank": 2, "epochs": 1, "batch_size": 6, "lr": 0.01, "lr_head": 0.01, "energy": 0.9},
    "acil": {"width": 64},
    "fsa": {"epochs": 1, "lr": 1e-4, "batch_size": 6},
    "layup": {},
    "strata": {},
    "hide-prompt": {
        "length": 2,
        "epochs": 1,
        "schedule": "constant",
        "batch_size": 6,
        "lr": 0.1,
        "centroids": 2,
        "align_epochs": 2,
        "align_samples": 12,
        "tii_epochs": 10,
        "tii_lr": 0.1,
        "tii_align_lr": 1.0,
        "tii_align_samples": 6,
    },
    "sprompt++": {"e_length": 3, "epochs": 1, "batch_size": 6, "lr": 0.01, "lr_batch": None},
}
"""Settings that make a method learn a tiny stream in a fraction of a second; all that decides training is spelt out, so
that other defaults do not change the tests."""


@functools.cache
def _pretrained(network: str) -> Backbone:
    return conformance.network(network, frames=FRAMES)


def network(name: str = "eat-tiny") -> Backbone:
    """Return a copy of a tiny pretrained backbone of its own."""
    backbone = copy.deepcopy(_pretrained(name))
    backbone.passes.clips = backbone.passes.block_runs = 0
    return backbone


def session(index: int, backbone: Backbone, *, per_class: int = 6, seed: int = 0) -> Session:
    """Open session `index` of the tiny stream SESSIONS."""
    return conformance.open_session(backbone, index, per_class=per_class, seed=seed)


def whole(backbone: Backbone, *, per_class: int = 6, seed: int = 0) -> Session:
    """Open the whole tiny stream as one session, the way joint methods get it."""
    return conformance.open_session(backbone, 0, whole=True, per_class=per_class, seed=seed)


def build(name: str, backbone: Backbone | None = None, *, seed: int = 0, **settings: Any) -> Method:
    """Build a method with quick settings on a tiny backbone."""
    cls = registry.load(name)
    context = Context(seed, StreamInfo("tiny", len(SESSIONS), 6, first_session_epochs=2))
    values = config.build(cls.Config, "tiny", {**QUICK[name], **settings}, owner=name)
    return cls(values, network() if backbone is None else backbone, context)


def module(name: str) -> ModuleType:
    """Return the module of a method, to replace what it calls."""
    return sys.modules[registry.load(name).__module__]


def opened(method: Method, index: int, **options: int) -> Session:
    """Open what the method learns as its session `index`: the whole stream for a joint method."""
    if method.takes_whole_stream:
        return whole(method.backbone, **options)
    return session(index, method.backbone, **options)


def learn(method: Method, *indices: int, **options: int) -> Method:
    """Let the method learn these sessions, closing each one afterwards as the runner does."""
    for index in indices:
        part = opened(method, index, **options)
        method.learn(part)
        part.close()
    return method


def everything_read(method: Method) -> tuple[np.ndarray, np.ndarray]:
    """Return what the method, as it is now, reads of the whole tiny stream, float64 [n, D], with labels [n]."""
    parts = [clips_of(classes, method.backbone) for classes in SESSIONS]
    read = torch.cat([method.encode(Clips(mel)) for mel, _ in parts]).double().numpy()
    return read, np.concatenate([labels for _, labels in parts])


def steps(method: Method) -> int:
    """Number of sessions the method gets of the tiny stream."""
    return 1 if method.takes_whole_stream else len(SESSIONS)
