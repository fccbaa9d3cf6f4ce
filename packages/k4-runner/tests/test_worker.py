"""The parts of a worker that need no process: its pipes, its collector, its loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from k4.core.testing import ManualClock
from k4.runner.control import (
    Command,
    Failed,
    Handover,
    Ready,
    Receipt,
    Report,
    WorkerEnd,
    WorkerPlan,
    decode_report,
    encode,
)
from k4.runner.worker import QuietCollector, new_loop, spin

HANDOVER = Handover(plan=WorkerPlan(name="w", cores=(1,)), factory="m:f", config=b'{"a": "\xff\n"}')


class Pipes:
    """A worker's end, and what the supervisor writes to it and reads from it."""

    def __init__(self) -> None:
        self.incoming, self.write = os.pipe()
        self.read, self.outgoing = os.pipe()
        self.worker = WorkerEnd(self.incoming, self.outgoing)
        self.commands: list[str] = []

    def heard(self, command: Command) -> None:
        self.commands.append(command.do)

    def close(self) -> None:
        for fd in (self.incoming, self.write, self.read, self.outgoing):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


def test_the_handover_arrives_as_it_was_given_bytes_and_all(pipes: Pipes) -> None:
    os.write(pipes.write, encode(HANDOVER))
    assert pipes.worker.handover() == HANDOVER


def test_commands_that_come_along_with_the_handover_are_not_lost(pipes: Pipes) -> None:
    os.write(pipes.write, encode(HANDOVER) + encode(Command("start")) + encode(Command("stop")))
    pipes.worker.handover()
    pipes.worker.settle(pipes.heard)
    assert pipes.commands == ["start", "stop"]


def test_commands_may_come_in_pieces(pipes: Pipes) -> None:
    line = encode(Command("start"))
    for piece in (line[:5], line[5:]):
        os.write(pipes.write, piece)
        pipes.worker.pump(pipes.heard)
    assert pipes.commands == ["start"]


def test_the_supervisors_death_is_stop(pipes: Pipes) -> None:
    os.close(pipes.write)
    pipes.write = -1
    pipes.worker.pump(pipes.heard)
    assert pipes.commands == ["stop"]


def test_no_handover_is_an_end(pipes: Pipes) -> None:
    os.close(pipes.write)
    pipes.write = -1
    with pytest.raises(EOFError):
        pipes.worker.handover()


@pytest.mark.parametrize(
    "report", [Ready(), Failed("no room", True), Receipt({"name": "s", "lag": {"p50": 3}})]
)
def test_reports_are_read_as_they_were_written(pipes: Pipes, report: Report) -> None:
    pipes.worker.report(report)
    assert decode_report(os.read(pipes.read, 1 << 16)) == report


def test_a_report_to_a_dead_supervisor_is_nobodys_error(pipes: Pipes) -> None:
    os.close(pipes.read)
    pipes.read = -1
    pipes.worker.report(Ready())


class Loop:
    """A clock whose timers fire late by `late` seconds, as on a loop that is busy."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.collected: list[float] = []
        self.whole: list[float] = []
        self.collector = QuietCollector(self.clock, self._collect)
        self.collector.start()

    def _collect(self, generation: int) -> None:
        self.collected.append(self.clock.monotonic())
        if generation == QuietCollector.WHOLE:
            self.whole.append(self.clock.monotonic())

    def turn(self, late: float) -> None:
        """Let the collector's next timer fire that late."""
        self.collector.stop()
        self.clock.advance(QuietCollector.EVERY_SEC + late)
        self.collector._tick()


def test_garbage_is_collected_when_the_loop_is_quiet() -> None:
    loop = Loop()
    loop.clock.advance(QuietCollector.EVERY_SEC * 3)
    assert loop.collected == [2.0, 4.0, 6.0]
    loop.clock.advance(20 * 60.0)
    assert loop.whole == [600.0, 1200.0], "walking through all that lives takes its time"


def test_a_busy_loop_is_spared_but_not_for_ever() -> None:
    loop = Loop()
    for _ in range(14):
        loop.turn(late=0.05)
    assert loop.collected == []
    loop.turn(late=0.05)
    assert len(loop.collected) == 1


@pytest.mark.parametrize("spinning", [False, True])
def test_busy_poll_keeps_the_loop_from_sleeping(spinning: bool) -> None:
    async def share_of_a_core() -> float:
        loop = asyncio.get_running_loop()
        if spinning:
            spin(loop)
        done = asyncio.Event()
        loop.call_later(0.3, done.set)
        used = time.process_time()
        turning = loop.time()
        await done.wait()
        return (time.process_time() - used) / (loop.time() - turning)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        share = runner.run(share_of_a_core())
    assert share > 0.15 if spinning else share < 0.1  # of a machine that others may use too
