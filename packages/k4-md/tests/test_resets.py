"""Sequences that begin anew: what proves it, what of it is published, and that nothing wedges."""

from __future__ import annotations

import pytest
from arbiter_bench import MS, SECOND, START, Bench, quotes, trades
from hypothesis import given, settings
from hypothesis import strategies as st

from k4.core.enums import Kind
from k4.core.records import Bookticker
from k4.core.window import WINDOW_IDS
from k4.md.arbiter import MOST_LEAVING
from k4.md.feed import Ids, Reset


def test_silence_and_a_fallen_line_prove_a_reset() -> None:
    bench = quotes()
    bench.quote(0, 1000)
    bench.quote(1, 1000)
    bench.quote(0, 5)
    bench.wait(1.0)
    bench.quote(0, 6)
    bench.quote(0, 7)
    assert bench.published() == [1000]
    bench.wait(1.5)
    assert bench.published() == [1000, 7]
    bench.quote(1, 6)  # the sibling's copies of the new generation
    bench.quote(1, 7)
    bench.quote(1, 8)
    assert bench.published() == [1000, 7, 8]
    assert bench.resets == 1
    assert bench.ring.lanes[0].generation == 1


def test_trades_of_the_proof_are_not_lost() -> None:
    bench = trades()
    for id in range(100, 110):
        bench.trade(0, id, us=bench.now // 1000)
        bench.trade(1, id, us=bench.now // 1000)
    for id in range(1, 6):
        bench.now += 100 * MS
        bench.trade(0, id, us=bench.now // 1000)
    bench.wait(3.0)
    for id in range(3, 9):
        bench.now += MS
        bench.trade(1, id, us=bench.now // 1000)
    assert bench.published() == [*range(100, 110), *range(1, 9)]
    assert bench.resets == 1


@pytest.mark.parametrize("middle", [(0, 1), (0,), (1,), ()])
@pytest.mark.parametrize("first", [3_000_000_000, 2_000_000_000])
def test_two_resets_with_one_trade_between_are_two(first: int, middle: tuple[int, ...]) -> None:
    """Nothing but the second one proves the first. The deeper fall is the first or the second."""
    bench = trades()
    for id in range(first, first + 10):
        for line in (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    bench.now += 100 * MS
    for line in middle:
        bench.trade(line, 1_300_000_000, us=bench.now // 1000)
    for id in (500_000_000, 500_000_001, 500_000_002):
        bench.now += 100 * MS
        for line in (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    bench.wait(3.0)
    for line in (0, 1):
        bench.trade(line, 500_000_003, us=bench.now // 1000)
    between = [1_300_000_000] if middle else []
    assert bench.published() == [
        *range(first, first + 10),
        *between,
        *range(500_000_000, 500_000_004),
    ]
    assert bench.resets == 1 + len(between)
    slot = bench.arbiter.live_slots()[0]
    assert slot.gaps is not None
    assert (slot.gaps.figures(), slot.generation) == ((0, 0, 0), bench.resets)
    assert sum(port.stale for port in bench.ports) == 0


def test_a_trade_of_a_reset_that_only_a_closed_line_brought_waits_for_the_proof() -> None:
    """However long that takes: hardly anything happens."""
    bench = trades()
    for line in (0, 1):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    bench.now += 100 * MS
    bench.trade(0, 500_000_000, us=bench.now // 1000)
    bench.arbiter.close(bench.ports.pop(0))
    bench.wait(60.0)
    for id in (500_000_001, 500_000_002):
        bench.now += 100 * MS
        bench.trade(0, id, us=bench.now // 1000)
    bench.wait(3.0)
    assert bench.published() == [3_000_000_000, 500_000_000, 500_000_001, 500_000_002]
    assert (bench.resets, bench.arbiter.leaving) == (1, [])


def test_a_trade_of_a_reset_that_a_line_brings_while_it_closes_waits_for_the_proof() -> None:
    """The connection of a replaced line still brings what the venue sent before its close."""
    bench = trades(lines=3, answering=True)
    for line in (0, 1, 2):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    for id in (500_000_000, 500_000_001):
        bench.now += 100 * MS
        bench.trade(1, id, us=bench.now // 1000)
    closing = bench.ports[0]
    bench.arbiter.close(closing)
    bench.wait(0.5)
    assert bench.arbiter.leaving == [closing]
    bench.trade(0, 500_000_002, us=bench.now // 1000)
    bench.venues[0].over = True
    bench.now += 100 * MS
    bench.trade(1, 500_000_003, us=bench.now // 1000)
    bench.wait(3.0)
    assert bench.published() == [3_000_000_000, *range(500_000_000, 500_000_004)]
    assert (bench.resets, bench.arbiter.leaving) == (1, [])


def test_an_heir_is_in_the_generation_of_its_predecessor() -> None:
    """The predecessor brought nothing since a reset. The heir's first id has no time: that it is
    below those of before the reset is no proof of another one."""
    bench = trades(lines=3)
    for line in (0, 1, 2):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    for id in range(1_300_000_000, 1_300_000_004):
        bench.now += 100 * MS
        bench.trade(0, id, us=bench.now // 1000)
    bench.wait(3.0)
    heir = bench.arbiter.port("heir", lambda event: None, heir_of=bench.ports[1])
    heir.skip(Kind.TRADE, 1_300_000_003)
    assert (bench.resets, heir.fallen) == (1, {})


def test_a_second_reset_is_proved_by_a_silence_of_its_own() -> None:
    """Its first trades come just when the former one is proved, and the fastest line has lost one
    that another brings."""
    bench = trades()
    for line in (0, 1):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    for id in (1_300_000_000, 1_300_000_001):
        bench.now += 100 * MS
        for line in (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    bench.wait(1.7)
    sent = bench.now // 1000
    bench.trade(0, 500_000_001, us=sent + 1_000)
    bench.trade(0, 500_000_002, us=sent + 2_000)
    bench.wait(0.2)
    assert bench.resets == 1
    for number in range(3):
        bench.trade(1, 500_000_000 + number, us=sent + 1_000 * number)
    bench.wait(3.0)
    between = [1_300_000_000, 1_300_000_001]
    assert bench.published() == [3_000_000_000, *between, *range(500_000_000, 500_000_003)]
    assert (bench.resets, sum(port.stale for port in bench.ports)) == (2, 0)


def test_of_two_resets_at_once_the_later_one_may_have_the_higher_ids() -> None:
    """It is then no fall from the first, but a gap."""
    bench = trades()
    for line in (0, 1):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    for id in (500_000_000, 500_000_001, 1_300_000_000, 1_300_000_001):
        bench.now += 100 * MS
        for line in (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    bench.wait(3.0)
    bench.trade(0, 1_300_000_002, us=bench.now // 1000)
    assert bench.published()[1:] == [500_000_000, 500_000_001, *range(1_300_000_000, 1_300_000_003)]
    slot = bench.arbiter.live_slots()[0]
    assert slot.gaps is not None
    assert (bench.resets, slot.gaps.figures()) == (1, (799_999_998, 0, 1))


@pytest.mark.parametrize("kind", ["trade", "timed", "untimed"])
def test_a_reset_that_follows_one_that_most_lines_missed_is_proved(kind: str) -> None:
    """Only one line, which is gone since, brought what proved the first. The others' ids fall by
    both resets at once."""
    bench = trades(lines=3) if kind == "trade" else quotes(lines=3)

    def bring(line: int, id: int) -> None:
        if kind == "trade":
            bench.trade(line, id, us=bench.now // 1000)
        else:
            bench.quote(line, id, us=bench.now // 1000 if kind == "timed" else 0)

    for line in (0, 1, 2):
        bring(line, 3_000_000_000)
    for id in (1_300_000_000, 1_300_000_001):
        bench.now += 100 * MS
        bring(0, id)
    bench.wait(3.0)
    assert bench.resets == 1
    bench.arbiter.close(bench.ports[0])
    for id in range(500_000_000, 500_000_004):
        bench.now += 100 * MS
        bring(1, id)
        bring(2, id)
    bench.wait(3.0)
    bring(1, 500_000_004)
    assert bench.resets == 2
    assert bench.published()[-1] == 500_000_004


def test_what_closed_lines_brought_out_of_order_is_not_held_for_ever() -> None:
    bench = trades(lines=0)
    for i in range(2 * MOST_LEAVING):
        port = bench.arbiter.port(f"line{i}", lambda event: None)
        bench.ports = [port]
        bench.trade(0, 3_000_000_000)
        bench.trade(0, 2_999_999_990 - i)
        bench.arbiter.close(port)
        bench.wait(0.1)
    assert len(bench.arbiter.leaving) == MOST_LEAVING
    bench.ports = [bench.arbiter.port("last", lambda event: None)]
    bench.wait(12.0)
    bench.trade(0, 3_000_000_001)
    bench.wait(0.1)
    assert (bench.arbiter.leaving, bench.resets) == ([], 0)


def test_a_trade_of_a_reset_that_only_a_new_line_brought_waits_for_the_proof() -> None:
    """The line has brought nothing before, so its ids have not dropped: others must prove it."""
    bench = trades(lines=3)
    for line in (0, 1):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    for id in (500_000_000, 500_000_001):
        bench.now += 100 * MS
        bench.trade(2, id, us=bench.now // 1000)
    bench.wait(5.0)
    assert bench.resets == 0
    for id in (500_000_002, 500_000_003):
        bench.now += 100 * MS
        bench.trade(0, id, us=bench.now // 1000)
    bench.wait(3.0)
    assert bench.published() == [3_000_000_000, *range(500_000_000, 500_000_004)]
    assert bench.resets == 1


def test_of_two_resets_the_one_that_comes_late_is_still_the_first() -> None:
    """A line that lags brings the trades between the two behind what came after them, and then an
    id without a record, of those times."""
    bench = trades(lines=3)
    for line in (0, 1, 2):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    between = bench.now // 1000 + 100_000
    bench.now += 200 * MS
    bench.trade(0, 500_000_000, us=bench.now // 1000)
    for id in (1_300_000_000, 1_300_000_001):
        bench.trade(2, id, us=between)
    bench.now += 100 * MS
    bench.trade(0, 500_000_001, us=bench.now // 1000)
    bench.wait(3.0)
    bench.ports[2].skip(Kind.TRADE, 1_300_000_002)
    for id in (500_000_002, 500_000_003):
        bench.trade(0, id, us=bench.now // 1000)
    bench.wait(3.0)
    trades_between = [1_300_000_000, 1_300_000_001]
    assert bench.published() == [3_000_000_000, *trades_between, *range(500_000_000, 500_000_004)]
    assert (bench.resets, bench.ports[2].stale) == (2, 1)


def test_two_resets_with_one_quote_between_are_one() -> None:
    bench = quotes(lines=3)
    for line in (0, 1, 2):
        bench.quote(line, 3_000_000_000)
    bench.now += 100 * MS
    for line in (0, 2):
        bench.quote(line, 1_300_000_000)
    for id in (500_000_000, 500_000_001, 500_000_002):
        bench.now += 100 * MS
        for line in (0, 1):
            bench.quote(line, id)
    bench.wait(3.0)
    bench.quote(2, 1_300_000_001)  # a line that is still between the two
    bench.quote(0, 500_000_003)
    bench.quote(2, 500_000_004)
    assert bench.published() == [3_000_000_000, *range(500_000_002, 500_000_005)]
    assert bench.resets == 1


def test_a_quote_of_a_second_reset_is_not_published_before_those_of_the_first() -> None:
    """One line proves the first, when the others have one quote of the second."""
    bench = quotes(lines=3)
    for line in (0, 1, 2):
        bench.quote(line, 3_000_000_000)
    for id in (1_300_000_000, 1_300_000_001):
        bench.now += 100 * MS
        bench.quote(2, id)
    bench.now += 100 * MS
    for line in (0, 1):
        bench.quote(line, 500_000_000)
    bench.wait(3.0)
    assert bench.published() == [3_000_000_000, 1_300_000_001]
    bench.quote(1, 500_000_001)
    bench.quote(1, 500_000_002)
    bench.wait(3.0)
    bench.quote(2, 500_000_003)
    seconds = [500_000_000, 500_000_002, 500_000_003]
    assert bench.published() == [3_000_000_000, 1_300_000_001, *seconds]
    assert bench.resets == 2


@pytest.mark.parametrize("timed", [False, True])
def test_the_newest_quote_of_a_reset_is_published_however_fast_ids_rise(timed: bool) -> None:
    """The line that saw the reset first has closed since, a hundred thousands of ids ago."""
    bench = quotes(lines=3)
    for line in (0, 1, 2):
        bench.quote(line, 3_000_000_000, us=timed * START // 1000)
    for line, id in ((0, 0), (0, 1), (1, 200_000), (1, 400_000), (2, 300_000), (2, 400_000)):
        bench.now += 100 * MS
        bench.quote(line, 1_000_000_000 + id, us=timed * (START // 1000 + 1_000_000 + id))
        if id == 1:
            bench.arbiter.close(bench.ports[0])
    bench.wait(3.0)
    assert bench.published()[-1] == 1_000_400_000
    assert bench.resets == 1


def test_a_reset_behind_the_one_that_is_proved_waits_for_its_own_proof() -> None:
    bench = trades()
    for line in (0, 1):
        bench.trade(line, 3_000_000_000, us=bench.now // 1000)
    for id in (1_300_000_000, 1_300_000_001):
        bench.now += 100 * MS
        bench.trade(0, id, us=bench.now // 1000)
    bench.now += 100 * MS
    bench.trade(1, 500_000_000, us=bench.now // 1000)
    bench.wait(3.0)
    assert bench.published() == [3_000_000_000, 1_300_000_000, 1_300_000_001]
    assert bench.resets == 1
    bench.trade(1, 500_000_001, us=bench.now // 1000)
    bench.wait(3.0)
    assert bench.published()[3:] == [500_000_000, 500_000_001]
    assert bench.resets == 2


def test_a_line_that_brought_only_known_copies_since_a_reset_is_in_the_new_generation() -> None:
    """An id without a record has no time that could tell."""
    bench = trades()
    for id in range(100, 110):
        for line in (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    for id in (1, 2, 3):
        bench.now += 100 * MS
        bench.trade(0, id, us=bench.now // 1000)
    bench.wait(3.0)
    bench.trade(0, 4, us=bench.now // 1000)
    bench.ports[1].own[Kind.TRADE] = 4  # as `Line` notes a copy that it knows by its bytes
    bench.ports[1].skip(Kind.TRADE, 5)
    bench.trade(0, 6, us=bench.now // 1000)
    gaps = bench.arbiter.live_slots()[0].gaps
    assert gaps is not None
    assert (bench.resets, bench.ports[1].stale, gaps.figures()) == (1, 0, (0, 0, 0))


def test_late_trades_in_microseconds_are_no_reset_of_those_in_milliseconds() -> None:
    """JSON has ms, SBE µs; what is read after a pause of the market may be an SBE line's past."""
    bench = trades()
    us = START // 1000_000 * 1000
    for id in range(100, 104):
        bench.trade(0, id, us=us)
        bench.trade(1, id, us=us + 663)
    for id in (101, 102):
        bench.now += MS
        bench.trade(1, id, us=us + 663)
    bench.wait(5.0)
    assert bench.resets == 0
    assert bench.published() == [100, 101, 102, 103]


def test_a_reset_that_begins_with_a_placeholder_is_seen_and_leaves_no_gap() -> None:
    bench = trades()
    for id in range(100, 110):
        bench.trade(0, id, us=bench.now // 1000)
        bench.trade(1, id, us=bench.now // 1000)
    for line in (0, 1):
        bench.ports[line].now = bench.now
        bench.ports[line].skip(Kind.TRADE, 1)
    for id in (2, 3, 5):
        bench.now += 100 * MS
        for line in (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    for line in (0, 1):
        bench.ports[line].skip(Kind.TRADE, 4)
    bench.wait(2.5)
    gaps = bench.arbiter.live_slots()[0].gaps
    assert bench.published() == [*range(100, 110), 2, 3, 5]
    assert bench.resets == 1
    assert gaps is not None
    assert (gaps.runs, gaps.lost, gaps.healed, gaps.first, gaps.top) == (0, 0, 0, 1, 5)


@pytest.mark.parametrize(
    ("ids", "reset"), [(Ids.CONSECUTIVE, Reset.SILENCE), (Ids.SUSPECTED, Reset.NEWER_TIME)]
)
def test_a_reset_invents_and_heals_no_gap(ids: Ids, reset: Reset) -> None:
    """The new ids are close below the old ones, and among them."""
    bench = trades(ids, reset=reset)
    for id in (*range(100, 110), *range(115, 120)):
        bench.trade(0, id, us=bench.now // 1000)
    for id in (*range(60, 70), 112, 113):
        bench.now += 150 * MS
        bench.trade(0, id, us=bench.now // 1000)
        bench.trade(1, id, us=bench.now // 1000)
    bench.wait(2.5)
    for id in (114, 115, 116):
        bench.now += 10 * MS
        bench.trade(0, id, us=bench.now // 1000)
    gaps = bench.arbiter.live_slots()[0].gaps
    assert bench.resets == 1
    assert gaps is not None
    published = {(id, bench.published().count(id)) for id in (65, 66, 113, 116)}
    assert {count for _, count in published} <= {1, 2}
    inner = 113 - 69 - 2
    assert (gaps.lost, gaps.healed) == (5 + inner, 0)


def test_a_generation_begins_with_what_was_doubted_until_the_proof() -> None:
    """Its first seconds' gaps count, and a trade older than the proof is not stale."""
    bench = trades(Ids.SUSPECTED, reset=Reset.NEWER_TIME)
    reset_us = START // 1000
    for i in range(10):
        bench.trade(0, 1000 + i, us=reset_us - 100_000 + i * 1_000)
    for i in (0, 1, 3, 4, 7):
        bench.trade(0, 500 + i, us=reset_us + i * 100_000)
    assert bench.resets == 0
    bench.trade(0, 530, us=reset_us + 3_000_000)
    assert bench.resets == 1
    gaps = bench.arbiter.live_slots()[0].gaps
    assert gaps is not None
    assert (gaps.runs, gaps.lost, gaps.healed) == (3, 1 + 2 + 22, 0)
    bench.trade(1, 1009, us=reset_us - 91_000)  # line 1 lags, and brings what line 0 has lost
    bench.trade(1, 502, us=reset_us + 200_000)
    bench.trade(1, 503, us=reset_us + 300_000)
    assert bench.published() == [*range(1000, 1010), 500, 501, 503, 504, 507, 530, 502]
    assert (gaps.runs, gaps.lost, gaps.healed) == (2, 2 + 22, 1)
    assert bench.ports[1].duplicates == 1
    assert bench.ports[1].stale == 1


def test_what_was_doubted_of_one_reset_is_not_of_the_next() -> None:
    """The second one proves the first, and is itself proved two seconds later."""
    bench = trades(Ids.SUSPECTED, reset=Reset.NEWER_TIME)
    far, us = WINDOW_IDS * 2, START // 1000
    bench.trade(0, 3 * far, us=us)
    for i in range(3):
        bench.trade(0, 2 * far + i, us=us + 2_000_000)
    for line in (0, 1):
        bench.trade(line, far, us=us + 4_000_000)
    assert bench.resets == 1
    bench.trade(1, far + 1, us=us + 7_000_000)
    assert bench.resets == 2
    bench.trade(0, far + 1, us=us + 7_000_000)
    bench.trade(0, far + 2, us=us + 8_000_000)
    assert bench.published() == [3 * far, *range(2 * far, 2 * far + 3), *range(far, far + 3)]


def test_two_resets_that_one_trade_proves_open_one_after_the_other() -> None:
    bench = trades(Ids.SUSPECTED, reset=Reset.NEWER_TIME)
    far, us = WINDOW_IDS * 2, START // 1000
    bench.trade(0, 3 * far, us=us)
    bench.trade(0, 2 * far, us=us + 1_000_000)
    bench.trade(0, far, us=us + 1_500_000)
    bench.trade(0, far + 1, us=us + 3_500_000)
    assert bench.resets == 2
    bench.trade(1, far, us=us + 1_500_000)
    bench.trade(1, far + 2, us=us + 3_500_000)
    assert bench.published() == [3 * far, 2 * far, far, far + 1, far + 2]


def test_trades_before_the_one_that_proved_their_reset_are_new() -> None:
    """Another line brought them, a little later."""
    bench = trades(Ids.SUSPECTED, reset=Reset.NEWER_TIME)
    us = START // 1000
    bench.trade(0, 10_000, us=us)
    bench.trade(0, 503, us=us + 3_000_000)
    for line, id in ((1, 501), (1, 502), (1, 503), (1, 504), (0, 504), (0, 502), (1, 9_999)):
        bench.trade(line, id, us=us + 3_000_000)  # in the same millisecond
    bench.trade(1, 500, us=us + 1_000_000)
    bench.trade(1, 499, us=us)  # as old as the former generation
    bench.trade(1, 10_001, us=us + 1_000_000)  # of that by its id
    assert bench.published() == [10_000, 503, 501, 502, 504, 500]
    assert bench.resets == 1
    gaps = bench.arbiter.live_slots()[0].gaps
    assert gaps is not None
    assert (gaps.runs, gaps.lost) == (0, 0)


def test_a_disordered_time_is_no_reset_and_still_heals() -> None:
    bench = trades(Ids.SUSPECTED, reset=Reset.NEWER_TIME)
    us = START // 1000
    for i in (0, 1, 3):
        bench.trade(0, 1000 + i, us=us + i * 1_000)
    bench.trade(0, 1002, us=us + 4_000)  # stamped after the next one
    bench.trade(0, 1004, us=us + 5_000)
    gaps = bench.arbiter.live_slots()[0].gaps
    assert gaps is not None
    assert bench.resets == 0
    assert bench.published() == [1000, 1001, 1003, 1002, 1004]
    assert (gaps.runs, gaps.lost, gaps.healed) == (0, 0, 1)


def test_a_reset_after_a_full_window_loses_no_trade() -> None:
    """Small ids are below everything that has left the window: they wait for the proof."""
    bench = trades(Ids.RISING, reset=Reset.NEWER_TIME, size=1 << 17)
    us, count = START // 1000, WINDOW_IDS + 2
    for i in range(count):
        bench.now += MS
        bench.trade(0, 10**9 + i, us=us + i * 1_000)
    window = bench.arbiter.live_slots()[0].window
    assert window is not None
    assert 10**9 not in window
    end = us + count * 1_000
    for i in range(4):
        for line in (0, 1):
            bench.trade(line, 500 + i, us=end + i * 1_000_000)
    assert bench.resets == 1
    assert bench.published()[count:] == [500, 501, 502, 503]
    assert bench.arbiter.live_slots()[0].too_late == 0


def test_a_line_out_of_order_in_a_quiet_market_is_no_reset() -> None:
    bench = trades(lines=2)
    for id in range(100, 120):
        bench.trade(0, id)
    for id in (*range(100, 105), 106, 107, 105, 108, 109, 110):  # behind, and out of order
        bench.trade(1, id)
    bench.wait(5.0)
    bench.trade(1, 111)
    bench.wait(5.0)
    assert bench.resets == 0
    assert bench.published() == [*range(100, 120)]


def test_late_copies_in_a_silent_market_are_no_reset() -> None:
    bench = trades()
    for id in range(100, 120):
        bench.now += MS
        bench.trade(0, id, us=id * 1000)
    for id in (100, 101, 102, 115, 103, 104, 105, 106):  # one overtook the others
        bench.trade(1, id, us=id * 1000)
    bench.wait(5.0)
    assert bench.resets == 0
    for id in (107, 115, 120):
        bench.trade(1, id, us=id * 1000)
    assert bench.published() == [*range(100, 121)]


def test_a_late_message_of_the_old_generation_is_no_fall_in_the_new() -> None:
    bench = trades()
    for id in range(1000, 1010):
        bench.now += MS
        bench.trade(0, id, us=bench.now // 1000)
        bench.trade(1, id, us=bench.now // 1000)
    late = bench.now // 1000 - 1
    for id in range(500, 520):
        bench.now += 200 * MS
        for line in (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    bench.trade(1, 1008, us=late)
    for id in range(520, 540):
        for line in (0, 1):
            bench.now += 10 * MS
            bench.trade(line, id, us=bench.now // 1000)
    bench.wait(5.0)
    assert bench.resets == 1
    assert bench.published() == [*range(1000, 1010), *range(500, 540)]


def test_what_a_fallen_line_brings_out_of_order_is_kept() -> None:
    bench = trades()
    for id in range(100, 110):
        bench.trade(0, id, us=bench.now // 1000)
    for id in (3, 5, 4, 6):
        bench.now += 100 * MS
        bench.trade(0, id, us=bench.now // 1000)
    bench.wait(2.5)
    assert sorted(bench.published()) == [3, 4, 5, 6, *range(100, 110)]
    assert bench.resets == 1


@pytest.mark.parametrize("replaced", ["before", "after"])
def test_a_line_replaced_during_a_reset_loses_neither_proof_nor_trades(replaced: str) -> None:
    bench = trades(lines=1)
    for id in range(100, 110):
        bench.trade(0, id, us=bench.now // 1000)
    for id in (1, 2):
        bench.now += 100 * MS
        bench.trade(0, id, us=bench.now // 1000)
    old = bench.ports[0]
    new = bench.arbiter.port("heir", lambda event: None, heir_of=old)
    new.serving_ns = bench.now
    bench.ports.append(new)
    if replaced == "before":
        bench.arbiter.close(old)
    for id in (3, 4):
        bench.now += 100 * MS
        bench.trade(1, id, us=bench.now // 1000)
    bench.arbiter.close(old)
    bench.wait(2.5)
    assert bench.published() == [*range(100, 110), 1, 2, 3, 4]
    assert bench.resets == 1


def test_a_line_that_merely_lags_proves_nothing() -> None:
    bench = quotes()
    bench.quote(0, 1000)
    for id in range(900, 930):
        bench.quote(1, id)
        bench.wait(0.5)
    assert bench.published() == [1000]
    assert bench.resets == 0


@pytest.mark.parametrize("kind", [Kind.BOOKTICKER, Kind.TRADE])
def test_a_reset_is_seen_where_no_line_remembers_the_last_id(kind: Kind) -> None:
    """It takes two ids far below, ten seconds after anything came above: no lag explains that."""
    bench = Bench(kind, Ids.CONSECUTIVE, lines=3)
    bring = bench.quote if kind is Kind.BOOKTICKER else bench.trade
    bring(0, 1_000_000)
    bench.arbiter.close(bench.ports[0])
    for id in (5, 6):
        bench.wait(4.0)
        bring(1, id)
        bring(2, id)
    bench.wait(4.0)
    assert bench.resets == 0
    for id in (7, 8):
        bring(2, id)
    bench.wait(2.5)
    assert bench.resets == 1
    bring(1, 9)
    assert bench.published()[-1] == 9
    if kind is Kind.TRADE:
        assert bench.published() == [1_000_000, 5, 6, 7, 8, 9]


def test_a_line_that_began_below_proves_a_reset_when_its_own_ids_have_dropped() -> None:
    bench = trades(lines=2)
    bench.trade(0, 1_000_000)
    bench.arbiter.close(bench.ports[0])
    bench.wait(3.0)
    bench.trade(1, 500_000)
    bench.wait(3.0)
    for id in (5, 6):
        bench.trade(1, id)
    bench.wait(2.5)
    assert bench.published() == [1_000_000, 500_000, 5, 6]
    assert bench.resets == 2


def test_a_held_out_line_cannot_wedge_the_new_generation() -> None:
    """Line 1 lags behind over the reset: its old ids are far above all new ones."""
    bench = quotes()
    bench.quote(0, 1000)
    bench.quote(1, 980)
    for id in (1, 2, 3):
        bench.quote(0, id)
    bench.wait(2.5)
    assert bench.published() == [1000, 3]
    for id in (981, 990, 1000):
        bench.quote(1, id)
    bench.quote(0, 4)
    bench.quote(1, 2)
    bench.quote(1, 5)
    assert bench.published() == [1000, 3, 4, 5]
    assert bench.resets == 1


def test_after_a_reset_time_decides_where_there_is_one() -> None:
    bench = quotes(reset=Reset.NEWER_TIME)
    bench.quote(0, 1000, us=10_000_000)
    bench.quote(0, 5, us=11_000_000)  # newer, but not by enough
    assert bench.published() == [1000]
    bench.quote(0, 6, us=12_500_000)
    bench.quote(1, 1001, us=10_500_000)  # an old one, whatever its id
    bench.quote(1, 6, us=12_500_000)  # another line's copy of the reset
    bench.quote(1, 7, us=12_600_000)
    assert bench.published() == [1000, 6, 7]
    assert bench.resets == 1


def test_an_update_id_of_one_is_a_reset_when_it_is_newer() -> None:
    bench = quotes(reset=Reset.ONE)
    bench.quote(0, 1000, us=10_000_000)
    bench.quote(1, 1, us=9_000_000)
    assert bench.published() == [1000]
    bench.quote(0, 1, us=10_000_001)
    bench.quote(0, 2, us=10_000_002)
    assert bench.published() == [1000, 1, 2]
    assert bench.resets == 1


def test_an_idle_repeat_is_no_reset() -> None:
    bench = quotes(reset=Reset.ONE)
    bench.quote(0, 1, us=10_000_000)
    bench.quote(0, 1, us=13_000_000)
    bench.quote(0, 1, us=16_000_000)
    assert bench.published() == [1]
    assert bench.resets == 0


def test_an_older_copy_after_a_quiet_spell_of_a_book_is_no_reset() -> None:
    bench = Bench(Kind.DEPTH5, Ids.NEWEST_CONSECUTIVE, Reset.ONE)
    for id in range(100, 201):  # five seconds in which only deeper levels move
        bench.book(0, id, (1.0, 2.0), us=id * 50_000)
    bench.book(1, 199, (1.0, 2.0), us=199 * 50_000)
    assert bench.published() == [100]
    assert bench.resets == 0


@settings(max_examples=200)
@given(
    old=st.integers(3, 12),
    new=st.integers(3, 12),
    base=st.integers(0, 1100),
    lags=st.lists(st.integers(0, 30), min_size=3, max_size=3),
    timed=st.booleans(),
)
def test_a_reset_never_stalls_and_nothing_old_returns(
    old: int, new: int, base: int, lags: list[int], timed: bool
) -> None:
    """Three lines bring the same two generations, each late by its own number of steps.

    The generations share no id: a line without history and without times that begins with one
    which both have cannot be told apart.
    """
    sequence = [(0, 1000 + i) for i in range(old)] + [(1, min(base, 980) + i) for i in range(new)]
    bench = quotes(lines=3)
    tagged: list[tuple[int, int]] = []
    for step in range(len(sequence) + 31):
        for line, lag in enumerate(lags):
            at = step - lag
            if 0 <= at < len(sequence):
                generation, id = sequence[at]
                us = START // 1000 + at * 100_000 if timed else 0
                bench.quote(line, id, us=us, price=1.0 + generation)
        bench.wait(0.1)
    bench.wait(2.5)
    tagged = [
        (int(r.bid_price) - 1, r.update_id) for r in bench.records() if isinstance(r, Bookticker)
    ]
    assert tagged[-1] == sequence[-1]
    assert bench.resets == 1
    generations = [generation for generation, _ in tagged]
    assert generations == sorted(generations)
    for generation in (0, 1):
        ids = [id for g, id in tagged if g == generation]
        assert ids == sorted(set(ids))


def test_a_line_without_history_waits_for_proof_after_a_reset() -> None:
    """Its first id is old, and near the new ones: only the other line's ids can tell."""
    bench = quotes()
    bench.quote(0, 1000)
    bench.quote(0, 990)
    bench.quote(0, 991)
    bench.wait(2.5)
    bench.quote(1, 995)  # sent before the reset
    assert bench.published() == [1000, 991]
    bench.quote(0, 992)
    bench.quote(1, 992)
    bench.quote(1, 993)
    assert bench.published() == [1000, 991, 992, 993]
    assert bench.resets == 1


@pytest.mark.parametrize("silent", [False, True])
def test_a_reset_that_one_line_brings_out_of_order_loses_no_trade(silent: bool) -> None:
    """The last trade of the old ids comes behind the first of the new, and then perhaps nothing."""
    bench = trades()
    for id in range(1_000_000, 1_000_010):
        bench.now += MS
        for line in (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    bench.now += 100 * MS
    bench.trade(0, 5, us=bench.now // 1000)
    bench.trade(0, 1_000_010, us=bench.now // 1000 - 50_000)
    for id in (6, 7, 8):
        bench.now += 100 * MS
        for line in (1,) if silent else (0, 1):
            bench.trade(line, id, us=bench.now // 1000)
    bench.wait(3.0)
    assert bench.resets == 1
    assert bench.published() == [*range(1_000_000, 1_000_011), 5, 6, 7, 8]
    bench.trade(0, 9, us=bench.now // 1000)
    bench.ports[0].skip(Kind.TRADE, 10)
    bench.wait(5.0)
    assert bench.resets == 1
    assert not bench.ports[0].fallen


def test_what_fell_far_and_was_not_proved_is_forgotten() -> None:
    bench = trades()
    for id in range(1_000_000, 1_000_010):
        bench.trade(0, id, us=bench.now // 1000)
    bench.trade(0, 5, us=bench.now // 1000)
    bench.trade(0, 1_000_010, us=bench.now // 1000)
    bench.wait(5.0)
    assert bench.ports[0].fallen
    bench.wait(6.0)
    assert not bench.ports[0].fallen
    assert bench.published() == [*range(1_000_000, 1_000_011)]
    assert bench.resets == 0


def test_books_that_begin_anew_above_one_invent_no_loss() -> None:
    """The snapshot after the venue's restart was not heard; its ids would look like late ones."""
    bench = Bench(Kind.DEPTH5, Ids.NEWEST_CONSECUTIVE, reset=Reset.ONE)
    us = START // 1000
    for id in range(5000, 5010):
        bench.book(0, id, (float(id), 1.0), us=us + id)
    bench.book(0, 7, (7.0, 1.0), us=us + 1_500_000)
    slot = bench.arbiter.live_slots()[0]
    assert slot.gaps is not None
    assert slot.gaps.figures() == (0, 0, 0)


def test_quotes_whose_times_are_old_are_no_reset() -> None:
    """The only line comes back to a node that is 4 s behind."""
    bench = quotes(lines=1)
    us = START // 1000
    for id in [*range(1000, 1100), *range(1020, 1220)]:
        bench.now += 50 * MS
        bench.quote(0, id, us=us + id * 50_000)
        bench.arbiter.tick(bench.now)
    assert bench.resets == 0
    assert bench.published() == list(range(1000, 1220))


def test_placeholders_that_a_line_brings_again_are_no_reset() -> None:
    """They have no time, but the trades around them have one, and it is old."""
    bench = trades(lines=1)
    us = START // 1000
    for id in [*range(1001, 1101), *range(1022, 1222)]:
        bench.now += 50 * MS
        bench.ports[0].now = bench.now
        if id % 7:
            bench.trade(0, id, us=us + id * 50_000)
        else:
            bench.ports[0].skip(Kind.TRADE, id)
        bench.arbiter.tick(bench.now)
    assert bench.resets == 0
    assert bench.published() == [id for id in range(1001, 1222) if id % 7]


def test_a_reset_is_seen_in_time_though_the_clock_was_set_back() -> None:
    """By an hour; it would not be seen before the hour is over."""
    bench = quotes()
    for id in range(1000, 1010):
        bench.wait(0.1)
        for line in (0, 1):
            bench.quote(line, id)
    bench.now -= 3600 * 10**9
    for id in range(5, 15):
        bench.wait(1.0)
        for line in (0, 1):
            bench.quote(line, id)
    assert bench.resets == 1
    assert bench.published()[-1] == 14


def test_a_line_that_lags_with_times_joins_though_the_newest_record_has_none() -> None:
    """JSON quotes have no time, SBE's have one. An SBE line that is 3 s behind joins the generation
    while JSON is ahead; when the market rests after that, its rising ids prove no other reset."""
    bench = quotes(lines=3)
    events = [(0.1 * k, 1_000_000 + k) for k in range(20)]
    events += [(2.0 + 0.2 * k, 5 + k) for k in range(30)]  # the reset, then nothing for 3 s
    events += [(11.0, 40), (11.2, 41)]
    arrivals = []
    for seconds, id in events:
        sent = START + round(seconds * 10) * SECOND // 10
        arrivals += [(sent + MS, 0, id, 0), (sent + 2 * MS, 1, id, sent // 1000)]
        arrivals += [(sent + 3 * SECOND, 2, id, sent // 1000)]
    look = START
    for now, line, id, us in sorted(arrivals):
        for bench.now in range(look, now + 1, SECOND // 4):
            for port in bench.ports[:2]:  # other instruments are heard
                port.now = bench.now
            bench.arbiter.tick(bench.now)
            look = bench.now + SECOND // 4
        bench.now = now
        bench.quote(line, id, us=us)
    assert bench.resets == 1
    assert len(bench.published()) == len(set(bench.published()))


@pytest.mark.parametrize(
    ("ids", "reset"),
    [(Ids.CONSECUTIVE, Reset.SILENCE), (Ids.SUSPECTED, Reset.NEWER_TIME)],
)
def test_a_restart_after_a_near_reset_goes_on_with_the_newest_generation(
    ids: Ids, reset: Reset
) -> None:
    """The store holds both generations, and their ids are near each other."""
    bench = trades(ids, reset=reset)
    us = START // 1000

    def bring(*new: int, step_us: int = 100_000) -> None:
        nonlocal us
        for id in new:
            us += step_us
            bench.now += step_us * 1000
            for line in (0, 1):
                bench.trade(line, id, us=us)
            bench.arbiter.tick(bench.now)

    bring(*range(1000, 1020), step_us=50_000)
    us += 5_000_000
    bench.now += 5 * SECOND
    bring(*range(500, 540))
    bench.wait(3.0)
    us += 3_000_000
    bring(*range(540, 560))
    assert bench.resets == 1
    before = len(bench.published())
    bench.restart()
    us += 1_000_000
    bench.now += SECOND
    bring(*range(560, 620))
    assert bench.resets == 1
    assert bench.published()[before:] == [*range(560, 620)]
