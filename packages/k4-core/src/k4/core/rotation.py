"""Which line is really slower than its siblings? A function of samples, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import msgspec

from k4.core.latency import bounds

MIN_SAMPLES = 100
SIGMAS = 4.0
MIN_GAP_NS = 50_000.0  # a difference that small is not worth a new connection


class Sample(msgspec.Struct, frozen=True):
    """How far one line was behind the winner: of `count` updates, mean and variance in ns and ns².

    An update that the line won itself counts as 0.
    """

    count: int
    mean: float
    variance: float


def tells(sample: Sample) -> bool:
    """Whether a sample is large enough to be compared."""
    return sample.count >= MIN_SAMPLES


def slowest(samples: Sequence[Sample]) -> int | None:
    """Position of the line that is slower than every other by a margin that chance does not
    explain: more than four standard errors of the difference and 50 µs, which may come from the
    order in which a venue serves its connections. None where there is none.
    """
    if len(samples) < 2 or not all(map(tells, samples)):
        return None
    order = sorted(range(len(samples)), key=lambda i: samples[i].mean)
    worst, next_worst = samples[order[-1]], samples[order[-2]]
    gap = worst.mean - next_worst.mean
    error = sqrt(worst.variance / worst.count + next_worst.variance / next_worst.count)
    return order[-1] if gap > max(MIN_GAP_NS, SIGMAS * error) else None


def sample(wins: int, bins: Sequence[float], before: Sequence[float]) -> Sample:
    """The sample of a line from the bins of its lag histogram, now and when the sample began."""
    count, total, squares = wins, 0.0, 0.0
    known = len(before)
    for i, n in enumerate(bins):
        if i < known:
            n -= before[i]
        if n:
            low, high = bounds(i)
            middle = (low + high) / 2
            count += int(n)
            total += n * middle
            squares += n * middle * middle
    if not count:
        return Sample(0, 0.0, 0.0)
    mean = total / count
    return Sample(count, mean, max(0.0, squares / count - mean * mean))
