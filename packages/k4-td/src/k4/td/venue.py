"""The seam: what a trading venue is to K4. A plug-in names an `Exchange` in `k4.td.exchanges`.

A venue turns calls into requests and answers into values, and keeps its connections alive. It
decides nothing about orders: state, journal, risk and recovery are written once, in `account.py`.

Rules for a venue:

- A call ends in one of three ways: a value; `VenueRefused`, when the venue has said that nothing
  was executed; `OutcomeUnknown`, for everything else after the first byte may have left. `NotSent`
  errors are raised before that byte. It never sends a request again whose outcome is not known.
- Trade ids are decimal integers that rise within a symbol.
- Reports come in any order, and more than once. Answers to calls are returned, not reported.
- `up` follows when the stream of events is subscribed; everything that happens at the venue after
  `up` is reported, or `down` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Protocol

import msgspec

from k4.core.clock import Clock
from k4.core.config import TradingConfig
from k4.core.trading import (
    ZERO,
    AccountType,
    Balance,
    Direction,
    Fault,
    Fill,
    NewOrder,
    OrderStatus,
    OrderType,
    Position,
    PositionSide,
    VenueRefused,
)
from k4.td.symbols import SymbolBook
from k4.td.timing import Timing


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The venue's word on one order, wherever it came from.

    quantity, price: as they are now at the venue. executed: cumulative. average: of `executed`, 0
    where the venue does not say. time_us: the venue's, for ordering; 0 unknown. An acknowledgement
    without figures has `figures` False: it proves that the order exists, nothing more.
    """

    symbol: str
    client_order_id: str
    order_id: str
    status: OrderStatus
    direction: Direction = Direction.BUY
    order_type: OrderType = OrderType.LIMIT
    quantity: Decimal = ZERO
    price: Decimal = ZERO
    executed: Decimal = ZERO
    average: Decimal = ZERO
    reduce_only: bool = False
    position_side: PositionSide = PositionSide.BOTH
    good_till_us: int = 0
    time_us: int = 0
    reason: str = ""
    figures: bool = True
    fills: tuple[Fill, ...] = ()


class OrderRef(msgspec.Struct, frozen=True, kw_only=True):
    """Which order: the client's id, and the venue's where it is known. recv_window: ms."""

    symbol: str
    client_order_id: str
    order_id: str = ""
    recv_window: float = 0.0


class Replaced(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a cancel-and-replace, which is not atomic: each half a report or a refusal;
    None where it was not attempted."""

    canceled: Report | VenueRefused
    placed: Report | VenueRefused | None


class VenueSink(Protocol):
    """Where a venue puts what it hears."""

    def up(self) -> None:
        """The event stream is complete from now on."""
        ...

    def down(self, reason: str) -> None:
        """Events may be lost from now on, until the next `up`."""
        ...

    def report(self, report: Report) -> None: ...

    def position(self, position: Position) -> None: ...

    def balance(self, balance: Balance) -> None: ...

    def key_refreshed(self, created: bool) -> None: ...

    def fault(self, fault: Fault) -> None: ...


class Venue(Protocol):
    """One account type at one venue. Every coroutine may raise OrderError; see the module."""

    account: AccountType
    symbols: SymbolBook
    replaces: bool
    """Price changes need cancel-and-replace (spot); else orders are changed in place."""

    @property
    def clock_error(self) -> float:
        """Seconds that the estimate of the venue's clock may be off."""
        ...

    def now_us(self) -> int:
        """The venue's time, as well as it is known."""
        ...

    async def open(self, sink: VenueSink) -> None:
        """Load symbols, check the clock and begin to connect. `sink.up` follows."""
        ...

    async def close(self) -> None: ...

    def suspect(self, reason: str) -> None:
        """The event stream is silent where it owes an event: connect it anew."""
        ...

    def validate(self, order: NewOrder) -> None:
        """Raise InvalidOrder for what the product cannot do, LocalLimit where a rate limit leaves
        no room now. Called before the intent is written down."""
        ...

    async def place(self, order: NewOrder) -> Report: ...

    async def cancel(self, ref: OrderRef) -> Report: ...

    async def amend(self, ref: OrderRef, order: NewOrder) -> Report:
        """Change quantity and price in place to those of `order`."""
        ...

    async def replace(self, ref: OrderRef, order: NewOrder) -> Replaced:
        """Cancel an order that has no fill, and place another, in one request."""
        ...

    async def cancel_all(self, symbol: str) -> None:
        """Cancel whatever is open on a symbol, conditional orders included."""
        ...

    async def order(self, ref: OrderRef) -> Report:
        """Raises OrderMissing where the venue knows no such order."""
        ...

    async def open_orders(self, symbol: str = "") -> list[Report]: ...

    async def fills(self, symbol: str, after_trade_id: str, since_us: int) -> list[Fill]:
        """Own executions after a trade id, oldest first; since a time where the id is ''."""
        ...

    async def order_fills(self, symbol: str, order_id: str) -> list[Fill]:
        """The executions of one order."""
        ...

    async def positions(self) -> list[Position]: ...

    async def balances(self) -> list[Balance]: ...


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """A venue that K4 can trade. make(config, account, clock, timing): one `Venue`, opening
    nothing; the venues of one config share what the venue shares (keys, limits). Raises K4Error
    for keys and URLs that cannot work.

    client_id(nonce): a client order id in the venue's pattern.
    """

    name: str
    make: Callable[[TradingConfig, Clock, Timing], dict[AccountType, Venue]]
    client_id: Callable[[str], str]
