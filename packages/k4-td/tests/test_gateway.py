"""The order gateway over its real socket: protocol, both client libraries, hostile peers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from td_setup import TIMING, config, order
from td_venue import FakeVenue
from td_venue import Fault as VenueFault

from k4.core.config import RiskLimits
from k4.core.trading import (
    AccountType,
    BalanceRefused,
    Event,
    Fault,
    Filled,
    FilterRefused,
    GatewayError,
    InvalidOrder,
    KeyRefreshed,
    OrderChanged,
    OrderMissing,
    OrderStatus,
    OrderType,
    OrderUpdate,
    RiskRefused,
    to_wire,
)
from k4.td import AsyncTdClient, TdClient, TdModule

Json = dict[str, Any]


@pytest.fixture
async def venue() -> AsyncIterator[FakeVenue]:
    fake = FakeVenue()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def module(venue: FakeVenue, tmp_path: Path) -> AsyncIterator[TdModule]:
    made = TdModule(
        config(venue, tmp_path, ("spot", "ubase"), socket=str(tmp_path / "td.sock")),
        timing=TIMING,
    )
    await made.login(20.0)
    yield made
    await made.stop()


class Raw:
    """A peer that speaks JSON lines by hand, as any language would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, module: TdModule, greet: bool = True, **hello: Any) -> Raw:
        peer = cls(*await asyncio.open_unix_connection(module.config.socket, limit=1 << 20))
        if greet:
            await peer.ask(0, "hello", client="raw", **hello)
        return peer

    def send(self, request_id: Any, method: str, **params: Any) -> None:
        line = json.dumps({"id": request_id, "method": method, "params": params})
        self.writer.write(line.encode() + b"\n")

    async def read(self) -> Json:
        async with asyncio.timeout(10):
            found: Json = json.loads(await self.reader.readline())
        return found

    async def ask(self, request_id: Any, method: str, **params: Any) -> Json:
        self.send(request_id, method, **params)
        while True:
            answer = await self.read()
            if answer.get("id") == request_id and "event" not in answer:
                return answer

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # the gateway tells nobody about its clients
            await asyncio.sleep(0.01)


def place(**more: Any) -> Json:
    data = to_wire(order(**more))
    return {name: value for name, value in data.items() if value not in ("", 0, 0.0)}


def test_it_serves_on_the_loop_that_workers_use(tmp_path: Path) -> None:
    """uvloop's transports are not subclasses of asyncio's."""

    async def trade() -> OrderStatus:
        venue = FakeVenue()
        await venue.start()
        settings = config(venue, tmp_path, ("spot",), socket=str(tmp_path / "uv.sock"))
        td = TdModule(settings, timing=TIMING)
        try:
            await td.login(20.0)
            async with AsyncTdClient(settings.socket, "mm1") as client:
                return (await client.insert_order(order())).status
        finally:
            await td.stop()
            await venue.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(trade()) is OrderStatus.NEW


async def test_a_blocking_client_may_ask_for_the_events_that_are_here(module: TdModule) -> None:
    def trade() -> list[Event]:
        with TdClient(module.config.socket, "mm1", events=True) as client:
            assert list(client.events(timeout=0)) == []
            client.insert_order(order())
            return list(client.events(timeout=0))

    seen = await asyncio.to_thread(trade)
    assert any(isinstance(event, OrderChanged) for event in seen)


async def test_the_protocol_by_hand(module: TdModule, venue: FakeVenue) -> None:
    peer = await Raw.connect(module, greet=False)
    early = await peer.ask(1, "query_positions")
    assert early["error"]["code"] == "gateway.hello"
    hello = await peer.ask("h", "hello", client="mm1", events=True)
    assert hello["result"]["protocol"] == 1
    assert hello["result"]["accounts"] == ["spot", "ubase"]
    assert hello["result"]["symbols"]["spot"] == ["BTCUSDT"]
    placed = (await peer.ask(2, "insert_order", **place(client_order_id="mine-1")))["result"]
    assert placed["status"] == "new"
    assert (placed["price"], placed["quantity"]) == ("90.0", "0.100")
    assert placed["order_id"] == str(venue.orders[0].id)
    assert placed["client_order_id"] == "mine-1"
    asked = await peer.ask(3, "query_order", order_id=venue.orders[0].id, symbol="BTC/USDT")
    assert asked["result"]["client_order_id"] == "mine-1"
    listed = await peer.ask(4, "query_open_orders", account_type="spot")
    assert [entry["client_order_id"] for entry in listed["result"]["orders"]] == ["mine-1"]
    canceled = await peer.ask(5, "cancel_order", client_order_id="mine-1")
    assert canceled["result"]["status"] == "canceled"
    again = await peer.ask(6, "cancel_order", client_order_id="mine-1")
    assert again["error"]["code"] == "venue.missing"
    assert again["error"]["remedy"]
    await peer.close()


async def test_events_are_numbered_without_a_gap(module: TdModule, venue: FakeVenue) -> None:
    peer = await Raw.connect(module, greet=False)
    hello = await peer.ask(0, "hello", client="mm1", events=True)
    module.bus.emit(KeyRefreshed(account_type=AccountType.UBASE))  # no event of the protocol
    peer.send(1, "insert_order", **place(order_type=OrderType.MARKET, price=Decimal(0)))
    seen: list[Json] = []
    while not any(entry.get("data", {}).get("status") == "filled" for entry in seen):
        message = await peer.read()
        if "event" in message:
            seen.append(message)
    first = hello["result"]["seq"] + 1
    assert [entry["seq"] for entry in seen] == list(range(first, first + len(seen)))
    names = [entry["event"] for entry in seen]
    assert {"order_update", "fill"} <= set(names)
    fill = next(entry["data"] for entry in seen if entry["event"] == "fill")
    assert (fill["price"], fill["quantity"]) == ("101", "0.100")
    await peer.close()


async def test_errors_carry_code_venue_code_and_remedy(module: TdModule, venue: FakeVenue) -> None:
    peer = await Raw.connect(module)
    venue.faults.append(
        VenueFault("order.place", "error", "before", 400, -2010, "Account has insufficient balance")
    )
    refused = (await peer.ask(1, "insert_order", **place()))["error"]
    assert (refused["code"], refused["venue_code"]) == ("venue.balance", -2010)
    assert refused["remedy"]
    assert refused["order"]["status"] == "rejected"
    price = (await peer.ask(2, "insert_order", **place(price=Decimal("90.03"))))["error"]
    assert (price["code"], price["nearest"]) == ("filter.PRICE_FILTER", "90.0")
    for params, code in (
        ({"price": 90.0}, "order.price"),
        ({"price": "NaN"}, "order.price"),
        ({"price": "1e999999"}, "order.price"),
        ({"quantity": "abc"}, "order.quantity"),
        ({"colour": "red"}, "order.field"),
        ({"direction": "up"}, "order.field"),
        ({"account_type": "cbase", "symbol": "BTCUSD_PERP"}, "order.account_type"),
    ):
        answer = await peer.ask(3, "insert_order", **{**place(), **params})
        assert answer["error"]["code"] == code, params
    assert (await peer.ask(4, "fly"))["error"]["code"] == "gateway.method"
    assert (await peer.ask(5, "query_order", foo=1))["error"]["code"] == "gateway.params"
    assert (await peer.ask(6, "cancel_order", client_order_id="x"))["error"]["code"] == (
        "venue.missing"
    )
    assert len(venue.orders) == 0
    await peer.close()


async def test_answers_keep_their_order_per_order_and_not_across(
    module: TdModule, venue: FakeVenue
) -> None:
    peer = await Raw.connect(module)
    venue.faults.append(VenueFault("order.place", "delay", "after", seconds=0.3))
    peer.send(1, "insert_order", **place(client_order_id="slow"))
    await venue.until(lambda: "slow" in venue.placed)
    peer.send(2, "cancel_order", client_order_id="slow")
    peer.send(3, "insert_order", **place(client_order_id="quick"))
    order_of = [(await peer.read())["id"] for _ in range(3)]
    assert order_of == [3, 1, 2]
    await peer.close()


async def test_a_strategy_that_leaves_takes_its_orders_along(
    module: TdModule, venue: FakeVenue
) -> None:
    stays = await Raw.connect(module)
    await stays.ask(1, "insert_order", **place(client_order_id="stays"))
    leaves = await Raw.connect(module, cancel_on_disconnect=True)
    await leaves.ask(1, "insert_order", **place(client_order_id="goes"))
    venue.faults.append(VenueFault("order.place", "delay", "before", seconds=0.2))
    leaves.send(2, "insert_order", **place(client_order_id="on-its-way"))
    await venue.until(lambda: len([n for n in venue.requests if "place" in n]) == 3)
    leaves.writer.transport.abort()
    await venue.until(lambda: len(venue.orders) == 3)
    await venue.until(lambda: [entry.open for entry in venue.orders] == [True, False, False])
    await stays.close()


async def test_orders_of_strategies_that_died_with_the_gateway_are_cancelled_at_its_start(
    venue: FakeVenue, tmp_path: Path
) -> None:
    settings = config(venue, tmp_path, ("spot",), socket=str(tmp_path / "td.sock"))
    first = TdModule(settings, timing=TIMING)
    await first.login(20.0)
    await first.insert_order(order(client_order_id="a"), cancel_on_disconnect=True)
    await first.insert_order(order(client_order_id="b"))
    await first.stop()
    assert all(entry.open for entry in venue.orders)
    second = TdModule(settings, timing=TIMING)
    await second.login(20.0)
    await venue.until(lambda: [entry.open for entry in venue.orders] == [False, True])
    await second.stop()


async def test_both_libraries_have_the_module_s_methods(module: TdModule, venue: FakeVenue) -> None:
    path = module.config.socket
    async with AsyncTdClient(path, "mm1", events=True) as td:
        await exercise(td, venue)
        seen: list[Event] = []
        async with asyncio.timeout(5):
            async for event in td.events():
                seen.append(event)
                if isinstance(event, Filled):
                    break
        assert any(isinstance(event, OrderChanged) for event in seen)

    class Blocking:
        """The blocking library, called from a thread."""

        def __init__(self, client: TdClient) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            async def call(*args: Any, **named: Any) -> Any:
                return await asyncio.to_thread(getattr(self._client, name), *args, **named)

            return call

    client = await asyncio.to_thread(TdClient, path, "mm2", events=True)
    with client:
        await exercise(Blocking(client), venue)
        kinds = await asyncio.to_thread(lambda: [type(e) for e in client.events(timeout=0.2)])
    assert OrderChanged in kinds
    assert Filled in kinds


async def exercise(td: Any, venue: FakeVenue) -> None:
    placed = await td.insert_order(order())
    assert isinstance(placed, OrderUpdate)
    assert placed.status is OrderStatus.NEW
    key = placed.client_order_id
    amended = await td.amend_order(key, quantity=Decimal("0.090"))
    assert amended.quantity == Decimal("0.090")
    assert [entry.client_order_id for entry in await td.query_open_orders()] == [key]
    assert (await td.query_order(key)).status is OrderStatus.NEW
    assert (await td.cancel_order(key, account_type=AccountType.SPOT)).status.final
    with pytest.raises(OrderMissing):
        await td.cancel_order(key)
    with pytest.raises(FilterRefused) as price:
        await td.insert_order(order(price=Decimal("90.03")))
    assert price.value.nearest == Decimal("90.0")
    venue.faults.append(
        VenueFault("order.place", "error", "before", 400, -2010, "insufficient balance")
    )
    with pytest.raises(BalanceRefused) as balance:
        await td.insert_order(order())
    assert balance.value.venue_code == -2010
    assert balance.value.order is not None
    with pytest.raises(InvalidOrder):
        await td.insert_order(order(quantity=Decimal(0)))
    filled = await td.insert_order(order("ubase", order_type=OrderType.MARKET, price=Decimal(0)))
    assert filled.status is OrderStatus.FILLED
    [position] = await td.query_positions()
    assert position.quantity > 0
    assert {entry.asset for entry in await td.query_balances(AccountType.SPOT)} == {"BTC", "USDT"}
    await td.insert_order(order())
    [gone] = await td.cancel_all_orders(AccountType.SPOT)
    assert gone.status is OrderStatus.CANCELED
    await td.insert_order(order())
    [killed] = await td.kill("because")
    assert killed.status is OrderStatus.CANCELED
    with pytest.raises(RiskRefused, match="because"):
        await td.insert_order(order())
    assert await td.kill(release=True) == []
    assert (await td.insert_order(order())).status is OrderStatus.NEW
    await td.cancel_all_orders()


async def test_long_lists_come_in_pages_within_the_line_limit(
    module: TdModule, venue: FakeVenue
) -> None:
    for number in range(300):
        venue._place(
            "ubase",
            {
                "symbol": "BTCUSDT",
                "side": "BUY",
                "type": "LIMIT",
                "timeInForce": "GTC",
                "quantity": "1",
                "price": "50",
                "newClientOrderId": f"web_{number}",
            },
        )
    peer = await Raw.connect(module)
    peer.send(1, "query_open_orders")
    async with asyncio.timeout(10):
        line = await peer.reader.readline()
    assert len(line) <= 64 * 1024
    assert json.loads(line)["result"]["next"]
    assert (await peer.ask(2, "more", next="orders-99"))["error"]["code"] == "gateway.params"
    await peer.close()
    async with AsyncTdClient(module.config.socket, "mm1") as td:
        found = await td.query_open_orders()
        assert len({entry.client_order_id for entry in found}) == 300
        assert len(await td.cancel_all_orders()) == 300


async def test_a_line_that_is_too_long_is_refused_and_the_next_one_served(
    module: TdModule,
) -> None:
    peer = await Raw.connect(module)
    peer.writer.write(b"x" * 70_000 + b"\n")
    assert (await peer.read())["error"]["code"] == "gateway.line"
    assert "result" in await peer.ask(2, "query_balances")
    await peer.close()


async def test_a_client_that_does_not_read_is_dropped(module: TdModule) -> None:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, module.config.socket)
    hello = {"id": 0, "method": "hello", "params": {"client": "slow", "events": True}}
    await loop.sock_sendall(raw, json.dumps(hello).encode() + b"\n")
    gateway = module._gateway
    assert gateway is not None
    await eventually(lambda: len(gateway.clients) == 1)
    await eventually(lambda: bool(_flood(module)) and not gateway.clients)
    raw.close()


def _flood(module: TdModule) -> int:
    for _ in range(2000):
        module.bus.emit(Fault(code="test", message="x" * 500))
    return 2000


@settings(max_examples=25, deadline=None)
@given(blocks=st.lists(st.binary(min_size=1, max_size=300), max_size=6), lines=st.booleans())
def test_no_bytes_ever_crash_the_gateway(blocks: list[bytes], lines: bool) -> None:
    asyncio.run(_fuzz(blocks, lines))


async def _fuzz(blocks: list[bytes], lines: bool) -> None:
    """A module without any venue: the gateway must answer hello after whatever came before."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"k4fuzz-{os.getpid()}"
    names = [path.with_suffix(suffix) for suffix in (".sock", ".db", ".db.lock")]
    fake = FakeVenue()
    settings = config(fake, folder, ("spot",), socket=str(names[0]), journal=str(names[1]))
    module = TdModule(settings, timing=TIMING)
    await module.prepare()
    module.start()
    try:
        await eventually(lambda: module._gateway is not None and bool(module._gateway._server))
        hostile = await Raw.connect(module, greet=False)
        await hostile.ask(1, "hello", client="hostile")
        for block in blocks:
            hostile.writer.write(block + (b"\n" if lines else b""))
        hostile.writer.write(b"\n")
        answer = await hostile.ask("last", "hello", client="again")
        assert answer["error"]["code"] == "gateway.hello"
        await hostile.close()
    finally:
        await module.stop()
        for name in names[1:]:
            name.unlink()


async def test_the_socket_is_the_owner_s_alone_and_stale_ones_are_replaced(
    venue: FakeVenue, tmp_path: Path
) -> None:
    path = tmp_path / "td.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    module = TdModule(config(venue, tmp_path, ("spot",), socket=str(path)), timing=TIMING)
    await module.prepare()
    module.start()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    other = TdModule(
        config(venue, tmp_path, ("spot",), socket=str(path), journal=str(tmp_path / "2.db")),
        timing=TIMING,
    )
    with pytest.raises(GatewayError, match="another process listens"):
        await other.prepare()
    await other.stop()
    await module.stop()
    assert path.name not in os.listdir(tmp_path)
    with pytest.raises(GatewayError, match="no order gateway") as caught:
        TdClient(str(path), "mm1")
    assert "k4-runner run" in caught.value.remedy
    file = tmp_path / "file"
    file.write_text("precious")
    third = TdModule(
        config(venue, tmp_path, ("spot",), socket=str(file), journal=str(tmp_path / "3.db")),
        timing=TIMING,
    )
    with pytest.raises(GatewayError):
        await third.prepare()
    await third.stop()
    assert file.read_text() == "precious"


async def test_a_peer_of_another_user_is_cut_off(
    module: TdModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's user is the kernel's word; here the gateway takes itself for somebody else."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    reader, writer = await asyncio.open_unix_connection(module.config.socket)
    hello = {"id": 1, "method": "hello", "params": {"client": "stranger"}}
    writer.write(json.dumps(hello).encode() + b"\n")
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    monkeypatch.undo()
    peer = await Raw.connect(module)  # its own user is served as before
    assert (await peer.ask(1, "query_open_orders"))["result"] == {"orders": []}
    await peer.close()


async def test_clients_learn_that_the_gateway_is_gone(venue: FakeVenue, tmp_path: Path) -> None:
    settings = config(venue, tmp_path, ("spot",), socket=str(tmp_path / "td.sock"))
    module = TdModule(settings, timing=TIMING)
    await module.login(20.0)
    blocking = await asyncio.to_thread(TdClient, settings.socket, "mm1")
    client = AsyncTdClient(settings.socket, "mm2", events=True)
    await client.connect()
    venue.faults.append(VenueFault("order.place", "drop", "after"))
    under_way = asyncio.ensure_future(client.insert_order(order()))
    await venue.until(lambda: bool(venue.placed))
    await module.stop()
    with pytest.raises(GatewayError, match="lost") as caught:
        await under_way
    assert "client_order_id" in caught.value.remedy
    with pytest.raises(GatewayError, match="lost"):
        async for _ in client.events():
            pass
    with pytest.raises(GatewayError, match="lost"):
        await asyncio.to_thread(blocking.query_balances)
    blocking.close()
    await client.close()


async def test_risk_refusals_say_rule_and_figures(venue: FakeVenue, tmp_path: Path) -> None:
    settings = config(
        venue,
        tmp_path,
        ("spot",),
        socket=str(tmp_path / "td.sock"),
        risk={"spot": RiskLimits(symbols=("BTCUSDT",), max_order_notional="8")},
    )
    module = TdModule(settings, timing=TIMING)
    await module.login(20.0)
    peer = await Raw.connect(module)
    error = (await peer.ask(1, "insert_order", **place()))["error"]
    assert error["code"] == "risk.max_order_notional"
    assert "notional 9 is above 8" in error["message"]
    await peer.close()
    await module.stop()
    assert venue.placed == []
