"""Every way of an order's life at the simulated venue, as K4's trading module tells it.

What a strategy hears is compared with the venue's ledger. The venue's answer may come before its
event or after it; both are tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trading_client import Desk
from trading_module import SYMBOLS, D, client, order

from k4.core.trading import (
    AccountType,
    AmendRefused,
    Connected,
    Direction,
    Disconnected,
    Event,
    Filled,
    FilterRefused,
    ForeignOrder,
    InvalidOrder,
    KeyRefreshed,
    OrderChanged,
    OrderStatus,
    OrderType,
    PositionChanged,
    PositionSide,
    RuleRefused,
    WouldNotRest,
)
from k4.runner.sim.trading.spec import AccountSpec
from k4.td import TdModule

NEW, PARTLY, FILLED = OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED, OrderStatus.FILLED
CANCELED, EXPIRED, REJECTED = OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.REJECTED
SELL = Direction.SELL
PRODUCTS = pytest.mark.parametrize("product", list(SYMBOLS))
FUTURES = pytest.mark.parametrize("product", ["ubase", "cbase"])
FIRST = pytest.mark.parametrize("first", ["answer", "event"])


class Ear:
    """Every event, and a way to wait for one."""

    def __init__(self, module: TdModule) -> None:
        self.heard: list[Event] = []
        self._more = asyncio.Event()
        module.bus.listen(self._hear)

    def _hear(self, sequence: int, event: Event) -> None:
        self.heard.append(event)
        self._more.set()

    async def until(self, condition: Callable[[Event], bool]) -> Event:
        async with asyncio.timeout(10):
            while True:
                for event in self.heard:
                    if condition(event):
                        return event
                self._more.clear()
                await self._more.wait()

    async def became(self, name: str, status: OrderStatus) -> OrderChanged:
        found = await self.until(
            lambda event: (
                isinstance(event, OrderChanged)
                and event.update.client_order_id == name
                and event.update.status is status
            )
        )
        assert isinstance(found, OrderChanged)
        return found

    def life(self, name: str) -> list[OrderStatus]:
        """The statuses that an order went through."""
        found: list[OrderStatus] = []
        for event in self.heard:
            if isinstance(event, OrderChanged) and event.update.client_order_id == name:
                status = event.update.status
                if not found or found[-1] is not status:
                    found.append(status)
        return found

    def fills(self, name: str) -> list[Any]:
        return [
            event.fill.quantity
            for event in self.heard
            if isinstance(event, Filled) and event.fill.client_order_id == name
        ]


@asynccontextmanager
async def trading(folder: Path, **changes: Any) -> AsyncIterator[tuple[Desk, TdModule, Ear]]:
    async with client(folder, **changes) as (desk, module):
        yield desk, module, Ear(module)
        states = [
            state for account in module.accounts.values() for state in account.book.orders.open()
        ]
        there = {order.client_id for order in desk.ledger.orders(open_only=True)}
        assert {state.order.client_order_id for state in states} == there
        assert not any(state.doubts or state.waiting for state in states)


def lots(product: str, number: int) -> Any:
    return D(number) if product == "cbase" else D(number) / 100


@PRODUCTS
@FIRST
async def test_new_partly_filled_filled(tmp_path: Path, product: str, first: str) -> None:
    async with trading(tmp_path, order=first) as (desk, module, ear):
        quantity = lots(product, 10)
        placed = await module.insert_order(
            order(product, "a", "64000.0", quantity=quantity, order_type=OrderType.POST_ONLY)
        )
        assert placed.status is NEW
        for part in (3, 7):
            desk.venue.hit(product, SYMBOLS[product], "sell", "64000.0", str(lots(product, part)))
        done = (await ear.became("a", FILLED)).update
        assert (done.filled_quantity, done.filled_avg_price) == (quantity, D(64000))
        assert ear.life("a") == [OrderStatus.PENDING_NEW, NEW, PARTLY, FILLED]
        assert ear.fills("a") == [lots(product, 3), lots(product, 7)]


@PRODUCTS
@FIRST
async def test_partly_filled_canceled(tmp_path: Path, product: str, first: str) -> None:
    async with trading(tmp_path, order=first) as (desk, module, ear):
        await module.insert_order(order(product, "a", "64000.0", quantity=lots(product, 10)))
        desk.venue.hit(product, SYMBOLS[product], "sell", "64000.0", str(lots(product, 4)))
        await ear.became("a", PARTLY)
        gone = await module.cancel_order("a")
        assert (gone.status, gone.filled_quantity) == (CANCELED, lots(product, 4))
        assert ear.life("a")[-3:] == [PARTLY, OrderStatus.PENDING_CANCEL, CANCELED]


@PRODUCTS
@FIRST
async def test_the_rest_of_an_ioc_order_expires(tmp_path: Path, product: str, first: str) -> None:
    async with trading(tmp_path, order=first) as (_, module, ear):
        much = D(2000) if product == "cbase" else D("1.5")
        deep = D(1000) if product == "cbase" else D(1)  # what is offered at this price
        wanted = order(product, "a", "64001.0", quantity=much, order_type=OrderType.IOC)
        await module.insert_order(wanted)
        # A futures answer does not say why; the event does.
        found = await ear.until(
            lambda event: isinstance(event, OrderChanged) and "IOC" in event.update.reason
        )
        assert isinstance(found, OrderChanged)
        assert (found.update.status, found.update.filled_quantity) == (EXPIRED, deep)
        assert ear.life("a")[-1] is EXPIRED


@PRODUCTS
async def test_fill_or_kill_and_post_only_that_cannot(tmp_path: Path, product: str) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        much = D(2000) if product == "cbase" else D("1.5")
        killed = order(product, "fok", "64001.0", quantity=much, order_type=OrderType.FOK)
        if product == "spot":  # accepted, and expired at once
            update = await module.insert_order(killed)
            assert (update.status, update.filled_quantity) == (EXPIRED, D(0))
            assert "FOK" in update.reason
        else:
            with pytest.raises(WouldNotRest) as caught:
                await module.insert_order(killed)
            assert caught.value.venue_code == -5021
            assert ear.life("fok") == [OrderStatus.PENDING_NEW, REJECTED]
        with pytest.raises(WouldNotRest) as caught:
            await module.insert_order(
                order(product, "post", "64001.0", order_type=OrderType.POST_ONLY)
            )
        assert caught.value.venue_code == (-2010 if product == "spot" else -5022)
        assert ear.life("post") == [OrderStatus.PENDING_NEW, REJECTED]
        assert desk.ledger.trades() == []


@PRODUCTS
@FIRST
async def test_a_market_order_fills_at_once(tmp_path: Path, product: str, first: str) -> None:
    async with trading(tmp_path, order=first) as (desk, module, ear):
        quantity = lots(product, 5)
        wanted = order(product, "a", "0", quantity=quantity, order_type=OrderType.MARKET)
        update = await module.insert_order(wanted)
        assert (update.status, update.filled_quantity) == (FILLED, quantity)
        await ear.until(lambda event: isinstance(event, Filled))
        assert (await module.query_order("a")).filled_avg_price == D(64001)
        assert sum(ear.fills("a")) == quantity
        (trade,) = desk.ledger.trades(client_id="a")
        assert trade.quantity == quantity


@PRODUCTS
async def test_self_trade_prevention_expires_the_older_order(tmp_path: Path, product: str) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        await module.insert_order(order(product, "ask", "64000.0", direction=SELL))
        # The same account, by other means; K4 itself asks for EXPIRE_MAKER on futures.
        crossing = {"newClientOrderId": "bid", "price": "64000.0"}
        await desk.placed(product, selfTradePreventionMode="EXPIRE_MAKER", **crossing)
        over = (await ear.became("ask", EXPIRED)).update
        assert "self-trade" in over.reason
        assert desk.ledger.trades() == []
        assert desk.ledger.orders(client_id="ask")[0].status == "EXPIRED_IN_MATCH"


@FUTURES
async def test_on_futures_k4_asks_for_prevention_itself(tmp_path: Path, product: str) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        await module.insert_order(order(product, "ask", "64000.0", direction=SELL))
        await module.insert_order(order(product, "bid", "64000.0"))
        await ear.became("ask", EXPIRED)
        assert desk.ledger.trades() == []


# -- changes --------------------------------------------------------------------------------------


async def test_spot_amends_in_place_where_it_can_and_replaces_where_it_cannot(
    tmp_path: Path,
) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        await module.insert_order(order("spot", "a", quantity=D("0.100")))
        less = await module.amend_order("a", quantity=D("0.080"))
        assert (less.client_order_id, less.quantity) == ("a", D("0.080"))
        assert desk.ledger.received("order.amend.keepPriority", "a")
        dearer = await module.amend_order("a", price=D("63100.0"))
        more = await module.amend_order(dearer.client_order_id, quantity=D("0.200"))
        assert len(desk.ledger.received("order.cancelReplace")) == 2
        assert len({"a", dearer.client_order_id, more.client_order_id}) == 3
        assert (more.price, more.quantity) == (D("63100.0"), D("0.200"))
        for gone in ("a", dearer.client_order_id):
            await ear.became(gone, CANCELED)
        (left,) = desk.ledger.orders(open_only=True)
        assert (left.client_id, left.quantity) == (more.client_order_id, D("0.200"))


async def test_the_eleventh_amend_in_place_is_refused_and_the_order_stays(tmp_path: Path) -> None:
    async with trading(tmp_path) as (desk, module, _):
        await module.insert_order(order("spot", "a", quantity=D("0.100")))
        for number in range(1, 11):
            await module.amend_order("a", quantity=D("0.100") - D(number) / 1000)
        with pytest.raises(AmendRefused) as caught:
            await module.amend_order("a", quantity=D("0.050"))
        assert caught.value.venue_code == -2038
        assert caught.value.remedy
        assert (await module.query_order("a")).quantity == D("0.090")
        assert desk.ledger.orders(client_id="a")[0].quantity == D("0.090")


@FUTURES
async def test_futures_modify_in_place(tmp_path: Path, product: str) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        await module.insert_order(order(product, "a", quantity=lots(product, 10)))
        changed = await module.amend_order("a", price=D("63100.0"), quantity=lots(product, 20))
        assert (changed.client_order_id, changed.status) == ("a", NEW)
        assert (changed.price, changed.quantity) == (D("63100.0"), lots(product, 20))
        assert len(desk.ledger.received("order.modify", "a")) == 1
        with pytest.raises(AmendRefused) as caught:  # nothing would change
            await module.amend_order("a", price=D("63100.0"))
        assert caught.value.venue_code == -5027
        taken = await module.amend_order("a", price=D("64001.0"))
        assert taken.status is FILLED
        await ear.until(lambda event: isinstance(event, Filled))
        assert sum(ear.fills("a")) == lots(product, 20)


@PRODUCTS
async def test_the_last_order_that_a_symbol_takes_can_be_changed(
    tmp_path: Path, product: str
) -> None:
    name = "maxNumOrders" if product == "spot" else "limit"
    filters = {product: {SYMBOLS[product]: {"MAX_NUM_ORDERS": {name: 2}}}}
    async with trading(tmp_path, filters=filters) as (desk, module, _):
        for key in ("a", "b"):
            await module.insert_order(order(product, key))
        with pytest.raises(FilterRefused, match="has 2 open orders") as caught:
            await module.insert_order(order(product, "c"))
        assert caught.value.remedy == "cancel some first"
        changed = await module.amend_order("b", price=D("63100.0"))
        assert (changed.status, changed.price) == (NEW, D("63100.0"))
        assert len(desk.ledger.orders(open_only=True)) == 2


@FUTURES
async def test_a_modification_may_end_an_order(tmp_path: Path, product: str) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        await module.insert_order(order(product, "a", "64000.0", quantity=lots(product, 10)))
        desk.venue.hit(product, SYMBOLS[product], "sell", "64000.0", str(lots(product, 6)))
        await ear.became("a", PARTLY)
        ended = await module.amend_order("a", quantity=lots(product, 6))  # all of it is filled
        assert (ended.status, ended.filled_quantity) == (CANCELED, lots(product, 6))
        await module.insert_order(order(product, "post", order_type=OrderType.POST_ONLY))
        taker = await module.amend_order("post", price=D("64100.0"))
        assert taker.status is CANCELED


# -- futures --------------------------------------------------------------------------------------


async def test_a_gtd_order_carries_its_date_to_the_venue(tmp_path: Path) -> None:
    async with trading(tmp_path) as (desk, module, _):
        until_us = (desk.venue.clock.time_ns() // 1_000_000_000 + 3_600) * 1_000_000
        gtd: dict[str, Any] = {"order_type": OrderType.GTD, "good_till_us": until_us}
        placed = await module.insert_order(order("ubase", "a", **gtd))
        assert (placed.status, placed.good_till_us) == (NEW, until_us)
        (there,) = desk.ledger.orders(client_id="a")
        assert (there.tif, there.good_till_ms) == ("GTD", until_us // 1000)
        listed = await module.query_open_orders(AccountType.UBASE)
        assert [update.order_type for update in listed] == [OrderType.GTD]
        with pytest.raises(InvalidOrder, match="does not exist on cbase"):
            await module.insert_order(order("cbase", "b", **gtd))


@FUTURES
async def test_reduce_only_reduces_and_nothing_else(tmp_path: Path, product: str) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        with pytest.raises(RuleRefused) as caught:
            await module.insert_order(
                order(product, "none", "63999.0", direction=SELL, reduce_only=True)
            )
        assert caught.value.venue_code == -2022
        await module.insert_order(order(product, "long", "64001.0"))
        quantity = order(product, "x").quantity
        held = await ear.until(
            lambda event: isinstance(event, PositionChanged) and bool(event.position.quantity)
        )
        assert isinstance(held, PositionChanged)
        assert held.position.quantity == quantity  # contracts on COIN-M, coins on USD-M
        ear.heard.clear()
        await module.insert_order(
            order(product, "flat", "63999.0", direction=SELL, reduce_only=True)
        )
        await ear.until(
            lambda event: isinstance(event, PositionChanged) and not event.position.quantity
        )
        assert await module.query_positions(AccountType(product)) == []
        assert desk.ledger.orders(client_id="flat")[0].reduce_only


@FUTURES
async def test_hedge_mode_holds_both_sides(tmp_path: Path, product: str) -> None:
    accounts = (AccountSpec(hedge=True),)
    async with trading(tmp_path, accounts=accounts) as (_, module, _ear):
        with pytest.raises(InvalidOrder, match="hedge mode") as caught:
            await module.insert_order(order(product, "none", "64001.0"))
        assert "long or short" in caught.value.remedy
        long, short = PositionSide.LONG, PositionSide.SHORT
        await module.insert_order(order(product, "l", "64001.0", position_side=long))
        await module.insert_order(
            order(product, "s", "63999.0", direction=SELL, position_side=short)
        )
        quantity = order(product, "x").quantity
        held = {p.position_side: p.quantity for p in await module.query_positions()}
        assert held == {long: quantity, short: -quantity}
        await module.insert_order(
            order(product, "l-out", "63999.0", direction=SELL, position_side=long)
        )
        held = {p.position_side: p.quantity for p in await module.query_positions()}
        assert held == {short: -quantity}


async def test_a_liquidation_is_a_foreign_order_with_its_fills(tmp_path: Path) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        await module.insert_order(order("ubase", "long", "64001.0"))
        await ear.became("long", FILLED)
        assert desk.venue.inject({"fault": "liquidate", "target": {"product": "ubase"}})
        found = await ear.until(lambda event: isinstance(event, ForeignOrder))
        assert isinstance(found, ForeignOrder)
        assert found.update.client_order_id.startswith("autoclose-")
        await ear.until(
            lambda event: isinstance(event, PositionChanged) and not event.position.quantity
        )
        assert sum(ear.fills(found.update.client_order_id)) == order("ubase", "x").quantity


async def test_conditional_orders_of_others_are_told_as_they_come_and_go(tmp_path: Path) -> None:
    """One has the client id of an order of K4's; they have nothing to do with each other."""
    async with trading(tmp_path) as (desk, module, ear):
        mine = await module.insert_order(order("ubase", "stop"))
        rest = desk.rest("ubase")
        stop: dict[str, Any] = {
            "algoType": "CONDITIONAL",
            "symbol": "BTCUSDT",
            "side": "SELL",
            "type": "STOP_MARKET",
            "quantity": "0.010",
            "triggerPrice": "60000.0",
        }
        ids = []
        for name in ("stop", "other"):
            made = await rest.ok("POST", "/fapi/v1/algoOrder", **stop, clientAlgoId=name)
            ids.append(f"algo:{made['algoId']}")
            await ear.until(partial(tells, order_id=ids[-1], status=NEW))
        await rest.ok("DELETE", "/fapi/v1/algoOrder", clientAlgoId="other")
        await ear.until(partial(tells, order_id=ids[1], status=CANCELED))
        listed = await module.query_open_orders(AccountType.UBASE)
        assert {update.order_id for update in listed} == {mine.order_id, ids[0]}
        gone = await module.cancel_all_orders(AccountType.UBASE)
        assert {update.order_id: update.status for update in gone} == {
            mine.order_id: CANCELED,
            ids[0]: CANCELED,
        }
        assert (await module.query_order("stop")).quantity == mine.quantity


async def test_a_conditional_order_that_triggers_ends_and_its_order_lives(tmp_path: Path) -> None:
    async with trading(tmp_path) as (desk, module, ear):
        made = await desk.rest("ubase").ok(
            "POST",
            "/fapi/v1/algoOrder",
            algoType="CONDITIONAL",
            symbol="BTCUSDT",
            side="BUY",
            type="STOP",
            timeInForce="GTC",
            quantity="0.010",
            price="63000.0",
            triggerPrice="64050.0",
            clientAlgoId="theirs",
        )
        order_id = f"algo:{made['algoId']}"
        await ear.until(partial(tells, order_id=order_id, status=NEW))
        # Takes the second level too, so that the last price reaches it.
        await module.insert_order(order("ubase", "deep", "64100.0", quantity=D("1.100")))
        await ear.until(partial(tells, order_id=order_id, status=EXPIRED))
        (there,) = desk.ledger.orders(client_id="theirs")
        await ear.until(partial(tells, order_id=str(there.number), status=NEW))
        (left,) = await module.query_open_orders(AccountType.UBASE)
        assert (left.order_id, left.client_order_id) == (str(there.number), "theirs")
        await module.cancel_all_orders(AccountType.UBASE)


def tells(event: Event, order_id: str, status: OrderStatus) -> bool:
    """Whether it says that of an order that K4 did not place."""
    update = event.update if isinstance(event, ForeignOrder) else None
    return update is not None and (update.order_id, update.status) == (order_id, status)


# -- listen keys ----------------------------------------------------------------------------------


@FUTURES
@pytest.mark.parametrize("announced", [True, False])
async def test_a_listen_key_that_expires_is_made_anew_and_nothing_is_missed(
    tmp_path: Path, product: str, announced: bool
) -> None:
    """Without a word, the silence after an order of one's own gives it away."""
    async with trading(tmp_path) as (desk, module, ear):
        await module.insert_order(order(product, "before", "64000.0"))
        await ear.became("before", NEW)
        ear.heard.clear()
        fault = {"fault": "expire_listen_key", "announced": announced}
        assert desk.venue.inject({**fault, "target": {"product": product}})
        symbol = SYMBOLS[product]
        desk.venue.hit(product, symbol, "sell", "64000.0", str(order(product, "x").quantity))
        if not announced:
            await module.insert_order(order(product, "after"))
        await ear.until(lambda event: isinstance(event, Disconnected))
        await ear.until(lambda event: isinstance(event, KeyRefreshed) and event.created)
        await ear.until(lambda event: isinstance(event, Connected))
        await ear.became("before", FILLED)
        assert sum(ear.fills("before")) == order(product, "x").quantity
        assert len(desk.ledger.faults("expire_listen_key")) == 1
