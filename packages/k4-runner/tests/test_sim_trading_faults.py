"""Each fault happens, does what it says, and is recorded."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from trading_client import Desk, Json, book, next_event, now_ms, trading, until
from websockets.exceptions import ConnectionClosed

from k4.core.errors import ConfigError
from k4.runner.sim.trading.faults import parse_fault, parse_script
from k4.runner.sim.trading.ledger import FaultRecord

ORDER: Json = {
    "symbol": "BTCUSDT",
    "side": "BUY",
    "type": "LIMIT",
    "timeInForce": "GTC",
    "quantity": "0.010",
    "price": "63000.0",
    "newClientOrderId": "one",
}
TRANSPORTS = pytest.mark.parametrize("transport", ["rest", "ws"])


class Lost(Exception):
    """No answer came; the text says how."""


async def send(desk: Desk, transport: str, product: str = "spot", wait: float = 0.15) -> Json:
    """An order: {status, and code and msg or data}. Raises Lost."""
    if transport == "rest":
        try:
            async with asyncio.timeout(wait):
                reply = await desk.place(product, newClientOrderId="one")
        except TimeoutError:
            raise Lost("silence") from None
        except aiohttp.ClientError:
            raise Lost("broken") from None
        body = reply.body if isinstance(reply.body, dict) else {"msg": reply.body}
        return {**body, "status": reply.status}
    socket = await desk.ws(product)
    number = await socket.send("order.place", socket.with_signature(ORDER))
    try:
        async with asyncio.timeout(wait):
            frame = await socket.answer(number)
    except TimeoutError:
        raise Lost("silence") from None
    except ConnectionClosed:
        raise Lost("broken") from None
    return {"status": frame["status"], **frame.get("error", {})}


def only(desk: Desk, fault: str) -> FaultRecord:
    (record,) = desk.ledger.faults()
    assert record.fault == fault
    return record


def placed(desk: Desk) -> bool:
    return bool(desk.ledger.orders(client_id="one"))


# -- requests -------------------------------------------------------------------------------------


@TRANSPORTS
@pytest.mark.parametrize(
    ("fault", "how", "executed"),
    [
        ({"fault": "drop_request"}, "silence", False),
        ({"fault": "drop_reply"}, "silence", True),
        ({"fault": "disconnect", "when": "before"}, "broken", False),
        ({"fault": "disconnect", "when": "after"}, "broken", True),
        ({"fault": "timeout", "seconds": 30, "executed": True}, "silence", True),
        ({"fault": "timeout", "seconds": 30}, "silence", False),
    ],
)
async def test_an_answer_is_lost_with_or_without_its_order(
    transport: str, fault: Json, how: str, executed: bool
) -> None:
    async with trading() as desk:
        book(desk)
        desk.venue.inject({**fault, "target": {"op": "order.place"}})
        with pytest.raises(Lost, match=how):
            await send(desk, transport)
        assert placed(desk) == executed
        record = only(desk, fault["fault"])
        assert (record.client_id, record.op, record.executed) == ("one", "order.place", executed)
        (request,) = desk.ledger.received("order.place", "one")
        assert (request.answered, request.executed) == (False, executed)
        assert request.faults == [fault["fault"]]
        assert record.request == request.number


@TRANSPORTS
@pytest.mark.parametrize(
    ("fault", "status", "text", "executed"),
    [
        ({"what": "unknown"}, 503, "Unknown error, please check your request", False),
        ({"what": "unknown", "executed": True}, 503, "Unknown error, please check", True),
        ({"what": "service"}, 503, "Service Unavailable.", False),
        ({"what": "internal"}, 503, "unable to process your request. Please try", False),
        ({"what": "throttled"}, 503, "Request throttled by system-level", False),
    ],
)
async def test_503_says_failed_or_unknown(
    transport: str, fault: Json, status: int, text: str, executed: bool
) -> None:
    async with trading() as desk:
        book(desk, "ubase")
        desk.venue.inject({"fault": "unavailable", **fault})
        found = await send(desk, transport, "ubase")
        assert found["status"] == status
        assert text in found["msg"]
        assert (found.get("code") == -1008) == (fault["what"] == "throttled")
        assert placed(desk) == executed
        assert only(desk, "unavailable").executed == executed


@TRANSPORTS
@pytest.mark.parametrize(
    ("product", "fault", "status", "text"),
    [
        ("spot", {"code": -2010}, 400, "Market is closed."),
        ("spot", {"code": -1002, "status": 401}, 401, "You are not authorized"),
        ("ubase", {"code": -2023}, 400, "User in liquidation mode now."),
        ("ubase", {"code": -9999, "msg": "Something new."}, 400, "Something new."),
    ],
)
async def test_the_venue_can_refuse_for_reasons_of_its_own(
    transport: str, product: str, fault: Json, status: int, text: str
) -> None:
    async with trading() as desk:
        book(desk, product)
        desk.venue.inject({"fault": "refuse", **fault})
        found = await send(desk, transport, product)
        assert (found["status"], found["code"]) == (status, fault["code"])
        assert found["msg"].startswith(text)
        assert not placed(desk)
        assert not only(desk, "refuse").executed


@TRANSPORTS
@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("code", [-1007, -1006, -1000])
async def test_the_venue_itself_may_not_know(transport: str, executed: bool, code: int) -> None:
    async with trading(scale=200.0) as desk:  # its 10 seconds are 50 ms
        book(desk)
        desk.venue.inject({"fault": "timeout", "code": code, "executed": executed})
        began = desk.venue.clock.monotonic()
        found = await send(desk, transport, wait=2.0)
        assert found["code"] == code
        assert found["status"] == (408 if code == -1007 else 500)
        assert desk.venue.clock.monotonic() - began >= 0.05
        assert placed(desk) == executed
        assert only(desk, "timeout").executed == executed


@TRANSPORTS
async def test_a_failure_of_futures_that_says_so_was_not_executed(transport: str) -> None:
    async with trading(scale=200.0) as desk:
        book(desk, "ubase")
        desk.venue.inject({"fault": "timeout", "code": -1001, "executed": True})
        found = await send(desk, transport, "ubase", wait=2.0)
        assert found["code"] == -1001
        assert "Please try again." in found["msg"]
        assert not placed(desk)
        assert not only(desk, "timeout").executed


async def test_events_of_an_order_whose_answer_is_lost_come_all_the_same() -> None:
    async with trading() as desk:
        book(desk)
        events = await desk.spot_events()
        desk.venue.inject({"fault": "drop_reply", "target": {"op": "order.place"}})
        with pytest.raises(Lost):
            await send(desk, "rest")
        assert (await events.event("executionReport"))["c"] == "one"


async def test_a_client_that_dies_does_not_take_its_order_back() -> None:
    async with trading() as desk:
        book(desk)
        desk.venue.inject({"fault": "latency", "ms": 80})
        socket = await desk.ws()
        await socket.send("order.place", socket.with_signature(ORDER))
        await until(lambda: desk.ledger.requests)
        socket.socket.transport.abort()
        await until(lambda: placed(desk))
        await until(lambda: desk.ledger.connections[0].ended)
        assert not desk.ledger.received(client_id="one")[0].answered


async def test_latency_before_the_engine_and_before_the_answer() -> None:
    async with trading() as desk:
        book(desk)
        for where in ("before", "after"):
            desk.venue.inject({"fault": "latency", "ms": 60, "where": where})
            socket = await desk.ws()
            params = {**ORDER, "newClientOrderId": where}
            number = await socket.send("order.place", socket.with_signature(params))
            await until(lambda: len(desk.ledger.faults()) > (where == "after"))  # noqa: B023
            assert bool(desk.ledger.orders(client_id=where)) == (where == "after")
            assert (await socket.answer(number))["status"] == 200
        assert [record.fault for record in desk.ledger.faults()] == ["latency", "latency"]


async def test_a_request_that_waits_too_long_is_late_at_the_engine() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        desk.venue.inject({"fault": "latency", "ms": 600, "target": {"product": "ubase"}})
        reply = await desk.place("ubase", recvWindow=400)
        assert reply.code == -5028
        assert not desk.ledger.orders()


async def test_targets_choose_by_operation_transport_account_and_id() -> None:
    async with trading() as desk:
        book(desk)
        targets: list[Json] = [
            {"op": "order.cancel"},
            {"transport": "ws"},
            {"account": "other"},
            {"product": "ubase"},
            {"client_id": "two*"},
        ]
        for target in targets:
            desk.venue.inject({"fault": "drop_request", "target": target})
        assert (await send(desk, "rest"))["status"] == 200
        assert not desk.ledger.faults()
        with pytest.raises(Lost):
            await send(desk, "ws")
        assert only(desk, "drop_request").op == "order.place"


async def test_a_script_strikes_by_count_and_chance_and_the_same_each_time() -> None:
    outcomes = []
    for _ in range(2):
        faults = (
            {"fault": "unavailable", "nth": 3, "limit": 2, "target": {"op": "order.place"}},
            {"fault": "unavailable", "what": "service", "probability": 0.3},
        )
        async with trading(faults=faults, seed=5) as desk:
            book(desk)
            outcomes.append([(await desk.place()).status for _ in range(20)])
            by_rule = [record.rule for record in desk.ledger.faults()]
            assert by_rule.count(0) == 2
            assert by_rule.count(1) >= 1
            assert outcomes[-1].count(503) == len(by_rule)
    assert outcomes[0] == outcomes[1]


async def test_a_window_of_time() -> None:
    async with trading() as desk:
        book(desk)
        desk.venue.inject({"fault": "unavailable", "duration": 0.1})
        assert [(await desk.place()).status for _ in range(3)] == [503, 503, 503]
        end = desk.venue.clock.monotonic() + 0.12
        await until(lambda: desk.venue.clock.monotonic() > end)
        assert (await desk.place()).status == 200


# -- events ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "heard"),
    [
        ({"fault": "event_drop", "limit": 1}, [2, 3, 4]),
        ({"fault": "event_duplicate", "limit": 1}, [1, 1, 2, 3, 4]),
        ({"fault": "event_duplicate", "copies": 2, "limit": 1}, [1, 1, 1, 2, 3, 4]),
        ({"fault": "event_reorder", "span": 4, "limit": 1}, [2, 3, 1, 4]),
        ({"fault": "event_delay", "ms": 50, "limit": 1}, [1, 2, 3, 4]),
        ({"fault": "event_delay", "ms": 50, "limit": 1, "ordered": False}, [2, 3, 4, 1]),
    ],
)
async def test_events_are_lost_repeated_and_out_of_order(fault: Json, heard: list[int]) -> None:
    """Between two reports there is a report of balances, so a span of four is two reports."""
    async with trading() as desk:
        book(desk)
        socket = await desk.spot_events()
        await desk.placed(price="62000.0")
        await socket.event("executionReport", x="NEW")
        await desk.placed(newClientOrderId="x", price="62000.0")
        await socket.event("executionReport", x="NEW")
        order = await desk.placed(newClientOrderId="one", price="63999.5", quantity="1")
        await socket.event("executionReport", i=order["orderId"])
        desk.venue.inject({**fault, "target": {"event": "executionReport"}})
        for part in range(1, 5):
            desk.venue.hit("spot", "BTCUSDT", "sell", "63999.5", f"0.0{part}")
        found = [int((await socket.event("executionReport", x="TRADE"))["l"][3]) for _ in heard]
        assert found == heard
        record = only(desk, fault["fault"])
        assert (record.event, record.client_id) == ("executionReport", "one")


async def test_events_of_a_private_stream_suffer_too() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        stream = await desk.stream()
        desk.venue.inject({"fault": "event_drop", "target": {"event": "TRADE_LITE"}})
        await desk.placed("ubase", price="64001.0")
        kinds = [json.loads(await stream.recv())["e"] for _ in range(3)]
        assert kinds == ["ORDER_TRADE_UPDATE", "ACCOUNT_UPDATE", "ORDER_TRADE_UPDATE"]
        assert only(desk, "event_drop").product == "ubase"


# -- acts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "code", "ended"),
    [
        ({"fault": "close", "code": 1012}, 1012, "fault: close"),
        ({"fault": "end_of_life"}, 1001, "fault: end of life"),
        ({"fault": "reset"}, 1006, "fault: reset"),
    ],
)
async def test_connections_are_ended(fault: Json, code: int, ended: str) -> None:
    async with trading() as desk:
        api, stream = await desk.ws("ubase"), await desk.stream()
        await until(lambda: len(desk.venue.front.connections) == 2)
        assert desk.venue.inject({**fault, "sockets": "api"}) == ["connection 1"]
        with pytest.raises(ConnectionClosed):
            await api.socket.recv()
        assert api.socket.close_code == code
        assert desk.ledger.connections[0].ended == ended
        await (await stream.ping())
        assert only(desk, fault["fault"]).detail == "connection 1"


async def test_a_shutdown_is_announced_on_spot() -> None:
    async with trading() as desk:
        socket = await desk.ws()
        desk.venue.inject({"fault": "shutdown", "grace": 0.05})
        frame = await socket.frame()
        assert set(frame) == {"event"}
        assert frame["event"]["e"] == "serverShutdown"
        with pytest.raises(ConnectionClosed):
            await socket.frame()
        assert only(desk, "shutdown").detail == "connection 1"


async def test_a_listen_key_expires_on_command_with_or_without_a_word() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        for announced in (True, False):
            stream = await desk.stream()
            await until(lambda: len(desk.venue.front.connections) == 2 - announced)  # noqa: B023
            found = desk.venue.inject({"fault": "expire_listen_key", "announced": announced})
            assert found == ["ubase/main"]
            if announced:
                await next_event(stream, "listenKeyExpired")
            else:
                before = desk.ledger.connections[-1].sent
                await desk.placed("ubase")
                assert desk.ledger.connections[-1].sent == before
        assert len(desk.ledger.faults("expire_listen_key")) == 2


async def test_a_subscription_is_terminated_on_command() -> None:
    async with trading() as desk:
        book(desk)
        socket = await desk.spot_events()
        assert desk.venue.inject({"fault": "terminate_stream"}) == ["subscription 0"]
        await socket.event("eventStreamTerminated")
        await desk.placed()
        assert desk.ledger.events[-1].listeners == 0
        only(desk, "terminate_stream")


async def test_what_concerns_nobody_is_no_fault() -> None:
    async with trading() as desk:
        for name in ("close", "expire_listen_key", "terminate_stream", "liquidate", "shutdown"):
            assert desk.venue.inject({"fault": name}) == []
        assert desk.ledger.faults() == []


async def test_acts_happen_at_their_time() -> None:
    faults = (
        {"fault": "clock_skew", "ms": 7, "every": 0.03, "limit": 2},
        {"fault": "revoke_key", "at": 0.02},
    )
    async with trading(faults=faults) as desk:
        await until(lambda: len(desk.ledger.faults()) == 3)
        assert (await desk.place()).code == -2015
        end = desk.venue.clock.monotonic() + 0.05
        await until(lambda: desk.venue.clock.monotonic() > end)
        assert [f.fault for f in desk.ledger.faults()].count("clock_skew") == 2
        told = (await desk.rest().raw("GET", "/api/v3/time")).body["serverTime"]
        assert told > now_ms()


# -- scripts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"fault": "drop_everything"}, "drop_everything"),
        ({}, "fault"),
        ([], "object"),
        ({"fault": "latency", "millis": 5}, "millis"),
        ({"fault": "latency", "ms": "5"}, "ms"),
        ({"fault": "latency", "target": {"method": "x"}}, "method"),
        ({"fault": "drop_reply", "probability": 2}, "from 0 to 1"),
        ({"fault": "drop_reply", "nth": 0}, "positive"),
        ({"fault": "unavailable", "what": "service", "executed": True}, "never executed"),
        ({"fault": "reset", "nth": 3}, "not by chance"),
        ({"fault": "reset"}, "needs at or every"),
    ],
)
def test_a_bad_rule_is_refused_with_its_place(rule: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        parse_script([{"fault": "drop_reply"}, rule])
    assert caught.value.problems[0].path.startswith("faults[1]")


def test_an_act_by_hand_needs_no_time() -> None:
    assert parse_fault({"fault": "reset"}).name == "reset"
    with pytest.raises(ConfigError, match="list"):
        parse_script({"fault": "reset"})


# -- the ledger -----------------------------------------------------------------------------------


async def test_the_ledger_has_every_order_with_its_history() -> None:
    async with trading() as desk:
        book(desk)
        await desk.placed(newClientOrderId="one", price="63999.5", quantity="0.5")
        desk.venue.hit("spot", "BTCUSDT", "sell", "63999.5", "0.2")
        await desk.rest().ok("DELETE", "/api/v3/order", symbol="BTCUSDT", origClientOrderId="one")
        (order,) = desk.ledger.orders(client_id="one")
        assert [(step.event, step.status, str(step.executed)) for step in order.history] == [
            ("NEW", "NEW", "0"),
            ("TRADE", "PARTIALLY_FILLED", "0.20000"),
            ("CANCELED", "CANCELED", "0.20000"),
        ]
        assert [record.op for record in desk.ledger.received(client_id="one")] == [
            "order.place",
            "order.cancel",
        ]
        report = json.loads(json.dumps(desk.ledger.report()))
        assert report["orders"][0]["history"][1]["executed"] == "0.20000"
        assert report["wealth"]["main"]["spot"]["USDT"]["locked"] == "0.000000"
        assert report["summary"]["trades"] == 1


async def test_sent_twice_and_placed_twice_differ() -> None:
    async with trading() as desk:
        book(desk)
        for _ in range(2):
            await desk.place(newClientOrderId="one")
        assert desk.ledger.sent_twice() == ["one"]
        assert desk.ledger.placed_twice() == []
