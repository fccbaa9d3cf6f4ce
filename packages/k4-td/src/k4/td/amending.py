"""Changing an order: in place where the venue can, else by cancel-and-replace."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from k4.core.trading import (
    InvalidOrder,
    NewOrder,
    NotSent,
    OrderMissing,
    OrderType,
    OrderUpdate,
    OutcomeUnknown,
    VenueRefused,
    decimal_text,
)
from k4.td import state as states
from k4.td.request import Request
from k4.td.state import AMEND, CANCEL, PLACE, OrderState
from k4.td.venue import Replaced, Report

if TYPE_CHECKING:
    from k4.td.account import Account

_IMMEDIATE = frozenset({OrderType.MARKET, OrderType.IOC, OrderType.FOK})


class Amender:
    """Amends the orders of one account."""

    def __init__(self, account: Account) -> None:
        self._account = account

    async def amend(
        self, key: str, quantity: Decimal | None, price: Decimal | None, owner: str, cancels: bool
    ) -> OrderUpdate:
        """Change quantity (the whole, filled part included) or price. Where the venue cannot do
        that in place (spot: another price, more quantity) the order is cancelled and replaced by
        one with a new client id; the answer is then about that one."""
        account = self._account
        state = account.book.known(key)
        account.admit()
        if state.final:
            raise account.finality(state)
        if state.order.order_type in _IMMEDIATE or state.doubts or state.waiting:
            raise InvalidOrder(
                "status",
                f"an order that is {state.order.order_type}, {state.status} cannot change",
                remedy="wait until nothing about it is under way or in doubt",
            )
        changed = msgspec.structs.replace(
            state.order,
            quantity=quantity if quantity is not None else state.quantity,
            price=price if price is not None else state.price,
        )
        rules = account.check(changed, changes=True)
        figures = account.book.figures(changed, rules, leave_out=state)
        now = account.clock.monotonic()
        account.gate.check(changed, rules, figures, account.quote(rules), now, amends=True)
        in_place = not account.venue.replaces or (
            rules.amendable and changed.price == state.price and changed.quantity < state.quantity
        )
        if in_place:
            return await self._amend_in_place(state, changed)
        return await self._replace(state, changed, owner, cancels)

    async def _amend_in_place(self, state: OrderState, changed: NewOrder) -> OrderUpdate:
        account, key = self._account, state.order.client_order_id
        book = account.book
        wanted = changed.quantity, changed.price
        detail = {
            "quantity": decimal_text(changed.quantity),
            "price": decimal_text(changed.price),
        }
        seq = account.journal.intend(state, "amend", detail, account.now_us())
        book.change(states.ask(state, AMEND, wanted))
        with Request(account, key, AMEND, seq) as request:
            try:
                report = await account.venue.amend(account.ref(state), changed)
            except (VenueRefused, NotSent) as error:
                request.outcome(error.message)
                book.change(states.settle(book.known(key), AMEND))
                if isinstance(error, OrderMissing):
                    await account.resolver.look(key)
                error.order = book.view(key)
                raise
            except OutcomeUnknown as error:
                request.outcome(f"unknown: {error.message}")
                account.doubt(key, AMEND, error.message)
            else:
                request.outcome("done")
                book.change(states.hear(states.settle(book.known(key), AMEND), report))
        return book.view(key)

    async def _replace(
        self, state: OrderState, changed: NewOrder, owner: str, cancels: bool
    ) -> OrderUpdate:
        account = self._account
        book = account.book
        if state.filled:
            raise InvalidOrder(
                "status",
                "a partly filled order cannot be replaced without risk of filling too much",
                remedy="cancel it, then place the rest as a new order",
            )
        old, key = state.order.client_order_id, account.make_id()
        order = msgspec.structs.replace(changed, client_order_id=key)
        account.venue.validate(order)
        new = states.intend(order, account.now_us())
        seq = account.journal.intend_replace(state, new, owner, cancels)
        book.change(states.ask(state, CANCEL))
        book.put(new)
        with Request(account, old, CANCEL, seq) as request, Request(account, key, PLACE):
            try:
                done = await account.venue.replace(account.ref(state), order)
            except (VenueRefused, NotSent) as error:
                request.outcome(error.message)
                book.change(states.settle(book.known(old), CANCEL))
                book.change(states.refuse(book.known(key), error.message))
                error.order = book.view(key)
                raise
            except OutcomeUnknown as error:
                request.outcome(f"unknown: {error.message}")
                account.doubt(old, CANCEL, error.message)
                account.doubt(key, PLACE, error.message)
            else:
                request.outcome("done")
                await self._replaced(old, key, done)
        return book.view(key)

    async def _replaced(self, old: str, key: str, done: Replaced) -> None:
        account = self._account
        book = account.book
        book.change(states.settle(book.known(old), CANCEL))
        if isinstance(done.canceled, Report):
            book.change(states.hear(book.known(old), done.canceled))
        else:
            await account.resolver.look(old)
        if isinstance(done.placed, Report):
            account.expect_event(key)
            book.change(states.hear(states.settle(book.known(key), PLACE), done.placed))
            return
        refusal = done.placed or done.canceled
        assert isinstance(refusal, VenueRefused)
        book.change(states.refuse(book.known(key), refusal.message))
        refusal.order = book.view(key)
        raise refusal
