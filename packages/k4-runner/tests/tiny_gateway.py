"""A supervisor of tiny modules as a process of its own: `python tiny_gateway.py RUN WORKER...`.

Prints its workers' processes as one JSON object when all of them run, then their receipts.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

from tiny import handovers, pulse, started

from k4.core.clock import SystemClock
from k4.core.retry import backoff
from k4.runner.control import Receipt
from k4.runner.supervise import Supervisor


def show(value: object) -> None:
    print(json.dumps(value), flush=True)


def receipt(report: Receipt) -> None:
    show(report.stream)


async def main(run: str, names: list[str]) -> int:
    clock = SystemClock()
    workers = handovers(run, names)
    supervisor = Supervisor(
        workers,
        clock=clock,
        backoff=lambda: backoff(random.Random(), cap=5.0),
        pulse=pulse,
        receipt=receipt,
        complain=lambda text: print(text, file=sys.stderr),
    )

    def announce() -> None:
        if all(started(worker) for worker in workers):
            show(supervisor.pids())
        else:
            clock.call_later(0.01, announce)

    announce()
    return await supervisor.run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
