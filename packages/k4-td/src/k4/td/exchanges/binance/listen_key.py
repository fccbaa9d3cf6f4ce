"""The listen key of a futures account: made, kept alive, and made anew when it has expired."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from k4.core.clock import Clock
from k4.core.trading import NotReady, OrderError
from k4.core.waiting import sleep
from k4.td.exchanges.binance import protocol, reports
from k4.td.exchanges.binance.protocol import Product
from k4.td.exchanges.binance.rest import REST_REMEDY, Rest
from k4.td.timing import Timing

EXPIRED = -1125


class ListenKey:
    """A key lives 60 minutes from its last extension. It is a secret: whoever has it reads the
    account's events, so no error and no log repeats it."""

    def __init__(
        self,
        product: Product,
        rest: Rest,
        clock: Clock,
        timing: Timing,
        refresh: float,
        refreshed: Callable[[bool], None],
    ) -> None:
        """refresh: seconds between extensions. refreshed(created): it was extended, or made."""
        self._product = product
        self._rest = rest
        self._clock = clock
        self._timing = timing
        self._refresh = refresh
        self._refreshed = refreshed
        self._key = ""
        self._last = ""
        self._extended = 0.0
        self._made = asyncio.Event()

    async def get(self) -> str:
        """The key, made now where there is none. Raises OrderError."""
        if not self._key:
            body = await self._rest.call(protocol.listen_key(self._product, "POST"))
            last = self._last
            try:
                self._key = self._last = reports.listen_key_text(body)
            except reports.Malformed as error:
                raise NotReady(
                    "listen_key", f"the venue gave no listen key: {error}", remedy=REST_REMEDY
                ) from None
            self._extended = self._clock.monotonic()
            self._made.set()
            self._refreshed(self._key != last)  # an active one is given again, and extended
        return self._key

    def forget(self) -> None:
        """The venue says that it expired: the next `get` makes another."""
        self._key = ""

    async def keep(self, lost: Callable[[str], None]) -> None:
        """Extend it for ever. lost(reason): streams that use it bring nothing more."""
        await self._made.wait()
        while True:
            await sleep(self._clock, self._pause())
            if not self._key:
                continue  # the stream is reconnecting and makes one
            try:
                await self._rest.call(protocol.listen_key(self._product, "PUT"))
            except OrderError as error:
                if error.venue_code == EXPIRED or self._outlived():
                    self.forget()
                    lost("the listen key expired")
                continue
            self._extended = self._clock.monotonic()
            self._refreshed(False)

    def _pause(self) -> float:
        """The configured interval; after a failed extension much less."""
        since = self._clock.monotonic() - self._extended
        return max(self._refresh - since, min(self._refresh, self._timing.query_cap))

    def _outlived(self) -> bool:
        return self._clock.monotonic() - self._extended > self._timing.listen_key_life
