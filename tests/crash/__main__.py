"""`hatch run crash`: seeded runs in which a trading gateway is killed; a JSON summary at the end.

Every run names its case on stderr where a promise was broken; `--only NUMBER` repeats that case.
Exit status 1 where a promise was broken, or where too few of the planned deaths came about.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import uvloop

from .points import POINTS
from .run import Case, Result, cases, run

DEATHS_DUE = 0.8  # of the runs at least in which a process really died


def main() -> int:
    parser = argparse.ArgumentParser(prog="crash", description=__doc__)
    add = parser.add_argument
    add("--runs", type=int, default=300)
    add("--seconds", type=float, default=0.0, help="begin no run after so long; 0: all runs")
    add("--seed", type=int, default=1)
    add("--factor", type=float, default=10.0, help="all waits are divided by it")
    add("--jobs", type=int, default=4, help="runs at the same time")
    add("--only", type=int, help="this case alone")
    add("--log-level", default="critical", help="of the gateway, on stderr")
    options = parser.parse_args()
    chosen = [
        case for case in cases(options.runs, options.seed) if options.only in (None, case.number)
    ]
    # A peer that dies in the middle of a request is no news to the venue here.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    began = time.monotonic()
    results = uvloop.run(_all(chosen, options))
    summary = summarize(results, options.factor, time.monotonic() - began)
    print(json.dumps({"seed": options.seed, **summary}), flush=True)
    return 0 if summary["ok"] else 1


async def _all(chosen: Sequence[Case], options: argparse.Namespace) -> list[Result]:
    results: list[Result] = []
    waiting = iter(chosen)
    deadline = time.monotonic() + options.seconds if options.seconds else float("inf")

    async def work() -> None:
        for case in waiting:
            if time.monotonic() > deadline:
                return
            result = await run(case, options.factor, options.log_level)
            results.append(result)
            for sentence in result.broken:
                case_text = msgspec.json.encode(case).decode()
                print(f"case {case.number}: {sentence}\n  {case_text}", file=sys.stderr, flush=True)

    await asyncio.gather(*(work() for _ in range(options.jobs)))
    return results


def summarize(results: Sequence[Result], factor: float, seconds: float) -> dict[str, Any]:
    """Figures of all runs. deaths: by point; factor: by which every wait was divided."""
    deaths = Counter(
        death.point for result in results for death in result.case.deaths[: result.died]
    )
    died = sum(result.died > 0 for result in results)
    broken = [f"case {r.case.number}: {text}" for r in results for text in r.broken]
    return {
        "type": "crash",
        "ok": bool(results) and not broken and died >= DEATHS_DUE * len(results),
        "factor": factor,
        "seconds": round(seconds, 1),
        "runs": len(results),
        "runs_with_a_death": died,
        "deaths": sum(deaths.values()),
        "deaths_of_the_whole_gateway": sum(
            death.whole for r in results for death in r.case.deaths[: r.died]
        ),
        "points": f"{len(deaths.keys() & set(POINTS))} of {len(POINTS)}",
        "points_not_reached": sorted(set(POINTS) - deaths.keys()),
        "orders": sum(result.orders for result in results),
        "trades": sum(result.trades for result in results),
        "requests": sum(result.requests for result in results),
        "unknown": sum(result.unknown for result in results),
        "faults": _total(result.faults for result in results),
        "broken": broken[:20],
        "promises_broken": len(broken),
    }


def _total(tables: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return dict(sorted(total.items()))


if __name__ == "__main__":
    sys.exit(main())
