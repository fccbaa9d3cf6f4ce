"""Feeds x links x arbiter x stores: the one place where they meet.

An engine runs one connection of the configuration, or some products of it, on one event loop. It
makes a group per product (stores, arbiter, streams), and looks after all of them by one timer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec.structs import asdict

from k4.core.clock import Clock, Timer
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.counters import Counters
from k4.core.enums import Kind
from k4.core.log import get_logger
from k4.core.retry import Budget
from k4.core.ring import RingWriter
from k4.core.transport import Dial, Transport
from k4.md.arbiter import Arbiter
from k4.md.feed import Feed
from k4.md.report import Reporter, receipt
from k4.md.slots import Slot, Tap
from k4.md.stream import Settings, Stream

TICK = 0.25  # seconds between two looks at the lines, where no timeout is short
HEARTBEAT = 0.5  # seconds between two signs of life in the stores


class Store(Protocol):
    """What an engine needs of a store. `k4.core.shm.ShmMdStore` is one, `MemoryStore` another."""

    name: str

    @property
    def ring(self) -> RingWriter: ...

    def heartbeat(self) -> None: ...

    def feed_ok(self, ns: int) -> None: ...

    def lines(self, up: int, configured: int) -> None: ...

    def close(self) -> None: ...


class MemoryStore:
    """A store in ordinary memory, for a caller in the same process."""

    def __init__(self, name: str, kind: Kind, symbols: Sequence[str], buffer_size: int = 2) -> None:
        self.name = name
        self.ring = RingWriter.in_memory(kind, symbols, buffer_size)
        self.feed_ok_ns = 0
        self.lines_up = 0
        self.lines_configured = 0

    def heartbeat(self) -> None:
        """Nobody outside this process looks."""

    def feed_ok(self, ns: int) -> None:
        self.feed_ok_ns = ns

    def lines(self, up: int, configured: int) -> None:
        self.lines_up, self.lines_configured = up, configured

    def close(self) -> None:
        """Nothing to let go of."""


StoreFactory = Callable[[ProductConfig, Kind], Store]


class Group:
    """One product: its stores, its arbiter and the streams that write them."""

    def __init__(
        self,
        product: ProductConfig,
        feeds: Sequence[Feed],
        stores: Mapping[Kind, Store],
        now_ns: int,
        on_reset: Callable[[Slot], None],
    ) -> None:
        self.product = product
        self.name = feeds[0].group
        self.stores = dict(stores)
        self.feeds = tuple(feeds)
        channels = [channel for feed in feeds for channel in feed.channels]
        slots = [channel.slot for channel in channels]
        shared = any(feed.lines > 1 for feed in feeds) or len(set(slots)) < len(slots)
        self.arbiter = Arbiter(
            product_type=int(feeds[0].product_type),
            symbols=product.symbols,
            channels=channels,
            rings={kind: store.ring for kind, store in stores.items()},
            limits=feeds[0].limits,
            shared=shared,
            now_ns=now_ns,
            on_reset=on_reset,
        )
        self.streams: list[Stream] = []

    def look(self, now_ns: int) -> None:
        """Judge lines, decide what time decides."""
        for stream in self.streams:
            stream.tick(now_ns)
        self.arbiter.tick(now_ns)

    def sign(self, now_ns: int) -> None:
        """Write signs of life into the stores."""
        for kind, store in self.stores.items():
            feeding = self._feeding(kind)
            up = [stream.lines_up for stream in feeding]
            store.heartbeat()
            store.lines(sum(up), self.configured(kind))
            if feeding and all(up):
                store.feed_ok(now_ns)

    def configured(self, kind: Kind) -> int:
        """How many lines are to feed the store of a kind."""
        return sum(stream.feed.lines for stream in self._feeding(kind))

    def _feeding(self, kind: Kind) -> list[Stream]:
        return [
            stream
            for stream in self.streams
            if any(channel.kind is kind for channel in stream.feed.channels)
        ]


class Engine:
    """The market data of one connection.

    `prepare` makes the stores, `start` opens the lines, `stop` closes the lines and `close` the
    stores. dials(feed): where the feed's lines connect. stores(product, kind): makes one store.
    """

    def __init__(
        self,
        config: ConnectionConfig,
        feeds: Sequence[Feed],
        *,
        stores: StoreFactory,
        dials: Callable[[Feed], Sequence[Dial]],
        transport: Transport,
        clock: Clock,
        budget: Budget,
        rng: random.Random,
        counters: Counters | None = None,
    ) -> None:
        self.config = config
        self.feeds = tuple(feeds)
        self.groups: list[Group] = []
        self.log = get_logger("k4.md.engine").bind(exchange=config.exchange)
        self._stores = stores
        self._dials = dials
        self._transport = transport
        self._clock = clock
        self._budget = budget
        self._rng = rng
        self._reporter = Reporter(counters, clock) if counters is not None else None
        self._timer: Timer | None = None
        self._signed = 0.0
        self._printed = clock.monotonic()

    # Life

    def prepare(self) -> None:
        """Make stores and arbiters. Raises StoreError, after closing what was made."""
        by_name = {product.name: product for product in self.config.products}
        stores: dict[Kind, Store] = {}
        groups: dict[str, list[Feed]] = {}
        for feed in self.feeds:
            groups.setdefault(feed.group, []).append(feed)
        try:
            for name, feeds in groups.items():
                product = by_name[name.partition(".")[2]]
                stores = {}
                kinds = {channel.kind for feed in feeds for channel in feed.channels}
                for kind in sorted(kinds):
                    stores[kind] = self._stores(product, kind)
                self.groups.append(
                    Group(product, feeds, stores, self._clock.time_ns(), self._on_reset)
                )
        except BaseException:
            for store in stores.values():
                store.close()
            self.close()
            raise
        for group in self.groups:
            group.sign(self._clock.time_ns())

    def start(self) -> None:
        """Open the lines of every stream."""
        for group in self.groups:
            for feed in group.feeds:
                stream = Stream(
                    feed,
                    group.arbiter,
                    self._dials,
                    settings=self._settings(),
                    transport=self._transport,
                    clock=self._clock,
                    budget=self._budget,
                    rng=self._rng,
                )
                group.streams.append(stream)
                stream.start()
        self._tick()

    def stop(self) -> None:
        """Close all lines; `stopped` tells when the last is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for group in self.groups:
            group.arbiter.account(self._clock.time_ns())
        for stream in self.streams:
            stream.stop()

    @property
    def stopped(self) -> bool:
        return all(stream.stopped for stream in self.streams)

    def close(self) -> None:
        """Let go of the stores; their data stays."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reporter is not None:
            self._reporter.release()
        for group in self.groups:
            for kind, store in group.stores.items():
                store.lines(0, group.configured(kind))
                store.close()

    # Looking after

    @property
    def streams(self) -> list[Stream]:
        return [stream for group in self.groups for stream in group.streams]

    def tap(self, tap: Callable[[Group, Kind], Tap]) -> None:
        """Have every publication told: `tap(group, kind)` gives the function for those slots."""
        for group in self.groups:
            for slot in group.arbiter.live_slots():
                slot.taps += (tap(group, slot.kind),)

    def _settings(self) -> Settings:
        config = self.config
        return Settings(
            stall_timeout=config.stall_timeout_sec,
            rotate_every=config.hb_interval_sec if config.redun_reset_on_hb else 0.0,
            rotate_after=config.redun_reset_on_threshold,
            ping_interval=config.ping_interval_sec,
        )

    def _tick(self) -> None:
        interval = min(TICK, self.config.stall_timeout_sec / 20)
        self._timer = self._clock.call_later(interval, self._tick)  # whatever fails below
        now_ns = self._clock.time_ns()
        for group in self.groups:
            group.look(now_ns)
        now = self._clock.monotonic()
        if now - self._signed >= HEARTBEAT:
            self._signed = now
            for group in self.groups:
                group.sign(now_ns)
                for stream in group.streams:
                    stream.sample(now_ns)
            self._print_latency(now)
            if self._reporter is not None:
                self._reporter.flush(self.groups)

    def _print_latency(self, now: float) -> None:
        interval = self.config.latency_print_interval_ms / 1000
        if not interval or now - self._printed < interval:
            return
        self._printed = now
        for stream in self.streams:
            for line in stream.lines:
                age = stream.age(line)
                if age is not None:
                    self.log.info("latency", stream=stream.feed.name, line=line.id, **asdict(age))

    def _on_reset(self, slot: Slot) -> None:
        self.log.warning(
            "sequence reset",
            kind=slot.kind.label,
            symbol=slot.channel.symbol,
            generation=slot.generation,
            last=slot.previous,
        )

    def receipt(self) -> list[dict[str, Any]]:
        """One JSON-able object per stream: what it published, lost, rotated."""
        now = self._clock.monotonic()
        return [receipt(group, stream, now) for group in self.groups for stream in group.streams]
