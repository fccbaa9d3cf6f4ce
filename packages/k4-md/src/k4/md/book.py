"""An incremental order book of one connection: a snapshot, then deltas without a hole.

The book trusts nothing that it cannot prove: a delta whose id does not follow the last one makes it
invalid, and it stays so until the next snapshot. Prices are kept as floats: two texts of one
decimal (`71423.80`, `71423.8`) are the same float, and two decimals of up to 15 digits never are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

Side = list[tuple[float, float]]  # price, volume

TOP = 5


class BookBroken(Exception):
    """A delta that does not follow what the book holds; the message says which id was awaited."""


class Book:
    """The levels of one instrument, at most `most` a side.

    id: of the last update applied, -1 while the book is invalid.
    """

    __slots__ = ("_ask_prices", "_ask_vols", "_bid_prices", "_bid_vols", "_most", "id")

    def __init__(self, most: int) -> None:
        self._most = most
        self.id = -1
        # Ascending on both sides, so that one bisection serves both; best bids are at the end.
        self._bid_prices: list[float] = []
        self._ask_prices: list[float] = []
        self._bid_vols: dict[float, float] = {}
        self._ask_vols: dict[float, float] = {}

    @property
    def valid(self) -> bool:
        return self.id >= 0

    def snapshot(
        self, id: int, bids: Iterable[tuple[float, float]], asks: Iterable[tuple[float, float]]
    ) -> None:
        """Replace everything. Levels of volume 0 are none."""
        self._bid_vols = {price: vol for price, vol in dict(bids).items() if vol}
        self._ask_vols = {price: vol for price, vol in dict(asks).items() if vol}
        self._bid_prices = sorted(self._bid_vols)
        self._ask_prices = sorted(self._ask_vols)
        self._cut()
        self.id = id

    def delta(
        self, id: int, bids: Iterable[tuple[float, float]], asks: Iterable[tuple[float, float]]
    ) -> None:
        """Apply the update that follows the last one: volume 0 deletes a level, any other sets it.

        Raises BookBroken, after which the book is invalid, where `id` is not the last one plus 1 or
        the book is invalid already.
        """
        last, self.id = self.id, -1
        if last < 0:
            raise BookBroken(f"update {id} without a snapshot")
        if id != last + 1:
            raise BookBroken(f"update {id} after {last}")
        self.change(bids, asks)
        self.id = id

    def change(
        self, bids: Iterable[tuple[float, float]], asks: Iterable[tuple[float, float]]
    ) -> None:
        """Apply levels without a look at ids, for channels that merge updates."""
        _apply(bids, self._bid_prices, self._bid_vols)
        _apply(asks, self._ask_prices, self._ask_vols)
        self._cut()

    def depth5(self) -> tuple[Side, Side]:
        """The best five bids and asks, best first. Raises BookBroken while the book is invalid."""
        if self.id < 0:
            raise BookBroken("the book awaits a snapshot")
        vols = self._bid_vols
        bids = [(price, vols[price]) for price in self._bid_prices[: -TOP - 1 : -1]]
        vols = self._ask_vols
        return bids, [(price, vols[price]) for price in self._ask_prices[:TOP]]

    def levels(self) -> tuple[Side, Side]:
        """All bids and asks, best first."""
        bids = [(price, self._bid_vols[price]) for price in reversed(self._bid_prices)]
        return bids, [(price, self._ask_vols[price]) for price in self._ask_prices]

    def _cut(self) -> None:
        """Drop the worst levels beyond the cap: the venue goes on without them, too."""
        most = self._most
        if len(self._bid_prices) > most:
            for price in self._bid_prices[:-most]:
                del self._bid_vols[price]
            del self._bid_prices[:-most]
        if len(self._ask_prices) > most:
            for price in self._ask_prices[most:]:
                del self._ask_vols[price]
            del self._ask_prices[most:]


def _apply(
    levels: Iterable[tuple[float, float]], prices: list[float], vols: dict[float, float]
) -> None:
    for price, vol in levels:
        if vol:
            if price not in vols:
                insort(prices, price)
            vols[price] = vol
        elif price in vols:
            del vols[price]
            del prices[bisect_left(prices, price)]
