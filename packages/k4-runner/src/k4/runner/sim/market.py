"""A seeded random market: one consistent order book per instrument, and trades that really take
from it.

Everything is integers: a price or size is a mantissa over `10 ** scale`, so that decimal text and
SBE mantissas are both exact. What happens depends on the seed and on the count of steps alone;
the clock only stamps it. Venues turn `MarketEvent`s into their own messages.
"""

from __future__ import annotations

import zlib
from random import Random
from typing import NamedTuple

import msgspec

from k4.core.clock import Clock

Level = tuple[int, int]  # price, size; in a delta size 0 removes the level
DEPTH = 64  # levels a side that the book never falls below
_DEPTH_MAX = 80
_WIDE = 6  # ticks of spread from which orders inside it become the rule
_PUBLISH_US = 350  # from matching to publication
_MARKET, _PLACEHOLDER = "MARKET", "NA"


class InstrumentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One tradable thing. symbol: the venue's id in upper case (`BTCUSDT`, `BTC-USDT-SWAP`).

    mid: starting price as a mantissa. tick: smallest price step, lot: smallest size step, both as
    mantissas. size: typical order size in lots. update_jump: up to how many hidden book updates
    pass between two events. placeholders: share of trade events that are `NA` ids without a trade.
    special: share of trade events that are RPI, ADL or insurance fund instead of MARKET.
    """

    symbol: str
    product: str
    mid: int
    tick: int = 1
    lot: int = 1
    price_scale: int
    size_scale: int
    size: int = 1000
    update_jump: int = 0
    placeholders: float = 0.0
    special: float = 0.0
    base: str = ""
    quote: str = ""


class Top(NamedTuple):
    """Best bid and offer, mantissas."""

    bid: int
    bid_size: int
    ask: int
    ask_size: int


class Fill(NamedTuple):
    """One trade: a taker met one maker order. A placeholder has price and size 0."""

    id: int
    price: int
    size: int


class Aggregate(NamedTuple):
    """The fills of one taker order at one price."""

    id: int
    first: int
    last: int
    price: int
    size: int


class MarketEvent(msgspec.Struct, frozen=True, gc=False):
    """One change of one instrument: an order placed or cancelled, or a taker order's fills.

    generation: +1 at each id reset. engine_us: matching time, strictly increasing per instrument;
    event_us: when the venue published it, never smaller. first_update to last_update: the book
    update ids that it used. bids, asks: levels
    changed. fills oldest first. kind: MARKET, RPI, ADL, INSURANCE_FUND or NA ('' without fills).
    """

    generation: int
    engine_us: int
    event_us: int
    first_update: int
    last_update: int
    before: Top
    after: Top
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    fills: tuple[Fill, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    buyer_is_maker: bool = False
    kind: str = ""


class Ids(msgspec.Struct):
    """The next ids of an instrument's trade sequences."""

    trade: int
    aggregate: int


class Instrument:
    """The book, the ids and the randomness of one instrument.

    bids and asks are parallel lists of prices and sizes, best first.
    """

    def __init__(self, spec: InstrumentSpec, seed: int, clock: Clock) -> None:
        self.spec = spec
        self.generation = 0
        self.bid_prices: list[int] = []
        self.bid_sizes: list[int] = []
        self.ask_prices: list[int] = []
        self.ask_sizes: list[int] = []
        self.engine_us = 0
        self.event_us = 0
        self._clock = clock
        self._random = Random(f"{seed}/{spec.product}/{spec.symbol}")
        self._roll = self._random.random
        pick = self._random.randrange
        self.last_update = pick(10**10, 10**11)
        self.ids = Ids(trade=pick(10**9, 10**10), aggregate=pick(10**9, 4 * 10**9))
        self._fill_book()

    def top(self) -> Top:
        return Top(self.bid_prices[0], self.bid_sizes[0], self.ask_prices[0], self.ask_sizes[0])

    def bids(self, levels: int) -> list[Level]:
        """The best `levels` bids."""
        return list(zip(self.bid_prices[:levels], self.bid_sizes[:levels], strict=True))

    def asks(self, levels: int) -> list[Level]:
        return list(zip(self.ask_prices[:levels], self.ask_sizes[:levels], strict=True))

    def reset_ids(self) -> None:
        """What a venue's restart does: every sequence goes on far below where it was."""
        self.generation += 1
        share = 0.5 + 0.2 * self._roll()
        self.last_update = int(self.last_update * share)
        self.ids = Ids(int(self.ids.trade * share), int(self.ids.aggregate * share))

    def step(self, trade_share: float) -> MarketEvent:
        """Let one thing happen. trade_share: probability that it is a taker order."""
        now = self._clock.time_ns() // 1000
        self.engine_us = max(self.engine_us + 1, now - _PUBLISH_US)
        self.event_us = max(self.engine_us, self.event_us, now)
        roll = self._roll
        rising = roll() < self._lean()
        if roll() < trade_share:
            return self._trade(rising)
        return self._quote(rising)

    def _lean(self) -> float:
        """Probability of an upward step: a weak pull back to the starting price."""
        spec = self.spec
        drift = (self.bid_prices[0] - spec.mid) / spec.mid
        return 0.5 - max(-0.3, min(0.3, drift * 10))

    # -- orders -----------------------------------------------------------------------------------

    def _quote(self, rising: bool) -> MarketEvent:
        before, roll = self.top(), self._roll
        bids: list[Level] = []
        asks: list[Level] = []
        wide = before.ask - before.bid > _WIDE * self.spec.tick
        what = roll()
        if what < 0.15 or wide:
            self._improve(rising, bids if rising else asks)
        elif what < 0.28:
            self._withdraw(not rising, asks if rising else bids)
        else:
            level = 0 if what < 0.80 else int(roll() * roll() * 40)
            self._resize(rising, level, bids if rising else asks)
        return self._event(before, bids, asks)

    def _improve(self, bid: bool, deltas: list[Level]) -> None:
        """An order inside the spread, or more at the best price where there is no room."""
        room = (self.ask_prices[0] - self.bid_prices[0]) // self.spec.tick - 1
        if room < 1:
            self._resize(bid, 0, deltas)
            return
        step = (1 + int(self._roll() * min(room, 3))) * self.spec.tick
        price = self.bid_prices[0] + step if bid else self.ask_prices[0] - step
        prices, sizes = self._side(bid)
        size = self._size()
        prices.insert(0, price)
        sizes.insert(0, size)
        deltas.append((price, size))
        if len(prices) > _DEPTH_MAX:
            deltas.append((prices.pop(), 0))
            sizes.pop()

    def _withdraw(self, bid: bool, deltas: list[Level]) -> None:
        """The best level of a side is cancelled."""
        prices, sizes = self._side(bid)
        deltas.append((prices.pop(0), 0))
        del sizes[0]
        self._refill(bid, deltas)

    def _resize(self, bid: bool, level: int, deltas: list[Level]) -> None:
        prices, sizes = self._side(bid)
        size = self._size()
        if size == sizes[level]:
            size += self.spec.lot
        sizes[level] = size
        deltas.append((prices[level], size))

    # -- trades -----------------------------------------------------------------------------------

    def _trade(self, rising: bool) -> MarketEvent:
        kind, before = self._kind_of_trade(), self.top()
        if kind == _PLACEHOLDER:
            number = self.ids.trade
            self.ids.trade = number + 1
            fills: tuple[Fill, ...] = (Fill(number, 0, 0),)
            return self._event(before, [], [], fills=fills, maker=not rising, kind=kind)
        deltas: list[Level] = []
        done = self._take(not rising, deltas)
        aggregates = () if kind in ("ADL", "INSURANCE_FUND") else self._aggregate(done)
        bids, asks = ([], deltas) if rising else (deltas, [])
        return self._event(
            before,
            bids,
            asks,
            fills=tuple(done),
            aggregates=aggregates,
            maker=not rising,
            kind=kind,
        )

    def _kind_of_trade(self) -> str:
        spec = self.spec
        if not spec.placeholders and not spec.special:
            return _MARKET
        roll = self._roll()
        if roll < spec.placeholders:
            return _PLACEHOLDER
        if roll < spec.placeholders + spec.special:
            return ("RPI", "ADL", "INSURANCE_FUND")[int(self._roll() * 3)]
        return _MARKET

    def _take(self, bid: bool, deltas: list[Level]) -> list[Fill]:
        """A taker order eats the given side from its best level on."""
        prices, sizes = self._side(bid)
        lot, roll = self.spec.lot, self._roll
        levels = 1 if roll() < 0.7 else 1 + int(roll() * 4)
        fills: list[Fill] = []
        for position in range(levels):
            price, there = prices[0], sizes[0]
            whole = position < levels - 1 or roll() < 0.25
            eaten = there if whole else max(lot, int(there * roll()) // lot * lot)
            self._split(price, eaten, fills)
            if eaten < there:
                sizes[0] = there - eaten
                deltas.append((price, there - eaten))
            else:
                del prices[0], sizes[0]
                deltas.append((price, 0))
        self._refill(bid, deltas)
        return fills

    def _split(self, price: int, size: int, fills: list[Fill]) -> None:
        """One to three maker orders at a price."""
        lot, number = self.spec.lot, self.ids.trade
        makers = int(self._roll() * 3)
        while makers and size > 2 * lot:
            part = max(lot, int(size * self._roll()) // lot * lot)
            if part >= size:
                break
            fills.append(Fill(number, price, part))
            number += 1
            size -= part
            makers -= 1
        fills.append(Fill(number, price, size))
        self.ids.trade = number + 1

    def _aggregate(self, fills: list[Fill]) -> tuple[Aggregate, ...]:
        groups: list[Aggregate] = []
        for fill in fills:
            if groups and groups[-1].price == fill.price:
                last = groups[-1]
                groups[-1] = last._replace(last=fill.id, size=last.size + fill.size)
            else:
                groups.append(
                    Aggregate(self.ids.aggregate, fill.id, fill.id, fill.price, fill.size)
                )
                self.ids.aggregate += 1
        return tuple(groups)

    # -- common -----------------------------------------------------------------------------------

    def _side(self, bid: bool) -> tuple[list[int], list[int]]:
        if bid:
            return self.bid_prices, self.bid_sizes
        return self.ask_prices, self.ask_sizes

    def _size(self) -> int:
        roll = self._roll()
        return (1 + int(self.spec.size * 3 * roll * roll)) * self.spec.lot

    def _refill(self, bid: bool, deltas: list[Level]) -> None:
        """New orders at the far end, so that a side never runs out of levels or below a tick."""
        prices, sizes = self._side(bid)
        tick = -self.spec.tick if bid else self.spec.tick
        while len(prices) < DEPTH:
            price = prices[-1] + tick * (1 + int(self._roll() * 3))
            if price <= 0:
                price = prices[-1] + tick
            size = self._size()
            prices.append(price)
            sizes.append(size)
            deltas.append((price, size))

    def _fill_book(self) -> None:
        mid = self.spec.mid // self.spec.tick * self.spec.tick
        self.bid_prices.append(mid)
        self.bid_sizes.append(self._size())
        self.ask_prices.append(mid + self.spec.tick)
        self.ask_sizes.append(self._size())
        self._refill(True, [])
        self._refill(False, [])

    def _event(
        self,
        before: Top,
        bids: list[Level],
        asks: list[Level],
        *,
        fills: tuple[Fill, ...] = (),
        aggregates: tuple[Aggregate, ...] = (),
        maker: bool = False,
        kind: str = "",
    ) -> MarketEvent:
        first = self.last_update + 1
        changes = len(bids) + len(asks)
        if changes:
            jump = self.spec.update_jump
            self.last_update += changes + (int(self._roll() * jump) if jump else 0)
        return MarketEvent(
            self.generation,
            self.engine_us,
            self.event_us,
            first,
            self.last_update,
            before,
            self.top(),
            tuple(bids),
            tuple(asks),
            fills,
            aggregates,
            maker,
            kind,
        )


# -- realistic figures ----------------------------------------------------------------------------

_KNOWN: dict[str, tuple[float, int, int, int]] = {
    # price, price decimals, size decimals, typical size in lots
    "BTC": (64_000.0, 2, 5, 40_000),
    "ETH": (3_400.0, 2, 4, 60_000),
    "BNB": (610.0, 2, 3, 8_000),
    "SOL": (150.0, 2, 3, 60_000),
    "XRP": (0.62, 4, 1, 30_000),
    "DOGE": (0.12, 5, 0, 40_000),
    "PEPE": (0.00001234, 8, 0, 90_000_000),
}


def figures(base: str) -> tuple[float, int, int, int]:
    """(price, price decimals, size decimals, typical size in lots) of an asset against dollars.

    Known for the large ones, made up from the name's CRC for the others.
    """
    if base in _KNOWN:
        return _KNOWN[base]
    code = zlib.crc32(base.encode())
    return 1.0 + code % 50_000 / 100, 2, 2, 5_000


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How much happens, over all instruments of a venue.

    rate: events per second; 0 is as fast as every connection takes them (nothing is lost to slow
    readers). total: stop after so many events, 0 never. burst: that many events at once every
    burst_every seconds, on top. trade_share: probability that an event is a taker order. start: run
    at once, or wait for a command. tick: seconds between two portions. beat_every: events after
    which the timed channels (books) are sent as well, besides their own time; 0 never.
    """

    rate: float = 1_000.0
    total: int = 0
    burst: int = 0
    burst_every: float = 1.0
    trade_share: float = 0.3
    start: bool = True
    tick: float = 0.005
    beat_every: int = 0
