"""A run in virtual time: venue and gateway in one event loop, on a network in memory.

It takes seconds instead of minutes and depends on its seed alone: one that fails can be run again,
with whatever it takes to see why.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import msgspec

from k4.core.counters import CountersWriter
from k4.core.loading import parse
from k4.core.log import configure
from k4.core.retry import LocalBudget
from k4.core.transport_websockets import WebsocketsTransport
from k4.md.exchanges import find
from k4.md.module import MdModule

from . import script
from .gateway import ledgers, status
from .network import HostClock, VirtualLoop
from .run import Outcome, Plan
from .run import run as run_at

STALL_SEC = 25.0  # the stall timeout, a handshake that hangs, and a pause or a slow answer


def run(plan: Plan) -> Outcome:
    """Raises Failure where the run did not come about. `plan.factor` is 1 here, whatever it says.

    A market of one event a second, some of them trades, is one in which hardly anything happens.
    """
    plan = msgspec.structs.replace(plan, factor=1.0, stall_sec=STALL_SEC)
    loop = VirtualLoop(plan.seed)
    configure(plan.log_level, module_name="chaos", clock=HostClock(loop, loop.gateway))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(run_at(plan, Virtual(plan, loop)))


class Virtual:
    """A `run.Site` of two hosts."""

    def __init__(self, plan: Plan, loop: VirtualLoop) -> None:
        self._plan = plan
        self._loop = loop
        self.clock = HostClock(loop, loop.venue)

    async def gateway(self, config: str, counters: str) -> Inside:
        os.environ.setdefault(script.KEY, "chaos")
        gateway = Inside(self._plan, self._loop, config, counters)
        await gateway.module.prepare()
        gateway.module.start()
        return gateway

    def hold_venue(self, seconds: float) -> None:
        self._loop.venue.pause(seconds)


class Inside:
    """The gateway on its virtual host; see `run.Gateway`."""

    alive = True

    def __init__(self, plan: Plan, loop: VirtualLoop, config: str, counters: str) -> None:
        clock = HostClock(loop, loop.gateway)
        connection = parse(config.encode(), "chaos").connections[0]
        self.slots: list[dict[str, Any]] = []
        self.streams: list[dict[str, Any]] = []
        self._loop = loop
        self._counters = CountersWriter(counters, clock=clock)
        limits = find(connection.exchange).limits
        self.module = MdModule(
            msgspec.structs.replace(connection, metadata="off"),
            [product.name for product in connection.products],
            clock=clock,
            counters=self._counters,
            budget=LocalBudget(limits.connect_attempts, limits.connect_period),
            rng=random.Random(plan.seed),
            transport=WebsocketsTransport(clock),
        )

    @property
    def _status(self) -> dict[str, Any]:
        assert self.module.engine is not None
        return status(self.module.engine)

    @property
    def rotations(self) -> int:
        return int(self._status["rotations"])

    @property
    def up(self) -> bool:
        return bool(self._status["up"])

    async def pause(self, seconds: float) -> None:
        self._loop.gateway.pause(seconds)
        await asyncio.sleep(seconds)

    async def end(self) -> None:
        assert self.module.engine is not None
        self.slots = [*ledgers(self.module.engine)]
        await self.module.stop()
        self._counters.close()
        self.streams = self.module.receipt()
