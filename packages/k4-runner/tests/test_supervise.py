"""Real worker processes under a real supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tiny import handovers, pulse, started, until

from k4.core.clock import SystemClock
from k4.core.counters import CountersWriter, list_counters
from k4.core.retry import backoff
from k4.runner.control import Receipt
from k4.runner.supervise import Supervisor
from k4.runner.supervision import Timing

HERE = Path(__file__).parent
RUN = f"tiny.{os.getpid()}"


@pytest.fixture(autouse=True)
def _workers_find_tiny_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    yield
    for name in list_counters(RUN):
        Path(f"/dev/shm/k4c.{name}").unlink()


class Gateway:
    """A supervisor in this process, and what it said."""

    def __init__(self, names: Sequence[str], timing: Timing | None = None) -> None:
        self.handovers = handovers(RUN, names)
        self.receipts: list[Receipt] = []
        self.complaints: list[str] = []
        self.supervisor = Supervisor(
            self.handovers,
            clock=SystemClock(),
            backoff=lambda: backoff(random.Random(1), cap=1.0),
            pulse=pulse,
            receipt=self.receipts.append,
            complain=self.complaints.append,
            timing=timing,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[int]]:
        """Supervise while the block runs; whatever it does, no process is left behind."""
        task = asyncio.create_task(self.supervisor.run())
        try:
            yield task
        finally:
            if not task.done():
                self.supervisor.stop()
            await asyncio.wait_for(task, 10)

    async def all_started(self) -> None:
        await until(lambda: all(started(handover) for handover in self.handovers))


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_workers_start_stop_in_reverse_order_and_hand_in_receipts() -> None:
    gateway = Gateway(["quiet.1", "quiet.2", "quiet.3"])
    async with gateway.running() as run:
        await gateway.all_started()
        pids = gateway.supervisor.pids()
        gateway.supervisor.stop()
        assert await run == 0
    assert [receipt.stream for receipt in gateway.receipts] == [
        {"stream": name, "pid": pids[name], "stopped": 1}
        for name in ("quiet.3", "quiet.2", "quiet.1")
    ]
    assert all(gone(pid) for pid in pids.values())
    assert list_counters(RUN) == []


async def test_a_signal_kills_trading_and_no_process() -> None:
    gateway = Gateway(["quiet.1", "trading.1"])
    async with gateway.running():
        await gateway.all_started()
        before = gateway.supervisor.pids()
        os.kill(os.getpid(), signal.SIGUSR1)
        await until(lambda: started(gateway.handovers[1], "killed"))
        assert gateway.supervisor.pids() == before


async def test_a_trading_worker_that_is_down_hears_of_the_kill_when_it_is_back() -> None:
    gateway = Gateway(["trading.1"])
    async with gateway.running():
        await gateway.all_started()
        os.kill(gateway.supervisor.pids()["trading.1"], signal.SIGKILL)
        await until(lambda: not gateway.supervisor.pids())
        gateway.supervisor.kill_trading()
        await until(lambda: started(gateway.handovers[0], "killed"))


async def test_a_killed_worker_is_back_within_two_seconds_and_its_siblings_stay() -> None:
    gateway = Gateway(["quiet.1", "quiet.2"])
    async with gateway.running():
        await gateway.all_started()
        before = gateway.supervisor.pids()
        os.kill(before["quiet.1"], signal.SIGKILL)
        first = gateway.handovers[0]
        took = await until(lambda: started(first) not in (0, before["quiet.1"]))
        assert took < 2.0
        after = gateway.supervisor.pids()
        assert after["quiet.2"] == before["quiet.2"]
        assert gone(before["quiet.1"])


async def test_a_process_stands_by_takes_over_and_is_not_left_behind() -> None:
    gateway = Gateway(["quiet.1"])
    supervisor = gateway.supervisor
    async with gateway.running():
        await until(lambda: supervisor.spare_pid)
        first = supervisor.spare_pid
        os.kill(supervisor.pids()["quiet.1"], signal.SIGKILL)
        await until(lambda: started(gateway.handovers[0]) == first)
        await until(lambda: supervisor.spare_pid not in (0, first))
        second = supervisor.spare_pid
        os.kill(second, signal.SIGKILL)
        await until(lambda: supervisor.spare_pid == 0)
        os.kill(first, signal.SIGKILL)
        await until(lambda: started(gateway.handovers[0]) not in (0, first))
        await until(lambda: supervisor.spare_pid)
        third = supervisor.spare_pid
    assert all(gone(pid) for pid in (first, second, third))


async def test_the_process_that_stands_by_dies_with_the_supervisor() -> None:
    with Process("quiet.1") as gateway:
        pid = gateway.process.pid
        await until(lambda: len(children(pid)) == 2)
        below = children(pid)
        gateway.process.kill()
        await until(lambda: all(gone(child) for child in below), 5)


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("unprepared", 1, "process 4711 is writing to it"),
        ("misconfigured", 2, "connections[0].spot.symbols[1]: no such symbol"),
    ],
)
async def test_a_failed_preparation_ends_the_run_before_anyone_starts(
    kind: str, status: int, text: str
) -> None:
    gateway = Gateway(["quiet.1", kind])
    async with gateway.running() as run:
        assert await run == status
    assert len(gateway.complaints) == 1
    assert text in gateway.complaints[0]
    assert gateway.complaints[0].startswith(f"{kind}: ")
    assert not started(gateway.handovers[0])


async def test_a_worker_that_cannot_even_begin_says_why() -> None:
    gateway = Gateway(["quiet.1"])
    taken = CountersWriter(gateway.handovers[0].counters)
    try:
        async with gateway.running() as run:
            assert await run == 1
    finally:
        taken.close()
    assert f"process {os.getpid()} is writing to it" in gateway.complaints[0]


async def test_a_defect_in_preparation_ends_the_run_with_status_1() -> None:
    gateway = Gateway(["broken"])
    async with gateway.running() as run:
        assert await run == 1
    assert "ZeroDivisionError" in gateway.complaints[0]


async def test_a_worker_that_is_never_ready_is_killed() -> None:
    gateway = Gateway(["neverready", "quiet.1"], Timing(prepare=2.0))
    async with gateway.running() as run:
        assert await run == 1
    assert not started(gateway.handovers[1])


async def test_a_hanging_worker_is_killed_and_started_again() -> None:
    gateway = Gateway(["hanging"], Timing(beat=1.0, stop=1.0))
    async with gateway.running():
        await gateway.all_started()
        pid = started(gateway.handovers[0])
        await until(lambda: started(gateway.handovers[0]) not in (0, pid))
        assert gone(pid)


async def test_a_worker_that_dies_again_and_again_is_tried_again_and_again() -> None:
    gateway = Gateway(["dying"])
    seen: set[int] = set()

    def three() -> bool:
        seen.update(gateway.supervisor.pids().values())
        return len(seen) >= 3

    async with gateway.running() as run:
        await until(three)
        began = time.monotonic()
        gateway.supervisor.stop()  # may come along with a handover
        assert await run == 0
        assert time.monotonic() - began < 2.0


async def test_a_worker_that_does_not_stop_is_killed_in_time() -> None:
    gateway = Gateway(["stubborn", "quiet.1"])
    async with gateway.running() as run:
        await gateway.all_started()
        began = time.monotonic()
        gateway.supervisor.stop()
        assert await run == 0
        assert 3.5 < time.monotonic() - began < 5.0
    assert [receipt.stream["stream"] for receipt in gateway.receipts] == ["quiet.1"]


async def test_a_stray_print_is_not_taken_for_a_report() -> None:
    gateway = Gateway(["noisy"])
    async with gateway.running():
        await gateway.all_started()
    assert gateway.complaints == []


class Process:
    """The tiny gateway as a process of its own."""

    def __init__(self, *names: str) -> None:
        self.process = subprocess.Popen(
            (sys.executable, str(HERE / "tiny_gateway.py"), RUN, *names),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.pids: dict[str, int] = json.loads(self.process.stdout.readline())

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_in_order_within_five_seconds(number: int) -> None:
    with Process("quiet.1", "quiet.2") as gateway:
        began = time.monotonic()
        gateway.process.send_signal(number)
        out, _ = gateway.process.communicate(timeout=10)
        assert time.monotonic() - began < 5.0
        assert gateway.process.returncode == 0
        streams = [json.loads(line)["stream"] for line in out.splitlines()]
        assert streams == ["quiet.2", "quiet.1"]
        assert all(gone(pid) for pid in gateway.pids.values())


async def test_a_second_signal_kills() -> None:
    (worker,) = handovers(RUN, ["stubborn"])
    with Process("stubborn") as gateway:
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        await until(lambda: started(worker, "stopping"))
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.communicate(timeout=10)
        assert time.monotonic() - began < 2.0
        assert gateway.process.returncode == 1
        assert gone(gateway.pids["stubborn"])


async def test_workers_die_with_their_supervisor() -> None:
    with Process("quiet.1", "quiet.2") as gateway:
        gateway.process.kill()
        await until(lambda: all(gone(pid) for pid in gateway.pids.values()), 5)


async def test_a_hanging_worker_dies_after_its_supervisor_by_its_own_alarm() -> None:
    with Process("hanging") as gateway:
        gateway.process.kill()
        await until(lambda: gone(gateway.pids["hanging"]), 15)
