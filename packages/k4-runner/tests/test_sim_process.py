"""The simulation as a process: ready line, commands, summary, ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sim_client import Json, ask
from websockets.asyncio.client import connect

from k4.runner.sim.__main__ import main
from k4.runner.sim.venues import SimSpec, SimVenues

SPEC = {
    "venues": [
        {"name": "binance", "products": {"spot": ["BTCUSDT"]}, "pace": {"start": False}, "scale": 2}
    ],
    "seed": 5,
}
SERIES = ["binance", "spot", "BTCUSDT", "trade"]


class Simulation:
    """A running `python -m k4.runner.sim`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.ready: Json = {}

    async def line(self) -> Json:
        assert self.process.stdout is not None
        found: Json = json.loads(await self.process.stdout.readline())
        return found

    async def ask(self, cmd: str, **arguments: object) -> Json:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"cmd": cmd, "id": 1, **arguments}).encode() + b"\n")
        reply = await self.line()
        assert (reply["type"], reply["cmd"], reply["id"]) == ("reply", cmd, 1)
        return reply


@asynccontextmanager
async def simulation(*options: str) -> AsyncIterator[Simulation]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "k4.runner.sim", *options, stdin=PIPE, stdout=PIPE, limit=1 << 22
    )
    self = Simulation(process)
    try:
        self.ready = await self.line()
        yield self
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def test_commands_drive_the_simulation(tmp_path: Path) -> None:
    async with simulation("--json", json.dumps(SPEC), "--control") as sim:
        assert sim.ready["type"] == "ready"
        async with connect(sim.ready["endpoints"]["binance"]["spot"], max_queue=None) as socket:
            await ask(socket, "SUBSCRIBE", "btcusdt@trade")
            await sim.ask("inject", fault={"fault": "drop"})
            await sim.ask("emit", venue="binance", events=200)
            assert (await sim.ask("settle"))["result"] is True
            produced = (await sim.ask("ids", series=SERIES, what="produced"))["result"]["0"]
            delivered = (await sim.ask("ids", series=SERIES, what="delivered"))["result"]["0"]
            assert delivered == produced[1:]
            assert (await sim.ask("ids", series=SERIES))["result"] == {"0": []}
            assert (await sim.ask("faults"))["result"][0]["id"] == produced[0]
            assert (await sim.ask("connections"))["result"][0]["frames"] == len(delivered)
            pace = {"rate": 0, "total": 100}
            await sim.ask("pace", venue="binance", pace=pace)
            await sim.ask("wait", venue="binance")
            assert (await sim.ask("summary"))["result"]["events"] == {"binance": 300}
        await sim.ask("dump", folder=str(tmp_path))
        assert json.loads((tmp_path / "ledger.json").read_text())["faults"] == {"drop": 1}
        await sim.ask("stop")
        assert (await sim.line())["type"] == "summary"
        assert await sim.process.wait() == 0


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ({"cmd": "fly"}, "no command 'fly'"),
        ({"cmd": "emit", "venue": "nasdaq", "events": 1}, "nothing known of 'nasdaq'"),
        ({"cmd": "inject", "fault": {"fault": "x"}}, "no fault 'x'"),
        ({"cmd": "ids", "series": ["a"]}, "series is"),
        ({"cmd": "pace", "venue": "binance", "pace": {"rate": "x"}}, "rate"),
    ],
)
async def test_bad_commands_are_answered(command: Json, text: str) -> None:
    async with simulation("--json", json.dumps(SPEC), "--control") as sim:
        reply = await sim.ask(**command)
        assert text in reply["error"]
        assert (await sim.ask("summary"))["result"]["events"] == {"binance": 0}


async def test_it_does_not_outlive_its_controller() -> None:
    async with simulation("--json", json.dumps(SPEC), "--control") as sim:
        assert sim.process.stdin is not None
        sim.process.stdin.close()
        assert (await sim.line())["type"] == "summary"
        assert await sim.process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_end_it_in_order(number: signal.Signals) -> None:
    async with simulation("--venue", "binance", "--rate", "100") as sim:
        async with connect(sim.ready["endpoints"]["binance"]["spot"]) as socket:
            sim.process.send_signal(number)
            await socket.wait_closed()
            assert socket.close_code == 1001
        assert (await sim.line())["type"] == "summary"
        assert await sim.process.wait() == 0


async def test_it_ends_by_itself_and_writes_its_ledger(tmp_path: Path) -> None:
    script = tmp_path / "faults.json"
    script.write_text('[{"fault": "id_reset", "at": 0.05}]')
    options = ("--venue", "binance", "--symbol", "spot:ETHUSDT", "--rate", "1000", "--seed", "4")
    ends = ("--seconds", "0.2", "--faults", str(script), "--dump", str(tmp_path))
    async with simulation(*options, *ends) as sim:
        summary = await sim.line()
        assert await sim.process.wait() == 0
    assert summary["faults"] == {"id_reset": 1}
    assert summary["produced"]["binance.spot.ETHUSDT.trade"] > 0
    assert json.loads((tmp_path / "ledger.json").read_text())["produced"] == summary["produced"]


def test_bad_usage_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.json")
    script = tmp_path / "faults.json"
    script.write_text("{}")
    for arguments in (
        [missing],
        ["--json", '{"venue": []}'],
        ["--symbol", "BTCUSDT"],
        ["--rate", "-5"],
        ["--faults", str(script)],
        ["--replay", missing],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err


async def test_stopping_twice_is_stopping_once() -> None:
    venues = SimVenues(SimSpec())
    await venues.start()
    await venues.stop()
    await venues.stop()
