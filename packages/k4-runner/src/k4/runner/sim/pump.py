"""The pace at which a venue's market moves: so many events a second, or as fast as it is read."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from k4.core.clock import Timer
from k4.runner.sim.market import Pace

if TYPE_CHECKING:
    from k4.runner.sim.server import SimServer

_PORTION = 256  # events between two writes
_LOW_WATER = 256 << 10  # bytes unread above which a full-speed market waits for its readers
_PATIENCE = 5.0  # seconds that it waits for them
_CATCH_UP = 0.25  # seconds of events that a late tick makes up for, at most


class Pump:
    """The pace at which a venue's market moves."""

    def __init__(self, server: SimServer, pace: Pace) -> None:
        self._server = server
        self._pace = pace
        self._turns = cycle(server.instruments)
        self._left = pace.total
        self._last = 0.0
        self._last_burst = 0.0
        self._owed = 0.0
        self._timer: Timer | None = None

    def start(self) -> None:
        if self._timer is None:
            self._last = self._last_burst = self._server.clock.monotonic()
            self._wait(0.0)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def change(self, pace: Pace) -> None:
        """Another pace from now on; the total begins anew."""
        self._pace, self._left, self._owed = pace, pace.total, 0.0
        self._server.finished.clear()
        self.stop()
        if pace.start:
            self.start()

    def _wait(self, seconds: float) -> None:
        self._timer = self._server.clock.call_later(seconds, self._tick)

    def _tick(self) -> None:
        pace, now = self._pace, self._server.clock.monotonic()
        if pace.rate == 0:
            self._at_full_speed(now)
            return
        self._owed += min(now - self._last, _CATCH_UP) * pace.rate
        self._last = now
        if pace.burst and now - self._last_burst >= pace.burst_every:
            self._last_burst = now
            self._owed += pace.burst
        whole = int(self._owed)
        self._owed -= whole
        self._run(whole)
        self._again(pace.tick)

    def _at_full_speed(self, now: float) -> None:
        """Go on when every reader keeps up; end the readers that have not for long."""
        if self._server.backlog() < _LOW_WATER:
            self._last = now
            self._run(_PORTION)
            self._again(0.0)
            return
        if now - self._last > _PATIENCE:
            self._last = now
            self._server.end_slow(_LOW_WATER)
        self._wait(0.001)

    def _again(self, seconds: float) -> None:
        if self._pace.total and self._left <= 0:
            self._timer = None
            self._server.finished.set()
        else:
            self._wait(seconds)

    def _run(self, events: int) -> None:
        if self._pace.total:
            events = min(events, self._left)
            self._left -= events
        self.emit(events)

    def emit(self, events: int) -> None:
        server, share, turns = self._server, self._pace.trade_share, self._turns
        beat = self._pace.beat_every
        for number in range(1, events + 1):
            instrument, publisher = next(turns)
            event = instrument.step(share)
            publisher.event(event)
            for follow in server.followers:
                follow(instrument, event)
            if beat and (server.produced + number) % beat == 0:
                server.beat()
            if number % _PORTION == 0:
                server.flush()
        server.produced += events
        server.flush()
