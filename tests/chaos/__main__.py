"""`hatch run chaos`: seeded runs against every simulated venue, one JSON summary each.

Exit status 1 where a promise was broken, or where a run did not come about.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product

import uvloop

from . import processes, virtual
from .run import RESET_SEC, Failure, Plan
from .script import MARKETS

LIMIT_SEC = 1_800.0  # of real time


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    add = parser.add_argument
    add("--venue", choices=(*MARKETS, "all"), default="all")
    add("--messages", type=int, default=2_000_000, help="data frames sent, all lines together")
    add("--rotations", type=int, default=1_000)
    add("--seed", type=int, default=1)
    add("--factor", type=float, default=20.0, help="all waits are divided by it")
    add("--rate", type=float, default=4_000.0, help="market events a second of real time")
    add(
        "--reset-sec", type=float, default=RESET_SEC, help="of the venue's time, between two resets"
    )
    add("--uneven", action="store_true", help="resets come now and then, some close together")
    add("--virtual", action="store_true", help="in virtual time: --factor does not count")
    add("--runs", type=int, default=1, help="so many runs, each with the next seed")
    add("--log-level", default="critical", help="of the gateway, on stderr")
    options = parser.parse_args()
    names = list(MARKETS) if options.venue == "all" else [options.venue]
    broken = 0
    for seed, name in product(range(options.seed, options.seed + options.runs), names):
        plan = Plan(
            venue=name,
            messages=options.messages,
            rotations=options.rotations,
            seed=seed,
            factor=options.factor,
            rate=options.rate,
            reset_sec=options.reset_sec,
            uneven=options.uneven,
            limit=LIMIT_SEC * (options.factor if options.virtual else 1.0),
            log_level=options.log_level,
        )
        try:
            outcome = virtual.run(plan) if options.virtual else uvloop.run(processes.run(plan))
        except Failure as failure:
            row = {"type": "chaos", "venue": name, "ok": False, "seed": seed}
            print(json.dumps(row | {"problems": [str(failure)]}), flush=True)
            broken += 1
            continue
        print(json.dumps(outcome.summary()), flush=True)
        broken += not outcome.ok
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
