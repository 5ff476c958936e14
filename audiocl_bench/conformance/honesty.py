"""Checks of what a method's numbers rest on: its state, its repeatability, and what it reads and changes."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import torch
from torch import Tensor

from audiocl_bench import audit, seeding
from audiocl_bench.conformance.examination import After, Examination, Walk, features_of, scores_of
from audiocl_bench.conformance.streams import bytes_of, through_a_file, weights
from audiocl_bench.conformance.verdicts import Fail, Skip, in_stage, listed, need
from audiocl_bench.method import LazyClips, Method, Session
from audiocl_bench.readout import Readout

BATCH_SIZES = (1, 7, 64)


def batch_independence(e: Examination) -> str:
    """A clip's features and prediction are the same at batch sizes 1, 7 and 64 and in any order."""
    walk = e.first()
    steps = walk.all()
    need(steps[-1].features)
    need(steps[-1].scores)
    if getattr(walk.method, "leaks_across_batch", False):
        raise Skip("the method declares that it leaks (leaks_across_batch): its runs are marked and never ranked.")
    mel = e.probe()
    order = torch.from_numpy(seeding.numpy_generator(e.seed, "conformance").permutation(len(mel)))
    found = audit.batch_independence(walk.method, mel, batch_sizes=BATCH_SIZES, seed_order=order)
    if not found.passed:
        if "error" in found.detail:
            raise Fail(f"in other batches it fails: {found.detail['error']}", "take any batch size, 1 included.")
        change, moved = found.detail["largest_feature_change"], found.detail["changed_predictions"]
        how_much = "by what is no finite number" if change is None else f"by up to {_percent(change)} of their spread"
        raise Fail(
            f"features change {how_much} and {moved} predictions change with the other clips of the batch",
            "use no statistic over the batch in encode or classify (batch norm, a vote, a shared prompt).",
        )
    return "the same at batch sizes 1, 7, 64 and 72, and in another order."


def _percent(share: float) -> str:
    return f"{100 * share:,.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def repeatability(e: Examination) -> str:
    """Evaluating twice gives equal bits and leaves the state as it was."""
    found = e.repeatable()
    if "error" in found.detail:
        raise Fail(f"evaluating again fails: {found.detail['error']}", "encode and classify may be called any time.")
    if not found.detail["same_scores"]:
        raise Fail(
            "evaluating the same clips twice gives other scores",
            "draw nothing in encode and classify; switch dropout and augmentation off there.",
        )
    if not found.detail["same_state"]:
        raise Fail("evaluating changes the state", "change nothing in encode and classify: they only read.")
    return "equal bits twice, and the state is left alone."


def encoder_version(e: Examination) -> str:
    """encoder_version changes whenever encode does: the runner keeps test features until it changes."""
    steps = e.first().all()
    for step in steps:
        need(step.features)
    e.need_repeatable()
    changes = 0
    for before, after in pairwise(steps):
        old, new = need(before.features), need(after.features)
        same = old.shape == new.shape and torch.equal(old, new)
        if not same and before.version == after.version:
            raise Fail(
                f"learning classes {listed(after.classes)} changed what encode returns, but encoder_version stayed "
                f"{after.version}",
                "add 1 to self.encoder_version in learn whenever the encoder changes.",
            )
        changes += not same
    return f"encode changed in {changes} of {max(len(steps) - 1, 0)} later sessions, and said so."


def backbone(e: Examination) -> str:
    """The pretrained weights change only where the method says that it trains."""
    walk = e.first()
    walk.all()
    before, after = weights(e.pretrained()), weights(walk.method.backbone)
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise Skip("the method gave its backbone's weights other names, so they cannot be compared.")
    changed = [name for name in shared if before[name] != after[name]]
    numbers = sum(len(before[name]) // 4 for name in changed)
    version = int(getattr(walk.method, "encoder_version", 0))
    trained = getattr(walk.method.context.report, "most_trainable", 0)
    if changed and version == 0:
        raise Fail(
            f"{len(changed)} pretrained tensors changed ('{changed[0]}' and so on), but encoder_version is 0",
            "leave the backbone alone, or add 1 to self.encoder_version when you train it.",
        )
    if changed and trained and numbers > trained:
        raise Fail(
            f"{numbers:,} pretrained numbers changed, but at most {trained:,} were reported as trained",
            "freeze what is not trained (weight decay moves it too), or report all of it with "
            "context.report.trainable(n).",
        )
    mel = e.probe()[:7]
    if type(walk.method).query is not Method.query or _asks(walk.method, mel):
        with in_stage("query"), torch.no_grad():
            same = torch.equal(walk.method.query(mel), walk.method.readout(e.pretrained(), mel))
        if not same:
            raise Fail(
                "query no longer gives the features of the pretrained network after training",
                "undo in query what learn changed, or keep the trained parts out of the backbone.",
            )
    if changed:
        return f"{len(changed)} of {len(shared)} pretrained tensors were trained, as encoder_version says."
    return f"all {len(shared)} pretrained tensors are as they were."


def _asks(method: Method, mel: Tensor) -> bool:
    """Tell whether `encode` asks for features of the pretrained network (`queries`), by giving it none."""
    asked: list[Readout] = []

    def note(readout: Readout) -> None:
        asked.append(readout)

    with in_stage("encode"):
        method.encode(LazyClips(mel, stored=note))
    return bool(asked)


def data_access(e: Examination) -> str:
    """Learning reads the open session only; testing needs nothing of it."""
    walk = e.first()
    steps = walk.all()
    need(steps[-1].scores)
    held = [name for name, value in vars(walk.method).items() if isinstance(value, Session)]
    if held:
        raise Fail(f"self.{held[0]} keeps the closed session", "keep statistics or weights, not the session.")
    unread = [step for step in steps if step.clips_read == 0]
    if unread:
        raise Fail(f"learning classes {listed(unread[0].classes)} read no clip", "read session.batches in learn.")
    times = sorted({f"{step.clips_read / step.clips:.3g}" for step in steps}, key=float)
    often = "once" if times == ["1"] else f"{' to '.join(dict.fromkeys((times[0], times[-1])))} times"
    return f"every clip was read {often}, and none after its session."


def state(e: Examination) -> str:
    """state_dict holds all that is kept: a fresh learner that gets it predicts the same bits."""
    walk = e.first()
    last = walk.all()[-1]
    state, features, scores = need(last.state), need(last.features), need(last.scores)
    e.need_repeatable()
    twin = e.revived(state)
    twin.encoder_version = walk.method.encoder_version
    with in_stage("encode after load_state_dict"):
        again = features_of(twin, e.probe())
    with in_stage("classify after load_state_dict"):
        outcome = scores_of(twin, again)
    if not torch.equal(features, again) or not torch.equal(scores, outcome):
        part = "features" if not torch.equal(features, again) else "scores"
        raise Fail(
            f"a fresh learner that was given the state gives other {part}: something kept is not in state_dict",
            "put every tensor, number and random draw that learn leaves behind into state_dict.",
        )
    return "a fresh learner that gets it predicts the same bits."


def pickling(e: Examination) -> str:
    """State and settings survive being written and read, bit for bit."""
    state = need(e.first().all()[-1].state)
    with in_stage("writing and reading the state"):
        if bytes_of(through_a_file(state)) != bytes_of(state) or bytes_of(copy.deepcopy(state)) != bytes_of(state):
            raise Fail("the state changes when it is written and read", "use plain tensors and values.")
    with in_stage("pickling the settings"):
        if pickle.loads(pickle.dumps(e.config)) != e.config:
            raise Fail("the settings change when they are pickled", "use plain values in Config.")
    return "state and settings come back bit for bit."


def determinism(e: Examination) -> str:
    """The same seed gives the same bytes, whatever Python's and NumPy's global generators hold."""
    first = e.first()
    e.need_repeatable()
    second = e.once("second", lambda: e.walk(disturb=2, what="a second time"))
    for before, after in zip(first.all(), second.all(), strict=True):
        differing = _differing(before, after)
        if differing:
            raise Fail(
                f"learning the same stream twice with the same seed gives other {differing} after {before.seen} "
                "classes",
                "draw only from self.context.generator(purpose), not from NumPy, random, time or a set's order.",
            )
    return "learning twice with one seed gives the same state, features and scores, byte for byte."


def resume(e: Examination) -> str:
    """Stopped after every session and continued from the state, a learner ends with the bytes of an unbroken one."""
    first = e.first()
    for step in first.all():
        need(step.state)
    e.need_repeatable()
    if e.cls.takes_whole_stream:
        raise Skip("it learns one single session, so there is nothing to continue.")
    if "second" in e.made and isinstance(e.made["second"], Walk):
        pairs = zip(first.all(), e.made["second"].all(), strict=True)
        if any(_differing(before, after) for before, after in pairs):
            raise Skip("cannot be judged: two unbroken ones differ already (see determinism).")
    broken = e.walk(restart=True, disturb=1, what="of a learner that continues")
    for before, after in zip(first.all(), broken.all(), strict=True):
        differing = _differing(before, after)
        if differing:
            raise Fail(
                f"a learner that was stopped and continued after every session has other {differing} after "
                f"{before.seen} classes",
                "keep in state_dict whatever a later session needs; name the session in context.generator where "
                "draws repeat.",
            )
    return f"stopped and continued after each of {len(first.steps)} sessions, it ends with the same bytes."


def _differing(before: After, after: After) -> str:
    """Return the first thing in which two learners differ, or ""."""
    if not torch.equal(need(before.features), need(after.features)):
        return "features"
    if not torch.equal(need(before.scores), need(after.scores)):
        return "scores"
    if bytes_of(need(before.state)) != bytes_of(need(after.state)):
        return "state bytes"
    return ""
