"""What a link needs of a WebSocket library: one small interface, and the choice of an
implementation.

Callbacks instead of coroutines: a frame goes from the library's callback straight into the session,
with no queue and no task in between, and the in-memory transport can run on a manual clock.

Order of calls on a `Receiver`: `opened` once, then `message`, `pinged`, `ponged` in any number,
then `closed` once. A connection that never opens gets `closed` alone. After `closed` nothing more
is called. Implementations reassemble fragments, refuse a message longer than `max_frame_bytes`
(close code 1009), answer nothing by themselves (the link answers pings) and have no timers of
their own: pings, pong deadlines and handshake deadlines are the link's.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Protocol

import msgspec

TEXT = 1
BINARY = 2


class Closed(msgspec.Struct, frozen=True):
    """How a connection ended.

    code: the close code, 1006 where no close frame came. reason: the peer's or the library's words.
    clean: the closing handshake was completed. status: the HTTP status of a refused handshake,
    else 0.
    """

    code: int
    reason: str
    clean: bool = False
    status: int = 0


class Connection(Protocol):
    """One open WebSocket, seen from the link."""

    def send_text(self, data: bytes) -> None:
        """Send one text message (UTF-8). Never blocks; lost where the connection is going down."""
        ...

    def ping(self, payload: bytes = b"") -> None: ...

    def pong(self, payload: bytes) -> None: ...

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake; `closed` follows."""
        ...

    def abort(self) -> None:
        """Drop the socket without a handshake; `closed` follows (code 1006)."""
        ...

    def remote(self) -> str:
        """The peer's address as text, empty where unknown."""
        ...


class Receiver(Protocol):
    """What a link hands to a transport for one connection."""

    def opened(self, connection: Connection) -> None: ...

    def message(self, payload: bytes, received_ns: int, opcode: int) -> None:
        """One whole data message; `received_ns` is the wall clock when its last bytes arrived."""
        ...

    def pinged(self, payload: bytes) -> None: ...

    def ponged(self, payload: bytes) -> None: ...

    def closed(self, how: Closed) -> None: ...


class Dial(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect. `address` pins one address of the host (host name kept for TLS)."""

    url: str
    headers: Mapping[str, str] = {}
    max_frame_bytes: int = 1 << 20
    ssl_context: ssl.SSLContext | None = None
    address: str = ""


class Attempt(Protocol):
    """A connection attempt under way."""

    def cancel(self) -> None:
        """Give the attempt up; `closed` is called unless it was called before."""
        ...


class Transport(Protocol):
    """Opens connections. `name` is `picows`, `websockets` or `memory`."""

    name: str

    def connect(self, dial: Dial, receiver: Receiver) -> Attempt:
        """Begin to connect; the receiver hears the outcome. Never raises."""
        ...
