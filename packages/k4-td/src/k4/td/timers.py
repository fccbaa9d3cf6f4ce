"""Waiting on the injected clock: the two things that asyncio would do with its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from k4.core.clock import Clock

_T = TypeVar("_T")


async def sleep(clock: Clock, seconds: float) -> None:
    """Return `seconds` from now."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_later(seconds, _wake, done)
    try:
        await done
    finally:
        timer.cancel()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def within(clock: Clock, seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`. Raises TimeoutError, with `work` cancelled and finished, when it takes
    longer than `seconds`."""
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
