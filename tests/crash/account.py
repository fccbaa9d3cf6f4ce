"""The account of a run: the venue's ledger against the journal, the gateway and the strategies.

Pure: records in, sentences out. Every sentence is a broken promise.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import msgspec

from k4.core.trading import Balance, OrderStatus, OrderUpdate, Position
from k4.runner.sim.trading.ledger import TradingLedger
from k4.runner.sim.trading.orders import Order, Trade

from .traders import UNSETTLED, Told

ACCOUNT = "main"
STATUS = {
    "NEW": "new",
    "PARTIALLY_FILLED": "partially_filled",
    "FILLED": "filled",
    "CANCELED": "canceled",
    "EXPIRED": "expired",
    "EXPIRED_IN_MATCH": "expired",
}
FORBIDDEN = (-1022, -1100, -1101, -1102, -1104, -1105, -1106, -2014, -2015)
"""Codes of requests that are signed or put together wrongly."""
TOO_LATE = -1021
"""The window of a request had closed when it was looked at: this machine stood still for longer.
It proves that nothing was executed, so the product may stamp such a request anew, once."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One order of the journal."""

    account: str
    client_order_id: str
    order_id: str
    status: str
    quantity: Decimal
    price: Decimal
    filled: Decimal
    open: bool
    fills: Mapping[str, tuple[Decimal, Decimal]]  # price and quantity by trade id


class Journal(msgspec.Struct, frozen=True):
    """What any SQLite tool reads from a journal."""

    orders: Mapping[tuple[str, str], Row]
    integrity: str


class Word(msgspec.Struct, frozen=True):
    """What the gateway says at the end: open orders, positions that are not flat, balances."""

    orders: Sequence[OrderUpdate]
    positions: Sequence[Position]
    balances: Sequence[Balance]


def read_journal(path: Path) -> Journal:
    """Read it as it lies there, also after a crash."""
    with closing(sqlite3.connect(path)) as db:
        (integrity,) = db.execute("PRAGMA integrity_check").fetchone()
        fills: dict[tuple[str, str], dict[str, tuple[Decimal, Decimal]]] = {}
        for account, client, trade, price, quantity in db.execute(
            "SELECT account, client_order_id, trade_id, price, quantity FROM fills"
        ):
            fills.setdefault((account, client), {})[trade] = Decimal(price), Decimal(quantity)
        orders = {
            (row[0], row[1]): Row(
                account=row[0],
                client_order_id=row[1],
                order_id=row[2],
                status=row[3],
                quantity=Decimal(row[4]),
                price=Decimal(row[5]),
                filled=Decimal(row[6]),
                open=bool(row[7]),
                fills=fills.get((row[0], row[1]), {}),
            )
            for row in db.execute(
                "SELECT account, client_order_id, order_id, status, quantity, price,"
                " filled_quantity, open FROM orders"
            )
        }
    return Journal(orders, integrity)


def disagreements(ledger: TradingLedger, word: Word) -> list[str]:
    """What the gateway says now, against the venue as it is now."""
    return [*_open_orders(ledger, word.orders), *_wealth(ledger, word)]


def judge(ledger: TradingLedger, journal: Journal, told: Iterable[tuple[str, Told]]) -> list[str]:
    """At the end, when no process is left. told: account and what its strategy knows."""
    return [
        *_requests(ledger),
        *_orders(ledger, journal),
        *_phantoms(ledger, journal),
        *_strategies(ledger, journal, told),
        *([] if journal.integrity == "ok" else [f"the journal is damaged: {journal.integrity}"]),
    ]


def _requests(ledger: TradingLedger) -> Iterator[str]:
    """No order sent twice; every request signed and stamped as the venue wants it."""
    sent = Counter(
        (request.product, request.client_id)
        for request in ledger.received("order.place")
        if request.code != TOO_LATE
    )
    for (product, client_id), times in sent.items():
        if times > 1:
            yield f"{product} order {client_id} was sent {times} times"
    for client_id in ledger.placed_twice():
        yield f"order {client_id} was placed twice"
    for request in ledger.requests:
        if request.code in FORBIDDEN:
            yield f"request {request.number} ({request.op}) was refused with {request.code}"


def _orders(ledger: TradingLedger, journal: Journal) -> Iterator[str]:
    """No order lost: what the venue has is in the journal, and is the same there."""
    trades: dict[tuple[str, int], list[Trade]] = {}
    for trade in ledger.trades(ACCOUNT):
        trades.setdefault((trade.product, trade.order), []).append(trade)
    for order in ledger.orders(ACCOUNT):
        row = journal.orders.get((order.product, order.client_id))
        name = f"{order.product} order {order.client_id}"
        if row is None:
            yield f"{name} is at the venue and not in the journal"
            continue
        for what, there, here in _figures(order, row):
            if there != here:
                yield f"{name}: {what} is {there} at the venue and {here} in the journal"
        done = {
            str(trade.id): (trade.price, trade.quantity)
            for trade in trades.get((order.product, order.number), ())
        }
        if done != row.fills:
            missing = sorted(done.keys() - row.fills.keys())
            extra = sorted(row.fills.keys() - done.keys())
            yield f"{name}: fills missing in the journal {missing}, invented {extra}"


def _figures(order: Order, row: Row) -> Iterator[tuple[str, object, object]]:
    yield "the id", str(order.number), row.order_id
    yield "the status", STATUS[order.status], row.status
    yield "what is filled", order.executed, row.filled
    yield "open", order.open, row.open
    if order.open:
        yield "the quantity", order.quantity, row.quantity
        yield "the price", order.price, row.price


def _phantoms(ledger: TradingLedger, journal: Journal) -> Iterator[str]:
    """An order that the venue never had is rejected in the journal, and nothing else."""
    there = {(order.product, order.client_id) for order in ledger.orders(ACCOUNT)}
    for key, row in journal.orders.items():
        if key not in there and row.status != OrderStatus.REJECTED.value:
            yield f"{row.account} order {row.client_order_id} is {row.status}, never at the venue"


def _strategies(
    ledger: TradingLedger, journal: Journal, told: Iterable[tuple[str, Told]]
) -> Iterator[str]:
    """What a strategy was told last is true."""
    there = {(order.product, order.client_id): order for order in ledger.orders(ACCOUNT)}
    for account, known in told:
        order = there.get((account, known.client_order_id))
        name = f"{account} order {known.client_order_id}"
        if known.never:
            if order is not None:
                yield f"{name}: a strategy was told that it never was, and it is {order.status}"
            continue
        if known.update is None:
            yield f"{name}: a strategy was told nothing"
            continue
        update = known.update
        if order is None and update.status is not OrderStatus.REJECTED:
            yield f"{name}: a strategy was told {update.status}, and it never was at the venue"
        if order is not None and update.status.final:
            if STATUS[order.status] != update.status.value:
                yield f"{name}: a strategy was told {update.status}, and it is {order.status}"
            if (account, known.client_order_id) not in journal.orders:
                yield f"{name}: told to a strategy and not in the journal"


def _open_orders(ledger: TradingLedger, said: Sequence[OrderUpdate]) -> Iterator[str]:
    """What the gateway calls open is what is open at the venue, and nothing is in doubt."""
    for update in said:
        if update.status in UNSETTLED:
            yield f"{update.account_type} order {update.client_order_id} is {update.status}"
    there = {(o.product, o.client_id) for o in ledger.orders(ACCOUNT, open_only=True)}
    here = {(update.account_type.value, update.client_order_id) for update in said}
    for account, client_id in sorted(there ^ here):
        where = "the venue" if (account, client_id) in there else "the gateway"
        yield f"{account} order {client_id} is open at {where} alone"


def _wealth(ledger: TradingLedger, word: Word) -> Iterator[str]:
    """Positions and spot balances are the venue's."""
    wealth = ledger.wealth()[ACCOUNT]
    there = {
        (product, held["symbol"]): Decimal(held["amount"])
        for product in ("ubase", "cbase")
        for held in wealth[f"{product}_positions"]
    }
    here = {(held.account_type.value, held.symbol): held.quantity for held in word.positions}
    if there != here:
        yield f"positions are {there} at the venue and {here} at the gateway"
    for held in word.balances:
        if held.account_type.value == "spot":
            known = wealth["spot"][held.asset]
            if (Decimal(known["free"]), Decimal(known["locked"])) != (held.free, held.locked):
                yield f"spot {held.asset} is {known} at the venue, {held.free} {held.locked} here"
