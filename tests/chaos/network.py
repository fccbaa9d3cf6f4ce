"""A network, two hosts and time, all within one event loop: a run without sockets and without
waiting.

`VirtualLoop` never waits: where nothing is left to do, its time jumps to the next timer. What would
go over TCP goes through pipes in memory, in order and with a latency; everything above the sockets
is the real thing. A run depends on its seed alone, so that one which fails can be run again, with
whatever it takes to see why.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from k4.core.clock import Timer

LATENCY = (0.001, 0.003)  # seconds from a write to its arrival
FIRST_PORT = 50_000


class Selector(selectors.SelectSelector):
    """Looks, and lets time jump instead of waiting."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise RuntimeError("nothing will ever happen again")
            self.loop.now += max(timeout, 0.0)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, whose TCP is a virtual network.

    now: seconds. Servers are the venue's, connections are made by the gateway.
    """

    def __init__(self, seed: int) -> None:
        self.now = 1_000.0
        selector = Selector()
        selector.loop = self
        super().__init__(selector)
        self.rng = random.Random(seed)
        self.venue = Host(self)
        self.gateway = Host(self)
        self._listening: dict[int, Callable[[], asyncio.BaseProtocol]] = {}
        self._dialled: dict[socket.socket, int] = {}

    def time(self) -> float:
        return self.now

    async def getaddrinfo(  # type: ignore[override]
        self, host: str, port: int, **options: Any
    ) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port or 0))]

    async def create_server(  # type: ignore[override]
        self, factory: Callable[[], asyncio.BaseProtocol], *_: Any, **options: Any
    ) -> Server:
        port = FIRST_PORT + len(self._listening)
        self._listening[port] = factory
        return Server(port)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        await asyncio.sleep(self.rng.uniform(*LATENCY))
        self._dialled[sock] = address[1]

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], asyncio.BaseProtocol], *_: Any, sock: socket.socket, **__: Any
    ) -> tuple[End, asyncio.BaseProtocol]:
        port = self._dialled.pop(sock)
        sock.close()
        client = End(self, self.gateway, port, cast(asyncio.Protocol, factory()))
        served = cast(asyncio.Protocol, self._listening[port]())
        server = End(self, self.venue, port, served)
        client.peer, server.peer = server, client
        server.protocol.connection_made(server)
        client.protocol.connection_made(client)
        return client, client.protocol


class Server:
    """What `create_server` gives: it has one address."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sockets = (self,)

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self._port

    def close(self) -> None:
        """Nobody connects any more."""


class End(asyncio.Transport):
    """One end of a connection. `unread`: bytes that arrived and wait for the host."""

    peer: End

    def __init__(
        self, loop: VirtualLoop, host: Host, port: int, protocol: asyncio.Protocol
    ) -> None:
        super().__init__()
        self.host = host
        self.protocol = protocol
        self.unread = 0
        self.closed = False  # on this side: nothing is written or read any more
        self._loop = loop
        self._port = port
        self._due = 0.0
        self._under_way: deque[bytes | Exception | None] = deque()
        self._arrived: deque[bytes | Exception | None] = deque()
        self._lingers = True

    # asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", self._port), "socket": self}.get(name, default)

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        self._lingers = name != socket.SO_LINGER

    def getsockopt(self, level: int, name: int, length: int) -> bytes:
        """TCP_INFO: whether both sides are still there."""
        return bytes([8 if self.peer.closed else 1])

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return self.peer.unread

    def write(self, data: Any) -> None:
        if not self.closed and not self.peer.closed:
            self._send(bytes(data))

    def close(self) -> None:
        self._end(None)

    def abort(self) -> None:
        if not self._lingers:
            self.peer._under_way = deque(b"" for _ in self.peer._under_way)
            self.peer._arrived.clear()
            self._end(ConnectionResetError("reset by peer"))
        else:
            self._end(None)

    def _end(self, how: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self._send(how)
            self._loop.call_soon(self.protocol.connection_lost, None)

    # The network

    def _send(self, what: bytes | Exception | None) -> None:
        peer, now = self.peer, self._loop.time()
        peer._due = max(peer._due, now + self._loop.rng.uniform(*LATENCY))
        peer._under_way.append(what)
        self._loop.call_at(peer._due, peer._arrive)

    def _arrive(self) -> None:
        what = self._under_way.popleft()
        if self.closed:
            return
        self._arrived.append(what)
        self.unread += len(what) if isinstance(what, bytes) else 0
        if not self.host.holds(self):
            self.read()

    def read(self) -> None:
        """Take what has arrived, in one piece."""
        items, self._arrived, self.unread = self._arrived, deque(), 0
        data = b"".join(item for item in items if isinstance(item, bytes))
        if data and not self.closed:
            self.protocol.data_received(data)
        for end in (item for item in items if not isinstance(item, bytes)):
            if not self.closed:
                if end is None:
                    self.protocol.eof_received()
                self._finish(end)

    def _finish(self, error: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self.protocol.connection_lost, error)


class Host:
    """A process that may stand still: what comes meanwhile, and whatever is due, waits."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._paused = False
        self._unread: list[End] = []
        self._due: list[HostTimer] = []

    def pause(self, seconds: float) -> None:
        if not self._paused:
            self._paused = True
            self._loop.call_later(seconds, self._go_on)

    def holds(self, end: End) -> bool:
        """Whether it stands still; then it reads this end later."""
        if self._paused and end not in self._unread:
            self._unread.append(end)
        return self._paused

    def defers(self, timer: HostTimer) -> bool:
        if self._paused:
            self._due.append(timer)
        return self._paused

    def _go_on(self) -> None:
        """Event loops differ in whether sockets or timers come first, and in which socket does."""
        self._paused = False
        ends, self._unread = self._unread, []
        due, self._due = self._due, []
        self._loop.rng.shuffle(ends)
        work: list[Callable[[], object]] = [end.read for end in ends]
        at = self._loop.rng.choice((0, len(work)))
        work[at:at] = [timer.fire for timer in due]
        for item in work:
            item()


class HostTimer:
    """A pending call on a host's clock."""

    def __init__(self, host: Host, callback: Callable[..., object], args: tuple[object, ...]):
        self._host = host
        self._callback = callback
        self._args = args
        self._pending = True

    def cancel(self) -> None:
        self._pending = False

    def fire(self) -> None:
        if self._pending and not self._host.defers(self):
            self._pending = False
            self._callback(*self._args)


class HostClock:
    """A `k4.core.clock.Clock` in virtual time, on one host."""

    START_NS = 1_790_000_000_000_000_000

    def __init__(self, loop: VirtualLoop, host: Host) -> None:
        self._loop = loop
        self._host = host

    def time_ns(self) -> int:
        return self.START_NS + round(self._loop.time() * 1e9)

    def monotonic(self) -> float:
        return self._loop.time()

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        timer = HostTimer(self._host, callback, args)
        self._loop.call_later(max(0.0, delay), timer.fire)
        return timer
