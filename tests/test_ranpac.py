"""RanPAC, its joint bound and nearest class mean: exact statistics, whatever the order and the sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from learners import (
    CPU,
    NETWORKS,
    SESSIONS,
    build,
    bytes_of,
    clips_of,
    learn,
    module,
    network,
    reader,
    session,
    weights,
    whole,
)
from torch import Tensor
from torch.nn import functional as F

from audiocl_bench.heads import LAMBDAS, RidgeHead, choose_lambda
from audiocl_bench.method import Clips, Method, Session

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
ALL = tuple(range(6))


def stream_features(method: Method, **options: int) -> tuple[np.ndarray, np.ndarray]:
    """Random features H [n, M] of the whole tiny stream under the method's present encoder, with labels [n]."""
    rows, labels = [], []
    for classes in SESSIONS:
        mel, y = clips_of(classes, method.backbone, **options)
        rows.append(method.random(method.encode(Clips(mel))))
        labels.append(y)
    return torch.cat(rows).numpy(), np.concatenate(labels)


def probe(method: Method) -> Tensor:
    return clips_of(ALL, method.backbone, per_class=4, seed=99)[0]


def scores(method: Method, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


# ------------------------------------------------------------------------------------------------ phase 2, no gradient


@both_networks
@pytest.mark.parametrize("width", [20, 64])
@pytest.mark.parametrize("fsa", [True, False])
def test_statistics_are_those_of_all_data_and_the_solution_is_batch_ridge(
    network_name: str, width: int, fsa: bool
) -> None:
    """36 clips: more than 20 features (Gram form) and fewer than 64 (square-root form)."""
    method = learn(build("ranpac", network(network_name), width=width, fsa=fsa, ridge=3.0), 0, 1, 2)
    H, labels = stream_features(method)
    Y = np.eye(6)[labels]
    G, Q = method.head.gram()
    np.testing.assert_allclose(G, H.T @ H, rtol=1e-9, atol=1e-9 * np.abs(H.T @ H).max())
    for c in ALL:
        np.testing.assert_allclose(Q[:, c], H[labels == c].sum(0), rtol=1e-9, atol=1e-9 * np.abs(H).sum())
    W = scipy.linalg.solve(H.T @ H + 3.0 * np.eye(H.shape[1]), H.T @ Y, assume_a="pos")
    mel = probe(method)
    want = method.random(method.encode(Clips(mel))).numpy() @ W
    np.testing.assert_allclose(scores(method, mel), want, rtol=1e-6, atol=1e-6)


def test_random_features_are_relu_of_a_fixed_gaussian_projection() -> None:
    method = build("ranpac", width=64, seed=3)
    mel = probe(method)
    f = method.encode(Clips(mel)).double().numpy()
    W_r = method.random.matrix.numpy()
    assert W_r.shape == (96, 64)
    assert abs(W_r.mean()) < 0.05
    assert W_r.std() == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(method.random(method.encode(Clips(mel))), np.maximum(f @ W_r, 0))
    learn(method, 0, 1)
    assert np.array_equal(method.random.matrix.numpy(), W_r)
    assert not np.array_equal(build("ranpac", width=64, seed=4).random.matrix.numpy(), W_r)
    raw = build("ranpac", width=0)
    assert torch.equal(raw.random(raw.encode(Clips(mel))), raw.encode(Clips(mel)).double())


def test_neither_order_nor_class_order_nor_sessions_matter() -> None:
    """With a frozen encoder and a fixed ridge, W is the same up to the permutation of its columns."""
    straight = learn(build("ranpac", fsa=False, ridge=5.0), 0, 1, 2)
    mel = probe(straight)
    want = scores(straight, mel)

    # Sessions in another order: classes 4, 5 arrive first and are labelled 0, 1, and so on.
    turned = build("ranpac", fsa=False, ridge=5.0)
    arrival = (4, 5, 0, 1, 2, 3)
    for t in range(3):
        old = arrival[2 * t : 2 * t + 2]
        clips, labels = clips_of(tuple(sorted(old)), turned.backbone)
        new = np.array([arrival.index(label) for label in labels])
        turned.learn(Session(t, (2 * t, 2 * t + 1), 2 * t, new, reader(clips), CPU))
    torch.testing.assert_close(scores(turned, mel), want[:, list(arrival)], rtol=1e-8, atol=1e-8)

    # All clips at once, shuffled.
    at_once = build("ranpac", fsa=False, ridge=5.0)
    parts = [clips_of(classes, at_once.backbone) for classes in SESSIONS]
    order = np.random.default_rng(0).permutation(36)
    clips, labels = torch.cat([m for m, _ in parts]), np.concatenate([y for _, y in parts])
    at_once.learn(Session(0, ALL, 0, labels[order], reader(clips[torch.from_numpy(order)]), CPU))
    torch.testing.assert_close(scores(at_once, mel), want, rtol=1e-8, atol=1e-8)


@both_networks
def test_joint_closed_form_equals_incremental_ridge(network_name: str) -> None:
    """What makes the closed-form bound a test and not a row of its own."""
    joint = build("joint-closed", network(network_name), ridge=7.0)
    joint.learn(whole(joint.backbone))
    incremental = learn(build("ranpac", network(network_name), fsa=False, ridge=7.0), 0, 1, 2)
    mel = probe(joint)
    torch.testing.assert_close(scores(joint, mel), scores(incremental, mel), rtol=0, atol=1e-8)
    assert torch.equal(scores(joint, mel).argmax(1), scores(incremental, mel).argmax(1))
    assert not joint.config.fsa


# ------------------------------------------------------------------------------------------------- choosing the ridge


def test_session_search_is_ranpacs_on_the_current_session_only() -> None:
    method = build("ranpac", fsa=False, seed=2)
    for t, classes in enumerate(SESSIONS):
        learn(method, t)
        mel, labels = clips_of(classes, method.backbone)
        H = method.random(method.encode(Clips(mel)))
        want = choose_lambda(H, torch.from_numpy(labels), 2 * (t + 1), seed=2).lam
        assert method.head.lam == want
        assert method.context.report.notes["lambda"] == want
        assert want in LAMBDAS


def test_session_search_is_reproducible_and_depends_on_the_run_seed_alone() -> None:
    def found(seed: int) -> list[float]:
        method = build("ranpac", fsa=False, seed=seed)
        torch.seed()  # the global generator must not matter
        lams = []
        for t in range(3):
            learn(method, t, per_class=5)
            lams.append(method.head.lam)
        return lams

    choices = [found(seed) for seed in (0, 0, 1, 2, 3)]
    assert choices[0] == choices[1]
    assert any(choice != choices[0] for choice in choices[2:])


def test_accumulated_search_tunes_on_everything_so_far() -> None:
    method = build("ranpac", fsa=False, search="accumulated")
    calls = []
    real = method.head.tune
    method.head.tune = lambda: calls.append(method.head.num_samples) or real()
    learn(method, 0, 1, 2)
    assert calls == [12, 24, 36]
    H, labels = stream_features(method)
    fresh = RidgeHead(64)
    fresh.update(torch.from_numpy(H), torch.from_numpy(labels), 6)
    assert method.head.lam == fresh.tune()  # 12, then 24, then 36 rows: each step is a new choice


def test_fixed_ridge_is_used_as_it_is() -> None:
    method = learn(build("ranpac", fsa=False, ridge=123.0), 0, 1)
    assert method.head.lam == 123.0


# ---------------------------------------------------------------------------------------------- phase 1, session 0 only


@both_networks
def test_adaptation_is_on_the_first_session_only(network_name: str) -> None:
    method = build("ranpac", network(network_name))
    plain, mel = weights(method.backbone), probe(method)
    frozen = method.encode(Clips(mel))
    learn(method, 0)
    after, adapted = bytes_of(method.backbone.state_dict()), method.encode(Clips(mel))
    assert method.encoder_version == 1
    assert not torch.equal(adapted, frozen)
    assert any(".lora_" in name for name in after)
    learn(method, 1, 2)
    assert bytes_of(method.backbone.state_dict()) == after  # nothing of the network moves after phase 1
    assert torch.equal(method.encode(Clips(mel)), adapted)
    assert method.encoder_version == 1
    assert weights(method.backbone) == plain


def test_without_adaptation_the_network_stays_plain() -> None:
    method = build("ranpac", fsa=False)
    before = bytes_of(method.backbone.state_dict())
    learn(method, 0, 1)
    assert bytes_of(method.backbone.state_dict()) == before
    assert method.encoder_version == 0
    assert method.state_dict()["lora"] == {}


def test_phase_one_trains_a_cosine_classifier_with_a_learnable_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("ranpac", epochs=2, lr=0.02)
    found: dict[str, Any] = {}
    real = module("ranpac").fit

    def spy(part: Any, groups: Any, loss: Any, recipe: Any, context: Any, **options: Any) -> list[float]:
        (group,) = groups
        *pairs, prototypes, sigma = group.parameters
        clips, labels = next(part.batches(6))
        z = method.backbone.features(clips.mel)
        cosine = F.normalize(z, dim=-1) @ F.normalize(prototypes, dim=-1).T
        found["difference"] = float((loss(clips, labels) - F.cross_entropy(sigma * cosine, labels)).detach())
        found["shapes"] = (tuple(prototypes.shape), float(sigma.detach()), len(pairs), group.lr)
        found["recipe"] = (recipe.epochs, recipe.batch_size, recipe.optimiser, recipe.momentum, recipe.weight_decay)
        history = real(part, groups, loss, recipe, context, **options)
        found["moved"] = float(sigma.detach()) != 1.0
        return history

    monkeypatch.setattr(module("ranpac"), "fit", spy)
    learn(method, 0, 1)
    assert found["difference"] == pytest.approx(0.0, abs=1e-6)
    assert found["shapes"] == ((2, 96), 1.0, 12, 0.02)
    assert found["recipe"] == (2, 6, "sgd", 0.9, 5e-4)
    assert found["moved"]


def test_joint_closed_form_can_adapt_on_all_classes() -> None:
    method = learn(build("joint-closed", fsa=True, epochs=1), 0)
    assert method.encoder_version == 1
    assert method.num_seen == 6


# -------------------------------------------------------------------------------------------------- nearest class mean


@both_networks
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_class_mean_streams_exactly(network_name: str, metric: str) -> None:
    streamed = learn(build("ncm", network(network_name), metric=metric), 0, 1, 2)
    batch = build("ncm", network(network_name), metric=metric)
    batch.learn(whole(batch.backbone))
    backwards = build("ncm", network(network_name), metric=metric)
    parts = [clips_of(classes, backwards.backbone) for classes in SESSIONS]
    clips, labels = torch.cat([m for m, _ in parts]).flip(0), np.concatenate([y for _, y in parts])[::-1]
    backwards.learn(Session(0, ALL, 0, labels, reader(clips), CPU))

    mel = probe(streamed)
    f = streamed.encode(Clips(mel)).double()
    z = streamed.encode(Clips(clips)).double()
    means = torch.stack([z[torch.from_numpy(labels.copy()) == c].mean(0) for c in ALL])
    if metric == "cosine":
        want = F.normalize(f, dim=-1) @ F.normalize(means, dim=-1).T  # mean first, then normalise
    else:
        want = -torch.cdist(f, means).square()
    for method in (streamed, batch, backwards):
        torch.testing.assert_close(scores(method, mel), want, rtol=1e-6, atol=1e-6)


def test_nearest_class_mean_writes_only_the_new_rows() -> None:
    method = learn(build("ncm"), 0)
    first = method.head.means
    learn(method, 1)
    assert torch.equal(method.head.means[:2], first)
    assert method.head.counts.tolist() == [6, 6, 6, 6]
    assert bytes_of(method.backbone.state_dict()) == bytes_of(network().state_dict())
    assert method.backbone.passes.clips == session(0, method.backbone).num_clips * 2  # one pass over every clip
