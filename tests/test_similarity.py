"""Linear CKA against its definition by HSIC, and the invariances that define what it measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiocl_bench.similarity import linear_cka

SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 15), st.integers(1, 15), st.integers(0, 2**31))


def draw(n: int, p: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, p)))


def by_hsic(X: Tensor, Y: Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), HSIC(K, L) = tr(K H L H) / (n - 1)^2, Kornblith et al. 2019, Eq. 3."""
    x, y = X.double().numpy(), Y.double().numpy()
    n = len(x)
    H = np.eye(n) - 1 / n

    def hsic(K: np.ndarray, L: np.ndarray) -> float:
        return float(np.trace(K @ H @ L @ H)) / (n - 1) ** 2

    K, L = x @ x.T, y @ y.T
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


@settings(deadline=None)
@given(SHAPES)
def test_it_is_the_hsic_definition(shape: tuple[int, int, int, int]) -> None:
    """Shapes on both sides of n = p, so both forms of the computation are met."""
    n, p, q, seed = shape
    X, Y = draw(n, p, seed), draw(n, q, seed + 1) + 3
    assert linear_cka(X, Y) == pytest.approx(by_hsic(X, Y), abs=1e-9)


def test_both_forms_agree_where_the_form_changes() -> None:
    """A column of zeros changes no product, but makes p reach n."""
    X, Y = draw(7, 6, 0), draw(7, 5, 1)
    wide = torch.cat([X, torch.zeros(7, 1, dtype=X.dtype)], 1)
    assert linear_cka(X, Y) == pytest.approx(linear_cka(wide, Y), abs=1e-12)


@settings(deadline=None)
@given(SHAPES, st.floats(0.01, 100), st.floats(-5, 5))
def test_rotation_scale_and_shift_change_nothing(shape: tuple[int, int, int, int], scale: float, shift: float) -> None:
    n, p, q, seed = shape
    X, Y = draw(n, p, seed), draw(n, q, seed + 1)
    Q, _ = torch.linalg.qr(draw(p, p, seed + 2))
    assert linear_cka(scale * X @ Q + shift, Y) == pytest.approx(linear_cka(X, Y), abs=1e-8)
    assert linear_cka(X, scale * X @ Q + shift) == pytest.approx(1.0, abs=1e-9)


@settings(deadline=None)
@given(SHAPES)
def test_it_is_symmetric_and_between_0_and_1(shape: tuple[int, int, int, int]) -> None:
    n, p, q, seed = shape
    X, Y = draw(n, p, seed), draw(n, q, seed + 1)
    assert 0.0 <= linear_cka(X, Y) <= 1.0
    assert linear_cka(X, Y) == pytest.approx(linear_cka(Y, X), abs=1e-12)


def test_it_is_not_invariant_to_any_linear_map() -> None:
    X = draw(20, 4, 0)
    assert linear_cka(X, X * torch.tensor([10.0, 1.0, 0.1, 0.01])) < 0.9


def test_by_hand() -> None:
    assert linear_cka(torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([[2.0], [-2.0], [0.0]])) == pytest.approx(1)
    # One-dimensional features: CKA is the squared correlation, here (1/2)^2 = (3 / sqrt(2 * 18))^2.
    x, y = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([[0.0], [-3.0], [3.0]])
    assert linear_cka(x, y) == pytest.approx(0.25)
    orthogonal = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert linear_cka(orthogonal[:, :1], orthogonal[:, 1:]) == pytest.approx(0.0)


@example(0.1, 3, 1, 0)
@settings(deadline=None)
@given(st.floats(-1e3, 1e3), st.integers(2, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_constant_sides(value: float, n: int, p: int, seed: int) -> None:
    """A constant side has no direction, even where the mean of equal numbers is not exactly that number."""
    constant = torch.full((n, p), value, dtype=torch.float64)
    other = draw(n, 3, seed)
    assume(float(other.std(0).min()) > 1e-3)
    assert linear_cka(constant, 7 * constant + 1) == 1.0
    assert linear_cka(constant, other) == 0.0
    assert linear_cka(other, constant) == 0.0


def test_float32_features_far_from_zero_keep_their_meaning() -> None:
    X = draw(30, 5, 0)
    moved = (X + 1000).float()
    assert linear_cka(moved, X) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("rows_x", "rows_y"), [(3, 4), (1, 1), (0, 0)])
def test_unfit_rows_are_refused(rows_x: int, rows_y: int) -> None:
    with pytest.raises(ValueError, match="same clips on both sides and at least two"):
        linear_cka(torch.zeros(rows_x, 2), torch.zeros(rows_y, 2))
