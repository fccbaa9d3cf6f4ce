"""The seeds of `hatch run chaos`, scaled to a minute in all, and its runs in virtual time."""

from __future__ import annotations

import json

import msgspec
import pytest
from chaos import virtual
from chaos.processes import run
from chaos.run import Outcome, Plan

from k4.runner.sim.faults import FAULTS

FORCED = set(FAULTS)  # by the clock or by sheer number, within the seconds of a short run


QUIET = Plan(venue="binance", messages=1_500, rotations=25, rate=1.0, limit=36_000.0)


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


def quiet(**changes: object) -> Outcome:
    """A market in which hardly anything happens: every update of it counts."""
    outcome = virtual.run(msgspec.structs.replace(QUIET, **changes))
    summary = outcome.summary()
    assert outcome.ok, json.dumps(summary, indent=1)
    assert summary["faults"].keys() >= FORCED
    assert summary["rotations"] >= QUIET.rotations
    assert summary["resets"] > 0
    assert summary["pauses"] >= 4
    return outcome


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 12, 17])
def test_chaos_in_a_quiet_market(seed: int) -> None:
    """Resets come close together; those of seed 17 are lost where a line is no longer looked at as
    soon as it closes, and in seed 12 a quote of one came before another's."""
    outcome = quiet(seed=seed, uneven=True, reset_sec=30.0)
    assert outcome.total("published") > 500


@pytest.mark.timeout(300)
@pytest.mark.parametrize("venue", ["okx", "bitget", "bybit"])
def test_chaos_in_a_quiet_market_with_times(venue: str) -> None:
    assert quiet(venue=venue).total("published") > 100


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "changes",
    [
        # A channel of a successor was silent: all other silent lines waited for it.
        {"venue": "bybit", "seed": 609, "rate": 30.0},
        # Two resets in two seconds, of which the first proof takes both.
        {"venue": "okx", "seed": 624, "rate": 3.0, "uneven": True, "reset_sec": 30.0},
        # No line that serves has brought the last id of the generation that is over.
        {"venue": "binance", "seed": 635, "rate": 0.5, "uneven": True, "reset_sec": 40.0},
    ],
)
def test_chaos_that_broke_a_promise_once(changes: dict[str, object]) -> None:
    outcome = quiet(**changes)
    assert outcome.stalls["count"] > 2


def test_a_run_in_virtual_time_depends_on_its_seed_alone() -> None:
    once, again, other = (
        virtual.run(msgspec.structs.replace(QUIET, venue="bybit", seed=seed, messages=500))
        for seed in (3, 3, 4)
    )
    assert once.summary() == again.summary()
    assert once.ledger.summary() == again.ledger.summary() != other.ledger.summary()
