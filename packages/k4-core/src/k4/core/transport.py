"""What a link needs of a WebSocket library: one small interface, and the choice of an
implementation.

Callbacks instead of coroutines: a frame goes from the library's callback straight into the session,
with no queue and no task in between, and the in-memory transport can run on a manual clock.

What every implementation keeps, and what one test suite checks for all of them:

- Order of calls on a `Receiver`: `opened` once, then `message`, `pinged`, `ponged` in any number,
  then `closed` once. A connection that never opens gets `closed` alone. After `closed` nothing more
  is called, and after the link's own `abort` nothing but `closed`. After its own `close` what was
  on its way still counts: messages are delivered until the peer's close frame, pings and pongs are
  not.
- No call comes from inside `connect`, `cancel`, `close`, `abort`, `send_text`, `ping` or `pong`.
- `receiver.message` is looked up once, right after `opened` has returned, so that a receiver can
  put the final consumer there and no hop lies between the library's callback and the session.
- Fragments are reassembled; a message longer than `max_frame_bytes` is refused with close code
  1009, a violation of the framing (reserved bits, masked server frames, stray continuations) with
  1002. The text of a data message is not checked for UTF-8: its decoder does that anyway, and such
  a message is dropped there without stopping the line. Invalid UTF-8 in a close frame is 1007.
- Redirects are not followed and no extension is offered. A refused handshake carries its status.
- Nothing is answered by itself (the link answers pings; a close frame alone is echoed) and there
  are no timers besides the short one that ends a closing socket: pings, pong deadlines and
  handshake deadlines are the link's.
- An exception that escapes the receiver is a bug of the receiver: the connection is aborted and
  `closed` carries the exception, while the loop goes on.
"""

from __future__ import annotations

import email.utils
import math
import ssl
from collections.abc import Mapping
from typing import Protocol

import msgspec

from k4.core.clock import Clock, SystemClock
from k4.core.errors import K4Error

TEXT = 1
BINARY = 2

NORMAL = 1000
PROTOCOL_ERROR = 1002
NO_STATUS = 1005  # a close frame came, without a code
ABNORMAL = 1006  # no close frame came
TOO_BIG = 1009

_LONGEST_RETRY_AFTER = 3 * 86_400.0  # the longest ban that a venue documents (Binance: 3 days)


class Closed(msgspec.Struct, frozen=True):
    """How a connection ended.

    code: the peer's close code, or the code with which this side gave up on it; 1005 for a close
    frame without a code, 1006 where no close frame went either way. reason: the peer's or the
    library's words. clean: the closing handshake was completed. status: the HTTP status of a
    refused handshake, else 0. retry_after: seconds that the refusal asks to wait, else 0. error:
    what escaped the receiver, else None.
    """

    code: int
    reason: str
    clean: bool = False
    status: int = 0
    retry_after: float = 0.0
    error: Exception | None = None


class Connection(Protocol):
    """One open WebSocket, seen from the link. No method raises; on a dead one they do nothing."""

    def send_text(self, data: bytes) -> None:
        """Send one text message (UTF-8). Never blocks; lost where the connection is going down."""
        ...

    def ping(self, payload: bytes = b"") -> None: ...

    def pong(self, payload: bytes) -> None: ...

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Begin the closing handshake; `closed` follows when the peer answers.

        `code` must be one that may be sent (RFC 6455, 7.4), `reason` at most 123 bytes.
        """
        ...

    def abort(self) -> None:
        """Drop the socket without a handshake; `closed` follows (code 1006)."""
        ...

    def remote(self) -> str:
        """The peer's address as text, empty where unknown."""
        ...


class Receiver(Protocol):
    """What a link hands to a transport for one connection."""

    def opened(self, connection: Connection, /) -> None: ...

    def message(self, payload: bytes, received_ns: int, opcode: int, /) -> None:
        """One whole data message; `received_ns` is the wall clock when its last bytes arrived."""
        ...

    def pinged(self, payload: bytes, /) -> None: ...

    def ponged(self, payload: bytes, /) -> None: ...

    def closed(self, how: Closed, /) -> None: ...


class Dial(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how to connect.

    url: `ws://` or `wss://`. headers: added to the handshake. ssl_context: None verifies against
    the system's authorities. address: pins one IP address of the host; the host name stays in the
    `Host` header, in SNI and in the check of the certificate.
    """

    url: str
    headers: Mapping[str, str] = {}
    max_frame_bytes: int = 1 << 20
    ssl_context: ssl.SSLContext | None = None
    address: str = ""

    def __repr__(self) -> str:
        """Without the values of headers: one of them may be a key."""
        return f"Dial({self.url!r}, address={self.address!r}, headers={sorted(self.headers)})"


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


def choose(name: str = "auto", clock: Clock | None = None) -> Transport:
    """The transport of that name: `picows`, `websockets`, or `auto` (picows where installed).

    Raises K4Error where picows is asked for by name and is not installed, or for another name.
    """
    clock = clock or SystemClock()
    if name not in ("auto", "picows", "websockets"):
        raise K4Error(f"no transport {name!r}", remedy="use auto, picows or websockets")
    if name != "websockets":
        try:
            from k4.core.transport_picows import PicowsTransport
        except ImportError as error:
            if name == "picows":
                raise K4Error(
                    "transport 'picows' is not installed",
                    remedy="pip install 'k4-md[fast]', or set transport to websockets",
                ) from error
        else:
            return PicowsTransport(clock)
    from k4.core.transport_websockets import WebsocketsTransport

    return WebsocketsTransport(clock)


def tls_context(ca_file: str = "") -> ssl.SSLContext:
    """A context that verifies certificate and host name; `ca_file` adds authorities (a proxy's).

    Raises K4Error where the file cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise K4Error(
                f"ca_file {ca_file!r} cannot be used: {error}",
                remedy="name a readable file of PEM certificates",
            ) from error
    return context


def retry_after(value: str | None, now_ns: int) -> float:
    """Seconds that a `Retry-After` header asks for (RFC 9110, 10.2.3: seconds, or an HTTP date).

    0 where it is absent, malformed or past; never more than three days.
    """
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(value).timestamp()
        except (ValueError, OverflowError, OSError):
            return 0.0
        seconds = until - now_ns / 1e9
    if math.isnan(seconds):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)
