"""The head of Strata against ridge on standardised rows, with all rows at hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiocl_bench.heads import STRENGTHS, StandardisedRidge

CLASSES = 5


def _rows(count: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features whose means and scales differ by orders of magnitude, and labels that depend on them."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = generator.standard_normal((CLASSES, width))
    raw = centres[labels] + generator.standard_normal((count, width))
    return raw * generator.uniform(0.01, 50, width) + 100 * generator.standard_normal(width), labels


def _batch(F: np.ndarray, y: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The textbook: standardise, centre the targets, solve. Returns mean, deviation, ybar, weights."""
    mean, deviation = F.mean(0), F.std(0)
    X, Y = (F - mean) / deviation, np.eye(CLASSES)[y]
    lam = tau * F.shape[1] * np.eye(F.shape[1])
    return mean, deviation, Y.mean(0), np.linalg.solve(X.T @ X + lam, X.T @ (Y - Y.mean(0)))


def _learn(head: StandardisedRidge, F: np.ndarray, y: np.ndarray, parts: list[int]) -> StandardisedRidge:
    for rows in np.split(np.arange(len(y)), parts):
        head.update(torch.from_numpy(F[rows]), torch.from_numpy(y[rows]), CLASSES)
    return head


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 70), st.integers(2, 60), st.lists(st.integers(6, 70), max_size=4), st.floats(-4, 2))
def test_streaming_equals_batch(count: int, width: int, cuts: list[int], exponent: float) -> None:
    F, y = _rows(count, width)
    tau = 10.0**exponent
    head = _learn(StandardisedRidge(width), F, y, sorted(min(cut, count) for cut in cuts))
    head.solve(tau)
    mean, deviation, ybar, W = _batch(F, y, tau)
    tests, _ = _rows(9, width, seed=1)
    expected = ybar + (tests - mean) / deviation @ W
    assert np.allclose(head.logits(torch.from_numpy(tests)).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize(("count", "width"), [(40, 60), (61, 60), (200, 30)])
def test_cross_validation_equals_its_definition(count: int, width: int) -> None:
    F, y = _rows(count, width)
    head = _learn(StandardisedRidge(width), F, y, [20])
    X = (F - F.mean(0)) / F.std(0)
    Y = np.eye(CLASSES)[y]
    centring = np.eye(count) - 1 / count
    taus = (1e-3, 1e-1, 10.0)
    for tau, found in zip(taus, head.cross_validation(taus), strict=True):
        hat = X @ np.linalg.solve(X.T @ X + tau * width * np.eye(width), X.T)
        residual = ((centring - hat) @ Y) ** 2
        expected = (count - 1) * residual.sum() / np.trace(centring - hat) ** 2
        assert found == pytest.approx(expected, rel=1e-6)


def test_tune_takes_the_minimum_and_waits_for_growth() -> None:
    F, y = _rows(60, 40)
    head = _learn(StandardisedRidge(40), F[:30], y[:30], [])
    chosen = head.tune()
    errors = head.cross_validation()
    assert chosen == STRENGTHS[int(np.argmin(errors))]
    head.update(torch.from_numpy(F[30:40]), torch.from_numpy(y[30:40]), CLASSES)
    assert head.tune(strengths=[123.0]) == chosen  # 40 rows are not 1.5 x 30
    head.update(torch.from_numpy(F[40:]), torch.from_numpy(y[40:]), CLASSES)
    assert head.tune(strengths=[123.0]) == 123.0


def test_units_and_constant_features_do_not_matter() -> None:
    F, y = _rows(50, 20)
    tests, _ = _rows(6, 20, seed=1)
    plain = _learn(StandardisedRidge(20), F, y, [25])
    other = _learn(StandardisedRidge(21), np.c_[F * 1000 + 7, np.full(50, 3.0)], y, [10, 25])
    plain.solve(0.1)
    other.solve(0.1 * 20 / 21)  # lam = tau x number of features
    scores = plain.logits(torch.from_numpy(tests))
    again = other.logits(torch.from_numpy(np.c_[tests * 1000 + 7, np.full(6, -4.0)]))
    assert torch.allclose(scores, again, atol=1e-8)


def test_first_session_scale_and_plain_units() -> None:
    F, y = _rows(60, 20)
    tests, _ = _rows(6, 20, seed=1)
    for scale, deviation in (("first", F[:25].std(0)), ("none", np.sqrt(F.var(0).mean()))):
        head = _learn(StandardisedRidge(20, scale=scale), F, y, [25])
        head.solve(0.05)
        X, Y = (F - F.mean(0)) / deviation, np.eye(CLASSES)[y]
        W = np.linalg.solve(X.T @ X + 0.05 * 20 * np.eye(20), X.T @ (Y - Y.mean(0)))
        expected = Y.mean(0) + (tests - F.mean(0)) / deviation @ W
        assert np.allclose(head.logits(torch.from_numpy(tests)).numpy(), expected, atol=1e-7)


def test_rank_bounds_the_kept_bytes_and_keeps_what_is_there() -> None:
    generator = np.random.default_rng(0)
    low = generator.standard_normal((80, 6)) @ generator.standard_normal((6, 50))  # six directions in all
    y = np.arange(80) % CLASSES
    exact, small = StandardisedRidge(50), StandardisedRidge(50, rank=8)
    sizes = []
    for rows in np.split(np.arange(80), [20, 40, 60]):
        for head in (exact, small):
            head.update(torch.from_numpy(low[rows]), torch.from_numpy(y[rows]), CLASSES)
        sizes.append(small.nbytes)
    assert len(set(sizes)) == 1
    assert small.nbytes < exact.nbytes / 2
    exact.solve(0.1)
    small.solve(0.1)
    tests = torch.from_numpy(low[:10])
    assert torch.allclose(exact.logits(tests), small.logits(tests), atol=1e-6)
    assert small.cross_validation([0.1]) == pytest.approx(exact.cross_validation([0.1]), rel=1e-6)


@pytest.mark.parametrize("count", [30, 90])
def test_state_continues_bit_for_bit(count: int) -> None:
    F, y = _rows(count, 40)
    head = _learn(StandardisedRidge(40), F, y, [20])
    head.tune()
    again = StandardisedRidge(40)
    again.load_state_dict(head.state_dict())
    more, labels = _rows(25, 40, seed=2)
    for one in (head, again):
        one.update(torch.from_numpy(more), torch.from_numpy(labels), CLASSES)
        one.tune()
    tests: Tensor = torch.from_numpy(_rows(5, 40, seed=3)[0])
    assert torch.equal(head.logits(tests), again.logits(tests))
    assert head.nbytes == sum(value.nbytes for value in head.state_dict().values())


def test_new_classes_arrive_later() -> None:
    F, y = _rows(60, 20)
    order = np.argsort(y, kind="stable")
    head = StandardisedRidge(20)
    for rows in np.split(order, [24, 36]):
        head.update(torch.from_numpy(F[rows]), torch.from_numpy(y[rows]), int(y[rows].max()) + 1)
    head.solve(1.0)
    mean, deviation, ybar, W = _batch(F, y, 1.0)
    tests = _rows(9, 20, seed=1)[0]
    assert np.allclose(head.logits(torch.from_numpy(tests)).numpy(), ybar + (tests - mean) / deviation @ W, atol=1e-9)


def test_what_cannot_be_learnt_or_asked() -> None:
    head = StandardisedRidge(4)
    with pytest.raises(ValueError, match="no ridge strength"):
        head.logits(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="fewer than two rows"):
        head.tune()
    with pytest.raises(ValueError, match="positive"):
        head.solve(0.0)
    with pytest.raises(ValueError, match="rank"):
        StandardisedRidge(4, rank=4)
