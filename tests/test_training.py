"""The training loop against steps computed by hand, and what a projected step may and may not do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips, Context, Session, SilentReporter, StreamInfo
from audiocl_bench.training import Group, Recipe, fit, linear_head, local_labels

CPU = torch.device("cpu")
DIM, CLIPS = 6, 10
MEL = torch.randn(CLIPS, 2, DIM, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(CLIPS) % 2


class Reporter(SilentReporter):
    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[tuple[str, int, int, int, float]] = []

    def epoch(self, stage: str, epoch: int, epochs: int, clips: int, loss: float) -> None:
        self.epochs.append((stage, epoch, epochs, clips, loss))


def session(index: int = 0) -> Session:
    return Session(index, (0, 1), 0, LABELS, lambda rows: MEL[torch.from_numpy(rows)], CPU)


def context(seed: int = 0) -> Context:
    return Context(seed, StreamInfo("x", 1, 2, 1), CPU, Reporter())


def vector(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def linear_loss(parameter: nn.Parameter, slope: Tensor) -> Callable[[Clips, Tensor], Tensor]:
    """A loss whose gradient is `slope`, whatever the clips."""
    return lambda clips, labels: (parameter * slope).sum() + 0 * clips.mel.sum()


def squared_loss(parameter: nn.Parameter) -> Callable[[Clips, Tensor], Tensor]:
    return lambda clips, y: ((clips.mel.mean(1) @ parameter - y.float()) ** 2).mean()


# ---------------------------------------------------------------------------------------------------- steps by hand


def test_one_epoch_of_sgd_with_momentum_and_decay_equals_the_hand_computation() -> None:
    """v = mu v + (g + lambda w), w = w - lr v, over the batches in the drawn order; gradients in closed form."""
    lr, mu, decay = 0.1, 0.9, 0.01
    w = nn.Parameter(torch.linspace(-1, 1, DIM))
    recipe = Recipe(1, 4, momentum=mu, weight_decay=decay, schedule="constant")
    history = fit(session(3), [Group((w,), lr)], squared_loss(w), recipe, context(7), stage="head")

    order = torch.randperm(CLIPS, generator=context(7).generator("clip order", "head", 3)).numpy()
    x, y = MEL.mean(1).double().numpy(), LABELS.astype(float)
    by_hand, velocity, total = np.linspace(-1, 1, DIM), np.zeros(DIM), 0.0
    for rows in np.split(order, [4, 8]):
        error = x[rows] @ by_hand - y[rows]
        total += float((error**2).sum())
        velocity = mu * velocity + 2 * x[rows].T @ error / len(rows) + decay * by_hand
        by_hand = by_hand - lr * velocity
    np.testing.assert_allclose(w.detach().numpy(), by_hand, atol=1e-5)
    assert history == pytest.approx([total / CLIPS], rel=1e-5)


def test_one_step_of_adam_equals_the_hand_computation() -> None:
    """The first step is lr * g / (|g| + eps) whatever the gradient's size, with decay inside g."""
    w = vector(1.0, -2.0, 3.0)
    slope = torch.tensor([0.5, 1e-3, -4.0])
    fit(
        session(), [Group((w,), 0.01)], linear_loss(w, slope),
        Recipe(1, CLIPS, "adam", weight_decay=0.1, schedule="constant"), context(), stage="a",
    )  # fmt: skip
    g = slope + 0.1 * torch.tensor([1.0, -2.0, 3.0])
    expected = torch.tensor([1.0, -2.0, 3.0]) - 0.01 * g / (g.abs() + 1e-8)
    assert torch.allclose(w.detach(), expected, atol=1e-6)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_cosine_schedule_anneals_per_epoch(epochs: int) -> None:
    """With a constant gradient and no momentum, an epoch moves by lr_e times its number of batches."""
    w = vector(0.0)
    places: list[float] = []

    class Watch(Reporter):
        def epoch(self, *arguments: Any) -> None:
            places.append(float(w.detach()))

    run = Context(0, StreamInfo("x", 1, 2, 1), CPU, Watch())
    fit(session(), [Group((w,), 0.2)], linear_loss(w, torch.ones(1)), Recipe(epochs, 4, momentum=0), run, stage="a")
    moved = -np.diff([0.0, *places]) / 3  # three batches
    expected = [0.2 * (1 + math.cos(math.pi * e / epochs)) / 2 for e in range(epochs)]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_a_constant_schedule_stays() -> None:
    w = vector(0.0)
    recipe = Recipe(3, CLIPS, momentum=0, schedule="constant")
    fit(session(), [Group((w,), 0.5)], linear_loss(w, torch.ones(1)), recipe, context(), stage="a")
    assert float(w.detach()) == pytest.approx(-1.5)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_groups_have_their_own_rates_and_others_stay(schedule: Any) -> None:
    fast, slow, other = vector(0.0), vector(0.0), vector(0.0)

    def loss(clips: Clips, y: Tensor) -> Tensor:
        return fast.sum() + slow.sum() + other.sum()

    fit(
        session(), [Group((fast,), 1.0), Group((slow,), 0.01)], loss,
        Recipe(2, 5, momentum=0, schedule=schedule), context(), stage="a",
    )  # fmt: skip
    assert float(fast.detach()) == pytest.approx(100 * float(slow.detach()))
    assert float(fast.detach()) < 0
    assert float(other.detach()) == 0


def test_clipping_bounds_the_joint_norm() -> None:
    a, b = vector(0.0), vector(0.0)

    def loss(clips: Clips, y: Tensor) -> Tensor:
        return 30 * a.sum() + 40 * b.sum()

    recipe = Recipe(1, CLIPS, momentum=0, schedule="constant", clip=1.0)
    fit(session(), [Group((a,), 1.0), Group((b,), 1.0)], loss, recipe, context(), stage="a")
    assert (float(a.detach()), float(b.detach())) == (pytest.approx(-0.6), pytest.approx(-0.8))
    small = vector(0.0)
    fit(session(), [Group((small,), 1.0)], linear_loss(small, torch.tensor([0.5])), recipe, context(), stage="a")
    assert float(small.detach()) == pytest.approx(-0.5), "a gradient below the bound stays"


# ------------------------------------------------------------------------------------------------------- determinism


def trained(seed: int = 0, stage: str = "a", index: int = 0) -> Tensor:
    w = nn.Parameter(torch.zeros(DIM))
    fit(session(index), [Group((w,), 0.3)], squared_loss(w), Recipe(2, 3), context(seed), stage=stage)
    return w.detach()


def test_equal_inputs_train_identically_and_the_order_depends_on_seed_stage_and_session() -> None:
    assert torch.equal(trained(), trained())
    torch.manual_seed(99)
    assert torch.equal(trained(), trained())
    variants = [trained(), trained(seed=1), trained(stage="b"), trained(index=1)]
    assert all(not torch.equal(variants[i], variants[j]) for i in range(4) for j in range(i))


def test_progress_and_counts_are_reported() -> None:
    run, w = context(), nn.Parameter(torch.zeros(DIM))
    history = fit(session(), [Group((w,), 0.1)], squared_loss(w), Recipe(3, 4), run, stage="adapt")
    assert run.report.epochs == [("adapt", e, 3, CLIPS, history[e - 1]) for e in (1, 2, 3)]
    assert run.report.most_trainable == DIM
    assert history[-1] < history[0]


def test_no_epoch_changes_nothing() -> None:
    w = vector(1.0)
    assert fit(session(), [Group((w,), 1.0)], linear_loss(w, torch.ones(1)), Recipe(0, 4), context(), stage="a") == []
    assert float(w.detach()) == 1.0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_divergence_is_a_sentence_about_the_learning_rate(loss: float) -> None:
    w = vector(1.0)
    with pytest.raises(ConfigError, match=r"diverged in stage 'adapt' of session 2 .*learning rate \(0.25, 3\)"):
        fit(
            session(2), [Group((w,), 0.25), Group((vector(1.0),), 3.0)],
            lambda clips, y: (w * loss).sum(), Recipe(1, 4), context(), stage="adapt",
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- projected steps


def subspace(k: int, seed: int = 1) -> Tensor:
    """A projector [DIM, DIM] onto k random directions."""
    U, _ = torch.linalg.qr(torch.randn(DIM, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return (U @ U.T).float()


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_projected_training_never_leaves_the_subspace(optimiser: Any, clip: float | None) -> None:
    """With momentum, decay and Adam's scaling: every step lies in the subspace, not the first alone."""
    P = subspace(2)
    start = torch.linspace(-1, 1, DIM)
    w, free = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    recipe = Recipe(4, 3, optimiser, momentum=0.9, weight_decay=0.05, clip=clip)

    def loss(clips: Clips, y: Tensor) -> Tensor:
        return squared_loss(w)(clips, y) + squared_loss(free)(clips, y)

    fit(session(), [Group((w, free), 0.1)], loss, recipe, context(), stage="a", projectors={w: lambda step: step @ P})
    moved, moved_free = w.detach() - start, free.detach() - start
    assert float(moved.norm()) > 1e-2
    assert float((moved - moved @ P).norm()) < 1e-5 * float(moved.norm()) + 1e-6
    assert float((moved_free - moved_free @ P).norm()) > 0.1 * float(moved_free.norm()), "the free one does leave it"


def test_for_sgd_projecting_steps_is_projecting_gradients_and_decay_before_the_momentum() -> None:
    P, lr, mu, decay = subspace(3).double().numpy(), 0.1, 0.9, 0.05
    w = nn.Parameter(torch.linspace(-1, 1, DIM))
    project = torch.from_numpy(P).float()
    recipe = Recipe(2, 4, momentum=mu, weight_decay=decay, schedule="constant")
    fit(
        session(), [Group((w,), lr)], squared_loss(w), recipe, context(), stage="a",
        projectors={w: lambda step: step @ project},
    )  # fmt: skip
    drawn = context().generator("clip order", "a", 0)
    x, y = MEL.mean(1).double().numpy(), LABELS.astype(float)
    by_hand, velocity = np.linspace(-1, 1, DIM), np.zeros(DIM)
    for _ in range(2):
        for rows in np.split(torch.randperm(CLIPS, generator=drawn).numpy(), [4, 8]):
            gradient = 2 * x[rows].T @ (x[rows] @ by_hand - y[rows]) / len(rows)
            velocity = mu * velocity + P @ (gradient + decay * by_hand)
            by_hand = by_hand - lr * velocity
    np.testing.assert_allclose(w.detach().numpy(), by_hand, atol=1e-5)


def test_the_identity_as_projector_changes_nothing() -> None:
    results = []
    for projectors in (None, True):
        w = nn.Parameter(torch.zeros(DIM))
        maps = {w: lambda step: step} if projectors else None
        fit(session(), [Group((w,), 0.1)], squared_loss(w), Recipe(2, 3), context(), stage="a", projectors=maps)
        results.append(w.detach())
    assert torch.allclose(results[0], results[1], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- helpers


def test_a_linear_head_is_drawn_from_its_generator_alone() -> None:
    def head(seed: int) -> nn.Linear:
        return linear_head(400, 300, torch.Generator().manual_seed(seed), CPU)

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = head(1)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is not used"
    assert torch.equal(first.weight, head(1).weight)
    assert torch.equal(first.bias, head(1).bias)
    assert not torch.equal(first.weight, head(2).weight)
    assert first.weight.shape == (300, 400)
    assert first.weight.requires_grad
    bound = 1 / 20
    assert bound * 0.999 < float(first.weight.detach().abs().max()) <= bound
    assert float(first.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert float(first.bias.detach().abs().max()) <= bound


def test_local_labels_by_hand() -> None:
    labels = torch.tensor([7, 4, 9, 4])
    assert local_labels(labels, (9, 4, 7)).tolist() == [1, 0, 2, 0]
    assert local_labels(torch.tensor([0, 1]), (0, 1)).tolist() == [0, 1]


def test_a_classifier_learns_through_the_loop() -> None:
    mel = F.one_hot(torch.from_numpy(LABELS), DIM).float()[:, None].expand(-1, 2, -1)
    opened = Session(0, (0, 1), 0, LABELS, lambda rows: mel[torch.from_numpy(rows)], CPU)
    head = linear_head(DIM, 2, torch.Generator().manual_seed(0), CPU)

    def loss(clips: Clips, y: Tensor) -> Tensor:
        return F.cross_entropy(head(clips.mel.mean(1)), y)

    history = fit(opened, [Group(tuple(head.parameters()), 0.5)], loss, Recipe(30, 4), context(), stage="a")
    assert history[-1] < 0.1 < history[0]
    assert head(mel.mean(1)).argmax(1).tolist() == LABELS.tolist()
