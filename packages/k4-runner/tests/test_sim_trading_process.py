"""The trading venue in a process of its own, and beside the market data that shows its market."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from trading_client import Json, RestClient, now_ms, until

from k4.core.errors import ConfigError
from k4.runner.sim.market import Pace
from k4.runner.sim.trading.control import trade
from k4.runner.sim.trading.keys import KeyRing
from k4.runner.sim.trading.spec import TradingSpec, decode_trading
from k4.runner.sim.trading.venue import SimTrading
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues

SPEC: Json = {"venues": [], "trading": {"market": "manual", "seed": 3}}


class Remote:
    """A simulation in another process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.ready: Json = {}

    async def line(self) -> Json:
        assert self.process.stdout is not None
        found: Json = json.loads(await self.process.stdout.readline())
        return found

    async def ask(self, do: str, **what: object) -> Any:
        assert self.process.stdin is not None
        command = {"cmd": "trading", "do": do, **what}
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        reply = await self.line()
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["result"]


@asynccontextmanager
async def remote(*arguments: str) -> AsyncIterator[Remote]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "k4.runner.sim",
        "--json",
        json.dumps(SPEC),
        "--control",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    found = Remote(process)
    try:
        found.ready = await found.line()
        yield found
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def test_a_venue_in_another_process_obeys_and_reports(tmp_path: Path) -> None:
    async with remote() as venue, aiohttp.ClientSession() as session:
        config = await venue.ask("config", folder=str(tmp_path))
        assert config["spot_rest_url"] == venue.ready["trading"]["spot_rest_url"]
        key = KeyRing(TradingSpec().accounts, 3).of("main", "hmac")  # the same seed, the same key
        rest = RestClient(session, config["spot_rest_url"], key)
        where = {"product": "spot", "symbol": "BTCUSDT", "price": "64000.0", "quantity": "1"}
        await venue.ask("quote", side="sell", **where)
        await venue.ask("inject", fault={"fault": "unavailable", "what": "service"})
        order: Json = {
            "symbol": "BTCUSDT",
            "side": "BUY",
            "type": "LIMIT",
            "timeInForce": "GTC",
            "quantity": "0.01",
            "price": "64000.0",
            "newClientOrderId": "one",
        }
        assert (await rest.signed("POST", "/api/v3/order", **order)).status == 503
        assert (await rest.ok("POST", "/api/v3/order", **order))["status"] == "FILLED"
        (found,) = await venue.ask("orders", client_id="one")
        assert (found["status"], found["executed"]) == ("FILLED", "0.01000")
        requests = await venue.ask("received", op="order.place")
        assert [(r["status"], r["executed"]) for r in requests] == [(503, False), (200, True)]
        assert (await venue.ask("summary"))["sent_twice"] == ["one"]
        assert len(await venue.ask("faults", fault="unavailable")) == 1
        assert (await venue.ask("wealth"))["main"]["spot"]["BTC"]["free"] == "100.00999000"
        assert (await venue.ask("report"))["trades"][0]["client_id"] == "one"
        with pytest.raises(RuntimeError, match="does no"):
            await venue.ask("dance")
        with pytest.raises(RuntimeError, match="fault"):
            await venue.ask("inject", fault={"fault": "nonsense"})


async def test_the_ledger_is_dumped_at_the_end(tmp_path: Path) -> None:
    async with remote("--dump", str(tmp_path)) as venue:
        await venue.ask("deposit", account="main", product="spot", asset="SOL", amount="3")
    report = json.loads(read(tmp_path / "trading.json"))
    assert report["wealth"]["main"]["spot"]["SOL"]["free"] == "3"


def read(path: Path) -> str:
    return path.read_text()


def test_a_specification_is_checked() -> None:
    assert decode_trading(b'{"seed": 9}').seed == 9
    for text in (
        b"{",
        b'{"sede": 9}',
        b'{"market": "wild"}',
        b'{"order": "never"}',
        b'{"scale": 0}',
        b'{"accounts": []}',
        b'{"symbols": {"margin": ["BTCUSDT"]}}',
        b'{"accounts": [{"keys": [{"algorithm": "dsa"}]}]}',
    ):
        with pytest.raises(ConfigError):
            decode_trading(text)
    wrong: tuple[Json, ...] = ({"NONE": {}}, {"LOT_SIZE": {"maxSize": "1"}})
    for filters in wrong:
        with pytest.raises(ConfigError):
            SimTrading(TradingSpec(filters={"spot": {"BTCUSDT": filters}}))


def test_without_a_trading_venue_there_is_nothing_to_command() -> None:
    with pytest.raises(ConfigError, match="no trading venue"):
        trade(None, {"do": "summary"})


async def test_orders_meet_the_market_that_the_data_shows() -> None:
    venue = VenueSpec(name="binance", products={"spot": ("BTCUSDT",)}, pace=Pace(start=False))
    spec = SimSpec(venues=(venue,), seed=7, trading=TradingSpec(seed=1))
    async with SimVenues(spec) as venues, aiohttp.ClientSession() as session:
        trading = venues.trading
        assert trading is not None
        instrument, _ = venues.server("binance").instruments[0]
        exchange = trading.exchanges["spot"]
        rules, book = exchange.rules["BTCUSDT"], exchange.books["BTCUSDT"]
        venues.emit("binance", 500)
        assert list(book.levels(True)) == instrument.bids(len(instrument.bid_prices))
        assert list(book.levels(False)) == instrument.asks(len(instrument.ask_prices))
        rest = RestClient(session, trading.urls()["spot_rest_url"], trading.keys.of("main", "hmac"))
        price = rules.price(instrument.top().bid)
        await rest.ok(
            "POST",
            "/api/v3/order",
            symbol="BTCUSDT",
            side="BUY",
            type="LIMIT",
            timeInForce="GTC",
            quantity="0.5",
            price=price,
            newClientOrderId="one",
        )
        for _ in range(200):
            if trading.ledger.trades(client_id="one"):
                break
            venues.emit("binance", 50)
        (order,) = trading.ledger.orders(client_id="one")
        assert order.executed > 0
        assert {trade.price for trade in trading.ledger.trades()} == {price}
        assert venues.summary()["trading"]["orders"] == 1


async def test_a_market_of_its_own_moves_at_its_pace_and_fills_by_itself() -> None:
    async with SimTrading(TradingSpec(seed=2)) as venue, aiohttp.ClientSession() as session:
        rest = RestClient(session, venue.urls()["ubase_rest_url"], venue.keys.of("main", "hmac"))
        exchange = venue.exchanges["ubase"]
        bid = exchange.books["BTCUSDT"].best(True)
        assert bid is not None
        await rest.ok(
            "POST",
            "/fapi/v1/order",
            symbol="BTCUSDT",
            side="BUY",
            type="LIMIT",
            timeInForce="GTX",
            quantity="0.010",
            price=exchange.rules["BTCUSDT"].price(bid),
            timestamp=now_ms(),
        )
        venue.set_pace(Pace(rate=20_000.0))
        async with asyncio.timeout(10):
            await until(venue.ledger.trades)
        (order,) = venue.ledger.orders()
        assert order.executed > Decimal(0)
        assert venue.ledger.trades()[0].maker


async def test_the_same_seed_makes_the_same_market() -> None:
    books = []
    for _ in range(2):
        async with SimTrading(TradingSpec(seed=4)) as venue:
            venue.emit(300)
            books.append(list(venue.exchanges["cbase"].books["BTCUSD_PERP"].levels(True)))
    assert books[0] == books[1]
