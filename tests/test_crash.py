"""A scaled part of `hatch run crash`, and proof that its account finds what it looks for."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from crash.account import Journal, Row, Word, disagreements, judge, read_journal
from crash.points import POINTS, STEPS
from crash.traders import Told

from k4.core.trading import AccountType, Direction, OrderStatus, OrderType, OrderUpdate
from k4.runner.sim.trading.ledger import RequestRecord, TradingLedger
from k4.runner.sim.trading.orders import Order, Trade
from k4.td.journal import Journal as WrittenJournal

ROOT = Path(__file__).parents[1]
SECONDS = 40


@pytest.mark.timeout(300)
def test_no_order_is_lost_or_sent_twice_however_the_gateway_dies() -> None:
    command = (sys.executable, "-m", "tests.crash", "--runs", "400", "--seconds", str(SECONDS))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["ok"], summary["promises_broken"], summary["broken"]) == (True, 0, [])
    # That it would have noticed: processes died, orders traded, the venue misbehaved.
    assert summary["deaths"] >= summary["runs"] // 2 > 0
    assert summary["trades"] > 0
    assert summary["faults"]
    assert summary["factor"] == 10.0


def test_every_step_of_an_order_has_a_point() -> None:
    assert {"place", "cancel", "amend", "fill", "keepalive"} <= STEPS.keys()
    assert len(set(POINTS)) == len(POINTS) > 40


# -- the account ----------------------------------------------------------------------------------


def order(**more: Any) -> Order:
    made = Order(
        number=7,
        product="spot",
        account="main",
        symbol="BTCUSDT",
        client_id="a",
        buy=True,
        kind="LIMIT",
        tif="GTC",
        price=Decimal(100),
        quantity=Decimal(3),
        created_ms=1,
        status="PARTIALLY_FILLED",
        executed=Decimal(1),
        history=[],
    )
    made.note("NEW", 1)
    for name, value in more.items():
        setattr(made, name, value)
    return made


TRADE = Trade(
    id=9,
    product="spot",
    account="main",
    symbol="BTCUSDT",
    order=7,
    client_id="a",
    buy=True,
    price=Decimal(100),
    quantity=Decimal(1),
    value=Decimal(100),
    commission=Decimal(0),
    asset="BNB",
    maker=True,
    time_ms=2,
)
ROW = Row(
    account="spot",
    client_order_id="a",
    order_id="7",
    status="partially_filled",
    quantity=Decimal(3),
    price=Decimal(100),
    filled=Decimal(1),
    open=True,
    fills={"9": (Decimal(100), Decimal(1))},
)
UPDATE = OrderUpdate(
    symbol="BTCUSDT",
    account_type=AccountType.SPOT,
    direction=Direction.BUY,
    order_type=OrderType.GTC,
    quantity=Decimal(3),
    client_order_id="a",
    status=OrderStatus.PARTIALLY_FILLED,
)


def ledger(
    orders: tuple[Order, ...] = (),
    trades: tuple[Trade, ...] = (TRADE,),
    places: int = 1,
    code: int = 0,
) -> TradingLedger:
    made = TradingLedger()
    made.attach({o.number: o for o in orders or (order(),)}, list(trades))
    made.attach_wealth(
        lambda: {
            "main": {
                "spot": {"BTC": {"free": "1", "locked": "0"}},
                "ubase_positions": [],
                "cbase_positions": [],
            }
        }
    )
    for number in range(places):
        made.requests.append(
            RequestRecord(
                number=number + 1,
                time_ms=1,
                product="spot",
                transport="ws",
                op="order.place",
                client_id="a",
                code=code,
            )
        )
    return made


def journal(row: Row | None = ROW, **more: Any) -> Journal:
    if row is None:
        return Journal({}, "ok")
    changed = msgspec.structs.replace(row, **more)
    return Journal({(changed.account, changed.client_order_id): changed}, "ok")


def test_a_run_without_fault_breaks_nothing() -> None:
    assert judge(ledger(), journal(), [("spot", Told("a", UPDATE))]) == []
    assert disagreements(ledger(), Word([UPDATE], [], [])) == []


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (lambda: judge(ledger(), journal(None), []), "not in the journal"),
        (lambda: judge(ledger(places=2), journal(), []), "was sent 2 times"),
        (lambda: judge(ledger(code=-1022), journal(), []), "refused with -1022"),
        (lambda: judge(ledger(), journal(status="filled"), []), "the status is"),
        (lambda: judge(ledger(), journal(filled=Decimal(2)), []), "what is filled is"),
        (lambda: judge(ledger(), journal(price=Decimal(99)), []), "the price is"),
        (lambda: judge(ledger(), journal(fills={}), []), "fills missing"),
        (lambda: judge(ledger(trades=()), journal(), []), "invented"),
        (
            lambda: judge(
                ledger((order(number=7), order(number=8, client_id="a")), ()), journal(), []
            ),
            "was placed twice",
        ),
        (
            lambda: judge(
                ledger((order(client_id="b"),), ()), journal(status="unknown", fills={}), []
            ),
            "is unknown, never at the venue",
        ),
        (
            lambda: judge(ledger(), journal(), [("spot", Told("a", None, never=True))]),
            "was told that it never was",
        ),
        (
            lambda: judge(
                ledger(),
                journal(),
                [("spot", Told("a", msgspec.structs.replace(UPDATE, status=OrderStatus.CANCELED)))],
            ),
            "a strategy was told canceled",
        ),
        (lambda: judge(ledger(), Journal({}, "page 3 is torn"), []), "page 3 is torn"),
        (lambda: disagreements(ledger(), Word([], [], [])), "is open at the venue alone"),
        (
            lambda: disagreements(
                ledger(),
                Word([msgspec.structs.replace(UPDATE, status=OrderStatus.UNKNOWN)], [], []),
            ),
            "is unknown",
        ),
    ],
)
def test_every_broken_promise_is_found(found: Callable[[], list[str]], complaint: str) -> None:
    assert any(complaint in sentence for sentence in found()), found()


def test_a_request_that_was_too_late_may_be_stamped_anew() -> None:
    late = ledger(places=1, code=-1021)
    late.requests.append(msgspec.structs.replace(late.requests[0], number=2, code=0))
    assert not any("was sent" in sentence for sentence in judge(late, journal(), []))


def test_a_journal_is_read_as_it_lies_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    WrittenJournal(str(path)).close()
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO orders VALUES"
            " ('spot','a','BTCUSDT','7','partially_filled','3','100','1',1,1,1,'mm',0,'','{}')"
        )
        db.execute(
            "INSERT INTO fills VALUES ('spot','BTCUSDT','9','a','7','buy','100','1','0','BNB',1,2)"
        )
    db.close()
    assert read_journal(path) == journal()
