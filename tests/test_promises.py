"""The promises about market data that the README prints: each fault is injected, is proved by the
venue's own ledger to have happened, and then the promise is looked at.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from chaos.account import series_key
from rig import Rig

from k4.core.enums import Kind
from k4.md.feed import Ids
from k4.runner.sim.market import Pace

BTC = "BTCUSDT"
ALL = (Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5)
VENUES = [("binance", "ubase"), ("okx", "swap"), ("bybit", "linear"), ("bitget", "futures")]


async def test_p1_no_duplicate_and_no_backward_id_except_at_a_counted_reset() -> None:
    faults = (
        {"fault": "duplicate", "probability": 0.2, "copies": 2},
        {"fault": "reorder", "probability": 0.05},
        {"fault": "delay", "ms": 300.0, "target": {"line": 1}},
    )
    async with Rig(faults=faults) as rig:
        await rig.trade(6.0)
        rig.inject("id_reset")
        await rig.trade(6.0)
        await rig.settle()
        assert rig.happened("duplicate") > 100
        assert rig.happened("reorder") > 20
        assert rig.happened("id_reset") == 1
        trades, quotes = rig.ids(BTC, Kind.TRADE), rig.ids(BTC, Kind.BOOKTICKER)
        assert len(trades) == len(set(trades)) > 100
        assert sum(b <= a for a, b in pairwise(quotes)) == 1
        assert rig.figures()["resets"] == 2  # of quotes and of trades
        assert rig.figures()["duplicates"] > len(trades)
        rig.assert_kept()


async def test_p2_every_gap_is_counted_and_none_is_invented() -> None:
    """USD-M, whose `NA` placeholders use ids without a trade, and whose quote ids jump."""
    async with Rig("binance", "ubase", lines=2) as rig:
        await rig.trade(3.0)
        assert rig.figures()["gaps"] == 0
        rig.inject("drop", probability=0.5, duration=5.0)
        await rig.trade(8.0)
        await rig.settle()
        assert rig.happened("drop") > 100
        key = series_key("binance", "ubase", BTC, Kind.TRADE)
        table = rig.ledger.table(key)
        assert (table["placeholder"] != 0).any()
        missing = sorted(rig.ledger.truth_gaps(key)[0].tolist())
        assert len(missing) > 10
        runs = 1 + sum(b > a + 1 for a, b in pairwise(missing))
        assert (rig.figures()["lost"], rig.figures()["gaps"]) == (len(missing), runs)
        rig.assert_kept()


async def test_p3_what_one_line_delivers_is_published_whatever_the_others_do() -> None:
    faults = (
        {"fault": "drop", "probability": 0.3},
        {"fault": "delay", "ms": 500.0, "target": {"line": 2}},
        {"fault": "jitter", "ms": 100.0, "target": {"line": 3}},
    )
    async with Rig(lines=4, faults=faults) as rig:
        newest: list[int] = []
        top = 0

        def overhear(name: str, received_ns: int, opcode: int, payload: bytes) -> None:
            """The truth about quotes: every frame that any line got, in the order of arrival."""
            nonlocal top
            body = json.loads(payload)
            if body.get("stream") == "btcusdt@bookTicker" and body["data"]["u"] > top:
                top = body["data"]["u"]
                newest.append(top)

        for line in rig.stream.lines:
            line.link.tap = overhear  # heard from the next connection on
        for line in rig.stream.lines:
            line.link.restart("test")
        await rig.until(lambda: not rig.all_up())
        await rig.until(rig.all_up)
        await rig.trade(2.0)
        assert rig.inject("stall", duration=2.0, target={"line": 0}) == 1
        await rig.trade(1.0)
        assert rig.inject("reset", target={"line": 1}) == 1
        await rig.trade(3.0)
        await rig.settle()
        assert min(rig.happened(fault) for fault in ("drop", "delay", "stall", "reset")) > 0
        assert rig.figures()["healed"] > 0
        assert rig.ids(BTC, Kind.BOOKTICKER) == newest
        assert rig.figures()["too_late"] == 0
        rig.assert_kept()


async def test_p4_all_lines_but_one_stall_and_are_replaced_in_time() -> None:
    async with Rig(lines=4, factor=5.0, stall_timeout_sec=10.0) as rig:
        await rig.trade(2.0)
        rig.venues.pace("binance", Pace(rate=200.0, tick=0.02))
        assert rig.inject("stall", target={"pick": "all-but-one"}) == 3
        stalled = rig.ledger.faults("stall")
        await rig.until(lambda: rig.stream.counts["rotations"] == 3)
        took = (rig.clock.time_ns() - stalled[0].time_ns) / 1e9
        assert took <= 10.0
        assert rig.stream.counts["stalls"] == 3
        assert rig.all_up()
        rig.venues.server("binance").pump.stop()
        await rig.settle()
        gone = [rig.ledger.connections[fault.connection] for fault in stalled]
        assert [log.ended for log in gone] == ["closed by client"] * 3
        await rig.wait(30.0)  # then no further copy is awaited
        alone, missed = rig.figures()["alone"], rig.figures()["missed"]
        assert alone > 100, "for a while one line carried everything"
        assert missed > alone
        rig.assert_kept()


async def test_p4_a_line_without_a_byte_is_replaced() -> None:
    async with Rig(lines=1, factor=10.0, stall_timeout_sec=10.0) as rig:
        await rig.trade(2.0)
        assert rig.inject("half_open") == 1
        since = rig.clock.monotonic()
        await rig.until(lambda: len(rig.ledger.connections) > 1 and rig.all_up())
        assert rig.clock.monotonic() - since <= 10.0
        await rig.trade(2.0)
        await rig.settle()
        assert rig.happened("half_open") == 1
        assert rig.ids(BTC, Kind.TRADE)[-1] == last_id(rig, Kind.TRADE)


@pytest.mark.parametrize("venue", ["okx", "bitget", "bybit"])
async def test_p4_a_line_that_owes_its_snapshot_is_replaced(venue: str) -> None:
    rule = {"fault": "ack_without_data", "limit": 1, "target": {"kind": "depth5"}}
    async with Rig(venue, "spot", kinds=ALL, lines=2, factor=10.0, faults=(rule,)) as rig:
        since = rig.clock.monotonic()
        await rig.until(lambda: rig.stream.counts["rotations"] == 1)
        assert rig.clock.monotonic() - since <= 12.0  # some seconds passed before all were up
        assert rig.happened("ack_without_data") == 1
        assert rig.stream.counts["stalls"] == 1


async def test_p4_a_line_that_was_refused_what_others_get_is_replaced() -> None:
    rule = {"fault": "refuse_topic", "limit": 1, "target": {"kind": "trade"}}
    async with Rig("okx", "spot", lines=3, factor=10.0, faults=(rule,)) as rig:
        since = rig.clock.monotonic()
        rig.venues.pace("okx", Pace(rate=100.0, tick=0.05))
        await rig.until(lambda: rig.stream.counts["rotations"] == 1)
        assert rig.clock.monotonic() - since <= 10.0
        rig.venues.server("okx").pump.stop()
        await rig.settle()
        assert rig.happened("refuse_topic") == 1
        assert rig.figures()["refused"] == 1
        rig.assert_kept()


@pytest.mark.parametrize(
    ("venue", "product"), [("binance", "spot"), ("binance", "ubase"), *VENUES[1:]]
)
async def test_p4_a_refused_topic_silences_no_other(venue: str, product: str) -> None:
    """Binance and Bybit refuse all that one request asks for: each topic is asked for again."""
    rule = {"fault": "refuse_topic", "target": {"topic": "*eth*usdt*@*"}}
    if venue != "binance":
        rule = {"fault": "refuse_topic", "target": {"topic": "*ETH*USDT*"}}
    symbols = (BTC, "ETHUSDT")
    async with Rig(venue, product, symbols, kinds=ALL, lines=2, faults=(rule,)) as rig:
        await rig.wait(4.0)
        await rig.trade(6.0)
        await rig.settle()
        assert rig.happened("refuse_topic") >= 2 * len(ALL)
        asked = [channel.topic for channel in rig.stream.feed.channels]
        refused = [topic for topic in asked if "ETH" in topic.upper()]
        assert set(rig.stream.refusals) >= set(refused), "by name"
        assert not [topic for topic in rig.stream.refusals if "BTC" in topic.upper()]
        for kind in ALL:
            assert len(rig.ids(BTC, kind)) > 10
            assert not rig.ids("ETHUSDT", kind)
        assert rig.all_up()


async def test_p4_a_quiet_symbol_is_no_stall() -> None:
    mute = {"fault": "drop", "target": {"topic": "ethusdt@*"}}  # nobody can tell it from quiet
    async with Rig(symbols=(BTC, "ETHUSDT"), lines=2, faults=(mute,)) as rig:
        await rig.trade(60.0, rate=20.0)
        assert rig.happened("drop") > 100
        assert not rig.ids("ETHUSDT", Kind.BOOKTICKER)
        assert len(rig.ids(BTC, Kind.BOOKTICKER)) > 100
        assert rig.stream.counts["stalls"] == 0
        assert rig.stream.counts["resubscribed"] >= 2


@pytest.mark.parametrize(("venue", "product"), VENUES)
async def test_p5_a_reset_opens_a_generation_and_never_silences(venue: str, product: str) -> None:
    late = {"fault": "delay", "ms": 400.0, "target": {"line": 1}}
    async with Rig(venue, product, kinds=ALL, faults=(late,)) as rig:
        await rig.trade(4.0)
        for _ in range(2):
            assert rig.inject("id_reset") == 3
            await rig.trade(8.0)
        await rig.settle()
        assert rig.happened("id_reset") == 2
        assert rig.happened("delay") > 0
        assert rig.figures()["resets"] == sum(drops(rig, kind) for kind in ALL) > 0
        assert rig.ids(BTC, Kind.BOOKTICKER)[-1] == last_id(rig, Kind.BOOKTICKER)
        assert rig.ids(BTC, Kind.TRADE)[-1] == last_id(rig, Kind.TRADE)
        rig.assert_kept()


async def test_p8_hostile_frames_are_counted_and_reach_no_store() -> None:
    async with Rig(lines=2, faults=({"fault": "truncate", "probability": 0.1},)) as rig:
        for what in ("text", "json", "types", "binary"):
            assert rig.inject("garbage", what=what) == 2
            await rig.trade(1.0)
        await rig.settle()
        assert len(rig.ledger.connections) == 2, "none of these ends a connection"
        garbage, cut = rig.happened("garbage"), rig.happened("truncate")
        assert garbage == 8
        assert cut > 10
        assert rig.figures()["dropped"] >= cut + 2  # not UTF-8 may be refused by the transport
        assert rig.figures()["faults"] == 0
        for what in ("oversize", "wire"):
            rule: dict[str, Any] = {"what": "wire"} if what == "wire" else {}
            rig.inject("oversize" if what == "oversize" else "garbage", **rule)
            await rig.until(lambda: not rig.all_up())
            await rig.until(rig.all_up)
            await rig.trade(1.0)
        await rig.settle()
        assert rig.figures()["reconnects"] >= 2
        assert rig.figures()["faults"] == 0
        rig.assert_kept()


def drops(rig: Rig, kind: Kind) -> int:
    """Resets at which the venue's ids of that kind really began anew (those of Bitget's trades and
    the hashes of Bybit's do not)."""
    channel = next(c for c in rig.stream.feed.channels if c.kind is kind)
    if channel.ids is Ids.UNORDERED:
        return 0
    product = rig.engine.groups[0].product.name
    ids = rig.ledger.produced(series_key(rig.venue, product, BTC, kind))
    return sum(int(ids[g + 1].min()) < int(ids[g].max()) for g in range(len(ids) - 1))


def last_id(rig: Rig, kind: Kind) -> int:
    """The id that the market made last."""
    product = rig.engine.groups[0].product.name
    return int(rig.ledger.table(series_key(rig.venue, product, BTC, kind))["id"][-1])
