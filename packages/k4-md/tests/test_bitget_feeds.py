"""Which sockets a Bitget configuration opens, what it asks of them, and how symbols are listed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind, ProductType
from k4.core.errors import ConfigError
from k4.md.exchanges.bitget import EXCHANGE
from k4.md.exchanges.bitget.metadata import step
from k4.md.feed import Feed, Ids, Reset, slot_of

KINDS = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)


def feeds(
    product: str = "spot", symbols: Sequence[str] = ("BTCUSDT",), kinds: Sequence[Kind] = KINDS
) -> list[Feed]:
    config = ConnectionConfig(
        exchange="bitget",
        products=(ProductConfig(name=product, symbols=tuple(symbols), kinds=tuple(kinds)),),
    )
    return EXCHANGE.feeds(config, {})


@pytest.mark.parametrize(
    ("product", "inst_type", "product_type"),
    [
        ("spot", "SPOT", ProductType.SPOT),
        ("futures", "USDT-FUTURES", ProductType.USDT_FUTURES),
        ("usdc_futures", "USDC-FUTURES", ProductType.USDC_FUTURES),
        ("coin_futures", "COIN-FUTURES", ProductType.COIN_MARGIN),
    ],
)
def test_one_url_serves_all_products_by_inst_type(
    product: str, inst_type: str, product_type: ProductType
) -> None:
    (feed,) = feeds(product)
    assert (feed.name, feed.group) == (f"bitget.{product}.json", f"bitget.{product}")
    assert feed.product_type is product_type
    assert feed.urls == ("wss://ws.bitget.com/v2/ws/public",)
    args = ",".join(
        f'{{"instType":"{inst_type}","channel":"{channel}","instId":"BTCUSDT"}}'
        for channel in ("books1", "trade", "books5")
    )
    assert feed.hello == (f'{{"op":"subscribe","args":[{args}]}}'.encode(),)
    assert feed.acks == 3


def test_what_a_channel_proves_and_owes() -> None:
    (feed,) = feeds()
    assert [c.slot for c in feed.channels] == [slot_of(0, kind) for kind in KINDS]
    assert [c.ids for c in feed.channels] == [Ids.NEWEST, Ids.RISING, Ids.NEWEST]
    assert [c.owes_snapshot for c in feed.channels] == [True, False, True]
    assert {c.reset for c in feed.channels} == {Reset.NEWER_TIME}
    assert {c.repeats for c in feed.channels} == {0.0}
    assert not feed.stateful


def test_a_ping_text_leaves_long_before_the_venue_closes() -> None:
    (feed,) = feeds()
    assert feed.keepalive is not None
    assert (feed.keepalive.interval, feed.keepalive.text) == (30.0, b"ping")
    assert not feed.keepalive.idle_only  # the venue closes without pings, while data flows
    assert feed.limits.idle_close == 120.0
    assert (feed.limits.messages, feed.limits.messages_period) == (10, 1.0)
    assert (feed.limits.requests, feed.limits.requests_period) == (240, 3600.0)


@pytest.mark.parametrize("count", [1, 16, 17, 33, 400])
@pytest.mark.parametrize("kinds", [KINDS, (Kind.TRADE,), (Kind.BOOKTICKER, Kind.TRADE)])
def test_requests_and_connections_stay_within_the_limits(count: int, kinds: list[Kind]) -> None:
    symbols = [f"SYMBOLOFLENGTH{i:04}USDT" for i in range(count)]
    found = feeds("futures", symbols, kinds)
    assert len(found) == -(-count // (49 // len(kinds)))
    asked: list[str] = []
    for feed in found:
        assert len(feed.channels) < 50
        assert len({c.symbol for c in feed.channels}) * len(kinds) == len(feed.channels)
        args = []
        for text in feed.hello:
            assert len(text) <= 4096
            args += json.loads(text)["args"]
        assert len(args) == feed.acks == len(feed.channels)
        asked += [f"{arg['instType']}:{arg['channel']}:{arg['instId']}" for arg in args]
    assert asked == [c.topic for f in found for c in f.channels]


def test_args_beyond_4096_bytes_are_several_requests() -> None:
    found = feeds("futures", [f"{'X' * 40}{i:02}USDT" for i in range(16)])
    assert [len(f.hello) for f in found] == [2]
    assert sum(len(json.loads(text)["args"]) for text in found[0].hello) == 48


def test_what_bitget_has_not_is_refused() -> None:
    for product, kinds in (("swap", KINDS), ("spot", (Kind.AGGTRADE,))):
        with pytest.raises(ConfigError, match="bitget has no"):
            feeds(product, kinds=kinds)


def test_rules_of_symbols() -> None:
    spellings = {
        ("spot", "BTCUSDC"): "BTCUSDC",
        ("futures", "BTCUSDT"): "BTCUSDT",
        ("usdc_futures", "BTCUSDC"): "BTCPERP",
        ("usdc_futures", "BTCPERP"): "BTCPERP",
        ("coin_futures", "BTCUSD"): "BTCUSD",
        ("coin_futures", "BTCUSDZ24"): "BTCUSDZ24",
    }
    for (product, symbol), venue in spellings.items():
        assert EXCHANGE.product(product).rule(symbol) == venue


def body(*items: Mapping[str, object], code: str = "00000") -> bytes:
    return msgspec.json.encode({"code": code, "msg": "said", "requestTime": 1, "data": items})


def test_instruments_of_spot() -> None:
    metadata = EXCHANGE.product("spot").metadata
    assert metadata is not None
    assert metadata.path == "/api/v2/spot/public/symbols"
    item = {"symbol": "BTCUSDT", "baseCoin": "BTC", "pricePrecision": "2", "quantityPrecision": "6"}
    (found,), following = metadata.parse(body(item))
    assert (found.symbol, found.venue_symbol, found.tick, found.lot, following) == (
        "BTCUSDT",
        "BTCUSDT",
        "0.01",
        "0.000001",
        "",
    )


def test_instruments_of_contracts() -> None:
    item: dict[str, object] = {
        "symbol": "BTCPERP",
        "baseCoin": "BTC",
        "quoteCoin": "USDC",
        "pricePlace": "1",
        "priceEndStep": "5",
        "sizeMultiplier": "0.001",
        "symbolType": "perpetual",
    }
    for product, symbol in (("usdc_futures", "BTCUSDC"), ("futures", "BTCPERP")):
        metadata = EXCHANGE.product(product).metadata
        assert metadata is not None
        ((found,), _) = metadata.parse(body(item))
        assert (found.symbol, found.venue_symbol) == (symbol, "BTCPERP")
        assert (found.tick, found.lot) == ("0.5", "0.001")
    metadata = EXCHANGE.product("usdc_futures").metadata
    assert metadata is not None
    assert metadata.path == "/api/v2/mix/market/contracts?productType=USDC-FUTURES"
    ((found,), _) = metadata.parse(body(item | {"symbol": "BTCPERPZ26", "symbolType": "delivery"}))
    assert found.symbol == "BTCPERPZ26"


def test_an_error_of_the_venue_is_no_list() -> None:
    metadata = EXCHANGE.product("spot").metadata
    assert metadata is not None
    with pytest.raises(ValueError, match="error 40034: said"):
        metadata.parse(body(code="40034"))
    for text in (b"[]", b"{}", b"\xff"):
        with pytest.raises(ValueError, match=r"\w"):
            metadata.parse(text)


def test_steps() -> None:
    assert step("8") == "0.00000001"
    assert step(0, "5") == "5"
    assert step("1", 5) == "0.5"
    assert [step(""), step("x"), step("-1"), step("99"), step("1", "x")] == [""] * 5
