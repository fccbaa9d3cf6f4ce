"""A transport without sockets: links on one side, peers that a test drives on the other.

Everything happens on the injected clock and nothing inside the link's own calls: what a link sends
reaches the peer's hooks, and what it closes is confirmed, by timers that are due at once.
"""

from __future__ import annotations

from collections.abc import Callable

from k4.core.clock import Clock
from k4.core.transport import (
    ABNORMAL,
    BINARY,
    NORMAL,
    TEXT,
    TOO_BIG,
    Closed,
    Dial,
    Receiver,
)


class MemoryPeer:
    """The venue's end of one attempt and of the connection that it may become.

    A test tells it what to do (`accept`, `refuse`, `text`, `close` ...) and reads what came:
    `texts` are the client's messages, `received` everything in order, as ("text", data), ("ping",
    payload), ("pong", payload), ("close", code). It answers pings and close frames by itself unless
    `answers` is False. `on_text` is called with each message of the client.
    """

    def __init__(self, clock: Clock, dial: Dial, receiver: Receiver) -> None:
        self.dial = dial
        self.texts: list[bytes] = []
        self.received: list[tuple[str, bytes | int]] = []
        self.on_text: Callable[[bytes], object] | None = None
        self.answers = True
        self.open = False
        self.done = False  # the receiver heard `closed`
        self._clock = clock
        self._receiver = receiver
        self._message: Callable[[bytes, int, int], None] | None = None
        self._reachable = True
        self._client_closing = False  # the client sends nothing more
        self._over = False  # it hears `closed` alone; its own close frame does not yet bring that
        self._cancelled = False
        self._reason = ""

    # The venue's side.

    def accept(self, delay: float = 0.0) -> None:
        """Complete the handshake after `delay` seconds."""
        self._clock.call_later(delay, self._accept)

    def refuse(self, status: int, retry_after: float = 0.0, delay: float = 0.0) -> None:
        """Answer the handshake with an HTTP status."""
        how = Closed(ABNORMAL, f"HTTP {status}", status=status, retry_after=retry_after)
        self._clock.call_later(delay, self._finish, how)

    def fail(self, reason: str = "connection refused", delay: float = 0.0) -> None:
        """No connection, or the end of one without a close frame."""
        self._clock.call_later(delay, self._finish, Closed(ABNORMAL, reason))

    def text(self, data: bytes) -> None:
        """Send one text message; the receiver has it when this returns."""
        self._deliver(data, TEXT)

    def binary(self, data: bytes) -> None:
        """Send one binary message; the receiver has it when this returns."""
        self._deliver(data, BINARY)

    def ping(self, payload: bytes = b"") -> None:
        if self._hears():
            self._call(self._receiver.pinged, payload)

    def pong(self, payload: bytes = b"") -> None:
        if self._hears():
            self._call(self._receiver.ponged, payload)

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Send a close frame, which the client's end answers."""
        if self._hears():
            self._client_closing = self._over = True
            self._clock.call_later(0.0, self._finish, Closed(code, reason, clean=True))

    def half_open(self) -> None:
        """From now on nothing arrives on either side, and neither learns of it."""
        self._reachable = False

    # The client's side: `Connection` and `Attempt`.

    def send_text(self, data: bytes) -> None:
        if self._can_send():
            self._note("text", data)
            self.texts.append(data)
            if self.on_text is not None:
                self._clock.call_later(0.0, self._hand_over, data)

    def ping_from_client(self, payload: bytes = b"") -> None:
        if self._can_send():
            self._note("ping", payload)
            if self.answers:
                self._clock.call_later(0.0, self.pong, payload)

    def pong_from_client(self, payload: bytes) -> None:
        if self._can_send():
            self._note("pong", payload)

    def close_from_client(self, code: int, reason: str) -> None:
        if self._can_send():
            self._note("close", code)
            self._client_closing = True
            if self.answers and self._reachable:
                self._clock.call_later(0.0, self._finish, Closed(code, reason, clean=True))

    def abort(self) -> None:
        self._client_closing = self._over = True
        self._clock.call_later(0.0, self._finish, Closed(ABNORMAL, self._reason))

    def cancel(self) -> None:
        if self.open or self.done:
            return
        self._cancelled = True
        self._clock.call_later(0.0, self._finish, Closed(ABNORMAL, "cancelled"))

    # Between them.

    def _accept(self) -> None:
        if self.open or self.done or self._cancelled:
            return
        self.open = True
        self._call(self._receiver.opened, MemoryConnection(self))
        if not self._client_closing:
            self._message = self._receiver.message

    def _hears(self) -> bool:
        return self.open and self._reachable and not self._client_closing and not self.done

    def _can_send(self) -> bool:
        return self.open and not self._client_closing and not self.done

    def _note(self, what: str, content: bytes | int) -> None:
        if self._reachable:
            self.received.append((what, content))

    def _hand_over(self, data: bytes) -> None:
        if self.on_text is not None and self._reachable and not self.done:
            self.on_text(data)

    def _deliver(self, data: bytes, opcode: int) -> None:
        if not self.open or not self._reachable or self._over or self._message is None:
            return
        if len(data) > self.dial.max_frame_bytes:
            self._note("close", TOO_BIG)
            self._client_closing = self._over = True
            how = Closed(TOO_BIG, f"{len(data)} bytes are too long for one message")
            self._clock.call_later(0.0, self._finish, how)
            return
        self._call(self._message, data, self._clock.time_ns(), opcode)

    def _call(self, callback: Callable[..., object], *args: object) -> None:
        """What escapes the receiver ends the connection, as in every transport."""
        try:
            callback(*args)
        except Exception as error:
            self._client_closing = self._over = True
            how = Closed(ABNORMAL, f"receiver failed: {error!r}", error=error)
            self._clock.call_later(0.0, self._finish, how)

    def _finish(self, how: Closed) -> None:
        if not self.done:
            self.done = True
            self.open = False
            self._receiver.closed(how)


class MemoryConnection:
    """The client's end."""

    def __init__(self, peer: MemoryPeer) -> None:
        self._peer = peer
        self.send_text = peer.send_text
        self.ping = peer.ping_from_client
        self.pong = peer.pong_from_client
        self.abort = peer.abort

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        self._peer.close_from_client(code, reason)

    def remote(self) -> str:
        return self._peer.dial.address or "memory"


class MemoryTransport:
    """Connects to peers in memory.

    `script` is called with every new peer and decides its fate; the default accepts at once.
    `peers` holds all of them, in the order of the attempts.
    """

    name = "memory"

    def __init__(self, clock: Clock, script: Callable[[MemoryPeer], object] | None = None) -> None:
        self.peers: list[MemoryPeer] = []
        self._clock = clock
        self._script = script or MemoryPeer.accept

    def connect(self, dial: Dial, receiver: Receiver) -> MemoryPeer:
        peer = MemoryPeer(self._clock, dial, receiver)
        self.peers.append(peer)
        self._script(peer)
        return peer
