"""The state of one order: what the venue has said, joined. Pure.

Reports arrive in any order and more than once: an answer after the event that it caused, a query's
answer older than both. So a report is joined, not stepped through: a status moves up an order of
ranks and never down, the executed quantity only grows, fills are a set by trade id, and quantity
and price are those of the newest venue time. Whatever is lost is made good by any later report,
and the last query settles it: joined in any order, with any duplication, the same reports give the
same state.

    (intent) ── refused ──────────────────────────────────► rejected
       │  └──── nothing left, or lost ──► unknown ── "no such order", window closed ─► rejected
       ▼                                    │ any report
    pending_new ─► new ─► partially_filled ─┴─► filled
                    │          │  ▲ amend (quantity, price; newest time)
                    └──────────┴──┴── cancel, expiry, self-trade prevention ─► canceled, expired

`unknown` is no rank but a doubt: a request about the order whose outcome nobody knows. It is shown
instead of the status until the venue settles it, unless the order is final.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

import msgspec

from k4.core.trading import ZERO, AccountType, Fill, NewOrder, OrderStatus, OrderUpdate
from k4.td.venue import Report

PLACE, CANCEL, AMEND, STATUS = "place", "cancel", "amend", "status"

_RANK = {
    OrderStatus.PENDING_NEW: 0,
    OrderStatus.NEW: 1,
    OrderStatus.PENDING_CANCEL: 1,
    OrderStatus.PARTIALLY_FILLED: 2,
    OrderStatus.REJECTED: 3,
    OrderStatus.EXPIRED: 4,
    OrderStatus.CANCELED: 5,
    OrderStatus.FILLED: 6,
}


class OrderState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known about one order.

    order: the intent, never changed. venue: the highest status that the venue reported, None while
    it has reported none. quantity, price: now at the venue, by `figures_us`. executed, average:
    the largest cumulative figure reported, with its average. doubts: requests whose outcome is not
    known. waiting: requests that are under way. wanted: quantity and price of an amend in
    doubt or under way. refusal: why the venue (or the lack of any trace there) rejected it.
    """

    order: NewOrder
    foreign: bool = False
    order_id: str = ""
    venue: OrderStatus | None = None
    quantity: Decimal
    price: Decimal
    figures_us: int = 0
    executed: Decimal = ZERO
    average: Decimal = ZERO
    fills: dict[str, Fill] = {}
    doubts: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    wanted: tuple[Decimal, Decimal] | None = None
    refusal: str = ""
    rejected: bool = False
    reason: str = ""
    time_us: int = 0

    @property
    def account(self) -> AccountType:
        return self.order.account_type

    @property
    def final(self) -> bool:
        return self.rejected or (self.venue is not None and self.venue.final)

    @property
    def status(self) -> OrderStatus:
        if self.venue is not None and self.venue.final:
            return self.venue
        if self.doubts:
            return OrderStatus.UNKNOWN
        if self.rejected:
            return OrderStatus.REJECTED
        if self.venue is None:
            return OrderStatus.PENDING_NEW
        if CANCEL in self.waiting:
            return OrderStatus.PENDING_CANCEL
        if self.filled > 0 and self.venue is not OrderStatus.PENDING_CANCEL:
            return OrderStatus.PARTIALLY_FILLED
        return self.venue

    @property
    def filled(self) -> Decimal:
        return max(self.executed, sum((fill.quantity for fill in self.fills.values()), ZERO))

    @property
    def exposure(self) -> Decimal:
        """What may still trade: nothing when final, everything when unknown, else the rest. An
        amend that may have come through counts with the larger quantity."""
        if self.final:
            return ZERO
        quantity = max(self.quantity, self.wanted[0]) if self.wanted else self.quantity
        return quantity if self.doubts else max(ZERO, quantity - self.filled)

    @property
    def average_price(self) -> Decimal:
        traded = sum((fill.quantity for fill in self.fills.values()), ZERO)
        if traded > 0 and traded >= self.executed:
            worth = sum((fill.quantity * fill.price for fill in self.fills.values()), ZERO)
            return worth / traded
        return self.average


def intend(order: NewOrder, time_us: int) -> OrderState:
    """A new order, before anything is sent."""
    return OrderState(
        order=order,
        quantity=order.quantity,
        price=order.price,
        waiting=(PLACE,),
        time_us=time_us,
    )


def foreign(report: Report, account: AccountType) -> OrderState:
    """An order that somebody else placed."""
    order = NewOrder(
        symbol=report.symbol,
        account_type=account,
        direction=report.direction,
        order_type=report.order_type,
        quantity=report.quantity,
        price=report.price,
        client_order_id=report.client_order_id,
        reduce_only=report.reduce_only,
        position_side=report.position_side,
        good_till_us=report.good_till_us,
    )
    blank = OrderState(order=order, foreign=True, quantity=report.quantity, price=report.price)
    return hear(blank, report)


def hear(state: OrderState, report: Report) -> OrderState:
    """Join the venue's word. A report proves that the order exists, whatever was thought before."""
    known = report.status is not OrderStatus.UNKNOWN
    venue = _higher(state.venue, report.status) if known else state.venue
    doubts = _without(state.doubts, PLACE, STATUS)
    if not known and not (venue is not None and venue.final):
        doubts = _with(doubts, STATUS)
    newer = report.figures and report.quantity > 0 and report.time_us >= state.figures_us
    more = report.executed > state.executed
    same = report.executed == state.executed and not state.average
    state = msgspec.structs.replace(
        state,
        order_id=report.order_id or state.order_id,
        venue=venue,
        quantity=report.quantity if newer else state.quantity,
        price=report.price if newer else state.price,
        figures_us=report.time_us if newer else state.figures_us,
        executed=report.executed if more else state.executed,
        average=report.average if more or same else state.average,
        doubts=doubts,
        rejected=False,
        refusal="",
        reason=report.reason or state.reason,
        time_us=max(state.time_us, report.time_us),
    )
    if newer and state.wanted == (report.quantity, report.price):
        state = settle(state, AMEND)
    state = fill(state, report.fills)
    return _closed(state) if state.final else state


def fill(state: OrderState, fills: Iterable[Fill]) -> OrderState:
    """Add executions; one that is known by its trade id changes nothing."""
    added = {entry.trade_id: entry for entry in fills if entry.trade_id not in state.fills}
    if not added:
        return state
    venue = state.venue
    if venue is None or not venue.final:
        venue = _higher(venue, OrderStatus.PARTIALLY_FILLED)
    return msgspec.structs.replace(
        state,
        fills={**state.fills, **added},
        venue=venue,
        rejected=False,
        refusal="",
        doubts=_without(state.doubts, PLACE),
        order_id=state.order_id or next(iter(added.values())).order_id,
        time_us=max(state.time_us, *(entry.trade_time_us for entry in added.values())),
    )


def ask(
    state: OrderState, request: str, wanted: tuple[Decimal, Decimal] | None = None
) -> OrderState:
    """A cancel or an amend is about to leave."""
    return msgspec.structs.replace(
        state, waiting=_with(state.waiting, request), wanted=wanted or state.wanted
    )


def settle(state: OrderState, request: str) -> OrderState:
    """The outcome of a request is known, whatever it was."""
    return msgspec.structs.replace(
        state,
        waiting=_without(state.waiting, request),
        doubts=_without(state.doubts, request),
        wanted=None if request == AMEND else state.wanted,
    )


def refuse(state: OrderState, reason: str) -> OrderState:
    """The venue refused to place it. A report that it did exist after all overrides this."""
    state = settle(state, PLACE)
    if state.venue is not None:
        return state
    return msgspec.structs.replace(state, rejected=True, refusal=reason, reason=reason)


def doubt(state: OrderState, request: str, reason: str) -> OrderState:
    """The outcome of a request is not known. Where the order is final, or its placing proven, there
    is nothing to doubt."""
    state = msgspec.structs.replace(state, waiting=_without(state.waiting, request))
    if state.final or (request == PLACE and state.venue is not None):
        return settle(state, request)
    return msgspec.structs.replace(state, doubts=_with(state.doubts, request), reason=reason)


def close(state: OrderState, status: OrderStatus, reason: str) -> OrderState:
    """The venue keeps no record: over, in whatever way it was."""
    return _closed(msgspec.structs.replace(state, venue=status, reason=reason))


def view(state: OrderState) -> OrderUpdate:
    """The state as strategies see it."""
    order = state.order
    charged = next((entry for entry in state.fills.values() if entry.commission_asset), None)
    asset = charged.commission_asset if charged else ""
    return OrderUpdate(
        symbol=order.symbol,
        account_type=order.account_type,
        direction=order.direction,
        order_type=order.order_type,
        quantity=state.quantity,
        price=state.price,
        client_order_id=order.client_order_id,
        strategy_id=order.strategy_id,
        reduce_only=order.reduce_only,
        position_side=order.position_side,
        good_till_us=order.good_till_us,
        recv_window=order.recv_window,
        order_id=state.order_id,
        status=state.status,
        filled_quantity=state.filled,
        filled_avg_price=state.average_price,
        commission=sum(
            (entry.commission for entry in state.fills.values() if entry.commission_asset == asset),
            ZERO,
        ),
        commission_asset=asset,
        update_time_us=state.time_us,
        reason=state.reason,
    )


def _higher(one: OrderStatus | None, other: OrderStatus) -> OrderStatus:
    return other if one is None or _RANK[other] > _RANK[one] else one


def _closed(state: OrderState) -> OrderState:
    """Nothing is in doubt about a final order, and nothing is awaited."""
    return msgspec.structs.replace(state, doubts=(), wanted=None)


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return names if name in names else (*names, name)


def _without(names: tuple[str, ...], *gone: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in gone)
