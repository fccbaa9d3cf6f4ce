"""Counters as bytes over any buffer: rows of named integers that one process writes and any read.

    offset 0   char magic[8] = "K4CNT\\0\\0\\1"
    offset 8   u32 rows          12 u32 words        capacities
    offset 16  u32 pid           20 u32 state        1 live, 2 closed
    offset 24  u64 started_ns    32 u64 heartbeat_ns (both CLOCK_REALTIME)
    offset 40  24 bytes 0
    offset 64  row[rows], 32 bytes each:
                 +0  u64 version   odd while the row is being changed, +2 for every change
                 +8  u32 fields    number of values; 0: the row is free
                 +12 u32 start     first word of its extent in the heap
                 +16 u32 text      bytes of the description that follows the values
                 +20 u32 0         +24 u64 serial, never the same for two rows of one table
    then       heap, `words` words of 8 bytes. An extent is `fields` values (i64), then the
               description: JSON {"type", "labels", "fields"}, NUL-padded to whole words.

A row is read under its version: read it, copy, read it again; the copy counts when both are equal
and even. Rows come and go with the lines that they describe, so extents are taken first fit and
merged when they are given back; the list of free ones is the writer's own and not in the buffer.
The order of stores is the processor's, as for the market-data rings: x86-64 keeps it.
"""

from __future__ import annotations

import bisect
import math
import os
import struct
from collections.abc import Mapping, Sequence

import msgspec

from k4.core.clock import Clock
from k4.core.errors import K4Error

MAGIC_BYTES = b"K4CNT\0\0\1"
HEADER = struct.Struct("@8sIIIIQQ24x")
DESCRIPTOR = struct.Struct("@IIIIQ")  # of a row, after its version

PID = 16
STATE = 20
HEARTBEAT_WORD = 32 // 8
ROW_WORDS = 4
FIRST_ROW_WORD = HEADER.size // 8
STATE_LIVE = 1
STATE_CLOSED = 2

_I64_MAX = (1 << 63) - 1
_READ_ATTEMPTS = 200


class CounterRow(msgspec.Struct, frozen=True):
    """A row as it was read: what it describes, and its values by field name."""

    type: str
    labels: dict[str, str]
    values: dict[str, int]
    serial: int = 0


class _Description(msgspec.Struct, frozen=True):
    type: str
    labels: dict[str, str]
    fields: list[str]


def table_size(rows: int, words: int) -> int:
    """Bytes of a table of `rows` rows and a heap of `words` words."""
    return HEADER.size + (rows * ROW_WORDS + words) * 8


class Extents:
    """Which words of the heap are free: first fit, neighbors merged when given back."""

    def __init__(self, words: int) -> None:
        self._free = [(0, words)]  # (start, length), sorted, never adjacent

    def take(self, length: int) -> int | None:
        """The first word of `length` free ones, None where no run is long enough."""
        for i, (start, free) in enumerate(self._free):
            if free >= length:
                self._free[i : i + 1] = [(start + length, free - length)] if free > length else []
                return start
        return None

    def give(self, start: int, length: int) -> None:
        """Give back what `take` gave."""
        i = bisect.bisect(self._free, (start, 0))
        if i < len(self._free) and self._free[i][0] == start + length:
            length += self._free.pop(i)[1]
        if i and sum(self._free[i - 1]) == start:
            i -= 1
            before = self._free.pop(i)
            start, length = before[0], before[1] + length
        self._free.insert(i, (start, length))

    @property
    def free(self) -> list[tuple[int, int]]:
        """The free runs, (start, length), in order."""
        return list(self._free)


class Row:
    """The writing end of one row; made by `Counters.row`."""

    __slots__ = ("_extent", "_pack", "_slot", "_start", "_table", "fields")

    def __init__(
        self, table: Counters, slot: int, start: int, extent: int, fields: Sequence[str]
    ) -> None:
        self.fields = tuple(fields)
        self._table: Counters | None = table
        self._slot = slot
        self._start = start
        self._extent = extent
        self._pack = struct.Struct(f"@{len(self.fields)}q").pack_into

    def write(self, values: Sequence[int | float]) -> None:
        """Replace all values at once; a reader sees the old ones or the new ones, never a mixture.

        Floats are cut to integers; what 64 signed bits cannot hold becomes the nearest that they
        can, and NaN 0.
        """
        if len(values) != len(self.fields):
            raise K4Error(f"row has {len(self.fields)} fields, not {len(values)}")
        integers = [_i64(value) for value in values]
        words, version, buffer, at = self._open()
        words[version] += 1
        self._pack(buffer, at, *integers)
        words[version] += 1

    def set(self, index: int, value: int | float) -> None:
        """Replace one value; `index` is its position in `fields`."""
        if not 0 <= index < len(self.fields):
            raise K4Error(f"row has {len(self.fields)} fields, no number {index}")
        words, version, _, at = self._open()
        words[version] += 1
        words[at // 8 + index] = _i64(value)
        words[version] += 1

    def release(self) -> None:
        """Give the row and its space back; a second call does nothing."""
        if self._table is not None:
            self._table._release(self._slot, self._start, self._extent)
            self._table = None

    def _open(self) -> tuple[memoryview, int, memoryview, int]:
        """(words, index of the version, buffer, offset in bytes of the first value)."""
        table = self._table
        if table is None or table.closed:
            raise K4Error("this row of counters was released, or its table closed")
        version = FIRST_ROW_WORD + self._slot * ROW_WORDS
        return table._words, version, table._buffer, (table._heap + self._start) * 8


class Counters:
    """The writing end of a table: what a worker flushes its counters into.

    `buffer` is writable and starts 8-byte aligned; it is formatted anew. Not thread-safe: one
    writer, on one thread.
    """

    def __init__(
        self, buffer: memoryview, *, rows: int, words: int, name: str, pid: int, clock: Clock
    ) -> None:
        self.name = name
        self.pid = pid
        self.closed = False
        self._clock = clock
        self._rows = rows
        self._buffer = buffer
        self._words = buffer[: len(buffer) // 8 * 8].cast("q")
        self._heap = FIRST_ROW_WORD + rows * ROW_WORDS
        self._extents = Extents(words)
        self._slots = list(range(rows - 1, -1, -1))
        self._serial = 0
        now = clock.time_ns()
        HEADER.pack_into(buffer, 0, MAGIC_BYTES, rows, words, pid, STATE_LIVE, now, now)

    def row(self, type: str, labels: Mapping[str, str], fields: Sequence[str]) -> Row:
        """A new row, all values 0.

        type: what is described (`stream`, `line`, `udp` …). labels: which one. fields: the names
        of its values. Raises K4Error where the table is full.
        """
        if self.closed:
            raise K4Error(f"counters {self.name!r} are closed")
        if not fields or len(set(fields)) != len(fields):
            raise K4Error(f"row {type!r} needs field names, each once, not {list(fields)}")
        text = msgspec.json.encode(_Description(type, dict(labels), list(fields)))
        extent = len(fields) + (len(text) + 7) // 8
        start = self._extents.take(extent) if self._slots else None
        if start is None:
            raise K4Error(
                f"counters {self.name!r} are full ({self._rows - len(self._slots)} of "
                f"{self._rows} rows in use)",
                remedy="give them more rows and words, or release rows that are no longer written",
            )
        slot = self._slots.pop()
        self._serial += 1
        self._describe(slot, start, len(fields), text)
        return Row(self, slot, start, extent, fields)

    def heartbeat(self) -> None:
        """Say that the writer is alive; call it at least once a second."""
        self._words[HEARTBEAT_WORD] = self._clock.time_ns()

    def rows(self) -> list[CounterRow]:
        """The rows as a reader sees them."""
        return CountersView(self._buffer).rows()

    def close(self) -> None:
        """Mark the table closed; its rows cannot be written any more. Safe to call twice."""
        if not self.closed:
            self.closed = True
            struct.pack_into("@I", self._buffer, STATE, STATE_CLOSED)
            self._words.release()

    def _describe(self, slot: int, start: int, fields: int, text: bytes) -> None:
        version = FIRST_ROW_WORD + slot * ROW_WORDS
        at = (self._heap + start) * 8
        padded = text.ljust((len(text) + 7) // 8 * 8, b"\0")
        self._words[version] += 1
        body = bytes(fields * 8) + padded
        self._buffer[at : at + len(body)] = body
        DESCRIPTOR.pack_into(
            self._buffer, (version + 1) * 8, fields, start, len(text), 0, self._serial
        )
        self._words[version] += 1

    def _release(self, slot: int, start: int, extent: int) -> None:
        if self.closed:
            return
        version = FIRST_ROW_WORD + slot * ROW_WORDS
        self._words[version] += 1
        DESCRIPTOR.pack_into(self._buffer, (version + 1) * 8, 0, 0, 0, 0, 0)
        self._words[version] += 1
        self._extents.give(start, extent)
        self._slots.append(slot)


class MemoryCounters(Counters):
    """The same table in ordinary memory, for callers in the same process and for tests."""

    def __init__(
        self,
        *,
        rows: int = 1024,
        words: int = 65_536,
        name: str = "memory",
        clock: Clock,
    ) -> None:
        buffer = memoryview(bytearray(table_size(rows, words)))
        super().__init__(buffer, rows=rows, words=words, name=name, pid=os.getpid(), clock=clock)


class CountersView:
    """The reading end of a table. `buffer` may be read-only; K4Error where it holds no table."""

    def __init__(self, buffer: memoryview) -> None:
        if len(buffer) < HEADER.size or bytes(buffer[:8]) != MAGIC_BYTES:
            raise K4Error("these bytes hold no K4 counters")
        _, rows, words, self.pid, _, self.started_ns, _ = HEADER.unpack_from(buffer, 0)
        if len(buffer) < table_size(rows, words):
            raise K4Error("these counters are cut short")
        self._rows: int = rows
        self._buffer = buffer
        self._words = buffer[: len(buffer) // 8 * 8].cast("q")
        self._heap = FIRST_ROW_WORD + rows * ROW_WORDS

    @property
    def heartbeat_ns(self) -> int:
        """When the writer last said that it is alive (CLOCK_REALTIME)."""
        return int(self._words[HEARTBEAT_WORD])

    @property
    def closed(self) -> bool:
        """The writer has closed the table, or another has replaced it: open the name again."""
        return self._buffer[STATE] == STATE_CLOSED

    def rows(self) -> list[CounterRow]:
        """Every row in use, each consistent in itself, in the order of their making.

        A row that a dead writer left half written is left out.
        """
        found = (self._row(slot) for slot in range(self._rows))
        return sorted((row for row in found if row is not None), key=lambda row: row.serial)

    def _row(self, slot: int) -> CounterRow | None:
        version = FIRST_ROW_WORD + slot * ROW_WORDS
        for _ in range(_READ_ATTEMPTS):
            before = self._words[version]
            if before & 1:
                os.sched_yield()
                continue
            fields, start, text, _, serial = DESCRIPTOR.unpack_from(self._buffer, (version + 1) * 8)
            at = (self._heap + start) * 8
            body = bytes(self._buffer[at : at + fields * 8 + text])
            if self._words[version] == before:
                return _decode(body, fields, text, serial)
        return None


def _decode(body: bytes, fields: int, text: int, serial: int) -> CounterRow | None:
    if not fields or len(body) != fields * 8 + text:
        return None
    try:
        about = msgspec.json.decode(body[fields * 8 :], type=_Description)
    except msgspec.DecodeError:
        return None
    if len(about.fields) != fields:
        return None
    values = struct.unpack_from(f"@{fields}q", body)
    named = dict(zip(about.fields, values, strict=True))
    return CounterRow(about.type, about.labels, named, serial)


def _i64(value: int | float) -> int:
    if isinstance(value, float) and not math.isfinite(value):
        value = 0 if math.isnan(value) else int(math.copysign(2, value)) << 63
    return max(-_I64_MAX - 1, min(_I64_MAX, int(value)))
