"""One method under examination: the learner that is built, walked through a stream and looked at after each session."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiocl_bench import audit, config, seeding
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.conformance.streams import (
    FIRST_EPOCHS,
    PER_CLASS,
    SESSIONS,
    clips_of,
    network,
    open_session,
    through_a_file,
)
from audiocl_bench.conformance.verdicts import Broken, Fail, Skip, T, attempt, in_stage, kind_of, need
from audiocl_bench.method import (
    Clips,
    Context,
    Method,
    MethodConfig,
    Session,
    SilentReporter,
    StreamInfo,
    kept_bytes,
    require_storable,
)

_PROBE_PER_CLASS = 12  # 72 unseen clips: more than the largest batch


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
class After:
    """What is seen of a learner after one session; each part is a value or how it failed."""

    seen: int
    classes: tuple[int, ...]
    clips: int
    clips_read: int
    version: int
    features: Tensor | Broken
    scores: Tensor | Broken
    state: Any | Broken  # as a file gives it back
    size: int | Broken


@dataclass
class Walk:
    """A learner's way through the stream in memory, up to the session that failed."""

    method: Method
    steps: list[After] = field(default_factory=list)
    broken: Broken | None = None

    def all(self) -> list[After]:
        """Return every step, or raise how the walk ended early."""
        if self.broken is not None:
            raise self.broken
        return self.steps


class Examination:
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
        self.made: dict[str, Any] = {}  # what `once` returned or raised

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` returned or raised the first time."""
        if key not in self.made:
            try:
                self.made[key] = make()
            except Broken as broken:
                self.made[key] = broken
        found: T | Broken = self.made[key]
        return need(found)

    @property
    def config(self) -> MethodConfig:
        """The method's settings with the changes of this examination."""

        def make() -> MethodConfig:
            with in_stage("building the settings"):
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
            in_stage("building the method"),
            _global_generators(self.seed, "build", disturb=disturb, device=self.device),
        ):
            return self.cls(settings, self.pretrained(), context)

    def built(self) -> None:
        """Fail here if the method cannot be built, so that the check of building tells it."""

        def build() -> None:
            method = self.build()
            with in_stage("building the method"):
                for name in ("config", "backbone", "context", "encoder_version"):
                    if not hasattr(method, name):
                        raise Fail(
                            f"it has no attribute '{name}'", "call super().__init__(config, backbone, context) first."
                        )

        self.once("built", build)

    def repeatable(self) -> audit.Check:
        """Evaluate the learner of the plain walk twice."""
        walk = self.first()
        need(walk.all()[-1].state)
        if bool(need(walk.all()[-1].scores).isnan().any()):
            raise Skip("cannot be judged: scores are NaN (see columns).")
        return self.once("repeatable", lambda: audit.repeatability(walk.method, self.probe()))

    def need_repeatable(self) -> None:
        """Skip a comparison of two learners where even one gives other scores every time."""
        if not self.repeatable().detail.get("same_scores", False):
            raise Skip("cannot be judged: the same learner gives other scores every time (see repeatability).")

    def need_columns(self) -> None:
        """Skip a harder stream where the columns are wrong on the plain one."""
        for step in self.first().all():
            try:
                check_columns(need(step.scores), len(self.probe()), step.seen, "")
            except Fail:
                raise Skip("cannot be judged: on equal classes the scores are wrong already (see columns).") from None

    def first(self) -> Walk:
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
    ) -> Walk:
        """Learn a stream session by session and look at the learner after each, in the runner's order.

        Args:
            sessions: classes of the sessions.
            per_class: clips of every class.
            restart: throw the learner away after every session and go on with a fresh one that gets its state.
            disturb: seed of Python's and NumPy's global generators, which must not matter.
            what: named in messages, for example "of uneven classes".
            upto: number of sessions to learn; default all.
        """
        walk = Walk(self.build(sessions, disturb=disturb))
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
                    in_stage(f"learning {where}"),
                    _global_generators(self.seed, "session", t, disturb=disturb, device=self.device),
                ):
                    walk.method.learn(opened)
            except Broken as broken:
                walk.broken = broken
                return walk
            finally:
                opened.close()
            walk.steps.append(self._look(walk.method, opened, mel, f"after {where}"))
            if restart:
                version = walk.method.encoder_version
                try:
                    walk.method = self.revived(need(walk.steps[-1].state), sessions, disturb=disturb)
                except Broken as broken:
                    walk.broken = broken
                    return walk
                walk.method.encoder_version = version  # the runner restores it too
        return walk

    def revived(self, state: Any, sessions: Sequence[Sequence[int]] = SESSIONS, *, disturb: int = 0) -> Method:
        """Return a fresh learner that was given a state."""
        method = self.build(sessions, disturb=disturb)
        with in_stage("load_state_dict"):
            method.load_state_dict(copy.deepcopy(state))
        return method

    def _look(self, method: Method, session: Session, mel: Tensor, when: str) -> After:
        def state() -> tuple[Any, int]:
            given = method.state_dict()
            if not isinstance(given, dict):
                raise Fail(f"it returned {kind_of(given)}, not a dict", "return a dict of tensors and plain values.")
            require_storable(given, owner=self.label)
            return through_a_file(given), kept_bytes(given)

        features = attempt(f"encode {when}", lambda: features_of(method, mel))
        scores: Tensor | Broken
        if isinstance(features, Broken):
            scores = features
        else:
            found = features
            scores = attempt(f"classify {when}", lambda: scores_of(method, found))
        kept = attempt(f"state_dict {when}", state)
        return After(
            seen=session.num_seen,
            classes=session.classes,
            clips=session.num_clips,
            clips_read=session.clips_handed_out,
            version=int(getattr(method, "encoder_version", 0)),
            features=features,
            scores=scores,
            state=kept if isinstance(kept, Broken) else kept[0],
            size=kept if isinstance(kept, Broken) else kept[1],
        )

    def probe(self) -> Tensor:
        """Unseen clips of all six classes [72, FRAMES, M], in a mixed order."""
        mel, _ = clips_of(range(6), self._pretrained, per_class=_PROBE_PER_CLASS, seed=99)
        return mel.to(self.device)

    def probe_labels(self) -> np.ndarray:
        """Labels [72] of the unseen clips."""
        return clips_of(range(6), self._pretrained, per_class=_PROBE_PER_CLASS, seed=99)[1]


def features_of(method: Method, mel: Tensor) -> Tensor:
    """Return the features of a batch, or say what is wrong with them."""
    features = method.encode(Clips(mel))
    if not isinstance(features, Tensor):
        raise Fail(f"it returned {kind_of(features)}, not a tensor", "return features [B, D] as one tensor.")
    if features.ndim != 2 or len(features) != len(mel):
        raise Fail(
            f"{len(mel)} clips gave features of shape {list(features.shape)}, but one row per clip [B, D] is needed",
            "return one row of features for every clip of the batch.",
        )
    return features


def scores_of(method: Method, features: Tensor) -> Tensor:
    """Return the scores of features, or say what is wrong with them."""
    scores = method.classify(features)
    if not isinstance(scores, Tensor):
        raise Fail(f"it returned {kind_of(scores)}, not a tensor", "return scores [B, classes seen] as one tensor.")
    return scores


def check_columns(scores: Tensor, rows: int, seen: int, when: str) -> None:
    """Fail unless scores are [rows, seen] without NaN."""
    if tuple(scores.shape) != (rows, seen):
        raise Fail(
            f"{when}, {rows} clips got scores of shape {list(scores.shape)}, but [B, classes seen] is {[rows, seen]}",
            "grow the head by the session's new classes in learn, and return exactly session.num_seen columns.",
        )
    if count := int(scores.isnan().any(dim=1).sum()):
        raise Fail(
            f"{when}, the scores of {count} of {rows} clips are NaN",
            "look for a division by zero (a spread of one clip is 0), or training that diverges.",
        )
