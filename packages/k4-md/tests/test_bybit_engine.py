"""Bybit's lines under the engine, on a manual clock: refusals, broken books, resets, UUIDs."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator

import msgspec
import pytest

from k4.core import layout
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.records import Depth5, Record, Trade
from k4.core.retry import LocalBudget
from k4.core.testing import ManualClock, MemoryPeer, MemoryTransport
from k4.core.transport import Dial
from k4.md.engine import Engine, Group, MemoryStore
from k4.md.exchanges.bybit import EXCHANGE
from k4.md.report import stream_figures
from k4.md.slots import Tap
from k4.md.stream import Stream

TRADES, BOOK = "publicTrade.BTCUSDT", "orderbook.50.BTCUSDT"


class Case:
    """Bybit linear in memory, and an engine with lines on it.

    A request that names an unknown symbol is refused whole. Books are sent to whom subscribed them,
    a snapshot first. asked: (peer, op, topics) in order.
    """

    def __init__(self, *, lines: int, symbols: tuple[str, ...], kinds: tuple[Kind, ...]) -> None:
        self.clock = ManualClock()
        self.transport = MemoryTransport(self.clock, self.meet)
        self.u = 100
        self.asked: list[tuple[MemoryPeer, str, list[str]]] = []
        self.topics: dict[MemoryPeer, set[str]] = {}
        self.records: list[Record] = []
        product = ProductConfig(name="linear", symbols=symbols, lines=lines, kinds=kinds)
        config = ConnectionConfig(exchange="bybit", products=(product,))
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
        return [peer for peer in self.topics if peer.open]

    def meet(self, peer: MemoryPeer) -> None:
        peer.on_text = lambda data: self.told(peer, data)
        peer.accept(delay=0.01)

    def told(self, peer: MemoryPeer, data: bytes) -> None:
        request = msgspec.json.decode(data)
        if request["op"] == "ping":
            peer.text(b'{"success":true,"ret_msg":"pong","conn_id":"x","op":"ping"}')
            return
        args = request["args"]
        self.asked.append((peer, request["op"], args))
        bad = [arg for arg in args if "NOPE" in arg]
        answer = {
            "success": not bad,
            "ret_msg": f"Invalid symbol :{bad}" if bad else "",
            "conn_id": "x",
            "req_id": request["req_id"],
            "op": request["op"],
        }
        peer.text(msgspec.json.encode(answer))
        mine = self.topics.setdefault(peer, set())
        if request["op"] == "unsubscribe":
            mine -= set(args)
        elif not bad:
            mine |= set(args)
            if BOOK in args:
                self.book("snapshot", [peer])

    def push(self, topic: str, frame: object, peers: list[MemoryPeer]) -> None:
        for peer in peers:
            if peer.open and topic in self.topics[peer]:
                peer.text(msgspec.json.encode(frame))

    def book(self, type: str, peers: list[MemoryPeer]) -> None:
        """The book as it is now: one bid, whose size is `u`."""
        ms = self.clock.time_ns() // 1_000_000
        side = [["100", str(self.u)]]
        data = {"s": "BTCUSDT", "b": side, "a": [], "u": self.u, "seq": self.u}
        self.push(BOOK, {"topic": BOOK, "type": type, "ts": ms, "data": data, "cts": ms}, peers)

    def update(self, peers: list[MemoryPeer] | None = None) -> None:
        """The book's next update, sent to some or to all."""
        self.u += 1
        self.book("delta", self.peers if peers is None else peers)
        self.clock.advance(0.02)

    def deal(self, names: list[str], peers: list[MemoryPeer] | None = None) -> None:
        ms = self.clock.time_ns() // 1_000_000
        items = [
            {"T": ms, "s": "BTCUSDT", "S": "Buy", "v": "1", "p": "2", "i": name} for name in names
        ]
        frame = {"topic": TRADES, "type": "snapshot", "ts": ms, "data": items}
        self.push(TRADES, frame, self.peers if peers is None else peers)

    @property
    def books(self) -> list[int]:
        return [record.update_id for record in self.records if isinstance(record, Depth5)]

    @property
    def prices_are_true(self) -> bool:
        return all(r.bid_vols[0] == r.update_id for r in self.records if isinstance(r, Depth5))

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
        kinds: tuple[Kind, ...] = (Kind.TRADE, Kind.DEPTH5),
    ) -> Case:
        cases.append(Case(lines=lines, symbols=symbols, kinds=kinds))
        return cases[-1]

    yield made
    for case in cases:
        case.stop()


def test_one_bad_symbol_costs_the_others_nothing(make: Callable[..., Case]) -> None:
    case = make(lines=1, symbols=("NOPEUSDT", "BTCUSDT"))
    case.clock.advance(2.0)
    assert [len(args) for _, _, args in case.asked] == [4, 1, 1, 1, 1]
    assert set(case.stream.refusals) == {"publicTrade.NOPEUSDT", "orderbook.50.NOPEUSDT"}
    case.update()
    case.deal(["a"])
    assert case.books == [100, 101]
    assert len(case.records) == 3
    (line,) = case.stream.lines
    assert line.up


def test_a_hole_on_one_line_is_healed_there_and_lost_nowhere(make: Callable[..., Case]) -> None:
    case = make()
    one, other = case.peers
    asked = len(case.asked)
    case.update()
    case.update([other])
    case.update()
    assert [entry[1:] for entry in case.asked[asked:]] == [
        ("unsubscribe", [BOOK]),
        ("subscribe", [BOOK]),
    ]
    assert case.asked[-1][0] is one
    case.clock.advance(0.5)
    for _ in range(5):
        case.update()
    assert case.books == list(range(100, 109))
    assert case.prices_are_true
    assert case.stream.counts["broken"] == 1
    assert case.figures["lost"] == 0
    assert all(line.up for line in case.stream.lines)


def test_what_no_line_brought_is_counted_to_the_id(make: Callable[..., Case]) -> None:
    case = make()
    for _ in range(3):
        case.update()
    case.update([])
    case.update([])
    case.update()
    case.clock.advance(0.5)
    for _ in range(3):
        case.update()
    assert case.books == [100, 101, 102, 103, 106, 107, 108, 109]
    assert case.prices_are_true
    assert case.stream.counts["broken"] == 2
    assert (case.figures["gaps"], case.figures["lost"]) == (1, 2)


def test_a_restart_at_one_opens_one_generation_on_all_lines(make: Callable[..., Case]) -> None:
    case = make()
    for _ in range(3):
        case.update()
    case.clock.advance(0.1)
    case.u = 1
    case.book("snapshot", case.peers)
    case.clock.advance(0.02)
    for _ in range(3):
        case.update()
    assert case.books == [100, 101, 102, 103, 1, 2, 3, 4]
    assert case.figures["resets"] == 1
    assert case.figures["lost"] == 0


def test_trades_named_by_uuids_are_published_once_whatever_their_hashes(
    make: Callable[..., Case],
) -> None:
    case = make()
    rng = random.Random(5)
    names = [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(3000)]
    one, other = case.peers
    for at in range(0, len(names), 30):
        burst = names[at : at + 30]
        case.deal(burst[:20], [one])
        case.deal(burst[5:], [other])
        case.deal(burst[20:], [one])
        case.clock.advance(0.003)
    ids = [record.trade_id for record in case.records if isinstance(record, Trade)]
    assert len(ids) == len(set(ids)) == len(names)
    assert case.figures["duplicates"] >= 2400


def test_a_line_of_unordered_trades_is_replaced_and_never_taken_for_silent(
    make: Callable[..., Case],
) -> None:
    case = make(kinds=(Kind.TRADE,))
    rng = random.Random(7)
    old = case.stream.lines[0]
    for second in range(60):
        for _ in range(20):
            case.deal([str(uuid.UUID(int=rng.getrandbits(128)))])
            case.clock.advance(0.05)
        if second == 10:
            assert case.stream.replace(old, "test")
    assert old not in case.stream.lines
    assert case.stream.counts["rotations"] == 1
    assert (case.stream.counts["stalls"], case.stream.counts["abandoned"]) == (0, 0)
    assert case.figures["published"] == 1200


def test_a_line_that_lacks_the_trades_of_the_others_is_silent(make: Callable[..., Case]) -> None:
    case = make(kinds=(Kind.TRADE,))
    one, other = case.peers
    rng = random.Random(9)
    for _ in range(12):
        case.deal([str(uuid.UUID(int=rng.getrandbits(128)))], [p for p in case.peers if p != one])
        case.clock.advance(1.0)
    assert not one.open
    assert other.open
    assert case.stream.counts["stalls"] == 1


def test_a_book_that_never_comes_after_a_reconnect_is_owed_as_at_the_first_time(
    make: Callable[..., Case],
) -> None:
    """That it came on the former connection is no reason to wait for longer."""
    case = make(lines=1, kinds=(Kind.DEPTH5,))
    for _ in range(20):
        case.update()
    case.book = lambda type, peers: None  # type: ignore[method-assign]  # acked, but mute
    (peer,) = case.peers
    peer.fail("cut")
    while not case.stream.lines[0].up or not case.stream.lines[0].reconnects:
        case.clock.advance(0.25)
    assert case.stream.counts["stalls"] == 0
    case.clock.advance(6.0)
    assert case.stream.counts["stalls"] == 1
