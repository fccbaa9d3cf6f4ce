"""`hatch run chaos`: seeded runs against every simulated venue, one JSON summary each.

Exit status 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import sys

import uvloop

from .run import Plan, run
from .script import MARKETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    add = parser.add_argument
    add("--venue", choices=(*MARKETS, "all"), default="all")
    add("--messages", type=int, default=2_000_000, help="data frames sent, all lines together")
    add("--rotations", type=int, default=1_000)
    add("--seed", type=int, default=1)
    add("--factor", type=float, default=20.0, help="all waits are divided by it")
    add("--rate", type=float, default=4_000.0, help="market events a second of real time")
    add("--log-level", default="critical", help="of the gateway, on stderr")
    options = parser.parse_args()
    names = list(MARKETS) if options.venue == "all" else [options.venue]
    broken = 0
    for name in names:
        plan = Plan(
            venue=name,
            messages=options.messages,
            rotations=options.rotations,
            seed=options.seed,
            factor=options.factor,
            rate=options.rate,
            log_level=options.log_level,
        )
        outcome = uvloop.run(run(plan))
        print(json.dumps(outcome.summary()), flush=True)
        broken += not outcome.ok
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
