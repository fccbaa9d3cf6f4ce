"""A journal whose files cannot grow: every write must fail as a JournalError, and work again later.

python journal_full.py JOURNAL
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from decimal import Decimal

import pytest

from k4.core.trading import (
    AccountType,
    Direction,
    Fill,
    JournalError,
    NewOrder,
    OrderType,
)
from k4.td import state as states
from k4.td.journal import Journal
from k4.td.state import OrderState

SPOT = AccountType.SPOT


def order(name: str) -> OrderState:
    wanted = NewOrder(
        symbol="BTCUSDT",
        account_type=SPOT,
        direction=Direction.BUY,
        order_type=OrderType.GTC,
        quantity=Decimal(3),
        price=Decimal(1),
        client_order_id=name,
    )
    return states.intend(wanted, 1)


FILL = Fill(
    symbol="BTCUSDT",
    account_type=SPOT,
    direction=Direction.BUY,
    client_order_id="a",
    order_id="7",
    trade_id="1",
    price=Decimal(1),
    quantity=Decimal(1),
)


def limit(size: int) -> None:
    """Files of this process grow to so many bytes and no further."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main(path: str) -> int:
    journal = Journal(path)
    mine = order("a")
    journal.intend_place(mine)
    limit(os.path.getsize(path + "-wal") + 100)
    writes: list[Callable[[], object]] = [
        lambda: journal.save(mine),
        lambda: journal.save(mine, [FILL]),
        lambda: journal.add_fills([FILL]),
        lambda: journal.advance(SPOT, {"BTCUSDT": 1}),
        lambda: journal.intend(mine, "cancel", {}, 1),
        lambda: journal.intend_replace(mine, order("b"), "", False),
        lambda: journal.intend_place(order("c")),
        lambda: journal.set_killed("x"),
    ]
    for write in writes:
        with pytest.raises(JournalError, match="free disk space"):
            write()
    limit(resource.RLIM_INFINITY)
    journal.save(mine, [FILL])
    journal.intend_place(order("c"))
    journal.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
