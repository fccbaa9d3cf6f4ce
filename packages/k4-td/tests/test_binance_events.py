"""Binance's answers and events, as its documentation prints them, and any other bytes."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.trading import (
    AccountType,
    Direction,
    Fill,
    NewOrder,
    OrderStatus,
    OrderType,
    PositionSide,
)
from k4.td.exchanges.binance import protocol
from k4.td.exchanges.binance.events import Changes, Ended, Unused, parse_event
from k4.td.exchanges.binance.protocol import COIN_M, PRODUCTS, SPOT, USD_M, Lane
from k4.td.exchanges.binance.reports import (
    Frame,
    Malformed,
    algo_reports,
    amend_report,
    balance_list,
    decode,
    error_body,
    order_report,
    order_reports,
    order_status,
    order_type,
    position_list,
    retry_after_ms,
    trade_fills,
)
from k4.td.venue import OrderRef, Report

Json = dict[str, Any]


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


# Shapes of the documentation (values invented).

SPOT_RESULT = {
    "symbol": "BTCUSDT",
    "orderId": 9001,
    "orderListId": -1,
    "clientOrderId": "k4-7",
    "transactTime": 1795000000012,
    "price": "25000.10000000",
    "origQty": "0.00200000",
    "executedQty": "0.00000000",
    "origQuoteOrderQty": "0.00000000",
    "cummulativeQuoteQty": "0.00000000",
    "status": "EXPIRED",
    "timeInForce": "IOC",
    "type": "LIMIT",
    "side": "BUY",
    "workingTime": 1795000000012,
    "selfTradePreventionMode": "NONE",
    "expiryReason": "UNFILLED_IOC_QUANTITY_EXPIRED",
}
SPOT_REPORT = (
    '{"e":"executionReport","E":1795000000300,"s":"BTCUSDT","c":"k4-7","S":"BUY","o":"LIMIT",'
    '"f":"GTC","q":"0.00200000","p":"25000.10000000","P":"0.00000000","F":"0.00000000","g":-1,'
    '"C":"","x":"TRADE","X":"FILLED","r":"NONE","i":9001,"l":"0.00200000","z":"0.00200000",'
    '"L":"25000.10000000","n":"0.00000200","N":"BTC","T":1795000000299,"t":333,"I":18002,'
    '"w":false,"m":false,"M":false,"O":1795000000012,"Z":"50.00020000","Y":"50.00020000",'
    '"Q":"0.00000000","W":1795000000012,"V":"NONE"}'
)
FUTURES_UPDATE = (
    '{"e":"ORDER_TRADE_UPDATE","E":1795000000200,"T":1795000000198,"o":{"s":"BTCUSDT","c":"k4-9",'
    '"S":"BUY","o":"LIMIT","f":"GTX","q":"0.010","p":"25000.10","ap":"25000.10","sp":"0",'
    '"x":"TRADE","X":"PARTIALLY_FILLED","i":77001,"l":"0.004","z":"0.004","L":"25000.10",'
    '"N":"USDT","n":"0.0200","T":1795000000198,"t":5501,"b":"150.0","a":"0","m":true,"R":false,'
    '"wt":"CONTRACT_PRICE","ot":"LIMIT","ps":"BOTH","cp":false,"rp":"0","pP":false,"si":0,"ss":0,'
    '"V":"EXPIRE_MAKER","pm":"NONE","gtd":0,"er":"0"}}'
)


def test_a_spot_result() -> None:
    report = order_report(SPOT, encoded(SPOT_RESULT))
    assert (report.client_order_id, report.order_id) == ("k4-7", "9001")
    assert (report.status, report.order_type) == (OrderStatus.EXPIRED, OrderType.IOC)
    assert (report.price, report.quantity) == (Decimal("25000.1"), Decimal("0.002"))
    assert report.reason == "UNFILLED_IOC_QUANTITY_EXPIRED"
    assert report.time_us == 1795000000012000
    assert report.figures


def test_a_spot_ack_proves_that_the_order_is_there_and_nothing_more() -> None:
    ack = {name: SPOT_RESULT[name] for name in ("symbol", "orderId", "clientOrderId")}
    report = order_report(SPOT, encoded({**ack, "orderListId": -1, "transactTime": 5}))
    assert (report.status, report.figures) == (OrderStatus.NEW, False)


def test_a_full_answer_carries_its_fills() -> None:
    fills = [
        {"price": "100", "qty": "1", "commission": "0.1", "commissionAsset": "BNB", "tradeId": 5}
    ]
    full = {
        **SPOT_RESULT,
        "status": "FILLED",
        "executedQty": "1",
        "cummulativeQuoteQty": "100",
        "fills": fills,
    }
    report = order_report(SPOT, encoded(full))
    assert report.average == Decimal(100)
    [fill] = report.fills
    assert (fill.trade_id, fill.commission_asset, fill.client_order_id) == ("5", "BNB", "k4-7")


def test_the_answer_to_a_spot_cancel_names_the_order_and_not_the_cancel() -> None:
    body = {
        **SPOT_RESULT,
        "status": "CANCELED",
        "origClientOrderId": "k4-7",
        "clientOrderId": "made-up",
    }
    report = order_report(SPOT, encoded(body))
    assert (report.client_order_id, report.status) == ("k4-7", OrderStatus.CANCELED)


def test_a_spot_amend() -> None:
    amended = {
        "symbol": "BTCUSDT",
        "orderId": 9001,
        "orderListId": -1,
        "origClientOrderId": "k4-7",
        "clientOrderId": "k4-7",
        "price": "6.00000000",
        "qty": "5.00000000",
        "executedQty": "1.00000000",
        "preventedQty": "0.00000000",
        "quoteOrderQty": "0.00000000",
        "cumulativeQuoteQty": "6.00000000",
        "status": "PARTIALLY_FILLED",
        "timeInForce": "GTC",
        "type": "LIMIT",
        "side": "SELL",
    }
    body = {"transactTime": 1795000000500, "executionId": 22, "amendedOrder": amended}
    report = amend_report(SPOT, encoded(body))
    assert (report.quantity, report.executed) == (Decimal(5), Decimal(1))
    assert report.average == Decimal(6)
    assert report.time_us == 1795000000500000
    assert report.direction is Direction.SELL


def test_a_futures_ack_without_the_removed_fields() -> None:
    body = {
        "clientOrderId": "k4-9",
        "cumQty": "0",
        "executedQty": "0.004",
        "orderId": 77001,
        "origQty": "0.010",
        "price": "25000.10",
        "reduceOnly": True,
        "side": "SELL",
        "positionSide": "SHORT",
        "status": "PARTIALLY_FILLED",
        "stopPrice": "0",
        "closePosition": False,
        "symbol": "BTCUSDT",
        "timeInForce": "GTD",
        "type": "LIMIT",
        "origType": "LIMIT",
        "updateTime": 1795000000198,
        "workingType": "CONTRACT_PRICE",
        "priceProtect": False,
        "priceMatch": "NONE",
        "selfTradePreventionMode": "EXPIRE_MAKER",
        "goodTillDate": 1795000900000,
    }
    for product in (USD_M, COIN_M):
        report = order_report(product, encoded({**body, "pair": "BTCUSD"}))
        assert (report.average, report.executed) == (Decimal(0), Decimal("0.004"))
        assert (report.reduce_only, report.position_side) == (True, PositionSide.SHORT)
        assert report.good_till_us == 1795000900000000
        assert report.order_type is OrderType.GTD
    asked = order_report(USD_M, encoded({**body, "avgPrice": "25000.2", "time": 1}))
    assert asked.average == Decimal("25000.2")


def test_a_spot_execution_report() -> None:
    report = parse_event(SPOT, SPOT_REPORT.encode())
    assert isinstance(report, Report)
    assert (report.client_order_id, report.status) == ("k4-7", OrderStatus.FILLED)
    assert report.average == Decimal("25000.1")
    assert report.fills == (
        Fill(
            symbol="BTCUSDT",
            account_type=AccountType.SPOT,
            direction=Direction.BUY,
            client_order_id="k4-7",
            order_id="9001",
            trade_id="333",
            price=Decimal("25000.1"),
            quantity=Decimal("0.002"),
            commission=Decimal("0.000002"),
            commission_asset="BTC",
            trade_time_us=1795000000299000,
        ),
    )


def changed(text: str, **values: Any) -> bytes:
    body = json.loads(text)
    target = body["o"] if "o" in body and isinstance(body["o"], dict) else body
    target.update(values)
    return encoded(body)


def spot_event(**values: Any) -> Report:
    report = parse_event(SPOT, changed(SPOT_REPORT, **values))
    assert isinstance(report, Report)
    return report


def test_spot_cancels_amends_and_preventions() -> None:
    canceled = spot_event(x="CANCELED", X="CANCELED", c="cancel-1", C="k4-7", t=-1, l="0")
    assert (canceled.client_order_id, canceled.fills) == ("k4-7", ())
    amended = spot_event(x="REPLACED", X="NEW", c="k4-7", C="k4-7", q="0.001", t=-1)
    assert (amended.client_order_id, amended.quantity) == ("k4-7", Decimal("0.001"))
    prevented = spot_event(x="TRADE_PREVENTION", X="EXPIRED_IN_MATCH", t=-1, N=None, n="0")
    assert (prevented.status, prevented.reason) == (OrderStatus.EXPIRED, "self-trade prevention")
    rejected = spot_event(x="REJECTED", X="REJECTED", r="WOULD_MATCH_IMMEDIATELY", t=-1)
    assert (rejected.status, rejected.reason) == (OrderStatus.REJECTED, "WOULD_MATCH_IMMEDIATELY")
    expired = spot_event(x="EXPIRED", X="EXPIRED", eR="INSUFFICIENT_LIQUIDITY", t=-1)
    assert expired.reason == "INSUFFICIENT_LIQUIDITY"
    other = spot_event(X="SOMETHING_NEW")
    assert other.status is OrderStatus.UNKNOWN


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("NEW", OrderStatus.NEW),
        ("PENDING_NEW", OrderStatus.PENDING_NEW),
        ("PARTIALLY_FILLED", OrderStatus.PARTIALLY_FILLED),
        ("FILLED", OrderStatus.FILLED),
        ("CANCELED", OrderStatus.CANCELED),
        ("PENDING_CANCEL", OrderStatus.PENDING_CANCEL),
        ("REJECTED", OrderStatus.REJECTED),
        ("EXPIRED", OrderStatus.EXPIRED),
        ("EXPIRED_IN_MATCH", OrderStatus.EXPIRED),
    ],
)
def test_every_documented_status_in_events_and_answers(text: str, status: OrderStatus) -> None:
    assert spot_event(X=text).status is status
    assert order_report(SPOT, encoded({**SPOT_RESULT, "status": text})).status is status
    if text not in ("PENDING_NEW", "PENDING_CANCEL", "REJECTED"):
        for product in (USD_M, COIN_M):
            report = parse_event(product, changed(FUTURES_UPDATE, X=text))
            assert isinstance(report, Report)
            assert report.status is status


@pytest.mark.parametrize(
    "reason",
    [
        "REJECTED",
        "EXCHANGE_CANCELED",
        "OCO_TRIGGER",
        "OTO_PHASE_ONE_EXPIRED",
        "UNFILLED_IOC_QUANTITY_EXPIRED",
        "UNFILLED_FOK_ORDER_EXPIRED",
        "INSUFFICIENT_LIQUIDITY",
        "EXECUTION_RULE_PRICE_RANGE_EXCEEDED",
    ],
)
def test_every_documented_reason_of_an_expiry_on_spot(reason: str) -> None:
    assert spot_event(x="EXPIRED", X="EXPIRED", eR=reason, t=-1).reason == reason


@pytest.mark.parametrize(
    "reason",
    [
        "INSUFFICIENT_BALANCES",
        "STOP_PRICE_WOULD_TRIGGER_IMMEDIATELY",
        "WOULD_MATCH_IMMEDIATELY",
        "OCO_BAD_PRICES",
    ],
)
def test_every_documented_reason_of_a_rejection_on_spot(reason: str) -> None:
    rejected = spot_event(x="REJECTED", X="REJECTED", r=reason, t=-1)
    assert (rejected.status, rejected.reason) == (OrderStatus.REJECTED, reason)


def test_every_documented_reason_of_an_expiry_on_futures() -> None:
    reasons = set()
    for number in range(10):
        report = parse_event(USD_M, changed(FUTURES_UPDATE, x="EXPIRED", X="EXPIRED", er=number))
        assert isinstance(report, Report)
        reasons.add(report.reason)
        assert (report.reason == "") == (number == 0)
        assert str(number) not in report.reason
    assert len(reasons) == 10


def test_spot_balances_and_notices() -> None:
    event = {
        "e": "outboundAccountPosition",
        "E": 2,
        "u": 1795000000001,
        "B": [{"a": "BTC", "f": "1.5", "l": "0.5"}],
    }
    changes = parse_event(SPOT, encoded(event))
    assert isinstance(changes, Changes)
    [balance] = changes.balances
    assert (balance.asset, balance.total) == ("BTC", Decimal(2))
    assert balance.update_time_us == 1795000000001000
    assert parse_event(SPOT, b'{"e":"balanceUpdate","a":"BTC","d":"1"}') == Unused("balanceUpdate")
    for name in ("serverShutdown", "eventStreamTerminated"):
        ended = parse_event(SPOT, encoded({"e": name, "E": 1}))
        assert isinstance(ended, Ended)
        assert (name in ended.reason, ended.key_expired) == (True, False)
        assert ended.announced is (name == "serverShutdown")


def test_a_futures_order_update_also_when_wrapped() -> None:
    plain = parse_event(USD_M, FUTURES_UPDATE.encode())
    wrapped = encoded({"stream": "key", "data": json.loads(FUTURES_UPDATE)})
    assert parse_event(USD_M, wrapped) == plain
    assert isinstance(plain, Report)
    assert (plain.order_type, plain.status) == (OrderType.POST_ONLY, OrderStatus.PARTIALLY_FILLED)
    [fill] = plain.fills
    assert (fill.trade_id, fill.is_maker, fill.commission) == ("5501", True, Decimal("0.02"))


@pytest.mark.parametrize(
    ("values", "status", "reason"),
    [
        ({"x": "EXPIRED", "X": "EXPIRED", "er": "2", "t": 0}, OrderStatus.EXPIRED, "IOC"),
        ({"x": "EXPIRED", "X": "EXPIRED", "er": 4, "t": 0}, OrderStatus.EXPIRED, "reduce-only"),
        (
            {"x": "EXPIRED", "X": "EXPIRED_IN_MATCH", "er": "1", "t": 0},
            OrderStatus.EXPIRED,
            "self-trade",
        ),
        ({"x": "CANCELED", "X": "CANCELED", "t": 0}, OrderStatus.CANCELED, ""),
        ({"x": "AMENDMENT", "X": "NEW", "q": "0.020", "t": 0, "M": 7}, OrderStatus.NEW, ""),
        ({"x": "CALCULATED", "X": "FILLED", "c": "autoclose-1"}, OrderStatus.FILLED, ""),
    ],
)
def test_futures_endings(values: Json, status: OrderStatus, reason: str) -> None:
    report = parse_event(COIN_M, changed(FUTURES_UPDATE, **values, ma="BTC"))
    assert isinstance(report, Report)
    assert report.status is status
    assert reason in report.reason
    assert bool(report.fills) == (values["x"] == "CALCULATED")


def test_an_account_update_says_only_what_changed() -> None:
    event = {
        "e": "ACCOUNT_UPDATE",
        "E": 2,
        "T": 1795000000198,
        "a": {
            "m": "ORDER",
            "B": [{"a": "USDT", "wb": "100", "cw": "90", "bc": "0"}],
            "P": [{"s": "BTCUSDT", "pa": "-0.5", "ep": "100", "up": "1", "ps": "SHORT"}],
        },
    }
    changes = parse_event(USD_M, encoded(event))
    assert isinstance(changes, Changes)
    [position] = changes.positions
    assert (position.quantity, position.position_side) == (Decimal("-0.5"), PositionSide.SHORT)
    [balance] = changes.balances
    assert (balance.free, balance.locked) == (Decimal(90), Decimal(10))
    funding = {**event, "a": {"m": "FUNDING_FEE", "B": event["a"]["B"]}}  # type: ignore[index]
    changes = parse_event(USD_M, encoded(funding))
    assert isinstance(changes, Changes)
    assert changes.positions == ()


@pytest.mark.parametrize("stamp", [1, "1"])
def test_an_expired_listen_key_with_either_spelling_of_its_time(stamp: object) -> None:
    event = parse_event(USD_M, encoded({"e": "listenKeyExpired", "E": stamp, "listenKey": "k"}))
    assert isinstance(event, Ended)
    assert event.key_expired
    assert "k" not in event.reason.split()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("NEW", OrderStatus.NEW),
        ("TRIGGERING", OrderStatus.NEW),
        ("TRIGGERED", OrderStatus.EXPIRED),
        ("FINISHED", OrderStatus.EXPIRED),
        ("CANCELED", OrderStatus.CANCELED),
        ("REJECTED", OrderStatus.REJECTED),
        ("EXPIRED", OrderStatus.EXPIRED),
        ("SOMETHING_NEW", OrderStatus.UNKNOWN),
    ],
)
def test_a_conditional_order_is_an_order_of_its_own(text: str, status: OrderStatus) -> None:
    order = {"caid": "stop", "aid": 5, "o": "STOP", "s": "BTCUSDT", "S": "SELL", "q": "1"}
    order |= {"X": text, "p": "90", "ai": "77" if text == "TRIGGERED" else "", "rm": ""}
    report = parse_event(USD_M, encoded({"e": "ALGO_UPDATE", "T": 7, "E": 8, "o": order}))
    assert isinstance(report, Report)
    assert (report.order_id, report.client_order_id) == ("algo:5", "")
    assert (report.status, report.quantity, report.price) == (status, Decimal(1), Decimal(90))
    assert ("became order 77" in report.reason) == (text == "TRIGGERED")


def test_events_that_repeat_others_or_concern_nobody() -> None:
    for name in ("TRADE_LITE", "MARGIN_CALL", "STRATEGY_UPDATE", "listStatus"):
        assert parse_event(USD_M, encoded({"e": name})) == Unused(name)


def test_lists() -> None:
    orders = [{**SPOT_RESULT, "status": "NEW", "updateTime": 7}, {**SPOT_RESULT, "orderId": 2}]
    assert [report.order_id for report in order_reports(SPOT, encoded(orders))] == ["9001", "2"]
    [algo] = algo_reports(
        encoded([{"symbol": "X", "algoId": 5, "orderType": "STOP_MARKET", "side": "SELL"}])
    )
    assert (algo.order_id, algo.order_type) == ("algo:5", OrderType.MARKET)
    [trade] = trade_fills(
        USD_M,
        encoded([{"symbol": "X", "id": 3, "orderId": 4, "price": "1", "qty": "2", "buyer": False}]),
    )
    assert (trade.trade_id, trade.order_id, trade.direction) == ("3", "4", Direction.SELL)
    positions = position_list(
        COIN_M,
        encoded(
            [
                {"symbol": "A", "positionAmt": "0", "entryPrice": "0"},
                {"symbol": "B", "positionAmt": "-3", "entryPrice": "5", "unRealizedProfit": "1"},
            ]
        ),
    )
    assert [(entry.symbol, entry.quantity) for entry in positions] == [("B", Decimal(-3))]
    [balance] = balance_list(
        COIN_M, encoded([{"asset": "BTC", "balance": "3", "availableBalance": "1"}])
    )
    assert (balance.free, balance.locked) == (Decimal(1), Decimal(2))


def test_frames_and_errors() -> None:
    frame = decode(
        '{"id":"a3","status":429,"error":{"code":-1003,"msg":"Too much","data":'
        '{"serverTime":1795000000000,"retryAfter":1795000030000}}}',
        Frame,
    )
    assert frame.error is not None
    assert retry_after_ms(frame.error.data) == 1795000030000
    assert retry_after_ms(msgspec.Raw(b"[]")) == 0
    assert not frame.event
    assert decode('{"event":{"e":"x"}}', Frame).event
    assert error_body(b'{"code":-1121,"msg":"Invalid symbol."}').code == -1121
    assert error_body(b"<html>no</html>").msg == "<html>no</html>"
    assert error_body(b"\xff\xfe").code == 0


@given(st.text())
def test_a_status_or_type_that_is_not_documented_is_never_taken_for_another(text: str) -> None:
    documented = {"NEW", "PENDING_NEW", "PARTIALLY_FILLED", "FILLED", "CANCELED"}
    if text not in documented | {"PENDING_CANCEL", "REJECTED", "EXPIRED", "EXPIRED_IN_MATCH"}:
        assert order_status(text) is OrderStatus.UNKNOWN
    assert isinstance(order_type(text, text), OrderType)


@given(st.binary(max_size=100), st.sampled_from(list(PRODUCTS.values())))
def test_any_bytes_are_an_event_or_malformed(body: bytes, product: protocol.Product) -> None:
    assert_readable(body, product)


@given(st.data(), st.sampled_from(list(PRODUCTS.values())))
def test_any_change_to_a_real_event_is_an_event_or_malformed(
    data: st.DataObject, product: protocol.Product
) -> None:
    event: Json = json.loads(SPOT_REPORT if product is SPOT else FUTURES_UPDATE)
    target = event if product is SPOT else event["o"]
    name = data.draw(st.sampled_from(sorted(target)))
    junk: st.SearchStrategy[Any] = (
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([])
    )
    target[name] = data.draw(junk)
    assert_readable(encoded(event), product)


def assert_readable(body: bytes, product: protocol.Product) -> None:
    try:
        event = parse_event(product, body)
    except Malformed:
        return
    assert isinstance(event, Report | Changes | Ended | Unused)


def test_calls_go_where_the_documentation_says() -> None:
    order = NewOrder(
        symbol="X",
        account_type=AccountType.SPOT,
        direction=Direction.SELL,
        order_type=OrderType.GTC,
        quantity=Decimal("1E-7"),
        price=Decimal("0.000010"),
        client_order_id="k4-1",
    )
    ref = OrderRef(symbol="X", client_order_id="k4-1")
    for product, api in ((SPOT, "/api/v3"), (USD_M, "/fapi/v1"), (COIN_M, "/dapi/v1")):
        calls = [
            protocol.place(product, order),
            protocol.cancel(product, ref),
            protocol.query(product, ref),
            protocol.open_orders(product),
            protocol.cancel_all(product, "X"),
            protocol.exchange_info(product),
            protocol.server_time(product),
        ]
        assert all(call.path.startswith(api + "/") for call in calls)
        params = calls[0].params
        assert (params["quantity"], params["price"]) == ("0.0000001", "0.000010")
        assert [call.lane for call in calls[:3]] == [Lane.ORDER, Lane.CANCEL, Lane.QUERY]
    assert protocol.positions(USD_M).path == "/fapi/v3/positionRisk"
    assert protocol.positions(COIN_M).path == "/dapi/v1/positionRisk"
    assert protocol.balances(USD_M).path == "/fapi/v3/balance"
    assert protocol.balances(COIN_M).path == "/dapi/v1/balance"
    by_venue_id = protocol.cancel(SPOT, OrderRef(symbol="X", client_order_id="", order_id="5"))
    assert by_venue_id.params == {"symbol": "X", "orderId": 5}
    assert protocol.private_url(USD_M, "wss://h/private", "k") == "wss://h/private/ws/k"
    assert protocol.private_url(COIN_M, "wss://h", "k") == "wss://h/ws/k"
