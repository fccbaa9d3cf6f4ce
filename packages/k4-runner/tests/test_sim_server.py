"""The simulated venue enforces its limits, and its ledger knows what arrived."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sim_client import Raw, ask, binance, dial, until, url_of
from websockets.exceptions import ConnectionClosed

from k4.core.enums import Kind
from k4.core.errors import ConfigError
from k4.core.testing import ManualClock
from k4.runner.sim import ws
from k4.runner.sim.ledger import SeriesKey
from k4.runner.sim.market import Pace
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, SimVenues, venue_names

TRADES = SeriesKey("binance", "spot", "BTCUSDT", Kind.TRADE)
BTC: dict[str, Any] = {"products": {"spot": ("BTCUSDT",)}}


async def test_pings_come_on_time_and_a_pong_keeps_the_line() -> None:
    async with (
        binance(scale=200.0) as venues,
        await Raw.open(url_of(venues, "spot")) as client,
    ):
        for _ in range(5):  # one every 0.1 s; together longer than the deadline of 0.3 s
            client.send(ws.PONG, await client.until(ws.PING))
        log = venues.ledger.connections[0]
        assert log.pings >= 5
        assert not log.ended


async def test_a_missing_pong_ends_the_line() -> None:
    async with (
        binance(scale=200.0) as venues,
        await Raw.open(url_of(venues, "spot")) as client,
    ):
        client.send(ws.PONG, b"unsolicited")
        assert await client.close_code() == 1008
        assert venues.ledger.connections[0].ended == "no pong"


async def test_a_client_ping_is_answered_with_its_payload() -> None:
    async with binance() as venues, await Raw.open(url_of(venues, "spot")) as client:
        client.send(ws.PING, b"are you there")
        assert await client.frame() == (ws.PONG, b"are you there")


@pytest.mark.parametrize(("endpoint", "allowed"), [("spot", 5), ("ubase_public", 10)])
async def test_too_many_messages_end_the_line(endpoint: str, allowed: int) -> None:
    async with binance() as venues, await Raw.open(url_of(venues, endpoint)) as client:
        for number in range(allowed + 1):
            client.send(ws.PONG if number % 2 else ws.TEXT, b'{"method":"LIST_SUBSCRIPTIONS"}')
        answers = 0
        while True:
            opcode, payload = await client.frame()
            if opcode == ws.CLOSE:
                break
            answers += 1
        assert answers == (allowed + 1) // 2
        assert int.from_bytes(payload[:2], "big") == 1008
        assert venues.ledger.connections[0].ended == "too many messages"


async def test_the_longest_life_is_a_day() -> None:
    """A day on a manual clock: a ping every three minutes, each answered, then the cut."""
    clock = ManualClock()
    venue = VenueSpec(
        name="binance",
        products={"cbase": ("BTCUSD_PERP",)},
        pace=Pace(start=False),
        cadence_scale=1e-4,
    )
    async with (
        SimVenues(SimSpec(venues=(venue,)), clock=clock) as venues,
        dial(venues, "cbase") as socket,
    ):
        log = venues.ledger.connections[0]
        for minute in range(3, 24 * 60, 3):
            clock.advance(180.0)
            await until(lambda: log.pongs == log.pings)
            assert log.pings == minute // 3
            assert not log.ended
        clock.advance(180.0)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (log.ended, log.close_code) == ("max life", 1001)


async def test_too_many_attempts_get_429() -> None:
    async with binance() as venues:
        url = url_of(venues, "spot", "/nowhere")
        statuses = []
        for _ in range(301):
            async with await Raw.open(url) as client:
                statuses.append(client.status.split(" ")[1])
        assert statuses == ["404"] * 300 + ["429"]
        async with await Raw.open(url_of(venues, "cbase")) as client:
            assert client.status.split(" ")[1] == "101"  # another host counts by itself


async def test_a_slow_reader_is_closed() -> None:
    async with (
        binance(write_limit=1 << 20, **BTC) as venues,
        await Raw.open(
            url_of(venues, "spot", "/ws/btcusdt@bookTicker"), receive_buffer=4096
        ) as client,
    ):
        log = venues.ledger.connections[0]
        for _ in range(200):
            venues.emit("binance", 2_000)
            await asyncio.sleep(0)
            if log.ended:
                break
        assert log.ended == "slow reader"
        assert await client.close_code() == 1008


async def test_a_full_speed_market_waits_for_its_readers() -> None:
    pace = Pace(rate=0, total=20_000, start=False)
    async with binance(pace=pace, **BTC) as venues, dial(venues, "spot") as socket:
        await ask(socket, "SUBSCRIBE", "btcusdt@trade")
        venues.server("binance").pump.start()
        await venues.finished("binance")
        assert await venues.settle()
        produced = venues.ledger.produced(TRADES)[0]
        ids = [json.loads(await socket.recv())["data"]["t"] for _ in produced]
        assert ids == produced.tolist()
        assert venues.ledger.delivered(TRADES)[0].tolist() == ids
        assert venues.server("binance").backlog() == 0


async def test_books_can_be_sent_after_every_event() -> None:
    pace = Pace(rate=0, total=500, start=False, beat_every=1)
    async with (
        binance(pace=pace, **BTC) as venues,
        dial(venues, "spot", "/ws/btcusdt@depth5@100ms") as client,
    ):
        venues.server("binance").pump.start()
        ids = [json.loads(await client.recv())["lastUpdateId"] for _ in range(500)]
        book = SeriesKey("binance", "spot", "BTCUSDT", Kind.DEPTH5)
        assert ids == sorted(set(ids)) == venues.ledger.produced(book)[0].tolist()


async def test_a_reader_that_stops_does_not_stop_the_market() -> None:
    clock = ManualClock()
    venue = VenueSpec(name="binance", pace=Pace(rate=0, total=60_000, start=False), **BTC)
    async with (
        SimVenues(SimSpec(venues=(venue,)), clock=clock) as venues,
        await Raw.open(
            url_of(venues, "spot", "/ws/btcusdt@trade/btcusdt@bookTicker"), receive_buffer=4096
        ) as client,
    ):
        server = venues.server("binance")
        server.pump.start()
        while server.backlog() < 1 << 18:
            clock.advance(0)
            await asyncio.sleep(0)
        clock.advance(4.9)
        assert len(server.clients) == 1
        clock.advance(0.2)
        assert await client.close_code() == 1008
        assert venues.ledger.connections[0].ended == "slow reader"


async def test_a_paced_market_keeps_its_rate() -> None:
    pace = Pace(rate=2_000, total=500, burst=100, burst_every=0.05)
    async with binance(pace=pace, **BTC) as venues:
        await venues.finished("binance")
        assert venues.summary()["events"] == {"binance": 500}


async def test_only_a_pong_or_a_clean_close_confirms() -> None:
    async with binance(**BTC) as venues:
        client = await Raw.open(url_of(venues, "spot", "/ws/btcusdt@trade"))
        venues.emit("binance", 200)
        log = venues.ledger.connections[0]
        assert len(log.sent) > 0
        assert log.confirmed == 0
        venues.server("binance").ping_all()
        payload = await client.until(ws.PING)
        mark = len(log.sent)
        venues.emit("binance", 200)
        client.send(ws.PONG, payload)
        client.send(ws.PING, b"after")
        while await client.until(ws.PONG) != b"after":
            continue
        assert log.confirmed == mark < len(log.sent)
        await client.close()  # without a closing handshake
        await closed(venues)
        assert log.confirmed == mark
        assert not log.clean


async def test_proofs_can_come_more_often_than_the_venues_pings() -> None:
    async with (
        binance(proof_every=0.01, **BTC) as venues,
        dial(venues, "spot", "/ws/btcusdt@trade"),
    ):
        venues.emit("binance", 200)
        log = venues.ledger.connections[0]
        await until(lambda: log.confirmed == len(log.sent) > 0)


async def test_a_clean_close_confirms_everything() -> None:
    async with binance(**BTC) as venues:
        async with dial(venues, "spot", "/ws/btcusdt@trade") as socket:
            venues.emit("binance", 200)
            await socket.recv()
        await closed(venues)
        log = venues.ledger.connections[0]
        assert (log.clean, log.close_code, log.ended) == (True, 1000, "closed by client")
        assert log.confirmed == len(log.sent) > 0
        assert venues.ledger.truth_gaps(TRADES, inner=False)[0].size == 0


async def test_behind_a_broken_frame_a_clean_close_confirms_nothing() -> None:
    """The client's Close was on its way before it met the frame. It reads nothing after that."""
    async with binance(**BTC) as venues:
        client = await Raw.open(url_of(venues, "spot", "/ws/btcusdt@trade"))
        log = venues.ledger.connections[0]
        venues.emit("binance", 200)
        await until(lambda: len(log.sent) > 0)
        mark = len(log.sent)
        venues.inject({"fault": "garbage", "what": "wire"})
        venues.emit("binance", 200)
        await until(lambda: len(log.sent) > mark)
        client.send(ws.CLOSE, (1000).to_bytes(2, "big"))
        await closed(venues)
        await client.close()
        assert (log.ended, log.clean, log.confirmed) == ("closed by client", True, mark)
        assert len(log.sent) > mark


async def test_a_client_that_does_not_wait_for_the_answer_confirms_nothing() -> None:
    """It gave up on a venue that stood still, and never read what it was sent after that."""
    async with binance(**BTC) as venues:
        client = await Raw.open(url_of(venues, "spot", "/ws/btcusdt@trade"))
        venues.emit("binance", 200)
        client.send(ws.CLOSE, (1000).to_bytes(2, "big"))
        await client.close()  # both are read by the venue at once
        await closed(venues)
        log = venues.ledger.connections[0]
        assert (log.ended, log.clean, log.confirmed) == ("closed by client", False, 0)
        assert len(log.sent) > 0


async def closed(venues: SimVenues) -> None:
    """Until every connection is gone."""
    await until(lambda: all(log.closed_ns for log in venues.ledger.connections))


async def test_a_seed_repeats_the_market_byte_for_byte() -> None:
    ids = []
    for seed in (3, 3, 4):
        async with binance(seed=seed, **BTC) as venues:
            venues.emit("binance", 1_000)
            columns = venues.ledger.table(TRADES)[["id", "price", "vol"]].tolist()
            ids.append(columns)
    assert ids[0] == ids[1] != ids[2]


async def test_lines_keep_their_places() -> None:
    async with binance() as venues:
        clients = [await Raw.open(url_of(venues, "spot")) for _ in range(3)]
        server = venues.server("binance")
        assert [client.line for client in server.clients] == [0, 1, 2]
        await clients[1].close()
        await until(lambda: len(server.clients) == 2)
        clients.append(await Raw.open(url_of(venues, "spot")))
        clients.append(await Raw.open(url_of(venues, "cbase")))
        assert [client.line for client in server.clients] == [0, 2, 1, 0]
        for client in clients:
            await client.close()


async def test_a_taken_port_is_a_clear_error() -> None:
    async with binance() as venues:
        port = venues.server("binance").ports["spot"]
        again = SimSpec(venues=(VenueSpec(name="binance", ports={"spot": port}),))
        with pytest.raises(ConfigError, match=r"binance\.ports\.spot: cannot listen on"):
            await SimVenues(again).start()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SimSpec(venues=(VenueSpec(name="nasdaq"),)), "no simulated venue 'nasdaq'"),
        (SimSpec(venues=(VenueSpec(name="binance"),) * 2), "'binance' appears twice"),
        (
            SimSpec(venues=(VenueSpec(name="binance", products={"margin": ("A",)}),)),
            "no product 'margin'",
        ),
        (SimSpec(faults=({"fault": "fire"},)), r"faults\[0\]\.fault: no fault 'fire'"),
    ],
)
async def test_a_bad_specification_is_a_clear_error(spec: SimSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimVenues(spec)


def test_binance_is_among_the_venues() -> None:
    assert "binance" in venue_names()
