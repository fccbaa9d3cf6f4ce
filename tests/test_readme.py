"""Every command and snippet of the README, run as it stands there against a simulated venue."""

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
from collections.abc import Iterator
from pathlib import Path

import pytest

import k4.md
from k4.core.errors import StoreMissing
from k4.core.shm import ShmMdReader, list_stores, remove_store
from k4.runner.sim.market import Pace
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

ROOT = Path(__file__).parents[1]
PREFIX = f"readme{os.getpid()}_"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
GATEWAY = "k4-runner gateway.json"


def blocks(language: str) -> list[str]:
    """The fenced blocks, with store names that no other program on this machine uses."""
    found = [text for name, text in BLOCKS if name == language]
    return [text.replace("binance_spot", f"{PREFIX}binance_spot") for text in found]


COMMANDS = [line for text in blocks("sh") for line in text.splitlines()]


@pytest.fixture(autouse=True)
def _stores_are_removed() -> Iterator[None]:
    yield
    for store in list_stores():
        if store.name.startswith(PREFIX):
            remove_store(store.name)


def write_configuration(folder: Path, endpoints: dict[str, str]) -> None:
    (text,) = blocks("json")
    config = json.loads(text)
    config["RazorTrade"]["log_path"] = str(folder)
    config["connections"][0]["endpoints"] = endpoints
    (folder / "gateway.json").write_text(json.dumps(config))


def k4_runner(command: str, folder: Path) -> subprocess.Popen[str]:
    arguments = shlex.split(command)[1:]
    return subprocess.Popen(
        (sys.executable, "-m", "k4.runner.cli", *arguments),
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def has_records(name: str) -> None:
    while True:
        try:
            with ShmMdReader(name) as reader:
                if reader.cursor("BTCUSDT") > 3:
                    return
        except StoreMissing:
            pass
        await asyncio.sleep(0.02)


def test_what_this_file_does_not_run_is_run_by_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    others = [command for command in COMMANDS if not command.startswith("k4-runner ")]
    assert others == ["./k4 demo", "./k4 test"]
    assert all(re.search(rf"^{re.escape(command)}\b", ci, re.M) for command in others)


async def test_the_commands_and_the_reader_work_on_a_running_gateway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = VenueSpec(
        name="binance", products={"spot": ("BTCUSDT", "ETHUSDT")}, pace=Pace(rate=500.0)
    )
    (reading,) = (text for text in blocks("python") if "ShmMdReader" in text)
    snippet = tmp_path / "reading.py"
    snippet.write_text(reading)
    async with SimVenues(SimSpec(venues=(spec,))) as venues:
        write_configuration(tmp_path, venues.endpoints("binance"))
        with k4_runner(GATEWAY, tmp_path) as gateway:
            try:
                await asyncio.wait_for(has_records(f"{PREFIX}binance_spot_bbo"), 20)
                for command in COMMANDS:
                    if command.startswith("k4-runner ") and command != GATEWAY:
                        with k4_runner(command, tmp_path) as process:
                            out, err = await asyncio.to_thread(process.communicate)
                        assert process.returncode == 0, f"{command}: {err}"
                        assert out, command
                await asyncio.to_thread(runpy.run_path, str(snippet))
            finally:
                gateway.send_signal(signal.SIGTERM)
                receipts, _ = await asyncio.to_thread(gateway.communicate)
            assert gateway.returncode == 0
            assert [json.loads(line)["name"] for line in receipts.splitlines()] == [
                "binance.spot.json"
            ]
    printed = capsys.readouterr().out
    assert "Bookticker(symbol='BTCUSDT'" in printed


async def test_market_data_in_ones_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = VenueSpec(name="binance", products={"spot": ("BTCUSDT",)}, pace=Pace(rate=500.0))
    (connecting,) = (text for text in blocks("python") if "k4.md.connect" in text)
    snippet = tmp_path / "connecting.py"
    snippet.write_text(connecting)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    async with SimVenues(SimSpec(venues=(spec,))) as venues:
        connect, endpoints = k4.md.connect, venues.endpoints("binance")
        monkeypatch.setattr(k4.md, "connect", lambda *a, **k: connect(*a, endpoints=endpoints, **k))
        await asyncio.wait_for(asyncio.to_thread(runpy.run_path, str(snippet)), 20)
    assert capsys.readouterr().out.count("symbol='BTCUSDT'") == 5


def test_files_that_it_names_exist() -> None:
    named = re.findall(
        r"`(?:python )?((?:packages|tests|benchmarks|examples|\.ci)/[^` ]*)`",
        (ROOT / "README.md").read_text(),
    )
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
