"""`TdModule`: trading on the accounts of one configuration entry, in this process.

It composes the venue, the journal, the risk gate, the kill switch and the order gateway, and owns
their life. Strategies in other processes use `k4.td.client` instead, with the same methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from decimal import Decimal
from importlib.metadata import entry_points
from typing import Any, TypeVar

from k4.core.clock import Clock, SystemClock
from k4.core.config import RiskLimits, TradingConfig
from k4.core.retry import backoff
from k4.core.trading import (
    AccountType,
    AuthRefused,
    Balance,
    Event,
    Fault,
    InvalidOrder,
    JournalError,
    NewOrder,
    NotReady,
    OrderError,
    OrderMissing,
    OrderStatus,
    OrderUpdate,
    Position,
    event_account,
    event_name,
)
from k4.core.waiting import sleep, within
from k4.td.account import Account
from k4.td.bus import Bus, EventStream
from k4.td.gateway import Gateway
from k4.td.journal import Journal
from k4.td.kill import KillSwitch
from k4.td.quotes import NoQuotes, Quotes, ShmQuotes
from k4.td.risk import RiskGate
from k4.td.timing import Timing
from k4.td.venue import Exchange, Venue

_T = TypeVar("_T")
GROUP = "k4.td.exchanges"


def find_exchange(name: str) -> Exchange:
    """The exchange that a distribution registered. Raises NotReady."""
    for point in entry_points(group=GROUP, name=name):
        exchange = point.load()
        if isinstance(exchange, Exchange):
            return exchange
    known = sorted(point.name for point in entry_points(group=GROUP))
    raise NotReady(
        "exchange",
        f"no exchange {name!r} to trade on",
        remedy=f"known: {', '.join(known)}; others come with a distribution that registers them",
    )


class TdModule:
    """One `trading` entry. Implements `k4.core.module.Module`.

    clock, timing: for tests. exchange: for a venue without an entry point.
    """

    def __init__(
        self,
        config: TradingConfig,
        *,
        clock: Clock | None = None,
        timing: Timing | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        self.name = config.name
        self.config = config
        self.accounts: dict[AccountType, Account] = {}
        self.bus = Bus()
        self._clock = clock or SystemClock()
        self._timing = timing or Timing()
        self._exchange = exchange
        self._journal: Journal | None = None
        self._kill: KillSwitch | None = None
        self._gateway: Gateway | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._insisting: asyncio.Task[None] | None = None
        self._counts: Counter[str] = Counter()
        self._refused: dict[AccountType, AuthRefused] = {}
        self._changed = asyncio.Event()
        self.bus.listen(self._count)

    # Life.

    async def prepare(self) -> None:
        """Keys, journal with its lock, kill switch, the gateway's socket. Opens no venue socket.
        Raises OrderError; then nothing stays open."""
        exchange = self._exchange or find_exchange(self.config.exchange)
        venues = exchange.make(self.config, self._clock, self._timing)
        self._journal = Journal(self.config.journal, self.config.journal_sync)
        try:
            self._kill = KillSwitch(self._journal, self.config.kill_file)
            for account, venue in venues.items():
                self.accounts[account] = self._account(account, venue, exchange)
                self.accounts[account].replay()
            if self.config.socket:
                self._gateway = Gateway(self, self.config.socket, self._clock)
                self._gateway.bind()
        except BaseException:
            if self._gateway is not None:
                self._gateway.unbind()
            self._journal.close()
            raise

    def _account(self, account: AccountType, venue: Venue, exchange: Exchange) -> Account:
        assert self._journal is not None
        assert self._kill is not None
        limits = self.config.risk.get(account.value, RiskLimits())
        quotes: Quotes = NoQuotes()
        if limits.bbo_store:
            quotes = ShmQuotes(limits.bbo_store, self._clock)
        return Account(
            venue,
            self._journal,
            RiskGate(account, limits),
            quotes,
            self._kill,
            self._clock,
            self._timing,
            self.config.recv_window,
            lambda: exchange.client_id(self._nonce()),
            self.bus.emit,
        )

    def _nonce(self) -> str:
        """Unique over processes and restarts: the time, and chance where the clock was set back."""
        return f"{self._clock.time_ns():x}{secrets.token_hex(4)}"

    def start(self) -> None:
        """Connect every account, for ever; `connected` events follow."""
        loop = asyncio.get_running_loop()
        works: list[Coroutine[Any, Any, None]] = [
            *(self._open(account) for account in self.accounts.values()),
            self._checkpoint(),
            self._watch_kill(),
        ]
        if self._gateway is not None:
            works.append(self._gateway.serve())
        self._tasks = [loop.create_task(work) for work in works]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (defect := task.exception()) is not None:
            what = f"{type(defect).__name__}: {defect}"
            self.bus.emit(Fault(code="internal", message=what, remedy="restart the module"))

    async def login(self, patience: float = 60.0) -> None:
        """Prepare, start, and return when every account takes orders. Raises AuthRefused where the
        venue refuses the key, TimeoutError after `patience` seconds; call `stop` in every case."""
        if self._journal is None:
            await self.prepare()
            self.start()
        await within(self._clock, patience, self._all_ready())

    async def _all_ready(self) -> None:
        while not all(account.ready.is_set() for account in self.accounts.values()):
            if self._refused:
                raise next(iter(self._refused.values()))
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Strategies first (their orders are cancelled if they want that), then accounts, which
        wait a little for answers under way, then the journal. Safe to call in any state."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._gateway is not None:
            await self._gateway.close(self._timing.drain)
            self._gateway = None
        await asyncio.gather(*(account.close() for account in self.accounts.values()))
        if self._journal is not None:
            self._journal.close()
        self.bus.close()

    def receipt(self) -> list[dict[str, Any]]:
        """One object per account: events by kind, and how many orders are open or in doubt."""
        return [
            {
                "type": "trading",
                "name": self.name,
                "account_type": account.value,
                "open": sum(1 for _ in entry.book.orders.open()),
                "unknown": sum(1 for state in entry.book.orders.open() if state.doubts),
                **{
                    name.removeprefix(f"{account.value}."): count
                    for name, count in sorted(self._counts.items())
                    if name.startswith(f"{account.value}.")
                },
            }
            for account, entry in self.accounts.items()
        ]

    async def _open(self, account: Account) -> None:
        delays = backoff(random.Random(), self._timing.retry_base, self._timing.retry_cap)
        while True:
            try:
                await account.open()
            except OrderError as error:
                if isinstance(error, AuthRefused):
                    self._refused[account.type] = error
                self.bus.emit(
                    Fault(
                        code=error.code,
                        message=error.message,
                        remedy=error.remedy,
                        account_type=account.type.value,
                    )
                )
                await sleep(self._clock, max(error.retry_after, next(delays)))
                continue
            return

    async def _checkpoint(self) -> None:
        """Off the order path: on another connection, in another thread."""
        while True:
            await sleep(self._clock, self._timing.checkpoint)
            assert self._journal is not None
            try:
                self._switch().remember()
                await asyncio.to_thread(self._journal.checkpoint)
            except JournalError as error:
                self._report(error)

    async def _watch_kill(self) -> None:
        """The kill file also cancels what is open, without waiting for the next order."""
        while True:
            await sleep(self._clock, self._timing.kill_poll)
            if self._kill is not None and self._kill.found():
                await self._kill_quietly(self._kill.reason)

    def _count(self, sequence: int, event: Event) -> None:
        self._counts[f"{event_account(event)}.{event_name(event)}"] += 1
        if isinstance(event, Fault) and event.code == "venue.auth":
            account = AccountType(event.account_type) if event.account_type else None
            if account is not None:
                self._refused[account] = AuthRefused("auth", event.message, remedy=event.remedy)
        self._changed.set()

    # Orders.

    async def insert_order(
        self, order: NewOrder, *, owner: str = "", cancel_on_disconnect: bool = False
    ) -> OrderUpdate:
        """Send a new order; returns when the venue has answered, or with status unknown. Raises
        NotSent (nothing left this host) or VenueRefused."""
        account = self._find(order.account_type)
        return await account.place(order, owner, cancel_on_disconnect)

    async def cancel_order(
        self,
        client_order_id: str = "",
        *,
        account_type: AccountType | None = None,
        order_id: str = "",
        symbol: str = "",
    ) -> OrderUpdate:
        """By client id, or by the venue's id and symbol. Returns the order as it is then; raises
        OrderMissing, with the order in `error.order`, where nothing was left to cancel."""
        account, key = self._locate(account_type, client_order_id, order_id, symbol)
        return await account.cancel(key)

    async def amend_order(
        self,
        client_order_id: str,
        *,
        account_type: AccountType | None = None,
        quantity: Decimal | None = None,
        price: Decimal | None = None,
        owner: str = "",
        cancel_on_disconnect: bool = False,
    ) -> OrderUpdate:
        """Change the whole quantity, filled part included, or the price. Spot changes a price by
        cancel-and-replace: the answer is then about the new order, which has a new client id."""
        if quantity is None and price is None:
            raise InvalidOrder("quantity", "nothing to change", remedy="give quantity or price")
        account, key = self._locate(account_type, client_order_id, "", "")
        return await account.amend(key, quantity, price, owner, cancel_on_disconnect)

    async def cancel_all_orders(
        self, account_type: AccountType | None = None, symbol: str = ""
    ) -> list[OrderUpdate]:
        """Everything open at the venue, foreign orders included; of one account and symbol, or of
        all. An order in the result that is not final was not confirmed."""
        if symbol and account_type is None:
            raise InvalidOrder(
                "account_type",
                "a symbol needs its account_type",
                remedy="spot, ubase or cbase: BTCUSDT is a symbol of two of them",
            )
        return await self._each(account_type, lambda account: account.cancel_all(symbol))

    async def query_order(
        self,
        client_order_id: str = "",
        *,
        account_type: AccountType | None = None,
        order_id: str = "",
        symbol: str = "",
    ) -> OrderUpdate:
        """The venue's word on one order."""
        account, key = self._locate(account_type, client_order_id, order_id, symbol)
        return await account.query(key)

    async def query_open_orders(
        self, account_type: AccountType | None = None, symbol: str = ""
    ) -> list[OrderUpdate]:
        """The venue's list, with orders in doubt; all or an error, never a part."""
        return await self._each(account_type, lambda account: account.query_open(symbol))

    async def query_positions(self, account_type: AccountType | None = None) -> list[Position]:
        """Futures positions that are not flat."""
        return await self._each(account_type, lambda account: account.query_positions())

    async def query_balances(self, account_type: AccountType | None = None) -> list[Balance]:
        return await self._each(account_type, lambda account: account.query_balances())

    def events(self) -> EventStream:
        """Every event from now on, as an async iterator that ends with `stop`."""
        return self.bus.stream()

    # The kill switch.

    @property
    def killed(self) -> str:
        """Why trading is killed, '' where it is not."""
        return self._kill.reason if self._kill is not None else ""

    async def kill(self, reason: str = "killed by command") -> list[OrderUpdate]:
        """Refuse new orders at once and for ever, and cancel everything, as `cancel_all_orders`.
        What is not confirmed now is cancelled again until it is."""
        try:
            self._switch().engage(reason)
        except JournalError as error:
            self._report(error)
        try:
            orders = await self.cancel_all_orders()
        except OrderError:
            self._insist()
            raise
        if _left(orders):
            self._insist()
        return orders

    def _insist(self) -> None:
        if self._insisting is None or self._insisting.done():
            self._insisting = asyncio.get_running_loop().create_task(self._cancel_the_rest())
            self._insisting.add_done_callback(self._ended)
            self._tasks.append(self._insisting)

    async def _cancel_the_rest(self) -> None:
        """Trading is killed, and orders may be open: cancel until the venue lists none."""
        delays = backoff(random.Random(), self._timing.retry_base, self._timing.retry_cap)
        pause = next(delays)
        while self.killed:
            await sleep(self._clock, pause)
            pause = next(delays)
            try:
                orders = await self.cancel_all_orders()
            except OrderError as error:
                self._report(error)
                pause = max(pause, error.retry_after)
            else:
                if not _left(orders):
                    return

    def kill_soon(self, reason: str) -> None:
        """The same from a signal handler: the switch is engaged at once, cancelling follows."""
        self._tasks.append(asyncio.get_running_loop().create_task(self._kill_quietly(reason)))

    async def _kill_quietly(self, reason: str) -> None:
        try:
            await self.kill(reason)
        except OrderError as error:
            self._report(error)

    def release_kill(self) -> None:
        """Allow orders again."""
        self._switch().release()

    def _switch(self) -> KillSwitch:
        if self._kill is None:
            raise NotReady(
                "stopped", "the module is not running", remedy="call login, or prepare and start"
            )
        return self._kill

    # Inside.

    def _report(self, error: OrderError) -> None:
        self.bus.emit(Fault(code=error.code, message=error.message, remedy=error.remedy))

    def _find(self, account_type: AccountType) -> Account:
        account = self.accounts.get(account_type)
        if account is None:
            raise InvalidOrder(
                "account_type",
                f"account {account_type} is not enabled",
                remedy=f"set {account_type}_enabled in the configuration",
            )
        return account

    def _chosen(self, account_type: AccountType | None) -> Iterable[Account]:
        return self.accounts.values() if account_type is None else [self._find(account_type)]

    def _locate(
        self, account_type: AccountType | None, client_order_id: str, order_id: str, symbol: str
    ) -> tuple[Account, str]:
        found = [
            (account, key)
            for account in self._chosen(account_type)
            if (key := account.book.key_of(client_order_id, order_id, symbol)) is not None
        ]
        if len(found) == 1:
            return found[0]
        named = client_order_id or f"{symbol} {order_id}"
        if found:
            accounts = " and ".join(account.type for account, _ in found)
            raise InvalidOrder(
                "account_type",
                f"order {named[:60]!r} is known on {accounts}",
                remedy="give account_type",
            )
        raise OrderMissing(
            "missing",
            f"no order {named[:60]!r} is known here",
            remedy="give client_order_id, or order_id with symbol",
        )

    async def _each(
        self, account_type: AccountType | None, ask: Callable[[Account], Awaitable[list[_T]]]
    ) -> list[_T]:
        """All answers, or the first error after every account was asked."""
        asked = [ask(account) for account in self._chosen(account_type)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [entry for answer in answers for entry in _items(answer)]

    def name_of(self, order_id: str, symbol: str) -> str:
        """What an order is called by its client id, where the venue's id is known here."""
        with contextlib.suppress(OrderError):
            return self._locate(None, "", order_id, symbol)[1]
        return f"{symbol}#{order_id}"


def _left(orders: Iterable[OrderUpdate]) -> bool:
    """Whether one is open. What is in doubt is asked for anyway, and cancelled if it is open."""
    return any(
        not order.status.final and order.status is not OrderStatus.UNKNOWN for order in orders
    )


def _items(answer: list[_T] | BaseException) -> Iterator[_T]:
    assert isinstance(answer, list)
    return iter(answer)
