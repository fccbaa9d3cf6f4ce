"""Counters as Prometheus text, over a real socket."""

from __future__ import annotations

import os
import socket

import aiohttp
import pytest

from k4.core.config import MetricsConfig
from k4.core.counters import CounterRow, CountersWriter
from k4.core.errors import K4Error
from k4.runner.metrics import CONTENT_TYPE, exposition, serving

RUN = f"metrics.{os.getpid()}"


def test_samples_of_a_metric_stand_together_under_one_type() -> None:
    row = CounterRow(
        "line", {"stream": "binance.spot.json", "id": "0"}, {"wins": 7, "lag_us.p50": 3}
    )
    other = CounterRow("line", {"stream": "okx.spot", "id": "1"}, {"wins": 9})
    assert exposition({"a": [row], "b": [other]}).splitlines() == [
        "# TYPE k4_line_wins untyped",
        'k4_line_wins{stream="binance.spot.json",id="0",worker="a"} 7',
        'k4_line_wins{stream="okx.spot",id="1",worker="b"} 9',
        "# TYPE k4_line_lag_us_p50 untyped",
        'k4_line_lag_us_p50{stream="binance.spot.json",id="0",worker="a"} 3',
    ]


def test_what_a_label_may_not_hold_is_escaped() -> None:
    row = CounterRow("odd-type", {"a b": 'back\\slash "quote"\nline'}, {"x": 1})
    assert exposition({"w": [row]}).splitlines()[1] == (
        'k4_odd_type_x{a_b="back\\\\slash \\"quote\\"\\nline",worker="w"} 1'
    )


async def test_a_scrape_reads_the_counters_of_this_run_alone() -> None:
    mine, other = CountersWriter(f"{RUN}.w1"), CountersWriter(f"{RUN}x.w1")
    try:
        mine.row("stream", {"name": "s"}, ("published",)).write((41,))
        other.row("stream", {"name": "s"}, ("published",)).write((13,))
        async with (
            serving(MetricsConfig("127.0.0.1", 0), RUN) as port,
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{port}/metrics") as answer,
        ):
            assert answer.status == 200
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            assert (await answer.text()).splitlines() == [
                "# TYPE k4_stream_published untyped",
                'k4_stream_published{name="s",worker="w1"} 41',
            ]
    finally:
        mine.close()
        other.close()


async def test_a_taken_address_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(K4Error, match=f"cannot serve metrics on 127.0.0.1:{port}"):
            async with serving(MetricsConfig("127.0.0.1", port), RUN):
                pass
