"""The whole engine on a manual clock, see `engine_case`: faults, silence, stores."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from engine_case import KINDS, Case

from k4.core.config import Secret
from k4.core.enums import Kind
from k4.core.testing import MemoryPeer


def test_an_hour_of_cuts_and_quiet_loses_nothing_and_raises_no_alarm(
    make: Callable[..., Case],
) -> None:
    case = make(lines=3)
    cuts = 0
    for minute in range(60):
        case.venue.rate = 0.0 if 20 <= minute < 30 else 20.0
        for _ in range(6):
            if case.venue.rng.random() < 0.3 and len(case.peers()) == 3:
                case.venue.rng.choice(case.peers()).fail("cut")
                cuts += 1
            case.clock.advance(10.0)
    case.settle()
    case.assert_nothing_lost()
    figures = case.figures()
    assert cuts > 50
    assert figures["reconnects"] >= cuts * 0.8
    assert (figures["stalls"], figures["resets"], figures["lost"]) == (0, 0, 0)


def test_all_lines_but_one_stall_and_are_replaced_in_time(make: Callable[..., Case]) -> None:
    case = make(lines=3, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    stalled = case.peers()[:2]
    case.venue.mute.update(stalled)
    case.clock.advance(10.0)
    assert [peer.open for peer in stalled] == [False, False]
    assert len(case.peers()) == 3
    case.settle()
    case.assert_nothing_lost()
    assert case.figures()["stalls"] == 2


def test_a_dead_socket_is_found_by_an_unanswered_ping(make: Callable[..., Case]) -> None:
    case = make(lines=1, stall_timeout_sec=10.0)
    case.venue.rate = 0.0
    peer = case.peers()[0]
    peer.half_open()
    case.clock.advance(12.0)
    assert not peer.open or case.venue.transport.peers[-1] is not peer
    assert case.stream.lines[0].up


@pytest.mark.parametrize("lines", [1, 3])
def test_a_reset_in_a_quiet_market_is_seen_when_two_seconds_and_the_lines_answers_prove_it(
    make: Callable[..., Case], lines: int
) -> None:
    case = make(lines=lines, kinds=(Kind.BOOKTICKER,))
    case.clock.advance(5.0)
    case.venue.rate = 0.0
    case.clock.advance(9.0)
    case.venue.update["BTCUSDT"] = 100
    case.venue.event("BTCUSDT")
    case.clock.advance(1.4)
    case.venue.event("BTCUSDT")
    before = [pings(peer) for peer in case.peers()]
    case.clock.advance(0.6)
    assert [pings(peer) - n for peer, n in zip(case.peers(), before, strict=True)] == [1] * lines
    assert case.figures()["resets"] == 1
    assert case.quotes["BTCUSDT"][-1] == case.venue.update["BTCUSDT"] < 200


def pings(peer: MemoryPeer) -> int:
    return sum(kind == "ping" for kind, _ in peer.received)


def test_a_quiet_market_is_asked_again_and_never_called_a_stall(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    case.venue.rate = 0.0
    case.clock.advance(3600.0)
    figures = case.figures()
    assert figures["stalls"] == 0
    assert figures["resubscribed"] >= 4
    assert 4 <= figures["unproven"] <= 24
    assert len(case.venue.transport.peers) < 40


def test_a_refused_sbe_handshake_falls_back_to_json(make: Callable[..., Case]) -> None:
    case = make(lines=2, headers={"X-MBX-APIKEY": Secret("key")}, kinds=KINDS)
    refused: list[MemoryPeer] = []

    def refuse(peer: MemoryPeer) -> int:
        if "sbe" in peer.dial.url:
            refused.append(peer)
            return 401
        return 0

    case.venue.refuse = refuse
    for line in case.stream.lines:
        line.link.restart("test")
    case.clock.advance(60.0)
    assert refused
    assert case.figures()["fallbacks"] == 1
    assert case.quotes["BTCUSDT"]
    assert case.stream.feed.name == "binance.spot.fallback"
    assert [row.labels["name"] for row in case.rows("stream")] == ["binance.spot.fallback"]


def test_quiet_channels_are_subscribed_again_on_one_line_after_the_other(
    make: Callable[..., Case],
) -> None:
    """What the venue sends between the two requests is to reach the other lines."""
    case = make(lines=4, stall_timeout_sec=10.0)
    case.venue.rate = 0.0
    asked: dict[MemoryPeer, float] = {}
    for _ in range(76):
        case.clock.advance(0.25)
        for peer in case.peers():
            if any(b"UNSUBSCRIBE" in bytes(data) for kind, data in peer.received if kind == "text"):
                asked.setdefault(peer, case.clock.monotonic())
    times = sorted(asked.values())
    assert len(times) == 4
    assert all(later - earlier >= 2.0 for earlier, later in pairwise(times))


def test_one_refused_handshake_takes_no_line_from_those_that_serve(
    make: Callable[..., Case],
) -> None:
    """An endpoint of several may refuse for a moment; without any line left it is the key's fault.
    The lines here get JSON over the SBE feed, which answers to requests are anyway."""
    case = make(lines=3, headers={"X-MBX-APIKEY": Secret("key")}, kinds=KINDS)
    case.venue.rate = 0.0
    case.clock.advance(2.0)
    refused: list[MemoryPeer] = []

    def refuse(peer: MemoryPeer) -> int:
        if "sbe" in peer.dial.url:
            refused.append(peer)
            return 403
        return 0

    case.venue.refuse = refuse
    first, *others = case.peers()
    first.fail("cut")
    case.clock.advance(5.0)
    assert len(refused) == 1
    assert all(peer.open for peer in others)
    assert case.figures()["fallbacks"] == 0
    for peer in others:
        peer.fail("cut")
    case.clock.advance(5.0)
    assert case.figures()["fallbacks"] == 1
    assert case.stream.lines_up == 3


def test_stores_say_how_many_lines_feed_them(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    case.clock.advance(5.0)
    store = case.stores[Kind.BOOKTICKER]
    assert (store.lines_up, store.lines_configured) == (2, 2)
    assert case.clock.time_ns() - store.feed_ok_ns <= 1_000_000_000
    case.venue.refuse = lambda peer: 503
    for peer in case.peers():
        peer.fail()
    case.clock.advance(5.0)
    assert (store.lines_up, store.lines_configured) == (0, 2)
    assert case.clock.time_ns() - store.feed_ok_ns >= 4_000_000_000


def test_a_hundred_lines_are_told_apart(make: Callable[..., Case]) -> None:
    case = make(lines=100)
    case.venue.rate = 5.0
    case.clock.advance(5.0)
    assert len(case.peers()) == 100
    case.settle()
    case.assert_nothing_lost()
    figures = case.figures()
    assert figures["duplicates"] == 99 * figures["published"]
    assert figures["stale"] == figures["alone"] == figures["missed"] == 0


@pytest.mark.parametrize("lines", [1, 2])
@pytest.mark.parametrize("fault", ["pause", "back"])
def test_a_pause_and_a_clock_that_is_set_back_are_no_silence_of_any_line(
    make: Callable[..., Case], fault: str, lines: int
) -> None:
    case = make(lines=lines)
    case.clock.advance(30.0)
    if fault == "pause":
        case.clock.pause(15.0)
    else:
        case.clock.step_wall(-60.0)
    case.clock.advance(30.0)
    figures = case.figures()
    assert (figures["stalls"], figures["rotations"], figures["resubscribed"]) == (0, 0, 0)
