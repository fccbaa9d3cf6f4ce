"""The cheap look at a JSON frame decides speed only: every form of a frame gives one record."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.records import AggTrade, Bookticker, Depth5, Record, Trade
from k4.md.exchanges.binance import EXCHANGE
from k4.md.feed import Feed
from k4.md.sinks import CollectingSink

QUOTE = {"u": 7, "s": "BTCUSDT", "b": "1.5", "B": "2", "a": "1.6", "A": "3"}
TRADE = {"e": "trade", "E": 5, "s": "BTCUSDT", "t": 9, "p": "1.5", "q": "2", "T": 4, "m": True}
AGG = {
    "e": "aggTrade", "E": 5, "s": "BTCUSDT", "a": 3, "p": "1.5", "q": "2", "f": 8, "l": 9, "T": 4,
    "m": False,
}  # fmt: skip
BOOK = {"lastUpdateId": 7, "bids": [["1.5", "2"]], "asks": []}
PAYLOADS: dict[str, dict[str, object]] = {
    "bookTicker": QUOTE,
    "trade": TRADE,
    "aggTrade": AGG,
    "depth5@100ms": BOOK,
}
RECORDS: dict[str, Record] = {
    "bookTicker": Bookticker("BTCUSDT", 0, 0, 0, 7, 1.5, 2.0, 1.6, 3.0, 0, 0, 0),
    "trade": Trade("BTCUSDT", 0, 5000, 4000, 9, 1.5, 2.0, 1, 0),
    "aggTrade": AggTrade("BTCUSDT", 0, 5000, 4000, 8, 9, 3, 1.5, 2.0, 2, 0, 0),
    "depth5@100ms": Depth5(
        "BTCUSDT", 0, 0, 0, 7, 1, 0, 0.0, (1.5, 0, 0, 0, 0), (2.0, 0, 0, 0, 0),
        (0.0,) * 5, (0.0,) * 5, (0,) * 5, (0,) * 5, 0,
    ),
}  # fmt: skip
ALONE = {
    "bookTicker": Kind.BOOKTICKER,
    "trade": Kind.TRADE,
    "aggTrade": Kind.AGGTRADE,
    "depth5@100ms": Kind.DEPTH5,
}


def feed(
    kinds: Sequence[Kind] = tuple(Kind),
    *,
    symbols: Sequence[str] = ("BTCUSDT", "ETHUSDT"),
    url: str = "",
) -> Feed:
    config = ConnectionConfig(
        exchange="binance",
        endpoints={"spot": (url,)} if url else {},
        products=(ProductConfig(name="spot", symbols=tuple(symbols), kinds=tuple(kinds)),),
    )
    (only,) = EXCHANGE.feeds(config, {})
    return only


def told(of: Feed, frame: str) -> CollectingSink:
    sink = CollectingSink.of(of)
    of.session().receive(frame.encode(), 0, sink)
    return sink


@pytest.mark.parametrize("stream", PAYLOADS)
@pytest.mark.parametrize("url", ["ws://127.0.0.1/stream", "ws://127.0.0.1/ws"])
@pytest.mark.parametrize("mixed", [True, False])
def test_any_key_order_and_any_spacing_give_the_same_record(
    stream: str, url: str, mixed: bool
) -> None:
    of = feed(tuple(Kind) if mixed else (ALONE[stream],), url=url)
    items = list(PAYLOADS[stream].items())
    for turn, (separators, ahead) in enumerate(
        itertools.product([(",", ":"), (", ", ": ")], [True, False])
    ):
        for shift in range(len(items)):
            data = dict(items[shift:] + items[:shift] + [("new", {"nested": [turn]})])
            wrapper = {"stream": f"btcusdt@{stream}", "data": data, "z": None}
            frame = wrapper if ahead else dict(reversed(wrapper.items()))
            sink = told(of, json.dumps(frame, separators=separators))
            assert sink.records == [RECORDS[stream]]
            assert not sink.drops


@pytest.mark.parametrize("stream", ["bookTicker", "trade", "aggTrade"])
@pytest.mark.parametrize("url", ["ws://127.0.0.1/stream", "ws://127.0.0.1/ws"])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_bare_payload_needs_no_wrapper(stream: str, url: str, mixed: bool) -> None:
    kinds = (Kind.BOOKTICKER, Kind.TRADE, Kind.AGGTRADE) if mixed else (ALONE[stream],)
    items = list(PAYLOADS[stream].items())
    for shift in range(len(items)):
        frame = json.dumps(dict(items[shift:] + items[:shift]), separators=(",", ":"))
        assert told(feed(kinds, url=url), frame).records == [RECORDS[stream]]


def test_a_stream_that_carries_another_payload_yields_nothing() -> None:
    for stream, other in itertools.permutations(PAYLOADS, 2):
        wrapper = {"stream": f"btcusdt@{stream}", "data": PAYLOADS[other]}
        for frame in (wrapper, dict(reversed(wrapper.items()))):
            sink = told(feed(), json.dumps(frame, separators=(",", ":")))
            assert not sink.records
            assert sink.drops == ["malformed"]


symbols = st.lists(
    st.text("ABCXYZ0123456789_币Ü", min_size=1, max_size=10), min_size=1, max_size=6, unique=True
).filter(lambda found: len({s.lower() for s in found}) == len(found))


@settings(max_examples=200, deadline=None)
@given(symbols=symbols)
def test_every_topic_finds_its_slot_whatever_the_lengths(symbols: list[str]) -> None:
    of = feed(symbols=symbols)
    for channel in of.channels:
        stream = channel.topic.partition("@")[2]
        data = PAYLOADS[stream] | ({} if stream.startswith("depth") else {"s": channel.symbol})
        text = json.dumps(
            {"stream": channel.topic, "data": data}, separators=(",", ":"), ensure_ascii=False
        )
        (record,) = told(of, text).records
        assert record.symbol == channel.symbol
        assert type(record) is type(RECORDS[stream])


def test_a_book_longer_than_five_levels_is_cut_and_a_level_of_three_figures_is_refused() -> None:
    levels = [[str(9 - i), "1"] for i in range(8)]
    frame = {"stream": "btcusdt@depth5", "data": {"lastUpdateId": 1, "bids": levels, "asks": []}}
    (record,) = told(feed(), json.dumps(frame)).records
    assert isinstance(record, Depth5)
    assert record.bid_prices == (9.0, 8.0, 7.0, 6.0, 5.0)
    assert record.bid_level == 5
    frame["data"] = {"lastUpdateId": 1, "bids": [["1", "2", "3"]], "asks": []}
    assert told(feed(), json.dumps(frame)).drops == ["malformed"]


def test_times_beyond_what_a_record_holds_are_refused() -> None:
    for time, dropped in ((2**63 - 1, False), (2**63, True), (10**14 - 1, False)):
        frame = {"stream": "btcusdt@trade", "data": TRADE | {"E": 1, "T": time}}
        sink = told(feed(), json.dumps(frame))
        assert sink.drops == (["malformed"] if dropped else [])
        assert all(isinstance(r, Trade) and r.trade_timestamp_us < 2**64 for r in sink.records)


@pytest.mark.parametrize("stream", PAYLOADS)
def test_times_of_sixteen_digits_are_microseconds_on_every_stream(stream: str) -> None:
    for given_us, e, t in (
        ((1786541222707000, 1786541222706000), 1786541222707, 1786541222706),
        ((1786541222707123, 1786541222706456), 1786541222707123, 1786541222706456),
    ):
        frame = {"stream": f"btcusdt@{stream}", "data": PAYLOADS[stream] | {"E": e, "T": t}}
        (record,) = told(feed(), json.dumps(frame)).records
        assert (record.event_timestamp_us, record.trade_timestamp_us) == given_us
