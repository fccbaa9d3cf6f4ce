"""K4's own trading module against the simulated venue: every order that it sends passes checks that
share no code with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trading_client import Desk, until
from trading_module import KINDS, SYMBOLS, D, client, order, settled

from k4.core.trading import (
    AccountType,
    Disconnected,
    Event,
    NotSent,
    OrderChanged,
    OrderError,
    OrderStatus,
)
from k4.td import TdModule


@pytest.mark.parametrize("algorithm", KINDS)
@pytest.mark.parametrize("product", list(SYMBOLS))
async def test_an_order_rests_is_amended_cancelled_and_filled(
    tmp_path: Path, product: str, algorithm: str
) -> None:
    async with client(tmp_path, algorithm) as (desk, module):
        resting = await module.insert_order(order(product, "rests"))
        assert resting.status is OrderStatus.NEW
        amended = await module.amend_order("rests", quantity=resting.quantity / 2)
        assert amended.quantity == resting.quantity / 2
        assert (await module.cancel_order("rests")).status is OrderStatus.CANCELED
        await module.insert_order(order(product, "fills", "64001.0"))
        filled = await settled(module, product, "fills", OrderStatus.FILLED)
        (trade,) = desk.ledger.trades(client_id="fills")
        assert (filled.filled_quantity, filled.filled_avg_price) == (trade.quantity, D(64001))
        assert desk.ledger.placed_twice() == []
        assert [r for r in desk.ledger.requests if r.code not in (0, -2011)] == []


async def test_balances_positions_and_open_orders_are_the_venues(tmp_path: Path) -> None:
    async with client(tmp_path) as (desk, module):
        for product in SYMBOLS:
            await module.insert_order(order(product, f"{product}-rests"))
            await module.insert_order(order(product, f"{product}-fills", "64001.0"))
        open_ids = {found.client_order_id for found in await module.query_open_orders()}
        assert open_ids == {f"{product}-rests" for product in SYMBOLS}
        positions = {p.symbol: p.quantity for p in await module.query_positions()}
        assert positions == {"BTCUSDT": D("0.010"), "BTCUSD_PERP": D(10)}
        held = {
            balance.asset: balance.free + balance.locked
            for balance in await module.query_balances(AccountType.SPOT)
        }
        wallet = desk.venue.spot_wallets["main"].assets
        assert held == {asset: item.free + item.locked for asset, item in wallet.items()}


async def test_after_the_venues_shutdown_notice_nothing_is_sent_on_that_connection(
    tmp_path: Path,
) -> None:
    async with client(tmp_path) as (desk, module):
        heard: list[Event] = []
        module.bus.listen(lambda _, event: heard.append(event))

        async def cycle(name: str) -> set[str]:
            """How an order and its cancel reached the venue."""
            before = len(desk.ledger.requests)
            await module.insert_order(order("spot", name))
            await module.cancel_order(name)
            sent = desk.ledger.requests[before:]
            return {r.transport for r in sent if r.op in ("order.place", "order.cancel")}

        assert await cycle("before") == {"ws"}
        # Slow to let the successor in: what is sent in the meantime must not go to the old one.
        slow = {"op": "userDataStream.subscribe*"}
        desk.venue.inject({"fault": "latency", "ms": 300, "target": slow})
        (named,) = desk.venue.inject({"fault": "shutdown", "grace": 5})
        known = len(desk.ledger.connections)
        old = desk.ledger.connections[int(named.split()[1]) - 1]
        await until(lambda: len(desk.ledger.connections) > known)
        assert await cycle("between") == {"rest"}
        assert not old.closed_ms
        await until(lambda: old.closed_ms)
        assert await cycle("after") == {"ws"}
        assert [fault.fault for fault in desk.ledger.faults()] == ["shutdown", "latency"]
        assert not [event for event in heard if isinstance(event, Disconnected)]
        told = [e.update for e in heard if isinstance(e, OrderChanged)]
        assert {u.client_order_id for u in told if u.status is OrderStatus.CANCELED} == {
            *("before", "between", "after")
        }


_LOSSES: list[dict[str, Any]] = [
    {"fault": "drop_reply", "probability": 0.1},
    {"fault": "drop_request", "probability": 0.1},
    {"fault": "disconnect", "when": "after", "probability": 0.05},
    {"fault": "disconnect", "when": "before", "probability": 0.05},
    {"fault": "timeout", "executed": True, "probability": 0.05},
    {"fault": "unavailable", "what": "unknown", "executed": True, "probability": 0.1},
]


@pytest.mark.parametrize("product", list(SYMBOLS))
async def test_whatever_is_lost_both_sides_agree_in_the_end(tmp_path: Path, product: str) -> None:
    """Answers and events are lost, doubled and late; nothing is sent twice, and every order ends up
    as the venue has it."""
    faults = [{**fault, "target": {"op": "order.*"}} for fault in _LOSSES]
    faults += [
        {"fault": "event_drop", "probability": 0.1},
        {"fault": "event_duplicate", "probability": 0.1},
        {"fault": "event_delay", "ms": 20, "ordered": False, "probability": 0.2},
    ]
    async with client(tmp_path, faults=tuple(faults), seed=11) as (desk, module):
        ids = [f"{product}-{number}" for number in range(14)]
        for number, name in enumerate(ids):
            price = "64001.0" if number % 3 == 0 else "63000.0"
            sent = order(product, name, price, recv_window=300.0)
            await insist(partial(module.insert_order, sent))
            if number % 3 == 1:
                await insist(partial(module.cancel_order, name))
        # Chance decides which; that most of them happened is certain enough to be asserted.
        assert len({record.fault for record in desk.ledger.faults()}) >= 5
        async with asyncio.timeout(20):
            for name in ids:
                await agreed(desk, module, product, name)
        assert desk.ledger.sent_twice() == []
        assert desk.ledger.placed_twice() == []


async def insist(call: Callable[[], Awaitable[object]]) -> None:
    """Until the request has left this host, whatever became of it then."""
    while True:
        try:
            await call()
        except NotSent:
            await asyncio.sleep(0.05)
            continue
        except OrderError:
            return
        return


async def agreed(desk: Desk, module: TdModule, product: str, name: str) -> None:
    """Until the module and the venue say the same of an order. It is asked once more where it looks
    open: of an event that is lost on a living stream nobody can know."""
    kind = AccountType(product)
    while True:
        orders = desk.ledger.orders(client_id=name)
        state = module.accounts[kind].book.orders.get(name)
        if state is not None and not state.doubts and not state.waiting:
            if not orders and state.rejected:
                return
            if orders and state.status.value == orders[0].status.lower():
                return
            asked = module.query_order(name, account_type=kind)
            await asyncio.gather(asked, return_exceptions=True)
        await asyncio.sleep(0.05)
