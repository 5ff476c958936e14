"""The audit of test batches: nothing for an honest method, the right number for one that looks at its neighbours."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import QUICK, Call, call
from torch import Tensor

from audiocl_bench.leak import Reading, leak, readings
from audiocl_bench.method import Clips
from audiocl_bench.runner import Learned

PEEKING = '''
from audiocl_bench.method import register
from audiocl_methods.ncm import NCM


@register("peeking")
class Peeking(NCM):
    """Add what the whole batch looks like to every clip's scores."""

    {declared}

    def classify(self, features):
        scores = super().classify(features)
        return scores + 100 * scores.mean(0)
'''

__all__ = ["call"]


class Majority:
    """Sees each clip's class in its log-mel, and says of every clip what the batch's first clip is."""

    def encode(self, batch: Clips) -> Tensor:
        return batch.mel[:, 0]

    def classify(self, features: Tensor) -> Tensor:
        return features[:1].expand(len(features), -1)


class Honest(Majority):
    def classify(self, features: Tensor) -> Tensor:
        return features


def learned(method: Majority) -> Learned:
    """Two sessions of two classes with three clips each; a clip's log-mel is its class, one-hot."""
    labels = np.repeat(np.arange(4), 3)
    tests = [np.arange(0, 6), np.arange(6, 12)]
    one_hot = torch.eye(4)[torch.from_numpy(labels)][:, None]
    return Learned(method, {}, tests, labels, lambda rows: one_hot[rows])  # type: ignore[arg-type]


def test_accuracy_by_batch_is_what_one_counts_by_hand() -> None:
    found = readings(learned(Majority()), seed=0, batch_sizes=(1, 3, 6))
    by_session = {r.batch_size: r.accuracy for r in found if not r.mixed}
    # One clip: always itself. Three clips: a batch is one class. Six: the first class of each session wins.
    assert by_session == {1: 100.0, 3: 100.0, 6: 50.0}
    assert leak(found) == -50.0
    assert next(r.accuracy for r in found if r.mixed and r.batch_size == 1) == 100.0


def test_an_honest_learner_reads_the_same_everywhere() -> None:
    found = readings(learned(Honest()), seed=0)
    assert {r.accuracy for r in found} == {100.0}
    assert leak(found) == 0.0


def test_the_leak_is_the_largest_batch_against_the_smallest() -> None:
    found = (Reading(False, 64, 80.0), Reading(False, 1, 60.0), Reading(False, 7, 99.0), Reading(True, 64, 0.0))
    assert leak(found) == 20.0


@pytest.mark.parametrize("declared", [False, True])
def test_the_command_measures_a_leak_and_says_whether_it_was_declared(
    call: Call, tiny_benchmark: Path, tmp_path: Path, declared: bool
) -> None:
    file = tmp_path / "peeking.py"
    file.write_text(PEEKING.format(declared="leaks_across_batch = True" if declared else ""))
    outcome = call("audit", "-m", f"ncm,{file}:Peeking", "-b", tiny_benchmark, *QUICK)
    text = " ".join(outcome.out.split())
    assert re.search(r"ncm tiny 0 by session ([\d.]+) \1 \1 \+0\.00 passed", text)
    assert "peeking on tiny: failed batch_independence" in text
    assert ("on purpose" in text) == declared
    assert outcome.code == (0 if declared else 2)
    assert ("peeking on tiny failed its audits: batch_independence" in outcome.err) != declared
