"""What the tests of the simulated venues share: a venue at rest, and clients of two kinds.

`dial` is a well-behaved client. `Raw` sends and reads frames by hand and answers nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect

from k4.runner.sim import ws
from k4.runner.sim.market import Pace
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

Json = dict[str, Any]
REST = Pace(start=False)
_MASK = b"\x37\xfa\x21\x3d"


@asynccontextmanager
async def binance(
    *, faults: tuple[Json, ...] = (), pace: Pace = REST, seed: int = 7, **changes: Any
) -> AsyncIterator[SimVenues]:
    """A simulated Binance, whose market waits for `emit` unless a pace is given."""
    venue = VenueSpec(name="binance", pace=pace, cadence_scale=10.0, **changes)
    async with SimVenues(SimSpec(venues=(venue,), seed=seed, faults=faults)) as venues:
        yield venues


async def until(condition: Callable[[], object]) -> None:
    """Until it holds; client and server share this loop, so each turn lets both go on."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


def url_of(venues: SimVenues, endpoint: str, path: str = "") -> str:
    url = venues.endpoints("binance")[endpoint]
    return "/".join(url.split("/")[:3]) + path if path else url


def dial(venues: SimVenues, endpoint: str, path: str = "", **keywords: Any) -> connect:
    url = url_of(venues, endpoint, path)
    return connect(url, ping_interval=None, max_queue=None, **keywords)


async def ask(client: ClientConnection, method: str, *params: object, id: object = 1) -> Json:
    request: Json = {"method": method, "id": id}
    if params:
        request["params"] = list(params)
    await client.send(json.dumps(request))
    answer: Json = json.loads(await client.recv())
    return answer


def masked(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame, with the mask of the RFC's example."""
    frame = ws.encode(opcode, payload, final=final)
    head = bytearray(frame[: len(frame) - len(payload)])
    head[1] |= 0x80
    body = bytes(byte ^ _MASK[at % 4] for at, byte in enumerate(payload))
    return bytes(head) + _MASK + body


class Raw:
    """A client by hand. `opened` is the answer's status line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = ""

    @classmethod
    async def open(cls, url: str, *, receive_buffer: int = 0) -> Raw:
        """Send the handshake and read its answer. receive_buffer: the kernel's, in bytes."""
        parts = urlsplit(url)
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        self = cls(*await asyncio.open_connection(sock=sock))
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        self.writer.write(
            f"GET {target} HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.status = head.split(b"\r\n")[0].decode()
        return self

    def send(self, opcode: int, payload: bytes = b"") -> None:
        self.writer.write(masked(opcode, payload))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: (opcode, payload)."""
        first, size = await self.reader.readexactly(2)
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await self.reader.readexactly(8), "big")
        return first & 0x0F, await self.reader.readexactly(size)

    async def until(self, opcode: int) -> bytes:
        """The payload of the next frame of that kind; others are passed over."""
        while True:
            found, payload = await self.frame()
            if found == opcode:
                return payload

    async def close_code(self) -> int:
        return int.from_bytes((await self.until(ws.CLOSE))[:2], "big")

    async def close(self) -> None:
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def __aenter__(self) -> Raw:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
