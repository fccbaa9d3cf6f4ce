"""The venue's rate limits, kept here before the venue has to: weights, raw requests, order counts.

Pure: times are the venue's seconds since the Unix epoch, handed in. One `Limiter` per pool that
the venue shares (spot; USD-M and COIN-M together since 30 June 2026). A window counts in intervals
aligned to the venue's clock, as Binance's do; what the venue reports overrules what was counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import msgspec

WEIGHT = "REQUEST_WEIGHT"
RAW = "RAW_REQUESTS"
ORDERS = "ORDERS"

# The share of the request weight that each lane may use up: queries stop first, then orders, so
# that there is always room to cancel.
_SHARES = (1.0, 0.95, 0.8)


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """At most `limit` of `kind` in `seconds`."""

    kind: str
    seconds: int
    limit: int


class _Count:
    """What one window has used. `open` are sent and not answered, so not in the venue's figure."""

    __slots__ = ("interval", "open", "used", "window")

    def __init__(self, window: Window) -> None:
        self.window = window
        self.interval = -1
        self.used = 0
        self.open = 0

    def roll(self, now: float) -> None:
        interval = int(now // self.window.seconds)
        if interval != self.interval:
            self.interval = interval
            self.used = self.open

    def wait(self, cost: int, share: float, now: float) -> float:
        """Seconds until `cost` fits. A cost above the whole limit is let through when nothing else
        was used: the venue must decide."""
        self.roll(now)
        if not cost or self.used + cost <= max(1, int(self.window.limit * share)):
            return 0.0
        if self.used == 0:
            return 0.0
        return (self.interval + 1) * self.window.seconds - now


class Ticket(msgspec.Struct, frozen=True):
    """What was counted for one request, until it is answered."""

    weight: int
    orders: int


class Limiter:
    """Counts of one pool; says how long a request must wait."""

    def __init__(self, windows: Iterable[Window]) -> None:
        self._counts: dict[tuple[str, int], _Count] = {}
        self._blocked = 0.0
        self._orders_blocked = 0.0
        self.learn(windows)

    def learn(self, windows: Iterable[Window]) -> None:
        """Limits as the venue publishes them; counts so far are kept."""
        for window in windows:
            key = window.kind, window.seconds
            count = self._counts.get(key)
            if count is None:
                self._counts[key] = _Count(window)
            else:
                count.window = window

    def wait(self, lane: IntEnum, weight: int, orders: int, now: float) -> tuple[float, str]:
        """Seconds until this request may leave, 0 for now, and which limit says so."""
        worst, cause = max(0.0, self._blocked - now), "venue"
        if orders and self._orders_blocked - now > worst:
            worst, cause = self._orders_blocked - now, "orders"
        for (kind, seconds), count in self._counts.items():
            cost = _cost(kind, weight, orders)
            share = _SHARES[lane] if kind == WEIGHT else 1.0
            needed = count.wait(cost, share, now)
            if needed > worst:
                worst, cause = needed, f"{kind.lower()}_{seconds}s"
        return worst, cause

    def take(self, weight: int, orders: int, now: float) -> Ticket:
        """The request leaves now."""
        for (kind, _), count in self._counts.items():
            count.roll(now)
            cost = _cost(kind, weight, orders)
            count.used += cost
            count.open += cost
        return Ticket(weight, orders)

    def settle(self, ticket: Ticket) -> None:
        """The request was answered, or never will be."""
        for (kind, _), count in self._counts.items():
            count.open = max(0, count.open - _cost(kind, ticket.weight, ticket.orders))

    def seen(self, kind: str, seconds: int, used: int, now: float, limit: int = 0) -> None:
        """What the venue says was used; call it after `settle` of the answer that carried it."""
        key = kind, seconds
        count = self._counts.get(key)
        if count is None:
            if not limit:
                return
            count = self._counts[key] = _Count(Window(kind=kind, seconds=seconds, limit=limit))
        if limit and limit != count.window.limit:
            count.window = Window(kind=kind, seconds=seconds, limit=limit)
        count.roll(now)
        count.used = used + count.open

    def block(self, seconds: float, now: float, orders_only: bool = False) -> None:
        """The venue said to stop: 429, 418, Retry-After, -1003; or -1015, orders alone."""
        if orders_only:
            self._orders_blocked = max(self._orders_blocked, now + seconds)
        else:
            self._blocked = max(self._blocked, now + seconds)

    def until_next(self, kind: str, now: float) -> float:
        """Seconds until the shortest window of a kind begins anew; 1 where none is known."""
        spans = [seconds for found, seconds in self._counts if found == kind]
        return min(spans) - now % min(spans) if spans else 1.0

    def usage(self) -> dict[str, tuple[int, int]]:
        """(used, limit) by `kind_seconds`, for whoever looks."""
        return {
            f"{kind.lower()}_{seconds}s": (count.used, count.window.limit)
            for (kind, seconds), count in self._counts.items()
        }


def _cost(kind: str, weight: int, orders: int) -> int:
    return weight if kind == WEIGHT else orders if kind == ORDERS else 1


_UNITS = {"S": 1, "M": 60, "H": 3600, "D": 86400}


def header_counts(headers: Iterable[tuple[str, str]]) -> list[tuple[str, int, int]]:
    """(kind, seconds, used) from `X-MBX-USED-WEIGHT-1M`, `X-MBX-ORDER-COUNT-10S` and the like; what
    cannot be read is left out."""
    found = []
    for name, value in headers:
        upper = name.upper()
        for prefix, kind in (("X-MBX-USED-WEIGHT-", WEIGHT), ("X-MBX-ORDER-COUNT-", ORDERS)):
            span = upper.removeprefix(prefix)
            if span == upper or not span[:-1].isdecimal() or not value.isdecimal():
                continue
            unit = _UNITS.get(span[-1])
            if unit:
                found.append((kind, int(span[:-1]) * unit, int(value)))
    return found
