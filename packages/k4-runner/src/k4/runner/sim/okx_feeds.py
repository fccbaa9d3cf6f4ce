"""What the simulated OKX makes of market events: pushes of the public channels, to the letter.

Key order, number text and fields follow captured frames of 2026-08 (see `okx.py`). `bbo-tbt` and
`books5` show the book at their cadence, when what they show has changed, and again under the same
`seqId` when it has not for a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from k4.core.enums import Kind
from k4.core.errors import ConfigError, Problem
from k4.md.exchanges.okx.feeds import CHANNELS, REPEATS, TRADES_ALL
from k4.md.exchanges.okx.instruments import SWAP, spot_rule, swap_rule, symbol_of
from k4.md.exchanges.okx.session import topic_of
from k4.runner.sim import ws
from k4.runner.sim.client import Client
from k4.runner.sim.ledger import Series, SeriesKey
from k4.runner.sim.market import Instrument, InstrumentSpec, Level, MarketEvent, figures
from k4.runner.sim.venue import Hub, Topic

QUOTES_EVERY = 0.01  # "at most once in 10 ms"
BOOKS_EVERY = 0.1
LEVELS = 5
_FORM = 0

Shown = tuple[int, tuple[Level, ...], tuple[Level, ...]]  # generation, bids, asks


def spec_of(product: str, symbol: str) -> InstrumentSpec:
    """An instrument of a product with figures like the venue's; `symbol` in K4's spelling or the
    venue's. Raises ConfigError for an unknown product.
    """
    if product not in ("spot", "swap"):
        text = f"OKX has no product {product!r} (there are: spot, swap)"
        raise ConfigError([Problem(f"venues.okx.products.{product}", text)])
    inst_id = spot_rule(symbol) if product == "spot" else swap_rule(symbol)
    base, _, rest = inst_id.partition("-")
    price, decimals, lots, size = figures(base)
    swap = product == "swap"
    return InstrumentSpec(
        symbol=inst_id,
        product=product,
        mid=round(price * 10**decimals),
        tick=10 if base == "BTC" else 1,
        price_scale=decimals,
        size_scale=2 if swap else lots,
        size=20_000 if swap else size,
        update_jump=40,
        base=base,
        quote=rest.removesuffix(SWAP),
    )


def decimal_text(scale: int) -> Callable[[int], str]:
    """A function from a mantissa to OKX's decimal text, which has no zeros at its end."""
    unit = 10**scale

    def text(mantissa: int) -> str:
        whole, part = divmod(mantissa, unit)
        return f"{whole}.{part:0{scale}d}".rstrip("0") if part else str(whole)

    return text


def orders_at(level: Level) -> int:
    """How many orders make up a level: any number that follows from it alone."""
    price, size = level
    return 1 + (price * 31 + size) % 43


class Desk:
    """One instrument on the venue: its topics by name, its ledger series and its frames.

    Every fill by itself (`trades-all`) is a series of its own, since a fill and the trade that
    merges it are two records of one kind; its product carries the channel's name.
    """

    def __init__(self, hub: Hub, instrument: Instrument, repeat_scale: float) -> None:
        self.instrument = instrument
        self.topics: dict[str, Topic] = {}
        self.hub = hub
        self.event_us = 0
        spec = instrument.spec
        self.inst_id = spec.symbol
        self.repeats = REPEATS / repeat_scale
        self._price = decimal_text(spec.price_scale)
        self._size = decimal_text(spec.size_scale)
        self._trades = self._topic(CHANNELS[Kind.TRADE], Kind.TRADE, spec.product)
        self._fills = self._topic(TRADES_ALL, Kind.TRADE, f"{spec.product}.{TRADES_ALL}")
        quotes = self._topic(CHANNELS[Kind.BOOKTICKER], Kind.BOOKTICKER, spec.product)
        books = self._topic(CHANNELS[Kind.DEPTH5], Kind.DEPTH5, spec.product)
        self._snapshots = {
            quotes.name: Snapshot(self, quotes, 1),
            books.name: Snapshot(self, books, LEVELS),
        }
        hub.every(QUOTES_EVERY, self._snapshots[quotes.name].look)
        hub.every(BOOKS_EVERY, self._snapshots[books.name].look)

    def _topic(self, channel: str, kind: Kind, product: str) -> Topic:
        spec = self.instrument.spec
        symbol = symbol_of(self.inst_id)
        key = SeriesKey("okx", product, symbol, kind)
        series: Series = self.hub.ledger.series(key, spec.price_scale, spec.size_scale)
        topic = Topic(topic_of(channel, self.inst_id), spec.product, symbol, kind, series)
        self.topics[topic.name] = topic
        return topic

    def greet(self, client: Client, topic: Topic) -> None:
        """What a new subscriber is owed: the book as it is; trades begin with the next."""
        if topic.name in self._snapshots:
            self._snapshots[topic.name].greet(client)

    def event(self, event: MarketEvent) -> None:
        """The trades of one event. Books are looked at by their channels."""
        self.event_us = event.event_us
        ms = event.engine_us // 1000
        for item in event.aggregates:
            self._trade(self._trades, event, ms, item.first, item.last, item.price, item.size)
        for fill in event.fills:
            self._trade(self._fills, event, ms, fill.id, fill.id, fill.price, fill.size)

    def _trade(
        self,
        topic: Topic,
        event: MarketEvent,
        ms: int,
        first: int,
        last: int,
        price: int,
        size: int,
    ) -> None:
        us, maker = ms * 1000, event.buyer_is_maker
        row = topic.series.add(event.generation, last, us, us, first, price, size, maker, 0)
        if not topic.audience:
            return
        merged = f',"count":"{last - first + 1}"' if topic is self._trades else ""
        frame = self.push(
            topic,
            f'{{"instId":"{self.inst_id}","tradeId":"{last}","px":"{self._price(price)}"'
            f',"sz":"{self._size(size)}","side":"{"sell" if maker else "buy"}","ts":"{ms}"'
            f'{merged},"source":"0","seqId":{event.last_update}}}',
        )
        for clients in topic.audience.values():
            self.hub.publish(topic, clients, frame, row)

    def push(self, topic: Topic, data: str) -> bytes:
        """One encoded frame of a topic with one element of data."""
        channel = topic.name.partition(":")[0]
        text = f'{{"arg":{{"channel":"{channel}","instId":"{self.inst_id}"}},"data":[{data}]}}'
        return ws.encode(ws.TEXT, text.encode())

    def levels(self, side: Sequence[Level]) -> str:
        items = (
            f'["{self._price(level[0])}","{self._size(level[1])}","0","{orders_at(level)}"]'
            for level in side
        )
        return f"[{','.join(items)}]"

    def listing(self) -> dict[str, Any]:
        """This instrument in the answer of `instruments`, with the fields that clients read."""
        spec = self.instrument.spec
        listing = {
            "instType": spec.product.upper(),
            "instId": self.inst_id,
            "baseCcy": spec.base if spec.product == "spot" else "",
            "quoteCcy": spec.quote if spec.product == "spot" else "",
            "settleCcy": "",
            "ctVal": "",
            "ctMult": "",
            "lotSz": self._size(spec.lot),
            "minSz": self._size(spec.lot),
            "tickSz": self._price(spec.tick),
            "state": "live",
        }
        if spec.product == "swap":
            inverse = spec.quote == "USD"
            value = "100" if spec.base == "BTC" else "10"
            if not inverse:
                value = {"BTC": "0.01", "ETH": "0.1"}.get(spec.base, "1")
            listing |= {
                "uly": f"{spec.base}-{spec.quote}",
                "settleCcy": spec.base if inverse else spec.quote,
                "ctVal": value,
                "ctMult": "1",
                "ctValCcy": "USD" if inverse else spec.base,
            }
        return listing


class Snapshot:
    """A channel of whole books, the top or five levels.

    What it shows becomes one row of the ledger and one frame, made when somebody is to get it and
    kept until it changes, so that a repeat is the same frame.
    """

    def __init__(self, desk: Desk, topic: Topic, levels: int) -> None:
        self._desk = desk
        self._topic = topic
        self._levels = levels
        self._pushed = self._shown()
        self._pushed_at = desk.hub.clock.monotonic()
        self._made: Shown | None = None
        self._row = -1
        self._frame = b""

    def look(self) -> None:
        """At the channel's cadence: push what changed, or repeat what has not for long."""
        now, shown = self._desk.hub.clock.monotonic(), self._shown()
        if shown == self._pushed and now - self._pushed_at < self._desk.repeats:
            return
        self._pushed, self._pushed_at = shown, now
        for clients in list(self._topic.audience.values()):
            row, frame = self._current(shown)
            self._desk.hub.publish(self._topic, clients, frame, row)

    def greet(self, client: Client) -> None:
        row, frame = self._current(self._shown())
        self._desk.hub.send(self._topic, client, frame, row)

    def _shown(self) -> Shown:
        book = self._desk.instrument
        bids, asks = tuple(book.bids(self._levels)), tuple(book.asks(self._levels))
        return book.generation, bids, asks

    def _current(self, shown: Shown) -> tuple[int, bytes]:
        if shown != self._made:
            self._made = shown
            self._make(*shown)
        return self._row, self._frame

    def _make(self, generation: int, bids: Sequence[Level], asks: Sequence[Level]) -> None:
        desk = self._desk
        number = desk.instrument.last_update
        now_us = desk.hub.clock.time_ns() // 1000
        quote = self._topic.kind is Kind.BOOKTICKER
        ms = (now_us if quote or not desk.event_us else desk.event_us) // 1000
        inst = "" if quote else f'"instId":"{desk.inst_id}",'
        self._frame = desk.push(
            self._topic,
            f'{{"asks":{desk.levels(asks)},"bids":{desk.levels(bids)},{inst}"ts":"{ms}"'
            f',"seqId":{number}}}',
        )
        sides = [value for side in (bids, asks) for level in side for value in level]
        if not quote:
            sides = [level[part] for side in (bids, asks) for part in (0, 1) for level in side]
        counts = [orders_at(level) for side in (bids, asks) for level in side]
        times = (ms * 1000, ms * 1000)
        self._row = self._topic.series.add(generation, number, *times, *sides, *counts)
