"""The account of a chaos run finds what it is to find: a judge that cannot fail proves nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from chaos.account import Verdict, judge

from k4.core import layout
from k4.core.enums import Kind
from k4.runner.sim.ledger import Ledger, Series, SeriesKey, frame_key

KEY = SeriesKey("okx", "spot", "BTCUSDT", Kind.TRADE)
OLD = range(1_000, 1_010)
NEW = range(500, 530)  # a second each; the third proves the reset
BEGAN_US = 1_790_000_000_000_000


def trade_us(row: int) -> int:
    return BEGAN_US + row * 1_000_000 + (row >= len(OLD)) * 10_000


def sample(late: int = -1, late_by_us: int = 0) -> tuple[Ledger, Series]:
    """One connection that got every trade in time, save the row `late`."""
    ledger = Ledger()
    series = ledger.series(KEY, 2, 0)
    for row, id in enumerate((*OLD, *NEW)):
        us = trade_us(row)
        series.add(int(row >= len(OLD)), id, us, us, id, 100 + row, 7, 0, 0)
    log = ledger.connection("okx", "public", "/")
    times = {row: trade_us(row) + 1_000 for row in range(series.rows)}
    if late >= 0:
        times[late] += late_by_us
    for row in sorted(times, key=times.__getitem__):
        log.sent.append(frame_key(series, row))
        log.marks.extend((len(log.sent), times[row] * 1_000))
    log.confirmed = len(log.sent)
    return ledger, series


def records(rows: list[int]) -> npt.NDArray[np.void]:
    of_kind = layout.LAYOUTS[Kind.TRADE]
    out = np.zeros(len(rows), dtype=of_kind.dtype)
    ids = (*OLD, *NEW)
    for at, row in enumerate(rows):
        us = trade_us(row)
        out[at]["symbol"] = b"BTCUSDT"
        out[at]["event_timestamp_us"] = out[at]["trade_timestamp_us"] = us
        out[at]["trade_id"] = ids[row]
        out[at]["price"], out[at]["vol"] = (100 + row) / 100, 7.0
        out[at]["local_time_us"] = us + 1_500
    return out


def verdict_of(
    rows: list[int], *, lost: int = 0, gaps: int = 0, resets: int = 1, **late: int
) -> Verdict:
    ledger, series = sample(**late)
    said = {"ids": "suspected", "resets": resets, "lost": lost, "gaps": gaps}
    return judge(ledger, series, records(rows), said)


ALL = list(range(len(OLD) + len(NEW)))


def test_a_flawless_run_has_no_violation() -> None:
    assert verdict_of(ALL).violations == 0


@pytest.mark.parametrize("row", [0, 5, 10, 11, 20])
def test_a_delivered_trade_that_is_missing_is_lost(row: int) -> None:
    verdict = verdict_of([r for r in ALL if r != row])
    assert verdict.lost == 1
    assert verdict.notes[0] == f"lost {(*OLD, *NEW)[row]}"


def test_late_copies_of_the_old_generation_are_stale_only_once_the_new_one_is_proved() -> None:
    rows = [r for r in ALL if r != 5]
    proved = 13_000_000 - 5_000_000  # from its time to the proof's
    late = {"late": 5, "lost": 1, "gaps": 1}
    assert verdict_of(rows, **late, late_by_us=proved + 1_000_000).violations == 0
    assert verdict_of(rows, **late, late_by_us=proved - 3_000_000).lost == 1


def test_of_the_new_generation_only_what_is_not_newer_than_its_first_is_stale() -> None:
    late = {"late": 10, "late_by_us": 6_000_000}
    assert verdict_of([r for r in ALL if r != 10], **late).lost == 0
    late = {"late": 11, "late_by_us": 6_000_000, "lost": 1, "gaps": 1}
    assert verdict_of([r for r in ALL if r != 11], **late).lost == 1


def test_what_comes_twice_is_a_duplicate() -> None:
    assert verdict_of([*ALL[:4], 2, *ALL[4:]]).duplicates == 1


def test_a_trade_of_a_generation_that_is_over_is_backward() -> None:
    """Until the proof, trades of both generations mix."""
    assert verdict_of([*range(8), 9, 10, 8, *range(11, len(ALL))]).violations == 0
    assert verdict_of([*range(8), *range(9, 20), 8, *range(20, len(ALL))]).backward == 1


def test_a_reset_that_is_not_counted_is_found() -> None:
    assert verdict_of(ALL, resets=0).backward == 1


def test_a_reset_that_did_not_happen_is_invented() -> None:
    assert verdict_of(ALL, resets=2).invented == 1


def test_ids_that_nobody_sent_are_invented() -> None:
    ledger, series = sample()
    said = {"ids": "suspected", "resets": 1, "lost": 0, "gaps": 0}
    table = records(ALL)
    table["trade_id"][3] = 77
    verdict = judge(ledger, series, table, said)
    assert (verdict.invented, verdict.lost) == (1, 1)


def test_a_wrong_field_is_found() -> None:
    ledger, series = sample()
    said = {"ids": "suspected", "resets": 1, "lost": 0, "gaps": 0}
    table = records(ALL)
    table["vol"][3] = 8.0
    assert judge(ledger, series, table, said).wrong == 1


@pytest.mark.parametrize(("lost", "gaps"), [(0, 0), (1, 0), (2, 1)])
def test_a_gap_that_is_not_counted_or_is_invented_is_found(lost: int, gaps: int) -> None:
    """Row 5 was never sent."""
    ledger, series = sample()
    log = ledger.connections[0]
    log.sent.remove(frame_key(series, 5))
    log.confirmed = len(log.sent)
    said = {"ids": "suspected", "resets": 1, "lost": lost, "gaps": gaps}
    assert judge(ledger, series, records([r for r in ALL if r != 5]), said).gap_errors == 1


@pytest.mark.parametrize(("lost", "fits"), [(0, False), (1, True), (3, True), (4, False)])
def test_a_book_lacks_what_nobody_was_sent_and_at_most_what_was_not_published(
    lost: int, fits: bool
) -> None:
    """Row 5 was never sent; 2 and 3 were sent and left the best levels as they were, or came while
    the book was broken."""
    ledger, series = sample()
    log = ledger.connections[0]
    log.sent.remove(frame_key(series, 5))
    log.confirmed = len(log.sent)
    said = {"ids": "newest-consecutive", "resets": 1, "lost": lost, "gaps": 1}
    verdict = judge(ledger, series, records([r for r in ALL if r not in (2, 3, 5)]), said)
    assert verdict.gap_errors == int(not fits)


@pytest.mark.parametrize("lost", [0, 1, 2, 3, 4])
def test_placeholders_that_may_have_been_seen_fill_and_end_gaps(lost: int) -> None:
    """Rows 3 and 9 are placeholders that were sent and not confirmed; 7 and 8 were not sent."""
    ledger = Ledger()
    series = ledger.series(KEY, 2, 0)
    for row, id in enumerate(OLD):
        us = trade_us(row)
        series.add(0, id, us, us, id, 100 + row, 7, 0, int(row in (3, 9)))
    for rows in ((0, 1, 2, 4, 5, 6), (3, 9)):
        log = ledger.connection("okx", "public", "/")
        for row in rows:
            log.sent.append(frame_key(series, row))
            log.marks.extend((len(log.sent), trade_us(row) * 1_000))
    ledger.connections[0].confirmed = 6
    said = {"ids": "suspected", "resets": 0, "lost": lost, "gaps": min(lost, 2)}
    verdict = judge(ledger, series, records([0, 1, 2, 4, 5, 6]), said)
    assert verdict.gap_errors == (lost > 3)


QUOTES = SeriesKey("binance", "spot", "BTCUSDT", Kind.BOOKTICKER)


def unpublished_generation(
    seconds: float,
    *lines: tuple[int, int],
    venue: str = "binance",
    step: float = 1.0,
    ids: tuple[int, ...] = (900, 901, 500, 501, 100, 101),
) -> Verdict:
    """Of three generations of two quotes each the second, which lasted so long after its second
    quote, was never published. lines: which two of its rows each connection brought. step: seconds
    between two quotes."""
    ledger = Ledger()
    key = QUOTES._replace(venue=venue)
    series = ledger.series(key, 2, 0)
    us = BEGAN_US
    for row, id in enumerate(ids):
        us += int((seconds if row == 4 else step) * 1e6)
        series.add(row // 2, id, us, us, 100, 1, 101, 1, 0, 0)
    for brought in lines:
        log = ledger.connection(venue, "spot", "/")
        for row in (0, 1, *brought, 4, 5):
            log.sent.append(frame_key(series, row))
        log.confirmed = len(log.sent)
    table = series.table()
    rows = [0, 1, 4, 5]
    out = np.zeros(len(rows), dtype=layout.LAYOUTS[Kind.BOOKTICKER].dtype)
    out["symbol"], out["update_id"] = b"BTCUSDT", table["id"][rows]
    out["bid_price"], out["bid_vol"], out["ask_price"], out["ask_vol"] = 1.0, 1.0, 1.01, 1.0
    out["event_timestamp_us"] = out["trade_timestamp_us"] = table["trade_us"][rows]
    return judge(ledger, series, out, {"ids": "newest", "resets": 2})


def test_a_generation_of_quotes_that_could_be_proved_and_is_missing_is_lost() -> None:
    assert unpublished_generation(10.0, (2, 3)).lost == 1
    assert unpublished_generation(10.0, (2, 3)).violations == 1


def test_a_generation_of_quotes_that_no_line_could_prove_in_time_is_not_lost() -> None:
    assert unpublished_generation(2.0, (2, 3)).violations == 0
    assert unpublished_generation(10.0, (2, 2), (3, 3)).violations == 0, "no line brought two"


def test_where_time_is_the_evidence_a_generation_without_it_is_not_lost() -> None:
    assert unpublished_generation(1.0, (2, 3), venue="okx", step=1.5).lost == 1
    assert unpublished_generation(1.0, (2, 2), venue="okx", step=1.5).violations == 0
    assert unpublished_generation(1.0, (2, 3), venue="okx", step=0.9).violations == 0


def test_where_an_id_of_one_is_the_evidence_a_generation_without_it_is_not_lost() -> None:
    ids = (900, 901, 1, 2, 100, 101)
    assert unpublished_generation(1.0, (2, 3), venue="bybit", ids=ids).lost == 1
    assert unpublished_generation(1.0, (3, 3), venue="bybit", ids=ids).violations == 0


def test_a_trade_that_all_lines_got_behind_a_snapshot_that_had_it_is_history() -> None:
    def verdict(*subscribed_us: int) -> Verdict:
        ledger = Ledger()
        key = KEY._replace(venue="bitget")
        series = ledger.series(key, 2, 0)
        for row in range(10):
            us = trade_us(row)
            series.add(0, OLD[row], us, us, OLD[row], 100 + row, 7, 0, 0)
        for at_us in subscribed_us:
            log = ledger.connection("bitget", "public", "/")
            log.topics.append(("SPOT:trade:BTCUSDT", at_us * 1_000))
            for row in range(10):
                log.sent.append(frame_key(series, row))
                log.marks.extend((len(log.sent), (trade_us(row) + 1_000) * 1_000))
            log.confirmed = len(log.sent)
        said = {"ids": "unknown", "resets": 0, "lost": 0, "gaps": 0}
        return judge(ledger, series, records([row for row in range(10) if row != 5]), said)

    between = trade_us(5) + 500
    assert verdict(between).violations == 0
    assert verdict(between, between).violations == 0
    assert verdict(between, BEGAN_US).lost == 1
    assert verdict(between + 1_000).lost == 1


@pytest.mark.parametrize(("came", "lost"), [(1, 0), (2, 2)])
def test_a_trade_of_a_reset_that_nothing_proves_is_not_owed(came: int, lost: int) -> None:
    """On Binance two ids prove a reset; all lines stalled after the first one."""
    ledger = Ledger()
    key = KEY._replace(venue="binance")
    series = ledger.series(key, 2, 0)
    for row, id in enumerate((*OLD, *NEW)):
        us = trade_us(row)
        series.add(int(row >= len(OLD)), id, us, us, id, 100 + row, 7, 0, 0)
    log = ledger.connection("binance", "spot", "/")
    for row in range(len(OLD) + came):
        log.sent.append(frame_key(series, row))
        log.marks.extend((len(log.sent), (trade_us(row) + 1_000) * 1_000))
    log.confirmed = len(log.sent)
    said = {"ids": "unknown", "resets": 0, "lost": 0, "gaps": 0}
    assert judge(ledger, series, records([*range(len(OLD))]), said).lost == lost
