"""The check of what a method keeps: no training clip, and nothing that grows with clips in silence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiocl_bench.conformance.examination import Examination, Walk, features_of
from audiocl_bench.conformance.streams import PER_CLASS, SESSIONS, clips_of
from audiocl_bench.conformance.verdicts import Fail, in_stage, need
from audiocl_bench.method import Method

_MORE, _MOST = 12, 24  # clips per class, to see whether the state grows with clips
_GROWTH = 16.0  # bytes per clip; less is a counter
_SAME_CLIP = 0.95  # correlation of a stored block with a clip; a class mean of the stream in memory stays below 0.9
_SAME_FEATURE = 0.01  # distance of a stored row from a clip's feature, in median distances between clips
_CLIP_BLOCKS = 4096  # blocks of one tensor that are compared with clips
_DEPTH = 12  # how deep the attributes of a method are searched for clips


def memory(e: Examination) -> str:
    """What is kept grows with classes, not with clips, and no training clip is kept."""
    first = e.first()
    sizes = [need(step.size) for step in first.all()]
    upto = None if e.cls.takes_whole_stream else 2
    runs = {PER_CLASS: first} | {
        count: e.walk(per_class=count, what=f"of {count} clips per class", upto=upto) for count in (_MORE, _MOST)
    }
    at = 0 if e.cls.takes_whole_stream else 1
    kept = {
        count: (need(walk.all()[at].size), sum(s.clips for s in walk.steps[: at + 1])) for count, walk in runs.items()
    }
    (more, more_clips), (most, most_clips) = kept[_MORE], kept[_MOST]
    per_clip = (most - more) / (most_clips - more_clips)
    most_walk = runs[_MOST]
    learned = range(len(SESSIONS)) if e.cls.takes_whole_stream else range(at + 1)
    clips = torch.cat([clips_of(SESSIONS[t], e.pretrained(), per_class=_MOST)[0] for t in learned])
    _refuse_clips(most_walk.method, need(most_walk.steps[at].state), clips)
    declared = getattr(e.cls, "kept_bytes_per_clip", None)
    if per_clip > _GROWTH and declared is None and _holds_features(most_walk, at, clips.to(e.device)):
        raise Fail(
            f"the state grows by {_size(per_clip)} per training clip and holds the features of the clips",
            "keep statistics per class, or declare it: kept_bytes_per_clip = N in the class (bytes).",
        )
    if declared is not None and per_clip > float(declared):
        raise Fail(
            f"the state grows by {_size(per_clip)} per training clip, but the class declares {_size(float(declared))}",
            "correct kept_bytes_per_clip, or keep less.",
        )
    told = f"{', '.join(map(_size, sizes))} after session {', '.join(map(str, range(len(sizes))))}"
    if per_clip > _GROWTH:
        return (
            f"{told}; it grows with clips, {_size(per_clip)} each: say in the card until when. No clip and no feature "
            "of a clip was found in it."
        )
    return f"{told}; more clips of the same classes do not make it grow."


def _refuse_clips(method: Method, state: Any, clips: Tensor) -> None:
    places = {"state_dict()": state, **{f"self.{name}": value for name, value in vars(method).items()}}
    flat = _centred(clips.flatten(1))
    turned = _centred(clips.transpose(1, 2).flatten(1))
    for place, value in places.items():
        held = 0
        for tensor in _tensors(value):
            held += max(_matches(tensor, flat), _matches(tensor, turned))
        if held:
            raise Fail(
                f"{place} holds {min(held, len(clips))} of {len(clips)} training clips after their sessions",
                "keep statistics or weights instead: a method keeps no old clips (drop caches at the end of learn).",
            )


def _centred(rows: Tensor) -> Tensor:
    rows = rows.double() - rows.double().mean(dim=1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _matches(tensor: Tensor, clips: Tensor) -> int:
    """Count blocks of a tensor that are one of the clips [n, T * M] (centred), in whatever precision or scale."""
    width = clips.shape[1]
    if tensor.numel() < width or tensor.numel() % width or tensor.is_complex():
        return 0
    blocks = tensor.detach().cpu().flatten().view(-1, width)[:_CLIP_BLOCKS]
    likeness = _centred(blocks) @ clips.T
    return int((likeness.abs().amax(dim=1) > _SAME_CLIP).sum())


def _holds_features(walk: Walk, at: int, clips: Tensor) -> bool:
    """Tell whether most of the clips' features stand in the state, as they are or with unit length."""
    with in_stage("encode of training clips"):
        features = torch.cat([features_of(walk.method, part) for part in clips.split(64)]).detach().cpu().double()
    tensors = [tensor for tensor in _tensors(need(walk.steps[at].state)) if tensor.is_floating_point()]
    width = features.shape[1]
    rows = [t.detach().cpu().double().flatten().view(-1, width) for t in tensors if t.numel() and not t.numel() % width]
    if not rows:
        return False
    kept = torch.cat(rows)
    for wanted in (features, torch.nn.functional.normalize(features, dim=1)):
        spread = float(torch.pdist(wanted).median())
        near = torch.cdist(wanted, kept, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        if float((near < _SAME_FEATURE * spread).double().mean()) > 0.5:
            return True
    return False


def _tensors(value: Any, depth: int = _DEPTH, visited: set[int] | None = None) -> Iterator[Tensor]:
    """Yield all tensors below a value: in containers, arrays, bytes, modules and other objects' attributes."""
    visited = set() if visited is None else visited
    if depth == 0 or id(value) in visited or isinstance(value, (type, FunctionType, ModuleType, str, int, float)):
        return
    visited.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fiub":
            yield torch.from_numpy(np.ascontiguousarray(value))
        elif value.dtype == object:
            yield from _tensors(value.tolist(), depth - 1, visited)
    elif isinstance(value, (bytes, bytearray)):
        for kind in (np.uint8, np.float16, np.float32):
            if len(value) % np.dtype(kind).itemsize == 0 and value:
                yield torch.from_numpy(np.frombuffer(value, dtype=kind).copy()).nan_to_num()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, depth - 1, visited)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from _tensors(item, depth - 1, visited)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value), depth - 1, visited)


def _size(amount: float) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.3g} {unit}"
    return f"{amount:.0f} bytes"
