"""The training loop against steps computed by hand, and what a projected step may and may not do."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips, Context, Session, SilentReporter, StreamInfo
from audiocl_bench.training import (
    Group,
    GrowingHead,
    Recipe,
    fit,
    fit_samples,
    linear_head,
    local_labels,
    rate,
)

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


# ------------------------------------------------------------------------------------------------------------ schedules


@pytest.mark.parametrize("epochs", [1, 2, 7, 50])
def test_rates_equal_their_formulas(epochs: int) -> None:
    for e in range(epochs):
        assert rate(Recipe(epochs, 1, schedule="constant"), e) == 1.0
        assert rate(Recipe(epochs, 1, schedule="cosine"), e) == pytest.approx((1 + math.cos(math.pi * e / epochs)) / 2)
        coda = 1.0 if epochs == 1 else math.cos(99 * math.pi * e / (200 * (epochs - 1)))
        assert rate(Recipe(epochs, 1, schedule="coda"), e) == pytest.approx(coda)


@pytest.mark.parametrize("epochs", [2, 20, 50])
def test_codas_schedule_falls_from_one_to_its_published_end(epochs: int) -> None:
    """1.0 to 0.0157 (methods.md section 1.3), one epoch included: the official code divides by zero there."""
    rates = [rate(Recipe(epochs, 1, schedule="coda"), e) for e in range(epochs)]
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.0157, abs=1e-4)
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rate(Recipe(1, 1, schedule="coda"), 0) == 1.0


def test_steps_divide_the_rate_by_ten() -> None:
    recipe = Recipe(70, 1, schedule="step", step_every=30)
    assert [rate(recipe, e) for e in (0, 29, 30, 59, 60, 69)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert [rate(Recipe(4, 1, schedule="step", step_every=1), e) for e in range(4)] == pytest.approx(
        [1, 0.1, 0.01, 0.001]
    )


@pytest.mark.parametrize("schedule", ["coda", "step"])
def test_training_follows_the_schedule(schedule: Any) -> None:
    """With a constant gradient and no momentum, the way an epoch goes is its rate."""
    w = vector(0.0)
    places: list[float] = []

    class Watch(Reporter):
        def epoch(self, *arguments: Any) -> None:
            places.append(float(w.detach()))

    run = Context(0, StreamInfo("x", 1, 2, 1), CPU, Watch())
    recipe = Recipe(4, CLIPS, momentum=0, schedule=schedule, step_every=2)
    fit(session(), [Group((w,), 0.5)], linear_loss(w, torch.ones(1)), recipe, run, stage="a")
    np.testing.assert_allclose(-np.diff([0.0, *places]), [0.5 * rate(recipe, e) for e in range(4)], atol=1e-6)


# ----------------------------------------------------------------------------------------------- training on samples


def test_samples_are_drawn_per_epoch_and_trained_on_as_they_come() -> None:
    """Gradient descent on (w x - y)^2 by hand: two epochs of two batches, drawn by epoch number."""
    w, run, asked = vector(0.5), context(), []

    def draw(epoch: int) -> list[tuple[Tensor, Tensor]]:
        asked.append(epoch)
        return [(torch.tensor([[1.0], [2.0]]) + epoch, torch.tensor([1.0, 3.0])), (torch.ones(1, 1), torch.zeros(1))]

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return ((x[:, 0] * w - y) ** 2).mean()

    recipe = Recipe(2, 99, momentum=0, schedule="constant")
    history = fit_samples(draw, [Group((w,), 0.1)], loss, recipe, run, stage="align", session=3)

    by_hand, totals = 0.5, []
    for epoch in range(2):
        total = 0.0
        for x, y in (([1 + epoch, 2 + epoch], [1, 3]), ([1], [0])):
            errors = [by_hand * a - b for a, b in zip(x, y, strict=True)]
            total += sum(error**2 for error in errors)
            by_hand -= 0.1 * sum(2 * error * a for error, a in zip(errors, x, strict=True)) / len(x)
        totals.append(total / 3)
    assert float(w.detach()) == pytest.approx(by_hand, rel=1e-5)
    assert history == pytest.approx(totals, rel=1e-5)
    assert asked == [0, 1]
    assert run.report.epochs == [("align", e, 2, 3, history[e - 1]) for e in (1, 2)]
    assert run.report.most_trainable == 1


def test_samples_and_clips_train_alike() -> None:
    """`fit` is `fit_samples` on a session's batches."""
    one, two = nn.Parameter(torch.zeros(DIM)), nn.Parameter(torch.zeros(DIM))
    recipe = Recipe(3, 4, "adam", weight_decay=0.01, clip=0.5)
    fit(session(1), [Group((one,), 0.3)], squared_loss(one), recipe, context(5), stage="s")
    order, part = context(5).generator("clip order", "s", 1), session(1)

    def draw(epoch: int) -> Any:
        return ((clips.mel, y) for clips, y in part.batches(4, shuffle=order))

    def loss(mel: Tensor, y: Tensor) -> Tensor:
        return ((mel.mean(1) @ two - y.float()) ** 2).mean()

    fit_samples(draw, [Group((two,), 0.3)], loss, recipe, context(5), stage="s", session=1)
    assert torch.equal(one, two)


def test_no_sample_changes_nothing() -> None:
    w = vector(1.0)
    history = fit_samples(
        lambda epoch: [], [Group((w,), 1.0)], lambda x, y: w.sum(), Recipe(2, 1), context(), stage="a", session=0
    )
    assert history == [0.0, 0.0]
    assert float(w.detach()) == 1.0


def test_divergence_on_samples_names_stage_and_session() -> None:
    w = vector(1.0)
    batch = [(torch.ones(1, 1), torch.zeros(1))]
    with pytest.raises(ConfigError, match=r"diverged in stage 'align' of session 4 .*learning rate \(2\)"):
        fit_samples(
            lambda epoch: batch, [Group((w,), 2.0)], lambda x, y: w.sum() * math.nan,
            Recipe(1, 1), context(), stage="align", session=4,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ a growing head


def layer(classes: int, seed: int) -> nn.Linear:
    return linear_head(DIM, classes, torch.Generator().manual_seed(seed), CPU)


def test_a_head_grows_row_by_row_and_keeps_its_bytes() -> None:
    head, x = GrowingHead(DIM, CPU), torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
    assert head(x).shape == (5, 0)
    layers = [layer(2, 1), layer(1, 2), layer(3, 3)]
    for count, rows in zip((2, 3, 6), layers, strict=True):
        before = head.state_dict()
        head.append(rows)
        assert head(x).shape == (5, count)
        kept = count - rows.out_features
        assert head.weight[:kept].numpy().tobytes() == before["weight"].numpy().tobytes()
        assert head.bias[:kept].numpy().tobytes() == before["bias"].numpy().tobytes()
    torch.testing.assert_close(head(x), torch.cat([rows(x).detach() for rows in layers], dim=1))
    assert not head(x).requires_grad


def test_appended_rows_are_copies() -> None:
    head, rows = GrowingHead(DIM, CPU), layer(2, 1)
    head.append(rows)
    before = head.weight.clone()
    with torch.no_grad():
        rows.weight.zero_()
    assert torch.equal(head.weight, before)


def test_a_heads_state_is_a_copy_of_any_size() -> None:
    head = GrowingHead(DIM, CPU)
    for seed in (1, 2):
        head.append(layer(2, seed))
    state = head.state_dict()
    other = GrowingHead(DIM, CPU)
    other.append(layer(1, 3))
    other.load_state_dict(state)
    assert torch.equal(other.weight, head.weight)
    assert torch.equal(other.bias, head.bias)
    state["weight"].zero_()
    assert bool(head.weight.any())
    assert bool(other.weight.any())
    assert set(state) == {"weight", "bias"}


def test_the_whole_head_can_be_trained_when_asked() -> None:
    """Alignment trains all rows together; between sessions nothing does."""
    head = GrowingHead(DIM, CPU)
    for seed in (1, 2):
        head.append(layer(2, seed))
    assert not head.weight.requires_grad
    before = head.weight.clone()
    x, y = torch.randn(8, DIM, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    for parameter in (head.weight, head.bias):
        parameter.requires_grad_(True)
    fit_samples(
        lambda epoch: [(x, y)], [Group((head.weight, head.bias), 0.5)], lambda f, t: F.cross_entropy(head(f), t),
        Recipe(3, 8), context(), stage="align", session=1,
    )  # fmt: skip
    assert all(not torch.equal(before[row], head.weight.detach()[row]) for row in range(4))
