"""DualPrompt and S-Prompt++: prefixes of the right session, frozen rows to the byte, and the published leaks."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from learners import CPU, NETWORKS, SESSIONS, bytes_of, clips_of, learn, network, reader, session, weights
from probes import open_material, plan_of
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import audit, backbones, config, registry
from audiocl_bench.backbones.base import Backbone
from audiocl_bench.errors import ConfigError
from audiocl_bench.method import Clips, Context, Session, StreamInfo, require_storable
from audiocl_bench.peft.prompts import existing_blocks
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import execute
from audiocl_bench.training import Group

registry.names()  # makes audiocl_methods importable in a clone that was not installed

import audiocl_methods.dualprompt as dualprompt  # noqa: E402
from audiocl_methods.dualprompt import DualPrompt, DualPromptConfig  # noqa: E402
from audiocl_methods.sprompt import SPromptPP, SPromptPPConfig  # noqa: E402

CLASSES: dict[str, type[DualPrompt]] = {"dualprompt": DualPrompt, "sprompt++": SPromptPP}
both_methods = pytest.mark.parametrize("name", sorted(CLASSES))
both_networks = pytest.mark.parametrize("network_name", NETWORKS)
QUICK: dict[str, Any] = {"e_length": 3, "epochs": 1, "batch_size": 6, "lr": 0.01, "lr_batch": None}
UNIT = {"init_low": -1.0, "init_high": 1.0}
TRAIN, TEST = 12, 4  # clips of every session of the tiny benchmark


def made(name: str = "dualprompt", backbone: Backbone | None = None, *, seed: int = 0, **settings: Any) -> DualPrompt:
    cls = CLASSES[name]
    values = config.build(cls.Config, "tiny", {**QUICK, **settings}, owner=name)
    context = Context(seed, StreamInfo("tiny", len(SESSIONS), 6, first_session_epochs=2))
    return cls(values, network() if backbone is None else backbone, context)


def probe(method: DualPrompt, per_class: int = 4) -> Tensor:
    return clips_of((0, 1, 2, 3, 4, 5), method.backbone, per_class=per_class, seed=99)[0]


def scores(method: DualPrompt, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


def spread(method: DualPrompt) -> DualPrompt:
    """Let the clips of different sessions choose different prompts: keys are mean queries of one clip per class."""
    queries = method.query(clips_of((0, 1, 2, 3, 4, 5), method.backbone, per_class=1, seed=4)[0])
    method.keys = torch.stack([queries[list(classes)].mean(0) for classes in SESSIONS]) - queries.mean(0)
    return method


@contextmanager
def prefixes(method: DualPrompt) -> Iterator[list[dict[int, tuple[Tensor, Tensor]]]]:
    """Collect the prefixes of every prompted pass inside the block (queries have none)."""
    seen: list[dict[int, tuple[Tensor, Tensor]]] = []
    real = method.backbone.run

    def spy(tokens: Tensor, **options: Any) -> Tensor:
        if options.get("prefix"):
            seen.append(dict(options["prefix"]))
        return real(tokens, **options)

    method.backbone.run = spy
    try:
        yield seen
    finally:
        del method.backbone.run


class Seen:
    """What `fit` was given, and the loss of one batch under it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[tuple[Group, ...]] = []
        self.recipes: list[Any] = []
        self.losses: list[Any] = []
        real = dualprompt.fit

        def spy(part: Session, groups: Any, loss: Any, recipe: Any, context: Context, **options: Any) -> list[float]:
            self.groups.append(tuple(groups))
            self.recipes.append(recipe)
            clips, labels = next(part.batches(5))
            start = [p.detach().clone() for p in groups[0].parameters]
            self.losses.append((clips, labels, loss(clips, labels).detach(), start))
            return real(part, groups, loss, recipe, context, **options)

        monkeypatch.setattr(dualprompt, "fit", spy)


# ---------------------------------------------------------------------------------------- oracles of methods.md 2.2


@both_methods
@both_networks
@pytest.mark.parametrize(
    ("leak", "marked"), [({}, False), ({"gather": "published"}, True), ({"selection": "batch"}, True)]
)
def test_a_clips_result_depends_on_its_batch_only_where_asked(
    name: str, network_name: str, leak: dict[str, str], marked: bool
) -> None:
    """Oracle 1 (section 1.4) at batch 1, 2, 8 and 17; both published leaks fail it and are marked."""
    method = spread(learn(made(name, network(network_name), **leak, **UNIT, lr=0.1), 0, 1, 2))
    mel = probe(method)[:17]
    order = torch.randperm(len(mel), generator=torch.Generator().manual_seed(1))
    check = audit.batch_independence(method, mel, batch_sizes=(1, 2, 8), seed_order=order)
    assert check.passed != marked, check.detail
    assert method.leaks_across_batch == marked
    assert audit.repeatability(method, mel).passed


@both_methods
def test_results_stay_independent_at_the_runners_batch_of_64(name: str) -> None:
    method = spread(learn(made(name, **UNIT), 0, 1, 2))
    mel = probe(method, per_class=11)
    order = torch.randperm(len(mel), generator=torch.Generator().manual_seed(1))
    assert audit.batch_independence(method, mel, batch_sizes=(64,), seed_order=order).passed


@both_methods
@both_networks
def test_every_clip_gets_keys_and_values_of_the_prompt_it_chose(name: str, network_name: str) -> None:
    """Oracle 2, with a pool of distinct constants: layer, role and session can be read off every element."""
    method = spread(learn(made(name, network(network_name)), 0, 1, 2))
    mel = probe(method)
    layers, _, sessions = method.experts.shape[:3]
    codes = torch.arange(layers * 2 * sessions, dtype=torch.float32).reshape(layers, 2, sessions)
    method.experts = codes[..., None, None, None].expand(method.experts.shape).clone()
    cosine = F.normalize(method.query(mel), dim=1) @ F.normalize(method.keys, dim=1).T
    chosen = cosine.argmax(1)
    assert len(chosen.unique()) == 3, "otherwise this test tells nothing"
    with prefixes(method) as seen:
        method.encode(Clips(mel))
    (prefix,) = seen
    length = method.config.e_length
    for layer, block in enumerate(method.e_blocks):
        for role, part in enumerate(prefix[block]):
            own = part[:, :, -length:]  # after a G-prompt, where a block has both
            assert own.shape == (
                len(mel),
                method.backbone.num_heads,
                length,
                method.backbone.dim // method.backbone.num_heads,
            )
            assert torch.equal(own, codes[layer, role][chosen][:, None, None, None].expand(own.shape))


@both_methods
@both_networks
def test_prompts_of_length_zero_are_the_plain_network(name: str, network_name: str) -> None:
    """Oracle 3, its second half; the softmax itself is in test_prompts.py."""
    method = learn(made(name, network(network_name), e_length=0, g_length=0), 0, 1)
    mel = probe(method)
    torch.testing.assert_close(method.encode(Clips(mel)), method.query(mel), rtol=0, atol=0)


@both_methods
@both_networks
def test_a_session_leaves_the_prompts_keys_and_rows_of_others_alone(name: str, network_name: str) -> None:
    """Oracle 4 and section 1.5 a to c, to the byte."""
    method = made(name, network(network_name), lr=0.1, epochs=2)
    pretrained = weights(method.backbone)
    for t in range(3):
        general, experts, keys, head = (
            method.general.clone(), method.experts.clone(), method.keys.clone(), method.head.state_dict(),
        )  # fmt: skip
        start = method._slot(t)
        learn(method, t)
        assert method.experts.shape[2] == len(method.keys) == t + 1
        assert bytes_of(method.experts[:, :, :t]) == bytes_of(experts)
        assert bytes_of(method.keys[:t]) == bytes_of(keys)
        assert not torch.equal(method.experts[:, :, t:], start[0])
        assert not torch.equal(method.keys[t:], start[1])
        if name == "dualprompt":
            assert not torch.equal(method.general, general)
        rows = method.head.state_dict()
        assert bytes_of(rows["weight"][: 2 * t]) == bytes_of(head["weight"])
        assert bytes_of(rows["bias"][: 2 * t]) == bytes_of(head["bias"])
    assert weights(method.backbone) == pretrained
    assert not any(parameter.requires_grad for parameter in method.backbone.parameters())


@both_methods
def test_an_e_prompt_starts_as_a_copy_of_the_last_one(name: str) -> None:
    """Oracle 5: nothing is trained (rate 0), so the copy stands alone; keys are drawn anew."""
    method = learn(made(name, lr=0.0), 0, 1, 2)
    assert torch.equal(method.experts[:, :, 1], method.experts[:, :, 0])
    assert torch.equal(method.experts[:, :, 2], method.experts[:, :, 0])
    assert len({bytes_of(key) for key in method.keys}) == 3
    trained = learn(made(name, lr=0.05), 0)
    assert torch.equal(trained._slot(1)[0], trained.experts[:, :, :1])


@both_methods
@both_networks
def test_one_session_is_static_prefix_tuning(name: str, network_name: str) -> None:
    """Oracle 6: with one prompt there is nothing to choose; built by hand, block by block."""
    method = learn(made(name, network(network_name), **UNIT), 0)
    mel, backbone = probe(method), method.backbone
    tokens = backbone.tokens(mel)
    for block in range(backbone.layer):
        parts = [pool[blocks.index(block)] for pool, blocks in _pools(method) if block in blocks]
        prefix = None
        if parts:
            joined = torch.cat(parts, dim=1)  # [2, P, H, d_h]
            prefix = {block: tuple(side.transpose(0, 1)[None].expand(len(mel), -1, -1, -1) for side in joined)}
        tokens = backbone.run(tokens, start=block, stop=block + 1, prefix=prefix)
    torch.testing.assert_close(method.encode(Clips(mel)), backbone.pooled(tokens), rtol=0, atol=1e-5)
    assert not torch.allclose(method.encode(Clips(mel)), method.query(mel), atol=1e-3)


def _pools(method: DualPrompt) -> list[tuple[Tensor, tuple[int, ...]]]:
    return [(method.general, method.g_blocks), (method.experts[:, :, 0], method.e_blocks)]


# -------------------------------------------------------------------------------------------- training and choosing


@both_methods
@both_networks
def test_the_loss_is_local_cross_entropy_minus_the_match_with_the_sessions_own_key(
    name: str, network_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's own prompt is used even where the key of another session is nearer."""
    method = learn(made(name, network(network_name), pull=0.7, **UNIT), 0)
    method.keys = method.session_queries(session(1, method.backbone)).mean(0, keepdim=True)  # a key that would win
    seen = Seen(monkeypatch)
    learn(method, 1)
    clips, labels, loss, start = seen.losses[0]
    *general, expert, key, weight, bias = start
    assert len(general) == (1 if name == "dualprompt" else 0)
    assert expert.shape[2] == 1
    assert weight.shape == (2, method.backbone.dim)
    match = F.cosine_similarity(method.query(clips.mel), key).mean()
    own = torch.zeros(len(clips), 1, dtype=torch.long)
    z = method.prefixed(clips.mel, own, general[0] if general else method.general, expert)
    want = F.cross_entropy(F.linear(z, weight, bias), labels - 2) - 0.7 * match
    assert float(loss) == pytest.approx(float(want.detach()), abs=1e-5)


def test_the_match_pulls_the_key_towards_the_sessions_queries() -> None:
    method = made(lr=0.01, epochs=10, **UNIT)
    queries = method.session_queries(session(0, method.backbone))
    before = F.cosine_similarity(queries, method._slot(0)[1]).mean()
    learn(method, 0)
    after = F.cosine_similarity(queries, method.keys).mean()
    assert float(after) > float(before) + 0.1
    assert method.context.report.notes["own_key_share"] == 1.0


def test_only_keys_of_sessions_so_far_can_be_chosen() -> None:
    method = learn(made(), 0, 1)
    with prefixes(method) as seen:
        method.encode(Clips(probe(method)))
    assert method.keys.shape[0] == 2
    values = seen[0][method.e_blocks[0]][1]
    options = method.experts[0, 1].transpose(1, 2)  # [M, H, L_e, d_h]
    assert all(any(torch.equal(value, option) for option in options) for value in values)


def test_batch_selection_takes_the_majority_for_all() -> None:
    method = spread(learn(made(selection="batch"), 0, 1, 2))
    mel = probe(method)
    counts = torch.bincount((F.normalize(method.query(mel), dim=1) @ F.normalize(method.keys, dim=1).T).argmax(1))
    with prefixes(method) as seen:
        method.encode(Clips(mel))
    keys = seen[0][method.e_blocks[0]][0]
    winner = method.experts[0, 0, int(counts.argmax())].transpose(0, 1)
    assert torch.equal(keys, winner.expand_as(keys))


@both_methods
def test_the_published_gather_gives_clips_the_prefixes_of_others(name: str) -> None:
    """Row 0 gets the keys of clips 0 and 1, as its keys and as its values; the second half gets values only."""
    method = spread(learn(made(name, gather="published", **UNIT), 0, 1, 2))
    mel = probe(method)[:8]
    chosen = (F.normalize(method.query(mel), dim=1) @ F.normalize(method.keys, dim=1).T).argmax(1)
    with prefixes(method) as seen:
        method.encode(Clips(mel))
    block = method.e_blocks[-1]
    keys, values = (part[:, :, -3:] for part in seen[0][block])
    pool = method.experts[-1].transpose(2, 3)  # [2, M, H, L_e, d_h]
    for b in range(8):
        role, first = (0, 2 * b) if b < 4 else (1, 2 * (b - 4))
        assert torch.equal(keys[b], pool[role, chosen[first]])
        assert torch.equal(values[b], pool[role, chosen[first + 1]])
    with prefixes(method) as trained:
        learn(method, 0)
    keys, values = (part[:, :, -3:] for part in trained[0][block])
    assert torch.equal(keys[0], values[0]), "the bug is in training too"


# --------------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ("wanted", "found"),
    [((0, 1), (0, 1)), ((2, 3, 4), (2,)), ((0, 1, 2, 3, 4), (0, 1, 2)), ((7, 8), (2,)), ((), ()), ((1, 0, 1), (0, 1))],
)
def test_blocks_are_cut_to_those_that_exist(wanted: tuple[int, ...], found: tuple[int, ...]) -> None:
    assert existing_blocks(wanted, network("eat-tiny")) == found  # three blocks


def test_blocks_that_do_not_feed_the_head_count_as_missing() -> None:
    backbone = backbones.load("eat-tiny", frames=64, layer=2)
    assert existing_blocks((2, 3, 4), backbone) == (1,)
    method = learn(made(backbone=backbone), 0)
    assert (method.g_blocks, method.e_blocks) == ((0, 1), (1,))
    assert method.context.report.notes["e_blocks"] == (1,)


def test_a_block_with_both_prompts_gets_the_shared_one_first() -> None:
    method = learn(made("dualprompt", network("whisper-tiny-random"), g_length=2, **UNIT), 0)  # two blocks
    assert (method.g_blocks, method.e_blocks) == ((0, 1), (1,))
    with prefixes(method) as seen:
        method.encode(Clips(probe(method)[:3]))
    assert seen[0][0][0].shape[2] == 2
    for role, part in enumerate(seen[0][1]):
        assert part.shape[:3] == (3, method.backbone.num_heads, 5)
        assert torch.equal(part[2, :, :2], method.general[1, role].transpose(0, 1))
        assert torch.equal(part[2, :, 2:], method.experts[0, role, 0].transpose(0, 1))


def test_e_prompts_need_a_block() -> None:
    with pytest.raises(ConfigError, match="'e_blocks' is empty, but E-prompts need at least one block"):
        made(e_blocks="")


def test_s_prompt_has_nothing_shared() -> None:
    method = learn(made("sprompt++"), 0)
    assert method.g_blocks == ()
    assert method.e_blocks == (0, 1, 2)
    assert method.general.numel() == 0
    same = learn(made("dualprompt", g_blocks="", e_blocks=(0, 1, 2, 3, 4), **UNIT), 0)
    assert bytes_of(same.state_dict()) == bytes_of(method.state_dict())


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("name", "preset", "values", "lr", "clip"),
    [
        ("dualprompt", "jax", (5, 5, 1.0, 0.0, 0.01, 5, 24), 0.0028125, 1.0),
        ("dualprompt", "pytorch", (5, 5, 1.0, -1.0, 1.0, 5, 24), 0.0028125, 1.0),
        ("dualprompt", "pytorch-imagenet-r", (5, 20, 1.0, -1.0, 1.0, 50, 24), 0.005 * 24 / 256, 1.0),
        ("dualprompt", "pilot", (5, 5, 0.1, -1.0, 1.0, 5, 24), 0.001, None),
        ("sprompt++", "hide", (5, 20, 1.0, -1.0, 1.0, 5, 24), 0.0028125, 1.0),
    ],
)
def test_presets_are_the_published_recipes(
    name: str, preset: str, values: tuple[Any, ...], lr: float, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = config.build(CLASSES[name].Config, "esc50", {"preset": preset}, owner=name)
    names = ("g_length", "e_length", "pull", "init_low", "init_high", "epochs", "batch_size")
    assert tuple(getattr(built, key) for key in names) == values
    assert (built.selection, built.gather) == ("instance", "correct")
    blocks = ((0, 1), (2, 3, 4)) if name == "dualprompt" else ((), (0, 1, 2, 3, 4))
    assert (built.g_blocks, built.e_blocks) == blocks
    seen = Seen(monkeypatch)
    method = CLASSES[name](dataclasses.replace(built, epochs=1), network(), Context(0, StreamInfo("tiny", 3, 6, 2)))
    assert not method.leaks_across_batch
    learn(method, 0)
    (group,) = seen.groups[0]
    assert group.lr == pytest.approx(lr)
    recipe = seen.recipes[0]
    assert (recipe.optimiser, recipe.schedule, recipe.weight_decay, recipe.clip) == ("adam", "constant", 0.0, clip)


def test_the_defaults_are_those_of_the_default_presets() -> None:
    assert config.build(DualPromptConfig, "esc50", {}, owner="dualprompt") == DualPromptConfig()
    assert config.build(SPromptPPConfig, "esc50", {}, owner="sprompt++") == SPromptPPConfig()


def test_epochs_none_means_the_benchmarks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    learn(made(epochs=None), 0)
    assert seen.recipes[0].epochs == 2


def test_the_declared_parameters_are_all_that_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(monkeypatch)
    learn(made(), 0, 1)
    for (group,) in seen.groups:
        assert [tuple(p.shape) for p in group.parameters] == [
            (2, 2, 5, 4, 24),  # G in blocks 0 and 1
            (1, 2, 1, 3, 4, 24),  # this session's E in block 2
            (1, 96),
            (2, 96),
            (2,),
        ]
        assert all(isinstance(p, nn.Parameter) for p in group.parameters)


# ------------------------------------------------------------------------------------------------------- whole streams


@both_methods
@both_networks
def test_the_state_is_complete_and_resume_is_exact(name: str, network_name: str) -> None:
    unbroken, broken = (made(name, network(network_name)) for _ in range(2))
    mel = probe(unbroken)
    for t in range(3):
        learn(unbroken, t)
        learn(broken, t)
        state = broken.state_dict()
        require_storable(state, owner=name)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        for tensor in (state["general"], state["experts"], state["keys"], state["head"]["weight"]):
            tensor.fill_(math.nan)  # what was handed out is a copy
        broken = made(name, network(network_name))
        broken.load_state_dict(torch.load(buffer, weights_only=True))
        assert bytes_of(broken.state_dict()) == bytes_of(unbroken.state_dict())
        assert torch.equal(scores(broken, mel), scores(unbroken, mel))
        assert scores(broken, mel).shape == (len(mel), 2 * (t + 1))
        assert (broken.num_seen, broken.encoder_version) == (2 * (t + 1), t + 1)


@both_methods
def test_equal_seeds_give_equal_bytes(name: str) -> None:
    def outcome(seed: int, noise: int) -> Any:
        torch.manual_seed(noise)
        return bytes_of(learn(made(name, seed=seed), 0, 1).state_dict())

    assert outcome(0, 1) == outcome(0, 2)
    assert outcome(0, 1) != outcome(1, 1)


@both_methods
@both_networks
def test_sessions_of_any_size_are_learned(name: str, network_name: str) -> None:
    """Three classes, then one, then two with a single clip each."""
    method = made(name, network(network_name), epochs=2)
    known = 0
    for t, (classes, per_class) in enumerate([((0, 1, 2), 3), ((3,), 4), ((4, 5), 1)]):
        mel, labels = clips_of(classes, method.backbone, per_class=per_class)
        method.learn(Session(t, classes, known, labels, reader(mel), CPU))
        known += len(classes)
        assert scores(method, probe(method)).shape == (24, known)
        assert bool(scores(method, probe(method)).isfinite().all())


@both_methods
def test_it_learns_and_says_how_well(name: str) -> None:
    method, short = learn(made(name, epochs=12), 0), learn(made(name, epochs=1), 0)
    notes = method.context.report.notes
    assert notes["train_loss"] < short.context.report.notes["train_loss"] - 0.2
    assert notes["train_accuracy"] > 0.9
    mel, labels = clips_of((0, 1), method.backbone, per_class=12, seed=5)
    assert float((scores(method, mel).argmax(1).numpy() == labels).mean()) > 0.9


@both_methods
@both_networks
def test_a_run_takes_queries_once_and_prompted_passes_per_epoch_and_session(
    name: str, network_name: str, tiny_benchmark: Any, tiny_home: Any, tmp_path: Any
) -> None:
    """Training: 1 + epochs passes a clip. Test: one query a clip and run, one prompted pass a clip and session."""
    material = open_material(tiny_benchmark, tiny_home, network_name)
    results = ResultsDir(tmp_path / "results")
    plan = plan_of(CLASSES[name], **{**dataclasses.asdict(CLASSES[name].Config()), **QUICK, "epochs": 3})
    identity, status = execute(plan, material, results)
    assert status == "done"
    row, sessions = results.run(identity), results.sessions(identity)
    assert row["audit_passed"], row["audit"]
    assert sessions["train_passes"].tolist() == [TRAIN * (1 + 3)] * 3
    assert sessions["eval_passes"].tolist() == [TEST + TEST * (t + 1) for t in range(3)]
    needed = [(TRAIN * 4 + TEST * (t + 2)) * material.backbone.depth for t in range(3)]
    assert sessions["blocks_needed"].tolist() == needed
    assert sessions["block_runs"].sum() == sum(needed), "f_0 of later sessions is computed with that of the first"
    notes = [json.loads(text) for text in sessions["diagnostics"]]
    names = {"train_loss", "train_accuracy", "own_key_share", "g_blocks", "e_blocks"}
    assert all(set(note) == names for note in notes)
    assert results.recompute(identity) == {}


@pytest.mark.parametrize("leak", [{"gather": "published"}, {"selection": "batch"}])
def test_a_leaky_run_is_marked(leak: dict[str, str], tiny_material: Any, tmp_path: Any) -> None:
    results = ResultsDir(tmp_path / "results")
    identity, _ = execute(plan_of(DualPrompt, **QUICK, **leak), tiny_material, results)
    assert not results.run(identity)["audit_passed"]
