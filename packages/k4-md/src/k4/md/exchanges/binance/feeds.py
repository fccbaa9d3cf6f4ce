"""Which connections a Binance configuration needs: endpoints, channels, limits, requests.

    binance.spot.json       /stream            every kind, or what SBE lacks (aggTrade)
    binance.spot.sbe        stream-sbe         bestBidAsk, trade, depth20
    binance.spot.fallback   /stream            what SBE carried, when its handshake is refused
    binance.ubase.public    /public/stream     bookTicker, trade, depth5@100ms
    binance.ubase.market    /market/stream     aggTrade, which /public acks and never sends
    binance.cbase.json      dstream /stream    every kind

Each is cut into shards `.2`, `.3` … where a connection may not carry all its streams; the streams
of a symbol stay on one connection, so that they can witness for each other. Sources:
`web-socket-streams.md`, `sbe-market-data-streams.md`, the USD-M notice of 2026-03-06.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from k4.core.config import ConnectionConfig, ProductConfig, Secret
from k4.core.enums import Kind, ProductType
from k4.core.errors import ConfigError, Problem
from k4.core.limits import Limits
from k4.md.exchanges.binance.control import Requests
from k4.md.exchanges.binance.json import JsonSession
from k4.md.exchanges.binance.sbe import HEAD, SbeSession
from k4.md.feed import Channel, Feed, Ids, Reset, Session, SymbolMap, slot_of
from k4.md.wanted import kinds_of

API_KEY = "X-MBX-APIKEY"

ENDPOINTS: Mapping[str, str] = {
    "spot": "wss://stream.binance.com:9443/stream",
    "spot_sbe": "wss://stream-sbe.binance.com:9443/stream",
    "ubase_public": "wss://fstream.binance.com/public/stream",
    "ubase_market": "wss://fstream.binance.com/market/stream",
    "cbase": "wss://dstream.binance.com/stream",
    "rest": "https://api.binance.com",
    "rest.ubase": "https://fapi.binance.com",
    "rest.cbase": "https://dapi.binance.com",
}

DAY = 86_400.0
TOPICS_PER_REQUEST = 200  # ours: keeps a SUBSCRIBE of a full connection within a few KiB

SPOT_LIMITS = Limits(
    messages=5,
    topics_per_connection=1024,
    topics_per_request=TOPICS_PER_REQUEST,
    server_ping=20.0,
    pong_deadline=60.0,
    max_life=DAY,
)
FUTURES_LIMITS = Limits(  # attempts are not documented there: the spot figure
    messages=10,
    topics_per_connection=1024,
    topics_per_request=TOPICS_PER_REQUEST,
    server_ping=180.0,
    pong_deadline=600.0,
    max_life=DAY,
)

JSON_STREAMS = {
    Kind.BOOKTICKER: "bookTicker",
    Kind.TRADE: "trade",
    Kind.AGGTRADE: "aggTrade",
    Kind.DEPTH5: "depth5@100ms",
}
SBE_STREAMS = {Kind.BOOKTICKER: "bestBidAsk", Kind.TRADE: "trade", Kind.DEPTH5: "depth20"}

_IDS = {
    Kind.BOOKTICKER: Ids.NEWEST,
    Kind.TRADE: Ids.CONSECUTIVE,
    Kind.AGGTRADE: Ids.CONSECUTIVE,
    Kind.DEPTH5: Ids.NEWEST,
}


class Socket(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of Binance connection. name: the `feed` of stream names. endpoint: its key."""

    name: str
    product_type: ProductType
    endpoint: str
    streams: Mapping[Kind, str]
    limits: Limits

    @property
    def sbe(self) -> bool:
        return self.streams is SBE_STREAMS


def _json_streams(*kinds: Kind) -> dict[Kind, str]:
    return {kind: JSON_STREAMS[kind] for kind in kinds}


SPOT_JSON = Socket(
    name="json",
    product_type=ProductType.SPOT,
    endpoint="spot",
    streams=JSON_STREAMS,
    limits=SPOT_LIMITS,
)
SPOT_SBE = Socket(
    name="sbe",
    product_type=ProductType.SPOT,
    endpoint="spot_sbe",
    streams=SBE_STREAMS,
    limits=SPOT_LIMITS,
)
SPOT_AGG = msgspec.structs.replace(SPOT_JSON, streams=_json_streams(Kind.AGGTRADE))
SPOT_FALLBACK = msgspec.structs.replace(
    SPOT_JSON, name="fallback", streams=_json_streams(*SBE_STREAMS)
)
UBASE_PUBLIC = Socket(
    name="public",
    product_type=ProductType.U_MARGIN,
    endpoint="ubase_public",
    streams=_json_streams(Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5),
    limits=FUTURES_LIMITS,
)
UBASE_MARKET = Socket(
    name="market",
    product_type=ProductType.U_MARGIN,
    endpoint="ubase_market",
    streams=_json_streams(Kind.AGGTRADE),
    limits=FUTURES_LIMITS,
)
CBASE = Socket(
    name="json",
    product_type=ProductType.COIN_MARGIN,
    endpoint="cbase",
    streams=JSON_STREAMS,
    limits=FUTURES_LIMITS,
)


def feeds(config: ConnectionConfig, symbols: SymbolMap) -> list[Feed]:
    """The feeds of one connection of the configuration.

    Raises ConfigError for an unknown product, and for SBE from Binance itself without a key.
    """
    made: list[Feed] = []
    problems: list[Problem] = []
    for product in config.products:
        try:
            sockets = _sockets(product, "spot_sbe" in config.endpoints)
        except ConfigError as error:
            problems += error.problems
            continue
        for socket, stand_in in sockets:
            build = _Builder(config, product, symbols)
            fallbacks = build.feeds(stand_in) if stand_in is not None else []
            made += build.feeds(socket, fallbacks)
    if problems:
        raise ConfigError(problems)
    return made


def _sockets(product: ProductConfig, own_sbe_endpoint: bool) -> list[tuple[Socket, Socket | None]]:
    """The sockets of a product, each with its stand-in where it has one."""
    if product.name == "ubase":
        return [(UBASE_PUBLIC, None), (UBASE_MARKET, None)]
    if product.name == "cbase":
        return [(CBASE, None)]
    if product.name != "spot":
        raise ConfigError([Problem(product.path, f"binance has no product {product.name!r}")])
    has_key = any(name.upper() == API_KEY for name in product.headers)
    if product.feed in ("sbe", "both") and not (has_key or own_sbe_endpoint):
        message = f"feed {product.feed!r} needs an Ed25519 key in extra_headers, {API_KEY!r}"
        raise ConfigError([Problem(f"{product.path}.feed", message)])
    if product.feed == "both":
        return [(SPOT_SBE, None), (SPOT_JSON, None)]
    if product.feed == "sbe":
        return [(SPOT_SBE, None), (SPOT_AGG, None)]
    if product.feed == "auto" and has_key:
        return [(SPOT_SBE, SPOT_FALLBACK), (SPOT_AGG, None)]
    return [(SPOT_JSON, None)]


class _Builder:
    """Feeds of one product of one connection."""

    def __init__(
        self, config: ConnectionConfig, product: ProductConfig, symbols: SymbolMap
    ) -> None:
        self.config = config
        self.product = product
        self.group = f"{config.exchange}.{product.name}"
        self.wanted = kinds_of(product)
        self.venue = [symbols.get((product.name, s), s) for s in product.symbols]

    def feeds(self, socket: Socket, fallbacks: Sequence[Feed] = ()) -> list[Feed]:
        """The shards of one socket; none where none of its kinds is wanted."""
        kinds = [kind for kind in self.wanted if kind in socket.streams]
        if not kinds:
            return []
        shards = balanced(len(self.venue), socket.limits.topics_per_connection // len(kinds))
        return [
            self._feed(socket, kinds, shard, number, fallbacks)
            for number, shard in enumerate(shards, 1)
        ]

    def _feed(
        self,
        socket: Socket,
        kinds: Sequence[Kind],
        shard: range,
        number: int,
        fallbacks: Sequence[Feed],
    ) -> Feed:
        urls = self.config.endpoints.get(socket.endpoint) or (ENDPOINTS[socket.endpoint],)
        channels = tuple(
            self._channel(index, kind, socket.streams[kind]) for index in shard for kind in kinds
        )
        raw = any(is_raw(url) for url in urls) and not socket.sbe
        set_combined = raw and Kind.DEPTH5 in kinds
        per_request = socket.limits.topics_per_request
        requests = Requests(channels, per_request, set_combined=set_combined)
        return Feed(
            name=f"{self.group}.{socket.name}" + (f".{number}" if number > 1 else ""),
            group=self.group,
            product_type=socket.product_type,
            urls=tuple(urls),
            channels=channels,
            requests=requests,
            acks=len(requests("subscribe", channels)),
            session=self._session(socket, channels, requests, combined=not raw or set_combined),
            limits=socket.limits,
            lines=self.product.lines,
            headers=_headers(self.product.headers, key=socket.sbe),
            fallback=fallbacks[number - 1] if fallbacks else None,
            head=HEAD if socket.sbe else None,
        )

    def _channel(self, index: int, kind: Kind, stream: str) -> Channel:
        return Channel(
            slot=slot_of(index, kind),
            kind=kind,
            symbol=self.product.symbols[index],
            topic=f"{self.venue[index].lower()}@{stream}",
            ids=_IDS[kind],
            reset=Reset.SILENCE,
        )

    def _session(
        self, socket: Socket, channels: Sequence[Channel], requests: Requests, *, combined: bool
    ) -> Callable[[], Session]:
        symbols = {c.slot: self.venue[c.slot >> 2] for c in channels}
        if socket.sbe:
            return lambda: SbeSession(channels, symbols, requests)
        spot = socket.product_type is ProductType.SPOT
        return lambda: JsonSession(channels, symbols, requests, spot=spot, combined=combined)


def balanced(count: int, most: int) -> list[range]:
    """0 to `count` in as few ranges of at most `most` as possible, of nearly equal lengths."""
    shards = -(-count // most)
    return [range(count * i // shards, count * (i + 1) // shards) for i in range(shards)]


def is_raw(url: str) -> bool:
    """Whether the path of a Binance URL asks for bare payloads (`/ws`)."""
    return "ws" in urlsplit(url).path.split("/")


def _headers(headers: Mapping[str, str | Secret], *, key: bool) -> dict[str, str | Secret]:
    """What a handshake sends; the key goes to SBE alone, no other endpoint asks for it."""
    return {name: text for name, text in headers.items() if key or name.upper() != API_KEY}
