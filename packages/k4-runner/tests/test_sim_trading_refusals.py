"""What K4's trading module makes of the simulated venue's refusals: of its limits and bans, of a
timestamp, and of not knowing itself. Every code by itself is in the tests of the whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from trading_client import Desk, until
from trading_module import SYMBOLS, client, order, settled

from k4.core.trading import (
    AccountType,
    ClockRefused,
    Fault,
    LocalLimit,
    NotSent,
    OrderStatus,
    VenueLimit,
)
from k4.runner.sim.trading.spec import Limits
from k4.td import TdModule
from k4.td.venue import OrderRef

FUTURES = pytest.mark.parametrize("product", ["ubase", "cbase"])


def refuse(desk: Desk, code: int, limit: int = 1) -> None:
    """The next orders."""
    desk.venue.inject(
        {
            "fault": "refuse",
            "code": code,
            "status": 429 if code == -1015 else 400,
            "limit": limit,
            "target": {"op": "order.place"},
        }
    )


@pytest.mark.parametrize("product", ["spot", "ubase"])
async def test_a_venue_that_does_not_know_either_is_asked_until_it_does(
    tmp_path: Path, product: str
) -> None:
    codes = (-1000, -1006, -1007) if product == "ubase" else (-1000, -1001, -1006, -1007)
    async with client(tmp_path) as (desk, module):
        placing = []
        for code in codes:
            for executed in (True, False):
                name = f"u{-code}{executed}"
                fault = {"fault": "timeout", "seconds": 1.0, "code": code, "executed": executed}
                desk.venue.inject({**fault, "target": {"client_id": name, "op": "order.place"}})
                placing.append(module.insert_order(order(product, name, recv_window=200.0)))
        for update in await asyncio.gather(*placing):
            executed = update.client_order_id.endswith("True")
            # An event may have told of it before the venue gave up.
            assert update.status in (OrderStatus.UNKNOWN, OrderStatus.NEW)
            assert executed or update.status is OrderStatus.UNKNOWN
            wanted = OrderStatus.NEW if executed else OrderStatus.REJECTED
            await settled(module, product, update.client_order_id, wanted)
        assert len(desk.ledger.faults("timeout")) == 2 * len(codes)
        assert desk.ledger.sent_twice() == []


# -- the clock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", list(SYMBOLS))
async def test_a_refused_timestamp_is_tried_once_more_and_not_twice(
    tmp_path: Path, product: str
) -> None:
    async with client(tmp_path) as (desk, module):
        refuse(desk, -1021, limit=3)
        with pytest.raises(ClockRefused) as caught:
            await module.insert_order(order(product, "refused"))
        assert caught.value.order is not None
        assert caught.value.order.status is OrderStatus.REJECTED
        assert len(desk.ledger.received("order.place", "refused")) == 2
        placed = await module.insert_order(order(product, "accepted"))
        assert placed.status is OrderStatus.NEW
        assert len(desk.ledger.received("order.place", "accepted")) == 2
        assert len(desk.ledger.faults("refuse")) == 3


async def test_a_refused_timestamp_stands_where_the_venues_clock_cannot_be_read(
    tmp_path: Path,
) -> None:
    async with client(tmp_path) as (desk, module):
        refuse(desk, -1021)
        desk.venue.inject(
            {"fault": "disconnect", "when": "before", "target": {"transport": "rest", "op": "time"}}
        )
        with pytest.raises(ClockRefused):  # known to be not executed, and not a doubt
            await module.insert_order(order("spot", "refused"))
        assert desk.ledger.faults("disconnect")
        assert (await module.query_order("refused")).status is OrderStatus.REJECTED
        assert len(desk.ledger.received("order.place", "refused")) == 1


@pytest.mark.parametrize("product", list(SYMBOLS))
async def test_a_clock_that_steps_is_followed(tmp_path: Path, product: str) -> None:
    async with client(tmp_path) as (desk, module):
        for step in (9_000.0, -20_000.0):
            desk.venue.inject({"fault": "clock_skew", "ms": step})
            name = f"after{step:+.0f}".replace("+", "p")
            placed = await module.insert_order(order(product, name))
            assert placed.status is OrderStatus.NEW
            assert [r.code for r in desk.ledger.received("order.place", name)] == [-1021, 0]


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "most"), [(429, 60.0), (418, 7.0)])
async def test_futures_stop_together_for_as_long_as_they_are_told(
    tmp_path: Path, status: int, most: float
) -> None:
    """USD-M and COIN-M draw from one pool; spot has its own."""
    async with client(tmp_path) as (desk, module):
        for product in SYMBOLS:
            await module.insert_order(order(product, f"{product}-rests"))
        fault = {"fault": "limited", "status": status, "seconds": 7}
        desk.venue.inject({**fault, "target": {"product": "ubase"}})
        with pytest.raises(VenueLimit) as caught:
            await module.query_open_orders(AccountType.UBASE)
        assert 0 < caught.value.retry_after <= most
        sent = len(desk.ledger.requests)
        for product in ("ubase", "cbase"):
            with pytest.raises(LocalLimit) as refused:
                await module.insert_order(order(product, f"{product}-late"))
            assert 0 < refused.value.retry_after <= most
            assert refused.value.remedy
            # To go on would be a ban, or a longer one: cancels and queries are held back as well.
            asked: list[Any] = [
                module.cancel_order(f"{product}-rests"),
                module.query_open_orders(AccountType(product)),
            ]
            for error in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(error, LocalLimit)
        assert len(desk.ledger.requests) == sent
        assert (await module.insert_order(order("spot", "goes-on"))).status is OrderStatus.NEW
        assert len(desk.ledger.faults("limited")) == 1


@pytest.mark.parametrize("product", list(SYMBOLS))
async def test_too_many_orders_stop_orders_and_not_cancels(tmp_path: Path, product: str) -> None:
    async with client(tmp_path) as (desk, module):
        await module.insert_order(order(product, "rests"))
        refuse(desk, -1015)
        with pytest.raises(VenueLimit) as caught:
            await module.insert_order(order(product, "one-too-many"))
        assert caught.value.retry_after > 0
        with pytest.raises(LocalLimit, match="orders"):
            await module.insert_order(order(product, "held-back"))
        assert (await module.cancel_order("rests")).status is OrderStatus.CANCELED
        assert desk.ledger.received("order.place", "held-back") == []


@FUTURES
async def test_when_the_weight_runs_out_cancels_are_the_last_to_stop(
    tmp_path: Path, product: str
) -> None:
    """K4 learns the venue's limit and keeps the last fifth of it from queries."""
    async with client(tmp_path, limits=Limits(futures_weight=800)) as (desk, module):
        await module.insert_order(order(product, "rests"))
        with pytest.raises(LocalLimit, match="request_weight_60s"):
            await ask_for_ever(module, product)
        assert (await module.cancel_order("rests")).status is OrderStatus.CANCELED
        assert {request.status for request in desk.ledger.requests} == {200}


async def test_a_cancel_waits_for_a_short_ban_and_a_new_order_does_not(tmp_path: Path) -> None:
    async with client(tmp_path) as (desk, module):
        await module.insert_order(order("spot", "rests"))
        fault = {"fault": "limited", "status": 418, "seconds": 0.3}
        desk.venue.inject({**fault, "target": {"product": "spot"}})
        with pytest.raises(VenueLimit) as caught:
            await module.insert_order(order("spot", "banned"))
        assert 0 < caught.value.retry_after <= 0.3
        with pytest.raises(LocalLimit, match="said to stop"):
            await module.insert_order(order("spot", "held-back"))
        assert (await module.cancel_order("rests")).status is OrderStatus.CANCELED
        assert [request.status for request in desk.ledger.received("order.cancel")] == [200]


async def ask_for_ever(module: TdModule, product: str) -> None:
    while True:
        await module.query_open_orders(AccountType(product))


@pytest.mark.parametrize("transport", ["ws", "rest"])
async def test_a_replacement_that_the_venue_limits_says_how_long(
    tmp_path: Path, transport: str
) -> None:
    async with client(tmp_path) as (desk, module):
        venue = module.accounts[AccountType.SPOT].venue
        await module.insert_order(order("spot", "rests"))
        if transport == "rest":
            await without_api(desk, module)
        fault = {"fault": "limited", "status": 418, "seconds": 7}
        desk.venue.inject({**fault, "target": {"product": "spot"}})
        with pytest.raises(VenueLimit) as caught:
            # Of the venue itself: while the WebSocket API is lost, the module takes no change.
            await venue.replace(
                OrderRef(symbol="BTCUSDT", client_order_id="rests"),
                order("spot", "instead", "62000.0"),
            )
        assert 1 < caught.value.retry_after <= 7
        # Not simply the last request: K4 goes on trying to subscribe.
        (replacement,) = desk.ledger.received("order.cancelReplace")
        assert replacement.transport == transport
        with pytest.raises(NotSent):
            await module.insert_order(order("spot", "held-back"))
        (kept,) = desk.ledger.orders(open_only=True)
        assert kept.client_id == "rests"
        assert len(desk.ledger.faults("limited")) == 1


async def without_api(desk: Desk, module: TdModule) -> None:
    """Until the WebSocket API is lost and its subscription is refused for a while."""
    faults: list[Fault] = []
    module.bus.listen(lambda _, event: faults.append(event) if isinstance(event, Fault) else None)
    desk.venue.inject(
        {
            "fault": "refuse",
            "code": -1020,
            "limit": 100_000,
            "target": {"op": "userDataStream.subscribe.signature"},
        }
    )
    desk.venue.inject({"fault": "reset", "target": {"product": "spot"}})
    await until(lambda: faults)
