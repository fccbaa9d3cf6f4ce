"""Which sockets a Binance configuration opens, and what it asks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from k4.core.config import ConnectionConfig, ProductConfig, Secret
from k4.core.enums import Kind, ProductType
from k4.core.errors import ConfigError
from k4.md.exchanges.binance import EXCHANGE
from k4.md.exchanges.binance.feeds import balanced
from k4.md.feed import Feed, Ids, slot_of

KEY = {"X-MBX-APIKEY": Secret("the key"), "X-Other": "plain"}


def feeds(
    product: str = "spot",
    symbols: Sequence[str] = ("BTCUSDT", "ETHUSDT"),
    kinds: Sequence[Kind] = tuple(Kind),
    endpoints: Mapping[str, tuple[str, ...]] | None = None,
    **options: Any,
) -> dict[str, Feed]:
    config = ConnectionConfig(
        exchange="binance",
        endpoints=endpoints or {},
        products=(
            ProductConfig(
                name=product,
                symbols=tuple(symbols),
                kinds=tuple(kinds),
                path="connections[0].spot",
                **options,
            ),
        ),
    )
    return {feed.name: feed for feed in EXCHANGE.feeds(config, {})}


def asked(feed: Feed) -> list[str]:
    """All topics of the subscribe requests."""
    calls = [msgspec.json.decode(message) for message in feed.hello]
    return [topic for c in calls if c["method"] == "SUBSCRIBE" for topic in c["params"]]


def test_spot_json_carries_every_kind_on_one_socket() -> None:
    (feed,) = feeds().values()
    assert feed.name == "binance.spot.json"
    assert feed.urls == ("wss://stream.binance.com:9443/stream",)
    assert feed.product_type is ProductType.SPOT
    assert feed.hello == (
        b'{"method":"SUBSCRIBE","params":["btcusdt@bookTicker","btcusdt@trade","btcusdt@aggTrade",'
        b'"btcusdt@depth5@100ms","ethusdt@bookTicker","ethusdt@trade","ethusdt@aggTrade",'
        b'"ethusdt@depth5@100ms"],"id":1}',
    )
    assert feed.acks == 1
    assert [c.slot for c in feed.channels[4:]] == [slot_of(1, kind) for kind in Kind]
    assert {c.kind: c.ids for c in feed.channels} == {
        Kind.BOOKTICKER: Ids.NEWEST,
        Kind.TRADE: Ids.CONSECUTIVE,
        Kind.AGGTRADE: Ids.CONSECUTIVE,
        Kind.DEPTH5: Ids.NEWEST,
    }


def test_usd_m_needs_two_sockets_since_public_never_sends_agg_trades() -> None:
    found = feeds("ubase", lines=3)
    public, market = found["binance.ubase.public"], found["binance.ubase.market"]
    assert len(found) == 2
    assert public.urls == ("wss://fstream.binance.com/public/stream",)
    assert market.urls == ("wss://fstream.binance.com/market/stream",)
    assert asked(market) == ["btcusdt@aggTrade", "ethusdt@aggTrade"]
    assert not any("aggTrade" in topic for topic in asked(public))
    assert public.group == market.group == "binance.ubase"
    assert public.product_type == market.product_type == 2
    assert public.lines == market.lines == 3
    assert list(feeds("ubase", kinds=(Kind.AGGTRADE,))) == ["binance.ubase.market"]
    assert list(feeds("ubase", kinds=(Kind.BOOKTICKER,))) == ["binance.ubase.public"]


def test_coin_m_has_one_socket_without_routing() -> None:
    (feed,) = feeds("cbase", symbols=("BTCUSD_PERP",)).values()
    assert feed.name == "binance.cbase.json"
    assert feed.urls == ("wss://dstream.binance.com/stream",)
    assert feed.product_type == 3
    assert asked(feed)[0] == "btcusd_perp@bookTicker"


def test_auto_takes_sbe_with_a_key_and_json_stands_in() -> None:
    found = feeds(headers=KEY)
    assert list(found) == ["binance.spot.sbe", "binance.spot.json"]
    sbe, json = found["binance.spot.sbe"], found["binance.spot.json"]
    assert sbe.urls == ("wss://stream-sbe.binance.com:9443/stream",)
    assert asked(sbe)[:3] == ["btcusdt@bestBidAsk", "btcusdt@trade", "btcusdt@depth20"]
    assert asked(json) == ["btcusdt@aggTrade", "ethusdt@aggTrade"]
    stand_in = sbe.fallback
    assert stand_in is not None
    assert stand_in.name == "binance.spot.fallback"
    assert [c.slot for c in stand_in.channels] == [c.slot for c in sbe.channels]
    assert not any("aggTrade" in topic for topic in asked(stand_in))


def test_without_agg_trades_sbe_is_the_only_socket() -> None:
    assert list(feeds(headers=KEY, kinds=(Kind.TRADE,))) == ["binance.spot.sbe"]
    assert list(feeds(headers=KEY, kinds=(Kind.AGGTRADE,))) == ["binance.spot.json"]


def test_sbe_and_both_have_no_stand_in() -> None:
    sbe = feeds(feed="sbe", headers=KEY)
    assert [(name, f.fallback) for name, f in sbe.items()] == [
        ("binance.spot.sbe", None),
        ("binance.spot.json", None),
    ]
    both = feeds(feed="both", headers=KEY, lines=2)
    assert len(both["binance.spot.json"].channels) == 8
    assert len(both["binance.spot.sbe"].channels) == 6
    assert all(feed.lines == 2 for feed in both.values())
    assert list(feeds(feed="json", headers=KEY)) == ["binance.spot.json"]


def test_the_key_goes_to_sbe_alone() -> None:
    found = feeds(headers=KEY)
    assert found["binance.spot.sbe"].headers == KEY
    assert found["binance.spot.json"].headers == {"X-Other": "plain"}
    stand_in = found["binance.spot.sbe"].fallback
    assert stand_in is not None
    assert stand_in.headers == {"X-Other": "plain"}
    assert "the key" not in repr(found)


def test_binance_itself_wants_a_key_for_sbe() -> None:
    with pytest.raises(ConfigError) as caught:
        feeds(feed="sbe")
    assert [p.path for p in caught.value.problems] == ["connections[0].spot.feed"]
    found = feeds(feed="sbe", endpoints={"spot_sbe": ("ws://127.0.0.1:1/stream",)})
    assert "binance.spot.sbe" in found


def test_an_unknown_product_is_named() -> None:
    with pytest.raises(ConfigError, match="no product 'swap'"):
        feeds("swap")


def test_a_raw_path_asks_for_combined_where_a_stream_s_name_is_needed() -> None:
    raw = {"spot": ("ws://127.0.0.1:1/ws", "ws://127.0.0.1:2/stream")}
    (feed,) = feeds(endpoints=raw).values()
    assert feed.urls == raw["spot"]
    assert feed.hello[0] == b'{"method":"SET_PROPERTY","params":["combined",true],"id":1}'
    assert feed.acks == 2
    assert len(feed.requests("unsubscribe", feed.channels[:1])) == 1
    (bare,) = feeds(endpoints=raw, kinds=(Kind.BOOKTICKER, Kind.TRADE)).values()
    assert len(bare.hello) == 1
    (sbe,) = feeds(
        feed="sbe", kinds=(Kind.DEPTH5,), endpoints={"spot_sbe": ("ws://127.0.0.1/ws",)}
    ).values()
    assert len(sbe.hello) == 1


@pytest.mark.parametrize("count", [1, 255, 256, 257, 512, 513, 2000])
def test_more_symbols_than_a_connection_carries_are_spread_evenly(count: int) -> None:
    symbols = [f"S{i:04}USDT" for i in range(count)]
    found = list(feeds(symbols=symbols).values())
    assert len(found) == -(-count // 256)
    assert [f.name for f in found] == ["binance.spot.json"] + [
        f"binance.spot.json.{i}" for i in range(2, len(found) + 1)
    ]
    sizes = [len(f.channels) for f in found]
    assert max(sizes) <= 1024
    assert max(sizes) - min(sizes) <= 4
    assert [c.slot for f in found for c in f.channels] == list(range(count * 4))
    for f in found:
        assert len({c.symbol for c in f.channels}) * 4 == len(f.channels)  # a symbol stays whole
        assert all(len(msgspec.json.decode(m)["params"]) <= 200 for m in f.hello)
        assert [msgspec.json.decode(m)["id"] for m in f.hello] == list(range(1, f.acks + 1))
        assert asked(f) == [c.topic for c in f.channels]


def test_every_shard_of_sbe_has_its_own_stand_in() -> None:
    found = feeds(symbols=[f"S{i}" for i in range(700)], headers=KEY)
    sbe = [feed for name, feed in found.items() if ".sbe" in name]
    assert len(sbe) == 3
    for feed in sbe:
        assert feed.fallback is not None
        assert [c.slot for c in feed.fallback.channels] == [c.slot for c in feed.channels]
    assert [f.fallback.name for f in sbe if f.fallback] == [
        "binance.spot.fallback",
        "binance.spot.fallback.2",
        "binance.spot.fallback.3",
    ]


def test_shares_are_balanced() -> None:
    assert balanced(0, 5) == []
    assert balanced(5, 5) == [range(5)]
    assert balanced(11, 5) == [range(3), range(3, 7), range(7, 11)]


def test_the_limits_are_the_documented_ones() -> None:
    spot = feeds(feed="both", headers=KEY)
    for feed in spot.values():
        limits = feed.limits
        assert (limits.server_ping, limits.pong_deadline, limits.messages) == (20, 60, 5)
        assert (limits.max_life, limits.topics_per_connection) == (86_400, 1024)
        assert (limits.connect_attempts, limits.connect_period) == (300, 300)
    for feed in (*feeds("ubase").values(), *feeds("cbase").values()):
        limits = feed.limits
        assert (limits.server_ping, limits.pong_deadline, limits.messages) == (180, 600, 10)
        assert (limits.max_life, limits.topics_per_connection) == (86_400, 1024)


def test_symbols_are_mapped_on_the_socket_only() -> None:
    config = ConnectionConfig(
        exchange="binance",
        products=(ProductConfig(name="cbase", symbols=("BTCUSD",), kinds=(Kind.TRADE,)),),
    )
    (feed,) = EXCHANGE.feeds(config, {("cbase", "BTCUSD"): "BTCUSD_PERP"})
    assert [(c.symbol, c.topic) for c in feed.channels] == [("BTCUSD", "btcusd_perp@trade")]
