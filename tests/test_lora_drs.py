"""LoRA-DRS: its loss by brute force, its steps inside the kept subspace, stored means, whole runs (methods.md 2.11)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import CPU, FRAMES, NETWORKS, SESSIONS, bytes_of, clips_of, network, reader, weights
from probes import Log
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from audiocl_bench import audio, audit, backbones, config, registry
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import UnknownNameError
from audiocl_bench.method import Clips, Context, Session, SilentReporter, StreamInfo, kept_bytes
from audiocl_bench.peft.lora import SessionLoRA
from audiocl_bench.peft.subspace import attention_covariances, leading_subspace
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan, execute

registry.names()  # makes the methods of a clone importable under their installed name
from audiocl_methods import lora_drs as drs  # type: ignore[import-not-found]  # noqa: E402

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
QUICK: dict[str, Any] = {"rank": 3, "epochs": 2, "batch_size": 6, "lr": 0.01, "lr_head": 0.01, "energy": 0.9}
ALL = tuple(range(6))
UNEVEN = ((0, 1, 2), (3,), (4, 5))
KV = ("k_proj", "v_proj")


def config_of(**changes: Any) -> Any:
    return config.build(drs.LoRADRSConfig, "tiny", {**QUICK, **changes}, owner="lora-drs")


def build(backbone: Backbone | None = None, *, seed: int = 0, **changes: Any) -> Any:
    context = Context(seed, StreamInfo("tiny", 3, 6, first_session_epochs=2))
    return drs.LoRADRS(config_of(**changes), network() if backbone is None else backbone, context)


def opened(t: int, backbone: Backbone, stream: Sequence[tuple[int, ...]] = SESSIONS, *, per_class: int = 6) -> Session:
    mel, labels = clips_of(stream[t], backbone, per_class=per_class)
    return Session(t, stream[t], min(stream[t]), labels, reader(mel), CPU)


def learn(method: Any, *sessions: int, **options: Any) -> Any:
    for t in sessions:
        part = opened(t, method.backbone, **options)
        method.learn(part)
        part.close()
    return method


def probe(method: Any) -> Tensor:
    return clips_of(ALL, method.backbone, per_class=3, seed=99)[0]


def scores(method: Any, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


class Fits:
    """Stands in for `fit`: keeps what each session was given and where its parameters started; trains as always."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: list[dict[str, Any]] = []
        self._real = drs.fit
        monkeypatch.setattr(drs, "fit", self)

    def __call__(self, part: Session, groups: Any, loss: Any, recipe: Any, context: Any, **options: Any) -> Any:
        record = {"part": part, "groups": groups, "loss": loss, "recipe": recipe, **options}
        record["start"] = [[p.detach().clone() for p in group.parameters] for group in groups]
        self.given.append(record)
        return self._real(part, groups, loss, recipe, context, **options)


# ----------------------------------------------------------------------------------------------- augmented triplet loss


def literal_triplet(z: Tensor, y: Sequence[int], prototypes: Tensor, margin: float) -> float:
    """The official rule with loops: a batch of one class takes d_an = d_ap + margin, then prototypes come in."""
    total = 0.0
    for i in range(len(z)):
        d_ap, d_an = 0.0, math.inf
        for j in range(len(z)):
            distance = float((z[i] - z[j]).norm())
            if y[i] == y[j]:
                d_ap = max(d_ap, distance)
            else:
                d_an = min(d_an, distance)
        if d_an == math.inf:
            d_an = d_ap + margin
        for c in range(len(prototypes)):
            d_an = min(d_an, float((z[i] - prototypes[c]).norm()))
        total += max(0.0, d_ap - d_an + margin)
    return total / len(z)


def unit(rows: int, width: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=-1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(0, 3), st.floats(0, 2.5), st.integers(0, 99))
def test_triplet_loss_by_brute_force(y: list[int], old: int, margin: float, seed: int) -> None:
    """Also batches of one class or one clip, with and without prototypes."""
    z, prototypes = unit(len(y), 5, seed), unit(old, 5, seed + 1000)
    got = float(drs.augmented_triplet(z, torch.tensor(y), prototypes, margin))
    assert got == pytest.approx(literal_triplet(z, y, prototypes, margin), abs=1e-5)


def test_triplet_loss_is_zero_for_separated_classes_and_its_slope_is_finite() -> None:
    """Oracle 5."""
    z = F.normalize(torch.tensor([[1, 0.01], [1, -0.01], [-1, 0.02], [-1, 0]]), dim=-1).requires_grad_()
    y, away = torch.tensor([0, 0, 1, 1]), torch.tensor([[0.0, 1.0]])
    assert float(drs.augmented_triplet(z, y, torch.zeros(0, 2), 1.0).detach()) == 0
    assert float(drs.augmented_triplet(z, y, torch.zeros(0, 2), 2.5).detach()) > 0
    assert float(drs.augmented_triplet(z, y, away, 1.3).detach()) == 0
    loss = drs.augmented_triplet(z, y, away, 1.5)  # an old class at distance sqrt 2 is too near then
    loss.backward()
    assert float(loss.detach()) > 0
    assert bool(z.grad.isfinite().all())
    for labels in ([0, 0, 0, 0], [0, 1, 2, 3]):  # one class; every clip alone in its class
        z.grad = None
        value = drs.augmented_triplet(torch.cat([z[:2], z[:2]]), torch.tensor(labels), torch.zeros(0, 2), 1.0)
        value.backward()
        assert bool(z.grad.isfinite().all())
        assert (float(value.detach()) == 0) == (labels == [0, 0, 0, 0])


# -------------------------------------------------------------------------------------- pairs: sparse start and folding


def test_sparse_b_has_one_small_entry_per_column_and_changes_nothing_else() -> None:
    made = {
        sparse: SessionLoRA(network(), blocks=range(3), targets=KV, rank=40).add(
            torch.Generator().manual_seed(3), sparse=sparse
        )
        for sparse in (False, True)
    }
    assert not any(bool(pair.B.any()) for pair in made[False])
    assert torch.equal(made[False][0].A, made[True][0].A)  # the default's draws come first
    entries = torch.cat([pair.B.detach().sum(0) for pair in made[True]])
    assert all((pair.B != 0).sum(0).tolist() == [1] * 40 for pair in made[True])
    assert float(entries.std()) == pytest.approx(0.01, rel=0.2)
    places = {int(row) for pair in made[True] for row in pair.B.detach().abs().argmax(0)}
    assert len(places) > 48  # of 96 rows, whose choice is random


def folded(network_name: str, pairs: int) -> tuple[SessionLoRA, Callable[[], Tensor]]:
    backbone = network(network_name)
    lora = SessionLoRA(backbone, blocks=range(backbone.depth), targets=KV, rank=3, scale=0.5)
    for t in range(pairs):
        for pair in lora.add(torch.Generator().manual_seed(t), sparse=True):
            with torch.no_grad():
                pair.B.add_(0.2 * torch.randn(pair.B.shape, generator=torch.Generator().manual_seed(50 + t)))
    x = torch.randn(3, FRAMES, backbone.front_end.n_mels, generator=torch.Generator().manual_seed(5))
    return lora, lambda: backbone.features(x).detach()


@both_networks
def test_folding_keeps_the_sum_the_subtraction_and_the_state(network_name: str) -> None:
    lora, features = folded(network_name, 3)
    plain, before = weights(lora.backbone), features()
    with lora.subtracted(lora.names):
        below = features()
    lora.fold()
    assert lora.names == ("sum",)
    torch.testing.assert_close(features(), before, rtol=0, atol=1e-5)
    with lora.subtracted(lora.names):
        torch.testing.assert_close(features(), below, rtol=0, atol=1e-5)
    assert float((before - below).abs().max()) > 1e-2
    assert weights(lora.backbone) == plain
    assert not any(p.requires_grad for p in lora.backbone.parameters())
    assert all(key.endswith(".B") for key in lora.state_dict())
    assert not any("s0" in key for key in lora.backbone.state_dict())

    # A new pair trains alone beside the sum, and both come back from the state bit for bit.
    for pair in lora.add(torch.Generator().manual_seed(9), sparse=True):
        assert pair.A.requires_grad
    assert lora.names == ("sum", "s0")
    assert sum(p.requires_grad for p in lora.backbone.parameters()) == 2 * len(KV) * lora.backbone.depth
    again = SessionLoRA(network(network_name), blocks=lora.blocks, targets=KV, rank=3, scale=0.5)
    again.load_state_dict(lora.state_dict())
    x = torch.randn(2, FRAMES, lora.backbone.front_end.n_mels)
    for _ in range(2):
        assert again.names == lora.names
        assert bytes_of(again.state_dict()) == bytes_of(lora.state_dict())
        assert torch.equal(again.backbone.features(x), lora.backbone.features(x))
        again.fold()
        lora.fold()


def test_folding_nothing_does_nothing() -> None:
    lora = SessionLoRA(network(), blocks=(0,), targets=KV, rank=2)
    lora.fold()
    assert lora.names == ()
    assert lora.state_dict() == {}


def test_long_streams_keep_a_sum_instead_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 20 of 96: after the third session the pairs would hold more numbers than their sum."""
    short = learn(build(rank=20), 0, 1)
    assert short.lora.names == ("s0", "s1")
    long = learn(build(rank=20), 0, 1, 2)
    assert long.lora.names == ("sum",)
    monkeypatch.setattr(SessionLoRA, "fold", lambda self: None)
    unfolded = learn(build(rank=20), 0, 1, 2)
    mel = probe(long)
    torch.testing.assert_close(scores(long, mel), scores(unfolded, mel), rtol=0, atol=1e-5)
    assert kept_bytes(long.state_dict()) < kept_bytes(unfolded.state_dict())


# ------------------------------------------------------------------------------------------- subtraction and projection


def subspaces_of(method: Any, t: int) -> dict[int, Tensor]:
    """V_k per block of what the subtracted network sees of session t, by hand on merged weights."""
    backbone = network("eat-tiny" if method.backbone.network == "eat" else "whisper-tiny-random")
    for name in method.lora.names:
        for pair in method.lora.pairs(name):
            with torch.no_grad():
                getattr(backbone.blocks[pair.block].attn, pair.projection).weight.sub_(pair.B @ pair.A)
    batches = (clips for clips, _ in opened(t, backbone).batches(5))
    seen = attention_covariances(backbone, batches, range(backbone.depth))
    return {block: leading_subspace(C, method.config.energy) for block, C in seen.items()}


@both_networks
@pytest.mark.parametrize("norm", ["fro", "none"])
def test_steps_stay_inside_the_subspace(network_name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle 2, and the projector is V V^T / sqrt k (spectral norm 1 / sqrt k)."""
    fits = Fits(monkeypatch)
    method = learn(build(network(network_name), projection_norm=norm, epochs=3), 0)
    V = subspaces_of(method, 1)
    learn(method, 1)
    first, second = fits.given
    assert first["projectors"] == {}  # session 0 is free
    ends = {
        id(now): (now, start) for now, start in zip(second["groups"][0].parameters, second["start"][0], strict=True)
    }
    assert len(second["projectors"]) == len(ends)
    for pair in method.lora.pairs("s1"):
        basis = V[pair.block].float()
        width, k = basis.shape
        assert 0 < k < width
        outside = torch.eye(width) - basis @ basis.T
        moved_A, moved_B = ((now - start).detach() for now, start in (ends[id(pair.A)], ends[id(pair.B)]))
        assert float(moved_A.abs().max()) > 1e-3
        assert float(moved_B.abs().max()) > 1e-3
        assert float((moved_A @ outside).abs().max()) < 1e-5
        assert float((outside @ moved_B).abs().max()) < 1e-5
        for P in (second["projectors"][pair.A](torch.eye(width)), second["projectors"][pair.B](torch.eye(width))):
            largest = torch.linalg.matrix_norm(P, ord=2)
            assert float(largest) == pytest.approx(k**-0.5 if norm == "fro" else 1.0, rel=1e-4)
    assert method.context.report.notes["subspace_dims"] == [V[block].shape[1] for block in method.lora.blocks]


def test_it_is_adams_update_that_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step: Adam moves every entry by lr * g / (|g| + 1e-8); projecting the gradient first would differ."""
    fits = Fits(monkeypatch)
    method = learn(build(), 0)
    method.config = config_of(epochs=1, batch_size=12, lr=0.01)
    gradients: list[Tensor] = []

    class Watch(Fits):
        def __call__(self, part: Session, groups: Any, loss: Any, recipe: Any, context: Any, **options: Any) -> Any:
            clips, y = next(part.batches(12, shuffle=context.generator("clip order", options["stage"], part.index)))
            value = loss(clips, y)
            gradients.extend(torch.autograd.grad(value, groups[0].parameters))
            return super().__call__(part, groups, loss, recipe, context, **options)

    fits = Watch(monkeypatch)
    learn(method, 1)
    (record,) = fits.given
    for p, start, g in zip(record["groups"][0].parameters, record["start"][0], gradients, strict=True):
        update = -0.01 * g / (g.abs() + 1e-8)
        want = record["projectors"][p](update)
        got = (p - start).detach()
        # Entries whose gradient is rounding noise may take the other sign; all others agree.
        assert float((got - want).norm()) < 0.1 * float(want.norm())
        other = -0.01 * torch.sign(record["projectors"][p](g))
        assert float((got - other).norm()) > 0.5 * float(got.norm())


@both_networks
def test_without_old_pairs_the_subtracted_network_is_the_plain_one(network_name: str) -> None:
    """Oracle 1: pairs whose B is zero subtract nothing."""
    method = learn(build(network(network_name)), 0)
    for pair in method.lora.pairs("s0"):
        with torch.no_grad():
            pair.B.zero_()
    part = opened(1, method.backbone)
    with method.lora.subtracted(method.lora.names):
        batches = (clips for clips, _ in part.batches(64))
        seen = attention_covariances(method.backbone, batches, method.lora.blocks)
    batches = (clips for clips, _ in part.batches(64))
    plain = attention_covariances(network(network_name), batches, method.lora.blocks)
    for block in method.lora.blocks:
        torch.testing.assert_close(seen[block], plain[block], rtol=1e-6, atol=1e-8)


def test_full_energy_without_norm_is_plain_adam() -> None:
    """Oracle 6."""
    free = learn(build(projection="none"), 0, 1).state_dict()["lora"]
    full = learn(build(energy=1.0, projection_norm="none"), 0, 1).state_dict()["lora"]
    kept = learn(build(energy=0.9, projection_norm="none"), 0, 1).state_dict()["lora"]
    for key in free:
        torch.testing.assert_close(full[key], free[key], rtol=0, atol=1e-5)
    assert any(float((kept[key] - free[key]).abs().max()) > 1e-4 for key in free)


@both_networks
def test_older_pairs_and_pretrained_weights_never_move(network_name: str) -> None:
    """Oracle 3; only the newest pair is trained, and after a session nothing is."""
    method = build(network(network_name))
    pretrained, kept = weights(method.backbone), {}
    for t in range(3):
        learn(method, t)
        state = bytes_of(method.state_dict()["lora"])
        assert {key: state[key] for key in kept} == kept
        assert len(state) - len(kept) == 4 * method.backbone.depth
        assert weights(method.backbone) == pretrained
        assert not any(p.requires_grad for p in method.backbone.parameters())
        kept = state


@both_networks
def test_merged_weights_give_the_same_scores(network_name: str) -> None:
    """Oracle 4: W_0 + sum B A in a plain network."""
    method = learn(build(network(network_name)), 0, 1, 2)
    plain = network(network_name)
    for name in method.lora.names:
        for pair in method.lora.pairs(name):
            with torch.no_grad():
                getattr(plain.blocks[pair.block].attn, pair.projection).weight.add_(pair.B @ pair.A)
    mel = probe(method)
    torch.testing.assert_close(plain.features(mel), method.encode(Clips(mel)), rtol=0, atol=1e-5)
    torch.testing.assert_close(method.classify(plain.features(mel)), scores(method, mel), rtol=0, atol=1e-5)
    assert float((network(network_name).features(mel) - plain.features(mel)).detach().abs().max()) > 1e-2


# -------------------------------------------------------------------------------------------------- loss, recipe, means


def test_loss_is_local_cross_entropy_and_triplets_against_stored_means(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps: list[float] = []

    class Watch(Fits):
        def __call__(self, part: Session, groups: Any, loss: Any, recipe: Any, context: Any, **options: Any) -> Any:
            clips, y = next(part.batches(7))
            weight, bias = (p.detach() for p in groups[1].parameters)
            features = method.backbone.features(clips.mel).detach()
            old = F.normalize(method.head.means, dim=-1).float() if method.head.num_classes else torch.zeros(0, 96)
            assert len(old) == 2 * part.index
            atl = literal_triplet(F.normalize(features, dim=-1), y.tolist(), old, 1.5)
            want = float(F.cross_entropy(F.linear(features, weight, bias), y - 2 * part.index)) + 0.3 * atl
            gaps.append(float(loss(clips, y).detach()) - want)
            return super().__call__(part, groups, loss, recipe, context, **options)

    method = build(triplet=0.3, margin=1.5)
    Watch(monkeypatch)
    learn(method, 0, 1, 2)
    assert gaps == [pytest.approx(0, abs=1e-4)] * 3


def test_recipe_groups_and_the_start_of_b(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Fits(monkeypatch)
    method = learn(build(first_epochs=3, epochs=1, lr=0.004, lr_head=0.007), 0, 1)
    assert [record["recipe"].epochs for record in fits.given] == [3, 1]
    for record in fits.given:
        recipe = record["recipe"]
        assert (recipe.optimiser, recipe.schedule, recipe.weight_decay, recipe.clip) == ("adam", "coda", 0.0, None)
        assert [group.lr for group in record["groups"]] == [0.004, 0.007]
        assert [len(group.parameters) for group in record["groups"]] == [4 * method.backbone.depth, 2]
        # Sparse B: B A is small, but not zero, from the start.
        B = [start for start in record["start"][0] if start.shape[0] == method.backbone.dim]
        assert all((start != 0).sum(0).tolist() == [1, 1, 1] for start in B)
        # Everything declared has moved.
        for group, starts in zip(record["groups"], record["start"], strict=True):
            assert not any(torch.equal(p, start) for p, start in zip(group.parameters, starts, strict=True))
    given: list[int] = []
    monkeypatch.setattr(drs, "fit", lambda part, groups, loss, recipe, *_, **__: given.append(recipe.epochs) or [0.0])
    learn(build(epochs=None), 0, 1)
    assert given == [2, 2]  # the stream's E_0


def test_presets_are_the_published_recipes() -> None:
    def made(**changes: Any) -> Any:
        return config.build(drs.LoRADRSConfig, "esc50", changes, owner="lora-drs")

    assert made() == drs.LoRADRSConfig() == made(preset="audio")
    plain, other = made(preset="cifar100"), made(preset="imagenet-r")
    assert (plain.rank, plain.lr, plain.batch_size, plain.energy, plain.projection_norm) == (10, 5e-4, 128, 0.99, "fro")
    assert (plain.epochs, plain.first_epochs, plain.lr_head, plain.triplet, plain.margin) == (20, None, 2e-3, 0.05, 1.0)
    assert (other.epochs, other.first_epochs, other.lr_head, other.triplet, other.margin) == (50, 40, 5e-4, 0.2, 2.0)
    with pytest.raises(UnknownNameError, match="preset of lora-drs"):
        made(preset="cifar")


@both_networks
def test_means_are_taken_once_and_never_refreshed(network_name: str) -> None:
    method = learn(build(network(network_name)), 0)
    mel, labels = clips_of((0, 1), method.backbone)
    features = method.encode(Clips(mel)).double()
    want = torch.stack([features[torch.from_numpy(labels) == c].mean(0) for c in (0, 1)])
    torch.testing.assert_close(method.head.means, want, rtol=1e-6, atol=1e-6)
    first = method.head.means
    learn(method, 1, 2)
    assert torch.equal(method.head.means[:2], first)
    assert float((method.encode(Clips(mel)).double() - features).abs().max()) > 1e-3  # although the network moved
    some = probe(method)
    f = method.encode(Clips(some)).double()
    want = F.normalize(f, dim=-1) @ F.normalize(method.head.means, dim=-1).T
    torch.testing.assert_close(scores(method, some), want, rtol=1e-9, atol=1e-9)


def test_training_lowers_the_loss_and_learns_the_classes() -> None:
    first, last = (learn(build(epochs=epochs), 0).context.report.notes["train_loss"] for epochs in (1, 8))
    assert last < 0.5 * first
    method = learn(build(epochs=8), 0)
    mel, labels = clips_of((0, 1), method.backbone, per_class=8, seed=5)
    assert float((scores(method, mel).argmax(1) == torch.from_numpy(labels)).double().mean()) > 0.9
    assert method.context.report.notes["train_accuracy"] == 1.0


# --------------------------------------------------------------------------------------------------- interface and runs


@both_networks
@pytest.mark.parametrize(
    ("stream", "per_class", "rank"), [(SESSIONS, 6, 3), (UNEVEN, 6, 3), (UNEVEN, 1, 3), (SESSIONS, 6, 40)]
)
def test_audits_state_and_resume(network_name: str, stream: Any, per_class: int, rank: int) -> None:
    """Uneven sessions, a session of one class, classes of one clip, folded pairs (rank 40): all resume exactly."""

    def made() -> Any:
        return build(network(network_name), rank=rank, epochs=1)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    method, broken = made(), made()
    mel = clips_of(ALL, method.backbone, per_class=11, seed=99)[0][:64]
    for t in range(3):
        learn(method, t, stream=stream, per_class=per_class)
        learn(broken, t, stream=stream, per_class=per_class)
        buffer = io.BytesIO()
        torch.save(broken.state_dict(), buffer)
        buffer.seek(0)
        broken = made()
        broken.load_state_dict(torch.load(buffer, weights_only=True))
        assert bytes_of(broken.state_dict()) == bytes_of(method.state_dict())
        assert torch.equal(scores(broken, mel), scores(method, mel))
        assert method.num_seen == max(stream[t]) + 1
        assert method.lora.names == broken.lora.names
    assert ("sum" in method.lora.names) == (rank == 40)
    assert torch.equal(torch.get_rng_state(), before)
    assert (broken.num_seen, broken.encoder_version) == (method.num_seen, method.encoder_version) == (6, 3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    checks = [
        audit.batch_independence(method, mel, batch_sizes=(1, 7, 64), seed_order=order),
        audit.repeatability(method, mel),
        audit.seen_classes_only(method, mel, 6),
        audit.state_is_complete(method, made, mel),
    ]
    assert [check.name for check in checks if not check.passed] == []


def test_seeds_decide_everything() -> None:
    method, twin, other = (learn(build(seed=seed), 0, 1) for seed in (0, 0, 1))
    assert bytes_of(twin.state_dict()) == bytes_of(method.state_dict())
    assert bytes_of(other.state_dict()) != bytes_of(method.state_dict())


class StopError(Exception):
    """Ends a run after a session, as a kill would."""


class Stops(Log):
    """A monitor that ends the run once the second session is saved."""

    def session_done(self, session: int, accuracy: float) -> None:
        super().session_done(session, accuracy)
        if session == 1:
            raise StopError


def test_a_run_resumes_to_the_same_result_and_measures_drift(tiny_material: Material, tmp_path: Path) -> None:
    plan = Plan(drs.LoRADRS, config_of(epochs=2, lr=0.02), 0, measure_drift=True)
    straight, broken = ResultsDir(tmp_path / "straight"), ResultsDir(tmp_path / "broken")
    execute(plan, tiny_material, straight)
    with pytest.raises(StopError):
        execute(plan, tiny_material, broken, monitor=Stops())
    log = Log()
    identity, status = execute(plan, tiny_material, broken, monitor=log)
    assert (status, log.started) == ("done", [(3, 2)])
    first, second = (results.run(identity) for results in (straight, broken))
    assert first["audit_passed"]
    assert second["audit_passed"]
    for name in ("final_accuracy", "fresh_final_accuracy"):
        assert first[name] == second[name]
        assert 0 <= first[name] <= 100
    predictions = [results.predictions(identity)["predicted"].tolist() for results in (straight, broken)]
    assert predictions[0] == predictions[1]


# ---------------------------------------------------------------------------------------------------------- real speech


class Losses(SilentReporter):
    """Keeps the mean loss of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[float] = []

    def epoch(self, stage: str, epoch: int, epochs: int, clips: int, loss: float) -> None:
        self.history.append(loss)


@pytest.mark.slow
def test_it_learns_two_speakers_on_real_speech(shared: Callable[..., Path]) -> None:
    """Whisper, 24 words of two speakers, 12 unheard words: the loss falls, and a linear probe is hardly better."""
    backbone = backbones.load(str(shared("weights", "whisper-tiny.en-encoder")), frames=100)
    files = sorted(shared("data", "arabic_speech_commands").glob("*/*_NO_01.ogg"))
    speakers = sorted({path.name.split("_")[0] for path in files})[:2]
    paths = [path for name in speakers for path in [p for p in files if p.name.split("_")[0] == name][:36]]
    mel = backbone.front_end.batch([backbone.front_end.extract(audio.load(path)) for path in paths])
    labels, held_out = np.repeat([0, 1], 36), np.tile(np.arange(36) >= 24, 2)
    features = backbone.features(mel).numpy()
    probe = LogisticRegression(max_iter=1000).fit(features[~held_out], labels[~held_out])
    context = Context(0, StreamInfo("speakers", 1, 2, first_session_epochs=10), report=Losses())
    method = drs.LoRADRS(config_of(rank=10, epochs=10, batch_size=8, lr=5e-4, lr_head=2e-3), backbone, context)
    part = Session(0, (0, 1), 0, labels[~held_out], reader(mel[torch.from_numpy(~held_out)]), CPU)
    method.learn(part)
    right = scores(method, mel[torch.from_numpy(held_out)]).argmax(1).numpy() == labels[held_out]
    history = method.context.report.history
    assert history[-1] < 0.7 * history[0]
    assert right.mean() > probe.score(features[held_out], labels[held_out]) - 0.15
