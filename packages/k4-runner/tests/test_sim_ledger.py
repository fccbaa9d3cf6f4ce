"""The ledger: what counts as produced, delivered and missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from k4.core.enums import Kind
from k4.runner.sim.ledger import ConnectionLog, FaultRecord, Ledger, Series, SeriesKey, frame_key

TRADES = SeriesKey("binance", "spot", "BTCUSDT", Kind.TRADE)


def trades(ledger: Ledger, ids: range, generation: int = 0) -> Series:
    series = ledger.series(TRADES, 2, 5)
    for number in ids:
        series.add(generation, number, 10, 9, number, 6_400_000, 5, 1, 0)
    return series


def sent(ledger: Ledger, series: Series, *runs: tuple[int, int]) -> ConnectionLog:
    log = ledger.connection("binance", "spot", "/stream")
    log.sent.extend(frame_key(series, row, count) for row, count in runs)
    return log


def ids(found: dict[int, np.ndarray]) -> dict[int, list[int]]:
    return {generation: values.tolist() for generation, values in found.items()}


def test_rows_keep_their_values() -> None:
    ledger = Ledger()
    series = trades(ledger, range(100, 102))
    table = ledger.table(TRADES)
    assert table["id"].tolist() == [100, 101]
    assert table["price"].tolist() == [6_400_000] * 2
    assert series.last() == dict(zip(table.dtype.names or (), table[1].tolist(), strict=True))


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_takes_the_fields_of_its_table(kind: Kind) -> None:
    ledger = Ledger()
    series = ledger.series(SeriesKey("v", "p", "S", kind))
    width = sum(int(np.prod(series.dtype[n].shape or (1,))) for n in series.dtype.names or ())
    series.add(*range(1, width + 1))
    flat = np.concatenate([np.atleast_1d(series.table()[0][n]) for n in series.dtype.names or ()])
    assert flat.tolist() == list(range(1, width + 1))


def test_only_confirmed_frames_count_as_delivered() -> None:
    ledger = Ledger()
    series = trades(ledger, range(100, 110))
    log = sent(ledger, series, (0, 1), (1, 3), (5, 1), (8, 1))
    assert ids(ledger.delivered(TRADES)) == {0: []}
    log.confirmed = 3
    assert ids(ledger.delivered(TRADES)) == {0: [100, 101, 102, 103, 105]}
    assert ledger.sent_rows(TRADES, 0).tolist() == [0, 1, 2, 3, 5, 8]


def test_every_frame_has_a_time_and_every_row_its_deliveries() -> None:
    ledger = Ledger()
    series = trades(ledger, range(100, 110))
    log, other = (sent(ledger, series, (0, 1), (1, 3), (5, 1)) for _ in range(2))
    log.marks.extend((1, 10, 3, 20))  # one frame by 10 ns, two more by 20 ns
    other.marks.extend((3, 30))
    log.confirmed, other.confirmed = 2, 3
    frames = ledger.frames(0)
    assert frames.series.tolist() == [series.index] * 3
    assert frames.row.tolist() == [0, 3, 5]
    assert frames.ns.tolist() == [10, 20, 20]
    assert ledger.deliveries(TRADES, 2) == [(log, 20), (other, 30)]
    assert ledger.sent_ns(TRADES, 5) == [30]


def test_a_gap_is_what_no_connection_delivered() -> None:
    ledger = Ledger()
    series = trades(ledger, range(100, 110))
    for log in (sent(ledger, series, (1, 2), (5, 1)), sent(ledger, series, (2, 2), (8, 1))):
        log.confirmed = len(log.sent)
    assert ids(ledger.truth_gaps(TRADES)) == {0: [104, 106, 107]}
    assert ids(ledger.truth_gaps(TRADES, inner=False)) == {0: [100, 104, 106, 107, 109]}


def test_what_was_sent_and_not_confirmed_is_told_apart() -> None:
    ledger = Ledger()
    log = sent(ledger, trades(ledger, range(100, 106)), (0, 1), (2, 1), (3, 1), (5, 1))
    log.confirmed = 2
    assert ids(ledger.truth_gaps(TRADES, inner=False)) == {0: [101, 103, 104, 105]}
    assert ids(ledger.truth_gaps(TRADES, inner=False, confirmed=False)) == {0: [101, 104]}


def test_generations_stay_apart() -> None:
    ledger = Ledger()
    series = trades(ledger, range(100, 103))
    trades(ledger, range(10, 13), generation=1)
    log = sent(ledger, series, (0, 1), (2, 1), (3, 3))
    log.confirmed = 3
    assert ids(ledger.produced(TRADES)) == {0: [100, 101, 102], 1: [10, 11, 12]}
    assert ids(ledger.truth_gaps(TRADES)) == {0: [101], 1: []}
    assert ledger.first_of(log.sent[2]) == (1, 10)


def test_ids_of_64_bits_are_exact() -> None:
    ledger = Ledger()
    top = 2**64 - 1
    trades(ledger, range(top, top + 1))
    assert ids(ledger.produced(TRADES)) == {0: [top]}


def test_the_dump_can_be_read_by_anybody(tmp_path: Path) -> None:
    ledger = Ledger()
    log = sent(ledger, trades(ledger, range(5)), (0, 5))
    log.confirmed = 1
    ledger.fault(FaultRecord(1, "drop", "binance", 0, "btcusdt@trade", str(TRADES), 0, 3))
    ledger.dump(tmp_path)
    head = json.loads((tmp_path / "ledger.json").read_text())
    assert head["faults"] == {"drop": 1}
    assert head["series"][0]["kind"] == "trade"
    assert head["logs"][0]["confirmed"] == 1
    with np.load(tmp_path / "ledger.npz") as arrays:
        assert arrays["series/0"]["id"].tolist() == list(range(5))
        assert arrays["delivered/0"].all()
