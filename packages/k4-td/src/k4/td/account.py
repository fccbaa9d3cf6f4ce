"""One account at one venue: every request from intent to outcome.

The order of things is the promise: checks, then the journal, then the venue, then what came of it.
A request whose outcome is not known leaves its order in doubt, which only the venue settles (see
`resolve.py`); nothing is sent again because no answer came. What is known is kept in `book.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

import msgspec

from k4.core.clock import Clock
from k4.core.errors import SymbolError
from k4.core.retry import backoff
from k4.core.trading import (
    ZERO,
    Balance,
    ClockRefused,
    Connected,
    Disconnected,
    DuplicateOrder,
    Event,
    Fault,
    InvalidOrder,
    JournalError,
    KeyRefreshed,
    LocalLimit,
    NewOrder,
    NotReady,
    NotSent,
    OrderError,
    OrderMissing,
    OrderStatus,
    OrderUpdate,
    OutcomeUnknown,
    Position,
    VenueBusy,
    VenueLimit,
    VenueRefused,
)
from k4.core.waiting import sleep
from k4.td import filters
from k4.td import state as states
from k4.td.amending import Amender
from k4.td.book import Book
from k4.td.filters import SymbolRules
from k4.td.journal import ONE_ID, Journal
from k4.td.kill import KillSwitch
from k4.td.orders import name_of
from k4.td.owed_fills import OwedFills, owed
from k4.td.quotes import Quote, Quotes
from k4.td.recovery import Recovery
from k4.td.request import Request
from k4.td.resolver import Resolver
from k4.td.risk import RiskGate
from k4.td.state import CANCEL, PLACE, OrderState
from k4.td.timing import Timing
from k4.td.venue import OrderRef, Report, Venue

_PASSING = (LocalLimit, NotReady, VenueBusy, VenueLimit, ClockRefused)
"""Refusals of a cancel that say nothing about the order: the same may be allowed a moment later."""


class Account:
    """Implements `VenueSink`. `emit` gets every event; `ready` says whether orders are taken."""

    def __init__(
        self,
        venue: Venue,
        journal: Journal,
        gate: RiskGate,
        quotes: Quotes,
        kill: KillSwitch,
        clock: Clock,
        timing: Timing,
        recv_window: float,
        make_id: Callable[[], str],
        emit: Callable[[Event], None],
    ) -> None:
        self.venue = venue
        self.type = venue.account
        self.journal = journal
        self.book = Book(venue, journal, emit, self._changed, self._unwritten)
        self.clock = clock
        self.timing = timing
        self.recv_window = recv_window
        self.emit = emit
        self.ready = asyncio.Event()
        self.stopping = False
        self.gate = gate
        self._quotes = quotes
        self.kill = kill
        self.make_id = make_id
        self._tasks: set[asyncio.Task[Any]] = set()
        self._requests = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._unheard: set[str] = set()
        self._heard_early: set[str] = set()
        self._unwanted: set[str] = set()
        self._leaving: set[str] = set()
        self.resolver = Resolver(self)
        self._recovery = Recovery(self)
        self._amender = Amender(self)
        self.owed_fills = OwedFills(self)

    # Life.

    def replay(self) -> None:
        """Load what the journal left open."""
        self._recovery.orphans = self.book.replay()

    async def open(self) -> None:
        """Begin; `ready` is set when the account is reconciled. Raises OrderError."""
        await self.venue.open(self)

    async def close(self) -> None:
        """Take no more; wait a little for answers, then close. What is still open in the journal
        is in doubt at the next start, as after a crash."""
        self.stopping = True
        self.ready.clear()
        timer = self.clock.call_later(self.timing.drain, self._quiet.set)
        await self._quiet.wait()
        timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.venue.close()
        self._quotes.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that ends with the account; an error that nobody expected is reported."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)
        return task

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            code = error.code if isinstance(error, OrderError) else "internal"
            self.complain(code, f"{type(error).__name__}: {error}")

    def complain(
        self, code: str, message: str, remedy: str = "", client_order_id: str = ""
    ) -> None:
        self.emit(
            Fault(
                code=code,
                message=message,
                remedy=remedy,
                account_type=self.type.value,
                client_order_id=client_order_id,
            )
        )

    # Orders.

    async def place(
        self, order: NewOrder, owner: str = "", cancel_on_disconnect: bool = False
    ) -> OrderUpdate:
        """Send a new order. The order as it is after the venue's answer, or unknown; raises
        NotSent or VenueRefused, with the rejected order in `error.order` where it was written
        down."""
        order = self._prepare(order)
        rules = self.check(order)
        self.venue.validate(order)
        self.gate.check(
            order,
            rules,
            self.book.figures(order, rules),
            self.quote(rules),
            self.clock.monotonic(),
        )
        state = states.intend(order, self.now_us())
        self.journal.intend_place(state, owner, cancel_on_disconnect)
        self.book.put(state)
        key = order.client_order_id
        with Request(self, key, PLACE):
            try:
                report = await self.venue.place(order)
            except DuplicateOrder as error:
                # The id is unique to this journal, so the live order can only be this one.
                self.doubt(key, PLACE, str(error))
            except (VenueRefused, NotSent) as error:
                self.book.change(states.refuse(self.book.known(key), error.message))
                error.order = self.book.view(key)
                raise
            except OutcomeUnknown as error:
                self.doubt(key, PLACE, error.message)
            else:
                self.expect_event(key)
                self.book.change(states.hear(states.settle(self.book.known(key), PLACE), report))
        return self.book.view(key)

    def admit(self) -> None:
        """Raise RiskRefused where trading is killed, NotReady where journal and venue may disagree:
        then nothing may leave that could add to what is open."""
        self.kill.check()
        if self.stopping or not self.ready.is_set():
            raise NotReady(
                "stopping" if self.stopping else "disconnected",
                f"{self.type} is not connected and reconciled",
                remedy="wait for the connected event",
            )

    def _prepare(self, order: NewOrder) -> NewOrder:
        """With the venue's spelling of the symbol and a client id."""
        self.admit()
        rules = self._rules(order.symbol)
        key = order.client_order_id or self.make_id()
        if self.book.orders.get(key) is not None:
            raise JournalError(
                "client_order_id", f"client order id {key!r} was used before", remedy=ONE_ID
            )
        return msgspec.structs.replace(order, symbol=rules.symbol, client_order_id=key)

    def _rules(self, symbol: str) -> SymbolRules:
        try:
            return self.venue.symbols.find(symbol)
        except SymbolError as error:
            remedy = error.remedy or "give the venue's symbol or BASE/QUOTE; hello lists them"
            raise InvalidOrder("symbol", error.message, remedy=remedy) from None

    def check(self, order: NewOrder, *, changes: bool = False) -> SymbolRules:
        """Pass the filters, or raise. changes: it takes the place of one that is open."""
        rules = self._rules(order.symbol)
        quote = self.quote(rules)
        reference = (
            filters.worst_price(order.direction, quote.bid, quote.ask)
            if quote is not None
            else ZERO
        )
        open_now = self.book.orders.open_on(rules.symbol) - changes
        filters.check(rules, order, reference, open_now)
        return rules

    def quote(self, rules: SymbolRules) -> Quote | None:
        return self._quotes.quote(rules.symbol)

    async def cancel(self, key: str) -> OrderUpdate:
        """Ask the venue to cancel. The order as it is then: canceled, or unknown. Raises
        OrderMissing, with the order in `error.order`, where the venue has nothing to cancel."""
        state = self.book.known(key)
        if state.final:
            raise self.finality(state)
        seq = self._noted(lambda: self.journal.intend(state, "cancel", {}, self.now_us()), key)
        self.book.change(states.ask(state, CANCEL))
        with Request(self, key, CANCEL, seq) as request:
            try:
                report = await self.venue.cancel(self.ref(state))
            except OrderMissing as error:
                # Final already, or not yet there: only a query can tell which.
                request.outcome(error.message)
                self.book.change(states.settle(self.book.known(key), CANCEL))
                await self.resolver.look(key)
                error.order = self.book.view(key)
                raise
            except (VenueRefused, NotSent) as error:
                request.outcome(error.message)
                self.book.change(states.settle(self.book.known(key), CANCEL))
                error.order = self.book.view(key)
                raise
            except OutcomeUnknown as error:
                request.outcome(f"unknown: {error.message}")
                self.doubt(key, CANCEL, error.message)
            else:
                request.outcome("done")
                self.book.change(states.hear(states.settle(self.book.known(key), CANCEL), report))
        return self.book.view(key)

    async def amend(
        self, key: str, quantity: Decimal | None, price: Decimal | None, owner: str, cancels: bool
    ) -> OrderUpdate:
        """See `Amender.amend`."""
        return await self._amender.amend(key, quantity, price, owner, cancels)

    async def cancel_all(self, symbol: str = "") -> list[OrderUpdate]:
        """Cancel everything open at the venue, foreign and conditional orders included. What was
        open, as it is then; an order that is not final there was not confirmed. Raises OrderError
        where the venue could not be asked."""
        wanted = self._rules(symbol).symbol if symbol else ""
        seq = self._noted(lambda: self.journal.intend_cancel_all(self.type, wanted, self.now_us()))
        return await self._recovery.cancel_all(wanted, seq)

    def _noted(self, intend: Callable[[], int], key: str = "") -> int:
        """The number of a cancel's intent; 0 where the journal takes none. A full disk must not
        keep orders open, and nothing hangs on it: what is open in the journal is asked for at the
        next start, cancelled or not."""
        try:
            return intend()
        except JournalError as error:
            self._unwritten(error, key)
            return 0

    # Queries.

    async def query(self, key: str) -> OrderUpdate:
        """The venue's word on one order. Raises OrderMissing where it knows none and the order was
        never in doubt."""
        state = self.book.known(key)
        try:
            self.report(await self.venue.order(self.ref(state)))
        except OrderMissing as error:
            state = self.book.known(key)
            if state.venue is None and (state.doubts or state.waiting or state.final):
                return self.book.view(key)
            error.order = self.book.view(key)
            raise
        return self.book.view(key)

    async def query_open(self, symbol: str = "") -> list[OrderUpdate]:
        """What is open: the venue's list, and what is in doubt here. Never a partial list."""
        wanted = self._rules(symbol).symbol if symbol else ""
        listed = await self.venue.open_orders(wanted)
        for report in listed:
            self.report(report)
        keys = {self.book.key(report) for report in listed}
        return [
            states.view(state)
            for state in self.book.orders.open()
            if (not wanted or state.order.symbol == wanted)
            and (name_of(state) in keys or state.doubts or state.waiting)
        ]

    async def query_positions(self) -> list[Position]:
        return await self._recovery.load_positions()

    async def query_balances(self) -> list[Balance]:
        return await self._recovery.load_balances()

    # What the venue says.

    def up(self) -> None:
        self._recovery.begin()

    def down(self, reason: str) -> None:
        self._recovery.halt()
        self.ready.clear()
        if not self.stopping:
            self.emit(Disconnected(account_type=self.type, reason=reason))

    def report(self, report: Report) -> None:
        """A report of an event or a query."""
        state = self.book.find(report)
        if state is None:
            self.book.foreign(report)
            return
        key = state.order.client_order_id
        self._unheard.discard(key)
        if PLACE in state.waiting:
            self._heard_early.add(key)
        self.book.change(states.hear(state, report))

    def position(self, position: Position) -> None:
        self.book.position(position)

    def balance(self, balance: Balance) -> None:
        self.book.balance(balance)

    def fault(self, fault: Fault) -> None:
        self.emit(fault)

    async def complete_fills(self, key: str) -> None:
        """Fetch the executions that the order's cumulative figure includes and no event told."""
        state = self.book.known(key)
        if not owed(state):
            return
        for fill in await self.venue.order_fills(state.order.symbol, state.order_id):
            self.book.late_fill(fill)

    def key_refreshed(self, created: bool) -> None:
        self.emit(KeyRefreshed(account_type=self.type, created=created))

    def connected(self) -> None:
        """Reconciled: take orders. What the lost stream did not tell of is known by now."""
        self._unheard.clear()
        self.ready.set()
        self.emit(Connected(account_type=self.type))
        for state in self.book.orders.open():
            self._enforce(state)

    # The state of orders.

    def _changed(self, state: OrderState) -> None:
        self.owed_fills.watch(state)
        if state.final:
            self._unwanted.discard(name_of(state))
        self._enforce(state)

    def _unwritten(self, error: JournalError, key: str) -> None:
        self.complain(error.code, error.message, error.remedy, key)

    def ref(self, state: OrderState) -> OrderRef:
        return OrderRef(
            symbol=state.order.symbol,
            client_order_id=state.order.client_order_id,
            order_id=state.order_id,
            recv_window=state.order.recv_window,
        )

    def doubt(self, key: str, request: str, reason: str) -> None:
        """The outcome of a request is not known: show it, and ask the venue."""
        self.book.change(states.doubt(self.book.known(key), request, reason))
        if self.book.known(key).doubts:
            self.resolver.begin(key)

    def resolve(self, key: str) -> None:
        """Ask the venue about an order that is in doubt already."""
        self.resolver.begin(key)

    def finality(self, state: OrderState) -> OrderError:
        error = OrderMissing(
            "missing",
            f"order {state.order.client_order_id} is {state.status} already",
            remedy="nothing is left to cancel or change",
        )
        error.order = states.view(state)
        return error

    def _enforce(self, state: OrderState) -> None:
        """Trading is killed, or nobody wants the order any more, and it shows up at the venue all
        the same (it was on its way)."""
        open_there = state.status in (OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED)
        if not open_there or state.waiting:
            return
        key = name_of(state)
        if key in self._unwanted or (self.kill.reason and not state.foreign):
            self.cancel_soon(key)

    def cancel_soon(self, key: str) -> asyncio.Task[Any]:
        """Cancel without anybody waiting for it, and again where the cancel was not executed, or
        the order only shows up later."""
        self._unwanted.add(key)
        return self.spawn(self._cancel_quietly(key))

    async def _cancel_quietly(self, key: str) -> None:
        if key in self._leaving:
            return
        self._leaving.add(key)
        try:
            await self._cancel_until_gone(key)
        finally:
            self._leaving.discard(key)

    async def _cancel_until_gone(self, key: str) -> None:
        """Where the outcome is not known, the order is asked for, which ends here again if it is
        open (see `resolver.py`)."""
        delays = backoff(random.Random(), self.timing.retry_base, self.timing.retry_cap)
        while True:
            state = self.book.known(key)
            if state.final:
                self._unwanted.discard(key)
            if state.final or CANCEL in state.waiting:
                return
            try:
                await self.cancel(key)
            except OrderMissing:
                return  # final already, or in doubt: then it is cancelled where it shows up
            except OrderError as error:
                what = f"cannot cancel {key}: {error.message}"
                self.complain(error.code, what, error.remedy, key)
                if not isinstance(error, _PASSING):
                    return
                await sleep(self.clock, max(error.retry_after, next(delays)))
            else:
                return

    # Silence.

    def expect_event(self, key: str) -> None:
        """The venue accepted an order, so its stream must tell of it (sheet: a stream that stays
        silent after an own order is broken, whatever its socket says)."""
        if key in self._heard_early:  # before the answer, which is as good
            self._heard_early.discard(key)
            return
        self._unheard.add(key)
        self.clock.call_later(self.timing.silence, self._unheard_still, key)

    def _unheard_still(self, key: str) -> None:
        if key not in self._unheard or not self.ready.is_set():
            return
        self._unheard.clear()
        self.complain(
            "stream.silent",
            f"no event of order {key} within {self.timing.silence:g} s",
            "K4 connects anew and reconciles; check the user data URL if it happens again",
        )
        self.venue.suspect("the stream is silent")

    # Requests under way.

    def entered(self) -> None:
        self._requests += 1
        self._quiet.clear()

    def left(self) -> None:
        self._requests -= 1
        if not self._requests:
            self._quiet.set()

    def now_us(self) -> int:
        return self.clock.time_ns() // 1000
