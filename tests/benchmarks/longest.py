"""Find the longest text whose added memory stays below a limit (the paper's Figure 7), with few measurements."""

import math
from collections.abc import Callable


PRECISION = 1.05
TRIALS = 8


def longest(measure: Callable[[int], int | None], limit: int, start: int) -> tuple[int, list[tuple[int, int | None]]]:
    """
    Double the length once, then extrapolate from the last two measurements.

    Args:
        measure: added bytes at a length, `None` if the machine is out of memory.
        limit: bytes.
        start: a length that is well below the limit.

    Returns:
        The longest measured length within the limit (0: none), at most 5 % below the length at which memory is
        expected to exceed it; all measurements.
    """
    trials: list[tuple[int, int | None]] = []
    length = start
    while length is not None and len(trials) < TRIALS:
        trials.append((length, measure(length)))
        length = next_length(trials, limit)
    return max((length for length, added in trials if fits(added, limit)), default=0), trials


def next_length(trials: list[tuple[int, int | None]], limit: int) -> int | None:
    """The next length to measure; `None` once the longest one is known to 5 %."""
    inside = sorted(trial for trial in trials if fits(trial[1], limit))
    above = min((length for length, added in trials if not fits(added, limit)), default=math.inf)
    if not inside:
        return trials[-1][0] // 2 or None
    low, added = inside[-1]
    if above <= low * PRECISION:
        return None
    if len(inside) == 1:
        return 2 * low if above == math.inf else math.isqrt(low * above)
    before, added_before = inside[-2]
    growth = math.log(max(added, 1) / max(added_before, 1)) / math.log(low / before)
    exponent = min(max(growth, 0.5), 3.0)  # short texts add little memory, or noise
    expected = low * (limit / max(added, 1)) ** (1 / exponent)
    if expected <= low * PRECISION:
        return None
    if expected >= above:  # the extrapolation was wrong
        return math.isqrt(low * above)
    # Just below the expected length, so that it fits. At most twice the last length, as a distant extrapolation may
    # exceed the machine's memory by far.
    return min(int(expected * (1 - (PRECISION - 1) / 2)), 2 * low)


def fits(added: int | None, limit: int) -> bool:
    return added is not None and added <= limit


def extrapolated(shorter: tuple[int, int], longer: tuple[int, int], limit: int, cap: int) -> int:
    """The length, at most `cap`, at which the line through two (length, bytes) reaches the limit."""
    slope = (longer[1] - shorter[1]) / (longer[0] - shorter[0])
    return cap if slope <= 0 else min(cap, int(longer[0] + (limit - longer[1]) / slope))
