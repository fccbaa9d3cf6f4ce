"""The best bid and offer that the risk gate compares with: from shared memory, with its age.

A quote is as fresh as the feed, not as the last change: in a quiet market the last quote is still
the price. So its age is that of `feed_ok_ns`, when every stream of the store last had a live line.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

import msgspec

from k4.core.clock import Clock
from k4.core.errors import K4Error
from k4.core.records import Bookticker
from k4.core.shm import ShmMdReader


class Quote(msgspec.Struct, frozen=True):
    """Prices of 0 are an empty side. age: seconds since the feed was last known to be live."""

    bid: Decimal
    ask: Decimal
    age: float


class Quotes(Protocol):
    """Where quotes come from."""

    def quote(self, symbol: str) -> Quote | None:
        """The newest, None where there is none."""
        ...

    def close(self) -> None: ...


class ShmQuotes:
    """Quotes of one store. The store may appear, disappear and be replaced while this is open."""

    def __init__(self, store: str, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._reader: ShmMdReader | None = None

    def quote(self, symbol: str) -> Quote | None:
        try:
            if self._reader is None:
                self._reader = ShmMdReader(self._store)
            record = self._reader.latest(symbol)
            feed_ok_ns = self._reader.feed_ok_ns
            replaced = self._reader.closed
        except K4Error:
            replaced, record = True, None
        if replaced:
            self.close()
            return None
        if not isinstance(record, Bookticker):
            return None
        age = (self._clock.time_ns() - feed_ok_ns) / 1e9
        return Quote(_decimal(record.bid_price), _decimal(record.ask_price), age)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class NoQuotes:
    """For an account without `bbo_store`."""

    def quote(self, symbol: str) -> Quote | None:
        return None

    def close(self) -> None:
        return None


def _decimal(price: float) -> Decimal:
    """The shortest decimal that reads as this double: what the venue wrote."""
    return Decimal(repr(price))
