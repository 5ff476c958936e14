"""Peak memory of a stretch of work."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


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
