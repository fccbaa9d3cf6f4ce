"""The gateway under test: one connection's `MdModule` in a process of its own, on a fast clock.

A specification comes as one JSON line on stdin. stdout carries one JSON object a line: `status`
several times a second, then, when stdin has ended and all lines are closed, one `slot` for every
(product, symbol, kind) and the streams' receipts.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import uvloop

from k4.core.counters import CountersWriter
from k4.core.loading import parse
from k4.core.log import configure
from k4.core.retry import LocalBudget
from k4.md.engine import Engine
from k4.md.exchanges import find
from k4.md.module import MdModule

from .clock import FastClock, Pace

STATUS_SEC = 0.1  # of real time


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to run: the text of a configuration file, and how fast time runs.

    counters: name of its table of counters.
    """

    config: str
    pace: Pace
    seed: int
    counters: str
    log_level: str = "critical"


def say(body: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(body).decode() + "\n")
    sys.stdout.flush()


def status(engine: Engine) -> dict[str, Any]:
    """How far it is: rotations, messages, and whether all configured lines serve."""
    streams = engine.streams
    return {
        "type": "status",
        "rotations": sum(stream.counts["rotations"] for stream in streams),
        "up": all(stream.lines_up == stream.feed.lines for stream in streams),
    }


def ledgers(engine: Engine) -> Iterator[dict[str, Any]]:
    """What the gateway says of its own losses, slot by slot."""
    for group in engine.groups:
        for slot in group.arbiter.live_slots():
            gaps = slot.gaps
            yield {
                "type": "slot",
                "product": group.product.name,
                "symbol": slot.channel.symbol,
                "kind": slot.kind.label,
                "ids": slot.channel.ids.value,
                "published": slot.published,
                "resets": slot.resets,
                "generation": slot.generation,
                "too_late": slot.too_late,
                "gaps": gaps.runs if gaps is not None else None,
                "lost": gaps.lost if gaps is not None else None,
                "healed": gaps.healed if gaps is not None else None,
            }


async def serve(spec: Spec, stdin: asyncio.StreamReader) -> None:
    clock = FastClock(spec.pace)
    connection = parse(spec.config.encode(), "chaos").connections[0]
    counters = CountersWriter(spec.counters, clock=clock)
    limits = find(connection.exchange).limits
    module = MdModule(
        connection,
        [product.name for product in connection.products],
        clock=clock,
        counters=counters,
        budget=LocalBudget(limits.connect_attempts, limits.connect_period),
        rng=random.Random(spec.seed),
    )
    await module.prepare()
    engine = module.engine
    assert engine is not None
    module.start()
    ended = asyncio.ensure_future(stdin.read())
    while not (await asyncio.wait((ended,), timeout=STATUS_SEC))[0]:
        say(status(engine))
    slots = [*ledgers(engine)]
    await module.stop()
    counters.close()
    for slot in slots:
        say(slot)
    for stream in module.receipt():
        say(stream)


async def run() -> None:
    reader = asyncio.StreamReader(limit=1 << 24)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    spec = msgspec.json.decode(await reader.readline(), type=Spec)
    configure(spec.log_level, module_name="chaos")
    await serve(spec, reader)
    transport.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
