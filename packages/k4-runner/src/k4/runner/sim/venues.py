"""Simulated venues as one value to describe and one object to run.

    spec = SimSpec(venues=(VenueSpec(name="binance", products={"spot": ("BTCUSDT",)}),), seed=7)
    async with SimVenues(spec) as venues:
        endpoints = venues.endpoints("binance")     # for the configuration's `endpoints`
        venues.inject({"fault": "stall", "target": {"line": 0}})
        await venues.settle()                       # pings, and waits for the pongs
        gaps = venues.ledger.truth_gaps(SeriesKey("binance", "spot", "BTCUSDT", Kind.TRADE))

Deterministic for a seed: what happens in a market, and by which chance a fault strikes. How many
frames a time window holds depends on the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import msgspec

from k4.core.clock import Clock, SystemClock
from k4.core.errors import ConfigError, Problem
from k4.runner.sim.faults import parse_fault, parse_script
from k4.runner.sim.ledger import Ledger
from k4.runner.sim.market import Pace
from k4.runner.sim.replay import Replay, ReplaySpec, load, pause
from k4.runner.sim.server import SimServer
from k4.runner.sim.trading.spec import TradingSpec
from k4.runner.sim.trading.venue import SimTrading
from k4.runner.sim.venue import MakeVenue, VenueSpec

VENUES = ("binance", "okx", "bitget", "bybit")


class SimSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to simulate. faults: a fault script, see `faults.py`. replay: instead of its market,
    the venue sends a recording. trading: a Binance that trades; where the venues include Binance
    and its market is `random`, orders meet the market that the data shows. seconds: run so long, 0
    until stopped. dump: folder that the ledger is written to at the end, '' nowhere.
    """

    venues: tuple[VenueSpec, ...] = (VenueSpec(name="binance"),)
    seed: int = 1
    faults: tuple[dict[str, Any], ...] = ()
    replay: ReplaySpec | None = None
    trading: TradingSpec | None = None
    seconds: float = 0.0
    dump: str = ""


def decode_spec(source: bytes) -> SimSpec:
    """A `SimSpec` from JSON. Raises ConfigError."""
    try:
        return msgspec.json.decode(source, type=SimSpec)
    except msgspec.DecodeError as error:
        raise ConfigError([Problem("sim", str(error))]) from error


def venue_names() -> list[str]:
    """The venues that can be simulated."""
    return [name for name in VENUES if find_spec(f"k4.runner.sim.{name}") is not None]


def venue_maker(name: str, path: str = "venues") -> MakeVenue:
    """`make` of the module `k4.runner.sim.<name>`. Raises ConfigError for a name without one."""
    known = venue_names()
    if name not in known:
        text = f"no simulated venue {name!r} (there are: {', '.join(known)})"
        raise ConfigError([Problem(path, text)])
    return cast(MakeVenue, import_module(f"k4.runner.sim.{name}").make)


class SimVenues:
    """All venues of a spec, with one ledger. An async context manager, or `start` and `stop`."""

    def __init__(self, spec: SimSpec, *, clock: Clock | None = None) -> None:
        """Raises ConfigError: an unknown venue or product, a bad fault script, a bad recording."""
        self.spec = spec
        self.ledger = Ledger()
        self.clock: Clock = clock if clock is not None else SystemClock()
        rules = parse_script(list(spec.faults))
        self._servers: dict[str, SimServer] = {}
        self._recording = load(Path(spec.replay.file)) if spec.replay is not None else []
        for index, venue in enumerate(spec.venues):
            path = f"venues[{index}]"
            if venue.name in self._servers:
                raise ConfigError([Problem(f"{path}.name", f"{venue.name!r} appears twice")])
            self._servers[venue.name] = SimServer(
                venue_maker(venue.name, f"{path}.name"),
                self._without_market(venue),
                clock=self.clock,
                ledger=self.ledger,
                rules=rules,
                seed=spec.seed,
            )
        if spec.replay is not None and spec.replay.venue not in self._servers:
            text = f"{spec.replay.venue!r} is not among the venues"
            raise ConfigError([Problem("replay.venue", text)])
        self.trading: SimTrading | None = None
        if spec.trading is not None:
            self.trading = SimTrading(spec.trading, clock=self.clock)
        self.replay: Replay | None = None
        self._replaying: asyncio.Task[None] | None = None

    def _without_market(self, venue: VenueSpec) -> VenueSpec:
        replay = self.spec.replay
        if replay is None or replay.venue != venue.name:
            return venue
        return msgspec.structs.replace(venue, pace=Pace(start=False))

    async def start(self) -> None:
        """Open the ports. Raises ConfigError where one is taken; then nothing stays open."""
        try:
            for server in self._servers.values():
                await server.start()
            if self.trading is not None:
                self._join_market(self.trading)
                await self.trading.start()
        except BaseException:
            await self.stop()
            raise
        if self.spec.replay is not None:
            server = self._servers[self.spec.replay.venue]
            self.replay = Replay(server, self._recording, self.spec.replay, self.clock)
            self._replaying = asyncio.create_task(self.replay.run())

    def _join_market(self, trading: SimTrading) -> None:
        """Let orders meet the market of the simulated Binance, where there is one."""
        server = self._servers.get("binance")
        if server is not None and trading.spec.market == "random":
            trading.follow([instrument for instrument, _ in server.instruments])
            server.followers.append(trading.moved)

    async def stop(self) -> None:
        """Close everything; the ledger stays. Safe to call twice."""
        if self.trading is not None:
            await self.trading.stop()
        if self._replaying is not None:
            self._replaying.cancel()
            await asyncio.gather(self._replaying, return_exceptions=True)
        for server in self._servers.values():
            await server.stop()

    async def __aenter__(self) -> SimVenues:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def server(self, venue: str) -> SimServer:
        return self._servers[venue]

    def endpoints(self, venue: str) -> dict[str, str]:
        """URLs by key of the configuration's `endpoints`, `rest` included."""
        return self._servers[venue].endpoints()

    def all_endpoints(self) -> dict[str, dict[str, str]]:
        return {name: server.endpoints() for name, server in self._servers.items()}

    def inject(self, fault: Mapping[str, Any]) -> int:
        """Commit a fault now (see `faults.py`); returns how many connections it concerns."""
        rule = parse_fault(fault)
        names = [name for name in self._servers if rule.target.venue in ("", name)]
        return sum(self._servers[name].inject(rule) for name in names)

    def emit(self, venue: str, events: int) -> None:
        """Let a venue's market take that many steps at once."""
        self._servers[venue].emit(events)

    def pace(self, venue: str, pace: Pace) -> None:
        """Give a venue's market another pace from now on."""
        self._servers[venue].pump.change(pace)

    async def finished(self, venue: str) -> None:
        """Until the market has taken the last step of its pace's total."""
        await self._servers[venue].finished.wait()

    async def settle(self, within: float = 5.0) -> bool:
        """Ping all connections and wait for the pongs, so that what was sent is confirmed.

        Frames that a fault holds back are waited for as well. Returns False when a connection did
        not answer in time (a half-open one never does).
        """
        end = self.clock.monotonic() + within
        while any(c.lagging or c.held for s in self._servers.values() for c in s.clients):
            if self.clock.monotonic() > end:
                return False
            await pause(self.clock, 0.005)
        wanted = []
        for server in self._servers.values():
            server.flush()
            server.ping_all()
            wanted += [(c.log, len(c.log.sent)) for c in server.clients if c.log is not None]
        while any(log.confirmed < sent and not log.closed_ns for log, sent in wanted):
            if self.clock.monotonic() > end:
                return False
            await pause(self.clock, 0.005)
        return True

    def summary(self) -> dict[str, Any]:
        """The ledger's totals, and what a replay did."""
        body: dict[str, Any] = {"type": "summary", **self.ledger.summary()}
        body["events"] = {name: server.produced for name, server in self._servers.items()}
        if self.trading is not None:
            body["trading"] = self.trading.ledger.summary()
        if self.replay is not None:
            body["replay"] = {"sent": self.replay.sent, "unmatched": self.replay.unmatched}
        return body
