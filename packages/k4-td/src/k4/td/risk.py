"""The risk gate: every order passes it, or is refused with the rule and the figures. Pure.

Limits are per account and in the venue's unit. An order whose outcome is not known counts as open
at its full size. A figure that a rule needs and that is not at hand (a price for the notional of a
market order, a fresh quote for the collar) refuses the order: the gate fails closed.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from k4.core.config import RiskLimits
from k4.core.retry import Pace
from k4.core.trading import (
    ZERO,
    AccountType,
    Direction,
    NewOrder,
    OrderType,
    RiskRefused,
    bounded,
    decimal_text,
)
from k4.td.filters import SymbolRules, worst_price
from k4.td.quotes import Quote

DEFAULT_MAX_AGE = 1.0
"""Seconds that a quote may be old where `max_bbo_age_ms` is not set."""

_BPS = Decimal(10_000)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What is open now. position: signed (spot: the base asset's balance; in hedge mode that of the
    order's side). buys, sells: what open orders may still add to it and take from it. open_orders:
    of the account, unknown ones included. done: what the order in question has filled before, which
    `position` contains."""

    position: Decimal = ZERO
    buys: Decimal = ZERO
    sells: Decimal = ZERO
    open_orders: int = 0
    done: Decimal = ZERO


class RiskGate:
    """The limits of one account. `check` raises RiskRefused; it notes the time of what passes."""

    def __init__(self, account: AccountType, limits: RiskLimits) -> None:
        self._account = account
        self._symbols = frozenset(limits.symbols)
        self._max_qty = _limit(limits.max_order_qty, "max_order_qty")
        self._max_notional = _limit(limits.max_order_notional, "max_order_notional")
        self._max_position = _limit(limits.max_position, "max_position")
        self._max_open = limits.max_open_orders
        self._collar = Decimal(repr(limits.price_collar_bps))
        self._max_age = limits.max_bbo_age_ms / 1000.0 or DEFAULT_MAX_AGE
        rate = limits.max_orders_per_sec
        count = max(1, int(rate)) if rate > 0 else 0
        self._rate = rate
        self._pace = Pace(count, count / rate if rate > 0 else 0.0)

    def check(
        self,
        order: NewOrder,
        rules: SymbolRules,
        figures: Figures,
        quote: Quote | None,
        now: float,
        *,
        amends: bool = False,
    ) -> None:
        """now: monotonic seconds. amends: the order takes the place of one that `figures` leaves
        out, and does not count on the order rate."""
        names = (rules.symbol, rules.unified)
        if self._symbols and self._symbols.isdisjoint(names):
            allowed = ", ".join(sorted(self._symbols)[:8])
            more = ", ..." if len(self._symbols) > 8 else ""
            self._refuse("symbols", f"{rules.symbol} is not among {allowed}{more}")
        fresh = quote if quote is not None and quote.age <= self._max_age else None
        self._size(order, rules, fresh)
        if self._max_open and figures.open_orders >= self._max_open:
            self._refuse(
                "max_open_orders", f"{figures.open_orders} orders are open, limit {self._max_open}"
            )
        if not order.reduce_only:
            self._position(order, figures)
        if self._collar:
            self._price(order, quote, fresh)
        if amends:
            return
        wait = self._pace.wait(now)
        if wait > 0:
            self._refuse(
                "max_orders_per_sec",
                f"more than {self._rate:g} orders a second; the next one in {wait:.3f} s",
            )
        self._pace.note(now)

    def _size(self, order: NewOrder, rules: SymbolRules, fresh: Quote | None) -> None:
        if self._max_qty and order.quantity > self._max_qty:
            self._refuse(
                "max_order_qty",
                f"quantity {_text(order.quantity)} is above {_text(self._max_qty)}",
            )
        if not self._max_notional:
            return
        price = order.price
        if fresh is not None:
            price = _expected(order, fresh)
        if not price and not rules.contract_size:
            self._refuse(
                "max_order_notional",
                "the notional of a market order needs a fresh quote, and there is none",
                "configure bbo_store and let market data run, or send a limit order",
            )
        notional = rules.notional(order.quantity, price)
        if notional > self._max_notional:
            self._refuse(
                "max_order_notional",
                f"notional {_text(notional)} is above {_text(self._max_notional)}",
            )

    def _position(self, order: NewOrder, figures: Figures) -> None:
        if not self._max_position:
            return
        rest = max(ZERO, order.quantity - figures.done)
        if order.direction is Direction.BUY:
            after = figures.position + figures.buys + rest
            excess = after > self._max_position
        else:
            after = figures.position - figures.sells - rest
            # Spot cannot be short: the venue refuses what is not there.
            excess = self._account is not AccountType.SPOT and -after > self._max_position
        if excess:
            self._refuse(
                "max_position",
                f"position {_text(figures.position)} with open buys {_text(figures.buys)} and "
                f"sells {_text(figures.sells)} could become {_text(after)}, "
                f"limit {_text(self._max_position)}",
            )

    def _price(self, order: NewOrder, quote: Quote | None, fresh: Quote | None) -> None:
        """Only the harmful side is bounded: a buy above the offer, a sell below the bid. A market
        order names no price; it needs a fresh quote all the same."""
        if fresh is None:
            age = "none" if quote is None else f"{quote.age * 1000.0:.0f} ms old"
            self._refuse(
                "price_collar_bps",
                f"no fresh quote of {order.symbol} ({age}, limit {self._max_age * 1000.0:.0f} ms)",
                "check that market data of bbo_store runs",
            )
            return
        reference = worst_price(order.direction, fresh.bid, fresh.ask)
        if not reference:
            self._refuse("price_collar_bps", f"the book of {order.symbol} has an empty side")
        if order.order_type is OrderType.MARKET:
            return
        width = reference * self._collar / _BPS
        buy = order.direction is Direction.BUY
        bound = reference + width if buy else reference - width
        if (order.price > bound) if buy else (order.price < bound):
            self._refuse(
                "price_collar_bps",
                f"{order.direction} at {_text(order.price)} is beyond {_text(bound)}, "
                f"{_text(self._collar)} bps from {_text(reference)}",
            )

    def _refuse(self, rule: str, figures: str, remedy: str = "") -> None:
        raise RiskRefused(
            rule,
            f"risk.{rule} of {self._account}: {figures}",
            remedy=remedy or f"trading.risk.{self._account}.{rule} in the configuration",
        )


def _expected(order: NewOrder, fresh: Quote) -> Decimal:
    """At which price it trades at the most: a sell below the bid meets the bid."""
    meets = worst_price(order.direction, fresh.bid, fresh.ask)
    if order.order_type is OrderType.MARKET:
        return meets
    return max(order.price, meets) if order.direction is Direction.SELL else order.price


def _limit(text: str, name: str) -> Decimal:
    return bounded(Decimal(text), name) if text else ZERO


def _text(value: Decimal) -> str:
    return decimal_text(value.normalize()) if value else "0"
