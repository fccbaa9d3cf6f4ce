"""The network of virtual chaos: bytes in order, hosts that stand still, resets, and time."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from chaos.network import LATENCY, End, HostClock, VirtualLoop

Scene = Callable[["Wire"], Coroutine[Any, Any, None]]


class Heard(asyncio.Protocol):
    """Notes when what came."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.came: list[tuple[float, object]] = []
        self.end: End

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.end = cast(End, transport)

    def data_received(self, data: bytes) -> None:
        self.came.append((self.loop.time(), data))

    def connection_lost(self, error: Exception | None) -> None:
        self.came.append((self.loop.time(), error))

    @property
    def what(self) -> list[object]:
        return [what for _, what in self.came]


class Wire:
    """A connection of the gateway to the venue."""

    def __init__(self, loop: VirtualLoop, gateway: Heard, venue: Heard) -> None:
        self.loop = loop
        self.gateway = gateway
        self.venue = venue


def play(scene: Scene) -> None:
    loop = VirtualLoop(1)

    async def begin() -> None:
        venue, gateway = Heard(loop), Heard(loop)
        server = await loop.create_server(lambda: venue)
        sock = socket.socket()
        await loop.sock_connect(sock, server.getsockname())
        await loop.create_connection(lambda: gateway, sock=sock)
        await scene(Wire(loop, gateway, venue))

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(begin())


def test_bytes_arrive_in_order_and_after_a_latency() -> None:
    async def scene(wire: Wire) -> None:
        sent = wire.loop.time()
        for i in range(100):
            wire.venue.end.write(b"%d." % i)
        await asyncio.sleep(1.0)
        assert b"".join(cast(list[bytes], wire.gateway.what)) == b"".join(
            b"%d." % i for i in range(100)
        )
        assert LATENCY[0] <= wire.gateway.came[0][0] - sent <= LATENCY[1]

    play(scene)


def test_what_comes_to_a_host_that_stands_still_is_read_when_it_goes_on() -> None:
    async def scene(wire: Wire) -> None:
        fired: list[float] = []
        HostClock(wire.loop, wire.loop.gateway).call_later(0.5, lambda: fired.append(1.0))
        HostClock(wire.loop, wire.loop.venue).call_later(0.5, lambda: fired.append(2.0))
        wire.loop.gateway.pause(3.0)
        began = wire.loop.time()
        wire.venue.end.write(b"a")
        wire.gateway.end.write(b"b")
        await asyncio.sleep(1.0)
        wire.venue.end.write(b"c")
        assert (wire.gateway.came, wire.venue.what, fired) == ([], [b"b"], [2.0])
        assert wire.venue.end.get_write_buffer_size() == 1, "unread"
        await asyncio.sleep(3.0)
        assert wire.gateway.what == [b"ac"]
        assert wire.gateway.came[0][0] == pytest.approx(began + 3.0)
        assert fired == [2.0, 1.0]

    play(scene)


def test_an_orderly_end_comes_behind_all_data_and_a_reset_before_it() -> None:
    async def orderly(wire: Wire) -> None:
        wire.venue.end.write(b"last")
        wire.venue.end.close()
        assert wire.gateway.end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1
        await asyncio.sleep(1.0)
        assert (wire.gateway.what, wire.venue.what) == ([b"last", None], [None])

    async def reset(wire: Wire) -> None:
        assert wire.gateway.end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1
        wire.venue.end.write(b"lost")
        linger = struct.pack("ii", 1, 0)
        wire.venue.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        wire.venue.end.abort()
        await asyncio.sleep(1.0)
        assert isinstance(wire.gateway.what[0], ConnectionResetError)
        assert wire.venue.what == [None]

    play(orderly)
    play(reset)


def test_time_that_nothing_will_end_is_an_error() -> None:
    async def scene(wire: Wire) -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        play(scene)
