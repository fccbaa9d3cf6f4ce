"""The histogram says what NumPy says of the same durations, within the error that it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.latency import BIN_NS, FINE_BINS, FINE_NS, Histogram, Latencies, bounds, index_of

HOUR = 3_600_000_000_000
durations = st.one_of(
    st.integers(0, 2 * FINE_NS),
    st.integers(0, 10 * HOUR),
    st.sampled_from([0, FINE_NS - 1, FINE_NS]),
)


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def tolerance(value: float) -> float:
    return BIN_NS / 2 if value < FINE_NS else value * 0.004 + 1


@given(st.lists(durations, min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_are_numpys_within_the_promised_error(values: list[int], q: float) -> None:
    low, high = (
        # where q falls between two ranks, either may be right in floating point
        float(np.percentile(values, min(max(q + step, 0), 100), method="inverted_cdf"))
        for step in (-1e-9, 1e-9)
    )
    assert low - tolerance(low) <= filled(values).percentile(q) <= high + tolerance(high)


@given(st.lists(durations, min_size=1, max_size=200))
def test_count_mean_and_maximum(values: list[int]) -> None:
    histogram = filled(values)
    longest = max(values)
    assert histogram.count == len(values)
    mean = float(np.mean(values))
    assert histogram.mean == pytest.approx(mean, abs=mean * 0.004 + BIN_NS / 2)
    if longest >= FINE_NS:
        assert histogram.max == longest
    else:
        assert longest < histogram.max <= longest + BIN_NS


@given(st.lists(durations, max_size=100), st.lists(durations, max_size=100))
def test_merged_is_as_if_counted_together(left: list[int], right: list[int]) -> None:
    merged = filled(left)
    merged.merge(filled(right))
    assert merged.summary() == filled(left + right).summary()


@given(st.integers(0, 1 << 63))
def test_every_duration_lies_in_its_bin(ns: int) -> None:
    low, beyond = bounds(index_of(ns))
    assert low <= ns < beyond
    assert beyond - low <= max(BIN_NS, low / 128 + 1)
    assert index_of(beyond) == index_of(ns) + 1
    assert index_of(beyond - 1) == index_of(ns)


def test_empty_histogram_says_nothing() -> None:
    assert Histogram().summary() == Latencies(0, 0.0, 0, 0, 0, 0, 0)


def test_summary_of_a_known_distribution() -> None:
    summary = filled([10_000 * i + 5_000 for i in range(1000)]).summary()
    assert summary.p50 == 4_995_000
    assert summary.p90 == 8_995_000
    assert summary.p99 == 9_895_000
    assert summary.p999 == 9_985_000
    assert summary.max == 10_000_000


def test_percentiles_never_exceed_the_maximum() -> None:
    summary = filled([FINE_NS]).summary()
    assert summary.p50 == summary.p999 == summary.max == FINE_NS


def test_negative_durations_are_counted_apart() -> None:
    histogram = filled([-5, -1, 7])
    assert histogram.negative == 2
    assert histogram.bins[0] == 3
    assert sum(histogram.bins) == 3


def test_inlined_counting_is_the_same_as_add() -> None:
    inlined, added = Histogram(), Histogram()
    fine = inlined.fine
    for ns in [0, 9_999, HOUR, 10_000, FINE_NS - 1, FINE_NS, FINE_NS + BIN_NS, -HOUR]:
        added.add(ns)
        try:
            fine[ns // BIN_NS] += 1.0
        except IndexError:
            inlined.add(ns)
    assert inlined.summary() == added.summary()


def test_reset_forgets_and_keeps_the_list() -> None:
    histogram = filled([1, FINE_NS * 9, -1])
    fine = histogram.fine
    histogram.reset()
    assert histogram.summary() == Latencies(0, 0.0, 0, 0, 0, 0, 0)
    assert histogram.negative == 0
    fine[3] += 1
    assert histogram.count == 1
    assert len(histogram.bins) == len(fine) == FINE_BINS


def test_hours_cost_few_bins() -> None:
    histogram = filled([10 * HOUR])
    assert len(histogram.bins) < FINE_BINS + 128 * math.log2(10 * HOUR / FINE_NS) + 128
