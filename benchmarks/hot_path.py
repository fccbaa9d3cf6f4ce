"""What each part of the hot path costs, in one process and without a socket.

    python benchmarks/hot_path.py [--messages N] [--symbols 1,50] [--json]

The same combined bookTicker frames go through `flat.py`'s handler, which is the floor, and through
K4's stages, each measured with everything below it: decode, session (decode and table look-up,
into a sink that does nothing), arbiter (id check, pack, publish), line (what the transport calls).
With four lines, `winner` is the line that brings an update first, `copy` one that brings the same
bytes again.

Figures are ns per message, the best of the rounds: what is left is the work, not the machine's
other work.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence

import flat
from socket_to_store import payload, symbols_of

from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import Kind
from k4.core.liveness import Watch
from k4.core.ring import RingWriter
from k4.core.transport import Closed
from k4.md.arbiter import Arbiter
from k4.md.exchanges import find
from k4.md.exchanges.binance.json import COMBINED
from k4.md.feed import Control, Feed, slot_of
from k4.md.line import Line

SLOTS = 100_000
ROUNDS = 5


class Nobody:
    """A line's owner that is told nothing of interest here."""

    opened_count = 1

    def line_up(self, line: Line, /) -> None: ...

    def line_down(self, line: Line, how: Closed, retry_in: float, /) -> None: ...

    def line_says(self, line: Line, event: Control, /) -> None: ...


class Nothing:
    """A sink whose only method here does nothing."""

    def bbo(self, *values: object) -> None: ...


def feed_of(symbols: Sequence[str], lines: int) -> Feed:
    product = ProductConfig(
        name="spot", symbols=tuple(symbols), kinds=(Kind.BOOKTICKER,), lines=lines
    )
    config = ConnectionConfig(exchange="binance", products=(product,))
    return find("binance").feeds(config, {("spot", symbol): symbol for symbol in symbols})[0]


def lines_of(feed: Feed, symbols: Sequence[str]) -> list[Line]:
    arbiter = Arbiter(
        product_type=0,
        symbols=symbols,
        channels=feed.channels,
        rings={Kind.BOOKTICKER: RingWriter.in_memory(Kind.BOOKTICKER, symbols, SLOTS)},
        limits=feed.limits,
        shared=feed.lines > 1,
        now_ns=time.time_ns(),
    )
    lines = [Line(i, feed, arbiter, Nobody(), Watch([], 1)) for i in range(feed.lines)]
    for line in lines:
        line.link_opened(Nobody())  # type: ignore[arg-type]
    return lines


def best(run: Callable[[], float]) -> float:
    return min(run() for _ in range(ROUNDS))


def timed(call: Callable[[bytes], object], frames: Sequence[bytes]) -> float:
    began = time.perf_counter_ns()
    for frame in frames:
        call(frame)
    return (time.perf_counter_ns() - began) / len(frames)


def frames_from(first: int, count: int, symbols: Sequence[str]) -> list[bytes]:
    return [payload(symbols[i % len(symbols)], first + i) for i in range(count)]


def measure(messages: int, symbols: Sequence[str]) -> dict[str, float]:
    """ns per message by stage."""
    now, first = time.time_ns, iter(range(10**10, 10**12, 10**8))

    def fresh() -> list[bytes]:
        return frames_from(next(first), messages, symbols)

    frames = fresh()
    loop = best(lambda: timed(lambda frame: None, frames))
    size = flat.HEADER + len(symbols) * (flat.INSTRUMENT + SLOTS * flat.RECORD.size) + flat.TRAILER
    handler = flat.make_handler(bytearray(size), list(symbols), SLOTS, 0)
    found = {"flat handler (the floor)": best(lambda: timed(handler, fresh()))}
    found["time stamp"] = best(lambda: timed(lambda frame: now(), frames))
    found["decode"] = best(lambda: timed(COMBINED.quote, frames))
    alone = feed_of(symbols, 1)
    receive, nothing = alone.session().receive, Nothing()
    found["session"] = best(
        lambda: timed(lambda frame: receive(frame, 0, nothing), frames)  # type: ignore[arg-type]
    )
    (line,) = lines_of(alone, symbols)
    bbo, ids = line.port.bbo, iter(range(10**13, 10**14))
    slots = [slot_of(i, Kind.BOOKTICKER) for i in range(len(symbols))]
    line.port.now = now()
    found["arbiter"] = best(
        lambda: timed(
            lambda frame: bbo(slots[0], next(ids), 0, 0, 1.5, 2.0, 1.6, 3.0, 0, 0), frames
        )
    )
    (line,) = lines_of(alone, symbols)
    found["line, alone"] = best(lambda: timed(lambda f: line.message(f, now(), 1), fresh()))
    lines = lines_of(feed_of(symbols, 4), symbols)
    winner, copies = [], []
    for _ in range(ROUNDS):
        times = [0.0] * 4
        made = fresh()
        for at in range(0, messages, 100):
            batch = made[at : at + 100]
            for i, hear in enumerate([line.message for line in lines]):
                began = time.perf_counter_ns()
                for frame in batch:
                    hear(frame, now(), 1)
                times[i] += (time.perf_counter_ns() - began) / len(batch)
        winner.append(times[0] / (messages / 100))
        copies.append(sum(times[1:]) / 3 / (messages / 100))
    # Called without the lambda that `loop` takes off the others.
    found["line, winner of four"] = min(winner) + loop
    found["line, copy"] = min(copies) + loop
    return {name: round(ns - loop, 1) for name, ns in found.items()}


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--symbols", default="1,50")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    gc.disable()
    for count in map(int, options.symbols.split(",")):
        found = measure(options.messages, symbols_of(count))
        if options.json:
            print(json.dumps({"type": "hot_path", "symbols": count, "ns": found}))
            continue
        print(f"{count} symbol{'s' * (count > 1)}")
        for name, ns in found.items():
            print(f"  {name:28}{ns:8.0f} ns")


if __name__ == "__main__":
    main()
