"""kill -9 of a trading process at any moment: nothing is lost, nothing is sent twice."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from td_setup import SHORT_WINDOW, TIMING, Log, config
from td_venue import FakeVenue, Fault

from k4.core.trading import AccountType, OrderStatus
from k4.td import TdModule

STATUS = {
    "NEW": OrderStatus.NEW,
    "PARTIALLY_FILLED": OrderStatus.PARTIALLY_FILLED,
    "FILLED": OrderStatus.FILLED,
    "CANCELED": OrderStatus.CANCELED,
    "EXPIRED": OrderStatus.EXPIRED,
}
FAULTS = ("place|POST order$", "cancel|DELETE order$", "modify|amend|PUT order")


@pytest.mark.parametrize("account", ["spot", "ubase"])
@pytest.mark.parametrize("seed", range(4))
async def test_kill_9_under_load_loses_nothing_and_sends_nothing_twice(
    account: str, seed: int, tmp_path: Path
) -> None:
    """After the restart, journal and venue agree on every order, by client id."""
    rng = random.Random(seed * 2 + (account == "spot"))
    venue = FakeVenue()
    await venue.start()
    journal = str(tmp_path / "journal.db")
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parent / "trading_child.py"),
        str(venue.port),
        journal,
        account,
        str(seed),
    )
    wanted = rng.randint(3, 40)
    await venue.until(lambda: len(venue.placed) >= wanted, 30.0)
    # One more request meets a fault, so that an outcome is open when the process dies.
    what, when = rng.choice(["drop", "close"]), rng.choice(["before", "after"])
    venue.faults.append(Fault(rng.choice(FAULTS), what, when))
    reached = len(venue.placed) + rng.randint(1, 5)
    try:
        await venue.until(lambda: not venue.faults or len(venue.placed) >= reached, 10.0)
    finally:
        child.kill()
        await child.wait()
    venue.faults.clear()
    for entry in venue.orders:
        if entry.open and rng.random() < 0.3:
            venue.fill(entry, entry.qty - entry.done)  # while nobody listens

    settings = config(venue, tmp_path, (account,), journal=journal, recv_window=SHORT_WINDOW)
    module = TdModule(settings, timing=TIMING)
    log = Log(module)
    await module.login(20.0)
    ours = module.accounts[AccountType(account)].book

    def settled() -> bool:
        return not any(state.doubts or state.waiting for state in ours.orders.open())

    if not settled():
        await log.until(lambda event: settled(), 20.0)
    assert max(Counter(venue.placed).values()) == 1
    for entry in venue.orders:
        state = ours.known(entry.client)  # nothing reached the venue that is not written down
        assert state.status is STATUS[entry.status], entry
        assert (state.filled, state.quantity) == (entry.done, entry.qty)
        fills = [trade for trade in venue.trades if trade["orderId"] == entry.id]
        assert set(state.fills) == {str(trade["id"]) for trade in fills}
    at_venue = {entry.client for entry in venue.orders if entry.open}
    assert {state.order.client_order_id for state in ours.orders.open()} == at_venue
    assert venue.unverified == 0
    await module.stop()
    await venue.stop()
