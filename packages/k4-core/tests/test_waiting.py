"""Coroutines that wait on the injected clock."""

from __future__ import annotations

import asyncio

import pytest

from k4.core.testing.clock import ManualClock
from k4.core.waiting import sleep, within


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_sleep_and_within_follow_the_clock() -> None:
    clock = ManualClock()
    waiting = asyncio.ensure_future(sleep(clock, 10.0))
    await settle()
    clock.advance(9.9)
    await settle()
    assert not waiting.done()
    clock.advance(0.2)
    await waiting

    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    limited = asyncio.ensure_future(within(clock, 5.0, forever()))
    await settle()
    clock.advance(5.0)
    with pytest.raises(TimeoutError, match="5 s"):
        await limited

    async def quick() -> int:
        return 7

    assert await within(clock, 5.0, quick()) == 7


async def test_within_lets_cancellation_and_errors_through() -> None:
    clock = ManualClock()

    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(within(clock, 5.0, forever()))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await within(clock, 5.0, fails())
