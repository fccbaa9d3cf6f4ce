"""Binance's WebSockets for trading: the WebSocket APIs and the private streams of futures.

They run on aiohttp's client, which REST needs anyway, and not on `k4.core.link`: a link judges
interchangeable lines by the data that they bring and drops what it cannot use, while here every
frame is owed to a waiting caller, and one connection is authenticated, drained and replaced as a
whole. aiohttp's own pings and timeouts are off; deadlines are on K4's clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from k4.core.clock import Clock
from k4.core.config import Secret
from k4.core.trading import AccountType, NotReady, OrderError, OutcomeUnknown
from k4.core.waiting import sleep, within
from k4.td.exchanges.binance.errors import UNKNOWN_REMEDY, interpret
from k4.td.exchanges.binance.pacer import Pacer
from k4.td.exchanges.binance.protocol import LOGON, SUBSCRIBE, SUBSCRIBE_SIGNED, Call
from k4.td.exchanges.binance.reports import Frame, Malformed, decode, retry_after_ms
from k4.td.exchanges.binance.rest import Http
from k4.td.pending import Pending
from k4.td.signing import Signer, Value, signed_params
from k4.td.timing import Timing

MAX_FRAME_BYTES = 4 << 20
_REMEDY = "check the network and the WebSocket URLs in the configuration; it is tried again"


class Socket:
    """One WebSocket: text frames to a callback, pings answered, a dead peer noticed."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, clock: Clock, timing: Timing) -> None:
        self._ws = ws
        self._clock = clock
        self._timing = timing
        self._heard = clock.monotonic()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, http: Http, url: str, clock: Clock, timing: Timing) -> Socket:
        """Raises NotReady. The URL may carry a listen key, so no message repeats it."""
        session = http.session

        async def connect() -> aiohttp.ClientWebSocketResponse:
            return await session.ws_connect(
                url, autoping=False, autoclose=True, max_msg_size=MAX_FRAME_BYTES, compress=0
            )

        try:
            ws = await within(clock, timing.handshake, connect())
        except aiohttp.WSServerHandshakeError as error:
            raise NotReady(
                "handshake", f"WebSocket refused with status {error.status}", remedy=_REMEDY
            ) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            cause = getattr(error, "strerror", None) or type(error).__name__
            raise NotReady(
                "unreachable", f"WebSocket cannot be opened: {cause}", remedy=_REMEDY
            ) from None
        return cls(ws, clock, timing)

    def begin(self, receive: Callable[[str], None]) -> None:
        """Read until the connection ends; `ended` then has the reason."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._read(receive)), loop.create_task(self._watch())]

    @property
    def open_now(self) -> bool:
        return not self.ended.done() and not self._ws.closed

    async def send(self, text: str) -> None:
        """Raises OutcomeUnknown: a part of it may have left."""
        try:
            await self._ws.send_str(text)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            self.end(f"send failed: {type(error).__name__}")
            raise OutcomeUnknown(
                "", "the connection broke in sending", remedy=UNKNOWN_REMEDY
            ) from (None)

    def end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    async def close(self) -> None:
        """Close the socket. Safe to call twice."""
        self.end("closed by K4")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await within(self._clock, self._timing.drain, self._ws.close())
        except (TimeoutError, aiohttp.ClientError, OSError):
            return  # the peer does not answer; the descriptor goes with the session

    async def _read(self, receive: Callable[[str], None]) -> None:
        reason = "the venue closed the connection"
        try:
            while True:
                message = await self._ws.receive()
                self._heard = self._clock.monotonic()
                if message.type is aiohttp.WSMsgType.TEXT:
                    receive(message.data)
                elif message.type is aiohttp.WSMsgType.PING:
                    await self._ws.pong(message.data)
                elif message.type is aiohttp.WSMsgType.ERROR:
                    reason = f"broken connection: {type(message.data).__name__}"
                    break
                elif message.type not in (aiohttp.WSMsgType.PONG, aiohttp.WSMsgType.BINARY):
                    break
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            reason = f"broken connection: {type(error).__name__}"
        except Exception as error:
            reason = f"defect: {type(error).__name__}: {error}"  # shown with the disconnection
            raise
        finally:
            self.end(reason)

    async def _watch(self) -> None:
        """Ping; without any byte for two intervals the peer is gone, whatever TCP thinks."""
        try:
            while not self.ended.done():
                await sleep(self._clock, self._timing.ping)
                if self._clock.monotonic() - self._heard > 2 * self._timing.ping:
                    self.end("no answer to pings")
                    return
                await self._ws.ping()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            self.end(f"broken connection: {type(error).__name__}")


class Line:
    """One open connection of a kind; `Keeper` replaces it. leaving: the venue has announced that it
    will close it, so nothing more is to be sent on it; what was sent is still answered."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.leaving = False

    @property
    def usable(self) -> bool:
        """Whether requests may be sent on it."""
        return self.socket.open_now and not self.leaving

    @property
    def ended(self) -> asyncio.Future[str]:
        return self.socket.ended

    @property
    def busy(self) -> bool:
        """Whether answers are still owed on it."""
        return False

    async def close(self) -> None:
        await self.socket.close()


class StreamLine(Line):
    """A private stream of futures: events and nothing else."""

    def __init__(self, socket: Socket, event: Callable[[Line, str], None]) -> None:
        super().__init__(socket)
        socket.begin(lambda text: event(self, text))


class ApiLine(Line):
    """One connection to a WebSocket API: requests by id, and on spot the account's events."""

    def __init__(
        self,
        socket: Socket,
        account: AccountType,
        key: Secret | None,
        signer: Signer,
        pacer: Pacer,
        clock: Clock,
        timing: Timing,
        event: Callable[[Line, bytes], None],
        stray: Callable[[Line, Frame | None], None],
    ) -> None:
        super().__init__(socket)
        self._account = account
        self._key = key
        self._signer = signer
        self._pacer = pacer
        self._clock = clock
        self._timing = timing
        self._event = event
        self._stray = stray
        self._pending: Pending[asyncio.Future[Frame]] = Pending()
        self._next_id = 0
        self.logged_on = False
        socket.ended.add_done_callback(lambda _: self._lost())
        socket.begin(self._receive)

    @property
    def busy(self) -> bool:
        return len(self._pending) > 0

    async def hello(self, events: bool) -> None:
        """Log on where the key can, and subscribe to the account's events."""
        if self._signer.sessions:
            await self.call(LOGON, sign=True)
            self.logged_on = True
        if events:
            # Without a session the subscription itself is signed.
            await self.call(SUBSCRIBE if self.logged_on else SUBSCRIBE_SIGNED)

    async def call(self, call: Call, *, sign: bool = False) -> bytes:
        """The result of a request. Raises what the answer means; OutcomeUnknown without one."""
        return self.result(await self.exchange(call, sign=sign))

    async def exchange(self, call: Call, *, sign: bool = False) -> Frame:
        """The answer, whatever it says. Raises NotReady, nothing having been sent, where the
        connection ended or was announced to end while the request waited for its turn."""
        ticket = await self._pacer.admit(call)
        try:
            frame = await self._roundtrip(call, sign)
        except BaseException:
            self._pacer.limiter.settle(ticket)
            raise
        self._pacer.counted_array(ticket, frame.rate_limits)
        return frame

    def result(self, frame: Frame) -> bytes:
        """What a good answer carries. Raises what any other means."""
        if frame.error is None and 200 <= frame.status < 300:
            return bytes(frame.result)
        raise self._failure(frame)

    def _failure(self, frame: Frame) -> OrderError:
        code, text, data = (
            (frame.error.code, frame.error.msg, frame.error.data)
            if frame.error
            else (0, "the answer carries neither result nor error", msgspec.Raw(b"null"))
        )
        until_ms = retry_after_ms(data)
        wait = max(0.0, until_ms / 1000.0 - self._pacer.now()) if until_ms else 0.0
        error = interpret(self._account, frame.status or 500, code, text, wait)
        self._pacer.blocked(frame.status, error)
        return error

    async def _roundtrip(self, call: Call, sign: bool) -> Frame:
        if not self.usable:
            raise NotReady(
                "disconnected",
                "the WebSocket API is not connected",
                remedy="wait for the connected event",
            )
        self._next_id += 1
        request_id = f"k{self._next_id}"
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        # Everything that can fail is done before the request is registered and sent.
        text = self._encode(request_id, call, sign)
        deadline = self._clock.monotonic() + self._timing.answer
        self._pending.add(request_id, deadline, answer)
        timer = self._clock.call_later(self._timing.answer, self._expire, deadline)
        try:
            await self.socket.send(text)
            return await answer
        finally:
            timer.cancel()
            self._pending.discard(request_id)

    def _encode(self, request_id: str, call: Call, sign: bool) -> str:
        params: dict[str, Value] = {**call.params, **self._pacer.stamp(call)}
        if call.signed and (sign or not self.logged_on):
            if self._key is not None:
                params["apiKey"] = self._key.reveal()
            params = signed_params(self._signer, params)
        message: dict[str, Any] = {"id": request_id, "method": call.method}
        if params:
            message["params"] = params
        return msgspec.json.encode(message).decode()

    def _receive(self, text: str) -> None:
        try:
            frame = decode(text, Frame)
        except Malformed:
            self._stray(self, None)
            return
        if frame.event:
            self._event(self, bytes(frame.event))
            return
        waiter = self._pending.take(str(frame.id)) if frame.id is not None else None
        if waiter is None:
            self._stray(self, frame)
        elif not waiter.done():
            waiter.set_result(frame)

    def _expire(self, deadline: float) -> None:
        """What was due by then. The time is not read again: uvloop counts in milliseconds and may
        be early by a part of one, and nobody would come back for a request that seemed not due."""
        for request_id, waiter in self._pending.expired(deadline):
            _doubt(waiter, f"request {request_id} was not answered in {self._timing.answer:g} s")

    def _lost(self) -> None:
        """The connection is gone: what was sent may have been executed, or not."""
        for request_id, waiter in self._pending.drain():
            _doubt(waiter, f"the connection was lost before request {request_id} was answered")


def _doubt(waiter: asyncio.Future[Frame], text: str) -> None:
    if not waiter.done():
        waiter.set_exception(OutcomeUnknown("", text, remedy=UNKNOWN_REMEDY))
