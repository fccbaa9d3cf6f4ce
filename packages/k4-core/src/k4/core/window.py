"""Which ids were seen: exact windows for trades and the ledger of gaps. Pure; time comes in as ns.

`Gaps` works on ids that are consecutive at the venue. It remembers what is missing, not what was
seen, so a stream without loss costs one comparison per id and no memory.

`RecentIds` works on ids that are not: it remembers every id of the window.

A window covers at least `ids` ids and `span_ns` of time: only what is older than both has left it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Sequence
from enum import Enum, IntEnum
from itertools import pairwise, takewhile

WINDOW_IDS = 65_536
MAX_RUNS = 100_000

Figures = tuple[int, int, int]
"""Of a ledger of gaps: ids lost, ids healed, runs."""


class Verdict(IntEnum):
    """What an id is to a window. New and late ids are to be published, the others not."""

    SEEN = 0
    NEW = 1
    LATE = 2
    TOO_LATE = 3


class LedgerState(Enum):
    """What the ids of one (store, symbol) say of its completeness: nothing; that nothing is
    missing; that something may be missing, by ids that only suggest it; that ids are missing on all
    lines. A row of counters holds the position."""

    UNKNOWN = "unknown"
    CONTIGUOUS = "contiguous"
    SUSPECTED = "suspected"
    GAP = "gap"


class Run:
    """Missing ids `low` to `high`, both included; `counted` False where nothing proves that they
    were ever ours (before the first id)."""

    __slots__ = ("counted", "high", "low", "since_ns")

    def __init__(self, low: int, high: int, since_ns: int, counted: bool) -> None:
        self.low = low
        self.high = high
        self.since_ns = since_ns
        self.counted = counted


def _low(run: Run) -> int:
    return run.low


class Gaps:
    """Consecutive ids: what is missing on all lines.

    top: highest id seen, -1 before the first. first: lowest id taken. lost: counted ids that are
    missing, healed ones given back. runs: maximal runs of them. healed: ids that came late.
    """

    __slots__ = (
        "_expired_runs",
        "_expired_top",
        "_missing",
        "_span_ns",
        "first",
        "healed",
        "lost",
        "top",
    )

    def __init__(self, span_ns: int) -> None:
        self._span_ns = span_ns
        self._missing: list[Run] = []
        self._expired_runs = 0
        self._expired_top = -1
        self.top = -1
        self.first = -1
        self.lost = 0
        self.healed = 0

    @property
    def runs(self) -> int:
        return self._expired_runs + sum(run.counted for run in self._missing)

    def offer(self, id: int, now_ns: int, first_id: int = -1) -> Verdict:
        """Take note of `id` (of `first_id` to `id`, where a message covers several)."""
        if first_id < 0 or first_id > id:
            first_id = id
        top = self.top
        if id > top:
            if top < 0:
                low = max(0, first_id - WINDOW_IDS)
                if low < first_id:
                    self._missing.append(Run(low, first_id - 1, now_ns, counted=False))
                self.first = first_id
            elif first_id > top + 1:
                self._open(top + 1, first_id - 1, now_ns)
            self.top = id
            return Verdict.NEW
        return self._late(first_id, id, now_ns)

    def go_on(self, ids: Sequence[int]) -> None:
        """Take over rising `ids` that an earlier process took; their gaps were counted by it."""
        self.first, self.top = ids[0], ids[-1]
        self._missing = [
            Run(low + 1, high - 1, 0, counted=False)
            for low, high in pairwise(ids)
            if high > low + 1
        ]

    def figures(self) -> Figures:
        return self.lost, self.healed, self.runs

    def missing_since(self, since_ns: int) -> int:
        """How many counted ids are missing in gaps that opened at `since_ns` or later; exact for
        the last window and within this generation."""
        newer = takewhile(lambda run: run.since_ns >= since_ns, reversed(self._missing))
        return sum(run.high - run.low + 1 for run in newer if run.counted)

    def give_back(self, taken: Figures) -> None:
        """Undo what ids counted that belonged to the next generation, just before its `reset`."""
        lost, healed, runs = taken
        self.lost -= lost
        self.healed -= healed
        self._expired_runs -= runs

    def reset(self) -> None:
        """Begin a new generation: the losses of the old one stay counted."""
        self._expired_runs = self.runs
        self._missing.clear()
        self.top = self.first = self._expired_top = -1

    def _open(self, low: int, high: int, now_ns: int) -> None:
        self._expire(now_ns)
        self._missing.append(Run(low, high, now_ns, counted=True))
        self.lost += high - low + 1

    def _expire(self, now_ns: int) -> None:
        missing = self._missing
        floor = self.top - WINDOW_IDS
        oldest = now_ns - self._span_ns
        drop = 0
        while drop < len(missing) and (
            (missing[drop].high < floor and missing[drop].since_ns < oldest)
            or len(missing) - drop > MAX_RUNS
        ):
            self._expired_runs += missing[drop].counted
            self._expired_top = missing[drop].high
            drop += 1
        if drop:
            del missing[:drop]

    def _late(self, low: int, high: int, now_ns: int) -> Verdict:
        self._expire(now_ns)
        missing = self._missing
        at = bisect_right(missing, high, key=_low) - 1
        if at < 0 or missing[at].high < high:
            gone = high < self.first or high <= self._expired_top
            return Verdict.TOO_LATE if gone else Verdict.SEEN
        run = missing[at]
        low = max(low, run.low)
        before = low < self.first
        parts = []
        if run.low < low:
            parts.append(Run(run.low, low - 1, run.since_ns, run.counted))
        if high < run.high:
            # Above an id that was taken, what is missing is a gap also before the first message.
            parts.append(Run(high + 1, run.high, run.since_ns, run.counted or before))
        if run.counted:
            self.lost -= high - low + 1
            self.healed += high - low + 1
        elif before:
            self.first = low
            self.lost += run.high - high
        missing[at : at + 1] = parts
        return Verdict.LATE


class RecentIds:
    """Ids without arithmetic: each is taken once while it is in the window.

    With `ordered` ids an id below everything that left the window is too late; otherwise its venue
    time decides.
    """

    __slots__ = ("_floor", "_order", "_seen", "_span_ns", "ordered")

    def __init__(self, span_ns: int, *, ordered: bool) -> None:
        self._span_ns = span_ns
        self.ordered = ordered
        self._seen: set[Hashable] = set()
        self._order: deque[tuple[Hashable, int, int]] = deque()
        self._floor = -1

    def offer(self, key: Hashable, rank: int, now_ns: int) -> Verdict:
        """Take `key`; `rank` is the id where ids are ordered, else the venue's time."""
        seen = self._seen
        if key in seen:
            return Verdict.SEEN
        if rank <= self._floor and (self.ordered or rank < self._floor):
            return Verdict.TOO_LATE
        self.take(key, rank, now_ns)
        return Verdict.NEW

    def take(self, key: Hashable, rank: int, now_ns: int) -> bool:
        """Take a key that cannot be too late, its rank being none below the highest so far; False
        where it was taken before."""
        seen = self._seen
        if key in seen:
            return False
        seen.add(key)
        order = self._order
        order.append((key, rank, now_ns))
        if len(order) > WINDOW_IDS:
            oldest_ns = now_ns - self._span_ns
            while len(order) > WINDOW_IDS and order[0][2] < oldest_ns:
                old, old_rank, _ = order.popleft()
                seen.discard(old)
                if old_rank > self._floor:
                    self._floor = old_rank
        return True

    def go_on(self, ids: Sequence[int]) -> None:
        """Take over ordered ids that an earlier process took."""
        self._seen.update(ids)
        self._order.extend((id, id, 0) for id in ids)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._seen

    def reset(self) -> None:
        """Begin a new generation."""
        self._seen.clear()
        self._order.clear()
        self._floor = -1
