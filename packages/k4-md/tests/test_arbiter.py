"""Arbitration over N lines: first copy wins, the union of trades, gaps, attached stores."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from arbiter_bench import MS, SECOND, Bench, quotes, trades
from hypothesis import given, settings
from hypothesis import strategies as st

from k4.core.enums import Kind
from k4.core.records import Depth5
from k4.md.feed import Ids, Reset

# P1, P3: quotes


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), max_size=120))
def test_quotes_are_the_newest_of_any_interleaving(arrivals: list[tuple[int, int]]) -> None:
    """Each line keeps the venue's order; between lines anything goes."""
    bench = quotes(lines=4)
    own = [0] * 4
    expected: list[int] = []
    for line, step in arrivals:
        own[line] += step
        bench.quote(line, own[line])
        if not expected or own[line] > expected[-1]:
            expected.append(own[line])
    assert bench.published() == expected
    assert bench.resets == 0


def test_counts_tell_copies_from_old_news() -> None:
    bench = quotes()
    for id in (1, 2, 3):
        bench.quote(0, id)
    bench.quote(1, 3)
    bench.quote(1, 3)
    bench.ports[1].own[Kind.BOOKTICKER] = -1
    bench.arbiter.slots[0].recent.pop(2)  # type: ignore[union-attr]
    bench.quote(1, 2)
    first, second = bench.ports
    assert (first.wins, first.duplicates, first.stale) == (3, 0, 0)
    assert (second.wins, second.duplicates, second.stale) == (0, 2, 1)


def test_lag_wait_and_what_only_one_line_brought() -> None:
    bench = quotes(lines=3)
    bench.quote(0, 1)
    bench.now += 5 * MS
    bench.quote(1, 1)
    bench.now += 5 * MS
    bench.quote(2, 1)
    bench.quote(0, 2)
    bench.wait(40.0)
    first, second, third = bench.ports
    assert (first.wait.count, first.alone) == (1, 1)
    assert first.wait.percentile(50) == pytest.approx(5 * MS, abs=10_000)
    assert second.lag.percentile(50) == pytest.approx(5 * MS, abs=10_000)
    assert third.lag.percentile(50) == pytest.approx(10 * MS, abs=10_000)
    assert (second.missed, third.missed) == (1, 1)


def test_what_a_line_missed_before_it_left_is_counted() -> None:
    bench = quotes(lines=3)
    bench.now += SECOND
    for id in range(1, 11):
        bench.quote(0, id)
        bench.quote(1, id)
    bench.now += SECOND
    for id in range(11, 21):
        bench.quote(0, id)
    bench.now += 10 * SECOND
    bench.quote(0, 21)
    for port in bench.ports[1:]:
        bench.arbiter.close(port)
    bench.wait(40.0)
    first, second, third = bench.ports
    assert (second.missed, third.missed) == (10, 20)
    assert first.alone == 10  # of the last one, copies may have been on their way


def test_a_line_is_charged_with_nothing_that_is_not_of_its_feed() -> None:
    """Two feeds of two lines in one group, each with a symbol of its own; nothing is lost."""
    bench = quotes(lines=0, symbols=("BTCUSDT", "ETHUSDT"))
    bench.arbiter.shared = True
    for symbol in (0, 0, 1, 1):
        slot = symbol << 2 | Kind.BOOKTICKER
        bench.ports.append(bench.arbiter.port("line", lambda event: None, carries=(slot,)))
        bench.ports[-1].serving_ns = bench.now
    for slot in bench.arbiter.live_slots():
        slot.recent = {}
    for id in range(1, 11):
        for line in range(4):
            bench.now += MS
            bench.quote(line, id, symbol=line // 2)
    bench.now += 5 * SECOND
    bench.arbiter.depart(bench.ports[0])
    bench.wait(40.0)
    assert [port.wins for port in bench.ports] == [10, 0, 10, 0]
    assert [port.duplicates for port in bench.ports] == [0, 10, 0, 10]
    assert [(port.missed, port.alone) for port in bench.ports] == [(0, 0)] * 4


# Books


def test_a_book_is_published_when_its_top_changed() -> None:
    bench = Bench(Kind.DEPTH5, Ids.NEWEST)
    bench.book(0, 1, (10.0, 1.0), (9.0, 2.0))
    bench.book(0, 2, (10.0, 1.0), (9.0, 2.0))
    bench.book(1, 3, (10.0, 1.0), (9.0, 2.5))
    bench.book(1, 2, (11.0, 1.0))
    assert bench.published() == [1, 3]
    newest = bench.records()[-1]
    assert isinstance(newest, Depth5)
    assert newest.bid_prices == (10.0, 9.0, 0.0, 0.0, 0.0)
    assert newest.bid_vols == (1.0, 2.5, 0.0, 0.0, 0.0)
    assert (newest.bid_level, newest.ask_level) == (2, 1)


def test_an_empty_book_is_zeros() -> None:
    bench = Bench(Kind.DEPTH5, Ids.NEWEST)
    bench.book(0, 1, (10.0, 1.0))
    bench.book(0, 2)
    newest = bench.records()[-1]
    assert isinstance(newest, Depth5)
    assert (newest.bid_level, newest.bid_prices, newest.ask_vols) == (0, (0.0,) * 5, (0.0,) * 5)


# P2, P3: trades


@st.composite
def deliveries(draw: st.DrawFn, lines: int = 3) -> list[tuple[int, int]]:
    """Arrivals (line, id): every line brings a subset of 1..n in any order, some twice."""
    top = draw(st.integers(1, 25))
    arrivals = [
        (line, id)
        for line in range(lines)
        for id in draw(st.lists(st.integers(1, top), max_size=2 * top))
    ]
    return draw(st.permutations(arrivals)) if len(arrivals) < 40 else arrivals


@pytest.mark.parametrize("ids", [Ids.CONSECUTIVE, Ids.SUSPECTED, Ids.RISING, Ids.UNORDERED])
@settings(max_examples=60)
@given(deliveries())
def test_trades_are_the_union_each_once(ids: Ids, arrivals: list[tuple[int, int]]) -> None:
    bench = trades(ids, lines=3)
    for line, id in arrivals:
        bench.now += MS
        bench.trade(line, id, us=bench.now // 1000, key=f"t{id}" if ids is Ids.UNORDERED else None)
    delivered = {id for _, id in arrivals}
    assert sorted(bench.published()) == sorted(delivered)
    gaps = bench.arbiter.live_slots()[0].gaps
    if gaps is not None and delivered:
        assert gaps.lost == max(delivered) - min(delivered) + 1 - len(delivered)


def test_a_placeholder_counts_as_seen_and_is_no_record() -> None:
    bench = trades()
    bench.trade(0, 1)
    bench.ports[0].skip(Kind.TRADE, 2)
    bench.trade(0, 3)
    bench.trade(1, 2)
    gaps = bench.arbiter.live_slots()[0].gaps
    assert bench.published() == [1, 3]
    assert gaps is not None
    assert gaps.lost == 0


def test_history_is_never_published_and_holds_back_only_its_own_line() -> None:
    bench = trades(Ids.RISING, reset=Reset.NEWER_TIME)
    for id in (5, 6, 7):
        bench.ports[1].seed(Kind.TRADE, id)
    assert bench.published() == []
    bench.trade(1, 7, us=1)
    assert bench.published() == []
    bench.trade(0, 7, us=1)  # the other line saw it live
    bench.trade(1, 8, us=2)
    assert bench.published() == [7, 8]


def test_a_suspected_gap_follows_from_the_covered_ids() -> None:
    bench = trades(Ids.SUSPECTED)
    bench.trade(0, 10)
    bench.trade(0, 13, first=11)
    bench.trade(0, 20, first=19)
    gaps = bench.arbiter.live_slots()[0].gaps
    assert gaps is not None
    assert (gaps.runs, gaps.lost) == (1, 5)


# Attached stores


@pytest.mark.parametrize("kind", [Kind.BOOKTICKER, Kind.TRADE])
def test_a_restart_publishes_nothing_twice(kind: Kind) -> None:
    bench = quotes() if kind is Kind.BOOKTICKER else trades()
    bring = bench.quote if kind is Kind.BOOKTICKER else bench.trade
    for id in (1, 2, 3):
        bring(0, id)
    bench.restart()
    for id in (2, 3, 4):
        bring(1, id)
    assert bench.published() == [1, 2, 3, 4]


def test_a_reset_while_nobody_looked_does_not_wedge_the_restart() -> None:
    bench = quotes()
    bench.quote(0, 1000)
    bench.restart()
    bench.quote(0, 5)
    bench.quote(0, 6)
    bench.wait(2.5)
    bench.quote(1, 7)
    assert bench.published() == [1000, 6, 7]


def test_too_late_is_counted() -> None:
    bench = trades(size=70_000)
    ids: Sequence[int] = range(100_000, 100_000 + 66_000)
    for id in ids:
        bench.trade(0, id)
    bench.now += 40 * SECOND
    bench.trade(0, ids[-1] + 2)
    bench.trade(1, 10)
    slot = bench.arbiter.live_slots()[0]
    assert slot.too_late == 0  # a reset's, perhaps
    bench.trade(1, ids[-1] + 3)
    bench.wait(3.0)
    assert slot.too_late == 1
    assert bench.published()[-1] == ids[-1] + 3


def test_a_restart_publishes_no_trade_without_order_twice() -> None:
    """The store has only hashes of the venue's texts, which are enough to know them."""
    bench = trades(Ids.UNORDERED, reset=Reset.ONE)
    us = bench.now // 1000
    bench.trade(0, 11, us=us, key="a")
    bench.restart()
    bench.trade(0, 11, us=us, key="a")
    bench.trade(0, 12, us=us, key="b")
    assert bench.published() == [11, 12]


def test_a_restart_publishes_no_unchanged_book() -> None:
    bench = Bench(Kind.DEPTH5, Ids.NEWEST)
    bench.book(0, 100, (1.0, 1.0))
    bench.restart()
    bench.book(0, 101, (1.0, 1.0))
    assert bench.published() == [100]
