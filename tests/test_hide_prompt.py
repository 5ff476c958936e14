"""HiDe-Prompt by its oracles (methods.md sections 1.4, 1.5, 2.4): what each part may change, and what it computes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audiocl_methods import hide_prompt
from audiocl_methods.hide_prompt import HiDePrompt, HiDePromptConfig, ResidualMLP, contrastive
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import CPU, NETWORKS, SESSIONS, bytes_of, clips_of, learn, network, reader, weights
from probes import Log
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import audit
from audiocl_bench import config as settings_of
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError, UnknownNameError
from audiocl_bench.method import Clips, Context, Session, StreamInfo, kept_bytes, require_storable
from audiocl_bench.results import SCORES, ResultsDir
from audiocl_bench.runner import Material, Plan, execute
from audiocl_bench.training import Recipe

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
ALL = tuple(range(6))
QUICK: dict[str, Any] = {
    "length": 3,
    "mixing": 0.1,
    "epochs": 1,
    "schedule": "constant",
    "batch_size": 6,
    "lr": 0.1,
    "regulariser": 0.1,
    "centroids": 2,
    "align_epochs": 2,
    "align_samples": 12,
    "tii_epochs": 10,
    "tii_lr": 0.1,
    "tii_align_lr": 1.0,
    "tii_align_samples": 6,
}
TRAINED = {"epochs": 8, "tii_epochs": 20, "tii_lr": 0.05, "align_epochs": 10, "align_lr": 0.05, "tii_align_lr": 0.3}
"""Enough for the tiny stream to be learnt."""


def config_of(**given: Any) -> HiDePromptConfig:
    return settings_of.build(HiDePromptConfig, "tiny", {**QUICK, **given}, owner="hide-prompt")


def build(backbone: Backbone | None = None, *, seed: int = 0, **given: Any) -> HiDePrompt:
    context = Context(seed, StreamInfo("tiny", len(SESSIONS), 6, first_session_epochs=2))
    return HiDePrompt(config_of(**given), network() if backbone is None else backbone, context)


def probe(method: HiDePrompt, *, per_class: int = 4, seed: int = 99) -> tuple[Tensor, Tensor]:
    mel, labels = clips_of(ALL, method.backbone, per_class=per_class, seed=seed)
    return mel, torch.from_numpy(labels)


def scores(method: HiDePrompt, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


def own_clips(method: HiDePrompt, t: int, *, per_class: int = 6) -> tuple[Tensor, np.ndarray]:
    """The training clips of session t."""
    return clips_of(SESSIONS[t], method.backbone, per_class=per_class)


def notes(method: HiDePrompt) -> dict[str, Any]:
    return method.context.report.notes  # type: ignore[attr-defined]


class Stages:
    """Stands in for `fit` and `fit_samples`: notes what every stage was given and what it changed, and trains."""

    def __init__(self, method: HiDePrompt, monkeypatch: pytest.MonkeyPatch) -> None:
        self.given: dict[tuple[str, int], dict[str, Any]] = {}
        self.method = method
        for name in ("fit", "fit_samples"):
            monkeypatch.setattr(hide_prompt, name, self._spy(getattr(hide_prompt, name)))

    def _spy(self, real: Callable[..., list[float]]) -> Callable[..., list[float]]:
        def spy(source: Any, groups: Any, loss: Any, recipe: Recipe, context: Any, **options: Any) -> list[float]:
            record: dict[str, Any] = {"groups": groups, "recipe": recipe, "loss": loss, "source": source}
            t = source.index if isinstance(source, Session) else options["session"]
            self.given[options["stage"], t] = record
            before = self._everything(groups)
            record["start"] = [[p.detach().clone() for p in group.parameters] for group in groups]
            history = real(source, groups, loss, recipe, context, **options)
            after = self._everything(groups)
            record["changed"] = {name for name in before if before[name] != after[name]}
            record["end"] = [[p.detach().clone() for p in group.parameters] for group in groups]
            record["history"] = history
            return history

        return spy

    def _everything(self, groups: Any) -> dict[str, Any]:
        """The bytes of all that there is: the network, each part of the state, and what is being trained."""
        found: dict[str, Any] = {f"backbone {name}": value for name, value in weights(self.method.backbone).items()}
        for name, value in self.method.state_dict().items():
            found |= {f"{name} {k}": bytes_of(v) for k, v in value.items()} if isinstance(value, dict) else {}
            found |= {} if isinstance(value, dict) else {name: bytes_of(value)}
        for g, group in enumerate(groups):
            found |= {f"group {g} {number}": bytes_of(p) for number, p in enumerate(group.parameters)}
        return found


# ------------------------------------------------------------------------------------------------ the common contract


@both_networks
@pytest.mark.parametrize("tii", ["mlp", "means"])
def test_contract(network_name: str, tii: str) -> None:
    method = build(network(network_name), tii=tii)
    pretrained = weights(method.backbone)
    torch.manual_seed(4321)
    global_draws = torch.get_rng_state()
    mel, _ = probe(method, per_class=11)  # 66 clips: more than one batch of 64
    for t in range(3):
        learn(method, t)
        logits = scores(method, mel)
        assert method.num_seen == logits.shape[1] == 2 * (t + 1)
        assert bool(logits.isfinite().all())
        assert not logits.requires_grad
        assert method.encoder_version == t + 1
        assert not any(p.requires_grad for p in (*method.backbone.parameters(), *method.mlp.parameters()))
        assert not any(p.requires_grad for head in (method.head, method.tii_head) for p in (head.weight, head.bias))
    assert torch.equal(torch.get_rng_state(), global_draws)
    assert weights(method.backbone) == pretrained
    assert len(set(method.infer_sessions(method.query(mel)).flatten().tolist())) > 1, "the audit needs mixed prompts"

    order = torch.randperm(len(mel), generator=torch.Generator().manual_seed(0))
    state = bytes_of(method.state_dict())
    checks = [
        audit.batch_independence(method, mel, batch_sizes=(1, 7, 64), seed_order=order),
        audit.repeatability(method, mel),
        audit.seen_classes_only(method, mel, 6),
        audit.state_is_complete(method, lambda: build(network(network_name), tii=tii), mel),
    ]
    assert {check.name: check.passed for check in checks} == dict.fromkeys(
        ["batch_independence", "repeatability", "seen_classes_only", "state_is_complete"], True
    ), checks
    assert bytes_of(method.state_dict()) == state
    assert not method.leaks_across_batch


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    require_storable(state, owner="hide-prompt")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)


@both_networks
@pytest.mark.parametrize("statistics", ["multi-centroid", "covariance", "variance"])
def test_resume_after_any_session_is_bit_exact(network_name: str, statistics: str) -> None:
    unbroken = build(network(network_name), statistics=statistics)
    broken = build(network(network_name), statistics=statistics)
    for t in range(3):
        learn(unbroken, t)
        learn(broken, t)
        state = through_a_file(broken.state_dict())
        broken = build(network(network_name), statistics=statistics)
        broken.load_state_dict(state)
        assert bytes_of(broken.state_dict()) == bytes_of(unbroken.state_dict())
    other = learn(build(network(network_name), seed=1, statistics=statistics), 0, 1, 2)
    assert bytes_of(other.state_dict()) != bytes_of(unbroken.state_dict())


def test_the_state_is_a_copy_and_counts_what_is_kept() -> None:
    method = learn(build(), 0, 1)
    before = bytes_of(method.state_dict())

    def scribble(state: Any) -> None:
        if isinstance(state, Tensor):
            state.zero_()
        elif isinstance(state, dict):
            for value in state.values():
                scribble(value)

    scribble(method.state_dict())
    assert bytes_of(method.state_dict()) == before
    dim, sessions, classes, blocks, length = 96, 2, 4, 3, 3
    floats = 2 * blocks * sessions * length * dim  # prompts
    floats += 2 * classes * (dim + 1)  # two heads
    floats += dim * 2 * dim + 2 * dim + 2 * dim * dim + dim + 2 * dim  # MLP with its LayerNorm
    statistics = 2 * 2 * classes * (2 * dim + 2) * 8  # two sets, two centroids each: mean, variance, class, size
    assert kept_bytes(method.state_dict()) == 4 * floats + statistics + 8 * (classes + 2)


def test_the_published_gather_leaks_fails_the_audit_and_is_marked() -> None:
    """Oracle 1 fails on the official code: keys and values are swapped, and clips get their neighbours' prompts."""
    honest, leaky = build(), build(gather="published")
    assert leaky.leaks_across_batch
    mel, _ = probe(honest)
    order = torch.randperm(len(mel), generator=torch.Generator().manual_seed(0))
    found = {}
    for name, method in (("honest", honest), ("leaky", leaky)):
        learn(method, 0, 1, 2)
        found[name] = audit.batch_independence(method, mel, seed_order=order).passed
    assert found == {"honest": True, "leaky": False}

    # What a clip gets there, by hand: in a batch of two, clip 0 has both clips' keys, clip 1 both clips' values.
    sessions = torch.tensor([[0], [2]])
    pool = leaky.pool[:, :, sessions[:, 0]]  # [n, 2, B, P, H, D/H]
    swapped = {b: (pool[i].flatten(0, 1)[[0, 2]], pool[i].flatten(0, 1)[[1, 3]]) for i, b in enumerate(leaky.blocks)}
    prefix = {b: (keys.transpose(1, 2), values.transpose(1, 2)) for b, (keys, values) in swapped.items()}
    want = leaky.backbone.pooled(leaky.backbone.run(leaky.backbone.tokens(mel[:2]), prefix=prefix))
    torch.testing.assert_close(leaky.prompted(mel[:2], sessions), want)


# ----------------------------------------------------------------------------------- what each part trains (1.5, 2, 7)


@both_networks
def test_each_stage_changes_exactly_what_it_declares(network_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TII: MLP and new rows. WTP: slot and new rows. Alignments: TII's MLP and head; the head alone (oracle 7)."""
    method = build(network(network_name))
    stages = Stages(method, monkeypatch)
    learn(method, 0, 1, 2)
    mlp = {f"mlp {name}" for name, _ in method.mlp.named_parameters()}
    for t in range(3):
        expected = {"tii": mlp, "prompt": set()}
        if t:
            expected |= {
                "tii align": mlp | {"tii_head weight", "tii_head bias"},
                "align": {"head weight", "head bias"},
            }
        assert {stage for stage, session in stages.given if session == t} == set(expected)
        for stage, state in expected.items():
            record = stages.given[stage, t]
            sizes = [len(group.parameters) for group in record["groups"]]
            trained = {f"group {g} {k}" for g, size in enumerate(sizes) for k in range(size)}
            assert record["changed"] == state | trained, (stage, t)
    assert [len(g.parameters) for g in stages.given["prompt", 1]["groups"]] == [1, 2]
    heads = method.backbone.num_heads
    slot = stages.given["prompt", 1]["groups"][0].parameters[0]
    assert slot.shape == (len(method.blocks), 2, 3, heads, method.backbone.dim // heads)


def test_slots_of_other_sessions_and_kept_statistics_stay_to_the_byte() -> None:
    """Oracle 2, with weight decay on: it would shrink a frozen row whose gradient is zero."""
    method = build(weight_decay=0.1)
    learn(method, 0)
    kept = []
    for t in (1, 2):
        kept.append((method.pool[:, :, -1].clone(), *map(method.statistics.components, SESSIONS[t - 1])))
        learn(method, t)
        assert method.pool.shape[2] == t + 1
        for earlier, (slot, *components) in enumerate(kept):
            assert bytes_of(method.pool[:, :, earlier]) == bytes_of(slot)
            for c, (mean, covariance) in zip(SESSIONS[earlier], components, strict=True):
                now = method.statistics.components(c)
                assert torch.equal(now[0], mean)
                assert torch.equal(now[1], covariance)
    assert not torch.equal(method.pool[:, :, 1], method.pool[:, :, 0])


def test_optimisers_are_rebuilt_for_every_session(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[torch.optim.Optimizer] = []
    for kind in (torch.optim.Adam, torch.optim.SGD):
        real = kind.__init__

        def init(self: Any, *args: Any, _real: Any = real, **kwargs: Any) -> None:
            _real(self, *args, **kwargs)
            assert not self.state
            built.append(self)

        monkeypatch.setattr(kind, "__init__", init)
    learn(build(), 0, 1)
    assert len({id(optimiser) for optimiser in built}) == len(built) == 2 + 4


# ------------------------------------------------------------------------------------------------------- WTP: prompts


@both_networks
@pytest.mark.parametrize("mixing", [0.0, 0.1])
def test_slots_start_as_copies_and_are_stored_mixed(
    network_name: str, mixing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle 3: p_t = (1 - m) p_t(trained) + m mean(p_<t); with m = 0, and in session 0, as trained."""
    method = build(network(network_name), mixing=mixing)
    stages = Stages(method, monkeypatch)
    for t in range(3):
        before = method.pool.clone()
        learn(method, t)
        start, end = (stages.given["prompt", t][when][0][0] for when in ("start", "end"))
        if t == 0:
            assert float(start.min()) < -0.9
            assert float(start.max()) > 0.9
            assert float(start.abs().max()) <= 1  # U(-1, 1)
        else:
            assert torch.equal(start, before[:, :, -1])
        assert not torch.equal(end, start)
        want = (1 - mixing) * end + mixing * before.mean(2) if t else end
        if mixing == 0:
            assert torch.equal(method.pool[:, :, t], end)
        torch.testing.assert_close(method.pool[:, :, t], want, rtol=0, atol=1e-6)


def by_hand(method: HiDePrompt, mel: Tensor, prompt: Tensor) -> Tensor:
    """Features [B, D] under one prompt [n, 2, P, H, D/H] for all clips."""
    prefix = {
        block: (part[0].transpose(0, 1)[None], part[1].transpose(0, 1)[None])
        for block, part in zip(method.blocks, prompt, strict=True)
    }
    return method.backbone.pooled(method.backbone.run(method.backbone.tokens(mel), prefix=prefix))


@both_networks
def test_the_loss_is_local_cross_entropy_under_the_mixture_plus_cr(
    network_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(network(network_name), mixing=0.25, regulariser=0.3)
    stages = Stages(method, monkeypatch)
    learn(method, 0, 1)
    record = stages.given["prompt", 1]
    mel, labels = own_clips(method, 1)
    # The session is closed: what it learnt after is undone to see the loss as it was.
    centroids = method.statistics.centres[method.statistics.owners < 2].float()
    method.pool = method.pool[:, :, :1]
    slot, (weight, bias) = record["end"][0][0], record["end"][1]
    leaf = slot.clone().requires_grad_(True)
    h = by_hand(method, mel[:5], 0.75 * leaf + 0.25 * method.pool[:, :, 0])
    Z = torch.cat([centroids, h])
    cr = -torch.log_softmax(Z @ Z.T / 0.8, dim=1).diagonal().mean()
    want = F.cross_entropy(F.linear(h, weight, bias), torch.from_numpy(labels[:5]) - 2) + 0.3 * cr
    want.backward()
    trained = record["groups"][0].parameters[0]
    trained.grad = None
    got = record["loss"](Clips(mel[:5], torch.arange(5)), torch.from_numpy(labels[:5]))
    got.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(trained.grad, leaf.grad, rtol=1e-3, atol=1e-6)
    assert len(centroids) == 4


def test_every_clip_gets_the_prefix_of_its_session() -> None:
    method = learn(build(), 0, 1, 2)
    mel, _ = probe(method)
    sessions = torch.arange(len(mel))[:, None] % 3
    got = method.prompted(mel, sessions)
    for t in range(3):
        rows = sessions[:, 0] == t
        torch.testing.assert_close(got[rows], by_hand(method, mel[rows], method.pool[:, :, t]), rtol=0, atol=1e-5)


def test_prefixes_of_length_zero_are_the_network_itself() -> None:
    method = build()
    mel, _ = probe(method)
    method.pool = torch.zeros(3, 2, 1, 0, 4, 24)
    plain = method.prompted(mel, torch.zeros(len(mel), 1, dtype=torch.int64))
    torch.testing.assert_close(plain, method.backbone.features(mel), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------- the contrastive regulariser


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 5), st.integers(1, 6), st.floats(0.01, 30), st.booleans(), st.integers(0, 2**31))
def test_cr_is_the_mean_cross_entropy_with_the_identity(
    anchors: int, batch: int, scale: float, normalise: bool, seed: int
) -> None:
    """Oracle 5."""
    draws = np.random.default_rng(seed)
    Z = scale * draws.standard_normal((anchors + batch, 4))
    U = Z / np.linalg.norm(Z, axis=1, keepdims=True) if normalise else Z
    S = U @ U.T / 0.8
    want = np.mean([np.logaddexp.reduce(row) - row[i] for i, row in enumerate(S)])
    M, h = torch.from_numpy(Z[:anchors]), torch.from_numpy(Z[anchors:])
    got = float(contrastive(M, h, 0.8, normalise=normalise))
    assert got == pytest.approx(want, rel=1e-9, abs=1e-9)
    assert got >= 0


def test_cr_of_one_clip_alone_is_zero_and_means_are_constants() -> None:
    h = torch.randn(1, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert float(contrastive(torch.zeros(0, 4), h, 0.8).detach()) == 0
    anchors = torch.randn(3, 4, requires_grad=True, generator=torch.Generator().manual_seed(1))
    contrastive(anchors, h, 0.8).backward()
    assert anchors.grad is None
    assert float(h.grad.abs().max()) > 0


def test_cr_saturates_on_long_features_unless_they_are_normalised() -> None:
    """Rows of equal length sqrt(768): the self-product dominates, CR and its gradient are 0 (methods.md pitfall)."""
    h = F.normalize(torch.randn(24, 768, generator=torch.Generator().manual_seed(0)), dim=1) * 768**0.5
    h.requires_grad_(True)
    flat = contrastive(h.new_zeros(0, 768), h, 0.8)
    assert float(flat.detach()) < 1e-6
    normalised = contrastive(h.new_zeros(0, 768), h, 0.8, normalise=True)
    assert float(normalised.detach()) > 1
    torch.testing.assert_close(normalised, contrastive(h[:0], 7 * h, 0.8, normalise=True))


def test_a_zero_regulariser_is_left_out() -> None:
    method = learn(build(regulariser=0.0), 0)
    assert "contrastive" not in notes(method)
    assert notes(learn(build(), 0))["contrastive"] > 0


# ---------------------------------------------------------------------------------------------- TII: whose prompt it is


def test_the_mlp_is_residual_with_one_hidden_layer() -> None:
    draws = torch.Generator().manual_seed(0)
    mlp = ResidualMLP(6, (2,), draws, CPU)
    first, _, second = mlp.net
    assert [tuple(layer.weight.shape) for layer in (first, second)] == [(12, 6), (6, 12)]
    z = torch.randn(5, 6, generator=draws)
    hidden = F.gelu(F.linear(z, first.weight, first.bias))
    want = F.layer_norm(z + F.linear(hidden, second.weight, second.bias), (6,))
    torch.testing.assert_close(mlp(z), want)


def test_other_structures_follow_the_official_one() -> None:
    draws = torch.Generator().manual_seed(0)
    deep = ResidualMLP(6, (4, 4), draws, CPU)
    assert [type(layer).__name__ for layer in deep.net] == ["Linear", "GELU", "Linear", "LayerNorm", "Linear"]
    assert [tuple(layer.weight.shape) for layer in deep.net if isinstance(layer, nn.Linear)] == [
        (24, 6),
        (24, 24),
        (6, 24),
    ]
    none = ResidualMLP(6, (), draws, CPU)
    z = torch.randn(5, 6, generator=draws)
    assert torch.equal(none(z), z)
    assert not list(none.parameters())
    method = learn(build(tii_structure=()), 0, 1)
    assert method.state_dict()["mlp"] == {}


@pytest.mark.parametrize("tii", ["mlp", "means"])
def test_a_clip_goes_to_the_session_of_its_best_class(tii: str) -> None:
    method = learn(build(tii=tii, **TRAINED), 0, 1, 2)
    mel, labels = probe(method)
    z = method.query(mel)
    if tii == "mlp":
        logits = F.linear(method.mlp(z), method.tii_head.weight, method.tii_head.bias)
    else:
        means = torch.stack(
            [
                method.query(own_clips(method, c // 2)[0][torch.from_numpy(own_clips(method, c // 2)[1]) == c]).mean(0)
                for c in ALL
            ]
        )
        logits = F.normalize(z, dim=1) @ F.normalize(means, dim=1).T
    assert torch.equal(method.infer_sessions(z)[:, 0], logits.argmax(1) // 2)
    assert float((method.infer_sessions(z)[:, 0] == labels // 2).float().mean()) > 0.7
    assert method.session_of == [0, 0, 1, 1, 2, 2]
    assert bytes_of(method.encode(Clips(mel))) == bytes_of(method.prompted(mel, method.infer_sessions(z)))


def test_queries_that_are_kept_are_used() -> None:
    method = learn(build(), 0, 1)
    mel, _ = probe(method)
    query = method.query(mel)
    before = method.backbone.passes.clips
    with_query = method.encode(Clips(mel, query=query))
    assert method.backbone.passes.clips - before == len(mel)
    assert torch.equal(with_query, method.encode(Clips(mel)))
    assert method.backbone.passes.clips - before == 3 * len(mel)
    assert torch.equal(query, network().features(mel))


def test_a_session_costs_its_epochs_and_two_passes_more() -> None:
    """One pass for f_0, which trains TII and gives its statistics; one for the instructed features' statistics."""
    method = build(epochs=3)
    for t in range(2):
        before = method.backbone.passes.clips
        learn(method, t)
        assert method.backbone.passes.clips - before == 12 * (1 + 3 + 1)


def test_a_perfect_inference_is_never_worse_and_a_wrong_one_never_better() -> None:
    """Oracle 6, with the true sessions put in by hand; TII is nearly untrained and clips are noisy, to leave room."""
    method = learn(build(**{**TRAINED, "lr": 5.0, "mixing": 0.0, "tii_lr": 1e-6, "tii_align_lr": 1e-6}), 0, 1, 2)
    mel, labels = probe(method, per_class=12)
    mel = mel + torch.randn(mel.shape, generator=torch.Generator().manual_seed(5))

    def accuracy(sessions: Tensor) -> float:
        with torch.no_grad():
            return float((method.classify(method.prompted(mel, sessions)).argmax(1) == labels).float().mean())

    real = float((scores(method, mel).argmax(1) == labels).float().mean())
    inferred = method.infer_sessions(method.query(mel))[:, 0]
    perfect, wrong = accuracy((labels // 2)[:, None]), accuracy(((labels // 2 + 1) % 3)[:, None])
    assert float((inferred == labels // 2).float().mean()) < 1
    assert accuracy(inferred[:, None]) == pytest.approx(real)
    assert perfect > real + 0.1
    assert real > wrong + 0.05


# ------------------------------------------------------------------------------------------------- statistics and TAP


@both_networks
def test_statistics_are_numpys_of_f0_and_of_features_under_the_own_prompt(network_name: str) -> None:
    """Oracle 4; the prompt is the stored one, after mixing."""
    method = learn(build(network(network_name), statistics="covariance", mixing=0.3), 0, 1, 2)
    eye = 1e-4 * np.eye(method.backbone.dim)
    for t in range(3):
        mel, labels = own_clips(method, t)
        with torch.no_grad():
            instructed = by_hand(method, mel, method.pool[:, :, t]).double().numpy()
        for statistics, features in (
            (method.tii_statistics, method.query(mel).double().numpy()),
            (method.statistics, instructed),
        ):
            for c in SESSIONS[t]:
                own = features[labels == c]
                mean, covariance = statistics.components(c)
                np.testing.assert_allclose(mean[0], own.mean(0), rtol=0, atol=1e-5)
                np.testing.assert_allclose(covariance[0], np.cov(own.T, ddof=1) + eye, rtol=0, atol=1e-5)


@pytest.mark.parametrize("statistics", ["multi-centroid", "covariance"])
def test_alignment_draws_all_seen_classes_in_as_many_minibatches_as_there_are_old_ones(
    statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(statistics=statistics, align_samples=50, tii_align_samples=7, align_epochs=3)
    stages = Stages(method, monkeypatch)
    learn(method, 0, 1, 2)
    for stage, size in (("align", 50), ("tii align", 7)):
        assert (stage, 0) not in stages.given
        for t in (1, 2):
            record = stages.given[stage, t]
            epochs = [list(record["source"](epoch)) for epoch in range(2)]
            for batches in epochs:
                assert [len(y) for _, y in batches] == [size] * (2 * t)
                assert all(z.shape == (size, method.backbone.dim) and z.dtype == torch.float32 for z, _ in batches)
            assert not torch.equal(epochs[0][0][1], epochs[1][0][1]), "every epoch draws anew"
            seen = torch.cat([y for _, y in epochs[0]]).unique().tolist()
            assert set(seen) == set(range(2 * t + 2)) if stage == "align" else set(seen) <= set(range(2 * t + 2))
            z, y = epochs[0][0]
            head = (method.head if stage == "align" else method.tii_head)(z if stage == "align" else method.mlp(z))
            if t == 2:  # the last session: the head is as its stage left it
                torch.testing.assert_close(record["loss"](z, y), F.cross_entropy(head, y))
                assert head.shape[1] == 6, "softmax over all seen classes"


def test_alignment_can_be_left_out() -> None:
    method = learn(build(align_epochs=0), 0, 1)
    assert {"align_loss", "tii_align_loss"}.isdisjoint(notes(method))
    assert {"align_loss", "tii_align_loss"} <= set(notes(learn(build(), 0, 1)))


@both_networks
def test_training_works_and_says_how_well(network_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(network(network_name), **TRAINED)
    stages = Stages(method, monkeypatch)
    learn(method, 0, 1, 2)
    for (stage, t), record in stages.given.items():
        assert record["history"][-1] < record["history"][0], (stage, t)
    mel, labels = probe(method, per_class=10)
    assert float((scores(method, mel).argmax(1) == labels).float().mean()) > 0.6
    found = notes(method)
    assert found["train_loss"] == stages.given["prompt", 2]["history"][-1]
    assert found["tii_loss"] == stages.given["tii", 2]["history"][-1]
    assert found["align_loss"] == stages.given["align", 2]["history"][-1]
    assert found["prompted_blocks"] == list(method.blocks)
    mel, labels = own_clips(method, 2)
    inferred = method.infer_sessions(method.query(mel))[:, 0]
    assert found["tii_accuracy"] == pytest.approx(float((inferred == 2).float().mean()))
    right = method.classify(method.prompted(mel, torch.full((len(mel), 1), 2)).detach()).argmax(1).numpy() == labels
    assert found["train_accuracy"] == pytest.approx(right.mean())


# --------------------------------------------------------------------------------------------------- shapes of streams


@both_networks
@pytest.mark.parametrize("statistics", ["multi-centroid", "covariance", "variance"])
def test_uneven_sessions_and_classes_of_one_clip(network_name: str, statistics: str) -> None:
    method = build(network(network_name), statistics=statistics)
    arrival = ((0, 1, 2), (3,), (4, 5))
    for t, classes in enumerate(arrival):
        mel, labels = clips_of(classes, method.backbone, per_class=5)
        keep = np.ones(len(labels), dtype=bool)
        keep[np.flatnonzero(labels == classes[-1])[1:]] = False  # one clip of the last class
        part = Session(t, classes, min(classes), labels[keep], reader(mel[torch.from_numpy(keep)]), CPU)
        method.learn(part)
        part.close()
        mel, _ = probe(method)
        assert scores(method, mel).shape == (len(mel), max(classes) + 1)
        assert bool(scores(method, mel).isfinite().all())
    assert method.session_of == [0, 0, 0, 1, 2, 2]
    assert method.statistics.counts.tolist() == [5, 5, 1, 1, 5, 1]
    assert method.pool.shape[2] == 3


# ------------------------------------------------------------------------------------------------------------ settings


def test_recipes_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {
        "cifar100": (5, 0.01, 50, "step", 0.1),
        "imagenet-r": (20, 0.01, 150, "cosine", 0.5),
        "self-supervised": (20, 0.01, 50, "constant", 0.5),
        "self-supervised-cifar100": (5, 0.1, 20, "step", 0.1),
    }
    assert {"audio", *recipes} == set(HiDePromptConfig.sources)
    for name, want in recipes.items():
        config = settings_of.build(HiDePromptConfig, "esc50", {"preset": name}, owner="hide-prompt")
        assert (config.length, config.mixing, config.epochs, config.schedule, config.regulariser) == want
    assert settings_of.build(HiDePromptConfig, "esc50", {}, owner="hide-prompt") == HiDePromptConfig()
    assert settings_of.build(HiDePromptConfig, "x", {"epochs": "none"}, owner="hide-prompt").epochs is None
    with pytest.raises(UnknownNameError, match="cifar10"):
        settings_of.build(HiDePromptConfig, "x", {"preset": "cifar10"}, owner="hide-prompt")


def test_rates_are_scaled_where_the_official_code_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """lr x 24 / 256 for WTP, TII and TII's alignment, but not for TAP's."""
    own = {"length": 2, "epochs": 1, "align_epochs": 1}
    config = settings_of.build(HiDePromptConfig, "x", own, owner="hide-prompt")
    method = HiDePrompt(config, network(), Context(0, StreamInfo("x", 3, 6, 2)))
    stages = Stages(method, monkeypatch)
    learn(method, 0, 1)
    rates = {
        "tii": [5e-4 * 24 / 256],
        "tii align": [0.005 * 24 / 256],
        "prompt": [0.03 * 24 / 256, 0.003 * 24 / 256],
        "align": [0.005],
    }
    for stage, want in rates.items():
        record = stages.given[stage, 1]
        assert [group.lr for group in record["groups"]] == pytest.approx(want)
        recipe = record["recipe"]
        assert recipe.weight_decay == 0
        if "align" in stage:
            assert (recipe.optimiser, recipe.momentum, recipe.schedule, recipe.clip) == ("sgd", 0.9, "cosine", None)
        else:
            assert (recipe.optimiser, recipe.schedule, recipe.clip) == ("adam", "constant", 1.0)
    assert stages.given["tii", 1]["recipe"].epochs == 20
    assert [len(y) for _, y in stages.given["align", 1]["source"](0)] == [120, 120]
    assert [len(y) for _, y in stages.given["tii align", 1]["source"](0)] == [24, 24]


def test_epochs_none_are_the_benchmarks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(epochs=None)
    stages = Stages(method, monkeypatch)
    learn(method, 0)
    assert stages.given["prompt", 0]["recipe"].epochs == 2


def test_blocks_are_cut_to_those_that_run() -> None:
    assert build(network("eat-tiny")).blocks == (0, 1, 2)
    assert build(blocks=(2, 0, 2, 7)).blocks == (0, 2)
    shallow = network()
    shallow.layer = 2
    assert build(shallow).blocks == (0, 1)
    assert build(blocks=(3, 4)).blocks == (2,)
    with pytest.raises(ConfigError, match="'blocks' is empty"):
        build(blocks=())


# --------------------------------------------------------------------------------------------------------- a whole run


class StopError(Exception):
    """Ends a run in the middle."""


class Stops(HiDePrompt):
    """Fails in session 2 until mended."""

    name = "hide-prompt"
    mended = False

    def learn(self, session: Session) -> None:
        if session.index == 2 and not type(self).mended:
            raise StopError
        super().learn(session)


@pytest.fixture
def mended() -> Iterator[type[Stops]]:
    Stops.mended = False
    yield Stops
    Stops.mended = False


@pytest.mark.slow
def test_a_run_resumes_to_the_same_result_and_a_leaky_one_is_marked(
    tiny_material: Material, tmp_path: Path, mended: type[Stops]
) -> None:
    whole, broken, leaky = (ResultsDir(tmp_path / name) for name in ("whole", "broken", "leaky"))
    identity, status = execute(Plan(HiDePrompt, config_of(), 0), tiny_material, whole)
    assert status == "done"
    row = whole.run(identity)
    assert row["audit_passed"]
    assert "tii_accuracy" in str(whole.sessions(identity)["diagnostics"].iloc[-1])

    plan = Plan(mended, config_of(), 0)
    with pytest.raises(StopError):
        execute(plan, tiny_material, broken)
    mended.mended = True
    log = Log()
    again, status = execute(plan, tiny_material, broken, monitor=log)
    assert (log.started, status) == ([(3, 2)], "done")
    assert [broken.run(again)[name] for name in SCORES] == [row[name] for name in SCORES]
    assert broken.predictions(again)["predicted"].tolist() == whole.predictions(identity)["predicted"].tolist()

    identity, _ = execute(Plan(HiDePrompt, config_of(gather="published"), 0), tiny_material, leaky)
    assert not leaky.run(identity)["audit_passed"]
