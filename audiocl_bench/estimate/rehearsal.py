"""A run rehearsed: the method's own code on the real stream, with a phantom instead of the network.

The method learns every session, encodes and classifies as in a run, and what it asks for is counted by the same
counters. Nothing is known of any method by name, so this holds for a plugin's method as well. What saves time:

* the network computes nothing (`phantom`), nor do large operations of heads (`hollow`);
* of equal test batches one is encoded, and counted as often as there are others;
* `training.fit` is rehearsed for two epochs, and an epoch that has settled is not carried on; the rest is
  multiplied. A method with a training loop of its own is rehearsed step by step.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiocl_bench import audit, bank, prefix, runner, seeding, training
from audiocl_bench.backbones.base import Backbone, PassCounter
from audiocl_bench.benchmarks import Benchmark
from audiocl_bench.config import MethodConfig
from audiocl_bench.errors import AudioclError, DivergedError
from audiocl_bench.estimate.hollow import Hollow
from audiocl_bench.estimate.phantom import TOKENS, Anatomy, Nature, World, mel_share, mels, phantom, quiet, untouched
from audiocl_bench.estimate.work import CannotCountError, Meter, Work
from audiocl_bench.ledger import mark
from audiocl_bench.method import Clips, Context, LazyClips, Method, Session, SilentReporter, StreamInfo, kept_bytes
from audiocl_bench.readout import Readout
from audiocl_bench.streams import Stream

PATIENCE = 900.0
"""Seconds of computing until a method that cannot be rehearsed faster is given up."""

_SPREAD = 3.0  # of the classes' centres in the calm world
LONG = 24
"""Sessions; in longer streams, training on samples is rehearsed in some sessions and interpolated."""

_GROWTH = 1.35
_CACHE = 1 << 30  # bytes of log-mels a session keeps (`method.Session`)


@dataclass(frozen=True)
class SessionCost:
    """What one session costs.

    Attributes:
        train, test: work of learning and of testing all sessions so far.
        peak_bytes: most bytes of tensors alive at once, without the network's weights.
        graph_bytes: of them, activations of a training step.
        device_bytes: most bytes alive at once on the device.
        kept_bytes: of the state kept after it.
        trainable: parameters trained at once, at most.
    """

    train: Work
    test: Work
    peak_bytes: float
    graph_bytes: float
    device_bytes: float
    kept_bytes: int
    trainable: int


@dataclass(frozen=True)
class Rehearsal:
    """What a run costs, counted in one world.

    Attributes:
        sessions: one entry per session (one in all for joint training).
        audit: work of the audits at the end.
        banked: readout -> clips whose features the run takes from the feature bank.
        clips: training and test clips of the stream.
        seconds: of computing that the counting took.
        adapters: whether the network wears layers of the `peft` library, which a run has to load.
    """

    sessions: tuple[SessionCost, ...]
    audit: Work
    banked: dict[Readout, int]
    clips: tuple[int, int]
    seconds: float
    adapters: bool

    @property
    def train(self) -> Work:
        """Work of learning, over all sessions."""
        return Work.total([session.train for session in self.sessions])

    @property
    def test(self) -> Work:
        """Work of testing, over all sessions."""
        return Work.total([session.test for session in self.sessions])


def rehearse(
    method: type[Method],
    config: MethodConfig,
    benchmark: Benchmark,
    stream: Stream,
    network: Backbone,
    body: Anatomy,
    *,
    world: World,
    seed: int = 0,
    sessions: int | None = None,
    patience: float = PATIENCE,
) -> Rehearsal:
    """Count what a run of a method costs.

    Args:
        method: its class.
        config: its settings.
        benchmark: for E_0.
        stream: sessions and clips.
        network: a network of the backbone's shape (`phantom.architecture`); it is not changed.
        body: its anatomy.
        world: what features are like (see `phantom`).
        seed: of the run.
        sessions: count only the first ones.
        patience: seconds of computing after which it is given up.

    Raises:
        CannotCountError: the method does what a rehearsal cannot follow.
        AudioclError: what a run would raise too, such as settings that do not fit the backbone.
    """
    started = time.process_time()
    meter = Meter(PassCounter(), patience)
    draws = torch.Generator().manual_seed(seeding.derive(seed, "rehearsal"))
    centres = _SPREAD * torch.randn(stream.num_classes, network.dim, generator=draws)
    nature = Nature(meter, body, world, centres, draws)
    noise = None if world == "calm" else draws
    with torch.random.fork_rng(devices=[]), Hollow(meter, draws=noise) as hollow:
        torch.manual_seed(seeding.derive(seed, "rehearsal", "global"))
        hollow.tokens = TOKENS, network.dim, body.tokens
        run = _Run(method, config, benchmark, stream, network, nature, hollow, seed)
        with _prefix_budget(body), _short_training(meter, run), untouched(run.method.backbone):
            try:
                run.go(sessions)
            except AudioclError:
                raise
            except RecursionError as cause:
                raise CannotCountError("its code does not end") from cause
            except Exception as cause:  # a plugin may fail in any way on made-up values
                raise CannotCountError(
                    f"its code fails on made-up features ({type(cause).__name__}: {cause})"
                ) from cause
    train, test = (len(np.flatnonzero(stream.is_test == flag)) for flag in (False, True))
    spent = time.process_time() - started
    return Rehearsal(tuple(run.costs), run.audit, dict(run.bank.rows), (train, test), spent, run.adapters)


class _Run:
    """Follows `runner._Run` through a stream."""

    def __init__(
        self,
        method: type[Method],
        config: MethodConfig,
        benchmark: Benchmark,
        stream: Stream,
        network: Backbone,
        nature: Nature,
        hollow: Hollow,
        seed: int,
    ) -> None:
        self.stream, self.nature, self.meter, self.hollow = stream, nature, nature.meter, hollow
        self.cls, self.config, self.seed = method, config, seed
        self.whole = method.takes_whole_stream
        self.info = StreamInfo(
            stream.benchmark,
            1 if self.whole else stream.num_sessions,
            stream.num_classes,
            benchmark.first_session_epochs,
        )
        self.phantom = phantom(network, nature)
        self.share = mel_share(self.phantom, nature.anatomy)
        self.reporter = SilentReporter()
        self.labels = torch.from_numpy(stream.labels.copy())
        self.bank = _Bank(self)
        self.method = self.build()
        self.costs: list[SessionCost] = []
        self.audit = Work()
        self.adapters = False
        self.session = 0
        self._features: dict[int, Tensor] = {}
        self._version = -1
        self._kept_features = 0.0

    def build(self) -> Method:
        context = Context(self.seed, self.info, torch.device("cpu"), self.reporter)
        own = copy.deepcopy(self.phantom)
        own.passes = self.meter.passes
        return self.cls(self.config, own, context)

    def go(self, sessions: int | None) -> None:
        steps = [self.stream.num_sessions - 1] if self.whole else list(range(self.stream.num_sessions))
        for t in steps[:sessions]:
            self.session = t
            self._session(t)
        if sessions is None:
            self._audit()

    def _session(self, t: int) -> None:
        meter = self.meter
        meter.new_peak()
        self.reporter.most_trainable = 0
        before = meter.snapshot()
        session = self._open(t)
        try:
            self.method.learn(session)
        finally:
            session.close()
        train = meter.snapshot().since(before)
        self.adapters |= any(type(m).__module__.startswith("peft.") for m in self.method.backbone.modules())
        before = meter.snapshot()
        self._test(t)
        state = self.method.state_dict()
        self.costs.append(
            SessionCost(
                train=train,
                test=meter.snapshot().since(before),
                peak_bytes=meter.peak,
                graph_bytes=meter.graph_peak,
                device_bytes=meter.device_peak,
                kept_bytes=kept_bytes(state),
                trainable=self.reporter.most_trainable,
            )
        )

    # ---- what the method sees ---------------------------------------------------------------------------------------

    def _open(self, t: int) -> Session:
        stream = self.stream
        members = range(stream.num_sessions) if self.whole else [t]
        rows = np.concatenate([stream.rows(i, "train") for i in members])
        classes = tuple(label for i in members for label in stream.session_classes(i))
        mel_bytes = self.nature.anatomy.mel_bytes
        held: list[float] = []

        def read(positions: np.ndarray) -> Tensor:
            if not held and len(rows) * mel_bytes <= _CACHE:  # the session keeps them from now on
                held.append(float(len(rows) * mel_bytes))
                self.meter.hold(held[0])
            self.meter.add("read.clips", len(positions))
            self.meter.brief(len(positions) * mel_bytes)
            return mels(self.phantom, self.labels[rows[positions]])

        session = Session(
            0 if self.whole else t,
            classes,
            min(classes),
            stream.labels[rows],
            read,
            torch.device("cpu"),
            cache_bytes=int(_CACHE * self.share),
            stored=self.bank.stored(rows) if self.bank.used else None,
            numbers=rows,
        )
        session.on_close(lambda: self.meter.hold(-sum(held)))
        return session

    def clips(self, rows: np.ndarray, stored: Callable[[Readout], Tensor | None]) -> LazyClips:
        """Return test clips as a run hands them out."""

        def read() -> Tensor:
            self.meter.add("read.clips", len(rows))
            self.meter.brief(len(rows) * self.nature.anatomy.mel_bytes)
            return mark(mels(self.phantom, self.labels[rows]).clone(), rows)

        return LazyClips(read, count=len(rows), stored=stored)

    # ---- testing ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _test(self, t: int) -> None:
        """Encode what the present encoder has not encoded, one batch of every size; then classify all."""
        if self._version != self.method.encoder_version:
            self._features, self._version = {}, self.method.encoder_version
            self.meter.hold(-self._kept_features)
            self._kept_features = 0.0
        # The newest session's clips apart: of the others an unchanged block may have seen all before.
        groups: dict[tuple[int, bool], list[tuple[int, np.ndarray]]] = defaultdict(list)
        for i in range(t + 1):
            if i not in self._features:
                rows = self.stream.rows(i, "test")
                for part in np.array_split(rows, range(runner.EVAL_BATCH, len(rows), runner.EVAL_BATCH)):
                    groups[len(part), i == t].append((i, part))
        for batches in groups.values():
            self._encode_alike(batches)
        tested = sum(len(self.stream.rows(i, "test")) for i in range(t + 1))
        sample = torch.cat(list(self._features.values()))
        whole, rest = divmod(tested, runner.CLASSIFY_BATCH)
        for size, times in ((runner.CLASSIFY_BATCH, whole), (rest, int(rest > 0))):
            if times:
                before = self.meter.snapshot()
                self.method.classify(sample[torch.arange(size) % len(sample)])
                self.meter.repeat(before, times - 1)

    def _encode_alike(self, batches: list[tuple[int, np.ndarray]]) -> None:
        """Encode the first of several batches of one size, and count the others like it."""
        asked: list[Readout] = []

        def stored(readout: Readout) -> Tensor | None:
            asked.append(readout)
            return self.bank.features(readout, batches[0][1])

        before = self.meter.snapshot()
        features = self.method.encode(self.clips(batches[0][1], stored if self.bank.used else lambda readout: None))
        self.meter.repeat(before, len(batches) - 1)
        for readout in asked:
            self.bank.account(readout, np.concatenate([rows for _, rows in batches]))
        for i, rows in batches:
            self._features[i] = features[:1].detach()
            size = len(rows) * features[0].numel() * features.element_size()
            self._kept_features += size
            self.meter.hold(size)

    @torch.no_grad()
    def _audit(self) -> None:
        """Do what a run checks at its end."""
        before = self.meter.snapshot()
        rows = np.flatnonzero(self.stream.is_test)[: runner.AUDIT_CLIPS]
        mel = mels(self.phantom, self.labels[rows]).clone()
        method, order = self.method, torch.arange(len(rows)).flip(0)
        audit.features_are_current(method, mel, method.encode(Clips(mel)))
        audit.batch_independence(method, mel, seed_order=order)
        for _ in range(3):  # repeatability and the seen classes; their fingerprints of the state are left out
            method.classify(method.encode(Clips(mel)))
        audit.state_is_complete(method, self.build, mel)
        self.audit = self.meter.snapshot().since(before)


class _Bank:
    """Keeps account as `bank.RunFeatures` does, of a bank that is empty at first."""

    def __init__(self, run: _Run) -> None:
        self.used = os.environ.get(bank.SWITCH, "").lower() not in ("off", "0", "no", "false")
        self.rows: dict[Readout, int] = defaultdict(int)
        self._run = run
        self._network = quiet(run.phantom)
        self._asked: dict[Readout, np.ndarray] = {}

    def stored(self, rows: np.ndarray) -> Callable[[np.ndarray, Readout], Tensor | None]:
        """Return what a session asks for features of its clips."""

        def look_up(positions: np.ndarray, readout: Readout) -> Tensor | None:
            self.account(readout, rows[positions])
            return self.features(readout, rows[positions])

        return look_up

    def features(self, readout: Readout, rows: np.ndarray) -> Tensor:
        """Return made-up features without counting anything."""
        run = self._run
        with run.meter.silent(), torch.no_grad():
            return readout(self._network, mels(run.phantom, run.labels[rows]))

    def account(self, readout: Readout, rows: np.ndarray) -> None:
        """Note that a run takes the features of these rows."""
        asked = self._asked.setdefault(readout, np.zeros(len(self._run.labels), dtype=bool))
        fresh = int((~asked[rows]).sum())
        asked[rows] = True
        self.rows[readout] += fresh
        meter, blocks = self._run.meter, readout.layers[-1]
        for key, amount in (
            ("passes", fresh),
            ("block_runs", fresh * blocks),
            ("needed", fresh * blocks),
            ("bank.clips", fresh),
            ("bank.flops", fresh * self._run.nature.anatomy.clip_flops(blocks)),
        ):
            meter.add(key, amount)
        if fresh:
            body = self._run.nature.anatomy
            threads = min(torch.get_num_threads(), 8)
            meter.brief(threads * min(fresh, bank.CHUNK) * (body.tokens * body.pass_bytes + body.mel_bytes))


# ------------------------------------------------------------------------------------------------- shorter rehearsals


@contextlib.contextmanager
def _prefix_budget(body: Anatomy) -> Iterator[None]:
    """Let `FrozenPrefix` keep as many clips of a phantom's few tokens as it would of real ones."""
    defaults = prefix.FrozenPrefix.__init__.__kwdefaults__
    if not defaults or "budget" not in defaults:
        yield
        return
    before = defaults["budget"]
    defaults["budget"] = int(before * TOKENS / body.tokens)
    try:
        yield
    finally:
        defaults["budget"] = before


@dataclass
class _Stage:
    """Training on samples in one stage of a long stream: what sessions cost that were rehearsed in full."""

    at: int = -1
    cost: Work = field(default_factory=Work)
    skipped: list[tuple[int, Work]] = field(default_factory=list)


@contextlib.contextmanager
def _short_training(meter: Meter, run: _Run) -> Iterator[None]:
    """Rehearse the loop of `training.fit` and `fit_samples` for two epochs, and multiply.

    The loop itself is not replaced: it is called with one epoch at a time. Were it gone under its name, a rehearsal
    would go through every epoch, with the same counts.
    """
    loop = getattr(training, "_descend", None)
    names = set(inspect.signature(loop).parameters) if loop is not None else set()
    if loop is None or not {"batches", "recipe", "stage", "session"} <= names:
        yield
        return
    signature = inspect.signature(loop)
    stages: dict[str, _Stage] = defaultdict(_Stage)

    def short(*args: Any, **kwargs: Any) -> list[float]:
        bound = signature.bind(*args, **kwargs)
        given: dict[str, Any] = bound.arguments
        recipe, batches = given["recipe"], given["batches"]
        epochs, t, count = recipe.epochs, run.session, run.info.num_sessions
        given["recipe"] = dataclasses.replace(recipe, epochs=1)

        def once(limit: int | None = None) -> list[float]:
            given["batches"] = lambda epoch: _settled(batches(epoch), meter, limit)
            try:
                return list(loop(*bound.args, **bound.kwargs))
            except DivergedError:  # at the end of the epoch, which is counted: made-up values mean nothing
                return [0.0]

        with meter.silent():
            first = next(iter(batches(0)), None)
        on_clips = first is not None and isinstance(first[0], Clips)
        if on_clips or count <= LONG:
            history = once()
            if epochs > 1:
                before = meter.snapshot()
                history += once()
                meter.repeat(before, epochs - 2)
            return history + history[-1:] * max(epochs - len(history), 0)
        stage = stages[given["stage"]]
        before = meter.snapshot()
        if not _sampled(t, count):
            history = once(limit=2)
            stage.skipped.append((t, meter.snapshot().since(before)))
            return history * epochs
        history = once()
        meter.repeat(before, epochs - 1)
        cost = meter.snapshot().since(before)
        for skipped, counted in stage.skipped:
            part = (skipped - stage.at) / (t - stage.at)
            meter.counts.add(stage.cost, 1 - part)
            meter.counts.add(cost, part)
            meter.counts.add(counted, -1)
        stages[given["stage"]] = _Stage(t, cost)
        return history * epochs

    training._descend = short
    try:
        yield
    finally:
        training._descend = loop


def _sampled(t: int, count: int) -> bool:
    """Whether a session of a long stream is rehearsed in full: the first ones, ever fewer, and the last one."""
    at = 1.0
    while at <= t:
        if int(at) == t or t < 6:
            return True
        at = max(at * _GROWTH, at + 1)
    return t in (0, count - 1)


def _settled(batches: Iterable[Any], meter: Meter, limit: int | None) -> Iterator[Any]:
    """Yield batches until the steps on them cost the same twice; then count the others like them.

    A step that runs blocks without a gradient (a prefix that fills, say) is not taken for settled.
    """
    iterator = iter(batches)
    last = (-1, Work())
    before = meter.snapshot()
    for done, item in enumerate(iterator, 1):
        yield item
        spent, size = meter.snapshot().since(before), len(item[1])
        alike = last[0] == size and _blocks(last[1]) == _blocks(spent)
        last = (size, spent)
        if limit is not None and done >= limit:
            return
        if alike and done >= 3 and not spent["forward.flops"]:
            break
        before = meter.snapshot()
    else:
        return
    size, spent = last
    with meter.silent():
        passes = copy.copy(meter.passes.clips)
        sizes = [(len(item[1]), item) for item in iterator]
        meter.passes.clips = passes
    meter.counts.add(spent, sum(length == size for length, _ in sizes))
    for length, item in sizes:
        if length != size:
            yield item


def _blocks(work: Work) -> dict[str, float]:
    return {key: amount for key, amount in work.items() if key.split(".")[0] not in ("ops", "bytes", "mm")}
