"""The seam: what an exchange is to K4. This docstring is its specification.

An exchange is a value (`Exchange`) that turns a connection's configuration into feeds. A `Feed` is
what one set of interchangeable lines carries: an endpoint, a list of channels, the requests that
subscribe them, and a factory of sessions. A `Session` is the sans-I/O state of one connection:
frames in, values out into a `Sink`. The life of a connection, arbitration, stores and counters are
written once, elsewhere.

Rules for a session:

- One is made for every connection and dropped with it; nothing leaks from one socket into the next.
- `receive` never raises and never blocks. What it cannot read it gives to `Sink.drop` with a short
  reason.
- It calls the sink synchronously, in the order of the venue (oldest first within a batch).
- Prices and volumes are floats in the venue's own unit, times microseconds, ids integers; what the
  venue does not send is 0.
- Symbols are looked up in the table the feed gave it (venue's spelling to slot); what is not
  subscribed is dropped as `symbol`.

A slot is `symbol's position in the group's symbol list << 2 | kind`; see `slot_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

import msgspec

from k4.core.config import ConnectionConfig, Secret
from k4.core.enums import Kind, ProductType
from k4.core.limits import Keepalive, Limits

Level = Sequence[float]  # price, volume, and anything more that the venue sends

NO_COUNTS = (0, 0, 0, 0, 0)


def slot_of(symbol_index: int, kind: Kind) -> int:
    """The slot of (symbol, kind) in its group."""
    return symbol_index << 2 | kind


# -- control events: what a connection says about itself ------------------------------------------


class Ack(msgspec.Struct, frozen=True):
    """A subscribe request (`request`) or one topic of it (`topic`) was accepted."""

    request: str = ""
    topic: str = ""


class Refused(msgspec.Struct, frozen=True):
    """The venue refused a request or a topic. `code` and `text` are the venue's own.

    alone: slots that were refused for the company of others, as far as is known: each is to be
    subscribed again by a request of its own.
    """

    code: str
    text: str
    request: str = ""
    topic: str = ""
    alone: tuple[int, ...] = ()


class Notice(msgspec.Struct, frozen=True):
    """The venue will close this connection soon: replace the line."""

    text: str


class Heartbeat(msgspec.Struct, frozen=True):
    """The venue's answer to an application-level ping, or a heartbeat of its own."""


class Broken(msgspec.Struct, frozen=True):
    """The book of a slot lost its continuity and is invalid until it is resubscribed."""

    slot: int
    text: str


Control = Ack | Refused | Notice | Heartbeat | Broken


class Sink(Protocol):
    """Where a session puts what it found. Times in microseconds."""

    def bbo(
        self,
        slot: int,
        id: int,
        event_us: int,
        trade_us: int,
        bid: float,
        bid_vol: float,
        ask: float,
        ask_vol: float,
        bid_count: int,
        ask_count: int,
    ) -> None:
        """A best bid and offer; an empty side is price 0, volume 0."""
        ...

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
        """A trade. `first_id` is the first id it covers, `id` itself where it covers one. `key`:
        what the venue calls the trade, hashable, where `id` is only a hash of that.
        """
        ...

    def agg(
        self,
        slot: int,
        id: int,
        first_id: int,
        last_id: int,
        event_us: int,
        trade_us: int,
        price: float,
        vol: float,
        is_buyer_maker: bool,
    ) -> None:
        """An aggregated trade; the ids of its first and last trade, both included."""
        ...

    def depth(
        self,
        slot: int,
        id: int,
        event_us: int,
        trade_us: int,
        bids: Sequence[Level],
        asks: Sequence[Level],
        bid_counts: Sequence[int] = NO_COUNTS,
        ask_counts: Sequence[int] = NO_COUNTS,
    ) -> None:
        """The top of a book, best first; the first five levels a side are used. Counts: five
        each.
        """
        ...

    def skip(self, slot: int, id: int) -> None:
        """An id that exists at the venue and yields no record (USD-M `NA` trades)."""
        ...

    def seed(self, slot: int, id: int) -> None:
        """A trade id of a history snapshot: if this line repeats it as live, it is a duplicate."""
        ...

    def control(self, event: Control) -> None:
        """What the connection says about itself."""
        ...

    def drop(self, reason: str) -> None:
        """A frame, or an element of one, that is not usable; counted by reason, never fatal."""
        ...


class Session(Protocol):
    """Sans-I/O state of one connection."""

    def receive(self, frame: bytes, received_ns: int, out: Sink) -> None:
        """One whole message, text or binary."""
        ...


# -- what a feed says about itself: data, not hooks -----------------------------------------------


class Ids(Enum):
    """What the ids of a channel prove (promise P2)."""

    NEWEST = "newest"  # quotes and books: strictly increasing with jumps; the newest wins
    NEWEST_CONSECUTIVE = "newest-consecutive"  # Bybit orderbook.50: a jump is a gap
    CONSECUTIVE = "consecutive"  # Binance trades and aggTrades: a jump is a gap
    SUSPECTED = "suspected"  # OKX, Bybit spot trades: consecutive in practice, a jump is suspected
    RISING = "rising"  # Bitget trades: ordered, not consecutive
    UNORDERED = "unordered"  # Bybit linear and inverse trades: hashes of UUIDs


class Reset(Enum):
    """What proves a sequence reset (promise P5)."""

    SILENCE = "silence"  # Binance: two seconds without progress, own ids dropped and rising
    NEWER_TIME = "newer-time"  # OKX, Bitget: a smaller id, newer by more than two seconds
    ONE = "one"  # Bybit: id 1 with a newer time, or a smaller one newer by more than two seconds


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """One subscription: one (kind, symbol) on one feed.

    slot: see `slot_of`. symbol: as configured. topic: the venue's name of it, as acks and refusals
    give it. owes_snapshot: data must follow the ack at once. repeats: seconds after which the
    venue repeats an unchanged state, 0 if it never does (promise P4).
    """

    slot: int
    kind: Kind
    symbol: str
    topic: str
    ids: Ids
    reset: Reset
    owes_snapshot: bool = False
    repeats: float = 0.0


Requests = Callable[[str, Sequence[Channel]], tuple[bytes, ...]]
"""(`subscribe` or `unsubscribe`, channels) to the messages that ask the venue for it."""


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """One set of interchangeable lines.

    name: `venue.product.feed[.shard]`. group: `venue.product`; all feeds of a group write the same
    stores. product_type: as records have it. urls: lines are spread over them; lines: how many.
    channels: what each of them carries. requests(op, channels): the venue's messages that
    `subscribe` or `unsubscribe` these channels, each within the limits. acks: how many `Ack` make
    the line subscribed. session: makes the state of one connection. limits: of one connection, but
    for the attempts, which are the host's. keepalive: what has to be sent unasked, None for
    nothing. stateful: the session must see every frame (it builds books), so no duplicate may be
    cut off before it. head: bytes at the beginning of a message that tell an update from every
    other, its repeats included; None where only the whole message does. headers: of the handshake;
    a secret is revealed where they are sent, nowhere else. fallback: the feed to use instead when
    the handshake of this one is refused.
    """

    name: str
    group: str
    product_type: ProductType
    urls: tuple[str, ...]
    channels: tuple[Channel, ...]
    requests: Requests
    acks: int
    session: Callable[[], Session]
    limits: Limits
    lines: int = 1
    headers: Mapping[str, str | Secret] = {}
    keepalive: Keepalive | None = None
    stateful: bool = False
    head: int | None = None
    fallback: Feed | None = None

    @property
    def hello(self) -> tuple[bytes, ...]:
        """The requests that subscribe everything."""
        return self.requests("subscribe", self.channels)


class Instrument(msgspec.Struct, frozen=True, kw_only=True):
    """What a venue's metadata says about one symbol. Figures as the venue's decimal text, ''
    unknown.

    symbol: K4's spelling (`BTCUSDT`). venue_symbol: the venue's id (`BTC-USDT-SWAP`).
    """

    symbol: str
    venue_symbol: str
    tick: str = ""
    lot: str = ""
    contract_value: str = ""


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """Where a product's instruments are listed: `path` below the `rest` endpoint, and its parser.

    parse(body): the instruments on this page and the path of the next page ('' when it was the
    last).
    """

    path: str
    parse: Callable[[bytes], tuple[list[Instrument], str]]


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """One product of an exchange.

    name: as in stream names and in `k4.md.connect` (`spot`, `ubase`, `swap`, `linear` …).
    product_type: as records have it. kinds: the record kinds that it can deliver. rule: documented
    mapping of a configured symbol to the venue's id, used where no metadata is at hand. metadata:
    where instruments are listed, None where the venue has no such list.
    """

    name: str
    product_type: ProductType
    kinds: tuple[Kind, ...]
    rule: Callable[[str], str]
    metadata: Metadata | None = None


SymbolMap = Mapping[tuple[str, str], str]
"""(product, configured symbol) to the venue's symbol."""


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """What the entry point `k4.md.exchanges` names.

    name: as in the configuration and in the entry point. code: the venue byte of UDP channels.
    endpoints: default URL by the configuration's key, `rest` included (`rest.PRODUCT` where a
    product's list is elsewhere). limits: how many connection attempts a host of the venue allows.
    feeds(config, symbols): the feeds of one connection of the configuration. `config.endpoints`
    holds overrides only; merge them over `endpoints`. Raises ConfigError for what the venue cannot
    do.
    """

    name: str
    code: int
    products: tuple[Product, ...]
    endpoints: Mapping[str, str]
    limits: Limits
    feeds: Callable[[ConnectionConfig, SymbolMap], list[Feed]]

    def product(self, name: str) -> Product:
        return next(p for p in self.products if p.name == name)
