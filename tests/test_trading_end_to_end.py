"""Strategies in one process, `k4-runner run` in others, the simulated Binance behind real sockets.

What happened is judged by the venue's ledger: every request is verified there from its raw bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trading_client

from k4.core.enums import Kind
from k4.core.shm import ShmMdStore, remove_store
from k4.core.trading import (
    AccountType,
    BalanceRefused,
    Direction,
    Event,
    Filled,
    FilterRefused,
    ForeignOrder,
    GatewayError,
    InvalidOrder,
    NewOrder,
    OrderChanged,
    OrderError,
    OrderMissing,
    OrderStatus,
    OrderType,
    OrderUpdate,
    RiskRefused,
    WouldNotRest,
)
from k4.runner.sim.trading.spec import TradingSpec
from k4.runner.sim.trading.venue import SimTrading
from k4.td import AsyncTdClient

SYMBOLS = {"spot": "BTCUSDT", "ubase": "BTCUSDT", "cbase": "BTCUSD_PERP"}
BBO = f"e2e{os.getpid()}_bbo"
BID, ASK = 63_990, 64_010
Json = dict[str, Any]


def order(account: str = "spot", **more: Any) -> NewOrder:
    """A bid inside the market's spread, unless told otherwise."""
    values: Json = {
        "symbol": SYMBOLS[account],
        "account_type": AccountType(account),
        "direction": Direction.BUY,
        "order_type": OrderType.GTC,
        "quantity": Decimal(10) if account == "cbase" else Decimal("0.010"),
        "price": Decimal(63_995),
        **more,
    }
    return NewOrder(**values)


class Run:
    """`k4-runner run` with one trading entry, on a venue that the test moves by hand."""

    def __init__(self, venue: SimTrading, folder: Path, algorithm: str, **entry: Any) -> None:
        self.venue = venue
        self.folder = folder
        self.socket = str(folder / "td.sock")
        self.file = folder / "config.json"
        self.log = ""  # everything that it printed and logged
        self._process: Process | None = None
        config = {
            "RazorTrade": {"module_name": f"e2e{os.getpid()}"},
            "trading": [
                {
                    **venue.config_entries("main", folder, algorithm),
                    "name": "main",
                    "journal": str(folder / "journal.db"),
                    "socket": self.socket,
                    **entry,
                }
            ],
        }
        self.file.write_text(json.dumps(config))

    async def start(self) -> None:
        """Return when every account takes orders."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "k4.runner.cli", "run", str(self.file)),
            *("--log-level", "debug"),
            stdout=PIPE,
            stderr=PIPE,
        )
        await self.connected()

    async def connected(self) -> None:
        async with asyncio.timeout(30):
            while True:
                with suppress(GatewayError):
                    async with self.client("probe") as client:
                        if len(client.info["connected"]) == len(client.info["accounts"]):
                            return
                await asyncio.sleep(0.02)  # nothing tells another process that a socket appears

    async def stop(self) -> list[Json]:
        """Its receipts. What it printed and logged is in `log` then."""
        if self._process is None:
            return []
        process, self._process = self._process, None
        process.terminate()
        out, err = await process.communicate()
        self.log += err.decode()
        self.log += out.decode()
        assert process.returncode == 0, self.log
        return [json.loads(line) for line in out.splitlines()]

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def workers(self) -> list[int]:
        """Processes of the run that have its journal open."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        journal = str(self.folder / "journal.db")
        return [
            int(pid)
            for pid in children.read_text().split()
            if any(os.path.realpath(link) == journal for link in Path(f"/proc/{pid}/fd").iterdir())
        ]

    def client(self, name: str = "mm1", **options: Any) -> AsyncTdClient:
        return AsyncTdClient(self.socket, name, **options)


@asynccontextmanager
async def running(folder: Path, algorithm: str = "hmac", **entry: Any) -> AsyncIterator[Run]:
    async with SimTrading(TradingSpec(market="manual")) as venue:
        for account, symbol in SYMBOLS.items():
            venue.quote(account, symbol, "buy", str(BID), "1000000")
            venue.quote(account, symbol, "sell", str(ASK), "1000000")
        run = Run(venue, folder, algorithm, **entry)
        try:
            await run.start()
            yield run
        finally:
            await run.stop()
        assert "connected and reconciled" in run.log
        assert secrets_told(run) == []
    # Whatever else a test is about: the venue took every signature and stamp, and nothing twice.
    assert {request.code for request in venue.ledger.requests}.isdisjoint({-1021, -1022, -2015})
    assert venue.ledger.sent_twice() == []


def secrets_told(run: Run) -> list[str]:
    """Secrets that are where they must not be: in a log, in the journal, in a receipt."""
    told = run.log.encode()
    for path in run.folder.iterdir():
        if path.is_file() and path.suffix not in (".key", ".secret", ".pem"):
            told += path.read_bytes()
    keys = list(run.venue.keys)
    secrets = [key.api_key for key in keys]
    secrets += [key.private for key in keys if key.algorithm == "hmac"]
    secrets += [
        key.private.splitlines()[1] for key in keys if key.algorithm != "hmac"
    ]  # of the PEM
    secrets += list(run.venue.streams._keys)  # listen keys
    assert len(secrets) > 2 * len(keys)
    return [secret for secret in secrets if secret.encode() in told]


class Ear:
    """Every event that a client hears, and a way to wait for one."""

    def __init__(self, client: AsyncTdClient) -> None:
        self.heard: list[Event] = []
        self._more = asyncio.Event()
        self._task = asyncio.ensure_future(self._listen(client))

    async def _listen(self, client: AsyncTdClient) -> None:
        with suppress(GatewayError):
            async for event in client.events():
                self.heard.append(event)
                self._more.set()

    async def until(self, condition: Callable[[Event], bool]) -> Event:
        async with asyncio.timeout(15):
            while True:
                for event in self.heard:
                    if condition(event):
                        return event
                self._more.clear()
                await self._more.wait()

    async def status(self, update: OrderUpdate, status: OrderStatus) -> OrderUpdate:
        def fits(event: Event) -> bool:
            return (
                isinstance(event, OrderChanged)
                and event.update.client_order_id == update.client_order_id
                and event.update.status is status
            )

        found = await self.until(fits)
        assert isinstance(found, OrderChanged)
        return found.update

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def listening(run: Run, name: str = "ear") -> AsyncIterator[Ear]:
    async with run.client(name, events=True) as client:
        ear = Ear(client)
        try:
            yield ear
        finally:
            await ear.close()


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    """Until it is true of the venue or of a process, which tell nobody."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# -- the life of an order -------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["hmac", "ed25519"])
async def test_an_order_lives_on_every_product(algorithm: str, tmp_path: Path) -> None:
    async with running(tmp_path, algorithm) as run, run.client() as td, listening(run) as ear:
        for account, symbol in SYMBOLS.items():
            placed = await td.insert_order(order(account))
            assert placed.status is OrderStatus.NEW
            await ear.status(placed, OrderStatus.NEW)
            [there] = run.venue.ledger.orders(client_id=placed.client_order_id)
            assert (str(there.number), there.product, there.status) == (
                placed.order_id,
                account,
                "NEW",
            )
            part = placed.quantity * Decimal("0.3")
            run.venue.hit(account, symbol, "sell", "63995", str(part))
            partly = await ear.status(placed, OrderStatus.PARTIALLY_FILLED)
            assert partly.filled_quantity == part == there.executed
            fill = await ear.until(
                lambda event, key=placed.client_order_id: (  # type: ignore[misc]
                    isinstance(event, Filled) and event.fill.client_order_id == key
                )
            )
            assert isinstance(fill, Filled)
            [trade] = run.venue.ledger.trades(client_id=placed.client_order_id)
            assert (fill.fill.trade_id, fill.fill.price, fill.fill.is_maker) == (
                str(trade.id),
                trade.price,
                True,
            )
            less = placed.quantity * Decimal("0.8")
            amended = await td.amend_order(placed.client_order_id, quantity=less)
            assert amended.quantity == less == there.quantity
            gone = await td.cancel_order(placed.client_order_id)
            assert (gone.status, gone.filled_quantity) == (OrderStatus.CANCELED, part)
            await ear.status(placed, OrderStatus.CANCELED)
            asked = await td.query_order(placed.client_order_id)
            assert (asked.status, there.status) == (OrderStatus.CANCELED, "CANCELED")
        assert await td.query_open_orders() == []
        assert {position.symbol for position in await td.query_positions()} == {
            "BTCUSDT",
            "BTCUSD_PERP",
        }
        receipts = await run.stop()
    assert [(row["type"], row["open"], row["unknown"]) for row in receipts] == [
        ("trading", 0, 0)
    ] * 3


async def test_an_answer_that_is_lost_leaves_no_guess(tmp_path: Path) -> None:
    async with running(tmp_path) as run, run.client() as td, listening(run) as ear:
        run.venue.inject({"fault": "disconnect", "when": "after", "target": {"op": "order.place"}})
        update = await td.insert_order(order())
        assert run.venue.ledger.faults("disconnect")
        # It was executed; the venue's word came by an event or by a query, never by a second order.
        assert update.status in (OrderStatus.UNKNOWN, OrderStatus.NEW)
        await ear.status(update, OrderStatus.NEW)
        assert len(run.venue.ledger.received("order.place")) == 1


async def test_a_strategy_that_disconnects_takes_its_orders_along(tmp_path: Path) -> None:
    async with running(tmp_path) as run, run.client("stays") as other:
        kept = await other.insert_order(order(price=Decimal(63_991)))
        async with run.client("leaves", cancel_on_disconnect=True) as td:
            gone = [await td.insert_order(order(account)) for account in SYMBOLS]
        await until(lambda: len(run.venue.ledger.orders(open_only=True)) == 1)
        for update in gone:
            assert (await other.query_order(update.client_order_id)).status is OrderStatus.CANCELED
        assert (await other.query_order(kept.client_order_id)).status is OrderStatus.NEW


# -- refusals -------------------------------------------------------------------------------------


async def refused(td: AsyncTdClient, wanted: NewOrder) -> OrderError:
    with pytest.raises(OrderError) as caught:
        await td.insert_order(wanted)
    return caught.value


async def test_risk_refuses_with_rule_and_figures_and_nothing_leaves(tmp_path: Path) -> None:
    limits = {
        "symbols": ["BTCUSDT"],
        "max_order_qty": "0.5",
        "max_order_notional": "20000",
        "max_position": "1",
        "max_open_orders": 2,
        "max_orders_per_sec": 1000,
        "price_collar_bps": 10,
        "bbo_store": BBO,
        "max_bbo_age_ms": 60_000,
    }
    with ShmMdStore(BBO, Kind.BOOKTICKER, ["BTCUSDT"], 16) as store:
        publish(store)
        risk = {"ubase": limits, "spot": {"symbols": ["ETHUSDT"]}}
        async with running(tmp_path, risk=risk) as run, run.client() as td:
            for wanted, rule, figures in (
                (order("spot"), "symbols", ("BTCUSDT",)),
                (order("ubase", quantity=Decimal(2)), "max_order_qty", ("2", "0.5")),
                (order("ubase", quantity=Decimal("0.4")), "max_order_notional", ("25598", "20000")),
                (order("ubase", price=Decimal(64_500)), "price_collar_bps", ("64500", "64010")),
            ):
                error = await refused(td, wanted)
                assert isinstance(error, RiskRefused)
                assert error.code == f"risk.{rule}"
                assert all(figure in error.message for figure in figures), error.message
                assert error.remedy
            assert run.venue.ledger.received("order.place") == []
            for _ in range(2):
                await td.insert_order(order("ubase"))
            error = await refused(td, order("ubase"))
            assert (error.code, "limit 2" in error.message) == ("risk.max_open_orders", True)
            assert len(run.venue.ledger.received("order.place")) == 2
    remove_store(BBO)


def publish(store: ShmMdStore) -> None:
    """A quote, and a feed that was live just now."""
    now_ns = time.time_ns()
    store.ring.lanes[0].publish(0, 1, 0, 42, BID, 1.0, ASK, 1.0, 0, 0, now_ns // 1000)
    store.feed_ok(now_ns)


async def test_every_refusal_says_what_to_do(tmp_path: Path) -> None:
    async with running(tmp_path) as run, run.client() as td:
        for wanted, kind, code in (
            (order(quantity=Decimal(60)), BalanceRefused, -2010),
            (order(order_type=OrderType.POST_ONLY, price=Decimal(64_020)), WouldNotRest, -2010),
            (order("ubase", order_type=OrderType.POST_ONLY, price=Decimal(64_020)), None, -5022),
            (order(price=Decimal("63995.001")), FilterRefused, None),
            (order(symbol="NOSUCHCOIN"), InvalidOrder, None),
        ):
            error = await refused(td, wanted)
            assert isinstance(error, kind or WouldNotRest), error
            assert error.venue_code == code
            assert error.remedy
        with pytest.raises(OrderMissing) as caught:
            await td.cancel_order("never-was")
        assert caught.value.remedy
        nearest = await refused(td, order(price=Decimal("63995.001")))
        assert "63995.00" in nearest.remedy
        assert [o.status for o in run.venue.ledger.orders()] == []


# -- the kill switch ------------------------------------------------------------------------------


async def kill_by_client(run: Run) -> None:
    async with run.client("operator") as client:
        await client.kill("too much")


async def kill_by_file(run: Run) -> None:
    (run.folder / "kill").touch()


async def kill_by_signal(run: Run) -> None:
    run.signal(signal.SIGUSR1)


@pytest.mark.parametrize("kill", [kill_by_client, kill_by_file, kill_by_signal])
async def test_a_kill_cancels_all_and_outlives_a_restart(
    kill: Callable[[Run], Any], tmp_path: Path
) -> None:
    async with running(tmp_path, risk={"kill_file": str(tmp_path / "kill")}) as run:
        async with run.client() as td:
            for account in SYMBOLS:
                await td.insert_order(order(account))
            await kill(run)
            await until(lambda: not run.venue.ledger.orders(open_only=True))
            error = await refused(td, order())
            assert error.code == "risk.kill_switch"
            assert "--release" in error.remedy
        await run.stop()
        (tmp_path / "kill").unlink(missing_ok=True)  # which does not release it
        await run.start()
        async with run.client() as td:
            assert (await refused(td, order())).code == "risk.kill_switch"
            assert len(run.venue.ledger.received("order.place")) == 3
            await td.kill(release=True)
            assert (await td.insert_order(order())).status is OrderStatus.NEW


# -- strangers and deaths -------------------------------------------------------------------------


async def test_an_order_that_somebody_else_placed_is_reported_and_not_adopted(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as run, aiohttp.ClientSession() as session:
        stranger = trading_client.Desk(run.venue, session)
        async with listening(run) as ear, run.client() as td:
            for account in SYMBOLS:
                name = f"by-hand-{account}"
                await stranger.placed(account, newClientOrderId=name)
                found = await ear.until(
                    lambda event, name=name: (  # type: ignore[misc]
                        isinstance(event, ForeignOrder) and event.update.client_order_id == name
                    )
                )
                assert isinstance(found, ForeignOrder)
                assert found.update.status is OrderStatus.NEW
            cancelled = await td.cancel_all_orders()
            assert {update.client_order_id for update in cancelled} == {
                f"by-hand-{account}" for account in SYMBOLS
            }
        await run.stop()
        assert "an order that is not in the journal" in run.log


async def test_a_killed_worker_comes_back_with_its_orders(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        async with run.client() as td:
            placed = [await td.insert_order(order(account)) for account in SYMBOLS]
            [worker] = run.workers()
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(GatewayError) as caught:
                async for _ in td.events():
                    pass
            assert caught.value.code == "gateway.lost"
        # Filled while nobody listened.
        run.venue.hit("spot", "BTCUSDT", "sell", "63995", "0.010")
        await run.connected()
        async with run.client() as td:
            found = [await td.query_order(update.client_order_id) for update in placed]
            assert [update.status for update in found] == [
                OrderStatus.FILLED,
                OrderStatus.NEW,
                OrderStatus.NEW,
            ]
            assert found[0].commission > 0
        assert run.workers() not in ([], [worker])
