"""The fast transport: picows, whose parser is C and hands over each frame in a plain call.

Needs `pip install k4-md[fast]`. It runs on any asyncio loop; uvloop makes it fastest.

Read with picows' source (2.3) beside it. Three of its habits shape this file. It looks one frame
ahead, so a violation is known before the good frame in front of it was handed over. It reports
violations to its logger alone, so `_Ear` is that logger. And it checks neither reserved bits nor
the order of fragments nor every close code, so that is done here. Of data messages only fragments
and the first whole one of a connection have their reserved bits checked: on every message it would
cost 40 ns, as much as the time stamp, and a peer that was offered no extension has none to begin
in the middle. What it sent all the same, the session would drop as unreadable.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import cast

from picows import (
    WSCloseCode,
    WSFrame,
    WSInvalidStatusError,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    ws_connect,
)
from picows.picows import WSCloseHandshake
from picows.url import WSParsedURL

from k4.core.clock import Clock
from k4.core.dialing import LAST_WORDS, LINGER, failed, hang_up, open_socket, peer_name, tell_closed
from k4.core.transport import (
    ABNORMAL,
    BINARY,
    NO_STATUS,
    NORMAL,
    PROTOCOL_ERROR,
    TEXT,
    TOO_BIG,
    Closed,
    Dial,
    Receiver,
    retry_after,
    tls_context,
)

_TEXT, _BINARY, _CONTINUATION = WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION
_PING, _PONG = WSMsgType.PING, WSMsgType.PONG

OnFrame = Callable[[WSTransport, WSFrame], None]


class PicowsTransport:
    """Connects through picows."""

    name = "picows"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._verified = tls_context()  # made once: loading the authorities takes milliseconds

    def connect(self, dial: Dial, receiver: Receiver) -> _Attempt:
        return _Attempt(dial, receiver, self._clock, dial.ssl_context or self._verified)


class _Attempt:
    """One attempt: a task until the handshake is done, then only its connection's callbacks."""

    def __init__(self, dial: Dial, receiver: Receiver, clock: Clock, context: object) -> None:
        self._dial = dial
        self._receiver = receiver
        self._clock = clock
        self._socket: socket.socket | None = None
        self._connection = _Connection(receiver, clock, dial.max_frame_bytes)
        self._task = asyncio.get_running_loop().create_task(self._run(context))
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        if not self._task.done():
            self._connection.unwanted = True
            self._task.cancel()

    async def _run(self, context: object) -> None:
        def listener(request: WSUpgradeRequest, response: WSUpgradeResponse) -> WSListener:
            return self._connection

        async def connected(url: WSParsedURL) -> socket.socket:
            self._socket = await open_socket(self._dial, url.host, url.port)
            return self._socket

        await ws_connect(
            listener,
            self._dial.url,
            ssl_context=context,  # type: ignore[arg-type]
            websocket_handshake_timeout=None,
            logger_name=cast(logging.Logger, _Ear(self._connection)),
            enable_auto_ping=False,
            enable_auto_pong=False,
            max_frame_size=self._dial.max_frame_bytes,
            extra_headers=self._dial.headers,
            max_redirects=0,
            socket_factory=connected,
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._connection.begun:
            return  # its end is the connection's to tell
        hang_up(self._socket)
        how = failed(error)
        if isinstance(error, WSInvalidStatusError) and error.response is not None:
            status, headers = error.response.status, error.response.headers
            how = Closed(
                ABNORMAL,
                f"HTTP {status.value} {status.phrase}",
                status=status.value,
                retry_after=retry_after(headers.get("Retry-After"), self._clock.time_ns()),
            )
        tell_closed(self._receiver.closed, how)


class _Connection(WSListener):
    """One open WebSocket. `on_ws_frame` is an attribute that changes with what may come next."""

    on_ws_frame: OnFrame  # type: ignore[assignment]

    def __init__(self, receiver: Receiver, clock: Clock, max_bytes: int) -> None:
        self.begun = False  # `opened` was called
        self.unwanted = False  # cancelled before that
        self._receiver = receiver
        self._time_ns = clock.time_ns
        self._max_bytes = max_bytes
        self._transport: WSTransport | None = None
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._parts_opcode = 0
        self._closing = False  # this side sent its close frame first
        self._broken: tuple[int, str] | None = None  # our own verdict
        self._error: Exception | None = None
        self._retrieval: asyncio.Task[None] | None = None
        self._backstop: asyncio.TimerHandle | None = None
        self.on_ws_frame = self._ignore

    # What picows calls.

    def on_ws_connected(self, transport: WSTransport) -> None:
        if self.unwanted:
            transport.disconnect(False)
            return
        self.begun = True
        self._transport = transport
        self.on_ws_frame = self._first
        try:
            self._receiver.opened(self)
            self._message = self._receiver.message
        except Exception as error:
            self._fault(error)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._transport = None
        self.on_ws_frame = self._ignore
        if self._backstop is not None:
            self._backstop.cancel()
        if self.begun:
            tell_closed(self._receiver.closed, self._how(transport))

    def pause_writing(self) -> None:
        """What a client sends is bounded by the venue's rate: nothing to hold back."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def violated(self) -> None:
        """picows found a violation and is about to send the close frame and hang up."""
        if self._transport is not None and self._retrieval is None:
            loop = asyncio.get_running_loop()
            self._retrieval = loop.create_task(_end_of(self._transport))
            # The good frame in front of it follows in this same call, what lies behind it later.
            loop.call_soon(self._mute)
            self._wind_down(self._transport, LINGER)

    def _mute(self) -> None:
        self.on_ws_frame = self._ignore

    # Frames.

    def _fast(self) -> OnFrame:
        """The hot path: everything bound once, whole messages straight to the consumer."""
        message, time_ns, other, fault = self._message, self._time_ns, self._other, self._fault
        text, binary = _TEXT, _BINARY

        def on_ws_frame(transport: WSTransport, frame: WSFrame) -> None:
            now = time_ns()
            kind = frame.msg_type
            if kind is text and frame.fin:
                try:
                    message(frame.get_payload_as_bytes(), now, TEXT)
                except Exception as error:
                    fault(error)
            elif kind is binary and frame.fin:
                try:
                    message(frame.get_payload_as_bytes(), now, BINARY)
                except Exception as error:
                    fault(error)
            else:
                other(frame, kind, now)

        return on_ws_frame

    def _first(self, transport: WSTransport, frame: WSFrame) -> None:
        """Until the first whole message."""
        now = self._time_ns()
        kind = frame.msg_type
        if not frame.fin or (kind is not _TEXT and kind is not _BINARY):
            self._other(frame, kind, now)
        elif self._bits_clear(frame):
            self.on_ws_frame = self._fast()
            self._deliver(frame.get_payload_as_bytes(), now, TEXT if kind is _TEXT else BINARY)

    def _fragments(self, transport: WSTransport, frame: WSFrame) -> None:
        """While a message is incomplete."""
        now = self._time_ns()
        kind = frame.msg_type
        if kind is _TEXT or kind is _BINARY:
            self._break(PROTOCOL_ERROR, "a message began inside another")
        else:
            self._other(frame, kind, now)

    def _other(self, frame: WSFrame, kind: WSMsgType, now: int) -> None:
        """Everything but a whole data message."""
        if not self._bits_clear(frame):
            return
        if kind is _PING or kind is _PONG:
            if not self._closing:
                receiver = self._receiver
                heard = receiver.pinged if kind is _PING else receiver.ponged
                self._control(heard, frame.get_payload_as_bytes())
        elif kind is _TEXT or kind is _BINARY:
            self._parts_opcode = TEXT if kind is _TEXT else BINARY
            self.on_ws_frame = self._fragments
            self._keep(frame, now)
        elif kind is _CONTINUATION:
            if not self._parts_opcode:
                self._break(PROTOCOL_ERROR, "a continuation without a beginning")
                return
            self._keep(frame, now)
        else:
            self._answer_close(frame)

    def _keep(self, frame: WSFrame, now: int) -> None:
        self._parts_bytes += frame.payload_size
        if self._parts_bytes > self._max_bytes:
            self._break(TOO_BIG, f"a message of more than {self._max_bytes} bytes")
            return
        self._parts.append(frame.get_payload_as_bytes())
        if frame.fin:
            payload, opcode = b"".join(self._parts), self._parts_opcode
            self._parts.clear()
            self._parts_bytes = self._parts_opcode = 0
            self.on_ws_frame = self._fast()
            self._deliver(payload, now, opcode)

    def _ignore(self, transport: WSTransport, frame: WSFrame) -> None:
        """Before `opened`, and after this side has closed."""

    def _bits_clear(self, frame: WSFrame) -> bool:
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._break(PROTOCOL_ERROR, "reserved bits are set")
            return False
        return True

    def _deliver(self, payload: bytes, now: int, opcode: int) -> None:
        try:
            self._message(payload, now, opcode)
        except Exception as error:
            self._fault(error)

    def _control(self, callback: Callable[[bytes], object], payload: bytes) -> None:
        try:
            callback(payload)
        except Exception as error:
            self._fault(error)

    # Ends.

    def _answer_close(self, frame: WSFrame) -> None:
        transport = self._transport
        if self._closing:
            self.on_ws_frame = self._ignore
            if transport is not None:
                self._wind_down(transport, 0.0)
            return
        code = frame.get_close_code()
        number = _number(code)
        if frame.payload_size and (number in (0, ABNORMAL) or number >= 5000):
            self._break(PROTOCOL_ERROR, "a close code that may not be sent")
            return
        self.on_ws_frame = self._ignore
        if transport is not None:
            transport.send_close(WSCloseCode.OK if code is WSCloseCode.NO_INFO else code)
            self._wind_down(transport, 0.0)

    def _break(self, code: int, reason: str) -> None:
        """The peer broke the rules in a way that picows does not see."""
        transport = self._transport
        self.on_ws_frame = self._ignore
        if transport is not None and self._broken is None:
            self._broken = (code, reason)
            if not self._closing:
                transport.send_close(cast(WSCloseCode, code), reason)
            self._wind_down(transport, LINGER)

    def _wind_down(self, transport: WSTransport, delay: float) -> None:
        """Close the socket in order after `delay`, and by force where that takes too long."""
        loop = asyncio.get_running_loop()
        if self._backstop is None:
            loop.call_later(delay, transport.disconnect)
            self._backstop = loop.call_later(LAST_WORDS, transport.disconnect, False)

    def _fault(self, error: Exception) -> None:
        self._error = error
        self.abort()

    def _how(self, transport: WSTransport) -> Closed:
        if self._error is not None:
            return Closed(ABNORMAL, f"receiver failed: {self._error!r}", error=self._error)
        if self._broken is not None:
            return Closed(*self._broken)
        # Typed as always there; it is None until a close frame went one way or the other.
        handshake = cast(WSCloseHandshake | None, transport.close_handshake)
        if handshake is None:
            return Closed(ABNORMAL, "")
        received, sent = handshake.recv, handshake.sent
        if self._retrieval is not None and not self._closing and sent is not None:
            return Closed(_number(sent.code), sent.reason)
        if received is None:
            return Closed(ABNORMAL, "")
        return Closed(
            _number(received.code) or NO_STATUS, received.reason or "", clean=sent is not None
        )

    # `Connection`.

    def send_text(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.send(_TEXT, data)

    def ping(self, payload: bytes = b"") -> None:
        if self._transport is not None:
            self._transport.send_ping(payload)

    def pong(self, payload: bytes) -> None:
        if self._transport is not None:
            self._transport.send_pong(payload)

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        transport = self._transport
        if transport is not None and not transport.is_close_frame_sent:
            self._closing = True  # messages that are on their way are heard, whole or in fragments
            transport.send_close(cast(WSCloseCode, code), reason)

    def abort(self) -> None:
        transport, self._transport = self._transport, None
        self.on_ws_frame = self._ignore
        if transport is not None:
            transport.disconnect(False)

    def remote(self) -> str:
        if self._transport is None:
            return ""
        return peer_name(self._transport.underlying_transport.get_extra_info("peername"))


def _number(code: WSCloseCode) -> int:
    """A close code as it was on the wire: the stub says Enum, the real thing is an IntEnum that
    also knows codes without a name.
    """
    return int(cast(int, code))


async def _end_of(transport: WSTransport) -> None:
    """Takes the exception that picows keeps of a violation, which the loop would report as lost."""
    try:
        await transport.wait_disconnected()
    except Exception:
        return


class _Ear:
    """picows' logger: silent, and attentive to errors, which is how violations become known."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def isEnabledFor(self, level: int) -> bool:
        return False

    def error(self, message: str, *args: object) -> None:
        self._connection.violated()

    exception = error

    def debug(self, message: str, *args: object) -> None:
        """Not wanted."""

    info = warning = debug

    def log(self, level: int, message: str, *args: object) -> None:
        """Not wanted."""
