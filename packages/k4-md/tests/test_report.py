"""What the user sees of streams, lines and ledgers: counters and receipts of whole engines."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from engine_case import SYMBOLS, Case

from k4.md.report import LEDGER_STATES


def test_the_age_of_frames_is_known_within_an_error(make: Callable[..., Case]) -> None:
    case = make(lines=1)
    case.venue.delay = lambda peer: 0.030
    case.clock.advance(60.0)
    age = case.stream.age(case.stream.lines[0])
    assert age is not None
    assert age.error_us >= 0
    assert 0 <= age.p50_us <= 32_000


def test_lines_that_lose_have_ages_as_well(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    quick, slow = case.peers()
    late = {quick: 0.001, slow: 0.041}
    case.venue.delay = lambda peer: late.get(peer, 0.001)
    case.clock.advance(120.0)
    first, second = (case.stream.age(line) for line in case.stream.lines)
    assert first is not None
    assert second is not None
    assert second.p50_us - first.p50_us == pytest.approx(40_000, abs=2_000)
    assert first.error_us == second.error_us >= 0


def test_the_receipt_is_plain_json(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    case.clock.advance(10.0)
    receipt = msgspec.json.decode(msgspec.json.encode(case.engine.receipt()[0]))
    assert receipt["name"] == "binance.spot.json"
    assert receipt["published"] == sum(map(len, (*case.trades.values(), *case.quotes.values())))
    ledger = {(row["kind"], row["symbol"]): row for row in receipt["ledger"]}
    assert ledger["trade", "BTCUSDT"]["state"] == "contiguous"
    assert ledger["bbo", "BTCUSDT"]["state"] == "unknown"
    assert ledger["trade", "BTCUSDT"]["records"] == len(case.trades["BTCUSDT"])
    assert [row["line"] for row in receipt["redundancy"]] == [0, 1]
    assert receipt["lines_up"] == 2
    lines = receipt["redundancy"]
    assert sum(row["messages"] for row in lines) == receipt["messages"]
    assert [row["state"] for row in lines] == ["up", "up"]
    for name in ("wins", "duplicates", "missed", "alone", "reconnects"):
        total = receipt["published"] if name == "wins" else receipt[name]
        assert sum(row[name] for row in lines) == total


def test_the_receipt_has_the_delays_of_lines_that_are_no_more(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    _, slow = case.peers()
    late = {slow: 0.041}
    case.venue.delay = lambda peer: late.get(peer, 0.001)
    case.clock.advance(30.0)
    slow.text(b'{"e":"serverShutdown","E":1786613159749}')
    case.clock.advance(60.0)
    assert not case.stream.closing
    case.engine.stop()
    receipt = case.engine.receipt()[0]
    assert receipt["wait_us"]["p99"] == pytest.approx(40_000, rel=0.02)
    assert receipt["lag_us"]["p99"] == pytest.approx(40_000, rel=0.02)
    assert all(row["lag_us"]["p99"] < 20_000 for row in receipt["redundancy"])
    assert (receipt["lines_up"], receipt["lines"]) == (2, 2)


def test_counters_have_the_ledger_of_every_store_and_symbol(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    case.clock.advance(5.0)
    ledgers = {(r.labels["kind"], r.labels["symbol"]): r for r in case.rows("ledger")}
    assert set(ledgers) == {(k, s) for k in ("bbo", "trade") for s in SYMBOLS}
    assert {row.labels["store"] for row in ledgers.values()} == {"test"}
    states = {key: LEDGER_STATES[row.values["state"]].value for key, row in ledgers.items()}
    assert states["bbo", "BTCUSDT"] == "unknown"
    assert states["trade", "BTCUSDT"] == "contiguous"

    case.venue.skips = 6
    case.clock.advance(5.0)
    changed = {(r.labels["kind"], r.labels["symbol"]): r for r in case.rows("ledger")}
    gaps = [changed["trade", symbol].values for symbol in SYMBOLS]
    assert sum(row["lost"] for row in gaps) == 6
    for row in gaps:
        gap = bool(row["lost"])
        assert (LEDGER_STATES[row["state"]].value == "gap", row["gaps"] > 0) == (gap, gap)
    receipt = {(r["kind"], r["symbol"]): r for r in case.engine.receipt()[0]["ledger"]}
    for symbol in SYMBOLS:
        row = changed["trade", symbol].values
        assert receipt["trade", symbol]["lost"] == row["lost"]
        assert receipt["bbo", symbol].keys().isdisjoint({"gaps", "lost", "healed"})


def test_a_line_tells_its_share_of_what_was_published_while_it_served(
    make: Callable[..., Case],
) -> None:
    case = make(lines=2)
    quick, slow = case.peers()
    late = {quick: 0.001, slow: 0.050}
    case.venue.delay = lambda peer: late.get(peer, 0.001)
    case.clock.advance(60.0)
    case.settle()
    lines = [row.values for row in case.rows("line")]
    assert [row["share_ppm"] > 950_000 for row in lines] == [True, False]
    assert [row["share_ppm"] < 50_000 for row in lines] == [False, True]
    shares = [row["share"] for row in case.engine.receipt()[0]["redundancy"]]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_a_full_table_of_counters_stops_nothing(make: Callable[..., Case]) -> None:
    case = make(lines=3, rows=3, stall_timeout_sec=10.0)
    case.clock.advance(5.0)
    stalled = case.peers()[0]
    case.venue.mute.add(stalled)
    case.clock.advance(12.0)
    assert not stalled.open, "lines are judged all the same"
    assert len(case.rows("stream")) == 1
    case.settle()
    case.assert_nothing_lost()
    assert case.rows("stream")[0].values["published"] == case.figures()["published"]
    assert len(case.engine.receipt()[0]["ledger"]) == 4


def test_what_only_one_line_brought_is_counted_up_to_the_end(make: Callable[..., Case]) -> None:
    case = make(lines=2)
    case.clock.advance(5.0)
    deaf, _ = case.peers()
    case.venue.mute.add(deaf)
    case.clock.advance(3.0)
    case.venue.mute.clear()
    case.clock.advance(4.0)
    assert case.figures()["alone"] == 0, "copies may still come"
    case.engine.stop()
    figures = case.figures()
    assert figures["alone"] == figures["missed"] > 40
