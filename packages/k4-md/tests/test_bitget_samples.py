"""Recorded Bitget frames against an independent reading: json, Decimal, and the documented names.

Nothing here is shared with the decoders. Book frames of 2024 carry no `seq`; they are read as they
are, which yields nothing, and once more with the `seq` that frames have had since 2025.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.records import Bookticker, Depth5, Record, Trade
from k4.md.exchanges.bitget import EXCHANGE
from k4.md.feed import Ack, Feed
from k4.md.sinks import CollectingSink

SAMPLES = Path(__file__).parent / "vectors" / "samples"
PRODUCTS = {
    "SPOT": ("spot", 0),
    "USDT-FUTURES": ("futures", 5),
    "USDC-FUTURES": ("usdc_futures", 6),
    "COIN-FUTURES": ("coin_futures", 3),
}
SEQ = 1483653649791156273


def lines() -> list[tuple[str, str]]:
    """(file, frame) of every recorded line."""
    return [
        (file.name, line)
        for file in sorted(SAMPLES.glob("bitget-*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def feed_of(inst_type: str, symbol: str) -> Feed:
    name, _ = PRODUCTS[inst_type]
    kinds = EXCHANGE.product(name).kinds
    config = ConnectionConfig(
        exchange="bitget",
        products=(ProductConfig(name=name, symbols=(symbol,), kinds=kinds),),
    )
    (feed,) = EXCHANGE.feeds(config, {(name, symbol): symbol})
    return feed


def told(feed: Feed, frame: dict[str, Any] | str) -> CollectingSink:
    sink = CollectingSink.of(feed)
    text = frame if isinstance(frame, str) else json.dumps(frame, separators=(",", ":"))
    feed.session().receive(text.encode(), 0, sink)
    return sink


def number(text: str) -> float:
    return float(Decimal(text))


def best(side: list[list[str]]) -> tuple[float, float]:
    return (number(side[0][0]), number(side[0][1])) if side else (0.0, 0.0)


def five(side: list[list[str]], at: int) -> tuple[float, ...]:
    return (*[number(level[at]) for level in side[:5]], *[0.0] * (5 - len(side[:5])))


def read(frame: dict[str, Any]) -> list[Record]:
    """The records of a live push, by the field lists of the documentation."""
    arg, event = frame["arg"], frame["ts"] * 1000
    symbol, kind = arg["instId"], PRODUCTS[arg["instType"]][1]
    if arg["channel"] == "trade":
        return [
            Trade(
                symbol,
                kind,
                event,
                int(t["ts"]) * 1000,
                int(t["tradeId"]),
                number(t["price"]),
                number(t["size"]),
                int(t["side"] == "sell"),
                0,
            )
            for t in sorted(frame["data"], key=lambda t: int(t["tradeId"]))
        ]
    (book,) = frame["data"]
    ids = (symbol, kind, event, int(book["ts"]) * 1000, book["seq"])
    bids, asks = book["bids"], book["asks"]
    if arg["channel"] == "books1":
        return [Bookticker(*ids, *best(bids), *best(asks), 0, 0, 0)]
    counts = (min(len(bids), 5), min(len(asks), 5))
    sides = (five(bids, 0), five(bids, 1), five(asks, 0), five(asks, 1))
    return [Depth5(*ids, *counts, 0.0, *sides, (0,) * 5, (0,) * 5, 0)]


def test_every_sample_is_there() -> None:
    assert len({file for file, _ in lines()}) == 15
    assert len(lines()) == 30


@pytest.mark.parametrize(("file", "line"), lines())
def test_a_recorded_frame_is_read_field_by_field(file: str, line: str) -> None:
    frame = json.loads(line)
    arg = frame["arg"]
    if "topic" in arg:
        sink = told(feed_of(arg["instType"].upper(), arg["symbol"]), line)
        assert (sink.drops, sink.records, sink.seeded) == (["v3"], [], [])
        return
    feed = feed_of(arg["instType"], arg["instId"])
    sink = told(feed, line)
    if "event" in frame:
        topic = f"{arg['instType']}:{arg['channel']}:{arg['instId']}"
        assert sink.controls == [Ack(topic=topic)]
    elif arg["channel"] == "trade" and frame["action"] == "snapshot":
        ids = sorted(int(item["tradeId"]) for item in frame["data"])
        assert sink.seeded == [(arg["instId"], id) for id in ids]
        assert not sink.records
    elif arg["channel"] == "trade":
        assert sink.records == read(frame)
    else:
        assert (sink.drops, sink.records) == (
            ["id" if arg["channel"] in ("books1", "books5") else "topic"],
            [],
        )


def test_a_recorded_book_is_read_field_by_field_once_it_has_a_seq() -> None:
    """Books of any depth stand for the fixed depth that holds as many levels."""
    read_books = 0
    for _, line in lines():
        frame = json.loads(line)
        if "event" in frame or not frame["arg"].get("channel", "").startswith("books"):
            continue
        frame["action"] = "snapshot"
        frame["data"][0]["seq"] = SEQ
        for channel in ("books1", "books5"):
            frame["arg"]["channel"] = channel
            sink = told(feed_of(frame["arg"]["instType"], frame["arg"]["instId"]), frame)
            assert sink.records == read(frame)
            read_books += 1
    assert read_books == 18


@pytest.mark.parametrize("quoted", [True, False])
def test_seq_and_times_are_numbers_or_texts(quoted: bool) -> None:
    """The wire has numbers; the first K4's tests had texts."""
    book = {"asks": [["2", "1"]], "bids": [["1", "1"]], "ts": "5", "seq": SEQ}
    arg = {"instType": "SPOT", "channel": "books1", "instId": "BTCUSDT"}
    frame: dict[str, Any] = {"action": "snapshot", "arg": arg, "data": [book], "ts": 6}
    expected = read(frame)
    if quoted:
        book["seq"], frame["ts"] = str(SEQ), "6"
    assert told(feed_of("SPOT", "BTCUSDT"), frame).records == expected
