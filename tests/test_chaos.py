"""The seeds of `hatch run chaos`, scaled to a minute in all."""

from __future__ import annotations

import json

import pytest
from chaos.processes import run
from chaos.run import Plan

FORCED = {  # by the clock or by sheer number, within the seconds of a short run
    "ack_without_data",
    "close",
    "delay",
    "drop",
    "duplicate",
    "fragment",
    "garbage",
    "half_open",
    "id_reset",
    "jitter",
    "no_pong",
    "oversize",
    "refuse_handshake",
    "reorder",
    "reset",
    "shutdown",
    "slow_ack",
    "stall",
    "truncate",
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("venue", ["binance", "okx", "bitget", "bybit"])
async def test_chaos(venue: str) -> None:
    plan = Plan(venue=venue, messages=60_000, rotations=25, seconds=9.0, limit=120.0)
    outcome = await run(plan)
    summary = outcome.summary()
    assert outcome.ok, json.dumps(summary, indent=1)
    assert summary["faults"].keys() >= FORCED
    assert summary["messages"] >= plan.messages
    assert summary["rotations"] >= plan.rotations
    assert summary["resets"] > 0
    assert summary["pauses"] >= 4, "gateway and venue stood still by turns"
    assert summary["published"] > 10_000
    if venue != "bitget":  # its ids prove no gaps
        assert summary["gap_ids"] > 0, "the script makes gaps on all lines at once"
        assert summary["lines"]["healed"] > 0
