"""Closed-form heads against independent references: batch solves, the published recursion, brute force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from audiocl_bench.errors import CheckpointError
from audiocl_bench.heads import (
    LAMBDAS,
    LDAHead,
    NCMHead,
    RandomProjection,
    RidgeHead,
    _linalg,
    choose_lambda,
    holdout,
    one_hot,
    ridge,
    ridge_loo,
    ridge_path,
    search,
)
from audiocl_bench.heads.search import first_minimum

WIDTH = 300
CLASSES = 20


def stream(seed: int = 0, per_class: int = 30, dim: int = 64, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """The synthetic stream of the reference table: 20 Gaussian classes, 64-d, 300 random ReLU features, 600 rows."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(CLASSES, dim))
    labels = np.repeat(np.arange(CLASSES), per_class)
    features = centres[labels] + 0.5 * generator.normal(size=(len(labels), dim))
    order = generator.permutation(len(labels))
    H = np.maximum(features @ generator.normal(size=(dim, width)), 0.0)
    # Sorted into four tasks of five classes, shuffled inside each.
    order = order[np.argsort(labels[order] // 5, kind="stable")]
    return torch.from_numpy(H[order]), torch.from_numpy(labels[order])


def batch_ridge(H: Tensor, labels: Tensor, classes: int, lam: float) -> np.ndarray:
    h, y = H.numpy(), np.eye(classes)[labels.numpy()]
    return scipy.linalg.solve(h.T @ h + lam * np.eye(h.shape[1]), h.T @ y, assume_a="pos")


def recursion(H: Tensor, labels: Tensor, classes: int, gamma: float, batch: int, dtype: type = np.float64):
    """PACE Eq 2 and 3 as printed: R_t and W_t, starting at R_0 = I / gamma and W_0 = 0."""
    width = H.shape[1]
    R = np.eye(width, dtype=dtype) / dtype(gamma)
    W = np.zeros((width, classes), dtype=dtype)
    for start in range(0, len(H), batch):
        Z = H[start : start + batch].numpy().astype(dtype)
        Y = np.eye(classes, dtype=dtype)[labels[start : start + batch].numpy()]
        RZ = R @ Z.T
        # Solved, not inverted: with 600 rows in one batch an explicit inverse alone costs five digits of W.
        R = R - RZ @ scipy.linalg.solve(np.eye(len(Z), dtype=dtype) + Z @ RZ, RZ.T)
        R = (R + R.T) / 2
        W = W - R @ Z.T @ Z @ W + R @ Z.T @ Y
    return R, W


def error(got: Tensor | np.ndarray, want: Tensor | np.ndarray) -> float:
    got, want = np.asarray(got), np.asarray(want)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def fed(H: Tensor, labels: Tensor, batch: int, width: int | None = None) -> RidgeHead:
    head = RidgeHead(width or H.shape[1])
    seen = 0
    for start in range(0, len(H), batch):
        seen = max(seen, int(labels[start : start + batch].max()) + 1)
        head.update(H[start : start + batch], labels[start : start + batch], seen)
    return head


# ------------------------------------------------------------------------------------------------ random projection


def test_projection_is_relu_of_a_product_in_float64() -> None:
    layer = RandomProjection.draw(16, 40, seed=3)
    f = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    want = np.maximum(f.double().numpy() @ layer.matrix.numpy(), 0)
    assert layer(f).dtype == torch.float64
    np.testing.assert_allclose(layer(f).numpy(), want, rtol=1e-12, atol=1e-12)
    assert layer.nbytes == 16 * 40 * 8
    assert layer.out_width == 40


def test_identity_projection_keeps_negative_features() -> None:
    f = torch.tensor([[-1.5, 2.0]])
    for width in (0, None):
        layer = RandomProjection.draw(2, width, seed=0)
        assert torch.equal(layer(f), f.double())
        assert layer.nbytes == 0
        assert layer.out_width == 2


def test_h_squared_differs_by_three_times_the_dimension() -> None:
    f = torch.randn(200, 768, generator=torch.Generator().manual_seed(0))
    square = {s: RandomProjection.draw(768, 500, scaling=s, seed=1)(f).square().mean() for s in ("ranpac", "acil")}
    assert float(square["ranpac"] / square["acil"]) == pytest.approx(2304, rel=0.02)
    assert float(square["ranpac"]) == pytest.approx(384, rel=0.05)


def test_projection_comes_back_from_its_recipe_bit_for_bit() -> None:
    layer = RandomProjection.draw(8, 30, scaling="acil", seed=7, purpose=("ranpac", 2))
    again = RandomProjection.from_recipe(layer.recipe())
    assert torch.equal(again.matrix, layer.matrix)
    assert not torch.equal(RandomProjection.draw(8, 30, scaling="acil", seed=8).matrix, layer.matrix)
    assert float(layer.matrix.abs().max()) <= 1 / math.sqrt(8)
    with pytest.raises(CheckpointError, match="NumPy"):
        RandomProjection.from_recipe(layer.recipe() | {"sha256": "0" * 64})


# ------------------------------------------------------------------------------------------- ridge against references


@pytest.mark.parametrize(("gamma", "bound"), [(0.1, 1e-6), (10.0, 1e-8), (1000.0, 1e-11)])
@pytest.mark.parametrize("batch", [1, 7, 64, 600])
def test_ridge_equals_batch_ridge_and_the_recursion(batch: int, gamma: float, bound: float) -> None:
    H, labels = stream()
    W = fed(H, labels, batch).solve(gamma)
    assert error(W, batch_ridge(H, labels, CLASSES, gamma)) < 1e-11
    R, W_rls = recursion(H, labels, CLASSES, gamma, batch)
    assert error(W, W_rls) < bound
    assert error(R, np.linalg.inv(H.numpy().T @ H.numpy() + gamma * np.eye(WIDTH))) < bound


@pytest.mark.parametrize("rows", [40, 150, 299])
@pytest.mark.parametrize("gamma", [0.1, 1000.0])
def test_ridge_equals_the_recursion_while_rows_are_fewer_than_features(rows: int, gamma: float) -> None:
    H, labels = stream()
    head = fed(H[:rows], labels[:rows], 16)
    assert head.form == "rows"
    _, W_rls = recursion(H[:rows], labels[:rows], head.num_classes, gamma, 16)
    assert error(head.solve(gamma), W_rls) < 1e-6


def test_float32_recursion_fails_where_the_head_does_not() -> None:
    H, labels = stream()
    _, broken = recursion(H, labels, CLASSES, 0.1, 64, np.float32)
    want = batch_ridge(H, labels, CLASSES, 0.1)
    assert not error(broken, want) < 1e-2
    assert error(fed(H.float(), labels, 64).solve(0.1), batch_ridge(H.float().double(), labels, CLASSES, 0.1)) < 1e-9


@given(
    rows=st.integers(1, 30),
    width=st.integers(1, 20),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    exponent=st.integers(-2, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_any_split_equals_one_batch(rows: int, width: int, cuts: list[int], exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    H = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (rows,), generator=generator)
    lam = 10.0**exponent
    head = RidgeHead(width)
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    for start, stop in pairwise(edges):
        head.update(H[start:stop], labels[start:stop], 4)
        head.solve(lam)  # also in between: the grown factor must agree with a fresh one
    assert head.form == ("rows" if rows < width else "gram")
    W = head.solve(lam).numpy()
    np.testing.assert_allclose(W, batch_ridge(H, labels, 4, lam), rtol=1e-7, atol=1e-9)


def test_order_tasks_and_class_order_do_not_matter() -> None:
    H, labels = stream()
    W = fed(H, labels, 150).solve(10.0)
    order = torch.from_numpy(np.random.default_rng(5).permutation(len(H)))
    assert error(fed(H[order], labels[order], 64).solve(10.0), W) < 1e-9
    assert error(fed(H.flip(0), labels.flip(0), 50).solve(10.0), W) < 1e-9
    renamed = torch.from_numpy(np.random.default_rng(6).permutation(CLASSES))
    W_renamed = fed(H, renamed[labels], 600).solve(10.0)
    assert error(W_renamed[:, renamed], W) < 1e-9


def test_statistics_are_gram_and_class_sums_in_both_forms() -> None:
    H, labels = stream()
    for rows in (120, 600):
        G, Q = fed(H[:rows], labels[:rows], 30).gram()
        assert error(G, H[:rows].T @ H[:rows]) < 1e-12
        assert torch.equal(G, G.T) or rows < WIDTH
        for c in range(Q.shape[1]):
            np.testing.assert_allclose(Q[:, c], H[:rows][labels[:rows] == c].sum(0), rtol=1e-9, atol=1e-9)


def test_change_of_form_is_exact() -> None:
    H, labels = stream()
    rows, gram = fed(H[:299], labels[:299], 23), fed(H[:299], labels[:299], 23)
    gram._to_gram()
    assert (rows.form, gram.form) == ("rows", "gram")
    for lam in (1e-2, 1.0, 1e4):
        assert error(gram.solve(lam), rows.solve(lam)) < 1e-8
    rows.update(H[299:], labels[299:], CLASSES)
    gram.update(H[299:], labels[299:], CLASSES)
    assert rows.form == "gram"
    assert error(rows.solve(1.0), gram.solve(1.0)) < 1e-11
    assert error(rows.solve(1.0), batch_ridge(H, labels, CLASSES, 1.0)) < 1e-10


def test_dual_equals_direct_solve_along_the_path() -> None:
    H, labels = stream()
    H, labels = H[:200], labels[:200]
    head = fed(H, labels, 50)
    for lam in (lam for lam in LAMBDAS if lam >= 1e-2):
        assert error(head.solve(lam), batch_ridge(H, labels, head.num_classes, lam)) < 1e-6


def test_empty_class_has_a_zero_column_and_large_ridge_gives_class_sums() -> None:
    H, labels = stream()
    for rows in (100, 600):
        head = fed(H[:rows], labels[:rows], 100)
        known = head.num_classes
        before = head.solve(1.0).clone()
        head.update(H[:0], labels[:0], known + 2)
        W = head.solve(1.0)
        assert W.shape == (WIDTH, known + 2)
        assert torch.equal(W[:, known:], torch.zeros(WIDTH, 2, dtype=torch.float64))
        assert error(W[:, :known], before) < 1e-12
        big = 1e14
        assert error(big * head.solve(big)[:, :known], H[:rows].T @ one_hot(labels[:rows], known)) < 1e-6


def test_incremental_equals_joint_accuracy() -> None:
    H, labels = stream()
    assert torch.equal(_predictions(fed(H, labels, 150), H), _predictions(fed(H, labels, 600), H))


def _predictions(head: RidgeHead, H: Tensor) -> Tensor:
    head.solve(1.0)
    return head.predict(H)


def test_kept_rows_are_a_rotation_and_not_the_clips() -> None:
    H, labels = stream()
    head = fed(H[:64], labels[:64], 16)
    state = head.state_dict()
    R, Z = state["R"], state["Z"]
    assert R.shape == (64, WIDTH)
    assert error(R.T @ R, H[:64].T @ H[:64]) < 1e-12
    closeness = torch.nn.functional.normalize(R) @ torch.nn.functional.normalize(H[:64]).T
    # The leading row is close to the block's mean; no kept row is a clip.
    assert float(closeness.abs().max()) < 0.99
    assert error(R.T @ Z, H[:64].T @ one_hot(labels[:64], Z.shape[1])) < 1e-12


def test_kept_rows_forget_the_order_of_the_clips() -> None:
    H, labels = stream()
    order = torch.from_numpy(np.random.default_rng(1).permutation(40))
    one, other = fed(H[:40], labels[:40], 40).state_dict(), fed(H[order], labels[order], 40).state_dict()
    np.testing.assert_allclose(one["R"].abs(), other["R"].abs(), rtol=1e-6, atol=1e-6)


def test_never_keeps_more_than_the_smaller_form() -> None:
    H, labels = stream()
    for rows in (1, 50, 299, 300, 600):
        head = fed(H[:rows], labels[:rows], 40)
        assert head.nbytes == sum(v.numel() * v.element_size() for v in head.state_dict().values())
        assert head.nbytes <= 8 * (min(rows, WIDTH) * (WIDTH + head.num_classes) + 64)


@pytest.mark.parametrize("lams", [(1.0,), (1.0, 5.0)])
@pytest.mark.parametrize("cut", [1, 3, 9, 25, 36])
def test_resume_is_bit_exact(cut: int, lams: Sequence[float]) -> None:
    H, labels = stream()
    whole, resumed = RidgeHead(WIDTH), RidgeHead(WIDTH)
    for step in range(38):  # crosses the change of form at 300 rows, the buffer's doubling at 256
        part = slice(16 * step, min(16 * step + 16, 600))
        seen = int(labels[: part.stop].max()) + 1
        if step == cut:
            state = {key: value.clone() for key, value in resumed.state_dict().items()}
            resumed = RidgeHead(WIDTH)
            resumed.load_state_dict(state)
            assert torch.equal(resumed.logits(H[:7]), whole.logits(H[:7]))
        for head in (whole, resumed):
            head.update(H[part], labels[part], seen)
            if step % 3 != 1:
                head.solve(lams[step // 10 % len(lams)])
    assert torch.equal(whole.logits(H), resumed.logits(H))
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])


def test_logits_follow_new_data_without_a_new_solve() -> None:
    H, labels = stream()
    head = fed(H[:100], labels[:100], 50)
    head.solve(1.0)
    head.update(H[100:], labels[100:], CLASSES)
    np.testing.assert_allclose(head.logits(H[:5]), H[:5].numpy() @ batch_ridge(H, labels, CLASSES, 1.0), atol=1e-8)


@pytest.mark.parametrize("rows", [6, 40])
def test_ridge_below_rounding_still_gives_the_minimum_norm_fit(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    H = 1e6 * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    H = H[torch.arange(rows) % 3]  # repeated clips: R R^T and G are singular
    labels = torch.arange(rows) % 3
    head = RidgeHead(20)
    head.update(H, labels, 3)
    W = head.solve(1e-8)
    assert torch.isfinite(W).all()
    np.testing.assert_allclose(H @ W, one_hot(labels, 3), atol=1e-3)


def test_large_update_in_chunks_equals_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    H, labels = stream()
    want = fed(H, labels, 600).solve(1.0)
    monkeypatch.setattr(_linalg, "CHUNK", 37)
    monkeypatch.setattr(_linalg, "PANEL", 11)  # several tiles in every triangular loop
    assert error(fed(H, labels, 600).solve(1.0), want) < 1e-10
    small = fed(H[:250], labels[:250], 90)
    small.solve(1.0)
    small.update(H[250:290], labels[250:290], small.num_classes)
    assert error(small.solve(1.0), batch_ridge(H[:290], labels[:290], small.num_classes, 1.0)) < 1e-9


# ------------------------------------------------------------------------------------- many small sessions, one ridge


def small_sessions(rows: int, width: int, spread: float, seed: int = 0, dim: int = 48) -> tuple[Tensor, Tensor]:
    """Rows sorted by class, two new classes each eight rows; feature scales differ by 10^+-spread."""
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) // 8 * 2 + np.arange(rows) % 2
    raw = generator.normal(size=(labels.max() + 1, dim))[labels] + 0.5 * generator.normal(size=(rows, dim))
    H = np.maximum(raw @ generator.normal(size=(dim, width)), 0.0) * 10.0 ** generator.uniform(-spread, spread, width)
    return torch.from_numpy(H), torch.from_numpy(labels)


def svd_ridge(H: Tensor, labels: Tensor, classes: int, lam: float) -> np.ndarray:
    """Batch ridge that never squares H, hence right where the normal equations lose digits."""
    U, s, Vt = np.linalg.svd(H.numpy(), full_matrices=False)
    return (Vt.T * (s / (s * s + lam))) @ (U.T @ np.eye(classes)[labels.numpy()])


def grown(H: Tensor, labels: Tensor, lam: float, step: int) -> RidgeHead:
    head = RidgeHead(H.shape[1])
    for start in range(0, len(H), step):
        head.update(H[start : start + step], labels[start : start + step], int(labels[: start + step].max()) + 1)
        head.solve(lam)
    return head


def solved_once(H: Tensor, labels: Tensor, lam: float, step: int) -> Tensor:
    """The same statistics, factored once at the end: what float64 can give without growing."""
    return fed(H, labels, step).solve(lam)


@pytest.mark.parametrize(("rows", "width"), [(392, 480), (640, 320)])
@pytest.mark.parametrize("relative", [1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_long_streams_of_small_sessions_equal_the_batch(rows: int, width: int, relative: float, spread: float) -> None:
    H, labels = small_sessions(rows, width, spread)
    lam = relative * float(torch.linalg.matrix_norm(H, 2)) ** 2
    head = grown(H, labels, lam, 8)
    want = svd_ridge(H, labels, head.num_classes, lam)
    once = solved_once(H, labels, lam, 8)
    assert error(head.solve(lam), want) < 1e-9 + 2 * error(once, want)
    assert error(head.logits(H), H.numpy() @ want) < 1e-9 + 2 * error(H @ once, H.numpy() @ want)
    if relative >= 1e-9 or spread == 0:
        assert error(head.solve(lam), want) < 1e-7


@pytest.mark.parametrize(("rows", "width"), [(200, 240), (400, 160)])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize("lam", [1e-8, 1e-2, 1e3])
def test_nearly_repeated_features_lose_no_more_digits_than_a_batch(
    rows: int, width: int, noise: float, lam: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    _, labels = small_sessions(rows, width, 0.0)
    low = torch.randn(rows, 12, generator=generator, dtype=torch.float64)
    H = low @ torch.randn(12, width, generator=generator, dtype=torch.float64)
    H += noise * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    head = grown(H, labels, lam, 8)
    want = H.numpy() @ svd_ridge(H, labels, head.num_classes, lam)
    assert error(H @ head.solve(lam), want) < 1e-7 + 10 * error(H @ solved_once(H, labels, lam, 8), want)


@pytest.mark.parametrize("panel", [4, 11, 512])
def test_algebra_in_tiles_equals_the_whole(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linalg, "PANEL", panel)
    generator = torch.Generator().manual_seed(0)
    buffer = torch.randn(40, 40, generator=generator, dtype=torch.float64)  # the upper triangle must not be read
    buffer.diagonal().add_(20.0)
    L, X = buffer[:31, :31], torch.randn(31, 7, generator=generator, dtype=torch.float64)
    inverse = np.linalg.inv(np.tril(L.numpy()))
    for form in (L, L.T.contiguous().T):
        assert error(_linalg.lower_solve(form, X), inverse @ X.numpy()) < 1e-13
        assert error(_linalg.lower_transposed_solve(form, X), inverse.T @ X.numpy()) < 1e-13
        assert error(_linalg.right_lower_solve(form, X.T), X.T.numpy() @ inverse) < 1e-13
    assert error(_linalg.lower_gram_of_rows(X).tril(), np.tril(X.numpy() @ X.numpy().T)) < 1e-13


@pytest.mark.parametrize(("first", "width"), [(64, 400), (240, 200)])
def test_a_small_session_factors_only_its_own_rows(first: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    H, labels = small_sessions(first + 32, width, 0.0)
    head = grown(H[:first], labels[:first], 1.0, 8)
    head.update(H[first:first], labels[first:first], head.num_classes)
    factored: list[int] = []
    real = ridge.cholesky
    monkeypatch.setattr(ridge, "cholesky", lambda A: factored.append(len(A)) or real(A))
    monkeypatch.setattr(head, "_solve_at_once", lambda *_: pytest.fail("solved anew"))
    folds = 0
    for start in range(first, first + 32, 4):
        part = slice(start, start + 4)
        head.update(H[part], labels[part], int(labels[: part.stop].max()) + 1)
        before = head.solve(1.0)
        copy = before.clone()
        if head.form == "gram" and factored[-1] == width:
            folds += 1
        head.logits(H)
        assert torch.equal(before, copy)
    assert folds <= 3  # at most 12 of 32 rows may wait beside G
    assert factored.count(4) + folds == 8
    want = svd_ridge(H, labels, head.num_classes, 1.0)
    assert error(head.solve(1.0), want) < 1e-9


def test_waiting_rows_are_kept_counted_and_bounded() -> None:
    H, labels = small_sessions(600, 160, 0.0)
    head, most = RidgeHead(160), 0
    for start in range(0, 600, 3):
        head.update(H[start : start + 3], labels[start : start + 3], int(labels.max()) + 1)
        head.solve(10.0)
        state = head.state_dict()
        assert head.nbytes == sum(value.nbytes for value in state.values())
        if head.form == "gram":
            most = max(most, len(state["R"]))
            G, Q = head.gram()
            assert error(G, H[: start + 3].T @ H[: start + 3]) < 1e-12
            assert torch.equal(G, G.T)
            assert error(Q, H[: start + 3].T @ one_hot(labels[: start + 3], Q.shape[1])) < 1e-12
    assert most == 9  # 160 // 16 = 10 in steps of three
    head.update(H, labels, head.num_classes)  # a large session does not wait
    assert not len(head.state_dict()["R"])
    assert error(head.solve(10.0), 2 * svd_ridge(H, labels, head.num_classes, 5.0) / 2) < 1e-10


@pytest.mark.parametrize("width", [160, 900])
@pytest.mark.parametrize("cut", [1, 2, 11, 20, 33, 40, 59])
def test_small_sessions_resume_bit_for_bit(width: int, cut: int) -> None:
    """Sessions with and without a solve, new classes, a changed ridge and a tuned one; resumed twice in a row."""
    H, labels = small_sessions(360, width, 0.5)
    whole, resumed = RidgeHead(width), RidgeHead(width)
    for step in range(60):
        part = slice(6 * step, 6 * step + 6)
        if step in (cut, cut + 1):
            again = RidgeHead(width)
            again.load_state_dict({key: value.clone() for key, value in resumed.state_dict().items()})
            resumed = again
        for head in (whole, resumed):
            head.update(H[part], labels[part], int(labels[: part.stop].max()) + 1)
            if step == 50:
                head.tune((1.0, 100.0, 1e4))
            elif step % 7 != 3:
                head.solve(5.0 if step < 30 else 50.0)
        if head.lam is not None:
            assert torch.equal(whole.logits(H[:5]), resumed.logits(H[:5]))
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), key


@given(
    width=st.integers(16, 90),
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=25),
    solved=st.integers(1, 4),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_sizes_and_solves_equal_the_batch(
    width: int, sizes: list[int], solved: int, exponent: int, seed: int
) -> None:
    count = max(sum(sizes), 1)
    H, labels = small_sessions(count, width, 1.0, seed)
    head, at = RidgeHead(width), 0
    for number, size in enumerate([*sizes, count - sum(sizes)]):
        head.update(H[at : at + size], labels[at : at + size], int(labels.max()) + 1)
        at += size
        if number % solved == 0:
            head.solve(10.0**exponent)
    want = H.numpy() @ svd_ridge(H, labels, head.num_classes, 10.0**exponent)
    np.testing.assert_allclose(head.logits(H) if head.lam else H @ head.solve(1.0), want, atol=1e-6)


# ------------------------------------------------------------------------------------------------ choosing the ridge


def direct_path(H_fit: Tensor, Y_fit: Tensor, H_val: Tensor, Y_val: Tensor) -> list[float]:
    G, Q = (H_fit.T @ H_fit).numpy(), (H_fit.T @ Y_fit).numpy()
    return [
        float(np.mean((H_val.numpy() @ np.linalg.solve(G + lam * np.eye(len(G)), Q) - Y_val.numpy()) ** 2))
        for lam in LAMBDAS
    ]


@pytest.mark.parametrize("limit", [2048, 10])
@pytest.mark.parametrize("rows", [160, 480])
def test_path_equals_direct_solves(rows: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_EIGH_LIMIT", limit)
    H, labels = stream()
    order = torch.from_numpy(np.random.default_rng(2).permutation(600))
    H, Y = H[order], one_hot(labels[order], CLASSES)
    fit, val = slice(0, rows), slice(rows, rows + 100)
    found = ridge_path(H[fit], Y[fit], H[val], Y[val])
    want = direct_path(H[fit], Y[fit], H[val], Y[val])
    np.testing.assert_allclose(found.mse[6:], want[6:], rtol=1e-6)
    np.testing.assert_allclose(found.mse[:6], want[:6], rtol=5e-2)
    assert found.lam == LAMBDAS[int(np.argmin(want))]


@pytest.mark.parametrize("rows", [100, 200, 400])
def test_path_is_right_down_to_the_smallest_ridge(rows: int) -> None:
    """The reference is the SVD of H itself, which does not square the condition number as G and K do."""
    H, labels = stream()
    order = torch.from_numpy(np.random.default_rng(3).permutation(600))
    H, Y = H[order], one_hot(labels[order], CLASSES)
    U, s, Vt = np.linalg.svd(H[:rows].numpy(), full_matrices=False)
    found = ridge_path(H[:rows], Y[:rows], H[rows:], Y[rows:])
    for lam, mse in zip(LAMBDAS, found.mse, strict=True):
        W = Vt.T @ ((s / (s * s + lam))[:, None] * (U.T @ Y[:rows].numpy()))
        assert mse == pytest.approx(float(np.mean((H[rows:].numpy() @ W - Y[rows:].numpy()) ** 2)), rel=1e-8)
        head = fed(H[:rows], labels[order][:rows], 64) if rows < WIDTH else None
        if head is not None and head.num_classes == CLASSES:
            assert error(head.solve(lam), W) < 1e-8


def test_path_agrees_with_the_head() -> None:
    H, labels = stream()
    Y = one_hot(labels, CLASSES)
    found = ridge_path(H[::2], Y[::2], H[1::2], Y[1::2])
    head = fed(H[::2], labels[::2], 300)
    mse = [float((H[1::2] @ head.solve(lam) - Y[1::2]).square().mean()) for lam in LAMBDAS]
    np.testing.assert_allclose(found.mse[4:], mse[4:], rtol=1e-6)


def test_float32_path_would_be_garbage() -> None:
    H, labels = stream()
    H, labels = H[::3], labels[::3]
    Y = one_hot(labels, CLASSES)
    found = ridge_path(H[::2].float(), Y[::2].float(), H[1::2].float(), Y[1::2].float())
    np.testing.assert_allclose(found.mse, ridge_path(H[::2], Y[::2], H[1::2], Y[1::2]).mse, rtol=1e-4)
    h, g = H[::2].float().numpy(), H[1::2].float().numpy()
    ridge = np.float32(1e-8) * np.eye(WIDTH, dtype=np.float32)
    naive = g @ np.linalg.solve(h.T @ h + ridge, h.T @ Y[::2].float().numpy())
    assert not np.mean((naive - Y[1::2].numpy()) ** 2) < 2 * found.mse[0]


def test_non_finite_errors_never_win_and_all_non_finite_is_an_error() -> None:
    found = first_minimum((1.0, 2.0, 3.0, 4.0), (math.nan, 0.5, 0.5, math.inf))
    assert found.lam == 2.0
    with pytest.raises(ValueError, match="no ridge candidate"):
        first_minimum((1.0, 2.0), (math.nan, math.inf))
    huge = torch.full((4, 6), 1e200, dtype=torch.float64)
    with pytest.raises((ValueError, torch.linalg.LinAlgError)):
        ridge_path(huge, one_hot(torch.arange(4), 4), huge, one_hot(torch.arange(4), 4))


@given(rows=st.integers(2, 14), width=st.integers(1, 16), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_leave_one_out_equals_brute_force(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    H = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    lambdas = (1e-2, 1.0, 30.0)
    found = ridge_loo(H, one_hot(labels, 3), lambdas)
    for lam, mse in zip(lambdas, found.mse, strict=True):
        squares = []
        for i in range(rows):
            keep = [j for j in range(rows) if j != i]
            W = batch_ridge(H[keep], labels[keep], 3, lam)
            squares.append((H[i].numpy() @ W - np.eye(3)[labels[i]]) ** 2)
        assert mse == pytest.approx(float(np.mean(squares)), rel=1e-6)


@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_stratified_holdout_loses_no_class(counts: list[int], seed: int) -> None:
    labels = torch.cat([torch.full((count,), 3 * c) for c, count in enumerate(counts)])
    if max(counts) == 1:
        with pytest.raises(ValueError, match="leave-one-out"):
            holdout(labels, seed=seed)
        return
    fit, val = holdout(labels, seed=seed)
    assert sorted([*fit.tolist(), *val.tolist()]) == list(range(len(labels)))
    for c, count in enumerate(counts):
        held = int((labels[val] == 3 * c).sum())
        assert held == (0 if count == 1 else min(max(1, math.floor(0.2 * count + 0.5)), count - 1))
    again = holdout(labels, seed=seed)
    assert torch.equal(fit, again[0])
    assert torch.equal(val, again[1])


def test_stratified_holdout_leaves_one_row_of_every_class_to_fit() -> None:
    fit, val = holdout(torch.tensor([0, 0, 1, 1, 1]), seed=0, fraction=0.95)
    assert (len(fit), len(val)) == (2, 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        holdout(torch.tensor([0, 0]), seed=0, fraction=1.0)


def test_unstratified_holdout_is_ranpacs_first_80_percent() -> None:
    fit, val = holdout(torch.arange(50) // 10, seed=1, stratified=False)
    assert (len(fit), len(val)) == (40, 10)
    assert not torch.equal(val, holdout(torch.arange(50) // 10, seed=2, stratified=False)[1])


def test_choose_lambda_uses_only_its_rows_and_all_columns() -> None:
    H, labels = stream()
    H, labels = H[150:300], labels[150:300]  # second task: labels 5..9 among 10 seen columns
    found = choose_lambda(H, labels, 10, seed=4, purpose=("session", 1))
    fit, val = holdout(labels, seed=4, purpose=("session", 1))
    Y = one_hot(labels, 10)
    assert found == ridge_path(H[fit], Y[fit], H[val], Y[val])
    assert choose_lambda(H, labels, 10, seed=4, criterion="loo") == ridge_loo(H, Y)
    with pytest.raises(ValueError, match="criterion"):
        choose_lambda(H, labels, 10, seed=4, criterion="aic")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- NCM and LDA


def gaussian(seed: int = 0, rows: int = 120, width: int = 12, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(rows, width, generator=generator, dtype=torch.float64), labels


@pytest.mark.parametrize("make", [NCMHead, LDAHead])
def test_streaming_equals_batch_in_any_order(make: type[NCMHead] | type[LDAHead]) -> None:
    H, labels = gaussian()
    whole, parts = make(12), make(12)
    whole.update(H, labels, 5)
    order = torch.argsort(labels, stable=True)
    for start in range(0, 120, 7):
        part = order[start : start + 7]
        parts.update(H[part], labels[part], int(labels[part].max()) + 1)
    for c in range(5):
        np.testing.assert_allclose(whole.means[c], H[labels == c].mean(0), rtol=1e-12)
    assert torch.equal(whole.counts, torch.full((5,), 24))
    np.testing.assert_allclose(parts.logits(H), whole.logits(H), rtol=1e-10, atol=1e-10)
    assert torch.equal(parts.predict(H), whole.predict(H))


def test_cosine_is_to_raw_means_and_ignores_the_scale_of_the_query() -> None:
    H, labels = gaussian()
    head = NCMHead(12)
    head.update(H, labels, 5)
    means = np.stack([H[labels == c].numpy().mean(0) for c in range(5)])
    want = (H.numpy() @ means.T) / np.linalg.norm(H, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    np.testing.assert_allclose(head.logits(H), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(head.logits(1e-200 * H), want, rtol=1e-9, atol=1e-12)
    # Mean first, then unit length: the other way round gives another classifier.
    far = NCMHead(2)
    far.update(torch.tensor([[10.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), 1)
    assert float(far.logits(torch.tensor([[1.0, 1.0]]))[0, 0]) == pytest.approx(11 / math.sqrt(2 * 101))


@pytest.mark.parametrize("head", [NCMHead(3), NCMHead(3, metric="euclidean"), LDAHead(3), LDAHead(3, cov="total")])
def test_empty_classes_are_never_predicted_and_nothing_is_nan(head: NCMHead | LDAHead) -> None:
    head.update(torch.tensor([[-1.0, 0, 0], [0, -1, 0]]), torch.tensor([1, 3]), 5)
    scores = head.logits(torch.tensor([[0.0, 0, 0], [5, 5, 5], [-1, 0, 0]]))
    assert not torch.isnan(scores).any()
    assert torch.isinf(scores[:, [0, 2, 4]]).all()
    assert set(head.predict(torch.tensor([[0.0, 0, 0], [5, 5, 5], [-1, 0, 0]])).tolist()) <= {1, 3}
    assert int(head.predict(torch.tensor([[-1.0, 0, 0]]))[0]) == 1


@pytest.mark.parametrize("cov", ["within", "total"])
def test_covariances_equal_their_definitions(cov: str) -> None:
    H, labels = gaussian()
    head = LDAHead(12, cov=cov)  # type: ignore[arg-type]
    for start in range(0, 120, 11):
        head.update(H[start : start + 11], labels[start : start + 11], 5)
    if cov == "total":
        want = np.cov(H.numpy().T)
    else:
        centred = np.concatenate([H[labels == c].numpy() - H[labels == c].numpy().mean(0) for c in range(5)])
        want = centred.T @ centred / (120 - 5)
    assert error(head.covariance(), want) < 1e-12
    S = want + np.eye(12)
    means = np.stack([H[labels == c].numpy().mean(0) for c in range(5)])
    w = np.linalg.solve(S, means.T)
    np.testing.assert_allclose(head.logits(H), H.numpy() @ w - 0.5 * np.sum(means.T * w, 0), rtol=1e-9, atol=1e-9)


def test_lda_decides_as_scikit_learn_does() -> None:
    """Classes of equal size have equal priors. scikit-learn divides the covariance by n, we by n - C."""
    H, labels = gaussian()
    head = LDAHead(12, shrink=0.0)
    head.update(H, labels, 5)
    textbook = LinearDiscriminantAnalysis(solver="lsqr").fit(H.numpy(), labels.numpy())
    theirs = textbook.decision_function(H.numpy()) - np.log(textbook.priors_)
    np.testing.assert_allclose(head.logits(H) * 120 / 115, theirs, rtol=1e-6, atol=1e-6)
    assert np.array_equal(head.predict(H), textbook.predict(H.numpy()))


def test_lda_with_identity_covariance_is_euclidean_ncm() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randint(-8, 9, (7, 10), generator=generator).double()
    labels = torch.arange(28) % 7
    lda, ncm = LDAHead(10), NCMHead(10, metric="euclidean")
    for head in (lda, ncm):
        head.update(centres[labels], labels, 7)  # four equal clips a class: within-class covariance is exactly zero
    assert float(lda.covariance().abs().max()) == 0.0
    queries = 6 * torch.randn(2000, 10, generator=generator, dtype=torch.float64)
    assert torch.equal(lda.predict(queries), ncm.predict(queries))
    distance = 2 * lda.logits(queries) - queries.square().sum(1, keepdim=True)
    np.testing.assert_allclose(distance, ncm.logits(queries), rtol=1e-9, atol=1e-9)


def test_lda_without_shrinkage_says_what_to_do() -> None:
    head = LDAHead(20, shrink=0.0)
    H, labels = gaussian(rows=10, width=20)
    head.update(H, labels, 5)
    with pytest.raises(ValueError, match="raise shrink"):
        head.logits(H)


# ------------------------------------------------------------------------------------------------- common to all heads


def everyone(width: int) -> list[RidgeHead | NCMHead | LDAHead]:
    return [RidgeHead(width), NCMHead(width), NCMHead(width, metric="euclidean"), LDAHead(width)]


def ready(head: RidgeHead | NCMHead | LDAHead) -> RidgeHead | NCMHead | LDAHead:
    if isinstance(head, RidgeHead):
        head.solve(1.0)
    return head


@pytest.mark.parametrize("rows", [8, 120])
def test_logits_are_float64_and_independent_of_the_batch(rows: int) -> None:
    H, labels = gaussian()
    for head in everyone(12):
        head.update(H[:rows].float(), labels[:rows], 5)
        scores = ready(head).logits(H.float())
        assert scores.dtype == torch.float64
        assert scores.shape == (120, 5)
        alone = torch.cat([head.logits(row[None].float()) for row in H])
        np.testing.assert_allclose(scores, alone, rtol=1e-9, atol=1e-11)
        assert torch.equal(scores, head.logits(H.float()))


@pytest.mark.parametrize("rows", [8, 120])
def test_state_goes_round(rows: int) -> None:
    H, labels = gaussian()
    for head, fresh in zip(everyone(12), everyone(12), strict=True):
        head.update(H[:rows], labels[:rows], 5)
        ready(head)
        state = head.state_dict()
        assert all(isinstance(value, Tensor) for value in state.values())
        assert head.nbytes == sum(value.numel() * value.element_size() for value in state.values())
        fresh.load_state_dict(state)
        assert torch.equal(fresh.logits(H), head.logits(H))
        fresh.update(H, labels, 6)
        assert torch.equal(head.state_dict()[next(iter(state))], state[next(iter(state))])  # no shared memory
        for key in state:
            with pytest.raises(ValueError, match=key):
                fresh.load_state_dict({other: value for other, value in state.items() if other != key})


def test_a_state_of_another_width_is_refused() -> None:
    H, labels = gaussian()
    for rows in (8, 120):
        for head, other in zip(everyone(12), everyone(11), strict=True):
            head.update(H[:rows], labels[:rows], 5)
            with pytest.raises(ValueError, match="shape"):
                other.load_state_dict(head.state_dict())
            assert other.num_samples == 0
    small = RidgeHead(12)
    small.update(H[:8], labels[:8], 5)
    with pytest.raises(ValueError, match="sum to"):
        RidgeHead(12).load_state_dict(small.state_dict() | {"blocks": torch.tensor([7])})
    with pytest.raises(ValueError, match="bases"):
        RidgeHead(12).load_state_dict(small.state_dict() | {"bases": torch.tensor([0, 99, 0, 0, 0, 0])})


def test_an_empty_state_goes_round() -> None:
    for head, fresh in zip(everyone(12), everyone(12), strict=True):
        fresh.load_state_dict(head.state_dict())
        assert fresh.num_classes == 0
        with pytest.raises(ValueError, match=r"call (update|solve) first"):
            fresh.logits(torch.zeros(1, 12))


@pytest.mark.parametrize(
    ("H", "labels", "classes", "words"),
    [
        (torch.zeros(12), torch.zeros(1, dtype=torch.int64), 1, "matrix"),
        (torch.zeros(2, 11), torch.zeros(2, dtype=torch.int64), 1, "12 columns"),
        (torch.full((2, 12), math.nan), torch.zeros(2, dtype=torch.int64), 1, "finite"),
        (torch.tensor([[math.inf] * 12, [-math.inf] * 12]), torch.zeros(2, dtype=torch.int64), 1, "finite"),
        (torch.zeros(2, 12), torch.zeros(3, dtype=torch.int64), 1, "vector of 2"),
        (torch.zeros(2, 12), torch.zeros(2), 1, "integers"),
        (torch.zeros(2, 12), torch.tensor([0, 3]), 3, r"0\.\.2"),
        (torch.zeros(2, 12), torch.tensor([-1, 0]), 3, r"0\.\.2"),
        (torch.zeros(2, 12), torch.zeros(2, dtype=torch.int64), 0, "at least 1"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(H: Tensor, labels: Tensor, classes: int, words: str) -> None:
    for head in everyone(12):
        with pytest.raises(ValueError, match=words):
            head.update(H, labels, classes)
        assert head.num_classes == 0
        assert head.num_samples == 0
        head.update(torch.ones(2, 12), torch.tensor([0, 1]), 2)
        with pytest.raises(ValueError, match="never disappear"):
            head.update(torch.ones(1, 12), torch.tensor([0]), 1)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="scaling"):
        RandomProjection.draw(4, 4, scaling="xavier", seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim"):
        RandomProjection.draw(0, 4, seed=0)
    with pytest.raises(ValueError, match="metric"):
        NCMHead(3, metric="manhattan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cov"):
        LDAHead(3, cov="pooled")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shrink"):
        LDAHead(3, shrink=-1.0)
    head = RidgeHead(4)
    head.update(torch.ones(1, 4), torch.tensor([0]), 1)
    for lam in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive"):
            head.solve(lam)
    for make in (RidgeHead, NCMHead, LDAHead):
        with pytest.raises(ValueError, match="width"):
            make(0)


# ------------------------------------------------------------------------- choosing the ridge from all that was learnt


def gcv(H: Tensor, Y: Tensor, lam: float) -> float:
    """(1/n) ||(I - A) Y||^2 / ((1/n) tr(I - A))^2 with the hat matrix A written out."""
    h, y = H.numpy(), Y.numpy()
    n = len(h)
    A = h @ scipy.linalg.solve(h.T @ h + lam * np.eye(h.shape[1]), h.T, assume_a="pos")
    rest = np.eye(n) - A
    return float((rest @ y).__pow__(2).sum() / n / (np.trace(rest) / n) ** 2)


def noisy(rows: int, width: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows whose classes overlap, so that the best ridge lies inside the grid."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, max(rows - classes, 0))])[:rows]
    centres = generator.normal(size=(classes, 8))
    raw = centres[labels] + 1.5 * generator.normal(size=(rows, 8))
    return torch.from_numpy(np.maximum(raw @ generator.normal(size=(8, width)), 0)), torch.from_numpy(labels)


@pytest.mark.parametrize(("rows", "width"), [(12, 40), (39, 40), (41, 40), (60, 40), (300, 40), (5, 6), (30, 6)])
def test_gcv_equals_its_definition_with_the_hat_matrix(rows: int, width: int) -> None:
    H, labels = noisy(rows, width)
    head = fed(H, labels, 7)
    assert head.form == ("rows" if rows < width else "gram")
    lambdas = tuple(10.0**exponent for exponent in range(-2, 7))  # below, the solve of the definition loses its digits
    want = [gcv(H, one_hot(labels, head.num_classes), lam) for lam in lambdas]
    assert head._gcv(lambdas) == pytest.approx(want, rel=1e-6)
    assert head.tune(lambdas) == lambdas[int(np.argmin(want))]
    assert head.lam in lambdas
    assert error(head.solve(head.lam), batch_ridge(H, labels, head.num_classes, head.lam)) < 1e-8


@given(
    rows=st.integers(2, 40),
    width=st.integers(1, 24),
    seed=st.integers(0, 500),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
@settings(max_examples=80, deadline=None)
def test_gcv_is_finite_and_right_down_to_the_smallest_ridge(rows: int, width: int, seed: int, scale: float) -> None:
    """Against singular values, which keep the digits that G loses; near n = width the naive sums cancel to nothing.

    Where the features are of lower rank or a ridge is below the rounding of G, the error may only be overstated.
    """
    H, labels = noisy(rows, width, seed=seed)
    H = H * scale
    head = fed(H, labels, 11)
    Y = one_hot(labels, head.num_classes).numpy()
    U, s, _ = np.linalg.svd(H.numpy(), full_matrices=False)
    along = np.square(U.T @ Y).sum(1)
    outside = max(rows - along.sum(), 0.0) if rows > width else 0.0
    want = []
    for lam in LAMBDAS:
        left = lam / (s**2 + lam)
        want.append(rows * (outside + (along * left**2).sum()) / (rows - len(s) + left.sum()) ** 2)
    got = np.array(head._gcv(LAMBDAS))
    assert np.isfinite(got).all()
    assert (got > 0).all()
    top = float((s**2).max())
    for lam, mine, theirs in zip(LAMBDAS, got, want, strict=True):
        if lam > 1e-9 * top:
            assert mine == pytest.approx(theirs, rel=1e-3)
    chosen = want[LAMBDAS.index(head.tune())]
    assert chosen <= 1.01 * min(value for lam, value in zip(LAMBDAS, want, strict=True) if lam > 1e-9 * top or lam == 1)


def test_as_many_rows_as_features_do_not_win_a_tiny_ridge() -> None:
    """Residual and trace both vanish there; summed naively the residual rounds to 0 and 1e-5 looked perfect."""
    generator = np.random.default_rng(3)
    width = int(generator.integers(5, 60))
    rows, dim, scale = (
        width + int(generator.integers(0, 2)),
        int(generator.integers(5, 60)),
        10 ** generator.uniform(-2, 3),
    )
    centres, labels = generator.normal(size=(4, dim)), generator.integers(0, 4, rows)
    raw = centres[labels] * 3 + generator.normal(size=(rows, dim))
    H = torch.from_numpy(np.maximum(raw @ generator.normal(size=(dim, width)), 0) * scale)
    head = RidgeHead(width)
    head.update(H, torch.from_numpy(labels), 4)
    assert head.form == "gram"
    assert head.tune() == 1e6


@pytest.mark.parametrize("rows", [30, 200])
def test_tune_depends_on_neither_order_nor_sessions(rows: int) -> None:
    H, labels = noisy(rows, 60)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    straight = fed(H, labels, rows)
    chosen = straight.tune()
    for other in (fed(H, labels, 1), fed(H, labels, 13), fed(H[order], labels[order], 7)):
        assert other.tune() == chosen
        assert error(other.solve(chosen), straight.solve(chosen)) < 1e-8
    assert 1e-8 < chosen < 1e8


def test_tune_chooses_again_only_after_enough_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    H, labels = noisy(120, 50)
    head = RidgeHead(50)
    asked: list[int] = []
    real = head._gcv
    monkeypatch.setattr(head, "_gcv", lambda lambdas: asked.append(head.num_samples) or real(lambdas))
    learnt = 0
    for rows in (20, 29, 30, 44, 45, 67, 68, 120):  # 1.5 x 20 = 30, 1.5 x 30 = 45, 1.5 x 45 = 67.5
        head.update(H[learnt:rows], labels[learnt:rows], 4)
        learnt = rows
        assert head.tune() == head.lam
        assert error(head.logits(H), H.numpy() @ batch_ridge(H[:rows], labels[:rows], 4, head.lam)) < 1e-6
    assert asked == [20, 30, 45, 68, 120]
    head.tune()
    assert asked == [20, 30, 45, 68, 120]  # nothing new: nothing to choose
    head.tune(growth=1.0)
    assert asked[-2:] == [120, 120]


def test_a_fixed_ridge_before_the_first_choice_does_not_count_as_one() -> None:
    H, labels = noisy(40, 60)
    head = fed(H, labels, 40)
    head.solve(1e-8)
    assert head.tune() == fed(H, labels, 40).tune() != 1e-8


@pytest.mark.parametrize("width", [25, 400])
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_resume_between_choices_is_bit_exact(cut: int, width: int) -> None:
    """What is resumed has to remember when the ridge was last chosen: 20 of 20, 20 of 28, 40 of 40, 40 of 55 rows."""
    H, labels = noisy(130, width)
    H_test, _ = noisy(9, width, seed=5)
    bounds = (0, 20, 28, 40, 55, 61, 130)
    straight, resumed = RidgeHead(width), RidgeHead(width)
    chosen = []
    for session, (start, stop) in enumerate(pairwise(bounds)):
        if session == cut:
            again = RidgeHead(width)
            again.load_state_dict(resumed.state_dict())
            resumed = again
        for head in (straight, resumed):
            head.update(H[start:stop], labels[start:stop], 4)
            head.tune()
        assert resumed.lam == straight.lam
        assert torch.equal(resumed.logits(H_test), straight.logits(H_test))
        assert all(torch.equal(resumed.state_dict()[key], value) for key, value in straight.state_dict().items())
        chosen.append(int(straight.state_dict()["counts"][4]))
    assert chosen == [20, 20, 40, 40, 61, 130]


@pytest.mark.parametrize(
    ("H", "labels"),
    [
        (torch.zeros(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])),  # dead features, Gram form
        (torch.zeros(3, 4), torch.tensor([0, 1, 0])),  # and rows form
        (torch.ones(1, 4), torch.tensor([0])),  # one clip
        (torch.ones(9, 4), torch.tensor([0, 1, 2] * 3)),  # all alike
        (torch.eye(4).repeat(2, 1), torch.tensor([0, 1, 2, 3] * 2)),  # duplicates, fitted perfectly
        (torch.eye(4) * 1e7, torch.tensor([0, 1, 2, 3])),  # n = width, fitted perfectly
        (torch.full((5, 4), 1e-9), torch.tensor([0, 1, 0, 1, 1])),
    ],
)
def test_tune_never_yields_nan(H: Tensor, labels: Tensor) -> None:
    head = RidgeHead(4)
    head.update(H, labels, 4)
    assert np.isfinite(head._gcv(LAMBDAS)).all()
    assert head.tune() in LAMBDAS
    assert bool(head.logits(H).isfinite().all())


def test_tune_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="call update first"):
        RidgeHead(3).tune()
    head = RidgeHead(3)
    head.update(torch.ones(2, 3), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="must be positive"):
        head.tune((1.0, 0.0))
    with pytest.raises(ValueError, match="empty"):
        head.tune(())


def test_a_session_of_one_row_a_class_is_tuned_by_leave_one_out() -> None:
    H, labels = noisy(4, 10)
    assert sorted(labels.tolist()) == [0, 1, 2, 3]
    assert choose_lambda(H, labels, 6, seed=0) == ridge_loo(H, one_hot(labels, 6))
    more, more_labels = noisy(5, 10)
    assert choose_lambda(more, more_labels, 6, seed=0) != ridge_loo(more, one_hot(more_labels, 6))
