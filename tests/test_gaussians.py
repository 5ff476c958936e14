"""Class statistics against NumPy, and draws from them against the moments they have to have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiocl_bench.heads import ClassGaussians
from audiocl_bench.heads.gaussians import Kind

KINDS: tuple[Kind, ...] = ("covariance", "variance", "multi-centroid")
every_kind = pytest.mark.parametrize("kind", KINDS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(n: int, width: int = 5, seed: int = 0) -> Tensor:
    """Correlated features [n, width], float32."""
    draws = generator(seed)
    mix = torch.randn(width, width, generator=draws)
    return torch.randn(n, width, generator=draws) @ mix + 3 * torch.randn(width, generator=draws)


def two_clouds(far: float = 10.0) -> Tensor:
    """Eight rows around -far and four around +far on the first axis."""
    centre = torch.tensor([-far] * 8 + [far] * 4)[:, None] * torch.eye(1, 3)
    return centre + torch.randn(12, 3, generator=generator(3))


# ---------------------------------------------------------------------------------------------------------- statistics


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**31), st.sampled_from(["float32", "float64"])
)
def test_mean_and_covariance_are_numpys(sizes: list[int], seed: int, dtype: str) -> None:
    """Classes of any size, one row included, in any order and learnt in one go or one by one."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    H = rows(len(labels), seed=seed).to(getattr(torch, dtype))
    statistics = ClassGaussians(5, kind="covariance")
    diagonal = ClassGaussians(5, kind="variance")
    at_once = ClassGaussians(5, kind="covariance")
    at_once.update(H, torch.from_numpy(labels))
    for c in range(len(sizes)):
        for learner in (statistics, diagonal):
            learner.update(H[labels == c], torch.full((sizes[c],), c))
    assert all(
        torch.equal(a, b) for a, b in zip(statistics.state_dict().values(), at_once.state_dict().values(), strict=True)
    )
    for c, size in enumerate(sizes):
        own = H.double().numpy()[labels == c]
        covariance = np.cov(own.T, ddof=1) if size > 1 else np.zeros((5, 5))
        mean, found = statistics.components(c)
        np.testing.assert_allclose(mean[0], own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found[0], covariance + 1e-4 * np.eye(5), rtol=1e-10, atol=1e-12)
        mean, found = diagonal.components(c)
        np.testing.assert_allclose(mean[0], own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found[0], np.diag(np.diag(covariance)) + 1e-4 * np.eye(5), rtol=1e-10, atol=1e-12)
    for learner in (statistics, diagonal):
        assert learner.counts.tolist() == sizes
        np.testing.assert_allclose(
            learner.means, np.stack([H.double().numpy()[labels == c].mean(0) for c in range(len(sizes))])
        )
        assert torch.equal(learner.means, learner.centres)


def test_centroids_are_those_of_the_clouds() -> None:
    """Two clouds far apart: k-means must find them, whatever it starts from; variances have n degrees of freedom."""
    H = two_clouds()
    for seed in range(5):
        statistics = ClassGaussians(3, kind="multi-centroid", centroids=2)
        statistics.update(H, torch.zeros(12, dtype=torch.int64), seed=seed)
        means, covariances = statistics.components(0)
        order = means[:, 0].argsort()
        for k, part in zip(order, (H[:8], H[8:]), strict=True):
            own = part.double().numpy()
            np.testing.assert_allclose(means[k], own.mean(0), rtol=1e-12)
            np.testing.assert_allclose(covariances[k], np.diag(own.var(0)) + 1e-4 * np.eye(3), rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(statistics.means[0], H.double().mean(0), rtol=1e-12)
        assert statistics.owners.tolist() == [0, 0]
        assert statistics.counts.tolist() == [12]


@pytest.mark.parametrize(("clips", "want"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (20, 10), (50, 10)])
def test_a_class_has_at_most_half_as_many_centroids_as_clips(clips: int, want: int) -> None:
    statistics = ClassGaussians(5, kind="multi-centroid")
    statistics.update(rows(clips), torch.zeros(clips, dtype=torch.int64))
    assert len(statistics.centres) == want
    np.testing.assert_allclose(statistics.means[0], rows(clips).double().mean(0), rtol=1e-10)


@every_kind
def test_copies_of_one_clip_are_one_point(kind: Kind) -> None:
    statistics = ClassGaussians(5, kind=kind)
    statistics.update(rows(1).expand(8, -1), torch.zeros(8, dtype=torch.int64))
    means, covariance = statistics.components(0)
    torch.testing.assert_close(means, rows(1).double())
    torch.testing.assert_close(covariance[0], 1e-4 * torch.eye(5, dtype=torch.float64))


@every_kind
def test_statistics_repeat_and_classes_do_not_touch_each_other(kind: Kind) -> None:
    def learnt(*classes: int) -> ClassGaussians:
        statistics = ClassGaussians(5, kind=kind, centroids=3)
        for c in classes:
            torch.manual_seed(c)  # global generators must not matter
            np.random.seed(c)
            statistics.update(rows(20, seed=c), torch.full((20,), c), seed=1)
        return statistics

    both, turned = learnt(0, 1), learnt(1, 0)
    for c in (0, 1):
        for one, other in zip(both.components(c), turned.components(c), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(both.means, turned.means)


# --------------------------------------------------------------------------------------------------------------- draws


@every_kind
def test_draws_have_the_moments_of_the_statistics(kind: Kind) -> None:
    statistics = ClassGaussians(3, kind=kind, centroids=2, jitter=0.25)
    H = torch.cat([two_clouds(3.0), rows(30, 3, seed=5)])
    labels = torch.tensor([0] * 12 + [1] * 30)
    statistics.update(H, labels)
    n = 40_000
    drawn = statistics.sample(torch.arange(2).repeat(n), generator(1)).double()
    assert drawn.dtype == torch.float64
    for c in range(2):
        own = drawn[c::2].numpy()
        means, covariances = statistics.components(c)
        mean = means.mean(0).numpy()  # centroids are equally likely
        offsets = (means - means.mean(0)).numpy()
        covariance = covariances.mean(0).numpy() + offsets.T @ offsets / len(means)
        error = np.sqrt(np.diag(covariance) / n)
        assert np.abs((own.mean(0) - mean) / error).max() < 5
        scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert np.abs((np.cov(own.T) - covariance) / scale).max() < 5 * np.sqrt(2 / n)


def test_draws_of_a_covariance_are_correlated_as_the_rows_are() -> None:
    """What the diagonal kinds lose."""
    H = torch.randn(50, 1, generator=generator()) @ torch.ones(1, 2) + 0.1 * torch.randn(50, 2, generator=generator(1))
    labels = torch.zeros(50, dtype=torch.int64)
    found = {}
    for kind in ("covariance", "variance"):
        statistics = ClassGaussians(2, kind=kind)
        statistics.update(H, labels)
        found[kind] = np.corrcoef(statistics.sample(torch.zeros(4000, dtype=torch.int64), generator()).T)[0, 1]
    assert found["covariance"] > 0.95
    assert abs(found["variance"]) < 0.1


def test_thirty_clips_in_768_dimensions_can_be_drawn_from() -> None:
    """The covariance has rank 29; the jitter makes it positive definite (methods.md section 2.4, oracle 4)."""
    H = 4 * torch.randn(30, 768, generator=generator())
    statistics = ClassGaussians(768, kind="covariance")
    statistics.update(H, torch.zeros(30, dtype=torch.int64))
    drawn = statistics.sample(torch.zeros(20, dtype=torch.int64), generator())
    assert bool(drawn.isfinite().all())
    offset = drawn.double() - H.double().mean(0)
    Q, _ = torch.linalg.qr((H.double() - H.double().mean(0)).T[:, :29])
    outside = offset - offset @ Q @ Q.T  # 739 dimensions with the jitter's variance alone
    assert float(outside.square().mean() * 768 / 739) == pytest.approx(1e-4, rel=0.05)


@every_kind
def test_a_class_of_one_clip_is_a_small_ball(kind: Kind) -> None:
    statistics = ClassGaussians(5, kind=kind)
    statistics.update(rows(1), torch.zeros(1, dtype=torch.int64))
    drawn = statistics.sample(torch.zeros(2000, dtype=torch.int64), generator())
    offset = drawn.double() - rows(1).double()
    assert float(offset.std()) == pytest.approx(0.01, rel=0.05)
    assert float(offset.mean().abs()) < 1e-3


def test_centroids_without_spread_are_left_out_while_others_are_there() -> None:
    """A far-off single clip makes a centroid of its own, which is no Gaussian to draw from (official code)."""
    H = torch.cat([torch.full((1, 3), 100.0), torch.randn(9, 3, generator=generator())])
    statistics = ClassGaussians(3, kind="multi-centroid", centroids=2)
    statistics.update(H, torch.zeros(10, dtype=torch.int64))
    assert float(statistics.centres.max()) == 100.0
    assert float(statistics.sample(torch.zeros(500, dtype=torch.int64), generator()).max()) < 50


@every_kind
def test_draws_depend_on_the_generator_alone(kind: Kind) -> None:
    statistics = ClassGaussians(5, kind=kind)
    for c in (2, 0):
        statistics.update(rows(12, seed=c), torch.full((12,), c))
    labels = torch.tensor([0, 2, 2, 0, 2])
    first = statistics.sample(labels, generator(1))
    torch.manual_seed(0)
    assert torch.equal(first, statistics.sample(labels, generator(1)))
    assert not torch.equal(first, statistics.sample(labels, generator(2)))
    assert first.dtype == torch.float32
    assert statistics.sample(labels[:0], generator()).shape == (0, 5)
    near = (first.double() - statistics.means[labels]).abs().amax(1)
    far = (first.double() - statistics.means[2 - labels]).abs().amax(1)
    assert float((near < far).double().mean()) > 0.5


# --------------------------------------------------------------------------------------------------------------- state


@every_kind
def test_state_goes_round_and_is_as_small_as_it_can_be(kind: Kind) -> None:
    statistics = ClassGaussians(5, kind=kind, centroids=3)
    statistics.update(rows(12), torch.tensor([0, 1] * 6))
    state = statistics.state_dict()
    twin = ClassGaussians(5, kind=kind, centroids=3)
    twin.load_state_dict(state)
    labels = torch.tensor([0, 1, 1])
    assert torch.equal(twin.sample(labels, generator()), statistics.sample(labels, generator()))
    parts = 6 if kind == "multi-centroid" else 2
    spread = 15 if kind == "covariance" else 5
    assert statistics.nbytes == parts * (8 + 8 + 8 * 5 + 8 * spread)
    for value in state.values():
        value.zero_()  # the state is a copy
    assert torch.equal(twin.sample(labels, generator()), statistics.sample(labels, generator()))
    for learner in (twin, statistics):
        learner.update(rows(6, seed=2), torch.full((6,), 2))
    assert torch.equal(twin.means, statistics.means)


def test_statistics_taken_later_are_drawn_from() -> None:
    """The kept Cholesky factors must not outlive an update or a load."""
    statistics = ClassGaussians(5, kind="covariance")
    statistics.update(rows(12, seed=1), torch.zeros(12, dtype=torch.int64))
    labels = torch.zeros(4, dtype=torch.int64)
    statistics.sample(labels, generator())
    other = ClassGaussians(5, kind="covariance")
    other.update(rows(12, seed=2), torch.zeros(12, dtype=torch.int64))
    statistics.load_state_dict(other.state_dict())
    assert torch.equal(statistics.sample(labels, generator()), other.sample(labels, generator()))


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda s: s.update(rows(3), torch.tensor([0, 1, 1])), "class 1 has statistics already"),
        (lambda s: s.update(rows(3, 4), torch.tensor([2, 2, 2])), "must have 5 columns"),
        (lambda s: s.update(rows(2), torch.tensor([2, -1])), "labels must lie in"),
        (lambda s: s.update(rows(2) / 0, torch.tensor([2, 2])), "must be finite"),
        (lambda s: s.update(rows(2), torch.tensor([2])), "vector of 2 entries"),
        (lambda s: s.sample(torch.tensor([1, 0]), generator()), "class 0 has no statistics"),
        (lambda s: s.sample(torch.tensor([7]), generator()), "class 7 has no statistics"),
        (lambda s: s.components(0), "class 0 has no statistics"),
        (lambda s: s.load_state_dict({}), "lacks 'owner'"),
        (lambda s: s.load_state_dict(ClassGaussians(5, kind="variance").state_dict()), "'spread' must be"),
        (lambda s: ClassGaussians(0), "at least 1"),
        (lambda s: ClassGaussians(5, centroids=0), "at least 1"),
        (lambda s: ClassGaussians(5, jitter=0.0), "jitter must be positive"),
        (lambda s: ClassGaussians(5, kind="full"), "kind must be"),
    ],
)
def test_mistakes_are_said_and_change_nothing(act: Any, said: str) -> None:
    statistics = ClassGaussians(5)
    statistics.update(rows(4), torch.ones(4, dtype=torch.int64))
    before = statistics.state_dict()
    with pytest.raises(ValueError, match=said):
        act(statistics)
    assert all(torch.equal(value, statistics.state_dict()[key]) for key, value in before.items())


def test_nothing_learnt_is_empty() -> None:
    statistics = ClassGaussians(5)
    statistics.update(rows(1)[:0], torch.zeros(0, dtype=torch.int64))
    assert statistics.num_classes == 0
    assert statistics.means.shape == statistics.centres.shape == (0, 5)
    assert statistics.nbytes == 0
    with pytest.raises(ValueError, match="class 0 has no statistics"):
        statistics.sample(torch.zeros(1, dtype=torch.int64), generator())
