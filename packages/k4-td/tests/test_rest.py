"""REST: one request, one answer, whatever breaks; and the connections' life."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from td_setup import TIMING, Log, config, order, running
from td_venue import KEY, FakeVenue
from td_venue import Fault as VenueFault

from k4.core.clock import SystemClock
from k4.core.config import Secret
from k4.core.module import Module
from k4.core.trading import (
    Connected,
    Disconnected,
    Fault,
    NotReady,
    OrderStatus,
    OutcomeUnknown,
)
from k4.td import TdModule
from k4.td.exchanges.binance.pacer import Pacer, window_value
from k4.td.exchanges.binance.protocol import USD_M, Call, Lane
from k4.td.exchanges.binance.rest import Http, Rest
from k4.td.exchanges.binance.venue import BinanceVenue
from k4.td.limits import Limiter
from k4.td.server_clock import ServerClock
from k4.td.signing import HmacSigner


def rest(port: int, http: Http) -> Rest:
    clock = SystemClock()
    pacer = Pacer(clock, ServerClock(), Limiter(()), TIMING, 5000.0)
    signer = HmacSigner(Secret("s"))
    return Rest(USD_M, f"http://127.0.0.1:{port}", http, Secret(KEY), signer, pacer, clock, TIMING)


class Breaking:
    """A server that reads a whole request and hangs up; the first one on each connection may be
    answered, so that the connection is a reused one."""

    def __init__(self, answered: int) -> None:
        self.requests: list[bytes] = []
        self._answered = answered
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Breaking:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *rest: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        await reader.readexactly(int(line.split(b":")[1]))
                self.requests.append(head.split(b"\r\n")[0])
                served += 1
                if served > self._answered:
                    return
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()


@pytest.mark.parametrize("verb", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("answered", [0, 1])
async def test_no_request_is_ever_sent_again_by_itself(verb: str, answered: int) -> None:
    """aiohttp would, for GET, PUT and DELETE: an amend or a cancel-all must not go out twice."""
    http = Http().join()
    async with Breaking(answered) as server:
        api = rest(server.port, http)
        call = Call(verb=verb, path="/fapi/v1/order", params={"symbol": "X"}, lane=Lane.CANCEL)
        for _ in range(answered):
            await api.call(call)
        with pytest.raises(OutcomeUnknown, match="connection lost"):
            await api.call(call)
        assert len(server.requests) == answered + 1
        await http.leave()


async def test_an_unreachable_venue_is_not_an_unknown_outcome() -> None:
    http = Http().join()
    async with Breaking(0) as server:
        port = server.port
    with pytest.raises(NotReady, match="cannot be reached"):
        await rest(port, http).call(Call(verb="POST", path="/x", lane=Lane.ORDER))
    await http.leave()


async def test_the_session_lives_until_its_last_user_leaves() -> None:
    http = Http().join().join()
    session = http.session
    await http.leave()
    assert not session.closed
    await http.leave()
    assert session.closed


def test_recv_window_is_an_integer_where_it_is_one() -> None:
    assert repr(window_value(5000.0)) == "5000"
    assert repr(window_value(0.1234)) == "0.123"


@pytest.fixture
async def venue() -> AsyncIterator[FakeVenue]:
    fake = FakeVenue()
    await fake.start()
    yield fake
    await fake.stop()


async def test_a_module_is_a_module_and_its_receipt_counts(
    venue: FakeVenue, tmp_path: Path
) -> None:
    made: Module = TdModule(config(venue, tmp_path, ("spot",)), timing=TIMING)
    assert isinstance(made, TdModule)
    await made.login(20.0)
    await made.insert_order(order())
    await made.stop()
    await made.stop()
    [receipt] = made.receipt()
    assert (receipt["account_type"], receipt["open"], receipt["connected"]) == ("spot", 1, 1)
    assert receipt["order_update"] >= 2


async def test_an_exchange_that_nobody_registered_is_told_with_those_there_are(
    venue: FakeVenue, tmp_path: Path
) -> None:
    module = TdModule(config(venue, tmp_path, exchange="nowhere"), timing=TIMING)
    with pytest.raises(NotReady, match="no exchange 'nowhere'") as caught:
        await module.prepare()
    assert "known: binance" in caught.value.remedy
    await module.stop()


async def test_a_module_that_was_never_started_stops(venue: FakeVenue, tmp_path: Path) -> None:
    module = TdModule(config(venue, tmp_path, ("spot",)), timing=TIMING)
    await module.stop()
    assert module.receipt() == []


async def test_a_venue_that_is_down_is_tried_again_until_it_is_up(tmp_path: Path) -> None:
    venue = FakeVenue()
    await venue.start()
    await venue.stop()
    module = TdModule(config(venue, tmp_path, ("spot", "ubase")), timing=TIMING)
    log = Log(module)
    await module.prepare()
    module.start()
    await log.until(lambda event: isinstance(event, Fault) and "reached" in event.message)
    await venue.start()
    for account in ("spot", "ubase"):
        await log.until_account(Connected, account)
    await module.stop()
    await venue.stop()


async def test_announced_shutdowns_are_answered_with_a_new_connection(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        before = len(venue.requests)
        venue.emit("spot", {"e": "serverShutdown", "E": 1})
        await venue.until(lambda: any("subscribe" in name for name in venue.requests[before:]))
        assert (await td.insert_order(order())).status is OrderStatus.NEW
        assert not [event for event in log.seen if isinstance(event, Disconnected)]
        venue.emit("spot", {"e": "eventStreamTerminated", "E": 1})
        await log.until_account(Disconnected, "spot")
        await log.until_account(Connected, "spot")


async def test_hostile_frames_and_unknown_events_are_counted_and_harm_nothing(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot", "ubase"))) as td:
        log = Log(td)
        events: list[dict[str, Any]] = [
            {"e": "executionReport"},
            {"e": "executionReport", "s": 5},
            {"e": "ORDER_TRADE_UPDATE", "o": []},
            {"e": "ACCOUNT_UPDATE", "a": {"P": [{"s": "X"}]}},
            {"e": "GRID_UPDATE"},
            {"x": None},
        ]
        for product in ("spot", "ubase"):
            for event in events:
                venue.emit(product, event)
        for ws in list(venue.subscribers):
            await ws.send_str("\x00 not json")
            await ws.send_str("[" * 5000)
            await ws.send_str('{"id": "never asked", "status": 200}')
        for account in ("spot", "ubase"):
            update = await td.insert_order(order(account))
            assert update.status is OrderStatus.NEW
            await log.status(update.client_order_id, OrderStatus.NEW)
        assert not [event for event in log.seen if isinstance(event, Disconnected)]
        for entry in td.accounts.values():
            assert isinstance(entry.venue, BinanceVenue)
            assert entry.venue.malformed >= 4


async def test_a_revoked_key_ends_the_session(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        for ws in list(venue.connections):
            await ws.send_str(
                '{"id":null,"status":401,"error":{"code":-2015,"msg":"Invalid API-key"}}'
            )
        await log.until_account(Disconnected, "spot")
        await log.until(lambda event: isinstance(event, Fault) and event.code == "venue.auth")
        await log.until_account(Connected, "spot")


async def test_a_failed_part_makes_the_whole_snapshot_fail(
    venue: FakeVenue, tmp_path: Path
) -> None:
    for part in ("openOrders", "account", "myTrades"):
        folder = tmp_path / part
        folder.mkdir()
        settings = config(venue, folder, ("spot",))
        async with running(settings) as td:
            await td.insert_order(order())
        venue.faults.append(VenueFault(f"spot GET {part}", "error", "before", 500, 0, "no"))
        module = TdModule(settings, timing=TIMING)
        log = Log(module)
        await module.login(20.0)
        kinds = [type(event) for event in log.seen if isinstance(event, Fault | Connected)]
        assert kinds == [Fault, Connected]
        await module.stop()


async def test_sockets_that_bring_nothing_are_dead(venue: FakeVenue, tmp_path: Path) -> None:
    """A peer that keeps TCP open and answers no ping (a test server that never reads)."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(
            line.split(b": ")[1]
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        )
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        await reader.read()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    urls = {"ubase": f"ws://127.0.0.1:{port}"}
    settings = config(venue, tmp_path, ("ubase",), ws_url=urls)
    module = TdModule(settings, timing=TIMING)
    log = Log(module)
    await module.login(20.0)
    event = await log.until(lambda event: isinstance(event, Disconnected))
    assert isinstance(event, Disconnected)
    assert event.reason == "no answer to pings"
    await module.stop()
    server.close()
    await server.wait_closed()
