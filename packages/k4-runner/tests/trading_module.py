"""K4's trading module on the simulated venue: what tests of the two together share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from trading_client import Desk, book, trading

from k4.core.config import TradingConfig
from k4.core.loading import load
from k4.core.trading import AccountType, Direction, NewOrder, OrderStatus, OrderType, OrderUpdate
from k4.runner.sim.trading.spec import AccountSpec, KeySpec
from k4.td import TdModule, Timing

D = Decimal
FACTOR = 20.0
SYMBOLS = {"spot": "BTCUSDT", "ubase": "BTCUSDT", "cbase": "BTCUSD_PERP"}
KINDS = ("hmac", "ed25519", "rsa")
ACCOUNT = AccountSpec(keys=tuple(KeySpec(algorithm=kind) for kind in KINDS))


@asynccontextmanager
async def client(
    folder: Path, algorithm: str = "hmac", *, socket: str = "", **changes: Any
) -> AsyncIterator[tuple[Desk, TdModule]]:
    """A module that is ready, configured by a file as a user would write it."""
    async with trading(**{"accounts": (ACCOUNT,), "scale": FACTOR, **changes}) as desk:
        for product in SYMBOLS:
            book(desk, product)
        settings = configured(desk, folder, algorithm, socket)
        module = TdModule(settings, timing=Timing().scaled(FACTOR))
        try:
            await module.login(20.0)
            yield desk, module
        finally:
            await module.stop()


def configured(desk: Desk, folder: Path, algorithm: str, socket: str = "") -> TradingConfig:
    entry = desk.venue.config_entries("main", folder, algorithm)
    if socket:
        entry["socket"] = socket
    entry |= {"name": "t", "journal": str(folder / "journal.db"), "recv_window": 1000}
    path = folder / "config.json"
    path.write_text(json.dumps({"trading": [entry]}))
    return load(path).trading[0]


def order(product: str, client_id: str, price: str = "63000.0", **changes: Any) -> NewOrder:
    values: dict[str, Any] = {
        "symbol": SYMBOLS[product],
        "account_type": AccountType(product),
        "direction": Direction.BUY,
        "order_type": OrderType.GTC,
        "quantity": D(10) if product == "cbase" else D("0.010"),
        "price": D(price),
        "client_order_id": client_id,
        **changes,
    }
    return NewOrder(**values)


async def settled(
    module: TdModule, product: str, client_id: str, status: OrderStatus
) -> OrderUpdate:
    """Until the module knows that status."""
    async with asyncio.timeout(10):
        while True:
            found = await module.query_order(client_id, account_type=AccountType(product))
            if found.status is status:
                return found
            await asyncio.sleep(0.01)
