"""Asks the venue about orders in doubt until it has settled them; one task an order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from k4.core.trading import OrderError, OrderMissing, OrderStatus
from k4.core.waiting import sleep
from k4.td import state as states
from k4.td.resolve import Inquiry, Verdict
from k4.td.state import CANCEL, PLACE, STATUS

if TYPE_CHECKING:
    from k4.td.account import Account


class Resolver:
    """Follows the policy of `resolve.py`, with the venue's answers joined by the account."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._running: dict[str, asyncio.Task[Any]] = {}

    def begin(self, key: str) -> None:
        """Ask until it is settled. A task that asks already goes on from a new window."""
        running = self._running.pop(key, None)
        if running is not None:
            running.cancel()
        if self._account.stopping:
            return
        task = self._account.spawn(self._resolve(key))
        self._running[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))

    def _ended(self, key: str, task: asyncio.Task[Any]) -> None:
        if self._running.get(key) is task:
            del self._running[key]

    async def look(self, key: str) -> None:
        """Ask once, after the venue had nothing to cancel or change. If it does not know the order
        at all, that is in doubt."""
        account = self._account
        book = account.book
        try:
            account.report(await account.venue.order(account.ref(book.known(key))))
        except OrderMissing as error:
            state = book.known(key)
            if not state.final:
                account.doubt(key, STATUS if state.venue else PLACE, error.message)
        except OrderError as error:
            account.doubt(key, STATUS, error.message)

    async def _resolve(self, key: str) -> None:
        account = self._account
        book = account.book
        state = book.known(key)
        window = state.order.recv_window or account.recv_window
        inquiry = Inquiry.begin(
            account.clock.monotonic(), window, account.venue.clock_error, account.timing
        )
        attempt = 0
        while book.known(key).doubts:
            await sleep(account.clock, Inquiry.delay(attempt, account.timing))
            attempt += 1
            if not book.known(key).doubts:
                return  # an event has settled it
            asked = account.clock.monotonic()
            try:
                report = await account.venue.order(account.ref(book.known(key)))
            except OrderMissing:
                verdict = inquiry.judge(book.known(key), asked, found=False)
            except OrderError:
                continue  # no answer about the order: ask again
            else:
                account.report(report)
                verdict = inquiry.judge(book.known(key), asked, found=True)
            if await self._act(key, verdict):
                return

    async def _act(self, key: str, verdict: Verdict) -> bool:
        """Whether the inquiry is over."""
        account = self._account
        book = account.book
        state = book.known(key)
        if verdict is Verdict.AGAIN:
            return False
        if verdict is Verdict.NOT_PLACED:
            book.change(states.refuse(_settled(state), "not placed: the venue never had it"))
            return True
        if verdict is Verdict.GONE:
            return await self._gone(key)
        cancel = CANCEL in state.doubts
        book.change(_settled(state))
        try:
            await account.complete_fills(key)
        except OrderError as error:
            account.complain(error.code, f"fills of {key}: {error.message}", error.remedy, key)
        if cancel and not book.known(key).final:
            # The cancel never arrived and no longer can; the order is still to go.
            account.cancel_soon(key)
        return True

    async def _gone(self, key: str) -> bool:
        """The venue reported the order once and keeps no record of it. Futures forget orders that
        ended without a fill after 3 days, so it is over, unless the list of open orders says
        otherwise; its executions were fetched when the account was reconciled."""
        account = self._account
        book = account.book
        state = book.known(key)
        try:
            listed = await account.venue.open_orders(state.order.symbol)
        except OrderError:
            return False
        if any(report.order_id == state.order_id for report in listed):
            return False
        book.change(states.close(_settled(state), OrderStatus.EXPIRED, "no record at the venue"))
        return True


def _settled(state: states.OrderState) -> states.OrderState:
    for doubt in state.doubts:
        state = states.settle(state, doubt)
    return state
