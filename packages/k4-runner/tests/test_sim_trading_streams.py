"""User data: subscriptions, sessions, listen keys, private routing, the life of connections."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from sim_client import Raw
from trading_client import PREFIX, Desk, Json, WsClient, book, next_event, trading, until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedError

from k4.runner.sim import ws
from k4.runner.sim.trading.spec import AccountSpec

TWO = (AccountSpec(), AccountSpec(name="other"))
BOTH = pytest.mark.parametrize("product", ["ubase", "cbase"])


async def closed(socket: ClientConnection) -> int:
    """The close code, whatever came before it."""
    with suppress(ConnectionClosedError):
        async for _ in socket:
            pass
    return socket.close_code or 0


async def key(desk: Desk, product: str = "ubase", verb: str = "POST") -> Any:
    return await desk.rest(product).raw(verb, f"{PREFIX[product]}/listenKey")


# -- spot sessions and subscriptions --------------------------------------------------------------


async def test_a_session_lasts_from_logon_to_logout() -> None:
    async with trading() as desk:
        socket = await desk.ws("spot", "ed25519")
        status = await socket.ask("session.status")
        assert (status["result"]["apiKey"], status["result"]["authorizedSince"]) == (None, None)
        found = (await socket.logon())["result"]
        assert set(found) == {
            "apiKey",
            "authorizedSince",
            "connectedSince",
            "returnRateLimits",
            "serverTime",
            "userDataStream",
        }
        assert found["apiKey"] == socket.key.api_key
        assert (await socket.signed("account.status"))["status"] == 200
        missing = await socket.ask("account.status")
        assert missing["error"]["code"] == -1102  # the timestamp stays mandatory
        assert (await socket.ask("session.logout"))["result"]["apiKey"] is None
        assert (await socket.signed("account.status"))["error"]["code"] == -2014


async def test_only_ed25519_may_log_on() -> None:
    async with trading() as desk:
        socket = await desk.ws("spot", "hmac")
        assert (await socket.logon())["status"] == 401


async def test_an_explicit_key_overrides_the_session_for_one_request() -> None:
    async with trading(accounts=TWO) as desk:
        socket = await desk.ws("spot", "ed25519")
        await socket.logon()
        desk.venue.deposit("other", "spot", "SOL", "7")
        other = WsClient(socket.socket, desk.key("hmac", "other"))
        frame = await other.answer(await other.send("account.status", other.with_signature({})))
        assert "SOL" in [entry["asset"] for entry in frame["result"]["balances"]]
        mine = await socket.ok("account.status")
        assert "SOL" not in [entry["asset"] for entry in mine["balances"]]


async def test_a_revoked_key_ends_the_session_with_an_answer_to_nobody() -> None:
    async with trading() as desk:
        socket = await desk.ws("spot", "ed25519")
        await socket.logon()
        assert desk.venue.inject({"fault": "revoke_key"}) == ["main/hmac", "main/ed25519"]
        await socket.send("account.status", {"timestamp": 1})
        found = await socket.frame()
        assert (found["id"], found["status"], found["error"]["code"]) == (None, 401, -2015)
        assert (await socket.ask("session.status"))["result"]["apiKey"] is None
        desk.venue.inject({"fault": "restore_key"})
        assert (await socket.logon())["status"] == 200
        assert [f.fault for f in desk.ledger.faults()] == ["revoke_key", "restore_key"]


async def test_subscriptions_are_numbered_and_one_per_account() -> None:
    async with trading(accounts=TWO) as desk:
        book(desk)
        socket = await desk.ws("spot", "ed25519")
        assert (await socket.ask("userDataStream.subscribe"))["status"] == 401
        await socket.logon()
        assert (await socket.ask("userDataStream.subscribe"))["result"] == {"subscriptionId": 0}
        other = WsClient(socket.socket, desk.key("hmac", "other"))
        found = await other.answer(
            await other.send("userDataStream.subscribe.signature", other.with_signature({}))
        )
        assert found["result"] == {"subscriptionId": 1}
        assert (await socket.ask("userDataStream.subscribe"))["error"]["code"] == -2035
        listed = await socket.ask("session.subscriptions")
        assert listed["result"] == [{"subscriptionId": 0}, {"subscriptionId": 1}]
        await desk.placed(account="other", newClientOrderId="theirs")
        frame = await socket.frame()
        assert (frame["subscriptionId"], frame["event"]["c"]) == (1, "theirs")


async def test_logout_ends_the_sessions_own_subscription_alone() -> None:
    async with trading(accounts=TWO) as desk:
        book(desk)
        socket = await desk.ws("spot", "ed25519")
        await socket.logon()
        await socket.ask("userDataStream.subscribe")
        other = WsClient(socket.socket, desk.key("hmac", "other"))
        await other.answer(
            await other.send("userDataStream.subscribe.signature", other.with_signature({}))
        )
        await socket.ask("session.logout")
        assert (await socket.event("eventStreamTerminated"))["E"] > 0
        await desk.placed(newClientOrderId="mine")
        await desk.placed(account="other", newClientOrderId="theirs")
        assert (await socket.event("executionReport"))["c"] == "theirs"


async def test_unsubscribe_says_so_and_refuses_what_is_unknown() -> None:
    async with trading() as desk:
        socket = await desk.spot_events()
        found = await socket.ask("userDataStream.unsubscribe", subscriptionId=5)
        assert found["error"]["code"] == -2036
        assert (await socket.ask("userDataStream.unsubscribe", subscriptionId=0))["result"] == {}
        await socket.event("eventStreamTerminated")
        assert (await socket.ask("session.subscriptions"))["result"] == []
        # Ids are not used again.
        found = await socket.signed("userDataStream.subscribe.signature")
        assert found["result"] == {"subscriptionId": 1}


async def test_listen_keys_of_spot_are_gone() -> None:
    async with trading() as desk:
        assert (await desk.rest().raw("POST", "/api/v3/userDataStream")).status == 404
        socket = await desk.ws()
        assert (await socket.ask("userDataStream.start"))["error"]["code"] == -1020


# -- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"id":1,"method":7}',
        '{"id":[1],"method":"ping"}',
        '{"id":1,"method":"time","params":[]}',
    ],
)
async def test_a_broken_frame_is_answered(text: str) -> None:
    async with trading() as desk:
        socket = await desk.ws()
        await socket.socket.send(text)
        found = await socket.frame()
        assert (found["status"], found["error"]["code"]) == (400, -1135)
        assert (await socket.ask("ping"))["result"] == {}


async def test_ids_are_echoed_and_the_array_of_limits_can_be_left_out() -> None:
    async with trading() as desk:
        socket = await desk.ws()
        for request_id in (7, "seven", None):
            await socket.socket.send(json.dumps({"id": request_id, "method": "ping"}))
            found = await socket.frame()
            assert found["id"] == request_id
            assert found["rateLimits"][0]["rateLimitType"] == "REQUEST_WEIGHT"
        assert "rateLimits" not in await socket.ask("ping", returnRateLimits=False)
        quiet = await desk.ws(query="?returnRateLimits=false")
        assert "rateLimits" not in await quiet.ask("ping")
        assert "rateLimits" in await quiet.ask("ping", returnRateLimits=True)


# -- listen keys ----------------------------------------------------------------------------------


@BOTH
async def test_a_listen_key_is_made_extended_and_closed(product: str) -> None:
    async with trading() as desk:
        assert (await key(desk, product, "PUT")).code == -1125
        first = (await key(desk, product)).body["listenKey"]
        assert len(first) == 64
        assert (await key(desk, product)).body["listenKey"] == first
        assert (await key(desk, product, "PUT")).status == 200
        stream = await desk.stream(product)
        assert (await key(desk, product, "DELETE")).body == {}
        assert await closed(stream) == 1000
        assert (await key(desk, product)).body["listenKey"] != first


async def test_a_listen_key_over_the_websocket_api() -> None:
    async with trading() as desk:
        socket = await desk.ws("ubase")
        made = await socket.ask("userDataStream.start", apiKey=socket.key.api_key)
        again = (await key(desk)).body["listenKey"]
        assert made["result"]["listenKey"] == again
        assert (await socket.ask("userDataStream.ping", apiKey=socket.key.api_key))["status"] == 200
        assert (await socket.ask("userDataStream.stop", apiKey=socket.key.api_key))["result"] == {}
        assert (await key(desk, verb="PUT")).code == -1125


@BOTH
async def test_an_expired_key_brings_nothing_more(product: str) -> None:
    """By the hour (here a fraction of a second), with a last word."""
    async with trading(scale=3600 / 0.2) as desk:
        book(desk, product)
        stream = await desk.stream(product)
        text = (await key(desk, product)).body["listenKey"]
        event = await next_event(stream, "listenKeyExpired")
        assert event["listenKey"] == text
        assert (await key(desk, product, "PUT")).code == -1125
        await desk.placed(product, newClientOrderId="late")
        assert desk.ledger.events[-1].listeners == 0


async def test_a_key_that_is_extended_does_not_expire() -> None:
    async with trading(scale=3600 / 0.3) as desk:
        await desk.stream()
        for _ in range(5):
            due = desk.venue.clock.monotonic() + 0.1
            await until(lambda: desk.venue.clock.monotonic() > due)  # noqa: B023
            assert (await key(desk, verb="PUT")).status == 200


async def test_every_private_url_of_usd_m_works_and_the_legacy_one_is_silent() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        text = (await key(desk)).body["listenKey"]
        base = desk.venue.urls()["ubase_ws_url"]
        legacy = await desk.open(f"{base.removesuffix('/private')}/ws/{text}")
        plain = await desk.open(f"{base}/ws/{text}")
        asked = await desk.open(f"{base}/ws?listenKey={text}&events=ORDER_TRADE_UPDATE")
        wrapped = await desk.open(
            f"{base}/stream?listenKey={text}&events=ACCOUNT_UPDATE/TRADE_LITE"
        )
        await until(lambda: len(desk.venue.front.connections) == 4)
        await desk.placed("ubase", price="64001.0", newClientOrderId="one")
        await next_event(plain, "TRADE_LITE")
        await next_event(plain, "ACCOUNT_UPDATE")
        for _ in range(2):
            assert json.loads(await asked.recv())["e"] == "ORDER_TRADE_UPDATE"
        frame = json.loads(await wrapped.recv())
        assert (frame["stream"], frame["data"]["e"]) == (text, "TRADE_LITE")
        assert json.loads(await wrapped.recv())["data"]["e"] == "ACCOUNT_UPDATE"
        await (await legacy.ping())
        record = next(r for r in desk.ledger.connections if r.kind == "legacy")
        assert record.sent == 0


async def test_an_unknown_listen_key_is_accepted_and_silent() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        stream = await desk.open(f"{desk.venue.urls()['ubase_ws_url']}/ws/nonsense")
        await desk.placed("ubase")
        await (await stream.ping())
        assert desk.ledger.connections[0].sent == 0


# -- futures events -------------------------------------------------------------------------------


async def test_a_fill_is_told_three_times() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        stream = await desk.stream()
        await desk.placed("ubase", newClientOrderId="one", price="64001.0")
        frames = [json.loads(await stream.recv()) for _ in range(4)]
        assert [frame["e"] for frame in frames] == [
            "ORDER_TRADE_UPDATE",
            "TRADE_LITE",
            "ACCOUNT_UPDATE",
            "ORDER_TRADE_UPDATE",
        ]
        new, lite, account, trade = frames
        assert (new["o"]["x"], new["o"]["t"]) == ("NEW", 0)
        assert (lite["t"], lite["L"], lite["c"]) == (trade["o"]["t"], trade["o"]["L"], "one")
        assert account["a"]["m"] == "ORDER"
        assert account["a"]["P"][0]["pa"] == "0.010"
        assert set(account["a"]["P"][0]) == {"s", "pa", "ep", "bep", "cr", "up", "mt", "iw", "ps"}
        fields = (
            "s c S o f q p ap sp x X i l z L n N T t b a m R wt ot ps cp rp pP si ss V pm gtd er"
        )
        assert set(trade["o"]) == set(fields.split())
        assert all(frame["E"] >= frame["T"] > 0 for frame in frames)


async def test_coin_m_adds_the_margin_asset() -> None:
    async with trading() as desk:
        book(desk, "cbase")
        stream = await desk.stream("cbase")
        await desk.placed("cbase", price="64001.0")
        event = await next_event(stream, "ORDER_TRADE_UPDATE", x="TRADE")
        assert (event["o"]["ma"], event["o"]["N"]) == ("BTC", "BTC")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"timeInForce": "IOC"}, "2"),
        ({"type": "MARKET", "price": None, "timeInForce": None, "quantity": "3"}, "9"),
    ],
)
async def test_an_expiry_says_why(changes: Json, reason: str) -> None:
    async with trading() as desk:
        book(desk, "ubase")
        stream = await desk.stream()
        await desk.placed("ubase", **changes)
        event = await next_event(stream, "ORDER_TRADE_UPDATE", x="EXPIRED")
        assert (event["o"]["X"], event["o"]["er"]) == ("EXPIRED", reason)


async def test_a_self_trade_on_futures_expires_in_match() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        stream = await desk.stream()
        await desk.placed("ubase", newClientOrderId="ask", side="SELL", price="64000.0")
        await desk.placed("ubase", newClientOrderId="bid", price="64000.0")
        event = await next_event(stream, "ORDER_TRADE_UPDATE", c="ask", x="EXPIRED")
        assert (event["o"]["X"], event["o"]["er"]) == ("EXPIRED_IN_MATCH", "1")


async def test_deposits_and_leverage_are_told() -> None:
    async with trading() as desk:
        stream = await desk.stream()
        desk.venue.deposit("main", "ubase", "USDT", "-10")
        event = await next_event(stream, "ACCOUNT_UPDATE")
        assert (event["a"]["m"], event["a"]["B"][0]["bc"]) == ("WITHDRAW", "-10")
        await desk.rest("ubase").ok("POST", "/fapi/v1/leverage", symbol="BTCUSDT", leverage=3)
        event = await next_event(stream, "ACCOUNT_CONFIG_UPDATE")
        assert event["ac"] == {"s": "BTCUSDT", "l": 3}


# -- connections ----------------------------------------------------------------------------------


async def test_the_venue_pings_and_closes_who_does_not_answer() -> None:
    async with trading(scale=400.0) as desk:
        async with await Raw.open(desk.venue.urls()["spot_ws_api_url"]) as silent:
            assert await silent.until(ws.PING)
            assert await silent.close_code() == 1008
        assert desk.ledger.connections[0].ended == "no pong"


async def test_a_connection_ends_after_a_day() -> None:
    async with trading(scale=86_400 / 0.2) as desk:
        socket = await desk.ws()
        assert await closed(socket.socket) == 1001
        assert desk.ledger.connections[0].ended == "end of life"


async def test_too_many_pings_end_a_connection() -> None:
    async with trading() as desk:
        socket = await desk.ws()
        for _ in range(8):
            await socket.socket.ping()
        assert await closed(socket.socket) == 1008


async def test_events_may_come_before_their_answer() -> None:
    async with trading(order="event") as desk:
        book(desk)
        socket = await desk.spot_events()
        number = await socket.send(
            "order.place",
            socket.with_signature(
                {
                    "symbol": "BTCUSDT",
                    "side": "BUY",
                    "type": "LIMIT",
                    "timeInForce": "GTC",
                    "quantity": "0.01",
                    "price": "63000.0",
                }
            ),
        )
        assert (await socket.frame())["event"]["x"] == "NEW"
        assert (await socket.answer(number))["status"] == 200


async def test_by_default_they_come_after_it() -> None:
    async with trading() as desk:
        book(desk)
        socket = await desk.spot_events()
        await socket.ok(
            "order.place",
            symbol="BTCUSDT",
            side="BUY",
            type="LIMIT",
            timeInForce="GTC",
            quantity="0.01",
            price="63000.0",
        )
        assert socket.events == []
        assert (await socket.event("executionReport"))["x"] == "NEW"
