"""What a duplicate costs: four lines bring the same frames, three of four copies are thrown away.

    python benchmarks/duplicates.py [--messages N] [--rounds R] [--turn T] [--only binance,okx]
        [--in-process] [--json]

The floor is what `flat.py`, which is one line without any copies, spends on a bookTicker frame
above its transport; beside it stands the floor of the case's own frames, a flat loop of
`venue_frames.py`. K4 runs with its ledger and the lag of every line. Two measurements:

in process  the lines of K4 take the frames in turns of 64; as from a socket, the bytes are a new
            object, written right before the call. `winner` brings an update first, `copy` brings
            the same bytes again, `decoded` the same update in other bytes (so it must be decoded to
            be known). A call that does nothing in the same loop is taken off; CPU ns, the best of
            the rounds. The floor likewise.
sockets     `k4-runner run` with four lines. The first gets 64 frames (`--turn`), then the second
            the same, and so on, each when the program sleeps again. What that costs with a receiver
            that does nothing is taken off. The floor likewise: `flat.py`, less its own loop without
            a handler. CPU ns, medians of the pieces, then of the rounds. The further a line is
            behind, the colder is what the first copy left in the processor's caches.

Target: a copy costs at most half of `flat.py`'s floor, of SBE at most a third.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import flat
import uvloop
from hot_path import Nobody
from socket_to_store import CORES, Venue, cpu_seconds, pinned, program, quotes, symbols_of
from socket_to_store import flat as flat_program
from venue_frames import CASES, SYMBOL, Case
from venues import chosen, frames, k4, name_of

from k4.core.clock import SystemClock
from k4.core.config import ConnectionConfig, ProductConfig
from k4.core.enums import KIND_BY_LABEL
from k4.core.liveness import Watch
from k4.core.ring import RingWriter
from k4.core.transport import Closed, Connection, Dial, choose
from k4.md.arbiter import Arbiter
from k4.md.exchanges import find
from k4.md.line import Line

LINES = 4
TURN = 64  # frames that one line takes before the next
SLOTS = 100_000
TARGET, SBE_TARGET = 1 / 2, 1 / 3  # of the floor
PRODUCTS = {"futures": {"bybit": "linear"}}
QUOTES = CASES[0]  # the floor's frames

Hear = Callable[[bytes, int, int], None]
Pieces = Sequence[tuple[bytes, int]]  # what is sent at once, and how many frames that is


# -- in process ------------------------------------------------------------------------------------


def lines_of(case: Case) -> list[Line]:
    """Lines of the case's feed, all on one arbiter."""
    exchange, kind = find(case.exchange), KIND_BY_LABEL[case.kind]
    product = exchange.product(PRODUCTS.get(case.product, {}).get(case.exchange, case.product))
    wanted = ProductConfig(
        name=product.name, symbols=(SYMBOL,), kinds=(kind,), lines=LINES, **case.section
    )
    config = ConnectionConfig(
        exchange=case.exchange,
        products=(wanted,),
        endpoints={case.endpoint: ("ws://127.0.0.1/stream",)},
    )
    (feed,) = exchange.feeds(config, {(product.name, SYMBOL): product.rule(SYMBOL)})
    arbiter = Arbiter(
        product_type=case.product_type,
        symbols=[SYMBOL],
        channels=feed.channels,
        rings={kind: RingWriter.in_memory(kind, [SYMBOL], SLOTS)},
        limits=feed.limits,
        shared=True,
        now_ns=time.time_ns(),
    )
    lines = [Line(i, feed, arbiter, Nobody(), Watch([], 1)) for i in range(LINES)]
    for line in lines:
        line.port.serving_ns = time.time_ns()
        line.link_opened(Nobody())  # type: ignore[arg-type]
    return lines


def turns(hears: Sequence[Hear], frames: Sequence[Sequence[bytearray]]) -> list[float]:
    """ns per frame and line; `frames` has every line's."""
    now, count = time.time_ns, len(frames[0])
    spent = [0] * len(hears)
    for at in range(0, count, TURN):
        for i, hear in enumerate(hears):
            batch = frames[i][at : at + TURN]
            began = time.thread_time_ns()
            for frame in batch:
                hear(bytes(frame), now(), 1)
            spent[i] += time.thread_time_ns() - began
    return [ns / count for ns in spent]


def nothing(payload: bytes, received_ns: int, opcode: int) -> None:
    """The null receiver."""


def of_all_lines(case: Case, messages: int, *, differ: bool) -> list[list[bytearray]]:
    """Every line's frames, of the same bytes or of different ones."""
    made = [bytearray(case.payload(i)) for i in range(messages)]
    if not differ:
        return [made] * LINES
    return [[other(case, one, i) for one in made] for i in range(LINES)]


def other(case: Case, payload: bytearray, number: int) -> bytearray:
    """The same message in bytes of its own: a later SBE version (bytes 6 and 7), or spaces more."""
    if case.binary:
        return payload[:6] + number.to_bytes(2, "little") + payload[8:]
    return payload + b" " * number


def in_process(case: Case, messages: int) -> dict[str, float]:
    """ns per frame of the first and of the further copies, above a receiver that does nothing."""
    found = {}
    for differ in (False, True):
        own = of_all_lines(case, messages, differ=differ)
        loop = statistics.mean(turns([nothing] * LINES, own))
        lines = lines_of(case)
        times = turns([line.message for line in lines], own)
        check(lines, messages)
        found["decoded" if differ else "copy"] = statistics.mean(times[1:]) - loop
        found.setdefault("winner", times[0] - loop)
    return found


def check(lines: Sequence[Line], messages: int) -> None:
    """That what was measured is what it says: one winner, three lines of copies."""
    wins = [line.port.wins for line in lines]
    copies = [line.port.duplicates for line in lines]
    waits = lines[0].port.wait.count
    if wins[0] != messages or copies[1:] != [messages] * (LINES - 1) or waits != messages:
        raise SystemExit(f"wins {wins}, copies {copies}, waits {waits} of {messages}")


def floor_in_process(case: Case, handler: Callable[[memoryview], object], messages: int) -> float:
    """ns of a flat loop's handler, above a handler that does nothing."""

    def timed(call: Callable[[memoryview], object]) -> float:
        began = time.thread_time_ns()
        for frame in own:
            call(memoryview(bytes(frame)))
        return (time.thread_time_ns() - began) / len(own)

    own = [bytearray(case.payload(i)) for i in range(messages)]
    return timed(handler) - timed(lambda payload: None)


def flat_handler() -> Callable[[memoryview], object]:
    """The handler of `flat.py`."""
    size = flat.HEADER + flat.INSTRUMENT + SLOTS * flat.RECORD.size + flat.TRAILER
    handler: Callable[[memoryview], object] = flat.make_handler(bytearray(size), [SYMBOL], SLOTS, 0)
    return handler


# -- over sockets ----------------------------------------------------------------------------------


class Deaf:
    """A receiver of K4's transport that does nothing with a message."""

    def __init__(self) -> None:
        self.message = nothing
        self.ended = asyncio.get_running_loop().create_future()
        self._connection: Connection | None = None

    def opened(self, connection: Connection, /) -> None:
        self._connection = connection
        connection.send_text(b"subscribe")

    def pinged(self, payload: bytes, /) -> None:
        if self._connection is not None:
            self._connection.pong(payload)

    def ponged(self, payload: bytes, /) -> None: ...

    def closed(self, how: Closed, /) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def listen(port: int, lines: int) -> None:
    """K4's transport with nobody behind it."""
    transport = choose("auto", SystemClock())
    url, deaf = f"ws://127.0.0.1:{port}/stream", [Deaf() for _ in range(lines)]
    attempts = [transport.connect(Dial(url=url), one) for one in deaf]
    gc.collect()
    gc.freeze()
    gc.disable()
    await asyncio.gather(*(one.ended for one in deaf))
    del attempts


@contextmanager
def null(mode: str, port: int) -> Iterator[list[int]]:
    """A null receiver as a process: `k4`, the transport; `flat`, the floor's loop."""
    command = [sys.executable, __file__, "--null", mode, "--port", str(port)]
    with program([*pinned(), *command]) as process:
        yield [process.pid]


def cpu_ns(pids: Sequence[int], venue: Venue, lines: int, pieces: Pieces) -> list[float]:
    """CPU ns per frame, by line. A line gets a piece when the one before has read its own."""
    clients = [venue.accept() for _ in range(lines)]
    time.sleep(0.7)  # start-up is not what is measured
    ports = {client.getpeername()[1] for client in clients}
    began, since = idle(pids, ports), time.perf_counter()
    time.sleep(0.5)
    used, now = idle(pids, ports), time.perf_counter()
    background = (used - began) / (now - since)  # timers, messages or not
    found: list[list[float]] = [[] for _ in clients]
    for number, (data, count) in enumerate(pieces):
        for client, spent in zip(clients, found, strict=True):
            before, since = used, time.perf_counter()
            client.sendall(data)
            used = idle(pids, ports)
            now = time.perf_counter()
            if number > len(pieces) / 10:  # warm by then
                spent.append((used - before - background * (now - since)) / count * 1e9)
    for client in clients:
        client.close()
    venue.listener.close()
    return [statistics.median(spent) for spent in found]


def idle(pids: Sequence[int], ports: Container[int]) -> float:
    """Wait until everything was read and the program sleeps; the CPU seconds used by then. Linux
    adds a process's time up when it goes to sleep: while it runs, its clock may stand still."""
    while unread(ports) or not all(map(asleep, pids)):
        time.sleep(0.000_05)
    return sum(map(cpu_seconds, pids))


def asleep(pid: int) -> bool:
    """Whether all threads of a process wait for something."""
    states = (path.read_text().rpartition(")")[2].split()[0] for path in tasks(pid))
    return all(state == "S" for state in states)


def tasks(pid: int) -> Iterable[Path]:
    return Path(f"/proc/{pid}/task").glob("*/stat")


def unread(ports: Container[int]) -> bool:
    """Whether bytes wait in the kernel for the owners of these local ports. A ping would ask more
    exactly, but K4 paces its answers by the venue's limit, and would be measured on cold caches."""
    with open("/proc/net/tcp") as table:
        next(table)
        rows = [row.split(maxsplit=5) for row in table]
    return any(
        row[4].rpartition(":")[2] != "00000000"
        for row in rows
        if int(row[1].rpartition(":")[2], 16) in ports
    )


def pieces_of(frames: Iterable[bytes], count: int) -> Pieces:
    """Frames joined by `count`."""
    made = list(frames)
    cut = (made[at : at + count] for at in range(0, len(made), count))
    return [(b"".join(piece), len(piece)) for piece in cut]


def over_sockets(case: Case, messages: int, count: int) -> dict[str, float]:
    """CPU ns per copy, the transport included, and of the transport alone."""
    pieces = pieces_of(frames(case, messages), count)
    venue, store = Venue(case.ack), f"k4bench_{os.getpid()}_copies"
    with k4(case, venue.port, store, LINES) as pids:
        first, *copies = cpu_ns(pids, venue, LINES, pieces)
    venue = Venue(case.ack)
    with null("k4", venue.port) as pids:
        transport = statistics.mean(cpu_ns(pids, venue, LINES, pieces))
    whole = statistics.mean(copies)
    return {"copy": whole - transport, "winner": first - transport, "transport": transport}


def floor_over_sockets(messages: int, count: int) -> float:
    """CPU ns per frame of `flat.py`, less its loop without a handler."""
    pieces = pieces_of(quotes(messages, symbols_of(1), 10**10), count)
    venue, store = Venue(), f"k4bench_{os.getpid()}_flat"
    with flat_program(venue.port, store, symbols_of(1), False) as pids:
        (whole,) = cpu_ns(pids, venue, 1, pieces)
    venue = Venue()
    with null("flat", venue.port) as pids:
        (loop,) = cpu_ns(pids, venue, 1, pieces)
    return whole - loop


def run_null(mode: str, port: int) -> None:
    """What a null receiver's process does."""
    if mode == "flat":
        url = f"ws://127.0.0.1:{port}/stream"
        uvloop.run(flat.run(url, [SYMBOL], lambda payload: None, False))
    else:
        uvloop.run(listen(port, LINES))


# -- figures ---------------------------------------------------------------------------------------


def measure(cases: Sequence[Case], options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per case and measurement; the floor is measured in every round, too."""
    floors: list[float] = []
    rows: dict[str, list[dict[str, float]]] = {name_of(case): [] for case in cases}
    for _ in range(options.rounds):
        floors.append(floor_in_process(QUOTES, flat_handler(), options.messages))
        for case in cases:
            own = case.floor(bytearray(case.store_size(SLOTS)), SLOTS)
            found = in_process(case, options.messages)
            found["own floor"] = floor_in_process(case, own, options.messages)
            rows[name_of(case)].append(found)
    for case in cases:
        yield row_of(case, "in process", min(floors), best(rows[name_of(case)]))
    if options.in_process:
        return
    bases = []
    rows = {name_of(case): [] for case in cases}
    for _ in range(options.rounds):
        bases.append(floor_over_sockets(options.messages, options.turn))
        for case in cases:
            rows[name_of(case)].append(over_sockets(case, options.messages, options.turn))
    for case in cases:
        yield row_of(case, "sockets", statistics.median(bases), middle(rows[name_of(case)]))


def best(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of every figure by itself: what disturbs one term must not make a difference wrong."""
    return {name: min(row[name] for row in rows) for name in rows[0]}


def middle(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of every figure its median."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def row_of(case: Case, where: str, floor: float, ns: dict[str, float]) -> dict[str, object]:
    ratio, target = ns["copy"] / floor, SBE_TARGET if case.binary else TARGET
    row: dict[str, object] = {"type": "duplicates", "where": where, "case": name_of(case)}
    row |= {"floor_ns": round(floor), "ns": {name: round(value) for name, value in ns.items()}}
    return row | {"ratio": round(ratio, 3), "target": round(target, 3), "met": ratio <= target}


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=int, default=TURN, help="frames of a piece, over sockets")
    parser.add_argument("--only", default="binance", help="names or beginnings, by comma")
    parser.add_argument("--in-process", action="store_true", help="leave the sockets out")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--null", help=argparse.SUPPRESS)  # run as a null receiver
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.null:
        run_null(options.null, options.port)
        return
    gc.disable()
    if len(CORES) > 1:
        os.sched_setaffinity(0, CORES[:-1])  # it looks at the program all the time
    for row in measure(chosen(options.only), options):
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        costs = ", ".join(f"{name} {value}" for name, value in row["ns"].items())  # type: ignore[attr-defined]
        print(
            f"{row['where']:12}{row['case']:22}{costs}; floor {row['floor_ns']}; "
            f"copy / floor {row['ratio']} (target {row['target']}"
            f"{'' if row['met'] else ', missed'})",
            flush=True,
        )


if __name__ == "__main__":
    main()
