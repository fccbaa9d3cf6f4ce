"""A child process that dies by SIGKILL at a named point of an order's way.

    python journal_killpoints.py JOURNAL POINT

The venue is a file: `sent` is appended to it when the first byte would leave.
"""

from __future__ import annotations

import os
import signal
import sys
from decimal import Decimal

from k4.core.trading import AccountType, Direction, Fill, NewOrder, OrderStatus, OrderType
from k4.td import state as states
from k4.td.journal import Journal
from k4.td.state import CANCEL, PLACE
from k4.td.venue import Report

POINTS = (
    "before-intent",
    "after-intent",
    "after-send",
    "after-ack",
    "after-fill",
    "after-cancel-intent",
    "after-cancel-send",
    "after-cancel-ack",
)


def reach(point: str, wanted: str) -> None:
    if point == wanted:
        os.kill(os.getpid(), signal.SIGKILL)


def send(path: str, what: str) -> None:
    with open(path + ".sent", "a", encoding="ascii") as file:
        file.write(what + "\n")


def report(status: OrderStatus, executed: str, *fills: Fill) -> Report:
    return Report(
        symbol="BTCUSDT",
        client_order_id="k4-1",
        order_id="7",
        status=status,
        quantity=Decimal("1E-7"),
        price=Decimal("100.10"),
        executed=Decimal(executed),
        time_us=5,
        fills=fills,
    )


def run(path: str, wanted: str) -> None:
    journal = Journal(path)
    order = NewOrder(
        symbol="BTCUSDT",
        account_type=AccountType.SPOT,
        direction=Direction.BUY,
        order_type=OrderType.GTC,
        quantity=Decimal("1E-7"),
        price=Decimal("100.10"),
        client_order_id="k4-1",
    )
    reach("before-intent", wanted)
    state = states.intend(order, 1)
    journal.intend_place(state, "mm1", True)
    reach("after-intent", wanted)
    send(path, "place")
    reach("after-send", wanted)
    state = states.hear(states.settle(state, PLACE), report(OrderStatus.NEW, "0"))
    journal.save(state)
    reach("after-ack", wanted)
    fill = Fill(
        symbol="BTCUSDT",
        account_type=AccountType.SPOT,
        direction=Direction.BUY,
        client_order_id="k4-1",
        order_id="7",
        trade_id="9",
        price=Decimal("100.10"),
        quantity=Decimal("0.00000005"),
        trade_time_us=6,
    )
    state = states.hear(state, report(OrderStatus.PARTIALLY_FILLED, "0.00000005", fill))
    journal.save(state, [fill])
    reach("after-fill", wanted)
    seq = journal.intend(state, "cancel", {}, 7)
    state = states.ask(state, CANCEL)
    reach("after-cancel-intent", wanted)
    send(path, "cancel")
    reach("after-cancel-send", wanted)
    journal.outcome(seq, "done")
    state = states.hear(states.settle(state, CANCEL), report(OrderStatus.CANCELED, "0.00000005"))
    journal.save(state)
    reach("after-cancel-ack", wanted)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
