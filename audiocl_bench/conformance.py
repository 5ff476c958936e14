"""The conformance suite: does a method keep the interface, and what it promises, on streams that take seconds?

    report = conformance.check(MyMethod)        # from Python or pytest
    audiocl check my.py:MyMethod                # the same from the command line

Every check knows nothing but the interface. Most work on a stream of three sessions that exists in memory only; two of
them make whole runs, killed and continued, on a miniature benchmark. The backbone is a tiny network with random
weights. Passing says that a method's results can be trusted to be its own, not that they are good.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import pickle
import random
import re
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from audiocl_bench import audit, backbones, benchmarks, config, corpora, files, runner, seeding, store
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import AudioclError, unknown_name
from audiocl_bench.method import (
    Card,
    Clips,
    ClosedFormMethod,
    Context,
    Method,
    MethodConfig,
    Session,
    SilentReporter,
    StreamInfo,
    kept_bytes,
    require_storable,
)
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan

T = TypeVar("T")
Status = Literal["passed", "failed", "skipped"]
Progress = Callable[[str, int, int], None]
"""Told before every check: its name, its number from 0, and how many there are."""

CPU = torch.device("cpu")
NETWORK = "eat-tiny"
FRAMES = 64
"""Length of the clips in memory, in rows of 10 ms."""

SESSIONS = ((0, 1), (2, 3), (4, 5))
"""Classes of the sessions of the stream in memory."""

PER_CLASS = 6
MINIATURES = ("mini-us8k",)
BATCH_SIZES = (1, 7, 64)
FIRST_EPOCHS = 2  # E_0 of the stream in memory

_PROBE_PER_CLASS = 12  # 72 unseen clips: more than the largest batch
_UNEVEN: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3,), (4, 5))
_UNEVEN_COUNTS = {0: 9, 1: 1, 2: 4, 3: 2, 4: 1, 5: 12}
_MORE, _MOST = 12, 24  # clips per class, to see whether the state grows with clips
_GROWTH = 16.0  # bytes per clip; less is a counter
_SAME_CLIP = 0.95  # correlation of a stored block with a clip; a class mean of the stream in memory stays below 0.9
_SAME_FEATURE = 0.01  # distance of a stored row from a clip's feature, in median distances between clips
_CLIP_BLOCKS = 4096  # blocks of one tensor that are compared with clips
_DEPTH = 12  # how deep the attributes of a method are searched for clips


# --------------------------------------------------------------------------------------------------------- the report


@dataclass(frozen=True)
class Outcome:
    """What one check found.

    Attributes:
        name: the check, one of `names()`.
        status: "passed", "failed", or "skipped" (the sentence says why).
        told: one sentence.
        fix: what to change, where the check failed.
        traceback: the full traceback where the method raised an error.
    """

    name: str
    status: Status
    told: str
    fix: str = ""
    traceback: str = ""

    @property
    def passed(self) -> bool:
        """Whether the check passed; a skipped one did not."""
        return self.status == "passed"

    def __str__(self) -> str:
        parts = [f"{self.name} {self.status}: {self.told}", self.fix and f"Fix: {self.fix}", self.traceback]
        return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Report:
    """What all checks found about a method; `report["resume"]` is one outcome."""

    method: str
    outcomes: tuple[Outcome, ...]

    def __getitem__(self, name: str) -> Outcome:
        for outcome in self.outcomes:
            if outcome.name == name:
                return outcome
        raise unknown_name("check", name, [outcome.name for outcome in self.outcomes])

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def __str__(self) -> str:
        return "\n".join([f"conformance of {self.method}", *map(str, self.outcomes)])


def names() -> tuple[str, ...]:
    """Return the names of all checks, in the order in which they run."""
    return tuple(_CHECKS)


def describe(name: str) -> str:
    """Return what a check demands, in one sentence.

    Raises:
        UnknownNameError: there is no such check.
    """
    if name not in _CHECKS:
        raise unknown_name("check", name, _CHECKS)
    return (_CHECKS[name].__doc__ or "").strip()


def check(
    cls: type[Method],
    *,
    settings: Mapping[str, Any] | None = None,
    backbone: str = NETWORK,
    miniatures: Sequence[str] = MINIATURES,
    only: Sequence[str] | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    progress: Progress | None = None,
) -> Report:
    """Examine a method.

    An error inside the method is an outcome, never an exception; what depends on the part that failed is skipped.

    Args:
        cls: the method class.
        settings: changes to its defaults, for example fewer epochs; texts are read as the setting's type.
        backbone: name or path of the network.
        miniatures: benchmarks on which whole runs are made (`mini-us8k` takes some 20 s to synthesise the first time
            and is kept in the cache); empty skips these two checks.
        only: names of the checks to make; default all of them.
        seed: run seed.
        device: where the method works.
        progress: called before every check.

    Raises:
        UnknownNameError: `only` or `miniatures` names nothing, `settings` names no setting, or there is no such
            backbone.
        ConfigError: a setting has no proper value.
    """
    chosen = names() if only is None else tuple(only)
    for name in chosen:
        describe(name)
    for name in miniatures:
        benchmarks.get(name)
    examination = _Examination(cls, dict(settings or {}), backbone, tuple(miniatures), seed, device)
    if settings:
        config.build(cls.Config, "tiny", settings, owner=cls.name or cls.__name__)
    outcomes = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number, name in enumerate(chosen):
            if progress is not None:
                progress(name, number, len(chosen))
            outcomes.append(_judged(name, examination))
            if outcomes[-1].status == "failed":
                examination.failed.add(name)
    return Report(cls.name or cls.__name__, tuple(outcomes))


# --------------------------------------------------------------------------------------------- the stream in memory


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


# ------------------------------------------------------------------------------------------------------ the machinery


class _Fail(Exception):  # noqa: N818 - it ends a check, it is no error
    """Ends a check as failed."""

    def __init__(self, told: str, fix: str) -> None:
        super().__init__(told)
        self.told, self.fix = told, fix


class _Skip(Exception):  # noqa: N818
    """Ends a check as skipped."""


class _Broken(Exception):  # noqa: N818
    """The method raised an error, or gave back nonsense, in some stage."""

    def __init__(self, stage: str, cause: BaseException) -> None:
        super().__init__(stage)
        self.stage, self.cause = stage, cause

    @property
    def fault(self) -> tuple[Any, ...]:
        """What makes two of them the same mistake: part of the interface, kind of error, and line."""
        part, frames = self.stage.partition(" ")[0], traceback.extract_tb(self.cause.__traceback__)
        if isinstance(self.cause, _Fail):
            return part, self.cause.fix
        return part, type(self.cause), frames[-1].filename, frames[-1].lineno

    @property
    def told(self) -> str:
        if isinstance(self.cause, _Fail):
            return f"{self.stage}: {self.cause.told}"
        return f"{self.stage} failed: {_error(self.cause)}"

    @property
    def fix(self) -> str:
        if isinstance(self.cause, _Fail):
            return self.cause.fix
        known = isinstance(self.cause, AudioclError)
        return "do what the sentence says." if known else "the traceback shows the line."

    @property
    def traceback(self) -> str:
        return "" if isinstance(self.cause, _Fail) else "".join(traceback.format_exception(self.cause))


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _error(cause: BaseException) -> str:
    first = (str(cause).splitlines() or [""])[0].rstrip(".")
    if isinstance(cause, AudioclError):
        return f"{first}."
    return f"{type(cause).__name__}: {first}." if first else f"{type(cause).__name__}."


def _judged(name: str, examination: _Examination) -> Outcome:
    """Make one check; whatever happens in it is its outcome."""
    try:
        return Outcome(name, "passed", _sentence(_CHECKS[name](examination)))
    except _Fail as found:
        return Outcome(name, "failed", _sentence(found.told), found.fix)
    except _Skip as found:
        return Outcome(name, "skipped", _sentence(str(found)))
    except _Broken as broken:
        teller = examination.faults.setdefault(broken.fault, name)
        if teller != name:
            return Outcome(name, "skipped", f"cannot be judged: {broken.stage} failed (see {teller}).")
        return Outcome(name, "failed", _sentence(broken.told), broken.fix, broken.traceback)
    except Exception as cause:  # a method may give back anything
        told = f"what the method gave back cannot be examined: {_error(cause)}"
        return Outcome(name, "failed", told, "the traceback shows what was expected.", traceback.format_exc())


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Turn any error of the method inside the block into a `_Broken` of this stage."""
    try:
        yield
    except (_Broken, _Skip):
        raise
    except (Exception, SystemExit) as cause:  # sys.exit() inside a method must not end the examination
        raise _Broken(name, cause) from cause


def _attempt(stage: str, action: Callable[[], T]) -> T | _Broken:
    """Return what `action` returns, or how it failed."""
    try:
        with _stage(stage):
            return action()
    except _Broken as broken:
        return broken


def _need(value: T | _Broken) -> T:
    if isinstance(value, _Broken):
        raise value
    return value


@contextmanager
def _global_generators(seed: int, *purpose: str | int, disturb: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator as the runner does, and everybody else's with `disturb`; restore all afterwards."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seeding.derive(seed, "global generator", *purpose))
        random.seed(disturb)
        np.random.seed(disturb)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@dataclass
class _After:
    """What is seen of a learner after one session; each part is a value or how it failed."""

    seen: int
    classes: tuple[int, ...]
    clips: int
    clips_read: int
    version: int
    features: Tensor | _Broken
    scores: Tensor | _Broken
    state: Any | _Broken  # as a file gives it back
    size: int | _Broken


@dataclass
class _Walk:
    """A learner's way through the stream in memory, up to the session that failed."""

    method: Method
    steps: list[_After] = field(default_factory=list)
    broken: _Broken | None = None

    def all(self) -> list[_After]:
        if self.broken is not None:
            raise self.broken
        return self.steps


class _Examination:
    """One method under examination; what several checks need is made once."""

    def __init__(
        self,
        cls: type[Method],
        settings: dict[str, Any],
        backbone: str,
        miniatures: tuple[str, ...],
        seed: int,
        device: torch.device,
    ) -> None:
        self.cls, self.settings, self.miniatures = cls, settings, miniatures
        self.backbone_name, self.seed, self.device = backbone, seed, device
        self.label = cls.name or cls.__name__
        self._pretrained = network(backbone)
        self.faults: dict[tuple[Any, ...], str] = {}  # mistakes of the method -> the check that told of it
        self.failed: set[str] = set()  # checks
        self._made: dict[str, Any] = {}

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` returned or raised the first time."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except _Broken as broken:
                self._made[key] = broken
        found: T | _Broken = self._made[key]
        return _need(found)

    @property
    def config(self) -> MethodConfig:
        def make() -> MethodConfig:
            with _stage("building the settings"):
                return config.build(self.cls.Config, "tiny", self.settings, owner=self.label)

        return self.once("config", make)

    def pretrained(self) -> Backbone:
        """Return a copy of the backbone as it was loaded."""
        return copy.deepcopy(self._pretrained).to(self.device)

    def build(self, sessions: Sequence[Sequence[int]] = SESSIONS, *, disturb: int = 0) -> Method:
        """Return a fresh learner, built as the runner builds it."""
        settings, classes = self.config, sum(map(len, sessions))
        count = 1 if self.cls.takes_whole_stream else len(sessions)
        context = Context(self.seed, StreamInfo("tiny", count, classes, FIRST_EPOCHS), self.device, SilentReporter())
        with (
            _stage("building the method"),
            _global_generators(self.seed, "build", disturb=disturb, device=self.device),
        ):
            return self.cls(settings, self.pretrained(), context)

    def built(self) -> None:
        """Fail here if the method cannot be built, so that the check of building tells it."""

        def build() -> None:
            method = self.build()
            with _stage("building the method"):
                for name in ("config", "backbone", "context", "encoder_version"):
                    if not hasattr(method, name):
                        raise _Fail(
                            f"it has no attribute '{name}'", "call super().__init__(config, backbone, context) first."
                        )

        self.once("built", build)

    def repeatable(self) -> audit.Check:
        """Evaluate the learner of the plain walk twice."""
        walk = self.first()
        _need(walk.all()[-1].state)
        if bool(_need(walk.all()[-1].scores).isnan().any()):
            raise _Skip("cannot be judged: scores are NaN (see columns).")
        return self.once("repeatable", lambda: audit.repeatability(walk.method, self.probe()))

    def need_repeatable(self) -> None:
        """Skip a comparison of two learners where even one gives other scores every time."""
        if not self.repeatable().detail.get("same_scores", False):
            raise _Skip("cannot be judged: the same learner gives other scores every time (see repeatability).")

    def need_columns(self) -> None:
        """Skip a harder stream where the columns are wrong on the plain one."""
        for step in self.first().all():
            try:
                _check_columns(_need(step.scores), len(self.probe()), step.seen, "")
            except _Fail:
                raise _Skip("cannot be judged: on equal classes the scores are wrong already (see columns).") from None

    def first(self) -> _Walk:
        """The plain walk that most checks look at."""
        self.built()
        return self.once("first", lambda: self.walk(disturb=1))

    def walk(
        self,
        sessions: Sequence[Sequence[int]] = SESSIONS,
        *,
        per_class: int | Mapping[int, int] = PER_CLASS,
        restart: bool = False,
        disturb: int = 0,
        what: str = "",
        upto: int | None = None,
    ) -> _Walk:
        """Learn a stream session by session and look at the learner after each, in the runner's order.

        Args:
            sessions: classes of the sessions.
            per_class: clips of every class.
            restart: throw the learner away after every session and go on with a fresh one that gets its state.
            disturb: seed of Python's and NumPy's global generators, which must not matter.
            what: named in messages, for example "of uneven classes".
            upto: number of sessions to learn; default all.
        """
        walk = _Walk(self.build(sessions, disturb=disturb))
        whole = self.cls.takes_whole_stream
        mel = self.probe()
        for t in range(1 if whole else len(sessions) if upto is None else upto):
            where = "the whole stream" if whole else f"session {t}"
            where = f"{where} {what}".rstrip()
            opened = open_session(
                walk.method.backbone
                if isinstance(getattr(walk.method, "backbone", None), Backbone)
                else self._pretrained,
                t,
                sessions=sessions,
                whole=whole,
                per_class=per_class,
                device=self.device,
            )
            try:
                with (
                    _stage(f"learning {where}"),
                    _global_generators(self.seed, "session", t, disturb=disturb, device=self.device),
                ):
                    walk.method.learn(opened)
            except _Broken as broken:
                walk.broken = broken
                return walk
            finally:
                opened.close()
            walk.steps.append(self._look(walk.method, opened, mel, f"after {where}"))
            if restart:
                version = walk.method.encoder_version
                try:
                    walk.method = self.revived(_need(walk.steps[-1].state), sessions, disturb=disturb)
                except _Broken as broken:
                    walk.broken = broken
                    return walk
                walk.method.encoder_version = version  # the runner restores it too
        return walk

    def revived(self, state: Any, sessions: Sequence[Sequence[int]] = SESSIONS, *, disturb: int = 0) -> Method:
        """Return a fresh learner that was given a state."""
        method = self.build(sessions, disturb=disturb)
        with _stage("load_state_dict"):
            method.load_state_dict(copy.deepcopy(state))
        return method

    def _look(self, method: Method, session: Session, mel: Tensor, when: str) -> _After:
        def state() -> tuple[Any, int]:
            given = method.state_dict()
            if not isinstance(given, dict):
                raise _Fail(f"it returned {_kind(given)}, not a dict", "return a dict of tensors and plain values.")
            require_storable(given, owner=self.label)
            return through_a_file(given), kept_bytes(given)

        features = _attempt(f"encode {when}", lambda: _features(method, mel))
        scores: Tensor | _Broken
        if isinstance(features, _Broken):
            scores = features
        else:
            found = features
            scores = _attempt(f"classify {when}", lambda: _scores(method, found))
        kept = _attempt(f"state_dict {when}", state)
        return _After(
            seen=session.num_seen,
            classes=session.classes,
            clips=session.num_clips,
            clips_read=session.clips_handed_out,
            version=int(getattr(method, "encoder_version", 0)),
            features=features,
            scores=scores,
            state=kept if isinstance(kept, _Broken) else kept[0],
            size=kept if isinstance(kept, _Broken) else kept[1],
        )

    def probe(self) -> Tensor:
        """Unseen clips of all six classes [72, FRAMES, M], in a mixed order."""
        mel, _ = clips_of(range(6), self._pretrained, per_class=_PROBE_PER_CLASS, seed=99)
        return mel.to(self.device)

    def probe_labels(self) -> np.ndarray:
        return clips_of(range(6), self._pretrained, per_class=_PROBE_PER_CLASS, seed=99)[1]


def _features(method: Method, mel: Tensor) -> Tensor:
    """Return the features of a batch, or say what is wrong with them."""
    features = method.encode(Clips(mel))
    if not isinstance(features, Tensor):
        raise _Fail(f"it returned {_kind(features)}, not a tensor", "return features [B, D] as one tensor.")
    if features.ndim != 2 or len(features) != len(mel):
        raise _Fail(
            f"{len(mel)} clips gave features of shape {list(features.shape)}, but one row per clip [B, D] is needed",
            "return one row of features for every clip of the batch.",
        )
    return features


def _scores(method: Method, features: Tensor) -> Tensor:
    scores = method.classify(features)
    if not isinstance(scores, Tensor):
        raise _Fail(f"it returned {_kind(scores)}, not a tensor", "return scores [B, classes seen] as one tensor.")
    return scores


def _kind(value: Any) -> str:
    if value is None:
        return "nothing (None)"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


# --------------------------------------------------------------------------------------------------------- the checks


def _description(e: _Examination) -> str:
    """The class has a name for commands and results, and says what it does."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+._-]*", e.cls.name or ""):
        raise _Fail(
            f"the class has no usable name ('{e.cls.name}')",
            'decorate it with @register("my-method"): letters, digits and + . _ - only.',
        )
    if e.cls.card is not None and not isinstance(e.cls.card, Card):
        raise _Fail(f"card is {_kind(e.cls.card)}", "make it a audiocl_bench.method.Card, or leave it out.")
    told = (vars(e.cls).get("__doc__") or "").strip()
    if not told and e.cls.card is None:
        raise _Fail(
            "it has neither a docstring nor a card, so nobody can know what it does",
            "write one sentence below the class line; `audiocl list methods` shows it.",
        )
    what = told.partition("\n")[0] if told else f"it keeps {e.cls.card.keeps if e.cls.card else ''}"
    return f"'{e.cls.name}': {what}"


def _settings(e: _Examination) -> str:
    """Config is a frozen dataclass whose settings have a source, can be given as text, and whose presets build."""
    cls = e.cls.Config
    if not (isinstance(cls, type) and issubclass(cls, MethodConfig)):
        raise _Fail("Config is no MethodConfig", "derive it from audiocl_bench.method.MethodConfig.")
    fields = dataclasses.fields(cls)
    declared = [n for n, kind in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(kind)]
    if declared and "__dataclass_fields__" not in vars(cls):
        raise _Fail(f"Config declares '{declared[0]}' but is no dataclass", "put @dataclass(frozen=True) above it.")
    unsourced = [f.name for f in fields if not str(f.metadata.get("source", "")).strip()]
    if unsourced:
        raise _Fail(
            f"no source is given for {_listed(unsourced)}",
            "declare each as name: type = setting(default, 'paper, section; or why you chose it').",
        )
    with _stage("building the settings"):
        hints = typing.get_type_hints(cls)
        defaults = cls()
        files.canonical_json(defaults.as_dict())
        for f in fields:
            value = getattr(defaults, f.name)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if config.convert(text, hints[f.name], f.name) != value:
                raise _Fail(
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


def _signatures(e: _Examination) -> str:
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
            raise _Fail(
                f"{name}{signature} cannot be called as {name}({wanted})",
                f"write def {name}({wanted}); further arguments need defaults.",
            ) from None
    return f"{len(calls)} methods take what the runner gives."


def _builds(e: _Examination) -> str:
    """The method can be built from its config, a backbone and a context."""
    e.built()
    return f"built on {e.backbone_name}."


def _learns(e: _Examination) -> str:
    """Three sessions are learned one after the other without an error."""
    walk = e.first()
    last = walk.all()[-1]
    told = "the whole stream" if e.cls.takes_whole_stream else f"{len(walk.steps)} sessions"
    if isinstance(last.scores, Tensor) and last.scores.ndim == 2 and len(last.scores) == len(e.probe_labels()):
        right = float(np.mean(last.scores.argmax(1).cpu().numpy() == e.probe_labels()))
        return f"learned {told}; then {100 * right:.0f} % of unseen clips of 6 easy classes are right (chance 17 %)."
    return f"learned {told}."


def _features_check(e: _Examination) -> str:
    """encode gives one finite row of features [B, D] per clip, for any batch size, and keeps no gradient."""
    walk = e.first()
    steps = walk.all()
    for step in steps:
        found = _need(step.features)
        if not found.is_floating_point():
            raise _Fail(f"features are {found.dtype}", "return floating-point features.")
        if not bool(found.isfinite().all()):
            bad = int((~found.isfinite()).any(dim=1).sum())
            raise _Fail(
                f"after learning {step.seen} classes, the features of {bad} of {len(found)} clips are not finite",
                "look for a division by zero, or training that diverges.",
            )
        if found.requires_grad:
            raise _Fail("features carry a gradient", "decorate encode with @torch.no_grad().")
    with _stage("encode of a single clip"):
        single = _features(walk.method, e.probe()[:1])
    width = _need(steps[-1].features).shape[1]
    if single.shape[1] != width:
        raise _Fail(f"a single clip gives {single.shape[1]} features, 72 clips give {width}", "give D columns always.")
    return f"[B, {width}], finite."


def _columns(e: _Examination) -> str:
    """classify gives exactly one column per class seen so far, without NaN."""
    for step in e.first().all():
        scores = _need(step.scores)
        _check_columns(scores, len(e.probe()), step.seen, f"after {step.seen} classes")
        if scores.requires_grad:
            raise _Fail("scores carry a gradient", "decorate classify with @torch.no_grad().")
    return "one column per class seen, after every session."


def _check_columns(scores: Tensor, rows: int, seen: int, when: str) -> None:
    if tuple(scores.shape) != (rows, seen):
        raise _Fail(
            f"{when}, {rows} clips got scores of shape {list(scores.shape)}, but [B, classes seen] is {[rows, seen]}",
            "grow the head by the session's new classes in learn, and return exactly session.num_seen columns.",
        )
    if count := int(scores.isnan().any(dim=1).sum()):
        raise _Fail(
            f"{when}, the scores of {count} of {rows} clips are NaN",
            "look for a division by zero (a spread of one clip is 0), or training that diverges.",
        )


def _batch_independence(e: _Examination) -> str:
    """A clip's features and prediction are the same at batch sizes 1, 7 and 64 and in any order."""
    walk = e.first()
    steps = walk.all()
    _need(steps[-1].features)
    _need(steps[-1].scores)
    if getattr(walk.method, "leaks_across_batch", False):
        raise _Skip("the method declares that it leaks (leaks_across_batch): its runs are marked and never ranked.")
    mel = e.probe()
    order = torch.from_numpy(seeding.numpy_generator(e.seed, "conformance").permutation(len(mel)))
    found = audit.batch_independence(walk.method, mel, batch_sizes=BATCH_SIZES, seed_order=order)
    if not found.passed:
        if "error" in found.detail:
            raise _Fail(f"in other batches it fails: {found.detail['error']}", "take any batch size, 1 included.")
        change, moved = found.detail["largest_feature_change"], found.detail["changed_predictions"]
        how_much = "by what is no finite number" if change is None else f"by up to {_percent(change)} of their spread"
        raise _Fail(
            f"features change {how_much} and {moved} predictions change with the other clips of the batch",
            "use no statistic over the batch in encode or classify (batch norm, a vote, a shared prompt).",
        )
    return "the same at batch sizes 1, 7, 64 and 72, and in another order."


def _repeatability(e: _Examination) -> str:
    """Evaluating twice gives equal bits and leaves the state as it was."""
    found = e.repeatable()
    if "error" in found.detail:
        raise _Fail(f"evaluating again fails: {found.detail['error']}", "encode and classify may be called any time.")
    if not found.detail["same_scores"]:
        raise _Fail(
            "evaluating the same clips twice gives other scores",
            "draw nothing in encode and classify; switch dropout and augmentation off there.",
        )
    if not found.detail["same_state"]:
        raise _Fail("evaluating changes the state", "change nothing in encode and classify: they only read.")
    return "equal bits twice, and the state is left alone."


def _encoder_version(e: _Examination) -> str:
    """encoder_version changes whenever encode does: the runner keeps test features until it changes."""
    steps = e.first().all()
    for step in steps:
        _need(step.features)
    e.need_repeatable()
    changes = 0
    for before, after in pairwise(steps):
        old, new = _need(before.features), _need(after.features)
        same = old.shape == new.shape and torch.equal(old, new)
        if not same and before.version == after.version:
            raise _Fail(
                f"learning classes {_listed(after.classes)} changed what encode returns, but encoder_version stayed "
                f"{after.version}",
                "add 1 to self.encoder_version in learn whenever the encoder changes.",
            )
        changes += not same
    return f"encode changed in {changes} of {max(len(steps) - 1, 0)} later sessions, and said so."


def _backbone(e: _Examination) -> str:
    """The pretrained weights change only where the method says that it trains."""
    walk = e.first()
    walk.all()
    before, after = weights(e.pretrained()), weights(walk.method.backbone)
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise _Skip("the method gave its backbone's weights other names, so they cannot be compared.")
    changed = [name for name in shared if before[name] != after[name]]
    numbers = sum(len(before[name]) // 4 for name in changed)
    version = int(getattr(walk.method, "encoder_version", 0))
    trained = getattr(walk.method.context.report, "most_trainable", 0)
    if changed and version == 0:
        raise _Fail(
            f"{len(changed)} pretrained tensors changed ('{changed[0]}' and so on), but encoder_version is 0",
            "leave the backbone alone, or add 1 to self.encoder_version when you train it.",
        )
    if changed and trained and numbers > trained:
        raise _Fail(
            f"{numbers:,} pretrained numbers changed, but at most {trained:,} were reported as trained",
            "freeze what is not trained (weight decay moves it too), or report all of it with "
            "context.report.trainable(n).",
        )
    if e.cls.needs_queries:
        mel = e.probe()[:7]
        with _stage("query"), torch.no_grad():
            same = torch.equal(walk.method.query(mel), e.pretrained().features(mel))
        if not same:
            raise _Fail(
                "query no longer gives the features of the pretrained network after training",
                "undo in query what learn changed, or keep the trained parts out of the backbone.",
            )
    if changed:
        return f"{len(changed)} of {len(shared)} pretrained tensors were trained, as encoder_version says."
    return f"all {len(shared)} pretrained tensors are as they were."


def _data_access(e: _Examination) -> str:
    """Learning reads the open session only; testing needs nothing of it."""
    walk = e.first()
    steps = walk.all()
    _need(steps[-1].scores)
    held = [name for name, value in vars(walk.method).items() if isinstance(value, Session)]
    if held:
        raise _Fail(f"self.{held[0]} keeps the closed session", "keep statistics or weights, not the session.")
    unread = [step for step in steps if step.clips_read == 0]
    if unread:
        raise _Fail(f"learning classes {_listed(unread[0].classes)} read no clip", "read session.batches in learn.")
    times = sorted({f"{step.clips_read / step.clips:.3g}" for step in steps}, key=float)
    often = "once" if times == ["1"] else f"{' to '.join(dict.fromkeys((times[0], times[-1])))} times"
    return f"every clip was read {often}, and none after its session."


def _state(e: _Examination) -> str:
    """state_dict holds all that is kept: a fresh learner that gets it predicts the same bits."""
    walk = e.first()
    last = walk.all()[-1]
    state, features, scores = _need(last.state), _need(last.features), _need(last.scores)
    e.need_repeatable()
    twin = e.revived(state)
    twin.encoder_version = walk.method.encoder_version
    with _stage("encode after load_state_dict"):
        again = _features(twin, e.probe())
    with _stage("classify after load_state_dict"):
        outcome = _scores(twin, again)
    if not torch.equal(features, again) or not torch.equal(scores, outcome):
        part = "features" if not torch.equal(features, again) else "scores"
        raise _Fail(
            f"a fresh learner that was given the state gives other {part}: something kept is not in state_dict",
            "put every tensor, number and random draw that learn leaves behind into state_dict.",
        )
    return "a fresh learner that gets it predicts the same bits."


def _pickling(e: _Examination) -> str:
    """State and settings survive being written and read, bit for bit."""
    state = _need(e.first().all()[-1].state)
    with _stage("writing and reading the state"):
        if bytes_of(through_a_file(state)) != bytes_of(state) or bytes_of(copy.deepcopy(state)) != bytes_of(state):
            raise _Fail("the state changes when it is written and read", "use plain tensors and values.")
    with _stage("pickling the settings"):
        if pickle.loads(pickle.dumps(e.config)) != e.config:
            raise _Fail("the settings change when they are pickled", "use plain values in Config.")
    return "state and settings come back bit for bit."


def _determinism(e: _Examination) -> str:
    """The same seed gives the same bytes, whatever Python's and NumPy's global generators hold."""
    first = e.first()
    e.need_repeatable()
    second = e.once("second", lambda: e.walk(disturb=2, what="a second time"))
    for before, after in zip(first.all(), second.all(), strict=True):
        differing = _differing(before, after)
        if differing:
            raise _Fail(
                f"learning the same stream twice with the same seed gives other {differing} after {before.seen} "
                "classes",
                "draw only from self.context.generator(purpose), not from NumPy, random, time or a set's order.",
            )
    return "learning twice with one seed gives the same state, features and scores, byte for byte."


def _resume(e: _Examination) -> str:
    """Stopped after every session and continued from the state, a learner ends with the bytes of an unbroken one."""
    first = e.first()
    for step in first.all():
        _need(step.state)
    e.need_repeatable()
    if e.cls.takes_whole_stream:
        raise _Skip("it learns one single session, so there is nothing to continue.")
    if "second" in e._made and isinstance(e._made["second"], _Walk):
        pairs = zip(first.all(), e._made["second"].all(), strict=True)
        if any(_differing(before, after) for before, after in pairs):
            raise _Skip("cannot be judged: two unbroken ones differ already (see determinism).")
    broken = e.walk(restart=True, disturb=1, what="of a learner that continues")
    for before, after in zip(first.all(), broken.all(), strict=True):
        differing = _differing(before, after)
        if differing:
            raise _Fail(
                f"a learner that was stopped and continued after every session has other {differing} after "
                f"{before.seen} classes",
                "keep in state_dict whatever a later session needs; name the session in context.generator where "
                "draws repeat.",
            )
    return f"stopped and continued after each of {len(first.steps)} sessions, it ends with the same bytes."


def _differing(before: _After, after: _After) -> str:
    """Return the first thing in which two learners differ, or ""."""
    if not torch.equal(_need(before.features), _need(after.features)):
        return "features"
    if not torch.equal(_need(before.scores), _need(after.scores)):
        return "scores"
    if bytes_of(_need(before.state)) != bytes_of(_need(after.state)):
        return "state bytes"
    return ""


def _uneven_classes(e: _Examination) -> str:
    """Classes of 1 to 12 clips and sessions of 1 to 3 classes are learned."""
    e.need_columns()
    walk = e.walk(_UNEVEN, per_class=_UNEVEN_COUNTS, what="of uneven classes")
    for step in walk.all():
        _need(step.features)
        _check_columns(_need(step.scores), len(e.probe()), step.seen, f"after {step.seen} uneven classes")
    return "classes of 9, 1, 4, 2, 1 and 12 clips, in sessions of 3, 1 and 2 classes."


def _one_clip_classes(e: _Examination) -> str:
    """One clip per class is enough."""
    e.need_columns()
    walk = e.walk(per_class=1, what="of one clip per class", upto=2)
    for step in walk.all():
        _need(step.features)
        _check_columns(_need(step.scores), len(e.probe()), step.seen, f"after {step.seen} classes of one clip")
    return "one clip per class is enough."


def _memory(e: _Examination) -> str:
    """What is kept grows with classes, not with clips, and no training clip is kept."""
    first = e.first()
    sizes = [_need(step.size) for step in first.all()]
    upto = None if e.cls.takes_whole_stream else 2
    runs = {PER_CLASS: first} | {
        count: e.walk(per_class=count, what=f"of {count} clips per class", upto=upto) for count in (_MORE, _MOST)
    }
    at = 0 if e.cls.takes_whole_stream else 1
    kept = {
        count: (_need(walk.all()[at].size), sum(s.clips for s in walk.steps[: at + 1])) for count, walk in runs.items()
    }
    (more, more_clips), (most, most_clips) = kept[_MORE], kept[_MOST]
    per_clip = (most - more) / (most_clips - more_clips)
    most_walk = runs[_MOST]
    learned = range(len(SESSIONS)) if e.cls.takes_whole_stream else range(at + 1)
    clips = torch.cat([clips_of(SESSIONS[t], e.pretrained(), per_class=_MOST)[0] for t in learned])
    _refuse_clips(most_walk.method, _need(most_walk.steps[at].state), clips)
    declared = getattr(e.cls, "kept_bytes_per_clip", None)
    if per_clip > _GROWTH and declared is None and _holds_features(most_walk, at, clips.to(e.device)):
        raise _Fail(
            f"the state grows by {_size(per_clip)} per training clip and holds the features of the clips",
            "keep statistics per class, or declare it: kept_bytes_per_clip = N in the class (bytes).",
        )
    if declared is not None and per_clip > float(declared):
        raise _Fail(
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
            raise _Fail(
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


def _holds_features(walk: _Walk, at: int, clips: Tensor) -> bool:
    """Tell whether most of the clips' features stand in the state, as they are or with unit length."""
    with _stage("encode of training clips"):
        features = torch.cat([_features(walk.method, part) for part in clips.split(64)]).detach().cpu().double()
    tensors = [tensor for tensor in _tensors(_need(walk.steps[at].state)) if tensor.is_floating_point()]
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


def _percent(share: float) -> str:
    return f"{100 * share:,.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _size(amount: float) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.3g} {unit}"
    return f"{amount:.0f} bytes"


def _listed(items: Sequence[Any]) -> str:
    shown = [str(item) for item in items]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


# --------------------------------------------------------------------------------------------------- whole runs


class _Stopped(Exception):  # noqa: N818
    """Ends a run after a session, as a kill does."""


class _StopAfter(runner.Silent):
    def __init__(self, session: int) -> None:
        self._session = session

    def session_done(self, session: int, accuracy: float) -> None:
        del accuracy
        if session == self._session:
            raise _Stopped


@dataclass(frozen=True)
class _Made:
    """A finished run: its row and its predictions."""

    row: Mapping[str, Any]
    predictions: pd.DataFrame


def _miniature(e: _Examination, name: str) -> tuple[Plan, Material]:
    def make() -> tuple[Plan, Material]:
        try:
            material = open_material(name, e.backbone_name)
        except AudioclError as error:
            raise _Skip(f"{name} cannot be had here: {error}") from error
        with _stage("building the settings"):
            chosen = config.build(e.cls.Config, name, e.settings, owner=e.label)
        return Plan(e.cls, chosen, e.seed, e.device), material

    e.first().all()
    return e.once(f"material {name}", make)


def _made_run(e: _Examination, name: str) -> _Made:
    plan, material = _miniature(e, name)

    def make() -> _Made:
        with tempfile.TemporaryDirectory(prefix="audiocl-check-") as folder, _stage(f"a run on {name}"):
            results = ResultsDir(Path(folder))
            identity, _ = runner.execute(plan, material, results)
            return _Made(dict(results.run(identity)), results.predictions(identity))

    return e.once(f"run {name}", make)


def _run(e: _Examination) -> str:
    """A whole run on a miniature benchmark ends with a result, and its audits pass."""
    if not e.miniatures:
        raise _Skip("no miniature benchmark was asked for.")
    told = []
    for name in e.miniatures:
        made = _made_run(e, name)
        audits = _audits(made.row)
        leaky = bool(getattr(e.first().method, "leaks_across_batch", False))
        failed = [
            check
            for check, outcome in audits.items()
            if not outcome["passed"] and not (leaky and check == "batch_independence")
        ]
        if failed:
            raise _Fail(
                f"on {name} the run ends, but its audits fail: {_listed(failed)}",
                "mend what the checks above found; a result whose audit failed is never ranked.",
            )
        told.append(f"{name}: {made.row['final_accuracy']:.0f} % (random network: no meaning)")
    return f"{', '.join(told)}; all audits passed."


def _audits(row: Mapping[str, Any]) -> dict[str, Any]:
    import json

    stored = row["audit"]
    found: dict[str, Any] = json.loads(stored) if isinstance(stored, str) else dict(stored)
    return found


def _run_resume(e: _Examination) -> str:
    """A run that is killed after every session and continued predicts what an unbroken run predicts."""
    if not e.miniatures:
        raise _Skip("no miniature benchmark was asked for.")
    if found := [name for name in ("state", "repeatability", "determinism", "resume") if name in e.failed]:
        raise _Skip(f"cannot be judged: a learner that continues is another one already (see {_listed(found)}).")
    kills = 0
    for name in e.miniatures:
        unbroken = _made_run(e, name)
        plan, material = _miniature(e, name)
        with tempfile.TemporaryDirectory(prefix="audiocl-check-") as folder:
            results = ResultsDir(Path(folder))
            for t in range(0 if e.cls.takes_whole_stream else material.stream.num_sessions):
                try:
                    with _stage(f"a run on {name} that was continued at session {t}"):
                        runner.execute(plan, material, results, monitor=_StopAfter(t))
                except _Broken as broken:
                    if not isinstance(broken.cause, _Stopped):
                        raise
                    kills += 1
            with _stage(f"the end of a run on {name} that was killed"):
                identity, _ = runner.execute(plan, material, results)
            made = results.predictions(identity)
        if not made.equals(unbroken.predictions):
            count = int((made["predicted"].to_numpy() != unbroken.predictions["predicted"].to_numpy()).sum())
            raise _Fail(
                f"on {name}, {count} of {len(made)} predictions differ after the run was killed and continued",
                "keep in state_dict whatever a later session needs (see state and resume).",
            )
    return f"killed {kills} times and continued, the predictions are equal."


_CHECKS: dict[str, Callable[[_Examination], str]] = {
    "description": _description,
    "settings": _settings,
    "signatures": _signatures,
    "builds": _builds,
    "learns": _learns,
    "features": _features_check,
    "columns": _columns,
    "state": _state,
    "pickling": _pickling,
    "batch-independence": _batch_independence,
    "repeatability": _repeatability,
    "encoder-version": _encoder_version,
    "backbone": _backbone,
    "data-access": _data_access,
    "determinism": _determinism,
    "resume": _resume,
    "memory": _memory,
    "uneven-classes": _uneven_classes,
    "one-clip-classes": _one_clip_classes,
    "run": _run,
    "run-resume": _run_resume,
}
