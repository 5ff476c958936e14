"""LoRA per session: against weights merged by hand, on EAT and Whisper."""

from __future__ import annotations

import math

import pytest
import torch
from learners import FRAMES, NETWORKS, bytes_of, network, weights
from torch import Tensor

from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError, UnknownNameError
from audiocl_bench.peft.lora import SessionLoRA

KV = ("k_proj", "v_proj")
both_networks = pytest.mark.parametrize("name", NETWORKS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(backbone: Backbone, n: int = 3) -> Tensor:
    return torch.randn(n, FRAMES, backbone.front_end.n_mels, generator=generator(5))


def filled(backbone: Backbone, sessions: int, *, scale: float = 0.5, **options: object) -> SessionLoRA:
    """LoRA with `sessions` pairs whose B is no longer zero, as after training."""
    settings = {"blocks": range(backbone.depth), "targets": KV, "rank": 3, **options}
    lora = SessionLoRA(backbone, scale=scale, **settings)  # type: ignore[arg-type]
    for t in range(sessions):
        for pair in lora.add(generator(t)):
            with torch.no_grad():
                pair.B.copy_(0.2 * torch.randn(pair.B.shape, generator=generator(100 + t)))
    return lora


def merged(name: str, lora: SessionLoRA, sign: float, adapters: tuple[str, ...]) -> Backbone:
    """A plain backbone whose weights are W_0 + sign * scale * sum B A, computed by hand from the state."""
    plain = network(name)
    state = lora.state_dict()
    for block in lora.blocks:
        for target in lora.targets:
            weight = getattr(plain.blocks[block].attn, target).weight
            for adapter in adapters:
                A, B = (state[f"{adapter}.{block}.{target}.{part}"] for part in ("A", "B"))
                with torch.no_grad():
                    weight += sign * lora.scale * (B @ A)
    return plain


def assert_same_features(got: Backbone, want: Backbone) -> None:
    x = inputs(got)
    torch.testing.assert_close(got.features(x), want.features(x), rtol=0, atol=1e-5)


@both_networks
def test_a_new_pair_changes_nothing_until_it_is_trained(name: str) -> None:
    backbone = network(name)
    x = inputs(backbone)
    before = backbone.features(x)
    lora = SessionLoRA(backbone, blocks=range(backbone.depth), targets=KV, rank=4)
    for t in range(2):
        pairs = lora.add(generator(t))
        assert all(not bool(pair.B.any()) for pair in pairs)
        assert torch.equal(backbone.features(x), before)


def test_initial_a_is_kaiming_uniform_and_follows_the_generator_alone() -> None:
    first, second = (
        SessionLoRA(network(), blocks=range(3), targets=KV, rank=8).add(generator(seed)) for seed in (3, 3)
    )
    torch.manual_seed(0)
    other = SessionLoRA(network(), blocks=range(3), targets=KV, rank=8).add(generator(4))
    bound = 1 / math.sqrt(96)
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(a.A, b.A)
        assert not torch.equal(a.A, c.A)
        assert 0.97 * bound < float(a.A.detach().abs().max()) <= bound
        assert float(a.A.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    drawn = torch.rand(8, 96, generator=generator(3)) * (2 * bound) - bound
    assert torch.equal(first[0].A, drawn)


@both_networks
def test_all_pairs_together_equal_the_merged_weight(name: str) -> None:
    backbone = network(name)
    lora = filled(backbone, 3)
    x = inputs(backbone)
    assert float((backbone.features(x) - network(name).features(x)).detach().abs().max()) > 1e-2
    assert_same_features(backbone, merged(name, lora, +1, ("s0", "s1", "s2")))


@both_networks
@pytest.mark.parametrize("names", [("s0", "s1"), ("s0",), ("s1",), ()])
def test_subtracted_equals_the_weight_by_hand_and_is_undone(name: str, names: tuple[str, ...]) -> None:
    backbone = network(name)
    lora = filled(backbone, 2)
    x = inputs(backbone)
    before, trainable = backbone.features(x), [p.requires_grad for p in backbone.parameters()]
    with lora.subtracted(names):
        assert_same_features(backbone, merged(name, lora, -1, names))
        assert [p.requires_grad for p in backbone.parameters()] == trainable
    assert torch.equal(backbone.features(x), before)
    assert [p.requires_grad for p in backbone.parameters()] == trainable


def test_nothing_to_subtract_is_the_plain_network() -> None:
    backbone = network()
    x = inputs(backbone)
    plain = backbone.features(x)
    lora = SessionLoRA(backbone, blocks=range(3), targets=KV, rank=2)
    with lora.subtracted(lora.names):
        assert torch.equal(backbone.features(x), plain)
    lora.add(generator())  # B = 0: still nothing to subtract
    with lora.subtracted(lora.names):
        assert torch.equal(backbone.features(x), plain)


def test_subtraction_is_undone_after_an_exception() -> None:
    backbone = network()
    lora = filled(backbone, 2)
    x = inputs(backbone)
    before = backbone.features(x)

    def fails() -> None:
        with lora.subtracted(("s0",)):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fails()
    assert torch.equal(backbone.features(x), before)


@both_networks
def test_only_the_newest_pair_trains(name: str) -> None:
    backbone = network(name)
    lora = SessionLoRA(backbone, blocks=range(backbone.depth), targets=KV, rank=2)
    for t in range(3):
        pairs = lora.add(generator(t))
        wanted = {id(part) for pair in pairs for part in (pair.A, pair.B)}
        assert {id(p) for p in backbone.parameters() if p.requires_grad} == wanted
        assert len(wanted) == 2 * len(KV) * backbone.depth
    lora.freeze()
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_step_moves_the_newest_pair_and_nothing_else() -> None:
    backbone = network()
    plain = weights(backbone)
    lora = filled(backbone, 2)
    older = {key: value for key, value in bytes_of(lora.state_dict()).items() if key.startswith("s0.")}
    newest = {key: value for key, value in bytes_of(lora.state_dict()).items() if key.startswith("s1.")}
    optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    backbone.features(inputs(backbone)).square().sum().backward()
    optimiser.step()
    after = bytes_of(lora.state_dict())
    assert all(after[key] == value for key, value in older.items())
    assert all(after[key] != value for key, value in newest.items())
    assert weights(backbone) == plain


@both_networks
@pytest.mark.parametrize("targets", [("q_proj",), ("v_proj", "out_proj"), ("k_proj", "v_proj")])
def test_rank_targets_and_blocks_are_respected(name: str, targets: tuple[str, ...]) -> None:
    backbone = network(name)
    lora = SessionLoRA(backbone, blocks=(1,), targets=targets, rank=5)
    pairs = lora.add(generator())
    assert [(pair.block, pair.projection) for pair in pairs] == [(1, target) for target in targets]
    for pair in pairs:
        assert pair.A.shape == (5, backbone.dim)
        assert pair.B.shape == (backbone.dim, 5)
    places = {key.rpartition(".lora_")[0] for key in backbone.state_dict() if ".lora_" in key}
    assert places == {f"blocks.1.attn.{target}" for target in targets}


def test_block_one_is_not_block_eleven() -> None:
    """Blocks are named by number: 1 must not also match 11 or 10."""
    backbone = network()
    backbone.blocks.extend([network().blocks[0] for _ in range(9)])
    lora = SessionLoRA(backbone, blocks=(1,), targets=("k_proj",), rank=1)
    lora.add(generator())
    places = {key.partition(".attn")[0] for key in backbone.state_dict() if ".lora_" in key}
    assert places == {"blocks.1"}


@both_networks
def test_state_goes_round(name: str) -> None:
    backbone = network(name)
    lora = filled(backbone, 2)
    fresh = network(name)
    again = SessionLoRA(fresh, blocks=lora.blocks, targets=KV, rank=3, scale=0.5)
    again.load_state_dict(lora.state_dict())
    assert again.names == ("s0", "s1")
    assert bytes_of(again.state_dict()) == bytes_of(lora.state_dict())
    assert torch.equal(fresh.features(inputs(fresh)), backbone.features(inputs(backbone)))
    assert not any(p.requires_grad for p in fresh.parameters())
    # The next pair is numbered on, and equal in both.
    assert bytes_of([p.A for p in again.add(generator(9))]) == bytes_of([p.A for p in lora.add(generator(9))])
    assert again.names == ("s0", "s1", "s2")


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    filled(network(), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_places_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"'kproj'.*did you mean k_proj"):
        SessionLoRA(network(), blocks=(0,), targets=("kproj",), rank=1)
    with pytest.raises(ConfigError, match="no target"):
        SessionLoRA(network(), blocks=(0,), targets=(), rank=1)
    with pytest.raises(ConfigError, match="no block"):
        SessionLoRA(network(), blocks=(), targets=KV, rank=1)
