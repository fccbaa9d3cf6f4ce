"""Modules that do nothing but live and die: what supervision is tested with.

Workers import this file by name (`Handover.factory`); the tests put its folder on PYTHONPATH.
"""

from __future__ import annotations

import os
import signal
from asyncio import Event
from collections.abc import Sequence
from typing import Any

from k4.core.counters import Row
from k4.core.errors import ConfigError, Problem, StoreBusy
from k4.core.module import Module
from k4.runner.control import Handover
from k4.runner.worker import Services


class Quiet:
    """Starts and stops. Its counters row says how far it got."""

    FIELDS = ("prepared", "started", "stopping")

    def __init__(self, handover: Handover, services: Services) -> None:
        self.name = handover.plan.name
        self.services = services
        self.row: Row | None = None
        self.stopped = 0

    async def prepare(self) -> None:
        self.row = self.services.counters.row("tiny", {"name": self.name}, self.FIELDS)
        self.row.write((1, 0, 0))

    def start(self) -> None:
        assert self.row is not None
        self.row.write((1, 1, 0))

    async def stop(self) -> None:
        self.stopped += 1

    def receipt(self) -> list[dict[str, Any]]:
        return [{"stream": self.name, "pid": os.getpid(), "stopped": self.stopped}]


class Dying(Quiet):
    def start(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(Quiet):
    """Blocks the loop for good as soon as it runs."""

    def start(self) -> None:
        super().start()
        self.services.clock.call_later(0.0, signal.pause)


class Unprepared(Quiet):
    async def prepare(self) -> None:
        raise StoreBusy("tiny_bbo", 4711)


class Misconfigured(Quiet):
    async def prepare(self) -> None:
        raise ConfigError([Problem("connections[0].spot.symbols[1]", "no such symbol")])


class Broken(Quiet):
    """A defect: an error that is none of K4's."""

    async def prepare(self) -> None:
        raise ZeroDivisionError("tiny")


class NeverReady(Quiet):
    async def prepare(self) -> None:
        await super().prepare()
        await Event().wait()


class Stubborn(Quiet):
    async def stop(self) -> None:
        assert self.row is not None
        self.row.write((1, 1, 1))
        await Event().wait()


class Noisy(Quiet):
    """Prints where a report would stand."""

    async def prepare(self) -> None:
        await super().prepare()
        print('{"at":"failed","error":"this is no report"}', flush=True)


class Trading(Quiet):
    """Can be killed, as what trades."""

    FIELDS = ("prepared", "started", "killed")

    def kill(self, reason: str) -> None:
        assert self.row is not None
        self.row.write((1, 1, 1))


KINDS: dict[str, type[Quiet]] = {
    cls.__name__.lower(): cls
    for cls in (
        Quiet,
        Dying,
        Hanging,
        Unprepared,
        Misconfigured,
        Broken,
        NeverReady,
        Stubborn,
        Noisy,
        Trading,
    )
}


def modules(handover: Handover, services: Services) -> Sequence[Module]:
    """One module, of the kind that the worker's name begins with: `hanging.1`."""
    return [KINDS[handover.plan.name.partition(".")[0]](handover, services)]
