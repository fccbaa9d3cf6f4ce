"""A Bybit book on one connection: it is the venue's book, or it says once that it broke."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.records import Depth5
from k4.md.exchanges.bybit import EXCHANGE
from k4.md.feed import Broken, Feed
from k4.md.sinks import CollectingSink

TOPIC = "orderbook.50.BTCUSDT"
Levels = list[tuple[int, int]]

levels = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), max_size=5)
steps = st.sampled_from([1, 1, 1, 1, 1, 0, 2, -3])
updates = st.lists(st.tuples(st.sampled_from("ddddds"), steps, levels, levels), max_size=40)


def feed() -> Feed:
    product = ProductConfig(name="linear", symbols=("BTCUSDT",), kinds=(Kind.DEPTH5,))
    (found,) = EXCHANGE.feeds(ConnectionConfig(exchange="bybit", products=(product,)), {})
    return found


def frame(type: str, u: int, ms: int, bids: Levels, asks: Levels) -> bytes:
    sides = [[[str(price), str(size)] for price, size in side] for side in (bids, asks)]
    data = {"s": "BTCUSDT", "b": sides[0], "a": sides[1], "u": u, "seq": u}
    push: dict[str, Any] = {"topic": TOPIC, "type": type, "ts": ms, "data": data, "cts": ms}
    return json.dumps(push, separators=(",", ":")).encode()


def top(side: dict[int, int], *, bids: bool) -> tuple[float, ...]:
    prices = [float(price) for price in sorted(side, reverse=bids)][:5]
    return (*prices, *[0.0] * (5 - len(prices)))


@settings(max_examples=150, deadline=None)
@given(updates=updates)
def test_it_equals_the_venues_book_or_says_once_that_it_broke(
    updates: list[tuple[str, int, Levels, Levels]],
) -> None:
    of = feed()
    session, sink = of.session(), CollectingSink.of(of)
    truth: tuple[dict[int, int], dict[int, int]] | None = None
    last = u = 100
    told = False
    for ms, (type, step, bids, asks) in enumerate(updates, 1000):
        sink.records.clear()
        sink.controls.clear()
        sink.drops.clear()
        u += step
        whole = type == "s"
        session.receive(frame("snapshot" if whole else "delta", u, ms, bids, asks), 0, sink)
        follows = truth is not None and u == last + 1
        if whole or follows:
            sides = ({}, {}) if whole or truth is None else truth
            for side, changes in zip(sides, (bids, asks), strict=True):
                side.update(changes)
                for price in [price for price, size in side.items() if not size]:
                    del side[price]
            truth, last, told = sides, u, False
            (record,) = sink.records
            assert isinstance(record, Depth5)
            assert record.update_id == u
            assert record.bid_prices == top(sides[0], bids=True)
            assert record.ask_prices == top(sides[1], bids=False)
            assert record.bid_vols[0] == sides[0].get(int(record.bid_prices[0]), 0)
            assert not sink.controls
        else:
            # Every frame here is newer by its time, so nothing is taken for a straggler.
            assert not sink.records
            assert [event.slot for event in sink.controls if isinstance(event, Broken)] == (
                [] if told else [Kind.DEPTH5]
            )
            assert sink.drops == (["broken"] if told else [])
            truth, told = None, True
            u = max(u, 100)


def test_fifty_levels_are_the_most_that_are_kept() -> None:
    of = feed()
    session, sink = of.session(), CollectingSink.of(of)
    session.receive(frame("snapshot", 5, 1, [(price, 1) for price in range(1, 61)], []), 0, sink)
    gone: Levels = [(price, 0) for price in range(14, 61)]
    session.receive(frame("delta", 6, 2, gone, []), 0, sink)
    record = sink.records[-1]
    assert isinstance(record, Depth5)
    # 11, 12 and 13 were among the best fifty, 10 and below were not.
    assert record.bid_prices == (13.0, 12.0, 11.0, 0.0, 0.0)
    assert record.bid_level == 3
