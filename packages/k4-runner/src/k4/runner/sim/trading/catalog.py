"""The endpoints of the three products: paths, methods, weights, parameters.

Sources: Binance REST and WebSocket API documentation, spot July 2026, futures November 2025 with
the changes to October 2026. Where a weight depends on parameters, `extra` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

NONE, KEY, SIGNED = "none", "key", "signed"

Weight = Callable[[Mapping[str, str]], int]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """op: the name that both transports, the fault script and the ledger use. verb, path: '' where
    there is no REST form; method: '' where there is none on the WebSocket API. orders: how many it
    counts on the order limits. trades: needs a key that may trade. free: weighs nothing when it
    succeeds. need, may: parameters, besides those of signing. one_of: at least one of them."""

    op: str
    verb: str = ""
    path: str = ""
    method: str = ""
    weight: int = 1
    extra: Weight | None = None
    orders: int = 0
    security: str = SIGNED
    trades: bool = False
    free: bool = False
    need: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()

    def weight_of(self, values: Mapping[str, str]) -> int:
        return self.weight if self.extra is None else self.extra(values)


_IDS = ("orderId", "origClientOrderId")
_ORDER = (
    "timeInForce",
    "quantity",
    "quoteOrderQty",
    "price",
    "newClientOrderId",
    "strategyId",
    "strategyType",
    "stopPrice",
    "trailingDelta",
    "icebergQty",
    "newOrderRespType",
    "selfTradePreventionMode",
    "pegPriceType",
    "pegOffsetValue",
    "pegOffsetType",
)
_NEW = ("symbol", "side", "type")
_PAGE = ("startTime", "endTime", "limit")


def _symbol_weight(with_symbol: int, without: int) -> Weight:
    return lambda values: with_symbol if "symbol" in values else without


SPOT: tuple[Endpoint, ...] = (
    Endpoint(op="ping", verb="GET", path="/api/v3/ping", method="ping", security=NONE),
    Endpoint(op="time", verb="GET", path="/api/v3/time", method="time", security=NONE),
    Endpoint(
        op="exchangeInfo",
        verb="GET",
        path="/api/v3/exchangeInfo",
        method="exchangeInfo",
        weight=20,
        security=NONE,
        may=("symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus"),
    ),
    Endpoint(
        op="order.place",
        verb="POST",
        path="/api/v3/order",
        method="order.place",
        orders=1,
        trades=True,
        free=True,
        need=_NEW,
        may=_ORDER,
    ),
    Endpoint(
        op="order.test",
        verb="POST",
        path="/api/v3/order/test",
        method="order.test",
        extra=lambda values: 20 if values.get("computeCommissionRates") == "true" else 1,
        trades=True,
        need=_NEW,
        may=(*_ORDER, "computeCommissionRates"),
    ),
    Endpoint(
        op="order.cancel",
        verb="DELETE",
        path="/api/v3/order",
        method="order.cancel",
        trades=True,
        free=True,
        need=("symbol",),
        may=(*_IDS, "newClientOrderId", "cancelRestrictions"),
        one_of=("origClientOrderId", "orderId"),
    ),
    Endpoint(
        op="openOrders.cancelAll",
        verb="DELETE",
        path="/api/v3/openOrders",
        method="openOrders.cancelAll",
        trades=True,
        free=True,
        need=("symbol",),
    ),
    Endpoint(
        op="order.cancelReplace",
        verb="POST",
        path="/api/v3/order/cancelReplace",
        method="order.cancelReplace",
        trades=True,
        free=True,
        need=(*_NEW, "cancelReplaceMode"),
        may=(
            *_ORDER,
            "cancelNewClientOrderId",
            "cancelOrigClientOrderId",
            "cancelOrderId",
            "cancelRestrictions",
            "orderRateLimitExceededMode",
        ),
        one_of=("cancelOrigClientOrderId", "cancelOrderId"),
    ),
    Endpoint(
        op="order.amend.keepPriority",
        verb="PUT",
        path="/api/v3/order/amend/keepPriority",
        method="order.amend.keepPriority",
        weight=4,
        trades=True,
        need=("symbol", "newQty"),
        may=(*_IDS, "newClientOrderId"),
        one_of=("origClientOrderId", "orderId"),
    ),
    Endpoint(
        op="order.status",
        verb="GET",
        path="/api/v3/order",
        method="order.status",
        weight=4,
        need=("symbol",),
        may=_IDS,
        one_of=("origClientOrderId", "orderId"),
    ),
    Endpoint(
        op="openOrders.status",
        verb="GET",
        path="/api/v3/openOrders",
        method="openOrders.status",
        extra=_symbol_weight(6, 80),
        may=("symbol",),
    ),
    Endpoint(
        op="allOrders",
        verb="GET",
        path="/api/v3/allOrders",
        method="allOrders",
        weight=20,
        need=("symbol",),
        may=("orderId", *_PAGE),
    ),
    Endpoint(
        op="myTrades",
        verb="GET",
        path="/api/v3/myTrades",
        method="myTrades",
        extra=lambda values: 5 if "orderId" in values else 20,
        need=("symbol",),
        may=("orderId", "fromId", *_PAGE),
    ),
    Endpoint(
        op="account.status",
        verb="GET",
        path="/api/v3/account",
        method="account.status",
        weight=20,
        may=("omitZeroBalances",),
    ),
    Endpoint(
        op="account.rateLimits.orders",
        verb="GET",
        path="/api/v3/rateLimit/order",
        method="account.rateLimits.orders",
        weight=40,
    ),
    Endpoint(
        op="order.amendments",
        verb="GET",
        path="/api/v3/order/amendments",
        method="order.amendments",
        weight=4,
        need=("symbol", "orderId"),
        may=("fromExecutionId", "limit"),
    ),
    Endpoint(
        op="myFilters",
        verb="GET",
        path="/api/v3/myFilters",
        method="myFilters",
        weight=40,
        need=("symbol",),
    ),
    Endpoint(op="session.logon", method="session.logon", weight=2),
    Endpoint(op="session.status", method="session.status", weight=2, security=NONE),
    Endpoint(op="session.logout", method="session.logout", weight=2, security=NONE),
    Endpoint(op="session.subscriptions", method="session.subscriptions", weight=2, security=NONE),
    Endpoint(
        op="userDataStream.subscribe",
        method="userDataStream.subscribe",
        weight=2,
        security=NONE,
    ),
    Endpoint(
        op="userDataStream.subscribe.signature",
        method="userDataStream.subscribe.signature",
        weight=2,
    ),
    Endpoint(
        op="userDataStream.unsubscribe",
        method="userDataStream.unsubscribe",
        weight=2,
        security=NONE,
        may=("subscriptionId",),
    ),
)

_FUTURES_ORDER = (
    "positionSide",
    "timeInForce",
    "quantity",
    "reduceOnly",
    "price",
    "newClientOrderId",
    "stopPrice",
    "closePosition",
    "activationPrice",
    "callbackRate",
    "workingType",
    "priceProtect",
    "newOrderRespType",
    "priceMatch",
    "selfTradePreventionMode",
    "goodTillDate",
)
_ALGO = (
    "positionSide",
    "timeInForce",
    "quantity",
    "price",
    "triggerPrice",
    "workingType",
    "priceMatch",
    "closePosition",
    "priceProtect",
    "reduceOnly",
    "activatePrice",
    "callbackRate",
    "clientAlgoId",
    "newOrderRespType",
    "selfTradePreventionMode",
    "goodTillDate",
)
_MODIFY = ("orderId", "origClientOrderId", "priceMatch", "modifyId")
_BOTH_IDS = ("origClientOrderId", "orderId")


def _futures(api: str, *, usd: bool) -> tuple[Endpoint, ...]:
    """What both futures products have, under their own paths."""
    account = "/fapi/v3" if usd else "/dapi/v1"
    version = "v2/" if usd else ""
    return (
        Endpoint(op="ping", verb="GET", path=f"{api}/ping", security=NONE),
        Endpoint(op="time", verb="GET", path=f"{api}/time", security=NONE),
        Endpoint(op="exchangeInfo", verb="GET", path=f"{api}/exchangeInfo", security=NONE),
        Endpoint(
            op="order.place",
            verb="POST",
            path=f"{api}/order",
            method="order.place",
            weight=0,
            orders=1,
            trades=True,
            need=_NEW,
            may=_FUTURES_ORDER,
        ),
        Endpoint(
            op="order.modify",
            verb="PUT",
            path=f"{api}/order",
            method="order.modify",
            orders=1,
            trades=True,
            need=("symbol", "side", "quantity", "price"),
            may=_MODIFY,
            one_of=_BOTH_IDS,
        ),
        Endpoint(
            op="order.cancel",
            verb="DELETE",
            path=f"{api}/order",
            method="order.cancel",
            trades=True,
            need=("symbol",),
            may=_IDS,
            one_of=_BOTH_IDS,
        ),
        Endpoint(
            op="order.status",
            verb="GET",
            path=f"{api}/order",
            method="order.status",
            need=("symbol",),
            may=_IDS,
            one_of=_BOTH_IDS,
        ),
        Endpoint(
            op="batch.place",
            verb="POST",
            path=f"{api}/batchOrders",
            weight=5,
            orders=5,
            trades=True,
            need=("batchOrders",),
        ),
        Endpoint(
            op="batch.modify",
            verb="PUT",
            path=f"{api}/batchOrders",
            weight=5,
            orders=5,
            trades=True,
            need=("batchOrders",),
        ),
        Endpoint(
            op="batch.cancel",
            verb="DELETE",
            path=f"{api}/batchOrders",
            trades=True,
            need=("symbol",),
            may=("orderIdList", "origClientOrderIdList"),
            one_of=("orderIdList", "origClientOrderIdList"),
        ),
        Endpoint(
            op="openOrders.cancelAll",
            verb="DELETE",
            path=f"{api}/allOpenOrders",
            trades=True,
            need=("symbol",),
        ),
        Endpoint(
            op="countdownCancelAll",
            verb="POST",
            path=f"{api}/countdownCancelAll",
            weight=10,
            trades=True,
            need=("symbol", "countdownTime"),
        ),
        Endpoint(
            op="openOrder",
            verb="GET",
            path=f"{api}/openOrder",
            need=("symbol",),
            may=_IDS,
            one_of=_BOTH_IDS,
        ),
        Endpoint(
            op="openOrders.status",
            verb="GET",
            path=f"{api}/openOrders",
            extra=_symbol_weight(1, 40),
            may=("symbol",) if usd else ("symbol", "pair"),
        ),
        Endpoint(
            op="allOrders",
            verb="GET",
            path=f"{api}/allOrders",
            weight=5 if usd else 20,
            may=("symbol", "pair", "orderId", *_PAGE),
        ),
        Endpoint(
            op="userTrades",
            verb="GET",
            path=f"{api}/userTrades",
            weight=5 if usd else 20,
            may=("symbol", "pair", "orderId", "fromId", *_PAGE),
        ),
        Endpoint(
            op="account.position",
            verb="GET",
            path=f"{account}/positionRisk",
            method=f"{version}account.position",
            weight=5 if usd else 1,
            may=("symbol",) if usd else ("marginAsset", "pair"),
        ),
        Endpoint(
            op="account.balance",
            verb="GET",
            path=f"{account}/balance",
            method=f"{version}account.balance",
            weight=5 if usd else 1,
        ),
        Endpoint(
            op="account.status",
            verb="GET",
            path=f"{account}/account",
            method=f"{version}account.status",
            weight=5,
        ),
        Endpoint(
            op="leverage",
            verb="POST",
            path=f"{api}/leverage",
            trades=True,
            need=("symbol", "leverage"),
        ),
        Endpoint(op="positionMode", verb="GET", path=f"{api}/positionSide/dual", weight=30),
        Endpoint(
            op="positionMode.set",
            verb="POST",
            path=f"{api}/positionSide/dual",
            trades=True,
            need=("dualSidePosition",),
        ),
        Endpoint(
            op="forceOrders",
            verb="GET",
            path=f"{api}/forceOrders",
            extra=_symbol_weight(20, 50),
            may=("symbol", "autoCloseType", *_PAGE),
        ),
        Endpoint(
            op="userDataStream.start",
            verb="POST",
            path=f"{api}/listenKey",
            method="userDataStream.start",
            security=KEY,
        ),
        Endpoint(
            op="userDataStream.ping",
            verb="PUT",
            path=f"{api}/listenKey",
            method="userDataStream.ping",
            security=KEY,
            may=("listenKey",),
        ),
        Endpoint(
            op="userDataStream.stop",
            verb="DELETE",
            path=f"{api}/listenKey",
            method="userDataStream.stop",
            security=KEY,
            may=("listenKey",),
        ),
        Endpoint(
            op="algoOrder.place",
            verb="POST",
            path=f"{api}/algoOrder",
            method="algoOrder.place" if usd else "",
            weight=0,
            orders=1,
            trades=True,
            need=("algoType", *_NEW),
            may=_ALGO,
        ),
        Endpoint(
            op="algoOrder.cancel",
            verb="DELETE",
            path=f"{api}/algoOrder",
            method="algoOrder.cancel" if usd else "",
            trades=True,
            may=("algoId", "clientAlgoId"),
            one_of=("algoId", "clientAlgoId"),
        ),
        Endpoint(
            op="openAlgoOrders",
            verb="GET",
            path=f"{api}/openAlgoOrders",
            extra=_symbol_weight(1, 40),
            may=("algoType", "symbol", "algoId"),
        ),
        Endpoint(op="session.logon", method="session.logon", weight=2),
        Endpoint(op="session.status", method="session.status", weight=2, security=NONE),
        Endpoint(op="session.logout", method="session.logout", weight=2, security=NONE),
    )


_USD_M_ALONE: tuple[Endpoint, ...] = (
    Endpoint(
        op="order.test",
        verb="POST",
        path="/fapi/v1/order/test",
        weight=0,
        trades=True,
        need=_NEW,
        may=_FUTURES_ORDER,
    ),
    Endpoint(op="accountConfig", verb="GET", path="/fapi/v1/accountConfig", weight=5),
    Endpoint(
        op="symbolConfig", verb="GET", path="/fapi/v1/symbolConfig", weight=5, may=("symbol",)
    ),
    Endpoint(
        op="algoOrder.status",
        verb="GET",
        path="/fapi/v1/algoOrder",
        may=("algoId", "clientAlgoId"),
        one_of=("algoId", "clientAlgoId"),
    ),
    Endpoint(
        op="algoOpenOrders.cancelAll",
        verb="DELETE",
        path="/fapi/v1/algoOpenOrders",
        trades=True,
        need=("symbol",),
    ),
    Endpoint(
        op="allAlgoOrders",
        verb="GET",
        path="/fapi/v1/allAlgoOrders",
        weight=5,
        need=("symbol",),
        may=("algoId", "page", *_PAGE),
    ),
    # The first versions are still served on the WebSocket API.
    Endpoint(op="account.position", method="account.position", weight=5, may=("symbol",)),
    Endpoint(op="account.balance", method="account.balance", weight=5),
    Endpoint(op="account.status", method="account.status", weight=5),
)

CATALOG: Mapping[str, tuple[Endpoint, ...]] = {
    "spot": SPOT,
    "ubase": (*_futures("/fapi/v1", usd=True), *_USD_M_ALONE),
    "cbase": _futures("/dapi/v1", usd=False),
}


def by_method(endpoints: Iterable[Endpoint]) -> dict[str, Endpoint]:
    return {endpoint.method: endpoint for endpoint in endpoints if endpoint.method}


def by_route(endpoints: Iterable[Endpoint]) -> dict[tuple[str, str], Endpoint]:
    return {(item.verb, item.path): item for item in endpoints if item.path}
