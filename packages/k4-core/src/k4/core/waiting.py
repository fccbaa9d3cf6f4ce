"""Waiting on the injected clock, for the coroutines that there are beside the callbacks: the two
things that asyncio would do with a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from k4.core.clock import Clock

_T = TypeVar("_T")


async def sleep(clock: Clock, seconds: float) -> None:
    """Return when `seconds` have passed on `clock`."""
    passed = asyncio.Event()
    timer = clock.call_later(seconds, passed.set)
    try:
        await passed.wait()
    finally:
        timer.cancel()


async def within(clock: Clock, seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`. Raises TimeoutError, with `work` cancelled and finished, when it takes
    longer than `seconds` on `clock`."""
    task = asyncio.ensure_future(work)
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = task.cancel()

    timer = clock.call_later(seconds, expire)
    try:
        return await task
    except asyncio.CancelledError:
        if expired and task.cancelled() and not _being_cancelled():
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        task.cancel()
        raise
    finally:
        timer.cancel()


def _being_cancelled() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
