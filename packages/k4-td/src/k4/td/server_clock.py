"""The venue's clock, estimated with an error bar. Pure.

A sample is the venue's time between two of ours. The one with the smallest round trip is kept: its
error is at most half of that, plus the resolution of the answer.
"""

from __future__ import annotations

RESOLUTION_NS = 1_000_000
"""The venue answers in whole milliseconds, cut off."""


class ServerClock:
    """Offset of the venue's clock from ours, nanoseconds."""

    def __init__(self) -> None:
        self.offset_ns = 0
        self.error_ns = 0
        self.known = False
        self._round_trip: int | None = None

    def begin(self) -> None:
        """A new round of samples; the estimate so far serves until its first one."""
        self._round_trip = None

    def sample(self, sent_ns: int, received_ns: int, server_ms: int) -> None:
        """sent, received: our wall clock around the request."""
        round_trip = received_ns - sent_ns
        if round_trip < 0 or (self._round_trip is not None and round_trip >= self._round_trip):
            return
        self._round_trip = round_trip
        middle = (sent_ns + received_ns) // 2
        # Half of what the cut-off milliseconds may have hidden, so that the error is symmetric.
        self.offset_ns = server_ms * 1_000_000 + RESOLUTION_NS // 2 - middle
        self.error_ns = round_trip // 2 + RESOLUTION_NS // 2
        self.known = True

    def milliseconds(self, now_ns: int) -> int:
        """The timestamp of a request that leaves now. A timestamp may lie up to a second ahead of
        the venue's clock, never behind its window, so the plain estimate is right for both."""
        return (now_ns + self.offset_ns) // 1_000_000

    def seconds(self, now_ns: int) -> float:
        """The venue's seconds since the epoch: its rate-limit windows are aligned to them."""
        return (now_ns + self.offset_ns) / 1e9
