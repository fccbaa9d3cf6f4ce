"""Which connections an OKX configuration needs: endpoints, channels, limits, requests.

    okx.spot.public     /ws/v5/public       bbo-tbt, trades, books5
    okx.spot.business   /ws/v5/business     trades-all, where it is chosen instead of trades
    okx.swap.public, okx.swap.business      the same for perpetuals

Each is cut into shards `.2`, `.3` … beyond so many channels; the channels of a symbol stay on one
connection, so that they can witness for each other. Source: API guide, "WebSocket".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind, ProductType
from k4.core.errors import ConfigError, Problem
from k4.core.limits import Keepalive, Limits
from k4.md.exchanges.okx.session import OkxSession, topic_of
from k4.md.feed import Channel, Feed, Ids, Reset, SymbolMap, slot_of
from k4.md.portions import portions
from k4.md.wanted import kinds_of

ENDPOINTS: Mapping[str, str] = {
    "public": "wss://ws.okx.com:8443/ws/v5/public",
    "business": "wss://ws.okx.com:8443/ws/v5/business",
    "rest": "https://www.okx.com",
}

LIMITS = Limits(
    connect_attempts=3,  # a second and IP address
    connect_period=1.0,
    messages=480,  # subscribe and unsubscribe requests of a connection; pings are none
    messages_period=3600.0,
    pings_count=False,
    topics_per_connection=300,  # ours: the venue documents no cap for these channels
    request_bytes=64 << 10,  # all args of a request together
    idle_close=30.0,
)
KEEPALIVE = Keepalive(20.0, b"ping", idle_only=True)  # "less than 30 s"
REPEATS = 60.0
"""Seconds after which a book channel sends an unchanged snapshot again, under the same seqId."""

KINDS = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)
CHANNELS = {Kind.BOOKTICKER: "bbo-tbt", Kind.TRADE: "trades", Kind.DEPTH5: "books5"}
TRADES_ALL = "trades-all"
PRODUCT_TYPES = {"spot": ProductType.SPOT, "swap": ProductType.FUTURES}


def feeds(config: ConnectionConfig, symbols: SymbolMap) -> list[Feed]:
    """The feeds of one connection of the configuration.

    Raises ConfigError for an unknown product, kind or trades channel.
    """
    problems = [problem for product in config.products for problem in _problems(product)]
    if problems:
        raise ConfigError(problems)
    return [
        feed
        for product in config.products
        for endpoint, channels in _sockets(product).items()
        for feed in _feeds(config, product, symbols, endpoint, channels)
    ]


def _problems(product: ProductConfig) -> list[Problem]:
    found = []
    if product.name not in PRODUCT_TYPES:
        found.append(Problem(product.path, f"okx has no product {product.name!r}"))
    if product.trades_channel not in (CHANNELS[Kind.TRADE], TRADES_ALL):
        text = f"no channel {product.trades_channel!r}: use 'trades' or 'trades-all'"
        found.append(Problem(f"{product.path}.trades_channel", text))
    found += [
        Problem(product.path, f"okx has no {kind.label} channel")
        for kind in kinds_of(product)
        if kind not in CHANNELS
    ]
    return found


def _sockets(product: ProductConfig) -> dict[str, dict[Kind, str]]:
    """The venue's channel of each kind, by the endpoint that serves it."""
    sockets: dict[str, dict[Kind, str]] = {}
    for kind in kinds_of(product):
        all_fills = kind is Kind.TRADE and product.trades_channel == TRADES_ALL
        endpoint, channel = ("business", TRADES_ALL) if all_fills else ("public", CHANNELS[kind])
        sockets.setdefault(endpoint, {})[kind] = channel
    return sockets


def _feeds(
    config: ConnectionConfig,
    product: ProductConfig,
    symbols: SymbolMap,
    endpoint: str,
    wanted: Mapping[Kind, str],
) -> list[Feed]:
    ids = [symbols.get((product.name, symbol), symbol) for symbol in product.symbols]
    parts = portions([0] * len(ids), most=LIMITS.topics_per_connection // len(wanted))
    return [
        _feed(
            config,
            product,
            endpoint,
            tuple(
                _channel(index, kind, product.symbols[index], topic_of(name, ids[index]))
                for index in part
                for kind, name in wanted.items()
            ),
            number,
        )
        for number, part in enumerate(parts, 1)
    ]


def _feed(
    config: ConnectionConfig,
    product: ProductConfig,
    endpoint: str,
    channels: tuple[Channel, ...],
    number: int,
) -> Feed:
    group = f"{config.exchange}.{product.name}"
    return Feed(
        name=f"{group}.{endpoint}" + (f".{number}" if number > 1 else ""),
        group=group,
        product_type=PRODUCT_TYPES[product.name],
        urls=tuple(config.endpoints.get(endpoint) or (ENDPOINTS[endpoint],)),
        channels=channels,
        requests=requests,
        acks=len(channels),  # one for each arg
        session=lambda: OkxSession(channels),
        limits=LIMITS,
        lines=product.lines,
        headers=product.headers,
        keepalive=KEEPALIVE,
    )


def _channel(index: int, kind: Kind, symbol: str, topic: str) -> Channel:
    book = kind is not Kind.TRADE
    return Channel(
        slot=slot_of(index, kind),
        kind=kind,
        symbol=symbol,
        topic=topic,
        ids=Ids.NEWEST if book else Ids.SUSPECTED,
        reset=Reset.NEWER_TIME,
        owes_snapshot=book,
        repeats=REPEATS if book else 0.0,
    )


def requests(op: str, channels: Sequence[Channel]) -> tuple[bytes, ...]:
    """Requests for `Feed.requests`, each with as many args as the venue takes."""
    args = [
        msgspec.json.encode({"channel": name, "instId": inst_id})
        for name, _, inst_id in (channel.topic.partition(":") for channel in channels)
    ]
    brackets = 2
    batches = portions(list(map(len, args)), room=LIMITS.request_bytes - brackets)
    return tuple(
        b'{"id":"%d","op":"%s","args":[%s]}'
        % (id, op.encode(), b",".join(args[batch.start : batch.stop]))
        for id, batch in enumerate(batches, 1)
    )
