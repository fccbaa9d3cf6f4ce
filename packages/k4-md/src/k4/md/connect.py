"""Market data in the caller's own process: no shared memory, no runner.

async with k4.md.connect("okx", spot=["BTCUSDT"], channels=["bbo", "trade"], lines=2) as feed:
    async for record in feed:
        ...
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec

from k4.core import layout
from k4.core.clock import Clock, SystemClock
from k4.core.config import ConnectionConfig, ProductConfig, Secret
from k4.core.enums import KIND_BY_LABEL, Kind
from k4.core.errors import ConfigError, Problem
from k4.core.log import get_logger
from k4.core.records import Record
from k4.core.retry import Budget, LocalBudget
from k4.core.transport import Transport, choose
from k4.md.dials import Dials
from k4.md.engine import Engine, Group, MemoryStore
from k4.md.exchanges import find
from k4.md.feed import Exchange, Product
from k4.md.module import drained, plan
from k4.md.slots import Tap
from k4.md.symbols import resolve

Key = tuple[str, Kind, str]
"""Product, kind, symbol."""

OnLost = Callable[[str, Kind, str, int], object]
"""Called with product, kind, symbol and how many of its trades were lost so far."""

QUOTES = (Kind.BOOKTICKER, Kind.DEPTH5)
FEEDS = ("auto", "json", "sbe", "both")
METADATA = ("auto", "off")


class Quote(msgspec.Struct, frozen=True):
    """The place in the queue of a quote or book: whatever is its newest when its turn comes."""

    key: Key


class Connection:
    """A running feed: an async context manager and an async iterator of records.

    A caller that is too slow loses quotes first and without harm: of each quote and book only the
    newest waits. Trades wait in order, at most `max_pending` of them; beyond that the oldest are
    dropped, told to `on_lost` and logged.

    lost: trades dropped, by (product, kind, symbol). conflated: quotes and books that a newer one
    replaced before they were read, by the same.
    """

    def __init__(
        self,
        exchange: Exchange,
        config: ConnectionConfig,
        *,
        max_pending: int,
        on_lost: OnLost | None,
        clock: Clock,
        transport: Transport | None,
        budget: Budget,
        rng: random.Random,
    ) -> None:
        self.lost: dict[Key, int] = {}
        self.conflated: dict[Key, int] = {}
        self._exchange = exchange
        self._config = config
        self._max_pending = max_pending
        self._on_lost = on_lost
        self._clock = clock
        self._transport = transport
        self._budget = budget
        self._rng = rng
        self._engine: Engine | None = None
        self._receipt: list[dict[str, Any]] = []
        self._pending: deque[Quote | tuple[Key, Record]] = deque()
        self._newest: dict[Key, Record] = {}
        self._trades = 0
        self._waiter: asyncio.Future[None] | None = None
        self._log = get_logger("k4.md").bind(exchange=exchange.name)

    async def __aenter__(self) -> Self:
        resolution = await resolve(self._exchange, self._config, clock=self._clock)
        for warning in resolution.warnings:
            self._log.warning("symbols", problem=warning)
        feeds = plan(self._exchange, self._config, resolution)
        dials = Dials(self._config)
        await dials.ask(feeds)
        engine = Engine(
            self._config,
            feeds,
            stores=lambda product, kind: MemoryStore(product.name, kind, product.symbols),
            dials=dials,
            transport=self._transport or choose(self._config.transport, self._clock),
            clock=self._clock,
            budget=self._budget,
            rng=self._rng,
        )
        engine.prepare()
        engine.tap(self._tap)
        engine.start()
        self._engine = engine
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.stop()
            await drained(engine, self._clock)
            self._receipt = engine.receipt()
            engine.close()
        self._wake()

    def __aiter__(self) -> AsyncIterator[Record]:
        return self

    async def __anext__(self) -> Record:
        """The next record, in order of publication. Ends when the feed is closed."""
        while not self._pending:
            if self._engine is None:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        head = self._pending.popleft()
        if isinstance(head, Quote):
            return self._newest.pop(head.key)
        self._trades -= 1
        return head[1]

    def stats(self) -> list[dict[str, Any]]:
        """One JSON-able object per stream: published, duplicates, gaps, rotations and so on; after
        the end what it was then."""
        return self._engine.receipt() if self._engine is not None else self._receipt

    def _tap(self, group: Group, kind: Kind) -> Tap:
        unpack = layout.LAYOUTS[kind].unpack
        take = self._quote if kind in QUOTES else self._trade
        product = group.product.name

        def tap(slot: int, data: memoryview) -> None:
            record = unpack(data)
            take((product, kind, record.symbol), record)
            self._wake()

        return tap

    def _quote(self, key: Key, record: Record) -> None:
        if key in self._newest:
            self.conflated[key] = self.conflated.get(key, 0) + 1
        else:
            self._pending.append(Quote(key))
        self._newest[key] = record

    def _trade(self, key: Key, record: Record) -> None:
        if self._trades >= self._max_pending:
            self._drop_oldest()
        self._pending.append((key, record))
        self._trades += 1

    def _drop_oldest(self) -> None:
        at = next(i for i, waiting in enumerate(self._pending) if not isinstance(waiting, Quote))
        waiting = self._pending[at]
        del self._pending[at]
        if isinstance(waiting, Quote):
            return
        self._trades -= 1
        key = waiting[0]
        count = self.lost[key] = self.lost.get(key, 0) + 1
        if self._on_lost is not None:
            self._on_lost(*key, count)
        if count & (count - 1) == 0:  # 1, 2, 4, 8 …: a slow caller must not be slowed by the log
            self._log.warning(
                "caller too slow, trades lost", product=key[0], symbol=key[2], lost=count
            )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def connect(
    exchange: str,
    *,
    channels: Sequence[str] = ("bbo", "trade"),
    lines: int = 1,
    endpoints: Mapping[str, str | Sequence[str]] | None = None,
    headers: Mapping[str, str | Secret] | None = None,
    max_pending: int = 65_536,
    on_lost: OnLost | None = None,
    feed: str = "auto",
    trades_channel: str = "trades",
    stall_timeout_sec: float = 10.0,
    transport: str = "auto",
    metadata: str = "auto",
    ca_file: str = "",
    clock: Clock | None = None,
    **products: Sequence[str],
) -> Connection:
    """Market data of one exchange, as an async context manager that is an async iterator.

    exchange: `binance`, `okx`, `bitget`, `bybit`, or one that a plug-in brings. Products are
    keywords with lists of symbols: binance `spot` `ubase` `cbase`; okx `spot` `swap`; bybit `spot`
    `linear` `inverse`; bitget `spot` `futures` `usdc_futures` `coin_futures`. channels: `bbo`,
    `trade`, `aggtrade`, `depth5`. lines: redundant connections per stream. The iterator gives
    `Bookticker`, `Trade`, `AggTrade` and `Depth5` records (`k4.core.records` has their units).

    max_pending: trades that wait for a slow caller at most; on_lost(product, kind, symbol, count)
    hears of every one dropped, see `Connection`. As in the configuration: endpoints (whole URLs),
    headers of the handshake, feed (Binance spot), trades_channel (OKX), stall_timeout_sec,
    transport (`auto`, `picows`, `websockets`), metadata (`auto`, `off`), ca_file. clock: for tests.

    Raises at once K4Error for an unknown exchange and ConfigError for an unknown product, channel
    or endpoint and for a figure that cannot be; when it is entered, ConfigError for a symbol that
    the venue does not list or a feed that it does not serve so, and K4Error where a file or a
    library is missing.
    """
    value = find(exchange)
    known = {product.name: product for product in value.products}
    problems = _unknown(exchange, known, products, channels)
    problems += [
        Problem(name, message)
        for name, is_bad, message in (
            ("lines", lines < 1, "needs at least 1"),
            ("max_pending", max_pending < 1, "needs at least 1"),
            ("stall_timeout_sec", stall_timeout_sec <= 0, "needs more than 0"),
            ("feed", feed not in FEEDS, f"unknown {feed!r}, known: {', '.join(FEEDS)}"),
            ("metadata", metadata not in METADATA, f"{metadata!r} is not auto or off"),
        )
        if is_bad
    ]
    places = [key for key in value.endpoints if "." not in key]  # of `rest.ubase`, `rest` is asked
    problems += [
        Problem(f"endpoints.{key}", f"unknown, known: {', '.join(places)}")
        for key in endpoints or {}
        if key not in (*places, "rest")
    ]
    if problems:
        raise ConfigError(problems)
    kinds = [KIND_BY_LABEL[name] for name in channels]
    config = ConnectionConfig(
        exchange=exchange,
        path="",
        products=tuple(
            ProductConfig(
                name=name,
                symbols=tuple(symbols),
                lines=lines,
                kinds=tuple(kind for kind in sorted(kinds) if kind in known[name].kinds),
                headers=headers or {},
                feed=feed,
                trades_channel=trades_channel,
                path=name,
            )
            for name, symbols in products.items()
        ),
        endpoints={
            key: (url,) if isinstance(url, str) else tuple(url)
            for key, url in (endpoints or {}).items()
        },
        stall_timeout_sec=stall_timeout_sec,
        transport=transport,
        metadata=metadata,
        ca_file=ca_file,
    )
    limits = value.limits
    return Connection(
        value,
        config,
        max_pending=max_pending,
        on_lost=on_lost,
        clock=clock or SystemClock(),
        transport=None,
        budget=LocalBudget(limits.connect_attempts, limits.connect_period),
        rng=random.Random(),
    )


def _unknown(
    exchange: str,
    known: Mapping[str, Product],
    products: Mapping[str, Sequence[str]],
    channels: Sequence[str],
) -> list[Problem]:
    """Products and channels that the exchange does not have. A channel that none of the named
    products delivers is an error, not silence."""
    problems = [
        Problem(f"channels[{i}]", f"unknown channel {name!r}, known: {', '.join(KIND_BY_LABEL)}")
        for i, name in enumerate(channels)
        if name not in KIND_BY_LABEL
    ]
    for name, symbols in products.items():
        if name not in known:
            problems.append(Problem(name, f"{exchange} has {', '.join(known)}"))
        elif isinstance(symbols, str) or not symbols:
            problems.append(Problem(name, "needs a list of symbols"))
    if not products:
        problems.append(Problem("", f"name a product: {', '.join(known)}"))
    return problems or [
        Problem(f"channels[{i}]", f"none of {', '.join(products)} delivers {name}")
        for i, name in enumerate(channels)
        if not any(KIND_BY_LABEL[name] in known[product].kinds for product in products)
    ]
