"""A gateway's engine in this process, on real sockets, against a simulated venue that breaks rules.

Engine and venue share a clock that runs faster than time. What the engine publishes is kept, and
accounted for with the venue's ledger.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
from chaos.account import Verdict, judge, series_key
from chaos.clock import FastClock, Pace
from chaos.gateway import ledgers

from k4.core import layout
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.counters import Counters
from k4.core.enums import KIND_BY_LABEL, Kind
from k4.core.retry import LocalBudget
from k4.core.transport import Dial, choose
from k4.md.engine import Engine, Group, MemoryStore
from k4.md.exchanges import find
from k4.md.module import drained
from k4.md.report import stream_figures
from k4.md.slots import Tap
from k4.md.stream import Stream
from k4.runner.sim import market
from k4.runner.sim.ledger import Ledger
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

Json = dict[str, Any]
Shelf = tuple[str, str, str]  # product, symbol, label of the kind


class Rig:
    """One product of one venue. An async context manager; inside, all lines are up.

    published: the records' bytes by (product, symbol, kind), as they were published.
    """

    def __init__(
        self,
        venue: str = "binance",
        product: str = "spot",
        symbols: tuple[str, ...] = ("BTCUSDT",),
        *,
        kinds: tuple[Kind, ...] = (Kind.BOOKTICKER, Kind.TRADE),
        lines: int = 3,
        factor: float = 20.0,
        faults: tuple[Json, ...] = (),
        seed: int = 3,
        counters: Counters | None = None,
        **options: Any,
    ) -> None:
        self.venue = venue
        self._counters = counters
        self.factor = factor
        self.clock = FastClock(Pace.beginning_now(factor))
        spec = VenueSpec(
            name=venue,
            products={product: symbols},
            pace=market.Pace(start=False),
            proof_every=1.0,
        )
        self.venues = SimVenues(SimSpec(venues=(spec,), seed=seed, faults=faults), clock=self.clock)
        self.published: dict[Shelf, list[bytes]] = {}
        self._product = ProductConfig(name=product, symbols=symbols, lines=lines, kinds=kinds)
        self._options = options
        self._rng = random.Random(seed)
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    @property
    def stream(self) -> Stream:
        return self.engine.streams[0]

    @property
    def ledger(self) -> Ledger:
        return self.venues.ledger

    async def __aenter__(self) -> Rig:
        await self.venues.start()
        exchange = find(self.venue)
        endpoints = {key: (url,) for key, url in self.venues.endpoints(self.venue).items()}
        config = ConnectionConfig(
            exchange=self.venue, products=(self._product,), endpoints=endpoints, **self._options
        )
        name, rule = self._product.name, exchange.product(self._product.name).rule
        self._engine = Engine(
            config,
            exchange.feeds(config, {(name, s): rule(s) for s in self._product.symbols}),
            stores=lambda product, kind: MemoryStore("rig", kind, product.symbols),
            dials=lambda feed: [Dial(url=url) for url in feed.urls],
            transport=choose("auto", self.clock),
            clock=self.clock,
            budget=LocalBudget(),
            rng=self._rng,
            counters=self._counters,
        )
        self.engine.prepare()
        self.engine.tap(self._tap)
        self.engine.start()
        await self.until(self.all_up)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.engine.stop()
        await drained(self.engine, self.clock)
        self.engine.close()
        await self.venues.stop()

    def _tap(self, group: Group, kind: Kind) -> Tap:
        symbols = group.product.symbols

        def take(slot: int, record: memoryview) -> None:
            shelf = (group.product.name, symbols[slot >> 2], kind.label)
            self.published.setdefault(shelf, []).append(bytes(record))

        return take

    def all_up(self) -> bool:
        return all(stream.lines_up == stream.feed.lines for stream in self.engine.streams)

    async def until(self, condition: Callable[[], object], within: float = 30.0) -> None:
        """Until it holds; `within` seconds of real time."""
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110  what is awaited happens in many places
                await asyncio.sleep(0.005)

    async def wait(self, seconds: float) -> None:
        """So much of the venue's time."""
        await asyncio.sleep(seconds / self.factor)

    async def trade(self, seconds: float, rate: float = 100.0) -> None:
        """Let the market run for so much of the venue's time."""
        self.venues.pace(self.venue, market.Pace(rate=rate, tick=0.005 * self.factor))
        await self.wait(seconds)
        self.venues.server(self.venue).pump.stop()

    def inject(self, fault: str, **rule: Any) -> int:
        return self.venues.inject({"fault": fault, **rule})

    def happened(self, fault: str) -> int:
        """How often the venue's ledger says that it happened."""
        return len(self.ledger.faults(fault))

    async def settle(self) -> None:
        """What was sent has arrived, and what time has to decide is decided."""
        await self.venues.settle(1.0)
        await self.wait(4.0)

    def figures(self) -> dict[str, int]:
        return stream_figures(self.engine.groups[0], self.stream)

    def ids(self, symbol: str, kind: Kind) -> list[int]:
        """The ids as published."""
        field = "trade_id" if kind is Kind.TRADE else "update_id"
        records = self._records((self._product.name, symbol, kind.label))
        return [int(id) for id in records[field]]

    def _records(self, shelf: Shelf) -> np.ndarray:
        form = layout.LAYOUTS[KIND_BY_LABEL[shelf[2]]].dtype
        return np.frombuffer(b"".join(self.published.get(shelf, [])), dtype=form)

    def account(self) -> dict[str, Verdict]:
        """Everything published against the ledger."""
        found = {}
        for said in ledgers(self.engine):
            shelf = (said["product"], said["symbol"], said["kind"])
            key = series_key(self.venue, shelf[0], shelf[1], KIND_BY_LABEL[shelf[2]])
            series = self.ledger.series(key)
            found[str(key)] = judge(self.ledger, series, self._records(shelf), said)
        return found

    def assert_kept(self) -> None:
        """Nothing lost, doubled, backward, invented or wrong; gaps exactly where they were."""
        for name, verdict in self.account().items():
            assert verdict.published > 0, name
            assert not verdict.violations, f"{name}: {verdict}"
