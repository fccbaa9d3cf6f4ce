"""One connection as the simulated venue sees it: handshake, limits, pings, writing, the end.

The rules of a venue (message rate, pong deadline, idle close, longest life, slow reader) are
enforced here; what the messages mean is the venue's, what goes wrong on purpose is the injector's.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

from k4.core.clock import Timer
from k4.core.limits import Limits
from k4.runner.sim import ws
from k4.runner.sim.ledger import ConnectionLog
from k4.runner.sim.venue import CloseCode, Form, Topic
from k4.runner.sim.ws import Refusal, Request

if TYPE_CHECKING:
    from k4.runner.sim.server import SimServer

_CONTENT = (1000, 1001, 1005)  # other codes complain: the client read nothing after their cause
_ESTABLISHED = 1  # TCP_INFO's state while neither side has sent its FIN
_CLOSE_WAIT = 2.0  # seconds for the client's half of the closing handshake


class State(Enum):
    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSING = "closing"  # our Close frame is out
    CLOSED = "closed"


class Client(asyncio.Protocol):
    """A connection. `topics` maps what it subscribed to a topic, or to None if that stays silent.

    form: how it wants payloads. plain: no fault can concern it now, so frames skip the injector.
    mute: half open. line: its place among the open connections of its endpoint.
    """

    def __init__(self, server: SimServer, host: str) -> None:
        self.server = server
        self.host = host
        self.state = State.HANDSHAKE
        self.endpoint = ""
        self.request = Request("", {}, {})
        self.limits = Limits()
        self.form: Form = 0
        self.topics: dict[str, Topic | None] = {}
        self.line = -1
        self.plain = True
        self.mute = False
        self.withholds_pongs = False
        self.log: ConnectionLog | None = None
        self.pending: list[bytes] = []
        self.held: list[tuple[bytes, int, int]] = []  # reordered: frame, key, frames still to pass
        self.ready = asyncio.get_running_loop().create_future()
        self._pending_keys = 0
        self._outbox: deque[tuple[float, bytes, int]] = deque()
        self._outbox_timer: Timer | None = None
        self._head = bytearray()
        self._decoder = ws.Decoder()
        self._transport: asyncio.Transport | None = None
        self._timers: dict[str, Timer] = {}
        self._inbound: deque[float] = deque()
        self._life_sign = 0.0
        self._ping_marks: dict[bytes, int] = {}
        self._pings = 0
        self._readable = sys.maxsize  # frames that a client can have read

    # -- asyncio's side ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.server.connected(self)
        self._timer("handshake", self.server.handshake_timeout, self.abort)

    def data_received(self, data: bytes) -> None:
        if self.mute:
            return
        if self.state is State.HANDSHAKE:
            self._head += data
            end = self._head.find(ws.HEAD_END)
            if end < 0:
                if len(self._head) > ws.HEAD_LIMIT:
                    self.abort()
                return
            rest = bytes(self._head[end + len(ws.HEAD_END) :])
            self._shake_hands(bytes(self._head[:end]))
            if not rest:
                return
            data = rest
        self._read(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        was = self.state
        self.state = State.CLOSED
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._outbox_timer is not None:
            self._outbox_timer.cancel()
        log = self.log
        if log is not None:
            self._forget_pending(log)
            log.closed_ns = self.server.clock.time_ns()
            log.ended = log.ended or ("lost" if was is State.OPEN else "unanswered close")
            if not log.close_code:
                log.close_code = 1006
        self.server.disconnected(self)

    def _forget_pending(self, log: ConnectionLog) -> None:
        """What was queued and never written was not sent."""
        if self._pending_keys:
            del log.sent[len(log.sent) - self._pending_keys :]
        self.pending.clear()
        self._pending_keys = 0

    # -- handshake --------------------------------------------------------------------------------

    def takes_data(self) -> bool:
        return self.state is State.OPEN and not self.mute

    def remote(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return str(peer[0]) if peer else ""

    def _shake_hands(self, head: bytes) -> None:
        try:
            self.request = ws.parse_request(head, self.remote())
        except ws.ProtocolError as error:
            self.refuse(Refusal(error.code, str(error)))
            return
        answer: bytes | Refusal | None = self.server.admit(self)
        if answer is None:
            self.mute = True  # a fault: never answered
            self._stop("handshake")
            return
        if isinstance(answer, Refusal):
            self.refuse(answer)
            return
        self._stop("handshake")
        self._write(answer)
        self.state = State.OPEN
        now = self.server.clock.monotonic()
        self._life_sign = now
        limits = self.limits
        if limits.server_ping:
            self._timer("ping", limits.server_ping, self._ping)
        if self.server.spec.proof_every:
            self._timer("proof", self.server.spec.proof_every, self._prove)
        if limits.max_life:
            self._timer("life", limits.max_life, self.end, self.server.codes.life, "max life")
        if limits.idle_close:
            self._timer("idle", limits.idle_close, self._check_idle)
        self.server.opened(self)

    def refuse(self, answer: Refusal) -> None:
        self.server.ledger.refused += 1
        self.state = State.CLOSING
        self._write(answer.encode())
        if self._transport is not None:
            self._transport.close()

    # -- reading ----------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        if self.state not in (State.OPEN, State.CLOSING):
            return
        try:
            messages = self._decoder.feed(data)
        except ws.ProtocolError as error:
            self.end(CloseCode(error.code, str(error)), "protocol error")
            return
        for message in messages:
            if message.opcode == ws.CLOSE:
                self._closed_by_client(message.payload)
            elif self.state is State.OPEN:
                self._take(message)

    def _take(self, message: ws.Message) -> None:
        if not self._within_rate():
            self.end(self.server.codes.messages, "too many messages")
            return
        self._life_sign = self.server.clock.monotonic()
        if message.opcode == ws.PING:
            if self.withholds_pongs:
                return
            self.flush()
            self._write(ws.encode(ws.PONG, message.payload))
        elif message.opcode == ws.PONG:
            self._pong(message.payload)
        else:
            self.server.received(self, message.opcode, message.payload)

    def _within_rate(self) -> bool:
        """The inbound limit, PING, PONG and messages together; where a venue counts requests alone
        its own module does.
        """
        limits, now = self.limits, self.server.clock.monotonic()
        if not limits.messages or not limits.pings_count:
            return True
        times = self._inbound
        while times and times[0] <= now - limits.messages_period:
            times.popleft()
        times.append(now)
        return len(times) <= limits.messages

    # -- liveness ---------------------------------------------------------------------------------

    def _ping(self) -> None:
        """A ping that carries a number, so that its pong proves what arrived before it."""
        self._timer("ping", self.limits.server_ping, self._ping)
        self.ping()

    def _prove(self) -> None:
        self._timer("proof", self.server.spec.proof_every, self._prove)
        self.ping()

    def ping(self) -> None:
        """Send one now; tests use it to have everything that was sent confirmed."""
        if self.state is not State.OPEN or self.mute or self.log is None:
            return
        self.flush()
        self._pings += 1
        payload = b"%d" % (self.server.clock.time_ns() // 1_000_000 * 1000 + self._pings % 1000)
        self._ping_marks[payload] = len(self.log.sent)
        self.log.pings += 1
        self._write(ws.encode(ws.PING, payload))
        if self.limits.pong_deadline and "pong" not in self._timers:
            self._timer(
                "pong", self.limits.pong_deadline, self.end, self.server.codes.pong, "no pong"
            )

    def _pong(self, payload: bytes) -> None:
        mark = self._ping_marks.pop(payload, None)
        if mark is None or self.log is None:
            return  # unsolicited: allowed, and no proof of anything
        self.log.pongs += 1
        self.log.confirmed = max(self.log.confirmed, mark)
        self._ping_marks = {key: at for key, at in self._ping_marks.items() if at > mark}
        self._stop("pong")

    def _check_idle(self) -> None:
        left = self._life_sign + self.limits.idle_close - self.server.clock.monotonic()
        if left <= 0:
            self.end(self.server.codes.idle, "idle")
        else:
            self._timer("idle", left, self._check_idle)

    # -- writing ----------------------------------------------------------------------------------

    def queue(self, frame: bytes, key: int) -> None:
        """Add a data frame to the next write. `key` names its rows in the ledger."""
        self.pending.append(frame)
        if self.log is not None:
            self.log.sent.append(key)
            self._pending_keys += 1

    def queue_later(self, delay: float, frame: bytes, key: int, *, ordered: bool) -> None:
        """Hold a data frame back. ordered: what follows waits behind it, as on a slow path."""
        due = self.server.clock.monotonic() + delay
        if not ordered:
            self.server.clock.call_later(delay, self._release, frame, key)
            return
        if self._outbox:
            due = max(due, self._outbox[-1][0])
        self._outbox.append((due, frame, key))
        if self._outbox_timer is None:
            self._outbox_timer = self.server.clock.call_later(delay, self._drain)

    @property
    def lagging(self) -> bool:
        """Are frames waiting to be late? Then those that follow wait behind them."""
        return bool(self._outbox)

    def _drain(self) -> None:
        now = self.server.clock.monotonic()
        self._outbox_timer = None
        while self._outbox and self._outbox[0][0] <= now + 1e-4:
            _, frame, key = self._outbox.popleft()
            self._release(frame, key)
        self.flush()
        if self._outbox:
            wait = self._outbox[0][0] - now
            self._outbox_timer = self.server.clock.call_later(max(wait, 0.0), self._drain)

    def _release(self, frame: bytes, key: int) -> None:
        if self.state is State.OPEN and not self.mute:
            self.queue(frame, key)
            self.server.touched(self)

    def send_text(self, payload: bytes) -> None:
        """A control message: acks, errors, answers. Written at once, after what is pending."""
        self.send_raw(ws.encode(ws.TEXT, payload))

    def send_raw(self, data: bytes, *, breaks: bool = False) -> None:
        """Any bytes, also such that are no valid frame. breaks: the client has to fail the
        connection for it, and reads nothing behind it."""
        if self.state is State.OPEN and not self.mute:
            self.flush()
            self._write(data)
            if breaks and self.log is not None:
                self._readable = min(self._readable, len(self.log.sent))

    def flush(self) -> None:
        """Write what is pending, in one piece; close the client that does not read."""
        if not self.pending or self.log is None:
            return
        if self.mute or self.state is not State.OPEN or self._transport is None:
            self._forget_pending(self.log)
            return
        data = b"".join(self.pending)
        self.pending.clear()
        self._pending_keys = 0
        self._write(data)
        self.log.marks.extend((len(self.log.sent), self.server.clock.time_ns()))
        if self.server.data_is_life:
            self._life_sign = self.server.clock.monotonic()
        if self.backlog() > self.server.write_limit:
            self.end(self.server.codes.slow, "slow reader")

    def backlog(self) -> int:
        """Bytes that the client has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # -- the end ----------------------------------------------------------------------------------

    def end(self, code: CloseCode, why: str) -> None:
        """Begin the closing handshake; `why` is for the ledger."""
        if self.state is not State.OPEN or self.mute:
            return
        if self.log is not None:
            self.log.ended, self.log.close_code = why, code.code
        self.flush()
        if self.state is not State.OPEN:
            return
        self.state = State.CLOSING
        self.server.closing(self)
        self._write(ws.encode(ws.CLOSE, ws.close_payload(code.code, code.reason)))
        self._timer("close", _CLOSE_WAIT, self.abort)

    def _closed_by_client(self, payload: bytes) -> None:
        """Its Close frame: the answer to ours, or the beginning of an orderly end."""
        log = self.log
        code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else 1005
        answer = self.state is State.CLOSING
        if not answer:
            if log is not None:
                log.ended = "closed by client"
                log.close_code = code
                self._forget_pending(log)
            self._write(ws.encode(ws.CLOSE, payload[:2]))
            self.state = State.CLOSING
            self.server.closing(self)
        content = log is not None and code in (*_CONTENT, log.close_code if answer else 1000)
        if log is not None and content and (answer or self._is_awaited()):
            log.clean = True
            log.confirmed = max(log.confirmed, min(len(log.sent), self._readable))
        if self._transport is not None:
            self._transport.close()

    def _is_awaited(self) -> bool:
        """Whether the client still waits for the answer to its Close frame. One that gave up has
        not read what it was sent since, though its frame may be read long after (a venue's pause).
        """
        if self._transport is None:
            return False
        sock: Any = self._transport.get_extra_info("socket")
        state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state == _ESTABLISHED

    def abort(self) -> None:
        """Drop the socket as it is."""
        if self._transport is not None:
            self._transport.abort()

    def reset(self, why: str = "reset") -> None:
        """TCP RST instead of FIN: what the kernel had not delivered is lost as well."""
        if self.log is not None:
            self.log.ended = why
        if self._transport is None:
            return
        sock: Any = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # -- timers -----------------------------------------------------------------------------------

    def _timer(
        self, name: str, delay: float, callback: Callable[..., object], *args: object
    ) -> None:
        self._stop(name)
        self._timers[name] = self.server.clock.call_later(delay, self._fire, name, callback, args)

    def _fire(self, name: str, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self._timers.pop(name, None)
        callback(*args)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
