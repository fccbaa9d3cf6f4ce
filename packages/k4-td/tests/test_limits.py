"""Rate limits kept on this side: windows, shares, shared pools, and what the venue reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.td.exchanges.binance.protocol import Lane
from k4.td.limits import ORDERS, RAW, WEIGHT, Limiter, Window, header_counts

WINDOWS = (
    Window(kind=WEIGHT, seconds=60, limit=100),
    Window(kind=ORDERS, seconds=10, limit=5),
)
NOW = 600.0  # the beginning of both windows


def send(limiter: Limiter, lane: Lane, weight: int, orders: int, now: float) -> bool:
    if limiter.wait(lane, weight, orders, now)[0] > 0:
        return False
    limiter.settle(limiter.take(weight, orders, now))
    return True


def test_orders_stop_at_the_limit_and_go_on_in_the_next_window() -> None:
    limiter = Limiter(WINDOWS)
    assert [send(limiter, Lane.ORDER, 0, 1, NOW) for _ in range(6)] == [True] * 5 + [False]
    wait, cause = limiter.wait(Lane.ORDER, 0, 1, NOW + 4)
    assert (wait, cause) == (6.0, "orders_10s")
    assert send(limiter, Lane.CANCEL, 1, 0, NOW + 4)
    assert send(limiter, Lane.ORDER, 0, 1, NOW + 10)


def test_queries_stop_before_orders_and_orders_before_cancels() -> None:
    limiter = Limiter((Window(kind=WEIGHT, seconds=60, limit=100),))
    sent = {lane: 0 for lane in (Lane.QUERY, Lane.ORDER, Lane.CANCEL)}
    for lane in sent:
        while send(limiter, lane, 1, 0, NOW):
            sent[lane] += 1
    assert sent == {Lane.QUERY: 80, Lane.ORDER: 15, Lane.CANCEL: 5}


def test_what_the_venue_reports_overrules_and_requests_under_way_are_added() -> None:
    limiter = Limiter(WINDOWS)
    first = limiter.take(1, 1, NOW)
    limiter.take(1, 1, NOW)  # under way
    limiter.settle(first)
    limiter.seen(ORDERS, 10, 3, NOW)
    assert limiter.usage()["orders_10s"] == (4, 5)
    assert limiter.wait(Lane.ORDER, 0, 1, NOW)[0] == 0
    limiter.seen(ORDERS, 10, 0, NOW)  # fills gave credit back
    assert limiter.usage()["orders_10s"] == (1, 5)


def test_limits_that_the_venue_names_in_answers_are_learnt() -> None:
    limiter = Limiter(())
    limiter.seen(ORDERS, 10, 1, NOW)
    assert limiter.usage() == {}
    limiter.seen(ORDERS, 10, 2, NOW, limit=2)
    assert limiter.wait(Lane.ORDER, 0, 1, NOW)[0] == 10.0
    limiter.learn([Window(kind=ORDERS, seconds=10, limit=9)])
    assert limiter.wait(Lane.ORDER, 0, 1, NOW)[0] == 0


def test_a_ban_stops_everything_and_minus_1015_orders_alone() -> None:
    limiter = Limiter(WINDOWS)
    limiter.block(7.0, NOW, orders_only=True)
    assert limiter.wait(Lane.ORDER, 0, 1, NOW) == (7.0, "orders")
    assert limiter.wait(Lane.CANCEL, 1, 0, NOW)[0] == 0
    limiter.block(30.0, NOW)
    assert limiter.wait(Lane.CANCEL, 1, 0, NOW) == (30.0, "venue")
    assert limiter.wait(Lane.CANCEL, 1, 0, NOW + 30)[0] == 0


def test_a_request_heavier_than_the_limit_is_left_to_the_venue_when_nothing_else_was_sent() -> None:
    limiter = Limiter((Window(kind=WEIGHT, seconds=60, limit=10),))
    assert send(limiter, Lane.QUERY, 40, 0, NOW)
    assert not send(limiter, Lane.QUERY, 1, 0, NOW)


def test_raw_requests_count_one_each() -> None:
    limiter = Limiter((Window(kind=RAW, seconds=60, limit=2),))
    assert [send(limiter, Lane.QUERY, 50, 0, NOW) for _ in range(3)] == [True, True, False]


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Lane)), st.integers(0, 9), st.floats(0, 3)), max_size=200
    )
)
def test_no_aligned_window_ever_holds_more_than_the_limit(
    requests: list[tuple[Lane, int, float]],
) -> None:
    limiter = Limiter(WINDOWS)
    now = NOW
    used: dict[int, int] = {}
    for lane, weight, pause in requests:
        now += pause
        orders = int(lane is Lane.ORDER)
        if send(limiter, lane, weight, orders, now):
            window = int(now // 60)
            used[window] = used.get(window, 0) + weight
    assert all(weight <= 100 for weight in used.values())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("X-MBX-USED-WEIGHT-1M", "17", [(WEIGHT, 60, 17)]),
        ("x-mbx-order-count-10s", "3", [(ORDERS, 10, 3)]),
        ("X-MBX-ORDER-COUNT-1D", "9", [(ORDERS, 86400, 9)]),
        ("X-MBX-USED-WEIGHT", "17", []),
        ("X-MBX-USED-WEIGHT-1X", "17", []),
        ("X-MBX-USED-WEIGHT-M", "17", []),
        ("X-MBX-USED-WEIGHT-1M", "many", []),
        ("Content-Type", "1", []),
    ],
)
def test_headers(name: str, value: str, expected: list[tuple[str, int, int]]) -> None:
    assert header_counts([(name, value)]) == expected


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=10))))
def test_any_headers_are_read_without_an_error(headers: list[tuple[str, str]]) -> None:
    header_counts([(f"X-MBX-USED-WEIGHT-{name}", value) for name, value in headers])
