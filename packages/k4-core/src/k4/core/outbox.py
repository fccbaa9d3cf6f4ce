"""What a client sends on one connection, within the venue's rate and with control first.

Venues count every client message, pings and pongs included, and cut a connection that sends too
many (Binance: 5 a second). So all sending of a link passes here. Pongs and keepalives are sent
before texts, and one place in each window is left for them, so that a long list of subscriptions
never delays the answer to a ping; where a venue counts requests alone (OKX: 480 an hour) they pass
freely. They cannot pile up either: only the newest of each kind waits
(RFC 6455, 5.5.3, lets an endpoint answer the most recent ping alone).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from k4.core.clock import Clock, Timer
from k4.core.limits import Limits
from k4.core.retry import Pace
from k4.core.transport import Connection

# The venue counts by its own clock, after the network has squeezed or stretched the distances.
_MARGIN = 1.1


class Outbox:
    """The sending half of one connection. `drained` is called when no text waits any more."""

    def __init__(
        self, clock: Clock, connection: Connection, limits: Limits, drained: Callable[[], object]
    ) -> None:
        self.sent = 0
        self._clock = clock
        self._connection = connection
        self._drained = drained
        self._pings_count = limits.pings_count
        self._pace = Pace(limits.messages, limits.messages_period * _MARGIN)
        self._requests = Pace(limits.requests, limits.requests_period)
        self._undrained = False
        self._texts: deque[bytes] = deque()
        self._pong: bytes | None = None
        self._keepalive: bytes | None = None
        self._keepalive_is_ping = False
        self._timer: Timer | None = None
        self._stopped = False

    @property
    def keepalive_waits(self) -> bool:
        """A keepalive was asked for and has not left yet."""
        return self._keepalive is not None

    @property
    def idle(self) -> bool:
        """Nothing waits, and a text would leave at once."""
        waits = self._texts or self._control
        return not waits and self._wait(False, self._clock.monotonic()) <= 0

    def texts(self, messages: Iterable[bytes]) -> None:
        """Send text messages, after those that wait already; `drained` is called even for none."""
        self._texts.extend(messages)
        self._undrained = True
        self._pump()

    def pong(self, payload: bytes) -> None:
        self._pong = payload
        self._pump()

    def keepalive(self, text: bytes | None) -> None:
        """Send the text, or where it is None a ping."""
        self._keepalive_is_ping = text is None
        self._keepalive = text or b""
        self._pump()

    def ping(self, payload: bytes) -> None:
        """Send a ping with a payload of its own."""
        self._keepalive_is_ping = True
        self._keepalive = payload
        self._pump()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped = True
        self._texts.clear()
        self._pong = self._keepalive = None
        self._cancel_timer()

    @property
    def _control(self) -> bool:
        return self._pong is not None or self._keepalive is not None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pump(self) -> None:
        if self._stopped or (self._timer is not None and not self._control):
            return
        self._cancel_timer()  # a text's; control need not wait so long
        while self._control or self._texts:
            wait = self._take_turn()
            if wait > 0:
                self._timer = self._clock.call_later(wait, self._resume)
                return
            self.sent += 1
            self._send_one()
        if self._undrained:
            self._undrained = False
            self._drained()

    def _take_turn(self) -> float:
        """Seconds until what is next may be sent; 0 now, and then it counts as sent."""
        control = self._control
        if control and not self._pings_count:
            return 0.0
        now = self._clock.monotonic()
        wait = self._wait(control, now)
        if wait <= 0:
            self._pace.note(now)
            if not control:
                self._requests.note(now)
        return wait

    def _wait(self, control: bool, now: float) -> float:
        if control:
            return self._pace.wait(now)
        reserve = 1 if self._pings_count else 0
        return max(self._pace.wait(now, reserve=reserve), self._requests.wait(now))

    def _send_one(self) -> None:
        if self._pong is not None:
            payload, self._pong = self._pong, None
            self._connection.pong(payload)
        elif self._keepalive is not None:
            data, self._keepalive = self._keepalive, None
            if self._keepalive_is_ping:
                self._connection.ping(data)
            else:
                self._connection.send_text(data)
        else:
            self._connection.send_text(self._texts.popleft())

    def _resume(self) -> None:
        self._timer = None
        self._pump()
