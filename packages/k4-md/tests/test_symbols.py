"""Symbols by the venue's list, the disk and rules, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from k4.core.clock import SystemClock
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.errors import ConfigError, K4Error
from k4.md import listings
from k4.md.exchanges.binance import EXCHANGE
from k4.md.exchanges.binance.metadata import parse_instruments
from k4.md.feed import Exchange, Instrument, Metadata
from k4.md.symbols import Resolution, match, resolve

SPOT = {
    "symbols": [
        {
            "symbol": symbol,
            "status": "TRADING",
            "filters": [
                {"filterType": "PRICE_FILTER", "minPrice": "0.01", "tickSize": "0.01000000"},
                {"filterType": "LOT_SIZE", "stepSize": "0.00001000"},
                {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
            ],
        }
        for symbol in ("BTCUSDT", "ETHUSDT", "1000CATUSDT", "CATUSDT")
    ]
}
COIN = {"symbols": [{"symbol": "BTCUSD_PERP", "contractSize": 100, "filters": []}]}


class Venue:
    """The REST side of a venue: what it lists, how it answers, what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.lists: dict[str, Any] = {
            "/api/v3/exchangeInfo": SPOT,
            "/fapi/v1/exchangeInfo": SPOT,
            "/dapi/v1/exchangeInfo": COIN,
        }
        self.silent = asyncio.Event()
        self.silent.set()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        await self.silent.wait()
        body = self.lists.get(request.path)
        if isinstance(body, bytes):
            return web.Response(body=body, status=self.status)
        return web.json_response(body, status=self.status)


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    it = Venue()
    app = web.Application()
    app.router.add_get("/{tail:.*}", it.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    it.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield it
    it.silent.set()
    await runner.cleanup()


Ask = Callable[..., Any]


@pytest.fixture
def ask(venue: Venue, tmp_path: Path) -> Ask:
    async def ask(
        *products: tuple[str, tuple[str, ...]],
        exchange: Exchange = EXCHANGE,
        endpoints: dict[str, tuple[str, ...]] | None = None,
        metadata: str = "auto",
        ca_file: str = "",
        **options: Any,
    ) -> Resolution:
        config = ConnectionConfig(
            exchange=exchange.name,
            endpoints={"rest": (venue.url,)} if endpoints is None else endpoints,
            metadata=metadata,
            ca_file=ca_file,
            products=tuple(
                ProductConfig(
                    name=name,
                    symbols=symbols,
                    kinds=(Kind.TRADE,),
                    path=f"connections[0].{name}",
                    symbols_path=f"connections[0].{name}.symbols",
                )
                for name, symbols in products
            ),
        )
        options.setdefault("cache_dir", tmp_path / "cache")
        return await resolve(exchange, config, clock=SystemClock(), **options)

    return ask


async def test_the_venue_s_list_maps_and_describes(ask: Ask, venue: Venue) -> None:
    found = await ask(("spot", ("BTCUSDT", "CATUSDT")), ("cbase", ("BTCUSD_PERP",)))
    assert found.symbols == {
        ("spot", "BTCUSDT"): "BTCUSDT",
        ("spot", "CATUSDT"): "CATUSDT",
        ("cbase", "BTCUSD_PERP"): "BTCUSD_PERP",
    }
    assert found.instruments["spot", "BTCUSDT"] == Instrument(
        symbol="BTCUSDT", venue_symbol="BTCUSDT", tick="0.01000000", lot="0.00001000"
    )
    assert found.instruments["cbase", "BTCUSD_PERP"].contract_value == "100"
    assert {name: source.kind for name, source in found.sources.items()} == {
        "spot": "metadata",
        "cbase": "metadata",
    }
    assert found.warnings == ()
    assert sorted(venue.asked) == ["/api/v3/exchangeInfo", "/dapi/v1/exchangeInfo"]


async def test_unknown_symbols_are_all_named_at_once_with_the_nearest(ask: Ask) -> None:
    with pytest.raises(ConfigError) as caught:
        await ask(("spot", ("BTCUSDT", "BTCUSDTT", "ethusdt")), ("cbase", ("BTCUSD_PREP",)))
    problems = caught.value.problems
    assert [p.path for p in problems] == [
        "connections[0].spot.symbols[1]",
        "connections[0].spot.symbols[2]",
        "connections[0].cbase.symbols[0]",
    ]
    assert "nearest: BTCUSDT" in problems[0].message
    assert "nearest: ETHUSDT" in problems[1].message
    assert "nearest: BTCUSD_PERP" in problems[2].message


async def test_the_disk_stands_in_when_the_venue_fails(ask: Ask, venue: Venue) -> None:
    await ask(("spot", ("BTCUSDT",)))
    venue.status = 503
    found = await ask(("spot", ("BTCUSDT", "NEWUSDT")))
    assert found.sources["spot"].kind == "cache"
    assert found.sources["spot"].date.endswith("UTC")
    assert found.instruments["spot", "BTCUSDT"].tick == "0.01000000"
    assert found.symbols["spot", "NEWUSDT"] == "NEWUSDT"  # listed since, perhaps: no error
    assert any("HTTP 503" in warning for warning in found.warnings)
    assert any("'NEWUSDT' is not in the list of" in warning for warning in found.warnings)


async def test_without_list_and_disk_the_rules_map_with_a_warning(ask: Ask, venue: Venue) -> None:
    venue.status = 500
    found = await ask(("spot", ("WHATEVER",)))
    assert found.symbols == {("spot", "WHATEVER"): "WHATEVER"}
    assert found.sources["spot"].kind == "rule"
    assert len(found.warnings) == 1
    assert "HTTP 500" in found.warnings[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"endpoints": {"spot": ("ws://127.0.0.1:1/stream",)}}, "overridden without 'rest'"),
        ({"metadata": "off"}, "metadata is off"),
    ],
)
async def test_the_rules_apply_where_the_list_does_not(
    ask: Ask, venue: Venue, settings: dict[str, Any], words: str
) -> None:
    await ask(("spot", ("BTCUSDT",)))
    venue.asked.clear()
    found = await ask(("spot", ("NOSUCH",)), **settings)
    assert found.sources["spot"].kind == "rule"
    assert words in found.warnings[0]
    assert not venue.asked


async def test_offline_asks_nobody(ask: Ask, venue: Venue) -> None:
    found = await ask(("spot", ("BTCUSDT",)), offline=True)
    assert found.sources["spot"].kind == "rule"
    assert not venue.asked
    await ask(("spot", ("BTCUSDT",)))
    venue.asked.clear()
    found = await ask(("spot", ("BTCUSDT",)), offline=True)
    assert found.sources["spot"].kind == "cache"
    assert not venue.asked


async def test_a_venue_that_does_not_answer_costs_the_deadline_and_no_more(
    ask: Ask, venue: Venue
) -> None:
    venue.silent.clear()
    clock = SystemClock()
    begun = clock.monotonic()
    found = await ask(("spot", ("A",)), ("ubase", ("B",)), ("cbase", ("C",)), deadline=0.2)
    assert 0.2 <= clock.monotonic() - begun < 2.0
    assert len(venue.asked) == 3  # side by side
    assert all("no answer within 0.2 s" in warning for warning in found.warnings)
    assert {source.kind for source in found.sources.values()} == {"rule"}


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"symbols":[]}', b'{"symbols":[{"symbol":1}]}', b"\xff", b"[" * 9999],
)
async def test_a_list_that_is_none_is_a_warning(ask: Ask, venue: Venue, body: bytes) -> None:
    venue.lists["/api/v3/exchangeInfo"] = body
    found = await ask(("spot", ("BTCUSDT",)))
    assert found.sources["spot"].kind == "rule"
    assert len(found.warnings) == 1


async def test_a_second_base_is_asked_where_the_first_is_down(ask: Ask, venue: Venue) -> None:
    found = await ask(
        ("spot", ("BTCUSDT",)), endpoints={"rest": ("http://127.0.0.1:9", f"{venue.url}/")}
    )
    assert found.sources["spot"].kind == "metadata"
    assert venue.asked == ["/api/v3/exchangeInfo"]


async def test_the_cache_is_private_whole_and_apart_for_every_base(
    ask: Ask, venue: Venue, tmp_path: Path
) -> None:
    await ask(("spot", ("BTCUSDT",)))
    (file,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    kept = listings.kept(file)
    assert kept is not None
    assert [i.symbol for i in kept.instruments][:2] == ["BTCUSDT", "ETHUSDT"]
    other = await ask(
        ("spot", ("BTCUSDT",)), endpoints={"rest": ("http://127.0.0.1:9",)}, offline=True
    )
    assert other.sources["spot"].kind == "rule"
    file.write_bytes(file.read_bytes()[:50])
    venue.status = 404
    assert (await ask(("spot", ("BTCUSDT",)))).sources["spot"].kind == "rule"


async def test_a_cache_that_cannot_be_written_is_a_warning(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = await ask(("spot", ("BTCUSDT",)), cache_dir=tmp_path / "file" / "below")
    assert found.sources["spot"].kind == "metadata"
    assert "cannot be kept" in found.warnings[0]


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert listings.default_cache_dir() == tmp_path / "k4" / "symbols"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert listings.default_cache_dir() == tmp_path / "home" / ".cache" / "k4" / "symbols"


async def test_a_bad_ca_file_is_an_error_that_names_it(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(K4Error, match=r"none\.pem"):
        await ask(("spot", ("BTCUSDT",)), ca_file=str(tmp_path / "none.pem"))


async def test_pages_are_followed(ask: Ask, venue: Venue) -> None:
    def parse(body: bytes) -> tuple[list[Instrument], str]:
        page = msgspec.json.decode(body)
        return [Instrument(symbol=s, venue_symbol=f"{s}-X") for s in page["list"]], page["next"]

    venue.lists = {"/a": {"list": ["ONE"], "next": "/b"}, "/b": {"list": ["TWO"], "next": ""}}
    spot = EXCHANGE.product("spot")
    product = msgspec.structs.replace(spot, metadata=Metadata(path="/a", parse=parse))
    paged = msgspec.structs.replace(EXCHANGE, name="paged", products=(product,))
    found = await ask(("spot", ("TWO", "ONE")), exchange=paged)
    assert found.symbols == {("spot", "TWO"): "TWO-X", ("spot", "ONE"): "ONE-X"}
    venue.lists = {"/a": {"list": ["ONE"], "next": "/a"}}
    assert (await ask(("spot", ("ONE",)), exchange=paged)).sources["spot"].kind == "cache"


async def test_a_symbol_that_means_two_instruments_is_an_error(ask: Ask, venue: Venue) -> None:
    def parse(body: bytes) -> tuple[list[Instrument], str]:
        ids = ("BTC-USDT", "BTC-USDT-SWAP", "ETH-USDT")
        return [
            Instrument(symbol=id.replace("-SWAP", "").replace("-", ""), venue_symbol=id)
            for id in ids
        ], ""

    spot = EXCHANGE.product("spot")
    product = msgspec.structs.replace(spot, metadata=Metadata(path="/a", parse=parse))
    twice = msgspec.structs.replace(EXCHANGE, name="twice", products=(product,))
    with pytest.raises(ConfigError, match="write one of BTC-USDT, BTC-USDT-SWAP"):
        await ask(("spot", ("BTCUSDT",)), exchange=twice)
    found = await ask(("spot", ("BTC-USDT-SWAP", "ETHUSDT")), exchange=twice)
    assert found.symbols["spot", "BTC-USDT-SWAP"] == "BTC-USDT-SWAP"
    assert found.symbols["spot", "ETHUSDT"] == "ETH-USDT"
    with pytest.raises(ConfigError, match="are both the venue's 'ETH-USDT'"):
        await ask(("spot", ("ETHUSDT", "ETH-USDT")), exchange=twice)


def test_a_spelling_of_k4_goes_before_one_of_the_venue() -> None:
    a = Instrument(symbol="AB", venue_symbol="A-B")
    b = Instrument(symbol="CD", venue_symbol="AB")
    assert match(["AB", "CD", "A-B", "X"], [a, b, a]) == [(a,), (b,), (a,), ()]


def test_halted_symbols_are_listed_and_odd_fields_are_ignored() -> None:
    listing = b'{"symbol":"A","status":"BREAK","x":[{}],"filters":[{"filterType":"Z"}]}'
    body = b'{"timezone":"UTC","symbols":[' + listing + b"]}"
    assert parse_instruments(body) == ([Instrument(symbol="A", venue_symbol="A")], "")
