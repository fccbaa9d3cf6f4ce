"""Strategies that go on trading through a gateway that dies under them, and keep their books.

Each trades one account over the real socket: orders that rest, take, are changed, cancelled and
filled. What a strategy was told is kept, so that it can be held against what became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from random import Random

import msgspec

from k4.core.clock import Clock
from k4.core.trading import (
    AccountType,
    Direction,
    GatewayError,
    NewOrder,
    NotReady,
    NotSent,
    OrderError,
    OrderMissing,
    OrderStatus,
    OrderType,
    OrderUpdate,
    VenueRefused,
)
from k4.runner.sim.trading.venue import SimTrading
from k4.td import AsyncTdClient

BID, ASK = Decimal(63_990), Decimal(64_010)
RETRY_SEC = 0.02  # of real time, between attempts to reach the gateway
PATIENCE_SEC = 120.0  # of the venue's time, for one answer
SYMBOLS = {
    AccountType.SPOT: "BTCUSDT",
    AccountType.UBASE: "BTCUSDT",
    AccountType.CBASE: "BTCUSD_PERP",
}
STEP = {  # of a quantity
    AccountType.SPOT: Decimal("0.001"),
    AccountType.UBASE: Decimal("0.001"),
    AccountType.CBASE: Decimal(1),
}


class Told(msgspec.Struct):
    """What a strategy knows of one order. certain: it was told that the order never existed."""

    client_order_id: str
    update: OrderUpdate | None = None
    never: bool = False


class Phone:
    """The connection to the gateway, made anew whenever it is lost."""

    def __init__(self, path: str, name: str, cancels: bool, clock: Clock) -> None:
        self._path = path
        self._name = name
        self._cancels = cancels
        self._clock = clock
        self._client: AsyncTdClient | None = None
        self.calls = 0  # how often it was connected

    async def client(self) -> AsyncTdClient:
        """A connection; waits until somebody answers."""
        while self._client is None:
            client = AsyncTdClient(
                self._path,
                self._name,
                cancel_on_disconnect=self._cancels,
                events=True,
                timeout=PATIENCE_SEC,
                clock=self._clock,
            )
            try:
                await client.connect()
            except GatewayError:
                await client.close()
                await asyncio.sleep(RETRY_SEC)
                continue
            self.calls += 1
            self._client = client
        return self._client

    async def hang_up(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


class Trader:
    """One account's strategy. stop: when it has done enough."""

    def __init__(
        self, account: AccountType, venue: SimTrading, phone: Phone, seed: int, prefix: str
    ) -> None:
        self.account = account
        self.symbol = SYMBOLS[account]
        self.book: dict[str, Told] = {}
        self.refusals: dict[str, int] = {}
        self.unknown = 0  # answers that left an order in doubt
        self._venue = venue
        self._phone = phone
        self._rng = Random(f"{seed}/{account}")
        self._prefix = prefix
        self._acts: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self._rest, 8),
            (self._take, 3),
            (self._cancel, 4),
            (self._amend, 4),
            (self._meet, 5),
            (self._cancel_all, 1),
        )

    async def trade(self, until: Callable[[], bool]) -> None:
        """Act until it is enough; then know of every order how it stands."""
        acts = [act for act, weight in self._acts for _ in range(weight)]
        while not until():
            await self._rng.choice(acts)()
            await asyncio.sleep(self._rng.uniform(0.0, 0.03))
        await self.look_back()

    async def look_back(self) -> None:
        """Know of every order how it ended, also of those that went with a lost connection."""
        for told in self.book.values():
            await self._settle(told)

    # -- what it does -----------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Between the market's bid and offer, where whoever comes meets it first."""
        buy = self._rng.random() < 0.5
        away = Decimal(self._rng.randrange(1, 9))
        kind = self._rng.choice((OrderType.GTC, OrderType.GTC, OrderType.POST_ONLY))
        await self._place(buy, kind, BID + away if buy else ASK - away)

    async def _take(self) -> None:
        buy = self._rng.random() < 0.5
        kind = self._rng.choice((OrderType.MARKET, OrderType.IOC, OrderType.GTC))
        price = Decimal(0) if kind is OrderType.MARKET else ASK + 1 if buy else BID - 1
        await self._place(buy, kind, price)

    async def _place(self, buy: bool, kind: OrderType, price: Decimal) -> None:
        client_order_id = f"{self._prefix}-{self.account}-{len(self.book)}"
        told = self.book[client_order_id] = Told(client_order_id)
        order = NewOrder(
            symbol=self.symbol,
            account_type=self.account,
            direction=Direction.BUY if buy else Direction.SELL,
            order_type=kind,
            quantity=STEP[self.account] * self._rng.randrange(6, 30),
            price=price,
            client_order_id=client_order_id,
        )
        client = await self._phone.client()
        await self._ask(told, client.insert_order(order))
        if told.update is None and not told.never:
            await self._settle(told)

    async def _cancel(self) -> None:
        told = self._pick()
        if told is not None:
            client = await self._phone.client()
            key = told.client_order_id
            await self._ask(told, client.cancel_order(key, account_type=self.account))
            await self._settle(told)

    async def _amend(self) -> None:
        told = self._pick()
        if told is None or told.update is None:
            return
        now = told.update
        step = STEP[self.account]
        wanted: dict[str, Decimal] = {}
        if self._rng.random() < 0.5 and now.quantity - now.filled_quantity > step * 2:
            wanted["quantity"] = now.quantity - step
        else:
            # Away from the middle, so that orders of one account never meet.
            wanted["price"] = now.price + (-1 if now.direction is Direction.BUY else 1)
        client = await self._phone.client()
        key = told.client_order_id
        answer = client.amend_order(key, account_type=self.account, **wanted)
        update = await self._ask(told, answer)
        if update is not None and update.client_order_id != key:
            self.book[update.client_order_id] = Told(update.client_order_id, update)
        await self._settle(told)

    async def _meet(self) -> None:
        """Somebody in the market takes a part of what rests."""
        buys = self._rng.random() < 0.5
        quantity = STEP[self.account] * self._rng.randrange(1, 12)
        # No further than to the market's own levels, which are never used up.
        price = ASK - Decimal("0.5") if buys else BID + Decimal("0.5")
        side = "buy" if buys else "sell"
        self._venue.hit(self.account, self.symbol, side, str(price), str(quantity))

    async def _cancel_all(self) -> None:
        client = await self._phone.client()
        try:
            await client.cancel_all_orders(self.account)
        except GatewayError:
            await self._phone.hang_up()
        except OrderError as error:
            self._refused(error)

    # -- what it knows ----------------------------------------------------------------------------

    def _pick(self) -> Told | None:
        """One that was open when it last heard of it."""
        live = [
            told
            for told in self.book.values()
            if told.update is not None and not told.update.status.final
        ]
        return self._rng.choice(live) if live else None

    async def _ask(self, told: Told, answer: Awaitable[OrderUpdate]) -> OrderUpdate | None:
        """Wait for an answer about an order, and note what it says; None where it was lost."""
        try:
            update = await answer
        except GatewayError:
            await self._phone.hang_up()
            return None
        except OrderMissing as error:
            told.update = error.order or told.update
            return told.update
        except (NotSent, VenueRefused) as error:
            self._refused(error)
            if told.update is None and error.order is None:
                told.never = isinstance(error, NotSent)
            told.update = error.order or told.update
            return told.update
        self.unknown += update.status is OrderStatus.UNKNOWN
        if update.client_order_id == told.client_order_id:
            told.update = update
        return update

    async def _settle(self, told: Told) -> None:
        """Ask about an order until nothing of it is in doubt."""
        while not told.never:
            client = await self._phone.client()
            try:
                told.update = await client.query_order(
                    told.client_order_id, account_type=self.account
                )
            except OrderMissing as error:
                # Nothing in the journal: no byte of it can have left.
                told.never = error.order is None
                told.update = error.order
            except GatewayError:
                await self._phone.hang_up()
                continue
            except (NotReady, OrderError) as error:
                self._refused(error)
            update = told.update
            if update is not None and update.status not in UNSETTLED:
                return
            await asyncio.sleep(RETRY_SEC)

    def _refused(self, error: OrderError) -> None:
        self.refusals[error.code] = self.refusals.get(error.code, 0) + 1


UNSETTLED = (OrderStatus.UNKNOWN, OrderStatus.PENDING_NEW, OrderStatus.PENDING_CANCEL)
