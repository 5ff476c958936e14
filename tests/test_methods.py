"""What every built-in method has to do, on both kinds of network: the contract that outside methods meet too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learners import NETWORKS, QUICK, build, bytes_of, clips_of, learn, network, opened, steps, through_a_file, weights
from torch import Tensor

from audiocl_bench import conformance, registry
from audiocl_bench.errors import AudioclError, DataAccessError
from audiocl_bench.method import Clips, ClosedFormMethod, Method, kept_bytes

PROMPTS = ("l2p", "dualprompt", "sprompt++", "coda-prompt", "hide-prompt")
METHODS = (
    "ncm",
    "acil",
    "layup",
    "strata",
    "fsa",
    "ranpac",
    "pace",
    "lora-drs",
    "finetune",
    "joint",
    "joint-closed",
    *PROMPTS,
)
CLOSED_FORM = ("ncm", "acil", "layup", "strata", "fsa", "ranpac", "pace", "lora-drs", "joint-closed")
ALL_WEIGHTS = {"fsa"}  # train the pretrained tensors themselves, not something beside them
TRAINED = {"fsa", "ranpac", "pace", "lora-drs", "finetune", "joint", *PROMPTS}

LONGER = {
    **{name: {"epochs": 6, "lr_head": 0.05} for name in ("finetune", "joint")},
    **{name: {"epochs": 12} for name in ("l2p", "dualprompt", "sprompt++")},
    "coda-prompt": {"epochs": 30},
    "hide-prompt": {"epochs": 6, "align_epochs": 10},
}

both_networks = pytest.mark.parametrize("network_name", NETWORKS)
every_method = pytest.mark.parametrize("name", METHODS)


def test_these_are_all_built_in_methods() -> None:
    assert set(METHODS) == set(QUICK)
    assert set(METHODS) <= set(registry.names())
    assert {name for name in METHODS if registry.load(name).takes_whole_stream} == {"joint", "joint-closed"}
    assert {name for name in METHODS if issubclass(registry.load(name), ClosedFormMethod)} == set(CLOSED_FORM)
    assert not any(registry.load(name).leaks_across_batch for name in METHODS)


def probe(method: Method, n: int = 16) -> Tensor:
    """Unseen clips of all six classes."""
    return clips_of((0, 1, 2, 3, 4, 5), method.backbone, per_class=4, seed=99)[0][:n]


def scores(method: Method, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


@every_method
@both_networks
def test_contract(name: str, network_name: str) -> None:
    """One stream per method and network carries the checks that need a learnt method."""
    method = build(name, network(network_name))
    pretrained = weights(method.backbone)
    torch.manual_seed(4321)
    global_draws = torch.get_rng_state()
    mel = probe(method)
    for t in range(steps(method)):
        learn(method, t)
        logits = scores(method, mel)

        # Scores over exactly the classes seen, finite, and no gradient anywhere.
        seen = 6 if method.takes_whole_stream else 2 * (t + 1)
        assert method.num_seen == seen
        assert logits.shape == (len(mel), seen)
        assert bool(logits.isfinite().all())
        assert not logits.requires_grad
        assert not method.encode(Clips(mel)).requires_grad
        assert not any(parameter.requires_grad for parameter in method.backbone.parameters())

    # Learning draws from its own generators only.
    assert torch.equal(torch.get_rng_state(), global_draws)
    # The pretrained tensors are untouched, LoRA or not, but where training them is the method.
    assert (weights(method.backbone) != pretrained) == (name in ALL_WEIGHTS)
    # `encode` changed, and said so, exactly where the method trains.
    assert (method.encoder_version > 0) == (name in TRAINED)

    # Evaluation does not depend on the batch or its order, and does not change the model.
    reference, state = method.encode(Clips(mel)), bytes_of(method.state_dict())
    order = torch.randperm(len(mel), generator=torch.Generator().manual_seed(0))
    for rows, size in ((torch.arange(len(mel)), 1), (torch.arange(len(mel)), 7), (order, len(mel)), (order, 5)):
        features = torch.cat([method.encode(Clips(mel[part])) for part in rows.split(size)])
        torch.testing.assert_close(features, reference[rows], rtol=0, atol=1e-5)
        again = torch.cat([method.classify(part) for part in reference[rows].split(size)])
        torch.testing.assert_close(again, method.classify(reference)[rows], rtol=1e-6, atol=1e-6)
    assert torch.equal(scores(method, mel), scores(method, mel))
    assert bytes_of(method.state_dict()) == state

    # The state is complete, plain, and owns its memory.
    twin = build(name, network(network_name))
    twin.load_state_dict(through_a_file(method.state_dict()))
    assert torch.equal(scores(twin, mel), scores(method, mel))
    assert bytes_of(twin.state_dict()) == state
    assert (twin.num_seen, twin.encoder_version) == (method.num_seen, method.encoder_version)
    assert not any(parameter.requires_grad for parameter in twin.backbone.parameters())
    assert kept_bytes(method.state_dict()) > 0


@every_method
def test_state_does_not_share_memory_with_the_learner(name: str) -> None:
    method = learn(build(name), 0)
    before = bytes_of(method.state_dict())
    _scribble(method.state_dict())
    assert bytes_of(method.state_dict()) == before


def _scribble(state: Any) -> None:
    if isinstance(state, Tensor):
        state.zero_()
    elif isinstance(state, dict):
        for value in state.values():
            _scribble(value)


@pytest.mark.slow
@every_method
@both_networks
def test_passes_the_conformance_suite(name: str, network_name: str) -> None:
    """What `audiocl check` asks of outside methods, exact resume among it; whole runs are made elsewhere."""
    cls = registry.load(name)
    report = conformance.check(cls, settings=QUICK[name], backbone=network_name, miniatures=())
    assert report.passed, str(report)
    skipped = {outcome.name for outcome in report.outcomes if outcome.status == "skipped"}
    assert skipped == {"run", "run-resume"} | ({"resume"} if name.startswith("joint") else set())


@every_method
def test_equal_seeds_give_equal_bytes_and_other_seeds_differ(name: str) -> None:
    def outcome(seed: int) -> tuple[Any, Tensor]:
        torch.manual_seed(seed + 1)  # the global generator must not matter
        method = build(name, seed=seed % 10)
        for t in range(min(2, steps(method))):
            learn(method, t)
        return bytes_of(method.state_dict()), scores(method, probe(method))

    first, second, other = outcome(0), outcome(10), outcome(1)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    if name not in ("ncm", "layup", "strata"):  # these draw nothing
        assert not torch.equal(first[1], other[1])


@every_method
def test_only_the_open_session_is_read(name: str) -> None:
    method = build(name)
    part = opened(method, 0)
    method.learn(part)
    part.close()
    assert part.clips_handed_out >= part.num_clips
    scores(method, probe(method))  # nothing of the closed session is needed any more
    with pytest.raises(DataAccessError, match="session 0 is closed"):
        part.labels.sum()


@every_method
def test_learns_more_than_chance(name: str) -> None:
    """Class templates in noise are easy: a method that mixes up columns or labels falls to one in six."""
    method = build(name, **LONGER.get(name, {}))
    learn(method, *range(steps(method)))
    mel, labels = clips_of((0, 1, 2, 3, 4, 5), method.backbone, per_class=8, seed=5)
    right = scores(method, mel).argmax(1) == torch.from_numpy(labels)
    if name in ("finetune", *PROMPTS):  # forget more or less: judged on the last session, against all classes
        right = right[torch.from_numpy(labels) >= 4]
    assert float(right.float().mean()) > 0.6


@pytest.mark.parametrize("name", [name for name in CLOSED_FORM if name != "lora-drs"])  # it always adapts
@both_networks
def test_fresh_statistics_equal_stored_ones_for_a_frozen_encoder(name: str, network_name: str) -> None:
    """The drift measure: reset the statistics, accumulate every session again, compare."""
    frozen = {"fsa": {"fsa": False}, "ranpac": {"fsa": False, "ridge": 10.0}, "pace": {"fsa": False, "gamma": 10.0}}
    method = build(name, network(network_name), **frozen.get(name, {}))
    assert isinstance(method, ClosedFormMethod)
    learn(method, *range(steps(method)))
    mel = probe(method)
    stored = scores(method, mel)
    method.reset_statistics()
    for t in range(steps(method)):
        part = opened(method, t)
        method.num_seen = part.num_seen
        method.accumulate(part)
    assert torch.equal(scores(method, mel), stored)


@pytest.mark.parametrize("name", ["ranpac", "pace", "finetune"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [({"targets": ("k_proj", "key")}, "unknown LoRA target .*'key'"), ({"targets": ()}, "LoRA has no target")],
)
def test_bad_lora_targets_are_named_before_anything_is_trained(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AudioclError, match=words):
        learn(build(name, **settings, **({"freeze_blocks": 0} if name == "pace" else {})), 0)


@pytest.mark.parametrize(("name", "setting"), [("ranpac", "ridge"), ("pace", "gamma"), ("joint-closed", "ridge")])
def test_a_ridge_of_zero_is_refused_in_words(name: str, setting: str) -> None:
    with pytest.raises(AudioclError, match=f"'{setting}' is 0"):
        build(name, **{setting: 0.0})


@pytest.mark.parametrize("name", ["ranpac", "pace"])
def test_one_clip_a_class_is_enough(name: str) -> None:
    """RanPAC's 80/20 split is impossible then; the search falls back to leave-one-out."""
    rule = {"search": "session"} if name == "ranpac" else {"gamma_rule": "first", "freeze_blocks": 0}
    method = learn(build(name, **rule), 0, 1, per_class=1)
    assert bool(scores(method, probe(method)).isfinite().all())
