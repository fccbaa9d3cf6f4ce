"""What users see of streams and lines is right under faults: `watch --once --json` and receipts,
compared with the venue's ledger.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from chaos.account import series_key
from rig import Rig

from k4.core.clock import SystemClock
from k4.core.counters import CountersWriter
from k4.core.enums import Kind
from k4.runner.watch import Watcher, objects

LATE_MS = 400.0


async def test_figures_of_streams_and_lines_are_the_ledgers() -> None:
    faults = (
        {"fault": "drop", "probability": 0.3, "target": {"line": 0}},
        {"fault": "drop", "probability": 0.1, "target": {"line": 1}},
        {"fault": "delay", "ms": LATE_MS, "target": {"line": 1}},
        {"fault": "truncate", "probability": 0.02, "target": {"line": 0}},
    )
    name = f"figures{os.getpid()}"
    counters = CountersWriter(name)
    try:
        async with Rig(
            kinds=(Kind.TRADE,),
            lines=2,
            factor=10.0,
            faults=faults,
            counters=counters,
            stall_timeout_sec=120.0,  # the quiet at the end is to replace nobody
        ) as rig:
            await rig.trade(10.0)
            await rig.settle()
            await rig.wait(34.0)  # then no further copy is awaited
            watcher = Watcher(SystemClock(), counters=name)
            sample = watcher.look()
            seen = [body for body in objects(sample, sample) if body["type"] != "store"]
            watcher.close()
            stream = next(body for body in seen if body["type"] == "stream")
            lines = [body for body in seen if body["type"] == "line"]
            receipt = rig.engine.receipt()[0]
            key = series_key("binance", "spot", "BTCUSDT", Kind.TRADE)
            gaps = rig.ledger.truth_gaps(key)[0]
            got = [np.unique(rig.ledger.sent_rows(key, line)) for line in (0, 1)]
            assert rig.happened("drop") > 100
            assert rig.happened("truncate") > 5
            rig.assert_kept()
    finally:
        counters.close()

    either, both = np.union1d(*got), np.intersect1d(*got)
    alone = [len(mine) - len(both) for mine in got]
    assert stream["published"] == len(either) == sum(line["wins"] for line in lines)
    assert stream["lost"] == len(gaps) > 10
    assert stream["gaps"] == 1 + int((np.diff(gaps.astype(np.int64)) > 1).sum())
    assert (stream["duplicates"], stream["stale"], stream["resets"]) == (len(both), 0, 0)
    assert receipt.items() >= {k: v for k, v in stream.items() if isinstance(v, int)}.items()

    assert sorted(line["missed"] for line in lines) == sorted(alone)
    assert sorted(line["messages"] for line in lines) == sorted(len(mine) for mine in got)
    quick, late = sorted(lines, key=lambda line: -int(line["wins"]))
    assert (quick["wins"], late["wins"]) == (len(got[0]), alone[1])
    assert (quick["missed"], late["missed"]) == (alone[1], alone[0])
    assert [line["state"] for line in lines] == ["up", "up"]
    assert [line["reconnects"] for line in lines] == [0, 0]
    assert late["lag_us"]["p50"] == pytest.approx(LATE_MS * 1000, rel=0.25)
    assert quick["lag_us"]["p50"] == 0
    dividend = {row["line"]: row for row in receipt["redundancy"]}
    assert dividend[quick["id"]]["alone"] == alone[0]
    assert dividend[late["id"]]["alone"] == alone[1]
    assert dividend[quick["id"]]["wait_us"]["p50"] == late["lag_us"]["p50"]
