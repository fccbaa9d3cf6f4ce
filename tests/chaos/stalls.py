"""How long a line lived on that had been stalled: what promise P4 is about.

Pure: a ledger in, seconds out. A stalled connection brings no data, and answers pings as ever. It
is proved silent when a sibling brings something newer of a series that it carries, too. (Of the
same generation: the first messages after a reset prove nothing until that is proved itself.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from k4.md.stream import HEARD
from k4.runner.sim.ledger import ConnectionLog, Frames, Ledger

HALF_OPEN = "half open"


class Stall(NamedTuple):
    """A connection that was stalled for good. proved_ns: when a sibling was first ahead of it.
    seconds: from then until K4 closed it, of the venue's time. A half-open one never answers to
    that, and lasts until K4 waits no longer for the answer."""

    connection: int
    proved_ns: int
    seconds: float


def stalls(ledger: Ledger, rules: tuple[dict[str, Any], ...]) -> list[Stall]:
    """Those that a sibling proved. rules: the fault script, which says what was for good."""
    frames: dict[int, Frames] = {}
    generations = [ledger.table(key)["generation"] for key in ledger.keys()]  # noqa: SIM118
    began: dict[int, int] = {}
    for fault in ledger.faults("stall"):
        if fault.rule < 0 or "duration" not in rules[fault.rule]:
            began.setdefault(fault.connection, fault.time_ns)
    found = []
    for connection, since_ns in began.items():
        log = ledger.connections[connection]
        proved = [
            _ahead_ns(
                generations,
                _of(ledger, frames, connection),
                _of(ledger, frames, other.index),
                since_ns,
            )
            for other in ledger.connections
            if other is not log and _are_siblings(log, other) and other.closed_ns > since_ns
        ]
        proved_ns = min((ns for ns in proved if ns), default=0)
        unanswered_ns = int(HEARD * 1e9) if log.ended == HALF_OPEN else 0
        if 0 < proved_ns < log.closed_ns - unanswered_ns:
            lived_ns = log.closed_ns - unanswered_ns - proved_ns
            found.append(Stall(connection, proved_ns, lived_ns / 1e9))
    return found


def summary(found: list[Stall]) -> dict[str, float]:
    """Seconds, as one JSON-able object."""
    if not found:
        return {"count": 0}
    seconds = np.array([stall.seconds for stall in found])
    p50, p99, most = np.percentile(seconds, (50, 99, 100)).round(1).tolist()
    return {"count": len(found), "p50": p50, "p99": p99, "max": most}


def _of(ledger: Ledger, frames: dict[int, Frames], connection: int) -> Frames:
    if connection not in frames:
        frames[connection] = ledger.frames(connection)
    return frames[connection]


def _are_siblings(log: ConnectionLog, other: ConnectionLog) -> bool:
    lives = other.opened_ns < log.closed_ns and log.opened_ns < other.closed_ns
    return lives and (log.venue, log.endpoint) == (other.venue, other.endpoint)


def _ahead_ns(
    generations: Sequence[npt.NDArray[np.int64]], stalled: Frames, other: Frames, since_ns: int
) -> int:
    """When the other one was first ahead, 0 for never. generations: of every series' rows."""
    first = 0
    for series in np.unique(stalled.series).tolist():
        newest = stalled.row[stalled.series == series].max()
        ahead = (other.series == series) & (other.row > newest) & (other.ns > since_ns)
        of = generations[series]
        ahead[ahead] = of[other.row[ahead]] == of[newest]
        if ahead.any():
            ns = int(other.ns[ahead][0])
            first = min(first or ns, ns)
    return first
