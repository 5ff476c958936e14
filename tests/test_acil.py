"""ACIL: the ridge head against a literal recursive least squares, and what else methods.md section 2.6 asks for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learners import CPU, NETWORKS, SESSIONS, bytes_of, clips_of, network, reader
from probes import Log
from torch import Tensor

from audiocl_bench import audit, config, registry
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError, UnknownNameError
from audiocl_bench.method import Clips, Context, Session, StreamInfo
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, Plan, execute

registry.names()  # makes the methods of a clone importable under their installed name
from audiocl_methods import acil, ranpac  # type: ignore[import-not-found]  # noqa: E402

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
widths = pytest.mark.parametrize("width", [48, 300])  # fewer and more features than the 120 clips below
ALL = tuple(range(6))
UNEVEN = ((0, 1, 2), (3,), (4, 5))


def config_of(**changes: Any) -> Any:
    return config.build(acil.ACILConfig, "tiny", {"width": 48, **changes}, owner="acil")


def build(backbone: Backbone | None = None, *, seed: int = 0, **changes: Any) -> Any:
    context = Context(seed, StreamInfo("tiny", 3, 6, first_session_epochs=2))
    return acil.ACIL(config_of(**changes), network() if backbone is None else backbone, context)


def opened(t: int, backbone: Backbone, stream: Sequence[tuple[int, ...]] = SESSIONS, *, per_class: int = 6) -> Session:
    mel, labels = clips_of(stream[t], backbone, per_class=per_class)
    return Session(t, stream[t], min(stream[t]), labels, reader(mel), CPU)


def learn(method: Any, *sessions: int, **options: Any) -> Any:
    for t in sessions:
        part = opened(t, method.backbone, **options)
        method.learn(part)
        part.close()
    return method


def features_of(method: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """phi(x) [n, m] of the whole stream under the method's encoder, with labels [n], in the order of arrival."""
    parts = [clips_of(classes, method.backbone, **options) for classes in SESSIONS]
    phi = torch.cat([method.random(method.encode(Clips(mel))) for mel, _ in parts]).numpy()
    return phi, np.concatenate([labels for _, labels in parts])


def scores(method: Any, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want))


class Recursion:
    """The paper's update, letter by letter: R and W after every minibatch, new classes as zero columns."""

    def __init__(self, width: int, gamma: float) -> None:
        self.R = np.eye(width) / gamma
        self.W = np.zeros((width, 0))

    def update(self, phi: np.ndarray, labels: np.ndarray) -> None:
        grown = max(self.W.shape[1], int(labels.max()) + 1)
        self.W = np.pad(self.W, ((0, 0), (0, grown - self.W.shape[1])))
        Y = np.eye(grown)[labels]
        A = np.eye(len(phi)) + phi @ self.R @ phi.T
        self.R = self.R - self.R @ phi.T @ np.linalg.solve(A, phi @ self.R)
        self.R = (self.R + self.R.T) / 2
        self.W = self.W + self.R @ phi.T @ (Y - phi @ self.W)


def recursion(phi: np.ndarray, labels: np.ndarray, gamma: float, batch: int) -> Recursion:
    found = Recursion(phi.shape[1], gamma)
    for start in range(0, len(phi), batch):
        found.update(phi[start : start + batch], labels[start : start + batch])
    return found


# ----------------------------------------------------------------------------------------------- equal to the recursion


@widths
@pytest.mark.parametrize("gamma", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("batch", [1, 7, 64, 120])
def test_it_equals_the_literal_recursion(width: int, gamma: float, batch: int) -> None:
    """Oracles 1, 2 and 6, for any minibatch of the recursion."""
    method = learn(build(width=width, ridge=gamma), 0, 1, 2, per_class=20)
    phi, labels = features_of(method, per_class=20)
    assert phi.shape == (120, width)
    literal = recursion(phi, labels, gamma, batch)
    W = method.head.solve(gamma).numpy()
    direct = np.linalg.solve(phi.T @ phi + gamma * np.eye(width), phi.T @ np.eye(6)[labels])
    assert relative(W, literal.W) < 1e-6
    assert relative(W, direct) < 1e-6

    G, Q = method.head.gram()
    information = G.numpy() + gamma * np.eye(width)
    assert relative(literal.R, np.linalg.inv(information)) < 1e-8
    assert np.array_equal(information, information.T)
    assert np.linalg.eigvalsh(information).min() > 0
    assert np.linalg.eigvalsh(literal.R).min() > 0
    for c in ALL:
        np.testing.assert_allclose(Q[:, c], phi[labels == c].sum(0), rtol=1e-9, atol=1e-9)


@both_networks
def test_scores_are_those_of_the_recursion(network_name: str) -> None:
    method = learn(build(network(network_name)), 0, 1, 2)
    mel = clips_of(ALL, method.backbone, per_class=3, seed=9)[0]
    want = method.random(method.encode(Clips(mel))).numpy() @ recursion(*features_of(method), 0.1, 5).W
    np.testing.assert_allclose(scores(method, mel), want, rtol=1e-6, atol=1e-6)
    assert method.context.report.notes["lambda"] == 0.1


@widths
def test_neither_order_nor_session_borders_matter(width: int) -> None:
    """Oracle 3: sessions, one batch of all in another order, uneven sessions."""
    straight = learn(build(width=width), 0, 1, 2)
    uneven = learn(build(width=width), 0, 1, 2, stream=UNEVEN)
    at_once = build(width=width)
    parts = [clips_of(classes, at_once.backbone) for classes in UNEVEN]
    order = np.random.default_rng(0).permutation(36)
    mel, labels = torch.cat([m for m, _ in parts]), np.concatenate([y for _, y in parts])
    at_once.learn(Session(0, ALL, 0, labels[order], reader(mel[torch.from_numpy(order)]), CPU))
    W = at_once.head.solve(0.1).numpy()
    assert relative(uneven.head.solve(0.1).numpy(), W) < 1e-6
    # The even stream has other noise on its clips, so it is compared with the recursion on its own.
    assert relative(straight.head.solve(0.1).numpy(), recursion(*features_of(straight), 0.1, 36).W) < 1e-6


@widths
def test_a_class_without_clips_has_a_zero_column(width: int) -> None:
    """Oracle 4: session 1 announces classes 2 and 3, but all its clips are of class 2."""
    method = learn(build(width=width), 0)
    mel, labels = clips_of((2,), method.backbone)
    method.learn(Session(1, (2, 3), 2, labels, reader(mel), CPU))
    W = method.head.solve(0.1)
    assert W.shape == (width, 4)
    assert not bool(W[:, 3].any())
    assert bool(W[:, 2].any())
    assert scores(method, mel).shape == (6, 4)


def test_a_large_gamma_gives_class_sums() -> None:
    """Oracle 5: gamma W -> Phi^T Y."""
    method = learn(build(ridge=1e12), 0, 1, 2)
    _, Q = method.head.gram()
    assert relative(1e12 * method.head.solve(1e12).numpy(), Q.numpy()) < 1e-6


@both_networks
def test_it_is_ranpac_with_gamma_for_lambda(network_name: str) -> None:
    method = learn(build(network(network_name), ridge=3.0), 0, 1, 2)
    values = config.build(
        ranpac.RanPACConfig, "tiny", {"width": 48, "fsa": False, "scaling": "acil", "ridge": 3.0}, owner="ranpac"
    )
    other = learn(ranpac.RanPAC(values, network(network_name), method.context), 0, 1, 2)
    assert bytes_of(other.state_dict()) == bytes_of(method.state_dict())


# ----------------------------------------------------------------------------------------------------------- the buffer


def test_random_features_are_relu_of_a_fixed_uniform_projection() -> None:
    method = build(width=200, seed=3)
    mel = clips_of(ALL, method.backbone)[0]
    W_b = method.random.matrix.numpy()
    bound = 96**-0.5
    assert W_b.shape == (96, 200)
    assert 0.99 * bound < np.abs(W_b).max() <= bound
    assert W_b.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    f = method.encode(Clips(mel)).double().numpy()
    np.testing.assert_allclose(method.random(method.encode(Clips(mel))), np.maximum(f @ W_b, 0))
    learn(method, 0, 1)
    assert np.array_equal(method.random.matrix.numpy(), W_b)


def test_presets() -> None:
    def made(**changes: Any) -> Any:
        return config.build(acil.ACILConfig, "esc50", changes, owner="acil")

    plain = made()
    assert (plain.width, plain.ridge, plain.scaling, plain.fsa, plain.variant) == (8192, 0.1, "acil", False, "")
    assert made(preset="imagenet").width == 16384
    assert made(preset="fsa").fsa
    assert made(preset="fsa", ridge="1").ridge == 1.0
    with pytest.raises(UnknownNameError, match="preset of acil"):
        made(preset="cifar")
    with pytest.raises(ConfigError, match="'ridge' is 0"):
        made(ridge=0)


# ----------------------------------------------------------------------------------------------------------- adaptation


def test_by_default_nothing_is_trained() -> None:
    method = build()
    before = bytes_of(method.backbone.state_dict())
    learn(method, 0, 1, 2)
    assert bytes_of(method.backbone.state_dict()) == before
    assert method.encoder_version == 0
    assert method.context.report.most_trainable == 0
    assert method.backbone.passes.clips == 36  # one pass over every clip


@both_networks
def test_first_session_adaptation_is_ranpacs(network_name: str) -> None:
    options = {"fsa": True, "epochs": 2, "batch_size": 6, "rank": 2}
    method = learn(build(network(network_name), **options), 0)
    values = config.build(ranpac.RanPACConfig, "tiny", {"width": 48, **options}, owner="ranpac")
    other = learn(ranpac.RanPAC(values, network(network_name), Context(0, method.context.stream)), 0)
    mel = clips_of(ALL, method.backbone, seed=9)[0]
    adapted = method.encode(Clips(mel))
    assert torch.equal(adapted, other.encode(Clips(mel)))
    assert not torch.equal(adapted, network(network_name).features(mel))
    learn(method, 1, 2)
    assert torch.equal(method.encode(Clips(mel)), adapted)
    assert method.encoder_version == 1
    assert relative(method.head.solve(0.1).numpy(), recursion(*features_of(method), 0.1, 7).W) < 1e-6


# --------------------------------------------------------------------------------------------------- interface and runs


@both_networks
@pytest.mark.parametrize("fsa", [False, True])
@pytest.mark.parametrize(("stream", "per_class"), [(SESSIONS, 6), (UNEVEN, 6), (UNEVEN, 1)])
def test_audits_state_and_resume(network_name: str, fsa: bool, stream: Any, per_class: int) -> None:
    def made() -> Any:
        return build(network(network_name), fsa=fsa, epochs=1, batch_size=6, rank=2)

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
        assert method.num_seen == broken.num_seen == max(stream[t]) + 1
    assert torch.equal(torch.get_rng_state(), before)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    checks = [
        audit.batch_independence(method, mel, batch_sizes=(1, 7, 64), seed_order=order),
        audit.repeatability(method, mel),
        audit.seen_classes_only(method, mel, 6),
        audit.state_is_complete(method, made, mel),
    ]
    assert [check.name for check in checks if not check.passed] == []


class StopError(Exception):
    """Ends a run after a session, as a kill would."""


class Stops(Log):
    """A monitor that ends the run once the first session is saved."""

    def session_done(self, session: int, accuracy: float) -> None:
        super().session_done(session, accuracy)
        raise StopError


@pytest.mark.parametrize("fsa", [False, True])
def test_a_run_resumes_to_the_same_result(tiny_material: Material, tmp_path: Path, fsa: bool) -> None:
    plan = Plan(acil.ACIL, config_of(fsa=fsa, epochs=1, batch_size=6, rank=2), 0)
    straight, broken = ResultsDir(tmp_path / "straight"), ResultsDir(tmp_path / "broken")
    execute(plan, tiny_material, straight)
    with pytest.raises(StopError):
        execute(plan, tiny_material, broken, monitor=Stops())
    log = Log()
    identity, status = execute(plan, tiny_material, broken, monitor=log)
    assert (status, log.started) == ("done", [(3, 1)])
    first, second = (results.run(identity) for results in (straight, broken))
    assert first["audit_passed"]
    assert second["audit_passed"]
    assert first["final_accuracy"] == second["final_accuracy"] == first["fresh_final_accuracy"]  # no drift
    assert first["final_accuracy"] > 100 / 6
    predictions = [results.predictions(identity)["predicted"].tolist() for results in (straight, broken)]
    assert predictions[0] == predictions[1]
