"""Executions that an answer includes and no event tells."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest
from td_setup import ALL, Log, config, order, running
from td_venue import FakeVenue

from k4.core.trading import Connected, Disconnected, Fault, Filled, OrderStatus


@pytest.fixture
async def venue() -> AsyncIterator[FakeVenue]:
    fake = FakeVenue()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.mark.parametrize("account", ALL)
async def test_they_are_fetched_and_the_stream_is_replaced(
    account: str, venue: FakeVenue, tmp_path: Path
) -> None:
    async with running(config(venue, tmp_path, (account,))) as td:
        log = Log(td)
        key = (await td.insert_order(order(account))).client_order_id
        await log.status(key, OrderStatus.NEW)
        venue.silent = True  # as a stream whose key expired without a word
        venue.fill(venue.orders[0], Decimal("0.040"))
        update = await td.query_order(key)
        assert update.filled_quantity == Decimal("0.040")
        fill = await log.until(lambda event: isinstance(event, Filled))
        assert isinstance(fill, Filled)
        assert (fill.fill.client_order_id, fill.fill.quantity) == (key, Decimal("0.040"))
        await log.until(lambda event: isinstance(event, Disconnected))
        venue.silent = False
        await log.until(lambda event: isinstance(event, Connected))
        told = [event for event in log.seen if isinstance(event, Filled)]
        assert len(told) == 1


async def test_an_event_in_time_is_no_alarm(venue: FakeVenue, tmp_path: Path) -> None:
    async with running(config(venue, tmp_path, ("spot",))) as td:
        log = Log(td)
        key = (await td.insert_order(order())).client_order_id
        venue.held = []  # events wait
        venue.fill(venue.orders[0], Decimal("0.040"))
        await td.query_order(key)
        venue.release(lambda held: held)
        await log.until(lambda event: isinstance(event, Filled))
        watched = td.accounts[next(iter(td.accounts))].owed_fills
        watched._look(key)
        assert not [event for event in log.seen if isinstance(event, Fault | Disconnected)]
