"""Covariances of attention inputs against plain hooks, subspaces and projectors against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import FRAMES, network
from torch import Tensor, nn

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.method import Clips
from audiocl_bench.peft.lora import SessionLoRA
from audiocl_bench.peft.subspace import attention_covariances, leading_subspace, projector


def inputs(backbone: Backbone, n: int = 5) -> Tensor:
    return torch.randn(n, FRAMES, backbone.front_end.n_mels, generator=torch.Generator().manual_seed(1))


def entering(backbone: Backbone, module: str, mel: Tensor) -> dict[int, Tensor]:
    """What enters `module` of every block [tokens, D], by forward hooks that know nothing of the covariance code."""
    seen: dict[int, Tensor] = {}

    def watch(index: int):
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[index] = args[0].detach().double().flatten(0, 1)

        return hook

    handles = []
    for index, block in enumerate(backbone.blocks):
        part = block.get_submodule(module) if module else block
        handles.append(part.register_forward_pre_hook(watch(index)))
    with torch.no_grad():
        backbone.features(mel)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "module"), [("eat-tiny", ""), ("eat-tiny", "attn.k_proj"), ("whisper-tiny-random", "attn.k_proj")]
)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_covariances_are_uncentred_means_over_tokens(name: str, module: str, batch: int) -> None:
    """EAT: of the raw block input; Whisper: of what comes out of the block's first LayerNorm."""
    backbone = network(name)
    mel = inputs(backbone)
    got = attention_covariances(backbone, (Clips(part) for part in mel.split(batch)), range(backbone.depth))
    for block, x in entering(backbone, module, mel).items():
        want = x.T @ x / len(x)
        assert got[block].dtype == torch.float64
        torch.testing.assert_close(got[block], want, rtol=1e-4, atol=1e-5)
        assert float((got[block] - torch.cov(x.T, correction=0)).abs().max()) > 1e-3  # not the centred covariance


def test_whisper_covariance_is_not_that_of_the_residual_stream() -> None:
    backbone = network("whisper-tiny-random")
    mel = inputs(backbone)
    raw, normed = entering(backbone, "", mel), entering(backbone, "norm1", mel)
    torch.testing.assert_close(raw[1], normed[1])
    out = backbone.blocks[1].norm1(raw[1].float()).double()
    got = attention_covariances(backbone, [Clips(mel)], [1])
    assert set(got) == {1}
    torch.testing.assert_close(got[1], out.T @ out / len(out), rtol=1e-4, atol=1e-5)
    assert float((got[1] - raw[1].T @ raw[1] / len(raw[1])).abs().max()) > 1e-2


def test_covariances_see_the_subtracted_network() -> None:
    """Block 0 is the same with LoRA subtracted; later blocks run on the previous unlearned block's output."""
    backbone = network()
    mel = inputs(backbone)
    plain = attention_covariances(backbone, [Clips(mel)], range(3))
    lora = SessionLoRA(backbone, blocks=range(3), targets=("k_proj", "v_proj"), rank=2)
    for pair in lora.add(torch.Generator().manual_seed(0)):
        nn.init.normal_(pair.B, std=0.3, generator=torch.Generator().manual_seed(1))
    with lora.subtracted(lora.names):
        minus = attention_covariances(backbone, [Clips(mel)], range(3))
        want = entering(backbone, "", mel)
    plus = attention_covariances(backbone, [Clips(mel)], range(3))
    assert torch.equal(minus[0], plain[0])
    for block in (1, 2):
        torch.testing.assert_close(minus[block], want[block].T @ want[block] / len(want[block]), rtol=1e-4, atol=1e-5)
        assert float((minus[block] - plain[block]).abs().max()) > 1e-2
        assert float((minus[block] - plus[block]).abs().max()) > 1e-2


def with_spectrum(values: list[float], seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(generator.normal(size=(len(values), len(values))))
    return torch.from_numpy(Q @ np.diag(values) @ Q.T)


@pytest.mark.parametrize(
    ("energy", "count"), [(0.0, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (0.95, 4), (0.99, 5), (1.0, 5)]
)
def test_fewest_directions_that_reach_the_energy(energy: float, count: int) -> None:
    """Shares .5 .25 .15 .05 .05. With squared eigenvalues .75 would be reached by the first direction alone."""
    U = leading_subspace(with_spectrum([5.0, 50.0, 15.0, 25.0, 5.0]), energy)
    assert U.shape == (5, count)


@given(
    values=st.lists(st.floats(0.0, 100.0), min_size=2, max_size=12),
    energy=st.floats(0.01, 0.9999),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_subspace_is_orthonormal_and_minimal(values: list[float], energy: float, seed: int) -> None:
    C = with_spectrum(values, seed)
    U = leading_subspace(C, energy)
    k = U.shape[1]
    np.testing.assert_allclose(U.T @ U, np.eye(k), atol=1e-9)
    ordered = np.sort(values)[::-1]
    total = float(ordered.sum())
    kept = float(torch.trace(U.T @ C @ U))
    assert kept >= (energy - 1e-9) * total - 1e-9
    assert k == 1 or float(ordered[: k - 1].sum()) < (energy + 1e-9) * total + 1e-9


@pytest.mark.parametrize("values", [[3.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 1e-14, 1e-15], [0.0, 0.0, 0.0]])
def test_energy_one_keeps_all_directions_and_projects_nothing_away(values: list[float]) -> None:
    U = leading_subspace(with_spectrum(values), 1.0)
    assert U.shape == (3, 3)
    np.testing.assert_allclose(projector(U), np.eye(3), atol=1e-6)


def test_no_energy_at_all_gives_finite_directions() -> None:
    U = leading_subspace(torch.zeros(4, 4), 0.99)
    assert bool(U.isfinite().all())
    np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), atol=1e-12)


def test_onto_and_complement() -> None:
    U = leading_subspace(with_spectrum([9.0, 4.0, 1.0, 0.5, 0.1], 3), 0.9)
    onto, complement = projector(U), projector(U, "complement")
    assert onto.dtype == torch.float32
    np.testing.assert_allclose(onto @ U.float(), U.float(), atol=1e-6)
    np.testing.assert_allclose(complement @ U.float(), 0 * U, atol=1e-6)
    np.testing.assert_allclose(onto + complement, np.eye(5), atol=1e-6)
    for P in (onto, complement):
        np.testing.assert_allclose(P @ P, P, atol=1e-6)
        assert torch.equal(P, P.T)


@pytest.mark.parametrize("energy", [0.4, 0.9, 1.0])
def test_frobenius_norm_shortens_steps_by_root_k(energy: float) -> None:
    U = leading_subspace(with_spectrum([9.0, 4.0, 1.0, 0.5, 0.1, 0.1], 3), energy)
    k = U.shape[1]
    P = projector(U, norm="fro")
    assert float(torch.linalg.matrix_norm(P, ord=2)) == pytest.approx(1 / np.sqrt(k), rel=1e-5)
    assert float(torch.linalg.matrix_norm(P)) == pytest.approx(1.0, rel=1e-5)
    # LoRA-DRS as coded: U U^T over its Frobenius norm.
    np.testing.assert_allclose(P, (U @ U.T) / np.linalg.norm(U @ U.T), atol=1e-6)
    if k < 6:
        other = projector(U, "complement", "fro")
        assert float(torch.linalg.matrix_norm(other, ord=2)) == pytest.approx(1 / np.sqrt(6 - k), rel=1e-5)


def test_an_empty_complement_stays_empty() -> None:
    """Normalising rounding noise would turn it into a random direction."""
    U = leading_subspace(with_spectrum([9.0, 4.0, 1.0, 0.5, 0.1]), 1.0)
    for norm in ("none", "fro"):
        assert float(projector(U, "complement", norm).abs().max()) < 1e-6
