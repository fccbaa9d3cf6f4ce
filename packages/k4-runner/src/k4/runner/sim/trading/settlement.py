"""How an order touches an account's wallet: locked funds on spot, margin on futures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Protocol

from k4.runner.sim.trading import errors
from k4.runner.sim.trading.orders import Order
from k4.runner.sim.trading.rules import Rules
from k4.runner.sim.trading.wallets import MarginWallet, Settled, SpotWallet

ZERO = Decimal(0)
SPOT_FEES = Decimal("0.001"), Decimal("0.001")
FUTURES_FEES = Decimal("0.0002"), Decimal("0.0005")


class Settlement(Protocol):
    """What the exchange asks of the wallets."""

    def reserve(self, order: Order, rules: Rules, worth: Decimal) -> None:
        """Before an order is accepted. worth: price times quantity, or what a market order will
        pay. Raises what the venue answers."""
        ...

    def filled(
        self, order: Order, rules: Rules, price: Decimal, quantity: Decimal, maker: bool
    ) -> Settled: ...

    def release(self, order: Order, rules: Rules, quantity: Decimal) -> None:
        """That much of the order will not trade any more."""
        ...

    def reducible(self, order: Order) -> Decimal | None:
        """What an order that may only reduce could still trade; None for any other order."""
        ...


class SpotSettlement:
    """Quote is locked for buys, base for sells."""

    def __init__(self, wallets: Mapping[str, SpotWallet]) -> None:
        self.wallets = wallets

    def reserve(self, order: Order, rules: Rules, worth: Decimal) -> None:
        amount = worth if order.buy else order.quantity
        self.wallets[order.account].reserve(order, rules, amount)

    def filled(
        self, order: Order, rules: Rules, price: Decimal, quantity: Decimal, maker: bool
    ) -> Settled:
        return self.wallets[order.account].filled(order, rules, price, quantity, maker)

    def release(self, order: Order, rules: Rules, quantity: Decimal) -> None:
        wallet = self.wallets[order.account]
        if quantity >= order.left:
            wallet.release(order, rules)
        else:
            wallet.release(order, rules, quantity * (order.price if order.buy else 1))

    def reducible(self, order: Order) -> Decimal | None:
        return None


class MarginSettlement:
    """Initial margin of what an order may open, against what the wallet has left.

    open_orders(account): the orders whose margin is in use. mark(symbol): the mark price.
    """

    def __init__(
        self,
        wallets: Mapping[str, MarginWallet],
        rules: Mapping[str, Rules],
        leverage: Mapping[str, int],
        hedge: Callable[[str], bool],
        open_orders: Callable[[str], Iterable[Order]],
        mark: Callable[[str], Decimal],
    ) -> None:
        self.wallets = wallets
        self._rules = rules
        self._leverage = leverage
        self._hedge = hedge
        self._open_orders = open_orders
        self._mark = mark

    def reserve(self, order: Order, rules: Rules, worth: Decimal) -> None:
        reducible = self.reducible(order)
        if reducible is not None:
            if not reducible or (self._hedge(order.account) and order.quantity > reducible):
                raise errors.futures(-2022)
            return
        needed = self._opening(order, rules)
        free = self.available(order.account, rules.margin_asset)
        if any(other is order for other in self._open_orders(order.account)):
            free += needed  # an order that is changed is counted among the open ones already
        if needed > free:
            raise errors.futures(-2019)

    def filled(
        self, order: Order, rules: Rules, price: Decimal, quantity: Decimal, maker: bool
    ) -> Settled:
        return self.wallets[order.account].filled(order, rules, price, quantity, maker)

    def release(self, order: Order, rules: Rules, quantity: Decimal) -> None:
        """Margin is counted anew each time, so there is nothing to give back."""

    def reducible(self, order: Order) -> Decimal | None:
        """In hedge mode selling LONG and buying SHORT can only reduce."""
        closes = order.position_side == ("SHORT" if order.buy else "LONG")
        if not (order.reduce_only or order.close_position or closes):
            return None
        wallet = self.wallets[order.account]
        return wallet.reducible(order.symbol, order.position_side, order.buy)

    # -- figures ----------------------------------------------------------------------------------

    def leverage(self, account: str, symbol: str) -> int:
        return self.wallets[account].leverage.get(symbol, self._leverage[account])

    def unrealized(self, account: str, asset: str) -> Decimal:
        wallet = self.wallets[account]
        return sum(
            (
                wallet.unrealized(position, self._rules[position.symbol], self._mark(symbol))
                for (symbol, _), position in wallet.positions.items()
                if self._rules[symbol].margin_asset == asset
            ),
            ZERO,
        )

    def position_margin(self, account: str, asset: str) -> Decimal:
        wallet = self.wallets[account]
        return sum(
            (
                self._rules[symbol].value(self._mark(symbol), abs(position.amount))
                / self.leverage(account, symbol)
                for (symbol, _), position in wallet.positions.items()
                if position.amount and self._rules[symbol].margin_asset == asset
            ),
            ZERO,
        )

    def order_margin(self, account: str, asset: str) -> Decimal:
        return sum(
            (
                self._opening(order, self._rules[order.symbol])
                for order in self._open_orders(account)
                if self._rules[order.symbol].margin_asset == asset
            ),
            ZERO,
        )

    def available(self, account: str, asset: str) -> Decimal:
        wallet = self.wallets[account].assets.get(asset, ZERO)
        used = self.position_margin(account, asset) + self.order_margin(account, asset)
        return wallet + self.unrealized(account, asset) - used

    def _opening(self, order: Order, rules: Rules) -> Decimal:
        """Initial margin of the part that would open or add."""
        if self.reducible(order) is not None:
            return ZERO
        wallet = self.wallets[order.account]
        closing = wallet.reducible(order.symbol, order.position_side, order.buy)
        opening = max(ZERO, order.left - closing)
        price = order.price or self._mark(order.symbol)
        return rules.value(price, opening) / self.leverage(order.account, order.symbol)
