"""Copies of an update are known by their bytes: no line decodes what another line brought."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import KIND_BY_LABEL
from k4.core.latency import Histogram
from k4.core.liveness import Watch
from k4.core.ring import RingWriter
from k4.core.transport import Closed
from k4.md.arbiter import Arbiter
from k4.md.exchanges import find
from k4.md.exchanges.binance.sbe import (
    BEST_BID_ASK_HEADER,
    BEST_BID_ASK_ROOT,
    DEPTH_GROUP,
    DEPTH_ROOT,
    DEPTH_SNAPSHOT,
    HEADER,
    LEVEL,
)
from k4.md.feed import Control, Sink
from k4.md.line import Line
from k4.md.slots import BATCH, RECENT

Receive = Callable[[bytes, int, Sink], None]
START = 1_790_000_000_000_000_000
OKX = '{"arg":{"channel":"%s","instId":"BTC-USDT"},"data":[%s]}'
BITGET = '{"action":"update","arg":{"instType":"SPOT","channel":"trade","instId":"BTCUSDT"},%s}'


def okx_quote(id: int, ms: int) -> bytes:
    sides = '"asks":[["1.6","2","0","1"]],"bids":[["1.5","2","0","1"]]'
    return (OKX % ("bbo-tbt", f'{{{sides},"ts":"{ms}","seqId":{id}}}')).encode()


def okx_trades(*ids: int, ms: int = 5) -> bytes:
    deals = [f'{{"tradeId":"{i}","px":"1","sz":"2","side":"buy","ts":"{ms}"}}' for i in ids]
    return (OKX % ("trades", ",".join(deals))).encode()


def bitget_trade(id: int, ms: int) -> bytes:
    deal = f'{{"ts":"{ms}","price":"1","size":"2","side":"buy","tradeId":"{id}"}}'
    return (BITGET % f'"data":[{deal}],"ts":{ms}').encode()


def bybit_trade(id: int, ms: int) -> bytes:
    deal = f'{{"T":{ms},"s":"BTCUSDT","S":"Buy","v":"1","p":"2","i":"uuid-{id}"}}'
    head = f'"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":{ms}'
    return f'{{{head},"data":[{deal}]}}'.encode()


def binance_quote(id: int, ms: int) -> bytes:
    sides = '"b":"1.5","B":"1","a":"1.6","A":"2"'
    data = f'{{"u":{id},"s":"BTCUSDT",{sides}}}'
    return f'{{"stream":"btcusdt@bookTicker","data":{data}}}'.encode()


def sbe_book(
    symbol: bytes, id: int, *, event_us: int = 5, price: int = 150, deep: int = 1
) -> bytes:
    """Twenty levels a side; `deep` is the size of the last ask, far behind the head."""
    root = DEPTH_ROOT.pack(event_us, id, -2, 0)
    bids = b"".join(LEVEL.pack(price - i, 1) for i in range(20))
    asks = b"".join(LEVEL.pack(price + 1 + i, deep if i == 19 else 1) for i in range(20))
    group = DEPTH_GROUP.pack(LEVEL.size, 20)
    head = HEADER.pack(DEPTH_ROOT.size, DEPTH_SNAPSHOT, 1, 0)
    return b"".join((head, root, group, bids, group, asks, bytes((len(symbol),)), symbol))


def sbe_quote(id: int) -> bytes:
    root = BEST_BID_ASK_ROOT.pack(START // 1000, id, -1, 0, 15, 1, 16, 2)
    return BEST_BID_ASK_HEADER + root + b"\x07BTCUSDT"


class Counted:
    """A link and an owner in one; a line asks little of either."""

    opened_count = 1

    def line_up(self, line: Line, /) -> None: ...

    def line_down(self, line: Line, how: Closed, retry_in: float, /) -> None: ...

    def line_says(self, line: Line, event: Control, /) -> None: ...


@dataclass
class Lines:
    """Lines of one feed; `decoded` counts the frames that reached a session, by line."""

    exchange: str
    product: str
    kind: str
    count: int = 2
    now: int = START
    decoded: list[int] = field(default_factory=list)
    feed: str = "json"
    symbols: tuple[str, ...] = ("BTCUSDT",)

    def __post_init__(self) -> None:
        exchange, kind = find(self.exchange), KIND_BY_LABEL[self.kind]
        product = ProductConfig(
            name=self.product,
            symbols=self.symbols,
            kinds=(kind,),
            lines=self.count,
            feed=self.feed,
            headers={"X-MBX-APIKEY": "key"} if self.feed != "json" else {},
        )
        config = ConnectionConfig(exchange=self.exchange, products=(product,))
        rule = exchange.product(self.product).rule
        feeds = exchange.feeds(config, {(self.product, s): rule(s) for s in self.symbols})
        self.arbiter = Arbiter(
            product_type=0,
            symbols=self.symbols,
            channels=feeds[0].channels,
            rings={kind: RingWriter.in_memory(kind, self.symbols, 64)},
            limits=feeds[0].limits,
            shared=True,
            now_ns=self.now,
        )
        owner = Counted()
        self.lines = [
            Line(i, feed, self.arbiter, owner, Watch([], 1))
            for feed in feeds
            for i in range(self.count)
        ]
        self.decoded = [0] * len(self.lines)
        for i, line in enumerate(self.lines):
            line._hear(self._counting(i, line.feed.session().receive))

    def _counting(self, line: int, receive: Receive) -> Receive:
        def counting(frame: bytes, received_ns: int, out: Sink) -> None:
            self.decoded[line] += 1
            receive(frame, received_ns, out)

        return counting

    def bring(self, line: int, frame: bytes, after_ns: int = 1_000_000) -> None:
        self.now += after_ns
        self.lines[line].message(b"".join((frame, b"")), self.now, 1)

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Updates that each line won, and copies that it brought."""
        return [(line.port.wins, line.port.duplicates) for line in self.lines]


@pytest.mark.parametrize(
    ("exchange", "product", "kind", "make"),
    [
        ("binance", "spot", "bbo", binance_quote),
        ("okx", "spot", "bbo", okx_quote),
        ("okx", "spot", "trade", lambda id, ms: okx_trades(id, ms=ms)),
        ("bitget", "spot", "trade", bitget_trade),
        ("bybit", "linear", "trade", bybit_trade),
    ],
)
def test_the_same_bytes_are_decoded_once(
    exchange: str, product: str, kind: str, make: Callable[[int, int], bytes]
) -> None:
    lines = Lines(exchange, product, kind)
    for i in range(1, 11):
        frame = make(100 + i, 1000 * i)
        lines.bring(0, frame)
        lines.bring(1, frame)
    assert lines.decoded == [10, 0]
    assert lines.counts == [(10, 0), (0, 10)]
    assert lines.lines[1].port.lag.count == lines.lines[0].port.wait.count == 10


@pytest.mark.parametrize("lag", [0, 29_999_999, 30_000_000, 7_000_000_000, -40_000_000])
def test_the_lag_of_a_copy_is_counted_whatever_it_is(lag: int) -> None:
    lines = Lines("binance", "spot", "bbo", count=3)
    lines.bring(0, binance_quote(100, 0))
    lines.bring(1, binance_quote(100, 0), lag)
    lines.bring(2, binance_quote(100, 0), 1_000)
    expected, later = Histogram(), Histogram()
    expected.add(lag)
    later.add(lag + 1_000)
    first, second, third = (line.port for line in lines.lines)
    assert second.lag.summary() == first.wait.summary() == expected.summary()
    assert second.lag.negative == (lag < 0)
    assert third.lag.summary() == later.summary()
    assert lines.decoded == [1, 0, 0]
    lines.bring(1, binance_quote(100, 0))
    assert (second.duplicates, second.lag.count) == (2, 1)


def test_a_line_that_brings_nothing_but_copies_is_heard() -> None:
    lines = Lines("binance", "spot", "bbo")
    for i in range(3):
        lines.bring(0, binance_quote(100 + i, 0))
        lines.bring(1, binance_quote(100 + i, 0))
    assert lines.lines[1].last_message_ns == lines.now


def test_a_long_book_is_known_by_its_head() -> None:
    lines = Lines("binance", "spot", "depth5", feed="sbe", symbols=("BTCUSDT", "ETHUSDT"))
    for line in (0, 1):
        for id in (100, 101):
            lines.bring(line, sbe_book(b"BTCUSDT", id))
            lines.bring(line, sbe_book(b"ETHUSDT", id, price=90))
    assert lines.decoded == [4, 0]
    assert lines.counts == [(2, 0), (0, 4)]  # the second book of each shows the same five levels


def test_books_of_one_id_and_time_are_two_symbols_and_decoded_if_their_first_levels_agree() -> None:
    lines = Lines("binance", "spot", "depth5", feed="sbe", symbols=("BTCUSDT", "ETHUSDT"))
    lines.bring(0, sbe_book(b"BTCUSDT", 100))
    lines.bring(0, sbe_book(b"ETHUSDT", 100))
    lines.bring(1, sbe_book(b"ETHUSDT", 100))
    lines.bring(1, sbe_book(b"BTCUSDT", 100))
    assert lines.decoded == [2, 2]
    assert lines.counts == [(2, 0), (0, 2)]
    assert [slot.published for slot in lines.arbiter.live_slots()] == [1, 1]
    for line in (0, 1):  # and those that follow are known again
        lines.bring(line, sbe_book(b"BTCUSDT", 101))
    assert lines.decoded == [3, 2]


def filled(histogram: Histogram) -> list[tuple[int, float]]:
    return [(i, n) for i, n in enumerate(histogram.bins) if n]


def told(lines: Lines) -> list[object]:
    """All that a run of lines leaves behind."""
    arbiter = lines.arbiter
    for slot in arbiter.live_slots():
        slot.forget(1 << 62)
    records = [
        (slot.lane.next, slot.generation, bytes(slot.lane.buffer)) for slot in arbiter.live_slots()
    ]
    ports = [
        (
            p.wins,
            p.duplicates,
            p.stale,
            p.missed,
            p.alone,
            p.own,
            p.seen,
            filled(p.lag),
            filled(p.wait),
        )
        for p in (line.port for line in lines.lines)
    ]
    return [records, ports]


@st.composite
def deliveries(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(line, id) in order of arrival: three lines behind each other, with loss, repeats and,
    on some of them, disorder."""
    rng = draw(st.randoms(use_true_random=False))
    found = []
    for line in range(3):
        behind, disorder = rng.choice((0, 1, 9)), rng.choice((0, 0, 2, 30))
        for id in range(1, 30):
            times = rng.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 2))
            at = [id + behind + disorder * rng.random() for _ in range(times)]
            found.extend((when + rng.random() / 2, line, id) for when in at)
    return [(line, id) for _, line, id in sorted(found)]


MADE: dict[str, tuple[tuple[str, str, str, str], Callable[[int], bytes]]] = {
    "binance quotes": (("binance", "spot", "bbo", "json"), lambda id: binance_quote(id, 0)),
    "binance books": (
        ("binance", "spot", "depth5", "sbe"),
        lambda id: sbe_book(b"BTCUSDT", id, event_us=START // 1000 + id, price=100 + id),
    ),
    "okx trades": (
        ("okx", "spot", "trade", "json"),
        lambda id: okx_trades(id, ms=START // 1_000_000 + id),
    ),
    "bybit trades": (
        ("bybit", "linear", "trade", "json"),
        lambda id: bybit_trade(id, START // 1_000_000 + id),
    ),
}


@pytest.mark.parametrize("name", MADE)
@given(deliveries())
def test_what_is_known_by_its_bytes_is_what_a_full_decode_finds(
    name: str, arrivals: Sequence[tuple[int, int]]
) -> None:
    """The judge's frames have bytes of their own on each line, so that it knows none of them.
    Quotes without a time come in order: where they fall, a decoder has to think of a reset."""
    if name == "binance quotes":
        orders = [sorted(id for line, id in arrivals if line == i) for i in range(3)]
        arrivals = [(line, orders[line].pop(0)) for line, _ in arrivals]
    (exchange, product, kind, feed), make = MADE[name]
    lines = Lines(exchange, product, kind, count=3, feed=feed)
    judge = Lines(exchange, product, kind, count=3, feed=feed)
    for line, id in arrivals:
        frame = make(id)
        lines.bring(line, frame)
        judge.bring(line, of_its_own(frame, line))
    assert told(lines) == told(judge)
    assert sum(judge.decoded) >= len(set(arrivals))


@pytest.mark.parametrize("winner", ["json", "sbe"])
def test_each_of_two_encodings_is_decoded_once(winner: str) -> None:
    lines = Lines("binance", "spot", "bbo", feed="both")
    json, sbe = ((0, 1), (2, 3)) if lines.lines[0].feed.head is None else ((2, 3), (0, 1))
    order = (*json, *sbe) if winner == "json" else (*sbe, *json)
    for id in range(100, 110):
        for line in order:
            lines.bring(line, binance_quote(id, 0) if line in json else sbe_quote(id))
    assert [lines.decoded[line] for line in order] == [10, 0, 10, 0]
    assert [lines.counts[line] for line in order] == [(10, 0), (0, 10), (0, 10), (0, 10)]
    assert lines.lines[order[0]].port.wait.count == 10


def test_what_a_line_missed_is_skipped_in_the_order_of_first_copies() -> None:
    lines = Lines("binance", "spot", "bbo")
    for id in range(100, 200):
        lines.bring(0, binance_quote(id, 0))
    for id in (*range(100, 130), *range(150, 200)):
        lines.bring(1, binance_quote(id, 0))
    assert lines.decoded == [100, 0]
    assert lines.counts == [(100, 0), (0, 80)]


@pytest.mark.parametrize("late", [RECENT - BATCH, RECENT + BATCH])
def test_copies_are_known_for_a_while_and_judged_after_it(late: int) -> None:
    """The line stands at an update for so long that those after it are forgotten."""
    lines = Lines("binance", "spot", "bbo")
    for line in (0, 1):
        lines.bring(line, binance_quote(100, 0))
    for id in range(101, 101 + late):
        lines.bring(0, binance_quote(id, 0), 1_000)
    for id in (101, 102, 100 + late):
        lines.bring(1, binance_quote(id, 0), 1_000)
    assert lines.decoded[1] == (0 if late < RECENT else 2)
    assert lines.counts[0] == (1 + late, 0)
    assert lines.lines[1].port.stale == lines.decoded[1]
    assert len(lines.arbiter.memo) <= RECENT


def test_a_line_that_stands_still_holds_no_update_but_its_last() -> None:
    lines = Lines("binance", "spot", "bbo", symbols=("BTCUSDT", "ETHUSDT"))
    for line in (0, 1):
        lines.bring(line, binance_quote(100, 0))
    for id in range(101, 101 + 3 * RECENT):
        lines.bring(0, binance_quote(id, 0), 1_000)
    for slot in lines.arbiter.live_slots():
        slot.forget(1 << 62)
    held = [one for one in gc.get_objects() if type(one) is list and one[-1:] == [owner(lines)]]
    assert len(held) <= RECENT + 2


def test_a_reset_cuts_what_a_line_would_follow() -> None:
    """The other line is behind the reset: it must not find its next update among the forgotten."""
    lines = Lines("okx", "spot", "bbo")
    for id in (1000, 1001, 1002):
        lines.bring(0, okx_quote(id, 10_000 + id))
    lines.bring(1, okx_quote(1000, 11_000))
    lines.bring(0, okx_quote(5, 14_000))
    assert lines.decoded == [4, 0]
    lines.bring(1, okx_quote(1001, 11_001))
    lines.bring(1, okx_quote(5, 14_000))
    lines.bring(0, okx_quote(6, 14_001))
    lines.bring(1, okx_quote(6, 14_001))
    assert lines.decoded == [5, 1]
    assert lines.lines[1].port.stale == 1
    assert lines.lines[1].port.duplicates == 3


def test_nothing_follows_on_an_update_that_is_forgotten() -> None:
    """The other line stands at it over two resets, and is asked what it brings of the first."""
    lines = Lines("okx", "spot", "bbo", symbols=("BTCUSDT", "ETHUSDT"))
    lines.bring(0, okx_quote(1000, 10_000))
    for line in (0, 1):
        lines.bring(line, okx_quote(50, 10_000).replace(b"BTC-USDT", b"ETH-USDT"))
    lines.bring(0, okx_quote(5, 14_000))
    lines.bring(0, okx_quote(3, 18_000))
    lines.bring(1, okx_quote(5, 14_000))
    assert [slot.resets for slot in lines.arbiter.live_slots()] == [2, 0]
    assert lines.decoded == [4, 1]
    assert lines.lines[1].port.stale == 1


def owner(lines: Lines) -> object:
    return lines.lines[0].port


def of_its_own(frame: bytes, line: int) -> bytes:
    """The same message in other bytes: with spaces behind it, or of a later SBE version."""
    if frame[:1] == b"{":
        return frame + b" " * line
    return frame[:6] + line.to_bytes(2, "little") + frame[8:]


def test_a_batch_is_decoded_by_every_line() -> None:
    lines = Lines("okx", "spot", "trade")
    for line in (0, 1):
        lines.bring(line, okx_trades(7, 8))
        lines.bring(line, okx_trades(8, 9))
    assert lines.decoded == [2, 2]
    assert lines.counts == [(3, 1), (0, 4)]


def test_copies_are_known_again_after_a_reset_that_times_prove() -> None:
    lines = Lines("okx", "spot", "bbo")
    for line in (0, 1):
        lines.bring(line, okx_quote(1000, 10_000))
        lines.bring(line, okx_quote(5, 13_000))
        lines.bring(line, okx_quote(6, 13_001))
    # On the other line the old generation is looked at, no more.
    assert lines.decoded == [3, 1]
    assert lines.counts == [(3, 0), (0, 2)]
    assert lines.lines[1].port.stale == 1


def test_copies_are_known_again_when_all_lines_have_joined_a_reset_without_times() -> None:
    lines = Lines("binance", "spot", "bbo")

    def look(seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            lines.now += 100_000_000
            for line in lines.lines:
                line.port.now = lines.now  # other instruments are heard
            lines.arbiter.tick(lines.now)

    def bring(line: int, *ids: int) -> None:
        for id in ids:
            lines.bring(line, binance_quote(id, 0))

    bring(0, 1000, 1001)
    bring(1, 1000)
    bring(0, 5)
    look(1.0)
    bring(0, 6)
    look(2.5)
    (slot,) = lines.arbiter.live_slots()
    assert slot.resets == 1
    bring(1, 1001)
    look(0.1)
    assert slot.gate, "the other line is still in the old generation"
    bring(1, 6)
    look(0.1)
    assert not slot.gate
    before = list(lines.decoded)
    for id in (7, 8, 9):
        bring(0, id)
        bring(1, id)
    assert [now - then for now, then in zip(lines.decoded, before, strict=True)] == [3, 0]
    assert slot.last == 9
    bring(1, 1002, 1003)  # above, so of no old generation: no line is in one any more
    assert slot.last == 1003


def binance_trade(id: int, ms: int) -> bytes:
    data = f'"e":"trade","E":{ms},"s":"BTCUSDT","t":{id},"p":"1","q":"2","T":{ms},"m":true,"M":true'
    return f'{{"stream":"btcusdt@trade","data":{{{data}}}}}'.encode()


def quiet(lines: Lines, seconds: float) -> None:
    """Nothing comes but of other instruments."""
    for _ in range(round(seconds * 10)):
        lines.now += 100_000_000
        for line in lines.lines:
            line.port.now = lines.now
        lines.arbiter.tick(lines.now)


def test_a_reset_to_near_ids_is_noted_of_lines_whose_copies_are_known_by_their_bytes() -> None:
    """Otherwise what such a line is the first to bring afterwards is published twice."""
    lines = Lines("binance", "spot", "trade", count=3)
    ms = START // 1_000_000
    for id in range(1000, 1020):
        for line in (0, 1, 2):
            lines.bring(line, binance_trade(id, ms + id))
    for line in (0, 1, 2):
        lines.bring(line, binance_trade(500, ms + 5000))
    for id in range(501, 506):
        for line in (2, 0, 1):
            lines.bring(line, binance_trade(id, ms + 5000 + id))
    quiet(lines, 4.0)
    slot = lines.arbiter.live_slots()[0]
    assert (slot.resets, slot.published) == (1, 26)


def test_what_a_line_brings_again_after_a_reconnect_is_no_reset() -> None:
    """Its new node is 4 s behind, and quotes without times say nothing of that."""
    lines = Lines("binance", "spot", "bbo")
    for id in range(1001, 1101):
        for line in (0, 1):
            lines.bring(line, binance_quote(id, 0))
        lines.now += 50_000_000
        lines.arbiter.tick(lines.now)
    lines.lines[0].link_opened(Reopened())  # type: ignore[arg-type]
    for id in range(1021, 1201):  # the other line stalls
        lines.bring(0, binance_quote(id, 0))
        lines.now += 50_000_000
        lines.arbiter.tick(lines.now)
    slot = lines.arbiter.live_slots()[0]
    assert (slot.resets, slot.published) == (0, 200)


class Reopened(Counted):
    """A link whose connection was lost and is open again."""

    opened_count = 2
