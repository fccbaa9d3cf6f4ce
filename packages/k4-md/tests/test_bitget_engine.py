"""Bitget's lines under the engine, on a manual clock: pings, history, resets, hourly requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import msgspec
import pytest

from k4.core import layout
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.records import Bookticker, Record, Trade
from k4.core.retry import LocalBudget
from k4.core.testing import ManualClock, MemoryPeer, MemoryTransport
from k4.core.transport import Dial
from k4.md.engine import Engine, Group, MemoryStore
from k4.md.exchanges.bitget import EXCHANGE
from k4.md.report import stream_figures
from k4.md.slots import Tap
from k4.md.stream import Stream

Arg = dict[str, str]


def arg_of(channel: str, symbol: str = "BTCUSDT") -> Arg:
    return {"instType": "SPOT", "channel": channel, "instId": symbol}


class Case:
    """Bitget spot in memory, and an engine with lines on it.

    The venue closes whoever sends no `ping` for 120 s. asked: times of requests. recent: trades
    that a subscriber gets as history, newest first.
    """

    def __init__(self, *, lines: int, symbols: tuple[str, ...], kinds: tuple[Kind, ...]) -> None:
        self.clock = ManualClock()
        self.transport = MemoryTransport(self.clock, self.meet)
        self.seq = 1 << 60
        self.trade_id = 1_471_423_022_176_681_986
        self.recent: list[dict[str, str]] = []
        self.args: dict[MemoryPeer, list[Arg]] = {}
        self.pinged: dict[MemoryPeer, float] = {}
        self.asked: dict[MemoryPeer, list[float]] = {}
        self.closed = 0
        self.records: list[Record] = []
        product = ProductConfig(name="spot", symbols=symbols, lines=lines, kinds=kinds)
        config = ConnectionConfig(exchange="bitget", products=(product,))
        self.engine = Engine(
            config,
            EXCHANGE.feeds(config, {}),
            stores=lambda product, kind: MemoryStore("test", kind, product.symbols),
            dials=lambda feed: [Dial(url=feed.urls[0])],
            transport=self.transport,
            clock=self.clock,
            budget=LocalBudget(300, 300.0),
            rng=random.Random(1),
        )
        self.engine.prepare()
        self.engine.tap(self.tap)
        self.engine.start()
        self.clock.advance(1.0)

    def tap(self, group: Group, kind: Kind) -> Tap:
        return lambda slot, data: self.records.append(layout.LAYOUTS[kind].unpack(data))

    @property
    def stream(self) -> Stream:
        return self.engine.streams[0]

    @property
    def figures(self) -> dict[str, int]:
        return stream_figures(self.engine.groups[0], self.stream)

    @property
    def peers(self) -> list[MemoryPeer]:
        return [peer for peer in self.args if peer.open]

    @property
    def trades(self) -> list[int]:
        return [record.trade_id for record in self.records if isinstance(record, Trade)]

    @property
    def quotes(self) -> list[int]:
        return [record.update_id for record in self.records if isinstance(record, Bookticker)]

    # -- the venue --------------------------------------------------------------------------------

    def meet(self, peer: MemoryPeer) -> None:
        peer.on_text = lambda data: self.told(peer, data)
        self.args[peer] = []
        self.pinged[peer] = self.clock.monotonic()
        self.asked[peer] = []
        self.clock.call_later(1.0, self.watch, peer)
        peer.accept(delay=0.01)

    def watch(self, peer: MemoryPeer) -> None:
        if peer.done:
            return
        if self.clock.monotonic() - self.pinged[peer] > 120.0:
            self.closed += 1
            peer.fail("no ping")
        else:
            self.clock.call_later(1.0, self.watch, peer)

    def told(self, peer: MemoryPeer, data: bytes) -> None:
        if data == b"ping":
            self.pinged[peer] = self.clock.monotonic()
            peer.text(b"pong")
            return
        request = msgspec.json.decode(data)
        self.asked[peer].append(self.clock.monotonic())
        for arg in request["args"]:
            peer.text(msgspec.json.encode({"event": request["op"], "arg": arg}))
            if request["op"] == "unsubscribe":
                self.args[peer].remove(arg)
                continue
            self.args[peer].append(arg)
            if arg["channel"] == "trade":
                self.push(arg, "snapshot", self.recent, [peer])
            else:
                self.quote(peers=[peer], arg=arg, id=self.seq)

    def push(
        self, arg: Arg, action: str, data: object, peers: list[MemoryPeer] | None = None
    ) -> None:
        frame = {"action": action, "arg": arg, "data": data, "ts": self.ms}
        for peer in self.peers if peers is None else peers:
            if peer.open and arg in self.args[peer]:
                peer.text(msgspec.json.encode(frame))

    @property
    def ms(self) -> int:
        return self.clock.time_ns() // 1_000_000

    def quote(
        self,
        *,
        peers: list[MemoryPeer] | None = None,
        arg: Arg | None = None,
        id: int = 0,
    ) -> None:
        if not id:
            self.seq += 7
        side = [["1.5", "2"]]
        book = {"asks": side, "bids": [], "ts": str(self.ms), "seq": id or self.seq, "pseq": 0}
        self.push(arg or arg_of("books1"), "snapshot", [book], peers)

    def trade(self, count: int = 1, peers: list[MemoryPeer] | None = None) -> None:
        items = []
        for _ in range(count):
            self.trade_id += 1_000
            items.append(
                {
                    "ts": str(self.ms),
                    "price": "1.5",
                    "size": "1",
                    "side": "buy",
                    "tradeId": str(self.trade_id),
                }
            )
        items.reverse()
        self.recent = (items + self.recent)[:50]
        self.push(arg_of("trade"), "update", items, peers)

    def stop(self) -> None:
        self.engine.stop()
        self.clock.advance(2.0)
        self.engine.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Case]]:
    cases: list[Case] = []

    def made(
        *,
        lines: int = 2,
        symbols: tuple[str, ...] = ("BTCUSDT",),
        kinds: tuple[Kind, ...] = (Kind.BOOKTICKER, Kind.TRADE),
    ) -> Case:
        cases.append(Case(lines=lines, symbols=symbols, kinds=kinds))
        return cases[-1]

    yield made
    for case in cases:
        case.stop()


def test_lines_outlive_the_two_minutes_without_ping(make: Callable[..., Case]) -> None:
    case = make()
    for _ in range(600):
        case.clock.advance(1.0)
        case.quote()
        case.trade()
    assert case.closed == 0
    assert case.figures["reconnects"] == 0
    assert len(case.trades) == 600


def test_history_is_never_published_and_live_trades_are_once(make: Callable[..., Case]) -> None:
    case = make(lines=2, kinds=(Kind.TRADE,))
    for _ in range(10):
        case.trade(3)
    assert case.trades == sorted(case.trades)
    assert len(case.trades) == 30
    cut, _ = case.peers
    cut.fail("cut")
    case.clock.advance(0.001)
    case.trade(4)  # only the other line brings them; the cut one gets them as history
    case.clock.advance(5.0)
    case.trade(2)
    case.clock.advance(1.0)
    assert len(case.trades) == len(set(case.trades)) == 36
    for peer in case.peers:
        peer.fail("cut")
    case.clock.advance(0.001)
    assert not case.peers
    case.trade(5)  # nobody is there
    case.clock.advance(8.0)
    case.trade(1)
    assert len(case.trades) == 37
    assert case.trades == sorted(case.trades)


def test_a_smaller_seq_of_a_clearly_later_time_is_a_reset(make: Callable[..., Case]) -> None:
    case = make()
    for _ in range(5):
        case.clock.advance(0.1)
        case.quote()
    before = case.quotes[-1]
    case.seq = 100
    case.clock.advance(1.0)
    case.quote()  # too early to be told from a straggler
    assert case.quotes[-1] == before
    case.clock.advance(1.5)
    for _ in range(3):
        case.quote()
        case.clock.advance(0.1)
    assert case.quotes[-3:] == [114, 121, 128]
    assert case.figures["resets"] == 1


def test_repeats_of_a_seq_are_no_news(make: Callable[..., Case]) -> None:
    case = make(lines=1)
    case.quote()
    count = len(case.quotes)
    for _ in range(10):
        case.clock.advance(0.5)
        case.quote(id=case.seq)
    assert len(case.quotes) == count


def test_quiet_channels_never_use_up_more_than_the_hours_requests(
    make: Callable[..., Case],
) -> None:
    case = make(lines=1, symbols=tuple(f"S{i}USDT" for i in range(16)))
    rng = random.Random(3)
    for _ in range(7200):
        case.clock.advance(1.0)
        if rng.random() < 0.5:  # each symbol speaks every half a minute
            case.quote(arg=arg_of("books1", f"S{rng.randrange(16)}USDT"))
    assert max(map(len, case.asked.values())) >= 100
    for times in case.asked.values():
        for at, when in enumerate(times):
            assert sum(when <= t < when + 3600.0 for t in times[at:]) <= 240
            assert sum(when <= t < when + 1.0 for t in times[at:]) <= 10
