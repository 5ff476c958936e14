"""Checks of the interface: what a method declares, takes and gives back, on equal and on uneven classes."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing

import numpy as np
from torch import Tensor

from audiocl_bench import config, files
from audiocl_bench.conformance.examination import Examination, check_columns, features_of
from audiocl_bench.conformance.verdicts import Fail, in_stage, kind_of, listed, need
from audiocl_bench.method import Card, ClosedFormMethod, MethodConfig

_UNEVEN: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3,), (4, 5))
_UNEVEN_COUNTS = {0: 9, 1: 1, 2: 4, 3: 2, 4: 1, 5: 12}


def description(e: Examination) -> str:
    """The class has a name for commands and results, and says what it does."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._-]*", e.cls.name or ""):
        raise Fail(
            f"the class has no usable name ('{e.cls.name}')",
            'decorate it with @register("my-method"): letters, digits and + . _ - only.',
        )
    if e.cls.card is not None and not isinstance(e.cls.card, Card):
        raise Fail(f"card is {kind_of(e.cls.card)}", "make it a audiocl_bench.method.Card, or leave it out.")
    told = (vars(e.cls).get("__doc__") or "").strip()
    if not told and e.cls.card is None:
        raise Fail(
            "it has neither a docstring nor a card, so nobody can know what it does",
            "write one sentence below the class line; `audiocl list methods` shows it.",
        )
    what = told.partition("\n")[0] if told else f"it keeps {e.cls.card.keeps if e.cls.card else ''}"
    return f"'{e.cls.name}': {what}"


def settings(e: Examination) -> str:
    """Config is a frozen dataclass whose settings have a source, can be given as text, and whose presets build."""
    cls = e.cls.Config
    if not (isinstance(cls, type) and issubclass(cls, MethodConfig)):
        raise Fail("Config is no MethodConfig", "derive it from audiocl_bench.method.MethodConfig.")
    fields = dataclasses.fields(cls)
    declared = [n for n, kind in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
    if declared and "__dataclass_fields__" not in vars(cls):
        raise Fail(f"Config declares '{declared[0]}' but is no dataclass", "put @dataclass(frozen=True) above it.")
    unsourced = [f.name for f in fields if not str(f.metadata.get("source", "")).strip()]
    if unsourced:
        raise Fail(
            f"no source is given for {listed(unsourced)}",
            "declare each as name: type = setting(default, 'paper, section; or why you chose it').",
        )
    with in_stage("building the settings"):
        hints = typing.get_type_hints(cls)
        defaults = cls()
        files.canonical_json(defaults.as_dict())
        for f in fields:
            value = getattr(defaults, f.name)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if config.convert(text, hints[f.name], f.name) != value:
                raise Fail(
                    f"'{f.name}' cannot be given as --set {f.name}={text}: the text is read as another value",
                    "use bool, int, float, str, Literal, a tuple of them, or a union with None.",
                )
        for preset in cls.sources:
            config.build(cls, "tiny", {"preset": preset}, owner=e.label)
        for benchmark in cls.presets:
            config.build(cls, benchmark, {}, owner=e.label)
    e.config  # noqa: B018 - with the settings of this examination
    count = len(fields)
    return f"{count} {'setting' if count == 1 else 'settings'}, each with a source." if count else "it has no settings."


def signatures(e: Examination) -> str:
    """Every method of the interface takes the arguments that the runner gives."""
    calls: dict[str, tuple[str, ...]] = {
        "__init__": ("config", "backbone", "context"),
        "learn": ("session",),
        "encode": ("batch",),
        "classify": ("features",),
        "state_dict": (),
        "load_state_dict": ("state",),
    }
    if issubclass(e.cls, ClosedFormMethod):
        calls |= {"adapt": ("session",), "accumulate": ("session",), "reset_statistics": ()}
    for name, arguments in calls.items():
        signature = inspect.signature(getattr(e.cls, name))
        try:
            signature.bind(None, *arguments)
        except TypeError:
            wanted = ", ".join(("self", *arguments))
            raise Fail(
                f"{name}{signature} cannot be called as {name}({wanted})",
                f"write def {name}({wanted}); further arguments need defaults.",
            ) from None
    return f"{len(calls)} methods take what the runner gives."


def builds(e: Examination) -> str:
    """The method can be built from its config, a backbone and a context."""
    e.built()
    return f"built on {e.backbone_name}."


def learns(e: Examination) -> str:
    """Three sessions are learned one after the other without an error."""
    walk = e.first()
    last = walk.all()[-1]
    told = "the whole stream" if e.cls.takes_whole_stream else f"{len(walk.steps)} sessions"
    if isinstance(last.scores, Tensor) and last.scores.ndim == 2 and len(last.scores) == len(e.probe_labels()):
        right = float(np.mean(last.scores.argmax(1).cpu().numpy() == e.probe_labels()))
        return f"learned {told}; then {100 * right:.0f} % of unseen clips of 6 easy classes are right (chance 17 %)."
    return f"learned {told}."


def features(e: Examination) -> str:
    """encode gives one finite row of features [B, D] per clip, for any batch size, and keeps no gradient."""
    walk = e.first()
    steps = walk.all()
    for step in steps:
        found = need(step.features)
        if not found.is_floating_point():
            raise Fail(f"features are {found.dtype}", "return floating-point features.")
        if not bool(found.isfinite().all()):
            bad = int((~found.isfinite()).any(dim=1).sum())
            raise Fail(
                f"after learning {step.seen} classes, the features of {bad} of {len(found)} clips are not finite",
                "look for a division by zero, or training that diverges.",
            )
        if found.requires_grad:
            raise Fail("features carry a gradient", "decorate encode with @torch.no_grad().")
    with in_stage("encode of a single clip"):
        single = features_of(walk.method, e.probe()[:1])
    width = need(steps[-1].features).shape[1]
    if single.shape[1] != width:
        raise Fail(f"a single clip gives {single.shape[1]} features, 72 clips give {width}", "give D columns always.")
    return f"[B, {width}], finite."


def columns(e: Examination) -> str:
    """classify gives exactly one column per class seen so far, without NaN."""
    for step in e.first().all():
        scores = need(step.scores)
        check_columns(scores, len(e.probe()), step.seen, f"after {step.seen} classes")
        if scores.requires_grad:
            raise Fail("scores carry a gradient", "decorate classify with @torch.no_grad().")
    return "one column per class seen, after every session."


def uneven_classes(e: Examination) -> str:
    """Classes of 1 to 12 clips and sessions of 1 to 3 classes are learned."""
    e.need_columns()
    walk = e.walk(_UNEVEN, per_class=_UNEVEN_COUNTS, what="of uneven classes")
    for step in walk.all():
        need(step.features)
        check_columns(need(step.scores), len(e.probe()), step.seen, f"after {step.seen} uneven classes")
    return "classes of 9, 1, 4, 2, 1 and 12 clips, in sessions of 3, 1 and 2 classes."


def one_clip_classes(e: Examination) -> str:
    """One clip per class is enough."""
    e.need_columns()
    walk = e.walk(per_class=1, what="of one clip per class", upto=2)
    for step in walk.all():
        need(step.features)
        check_columns(need(step.scores), len(e.probe()), step.seen, f"after {step.seen} classes of one clip")
    return "one clip per class is enough."
