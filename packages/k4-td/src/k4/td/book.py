"""What is known of one account: its orders, positions, balances and fills, and how they change.

Every change goes one way: joined into what is known (`state.py`), remembered, written down, told.
So events need no buffering while a snapshot is under way, and may come twice and in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal

import msgspec

from k4.core.trading import (
    ZERO,
    AccountType,
    Balance,
    BalanceChanged,
    Direction,
    Event,
    Fill,
    Filled,
    ForeignOrder,
    JournalError,
    NewOrder,
    OrderChanged,
    OrderMissing,
    OrderUpdate,
    Position,
    PositionChanged,
    PositionSide,
)
from k4.td import state as states
from k4.td.filters import SymbolRules
from k4.td.journal import Journal
from k4.td.orders import Orders, name_of
from k4.td.risk import Figures
from k4.td.state import OrderState
from k4.td.venue import Report, Venue


class Book:
    """Sends nothing. emit: gets every event. changed: gets every order that is new or different,
    after it was told. failed: gets what could not be written down, and about which order.

    heads: the highest trade id of each symbol.
    """

    def __init__(
        self,
        venue: Venue,
        journal: Journal,
        emit: Callable[[Event], None],
        changed: Callable[[OrderState], None],
        failed: Callable[[JournalError, str], None],
    ) -> None:
        self.type = venue.account
        self.orders = Orders()
        self.positions: dict[tuple[str, PositionSide], Position] = {}
        self.balances: dict[str, Balance] = {}
        self.heads: dict[str, int] = {}
        self._venue = venue
        self._journal = journal
        self._emit = emit
        self._changed = changed
        self._failed = failed
        # Fills that the position or balance known now does not yet contain: the venue tells of the
        # two in separate events, and the risk gate must not miss what is between them.
        self._unsettled: dict[tuple[str, PositionSide], list[Fill]] = {}
        # Orders whose last change the journal did not take, with the executions in it.
        self._unwritten: dict[str, list[Fill]] = {}

    def replay(self) -> list[str]:
        """Load what the journal left open. The orders whose strategies wanted them cancelled when
        they disconnect, which they did with the last process."""
        kept = self._journal.open_orders(self.type)
        for entry in kept:
            self.orders.put(entry.state)
        return [entry.state.order.client_order_id for entry in kept if entry.cancel_on_disconnect]

    # Orders.

    def known(self, key: str) -> OrderState:
        """Raises OrderMissing for an id that this journal has never seen."""
        state = self.orders.get(key) or self._journal.find(self.type, key)
        if state is None:
            raise OrderMissing(
                "missing", f"no order {key[:60]!r} is known here", remedy="check client_order_id"
            )
        return state

    def view(self, key: str) -> OrderUpdate:
        return states.view(self.known(key))

    def key_of(self, client_order_id: str, order_id: str, symbol: str) -> str | None:
        """What an order is found by here, from whatever a caller knows of it; None for an order
        that this account has never seen."""
        if client_order_id:
            known = self.orders.get(client_order_id) is not None
            known = known or self._journal.find(self.type, client_order_id) is not None
            return client_order_id if known else None
        rules = self._venue.symbols.known(symbol)
        name = rules.symbol if rules is not None else symbol
        state = self.orders.by_venue_id(name, order_id)
        state = state or self._journal.find_by_venue_id(self.type, name, order_id)
        return name_of(state) if state is not None else None

    def key(self, report: Report) -> str:
        return report.client_order_id or f"#{report.order_id}"

    def find(self, report: Report) -> OrderState | None:
        """The order that a report is about."""
        state = self.orders.get(self.key(report))
        if state is None and report.client_order_id:
            state = self._journal.find(self.type, report.client_order_id)
        return state or self.orders.by_venue_id(report.symbol, report.order_id)

    def put(self, state: OrderState) -> None:
        """A new order, written down already."""
        self.orders.put(state)
        self._emit(OrderChanged(states.view(state)))

    def foreign(self, report: Report) -> None:
        """An order that is not in the journal."""
        state = states.foreign(report, self.type)
        if state.final and not report.fills:
            return
        self.orders.put(state)
        self._emit(ForeignOrder(states.view(state)))
        self._filled(state, state.fills.values())

    def change(self, state: OrderState) -> None:
        """The order is now thus: remember, write down, tell. A journal that cannot be written
        stops new orders (their intents fail), not the truth about those that are out."""
        key = name_of(state)
        before = self.orders.get(key)
        if before is None and not state.foreign:
            before = self._journal.find(self.type, key)
        if state == before:
            return
        known = before.fills if before is not None else {}
        fills = [fill for name, fill in state.fills.items() if name not in known]
        self.orders.put(state)
        if not state.foreign:
            self._write(state, before, fills)
        self._filled(state, fills)
        if before is None or states.view(before) != states.view(state):
            update = states.view(state)
            self._emit(ForeignOrder(update) if state.foreign else OrderChanged(update))
        self._changed(state)

    def _write(self, state: OrderState, before: OrderState | None, fills: list[Fill]) -> None:
        key = name_of(state)
        fills = self._unwritten.pop(key, []) + fills
        try:
            self._journal.save(state, fills)
            if before is not None and before.doubts and not (state.doubts or state.waiting):
                self._journal.settled(state)
        except JournalError as error:
            self._unwritten[key] = fills
            self._failed(error, key)

    def rewrite(self) -> None:
        """Write what the journal did not take. Raises JournalError where it still does not."""
        for key, fills in list(self._unwritten.items()):
            state = self.known(key)
            self._journal.save(state, fills)
            if not (state.doubts or state.waiting):
                self._journal.settled(state)
            del self._unwritten[key]

    # Executions.

    def _filled(self, state: OrderState, fills: Iterable[Fill]) -> None:
        holding = state.order.symbol, state.order.position_side
        for fill in fills:
            self._unsettled.setdefault(holding, []).append(fill)
            self._note_head(fill)
            self._emit(Filled(fill))

    def late_fill(self, fill: Fill) -> None:
        """An execution from the venue's list, which names orders by the venue's id alone."""
        state = self.orders.by_venue_id(fill.symbol, fill.order_id)
        if state is None:
            state = self._journal.find_by_venue_id(self.type, fill.symbol, fill.order_id)
        self._note_head(fill)
        if state is None or state.foreign:
            self._journal.add_fills([fill])
            return
        named = msgspec.structs.replace(fill, client_order_id=state.order.client_order_id)
        self.change(states.fill(state, [named]))

    def _note_head(self, fill: Fill) -> None:
        trade = int(fill.trade_id)
        self.heads[fill.symbol] = max(trade, self.heads.get(fill.symbol, trade))

    def settle_fills(self, until_us: int) -> None:
        """Positions and balances known now contain every fill before this time of the venue."""
        for key, fills in self._unsettled.items():
            self._unsettled[key] = [fill for fill in fills if fill.trade_time_us >= until_us]

    # Positions and balances.

    def position(self, position: Position) -> None:
        key = position.symbol, position.position_side
        known = self.positions.get(key)
        if known is not None and known.update_time_us > position.update_time_us:
            return
        self.positions[key] = position
        if position != known:
            self._emit(PositionChanged(position))

    def balance(self, balance: Balance) -> None:
        known = self.balances.get(balance.asset)
        if known is not None and known.update_time_us > balance.update_time_us:
            return
        self.balances[balance.asset] = balance
        if balance != known:
            self._emit(BalanceChanged(balance))

    # For the risk gate.

    def figures(
        self, order: NewOrder, rules: SymbolRules, leave_out: OrderState | None = None
    ) -> Figures:
        """What is open now. leave_out: the order that this one takes the place of."""
        buys = self.orders.exposure(order.symbol, order.position_side, Direction.BUY)
        sells = self.orders.exposure(order.symbol, order.position_side, Direction.SELL)
        if leave_out is not None and order.direction is Direction.BUY:
            buys -= leave_out.exposure
        elif leave_out is not None:
            sells -= leave_out.exposure
        told = leave_out.fills.values() if leave_out is not None else ()
        return Figures(
            position=self._position(order, rules),
            buys=buys,
            sells=sells,
            open_orders=self.orders.open_count - (leave_out is not None),
            done=sum((fill.quantity for fill in told), ZERO),
        )

    def _position(self, order: NewOrder, rules: SymbolRules) -> Decimal:
        """With the fills that happened after it was last told."""
        quantity, told_us = ZERO, 0
        if self.type is AccountType.SPOT:  # what is owned of the base asset
            balance = self.balances.get(rules.base)
            if balance is not None:
                quantity, told_us = balance.total, balance.update_time_us
        else:
            position = self.positions.get((order.symbol, order.position_side))
            if position is not None:
                quantity, told_us = position.quantity, position.update_time_us
        key = order.symbol, order.position_side
        later = [f for f in self._unsettled.get(key, ()) if f.trade_time_us > told_us]
        self._unsettled[key] = later
        for fill in later:
            quantity += fill.quantity if fill.direction is Direction.BUY else -fill.quantity
        return quantity
