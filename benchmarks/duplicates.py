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
            a handler. These four programs run side by side and take turns of 16 pieces, the first
            of which only warms the caches again, so that what slows the machine down slows all of
            them down. CPU ns, medians of the turns, then of the rounds. The further a line is
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
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
SIDE = 16  # pieces that one program takes before the next
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


class Program:
    """A program under test, its lines accepted; it is fed piece by piece."""

    def __init__(self, pids: Sequence[int], venue: Venue, lines: int) -> None:
        self.pids, self.venue = pids, venue
        self.clients = [venue.accept() for _ in range(lines)]
        self.ports = {client.getpeername()[1] for client in self.clients}
        self.background = 0.0  # timers' CPU seconds in a second, messages or not

    def rest(self, seconds: float) -> None:
        """Learn what the program uses when nothing comes."""
        began, since = idle(self.pids, self.ports), time.perf_counter()
        time.sleep(seconds)
        used, now = idle(self.pids, self.ports), time.perf_counter()
        self.background = (used - began) / (now - since)

    def take(self, pieces: Pieces) -> list[float]:
        """CPU ns per frame, by line, of all pieces but the first. A line gets a piece when the one
        before has read its own."""
        found: list[list[float]] = [[] for _ in self.clients]
        used = idle(self.pids, self.ports)
        for data, count in pieces:
            for client, spent in zip(self.clients, found, strict=True):
                before, since = used, time.perf_counter()
                client.sendall(data)
                used = idle(self.pids, self.ports)
                passed = time.perf_counter() - since
                spent.append((used - before - self.background * passed) / count * 1e9)
        return [statistics.median(spent[1:]) for spent in found]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.venue.listener.close()


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
    """CPU ns per copy and per first copy above the transport, and of the transport alone; of the
    floor above its own loop."""
    own = pieces_of(frames(case, messages), count)
    plain = pieces_of(quotes(messages, symbols_of(1), 10**10), count)
    store, flat_store = (f"k4bench_{os.getpid()}_{name}" for name in ("copies", "flat"))
    with ExitStack() as stack:

        def started(
            start: Callable[[int], AbstractContextManager[list[int]]], venue: Venue, lines: int
        ) -> Program:
            one = Program(stack.enter_context(start(venue.port)), venue, lines)
            stack.callback(one.close)
            return one

        programs = [
            started(lambda port: k4(case, port, store, LINES), Venue(case.ack), LINES),
            started(lambda port: null("k4", port), Venue(case.ack), LINES),
            started(lambda port: flat_program(port, flat_store, symbols_of(1), False), Venue(), 1),
            started(lambda port: null("flat", port), Venue(), 1),
        ]
        time.sleep(0.7)  # start-up is not what is measured
        for one in programs:
            one.rest(0.5)
        rows: list[dict[str, float]] = []
        for at in range(0, len(own) - SIDE + 1, SIDE):
            (first, *copies), transport, (whole,), (loop,) = (
                one.take(pieces[at : at + SIDE])
                for one, pieces in zip(programs, (own, own, plain, plain), strict=True)
            )
            alone = statistics.mean(transport)
            row = {"copy": statistics.mean(copies) - alone, "winner": first - alone}
            rows.append(row | {"transport": alone, "floor": whole - loop})
    return middle(rows[len(rows) // 10 :])  # warm by then


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
    rows = {name_of(case): [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            rows[name_of(case)].append(over_sockets(case, options.messages, options.turn))
    for case in cases:
        found = middle(rows[name_of(case)])
        yield row_of(case, "sockets", found.pop("floor"), found)


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
    if not options.in_process and options.messages < SIDE * options.turn:
        parser.error(f"--messages: at least {SIDE} pieces of --turn, {SIDE * options.turn}")
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
