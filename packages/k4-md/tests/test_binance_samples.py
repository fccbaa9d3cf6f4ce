"""Recorded Binance frames against an independent reading: json, Decimal, and the documented names.

Nothing here is shared with the decoders: a frame is parsed with the standard library, every figure
goes through Decimal, and each field of the record is compared.
"""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.records import AggTrade, Bookticker, Record, Trade
from k4.md.exchanges.binance import EXCHANGE
from k4.md.feed import Ack, Feed
from k4.md.sinks import CollectingSink

SAMPLES = Path(__file__).parent / "vectors" / "samples"
PRODUCTS = {"spot": 0, "um": 2, "cm": 3}
K4_NAMES = {"spot": "spot", "um": "ubase", "cm": "cbase"}


def lines() -> list[tuple[str, str, str]]:
    """(product, file, frame) of every recorded line."""
    return [
        (file.name.split("-")[1], file.name, line)
        for file in sorted(SAMPLES.glob("binance-*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def number(text: str) -> float:
    return float(Decimal(text))


def times(data: dict[str, Any]) -> tuple[int, int]:
    return data.get("E", 0) * 1000, data.get("T", 0) * 1000


def read(product: str, data: dict[str, Any]) -> Record | None:
    """The record of a payload, by the field lists of the documentation; None for no record."""
    kind = PRODUCTS[product]
    if "result" in data or data.get("e") == "depthUpdate":
        return None  # an ack; a diff stream, which is no book of five levels
    if data.get("e") == "aggTrade":
        if "a" not in data:
            return None  # the origin repository left the aggregate's id out
        first, last = data["f"], data["l"]
        figures = (number(data["p"]), number(data["q"]))
        ids = (first, last, data["a"])
        rest = (last - first + 1, int(data["m"]), 0)
        return AggTrade(data["s"], kind, *times(data), *ids, *figures, *rest)
    if data.get("e") == "trade":
        figures = (number(data["p"]), number(data["q"]))
        return Trade(data["s"], kind, *times(data), data["t"], *figures, int(data["m"]), 0)
    assert data.get("e", "bookTicker") == "bookTicker"
    bid, ask = (number(data["b"]), number(data["B"])), (number(data["a"]), number(data["A"]))
    return Bookticker(data["s"], kind, *times(data), data["u"], *bid, *ask, 0, 0, 0)


def feeds_of(product: str, symbol: str) -> list[Feed]:
    config = ConnectionConfig(
        exchange="binance",
        products=(
            ProductConfig(
                name=K4_NAMES[product], symbols=(symbol,), kinds=tuple(Kind), feed="json"
            ),
        ),
    )
    return EXCHANGE.feeds(config, {})


def test_every_sample_is_there() -> None:
    assert len(lines()) >= 25
    assert {product for product, _, _ in lines()} == set(PRODUCTS)


@pytest.mark.parametrize(("product", "file", "line"), lines())
def test_a_recorded_frame_is_read_field_by_field(product: str, file: str, line: str) -> None:
    frame = json.loads(line)
    data = frame.get("data", frame)
    expected = read(product, data)
    ours = []
    for feed in feeds_of(product, data.get("s", "BTCUSDT")):
        sink = CollectingSink.of(feed)
        feed.session().receive(line.encode(), 0, sink)
        ours += sink.records
        if "result" in data:
            assert sink.controls == [Ack(request=str(data["id"]))]
        elif not sink.records:
            assert len(sink.drops) == 1  # also: a kind that another socket carries
    assert ours == ([] if expected is None else [expected])
