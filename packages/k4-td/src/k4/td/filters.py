"""A symbol's rules and whether an order passes them, in exact decimals. Pure.

A bound or step of 0 switches that part off. Filters whose reference only the venue knows
(PERCENT_PRICE, MAX_POSITION, the price range rule) are left to it; its refusal says so.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal, localcontext

import msgspec

from k4.core.trading import (
    ZERO,
    Direction,
    FilterRefused,
    InvalidOrder,
    NewOrder,
    OrderType,
    decimal_text,
)

ONE = Decimal(1)


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Values from `low` to `high` in steps of `step`, counted from `base`. 0: no such part.

    Spot counts steps from 0, futures from the minimum (Binance, filters, July 2026).
    """

    name: str
    low: Decimal = ZERO
    high: Decimal = ZERO
    step: Decimal = ZERO
    base: Decimal = ZERO

    def admits(self, value: Decimal) -> bool:
        if (self.low and value < self.low) or (self.high and value > self.high):
            return False
        with localcontext() as context:
            context.prec = 120  # a remainder of any two bounded figures is exact
            return not self.step or (value - self.base) % self.step == 0

    def nearest(self, value: Decimal, rounding: str = ROUND_HALF_EVEN) -> Decimal | None:
        """The admitted value nearest to `value` (ties to the even step); None where there is none.

        `rounding` ROUND_FLOOR or ROUND_CEILING takes the nearest below or above.
        """
        with localcontext() as context:
            context.prec = 120
            clamped = max(value, self.low) if self.low else value
            clamped = min(clamped, self.high) if self.high else clamped
            found = self._snap(clamped, rounding)
            if self.low and found < self.low:
                found = self._snap(self.low, ROUND_CEILING)
            if self.high and found > self.high:
                found = self._snap(self.high, ROUND_FLOOR)
        return found if self.admits(found) else None

    def _snap(self, value: Decimal, rounding: str) -> Decimal:
        if not self.step:
            return value
        steps = ((value - self.base) / self.step).to_integral_value(rounding=rounding)
        found = self.base + steps * self.step
        # Written with the step's own decimals: 25000.1, not 25000.10000000.
        return found.quantize(self.step.normalize()) if self.step.normalize() < ONE else found


class SymbolRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the venue's metadata says about one symbol.

    unified: `BTC/USDT`; a dated contract keeps its date (`BTC/USDT-260925`). contract_size: quote
    units a contract where quantities are contracts (COIN-M), else 0. max_orders: open orders on
    the symbol, 0 unlimited. amendable: the venue changes its orders in place.
    """

    symbol: str
    unified: str
    base: str
    quote: str
    price: Range
    lot: Range
    market_lot: Range | None = None
    margin_asset: str = ""
    trading: bool = True
    contract_size: Decimal = ZERO
    notional_name: str = "MIN_NOTIONAL"
    min_notional: Decimal = ZERO
    max_notional: Decimal = ZERO
    min_applies_to_market: bool = False
    max_applies_to_market: bool = False
    reduce_only_exempt: bool = False
    max_orders: int = 0
    amendable: bool = False

    def notional(self, quantity: Decimal, price: Decimal) -> Decimal:
        """Worth in the quote asset: contracts times their size on COIN-M, else price times
        quantity."""
        return quantity * self.contract_size if self.contract_size else quantity * price


def check(rules: SymbolRules, order: NewOrder, reference: Decimal, open_orders: int) -> None:
    """Raise FilterRefused or InvalidOrder where the venue would refuse the order.

    reference: the price at which a market order is expected to trade, 0 where none is known (its
    notional is then left to the venue). open_orders: now open on the symbol.
    """
    if not rules.trading:
        raise InvalidOrder(
            "symbol",
            f"{rules.symbol} is not trading now",
            remedy="wait until the venue opens it; its state is read anew every hour",
        )
    if order.quantity <= 0:
        raise InvalidOrder(
            "quantity",
            f"quantity {decimal_text(order.quantity)} is not positive",
            remedy="direction says buy or sell; quantity is above 0",
        )
    market = order.order_type is OrderType.MARKET
    if market and order.price:
        raise InvalidOrder("price", "a market order has no price", remedy="leave price out")
    if not market and order.price <= 0:
        raise InvalidOrder(
            "price",
            f"a {order.order_type} order needs a positive price",
            remedy="give price, or place a market order",
        )
    if not market:
        check_range(rules.price, order.price, "price", rules.symbol)
    check_range(rules.lot, order.quantity, "quantity", rules.symbol)
    if market and rules.market_lot is not None:
        check_range(rules.market_lot, order.quantity, "quantity", rules.symbol)
    _check_notional(rules, order, reference if market else order.price)
    if rules.max_orders and open_orders >= rules.max_orders:
        raise FilterRefused(
            "MAX_NUM_ORDERS",
            f"{rules.symbol} has {open_orders} open orders, the venue allows {rules.max_orders}",
            remedy="cancel some first",
        )


def check_range(allowed: Range, value: Decimal, figure: str, symbol: str) -> None:
    """Raise FilterRefused, with the nearest valid value, where `value` is not admitted."""
    if allowed.admits(value):
        return
    bounds = ", ".join(
        f"{name} {decimal_text(bound)}"
        for name, bound in (("min", allowed.low), ("max", allowed.high), ("step", allowed.step))
        if bound
    )
    raise FilterRefused(
        allowed.name,
        f"{symbol}: {figure} {decimal_text(value)} fails {allowed.name} ({bounds})",
        allowed.nearest(value),
    )


def _check_notional(rules: SymbolRules, order: NewOrder, price: Decimal) -> None:
    market = order.order_type is OrderType.MARKET
    if not price and not rules.contract_size:
        return
    if order.reduce_only and rules.reduce_only_exempt:
        return
    notional = rules.notional(order.quantity, price)
    low = rules.min_notional if not market or rules.min_applies_to_market else ZERO
    high = rules.max_notional if not market or rules.max_applies_to_market else ZERO
    if (low and notional < low) or (high and notional > high):
        unit = rules.contract_size or price
        bound, rounding = (low, ROUND_CEILING) if low and notional < low else (high, ROUND_FLOOR)
        raise FilterRefused(
            rules.notional_name,
            f"{rules.symbol}: {decimal_text(order.quantity)} at {decimal_text(price)} is worth "
            f"{decimal_text(notional)}, the venue's bound is {decimal_text(bound)}",
            rules.lot.nearest(bound / unit, rounding),
        )


def worst_price(direction: Direction, bid: Decimal, ask: Decimal) -> Decimal:
    """What a market order of this direction meets first."""
    return ask if direction is Direction.BUY else bid
