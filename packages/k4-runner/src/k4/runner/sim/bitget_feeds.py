"""What the simulated Bitget makes of market events: pushes of the classic v2 channels, to the
letter.

Key order, number text and fields follow captured frames of 2026-08 and 2026-09 (see `bitget.py`).
`books1` and `books5` show whole books at their cadence and repeat themselves now and then; `trade`
begins with what happened last, newest first, as every batch is. A maintenance lets `seq` begin
anew; trade ids, which are made of time, go on.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from k4.core.enums import Kind
from k4.core.errors import ConfigError, Problem
from k4.md.exchanges.bitget import EXCHANGE
from k4.md.exchanges.bitget.feeds import MARKETS
from k4.md.exchanges.bitget.session import CHANNELS, SNAPSHOT, UPDATE, topic_of
from k4.runner.sim import ws
from k4.runner.sim.client import Client
from k4.runner.sim.ledger import SeriesKey
from k4.runner.sim.market import Fill, Instrument, InstrumentSpec, Level, MarketEvent, figures
from k4.runner.sim.okx_feeds import decimal_text
from k4.runner.sim.shown import Shown
from k4.runner.sim.venue import Hub, Topic

FAST = frozenset(["BTC", "ETH", "XRP", "SOL", "SUI", "DOGE", "ADA", "PEPE", "LINK", "HBAR"])
QUOTES_FAST, QUOTES_EVERY = 0.02, 0.06
BOOKS_EVERY = {"spot": 0.2}
FUTURES_BOOKS_EVERY = 0.15
REPEAT_LOOKS = 10  # an unchanged book is sent again at every tenth look
LEVELS = 5
HISTORY = 50  # trades of the first message; how many the venue sends is not known
SEQ_OFFSET = {"coin_futures": 1_483_653_649_791_156_272}  # beyond 2**53
_FIRST_TRADE = 1_471_423_022_176_681_984
_QUOTE_COINS = ("USDT", "USDC", "EUR", "BTC", "ETH", "USD")


def spec_of(product: str, symbol: str) -> InstrumentSpec:
    """An instrument of a product with figures like the venue's; `symbol` in K4's spelling or the
    venue's. Raises ConfigError for an unknown product.
    """
    if product not in MARKETS:
        text = f"Bitget has no product {product!r} (there are: {', '.join(MARKETS)})"
        raise ConfigError([Problem(f"venues.bitget.products.{product}", text)])
    venue_symbol = EXCHANGE.product(product).rule(symbol)
    base, quote = _split(venue_symbol)
    price, decimals, lots, size = figures(base)
    spot = product == "spot"
    return InstrumentSpec(
        symbol=venue_symbol,
        product=product,
        mid=round(price * 10**decimals),
        tick=10 if base == "BTC" and not spot else 1,
        price_scale=decimals,
        size_scale=lots if spot else min(lots, 4),
        size=size if spot else 20_000,
        update_jump=40,
        base=base,
        quote=quote,
    )


def _split(symbol: str) -> tuple[str, str]:
    if symbol.endswith("PERP"):
        return symbol.removesuffix("PERP"), "USDC"
    for quote in _QUOTE_COINS:
        if symbol.endswith(quote) and symbol != quote:
            return symbol.removesuffix(quote), quote
    base = symbol.partition("USD")[0]  # a dated contract, BTCUSDZ24
    return (base, "USD") if base and base != symbol else (symbol, "")


class Desk:
    """One instrument on the venue: its topics by name, its ledger series and its frames.

    symbol: as the specification writes it, which is how the ledger names it.
    """

    def __init__(self, hub: Hub, instrument: Instrument, symbol: str) -> None:
        self.instrument = instrument
        self.hub = hub
        self.topics: dict[str, Topic] = {}
        spec = instrument.spec
        self.symbol = spec.symbol
        self._inst_type = MARKETS[spec.product].inst_type
        self._price = decimal_text(spec.price_scale)
        self._size = decimal_text(spec.size_scale)
        self._recent: deque[str] = deque(maxlen=HISTORY)  # newest first
        self._trade_id = _FIRST_TRADE + zlib.crc32(f"{spec.product}/{spec.symbol}".encode())
        quotes, self._trades, books = (
            self._topic(kind, symbol) for kind in (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)
        )
        self._books = {
            quotes.name: BookChannel(self, quotes, 1),
            books.name: BookChannel(self, books, LEVELS),
        }
        fast = spec.product != "spot" and spec.base in FAST
        hub.every(QUOTES_FAST if fast else QUOTES_EVERY, self._books[quotes.name].look)
        every = BOOKS_EVERY.get(spec.product, FUTURES_BOOKS_EVERY)
        hub.every(every, self._books[books.name].look)

    def _topic(self, kind: Kind, symbol: str) -> Topic:
        spec = self.instrument.spec
        key = SeriesKey("bitget", spec.product, symbol, kind)
        series = self.hub.ledger.series(key, spec.price_scale, spec.size_scale)
        name = topic_of(self._inst_type, CHANNELS[kind], spec.symbol)
        topic = Topic(name, spec.product, symbol, kind, series)
        self.topics[topic.name] = topic
        return topic

    def seq(self, generation: int) -> int:
        """The book's sequence number, one for all channels."""
        return self.instrument.last_update + SEQ_OFFSET.get(self.instrument.spec.product, 0)

    def greet(self, client: Client, topic: Topic) -> None:
        """What a new subscriber is owed: the book as it is, or the history of trades, which is no
        delivery of them.
        """
        if topic.name in self._books:
            self._books[topic.name].greet(client)
        else:
            now_ms = self.hub.clock.time_ns() // 1_000_000
            client.send_text(self._text(topic, SNAPSHOT, self._recent, now_ms))

    # -- trades -----------------------------------------------------------------------------------

    def event(self, event: MarketEvent) -> None:
        """The trades of one event, newest first. Books are looked at by their channels."""
        if not event.fills:
            return
        topic, ts = self._trades, event.event_us // 1000
        ms = event.engine_us // 1000
        rows, items = [], []
        for fill in event.fills:
            id = self._next_id(fill)
            maker = event.buyer_is_maker
            times = (ts * 1000, ms * 1000)
            rows.append(topic.series.add(0, id, *times, id, fill.price, fill.size, maker, 0))
            items.append(
                f'{{"ts":"{ms}","price":"{self._price(fill.price)}"'
                f',"size":"{self._size(fill.size)}","side":"{"sell" if maker else "buy"}"'
                f',"tradeId":"{id}"}}'
            )
        self._recent.extendleft(items)
        if topic.audience:
            frame = ws.encode(ws.TEXT, self._text(topic, UPDATE, items[::-1], ts))
            for clients in topic.audience.values():
                self.hub.publish(topic, clients, frame, rows[0], len(rows))

    def _next_id(self, fill: Fill) -> int:
        """Rising, with jumps that follow from the trade alone."""
        self._trade_id += 1 + (fill.id * 7919 + fill.price) % 4_999_999
        return self._trade_id

    # -- frames -----------------------------------------------------------------------------------

    def _text(self, topic: Topic, action: str, data: Sequence[str], ts: int) -> bytes:
        channel = topic.name.split(":")[1]
        return (
            f'{{"action":"{action}","arg":{{"instType":"{self._inst_type}"'
            f',"channel":"{channel}","instId":"{self.symbol}"}},"data":[{",".join(data)}]'
            f',"ts":{ts}}}'
        ).encode()

    def book(self, topic: Topic, shown: Shown) -> bytes:
        """One encoded frame of a whole book."""
        view = shown.view
        data = (
            f'{{"asks":{self._levels(view.asks)},"bids":{self._levels(view.bids)}'
            f',"ts":"{view.engine_ms}","seq":{view.number},"pseq":0}}'
        )
        return ws.encode(ws.TEXT, self._text(topic, SNAPSHOT, (data,), view.event_ms))

    def _levels(self, side: Sequence[Level]) -> str:
        items = (f'["{self._price(price)}","{self._size(size)}"]' for price, size in side)
        return f"[{','.join(items)}]"

    def listing(self) -> dict[str, Any]:
        """This instrument in the venue's list, with the fields that clients read."""
        spec = self.instrument.spec
        common = {"symbol": spec.symbol, "baseCoin": spec.base, "quoteCoin": spec.quote}
        if spec.product == "spot":
            return common | {
                "pricePrecision": str(spec.price_scale),
                "quantityPrecision": str(spec.size_scale),
                "status": "online",
            }
        dated = spec.symbol[-1:].isdigit()
        return common | {
            "pricePlace": str(spec.price_scale),
            "priceEndStep": str(spec.tick),
            "volumePlace": str(spec.size_scale),
            "sizeMultiplier": self._size(spec.lot),
            "minTradeNum": self._size(spec.lot),
            "symbolType": "delivery" if dated else "perpetual",
            "symbolStatus": "normal",
        }


class BookChannel:
    """books1 or books5: pushed when what it shows changed, and at times when it did not."""

    def __init__(self, desk: Desk, topic: Topic, levels: int) -> None:
        self._desk = desk
        self._topic = topic
        clock = desk.hub.clock
        self._shown = Shown(desk.instrument, topic.series, levels, clock, desk.seq)
        self._looks = 0
        self._frame = b""

    def look(self) -> None:
        """At the channel's cadence."""
        if not self._topic.audience:
            return
        self._looks += 1
        if self._advance() or self._looks % REPEAT_LOOKS == 0:
            for clients in list(self._topic.audience.values()):
                self._desk.hub.publish(self._topic, clients, self._frame, self._shown.row)

    def greet(self, client: Client) -> None:
        """Send the state pushed last; a fresh one where nobody else has any."""
        if all(other is client for others in self._topic.audience.values() for other in others):
            self._advance()
        self._desk.hub.send(self._topic, client, self._frame, self._shown.row)

    def _advance(self) -> bool:
        changed = self._shown.advance()
        if changed:
            self._frame = self._desk.book(self._topic, self._shown)
        return changed
