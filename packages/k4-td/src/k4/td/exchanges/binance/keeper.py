"""Keeps one connection of a kind alive: connects, reconnects, and replaces it before the venue cuts
it at 24 h, so that nothing is missed (the new one is open before the old one closes).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from k4.core.clock import Clock
from k4.core.retry import backoff
from k4.core.trading import NotReady, OrderError
from k4.core.waiting import sleep
from k4.td.exchanges.binance.stream import Line
from k4.td.timing import Timing

_L = TypeVar("_L", bound=Line)


class Keeper(Generic[_L]):
    """up, down: the connection is usable, or lost. failed: why an attempt came to nothing."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[_L]],
        clock: Clock,
        timing: Timing,
        *,
        up: Callable[[], None],
        down: Callable[[str], None],
        failed: Callable[[OrderError], None],
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._timing = timing
        self._up = up
        self._down = down
        self._failed = failed
        self._rng = random.Random()
        self._current: _L | None = None
        self._turn = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def line(self) -> _L | None:
        """The connection to send on now, None while there is none."""
        current = self._current
        return current if current is not None and current.usable else None

    def holds(self, line: Line) -> bool:
        """Whether it is the connection that serves now, and not one that is being retired."""
        return self._current is line

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """It only ends by `close`, or by a defect, which must not be silent."""
        if not task.cancelled() and (defect := task.exception()) is not None:
            text = f"{type(defect).__name__}: {defect}"
            self._failed(NotReady("internal", text, remedy="restart the module, and report this"))
            self._down(text)

    def reconnect(self, reason: str) -> None:
        """Drop the connection and open another: it is no longer to be trusted."""
        if self._current is not None:
            self._current.socket.end(reason)

    def replace(self) -> None:
        """Open another, then close this one."""
        self._turn.set()

    def announced(self, line: Line) -> None:
        """The venue will close `line`: send nothing more on it, and replace it if it serves. One
        that is only being opened is replaced as soon as it does."""
        if not line.leaving:
            line.leaving = True
            if self.holds(line):
                self.replace()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # Not cancelled: a closing handshake that is broken off leaves its socket open.
        self._closing = True
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self._current is not None:
            await self._current.close()
            self._current = None

    async def _run(self) -> None:
        delays = backoff(self._rng, self._timing.retry_base, self._timing.retry_cap)
        while True:
            line = await self._attempt()
            if line is None:
                await sleep(self._clock, next(delays))
                continue
            born = self._clock.monotonic()
            self._current = line
            self._up()
            reason = await self._live()
            self._current, gone = None, self._current
            self._down(reason)
            if gone is not None:
                self._retire(gone)
            # A connection that lasted starts over with short delays.
            if self._clock.monotonic() - born > self._timing.retry_cap:
                delays = backoff(self._rng, self._timing.retry_base, self._timing.retry_cap)
            await sleep(self._clock, next(delays))

    async def _attempt(self) -> _L | None:
        try:
            return await self._connect()
        except OrderError as error:
            self._failed(error)
            return None

    async def _live(self) -> str:
        """Until the connection is lost, over any number of planned replacements."""
        while True:
            current = self._current
            assert current is not None
            if current.leaving:
                self._turn.set()
            await _until(current, self._due())
            if current.ended.done():
                return current.ended.result()
            successor = await self._attempt()
            if successor is not None:
                self._current = successor
                self._turn.clear()  # of the one before, which may have been announced meanwhile
                if current.ended.done():
                    # It was lost before the new one was ready: there is a hole between the two.
                    self._down(current.ended.result())
                    self._up()
                self._retire(current)
            if successor is None or successor.leaving:
                serving = successor or current
                await _until(serving, sleep(self._clock, self._timing.retry_cap / 10))
                self._turn.set()  # due still; the one that serves does so meanwhile

    async def _due(self) -> None:
        timer = self._clock.call_later(self._timing.max_life, self._turn.set)
        try:
            await self._turn.wait()
        finally:
            timer.cancel()
        self._turn.clear()

    def _retire(self, line: _L) -> None:
        task = asyncio.get_running_loop().create_task(self._drain(line))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _drain(self, line: _L) -> None:
        """Answers that are still owed are waited for; then the connection is closed."""
        deadline = self._clock.monotonic() + self._timing.answer
        while line.busy and not self._closing and self._clock.monotonic() < deadline:
            await sleep(self._clock, min(0.05, self._timing.drain))
        await line.close()


async def _until(line: Line, work: Coroutine[Any, Any, None]) -> None:
    """Return when `work` is done or the connection has ended."""
    task = asyncio.ensure_future(work)
    either: set[asyncio.Future[Any]] = {task, line.ended}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
