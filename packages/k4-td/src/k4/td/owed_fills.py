"""Executions that an order's cumulative figure includes and that no event has told.

The figure comes by an answer or a query, the executions by the account's stream, mostly within
milliseconds. Where they do not come, the stream has lost something or is dead without a word (a
listen key that expired unannounced): they are asked for, and the stream is replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from k4.core.trading import ZERO, OrderError
from k4.td.state import OrderState

if TYPE_CHECKING:
    from k4.td.account import Account


class OwedFills:
    """Of one account. `watch` every state that is new."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._watched: set[str] = set()

    def watch(self, state: OrderState) -> None:
        """If executions are owed, see whether they still are after a while."""
        key = state.order.client_order_id
        if key not in self._watched and owed(state):
            self._watched.add(key)
            account = self._account
            account.clock.call_later(account.timing.silence, self._look, key)

    def _look(self, key: str) -> None:
        self._watched.discard(key)
        account = self._account
        if account.stopping or not owed(account.book.known(key)):
            return
        account.complain(
            "stream.silent",
            f"executions of order {key} were not told within {account.timing.silence:g} s",
            "K4 asks for them and connects anew; check the user data URL if it happens again",
            key,
        )
        account.spawn(self._fetch(key))
        account.venue.suspect("the stream left out executions")

    async def _fetch(self, key: str) -> None:
        """Where it cannot be asked now, it is tried again after the same while."""
        account = self._account
        try:
            await account.complete_fills(key)
        except OrderError as error:
            account.complain(error.code, f"executions of {key}: {error.message}", error.remedy, key)
            self.watch(account.book.known(key))


def owed(state: OrderState) -> bool:
    """Whether more was executed than is known execution by execution."""
    told = sum((fill.quantity for fill in state.fills.values()), ZERO)
    return not state.foreign and bool(state.order_id) and told < state.executed
