"""Which sockets a Bybit configuration opens, what it asks of them, and how symbols are listed."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind, ProductType
from k4.core.errors import ConfigError
from k4.md.exchanges.bybit import EXCHANGE
from k4.md.feed import Ack, Feed, Ids, Refused, Reset, slot_of
from k4.md.sinks import CollectingSink

KINDS = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)


def feeds(
    product: str = "spot", symbols: Sequence[str] = ("BTCUSDT",), kinds: Sequence[Kind] = KINDS
) -> list[Feed]:
    config = ConnectionConfig(
        exchange="bybit",
        products=(ProductConfig(name=product, symbols=tuple(symbols), kinds=tuple(kinds)),),
    )
    return EXCHANGE.feeds(config, {})


def test_one_socket_carries_all_topics_of_a_symbol() -> None:
    (feed,) = feeds()
    assert (feed.name, feed.group) == ("bybit.spot.public", "bybit.spot")
    assert feed.urls == ("wss://stream.bybit.com/v5/public/spot",)
    assert feed.hello == (
        b'{"req_id":"1","op":"subscribe",'
        b'"args":["orderbook.1.BTCUSDT","publicTrade.BTCUSDT","orderbook.50.BTCUSDT"]}',
    )
    assert feed.acks == 1
    assert feed.stateful
    assert feed.keepalive is not None
    assert (feed.keepalive.interval, feed.keepalive.idle_only) == (20.0, False)
    assert json.loads(feed.keepalive.text or b"")["op"] == "ping"


@pytest.mark.parametrize(
    ("product", "product_type", "trades"),
    [
        ("spot", ProductType.SPOT, Ids.SUSPECTED),
        ("linear", ProductType.FUTURES, Ids.UNORDERED),
        ("inverse", ProductType.COIN_MARGIN, Ids.UNORDERED),
    ],
)
def test_what_a_channel_proves_and_owes(
    product: str, product_type: ProductType, trades: Ids
) -> None:
    (feed,) = feeds(product)
    assert feed.product_type is product_type
    assert feed.urls == (f"wss://stream.bybit.com/v5/public/{product}",)
    quote, deals, book = feed.channels
    assert (quote.ids, quote.owes_snapshot, quote.repeats) == (Ids.NEWEST, True, 3.0)
    assert (deals.ids, deals.owes_snapshot, deals.repeats) == (trades, False, 0.0)
    assert (book.ids, book.owes_snapshot, book.repeats) == (Ids.NEWEST_CONSECUTIVE, True, 0.0)
    assert {c.reset for c in feed.channels} == {Reset.ONE}
    assert [c.slot for c in feed.channels] == [slot_of(0, kind) for kind in KINDS]


def test_only_trades_can_do_without_some_frames() -> None:
    assert [feeds(kinds=[kind])[0].stateful for kind in KINDS] == [True, False, True]


@pytest.mark.parametrize("count", [1, 3, 4, 11, 200, 1000])
@pytest.mark.parametrize("product", ["spot", "linear"])
def test_requests_and_connections_stay_within_the_limits(product: str, count: int) -> None:
    symbols = [f"S{i:05}USDT" for i in range(count)]
    found = feeds(product, symbols)
    assert [f.name for f in found] == [f"bybit.{product}.public"] + [
        f"bybit.{product}.public.{i}" for i in range(2, len(found) + 1)
    ]
    asked: list[str] = []
    for feed in found:
        requests = [json.loads(text) for text in feed.hello]
        args = [arg for request in requests for arg in request["args"]]
        assert len(msgspec.json.encode(args)) <= 21_000
        assert len({request["req_id"] for request in requests}) == len(requests) == feed.acks
        assert all(len(r["args"]) <= (10 if product == "spot" else 30) for r in requests)
        assert len({arg.rpartition(".")[2] for arg in args}) * 3 == len(args)
        asked += args
    assert asked == [c.topic for f in found for c in f.channels]
    assert len(asked) == 3 * count
    # 64 characters a symbol: 327 of them fill a connection
    assert len(found) == -(-count // 310)


def test_more_than_21000_characters_are_spread() -> None:
    topics = [len(json.dumps(f"publicTrade.S{i:05}USDT")) for i in range(2000)]
    found = feeds("linear", [f"S{i:05}USDT" for i in range(2000)], [Kind.TRADE])
    assert len(found) == -(-sum(size + 1 for size in topics) // 21_000)
    assert max(len(f.channels) for f in found) - min(len(f.channels) for f in found) <= 1


def test_a_request_refused_for_one_topic_is_asked_again_one_by_one() -> None:
    (feed,) = feeds("linear", ["BTCUSDT", "NOPEUSDT"])
    session, sink = feed.session(), CollectingSink.of(feed)
    text = "Invalid symbol :[orderbook.1.NOPEUSDT]"

    def answer(request: str, success: bool) -> None:
        body = {"success": success, "ret_msg": text, "req_id": request, "op": "subscribe"}
        session.receive(json.dumps(body).encode(), 0, sink)

    answer("1", False)
    slots = tuple(channel.slot for channel in feed.channels)
    assert sink.controls == [Refused("", text, request="1", alone=slots)]
    again = [r for c in feed.channels for r in feed.requests("subscribe", (c,))]
    for channel, request in zip(feed.channels, again, strict=True):
        assert json.loads(request) == {
            "req_id": channel.topic,
            "op": "subscribe",
            "args": [channel.topic],
        }
        answer(channel.topic, "NOPE" not in channel.topic)
    refused = [c.topic for c in feed.channels if "NOPE" in c.topic]
    assert sink.controls[1:] == [Refused("", text, topic=topic) for topic in refused]


def test_the_ack_of_a_hello_of_one_topic_counts() -> None:
    (feed,) = feeds(kinds=[Kind.TRADE])
    (request,) = feed.hello
    sink = CollectingSink.of(feed)
    body = {"success": True, "op": "subscribe", "req_id": json.loads(request)["req_id"]}
    feed.session().receive(json.dumps(body).encode(), 0, sink)
    assert sink.controls == [Ack(request="publicTrade.BTCUSDT")]


def test_what_bybit_has_not_is_refused_by_path() -> None:
    for product, kinds in (("swap", KINDS), ("spot", (Kind.AGGTRADE,))):
        with pytest.raises(ConfigError, match="bybit has no"):
            feeds(product, kinds=kinds)


@pytest.mark.parametrize("shift", range(5))
def test_any_key_order_gives_the_same_record(shift: int) -> None:
    (feed,) = feeds()
    data = {"s": "BTCUSDT", "b": [["1.5", "2"]], "a": [["1.6", "3"]], "u": 7, "seq": 9}
    push = {"topic": "orderbook.1.BTCUSDT", "type": "snapshot", "ts": 5, "data": data, "cts": 4}
    items = list(push.items())
    expected = CollectingSink.of(feed)
    feed.session().receive(json.dumps(push, separators=(",", ":")).encode(), 0, expected)
    for separators in ((",", ":"), (", ", ": ")):
        sink = CollectingSink.of(feed)
        frame = dict(items[shift:] + items[:shift])
        feed.session().receive(json.dumps(frame, separators=separators).encode(), 0, sink)
        assert sink.records == expected.records
        assert len(sink.records) == 1


def test_rules_of_symbols() -> None:
    spellings = {
        ("spot", "BTCUSDC"): "BTCUSDC",
        ("linear", "BTCUSDT"): "BTCUSDT",
        ("linear", "BTCUSDC"): "BTCPERP",
        ("linear", "BTCPERP"): "BTCPERP",
        ("linear", "BTCUSDT-26SEP25"): "BTCUSDT-26SEP25",
        ("linear", "USDC"): "USDC",
        ("inverse", "BTCUSDU25"): "BTCUSDU25",
    }
    for (product, symbol), venue in spellings.items():
        assert EXCHANGE.product(product).rule(symbol) == venue


def page(cursor: str, *items: dict[str, object]) -> bytes:
    result = {"category": "linear", "list": list(items), "nextPageCursor": cursor}
    return json.dumps({"retCode": 0, "retMsg": "OK", "result": result, "time": 1}).encode()


def test_instruments_are_read_page_by_page() -> None:
    metadata = EXCHANGE.product("linear").metadata
    assert metadata is not None
    assert metadata.path == "/v5/market/instruments-info?category=linear&limit=1000"
    listed: dict[str, object] = {
        "symbol": "BTCPERP",
        "contractType": "LinearPerpetual",
        "status": "Trading",
        "baseCoin": "BTC",
        "quoteCoin": "USDC",
        "priceFilter": {"tickSize": "0.10", "minPrice": "0.10"},
        "lotSizeFilter": {"qtyStep": "0.001", "minOrderQty": "0.001"},
    }
    dated = listed | {"symbol": "BTC-26SEP25", "contractType": "LinearFutures"}
    first, following = metadata.parse(page("first%3DBTC&x", listed, dated))
    assert following == metadata.path + "&cursor=first%253DBTC%26x"
    assert [(i.symbol, i.venue_symbol) for i in first] == [
        ("BTCUSDC", "BTCPERP"),
        ("BTC-26SEP25", "BTC-26SEP25"),
    ]
    assert (first[0].tick, first[0].lot, first[0].contract_value) == ("0.10", "0.001", "")
    assert metadata.parse(page("")) == ([], "")


def test_instruments_of_spot_and_inverse() -> None:
    spot, inverse = EXCHANGE.product("spot").metadata, EXCHANGE.product("inverse").metadata
    assert spot is not None
    assert inverse is not None
    assert spot.path == "/v5/market/instruments-info?category=spot"
    item: dict[str, object] = {
        "symbol": "1000CATUSDT",
        "baseCoin": "1000CAT",
        "quoteCoin": "USDT",
        "lotSizeFilter": {"basePrecision": "0.1"},
        "priceFilter": {"tickSize": "0.00001"},
    }
    ((found,), _) = spot.parse(page("", item))
    assert (found.symbol, found.lot, found.tick) == ("1000CATUSDT", "0.1", "0.00001")
    ((found,), _) = inverse.parse(page("", item | {"symbol": "BTCUSD"}))
    assert found.contract_value == "1"


def test_an_error_of_the_venue_is_no_list() -> None:
    metadata = EXCHANGE.product("spot").metadata
    assert metadata is not None
    with pytest.raises(ValueError, match="error 10001: params error"):
        metadata.parse(b'{"retCode":10001,"retMsg":"params error"}')
    for body in (b"[]", b'{"retCode":0}', b"\xff"):
        with pytest.raises(ValueError, match=r"\w"):
            metadata.parse(body)
