"""How much a learner's accuracy depends on which clips are tested together: 0 for every honest method.

Public engines test one session after another, so a prediction that looks at its batch sees the session it must infer
(methods.md section 5, points 1 and 2). The same trained learner is tested here with batches of one clip, of one
session, and of all sessions mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from audiocl_bench import seeding
from audiocl_bench.method import Clips
from audiocl_bench.runner import Learned

BATCH_SIZES = (1, 7, 64)


@dataclass(frozen=True)
class Reading:
    """Final accuracy of one learner under one way of batching its test clips.

    Attributes:
        mixed: whether a batch may hold clips of several sessions.
        batch_size: clips per batch.
        accuracy: percent, mean over sessions as in the paper's score.
    """

    mixed: bool
    batch_size: int
    accuracy: float


@torch.no_grad()
def readings(learned: Learned, *, seed: int, batch_sizes: Sequence[int] = BATCH_SIZES) -> tuple[Reading, ...]:
    """Test a learner in every batch size, batches by session and mixed.

    Args:
        learned: a learner that has seen all sessions (`runner.learn_all`).
        seed: of the order of mixed test clips.
        batch_sizes: clips per batch.
    """
    everything = np.concatenate(learned.tests)
    shuffled = seeding.numpy_generator(seed, "leak").permutation(everything)
    found = []
    for mixed in (False, True):
        for size in batch_sizes:
            parts = [shuffled] if mixed else learned.tests
            right = {int(row): hit for rows in parts for row, hit in zip(rows, _hits(learned, rows, size), strict=True)}
            by_session = [np.mean([right[int(row)] for row in rows]) for rows in learned.tests]
            found.append(Reading(mixed, size, 100 * float(np.mean(by_session))))
    return tuple(found)


def leak(found: Sequence[Reading]) -> float:
    """Return the points that batches by session give over single clips: the largest batch against the smallest."""
    by_session = sorted((r for r in found if not r.mixed), key=lambda r: r.batch_size)
    return by_session[-1].accuracy - by_session[0].accuracy


def _hits(learned: Learned, rows: np.ndarray, size: int) -> np.ndarray:
    """Return for each of these test clips whether it is classified rightly, in batches of `size`."""
    method = learned.method
    parts = np.array_split(rows, range(size, len(rows), size))
    scores = [method.classify(method.encode(Clips(learned.read(part)))) for part in parts]
    return np.asarray(torch.cat(scores).argmax(1).cpu().numpy() == learned.labels[rows])
