"""Recorded OKX frames against an independent reading: json, Decimal, and the documented names."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.records import Bookticker, Depth5, Record, Trade
from k4.md.exchanges.okx import EXCHANGE
from k4.md.feed import Ack
from k4.md.sinks import CollectingSink

SAMPLES = Path(__file__).parent / "vectors" / "samples"


def lines() -> list[tuple[str, str]]:
    """(file, frame) of every recorded line."""
    return [
        (file.name, line)
        for file in sorted(SAMPLES.glob("okx-*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def side(levels: list[list[str]], column: int) -> list[float]:
    return [float(Decimal(level[column])) for level in levels]


def five(figures: list[float]) -> tuple[float, ...]:
    return tuple([*figures, 0.0, 0.0, 0.0, 0.0, 0.0][:5])


def read(symbol: str, product_type: int, channel: str, data: dict[str, Any]) -> Record | None:
    """The record of one element of `data`, by the field lists of the documentation."""
    us = int(data["ts"]) * 1000
    if channel == "trades":
        figures = (float(Decimal(data["px"])), float(Decimal(data["sz"])))
        maker = int(data["side"] == "sell")
        return Trade(symbol, product_type, us, us, int(data["tradeId"]), *figures, maker, 0)
    bids, asks = data["bids"], data["asks"]
    if channel == "bbo-tbt":
        (bid, bid_vol), (ask, ask_vol) = (
            [float(Decimal(figure)) for figure in level[:2]] for level in (bids[0], asks[0])
        )
        orders = int(bids[0][3]), int(asks[0][3])
        id = data.get("seqId", 0)
        return Bookticker(symbol, product_type, us, us, id, bid, bid_vol, ask, ask_vol, *orders, 0)
    if channel != "books5":
        return None  # the incremental book is no stream of whole ones
    bid_orders, ask_orders = (tuple(map(int, five(side(levels, 3)))) for levels in (bids, asks))
    return Depth5(
        symbol,
        product_type,
        us,
        us,
        data["seqId"],
        len(bids),
        len(asks),
        0.0,
        five(side(bids, 0)),
        five(side(bids, 1)),
        five(side(asks, 0)),
        five(side(asks, 1)),
        bid_orders,
        ask_orders,
        0,
    )


def test_every_sample_is_there() -> None:
    assert len(lines()) == 15
    assert len({file for file, _ in lines()}) == 5


@pytest.mark.parametrize(("file", "line"), lines())
def test_a_recorded_frame_is_read_field_by_field(file: str, line: str) -> None:
    frame = json.loads(line)
    channel, inst_id = frame["arg"]["channel"], frame["arg"]["instId"]
    swap = inst_id.endswith("-SWAP")
    product = EXCHANGE.product("swap" if swap else "spot")
    config = ConnectionConfig(
        exchange="okx",
        products=(ProductConfig(name=product.name, symbols=("S",), kinds=product.kinds),),
    )
    (feed,) = EXCHANGE.feeds(config, {(product.name, "S"): inst_id})
    sink = CollectingSink.of(feed)

    feed.session().receive(line.encode(), 0, sink)

    if "event" in frame:
        assert sink.controls == [Ack(topic=f"{channel}:{inst_id}")]
        return
    expected = [read("S", product.product_type, channel, data) for data in frame["data"]]
    assert sink.records == [record for record in expected if record is not None]
    assert sink.drops == ([] if sink.records else ["stream"])
