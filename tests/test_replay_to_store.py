"""Recorded frames, replayed by the simulated venue into the gateway: every field in the store
equals what a decimal parse of the recording says.

The expectation is computed here from the JSON text with `Decimal`, without any of K4's codecs; the
store is read by a program that knows only its layout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from plain_reader import read_store, update_num

RUNNER = Path(sys.executable).parent / "k4-runner"
SAMPLES = Path(__file__).parents[1] / "packages/k4-md/tests/vectors/samples"
Json = dict[str, Any]
Record = tuple[object, ...]


def number(text: str) -> float:
    return float(Decimal(text))


def us(payload: Json) -> tuple[int, int]:
    return payload.get("E", 0) * 1000, payload.get("T", 0) * 1000


def quote(m: Json) -> Record:
    sides = (number(m["b"]), number(m["B"]), number(m["a"]), number(m["A"]))
    return (*us(m), m["u"], *sides, 0, 0)


def trade(m: Json) -> Record:
    return (*us(m), m["t"], number(m["p"]), number(m["q"]), int(m["m"]))


def of_type(name: str) -> Callable[[Json], bool]:
    return lambda m: m.get("e") == name


def is_quote(m: Json) -> bool:
    return "u" in m and "A" in m


# The recorded aggTrade of USD-M is not among them: its origin left the aggregate's id out.
CASES = [
    ("binance-spot-bookTicker-2026-08", "spot", "bbo", is_quote, quote),
    ("binance-spot-bookTicker-combined-2019-2022", "spot", "bbo", is_quote, quote),
    ("binance-spot-trade-combined-2019-2022", "spot", "trade", of_type("trade"), trade),
    ("binance-um-bookTicker-combined-2019-2022", "ubase", "bbo", is_quote, quote),
    ("binance-um-trade-combined-2019-2022", "ubase", "trade", of_type("trade"), trade),
    ("binance-cm-bookTicker-combined-2019-2022", "cbase", "bbo", is_quote, quote),
    ("binance-cm-trade-combined-2019-2022", "cbase", "trade", of_type("trade"), trade),
]


def recorded(name: str, wanted: Callable[[Json], bool]) -> list[Json]:
    frames = [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text().splitlines()]
    payloads = [frame.get("data", frame) for frame in frames if "result" not in frame]
    return [payload for payload in payloads if wanted(payload)]


@pytest.mark.parametrize(("name", "product", "kind", "wanted", "expect"), CASES)
def test_a_recording_arrives_to_the_last_digit(
    tmp_path: Path,
    name: str,
    product: str,
    kind: str,
    wanted: Callable[[Json], bool],
    expect: Callable[[Json], Record],
) -> None:
    payloads = recorded(name, wanted)
    symbols = list(dict.fromkeys(payload["s"] for payload in payloads))
    command = [RUNNER, "sim", "--venue", "binance", "--replay", SAMPLES / f"{name}.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sim:
        assert sim.stdout is not None
        endpoints = json.loads(sim.stdout.readline())["endpoints"]["binance"]
        store = f"replay_{os.getpid()}_{kind}"
        prefix = "cbase_" if product == "cbase" else ""
        section = {f"{prefix}{kind}_shm_name": store}
        if product == "spot":
            sections: Json = {"spot": {"symbols": symbols, **section}}
        else:
            sections = {"futures": {f"{product}_symbols": symbols, **section}}
        connection = {"exchange": "binance", "md_size": 16, "metadata": "off", **sections}
        config = tmp_path / "replay.json"
        config.write_text(json.dumps({"connections": [{**connection, "endpoints": endpoints}]}))
        command = [RUNNER, "run", config, "--log-level", "error"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as gateway:
            try:
                deadline = time.monotonic() + 30
                while update_num(store) < len(payloads):
                    assert time.monotonic() < deadline, update_num(store)
                    os.sched_yield()
                found = {one.symbol: one.records for one in read_store(store)}
            finally:
                gateway.send_signal(signal.SIGINT)
                sim.send_signal(signal.SIGINT)
                gateway.wait(10)
                sim.wait(10)
                Path("/dev/shm", store).unlink(missing_ok=True)
    types = {"spot": 0, "ubase": 2, "cbase": 3}
    for symbol in symbols:
        head = (symbol.encode().ljust(32, b"\0"), types[product])
        expected = [(*head, *expect(m)) for m in payloads if m["s"] == symbol]
        assert [record[:-1] for record in found[symbol]] == expected
