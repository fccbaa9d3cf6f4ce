"""`k4-runner demo`: simulated venues, a gateway and a live view; nothing to configure.

Three processes that know nothing of each other but what a user's would: venues on loopback, the
gateway with a configuration file that names them, and this one, which reads shared memory. At its
end the venues' ledger is compared with what the stores held.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from k4.core.clock import Clock, SystemClock
from k4.core.enums import Kind
from k4.core.errors import K4Error, StoreError, StoreMissing
from k4.core.shm import ShmMdReader, list_stores, remove_store
from k4.core.waiting import sleep
from k4.runner.sim.venues import venue_names
from k4.runner.tally import ID_FIELD, Ids, Ledger, Market, lost
from k4.runner.watch import Watcher, live, objects

LINES = 2
RATE = 1_000.0  # market events a second and venue
JITTER_MS = 2.0  # of each line's own way
SLOTS = 16_384
READ_SEC = 0.25  # between two readings of the stores, well before a ring is lapped
READY_SEC = 30.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)  # loaded before any fork

# What is simulated: symbols by venue and product, and where the product stands in a configuration.
MARKETS: dict[str, dict[str, tuple[str, ...]]] = {
    "binance": {
        "spot": ("BTCUSDT", "ETHUSDT"),
        "ubase": ("BTCUSDT", "ETHUSDT"),
        "cbase": ("BTCUSD_PERP",),
    },
    "okx": {"spot": ("BTCUSDT",), "swap": ("BTCUSDT",)},
    "bitget": {"spot": ("BTCUSDT",), "futures": ("BTCUSDT",)},
    "bybit": {"spot": ("BTCUSDT",), "linear": ("BTCUSDT",)},
}
SECTIONS = {"linear": "futures"}  # named otherwise in a configuration


class Shop(msgspec.Struct, frozen=True):
    """One store of the demo."""

    name: str
    venue: str
    product: str
    kind: Kind


def kinds(venue: str) -> list[Kind]:
    return [kind for kind in Kind if kind is not Kind.AGGTRADE or venue == "binance"]


def shops(prefix: str, venues: Sequence[str]) -> list[Shop]:
    """The stores that the demo's gateway makes."""
    return [
        Shop(f"{prefix}{venue}_{product}_{kind.label}", venue, product, kind)
        for venue in venues
        for product in MARKETS[venue]
        for kind in kinds(venue)
    ]


def configuration(
    prefix: str, run: str, endpoints: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """The gateway's configuration file, as a user would write it."""
    return {
        "RazorTrade": {"module_name": run},
        "connections": [
            {
                "exchange": venue,
                "shm_prefix": prefix,
                "md_size": SLOTS,
                "endpoints": dict(endpoints[venue]),
                **_sections(venue),
            }
            for venue in endpoints
        ],
    }


def _sections(venue: str) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {}
    for product, symbols in MARKETS[venue].items():
        names = {
            f"{kind.label}_shm_name": f"{venue}_{product}_{kind.label}" for kind in kinds(venue)
        }
        if venue == "binance" and product != "spot":
            futures = sections.setdefault("futures", {})
            futures |= {f"{product}_symbols": list(symbols), f"{product}_conn_count": LINES}
            inside = {f"cbase_{key}": name for key, name in names.items()}
            futures |= names if product == "ubase" else inside
        else:
            section = SECTIONS.get(product, product)
            sections[section] = {"symbols": list(symbols), "redun_conn_count": LINES, **names}
    return sections


# -- processes ----------------------------------------------------------------------------------


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def _spawn(*arguments: str) -> Process:
    """A process of this Python in a group of its own, so that Ctrl-C is this process's alone."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *arguments,
        stdin=PIPE,
        stdout=PIPE,
        limit=1 << 24,
        process_group=0,
        preexec_fn=_die_with_parent,
    )


class Venues:
    """The simulated venues: a process that takes commands."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.endpoints: dict[str, dict[str, str]] = {}

    @classmethod
    async def open(cls, venues: Sequence[str], trading: Mapping[str, Any] | None = None) -> Venues:
        """Start them, their markets at rest. trading: a `TradingSpec`, where one trades."""
        spec = {
            "venues": [
                {"name": name, "products": MARKETS[name], "pace": {"start": False}}
                for name in venues
            ],
            # Lines of one host would else tie for ever, the first to connect ahead.
            "faults": [{"fault": "jitter", "ms": JITTER_MS, "ordered": True}],
            "trading": trading,
        }
        self = cls(await _spawn("k4.runner.sim", "--json", json.dumps(spec), "--control"))
        self.endpoints = (await self._read())["endpoints"]
        return self

    async def ask(self, cmd: str, **arguments: Any) -> Any:
        """Carry out a command of `sim/process.py`; returns its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"cmd": cmd, **arguments}).encode() + b"\n")
        reply = await self._read()
        if "error" in reply:
            raise K4Error(f"the simulated venues refuse {cmd!r}: {reply['error']}")
        return reply["result"]

    async def pace(self, rate: float) -> None:
        """Events a second at every venue; 0 stops the markets."""
        for venue in self.endpoints:
            await self.ask("pace", venue=venue, pace={"rate": rate or 1.0, "start": rate > 0})

    async def close(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.communicate()

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise K4Error("the simulated venues ended early")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Gateway:
    """`k4-runner run` as a process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def open(cls, file: Path) -> Gateway:
        return cls(await _spawn("k4.runner.cli", "run", str(file), "--log-level", "warning"))

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def close(self) -> list[dict[str, Any]]:
        """Stop it in order; returns its receipts."""
        if self.alive:
            self._process.terminate()
        out, _ = await self._process.communicate()
        return [json.loads(line) for line in out.splitlines()]


# -- stores -------------------------------------------------------------------------------------


class Collector:
    """Reads every record of the stores as a strategy would, and remembers the ids."""

    def __init__(self, stores: Sequence[Shop]) -> None:
        self.stores = stores
        self._readers: dict[str, ShmMdReader] = {}
        self._cursors: dict[tuple[str, str], int] = {}
        self._ids: dict[Market, list[Ids]] = {}
        self.missed = 0  # records overwritten before they were read here: a fault of this reader

    def lines_up(self) -> bool:
        """All stores are there, and all their lines are up."""
        try:
            for store in self.stores:
                if store.name not in self._readers:
                    self._readers[store.name] = ShmMdReader(store.name)
        except StoreMissing:
            return False
        return all(0 < r.lines_configured == r.lines_up for r in self._readers.values())

    def read(self) -> None:
        """Take over what is new."""
        for store in self.stores:
            reader = self._readers[store.name]
            for symbol in reader.symbols:
                batch = reader.since(symbol, self._cursors.get((store.name, symbol), 0))
                self._cursors[store.name, symbol] = batch.cursor
                self.missed += batch.lost
                market = Market(store.venue, store.product, symbol, store.kind)
                ids = batch.records[ID_FIELD[store.kind]].astype(np.uint64)
                self._ids.setdefault(market, []).append(ids)

    @property
    def published(self) -> int:
        return sum(self._cursors.values())

    def held(self) -> dict[Market, Ids]:
        return {market: np.concatenate(parts) for market, parts in self._ids.items()}

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


# -- the demo -----------------------------------------------------------------------------------


class Demo:
    """One run. `prefix` begins the names of all its stores, `run` those of its counters."""

    def __init__(
        self, clock: Clock, *, venues: Sequence[str], headless: bool, as_json: bool
    ) -> None:
        self._clock = clock
        self._venues = tuple(venues)
        self._headless = headless
        self._as_json = as_json
        self.run = f"demo{os.getpid()}"
        self.prefix = f"{self.run}_"
        self._ended = asyncio.Event()

    def end(self) -> None:
        self._ended.set()

    async def show(self, seconds: float, folder: Path) -> dict[str, Any]:
        """Run for `seconds` (0: until `end`); returns the summary."""
        venues = await Venues.open(self._venues)
        gateway: Gateway | None = None
        collector = Collector(shops(self.prefix, list(venues.endpoints)))
        try:
            file = folder / "demo.json"
            file.write_text(json.dumps(configuration(self.prefix, self.run, venues.endpoints)))
            gateway = await Gateway.open(file)
            await self._lines_up(collector, gateway)
            await venues.pace(RATE)
            await self._look_on(seconds, collector, gateway)
            await venues.pace(0.0)
            # Every line answers a ping after the frames before it, so they are in the stores then.
            await venues.ask("settle", timeout=5.0)
            collector.read()
            await venues.ask("dump", folder=str(folder))
            receipts = await gateway.close()
            return self._summary(Ledger(folder), collector, receipts)
        finally:
            collector.close()
            if gateway is not None:
                await gateway.close()
            await venues.close()

    async def _lines_up(self, collector: Collector, gateway: Gateway) -> None:
        deadline = self._clock.monotonic() + READY_SEC
        while not collector.lines_up():
            if not gateway.alive:
                raise K4Error("the gateway ended early")
            if self._clock.monotonic() > deadline:
                raise K4Error(f"not all lines were up in {READY_SEC:g} s")
            await sleep(self._clock, 0.05)

    async def _look_on(self, seconds: float, collector: Collector, gateway: Gateway) -> None:
        reading = asyncio.create_task(self._read_on(collector, gateway))
        if seconds:
            self._clock.call_later(seconds, self.end)
        names = (*(store.name for store in collector.stores), *MARKETS)
        watcher = Watcher(self._clock, names, self.run)
        before = watcher.look()
        try:
            if self._headless:
                await self._ended.wait()
                if self._as_json:
                    for value in objects(before, watcher.look()):
                        _print(value)
            else:
                await live(self._clock, watcher, self._ended.is_set, self.prefix)
        finally:
            self.end()
            watcher.close()
            await reading

    async def _read_on(self, collector: Collector, gateway: Gateway) -> None:
        while not self._ended.is_set():
            collector.read()
            if not gateway.alive:
                self.end()
            await sleep(self._clock, READ_SEC)

    def _summary(
        self, ledger: Ledger, collector: Collector, receipts: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """lost: ids that a line delivered and no store held. unread: what this reader missed."""
        return {
            "type": "summary",
            "sent": ledger.sent,
            "published": collector.published,
            "duplicates": sum(receipt["duplicates"] for receipt in receipts),
            "lost": lost(ledger.owed(), collector.held()),
            "unread": collector.missed,
            "streams": len(receipts),
            "lines": LINES,
        }


def run(*, seconds: float, headless: bool, as_json: bool, exchanges: Sequence[str] = ()) -> int:
    """The command; returns its exit status: 1 where something was lost. No exchanges: all."""
    venues = tuple(exchanges) or tuple(name for name in venue_names() if name in MARKETS)
    return asyncio.run(_run(seconds, headless, as_json, venues))


class Show(Protocol):
    """What can be shown: the demo of market data, or that of trading."""

    prefix: str

    def end(self) -> None:
        """Come to the end."""
        ...

    async def show(self, seconds: float, folder: Path) -> dict[str, Any]:
        """Run for `seconds` (0: until `end`); returns the summary."""
        ...


async def played(demo: Show, seconds: float) -> dict[str, Any]:
    """The summary of a demo that a signal may end, with nothing left of it afterwards."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the last: its terminal closed
        loop.add_signal_handler(number, demo.end)
    with tempfile.TemporaryDirectory(prefix="k4-demo-") as folder:
        try:
            return await demo.show(seconds, Path(folder))
        finally:
            _clean_up(demo.prefix)


async def _run(seconds: float, headless: bool, as_json: bool, venues: Sequence[str]) -> int:
    demo = Demo(SystemClock(), venues=venues, headless=headless, as_json=as_json)
    summary = await played(demo, seconds)
    if as_json:
        _print(summary)
    else:
        sys.stdout.write(
            "{sent:,} updates sent on {lines} lines a stream, {published:,} records published, "
            "{duplicates:,} duplicates dropped, {lost:,} lost\n".format(**summary)
        )
    return 1 if summary["lost"] or summary["unread"] else 0


def _clean_up(prefix: str) -> None:
    for store in list_stores():
        if store.name.startswith(prefix):
            try:
                remove_store(store.name)
            except StoreError as error:
                sys.stderr.write(f"{error}\n")


def _print(value: Mapping[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()
