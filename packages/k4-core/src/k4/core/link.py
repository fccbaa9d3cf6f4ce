"""One WebSocket line's life, from the first attempt to the orderly end.

A state machine of callbacks on an injected clock and transport, without coroutines or tasks, so
that a day of it runs on a manual clock in seconds:

    IDLE --start--> WAITING --budget, backoff--> CONNECTING --opened--> SUBSCRIBING --acks--> UP
                       ^                              |                      |                 |
                       `----------------------------- any end of the connection ---------------'
    any --stop--> CLOSING (where a connection is open) --> STOPPED

A link judges nothing but its own connection: a late handshake, missing acks, an unanswered probe.
Whether data is owed or late, and which line should be replaced, is the engine's business; so is a
venue's longest life of a connection. The payload of a data message does not pass through here: the
transport calls the owner's `message` directly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol
from urllib.parse import urlsplit

from k4.core.clock import Clock, Timer
from k4.core.limits import Keepalive, Limits
from k4.core.outbox import Outbox
from k4.core.retry import Budget, backoff
from k4.core.transport import ABNORMAL, NORMAL, Attempt, Closed, Connection, Dial, Transport

BACKOFF_BASE = 0.1  # seconds
BACKOFF_CAP = 30.0
STABLE = 30.0  # seconds up after which a loss counts as the first one again
CLOSE_TIMEOUT = 1.0  # seconds for the peer to answer a close frame
HELD_UP = 0.1  # seconds by which a deadline is late: then this process did not run
_DEADLINE = 10.0  # seconds, where the limits name no handshake or ack timeout
_FIRST = 0.5  # of the handshake's: for the first attempt in a row; all of it after one not answered

Tap = Callable[[str, int, int, bytes], object]
"""Called with (link's name, received_ns, opcode, payload) before the owner sees a message."""


class LinkState(Enum):
    """Where a link is in its life. See the module's picture."""

    IDLE = "idle"
    WAITING = "waiting"
    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    UP = "up"
    CLOSING = "closing"
    STOPPED = "stopped"


class LinkOwner(Protocol):
    """Who listens to a link."""

    @property
    def last_message_ns(self) -> int:
        """`received_ns` of the last message, 0 before the first."""
        ...

    def link_opened(self, link: Link, /) -> None:
        """The handshake is done. Make a fresh session: `message` is looked up and called next."""
        ...

    def message(self, payload: bytes, received_ns: int, opcode: int, /) -> None:
        """One data message, straight from the transport (hot)."""
        ...

    def link_up(self, link: Link, /) -> None:
        """Every request was sent and every ack has come."""
        ...

    def link_down(self, link: Link, how: Closed, retry_in: float, /) -> None:
        """An attempt or a connection ended. The next attempt follows in `retry_in` seconds at the
        earliest; infinity after `stop`.
        """
        ...


class Link:
    """One line. `start` it once, `stop` it once; all methods may be called from any callback.

    dials: the first is tried first, the next after a failure of that, or where connections do not
    last. hello: the requests that subscribe, in order. acks: how many answers to them make the line
    up. limits: rates and deadlines of the venue. tap: set it before a connection opens to see every
    message of that connection first.
    """

    def __init__(
        self,
        *,
        name: str,
        dials: Sequence[Dial],
        transport: Transport,
        clock: Clock,
        budget: Budget,
        hello: Sequence[bytes],
        acks: int,
        limits: Limits,
        keepalive: Keepalive | None,
        owner: LinkOwner,
        rng: random.Random,
    ) -> None:
        if not dials:
            raise ValueError(f"link {name}: no dial")
        self.name = name
        self.tap: Tap | None = None
        self.state = LinkState.IDLE
        self.since = clock.monotonic()  # when the state was entered
        self.attempts = 0
        self.opened_count = 0
        self.faults = 0  # exceptions that escaped the owner
        self.pings = 0  # the peer's
        self.pongs = 0
        self.round_trip_ns = -1  # of the last ping that `measure` sent, -1 before its answer
        self.answered_ns = 0  # wall clock when that ping was sent
        self.last_control_ns = 0  # wall clock of the last ping or pong from the peer
        self.last_down: Closed | None = None
        self._dials = tuple(dials)
        self._hosts = tuple(host_of(dial.url) for dial in dials)
        self._turn = 0  # of the dials
        self._brief = 0  # connections in a row that were up, but not for long
        self._transport = transport
        self._clock = clock
        self._budget = budget
        self._hello = tuple(hello)
        self._acks = acks
        self._limits = limits
        self._keepalive = keepalive
        self._owner = owner
        self._rng = rng
        self._backoff = backoff(rng, BACKOFF_BASE, BACKOFF_CAP)
        self._patience = _FIRST
        self._wire: _Wire | None = None
        self._outbox: Outbox | None = None
        self._acks_missing = 0
        self._hello_queued = False
        self._hello_sent = False
        self._timer: Timer | None = None  # the state's own: retry or deadline
        self._keepalive_timer: Timer | None = None
        self._probe_timer: Timer | None = None

    # The owner's side.

    def start(self) -> None:
        """Begin to connect, as soon as the budget allows."""
        if self.state is not LinkState.IDLE:
            raise RuntimeError(f"link {self.name}: started twice")
        self._enter(LinkState.WAITING)
        self._arm(0.0, self._attempt)

    def stop(self, code: int = NORMAL, patience: float = CLOSE_TIMEOUT) -> None:
        """End for good, with a close frame where a connection is open.

        `link_down` with an infinite `retry_in` follows where one was open; without one the link is
        STOPPED on return. What a peer sends is heard until it has answered the close; it is cut off
        after `patience` seconds.
        """
        if self.state in (LinkState.CLOSING, LinkState.STOPPED):
            return
        wire = self._wire
        if wire is None or wire.connection is None:
            self._release()
            self._enter(LinkState.STOPPED)
            return
        self._quiet()
        self._enter(LinkState.CLOSING)
        self._deadline(patience, self._close_late)
        wire.connection.close(code)

    def restart(self, reason: str) -> None:
        """Drop this connection, without waiting for the peer, and connect again with backoff."""
        if self._wire is not None and self.state is not LinkState.CLOSING:
            self._down(Closed(ABNORMAL, reason))

    def send(self, text: bytes) -> None:
        """Send a text message in order, within the venue's rate; lost where nothing is open."""
        if self._outbox is not None:
            self._outbox.texts((text,))

    @property
    def idle(self) -> bool:
        """Whether a text would leave at once: nothing waits, and the venue's rates allow it."""
        return self._outbox is not None and self._outbox.idle

    def acked(self, n: int = 1) -> None:
        """The session saw `n` answers to the hello; with the last of them the link is up."""
        if self.state is LinkState.SUBSCRIBING:
            self._acks_missing -= n
            self._check_acks()

    def ping_probe(self, timeout: float, silent: Callable[[], object] | None = None) -> None:
        """Ask for a sign of life: send a ping (or the venue's text) and wait `timeout` seconds.

        Where no byte at all came by then, neither message nor ping nor pong, `silent` is called;
        without it the link restarts. A late pong alone proves nothing while data flows. A probe
        under way is not repeated.
        """
        if self._outbox is None or self._probe_timer is not None:
            return
        self._outbox.keepalive(self._keepalive.text if self._keepalive else None)
        # Compared for change, not order: the wall clock may step.
        seen = (self._owner.last_message_ns, self.last_control_ns)
        self._probe(timeout, seen, silent or self._restart_silent)

    def measure(self) -> bool:
        """Send a ping whose answer sets `round_trip_ns` and `answered_ns`. False, and nothing is
        sent, where nothing is open or another ping waits for the venue's rate.
        """
        if self._outbox is None or self._outbox.keepalive_waits:
            return False
        self._outbox.ping(b"k4:%d" % self._clock.time_ns())
        return True

    @property
    def dial(self) -> Dial:
        """Where it connects, is connected, or tries next."""
        return self._dials[self._turn]

    @property
    def remote(self) -> str:
        """The peer's address, empty while not connected."""
        connection = self._wire.connection if self._wire is not None else None
        return connection.remote() if connection is not None else ""

    @property
    def sent(self) -> int:
        """Messages sent on this connection, pings and pongs included."""
        return self._outbox.sent if self._outbox is not None else 0

    # Attempts.

    def _attempt(self) -> None:
        wait = self._budget.take(self._hosts[self._turn], self._clock.monotonic())
        if wait > 0:
            self._arm(wait, self._attempt)
            return
        self.attempts += 1
        self._enter(LinkState.CONNECTING)
        # One that hangs would cost a line that has to be replaced all of the longest wait. Shorter
        # than this it must not be: repeated behind a pause, attempts meet the venue's limit.
        deadline = self._limits.handshake_timeout or _DEADLINE
        self._deadline(deadline * self._patience, self._handshake_late)
        wire = self._wire = _Wire(self)
        wire.attempt = self._transport.connect(self.dial, wire)

    def _handshake_late(self) -> None:
        self._patience = 1.0
        self._down(Closed(ABNORMAL, "no answer to the handshake in time"))

    def _opened(self, wire: _Wire, connection: Connection) -> None:
        if wire is not self._wire:  # given up while it opened
            connection.abort()
            return
        wire.connection = connection
        self._disarm()
        self.opened_count += 1
        self._enter(LinkState.SUBSCRIBING)
        self._acks_missing = self._acks
        self._hello_queued = self._hello_sent = False
        outbox = self._outbox = Outbox(self._clock, connection, self._limits, self._drained)
        self._arm_keepalive(self._keepalive.interval if self._keepalive else 0.0)
        self._owner.link_opened(self)
        wire.message = self._consumer()
        if self._outbox is outbox:
            self._hello_queued = True
            outbox.texts(self._hello)

    def _consumer(self) -> Callable[[bytes, int, int], None]:
        """The owner's `message`, behind the tap where there is one."""
        message, tap, name = self._owner.message, self.tap, self.name
        if tap is None:
            return message

        def tapped(payload: bytes, received_ns: int, opcode: int) -> None:
            tap(name, received_ns, opcode, payload)
            message(payload, received_ns, opcode)

        return tapped

    # Subscribing.

    def _drained(self) -> None:
        if self.state is LinkState.SUBSCRIBING and self._hello_queued:
            self._hello_sent = True
            self._check_acks()

    def _check_acks(self) -> None:
        """Up when everything was sent and answered; else each step gives the venue more time."""
        if not self._hello_sent:
            return
        if self._acks_missing > 0:
            self._deadline(self._limits.ack_timeout or _DEADLINE, self._acks_late)
            return
        self._disarm()
        self._enter(LinkState.UP)
        self._owner.link_up(self)

    def _acks_late(self) -> None:
        self._down(Closed(ABNORMAL, f"{self._acks_missing} subscriptions not acknowledged in time"))

    # Signs of life.

    def _pinged(self, payload: bytes) -> None:
        self.last_control_ns = self._clock.time_ns()
        self.pings += 1
        if self._outbox is not None:
            self._outbox.pong(payload)

    def _ponged(self, payload: bytes) -> None:
        self.last_control_ns = now_ns = self._clock.time_ns()
        self.pongs += 1
        mark, _, sent = payload.partition(b":")
        if mark == b"k4" and sent.isdigit() and len(sent) < 20:
            self.answered_ns = int(sent)
            self.round_trip_ns = max(0, now_ns - self.answered_ns)

    def _arm_keepalive(self, delay: float) -> None:
        if delay > 0:
            self._keepalive_timer = self._clock.call_later(delay, self._keepalive_due)

    def _keepalive_due(self) -> None:
        keepalive, outbox = self._keepalive, self._outbox
        if keepalive is None or outbox is None:
            return
        if keepalive.idle_only:
            last = max(self._owner.last_message_ns, self.last_control_ns)
            left = keepalive.interval - (self._clock.time_ns() - last) / 1e9
            # A wall clock that stepped back must not silence the keepalive.
            if 0.001 < left <= keepalive.interval:
                self._arm_keepalive(left)
                return
        self._arm_keepalive(keepalive.interval)
        outbox.keepalive(keepalive.text)

    def _probe(self, timeout: float, seen: tuple[int, int], silent: Callable[[], object]) -> None:
        def late() -> None:
            self._probe_late(timeout, seen, silent)

        self._arm_probe(timeout, self._fairly(timeout, late, self._arm_probe))

    def _arm_probe(self, delay: float, callback: Callable[[], object]) -> None:
        self._probe_timer = self._clock.call_later(delay, callback)

    def _probe_late(
        self, timeout: float, seen: tuple[int, int], silent: Callable[[], object]
    ) -> None:
        self._probe_timer = None
        if self._outbox is None or seen != (self._owner.last_message_ns, self.last_control_ns):
            return
        if self._outbox.keepalive_waits:  # the rate held it back: it was never asked
            self._probe(timeout, seen, silent)
            return
        silent()

    def _restart_silent(self) -> None:
        self.restart("silent: no byte, not even the answer to a ping")

    # Ends.

    def _closed(self, how: Closed) -> None:
        if how.error is not None:
            self.faults += 1
        self._down(how)

    def _close_late(self) -> None:
        self._down(Closed(ABNORMAL, "the close frame was not answered"))

    def _down(self, how: Closed) -> None:
        """The one way out of a connection or an attempt."""
        was, since = self.state, self.since
        self._release()
        self.last_down = how
        if was is LinkState.CLOSING:
            self._enter(LinkState.STOPPED)
            self._owner.link_down(self, how, math.inf)
            return
        was_stable = was is LinkState.UP and self._clock.monotonic() - since >= STABLE
        if was_stable:
            self._backoff = backoff(self._rng, BACKOFF_BASE, BACKOFF_CAP)
        delay = self._retry_in(how)
        self._brief = self._brief + 1 if was is LinkState.UP and not was_stable else 0
        if was is not LinkState.UP or self._brief > 1:
            self._turn = (self._turn + 1) % len(self._dials)
            self._brief = 0
        self._enter(LinkState.WAITING)
        self._arm(delay, self._attempt)
        self._owner.link_down(self, how, delay)

    def _retry_in(self, how: Closed) -> float:
        delay = next(self._backoff)
        if how.retry_after:
            delay = max(delay, how.retry_after)
        elif how.status in (401, 403, 418, 429):  # asking again soon makes it worse
            delay = self._rng.uniform(BACKOFF_CAP / 2, BACKOFF_CAP)
        if how.status in (418, 429):  # said to the address, so to every line of this host
            pause = how.retry_after or delay
            self._budget.pause(self._hosts[self._turn], self._clock.monotonic(), pause)
        return delay

    def _release(self) -> None:
        """Let go of timers and connection; nothing of them is heard any more."""
        self._disarm()
        self._quiet()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.let_go()

    def _quiet(self) -> None:
        """No more sending, no more signs of life to wait for."""
        if self._outbox is not None:
            self._outbox.stop()
            self._outbox = None
        if self._keepalive_timer is not None:
            self._keepalive_timer.cancel()
            self._keepalive_timer = None
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None

    def _enter(self, state: LinkState) -> None:
        self.state = state
        self.since = self._clock.monotonic()

    def _arm(self, delay: float, callback: Callable[[], object]) -> None:
        self._disarm()
        self._timer = self._clock.call_later(delay, callback)

    def _deadline(self, delay: float, late: Callable[[], object]) -> None:
        self._arm(delay, self._fairly(delay, late, self._arm))

    def _fairly(
        self,
        delay: float,
        late: Callable[[], object],
        arm: Callable[[float, Callable[[], object]], object],
    ) -> Callable[[], None]:
        """What to do after `delay`: call `late`, or give half of that time once more where this
        process stood still. Its timers come due before its sockets are read then, and what the peer
        has said by now must not be thrown away."""
        due = self._clock.monotonic() + delay

        def judge() -> None:
            if self._clock.monotonic() - due > HELD_UP:
                arm(delay / 2, late)
            else:
                late()

        return judge

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Wire:
    """The receiver of one connection: what it hears after the link let go of it has no effect."""

    def __init__(self, link: Link) -> None:
        self._link: Link | None = link
        self.attempt: Attempt | None = None
        self.connection: Connection | None = None
        self.message: Callable[[bytes, int, int], None] = _unexpected

    def opened(self, connection: Connection, /) -> None:
        if self._link is None:
            connection.abort()
        else:
            self._link._opened(self, connection)

    def pinged(self, payload: bytes, /) -> None:
        if self._link is not None:
            self._link._pinged(payload)

    def ponged(self, payload: bytes, /) -> None:
        if self._link is not None:
            self._link._ponged(payload)

    def closed(self, how: Closed, /) -> None:
        link, self._link = self._link, None
        self.connection = self.attempt = None
        if link is not None:
            link._closed(how)

    def let_go(self) -> None:
        """Detach from the link, then drop what there is."""
        self._link = None
        if self.connection is not None:
            self.connection.abort()
        elif self.attempt is not None:
            self.attempt.cancel()


def _unexpected(payload: bytes, received_ns: int, opcode: int, /) -> None:
    """A message of a connection that the link gave up while it opened."""


def host_of(url: str) -> str:
    """The key of a URL's venue host in a budget: host and port, in lower case."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()
