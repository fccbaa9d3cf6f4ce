"""USD-M and COIN-M as clients see them: orders, modifications, positions, conditional orders."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from trading_client import PREFIX, Desk, Json, Reply, book, next_event, now_ms, trading

from k4.core.testing.clock import ManualClock
from k4.runner.sim.trading.orders import Order
from k4.runner.sim.trading.spec import AccountSpec, TradingSpec
from k4.runner.sim.trading.venue import SimTrading

BOTH = pytest.mark.parametrize("product", ["ubase", "cbase"])
MARKET: Json = {"type": "MARKET", "price": None, "timeInForce": None}
HEDGE = (AccountSpec(hedge=True),)
ACK = {
    "clientOrderId",
    "cumQty",
    "executedQty",
    "orderId",
    "origQty",
    "price",
    "reduceOnly",
    "side",
    "positionSide",
    "status",
    "stopPrice",
    "closePosition",
    "symbol",
    "timeInForce",
    "type",
    "origType",
    "updateTime",
    "workingType",
    "priceProtect",
    "priceMatch",
    "selfTradePreventionMode",
    "goodTillDate",
}
RISK = {
    "symbol",
    "positionSide",
    "positionAmt",
    "entryPrice",
    "breakEvenPrice",
    "markPrice",
    "unRealizedProfit",
    "liquidationPrice",
    "isolatedMargin",
    "notional",
    "marginAsset",
    "isolatedWallet",
    "initialMargin",
    "maintMargin",
    "positionInitialMargin",
    "openOrderInitialMargin",
    "adl",
    "bidNotional",
    "askNotional",
    "updateTime",
}


def symbol_of(product: str) -> str:
    return "BTCUSD_PERP" if product == "cbase" else "BTCUSDT"


async def ask(desk: Desk, product: str, verb: str, path: str, **params: object) -> Reply:
    values = {name: value for name, value in params.items() if value is not None}
    return await desk.rest(product).signed(verb, f"{PREFIX[product]}/{path}", **values)


async def position(desk: Desk, product: str) -> Decimal:
    path = "/fapi/v3/positionRisk" if product == "ubase" else "/dapi/v1/positionRisk"
    found = await desk.rest(product).ok("GET", path)
    return sum((Decimal(entry["positionAmt"]) for entry in found), Decimal(0))


# -- placing --------------------------------------------------------------------------------------


@BOTH
async def test_acknowledgements_lost_the_average_and_get_kept_it(product: str) -> None:
    async with trading() as desk:
        book(desk, product)
        found = await desk.placed(product, price="64001.0")
        assert set(found) == ACK | ({"pair"} if product == "cbase" else set())
        assert (found["status"], found["executedQty"]) == ("NEW", "0")
        status = await ask(
            desk, product, "GET", "order", symbol=found["symbol"], orderId=found["orderId"]
        )
        assert (status.body["status"], Decimal(status.body["avgPrice"])) == (
            "FILLED",
            Decimal(64001),
        )
        assert ("cumBase" if product == "cbase" else "cumQuote") in status.body


@pytest.mark.parametrize(
    ("changes", "status", "executed"),
    [
        ({**MARKET}, "FILLED", "0.010"),
        ({**MARKET, "quantity": "3"}, "EXPIRED", "2.000"),
        ({"timeInForce": "IOC", "price": "64001.0", "quantity": "1.5"}, "EXPIRED", "1.000"),
        ({"timeInForce": "FOK", "price": "64001.0"}, "FILLED", "0.010"),
        ({"timeInForce": "GTX"}, "NEW", "0"),
    ],
)
async def test_a_result_waits_for_what_is_decided_at_once(
    changes: Json, status: str, executed: str
) -> None:
    async with trading() as desk:
        book(desk, "ubase")
        found = await desk.placed("ubase", newOrderRespType="RESULT", **changes)
        assert (found["status"], found["executedQty"]) == (status, executed)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"type": "LIMIT_MAKER", "timeInForce": None}, -1116),
        ({"type": "STOP_MARKET", "stopPrice": "65000.0"}, -4120),
        ({"type": "TRAILING_STOP_MARKET"}, -4120),
        ({"timeInForce": "DAY"}, -1115),
        ({"timeInForce": None}, -1102),
        ({"price": None}, -1102),
        ({"quantity": None}, -1102),
        ({**MARKET, "timeInForce": "GTC"}, -1106),
        ({**MARKET, "price": "64000.0"}, -1106),
        ({"side": "HOLD"}, -1117),
        ({"newClientOrderId": "bad id"}, -4015),
        ({"newClientOrderId": "x" * 37}, -4015),
        ({"newClientOrderId": "open"}, -4116),
        ({"positionSide": "LONG"}, -4061),
        ({"reduceOnly": "yes"}, -1130),
        ({"reduceOnly": "true", "side": "SELL", "price": "64500.0"}, -2022),
        ({"timeInForce": "GTX", "price": "64001.0"}, -5022),
        ({"timeInForce": "FOK", "quantity": "0.5"}, -5021),
        ({"timeInForce": "GTD"}, -1102),
        ({"timeInForce": "GTD", "goodTillDate": 1_000}, -5040),
        ({"priceMatch": "NEAREST", "price": None}, -5037),
        ({"priceMatch": "QUEUE_5", "price": None}, -5041),
        ({"selfTradePreventionMode": "DECREMENT"}, -5039),
        ({"quantity": "400"}, -2019),
        ({"quantity": "0"}, -4003),
        ({"quantity": "0.0005"}, -1111),
        ({"quantity": "2000000"}, -4005),
        ({"price": "63000.05"}, -4014),
        ({"price": "63000.001"}, -1111),
        ({"price": "5000000.0"}, -4002),
        ({"price": "0.0"}, -4013),
        ({"price": "68000.0"}, -4016),
        ({"price": "60000.0"}, -4024),
        ({"symbol": "NOSUCH"}, -1121),
        ({"icebergQty": "1"}, -1104),
    ],
)
async def test_each_refusal_has_its_code(changes: Json, code: int) -> None:
    async with trading() as desk:
        book(desk, "ubase")
        await desk.placed("ubase", newClientOrderId="open")
        reply = await desk.place("ubase", **changes)
        assert (reply.status, reply.code) == (400, code), reply.body
        assert reply.msg
        assert len(desk.ledger.orders()) == 1


async def test_figures_of_filters_with_changed_bounds() -> None:
    filters: Json = {
        "LOT_SIZE": {"minQty": "0.002", "stepSize": "0.002"},
        "MIN_NOTIONAL": {"notional": "200"},
        "MAX_NUM_ORDERS": {"limit": 1},
        "MARKET_LOT_SIZE": {"maxQty": "1"},
    }
    async with trading(filters={"ubase": {"BTCUSDT": filters}}) as desk:
        book(desk, "ubase")
        assert (await desk.place("ubase", quantity="0.001")).code == -4004
        assert (await desk.place("ubase", quantity="0.003")).code == -4023
        assert (await desk.place("ubase", **{**MARKET, "quantity": "1.001"})).code == -4005
        reply = await desk.place("ubase", quantity="0.002")
        assert (reply.code, reply.msg) == (
            -4164,
            "Order's notional must be no smaller than 200 (unless you choose reduce only).",
        )
        await desk.placed("ubase")
        assert (await desk.place("ubase")).code == -2025


async def test_a_market_order_may_not_go_too_far_from_the_mark() -> None:
    async with trading() as desk:
        desk.venue.quote("ubase", "BTCUSDT", "buy", "50000.0", "1")
        desk.venue.quote("ubase", "BTCUSDT", "sell", "64000.0", "1")
        assert (await desk.place("ubase", **MARKET)).code == -4131


async def test_coin_m_has_its_own_rules() -> None:
    """Contracts, no GTD, no minimum notional, and another answer to a duplicate id."""
    async with trading() as desk:
        book(desk, "cbase")
        await desk.placed("cbase", newClientOrderId="one", quantity="1")
        assert (await desk.place("cbase", quantity="0.5")).code == -1111
        assert (await desk.place("cbase", timeInForce="GTD")).code == -1115
        reply = await desk.place("cbase", newClientOrderId="one")
        assert (reply.code, reply.msg) == (-2010, "Duplicate order sent.")
        info = (await desk.rest("cbase").raw("GET", "/dapi/v1/exchangeInfo")).body
        assert info["symbols"][0]["contractSize"] == 100
        assert info["symbols"][0]["contractStatus"] == "TRADING"


async def test_a_price_can_be_matched_to_the_book() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        found = await desk.placed("ubase", price=None, priceMatch="QUEUE")
        assert (Decimal(found["price"]), found["priceMatch"]) == (Decimal(63999), "QUEUE")
        found = await desk.placed("ubase", price=None, priceMatch="OPPONENT")
        assert Decimal(found["price"]) == 64001


# -- modify and cancel ----------------------------------------------------------------------------


async def modify(desk: Desk, product: str = "ubase", **params: object) -> Reply:
    values = {
        "symbol": symbol_of(product),
        "side": "BUY",
        "origClientOrderId": "one",
        "quantity": "10" if product == "cbase" else "0.010",
        "price": "63000.0",
        **params,
    }
    return await ask(desk, product, "PUT", "order", **values)


@BOTH
async def test_a_modified_order_goes_to_the_end_and_may_trade_at_once(product: str) -> None:
    async with trading() as desk:
        book(desk, product)
        stream = await desk.stream(product)
        first = await desk.placed(product, newClientOrderId="one")
        reply = await modify(desk, product, price="63500.0", modifyId=77)
        assert (reply.body["orderId"], reply.body["price"]) == (first["orderId"], "63500.0")
        event = (await next_event(stream, "ORDER_TRADE_UPDATE", x="AMENDMENT"))["o"]
        assert (event["p"], event["X"], event["M"]) == ("63500.0", "NEW", 77)
        reply = await modify(desk, product, price="64001.0")
        assert reply.body["status"] == "FILLED"


async def test_what_can_not_be_modified() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        await desk.placed("ubase", newClientOrderId="one")
        assert (await modify(desk)).code == -5027
        assert (await modify(desk, price=None)).code == -1102
        assert (await modify(desk, side="SELL")).code == -1130
        assert (await modify(desk, origClientOrderId="none", price="63100.0")).code == -2013
        desk.ledger.orders(client_id="one")[0].amends = 9_999
        assert (await modify(desk, price="63100.0")).code == -5026


async def test_a_modification_may_end_an_order() -> None:
    """New quantity not above the executed one, or a post-only order that would take."""
    async with trading() as desk:
        book(desk, "ubase")
        await desk.placed("ubase", newClientOrderId="one", price="64001.0", quantity="1.5")
        assert (await modify(desk, quantity="1.000", price="63000.0")).body["status"] == "CANCELED"
        await desk.placed("ubase", newClientOrderId="two", timeInForce="GTX")
        reply = await modify(desk, origClientOrderId="two", price="64100.0")
        assert reply.body["status"] == "CANCELED"


async def test_one_modification_at_a_time() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        await desk.placed("ubase", newClientOrderId="one")
        desk.venue.inject({"fault": "latency", "ms": 100, "target": {"op": "order.modify"}})
        socket = await desk.ws("ubase")
        params: Json = {
            "symbol": "BTCUSDT",
            "side": "BUY",
            "origClientOrderId": "one",
            "quantity": "0.010",
        }
        slow = await socket.send(
            "order.modify", socket.with_signature({**params, "price": "63100.0"})
        )
        fast = await socket.send(
            "order.modify", socket.with_signature({**params, "price": "63200.0"})
        )
        assert (await socket.answer(fast))["error"]["code"] == -5043
        assert (await socket.answer(slow))["result"]["price"] == "63100.0"


@BOTH
async def test_cancel_query_and_cancel_all(product: str) -> None:
    async with trading() as desk:
        book(desk, product)
        symbol = symbol_of(product)
        await desk.placed(product, newClientOrderId="one")
        ids = {"symbol": symbol, "origClientOrderId": "one"}
        assert (await ask(desk, product, "GET", "openOrder", **ids)).status == 200
        assert (await ask(desk, product, "DELETE", "order", **ids)).body["status"] == "CANCELED"
        assert (await ask(desk, product, "DELETE", "order", **ids)).code == -2011
        assert (await ask(desk, product, "GET", "openOrder", **ids)).code == -2013
        assert (await ask(desk, product, "GET", "order", **ids)).body["status"] == "CANCELED"
        await desk.placed(product)
        assert len((await ask(desk, product, "GET", "openOrders")).body) == 1
        for _ in range(2):  # with nothing open it succeeds as well
            reply = await ask(desk, product, "DELETE", "allOpenOrders", symbol=symbol)
            assert reply.body == {
                "code": 200,
                "msg": "The operation of cancel all open order is done.",
            }
        assert not desk.ledger.orders(open_only=True)


async def test_batches_answer_each_order_by_itself() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        one: Json = {
            "symbol": "BTCUSDT",
            "side": "BUY",
            "type": "LIMIT",
            "timeInForce": "GTC",
            "quantity": "0.010",
            "price": "63000.0",
        }
        orders = [{**one, "newClientOrderId": "a"}, {**one, "price": "1.0"}]
        found = (
            await ask(desk, "ubase", "POST", "batchOrders", batchOrders=json.dumps(orders))
        ).body
        assert (found[0]["clientOrderId"], found[1]["code"]) == ("a", -4024)
        found = (
            await ask(
                desk,
                "ubase",
                "DELETE",
                "batchOrders",
                symbol="BTCUSDT",
                origClientOrderIdList='["a","b"]',
            )
        ).body
        assert (found[0]["status"], found[1]["code"]) == ("CANCELED", -2011)
        many = json.dumps([one] * 6)
        assert (await ask(desk, "ubase", "POST", "batchOrders", batchOrders=many)).code == -1130


async def test_the_dead_mans_timer_cancels_unless_it_is_renewed() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        stream = await desk.stream()
        await desk.placed("ubase")
        for wait in (60_000, 0, 20):
            reply = await ask(
                desk, "ubase", "POST", "countdownCancelAll", symbol="BTCUSDT", countdownTime=wait
            )
            assert reply.body == {"symbol": "BTCUSDT", "countdownTime": str(wait)}
        await next_event(stream, "ORDER_TRADE_UPDATE", x="CANCELED")


async def test_a_gtd_order_ends_on_its_date() -> None:
    clock = ManualClock()
    venue = SimTrading(TradingSpec(market="manual"), clock=clock)
    exchange = venue.exchanges["ubase"]
    now = clock.time_ns() // 1_000_000
    order = Order(
        number=exchange.new_number(),
        product="ubase",
        account="main",
        symbol="BTCUSDT",
        client_id="one",
        buy=True,
        kind="LIMIT",
        tif="GTD",
        price=Decimal(63000),
        quantity=Decimal("0.01"),
        created_ms=now,
        good_till_ms=now + 700_000,
    )
    exchange.place(order)
    clock.advance(699)
    assert order.open
    clock.advance(2)
    assert (order.status, order.reason) == ("EXPIRED", "GOOD_TILL_DATE")


async def test_gtd_dates_have_whole_seconds() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        date = now_ms() // 1000 * 1000 + 700_999
        found = await desk.placed("ubase", timeInForce="GTD", goodTillDate=date)
        assert found["goodTillDate"] == date // 1000 * 1000


# -- positions ------------------------------------------------------------------------------------


async def test_positions_of_usd_m_show_what_is_open_alone() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        rest = desk.rest("ubase")
        assert await rest.ok("GET", "/fapi/v3/positionRisk") == []
        await desk.placed("ubase", price="64001.0")
        (found,) = await rest.ok("GET", "/fapi/v3/positionRisk")
        assert set(found) == RISK
        assert (found["positionAmt"], found["entryPrice"]) == ("0.010", "64001.00000000")
        assert Decimal(found["unRealizedProfit"]) == Decimal("-0.01")
        assert (await rest.signed("GET", "/fapi/v3/positionRisk", symbol="NOSUCH")).code == -1121


async def test_positions_of_coin_m_show_every_symbol_and_take_no_symbol() -> None:
    async with trading() as desk:
        book(desk, "cbase")
        rest = desk.rest("cbase")
        (found,) = await rest.ok("GET", "/dapi/v1/positionRisk")
        assert (found["positionAmt"], found["leverage"]) == ("0", "20")
        assert await rest.ok("GET", "/dapi/v1/positionRisk", marginAsset="ETH") == []
        reply = await rest.signed("GET", "/dapi/v1/positionRisk", symbol="BTCUSD_PERP")
        assert reply.code == -1104


@BOTH
async def test_reduce_only_closes_and_no_more(product: str) -> None:
    async with trading() as desk:
        book(desk, product)
        quantity = "10" if product == "cbase" else "0.010"
        await desk.placed(product, price="64001.0")
        assert await position(desk, product) == Decimal(quantity)
        await desk.placed(
            product,
            **{**MARKET, "side": "SELL", "quantity": "50" if product == "cbase" else "0.5"},
            reduceOnly="true",
        )
        assert await position(desk, product) == 0
        order = desk.ledger.orders(product=product)[-1]
        assert (order.executed, order.status) == (Decimal(quantity), "EXPIRED")


async def test_hedge_mode_keeps_both_sides_apart() -> None:
    async with trading(accounts=HEDGE) as desk:
        book(desk, "ubase")
        assert (await desk.place("ubase")).code == -4061
        assert (await desk.place("ubase", positionSide="LONG", reduceOnly="true")).code == -4062
        await desk.placed("ubase", positionSide="LONG", price="64001.0")
        await desk.placed("ubase", positionSide="SHORT", side="SELL", price="63999.0")
        found = await desk.rest("ubase").ok("GET", "/fapi/v3/positionRisk")
        assert {entry["positionSide"]: entry["positionAmt"] for entry in found} == {
            "LONG": "0.010",
            "SHORT": "-0.010",
        }
        reply = await desk.place(
            "ubase", side="SELL", positionSide="LONG", price="64500.0", quantity="0.011"
        )
        assert reply.code == -2022
        await desk.placed("ubase", **MARKET, side="SELL", positionSide="LONG")
        assert await position(desk, "ubase") == Decimal("-0.010")


async def test_the_position_mode_is_one_for_both_products() -> None:
    async with trading() as desk:
        book(desk, "cbase")
        path = "positionSide/dual"
        assert (await ask(desk, "ubase", "POST", path, dualSidePosition="false")).code == -4059
        await desk.placed("cbase")
        assert (await ask(desk, "ubase", "POST", path, dualSidePosition="true")).code == -4067
        await ask(desk, "cbase", "DELETE", "allOpenOrders", symbol="BTCUSD_PERP")
        await desk.placed("cbase", price="64001.0")
        assert (await ask(desk, "ubase", "POST", path, dualSidePosition="true")).code == -4068
        await desk.placed("cbase", **{**MARKET, "side": "SELL"})
        assert (await ask(desk, "ubase", "POST", path, dualSidePosition="true")).status == 200
        assert (await ask(desk, "cbase", "GET", path)).body == {"dualSidePosition": True}


async def test_balances_account_and_settings() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        rest = desk.rest("ubase")
        await desk.placed("ubase", price="64001.0", quantity="0.5")
        (found,) = await rest.ok("GET", "/fapi/v3/balance")
        assert Decimal(found["balance"]) == 1_000_000 - Decimal("16.00025")
        # The initial margin at 20 times, and the half dollar between entry and mark.
        used = Decimal(found["balance"]) - Decimal(found["availableBalance"])
        assert used == Decimal("1600.5")
        account = await rest.ok("GET", "/fapi/v3/account")
        assert Decimal(account["totalUnrealizedProfit"]) == Decimal("-0.5")
        assert account["positions"][0]["positionAmt"] == "0.500"
        assert (await ask(desk, "ubase", "POST", "leverage", symbol="BTCUSDT", leverage=50)).body[
            "leverage"
        ] == 50
        assert (await rest.ok("GET", "/fapi/v1/symbolConfig", symbol="BTCUSDT"))[0][
            "leverage"
        ] == 50
        assert (await rest.ok("GET", "/fapi/v1/accountConfig"))["dualSidePosition"] is False


@BOTH
async def test_fills_come_back_with_their_profit(product: str) -> None:
    async with trading() as desk:
        book(desk, product)
        await desk.placed(product, price="64001.0")
        await desk.placed(product, **{**MARKET, "side": "SELL"})
        found = (await ask(desk, product, "GET", "userTrades", symbol=symbol_of(product))).body
        assert [(fill["side"], fill["maker"]) for fill in found] == [
            ("BUY", False),
            ("SELL", False),
        ]
        assert Decimal(found[1]["realizedPnl"]) < 0
        later = await ask(
            desk, product, "GET", "userTrades", symbol=symbol_of(product), fromId=found[1]["id"]
        )
        assert later.body == found[1:]


# -- the WebSocket API ----------------------------------------------------------------------------


@BOTH
async def test_the_websocket_trading_api(product: str) -> None:
    async with trading() as desk:
        book(desk, product)
        socket = await desk.ws(product, "ed25519")
        logon = await socket.logon()
        assert logon["result"]["userDataStream"] is None
        params: Json = {
            "symbol": symbol_of(product),
            "side": "BUY",
            "type": "LIMIT",
            "timeInForce": "GTC",
            "quantity": "10" if product == "cbase" else "0.010",
            "price": "63000.0",
            "newClientOrderId": "one",
        }
        order = await socket.ok("order.place", **params)
        assert order["selfTradePreventionMode"] == "NONE"
        ids = {"symbol": params["symbol"], "orderId": order["orderId"]}
        assert (await socket.ok("order.status", **ids))["clientOrderId"] == "one"
        changed = await socket.ok(
            "order.modify", **ids, side="BUY", quantity=params["quantity"], price="63100.0"
        )
        assert changed["price"] == "63100.0"
        assert (await socket.ok("order.cancel", **ids))["status"] == "CANCELED"
        version = "v2/" if product == "ubase" else ""
        assert await socket.ok(f"{version}account.balance")
        assert "assets" in await socket.ok(f"{version}account.status")
        assert (await socket.ok("account.position")) is not None
        unknown = await socket.signed("openOrders.status")
        assert unknown["error"]["code"] == -1020


# -- conditional orders ---------------------------------------------------------------------------


async def algo(desk: Desk, **params: object) -> Reply:
    values: Json = {
        "algoType": "CONDITIONAL",
        "symbol": "BTCUSDT",
        "side": "SELL",
        "type": "STOP_MARKET",
        "quantity": "0.010",
        "triggerPrice": "63500.0",
        "clientAlgoId": "stop",
        **params,
    }
    return await ask(desk, "ubase", "POST", "algoOrder", **values)


async def test_a_conditional_order_waits_apart_and_becomes_an_order() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        stream = await desk.stream()
        reply = await algo(desk)
        assert (reply.body["algoStatus"], reply.body["clientAlgoId"]) == ("NEW", "stop")
        assert (await ask(desk, "ubase", "GET", "openOrders")).body == []
        await ask(desk, "ubase", "DELETE", "allOpenOrders", symbol="BTCUSDT")
        assert len((await ask(desk, "ubase", "GET", "openAlgoOrders")).body) == 1
        desk.venue.hit("ubase", "BTCUSDT", "sell", "63999.0", "1")
        desk.venue.quote("ubase", "BTCUSDT", "buy", "63400.0", "5")
        desk.venue.quote("ubase", "BTCUSDT", "buy", "63900.0", "0")
        bid: Any = desk.venue.exchanges["ubase"].books["BTCUSDT"].best(True)
        assert bid == 6340000
        await desk.placed("ubase", side="SELL", price="63400.0")  # the last price is below it now
        states = [(await next_event(stream, "ALGO_UPDATE"))["o"]["X"] for _ in range(4)]
        assert states == ["NEW", "TRIGGERING", "TRIGGERED", "FINISHED"]
        order = desk.ledger.orders(client_id="stop")[0]
        assert (order.original_kind, order.status) == ("STOP_MARKET", "FILLED")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"triggerPrice": "64500.0"}, -2021),
        ({"type": "TAKE_PROFIT_MARKET"}, -2021),
        ({"triggerPrice": None}, -1102),
        ({"type": "LIMIT"}, -1116),
        ({"algoType": "VP"}, -1130),
        ({"clientAlgoId": "no good"}, -4015),
        ({"closePosition": "true"}, -1128),
        ({"type": "TRAILING_STOP_MARKET", "triggerPrice": None, "callbackRate": "0.05"}, -2007),
        ({"type": "STOP", "price": None}, -1102),
    ],
)
async def test_conditional_orders_that_are_refused(changes: Json, code: int) -> None:
    async with trading() as desk:
        book(desk, "ubase")
        assert (await algo(desk, **changes)).code == code


async def test_conditional_orders_are_cancelled_by_id_or_all() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        await algo(desk)
        assert (await algo(desk)).code == -4116
        reply = await ask(desk, "ubase", "DELETE", "algoOrder", clientAlgoId="stop")
        assert reply.body["msg"] == "success"
        assert (await ask(desk, "ubase", "DELETE", "algoOrder", clientAlgoId="stop")).code == -2011
        reply = await ask(desk, "ubase", "GET", "algoOrder", clientAlgoId="stop")
        assert reply.body["algoStatus"] == "CANCELED"
        await algo(desk, clientAlgoId="b")
        await ask(desk, "ubase", "DELETE", "algoOpenOrders", symbol="BTCUSDT")
        found = (await ask(desk, "ubase", "GET", "allAlgoOrders", symbol="BTCUSDT")).body
        assert [order["algoStatus"] for order in found] == ["CANCELED", "CANCELED"]


async def test_a_trailing_stop_follows_the_best_price() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        reply = await algo(
            desk,
            type="TRAILING_STOP_MARKET",
            triggerPrice=None,
            callbackRate="1",
            workingType="MARK_PRICE",
        )
        assert reply.status == 200

        def mark(middle: int) -> None:
            for side, old in (("buy", "63999.0"), ("sell", "64001.0")):
                desk.venue.quote("ubase", "BTCUSDT", side, old, "0")
            desk.venue.quote("ubase", "BTCUSDT", "sell", f"{middle + 5}.0", "1")
            desk.venue.quote("ubase", "BTCUSDT", "buy", f"{middle - 5}.0", "1")

        mark(64050)
        found = desk.ledger.orders(client_id="stop")
        assert not found
        for side, price in (("sell", "64055.0"), ("buy", "64045.0"), ("buy", "63900.0")):
            desk.venue.quote("ubase", "BTCUSDT", side, price, "0")
        desk.venue.quote("ubase", "BTCUSDT", "buy", "62000.0", "1")
        assert desk.ledger.orders(client_id="stop")[0].status == "FILLED"


async def test_too_many_conditional_orders() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        for number in range(200):
            assert (await algo(desk, clientAlgoId=f"s{number}")).status == 200
        assert (await algo(desk)).code == -4045


# -- the venue's own orders -----------------------------------------------------------------------


async def test_a_liquidation_has_an_id_that_nobody_sent() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        stream = await desk.stream()
        await desk.placed("ubase", price="64001.0")
        assert desk.venue.inject({"fault": "liquidate"}) == ["main/BTCUSDT"]
        new = (await next_event(stream, "ORDER_TRADE_UPDATE", ot="LIQUIDATION"))["o"]
        done = (await next_event(stream, "ORDER_TRADE_UPDATE", ot="LIQUIDATION"))["o"]
        assert (new["x"], done["x"], done["X"]) == ("NEW", "CALCULATED", "FILLED")
        assert done["c"].startswith("autoclose-")
        assert await position(desk, "ubase") == 0
        forced = (await ask(desk, "ubase", "GET", "forceOrders")).body
        assert [order["clientOrderId"] for order in forced] == [done["c"]]
