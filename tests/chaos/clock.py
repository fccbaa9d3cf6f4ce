"""A clock that runs faster than time, the same for several processes.

Everything in K4 and in the simulated venues that waits, waits on an injected clock. One that runs
`factor` times faster therefore divides all of it by that one figure: the venue's limits, the
gateway's timeouts, intervals, backoffs and windows, and the lateness that faults cause. Nothing is
left out and nothing has to be scaled by hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from k4.core.clock import Timer


class Pace(msgspec.Struct, frozen=True):
    """How fast time runs, and since when: what processes share. Times in ns.

    wall: the wall clock when the monotonic clock, which all processes of a host share, stood at
    `since`.
    """

    factor: float
    wall: int
    since: int

    @classmethod
    def beginning_now(cls, factor: float) -> Pace:
        return cls(factor, time.time_ns(), time.monotonic_ns())


class FastClock:
    """A `k4.core.clock.Clock` on the running event loop."""

    def __init__(self, pace: Pace) -> None:
        self._factor = pace.factor
        self._wall = pace.wall
        self._since = pace.since

    def time_ns(self) -> int:
        return self._wall + int((time.monotonic_ns() - self._since) * self._factor)

    def monotonic(self) -> float:
        # Counted from the host's own zero, not from `since`: a bucket's first moment is not 0.
        return self._since / 1e9 + (time.monotonic_ns() - self._since) / 1e9 * self._factor

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, delay) / self._factor, callback, *args)
