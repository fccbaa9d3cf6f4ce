"""What every request passes, whichever way it leaves: rate limits first, then the timestamp."""

from __future__ import annotations

from collections.abc import Iterable

from k4.core.clock import Clock
from k4.core.trading import LocalLimit, OrderError
from k4.core.waiting import sleep
from k4.td.exchanges.binance.protocol import Call, Lane
from k4.td.exchanges.binance.reports import RateCount
from k4.td.limits import ORDERS, WEIGHT, Limiter, Ticket
from k4.td.server_clock import ServerClock
from k4.td.signing import Value
from k4.td.timing import Timing

_SECONDS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400}


class Pacer:
    """The limits and the clock of one venue pool. `recv_window`: ms, the configured one."""

    def __init__(
        self,
        clock: Clock,
        server: ServerClock,
        limiter: Limiter,
        timing: Timing,
        recv_window: float,
    ) -> None:
        self.clock = clock
        self.server = server
        self.limiter = limiter
        self._timing = timing
        self.recv_window = recv_window

    def now(self) -> float:
        return self.server.seconds(self.clock.time_ns())

    def check(self, call: Call) -> None:
        """Raise LocalLimit where the request could not leave now."""
        wait, cause = self.limiter.wait(call.lane, call.weight, call.orders, self.now())
        if wait > 0:
            raise _too_many(cause, wait)

    async def admit(self, call: Call) -> Ticket:
        """Count the request. A new order is refused rather than sent late, with a price of the
        past; cancels and queries wait, unless it would take longer than an answer may."""
        while True:
            wait, cause = self.limiter.wait(call.lane, call.weight, call.orders, self.now())
            if wait <= 0:
                return self.limiter.take(call.weight, call.orders, self.now())
            if call.lane is Lane.ORDER or wait > self._timing.answer:
                raise _too_many(cause, wait)
            await sleep(self.clock, wait)

    def charge(self, weight: int) -> None:
        """Count what is no request but weighs: a handshake."""
        self.limiter.settle(self.limiter.take(weight, 0, self.now()))

    def stamp(self, call: Call) -> dict[str, Value]:
        """Window and timestamp of a signed request that leaves now."""
        if not call.signed:
            return {}
        return {
            "recvWindow": window_value(call.recv_window or self.recv_window),
            "timestamp": self.server.milliseconds(self.clock.time_ns()),
        }

    def counted(self, ticket: Ticket, counts: Iterable[tuple[str, int, int]]) -> None:
        """Header counts of the answer to this request."""
        self.limiter.settle(ticket)
        for kind, seconds, used in counts:
            self.limiter.seen(kind, seconds, used, self.now())

    def counted_array(self, ticket: Ticket, counts: Iterable[RateCount]) -> None:
        """The `rateLimits` array of the answer to this request."""
        self.limiter.settle(ticket)
        for entry in counts:
            seconds = _SECONDS.get(entry.interval, 0) * entry.interval_num
            if seconds:
                self.limiter.seen(
                    entry.rate_limit_type, seconds, entry.count, self.now(), entry.limit
                )

    def blocked(self, status: int, error: OrderError) -> None:
        """Honour a refusal for too many requests (429, 418, -1003) or orders (-1015)."""
        limited = status in (418, 429) or error.venue_code in (-1003, -1015)
        if not limited:
            return
        orders_only = error.venue_code == -1015
        pool = ORDERS if orders_only else WEIGHT
        error.retry_after = error.retry_after or self.limiter.until_next(pool, self.now())
        self.limiter.block(error.retry_after, self.now(), orders_only)


def window_value(milliseconds: float) -> Value:
    """`recvWindow`: an integer where it is one; spot allows three decimals."""
    return int(milliseconds) if milliseconds == int(milliseconds) else round(milliseconds, 3)


def _too_many(cause: str, wait: float) -> LocalLimit:
    if cause == "venue":
        return LocalLimit(
            cause,
            f"the venue said to stop for {wait:.1f} s more",
            remedy="wait: until then K4 sends nothing, cancels included, or the venue would ban",
            retry_after=wait,
        )
    return LocalLimit(
        cause,
        f"the venue's limit {cause} leaves no room for {wait:.1f} s",
        remedy="slow down; cancels are let through first",
        retry_after=wait,
    )
