"""Compare what audiocl computes with plain reference implementations (references.py): one table of ratios, and a chart.

    python benchmarks/run.py                                     all parts, some minutes on one core
    python benchmarks/run.py --quick                             small sizes, well under a minute
    python benchmarks/run.py --parts ridge,training --chart ratios.png --json ratios.json

Both ways run in one process, alternately, and have to give the same answer: the largest difference, as a share of the
largest value, stands in the table beside the most that is allowed (tests/test_benchmarks_run.py tests it too). A ratio
above 1 says how many times faster ours is. Parts:

    frontend    log-mels of clips, batched, and prepared clips read from the store: against one clip after the other
    attention   one block's attention, forward and with gradients: against the written-out softmax
    features    test features of a stream whose encoder does not change: against extracting them in every session
    prefix      training the last block with the first ones run once per clip: against whole passes
    training    clips/s of the one training loop: against a bare loop over the same modules (the aim is 0.9 or more)
    ridge       RanPAC's choice among 17 ridges and the solve: against 17 dense float32 solves; and a session more:
                against factoring anew. With it, how wrong the float32 solves are (float64 is the truth)

Audio comes from the example streams where they are prepared (AUDIOCL_HOME), else from made-up sounds; the network is
Whisper tiny.en from --backbone where it is there, else the same network with random weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import references
import soundfile
import torch
from measure import Clock, Row, alternate, chart, distance, machine, table
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import audio, backbones, bank, benchmarks, files, store
from audiocl_bench.backbones import registry, whisper
from audiocl_bench.backbones.base import Attention, Backbone, Options
from audiocl_bench.errors import CorpusError
from audiocl_bench.heads import LAMBDAS, NCMHead, RandomProjection, RidgeHead, choose_lambda, holdout
from audiocl_bench.method import Clips, Context, Session, StreamInfo
from audiocl_bench.peft.lora import SessionLoRA
from audiocl_bench.peft.prompts import run_prompted
from audiocl_bench.prefix import FrozenPrefix
from audiocl_bench.readout import Readout
from audiocl_bench.streams import Stream
from audiocl_bench.training import Group, Recipe, fit, linear_head

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "../shared/weights/whisper-tiny.en-encoder"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sizes:
    """How large the problems are. Everything scales with these alone.

    Attributes:
        repeats: turns of every comparison; slow ones stop after 40 s.
        wave_clips: clips of the front end.
        attention: clips, tokens, width, heads.
        test_clips: test clips of every session of the stream.
        long_stream: take the stream of 5 s clips in 10 sessions, not that of 1 s clips in 8.
        train_clips, epochs: of the prefix and of the training loop.
        width: random features of the ridge.
        dense_solves: dense solves really timed of 17.
        rows: clips of the growing ridge before its last session.
        shown_width: random features of the table of errors.
        clock: what seconds are.
    """

    repeats: int = 5
    wave_clips: int = 32
    attention: tuple[int, int, int, int] = (8, 257, 768, 12)
    test_clips: int = 4
    long_stream: bool = True
    train_clips: int = 72
    epochs: int = 4
    width: int = 10_000
    dense_solves: int = 2
    rows: int = 2_000
    shown_width: int = 2_000
    clock: Clock = time.perf_counter


QUICK = Sizes(
    repeats=2,
    wave_clips=8,
    attention=(2, 257, 384, 6),
    test_clips=2,
    long_stream=False,
    train_clips=24,
    epochs=2,
    width=2_000,
    dense_solves=17,
    rows=500,
    shown_width=1_000,
)


@dataclass(frozen=True)
class Data:
    """A stream of prepared clips with its audio files, and a network that takes them.

    Attributes:
        title: what the audio is.
        paths: audio file of every clip, in the order of `stream.clip_ids`.
        rows: row in the store of every clip.
    """

    title: str
    stream: Stream
    paths: list[Path]
    prepared: store.Store
    rows: np.ndarray
    backbone: Backbone

    def mels(self, clips: Sequence[int] | np.ndarray) -> Tensor:
        """Normalised log-mels [B, T, M] of clips by their number."""
        return self.backbone.front_end.normalise(self.prepared.batch(self.rows[np.asarray(clips)]))


# ----------------------------------------------------------------------------------------------------------------- data


def load_backbone(spec: str, frames: int) -> Backbone:
    """The network at `spec`, a name or a path; if Whisper tiny.en is not there, the same with random weights."""
    path = Path(spec) if Path(spec).is_absolute() else ROOT / spec
    if path.exists():
        return backbones.load(str(path), frames=frames)
    if spec != WEIGHTS:
        return backbones.load(spec, frames=frames)
    options = Options("whisper-tiny.en, random weights", "random", frames=frames, stand_in=True)
    return whisper.build(whisper.TINY, whisper.random_weights(whisper.TINY, registry.draw_weight), options)


def made_up(folder: Path, seconds: float, sessions: int, per_class: int) -> Path:
    """Write chords in noise, two classes a session, and describe them as a benchmark; returns the TOML file."""
    draws = np.random.default_rng(20260801)
    time_axis = np.arange(int(seconds * 16_000)) / 16_000
    for label in range(2 * sessions):
        (folder / "sounds" / f"class{label:02d}").mkdir(parents=True, exist_ok=True)
        for clip in range(per_class):
            pitch = 120 * 1.15**label * draws.uniform(0.98, 1.02)
            chord = sum(np.sin(2 * np.pi * pitch * part * time_axis) / part for part in (1, 2, 3))
            wave = 0.2 * chord + 0.02 * draws.standard_normal(len(time_axis))
            soundfile.write(folder / "sounds" / f"class{label:02d}" / f"{label:02d}_{clip:02d}.wav", wave, 16_000)
    described = folder / "sounds.toml"
    described.write_text(
        f"""
[benchmark]
name = "made-up-{sessions}"

[corpus]
kind = "folder"
root = "{(folder / "sounds").as_posix()}"

[stream]
classes_per_session = 2
input_seconds = {seconds}
first_session_epochs = 5

[test]
rule = "fraction"
fraction = 0.34
""",
        encoding="utf-8",
    )
    return described


def open_data(example: str, spec: str, temporary: Path, *, long: bool, clips: int) -> Data:
    """An example stream if its clips are prepared, else made-up sounds of the same length and number of sessions.

    Args:
        example: name of a file in examples/.
        spec: backbone.
        temporary: where made-up sounds go.
        long: 5 s and 10 sessions, else 1 s and 8.
        clips: training clips needed of made-up sounds.
    """
    benchmark = benchmarks.get(str(ROOT / "examples" / f"{example}.toml"))
    place: Path | None = None
    title = f"{benchmark.title} (real audio)"
    try:
        opened = benchmark.open(None, "own", 0)
        ready = bool(list((files.home() / "store").glob(f"{benchmark.corpus.info.name}-*/manifest.json")))
    except CorpusError:
        ready = False
    if not ready:
        sessions = 10 if long else 8
        per_class = max(12, -(-clips // sessions))
        benchmark = benchmarks.get(str(made_up(temporary / example, 5.0 if long else 1.0, sessions, per_class)))
        opened, place = benchmark.open(None, "own", 0), temporary
        title = f"made-up chords in noise, {5 if long else 1} s, {sessions} sessions"
    stream, index = opened
    backbone = load_backbone(spec, benchmark.frames)
    prepared = store.prepare(
        index, backbone.front_end, name=benchmark.corpus.info.name, home=place, workers=1, progress=False
    )
    paths = [Path(path) for path in index["path"]]
    return Data(title, stream, paths, prepared, prepared.rows(stream.clip_ids), backbone)


# ------------------------------------------------------------------------------------------------------------ front end


def frontend(data: Data, sizes: Sizes) -> list[Row]:
    """Log-mels: both kinds, batched against clip by clip; and prepared clips against decoding them again."""
    rng = np.random.default_rng(0)
    waves = torch.from_numpy(rng.normal(scale=0.1, size=(sizes.wave_clips, 5 * 16_000)).astype(np.float32))

    def kaldi() -> Tensor:
        return audio.kaldi_fbank(audio.remove_mean(waves))

    def whisper_own() -> Tensor:
        return audio.whisper_logmel(waves, window=16_000 * 30)

    def clip_by_clip(kind: str, mels: int) -> Tensor:
        return torch.stack([references.logmel(kind, wave, mels) for wave in waves])

    rows = []
    plan: tuple[tuple[str, int, Callable[[], Tensor], str, float], ...] = (
        ("kaldi", 128, kaldi, "one clip after the other", 1e-3),
        ("whisper", 80, whisper_own, "one clip after the other, padded to 30 s as published", 1e-4),
    )
    for kind, mels, own, plain, tolerance in plan:
        ours_s, plain_s, n, got, want = alternate(
            lambda own=own: own,  # type: ignore[misc]
            lambda kind=kind, mels=mels: partial(clip_by_clip, kind, mels),  # type: ignore[misc]
            repeats=sizes.repeats,
            clock=sizes.clock,
        )
        name = "EAT's log-mels" if kind == "kaldi" else "Whisper's log-mels"
        what = f"{name} of {len(waves)} clips of 5 s, batched"
        error = distance(got, want[:, : got.shape[1]])
        rows.append(Row("frontend", what, plain, ours_s, plain_s, n, error, tolerance))

    some = np.arange(min(sizes.wave_clips, len(data.paths)))
    front = data.backbone.front_end

    def again() -> Tensor:
        return references.read_clips([data.paths[i] for i in some], front.kind, front.n_mels, front.frames)

    ours_s, plain_s, n, got, want = alternate(
        lambda: partial(data.prepared.batch, data.rows[some]), lambda: again, repeats=sizes.repeats
    )
    seconds = front.frames / 100
    # The store rounds to float16, of at most 2^-11 relative error; a share of the largest value therefore.
    what = f"log-mels of {len(some)} clips of {seconds:.0f} s for an epoch, from the store"
    rows.append(
        Row("frontend", what, "decode and transform clip by clip", ours_s, plain_s, n, distance(got, want), 1e-3)
    )
    return rows


# ------------------------------------------------------------------------------------------------------------ attention


def attention(sizes: Sizes) -> list[Row]:
    """One attention layer of a network's size: without gradients, and with those of all its weights."""
    clips, tokens, dim, heads = sizes.attention
    torch.manual_seed(0)
    layer = Attention(dim, heads)
    x = torch.randn(clips, tokens, dim)

    def forward(work: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad():
            return work(x)

    def backward(work: Callable[[Tensor], Tensor]) -> Tensor:
        layer.zero_grad(set_to_none=True)
        work(x).square().mean().backward()
        assert layer.q_proj.weight.grad is not None
        return layer.q_proj.weight.grad

    size = f"{clips} clips x {tokens} tokens x {dim}, {heads} heads"
    rows = []
    for name, work in (("attention", forward), ("attention and its gradients", backward)):
        ours_s, plain_s, n, got, want = alternate(
            lambda work=work: partial(work, layer),  # type: ignore[misc]
            lambda work=work: partial(work, partial(references.attention, layer)),  # type: ignore[misc]
            repeats=sizes.repeats,
            clock=sizes.clock,
        )
        error = distance(got, want)
        rows.append(Row("attention", f"{name}, {size}", "softmax of the whole matrix", ours_s, plain_s, n, error, 1e-4))
    return rows


# ------------------------------------------------------------------------------------------------------------- features


def features(data: Data, sizes: Sizes) -> list[Row]:
    """Test features after every session of a stream, encoder frozen: computed once and kept, and found on disk."""
    stream, backbone = data.stream, data.backbone
    sessions = [stream.rows(t, "test")[: sizes.test_clips].tolist() for t in range(stream.num_sessions)]
    readout = Readout.of(backbone)

    def kept(shelf: bank.FeatureBank) -> list[Tensor]:
        known: list[Tensor] = []
        found = []
        for part in sessions:  # as a run does: only the clips of the new session are asked for
            known.append(shelf.read(picked[np.asarray(part)]))
            found.append(torch.cat(known))
        return found

    def plain() -> list[Tensor]:
        return references.features_by_session(
            partial(references.features, backbone), lambda clips: data.mels(clips), sessions
        )

    # A store of the chosen clips alone: the bank computes whole chunks, which other clips would fill.
    class Chosen:
        def __init__(self, clips: np.ndarray) -> None:
            self.clips, self.key = clips, f"{data.prepared.key} chosen {files.sha256_json(clips.tolist())}"

        def __len__(self) -> int:
            return len(self.clips)

        def batch(self, rows: np.ndarray) -> Tensor:
            return data.prepared.batch(data.rows[self.clips[rows]])

    clips = np.array([clip for part in sessions for clip in part])
    picked = np.zeros(len(stream.clip_ids), dtype=np.int64)
    picked[clips] = np.arange(len(clips))
    chosen: Any = Chosen(clips)
    places: list[tempfile.TemporaryDirectory[str]] = []

    def empty() -> Callable[[], list[Tensor]]:
        places.append(tempfile.TemporaryDirectory())
        return partial(kept, bank.FeatureBank(chosen, backbone, readout, CPU, home=Path(places[-1].name)))

    def filled() -> Callable[[], list[Tensor]]:
        return partial(kept, bank.FeatureBank(chosen, backbone, readout, CPU, home=Path(places[0].name)))

    count = f"{len(clips)} test clips in {len(sessions)} sessions"
    passes = sum(len(part) for last in range(len(sessions)) for part in sessions[: last + 1])
    how = f"every clip again in every session ({passes} passes)"
    ours_s, plain_s, n, got, want = alternate(empty, lambda: plain, repeats=sizes.repeats, clock=sizes.clock)
    rows = [
        Row("features", f"test features, {count}", how, ours_s, plain_s, n, _predictions_apart(got, want), 1e-4),
    ]
    found_s = []
    for _ in range(3):
        work = filled()
        start = sizes.clock()
        got = work()
        found_s.append(sizes.clock() - start)
    error = _predictions_apart(got, want)
    note = "plain: the time above"
    what = "the same for the next method or seed, from the bank"
    rows.append(Row("features", what, how, float(np.median(found_s)), plain_s, n, error, 1e-4, note))
    for place in places:
        place.cleanup()
    return rows


def _predictions_apart(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Largest relative difference of the features; infinite if nearest class means made of them predict otherwise."""
    for one, other in zip(got, want, strict=True):
        labels = torch.arange(len(other)) % max(len(other) // 2, 1)
        head = NCMHead(other.shape[1])
        head.update(other, labels, int(labels.max()) + 1)
        if not torch.equal(head.predict(one), head.predict(other)):
            return float("inf")
    return max(distance(one, other) for one, other in zip(got, want, strict=True))


# ------------------------------------------------------------------------------------------------------------- training


@dataclass
class Learner:
    """Something to train, on a backbone of its own: LoRA on the last block, or prompts in front of all blocks."""

    backbone: Backbone
    head: nn.Linear
    body: tuple[nn.Parameter, ...]
    prompts: nn.Parameter | None = None

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return (*self.body, *self.head.parameters())

    def ours(self, clips: Clips, labels: Tensor) -> Tensor:
        """The loss as our methods write it."""
        if self.prompts is None:
            return F.cross_entropy(self.head(self.backbone.features(clips.mel)), labels)
        out, _ = run_prompted(self.backbone, clips.mel, self.prompts.expand(len(clips.mel), -1, -1))
        return F.cross_entropy(self.head(out.mean(1)), labels)

    def bare(self, mel: Tensor) -> Tensor:
        """The logits by plain calls of the same modules."""
        if self.prompts is None:
            return self.head(references.features(self.backbone, mel))
        prompts = self.prompts.expand(len(mel), -1, -1)
        x = references.blocks(self.backbone, torch.cat([prompts, references.tokens(self.backbone, mel)], dim=1))
        return self.head(x[:, : prompts.shape[1]].mean(1))

    def values(self) -> Tensor:
        """All trained numbers in one vector."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])


def learner(pretrained: Backbone, mode: str, classes: int) -> Learner:
    """Return a learner at its start: equal for equal arguments."""
    backbone = copy.deepcopy(pretrained)
    draw = torch.Generator().manual_seed(1)
    head = linear_head(backbone.dim, classes, draw, CPU)
    if mode == "prompts":
        prompts = nn.Parameter(0.1 * torch.randn(1, 10, backbone.dim, generator=draw))
        return Learner(backbone, head, (prompts,), prompts)
    lora = SessionLoRA(backbone, blocks=[backbone.layer - 1], targets=("k_proj", "v_proj"), rank=8)
    pairs = lora.add(draw)
    return Learner(backbone, head, tuple(p for pair in pairs for p in (pair.A, pair.B)))


@dataclass(frozen=True)
class Task:
    """Clips to train on: the first of the stream's training clips, and the recipe."""

    data: Data
    clips: np.ndarray
    labels: np.ndarray
    sizes: Sizes
    batch_size: int = 24
    lr: float = 0.01

    @classmethod
    def of(cls, data: Data, sizes: Sizes) -> Task:
        clips = np.flatnonzero(~data.stream.is_test)
        clips = clips[np.random.default_rng(0).permutation(len(clips))[: sizes.train_clips]]
        return cls(data, clips, data.stream.labels[clips], sizes)

    @property
    def classes(self) -> int:
        return self.data.stream.num_classes

    @property
    def context(self) -> Context:
        return Context(0, StreamInfo("benchmark", 1, self.classes, self.sizes.epochs))

    def session(self) -> Session:
        """Open the clips as a run does: decoded from the store when they are first asked for, and counted."""
        return Session(
            0,
            tuple(range(self.classes)),
            0,
            self.labels,
            lambda positions: self.data.mels(self.clips[positions]),
            CPU,
            numbers=self.data.rows[self.clips],
        )

    def fit(self, session: Session, taught: Learner, loss: Callable[[Clips, Tensor], Tensor]) -> Tensor:
        recipe = Recipe(self.sizes.epochs, self.batch_size, "sgd", 0.9, 0.0, clip=1.0)
        fit(session, [Group(taught.parameters, self.lr)], loss, recipe, self.context, stage="train")
        return taught.values()


def prefix(task: Task) -> list[Row]:
    """LoRA on the last block: blocks before it once per clip of the session, against every epoch."""

    def setup(keep: bool) -> Callable[[], Tensor]:
        taught, session = learner(task.data.backbone, "lora", task.classes), task.session()
        stop = taught.backbone.layer - 1
        frozen = FrozenPrefix(taught.backbone, session, stop=stop) if keep else None

        def loss(clips: Clips, labels: Tensor) -> Tensor:
            made = references.features(taught.backbone, clips.mel) if frozen is None else frozen.features(clips)
            return F.cross_entropy(taught.head(made), labels)

        return partial(task.fit, session, taught, loss)

    ours_s, plain_s, n, got, want = alternate(
        partial(setup, True), partial(setup, False), repeats=task.sizes.repeats, clock=task.sizes.clock
    )
    depth = task.data.backbone.layer
    what = f"{task.sizes.epochs} epochs of LoRA on the last of {depth} blocks, {len(task.clips)} clips"
    return [Row("prefix", what, "all blocks in every epoch", ours_s, plain_s, n, distance(got, want), 1e-3)]


def training(task: Task) -> list[Row]:
    """The training loop of the package against a bare one, over the same modules with the same draws.

    One epoch a turn and four times the turns of other parts: the two are close, and short turns see the same machine.
    """
    task = replace(task, sizes=replace(task.sizes, epochs=1, repeats=4 * task.sizes.repeats))
    rows = []
    for mode, name in (("lora", "LoRA on the last block"), ("prompts", "10 prompts before all blocks")):

        def ours(mode: str = mode) -> Callable[[], Tensor]:
            taught = learner(task.data.backbone, mode, task.classes)
            return partial(task.fit, task.session(), taught, taught.ours)

        def bare(mode: str = mode) -> Callable[[], Tensor]:
            taught = learner(task.data.backbone, mode, task.classes)
            mel, labels = task.data.mels(task.clips), torch.from_numpy(task.labels)
            generator = task.context.generator("clip order", "train", 0)

            def work() -> Tensor:
                references.train(
                    taught.bare,
                    taught.parameters,
                    mel,
                    labels,
                    epochs=task.sizes.epochs,
                    batch_size=task.batch_size,
                    lr=task.lr,
                    clip=1.0,
                    generator=generator,
                )
                return taught.values()

            return work

        ours_s, plain_s, n, got, want = alternate(
            ours, bare, repeats=task.sizes.repeats, clock=task.sizes.clock, patience=90
        )
        trained = task.sizes.epochs * len(task.clips)
        what = f"training loop, {name}, {trained} clips"
        note = f"{trained / ours_s:.1f} against {trained / plain_s:.1f} clips/s"
        rows.append(
            Row("training", what, "bare loop, same modules", ours_s, plain_s, n, distance(got, want), 1e-4, note)
        )
    return rows


# ---------------------------------------------------------------------------------------------------------------- ridge


def random_features(rows: int, width: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """RanPAC's random features [rows, width], float64, of clips around class centres, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    clips = generator.normal(size=(classes, 768))[labels] + generator.normal(size=(rows, 768))
    return RandomProjection.draw(768, width, seed=0)(torch.from_numpy(clips)), torch.from_numpy(labels)


def ridge(sizes: Sizes) -> list[Row]:
    """RanPAC's search over 17 ridges with the final solve; and a small session more on a grown head."""
    return [_search(sizes), _growth(sizes)]


def _search(sizes: Sizes, clips: int = 400, classes: int = 50) -> Row:
    H, labels = random_features(clips, sizes.width, classes, 0)
    targets = F.one_hot(labels, classes).double()

    def ours() -> tuple[float, Tensor, tuple[float, ...]]:
        choice = choose_lambda(H, labels, classes, seed=0)
        head = RidgeHead(sizes.width)
        head.update(H, labels, classes)
        return choice.lam, head.solve(choice.lam), choice.mse

    lam, W, errors = ours()  # the first call loads the linear algebra library
    fit_rows, val_rows = holdout(labels, seed=0)
    h, y = H.float(), targets.float()
    # Float32 can solve for large ridges only (see the table of errors): those are compared, and timed first.
    order = sorted(LAMBDAS, key=lambda one: (one != lam, -one))[: sizes.dense_solves]
    spent: tuple[list[float], list[float], list[float], list[float]] = ([], [], [], [])
    apart = []
    for _ in range(max(1, sizes.repeats // 2)):
        start = sizes.clock()
        ours()
        spent[0].append(sizes.clock() - start)
        start = sizes.clock()
        G, Q = h[fit_rows].T @ h[fit_rows], h[fit_rows].T @ y[fit_rows]
        spent[1].append(sizes.clock() - start)
        for one in order:
            start = sizes.clock()
            try:
                fitted = references.dense_solve(G, Q, one)
            except RuntimeError:  # singular in float32
                continue
            mse = float((h[val_rows] @ fitted - y[val_rows]).square().mean())
            spent[2].append(sizes.clock() - start)
            if one >= max(lam, 1e3):
                apart.append(abs(errors[LAMBDAS.index(one)] - mse) / mse)
        start = sizes.clock()
        whole = references.dense_solve(h.T @ h, h.T @ y, lam)
        spent[3].append(sizes.clock() - start)
        apart.append(distance(H @ W, H @ whole.double()))
        if sum(map(sum, spent)) > 60:
            break
    single = [float(np.median(part)) for part in spent]
    scaled = "" if len(order) == 17 else f", scaled from {len(order)}"
    what = f"ridge: choice of 17 and solve, M = {sizes.width:,}, {clips} clips, {classes} classes"
    plain = "17 dense float32 solves and one with all clips"
    seconds = single[1] + 17 * single[2] + single[3]
    return Row("ridge", what, plain, single[0], seconds, len(spent[0]), max(apart), 1e-2, f"17 solves{scaled}")


def _growth(sizes: Sizes, per_session: int = 16, lam: float = 1e4) -> Row:
    seen = max(sizes.rows // 8, 4)
    H, labels = random_features(sizes.rows, sizes.width, seen, 1)
    before = RidgeHead(sizes.width)
    before.update(H[:-per_session], labels[:-per_session], seen)
    before.solve(lam)
    before.update(H[-per_session:], labels[-per_session:], seen)
    before.solve(lam)  # a first small session: from the next one on W is grown
    new, new_labels = random_features(per_session, sizes.width, 2, 2)

    def ours() -> Callable[[], Tensor]:
        head = copy.deepcopy(before)

        def work() -> Tensor:
            head.update(new, seen + new_labels, seen + 2)
            return head.solve(lam)

        return work

    def plain() -> Tensor:
        Z = F.one_hot(torch.cat([labels, seen + new_labels]), seen + 2).double()
        return references.refactorised(torch.cat([H, new]), Z, lam)

    ours_s, plain_s, n, got, want = alternate(ours, lambda: plain, repeats=min(sizes.repeats, 3), clock=sizes.clock)
    what = f"ridge: one more session of {per_session} clips after {sizes.rows:,}, M = {sizes.width:,}"
    return Row(
        "ridge", what, "the smaller system factored anew, float64", ours_s, plain_s, n, distance(got, want), 1e-6
    )


def wrong_float32(sizes: Sizes, clips: int = 400, classes: int = 50) -> str:
    """How far predictions of held-out clips are from the truth, by ridge: ours, and dense float32 solves.

    The truth is the dual system of `clips` unknowns in float64, which is well conditioned where clips are fewer than
    features: H_val H^T (H H^T + lam I)^-1 Y.
    """
    H, labels = random_features(clips, sizes.shown_width, classes, 0)
    fit_rows, val_rows = holdout(labels, seed=0)
    h, v, y = H[fit_rows], H[val_rows], F.one_hot(labels[fit_rows], classes).double()
    head = RidgeHead(sizes.shown_width)
    head.update(h, labels[fit_rows], classes)
    G, Q = h.float().T @ h.float(), h.float().T @ y.float()
    rows = []
    for lam in LAMBDAS[::2]:
        K = h @ h.T
        K.diagonal().add_(lam)
        truth = v @ h.T @ torch.linalg.solve(K, y)
        try:
            dense = f"{distance(v.float() @ references.dense_solve(G, Q, lam), truth):.0e}"
        except RuntimeError:
            dense = "singular"
        rows.append((f"{lam:g}", f"{distance(v @ head.solve(lam), truth):.0e}", dense))
    title = (
        f"Error of predictions (largest, as a share of the largest value), M = {sizes.shown_width:,}, {len(h)} clips"
    )
    headers = ("ridge", "ours, float64", "dense float32")
    return f"{title}\n{tabulate(rows, headers, colalign=('right',) * 3, disable_numparse=True)}"


# ----------------------------------------------------------------------------------------------------------------- main

PARTS = ("frontend", "attention", "features", "prefix", "training", "ridge")


def measure(parts: Sequence[str], sizes: Sizes, spec: str) -> tuple[list[Row], list[str]]:
    """Run the parts; returns their rows, and what audio and network they used."""
    rows: list[Row] = []
    used: list[str] = []
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened: dict[str, Data] = {}

        def data(example: str, *, long: bool) -> Data:
            if example not in opened:
                found = open_data(example, spec, temporary, long=long, clips=sizes.train_clips)
                opened[example] = found
                used.append(f"{found.title}; network {found.backbone.name}, T = {found.backbone.front_end.frames}")
            return opened[example]

        def long_data() -> Data:
            return data("esc50_fold4", long=True) if sizes.long_stream else data("arabic_keywords", long=False)

        def task() -> Task:
            return Task.of(data("arabic_keywords", long=False), sizes)

        work: dict[str, Callable[[], list[Row]]] = {
            "frontend": lambda: frontend(long_data(), sizes),
            "attention": lambda: attention(sizes),
            "features": lambda: features(long_data(), sizes),
            "prefix": lambda: prefix(task()),
            "training": lambda: training(task()),
            "ridge": lambda: ridge(sizes),
        }
        for part in PARTS:
            if part in parts:
                rows += work[part]()
    return rows, used


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 where an answer differs by more than its tolerance, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--backbone", default=WEIGHTS, help="a name or a path, from the top of the clone")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of this process, for a shared machine"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the ratios here")
    given = parser.parse_args(arguments)
    parts = [part.strip() for part in given.parts.split(",") if part.strip()]
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"--parts knows {', '.join(PARTS)}, not {', '.join(unknown)}")
    sizes = QUICK if given.quick else Sizes()
    if given.clock == "cpu":
        sizes = replace(sizes, clock=time.process_time)
    seconds = "median seconds" if given.clock == "wall" else "median CPU seconds"
    torch.set_num_threads(given.threads)
    header = [machine()]
    print(header[0], flush=True)
    began = time.perf_counter()
    rows, used = measure(parts, sizes, given.backbone)
    header += used
    print("\n".join(used))
    print()
    print(table(rows))
    notes = [f"All in {time.perf_counter() - began:.0f} s. Ratio: plain by ours, {seconds}; n: timed turns."]
    if "ridge" in parts:
        notes.append("\n" + wrong_float32(sizes))
    print("\n".join(notes))
    if given.json is not None:
        content = {
            "header": header,
            "quick": given.quick,
            "clock": given.clock,
            "rows": [row.as_dict() for row in rows],
        }
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if given.chart is not None:
        chart(rows, given.chart, "\n".join(header), seconds)
    wrong = [row.what for row in rows if not row.same]
    for what in wrong:
        print(f"DIFFERENT ANSWERS: {what}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
