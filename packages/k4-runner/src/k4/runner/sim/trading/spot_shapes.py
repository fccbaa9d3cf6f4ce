"""Spot orders, fills and accounts as the JSON of answers and events. Pure.

Sources: Binance spot `rest-api.md`, `user-data-stream.md` (July 2026). Decimals have 8 places.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from k4.runner.sim.trading.orders import Order, Trade
from k4.runner.sim.trading.rules import Rules, served
from k4.runner.sim.trading.wallets import SpotWallet

Json = dict[str, Any]
ZERO = Decimal(0)

# What an order may expire of, as `expiryReason` and `eR` call it; others have no such field.
_REASONS = (
    "UNFILLED_IOC_QUANTITY_EXPIRED",
    "UNFILLED_FOK_ORDER_EXPIRED",
    "INSUFFICIENT_LIQUIDITY",
    "EXCHANGE_CANCELED",
)


def text(value: Decimal) -> str:
    return f"{value:.8f}"


# -- answers --------------------------------------------------------------------------------------


def ack(order: Order) -> Json:
    return {
        "symbol": order.symbol,
        "orderId": order.number,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        "transactTime": order.created_ms,
    }


def result(order: Order) -> Json:
    return {**ack(order), **_figures(order), "workingTime": order.working_ms, **_extras(order)}


def full(order: Order, trades: Sequence[Trade]) -> Json:
    fills = [
        {
            "price": text(trade.price),
            "qty": text(trade.quantity),
            "commission": text(trade.commission),
            "commissionAsset": trade.asset,
            "tradeId": trade.id,
        }
        for trade in trades
    ]
    return {**result(order), "fills": fills}


def _figures(order: Order) -> Json:
    return {
        "price": text(order.price),
        "origQty": text(order.quantity),
        "executedQty": text(order.executed),
        "origQuoteOrderQty": text(order.quote_quantity),
        "cummulativeQuoteQty": text(order.quote),
        "status": order.status,
        "timeInForce": order.tif,
        "type": order.kind,
        "side": order.side,
    }


def _extras(order: Order) -> Json:
    found: Json = {"selfTradePreventionMode": order.prevention.value}
    if order.prevented:
        found["preventedQuantity"] = text(order.prevented)
    if order.strategy_id is not None:
        found["strategyId"] = order.strategy_id
    if order.strategy_type is not None:
        found["strategyType"] = order.strategy_type
    if order.reason in _REASONS:
        found["expiryReason"] = order.reason
    return found


def queried(order: Order) -> Json:
    """As order.status, openOrders and allOrders show it."""
    return {
        "symbol": order.symbol,
        "orderId": order.number,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        **_figures(order),
        "stopPrice": text(ZERO),
        "icebergQty": text(ZERO),
        "time": order.created_ms,
        "updateTime": order.updated_ms,
        "isWorking": True,
        "workingTime": order.working_ms,
        **_extras(order),
    }


def canceled(order: Order, cancel_id: str) -> Json:
    return {
        "symbol": order.symbol,
        "origClientOrderId": order.client_id,
        "orderId": order.number,
        "orderListId": -1,
        "clientOrderId": cancel_id,
        "transactTime": order.updated_ms,
        **_figures(order),
        **_extras(order),
    }


def amended(order: Order, previous_id: str, execution: int) -> Json:
    return {
        "transactTime": order.updated_ms,
        "executionId": execution,
        "amendedOrder": {
            "symbol": order.symbol,
            "orderId": order.number,
            "orderListId": -1,
            "origClientOrderId": previous_id,
            "clientOrderId": order.client_id,
            "price": text(order.price),
            "qty": text(order.quantity),
            "executedQty": text(order.executed),
            "preventedQty": text(order.prevented),
            "quoteOrderQty": text(order.quote_quantity),
            "cumulativeQuoteQty": text(order.quote),
            "status": order.status,
            "timeInForce": order.tif,
            "type": order.kind,
            "side": order.side,
            "workingTime": order.working_ms,
            "selfTradePreventionMode": order.prevention.value,
        },
    }


def my_trade(trade: Trade) -> Json:
    return {
        "symbol": trade.symbol,
        "id": trade.id,
        "orderId": trade.order,
        "orderListId": -1,
        "price": text(trade.price),
        "qty": text(trade.quantity),
        "quoteQty": text(trade.value),
        "commission": text(trade.commission),
        "commissionAsset": trade.asset,
        "time": trade.time_ms,
        "isBuyer": trade.buy,
        "isMaker": trade.maker,
        "isBestMatch": True,
    }


def account(wallet: SpotWallet, uid: int, *, omit_zero: bool) -> Json:
    maker, taker = wallet.fees
    balances = [
        {"asset": asset, "free": text(held.free), "locked": text(held.locked)}
        for asset, held in wallet.assets.items()
        if held.free or held.locked or not omit_zero
    ]
    return {
        "makerCommission": int(maker * 10_000),
        "takerCommission": int(taker * 10_000),
        "buyerCommission": 0,
        "sellerCommission": 0,
        "commissionRates": {
            "maker": text(maker),
            "taker": text(taker),
            "buyer": text(ZERO),
            "seller": text(ZERO),
        },
        "canTrade": True,
        "canWithdraw": True,
        "canDeposit": True,
        "brokered": False,
        "requireSelfTradePrevention": False,
        "preventSor": False,
        "updateTime": wallet.updated_ms,
        "accountType": "SPOT",
        "balances": balances,
        "permissions": ["SPOT"],
        "uid": uid,
    }


def listing(rules: Rules) -> Json:
    """This symbol in `exchangeInfo`. Conditional and iceberg orders are not offered."""
    spec = rules.spec
    return {
        "symbol": spec.symbol,
        "status": "TRADING",
        "baseAsset": spec.base,
        "baseAssetPrecision": 8,
        "quoteAsset": spec.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
        "icebergAllowed": False,
        "ocoAllowed": False,
        "otoAllowed": False,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": False,
        "cancelReplaceAllowed": True,
        "amendAllowed": True,
        "pegInstructionsAllowed": False,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": served(rules),
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": [
            "EXPIRE_TAKER",
            "EXPIRE_MAKER",
            "EXPIRE_BOTH",
            "DECREMENT",
            "TRANSFER",
        ],
    }


# -- events ---------------------------------------------------------------------------------------


def execution_report(
    order: Order,
    event: str,
    trade: Trade | None,
    *,
    now_ms: int,
    execution: int,
    client_id: str,
    original_id: str,
) -> Json:
    """client_id, original_id: c and C, which differ when a cancel or an amend has its own id."""
    ended = event in ("CANCELED", "EXPIRED", "TRADE_PREVENTION", "REJECTED")
    report: Json = {
        "e": "executionReport",
        "E": now_ms,
        "s": order.symbol,
        "c": client_id,
        "S": order.side,
        "o": order.kind,
        "f": order.tif,
        "q": text(order.quantity),
        "p": text(order.price),
        "P": text(ZERO),
        "F": text(ZERO),
        "g": -1,
        "C": original_id,
        "x": event,
        "X": order.status,
        "r": "NONE",
        "i": order.number,
        "l": text(trade.quantity if trade else ZERO),
        "z": text(order.executed),
        "L": text(trade.price if trade else ZERO),
        "n": text(trade.commission) if trade else "0",
        "N": trade.asset if trade else None,
        "T": order.updated_ms,
        "t": trade.id if trade else -1,
        "I": execution,
        "w": order.open and not (ended or order.kind == "MARKET"),
        "m": trade.maker if trade else False,
        "M": False,
        "O": order.created_ms,
        "Z": text(order.quote),
        "Y": text(trade.value if trade else ZERO),
        "Q": text(order.quote_quantity),
        "V": order.prevention.value,
    }
    if order.kind != "MARKET":
        report["W"] = order.working_ms
    if order.strategy_id is not None:
        report["j"] = order.strategy_id
    if order.strategy_type is not None:
        report["J"] = order.strategy_type
    if event == "EXPIRED" and order.reason in _REASONS:
        report["eR"] = order.reason
    return report


def rejection(order: Order, now_ms: int, execution: int, why: str) -> Json:
    """The report of a new order that a cancel-and-replace could not place."""
    report = execution_report(
        order,
        "REJECTED",
        None,
        now_ms=now_ms,
        execution=execution,
        client_id=order.client_id,
        original_id="",
    )
    return {**report, "X": "REJECTED", "r": why, "T": now_ms, "w": False}


def prevention_parts(order: Order, counter: Order, size: Decimal, match_id: int) -> Json:
    """What a TRADE_PREVENTION report has besides."""
    return {
        "v": match_id,
        "A": text(order.prevented),
        "B": text(size),
        "u": 1,
        "U": counter.number,
        "Cs": counter.symbol,
        "pl": text(size),
        "pL": text(counter.price),
        "pY": text(size * counter.price),
    }


def account_position(wallet: SpotWallet, assets: Sequence[str], now_ms: int) -> Json:
    return {
        "e": "outboundAccountPosition",
        "E": now_ms,
        "u": wallet.updated_ms,
        "B": [
            {
                "a": asset,
                "f": text(wallet.holding(asset).free),
                "l": text(wallet.holding(asset).locked),
            }
            for asset in assets
        ],
    }


def balance_update(asset: str, delta: Decimal, now_ms: int) -> Json:
    return {"e": "balanceUpdate", "E": now_ms, "a": asset, "d": text(delta), "T": now_ms}
