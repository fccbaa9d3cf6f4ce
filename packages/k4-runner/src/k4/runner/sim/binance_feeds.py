"""What the simulated Binance makes of market events: JSON payloads and SBE frames, to the letter.

Key order, number text and fields follow captured frames of 2026-06 to 2026-09 (see `binance.py`).
A frame is encoded once for each form that somebody subscribed and shared by all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from k4.core.enums import Kind
from k4.core.errors import ConfigError, Problem
from k4.runner.sim import ws
from k4.runner.sim.ledger import SeriesKey
from k4.runner.sim.market import (
    Fill,
    Instrument,
    InstrumentSpec,
    Level,
    MarketEvent,
    Top,
    figures,
)
from k4.runner.sim.venue import Form, Hub, Topic

COMBINED, MICROSECONDS = 1, 2  # bits of a form
_QUOTES = ("USDT", "USDC", "FDUSD", "TUSD", "EUR", "TRY", "BTC", "ETH", "BNB", "USD")
_NO_COUNTS = (0,) * 10
_SPOT_SPEEDS: tuple[tuple[str, float], ...] = (("", 1.0), ("@100ms", 0.1))
_FUTURES_SPEEDS: tuple[tuple[str, float], ...] = (("", 0.25), ("@100ms", 0.1), ("@500ms", 0.5))

# SBE, schema 1 version 0 (`stream_1_0.xml`): header, then root, groups, var data.
_HEADER = struct.Struct("<HHHH")
_TRADES_ROOT = struct.Struct("<qqbb")
_TRADES_GROUP = struct.Struct("<HI")
_TRADE_ENTRY = struct.Struct("<qqqB")
_BEST_ROOT = struct.Struct("<qqbbqqqq")
_DEPTH_ROOT = struct.Struct("<qqbb")
_DEPTH_GROUP = struct.Struct("<HH")
_DEPTH_ENTRY = struct.Struct("<qq")
_TRADES, _BEST, _DEPTH = 10000, 10001, 10002


def specs(product: str, symbols: Sequence[str]) -> list[InstrumentSpec]:
    """The instruments of a product, with figures like the venue's. Raises ConfigError."""
    if product not in _SPECS:
        text = f"Binance has no product {product!r} (there are: {', '.join(_SPECS)})"
        raise ConfigError([Problem(f"venues.binance.products.{product}", text)])
    return [_SPECS[product](symbol) for symbol in symbols]


def _split(symbol: str) -> tuple[str, str]:
    plain = symbol.partition("_")[0]
    for quote in _QUOTES:
        if plain.endswith(quote) and plain != quote:
            return plain[: -len(quote)], quote
    return plain, ""


def _spot_spec(symbol: str) -> InstrumentSpec:
    base, quote = _split(symbol)
    price, decimals, lots, size = figures(base)
    return InstrumentSpec(
        symbol=symbol,
        product="spot",
        mid=round(price * 10**decimals),
        price_scale=decimals,
        size_scale=lots,
        size=size,
        update_jump=3,
        base=base,
        quote=quote,
    )


def _um_spec(symbol: str) -> InstrumentSpec:
    base, quote = _split(symbol)
    price, decimals, _, _ = figures(base)
    tick = 10 if base == "BTC" else 1
    return InstrumentSpec(
        symbol=symbol,
        product="ubase",
        mid=round(price * 10**decimals),
        tick=tick,
        price_scale=decimals,
        size_scale=3,
        size=2_000,
        update_jump=9_000,
        placeholders=0.02,
        special=0.03,
        base=base,
        quote=quote,
    )


def _cm_spec(symbol: str) -> InstrumentSpec:
    base, quote = _split(symbol)
    price, decimals, _, _ = figures(base)
    places = max(decimals - 1, 0)
    return InstrumentSpec(
        symbol=symbol,
        product="cbase",
        mid=round(price * 10**places),
        price_scale=places,
        size_scale=0,
        size=300,
        update_jump=2_000,
        base=base,
        quote=quote,
    )


_SPECS = {"spot": _spot_spec, "ubase": _um_spec, "cbase": _cm_spec}


def decimal_text(scale: int, padded: int) -> Callable[[int], str]:
    """A function from a mantissa to the venue's decimal text with `padded` places (0: integer)."""
    if not scale and not padded:
        return str
    if not scale:
        return ("%d." + "0" * padded).__mod__
    unit, form = 10**scale, f"%d.%0{scale}d" + "0" * max(padded - scale, 0)
    return lambda mantissa: form % divmod(mantissa, unit)


class Desk:
    """One instrument on the venue: its topics, its ledger series and its frames.

    topics: by (endpoint, stream name).
    """

    def __init__(self, hub: Hub, instrument: Instrument) -> None:
        self.instrument = instrument
        self.topics: dict[tuple[str, str], Topic] = {}
        self._hub = hub
        spec = instrument.spec
        self._spot = spec.product == "spot"
        self._symbol = spec.symbol
        self._lower = spec.symbol.lower()
        self._tail = {"spot": "", "ubase": ',"st":1', "cbase": ',"st":2'}[spec.product]
        self._pair = f'"ps":"{spec.symbol.partition("_")[0]}",'
        places = 8 if self._spot else 0
        self._price = decimal_text(spec.price_scale, places)
        self._size = decimal_text(spec.size_scale, places)
        self._event_us = 0
        self._engine_us = 0
        self._depth_row: tuple[int, int] = (-1, -1)  # (generation, update id) of the last depth row
        self._series = {
            kind: hub.ledger.series(
                SeriesKey("binance", spec.product, spec.symbol, kind),
                spec.price_scale,
                spec.size_scale,
            )
            for kind in Kind
        }
        self._tag = len(spec.symbol.encode()).to_bytes(1, "little") + spec.symbol.encode()
        self._register()

    def _register(self) -> None:
        public, market = {
            "spot": ("spot", "spot"),
            "ubase": ("ubase_public", "ubase_market"),
            "cbase": ("cbase", "cbase"),
        }[self.instrument.spec.product]
        self._bbo = self._topic(public, "bookTicker", Kind.BOOKTICKER)
        self._trades = self._topic(public, "trade", Kind.TRADE)
        self._aggregates = self._topic(market, "aggTrade", Kind.AGGTRADE)
        speeds = _SPOT_SPEEDS if self._spot else _FUTURES_SPEEDS
        for levels in (5, 10, 20):
            for suffix, seconds in speeds:
                topic = self._topic(public, f"depth{levels}{suffix}", Kind.DEPTH5)
                self._hub.every(seconds, _DepthChannel(self, topic, levels).send)
        if self._spot:
            self._trades_binary = self._topic("spot_sbe", "trade", Kind.TRADE)
            self._best_binary = self._topic("spot_sbe", "bestBidAsk", Kind.BOOKTICKER)
            topic = self._topic("spot_sbe", "depth20", Kind.DEPTH5)
            self._hub.every(0.05, _DepthChannel(self, topic, 20).send)

    def _topic(self, endpoint: str, channel: str, kind: Kind) -> Topic:
        spec = self.instrument.spec
        name = f"{self._lower}@{channel}"
        topic = Topic(name, spec.product, spec.symbol, kind, self._series[kind])
        self.topics[endpoint, name] = topic
        return topic

    # -- events -----------------------------------------------------------------------------------

    def event(self, event: MarketEvent) -> None:
        """One event: first the trades, then the quote that they left, as the venue sends them."""
        if event.bids or event.asks:
            self._event_us, self._engine_us = event.event_us, event.engine_us
        if event.fills:
            self._send_trades(event)
        if event.before != event.after:
            self._send_quote(event)

    def _send_trades(self, event: MarketEvent) -> None:
        add = self._series[Kind.TRADE].add
        times = (event.event_us, event.engine_us)
        maker, empty = event.buyer_is_maker, event.kind == "NA"
        rows = [
            add(event.generation, fill.id, *times, fill.id, fill.price, fill.size, maker, empty)
            for fill in event.fills
        ]
        if self._trades.audience:
            write = self._spot_trade if self._spot else self._futures_trade
            for row, fill in zip(rows, event.fills, strict=True):
                self._json(self._trades, partial(write, event, fill), row)
        if self._spot and self._trades_binary.audience:
            frame = ws.encode(ws.BINARY, self.trades_sbe(event))
            for clients in self._trades_binary.audience.values():
                self._hub.publish(self._trades_binary, clients, frame, rows[0], len(rows))
        self._send_aggregates(event)

    def _send_aggregates(self, event: MarketEvent) -> None:
        add = self._series[Kind.AGGTRADE].add
        for item in event.aggregates:
            row = add(
                event.generation,
                item.id,
                event.event_us,
                event.engine_us,
                item.first,
                item.last,
                item.price,
                item.size,
                event.buyer_is_maker,
            )
            if self._aggregates.audience:
                self._json(self._aggregates, partial(self._aggregate, event, item), row)

    def _send_quote(self, event: MarketEvent) -> None:
        top = event.after
        row = self._series[Kind.BOOKTICKER].add(
            event.generation, event.last_update, event.event_us, event.engine_us, *top, 0, 0
        )
        if self._bbo.audience:
            write = self._spot_quote if self._spot else self._futures_quote
            self._json(self._bbo, partial(write, event, top), row)
        if self._spot and self._best_binary.audience:
            frame = ws.encode(ws.BINARY, self.best_sbe(event, top))
            for clients in self._best_binary.audience.values():
                self._hub.publish(self._best_binary, clients, frame, row)

    def _json(self, topic: Topic, write: Callable[[Form], str], row: int) -> None:
        for form, clients in topic.audience.items():
            text = write(form)
            if form & COMBINED:
                text = f'{{"stream":"{topic.name}","data":{text}}}'
            self._hub.publish(topic, clients, ws.encode(ws.TEXT, text.encode()), row)

    def depth_row(self) -> int:
        """The ledger's row of the book as it is now; one row however many channels show it."""
        book, series = self.instrument, self._series[Kind.DEPTH5]
        key = (book.generation, book.last_update)
        if key == self._depth_row:
            return series.rows - 1
        self._depth_row = key
        sides = (book.bid_prices, book.bid_sizes, book.ask_prices, book.ask_sizes)
        levels = [value for side in sides for value in side[:5]]
        return series.add(*key, self._event_us, self._engine_us, *levels, *_NO_COUNTS)

    # -- JSON -------------------------------------------------------------------------------------

    def _spot_trade(self, event: MarketEvent, fill: Fill, form: Form) -> str:
        unit = 1 if form & MICROSECONDS else 1000
        return (
            f'{{"e":"trade","E":{event.event_us // unit},"s":"{self._symbol}","t":{fill.id}'
            f',"p":"{self._price(fill.price)}","q":"{self._size(fill.size)}"'
            f',"T":{event.engine_us // unit},"m":{_json_bool(event.buyer_is_maker)},"M":true}}'
        )

    def _futures_trade(self, event: MarketEvent, fill: Fill, form: Form) -> str:
        if event.kind == "NA":
            price = size = "0"
        else:
            price, size = self._price(fill.price), self._size(fill.size)
        return (
            f'{{"e":"trade","E":{event.event_us // 1000},"T":{event.engine_us // 1000}'
            f',"s":"{self._symbol}","t":{fill.id},"p":"{price}","q":"{size}"'
            f',"X":"{event.kind}","m":{_json_bool(event.buyer_is_maker)}{self._tail}}}'
        )

    def _aggregate(self, event: MarketEvent, item: Any, form: Form) -> str:
        unit = 1 if form & MICROSECONDS else 1000
        spec = self.instrument.spec
        order = f'"s":"{self._symbol}","a":{item.id}'
        if not self._spot:
            order = f'"a":{item.id},"s":"{self._symbol}"'
        size, extra = self._size(item.size), ""
        if spec.product == "ubase":
            extra = f',"nq":"{self._size(0) if event.kind == "RPI" else size}"'
        tail = ',"M":true' if self._spot else self._tail
        return (
            f'{{"e":"aggTrade","E":{event.event_us // unit},{order}'
            f',"p":"{self._price(item.price)}","q":"{size}"{extra},"f":{item.first},"l":{item.last}'
            f',"T":{event.engine_us // unit},"m":{_json_bool(event.buyer_is_maker)}{tail}}}'
        )

    def _spot_quote(self, event: MarketEvent, top: Top, form: Form) -> str:
        price, size = self._price, self._size
        return (
            f'{{"u":{event.last_update},"s":"{self._symbol}","b":"{price(top.bid)}"'
            f',"B":"{size(top.bid_size)}","a":"{price(top.ask)}","A":"{size(top.ask_size)}"}}'
        )

    def _futures_quote(self, event: MarketEvent, top: Top, form: Form) -> str:
        price, size = self._price, self._size
        return (
            f'{{"e":"bookTicker","u":{event.last_update},"s":"{self._symbol}",{self._pair}'
            f'"b":"{price(top.bid)}","B":"{size(top.bid_size)}"'
            f',"a":"{price(top.ask)}","A":"{size(top.ask_size)}"'
            f',"T":{event.engine_us // 1000},"E":{event.event_us // 1000}{self._tail}}}'
        )

    def levels(self, side: Sequence[Level]) -> str:
        items = (f'["{self._price(price)}","{self._size(size)}"]' for price, size in side)
        return f"[{','.join(items)}]"

    def depth_json(self, levels: int, first: int, previous: int) -> str:
        """A partial book; `first` and `previous` are U and pu of the futures form."""
        book = self.instrument
        bids, asks = self.levels(book.bids(levels)), self.levels(book.asks(levels))
        if self._spot:
            return f'{{"lastUpdateId":{book.last_update},"bids":{bids},"asks":{asks}}}'
        return (
            f'{{"e":"depthUpdate","E":{self._event_us // 1000},"T":{self._engine_us // 1000}'
            f',"s":"{self._symbol}",{self._pair}"U":{first},"u":{book.last_update}'
            f',"pu":{previous},"b":{bids},"a":{asks}{self._tail}}}'
        )

    # -- SBE --------------------------------------------------------------------------------------

    @property
    def _exponents(self) -> tuple[int, int]:
        spec = self.instrument.spec
        return -spec.price_scale, -spec.size_scale

    def trades_sbe(self, event: MarketEvent) -> bytes:
        """All fills of one taker order in one TradesStreamEvent."""
        maker = event.buyer_is_maker
        entries = [_TRADE_ENTRY.pack(f.id, f.price, f.size, maker) for f in event.fills]
        return b"".join(
            (
                _HEADER.pack(_TRADES_ROOT.size, _TRADES, 1, 0),
                _TRADES_ROOT.pack(event.event_us, event.engine_us, *self._exponents),
                _TRADES_GROUP.pack(_TRADE_ENTRY.size, len(entries)),
                *entries,
                self._tag,
            )
        )

    def best_sbe(self, event: MarketEvent, top: Top) -> bytes:
        head = _HEADER.pack(_BEST_ROOT.size, _BEST, 1, 0)
        root = _BEST_ROOT.pack(event.event_us, event.last_update, *self._exponents, *top)
        return head + root + self._tag

    def depth_sbe(self) -> bytes:
        book = self.instrument
        head = _HEADER.pack(_DEPTH_ROOT.size, _DEPTH, 1, 0)
        root = _DEPTH_ROOT.pack(self._event_us, book.last_update, *self._exponents)
        return head + root + _depth_group(book.bids(20)) + _depth_group(book.asks(20)) + self._tag

    def publish_depth(self, topic: Topic, levels: int, first: int, previous: int) -> None:
        row = self.depth_row()
        if topic is self.topics.get(("spot_sbe", topic.name)):
            frame = ws.encode(ws.BINARY, self.depth_sbe())
            for clients in topic.audience.values():
                self._hub.publish(topic, clients, frame, row)
        else:
            self._json(topic, lambda _: self.depth_json(levels, first, previous), row)

    # -- metadata ---------------------------------------------------------------------------------

    def listing(self) -> dict[str, Any]:
        """This symbol in `exchangeInfo`, with the fields that clients read."""
        spec = self.instrument.spec
        tick = decimal_text(spec.price_scale, 8 if self._spot else 0)(spec.tick)
        lot = decimal_text(spec.size_scale, 8 if self._spot else 0)(spec.lot)
        entry: dict[str, Any] = {"symbol": spec.symbol}
        if not self._spot:
            pair, _, delivery = spec.symbol.partition("_")
            perpetual = delivery in ("", "PERP")
            entry["pair"] = pair
            entry["contractType"] = "PERPETUAL" if perpetual else "CURRENT_QUARTER"
        if spec.product == "cbase":
            entry["contractStatus"] = "TRADING"
            entry["contractSize"] = 100 if spec.base == "BTC" else 10
        else:
            entry["status"] = "TRADING"
        entry |= {
            "baseAsset": spec.base,
            "quoteAsset": spec.quote,
            "filters": [
                {
                    "filterType": "PRICE_FILTER",
                    "minPrice": tick,
                    "maxPrice": "1000000.00000000",
                    "tickSize": tick,
                },
                {
                    "filterType": "LOT_SIZE",
                    "minQty": lot,
                    "maxQty": "9000.00000000",
                    "stepSize": lot,
                },
            ],
        }
        return entry


class _DepthChannel:
    """A partial book at its cadence: sent when the book has changed since this channel's last."""

    def __init__(self, desk: Desk, topic: Topic, levels: int) -> None:
        self._desk = desk
        self._topic = topic
        self._levels = levels
        self._sent = (0, desk.instrument.last_update)

    def send(self) -> None:
        book = self._desk.instrument
        now = (book.generation, book.last_update)
        if now == self._sent:
            return
        generation, previous = self._sent
        self._sent = now
        if self._topic.audience:
            first = previous + 1 if generation == now[0] else now[1]
            self._desk.publish_depth(self._topic, self._levels, first, previous)


def _depth_group(side: Sequence[Level]) -> bytes:
    entries = b"".join(_DEPTH_ENTRY.pack(*level) for level in side)
    return _DEPTH_GROUP.pack(_DEPTH_ENTRY.size, len(side)) + entries


def _json_bool(value: bool) -> str:
    return "true" if value else "false"
