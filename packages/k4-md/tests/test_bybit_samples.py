"""Recorded Bybit frames against an independent reading: json, Decimal, and the documented names.

Nothing here is shared with the decoders: a frame is parsed with the standard library, every figure
goes through Decimal, the trade id's hash is computed by the published algorithm, and each field of
the record is compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.records import Bookticker, Depth5, Record, Trade
from k4.md.exchanges.bybit import EXCHANGE
from k4.md.feed import Ack, Broken, Control, Feed, Refused
from k4.md.sinks import CollectingSink

SAMPLES = Path(__file__).parent / "vectors" / "samples"
PRODUCT_TYPES = {"spot": 0, "linear": 1, "inverse": 3}
MASK = 2**64 - 1
P1, P2, P3, P4, P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def rotated(x: int, bits: int) -> int:
    x &= MASK
    return (x << bits | x >> (64 - bits)) & MASK


def scrambled(acc: int, lane: int) -> int:
    return rotated(acc + lane * P2, 31) * P1 & MASK


def words(data: bytes, size: int) -> Iterator[int]:
    for at in range(0, len(data) // size * size, size):
        yield int.from_bytes(data[at : at + size], "little")


def xxh64(data: bytes) -> int:
    """xxHash64 with seed 0, after the published description of the algorithm."""
    stripes = len(data) // 32 * 32
    if stripes:
        lanes = [P1 + P2, P2, 0, -P1]
        for i, word in enumerate(words(data[:stripes], 8)):
            lanes[i % 4] = scrambled(lanes[i % 4] & MASK, word)
        shifts = (1, 7, 12, 18)
        h = sum(rotated(v, r) for v, r in zip(lanes, shifts, strict=True)) & MASK
        for v in lanes:
            h = ((h ^ scrambled(0, v)) * P1 + P4) & MASK
    else:
        h = P5
    h = (h + len(data)) & MASK
    rest = data[stripes:]
    eights = len(rest) // 8 * 8
    for word in words(rest[:eights], 8):
        h = (rotated(h ^ scrambled(0, word), 27) * P1 + P4) & MASK
    rest = rest[eights:]
    if len(rest) >= 4:
        h = (rotated(h ^ int.from_bytes(rest[:4], "little") * P1 & MASK, 23) * P2 + P3) & MASK
        rest = rest[4:]
    for byte in rest:
        h = rotated(h ^ byte * P5 & MASK, 11) * P1 & MASK
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


def test_the_hash_of_this_test_is_the_published_one() -> None:
    assert xxh64(b"") == 0xEF46DB3751D8E999
    assert xxh64(b"a") == 0xD24EC4F1A98C6E5B
    assert xxh64(b"abc") == 0x44BC2CF5AD770999
    assert xxh64(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1


def lines() -> list[tuple[str, int, str]]:
    """(file, line number, frame) of every recorded line."""
    return [
        (file.name, number, line)
        for file in sorted(SAMPLES.glob("bybit-*.jsonl"))
        for number, line in enumerate(file.read_text().splitlines())
    ]


def product_of(file: str, symbol: str) -> str:
    if "-spot-" in file:
        return "spot"
    return "inverse" if symbol.endswith("USD") else "linear"


def feed_of(product: str, symbol: str) -> Feed:
    config = ConnectionConfig(
        exchange="bybit",
        products=(
            ProductConfig(name=product, symbols=(symbol,), kinds=EXCHANGE.products[0].kinds),
        ),
    )
    (feed,) = EXCHANGE.feeds(config, {})
    return feed


def number(text: str) -> float:
    return float(Decimal(text))


def best(side: list[list[str]]) -> tuple[float, float]:
    return (number(side[0][0]), number(side[0][1])) if side else (0.0, 0.0)


def five(side: list[list[str]], at: int) -> tuple[float, ...]:
    return (*[number(level[at]) for level in side[:5]], *[0.0] * (5 - len(side[:5])))


def changed(side: list[list[str]], changes: list[list[str]], *, bids: bool) -> list[list[str]]:
    """A side after a delta, by the rules of the documentation, on decimal texts."""
    levels = {Decimal(price): [price, size] for price, size in side}
    for price, size in changes:
        levels.pop(Decimal(price), None)
        if Decimal(size):
            levels[Decimal(price)] = [price, size]
    return [levels[price] for price in sorted(levels, reverse=bids)]


def read(product: str, frame: dict[str, Any], base: dict[str, Any] | None) -> list[Record]:
    """The records of a push, by the field lists of the documentation."""
    kind = PRODUCT_TYPES[product]
    event = frame["ts"] * 1000
    if frame["topic"].startswith("publicTrade."):
        return [
            Trade(
                t["s"],
                kind,
                event,
                t["T"] * 1000,
                int(t["i"]) if product == "spot" else xxh64(t["i"].encode()),
                number(t["p"]),
                number(t["v"]),
                int(t["S"] == "Sell"),
                0,
            )
            for t in frame["data"]
        ]
    data, trade = frame["data"], frame.get("cts", frame["ts"]) * 1000
    bids, asks = data["b"], data["a"]
    if frame["type"] == "delta":
        assert base is not None
        bids = changed(base["b"], bids, bids=True)
        asks = changed(base["a"], asks, bids=False)
    ids = (data["s"], kind, event, trade, data["u"])
    if frame["topic"].startswith("orderbook.1."):
        return [Bookticker(*ids, *best(bids), *best(asks), 0, 0, 0)]
    sides = (five(bids, 0), five(bids, 1), five(asks, 0), five(asks, 1))
    return [Depth5(*ids, min(len(bids), 5), min(len(asks), 5), 0.0, *sides, (0,) * 5, (0,) * 5, 0)]


def test_every_sample_is_there() -> None:
    assert len({file for file, _, _ in lines()}) == 10
    assert len(lines()) == 26


@pytest.mark.parametrize(("file", "index", "line"), lines())
def test_a_recorded_frame_is_read_field_by_field(file: str, index: int, line: str) -> None:
    frame = json.loads(line)
    symbol = frame.get("topic", ".BTCUSDT").rpartition(".")[2]
    product = product_of(file, symbol)
    feed = feed_of(product, symbol)
    session, sink = feed.session(), CollectingSink.of(feed)
    base: dict[str, Any] | None = None
    if frame.get("type") == "delta":
        # Deltas stand on the file's first frame, the snapshot before them.
        snapshot = (SAMPLES / file).read_text().splitlines()[0]
        base = json.loads(snapshot)["data"]
        session.receive(snapshot.encode(), 0, sink)
        if frame["data"]["u"] < base["u"]:  # of another day: only a snapshot's place is needed
            base["u"] = frame["data"]["u"] - 1
            session = feed.session()
            other = {**json.loads(snapshot), "data": base}
            session.receive(json.dumps(other).encode(), 0, sink)
        sink.records.clear()
    session.receive(line.encode(), 0, sink)
    if "success" in frame:
        answer: Control = Ack(request=frame.get("req_id", ""))
        if not frame["success"]:
            answer = Refused("", frame["ret_msg"])
        assert (sink.controls, sink.records) == ([answer], [])
    elif frame["topic"].startswith("trade.linear."):
        assert (sink.drops, sink.records) == (["topic"], [])
    else:
        assert sink.records == read(product, frame, base)
        assert not sink.drops


def test_a_delta_without_its_snapshot_is_never_published() -> None:
    for file, _, line in lines():
        frame = json.loads(line)
        if frame.get("type") == "delta":
            symbol = frame["topic"].rpartition(".")[2]
            feed = feed_of(product_of(file, symbol), symbol)
            sink = CollectingSink.of(feed)
            feed.session().receive(line.encode(), 0, sink)
            assert not sink.records
            assert [type(event) for event in sink.controls] == [Broken]


def test_times_beyond_what_a_record_holds_are_refused() -> None:
    feed = feed_of("spot", "BTCUSDT")
    for ts, fits in (((2**63 - 1) // 1000, True), ((2**63 - 1) // 1000 + 1, False)):
        sink = CollectingSink.of(feed)
        frame = {
            "topic": "orderbook.1.BTCUSDT",
            "ts": ts,
            "type": "snapshot",
            "data": {"s": "BTCUSDT", "b": [], "a": [], "u": 2},
        }
        feed.session().receive(json.dumps(frame).encode(), 0, sink)
        assert len(sink.records) == fits
        assert all(isinstance(r, Bookticker) and r.event_timestamp_us < 2**63 for r in sink.records)
        assert sink.drops == ([] if fits else ["malformed"])


def test_a_trade_is_told_by_its_uuid_and_published_under_its_hash() -> None:
    feed = feed_of("linear", "BTCUSDT")
    (channel,) = [c for c in feed.channels if c.kind is Kind.TRADE]
    sink = CollectingSink.of(feed)
    uuid = "e799c7b7-1ccc-53d9-b84a-fb7a460397bc"
    item = {"T": 1, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "2", "i": uuid}
    push = {"topic": channel.topic, "type": "snapshot", "ts": 1, "data": [item]}
    feed.session().receive(json.dumps(push).encode(), 0, sink)
    (record,) = sink.records
    assert isinstance(record, Trade)
    assert record.trade_id == xxh64(uuid.encode())
    assert sink.keys == [uuid]
