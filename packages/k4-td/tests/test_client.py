"""The client libraries against a gateway that answers late, wrongly, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from td_setup import order

from k4.core.trading import GatewayError, OrderStatus
from k4.td import AsyncTdClient, TdClient

UPDATE = {
    "symbol": "BTCUSDT",
    "account_type": "spot",
    "direction": "buy",
    "order_type": "gtc",
    "quantity": "0.1",
    "status": "new",
}


class Scripted:
    """Answers hello, then what the test says for each further request: bytes, or nothing."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.script: list[bytes] = []
        self.requests: list[dict[str, Any]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        async for line in reader:
            request = json.loads(line)
            self.requests.append(request)
            if request["method"] == "hello":
                writer.write(json.dumps({"id": request["id"], "result": {}}).encode() + b"\n")
            elif self.script:
                writer.write(self.script.pop(0).replace(b"ID", str(request["id"]).encode()))
        writer.close()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Scripted]:
    made = Scripted(str(tmp_path / "gw.sock"))
    server = await asyncio.start_unix_server(made.serve, made.path)
    yield made
    server.close()
    await server.wait_closed()


def answered(**more: Any) -> bytes:
    return json.dumps({"id": "ID", "result": {**UPDATE, **more}}).replace('"ID"', "ID").encode()


async def test_an_answer_that_does_not_come_is_a_timeout_that_says_what_to_do(
    gateway: Scripted,
) -> None:
    async with AsyncTdClient(gateway.path, "mm1", timeout=0.1) as td:
        with pytest.raises(GatewayError, match="no answer to insert_order") as caught:
            await td.insert_order(order())
        assert caught.value.code == "gateway.timeout"
        assert "client_order_id" in caught.value.remedy
    sent = gateway.requests[-1]["params"]["client_order_id"]
    assert sent.startswith("k4-")  # made before it was sent, so that it can be asked for

    def block() -> None:
        td = TdClient(gateway.path, "mm2", timeout=0.1)
        with td, pytest.raises(GatewayError, match="no answer to insert_order"):
            td.insert_order(order())

    await asyncio.to_thread(block)


async def test_a_late_answer_is_not_taken_for_the_next_one(gateway: Scripted) -> None:
    late = answered(client_order_id="late") + b"\n"

    def block() -> None:
        with TdClient(gateway.path, "mm2", timeout=0.1) as td:
            with pytest.raises(GatewayError, match="no answer"):
                td.query_order("late")
            first = gateway.requests[-1]["id"]
            gateway.script = [
                late.replace(b"ID", str(first).encode()) + answered(client_order_id="next") + b"\n"
            ]
            update = td.query_order("next")
            assert (update.client_order_id, update.status) == ("next", OrderStatus.NEW)

    await asyncio.to_thread(block)


@pytest.mark.parametrize("garbage", [b"not json\n", b"[1]\n", b"x" * 70_000 + b"\n"])
async def test_a_gateway_that_sends_garbage_is_told_apart(
    gateway: Scripted, garbage: bytes
) -> None:
    gateway.script = [garbage]

    def block() -> None:
        td = TdClient(gateway.path, "mm2", timeout=2.0)
        with td, pytest.raises(GatewayError, match="the gateway sent"):
            td.query_balances()

    await asyncio.to_thread(block)
    gateway.script = [garbage]
    async with AsyncTdClient(gateway.path, "mm1", timeout=2.0) as td:
        with pytest.raises(GatewayError):
            await td.query_balances()
