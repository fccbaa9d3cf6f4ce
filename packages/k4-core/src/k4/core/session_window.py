"""Which sequence numbers of one sender's session have come: exact loss accounting, no I/O.

What is missing is kept as intervals, so memory follows the number of holes and not their size,
and a forged jump costs one interval.
"""

from __future__ import annotations

from bisect import bisect_right

MAX_HOLES = 4096
"""Holes kept open. The oldest is given up beyond: its records stay lost."""
REACH = 65_536
"""How far below the first sequence seen a straggler is still taken for part of the session."""

Runs = tuple[tuple[int, int], ...]


class SessionWindow:
    """Counts of one (channel, session), in records.

    received    every record that came: always accepted + duplicate + stale
    accepted    first copies
    duplicate   further copies
    reordered   those of `accepted` that came after a later record
    stale       too old to tell a first copy from a further one: below a hole that was given up, or
                further than `REACH` below the first sequence seen
    lost        not come, between the lowest and the highest sequence known; a late arrival takes
                its loss back. At rest accepted + lost = highest - first + 1.

    first: lowest sequence counted. next: highest known + 1; both 0 before anything was seen.
    """

    __slots__ = (
        "_ends",
        "_floor",
        "_starts",
        "accepted",
        "duplicate",
        "first",
        "lost",
        "next",
        "received",
        "reordered",
        "stale",
    )

    def __init__(self) -> None:
        self.first = self.next = self._floor = 0
        self.received = self.accepted = self.duplicate = 0
        self.reordered = self.stale = self.lost = 0
        self._starts: list[int] = []  # holes [start, end), ascending and apart
        self._ends: list[int] = []

    def take(self, sequence: int, count: int) -> Runs:
        """Account for `count` records from `sequence` on.

        Returns the runs [start, end) that are first copies, ascending.
        """
        self.received += count
        end = sequence + count
        following = self.next
        if sequence != following:
            if following == 0:
                self.first = self._floor = sequence
            elif sequence > following:
                self._miss(following, sequence)
            else:
                late = self._late(sequence, min(end, following))
                if end <= following:
                    return late
                return late + self._advance(following, end)
        return self._advance(sequence, end)

    def expect(self, sequence: int) -> None:
        """A heartbeat: `sequence` comes next, so all before it was sent."""
        if self.next == 0:
            self.first = self._floor = self.next = sequence
        elif sequence > self.next:
            self._miss(self.next, sequence)
            self.next = sequence

    @property
    def holes(self) -> tuple[tuple[int, int], ...]:
        """The intervals [start, end) that are missing and may still come."""
        return tuple(zip(self._starts, self._ends, strict=True))

    def _advance(self, start: int, end: int) -> Runs:
        self.next = end
        self.accepted += end - start
        return ((start, end),)

    def _miss(self, start: int, end: int) -> None:
        self.lost += end - start
        self._starts.append(start)
        self._ends.append(end)
        self._bound()

    def _late(self, start: int, end: int) -> Runs:
        """Records below `next`."""
        runs: list[tuple[int, int]] = []
        if start < self._floor:
            below = min(end, self._floor)
            if self._floor == self.first and self.first - start <= REACH:
                self._extend_down(start, below)
                runs.append((start, below))
            else:
                self.stale += below - start
            start = below
        if start < end:
            runs += self._fill(start, end)
        taken = sum(stop - begin for begin, stop in runs)
        self.accepted += taken
        self.reordered += taken
        self._bound()
        return tuple(runs)

    def _extend_down(self, start: int, end: int) -> None:
        """The session began earlier than the first datagram that came."""
        if end < self.first:
            self.lost += self.first - end
            self._starts.insert(0, end)
            self._ends.insert(0, self.first)
        self.first = self._floor = start

    def _fill(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take [start, end) out of the holes; what lies in none is a duplicate."""
        runs: list[tuple[int, int]] = []
        i = bisect_right(self._ends, start)
        while i < len(self._starts) and self._starts[i] < end:
            hole_start, hole_end = self._starts[i], self._ends[i]
            run = max(start, hole_start), min(end, hole_end)
            runs.append(run)
            rest = [
                hole for hole in ((hole_start, run[0]), (run[1], hole_end)) if hole[0] < hole[1]
            ]
            self._starts[i : i + 1] = [side[0] for side in rest]
            self._ends[i : i + 1] = [side[1] for side in rest]
            i += len(rest)
        filled = sum(stop - begin for begin, stop in runs)
        self.lost -= filled
        self.duplicate += end - start - filled
        return runs

    def _bound(self) -> None:
        while len(self._starts) > MAX_HOLES:
            del self._starts[0]
            self._floor = self._ends.pop(0)
