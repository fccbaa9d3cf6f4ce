"""`k4-runner demo --trading`: a simulated Binance, a gateway with market data and trading, and a
small strategy that quotes through it.

The processes are those of a user: the venue, the gateway with its workers, and this one, which is
the strategy. At the end everything is cancelled, and the strategy's books are compared with the
venue's ledger.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from k4.core.clock import Clock, SystemClock
from k4.core.errors import K4Error, StoreMissing
from k4.core.shm import ShmMdReader
from k4.core.trading import AccountType, GatewayError
from k4.core.waiting import sleep
from k4.runner.demo import (
    RATE,
    READY_SEC,
    Gateway,
    Venues,
    configuration,
    played,
)
from k4.runner.quoter import Quoter
from k4.td import AsyncTdClient

ACCOUNT, SYMBOL = AccountType.UBASE, "BTCUSDT"
REFRESH_SEC = 0.25
NAME = "main"


class TradingDemo:
    """One run. `prefix` begins the names of all its stores, `run` those of its counters."""

    def __init__(self, clock: Clock, *, headless: bool) -> None:
        self._clock = clock
        self._headless = headless
        self.run = f"demo{os.getpid()}"
        self.prefix = f"{self.run}_"
        self._ended = asyncio.Event()

    def end(self) -> None:
        self._ended.set()

    async def show(self, seconds: float, folder: Path) -> dict[str, Any]:
        """Trade for `seconds` (0: until `end`); returns the summary."""
        venues = await Venues.open(("binance",), {"accounts": [{"name": NAME}]})
        gateway: Gateway | None = None
        try:
            file, socket = folder / "demo.json", str(folder / "td.sock")
            entry = await venues.ask("trading", do="config", account=NAME, folder=str(folder))
            file.write_text(json.dumps(self._configuration(venues, entry, folder, socket)))
            gateway = await Gateway.open(file)
            td = await self._connected(gateway, socket)
            try:
                with await self._market(gateway) as market:
                    await venues.pace(RATE)
                    quoter = Quoter(td, market, ACCOUNT, SYMBOL, self._clock)
                    if seconds:
                        self._clock.call_later(seconds, self.end)
                    await self._trade(quoter, gateway, venues)
                    return await self._summary(quoter, td, venues)
            finally:
                await td.close()
        finally:
            if gateway is not None:
                await gateway.close()
            await venues.close()

    def _configuration(
        self, venues: Venues, entry: Mapping[str, Any], folder: Path, socket: str
    ) -> dict[str, Any]:
        """As a user would write it: limits for what trades, a collar from the store beside it."""
        limits = {
            "symbols": [SYMBOL],
            "max_order_qty": "0.1",
            "max_order_notional": "20000",
            "max_position": "0.2",
            "max_open_orders": 10,
            "max_orders_per_sec": 25,
            "price_collar_bps": 50,
            "bbo_store": self.store,
        }
        trading = {
            **entry,
            "name": NAME,
            "spot_enabled": False,
            "cbase_enabled": False,
            "journal": str(folder / "journal.db"),
            "socket": socket,
            "cancel_on_disconnect": True,
            "risk": {ACCOUNT.value: limits},
        }
        return {**configuration(self.prefix, self.run, venues.endpoints), "trading": [trading]}

    @property
    def store(self) -> str:
        return f"{self.prefix}binance_{ACCOUNT}_bbo"

    async def _connected(self, gateway: Gateway, socket: str) -> AsyncTdClient:
        """A client of the order gateway, when its account takes orders."""
        deadline = self._clock.monotonic() + READY_SEC
        while True:
            td = AsyncTdClient(socket, "demo", events=True, clock=self._clock)
            try:
                await td.connect()
            except GatewayError:
                self._check(gateway, deadline)
            else:
                if ACCOUNT.value in td.info["connected"]:
                    return td
            await td.close()
            await sleep(self._clock, 0.05)

    async def _market(self, gateway: Gateway) -> ShmMdReader:
        """The store of quotes, when it is there."""
        deadline = self._clock.monotonic() + READY_SEC
        while True:
            try:
                return ShmMdReader(self.store)
            except StoreMissing:
                self._check(gateway, deadline)
                await sleep(self._clock, 0.05)

    def _check(self, gateway: Gateway, deadline: float) -> None:
        if not gateway.alive:
            raise K4Error("the gateway ended early")
        if self._clock.monotonic() > deadline:
            raise K4Error(f"trading was not ready in {READY_SEC:g} s")

    async def _trade(self, quoter: Quoter, gateway: Gateway, venues: Venues) -> None:
        watching = asyncio.ensure_future(self._watch(quoter, gateway))
        try:
            await quoter.run(self._ended.is_set)
        finally:
            self.end()
            await watching
            await venues.pace(0.0)

    async def _watch(self, quoter: Quoter, gateway: Gateway) -> None:
        """Show how it stands, until the end; a gateway that is gone is the end."""
        screen = None if self._headless else Live(view(quoter), auto_refresh=False)
        if screen is not None:
            screen.start()
        try:
            while not self._ended.is_set():
                await sleep(self._clock, REFRESH_SEC)
                if screen is not None:
                    screen.update(view(quoter), refresh=True)
                if not gateway.alive:
                    self.end()
        finally:
            if screen is not None:
                screen.stop()

    async def _summary(self, quoter: Quoter, td: AsyncTdClient, venues: Venues) -> dict[str, Any]:
        """What the strategy believes, and whether the venue's ledger says the same."""
        open_left = await td.query_open_orders()
        position = sum((held.quantity for held in await td.query_positions()), Decimal(0))
        ledger = await venues.ask("trading", do="report")
        differences = compare(quoter, ledger)
        there = [Decimal(p["amount"]) for p in ledger["wealth"][NAME][f"{ACCOUNT}_positions"]]
        if sum(there, Decimal(0)) != position:
            differences.append(f"position {position} here, {there} at the venue")
        statuses = [order.status.value for order in quoter.orders.values()]
        return {
            "type": "summary",
            "orders_sent": len(quoter.orders),
            "filled": statuses.count("filled"),
            "canceled": statuses.count("canceled"),
            "fills": len(quoter.fills),
            "refused": dict(quoter.refused),
            "position": format(position, "f"),
            "open": len(open_left),
            "ledger_equal": not differences,
            "differences": differences,
        }


def compare(quoter: Quoter, ledger: Mapping[str, Any]) -> list[str]:
    """Where the strategy's books differ from the venue's ledger (`TradingLedger.report`)."""
    there = {order["client_id"]: order for order in ledger["orders"]}
    alone = sorted(there.keys() ^ _sent(quoter))
    differences = [f"{client_id} is known to one side only" for client_id in alone]
    for client_id, update in quoter.orders.items():
        order = there.get(client_id)
        if order is None:
            continue
        mine = update.status.value, update.filled_quantity
        theirs = order["status"].lower(), Decimal(order["executed"])
        if mine != theirs:
            differences.append(f"{client_id} is {mine} here, {theirs} at the venue")
    fills = {str(trade["id"]) for trade in ledger["trades"]}
    if fills != set(quoter.fills):
        differences.append(f"{len(quoter.fills)} fills here, {len(fills)} at the venue")
    if ledger["summary"]["sent_twice"]:
        differences.append(f"sent twice: {ledger['summary']['sent_twice']}")
    return differences


def _sent(quoter: Quoter) -> set[str]:
    """Orders that the venue accepted at least for a moment."""
    return {key for key, order in quoter.orders.items() if order.order_id}


def view(quoter: Quoter) -> Table:
    """The strategy at a glance."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold cyan")
    for name in ("order", "side", "price", "quantity", "filled", "status"):
        table.add_column(name, no_wrap=True)
    latest = sorted(quoter.orders.values(), key=lambda order: order.update_time_us)[-12:]
    for order in reversed(latest):
        table.add_row(
            order.client_order_id,
            order.direction.value,
            format(order.price, "f"),
            format(order.quantity, "f"),
            format(order.filled_quantity, "f"),
            order.status.value,
        )
    table.caption = (
        f"{len(quoter.orders)} orders, {len(quoter.fills)} fills, {len(quoter.open)} open, "
        f"position {quoter.position:f}, {sum(quoter.refused.values())} refused"
    )
    return table


def run(*, seconds: float, headless: bool, as_json: bool) -> int:
    """The command; returns its exit status: 1 where anything is open or differs from the venue."""
    demo = TradingDemo(SystemClock(), headless=headless)

    async def shown() -> dict[str, Any]:
        return await played(demo, seconds)

    summary = asyncio.run(shown())
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
    else:
        _print(summary)
    return 0 if summary["ledger_equal"] and not summary["open"] else 1


def _print(summary: Mapping[str, Any]) -> None:
    sys.stdout.write(
        "{orders_sent:,} orders sent, {filled:,} filled, {canceled:,} canceled, {open} open; "
        "position {position}; ".format(**summary)
        + ("the venue's ledger says the same\n" if summary["ledger_equal"] else "")
    )
    for difference in summary["differences"]:
        sys.stdout.write(f"{difference}\n")
