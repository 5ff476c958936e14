"""Which layers and statistics a method reads, against tokens taken by hand; old runs keep their identity."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from audiocl_bench import backbones, config, registry
from audiocl_bench.errors import ConfigError
from audiocl_bench.readout import Readout


@pytest.fixture(scope="module")
def eat() -> backbones.Backbone:
    return backbones.load("eat-tiny", frames=64)


@pytest.fixture(scope="module")
def whisper() -> backbones.Backbone:
    return backbones.load("whisper-tiny-random", frames=64)


def _mel(backbone: backbones.Backbone, clips: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(clips, 64, backbone.front_end.n_mels, generator=generator)


def test_the_default_is_what_the_backbone_pools(eat: backbones.Backbone, whisper: backbones.Backbone) -> None:
    for backbone in (eat, whisper):
        mel = _mel(backbone)
        assert torch.equal(Readout.of(backbone)(backbone, mel), backbone.features(mel))


def test_statistics_of_every_layer_in_order(eat: backbones.Backbone) -> None:
    mel = _mel(eat)
    readout = Readout.of(eat, "all", "std+cls+mean")
    got = readout(eat, mel)
    x, expected = eat.tokens(mel), []
    for layer in range(eat.depth + 1):
        if layer:
            x = eat.run(x, start=layer - 1, stop=layer)
        patches = x[:, 1:].numpy()
        expected += [x[:, 0].numpy(), patches.mean(1), patches.std(1)]
    together = torch.cat([torch.as_tensor(part) for part in expected], dim=1)
    assert readout.width == got.shape[1] == 3 * (eat.depth + 1) * eat.dim
    assert torch.allclose(got, together, atol=1e-5)


def test_one_pass_whatever_the_number_of_layers(whisper: backbones.Backbone) -> None:
    mel, before = _mel(whisper), dataclasses.replace(whisper.passes)
    Readout.of(whisper, "all", "mean+std")(whisper, mel)
    assert whisper.passes.clips - before.clips == 3
    assert whisper.passes.block_runs - before.block_runs == 3 * whisper.depth
    Readout.of(whisper, "0,1")(whisper, mel)
    assert whisper.passes.block_runs - before.block_runs == 3 * whisper.depth + 3  # block 1 and later are not needed


@pytest.mark.parametrize(
    ("text", "layers"),
    [("last", (2,)), ("all", (0, 1, 2)), ("last:2", (1, 2)), ("last:9", (0, 1, 2)), ("2,0", (0, 2)), ("[1,2]", (1, 2))],
)
def test_layers_as_the_user_names_them(whisper: backbones.Backbone, text: str, layers: tuple[int, ...]) -> None:
    assert Readout.of(whisper, text).layers == layers


@pytest.mark.parametrize(
    ("layers", "pool", "named"),
    [
        ("3", "mean", "0 to 2"),
        ("-1", "mean", "0 to 2"),
        ("first", "mean", "last:K"),
        ("last:0", "mean", "0 to 2"),
        ("last", "cls", "class token"),
        ("last", "max", "mean, std"),
        ("last", "mean+mean", "once"),
    ],
)
def test_what_a_backbone_does_not_have(whisper: backbones.Backbone, layers: str, pool: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Readout.of(whisper, layers, pool)


def test_earlier_layer_of_the_backbone_is_the_last_one_read() -> None:
    backbone = backbones.load("whisper-tiny-random", frames=64, layer=1)
    assert Readout.of(backbone, "all").layers == (0, 1)
    assert Readout.of(backbone).layers == (1,)


@pytest.mark.parametrize("name", ["ncm", "ranpac", "acil", "fsa", "pace"])
def test_a_later_setting_at_its_default_leaves_a_run_what_it_was(name: str) -> None:
    settings = registry.load(name).Config
    plain = config.build(settings, "esc50", {}, owner=name)
    assert {"layers", "pool"}.isdisjoint(plain.as_dict())
    changed = config.build(settings, "esc50", {"layers": "all"}, owner=name)
    assert changed.as_dict() == {**plain.as_dict(), "layers": "all"}
