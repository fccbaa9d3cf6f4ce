"""Spot as its clients see it: order types, answers, events, filters, cancel, replace, amend."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from trading_client import Desk, Json, book, trading

from k4.runner.sim.trading.spec import AccountSpec, Limits

MARKET: Json = {"type": "MARKET", "price": None, "timeInForce": None}
MAKER: Json = {"type": "LIMIT_MAKER", "timeInForce": None}
ACK = {"symbol", "orderId", "orderListId", "clientOrderId", "transactTime"}
RESULT = ACK | {
    "price",
    "origQty",
    "executedQty",
    "origQuoteOrderQty",
    "cummulativeQuoteQty",
    "status",
    "timeInForce",
    "type",
    "side",
    "workingTime",
    "selfTradePreventionMode",
}
REPORT = set("e E s c S o f q p P F g C x X r i l z L n N T t I w m M O Z Y Q W V") - {" "}


async def cancel(desk: Desk, verb: str = "DELETE", path: str = "order", **params: object) -> Any:
    return await desk.rest().signed(verb, f"/api/v3/{path}", symbol="BTCUSDT", **params)


# -- answers --------------------------------------------------------------------------------------


async def test_answers_have_the_documented_fields() -> None:
    async with trading() as desk:
        book(desk)
        assert set(await desk.placed(newOrderRespType="ACK")) == ACK
        assert set(await desk.placed(newOrderRespType="RESULT")) == RESULT
        full = await desk.placed(price="64001.0")
        assert set(full) == RESULT | {"fills"}
        assert set(full["fills"][0]) == {
            "price",
            "qty",
            "commission",
            "commissionAsset",
            "tradeId",
        }
        assert set(await desk.placed(**MAKER)) == ACK
        found = (await cancel(desk, "GET", orderId=full["orderId"])).body
        assert set(found) == (RESULT - {"transactTime"}) | {
            "stopPrice",
            "icebergQty",
            "time",
            "updateTime",
            "isWorking",
        }


@pytest.mark.parametrize(
    ("changes", "status", "executed", "reason"),
    [
        ({}, "NEW", "0", None),
        ({"price": "64001.0"}, "FILLED", "0.01", None),
        ({"price": "64001.0", "quantity": "1.5"}, "PARTIALLY_FILLED", "1", None),
        (
            {"price": "64001.0", "quantity": "1.5", "timeInForce": "IOC"},
            "EXPIRED",
            "1",
            "UNFILLED_IOC_QUANTITY_EXPIRED",
        ),
        ({"timeInForce": "IOC"}, "EXPIRED", "0", "UNFILLED_IOC_QUANTITY_EXPIRED"),
        ({"price": "64100.0", "quantity": "2", "timeInForce": "FOK"}, "FILLED", "2", None),
        (
            {"price": "64001.0", "quantity": "1.5", "timeInForce": "FOK"},
            "EXPIRED",
            "0",
            "UNFILLED_FOK_ORDER_EXPIRED",
        ),
        ({**MARKET, "quantity": "1.5"}, "FILLED", "1.5", None),
        ({**MARKET, "quantity": "3"}, "EXPIRED", "2", "INSUFFICIENT_LIQUIDITY"),
        ({**MARKET, "quantity": None, "quoteOrderQty": "6400.1"}, "FILLED", "0.1", None),
        ({**MAKER, "newOrderRespType": "RESULT"}, "NEW", "0", None),
    ],
)
async def test_what_becomes_of_an_order(
    changes: Json, status: str, executed: str, reason: str | None
) -> None:
    async with trading() as desk:
        book(desk)
        found = await desk.placed(**changes)
        assert (found["status"], Decimal(found["executedQty"])) == (status, Decimal(executed))
        assert found.get("expiryReason") == reason


async def test_a_market_order_walks_the_book_and_names_each_fill() -> None:
    async with trading() as desk:
        book(desk)
        found = await desk.placed(**{**MARKET, "quantity": "1.25"})
        assert [(f["price"], f["qty"]) for f in found["fills"]] == [
            ("64001.00000000", "1.00000000"),
            ("64100.00000000", "0.25000000"),
        ]
        assert Decimal(found["cummulativeQuoteQty"]) == 64001 + 16025


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**MAKER, "price": "64001.0"}, "Order would immediately match and take."),
        (
            {"price": "63000.0", "quantity": "20"},
            "Account has insufficient balance for requested action.",
        ),
        (
            {"side": "SELL", "price": "64500.0", "quantity": "101"},
            "Account has insufficient balance for requested action.",
        ),
        ({"newClientOrderId": "open"}, "Duplicate order sent."),
    ],
)
async def test_what_the_engine_refuses(changes: Json, message: str) -> None:
    async with trading() as desk:
        book(desk)
        await desk.placed(newClientOrderId="open")
        reply = await desk.place(**changes)
        assert (reply.status, reply.code, reply.msg) == (400, -2010, message)
        assert len(desk.ledger.orders()) == 1


async def test_a_client_id_is_free_again_when_its_order_is_closed() -> None:
    """The venue gives no idempotency: a blind resend after a fill trades twice."""
    async with trading() as desk:
        book(desk)
        for _ in range(2):
            await desk.placed(newClientOrderId="twice", price="64001.0")
        assert desk.ledger.sent_twice() == ["twice"]
        assert desk.ledger.placed_twice() == ["twice"]
        assert len(desk.ledger.trades(client_id="twice")) == 2


# -- filters --------------------------------------------------------------------------------------

_FILTERS: Json = {
    "spot": {
        "BTCUSDT": {
            "PRICE_FILTER": {"minPrice": "1000", "maxPrice": "200000", "tickSize": "0.50"},
            "LOT_SIZE": {"minQty": "0.00100", "maxQty": "50", "stepSize": "0.00100"},
            "MARKET_LOT_SIZE": {"minQty": "0.01", "maxQty": "0.5", "stepSize": "0.01"},
            "PERCENT_PRICE_BY_SIDE": {"bidMultiplierUp": "1.1", "bidMultiplierDown": "0.9"},
            "NOTIONAL": {"minNotional": "100", "maxNotional": "500000"},
            "MIN_NOTIONAL": None,
            "MAX_NUM_ORDERS": {"maxNumOrders": 2},
        }
    }
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"price": "63000.25"}, "PRICE_FILTER"),
        ({"price": "999.5"}, "PRICE_FILTER"),
        ({"price": "200000.5"}, "PRICE_FILTER"),
        ({"quantity": "0.0015"}, "LOT_SIZE"),
        ({"quantity": "0.0005"}, "LOT_SIZE"),
        ({"quantity": "51"}, "LOT_SIZE"),
        ({**MARKET, "quantity": "0.6"}, "MARKET_LOT_SIZE"),
        ({**MARKET, "quantity": "0.015"}, "MARKET_LOT_SIZE"),
        ({"price": "71000.0"}, "PERCENT_PRICE_BY_SIDE"),
        ({"price": "57000.0"}, "PERCENT_PRICE_BY_SIDE"),
        ({"quantity": "0.001"}, "NOTIONAL"),
        ({"quantity": "10"}, "NOTIONAL"),
    ],
)
async def test_each_filter_fails_by_name(changes: Json, name: str) -> None:
    async with trading(filters=_FILTERS) as desk:
        book(desk)
        reply = await desk.place(**changes)
        assert (reply.status, reply.code, reply.msg) == (400, -1013, f"Filter failure: {name}")


async def test_min_notional_and_percent_price_and_max_position() -> None:
    changes: Json = {
        "NOTIONAL": None,
        "PERCENT_PRICE_BY_SIDE": None,
        "MIN_NOTIONAL": {"minNotional": "700"},
        "PERCENT_PRICE": {"multiplierUp": "1.2", "multiplierDown": "0.8"},
        "MAX_POSITION": {"maxPosition": "101"},
    }
    async with trading(filters={"spot": {"BTCUSDT": changes}}) as desk:
        book(desk)
        assert (await desk.place()).msg == "Filter failure: MIN_NOTIONAL"
        assert (await desk.place(price="90000")).msg == "Filter failure: PERCENT_PRICE"
        reply = await desk.place(quantity="1.5")
        assert (reply.code, reply.msg) == (-2010, "Filter failure: MAX_POSITION")


async def test_open_orders_are_counted_and_the_rules_are_served() -> None:
    async with trading(filters=_FILTERS) as desk:
        book(desk)
        await desk.placed()
        await desk.placed()
        assert (await desk.place()).msg == "Filter failure: MAX_NUM_ORDERS"
        info = (await desk.rest().raw("GET", "/api/v3/exchangeInfo", "symbol=BTCUSDT")).body
        filters = {entry["filterType"]: entry for entry in info["symbols"][0]["filters"]}
        assert filters["PRICE_FILTER"]["tickSize"] == "0.50"
        assert "MIN_NOTIONAL" not in filters
        own = await desk.rest().ok("GET", "/api/v3/myFilters", symbol="BTCUSDT")
        assert own["symbolFilters"] == info["symbols"][0]["filters"]


# -- cancel ---------------------------------------------------------------------------------------


async def test_a_cancel_has_an_id_of_its_own() -> None:
    async with trading() as desk:
        book(desk)
        events = await desk.spot_events()
        await desk.placed(newClientOrderId="one")
        found = (await cancel(desk, origClientOrderId="one", newClientOrderId="stop")).body
        assert (found["origClientOrderId"], found["clientOrderId"]) == ("one", "stop")
        assert found["status"] == "CANCELED"
        report = await events.event("executionReport", x="CANCELED")
        assert (report["c"], report["C"], report["X"]) == ("stop", "one", "CANCELED")
        again = await cancel(desk, origClientOrderId="one")
        assert (again.status, again.code, again.msg) == (400, -2011, "Unknown order sent.")


async def test_cancel_by_ids_that_disagree_or_do_not_exist() -> None:
    async with trading() as desk:
        book(desk)
        one = await desk.placed(newClientOrderId="one")
        await desk.placed(newClientOrderId="two")
        number = one["orderId"]
        assert (await cancel(desk, orderId=number, origClientOrderId="two")).code == -2039
        assert (await cancel(desk)).code == -1102
        assert (await cancel(desk, origClientOrderId="three")).code == -2011
        assert (await cancel(desk, "GET", origClientOrderId="three")).code == -2013
        assert (await cancel(desk, "GET", orderId=number, origClientOrderId="two")).code == -2039
        assert (await cancel(desk, orderId=number, origClientOrderId="one")).status == 200


async def test_cancel_restrictions() -> None:
    async with trading() as desk:
        book(desk)
        await desk.placed(newClientOrderId="new")
        await desk.placed(newClientOrderId="part", price="64001.0", quantity="1.5")
        for client, other in (("new", "ONLY_PARTIALLY_FILLED"), ("part", "ONLY_NEW")):
            reply = await cancel(desk, origClientOrderId=client, cancelRestrictions=other)
            assert reply.code == -2011
            assert "cancel restrictions" in reply.msg
        assert (await cancel(desk, origClientOrderId="new", cancelRestrictions="NO")).code == -1145
        reply = await cancel(desk, origClientOrderId="new", cancelRestrictions="ONLY_NEW")
        assert reply.status == 200


async def test_cancel_all_takes_one_symbol_and_refuses_when_nothing_is_open() -> None:
    async with trading() as desk:
        book(desk)
        book(desk, symbol="ETHUSDT")
        await desk.placed()
        await desk.placed()
        await desk.placed(symbol="ETHUSDT")
        found = (await cancel(desk, path="openOrders")).body
        assert [entry["status"] for entry in found] == ["CANCELED", "CANCELED"]
        assert (await cancel(desk, path="openOrders")).code == -2011
        left = desk.ledger.orders(open_only=True)
        assert [order.symbol for order in left] == ["ETHUSDT"]


# -- cancel and replace ---------------------------------------------------------------------------


async def replace(desk: Desk, **params: object) -> Any:
    values: Json = {
        "symbol": "BTCUSDT",
        "side": "BUY",
        "type": "LIMIT",
        "timeInForce": "GTC",
        "quantity": "0.010",
        "price": "62000.0",
        "cancelReplaceMode": "STOP_ON_FAILURE",
        "cancelOrigClientOrderId": "old",
        "newClientOrderId": "new",
        **params,
    }
    return await desk.rest().signed("POST", "/api/v3/order/cancelReplace", **values)


def halves(data: Json) -> tuple[str, str]:
    return data["cancelResult"], data["newOrderResult"]


@pytest.mark.parametrize(
    ("old", "mode", "price", "status", "code", "results"),
    [
        (True, "STOP_ON_FAILURE", "62000.0", 200, 0, ("SUCCESS", "SUCCESS")),
        (False, "STOP_ON_FAILURE", "62000.0", 400, -2022, ("FAILURE", "NOT_ATTEMPTED")),
        (False, "ALLOW_FAILURE", "62000.0", 409, -2021, ("FAILURE", "SUCCESS")),
        (False, "ALLOW_FAILURE", "64001.0", 400, -2022, ("FAILURE", "FAILURE")),
        (True, "STOP_ON_FAILURE", "64001.0", 409, -2021, ("SUCCESS", "FAILURE")),
        (True, "ALLOW_FAILURE", "64001.0", 409, -2021, ("SUCCESS", "FAILURE")),
    ],
)
async def test_both_halves_of_a_replace_tell_their_fate(
    old: bool, mode: str, price: str, status: int, code: int, results: tuple[str, str]
) -> None:
    """At 64001 a LIMIT_MAKER would take, so the engine refuses the new half."""
    async with trading() as desk:
        book(desk)
        if old:
            await desk.placed(newClientOrderId="old")
        params: Json = {"cancelReplaceMode": mode, "price": price, **MAKER}
        values = {name: value for name, value in params.items() if value is not None}
        reply = await desk.rest().signed(
            "POST",
            "/api/v3/order/cancelReplace",
            symbol="BTCUSDT",
            side="BUY",
            quantity="0.010",
            cancelOrigClientOrderId="old",
            newClientOrderId="new",
            **values,
        )
        assert reply.status == status
        data = reply.body if status == 200 else reply.body["data"]
        assert halves(data) == results
        assert reply.body.get("code", 0) == code
        assert bool(desk.ledger.orders(client_id="new")) == (results[1] == "SUCCESS")
        assert not [o for o in desk.ledger.orders(client_id="old") if o.open]


async def test_a_replace_that_is_not_attempted_counts_and_one_over_the_limit_is_429() -> None:
    async with trading(limits=Limits(spot_orders=((3, 3600),))) as desk:
        book(desk)
        await desk.placed(newClientOrderId="old")
        reply = await replace(desk, cancelOrigClientOrderId="none")
        assert reply.code == -2022
        counts = await desk.rest().ok("GET", "/api/v3/rateLimit/order")
        assert [entry["count"] for entry in counts] == [2]
        await desk.placed()
        reply = await replace(desk)
        assert (reply.status, reply.code) == (429, -1015)
        assert desk.ledger.orders(client_id="old")[0].open
        reply = await replace(desk, orderRateLimitExceededMode="CANCEL_ONLY")
        assert (reply.status, halves(reply.body["data"])) == (429, ("SUCCESS", "FAILURE"))
        assert not desk.ledger.orders(client_id="old")[0].open


async def test_over_the_websocket_the_halves_are_in_the_errors_data() -> None:
    async with trading() as desk:
        book(desk)
        socket = await desk.ws()
        found = await socket.signed(
            "order.cancelReplace",
            symbol="BTCUSDT",
            side="BUY",
            type="LIMIT",
            timeInForce="GTC",
            quantity="0.010",
            price="62000.0",
            cancelReplaceMode="STOP_ON_FAILURE",
            cancelOrigClientOrderId="none",
        )
        assert (found["status"], found["error"]["code"]) == (400, -2022)
        data = found["error"]["data"]
        assert halves(data) == ("FAILURE", "NOT_ATTEMPTED")
        assert data["cancelResponse"]["code"] == -2011


async def test_a_refused_new_order_of_a_replace_is_reported_as_rejected() -> None:
    async with trading() as desk:
        book(desk)
        events = await desk.spot_events()
        await desk.placed(newClientOrderId="old")
        assert (await replace(desk, quantity="20")).code == -2021
        report = await events.event("executionReport", x="REJECTED")
        assert (report["c"], report["X"], report["r"]) == (
            "new",
            "REJECTED",
            "INSUFFICIENT_BALANCES",
        )


# -- amend ----------------------------------------------------------------------------------------


async def amend(desk: Desk, quantity: str, **params: object) -> Any:
    values = {"origClientOrderId": "one", "newQty": quantity, **params}
    return await cancel(desk, "PUT", "order/amend/keepPriority", **values)


async def test_an_amended_order_keeps_its_number_and_its_place() -> None:
    accounts = (AccountSpec(), AccountSpec(name="other"))
    async with trading(accounts=accounts) as desk:
        book(desk)
        events = await desk.spot_events()
        first = await desk.placed(newClientOrderId="one", quantity="0.5")
        await desk.placed(account="other", newClientOrderId="behind", quantity="0.5")
        reply = await amend(desk, "0.3", newClientOrderId="one")
        changed = reply.body["amendedOrder"]
        assert (changed["orderId"], changed["qty"]) == (first["orderId"], "0.30000000")
        assert reply.body["executionId"] > 0
        report = await events.event("executionReport", x="REPLACED")
        assert (report["q"], report["i"]) == ("0.30000000", first["orderId"])
        assert desk.venue.spot_wallets["main"].assets["USDT"].locked == Decimal("18900")
        for side, price in (("buy", "63999.0"), ("buy", "63900.0")):
            desk.venue.quote("spot", "BTCUSDT", side, price, "0")
        desk.venue.hit("spot", "BTCUSDT", "sell", "63000.0", "0.4")
        filled = {trade.client_id: trade.quantity for trade in desk.ledger.trades()}
        assert filled == {"one": Decimal("0.3"), "behind": Decimal("0.1")}
        history = await desk.rest().ok(
            "GET", "/api/v3/order/amendments", symbol="BTCUSDT", orderId=first["orderId"]
        )
        assert [(h["origQty"], h["newQty"]) for h in history] == [("0.50000000", "0.30000000")]


async def test_without_an_id_an_amended_order_gets_a_random_one() -> None:
    async with trading() as desk:
        book(desk)
        await desk.placed(newClientOrderId="one", quantity="0.5")
        changed = (await amend(desk, "0.4")).body["amendedOrder"]
        assert changed["origClientOrderId"] == "one"
        assert changed["clientOrderId"] != "one"
        assert (await amend(desk, "0.3")).code == -2013
        await desk.placed(newClientOrderId="one")


async def test_amends_only_reduce_and_only_ten_times() -> None:
    async with trading() as desk:
        book(desk)
        await desk.placed(newClientOrderId="one", quantity="0.5")
        for quantity in ("0.5", "0.6"):
            assert (await amend(desk, quantity, newClientOrderId="one")).code == -2038
        for step in range(10):
            assert (await amend(desk, f"0.{49 - step}", newClientOrderId="one")).status == 200
        reply = await amend(desk, "0.1", newClientOrderId="one")
        assert (reply.code, reply.msg) == (-2038, "Filter failure: MAX_NUM_ORDER_AMENDS")


# -- events ---------------------------------------------------------------------------------------


async def test_an_order_that_fills_in_parts_reports_each_and_new_first() -> None:
    async with trading() as desk:
        book(desk)
        events = await desk.spot_events()
        await desk.placed(newClientOrderId="one", price="63999.5", quantity="0.5")
        for _ in range(2):
            desk.venue.hit("spot", "BTCUSDT", "sell", "63999.5", "0.25")
        seen = [await events.event("executionReport") for _ in range(3)]
        assert [(r["x"], r["X"], r["l"], r["z"]) for r in seen] == [
            ("NEW", "NEW", "0.00000000", "0.00000000"),
            ("TRADE", "PARTIALLY_FILLED", "0.25000000", "0.25000000"),
            ("TRADE", "FILLED", "0.25000000", "0.50000000"),
        ]
        assert [set(r) for r in seen] == [REPORT] * 3
        assert [r["m"] for r in seen] == [False, True, True]
        assert seen[1]["t"] + 1 == seen[2]["t"]
        assert len({r["I"] for r in seen}) == 3
        assert (seen[2]["N"], seen[2]["n"]) == ("BTC", "0.00025000")


async def test_balances_are_absolute_and_follow_each_report() -> None:
    async with trading() as desk:
        book(desk)
        events = await desk.spot_events()
        await desk.placed(price="63000.0", quantity="1")
        await events.event("executionReport", x="NEW")
        position = await events.event("outboundAccountPosition")
        assert {entry["a"]: (entry["f"], entry["l"]) for entry in position["B"]} == {
            "BTC": ("100.00000000", "0.00000000"),
            "USDT": ("937000.00000000", "63000.00000000"),
        }
        desk.venue.deposit("main", "spot", "USDT", "5")
        update = await events.event("balanceUpdate")
        assert (update["a"], update["d"]) == ("USDT", "5.00000000")


async def test_the_two_reports_of_a_self_trade_that_is_prevented() -> None:
    async with trading() as desk:
        book(desk)
        events = await desk.spot_events()
        await desk.placed(newClientOrderId="ask", side="SELL", price="64000.0", quantity="0.2")
        found = await desk.placed(
            newClientOrderId="bid",
            price="64000.0",
            quantity="0.3",
            selfTradePreventionMode="DECREMENT",
        )
        assert (found["status"], found["preventedQuantity"]) == ("NEW", "0.20000000")
        ask = await events.event("executionReport", x="TRADE_PREVENTION", c="ask")
        bid = await events.event("executionReport", x="TRADE_PREVENTION", c="bid")
        assert (ask["X"], bid["X"]) == ("EXPIRED_IN_MATCH", "NEW")
        assert (ask["U"], bid["U"]) == (bid["i"], ask["i"])
        assert bid["B"] == "0.20000000"
        assert not desk.ledger.trades()


# -- queries --------------------------------------------------------------------------------------


async def test_queries_show_an_accounts_own_orders_and_fills() -> None:
    accounts = (AccountSpec(), AccountSpec(name="other"))
    async with trading(accounts=accounts) as desk:
        book(desk)
        rest = desk.rest()
        await desk.placed(newClientOrderId="open")
        await desk.placed(newClientOrderId="done", price="64001.0")
        await desk.placed(account="other", newClientOrderId="theirs", price="64001.0")
        found = await rest.ok("GET", "/api/v3/openOrders")
        assert [order["clientOrderId"] for order in found] == ["open"]
        found = await rest.ok("GET", "/api/v3/allOrders", symbol="BTCUSDT")
        assert [order["clientOrderId"] for order in found] == ["open", "done"]
        fills = await rest.ok("GET", "/api/v3/myTrades", symbol="BTCUSDT")
        assert [fill["qty"] for fill in fills] == ["0.01000000"]
        later = await rest.ok(
            "GET", "/api/v3/myTrades", symbol="BTCUSDT", fromId=fills[0]["id"] + 1
        )
        assert later == []
        mine = await rest.ok("GET", "/api/v3/account", omitZeroBalances="true")
        assert {entry["asset"] for entry in mine["balances"]} == {"USDT", "BTC", "ETH"}


async def test_a_test_order_is_checked_and_not_placed() -> None:
    async with trading() as desk:
        book(desk)
        params: Json = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "0.01"}
        rest = desk.rest()
        assert await rest.ok("POST", "/api/v3/order/test", **params) == {}
        reply = await rest.signed("POST", "/api/v3/order/test", **{**params, "quantity": "0"})
        assert reply.code == -1013
        assert not desk.ledger.orders()


async def test_the_websocket_api_says_the_same() -> None:
    async with trading() as desk:
        book(desk)
        socket = await desk.ws("spot", "ed25519")
        await socket.logon()
        order = await socket.ok(
            "v3/order.place",
            symbol="BTCUSDT",
            side="BUY",
            type="LIMIT",
            timeInForce="GTC",
            quantity="0.5",
            price="63000.0",
            newClientOrderId="one",
        )
        rest = await desk.rest().ok("GET", "/api/v3/openOrders", symbol="BTCUSDT")
        assert await socket.ok("openOrders.status", symbol="BTCUSDT") == rest
        assert (
            await socket.ok("order.status", symbol="BTCUSDT", orderId=order["orderId"])
        ) == rest[0]
        assert (await socket.ok("account.status"))["accountType"] == "SPOT"
        assert await socket.ok("myTrades", symbol="BTCUSDT") == []
        amended = await socket.ok(
            "order.amend.keepPriority", symbol="BTCUSDT", origClientOrderId="one", newQty="0.4"
        )
        assert amended["amendedOrder"]["qty"] == "0.40000000"
        gone = await socket.ok("openOrders.cancelAll", symbol="BTCUSDT")
        assert gone[0]["status"] == "CANCELED"
