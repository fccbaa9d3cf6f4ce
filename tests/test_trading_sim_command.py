"""The simulated trading venue as a user reaches it: `k4-runner sim --trading`, then `run`."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k4.core.trading import (
    AccountType,
    Direction,
    GatewayError,
    NewOrder,
    OrderStatus,
    OrderType,
    VenueBusy,
)
from k4.td import AsyncTdClient

ORDER = NewOrder(
    symbol="BTCUSDT",
    account_type=AccountType.UBASE,
    direction=Direction.BUY,
    order_type=OrderType.GTC,
    quantity=Decimal("0.010"),
    price=Decimal("62000.0"),
)


@contextmanager
def k4_runner(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = (sys.executable, "-m", "k4.runner.cli", *arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.communicate()


async def connected(socket: str) -> AsyncTdClient:
    async with asyncio.timeout(30):
        while True:
            client = AsyncTdClient(socket, "mm1")
            with suppress(GatewayError):
                await client.connect()
                if len(client.info["connected"]) == 3:
                    return client
            await client.close()
            await asyncio.sleep(0.05)


async def test_a_venue_with_faults_and_a_gateway_on_it(tmp_path: Path) -> None:
    folder, script = tmp_path / "sim", tmp_path / "faults.json"
    target = {"op": "order.place", "product": "ubase"}
    faults: list[dict[str, Any]] = [
        {"fault": "unavailable", "what": "service", "limit": 1, "target": target},
        {"fault": "latency", "ms": 5, "target": target},
    ]
    script.write_text(json.dumps(faults))
    options = ("--venue", "binance", "--trading", str(folder), "--trading-faults", str(script))
    with k4_runner("sim", *options) as sim:
        assert sim.stdout is not None
        ready = json.loads(await asyncio.to_thread(sim.stdout.readline))
        assert ready["configuration"] == str(folder / "trading.json")
        keys = [*folder.glob("*.key"), *folder.glob("*.secret")]
        assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600, 0o600]
        with k4_runner("run", ready["configuration"]):
            td = await connected(str(folder / "td.sock"))
            with pytest.raises(VenueBusy, match="Service Unavailable"):
                await td.insert_order(ORDER)
            placed = await td.insert_order(ORDER)
            assert placed.status is OrderStatus.NEW
            assert (await td.cancel_order(placed.client_order_id)).status is OrderStatus.CANCELED
            await td.close()
        sim.send_signal(signal.SIGINT)
        lines, _ = await asyncio.to_thread(sim.communicate)
    summary = json.loads(lines.splitlines()[-1])["trading"]
    assert summary["faults"] == {"latency": 1, "unavailable": 1}
    assert summary["sent_twice"] == []


def test_a_folder_that_cannot_be_written_and_a_bad_script_are_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    script = tmp_path / "faults.json"
    script.write_text('[{"fault": "dance"}]')
    for options, text in (
        (("--trading", str(tmp_path / "file")), "file"),
        (("--trading", str(tmp_path), "--trading-faults", str(script)), "dance"),
    ):
        command = (sys.executable, "-m", "k4.runner.cli", "sim", "--venue", "binance", *options)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert text in done.stderr


def test_help_names_every_fault_of_the_trading_venue() -> None:
    command = (sys.executable, "-m", "k4.runner.cli", "sim", "--help")
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for name in ("latency", "drop_request", "drop_reply", "unavailable", "timeout", "disconnect"):
        assert f'{{"fault": "{name}"' in text
    for name in ("event_delay", "event_reorder", "event_duplicate", "expire_listen_key"):
        assert f'{{"fault": "{name}"' in text
