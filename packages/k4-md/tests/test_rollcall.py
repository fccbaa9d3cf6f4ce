"""Silence proves a reset only where everything has been heard: pauses, quiet groups, roll calls."""

from __future__ import annotations

import pytest
from arbiter_bench import MS, SECOND, quotes, trades


@pytest.mark.parametrize("answering", [False, True])
def test_a_reset_after_a_silence_waits_for_the_lines_behind(answering: bool) -> None:
    """Its first trades come all at once, and the fastest line has lost some of them."""
    bench = trades(lines=3, answering=answering)
    for line in (0, 1, 2):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    bench.wait(5.0)
    sent = bench.now // 1000
    for id in (500_000_002, 500_000_003):
        bench.trade(0, id, us=sent)
    bench.wait(0.1)
    for line, id in ((1, 500_000_001), (1, 500_000_003), (2, 500_000_000)):
        bench.trade(line, id, us=sent)
    bench.wait(0.3 if answering else 2.0)
    assert bench.published() == [3_000_000_000, *range(500_000_000, 500_000_004)]
    assert (bench.resets, sum(port.stale for port in bench.ports)) == (1, 0)


def test_a_pause_of_the_process_or_of_the_network_is_no_silence() -> None:
    """The first messages after it are those of any line, also of one that is behind."""
    for ticked in (False, True):  # a stopped process has no ticks, a dead network has
        bench = quotes()
        for id in range(100, 120):
            bench.now += MS
            bench.quote(0, id)
        bench.quote(1, 119)
        for id in (110, 111, 112):  # on a new connection, which lags
            bench.now += MS
            bench.quote(1, id)
        bench.wait(0.1)
        if ticked:
            bench.wait(6.0, heard=False)
        else:
            bench.now += 3600 * SECOND
            bench.arbiter.tick(bench.now)  # due long since, and before any socket is read
        for id in (113, 114):
            bench.quote(1, id)
            bench.now += MS
        bench.arbiter.tick(bench.now)
        bench.quote(0, 120)
        bench.wait(20.0)
        assert bench.resets == 0
        assert bench.published() == list(range(100, 121))


def test_a_group_that_is_hardly_ever_heard_sees_its_reset_all_the_same() -> None:
    bench = quotes()
    for line in (0, 1):
        bench.quote(line, 1000)
    for id in (5, 6, 7):
        bench.wait(1.5, heard=False)
        for line in (0, 1):
            bench.quote(line, id)
    assert bench.resets == 0
    bench.wait(9.0, heard=False)
    assert bench.resets == 1
    assert bench.published() == [1000, 7]


def test_in_a_quiet_group_a_reset_waits_for_no_more_than_the_lines_answers() -> None:
    bench = quotes(answering=True)
    bench.reset_in_quiet(0, 1)
    bench.wait(0.1, heard=False)
    assert bench.resets == 0
    assert [len(venue.asked) for venue in bench.venues] == [1, 1]
    bench.wait(0.1, heard=False)
    assert bench.resets == 1
    assert bench.published() == [1000, 6]


def test_where_something_came_less_than_two_seconds_ago_a_reset_waits_for_these() -> None:
    bench = quotes(answering=True)
    for line in (0, 1):
        bench.quote(line, 1000)
    for id in (5, 6):
        bench.wait(0.2, heard=False)
        bench.quote(0, id)
    bench.wait(1.5, heard=False)
    assert (bench.resets, bench.venues[0].asked) == (0, [])
    bench.wait(0.4, heard=False)
    assert bench.resets == 1


def test_answers_come_behind_what_a_pause_held_up() -> None:
    """The line that is behind is read first; the answers come behind the other line's data."""
    for seconds in (3.0, 60.0):
        bench = quotes(answering=True)
        for id in range(100, 120):
            bench.now += MS
            bench.quote(0, id)
        bench.quote(1, 119)
        for id in (110, 111):  # on a new connection, which lags
            bench.now += MS
            bench.quote(1, id)
        for venue in bench.venues:
            venue.after_ns = None
        bench.wait(seconds, heard=False)
        assert all(1 <= len(venue.asked) <= 1 + seconds / 10 for venue in bench.venues)
        bench.quote(1, 112)
        bench.arbiter.tick(bench.now)
        bench.quote(1, 113)
        bench.venues[1].after_ns = 0
        bench.venues[1].answer()
        bench.arbiter.tick(bench.now)
        bench.now += MS
        bench.quote(0, 120)
        for venue in bench.venues:
            venue.after_ns = 0
        bench.wait(20.0, heard=False)
        assert bench.resets == 0
        assert bench.published() == list(range(100, 121))


def test_a_line_that_does_not_answer_is_not_waited_for_if_others_do() -> None:
    bench = quotes(answering=True, lines=3)
    bench.venues[2].after_ns = None
    bench.reset_in_quiet(0, 1)
    bench.wait(1.9, heard=False)
    assert bench.resets == 0
    bench.wait(0.4, heard=False)
    assert bench.resets == 1
    assert [len(venue.asked) for venue in bench.venues] == [1, 1, 1]


def test_a_reset_waits_for_its_own_roll_call_whatever_other_symbols_wait_for() -> None:
    """One line answers nothing, so that every call takes as long as a reset is waited for."""
    bench = quotes(answering=True, lines=3, symbols=("BTCUSDT", "ETHUSDT"))
    bench.venues[2].after_ns = None
    for symbol in (0, 1):
        for line in range(3):
            bench.quote(line, 1000, symbol=symbol)
    bench.wait(30.0, heard=False)
    for at, symbol in enumerate((1, 0)):  # the first of the slots begins anew while a call is out
        for id in (5, 6):
            bench.wait(1.5 - at, heard=False)
            for line in (0, 1):
                bench.quote(line, id, symbol=symbol)
    bench.wait(1.4, heard=False)
    assert [len(venue.asked) for venue in bench.venues] == [2, 2, 2]
    slots = bench.arbiter.live_slots()
    assert [slot.resets for slot in slots] == [0, 1]
    bench.wait(2.0, heard=False)
    assert [slot.resets for slot in slots] == [1, 1]


def test_a_line_that_is_gone_is_not_waited_for() -> None:
    bench = quotes(answering=True)
    bench.venues[1].after_ns = None
    bench.reset_in_quiet(0)
    bench.wait(0.5, heard=False)
    assert (bench.resets, len(bench.venues[1].asked)) == (0, 1)
    bench.arbiter.depart(bench.ports[1])
    bench.wait(0.1, heard=False)
    assert bench.resets == 1


def test_where_no_line_answers_that_always_did_nothing_is_proved() -> None:
    """The network is dead. A line that comes back is asked anew."""
    bench = quotes(answering=True)
    for venue in bench.venues:
        venue.after_ns = None
    bench.reset_in_quiet(0, 1)
    bench.wait(120.0, heard=False)
    assert bench.resets == 0
    for port in bench.ports:
        bench.arbiter.depart(port)
    bench.wait(2.0, heard=False)
    bench.venues[0].after_ns = 0
    bench.ports[0].serving_ns = bench.now
    bench.wait(0.8, heard=False)
    assert bench.resets == 1


def test_a_line_that_may_not_send_is_asked_when_it_may() -> None:
    bench = quotes(answering=True)
    bench.venues[1].full = True
    bench.reset_in_quiet(0)
    bench.wait(0.5, heard=False)
    assert [len(venue.asked) for venue in bench.venues] == [1, 0]
    assert bench.resets == 0
    bench.venues[1].full = False
    bench.wait(0.3, heard=False)
    assert len(bench.venues[1].asked) == 1
    assert bench.resets == 1
