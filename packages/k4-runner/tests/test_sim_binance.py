"""The simulated Binance speaks the documented protocol, and its frames are the ledger's rows."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from sim_client import Json, ask, binance, dial
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from k4.core.clock import Clock
from k4.core.enums import Kind
from k4.core.testing import ManualClock
from k4.runner.sim import ws
from k4.runner.sim.binance_feeds import COMBINED, MICROSECONDS, Desk, specs
from k4.runner.sim.client import Client
from k4.runner.sim.ledger import Ledger, SeriesKey
from k4.runner.sim.market import Aggregate, Fill, Instrument, MarketEvent, Top
from k4.runner.sim.venue import Topic, Verdict
from k4.runner.sim.venues import SimVenues


async def frames(socket: ClientConnection, count: int) -> list[Json]:
    return [json.loads(await socket.recv()) for _ in range(count)]


def table(venues: SimVenues, product: str, symbol: str, kind: Kind) -> list[Json]:
    """The ledger's rows as dicts."""
    rows = venues.ledger.table(SeriesKey("binance", product, symbol, kind))
    return [{name: row[name].tolist() for name in rows.dtype.names or ()} for row in rows]


def mantissa(text: str, scale: int) -> int:
    """Exact: a decimal text to an integer over 10 ** scale, whatever is cut off being zero."""
    whole, _, part = text.partition(".")
    assert set(part[scale:]) <= {"0"}
    return int(whole + part[:scale].ljust(scale, "0"))


# -- control messages -------------------------------------------------------------------------


async def test_every_method_is_answered_as_documented() -> None:
    async with binance() as venues, dial(venues, "spot", "/ws") as socket:
        names = ["btcusdt@aggTrade", "btcusdt@bookTicker"]
        assert await ask(socket, "SUBSCRIBE", *names) == {"result": None, "id": 1}
        assert await ask(socket, "UNSUBSCRIBE", names[1], id=2) == {"result": None, "id": 2}
        assert await ask(socket, "LIST_SUBSCRIPTIONS", id="x3") == {
            "result": [names[0]],
            "id": "x3",
        }
        assert await ask(socket, "GET_PROPERTY", "combined", id=None) == {
            "result": False,
            "id": None,
        }
        assert await ask(socket, "SET_PROPERTY", "combined", True) == {"result": None, "id": 1}


@pytest.mark.parametrize(
    ("request_text", "code", "message", "id"),
    [
        ("nonsense", 3, "Invalid JSON: expected value at line 1 column 1", None),
        ('{"id":1}', 2, "Invalid request: missing field `method` at line 1 column 8", 1),
        (
            '{"method":"BUY","id":1}',
            2,
            "Invalid request: unknown variant `BUY`, expected one of `SUBSCRIBE`, `UNSUBSCRIBE`,"
            " `LIST_SUBSCRIPTIONS`, `SET_PROPERTY`, `GET_PROPERTY` at line 1 column 28",
            1,
        ),
        (
            '{"method":"SUBSCRIBE","params":["btcusdt"],"id":5}',
            2,
            "Invalid request: invalid stream",
            5,
        ),
        (
            '{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1.5}',
            2,
            "Invalid request: request ID must be an unsigned integer",
            None,
        ),
        ('{"method":"SET_PROPERTY","params":["wide",true],"id":7}', 0, "Unknown property", 7),
        (
            '{"method":"SET_PROPERTY","params":["combined",1],"id":7}',
            1,
            "Invalid value type: expected Boolean",
            7,
        ),
        (
            '{"method":"GET_PROPERTY","params":[1],"id":7}',
            2,
            "Invalid request: property name must be a string",
            7,
        ),
        (
            '{"method":"GET_PROPERTY","params":["combined",true],"id":7}',
            2,
            "Invalid request: too many parameters",
            7,
        ),
    ],
)
async def test_errors_are_nested_with_the_documented_codes(
    request_text: str, code: int, message: str, id: object
) -> None:
    async with binance() as venues, dial(venues, "spot") as socket:
        await socket.send(request_text)
        assert json.loads(await socket.recv()) == {
            "error": {"code": code, "msg": message},
            "id": id,
        }


@pytest.mark.parametrize(
    "request_text",
    [
        "",
        "null",
        "[]",
        "7",
        "{",
        "[" * 20_000,
        '{"method":["SUBSCRIBE"],"id":1}',
        '{"method":"SUBSCRIBE","id":1,"params":null}',
        '{"method":"SUBSCRIBE","id":1,"params":[1]}',
        '{"method":"SUBSCRIBE","id":{},"params":["a@trade"]}',
        '{"method":"SET_PROPERTY","id":1}',
        '{"method":"SET_PROPERTY","id":1,"params":["combined"]}',
    ],
)
async def test_hostile_requests_are_answered_with_an_error(request_text: str) -> None:
    async with binance() as venues, dial(venues, "spot") as socket:
        await socket.send(request_text)
        assert set(json.loads(await socket.recv())) == {"error", "id"}
        assert (await ask(socket, "LIST_SUBSCRIPTIONS"))["result"] == []


async def test_the_topic_limit_is_kept() -> None:
    async with binance() as venues, dial(venues, "spot") as socket:
        names = [f"s{number}usdt@trade" for number in range(1025)]
        assert (await ask(socket, "SUBSCRIBE", *names[:1024]))["result"] is None
        answer = await ask(socket, "SUBSCRIBE", names[1024])
        assert answer["error"]["code"] == 2


# -- handshake, modes, routes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "path", "headers", "status"),
    [
        ("spot", "/nowhere", {}, 404),
        ("ubase_public", "/else/ws", {}, 404),
        ("spot_sbe", "/stream", {}, 401),
        ("spot_sbe", "/stream", {"X-MBX-APIKEY": "wrong"}, 401),
    ],
)
async def test_refused_handshakes(
    endpoint: str, path: str, headers: dict[str, str], status: int
) -> None:
    async with binance(api_keys=("right",)) as venues:
        with pytest.raises(InvalidStatus) as caught:
            await dial(venues, endpoint, path, additional_headers=headers)
        assert caught.value.response.status_code == status
        assert venues.ledger.refused == 1


@pytest.mark.parametrize(
    ("path", "wrapped", "digits"),
    [
        ("/ws/btcusdt@trade", False, 13),
        ("/ws/btcusdt@trade/ethusdt@trade?timeUnit=MICROSECOND", False, 16),
        ("/stream?streams=btcusdt@trade", True, 13),
        ("/stream?streams=btcusdt%40trade%2Fethusdt%40trade&timeUnit=microsecond", True, 16),
    ],
)
async def test_path_streams_wrapper_and_time_unit(path: str, wrapped: bool, digits: int) -> None:
    async with binance() as venues, dial(venues, "spot", path) as socket:
        venues.emit("binance", 100)
        frame = json.loads(await socket.recv())
        assert ("stream" in frame) is wrapped
        trade = frame["data"] if wrapped else frame
        assert len(str(trade["E"])) == len(str(trade["T"])) == digits


async def test_the_wrapper_can_change_on_the_way() -> None:
    async with binance() as venues, dial(venues, "spot", "/ws/btcusdt@bookTicker") as socket:
        venues.emit("binance", 20)
        first = json.loads(await socket.recv())
        assert "e" not in first
        await socket.send('{"method":"SET_PROPERTY","params":["combined",true],"id":9}')
        while json.loads(await socket.recv()).get("id") != 9:
            continue
        venues.emit("binance", 20)
        assert json.loads(await socket.recv())["stream"] == "btcusdt@bookTicker"


@pytest.mark.parametrize(
    ("path", "channel", "comes"),
    [
        ("/public/ws", "bookTicker", True),
        ("/public/ws", "trade", True),
        ("/public/ws", "aggTrade", False),
        ("/market/ws", "aggTrade", True),
        ("/market/ws", "bookTicker", False),
        ("/ws", "bookTicker", True),
        ("/ws", "aggTrade", False),
        ("/private/ws", "trade", False),
    ],
)
async def test_usd_m_routes_ack_everything_and_carry_their_own(
    path: str, channel: str, comes: bool
) -> None:
    async with binance() as venues, dial(venues, "ubase_public", path) as socket:
        name = f"btcusdt@{channel}"
        assert await ask(socket, "SUBSCRIBE", name) == {"result": None, "id": 1}
        venues.emit("binance", 200)
        await socket.send('{"method":"LIST_SUBSCRIPTIONS","id":2}')
        got = json.loads(await socket.recv())
        assert ("result" not in got) is comes
        assert (len(venues.ledger.connections[0].sent) > 0) is comes


async def test_an_unknown_symbol_is_acked_and_silent() -> None:
    async with binance() as venues, dial(venues, "spot") as socket:
        assert (await ask(socket, "SUBSCRIBE", "nopeusdt@trade"))["result"] is None
        venues.emit("binance", 100)
        assert await ask(socket, "LIST_SUBSCRIPTIONS", id=2) == {
            "result": ["nopeusdt@trade"],
            "id": 2,
        }


# -- payloads to the letter -------------------------------------------------------------------


class Collecting:
    """A hub that keeps what a desk publishes."""

    def __init__(self) -> None:
        self.clock: Clock = ManualClock()
        self.ledger = Ledger()
        self.clients: Sequence[Client] = ()
        self.sent: list[tuple[str, bytes, int, int]] = []
        self.beats: list[Any] = []

    def publish(
        self, topic: Topic, clients: Sequence[Client], frame: bytes, row: int, count: int = 1
    ) -> None:
        self.sent.append((topic.name, ws.decode_own(frame)[1], row, count))

    def send(self, topic: Topic, client: Client, frame: bytes, row: int, count: int = 1) -> None:
        self.publish(topic, (client,), frame, row, count)

    def join(self, client: Client, topic: Topic, form: int) -> None:
        topic.audience = {form: [client]}

    def leave(self, client: Client, topic: Topic) -> None:
        topic.audience = {}

    def verdict(self, client: Client, topic: str, product: str, kind: str) -> Verdict:
        return Verdict.SERVE

    def every(self, seconds: float, callback: Any) -> None:
        self.beats.append(callback)


def published(product: str, symbol: str, form: int, event: MarketEvent) -> list[bytes]:
    """What a desk sends for one event when every topic is subscribed in that form."""
    hub = Collecting()
    desk = Desk(hub, Instrument(specs(product, [symbol])[0], 1, hub.clock))
    for topic in desk.topics.values():
        topic.audience = {form: []}
    desk.event(event)
    return [payload for _, payload, _, _ in hub.sent]


def happening(**changes: Any) -> MarketEvent:
    quiet = Top(1, 1, 2, 1)
    return MarketEvent(
        **{
            "generation": 0,
            "engine_us": 1786540329041_000,
            "event_us": 1786540329195_000,
            "first_update": 1,
            "last_update": 2,
            "before": quiet,
            "after": quiet,
            "bids": (),
            "asks": (),
            **changes,
        }
    )


SPOT_TRADE = happening(
    event_us=1781416576889_123,
    engine_us=1781416576888_456,
    fills=(Fill(6407186253, 6434895, 3),),
    aggregates=(Aggregate(3988316038, 6407186253, 6407186255, 6434895, 9),),
    buyer_is_maker=True,
    kind="MARKET",
)


def test_spot_frames_are_the_documented_ones() -> None:
    trade, binary, group = published("spot", "BTCUSDT", 0, SPOT_TRADE)
    assert trade == (
        b'{"e":"trade","E":1781416576889,"s":"BTCUSDT","t":6407186253,"p":"64348.95000000",'
        b'"q":"0.00003000","T":1781416576888,"m":true,"M":true}'
    )
    assert group == (
        b'{"e":"aggTrade","E":1781416576889,"s":"BTCUSDT","a":3988316038,"p":"64348.95000000",'
        b'"q":"0.00009000","f":6407186253,"l":6407186255,"T":1781416576888,"m":true,"M":true}'
    )
    assert binary[:8].hex() == "1200102701000000"
    quote = happening(last_update=98494969448, after=Top(6370400, 477471, 6370401, 1133198))
    assert published("spot", "BTCUSDT", 0, quote)[0] == (
        b'{"u":98494969448,"s":"BTCUSDT","b":"63704.00000000","B":"4.77471000",'
        b'"a":"63704.01000000","A":"11.33198000"}'
    )


def test_the_forms_of_a_trade() -> None:
    wrapped = published("spot", "BTCUSDT", COMBINED | MICROSECONDS, SPOT_TRADE)[0]
    assert wrapped == (
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1781416576889123,"s":"BTCUSDT",'
        b'"t":6407186253,"p":"64348.95000000","q":"0.00003000","T":1781416576888456,"m":true,'
        b'"M":true}}'
    )


def test_usd_m_frames_are_the_captured_ones() -> None:
    event = happening(
        fills=(Fill(7947574407, 6343730, 3),),
        aggregates=(Aggregate(3339472008, 7786568797, 7786568801, 6433920, 123),),
        kind="MARKET",
        before=Top(1, 1, 2, 2),
        after=Top(6392170, 30114, 6392180, 3196),
        last_update=11270657214025,
    )
    trade, group, quote = published("ubase", "BTCUSDT", 0, event)
    assert trade == (
        b'{"e":"trade","E":1786540329195,"T":1786540329041,"s":"BTCUSDT","t":7947574407,'
        b'"p":"63437.30","q":"0.003","X":"MARKET","m":false,"st":1}'
    )
    assert group == (
        b'{"e":"aggTrade","E":1786540329195,"a":3339472008,"s":"BTCUSDT","p":"64339.20",'
        b'"q":"0.123","nq":"0.123","f":7786568797,"l":7786568801,"T":1786540329041,"m":false,'
        b'"st":1}'
    )
    assert quote == (
        b'{"e":"bookTicker","u":11270657214025,"s":"BTCUSDT","ps":"BTCUSDT","b":"63921.70",'
        b'"B":"30.114","a":"63921.80","A":"3.196","T":1786540329041,"E":1786540329195,"st":1}'
    )
    empty = published("ubase", "BTCUSDT", 0, happening(fills=(Fill(9, 0, 0),), kind="NA"))
    assert b'"t":9,"p":"0","q":"0","X":"NA"' in empty[0]


def test_coin_m_frames_are_the_captured_ones() -> None:
    event = happening(
        fills=(Fill(173906, 649715, 1),),
        aggregates=(Aggregate(487247786, 1137442382, 1137442392, 643047, 382),),
        kind="MARKET",
        buyer_is_maker=True,
        before=Top(1, 1, 2, 2),
        after=Top(649714, 23, 649715, 3),
        last_update=1144501772,
    )
    trade, group, quote = published("cbase", "BTCUSD_PERP", 0, event)
    assert (
        b'"s":"BTCUSD_PERP","t":173906,"p":"64971.5","q":"1","X":"MARKET","m":true,"st":2}' in trade
    )
    assert group == (
        b'{"e":"aggTrade","E":1786540329195,"a":487247786,"s":"BTCUSD_PERP","p":"64304.7",'
        b'"q":"382","f":1137442382,"l":1137442392,"T":1786540329041,"m":true,"st":2}'
    )
    assert quote == (
        b'{"e":"bookTicker","u":1144501772,"s":"BTCUSD_PERP","ps":"BTCUSD","b":"64971.4","B":"23",'
        b'"a":"64971.5","A":"3","T":1786540329041,"E":1786540329195,"st":2}'
    )


def test_sbe_frames_are_the_worked_ones() -> None:
    """The documentation's best bid and ask frame, and a trade by its table of offsets."""
    quote = happening(
        event_us=1786613159749123,
        last_update=98494969448,
        after=Top(6370400, 477471, 6370401, 1133198),
    )
    assert published("spot", "BTCUSDT", 0, quote)[1].hex() == (
        "320011270100000003e6bc4aea58060068f6c1ee16000000fefb60346100000000001f49070000000000"
        "61346100000000008e4a1100000000000742544355534454"
    )
    frame = published("spot", "BTCUSDT", 0, SPOT_TRADE)[1]
    assert struct.unpack_from("<qqbbHIqqqB", frame, 8) == (
        1781416576889123,
        1781416576888456,
        -2,
        -5,
        25,
        1,
        6407186253,
        6434895,
        3,
        1,
    )
    assert frame[8 + 18 + 6 + 25 :] == b"\x07BTCUSDT"


def test_symbols_may_be_any_text() -> None:
    trade, binary, _ = published("spot", "币安USDT", 0, SPOT_TRADE)
    assert json.loads(trade)["s"] == "币安USDT"
    assert binary.endswith(b"\x0a" + "币安USDT".encode())


# -- frames and ledger ------------------------------------------------------------------------


async def test_spot_frames_carry_exactly_the_rows_of_the_ledger() -> None:
    async with binance(products={"spot": ("BTCUSDT",)}) as venues, dial(venues, "spot") as socket:
        names = ("btcusdt@bookTicker", "btcusdt@trade", "btcusdt@aggTrade")
        await ask(socket, "SUBSCRIBE", *names)
        venues.emit("binance", 400)
        quotes, trades, groups = (
            table(venues, "spot", "BTCUSDT", kind)
            for kind in (Kind.BOOKTICKER, Kind.TRADE, Kind.AGGTRADE)
        )
        got: dict[str, list[Json]] = {name: [] for name in names}
        for frame in await frames(socket, len(quotes) + len(trades) + len(groups)):
            got[frame["stream"]].append(frame["data"])
    assert [
        (f["u"], *(mantissa(f[k], 2 if k in "ba" else 5) for k in "bBaA")) for f in got[names[0]]
    ] == [(r["id"], r["bid_price"], r["bid_vol"], r["ask_price"], r["ask_vol"]) for r in quotes]
    assert [
        (f["t"], mantissa(f["p"], 2), mantissa(f["q"], 5), f["m"], f["E"], f["T"])
        for f in got[names[1]]
    ] == [
        (
            r["id"],
            r["price"],
            r["vol"],
            bool(r["is_buyer_maker"]),
            r["event_us"] // 1000,
            r["trade_us"] // 1000,
        )
        for r in trades
    ]
    assert [(f["a"], f["f"], f["l"], mantissa(f["q"], 5)) for f in got[names[2]]] == [
        (r["id"], r["first_id"], r["last_id"], r["vol"]) for r in groups
    ]


async def test_sbe_and_json_show_the_same_ids_and_values() -> None:
    async with (
        binance(products={"spot": ("BTCUSDT",)}) as venues,
        dial(venues, "spot_sbe", additional_headers={"X-MBX-APIKEY": "k"}) as socket,
    ):
        await ask(socket, "SUBSCRIBE", "btcusdt@trade", "btcusdt@bestBidAsk")
        venues.emit("binance", 300)
        quotes = table(venues, "spot", "BTCUSDT", Kind.BOOKTICKER)
        trades = table(venues, "spot", "BTCUSDT", Kind.TRADE)
        got_quotes: list[tuple[int, ...]] = []
        got_trades: list[tuple[int, ...]] = []
        while len(got_quotes) < len(quotes) or len(got_trades) < len(trades):
            frame = await socket.recv()
            assert isinstance(frame, bytes)
            if struct.unpack_from("<H", frame, 2)[0] == 10001:
                got_quotes.append(struct.unpack_from("<qqbbqqqq", frame, 8))
            else:
                head = struct.unpack_from("<qq", frame, 8)
                (count,) = struct.unpack_from("<I", frame, 28)
                for number in range(count):
                    entry = struct.unpack_from("<qqqB", frame, 32 + 25 * number)
                    got_trades.append((*head, *entry))
    assert got_quotes == [
        (r["event_us"], r["id"], -2, -5, r["bid_price"], r["bid_vol"], r["ask_price"], r["ask_vol"])
        for r in quotes
    ]
    assert got_trades == [
        (r["event_us"], r["trade_us"], r["id"], r["price"], r["vol"], r["is_buyer_maker"])
        for r in trades
    ]


@pytest.mark.parametrize(
    ("endpoint", "product", "symbol"),
    [
        ("spot", "spot", "BTCUSDT"),
        ("ubase_public", "ubase", "BTCUSDT"),
        ("cbase", "cbase", "BTCUSD_PERP"),
    ],
)
async def test_depth5_is_the_full_top_at_its_cadence(
    endpoint: str, product: str, symbol: str
) -> None:
    async with (
        binance(products={product: (symbol,)}) as venues,
        dial(venues, endpoint) as socket,
    ):
        await ask(socket, "SUBSCRIBE", f"{symbol.lower()}@depth5@100ms")
        got = []
        for _ in range(5):
            venues.emit("binance", 20)
            got.append(json.loads(await socket.recv())["data"])
        rows = table(venues, product, symbol, Kind.DEPTH5)
        series = venues.ledger.series(SeriesKey("binance", product, symbol, Kind.DEPTH5))
    sides = ("bids", "asks") if product == "spot" else ("b", "a")
    for frame, row in zip(got, rows, strict=True):
        assert frame["lastUpdateId" if product == "spot" else "u"] == row["id"]
        for side, name in zip(sides, ("bid", "ask"), strict=True):
            prices = [mantissa(price, series.price_scale) for price, _ in frame[side]]
            sizes = [mantissa(size, series.size_scale) for _, size in frame[side]]
            assert prices == row[f"{name}_prices"]
            assert sizes == row[f"{name}_vols"]
            assert prices == sorted(prices, reverse=name == "bid")
    if product != "spot":
        assert [f["pu"] for f in got[1:]] == [f["u"] for f in got[:-1]]
        assert all(f["e"] == "depthUpdate" and f["U"] <= f["u"] for f in got)


async def test_sbe_depth20_has_twenty_levels() -> None:
    async with (
        binance(products={"spot": ("BTCUSDT",)}) as venues,
        dial(venues, "spot_sbe", additional_headers={"X-MBX-APIKEY": "k"}) as socket,
    ):
        await ask(socket, "SUBSCRIBE", "btcusdt@depth20")
        venues.emit("binance", 20)
        frame = await socket.recv()
        assert isinstance(frame, bytes)
        assert struct.unpack_from("<HHHH", frame) == (18, 10002, 1, 0)
        (row,) = table(venues, "spot", "BTCUSDT", Kind.DEPTH5)
        assert struct.unpack_from("<qq", frame, 8) == (row["event_us"], row["id"])
        entry, count = struct.unpack_from("<HH", frame, 26)
        assert (entry, count) == (16, 20)
        bids = [struct.unpack_from("<qq", frame, 30 + 16 * n) for n in range(5)]
        assert bids == list(zip(row["bid_prices"], row["bid_vols"], strict=True))


async def test_one_frame_is_the_same_on_every_connection() -> None:
    async with (
        binance() as venues,
        dial(venues, "spot", "/ws/btcusdt@trade") as one,
        dial(venues, "spot", "/ws/btcusdt@trade") as two,
    ):
        venues.emit("binance", 100)
        assert await one.recv() == await two.recv()


async def test_the_listing_names_symbols_ticks_and_lots() -> None:
    async with binance() as venues, aiohttp.ClientSession() as session:
        rest = venues.endpoints("binance")["rest"]
        for path, product in (("api/v3", "spot"), ("fapi/v1", "ubase"), ("dapi/v1", "cbase")):
            async with session.get(f"{rest}/{path}/exchangeInfo") as answer:
                body = await answer.json()
            first = body["symbols"][0]
            filters = {item["filterType"]: item for item in first["filters"]}
            assert first["symbol"] == ("BTCUSD_PERP" if product == "cbase" else "BTCUSDT")
            tick = filters["PRICE_FILTER"]["tickSize"]
            assert float(tick) == {"spot": 0.01, "ubase": 0.1, "cbase": 0.1}[product]
