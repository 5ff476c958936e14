"""Estimates against what really happens: runs made here, stored runs, hand-counted operations."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from probes import Honest
from torch import Tensor, nn
from typer.testing import CliRunner

from audiocl_bench import benchmarks, cli, config, files, registry, store, sweep, training
from audiocl_bench.backbones import eat
from audiocl_bench.backbones.base import PassCounter
from audiocl_bench.errors import AudioclError, ConfigError
from audiocl_bench.estimate import model, phantom, rates
from audiocl_bench.estimate.hollow import Hollow
from audiocl_bench.estimate.model import Request, Span
from audiocl_bench.estimate.rates import Rates
from audiocl_bench.estimate.rehearsal import Rehearsal, SessionCost, _sampled, rehearse
from audiocl_bench.estimate.work import CannotCountError, Meter, Work
from audiocl_bench.heads import RidgeHead
from audiocl_bench.method import Clips, Method, MethodConfig, Session, State
from audiocl_bench.readout import Readout
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan, execute
from audiocl_bench.training import linear_head

UNIT = Rates(
    forward_gflops=100.0,
    forward_call_us=0.0,
    train_gflops=50.0,
    train_call_us=0.0,
    bank_gflops=200.0,
    mm64_gflops=10.0,
    cholesky_gflops=10.0,
    triangular_gflops=10.0,
    eigh_gn3=1.0,
    mm32_gflops=20.0,
    copy_gbs=5.0,
    op_us=10.0,
    read_gbs=1.0,
    file_ms=1.0,
    audio16_ms=2.0,
    audio44_ms=4.0,
    packed_ms=3.0,
    base_mb=500.0,
    adapters_mb=100.0,
    heap=1.5,
    name="a made-up machine",
)

SETTINGS: dict[str, dict[str, Any]] = {
    "ncm": {},
    "strata": {},
    "layup": {},
    "acil": {"width": 64},
    "fsa": {"epochs": 3, "batch_size": 4},
    "ranpac": {"epochs": 3, "width": 64, "batch_size": 4},
    "joint-closed": {"width": 64},
    "finetune": {"epochs": 3, "batch_size": 4},
    "joint": {"epochs": 3, "batch_size": 8, "min_steps": 10},
    "l2p": {"batch_size": 4},
    "dualprompt": {"batch_size": 5},
    "sprompt++": {"batch_size": 4},
    "coda-prompt": {"batch_size": 4},
    "hide-prompt": {"batch_size": 4, "align_epochs": 3, "tii_epochs": 3},
    "lora-drs": {"batch_size": 4, "rank": 2},
    "pace": {"width": 64, "n_stop": 12, "copies": 3, "batch_size": 4, "rank": 2},
}
QUICK = ("ncm", "finetune", "l2p", "pace")


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, phantom.Anatomy]:
    network, _ = phantom.architecture("eat-tiny", pool=None, layer=None, frames=48)
    return network, phantom.anatomy(network)


def worlds(method: type[Method], settings: Any, material: Material, tiny: Any) -> list[Rehearsal]:
    stream, benchmark = material.stream, material.benchmark
    return [rehearse(method, settings, benchmark, stream, *tiny, world=world) for world in ("calm", "restless")]


def compare(method: type[Method], settings: Any, material: Material, tiny: Any, tmp_path: Path) -> None:
    """Make a run and demand that every count of it lies between the two worlds."""
    results = ResultsDir(tmp_path)
    identity, status = execute(Plan(method, settings, 0), material, results)
    assert status == "done"
    run, sessions = results.run(identity), results.sessions(identity).sort_values("session")
    found = worlds(method, settings, material, tiny)
    assert len(found[0].sessions) == len(sessions)
    for number, real in enumerate(sessions.to_dict("records")):
        for column, amounts in (
            ("train_passes", [w.sessions[number].train["passes"] for w in found]),
            ("eval_passes", [w.sessions[number].test["passes"] for w in found]),
            ("trainable_parameters", [float(w.sessions[number].trainable) for w in found]),
            ("kept_bytes", [float(w.sessions[number].kept_bytes) for w in found]),
        ):
            assert min(amounts) <= real[column] <= max(amounts), (column, number)
    blocks = [w.train["needed"] + w.test["needed"] for w in found]
    real_blocks = run["blocks_needed"] + run["blocks_reused"]
    assert min(blocks) <= real_blocks <= max(blocks)
    if method.name != "pace":  # what it adapts depends on its features
        assert blocks[0] == blocks[1] == real_blocks
        assert found[0].train["passes"] == found[1].train["passes"]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_counts_are_those_of_a_run(name: str, tiny_material: Material, tiny: Any, tmp_path: Path) -> None:
    method = registry.load(name)
    compare(method, config.build(method.Config, "tiny", SETTINGS[name], owner=name), tiny_material, tiny, tmp_path)


def test_every_built_in_method_is_compared() -> None:
    own = {name for name, target in registry.targets().items() if target.startswith("audiocl_methods.")}
    assert own == set(SETTINGS)


# ------------------------------------------------------------------------------------------------------ other methods


class OwnLoop(Method):
    """Trains a head and a scale of its own on the network's features, without `training.fit`."""

    name = "own-loop"
    Config = MethodConfig

    def __init__(self, config: MethodConfig, backbone: Any, context: Any) -> None:
        super().__init__(config, backbone, context)
        self.rows = torch.zeros(0, backbone.dim)

    def learn(self, session: Session) -> None:
        own = linear_head(self.backbone.dim, len(session.classes), self.context.generator("head"), self.context.device)
        for _ in range(3):
            for clips, labels in session.batches(5):
                features = self.backbone.features(clips.mel)
                loss = nn.functional.cross_entropy(own(features), labels - session.num_known)
                loss.backward()
        self.rows = torch.cat([self.rows, own.weight.detach()])
        self.encoder_version += 1

    @torch.no_grad()
    def encode(self, batch: Clips) -> Tensor:
        return self.backbone.features(batch.mel)

    def classify(self, features: Tensor) -> Tensor:
        return features @ self.rows.T

    def state_dict(self) -> State:
        return {"rows": self.rows.clone(), "version": self.encoder_version}

    def load_state_dict(self, state: State) -> None:
        self.rows, self.encoder_version = state["rows"], state["version"]


class Prying(OwnLoop):
    """Runs a part of a block by itself."""

    name = "prying"

    def learn(self, session: Session) -> None:
        clips, _ = next(session.batches(4))
        self.backbone.blocks[0].attn(self.backbone.tokens(clips.mel))


class Fragile(OwnLoop):
    """Cannot live with features that mean nothing."""

    name = "fragile"

    def learn(self, session: Session) -> None:
        raise ZeroDivisionError("no two clips are alike")


def test_a_method_with_a_loop_of_its_own_is_counted(tiny_material: Material, tiny: Any, tmp_path: Path) -> None:
    compare(OwnLoop, MethodConfig(), tiny_material, tiny, tmp_path)


def test_a_method_without_an_encoder_is_counted(tiny_material: Material, tiny: Any) -> None:
    found = worlds(Honest, MethodConfig(), tiny_material, tiny)
    assert [w.train["passes"] + w.test["passes"] + w.train["forward.flops"] for w in found] == [0, 0]


def test_what_reaches_into_blocks_is_refused(tiny_material: Material, tiny: Any) -> None:
    with pytest.raises(CannotCountError, match="parts of the encoder's blocks by itself"):
        worlds(Prying, MethodConfig(), tiny_material, tiny)


def test_a_method_that_fails_is_named_and_takes_no_other_with_it(
    tiny_benchmark: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "_added", {**registry._added, "fragile": Fragile})
    found = model.estimate(
        Request(
            methods=("fragile", "ncm"), benchmarks=(str(tiny_benchmark),), backbone="eat-tiny", rates=unit(tmp_path)
        )
    )
    assert found.runs[0].problem.startswith("fragile cannot be counted: its code fails on made-up features (ZeroDiv")
    assert not found.runs[1].problem
    assert found.runs[1].train_passes.low == 36
    assert any("fragile cannot be counted" in note for note in found.notes)


def test_a_method_that_takes_too_long_is_given_up(tiny_material: Material, tiny: Any) -> None:
    stream, benchmark = tiny_material.stream, tiny_material.benchmark
    with pytest.raises(CannotCountError, match="took more than 0 s"):
        rehearse(OwnLoop, MethodConfig(), benchmark, stream, *tiny, world="calm", patience=0.0)


def test_a_rehearsal_leaves_everything_as_it_was(tiny_material: Material, tiny: Any) -> None:
    network, _ = tiny
    before = {name: value.numpy().tobytes() for name, value in network.state_dict().items()}  # some are no numbers
    kinds, loop, clips = [type(module) for module in network.modules()], training._descend, network.passes.clips
    state = torch.get_rng_state()
    method = registry.load("finetune")
    settings = config.build(method.Config, "tiny", {"trains": "all"}, owner="finetune")
    worlds(method, settings, tiny_material, tiny)
    assert {name: value.numpy().tobytes() for name, value in network.state_dict().items()} == before
    assert [type(module) for module in network.modules()] == kinds
    assert training._descend is loop
    assert network.passes.clips == clips
    assert torch.equal(torch.get_rng_state(), state)


def test_counts_do_not_need_the_shortened_loop(
    tiny_material: Material, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were `training`'s loop called otherwise, every epoch would be gone through, with equal counts."""
    method = registry.load("finetune")
    settings = config.build(method.Config, "tiny", {"epochs": 5, "batch_size": 2}, owner="finetune")
    short = worlds(method, settings, tiny_material, tiny)[0]
    loop = training._descend
    monkeypatch.setattr(training, "_descend", lambda *arguments: loop(*arguments))
    full = worlds(method, settings, tiny_material, tiny)[0]
    for name in ("passes", "needed", "train.flops", "train.calls", "read.clips"):
        assert short.train[name] == full.train[name] > 0
    assert short.train["ops"] == pytest.approx(full.train["ops"], rel=0.05)


def test_an_epoch_that_trains_all_weights_is_cut_short(
    tiny_material: Material, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once steps cost the same, the others are counted like them: the optimiser of a large network takes minutes."""
    taken, step = 0, torch.optim.Adam.step

    def noted(self: torch.optim.Adam, *arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    settings = config.build(registry.load("fsa").Config, "tiny", {"epochs": 2, "batch_size": 1}, owner="fsa")
    found = worlds(registry.load("fsa"), settings, tiny_material, tiny)
    first = len(tiny_material.stream.rows(0, "train"))
    assert taken == 2 * 2 * 3 < 2 * 2 * first  # two worlds, two epochs, three steps each
    assert [world.train["train.calls"] for world in found] == [2 * 2 * first * tiny[0].depth] * 2


def test_long_streams_are_sampled_at_both_ends() -> None:
    chosen = [t for t in range(315) if _sampled(t, 315)]
    assert chosen[:6] == [0, 1, 2, 3, 4, 5]
    assert chosen[-1] == 314
    assert len(chosen) < 30
    assert max(later / earlier for earlier, later in pairwise(chosen[3:-1])) < 1.5


@pytest.mark.slow
def test_sessions_left_out_of_long_streams_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiDe-Prompt draws samples of all classes seen so far: what that costs grows with every session."""
    benchmark = benchmarks.get("mini-timit2")
    network, _ = phantom.architecture("eat-tiny", pool=None, layer=None, frames=benchmark.frames)
    method, body = registry.load("hide-prompt"), phantom.anatomy(network)
    settings = config.build(method.Config, benchmark.name, {"align_epochs": 4, "tii_epochs": 2}, owner=method.name)
    stream = benchmark.stream("paper", 0)

    def count(long: int) -> Work:
        monkeypatch.setattr("audiocl_bench.estimate.rehearsal.LONG", long)
        return rehearse(method, settings, benchmark, stream, network, body, world="restless").train

    full, sampled = count(100), count(2)
    assert not all(_sampled(t, 12) for t in range(12))
    assert sampled["passes"] == full["passes"]
    assert sampled["train.flops"] == full["train.flops"]
    assert sampled["ops"] == pytest.approx(full["ops"], rel=0.03)


# -------------------------------------------------------------------------------------------------------- stored runs


def stored_runs() -> list[Any]:
    path = Path(__file__).resolve().parent.parent / "results" / "examples"
    if not (path / "runs").is_dir():
        return []
    runs, found = ResultsDir(path).runs(), []
    # Every method with each of its benchmarks, settings and networks, not all of their products: those are many.
    repeats = [runs.duplicated(["method", other]) for other in ("benchmark", "method_config", "backbone")]
    runs = runs[~np.logical_and.reduce(repeats)]
    for run in runs.to_dict("records"):
        quick = run["benchmark"] == "esc50-fold4" and run["method"] == "ncm"
        marks = () if quick else (pytest.mark.slow,)
        name = f"{run['backbone']}-{run['benchmark']}-{run['method']}-{run['config_hash'][:6]}"
        found.append(pytest.param(run, marks=marks, id=name))
    return found


@pytest.mark.parametrize("run", stored_runs())
def test_passes_of_stored_runs(run: dict[str, Any], shared: Callable[..., Path]) -> None:
    """Equal passes; kept bytes but for what states have gained since.

    PACE's runs are older than the pass over frozen features that its head and its boundary now share: one pass over
    the clips of a regularised session less, at most 5 % of all. Some of joint training's are older than `min_steps`.
    """
    shared("data")
    files_of = {benchmarks.get(str(path)).name: path for path in Path("examples").glob("*.toml")}
    benchmark = benchmarks.get(str(files_of[run["benchmark"]]))
    stream = benchmark.stream("own", run["order"], benchmark.checked(benchmark.corpus.index(benchmark.find(None))))
    backbone = run["backbone"].removesuffix("-encoder")  # the folder of Whisper's weights is called so
    network, _ = phantom.architecture(backbone, pool=None, layer=None, frames=benchmark.frames)
    method = registry.load(run["method"])
    stored = {**({"min_steps": 0} if method.name == "joint" else {}), **json.loads(run["method_config"])}
    settings = config.build(method.Config, benchmark.name, stored, owner=method.name)
    body = phantom.anatomy(network)
    found = [rehearse(method, settings, benchmark, stream, network, body, world=w) for w in ("calm", "restless")]
    train, test = [w.train["passes"] for w in found], [w.test["passes"] for w in found]
    older = method.name == "pace" and settings.fsa and settings.regulariser != "none"  # type: ignore[attr-defined]
    assert min(train) <= run["train_passes"] <= max(train) * (1.05 if older else 1.0)
    assert min(test) <= run["eval_passes"] <= max(test)
    kept = [w.sessions[-1].kept_bytes for w in found]
    assert min(kept) * 0.999 - 1000 <= run["kept_bytes"] <= max(kept) * 1.001 + 1000
    if run["blocks_needed"] == run["blocks_needed"]:  # else older than these counts
        needed = [w.train["needed"] + w.test["needed"] for w in found]
        assert min(needed) <= run["blocks_needed"] + run["blocks_reused"] <= max(needed)


# ------------------------------------------------------------------------------------------------------------- hollow


def counted(work: Callable[[], object], **options: Any) -> Meter:
    meter = Meter(PassCounter(), math.inf)
    with Hollow(meter, **options):
        work()
    return meter


def test_algebra_is_counted_by_hand() -> None:
    A = torch.eye(64, dtype=torch.float64)
    B = torch.ones(64, 40, dtype=torch.float64)
    cases: list[tuple[Callable[[], object], str, float]] = [
        (lambda: A @ B, "mm.float64", 2 * 64 * 64 * 40),
        (lambda: torch.addmm(B, A, B), "mm.float64", 2 * 64 * 64 * 40),
        (lambda: torch.linalg.cholesky(A), "cholesky.float64", 64**3 / 3),
        (lambda: torch.cholesky_solve(B, A), "triangular.float64", 2 * 64**2 * 40),
        (lambda: torch.linalg.solve_triangular(A, B, upper=False), "triangular.float64", 64**2 * 40),
        (lambda: torch.linalg.eigh(A), "eigh.float64", 64**3),
        (lambda: A.float() @ B.float(), "mm.other", 2 * 64 * 64 * 40),
    ]
    for work, key, flops in cases:
        meter = counted(work)
        assert meter.counts[key] + meter.counts["bytes.float64"] + meter.counts["bytes.other"] > 0
        if meter.counts[key]:  # else so few operations a byte that moving the numbers takes the time
            assert meter.counts[key] == pytest.approx(flops)
    assert counted(lambda: A @ B).counts["mm.float64"] == 2 * 64 * 64 * 40


def test_large_results_are_not_computed() -> None:
    with torch.no_grad(), Hollow(Meter(PassCounter(), math.inf)):
        R = torch.ones(3000, 3000, dtype=torch.float64) @ torch.ones(3000, 3000, dtype=torch.float64)
        L = torch.linalg.cholesky(R)
        values, vectors = torch.linalg.eigh(R)
        R.addmm_(R, R)
        total = R.sum()
        finite = bool(torch.isfinite(R).all())
        small = torch.ones(3, 3) @ torch.ones(3, 3)
    assert R.shape == (3000, 3000)
    assert float(R[7, 5]) == 0
    assert torch.equal(L[:3, :3], torch.eye(3, dtype=torch.float64))
    assert float(values.min()) == 1
    assert torch.equal(vectors[:2, :2], torch.eye(2, dtype=torch.float64))
    assert float(total) == 1
    assert finite
    assert float(small[0, 0]) == 3


def test_a_factorisation_of_made_up_values_does_not_fail() -> None:
    """A sum of squares too large to carry out, less means that are small: no covariance, though it always is one."""
    H = torch.randn(200, 384, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(384, 2, dtype=torch.float64)
    with Hollow(Meter(PassCounter(), math.inf)):
        S = H.T @ H - torch.outer(H.sum(0), H.sum(0)) / 200
        S.diagonal().add_(1.0)
        L, failed = torch.linalg.cholesky_ex(S)
        solved = torch.linalg.solve(torch.zeros_like(S), ones)
        inverse = torch.linalg.inv(torch.zeros(2, 384, 384, dtype=torch.float64))
    eye = torch.eye(384, dtype=torch.float64)
    assert not bool(failed)
    assert torch.equal(L, eye)
    assert torch.equal(inverse, eye.expand(2, -1, -1))
    assert bool((solved == 0).all())
    with Hollow(Meter(PassCounter(), math.inf), real=True):  # measured, not counted: everything is what it is
        assert bool(torch.linalg.cholesky_ex(-eye)[1])
    with Hollow(Meter(PassCounter(), math.inf)):  # and what succeeds is carried out
        assert torch.equal(torch.linalg.cholesky(4 * eye), 2 * eye)


def test_heads_cost_the_same_whether_carried_out_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sessions = [torch.randn(20, 120, generator=generator) for _ in range(8)]

    def work() -> None:
        head = RidgeHead(120)
        for t, H in enumerate(sessions):
            head.update(H, torch.arange(20) % 2 + 2 * t, 2 * (t + 1))
            head.solve(10.0)
            head.logits(H)

    real = counted(work, real=True).counts
    for name in ("LARGE_FLOPS", "LARGE_BYTES"):
        monkeypatch.setattr(f"audiocl_bench.estimate.hollow.{name}", 30_000.0)
    made_up = counted(work).counts
    keys = [key for key in real if key.split(".")[0] in ("mm", "cholesky", "triangular", "eigh")]
    assert sum(real[key] for key in keys) > 1e6
    for key in keys:
        assert made_up[key] == pytest.approx(real[key]), key


def test_memory_is_followed() -> None:
    meter = Meter(PassCounter(), math.inf)
    with Hollow(meter):
        first = torch.zeros(1000, 1000)
        second = torch.zeros(1000, 1000, dtype=torch.float64)
        del first
    assert meter.live == {"float64": 8e6, "graph": 0.0, "other": 0.0}
    assert (meter.peak, meter.device_peak) == (12e6, 4e6)
    del second


def test_made_up_values_are_the_same_whatever_lay_in_memory() -> None:
    """What fills an empty tensor may not be carried out; then it is zero, not what a freed one left behind."""
    shape = (1500, 1500)  # 9 MB: made for real, but adding to it is too large an operation
    like = torch.zeros(shape)
    for make in (lambda: torch.empty(shape), lambda: like.new_empty(shape), lambda: torch.empty_like(like)):
        dirt = [torch.full(shape, math.nan) for _ in range(4)]
        del dirt
        with Hollow(Meter(PassCounter(), math.inf)):
            made = make().copy_(like).add_(like)
        assert bool((made == 0).all())


def test_a_loss_of_made_up_values_stops_no_count(tiny_material: Material, tiny: Any) -> None:
    """A rate that diverges at once costs what any other does."""
    method = registry.load("finetune")
    counts = []
    for rate in (0.01, 1e30):
        settings = config.build(method.Config, "tiny", {**SETTINGS["finetune"], "lr_head": rate}, owner="finetune")
        counts.append([world.train["passes"] for world in worlds(method, settings, tiny_material, tiny)])
    assert counts[0] == counts[1]


def test_activations_are_told_apart_from_other_memory() -> None:
    meter = Meter(PassCounter(), math.inf)
    meter.hold(5.0)
    meter.hold(70.0, "graph")
    meter.brief(20.0)  # beside activations, what a backward pass needs for a moment is one of them
    assert (meter.peak, meter.graph_peak, meter.device_peak) == (95.0, 90.0, 95.0)
    meter.hold(-70.0, "graph")
    meter.hold(100.0, "float64")
    assert (meter.peak, meter.graph_peak, meter.device_peak) == (105.0, 0.0, 95.0)


def session_cost(peak: float, graph: float, device: float) -> SessionCost:
    return SessionCost(Work(), Work(), peak, graph, device, kept_bytes=0, trainable=0)


def test_memory_of_a_run_is_the_sum_of_its_parts(tiny: Any) -> None:
    """Half more for activations (UNIT's heap); two bytes a mel cell; four a feature; weights of the loaded network."""
    body = tiny[1]
    costs = (session_cost(90e6, 20e6, 40e6), session_cost(80e6, 60e6, 70e6))
    bank = {Readout((3,), ("mean",), 96): 50}
    found = Rehearsal(costs, Work(), bank, (40, 10), 0.0, adapters=True)
    host = 600e6 + body.weight_bytes + 50 * body.mel_bytes / 2 + 4 * 96 * 50 + 80e6 + 30e6
    assert model.memory_of(found, UNIT, body) == (host, host)
    plain = dataclasses.replace(found, adapters=False)
    assert model.memory_of(plain, UNIT, body)[0] == host - 100e6
    crowd = dataclasses.replace(plain, clips=(10**7, 0))  # a store gives pages back from some size on
    assert model.memory_of(crowd, UNIT, body)[0] == host - 100e6 - 50 * body.mel_bytes / 2 + store.HELD
    wide = dataclasses.replace(plain, banked={Readout((3,), ("mean",), 96): 10**7})  # and so does a bank
    assert model.memory_of(wide, UNIT, body)[0] == host - 100e6 - 4 * 96 * 50 + store.HELD
    gpu = dataclasses.replace(UNIT, device="cuda", heap=1.0)
    assert model.memory_of(found, gpu, body) == (host - 30e6 + 10e6 - 70e6, 70e6 + body.weight_bytes)


@pytest.mark.parametrize(("name", "adapters"), [("ncm", False), ("l2p", False), ("finetune", True), ("ranpac", True)])
def test_adapters_are_noticed(name: str, adapters: bool, tiny_material: Material, tiny: Any) -> None:
    method = registry.load(name)
    settings = config.build(method.Config, "tiny", SETTINGS[name], owner=name)
    assert worlds(method, settings, tiny_material, tiny)[0].adapters is adapters


@pytest.mark.slow
def test_the_memory_of_a_training_run_is_foretold(tmp_path: Path) -> None:
    """A process of its own trains on the miniature of UrbanSound8K: the estimate is within a quarter of its peak."""
    words = ["-m", "finetune", "-b", "us8k", "--data", "mini", "--backbone", "eat-mini", "--set", "epochs=1"]
    run = [sys.executable, "-c", "from audiocl_bench.cli import main; main()"]
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    results = tmp_path / "results"
    ran = [*run, "run", *words, "--orders", "0", "--threads", "1", "--quiet", "--results", str(results)]
    subprocess.run(ran, env=one, check=True, capture_output=True)
    told = subprocess.run([*run, "estimate", *words, "--json"], env=one, check=True, capture_output=True, text=True)
    [low, high] = json.loads(told.stdout)["runs"][0]["peak_memory_mb"]
    peaks = ResultsDir(results).sessions()["peak_memory_mb"]
    assert low == high == pytest.approx(peaks.max(), rel=0.25)
    assert peaks.max() < 1.15 * peaks.min()  # what sessions leave behind is given back between them


# ------------------------------------------------------------------------------------------------------------ anatomy


def test_an_eat_is_counted_by_hand(tiny: Any) -> None:
    network, body = tiny
    dim, hidden = eat.TINY.dim, eat.TINY.hidden
    assert body.tokens == 48 // 16 * 8 + 1
    assert body.linear == 2 * (4 * dim**2 + 2 * dim * hidden)
    assert body.square == 4 * dim
    assert body.stem_flops == 2 * 24 * dim * 16**2
    assert body.block_flops(10, 5) == body.linear * 10 + body.square * 10 * 15
    assert body.parameters == sum(value.numel() for value in network.state_dict().values())
    # Backward through frozen weights: q, k, v, attention's output, what enters the two LayerNorms, what enters the GELU
    # (and a few numbers a token); weights that train need the inputs of their layers too.
    frozen = 4 * (6 * dim + hidden)
    assert frozen <= body.kept_bytes <= frozen + 64
    assert frozen + 4 * (2 * dim + hidden) <= body.all_kept_bytes <= frozen + 4 * (3 * dim + hidden) + 64
    assert body.pass_bytes >= 4 * (dim + hidden)


def test_named_backbones_need_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiocl_bench.backbones.registry._fetch", lambda *a, **k: pytest.fail("weights were fetched"))
    network, weights = phantom.architecture("whisper-base", pool=None, layer=4, frames=100)
    assert (weights, network.dim, network.depth, network.layer) == ("random", 512, 6, 4)
    body = phantom.anatomy(network)
    assert body.tokens == 50
    assert bool(network.blocks[0](torch.ones(1, 4, 512)).isfinite().all())


def test_blocks_write_down_what_they_stand_for(tiny: Any) -> None:
    network, body = tiny
    meter = Meter(PassCounter(), math.inf)
    nature = phantom.Nature(meter, body, "calm", torch.randn(3, network.dim), torch.Generator().manual_seed(0))
    made = phantom.phantom(network, nature)
    mel = phantom.mels(made, torch.tensor([0, 1, 2, 1]))
    with torch.no_grad():
        features = made.features(mel)
    assert meter.counts["forward.flops"] == 4 * body.clip_flops(3)
    assert meter.passes.clips == 4
    assert meter.passes.block_runs == 12
    assert float(nn.functional.cosine_similarity(features[1], features[3], dim=0)) > 0.9
    # Five prompts lengthen the tokens; the gradient flows back through every block, so that they count twice.
    prompts = nn.Parameter(torch.zeros(5, network.dim))
    tokens = torch.cat([prompts.expand(4, 5, -1), made.tokens(mel)], dim=1)
    made.run(tokens).sum().backward()
    assert meter.counts["train.flops"] == 2 * 3 * 4 * body.block_flops(body.tokens + 5)
    assert prompts.grad is not None
    assert meter.live["other"] == meter.live["graph"] == 0
    assert meter.graph_peak >= 3 * 4 * (body.tokens + 5) * body.kept_bytes
    assert meter.peak >= 3 * 4 * (body.tokens + 5) * body.kept_bytes
    assert copy.deepcopy(made).nature is nature  # type: ignore[comparison-overlap]
    # With all weights every block counts three times; what makes tokens twice, for no gradient leaves it.
    forward, train = meter.counts["forward.flops"], meter.counts["train.flops"]
    made.requires_grad_(True)
    made.features(mel).sum().backward()
    assert meter.counts["forward.flops"] == forward
    assert meter.counts["train.flops"] - train == 4 * (2 * body.stem_flops + 3 * 3 * body.block_flops(body.tokens))


# -------------------------------------------------------------------------------------------------------------- rates


def test_a_process_and_its_heap_are_measured(tiny: Any) -> None:
    network, body = tiny
    bare = rates._memory()
    assert 100 < bare["base_mb"] < 2000
    assert 5 < bare["adapters_mb"] < 500
    assert 1.0 <= rates._heap(network.blocks[0], torch.randn(512, body.tokens, network.dim), body) < 4.0


def unit(folder: Path, **changes: Any) -> Path:
    path = folder / "unit.toml"
    rates.write(path, dataclasses.replace(UNIT, **changes))
    return path


def test_rates_survive_their_file(tmp_path: Path) -> None:
    path = unit(tmp_path, device="cuda", threads=16)
    read = rates.read(path)
    assert all(getattr(read, name) == getattr(UNIT, name) for name in Rates.speeds())
    assert (read.device, read.threads, read.name) == ("cuda", 16, "a made-up machine")
    assert str(path) in read.origin


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("op_us = 10", "", "lacks op_us"),
        ("op_us = 10", "op_us = 10\nspeed = 3", "unknown speed"),
        ("op_us = 10", "op_us = -1", "op_us is -1"),
        ("eigh_gn3 = 1", "eigh_gn3 = 0", "eigh_gn3 is 0"),
        ("op_us = 10", "op_us = nan", "op_us is nan"),
        ('device = "cpu"', 'device = "tpu"', "device is 'tpu'"),
        ("threads = 1", "threads = 0", "threads is 0"),
        ("[rates]", "[rates", "not valid TOML"),
    ],
)
def test_wrong_rates_are_refused_in_a_sentence(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = unit(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=told):
        rates.read(path)


def test_a_machine_is_measured_once(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_BUDGET", 0.0)
    network, body = tiny
    first = rates.measured(network, body, torch.device("cpu"))
    assert all(getattr(first, name) >= 0 for name in Rates.speeds())
    assert first.forward_gflops > 0
    assert first.device == "cpu"
    assert len(list((files.home() / "rates").glob("eat-tiny-*.json"))) == 1
    monkeypatch.setattr(rates, "_measure", lambda *a: pytest.fail("measured again"))
    assert rates.measured(network, body, torch.device("cpu")) == first
    monkeypatch.setattr(rates, "_measure", lambda *a: UNIT)
    assert rates.measured(network, body, torch.device("cpu"), again=True) == UNIT
    for path in (files.home() / "rates").glob("*.json"):
        path.write_text("{")
    assert rates.measured(network, body, torch.device("cpu")) == UNIT


# -------------------------------------------------------------------------------------------------------------- model


def test_seconds_by_hand(tiny: Any) -> None:
    _, body = tiny
    work = Work({"forward.flops": 3e11, "train.flops": 5e10, "mm.float64": 1e10, "mm.other": 4e10, "ops": 1e5})
    work.add({"bytes.float64": 4e9, "bytes.other": 1e9, "eigh.float64": 2e9, "cholesky.float64": 5e9})
    work.add({"triangular.float64": 1e10, "read.clips": 1e3, "bank.flops": 1e15})
    expected = 3 + 1 + 1 + 2 + 1 + 1 + 2 + 0.5 + 1 + 1e3 * body.mel_bytes / 1e9
    assert model.seconds(work, UNIT, body) == pytest.approx(expected)
    assert model.bank_seconds({"bank.flops": 4e11, "bank.clips": 0}, UNIT, body) == pytest.approx(2)


def test_the_longest_runs_start_first() -> None:
    queue = [Span(1, 2), Span(3, 6), Span(2, 4), Span(2, 4)]
    assert model._makespan(queue, 1) == Span(8, 16)
    assert model._makespan(queue, 2) == Span(4, 8)
    assert model._makespan(queue, 9) == Span(3, 6)


def test_a_benchmark_is_estimated_without_its_corpus(tmp_path: Path) -> None:
    found = model.estimate(
        Request(methods=("ncm",), benchmarks=("esc50",), backbone="eat-tiny", orders=(0, 1), rates=unit(tmp_path))
    )
    [run] = found.runs  # both orders have sessions of equal size: counted once
    assert (run.runs, run.orders, run.sessions) == (2, (0, 1), 10)
    assert (run.train_clips, run.test_clips) == (1600, 400)
    assert (run.train_passes, run.eval_passes) == (Span(1600, 1600), Span(400, 400))
    assert run.passes_per_clip == Span(1, 1)
    assert run.blocks_needed == Span(6000, 6000)
    body = phantom.anatomy(phantom.architecture("eat-tiny", pool=None, layer=None, frames=512)[0])
    bank = 2000 * body.clip_flops(3) / 200e9 + 2000 * 512 * 128 * 4 / 1e9
    assert run.bank_seconds.low == pytest.approx(bank)
    assert run.first_seconds.low == pytest.approx(run.later_seconds.low + bank)
    assert run.prepare_seconds == pytest.approx(2000 * (1 + 5 * 4) / 1e3)
    assert run.kept_bytes.low == pytest.approx(50 * 96 * 8, rel=0.05)
    assert run.peak_memory_mb.low > 500
    assert found.bank_seconds == run.bank_seconds  # once for both runs
    assert found.total_runs == 2
    assert found.wall_seconds.low == pytest.approx(run.prepare_seconds + bank + 2 * run.later_seconds.low)
    assert "not measured here" in found.notes[0]


@pytest.mark.parametrize(("suffix", "packed"), [("wav", 0.0), ("flac", 0.0), ("ogg", 3.0)])
def test_preparing_own_files_counts_how_they_are_packed(tmp_path: Path, suffix: str, packed: float) -> None:
    for label in ("a", "b"):
        for number in range(3):
            path = tmp_path / "sounds" / label / f"{number}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.zeros(32_000), 16_000)
    text = f"""
[benchmark]
name = "packed"
[corpus]
kind = "folder"
root = "{tmp_path / "sounds"}"
[stream]
classes_per_session = 1
input_seconds = 2.0
first_session_epochs = 1
[test]
rule = "fraction"
fraction = 0.34
"""
    (tmp_path / "packed.toml").write_text(text)
    benchmark = benchmarks.get(str(tmp_path / "packed.toml"))
    assert model._prepare_seconds(benchmark, 10, UNIT, None) == pytest.approx(10 * (1 + 2 * (2 + packed)) / 1e3)


def test_methods_that_read_the_same_share_the_bank(tmp_path: Path) -> None:
    wide = Request(
        methods=("ncm", "acil", "strata"), benchmarks=("vocalset",), backbone="eat-tiny", rates=unit(tmp_path)
    )
    found = model.estimate(wide)
    ncm, acil, strata = found.runs
    assert ncm.bank_seconds == acil.bank_seconds
    assert found.bank_seconds.low == pytest.approx(ncm.bank_seconds.low + strata.bank_seconds.low)


def test_what_features_decide_is_a_range(tiny_benchmark: Path, tmp_path: Path) -> None:
    settings = ("n_stop=12", "copies=3", "width=64")
    pace = Request(
        methods=("pace",),
        benchmarks=(str(tiny_benchmark),),
        backbone="eat-tiny",
        settings=settings,
        rates=unit(tmp_path),
    )
    [run] = model.estimate(pace).runs
    assert run.blocks_needed.low < run.blocks_needed.high
    assert "depends on its features" in run.reasons[0]
    assert run.method == "pace n_stop=12 copies=3 width=64"


def test_a_device_that_is_not_here_is_no_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = Request(methods=("ncm",), benchmarks=("esc50",), backbone="eat-tiny", device="cuda")
    with pytest.raises(
        ConfigError, match="cannot be measured: run `audiocl estimate --device cuda --write-rates FILE`"
    ):
        model.estimate(asked)
    with pytest.raises(ConfigError, match="holds rates of 'cpu'"):
        model.estimate(dataclasses.replace(asked, rates=unit(tmp_path)))
    found = model.estimate(dataclasses.replace(asked, rates=unit(tmp_path, device="cuda")))
    [run] = found.runs
    weights = (
        4 * phantom.anatomy(phantom.architecture("eat-tiny", pool=None, layer=None, frames=512)[0]).parameters / 1e6
    )
    assert 2 * weights < run.peak_memory_mb.low < run.host_memory_mb.low  # the GPU holds no Python


def test_tables_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(methods=("all-paper",), benchmarks=("vocalset",), backbone="eat-tiny", rates=unit(tmp_path))
    planned = model._plan(request)
    assert [item.typed for item in planned][-3:] == ["ranpac@no-fsa", "ranpac", "pace"]
    assert len(planned) == 9
    table = model._plan(Request(tables=("table4", "table4"), backbone="eat-tiny", orders=None))
    assert {item.benchmark.name for item in table} == {"timit2", "timit3", "vocalset"}
    assert len({item.typed for item in table}) == 5
    assert sum(len(item.streams) for item in table if item.typed == "pace") == 15
    with pytest.raises(ConfigError, match="nothing to estimate"):
        model._plan(Request(methods=("ncm",)))
    del monkeypatch


def test_bad_requests_end_in_a_sentence(tmp_path: Path) -> None:
    for changes in (
        {"methods": ("nmc",)},
        {"benchmarks": ("esc51",)},
        {"settings": ("rank=4",)},
        {"backbone": "eat-bass"},
        {"backbone": "nowhere/weights.pt"},
        {"protocol": "mine"},
        {"orders": (7,)},
    ):
        asked = Request(methods=("ncm",), benchmarks=("esc50",), backbone="eat-tiny", rates=unit(tmp_path))
        with pytest.raises(AudioclError):
            model.estimate(dataclasses.replace(asked, **changes))


def test_miniatures_are_estimated_like_their_runs(tmp_path: Path) -> None:
    asked = Request(methods=("ncm",), benchmarks=("esc50",), backbone="eat-tiny", rates=unit(tmp_path), data=sweep.MINI)
    [run] = model.estimate(asked).runs
    assert run.benchmark == "mini-esc50"
    assert run.train_clips + run.test_clips == 320


# ---------------------------------------------------------------------------------------------------------------- cli


def test_the_command(tmp_path: Path) -> None:
    arguments = ["estimate", "-m", "ncm", "-b", "esc50", "--backbone", "eat-tiny", "--rates", str(unit(tmp_path))]
    done = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    row = next(line for line in done.output.splitlines() if line.startswith("  ncm"))
    assert row.split()[1:3] == ["1", "1.0"]
    assert "esc50: 1,600 training and 400 test clips, 42.0 s to prepare." in done.output
    assert "not measured here" in done.output
    told = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json", "--jobs", "3"]).stdout)
    [run] = told["runs"]
    assert run["train_passes"] == [1600, 1600]
    assert run["first_seconds"][0] > run["later_seconds"][0]
    assert told["jobs"] == 3
    assert told["rates"]["512"]["forward_gflops"] == 100.0


def test_a_narrow_terminal_breaks_no_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a path that is longer than a line has to be broken
    words = ["-m", "ranpac@no-fsa", "-b", "esc50", "-b", "us8k", "--backbone", "eat-tiny", "--orders", "0-2"]
    words = ["estimate", *words, "--set", "ranpac.width=64", "--rates", unit(tmp_path).name]
    wide, narrow = (CliRunner().invoke(cli.app, words, env={"COLUMNS": size}).stdout for size in ("160", "80"))
    assert sorted(wide.replace("─", "").split()) == sorted(narrow.replace("─", "").split())
    assert "    ranpac.width=64" in narrow
    assert "esc50: 1,600 training and 400 test clips" in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_measured_rates_can_be_carried_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_measure", lambda *a: UNIT)
    out = tmp_path / "here.toml"
    arguments = ["estimate", "-m", "ncm", "-b", "esc50", "--backbone", "eat-tiny", "--write-rates", str(out)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert rates.read(out).mm64_gflops == UNIT.mm64_gflops
    assert CliRunner().invoke(cli.app, [*arguments, "--rates", str(out)]).exit_code == 2
