"""bfloat16 and compiled training steps: what they change, and everything that they must leave as it is."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from learners import CPU, NETWORKS, QUICK, clips_of, network, session
from torch import Tensor, nn

from audiocl_bench import config, files, registry
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips, Context, StreamInfo
from audiocl_bench.prefix import FrozenPrefix
from audiocl_bench.readout import ReadoutConfig
from audiocl_bench.runner import Plan
from audiocl_bench.training import Group, Recipe, TrainingConfig, faster, fit, fit_samples

BF16 = TrainingConfig(precision="bfloat16")
TRAINED = (
    "finetune",
    "joint",
    "l2p",
    "dualprompt",
    "sprompt++",
    "coda-prompt",
    "hide-prompt",
    "lora-drs",
    "ranpac",
    "pace",
)


def context(settings: TrainingConfig, backbone: Backbone) -> Context:
    return Context(0, StreamInfo("x", 1, 2, 1), CPU, faster=faster(settings, backbone))


def values_of(backbone: Backbone) -> nn.Parameter:
    """The value projection of the last block."""
    return backbone.get_parameter(f"blocks.{backbone.depth - 1}.attn.v_proj.weight")


def training(settings: TrainingConfig, backbone: Backbone, seen: list[Tensor] | None = None) -> list[float]:
    """Train the last block's values for three epochs on the summed squares of what it makes of the clips."""
    values = values_of(backbone)
    values.requires_grad_(True)

    def loss(clips: Clips, labels: Tensor) -> Tensor:
        features = backbone.features(clips.mel)
        if seen is not None:
            seen.append(nn.functional.linear(features, features))
        return (features.float() - labels[:, None]).square().mean()

    recipe = Recipe(3, 4, schedule="constant")
    return fit(session(0, backbone), [Group((values,), 0.05)], loss, recipe, context(settings, backbone), stage="head")


def mel(backbone: Backbone) -> Tensor:
    return clips_of((0, 1), backbone)[0]


def test_runs_of_before_keep_their_identity_and_others_get_one_of_their_own() -> None:
    for name in TRAINED:
        method = registry.load(name)
        plain = config.build(method.Config, "x", QUICK.get(name, {}), owner=name)
        assert isinstance(plain, TrainingConfig)
        assert not {"precision", "compile"} & set(plain.as_dict())
        other = config.build(method.Config, "x", {**QUICK.get(name, {}), "precision": "bfloat16"}, owner=name)
        assert other.as_dict() == {**plain.as_dict(), "precision": "bfloat16"}
        assert files.sha256_json(other.as_dict()) != files.sha256_json(plain.as_dict())


@pytest.mark.parametrize(("setting", "value"), [("precision", "bfloat16"), ("compile", True)])
def test_a_cpu_is_refused_before_anything_is_done(setting: str, value: Any) -> None:
    method = registry.load("finetune")
    built = config.build(method.Config, "x", {setting: value}, owner="finetune")
    with pytest.raises(ConfigError, match=rf"setting {setting}={str(value).lower()} needs a CUDA device.*'cpu'.*cuda"):
        Plan(method, built, 0)
    assert Plan(method, built, 0, torch.device("cuda")).config is built


@pytest.mark.parametrize("settings", [TrainingConfig(), ReadoutConfig()])
def test_by_default_steps_are_what_they_were(settings: Any) -> None:
    with faster(settings, network())():
        assert not torch.is_autocast_enabled("cpu")
        assert nn.functional.linear(torch.ones(1, 2), torch.ones(3, 2)).dtype == torch.float32


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_holds_inside_training_steps_alone(name: str) -> None:
    plain, low = network(name), network(name)
    seen: list[Tensor] = []
    losses, rounded = training(TrainingConfig(), plain), training(BF16, low, seen)
    assert {products.dtype for products in seen} == {torch.bfloat16}
    assert losses != rounded
    assert rounded == pytest.approx(losses, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in low.parameters())
    assert losses[-1] < losses[0]
    assert rounded[-1] < rounded[0]

    low.load_state_dict(plain.state_dict())
    assert torch.equal(low.features(mel(low)), plain.features(mel(plain)))


def test_a_step_that_fails_leaves_no_precision_behind() -> None:
    backbone = network()

    def loss(clips: Clips, labels: Tensor) -> Tensor:
        raise RuntimeError("no such loss")

    group = Group((values_of(backbone),), 0.05)
    with pytest.raises(RuntimeError, match="no such loss"):
        fit(session(0, backbone), [group], loss, Recipe(1, 4), context(BF16, backbone), stage="head")
    assert not torch.is_autocast_enabled("cpu")


def test_kept_tokens_of_frozen_blocks_stay_float32_to_the_bit() -> None:
    """The same tokens feed training steps and, later, statistics."""
    backbone = network()
    part = session(0, backbone)
    prefix = FrozenPrefix(backbone, part, stop=1)
    with faster(BF16, backbone)():
        inside = [prefix.tokens(clips) for clips, _ in part.batches(5)]
    part = session(0, backbone)
    outside = [FrozenPrefix(backbone, part, stop=1).tokens(clips) for clips, _ in part.batches(5)]
    assert all(tokens.dtype == torch.float32 for tokens in inside)
    assert all(torch.equal(*pair) for pair in zip(inside, outside, strict=True))


def test_heads_on_stored_statistics_train_in_float32() -> None:
    backbone, weight = network(), nn.Parameter(torch.ones(2, 3))
    seen: list[Tensor] = []

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        seen.append(nn.functional.linear(features, weight))
        return nn.functional.cross_entropy(seen[-1], labels)

    batches = [(torch.randn(4, 3), torch.arange(4) % 2)]
    fit_samples(
        lambda _: batches, [Group((weight,), 0.1)], loss, Recipe(1, 4), context(BF16, backbone), stage="a", session=0
    )
    assert seen[0].dtype == torch.float32


def test_other_blocks_run_inside_the_block_only_and_never_with_a_hook() -> None:
    backbone = network()
    x = mel(backbone)
    want = backbone.features(x)
    calls: list[int] = []

    def stand_in(index: int) -> Any:
        def run(*given: Any) -> Tensor:
            calls.append(index)
            return backbone.blocks[index](*given)

        return run

    others = [stand_in(index) for index in range(backbone.depth)]
    with backbone.running(others):
        assert torch.equal(backbone.features(x), want)
        assert calls == list(range(backbone.depth))
        backbone.run(backbone.tokens(x), on_attention_input=lambda index, entering: None)
        assert len(calls) == backbone.depth
    with pytest.raises(RuntimeError, match="stop"), backbone.running(others):
        raise RuntimeError("stop")
    backbone.features(x)
    assert len(calls) == backbone.depth


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_steps_train_to_the_same_weights(name: str) -> None:
    plain, compiled = network(name), network(name)
    names = set(plain.state_dict())
    losses, found = training(TrainingConfig(), plain), training(TrainingConfig(compile=True), compiled)
    assert found == pytest.approx(losses, rel=1e-4)
    assert set(compiled.state_dict()) == names
    moved, off = values_of(plain) - values_of(network(name)), values_of(plain) - values_of(compiled)
    assert off.abs().max() < 1e-3 * moved.abs().max()
