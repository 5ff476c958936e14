"""A stream of three sessions in memory, and small things to look at learners with; tests of methods use them too."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiocl_bench import backbones, benchmarks, corpora, store
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.method import Session
from audiocl_bench.runner import Material

CPU = torch.device("cpu")
NETWORK = "eat-tiny"

FRAMES = 64
"""Length of the clips in memory, in rows of 10 ms."""

SESSIONS = ((0, 1), (2, 3), (4, 5))
"""Classes of the sessions of the stream in memory."""

PER_CLASS = 6
FIRST_EPOCHS = 2  # E_0 of the stream in memory


def network(name: str = NETWORK, *, frames: int = FRAMES) -> Backbone:
    """Return a backbone of its own for clips of `frames` rows."""
    return backbones.load(name, frames=frames)


def clips_of(
    classes: Sequence[int],
    backbone: Backbone,
    *,
    per_class: int | Mapping[int, int] = PER_CLASS,
    seed: int = 0,
) -> tuple[Tensor, np.ndarray]:
    """Return log-mels [n, FRAMES, M] float32, a template per class plus noise, and labels [n], the classes mixed.

    Args:
        classes: labels, below 16.
        backbone: gives the number of mel bins M.
        per_class: clips of every class, or a number for each.
        seed: of the noise; the templates are always the same.
    """
    counts = dict.fromkeys(classes, per_class) if isinstance(per_class, int) else {c: per_class[c] for c in classes}
    mels = backbone.front_end.n_mels
    templates = torch.randn(16, FRAMES, mels, generator=torch.Generator().manual_seed(7))
    labels = np.array([c for take in range(max(counts.values())) for c in classes if counts[c] > take], dtype=np.int64)
    noise = torch.randn(
        len(labels), FRAMES, mels, generator=torch.Generator().manual_seed(seed * 1009 + sum(classes) * 31 + 1)
    )
    return templates[torch.from_numpy(labels)] + 0.7 * noise, labels


def reader(mel: Tensor) -> Callable[[np.ndarray], Tensor]:
    """Return the function that a `Session` reads clips with."""
    return lambda positions: mel[torch.from_numpy(np.asarray(positions))]


def open_session(
    backbone: Backbone,
    index: int,
    *,
    sessions: Sequence[Sequence[int]] = SESSIONS,
    whole: bool = False,
    per_class: int | Mapping[int, int] = PER_CLASS,
    seed: int = 0,
    device: torch.device = CPU,
) -> Session:
    """Open session `index` of the stream in memory; with `whole`, all of it as one session, as joint methods get it."""
    chosen = list(sessions) if whole else [sessions[index]]
    parts = [clips_of(classes, backbone, per_class=per_class, seed=seed) for classes in chosen]
    mel, labels = torch.cat([mel for mel, _ in parts]), np.concatenate([labels for _, labels in parts])
    classes = tuple(c for part in chosen for c in part)
    return Session(0 if whole else index, classes, min(classes), labels, reader(mel), device)


def bytes_of(state: Any) -> Any:
    """Return a state with every tensor as (type, shape, bytes), so that == compares bit for bit."""
    if isinstance(state, Tensor):
        return str(state.dtype), tuple(state.shape), state.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(state, dict):
        return {key: bytes_of(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [bytes_of(value) for value in state]
    return state


def weights(backbone: Backbone) -> dict[str, bytes]:
    """Return the bytes of every pretrained tensor by its original name, whatever LoRA hangs on the network."""
    return {
        name.replace(".base_layer.", "."): value.detach().cpu().contiguous().numpy().tobytes()
        for name, value in backbone.state_dict().items()
        if ".lora_" not in name
    }


def through_a_file(state: Any) -> Any:
    """Write and read a state as the runner does: only tensors and plain values survive, on the CPU."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)


def open_material(benchmark: str, backbone: str = NETWORK, *, order: int = 0) -> Material:
    """Return what `runner.execute` works on: a benchmark's first protocol, prepared, with a backbone.

    Raises:
        AudioclError: the benchmark or its data is not there.
    """
    chosen = benchmarks.get(benchmark)
    stream, clips = chosen.open(None, chosen.protocols[0], order)
    loaded = backbones.load(backbone, frames=chosen.frames)
    prepared = store.prepare(clips, loaded.front_end, name=chosen.corpus.info.name, workers=1, progress=False)
    labels = [stream.classes[label] for label in stream.labels]
    return Material(chosen, stream, prepared, loaded, corpora.index_hash(clips[["clip_id"]].assign(label=labels)))
