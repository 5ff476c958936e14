"""Peak memory of a stretch of work; freed memory and pages of mapped files given back to the system."""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_MAPS = Path("/proc/self/maps")


class PeakMemory:
    """Peak memory since this object was made: of the GPU on CUDA, else resident memory of this process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._exact = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                _CLEAR.write_text("5")  # Linux: reset the high-water mark
                self._exact = True
            except OSError:
                self._exact = False

    def peak_mb(self) -> float:
        """Return the peak in 10^6 bytes; where the system keeps no resettable mark, the present resident size."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e6
        if self._exact:
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
        return psutil.Process().memory_info().rss / 1e6


def give_back_freed() -> None:
    """Return what was freed to the system, where the C library is GNU's; elsewhere nothing happens.

    It keeps freed blocks for later, in pieces that fit what comes next ever worse: after a dozen sessions of training
    several times what is in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


class MappedPages:
    """The pages behind arrays that lie in files mapped read-only, which can be let go; reading maps them again.

    Pages that were looked at count as resident memory of this process until the system needs them elsewhere, so that
    whoever reads through a large mapped file seems to hold all of it. They stay in the system's cache. Elsewhere than
    on Linux, and for arrays that are in no such file, nothing happens.
    """

    def __init__(self, views: Sequence[np.ndarray]) -> None:
        """Find the pages of contiguous arrays; the arrays are held, so that their files stay mapped."""
        self._views = list(views)
        ranges = _mapped_files() if hasattr(mmap, "MADV_DONTNEED") else []
        self._pages = [_whole_pages(view, ranges) for view in self._views]

    def give_back(self, numbers: Iterable[int] | None = None) -> None:
        """Let go of the pages of these arrays (their positions in `views`), or of all."""
        libc = ctypes.CDLL(None)
        for number in range(len(self._pages)) if numbers is None else numbers:
            first, length = self._pages[number]
            if length:
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _whole_pages(view: np.ndarray, ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return address and length of the whole pages inside an array; length 0 outside of `ranges`.

    Outside of a file's map the advice would erase what is there.
    """
    first, last = view.ctypes.data, view.ctypes.data + view.nbytes
    at = bisect_right(ranges, (first, sys.maxsize)) - 1
    if at < 0 or last > ranges[at][1]:
        return 0, 0
    first, last = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
    return first, max(last - first, 0)


def _mapped_files() -> list[tuple[int, int]]:
    """Return (start, end) of the address ranges of files that this process has mapped and may only read, ascending."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.split(maxsplit=5)  # range, permissions, offset, device, inode, path
        if len(fields) == 6 and fields[1].startswith("r-") and fields[5].startswith("/") and fields[4] != "0":
            start, end = (int(edge, 16) for edge in fields[0].split("-"))
            found.append((start, end))
    return sorted(found)
