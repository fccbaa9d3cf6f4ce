"""Which connections a Bitget configuration needs: endpoints, channels, limits, requests.

    bitget.spot.json            SPOT             books1, trade, books5
    bitget.futures.json         USDT-FUTURES
    bitget.usdc_futures.json    USDC-FUTURES
    bitget.coin_futures.json    COIN-FUTURES

All on one URL; `instType` of each arg names the product. A connection carries fewer than 50
channels, so each feed is cut into shards `.2`, `.3` …; the channels of a symbol stay together, so
that its trades witness for its books. Source: the official v2 introduction page (mirror of
2025-11); the close after two minutes without a ping was measured in 2026-09.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind, ProductType
from k4.core.limits import Keepalive, Limits
from k4.md.exchanges.bitget.session import CHANNELS, BitgetSession, topic_of
from k4.md.feed import Channel, Feed, Ids, Reset, SymbolMap, slot_of
from k4.md.portions import portions
from k4.md.wanted import check, kinds_of

ENDPOINTS: Mapping[str, str] = {
    "public": "wss://ws.bitget.com/v2/ws/public",
    "rest": "https://api.bitget.com",
}

LIMITS = Limits(
    connect_attempts=300,
    connect_period=300.0,
    messages=10,  # `ping` texts included
    requests=240,
    requests_period=3600.0,
    topics_per_connection=49,  # "fewer than 50"
    request_bytes=4096,
    idle_close=120.0,  # without a ping, even while data flows
    max_life=86_400.0,
)
KEEPALIVE = Keepalive(30.0, b"ping")
ENVELOPE = len(b'{"op":"unsubscribe","args":[]}')
"""Counted against a request's bytes, too: whether the venue does is not documented."""


class Market(msgspec.Struct, frozen=True):
    inst_type: str
    product_type: ProductType


MARKETS: Mapping[str, Market] = {
    "spot": Market("SPOT", ProductType.SPOT),
    "futures": Market("USDT-FUTURES", ProductType.USDT_FUTURES),
    "usdc_futures": Market("USDC-FUTURES", ProductType.USDC_FUTURES),
    "coin_futures": Market("COIN-FUTURES", ProductType.COIN_MARGIN),
}


def feeds(config: ConnectionConfig, symbols: SymbolMap) -> list[Feed]:
    """The feeds of one connection of the configuration.

    Raises ConfigError for an unknown product or kind.
    """
    check(config, MARKETS, CHANNELS)
    return [
        feed for product in config.products for feed in _product_feeds(config, product, symbols)
    ]


def _product_feeds(
    config: ConnectionConfig, product: ProductConfig, symbols: SymbolMap
) -> list[Feed]:
    kinds = kinds_of(product)
    ids = [symbols.get((product.name, symbol), symbol) for symbol in product.symbols]
    shards = portions([0] * len(ids), most=LIMITS.topics_per_connection // len(kinds))
    return [
        _feed(
            config,
            product,
            tuple(_channel(product, index, kind, ids[index]) for index in shard for kind in kinds),
            number,
        )
        for number, shard in enumerate(shards, 1)
    ]


def _channel(product: ProductConfig, index: int, kind: Kind, inst_id: str) -> Channel:
    trades = kind is Kind.TRADE
    return Channel(
        slot=slot_of(index, kind),
        kind=kind,
        symbol=product.symbols[index],
        topic=topic_of(MARKETS[product.name].inst_type, CHANNELS[kind], inst_id),
        ids=Ids.RISING if trades else Ids.NEWEST,
        reset=Reset.NEWER_TIME,
        owes_snapshot=not trades,
    )


def _feed(
    config: ConnectionConfig, product: ProductConfig, channels: tuple[Channel, ...], number: int
) -> Feed:
    group = f"{config.exchange}.{product.name}"
    return Feed(
        name=f"{group}.json" + (f".{number}" if number > 1 else ""),
        group=group,
        product_type=MARKETS[product.name].product_type,
        urls=tuple(config.endpoints.get("public") or (ENDPOINTS["public"],)),
        channels=channels,
        requests=requests,
        acks=len(channels),  # one for each arg
        session=lambda: BitgetSession(channels),
        limits=LIMITS,
        lines=product.lines,
        headers=product.headers,
        keepalive=KEEPALIVE,
    )


def requests(op: str, channels: Sequence[Channel]) -> tuple[bytes, ...]:
    """Requests for `Feed.requests`, each with as many args as the venue takes."""
    args = [
        msgspec.json.encode({"instType": inst_type, "channel": channel, "instId": inst_id})
        for inst_type, channel, inst_id in (c.topic.split(":", 2) for c in channels)
    ]
    runs = portions(list(map(len, args)), room=LIMITS.request_bytes - ENVELOPE)
    return tuple(
        b'{"op":"%s","args":[%s]}' % (op.encode(), b",".join(args[run.start : run.stop]))
        for run in runs
    )
