"""The demo as a user runs it, and what is left of it afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import until

from k4.core.counters import list_counters
from k4.core.loading import parse
from k4.core.shm import list_stores
from k4.runner.demo import MARKETS, configuration, shops
from k4.runner.sim.venues import venue_names

DEMO = (sys.executable, "-m", "k4.runner.cli", "demo")


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen((*DEMO, *arguments), stdout=subprocess.PIPE, text=True)


def left_by(pid: int) -> list[str]:
    """What in shared memory still bears the name of that demo."""
    names = [*(store.name for store in list_stores()), *list_counters()]
    return [name for name in names if name.startswith(f"demo{pid}")]


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def test_it_runs_headless_and_its_last_object_is_the_summary() -> None:
    with started("--seconds", "2", "--headless", "--json") as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    rows = [json.loads(line) for line in out.splitlines()]
    summary = rows[-1]
    assert summary["type"] == "summary"
    assert summary["sent"] > summary["published"]  # a history that repeats is a duplicate, not sent
    assert summary["published"] > 500
    assert summary["duplicates"] > 500
    assert (summary["lost"], summary["unread"]) == (0, 0)
    stores = {row["name"] for row in rows if row["type"] == "store"}
    venues = [name for name in venue_names() if name in MARKETS]
    assert stores == {shop.name for shop in shops(f"demo{process.pid}_", venues)}
    assert all(row["records"] for row in rows if row["type"] == "store")
    assert left_by(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_in_order(number: int) -> None:
    with started("--headless") as process:
        await until(lambda: left_by(process.pid))
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "0 lost" in out
    assert left_by(process.pid) == []


async def test_its_processes_die_with_it() -> None:
    with started("--headless") as process:
        await until(lambda: left_by(process.pid))
        below = children(process.pid)
        assert len(below) == 2
        process.kill()
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
    sweep(process.pid)


def sweep(pid: int) -> None:
    """Threads of a killed parent may each pass on its death: a gateway that hears two stops kills
    its workers, and what they held is left."""
    for path in Path("/dev/shm").glob(f"*demo{pid}*"):
        path.unlink(missing_ok=True)


def test_its_configuration_is_one_that_a_user_could_write() -> None:
    endpoints: dict[str, dict[str, str]] = {venue: {} for venue in MARKETS}
    config = parse(json.dumps(configuration("demo_", "demo", endpoints)).encode())
    written = {
        name
        for connection in config.connections
        for product in connection.products
        for name in product.stores.values()
    }
    assert written == {shop.name for shop in shops("demo_", list(MARKETS))}
    assert all(p.lines == 2 for c in config.connections for p in c.products)
