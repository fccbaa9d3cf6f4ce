"""The ground truth: what the market produced, what each connection was sent, which faults happened.

A series is one (venue, product, symbol, kind). Every record of it is a row, with the exact values
as integers (price and size mantissas); every frame sent names a run of rows. A frame costs one
8-byte append to its connection's log, so millions of frames fit.

A frame counts as delivered when it was written whole and its connection later answered a ping that
was sent after it, or completed the closing handshake.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from k4.core.enums import Kind

Ids = dict[int, npt.NDArray[np.uint64]]
"""Ids by generation, in the order in which the market made them."""

_COUNT_BITS, _ROW_BITS = 11, 36
_COUNT_MASK, _ROW_MASK = (1 << _COUNT_BITS) - 1, (1 << _ROW_BITS) - 1

_HEAD = (("generation", "<i8"), ("id", "<u8"))
_HEAD_OF = struct.Struct("<qQ")
_TIMES = (("event_us", "<i8"), ("trade_us", "<i8"))
_FIELDS: dict[Kind, tuple[tuple[str, str], ...]] = {
    Kind.BOOKTICKER: (
        *_HEAD,
        *_TIMES,
        ("bid_price", "<i8"),
        ("bid_vol", "<i8"),
        ("ask_price", "<i8"),
        ("ask_vol", "<i8"),
        ("bid_count", "<i8"),
        ("ask_count", "<i8"),
    ),
    Kind.TRADE: (
        *_HEAD,
        *_TIMES,
        ("first_id", "<u8"),
        ("price", "<i8"),
        ("vol", "<i8"),
        ("is_buyer_maker", "<i8"),
        ("placeholder", "<i8"),
    ),
    Kind.AGGTRADE: (
        *_HEAD,
        *_TIMES,
        ("first_id", "<u8"),
        ("last_id", "<u8"),
        ("price", "<i8"),
        ("vol", "<i8"),
        ("is_buyer_maker", "<i8"),
    ),
    Kind.DEPTH5: (
        *_HEAD,
        *_TIMES,
        ("bid_prices", "5<i8"),
        ("bid_vols", "5<i8"),
        ("ask_prices", "5<i8"),
        ("ask_vols", "5<i8"),
        ("bid_counts", "5<i8"),
        ("ask_counts", "5<i8"),
    ),
}


def _packer(kind: Kind) -> struct.Struct:
    letters = {"<i8": "q", "<u8": "Q", "5<i8": "5q"}
    return struct.Struct("<" + "".join(letters[form] for _, form in _FIELDS[kind]))


class SeriesKey(NamedTuple):
    """What a series is about. product: as in stream names (`spot`, `ubase` …). symbol: K4's
    spelling, which is the specification's.
    """

    venue: str
    product: str
    symbol: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.venue}.{self.product}.{self.symbol}.{self.kind.label}"


class Series:
    """All records that the market made for one key, in order; rows are appended, never changed.

    index: position in the ledger. price_scale, size_scale: decimals of the mantissas.
    """

    def __init__(self, key: SeriesKey, index: int, price_scale: int, size_scale: int) -> None:
        self.key = key
        self.index = index
        self.price_scale = price_scale
        self.size_scale = size_scale
        self.rows = 0
        self._data = bytearray()
        self._pack = _packer(key.kind).pack
        self.dtype = np.dtype(list(_FIELDS[key.kind]))

    def add(self, *values: int) -> int:
        """Append a record, fields in the order of its kind's table; returns its row.

        bbo: generation, id, event_us, trade_us, bid, bid size, ask, ask size, bid and ask count.
        trade: generation, id, event_us, trade_us, first id, price, size, is_buyer_maker,
        placeholder. aggtrade: generation, id, event_us, trade_us, first id, last id, price, size,
        is_buyer_maker. depth5: generation, id, event_us, trade_us, then five each of bid prices,
        bid sizes, ask prices, ask sizes, bid counts, ask counts.
        """
        self._data += self._pack(*values)
        row = self.rows
        self.rows = row + 1
        return row

    def table(self) -> npt.NDArray[np.void]:
        """A structured copy of all rows; prices and sizes are mantissas."""
        return np.frombuffer(bytes(self._data), dtype=self.dtype)

    def head(self, row: int) -> tuple[int, int]:
        """(generation, id) of a row."""
        generation, number = _HEAD_OF.unpack_from(self._data, row * self.dtype.itemsize)
        return generation, number

    def last(self) -> Mapping[str, Any] | None:
        """The newest row as a dict, None while empty."""
        if not self.rows:
            return None
        row = np.frombuffer(bytes(self._data[-self.dtype.itemsize :]), dtype=self.dtype)[0]
        return {name: row[name].tolist() for name in self.dtype.names or ()}


class FaultRecord(msgspec.Struct, frozen=True, gc=False):
    """A fault that really happened. connection: ordinal in the ledger, -1 for the whole venue.

    rule: position in the script, -1 for one injected by hand. id: the first id that the fault
    touched, -1 where it touched none.
    """

    time_ns: int
    fault: str
    venue: str
    connection: int = -1
    topic: str = ""
    series: str = ""
    generation: int = -1
    id: int = -1
    rule: int = -1
    detail: str = ""


class ConnectionLog:
    """What one connection was sent. Appended to by the server, read afterwards.

    sent: one key (series, row, count) per data frame, in the order of writing. confirmed: how many
    of them are known to have arrived. ended: how the connection ended ('' while it is open).
    """

    __slots__ = (
        "clean",
        "close_code",
        "closed_ns",
        "confirmed",
        "ended",
        "endpoint",
        "index",
        "marks",
        "opened_ns",
        "ordinal",
        "path",
        "pings",
        "pongs",
        "sent",
        "topics",
        "venue",
    )

    def __init__(self, index: int, ordinal: int, venue: str, endpoint: str, path: str) -> None:
        self.index = index
        self.ordinal = ordinal
        self.venue = venue
        self.endpoint = endpoint
        self.path = path
        self.sent = array("q")
        self.marks = array("q")  # pairs (frames sent until then, wall clock in ns), one per write
        self.confirmed = 0
        self.topics: list[tuple[str, int]] = []  # (topic, wall clock in ns) as subscribed
        self.pings = 0
        self.pongs = 0
        self.opened_ns = 0
        self.closed_ns = 0
        self.close_code = 0
        self.ended = ""
        self.clean = False

    def summary(self) -> dict[str, Any]:
        return {
            "connection": self.index,
            "venue": self.venue,
            "endpoint": self.endpoint,
            "path": self.path,
            "opened_ns": self.opened_ns,
            "closed_ns": self.closed_ns,
            "frames": len(self.sent),
            "confirmed": self.confirmed,
            "ended": self.ended,
            "code": self.close_code,
            "clean": self.clean,
            "pings": self.pings,
            "pongs": self.pongs,
            "topics": list(dict.fromkeys(name for name, _ in self.topics)),
        }


class Frames(NamedTuple):
    """One element per frame: position of its series, the last row in it, and when it was written
    (wall clock, ns)."""

    series: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    ns: npt.NDArray[np.int64]


def frame_key(series: Series, row: int, count: int = 1) -> int:
    """The 8-byte name of a frame that carries `count` rows of a series, from `row` on."""
    return series.index << (_ROW_BITS + _COUNT_BITS) | row << _COUNT_BITS | count


class Ledger:
    """All series, connections and faults of a run."""

    def __init__(self) -> None:
        self._series: dict[SeriesKey, Series] = {}
        self._by_index: list[Series] = []
        self.connections: list[ConnectionLog] = []
        self._faults: list[FaultRecord] = []
        self.refused = 0  # handshakes answered with an HTTP error

    # -- written by the venues --------------------------------------------------------------------

    def series(self, key: SeriesKey, price_scale: int = 0, size_scale: int = 0) -> Series:
        """The series of `key`, made at first use."""
        found = self._series.get(key)
        if found is None:
            found = Series(key, len(self._by_index), price_scale, size_scale)
            self._series[key] = found
            self._by_index.append(found)
        return found

    def connection(self, venue: str, endpoint: str, path: str) -> ConnectionLog:
        ordinal = sum(log.venue == venue for log in self.connections)
        log = ConnectionLog(len(self.connections), ordinal, venue, endpoint, path)
        self.connections.append(log)
        return log

    def fault(self, record: FaultRecord) -> None:
        self._faults.append(record)

    def locate(self, key: int) -> tuple[Series, int, int]:
        """(series, first row, count) that a frame's key names."""
        series = self._by_index[key >> (_ROW_BITS + _COUNT_BITS)]
        return series, key >> _COUNT_BITS & _ROW_MASK, key & _COUNT_MASK

    def first_of(self, key: int) -> tuple[int, int]:
        """(generation, id) of a frame's first row."""
        series, row, _ = self.locate(key)
        return series.head(row)

    # -- asked by tests ---------------------------------------------------------------------------

    def keys(self) -> Iterator[SeriesKey]:
        return iter(self._series)

    def table(self, key: SeriesKey) -> npt.NDArray[np.void]:
        """Every record produced, as a structured array of mantissas; see `Series.dtype`."""
        return self._series[key].table()

    def produced(self, key: SeriesKey) -> Ids:
        """The ids that the market made."""
        return _by_generation(self.table(key), None)

    def delivered(self, key: SeriesKey) -> Ids:
        """The ids that at least one connection certainly got; placeholders included."""
        return _by_generation(self.table(key), self.delivered_rows(key))

    def truth_gaps(self, key: SeriesKey, *, inner: bool = True, confirmed: bool = True) -> Ids:
        """The ids that no connection certainly got.

        inner: only those between the first and the last delivered id of their generation, which is
        what a receiver can know of. confirmed False: only what was never sent at all, so that the
        ids between the two answers are those of which nobody can tell.
        """
        got = self.delivered_rows(key, confirmed=confirmed)
        missing = ~got
        if inner:
            generation = self.table(key)["generation"]
            for value in np.unique(generation):
                rows = np.flatnonzero(generation == value)
                held = rows[got[rows]]
                first, last = (held[0], held[-1]) if len(held) else (rows[-1] + 1, rows[-1] + 1)
                missing[rows[(rows < first) | (rows > last)]] = False
        return _by_generation(self.table(key), missing)

    def delivered_rows(self, key: SeriesKey, *, confirmed: bool = True) -> npt.NDArray[np.bool_]:
        """For every row of the series: did a connection certainly get it (or: was it sent)?"""
        series = self._series[key]
        got = np.zeros(series.rows, dtype=np.bool_)
        for log in self.connections:
            sent = log.sent[: log.confirmed] if confirmed else log.sent
            rows, counts = _runs(sent, series.index)
            for extra in range(int(counts.max(initial=0))):
                got[rows[counts > extra] + extra] = True
        return got

    def sent_rows(self, key: SeriesKey, connection: int) -> npt.NDArray[np.int64]:
        """The rows of a series that one connection was sent, in the order of sending."""
        rows, counts = _runs(self.connections[connection].sent, self._series[key].index)
        starts = np.repeat(rows - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
        return starts + np.arange(int(counts.sum()), dtype=np.int64)

    def deliveries(self, key: SeriesKey, row: int) -> list[tuple[ConnectionLog, int]]:
        """The connections that certainly got one row, and when it was written to them: wall clock
        in ns."""
        series, found = self._series[key], []
        for log in self.connections:
            sent = np.array(log.sent[: log.confirmed], dtype=np.int64)
            first = sent >> _COUNT_BITS & _ROW_MASK
            brings = (sent >> (_ROW_BITS + _COUNT_BITS) == series.index) & (first <= row)
            brings &= row < first + (sent & _COUNT_MASK)
            marks = np.array(log.marks, dtype=np.int64).reshape(-1, 2)
            at = np.searchsorted(marks[:, 0], np.flatnonzero(brings), side="right")
            found += [(log, ns) for ns in marks[at, 1].tolist()]
        return found

    def sent_ns(self, key: SeriesKey, row: int) -> list[int]:
        """When one row was written to connections that certainly got it: wall clock in ns."""
        return [ns for _, ns in self.deliveries(key, row)]

    def frames(self, connection: int) -> Frames:
        """Every data frame that one connection was sent, in the order of writing."""
        log = self.connections[connection]
        sent = np.array(log.sent, dtype=np.int64)
        marks = np.array(log.marks, dtype=np.int64).reshape(-1, 2)
        at = np.searchsorted(marks[:, 0], np.arange(len(sent)), side="right")
        last = (sent >> _COUNT_BITS & _ROW_MASK) + (sent & _COUNT_MASK) - 1
        return Frames(sent >> (_ROW_BITS + _COUNT_BITS), last, marks[at, 1])

    def faults(self, fault: str = "") -> list[FaultRecord]:
        """The faults that happened, in order; only those of one name when it is given."""
        return [record for record in self._faults if fault in ("", record.fault)]

    def summary(self) -> dict[str, Any]:
        """Totals as one JSON-able object."""
        names = [record.fault for record in self._faults]
        return {
            "produced": {str(key): series.rows for key, series in self._series.items()},
            "frames": sum(len(log.sent) for log in self.connections),
            "confirmed": sum(log.confirmed for log in self.connections),
            "connections": len(self.connections),
            "refused": self.refused,
            "faults": {name: names.count(name) for name in sorted(set(names))},
        }

    def dump(self, folder: Path) -> None:
        """Write `ledger.json` (connections, faults, series) and `ledger.npz` (every array).

        In the archive: `series/N` the table of series N, `delivered/N` which of its rows arrived,
        `sent/N` and `marks/N` the log of connection N.
        """
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for key, series in self._series.items():
            arrays[f"series/{series.index}"] = series.table()
            arrays[f"delivered/{series.index}"] = self.delivered_rows(key)
        for log in self.connections:
            arrays[f"sent/{log.index}"] = np.array(log.sent, dtype=np.int64)
            arrays[f"marks/{log.index}"] = np.array(log.marks, dtype=np.int64).reshape(-1, 2)
        np.savez_compressed(folder / "ledger.npz", **arrays)  # type: ignore[arg-type]
        head = {
            **self.summary(),
            "series": [self._describe(series) for series in self._by_index],
            "logs": [log.summary() for log in self.connections],
            "fault_records": msgspec.to_builtins(self._faults),
        }
        (folder / "ledger.json").write_text(json.dumps(head))

    def _describe(self, series: Series) -> dict[str, Any]:
        venue, product, symbol, kind = series.key
        scales = {"price_scale": series.price_scale, "size_scale": series.size_scale}
        key = {"venue": venue, "product": product, "symbol": symbol, "kind": kind.label}
        return {"series": series.index, **key, **scales, "rows": series.rows}


def _runs(sent: array[int], series: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    keys = np.array(sent, dtype=np.int64)
    keys = keys[keys >> (_ROW_BITS + _COUNT_BITS) == series]
    return keys >> _COUNT_BITS & _ROW_MASK, keys & _COUNT_MASK


def updates(sent: npt.NDArray[np.int64]) -> int:
    """How many updates the frames of one connection carried (its `sent` of a dump)."""
    return int((sent & _COUNT_MASK).sum())


def _by_generation(table: npt.NDArray[np.void], mask: npt.NDArray[np.bool_] | None) -> Ids:
    chosen = table if mask is None else table[mask]
    return {
        int(value): chosen["id"][chosen["generation"] == value].copy()
        for value in np.unique(table["generation"])
    }
