"""The audit catches what it is for, and passes honest methods. Each culprit differs from an honest one in one thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from probes import Honest, Log, plan_of
from torch import Tensor

from audiocl_bench import audit, files
from audiocl_bench.method import Clips, Context, Method, MethodConfig, Session, State, StreamInfo
from audiocl_bench.results import ResultsDir
from audiocl_bench.runner import Material, execute

CLASSES, CLIPS, FRAMES = 4, 16, 6
ORDER = torch.randperm(CLIPS, generator=torch.Generator().manual_seed(0))


def learned(cls: type[Honest], material: Material) -> Honest:
    """Build a method and teach it four noisy classes."""
    method = cls(MethodConfig(), material.backbone, Context(0, StreamInfo("x", 1, CLASSES, 1)))
    mel = sounds()
    labels = torch.arange(CLIPS) % CLASSES
    session = Session(0, tuple(range(CLASSES)), 0, labels.numpy(), lambda rows: mel[rows], torch.device("cpu"))
    method.learn(session)
    session.close()
    return method


def sounds(seed: int = 0) -> Tensor:
    """[CLIPS, FRAMES, 128]: clip i belongs to class i % CLASSES, classes are well apart."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, 1, 128, generator=torch.Generator().manual_seed(9))
    return centres[torch.arange(CLIPS) % CLASSES] + 0.3 * torch.randn(CLIPS, FRAMES, 128, generator=draws)


def all_checks(cls: type[Honest], material: Material, method: Honest | None = None) -> dict[str, audit.Check]:
    method = learned(cls, material) if method is None else method
    mel = sounds(1)

    def rebuild() -> Method:
        return cls(MethodConfig(), material.backbone, method.context)

    with torch.no_grad():
        stored = method.encode(Clips(mel))
    checks = [
        audit.features_are_current(method, mel, stored),
        audit.batch_independence(method, mel, seed_order=ORDER),
        audit.repeatability(method, mel),
        audit.seen_classes_only(method, mel, CLASSES),
        audit.state_is_complete(method, rebuild, mel),
    ]
    return {check.name: check for check in checks}


def failed(cls: type[Honest], material: Material) -> set[str]:
    return {name for name, check in all_checks(cls, material).items() if not check.passed}


def test_an_honest_method_passes_everything(tiny_material: Material) -> None:
    checks = all_checks(Honest, tiny_material)
    assert all(check.passed for check in checks.values())
    assert checks["batch_independence"].detail["clips"] == CLIPS
    assert checks["batch_independence"].detail["changed_predictions"] == 0
    assert set(checks) == {
        "features_are_current",
        "batch_independence",
        "repeatability",
        "seen_classes_only",
        "state_is_complete",
    }


def test_a_report_is_plain_json(tiny_material: Material) -> None:
    report = audit.report([*all_checks(Honest, tiny_material).values(), audit.data_access([5, 6], [5, 5])])
    assert files.canonical_json(report)
    assert report["repeatability"]["passed"] is True
    assert report["data_access"] == {"passed": True, "clips_read": [5, 6], "clips_in_session": [5, 5]}


# -------------------------------------------------------------------------------------------------- batch independence


class CentresBatch(Honest):
    """Subtracts the batch mean from its features (batch normalisation in train mode does the like)."""

    def encode(self, batch: Clips) -> Tensor:
        features = super().encode(batch)
        return features if batch.index is not None else features - features.mean(0)


class VotesInBatch(Honest):
    """Chooses a prompt by the majority of the batch, as some published prompt methods do at test time."""

    def encode(self, batch: Clips) -> Tensor:
        features = super().encode(batch)
        if batch.index is not None:
            return features
        winner = int(torch.mode(super().classify(features).argmax(1)).values)
        return features + 0.5 * self.sums[winner] / self.counts[winner]


class ScalesScoresInBatch(Honest):
    """Honest features; scores are centred per class over the batch."""

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        return scores - scores.mean(0)


class MasksAndScales(ScalesScoresInBatch):
    """The same, with one class masked by minus infinity."""

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        scores[:, -1] = -torch.inf
        return scores


class FirstClipDecides(Honest):
    """The first clip of a batch decides for all; a batch of one hides it."""

    def encode(self, batch: Clips) -> Tensor:
        features = super().encode(batch)
        return features if batch.index is not None else features + 0.05 * features[:1]


@pytest.mark.parametrize("culprit", [CentresBatch, VotesInBatch, ScalesScoresInBatch, MasksAndScales, FirstClipDecides])
def test_results_that_depend_on_batch_neighbours_are_found(culprit: type[Honest], tiny_material: Material) -> None:
    assert "batch_independence" in failed(culprit, tiny_material)


def test_the_report_says_how_far_a_leak_goes(tiny_material: Material) -> None:
    detail = all_checks(CentresBatch, tiny_material)["batch_independence"].detail
    assert detail["largest_feature_change"] > 0.1
    leak = all_checks(ScalesScoresInBatch, tiny_material)["batch_independence"].detail
    assert leak["largest_feature_change"] < 1e-5
    assert leak["changed_predictions"] > 0


class Rounding(Honest):
    """Features that differ by float32 rounding between batch sizes are honest."""

    def encode(self, batch: Clips) -> Tensor:
        return super().encode(batch) * (1 + 1e-7 * len(batch))


def test_rounding_is_no_leak(tiny_material: Material) -> None:
    assert "batch_independence" not in failed(Rounding, tiny_material)


class Ties(Honest):
    """Equal scores, decided by noise far below the tie tolerance."""

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        scores[:] = scores[:, :1]
        draws = torch.Generator().manual_seed(len(features))
        return scores + 1e-6 * torch.rand(scores.shape, generator=draws)


def test_a_tie_that_flips_is_no_changed_prediction(tiny_material: Material) -> None:
    assert all_checks(Ties, tiny_material)["batch_independence"].detail["changed_predictions"] == 0


class NanFeatures(Honest):
    """Features are not a number, and scores hide it."""

    def encode(self, batch: Clips) -> Tensor:
        features = super().encode(batch)
        return features if batch.index is not None else torch.full_like(features, torch.nan)

    def classify(self, features: Tensor) -> Tensor:
        return super().classify(features.nan_to_num())


def test_features_that_are_not_a_number_fail(tiny_material: Material) -> None:
    checks = all_checks(NanFeatures, tiny_material)
    assert not checks["batch_independence"].passed
    assert checks["batch_independence"].detail["largest_feature_change"] is None
    assert files.canonical_json(audit.report(checks.values()))


class CrashesOnOne(Honest):
    """Squeezes a batch of one away."""

    def encode(self, batch: Clips) -> Tensor:
        return super().encode(batch).squeeze(0)


def test_a_method_that_crashes_on_a_single_clip_fails_and_says_how(tiny_material: Material) -> None:
    check = all_checks(CrashesOnOne, tiny_material)["batch_independence"]
    assert not check.passed
    assert "Error" in check.detail["error"]


# ------------------------------------------------------------------------------------------------------- repeatability


class AdaptsAtTest(Honest):
    """Moves its means towards the test clips it sees."""

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        self.sums = self.sums.index_add(0, scores.argmax(1), features)
        return scores


class DrawsAtTest(Honest):
    """Dropout at test."""

    def encode(self, batch: Clips) -> Tensor:
        return torch.dropout(super().encode(batch), 0.1, train=True)


class CountsAtTest(Honest):
    """Scores stay as they are, but what it keeps does not."""

    def __init__(self, config: Any, backbone: Any, context: Any) -> None:
        super().__init__(config, backbone, context)
        self.met = 0

    def encode(self, batch: Clips) -> Tensor:
        self.met += len(batch)
        return super().encode(batch)

    def state_dict(self) -> State:
        return {**super().state_dict(), "met": self.met}


@pytest.mark.parametrize("culprit", [AdaptsAtTest, DrawsAtTest, CountsAtTest])
def test_an_evaluation_that_changes_something_is_found(culprit: type[Honest], tiny_material: Material) -> None:
    assert "repeatability" in failed(culprit, tiny_material)


def test_repeatability_says_what_changed(tiny_material: Material) -> None:
    scores = all_checks(DrawsAtTest, tiny_material)["repeatability"].detail
    state = all_checks(CountsAtTest, tiny_material)["repeatability"].detail
    assert (scores["same_scores"], scores["same_state"]) == (False, True)
    assert (state["same_scores"], state["same_state"]) == (True, False)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": torch.zeros(2)}, {"a": torch.zeros(2, dtype=torch.float64)}),
        ({"a": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}),
        ({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        ({"a": None}, {"a": "None"}),
        ({"a": [[1], 2]}, {"a": [[1, 2]]}),
        ({"a": True}, {"a": 1}),
    ],
)
def test_states_that_differ_are_told_apart(first: Any, second: Any) -> None:
    assert audit._digest(first) != audit._digest(second)
    assert audit._digest(first) == audit._digest(first)


def test_equal_states_are_equal_whatever_their_memory() -> None:
    wide = torch.arange(12.0).reshape(3, 4).T
    assert audit._digest({"a": wide, "b": {3, 1}}) == audit._digest({"a": wide.clone().contiguous(), "b": {1, 3}})
    assert audit._digest({"a": torch.ones(2, dtype=torch.bfloat16)}) == audit._digest({"a": torch.ones(2).bfloat16()})
    assert audit._digest({"a": torch.tensor(1)}) != audit._digest({"a": torch.tensor(2)})


# -------------------------------------------------------------------------------------------------------- seen classes


class TooManyColumns(Honest):
    def classify(self, features: Tensor) -> Tensor:
        return torch.cat([super().classify(features), torch.zeros(len(features), 1)], 1)


class NanScore(Honest):
    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        scores[-1, 2] = torch.nan
        return scores


@pytest.mark.parametrize("culprit", [TooManyColumns, NanScore])
def test_scores_need_one_number_per_class_seen(culprit: type[Honest], tiny_material: Material) -> None:
    assert "seen_classes_only" in failed(culprit, tiny_material)


def test_seen_classes_only_counts_columns(tiny_material: Material) -> None:
    detail = all_checks(TooManyColumns, tiny_material)["seen_classes_only"].detail
    assert detail == {"columns": CLASSES + 1, "classes_seen": CLASSES}


# --------------------------------------------------------------------------------------------------- complete state


class KeepsOutside(Honest):
    """Its scale is learned and kept, but not in the state."""

    scale = 1.0

    def accumulate(self, session: Session) -> None:
        super().accumulate(session)
        self.scale = 3.0

    def classify(self, features: Tensor) -> Tensor:
        return self.scale * super().classify(features)


class ChangesBackbone(Honest):
    """Trains the network and does not keep it."""

    def __init__(self, config: Any, backbone: Any, context: Any) -> None:
        import copy

        super().__init__(config, copy.deepcopy(backbone), context)

    @torch.no_grad()
    def adapt(self, session: Session) -> None:
        for parameter in self.backbone.parameters():
            parameter.mul_(1.01)

    def encode(self, batch: Clips) -> Tensor:
        return super().encode(batch) + sum(p.double().sum() for p in self.backbone.parameters()).float()


class CannotLoad(Honest):
    def load_state_dict(self, state: State) -> None:
        raise KeyError("means")


@pytest.mark.parametrize("culprit", [KeepsOutside, ChangesBackbone, CannotLoad])
def test_what_is_kept_outside_the_state_is_found(culprit: type[Honest], tiny_material: Material) -> None:
    assert failed(culprit, tiny_material) == {"state_is_complete"}


def test_a_state_that_cannot_be_loaded_is_reported_not_raised(tiny_material: Material) -> None:
    assert all_checks(CannotLoad, tiny_material)["state_is_complete"].detail == {"error": "KeyError: 'means'"}


# ----------------------------------------------------------------------------------------------------- current features


class ForgetsToBump(Honest):
    """Its encoder changes in every session, but `encoder_version` does not: tested features would be old ones."""

    name = "forgets-to-bump"

    def adapt(self, session: Session) -> None:
        self.turn = session.index

    def encode(self, batch: Clips) -> Tensor:
        return super().encode(batch) * (1 + 0.1 * self.turn)

    def state_dict(self) -> State:
        return {**super().state_dict(), "turn": self.turn}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.turn = state["turn"]


class Bumps(ForgetsToBump):
    """The same, told properly."""

    name = "bumps"

    def adapt(self, session: Session) -> None:
        super().adapt(session)
        self.encoder_version += 1


def test_an_encoder_that_changes_unsaid_is_found_in_a_run(tiny_material: Material, tmp_path: Any) -> None:
    for method, passes in ((Bumps, True), (ForgetsToBump, False)):
        results, log = ResultsDir(tmp_path / method.name), Log()
        identity, _ = execute(plan_of(method), tiny_material, results, monitor=log)
        assert results.run(identity)["audit_passed"] is passes
        assert [text for text in log.messages if "features_are_current" in text] == log.messages
        assert bool(log.messages) is not passes


@pytest.mark.parametrize("method", ["ncm", "ranpac", "finetune", "joint", "joint-closed"])
def test_built_in_methods_pass_the_audit_of_a_real_run(method: str, tiny_material: Material, tmp_path: Any) -> None:
    results = ResultsDir(tmp_path)
    identity, _ = execute(plan_of(method), tiny_material, results)
    row = results.run(identity)
    assert row["audit_passed"], row["audit"]
