"""A real WebSocket server on loopback whose behavior is a script, down to the single byte.

    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        await peer.text(b'{"hello": 1}')
        await peer.expect("text")

    async with ScriptedServer(script) as server:
        link = ...(server.url("/stream"))

What a script cannot say with `text`, `ping` or `close` it says with `raw`: half frames, reserved
bits, garbage instead of a handshake.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

Event = tuple[str, bytes]
"""("text" | "binary" | "ping" | "pong" | "close" | "gone", payload)."""

_NAMES = {
    Opcode.TEXT: "text",
    Opcode.BINARY: "binary",
    Opcode.PING: "ping",
    Opcode.PONG: "pong",
    Opcode.CLOSE: "close",
}


class ServerPeer:
    """The server's end of one TCP connection.

    `request` is the handshake that came. `received` holds every event so far. Pings and close
    frames are answered while the script waits in `event` or `expect`, as real servers do.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.request: Request | None = None
        self.received: list[Event] = []
        self.close_code = 0  # of the client's close frame; 1005 where it had none
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol(max_size=None)
        self._events: list[Event] = []
        self._ended = False
        self.left = asyncio.Event()  # set when the client hung up or this side aborted

    @property
    def path(self) -> str:
        return self.request.path if self.request is not None else ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The handshake's headers; empty before it came."""
        return self.request.headers if self.request is not None else {}

    async def handshake(self) -> Request:
        """Read the client's request without answering it. Raises ConnectionError without one."""
        while self.request is None:
            if not await self._read():
                raise ConnectionError("the client went away before its handshake")
        return self.request

    async def accept(
        self, headers: Mapping[str, str] | None = None, *, followed_by: bytes = b""
    ) -> None:
        """Complete the handshake; `followed_by` are raw bytes in the same segment."""
        request = await self.handshake()
        response = self._protocol.accept(request)
        for name, value in (headers or {}).items():
            response.headers[name] = value
        self._protocol.send_response(response)
        await self.raw(b"".join(self._protocol.data_to_send()) + followed_by)

    async def refuse(
        self, status: int, headers: Mapping[str, str] | None = None, body: str = ""
    ) -> None:
        """Answer the handshake with another status and hang up."""
        await self.handshake()
        response = self._protocol.reject(status, body)
        for name, value in (headers or {}).items():
            response.headers[name] = value
        self._protocol.send_response(response)
        await self._flush()
        self._writer.close()

    async def text(self, data: bytes) -> None:
        await self.frame(Opcode.TEXT, data)

    async def binary(self, data: bytes) -> None:
        await self.frame(Opcode.BINARY, data)

    async def ping(self, payload: bytes = b"") -> None:
        await self.frame(Opcode.PING, payload)

    async def pong(self, payload: bytes = b"") -> None:
        await self.frame(Opcode.PONG, payload)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame and wait for the client's answer."""
        self._protocol.send_close(code, reason)
        await self._flush()
        await self.gone()

    async def frame(self, opcode: int, data: bytes, *, fin: bool = True) -> None:
        """One frame as it is; with `fin` False the first or middle part of a message."""
        await self.raw(Frame(Opcode(opcode), data, fin).serialize(mask=False))

    async def raw(self, data: bytes) -> None:
        """These bytes on the TCP connection, whatever they mean."""
        if not self.left.is_set() and not self._ended:
            self._writer.write(data)
            await self._writer.drain()

    def end(self) -> None:
        """Send nothing more (a half-closed TCP connection); what the client sends is still read."""
        self._ended = True
        self._writer.write_eof()

    def abort(self) -> None:
        """Reset the TCP connection."""
        self.left.set()
        self._writer.transport.abort()

    async def event(self) -> Event:
        """The next thing that the client sent; ("gone", b"") when it hung up."""
        while not self._events:
            if not await self._read():
                return ("gone", b"")
        return self._events.pop(0)

    async def expect(self, kind: str) -> bytes:
        """The payload of the next event of this kind, skipping others. Raises ConnectionError."""
        while True:
            found, payload = await self.event()
            if found == kind:
                return payload
            if found == "gone":
                raise ConnectionError(f"the client went away before a {kind}")

    async def gone(self) -> None:
        """Wait, answering pings, until the client hung up."""
        while (await self.event())[0] != "gone":
            pass

    async def _read(self) -> bool:
        """Take in what comes next; False at the end."""
        if self.left.is_set():
            return False
        try:
            data = await self._reader.read(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.left.set()
            return False
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self.request = event
            elif isinstance(event, Frame):
                self._note(event)
        await self._flush()
        return True

    def _note(self, frame: Frame) -> None:
        payload = bytes(frame.data)
        if frame.opcode is Opcode.CLOSE:
            self.close_code = Close.parse(payload).code
        event = (_NAMES.get(frame.opcode, "continuation"), payload)
        self.received.append(event)
        self._events.append(event)

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data and not self._ended and not self._writer.is_closing():
                self._writer.write(data)
            elif not data:
                self._writer.close()
        if not self._writer.is_closing():
            try:
                await self._writer.drain()
            except ConnectionError:
                self.left.set()


Script = Callable[[ServerPeer], Awaitable[object]]


async def stay(peer: ServerPeer) -> None:
    """The plainest script: accept, and listen until the client hangs up."""
    await peer.accept()
    await peer.gone()


class ScriptedServer:
    """Runs `script` for every connection to an ephemeral port of 127.0.0.1.

    `peers` holds the connections in order. An exception of a script, other than its client's
    leaving, is raised when the server's block ends.
    """

    def __init__(self, script: Script = stay, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self.peers: list[ServerPeer] = []
        self.port = 0
        self._script = script
        self._ssl = ssl_context
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        scheme = "wss" if self._ssl is not None else "ws"
        return f"{scheme}://{host}:{self.port}{path}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if self._failure is not None and error is None:
            raise self._failure

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = ServerPeer(reader, writer)
        self.peers.append(peer)
        task = asyncio.get_running_loop().create_task(self._serve(peer, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, peer: ServerPeer, writer: asyncio.StreamWriter) -> None:
        try:
            await self._script(peer)
        except ConnectionError:
            return  # the client left; what it sent is in `received`
        except Exception as error:
            self._failure = self._failure or error
        finally:
            writer.transport.abort() if peer.left.is_set() else writer.close()
