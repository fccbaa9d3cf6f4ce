"""A whole engine on a manual clock: real feeds, links and arbitration, only socket and time are
replaced.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from k4.core import layout
from k4.core.config import ConnectionConfig, ProductConfig, Secret
from k4.core.counters import CounterRow, MemoryCounters
from k4.core.enums import Kind
from k4.core.records import Bookticker, Trade
from k4.core.retry import LocalBudget
from k4.core.testing import ManualClock, MemoryPeer, MemoryTransport
from k4.core.transport import Dial
from k4.md.engine import Engine, Group, MemoryStore
from k4.md.exchanges import find
from k4.md.feed import Feed
from k4.md.report import stream_figures
from k4.md.slots import Tap
from k4.md.stream import Stream

SYMBOLS = ("BTCUSDT", "ETHUSDT")
KINDS = (Kind.BOOKTICKER, Kind.TRADE)


class Venue:
    """Binance spot in memory: acknowledges, then sends quotes and trades to every subscribed peer.

    delay(peer): seconds that a frame takes to it. mute: peers that get nothing more and do not
    know. skips: how many events of the market are to reach nobody. produced: trade ids by symbol.
    delivered: those that some peer really got.
    """

    def __init__(self, clock: ManualClock, seed: int) -> None:
        self.clock = clock
        self.rng = random.Random(seed)
        self.transport = MemoryTransport(clock, self.meet)
        self.serving: list[MemoryPeer] = []
        self.mute: set[MemoryPeer] = set()
        self.delay: Callable[[MemoryPeer], float] = lambda peer: 0.001
        self.refuse: Callable[[MemoryPeer], int] = lambda peer: 0
        self.update = {symbol: 10_000 for symbol in SYMBOLS}
        self.trade = {symbol: 500 for symbol in SYMBOLS}
        self.delivered: dict[str, set[int]] = {symbol: set() for symbol in SYMBOLS}
        self.rate = 20.0
        self.running = True
        self.hangs = False  # no answer to any handshake
        self.mutes = False  # nothing for whoever is new
        self.skips = 0
        clock.call_later(0.0, self.live)

    def meet(self, peer: MemoryPeer) -> None:
        if self.hangs:
            return
        status = self.refuse(peer)
        if status:
            peer.refuse(status)
            return
        peer.on_text = lambda data: self.told(peer, data)
        peer.accept(delay=0.02)

    def told(self, peer: MemoryPeer, data: bytes) -> None:
        request = msgspec.json.decode(data)
        peer.text(msgspec.json.encode({"result": None, "id": request["id"]}))
        if request["method"] == "SUBSCRIBE" and peer not in self.serving:
            self.serving.append(peer)
            if self.mutes:
                self.mute.add(peer)

    def live(self) -> None:
        """One event of the market, and the next one planned."""
        if self.running and self.rate:
            self.event(self.rng.choice(SYMBOLS))
        if self.running:
            gap = self.rng.expovariate(self.rate) if self.rate else 1.0
            self.clock.call_later(gap, self.live)

    def event(self, symbol: str) -> None:
        self.update[symbol] += self.rng.randint(1, 9)
        self.trade[symbol] += 1
        if self.skips:
            self.skips -= 1
            return
        id, now = self.trade[symbol], self.clock.time_ns() // 1_000_000
        low = symbol.lower()
        frames = (
            f'{{"stream":"{low}@bookTicker","data":{{"u":{self.update[symbol]},"s":"{symbol}",'
            f'"b":"1.5","B":"2","a":"1.6","A":"3"}}}}',
            f'{{"stream":"{low}@trade","data":{{"e":"trade","E":{now},"s":"{symbol}","t":{id},'
            f'"p":"1.55","q":"0.1","T":{now},"m":true,"M":true}}}}',
        )
        self.serving = [peer for peer in self.serving if peer.open]
        for peer in self.serving:
            if peer not in self.mute:
                delay = self.delay(peer)
                for frame in frames:
                    self.clock.call_later(delay, self.arrive, peer, frame.encode(), symbol, id)

    def arrive(self, peer: MemoryPeer, frame: bytes, symbol: str, id: int) -> None:
        if peer.open and b"@trade" in frame:
            before = len(peer.received)
            peer.text(frame)
            if peer.open and len(peer.received) == before:
                self.delivered[symbol].add(id)
        else:
            peer.text(frame)


class Case:
    """An engine on a venue, and what it published."""

    def __init__(
        self,
        *,
        lines: int = 2,
        seed: int = 1,
        feeds: Callable[[list[Feed]], list[Feed]] = lambda feeds: feeds,
        kinds: tuple[Kind, ...] = KINDS,
        headers: dict[str, str | Secret] | None = None,
        rows: int = 128,
        **options: object,
    ) -> None:
        self.clock = ManualClock()
        self.counters = MemoryCounters(rows=rows, words=16_384, clock=self.clock)
        self.venue = Venue(self.clock, seed)
        product = ProductConfig(
            name="spot", symbols=SYMBOLS, lines=lines, kinds=kinds, headers=headers or {}
        )
        config = ConnectionConfig(exchange="binance", products=(product,))
        config = msgspec.structs.replace(config, **options)
        exchange = find("binance")
        self.budget = LocalBudget(300, 300.0)
        self.trades: dict[str, list[int]] = {symbol: [] for symbol in SYMBOLS}
        self.quotes: dict[str, list[int]] = {symbol: [] for symbol in SYMBOLS}
        self.stores: dict[Kind, MemoryStore] = {}
        self.engine = Engine(
            config,
            feeds(exchange.feeds(config, {("spot", symbol): symbol for symbol in SYMBOLS})),
            stores=self.store,
            dials=lambda feed: [Dial(url=url) for url in feed.urls],
            transport=self.venue.transport,
            clock=self.clock,
            budget=self.budget,
            rng=random.Random(seed),
            counters=self.counters,
        )
        self.engine.prepare()
        self.engine.tap(self.tap)
        self.engine.start()
        self.clock.advance(1.0)

    def store(self, product: ProductConfig, kind: Kind) -> MemoryStore:
        self.stores[kind] = MemoryStore("test", kind, product.symbols)
        return self.stores[kind]

    def tap(self, group: Group, kind: Kind) -> Tap:
        def take(slot: int, data: memoryview) -> None:
            record = layout.LAYOUTS[kind].unpack(data)
            if isinstance(record, Trade):
                self.trades[record.symbol].append(record.trade_id)
            elif isinstance(record, Bookticker):
                self.quotes[record.symbol].append(record.update_id)

        return take

    @property
    def stream(self) -> Stream:
        return self.engine.streams[0]

    def figures(self) -> dict[str, int]:
        return stream_figures(self.engine.groups[0], self.stream)

    def rows(self, type: str) -> list[CounterRow]:
        """What the counters have of that type."""
        return [row for row in self.counters.rows() if row.type == type]

    def peers(self) -> list[MemoryPeer]:
        """The peers that serve now."""
        return [peer for peer in self.venue.serving if peer.open]

    def settle(self) -> None:
        """Let everything on its way arrive."""
        self.venue.running = False
        self.clock.advance(8.0)

    def assert_nothing_lost(self) -> None:
        """Every trade that some line got is published once; quotes only rose."""
        for symbol in SYMBOLS:
            assert sorted(self.trades[symbol]) == sorted(self.venue.delivered[symbol])
            assert self.quotes[symbol] == sorted(set(self.quotes[symbol]))
            assert self.quotes[symbol][-1] == self.venue.update[symbol]

    def stop(self) -> None:
        self.engine.stop()
        self.clock.advance(2.0)
        assert self.engine.stopped
        self.engine.close()
