"""L2P against plain prompt tuning and its own algebra; what may move in a session; what a run of it costs."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from learners import CPU, NETWORKS, SESSIONS, bytes_of, clips_of, learn, network, reader, session, weights
from probes import open_material, plan_of
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import audit, config, registry
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips, Context, Session, StreamInfo, require_storable
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import execute
from audiocl_bench.training import Group

registry.names()  # makes audiocl_methods importable in a clone that was not installed

import audiocl_methods.l2p as l2p  # noqa: E402
from audiocl_methods.l2p import L2P, L2PConfig, key_match, scaled_rate, uniform  # noqa: E402

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
QUICK: dict[str, Any] = {"pool": 6, "length": 2, "top_k": 2, "epochs": 1, "batch_size": 6, "lr": 0.01, "lr_batch": None}
TRAIN, TEST = 12, 4  # clips of every session of the tiny benchmark


def made(backbone: Backbone | None = None, *, seed: int = 0, **settings: Any) -> L2P:
    values = config.build(L2PConfig, "tiny", {**QUICK, **settings}, owner="l2p")
    context = Context(seed, StreamInfo("tiny", len(SESSIONS), 6, first_session_epochs=2))
    return L2P(values, network() if backbone is None else backbone, context)


def probe(method: L2P, per_class: int = 4) -> Tensor:
    return clips_of((0, 1, 2, 3, 4, 5), method.backbone, per_class=per_class, seed=99)[0]


def scores(method: L2P, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


def trainable(method: L2P) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(method.prompts.clone()), nn.Parameter(method.keys.clone())


class Seen:
    """What `fit` was given, and the loss of one batch under it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[tuple[Group, ...]] = []
        self.recipes: list[Any] = []
        self.losses: list[Any] = []
        real = l2p.fit

        def spy(part: Session, groups: Any, loss: Any, recipe: Any, context: Context, **options: Any) -> list[float]:
            self.groups.append(tuple(groups))
            self.recipes.append(recipe)
            clips, labels = next(part.batches(5))
            self.losses.append(
                (clips, labels, loss(clips, labels).detach(), [p.detach().clone() for p in groups[0].parameters])
            )
            return real(part, groups, loss, recipe, context, **options)

        monkeypatch.setattr(l2p, "fit", spy)


# ---------------------------------------------------------------------------------------- oracles of methods.md 2.1


@both_networks
def test_one_prompt_is_plain_shallow_prompt_tuning(network_name: str) -> None:
    """Oracle 1: M = 1, top_k = 1, lambda = 0: outputs and prompt gradients."""
    method = made(network(network_name), pool=1, top_k=1, length=3, pull=0)
    backbone, mel = method.backbone, probe(method)[:6]
    prompts, keys = trainable(method)
    features, _ = method.prompted(mel, method.query(mel), prompts, keys)

    plain = nn.Parameter(method.prompts[0].clone())
    tokens = torch.cat([plain.expand(len(mel), -1, -1), backbone.tokens(mel)], dim=1)
    want = backbone.run(tokens)[:, :3].mean(1)
    torch.testing.assert_close(features, want, rtol=0, atol=1e-6)
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    (features * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(prompts.grad[0], plain.grad, rtol=1e-4, atol=1e-6)
    assert float(plain.grad.abs().max()) > 0


@both_networks
def test_only_chosen_prompts_and_keys_get_a_gradient(network_name: str) -> None:
    """Oracle 2."""
    method = made(network(network_name), pool=24)
    mel = probe(method)[:4]
    prompts, keys = trainable(method)
    queries = method.query(mel)
    features, match = method.prompted(mel, queries, prompts, keys)
    (features.square().sum() - 0.7 * match).backward()
    chosen = (queries @ F.normalize(keys.detach(), dim=1).T).topk(2).indices.unique()
    others = sorted(set(range(24)) - set(chosen.tolist()))
    assert 2 <= len(chosen) <= 8
    for gradient in (prompts.grad, keys.grad):
        assert not gradient[others].any()
        assert all(bool(gradient[m].any()) for m in chosen)


def test_the_match_moves_keys_alone() -> None:
    """Oracle 3: no gradient of R reaches prompts, queries carry none."""
    method = made()
    mel = probe(method)
    prompts, keys = trainable(method)
    queries = method.queries(Clips(mel))
    assert not queries.requires_grad
    assert not method.session_queries(session(0, method.backbone)).requires_grad
    _, match = method.prompted(mel, queries, prompts, keys)
    got = torch.autograd.grad(match, (prompts, keys), allow_unused=True)
    assert got[0] is None
    assert bool(got[1].any())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_match_lies_between_minus_k_and_k(k: int) -> None:
    """Oracle 4: R = k where the k chosen keys are the query, -k where all keys are opposite to it."""
    method = made(pool=5, top_k=k)
    mel = probe(method)[:1]
    query = method.query(mel)
    keys = torch.cat([torch.tensor([[1.0], [7.0], [0.1]][:k]) * query, -query.expand(5 - k, -1)])
    _, match = method.prompted(mel, query, method.prompts, keys)
    assert float(match) == pytest.approx(k, abs=1e-5)
    _, match = method.prompted(mel, query, method.prompts, -query.expand(5, -1))
    assert float(match) == pytest.approx(-k, abs=1e-5)


def test_the_match_sums_over_prompts_and_averages_over_clips() -> None:
    similarity = torch.tensor([[0.5, 0.25, -1.0], [0.0, 0.75, 0.5]])
    assert float(key_match(similarity, torch.tensor([[0, 1], [1, 2]]))) == pytest.approx((0.75 + 1.25) / 2)


def test_a_step_on_the_match_raises_the_chosen_cosines() -> None:
    """Oracle 5: one step of SGD on -R alone."""
    method = made()
    mel = probe(method)
    queries, (prompts, keys) = method.query(mel), trainable(method)
    _, before = method.prompted(mel, queries, prompts, keys)
    (-before).backward()
    with torch.no_grad():
        keys -= 0.01 * keys.grad
    _, after = method.prompted(mel, queries, prompts, keys)
    assert float(after.detach()) > float(before.detach())


@pytest.mark.parametrize("scale", [0.01, 3.0, 1e4])
def test_the_scale_of_queries_and_keys_is_nothing(scale: float) -> None:
    """Oracle 6."""
    method = made()
    mel = probe(method)
    query = method.query(mel)
    features, match = method.prompted(mel, query, method.prompts, method.keys)
    for q, k in ((scale * query, method.keys), (query, scale * method.keys)):
        again, rescaled = method.prompted(mel, q, method.prompts, k)
        assert torch.equal(again, features)
        assert float(rescaled) == pytest.approx(float(match), abs=1e-5)


def spread(method: L2P) -> L2P:
    """Let the clips of different classes choose different prompts: keys are queries of one clip each."""
    mel = clips_of((0, 1, 2, 3, 4, 5), method.backbone, per_class=1, seed=4)[0]
    queries = method.query(mel)
    method.keys = queries - queries.mean(0)
    return method


@both_networks
@pytest.mark.parametrize("selection", ["instance", "batch"])
def test_a_clips_result_depends_on_its_batch_only_where_asked(network_name: str, selection: str) -> None:
    """Oracle 7 (section 1.4) at batch 1, 7 and 17; the published selection fails it and is marked."""
    method = spread(learn(made(network(network_name), selection=selection), 0, 1, 2))
    mel = probe(method)[:17]
    order = torch.randperm(len(mel), generator=torch.Generator().manual_seed(1))
    check = audit.batch_independence(method, mel, seed_order=order)
    assert check.passed == (selection == "instance"), check.detail
    assert method.leaks_across_batch == (selection == "batch")
    assert audit.repeatability(method, mel).passed
    alone = torch.cat([method.encode(Clips(clip[None])) for clip in mel[:8]])
    assert torch.allclose(alone, method.encode(Clips(mel))[:8], atol=1e-5) == (selection == "instance")


def test_results_stay_independent_at_the_runners_batch_of_64() -> None:
    method = spread(learn(made(), 0, 1, 2))
    mel = probe(method, per_class=11)
    order = torch.randperm(len(mel), generator=torch.Generator().manual_seed(1))
    assert audit.batch_independence(method, mel, batch_sizes=(64,), seed_order=order).passed


# -------------------------------------------------------------------------------------------- what a session may move


@both_networks
def test_one_step_moves_the_chosen_prompts_their_keys_and_the_new_rows(network_name: str) -> None:
    """Section 1.5 a and c: in a first step nothing else moves, because the optimiser is new."""
    method = learn(made(network(network_name), pool=24), 0)
    pretrained = weights(method.backbone)
    prompts, keys, head = method.prompts.clone(), method.keys.clone(), method.head.state_dict()
    part = session(1, method.backbone)
    similarity = F.normalize(method.session_queries(part), dim=1) @ F.normalize(keys, dim=1).T
    chosen = set(similarity.topk(2).indices.flatten().tolist())
    method.config = dataclasses.replace(method.config, batch_size=part.num_clips)
    method.learn(part)
    for before, after in ((prompts, method.prompts), (keys, method.keys)):
        moved = {m for m in range(24) if not torch.equal(before[m], after[m])}
        assert moved == chosen
    assert 0 < len(chosen) < 24
    assert bytes_of(method.head.state_dict()["weight"][:2]) == bytes_of(head["weight"])
    assert bytes_of(method.head.state_dict()["bias"][:2]) == bytes_of(head["bias"])
    assert weights(method.backbone) == pretrained
    assert not any(parameter.requires_grad for parameter in method.backbone.parameters())


def test_the_pool_is_shared_by_all_sessions() -> None:
    method = learn(made(pool=2), 0)
    before = method.prompts.clone()
    learn(method, 1)
    assert not torch.equal(method.prompts, before)


def test_own_slots_are_trained_by_their_session_only() -> None:
    """The 5-datasets configuration: session t has prompts t k to (t+1) k, and when the pool is used up it is shared."""
    method = made(pool=5, top_k=2, slots="own", lr=0.1, epochs=2)
    start = method.prompts.clone(), method.keys.clone()
    learn(method, 0)
    first = method.prompts.clone(), method.keys.clone()
    for before, after in zip(start, first, strict=True):
        assert [torch.equal(before[m], after[m]) for m in range(5)] == [False, False, True, True, True]
    learn(method, 1)
    second = method.prompts.clone(), method.keys.clone()
    for before, after in zip(first, second, strict=True):
        assert [torch.equal(before[m], after[m]) for m in range(5)] == [True, True, False, False, True]
    learn(method, 2, per_class=10)  # 6 > 5: the mask is off, and prompts of earlier sessions move again
    assert any(not torch.equal(second[0][m], method.prompts[m]) for m in range(4))


def test_own_slots_start_as_a_copy_of_the_last_sessions() -> None:
    """Nothing is trained (rate 0), so the copy stands alone; keys are not copied, a shared pool is not touched."""
    for slots in ("own", "shared"):
        method = made(pool=6, slots=slots, lr=0.0)
        start, keys = method.prompts.clone(), method.keys.clone()
        learn(method, 0)
        assert torch.equal(method.prompts, start)
        learn(method, 1, 2)
        want = torch.cat([start[:2]] * 3) if slots == "own" else start
        assert torch.equal(method.prompts, want)
        assert torch.equal(method.keys, keys)


@both_networks
def test_the_loss_is_local_cross_entropy_minus_the_match(network_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = learn(made(network(network_name), pull=0.7), 0)
    prompts, keys = method.prompts.clone(), method.keys.clone()
    seen = Seen(monkeypatch)
    learn(method, 1)
    clips, labels, loss, parameters = seen.losses[0]
    assert torch.equal(parameters[0], prompts)
    assert torch.equal(parameters[1], keys)
    weight, bias = parameters[2:]
    assert weight.shape == (2, method.backbone.dim)
    cosine = F.normalize(method.query(clips.mel), dim=1) @ F.normalize(keys, dim=1).T
    best = cosine.topk(2)
    R = best.values.sum(1).mean()
    tokens = torch.cat([prompts[best.indices].flatten(1, 2), method.backbone.tokens(clips.mel)], dim=1)
    z = method.backbone.run(tokens)[:, :4].mean(1)
    want = F.cross_entropy(F.linear(z, weight, bias), labels - 2) - 0.7 * R
    assert float(loss) == pytest.approx(float(want.detach()), abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("preset", "pool", "lr", "clip"),
    [
        ("jax", (10, 10, 4, 1.0, 0.0, 0.01, "shared"), 0.03 * 16 / 256, 1.0),
        ("jax-5datasets", (20, 10, 4, 0.5, 0.0, 0.01, "own"), 0.03 * 16 / 256, 1.0),
        ("pytorch", (10, 5, 5, 0.1, -1.0, 1.0, "shared"), 0.001875, 1.0),
        ("pilot", (10, 5, 5, 0.1, -1.0, 1.0, "shared"), 0.001875, None),
    ],
)
def test_presets_are_the_published_recipes(
    preset: str, pool: tuple[Any, ...], lr: float, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = config.build(L2PConfig, "esc50", {"preset": preset}, owner="l2p")
    names = ("pool", "length", "top_k", "pull", "init_low", "init_high", "slots")
    assert tuple(getattr(values, name) for name in names) == pool
    assert (values.selection, values.epochs, values.batch_size) == ("instance", 5, 16)
    seen = Seen(monkeypatch)
    context = Context(0, StreamInfo("tiny", 3, 6, 2))
    learn(L2P(dataclasses.replace(values, epochs=1), network(), context), 0)
    (group,) = seen.groups[0]
    assert group.lr == pytest.approx(lr)
    recipe = seen.recipes[0]
    assert (recipe.optimiser, recipe.schedule, recipe.weight_decay, recipe.clip) == ("adam", "constant", 0.0, clip)
    assert (recipe.epochs, recipe.batch_size) == (1, 16)


def test_the_default_is_the_default_preset_and_never_leaks() -> None:
    assert config.build(L2PConfig, "esc50", {}, owner="l2p") == L2PConfig()
    for preset in L2PConfig.sources:
        values = config.build(L2PConfig, "esc50", {"preset": preset}, owner="l2p")
        assert not L2P(values, network(), Context(0, StreamInfo("tiny", 3, 6, 2))).leaks_across_batch


def test_rates_scale_with_the_batch_where_the_source_does_so() -> None:
    assert scaled_rate(0.03, 16, 256) == pytest.approx(0.001875)
    assert scaled_rate(0.03, 128, 256) == pytest.approx(0.015)
    assert scaled_rate(0.001875, 48, None) == 0.001875


def test_epochs_none_means_the_benchmarks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    learn(made(epochs=None), 0)
    assert seen.recipes[0].epochs == 2


def test_prompts_start_uniform_from_the_run_seed() -> None:
    method = made(pool=50, length=10, init_low=-1.0, init_high=3.0, seed=5)
    for values in (method.prompts, method.keys):
        assert -1 <= float(values.min()) < -0.99
        assert 2.99 < float(values.max()) <= 3
        assert float(values.mean()) == pytest.approx(1.0, abs=0.05)
    torch.manual_seed(0)
    assert torch.equal(made(pool=50, length=10, init_low=-1.0, init_high=3.0, seed=5).prompts, method.prompts)
    assert not torch.equal(made(pool=50, length=10, seed=6).prompts, method.prompts)
    assert uniform((2, 3), 1.0, 1.0, torch.Generator()).tolist() == [[1.0] * 3] * 2


def test_more_prompts_than_the_pool_holds_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="'top_k' is 7, but the pool holds 6 prompts"):
        made(top_k=7)


# ------------------------------------------------------------------------------------------------- whole streams


@both_networks
@pytest.mark.parametrize("slots", ["shared", "own"])
def test_the_state_is_complete_and_resume_is_exact(network_name: str, slots: str) -> None:
    unbroken, broken = (made(network(network_name), slots=slots) for _ in range(2))
    mel = probe(unbroken)
    for t in range(3):
        learn(unbroken, t)
        learn(broken, t)
        state = broken.state_dict()
        require_storable(state, owner="l2p")
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        for tensor in (state["prompts"], state["keys"], state["head"]["weight"]):
            tensor.fill_(math.nan)  # what was handed out is a copy
        broken = made(network(network_name), slots=slots)
        broken.load_state_dict(torch.load(buffer, weights_only=True))
        assert bytes_of(broken.state_dict()) == bytes_of(unbroken.state_dict())
        assert torch.equal(scores(broken, mel), scores(unbroken, mel))
        assert scores(broken, mel).shape == (len(mel), 2 * (t + 1))
        assert (broken.num_seen, broken.encoder_version) == (2 * (t + 1), t + 1)


def test_equal_seeds_give_equal_bytes() -> None:
    def outcome(seed: int, noise: int) -> Any:
        torch.manual_seed(noise)
        return bytes_of(learn(made(seed=seed), 0, 1).state_dict())

    assert outcome(0, 1) == outcome(0, 2)
    assert outcome(0, 1) != outcome(1, 1)


@both_networks
def test_sessions_of_any_size_are_learned(network_name: str) -> None:
    """Three classes, then one, then two with a single clip each."""
    method = made(network(network_name), epochs=2)
    known = 0
    for t, (classes, per_class) in enumerate([((0, 1, 2), 3), ((3,), 4), ((4, 5), 1)]):
        mel, labels = clips_of(classes, method.backbone, per_class=per_class)
        method.learn(Session(t, classes, known, labels, reader(mel), CPU))
        known += len(classes)
        assert scores(method, probe(method)).shape == (24, known)
        assert bool(scores(method, probe(method)).isfinite().all())


def test_it_learns_and_says_how_well() -> None:
    method = made(pool=10, length=5, top_k=5, init_low=-1.0, epochs=12, lr=0.01, init_high=1.0)
    first = made(pool=10, length=5, top_k=5, init_low=-1.0, epochs=1, lr=0.01, init_high=1.0)
    learn(method, 0)
    learn(first, 0)
    notes, short = method.context.report.notes, first.context.report.notes
    assert notes["train_loss"] < short["train_loss"] - 0.2
    assert notes["train_accuracy"] > 0.9
    assert 5 <= notes["prompts_used"] <= 10
    mel, labels = clips_of((0, 1), method.backbone, per_class=12, seed=5)
    assert float((scores(method, mel).argmax(1).numpy() == labels).mean()) > 0.9


@both_networks
def test_a_run_takes_queries_once_and_prompted_passes_per_epoch_and_session(
    network_name: str, tiny_benchmark: Any, tiny_home: Any, tmp_path: Any
) -> None:
    """Training: 1 + epochs passes a clip. Test: one query a clip and run, one prompted pass a clip and session."""
    material = open_material(tiny_benchmark, tiny_home, network_name)
    results = ResultsDir(tmp_path / "results")
    identity, status = execute(plan_of(L2P, **{**QUICK, "epochs": 3}), material, results)
    assert status == "done"
    row, sessions = results.run(identity), results.sessions(identity)
    assert row["audit_passed"], row["audit"]
    assert sessions["train_passes"].tolist() == [TRAIN * (1 + 3)] * 3
    assert sessions["eval_passes"].tolist() == [TEST + TEST * (t + 1) for t in range(3)]
    dim, classes = material.backbone.dim, 2
    assert sessions["trainable_parameters"].tolist() == [6 * 2 * dim + 6 * dim + (dim + 1) * classes] * 3
    notes = [json.loads(text) for text in sessions["diagnostics"]]
    assert all(set(note) == {"train_loss", "train_accuracy", "prompts_used"} for note in notes)
    assert np.isfinite([note["train_loss"] for note in notes]).all()
    assert results.recompute(identity) == {}


def test_a_leaky_run_is_marked(tiny_material: Any, tmp_path: Any) -> None:
    results = ResultsDir(tmp_path / "results")
    identity, _ = execute(plan_of(L2P, **QUICK, selection="batch"), tiny_material, results)
    assert not results.run(identity)["audit_passed"]
