"""Futures orders, positions and balances as the JSON of answers and events. Pure.

Sources: Binance USD-M and COIN-M documentation (November 2025) with the change log to October 2026:
acknowledgements carry no `avgPrice`, `cumQuote` and `cumBase` since June 2026.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from k4.runner.sim.matching import Prevention
from k4.runner.sim.trading import exchange as happened
from k4.runner.sim.trading.orders import Order, Trade
from k4.runner.sim.trading.rules import Rules, served
from k4.runner.sim.trading.wallets import MarginWallet, Position

Json = dict[str, Any]
ZERO = Decimal(0)
_EIGHT = Decimal("1e-8")

_EXPIRY = {
    happened.SELF_TRADE: "1",
    happened.IOC_REST: "2",
    happened.PUSHED_OUT: "4",
    happened.NO_LIQUIDITY: "9",
}


def text(value: Decimal) -> str:
    """8 decimals at most, as many as the figure has."""
    exponent = value.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -8:
        value = value.quantize(_EIGHT)
    return f"{value:f}" if value else "0"


def average(order: Order, rules: Rules) -> Decimal:
    """Price per contract or coin, to 8 decimals."""
    if not order.executed:
        return ZERO
    if rules.contract:
        return (order.executed * rules.contract / order.quote).quantize(_EIGHT)
    return (order.quote / order.executed).quantize(_EIGHT)


# -- answers --------------------------------------------------------------------------------------


def answer(order: Order, rules: Rules, *, accepted_only: bool = False) -> Json:
    """To place, modify and cancel. accepted_only: as it stood when it was accepted."""
    executed = ZERO if accepted_only else order.executed
    body: Json = {
        "orderId": order.number,
        "symbol": order.symbol,
        "status": "NEW" if accepted_only else order.status,
        "clientOrderId": order.client_id,
        "price": text(order.price),
        "origQty": text(order.quantity),
        "executedQty": text(executed),
        "cumQty": text(executed),
        "timeInForce": order.tif,
        "type": order.kind,
        "reduceOnly": order.reduce_only,
        "closePosition": order.close_position,
        "side": order.side,
        "positionSide": order.position_side,
        "stopPrice": "0",
        "workingType": "CONTRACT_PRICE",
        "priceProtect": False,
        "origType": order.original_kind,
        "priceMatch": order.price_match,
        "selfTradePreventionMode": order.prevention.value,
        "goodTillDate": order.good_till_ms,
        "updateTime": order.updated_ms,
    }
    if rules.contract:
        body["pair"] = rules.symbol.partition("_")[0]
    return body


def queried(order: Order, rules: Rules) -> Json:
    """GET still says the average and the cumulative value."""
    name = "cumBase" if rules.contract else "cumQuote"
    return {
        **answer(order, rules),
        "avgPrice": text(average(order, rules)),
        name: text(order.quote),
        "time": order.created_ms,
    }


def user_trade(trade: Trade, rules: Rules) -> Json:
    body: Json = {
        "symbol": trade.symbol,
        "id": trade.id,
        "orderId": trade.order,
        "side": "BUY" if trade.buy else "SELL",
        "price": text(trade.price),
        "qty": text(trade.quantity),
        "realizedPnl": text(trade.profit),
        "commission": text(trade.commission),
        "commissionAsset": trade.asset,
        "time": trade.time_ms,
        "positionSide": trade.position_side,
        "buyer": trade.buy,
        "maker": trade.maker,
    }
    if rules.contract:
        body |= {
            "pair": rules.symbol.partition("_")[0],
            "marginAsset": rules.margin_asset,
            "baseQty": text(trade.value),
        }
    else:
        body |= {"marginAsset": rules.margin_asset, "quoteQty": text(trade.value)}
    return body


class PositionView:
    """One position with the figures that answers derive from it."""

    def __init__(
        self, position: Position, wallet: MarginWallet, rules: Rules, mark: Decimal, leverage: int
    ) -> None:
        self.position = position
        self.rules = rules
        self.mark = mark
        self.leverage = leverage
        self.entry = wallet.entry(position, rules).quantize(_EIGHT)
        self.unrealized = wallet.unrealized(position, rules, mark).quantize(_EIGHT)
        worth = rules.value(mark, abs(position.amount))
        self.notional = worth if position.amount >= 0 else -worth
        self.margin = (worth / leverage).quantize(_EIGHT)
        self.maintenance = (worth / 250).quantize(_EIGHT)


def position_risk(view: PositionView, bids: Decimal, asks: Decimal) -> Json:
    """USD-M v3."""
    return {
        "symbol": view.position.symbol,
        "positionSide": view.position.side,
        "positionAmt": text(view.position.amount),
        "entryPrice": text(view.entry),
        "breakEvenPrice": text(view.entry),
        "markPrice": text(view.mark),
        "unRealizedProfit": text(view.unrealized),
        "liquidationPrice": "0",
        "isolatedMargin": "0",
        "notional": text(view.notional),
        "marginAsset": view.rules.margin_asset,
        "isolatedWallet": "0",
        "initialMargin": text(view.margin),
        "maintMargin": text(view.maintenance),
        "positionInitialMargin": text(view.margin),
        "openOrderInitialMargin": text(((bids + asks) / view.leverage).quantize(_EIGHT)),
        "adl": 0,
        "bidNotional": text(bids),
        "askNotional": text(asks),
        "updateTime": view.position.updated_ms,
    }


def coin_position_risk(view: PositionView) -> Json:
    """COIN-M v1."""
    return {
        "symbol": view.position.symbol,
        "positionAmt": text(view.position.amount),
        "entryPrice": text(view.entry),
        "breakEvenPrice": text(view.entry),
        "markPrice": text(view.mark),
        "unRealizedProfit": text(view.unrealized),
        "liquidationPrice": "0",
        "leverage": str(view.leverage),
        "maxQty": text(view.rules.number("LOT_SIZE", "maxQty")),
        "marginType": "cross",
        "isolatedMargin": "0.00000000",
        "isAutoAddMargin": "false",
        "positionSide": view.position.side,
        "notionalValue": text(view.notional),
        "isolatedWallet": "0",
        "updateTime": view.position.updated_ms,
    }


def balance(
    alias: str, asset: str, wallet: Decimal, unrealized: Decimal, available: Decimal, updated: int
) -> Json:
    return {
        "accountAlias": alias,
        "asset": asset,
        "balance": text(wallet),
        "crossWalletBalance": text(wallet),
        "crossUnPnl": text(unrealized),
        "availableBalance": text(max(ZERO, available)),
        "maxWithdrawAmount": text(max(ZERO, min(wallet, available))),
        "marginAvailable": True,
        "updateTime": updated,
    }


def account_asset(
    asset: str,
    wallet: Decimal,
    unrealized: Decimal,
    position_margin: Decimal,
    order_margin: Decimal,
    updated: int,
) -> Json:
    available = wallet + unrealized - position_margin - order_margin
    return {
        "asset": asset,
        "walletBalance": text(wallet),
        "unrealizedProfit": text(unrealized),
        "marginBalance": text(wallet + unrealized),
        "maintMargin": text((position_margin / 10).quantize(_EIGHT)),
        "initialMargin": text(position_margin + order_margin),
        "positionInitialMargin": text(position_margin),
        "openOrderInitialMargin": text(order_margin),
        "crossWalletBalance": text(wallet),
        "crossUnPnl": text(unrealized),
        "availableBalance": text(max(ZERO, available)),
        "maxWithdrawAmount": text(max(ZERO, min(wallet, available))),
        "updateTime": updated,
    }


def account_position(view: PositionView) -> Json:
    """A position inside the account's answer."""
    return {
        "symbol": view.position.symbol,
        "positionSide": view.position.side,
        "positionAmt": text(view.position.amount),
        "unrealizedProfit": text(view.unrealized),
        "isolatedMargin": "0",
        "notional": text(view.notional),
        "isolatedWallet": "0",
        "initialMargin": text(view.margin),
        "maintMargin": text(view.maintenance),
        "updateTime": view.position.updated_ms,
    }


def listing(rules: Rules) -> Json:
    """This symbol in `exchangeInfo`."""
    spec = rules.spec
    pair, _, delivery = spec.symbol.partition("_")
    body: Json = {
        "symbol": spec.symbol,
        "pair": pair,
        "contractType": "PERPETUAL" if delivery in ("", "PERP") else "CURRENT_QUARTER",
        "baseAsset": spec.base,
        "quoteAsset": spec.quote,
        "marginAsset": rules.margin_asset,
        "pricePrecision": spec.price_scale,
        "quantityPrecision": spec.size_scale,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
        "filters": served(rules),
    }
    if rules.contract:
        return {**body, "contractStatus": "TRADING", "contractSize": int(rules.contract)}
    return {**body, "status": "TRADING", "timeInForce": [*body["timeInForce"], "GTD", "RPI"]}


# -- events ---------------------------------------------------------------------------------------


def order_trade_update(
    order: Order,
    event: str,
    trade: Trade | None,
    rules: Rules,
    *,
    now_ms: int,
    bids: Decimal,
    asks: Decimal,
    modify_id: int | None = None,
) -> Json:
    """bids, asks: value of the account's open orders on the symbol."""
    body: Json = {
        "s": order.symbol,
        "c": order.client_id,
        "S": order.side,
        "o": order.kind,
        "f": order.tif,
        "q": text(order.quantity),
        "p": text(order.price),
        "ap": text(average(order, rules)),
        "sp": "0",
        "x": "EXPIRED" if event == "TRADE_PREVENTION" else event,
        "X": order.status,
        "i": order.number,
        "l": text(trade.quantity if trade else ZERO),
        "z": text(order.executed),
        "L": text(trade.price if trade else ZERO),
        "n": text(trade.commission) if trade else "0",
        "N": trade.asset if trade else None,
        "T": order.updated_ms,
        "t": trade.id if trade else 0,
        "b": text(bids),
        "a": text(asks),
        "m": trade.maker if trade else False,
        "R": order.reduce_only,
        "wt": "CONTRACT_PRICE",
        "ot": order.original_kind,
        "ps": order.position_side,
        "cp": order.close_position,
        "rp": text(trade.profit if trade else ZERO),
        "pP": False,
        "si": 0,
        "ss": 0,
        "V": order.prevention.value,
        "pm": order.price_match,
        "gtd": order.good_till_ms,
        "er": expiry(order),
    }
    if not trade:
        del body["N"], body["n"]
    if rules.contract:
        body["ma"] = rules.margin_asset
    if event == "AMENDMENT" and modify_id is not None:
        body["M"] = modify_id
    return {"e": "ORDER_TRADE_UPDATE", "E": now_ms, "T": order.updated_ms, "o": body}


def expiry(order: Order) -> str:
    if order.reason == happened.SELF_TRADE and order.tif == "IOC":
        return "3"
    return _EXPIRY.get(order.reason, "0")


def trade_lite(order: Order, trade: Trade, now_ms: int) -> Json:
    return {
        "e": "TRADE_LITE",
        "E": now_ms,
        "T": trade.time_ms,
        "s": order.symbol,
        "q": text(order.quantity),
        "p": text(order.price),
        "m": trade.maker,
        "c": order.client_id,
        "S": order.side,
        "L": text(trade.price),
        "l": text(trade.quantity),
        "t": trade.id,
        "i": order.number,
    }


def account_update(
    reason: str,
    assets: Sequence[tuple[str, Decimal, Decimal]],
    views: Sequence[PositionView],
    now_ms: int,
    time_ms: int,
) -> Json:
    """assets: (asset, wallet balance, change besides profit and commission)."""
    return {
        "e": "ACCOUNT_UPDATE",
        "E": now_ms,
        "T": time_ms,
        "a": {
            "m": reason,
            "B": [
                {"a": asset, "wb": text(wallet), "cw": text(wallet), "bc": text(change)}
                for asset, wallet, change in assets
            ],
            "P": [
                {
                    "s": view.position.symbol,
                    "pa": text(view.position.amount),
                    "ep": text(view.entry),
                    "bep": text(view.entry),
                    "cr": text(view.position.realized),
                    "up": text(view.unrealized),
                    "mt": "cross",
                    "iw": "0",
                    "ps": view.position.side,
                }
                for view in views
            ],
        },
    }


def leverage_update(symbol: str, leverage: int, now_ms: int) -> Json:
    return {
        "e": "ACCOUNT_CONFIG_UPDATE",
        "E": now_ms,
        "T": now_ms,
        "ac": {"s": symbol, "l": leverage},
    }


PREVENTIONS = (
    Prevention.NONE,
    Prevention.EXPIRE_TAKER,
    Prevention.EXPIRE_MAKER,
    Prevention.EXPIRE_BOTH,
)
