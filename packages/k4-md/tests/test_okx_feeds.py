"""Which sockets an OKX configuration opens, what it asks of them, and how symbols map."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind, ProductType
from k4.core.errors import ConfigError
from k4.core.limits import Keepalive
from k4.md.exchanges.okx import EXCHANGE
from k4.md.exchanges.okx.feeds import LIMITS, requests
from k4.md.exchanges.okx.instruments import parse_instruments, spot_rule, swap_rule
from k4.md.feed import Channel, Feed, Ids, Instrument, Reset, slot_of
from k4.md.sinks import CollectingSink

KINDS = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)


def feeds(
    product: str = "spot",
    symbols: Sequence[str] = ("BTCUSDT", "ETHUSDT"),
    kinds: Sequence[Kind] = KINDS,
    endpoints: Mapping[str, tuple[str, ...]] | None = None,
    **options: Any,
) -> dict[str, Feed]:
    made = ProductConfig(
        name=product, symbols=tuple(symbols), kinds=tuple(kinds), path=f"c[0].{product}", **options
    )
    config = ConnectionConfig(exchange="okx", endpoints=endpoints or {}, products=(made,))
    rule = spot_rule if product == "spot" else swap_rule
    mapped = {(product, symbol): rule(symbol) for symbol in symbols}
    return {feed.name: feed for feed in EXCHANGE.feeds(config, mapped)}


def test_one_socket_carries_every_channel() -> None:
    (feed,) = feeds(lines=3).values()

    assert feed.name == "okx.spot.public"
    assert feed.group == "okx.spot"
    assert feed.urls == ("wss://ws.okx.com:8443/ws/v5/public",)
    assert (feed.product_type, feed.lines) == (ProductType.SPOT, 3)
    assert feed.hello == (
        b'{"id":"1","op":"subscribe","args":[{"channel":"bbo-tbt","instId":"BTC-USDT"},'
        b'{"channel":"trades","instId":"BTC-USDT"},{"channel":"books5","instId":"BTC-USDT"},'
        b'{"channel":"bbo-tbt","instId":"ETH-USDT"},{"channel":"trades","instId":"ETH-USDT"},'
        b'{"channel":"books5","instId":"ETH-USDT"}]}',
    )
    assert feed.acks == 6
    assert [c.slot for c in feed.channels] == [slot_of(i, kind) for i in (0, 1) for kind in KINDS]
    assert [c.symbol for c in feed.channels[::3]] == ["BTCUSDT", "ETHUSDT"]


def test_a_channel_says_what_it_proves_and_owes() -> None:
    (feed,) = feeds(symbols=("BTCUSDT",)).values()
    quote, trade, book = feed.channels

    for channel in (quote, book):
        assert (channel.ids, channel.reset) == (Ids.NEWEST, Reset.NEWER_TIME)
        assert (channel.owes_snapshot, channel.repeats) == (True, 60.0)
    assert (trade.ids, trade.owes_snapshot, trade.repeats) == (Ids.SUSPECTED, False, 0.0)


def test_all_fills_are_on_the_business_path() -> None:
    found = feeds("swap", symbols=("BTCUSDT",), trades_channel="trades-all")
    public, business = found["okx.swap.public"], found["okx.swap.business"]

    assert len(found) == 2
    assert [c.topic for c in public.channels] == ["bbo-tbt:BTC-USDT-SWAP", "books5:BTC-USDT-SWAP"]
    assert [c.topic for c in business.channels] == ["trades-all:BTC-USDT-SWAP"]
    assert business.urls == ("wss://ws.okx.com:8443/ws/v5/business",)
    assert {public.product_type, business.product_type} == {ProductType.FUTURES}
    assert public.group == business.group == "okx.swap"


def test_only_what_is_wanted_is_subscribed() -> None:
    assert list(feeds(kinds=(Kind.TRADE,), trades_channel="trades-all")) == ["okx.spot.business"]
    (feed,) = feeds(kinds=(Kind.DEPTH5,)).values()
    assert [c.topic for c in feed.channels] == ["books5:BTC-USDT", "books5:ETH-USDT"]


def test_endpoints_are_overridden_one_by_one() -> None:
    urls = ("ws://127.0.0.1:1/a", "ws://127.0.0.1:2/b")
    found = feeds(endpoints={"public": urls}, trades_channel="trades-all")

    assert found["okx.spot.public"].urls == urls
    assert found["okx.spot.business"].urls[0].startswith("wss://ws.okx.com")


def test_the_client_pings_when_nothing_comes_and_long_before_the_venue_closes() -> None:
    (feed,) = feeds().values()

    assert feed.keepalive == Keepalive(20.0, b"ping", idle_only=True)
    assert feed.keepalive.interval < feed.limits.idle_close == 30.0
    assert (feed.limits.messages, feed.limits.messages_period) == (480, 3600.0)
    assert not feed.limits.pings_count
    assert (feed.limits.connect_attempts, feed.limits.connect_period) == (3, 1.0)


def test_many_symbols_are_spread_over_connections_and_a_symbol_stays_whole() -> None:
    found = list(feeds(symbols=[f"S{i}USDT" for i in range(250)]).values())

    assert [feed.name for feed in found] == [
        "okx.spot.public",
        "okx.spot.public.2",
        "okx.spot.public.3",
    ]
    slots = [c.slot for feed in found for c in feed.channels]
    assert slots == [slot_of(i, kind) for i in range(250) for kind in KINDS]
    for feed in found:
        assert len(feed.channels) <= LIMITS.topics_per_connection
        symbols = {c.symbol for c in feed.channels}
        assert len(symbols) * 3 == len(feed.channels)


def test_args_of_one_request_stay_within_64_kib() -> None:
    channels = [
        Channel(
            slot=i << 2,
            kind=Kind.BOOKTICKER,
            symbol=f"S{i}",
            topic=f"bbo-tbt:SYMBOL{i:05}-USDT",
            ids=Ids.NEWEST,
            reset=Reset.NEWER_TIME,
        )
        for i in range(4000)
    ]
    made = [json.loads(request) for request in requests("unsubscribe", channels)]

    assert len(made) > 1
    assert [m["id"] for m in made] == [str(i) for i in range(1, len(made) + 1)]
    assert {m["op"] for m in made} == {"unsubscribe"}
    assert [f"{a['channel']}:{a['instId']}" for m in made for a in m["args"]] == [
        c.topic for c in channels
    ]
    for m in made:
        assert len(json.dumps(m["args"], separators=(",", ":"))) <= 65_536


def test_what_okx_does_not_have_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="no product 'futures'"):
        feeds("futures")
    with pytest.raises(ConfigError, match="trades_channel: no channel 'fills'"):
        feeds(trades_channel="fills")
    with pytest.raises(ConfigError, match="no aggtrade channel"):
        feeds(kinds=(Kind.AGGTRADE,))


# What a merged trade covers.


class FirstIds(CollectingSink):
    """Keeps the ids that each trade covers."""

    def trade(
        self,
        slot: int,
        id: int,
        first_id: int,
        event_us: int,
        trade_us: int,
        price: float,
        vol: float,
        is_buyer_maker: bool,
        key: object = None,
    ) -> None:
        self.seeded.append((f"{first_id}-{id}", 0))


@pytest.mark.parametrize(
    ("trade_id", "count", "covered"),
    [
        ("123", '"3"', "121-123"),
        ("123", '"1"', "123-123"),
        ("2", '"9"', "2-2"),
        ("0", '"1"', "0-0"),
    ],
)
def test_a_merged_trade_covers_the_ids_of_its_fills(
    trade_id: str, count: str, covered: str
) -> None:
    (feed,) = feeds(symbols=("BTCUSDT",)).values()
    sink = FirstIds.of(feed)
    frame = (
        '{"arg":{"channel":"trades","instId":"BTC-USDT"},"data":[{"instId":"BTC-USDT",'
        f'"tradeId":"{trade_id}","px":"1","sz":"1","side":"buy","ts":"1","count":{count}}}]}}'
    )
    feed.session().receive(frame.encode(), 0, sink)

    assert sink.seeded == [(covered, 0)]


# Symbols.


@pytest.mark.parametrize(
    ("symbol", "spot", "swap"),
    [
        ("BTCUSDT", "BTC-USDT", "BTC-USDT-SWAP"),
        ("BTCUSD", "BTC-USD", "BTC-USD-SWAP"),
        ("BTCUSD_UM", "BTC-USD_UM", "BTC-USD_UM-SWAP"),
        ("ethbtc", "ETH-BTC", "ETH-BTC-SWAP"),
        ("USDCUSDT", "USDC-USDT", "USDC-USDT-SWAP"),
        ("1000CATUSDT", "1000CAT-USDT", "1000CAT-USDT-SWAP"),
        ("BTC-USDT", "BTC-USDT", "BTC-USDT-SWAP"),
        ("USDT", "USDT", "USDT-SWAP"),
    ],
)
def test_documented_rules_stand_in_for_metadata(symbol: str, spot: str, swap: str) -> None:
    assert (spot_rule(symbol), swap_rule(symbol)) == (spot, swap)


def test_an_id_stays_an_id() -> None:
    assert swap_rule("BTC-USDT-SWAP") == "BTC-USDT-SWAP"


def test_instruments_keep_tick_lot_and_contract_value() -> None:
    body = (
        b'{"code":"0","msg":"","data":[{"instType":"SWAP","instId":"BTC-USD-SWAP","baseCcy":"",'
        b'"ctVal":"100","ctMult":"1","lotSz":"1","tickSz":"0.1","state":"live"},'
        b'{"instType":"SWAP","instId":"BTC-USD_UM-SWAP","tickSz":"0.1","lotSz":"0.01"}]}'
    )
    assert parse_instruments(body) == (
        [
            Instrument(
                symbol="BTCUSD",
                venue_symbol="BTC-USD-SWAP",
                tick="0.1",
                lot="1",
                contract_value="100",
            ),
            Instrument(symbol="BTCUSD_UM", venue_symbol="BTC-USD_UM-SWAP", tick="0.1", lot="0.01"),
        ],
        "",
    )


@pytest.mark.parametrize("body", [b"", b"[]", b'{"code":"50011","msg":"Too Many Requests"}'])
def test_an_answer_that_lists_nothing_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_instruments(body)
