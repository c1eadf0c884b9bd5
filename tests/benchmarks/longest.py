"""The longest text whose added memory stays below a limit (the paper's Figure 7), from few measurements."""

import math
from collections.abc import Callable


PRECISION = 1.05
TRIALS = 8


def longest(measure: Callable[[int], int | None], limit: int, start: int) -> tuple[int, list[tuple[int, int | None]]]:
    """
    Double the length once, then go where the growth of the last two measurements points.

    Args:
        measure: added bytes at a length, `None` where the machine's memory did not suffice.
        limit: bytes.
        start: a length that is well below the limit.

    Returns:
        The longest measured length within the limit (0: none), at most 5 % below the one at which memory is expected
        to pass it, and the measurements.
    """
    trials: list[tuple[int, int | None]] = []
    length = start
    while length is not None and len(trials) < TRIALS:
        trials.append((length, measure(length)))
        length = next_length(trials, limit)
    return max((length for length, added in trials if fits(added, limit)), default=0), trials


def next_length(trials: list[tuple[int, int | None]], limit: int) -> int | None:
    """Where to measure next; `None` when the longest length that fits is known well enough."""
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
    exponent = min(max(growth, 0.5), 3.0)  # of a short text little is added, or noise
    expected = low * (limit / max(added, 1)) ** (1 / exponent)
    if expected <= low * PRECISION:
        return None
    if expected >= above:  # the growth is not what it seemed
        return math.isqrt(low * above)
    # Just below what is expected, so that it fits; no more than twice as long, as an estimate from afar may be far
    # too high, and the machine has no such memory.
    return min(int(expected * (1 - (PRECISION - 1) / 2)), 2 * low)


def fits(added: int | None, limit: int) -> bool:
    return added is not None and added <= limit


def extrapolated(shorter: tuple[int, int], longer: tuple[int, int], limit: int, cap: int) -> int:
    """The length, at most `cap`, at which memory reaches the limit on the line through two (length, bytes)."""
    slope = (longer[1] - shorter[1]) / (longer[0] - shorter[0])
    return cap if slope <= 0 else min(cap, int(longer[0] + (limit - longer[1]) / slope))
