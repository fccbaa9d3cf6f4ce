"""One product's matching, orders and fills: what happens between a valid request and its events.

Orders are told of in the order in which things happen: NEW before its fills, each fill by itself,
then what became of the rest. Everything here is synchronous, so one request is one instant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Protocol

from k4.core.clock import Clock, Timer
from k4.runner.sim.market import Instrument, MarketEvent
from k4.runner.sim.matching import MARKET, Book, Prevention, Resting
from k4.runner.sim.trading import errors
from k4.runner.sim.trading.orders import Order, Trade
from k4.runner.sim.trading.rules import Rules
from k4.runner.sim.trading.settlement import Settlement

ZERO = Decimal(0)
IOC_REST = "UNFILLED_IOC_QUANTITY_EXPIRED"
FOK_REST = "UNFILLED_FOK_ORDER_EXPIRED"
NO_LIQUIDITY = "INSUFFICIENT_LIQUIDITY"
SELF_TRADE = "SELF_TRADE_PREVENTION"
PUSHED_OUT = "REDUCE_ONLY"
GTX_CROSSED = "GTX_WOULD_TAKE"
GOOD_TILL = "GOOD_TILL_DATE"
POST_ONLY = ("GTX", "RPI")


class Listener(Protocol):
    """Who hears of every step of every order."""

    def stepped(self, order: Order, event: str, trade: Trade | None) -> None:
        """The order's history has it already. event: NEW, TRADE, CANCELED, EXPIRED, AMENDMENT
        (futures) or REPLACED (spot), TRADE_PREVENTION."""
        ...


class Exchange:
    """Books and orders of one product. now_ms: the matching engine's clock. meeting: maker, taker
    and size, while two orders of one account are kept from trading."""

    def __init__(
        self,
        product: str,
        rules: Mapping[str, Rules],
        clock: Clock,
        now_ms: Callable[[], int],
        first_order: int,
        first_trade: int,
    ) -> None:
        self.product = product
        self.rules = rules
        self.books = {symbol: Book() for symbol in rules}
        self.orders: dict[int, Order] = {}
        self.trades: list[Trade] = []
        self._clock = clock
        self._now_ms = now_ms
        self._next_order = first_order
        self._next_trade = first_trade
        self._open: dict[int, Order] = {}
        self._by_client: dict[tuple[str, str, str], Order] = {}
        self._timers: dict[int, Timer] = {}
        self._listener: Listener | None = None
        self._settlement: Settlement | None = None
        self._anchors = {symbol: item.price(item.spec.mid) for symbol, item in rules.items()}
        self._last: dict[str, Decimal] = {}
        self.meeting: tuple[Order, Order, Decimal] | None = None

    def connect(self, settlement: Settlement, listener: Listener) -> None:
        """Give it its wallets and its listener, before the first order."""
        self._settlement, self._listener = settlement, listener

    @property
    def _wallets(self) -> Settlement:
        if self._settlement is None:
            raise RuntimeError("the exchange has no wallets yet")
        return self._settlement

    # -- looking ----------------------------------------------------------------------------------

    def mark(self, symbol: str) -> Decimal:
        """The middle of the book, or what is known of it: mark and reference price at once."""
        book, rules = self.books[symbol], self.rules[symbol]
        bid, ask = book.best(True), book.best(False)
        if bid is not None and ask is not None:
            return (rules.price(bid) + rules.price(ask)) / 2
        return self._last.get(symbol, self._anchors[symbol])

    def last(self, symbol: str) -> Decimal:
        return self._last.get(symbol) or self.mark(symbol)

    def new_number(self) -> int:
        self._next_order += 1
        return self._next_order

    def open_orders(self, account: str, symbol: str = "") -> list[Order]:
        return [
            order
            for order in self._open.values()
            if order.account == account and symbol in ("", order.symbol)
        ]

    def all_orders(self, account: str, symbol: str = "") -> list[Order]:
        """Oldest first."""
        return [
            order
            for order in self.orders.values()
            if order.account == account and symbol in ("", order.symbol)
        ]

    def find(self, account: str, symbol: str, number: int | None, client_id: str) -> Order | None:
        """By number, else the last one with that client id (an open one first)."""
        if number is not None:
            order = self.orders.get(number)
            mine = order is not None and order.account == account and order.symbol == symbol
            return order if mine else None
        return self._by_client.get((account, symbol, client_id))

    def is_duplicate(self, account: str, symbol: str, client_id: str) -> bool:
        found = self._by_client.get((account, symbol, client_id))
        return found is not None and found.open

    # -- orders -----------------------------------------------------------------------------------

    def place(self, order: Order) -> None:
        """Accept, match, and rest or expire it. Raises what the venue answers; then nothing has
        happened. `order.number` is set by the caller (`new_number`)."""
        rules, book = self.rules[order.symbol], self.books[order.symbol]
        price, size = rules.mantissas(order.price, order.quantity)
        resting = Resting(order.account, order.number, order.buy, price, size, order.prevention)
        limit = price if order.price else None
        post_only = order.kind == "LIMIT_MAKER" or order.tif in POST_ONLY
        if post_only and book.crosses(order.buy, price):
            raise errors.would_match() if self.product == "spot" else errors.futures(-5022)
        plan = book.plan(resting, limit) if limit is None or order.tif == "FOK" else []
        unfillable = order.tif == "FOK" and sum(part for _, part in plan) < size
        if unfillable and self.product != "spot":
            raise errors.futures(-5021)
        # A market order pays what the book asks for now.
        paid = sum((rules.price(at) * rules.size(part) for at, part in plan), ZERO)
        self._wallets.reserve(order, rules, order.price * order.quantity if order.price else paid)
        order.resting = resting
        now = self._now_ms()
        order.working_ms = now
        self.orders[order.number] = self._open[order.number] = order
        self._by_client[order.account, order.symbol, order.client_id] = order
        self._step(order, "NEW")
        if unfillable:
            self.expire(order, FOK_REST)
            return
        self._cap(order)
        book.take(resting, limit, self)
        self._rest(order)

    def _cap(self, order: Order) -> None:
        """An order that may only reduce trades no more than the position."""
        reducible = self._wallets.reducible(order)
        if reducible is not None and order.resting is not None and order.left > reducible:
            _, order.resting.left = self.rules[order.symbol].mantissas(ZERO, reducible)

    def _rest(self, order: Order) -> None:
        """What becomes of what did not trade at once."""
        resting = order.resting
        if not order.open or resting is None:
            return
        if order.kind == "MARKET":
            self.expire(order, NO_LIQUIDITY if resting.left else PUSHED_OUT)
        elif order.tif == "IOC":
            self.expire(order, IOC_REST)
        elif not resting.left:
            self.expire(order, PUSHED_OUT)
        else:
            self.books[order.symbol].add(resting)
            self._watch_date(order)
            self.trim(order.account, order.symbol, order.position_side)

    def cancel(self, order: Order, client_id: str = "") -> None:
        """client_id: of the cancel itself (spot), which the event carries."""
        self._end(order, "CANCELED", "CANCELED", client_id=client_id)

    def expire(self, order: Order, reason: str) -> None:
        self._end(order, "EXPIRED", "EXPIRED", reason=reason)

    def _end(
        self, order: Order, event: str, status: str, *, reason: str = "", client_id: str = ""
    ) -> None:
        rules = self.rules[order.symbol]
        if order.resting is not None:
            self.books[order.symbol].remove(order.resting)
            order.resting.left = 0
        self._wallets.release(order, rules, order.left)
        order.status, order.reason = status, reason
        self._closed(order)
        self._step(order, event)

    def amend(self, order: Order, quantity: Decimal, client_id: str) -> None:
        """Spot: less quantity, the same place in the queue, another client id."""
        rules = self.rules[order.symbol]
        cut = order.quantity - quantity
        self._wallets.release(order, rules, cut)
        order.quantity = quantity
        if order.resting is not None:
            _, order.resting.left = rules.mantissas(ZERO, order.left)
        if client_id != order.client_id:
            self._by_client.pop((order.account, order.symbol, order.client_id), None)
            order.client_id = client_id
            self._by_client[order.account, order.symbol, client_id] = order
        order.amends += 1
        self._step(order, "REPLACED")
        if not order.left:
            self.cancel(order)

    def modify(self, order: Order, price: Decimal, quantity: Decimal) -> None:
        """Futures: another price and quantity, at the end of the queue; it may trade at once."""
        rules, book = self.rules[order.symbol], self.books[order.symbol]
        mantissa, _ = rules.mantissas(price, ZERO)
        would_take = order.tif in POST_ONLY and book.crosses(order.buy, mantissa)
        resting = order.resting
        if quantity <= order.executed or would_take or resting is None:
            self._end(order, "CANCELED", "CANCELED", reason=GTX_CROSSED if would_take else "")
            return
        before = order.price, order.quantity
        order.price, order.quantity = price, quantity
        try:
            self._wallets.reserve(order, rules, ZERO)
        except errors.VenueError:
            order.price, order.quantity = before
            raise
        book.remove(resting)
        resting.price = mantissa
        _, resting.left = rules.mantissas(ZERO, order.left)
        order.amends += 1
        self._step(order, "AMENDMENT")
        self._cap(order)
        book.take(resting, mantissa, self)
        self._rest(order)

    def trim(self, account: str, symbol: str, side: str) -> None:
        """Orders that may only reduce are pushed out, the newest first, until they fit together."""
        held: list[Order] = []
        for order in self._open.values():
            key = (order.account, order.symbol, order.position_side)
            if key == (account, symbol, side) and self._wallets.reducible(order) is not None:
                held.append(order)
        for buy in (True, False):
            room: Decimal | None = None
            for order in [item for item in held if item.buy == buy]:
                if room is None:
                    room = self._wallets.reducible(order) or ZERO
                if order.left > room and order.resting is not None and self._booked(order):
                    self.expire(order, PUSHED_OUT)
                else:
                    room -= order.left

    def _booked(self, order: Order) -> bool:
        """In the book, and not under way as a taker."""
        resting = order.resting
        return resting is not None and resting in self.books[order.symbol].queue(
            order.buy, resting.price
        )

    def _watch_date(self, order: Order) -> None:
        if order.good_till_ms and order.number not in self._timers:
            delay = max(0.0, (order.good_till_ms - self._now_ms()) / 1000)
            self._timers[order.number] = self._clock.call_later(delay, self._too_old, order)

    def _too_old(self, order: Order) -> None:
        if order.open:
            self.expire(order, GOOD_TILL)

    # -- matching.Sink ----------------------------------------------------------------------------

    def traded(self, maker: Resting, taker: Resting, price: int, size: int) -> None:
        self._next_trade += 1
        for side, is_maker in ((maker, True), (taker, False)):
            if side.owner != MARKET:
                self._fill(self.orders[side.number], price, size, is_maker)

    def _fill(self, order: Order, price: int, size: int, maker: bool) -> None:
        rules = self.rules[order.symbol]
        at, quantity = rules.price(price), rules.size(size)
        self._last[order.symbol] = at
        settled = self._wallets.filled(order, rules, at, quantity, maker)
        value = rules.value(at, quantity)
        order.executed += quantity
        order.quote += value
        trade = Trade(
            id=self._next_trade,
            product=self.product,
            account=order.account,
            symbol=order.symbol,
            order=order.number,
            client_id=order.client_id,
            buy=order.buy,
            price=at,
            quantity=quantity,
            value=value,
            commission=settled.commission,
            asset=settled.asset,
            maker=maker,
            time_ms=self._now_ms(),
            profit=settled.profit,
            position_side=order.position_side,
        )
        self.trades.append(trade)
        order.trades.append(trade)
        if order.left:
            order.status = "PARTIALLY_FILLED"
        else:
            order.status = "FILLED"
            self._wallets.release(order, rules, ZERO)
            self._closed(order)
        self._step(order, "TRADE", trade)
        self.trim(order.account, order.symbol, order.position_side)

    def prevented(
        self, maker: Resting, taker: Resting, size: int, maker_ends: bool, taker_ends: bool
    ) -> None:
        self.meeting = (
            self.orders[maker.number],
            self.orders[taker.number],
            self.rules[self.orders[taker.number].symbol].size(size),
        )
        decrement = taker.prevention in (Prevention.DECREMENT, Prevention.TRANSFER)
        for side, ends in ((maker, maker_ends), (taker, taker_ends)):
            order = self.orders[side.number]
            if decrement:
                quantity = self.rules[order.symbol].size(size)
                self._wallets.release(order, self.rules[order.symbol], quantity)
                order.prevented += quantity
            if ends:
                self._end(order, "TRADE_PREVENTION", "EXPIRED_IN_MATCH", reason=SELF_TRADE)
            elif decrement:
                self._step(order, "TRADE_PREVENTION")
        self.meeting = None

    # -- the market -------------------------------------------------------------------------------

    def moved(self, symbol: str, event: MarketEvent) -> None:
        """The simulated market took a step: its takers meet the accounts' orders first where those
        are better or earlier, then its levels are what it says."""
        book = self.books[symbol]
        for fill in event.fills:
            if fill.size:
                book.hit(not event.buyer_is_maker, fill.price, fill.size, self)
                self._last[symbol] = self.rules[symbol].price(fill.price)
        for buy, levels in ((True, event.bids), (False, event.asks)):
            for price, size in levels:
                book.quote(buy, price, size, self)

    def fill_book(self, instrument: Instrument) -> None:
        """Take over the levels that the market has now."""
        book = self.books[instrument.spec.symbol]
        for price, size in instrument.bids(len(instrument.bid_prices)):
            book.quote(True, price, size, self)
        for price, size in instrument.asks(len(instrument.ask_prices)):
            book.quote(False, price, size, self)

    def quote(self, symbol: str, buy: bool, price: Decimal, quantity: Decimal) -> None:
        """Set the market's own size at a price."""
        self.books[symbol].quote(buy, *self.rules[symbol].mantissas(price, quantity), self)

    def hit(self, symbol: str, buy: bool, price: Decimal, quantity: Decimal) -> Decimal:
        """Somebody in the market buys or sells up to `price`; returns how much he got."""
        rules = self.rules[symbol]
        done = self.books[symbol].hit(buy, *rules.mantissas(price, quantity), self)
        return rules.size(done)

    # -- common -----------------------------------------------------------------------------------

    def _closed(self, order: Order) -> None:
        self._open.pop(order.number, None)
        timer = self._timers.pop(order.number, None)
        if timer is not None:
            timer.cancel()

    def _step(self, order: Order, event: str, trade: Trade | None = None) -> None:
        order.note(event, self._now_ms(), trade.id if trade is not None else 0)
        if self._listener is not None:
            self._listener.stepped(order, event, trade)

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
