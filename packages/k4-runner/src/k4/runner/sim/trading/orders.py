"""One order at the venue, with everything that ever happened to it."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from k4.runner.sim.matching import Prevention, Resting

ZERO = Decimal(0)
OPEN = ("NEW", "PARTIALLY_FILLED")


class Trade(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of one order. profit: realized, futures. balance: is the account the maker?"""

    id: int
    product: str
    account: str
    symbol: str
    order: int
    client_id: str
    buy: bool
    price: Decimal
    quantity: Decimal
    value: Decimal
    commission: Decimal
    asset: str
    maker: bool
    time_ms: int
    profit: Decimal = ZERO
    position_side: str = "BOTH"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened to an order, and how it stood afterwards. event: the venue's word for
    it (NEW, TRADE, CANCELED ...)."""

    time_ms: int
    event: str
    status: str
    quantity: Decimal
    price: Decimal
    executed: Decimal
    client_id: str
    trade: int = 0
    reason: str = ""


class Order(msgspec.Struct, eq=False, kw_only=True):
    """price: 0 for a market order. quote: cumulative value of what was executed. locked: what the
    wallet holds for it. reason: why it ended. first_fill: has the order counter been credited?"""

    number: int
    product: str
    account: str
    symbol: str
    client_id: str
    buy: bool
    kind: str
    tif: str
    price: Decimal
    quantity: Decimal
    created_ms: int
    updated_ms: int = 0
    working_ms: int = 0
    status: str = "NEW"
    executed: Decimal = ZERO
    quote: Decimal = ZERO
    quote_quantity: Decimal = ZERO  # quoteOrderQty as sent
    locked: Decimal = ZERO
    prevention: Prevention = Prevention.NONE
    prevented: Decimal = ZERO
    reduce_only: bool = False
    close_position: bool = False
    position_side: str = "BOTH"
    price_match: str = "NONE"
    good_till_ms: int = 0
    original_kind: str = ""
    strategy_id: int | None = None
    strategy_type: int | None = None
    amends: int = 0
    reason: str = ""
    first_fill: bool = False
    resting: Resting | None = None
    history: list[Step] = []
    trades: list[Trade] = []

    @property
    def open(self) -> bool:
        return self.status in OPEN

    @property
    def left(self) -> Decimal:
        return self.quantity - self.executed - self.prevented

    @property
    def side(self) -> str:
        return "BUY" if self.buy else "SELL"

    @property
    def average(self) -> Decimal:
        """Linear products: quote over base."""
        return self.quote / self.executed if self.executed else ZERO

    def note(self, event: str, time_ms: int, trade: int = 0) -> None:
        """Remember how the order stands now."""
        self.updated_ms = time_ms
        self.history.append(
            Step(
                time_ms=time_ms,
                event=event,
                status=self.status,
                quantity=self.quantity,
                price=self.price,
                executed=self.executed,
                client_id=self.client_id,
                trade=trade,
                reason=self.reason,
            )
        )
