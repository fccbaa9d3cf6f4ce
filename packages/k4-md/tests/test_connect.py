"""`k4.md.connect`: market data in the caller's own process, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

import k4.md
from k4.core.enums import Kind
from k4.core.errors import ConfigError, K4Error
from k4.core.records import Bookticker, Trade
from k4.core.testing import ScriptedServer, ServerPeer

Frames = Callable[[list[str]], list[bytes]]


def quote(symbol: str, u: int, bid: str = "1.5") -> bytes:
    return (
        f'{{"stream":"{symbol.lower()}@bookTicker","data":{{"u":{u},"s":"{symbol}",'
        f'"b":"{bid}","B":"2","a":"1.6","A":"3"}}}}'
    ).encode()


def trade(symbol: str, id: int) -> bytes:
    return (
        f'{{"stream":"{symbol.lower()}@trade","data":{{"e":"trade","E":1790000000001,"s":"{symbol}",'
        f'"t":{id},"p":"1.55","q":"0.1","T":1790000000000,"m":true,"M":true}}}}'
    ).encode()


def sending(*frames: bytes) -> Callable[[ServerPeer], Awaitable[None]]:
    """A venue that acknowledges, sends these frames and stays."""

    async def script(peer: ServerPeer) -> None:
        await peer.accept()
        request = msgspec.json.decode(await peer.expect("text"))
        await peer.text(msgspec.json.encode({"result": None, "id": request["id"]}))
        for frame in frames:
            await peer.text(frame)
        await peer.gone()

    return script


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (figures, not events)
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("transport", ["picows", "websockets"])
async def test_records_come_in_order_and_once(transport: str) -> None:
    script = sending(quote("BTCUSDT", 1), trade("BTCUSDT", 7), trade("BTCUSDT", 8))
    async with (
        ScriptedServer(script) as server,
        k4.md.connect(
            "binance",
            spot=["BTCUSDT"],
            channels=["bbo", "trade"],
            lines=2,
            endpoints={"spot": server.url("/stream")},
            transport=transport,
        ) as feed,
    ):
        records = [await anext(feed) for _ in range(3)]
        assert isinstance(records[0], Bookticker)
        assert (records[0].symbol, records[0].bid_price, records[0].ask_vol) == ("BTCUSDT", 1.5, 3)
        trades = [record.trade_id for record in records if isinstance(record, Trade)]
        assert trades == [7, 8]
        await until(lambda: feed.stats()[0]["duplicates"] == 3)
        assert feed.stats()[0]["published"] == 3
    assert feed.stats()[0]["published"] == 3, "the receipt stays"


async def test_a_slow_caller_gets_the_newest_quote_and_is_told_of_lost_trades() -> None:
    frames = [quote("BTCUSDT", u, f"{u}.5") for u in range(1, 6)]
    frames += [trade("BTCUSDT", id) for id in range(1, 11)]
    told: list[tuple[str, Kind, str, int]] = []
    async with (
        ScriptedServer(sending(*frames)) as server,
        k4.md.connect(
            "binance",
            spot=["BTCUSDT"],
            endpoints={"spot": server.url("/stream")},
            max_pending=4,
            on_lost=lambda *what: told.append(what),
        ) as feed,
    ):
        await until(lambda: feed.stats()[0]["published"] == 15)
        first = await anext(feed)
        assert isinstance(first, Bookticker)
        assert first.update_id == 5
        rest = [await anext(feed) for _ in range(4)]
        assert [r.trade_id for r in rest if isinstance(r, Trade)] == [7, 8, 9, 10]
        assert feed.conflated == {("spot", Kind.BOOKTICKER, "BTCUSDT"): 4}
        assert feed.lost == {("spot", Kind.TRADE, "BTCUSDT"): 6}
        assert told[-1] == ("spot", Kind.TRADE, "BTCUSDT", 6)


async def test_products_with_the_same_symbol_are_kept_apart() -> None:
    async def script(peer: ServerPeer) -> None:
        await peer.handshake()
        bid = "2.5" if peer.path.startswith("/public") else "1.5"
        await sending(quote("BTCUSDT", 1, bid))(peer)

    async with (
        ScriptedServer(script) as server,
        k4.md.connect(
            "binance",
            spot=["BTCUSDT"],
            ubase=["BTCUSDT"],
            channels=["bbo"],
            endpoints={
                "spot": server.url("/stream"),
                "ubase_public": server.url("/public/stream"),
            },
        ) as feed,
    ):
        await until(lambda: sum(stream["published"] for stream in feed.stats()) == 2)
        found = [await anext(feed) for _ in range(2)]
        assert {(r.product_type, r.bid_price) for r in found if isinstance(r, Bookticker)} == {
            (0, 1.5),
            (2, 2.5),
        }


async def test_iteration_ends_when_the_feed_is_closed() -> None:
    async with ScriptedServer(sending(quote("BTCUSDT", 1))) as server:
        feed = k4.md.connect(
            "binance", spot=["BTCUSDT"], channels=["bbo"], endpoints={"spot": server.url("/stream")}
        )
        async with feed:
            await anext(feed)
            waiting = asyncio.ensure_future(anext(feed))
            await asyncio.sleep(0)
        with pytest.raises(StopAsyncIteration):
            await waiting


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spot": ["BTCUSDT"], "channels": ["bbo", "ticks"]}, "unknown channel 'ticks'"),
        ({"swap": ["BTCUSDT"]}, "binance has spot, ubase, cbase"),
        ({"spot": "BTCUSDT"}, "needs a list of symbols"),
        ({"spot": []}, "needs a list of symbols"),
        ({}, "name a product"),
        ({"spot": ["BTCUSDT"], "lines": 0}, "lines: needs at least 1"),
        ({"spot": ["BTCUSDT"], "max_pending": 0}, "max_pending: needs at least 1"),
        ({"spot": ["BTCUSDT"], "stall_timeout_sec": 0.0}, "stall_timeout_sec: needs more than 0"),
        ({"spot": ["BTCUSDT"], "feed": "SBE"}, "feed: unknown 'SBE'"),
        ({"spot": ["BTCUSDT"], "metadata": "of"}, "metadata: 'of' is not auto or off"),
        ({"spot": ["BTCUSDT"], "endpoints": {"spto": "ws://127.0.0.1"}}, "endpoints.spto: unknown"),
    ],
)
def test_bad_arguments_are_named_at_once(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        k4.md.connect("binance", **options)  # type: ignore[arg-type]


def test_an_unknown_exchange_names_the_nearest() -> None:
    with pytest.raises(K4Error, match="did you mean 'binance'"):
        k4.md.connect("binanc", spot=["BTCUSDT"])
