"""The journal: intent before the first byte, crash points, replay, locks, other tools."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_killpoints import POINTS

from k4.core.trading import (
    AccountType,
    Direction,
    Fill,
    JournalError,
    NewOrder,
    OrderStatus,
    OrderType,
)
from k4.td import state as states
from k4.td.journal import Journal
from k4.td.state import AMEND, CANCEL, PLACE, OrderState
from k4.td.venue import Report

SPOT = AccountType.SPOT


def order(key: str = "k4-1", symbol: str = "BTCUSDT") -> NewOrder:
    return NewOrder(
        symbol=symbol,
        account_type=SPOT,
        direction=Direction.BUY,
        order_type=OrderType.GTC,
        quantity=Decimal("0.00000010"),
        price=Decimal("100.10"),
        client_order_id=key,
    )


def fill(trade: int, key: str = "k4-1", symbol: str = "BTCUSDT") -> Fill:
    return Fill(
        symbol=symbol,
        account_type=SPOT,
        direction=Direction.BUY,
        client_order_id=key,
        order_id="7",
        trade_id=str(trade),
        price=Decimal("100.10"),
        quantity=Decimal("0.00000001"),
        commission=Decimal("0.0000000001"),
        commission_asset="BNB",
        is_maker=True,
        trade_time_us=trade * 10,
    )


def heard(state: OrderState, status: OrderStatus = OrderStatus.NEW) -> OrderState:
    report = Report(
        symbol=state.order.symbol,
        client_order_id=state.order.client_order_id,
        order_id="7",
        status=status,
        quantity=state.order.quantity,
        price=state.order.price,
        time_us=5,
    )
    return states.hear(states.settle(state, PLACE), report)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.db")


@pytest.fixture
def journal(path: str) -> Iterator[Journal]:
    made = Journal(path)
    yield made
    made.close()


# What must be true at the next start, by the point at which the process was killed:
# sent requests, status (None: no trace), doubts, fills.
EXPECTED: dict[str, tuple[list[str], OrderStatus | None, tuple[str, ...], int]] = {
    "before-intent": ([], None, (), 0),
    "after-intent": ([], OrderStatus.UNKNOWN, (PLACE,), 0),
    "after-send": (["place"], OrderStatus.UNKNOWN, (PLACE,), 0),
    "after-ack": (["place"], OrderStatus.NEW, (), 0),
    "after-fill": (["place"], OrderStatus.PARTIALLY_FILLED, (), 1),
    "after-cancel-intent": (["place"], OrderStatus.UNKNOWN, (CANCEL,), 1),
    "after-cancel-send": (["place", "cancel"], OrderStatus.UNKNOWN, (CANCEL,), 1),
    "after-cancel-ack": (["place", "cancel"], None, (), 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_kill_9_at_every_point_leaves_the_truth(point: str, path: str) -> None:
    """Nothing leaves that is not written down, and what was under way is in doubt."""
    script = Path(__file__).parent / "journal_killpoints.py"
    died = subprocess.run([sys.executable, str(script), path, point], check=False)
    assert died.returncode == -signal.SIGKILL
    sent_file = Path(path + ".sent")
    sent = sent_file.read_text().split() if sent_file.exists() else []
    expected_sent, status, doubts, fills = EXPECTED[point]
    assert sent == expected_sent
    journal = Journal(path)  # the dead process's lock is gone
    kept = journal.open_orders(SPOT)
    if status is None:
        assert kept == []
    else:
        [entry] = kept
        assert (entry.state.status, entry.state.doubts) == (status, doubts)
        assert (entry.owner, entry.cancel_on_disconnect) == ("mm1", True)
        assert len(entry.state.fills) == fills
    if sent:
        assert journal.find(SPOT, "k4-1") is not None
    if point == "after-cancel-ack":
        final = journal.find(SPOT, "k4-1")
        assert final is not None
        assert (final.status, len(final.fills)) == (OrderStatus.CANCELED, 1)
    journal.close()


def test_a_client_id_is_never_used_twice(journal: Journal) -> None:
    journal.intend_place(states.intend(order(), 1))
    with pytest.raises(JournalError, match="used before") as caught:
        journal.intend_place(states.intend(order(), 2))
    assert caught.value.code == "journal.client_order_id"


def test_a_state_comes_back_as_it_was(journal: Journal) -> None:
    state = states.intend(order(), 1)
    journal.intend_place(state, "mm1")
    fills = [fill(1), fill(2)]
    state = states.fill(heard(state), fills)
    journal.save(state, fills)
    journal.save(state, fills)  # twice is once
    assert journal.find(SPOT, "k4-1") == state
    assert journal.find_by_venue_id(SPOT, "BTCUSDT", "7") == state
    assert journal.find(SPOT, "other") is None


def test_unanswered_requests_are_doubts_and_answered_ones_are_not(journal: Journal) -> None:
    state = states.intend(order(), 1)
    journal.intend_place(state)
    journal.save(heard(state))
    amend = journal.intend(state, "amend", {"price": "1"}, 2)
    [kept] = journal.open_orders(SPOT)
    assert kept.state.doubts == (AMEND,)
    journal.outcome(amend, "done")
    [kept] = journal.open_orders(SPOT)
    assert kept.state.doubts == ()


def test_both_halves_of_a_replacement_are_written_or_none(journal: Journal) -> None:
    old, new = states.intend(order("old"), 1), states.intend(order("new"), 2)
    journal.intend_place(old)
    journal.save(heard(old))
    journal.intend_replace(old, new, "mm1", False)
    assert {
        kept.state.order.client_order_id: kept.state.doubts for kept in (journal.open_orders(SPOT))
    } == {"old": (CANCEL,), "new": (PLACE,)}
    with pytest.raises(JournalError, match="used before"):
        journal.intend_replace(old, new, "mm1", False)
    journal.intend_place(states.intend(order("third"), 3))  # no transaction was left open


def test_final_orders_are_not_replayed(journal: Journal) -> None:
    state = states.intend(order(), 1)
    journal.intend_place(state)
    journal.save(states.refuse(state, "no balance"))
    assert journal.open_orders(SPOT) == []
    assert journal.open_orders(AccountType.UBASE) == []


def test_activity_says_where_to_go_on_with_fills(journal: Journal) -> None:
    journal.intend_place(states.intend(order("a", "BTCUSDT"), 100))
    journal.intend_place(states.intend(order("b", "ETHUSDT"), 200))
    journal.add_fills([fill(30)])  # it overtook others: not up to where all is known
    assert journal.activity(SPOT) == {"BTCUSDT": ("", 100), "ETHUSDT": ("", 200)}
    for head in (9, 10, 8):
        journal.advance(SPOT, {"BTCUSDT": head})
    journal.advance(SPOT, {})
    assert journal.activity(SPOT) == {"BTCUSDT": ("10", 100), "ETHUSDT": ("", 200)}


def test_a_second_writer_is_refused_also_from_another_process(journal: Journal) -> None:
    with pytest.raises(JournalError, match="in use by another process"):
        Journal(journal.path)
    code = f"from k4.td.journal import Journal; Journal({journal.path!r})"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "in use by another process" in child.stderr


def test_the_files_are_the_owner_s_alone(journal: Journal) -> None:
    journal.intend_place(states.intend(order(), 1))
    for name in os.listdir(os.path.dirname(journal.path)):
        mode = os.stat(os.path.join(os.path.dirname(journal.path), name)).st_mode
        assert mode & 0o077 == 0, name


def test_other_tools_read_it_while_it_runs(journal: Journal) -> None:
    journal.intend_place(states.intend(order(), 1), "mm1")
    other = sqlite3.connect(f"file:{journal.path}?mode=ro", uri=True)
    row = other.execute("SELECT symbol, status, quantity, price, owner FROM orders").fetchone()
    other.close()
    assert row == ("BTCUSDT", "pending_new", "0.00000010", "100.10", "mm1")


def test_checkpoints_run_beside_the_writer_and_keep_the_log_small(journal: Journal) -> None:
    for number in range(300):
        journal.intend_place(states.intend(order(f"k4-{number}"), number))
    log = journal.path + "-wal"
    grown = os.path.getsize(log)
    worker = threading.Thread(target=journal.checkpoint)
    worker.start()
    for number in range(300, 600):
        journal.intend_place(states.intend(order(f"k4-{number}"), number))
    worker.join()
    journal.checkpoint()
    for number in range(600, 700):
        journal.intend_place(states.intend(order(f"k4-{number}"), number))
    assert os.path.getsize(log) <= 3 * grown
    assert len(journal.open_orders(SPOT)) == 700


def test_full_sync_and_an_unusable_path(tmp_path: Path) -> None:
    full = Journal(str(tmp_path / "full.db"), "full")
    full.intend_place(states.intend(order(), 1))
    full.close()
    full.close()
    with pytest.raises(JournalError, match="No such file"):
        Journal(str(tmp_path / "absent" / "j.db"))
    (tmp_path / "text.db").write_text("this is no database at all, but a text\n" * 100)
    with pytest.raises(JournalError, match="not a database"):
        Journal(str(tmp_path / "text.db"))
    other = sqlite3.connect(tmp_path / "old.db")
    other.executescript(
        "CREATE TABLE meta (key TEXT, value TEXT);INSERT INTO meta VALUES ('schema', '0');"
    )
    other.close()
    with pytest.raises(JournalError, match="schema 0"):
        Journal(str(tmp_path / "old.db"))


def test_a_full_disk_refuses_the_intent(journal: Journal) -> None:
    journal._db.execute("PRAGMA max_page_count=20")

    def fill_up() -> None:
        for number in range(10_000):
            journal.intend_place(states.intend(order(f"k4-{number}"), number))

    with pytest.raises(JournalError, match="full"):
        fill_up()


def test_a_disk_without_room_fails_cleanly_and_later_takes_everything(path: str) -> None:
    """In a process of its own, since the limit on file sizes is the process's. SQLite ends a
    transaction by itself there."""
    script = Path(__file__).parent / "journal_full.py"
    done = subprocess.run(
        [sys.executable, str(script), path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    journal = Journal(path)
    state = journal.find(SPOT, "a")
    assert state is not None
    assert set(state.fills) == {"1"}
    assert journal.find(SPOT, "b") is None
    assert journal.find(SPOT, "c") is not None
    assert journal.killed() == ""
    journal.close()


def test_the_kill_reason_is_kept_until_it_is_released(path: str) -> None:
    journal = Journal(path)
    assert journal.killed() == ""
    journal.set_killed("panic")
    journal.close()
    journal = Journal(path)
    assert journal.killed() == "panic"
    journal.set_killed("")
    assert journal.killed() == ""
    journal.close()


NUMBERS = itertools.count()
DECIMALS = st.decimals(Decimal("1e-12"), Decimal("1e12"), allow_nan=False, allow_infinity=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(quantity=DECIMALS, price=DECIMALS, status=st.sampled_from(list(OrderStatus)))
def test_any_state_survives_the_way_to_the_disk(
    quantity: Decimal, price: Decimal, status: OrderStatus, journal: Journal
) -> None:
    wanted = msgspec.structs.replace(
        order(f"k4-{next(NUMBERS)}"), quantity=quantity, price=price, recv_window=12.5
    )
    state = states.intend(wanted, 1)
    journal.intend_place(state)
    state = heard(state, status)
    journal.save(state)
    assert journal.find(SPOT, wanted.client_order_id) == state
