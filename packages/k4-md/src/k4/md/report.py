"""What the user sees of streams, lines and ledgers: rows in the shared counters, and the receipt at
the end.

Figures are gathered by timer from plain integers; nothing here is called per message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from k4.core.clock import Clock
from k4.core.counters import Counters, Row
from k4.core.errors import K4Error
from k4.core.latency import Histogram
from k4.core.link import LinkState
from k4.core.log import get_logger
from k4.core.window import LedgerState
from k4.md.line import Line
from k4.md.slots import Slot
from k4.md.stream import Stream, totals

if TYPE_CHECKING:
    from k4.md.engine import Group

STREAM_FIELDS = (
    "published",
    "duplicates",
    "stale",
    "gaps",
    "lost",
    "resets",
    "suspected_gaps",
    "suspected_lost",
    "healed",
    "too_late",
    "messages",
    "dropped",
    "missed",
    "alone",
    "reconnects",
    "faults",
    "lines_up",
    "lines",
    "rotations",
    "abandoned",
    "stalls",
    "unproven",
    "resubscribed",
    "notices",
    "refused",
    "broken",
    "fallbacks",
    "overlap_ms",
    "rotation_lost",
    "rotation_suspected",
)
LINE_FIELDS = (
    "state",
    "messages",
    "wins",
    "missed",
    "reconnects",
    "age_s",
    "lag_us.p50",
    "lag_us.p99",
    "duplicates",
    "stale",
    "share_ppm",
    "alone",
    "dropped",
    "wait_us.mean",
    "wait_us.p50",
    "wait_us.p99",
    "latency_us.p50",
    "latency_us.p99",
    "latency_us.error",
    "clock_offset_us",
)
LEDGER_FIELDS = ("state", "gaps", "lost", "healed", "too_late", "resets")
ROUNDS = 8  # flushes in which the percentiles of all lines are renewed
STATES = tuple(state.value for state in LinkState)
LEDGER_STATES = tuple(LedgerState)
"""`state` of a line's or ledger's row is a position in these."""


def stream_figures(group: Group, stream: Stream) -> dict[str, int]:
    """All figures of one stream. Gaps belong to the first stream that carries the slot."""
    return _stream_figures(group, stream, [totals(line) for line in stream.counted])


def _stream_figures(
    group: Group, stream: Stream, sums: Sequence[Mapping[str, int]]
) -> dict[str, int]:
    figures = dict(stream.gone)
    for of_line in sums:
        for name, value in of_line.items():
            figures[name] = figures.get(name, 0) + value
    figures.update(stream.counts)
    figures["lines_up"] = stream.lines_up
    figures["lines"] = stream.feed.lines
    for slot in _own_slots(group, stream):
        kind = "suspected_" if slot.suspected else ""
        if slot.gaps is not None:
            _add(figures, f"{kind}gaps", slot.gaps.runs)
            _add(figures, f"{kind}lost", slot.gaps.lost)
            _add(figures, "healed", slot.gaps.healed)
        _add(figures, "resets", slot.resets)
        _add(figures, "too_late", slot.too_late)
    return {name: figures.get(name, 0) for name in STREAM_FIELDS}


def _add(figures: dict[str, int], name: str, value: int) -> None:
    figures[name] = figures.get(name, 0) + value


def _own_slots(group: Group, stream: Stream) -> list[Slot]:
    earlier = {
        channel.slot
        for other in group.streams[: group.streams.index(stream)]
        for channel in other.feed.channels
    }
    return [
        slot
        for channel in stream.feed.channels
        if channel.slot not in earlier and (slot := group.arbiter.slots[channel.slot]) is not None
    ]


class Delays(msgspec.Struct, frozen=True):
    """What takes long to gather of a line: its lag and its wait, in µs."""

    lag_p50: int = 0
    lag_p99: int = 0
    wait_mean: int = 0
    wait_p50: int = 0
    wait_p99: int = 0

    @classmethod
    def of(cls, line: Line) -> Delays:
        lag, wait = line.port.lag.summary(), line.port.wait.summary()
        figures = (lag.p50, lag.p99, wait.mean, wait.p50, wait.p99)
        return cls(*(int(figure // 1000) for figure in figures))


def line_figures(
    stream: Stream, line: Line, sums: Mapping[str, int], delays: Delays, now: float
) -> tuple[int, ...]:
    """One line's row, in the order of LINE_FIELDS. sums: its `totals`."""
    port = line.port
    return (
        STATES.index(line.link.state.value),
        sums["messages"],
        port.wins,
        port.missed,
        line.reconnects,
        int(now - line.born),
        delays.lag_p50,
        delays.lag_p99,
        sums["duplicates"],
        port.stale,
        share_ppm(line, sums["duplicates"]),
        port.alone,
        sums["dropped"],
        delays.wait_mean,
        delays.wait_p50,
        delays.wait_p99,
        *_latency(stream, line),
    )


def share_ppm(line: Line, duplicates: int) -> int:
    """Millionths of the updates published while the line served: those that it brought first."""
    port = line.port
    published = port.wins + duplicates - port.repeats + port.missed
    return port.wins * 1_000_000 // (published or 1)


def _latency(stream: Stream, line: Line) -> tuple[int, int, int, int]:
    """From the venue to here: p50, p99, how wrong both may be (-1 unknown), the clock's offset."""
    age = stream.age(line)
    return (age.p50_us, age.p99_us, age.error_us, age.offset_us) if age else (0, 0, -1, 0)


class Reporter:
    """Keeps the rows of the shared counters in step with streams and lines as they come and go."""

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._log = get_logger("k4.md.report")
        self._full = False
        self._streams: dict[str, Row | None] = {}
        self._lines: dict[Line, Row | None] = {}
        self._delays: dict[Line, Delays] = {}
        self._ledgers: dict[Slot, Row | None] = {}
        self._written: dict[Slot, tuple[int, ...]] = {}

    def flush(self, groups: Sequence[Group]) -> None:
        """Write all figures.

        Percentiles are renewed for a few lines a time: hundreds of microseconds each, they would
        otherwise hold up the messages of that moment. Of ledgers, which may be many, only what has
        changed is written.
        """
        now = self._clock.monotonic()
        self._let_go([stream for group in groups for stream in group.streams])
        for group in groups:
            for stream in group.streams:
                name = stream.feed.name
                if name not in self._streams:
                    self._streams[name] = self._row("stream", {"name": name}, STREAM_FIELDS)
                sums = {line: totals(line) for line in stream.counted}
                figures = _stream_figures(group, stream, [*sums.values()])
                _write(self._streams[name], list(figures.values()))
                for line in stream.lines:
                    if line not in self._lines:
                        labels = {"stream": name, "id": str(line.id)}
                        self._lines[line] = self._row("line", labels, LINE_FIELDS)
                        self._delays[line] = Delays()
                    of_line = line_figures(stream, line, sums[line], self._delays[line], now)
                    _write(self._lines[line], of_line)
            self._flush_ledgers(group)
        for line in list(self._delays)[: 1 + len(self._delays) // ROUNDS]:
            del self._delays[line]
            self._delays[line] = Delays.of(line)  # now the last in the order

    def _let_go(self, streams: Sequence[Stream]) -> None:
        """Give back the rows of what is no more."""
        lines = {line for stream in streams for line in stream.lines}
        for line in [line for line in self._lines if line not in lines]:
            _release(self._lines.pop(line))
            del self._delays[line]
        names = {stream.feed.name for stream in streams}
        for name in [name for name in self._streams if name not in names]:  # fell back to another
            _release(self._streams.pop(name))

    def _flush_ledgers(self, group: Group) -> None:
        for slot in group.arbiter.live_slots():
            figures = ledger_figures(slot)
            if self._written.get(slot) == figures:
                continue
            if slot not in self._ledgers:
                self._ledgers[slot] = self._row("ledger", ledger_labels(group, slot), LEDGER_FIELDS)
            _write(self._ledgers[slot], figures)
            self._written[slot] = figures

    def _row(self, type: str, labels: Mapping[str, str], fields: Sequence[str]) -> Row | None:
        """A new row; None, and a word in the log, where the table has no room for it."""
        try:
            return self._counters.row(type, labels, fields)
        except K4Error as error:
            if not self._full:
                self._log.error("figures are left out of the shared counters", why=str(error))
            self._full = True
            return None

    def release(self) -> None:
        """Give all rows back."""
        for row in (*self._streams.values(), *self._lines.values(), *self._ledgers.values()):
            _release(row)
        for rows in (self._streams, self._lines, self._ledgers, self._written):
            rows.clear()


def _write(row: Row | None, figures: Sequence[int]) -> None:
    if row is not None:
        row.write(figures)


def _release(row: Row | None) -> None:
    if row is not None:
        row.release()


def ledger_labels(group: Group, slot: Slot) -> dict[str, str]:
    """Whose ledger it is."""
    store = group.stores[slot.kind].name
    return {"store": store, "kind": slot.kind.label, "symbol": slot.channel.symbol}


def ledger_figures(slot: Slot) -> tuple[int, ...]:
    """What the ids of one (kind, symbol) say of its completeness, in the order of LEDGER_FIELDS."""
    gaps, state = slot.gaps, LedgerState.UNKNOWN
    if gaps is None:
        return LEDGER_STATES.index(state), 0, 0, 0, slot.too_late, slot.resets
    if not gaps.lost:
        state = LedgerState.CONTIGUOUS
    else:
        state = LedgerState.SUSPECTED if slot.suspected else LedgerState.GAP
    figures = gaps.runs, gaps.lost, gaps.healed, slot.too_late, slot.resets
    return LEDGER_STATES.index(state), *figures


def receipt(group: Group, stream: Stream, now: float) -> dict[str, Any]:
    """One stream's figures as a JSON object, with every line that served at the end. now: the
    clock's monotonic seconds."""
    figures: dict[str, Any] = {"type": "stream", "name": stream.feed.name}
    figures |= stream_figures(group, stream)
    figures["ids"] = sorted({channel.ids.value for channel in stream.feed.channels})
    figures["ledger"] = [_ledger(group, slot) for slot in _own_slots(group, stream)]
    figures["redundancy"] = [_of_line(stream, line, now) for line in stream.lines]
    figures |= _delays(stream)
    return figures


def _ledger(group: Group, slot: Slot) -> dict[str, Any]:
    figures: dict[str, Any] = dict(zip(LEDGER_FIELDS, ledger_figures(slot), strict=True))
    figures["state"] = LEDGER_STATES[figures["state"]].value
    if slot.gaps is None:
        for name in ("gaps", "lost", "healed"):
            del figures[name]  # not 0: nobody knows
    return ledger_labels(group, slot) | {"records": slot.published} | figures


def _of_line(stream: Stream, line: Line, now: float) -> dict[str, Any]:
    """What a line was and contributed: the figures of its row in the counters, nested by name."""
    row = line_figures(stream, line, totals(line), Delays.of(line), now)
    figures: dict[str, Any] = {"line": line.id}
    for name, value in zip(LINE_FIELDS, row, strict=True):
        outer, _, inner = name.partition(".")
        if inner:
            figures.setdefault(outer, {})[inner] = value
        else:
            figures[outer] = value
    figures["share"] = figures.pop("share_ppm") / 1e6
    figures["state"] = STATES[figures["state"]]
    return figures


def _delays(stream: Stream) -> dict[str, Any]:
    """Lag and wait of all lines that ever served, in µs."""
    found = {}
    for name in ("lag", "wait"):
        whole = Histogram()
        whole.merge(getattr(stream, name))
        for line in stream.counted:
            whole.merge(getattr(line.port, name))
        summary = whole.summary()
        figures = {"mean": summary.mean, "p50": summary.p50, "p99": summary.p99}
        found[f"{name}_us"] = {key: int(value // 1000) for key, value in figures.items()}
    return found
