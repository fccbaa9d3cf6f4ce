"""Weights, order counts, 429, bans: counted, told, and enforced."""

from __future__ import annotations

from typing import Any

from trading_client import Desk, Json, Reply, book, now_ms, trading

from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.limits import OrderCounts, Pool, Window
from k4.runner.sim.trading.spec import AccountSpec, Limits


async def ping(desk: Desk, product: str = "spot", verb: str = "ping") -> Reply:
    prefix = {"spot": "/api/v3", "ubase": "/fapi/v1", "cbase": "/dapi/v1"}[product]
    return await desk.rest(product).raw("GET", f"{prefix}/{verb}")


def used(reply: Reply) -> int:
    return int(reply.headers["X-MBX-USED-WEIGHT-1M"])


# -- windows --------------------------------------------------------------------------------------


def test_a_window_starts_anew_at_its_boundary() -> None:
    window = Window("REQUEST_WEIGHT", 10, 60)
    window.add(59_000, 7)
    assert (window.used(59_999), window.resets_ms(59_999)) == (7, 60_000)
    assert window.used(60_000) == 0
    window.add(60_001, -3)
    assert window.used(60_002) == 0
    assert window.interval == (1, "MINUTE", "1M")
    assert Window("ORDERS", 1, 10).interval == (10, "SECOND", "10S")
    assert Window("ORDERS", 1, 86_400).interval == (1, "DAY", "1D")


def status(pool: Pool, now_ms: int, weight: int = 1) -> tuple[int, int]:
    """(status, until) of one request."""
    try:
        pool.spend(weight, now_ms)
    except VenueError as error:
        return error.status, dict(error.data or {})["retryAfter"]
    return 200, 0


def test_who_ignores_a_429_is_banned_for_longer_each_time() -> None:
    pool = Pool(5, 1000, Limits(ban_after=2, ban_seconds=100.0))
    assert status(pool, 0, 5) == (200, 0)
    assert [status(pool, 1_000)[0] for _ in range(3)] == [429, 429, 429]
    assert status(pool, 1_000) == (418, 101_000)
    assert status(pool, 100_999) == (418, 101_000)
    assert status(pool, 101_000, 5) == (200, 0)
    assert [status(pool, 101_000)[0] for _ in range(4)][-1] == 418
    assert status(pool, 101_000) == (418, 301_000)  # 200 seconds


def test_who_waits_is_not_banned() -> None:
    pool = Pool(5, 1000, Limits(ban_after=1))
    for minute in range(20):
        assert status(pool, minute * 60_000, 5)[0] == 200
        assert status(pool, minute * 60_000 + 1)[0] == 429


def test_bans_end_at_three_days() -> None:
    pool = Pool(1, 1000, Limits(ban_after=0, ban_seconds=120.0))
    now, length = 0, 0
    for _ in range(16):
        while (found := status(pool, now))[0] != 418:
            pass
        length, now = found[1] - now, found[1]
    assert length == 3 * 86_400_000


def test_raw_requests_have_a_limit_of_their_own() -> None:
    pool = Pool(1000, 3, Limits())
    assert [status(pool, 0, 0)[0] for _ in range(4)] == [200, 200, 200, 429]


def test_order_counts_name_the_window_that_is_full() -> None:
    counts = OrderCounts(((2, 10), (100, 60)))
    counts.add(1_000, 2)
    over = counts.exceeded(2_000)
    assert over is not None
    assert over.message == "Too many new orders; current limit is 2 orders per 10 SECOND."
    assert counts.exceeded(10_000) is None


# -- weights --------------------------------------------------------------------------------------


async def test_weights_are_counted_and_told_on_both_transports() -> None:
    async with trading() as desk:
        book(desk)
        before = used(await ping(desk))
        reply = await desk.rest().signed("GET", "/api/v3/openOrders")
        assert used(reply) == before + 80
        reply = await desk.rest().signed("GET", "/api/v3/openOrders", symbol="BTCUSDT")
        assert used(reply) == before + 86
        socket = await desk.ws()  # connecting weighs 2
        found = await socket.ask("ping")
        assert found["rateLimits"][-1]["count"] == before + 86 + 2 + 1
        assert used(await ping(desk, verb="exchangeInfo")) == before + 89 + 20


async def test_spot_orders_that_succeed_weigh_nothing() -> None:
    async with trading() as desk:
        book(desk)
        before = used(await ping(desk))
        reply = await desk.place()
        assert used(reply) == before
        gone = await desk.rest().signed("DELETE", "/api/v3/openOrders", symbol="BTCUSDT")
        assert used(gone) == before
        assert used(await desk.place(price="1")) == before + 1


async def test_futures_products_share_their_pools() -> None:
    async with trading() as desk:
        book(desk, "ubase")
        book(desk, "cbase")
        before = used(await ping(desk, "ubase"))
        reply = await ping(desk, "cbase")
        assert used(reply) == before + 1
        first = await desk.place("ubase")
        assert (used(first), first.headers["X-MBX-ORDER-COUNT-10S"]) == (before + 1, "1")
        second = await desk.place("cbase")
        assert second.headers["X-MBX-ORDER-COUNT-1M"] == "2"


async def test_used_up_weight_is_429_then_418_with_the_time_to_wait() -> None:
    async with trading(limits=Limits(spot_weight=30, ban_after=2)) as desk:
        replies = [await ping(desk, verb="exchangeInfo") for _ in range(5)]
        assert [reply.status for reply in replies] == [200, 429, 429, 429, 418]
        assert "Too much request weight used; current limit is 30" in replies[1].msg
        assert 1 <= int(replies[1].headers["Retry-After"]) <= 60
        assert "IP banned until" in replies[4].msg
        assert 100 < int(replies[4].headers["Retry-After"]) <= 120
        assert (await ping(desk, "ubase")).status == 200  # another host's pool


async def test_over_the_websocket_the_time_is_in_the_data() -> None:
    async with trading(limits=Limits(spot_weight=30)) as desk:
        socket = await desk.ws()
        await socket.ask("exchangeInfo")
        found = await socket.ask("exchangeInfo")
        assert (found["status"], found["error"]["code"]) == (429, -1003)
        assert 0 < found["error"]["data"]["retryAfter"] - now_ms() <= 60_000


async def test_limits_can_be_struck_by_a_fault() -> None:
    async with trading() as desk:
        assert desk.venue.inject({"fault": "limited", "target": {"product": "spot"}}) == ["spot"]
        assert (await ping(desk)).status == 429
        desk.venue.inject({"fault": "limited", "status": 418, "target": {"product": "cbase"}})
        reply = await ping(desk, "ubase")
        assert (reply.status, int(reply.headers["Retry-After"])) == (418, 5)
        assert len(desk.ledger.faults("limited")) == 2


# -- orders ---------------------------------------------------------------------------------------


async def counts(desk: Desk, account: str = "main") -> list[int]:
    found: Any = await desk.rest(account=account).ok("GET", "/api/v3/rateLimit/order")
    return [entry["count"] for entry in found]


async def test_unfilled_orders_count_and_fills_give_back() -> None:
    """A cancel gives nothing back, a taker's fill 1, a maker's first fill 5."""
    async with trading(limits=Limits(spot_orders=((50, 3600),))) as desk:
        book(desk)
        for number in range(8):
            await desk.placed(newClientOrderId=f"o{number}", price=f"6399{number}.5")
        assert await counts(desk) == [8]
        await desk.rest().ok("DELETE", "/api/v3/order", symbol="BTCUSDT", origClientOrderId="o0")
        assert await counts(desk) == [8]
        await desk.placed(price="64001.0")
        assert await counts(desk) == [8]
        desk.venue.quote("spot", "BTCUSDT", "buy", "63999.0", "0")
        desk.venue.hit("spot", "BTCUSDT", "sell", "63997.5", "0.004")
        assert await counts(desk) == [3]
        desk.venue.hit("spot", "BTCUSDT", "sell", "63997.5", "0.004")
        assert await counts(desk) == [3]


async def test_too_many_orders_are_refused_and_cancels_are_not() -> None:
    async with trading(limits=Limits(spot_orders=((3, 3600),))) as desk:
        book(desk)
        for number in range(3):
            await desk.placed(newClientOrderId=f"o{number}")
        reply = await desk.place()
        assert (reply.status, reply.code) == (429, -1015)
        assert reply.msg == "Too many new orders; current limit is 3 orders per 1 HOUR."
        assert int(reply.headers["Retry-After"]) >= 1
        socket = await desk.ws()
        found = await socket.signed(
            "order.place",
            symbol="BTCUSDT",
            side="BUY",
            type="LIMIT",
            timeInForce="GTC",
            quantity="0.01",
            price="63000.0",
        )
        assert (found["status"], found["error"]["code"]) == (429, -1015)
        kinds = [entry["rateLimitType"] for entry in found["rateLimits"]]
        assert kinds == ["ORDERS", "REQUEST_WEIGHT"]
        gone = await desk.rest().signed(
            "DELETE", "/api/v3/order", symbol="BTCUSDT", origClientOrderId="o0"
        )
        assert gone.status == 200
        assert len(desk.ledger.orders()) == 3


async def test_order_counts_are_an_accounts_own() -> None:
    accounts = (AccountSpec(), AccountSpec(name="other"))
    limits: Json = {"limits": Limits(futures_orders=((1, 3600),)), "accounts": accounts}
    async with trading(**limits) as desk:
        book(desk, "ubase")
        await desk.placed("ubase")
        assert (await desk.place("ubase")).code == -1015
        assert (await desk.place("ubase", account="other")).status == 200


async def test_refused_orders_do_not_count() -> None:
    async with trading() as desk:
        book(desk)
        await desk.place(price="1")
        await desk.place(quantity="99")
        assert await counts(desk) == [0, 0]


async def test_the_limits_are_served() -> None:
    async with trading() as desk:
        info = (await ping(desk, verb="exchangeInfo")).body
        assert {(e["rateLimitType"], e["interval"], e["limit"]) for e in info["rateLimits"]} == {
            ("REQUEST_WEIGHT", "MINUTE", 6000),
            ("ORDERS", "SECOND", 50),
            ("ORDERS", "DAY", 160_000),
            ("RAW_REQUESTS", "MINUTE", 300_000),
        }


async def test_connections_are_limited() -> None:
    async with trading(limits=Limits(connections=2)) as desk:
        url = desk.venue.urls()["spot_ws_api_url"].replace("ws://", "http://")
        await desk.ws()
        await desk.ws()
        async with desk.session.get(url) as response:
            assert response.status == 429
