"""Lost is what was delivered and is not held: proven with a ledger of a few rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from k4.core.enums import Kind
from k4.runner.sim.ledger import Ledger as SimLedger
from k4.runner.sim.ledger import SeriesKey, frame_key
from k4.runner.tally import Ids, Ledger, Market, changed, lost

TRADES = Market("binance", "ubase", "BTCUSDT", Kind.TRADE)
BOOKS = Market("binance", "spot", "BTCUSDT", Kind.DEPTH5)


def ids(*numbers: int) -> Ids:
    return np.array(numbers, dtype=np.uint64)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Trades 1 to 5, 4 a placeholder and 5 never confirmed; books 10 to 12, 11 showing nothing
    new.
    """
    sim = SimLedger()
    trades = sim.series(SeriesKey(*TRADES))
    books = sim.series(SeriesKey(*BOOKS))
    line = sim.connection("binance", "ubase", "/public/stream")
    for id in range(1, 6):
        row = trades.add(0, id, 0, 0, id, 100, 1, 0, int(id == 4))
        line.sent.append(frame_key(trades, row))
    for id, price in ((10, 100), (11, 100), (12, 101)):
        row = books.add(0, id, 0, 0, *[price] * 5, *[1] * 5, *[200] * 5, *[1] * 5, *[0] * 10)
        line.sent.insert(0, frame_key(books, row))
    line.confirmed = len(line.sent) - 1
    sim.dump(tmp_path)
    return Ledger(tmp_path)


def test_what_was_delivered_is_owed(ledger: Ledger) -> None:
    owed = ledger.owed()
    assert owed[TRADES].tolist() == [1, 2, 3]
    assert owed[BOOKS].tolist() == [10, 12]
    assert ledger.sent == 8


def test_what_is_owed_and_not_held_is_lost(ledger: Ledger) -> None:
    owed = ledger.owed()
    assert lost(owed, {TRADES: ids(1, 2, 3), BOOKS: ids(10, 12)}) == 0
    assert lost(owed, {TRADES: ids(1, 3), BOOKS: ids(12)}) == 2
    assert lost(owed, {TRADES: ids()}) == 3


def test_what_is_held_and_not_owed_is_no_loss(ledger: Ledger) -> None:
    assert lost(ledger.owed(), {TRADES: ids(1, 2, 3, 5)}) == 0


def test_no_books_change_nothing() -> None:
    empty = SimLedger().series(SeriesKey(*BOOKS)).table()
    assert changed(empty).tolist() == []
