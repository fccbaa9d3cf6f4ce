"""What tests of the trading module share: a configuration, a running module, its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from td_venue import KEY, SECRET, SYMBOL, FakeVenue

from k4.core.config import Secret, TradingConfig
from k4.core.trading import (
    AccountType,
    Connected,
    Direction,
    Disconnected,
    Event,
    NewOrder,
    OrderChanged,
    OrderStatus,
    OrderType,
)
from k4.td import TdModule, Timing

# Every wait of the product, shorter by this factor.
FACTOR = 20.0
TIMING = Timing().scaled(FACTOR)
SHORT_WINDOW = 400.0  # ms; an outcome in doubt is settled soon after it has closed

ALL = ("spot", "ubase", "cbase")


def config(
    venue: FakeVenue, folder: Path, accounts: tuple[str, ...] = ALL, **more: Any
) -> TradingConfig:
    values: dict[str, Any] = {
        "exchange": "binance",
        "name": "t",
        "journal": str(folder / "journal.db"),
        "api_key": Secret(KEY),
        "secret_key": Secret(SECRET),
        "accounts": accounts,
        "recv_window": 5000.0,
        **venue.urls(),
        **more,
    }
    return TradingConfig(**values)


@asynccontextmanager
async def running(settings: TradingConfig, timing: Timing = TIMING) -> AsyncIterator[TdModule]:
    module = TdModule(settings, timing=timing)
    try:
        await module.login(20.0)
        yield module
    finally:
        await module.stop()


def contents(folder: Path) -> str:
    """Every file in a folder, as text."""
    return "".join(path.read_bytes().decode("latin-1") for path in folder.iterdir())


def order(account: str = "spot", **more: Any) -> NewOrder:
    values: dict[str, Any] = {
        "symbol": SYMBOL[account],
        "account_type": AccountType(account),
        "direction": Direction.BUY,
        "order_type": OrderType.GTC,
        "quantity": Decimal("0.100"),
        "price": Decimal("90.0"),
        **more,
    }
    return NewOrder(**values)


class Log:
    """Every event of a module, and a way to wait for one."""

    def __init__(self, module: TdModule) -> None:
        self.seen: list[Event] = []
        self._changed = asyncio.Event()
        module.bus.listen(self._add)

    def _add(self, sequence: int, event: Event) -> None:
        self.seen.append(event)
        self._changed.set()

    async def until(self, condition: Callable[[Event], bool], seconds: float = 15.0) -> Event:
        async with asyncio.timeout(seconds):
            while True:
                for event in self.seen:
                    if condition(event):
                        return event
                self._changed.clear()
                await self._changed.wait()

    async def until_account(self, kind: type[Connected] | type[Disconnected], account: str) -> None:
        await self.until(
            lambda event: (
                isinstance(event, kind)
                and getattr(event, "account_type", None) == AccountType(account)
            )
        )

    async def status(self, key: str, status: OrderStatus) -> None:
        await self.until(
            lambda event: (
                isinstance(event, OrderChanged)
                and event.update.client_order_id == key
                and event.update.status is status
            )
        )
