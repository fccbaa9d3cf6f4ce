"""Binance's answers and events as values, for the three products. Pure.

A body that is not what the documentation says raises `Malformed`; whoever read it counts and drops
it. Letters of events differ by case alone (`c` and `C`), so the names are spelt out.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TypeVar

import msgspec

from k4.core.trading import (
    ZERO,
    AccountType,
    Balance,
    Direction,
    Fill,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
)
from k4.td.exchanges.binance.protocol import Product
from k4.td.venue import Report

_T = TypeVar("_T")


class Malformed(ValueError):
    """Bytes that are not what the venue's documentation describes."""


def decode(body: bytes | str | msgspec.Raw, kind: type[_T]) -> _T:
    """`body` as a `kind`. Raises Malformed."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None


# Vocabulary.

_STATUS = {
    "NEW": OrderStatus.NEW,
    "PENDING_NEW": OrderStatus.PENDING_NEW,
    "PARTIALLY_FILLED": OrderStatus.PARTIALLY_FILLED,
    "FILLED": OrderStatus.FILLED,
    "CANCELED": OrderStatus.CANCELED,
    "PENDING_CANCEL": OrderStatus.PENDING_CANCEL,
    "REJECTED": OrderStatus.REJECTED,
    "EXPIRED": OrderStatus.EXPIRED,
    "EXPIRED_IN_MATCH": OrderStatus.EXPIRED,
}

_FUTURES_REASONS = {
    "1": "self-trade prevention",
    "2": "unfilled rest of an IOC order",
    "3": "rest of an IOC order, self-trade prevention",
    "4": "pushed out by reduce-only or reversal",
    "5": "liquidation",
    "6": "GTE condition unmet",
    "7": "delisting",
    "8": "stop triggered",
    "9": "unfilled rest of a market order",
}


def order_status(text: str) -> OrderStatus:
    """A status that is not in the documentation is unknown, never taken for a known one."""
    return _STATUS.get(text, OrderStatus.UNKNOWN)


_ALGO_STATUS = {
    "NEW": OrderStatus.NEW,
    "TRIGGERING": OrderStatus.NEW,
    "TRIGGERED": OrderStatus.EXPIRED,  # the order that it became goes its own way
    "FINISHED": OrderStatus.EXPIRED,
    "CANCELED": OrderStatus.CANCELED,
    "REJECTED": OrderStatus.REJECTED,
    "EXPIRED": OrderStatus.EXPIRED,
}


def algo_status(text: str) -> OrderStatus:
    """The same of a conditional order."""
    return _ALGO_STATUS.get(text, OrderStatus.UNKNOWN)


def algo_id(number: int) -> str:
    """The id of a conditional order, apart from those of orders."""
    return f"algo:{number}"


def order_type(kind: str, time_in_force: str) -> OrderType:
    if "MARKET" in kind or kind in ("STOP_LOSS", "TAKE_PROFIT"):
        return OrderType.MARKET
    if kind == "LIMIT_MAKER" or time_in_force in ("GTX", "RPI"):
        return OrderType.POST_ONLY
    return _TIF.get(time_in_force, OrderType.GTC)


_TIF = {"IOC": OrderType.IOC, "FOK": OrderType.FOK, "GTD": OrderType.GTD}


def direction_of(text: str) -> Direction:
    return Direction.SELL if text == "SELL" else Direction.BUY


def position_side(text: str) -> PositionSide:
    return _SIDES.get(text, PositionSide.BOTH)


_SIDES = {"LONG": PositionSide.LONG, "SHORT": PositionSide.SHORT}


def expiry(text: str, kind: str) -> str:
    reason = "" if text in ("", "NONE", "0") else _FUTURES_REASONS.get(text, text)
    plain = kind in ("", "LIMIT", "MARKET", "LIMIT_MAKER")
    return reason if plain else f"venue type {kind} {reason}".strip()


# Answers about orders.


class _AnswerFill(msgspec.Struct, rename="camel"):
    price: Decimal
    qty: Decimal
    trade_id: int
    commission: Decimal = ZERO
    commission_asset: str = ""


class _Order(msgspec.Struct, rename="camel"):
    symbol: str
    order_id: int
    client_order_id: str
    orig_client_order_id: str = ""
    status: str = ""  # absent in an ACK
    side: str = ""
    type: str = ""
    orig_type: str = ""
    time_in_force: str = ""
    price: Decimal = ZERO
    orig_qty: Decimal = ZERO
    qty: Decimal = ZERO  # amended spot orders
    executed_qty: Decimal = ZERO
    cummulative_quote_qty: Decimal = ZERO  # spot spells it so
    cumulative_quote_qty: Decimal = ZERO  # amended spot orders
    avg_price: Decimal = ZERO  # futures, GET alone since June 2026
    reduce_only: bool = False
    position_side: str = ""
    good_till_date: int = 0
    transact_time: int = 0
    update_time: int = 0
    expiry_reason: str = ""
    fills: list[_AnswerFill] = []


def order_report(product: Product, body: bytes | msgspec.Raw) -> Report:
    """The answer to place, cancel, modify or query."""
    return _report(product, decode(body, _Order))


def order_reports(product: Product, body: bytes | msgspec.Raw) -> list[Report]:
    """Open orders. An order list inside (`orderReports`) is left to its own orders' entries."""
    return [_report(product, order) for order in decode(body, list[_Order])]


class _Amended(msgspec.Struct, rename="camel"):
    amended_order: _Order
    transact_time: int = 0


def amend_report(product: Product, body: bytes | msgspec.Raw) -> Report:
    """Spot wraps the order; futures answer with it."""
    if not product.spot:
        return order_report(product, body)
    answer = decode(body, _Amended)
    order = answer.amended_order
    order.transact_time = answer.transact_time
    # Here orig_client_order_id is the id before the amend; K4 keeps the id, so both are the same.
    order.orig_client_order_id = ""
    order.orig_qty = order.qty
    return _report(product, order)


def _report(product: Product, order: _Order) -> Report:
    quote = order.cummulative_quote_qty or order.cumulative_quote_qty
    executed = order.executed_qty
    average = quote / executed if quote > 0 and executed > 0 else order.avg_price
    # In the answer to a spot cancel `clientOrderId` names the cancel, the other one the order.
    client = order.orig_client_order_id or order.client_order_id
    side = direction_of(order.side)
    return Report(
        symbol=order.symbol,
        client_order_id=client,
        order_id=str(order.order_id),
        status=order_status(order.status) if order.status else OrderStatus.NEW,
        direction=side,
        order_type=order_type(order.orig_type or order.type, order.time_in_force),
        quantity=order.orig_qty,
        price=order.price,
        executed=executed,
        average=average,
        reduce_only=order.reduce_only,
        position_side=position_side(order.position_side),
        good_till_us=order.good_till_date * 1000,
        time_us=(order.transact_time or order.update_time) * 1000,
        reason=expiry(order.expiry_reason, order.orig_type or order.type),
        figures=bool(order.status),
        fills=tuple(
            Fill(
                symbol=order.symbol,
                account_type=product.account,
                direction=side,
                client_order_id=client,
                order_id=str(order.order_id),
                trade_id=str(fill.trade_id),
                price=fill.price,
                quantity=fill.qty,
                commission=fill.commission,
                commission_asset=fill.commission_asset,
                trade_time_us=order.transact_time * 1000,
            )
            for fill in order.fills
        ),
    )


class _AlgoOrder(msgspec.Struct, rename="camel"):
    symbol: str
    algo_id: int
    side: str = ""
    order_type: str = ""
    quantity: Decimal = ZERO
    price: Decimal = ZERO
    position_side: str = ""
    reduce_only: bool = False


def algo_reports(body: bytes | msgspec.Raw) -> list[Report]:
    """USD-M conditional orders. K4 places none, so they are foreign; `algo:` marks their ids. Their
    client ids are left out: they are of another kind, and the order that follows has the same."""
    return [
        Report(
            symbol=order.symbol,
            client_order_id="",
            order_id=algo_id(order.algo_id),
            status=OrderStatus.NEW,
            direction=direction_of(order.side),
            order_type=order_type(order.order_type, ""),
            quantity=order.quantity,
            price=order.price,
            reduce_only=order.reduce_only,
            position_side=position_side(order.position_side),
            reason=f"venue type {order.order_type}",
        )
        for order in decode(body, list[_AlgoOrder])
    ]


# Answers about the account.


class _Trade(msgspec.Struct, rename="camel"):
    symbol: str
    id: int
    order_id: int
    price: Decimal
    qty: Decimal
    commission: Decimal = ZERO
    commission_asset: str = ""
    time: int = 0
    is_buyer: bool = False  # spot
    is_maker: bool = False  # spot
    buyer: bool = False  # futures
    maker: bool = False


def trade_fills(product: Product, body: bytes | msgspec.Raw) -> list[Fill]:
    """Own executions. The venue gives its order id alone; the client id is looked up by it."""
    return [
        Fill(
            symbol=trade.symbol,
            account_type=product.account,
            direction=Direction.BUY if trade.is_buyer or trade.buyer else Direction.SELL,
            client_order_id="",
            order_id=str(trade.order_id),
            trade_id=str(trade.id),
            price=trade.price,
            quantity=trade.qty,
            commission=trade.commission,
            commission_asset=trade.commission_asset,
            is_maker=trade.is_maker or trade.maker,
            trade_time_us=trade.time * 1000,
        )
        for trade in decode(body, list[_Trade])
    ]


class _PositionRisk(msgspec.Struct, rename="camel"):
    symbol: str
    position_amt: Decimal
    entry_price: Decimal = ZERO
    un_realized_profit: Decimal = ZERO
    position_side: str = ""
    update_time: int = 0


def position_list(product: Product, body: bytes | msgspec.Raw) -> list[Position]:
    return [
        Position(
            symbol=entry.symbol,
            account_type=product.account,
            quantity=entry.position_amt,
            entry_price=entry.entry_price,
            unrealized_pnl=entry.un_realized_profit,
            position_side=position_side(entry.position_side),
            update_time_us=entry.update_time * 1000,
        )
        for entry in decode(body, list[_PositionRisk])
        if entry.position_amt
    ]


class _SpotBalance(msgspec.Struct):
    asset: str
    free: Decimal
    locked: Decimal


class _Account(msgspec.Struct, rename="camel"):
    balances: list[_SpotBalance]
    update_time: int = 0


class _FuturesBalance(msgspec.Struct, rename="camel"):
    asset: str
    balance: Decimal
    available_balance: Decimal = ZERO
    update_time: int = 0


def balance_list(product: Product, body: bytes | msgspec.Raw) -> list[Balance]:
    account = product.account
    if product.spot:
        answer = decode(body, _Account)
        time_us = answer.update_time * 1000
        return [
            _balance(entry.asset, account, entry.free, entry.locked, time_us)
            for entry in answer.balances
        ]
    return [
        _balance(
            entry.asset,
            account,
            entry.available_balance,
            entry.balance - entry.available_balance,
            entry.update_time * 1000,
        )
        for entry in decode(body, list[_FuturesBalance])
    ]


def _balance(asset: str, account: AccountType, free: Decimal, locked: Decimal, us: int) -> Balance:
    return Balance(asset=asset, account_type=account, free=free, locked=locked, update_time_us=us)


class _Time(msgspec.Struct, rename="camel"):
    server_time: int


def server_time_ms(body: bytes | msgspec.Raw) -> int:
    return decode(body, _Time).server_time


class _ListenKey(msgspec.Struct, rename="camel"):
    listen_key: str


def listen_key_text(body: bytes | msgspec.Raw) -> str:
    return decode(body, _ListenKey).listen_key


class _Mode(msgspec.Struct, rename="camel"):
    dual_side_position: bool


def hedge_mode(body: bytes | msgspec.Raw) -> bool:
    return decode(body, _Mode).dual_side_position


# Failures.


class ErrorBody(msgspec.Struct):
    """`{"code": -1121, "msg": "Invalid symbol."}`; `data` where there is more."""

    code: int
    msg: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


def error_body(body: bytes) -> ErrorBody:
    """The error in a REST body; code 0 and the beginning of the text where it is none."""
    try:
        return msgspec.json.decode(body, type=ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body[:200].decode("utf-8", "replace").strip()
        return ErrorBody(code=0, msg=text)


class ReplaceBody(msgspec.Struct, rename="camel"):
    """A cancel-and-replace: results are SUCCESS, FAILURE or NOT_ATTEMPTED."""

    cancel_result: str
    new_order_result: str
    cancel_response: msgspec.Raw = msgspec.Raw(b"null")
    new_order_response: msgspec.Raw = msgspec.Raw(b"null")


class RateCount(msgspec.Struct, rename="camel"):
    """An entry of a `rateLimits` array."""

    rate_limit_type: str
    interval: str
    interval_num: int
    limit: int
    count: int = 0


class WsError(msgspec.Struct):
    code: int
    msg: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class Frame(msgspec.Struct, rename={"rate_limits": "rateLimits"}):
    """A frame of a WebSocket API: an answer (`status`) or an event (`event`)."""

    id: str | int | None = None
    status: int = 0
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: WsError | None = None
    rate_limits: list[RateCount] = []
    event: msgspec.Raw = msgspec.Raw(b"")


class _RetryAfter(msgspec.Struct, rename="camel"):
    retry_after: int = 0


def retry_after_ms(data: msgspec.Raw) -> int:
    """Epoch ms in `error.data.retryAfter`, 0 where there is none."""
    try:
        return msgspec.json.decode(data, type=_RetryAfter).retry_after
    except msgspec.DecodeError:
        return 0
