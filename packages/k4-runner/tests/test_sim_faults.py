"""Every fault really happens, where the script says, and is in the ledger."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import pytest
from sim_client import Json, Raw, ask, binance, dial, until, url_of
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from k4.core.enums import Kind
from k4.core.errors import ConfigError
from k4.runner.sim import ws
from k4.runner.sim.faults import FAULTS, Rule, Target, parse_fault, parse_script
from k4.runner.sim.ledger import FaultRecord, SeriesKey
from k4.runner.sim.market import Pace
from k4.runner.sim.venues import SimVenues

TRADES = SeriesKey("binance", "spot", "BTCUSDT", Kind.TRADE)
PATH = "/ws/btcusdt@trade"
BTC: dict[str, Any] = {"products": {"spot": ("BTCUSDT",)}}


def trade_ids(venues: SimVenues) -> list[int]:
    ids: list[int] = venues.ledger.produced(TRADES)[0].tolist()
    return ids


def only(venues: SimVenues, fault: str) -> list[FaultRecord]:
    """The records of that fault, which must be all there are."""
    found = venues.ledger.faults()
    assert {record.fault for record in found} == {fault}
    return found


async def received(socket: ClientConnection, count: int) -> list[int]:
    """The next `count` trade ids, after which nothing more is on its way."""
    ids = [json.loads(await socket.recv())["t"] for _ in range(count)]
    await (await socket.ping())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(socket.recv(), 0.01)
    return ids


# -- the script -------------------------------------------------------------------------------


def test_a_script_is_read() -> None:
    rules = parse_script(
        [
            {"fault": "drop", "probability": 0.5, "target": {"line": 1, "topic": "*@trade"}},
            {"fault": "close", "every": 10, "code": 1012, "limit": 3},
        ]
    )
    assert rules == (
        Rule(fault="drop", probability=0.5, target=Target(line=1, topic="*@trade"), index=0),
        Rule(fault="close", every=10, limit=3, parameters={"code": 1012}, index=1),
    )
    assert rules[1].number("code") == 1012
    assert rules[1].text("reason") == ""


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"fault": "dorp"}, r"faults\[0\]\.fault: no fault 'dorp', did you mean 'drop'\?"),
        ({"fault": "drop", "probabilty": 1}, r"probabilty: unknown key .* mean 'probability'"),
        ({"fault": "drop", "probability": 2}, r"\.probability: must be at most 1"),
        ({"fault": "drop", "at": "now"}, r"\.at: must be a number"),
        ({"fault": "drop", "nth": 0}, r"\.nth: must be positive"),
        ({"fault": "drop", "nth": True}, r"\.nth: must be a whole number"),
        ({"fault": "close", "at": 1, "code": "x"}, r"\.code: must be int"),
        ({"fault": "garbage", "at": 1, "what": "tea"}, r"\.what: must be one of text, json"),
        ({"fault": "delay", "ms": -1}, r"\.ms: must not be negative"),
        ({"fault": "stall"}, r"needs one of at, every, probability, nth"),
        ({"fault": "id_reset", "probability": 0.1}, r"whole venue takes at or every"),
        ({"fault": "drop", "target": {"lane": 1}}, r"\.target: .*lane"),
        ({"fault": "drop", "target": {"pick": "some"}}, r"\.pick: must be one of all"),
        ("drop", r"faults\[0\]: must be an object"),
    ],
)
def test_a_bad_rule_names_its_place(rule: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_script([rule])


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_script([{"fault": "x"}, {"fault": "drop", "nth": -1, "probability": 3}])
    assert [problem.path for problem in caught.value.problems] == [
        "faults[0].fault",
        "faults[1].probability",
        "faults[1].nth",
    ]
    with pytest.raises(ConfigError, match="must be a list"):
        parse_script({"fault": "drop"})


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_can_be_injected_with_its_defaults(fault: str) -> None:
    assert parse_fault({"fault": fault}) == Rule(fault=fault)


# -- frames -----------------------------------------------------------------------------------


async def test_dropped_frames_are_gaps_of_that_line_alone() -> None:
    rule = {"fault": "drop", "probability": 0.2, "target": {"line": 0}}
    async with (
        binance(faults=(rule,), **BTC) as venues,
        dial(venues, "spot", PATH) as one,
        dial(venues, "spot", PATH) as two,
    ):
        venues.emit("binance", 500)
        ids = trade_ids(venues)
        lost = [record.id for record in only(venues, "drop")]
        got = await received(one, len(ids) - len(lost))
        whole = await received(two, len(ids))
        assert whole == ids
        assert lost == sorted(set(ids) - set(got))
        assert 0.1 < len(lost) / len(ids) < 0.3
        assert await venues.settle()
        assert venues.ledger.truth_gaps(TRADES)[0].size == 0


async def test_what_all_lines_lost_is_a_gap_of_the_truth() -> None:
    async with (
        binance(faults=({"fault": "drop", "nth": 5},), **BTC) as venues,
        dial(venues, "spot", PATH) as socket,
    ):
        venues.emit("binance", 500)
        ids = trade_ids(venues)
        got = await received(socket, len(ids) - len(ids) // 5)
        assert got == [number for at, number in enumerate(ids, 1) if at % 5]
        assert await venues.settle()
        inner = [n for at, n in enumerate(ids, 1) if at % 5 == 0 and n < got[-1]]
        assert venues.ledger.truth_gaps(TRADES)[0].tolist() == inner


async def test_duplicated_frames_come_twice() -> None:
    async with (
        binance(faults=({"fault": "duplicate", "nth": 3},), **BTC) as venues,
        dial(venues, "spot", PATH) as socket,
    ):
        venues.emit("binance", 200)
        expected = [
            number
            for at, number in enumerate(trade_ids(venues), 1)
            for _ in range(1 + (at % 3 == 0))
        ]
        assert await received(socket, len(expected)) == expected
        assert len(only(venues, "duplicate")) == len(expected) - len(trade_ids(venues))


async def test_reordered_frames_are_overtaken_and_arrive() -> None:
    rule = {"fault": "reorder", "nth": 10, "span": 3, "ms": 20}
    async with binance(faults=(rule,), **BTC) as venues, dial(venues, "spot", PATH) as socket:
        venues.emit("binance", 300)
        ids = trade_ids(venues)
        got = await received(socket, len(ids))
        assert sorted(got) == ids != got
        moved = only(venues, "reorder")[0]
        assert got.index(moved.id) == ids.index(moved.id) + 3


async def test_a_delay_keeps_the_order_and_the_time() -> None:
    rule = {"fault": "delay", "ms": 80, "target": {"line": 0}}
    async with (
        binance(faults=(rule,), **BTC) as venues,
        dial(venues, "spot", PATH) as late,
        dial(venues, "spot", PATH) as soon,
    ):
        loop = asyncio.get_running_loop()
        start = loop.time()
        venues.emit("binance", 100)
        assert json.loads(await soon.recv())["t"] == trade_ids(venues)[0]
        assert loop.time() - start < 0.08
        assert json.loads(await late.recv())["t"] == trade_ids(venues)[0]
        assert loop.time() - start >= 0.08
        ids = trade_ids(venues)
        assert [ids[0], *await received(late, len(ids) - 1)] == ids
        assert len(only(venues, "delay")) == 1


@pytest.mark.parametrize(
    "rule",
    [
        {"fault": "jitter", "ms": 20},
        {"fault": "delay", "ms": 5, "distribution": "exponential", "ordered": False},
    ],
)
async def test_jitter_loses_nothing(rule: Json) -> None:
    async with binance(faults=(rule,), **BTC) as venues, dial(venues, "spot", PATH) as socket:
        venues.emit("binance", 300)
        ids = trade_ids(venues)
        got = [json.loads(await socket.recv())["t"] for _ in ids]
        assert await venues.settle()
        assert venues.ledger.delivered(TRADES)[0].tolist() == ids
        assert sorted(got) == ids
        assert (got == ids) is rule.get("ordered", True)


async def test_truncated_sbe_is_short_and_counts_as_lost() -> None:
    rule = {"fault": "truncate", "nth": 4, "keep": 0.3}
    async with (
        binance(faults=(rule,), **BTC) as venues,
        dial(
            venues, "spot_sbe", "/ws/btcusdt@bestBidAsk", additional_headers={"X-MBX-APIKEY": "k"}
        ) as socket,
    ):
        venues.emit("binance", 40)
        got = [await socket.recv() for _ in range(8)]
        assert [len(frame) for frame in got] == [66, 66, 66, 19] * 2
        log = venues.ledger.connections[0]
        assert (
            len(log.sent) + len(only(venues, "truncate"))
            == venues.ledger.series(SeriesKey("binance", "spot", "BTCUSDT", Kind.BOOKTICKER)).rows
        )


async def test_fragmented_frames_are_whole_messages() -> None:
    async with binance(faults=({"fault": "fragment", "parts": 4},), **BTC) as venues:
        async with await Raw.open(url_of(venues, "spot", PATH)) as client:
            venues.emit("binance", 20)
            assert [(await client.frame())[0] for _ in range(4)] == [1, 0, 0, 0]
        async with dial(venues, "spot", PATH) as socket:
            venues.emit("binance", 20)
            assert json.loads(await socket.recv())["e"] == "trade"


# -- connections ------------------------------------------------------------------------------


async def test_a_stall_is_silent_for_its_target_and_ends() -> None:
    async with binance(**BTC) as venues, dial(venues, "spot") as socket:
        await ask(socket, "SUBSCRIBE", "btcusdt@trade", "btcusdt@bookTicker")
        stall = {"fault": "stall", "duration": 0.1, "target": {"kind": "trade"}}
        assert venues.inject(stall) == 1
        venues.emit("binance", 100)
        pong = await socket.ping()
        await pong
        names = set()
        for _ in range(len(venues.ledger.connections[0].sent)):
            names.add(json.loads(await socket.recv())["stream"])
        assert names == {"btcusdt@bookTicker"}
        while "btcusdt@trade" not in names:  # it ends
            venues.emit("binance", 10)
            names.add(json.loads(await socket.recv())["stream"])
        assert only(venues, "stall")[0].connection == 0


async def test_all_but_one_line_stalls() -> None:
    async with binance(**BTC) as venues:
        clients = [await Raw.open(url_of(venues, "spot", PATH)) for _ in range(4)]
        assert venues.inject({"fault": "stall", "target": {"pick": "all-but-one"}}) == 3
        venues.emit("binance", 50)
        counts = [len(log.sent) for log in venues.ledger.connections]
        assert sorted(counts) == [0, 0, 0, len(trade_ids(venues))]
        for client in clients:
            await client.close()


async def test_half_open_says_nothing_any_more() -> None:
    async with binance(**BTC) as venues, await Raw.open(url_of(venues, "spot", PATH)) as client:
        venues.inject({"fault": "half_open"})
        venues.emit("binance", 50)
        client.send(ws.PING, b"hello")
        client.send(ws.CLOSE, b"\x03\xe8")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.frame(), 0.1)
        log = venues.ledger.connections[0]
        assert (len(log.sent), log.ended, log.closed_ns) == (0, "half open", 0)


async def test_a_withheld_pong_comes_back_after_its_time() -> None:
    async with binance() as venues, await Raw.open(url_of(venues, "spot")) as client:
        venues.inject({"fault": "no_pong", "duration": 0.1})
        client.send(ws.PING, b"one")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.frame(), 0.05)
        answer = None
        while answer is None:
            client.send(ws.PING, b"two")
            with suppress(TimeoutError):
                answer = await asyncio.wait_for(client.frame(), 0.05)
        assert answer == (ws.PONG, b"two")


async def test_a_reset_is_a_reset() -> None:
    async with binance() as venues, await Raw.open(url_of(venues, "spot")) as client:
        venues.inject({"fault": "reset"})
        with pytest.raises(ConnectionResetError):
            await client.frame()
        assert venues.ledger.connections[0].ended == "fault: reset"


async def test_a_close_has_its_code_and_is_clean_when_answered() -> None:
    async with binance() as venues, dial(venues, "spot") as socket:
        venues.inject({"fault": "close", "code": 1012, "reason": "restart"})
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1012, "restart")
        log = venues.ledger.connections[0]
        await until(lambda: log.closed_ns)
        assert (log.clean, log.close_code, log.ended) == (True, 1012, "fault: close")


@pytest.mark.parametrize(
    ("what", "opcode"), [("text", 1), ("json", 1), ("types", 1), ("binary", 2)]
)
async def test_garbage_is_a_frame_that_nobody_can_use(what: str, opcode: int) -> None:
    async with binance() as venues, await Raw.open(url_of(venues, "spot")) as client:
        venues.inject({"fault": "garbage", "what": what})
        found, payload = await client.frame()
        assert found == opcode
        if what == "json":
            with pytest.raises(json.JSONDecodeError):
                json.loads(payload)
        elif what == "text":
            with pytest.raises(UnicodeDecodeError):
                payload.decode()
        assert only(venues, "garbage")


async def test_garbage_on_the_wire_breaks_the_protocol() -> None:
    async with binance() as venues, dial(venues, "spot") as socket:
        venues.inject({"fault": "garbage", "what": "wire"})
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.sent is not None
        assert caught.value.sent.code == 1002
        log = venues.ledger.connections[0]
        await until(lambda: log.closed_ns)
        assert (log.close_code, log.clean) == (1002, False)


async def test_oversize_is_as_long_as_asked() -> None:
    async with binance() as venues, await Raw.open(url_of(venues, "spot")) as client:
        venues.inject({"fault": "oversize", "bytes": 3_000_000})
        opcode, payload = await client.frame()
        assert (opcode, len(payload)) == (ws.TEXT, 3_000_002)


@pytest.mark.parametrize(("path", "wrapped"), [("/ws", False), ("/stream", True)])
async def test_shutdown_is_announced_then_done(path: str, wrapped: bool) -> None:
    async with binance() as venues, await Raw.open(url_of(venues, "spot", path)) as client:
        venues.inject({"fault": "shutdown", "grace": 0.05})
        notice = json.loads((await client.frame())[1])
        if wrapped:
            assert notice["stream"] == "!serverShutdown"
            notice = notice["data"]
        assert notice["e"] == "serverShutdown"
        assert await client.close_code() == 1001


async def test_faults_by_chance_strike_connections_too() -> None:
    rule = {"fault": "close", "nth": 50, "limit": 1, "code": 1000}
    async with binance(faults=(rule,), **BTC) as venues, dial(venues, "spot", PATH) as socket:
        venues.emit("binance", 200)
        got = [json.loads(frame)["t"] async for frame in socket]
        assert got == trade_ids(venues)[:49]
        assert only(venues, "close")[0].id == trade_ids(venues)[49]


# -- gates and the venue ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error"),
    [("http", InvalidStatus), ("drop", InvalidMessage), ("hang", TimeoutError)],
)
async def test_handshakes_are_refused(how: str, error: type[Exception]) -> None:
    async with binance() as venues:
        venues.inject({"fault": "refuse_handshake", "how": how, "status": 503})
        with pytest.raises(error):
            await dial(venues, "spot", open_timeout=0.2)
        async with dial(venues, "spot") as socket:  # one injection, one refusal
            assert (await ask(socket, "LIST_SUBSCRIPTIONS"))["result"] == []
        assert len(only(venues, "refuse_handshake")) == 1


async def test_an_ack_can_be_slow() -> None:
    async with binance() as venues, dial(venues, "spot") as socket:
        venues.inject({"fault": "slow_ack", "seconds": 0.1})
        start = asyncio.get_running_loop().time()
        await ask(socket, "SUBSCRIBE", "btcusdt@trade")
        assert asyncio.get_running_loop().time() - start >= 0.1
        assert only(venues, "slow_ack")


async def test_an_ack_without_data() -> None:
    async with binance(**BTC) as venues, dial(venues, "spot") as socket:
        venues.inject({"fault": "ack_without_data", "target": {"topic": "*@trade"}})
        answer = await ask(socket, "SUBSCRIBE", "btcusdt@trade", "btcusdt@bookTicker")
        assert answer == {"result": None, "id": 1}
        venues.emit("binance", 50)
        log = venues.ledger.connections[0]
        series = {venues.ledger.locate(key)[0].key.kind for key in log.sent}
        assert series == {Kind.BOOKTICKER}
        assert only(venues, "ack_without_data")[0].topic == "btcusdt@trade"


async def test_a_topic_can_be_refused() -> None:
    rule = {"fault": "refuse_topic", "limit": 1, "target": {"topic": "btcusdt@trade"}}
    async with binance(faults=(rule,)) as venues, dial(venues, "spot") as socket:
        answer = await ask(socket, "SUBSCRIBE", "btcusdt@trade")
        assert answer == {"error": {"code": 2, "msg": "Invalid request: invalid stream"}, "id": 1}
        assert (await ask(socket, "SUBSCRIBE", "btcusdt@trade"))["result"] is None


async def test_an_id_reset_begins_a_generation_on_every_channel() -> None:
    async with binance() as venues, dial(venues, "spot", PATH) as socket:
        venues.emit("binance", 300)
        venues.inject({"fault": "id_reset", "target": {"product": "spot"}})
        venues.emit("binance", 300)
        for kind in (Kind.BOOKTICKER, Kind.TRADE, Kind.AGGTRADE):
            made = venues.ledger.produced(SeriesKey("binance", "spot", "BTCUSDT", kind))
            assert made[1][0] < made[0][0]
        both = venues.ledger.produced(TRADES)
        ids = [*both[0].tolist(), *both[1].tolist()]
        assert await received(socket, len(ids)) == ids
        future = SeriesKey("binance", "ubase", "BTCUSDT", Kind.TRADE)
        assert set(venues.ledger.produced(future)) == {0}
        assert only(venues, "id_reset")[0].detail == "spot"


async def test_the_clock_strikes_and_windows_close() -> None:
    rules: tuple[dict[str, Any], ...] = (
        {"fault": "drop", "at": 0.05, "duration": 0.1},
        {"fault": "garbage", "every": 0.04, "limit": 3},
    )
    pace = Pace(rate=2_000)
    async with (
        binance(faults=rules, pace=pace, **BTC) as venues,
        dial(venues, "spot", PATH) as socket,
    ):
        while len(venues.ledger.faults("garbage")) < 3:
            await socket.recv()
        over = time.time_ns() + 100_000_000  # the window of the drops included
        while time.time_ns() < over:
            await socket.recv()
        drops = venues.ledger.faults("drop")
        span = (drops[-1].time_ns - drops[0].time_ns) / 1e9
        assert drops
        assert span <= 0.15
        assert len(venues.ledger.faults("garbage")) == 3


async def test_a_seed_repeats_the_faults() -> None:
    rule = {"fault": "drop", "probability": 0.1}
    runs = []
    for seed in (1, 1, 2):
        async with (
            binance(faults=(rule,), seed=seed, **BTC) as venues,
            dial(venues, "spot", PATH),
        ):
            venues.emit("binance", 500)
            runs.append([record.id for record in venues.ledger.faults()])
    assert runs[0] == runs[1] != runs[2]
