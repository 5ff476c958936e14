"""FSA: the head against discriminant analysis by numpy, what is trained, and how (methods.md 2.10)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learners import NETWORKS, build, bytes_of, clips_of, everything_read, learn, module, network, opened, weights
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import config, registry
from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips, Method
from audiocl_bench.training import Recipe, linear_head, local_labels, rate

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
ALL = tuple(range(6))


def probe(method: Method) -> Tensor:
    return clips_of(ALL, method.backbone, per_class=4, seed=99)[0]


def scores(method: Method, mel: Tensor) -> np.ndarray:
    return np.asarray(method.classify(method.encode(Clips(mel))))


def analysis(z: np.ndarray, labels: np.ndarray, cov: str, shrink: float, tests: np.ndarray) -> np.ndarray:
    """Eq. 1 to 3 from all clips at once."""
    means = np.stack([z[labels == c].mean(0) for c in ALL])
    around = z - (means[labels] if cov == "within" else z.mean(0))
    freedom = len(z) - (len(means) if cov == "within" else 1)
    S = around.T @ around / freedom + shrink * np.eye(z.shape[1])
    w = np.linalg.solve(S, means.T)
    return tests @ w - 0.5 * np.sum(means.T * w, 0)


# ------------------------------------------------------------------------------------------------------------- the head


@both_networks
@pytest.mark.parametrize("cov", ["within", "total"])
@pytest.mark.parametrize("readout", [{}, {"layers": "all", "pool": "mean+std"}])
def test_sessions_add_up_to_the_analysis_of_all_clips(network_name: str, cov: str, readout: dict[str, str]) -> None:
    """With the encoder frozen, and with one that the first session adapted: the sums were all made after that."""
    for fsa in (False, True):
        method = learn(build("fsa", network(network_name), cov=cov, shrink=0.3, fsa=fsa, **readout), 0, 1, 2)
        z, labels = everything_read(method)
        mel = probe(method)
        tests = method.encode(Clips(mel)).double().numpy()
        want = analysis(z, labels, cov, 0.3, tests)
        np.testing.assert_allclose(scores(method, mel), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


def test_without_spread_it_is_the_nearest_mean() -> None:
    """A large diagonal drowns the covariance: distances to the means remain."""
    method = learn(build("fsa", fsa=False, shrink=1e9), 0, 1, 2)
    near = learn(build("ncm", metric="euclidean"), 0, 1, 2)
    mel = clips_of(ALL, method.backbone, per_class=20, seed=99)[0]
    assert np.array_equal(scores(method, mel).argmax(1), scores(near, mel).argmax(1))


# ------------------------------------------------------------------------------------------------------- the adaptation


@both_networks
@pytest.mark.parametrize("trains", ["all", "film"])
def test_what_the_first_session_changes(network_name: str, trains: str) -> None:
    method = build("fsa", network(network_name), trains=trains, lr=1e-3)
    norms = {
        f"{name}.{part}"
        for name, module in method.backbone.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    learn(method, 0)
    changed = {name for name, value in method.backbone.state_dict().items() if not torch.equal(value, before[name])}
    used = {name for name, _ in method.backbone.named_parameters()}
    if trains == "film":
        assert changed == norms
        assert set(method.state_dict()["body"]) == norms
    else:
        assert changed <= used
        assert norms < changed
        assert {name for name in used if "attn" in name and name.endswith("weight")} <= changed
        assert set(method.state_dict()["body"]) == used
    adapted = weights(method.backbone)
    learn(method, 1, 2)
    assert weights(method.backbone) == adapted
    assert method.encoder_version == 1


def test_frozen_it_trains_nothing_and_keeps_no_weights() -> None:
    method = build("fsa", preset="no-fsa")
    before = weights(method.backbone)
    learn(method, 0, 1, 2)
    assert weights(method.backbone) == before
    assert (method.encoder_version, method.context.report.most_trainable) == (0, 0)
    assert method.state_dict()["body"] == {}
    assert method.backbone.passes.clips == 36  # one pass over every clip


def test_one_epoch_equals_a_plain_loop() -> None:
    """Adam on cross-entropy over the session's own classes; half of the features hidden, the others doubled."""
    method = build("fsa", epochs=1, batch_size=6, lr=1e-3, dropout=0.5)
    twin = network()
    learn(method, 0)

    context = method.context
    head = linear_head(twin.dim, 2, context.generator("head"), context.device)
    hidden = context.generator("dropout")
    twin.requires_grad_(True)
    optimiser = torch.optim.Adam([*twin.parameters(), *head.parameters()], lr=1e-3)
    part = opened(build("fsa"), 0)
    for clips, y in part.batches(6, shuffle=context.generator("clip order", "adapt", 0)):
        z = twin.features(clips.mel)
        mask = torch.rand(z.shape, generator=hidden) >= 0.5
        loss = F.cross_entropy(head(torch.where(mask, 2 * z, torch.zeros(()))), local_labels(y, part.classes))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for (name, ours), theirs in zip(method.backbone.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("epochs", "decays"), [(200, (50, 100, 150)), (20, (5, 10, 15)), (2, (1,)), (1, ())])
def test_the_rate_falls_after_each_quarter(
    monkeypatch: pytest.MonkeyPatch, epochs: int, decays: tuple[int, ...]
) -> None:
    """The released code's milestones 50, 100 and 150 of 200 epochs, factor 0.7, whatever the number of epochs."""
    seen: list[Recipe] = []

    def watch(session: Any, groups: Any, loss: Any, recipe: Recipe, *rest: Any, **named: Any) -> list[float]:
        seen.append(recipe)
        return [0.0]

    monkeypatch.setattr(module("fsa"), "fit", watch)
    learn(build("fsa", epochs=epochs), 0)
    for epoch in range(epochs):
        assert rate(seen[0], epoch) == pytest.approx(0.7 ** sum(epoch >= milestone for milestone in decays))
    assert (seen[0].optimiser, seen[0].weight_decay) == ("adam", 0.0)


def test_training_works() -> None:
    method = build("fsa", epochs=12, lr=1e-3, dropout=0.0)
    learn(method, 0)
    assert method.context.report.notes["adapt_loss"] < 0.1 * np.log(2)


def test_a_restored_learner_goes_on_as_if_nothing_had_happened() -> None:
    straight = learn(build("fsa", trains="film"), 0, 1, 2)
    resumed = build("fsa", trains="film")
    resumed.load_state_dict(learn(build("fsa", trains="film"), 0).state_dict())
    learn(resumed, 1, 2)
    assert bytes_of(resumed.state_dict()) == bytes_of(straight.state_dict())
    assert np.array_equal(scores(resumed, probe(resumed)), scores(straight, probe(straight)))


# --------------------------------------------------------------------------------------------------------- the settings


def test_presets() -> None:
    def made(**changes: Any) -> Any:
        return config.build(registry.load("fsa").Config, "esc50", changes, owner="fsa")

    plain, official = made(), made(preset="official")
    assert (plain.fsa, plain.trains, plain.cov, plain.shrink, plain.variant) == (True, "all", "within", 1.0, "")
    assert (official.epochs, official.lr, official.batch_size, official.cov) == (200, 0.005, 256, "total")
    assert made(preset="film").trains == "film"
    assert not made(preset="no-fsa").fsa
    with pytest.raises(ConfigError, match="'shrink' is 0"):
        made(shrink=0)
    with pytest.raises(ConfigError, match="'dropout' is 1"):
        made(dropout=1)
