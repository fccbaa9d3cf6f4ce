"""The market data of one connection as a module that a worker hosts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from k4.core.clock import Clock
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.counters import Counters
from k4.core.enums import Kind
from k4.core.errors import ConfigError, K4Error, Problem
from k4.core.log import get_logger
from k4.core.retry import Budget
from k4.core.shm import ShmMdStore
from k4.core.transport import Transport, choose
from k4.core.udp import UdpSender
from k4.core.waiting import sleep
from k4.md.dials import Dials
from k4.md.engine import Engine, Group, Store
from k4.md.exchanges import find
from k4.md.feed import Exchange, Feed
from k4.md.slots import Tap
from k4.md.symbols import Resolution, resolve

STOP_SEC = 1.5  # for the closing handshakes of all lines
NAMES_SEC = 300.0  # between two looks at the venue's addresses


class MdModule:
    """Stores, lines and arbitration of some products of one connection.

    products: names of those that this worker carries; the connection's others are left alone.
    """

    def __init__(
        self,
        connection: ConnectionConfig,
        products: Sequence[str],
        *,
        clock: Clock,
        counters: Counters,
        budget: Budget,
        rng: random.Random,
        transport: Transport | None = None,
        offline_symbols: bool = False,
    ) -> None:
        mine = tuple(product for product in connection.products if product.name in products)
        self.config = msgspec.structs.replace(connection, products=mine)
        self.exchange: Exchange = find(connection.exchange)
        self.name = f"{connection.exchange}:{','.join(product.name for product in mine)}"
        self.engine: Engine | None = None
        self.log = get_logger("k4.md").bind(module=self.name)
        self._clock = clock
        self._counters = counters
        self._budget = budget
        self._rng = rng
        self._transport = transport
        self._offline = offline_symbols
        self._sender: UdpSender | None = None
        self._dials = Dials(self.config)
        self._names: asyncio.Task[None] | None = None
        self._receipt: list[dict[str, Any]] = []

    async def prepare(self) -> None:
        """Map symbols, make stores. Raises K4Error."""
        resolution = await resolve(
            self.exchange, self.config, clock=self._clock, offline=self._offline
        )
        for warning in resolution.warnings:
            self.log.warning("symbols", problem=warning)
        feeds = plan(self.exchange, self.config, resolution)
        await self._dials.ask(feeds)
        engine = Engine(
            self.config,
            feeds,
            stores=self._store,
            dials=self._dials,
            transport=self._transport or choose(self.config.transport, self._clock),
            clock=self._clock,
            budget=self._budget,
            rng=self._rng,
            counters=self._counters,
        )
        engine.prepare()
        self.engine = engine
        targets = [target for target in self.config.udp_sender if target.enabled]
        if targets:
            self._sender = UdpSender(
                targets, self.exchange.code, clock=self._clock, counters=self._counters
            )
            engine.tap(self._to_udp(self._sender))

    def start(self) -> None:
        """Open the lines."""
        if self.engine is None:
            raise K4Error(f"module {self.name} is not prepared")
        if self._sender is not None:
            self._sender.open()
        self.engine.start()
        self._names = asyncio.get_running_loop().create_task(self._ask_again(self.engine))

    async def stop(self) -> None:
        """Close lines, then stores."""
        engine, self.engine = self.engine, None
        if self._names is not None:
            self._names.cancel()
            self._names = None
        if engine is None:
            return
        engine.stop()
        await drained(engine, self._clock)
        self._receipt = engine.receipt()
        engine.close()
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def receipt(self) -> list[dict[str, Any]]:
        return self._receipt

    def _store(self, product: ProductConfig, kind: Kind) -> Store:
        return ShmMdStore(
            product.stores[kind],
            kind,
            product.symbols,
            self.config.md_size,
            mode=self.config.shm_mode,
            clock=self._clock,
        )

    def _to_udp(self, sender: UdpSender) -> Callable[[Group, Kind], Tap]:
        def tap(group: Group, kind: Kind) -> Tap:
            product_type = int(group.feeds[0].product_type)

            def send(slot: int, record: memoryview) -> None:
                sender.publish(kind, product_type, record)

            return send

        return tap

    async def _ask_again(self, engine: Engine) -> None:
        while True:
            await sleep(self._clock, NAMES_SEC)
            await self._dials.ask(engine.feeds)


def plan(exchange: Exchange, config: ConnectionConfig, resolution: Resolution) -> list[Feed]:
    """The feeds of a connection, checked against what its exchange has.

    Raises ConfigError for a product or a kind that the exchange does not deliver.
    """
    problems = []
    for product in config.products:
        known = {p.name: p for p in exchange.products}
        if product.name not in known:
            problems.append(Problem(product.path, f"{exchange.name} has no product {product.name}"))
            continue
        problems += [
            Problem(product.path, f"{exchange.name} {product.name} delivers no {kind.label}")
            for kind in product.kinds
            if kind not in known[product.name].kinds
        ]
    if problems:
        raise ConfigError(problems)
    return exchange.feeds(config, resolution.symbols)


async def drained(engine: Engine, clock: Clock) -> None:
    """Wait until all lines are closed, for a bounded time."""
    deadline = clock.monotonic() + STOP_SEC
    while not engine.stopped and clock.monotonic() < deadline:
        await sleep(clock, 0.01)
