"""Sequential and joint training: the bounds, and what may move in each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learners import NETWORKS, build, bytes_of, clips_of, learn, module, network, session, weights, whole
from torch import Tensor
from torch.nn import functional as F

from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips, Method, SilentReporter

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
SHARED: dict[str, Any] = {"epochs": 2, "batch_size": 5, "min_steps": 0}


def head(method: Method) -> tuple[Tensor, Tensor]:
    state = method.state_dict()
    return state["head"]["weight"], state["head"]["bias"]


# ------------------------------------------------------------------------------------------------------ joint training


@both_networks
@pytest.mark.parametrize("trains", ["lora", "all"])
def test_joint_equals_fine_tuning_on_a_stream_of_one_session(network_name: str, trains: str) -> None:
    settings = {**SHARED, "trains": trains, "lr_backbone": 0.05 if trains == "lora" else 1e-3}
    joint = learn(build("joint", network(network_name), **settings), 0)
    sequential = build("finetune", network(network_name), **settings)
    sequential.learn(whole(sequential.backbone))
    assert bytes_of(joint.state_dict()) == bytes_of(sequential.state_dict())
    assert joint.num_seen == 6


def test_joint_never_forgets_what_sequential_training_forgets() -> None:
    joint = learn(build("joint", epochs=6, lr_head=0.05), 0)
    sequential = learn(build("finetune", epochs=6, lr_head=0.05), 0, 1, 2)
    mel, labels = clips_of((0, 1, 2, 3, 4, 5), joint.backbone, per_class=8, seed=3)
    old = torch.from_numpy(labels) < 2

    def on_old(method: Method) -> float:
        predicted = method.classify(method.encode(Clips(mel))).argmax(1)
        return float((predicted == torch.from_numpy(labels))[old].float().mean())

    assert on_old(joint) > 0.8
    assert on_old(sequential) == 0.0


def epochs_of(**settings: Any) -> list[int]:
    """Return, for every epoch trained on session 0 (12 clips), the number of epochs the loop was told."""
    told: list[int] = []

    class Counting(SilentReporter):
        def epoch(self, stage: str, epoch: int, epochs: int, clips: int, loss: float) -> None:
            told.append(epochs)

    method = build("finetune", **settings)
    object.__setattr__(method.context, "report", Counting())
    learn(method, 0)
    return told


def test_epochs_none_means_the_benchmarks_own() -> None:
    assert epochs_of(epochs=None) == [2, 2]  # the tiny stream's E_0
    assert epochs_of(epochs=3) == [3, 3, 3]


def test_few_clips_get_more_epochs_until_there_are_enough_steps() -> None:
    assert epochs_of(epochs=2, batch_size=5, min_steps=6) == [2, 2]  # 12 clips are 3 steps
    assert epochs_of(epochs=2, batch_size=5, min_steps=7) == [3, 3, 3]
    assert epochs_of(epochs=2, batch_size=12, min_steps=4) == [4] * 4


# ------------------------------------------------------------------------------------------------- the expanding head


@pytest.mark.parametrize("logits", ["seen", "local"])
def test_head_grows_with_old_rows_copied(logits: str) -> None:
    """Nothing is trained (lr 0), so what the boundary does to the head stands alone."""
    method = learn(build("finetune", logits=logits, lr_backbone=0.0, lr_head=0.0), 0)
    weight, bias = head(method)
    assert weight.shape == (2, method.backbone.dim)
    for t in (1, 2):
        learn(method, t)
        grown_weight, grown_bias = head(method)
        assert grown_weight.shape == (2 * (t + 1), method.backbone.dim)
        assert torch.equal(grown_weight[: 2 * t], weight)
        assert torch.equal(grown_bias[: 2 * t], bias)
        bound = 1 / method.backbone.dim**0.5
        assert 0 < float(grown_weight[2 * t :].abs().max()) <= bound
        assert not torch.equal(grown_weight[2 * t :], weight[:2])
        weight, bias = grown_weight, grown_bias


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_local_leaves_old_rows_bytewise_unchanged_and_seen_moves_them(optimiser: str) -> None:
    """Their gradient is zero, but weight decay (and Adam, which scales it up) would still move them."""
    for logits in ("local", "seen"):
        method = build("finetune", logits=logits, optimiser=optimiser, weight_decay=0.1, lr_backbone=0.001)
        learn(method, 0)
        weight, bias = head(method)
        learn(method, 1)
        later, later_bias = head(method)
        kept = bytes_of(later[:2]) == bytes_of(weight) and bytes_of(later_bias[:2]) == bytes_of(bias)
        assert kept == (logits == "local")


def test_the_first_session_is_the_same_for_seen_and_local() -> None:
    assert bytes_of(learn(build("finetune", logits="seen"), 0).state_dict()) == bytes_of(
        learn(build("finetune", logits="local"), 0).state_dict()
    )


@pytest.mark.parametrize(("logits", "first"), [("seen", 0), ("local", 2)])
def test_loss_is_cross_entropy_over_seen_or_local_classes(
    logits: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = learn(build("finetune", logits=logits), 0)
    found: list[float] = []
    real = module("finetune").fit

    def spy(part: Any, groups: Any, loss: Any, recipe: Any, context: Any, **options: Any) -> list[float]:
        clips, labels = next(part.batches(6))
        fresh = groups[1].parameters
        weight, bias = fresh[0].detach(), fresh[1].detach()
        if first == 0:
            assert torch.equal(weight[:2], head(method)[0])
        z = method.backbone.features(clips.mel)
        want = F.cross_entropy(F.linear(z, weight, bias), labels - first)
        found.append(float(loss(clips, labels).detach() - want.detach()))
        assert len(weight) == 4 - first
        return real(part, groups, loss, recipe, context, **options)

    monkeypatch.setattr(module("finetune"), "fit", spy)
    learn(method, 1)
    assert found == [pytest.approx(0.0, abs=1e-6)]


# ------------------------------------------------------------------------------------------------ what may be changed


@both_networks
def test_lora_training_leaves_every_pretrained_tensor_alone(network_name: str) -> None:
    method = build("finetune", network(network_name), lr_backbone=0.5)
    before = weights(method.backbone)
    start = bytes_of(method.lora.state_dict())
    learn(method, 0, 1)
    assert weights(method.backbone) == before
    moved = bytes_of(method.state_dict()["body"])
    assert set(moved) == set(start)
    assert all(moved[name] != start[name] for name in moved)


@both_networks
def test_training_all_moves_the_backbone_and_keeps_it_in_the_state(network_name: str) -> None:
    method = build("finetune", network(network_name), trains="all", lr_backbone=1e-3)
    pretrained = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    learn(method, 0)
    state = method.state_dict()
    assert set(state["body"]) == set(pretrained)
    assert not any(".lora_" in name for name in state["body"])
    trained = {name for name, _ in method.backbone.named_parameters()}
    assert {name for name, value in state["body"].items() if not torch.equal(value, pretrained[name])} == trained

    twin = build("finetune", network(network_name), trains="all", lr_backbone=1e-3)
    twin.load_state_dict(state)
    learn(twin, 1)
    learn(method, 1)
    assert bytes_of(twin.state_dict()) == bytes_of(method.state_dict())


def test_the_declared_groups_are_all_that_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Body at lr_backbone, head at lr_head, and no parameter besides."""
    method = build("finetune", lr_backbone=0.03, lr_head=0.007)
    seen = []
    real = module("finetune").fit

    def spy(part: Any, groups: Any, *rest: Any, **options: Any) -> list[float]:
        seen.append([(group.lr, len(group.parameters)) for group in groups])
        wanted = {id(p) for p in groups[0].parameters}
        assert {id(p) for p in method.backbone.parameters() if p.requires_grad} == wanted
        return real(part, groups, *rest, **options)

    monkeypatch.setattr(module("finetune"), "fit", spy)
    learn(method, 0, 1)
    assert seen == [[(0.03, 12), (0.007, 2)]] * 2


def test_divergence_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match=r"diverged in stage 'train' of session 0.*lower the learning rate"):
        build("finetune", trains="all", lr_backbone=1e12, epochs=3).learn(session(0, network()))
