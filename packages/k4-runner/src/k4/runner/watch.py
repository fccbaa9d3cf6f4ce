"""What stores and counters in shared memory say, as values, as JSON objects and as live tables.

Everything is read from outside: no worker knows that it is watched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TextIO

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from k4.core.clock import Clock
from k4.core.counters import CounterRow, CountersReader, list_counters
from k4.core.errors import StoreError, StoreMissing
from k4.core.link import LinkState
from k4.core.records import Bookticker, Depth5, Record
from k4.core.shm import ShmMdReader, list_stores
from k4.core.waiting import sleep
from k4.core.window import LedgerState

ONCE_SEC = 0.5  # what `--once` measures rates over
REFRESH_SEC = 0.5

STATES = {
    "line": tuple(state.value for state in LinkState),
    "ledger": tuple(state.value for state in LedgerState),
}  # by type of row; a row's state is a position in it
NUMBERS = ("id", "channel", "session")
CHANGES = "CHANGES"  # shows only rows that have something to tell
TABLES = {
    "stream": {
        "STREAM": "published duplicates stale gaps lost resets lines_up lines",
        CHANGES: "rotations abandoned overlap_ms rotation_lost stalls unproven notices",
    },
    "line": {
        "LINE": "state messages wins missed reconnects age_s lag_us.p50 lag_us.p99",
        "REDUNDANCY": "share_ppm alone wait_us.mean wait_us.p50 wait_us.p99"
        " latency_us.p50 latency_us.p99 latency_us.error",
    },
    "ledger": {},  # stands in the stores' table
}  # by type of row, titles and columns of its live tables; a type that is not here shows all
HEADS = {
    "duplicates": "dup",
    "messages": "msgs",
    "missed": "miss",
    "reconnects": "rec",
    "lines_up": "up",
    "age_s": "age",
    "lag_us.p50": "lag µs",
    "lag_us.p99": "p99",
    "rotations": "replaced",
    "overlap_ms": "overlap ms",
    "rotation_lost": "lost",
    "share_ppm": "won",
    "wait_us.mean": "wait µs",
    "wait_us.p50": "p50",
    "wait_us.p99": "p99",
    "latency_us.p50": "old µs",
    "latency_us.p99": "p99",
    "latency_us.error": "±",
}


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol of one store now. records: written since creation; age_ns: of the last one."""

    store: str
    kind: str
    symbol: str
    records: int
    last: Record | None
    age_ns: int | None


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at everything. at: seconds of the steady clock."""

    at: float
    instruments: tuple[Instrument, ...]
    rows: tuple[CounterRow, ...]

    def shows(self, name: str) -> bool:
        """There is a store of that name, or a stream that is it or begins with it."""
        stores = any(one.store == name for one in self.instruments)
        return stores or any(is_about(row, name) for row in self.rows)


def is_about(row: CounterRow, name: str) -> bool:
    """A label of the row is `name`, or below it: `binance` and `binance.spot.json`."""
    return any(value == name or value.startswith(f"{name}.") for value in row.labels.values())


class Watcher:
    """Looks at stores and counters; keeps the stores open between two looks.

    names: stores by name and streams by name or beginning; none: all. counters: the beginning of
    the names of counters to read.
    """

    def __init__(self, clock: Clock, names: Sequence[str] = (), counters: str = "") -> None:
        self._clock = clock
        self._names = tuple(names)
        self._counters = counters
        self._readers: dict[str, ShmMdReader] = {}

    def look(self) -> Sample:
        self._refresh()
        return Sample(
            at=self._clock.monotonic(),
            instruments=tuple(self._instruments()),
            rows=tuple(row for row in self._rows() if self._wanted(row)),
        )

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _refresh(self) -> None:
        """Open what is new, drop what was replaced or removed."""
        for name in [name for name, reader in self._readers.items() if reader.closed]:
            self._readers.pop(name).close()
        for name in self._names or [store.name for store in list_stores()]:
            if name not in self._readers:
                with suppress(StoreError):  # a stream's name, or a store that is yet to come
                    self._readers[name] = ShmMdReader(name)

    def _instruments(self) -> Iterator[Instrument]:
        for name, reader in sorted(self._readers.items()):
            for symbol in reader.symbols:
                last = reader.latest(symbol)
                age_ns = None
                if last is not None:
                    age_ns = max(0, self._clock.time_ns() - last.local_time_us * 1000)
                yield Instrument(
                    store=name,
                    kind=reader.kind.label,
                    symbol=symbol,
                    records=reader.cursor(symbol),
                    last=last,
                    age_ns=age_ns,
                )

    def _rows(self) -> Iterator[CounterRow]:
        for name in list_counters(self._counters):
            with suppress(StoreError), CountersReader(name) as reader:
                if reader.alive():
                    yield from reader.rows()

    def _wanted(self, row: CounterRow) -> bool:
        """All rows where nothing is named; else those of a named stream, or under a named one."""
        return not self._names or any(is_about(row, name) for name in self._names)


def objects(before: Sample, after: Sample) -> Iterator[dict[str, Any]]:
    """The contract's objects: one `store` per symbol, and the counters' rows under their types."""
    rates = _rates(before, after)
    for one in after.instruments:
        yield {
            "type": "store",
            "name": one.store,
            "kind": one.kind,
            "symbol": one.symbol,
            "records": one.records,
            "rate": round(rates[one.store, one.symbol], 3),
            "age_ms": None if one.age_ns is None else round(one.age_ns / 1e6, 3),
        }
    for row in after.rows:
        yield {"type": row.type, **_labels(row), **_figures(row)}


def _labels(row: CounterRow) -> dict[str, str | int]:
    """Counters know text labels alone; the id of a line and a channel are numbers."""
    return {
        name: int(text) if name in NUMBERS and text.isdecimal() else text
        for name, text in row.labels.items()
    }


def _figures(row: CounterRow) -> dict[str, Any]:
    """`lag_us.p50` becomes {"lag_us": {"p50": …}}, and a state its name."""
    nested: dict[str, Any] = {}
    for field, value in row.values.items():
        outer, point, inner = field.partition(".")
        if point:
            nested.setdefault(outer, {})[inner] = value
        else:
            nested[field] = STATES[row.type][value] if field == "state" else value
    return nested


def _rates(before: Sample, after: Sample) -> dict[tuple[str, str], float]:
    """Records a second by (store, symbol); 0 where a store is new or was replaced."""
    seconds = after.at - before.at
    then = {(one.store, one.symbol): one.records for one in before.instruments}
    rates: dict[tuple[str, str], float] = {}
    for one in after.instruments:
        key = one.store, one.symbol
        new = one.records - then.get(key, one.records)
        rates[key] = max(0, new) / seconds if seconds > 0 else 0.0
    return rates


# -- commands -----------------------------------------------------------------------------------


async def once(clock: Clock, names: Sequence[str], out: TextIO, *, as_json: bool) -> None:
    """One look, with rates over `ONCE_SEC`. Raises StoreMissing for a name that nothing has."""
    watcher = Watcher(clock, names)
    try:
        before = watcher.look()
        await sleep(clock, ONCE_SEC)
        after = watcher.look()
    finally:
        watcher.close()
    for name in names:
        if not after.shows(name):
            raise StoreMissing(name, "there is no store and no stream of that name")
    if as_json:
        for value in objects(before, after):
            out.write(msgspec.json.encode(value).decode() + "\n")
    else:
        Console(file=out).print(view(before, after))


async def live(
    clock: Clock,
    watcher: Watcher,
    until: Callable[[], bool] = lambda: False,
    prefix: str = "",
) -> None:
    """Redraw until `until` says so. prefix: left out of the stores' names."""
    before = watcher.look()
    with Live(view(before, before, prefix), auto_refresh=False) as screen:
        while not until():
            await sleep(clock, REFRESH_SEC)
            after = watcher.look()
            screen.update(view(before, after, prefix), refresh=True)
            before = after


# -- tables -------------------------------------------------------------------------------------


def view(before: Sample, after: Sample, prefix: str = "") -> RenderableType:
    """Streams and lines above, stores below, which may be many."""
    return Group(*_counters(after.rows), _stores(before, after, prefix))


def _table(words: Iterable[str], figures: Iterable[str]) -> Table:
    """Compact, for terminals of 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold cyan")
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _stores(before: Sample, after: Sample, prefix: str) -> Table:
    rates, ledgers = _rates(before, after), _ledgers(after.rows)
    table = _table(("STORE", "symbol"), ("last", "records", "rate/s", "age", "lost", "resets"))
    for one in after.instruments:
        table.add_row(
            one.store.removeprefix(prefix),
            one.symbol,
            _last(one.last),
            f"{one.records:,}",
            f"{rates[one.store, one.symbol]:,.0f}",
            "-" if one.age_ns is None else age_text(one.age_ns),
            *ledgers.get((one.store, one.symbol), ("?", "?")),
        )
    return table


def _ledgers(rows: Iterable[CounterRow]) -> dict[tuple[str, str], tuple[str, str]]:
    """What no line brought, and how often ids began anew, by (store, symbol). `?` behind a number
    or alone: ids only suggest it, or tell nothing."""
    texts = {}
    for row in rows:
        if row.type == "ledger":
            figures = row.values
            state = STATES["ledger"][figures["state"]]
            lost = {"unknown": "?", "suspected": f"{figures['lost']:,}?"}.get(state)
            key = row.labels["store"], row.labels["symbol"]
            texts[key] = lost or f"{figures['lost']:,}", f"{figures['resets']:,}"
    return texts


def _counters(rows: Iterable[CounterRow]) -> Iterator[Table]:
    """Tables for every type of row."""
    by_type: dict[str, list[CounterRow]] = {}
    for row in rows:
        by_type.setdefault(row.type, []).append(row)
    for kind, alike in by_type.items():
        _, *others = alike[0].labels
        for title, names in TABLES.get(kind, {kind.upper(): " ".join(alike[0].values)}).items():
            columns = names.split()
            table = _table((title, *others), (HEADS.get(name, name) for name in columns))
            for row in alike:
                told = [row.values[name] for name in columns if name in row.values]
                if any(told) if title == CHANGES else told:
                    cells = (_cell(row, name) for name in columns)
                    table.add_row(*row.labels.values(), *cells)
            if table.row_count:
                table.add_row()
                yield table


def _cell(row: CounterRow, field: str) -> str:
    value = row.values.get(field)
    if value is None:
        return ""
    if field == "state":
        return STATES[row.type][value]
    if field == "share_ppm":
        return f"{value / 10_000:.1f} %"
    if field.startswith("latency_us.") and row.values.get("latency_us.error") == -1:
        return "?"  # no round trip was measured yet, so it may be anything
    return f"{value:,}"


def _last(record: Record | None) -> str:
    match record:
        case None:
            return "-"
        case Bookticker():
            return f"{record.bid_price:.10g} / {record.ask_price:.10g}"
        case Depth5():
            return f"{record.bid_prices[0]:.10g} / {record.ask_prices[0]:.10g}"
        case _:
            return f"{record.price:.10g} x {record.vol:.6g}"


def age_text(age_ns: int) -> str:
    """µs, ms or s, whichever reads best."""
    if age_ns < 1_000_000:
        return f"{age_ns / 1e3:.0f} µs"
    if age_ns < 1_000_000_000:
        return f"{age_ns / 1e6:.1f} ms"
    return f"{age_ns / 1e9:.1f} s"
