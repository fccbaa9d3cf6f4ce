"""`shm list` and `shm dump` against real stores."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from k4.core.enums import Kind
from k4.core.errors import K4Error, StoreBusy, StoreMissing
from k4.core.records import RECORDS
from k4.core.shm import ShmMdReader, ShmMdStore, remove_store
from k4.runner.shmtool import dump, show_list

NAME = f"shmtool.{os.getpid()}"


@pytest.fixture
def store() -> Iterator[ShmMdStore]:
    with ShmMdStore(NAME, Kind.TRADE, ["BTCUSDT", "ETHUSDT"], 8) as store:
        yield store
    remove_store(NAME)


def trade(store: ShmMdStore, lane: int, id: int) -> None:
    store.ring.lanes[lane].publish(0, id * 10, id * 10 + 1, id, 100.5 + id, 0.25, 1, id * 10 + 2)


def dumped(**options: Any) -> list[dict[str, Any]]:
    out, err = io.StringIO(), io.StringIO()
    dump(NAME, out, err, as_json=True, **options)
    assert not err.getvalue()
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_dump_has_the_contracts_field_names(store: ShmMdStore) -> None:
    trade(store, 1, 5)
    assert dumped() == [
        {
            "symbol": "ETHUSDT",
            "product_type": 0,
            "event_timestamp_us": 50,
            "trade_timestamp_us": 51,
            "trade_id": 5,
            "price": 105.5,
            "vol": 0.25,
            "is_buyer_maker": 1,
            "local_time_us": 52,
        }
    ]


def test_arrays_of_a_book_are_arrays() -> None:
    name = f"{NAME}.depth"
    five = [1.0, 2.0, 3.0, 4.0, 5.0]
    with ShmMdStore(name, Kind.DEPTH5, ["BTCUSDT"], 4) as store:
        store.ring.lanes[0].publish(
            0, 1, 2, 3, 5, 5, 0.0, *five, *five, *five, *five, *[1] * 5, *[2] * 5, 9
        )
        out = io.StringIO()
        dump(name, out, io.StringIO(), as_json=True)
    remove_store(name)
    book = json.loads(out.getvalue())
    assert list(book) == [f.name for f in msgspec.structs.fields(RECORDS[Kind.DEPTH5])]
    assert book["bid_prices"] == five
    assert book["ask_order_counts"] == [2] * 5


def test_symbol_and_last_narrow_it(store: ShmMdStore) -> None:
    for id in range(1, 5):
        trade(store, 0, id)
        trade(store, 1, id + 100)
    assert [row["trade_id"] for row in dumped()] == [1, 2, 3, 4, 101, 102, 103, 104]
    assert [row["trade_id"] for row in dumped(symbol="ETHUSDT", last=2)] == [103, 104]
    assert dumped(last=0) == []


def test_a_lapped_ring_gives_what_is_readable(store: ShmMdStore) -> None:
    for id in range(1, 21):
        trade(store, 0, id)
    assert [row["trade_id"] for row in dumped()] == list(range(14, 21))


def test_text_is_one_line_per_record(store: ShmMdStore) -> None:
    trade(store, 0, 7)
    out = io.StringIO()
    dump(NAME, out, io.StringIO())
    assert out.getvalue().startswith("symbol=BTCUSDT product_type=0 ")
    assert out.getvalue().count("\n") == 1


def test_unknown_names_are_errors(store: ShmMdStore) -> None:
    with pytest.raises(StoreMissing):
        dump(f"{NAME}.none", io.StringIO(), io.StringIO())
    with pytest.raises(K4Error, match="BTCUSD"):
        dump(NAME, io.StringIO(), io.StringIO(), symbol="BTCUSD")


def test_the_list_shows_a_live_writer_that_rm_refuses(store: ShmMdStore) -> None:
    out = io.StringIO()
    show_list(out, as_json=True)
    (row,) = (r for r in map(json.loads, out.getvalue().splitlines()) if r["name"] == NAME)
    assert (row["kind"], row["symbols"]) == ("trade", ["BTCUSDT", "ETHUSDT"])
    assert (row["writer_pid"], row["writer_alive"]) == (os.getpid(), True)
    table = io.StringIO()
    show_list(table)
    (line,) = (line for line in table.getvalue().splitlines() if line.startswith(NAME))
    assert line.split()[1:5] == ["trade", "BTCUSDT", "+1", "8"]
    with pytest.raises(StoreBusy, match=str(os.getpid())):
        remove_store(NAME)
    with ShmMdReader(NAME) as reader:
        assert not reader.closed
