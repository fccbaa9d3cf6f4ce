"""One store's rings over any buffer: the writing end. No operating system in here.

Publishing is data first, then the instrument's index as one aligned 8-byte word, then `update_num`.
On x86-64 stores become visible in program order, so nothing more is needed there; `shm.py` refuses
to create a store on a processor that reorders stores.

The arbiter packs straight into a lane's next slot, so the members of `Lane` are public on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from k4.core import layout
from k4.core.enums import Kind


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
        "words",
    )

    def __init__(
        self, buffer: memoryview, words: memoryview, kind: Kind, at: int, size: int
    ) -> None:
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
        self.words[0] += 1

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
        self.lanes = tuple(
            Lane(buffer, self.words, kind, layout.HEADER_SIZE + i * span, self.buffer_size)
            for i in range(count)
        )
        self.words[0] = sum(lane.next for lane in self.lanes)

    @classmethod
    def in_memory(cls, kind: Kind, symbols: Sequence[str], buffer_size: int) -> RingWriter:
        """A private ring in ordinary memory, for callers in the same process and for tests."""
        buffer = memoryview(bytearray(layout.segment_size(kind, len(symbols), buffer_size)))
        format_segment(buffer, kind, symbols, buffer_size)
        return cls(buffer, kind)
