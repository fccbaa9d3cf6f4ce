"""Lines are replaced without a hole: whole engines on a manual clock, see `engine_case`."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec
import pytest
from engine_case import SYMBOLS, Case

from k4.core.enums import Kind
from k4.core.testing import MemoryPeer
from k4.core.transport import Dial
from k4.md.dials import spread
from k4.md.feed import Feed


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
    case.clock.advance(7.0)
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
    case.venue.mutes = True
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
    case.venue.mutes = True
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


@pytest.mark.parametrize("skips", [0, 3])
def test_a_receipt_says_what_a_replacement_cost(make: Callable[..., Case], skips: int) -> None:
    """Trades that no line gets while two lines overlap are lost by the receipt, and only these."""
    case = make(lines=2)
    case.venue.skips = 2
    case.clock.advance(5.0)
    assert case.figures()["lost"] == 2
    old = case.peers()[0]
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(0.5)
    assert len(case.peers()) == 3
    case.venue.skips = skips
    case.clock.advance(2.5)
    assert not old.open
    assert case.figures()["rotations"] == 1
    assert case.figures()["overlap_ms"] == 0, "copies may still be on their way"
    case.clock.advance(2.5)
    figures = case.figures()
    assert 1_000 <= figures["overlap_ms"] <= 1_600
    assert (figures["rotation_lost"], figures["rotation_suspected"]) == (skips, 0)
    assert figures["lost"] == 2 + skips
    assert not case.stream.handovers.pending


def test_the_receipts_of_the_last_replacements_are_written_at_the_end(
    make: Callable[..., Case],
) -> None:
    case = make(lines=1)
    case.clock.advance(5.0)
    case.peers()[0].text(b'{"e":"serverShutdown","E":1786613159749}')
    while not case.figures()["rotations"]:
        case.clock.advance(0.1)
    assert case.figures()["overlap_ms"] == 0
    case.engine.stop()
    assert case.figures()["overlap_ms"] >= 1_000


def test_a_successor_that_is_down_takes_over_from_nobody(make: Callable[..., Case]) -> None:
    """Nothing has come since its ack, so that there is nothing that it would have to reach."""
    case = make(lines=2)
    case.clock.advance(5.0)
    case.venue.rate = 0.0
    case.clock.advance(1.0)
    old = case.peers()[0]
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    while not (case.stream.successions and case.stream.successions[0].target is not None):
        case.clock.advance(0.05)
    assert case.stream.successions[0].target == {}
    new = case.venue.transport.peers[-1]
    case.venue.hangs = True
    new.fail("cut")
    case.clock.advance(4.0)
    assert old.open
    assert case.stream.lines_up == 2
    assert case.figures()["rotations"] == 0
    case.venue.hangs = False
    case.clock.advance(8.0)
    assert not old.open
    assert case.stream.lines_up == 2
    assert case.figures()["rotations"] == 1


def at(*hosts: str) -> list[Dial]:
    """Hosts as dials: `a` by name, `a.1` an address of it."""
    return [Dial(url=host.partition(".")[0], address=host.partition(".")[2]) for host in hosts]


@pytest.mark.parametrize(
    ("dials", "taken", "left", "order"),
    [
        (at("a", "b"), [], None, at("a", "b")),
        (at("a", "b"), at("a"), None, at("b", "a")),
        (at("a", "b"), at("a", "b", "b"), None, at("a", "b")),
        (at("a", "b", "c"), at("b"), "a", at("c", "a", "b")),
        (at("a", "b"), at("b"), "a", at("a", "b")),
        # Addresses are places, the name behind them is not.
        (at("a.1", "a.2", "a"), at("a.1", "a.2"), None, at("a.1", "a.2", "a")),
        (at("a.1", "b", "a.2", "a"), at("a.1"), None, at("b", "a.2", "a.1", "a")),
    ],
)
def test_a_new_line_stands_where_the_fewest_do(
    dials: list[Dial], taken: list[Dial], left: str | None, order: list[Dial]
) -> None:
    assert spread(dials, taken, at(left)[0] if left else None) == order


def test_lines_stay_spread_over_cuts_and_replacements(make: Callable[..., Case]) -> None:
    urls = ("ws://a.invalid/stream", "ws://b.invalid/stream", "ws://c.invalid/stream")

    def spread_over(feeds: list[Feed]) -> list[Feed]:
        return [msgspec.structs.replace(feed, urls=urls) for feed in feeds]

    case = make(lines=3, feeds=spread_over)
    case.clock.advance(5.0)
    for turn in range(6):
        victim = case.peers()[turn % 3]
        if turn % 2:
            victim.fail("cut")
        else:
            victim.text(b'{"e":"serverShutdown","E":1786613159749}')
        case.clock.advance(40.0)
        assert not victim.open
        assert sorted(peer.dial.url for peer in case.peers()) == list(urls)
    assert (case.figures()["reconnects"], case.figures()["rotations"]) == (3, 3)


def test_lines_are_judged_in_time_however_many_they_are(make: Callable[..., Case]) -> None:
    case = make(lines=16, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    stalled = case.peers()[1:]
    case.venue.mute.update(stalled)
    case.clock.advance(10.0)
    assert not any(peer.open for peer in stalled)
    assert len(case.peers()) == 16
    assert case.figures()["stalls"] == 15
    case.settle()
    case.assert_nothing_lost()


def test_a_line_that_failed_to_be_replaced_for_days_is_still_judged(
    make: Callable[..., Case],
) -> None:
    """It lacks the trades, and its successors lack the quotes: so often that the wait between them
    could not be doubled any more."""
    case = make(lines=2, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    old, other = case.peers()
    arrive = case.venue.arrive

    def partly(peer: MemoryPeer, frame: bytes, symbol: str, id: int) -> None:
        if {old: b"@trade", other: b"\0"}.get(peer, b"@bookTicker") not in frame:
            arrive(peer, frame, symbol, id)

    case.venue.arrive = partly  # type: ignore[method-assign]
    case.stream.lines[0].failed = 5_000
    case.clock.advance(20.0)
    assert case.figures()["abandoned"] == 1
    assert case.stream.lines[0].failed == 5_001
    case.venue.arrive = arrive  # type: ignore[method-assign]
    case.venue.mute.add(old)
    case.clock.advance(70.0)
    assert not old.open
    assert case.stores[Kind.TRADE].lines_up == 2
    assert case.clock.time_ns() - case.stores[Kind.TRADE].feed_ok_ns < 1_000_000_000


def test_a_hole_is_counted_once_however_many_lines_are_replaced(make: Callable[..., Case]) -> None:
    case = make(lines=3)
    case.clock.advance(5.0)
    for peer in case.peers():
        peer.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(0.5)
    case.venue.skips = 5
    case.clock.advance(8.0)
    figures = case.figures()
    assert (figures["rotations"], figures["lost"], figures["rotation_lost"]) == (3, 5, 5)


def test_what_a_closing_line_publishes_is_counted(make: Callable[..., Case]) -> None:
    case = make(lines=1)
    case.clock.advance(5.0)
    (old,) = case.peers()
    old.answers = False
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(3.0)
    assert case.figures()["rotations"] == 1
    case.venue.trade["BTCUSDT"] += 1
    now = case.clock.time_ns() // 1_000_000
    old.text(
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":%d,"s":"BTCUSDT","t":%d,'
        b'"p":"1.55","q":"0.1","T":%d,"m":true,"M":true}}' % (now, case.venue.trade["BTCUSDT"], now)
    )
    for seconds in (0.0, 20.0, 60.0):
        case.clock.advance(seconds)
        records = sum(slot.published for slot in case.engine.groups[0].arbiter.live_slots())
        assert case.figures()["published"] == records
    assert not case.stream.closing
    assert case.stream.gone["published"] > 0


def test_a_successor_that_brought_nothing_has_not_reached_its_predecessor(
    make: Callable[..., Case],
) -> None:
    """It begins with its predecessor's ids, and where that one brings a repeat after the
    successor's ack, these are all that it would have to reach."""
    case = make(lines=1)
    case.clock.advance(5.0)
    old = case.peers()[0]
    case.venue.rate = 0.0
    case.clock.advance(2.0)
    case.venue.mutes = True
    old.text(b'{"e":"serverShutdown","E":1786613159749}')
    while not (case.stream.successions and case.stream.successions[0].target is not None):
        case.clock.advance(0.05)
        for symbol in SYMBOLS:
            sides = '"b":"1.5","B":"2","a":"1.6","A":"3"'
            data = f'{{"u":{case.venue.update[symbol]},"s":"{symbol}",{sides}}}'
            old.text(f'{{"stream":"{symbol.lower()}@bookTicker","data":{data}}}'.encode())
    (succession,) = case.stream.successions
    assert succession.target
    assert not case.stream._reached(succession, succession.target)
