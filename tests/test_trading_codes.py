"""Every error code of the venue's lists, from the simulated venue over the gateway's socket to a
strategy: a typed error that says what to do."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from td_codes import CASES
from trading_module import SYMBOLS, client, order

from k4.core.trading import DuplicateOrder, OrderError, OrderStatus, OutcomeUnknown
from k4.runner.sim.trading.spec import Limits
from k4.td import AsyncTdClient

STATUS = {-1002: 401, -2014: 401, -2015: 401, -1003: 429, -1015: 429, -1008: 503, -1099: 401}
STOPS = (-1003, -1015)  # after these K4 sends nothing, so they have tests of their own


@pytest.mark.parametrize("product", list(SYMBOLS))
async def test_every_code_reaches_the_strategy_as_a_typed_error_with_a_remedy(
    tmp_path: Path, product: str
) -> None:
    cases = {
        code: kind
        for account, code, kind in CASES
        if account.value == product and code not in STOPS and kind is not OutcomeUnknown
    }
    if product == "spot":
        del cases[-1008]  # with 503, which spot documents as an outcome that is not known
    assert len(cases) > 35
    socket = str(tmp_path / "td.sock")
    limits = Limits(spot_orders=((1000, 10),), futures_orders=((1000, 10),))
    async with (
        client(tmp_path, socket=socket, limits=limits) as (desk, _),
        AsyncTdClient(socket, "mm1") as td,
    ):
        for code, kind in cases.items():
            name = f"c{-code}"
            fault = {"fault": "refuse", "code": code, "status": STATUS.get(code, 400)}
            again = 2 if code == -1021 else 1  # a timestamp is tried once more
            desk.venue.inject({**fault, "limit": again, "target": {"client_id": name}})
            if kind is DuplicateOrder:  # the earlier send would be live: the venue is asked for it
                update = await td.insert_order(order(product, name, recv_window=100.0))
                assert update.status is OrderStatus.UNKNOWN
                await rejected(td, name)
                continue
            with pytest.raises(OrderError) as caught:
                await td.insert_order(order(product, name))
            error = caught.value
            assert (type(error), error.venue_code) == (kind, code), error
            assert len(error.remedy) > 10
            assert error.order is not None
            assert error.order.status is OrderStatus.REJECTED
        struck = [record.client_id for record in desk.ledger.faults("refuse")]
        assert set(struck) == {f"c{-code}" for code in cases}
        assert desk.ledger.orders() == []
        assert desk.ledger.sent_twice() == ["c1021"]


async def rejected(td: AsyncTdClient, name: str) -> None:
    async with asyncio.timeout(10):
        while (await td.query_order(name)).status is not OrderStatus.REJECTED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
