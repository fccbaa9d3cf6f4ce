"""The small strategy of `demo --trading`: quotes both sides of one futures symbol.

It shows what a strategy is made of (quotes from shared memory, orders through the order gateway,
events back) and keeps its books, so that they can be compared with the venue's. It is no advice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

from k4.core.clock import Clock
from k4.core.records import Bookticker
from k4.core.shm import ShmMdReader
from k4.core.trading import (
    ZERO,
    AccountType,
    Direction,
    Event,
    Fill,
    Filled,
    ForeignOrder,
    NewOrder,
    NotSent,
    OrderChanged,
    OrderType,
    OrderUpdate,
    PositionChanged,
    VenueRefused,
)
from k4.core.waiting import sleep
from k4.td import AsyncTdClient

PAUSE_SEC = 0.1
TOLD_SEC = 5.0
TICK = Decimal("0.1")
NEAR = 3 * TICK  # a quote may lag behind the best price by so much
SIZE, MOST = Decimal("0.010"), Decimal("0.050")


class Quoter:
    """Keeps one post-only order at the best bid and one at the best offer, within a position."""

    def __init__(
        self,
        td: AsyncTdClient,
        market: ShmMdReader,
        account: AccountType,
        symbol: str,
        clock: Clock,
    ) -> None:
        self.position = ZERO
        self.orders: dict[str, OrderUpdate] = {}
        self.fills: dict[str, Fill] = {}
        self.refused: Counter[str] = Counter()
        self._td = td
        self._market = market
        self._account = account
        self._symbol = symbol
        self._clock = clock
        self._quotes: dict[Direction, str] = {}

    @property
    def open(self) -> list[OrderUpdate]:
        return [order for order in self.orders.values() if not order.status.final]

    async def run(self, until: Callable[[], bool]) -> None:
        """Quote until `until` says so, then cancel everything. Raises GatewayError."""
        listening = asyncio.ensure_future(self._listen())
        try:
            while not until() and not listening.done():
                await self._requote()
                await sleep(self._clock, PAUSE_SEC)
            for update in await self._td.cancel_all_orders():
                self._note(update)
            await self._all_told()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _all_told(self) -> None:
        """Every execution that the orders speak of was told as a fill, or is late for good."""
        deadline = self._clock.monotonic() + TOLD_SEC
        while self._clock.monotonic() < deadline:
            filled = sum((order.filled_quantity for order in self.orders.values()), ZERO)
            if filled == sum((fill.quantity for fill in self.fills.values()), ZERO):
                return
            await sleep(self._clock, PAUSE_SEC)

    async def _listen(self) -> None:
        async for event in self._td.events():
            self._heard(event)

    def _heard(self, event: Event) -> None:
        match event:
            case OrderChanged(update=update) | ForeignOrder(update=update):
                self._note(update)
            case Filled(fill=fill):
                self.fills[fill.trade_id] = fill
            case PositionChanged(position=position) if position.symbol == self._symbol:
                self.position = position.quantity
            case _:
                return

    def _note(self, update: OrderUpdate) -> None:
        known = self.orders.get(update.client_order_id)
        if known is not None and known.status.final and not update.status.final:
            return  # an answer that an event overtook
        self.orders[update.client_order_id] = update

    async def _requote(self) -> None:
        top = self._market.latest(self._symbol)
        if isinstance(top, Bookticker) and top.bid_price and top.ask_price:
            await asyncio.gather(
                self._quote(Direction.BUY, top.bid_price, self.position < MOST),
                self._quote(Direction.SELL, top.ask_price, self.position > -MOST),
            )

    async def _quote(self, side: Direction, best: float, wanted: bool) -> None:
        price = Decimal(repr(best)).quantize(TICK)
        known = self.orders.get(self._quotes.get(side, ""))
        try:
            if known is not None and not known.status.final:
                if wanted and abs(known.price - price) <= NEAR:
                    return
                self._note(await self._td.cancel_order(known.client_order_id))
            if wanted:
                await self._place(side, price)
        except (NotSent, VenueRefused) as error:  # filled first, would have taken, or a limit
            self.refused[error.code] += 1
            if error.order is not None:
                self._note(error.order)

    async def _place(self, side: Direction, price: Decimal) -> None:
        order = NewOrder(
            symbol=self._symbol,
            account_type=self._account,
            direction=side,
            order_type=OrderType.POST_ONLY,
            quantity=SIZE,
            price=price,
        )
        update = await self._td.insert_order(order)
        self._note(update)
        self._quotes[side] = update.client_order_id
