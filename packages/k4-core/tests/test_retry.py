"""Backoff, pacing and budgets: their bounds, and the shared table under real processes."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.errors import StoreForeign
from k4.core.retry import LocalBudget, Pace, SharedBudget, TokenBucket, Unlimited, backoff

HOST = "stream.venue.example:9443"


def test_backoff_is_full_jitter_under_a_doubling_cap() -> None:
    series = [list(itertools.islice(backoff(random.Random(n)), 12)) for n in range(500)]
    for step, delays in enumerate(zip(*series, strict=True)):
        ceiling = min(30.0, 0.1 * 2**step)
        assert 0.0 <= min(delays) < 0.05 * ceiling
        assert 0.95 * ceiling < max(delays) <= ceiling
        assert sum(delays) / len(delays) == pytest.approx(ceiling / 2, rel=0.1)


def most_in_any_window(times: list[float], period: float) -> int:
    """The largest number of events in a window [t, t + period)."""
    return max(
        (sum(start <= time < start + period for time in times) for start in times), default=0
    )


@given(
    count=st.integers(1, 20),
    period=st.floats(0.1, 10.0),
    gaps=st.lists(st.floats(0.0, 5.0), max_size=80),
)
def test_pace_never_exceeds_its_window(count: int, period: float, gaps: list[float]) -> None:
    pace, now, times = Pace(count, period), 100.0, []
    for gap in gaps:
        now += gap
        now += pace.wait(now)
        assert pace.wait(now) < 1e-6
        pace.note(now)
        times.append(now)
    assert most_in_any_window(times, period - 1e-6) <= count


def test_pace_leaves_a_reserve() -> None:
    pace = Pace(3, 1.0)
    for _ in range(2):
        assert pace.wait(0.0, reserve=1) == 0.0
        pace.note(0.0)
    assert pace.wait(0.25, reserve=1) == 0.75
    assert pace.wait(0.25) == 0.0
    assert Pace(1, 1.0).wait(0.0, reserve=1) == 0.0  # a reserve never blocks for ever
    assert Pace(0, 1.0).wait(0.0) == Pace(5, 0.0).wait(0.0) == 0.0


@given(
    attempts=st.integers(1, 400),
    period=st.floats(1.0, 400.0),
    gaps=st.lists(st.floats(0.0, 20.0), max_size=200),
)
def test_bucket_grants_at_most_the_attempts_in_any_period(
    attempts: int, period: float, gaps: list[float]
) -> None:
    bucket, now, granted = TokenBucket(attempts, period), 0.0, []
    for gap in gaps:
        now += gap
        if bucket.take(now) == 0.0:
            granted.append(now)
    assert most_in_any_window(granted, period * 0.999) <= attempts


@given(attempts=st.integers(1, 400), period=st.floats(0.5, 400.0))
def test_waiting_as_told_is_enough(attempts: int, period: float) -> None:
    bucket, now = TokenBucket(attempts, period), 0.0
    for _ in range(2 * attempts + 3):
        wait = bucket.take(now)
        if wait:
            now += wait
            assert bucket.take(now) == 0.0
    assert now > 0.0  # the budget did run out


def test_bucket_of_binance() -> None:
    """300 in 5 minutes: a burst of 150, then one every two seconds."""
    bucket = TokenBucket(300, 300.0)
    assert [bucket.take(0.0) for _ in range(150)] == [0.0] * 150
    assert bucket.take(0.0) == pytest.approx(2.0)
    assert bucket.take(1.0) == pytest.approx(1.0)
    assert bucket.take(2.0) == 0.0


def test_local_budget_is_per_host_and_pauses() -> None:
    budget = LocalBudget(2, 10.0)
    assert budget.take("a", 0.0) == 0.0
    assert budget.take("a", 0.0) > 0.0
    assert budget.take("b", 0.0) == 0.0
    budget.pause("c", 0.0, 120.0)
    budget.pause("c", 0.0, 5.0)  # a shorter word does not take the longer one back
    assert budget.take("c", 20.0) == 100.0
    assert budget.take("c", 120.0) == 0.0
    free = LocalBudget(0, 0.0)
    free.pause("a", 0.0, 1.0)
    assert [free.take("a", 0.5), free.take("a", 1.0)] == [0.5, 0.0]
    assert Unlimited().take("a", 0.0) == 0.0


def test_what_can_wait_leaves_half_of_the_burst() -> None:
    budget = LocalBudget(8, 100.0)  # four at once, then one every 25 s
    assert [budget.take("a", 0.0), budget.spare("a", 0.0)] == [0.0, True]
    assert [budget.take("a", 0.0), budget.spare("a", 0.0)] == [0.0, False]
    assert [budget.take("a", 0.0), budget.take("a", 25.0)] == [0.0, 0.0]
    assert [budget.spare("a", 50.0), budget.spare("a", 51.0)] == [False, True]
    assert budget.spare("b", 0.0)
    budget.pause("b", 0.0, 9.0)
    assert [budget.spare("b", 8.0), budget.spare("b", 9.0)] == [False, True]
    assert LocalBudget(0, 0.0).spare("a", 0.0)
    assert Unlimited().spare("a", 0.0)


@pytest.fixture
def name() -> Iterator[str]:
    name = f"k4-test-budget-{os.getpid()}"
    yield name
    SharedBudget.remove(name)
    assert not Path("/dev/shm", name).exists()


def test_shared_budget_is_one_for_all_openers(name: str) -> None:
    first, second = SharedBudget(name, 8, 100.0), SharedBudget(name, 8, 100.0)
    granted = [budget.take(HOST, 0.0) for budget in (first, second) * 2]
    assert granted == [0.0] * 4
    assert first.take(HOST, 0.0) == second.take(HOST, 0.0) == pytest.approx(25.0)
    assert second.take("other", 2.0) == 0.0
    first.pause(HOST, 1.0, 60.0)
    assert second.take(HOST, 2.0) == 59.0
    # A clock read a little earlier than the other process's is no reason to distrust the entry.
    assert first.take("other", 1.999) == 0.0
    first.close()
    second.close()


def test_shared_budget_tells_what_is_to_spare(name: str) -> None:
    first, second = SharedBudget(name, 8, 100.0), SharedBudget(name, 8, 100.0)
    assert first.spare(HOST, 0.0)
    assert [first.take(HOST, 0.0), second.take(HOST, 0.0), first.take(HOST, 0.0)] == [0.0] * 3
    assert not second.spare(HOST, 25.0)
    assert second.spare(HOST, 26.0)
    assert [first.take(HOST, 26.0), second.take(HOST, 26.0)] == [0.0, 0.0], "asking costs nothing"
    first.pause(HOST, 60.0, 40.0)
    assert [second.spare(HOST, 99.0), second.spare(HOST, 100.0)] == [False, True]
    with Path("/dev/shm", name).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not first.spare(HOST, 200.0), "somebody else is at it"
    first.close()
    second.close()
    SharedBudget.remove(name)
    free = SharedBudget(name, 0, 0.0)
    assert free.spare(HOST, 0.0)
    free.pause(HOST, 0.0, 9.0)
    assert [free.spare(HOST, 8.0), free.spare(HOST, 9.0)] == [False, True]
    free.close()


def test_shared_budget_without_a_limit_still_pauses(name: str) -> None:
    budget = SharedBudget(name, 0, 0.0)
    assert budget.take(HOST, 0.0) == 0.0
    budget.pause(HOST, 0.0, 9.0)
    assert budget.take(HOST, 1.0) == 8.0
    assert budget.take(HOST, 9.0) == 0.0
    budget.close()


def test_more_hosts_than_entries_are_stricter(name: str) -> None:
    budget = SharedBudget(name, 2, 10.0)
    waits = [budget.take(f"host{n}", 0.0) for n in range(70)]
    assert waits[:64] == [0.0] * 64
    assert all(wait > 0 for wait in waits[64:])
    budget.close()


def test_figures_left_by_a_killed_writer_count_as_an_empty_bucket(name: str) -> None:
    budget = SharedBudget(name, 100, 100.0)
    assert budget.take(HOST, 10.0) == 0.0
    for position in (16, 24, 32):  # tokens, updated, paused until
        with Path("/dev/shm", name).open("r+b") as file:
            file.seek(position)
            file.write(b"\xff" * 8)
        assert 0.0 <= budget.take(HOST, 10.0) <= 2.0
        assert budget.take(HOST, 20.0) == 0.0
    budget.close()


def test_a_taken_lock_is_never_waited_for(name: str) -> None:
    budget = SharedBudget(name)
    fd = os.open(f"/dev/shm/{name}", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert budget.take(HOST, 0.0) == pytest.approx(0.01)
    budget.pause(HOST, 0.0, 30.0)  # remembered here, and told to all with the next turn
    os.close(fd)
    assert budget.take(HOST, 10.0) == 20.0
    other = SharedBudget(name)
    assert other.take(HOST, 10.0) == 20.0
    other.close()
    budget.close()


WORKER = """
import sys, time
from k4.core.retry import SharedBudget
budget = SharedBudget(sys.argv[1], int(sys.argv[2]), 1e9)
granted = 0
print("ready", flush=True)
sys.stdin.readline()
misses = 0
while misses < 3:
    wait = budget.take("host", time.monotonic())
    if wait == 0.0:
        granted += 1
    elif wait > 1.0:
        misses += 1
print(granted, flush=True)
"""


def spawn(name: str, code: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, name, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_share_exactly_one_budget(name: str) -> None:
    workers = [spawn(name, WORKER, "4000") for _ in range(3)]
    try:
        assert [line(worker) for worker in workers] == ["ready"] * 3
        results = [worker.communicate("go\n", timeout=30)[0] for worker in workers]
        assert sum(map(int, results)) == 2000  # the burst half; the rest refills over decades
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


HOLDER = """
import fcntl, os, sys, time
from k4.core.retry import SharedBudget
budget = SharedBudget(sys.argv[1])
fcntl.flock(budget._fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_worker_killed_while_holding_the_lock_blocks_nobody(name: str) -> None:
    holder = spawn(name, HOLDER)
    try:
        assert line(holder) == "held"
        budget = SharedBudget(name)
        assert budget.take(HOST, time.monotonic()) == pytest.approx(0.01)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert budget.take(HOST, time.monotonic()) == 0.0
        budget.close()
    finally:
        holder.kill()
        holder.communicate()


def test_a_foreign_object_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SharedBudget(name).close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StoreForeign, match="another user"):
        SharedBudget(name)


def test_removing_twice_is_no_error(name: str) -> None:
    SharedBudget.remove(name)
    SharedBudget.remove(name)
