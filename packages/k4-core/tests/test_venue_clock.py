"""The venue's clock offset: always within its error bar, and no age below zero."""

import random

from hypothesis import given
from hypothesis import strategies as st

from k4.core.venue_clock import MIN_FRAMES, WINDOW_NS, VenueClock, differences

SECOND = 1_000_000_000


@given(
    offset_us=st.integers(-5_000_000, 5_000_000),
    seed=st.integers(0, 1000),
    there=st.integers(50, 20_000),
    back=st.integers(50, 20_000),
    whole_ms=st.booleans(),
)
def test_the_truth_lies_within_the_error(
    offset_us: int, seed: int, there: int, back: int, whole_ms: bool
) -> None:
    rng, clock, recent = random.Random(seed), VenueClock(), differences()
    ages = []
    for i in range(300):
        local = 1_790_000_000_000_000 + i * 1337
        age = there + int(rng.expovariate(1 / 500))
        ages.append(age)
        venue_us = local - age + offset_us
        venue_us -= venue_us % 1000 if whole_ms else 0
        recent.append(clock.frame(venue_us, local, i))
        clock.round_trip((there + back + int(rng.expovariate(1 / 300))) * 1000, i)
    found = clock.age(recent)
    assert found is not None
    slack = min(ages) - there + 1  # the best frame was not quite the fastest possible
    assert abs(found.offset_us - offset_us) <= found.error_us + slack
    truth = sorted(ages)[150]
    assert abs(found.p50_us - truth) <= found.error_us + slack + (1000 if whole_ms else 0)
    assert 0 <= found.p50_us <= found.p99_us


def test_the_best_of_all_lines_is_every_lines_measure() -> None:
    """A line that is always 5 ms behind is 5 ms older, and not the measure of itself."""
    clock, quick, slow = VenueClock(), differences(), differences()
    for i in range(MIN_FRAMES):
        made = i * 10_001
        quick.append(clock.frame(made, made + 300, i))
        slow.append(clock.frame(made, made + 5_300, i))
    clock.round_trip(400_000, 0)
    first, second = clock.age(quick), clock.age(slow)
    assert first is not None
    assert second is not None
    assert second.p50_us - first.p50_us == 5_000
    assert first.offset_us == second.offset_us
    assert first.error_us == second.error_us == 201


def test_without_a_round_trip_or_many_frames_the_error_is_unknown() -> None:
    clock, recent = VenueClock(), differences()
    assert clock.age(recent) is None
    for i in range(MIN_FRAMES):
        recent.append(clock.frame(1001, 900, i))
        found = clock.age(recent)
        assert found is not None
        assert (found.p50_us, found.error_us) == (0, -1)
    clock.round_trip(2_000, 0)
    known = clock.age(recent)
    assert known is not None
    assert known.error_us == 2
    other = VenueClock()
    other.round_trip(2_000, 0)
    unknown = other.age([other.frame(1001, 900, 0)])
    assert unknown is not None
    assert unknown.error_us == -1


def test_minima_follow_a_clock_that_was_set() -> None:
    clock, recent = VenueClock(), differences()
    clock.frame(1, 101, 0)
    for i in range(1, 5):
        recent.append(clock.frame(1, 5_000_001, i * (WINDOW_NS + SECOND)))
    found = clock.age(recent)
    assert found is not None
    assert found.offset_us == -5_000_000
