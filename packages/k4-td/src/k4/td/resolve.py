"""When to ask the venue about an order that is in doubt, and when its silence is an answer. Pure.

An accepted request can still be executed until its receive window closes, and the venue's backend
may take 10 s more (it answers -1007 then). So "no such order" is an answer only to a query that was
sent after that: a later one can no longer be overtaken by the request. Times are monotonic seconds.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from k4.td.state import OrderState
from k4.td.timing import Timing


class Verdict(Enum):
    """What one query has shown."""

    AGAIN = "again"  # ask once more, later
    SETTLED = "settled"  # the venue's report is the whole truth
    NOT_PLACED = "not-placed"  # the venue never had it, and no longer can
    GONE = "gone"  # it existed, and the venue keeps no record of it


class Inquiry(msgspec.Struct, frozen=True):
    """closes: from when a query sees everything that the request in doubt can have done."""

    closes: float

    @classmethod
    def begin(
        cls, now: float, recv_window_ms: float, clock_error: float, timing: Timing
    ) -> Inquiry:
        """For a request that was sent before `now`. clock_error: seconds that our idea of the
        venue's clock may be wrong."""
        return cls(now + recv_window_ms / 1000.0 + clock_error + timing.settle)

    def judge(self, state: OrderState, asked: float, found: bool) -> Verdict:
        """state: with the answer joined. asked: when the query was sent. found: the venue had it.

        A cancel or an amend in doubt may still arrive, so an order that is open is settled only by
        a query after the window; an order in doubt about its placing, by any trace of it.
        """
        late = asked >= self.closes
        if found:
            return Verdict.SETTLED if late or not state.doubts else Verdict.AGAIN
        if not late:
            return Verdict.AGAIN
        return Verdict.NOT_PLACED if state.venue is None else Verdict.GONE

    @staticmethod
    def delay(attempt: int, timing: Timing) -> float:
        """Seconds before query number `attempt`, from 0."""
        return float(min(timing.query_cap, timing.query_first * 2.0 ** min(attempt, 30)))
