"""The demo of trading as a user runs it; what its books say, and when they disagree."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

from rich.console import Console

from k4.core.clock import SystemClock
from k4.core.counters import list_counters
from k4.core.enums import Kind
from k4.core.shm import ShmMdReader, ShmMdStore, list_stores, remove_store
from k4.core.trading import (
    AccountType,
    Direction,
    Fill,
    Filled,
    OrderChanged,
    OrderStatus,
    OrderType,
    OrderUpdate,
)
from k4.runner.demo_trading import compare, view
from k4.runner.quoter import Quoter
from k4.td import AsyncTdClient


def test_it_trades_cancels_everything_and_agrees_with_the_venue() -> None:
    command = (sys.executable, "-m", "k4.runner.cli", "demo", "--trading")
    with subprocess.Popen(
        (*command, "--seconds", "3", "--headless", "--json"), stdout=subprocess.PIPE, text=True
    ) as process:
        out, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    summary = json.loads(out.splitlines()[-1])
    assert summary["type"] == "summary"
    assert summary["orders_sent"] > 5
    assert summary["fills"] > 0
    assert summary["filled"] + summary["canceled"] == summary["orders_sent"]
    assert (summary["open"], summary["ledger_equal"], summary["differences"]) == (0, True, [])
    names = [*(store.name for store in list_stores()), *list_counters()]
    assert [name for name in names if name.startswith(f"demo{process.pid}")] == []


def books() -> Quoter:
    """A strategy with one order that was filled, and no connection."""
    name = f"books{id(object())}"
    with ShmMdStore(name, Kind.BOOKTICKER, ["BTCUSDT"], 4), ShmMdReader(name) as market:
        client = AsyncTdClient("/nowhere", "demo")
        quoter = Quoter(client, market, AccountType.UBASE, "BTCUSDT", SystemClock())
    remove_store(name)
    common: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "account_type": AccountType.UBASE,
        "direction": Direction.BUY,
        "client_order_id": "a",
        "order_id": "7",
        "quantity": Decimal("0.010"),
        "price": Decimal(64_000),
    }
    filled = OrderUpdate(
        **common,
        order_type=OrderType.POST_ONLY,
        status=OrderStatus.FILLED,
        filled_quantity=Decimal("0.010"),
    )
    quoter._heard(OrderChanged(filled))
    quoter._heard(Filled(Fill(**common, trade_id="9")))
    return quoter


def ledger(**order: Any) -> dict[str, Any]:
    known = {"client_id": "a", "status": "FILLED", "executed": "0.010", **order}
    return {"orders": [known], "trades": [{"id": 9}], "summary": {"sent_twice": []}}


def test_books_that_agree() -> None:
    assert compare(books(), ledger()) == []


def test_books_that_do_not() -> None:
    (state,) = compare(books(), ledger(status="CANCELED", executed="0.004"))
    assert "canceled" in state
    both = compare(books(), ledger(client_id="b"))
    assert both == ["a is known to one side only", "b is known to one side only"]
    fills = {**ledger(), "trades": [{"id": 9}, {"id": 10}]}
    assert compare(books(), fills) == ["1 fills here, 2 at the venue"]
    twice = {**ledger(), "summary": {"sent_twice": ["a"]}}
    assert compare(books(), twice) == ["sent twice: ['a']"]


def test_an_answer_that_an_event_overtook_changes_nothing() -> None:
    quoter = books()
    late = quoter.orders["a"]
    quoter._note(OrderUpdate(**{**_fields(late), "status": OrderStatus.NEW}))
    assert quoter.orders["a"].status is OrderStatus.FILLED


def _fields(update: OrderUpdate) -> dict[str, Any]:
    return {name: getattr(update, name) for name in update.__struct_fields__}


def test_the_view_shows_orders_and_figures() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(view(books()))
    assert "filled" in out.getvalue()
    assert "1 orders, 1 fills, 0 open" in out.getvalue()
