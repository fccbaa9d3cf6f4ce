"""One venue's run: simulate, receive, read, compare."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from k4.core.clock import Clock
from k4.core.enums import Kind
from k4.core.errors import StoreError
from k4.core.shm import remove_store
from k4.runner.sim import market
from k4.runner.sim.ledger import Ledger
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

from . import script, stalls
from .account import Verdict, judge, series_key
from .reading import Reading

CALM_SEC = 12.0  # of the venue's time: longer than a line's replacement may take
READ_SEC = 0.4  # of the venue's time: many times within a ring's length
READY_SEC = 60.0
RESET_SEC = 90.0  # of the venue's time: between two resets of all sequences
RESETS = 8  # at most: each brings the ids nearer to zero
PROOF_SEC = 6.0  # of the venue's time: what a reset needs of the market until it is proved
PROOFS = 10  # trades after half of it
QUOTES = 3
PAUSE_EVERY_SEC = 20.0  # of the venue's time: the gateway and the venue stand still by turns
PAUSE_SEC = 3.0  # of the venue's time: longer than the silence that proves a reset


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long a run is. messages: data frames sent, all connections. rate: market events a second
    of real time. seconds: of real time at least; limit: at most, then the run is a failure.
    reset_sec: of the venue's time, between two resets; uneven: on average, so that some follow
    close on each other. stall_sec: of the venue's time, for which a line may live on at most that
    was stalled and proved silent; 0 where that is only measured, as on a busy machine.
    """

    venue: str
    messages: int = 2_000_000
    rotations: int = 1_000
    seed: int = 1
    factor: float = 20.0
    rate: float = 4_000.0
    seconds: float = 0.0
    limit: float = 1_800.0
    reset_sec: float = RESET_SEC
    uneven: bool = False
    stall_sec: float = 0.0
    log_level: str = "critical"


class Site(Protocol):
    """Where a run takes place: its time, and its processes."""

    @property
    def clock(self) -> Clock: ...

    async def gateway(self, config: str, counters: str) -> Gateway: ...

    def hold_venue(self, seconds: float) -> None:
        """Let the venue stand still for some of the loop's time."""
        ...


class Gateway(Protocol):
    """The gateway under test. slots, streams: what it has to say of its own losses, at the end."""

    slots: list[dict[str, Any]]
    streams: list[dict[str, Any]]

    @property
    def up(self) -> bool: ...

    @property
    def rotations(self) -> int: ...

    @property
    def alive(self) -> bool: ...

    async def pause(self, seconds: float) -> None:
        """Let it stand still for some of the loop's time, as a busy or a suspended host does."""
        ...

    async def end(self) -> None:
        """Stop it in order; everything that it has to say is then here."""
        ...


class Failure(Exception):
    """The run itself did not come about."""


class Outcome(msgspec.Struct, kw_only=True):
    """What a run showed. `summary` is its JSON."""

    plan: Plan
    seconds: float
    verdicts: dict[str, Verdict]
    ledger: Ledger
    streams: list[dict[str, Any]]
    rotations: int
    pauses: int
    lapped: int
    stalls: dict[str, float]
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not (
            self.problems or self.lapped or any(v.violations for v in self.verdicts.values())
        )

    def total(self, name: str) -> int:
        return sum(int(getattr(verdict, name)) for verdict in self.verdicts.values())

    def summary(self) -> dict[str, Any]:
        figures = self.ledger.summary()
        names = (
            "produced",
            "confirmed",
            "published",
            "lost",
            "duplicates",
            "backward",
            "invented",
            "wrong",
            "gap_errors",
            "gap_ids",
            "resets",
        )
        return {
            "type": "chaos",
            "venue": self.plan.venue,
            "ok": self.ok,
            "seed": self.plan.seed,
            "factor": self.plan.factor,
            "seconds": round(self.seconds, 1),
            "messages": figures["frames"],
            "connections": figures["connections"],
            "rotations": self.rotations,
            **{name: self.total(name) for name in names},
            "lapped": self.lapped,
            "stall_sec": self.stalls,
            "pauses": self.pauses,
            "faults": figures["faults"],
            "lines": {
                name: sum(stream[name] for stream in self.streams)
                for name in ("reconnects", "stalls", "unproven", "abandoned", "notices", "healed")
            },
            "problems": [
                *self.problems,
                *(
                    f"{name}: {note}"
                    for name, verdict in self.verdicts.items()
                    if verdict.violations
                    for note in verdict.notes or ["?"]
                ),
            ],
        }


async def run(plan: Plan, site: Site) -> Outcome:
    """Raises Failure where the run did not come about."""
    prefix = f"chaos{os.getpid()}_{plan.venue}_"
    markets = script.MARKETS[plan.venue]
    venue = VenueSpec(
        name=plan.venue,
        products={market.product: market.symbols for market in markets},
        pace=market.Pace(start=False),
        proof_every=1.0,
    )
    spec = SimSpec(venues=(venue,), seed=plan.seed, faults=script.faults(plan.venue))
    reading = Reading(plan.venue, prefix, markets)
    began = asyncio.get_running_loop().time()
    venues = SimVenues(spec, clock=site.clock)
    try:
        async with venues:
            config = script.configuration(plan.venue, prefix, venues.endpoints(plan.venue))
            gateway = await site.gateway(msgspec.json.encode(config).decode(), f"{prefix}counters")
            try:
                pauses = await _live(plan, site, venues, gateway, reading)
            finally:
                await gateway.end()
            reading.take()
        seconds = asyncio.get_running_loop().time() - began
        return _outcome(plan, seconds, venues.ledger, gateway, reading, pauses)
    finally:
        reading.close()
        for name in reading.names:
            with suppress(StoreError):
                remove_store(name)


async def _live(
    plan: Plan, site: Site, venues: SimVenues, gateway: Gateway, reading: Reading
) -> int:
    """The market from its first event to its last, everything read meanwhile; the number of pauses
    in it."""
    ready_sec = READY_SEC * max(1.0, 20.0 / plan.factor)
    await _until(lambda: reading.open() and gateway.up, gateway, ready_sec)
    server = venues.server(plan.venue)
    venues.pace(plan.venue, market.Pace(rate=plan.rate / plan.factor, tick=0.005 * plan.factor))
    loop = asyncio.get_running_loop()
    began = loop.time()
    reset = [venues.clock.monotonic()]
    paused = [venues.clock.monotonic()]
    pausing: list[asyncio.Future[None]] = []
    rng = random.Random(plan.seed)
    wait = [plan.reset_sec]

    def reached() -> bool:
        reading.take()
        since = venues.clock.monotonic() - reset[-1]
        if since > wait[0] and len(reset) <= RESETS:
            venues.inject({"fault": "id_reset"})
            reset.append(venues.clock.monotonic())
            wait[0] = plan.reset_sec * (rng.expovariate(1.0) if plan.uneven else 1.0)
            return False
        if venues.clock.monotonic() - paused[-1] > PAUSE_EVERY_SEC:
            paused.append(venues.clock.monotonic())
            if len(paused) % 2:
                site.hold_venue(PAUSE_SEC / plan.factor)
            else:
                pausing.append(asyncio.ensure_future(gateway.pause(PAUSE_SEC / plan.factor)))
        frames = sum(len(log.sent) for log in venues.ledger.connections)
        return (
            since > PROOF_SEC
            and len(reset) > 1
            and frames >= plan.messages
            and gateway.rotations >= plan.rotations
            and loop.time() - began >= plan.seconds
            and _proved(venues.ledger)
        )

    await _until(reached, gateway, plan.limit, READ_SEC / plan.factor)
    server.pump.stop()
    # Resets that are still to be proved, frames that are still late, books that are to be healed.
    calm = loop.time() + CALM_SEC / plan.factor + 0.2
    await _until(lambda: loop.time() > calm, gateway, ready_sec)
    await asyncio.gather(*pausing)
    reading.take()
    return len(paused) - 1


def _proved(ledger: Ledger) -> bool:
    """Whether every stream has enough that is newer than its last reset: a busy machine makes the
    venue's time pass without a market."""
    for key in ledger.keys():  # noqa: SIM118  it is no mapping
        enough = PROOFS if key.kind in (Kind.TRADE, Kind.AGGTRADE) else QUOTES
        table = ledger.table(key)
        newest = table[table["generation"] == table["generation"].max(initial=0)]
        since_us = newest["event_us"] - newest["event_us"].min(initial=1 << 62)
        if int((since_us > PROOF_SEC / 2 * 1e6).sum()) < enough:
            return False
    return True


async def _until(
    condition: Callable[[], object], gateway: Gateway, within: float, every: float = 0.02
) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while not condition():
        if not gateway.alive:
            raise Failure("the gateway died")
        if loop.time() > end:
            raise Failure(f"not reached in {within:.0f} s ({gateway.rotations} rotations)")
        await asyncio.sleep(every)


def _outcome(
    plan: Plan, seconds: float, ledger: Ledger, gateway: Gateway, reading: Reading, pauses: int
) -> Outcome:
    said = {(s["product"], s["symbol"], s["kind"]): s for s in gateway.slots}
    verdicts: dict[str, Verdict] = {}
    problems: list[str] = []
    for shelf, records, generation in reading.shelves():
        key = series_key(plan.venue, shelf.product, shelf.symbol, shelf.kind)
        figures = said[shelf.product, shelf.symbol, shelf.kind.label]
        verdicts[str(key)] = judge(ledger, ledger.series(key), records, figures)
        if generation != figures["resets"]:
            problems.append(f"{key}: generation {generation}, {figures['resets']} resets counted")
        if len(records) != figures["published"]:
            problems.append(f"{key}: {len(records)} read, {figures['published']} published")
    stalled = stalls.stalls(ledger, script.faults(plan.venue))
    problems += [
        f"connection {stall.connection} was stalled, and lived on for {stall.seconds:.1f} s"
        for stall in stalled
        if 0.0 < plan.stall_sec < stall.seconds
    ]
    return Outcome(
        plan=plan,
        seconds=seconds,
        verdicts=verdicts,
        ledger=ledger,
        streams=gateway.streams,
        rotations=sum(stream["rotations"] for stream in gateway.streams),
        pauses=pauses,
        lapped=reading.lapped,
        stalls=stalls.summary(stalled),
        problems=problems,
    )
