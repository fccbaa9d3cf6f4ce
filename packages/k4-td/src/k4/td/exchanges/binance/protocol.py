"""Requests to Binance as values, for spot, USD-M and COIN-M. Pure: nothing is sent or signed here.

A `Call` knows both its REST form and, where one exists, its WebSocket API method. Sources: Binance
REST and WebSocket API documentation for the three products, July 2026.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import IntEnum

import msgspec

from k4.core.trading import (
    AccountType,
    InvalidOrder,
    NewOrder,
    OrderType,
    PositionSide,
    decimal_text,
)
from k4.td.signing import Value
from k4.td.venue import OrderRef

MAX_RECV_WINDOW = 60_000.0
GTD_LEAD_US = 600_000_000
"""A GTD order must live longer than 600 s (USD-M)."""

# Spot documents no pattern; this is the set that both products take.
CLIENT_ID = re.compile(r"[a-zA-Z0-9_-]{1,36}")
FUTURES_CLIENT_ID = re.compile(r"[.A-Z:/a-z0-9_-]{1,36}")


class Lane(IntEnum):
    """Who goes first when the venue's limits are near."""

    CANCEL = 0
    ORDER = 1
    QUERY = 2


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request. method: of the WebSocket API, '' where there is none. weight: request weight.
    orders: how many it counts on the order limits. signed: needs timestamp and signature; keyed:
    needs the key. recv_window: ms."""

    verb: str
    path: str
    params: Mapping[str, Value] = {}
    method: str = ""
    lane: Lane = Lane.QUERY
    weight: int = 1
    orders: int = 0
    signed: bool = True
    keyed: bool = True
    recv_window: float = 0.0


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """Where a product's endpoints are. events: its user data arrives on the WebSocket API.
    connect_weight: what a handshake with that API weighs."""

    account: AccountType
    api: str
    events: bool = False
    connect_weight: int = 5

    @property
    def spot(self) -> bool:
        return self.account is AccountType.SPOT


SPOT = Product(account=AccountType.SPOT, api="/api/v3", events=True, connect_weight=2)
USD_M = Product(account=AccountType.UBASE, api="/fapi/v1")
COIN_M = Product(account=AccountType.CBASE, api="/dapi/v1")
PRODUCTS = {product.account: product for product in (SPOT, USD_M, COIN_M)}


# Orders.


def validate(product: Product, order: NewOrder, hedge: bool | None, now_us: int) -> None:
    """Raise InvalidOrder for what the product cannot do. hedge: the account's position mode, None
    where it is not known."""
    pattern = CLIENT_ID if product.spot else FUTURES_CLIENT_ID
    if not pattern.fullmatch(order.client_order_id):
        raise InvalidOrder(
            "client_order_id",
            f"client_order_id {order.client_order_id[:60]!r} is not of the venue's pattern",
            remedy=f"1 to 36 characters of {pattern.pattern[:-6]}",
        )
    _validate_window(product, order)
    _validate_time(product, order, now_us)
    if product.spot:
        if order.reduce_only or order.position_side is not PositionSide.BOTH:
            raise InvalidOrder(
                "position_side",
                "spot has no reduce_only and no position_side",
                remedy="leave both out",
            )
        return
    if order.strategy_id:
        raise InvalidOrder(
            "strategy_id",
            "futures orders carry no strategy_id",
            remedy="leave it out, or say it in client_order_id",
        )
    _validate_side(order, hedge)


def _validate_window(product: Product, order: NewOrder) -> None:
    window = order.recv_window
    if not 0 <= window <= MAX_RECV_WINDOW:
        raise InvalidOrder(
            "recv_window",
            "recv_window is from 1 to 60000 ms",
            remedy="leave it out for the configured one",
        )
    if not product.spot and window != int(window):
        raise InvalidOrder(
            "recv_window", "futures take whole milliseconds", remedy=f"say {math.ceil(window)}"
        )


def _validate_time(product: Product, order: NewOrder, now_us: int) -> None:
    if order.order_type is not OrderType.GTD:
        if order.good_till_us:
            raise InvalidOrder(
                "good_till_us",
                f"good_till_us goes with gtd, not {order.order_type}",
                remedy="leave good_till_us out, or place a gtd order",
            )
        return
    if product.account is not AccountType.UBASE:
        raise InvalidOrder(
            "order_type",
            f"gtd does not exist on {product.account}",
            remedy="place a gtc order and cancel it yourself",
        )
    if order.good_till_us <= now_us + GTD_LEAD_US + 1_000_000:
        raise InvalidOrder(
            "good_till_us", "gtd must end more than 600 s from now", remedy="raise good_till_us"
        )


def _validate_side(order: NewOrder, hedge: bool | None) -> None:
    both = order.position_side is PositionSide.BOTH
    if hedge is True and both:
        raise InvalidOrder(
            "position_side",
            "the account is in hedge mode",
            remedy="give position_side long or short",
        )
    if hedge is True and order.reduce_only:
        raise InvalidOrder(
            "reduce_only",
            "reduce_only does not exist in hedge mode",
            remedy="position_side decides: sell long, or buy short, to reduce",
        )
    if hedge is False and not both:
        raise InvalidOrder(
            "position_side",
            "the account is in one-way mode",
            remedy="leave position_side out, or switch the account to hedge mode",
        )


_SPOT_TYPES: dict[OrderType, tuple[str, str]] = {
    OrderType.MARKET: ("MARKET", ""),
    OrderType.LIMIT: ("LIMIT", "GTC"),
    OrderType.GTC: ("LIMIT", "GTC"),
    OrderType.IOC: ("LIMIT", "IOC"),
    OrderType.FOK: ("LIMIT", "FOK"),
    OrderType.POST_ONLY: ("LIMIT_MAKER", ""),
}
_FUTURES_TYPES = _SPOT_TYPES | {
    OrderType.POST_ONLY: ("LIMIT", "GTX"),
    OrderType.GTD: ("LIMIT", "GTD"),
}


def order_params(product: Product, order: NewOrder) -> dict[str, Value]:
    """What a new order says; `validate` has passed."""
    kind, time_in_force = (_SPOT_TYPES if product.spot else _FUTURES_TYPES)[order.order_type]
    params: dict[str, Value] = {
        "symbol": order.symbol,
        "side": order.direction.upper(),
        "type": kind,
        "quantity": decimal_text(order.quantity),
        "newClientOrderId": order.client_order_id,
        # Spot reports the fills of an immediate match in the answer only with FULL.
        "newOrderRespType": "FULL" if product.spot else "RESULT",
    }
    if time_in_force:
        params["timeInForce"] = time_in_force
    if order.order_type is not OrderType.MARKET:
        params["price"] = decimal_text(order.price)
    if product.spot:
        if order.strategy_id:
            params["strategyId"] = order.strategy_id
        return params
    # The default differs between REST and WebSocket texts, so it is always said.
    params["selfTradePreventionMode"] = "EXPIRE_MAKER"
    if order.reduce_only:
        params["reduceOnly"] = "true"
    if order.position_side is not PositionSide.BOTH:
        params["positionSide"] = order.position_side.upper()
    if order.order_type is OrderType.GTD:
        params["goodTillDate"] = order.good_till_us // 1_000_000 * 1000
    return params


def place(product: Product, order: NewOrder) -> Call:
    return Call(
        verb="POST",
        path=f"{product.api}/order",
        method="order.place",
        params=order_params(product, order),
        lane=Lane.ORDER,
        weight=1 if product.spot else 0,
        orders=1,
        recv_window=order.recv_window,
    )


def _ref(ref: OrderRef) -> dict[str, Value]:
    """By the client's id alone: it is known before the venue's, and is the same for both."""
    if ref.client_order_id:
        return {"symbol": ref.symbol, "origClientOrderId": ref.client_order_id}
    return {"symbol": ref.symbol, "orderId": int(ref.order_id)}


def cancel(product: Product, ref: OrderRef) -> Call:
    return Call(
        verb="DELETE",
        path=f"{product.api}/order",
        method="order.cancel",
        params=_ref(ref),
        lane=Lane.CANCEL,
        recv_window=ref.recv_window,
    )


def query(product: Product, ref: OrderRef) -> Call:
    return Call(
        verb="GET",
        path=f"{product.api}/order",
        method="order.status",
        params=_ref(ref),
        weight=4 if product.spot else 1,
    )


def amend(product: Product, ref: OrderRef, order: NewOrder) -> Call:
    """Spot lowers the quantity and keeps the client id (it may be used again, and without it the
    venue would make one up); futures need quantity and price both."""
    quantity = decimal_text(order.quantity)
    if product.spot:
        return Call(
            verb="PUT",
            path=f"{product.api}/order/amend/keepPriority",
            method="order.amend.keepPriority",
            params={**_ref(ref), "newQty": quantity, "newClientOrderId": ref.client_order_id},
            lane=Lane.ORDER,
            weight=4,
            recv_window=ref.recv_window,
        )
    return Call(
        verb="PUT",
        path=f"{product.api}/order",
        method="order.modify",
        params={
            **_ref(ref),
            "side": order.direction.upper(),
            "quantity": quantity,
            "price": decimal_text(order.price),
        },
        lane=Lane.ORDER,
        orders=1,
        recv_window=ref.recv_window,
    )


def replace(ref: OrderRef, order: NewOrder) -> Call:
    """Spot: cancel an order without a fill, place another. ONLY_NEW makes the venue refuse where a
    fill came first, so that the two together cannot fill more than was wanted."""
    return Call(
        verb="POST",
        path="/api/v3/order/cancelReplace",
        method="order.cancelReplace",
        params={
            **order_params(SPOT, order),
            "cancelReplaceMode": "STOP_ON_FAILURE",
            "cancelOrigClientOrderId": ref.client_order_id,
            "cancelRestrictions": "ONLY_NEW",
        },
        lane=Lane.ORDER,
        orders=1,
        recv_window=order.recv_window,
    )


def cancel_all(product: Product, symbol: str) -> Call:
    path = "openOrders" if product.spot else "allOpenOrders"
    return Call(
        verb="DELETE",
        path=f"{product.api}/{path}",
        method="openOrders.cancelAll" if product.spot else "",
        params={"symbol": symbol},
        lane=Lane.CANCEL,
    )


def cancel_all_algo(symbol: str) -> Call:
    """USD-M conditional orders, which the plain cancel-all does not see."""
    return Call(
        verb="DELETE", path="/fapi/v1/algoOpenOrders", params={"symbol": symbol}, lane=Lane.CANCEL
    )


# Queries.


def open_orders(product: Product, symbol: str = "") -> Call:
    weight = (6 if symbol else 80) if product.spot else (1 if symbol else 40)
    return Call(
        verb="GET",
        path=f"{product.api}/openOrders",
        method="openOrders.status" if product.spot else "",
        params={"symbol": symbol} if symbol else {},
        weight=weight,
    )


def open_algo_orders() -> Call:
    return Call(verb="GET", path="/fapi/v1/openAlgoOrders", weight=40)


def trades(product: Product, symbol: str, from_id: int | None, since_ms: int) -> Call:
    """Own executions, ascending, at most 1000: from an id on, or since a time."""
    params: dict[str, Value] = {"symbol": symbol, "limit": 1000}
    if from_id is not None:
        params["fromId"] = from_id
    else:
        params["startTime"] = since_ms
    return Call(
        verb="GET",
        path=f"{product.api}/{'myTrades' if product.spot else 'userTrades'}",
        method="myTrades" if product.spot else "",
        params=params,
        weight=20,
    )


def order_trades(product: Product, symbol: str, order_id: str) -> Call:
    """The executions of one order."""
    return Call(
        verb="GET",
        path=f"{product.api}/{'myTrades' if product.spot else 'userTrades'}",
        method="myTrades" if product.spot else "",
        params={"symbol": symbol, "orderId": int(order_id)},
        weight=5,
    )


def positions(product: Product) -> Call:
    path = "/fapi/v3/positionRisk" if product is USD_M else "/dapi/v1/positionRisk"
    return Call(verb="GET", path=path, weight=5)


def balances(product: Product) -> Call:
    if product.spot:
        return Call(
            verb="GET",
            path="/api/v3/account",
            method="account.status",
            params={"omitZeroBalances": "true"},
            weight=20,
        )
    path = "/fapi/v3/balance" if product is USD_M else "/dapi/v1/balance"
    return Call(verb="GET", path=path, weight=5)


def position_mode(product: Product) -> Call:
    return Call(verb="GET", path=f"{product.api}/positionSide/dual", weight=30)


def exchange_info(product: Product) -> Call:
    return Call(
        verb="GET",
        path=f"{product.api}/exchangeInfo",
        weight=20 if product.spot else 1,
        signed=False,
        keyed=False,
    )


def server_time(product: Product) -> Call:
    return Call(verb="GET", path=f"{product.api}/time", signed=False, keyed=False)


# Sessions and streams.


def listen_key(product: Product, verb: str) -> Call:
    """POST creates (or returns and extends) it, PUT extends, DELETE ends it. Key header only."""
    return Call(verb=verb, path=f"{product.api}/listenKey", signed=False)


LOGON = Call(verb="", path="", method="session.logon", weight=2)
SUBSCRIBE = Call(
    verb="", path="", method="userDataStream.subscribe", weight=2, signed=False, keyed=False
)
SUBSCRIBE_SIGNED = Call(verb="", path="", method="userDataStream.subscribe.signature", weight=2)


def private_url(product: Product, base: str, key: str) -> str:
    """Where the events of a listen key arrive. USD-M: `base` ends in `/private`; the unrouted path
    connects but stays silent since April 2026."""
    return f"{base.rstrip('/')}/ws/{key}"
