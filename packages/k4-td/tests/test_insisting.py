"""Cancels that must come through: of a kill switch, of a strategy that left, on a full disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest
from td_setup import ALL, TIMING, Log, config, order, running
from td_venue import FakeVenue
from td_venue import Fault as VenueFault

from k4.core.trading import (
    AccountType,
    Fault,
    Filled,
    InvalidOrder,
    JournalError,
    OrderChanged,
    OrderError,
    OrderMissing,
    OrderStatus,
    RiskRefused,
)
from k4.td import AsyncTdClient, TdModule
from k4.td.journal import Journal

BUSY = 503, -1008, "Request throttled by system-level protection. Please try again."


@pytest.fixture
async def venue() -> AsyncIterator[FakeVenue]:
    fake = FakeVenue()
    await fake.start()
    yield fake
    await fake.stop()


def canceled(event: object) -> bool:
    return isinstance(event, OrderChanged) and event.update.status is OrderStatus.CANCELED


async def test_a_kill_that_could_not_ask_the_venue_goes_on_until_nothing_is_open(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("ubase",))) as td:
        log = Log(td)
        await td.insert_order(order("ubase"))
        for _ in range(3):
            venue.faults.append(VenueFault("GET openOrders", "error", "before", *BUSY))
        with pytest.raises(OrderError, match="throttled"):
            await td.kill("now")
        assert venue.orders[0].open
        await log.until(canceled)
        assert not venue.orders[0].open
        assert not venue.faults


async def test_a_kill_that_the_venue_did_not_confirm_is_repeated(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("ubase",))) as td:
        log = Log(td)
        await td.insert_order(order("ubase"))
        venue.faults += [  # more often than one attempt asks
            VenueFault("allOpenOrders|order.cancel", "error", "before", *BUSY) for _ in range(12)
        ]
        [left] = await td.kill("now")
        assert left.status is OrderStatus.NEW
        await log.until(canceled)
        assert not venue.orders[0].open


async def test_an_order_that_meets_the_kill_file_first_does_not_keep_the_others_open(
    venue: FakeVenue, tmp_path: Path
) -> None:
    file = tmp_path / "kill"
    async with running(config(venue, tmp_path, ("ubase",), kill_file=str(file))) as td:
        log = Log(td)
        await td.insert_order(order("ubase"))
        file.touch()
        with pytest.raises(RiskRefused, match="exists"):  # before anybody else looks at the file
            await td.insert_order(order("ubase"))
        await log.until(canceled)
        assert not venue.orders[0].open


async def test_a_kill_file_works_on_a_full_disk_and_is_written_down_later(
    venue: FakeVenue, tmp_path: Path
) -> None:
    file = tmp_path / "kill"
    settings = config(venue, tmp_path, ("ubase",), kill_file=str(file))
    async with running(settings) as td:
        log = Log(td)
        await td.insert_order(order("ubase"))
        fill_up(td)
        file.touch()
        await log.until(canceled)
        with pytest.raises(RiskRefused):
            await td.insert_order(order("ubase"))
        fill_up(td, full=False)
        journal = td._journal
        assert journal is not None
        async with asyncio.timeout(10):
            while not journal.killed():  # noqa: ASYNC110  # nobody tells of a write
                await asyncio.sleep(0.01)
    file.unlink()
    async with running(settings) as td:
        assert "exists" in td.killed


async def test_a_kill_by_its_file_is_as_stubborn(venue: FakeVenue, tmp_path: Path) -> None:
    file = tmp_path / "kill"
    async with running(config(venue, tmp_path, ("ubase",), kill_file=str(file))) as td:
        log = Log(td)
        await td.insert_order(order("ubase"))
        for _ in range(3):
            venue.faults.append(VenueFault("GET openOrders", "error", "before", *BUSY))
        file.touch()
        await log.until(canceled)
        assert not venue.faults
        assert any(isinstance(event, Fault) and event.code == "venue.busy" for event in log.seen)


async def test_an_order_in_doubt_that_shows_up_after_its_strategy_left_is_cancelled(
    venue: FakeVenue, tmp_path: Path
) -> None:
    settings = config(venue, tmp_path, ("spot",), socket=str(tmp_path / "td.sock"))
    async with running(settings) as td:
        log = Log(td)
        async with AsyncTdClient(settings.socket, "leaves", cancel_on_disconnect=True) as client:
            slow = 3 * TIMING.answer  # longer than K4 waits, shorter than the order is valid
            venue.faults.append(VenueFault("order.place", "delay", "before", seconds=slow))
            update = await client.insert_order(order())
            assert update.status is OrderStatus.UNKNOWN
        await venue.until(lambda: any("order.cancel" in name for name in venue.requests))
        assert not venue.orders  # there was nothing to cancel yet
        await log.until(canceled)
        assert [entry.open for entry in venue.orders] == [False]
        assert len([name for name in venue.requests if "order.place" in name]) == 1


@pytest.mark.parametrize(("configured", "said"), [(False, True), (True, None)])
async def test_a_strategy_that_leaves_a_busy_venue_leaves_no_order(
    configured: bool, said: bool | None, venue: FakeVenue, tmp_path: Path
) -> None:
    """By its own word, or by the configuration's where it says nothing."""
    settings = config(
        venue,
        tmp_path,
        ("ubase",),
        socket=str(tmp_path / "td.sock"),
        cancel_on_disconnect=configured,
    )
    async with running(settings) as td:
        log = Log(td)
        async with AsyncTdClient(settings.socket, "leaves", cancel_on_disconnect=said) as client:
            await client.insert_order(order("ubase"))
            for _ in range(3):
                venue.faults.append(VenueFault("order.cancel", "error", "before", *BUSY))
        await log.until(canceled)
        assert not venue.faults
        assert [name for name in venue.requests if "order.cancel" in name] == [
            "ubase order.cancel"
        ] * 4


async def test_a_strategy_may_leave_its_orders_against_the_configuration(
    venue: FakeVenue, tmp_path: Path
) -> None:
    socket = str(tmp_path / "td.sock")
    settings = config(venue, tmp_path, ("spot",), socket=socket, cancel_on_disconnect=True)
    async with running(settings) as td:
        async with AsyncTdClient(socket, "stays", cancel_on_disconnect=False) as client:
            kept = await client.insert_order(order())
        async with AsyncTdClient(socket, "asks", cancel_on_disconnect=False) as client:
            assert (await client.query_order(kept.client_order_id)).status is OrderStatus.NEW
        assert not [name for name in venue.requests if "cancel" in name]
        assert td.accounts[AccountType.SPOT].book.orders.open_count == 1


async def test_a_cancel_that_the_venue_refuses_for_good_is_told_once(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("ubase",))) as td:
        log = Log(td)
        key = (await td.insert_order(order("ubase"))).client_order_id
        venue.faults.append(VenueFault("order.cancel", "error", "before", 400, -1102, "no"))
        await td.accounts[AccountType.UBASE].cancel_soon(key)
        told = [event for event in log.seen if isinstance(event, Fault)]
        assert [(event.code, event.client_order_id) for event in told] == [("venue.request", key)]
        assert venue.orders[0].open


async def test_a_full_disk_stops_new_orders_and_no_cancel(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path)) as td:
        keys = [(await td.insert_order(order(account))).client_order_id for account in ALL]
        fill_up(td)
        with pytest.raises(JournalError):
            await td.insert_order(order())
        log = Log(td)
        assert (await td.cancel_order(keys[0])).status is OrderStatus.CANCELED
        assert any(isinstance(event, Fault) and event.code == "journal" for event in log.seen)
        ended = await td.kill("the disk is full")
        assert {update.client_order_id for update in ended} == set(keys[1:])
        assert all(update.status is OrderStatus.CANCELED for update in ended)
    assert not any(entry.open for entry in venue.orders)
    async with running(config(venue, tmp_path)) as td:  # the truth is the venue's, not the disk's
        for key in keys:
            assert (await td.query_order(key)).status is OrderStatus.CANCELED


async def test_a_fill_that_the_journal_did_not_take_is_written_when_there_is_room(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        key = (await td.insert_order(order())).client_order_id
        fill_up(td)
        venue.fill(venue.orders[0], Decimal("0.100"))
        told = await log.until(lambda event: isinstance(event, Filled))
        assert isinstance(told, Filled)
        await log.status(key, OrderStatus.FILLED)  # the truth does not wait for the disk
        await log.until(lambda event: isinstance(event, Fault) and event.code == "journal")
        fill_up(td, full=False)
        journal = td._journal
        assert journal is not None
        async with asyncio.timeout(10):
            while not kept(journal, key):  # noqa: ASYNC110  # nobody tells of a write
                await asyncio.sleep(0.01)
        assert kept(journal, key) == {told.fill.trade_id}
    async with running(config(venue, tmp_path, ("spot",))) as td:
        state = td.accounts[AccountType.SPOT].book.known(key)
        assert (state.status, state.filled) == (OrderStatus.FILLED, Decimal("0.100"))


def kept(journal: Journal, key: str) -> set[str]:
    """The executions of an order that are written down."""
    state = journal.find(AccountType.SPOT, key)
    assert state is not None
    return set(state.fills)


def fill_up(module: TdModule, full: bool = True) -> None:
    """Every write of the journal fails from now on, as on a disk without room."""
    journal = module._journal
    assert journal is not None
    journal._db.execute(f"PRAGMA query_only={'ON' if full else 'OFF'}")


async def test_an_id_that_two_accounts_know_is_never_guessed(
    venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path)) as td:
        for account in ("spot", "ubase"):
            await td.insert_order(order(account, client_order_id="twin"))
        for asked in (td.cancel_order("twin"), td.query_order("twin")):
            with pytest.raises(InvalidOrder, match="known on spot and ubase") as caught:
                await asked
            assert caught.value.remedy == "give account_type"
        gone = await td.cancel_order("twin", account_type=AccountType.UBASE)
        assert gone.status is OrderStatus.CANCELED
        assert (await td.query_order("twin", account_type=AccountType.SPOT)).status is (
            OrderStatus.NEW
        )
        with pytest.raises(OrderMissing):
            await td.query_order("nobody")
