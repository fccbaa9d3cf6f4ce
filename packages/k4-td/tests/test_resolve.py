"""When the venue's silence is an answer."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from k4.core.trading import AccountType, Direction, NewOrder, OrderStatus, OrderType
from k4.td import state as states
from k4.td.resolve import Inquiry, Verdict
from k4.td.state import CANCEL, PLACE
from k4.td.timing import Timing
from k4.td.venue import Report

TIMING = Timing()
ORDER = NewOrder(
    symbol="X",
    account_type=AccountType.UBASE,
    direction=Direction.SELL,
    order_type=OrderType.GTC,
    quantity=Decimal(1),
    price=Decimal(1),
    client_order_id="k4-1",
)
LOST = states.doubt(states.intend(ORDER, 0), PLACE, "timeout")
NEW = Report(
    symbol="X", client_order_id="k4-1", order_id="5", status=OrderStatus.NEW, quantity=Decimal(1)
)


def test_the_window_is_recv_window_and_ten_seconds_and_the_clock_error() -> None:
    assert Inquiry.begin(100.0, 5000.0, 0.25, TIMING).closes == 115.25


@given(st.floats(0, 200))
def test_not_placed_only_after_the_window_has_closed(asked: float) -> None:
    inquiry = Inquiry.begin(0.0, 5000.0, 0.0, TIMING)
    verdict = inquiry.judge(LOST, asked, found=False)
    assert verdict is (Verdict.NOT_PLACED if asked >= 15.0 else Verdict.AGAIN)


def test_any_trace_settles_the_placing_but_not_a_cancel() -> None:
    inquiry = Inquiry.begin(0.0, 5000.0, 0.0, TIMING)
    placed = states.hear(LOST, NEW)
    assert inquiry.judge(placed, 1.0, found=True) is Verdict.SETTLED
    canceling = states.doubt(placed, CANCEL, "lost")
    assert inquiry.judge(canceling, 1.0, found=True) is Verdict.AGAIN
    assert inquiry.judge(canceling, 15.0, found=True) is Verdict.SETTLED
    ended = states.hear(canceling, msgspec.structs.replace(NEW, status=OrderStatus.CANCELED))
    assert inquiry.judge(ended, 1.0, found=True) is Verdict.SETTLED


def test_an_order_that_was_there_and_is_not_found_is_gone_not_unplaced() -> None:
    inquiry = Inquiry.begin(0.0, 5000.0, 0.0, TIMING)
    canceling = states.doubt(states.hear(LOST, NEW), CANCEL, "lost")
    assert inquiry.judge(canceling, 20.0, found=False) is Verdict.GONE


def test_queries_come_at_growing_delays() -> None:
    delays = [Inquiry.delay(attempt, TIMING) for attempt in range(8)]
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert Inquiry.delay(10_000, TIMING) == 5.0
