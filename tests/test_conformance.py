"""The conformance suite: an honest method passes, and each broken one is caught by the check that should catch it."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from probes import Honest
from test_cli import Call, assert_refused, call  # noqa: F401 - a fixture
from torch import Tensor
from torch.nn import functional as F

from audiocl_bench import benchmarks, conformance, files
from audiocl_bench.conformance import runs
from audiocl_bench.errors import ConfigError, UnknownNameError
from audiocl_bench.method import Card, Clips, Method, MethodConfig, Session, State, setting

RUNS = ("run", "run-resume")


def check(cls: type[Method], *only: str, **options: Any) -> conformance.Report:
    return conformance.check(cls, miniatures=(), only=only or None, **options)


def failed(report: conformance.Report) -> set[str]:
    return {outcome.name for outcome in report.failures}


# ------------------------------------------------------------------------------------------------------ honest methods


class Good(Honest):
    """Nearest class mean of the mean log-mel."""

    name = "good"


class Trained(Good):
    """A method that trains its backbone by one step of sign, reports it and bumps its version."""

    name = "trained"

    def learn(self, session: Session) -> None:
        with torch.no_grad():
            for parameter in self.backbone.parameters():
                parameter.add_(1e-3 * parameter.sign())
        self.encoder_version += 1
        self.context.report.trainable(sum(parameter.numel() for parameter in self.backbone.parameters()))
        super().learn(session)
        self.reset_statistics()
        self.num_seen = session.num_seen
        self.sums, self.counts = torch.zeros(session.num_seen, self.backbone.dim), torch.ones(session.num_seen)

    def encode(self, batch: Clips) -> Tensor:
        with torch.no_grad():
            return self.backbone.features(batch.mel)

    def reset_statistics(self) -> None:
        self.sums, self.counts = torch.zeros(0, self.backbone.dim), torch.zeros(0)

    def state_dict(self) -> State:
        return {"backbone": dict(self.backbone.state_dict()), **super().state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.backbone.load_state_dict(state["backbone"])
        super().load_state_dict(state)


@pytest.mark.parametrize("cls", [Good, Trained])
def test_an_honest_method_passes_everything(cls: type[Method]) -> None:
    report = check(cls)
    assert report.passed, str(report)
    assert [outcome.name for outcome in report.outcomes] == list(conformance.names())
    assert {outcome.name for outcome in report.outcomes if not outcome.passed} == set(RUNS), "asked to be skipped"
    assert "more clips of the same classes do not make it grow" in report["memory"].told


def test_the_readme_method_passes() -> None:
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(# diagonal\.py\n.*?)```", text, re.DOTALL)
    assert found is not None
    module: dict[str, Any] = {"__name__": "readme_diagonal"}
    exec(found.group(1), module)
    report = check(module["Diagonal"])
    assert report.passed, str(report)


def test_every_check_says_what_it_demands() -> None:
    for name in conformance.names():
        assert re.fullmatch(r"[A-Zac-z].*\.", conformance.describe(name)), name
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)


def test_progress_is_told_before_every_check() -> None:
    told: list[tuple[str, int, int]] = []
    check(Good, "settings", "learns", progress=lambda *step: told.append(step))
    assert told == [("settings", 0, 2), ("learns", 1, 2)]


def test_bad_requests_are_refused_before_anything_is_made() -> None:
    with pytest.raises(UnknownNameError, match="unknown check 'resum': did you mean resume"):
        check(Good, "resum")
    with pytest.raises(UnknownNameError, match="unknown benchmark 'mini-us8'"):
        conformance.check(Good, miniatures=("mini-us8",))
    with pytest.raises(UnknownNameError, match="unknown setting of good 'epochs'"):
        check(Good, "learns", settings={"epochs": 1})
    with pytest.raises(UnknownNameError, match="unknown backbone 'eat-tny'"):
        check(Good, "learns", backbone="eat-tny")
    with pytest.raises(UnknownNameError, match="unknown check 'x'"):
        check(Good, "learns")["x"]


def test_the_examination_leaves_global_generators_alone() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    check(Good, "learns", "determinism")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


# ------------------------------------------------------------------------------------------------------ broken methods


class LeaksAcrossBatch(Good):
    """Standardises every batch."""

    name = "leaks"

    def encode(self, batch: Clips) -> Tensor:
        features = super().encode(batch)
        return features - features.mean(0)


class VotesInClassify(Good):
    """Takes the batch's favourite class into every prediction."""

    name = "votes"

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        return scores + 100 * F.one_hot(scores.argmax(1), scores.shape[1]).float().mean(0)


class ForgetsState(Good):
    """Keeps its counts out of the state."""

    name = "forgets"

    def state_dict(self) -> State:
        return {"sums": self.sums}

    def load_state_dict(self, state: State) -> None:
        self.sums = state["sums"]
        self.counts = torch.ones(len(self.sums))


class ForgetsOnResume(Good):
    """Predicts from its state alone, but learns with a number that is lost."""

    name = "forgets-on-resume"
    learned = 0

    def accumulate(self, session: Session) -> None:
        super().accumulate(session)
        self.sums = self.sums * (1 + self.learned)
        self.learned += 1


class NumPyDraws(Good):
    """Draws from NumPy's global generator."""

    name = "numpy-draws"

    def accumulate(self, session: Session) -> None:
        super().accumulate(session)
        self.sums = self.sums + float(np.random.rand())


class ClockDraws(Good):
    """Seeds itself by the clock."""

    name = "clock-draws"

    def accumulate(self, session: Session) -> None:
        super().accumulate(session)
        self.sums = self.sums + time.perf_counter_ns() % 1009


class DropsOut(Good):
    """Leaves dropout on."""

    name = "drops-out"

    def encode(self, batch: Clips) -> Tensor:
        return F.dropout(super().encode(batch), 0.5)


class CountsTests(Good):
    """Changes its state whenever it is asked."""

    name = "counts-tests"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked = 0

    def classify(self, features: Tensor) -> Tensor:
        self.asked += 1
        return super().classify(features)

    def state_dict(self) -> State:
        return {**super().state_dict(), "asked": self.asked}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.asked = state["asked"]


class _KeepsMore(Good):
    """Keeps something of every clip in the state."""

    name = "keeps-more"

    def reset_statistics(self) -> None:
        super().reset_statistics()
        self.more: list[Tensor] = []

    def accumulate(self, session: Session) -> None:
        super().accumulate(session)
        self.more += [self.keep(clips) for clips, _ in session.batches(5)]

    def keep(self, clips: Clips) -> Tensor:
        raise NotImplementedError

    def state_dict(self) -> State:
        return {**super().state_dict(), "more": self.more}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.more = state["more"]


class KeepsClips(_KeepsMore):
    name = "keeps-clips"

    def keep(self, clips: Clips) -> Tensor:
        return clips.mel


class KeepsSmallClips(_KeepsMore):
    """Hides them: one byte per value, turned."""

    name = "keeps-small-clips"

    def keep(self, clips: Clips) -> Tensor:
        return ((clips.mel.transpose(1, 2) * 30).clamp(-128, 127)).to(torch.int8).contiguous()


class KeepsFeatures(_KeepsMore):
    name = "keeps-features"

    def keep(self, clips: Clips) -> Tensor:
        return self.encode(clips).half()


class DeclaresFeatures(KeepsFeatures):
    name = "declares-features"
    kept_bytes_per_clip: ClassVar[int] = 2 * 128


class DeclaresTooLittle(KeepsFeatures):
    name = "declares-too-little"
    kept_bytes_per_clip: ClassVar[int] = 100


class KeepsProjections(_KeepsMore):
    """Like a ridge in its square-root form: grows with clips for a while and is none of them."""

    name = "keeps-projections"

    def keep(self, clips: Clips) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return clips.mel.mean(1) @ torch.randn(128, 50, generator=generator)


class HidesClips(Good):
    """Keeps clips beside the state."""

    name = "hides-clips"

    def learn(self, session: Session) -> None:
        super().learn(session)
        self.buffer = {"all": [clips for clips, _ in session.batches(64) if clips.mel.isfinite().all()]}


class HoldsUnseenBatches(Good):
    """Keeps batches that it never looked at: they give nothing once their session is closed."""

    name = "holds-unseen-batches"

    def learn(self, session: Session) -> None:
        super().learn(session)
        self.buffer = [clips for clips, _ in session.batches(64)]


class KeepsSession(Good):
    name = "keeps-session"

    def learn(self, session: Session) -> None:
        """Keep the session."""
        super().learn(session)
        self.session = session


class ReadsOldSession(Good):
    """Goes back to the session before."""

    name = "reads-old-session"
    before: Session | None = None

    def learn(self, session: Session) -> None:
        if self.before is not None:
            super().learn(self.before)
        self.before = session
        super().learn(session)


class CrashesLater(Good):
    name = "crashes"

    def learn(self, session: Session) -> None:
        """Learn, but not twice."""
        if session.index == 1:
            raise ZeroDivisionError("a mistake of mine\nwith two lines")
        super().learn(session)


class Exits(Good):
    name = "exits"

    def learn(self, session: Session) -> None:
        """Leave."""
        sys.exit(0)


class CrashesWhenBuilt(Good):
    name = "crashes-when-built"

    def __init__(self, config: Any, backbone: Any, context: Any) -> None:
        raise KeyError("rank")


class NoSuper(Good):
    name = "no-super"

    def __init__(self, config: Any, backbone: Any, context: Any) -> None:
        self.sums = torch.zeros(0, 128)


class AllColumns(Good):
    """Gives a column to classes it has not met."""

    name = "all-columns"

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        return F.pad(scores, (0, self.context.stream.num_classes - scores.shape[1]), value=-1e9)


class NaNColumns(Good):
    name = "nan-columns"

    def classify(self, features: Tensor) -> Tensor:
        return super().classify(features).log()


class OneFeature(Good):
    """Gives one row for a whole test batch."""

    name = "one-feature"

    def encode(self, batch: Clips) -> Tensor:
        features = super().encode(batch)
        return features.mean(0, keepdim=True) if batch.index is None else features


class GivesATuple(Good):
    name = "gives-a-tuple"

    def encode(self, batch: Clips) -> Any:
        """Give too much."""
        return super().encode(batch), None


class WithGradient(Good):
    name = "with-gradient"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def encode(self, batch: Clips) -> Tensor:
        return super().encode(batch) * self.scale

    @torch.no_grad()
    def accumulate(self, session: Session) -> None:
        super().accumulate(session)


class QuietlyTrains(Trained):
    """Trains without a word."""

    name = "quietly-trains"

    def learn(self, session: Session) -> None:
        super().learn(session)
        self.encoder_version = 0


class ReportsLess(Trained):
    name = "reports-less"

    def learn(self, session: Session) -> None:
        """Learn, and report ten parameters."""
        super().learn(session)
        self.context.report.most_trainable = 10


class StaleVersion(Good):
    """Its features drift from session to session, but the cached ones are taken."""

    name = "stale-version"

    def encode(self, batch: Clips) -> Tensor:
        return super().encode(batch) * (1.0 + getattr(self, "num_seen", 0))

    def state_dict(self) -> State:
        return {**super().state_dict(), "num_seen": self.num_seen}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.num_seen = state["num_seen"]


class UnbiasedSpread(Good):
    """Divides by a spread that one clip does not have."""

    name = "unbiased-spread"

    def reset_statistics(self) -> None:
        super().reset_statistics()
        self.spread = torch.zeros(0)

    def accumulate(self, session: Session) -> None:
        super().accumulate(session)
        features, labels = self.session_features(session)
        new = [features[labels == c].std(0).mean() for c in session.classes]
        self.spread = torch.cat([self.spread, torch.stack(new)])

    def classify(self, features: Tensor) -> Tensor:
        return super().classify(features) / self.spread

    def state_dict(self) -> State:
        return {**super().state_dict(), "spread": self.spread}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self.spread = state["spread"]


class EqualClasses(Good):
    """Counts on as many clips of every class, and two classes per session."""

    name = "equal-classes"

    def accumulate(self, session: Session) -> None:
        features, labels = self.session_features(session)
        features[labels.argsort(stable=True)].reshape(2, -1, features.shape[1])
        super().accumulate(session)


class Unstorable(Good):
    name = "unstorable"

    def state_dict(self) -> State:
        """Give an array."""
        return {**super().state_dict(), "array": np.zeros(3)}


class NoDict(Good):
    name = "no-dict"

    def state_dict(self) -> Any:
        """Give a list."""
        return [self.sums]


class WrongSignature(Good):
    name = "wrong-signature"

    def learn(self, session: Session, epochs: int) -> None:  # type: ignore[override]
        """Want more than there is."""


class Nameless(Good):
    """Has no name that a run could carry."""

    name = "my method"


class Undescribed(Good):
    name = "undescribed"


@dataclass(frozen=True)
class Unsourced(MethodConfig):
    rank: int = 3


@dataclass(frozen=True)
class Untyped(MethodConfig):
    rank: complex = setting(3j, "nowhere")


class Plain(MethodConfig):
    rank: int = 3


@dataclass(frozen=True)
class BadPreset(MethodConfig):
    preset: str = setting("a", "ours")
    rank: int = setting(3, "ours", low=1)
    sources: ClassVar = {"a": {}, "b": {"rank": 0}}


def with_config(config: type[MethodConfig]) -> type[Method]:
    return type(f"With{config.__name__}", (Good,), {"__doc__": "Has settings.", "name": "with", "Config": config})


@pytest.mark.parametrize(
    ("cls", "caught_by", "told", "fix"),
    [
        (LeaksAcrossBatch, {"batch-independence"}, "predictions change with the other clips", "no statistic over"),
        (VotesInClassify, {"batch-independence"}, "predictions change", "a vote"),
        (ForgetsState, {"state", "resume"}, "something kept is not in state_dict", "into state_dict"),
        (ForgetsOnResume, {"resume"}, "has other scores after 4 classes", "keep in state_dict"),
        (NumPyDraws, {"determinism"}, "same seed gives other scores after 2 classes", "context.generator"),
        (ClockDraws, {"determinism"}, "same seed gives other", "time"),
        (DropsOut, {"batch-independence", "repeatability"}, "features change by up to", ""),
        (CountsTests, {"repeatability"}, "evaluating changes the state", "they only read"),
        (KeepsClips, {"memory"}, "state_dict() holds 96 of 96 training clips", "keeps no old clips"),
        (KeepsSmallClips, {"memory"}, "state_dict() holds 96 of 96 training clips", "keeps no old clips"),
        (KeepsFeatures, {"memory"}, "grows by 256 bytes per training clip and holds the features", "kept_bytes_per"),
        (DeclaresTooLittle, {"memory"}, "256 bytes per training clip, but the class declares 100 bytes", "correct"),
        (HidesClips, {"memory"}, "self.buffer holds 48 of 96 training clips", "keeps no old clips"),
        (KeepsSession, {"data-access"}, "self.session keeps the closed session", "not the session"),
        (ReadsOldSession, {"learns"}, "learning session 1 failed: session 0 is closed", "do what"),
        (CrashesLater, {"learns"}, "learning session 1 failed: ZeroDivisionError: a mistake of mine.", "traceback"),
        (Exits, {"learns"}, "learning session 0 failed: SystemExit: 0.", ""),
        (CrashesWhenBuilt, {"builds"}, "building the method failed: KeyError: 'rank'.", ""),
        (NoSuper, {"builds"}, "it has no attribute 'config'", "super().__init__"),
        (AllColumns, {"columns"}, "after 2 classes, 72 clips got scores of", ""),
        (NaNColumns, {"columns"}, "scores of 72 of 72 clips are NaN", ""),
        (OneFeature, {"features"}, "72 clips gave features of shape [1, 128]", "one row"),
        (GivesATuple, {"learns"}, "", ""),
        (WithGradient, {"features", "columns"}, "features carry a gradient", "no_grad"),
        (QuietlyTrains, {"backbone", "encoder-version"}, "encode returns, but encoder_version stayed 0", "add 1"),
        (ReportsLess, {"backbone"}, "but at most 10 were reported as trained", "freeze"),
        (StaleVersion, {"encoder-version"}, "changed what encode returns", "add 1"),
        (UnbiasedSpread, {"uneven-classes", "one-clip-classes"}, "uneven classes, the scores of 72 of 72", "one clip"),
        (EqualClasses, {"uneven-classes"}, "learning session 2 of uneven classes failed: RuntimeError: ", ""),
        (Unstorable, {"state"}, "state_dict()['array'] is a numpy.ndarray, which a checkpoint cannot", ""),
        (NoDict, {"state"}, "it returned a list, not a dict", ""),
        (WrongSignature, {"signatures", "learns"}, "learn(self, session", "def learn(self, session)"),
        (Nameless, {"description"}, "no usable name ('my method')", "@register"),
        (Undescribed, {"description"}, "neither a docstring nor a card", "one sentence"),
        (with_config(Unsourced), {"settings"}, "no source is given for rank", "setting(default"),
        (with_config(Untyped), {"settings"}, "Object of type complex is not JSON serializable", ""),
        (with_config(Plain), {"settings"}, "declares 'rank' but is no dataclass", "@dataclass"),
        (with_config(BadPreset), {"settings"}, "setting 'rank' is 0, but it must be at least 1", ""),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_method_is_caught(cls: type[Method], caught_by: set[str], told: str, fix: str) -> None:
    if cls is not Undescribed:
        cls.__doc__ = cls.__doc__ or "Has one fault."
    report = check(cls)
    assert failed(report) == caught_by, str(report)
    first = report.failures[0]
    assert told in first.told
    assert fix in first.fix
    assert first.fix
    for outcome in report.outcomes:
        assert outcome.told.endswith("."), outcome
        assert "\n" not in outcome.told + outcome.fix
        if outcome.status == "skipped" and outcome.name not in RUNS:
            assert "(see " in outcome.told, outcome
    assert str(report).startswith("conformance of")


def test_an_error_keeps_its_traceback_and_is_told_once() -> None:
    report = check(CrashesLater)
    assert "ZeroDivisionError: a mistake of mine\nwith two lines" in report["learns"].traceback
    assert "in learn" in report["learns"].traceback
    assert report["features"].told == "cannot be judged: learning session 1 failed (see learns)."
    assert report["features"].traceback == ""


def test_what_is_declared_is_let_be() -> None:
    leaky = type("Leaky", (LeaksAcrossBatch,), {"__doc__": "Says so.", "leaks_across_batch": True})
    assert check(leaky, "batch-independence")["batch-independence"].status == "skipped"
    assert check(DeclaresFeatures, "memory").passed


def test_growth_with_clips_is_reported() -> None:
    outcome = check(KeepsProjections, "memory")["memory"]
    assert outcome.passed
    assert "it grows with clips, 200 bytes each: say in the card until when" in outcome.told


def test_a_joint_method_gets_the_whole_stream() -> None:
    joint = type("Joint", (Good,), {"__doc__": "All at once.", "takes_whole_stream": True})
    report = check(joint)
    assert report.passed, str(report)
    assert report["resume"].status == "skipped"
    assert report["learns"].told.startswith("learned the whole stream; then 100 %")


def test_a_query_that_changes_is_caught() -> None:
    asks = {"__doc__": "Needs f_0.", "encode": lambda self, batch: self.queries(batch)}
    report = check(type("Queried", (Trained,), asks), "backbone")
    assert "query no longer gives the features of the pretrained network" in report["backbone"].told


def test_batches_nobody_looked_at_are_no_kept_clips() -> None:
    assert check(HoldsUnseenBatches, "memory").passed


def test_a_card_is_enough_of_a_description() -> None:
    carded = type("Carded", (Good,), {"card": Card("none", "nothing", "sums"), "name": "carded"})
    assert check(carded, "description").passed
    assert not check(type("Wrong", (Good,), {"card": "text", "name": "wrong"}), "description").passed


# ------------------------------------------------------------------------------------------------------- the test data


def test_uneven_counts_are_as_asked() -> None:
    backbone = conformance.network()
    counts = {0: 3, 1: 1, 2: 2}
    mel, labels = conformance.clips_of((0, 1, 2), backbone, per_class=counts)
    assert np.bincount(labels).tolist() == [3, 1, 2]
    assert mel.shape == (6, conformance.FRAMES, backbone.front_end.n_mels)
    assert labels.tolist() == [0, 1, 2, 0, 2, 0]
    same, _ = conformance.clips_of((0, 1, 2), backbone, per_class=counts)
    assert torch.equal(mel, same)


# ----------------------------------------------------------------------------------------------------------- whole runs


class BreaksOnResume(ForgetsOnResume):
    """Loses a number between the sessions of a run."""

    name = "breaks-on-resume"


class DrawsInRuns(Good):
    """Leaks in whole runs only."""

    name = "draws-in-runs"

    def classify(self, features: Tensor) -> Tensor:
        scores = super().classify(features)
        if self.context.stream.benchmark != "tiny":
            scores = scores - 1e3 * (torch.arange(len(scores)) % 2)[:, None] * torch.eye(len(scores[0]))[0]
        return scores


@pytest.fixture
def in_place_of_a_miniature(tiny_benchmark: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests' tiny benchmark, which needs no synthesis, renamed so that it is not the stream in memory."""
    found = benchmarks.get(str(tiny_benchmark))
    renamed = dataclasses.replace(found, name="renamed")
    real = benchmarks.get
    monkeypatch.setattr(benchmarks, "get", lambda name: renamed if name == "renamed" else real(name))
    return "renamed"


def whole_runs(cls: type[Method], benchmark: str) -> conformance.Report:
    return conformance.check(cls, miniatures=(benchmark,), only=RUNS)


def test_runs_are_made_killed_and_continued(in_place_of_a_miniature: str) -> None:
    report = whole_runs(Good, in_place_of_a_miniature)
    assert report.passed, str(report)
    assert report["run"].told.startswith("renamed: ")
    assert report["run-resume"].told == "killed 3 times and continued, the predictions are equal."


def test_runs_that_go_wrong_are_caught(in_place_of_a_miniature: str) -> None:
    report = whole_runs(BreaksOnResume, in_place_of_a_miniature)
    assert failed(report) == {"run-resume"}, str(report)
    assert "predictions differ after the run was killed and continued" in report["run-resume"].told
    report = whole_runs(DrawsInRuns, in_place_of_a_miniature)
    assert "its audits fail: batch_independence" in report["run"].told
    report = whole_runs(CrashesLater, in_place_of_a_miniature)
    assert {outcome.status for outcome in report.outcomes} == {"failed", "skipped"}


def test_a_miniature_that_cannot_be_had_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ConfigError("espeak-ng is not installed: pip install audiocl[mini].")

    monkeypatch.setattr(runs, "open_material", refuse)
    report = conformance.check(Good, miniatures=("mini-sc2",), only=RUNS)
    assert {outcome.status for outcome in report.outcomes} == {"skipped"}
    assert report["run"].told == "mini-sc2 cannot be had here: espeak-ng is not installed: pip install audiocl[mini]."


@pytest.mark.slow
def test_the_default_miniature_is_there_without_espeak() -> None:
    report = conformance.check(Good, only=RUNS)
    assert report.passed, str(report)
    assert report["run"].told.startswith("mini-us8k: ")


# --------------------------------------------------------------------------------------------------- the command line

MINE = """
import torch
from audiocl_bench.method import ClosedFormMethod

class Mine(ClosedFormMethod):
    "Nearest mean of the mean log-mel [sic]."

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reset_statistics()
    def reset_statistics(self):
        self.means = torch.zeros(0, self.backbone.front_end.n_mels)
    def accumulate(self, session):
        x, y = self.session_features(session)
        self.means = torch.cat([self.means, *(x[y == c].mean(0, keepdim=True) for c in session.classes)])
    def encode(self, batch):
        return batch.mel.mean(1)
    def classify(self, features):
        return -torch.cdist(features, self.means)
    def state_dict(self):
        return {"means": self.means}
    def load_state_dict(self, state):
        self.means = state["means"]

class Broken(Mine):
    "Fails."

    def classify(self, features):
        return features @ self.means.T + self.bias
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_check_prints_a_report_and_ends_well(call: Call, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    outcome = call("check", f"{mine}:Mine", "--bench", "none", "--quiet")
    assert outcome.code == 0, outcome.err
    assert "[sic]" in outcome.out, "text from users is no markup"
    assert "19 passed, 0 failed, 2 skipped." in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert outcome.err == ""


def test_check_names_stage_error_fix_and_traceback(call: Call, mine: Path) -> None:  # noqa: F811
    outcome = call("check", f"{mine}:Broken", "--bench", "none", "--quiet")
    assert_refused(outcome, "fails 1 of 21 checks: columns")
    words = " ".join(outcome.out.split())
    assert "FAILED columns classify after session 0 failed: AttributeError: 'Broken' object has no" in words
    saved = files.home() / "check" / "broken" / "columns.txt"
    assert "Full error: " in words
    assert "".join(outcome.out.split()).count("".join(str(saved).split())) == 1
    assert "self.bias" in saved.read_text()


def test_what_cannot_be_judged_takes_one_line(call: Call, mine: Path) -> None:  # noqa: F811
    mine.write_text(MINE.replace("x, y = self", "x, z = self"))
    outcome = call("check", f"{mine}:Mine", "-q")
    assert_refused(outcome, "fails 1 of 21 checks: learns")
    words = " ".join(outcome.out.split())
    assert "FAILED learns learning session 0 failed: NameError: name 'y' is not defined." in words
    assert "skipped 16 checks cannot be judged: learning session 0 failed (see learns). These are features," in words
    assert "4 passed, 1 failed, 16 skipped." in words


def test_check_makes_one_check(call: Call, mine: Path) -> None:  # noqa: F811
    outcome = call("check", f"{mine}:Broken", "--only", "settings", "--only", "signatures", "-q")
    assert outcome.code == 0
    assert "2 passed, 0 failed, 0 skipped." in outcome.out


def test_check_lists_its_checks(call: Call) -> None:  # noqa: F811
    outcome = call("check", "--list")
    assert outcome.code == 0
    for name in conformance.names():
        assert re.search(rf"^{name} ", outcome.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "needs a method"),
        (("pacee",), "did you mean pace"),
        (("pace@nothing",), "unknown preset of pace 'nothing'"),
        (("ncm", "--only", "resum"), "did you mean resume"),
        (("ncm", "--set", "metrik=cosine"), "unknown setting of ncm 'metrik': did you mean metric"),
        (("ncm", "--bench", "mini-us8"), "unknown benchmark"),
        (("ncm", "--backbone", "eat-tny"), "unknown backbone"),
        (("nowhere.py:Mine",), "does not exist"),
    ],
)
def test_check_refuses_bad_requests(call: Call, arguments: tuple[str, ...], told: str) -> None:  # noqa: F811
    assert_refused(call("check", *arguments), told)


def test_check_tells_progress_nowhere_but_on_a_terminal(call: Callable[..., Any], mine: Path) -> None:  # noqa: F811
    outcome = call("check", f"{mine}:Mine", "--only", "learns")
    assert outcome.code == 0
    assert outcome.err == ""
