"""Vocabulary of the supervision tests: tiny workers, what they have done, and waiting for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from k4.core.counters import CountersReader
from k4.core.errors import StoreMissing
from k4.runner.control import Handover, Part, WorkerPlan


def handovers(run: str, names: Sequence[str]) -> list[Handover]:
    return [
        Handover(
            plan=WorkerPlan(name=name, parts=_parts(name)),
            factory="tiny_modules:modules",
            counters=f"{run}.{name}",
            log_level="error",
        )
        for name in names
    ]


def _parts(name: str) -> tuple[Part, ...]:
    return (Part(role="td", index=0),) if name.startswith("trading") else ()


def pulse(name: str) -> CountersReader | None:
    try:
        return CountersReader(name)
    except StoreMissing:
        return None


def started(handover: Handover, field: str = "started") -> int:
    """The process of the worker if it got so far (`prepared`, `started`, `killed`), else 0."""
    reader = pulse(handover.counters)
    if reader is None:
        return 0
    with reader:
        return reader.pid if any(row.values.get(field) for row in reader.rows()) else 0


async def until(condition: Callable[[], object], seconds: float = 20.0) -> float:
    """Wait for a state of another process that only shared memory shows; how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come true in time"
        await asyncio.sleep(0.005)
    return time.monotonic() - began
