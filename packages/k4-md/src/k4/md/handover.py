"""What a replacement cost, told when nothing of it is on its way any more: its receipt.

A hole that a change of lines made is an id that no line brought since the successor's ack. It is
counted when the old line's connection has ended and its siblings' copies have had time to come.
What the venue's lines lost together meanwhile is counted as well, since ids do not tell why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from k4.core.log import Logger
from k4.md.line import Line
from k4.md.slots import Slot


class Handover:
    """A replacement that is done, until its receipt is written. since_ns: of the successor's ack.
    ended_ns: when the end of the old line's connection was first seen, 0 before.
    """

    def __init__(self, old: Line, new: Line, overlap_ms: int) -> None:
        self.old = old
        self.new = new
        self.overlap_ms = overlap_ms
        self.since_ns = new.acked_ns
        self.ended_ns = 0


class Handovers:
    """Those of one stream. states: its slots. counts: to which `overlap_ms`, `rotation_lost` and
    `rotation_suspected` are added. patience_ns: how late copies may come.
    """

    def __init__(
        self, states: Callable[[], Sequence[Slot]], counts: dict[str, int], patience_ns: int
    ) -> None:
        self.pending: list[Handover] = []
        self._states = states
        self._counts = counts
        self._patience_ns = patience_ns
        self._told_ns = 0  # up to when losses are counted

    def settle(self, now_ns: int, log: Logger) -> None:
        """Write the receipts that are due."""
        due = []
        for handover in self.pending:
            if not handover.ended_ns:
                handover.ended_ns = now_ns if handover.old.over else 0
            elif now_ns - handover.ended_ns >= self._patience_ns:
                due.append(handover)
        for handover in due:
            self._tell(handover, now_ns, log)

    def end(self, now_ns: int, log: Logger) -> None:
        """Write all receipts now."""
        for handover in list(self.pending):
            self._tell(handover, now_ns, log)

    def _tell(self, handover: Handover, now_ns: int, log: Logger) -> None:
        """The counters have each hole once, however many replacements it fell into."""
        self.pending.remove(handover)
        self._counts["overlap_ms"] += handover.overlap_ms
        for name, ids in self._missing_since(max(handover.since_ns, self._told_ns)).items():
            self._counts[f"rotation_{name}"] += ids
        self._told_ns = now_ns
        log.info(
            "replacement receipt",
            line=handover.old.id,
            by=handover.new.id,
            overlap_ms=handover.overlap_ms,
            **self._missing_since(handover.since_ns),
        )

    def _missing_since(self, since_ns: int) -> dict[str, int]:
        """Ids that are missing on all lines since then: lost by proof, and suspected."""
        missing = {"lost": 0, "suspected": 0}
        for s in self._states():
            if s.gaps is not None:
                missing["suspected" if s.suspected else "lost"] += s.gaps.missing_since(since_ns)
        return missing
