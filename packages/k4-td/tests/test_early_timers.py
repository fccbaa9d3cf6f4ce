"""Timers that fire a moment early, as uvloop's do, which counts in milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from td_setup import TIMING, Log, config, order
from td_venue import FakeVenue, Fault

from k4.core.clock import SystemClock, Timer
from k4.core.trading import OrderStatus
from k4.td import TdModule

EARLY = 0.002  # seconds


class EarlyClock(SystemClock):
    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        return super().call_later(max(delay / 2, delay - EARLY), callback, *args)


async def test_an_order_that_is_never_answered_is_in_doubt_all_the_same(tmp_path: Path) -> None:
    venue = FakeVenue()
    await venue.start()
    module = TdModule(config(venue, tmp_path, ("spot",)), clock=EarlyClock(), timing=TIMING)
    try:
        await module.login(20.0)
        log = Log(module)
        venue.faults.append(Fault("order.place", "drop"))
        async with asyncio.timeout(10):
            placed = await module.insert_order(order(client_order_id="quiet-1"))
        assert placed.status is OrderStatus.UNKNOWN
        await log.status("quiet-1", OrderStatus.REJECTED)
    finally:
        await module.stop()
        await venue.stop()
