"""Find the same sound in two recordings although cut, scaled, filtered or coded differently: spectral landmarks.

After Wang, "An industrial-strength audio search algorithm" (ISMIR 2003): peaks of the spectrogram are joined in pairs;
two recordings of one event share many pairs (two frequencies and the time between) at one and the same shift in time.
Random recordings share a few pairs at most, at shifts that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

from audiocl_bench.audio import SAMPLE_RATE

_SIZE, _HOP = 512, 256  # samples of the spectrogram: 32 ms, 16 ms
_AROUND = (15, 11)  # bins and frames in which a peak is the largest value
_DEPTH = 6.5  # nepers below the loudest cell down to which peaks count
_PAIRS, _NEXT = 6, 30  # pairs per peak, and later peaks that are tried
_LONGEST, _WIDEST = 60, 60  # frames and bins between the peaks of a pair
_SHIFTS = 1 << 20  # keeps clip and shift apart in one number


@dataclass(frozen=True)
class Match:
    """A recording that resembles another.

    Attributes:
        name: of the indexed recording.
        shared: pairs of peaks at the best shift.
        of: pairs in the recording that was looked up.
    """

    name: str
    shared: int
    of: int

    @property
    def likely(self) -> bool:
        """Whether it is no chance: 20 pairs, or 12 that are a tenth of all. Unrelated sounds reached 15 in 680."""
        return self.shared >= 20 or (self.shared >= 12 and self.shared >= 0.1 * self.of)


def landmarks(pcm: NDArray[np.int16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of a recording [N] at 16 kHz as numbers [P], and the frame that each begins in [P]."""
    nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
    if len(pcm) < 4 * _SIZE:
        return nothing
    wave = pcm.astype(np.float32)
    _, _, spectrum = signal.stft(wave, SAMPLE_RATE, nperseg=_SIZE, noverlap=_SIZE - _HOP, boundary=None)
    loud = np.log(np.abs(spectrum) + 1e-6)
    highest = loud == ndimage.maximum_filter(loud, size=_AROUND)
    frames, bins = np.nonzero((highest & (loud > loud.max() - _DEPTH) & (loud > np.median(loud) + 1.0)).T)
    if len(frames) < 2:
        return nothing
    # Column k: the pair of every peak with the k-th peak after it.
    later = np.arange(len(frames))[:, None] + np.arange(1, _NEXT)
    inside = later < len(frames)
    later = later.clip(max=len(frames) - 1)
    apart = frames[later] - frames[:, None]
    fits = inside & (apart >= 2) & (apart <= _LONGEST) & (np.abs(bins[later] - bins[:, None]) <= _WIDEST)
    fits &= np.cumsum(fits, axis=1) <= _PAIRS
    first, which = np.nonzero(fits)
    second = later[first, which]
    codes = bins[first] << 16 | bins[second] << 7 | (frames[second] - frames[first])
    return codes.astype(np.int64), frames[first].astype(np.int64)


class Index:
    """Recordings to compare others with.

    Args:
        recordings: (name, samples [N] at 16 kHz) of each.
    """

    def __init__(self, recordings: Sequence[tuple[str, NDArray[np.int16]]]) -> None:
        self._names = [name for name, _ in recordings]
        found = [landmarks(pcm) for _, pcm in recordings]
        codes = np.concatenate([code for code, _ in found]) if found else np.zeros(0, np.int64)
        frames = np.concatenate([frame for _, frame in found]) if found else np.zeros(0, np.int64)
        owner = np.repeat(np.arange(len(found)), [len(code) for code, _ in found])
        order = np.argsort(codes, kind="stable")
        self._codes, self._frames, self._owner = codes[order], frames[order], owner[order]

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self._names)

    def match(self, pcm: NDArray[np.int16]) -> Match | None:
        """Return the recording that resembles `pcm` [N] most, or None if none shares a single pair."""
        codes, frames = landmarks(pcm)
        low, high = (np.searchsorted(self._codes, codes, side) for side in ("left", "right"))
        counts = high - low
        if not counts.sum():
            return None
        starts = np.repeat(low - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        places = starts + np.arange(counts.sum())
        shift = self._frames[places] - np.repeat(frames, counts) + _SHIFTS // 2
        found, shared = np.unique(self._owner[places] * _SHIFTS + shift, return_counts=True)
        best = int(np.argmax(shared))
        return Match(self._names[int(found[best] // _SHIFTS)], int(shared[best]), len(codes))
