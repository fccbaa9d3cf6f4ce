"""Waiting: requests, and the venue's clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.td.pending import Pending
from k4.td.server_clock import ServerClock


def test_a_request_is_answered_once() -> None:
    pending: Pending[str] = Pending()
    pending.add("1", 10.0, "a")
    with pytest.raises(KeyError):
        pending.add("1", 10.0, "b")
    assert (pending.take("1"), pending.take("1"), pending.strays) == ("a", None, 1)


def test_deadlines_expire_in_order_and_the_rest_waits() -> None:
    pending: Pending[str] = Pending()
    for number, deadline in enumerate((3.0, 1.0, 2.0)):
        pending.add(str(number), deadline, f"w{number}")
    assert pending.expired(2.0) == [("1", "w1"), ("2", "w2")]
    assert pending.expired(2.5) == []
    assert pending.drain() == [("0", "w0")]
    assert len(pending) == 0


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "expire"]), st.integers(0, 9))))
def test_every_waiter_leaves_exactly_once(steps: list[tuple[str, int]]) -> None:
    pending: Pending[int] = Pending()
    added: list[tuple[str, int]] = []
    left: list[tuple[str, int]] = []
    now = 0.0
    for number, (what, value) in enumerate(steps):
        now += 1
        if what == "add" and all(key != str(value) for key, _ in added if key not in dict(left)):
            try:
                pending.add(str(value), now + 3, number)
            except KeyError:
                continue
            added.append((str(value), number))
        elif what == "take" and (waiter := pending.take(str(value))) is not None:
            left.append((str(value), waiter))
        elif what == "expire":
            left += pending.expired(now)
    left += pending.drain()
    assert sorted(left) == sorted(added)


def test_the_tightest_sample_gives_the_offset_and_its_error() -> None:
    server = ServerClock()
    assert not server.known
    second = 1_000_000_000
    server.sample(10 * second, 12 * second, 16_000)  # round trip 2 s: offset 5 s
    server.sample(20 * second, 20 * second + 2_000_000, 25_001)
    server.sample(30 * second, 31 * second, 30_000)
    assert server.known
    assert abs(server.offset_ns - 5 * second) <= server.error_ns
    assert server.error_ns == 1_500_000
    assert server.milliseconds(40 * second) == 45_000
    server.begin()
    server.sample(40 * second, 40 * second + 4_000_000, 43_002)
    assert server.milliseconds(40 * second) == 43_000


@given(st.integers(-10_000, 10_000), st.integers(0, 900), st.integers(0, 900))
def test_the_truth_lies_within_the_error_bar(offset_ms: int, out: int, back: int) -> None:
    """Whatever part of the round trip each way takes."""
    server = ServerClock()
    sent = 10**15
    arrival = sent + out * 1_000_000
    server.sample(sent, arrival + back * 1_000_000, (arrival // 1_000_000) + offset_ms)
    assert abs(server.offset_ns - offset_ms * 1_000_000) <= server.error_ns + 1
