"""Request weight, order counts and bans, in the venue's aligned windows.

Sources: Binance "LIMITS" sections of the REST and WebSocket API documentation (July 2026), the FAQ
on unfilled order counts, the notice of the USD-M and COIN-M integration (June 2026).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from k4.runner.sim.trading import errors
from k4.runner.sim.trading.spec import Limits

_UNITS = ((86_400, "DAY", "D"), (3600, "HOUR", "H"), (60, "MINUTE", "M"), (1, "SECOND", "S"))
_LONGEST_BAN = 3 * 86_400.0


class Window:
    """A count that starts anew at each multiple of `seconds` of the venue's clock."""

    def __init__(self, kind: str, limit: int, seconds: int) -> None:
        self.kind = kind
        self.limit = limit
        self.seconds = seconds
        self._start = -1
        self._used = 0

    def used(self, now_ms: int) -> int:
        start = now_ms // (self.seconds * 1000)
        if start != self._start:
            self._start, self._used = start, 0
        return self._used

    def add(self, now_ms: int, amount: int) -> None:
        """Negative amounts give back; a count is never below 0."""
        self._used = max(0, self.used(now_ms) + amount)

    def resets_ms(self, now_ms: int) -> int:
        """When the window ends, ms since the epoch."""
        width = self.seconds * 1000
        return (now_ms // width + 1) * width

    @property
    def interval(self) -> tuple[int, str, str]:
        """(10, SECOND, 10S)"""
        for size, name, letter in _UNITS:
            if self.seconds % size == 0:
                count = self.seconds // size
                return count, name, f"{count}{letter}"
        raise ValueError("a window has whole seconds")

    def entry(self) -> dict[str, Any]:
        """As `exchangeInfo.rateLimits` lists it."""
        number, unit, _ = self.interval
        return {
            "rateLimitType": self.kind,
            "interval": unit,
            "intervalNum": number,
            "limit": self.limit,
        }

    def counted(self, now_ms: int) -> dict[str, Any]:
        """As a `rateLimits` array says it."""
        return {**self.entry(), "count": self.used(now_ms)}


class Pool:
    """The weight that one address may use on one host, and what happens to who ignores it."""

    def __init__(self, weight: int, raw_requests: int, limits: Limits) -> None:
        self.weight = Window("REQUEST_WEIGHT", weight, 60)
        self.raw = Window("RAW_REQUESTS", raw_requests, 300)
        self._limits = limits
        self._ignored = 0
        self._told_until = 0
        self._banned_until = 0
        self._bans = 0

    def spend(self, weight: int, now_ms: int) -> None:
        """Raises the 429 or 418 that the venue answers; a refused request is not counted."""
        if now_ms < self._banned_until:
            self._ban(now_ms, again=False)
        over = self._over(weight, now_ms)
        if over is None:
            self.weight.add(now_ms, weight)
            self.raw.add(now_ms, 1)
            return
        until = over.resets_ms(now_ms)
        # Who comes again before the time that he was told ignores it.
        self._ignored = self._ignored + 1 if self._told_until == until else 0
        self._told_until = until
        if self._ignored > self._limits.ban_after:
            self._ban(now_ms, again=True)
        number, unit, _ = over.interval
        raise errors.too_much_weight(over.limit, f"{number} {unit}", until, now_ms)

    def block(self, status: int, seconds: float, now_ms: int) -> None:
        """Used up (429) or banned (418) from now on, whatever was counted."""
        if status == 418:
            self._bans += 1
            self._banned_until = now_ms + int(seconds * 1000)
        else:
            self.weight.add(now_ms, self.weight.limit)

    def give_back(self, weight: int, now_ms: int) -> None:
        self.weight.add(now_ms, -weight)

    def _over(self, weight: int, now_ms: int) -> Window | None:
        for window, amount in ((self.weight, weight), (self.raw, 1)):
            if window.used(now_ms) + amount > window.limit:
                return window
        return None

    def _ban(self, now_ms: int, *, again: bool) -> None:
        if again:
            self._bans += 1
            seconds = min(_LONGEST_BAN, self._limits.ban_seconds * 2 ** (self._bans - 1))
            self._banned_until = now_ms + int(seconds * 1000)
            self._ignored = 0
        raise errors.banned(self._banned_until, now_ms)


class OrderCounts:
    """How many orders an account has placed in each window."""

    def __init__(self, windows: Sequence[tuple[int, int]]) -> None:
        self.windows = tuple(Window("ORDERS", limit, seconds) for limit, seconds in windows)

    def exceeded(self, now_ms: int, orders: int = 1) -> errors.VenueError | None:
        """The refusal that the next order would get, None while there is room."""
        for window in self.windows:
            if window.used(now_ms) + orders > window.limit:
                number, unit, _ = window.interval
                until = window.resets_ms(now_ms)
                return errors.too_many_orders(window.limit, f"{number} {unit}", until, now_ms)
        return None

    def add(self, now_ms: int, orders: int) -> None:
        for window in self.windows:
            window.add(now_ms, orders)


class Attempts:
    """New connections of an address: at most so many in five minutes, sliding."""

    def __init__(self, limit: int, monotonic: Callable[[], float]) -> None:
        self._limit = limit
        self._monotonic = monotonic
        self._times: deque[float] = deque()

    def admit(self) -> bool:
        now = self._monotonic()
        while self._times and self._times[0] <= now - 300.0:
            self._times.popleft()
        self._times.append(now)
        return len(self._times) <= self._limit
