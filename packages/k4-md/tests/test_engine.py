"""The whole engine on a manual clock: real feeds, links and arbitration, only socket and time
replaced.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import msgspec
import pytest

from k4.core import layout
from k4.core.config import ConnectionConfig, ProductConfig, Secret
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
    know. produced: trade ids by symbol. delivered: those that some peer really got.
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
        **options: object,
    ) -> None:
        self.clock = ManualClock()
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
            dials=lambda feed: [Dial(url=feed.urls[0])],
            transport=self.venue.transport,
            clock=self.clock,
            budget=self.budget,
            rng=random.Random(seed),
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


@pytest.fixture
def make() -> Iterator[Callable[..., Case]]:
    cases: list[Case] = []

    def made(**options: object) -> Case:
        cases.append(Case(**options))  # type: ignore[arg-type]
        return cases[-1]

    yield made
    for case in cases:
        case.stop()


def test_an_hour_of_cuts_and_quiet_loses_nothing_and_raises_no_alarm(
    make: Callable[..., Case],
) -> None:
    case = make(lines=3)
    cuts = 0
    for minute in range(60):
        case.venue.rate = 0.0 if 20 <= minute < 30 else 20.0
        for _ in range(6):
            if case.venue.rng.random() < 0.3 and len(case.peers()) == 3:
                case.venue.rng.choice(case.peers()).fail("cut")
                cuts += 1
            case.clock.advance(10.0)
    case.settle()
    case.assert_nothing_lost()
    figures = case.figures()
    assert cuts > 50
    assert figures["reconnects"] >= cuts * 0.8
    assert (figures["stalls"], figures["resets"], figures["lost"]) == (0, 0, 0)


def test_all_lines_but_one_stall_and_are_replaced_in_time(make: Callable[..., Case]) -> None:
    case = make(lines=3, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    stalled = case.peers()[:2]
    case.venue.mute.update(stalled)
    case.clock.advance(10.0)
    assert [peer.open for peer in stalled] == [False, False]
    assert len(case.peers()) == 3
    case.settle()
    case.assert_nothing_lost()
    assert case.figures()["stalls"] == 2


def test_a_dead_socket_is_found_by_an_unanswered_ping(make: Callable[..., Case]) -> None:
    case = make(lines=1, stall_timeout_sec=10.0)
    case.venue.rate = 0.0
    peer = case.peers()[0]
    peer.half_open()
    case.clock.advance(12.0)
    assert not peer.open or case.venue.transport.peers[-1] is not peer
    assert case.stream.lines[0].up


@pytest.mark.parametrize("lines", [1, 3])
def test_a_reset_in_a_quiet_market_is_seen_when_two_seconds_and_the_lines_answers_prove_it(
    make: Callable[..., Case], lines: int
) -> None:
    case = make(lines=lines, kinds=(Kind.BOOKTICKER,))
    case.clock.advance(5.0)
    case.venue.rate = 0.0
    case.clock.advance(9.0)
    case.venue.update["BTCUSDT"] = 100
    case.venue.event("BTCUSDT")
    case.clock.advance(1.4)
    case.venue.event("BTCUSDT")
    before = [pings(peer) for peer in case.peers()]
    case.clock.advance(0.6)
    assert [pings(peer) - n for peer, n in zip(case.peers(), before, strict=True)] == [1] * lines
    assert case.figures()["resets"] == 1
    assert case.quotes["BTCUSDT"][-1] == case.venue.update["BTCUSDT"] < 200


def pings(peer: MemoryPeer) -> int:
    return sum(kind == "ping" for kind, _ in peer.received)


def test_a_quiet_market_is_asked_again_and_never_called_a_stall(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    case.venue.rate = 0.0
    case.clock.advance(3600.0)
    figures = case.figures()
    assert figures["stalls"] == 0
    assert figures["resubscribed"] >= 4
    assert 4 <= figures["unproven"] <= 24
    assert len(case.venue.transport.peers) < 40


def test_the_slow_line_is_rotated_out_without_a_hole(make: Callable[..., Case]) -> None:
    case = make(lines=3, redun_reset_on_hb=True, hb_interval_sec=30.0)
    slow = case.peers()[1]
    case.venue.delay = lambda peer: case.venue.rng.expovariate(1 / (0.2 if peer is slow else 0.005))
    case.clock.advance(40.0)
    assert not slow.open
    assert case.figures()["rotations"] == 1
    case.clock.advance(200.0)
    case.settle()
    case.assert_nothing_lost()
    assert len(case.peers()) == 3


def test_rotation_leaves_scarce_attempts_to_lines_that_need_them(
    make: Callable[..., Case],
) -> None:
    case = make(lines=3, redun_reset_on_hb=True, hb_interval_sec=30.0)
    slow = case.peers()[1]
    case.venue.delay = lambda peer: case.venue.rng.expovariate(1 / (0.2 if peer is slow else 0.005))
    host = urlsplit(case.stream.feed.urls[0]).netloc
    while case.budget.spare(host, case.clock.monotonic()):
        case.budget.take(host, case.clock.monotonic())
    case.clock.advance(1.0)
    for _ in range(20):
        case.budget.take(host, case.clock.monotonic())
    case.clock.advance(34.0)
    assert slow.open
    case.venue.mute.add(case.peers()[2])
    case.clock.advance(10.0)
    assert slow.open
    assert case.figures()["rotations"] == 1, "of the silent one"
    case.clock.advance(30.0)
    assert not slow.open
    case.settle()
    case.assert_nothing_lost()


def test_equal_lines_are_left_alone(make: Callable[..., Case]) -> None:
    case = make(lines=3, redun_reset_on_hb=True, hb_interval_sec=5.0)
    case.venue.delay = lambda peer: case.venue.rng.expovariate(1 / 0.02)
    case.clock.advance(300.0)
    assert case.figures()["rotations"] <= 1


def test_lines_are_renewed_before_the_venue_cuts_them(make: Callable[..., Case]) -> None:
    def short(feeds: list[Feed]) -> list[Feed]:
        limits = msgspec.structs.replace(feeds[0].limits, max_life=100.0)
        return [msgspec.structs.replace(feed, limits=limits) for feed in feeds]

    case = make(lines=2, feeds=short)
    served = 0
    for _ in range(600):
        case.clock.advance(1.0)
        served = max(served, len(case.peers()))
        assert len(case.peers()) >= 2
        oldest = case.clock.monotonic() - min(line.born for line in case.stream.lines)
        assert oldest < 100.0
    assert served == 3
    case.settle()
    case.assert_nothing_lost()
    assert case.figures()["rotations"] >= 12


def test_a_notice_replaces_the_line_before_it_breaks(make: Callable[..., Case]) -> None:
    case = make(lines=1)
    case.clock.advance(5.0)
    old = case.peers()[0]
    old.text(b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1786613159749}}')
    case.clock.advance(3.0)
    assert not old.open
    assert case.peers()
    case.settle()
    case.assert_nothing_lost()
    assert (case.figures()["notices"], case.figures()["rotations"]) == (1, 1)


def test_a_successor_that_never_delivers_is_given_up(make: Callable[..., Case]) -> None:
    case = make(lines=1)
    case.clock.advance(5.0)
    old = case.peers()[0]
    told = case.venue.told

    def silent(peer: MemoryPeer, data: bytes) -> None:
        told(peer, data)
        if peer is not old:
            case.venue.mute.add(peer)

    case.venue.told = silent  # type: ignore[method-assign]
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(65.0)
    assert old.open
    assert case.figures()["abandoned"] >= 1
    case.settle()
    case.assert_nothing_lost()


def test_a_successor_of_a_slow_stream_is_not_trusted_at_once(make: Callable[..., Case]) -> None:
    """Nothing came between its ack and the first look: that alone proves nothing."""
    case = make(lines=1)
    case.venue.rate = 3.0
    case.clock.advance(5.0)
    old = case.peers()[0]
    told = case.venue.told

    def silent(peer: MemoryPeer, data: bytes) -> None:
        told(peer, data)
        if peer is not old:
            case.venue.mute.add(peer)

    case.venue.told = silent  # type: ignore[method-assign]
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(20.0)
    assert old.open
    case.settle()
    case.assert_nothing_lost()


def test_a_silent_line_does_not_wait_for_a_successor_that_hangs(make: Callable[..., Case]) -> None:
    case = make(lines=3, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    first, second, third = case.peers()
    case.venue.mute.add(first)
    case.clock.advance(4.5)
    assert first.open
    case.venue.hangs = True
    third.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(0.3)
    case.venue.hangs = False
    case.clock.advance(2.0)
    assert [peer.open for peer in (first, second, third)] == [False, True, True]
    case.clock.advance(5.0)
    assert not third.open
    assert len(case.peers()) == 3
    assert (case.figures()["rotations"], case.figures()["abandoned"]) == (2, 0)
    case.settle()
    case.assert_nothing_lost()


def test_a_closed_line_is_heard_while_a_venue_that_stands_still_owes_its_answer(
    make: Callable[..., Case],
) -> None:
    """What it sends before that may be what no other line brings."""
    case = make(lines=2)
    case.clock.advance(5.0)
    old = case.peers()[0]
    old.answers = False
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(3.0)
    assert old.received[-1] == ("close", 1000)
    assert case.figures()["rotations"] == 1
    case.venue.trade["BTCUSDT"] += 1
    id, now = case.venue.trade["BTCUSDT"], case.clock.time_ns() // 1_000_000
    case.clock.advance(5.0)
    old.text(
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":%d,"s":"BTCUSDT","t":%d,'
        b'"p":"1.55","q":"0.1","T":%d,"m":true,"M":true}}' % (now, id, now)
    )
    case.venue.delivered["BTCUSDT"].add(id)
    case.clock.advance(5.0)
    assert not old.open
    case.settle()
    case.assert_nothing_lost()


def test_lines_that_the_venue_will_close_are_replaced_at_once(make: Callable[..., Case]) -> None:
    case = make(lines=3)
    case.clock.advance(5.0)
    old = case.peers()
    for peer in old:
        peer.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(3.0)
    assert not any(peer.open for peer in old)
    assert len(case.peers()) == 3
    assert (case.figures()["notices"], case.figures()["rotations"]) == (3, 3)
    assert case.figures()["reconnects"] == 0
    case.settle()
    case.assert_nothing_lost()


def test_a_successor_that_the_venue_will_close_is_replaced_in_its_turn(
    make: Callable[..., Case],
) -> None:
    case = make(lines=1)
    case.clock.advance(5.0)
    (first,) = case.peers()
    first.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(0.3)
    _, second = case.peers()
    second.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(5.0)
    assert not first.open
    assert not second.open
    assert len(case.peers()) == 1
    assert case.figures()["rotations"] == 2
    case.settle()
    case.assert_nothing_lost()


def test_a_silent_successor_is_given_up_and_holds_up_no_other_line(
    make: Callable[..., Case],
) -> None:
    """All lines but one lack the trades, and the first successor lacks the quotes."""
    case = make(lines=4, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    old = case.peers()
    arrive, new = case.venue.arrive, []

    def partly(peer: MemoryPeer, frame: bytes, symbol: str, id: int) -> None:
        if peer not in old and peer not in new:
            new.append(peer)
        lacks = {**dict.fromkeys(old[:3], b"@trade"), **dict.fromkeys(new[:1], b"@bookTicker")}
        if lacks.get(peer, b"\0") not in frame:
            arrive(peer, frame, symbol, id)

    case.venue.arrive = partly  # type: ignore[method-assign]
    case.clock.advance(10.0)
    assert [peer.open for peer in old].count(True) == 2
    assert new[0].open
    case.clock.advance(6.0)
    assert not new[0].open
    assert [peer.open for peer in old] == [False, False, False, True]
    assert len(case.peers()) == 4
    assert (case.figures()["rotations"], case.figures()["abandoned"]) == (3, 1)
    case.settle()
    case.assert_nothing_lost()


def test_successors_that_are_always_silent_are_tried_less_and_less(
    make: Callable[..., Case],
) -> None:
    """Whatever is new lacks the quotes, and the first line lacks the trades: the venue's fault."""
    case = make(lines=2, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    old = case.peers()
    arrive, missing = case.venue.arrive, b"@bookTicker"

    def partly(peer: MemoryPeer, frame: bytes, symbol: str, id: int) -> None:
        lacks = {old[0]: b"@trade", old[1]: b"\0"}
        if lacks.get(peer, missing) not in frame:
            arrive(peer, frame, symbol, id)

    case.venue.arrive = partly  # type: ignore[method-assign]
    case.clock.advance(19.0)
    assert case.figures()["abandoned"] == 2
    case.clock.advance(131.0)
    assert case.figures()["abandoned"] == 5  # instead of every 5.5 s
    assert old[0].open
    missing = b"\0"
    case.clock.advance(70.0)
    assert not old[0].open
    assert (case.figures()["rotations"], case.figures()["abandoned"]) == (1, 5)


def test_a_line_that_closed_as_announced_and_came_back_is_not_replaced_any_more(
    make: Callable[..., Case],
) -> None:
    case = make(lines=2, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    old, other = case.peers()
    case.venue.mutes = True
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    while case.figures()["abandoned"] < 2:
        case.clock.advance(0.5)
    case.venue.mutes = False
    case.venue.mute.clear()
    old.close(1001)
    case.clock.advance(60.0)
    assert other.open
    assert len(case.peers()) == 2
    assert (case.figures()["reconnects"], case.figures()["rotations"]) == (1, 0)


def test_a_reset_does_not_keep_a_line_from_being_replaced(make: Callable[..., Case]) -> None:
    """The ids that its successor has to reach will never come again."""
    case = make(lines=2)
    case.clock.advance(5.0)
    old = case.peers()[0]
    case.venue.mutes = True
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(1.5)
    (succession,) = case.stream.successions
    assert succession.target
    case.venue.mute.clear()
    for symbol in SYMBOLS:
        case.venue.update[symbol] = case.venue.trade[symbol] = 0
    case.clock.advance(1.5)
    assert old.open
    case.clock.advance(3.0)
    assert not old.open
    assert case.figures()["resets"] == 4
    assert (case.figures()["rotations"], case.figures()["abandoned"]) == (1, 0)


def test_a_refused_sbe_handshake_falls_back_to_json(make: Callable[..., Case]) -> None:
    case = make(lines=2, headers={"X-MBX-APIKEY": Secret("key")}, kinds=KINDS)
    refused: list[MemoryPeer] = []

    def refuse(peer: MemoryPeer) -> int:
        if "sbe" in peer.dial.url:
            refused.append(peer)
            return 401
        return 0

    case.venue.refuse = refuse
    for line in case.stream.lines:
        line.link.restart("test")
    case.clock.advance(60.0)
    assert refused
    assert case.figures()["fallbacks"] == 1
    assert case.quotes["BTCUSDT"]
    assert case.stream.feed.name == "binance.spot.fallback"


def test_stores_say_how_many_lines_feed_them(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    case.clock.advance(5.0)
    store = case.stores[Kind.BOOKTICKER]
    assert (store.lines_up, store.lines_configured) == (2, 2)
    assert case.clock.time_ns() - store.feed_ok_ns <= 1_000_000_000
    case.venue.refuse = lambda peer: 503
    for peer in case.peers():
        peer.fail()
    case.clock.advance(5.0)
    assert (store.lines_up, store.lines_configured) == (0, 2)
    assert case.clock.time_ns() - store.feed_ok_ns >= 4_000_000_000


def test_the_age_of_frames_is_known_within_an_error(make: Callable[..., Case]) -> None:
    case = make(lines=1)
    case.venue.delay = lambda peer: 0.030
    case.clock.advance(60.0)
    age = case.stream.lines[0].clock.age()
    assert age is not None
    assert age.error_us >= 0
    assert 0 <= age.p50_us <= 31_000


def test_the_receipt_is_plain_json(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    case.clock.advance(10.0)
    receipt = msgspec.json.decode(msgspec.json.encode(case.engine.receipt()[0]))
    assert receipt["name"] == "binance.spot.json"
    assert receipt["published"] == sum(map(len, (*case.trades.values(), *case.quotes.values())))
    ledger = {(row["kind"], row["symbol"]): row for row in receipt["ledger"]}
    assert ledger["trade", "BTCUSDT"]["state"] == "contiguous"
    assert ledger["bbo", "BTCUSDT"]["state"] == "unknown"
    assert ledger["trade", "BTCUSDT"]["records"] == len(case.trades["BTCUSDT"])
    assert [row["line"] for row in receipt["redundancy"]] == [0, 1]


def test_a_hundred_lines_are_told_apart(make: Callable[..., Case]) -> None:
    case = make(lines=100)
    case.venue.rate = 5.0
    case.clock.advance(5.0)
    assert len(case.peers()) == 100
    case.settle()
    case.assert_nothing_lost()
    figures = case.figures()
    assert figures["duplicates"] == 99 * figures["published"]
    assert figures["stale"] == figures["alone"] == figures["missed"] == 0
