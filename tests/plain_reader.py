"""A reader that knows only the published layout of a store: struct and mmap, nothing of K4."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

FORMATS = {
    0: struct.Struct("<32sB7xQQQddddiiQ"),
    1: struct.Struct("<32sB7xQQQddB7xQ"),
    2: struct.Struct("<32sB7xQQQQQddiB3xQ"),
    3: struct.Struct("<32sB7xQQQIId5d5d5d5d5i5iQ"),
}


class Instrument(NamedTuple):
    symbol: str
    current_index: int
    generation: int
    records: list[tuple[object, ...]]


def update_num(name: str) -> int:
    """Records written to the store, 0 while it does not exist."""
    try:
        with Path("/dev/shm", name).open("rb") as file:
            return int(struct.unpack("<Q", file.read(8))[0])
    except FileNotFoundError:
        return 0


def read_store(name: str) -> list[Instrument]:
    """Every instrument with the records that its ring holds, oldest first."""
    with Path("/dev/shm", name).open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    magic, kind, size = struct.unpack_from("<8sII", data, len(data) - 64)
    assert magic == b"K4SHM\0\0\1"
    layout = FORMATS[kind]
    assert layout.size == size
    _, count, slots = struct.unpack_from("<QII", data, 0)
    found = []
    for i in range(count):
        at = 16 + i * (48 + slots * size)
        symbol, index, length, generation = struct.unpack_from("<32sqII", data, at)
        assert length == slots
        first = max(0, index + 1 - slots)
        records = [
            layout.unpack_from(data, at + 48 + j % slots * size) for j in range(first, index + 1)
        ]
        found.append(Instrument(symbol.rstrip(b"\0").decode(), index, generation, records))
    data.close()
    return found
