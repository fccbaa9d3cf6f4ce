"""Which line is slower, and by more than chance."""

import random

import pytest

from k4.core.latency import Histogram
from k4.core.rotation import Sample, sample, slowest


def line(mean_us: float, seed: int, count: int = 2000) -> Sample:
    rng, histogram = random.Random(seed), Histogram()
    for _ in range(count):
        histogram.add(int(rng.expovariate(1 / mean_us) * 1000))
    return sample(0, histogram.bins, [])


def test_the_slow_line_is_found() -> None:
    assert slowest([line(300, 1), line(900, 2), line(320, 3)]) == 1


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_slowness(seed: int) -> None:
    assert slowest([line(300, 3 * seed + i) for i in range(3)]) is None


def test_few_samples_prove_nothing() -> None:
    assert slowest([line(300, 1, 50), line(9000, 2, 50)]) is None
    assert slowest([line(300, 1)]) is None


def test_a_small_difference_is_not_worth_a_connection() -> None:
    assert slowest([Sample(10_000_000, 1000.0, 1.0), Sample(10_000_000, 9000.0, 1.0)]) is None


def test_a_sample_is_what_came_since_the_mark() -> None:
    histogram = Histogram()
    histogram.add(5_000_000)
    before = list(histogram.bins)
    histogram.add(1_000_000)
    histogram.add(1_000_000)
    found = sample(2, histogram.bins, before)
    assert found.count == 4
    assert found.mean == pytest.approx(500_000, rel=0.01)
    assert found.variance == pytest.approx(500_000**2, rel=0.03)
