"""The command as a user runs it: exit codes, streams, and a gateway between simulated venues and
stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tiny import until

from k4.core.enums import Kind
from k4.core.errors import StoreMissing
from k4.core.shm import ShmMdReader, ShmMdStore, list_stores, remove_store
from k4.runner.cli import complete
from k4.runner.sim.market import Pace
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

PREFIX = f"cli{os.getpid()}_"
BBO = f"{PREFIX}bbo"


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # of instruments
    yield
    for store in list_stores():
        if store.name.startswith(PREFIX):
            remove_store(store.name)


def k4(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = (sys.executable, "-m", "k4.runner.cli", *arguments)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, **options
    )


# -- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["config.json", "--log-level", "debug"], ["run", "config.json", "--log-level", "debug"]),
        (["--log-level", "debug", "c.json"], ["run", "--log-level", "debug", "c.json"]),
        (["./demo"], ["run", "./demo"]),
        (["demo", "--seconds", "1"], ["demo", "--seconds", "1"]),
        (["shm", "list"], ["shm", "list"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_a_configuration_alone_means_run(given: list[str], meant: list[str]) -> None:
    assert complete(given) == meant


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["check", "--nonsense", "x"],
        ["watch", "--json"],
        ["shm", "dump"],
        ["run", "no-such-file.json"],
        ["no-such-file.json"],
        ["check", "no-such-file.json"],
        ["run", "x.json", "--log-level", "loud"],
        ["sim", "--nonsense"],
    ],
)
def test_bad_usage_is_status_2_with_a_word_on_stderr(arguments: list[str]) -> None:
    done = k4(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), (["run", "--help"], 0), (["sim", "--help"], 0)]
)
def test_help_is_on_stdout(arguments: list[str], status: int) -> None:
    done = k4(*arguments)
    assert (done.returncode, done.stderr) == (status, "")
    assert "usage" in done.stdout.lower()


def test_a_failure_is_status_1_with_message_and_remedy() -> None:
    done = k4("shm", "rm", f"{PREFIX}none")
    assert done.returncode == 1
    assert f"{PREFIX}none" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_errors_of_a_file_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    spot = {"symbols": ["BTCUSDT", "BTCUSDT"], "bbo_shm_nam": "x"}
    file.write_text(json.dumps({"connections": [{"exchange": "binance", "spot": spot}]}))
    for command in ("check", "run"):
        done = k4(command, str(file))
        assert (done.returncode, done.stdout) == (2, "")
        assert "connections[0].spot.symbols[1]" in done.stderr
        assert "bbo_shm_name" in done.stderr


def test_shm_and_watch_read_a_store() -> None:
    with ShmMdStore(BBO, Kind.BOOKTICKER, ["BTCUSDT"], 16) as store:
        now_us = time.time_ns() // 1000
        store.ring.lanes[0].publish(0, 1, 0, 42, 100.0, 1.0, 101.0, 1.0, 0, 0, now_us)
        (row,) = map(json.loads, k4("shm", "dump", BBO, "--json").stdout.splitlines())
        assert (row["symbol"], row["update_id"]) == ("BTCUSDT", 42)
        (seen,) = map(json.loads, k4("watch", BBO, "--once", "--json").stdout.splitlines())
        assert {**seen, "age_ms": None, "rate": None} == {
            "type": "store",
            "name": BBO,
            "kind": "bbo",
            "symbol": "BTCUSDT",
            "records": 1,
            "rate": None,
            "age_ms": None,
        }
        refused = k4("shm", "rm", BBO)
        assert refused.returncode == 1
        assert str(os.getpid()) in refused.stderr
    assert BBO in k4("shm", "list").stdout
    assert k4("shm", "rm", BBO).returncode == 0
    with pytest.raises(StoreMissing):
        ShmMdReader(BBO)


# -- a gateway at work --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def venues(rate: float) -> AsyncIterator[SimVenues]:
    spec = VenueSpec(name="binance", products={"spot": ("BTCUSDT",)}, pace=Pace(rate=rate))
    async with SimVenues(SimSpec(venues=(spec,))) as simulated:
        yield simulated


def configuration(folder: Path, simulated: SimVenues) -> Path:
    spot = {
        "symbols": ["BTCUSDT"],
        "redun_conn_count": 2,
        "bbo_shm_name": "bbo",
        "trade_shm_name": "trade",
    }
    connection = {
        "exchange": "binance",
        "shm_prefix": PREFIX,
        "md_size": 4096,
        "endpoints": simulated.endpoints("binance"),
        "spot": spot,
    }
    file = folder / "gateway.json"
    file.write_text(
        json.dumps({"RazorTrade": {"module_name": PREFIX}, "connections": [connection]})
    )
    return file


class Gateway:
    """`k4-runner CONFIG` as a process, its output in files."""

    def __init__(self, folder: Path, file: Path) -> None:
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                (sys.executable, "-m", "k4.runner.cli", str(file)),
                stdout=out,
                stderr=err,
            )

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)

    async def ended(self) -> int:
        await until(lambda: self.process.poll() is not None)
        return self.process.returncode

    @property
    def out(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._out.read_text().splitlines()]

    @property
    def err(self) -> str:
        return self._err.read_text()


def records(name: str = BBO) -> int:
    try:
        with ShmMdReader(name) as reader:
            return reader.update_num
    except StoreMissing:
        return 0


async def test_sigterm_stops_within_five_seconds_with_a_receipt_per_stream(tmp_path: Path) -> None:
    async with venues(500.0) as simulated:
        with Gateway(tmp_path, configuration(tmp_path, simulated)) as gateway:
            await until(lambda: records() > 100)
            began = time.monotonic()
            gateway.process.send_signal(signal.SIGTERM)
            assert await gateway.ended() == 0
            assert time.monotonic() - began < 5.0
    (receipt,) = gateway.out
    assert receipt["name"] == "binance.spot.json"
    assert receipt["published"] == records() + records(f"{PREFIX}trade")
    with ShmMdReader(BBO) as reader:
        assert (reader.writer_pid, reader.writer_alive()) == (0, False)


async def test_a_worker_killed_under_load_is_back_within_two_seconds_on_the_same_object(
    tmp_path: Path,
) -> None:
    async with venues(2000.0) as simulated:
        with Gateway(tmp_path, configuration(tmp_path, simulated)) as gateway:
            await until(lambda: records() > 1000)
            with ShmMdReader(BBO) as reader:
                killed, epoch = reader.writer_pid, reader.epoch
                os.kill(killed, signal.SIGKILL)
                at_death = reader.update_num
                took = await until(lambda: reader.update_num > at_death + 1)
                assert took < 2.0
                assert reader.writer_pid not in (0, killed)
                assert reader.epoch == epoch + 1
                assert not reader.closed
            assert gateway.process.poll() is None


async def test_a_second_gateway_on_the_same_stores_is_refused_with_the_firsts_pid(
    tmp_path: Path,
) -> None:
    async with venues(100.0) as simulated:
        file = configuration(tmp_path, simulated)
        with Gateway(tmp_path, file):
            await until(lambda: records() > 10)
            with ShmMdReader(BBO) as reader:
                first = reader.writer_pid
            (tmp_path / "2").mkdir()
            with Gateway(tmp_path / "2", file) as second:
                assert await second.ended() == 1
            assert f"process {first} is writing to it" in second.err
            assert "Traceback" not in second.err
            before = records()
            await until(lambda: records() > before)


async def test_watch_shows_the_lines_of_a_running_gateway(tmp_path: Path) -> None:
    async with venues(200.0) as simulated:
        with Gateway(tmp_path, configuration(tmp_path, simulated)):
            await until(lambda: records() > 10)
            done = await asyncio.to_thread(k4, "watch", "--once", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    bbo = next(row for row in rows if row.get("name") == BBO)
    assert bbo["rate"] > 0
    assert bbo["age_ms"] < 5000
    lines = [row for row in rows if row["type"] == "line" and row["stream"] == "binance.spot.json"]
    assert {row["id"] for row in lines} >= {0, 1}
    assert lines[0].keys() >= {"state", "messages", "wins", "missed", "reconnects", "age_s"}
    assert lines[0]["lag_us"].keys() == {"p50", "p99"}
    stream = next(row for row in rows if row["type"] == "stream")
    fields = {"name", "published", "duplicates", "stale", "gaps", "lost", "resets"}
    assert stream.keys() >= fields


async def test_metrics_are_served_while_the_gateway_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with venues(200.0) as simulated:
        file = configuration(tmp_path, simulated)
        config = json.loads(file.read_text())
        config["runtime"] = {"metrics": {"ip": "127.0.0.1", "port": port}}
        file.write_text(json.dumps(config))
        with Gateway(tmp_path, file):
            await until(lambda: records() > 100)
            async with (
                aiohttp.ClientSession() as client,
                client.get(f"http://127.0.0.1:{port}/metrics") as answer,
            ):
                text = await answer.text()
    published = re.search(
        r'^k4_stream_published{name="binance.spot.json",worker="binance"} (\d+)$', text, re.M
    )
    assert published is not None
    assert int(published[1]) > 0


async def test_check_shows_what_a_file_means(tmp_path: Path) -> None:
    async with venues(10.0) as simulated:
        file = configuration(tmp_path, simulated)
        done = await asyncio.to_thread(k4, "check", str(file), "--json")
        assert done.returncode == 0
        text = await asyncio.to_thread(k4, "check", str(file), "--offline")
        listed = await asyncio.to_thread(k4, "symbols", str(file), "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    (stream,) = (row for row in rows if row["type"] == "stream")
    assert stream["name"] == "binance.spot.json"
    assert stream["urls"] == [simulated.endpoints("binance")["spot"]]
    assert stream["lines"] == 2
    assert {channel["topic"] for channel in stream["channels"]} == {
        "btcusdt@bookTicker",
        "btcusdt@trade",
    }
    stores = {row["name"]: row["bytes"] for row in rows if row["type"] == "store"}
    assert stores == {BBO: 16 + 48 + 4096 * 112 + 64, f"{PREFIX}trade": 16 + 48 + 4096 * 96 + 64}
    (memory,) = (row for row in rows if row["type"] == "memory")
    assert memory["needed"] == sum(stores.values())
    assert not list_stores() or all(not s.name.startswith(PREFIX) for s in list_stores())
    assert "stream binance.spot.json: 2 lines" in text.stdout
    (symbol,) = map(json.loads, listed.stdout.splitlines())
    assert (symbol["symbol"], symbol["venue_symbol"]) == ("BTCUSDT", "BTCUSDT")
    assert symbol["source"] == "metadata"
    assert symbol["tick"]
