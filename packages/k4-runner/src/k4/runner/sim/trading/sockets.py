"""One WebSocket connection of the trading venue: writing in order, pings, its longest life.

The market-data simulation has its own server, since its faults concern frames; here they concern
requests and events, so aiohttp's WebSocket serves, with the venue's timers on the injected clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec
from aiohttp import WSMsgType, web

from k4.core.clock import Clock, Timer
from k4.runner.sim.trading.ledger import ConnectionRecord

_CONTROL_RATE = 5  # pings and pongs that a client may send in a second
_SHORTEST_PING, _SHORTEST_PONG = 0.05, 0.5


class Pulse(msgspec.Struct, frozen=True):
    """Seconds between the venue's pings, how long a pong may take, how long a connection lives, and
    the time in which a client may send five pings and pongs."""

    ping: float
    pong: float
    life: float = 86_400.0
    period: float = 1.0

    def scaled(self, scale: float) -> Pulse:
        """Divided by `scale`, but never so that pings crowd out everything else."""
        return Pulse(
            max(self.ping / scale, _SHORTEST_PING),
            max(self.pong / scale, _SHORTEST_PONG),
            self.life / scale,
            self.period / scale,
        )


SPOT_PULSE = Pulse(20.0, 60.0)
FUTURES_PULSE = Pulse(180.0, 600.0)


class _Close(msgspec.Struct, frozen=True):
    code: int
    reason: str


class _Ping(msgspec.Struct, frozen=True):
    payload: bytes
    pong: bool = False


class Connection:
    """An accepted WebSocket. `serve` runs until it ends."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        record: ConnectionRecord,
        clock: Clock,
        pulse: Pulse,
        now_ms: Callable[[], int],
    ) -> None:
        self.record = record
        self.socket = socket
        self._request = request
        self._clock = clock
        self._pulse = pulse
        self._now_ms = now_ms
        self._queue: asyncio.Queue[str | _Ping | _Close] = asyncio.Queue()
        self._timers: dict[str, Timer] = {}
        self._controls: deque[float] = deque()
        self.closing = False

    async def serve(self, receive: Callable[[str], None]) -> None:
        """Hand each text to `receive`, until the connection ends."""
        self._timer("ping", self._pulse.ping, self._ping)
        self._timer("life", self._pulse.life, self.close, 1001, "24 hours", "end of life")
        writer = asyncio.get_running_loop().create_task(self._write())
        try:
            async for message in self.socket:
                if message.type is WSMsgType.TEXT:
                    self.record.received += 1
                    receive(message.data)
                elif message.type is WSMsgType.PING:
                    self._control()
                    self._queue.put_nowait(_Ping(message.data, pong=True))
                elif message.type is WSMsgType.PONG:
                    self._control()
                    self._stop("pong")
        finally:
            for timer in self._timers.values():
                timer.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self.closing = True
            while not self._queue.empty():  # nobody writes it any more: let `drain` go on
                self._queue.get_nowait()
                self._queue.task_done()
            self.record.closed_ms = self._now_ms()
            self.record.ended = self.record.ended or "closed by the client"

    def send(self, text: str) -> None:
        """Write in turn; nothing after a close."""
        if not self.closing:
            self._queue.put_nowait(text)

    async def drain(self) -> None:
        """Until what was given to `send` is written, or lost."""
        await self._queue.join()

    def close(self, code: int, reason: str, why: str) -> None:
        """End it in order, after what waits to be written. why: for the ledger."""
        if not self.closing:
            self.closing = True
            self.record.ended = why
            self._queue.put_nowait(_Close(code, reason))

    def abort(self, why: str) -> None:
        """Break it: no close frame, a reset for the client."""
        self.closing = True
        self.record.ended = why
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _write(self) -> None:
        while True:
            item = await self._queue.get()
            try:
                if isinstance(item, str):
                    await self.socket.send_str(item)
                    self.record.sent += 1
                elif isinstance(item, _Close):
                    await self.socket.close(code=item.code, message=item.reason.encode())
                elif item.pong:
                    await self.socket.pong(item.payload)
                else:
                    await self.socket.ping(item.payload)
            except (ConnectionError, RuntimeError):
                self.closing = True  # the reader notices, too; what waits is lost
            finally:
                self._queue.task_done()

    # -- timers -----------------------------------------------------------------------------------

    def _timer(
        self, name: str, seconds: float, callback: Callable[..., object], *args: object
    ) -> None:
        self._stop(name)
        self._timers[name] = self._clock.call_later(seconds, callback, *args)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _ping(self) -> None:
        self._queue.put_nowait(_Ping(str(self._now_ms()).encode()))
        if "pong" not in self._timers:
            self._timer("pong", self._pulse.pong, self.close, 1008, "Pong timeout", "no pong")
        self._timer("ping", self._pulse.ping, self._ping)

    def _control(self) -> None:
        now = self._clock.monotonic()
        while self._controls and self._controls[0] <= now - self._pulse.period:
            self._controls.popleft()
        self._controls.append(now)
        if len(self._controls) > _CONTROL_RATE:
            self.close(1008, "Too many requests", "too many pings")
