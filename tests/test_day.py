"""A day of one gateway in under a minute: real engine, links and sessions, three lines.

Only transport and clock are replaced. The venue cuts every connection after 24 hours (and the odd
one at any time), refuses now and then, announces its end, is quiet for hours and busy for others.
"""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

import msgspec
import pytest

from k4.core import layout
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.records import Bookticker, Trade
from k4.core.retry import LocalBudget
from k4.core.testing import ManualClock, MemoryPeer, MemoryTransport
from k4.core.transport import Dial
from k4.md.engine import Engine, Group, MemoryStore
from k4.md.exchanges import find
from k4.md.report import stream_figures
from k4.md.slots import Tap

DAY = 86_400.0
LINES = 3
SYMBOL = "BTCUSDT"
BUSY = 0.3  # events a second
QUIET_HOURS = (3, 4, 14)  # nothing at all happens
MINUTES = 24 * 60


class Venue:
    """Binance spot for one symbol. A day of it is some 23,000 events and all that goes wrong.

    attempts: when each connection was asked for. cuts, refused, notices: what went wrong. oldest:
    the longest that any connection lived, in seconds. delivered: trade ids that some peer got.
    """

    def __init__(self, clock: ManualClock, seed: int) -> None:
        self.clock = clock
        self.rng = random.Random(seed)
        self.transport = MemoryTransport(clock, self.meet)
        self.serving: list[MemoryPeer] = []
        self.attempts: list[float] = []
        self.opened: dict[MemoryPeer, float] = {}
        self.cuts = self.refused = self.notices = self.expired = 0
        self.update, self.trade = 10_000, 500
        self.delivered: set[int] = set()
        self.newest = 0
        clock.call_later(1.0, self.live)
        clock.call_later(60.0, self.harm)
        clock.call_later(20.0, self.ping)

    def quiet(self) -> bool:
        return int(self.clock.monotonic() // 3600) in QUIET_HOURS

    def meet(self, peer: MemoryPeer) -> None:
        self.attempts.append(self.clock.monotonic())
        if self.rng.random() < 0.1:
            self.refused += 1
            peer.refuse(503)
            return
        peer.on_text = lambda data: self.told(peer, data)
        self.opened[peer] = self.clock.monotonic()
        peer.accept(delay=0.02)
        self.clock.call_later(DAY, self.expire, peer)

    def expire(self, peer: MemoryPeer) -> None:
        if peer.open:
            self.expired += 1
            peer.close(1001, "24 hours")

    def told(self, peer: MemoryPeer, data: bytes) -> None:
        request = msgspec.json.decode(data)
        peer.text(msgspec.json.encode({"result": None, "id": request["id"]}))
        if request["method"] == "SUBSCRIBE" and peer not in self.serving:
            self.serving.append(peer)

    def live(self) -> None:
        self.clock.call_later(self.rng.expovariate(BUSY), self.live)
        if self.quiet():
            return
        self.update += self.rng.randint(1, 9)
        self.trade += 1
        now = self.clock.time_ns() // 1_000_000
        low = SYMBOL.lower()
        frames = (
            f'{{"stream":"{low}@bookTicker","data":{{"u":{self.update},"s":"{SYMBOL}",'
            f'"b":"1.5","B":"2","a":"1.6","A":"3"}}}}',
            f'{{"stream":"{low}@trade","data":{{"e":"trade","E":{now},"s":"{SYMBOL}",'
            f'"t":{self.trade},"p":"1.55","q":"0.1","T":{now},"m":true,"M":true}}}}',
        )
        self.serving = [peer for peer in self.serving if peer.open]
        for peer in self.serving:
            delay = self.rng.expovariate(1 / 0.02)
            for frame in frames:
                self.clock.call_later(delay, self.arrive, peer, frame.encode(), self.trade)

    def arrive(self, peer: MemoryPeer, frame: bytes, id: int) -> None:
        before = len(peer.received)
        was_open = peer.open
        peer.text(frame)
        if was_open and peer.open and len(peer.received) == before:
            self.delivered.add(id)

    def ping(self) -> None:
        self.clock.call_later(20.0, self.ping)
        for peer in self.serving:
            peer.ping(b"1")

    def harm(self) -> None:
        """Every few minutes something happens to one connection; twice a day to all of them."""
        self.clock.call_later(self.rng.expovariate(1 / 240), self.harm)
        peers = [peer for peer in self.serving if peer.open]
        if len(peers) < LINES:
            return
        what = self.rng.random()
        if what < 0.01:
            self.cuts += len(peers)
            for peer in peers:
                peer.fail("maintenance")
        elif what < 0.2:
            self.notices += 1
            peer = self.rng.choice(peers)
            peer.text(b'{"e":"serverShutdown","E":1786613159749}')
            self.clock.call_later(60.0, peer.close, 1001)
        else:
            self.cuts += 1
            self.rng.choice(peers).fail("cut")


def most_in(times: list[float], seconds: float) -> int:
    """The most that fall into any window of that length."""
    window: deque[float] = deque()
    most = 0
    for time in times:
        window.append(time)
        while window[0] <= time - seconds:
            window.popleft()
        most = max(most, len(window))
    return most


@pytest.mark.timeout(300)  # of wall time, on a machine that others use as well
def test_a_day_of_reconnects_cuts_and_quiet_hours() -> None:
    clock = ManualClock()
    venue = Venue(clock, seed=11)
    kinds = (Kind.BOOKTICKER, Kind.TRADE)
    product = ProductConfig(name="spot", symbols=(SYMBOL,), lines=LINES, kinds=kinds)
    config = ConnectionConfig(
        exchange="binance",
        products=(product,),
        redun_reset_on_hb=True,
        hb_interval_sec=300.0,
    )
    published: dict[Kind, list[int]] = {kind: [] for kind in kinds}

    def tap(group: Group, kind: Kind) -> Tap:
        def take(slot: int, data: memoryview) -> None:
            record = layout.LAYOUTS[kind].unpack(data)
            assert isinstance(record, Trade | Bookticker)
            published[kind].append(
                record.trade_id if isinstance(record, Trade) else record.update_id
            )

        return take

    stores: dict[Kind, MemoryStore] = {}

    def store(product: ProductConfig, kind: Kind) -> MemoryStore:
        stores[kind] = MemoryStore("day", kind, product.symbols)
        return stores[kind]

    engine = Engine(
        config,
        find("binance").feeds(config, {("spot", SYMBOL): SYMBOL}),
        stores=store,
        dials=lambda feed: [Dial(url=feed.urls[0])],
        transport=venue.transport,
        clock=clock,
        budget=LocalBudget(300, 300.0),
        rng=random.Random(5),
    )
    engine.prepare()
    engine.tap(tap)
    engine.start()
    stream = engine.streams[0]
    served_none, oldest = 0.0, 0.0
    for _ in range(MINUTES):
        clock.advance(60.0)
        served_none += 60.0 * (stream.lines_up == 0)
        oldest = max(
            oldest, *(clock.monotonic() - venue.opened[p] for p in venue.serving if p.open)
        )
    clock.advance(10.0)
    figures = stream_figures(engine.groups[0], stream)

    # It happened …
    assert venue.cuts > 150
    assert venue.notices > 30
    assert venue.refused > 25
    assert figures["reconnects"] > 100
    assert figures["notices"] >= venue.notices * 0.9
    # … and nothing came of it.
    assert figures["stalls"] == 0, "nothing stalled, so nothing may be called a stall"
    assert figures["resets"] == 0
    assert figures["lost"] == lost_by_venue(venue) < 50
    assert sorted(published[Kind.TRADE]) == sorted(venue.delivered)
    assert all(a < b for a, b in pairwise(published[Kind.BOOKTICKER]))
    assert venue.expired == 0
    assert oldest < DAY
    assert most_in(venue.attempts, 300.0) <= 300
    assert len(venue.attempts) < 3_000
    assert stream.lines_up == LINES
    assert served_none <= 120.0
    engine.stop()
    clock.advance(2.0)
    assert engine.stopped
    engine.close()


def lost_by_venue(venue: Venue) -> int:
    """Trades between the first and the last delivered that no connection got."""
    return max(venue.delivered) - min(venue.delivered) + 1 - len(venue.delivered)
