"""Arbitration between sessions of relayed records, on rings in ordinary memory."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.enums import Kind, ProductType, Venue
from k4.core.layout import LAYOUTS
from k4.core.limits import Limits
from k4.core.records import AggTrade, Bookticker, Depth5, Record, Trade
from k4.core.ring import RingWriter
from k4.md.arbiter import Arbiter
from k4.md.relayed import Cell, Owner, RelayedPort

BASE_US = 1_790_000_000_000_000
OWNER: Owner = (Venue.BINANCE, ProductType.SPOT)


def quote(id: int, us: int | None = None, bid: float = 1.0) -> Bookticker:
    """A quote whose venue time follows its id unless it is given; 0: the venue sends none."""
    us = BASE_US + id * 1000 if us is None else us
    return Bookticker("BTCUSDT", 0, us, 0, id, bid, 2.0, bid + 1, 3.0, 4, 5, us + 77)


def trade(id: int, us: int | None = None) -> Trade:
    us = BASE_US + id * 1000 if us is None else us
    return Trade("BTCUSDT", 0, us, us, id, 100.0, 0.5, 1, us + 77)


def agg(id: int) -> AggTrade:
    us = BASE_US + id * 1000
    # A count that is not last - first + 1 must come out as it went in.
    return AggTrade("BTCUSDT", 0, us, us, id * 2, id * 2 + 1, id, 100.0, 0.5, 7, 0, us + 77)


def book(id: int, price: float) -> Depth5:
    us = BASE_US + id * 1000
    five, zeros = (price, 0.0, 0.0, 0.0, 0.0), (0,) * 5
    return Depth5("BTCUSDT", 0, us, 0, id, 1, 1, 9.5, five, five, five, five, zeros, zeros, us)


class Relay:
    """One symbol's ring with sessions A and B before it."""

    def __init__(
        self,
        kind: Kind,
        owner: Owner = OWNER,
        *,
        timed: bool = True,
        ring: RingWriter | None = None,
    ) -> None:
        self.kind = kind
        self.now_ns = BASE_US * 1000
        self.datagram = bytearray(LAYOUTS[kind].size)  # used again for the next record
        self.resets: list[int] = []
        self.arbiter = Arbiter(
            product_type=0,
            symbols=["BTCUSDT"],
            channels=(),
            rings={},
            limits=Limits(),
            shared=False,
            now_ns=self.now_ns,
            on_reset=lambda slot: self.resets.append(slot.generation),
        )
        self.ring = ring or RingWriter.in_memory(kind, ["BTCUSDT"], 4096)
        self.cell = Cell(kind, "BTCUSDT", "store", self.ring.lanes[0], kind)
        self.cell.claim(self.arbiter, owner, timed, self.now_ns)
        self.a, self.b = self.session("a"), self.session("b")

    def session(self, name: str) -> RelayedPort:
        port = RelayedPort(self.arbiter, name)
        self.arbiter.ports.append(port)
        return port

    def offer(self, port: RelayedPort, *records: Record, in_order: bool = True) -> None:
        for record in records:
            port.now = self.now_ns
            self.datagram[:] = LAYOUTS[self.kind].pack(record)
            assert self.cell.slot is not None
            port.offer(self.cell, self.cell.slot, memoryview(self.datagram), in_order)

    def wait(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)
        self.arbiter.tick(self.now_ns)

    @property
    def published(self) -> list[Record]:
        lane, size = self.ring.lanes[0], LAYOUTS[self.kind].size
        return [
            LAYOUTS[self.kind].unpack(lane.buffer, lane.base + i * size) for i in range(lane.next)
        ]

    @property
    def ids(self) -> list[Any]:
        name = {Kind.TRADE: "trade_id", Kind.AGGTRADE: "agg_trade_id"}.get(self.kind, "update_id")
        return [getattr(record, name) for record in self.published]


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        (Kind.BOOKTICKER, quote(5)),
        (Kind.TRADE, trade(5)),
        (Kind.AGGTRADE, agg(5)),
        (Kind.DEPTH5, book(5, 9.0)),
    ],
)
def test_a_record_arrives_as_it_was_sent(kind: Kind, record: Record) -> None:
    relay = Relay(kind)
    relay.offer(relay.a, record)

    assert relay.published == [record]


def test_datagrams_that_were_overtaken_are_no_reset() -> None:
    relay = Relay(Kind.BOOKTICKER, timed=False)
    relay.offer(relay.a, *(quote(id, 0) for id in (996, 997, 1000)))
    relay.offer(relay.a, quote(998, 0), quote(999, 0), in_order=False)
    for _ in range(60):
        for port in (relay.a, relay.b):
            port.heard_ns = port.now = relay.now_ns
        relay.wait(0.25)
    assert relay.resets == []
    assert relay.ids == [996, 997, 1000]


def test_a_datagram_of_before_a_reset_that_comes_after_it_is_stale() -> None:
    relay = Relay(Kind.BOOKTICKER, timed=False)
    relay.offer(relay.a, quote(1000, 0), quote(5, 0))
    relay.offer(relay.a, quote(1001, 0), in_order=False)
    relay.offer(relay.a, quote(6, 0))
    assert relay.ids == [1000, 5, 6]
    assert (relay.resets, relay.a.stale) == ([1], 1)


def test_the_newest_quote_of_any_session_wins() -> None:
    relay = Relay(Kind.BOOKTICKER)
    relay.offer(relay.a, quote(1), quote(2))
    relay.offer(relay.b, quote(1), quote(2), quote(3))
    relay.offer(relay.a, quote(3), quote(4))

    assert relay.ids == [1, 2, 3, 4]
    assert (relay.b.duplicates, relay.b.stale, relay.a.duplicates) == (1, 1, 1)
    assert relay.resets == []


def test_a_late_quote_is_stale_and_no_reset() -> None:
    relay = Relay(Kind.BOOKTICKER)
    relay.offer(relay.a, quote(1), quote(3))
    relay.offer(relay.a, quote(2), in_order=False)

    assert relay.ids == [1, 3]
    assert (relay.a.stale, relay.resets) == (1, [])


@pytest.mark.parametrize("us", [None, 0])
def test_a_lower_id_in_sequence_from_the_last_publisher_is_a_reset(us: int | None) -> None:
    relay = Relay(Kind.BOOKTICKER, timed=us is None)
    relay.offer(relay.a, quote(100, us), quote(101, us))
    newer = None if us == 0 else BASE_US + 200_000
    relay.offer(relay.a, quote(1, us if us == 0 else newer), quote(2, us if us == 0 else newer))

    assert relay.ids == [100, 101, 1, 2]
    assert relay.resets == [1]
    assert relay.ring.lanes[0].generation == 1


def test_another_session_still_in_the_old_generation_is_stale() -> None:
    relay = Relay(Kind.BOOKTICKER)
    relay.offer(relay.a, quote(100), quote(101))
    relay.offer(relay.a, quote(1, BASE_US + 200_000))
    relay.offer(relay.b, quote(101), quote(102), quote(1, BASE_US + 200_000))
    relay.offer(relay.b, quote(2, BASE_US + 201_000))

    assert relay.ids == [100, 101, 1, 2]
    assert relay.b.stale == 3
    assert relay.resets == [1]


def test_a_reset_of_a_session_that_did_not_publish_last_is_proved_by_its_time() -> None:
    relay = Relay(Kind.BOOKTICKER)
    relay.offer(relay.b, quote(99))
    relay.offer(relay.a, quote(100))  # and dies
    relay.offer(relay.b, quote(1, BASE_US + 1_000_000))
    assert relay.ids == [99, 100]

    relay.offer(relay.b, quote(2, BASE_US + 2_200_000), quote(3, BASE_US + 2_300_000))

    assert relay.ids == [99, 100, 2, 3]
    assert relay.resets == [1]


def test_without_times_silence_proves_the_reset_of_a_restarted_sender() -> None:
    relay = Relay(Kind.BOOKTICKER, timed=False)
    relay.offer(relay.a, quote(100, 0))  # and dies; its next start is a session of its own
    restarted = relay.session("c")
    for id in range(1, 13):
        relay.offer(restarted, quote(id, 0))
        relay.wait(0.25)
    assert relay.ids == [100]

    for id in range(13, 20):
        relay.offer(restarted, quote(id, 0))
        relay.wait(0.25)
    opened = relay.ids[1]

    assert 13 <= opened < 19
    assert relay.ids == [100, *range(opened, 20)]
    assert relay.resets == [1]


def test_sessions_that_only_lag_never_open_a_generation() -> None:
    relay = Relay(Kind.BOOKTICKER, timed=False)
    relay.offer(relay.a, *(quote(i, 0) for i in range(100, 110)))
    relay.offer(relay.b, *(quote(i, 0) for i in range(100, 106)))
    relay.wait(10)
    relay.a.heard_ns = relay.now_ns  # a quiet market: only heartbeats come
    relay.offer(relay.b, quote(106, 0), quote(107, 0))
    relay.offer(relay.a, quote(110, 0))

    assert relay.ids == list(range(100, 111))
    assert relay.resets == []


def test_an_unchanged_book_is_not_published_again() -> None:
    relay = Relay(Kind.DEPTH5)
    relay.offer(relay.a, book(1, 5.0))
    relay.offer(relay.b, book(2, 5.0), book(3, 6.0))
    relay.offer(relay.a, book(4, 5.0))

    assert relay.ids == [1, 3, 4]


def test_trades_are_the_union_in_any_order_and_a_late_one_is_no_reset() -> None:
    relay = Relay(Kind.TRADE)
    relay.offer(relay.a, trade(1), trade(2), trade(5))
    relay.offer(relay.a, trade(3), trade(4), trade(5), trade(6))  # healed at the sender
    relay.offer(relay.b, trade(2), trade(7))
    relay.wait(10)

    assert relay.ids == [1, 2, 5, 3, 4, 6, 7]
    assert relay.resets == []


def test_a_smaller_trade_id_with_a_newer_time_is_a_reset() -> None:
    relay = Relay(Kind.TRADE)
    relay.offer(relay.a, trade(100), trade(101))
    relay.offer(relay.a, trade(1, BASE_US + 150_000), trade(2, BASE_US + 151_000))
    relay.offer(relay.b, trade(101), trade(1, BASE_US + 150_000), trade(3, BASE_US + 152_000))

    assert relay.ids == [100, 101, 1, 2, 3]
    assert relay.resets == [1]


def test_a_trade_that_waits_for_the_proof_of_a_reset_is_published_as_it_came() -> None:
    relay = Relay(Kind.TRADE)
    relay.offer(relay.a, trade(100), trade(101))
    again, later = trade(100, BASE_US + 500_000), trade(102, BASE_US + 2_900_000)
    relay.offer(relay.b, again)  # an id that both generations have
    assert relay.ids == [100, 101]
    relay.offer(relay.b, later)
    relay.offer(relay.b, trade(99, BASE_US + 6_000_000))
    assert relay.ids == [100, 101, 102, 99]
    assert relay.resets == [1]

    relay = Relay(Kind.TRADE)
    relay.offer(relay.a, trade(100), trade(101))
    relay.offer(relay.b, again, trade(99, BASE_US + 3_000_000))
    assert relay.published[2:] == [again, trade(99, BASE_US + 3_000_000)]
    assert relay.resets == [1]


@pytest.mark.parametrize("owner", [(Venue.BYBIT, 1), (Venue.BYBIT, 3), (77, 0)])
def test_hashed_trade_ids_have_no_order(owner: Owner) -> None:
    relay = Relay(Kind.TRADE, owner)
    ids = [1 << 63, 5, (1 << 64) - 1, 17]
    for session in (relay.a, relay.b):
        relay.offer(session, *(trade(id, BASE_US + i) for i, id in enumerate(ids)))

    assert relay.ids == ids
    assert relay.resets == []


@pytest.mark.parametrize("owner", [OWNER, (Venue.BYBIT, 1)])
def test_a_restart_publishes_nothing_twice(owner: Owner) -> None:
    before = Relay(Kind.TRADE, owner)
    before.offer(before.a, *(trade(id) for id in range(50)))

    after = Relay(Kind.TRADE, owner, ring=RingWriter(before.ring.buffer, Kind.TRADE))
    after.offer(after.a, *(trade(id) for id in range(40, 60)))

    assert after.ids == list(range(60))


@given(st.integers(0, 1 << 32), st.integers(2, 60), st.booleans())
def test_two_sessions_in_any_interleaving(seed: int, count: int, trades: bool) -> None:
    """Each session loses some records and brings others late; order within a run is its own."""
    rng = random.Random(seed)
    kind = Kind.TRADE if trades else Kind.BOOKTICKER
    relay = Relay(kind)
    make = trade if trades else quote
    pending = []
    for port in (relay.a, relay.b):
        sent = [id for id in range(1, count) if rng.random() < 0.8]
        arrival = sorted(sent, key=lambda id: id + rng.choice((0, 0, 0, 4)))
        pending.append((port, arrival))
    brought = {id for _, arrival in pending for id in arrival}
    offered = sum(len(arrival) for _, arrival in pending)
    highest = dict.fromkeys((relay.a, relay.b), 0)
    while any(arrival for _, arrival in pending):
        port, arrival = rng.choice([p for p in pending if p[1]])
        id = arrival.pop(0)
        relay.offer(port, make(id), in_order=id > highest[port])
        highest[port] = max(id, highest[port])

    assert relay.resets == []
    assert len(set(relay.ids)) == len(relay.ids)
    if trades:
        assert set(relay.ids) == brought
    else:
        assert relay.ids == sorted(relay.ids)
        assert not brought or relay.ids[-1] == max(brought)
    taken = relay.a.wins + relay.b.wins
    refused = sum(p.duplicates + p.stale for p in (relay.a, relay.b))
    assert taken == len(relay.ids)
    assert taken + refused == offered
