"""Time, peak memory and the matrix-product rate of the process that imports this. Needs torch alone."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


STATUS = Path("/proc/self/status")
PRODUCT_SIZE = {"cpu": 3072, "cuda": 8192}
SLOW = 25.0  # seconds of a run from which one run is enough


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def median_seconds(run: Callable[[], object], device: torch.device, runs: int) -> tuple[float, int, object]:
    """The median of up to `runs` runs, how many there were (a slow one is not repeated), and the last one's result."""
    times = []
    while len(times) < runs and not (times and times[0] > SLOW):
        result = None  # the memory of one run is not the next one's
        synchronize(device)
        start = time.perf_counter()
        result = run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times), len(times), result


def product_rate(device: torch.device, dtype: torch.dtype, runs: int) -> float:
    """FLOP/s of a product of two large square matrices, the median of several."""
    size = PRODUCT_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    left @ right  # warm-up
    return 2 * size**3 / median_seconds(lambda: left @ right, device, runs)[0]


class PeakMemory:
    """Bytes by which the process (on an accelerator: its allocator) grows past the peak that it starts from."""

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
        if STATUS.exists():  # Linux: ru_maxrss would begin at the peak of the process that started this one
            (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
