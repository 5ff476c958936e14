"""Prompts as inputs: which ones a clip gets, where they enter the network, and what published code does instead."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import NETWORKS, clips_of, network
from torch import Tensor

from audiocl_bench.errors import ConfigError
from audiocl_bench.peft.prompts import (
    cosine_similarity,
    gather_prefixes,
    normalised,
    run_prompted,
    split_heads,
    top_prompts,
)

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
EXAMPLE = torch.tensor([[5], [4], [3], [6], [0], [1], [7], [2]])
"""Eight clips' choices in the numeric example of methods.md section 2.2."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------- matching


def test_normalised_has_unit_length_and_a_floor() -> None:
    assert torch.allclose(normalised(torch.tensor([[3.0, 4.0], [0.0, -2.0]])), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    assert torch.equal(normalised(torch.zeros(2, 3)), torch.zeros(2, 3))
    tiny = torch.tensor([[3e-7, 4e-7]])  # squared norm 2.5e-13 lies under the floor 1e-12
    assert torch.allclose(normalised(tiny), tiny / 1e-6)


def test_cosines_are_those_of_numpy() -> None:
    q, k = draw(5, 7), draw(3, 7, seed=1)
    Q, K = q.double().numpy(), k.double().numpy()
    want = Q @ K.T / np.linalg.norm(Q, axis=1)[:, None] / np.linalg.norm(K, axis=1)
    np.testing.assert_allclose(cosine_similarity(q, k), want, atol=1e-6)
    assert float(cosine_similarity(q, q).diagonal().min()) == pytest.approx(1.0, abs=1e-6)


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_scaling_queries_or_keys_changes_nothing(a: float, b: float) -> None:
    """Section 2.1, oracle 6."""
    q, k = draw(5, 7), draw(6, 7, seed=1)
    scaled = cosine_similarity(a * q, b * k)
    torch.testing.assert_close(scaled, cosine_similarity(q, k), rtol=0, atol=1e-6)
    assert torch.equal(top_prompts(scaled, 2), top_prompts(cosine_similarity(q, k), 2))


# ------------------------------------------------------------------------------------------------------------ selection

SIMILARITY = torch.tensor(
    [
        [0.9, 0.1, 0.5, -0.3],
        [0.2, 0.8, 0.7, 0.0],
        [0.1, 0.3, 0.9, 0.6],
    ]
)


def test_every_clip_takes_its_own_nearest_prompts_nearest_first() -> None:
    assert top_prompts(SIMILARITY, 1).tolist() == [[0], [1], [2]]
    assert top_prompts(SIMILARITY, 2).tolist() == [[0, 2], [1, 2], [2, 3]]
    for row in range(3):
        assert torch.equal(top_prompts(SIMILARITY[row : row + 1], 3)[0], top_prompts(SIMILARITY, 3)[row])


def test_batchwise_takes_what_the_batch_takes_most_often() -> None:
    """Of the choices {0,2}, {1,2}, {2,3}, prompt 2 occurs three times and the others once: the smaller index wins."""
    assert top_prompts(SIMILARITY, 2, batchwise=True).tolist() == [[2, 0]] * 3
    assert top_prompts(SIMILARITY[1:], 2, batchwise=True).tolist() == [[2, 1]] * 2
    assert top_prompts(SIMILARITY[:1], 2, batchwise=True).tolist() == [[0, 2]]  # a clip alone gets its own


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 9))
def test_batchwise_equals_counting(seed: int, k: int, batch: int) -> None:
    similarity = draw(batch, 5, seed=seed)
    counts = [0] * 5
    for row in similarity.tolist():
        for m in sorted(range(5), key=lambda m: -row[m])[:k]:
            counts[m] += 1
    want = sorted(range(5), key=lambda m: (-counts[m], m))[:k]
    assert top_prompts(similarity, k, batchwise=True).tolist() == [want] * batch


def test_more_prompts_than_the_pool_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 prompts are to be chosen from a pool of 4: lower top_k"):
        top_prompts(SIMILARITY, 5)


# ------------------------------------------------------------------------------------------------------- prompt tokens


@both_networks
def test_prompts_come_first_and_the_rest_stays_in_place(network_name: str) -> None:
    backbone = network(network_name)
    mel = clips_of((0, 1), backbone, per_class=2)[0]
    prompts = draw(len(mel), 3, backbone.dim)
    outputs, rest = run_prompted(backbone, mel, prompts)
    tokens = backbone.tokens(mel)
    want = backbone.run(torch.cat([prompts, tokens], dim=1))
    assert torch.equal(outputs, want[:, :3])
    assert torch.equal(rest, want[:, 3:])
    assert rest.shape == tokens.shape
    assert not torch.allclose(rest, backbone.run(tokens))  # the clip's own tokens see the prompts


@both_networks
def test_no_prompt_is_the_plain_network(network_name: str) -> None:
    backbone = network(network_name)
    mel = clips_of((0, 1), backbone, per_class=2)[0]
    outputs, rest = run_prompted(backbone, mel, torch.zeros(len(mel), 0, backbone.dim))
    assert outputs.shape == (len(mel), 0, backbone.dim)
    assert torch.equal(backbone.pooled(rest), backbone.features(mel))


@both_networks
def test_prompts_carry_no_position(network_name: str) -> None:
    """Exchanging two prompts exchanges their outputs and leaves all others."""
    backbone = network(network_name)
    mel = clips_of((0,), backbone, per_class=2)[0]
    prompts, order = draw(2, 4, backbone.dim), torch.tensor([2, 0, 3, 1])
    outputs, rest = run_prompted(backbone, mel, prompts)
    turned, same = run_prompted(backbone, mel, prompts[:, order])
    torch.testing.assert_close(turned, outputs[:, order], rtol=0, atol=1e-5)
    torch.testing.assert_close(same, rest, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ prefixes


def marked_pool(layers: int = 2, prompts: int = 8, length: int = 3, heads: int = 2, width: int = 2) -> Tensor:
    """A pool whose entries tell where they come from: layer, role (0 key, 1 value), prompt, position, head, place."""
    shape = (layers, 2, prompts, length, heads, width)
    pool = torch.zeros(shape)
    for place in product(*map(range, shape)):
        pool[place] = float(sum(index * 10**power for power, index in enumerate(reversed(place))))
    return pool


def origin(part: Tensor) -> tuple[str, int]:
    """Read off role and prompt from any element of a prefix part [H, P, d_h] of `marked_pool`."""
    code = int(part[0, 0, 0])
    return "KV"[code // 10**4 % 10], code // 10**3 % 10


def test_every_clip_gets_keys_and_values_of_its_own_choice() -> None:
    """Section 2.2, oracle 2, for every element."""
    pool = marked_pool()
    prefix = gather_prefixes(pool, EXAMPLE, (4, 7))
    assert list(prefix) == [4, 7]
    for layer, block in enumerate((4, 7)):
        keys, values = prefix[block]
        assert keys.shape == values.shape == (8, 2, 3, 2)
        for b, m in enumerate(EXAMPLE[:, 0].tolist()):
            for h in range(2):
                assert torch.equal(keys[b, h], pool[layer, 0, m, :, h])
                assert torch.equal(values[b, h], pool[layer, 1, m, :, h])


def test_the_published_reshape_mixes_roles_and_clips() -> None:
    """The numeric example of section 2.2: row 0 is (K_5, K_4) and row 4 is (V_5, V_4), all eight rows spelt out."""
    correct, published = (
        gather_prefixes(marked_pool(), EXAMPLE, (0, 1), published_reshape=leaky)[0] for leaky in (False, True)
    )
    ids = EXAMPLE[:, 0].tolist()
    assert [(origin(k), origin(v)) for k, v in zip(*correct, strict=True)] == [(("K", m), ("V", m)) for m in ids]
    assert [(origin(k), origin(v)) for k, v in zip(*published, strict=True)] == [
        (("K", 5), ("K", 4)),
        (("K", 3), ("K", 6)),
        (("K", 0), ("K", 1)),
        (("K", 7), ("K", 2)),
        (("V", 5), ("V", 4)),
        (("V", 3), ("V", 6)),
        (("V", 0), ("V", 1)),
        (("V", 7), ("V", 2)),
    ]


def test_the_published_reshape_is_right_for_a_clip_alone() -> None:
    """So its harm shows only in company: what the audit's batch of one finds."""
    pool = marked_pool()
    for m in range(8):
        alone = torch.tensor([[m]])
        right, published = (gather_prefixes(pool, alone, (0, 1), published_reshape=leaky) for leaky in (False, True))
        assert all(torch.equal(right[block][part], published[block][part]) for block in (0, 1) for part in (0, 1))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2), min_size=1, max_size=6))
def test_several_prefixes_of_a_clip_stand_in_the_order_chosen(chosen: list[list[int]]) -> None:
    pool = marked_pool()
    keys, values = gather_prefixes(pool, torch.tensor(chosen), (0, 1))[1]
    assert keys.shape == (len(chosen), 2, 6, 2)
    for b, (first, second) in enumerate(chosen):
        for role, part in enumerate((keys, values)):
            for h in range(2):
                assert torch.equal(part[b, h, :3], pool[1, role, first, :, h])
                assert torch.equal(part[b, h, 3:], pool[1, role, second, :, h])


def test_gradient_reaches_the_chosen_prefixes_only() -> None:
    pool = marked_pool().requires_grad_()
    prefix = gather_prefixes(pool, torch.tensor([[3], [3], [5]]), (0, 1))
    sum(part.sum() for pair in prefix.values() for part in pair).backward()
    want = torch.zeros(8)
    want[3], want[5] = 2, 1
    assert torch.equal(pool.grad, want[None, None, :, None, None, None].expand_as(pool))


def test_blocks_and_layers_have_to_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        gather_prefixes(marked_pool(), EXAMPLE, (0,))


def test_no_block_is_no_prefix() -> None:
    assert gather_prefixes(torch.zeros(0, 2, 1, 5, 2, 2), torch.zeros(4, 1, dtype=torch.long), ()) == {}


@both_networks
def test_prefix_attention_is_a_softmax_over_prefix_and_tokens(network_name: str) -> None:
    """Section 2.2, oracle 3, in NumPy: every row of weights runs over [K_p; K] and sums to one."""
    backbone = network(network_name)
    heads, width, clips, length = backbone.num_heads, backbone.dim // backbone.num_heads, 3, 4
    tokens = draw(clips, 5, backbone.dim, seed=3)
    pool = draw(1, 2, 6, length, heads, width, seed=4)
    chosen = torch.tensor([[5], [0], [5]])
    attention = backbone.blocks[1].attn
    got = attention(tokens, gather_prefixes(pool, chosen, (1,))[1]).detach().numpy()

    def project(name: str) -> np.ndarray:
        rows = getattr(attention, name)(tokens).detach().double().numpy()
        return rows.reshape(clips, 5, heads, width).transpose(0, 2, 1, 3)

    q, k, v = (project(name) for name in ("q_proj", "k_proj", "v_proj"))
    P = pool.double().numpy()[0]
    for b, m in enumerate(chosen[:, 0].tolist()):
        mixed = []
        for h in range(heads):
            K, V = np.concatenate([P[0, m, :, h], k[b, h]]), np.concatenate([P[1, m, :, h], v[b, h]])
            weights = np.exp(q[b, h] @ K.T / np.sqrt(width))
            weights /= weights.sum(axis=1, keepdims=True)
            assert weights.shape == (5, length + 5)
            np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
            mixed.append(weights @ V)
        joined = torch.from_numpy(np.concatenate(mixed, axis=1)).float()
        np.testing.assert_allclose(got[b], attention.out_proj(joined).detach(), atol=1e-5)


@both_networks
def test_prefixes_of_length_zero_are_the_plain_network(network_name: str) -> None:
    backbone = network(network_name)
    mel = clips_of((0, 1), backbone, per_class=2)[0]
    heads = backbone.num_heads
    pool = torch.zeros(2, 2, 3, 0, heads, backbone.dim // heads)
    prefix = gather_prefixes(pool, torch.tensor([[0], [2], [1], [1]]), (0, 1))
    plain = backbone.run(backbone.tokens(mel))
    torch.testing.assert_close(backbone.run(backbone.tokens(mel), prefix=prefix), plain, rtol=0, atol=0)


def test_heads_are_split_as_attention_splits_them() -> None:
    attention = network().blocks[0].attn
    rows = draw(2, 5, 96)
    assert torch.equal(split_heads(rows, attention.num_heads).transpose(1, 2), attention._split(rows))
