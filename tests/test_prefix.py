"""Frozen first blocks: equal losses and gradients, run once per clip, within a budget, and gone with the session."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from learners import CPU, NETWORKS, build, bytes_of, clips_of, learn, network, reader, session
from torch import Tensor

from audiocl_bench import prefix as module
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError, DataAccessError
from audiocl_bench.method import Clips, Session
from audiocl_bench.prefix import FrozenPrefix

CLIPS = 12


def counted(backbone: Backbone, *, cache_bytes: int = 1 << 30) -> Session:
    """A session whose clips have numbers, as those of a run."""
    mel, labels = clips_of((0, 1), backbone)
    return Session(0, (0, 1), 0, labels, reader(mel), CPU, cache_bytes=cache_bytes, numbers=100 + np.arange(CLIPS))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)


def trained(backbone: Backbone, stop: int) -> list[torch.nn.Parameter]:
    parameters = list(backbone.blocks[stop].parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


@pytest.mark.parametrize("room", [1 << 30, 0, 5, 10])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stop", [0, 1])
def test_losses_and_gradients_are_those_of_whole_passes(name: str, stop: int, room: int) -> None:
    """For clips in any order and batch, kept or past the budget (`room` clips), alone and with copies."""
    backbone = network(name)
    part = counted(backbone)
    per_clip = backbone.tokens(next(part.batches(1))[0].mel).numel() * 4
    kept = FrozenPrefix(backbone, part, stop=stop, budget=per_clip * room)
    parameters = trained(backbone, stop)
    for clips, _ in part.batches(5, shuffle=torch.Generator().manual_seed(1)):
        copies = torch.randn_like(torch.cat([clips.mel, clips.mel]))
        for extra in (None, copies):
            want = backbone.features(clips.mel if extra is None else torch.cat([clips.mel, extra]))
            got = kept.features(clips, extra)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
            slopes = [torch.autograd.grad(value.square().sum(), parameters) for value in (want, got)]
            for expected, found in zip(*slopes, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_kept_tokens_are_the_bits_of_their_chunk(name: str) -> None:
    """Whatever batch asks: so results do not depend on the order of clips before."""
    backbone = network(name)
    part = counted(backbone)
    mel, _ = clips_of((0, 1), backbone)
    with torch.no_grad():
        want = torch.cat([backbone.run(backbone.tokens(chunk), stop=1) for chunk in mel.split(5)])
    for seed in range(3):
        kept = FrozenPrefix(backbone, part, stop=1)
        for clips, _ in part.batches(3, shuffle=torch.Generator().manual_seed(seed)):
            assert torch.equal(kept.tokens(clips), want[clips.index])


@pytest.mark.parametrize("name", NETWORKS)
def test_first_blocks_run_once_per_clip_and_count_so(name: str) -> None:
    backbone = network(name)
    part = counted(backbone)
    kept = FrozenPrefix(backbone, part, stop=1)
    trained(backbone, 1)
    passes, rest = backbone.passes, backbone.layer - 1
    for _ in range(3):
        for clips, _ in part.batches(4, shuffle=torch.Generator().manual_seed(0)):
            kept.features(clips)
    assert passes.clips == 3 * CLIPS, "passes that the method asked for"
    assert passes.block_runs == CLIPS + 3 * CLIPS * rest
    assert passes.needed == passes.block_runs


def test_work_that_was_not_needed_is_known_without_a_prefix() -> None:
    """Whole passes of the same training: the first block ran three times per clip, and had to once."""
    backbone = network("eat-tiny")
    part = counted(backbone)
    trained(backbone, 1)
    passes, rest = backbone.passes, backbone.layer - 1
    for _ in range(3):
        for clips, _ in part.batches(4):
            backbone.features(clips.mel)
    assert passes.block_runs == 3 * CLIPS * backbone.layer
    assert passes.needed == CLIPS + 3 * CLIPS * rest
    before = copy.copy(passes)
    with torch.no_grad():  # nothing trains: only the blocks behind the first are new without their gradient
        for _ in range(2):
            for clips, _ in part.batches(12):
                backbone.features(clips.mel)
        assert passes.needed - before.needed == CLIPS * rest
        backbone.blocks[1].attn.k_proj.weight.mul_(1.1)  # other weights, other work from there on
        for clips, _ in part.batches(12):
            backbone.features(clips.mel)
        assert passes.needed - before.needed == 2 * CLIPS * rest
        clips = next(part.batches(12))[0]
        backbone.features(clips.mel + 0)  # what nobody knows is needed
        clips.mel.mul_(2)  # nor what was changed
        backbone.features(clips.mel)
        assert passes.needed - before.needed == 2 * CLIPS * rest + 2 * CLIPS * backbone.layer


def test_what_is_past_the_budget_is_run_again() -> None:
    backbone = network("eat-tiny")
    part = counted(backbone)
    per_clip = backbone.tokens(next(part.batches(1))[0].mel).numel() * 4
    backbone.passes.block_runs = backbone.passes.needed = 0
    kept = FrozenPrefix(backbone, part, stop=1, budget=per_clip * 7)  # one chunk of five
    for _ in range(4):
        for clips, _ in part.batches(4):
            kept.tokens(clips)
    assert backbone.passes.block_runs == 5 + 4 * 7
    assert backbone.passes.needed == CLIPS


def test_everything_is_dropped_when_the_session_closes() -> None:
    backbone = network("eat-tiny")
    part = counted(backbone)
    kept = FrozenPrefix(backbone, part, stop=1)
    clips, _ = next(part.batches(4))
    kept.tokens(clips)
    assert kept._kept is not None
    part.close()
    assert kept._kept is None
    with pytest.raises(DataAccessError):
        kept.tokens(clips)


def test_clips_without_a_position_just_run() -> None:
    backbone = network("eat-tiny")
    part = counted(backbone)
    mel, _ = clips_of((2, 3), backbone)
    assert torch.equal(FrozenPrefix(backbone, part, stop=2).features(Clips(mel)), backbone.features(mel))


@pytest.mark.parametrize("stop", [-1, 99])
def test_a_block_that_is_not_there_is_refused(stop: int) -> None:
    backbone = network("eat-tiny")
    with pytest.raises(ConfigError, match="none starts at"):
        FrozenPrefix(backbone, counted(backbone), stop=stop)


class Whole(FrozenPrefix):
    """Keeps nothing: whole passes."""

    def tokens(self, clips: Clips) -> Tensor:
        with torch.no_grad():
            return self._run(clips.mel)


@pytest.mark.parametrize("freeze", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_pace_learns_the_same_with_and_without(name: str, freeze: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"freeze_blocks": freeze, "epochs": 2, "rho_boundary": 0.0, "copies": 4}
    with_it = learn(build("pace", network(name), **settings), 0, 1)
    pace = __import__(type(with_it).__module__, fromlist=["pace"])
    monkeypatch.setattr(pace, "FrozenPrefix", Whole)
    without = learn(build("pace", network(name), **settings), 0, 1)
    assert with_it.context.report.notes["boundary_prone"] == without.context.report.notes["boundary_prone"]
    mine, other = with_it.state_dict()["lora"], without.state_dict()["lora"]
    for key in mine:
        torch.testing.assert_close(mine[key], other[key], rtol=0, atol=1e-5)
    assert with_it.backbone.passes.block_runs < without.backbone.passes.block_runs or freeze == 0


def test_pace_repeats_to_the_byte_whatever_fits() -> None:
    settings: dict[str, Any] = {"freeze_blocks": 1, "epochs": 2}
    states = [learn(build("pace", network("eat-tiny"), **settings), 0, 1).state_dict() for _ in range(2)]
    assert bytes_of(states[0]) == bytes_of(states[1])
    assert session(0, network("eat-tiny")).numbers(torch.arange(2)) is None
