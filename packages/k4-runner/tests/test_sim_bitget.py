"""The simulated Bitget speaks the documented protocol, its frames are the ledger's rows, and what
K4 stores from it is what it sent.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
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
from k4.md.exchanges.bitget import EXCHANGE
from k4.md.module import MdModule
from k4.md.report import stream_figures
from k4.md.symbols import resolve
from k4.runner.sim import ws
from k4.runner.sim.ledger import Series, SeriesKey
from k4.runner.sim.market import Pace
from k4.runner.sim.replay import ReplaySpec
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

REST = Pace(start=False)
SAMPLES = Path(__file__).parents[2] / "k4-md" / "tests" / "vectors" / "samples"
KINDS = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)
INST_TYPES = {
    "spot": "SPOT",
    "futures": "USDT-FUTURES",
    "usdc_futures": "USDC-FUTURES",
    "coin_futures": "COIN-FUTURES",
}


@asynccontextmanager
async def bitget(
    *, faults: tuple[Json, ...] = (), pace: Pace = REST, replay: str = "", **changes: Any
) -> AsyncIterator[SimVenues]:
    """A simulated Bitget, whose market waits for `emit` unless a pace is given."""
    venue = VenueSpec(name="bitget", pace=pace, cadence_scale=50.0, **changes)
    recording = ReplaySpec(file=replay, venue="bitget", rate=0.0, settle=0.05) if replay else None
    spec = SimSpec(venues=(venue,), seed=7, faults=faults, replay=recording)
    async with SimVenues(spec) as venues:
        yield venues


def url_of(venues: SimVenues) -> str:
    return venues.endpoints("bitget")["public"]


def dial(venues: SimVenues) -> connect:
    return connect(url_of(venues), ping_interval=None, max_queue=None)


async def receive(client: ClientConnection) -> Json:
    found: Json = json.loads(await client.recv())
    return found


def arg_of(topic: str) -> Json:
    return dict(zip(("instType", "channel", "instId"), topic.split(":"), strict=True))


async def ask(client: ClientConnection, op: str, *topics: str) -> None:
    await client.send(json.dumps({"op": op, "args": [arg_of(topic) for topic in topics]}))


async def frames_of(client: ClientConnection) -> AsyncIterator[str | bytes]:
    """The frames of a client until its connection ends, however it does."""
    try:
        while True:
            yield await client.recv()
    except ConnectionClosed:
        return


async def passed(venues: SimVenues, seconds: float) -> None:
    """Until so much time has gone by."""
    end = venues.clock.monotonic() + seconds
    await until(lambda: venues.clock.monotonic() > end)


def table(venues: SimVenues, product: str, kind: Kind) -> list[Json]:
    rows = venues.ledger.table(SeriesKey("bitget", product, "BTCUSDT", kind))
    return [{name: row[name].tolist() for name in rows.dtype.names or ()} for row in rows]


# Requests.


async def test_each_arg_is_acked_and_its_snapshot_follows() -> None:
    async with bitget() as venues, dial(venues) as client:
        venues.emit("bitget", 200)
        await ask(client, "subscribe", "SPOT:books1:BTCUSDT", "SPOT:trade:BTCUSDT")
        ack, quote, second, history = [await receive(client) for _ in range(4)]

        assert ack == {"event": "subscribe", "arg": arg_of("SPOT:books1:BTCUSDT")}
        assert (quote["action"], quote["arg"]) == ("snapshot", ack["arg"])
        assert second == {"event": "subscribe", "arg": arg_of("SPOT:trade:BTCUSDT")}
        assert (history["action"], history["arg"]) == ("snapshot", second["arg"])
        ids = [int(item["tradeId"]) for item in history["data"]]
        assert ids == sorted(ids, reverse=True)
        assert ids == [row["id"] for row in table(venues, "spot", Kind.TRADE)[:-51:-1]]
        await venues.settle()
        delivered = venues.ledger.delivered_rows(SeriesKey("bitget", "spot", "BTCUSDT", Kind.TRADE))
        assert not delivered.any()  # history is no delivery

        await ask(client, "unsubscribe", "SPOT:trade:BTCUSDT")
        answer = await receive(client)
        while "event" not in answer:  # a repeated quote
            answer = await receive(client)
        assert answer == {"event": "unsubscribe", "arg": arg_of("SPOT:trade:BTCUSDT")}


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("nonsense", {"event": "error", "code": 30002, "msg": "Unrecognized request"}),
        ('{"op":"subscribe"}', {"event": "error", "code": 30002, "msg": "Unrecognized request"}),
        (
            '{"op":"x","args":[{}]}',
            {"event": "error", "code": 30002, "msg": "Unrecognized request"},
        ),
        (
            json.dumps({"op": "subscribe", "args": [arg_of("SPOT:books50:BTCUSDT")]}),
            {
                "event": "error",
                "arg": arg_of("SPOT:books50:BTCUSDT"),
                "code": 30016,
                "msg": "Param error",
                "op": "subscribe",
            },
        ),
        (
            json.dumps({"op": "subscribe", "args": [arg_of("USDT-FUTURES:books1:NOPEUSDT")]}),
            {
                "event": "error",
                "arg": arg_of("USDT-FUTURES:books1:NOPEUSDT"),
                "code": 30001,
                "msg": "instType:USDT-FUTURES,channel:books1,instId:NOPEUSDT,precision:null"
                " doesn't exist",
                "op": "subscribe",
            },
        ),
    ],
)
async def test_what_is_wrong_is_answered_as_probed(request_text: str, expected: Json) -> None:
    async with bitget() as venues, dial(venues) as client:
        await client.send(request_text)
        assert await receive(client) == expected


async def test_a_wrong_arg_does_not_spoil_the_others() -> None:
    async with bitget() as venues, dial(venues) as client:
        await ask(client, "subscribe", "SPOT:trade:NOPEUSDT", "SPOT:trade:BTCUSDT")
        assert [(await receive(client))["event"] for _ in range(2)] == ["error", "subscribe"]


async def test_a_symbol_of_another_product_is_acked_and_silent() -> None:
    async with bitget(products={"spot": ("BTCUSDT",)}) as venues, dial(venues) as client:
        await ask(client, "subscribe", "COIN-FUTURES:books1:BTCUSDT", "SPOT:trade:BTCUSDT")
        frames = [await receive(client) for _ in range(3)]
        assert [frame.get("event", frame.get("action")) for frame in frames] == [
            "subscribe",
            "subscribe",
            "snapshot",
        ]
        assert frames[2]["arg"]["instType"] == "SPOT"


async def test_4096_bytes_of_args_and_240_requests_an_hour_are_the_most() -> None:
    async with bitget() as venues, dial(venues) as client:
        await ask(client, "subscribe", *[f"SPOT:trade:SYMBOL{i:04}USDT" for i in range(70)])
        assert (await receive(client))["code"] == 30002
    async with bitget(scale=0.001) as venues, dial(venues) as client:
        # that scale makes the period of the ten messages long as well: ten of them pass
        for _ in range(10):
            await ask(client, "unsubscribe", "SPOT:trade:BTCUSDT")
            assert (await receive(client))["event"] == "unsubscribe"
        await ask(client, "unsubscribe", "SPOT:trade:BTCUSDT")
        with pytest.raises(ConnectionClosed):
            await client.recv()
    async with bitget(scale=100.0) as venues, dial(venues) as client:
        answers: list[Json] = []
        while not answers or answers[-1]["event"] != "error":
            await ask(client, "unsubscribe", "SPOT:trade:BTCUSDT")
            answers.append(await receive(client))
            await passed(venues, 0.0012)  # ten of them in a scaled second are the most, too
        assert (len(answers), answers[-1]["code"]) == (241, 30006)


async def test_only_the_documented_path_is_served() -> None:
    async with bitget() as venues:
        with pytest.raises(InvalidStatus):
            await connect(url_of(venues).replace("v2", "v3"))


# Life.


async def test_without_a_ping_the_connection_is_cut_while_data_flows() -> None:
    async with bitget(scale=400.0) as venues, dial(venues) as client:
        await ask(client, "subscribe", "SPOT:books1:BTCUSDT")
        frames = 0
        async for _ in frames_of(client):
            venues.emit("bitget", 10)
            frames += 1
        assert client.close_code == 1006  # no close frame
        assert frames > 20
        assert [log.ended for log in venues.ledger.connections] == ["no ping"]


async def test_the_text_ping_keeps_it_open_and_a_control_ping_does_not() -> None:
    async with bitget(scale=400.0) as venues, await Raw.open(url_of(venues)) as client:
        began = venues.clock.monotonic()
        while venues.clock.monotonic() < began + 0.7:  # 0.3 s is the scaled deadline
            client.send(ws.TEXT, b"ping")
            assert await client.until(ws.TEXT) == b"pong"
            await passed(venues, 0.01)
        assert venues.server("bitget").clients
        while venues.server("bitget").clients:
            client.send(ws.PING, b"x")
            await passed(venues, 0.01)
        assert venues.clock.monotonic() < began + 3.0


async def test_after_a_reset_seq_is_smaller_and_trade_ids_go_on() -> None:
    async with bitget(products={"coin_futures": ("BTCUSD",)}) as venues, dial(venues) as client:
        await ask(client, "subscribe", "COIN-FUTURES:books5:BTCUSD", "COIN-FUTURES:trade:BTCUSD")
        frames = [await receive(client) for _ in range(4)]
        before = next(
            f["data"][0]["seq"]
            for f in frames
            if f.get("arg", {}).get("channel") == "books5" and "data" in f
        )
        assert before > 2**53
        venues.emit("bitget", 50)
        venues.inject({"fault": "id_reset"})
        venues.emit("bitget", 50)
        while True:
            frame = await receive(client)
            if frame["arg"]["channel"] == "books5" and frame["data"][0]["seq"] < before:
                break
        rows = venues.ledger.table(SeriesKey("bitget", "coin_futures", "BTCUSD", Kind.TRADE))
        ids = rows["id"].tolist()
        assert ids == sorted(set(ids))


async def test_an_unchanged_book_is_sent_again_at_times() -> None:
    async with bitget() as venues, dial(venues) as client:
        await ask(client, "subscribe", "SPOT:books5:BTCUSDT")
        ack, *pushes = [await client.recv() for _ in range(4)]
        assert "event" in json.loads(ack)
        assert len(set(pushes)) == 1
        assert len(table(venues, "spot", Kind.DEPTH5)) == 1


# Frames.


@pytest.mark.parametrize("product", ["spot", "futures"])
async def test_pushes_have_the_captured_shape_and_are_the_ledgers_rows(product: str) -> None:
    prefix = INST_TYPES[product]
    topics = [f"{prefix}:{channel}:BTCUSDT" for channel in ("books1", "trade", "books5")]
    async with bitget(products={product: ("BTCUSDT",)}) as venues, dial(venues) as client:
        await ask(client, "subscribe", *topics)
        pushes: dict[str, list[Json]] = {"books1": [], "trade": [], "books5": []}
        while min(map(len, pushes.values())) < 10:
            frame = await receive(client)
            if "event" in frame:
                continue
            assert list(frame) == ["action", "arg", "data", "ts"]
            assert list(frame["arg"]) == ["instType", "channel", "instId"]
            pushes[frame["arg"]["channel"]].append(frame)
            if frame["arg"]["channel"] == "books5":
                venues.emit("bitget", 20)
        size = 5 if product == "spot" else 4
        history, *updates = pushes["trade"]
        assert (history["action"], history["data"]) == ("snapshot", [])
        items = [(f, item) for f in updates for item in reversed(f["data"])]
        assert {f["action"] for f in updates} == {"update"}
        assert list(items[0][1]) == ["ts", "price", "size", "side", "tradeId"]
        for (frame, item), row in zip(items, table(venues, product, Kind.TRADE), strict=False):
            assert row["id"] == int(item["tradeId"])
            assert row["price"] == Decimal(item["price"]).scaleb(2)
            assert row["vol"] == Decimal(item["size"]).scaleb(size)
            assert row["is_buyer_maker"] == (item["side"] == "sell")
            times = (frame["ts"] * 1000, int(item["ts"]) * 1000)
            assert (row["event_us"], row["trade_us"]) == times
        for channel, kind in (("books1", Kind.BOOKTICKER), ("books5", Kind.DEPTH5)):
            seen = list({f["data"][0]["seq"]: f for f in pushes[channel]}.values())
            for frame, row in zip(seen, table(venues, product, kind), strict=False):
                (book,) = frame["data"]
                assert list(book) == ["asks", "bids", "ts", "seq", "pseq"]
                assert (row["id"], book["pseq"]) == (book["seq"], 0)
                times = (frame["ts"] * 1000, int(book["ts"]) * 1000)
                assert (row["event_us"], row["trade_us"]) == times
                best = Decimal(book["bids"][0][0]).scaleb(2)
                found = row["bid_price"] if channel == "books1" else row["bid_prices"][0]
                assert found == best


async def test_recorded_frames_are_sent_as_they_are() -> None:
    file = SAMPLES / "bitget-v2-futures-trade-2026-08.jsonl"
    async with bitget(replay=str(file)) as venues, dial(venues) as client:
        await ask(client, "subscribe", "USDT-FUTURES:trade:BTCUSDT")
        await receive(client)
        assert (await receive(client))["data"] == []
        got = [await client.recv() for _ in range(2)]
        assert got == file.read_text().splitlines()[1:]


# Metadata.


async def test_instruments_are_listed_by_product(tmp_path: Path) -> None:
    async with bitget() as venues, aiohttp.ClientSession() as http:
        base = venues.endpoints("bitget")["rest"] + "/api/v2/mix/market/contracts?productType="
        async with http.get(base + "bonds") as response:
            assert (await response.json())["code"] == "40034"
        endpoints = {key: (url,) for key, url in venues.endpoints("bitget").items()}
        config = ConnectionConfig(
            exchange="bitget",
            endpoints=endpoints,
            products=(
                ProductConfig(name="spot", symbols=("ETHUSDT",)),
                ProductConfig(name="futures", symbols=("BTCUSDT",)),
                ProductConfig(name="usdc_futures", symbols=("BTCUSDC",)),
                ProductConfig(name="coin_futures", symbols=("BTCUSD",)),
            ),
        )
        resolution = await resolve(EXCHANGE, config, clock=SystemClock(), cache_dir=tmp_path)
        assert resolution.symbols == {
            ("spot", "ETHUSDT"): "ETHUSDT",
            ("futures", "BTCUSDT"): "BTCUSDT",
            ("usdc_futures", "BTCUSDC"): "BTCPERP",
            ("coin_futures", "BTCUSD"): "BTCUSD",
        }
        assert not resolution.warnings
        ticks = {key[0]: found.tick for key, found in resolution.instruments.items()}
        assert ticks["futures"] == "0.10"
        assert ticks["spot"] == "0.01"


# K4 against it.


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A prefix for stores that are removed afterwards, and a cache of symbols of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prefix = f"k4test_bitget_{os.getpid()}_"
    yield prefix
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        path.unlink()


@asynccontextmanager
async def gateway(
    venues: SimVenues, product: str, symbol: str, names: dict[Kind, str]
) -> AsyncIterator[MdModule]:
    """K4 with two lines on one symbol, subscribed."""
    endpoints = {key: (url,) for key, url in venues.endpoints("bitget").items()}
    section = ProductConfig(name=product, symbols=(symbol,), lines=2, stores=names)
    config = ConnectionConfig(
        exchange="bitget", md_size=8192, endpoints=endpoints, products=(section,)
    )
    module = MdModule(
        config,
        [product],
        clock=SystemClock(),
        counters=MemoryCounters(clock=SystemClock()),
        budget=LocalBudget(300, 300.0),
        rng=random.Random(1),
    )
    await module.prepare()
    module.start()
    server = venues.server("bitget")
    await until(lambda: sum(len(c.topics) for c in server.clients) == 2 * len(names))
    try:
        yield module
    finally:
        await module.stop()


async def grown(series: Series) -> None:
    """Until the series has one more row."""
    before = series.rows
    await until(lambda: series.rows > before)


@pytest.mark.parametrize(
    ("product", "symbol"),
    [
        ("spot", "BTCUSDT"),
        ("futures", "BTCUSDT"),
        ("usdc_futures", "BTCUSDC"),
        ("coin_futures", "BTCUSD"),
    ],
)
async def test_stores_hold_what_was_sent_though_each_line_loses_some(
    stores: str, product: str, symbol: str
) -> None:
    faults = tuple(
        {"fault": "drop", "probability": 0.05, "target": {"line": line, "kind": kind}}
        for line in (0, 1)
        for kind in ("trade", "bbo", "depth5")
    )
    names = {kind: stores + kind.label for kind in KINDS}
    async with bitget(products={product: (symbol,)}, faults=faults) as venues:
        venues.emit("bitget", 100)  # history, which nobody may publish
        series = {kind: SeriesKey("bitget", product, symbol, kind) for kind in KINDS}
        past = venues.ledger.series(series[Kind.TRADE]).rows
        async with gateway(venues, product, symbol, names) as module:
            pushed = venues.ledger.series(series[Kind.DEPTH5])
            for _ in range(60):
                venues.emit("bitget", 10)
                await grown(pushed)
            assert await venues.settle()
            assert module.engine is not None
            (group,) = module.engine.groups
            figures = stream_figures(group, group.streams[0])
            spec = group.streams[0].feed.product_type

        assert venues.ledger.faults("drop")
        rows = venues.ledger.table(series[Kind.TRADE])
        delivered = venues.ledger.delivered_rows(series[Kind.TRADE])
        assert not delivered[:past].any()
        reader = ShmMdReader(names[Kind.TRADE])
        trades = reader.since(symbol, 0).records
        reader.close()
        assert sorted(trades["trade_id"].tolist()) == rows["id"][delivered].tolist()
        size = 10 ** venues.ledger.series(series[Kind.TRADE]).size_scale
        by_id = {int(record["trade_id"]): record for record in trades}
        for row in rows[delivered]:
            record = by_id[int(row["id"])]
            assert record["price"] == float(Decimal(int(row["price"])) / 100)
            assert record["vol"] == float(Decimal(int(row["vol"])) / size)
            assert (record["event_timestamp_us"], record["trade_timestamp_us"]) == (
                row["event_us"],
                row["trade_us"],
            )
            assert record["product_type"] == spec
        for kind in (Kind.BOOKTICKER, Kind.DEPTH5):
            sent = venues.ledger.table(series[kind])["id"][
                venues.ledger.delivered_rows(series[kind])
            ]
            reader = ShmMdReader(names[kind])
            books = reader.since(symbol, 0).records
            reader.close()
            stored = books["update_id"].tolist()
            assert stored == sorted(set(stored))
            assert set(stored) <= set(sent.tolist())
            assert stored[-1] == sent[-1]
        assert (figures["lost"], figures["resets"], figures["reconnects"]) == (0, 0, 0)
