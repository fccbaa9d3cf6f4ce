"""What must be true before an account takes orders: journal and venue agree.

Connected, authenticated and subscribed, the venue is asked for open orders, positions, balances
and the executions since the last known one; every order that is open here and not there is asked
for; what is open there and not known here is reported as foreign. Only then is the account
connected. If one part fails, all of it is done again: a partial snapshot would look complete.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import msgspec

from k4.core.retry import backoff
from k4.core.trading import (
    ZERO,
    Balance,
    JournalError,
    OrderError,
    OrderMissing,
    OrderStatus,
    OrderUpdate,
    Position,
)
from k4.core.waiting import sleep
from k4.td import state as states
from k4.td.orders import name_of
from k4.td.state import PLACE, STATUS, OrderState
from k4.td.venue import Report

if TYPE_CHECKING:
    from k4.td.account import Account

_ROUNDS = 5


class Recovery:
    """orphans: orders whose strategies died with the last process and wanted them cancelled."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._task: asyncio.Task[Any] | None = None
        self.orphans: list[str] = []

    def begin(self) -> None:
        """The stream is up: reconcile, then connect."""
        self.halt()
        self._task = self._account.spawn(self._until_done())

    def halt(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _until_done(self) -> None:
        account = self._account
        delays = backoff(random.Random(), account.timing.retry_base, account.timing.retry_cap)
        while True:
            try:
                await self._reconcile()
            except OrderError as error:
                account.complain(error.code, f"cannot reconcile: {error.message}", error.remedy)
                await sleep(account.clock, max(error.retry_after, next(delays)))
                continue
            break
        account.connected()
        self._task = account.spawn(self._keep_cursors())
        for key in self.orphans:
            account.cancel_soon(key)
        self.orphans = []

    async def _reconcile(self) -> None:
        account = self._account
        book = account.book
        local = [state for state in book.orders.open() if not is_algo(state)]
        listed = await account.venue.open_orders()
        for report in listed:
            account.report(report)
        self._close_algo(listed)
        there = {report.client_order_id for report in listed}
        for state in local:
            key = state.order.client_order_id
            if not book.known(key).final:
                await self._compare(key, listed_there=key in there)
            await account.complete_fills(key)
        # After the orders, so that the venue's ids of those that were in doubt are known.
        await self._load_fills()
        asked_us = account.venue.now_us()
        await self.load_positions()
        await self.load_balances()
        book.settle_fills(asked_us)

    async def _compare(self, key: str, listed_there: bool) -> None:
        """One order that is open here. A request that is under way now answers for itself."""
        account = self._account
        book = account.book
        state = book.known(key)
        if not listed_there and not state.waiting:
            try:
                account.report(await account.venue.order(account.ref(state)))
            except OrderMissing as error:
                state = book.known(key)
                if not state.final:
                    account.doubt(key, PLACE if state.venue is None else STATUS, error.message)
                return
        if book.known(key).doubts:
            account.resolve(key)

    async def _load_fills(self) -> None:
        account = self._account
        heads: dict[str, int] = {}
        for symbol, (last, since_us) in account.journal.activity(account.type).items():
            for fill in await account.venue.fills(symbol, last, since_us):
                account.book.late_fill(fill)
                heads[symbol] = int(fill.trade_id)
        account.book.rewrite()
        account.journal.advance(account.type, heads)

    async def _keep_cursors(self) -> None:
        """While connected the stream tells of every execution. An answer may overtake it by a
        moment, so what is taken for complete is what was known one interval before."""
        account = self._account
        book = account.book
        written: dict[str, int] = {}
        known = dict(book.heads)
        while True:
            await sleep(account.clock, account.timing.silence)
            news = {name: trade for name, trade in known.items() if written.get(name) != trade}
            try:
                book.rewrite()
                account.journal.advance(account.type, news)
            except OrderError as error:
                account.complain(error.code, error.message, error.remedy)
            else:
                written |= news
            known = dict(book.heads)

    async def load_positions(self) -> list[Position]:
        """The venue's positions; what it no longer lists is flat, unless an event says otherwise
        that is newer than the question."""
        account = self._account
        book = account.book
        asked_us = account.venue.now_us()
        listed = await account.venue.positions()
        for position in listed:
            book.position(position)
        keys = {(position.symbol, position.position_side) for position in listed}
        for key, known in list(book.positions.items()):
            if key not in keys and known.quantity and known.update_time_us < asked_us:
                book.position(
                    msgspec.structs.replace(
                        known,
                        quantity=ZERO,
                        entry_price=ZERO,
                        unrealized_pnl=ZERO,
                        update_time_us=asked_us,
                    )
                )
        return [position for position in book.positions.values() if position.quantity]

    async def load_balances(self) -> list[Balance]:
        """The venue's balances; an asset that it no longer lists is spent."""
        account = self._account
        book = account.book
        asked_us = account.venue.now_us()
        listed = await account.venue.balances()
        for balance in listed:
            book.balance(balance)
        assets = {balance.asset for balance in listed}
        for asset, known in list(book.balances.items()):
            if asset not in assets and known.total and known.update_time_us < asked_us:
                book.balance(
                    msgspec.structs.replace(known, free=ZERO, locked=ZERO, update_time_us=asked_us)
                )
        return list(book.balances.values())

    async def cancel_all(self, symbol: str, seq: int) -> list[OrderUpdate]:
        """Cancel by symbol until the venue lists nothing open, then ask how each order ended."""
        account = self._account
        open_here = [
            state
            for state in account.book.orders.open()
            if not symbol or state.order.symbol == symbol
        ]
        touched = dict.fromkeys(name_of(state) for state in open_here)
        local = {state.order.symbol for state in open_here}
        pause = account.timing.query_first
        for attempt in range(_ROUNDS):
            listed = await account.venue.open_orders(symbol)
            for report in listed:
                account.report(report)
                touched[report.client_order_id or f"#{report.order_id}"] = None
            symbols = {report.symbol for report in listed} | (local if attempt == 0 else set())
            if not symbols:
                break
            for name in sorted(symbols):
                await self._cancel_symbol(name)
            await sleep(account.clock, pause * attempt)
        self._close_algo(listed)
        updates = [await self._ended(key) for key in touched]
        try:
            account.journal.outcome(seq, "done")
        except JournalError as error:
            account.complain(error.code, error.message, error.remedy)
        return updates

    async def _cancel_symbol(self, symbol: str) -> None:
        """A cancel-all in doubt is looked at again by the next list of open orders."""
        account = self._account
        try:
            await account.venue.cancel_all(symbol)
        except OrderError as error:
            account.complain(error.code, f"cancel all of {symbol}: {error.message}", error.remedy)

    async def _ended(self, key: str) -> OrderUpdate:
        account = self._account
        book = account.book
        state = book.orders.get(key)
        if state is not None and not state.final and not is_algo(state):
            try:
                account.report(await account.venue.order(account.ref(state)))
            except OrderMissing as error:
                if not state.foreign and not book.known(key).final:
                    account.doubt(key, PLACE if state.venue is None else STATUS, error.message)
            except OrderError as error:
                account.complain(error.code, f"query of {key}: {error.message}", error.remedy, key)
        return book.view(key)

    def _close_algo(self, listed: list[Report]) -> None:
        """Conditional orders have no query of their own here: not listed is over."""
        there = {report.order_id for report in listed}
        for state in self._account.book.orders.open():
            if is_algo(state) and state.order_id not in there:
                self._account.book.change(
                    states.close(state, OrderStatus.CANCELED, "no longer open at the venue")
                )


def is_algo(state: OrderState) -> bool:
    """Whether it is a conditional order, which only others place."""
    return state.order_id.startswith("algo:")
