"""What the simulated Bybit makes of market events: pushes of the v5 public topics, to the letter.

Key order, number text and fields follow captured frames of 2026-03 to 2026-08 and the note on key
order of 2026-03 (see `bybit.py`). `u` counts the pushes of one topic; a restart of the service sets
it to 1 and sends the whole book. Trade ids go on over a restart: nothing documents the contrary.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from xxhash import xxh64_intdigest

from k4.core.enums import Kind
from k4.core.errors import ConfigError, Problem
from k4.md.exchanges.bybit import EXCHANGE
from k4.md.exchanges.bybit.feeds import PRODUCT_TYPES, REPEATS
from k4.md.exchanges.bybit.session import LEVELS, topic_of
from k4.runner.sim import binance_feeds, okx_feeds, ws
from k4.runner.sim.client import Client
from k4.runner.sim.ledger import SeriesKey
from k4.runner.sim.market import Fill, Instrument, InstrumentSpec, Level, MarketEvent, figures
from k4.runner.sim.shown import Shown, Side
from k4.runner.sim.venue import Hub, Topic

QUOTES_EVERY = 0.01
BOOKS_EVERY = 0.02
MOST_TRADES = 1024  # of one message; a larger burst is several, of one seq
MOST_CHANGES = 100  # of one delta; more of them are sent as a snapshot
_FIRST_SPOT_ID = 2_290_000_001_190_000_000
_QUOTE_COINS = ("USDT", "USDC", "EUR", "BTC", "ETH", "USD")
_FORM = 0


def spec_of(product: str, symbol: str) -> InstrumentSpec:
    """An instrument of a product with figures like the venue's; `symbol` in K4's spelling or the
    venue's. Raises ConfigError for an unknown product.
    """
    if product not in PRODUCT_TYPES:
        text = f"Bybit has no product {product!r} (there are: {', '.join(PRODUCT_TYPES)})"
        raise ConfigError([Problem(f"venues.bybit.products.{product}", text)])
    venue_symbol = EXCHANGE.product(product).rule(symbol)
    base, quote = _split(venue_symbol)
    price, decimals, lots, size = figures(base)
    scale, typical = {
        "spot": (lots, size),
        "linear": (3, 2_000),
        "inverse": (0, 3_000),  # contracts of a dollar
    }[product]
    return InstrumentSpec(
        symbol=venue_symbol,
        product=product,
        mid=round(price * 10**decimals),
        tick=10 if base == "BTC" else 1,
        price_scale=decimals,
        size_scale=scale,
        size=typical,
        update_jump=40,
        special=0.0 if product == "spot" else 0.03,
        base=base,
        quote=quote,
    )


def _split(symbol: str) -> tuple[str, str]:
    pair = symbol.partition("-")[0]
    if pair.endswith("PERP"):
        return pair.removesuffix("PERP"), "USDC"
    for quote in _QUOTE_COINS:
        if pair.endswith(quote) and pair != quote:
            return pair.removesuffix(quote), quote
    return pair, ""


class Desk:
    """One instrument on the venue: its topics by name, its ledger series and its frames.

    symbol: as the specification writes it, which is how the ledger names it.
    """

    def __init__(self, hub: Hub, instrument: Instrument, symbol: str, repeat_scale: float) -> None:
        self.instrument = instrument
        self.hub = hub
        self.topics: dict[str, Topic] = {}
        spec = instrument.spec
        self.symbol = spec.symbol
        self.spot = spec.product == "spot"
        decimals = okx_feeds.decimal_text if self.spot else _padded
        self._price = decimals(spec.price_scale)
        self._size = decimals(spec.size_scale)
        self._tick_price = 0
        self._tick = "ZeroPlusTick"
        self._deals = 0
        self._names = uuid.UUID(int=zlib.crc32(f"{spec.product}/{spec.symbol}".encode()))
        quotes, self._trades, books = (
            self._topic(kind, symbol) for kind in (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)
        )
        self._books = {
            quotes.name: BookChannel(self, quotes, 1, REPEATS / repeat_scale),
            books.name: BookChannel(self, books, LEVELS, 0.0),
        }
        hub.every(QUOTES_EVERY, self._books[quotes.name].look)
        hub.every(BOOKS_EVERY, self._books[books.name].look)

    def _topic(self, kind: Kind, symbol: str) -> Topic:
        spec = self.instrument.spec
        key = SeriesKey("bybit", spec.product, symbol, kind)
        series = self.hub.ledger.series(key, spec.price_scale, spec.size_scale)
        topic = Topic(topic_of(kind, spec.symbol), spec.product, symbol, kind, series)
        self.topics[topic.name] = topic
        return topic

    def greet(self, client: Client, topic: Topic) -> None:
        """What a new subscriber is owed: the book as it was pushed last; trades begin later."""
        if topic.name in self._books:
            self._books[topic.name].greet(client)

    # -- trades -----------------------------------------------------------------------------------

    def event(self, event: MarketEvent) -> None:
        """The trades of one event. Books are looked at by their channels."""
        fills, at = event.fills, self._trades
        for start in range(0, len(fills), MOST_TRADES):
            self._send_trades(at, event, fills[start : start + MOST_TRADES])

    def _send_trades(self, topic: Topic, event: MarketEvent, fills: Sequence[Fill]) -> None:
        ms, ts = event.engine_us // 1000, event.event_us // 1000
        names = [self._name() for _ in fills]
        rows = [
            topic.series.add(
                0, id, ts * 1000, ms * 1000, id, fill.price, fill.size, event.buyer_is_maker, 0
            )
            for (_, id), fill in zip(names, fills, strict=True)
        ]
        items = [
            self._item(event, ms, name, fill) for (name, _), fill in zip(names, fills, strict=True)
        ]
        if topic.audience:
            frame = self.frame(topic, "snapshot", ts, f"[{','.join(items)}]")
            for clients in topic.audience.values():
                self.hub.publish(topic, clients, frame, rows[0], len(rows))

    def _name(self) -> tuple[str, int]:
        """(the venue's name, K4's id) of the next trade."""
        self._deals += 1
        if self.spot:
            number = _FIRST_SPOT_ID + self._deals
            return str(number), number
        name = str(uuid.uuid5(self._names, str(self._deals)))
        return name, xxh64_intdigest(name.encode())

    def _item(self, event: MarketEvent, ms: int, name: str, fill: Fill) -> str:
        side = "Sell" if event.buyer_is_maker else "Buy"
        price, size = self._price(fill.price), self._size(fill.size)
        rpi = "true" if event.kind == "RPI" else "false"
        if self.spot:
            return (
                f'{{"i":"{name}","T":{ms},"p":"{price}","v":"{size}","S":"{side}"'
                f',"seq":{event.last_update},"s":"{self.symbol}","BT":false,"RPI":{rpi}}}'
            )
        return (
            f'{{"T":{ms},"s":"{self.symbol}","S":"{side}","v":"{size}","p":"{price}"'
            f',"L":"{self._direction(fill.price)}","i":"{name}","BT":false,"RPI":{rpi}'
            f',"seq":{event.last_update}}}'
        )

    def _direction(self, price: int) -> str:
        if price != self._tick_price:
            self._tick = "PlusTick" if price > self._tick_price else "MinusTick"
        elif not self._tick.startswith("Zero"):
            self._tick = f"Zero{self._tick}"
        self._tick_price = price
        return self._tick

    # -- frames -----------------------------------------------------------------------------------

    def frame(self, topic: Topic, type: str, ts: int, data: str, cts: int = 0) -> bytes:
        """One encoded push, its keys in the order of the category."""
        ts_first = self.spot or topic.kind is Kind.BOOKTICKER
        two = (f'"ts":{ts}', f'"type":"{type}"')
        head = ",".join(two if ts_first else reversed(two))
        tail = f',"cts":{cts}' if cts else ""
        text = f'{{"topic":"{topic.name}",{head},"data":{data}{tail}}}'
        return ws.encode(ws.TEXT, text.encode())

    def levels(self, side: Sequence[Level]) -> str:
        items = (f'["{self._price(price)}","{self._size(size)}"]' for price, size in side)
        return f"[{','.join(items)}]"

    def listing(self) -> dict[str, Any]:
        """This instrument in the answer of `instruments-info`, with the fields clients read."""
        spec = self.instrument.spec
        lot, tick = self._size(spec.lot), self._price(spec.tick)
        listing: dict[str, Any] = {
            "symbol": spec.symbol,
            "baseCoin": spec.base,
            "quoteCoin": spec.quote,
            "status": "Trading",
            "priceFilter": {"tickSize": tick},
        }
        if self.spot:
            return listing | {"lotSizeFilter": {"basePrecision": lot, "minOrderQty": lot}}
        kind = "Linear" if spec.product == "linear" else "Inverse"
        dated = "-" in spec.symbol or spec.symbol[-1:].isdigit()
        return listing | {
            "contractType": kind + ("Futures" if dated else "Perpetual"),
            "settleCoin": spec.base if kind == "Inverse" else spec.quote,
            "lotSizeFilter": {"qtyStep": lot, "minOrderQty": lot},
        }


class BookChannel:
    """orderbook.1, always whole, or orderbook.50, a snapshot and then what changed.

    repeats: seconds after which an unchanged state is sent again, 0 never.
    """

    def __init__(self, desk: Desk, topic: Topic, levels: int, repeats: float) -> None:
        self._desk = desk
        self._topic = topic
        self._whole = levels == 1
        self._repeats = repeats
        self._u = desk.instrument.last_update % 90_000_000 + 10_000_000
        self._generation = desk.instrument.generation
        clock = desk.hub.clock
        self._shown = Shown(desk.instrument, topic.series, levels, clock, self._next)
        self._pushed_at = 0.0
        self._snapshot = b""
        self._snapshot_row = -1

    def _next(self, generation: int) -> int:
        """The next `u`: 1 after a restart."""
        self._u = self._u + 1 if generation == self._generation else 1
        self._generation = generation
        return self._u

    def look(self) -> None:
        """At the channel's cadence: push what changed, or repeat what has not for long."""
        if not self._topic.audience:
            return
        now, before = self._desk.hub.clock.monotonic(), self._shown.view
        if self._shown.advance():
            view = self._shown.view
            changes = (
                _changes(before.bids, view.bids, descending=True),
                _changes(before.asks, view.asks, descending=False),
            )
            whole = (
                self._whole
                or view.generation != before.generation
                or sum(map(len, changes)) > MOST_CHANGES
            )
            self._publish(self._whole_frame() if whole else self._frame("delta", *changes))
        elif self._repeats and now - self._pushed_at >= self._repeats:
            self._publish(self._whole_frame())

    def greet(self, client: Client) -> None:
        """Send the state that the next delta follows; a fresh one where nobody else has any."""
        if all(other is client for others in self._topic.audience.values() for other in others):
            self._shown.advance()
        self._pushed_at = self._desk.hub.clock.monotonic()
        self._desk.hub.send(self._topic, client, self._whole_frame(), self._shown.row)

    def _publish(self, frame: bytes) -> None:
        self._pushed_at = self._desk.hub.clock.monotonic()
        for clients in list(self._topic.audience.values()):
            self._desk.hub.publish(self._topic, clients, frame, self._shown.row)

    def _whole_frame(self) -> bytes:
        if self._snapshot_row != self._shown.row:
            self._snapshot_row = self._shown.row
            self._snapshot = self._frame("snapshot", self._shown.view.bids, self._shown.view.asks)
        return self._snapshot

    def _frame(self, type: str, bids: Sequence[Level], asks: Sequence[Level]) -> bytes:
        desk, view = self._desk, self._shown.view
        data = (
            f'{{"s":"{desk.symbol}","b":{desk.levels(bids)},"a":{desk.levels(asks)}'
            f',"u":{view.number},"seq":{desk.instrument.last_update}}}'
        )
        return desk.frame(self._topic, type, view.event_ms, data, view.engine_ms)


def _changes(before: Side, after: Side, *, descending: bool) -> list[Level]:
    """What turns one side into the other: levels that left, with size 0, and those that are new or
    of another size.
    """
    was, now = dict(before), dict(after)
    gone = [(price, 0) for price in was if price not in now]
    placed = [level for level in after if was.get(level[0]) != level[1]]
    return sorted(gone + placed, reverse=descending)


def _padded(scale: int) -> Callable[[int], str]:
    """Derivatives write every decimal, zeros at the end included."""
    return binance_feeds.decimal_text(scale, 0)
