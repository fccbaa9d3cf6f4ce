"""The README's section on trading, and the example: run as they stand there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from k4.core.errors import StoreMissing
from k4.core.shm import ShmMdReader, list_stores, remove_store
from k4.core.trading import GatewayError
from k4.runner.sim.market import Pace
from k4.runner.sim.trading.spec import TradingSpec
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues
from k4.td import TdClient

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
(SECTION,) = re.findall(r"^## Trade\n(.*?)^## ", README, re.M | re.S)
STORE = f"example{os.getpid()}_bbo"


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.M | re.S)
    return str(text)


@pytest.fixture(autouse=True)
def _stores_are_removed() -> Iterator[None]:
    yield
    for store in list_stores():
        if store.name == STORE:
            remove_store(store.name)


@asynccontextmanager
async def venues() -> AsyncIterator[SimVenues]:
    """Market data of Binance, and trading against the very book that it shows."""
    spec = SimSpec(
        venues=(
            VenueSpec(
                name="binance", products={"ubase": ("BTCUSDT",)}, pace=Pace(rate=500.0, start=True)
            ),
        ),
        trading=TradingSpec(symbols={"spot": ("BTCUSDT",), "ubase": ("BTCUSDT",), "cbase": ()}),
    )
    async with SimVenues(spec) as running:
        yield running


@contextmanager
def k4_runner(command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        (sys.executable, "-m", "k4.runner.cli", *shlex.split(command)[1:]),
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


async def ready(socket: str, accounts: int) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(GatewayError), TdClient(socket, "probe") as client:
                if len(client.info["connected"]) == accounts:
                    return
            await asyncio.sleep(0.05)


def configuration(running: SimVenues, folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with the keys and addresses of the simulated venue, and paths of this test."""
    assert running.trading is not None
    kept = {name: value for name, value in entry.items() if not name.endswith("_key")}
    here = running.trading.config_entries("main", folder)
    enabled = {f"{account}_enabled": False for account in ("spot", "ubase", "cbase")}
    return {
        **here,
        **enabled,
        **kept,
        "socket": str(folder / "td.sock"),
        "journal": str(folder / "td.journal"),
    }


async def test_the_section_on_trading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(block("jsonc"))
    (entry,) = config["trading"]
    entry["risk"]["kill_file"] = str(tmp_path / "kill")
    snippet = tmp_path / "snippet.py"
    socket = str(tmp_path / "td.sock")
    snippet.write_text(block("python").replace(entry["socket"], socket))
    async with venues() as running:
        config["trading"] = [configuration(running, tmp_path, entry)]
        (tmp_path / "trading.json").write_text(json.dumps(config))
        with k4_runner("k4-runner run trading.json", tmp_path) as gateway:
            await ready(socket, 2)
            await asyncio.to_thread(runpy.run_path, str(snippet))
            for command in block("console").splitlines():
                with k4_runner(command, tmp_path) as process:
                    _, err = await asyncio.to_thread(process.communicate)
                assert process.returncode == 0, f"{command}: {err}"
            gateway.send_signal(signal.SIGTERM)
            receipts, _ = await asyncio.to_thread(gateway.communicate)
        assert gateway.returncode == 0
        assert [json.loads(line)["account_type"] for line in receipts.splitlines()] == [
            "spot",
            "ubase",
        ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("new ")
    assert printed[1] == "canceled"
    assert printed[2].startswith("risk.max_order_qty ")
    assert len(printed) == 3


async def test_the_market_maker(tmp_path: Path) -> None:
    example = ROOT / "examples" / "market_maker.py"
    assert len(example.read_text().splitlines()) < 60
    async with venues() as running:
        connection = {
            "exchange": "binance",
            "md_size": 1024,
            "endpoints": running.endpoints("binance"),
            "futures": {"ubase_symbols": ["BTCUSDT"], "bbo_shm_name": STORE},
        }
        limits = {"max_order_qty": "0.1", "price_collar_bps": 50, "bbo_store": STORE}
        entry = {"name": "main", "ubase_enabled": True, "risk": {"ubase": limits}}
        trading = configuration(running, tmp_path, entry)
        module = {"module_name": f"example{os.getpid()}"}
        config = {"RazorTrade": module, "connections": [connection], "trading": [trading]}
        (tmp_path / "both.json").write_text(json.dumps(config))
        with k4_runner("k4-runner run both.json", tmp_path) as gateway:
            await ready(trading["socket"], 1)
            await quotes()
            command = (sys.executable, str(example), trading["socket"], STORE, "BTCUSDT", "4")
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
            assert re.fullmatch(r"\d+ fills, position -?[\d.E-]+\n", done.stdout)
            assert running.trading is not None
            ledger = running.trading.ledger
            async with asyncio.timeout(15):  # the gateway takes its orders back
                while ledger.orders(open_only=True):  # noqa: ASYNC110  # the ledger tells nobody
                    await asyncio.sleep(0.02)
            gateway.send_signal(signal.SIGTERM)
            await asyncio.to_thread(gateway.communicate)
        assert gateway.returncode == 0
        assert len(ledger.orders()) > 2
        assert ledger.sent_twice() == []


async def quotes() -> None:
    async with asyncio.timeout(20):
        while True:
            with suppress(StoreMissing), ShmMdReader(STORE) as reader:
                if reader.latest("BTCUSDT") is not None:
                    return
            await asyncio.sleep(0.02)
