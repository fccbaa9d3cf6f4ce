"""What `watch` says about stores and counters that a real writer left in shared memory."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from k4.core.clock import SystemClock
from k4.core.counters import CounterRow, CountersWriter
from k4.core.enums import Kind
from k4.core.errors import StoreMissing
from k4.core.shm import ShmMdStore, remove_store
from k4.core.testing import ManualClock
from k4.core.window import LedgerState
from k4.runner.watch import Instrument, Sample, Watcher, age_text, objects, once, view

NAME = f"watch.{os.getpid()}"


@pytest.fixture
def store() -> Iterator[ShmMdStore]:
    with ShmMdStore(NAME, Kind.BOOKTICKER, ["BTCUSDT"], 64) as store:
        yield store
    remove_store(NAME)


def quote(store: ShmMdStore, id: int, local_us: int) -> None:
    store.ring.lanes[0].publish(0, local_us, 0, id, 100.25, 1.0, 100.5, 2.0, 0, 0, local_us)


def test_a_store_object_has_records_rate_and_age(store: ShmMdStore) -> None:
    clock = ManualClock()
    watcher = Watcher(clock, [NAME])
    quote(store, 1, clock.time_ns() // 1000)
    before = watcher.look()
    for id in range(2, 12):
        quote(store, id, clock.time_ns() // 1000)
    clock.advance(2.0)
    after = watcher.look()
    watcher.close()
    assert list(objects(before, after)) == [
        {
            "type": "store",
            "name": NAME,
            "kind": "bbo",
            "symbol": "BTCUSDT",
            "records": 11,
            "rate": 5.0,
            "age_ms": 2000.0,
        }
    ]


def test_an_empty_store_has_no_age(store: ShmMdStore) -> None:
    watcher = Watcher(ManualClock(), [NAME])
    sample = watcher.look()
    watcher.close()
    (row,) = objects(sample, sample)
    assert (row["records"], row["rate"], row["age_ms"]) == (0, 0.0, None)


def test_a_store_that_is_replaced_or_comes_later_is_found(store: ShmMdStore) -> None:
    later = f"{NAME}.later"
    watcher = Watcher(ManualClock(), [NAME, later])
    assert [one.store for one in watcher.look().instruments] == [NAME]
    for symbols in (["ETHUSDT"], ["ETHUSDT", "SOLUSDT"]):
        with ShmMdStore(later, Kind.BOOKTICKER, symbols, 64):
            seen = [one.symbol for one in watcher.look().instruments if one.store == later]
            assert seen == symbols
    remove_store(later)
    assert [one.store for one in watcher.look().instruments] == [NAME]
    watcher.close()


def test_counters_become_objects_with_numbers_states_and_nesting() -> None:
    line = CounterRow(
        "line",
        {"stream": "binance.spot.json", "id": "1"},
        {"state": 4, "wins": 3, "lag_us.p50": 70, "lag_us.p99": 300},
    )
    stream = CounterRow("stream", {"name": "binance.spot.json"}, {"published": 3, "lost": 0})
    source = CounterRow("udp_source", {"address": "127.0.0.1"}, {"malformed": 1})
    sample = Sample(at=0.0, instruments=(), rows=(stream, line, source))
    assert list(objects(sample, sample)) == [
        {"type": "stream", "name": "binance.spot.json", "published": 3, "lost": 0},
        {
            "type": "line",
            "stream": "binance.spot.json",
            "id": 1,
            "state": "up",
            "wins": 3,
            "lag_us": {"p50": 70, "p99": 300},
        },
        {"type": "udp_source", "address": "127.0.0.1", "malformed": 1},
    ]


def test_names_select_streams_by_name_or_beginning() -> None:
    counters = CountersWriter(NAME)
    for name in ("binance.spot.json", "binance.ubase.public", "okx.spot"):
        counters.row("stream", {"name": name}, ("published",))
    try:
        found = {}
        for names in ((), ("binance",), ("okx.spot", "bin")):
            watcher = Watcher(SystemClock(), names, NAME)
            found[names] = [row.labels["name"] for row in watcher.look().rows]
            watcher.close()
    finally:
        counters.close()
    assert found == {
        (): ["binance.spot.json", "binance.ubase.public", "okx.spot"],
        ("binance",): ["binance.spot.json", "binance.ubase.public"],
        ("okx.spot", "bin"): ["okx.spot"],
    }


def test_counters_of_a_dead_writer_are_not_shown() -> None:
    counters = CountersWriter(NAME)
    counters.row("stream", {"name": "s"}, ("published",))
    counters.close(unlink=False)
    watcher = Watcher(SystemClock(), (), NAME)
    assert watcher.look().rows == ()
    counters.path.unlink()


async def test_once_prints_json_lines(store: ShmMdStore) -> None:
    quote(store, 1, 1)
    out = io.StringIO()
    await once(SystemClock(), [NAME], out, as_json=True)
    (row,) = map(json.loads, out.getvalue().splitlines())
    assert (row["type"], row["name"], row["records"]) == ("store", NAME, 1)


async def test_once_says_when_a_name_is_nobodys(store: ShmMdStore) -> None:
    with pytest.raises(StoreMissing, match="no-such-store"):
        await once(SystemClock(), [NAME, "no-such-store"], io.StringIO(), as_json=True)


def test_the_live_view_shows_prices_rates_and_lines(store: ShmMdStore) -> None:
    watcher = Watcher(SystemClock(), [NAME])
    quote(store, 1, 1)
    sample = watcher.look()
    watcher.close()
    line = CounterRow("line", {"stream": "s", "id": "0"}, {"state": 4, "wins": 12345})
    later = Sample(at=sample.at + 1, instruments=sample.instruments, rows=(line,))
    console = Console(file=io.StringIO(), width=160)
    console.print(view(sample, later))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in (NAME, "100.25 / 100.5", "12,345", "up"):
        assert part in text


def shown(sample: Sample) -> list[list[str]]:
    """The words of every row of the live view."""
    console = Console(file=io.StringIO(), width=80)
    console.print(view(sample, sample))
    assert isinstance(console.file, io.StringIO)
    return [row.split() for row in console.file.getvalue().splitlines()]


def test_the_live_view_shows_what_redundancy_bought(store: ShmMdStore) -> None:
    delays = {"wait_us.mean": 410, "wait_us.p50": 90, "wait_us.p99": 2_300}
    age = {"latency_us.p50": 900, "latency_us.p99": 4_000}
    known = {"share_ppm": 253_000, "alone": 12, **delays, **age, "latency_us.error": 350}
    unknown = known | {"latency_us.error": -1}
    rows = (
        CounterRow("line", {"stream": "s", "id": "0"}, known),
        CounterRow("line", {"stream": "s", "id": "1"}, unknown),
    )
    text = shown(Sample(at=0.0, instruments=(), rows=rows))
    assert ["s", "0", "25.3", "%", "12", "410", "90", "2,300", "900", "4,000", "350"] in text
    assert ["s", "1", "25.3", "%", "12", "410", "90", "2,300", "?", "?", "?"] in text


def test_a_line_of_a_long_name_and_large_figures_fits_into_80_columns() -> None:
    figures = {"state": 4, "messages": 2_345_678, "wins": 1_345_678, "missed": 234}
    figures |= {"reconnects": 12, "age_s": 6_399, "lag_us.p50": 1_234, "lag_us.p99": 5_678}
    row = CounterRow("line", {"stream": "binance.ubase.public", "id": "12"}, figures)
    text = shown(Sample(at=0.0, instruments=(), rows=(row,)))
    numbers = ["2,345,678", "1,345,678", "234", "12", "6,399", "1,234", "5,678"]
    rows = [words for words in text if words[:1] == ["binance.ubase.public"]]
    assert rows == [["binance.ubase.public", "12", "up", *numbers]]


def test_the_live_view_shows_changes_where_there_were_any() -> None:
    figures = dict.fromkeys(("published", "rotations", "overlap_ms", "rotation_lost", "stalls"), 0)
    changed = figures | {"rotations": 3, "overlap_ms": 3_600, "stalls": 1}
    rows = (
        CounterRow("stream", {"name": "quiet"}, figures),
        CounterRow("stream", {"name": "changed"}, changed),
    )
    text = shown(Sample(at=0.0, instruments=(), rows=rows))
    heads = next(i for i, words in enumerate(text) if words[:1] == ["CHANGES"])
    assert [words for words in text[heads + 1 :] if words] == [
        ["changed", "3", "3,600", "0", "1"],
        ["STORE", "symbol", "last", "records", "rate/s", "age", "lost", "resets"],
    ]


def ledger(symbol: str, state: LedgerState, lost: int, resets: int) -> CounterRow:
    labels = {"store": "trades", "kind": "trade", "symbol": symbol}
    at = list(LedgerState).index(state)
    return CounterRow("ledger", labels, {"state": at, "lost": lost, "resets": resets})


def test_ledgers_are_objects_and_columns_of_their_stores() -> None:
    rows = (
        ledger("A", LedgerState.CONTIGUOUS, 0, 0),
        ledger("B", LedgerState.GAP, 1_200, 1),
        ledger("C", LedgerState.SUSPECTED, 7, 2),
        ledger("D", LedgerState.UNKNOWN, 0, 3),
    )
    stores = tuple(
        Instrument(store="trades", kind="trade", symbol=s, records=0, last=None, age_ns=None)
        for s in "ABCDE"
    )
    sample = Sample(at=0.0, instruments=stores, rows=rows)
    found = [body for body in objects(sample, sample) if body["type"] == "ledger"]
    assert [body["state"] for body in found] == ["contiguous", "gap", "suspected", "unknown"]
    assert found[1] == {
        "type": "ledger",
        "store": "trades",
        "kind": "trade",
        "symbol": "B",
        "state": "gap",
        "lost": 1_200,
        "resets": 1,
    }
    tails = {words[1]: words[-2:] for words in shown(sample) if words[:1] == ["trades"]}
    assert tails == {
        "A": ["0", "0"],
        "B": ["1,200", "1"],
        "C": ["7?", "2"],
        "D": ["?", "3"],
        "E": ["?", "?"],  # nobody keeps a ledger of it
    }


@pytest.mark.parametrize(
    ("age_ns", "text"), [(900, "1 µs"), (1_500_000, "1.5 ms"), (2_000_000_000, "2.0 s")]
)
def test_ages_read_well(age_ns: int, text: str) -> None:
    assert age_text(age_ns) == text


def test_a_store_that_was_replaced_has_no_negative_rate() -> None:
    def sample(at: float, records: int) -> Sample:
        one = Instrument(store="s", kind="bbo", symbol="x", records=records, last=None, age_ns=None)
        return Sample(at=at, instruments=(one,), rows=())

    (row,) = objects(sample(0.0, 100), sample(1.0, 3))
    assert row["rate"] == 0.0
