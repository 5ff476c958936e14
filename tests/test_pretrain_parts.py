"""Masks, batches, the network's pass and the losses of pre-training, against closed forms and naive computations."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretraining import FLOOR, MemoryPack, Packed, tiny
from torch.nn import functional as F

from audiocl_bench.audio import AUDIOSET_MEAN, AUDIOSET_STD
from audiocl_bench.backbones import eat
from audiocl_bench.errors import AudioclError, ConfigError, CorpusError, UnknownNameError
from audiocl_bench.pretrain import masks, network, objectives, recipe
from audiocl_bench.pretrain.batches import Loader, Plan, fingerprint

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def still(**objective: object) -> dict[str, object]:
    """Settings of an objective without augmentation."""
    return {"gain_db": 0.0, "crop": 0.0, "time_mask": 0.0, "freq_mask": 0.0} | objective


# -------------------------------------------------------------------------------------------------------------- recipes


def written(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_recipe_fits_its_budget() -> None:
    model = recipe.read(RECIPES / "eat-mini.toml").model
    shapes = eat.published_shapes(model.network)
    numbers = sum(math.prod(size or 64 * 8 for size in shape) for shape in shapes.values())
    assert numbers <= 6_000_000
    assert 2 * numbers + 20_000 <= 8_000_000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[modle]\ndim = 8\n", r"r\.toml.*modle.*did you mean model"),
        ("[model]\ndmi = 8\n", r"r\.toml.*\[model\].*dmi.*did you mean dim"),
        ("[model]\ndim = 'wide'\n", r"r\.toml.*\[model\].*dim.*whole number"),
        ("[model]\ndim = 30\nheads = 7\n", r"r\.toml.*\[model\].*30.*7"),
        ("[objective]\neat_share = 0.2\ndistil_share = 0.2\n", r"\[objective\].*at least 1"),
        ("[objective]\nstudent_layers = [1]\n", r"\[objective\].*equally long"),
        ("[objective]\nstudent_layers = [1, 2, 9]\n", r"block 9"),
        ("[run]\nbuckets = [100]\n", r"\[run\].*multiples of 16"),
        ("[run]\nprecision = 'float8'\n", r"\[run\].*precision.*bfloat16"),
        ("dim = 8\n", r"'dim' stands outside"),
        ("[model\n", r"not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=told) as caught:
        recipe.read(written(tmp_path, text))
    assert isinstance(caught.value, AudioclError)


def test_steps_and_precision_can_be_replaced(tmp_path: Path) -> None:
    path = written(tmp_path, "[run]\nsteps = 7\n[audio]\nhours = 2\n")
    assert recipe.read(path).run.steps == 7
    read = recipe.read(path, steps=9, precision="bfloat16")
    assert (read.run.steps, read.run.precision, dict(read.audio)) == (9, "bfloat16", {"hours": 2})


@given(st.integers(0, 20), st.integers(0, 20))
def test_shares_of_steps_are_met(eat_twentieths: int, more: int) -> None:
    eat_share = eat_twentieths / 20
    distil_share = min(1.0, 1 - eat_share + more / 20)
    objective = recipe.ObjectiveConfig(eat_share=eat_share, distil_share=distil_share)
    kinds = [recipe.takes(objective, step) for step in range(400)]
    assert all(eat or distil for eat, distil in kinds)
    assert sum(eat for eat, _ in kinds) == pytest.approx(400 * eat_share, abs=1)
    assert sum(distil for _, distil in kinds) == pytest.approx(400 * distil_share, abs=1)
    assert any(eat for eat, _ in kinds[:21]) == (eat_share > 0)  # spread, not at the end


def test_learning_rate_and_decay_follow_their_closed_forms() -> None:
    optimiser = recipe.OptimiserConfig(lr=2.0e-3, lr_end=0.1, warmup=0.1)
    assert recipe.rate(optimiser, 0, 101) == pytest.approx(2e-4)
    assert recipe.rate(optimiser, 9, 101) == pytest.approx(2e-3)
    assert recipe.rate(optimiser, 10, 101) == pytest.approx(2e-3)
    assert recipe.rate(optimiser, 55, 101) == pytest.approx(2e-3 * 0.55)
    assert recipe.rate(optimiser, 100, 101) == pytest.approx(2e-4)
    objective = recipe.ObjectiveConfig(ema_decay=0.9, ema_end_decay=0.99, ema_anneal=0.5)
    assert [recipe.ema_decay(objective, step, 100) for step in (0, 25, 50, 99)] == pytest.approx(
        [0.9, 0.945, 0.99, 0.99]
    )


# ---------------------------------------------------------------------------------------------------------------- masks


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.9]))
def test_inverse_blocks_keep_the_exact_share_in_blocks(times: list[int], seed: int, ratio: float) -> None:
    real = np.array(times)
    grid = int(real.max()) + 2
    visible = masks.inverse_blocks(real, grid, ratio=ratio, block=5, draws=draws(seed))
    for row, time in zip(visible, times, strict=True):
        wanted = max(1, math.floor((1 - ratio) * 8 * time + 0.5))
        assert row.sum() == wanted
        assert not row[time:].any()
        side = min(5, time, 8, math.isqrt(wanted))
        windows = np.lib.stride_tricks.sliding_window_view(row, (side, side)).all(axis=(2, 3))
        covered = np.zeros_like(row)
        for first_time, first_mel in np.argwhere(windows):
            covered[first_time : first_time + side, first_mel : first_mel + side] = True
        assert windows.any()  # the first block is whole
        assert (row & ~covered).sum() < side * side  # and all others but the last


def test_clones_of_a_clip_get_masks_of_their_own() -> None:
    visible = masks.inverse_blocks(np.full(64, 32), 32, ratio=0.8, block=5, draws=draws())
    assert len({row.tobytes() for row in visible}) == 64
    again = masks.inverse_blocks(np.full(64, 32), 32, ratio=0.8, block=5, draws=draws())
    assert (visible == again).all()
    # Where blocks may lie, they do: over many masks no cell of the grid is always hidden.
    assert visible.any(axis=0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0.0, 0.9), st.integers(0, 1000))
def test_hidden_patches_of_a_student(times: list[int], hide: float, seed: int) -> None:
    real = np.arange(9 * 8)[None, :] < 8 * np.array(times)[:, None]
    seen = draws(seed).random(len(times)) < 0.5
    visible = masks.hidden(real, seen, hide=hide, draws=draws(seed))
    for row, valid, sees in zip(visible, real, seen, strict=True):
        assert row[valid].sum() == max(1, math.floor((1 - hide) * valid.sum() + 0.5))
        assert sees or not row[~valid].any()
        if sees:
            assert row.sum() == pytest.approx((1 - hide) * 72, abs=1.01)


def test_lists_name_exactly_the_visible_patches() -> None:
    visible = draws().random((5, 12)) < np.array([0.1, 0.5, 0.9, 0.0, 1.0])[:, None]
    for width in (None, 12):
        listed = masks.listed(visible, width=width)
        assert listed.slots is not None
        for row, index, slots in zip(visible, listed.index, listed.slots, strict=True):
            assert index[slots].tolist() == np.flatnonzero(row).tolist()
    assert masks.listed(visible[4:]).slots is None


# -------------------------------------------------------------------------------------------------------------- network


def student(seed: int = 0) -> eat.EAT:
    return network.new_student(tiny().model, seed)


def varied(module: torch.nn.Module, seed: int = 1) -> None:
    """Move every parameter by a random amount, so that no norm or bias is neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_the_pass_over_all_patches_is_the_backbones_own() -> None:
    model = student()
    varied(model)
    x = torch.randn(3, 64, 128, generator=torch.Generator().manual_seed(0))
    outputs: list[torch.Tensor] = []
    model.run(model.tokens(x), outputs=outputs)
    made = network.passed(model, network.embed(model, x), None)
    for ours, own in zip(made.outputs, outputs, strict=True):
        torch.testing.assert_close(ours, own, atol=2e-6, rtol=2e-5)
    block, entering = model.blocks[1], outputs[0]
    middle = block.norm1(entering + block.attn(entering))
    torch.testing.assert_close(made.results[1], block.mlp(middle), atol=2e-6, rtol=2e-5)


def test_a_student_of_visible_patches_is_the_full_one_that_may_attend_to_no_other() -> None:
    model = student()
    varied(model)
    x = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    seen = draws(3).random((4, 32)) < np.array([0.3, 0.6, 0.2, 0.5])[:, None]  # 2 clones of 2 clips
    listed = masks.listed(seen)
    ours = network.passed(model, network.pick(network.embed(model, x), listed), listed.slots).outputs[-1]

    for row in range(4):
        allowed = torch.cat([torch.tensor([True]), torch.from_numpy(seen[row])])
        tokens = model.tokens(x[row // 2][None])
        for block in model.blocks:
            attention, heads = block.attn, []
            query, key, value = (part(tokens)[0] for part in (attention.q_proj, attention.k_proj, attention.v_proj))
            for head in range(2):
                part = slice(8 * head, 8 * head + 8)
                scores = query[:, part] @ key[:, part].T / math.sqrt(8)
                heads.append(scores.masked_fill(~allowed, -math.inf).softmax(dim=1) @ value[:, part])
            tokens = block.mix(tokens, attention.out_proj(torch.cat(heads, dim=1))[None])
        wanted = tokens[0, allowed]
        torch.testing.assert_close(ours[row, : len(wanted)], wanted, atol=5e-6, rtol=1e-4)


def test_new_weights_depend_on_the_seed_alone() -> None:
    one, two, other = student(3).state_dict(), student(3).state_dict(), student(4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["cls_token"], other["cls_token"])
    assert torch.equal(one["blocks.0.norm1.weight"], torch.ones(16))
    assert one["blocks.0.mlp.fc1.weight"].std().item() == pytest.approx(0.02, rel=0.1)


def test_moving_average_follows_its_closed_form() -> None:
    start, fixed = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 5.0])
    average = start.clone()
    for _ in range(7):
        network.follow([average], [fixed], 0.9)
    torch.testing.assert_close(average, fixed + 0.9**7 * (start - fixed))


def test_only_matrices_decay() -> None:
    learner = network.Learner(tiny().model, tiny().objective, seed=0, teacher_dim=12)
    decayed, plain = learner.groups(0.05)
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[1] for p in decayed["params"]} == {"weight"}  # type: ignore[attr-defined]
    spared = {names[id(p)] for p in plain["params"]}  # type: ignore[attr-defined]
    assert {"student.cls_token", "student.pre_norm.weight", "student.blocks.0.attn.q_proj.bias"} <= spared
    assert len(names) == len(decayed["params"]) + len(plain["params"])  # type: ignore[arg-type]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


# --------------------------------------------------------------------------------------------------------------- losses


def test_eat_targets_are_torchs_norms_and_ignore_padding() -> None:
    results = [torch.randn(2, 24, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    real = torch.ones(2, 24, dtype=torch.bool)
    real[1, 16:] = False
    targets, class_targets = objectives.eat_targets(results, real)
    for clip, count in enumerate((24, 16)):
        cut = [result[clip, :count] for result in results]
        normed = [F.instance_norm(part.T[None], eps=1e-5)[0].T for part in cut]
        wanted = F.layer_norm(torch.stack(normed).mean(dim=0), (6,), eps=1e-5)
        torch.testing.assert_close(targets[clip, :count], wanted, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(class_targets[clip], wanted.mean(dim=0), atol=1e-5, rtol=1e-4)


def learner_and_teacher() -> tuple[network.Learner, eat.EAT, recipe.ObjectiveConfig]:
    asked = tiny(objective={"eat_share": 1.0, "distil_share": 1.0, "eat_class_weight": 0.5, "cosine_weight": 2.0})
    objective = replace(asked.objective, layer_weights=(1.0, 0.5, 2.5), distil_class_weight=3.0)
    learner = network.Learner(asked.model, objective, seed=0, teacher_dim=12)
    varied(learner)
    teacher = student(9)
    varied(teacher, 2)
    return learner, teacher, objective


def eat_loss_of_one(
    learner: network.Learner,
    teacher: eat.EAT,
    x: torch.Tensor,
    clones: list[np.ndarray],
    noise: torch.Tensor,
    objective: recipe.ObjectiveConfig,
) -> float:
    """EAT's loss of one unpadded clip [T, 128], written out: one clone after the other, one layer after the other."""
    assert learner.decoder is not None
    tokens, results = teacher.tokens(x[None]), []
    for block in teacher.blocks:
        middle = block.norm1(tokens + block.attn(tokens))
        results.append(block.mlp(middle)[0, 1:])
        tokens = block.mix(tokens, block.attn(tokens))
    normed = [F.instance_norm(result.T[None], eps=1e-5)[0].T for result in results]
    targets = F.layer_norm(torch.stack(normed).mean(dim=0), (16,), eps=1e-5)
    losses = []
    for seen, fill in zip(clones, noise, strict=True):
        kept = torch.from_numpy(np.flatnonzero(seen))
        tokens = learner.student.tokens(x[None])[:, torch.cat([torch.tensor([0]), kept + 1])]
        output = learner.student.run(tokens)[0]
        grid = fill.clone()
        grid[kept] = learner.decoder.entry(output[1:])
        image = grid.T.reshape(1, 16, -1, 8)
        for layer in learner.decoder.layers:
            step = F.layer_norm(layer(image).permute(0, 2, 3, 1), (16,), eps=1e-5).permute(0, 3, 1, 2)
            image = image + F.gelu(step)
        decoded = learner.decoder.proj(image.reshape(16, -1).T)
        hidden = torch.from_numpy(~seen)
        frame = (decoded - targets)[hidden].square().mean()
        utterance = (output[0] - targets.mean(dim=0)).square().mean()
        losses.append(float(objective.eat_frame_weight * frame + objective.eat_class_weight * utterance))
    return float(np.mean(losses))


def test_eat_loss_is_the_written_out_one_and_padding_changes_nothing() -> None:
    learner, teacher, objective = learner_and_teacher()
    x = torch.randn(2, 112, 128, generator=torch.Generator().manual_seed(5))
    x[1, 48:] = 0.4671  # the second clip has 3 time patches, the first 7
    times = np.array([7, 7, 7, 3, 3, 3])
    visible = masks.inverse_blocks(times, 7, ratio=0.8, block=5, draws=draws()).reshape(6, -1)
    noise = 0.01 * torch.randn(6, 56, 16, generator=torch.Generator().manual_seed(6))
    real = torch.from_numpy(np.arange(56)[None, :] < np.array([[56], [24]]))
    with torch.no_grad():
        loss, _ = objectives.eat_loss(learner, teacher, x, real, masks.listed(visible), noise, objective)
        wide = masks.listed(visible, width=20)
        same, _ = objectives.eat_loss(learner, teacher, x, real, wide, noise, objective)
        alone = [
            eat_loss_of_one(learner, teacher, x[0], list(visible[:3]), noise[:3], objective),
            eat_loss_of_one(learner, teacher, x[1, :48], list(visible[3:, :24]), noise[3:, :24], objective),
        ]
    assert float(loss) == pytest.approx(np.mean(alone), rel=1e-5)
    assert float(same) == pytest.approx(float(loss), rel=1e-6)


def distil_loss_of_one(
    learner: network.Learner,
    x: torch.Tensor,
    seen: np.ndarray,
    targets: torch.Tensor,
    objective: recipe.ObjectiveConfig,
) -> float:
    """Distillation's loss of one unpadded clip [T, 128], written out patch by patch."""
    assert learner.distiller is not None
    kept = np.flatnonzero(seen)
    outputs: list[torch.Tensor] = []
    tokens = learner.student.tokens(x[None])[:, torch.from_numpy(np.concatenate([[0], kept + 1]))]
    learner.student.run(tokens, outputs=outputs)
    weights = np.array(objective.layer_weights) / sum(objective.layer_weights)
    statistics = learner.distiller.class_statistics(outputs[-1][:, 0])[0]
    total = 0.0
    for pair, layer in enumerate(objective.student_layers):
        errors = []
        for patch in range(len(targets)):
            mine = np.flatnonzero(kept // 8 == patch)
            if len(mine):
                feature = outputs[layer - 1][0, 1 + mine].mean(dim=0)
                predicted, wanted = learner.distiller.frames[pair](feature), targets[patch, pair]
                angle = 1 - float(F.cosine_similarity(predicted, wanted, dim=0))
                errors.append(float(F.smooth_l1_loss(predicted, wanted)) + objective.cosine_weight * angle)
        told = torch.stack([targets[:, pair].mean(dim=0), targets[:, pair].std(dim=0, correction=0)])
        clip = float(F.smooth_l1_loss(statistics[pair], told))
        frame = objective.distil_frame_weight * np.mean(errors)
        total += weights[pair] * (frame + objective.distil_class_weight * clip)
    return float(total)


@pytest.mark.parametrize("hide", [0.0, 0.6])
def test_distillation_is_the_written_out_one_and_padding_changes_nothing(hide: float) -> None:
    learner, _, objective = learner_and_teacher()
    x = torch.randn(2, 112, 128, generator=torch.Generator().manual_seed(5))
    x[1, 48:] = 0.4671
    targets = torch.randn(2, 7, 3, 12, generator=torch.Generator().manual_seed(6))
    valid = torch.arange(7)[None, :] < torch.tensor([[7], [3]])
    real = valid.repeat_interleave(8, dim=1)
    seen = masks.hidden(real.numpy(), np.zeros(2, dtype=bool), hide=hide, draws=draws())
    listed = masks.listed(seen) if hide else None
    with torch.no_grad():
        loss, _ = objectives.distil_loss(learner, x, listed, None if hide else real, targets, valid, objective)
        alone = [
            distil_loss_of_one(learner, x[0], seen[0], targets[0], objective),
            distil_loss_of_one(learner, x[1, :48], seen[1, :24], targets[1, :3], objective),
        ]
    assert float(loss) == pytest.approx(np.mean(alone), rel=1e-4)


def test_perfect_predictions_cost_nothing() -> None:
    learner, _, objective = learner_and_teacher()
    x = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(5))
    assert learner.distiller is not None
    with torch.no_grad():
        for head in learner.distiller.frames:
            head.weight.zero_()  # every patch says the bias
        targets = torch.stack([head.bias for head in learner.distiller.frames])[None, None].expand(1, 4, 3, 12)
        learner.distiller.clip.weight.zero_()
        told = objectives.over_time(targets, torch.ones(1, 4, dtype=torch.bool))
        learner.distiller.clip.bias.copy_(told.flatten())
        loss, _ = objectives.distil_loss(learner, x, None, None, targets, torch.ones(1, 4, dtype=torch.bool), objective)
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


# -------------------------------------------------------------------------------------------------------------- batches


class Numbered(MemoryPack):
    """Clips whose cells tell their row, and whose targets tell their patch."""

    def __init__(self, frames: tuple[int, ...]) -> None:
        super().__init__(frames)
        self.mels = [np.repeat(np.arange(length, dtype=np.float32)[:, None] / 100, 128, axis=1) for length in frames]
        self.told = [
            np.broadcast_to(np.arange(-(-length // 16), dtype=np.float32)[:, None, None], (-(-length // 16), 3, 12))
            for length in frames
        ]
        self._teacher |= {"mean": np.zeros((3, 12)), "std": np.ones((3, 12))}


def test_every_clip_comes_at_most_once_an_epoch_and_only_remainders_wait() -> None:
    frames = draws().integers(20, 600, size=203)
    run = recipe.RunConfig(buckets=(112, 208, 512), tokens=900)
    plan = Plan(frames, run)
    met: list[int] = []
    for step in range(plan.batches):
        chosen = plan[step]
        fitting = [size for size in run.buckets if (frames[chosen.rows] <= size).all()]
        assert chosen.frames == (fitting[0] if fitting else 512)
        assert len(chosen.rows) * chosen.frames // 16 * 8 <= 900
        met.extend(chosen.rows)
    assert len(met) == len(set(met))
    assert 203 - len(met) <= sum(size - 1 for size in plan.sizes)
    assert {len(plan[step].rows) for step in range(plan.batches)} <= set(plan.sizes)


def test_a_steps_clips_do_not_depend_on_the_steps_before() -> None:
    frames = np.full(50, 98)
    run = recipe.RunConfig(tokens=400, seed=5)
    in_order, jumping = Plan(frames, run), Plan(frames, run)
    wanted = {step: in_order[step].rows.tolist() for step in range(40)}
    for step in (39, 0, 17, 16, 15, 31):
        assert jumping[step].rows.tolist() == wanted[step]
    assert wanted[0] != wanted[in_order.batches]  # another epoch, another order
    assert wanted[0] != Plan(frames, replace(run, seed=6))[0].rows.tolist()


def test_an_empty_pack_is_refused() -> None:
    with pytest.raises(CorpusError, match="empty"):
        Plan(np.zeros(0, dtype=np.int64), recipe.RunConfig())


def test_without_augmentation_a_batch_is_what_a_backbone_sees() -> None:
    pack = MemoryPack((98, 60))
    asked = tiny(objective=still(eat_share=0.0, distil_share=1.0), buckets=(112,), tokens=112)
    part = Loader(asked, pack).batch(0).distil
    assert part is not None
    rows = Loader(asked, pack).plan[0].rows
    for x, row in zip(part.x, rows, strict=True):
        mel = torch.from_numpy(pack.mels[row])
        torch.testing.assert_close(x[: len(mel)], (mel - AUDIOSET_MEAN) / (2 * AUDIOSET_STD), atol=1e-6, rtol=1e-6)
        assert torch.allclose(x[len(mel) :], torch.tensor(0.4671), atol=1e-4)
    assert part.keys is None  # padding is seen, as it is later
    hidden = replace(asked, objective=replace(asked.objective, padding_seen=0.0))
    part = Loader(hidden, pack).batch(0).distil
    assert part is not None
    assert part.keys is not None
    assert part.keys.sum(dim=1).tolist() == [8 * -(-len(pack.mels[row]) // 16) for row in rows]


def test_crops_move_sound_and_targets_together() -> None:
    pack = Numbered((98, 300, 140, 60))
    asked = tiny(objective=still(eat_share=0.0, distil_share=1.0, crop=0.6), buckets=(112, 160), tokens=160)
    loader, starts, lengths = Loader(asked, pack), set(), set()
    for step in range(60):
        part = loader.batch(step).distil
        assert part is not None
        assert part.targets is not None
        mel = part.x * 2 * AUDIOSET_STD + AUDIOSET_MEAN
        for x, valid, targets in zip(mel, part.valid, part.targets, strict=True):
            first = round(float(x[0, 0]) * 100)
            count = int(valid.sum())
            assert first % 16 == 0
            assert targets[:count, 0, 0].tolist() == [first // 16 + patch for patch in range(count)]
            in_last = round(float(x[16 * (count - 1), 0]) * 100)
            assert in_last == first + 16 * (count - 1)
            if 16 * count < len(x):
                assert torch.allclose(x[16 * count :], torch.tensor(0.0), atol=1e-4)  # padding, in the raw domain
            starts.add(first)
            lengths.add(count)
    assert len(starts) > 5
    assert len(lengths) > 3


def test_gain_lifts_sound_and_not_silence() -> None:
    pack = MemoryPack((98,))
    plain = tiny(objective=still(eat_share=0.0, distil_share=1.0))
    loud = replace(plain, objective=replace(plain.objective, gain_db=12.0))
    one, two = Loader(plain, pack).batch(3).distil, Loader(loud, pack).batch(3).distil
    assert one is not None
    assert two is not None
    moved = (two.x - one.x)[0, :98] * 2 * AUDIOSET_STD
    assert torch.equal(moved[:, 3], torch.zeros(98))  # a bin at the floor stays there
    others = torch.cat([moved[:, :3], moved[:, 4:]], dim=1)
    assert float(others.std()) < 1e-4
    assert 0.05 < abs(float(others.mean())) <= 12 * math.log(10) / 10
    assert float((two.x * 2 * AUDIOSET_STD + AUDIOSET_MEAN)[0, :98].min()) >= FLOOR - 1e-3


def test_batches_made_ahead_are_the_same() -> None:
    loader = Loader(tiny(objective={"hide": 0.4}), MemoryPack())
    with loader.ahead(2, 11, workers=3) as coming:
        ahead = list(coming)
    assert [batch.step for batch in ahead] == list(range(2, 11))
    for batch in ahead:
        again = Loader(tiny(objective={"hide": 0.4}), MemoryPack()).batch(batch.step)
        for made, wanted in ((batch.eat, again.eat), (batch.distil, again.distil)):
            assert (made is None) == (wanted is None)
            if made is not None and wanted is not None:
                assert torch.equal(made.x, wanted.x)
                assert made.visible is None or torch.equal(made.visible.index, wanted.visible.index)  # type: ignore[union-attr]


def test_missing_teachers_and_layers_are_told() -> None:
    pack = MemoryPack()
    with pytest.raises(ConfigError, match=r"layer 3.*holds layers 0, 1, 4 of made"):
        Loader(tiny(objective={"teacher_layers": (0, 3, 4)}), pack)
    pack._teacher = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="needs a teacher"):
        Loader(tiny(), pack)
    Loader(tiny(objective={"eat_share": 1.0, "distil_share": 0.0}), pack).batch(0)


def test_the_fingerprint_tells_packs_apart() -> None:
    assert fingerprint(MemoryPack()) == fingerprint(MemoryPack())
    assert fingerprint(MemoryPack()) != fingerprint(MemoryPack((98, 60)))
    assert isinstance(MemoryPack((98,)).batch(np.array([0]), 112), Packed)
