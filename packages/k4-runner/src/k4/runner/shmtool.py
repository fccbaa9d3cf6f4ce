"""`k4-runner shm`: list and dump stores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TextIO

import msgspec

from k4.core.clock import Clock, SystemClock
from k4.core.layout import STATE_CLOSED
from k4.core.records import Record
from k4.core.shm import ShmMdReader, StoreInfo, list_stores

CHUNK = 1024  # records copied at a time while dumping
COLUMNS = ("NAME", "KIND", "SYMBOLS", "SLOTS", "MIB", "RECORDS", "WRITER", "BEAT", "LINES")


def show_list(out: TextIO, *, as_json: bool = False, clock: Clock | None = None) -> None:
    """One row, or one JSON object, for every store that this user can read."""
    stores = list_stores()
    if as_json:
        for store in stores:
            out.write(_line({**msgspec.to_builtins(store), "kind": store.kind.label}))
        return
    now_ns = (clock or SystemClock()).time_ns()
    table = [COLUMNS, *(_columns(store, now_ns) for store in stores)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.write("  ".join(cells).rstrip() + "\n")


def dump(
    name: str,
    out: TextIO,
    err: TextIO,
    *,
    symbol: str = "",
    last: int | None = None,
    as_json: bool = False,
) -> None:
    """Write the readable records of a store, oldest first, symbol by symbol.

    symbol: this one only. last: at most so many of each. What a live writer overwrites meanwhile is
    told on `err`. Raises StoreMissing, StoreForeign, and K4Error for a symbol that is not there.
    """
    with ShmMdReader(name) as reader:
        for one in (symbol,) if symbol else reader.symbols:
            lost = 0
            for records, missed in _chunks(reader, one, last):
                lost += missed
                out.writelines(_text(record, as_json) for record in records)
            if lost:
                err.write(f"{name} {one}: {lost} records were overwritten while they were read\n")


def _chunks(
    reader: ShmMdReader, symbol: str, last: int | None
) -> Iterator[tuple[Sequence[Record], int]]:
    lane = reader.lane(symbol)
    end = lane.cursor
    cursor = lane.oldest if last is None else max(lane.oldest, end - last)
    while cursor < end:
        records, cursor, lost = lane.read(cursor, min(CHUNK, end - cursor))
        yield records, lost


def _text(record: Record, as_json: bool) -> str:
    values = msgspec.to_builtins(record)
    if as_json:
        return _line(values)
    return " ".join(f"{name}={value}" for name, value in values.items()) + "\n"


def _line(value: object) -> str:
    return msgspec.json.encode(value).decode() + "\n"


def _columns(store: StoreInfo, now_ns: int) -> tuple[str, ...]:
    writer = str(store.writer_pid) if store.writer_alive else "-"
    if store.state == STATE_CLOSED:
        writer = "closed"
    age = max(0, now_ns - store.heartbeat_ns) / 1e9
    symbols = store.symbols[0] + (f" +{len(store.symbols) - 1}" if len(store.symbols) > 1 else "")
    return (
        store.name,
        store.kind.label,
        symbols,
        str(store.buffer_size),
        f"{store.size / (1 << 20):.1f}",
        str(store.update_num),
        writer,
        f"{age:.1f}s",
        f"{store.lines_up}/{store.lines_configured}",
    )
