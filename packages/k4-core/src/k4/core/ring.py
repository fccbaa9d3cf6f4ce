"""One store's rings over any buffer, the writing and the reading end. No operating system in here.

Publishing is data first, then the instrument's index as one aligned 8-byte word, then `update_num`.
On x86-64 stores become visible in program order, so nothing more is needed there; `shm.py` refuses
to create a store on a processor that reorders stores.

Reading is optimistic: load the index, copy, load the index again. While record c is the newest, the
writer may be inside the slot of c + 1, which is that of c + 1 - size; so a copy of record i is
whole iff c - i < size - 1 still holds with the second c. A ring of n slots keeps n - 1 readable
records, and a reader never delays the writer: who is late pays for it by losing records, counted.

The arbiter packs straight into a lane's next slot, so the members of `Lane` are public on purpose.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from k4.core import layout
from k4.core.enums import Kind
from k4.core.errors import K4Error
from k4.core.records import Record


def format_segment(
    buffer: memoryview, kind: Kind, symbols: Sequence[str], buffer_size: int
) -> None:
    """Write header and instrument blocks of an empty store; the trailer is the owner's."""
    layout.HEADER.pack_into(buffer, 0, 0, len(symbols), buffer_size)
    span = layout.instrument_size(kind, buffer_size)
    for i, symbol in enumerate(symbols):
        layout.INSTRUMENT.pack_into(
            buffer,
            layout.HEADER_SIZE + i * span,
            layout.encode_symbol(symbol),
            -1,
            buffer_size,
            0,
        )


class Total:
    """`update_num` as the writer knows it, shared by the lanes of a ring."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Lane:
    """The writing end of one instrument's ring.

    next: index of the record to be written next. base, stride, size: slot i starts at
    `base + i % size * stride`. index_word: where `current_index` is in `words`.
    """

    __slots__ = (
        "base",
        "buffer",
        "generation_at",
        "index_word",
        "name",
        "next",
        "pack",
        "size",
        "stride",
        "total",
        "words",
    )

    def __init__(
        self,
        buffer: memoryview,
        words: memoryview,
        kind: Kind,
        at: int,
        size: int,
        total: Total,
    ) -> None:
        self.total = total
        self.buffer = buffer
        self.words = words
        self.base = at + layout.INSTRUMENT_SIZE
        self.stride = layout.LAYOUTS[kind].size
        self.size = size
        self.index_word = (at + layout.CURRENT_INDEX) // 8
        self.generation_at = at + layout.GENERATION
        self.name = bytes(buffer[at : at + 32])
        self.pack = layout.LAYOUTS[kind].packer.pack_into
        self.next: int = words[self.index_word] + 1

    def publish(self, *values: Any) -> None:
        """Write one record: the members after the symbol, in order, arrays flattened."""
        i = self.next
        self.pack(self.buffer, self.base + i % self.size * self.stride, self.name, *values)
        self.words[self.index_word] = i
        self.next = i + 1
        total = self.total
        total.value = self.words[0] = total.value + 1

    def newest(self) -> memoryview:
        """The bytes of the record written last."""
        at = self.base + (self.next - 1) % self.size * self.stride
        return self.buffer[at : at + self.stride]

    def open_generation(self) -> int:
        """Count a sequence reset of this instrument; returns the new generation."""
        window = self.buffer[self.generation_at : self.generation_at + 4].cast("I")
        window[0] = (window[0] + 1) & 0xFFFFFFFF
        return int(window[0])

    @property
    def generation(self) -> int:
        return int(self.buffer[self.generation_at : self.generation_at + 4].cast("I")[0])


class RingWriter:
    """The lanes of one formatted segment (see `layout.py`), new or found.

    `buffer` is a writable view of bytes that starts 8-byte aligned; its lanes go on from the
    indexes that they find.
    """

    def __init__(self, buffer: memoryview, kind: Kind) -> None:
        self.kind = kind
        self.buffer = buffer
        self.words = buffer[: len(buffer) // 8 * 8].cast("q")
        _, count, self.buffer_size = layout.HEADER.unpack_from(buffer, 0)
        span = layout.instrument_size(kind, self.buffer_size)
        total = Total()
        self.lanes = tuple(
            Lane(buffer, self.words, kind, layout.HEADER_SIZE + i * span, self.buffer_size, total)
            for i in range(count)
        )
        total.value = self.words[0] = sum(lane.next for lane in self.lanes)

    @classmethod
    def in_memory(cls, kind: Kind, symbols: Sequence[str], buffer_size: int) -> RingWriter:
        """A private ring in ordinary memory, for callers in the same process and for tests."""
        buffer = memoryview(bytearray(layout.segment_size(kind, len(symbols), buffer_size)))
        format_segment(buffer, kind, symbols, buffer_size)
        return cls(buffer, kind)


class Batch(NamedTuple):
    """What `since` read.

    records: structured array of the kind's dtype (`layout.LAYOUTS[kind].dtype`), oldest first, a
    private copy. cursor: where to read on. lost: records from the given cursor on that were
    overwritten before they could be copied; len(records) + lost is the distance of the cursors.
    """

    records: npt.NDArray[np.void]
    cursor: int
    lost: int


Decode = Callable[[bytes | bytearray, int], Record]


class LaneReader:
    """The reading end of one instrument's ring. A cursor is the index of the next record to read;
    0 stands before the first record ever written.
    """

    __slots__ = (
        "_base",
        "_buffer",
        "_decode",
        "_dtype",
        "_generation",
        "_index_word",
        "_size",
        "_stride",
        "_words",
        "symbol",
    )

    def __init__(
        self, buffer: memoryview, words: memoryview, kind: Kind, at: int, size: int
    ) -> None:
        raw_name = bytes(buffer[at : at + layout.CURRENT_INDEX])
        self.symbol = layout.decode_symbol(raw_name)
        self._buffer = buffer
        self._words = words
        self._index_word = (at + layout.CURRENT_INDEX) // 8
        self._base = at + layout.INSTRUMENT_SIZE
        self._size = size
        self._stride = layout.LAYOUTS[kind].size
        self._dtype = layout.LAYOUTS[kind].dtype
        self._generation = buffer[at + layout.GENERATION : at + layout.INSTRUMENT_SIZE].cast("I")
        self._decode = _decoder(kind, raw_name)

    @property
    def generation(self) -> int:
        """Sequence resets of the instrument so far."""
        return int(self._generation[0])

    @property
    def cursor(self) -> int:
        """Where the next record will be: the cursor of a reader that starts from now."""
        return int(self._words[self._index_word]) + 1

    @property
    def oldest(self) -> int:
        """Cursor of the oldest record that is still readable."""
        return max(0, self.cursor - self._size + 1)

    def latest(self) -> Record | None:
        """The newest record, None while there is none. Tries again when it was overwritten during
        the copy, which takes a whole lap of the ring in well under a microsecond.
        """
        words, at, stride = self._words, self._index_word, self._stride
        while (newest := words[at]) >= 0:
            start = self._base + newest % self._size * stride
            raw = bytes(self._buffer[start : start + stride])
            if words[at] - newest < self._size - 1:
                return self._decode(raw, 0)
        return None

    def since(self, cursor: int, limit: int | None = None) -> Batch:
        """All records from `cursor` on, at most `limit` of those that are still there.

        Raises K4Error for a cursor that is ahead of the ring.
        """
        raw, torn, end, lost = self._copy(cursor, limit)
        count = len(raw) // self._stride - torn
        records: npt.NDArray[np.void] = (
            np.frombuffer(raw, self._dtype, count, torn * self._stride)
            if count
            else np.empty(0, self._dtype)
        )
        return Batch(records, end, lost)

    def read(self, cursor: int, limit: int | None = None) -> tuple[list[Record], int, int]:
        """As `since`, with record objects: (records, cursor, lost)."""
        raw, torn, end, lost = self._copy(cursor, limit)
        stride, decode = self._stride, self._decode
        return [decode(raw, at) for at in range(torn * stride, len(raw), stride)], end, lost

    def _copy(self, cursor: int, limit: int | None) -> tuple[bytearray, int, int, int]:
        """Copy, then validate: (bytes, how many records at their start are torn, cursor, lost)."""
        words, at, size, stride, base = (
            self._words,
            self._index_word,
            self._size,
            self._stride,
            self._base,
        )
        after = words[at] + 1
        if not 0 <= cursor <= after:
            raise K4Error(
                f"cursor {cursor} of {self.symbol!r} is not within 0 to {after}",
                remedy="a new object counts from 0; start from 0 or from cursor()",
            )
        first = max(cursor, after - size + 1)
        end = after if limit is None else min(after, first + limit)
        slot, count = first % size, end - first
        to_edge = min(count, size - slot)
        start = base + slot * stride
        raw = bytearray(self._buffer[start : start + to_edge * stride])
        if count > to_edge:
            raw += self._buffer[base : base + (count - to_edge) * stride]
        untouched = words[at] - size + 2
        torn = min(max(untouched - first, 0), count)
        return raw, torn, end, first - cursor + torn


class RingReader:
    """The reading end of one formatted segment (see `layout.py`).

    `buffer` is a view of bytes that starts 8-byte aligned; read-only is enough. Methods that take a
    symbol raise K4Error, with the nearest names, for one that the store does not have.
    """

    def __init__(self, buffer: memoryview, kind: Kind) -> None:
        self.kind = kind
        self._buffer = buffer
        self._words = buffer[: len(buffer) // 8 * 8].cast("q")
        _, count, self.buffer_size = layout.HEADER.unpack_from(buffer, 0)
        span = layout.instrument_size(kind, self.buffer_size)
        lanes = (
            LaneReader(buffer, self._words, kind, layout.HEADER_SIZE + i * span, self.buffer_size)
            for i in range(count)
        )
        self._lanes = {lane.symbol: lane for lane in lanes}

    @property
    def symbols(self) -> tuple[str, ...]:
        """The instruments, in the order of the segment."""
        return tuple(self._lanes)

    @property
    def update_num(self) -> int:
        """Records written since creation, all instruments."""
        return int(self._words[0])

    def lane(self, symbol: str) -> LaneReader:
        """The ring of one instrument; keep it to spare the look-up."""
        try:
            return self._lanes[symbol]
        except KeyError:
            near = difflib.get_close_matches(symbol, self._lanes, n=3) or list(self._lanes)[:3]
            raise K4Error(
                f"no instrument {symbol!r} in this store", remedy=f"nearest: {', '.join(near)}"
            ) from None

    def generation(self, symbol: str) -> int:
        """Sequence resets of the instrument so far."""
        return self.lane(symbol).generation

    def cursor(self, symbol: str) -> int:
        """The cursor that reads only what comes from now on."""
        return self.lane(symbol).cursor

    def latest(self, symbol: str) -> Record | None:
        """The newest record, None while there is none."""
        return self.lane(symbol).latest()

    def since(self, symbol: str, cursor: int, limit: int | None = None) -> Batch:
        """The records from `cursor` on, oldest first; cursor 0 begins with the oldest there is.

        limit: at most that many, to bound the copy. Raises K4Error for a cursor ahead of the ring.
        """
        return self.lane(symbol).since(cursor, limit)

    def release(self) -> None:
        """Let go of the buffer; any later read raises ValueError. Batches stay valid."""
        for lane in self._lanes.values():
            lane._generation.release()
        self._words.release()
        self._buffer.release()


def _decoder(kind: Kind, raw_name: bytes) -> Decode:
    """A function (bytes, offset) -> record. The symbol's text is made once, not per record."""
    record = layout.LAYOUTS[kind]
    unpack, cls = record.packer.unpack_from, record.cls
    name = layout.decode_symbol(raw_name)

    def flat(raw: bytes | bytearray, at: int) -> Record:
        symbol, *values = unpack(raw, at)
        return cls(name if symbol == raw_name else layout.decode_symbol(symbol), *values)

    if all(field.ctype.count == 1 for field in record.fields):
        return flat
    return record.unpack
