"""PACE against the paper: its equations by brute force, its stopping and freezing rules by their published outcome."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import (
    CPU,
    NETWORKS,
    SESSIONS,
    build,
    bytes_of,
    clips_of,
    learn,
    module,
    network,
    session,
    weights,
)
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import config as settings_of
from audiocl_bench import registry
from audiocl_bench.errors import ConfigError
from audiocl_bench.heads import RidgeHead, choose_lambda
from audiocl_bench.method import Clips, Session
from audiocl_bench.peft.subspace import attention_covariances, leading_subspace

PACE = Any  # the class is loaded by name, as a run does
FIG6 = Path(__file__).resolve().parent.parent / "results" / "paper" / "fig6_cka.csv"
PLAIN = {"freeze_blocks": 0, "regulariser": "none"}
both_networks = pytest.mark.parametrize("network_name", NETWORKS)


def probe_clips(method: PACE) -> Tensor:
    return clips_of((0, 1, 2, 3, 4, 5), method.backbone, per_class=4, seed=99)[0]


def scores(method: PACE, mel: Tensor) -> Tensor:
    return method.classify(method.encode(Clips(mel)))


class Calls:
    """Stands in for `fit` in PACE's module: keeps what each stage was given, before and after, and trains as always."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stages: list[tuple[str, int]] = []
        self.given: list[dict[str, Any]] = []
        self._real = module("pace").fit
        monkeypatch.setattr(module("pace"), "fit", self)

    def __call__(self, part: Session, groups: Sequence[Any], loss: Any, recipe: Any, context: Any, **options: Any):
        self.stages.append((options["stage"], part.index))
        record = {
            "stage": options["stage"],
            "lrs": [group.lr for group in groups],
            "recipe": recipe,
            "parameters": [list(group.parameters) for group in groups],
            "before": [[p.detach().clone() for p in group.parameters] for group in groups],
            "projectors": options.get("projectors") or {},
        }
        self.given.append(record)
        return self._real(part, groups, loss, recipe, context, **options)

    def of(self, stage: str) -> list[dict[str, Any]]:
        return [record for record in self.given if record["stage"] == stage]


# ----------------------------------------------------------------------------------------- when adaptation stops (T_3)


def empty_session(index: int, clips: int) -> Session:
    def never(positions: np.ndarray) -> Tensor:
        raise AssertionError("the stopping rule reads no clip")

    return Session(index, (index,), index, np.full(clips, index), never, CPU)


def adapted(sizes: Sequence[int], **options: Any) -> list[int]:
    """The sessions that are adapted on, without training: what `adapt` decides."""
    method = build("pace", **{**PLAIN, **options})
    done: list[int] = []
    method._adapt_on = lambda part: done.append(part.index)
    for index, clips in enumerate(sizes):
        method.adapt(empty_session(index, clips))
        assert method.encoder_version == len(done)
    return done


@pytest.mark.parametrize(
    ("clips", "sessions", "T_3"), [(16, 315, 14), (24, 210, 10), (152, 8, 2), (1400, 5, 1), (220, 8, 2), (221, 8, 1)]
)
def test_n_stop_reproduces_the_papers_number_of_adapted_sessions(clips: int, sessions: int, T_3: int) -> None:
    """TIMIT-2, TIMIT-3, VocalSet and US8K of Fig. 7: adapt until more than 220 training clips were adapted on."""
    assert adapted([clips] * min(sessions, 30)) == list(range(T_3))


@given(sizes=st.lists(st.integers(1, 120), min_size=1, max_size=8), n_stop=st.integers(0, 300))
@settings(max_examples=25, deadline=None)
def test_t3_is_the_first_session_that_passes_n_stop(sizes: list[int], n_stop: int) -> None:
    passed = [t for t in range(len(sizes)) if sum(sizes[: t + 1]) > n_stop]
    T_3 = passed[0] + 1 if passed else len(sizes)
    assert adapted(sizes, n_stop=n_stop) == list(range(T_3))


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({"adapted_sessions": 3}, [0, 1, 2]),
        ({"adapted_sessions": 1}, [0]),
        ({"adapted_sessions": 0}, []),
        ({"msa": False}, [0]),
        ({"fsa": False}, []),
        ({"msa": False, "adapted_sessions": 4}, [0]),
    ],
)
def test_switches_of_adaptation(options: dict[str, Any], want: list[int]) -> None:
    assert adapted([16] * 6, **options) == want


def test_esc50_is_adapted_on_its_first_session_only() -> None:
    """160 clips a session: N_stop alone would adapt two, but the paper's number is first-session adaptation's."""
    cls = registry.load("pace")
    preset = settings_of.build(cls.Config, "esc50", {}, owner="pace")
    assert preset.adapted_sessions == 1
    assert settings_of.build(cls.Config, "timit2", {}, owner="pace").adapted_sessions is None
    assert adapted([160] * 10) == [0, 1]
    assert adapted([160] * 10, adapted_sessions=preset.adapted_sessions) == [0]


def test_the_papers_constants_are_the_defaults() -> None:
    config = registry.load("pace").Config()
    stated = (config.lr_backbone, config.lr_head, config.head_epochs, config.batch_size, config.rho_layer)
    assert stated == (0.05, 0.01, 1, 24, 0.94)
    assert (config.rho_svd, config.n_stop, config.width, config.copies) == (0.99, 220, 8192, 20)
    assert (config.rho_boundary, config.margin, config.epochs, config.head) == (0.3, 0.25, None, "frozen")
    assert (config.fsa, config.msa, config.projection, config.regulariser) == (True, True, "onto", "both")


def test_stopping_survives_a_resume() -> None:
    first = learn(build("pace", **PLAIN, n_stop=11), 0)
    assert not first.stopped
    again = build("pace", **PLAIN, n_stop=11)
    again.load_state_dict(first.state_dict())
    learn(again, 1)
    assert again.stopped
    assert again.encoder_version == 1


# ------------------------------------------------------------------------------------------ step A: how many are frozen


def freezing(similarity: Sequence[float], monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[PACE, Calls]:
    values = iter(similarity)
    monkeypatch.setattr(module("pace"), "linear_cka", lambda X, Y: next(values))
    calls = Calls(monkeypatch)
    return learn(build("pace", regulariser="none", **options), 0), calls


@pytest.mark.parametrize("row", range(5))
def test_published_cka_freezes_the_published_number_of_layers(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.read_csv(FIG6).iloc[row]
    values = [table[f"layer{k}"] for k in range(3)]  # the tiny network has three blocks, and no row freezes more
    method, _ = freezing(values, monkeypatch)
    assert method.first_block == table["frozen_layers"]
    notes = method.context.report.notes
    assert notes["frozen_blocks"] == table["frozen_layers"]
    assert notes["layer_cka"] == values
    assert method.lora.blocks == tuple(range(table["frozen_layers"], 3))


@pytest.mark.parametrize(
    ("values", "rho", "frozen"),
    [
        ([0.95, 0.94, 0.93], 0.94, 2),  # below, not at, the threshold
        ([0.99, 0.98, 0.97], 0.94, 2),  # none is below: only the last block is tuned
        ([0.5, 0.99, 0.5], 0.94, 0),  # the first below, whatever comes after
        ([0.95, 0.93, 0.91], 0.92, 2),
    ],
)
def test_first_block_below_the_threshold(
    values: list[float], rho: float, frozen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert freezing(values, monkeypatch, rho_layer=rho)[0].first_block == frozen


def test_probe_compares_the_pretrained_with_an_adapted_network_and_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = build("pace", regulariser="none", epochs=2)
    part = session(0, method.backbone)
    before = torch.cat([method.backbone.layer_features(clips.mel) for clips, _ in part.batches(64)])
    pretrained, pairs = weights(method.backbone), []
    real = module("pace").linear_cka

    def spy(X: Tensor, Y: Tensor) -> float:
        pairs.append((X, Y))
        assert not any(".lora_" in name for name in method.backbone.state_dict())  # the probe is a copy
        return real(X, Y)

    monkeypatch.setattr(module("pace"), "linear_cka", spy)
    calls = Calls(monkeypatch)
    method.learn(part)
    assert len(pairs) == 3
    for k, (X, Y) in enumerate(pairs):
        torch.testing.assert_close(X, before[:, k])
        assert not torch.equal(X, Y)
    monkeypatch.undo()
    assert calls.stages == [("probe", 0), ("head", 0), ("adapt", 0)]
    trained = calls.of("probe")[0]
    assert trained["lrs"] == [0.05, 0.01]
    assert trained["recipe"].epochs == 2
    assert len(trained["parameters"][0]) == 2 * 2 * 3  # A and B of K and V in all three blocks
    assert weights(method.backbone) == pretrained
    assert method.lora.names == ("s0",)
    method_again = learn(build("pace", regulariser="none", epochs=2), 0)
    assert method_again.context.report.notes["layer_cka"] == method.context.report.notes["layer_cka"]


def test_a_fixed_number_of_frozen_blocks_skips_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 clips: one pass each to warm up, to adapt and to encode; the probe adds two epochs' worth and more."""
    calls = Calls(monkeypatch)
    fixed = learn(build("pace", regulariser="none", freeze_blocks=1), 0)
    assert [stage for stage, _ in calls.stages] == ["head", "adapt"]
    assert fixed.backbone.passes.clips == 3 * 12
    assert "layer_cka" not in fixed.context.report.notes
    probed = learn(build("pace", regulariser="none"), 0)
    assert probed.backbone.passes.clips == (3 + 3) * 12  # features before, one epoch, features after


@both_networks
def test_frozen_blocks_are_left_as_pretrained(network_name: str) -> None:
    method = build("pace", network(network_name), freeze_blocks=1, regulariser="none")
    mel = probe_clips(method)
    before = method.backbone.layer_features(mel)
    learn(method, 0, 1)
    after = method.backbone.layer_features(mel)
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.equal(after[:, 1], before[:, 1])
    assert {pair.block for pair in method.lora.pairs("s1")} == set(range(1, method.backbone.depth))


def test_freezing_every_block_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"'freeze_blocks' is 3, but eat-tiny runs 3 blocks.*at most 2"):
        build("pace", freeze_blocks=3)
    build("pace", freeze_blocks=2)


# ------------------------------------------------------------------------------------------------- steps B and C: head


@pytest.mark.parametrize(
    ("head", "stages", "lrs"),
    [
        ("frozen", ["head", "adapt"], [0.05]),
        ("low-lr", ["head", "adapt"], [0.05, 0.01]),
        ("naive", ["adapt"], [0.05, 0.05]),
    ],
)
def test_head_variants_of_table_3(
    head: str, stages: list[str], lrs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    learn(build("pace", **PLAIN, head=head), 0)
    assert [stage for stage, _ in calls.stages] == stages
    (adapt,) = calls.of("adapt")
    assert adapt["lrs"] == lrs
    assert len(adapt["parameters"][0]) == 2 * 2 * 3
    for now, start in zip(adapt["parameters"][0], adapt["before"][0], strict=True):
        assert not torch.equal(now, start)
    if head != "frozen":
        for now, start in zip(adapt["parameters"][1], adapt["before"][1], strict=True):
            assert not torch.equal(now, start)
    if head != "naive":
        (warm_up,) = calls.of("head")
        assert warm_up["lrs"] == [0.01]
        assert warm_up["recipe"].epochs == 1
        weight = warm_up["parameters"][0][0]
        assert not torch.equal(weight, warm_up["before"][0][0])  # the warm-up trained it ...
        assert weight.requires_grad == (head == "low-lr")


def test_a_frozen_head_does_not_move_while_lora_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = module("pace").fit, {}

    def spy(part: Any, groups: Any, *rest: Any, stage: str, **options: Any) -> list[float]:
        if stage == "head":
            seen["head"] = groups[0].parameters
        else:
            before = bytes_of(list(seen["head"]))
        history = real(part, groups, *rest, stage=stage, **options)
        if stage == "adapt":
            assert bytes_of(list(seen["head"])) == before
            assert all(parameter.grad is None or not parameter.requires_grad for parameter in seen["head"])
            seen["checked"] = True
        return history

    monkeypatch.setattr(module("pace"), "fit", spy)
    learn(build("pace", **PLAIN, head="frozen"), 0)
    assert seen["checked"]


def test_warm_up_leaves_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("pace", **PLAIN)
    real = module("pace").fit

    def spy(part: Any, groups: Any, *rest: Any, stage: str, **options: Any) -> list[float]:
        before = bytes_of(method.backbone.state_dict())
        history = real(part, groups, *rest, stage=stage, **options)
        assert (bytes_of(method.backbone.state_dict()) == before) == (stage == "head")
        return history

    monkeypatch.setattr(module("pace"), "fit", spy)
    learn(method, 0, 1)


@pytest.mark.parametrize(
    ("options", "epochs", "rates"),
    [
        ({"epochs": 2, "session_epochs": None}, [2, 2], [0.05, 0.05]),
        ({"epochs": 2, "session_epochs": 1, "lr_session": 0.01}, [2, 1], [0.05, 0.01]),
        ({"epochs": None, "session_epochs": None}, [2, 2], [0.05, 0.05]),  # E_0 of the tiny stream is 2
    ],
)
def test_recipe_of_the_first_and_of_later_sessions(
    options: dict[str, Any], epochs: list[int], rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    learn(build("pace", **PLAIN, **options), 0, 1)
    assert [record["recipe"].epochs for record in calls.of("adapt")] == epochs
    assert [record["lrs"][0] for record in calls.of("adapt")] == rates
    assert {record["recipe"].optimiser for record in calls.given} == {"sgd"}


@both_networks
def test_older_pairs_and_pretrained_weights_never_move(network_name: str) -> None:
    method = build("pace", network(network_name), **PLAIN)
    pretrained, kept = weights(method.backbone), {}
    for t in range(3):
        learn(method, t)
        state = bytes_of(method.state_dict()["lora"])
        assert {key: state[key] for key in kept} == kept
        assert weights(method.backbone) == pretrained
        kept = state
    assert method.lora.names == ("s0", "s1", "s2")


# -------------------------------------------------------------------------------------- Eq. 5: inside the kept subspace


@both_networks
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("direction", ["onto", "complement"])
@pytest.mark.parametrize("norm", ["none", "fro"])
def test_updates_of_later_sessions_stay_inside_the_subspace(
    network_name: str, optimiser: str, direction: str, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(A_end - A_start)(I - P) = 0 and (I - P)(B_end - B_start) = 0, with P from the subtracted network, by hand."""
    rate = {"sgd": 1.0, "adam": 0.02}[optimiser] * (8 if norm == "fro" else 1)  # so that every step is well above 1e-5
    method = build(
        "pace",
        network(network_name),
        **PLAIN,
        optimiser=optimiser,
        projection=direction,
        projection_norm=norm,
        rho_svd=0.9,
        session_epochs=3,
        lr_session=rate,
        lora_scale=1.0,
    )
    calls = Calls(monkeypatch)
    learn(method, 0)
    part = session(1, method.backbone)
    with method.lora.subtracted(method.lora.names):
        seen = attention_covariances(
            method.backbone, (clips for clips, _ in part.batches(5)), range(method.backbone.depth)
        )
    learn(method, 1)

    first, second = calls.of("adapt")
    assert first["projectors"] == {}  # nothing is projected in the first session
    width = method.backbone.dim
    for pair in method.lora.pairs("s1"):
        U = leading_subspace(seen[pair.block], 0.9).float()
        assert 0 < U.shape[1] < width
        P = U @ U.T if direction == "onto" else torch.eye(width) - U @ U.T
        outside = torch.eye(width) - P
        starts = {id(now): start for now, start in zip(second["parameters"][0], second["before"][0], strict=True)}
        moved_A = (pair.A - starts[id(pair.A)]).detach()
        moved_B = (pair.B - starts[id(pair.B)]).detach()
        assert float(moved_A.abs().max()) > 2e-4
        assert float(moved_B.abs().max()) > 2e-4
        assert float((moved_A @ outside).abs().max()) < 1e-5
        assert float((outside @ moved_B).abs().max()) < 1e-5
        assert float((moved_A @ outside).norm()) < 0.01 * float(moved_A.norm())
        assert float((outside @ moved_B).norm()) < 0.01 * float(moved_B.norm())
    dims = method.context.report.notes["subspace_dims"]
    assert dims == [leading_subspace(seen[block], 0.9).shape[1] for block in method.lora.blocks]


def test_the_first_session_uses_all_directions() -> None:
    """The counterpart: without projection an update does leave the subspace, so the check above can fail."""
    method = learn(build("pace", **PLAIN, projection="none", rho_svd=0.9, session_epochs=3), 0)
    part = session(1, method.backbone)
    with method.lora.subtracted(method.lora.names):
        seen = attention_covariances(method.backbone, (clips for clips, _ in part.batches(64)), range(3))
    learn(method, 1)
    for pair in method.lora.pairs("s1"):
        U = leading_subspace(seen[pair.block], 0.9).float()
        assert float((pair.B - U @ (U.T @ pair.B)).detach().abs().max()) > 1e-4
    assert "subspace_dims" not in method.context.report.notes


def test_no_projection_equals_a_projection_that_keeps_everything() -> None:
    """Energy 1 and no norm: the same training up to rounding (methods.md 2.11, oracle 6)."""
    free = learn(build("pace", **PLAIN, projection="none"), 0, 1)
    full = learn(build("pace", **PLAIN, projection="onto", rho_svd=1.0), 0, 1)
    mine, other = free.state_dict()["lora"], full.state_dict()["lora"]
    for key in mine:
        torch.testing.assert_close(mine[key], other[key], rtol=0, atol=1e-6)


def test_frobenius_norm_shortens_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one step of plain SGD from the same start, the step is 1/sqrt k of the unnormed one."""
    moved = {}
    for norm in ("none", "fro"):
        calls = Calls(monkeypatch)
        method = build(
            "pace", **PLAIN, projection_norm=norm, batch_size=12, momentum=0.0, weight_decay=0.0, rho_svd=0.9
        )
        learn(method, 0, 1)
        record = calls.of("adapt")[1]
        moved[norm] = [
            (now.detach() - start)
            for now, start in zip(record["parameters"][0], record["before"][0], strict=True)
            if now.shape[0] == method.backbone.dim  # B: A does not move in a first step, since B = 0
        ]
        dims = method.context.report.notes["subspace_dims"]
    for number, (plain, shortened) in enumerate(zip(moved["none"], moved["fro"], strict=True)):
        k = dims[number // 2]
        torch.testing.assert_close(shortened * k**0.5, plain, rtol=1e-2, atol=1e-7)


# ---------------------------------------------------------------------------------- Eq. 6-8: boundary-aware regulariser


def hand_made(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[PACE, Session, list[int]]:
    """PACE over features that are simply three numbers of the log-mel; `counts` lists how many clips each call took."""
    method = build("pace", freeze_blocks=0, copies=20, **options)
    counts: list[int] = []

    def features(mel: Tensor) -> Tensor:
        counts.append(len(mel))
        padded = torch.zeros(len(mel), method.backbone.dim)
        padded[:, :3] = torch.stack([mel[:, :20].mean((1, 2)), mel[:, 20:40].mean((1, 2)), mel[:, 40:].mean((1, 2))], 1)
        return padded

    monkeypatch.setattr(method.backbone, "features", features)
    return method, session(0, method.backbone), counts


class Unkept:
    """What a prefix gives, by whole passes of the (hand-made) network."""

    def __init__(self, method: PACE) -> None:
        self.network = method.backbone

    def features(self, clips: Clips, copies: Tensor | None = None) -> Tensor:
        return self.network.features(clips.mel if copies is None else torch.cat([clips.mel, copies]))


def frozen(method: PACE, part: Session) -> Tensor:
    """Features of the backbone as it is [N_t, D], in stored order."""
    return torch.cat([method.backbone.features(clips.mel) for clips, _ in part.batches(64)]).detach()


def linear(method: PACE, seed: int = 0) -> nn.Linear:
    head = nn.Linear(method.backbone.dim, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
        head.bias.zero_()
    return head


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def no_cross_entropy(clips: Clips, y: Tensor) -> Tensor:
    raise AssertionError("only an empty boundary set falls back to plain cross-entropy")


@pytest.mark.parametrize("copies_per_step", [1, 3])
@pytest.mark.parametrize(("weight", "margin"), [(1.0, 0.25), (0.3, 2.0)])
def test_equation_8_by_brute_force(
    copies_per_step: int, weight: float, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, part, counts = hand_made(
        monkeypatch, copies_per_step=copies_per_step, regulariser_weight=weight, margin=margin
    )
    head = linear(method)
    generator = torch.Generator().manual_seed(1)
    dim = method.backbone.dim
    mu = unit(F.pad(torch.randn(2, 3, generator=generator), (0, dim - 3)))
    owner = torch.tensor([0, 0, 1, 5, 5, 7, 7, 11, 2])
    # Every boundary feature lies closest to the clip it comes from, so leaving own copies out matters.
    own = method.backbone.features(clips_of((0, 1), method.backbone)[0])[owner]
    boundary = unit(own + F.pad(0.02 * torch.randn(9, 3, generator=generator), (0, dim - 3)))
    monkeypatch.setattr(method, "_boundary", lambda *_: (mu, boundary, owner))
    loss = method._with_regulariser(no_cross_entropy, head, part, Unkept(method), torch.empty(0))
    masks = method.context.generator("masked copies", 0)
    order = torch.Generator().manual_seed(3)
    for clips, labels in part.batches(5, shuffle=order):
        counts.clear()
        got = float(loss(clips, labels).detach())
        assert counts == [len(clips) * (1 + copies_per_step)]
        copies = [method._masked(clips.mel, masks) for _ in range(copies_per_step)]
        terms = []
        for i in range(len(clips)):
            around = [clips.mel[i], *(copy[i] for copy in copies)]  # S_i
            pull = np.mean(
                [float((unit(method.backbone.features(u[None]))[0] - mu[labels[i]]).square().sum()) for u in around]
            )
            z = unit(method.backbone.features(clips.mel[i][None]))[0]
            push = min(
                float((z - b).square().sum())
                for b, of in zip(boundary, owner, strict=True)
                if int(of) != int(clips.index[i])  # its own copies would cancel the pull
            )
            terms.append(max(0.0, margin + pull - push))
        cross_entropy = float(F.cross_entropy(head(method.backbone.features(clips.mel)), labels).detach())
        assert got == pytest.approx(cross_entropy + weight * np.mean(terms), rel=1e-4, abs=1e-5)
        assert any(term > 0 for term in terms)


def test_only_own_copies_on_the_boundary_push_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimum over an empty set is infinite: L_reg is zero, and its gradient is zero and not NaN."""
    method = build("pace", freeze_blocks=0, copies_per_step=1)
    part, head = session(0, method.backbone), linear(method)
    clips, labels = next(part.batches(1))
    raw = method.encode(clips)
    monkeypatch.setattr(method, "_boundary", lambda *_: (unit(torch.randn(2, 96)), unit(raw), torch.tensor([0])))
    method.backbone.blocks[0].attn.k_proj.weight.requires_grad_(True)
    loss = method._with_regulariser(no_cross_entropy, head, part, Unkept(method), raw)(clips, labels)
    torch.testing.assert_close(loss, F.cross_entropy(head(raw), labels), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert bool(method.backbone.blocks[0].attn.k_proj.weight.grad.isfinite().all())


def test_an_empty_boundary_set_gives_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and at the cost of plain training: error rates never pass 1."""
    plain = learn(build("pace", **PLAIN), 0)
    never = learn(build("pace", freeze_blocks=0, regulariser="both", rho_boundary=1.0), 0)
    assert bytes_of(never.state_dict()["lora"]) == bytes_of(plain.state_dict()["lora"])
    assert never.context.report.notes["boundary_prone"] == 0
    assert never.backbone.passes.clips == plain.backbone.passes.clips + 8 * 2  # only the search for the boundary


@pytest.mark.parametrize("temporary", ["head", "class-means"])
def test_boundary_set_by_brute_force(temporary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 6-7: 20 masked copies of every clip, wrong in more than rho_p of them; b = the wrong copies."""
    method, part, counts = hand_made(
        monkeypatch, boundary_clips=512, rho_boundary=0.3, time_mask=0.6, temporary=temporary
    )
    head = linear(method, seed=2)
    means, found, owner = method._boundary(head, part, frozen(method, part))
    assert counts == [12, 12 * 20]

    generator = method.context.generator("boundary copies", 0)
    ((clips, labels),) = part.batches(16, shuffle=method.context.generator("boundary clips", 0))
    copies = [method._masked(clips.mel, generator) for _ in range(20)]
    plain = unit(method.backbone.features(clips.mel))
    centres = torch.stack([plain[labels == c].mean(0) for c in (0, 1)])
    nearest = lambda z: int((unit(z) @ unit(centres).T).argmax())  # noqa: E731
    answer = nearest if temporary == "class-means" else lambda z: int(head(z).argmax())
    want, prone = [], 0
    for i in range(12):
        outcomes = [method.backbone.features(copy[i][None])[0] for copy in copies]
        wrong = [z for z in outcomes if answer(z) != int(labels[i])]
        if len(wrong) / 20 > 0.3:
            prone += 1
            want += [(int(clips.index[i]), *unit(z)[:3].tolist()) for z in wrong]
    assert 0 < prone < 12
    assert method.context.report.notes["boundary_prone"] == prone
    got = [(int(of), *b[:3].tolist()) for of, b in zip(owner, found, strict=True)]
    assert sorted(got) == [pytest.approx(row, abs=1e-6) for row in sorted(want)]
    z = unit(method.backbone.features(clips.mel))
    for c in (0, 1):
        torch.testing.assert_close(means[c], unit(z[labels == c].mean(0)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("wrong_copies", "prone"), [(0, 0), (6, 0), (7, 12), (20, 12)])
def test_a_clip_is_boundary_prone_above_the_error_rate_not_at_it(
    wrong_copies: int, prone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 of 20 is 0.3 = rho_p: not above it."""
    method, part, _ = hand_made(monkeypatch, boundary_clips=512)
    turn = iter(range(1000))
    number_copy = lambda mel, generator: torch.full_like(mel, float(next(turn) % 20 < wrong_copies))  # noqa: E731
    monkeypatch.setattr(method, "_masked", number_copy)
    truth = torch.full((12,), -1)

    class Told(nn.Module):
        """Right on copies of zeros and wrong on copies of ones."""

        def forward(self, z: Tensor) -> Tensor:
            wrong = (z[:, 0] > 0.5).long()
            return F.one_hot((truth.repeat(20) + wrong) % 2, 2).float()

    ((_, labels),) = part.batches(16, shuffle=method.context.generator("boundary clips", 0))
    truth[:] = labels
    _, found, owner = method._boundary(Told(), part, frozen(method, part))
    assert method.context.report.notes["boundary_prone"] == prone
    assert len(found) == len(owner) == (12 * wrong_copies if prone else 0)


@pytest.mark.parametrize("most", [1, 5, 12, 100])
def test_no_more_clips_are_perturbed_than_asked_for(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method, part, counts = hand_made(monkeypatch, boundary_clips=most)
    means, _, owner = method._boundary(linear(method), part, frozen(method, part))
    assert counts == [12, min(most, 12) * 20]
    assert len(set(owner.tolist())) <= most
    z = method.backbone.features(clips_of((0, 1), method.backbone)[0])
    torch.testing.assert_close(means[0], unit(unit(z)[0::2].mean(0)), rtol=1e-5, atol=1e-6)  # of all clips


@pytest.mark.parametrize(
    ("when", "weight", "sessions"), [("both", 1.0, [0, 1]), ("later", 1.0, [1]), ("none", 1.0, []), ("both", 0.0, [])]
)
def test_when_the_regulariser_is_on(
    when: str, weight: float, sessions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build("pace", freeze_blocks=0, regulariser=when, regulariser_weight=weight)
    real, asked = method._boundary, []
    monkeypatch.setattr(method, "_boundary", lambda h, part, z: asked.append(part.index) or real(h, part, z))
    learn(method, 0, 1)
    assert asked == sessions


def test_the_regulariser_changes_training() -> None:
    always = {"rho_boundary": 0.0, "time_mask": 0.7, "freq_mask": 0.7, "margin": 1.0, "copies": 8}
    with_it = learn(build("pace", freeze_blocks=0, regulariser="both", **always), 0)
    without = learn(build("pace", **PLAIN), 0)
    assert with_it.context.report.notes["boundary_prone"] > 0
    assert bytes_of(with_it.state_dict()["lora"]) != bytes_of(without.state_dict()["lora"])


# ----------------------------------------------------------------------------------- Eq. 2-3: the analytic classifier


def recursion(blocks: Sequence[tuple[np.ndarray, np.ndarray]], classes: int, gamma: float) -> np.ndarray:
    """W_T of the paper's recursion, R_0 = I / gamma, one session at a time."""
    width = blocks[0][0].shape[1]
    R, W = np.eye(width) / gamma, np.zeros((width, classes))
    for Z, labels in blocks:
        Y = np.eye(classes)[labels]
        R = R - R @ Z.T @ scipy.linalg.solve(np.eye(len(Z)) + Z @ R @ Z.T, Z @ R)  # Eq. 2
        W = W - R @ Z.T @ Z @ W + R @ Z.T @ Y  # Eq. 3
    return W


@both_networks
@pytest.mark.parametrize("width", [20, 64])
def test_classifier_equals_batch_ridge_and_the_recursion(network_name: str, width: int) -> None:
    """On the features each session had when it was learnt: old statistics are not recomputed."""
    method = build("pace", network(network_name), **PLAIN, width=width, gamma=50.0)
    blocks = []
    for t, classes in enumerate(SESSIONS):
        learn(method, t)
        mel, labels = clips_of(classes, method.backbone)
        blocks.append((method.random(method.encode(Clips(mel))).numpy(), labels))
    H, labels = np.concatenate([h for h, _ in blocks]), np.concatenate([y for _, y in blocks])
    batch = scipy.linalg.solve(H.T @ H + 50.0 * np.eye(width), H.T @ np.eye(6)[labels], assume_a="pos")
    mel = probe_clips(method)
    h = method.random(method.encode(Clips(mel))).numpy()
    np.testing.assert_allclose(scores(method, mel), h @ batch, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scores(method, mel), h @ recursion(blocks, 6, 50.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", ["first", "accumulated", "fixed"])
def test_gamma_rules(rule: str) -> None:
    options: dict[str, Any] = {"gamma": 12.5} if rule == "fixed" else {"gamma_rule": rule}
    method = build("pace", fsa=False, seed=1, **options)
    everything, found = RidgeHead(64), []
    for t, classes in enumerate(SESSIONS):
        learn(method, t)
        mel, labels = clips_of(classes, method.backbone)
        H, y = method.random(method.encode(Clips(mel))), torch.from_numpy(labels)
        everything.update(H, y, 2 * (t + 1))
        found.append(method.ridge.lam)
        assert method.context.report.notes["gamma"] == method.ridge.lam
        if t == 0:
            first = choose_lambda(H, y, 2, seed=1).lam
        if rule == "accumulated":
            assert method.ridge.lam == everything.tune()
    if rule == "first":
        assert found == [first] * 3
    if rule == "fixed":
        assert found == [12.5] * 3


@both_networks
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [({"gamma": 5.0}, {"ridge": 5.0}), ({"gamma_rule": "accumulated"}, {"search": "accumulated"})],
)
def test_without_adaptation_it_is_ridge_on_frozen_features(
    network_name: str, mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """The row 'w/o FSA' of Tables 3 and 4 is RanPAC's without adaptation: same draw, same ridge, same logits."""
    method = learn(build("pace", network(network_name), fsa=False, **mine), 0, 1, 2)
    frozen = learn(build("ranpac", network(network_name), fsa=False, **theirs), 0, 1, 2)
    assert method.lora is None
    assert method.encoder_version == 0
    assert method.state_dict()["lora"] is None
    assert bytes_of(method.backbone.state_dict()) == bytes_of(network(network_name).state_dict())
    mel = probe_clips(method)
    assert torch.equal(scores(method, mel), scores(frozen, mel))
    again = build("pace", network(network_name), fsa=False, **mine)
    again.load_state_dict(method.state_dict())
    assert torch.equal(scores(again, mel), scores(method, mel))


def test_without_multi_session_adaptation_the_encoder_moves_once() -> None:
    method = learn(build("pace", **PLAIN, msa=False), 0)
    after, version = bytes_of(method.backbone.state_dict()), method.encoder_version
    learn(method, 1, 2)
    assert bytes_of(method.backbone.state_dict()) == after
    assert version == method.encoder_version == 1
    assert method.lora.names == ("s0",)


@pytest.mark.parametrize("regulariser", ["none", "both"])
def test_enough_epochs_with_a_frozen_head_fit_the_session(regulariser: str) -> None:
    method = learn(build("pace", freeze_blocks=0, epochs=40, lora_scale=1.0, regulariser=regulariser), 0)
    assert method.context.report.notes["adapt_loss"] < 0.3  # 0.64 and 0.83 after one epoch
