"""The simulated OKX speaks the documented protocol, its frames are the ledger's rows, and what K4
stores from it is what it sent.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sim_client import Json, Raw, until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from k4.core.clock import SystemClock
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.counters import MemoryCounters
from k4.core.enums import Kind
from k4.core.retry import LocalBudget
from k4.core.shm import ShmMdReader
from k4.md.exchanges.okx.feeds import LIMITS
from k4.md.module import MdModule
from k4.runner.sim import ws
from k4.runner.sim.ledger import SeriesKey
from k4.runner.sim.market import Pace
from k4.runner.sim.okx_feeds import decimal_text, orders_at
from k4.runner.sim.replay import ReplaySpec
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

REST = Pace(start=False)
SAMPLES = Path(__file__).parents[2] / "k4-md" / "tests" / "vectors" / "samples"


@asynccontextmanager
async def okx(
    *, faults: tuple[Json, ...] = (), pace: Pace = REST, replay: str = "", **changes: Any
) -> AsyncIterator[SimVenues]:
    """A simulated OKX, whose market waits for `emit` unless a pace is given."""
    venue = VenueSpec(name="okx", pace=pace, cadence_scale=10.0, **changes)
    recording = ReplaySpec(file=replay, venue="okx", rate=0.0, settle=0.05) if replay else None
    spec = SimSpec(venues=(venue,), seed=7, faults=faults, replay=recording)
    async with SimVenues(spec) as venues:
        yield venues


def dial(venues: SimVenues, endpoint: str = "public") -> connect:
    return connect(venues.endpoints("okx")[endpoint], ping_interval=None, max_queue=None)


async def receive(client: ClientConnection) -> Json:
    found: Json = json.loads(await client.recv())
    return found


async def ask(client: ClientConnection, op: str, *topics: str, id: str = "") -> None:
    args = [dict(zip(("channel", "instId"), topic.split(":"), strict=True)) for topic in topics]
    await client.send(json.dumps(({"id": id} if id else {}) | {"op": op, "args": args}))


def table(venues: SimVenues, product: str, symbol: str, kind: Kind) -> list[Json]:
    rows = venues.ledger.table(SeriesKey("okx", product, symbol, kind))
    return [{name: row[name].tolist() for name in rows.dtype.names or ()} for row in rows]


# Requests.


async def test_each_arg_is_acked_and_a_book_follows_its_ack() -> None:
    async with okx() as venues, dial(venues) as client:
        await ask(client, "subscribe", "bbo-tbt:BTC-USDT", "trades:BTC-USDT", id="3000")
        first, snapshot, second = [await receive(client) for _ in range(3)]

        assert list(first) == ["id", "event", "arg", "connId"]
        assert first["arg"] == {"channel": "bbo-tbt", "instId": "BTC-USDT"}
        assert snapshot["arg"] == first["arg"]
        assert second["arg"]["channel"] == "trades"
        assert (first["id"], first["connId"]) == ("3000", second["connId"])

        await ask(client, "unsubscribe", "trades:BTC-USDT")
        answer = await receive(client)
        assert list(answer) == ["event", "arg", "connId"]
        assert answer["event"] == "unsubscribe"


@pytest.mark.parametrize(
    ("request_text", "code", "text"),
    [
        ("nonsense", "60012", "Invalid request: nonsense"),
        ('{"id":"1","op":"subscribe","argss":[]}', "60012", "Invalid request: "),
        ('{"op":"subscribe","args":[{"channel":"trades"}]}', "60013", "Invalid args"),
        ('{"id":"no spaces","op":"subscribe","args":[]}', "60013", "Invalid args"),
        ('{"op":"buy","args":[{}]}', "60019", "Invalid op"),
        (
            '{"op":"subscribe","args":[{"channel":"bbo-tbt","instId":"NOPE-USDT"}]}',
            "60018",
            "Wrong URL or channel:bbo-tbt,instId:NOPE-USDT doesn't exist. Please use the correct"
            " URL, channel and parameters referring to API document.",
        ),
        (
            '{"op":"subscribe","args":[{"channel":"trades-all","instId":"BTC-USDT"}]}',
            "60018",
            "Wrong URL or channel:trades-all,instId:BTC-USDT doesn't exist.",
        ),
    ],
)
async def test_what_is_wrong_is_answered_with_its_code(
    request_text: str, code: str, text: str
) -> None:
    async with okx() as venues, dial(venues) as client:
        await client.send(request_text)
        answer = await receive(client)

        assert (answer["event"], answer["code"]) == ("error", code)
        assert answer["msg"].startswith(text)


async def test_a_wrong_arg_does_not_spoil_the_others() -> None:
    async with okx() as venues, dial(venues) as client:
        await ask(client, "subscribe", "trades:NOPE-USDT", "trades:BTC-USDT")

        assert [(await receive(client))["event"] for _ in range(2)] == ["error", "subscribe"]


async def test_more_than_64_kib_of_args_or_480_requests_an_hour_are_refused() -> None:
    async with okx() as venues, dial(venues) as client:
        await ask(client, "subscribe", *[f"trades:SYMBOL{i:06}-USDT" for i in range(2000)])
        assert (await receive(client))["code"] == "60013"

        for _ in range(479):
            await ask(client, "unsubscribe", "trades:BTC-USDT")
            assert (await receive(client))["event"] == "unsubscribe"
            await client.send("ping")  # no request
            assert await client.recv() == "pong"
        await ask(client, "unsubscribe", "trades:BTC-USDT")
        assert (await receive(client))["code"] == "60014"


async def test_only_the_documented_paths_are_served() -> None:
    async with okx() as venues:
        url = venues.endpoints("okx")["public"].replace("public", "private")
        with pytest.raises(InvalidStatus):
            await connect(url)


# Life.


async def test_a_connection_without_data_or_ping_is_closed_with_4004() -> None:
    async with okx(scale=100.0) as venues, dial(venues) as client:
        with pytest.raises(ConnectionClosed) as caught:
            await client.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4004


async def test_pings_keep_a_quiet_connection_open() -> None:
    async with (
        okx(scale=100.0) as venues,
        await Raw.open(venues.endpoints("okx")["public"]) as client,
    ):
        began = venues.clock.monotonic()
        while venues.clock.monotonic() < began + 0.5:  # 0.3 s is the scaled limit
            client.send(ws.TEXT, b"ping")
            assert await client.until(ws.TEXT) == b"pong"
        assert venues.server("okx").clients


async def test_an_unchanged_book_is_repeated_under_its_number() -> None:
    async with okx(scale=300.0) as venues, dial(venues) as client:
        await ask(client, "subscribe", "books5:BTC-USDT")
        assert (await receive(client))["event"] == "subscribe"
        pushes: list[str | bytes] = []
        while len(pushes) < 3:
            await client.send("ping")  # a repeat comes too seldom to keep the connection open
            frame = await client.recv()
            pushes += [frame] if frame != "pong" else []

        assert pushes[0] == pushes[1] == pushes[2]
        assert len(table(venues, "spot", "BTCUSDT", Kind.DEPTH5)) == 1


async def test_the_notice_of_an_upgrade_is_code_64008() -> None:
    async with okx() as venues, dial(venues) as client:
        await ask(client, "subscribe", "trades:BTC-USDT")
        await receive(client)
        venues.inject({"fault": "shutdown", "grace": 0.05})
        notice = await receive(client)

        assert (notice["event"], notice["code"]) == ("notice", "64008")
        with pytest.raises(ConnectionClosed):
            await client.recv()


async def test_after_an_id_reset_the_numbers_are_smaller() -> None:
    async with okx() as venues, dial(venues) as client:
        await ask(client, "subscribe", "books5:BTC-USDT-SWAP")
        await receive(client)
        before = (await receive(client))["data"][0]["seqId"]
        venues.inject({"fault": "id_reset"})

        assert (await receive(client))["data"][0]["seqId"] < before


# Frames.


async def test_pushes_have_the_captured_shape_and_are_the_ledgers_rows() -> None:
    topics = [f"{channel}:BTC-USDT-SWAP" for channel in ("bbo-tbt", "trades", "books5")]
    async with okx(products={"swap": ("BTCUSDT",)}) as venues, dial(venues) as client:
        await ask(client, "subscribe", *topics)
        (server,) = venues.server("okx").clients
        await until(lambda: len(server.topics) == 3)
        venues.emit("okx", 400)
        pushes: dict[str, list[Json]] = {"bbo-tbt": [], "trades": [], "books5": []}
        while min(map(len, pushes.values())) < 2 or len(pushes["trades"]) < 40:
            frame = await receive(client)
            if "event" not in frame:
                assert list(frame) == ["arg", "data"]
                pushes[frame["arg"]["channel"]] += frame["data"]

        assert list(pushes["bbo-tbt"][0]) == ["asks", "bids", "ts", "seqId"]
        assert list(pushes["books5"][0]) == ["asks", "bids", "instId", "ts", "seqId"]
        fields = ["instId", "tradeId", "px", "sz", "side", "ts", "count", "source", "seqId"]
        assert list(pushes["trades"][0]) == fields
        for push, row in zip(
            pushes["trades"], table(venues, "swap", "BTCUSDT", Kind.TRADE), strict=False
        ):
            id, count = int(push["tradeId"]), int(push["count"])
            assert (row["id"], row["first_id"]) == (id, id - count + 1)
            assert (row["price"], row["vol"]) == (_mantissa(push["px"]), _mantissa(push["sz"]))
            assert row["is_buyer_maker"] == (push["side"] == "sell")
            assert row["event_us"] == row["trade_us"] == int(push["ts"]) * 1000
        for push, row in zip(
            pushes["books5"], table(venues, "swap", "BTCUSDT", Kind.DEPTH5), strict=False
        ):
            assert row["id"] == push["seqId"]
            assert row["bid_prices"] == [_mantissa(level[0]) for level in push["bids"]]
            assert row["ask_vols"] == [_mantissa(level[1]) for level in push["asks"]]
            assert row["ask_counts"] == [int(level[3]) for level in push["asks"]]


def _mantissa(text: str) -> int:
    scaled = Decimal(text) * 100
    assert scaled == int(scaled)
    return int(scaled)


async def test_the_ids_of_merged_trades_follow_each_other() -> None:
    async with okx(products={"spot": ("BTCUSDT",)}) as venues:
        venues.emit("okx", 500)
        rows = table(venues, "spot", "BTCUSDT", Kind.TRADE)
        fills = table(venues, "spot.trades-all", "BTCUSDT", Kind.TRADE)

        assert all(b["first_id"] == a["id"] + 1 for a, b in pairwise(rows))
        assert [row["id"] for row in fills] == list(range(fills[0]["id"], fills[-1]["id"] + 1))
        assert any(row["id"] > row["first_id"] for row in rows)
        assert (rows[0]["first_id"], rows[-1]["id"]) == (fills[0]["id"], fills[-1]["id"])


def test_numbers_have_no_zeros_at_their_end() -> None:
    text = decimal_text(2)
    assert [text(n) for n in (6392150, 6392000, 79041, 8, 10)] == [
        "63921.5",
        "63920",
        "790.41",
        "0.08",
        "0.1",
    ]
    assert 1 <= orders_at((6392150, 79041)) <= 43


async def test_recorded_frames_are_sent_as_they_are() -> None:
    file = SAMPLES / "okx-trades-2026-08.jsonl"
    async with okx(replay=str(file)) as venues, dial(venues) as client:
        await ask(client, "subscribe", "trades:BTC-USDT", "trades:BTC-USDT-SWAP")
        acks = [await receive(client) for _ in range(2)]
        got = [await client.recv() for _ in range(3)]

        assert {ack["event"] for ack in acks} == {"subscribe"}
        assert got == file.read_text().splitlines()[1:]


# Metadata.


async def test_instruments_are_listed_by_type() -> None:
    async with okx() as venues, aiohttp.ClientSession() as http:
        base = venues.endpoints("okx")["rest"] + "/api/v5/public/instruments?instType="
        async with http.get(base + "SWAP") as response:
            swaps = await response.json()
        async with http.get(base + "BONDS") as response:
            wrong = await response.json()

        listed = {entry["instId"]: entry["ctVal"] for entry in swaps["data"]}
        assert listed == {"BTC-USDT-SWAP": "0.01", "BTC-USD-SWAP": "100"}
        assert (swaps["code"], wrong["code"]) == ("0", "51000")


# K4 against it.


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A prefix for stores that are removed afterwards, and a cache of symbols of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prefix = f"k4test_okx_{os.getpid()}_"
    yield prefix
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        path.unlink()


@pytest.mark.parametrize("channel", ["trades", "trades-all"])
async def test_stores_hold_what_was_sent_though_each_line_loses_some(
    stores: str, channel: str
) -> None:
    faults = tuple(
        {"fault": "drop", "probability": 0.05, "target": {"line": line, "kind": kind}}
        for line in (0, 1)
        for kind in ("trade", "bbo", "depth5")
    )
    names = {kind: stores + kind.label for kind in (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)}
    async with okx(products={"swap": ("BTCUSDT",)}, faults=faults) as venues:
        endpoints = {key: (url,) for key, url in venues.endpoints("okx").items()}
        product = ProductConfig(
            name="swap", symbols=("BTCUSDT",), lines=2, stores=names, trades_channel=channel
        )
        config = ConnectionConfig(
            exchange="okx", md_size=8192, endpoints=endpoints, products=(product,)
        )
        module = MdModule(
            config,
            ["swap"],
            clock=SystemClock(),
            counters=MemoryCounters(clock=SystemClock()),
            budget=LocalBudget(LIMITS.connect_attempts, LIMITS.connect_period),
            rng=random.Random(1),
        )
        await module.prepare()
        module.start()
        lines = 4 if channel == "trades-all" else 2
        topics = 6
        server = venues.server("okx")
        await until(lambda: sum(len(c.topics) for c in server.clients) == topics)
        assert len(server.clients) == lines
        for _ in range(60):
            venues.emit("okx", 10)
            assert await venues.settle()
        await module.stop()

        key = "swap.trades-all" if channel == "trades-all" else "swap"
        rows = venues.ledger.table(SeriesKey("okx", key, "BTCUSDT", Kind.TRADE))
        delivered = venues.ledger.delivered_rows(SeriesKey("okx", key, "BTCUSDT", Kind.TRADE))
        reader = ShmMdReader(names[Kind.TRADE])
        trades = reader.since("BTCUSDT", 0).records
        reader.close()
        assert venues.ledger.faults("drop")
        assert sorted(trades["trade_id"].tolist()) == sorted(rows["id"][delivered].tolist())
        by_id = {int(record["trade_id"]): record for record in trades}
        for row in rows[delivered]:
            record = by_id[int(row["id"])]
            assert record["price"] == float(Decimal(int(row["price"])) / 100)
            assert record["vol"] == float(Decimal(int(row["vol"])) / 100)
            assert record["trade_timestamp_us"] == row["trade_us"]
        for kind in (Kind.BOOKTICKER, Kind.DEPTH5):
            reader = ShmMdReader(names[kind])
            books = reader.since("BTCUSDT", 0).records
            reader.close()
            series = SeriesKey("okx", "swap", "BTCUSDT", kind)
            sent = venues.ledger.table(series)["id"][venues.ledger.delivered_rows(series)]
            stored = books["update_id"].tolist()
            assert stored == sorted(set(stored))
            assert set(stored) <= set(sent.tolist())
            assert stored[-1] == sent[-1]
