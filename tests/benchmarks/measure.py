"""Measure time, peak memory and the rate of matrix products in this process. Needs only torch."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


STATUS = Path("/proc/self/status")
PRODUCT_SIZE = {"cpu": 3072, "cuda": 8192}
SLOW = 25.0  # seconds; a run that takes longer is not repeated


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def median_seconds(run: Callable[[], object], device: torch.device, runs: int) -> tuple[float, int, object]:
    """The median time, the number of runs (at most `runs`; one if it is slow), and the last result."""
    times = []
    while len(times) < runs and not (times and times[0] > SLOW):
        result = None  # free the memory before the next run
        synchronize(device)
        start = time.perf_counter()
        result = run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(times), result


def product_rate(device: torch.device, dtype: torch.dtype, runs: int) -> float:
    """FLOP/s of the product of two large square matrices, by the median time of several."""
    size = PRODUCT_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    left @ right  # warm-up
    return 2 * size**3 / median_seconds(lambda: left @ right, device, runs)[0]


class PeakMemory:
    """The growth in bytes of the process's peak memory; on an accelerator, of its allocator's peak."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.before = self._peak()

    def added(self) -> int:
        return self._peak() - self.before

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        if STATUS.exists():  # on Linux ru_maxrss starts from the peak of the parent process
            (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
