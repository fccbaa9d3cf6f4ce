"""The portable transport: websockets' sans-I/O protocol inside an asyncio protocol.

Pure Python and on any event loop. The library's own asyncio client would put a queue and a task
between the socket and the session; its sans-I/O half does not.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from k4.core.clock import Clock
from k4.core.dialing import LAST_WORDS, LINGER, failed, hang_up, open_socket, peer_name, tell_closed
from k4.core.transport import (
    ABNORMAL,
    BINARY,
    NORMAL,
    TEXT,
    TOO_BIG,
    Closed,
    Dial,
    Receiver,
    retry_after,
    tls_context,
)


class WebsocketsTransport:
    """Connects through websockets."""

    name = "websockets"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._verified = tls_context()  # made once: loading the authorities takes milliseconds

    def connect(self, dial: Dial, receiver: Receiver) -> _Attempt:
        return _Attempt(dial, receiver, self._clock, dial.ssl_context or self._verified)


class _Attempt:
    """One attempt: a task until TCP and TLS stand, then only its connection's callbacks."""

    def __init__(
        self, dial: Dial, receiver: Receiver, clock: Clock, context: ssl.SSLContext
    ) -> None:
        self._dial = dial
        self._receiver = receiver
        self._clock = clock
        self._socket: socket.socket | None = None
        self._connection: _Connection | None = None
        self._cancelled = False
        self._task = asyncio.get_running_loop().create_task(self._run(context))
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        if not self._task.done():
            self._cancelled = True
            self._task.cancel()
        elif self._connection is not None:
            self._connection.give_up()

    async def _run(self, context: ssl.SSLContext) -> None:
        uri = parse_uri(self._dial.url)
        self._socket = await open_socket(self._dial, uri.host, uri.port)
        # The bound of a frame. A message's is kept here: the library's would count a ping between
        # two fragments as part of the message.
        protocol = _Protocol(uri, max_size=(None, self._dial.max_frame_bytes))
        _, self._connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(protocol, self._dial, self._receiver, self._clock),
            sock=self._socket,
            ssl=context if uri.secure else None,
            server_hostname=uri.host if uri.secure else None,
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._connection is not None:
            if self._cancelled:
                self._connection.give_up()
            return  # its end is the connection's to tell
        hang_up(self._socket)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        tell_closed(self._receiver.closed, failed(error))


class _Protocol(ClientProtocol):
    """websockets' protocol with two of its habits broken: it answers pings, which count against
    the venue's rate, and it takes a close frame inside a fragmented message for a violation, which
    would hide the venue's code and reason.
    """

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PING:
            self.events.append(frame)
            return
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class _Connection(asyncio.Protocol):
    """One WebSocket from the TCP connection on."""

    def __init__(self, protocol: _Protocol, dial: Dial, receiver: Receiver, clock: Clock) -> None:
        self._protocol = protocol
        self._dial = dial
        self._receiver = receiver
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._opened = False
        self._over = False  # this side is done: the receiver hears `closed` alone
        self._closing = False  # this side sent its close frame first
        self._cancelled = False
        self._error: Exception | None = None
        self._broken = ""  # our own verdict, beside the library's
        self._refused: Response | None = None
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._parts_opcode = 0
        self._backstop: asyncio.TimerHandle | None = None

    def give_up(self) -> None:
        """Cancelled during the handshake."""
        if not self._opened:
            self._cancelled = True
            self.abort()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        request = self._protocol.connect()
        for name, value in self._dial.headers.items():
            if name.lower() == "host":
                del request.headers["Host"]
            request.headers[name] = value
        self._protocol.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        now = self._clock.time_ns()
        if self._protocol.reader.eof:
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if self._over:
                break
            self._handle(event, now)
        self._flush()
        if self._protocol.close_expected():
            self._wind_down()

    def eof_received(self) -> None:
        self._protocol.receive_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._over = True
        if self._backstop is not None:
            self._backstop.cancel()
        self._protocol.receive_eof()
        tell_closed(self._receiver.closed, self._how(exc))

    # Events.

    def _handle(self, event: object, now: int) -> None:
        try:
            if isinstance(event, Frame):
                self._frame(event, now)
            elif self._protocol.handshake_exc is None:
                self._opened = True
                self._receiver.opened(self)
                self._message = self._receiver.message
            elif isinstance(event, Response):
                self._refused = event
        except Exception as error:
            self._error = error
            self.abort()

    def _frame(self, frame: Frame, now: int) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            kind = TEXT if opcode is Opcode.TEXT else BINARY
            if frame.fin:
                self._message(bytes(frame.data), now, kind)
            else:
                self._parts_opcode = kind
                self._keep(frame, now)
        elif opcode is Opcode.CONT:
            self._keep(frame, now)
        elif self._closing:
            return
        elif opcode is Opcode.PING:
            self._receiver.pinged(bytes(frame.data))
        elif opcode is Opcode.PONG:
            self._receiver.ponged(bytes(frame.data))

    def _keep(self, frame: Frame, now: int) -> None:
        self._parts_bytes += len(frame.data)
        if self._parts_bytes > self._dial.max_frame_bytes:
            self._broken = f"a message of more than {self._dial.max_frame_bytes} bytes"
            self._over = True
            self._protocol.fail(TOO_BIG, self._broken)
            return
        self._parts.append(bytes(frame.data))
        if frame.fin:
            payload = b"".join(self._parts)
            self._parts.clear()
            self._parts_bytes = 0
            self._message(payload, now, self._parts_opcode)

    def _wind_down(self) -> None:
        """The handshake failed, a close frame came, or the peer broke the rules."""
        transport, protocol = self._transport, self._protocol
        violated = protocol.parser_exc is not None or self._broken
        waiting = self._closing and protocol.close_rcvd is None and not violated
        if transport is None or waiting or self._backstop is not None:
            return
        self._over = True
        loop = asyncio.get_running_loop()
        loop.call_later(LINGER if violated else 0.0, transport.close)
        self._backstop = loop.call_later(LAST_WORDS, transport.abort)

    def _how(self, exc: Exception | None) -> Closed:
        protocol = self._protocol
        if self._error is not None:
            return Closed(ABNORMAL, f"receiver failed: {self._error!r}", error=self._error)
        if not self._opened:
            return self._failed_handshake(exc)
        if self._broken:
            return Closed(TOO_BIG, self._broken)
        if protocol.close_rcvd is not None and protocol.parser_exc is None:
            received = protocol.close_rcvd
            return Closed(int(received.code), received.reason, protocol.close_sent is not None)
        if protocol.parser_exc is not None and protocol.close_sent and not self._closing:
            return Closed(int(protocol.close_sent.code), protocol.close_sent.reason)
        return Closed(ABNORMAL, str(exc or ""))

    def _failed_handshake(self, exc: Exception | None) -> Closed:
        if self._cancelled:
            return failed(asyncio.CancelledError())
        refusal = self._protocol.handshake_exc
        response = self._refused
        if response is None or not isinstance(refusal, InvalidStatus):
            return failed(exc or refusal)
        return Closed(
            ABNORMAL,
            f"HTTP {response.status_code} {response.reason_phrase}",
            status=response.status_code,
            retry_after=retry_after(response.headers.get("Retry-After"), self._clock.time_ns()),
        )

    def _flush(self) -> None:
        writes = self._protocol.data_to_send()
        if self._transport is not None and not self._transport.is_closing():
            for data in writes:
                if data:  # an empty one asks for a half-close; `_wind_down` closes for good
                    self._transport.write(data)

    # `Connection`.

    def send_text(self, data: bytes) -> None:
        if self._protocol.state is State.OPEN and not self._over:
            self._protocol.send_text(data)
            self._flush()

    def ping(self, payload: bytes = b"") -> None:
        if self._protocol.state is State.OPEN and not self._over:
            self._protocol.send_ping(payload)
            self._flush()

    def pong(self, payload: bytes) -> None:
        if self._protocol.state is State.OPEN and not self._over:
            self._protocol.send_pong(payload)
            self._flush()

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        if self._protocol.state is State.OPEN and not self._over:
            self._closing = True
            self._protocol.send_close(code, reason)
            self._flush()

    def abort(self) -> None:
        self._over = True
        if self._transport is not None:
            self._transport.abort()

    def remote(self) -> str:
        if self._transport is None or self._over:
            return ""
        return peer_name(self._transport.get_extra_info("peername"))
