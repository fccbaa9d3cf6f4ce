"""A market maker: quotes both sides of a USD-M symbol around the best bid and offer of a store.

python market_maker.py SOCKET STORE SYMBOL SECONDS, beside a gateway that runs market data (STORE)
and trading (SOCKET). Whatever ends the strategy, the gateway cancels its orders.
"""

import sys
import time
from decimal import Decimal
from typing import Any

from k4.core import trading
from k4.core.records import Bookticker
from k4.core.shm import ShmMdReader
from k4.core.trading import AccountType, Direction, NewOrder, OrderType
from k4.td import TdClient

TICK, SIZE, MOST = Decimal("0.1"), Decimal("0.010"), Decimal("0.050")
EDGE, NEAR, PAUSE = 5 * TICK, 3 * TICK, 0.1  # from the best price; close enough; seconds
KIND: Any = {"account_type": AccountType.UBASE, "order_type": OrderType.POST_ONLY, "quantity": SIZE}
BUY, SELL = Direction.BUY, Direction.SELL
Quotes = dict[Direction, trading.OrderUpdate]


def main(socket: str, store: str, symbol: str, seconds: float) -> None:
    position, fills, quotes, end = Decimal(0), 0, Quotes(), time.monotonic() + seconds
    td = TdClient(socket, "market-maker", cancel_on_disconnect=True, events=True)
    with td, ShmMdReader(store) as market:
        while time.monotonic() < end:
            for event in td.events(timeout=PAUSE):
                if isinstance(event, trading.Filled) and event.fill.symbol == symbol:
                    bought = event.fill.direction is BUY
                    position += event.fill.quantity if bought else -event.fill.quantity
                    fills += 1
                elif isinstance(event, trading.OrderChanged) and event.update.status.final:
                    mine = quotes.get(event.update.direction)
                    if mine and mine.client_order_id == event.update.client_order_id:
                        del quotes[mine.direction]
            top = market.latest(symbol)
            if isinstance(top, Bookticker) and top.bid_price and top.ask_price:
                bid, ask = Decimal(str(top.bid_price)) - EDGE, Decimal(str(top.ask_price)) + EDGE
                quote(td, quotes, symbol, BUY, bid if position < MOST else None)
                quote(td, quotes, symbol, SELL, ask if position > -MOST else None)
    print(f"{fills} fills, position {position}")


def quote(td: TdClient, my: Quotes, symbol: str, side: Direction, price: Decimal | None) -> None:
    """Have one order of that side at about that price, or none where price is None."""
    try:
        if side in my and (price is None or abs(my[side].price - price) > NEAR):
            td.cancel_order(my.pop(side).client_order_id)
        if side not in my and price is not None:
            my[side] = td.insert_order(NewOrder(symbol=symbol, direction=side, price=price, **KIND))
    except (trading.VenueRefused, trading.NotSent) as error:  # filled first, or it would have taken
        print(f"{side}: {error.code} {error.message}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
