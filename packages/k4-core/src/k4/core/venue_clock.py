"""How old is data when it arrives? The venue's clock offset, estimated from one-way times. Pure.

A frame says when the venue made it, by the venue's clock; its one-way time is only known plus the
unknown offset of that clock. What is known: no frame travels in less than no time, nor, at its
best, in more than the best round trip of a ping. So with the smallest difference seen (local
arrival minus venue's time) and the smallest round trip,

    offset of the venue's clock = round trip / 2 - smallest difference, give or take round trip / 2
    age of a frame              = its difference + offset, never below 0

One clock serves all lines to a venue: the best frame and the best ping of any of them count. Both
minima are taken over the last minutes, so that they follow clocks that drift. A venue that tells
only whole milliseconds adds one to what a frame may have taken; before many frames were seen, the
best of them says nothing about the best there is, and the error is unknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import msgspec

WINDOW_NS = 150_000_000_000  # minima are kept for one to two windows
SAMPLES = 512  # of a line
MIN_FRAMES = 100

Differences = deque[int]
"""Local arrival minus venue's time of a line's last frames, µs."""


def differences() -> Differences:
    return deque(maxlen=SAMPLES)


class Age(msgspec.Struct, frozen=True):
    """Ages of frames in µs, and how wrong they may be. offset_us: the venue's clock minus ours.

    error_us is -1 where that is unknown: then only differences between ages mean anything.
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
    """The estimate for one venue."""

    def __init__(self) -> None:
        self._difference = _Minimum()
        self._round_trip = _Minimum()
        self._frames = 0
        self._resolution_us = 1000

    def frame(self, venue_us: int, local_us: int, now_ns: int) -> int:
        """A frame made at `venue_us` by the venue's clock arrived at `local_us` by ours. Returns
        the difference."""
        difference = local_us - venue_us
        self._difference.add(difference, now_ns)
        self._frames += 1
        if venue_us % 1000:
            self._resolution_us = 1
        return difference

    def round_trip(self, ns: int, now_ns: int) -> None:
        """A ping was answered after `ns`."""
        self._round_trip.add(ns // 1000, now_ns)

    def age(self, recent: Collection[int]) -> Age | None:
        """How old frames with these differences were on arrival; None where there are none."""
        smallest = self._difference.value
        if smallest is None or not recent:
            return None
        round_trip = self._round_trip.value
        most = (round_trip or 0) + self._resolution_us
        half = most // 2
        ages = sorted(max(0, difference - smallest + half) for difference in recent)
        known = round_trip is not None and self._frames >= MIN_FRAMES
        return Age(
            p50_us=ages[len(ages) // 2],
            p99_us=ages[min(len(ages) - 1, len(ages) * 99 // 100)],
            offset_us=half - smallest,
            error_us=(most + 1) // 2 if known else -1,
        )
