"""The measure of stalls finds what it is to find."""

from __future__ import annotations

from chaos.stalls import stalls, summary

from k4.core.enums import Kind
from k4.runner.sim.ledger import FaultRecord, Ledger, SeriesKey, frame_key

SECOND = 1_000_000_000
RULES = ({"fault": "stall", "duration": 5}, {"fault": "stall"})


def stalled(
    *,
    rule: int = 1,
    sibling: str = "public",
    until: int = 20,
    ahead: bool = True,
    reset: bool = False,
) -> Ledger:
    """Two connections and a row a second; the first one brings nothing after 5 s."""
    ledger = Ledger()
    series = ledger.series(SeriesKey("okx", "spot", "BTCUSDT", Kind.TRADE), 2, 0)
    one = ledger.connection("okx", "public", "/")
    other = ledger.connection("okx", sibling, "/")
    one.opened_ns = other.opened_ns = SECOND
    one.closed_ns, other.closed_ns = until * SECOND, 30 * SECOND
    for row in range(15):
        us = row * 1_000_000
        series.add(int(reset and row >= 5), 100 + row, us, us, 100 + row, 100, 1, 0, 0)
        for log in (one, other):
            if row < 5 or (log is other and ahead):
                log.sent.append(frame_key(series, row))
                log.marks.extend((len(log.sent), (2 + row) * SECOND))
    ledger.fault(
        FaultRecord(time_ns=6 * SECOND, fault="stall", venue="okx", rule=rule, connection=0)
    )
    return ledger


def test_it_lasts_from_a_siblings_proof_until_the_end_of_the_connection() -> None:
    (stall,) = stalls(stalled(), RULES)
    assert (stall.connection, stall.proved_ns, stall.seconds) == (0, 7 * SECOND, 13.0)
    assert summary([stall]) == {"count": 1, "p50": 13.0, "p99": 13.0, "max": 13.0}


def test_what_passes_or_is_not_proved_is_none() -> None:
    assert stalls(stalled(rule=0), RULES) == []
    assert stalls(stalled(sibling="business"), RULES) == []
    assert stalls(stalled(ahead=False), RULES) == []
    assert stalls(stalled(until=7), RULES) == []
    assert stalls(stalled(reset=True), RULES) == []
    assert summary([]) == {"count": 0}


def test_a_half_open_connection_is_not_charged_with_the_wait_for_its_last_answer() -> None:
    ledger = stalled()
    ledger.connections[0].ended = "half open"
    (stall,) = stalls(ledger, RULES)
    assert stall.seconds == 3.0
