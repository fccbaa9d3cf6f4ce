"""The simulated market: a consistent book, trades that take from it, ids by the venue's rules."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from k4.core.testing import ManualClock
from k4.runner.sim.binance_feeds import specs
from k4.runner.sim.market import DEPTH, Instrument, InstrumentSpec, Level, MarketEvent

BTC = specs("spot", ["BTCUSDT"])[0]
PEPE = specs("spot", ["PEPEUSDT"])[0]
FUTURE = specs("ubase", ["BTCUSDT"])[0]


def market(spec: InstrumentSpec, seed: int = 1) -> Instrument:
    return Instrument(spec, seed, ManualClock())


def run(instrument: Instrument, events: int, share: float = 0.3) -> list[MarketEvent]:
    return [instrument.step(share) for _ in range(events)]


def apply(side: dict[int, int], deltas: tuple[Level, ...]) -> None:
    for price, size in deltas:
        if size:
            side[price] = size
        else:
            del side[price]


@given(seed=st.integers(0, 10_000), spec=st.sampled_from([BTC, PEPE, FUTURE]))
@settings(max_examples=20, deadline=None)
def test_the_book_never_crosses_and_stays_deep(seed: int, spec: InstrumentSpec) -> None:
    book = market(spec, seed)
    for event in run(book, 300):
        assert 0 < event.after.bid < event.after.ask
    assert book.bid_prices == sorted(set(book.bid_prices), reverse=True)
    assert book.ask_prices == sorted(set(book.ask_prices))
    assert min(len(book.bid_prices), len(book.ask_prices)) >= DEPTH >= 60
    assert min(book.bid_sizes + book.ask_sizes) > 0
    assert all(price % spec.tick == 0 for price in book.bid_prices + book.ask_prices)


def test_deltas_rebuild_the_book() -> None:
    book = market(BTC)
    bids, asks = dict(book.bids(200)), dict(book.asks(200))
    for event in run(book, 3_000):
        apply(bids, event.bids)
        apply(asks, event.asks)
        assert event.before != event.after or event.bids or event.asks or event.fills
    assert bids == dict(book.bids(200))
    assert asks == dict(book.asks(200))


def test_trades_take_liquidity_at_the_prices_of_the_book() -> None:
    book = market(BTC)
    for _ in range(2_000):
        held = (dict(book.bids(200)), dict(book.asks(200)))
        event = book.step(1.0)
        eaten: dict[int, int] = {}
        for fill in event.fills:
            eaten[fill.price] = eaten.get(fill.price, 0) + fill.size
        side = held[0] if event.buyer_is_maker else held[1]
        deltas = dict(event.bids if event.buyer_is_maker else event.asks)
        assert all(side[price] - size == deltas[price] for price, size in eaten.items())
        prices = [fill.price for fill in event.fills]
        assert prices == sorted(prices, reverse=event.buyer_is_maker)


def test_ids_follow_the_venue() -> None:
    events = run(market(FUTURE), 5_000)
    trades = [fill.id for event in events for fill in event.fills]
    assert trades == list(range(trades[0], trades[0] + len(trades)))
    groups = [item for event in events for item in event.aggregates]
    assert [g.id for g in groups] == list(range(groups[0].id, groups[0].id + len(groups)))
    assert all(a.last < b.first for a, b in pairwise(groups))
    changing = [event for event in events if event.bids or event.asks]
    for left, right in pairwise(changing):
        assert right.first_update == left.last_update + 1 <= right.last_update
    kinds = {event.kind for event in events}
    assert {"", "MARKET", "RPI", "ADL", "INSURANCE_FUND", "NA"} == kinds


def test_aggregates_sum_the_fills_of_one_taker_order_and_price() -> None:
    for event in run(market(BTC), 2_000, share=1.0):
        for item in event.aggregates:
            members = [f for f in event.fills if item.first <= f.id <= item.last]
            assert {f.price for f in members} == {item.price}
            assert sum(f.size for f in members) == item.size
            assert len(members) == item.last - item.first + 1


def test_placeholders_are_ids_without_a_trade() -> None:
    events = [event for event in run(market(FUTURE), 5_000) if event.kind == "NA"]
    assert events
    for event in events:
        assert [(f.price, f.size) for f in event.fills] == [(0, 0)]
        assert not event.aggregates
        assert event.before == event.after
    assert all(event.kind != "NA" for event in run(market(BTC), 5_000))


def test_a_seed_repeats_and_another_differs() -> None:
    assert run(market(BTC, 5), 500) == run(market(BTC, 5), 500)
    assert run(market(BTC, 5), 500) != run(market(BTC, 6), 500)


def test_times_rise_by_event_and_follow_the_clock() -> None:
    clock = ManualClock()
    book = Instrument(BTC, 1, clock)
    first = book.step(0.3)
    clock.advance(1.0)
    later = [book.step(0.3) for _ in range(500)]
    assert later[0].engine_us - first.engine_us == 1_000_000
    times = [event.engine_us for event in later]
    assert times == sorted(set(times))
    assert all(event.event_us >= event.engine_us for event in later)


def test_a_reset_sends_every_sequence_back() -> None:
    book = market(BTC)
    last = run(book, 200, share=1.0)[-1]
    for generation in (1, 2, 3):
        book.reset_ids()
        event = book.step(1.0)
        assert event.generation == generation
        assert event.last_update < last.last_update
        assert event.fills[0].id < last.fills[0].id
        assert event.aggregates[0].id < last.aggregates[0].id
        last = event
