"""What accounts own: spot balances, and futures balances with positions. Pure.

Every amount has at most 27 significant digits (16 decimals at most, figures below 10^11), so that
Decimal's 28 digits never round. Commissions are cut to 8 decimals.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_DOWN, Decimal

import msgspec

from k4.runner.sim.trading import errors
from k4.runner.sim.trading.orders import Order
from k4.runner.sim.trading.rules import Rules

ZERO = Decimal(0)
_EIGHT, _SIXTEEN = Decimal("1e-8"), Decimal("1e-16")


class Settled(msgspec.Struct, frozen=True):
    """What a fill cost and brought."""

    commission: Decimal
    asset: str
    profit: Decimal = ZERO


class Holding(msgspec.Struct):
    """One asset: free to use, or locked by open orders."""

    free: Decimal = ZERO
    locked: Decimal = ZERO


class SpotWallet:
    """Balances by asset. fees: (maker, taker)."""

    def __init__(self, funds: Mapping[str, str], fees: tuple[Decimal, Decimal]) -> None:
        self.assets = {asset: Holding(Decimal(amount)) for asset, amount in funds.items()}
        self.fees = fees
        self.updated_ms = 0

    def holding(self, asset: str) -> Holding:
        return self.assets.setdefault(asset, Holding())

    def reserve(self, order: Order, rules: Rules, amount: Decimal) -> None:
        """Lock what the order needs: quote for a buy, base for a sell."""
        held = self.holding(rules.spec.quote if order.buy else rules.spec.base)
        if amount > held.free:
            raise errors.insufficient_balance()
        held.free -= amount
        held.locked += amount
        order.locked = amount

    def filled(
        self, order: Order, rules: Rules, price: Decimal, quantity: Decimal, maker: bool
    ) -> Settled:
        """Move what was traded; what a better price saves is free again."""
        value = price * quantity
        base, quote = self.holding(rules.spec.base), self.holding(rules.spec.quote)
        rate = self.fees[0] if maker else self.fees[1]
        if order.buy:
            held = order.price * quantity if order.price else value
            quote.locked -= held
            quote.free += held - value
            order.locked -= held
            fee = (quantity * rate).quantize(_EIGHT, ROUND_DOWN)
            base.free += quantity - fee
            return Settled(fee, rules.spec.base)
        base.locked -= quantity
        order.locked -= quantity
        fee = (value * rate).quantize(_EIGHT, ROUND_DOWN)
        quote.free += value - fee
        return Settled(fee, rules.spec.quote)

    def release(self, order: Order, rules: Rules, amount: Decimal | None = None) -> None:
        """Free what an order no longer needs; all of it unless an amount is given."""
        freed = order.locked if amount is None else amount
        held = self.holding(rules.spec.quote if order.buy else rules.spec.base)
        held.locked -= freed
        held.free += freed
        order.locked -= freed


class Position(msgspec.Struct):
    """amount: negative when short. cost: the value at which it was entered, never negative.
    realized: profit so far (cr in events)."""

    symbol: str
    side: str
    amount: Decimal = ZERO
    cost: Decimal = ZERO
    realized: Decimal = ZERO
    updated_ms: int = 0


class MarginWallet:
    """Balances and positions of one futures product, cross margin. fees: (maker, taker)."""

    def __init__(self, funds: Mapping[str, str], fees: tuple[Decimal, Decimal]) -> None:
        self.assets = {asset: Decimal(amount) for asset, amount in funds.items()}
        self.positions: dict[tuple[str, str], Position] = {}
        self.leverage: dict[str, int] = {}
        self.fees = fees
        self.updated_ms = 0

    def position(self, symbol: str, side: str) -> Position:
        key = symbol, side
        if key not in self.positions:
            self.positions[key] = Position(symbol, side)
        return self.positions[key]

    def amount(self, symbol: str, side: str) -> Decimal:
        found = self.positions.get((symbol, side))
        return found.amount if found is not None else ZERO

    def reducible(self, symbol: str, side: str, buy: bool) -> Decimal:
        """How much an order of that side could close."""
        amount = self.amount(symbol, side)
        return max(ZERO, -amount if buy else amount)

    def filled(
        self, order: Order, rules: Rules, price: Decimal, quantity: Decimal, maker: bool
    ) -> Settled:
        """Close what there is on the other side, open with the rest, pay the commission."""
        position = self.position(order.symbol, order.position_side)
        closing = min(quantity, self.reducible(order.symbol, order.position_side, order.buy))
        opening = quantity - closing
        profit = self._close(position, rules, price, closing) if closing else ZERO
        if opening:
            position.amount += opening if order.buy else -opening
            position.cost += rules.value(price, opening)
        rate = self.fees[0] if maker else self.fees[1]
        fee = (rules.value(price, quantity) * rate).quantize(_EIGHT, ROUND_DOWN)
        asset = rules.margin_asset
        self.assets[asset] = self.assets.get(asset, ZERO) + profit - fee
        position.realized += profit
        return Settled(fee, asset, profit)

    def _close(
        self, position: Position, rules: Rules, price: Decimal, quantity: Decimal
    ) -> Decimal:
        """The profit. A part of a position takes its share of the cost, to 16 decimals; the last
        part takes what is left, so that nothing is lost to rounding."""
        held = abs(position.amount)
        cost = position.cost
        if quantity < held:
            cost = (position.cost * quantity / held).quantize(_SIXTEEN)
        gain = rules.value(price, quantity) - cost
        long = position.amount > 0
        position.amount -= quantity if long else -quantity
        position.cost -= cost
        # An inverse contract is worth less coin when its price rises.
        return gain if long != bool(rules.contract) else -gain

    def unrealized(self, position: Position, rules: Rules, mark: Decimal) -> Decimal:
        if not position.amount:
            return ZERO
        gain = rules.value(mark, abs(position.amount)) - position.cost
        return gain if (position.amount > 0) != bool(rules.contract) else -gain

    def entry(self, position: Position, rules: Rules) -> Decimal:
        """Average entry price, 0 when flat."""
        if not position.amount or not position.cost:
            return ZERO
        held = abs(position.amount)
        if rules.contract:
            return held * rules.contract / position.cost
        return position.cost / held
