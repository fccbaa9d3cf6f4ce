"""How old is data when it arrives? The venue's clock offset, estimated from one-way times. Pure.

A frame says when the venue made it, by the venue's clock; its one-way time is only known plus the
unknown offset of that clock. What is known: no frame travels in less than no time, nor, at its
best, in more than the best round trip of a ping. So with the smallest difference seen (local
arrival minus venue's time) and the smallest round trip,

    offset of the venue's clock = round trip / 2 - smallest difference, give or take round trip / 2
    age of a frame              = its difference + offset, never below 0

Both minima are taken over the last minutes, so that they follow clocks that drift.
"""

from __future__ import annotations

from collections import deque

import msgspec

WINDOW_NS = 150_000_000_000  # minima are kept for one to two windows
SAMPLES = 512


class Age(msgspec.Struct, frozen=True):
    """Ages of frames in µs, and how wrong they may be. offset_us: the venue's clock minus ours.

    error_us is -1 where no round trip was measured: then only differences between ages mean
    anything.
    """

    p50_us: int
    p99_us: int
    offset_us: int
    error_us: int


class _Minimum:
    """The smallest value of the last one to two windows."""

    def __init__(self) -> None:
        self._since_ns = 0
        self._now: int | None = None
        self._before: int | None = None

    def add(self, value: int, now_ns: int) -> None:
        if now_ns - self._since_ns > WINDOW_NS:
            self._since_ns = now_ns
            self._before, self._now = self._now, None
        self._now = value if self._now is None else min(self._now, value)

    @property
    def value(self) -> int | None:
        known = [value for value in (self._now, self._before) if value is not None]
        return min(known, default=None)


class VenueClock:
    """The estimate of one line."""

    def __init__(self) -> None:
        self._difference = _Minimum()
        self._round_trip = _Minimum()
        self._recent: deque[int] = deque(maxlen=SAMPLES)

    def frame(self, venue_us: int, local_us: int, now_ns: int) -> None:
        """A frame made at `venue_us` by the venue's clock arrived at `local_us` by ours."""
        difference = local_us - venue_us
        self._difference.add(difference, now_ns)
        self._recent.append(difference)

    def round_trip(self, ns: int, now_ns: int) -> None:
        """A ping was answered after `ns`."""
        self._round_trip.add(ns // 1000, now_ns)

    def age(self) -> Age | None:
        """How old frames are on arrival; None before the first."""
        smallest = self._difference.value
        if smallest is None or not self._recent:
            return None
        round_trip = self._round_trip.value
        half = (round_trip or 0) // 2
        ages = sorted(max(0, difference - smallest + half) for difference in self._recent)
        return Age(
            p50_us=ages[len(ages) // 2],
            p99_us=ages[min(len(ages) - 1, len(ages) * 99 // 100)],
            offset_us=half - smallest,
            error_us=-1 if round_trip is None else (round_trip + 1) // 2,
        )
