"""How a reader waits when there is nothing to read: burn a core, share it, or back off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Literal

from k4.core.errors import K4Error

IdleName = Literal["spin", "yield", "backoff"]

# `backoff`: a burst is met spinning, a lull yielding, a quiet market sleeping. Linux adds about
# 50 µs of timer slack to any sleep, so a first sleep below that would not be shorter.
_SPINS = 200
_YIELDS = 200
_FIRST_SLEEP = 50e-6
_LONGEST_SLEEP = 1e-3


def waiter(idle: str, sleep: Callable[[float], None] = time.sleep) -> Callable[[int], None]:
    """The wait of an idle strategy, to be called with the number of empty looks in a row (from 0).

    spin: return at once; lowest latency, one core at 100 %. yield: let another thread run.
    backoff: spin, then yield, then sleep 50 µs doubling to 1 ms. Raises K4Error for another name.
    """
    waits: dict[str, Callable[[int], None]] = {
        "spin": lambda rounds: None,
        "yield": lambda rounds: os.sched_yield(),
        "backoff": lambda rounds: _back_off(rounds, sleep),
    }
    if idle not in waits:
        raise K4Error(f"no idle strategy {idle!r}", remedy=f"use one of {', '.join(waits)}")
    return waits[idle]


def _back_off(rounds: int, sleep: Callable[[float], None]) -> None:
    if rounds < _SPINS:
        return
    if rounds < _SPINS + _YIELDS:
        os.sched_yield()
        return
    doublings = min(rounds - _SPINS - _YIELDS, 10)
    sleep(min(_FIRST_SLEEP * (1 << doublings), _LONGEST_SLEEP))
