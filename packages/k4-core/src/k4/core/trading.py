"""Orders, updates, fills, positions, balances: the contract between strategies, td and runner.

Prices, quantities and money are `decimal.Decimal` in memory and decimal text on every wire, never
floats; 0 stands for a figure that does not exist (the price of a market order). Times are
microseconds since the Unix epoch. Quantities are in the venue's unit: coins on spot and USD-M,
contracts on COIN-M.

    TradingError
    └── OrderError              `code` is stable text, `venue_code` the venue's number or None
        ├── NotSent             refused on this host: no byte of the order left it
        │   ├── InvalidOrder    order.*      the request contradicts itself or the product
        │   ├── FilterRefused   filter.*     tick, step, notional; carries the nearest valid value
        │   ├── RiskRefused     risk.*       a configured limit, with its figures
        │   ├── LocalLimit      limit.*      the venue's rate limit would be exceeded
        │   ├── NotReady        not_ready    not connected, not reconciled, or stopping
        │   ├── KeyRefused      key          a key that cannot be read or used
        │   └── JournalError    journal      the intent could not be made durable
        ├── VenueRefused        venue.*      the venue said no: not executed
        │   ├── RequestRefused, AuthRefused, ClockRefused, VenueLimit, VenueBusy, BalanceRefused,
        │   └── WouldNotRest, DuplicateOrder, OrderMissing, AmendRefused, FilterFailed, RuleRefused
        ├── OutcomeUnknown      unknown      only the venue can say whether it was executed
        └── GatewayError        gateway.*    between a strategy and the order gateway
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, TypeVar, get_type_hints

import msgspec

from k4.core.errors import TradingError

ZERO = Decimal(0)

MAX_DIGITS = 40
"""Digits that a figure may have before and after the point; a bound on hostile input."""


class AccountType(StrEnum):
    """spot, USD-margined futures, coin-margined futures."""

    SPOT = "spot"
    UBASE = "ubase"
    CBASE = "cbase"


class Direction(StrEnum):
    BUY = "buy"
    SELL = "sell"


class OrderType(StrEnum):
    """`limit` is `gtc`. `post_only` never takes; `gtd` needs `good_till_us`."""

    MARKET = "market"
    LIMIT = "limit"
    POST_ONLY = "post_only"
    GTC = "gtc"
    IOC = "ioc"
    FOK = "fok"
    GTD = "gtd"


class PositionSide(StrEnum):
    """`both` in one-way mode; `long` or `short` in hedge mode."""

    BOTH = "both"
    LONG = "long"
    SHORT = "short"


class OrderStatus(StrEnum):
    """What is known of an order. `unknown`: only the venue can say, and it is being asked."""

    PENDING_NEW = "pending_new"
    NEW = "new"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    PENDING_CANCEL = "pending_cancel"
    CANCELED = "canceled"
    REJECTED = "rejected"
    EXPIRED = "expired"
    UNKNOWN = "unknown"

    @property
    def final(self) -> bool:
        """Nothing more can happen to the order, except late reports of fills."""
        return self in _FINAL


_FINAL = frozenset(
    {OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REJECTED, OrderStatus.EXPIRED}
)


class NewOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a strategy wants.

    symbol: the venue's (`BTCUSDT`) or the unified (`BTC/USDT`) spelling. client_order_id: one per
    intent, never used again; '' lets K4 make one. good_till_us: for `gtd` alone. strategy_id: 0 for
    none. recv_window: ms, 0 takes the configured one.
    """

    symbol: str
    account_type: AccountType
    direction: Direction
    order_type: OrderType
    quantity: Decimal
    price: Decimal = ZERO
    client_order_id: str = ""
    strategy_id: int = 0
    reduce_only: bool = False
    position_side: PositionSide = PositionSide.BOTH
    good_till_us: int = 0
    recv_window: float = 0.0


class OrderUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """An order as it is known now: the order's fields and what has become of it.

    order_id: the venue's id as text, '' until known. filled_avg_price: 0 until an execution was
    told (Binance's futures answer without it). commission: in `commission_asset`, the first
    asset charged; each `Fill` carries its own. reason: why it was rejected, expired or unknown.
    """

    symbol: str
    account_type: AccountType
    direction: Direction
    order_type: OrderType
    quantity: Decimal
    price: Decimal = ZERO
    client_order_id: str = ""
    strategy_id: int = 0
    reduce_only: bool = False
    position_side: PositionSide = PositionSide.BOTH
    good_till_us: int = 0
    recv_window: float = 0.0
    order_id: str = ""
    status: OrderStatus = OrderStatus.UNKNOWN
    filled_quantity: Decimal = ZERO
    filled_avg_price: Decimal = ZERO
    commission: Decimal = ZERO
    commission_asset: str = ""
    update_time_us: int = 0
    reason: str = ""


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of an order, reported once per (account, symbol, trade_id)."""

    symbol: str
    account_type: AccountType
    direction: Direction
    client_order_id: str
    order_id: str
    trade_id: str
    price: Decimal
    quantity: Decimal
    commission: Decimal = ZERO
    commission_asset: str = ""
    is_maker: bool = False
    trade_time_us: int = 0


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """A futures position. quantity: signed, negative is short; 0 is flat."""

    symbol: str
    account_type: AccountType
    quantity: Decimal
    entry_price: Decimal = ZERO
    unrealized_pnl: Decimal = ZERO
    position_side: PositionSide = PositionSide.BOTH
    update_time_us: int = 0


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """Money of one asset. On futures `free` is what the venue calls available or cross wallet, and
    `locked` the rest of the wallet balance."""

    asset: str
    account_type: AccountType
    free: Decimal
    locked: Decimal = ZERO
    update_time_us: int = 0

    @property
    def total(self) -> Decimal:
        return self.free + self.locked


# What a trading module reports. The wire name of an event is its class's tag.


class OrderChanged(msgspec.Struct, frozen=True, tag="order_update"):
    update: OrderUpdate


class Filled(msgspec.Struct, frozen=True, tag="fill"):
    fill: Fill


class PositionChanged(msgspec.Struct, frozen=True, tag="position"):
    position: Position


class BalanceChanged(msgspec.Struct, frozen=True, tag="balance"):
    balance: Balance


class ForeignOrder(msgspec.Struct, frozen=True, tag="foreign_order"):
    """An order at the venue that this journal does not know: reported, never adopted."""

    update: OrderUpdate


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    """The account is reconciled with the venue and takes orders."""

    account_type: AccountType


class Disconnected(msgspec.Struct, frozen=True, tag="disconnected"):
    """Orders are refused until the next `connected`."""

    account_type: AccountType
    reason: str = ""


class KeyRefreshed(msgspec.Struct, frozen=True, tag="key_refreshed"):
    """The listen key of a futures stream was extended (`created` False) or made anew."""

    account_type: AccountType
    created: bool = False


class Fault(msgspec.Struct, frozen=True, tag="error"):
    """Something went wrong that no caller is waiting for. account_type: '' where it is all."""

    code: str
    message: str
    remedy: str = ""
    account_type: str = ""
    client_order_id: str = ""


Event = (
    OrderChanged
    | Filled
    | PositionChanged
    | BalanceChanged
    | ForeignOrder
    | Connected
    | Disconnected
    | KeyRefreshed
    | Fault
)


def event_name(event: Event) -> str:
    """What the event is called on the wire."""
    return str(type(event).__struct_config__.tag)


def event_account(event: Event) -> str:
    """The account type that it is about, '' for none in particular."""
    subject = getattr(event, event.__struct_fields__[0])
    return str(getattr(subject, "account_type", getattr(event, "account_type", "")))


# Decimals and structs as JSON values.


def decimal_text(value: Decimal) -> str:
    """`value` as plain decimal text, never with an exponent; trailing zeros are kept."""
    return format(value, "f")


def parse_decimal(text: object, name: str) -> Decimal:
    """The decimal that `text` writes. Raises InvalidOrder for anything but finite decimal text."""
    if not isinstance(text, str):
        raise InvalidOrder(
            name, f"{name} must be decimal text, not {text!r}", remedy='write it as "0.010"'
        )
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise InvalidOrder(name, f"{name} {text[:60]!r} is no decimal number") from None
    return bounded(value, name)


def bounded(value: Decimal, name: str) -> Decimal:
    """`value`, unless it is not finite or longer than any real figure."""
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        raise InvalidOrder(name, f"{name} is not finite")
    if value.adjusted() > MAX_DIGITS or exponent < -MAX_DIGITS:
        raise InvalidOrder(name, f"{name} has more than {MAX_DIGITS} digits")
    return value


def to_wire(value: msgspec.Struct) -> dict[str, Any]:
    """A struct of this module as a JSON object: decimals and enums as text."""
    return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}


def _plain(value: object) -> Any:
    if isinstance(value, Decimal):
        return decimal_text(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, msgspec.Struct):
        return to_wire(value)
    return value


_S = TypeVar("_S", bound=msgspec.Struct)
_HINTS: dict[type, dict[str, Any]] = {}


def from_wire(kind: type[_S], data: Mapping[str, Any]) -> _S:
    """The struct that a JSON object describes. Raises InvalidOrder, naming the field; a decimal
    that is written as a JSON number is refused, since it may have been a float."""
    hints = _HINTS.get(kind)
    if hints is None:
        hints = _HINTS[kind] = get_type_hints(kind)
    values = dict(data)
    for name, hint in hints.items():
        if hint is Decimal and name in values:
            values[name] = parse_decimal(values[name], name)
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise InvalidOrder("field", str(error)) from None


def event_data(event: Event) -> tuple[str, dict[str, Any]]:
    """The wire name of an event and its `data`."""
    name = event_name(event)
    match event:
        case OrderChanged(update=inner) | ForeignOrder(update=inner):
            return name, to_wire(inner)
        case Filled(fill=fill):
            return name, to_wire(fill)
        case PositionChanged(position=position):
            return name, to_wire(position)
        case BalanceChanged(balance=balance):
            return name, to_wire(balance)
        case _:
            return name, to_wire(event)


def event_from_wire(name: str, data: Mapping[str, Any]) -> Event:
    """The event that the gateway sent. Raises InvalidOrder for a name or data it never sends."""
    match name:
        case "order_update":
            return OrderChanged(from_wire(OrderUpdate, data))
        case "foreign_order":
            return ForeignOrder(from_wire(OrderUpdate, data))
        case "fill":
            return Filled(from_wire(Fill, data))
        case "position":
            return PositionChanged(from_wire(Position, data))
        case "balance":
            return BalanceChanged(from_wire(Balance, data))
    simple: type[msgspec.Struct] | None = _SIMPLE.get(name)
    if simple is None:
        raise InvalidOrder("event", f"no event is called {name[:60]!r}")
    return from_wire(simple, data)  # type: ignore[return-value]  # _SIMPLE holds events alone


_SIMPLE: dict[str, type[msgspec.Struct]] = {
    str(kind.__struct_config__.tag): kind for kind in (Connected, Disconnected, KeyRefreshed, Fault)
}


# Errors.


class OrderError(TradingError):
    """Base of all that can be said about a request. `code` is stable; see the module's tree.

    `order` is the order as it is known after the failure, where there is one.
    """

    family = "order"

    def __init__(
        self,
        what: str,
        message: str,
        *,
        remedy: str = "",
        venue_code: int | None = None,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.code = f"{self.family}.{what}" if what else self.family
        self.venue_code = venue_code
        self.retry_after = retry_after  # seconds; 0 where waiting does not help or is not known
        self.order: OrderUpdate | None = None


class NotSent(OrderError):
    """Refused on this host."""


class InvalidOrder(NotSent):
    """The request contradicts itself or the product. `code` is order.<field>."""


class FilterRefused(NotSent):
    """A filter of the venue would refuse it. `filter` names it, `nearest` is the nearest valid
    value, None where no value of that figure would pass."""

    family = "filter"

    def __init__(
        self, name: str, message: str, nearest: Decimal | None = None, *, remedy: str = ""
    ) -> None:
        hint = remedy or "no value of this figure passes: change the others"
        if nearest is not None:
            hint = f"nearest valid: {decimal_text(nearest)}"
        super().__init__(name, message, remedy=hint)
        self.filter = name
        self.nearest = nearest


class RiskRefused(NotSent):
    """A limit of the configuration. `rule` names it; the message carries the figures."""

    family = "risk"

    def __init__(self, rule: str, message: str, *, remedy: str = "") -> None:
        super().__init__(rule, message, remedy=remedy)
        self.rule = rule


class LocalLimit(NotSent):
    """The venue's rate limit would be exceeded; `retry_after` seconds from now it would not."""

    family = "limit"


class NotReady(NotSent):
    """The account does not take this request now."""

    family = "not_ready"


class KeyRefused(NotSent):
    """A key file that cannot be read, is open to others, or holds no usable key."""

    family = "key"


class JournalError(NotSent):
    """The journal cannot be used; without it nothing is sent."""

    family = "journal"


class VenueRefused(OrderError):
    """The venue refused; nothing was executed."""

    family = "venue"


class RequestRefused(VenueRefused):
    """Malformed or unsupported parameters."""


class AuthRefused(VenueRefused):
    """Key, signature, address or permission."""


class ClockRefused(VenueRefused):
    """The timestamp was outside of the window."""


class VenueLimit(VenueRefused):
    """A rate limit of the venue; nothing more may be sent for `retry_after` seconds."""


class VenueBusy(VenueRefused):
    """The venue is overloaded or in maintenance and did not execute."""


class BalanceRefused(VenueRefused):
    """Balance or margin."""


class WouldNotRest(VenueRefused):
    """Post-only that would take, fill-or-kill that cannot fill, stop that would trigger."""


class DuplicateOrder(VenueRefused):
    """The client order id is in use by an open order: the earlier send is live."""


class OrderMissing(VenueRefused):
    """The venue has no such open order; it may be final, or never have existed."""


class AmendRefused(VenueRefused):
    """The order cannot be changed like that."""


class FilterFailed(VenueRefused):
    """A filter of the venue failed there."""


class RuleRefused(VenueRefused):
    """Position mode, reduce-only, market state or another rule of the account."""


class OutcomeUnknown(OrderError):
    """Only the venue can say whether the request was executed."""

    family = "unknown"


class GatewayError(OrderError):
    """Between a strategy and the gateway: connection, framing, protocol."""

    family = "gateway"


_BY_FAMILY: dict[str, type[OrderError]] = {
    kind.family: kind
    for kind in (
        InvalidOrder,
        LocalLimit,
        NotReady,
        KeyRefused,
        JournalError,
        VenueRefused,
        OutcomeUnknown,
        GatewayError,
    )
}

VENUE_ERRORS: dict[str, type[VenueRefused]] = {
    "request": RequestRefused,
    "auth": AuthRefused,
    "clock": ClockRefused,
    "limit": VenueLimit,
    "busy": VenueBusy,
    "balance": BalanceRefused,
    "would_not_rest": WouldNotRest,
    "duplicate": DuplicateOrder,
    "missing": OrderMissing,
    "amend": AmendRefused,
    "filter": FilterFailed,
    "rule": RuleRefused,
}
"""The second part of a `venue.*` code, and its class."""


def error_data(error: OrderError) -> dict[str, Any]:
    """An error as the gateway sends it; what is empty is left out."""
    data: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.venue_code is not None:
        data["venue_code"] = error.venue_code
    if error.remedy:
        data["remedy"] = error.remedy
    if error.retry_after:
        data["retry_after"] = error.retry_after
    if isinstance(error, FilterRefused) and error.nearest is not None:
        data["nearest"] = decimal_text(error.nearest)
    if error.order is not None:
        data["order"] = to_wire(error.order)
    return data


def error_from_wire(data: Mapping[str, Any]) -> OrderError:
    """The error that `error_data` described, as the same class."""
    code, message = str(data.get("code", "gateway")), str(data.get("message", ""))
    family, _, what = code.partition(".")
    remedy = str(data.get("remedy", ""))
    error: OrderError
    if family == "filter":
        nearest = data.get("nearest")
        valid = Decimal(nearest) if nearest is not None else None
        error = FilterRefused(what, message, valid, remedy=remedy)
    elif family == "risk":
        error = RiskRefused(what, message, remedy=remedy)
    else:
        kind = _BY_FAMILY.get(family, GatewayError)
        if family == "venue":
            kind = VENUE_ERRORS.get(what, VenueRefused)
        error = kind(what, message, remedy=remedy, venue_code=data.get("venue_code"))
    error.retry_after = float(data.get("retry_after", 0.0))
    if isinstance(data.get("order"), dict):
        error.order = from_wire(OrderUpdate, data["order"])
    return error
