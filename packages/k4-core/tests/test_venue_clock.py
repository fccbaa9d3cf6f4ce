"""The venue's clock offset: always within its error bar, and no age below zero."""

import random

from hypothesis import given
from hypothesis import strategies as st

from k4.core.venue_clock import WINDOW_NS, VenueClock

SECOND = 1_000_000_000


@given(
    offset_us=st.integers(-5_000_000, 5_000_000),
    seed=st.integers(0, 1000),
    there=st.integers(50, 20_000),
    back=st.integers(50, 20_000),
)
def test_the_truth_lies_within_the_error(offset_us: int, seed: int, there: int, back: int) -> None:
    rng, clock = random.Random(seed), VenueClock()
    ages = []
    for i in range(300):
        local = 1_790_000_000_000_000 + i * 1000
        age = there + int(rng.expovariate(1 / 500))
        ages.append(age)
        clock.frame(local - age + offset_us, local, i)
        clock.round_trip((there + back + int(rng.expovariate(1 / 300))) * 1000, i)
    found = clock.age()
    assert found is not None
    slack = min(ages) - there + 1  # the best frame was not quite the fastest possible
    assert abs(found.offset_us - offset_us) <= found.error_us + slack
    truth = sorted(ages)[150]
    assert abs(found.p50_us - truth) <= found.error_us + slack
    assert 0 <= found.p50_us <= found.p99_us


def test_without_a_round_trip_the_error_is_unknown() -> None:
    clock = VenueClock()
    assert clock.age() is None
    clock.frame(1000, 900, 0)
    found = clock.age()
    assert found is not None
    assert (found.p50_us, found.error_us) == (0, -1)


def test_minima_follow_a_clock_that_was_set() -> None:
    clock = VenueClock()
    clock.frame(0, 100, 0)
    for i in range(1, 5):
        clock.frame(0, 5_000_000, i * (WINDOW_NS + SECOND))
    found = clock.age()
    assert found is not None
    assert found.offset_us == -5_000_000
