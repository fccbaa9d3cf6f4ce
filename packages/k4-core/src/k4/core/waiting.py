"""Waiting on the injected clock, for the coroutines that there are beside the callbacks."""

from __future__ import annotations

import asyncio

from k4.core.clock import Clock


async def sleep(clock: Clock, seconds: float) -> None:
    """Return when `seconds` have passed on `clock`."""
    passed = asyncio.Event()
    timer = clock.call_later(seconds, passed.set)
    try:
        await passed.wait()
    finally:
        timer.cancel()
