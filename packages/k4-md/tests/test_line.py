"""Copies of an update are known by their bytes: no line decodes what another line brought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import KIND_BY_LABEL
from k4.core.latency import Histogram
from k4.core.liveness import Watch
from k4.core.ring import RingWriter
from k4.core.transport import Closed
from k4.md.arbiter import Arbiter
from k4.md.exchanges import find
from k4.md.exchanges.binance.sbe import DEPTH_GROUP, DEPTH_ROOT, DEPTH_SNAPSHOT, HEADER, LEVEL
from k4.md.feed import Control, Sink
from k4.md.line import Line

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
            headers={"X-MBX-APIKEY": "key"} if self.feed == "sbe" else {},
        )
        config = ConnectionConfig(exchange=self.exchange, products=(product,))
        rule = exchange.product(self.product).rule
        (feed,) = exchange.feeds(config, {(self.product, s): rule(s) for s in self.symbols})
        self.arbiter = Arbiter(
            product_type=0,
            symbols=self.symbols,
            channels=feed.channels,
            rings={kind: RingWriter.in_memory(kind, self.symbols, 64)},
            limits=feed.limits,
            shared=True,
            now_ns=self.now,
        )
        owner = Counted()
        self.lines = [Line(i, feed, self.arbiter, owner, Watch([], 1)) for i in range(self.count)]
        self.decoded = [0] * self.count
        for i, line in enumerate(self.lines):
            line._hear(self._counting(i, feed.session().receive))

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


def test_books_of_one_id_and_time_are_two_symbols_unless_their_first_levels_agree() -> None:
    """Where even these agree, a line that brings both of them has the second one decoded."""
    lines = Lines("binance", "spot", "depth5", feed="sbe", symbols=("BTCUSDT", "ETHUSDT"))
    lines.bring(0, sbe_book(b"BTCUSDT", 100))
    lines.bring(0, sbe_book(b"ETHUSDT", 100))
    lines.bring(1, sbe_book(b"ETHUSDT", 100))
    lines.bring(1, sbe_book(b"BTCUSDT", 100))
    assert lines.decoded == [2, 1]
    assert lines.counts[0] == (2, 0)
    assert [slot.published for slot in lines.arbiter.live_slots()] == [1, 1]


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
    # On the other line the old generation and the fall to the new one are looked at, no more.
    assert lines.decoded == [3, 2]
    assert lines.counts == [(3, 0), (0, 1)]
    assert lines.lines[1].port.stale == 2
