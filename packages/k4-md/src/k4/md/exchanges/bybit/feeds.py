"""Which connections a Bybit configuration needs: endpoints, channels, limits, requests.

    bybit.spot.public, bybit.linear.public, bybit.inverse.public
        publicTrade, orderbook.1, orderbook.50

All topics of a symbol stay on one connection, so that its trades witness for its quote and its
book; books of their own connection would lose that, and would double the connections. Each feed is
cut into shards `.2`, `.3` … where the args of a connection grow beyond 21,000 characters. The
category is in the URL alone. Sources: bybit-exchange/docs, `docs/v5/ws/connect.mdx` and
`docs/v5/websocket/public/*` (2026-07-24).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind, ProductType
from k4.core.limits import Keepalive, Limits
from k4.md.exchanges.bybit.session import TOPICS, BybitSession, topic_of
from k4.md.feed import Channel, Feed, Ids, Requests, Reset, SymbolMap, slot_of
from k4.md.portions import portions
from k4.md.wanted import check, kinds_of

ENDPOINTS: Mapping[str, str] = {
    "spot": "wss://stream.bybit.com/v5/public/spot",
    "linear": "wss://stream.bybit.com/v5/public/linear",
    "inverse": "wss://stream.bybit.com/v5/public/inverse",
    "rest": "https://api.bybit.com",
}
PRODUCT_TYPES = {
    "spot": ProductType.SPOT,
    "linear": ProductType.FUTURES,
    "inverse": ProductType.COIN_MARGIN,
}

SPOT_LIMITS = Limits(
    connect_attempts=500,
    connect_period=300.0,
    messages=10,  # ours, for requests: the venue documents no rate
    pings_count=False,
    topics_per_connection=0,
    topics_per_request=10,
    connection_bytes=21_000,
    idle_close=600.0,
)
DERIVATIVES_LIMITS = msgspec.structs.replace(SPOT_LIMITS, topics_per_request=0)
LIMITS = {"spot": SPOT_LIMITS, "linear": DERIVATIVES_LIMITS, "inverse": DERIVATIVES_LIMITS}
TOPICS_PER_REQUEST = 30
"""Ours, where the venue sets no limit: one bad topic makes it refuse a request whole, and all that
were in it must then be asked for one by one."""

KEEPALIVE = Keepalive(20.0, b'{"req_id":"100001","op":"ping"}')
REPEATS = 3.0
"""Seconds after which orderbook.1 sends an unchanged snapshot again, under the same `u`."""

BRACKETS = 2


def feeds(config: ConnectionConfig, symbols: SymbolMap) -> list[Feed]:
    """The feeds of one connection of the configuration.

    Raises ConfigError for an unknown product or kind.
    """
    check(config, PRODUCT_TYPES, TOPICS)
    return [
        feed for product in config.products for feed in _product_feeds(config, product, symbols)
    ]


def _product_feeds(
    config: ConnectionConfig, product: ProductConfig, symbols: SymbolMap
) -> list[Feed]:
    kinds = kinds_of(product)
    channels = [
        [
            _channel(index, symbol, kind, symbols.get((product.name, symbol), symbol), product.name)
            for kind in kinds
        ]
        for index, symbol in enumerate(product.symbols)
    ]
    sizes = [sum(map(_size, group)) + len(group) - 1 for group in channels]
    shards = portions(sizes, room=LIMITS[product.name].connection_bytes - BRACKETS)
    return [
        _feed(config, product, tuple(c for i in shard for c in channels[i]), number)
        for number, shard in enumerate(shards, 1)
    ]


def _size(channel: Channel) -> int:
    """Characters of an arg."""
    return len(msgspec.json.encode(channel.topic))


def _channel(index: int, symbol: str, kind: Kind, venue_symbol: str, product: str) -> Channel:
    trades = Ids.SUSPECTED if product == "spot" else Ids.UNORDERED
    ids = {
        Kind.BOOKTICKER: Ids.NEWEST,
        Kind.TRADE: trades,
        Kind.DEPTH5: Ids.NEWEST_CONSECUTIVE,
    }
    return Channel(
        slot=slot_of(index, kind),
        kind=kind,
        symbol=symbol,
        topic=topic_of(kind, venue_symbol),
        ids=ids[kind],
        reset=Reset.ONE,
        owes_snapshot=kind is not Kind.TRADE,
        repeats=REPEATS if kind is Kind.BOOKTICKER else 0.0,
    )


def _feed(
    config: ConnectionConfig, product: ProductConfig, channels: tuple[Channel, ...], number: int
) -> Feed:
    name, group = product.name, f"{config.exchange}.{product.name}"
    limits = LIMITS[name]
    ask = _requests(limits.topics_per_request or TOPICS_PER_REQUEST)
    hello = _batches(channels, limits.topics_per_request or TOPICS_PER_REQUEST)
    return Feed(
        name=f"{group}.public" + (f".{number}" if number > 1 else ""),
        group=group,
        product_type=PRODUCT_TYPES[name],
        urls=tuple(config.endpoints.get(name) or (ENDPOINTS[name],)),
        channels=channels,
        requests=ask,
        acks=len(hello),  # one for each request
        session=lambda: BybitSession(channels, hello, numbered=name == "spot"),
        limits=limits,
        lines=product.lines,
        headers=product.headers,
        keepalive=KEEPALIVE,
        # A quote may be a delta, too, so only a socket of trades can do without some frames.
        stateful=any(channel.kind is not Kind.TRADE for channel in channels),
    )


def _batches(channels: Sequence[Channel], most: int) -> dict[str, Sequence[Channel]]:
    """What each request asks for, by its id: a number, or the topic where it is one topic."""
    found: dict[str, Sequence[Channel]] = {}
    for number, run in enumerate(portions([0] * len(channels), most=most), 1):
        batch = channels[run.start : run.stop]
        found[batch[0].topic if len(batch) == 1 else str(number)] = batch
    return found


def _requests(most: int) -> Requests:
    def requests(op: str, channels: Sequence[Channel]) -> tuple[bytes, ...]:
        return tuple(
            msgspec.json.encode(
                {"req_id": id, "op": op, "args": [channel.topic for channel in batch]}
            )
            for id, batch in _batches(channels, most).items()
        )

    return requests
