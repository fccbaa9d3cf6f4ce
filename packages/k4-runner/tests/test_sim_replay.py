"""Recorded frames go out again as they were, to whoever subscribed their streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sim_client import Json, ask, dial

from k4.core.errors import ConfigError
from k4.runner.sim.replay import Recorded, ReplaySpec, load
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

DATA = Path(__file__).parent / "data"


def replaying(file: Path, **changes: Any) -> SimVenues:
    replay = ReplaySpec(file=str(file), settle=0.05, **{"rate": 0.0, **changes})
    return SimVenues(SimSpec(venues=(VenueSpec(name="binance"),), replay=replay))


def samples(name: str) -> list[Json]:
    """The data frames of a sample, without their wrapper."""
    frames = [json.loads(line) for line in (DATA / name).read_bytes().splitlines()]
    return [frame.get("data", frame) for frame in frames if "result" not in frame]


@pytest.mark.parametrize("combined", [True, False])
@pytest.mark.parametrize(
    ("name", "endpoint", "streams"),
    [
        ("binance-spot-bookTicker-2026-08.jsonl", "spot", ["btcusdt@bookTicker"]),
        ("binance-spot-trade-combined-2019-2022.jsonl", "spot", ["bnbbtc@trade"]),
        (
            "binance-um-docs-shape-nautilus.jsonl",
            "ubase_public",
            [
                "btcusdt@aggTrade",
                "bnbusdt@bookTicker",
                "btcusdt@depth5@100ms",
                "btcusdt@trade",
            ],
        ),
        ("binance-cm-bookTicker-combined-2019-2022.jsonl", "cbase", ["bnbusd_perp@bookTicker"]),
    ],
)
async def test_samples_arrive_as_recorded(
    name: str, endpoint: str, streams: list[str], combined: bool
) -> None:
    async with replaying(DATA / name) as venues, dial(venues, endpoint) as socket:
        await ask(socket, "SET_PROPERTY", "combined", combined)
        await ask(socket, "SUBSCRIBE", *streams)
        expected = samples(name)
        got = [json.loads(await socket.recv()) for _ in expected]
        if combined:
            assert {frame["stream"] for frame in got} == set(streams)
            got = [frame["data"] for frame in got]
        assert got == expected
        assert venues.replay is not None
        await venues.replay.done.wait()
        assert venues.summary()["replay"]["sent"] == len(expected)


async def test_what_nobody_subscribed_is_counted() -> None:
    name = "binance-um-docs-shape-nautilus.jsonl"
    async with replaying(DATA / name) as venues, dial(venues, "ubase_public") as socket:
        await ask(socket, "SUBSCRIBE", "btcusdt@trade")
        assert json.loads(await socket.recv())["data"]["e"] == "trade"
        assert venues.replay is not None
        await venues.replay.done.wait()
        assert venues.summary()["replay"] == {"sent": 1, "unmatched": 3}


async def test_recorded_times_set_the_pace(tmp_path: Path) -> None:
    file = tmp_path / "timed.jsonl"
    trade = '{"e":"trade","E":%d,"s":"BTCUSDT","t":%d}'
    lines = [
        json.dumps({"received_ns": 10**18 + at * 10**8, "frame": trade % (at, at)})
        for at in range(4)
    ]
    file.write_text("\n".join(lines) + "\n")
    assert load(file)[1] == Recorded((trade % (1, 1)).encode(), 10**18 + 10**8)
    async with replaying(file, speed=2.0) as venues, dial(venues, "spot") as socket:
        await ask(socket, "SUBSCRIBE", "btcusdt@trade")
        await socket.recv()
        start = venues.clock.monotonic()
        ids = [json.loads(await socket.recv())["data"]["t"] for _ in range(3)]
        assert ids == [1, 2, 3]
        assert venues.clock.monotonic() - start >= 0.14  # 0.3 s, twice as fast


def test_bad_recordings_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        replaying(tmp_path / "missing.jsonl")
    file = tmp_path / "bad.jsonl"
    file.write_text('{"a":1}\n{broken\n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl:2: no JSON"):
        replaying(file)
    file.write_text("{}\n")
    with pytest.raises(ConfigError, match=r"replay\.venue: 'okx' is not among"):
        replaying(file, venue="okx")
