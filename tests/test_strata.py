"""Strata and LayUP: what they read, that sessions do not matter, and ridge against the textbook."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learners import NETWORKS, SESSIONS, build, clips_of, everything_read, learn, network

from audiocl_bench.heads import LAMBDAS
from audiocl_bench.method import Clips, Method
from audiocl_bench.readout import Readout

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
ALL = tuple(range(6))


def _scores(method: Method, mel: torch.Tensor) -> np.ndarray:
    return np.asarray(method.classify(method.encode(Clips(mel))))


@both_networks
def test_strata_is_ridge_on_standardised_statistics_of_every_layer(network_name: str) -> None:
    method = learn(build("strata", network(network_name), strength=0.1), 0, 1, 2)
    backbone = method.backbone
    assert method.readout.width == (backbone.depth + 1) * 2 * backbone.dim
    F, labels = everything_read(method)
    Y, varies = np.eye(6)[labels], F.std(0) > 1e-9 * np.abs(F).max(0)
    mean, deviation = F.mean(0), np.where(varies, F.std(0), np.inf)
    X = (F - mean) / deviation
    lam = 0.1 * F.shape[1]
    W = X.T @ np.linalg.solve(X @ X.T + lam * np.eye(len(X)), Y - Y.mean(0))
    mel = clips_of(ALL, backbone, per_class=4, seed=99)[0]
    tests = method.encode(Clips(mel)).double().numpy()
    np.testing.assert_allclose(_scores(method, mel), Y.mean(0) + (tests - mean) / deviation @ W, atol=1e-6)


@both_networks
def test_strata_forgets_nothing_whatever_the_sessions(network_name: str) -> None:
    """The same clips in one session or in three, and in another order, give the same scores."""
    mel = clips_of(ALL, network(network_name), per_class=4, seed=99)[0]
    together = build("strata", network(network_name), strength=0.1)
    parts = [clips_of(classes, together.backbone) for classes in SESSIONS]
    features = [(together.encode(Clips(part)), torch.from_numpy(np.asarray(labels))) for part, labels in parts]
    together.head.update(torch.cat([f for f, _ in features]), torch.cat([y for _, y in features]), 6)
    together.head.solve(0.1)
    apart = learn(build("strata", network(network_name), strength=0.1), 0, 1, 2)
    np.testing.assert_allclose(_scores(apart, mel), _scores(together, mel), atol=1e-8)


def test_strata_chooses_its_strength_and_bounds_its_bytes() -> None:
    exact, small = (learn(build("strata", rank=rank), 0, 1, 2) for rank in (None, 12))
    assert exact.head.tau == exact.head.tau  # chosen, not NaN
    assert small.head.nbytes < exact.head.nbytes
    projected = learn(build("strata", width=16), 0, 1, 2)
    assert projected.random.out_width == 16
    mel, labels = clips_of(ALL, exact.backbone, per_class=4, seed=99)
    for method in (exact, small, projected):
        assert _scores(method, mel).shape == (len(labels), 6)


def test_layup_is_ridge_on_the_concatenated_last_layers() -> None:
    method = learn(build("layup", layers="last:2", ridge=3.0), 0, 1, 2)
    backbone = method.backbone
    assert method.readout == Readout((backbone.depth - 1, backbone.depth), (backbone.pool,), backbone.dim)
    F, labels = everything_read(method)
    W = np.linalg.solve(F.T @ F + 3.0 * np.eye(F.shape[1]), F.T @ np.eye(6)[labels])
    mel = clips_of(ALL, backbone, per_class=4, seed=99)[0]
    np.testing.assert_allclose(_scores(method, mel), method.encode(Clips(mel)).double().numpy() @ W, atol=1e-5)


def test_layup_takes_all_layers_of_a_shallow_network_and_searches_as_ranpac() -> None:
    method = learn(build("layup"), 0, 1, 2)
    assert method.readout.layers == tuple(range(method.backbone.depth + 1))
    assert method.head.lam in LAMBDAS


def test_other_closed_forms_read_several_layers_too() -> None:
    for name in ("ncm", "ranpac", "acil", "fsa", "pace"):
        method = learn(
            build(name, layers="all", pool="mean+std", **({} if name in ("ncm", "fsa") else {"width": 32})), 0, 1
        )
        mel = clips_of(ALL[:4], method.backbone, per_class=2, seed=5)[0]
        assert method.encode(Clips(mel)).shape[1] == (method.backbone.depth + 1) * 2 * method.backbone.dim
        assert _scores(method, mel).shape == (len(mel), 4)
