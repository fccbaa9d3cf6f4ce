"""Price-time matching of one instrument: the accounts' orders beside the market's own. Pure.

Prices and sizes are integers (mantissas), so nothing is ever rounded. The market's liquidity lies
in the same queues as the accounts' orders: it is displaced from the back when the market cancels
and eaten from the front when somebody trades, so an order's place in the queue is kept.

What happens is told to a `Sink` while it happens, before the next order is looked at: the sink may
remove other orders meanwhile (a reduce-only order whose position is gone), and may set the taker's
`left` to 0 to end it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol

import msgspec

MARKET = ""
"""The owner of the simulated market's own liquidity."""


class Prevention(StrEnum):
    """Self-trade prevention, as the taker wants it. TRANSFER is between accounts of one group; an
    account that meets itself is decremented."""

    NONE = "NONE"
    EXPIRE_MAKER = "EXPIRE_MAKER"
    EXPIRE_TAKER = "EXPIRE_TAKER"
    EXPIRE_BOTH = "EXPIRE_BOTH"
    DECREMENT = "DECREMENT"
    TRANSFER = "TRANSFER"


class Resting(msgspec.Struct, eq=False):
    """An order as the book sees it. number: the order's id, 0 for the market's own. left: what is
    still to trade."""

    owner: str
    number: int
    buy: bool
    price: int
    left: int
    prevention: Prevention = Prevention.NONE


class Sink(Protocol):
    """Who hears of it."""

    def traded(self, maker: Resting, taker: Resting, price: int, size: int) -> None:
        """Both `left` are already reduced, and a finished maker is out of the book."""
        ...

    def prevented(
        self, maker: Resting, taker: Resting, size: int, maker_ends: bool, taker_ends: bool
    ) -> None:
        """Two orders of one owner met and did not trade. A maker that ends is out of the book; the
        `left` of one that ends is what did not trade."""
        ...


class Book:
    """Both sides of one instrument. `buy` names a side: True is the bids."""

    def __init__(self) -> None:
        self._queues: dict[tuple[bool, int], list[Resting]] = {}
        self._prices: dict[bool, list[int]] = {True: [], False: []}  # ascending

    # -- looking ----------------------------------------------------------------------------------

    def best(self, buy: bool) -> int | None:
        """The best price of a side, None while it is empty."""
        prices = self._prices[buy]
        if not prices:
            return None
        return prices[-1] if buy else prices[0]

    def levels(self, buy: bool) -> Iterator[tuple[int, int]]:
        """(price, size), best first."""
        prices = self._prices[buy]
        for price in reversed(prices) if buy else prices:
            yield price, sum(order.left for order in self._queues[buy, price])

    def queue(self, buy: bool, price: int) -> tuple[Resting, ...]:
        """Who waits at a price, first come first."""
        return tuple(self._queues.get((buy, price), ()))

    def crosses(self, buy: bool, price: int) -> bool:
        """Would an order at this price trade at once?"""
        best = self.best(not buy)
        return best is not None and _reaches(buy, price, best)

    def plan(self, taker: Resting, limit: int | None) -> list[tuple[int, int]]:
        """What `take` would trade now, as (price, size), self-trade prevention considered."""
        found: list[tuple[int, int]] = []
        left = taker.left
        prices = self._prices[not taker.buy]
        for price in prices if taker.buy else reversed(prices):
            if not _reaches(taker.buy, limit, price):
                break
            for maker in self._queues[not taker.buy, price]:
                size = min(maker.left, left)
                if not _same(maker, taker):
                    found.append((price, size))
                elif taker.prevention in (Prevention.EXPIRE_TAKER, Prevention.EXPIRE_BOTH):
                    return found
                elif taker.prevention is Prevention.EXPIRE_MAKER:
                    size = 0
                left -= size
                if not left:
                    return found
        return found

    # -- orders -----------------------------------------------------------------------------------

    def add(self, order: Resting) -> None:
        """Put an order at the end of its price's queue. It must not cross."""
        key = order.buy, order.price
        if key not in self._queues:
            self._queues[key] = []
            insort(self._prices[order.buy], order.price)
        self._queues[key].append(order)

    def remove(self, order: Resting) -> bool:
        """Take an order out; False when it is not in the book."""
        queue = self._queues.get((order.buy, order.price), [])
        if order not in queue:
            return False
        queue.remove(order)
        if not queue:
            self._drop(order.buy, order.price)
        return True

    def take(self, taker: Resting, limit: int | None, sink: Sink) -> None:
        """Trade `taker` against the other side, at `limit` or better (None: at any price). What is
        left over stays in `taker.left`, for the caller to rest or to expire."""
        while taker.left > 0:
            price = self.best(not taker.buy)
            if price is None or not _reaches(taker.buy, limit, price):
                return
            maker = self._queues[not taker.buy, price][0]
            if _same(maker, taker):
                if self._prevent(maker, taker, sink):
                    return
                continue
            size = min(maker.left, taker.left)
            maker.left -= size
            taker.left -= size
            if maker.left == 0:
                self.remove(maker)
            sink.traded(maker, taker, price, size)

    def _prevent(self, maker: Resting, taker: Resting, sink: Sink) -> bool:
        """Returns whether the taker ends."""
        mode = taker.prevention
        size = min(maker.left, taker.left)
        maker_ends = mode in (Prevention.EXPIRE_MAKER, Prevention.EXPIRE_BOTH)
        taker_ends = mode in (Prevention.EXPIRE_TAKER, Prevention.EXPIRE_BOTH)
        if mode in (Prevention.DECREMENT, Prevention.TRANSFER):
            maker_ends, taker_ends = maker.left == size, taker.left == size
            maker.left -= size
            taker.left -= size
        if maker_ends:
            self.remove(maker)
        sink.prevented(maker, taker, size, maker_ends, taker_ends)
        return taker_ends

    # -- the market -------------------------------------------------------------------------------

    def quote(self, buy: bool, price: int, size: int, sink: Sink) -> None:
        """The market's own size at a price is `size` from now on. More of it comes last in the
        queue, or trades where it crosses; less of it leaves from the end."""
        own = [order for order in self.queue(buy, price) if order.owner == MARKET]
        excess = sum(order.left for order in own) - size
        for order in reversed(own):
            if excess <= 0:
                break
            cut = min(order.left, excess)
            excess -= cut
            order.left -= cut
            if order.left == 0:
                self.remove(order)
        if excess < 0:
            more = Resting(MARKET, 0, buy, price, -excess)
            self.take(more, price, sink)
            if more.left:
                self.add(more)

    def hit(self, buy: bool, price: int, size: int, sink: Sink) -> int:
        """Somebody in the market takes up to `size` at `price` or better; returns how much."""
        taker = Resting(MARKET, 0, buy, price, size)
        self.take(taker, price, sink)
        return size - taker.left

    def _drop(self, buy: bool, price: int) -> None:
        del self._queues[buy, price]
        prices = self._prices[buy]
        del prices[bisect_left(prices, price)]


def _reaches(buy: bool, limit: int | None, price: int) -> bool:
    return limit is None or (limit >= price if buy else limit <= price)


def _same(maker: Resting, taker: Resting) -> bool:
    prevents = taker.prevention is not Prevention.NONE
    return prevents and maker.owner == taker.owner and taker.owner != MARKET
