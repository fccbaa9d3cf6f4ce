"""A run in real time: a venue in this process, the gateway in another, sockets between them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from . import script
from .clock import FastClock, Pace
from .gateway import Spec
from .run import Outcome, Plan
from .run import run as run_at

STOP_SEC = 30.0


async def run(plan: Plan) -> Outcome:
    """Raises Failure where the run did not come about."""
    return await run_at(plan, Processes(plan))


class Processes:
    """A `run.Site` on this host."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pace = Pace.beginning_now(plan.factor)
        self.clock = FastClock(self._pace)

    async def gateway(self, config: str, counters: str) -> Child:
        plan = self._plan
        spec = Spec(
            config=config,
            pace=self._pace,
            seed=plan.seed,
            counters=counters,
            log_level=plan.log_level,
        )
        return await Child.begin(spec)

    def hold_venue(self, seconds: float) -> None:
        time.sleep(seconds)  # its own loop


class Child:
    """The gateway in a process of its own; see `run.Gateway`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.rotations = 0
        self.up = False
        self.slots: list[dict[str, Any]] = []
        self.streams: list[dict[str, Any]] = []
        self._listening = asyncio.ensure_future(self._listen())

    @classmethod
    async def begin(cls, spec: Spec) -> Child:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "chaos.gateway",
            stdin=PIPE,
            stdout=PIPE,
            limit=1 << 24,
            cwd=Path(__file__).parents[1],
            env={**os.environ, script.KEY: "chaos"},
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(spec) + b"\n")
        return cls(process)

    async def pause(self, seconds: float) -> None:
        self._process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._process.send_signal(signal.SIGCONT)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            body = msgspec.json.decode(line)
            if body["type"] == "status":
                self.rotations, self.up = body["rotations"], body["up"]
            elif body["type"] == "slot":
                self.slots.append(body)
            else:
                self.streams.append(body)

    @property
    def alive(self) -> bool:
        return not self._listening.done()

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._listening, STOP_SEC)
        finally:
            if self._process.returncode is None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), 5.0)
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        if self._process.returncode:
            raise RuntimeError(f"the gateway ended with status {self._process.returncode}")
