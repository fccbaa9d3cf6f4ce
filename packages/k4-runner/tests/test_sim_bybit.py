"""The simulated Bybit speaks the documented protocol, its frames are the ledger's rows, and what K4
stores from it is what it sent.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
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
from k4.md.exchanges.bybit import EXCHANGE
from k4.md.module import MdModule
from k4.md.report import stream_figures
from k4.md.symbols import resolve
from k4.runner.sim import ws
from k4.runner.sim.ledger import SeriesKey
from k4.runner.sim.market import Pace
from k4.runner.sim.replay import ReplaySpec
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

REST = Pace(start=False)
SAMPLES = Path(__file__).parents[2] / "k4-md" / "tests" / "vectors" / "samples"
QUOTES, TRADES, BOOKS = "orderbook.1.BTCUSDT", "publicTrade.BTCUSDT", "orderbook.50.BTCUSDT"


@asynccontextmanager
async def bybit(
    *, faults: tuple[Json, ...] = (), pace: Pace = REST, replay: str = "", **changes: Any
) -> AsyncIterator[SimVenues]:
    """A simulated Bybit, whose market waits for `emit` unless a pace is given."""
    venue = VenueSpec(name="bybit", pace=pace, cadence_scale=10.0, **changes)
    recording = ReplaySpec(file=replay, venue="bybit", rate=0.0, settle=0.05) if replay else None
    spec = SimSpec(venues=(venue,), seed=7, faults=faults, replay=recording)
    async with SimVenues(spec) as venues:
        yield venues


def dial(venues: SimVenues, category: str = "spot") -> connect:
    return connect(venues.endpoints("bybit")[category], ping_interval=None, max_queue=None)


async def receive(client: ClientConnection) -> Json:
    found: Json = json.loads(await client.recv())
    return found


async def ask(client: ClientConnection, op: str, *topics: str, id: object = "1") -> None:
    await client.send(json.dumps({"req_id": id, "op": op, "args": topics}))


def table(venues: SimVenues, product: str, kind: Kind) -> list[Json]:
    rows = venues.ledger.table(SeriesKey("bybit", product, "BTCUSDT", kind))
    return [{name: row[name].tolist() for name in rows.dtype.names or ()} for row in rows]


# Requests.


@pytest.mark.parametrize(("category", "said"), [("spot", "subscribe"), ("linear", "")])
async def test_a_request_is_acked_once_and_the_books_follow(category: str, said: str) -> None:
    async with bybit() as venues, dial(venues, category) as client:
        await ask(client, "subscribe", QUOTES, TRADES, BOOKS, id=7)
        ack, first, second = [await receive(client) for _ in range(3)]

        assert list(ack) == ["success", "ret_msg", "conn_id", "req_id", "op"]
        assert (ack["success"], ack["ret_msg"], ack["req_id"]) == (True, said, "7")
        assert (first["topic"], first["type"]) == (QUOTES, "snapshot")
        assert (second["topic"], second["type"]) == (BOOKS, "snapshot")
        assert (len(first["data"]["b"]), len(second["data"]["b"])) == (1, 50)

        await ask(client, "unsubscribe", TRADES, id="8")
        answer = await receive(client)
        assert (answer["success"], answer["ret_msg"], answer["op"]) == (True, "", "unsubscribe")


@pytest.mark.parametrize(
    ("category", "request_text", "said"),
    [
        ("spot", "nonsense", "error:handler not found"),
        ("spot", '{"op":"subscribe"}', "error:handler not found"),
        ("linear", '{"op":"buy","args":[]}', "error:handler not found"),
        ("linear", '{"op":"subscribe","args":["tickers.BTCUSDT"]}', "error:handler not found"),
        (
            "linear",
            f'{{"op":"subscribe","args":["{TRADES}","orderbook.1.NOPEUSDT"]}}',
            "Invalid symbol :[orderbook.1.NOPEUSDT]",
        ),
    ],
)
async def test_what_is_wrong_refuses_the_whole_request(
    category: str, request_text: str, said: str
) -> None:
    async with bybit() as venues, dial(venues, category) as client:
        await client.send(request_text)
        answer = await receive(client)

        assert (answer["success"], answer["ret_msg"]) == (False, said)
        (server,) = venues.server("bybit").clients
        assert not server.topics


async def test_spot_takes_ten_args_a_request() -> None:
    symbols = tuple(f"S{i}USDT" for i in range(11))
    topics = [f"publicTrade.{symbol}" for symbol in symbols]
    async with bybit(products={"spot": symbols, "linear": symbols}) as venues:
        async with dial(venues, "spot") as client:
            await ask(client, "subscribe", *topics)
            assert (await receive(client))["ret_msg"] == "args size >10"
            await ask(client, "subscribe", *topics[:10])
            assert (await receive(client))["success"]
        async with dial(venues, "linear") as client:
            await ask(client, "subscribe", *topics)
            assert (await receive(client))["success"]


async def test_a_connection_takes_21000_characters_of_args() -> None:
    symbols = tuple(f"A{i:04}LONGSYMBOLUSDT" for i in range(700))
    topics = [f"publicTrade.{symbol}" for symbol in symbols]
    fitting = 21_000 // len(json.dumps(topics[0]) + ",")
    async with bybit(products={"linear": symbols}) as venues, dial(venues, "linear") as client:
        await ask(client, "subscribe", *topics[: fitting - 1])
        assert (await receive(client))["success"]
        await ask(client, "subscribe", *topics[fitting - 1 : fitting + 1])
        assert not (await receive(client))["success"]


async def test_only_the_documented_paths_are_served() -> None:
    async with bybit() as venues:
        url = venues.endpoints("bybit")["spot"].replace("spot", "option")
        with pytest.raises(InvalidStatus):
            await connect(url)


# Life.


@pytest.mark.parametrize(
    ("category", "keys"),
    [
        ("spot", ["success", "ret_msg", "conn_id", "op"]),
        ("linear", ["success", "ret_msg", "conn_id", "req_id", "op"]),
    ],
)
async def test_a_ping_is_answered_as_its_category_does(category: str, keys: list[str]) -> None:
    async with bybit() as venues, dial(venues, category) as client:
        await client.send('{"req_id":"100001","op":"ping"}')
        answer = await receive(client)
        assert list(answer) == keys
        assert (answer["ret_msg"], answer["op"]) == ("pong", "ping")
        assert answer.get("req_id", "100001") == "100001"


async def test_a_connection_without_data_or_ping_is_closed_after_ten_minutes() -> None:
    async with bybit(scale=3000.0) as venues, dial(venues) as client:
        with pytest.raises(ConnectionClosed):
            await client.recv()
    async with (
        bybit(scale=3000.0) as venues,
        await Raw.open(venues.endpoints("bybit")["spot"]) as raw,
    ):
        began = venues.clock.monotonic()
        while venues.clock.monotonic() < began + 0.4:  # 0.2 s is the scaled limit
            raw.send(ws.TEXT, b'{"op":"ping"}')
            assert b"pong" in await raw.until(ws.TEXT)
        assert venues.server("bybit").clients


async def test_an_unchanged_quote_is_repeated_under_its_u() -> None:
    async with bybit(scale=60.0) as venues, dial(venues) as client:
        await ask(client, "subscribe", QUOTES, BOOKS)
        frames = [await receive(client) for _ in range(6)]
        topics = [frame["topic"] for frame in frames[1:]]
        assert topics.count(BOOKS) == 1
        assert len({f["data"]["u"] for f in frames[1:] if f["topic"] == QUOTES}) == 1
        assert len(table(venues, "spot", Kind.BOOKTICKER)) == 1


async def test_after_a_restart_u_is_one_and_the_book_is_whole() -> None:
    async with bybit() as venues, dial(venues, "linear") as client:
        await ask(client, "subscribe", QUOTES, BOOKS)
        before = {(f := await receive(client)).get("topic"): f for _ in range(3)}
        venues.inject({"fault": "id_reset"})
        for _ in range(2):
            frame = await receive(client)
            assert (frame["data"]["u"], frame["type"]) == (1, "snapshot")
            assert frame["cts"] > before[frame["topic"]]["cts"]
            assert len(frame["data"]["a"]) == len(before[frame["topic"]]["data"]["a"])


# Frames.


async def test_deltas_rebuild_the_book_that_a_new_subscriber_gets() -> None:
    async with (
        bybit(products={"linear": ("BTCUSDT",)}) as venues,
        dial(venues, "linear") as client,
        dial(venues, "linear") as late,
    ):
        await ask(client, "subscribe", BOOKS)
        await receive(client)
        frame = await receive(client)
        sides: dict[str, dict[Decimal, str]] = {"b": {}, "a": {}}
        numbers = []
        deltas = 0
        while deltas < 30:
            deltas += frame["type"] == "delta"
            numbers.append(frame["data"]["u"])
            for side, levels in sides.items():
                for price, size in frame["data"][side]:
                    levels[Decimal(price)] = size
                    if not Decimal(size):
                        del levels[Decimal(price)]
                assert len(levels) == 50
            venues.emit("bybit", 30)
            frame = await receive(client)
        assert [b - a for a, b in pairwise(numbers)] == [1] * (len(numbers) - 1)

        await ask(late, "subscribe", BOOKS)
        await receive(late)
        whole = await receive(late)
        while frame["data"]["u"] < whole["data"]["u"]:
            frame = await receive(client)
        for side, reverse in (("b", True), ("a", False)):
            levels = sides[side]
            for price, size in frame["data"][side]:
                levels[Decimal(price)] = size
                if not Decimal(size):
                    del levels[Decimal(price)]
            expected = [[Decimal(p), s] for p, s in whole["data"][side]]
            assert expected == [[p, levels[p]] for p in sorted(levels, reverse=reverse)]


@pytest.mark.parametrize(
    ("category", "heads", "item"),
    [
        (
            "spot",
            {
                QUOTES: ["topic", "ts", "type", "data", "cts"],
                TRADES: ["topic", "ts", "type", "data"],
                BOOKS: ["topic", "ts", "type", "data", "cts"],
            },
            ["i", "T", "p", "v", "S", "seq", "s", "BT", "RPI"],
        ),
        (
            "linear",
            {
                QUOTES: ["topic", "ts", "type", "data", "cts"],
                TRADES: ["topic", "type", "ts", "data"],
                BOOKS: ["topic", "type", "ts", "data", "cts"],
            },
            ["T", "s", "S", "v", "p", "L", "i", "BT", "RPI", "seq"],
        ),
    ],
)
async def test_pushes_have_the_captured_shape_and_are_the_ledgers_rows(
    category: str, heads: dict[str, list[str]], item: list[str]
) -> None:
    async with bybit(products={category: ("BTCUSDT",)}) as venues, dial(venues, category) as client:
        await ask(client, "subscribe", QUOTES, TRADES, BOOKS)
        await receive(client)
        pushes: dict[str, list[Json]] = {topic: [] for topic in heads}
        trades: list[tuple[Json, Json]] = []
        while min(map(len, pushes.values())) < 5:
            frame = await receive(client)
            assert list(frame) == heads[frame["topic"]]
            pushes[frame["topic"]].append(frame)
            if frame["topic"] == BOOKS:
                venues.emit("bybit", 20)
        for frame in pushes[TRADES]:
            trades += [(frame, found) for found in frame["data"]]
        assert list(trades[0][1]) == item
        scale, size_scale = 2, 5 if category == "spot" else 3
        for (frame, found), row in zip(trades, table(venues, category, Kind.TRADE), strict=False):
            assert row["price"] == Decimal(found["p"]).scaleb(scale)
            assert row["vol"] == Decimal(found["v"]).scaleb(size_scale)
            assert row["is_buyer_maker"] == (found["S"] == "Sell")
            assert (row["event_us"], row["trade_us"]) == (frame["ts"] * 1000, found["T"] * 1000)
            assert found["s"] == "BTCUSDT"
            if category == "spot":
                assert row["id"] == int(found["i"])
            else:
                assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f-]{21}", found["i"])
        for frame, row in zip(
            pushes[QUOTES], table(venues, category, Kind.BOOKTICKER), strict=False
        ):
            data = frame["data"]
            assert row["id"] == data["u"]
            assert (row["event_us"], row["trade_us"]) == (frame["ts"] * 1000, frame["cts"] * 1000)
            assert row["bid_price"] == Decimal(data["b"][0][0]).scaleb(scale)
            assert row["ask_vol"] == Decimal(data["a"][0][1]).scaleb(size_scale)


async def test_recorded_frames_are_sent_as_they_are() -> None:
    file = SAMPLES / "bybit-v5-linear-publicTrade-2026-08.jsonl"
    async with bybit(replay=str(file)) as venues, dial(venues, "linear") as client:
        await ask(client, "subscribe", TRADES)
        await receive(client)
        got = [await client.recv() for _ in range(2)]
        assert got == file.read_text().splitlines()[1:]


# Metadata.


async def test_instruments_are_listed_page_by_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    symbols = tuple(f"S{i}USDT" for i in range(7))
    async with (
        bybit(products={"linear": ("BTCUSDC", *symbols), "spot": ("BTCUSDT",)}) as venues,
        aiohttp.ClientSession() as http,
    ):
        base = venues.endpoints("bybit")["rest"] + "/v5/market/instruments-info"
        found: list[str] = []
        cursor = ""
        for _ in range(3):
            query = {"category": "linear", "limit": "3", "cursor": cursor}
            async with http.get(base, params=query) as response:
                result = (await response.json())["result"]
            found += [entry["symbol"] for entry in result["list"]]
            cursor = result["nextPageCursor"]
        assert (found, cursor) == (["BTCPERP", *symbols], "")
        async with http.get(base, params={"category": "bonds"}) as response:
            assert (await response.json())["retCode"] == 10001

        endpoints = {key: (url,) for key, url in venues.endpoints("bybit").items()}
        config = ConnectionConfig(
            exchange="bybit",
            endpoints=endpoints,
            products=(
                ProductConfig(name="linear", symbols=("BTCUSDC", "S6USDT")),
                ProductConfig(name="spot", symbols=("BTCUSDT",)),
            ),
        )
        resolution = await resolve(EXCHANGE, config, clock=SystemClock(), cache_dir=tmp_path)
        assert resolution.symbols == {
            ("linear", "BTCUSDC"): "BTCPERP",
            ("linear", "S6USDT"): "S6USDT",
            ("spot", "BTCUSDT"): "BTCUSDT",
        }
        assert resolution.instruments["linear", "BTCUSDC"].tick == "0.10"


# K4 against it.


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A prefix for stores that are removed afterwards, and a cache of symbols of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prefix = f"k4test_bybit_{os.getpid()}_"
    yield prefix
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        path.unlink()


KINDS = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)


@asynccontextmanager
async def gateway(
    venues: SimVenues, product: str, names: dict[Kind, str], lines: int
) -> AsyncIterator[MdModule]:
    endpoints = {key: (url,) for key, url in venues.endpoints("bybit").items()}
    section = ProductConfig(name=product, symbols=("BTCUSDT",), lines=lines, stores=names)
    config = ConnectionConfig(
        exchange="bybit", md_size=8192, endpoints=endpoints, products=(section,)
    )
    module = MdModule(
        config,
        [product],
        clock=SystemClock(),
        counters=MemoryCounters(clock=SystemClock()),
        budget=LocalBudget(500, 300.0),
        rng=random.Random(1),
    )
    await module.prepare()
    module.start()
    server = venues.server("bybit")
    await until(lambda: sum(len(c.topics) for c in server.clients) == len(names) * lines)
    try:
        yield module
    finally:
        await module.stop()


async def moved(venues: SimVenues, key: SeriesKey) -> None:
    """Let the market move until its book was pushed once more, and everything arrive."""
    before = venues.ledger.series(key).rows
    venues.emit("bybit", 20)
    await until(lambda: venues.ledger.series(key).rows > before)
    assert await venues.settle()


def figures_of(module: MdModule) -> dict[str, int]:
    assert module.engine is not None
    (group,) = module.engine.groups
    (stream,) = group.streams
    return stream_figures(group, stream) | stream.counts


@pytest.mark.parametrize("product", ["spot", "linear"])
async def test_stores_hold_what_was_sent_though_each_line_loses_some(
    stores: str, product: str
) -> None:
    faults = tuple(
        {"fault": "drop", "probability": 0.04, "target": {"line": line, "kind": kind}}
        for line in (0, 1)
        for kind in ("trade", "bbo", "depth5")
    )
    names = {kind: stores + kind.label for kind in KINDS}
    async with bybit(products={product: ("BTCUSDT",)}, faults=faults) as venues:
        async with gateway(venues, product, names, lines=2) as module:
            for _ in range(60):
                venues.emit("bybit", 10)
                assert await venues.settle()
            figures = figures_of(module)

        series = {kind: SeriesKey("bybit", product, "BTCUSDT", kind) for kind in KINDS}
        assert venues.ledger.faults("drop")
        rows = venues.ledger.table(series[Kind.TRADE])
        delivered = venues.ledger.delivered_rows(series[Kind.TRADE])
        reader = ShmMdReader(names[Kind.TRADE])
        trades = reader.since("BTCUSDT", 0).records
        reader.close()
        assert sorted(trades["trade_id"].tolist()) == sorted(rows["id"][delivered].tolist())
        by_id = {int(record["trade_id"]): record for record in trades}
        size = 10 ** (5 if product == "spot" else 3)
        for row in rows[delivered]:
            record = by_id[int(row["id"])]
            assert record["price"] == float(Decimal(int(row["price"])) / 100)
            assert record["vol"] == float(Decimal(int(row["vol"])) / size)
            assert record["trade_timestamp_us"] == row["trade_us"]

        assert figures["broken"] > 0
        for kind in (Kind.BOOKTICKER, Kind.DEPTH5):
            rows = venues.ledger.table(series[kind])
            sent = rows[venues.ledger.delivered_rows(series[kind])]
            reader = ShmMdReader(names[kind])
            books = reader.since("BTCUSDT", 0).records
            reader.close()
            stored = books["update_id"].tolist()
            assert stored == sorted(set(stored))
            assert set(stored) <= set(sent["id"].tolist())
            assert stored[-1] == sent["id"][-1]
            by_update = {int(row["id"]): row for row in rows}
            if kind is Kind.DEPTH5:
                for book in books:
                    truth = by_update[int(book["update_id"])]["bid_prices"]
                    assert book["bid_prices"].tolist() == [float(p) / 100 for p in truth]


async def test_what_no_line_got_is_counted_as_the_ledger_counts_it(stores: str) -> None:
    """Both lines lose the same deltas: `u` proves each of them, and none is invented."""
    names = {Kind.DEPTH5: stores + "depth5"}
    async with (
        bybit(products={"linear": ("BTCUSDT",)}) as venues,
        gateway(venues, "linear", names, lines=2) as module,
    ):
        key = SeriesKey("bybit", "linear", "BTCUSDT", Kind.DEPTH5)
        for turn in range(40):
            if turn % 10 == 4:
                venues.inject({"fault": "drop", "limit": 2, "target": {"kind": "depth5"}})
            await moved(venues, key)
        figures = figures_of(module)
        gaps = sum(len(ids) for ids in venues.ledger.truth_gaps(key).values())
        reader = ShmMdReader(names[Kind.DEPTH5])
        stored = reader.since("BTCUSDT", 0).records["update_id"]
        reader.close()
        assert len(venues.ledger.faults("drop")) == 8
        assert figures["lost"] == gaps == 4
        assert figures["broken"] == 8
        assert np.all(np.diff(stored.astype(np.int64)) > 0)


async def test_a_restart_of_the_venue_silences_nothing(stores: str) -> None:
    names = {kind: stores + kind.label for kind in KINDS}
    async with (
        bybit(products={"linear": ("BTCUSDT",)}) as venues,
        gateway(venues, "linear", names, lines=2) as module,
    ):
        key = SeriesKey("bybit", "linear", "BTCUSDT", Kind.DEPTH5)
        for turn in range(30):
            if turn == 10:
                venues.inject({"fault": "id_reset"})
            await moved(venues, key)
        figures = figures_of(module)
        reader = ShmMdReader(names[Kind.DEPTH5])
        stored = reader.since("BTCUSDT", 0).records["update_id"].tolist()
        reader.close()
        at = stored.index(1)
        assert stored[:at] == sorted(stored[:at])
        assert stored[at:] == list(range(1, len(stored) - at + 1))
        assert stored[-1] == venues.ledger.table(key)["id"][-1]
        assert (figures["resets"], figures["lost"]) == (2, 0)  # the quote's and the book's
