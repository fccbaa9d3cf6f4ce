"""The simulation as a process: ready line, commands on stdin, summary at the end.

stdout carries one JSON object a line: first `{"type": "ready", "endpoints": {...}}` with URLs by
venue and key, then one `{"type": "reply", ...}` for each command, last `{"type": "summary", ...}`.
A command is one JSON line on stdin, `{"cmd": "inject", "fault": {...}}`; its `id` is echoed. The
end of stdin ends the simulation, so that it never outlives the process that controls it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import msgspec
import uvloop

from k4.core.clock import SystemClock
from k4.core.enums import KIND_BY_LABEL
from k4.core.errors import ConfigError, K4Error, Problem
from k4.runner.sim.ledger import SeriesKey
from k4.runner.sim.market import Pace
from k4.runner.sim.trading.control import trade
from k4.runner.sim.trading.venue import SimTrading
from k4.runner.sim.venues import SimSpec, SimVenues

_KNOWN = "inject, pace, emit, settle, wait, ids, faults, connections, summary, dump, stop, trading"


class _Refused(Exception):
    """A command that cannot be carried out; the text is for its sender."""


def run_sim(
    spec: SimSpec,
    *,
    control: bool = False,
    output: TextIO | None = None,
    trading_folder: str = "",
) -> int:
    """Run until SIGINT, SIGTERM, `spec.seconds` or the command `stop`; returns the exit status 0.

    control: take commands from stdin. trading_folder: where the trading venue's first account gets
    its keys and a configuration, `trading.json`, with which `k4-runner run` trades there. Raises
    ConfigError for what cannot be simulated.
    """
    stream = output if output is not None else sys.stdout
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(spec, control, stream, trading_folder))
    return 0


async def _run(spec: SimSpec, control: bool, output: TextIO, trading_folder: str) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    venues = SimVenues(spec)
    async with venues:
        ready: dict[str, Any] = {"type": "ready", "endpoints": venues.all_endpoints()}
        if venues.trading is not None:
            ready["trading"] = venues.trading.urls()
            if trading_folder:
                ready["configuration"] = _configure(venues.trading, trading_folder)
        _print(output, ready)
        if spec.seconds:
            SystemClock().call_later(spec.seconds, stop.set)
        if control:
            async with _commands(venues, output, stop):
                await stop.wait()
        else:
            await stop.wait()
    if spec.dump:
        venues.ledger.dump(Path(spec.dump))
        if venues.trading is not None:
            report = json.dumps(venues.trading.ledger.report())
            (Path(spec.dump) / "trading.json").write_text(report)
    _print(output, venues.summary())


def _configure(trading: SimTrading, name: str) -> str:
    """Write a configuration that trades there into a folder; its path."""
    folder = Path(name).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry = trading.config_entries(trading.spec.accounts[0].name, folder)
        files = {"journal": str(folder / "td.journal"), "socket": str(folder / "td.sock")}
        body = {
            "RazorTrade": {"module_name": "sim_trading"},
            "trading": [{**entry, "name": "main", **files}],
        }
        path = folder / "trading.json"
        path.write_text(json.dumps(body, indent=2) + "\n")
    except OSError as error:
        text = f"{folder}: {error.strerror}"
        raise ConfigError([Problem("--trading", text)]) from error
    return str(path)


def _print(output: TextIO, body: Mapping[str, Any]) -> None:
    output.write(json.dumps(body) + "\n")
    output.flush()


@asynccontextmanager
async def _commands(venues: SimVenues, output: TextIO, stop: asyncio.Event) -> AsyncIterator[None]:
    reader = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    task = asyncio.create_task(_obey(venues, reader, output, stop))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        transport.close()


async def _obey(
    venues: SimVenues, reader: asyncio.StreamReader, output: TextIO, stop: asyncio.Event
) -> None:
    while line := await reader.readline():
        reply: dict[str, Any] = {"type": "reply"}
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise _Refused("a command is a JSON object")
            reply |= {key: request[key] for key in ("id", "cmd") if key in request}
            reply["result"] = await execute(venues, request, stop.set)
        except (_Refused, K4Error, ValueError) as error:
            reply["error"] = str(error)
        _print(output, reply)
    stop.set()


async def execute(
    venues: SimVenues, request: Mapping[str, Any], stop: Callable[[], None]
) -> object:
    """Carry out one command and return its result.

    inject {fault}: connections concerned. pace {venue, pace}. emit {venue, events}. settle
    {timeout}: did all pong? wait {venue}: until the pace's total is reached. ids {series: [venue,
    product, symbol, kind], what: produced | delivered | gaps}: ids by generation. faults {fault}.
    connections. summary. dump {folder}. stop. trading {do, ...}: see `trading/control.py`.
    """
    command = request.get("cmd")
    try:
        if command == "inject":
            return venues.inject(request["fault"])
        if command == "trading":
            return trade(venues.trading, request)
        if command == "pace":
            venues.pace(request["venue"], msgspec.convert(request["pace"], Pace))
            return None
        if command == "emit":
            venues.emit(request["venue"], int(request["events"]))
            return None
        if command == "settle":
            return await venues.settle(float(request.get("timeout", 5.0)))
        if command == "wait":
            await venues.finished(request["venue"])
            return None
        if command == "ids":
            return _ids(venues, request["series"], request.get("what", "gaps"))
    except KeyError as error:
        raise _Refused(f"{command}: nothing known of {error}") from error
    return _report(venues, command, request, stop)


def _report(
    venues: SimVenues, command: object, request: Mapping[str, Any], stop: Callable[[], None]
) -> object:
    ledger = venues.ledger
    if command == "faults":
        return msgspec.to_builtins(ledger.faults(str(request.get("fault", ""))))
    if command == "connections":
        return [log.summary() for log in ledger.connections]
    if command == "summary":
        return venues.summary()
    if command == "dump":
        ledger.dump(Path(str(request.get("folder", "."))))
        return None
    if command == "stop":
        stop()
        return None
    raise _Refused(f"no command {command!r} (there are: {_KNOWN})")


def _ids(venues: SimVenues, series: list[str], what: str) -> dict[int, list[int]]:
    if len(series) != 4 or series[3] not in KIND_BY_LABEL:
        raise _Refused("series is [venue, product, symbol, kind]")
    key = SeriesKey(series[0], series[1], series[2], KIND_BY_LABEL[series[3]])
    ledger = venues.ledger
    views = {
        "produced": ledger.produced,
        "delivered": ledger.delivered,
        "gaps": ledger.truth_gaps,
    }
    if what not in views:
        raise _Refused(f"what is one of {', '.join(views)}")
    return {generation: ids.tolist() for generation, ids in views[what](key).items()}
