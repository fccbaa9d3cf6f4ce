"""SBE figures to the last bit, for every mantissa and exponent that the schema can carry."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st

from k4.core.config import ConnectionConfig, ProductConfig, Secret
from k4.core.enums import Kind
from k4.core.records import Bookticker, Depth5, Trade
from k4.md.exchanges.binance import EXCHANGE
from k4.md.feed import Feed
from k4.md.sinks import CollectingSink

I64 = st.integers(0, 2**63 - 1)
I8 = st.integers(-128, 127)


def sbe_feed(*symbols: str) -> Feed:
    product = ProductConfig(
        name="spot",
        symbols=symbols,
        kinds=(Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5),
        feed="sbe",
        headers={"X-MBX-APIKEY": Secret("key")},
    )
    (feed,) = EXCHANGE.feeds(ConnectionConfig(exchange="binance", products=(product,)), {})
    return feed


FEED = sbe_feed("BTCUSDT", "BTCUSD", "这是测试币456")


def told(frame: bytes) -> CollectingSink:
    sink = CollectingSink.of(FEED)
    FEED.session().receive(frame, 0, sink)
    return sink


def header(length: int, template: int, version: int = 0) -> bytes:
    return struct.pack("<HHHH", length, template, 1, version)


def name(symbol: str) -> bytes:
    raw = symbol.encode()
    return bytes([len(raw)]) + raw


def exact(mantissa: int, exponent: int) -> float:
    """Correctly rounded, by way of a fraction or, where that is no help, of decimal text."""
    value = Fraction(mantissa) * Fraction(10) ** exponent
    found = float(Decimal(mantissa).scaleb(exponent))
    assert math.isclose(found, value.numerator / value.denominator, rel_tol=0.0)
    return found


@settings(max_examples=400, deadline=None)
@given(pe=I8, qe=I8, figures=st.tuples(I64, I64, I64, I64), update=I64, event=I64)
@example(pe=-128, qe=127, figures=(2**63 - 1, 2**63 - 1, 1, 0), update=0, event=0)
@example(pe=-22, qe=-23, figures=(2**53 + 1, 2**53 + 1, 2**53 - 1, 3), update=1, event=1)
def test_quotes_are_exact_whatever_the_exponents(
    pe: int, qe: int, figures: tuple[int, int, int, int], update: int, event: int
) -> None:
    bid, bid_vol, ask, ask_vol = figures
    body = struct.pack("<qqbbqqqq", event, update, pe, qe, *figures)
    (record,) = told(header(50, 10001) + body + name("BTCUSDT")).records
    prices = (exact(bid, pe), exact(bid_vol, qe), exact(ask, pe), exact(ask_vol, qe))
    assert record == Bookticker("BTCUSDT", 0, event, 0, update, *prices, 0, 0, 0)


@settings(max_examples=200, deadline=None)
@given(
    pe=I8,
    qe=I8,
    extra=st.integers(0, 5),
    spare=st.integers(0, 5),
    entries=st.lists(st.tuples(I64, I64, I64, st.booleans()), max_size=5),
)
def test_trades_of_any_entry_length_come_in_order(
    pe: int, qe: int, extra: int, spare: int, entries: list[tuple[int, int, int, bool]]
) -> None:
    group = b"".join(
        struct.pack("<qqqB", id, price, vol, maker) + bytes(spare)
        for id, price, vol, maker in entries
    )
    frame = (
        header(18 + extra, 10000, version=1)
        + struct.pack("<qqbb", 12, 11, pe, qe)
        + bytes(extra)
        + struct.pack("<HI", 25 + spare, len(entries))
        + group
        + name("BTCUSD")
    )
    sink = told(frame)
    assert sink.records == [
        Trade("BTCUSD", 0, 12, 11, id, exact(price, pe), exact(vol, qe), int(maker), 0)
        for id, price, vol, maker in entries
    ]
    assert not sink.drops
    for end in range(len(frame)):
        assert not told(frame[:end]).records


levels = st.lists(st.tuples(I64, I64), max_size=20)


@settings(max_examples=200, deadline=None)
@given(pe=I8, qe=I8, extra=st.integers(0, 5), spare=st.integers(0, 5), bids=levels, asks=levels)
def test_books_give_their_best_five_levels(
    pe: int,
    qe: int,
    extra: int,
    spare: int,
    bids: list[tuple[int, int]],
    asks: list[tuple[int, int]],
) -> None:
    groups = b"".join(
        struct.pack("<HH", 16 + spare, len(side))
        + b"".join(struct.pack("<qq", *level) + bytes(spare) for level in side)
        for side in (bids, asks)
    )
    frame = (
        header(18 + extra, 10002)
        + struct.pack("<qqbb", 5, 6, pe, qe)
        + bytes(extra)
        + groups
        + name("这是测试币456")
    )
    (record,) = told(frame).records
    assert isinstance(record, Depth5)
    assert (record.bid_level, record.ask_level) == (min(len(bids), 5), min(len(asks), 5))
    for side, prices, vols in (
        (bids, record.bid_prices, record.bid_vols),
        (asks, record.ask_prices, record.ask_vols),
    ):
        best = side[:5] + [(0, 0)] * (5 - len(side))
        assert list(prices) == [exact(price, pe) for price, _ in best]
        assert list(vols) == [exact(vol, qe) for _, vol in best]
    assert not told(frame[:-1]).records


def test_a_cut_symbol_is_never_taken_for_a_shorter_one() -> None:
    body = struct.pack("<qqbbqqqq", 1, 2, -2, -2, 3, 4, 5, 6)
    whole = header(50, 10001) + body + name("BTCUSDT")
    assert [r.symbol for r in told(whole).records] == ["BTCUSDT"]
    sink = told(whole[:-1])  # what is left spells BTCUSD, which is subscribed
    assert not sink.records
    assert sink.drops == ["malformed"]


def test_one_bad_entry_costs_itself_alone() -> None:
    entries = [(1, 10, 10, 0), (2, -10, 10, 0), (-3, 10, 10, 0), (4, 10, 10, 2), (5, 10, 10, 1)]
    frame = (
        header(18, 10000)
        + struct.pack("<qqbb", 12, 11, 0, 0)
        + struct.pack("<HI", 25, len(entries))
        + b"".join(struct.pack("<qqqB", *entry) for entry in entries)
        + name("BTCUSDT")
    )
    sink = told(frame)
    assert [r.trade_id for r in sink.records if isinstance(r, Trade)] == [1, 5]
    assert sink.drops == ["price", "malformed", "malformed"]
