"""Recorded frames, sent again through a simulated venue to whoever subscribed their streams.

A recording is a JSON-lines file. A line is either a frame as the venue sent it, or
`{"received_ns": 1786540329195000000, "frame": "<the frame's text>"}` with the time of its receipt.
Acks and frames that name no stream are left out by the venue.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from k4.core.clock import Clock
from k4.core.errors import ConfigError, Problem
from k4.runner.sim.server import SimServer


class ReplaySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to replay. venue: whose frames they are. speed: 2 is twice as fast as recorded.

    rate: frames a second where the frames carry no times, times `speed`; 0 is without pause.
    settle: seconds to wait after the last subscription before the first frame.
    """

    file: str
    venue: str = "binance"
    speed: float = 1.0
    rate: float = 100.0
    settle: float = 0.3


class Recorded(msgspec.Struct, frozen=True):
    """A frame and when it was received, in ns; 0 unknown."""

    payload: bytes
    received_ns: int = 0


class _Timed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    received_ns: int
    frame: str


def load(path: Path) -> list[Recorded]:
    """The frames of a file. Raises ConfigError where it cannot be read or a line is no JSON."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError([Problem("replay.file", f"cannot read {path}: {error}")]) from error
    frames = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            frames.append(_frame(line.strip(), f"{path.name}:{number}"))
    return frames


def _frame(line: bytes, place: str) -> Recorded:
    try:
        timed = msgspec.json.decode(line, type=_Timed)
        return Recorded(timed.frame.encode(), timed.received_ns)
    except msgspec.ValidationError:
        return Recorded(line)  # a frame as the venue sent it
    except msgspec.DecodeError as error:
        raise ConfigError([Problem(place, f"no JSON: {error}")]) from error


class Replay:
    """A recording on its way. sent: frames by how they went out; unmatched: that nobody wanted."""

    def __init__(
        self, server: SimServer, frames: list[Recorded], spec: ReplaySpec, clock: Clock
    ) -> None:
        self.sent = 0
        self.unmatched = 0
        self.done = asyncio.Event()
        self._server = server
        self._frames = frames
        self._spec = spec
        self._clock = clock

    async def run(self) -> None:
        """Wait for a subscriber, then send all frames in order."""
        await self._subscribers()
        previous = 0
        for frame in self._frames:
            await self._pause(previous, frame.received_ns)
            previous = frame.received_ns or previous
            if self._server.replay_frame(frame.payload):
                self.sent += 1
            else:
                self.unmatched += 1
        self.done.set()

    async def _subscribers(self) -> None:
        known, quiet = 0, 0.0
        while not known or quiet < self._spec.settle:
            await pause(self._clock, 0.02)
            topics = sum(len(client.topics) for client in self._server.clients)
            quiet = quiet + 0.02 if topics == known else 0.0
            known = topics

    async def _pause(self, previous_ns: int, now_ns: int) -> None:
        spec = self._spec
        seconds = 0.0
        if now_ns and previous_ns:
            seconds = max(0, now_ns - previous_ns) / 1e9 / spec.speed
        elif spec.rate and not now_ns:
            seconds = 1.0 / (spec.rate * spec.speed)
        while self._server.backlog() > 1 << 20:
            await pause(self._clock, 0.005)
        if seconds:
            await pause(self._clock, seconds)


async def pause(clock: Clock, seconds: float) -> None:
    """Wait by the injected clock."""
    waked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_later(seconds, _wake, waked)
    try:
        await waked
    finally:
        timer.cancel()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
