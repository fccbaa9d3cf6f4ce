"""The operator's commands against a trading module at work on the simulated venue, and against
none.
"""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tiny import until

from k4.core.clock import SystemClock
from k4.core.config import TradingConfig
from k4.core.errors import ConfigError
from k4.core.loading import parse
from k4.core.trading import (
    AccountType,
    Direction,
    NewOrder,
    OrderStatus,
    OrderType,
    OrderUpdate,
    RiskRefused,
)
from k4.runner.operate import Office
from k4.runner.sim.trading.spec import TradingSpec
from k4.runner.sim.trading.venue import SimTrading
from k4.runner.trading import Trading
from k4.td.journal import Journal

SYMBOLS = {"spot": "BTCUSDT", "ubase": "BTCUSDT", "cbase": "BTCUSD_PERP"}
Json = dict[str, Any]


def buy(account: str, **more: Any) -> NewOrder:
    values: Json = {
        "symbol": SYMBOLS[account],
        "account_type": AccountType(account),
        "direction": Direction.BUY,
        "order_type": OrderType.GTC,
        "quantity": Decimal(5) if account == "cbase" else Decimal("0.010"),
        "price": Decimal(63_000),
        **more,
    }
    return NewOrder(**values)


class Desk:
    """A venue, a configuration that names it, and a trading module while it runs."""

    def __init__(self, venue: SimTrading, folder: Path) -> None:
        self.venue = venue
        self.folder = folder
        self.entry: Json = {
            **venue.config_entries("main", folder),
            "name": "main",
            "journal": str(folder / "journal.db"),
            "socket": str(folder / "td.sock"),
        }
        self.file = folder / "config.json"
        self.file.write_text(json.dumps({"trading": [self.entry]}))
        self.worker: Trading | None = None

    async def start(self) -> None:
        config = parse(self.file.read_bytes())
        self.worker = Trading(config.trading[0], clock=SystemClock())
        await self.worker.td.login(20.0)

    async def stop(self) -> None:
        if self.worker is not None:
            await self.worker.stop()
            self.worker = None

    async def place(self, account: str, **more: Any) -> OrderUpdate:
        assert self.worker is not None
        return await self.worker.td.insert_order(buy(account, **more))

    async def office(
        self, do: Callable[[Office], bool], as_json: bool = True
    ) -> tuple[bool, list[Json], str]:
        """What a command returns, prints and complains of. It blocks, so it has its own thread."""
        out, err = io.StringIO(), io.StringIO()
        office = Office(self.file, out, err, as_json=as_json)
        done = await asyncio.to_thread(do, office)
        if not as_json:
            return done, [{"text": line} for line in out.getvalue().splitlines()], err.getvalue()
        return done, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue()

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "k4.runner.cli", *arguments, str(self.file))
        return await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with SimTrading(TradingSpec(market="manual")) as venue:
        for account, symbol in SYMBOLS.items():
            venue.quote(account, symbol, "buy", "63990", "1000")
            venue.quote(account, symbol, "sell", "64010", "1000")
        made = Desk(venue, tmp_path)
        try:
            yield made
        finally:
            await made.stop()


async def test_orders_are_those_of_the_venue_in_the_gateways_form(desk: Desk) -> None:
    await desk.start()
    placed = [await desk.place(account) for account in SYMBOLS]
    done, rows, _ = await desk.office(Office.orders)
    assert done
    assert {(row["account_type"], row["client_order_id"], row["status"]) for row in rows} == {
        (update.account_type.value, update.client_order_id, "new") for update in placed
    }
    assert {Decimal(row["price"]) for row in rows} == {Decimal(63_000)}
    assert {row["symbol"] for row in rows} == set(SYMBOLS.values())
    _, lines, _ = await desk.office(Office.orders, as_json=False)
    assert any("cbase BTCUSD_PERP" in line["text"] for line in lines)


async def test_positions_and_balances(desk: Desk) -> None:
    await desk.start()
    filled = await desk.place("ubase", order_type=OrderType.MARKET, price=Decimal(0))
    assert not filled.status.final or filled.status is OrderStatus.FILLED
    done, rows, _ = await desk.office(Office.positions)
    assert done
    (position,) = rows
    assert set(position) == {
        "symbol",
        "account_type",
        "quantity",
        "entry_price",
        "unrealized_pnl",
    }
    assert (position["symbol"], Decimal(position["quantity"])) == ("BTCUSDT", Decimal("0.01"))
    done, rows, _ = await desk.office(Office.balances)
    spot = {row["asset"]: Decimal(row["free"]) for row in rows if row["account_type"] == "spot"}
    assert done
    assert spot["USDT"] == 1_000_000


async def test_cancel_all_says_how_each_order_ended(desk: Desk) -> None:
    await desk.start()
    placed = [await desk.place(account) for account in SYMBOLS]
    done, rows, err = await desk.office(Office.cancel_all)
    assert (done, err) == (True, "")
    assert {row["client_order_id"]: row["status"] for row in rows} == {
        update.client_order_id: "canceled" for update in placed
    }
    assert desk.venue.ledger.orders(open_only=True) == []


async def test_a_cancel_that_the_venue_did_not_confirm_is_a_failure(desk: Desk) -> None:
    await desk.start()
    kept = await desk.place("spot")
    busy = {"fault": "unavailable", "what": "service", "target": {"op": "openOrders.cancelAll"}}
    desk.venue.inject({**busy, "probability": 1.0})
    done, rows, err = await desk.office(Office.cancel_all)
    assert desk.venue.ledger.faults("unavailable")
    assert not done
    assert [(row["client_order_id"], row["status"]) for row in rows] == [
        (kept.client_order_id, "new")
    ]
    assert f"{kept.client_order_id} is new: not confirmed" in err


async def test_kill_is_sticky_over_restarts_until_it_is_released(desk: Desk) -> None:
    await desk.start()
    kept = await desk.place("spot")
    done, rows, _ = await desk.office(lambda office: office.kill("losing money"))
    assert done
    assert [row["client_order_id"] for row in rows] == [kept.client_order_id]
    await desk.stop()
    await desk.start()
    with pytest.raises(RiskRefused, match="losing money"):
        await desk.place("spot")
    done, _, _ = await desk.office(Office.release)
    assert done
    assert (await desk.place("spot")).status is OrderStatus.NEW


async def test_kill_without_a_worker_holds_for_the_next_one(desk: Desk) -> None:
    done, rows, err = await desk.office(lambda office: office.kill("not today"))
    assert (done, rows) == (True, [])
    assert "no trading module runs" in err
    await desk.start()
    with pytest.raises(RiskRefused, match="not today"):
        await desk.place("ubase")
    await desk.stop()
    done, _, err = await desk.office(Office.release)
    assert done
    await desk.start()
    assert (await desk.place("ubase")).status is OrderStatus.NEW


async def test_kill_without_a_worker_names_the_orders_that_are_left(desk: Desk) -> None:
    await desk.start()
    left = await desk.place("spot")
    await desk.stop()
    done, _, err = await desk.office(lambda office: office.kill("gone home"))
    assert not done
    assert left.client_order_id in err
    await desk.start()  # which cancels it, as the message says
    await until(lambda: not desk.venue.ledger.orders(open_only=True))
    assert [order.status for order in desk.venue.ledger.orders()] == ["CANCELED"]


async def test_a_journal_in_use_by_a_worker_that_does_not_listen_is_said(desk: Desk) -> None:
    file = desk.folder / "kill"
    desk.file.write_text(
        json.dumps({"trading": [{**desk.entry, "risk": {"kill_file": str(file)}}]})
    )
    journal = Journal(desk.entry["journal"])
    try:
        done, _, err = await desk.office(lambda office: office.kill("now"))
    finally:
        journal.close()
    assert not done
    assert "in use by another process" in err
    assert "do it again" in err
    assert file.exists()  # which that worker looks for


async def test_where_no_worker_runs_the_command_says_so(desk: Desk) -> None:
    for name in ("orders", "positions", "balances", "cancel-all"):
        done = await desk.command(name)
        assert (done.returncode, done.stdout) == (1, "")
        assert "no order gateway at" in done.stderr
        assert "start k4-runner run" in done.stderr
        assert "Traceback" not in done.stderr


async def test_the_commands_need_no_keys(desk: Desk) -> None:
    """Whoever has to stop trading may have no keys in his shell."""
    await desk.start()
    await desk.place("spot")
    keyless = {**desk.entry, "api_key": {"env": "NO_SUCH_KEY"}, "secret_key": {"file": "/none"}}
    desk.file.write_text(json.dumps({"trading": [keyless]}))
    with pytest.raises(ConfigError):
        parse(desk.file.read_bytes())
    listed = await desk.command("orders", "--json")
    assert (listed.returncode, len(listed.stdout.splitlines())) == (0, 1)
    killed = await desk.command("kill", "--reason", "by hand", "--json")
    assert (killed.returncode, json.loads(killed.stdout)["status"]) == (0, "canceled")
    assert (await desk.command("kill", "--release")).returncode == 0


@pytest.mark.parametrize(
    ("file", "name", "complaint"),
    [
        ("{", "", "config.json"),
        ("{}", "", "no trading entry"),
        ('{"trading": [{"name": "a", "journal": "j"}]}', "", r"trading\[0\]\.socket"),
        ('{"trading": [{"name": "a", "journal": "j", "socket": "s"}]}', "b", "there are a"),
    ],
)
def test_a_file_that_names_no_worker_is_bad_usage(
    file: str, name: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(file)
    with pytest.raises(ConfigError, match=complaint):
        Office(path, io.StringIO(), io.StringIO(), name=name)


def test_limits_and_secrets_stay_out_of_a_trading_entrys_text(desk: Desk) -> None:
    config: TradingConfig = parse(desk.file.read_bytes()).trading[0]
    secret = config.secret_key
    assert secret is not None
    assert secret.reveal() not in repr(config)
