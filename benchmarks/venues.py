"""Every venue and kind from socket to store, against the same kind of floor as Binance's quotes.

    python benchmarks/venues.py [--messages N] [--rounds R] [--only okx,bybit.trade] [--json]

For each case of `venue_frames.py` the venue (this process) sends the same frames over a plain
WebSocket on loopback to two programs, interleaved over the rounds:

    flat    picows and uvloop, run by `flat.py`'s own loop: the case's typed decode, id check, pack
    k4      `k4-runner run` with its default configuration and this one kind

Bybit's depth5 is an incremental book in both. What is measured, and how, is described in
`socket_to_store.py`. Figures are the median of the rounds; what counts is their ratio.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import flat
import posix_ipc
import uvloop
from socket_to_store import Venue, chunks_of, drive, frame, gateway, pinned, program, remove
from venue_frames import CASES, SYMBOL, Case

SLOTS = 100_000


def name_of(case: Case) -> str:
    return f"{case.name}.{case.kind}"


def frames(case: Case, messages: int) -> Iterator[bytes]:
    for i in range(messages):
        yield frame(case.payload(i), case.binary)


@contextmanager
def flat_loop(case: Case, port: int, store: str) -> Iterator[list[int]]:
    """The floor as a process of its own."""
    command = [sys.executable, __file__, "--flat", name_of(case), "--port", str(port)]
    with program([*pinned(), *command, "--store", store]) as process:
        yield [process.pid]
    posix_ipc.unlink_shared_memory("/" + store)


def run_flat(case: Case, port: int, store: str) -> None:
    """What that process does: `flat.py`'s loop with the case's handler."""
    length = case.store_size(SLOTS)
    shm = posix_ipc.SharedMemory("/" + store, posix_ipc.O_CREX, mode=0o600, size=length)
    buffer = mmap.mmap(shm.fd, length)
    shm.close_fd()
    buffer[:] = bytes(length)  # touch every page before the clock runs
    url = f"ws://127.0.0.1:{port}/stream"
    uvloop.run(flat.run(url, [SYMBOL], case.floor(buffer, SLOTS), False))


@contextmanager
def k4(case: Case, port: int, store: str, lines: int = 1) -> Iterator[list[int]]:
    """K4 with the case's kind alone."""
    section = {"symbols": [SYMBOL], f"{case.kind}_shm_name": store, "redun_conn_count": lines}
    endpoints = {case.endpoint: f"ws://127.0.0.1:{port}/stream"}
    connection: dict[str, object] = {"exchange": case.exchange, "endpoints": endpoints}
    with gateway(connection, case.product, {**section, **case.section}) as pids:
        yield pids
    remove(store)


def throughput(
    name: str, case: Case, chunks: Sequence[bytes], messages: int
) -> tuple[float, float]:
    """(messages per second, CPU µs per message) of one run."""
    venue, store = Venue(case.ack), f"k4bench_{os.getpid()}_{name}"
    programs = {"flat": flat_loop, "k4": k4}
    with programs[name](case, venue.port, store) as pids:
        return drive(venue, store, pids, chunks, messages)


def measure(case: Case, messages: int, rounds: int) -> dict[str, object]:
    chunks = chunks_of(frames(case, messages))
    runs: dict[str, list[tuple[float, float]]] = {"flat": [], "k4": []}
    for _ in range(rounds):
        for name, found in runs.items():
            found.append(throughput(name, case, chunks, messages))
    row: dict[str, object] = {"type": "venue", "name": case.name, "kind": case.kind}
    for name, found in runs.items():
        row[f"{name}_msgs_per_s"] = round(statistics.median(rate for rate, _ in found))
        row[f"{name}_cpu_us"] = round(statistics.median(cpu for _, cpu in found), 3)
    pairs = list(zip(runs["k4"], runs["flat"], strict=True))
    row["throughput_ratio"] = round(statistics.median(a[0] / b[0] for a, b in pairs), 3)
    row["cpu_ratio"] = round(statistics.median(a[1] / b[1] for a, b in pairs), 3)
    return row


def chosen(only: str) -> list[Case]:
    """The cases whose names begin with one of `only`, all where it is empty."""
    wanted = tuple(filter(None, only.split(",")))
    return [case for case in CASES if not wanted or name_of(case).startswith(wanted)]


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="names or beginnings of them, by comma")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--flat", help=argparse.SUPPRESS)  # run as the floor
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flat:
        (case,) = chosen(options.flat)
        run_flat(case, options.port, options.store)
        return
    if not options.json:
        print(f"{'':22}{'k4 msg/s':>10}{'flat msg/s':>12}{'ratio':>7}{'k4 µs':>9}{'flat µs':>9}")
    for case in chosen(options.only):
        row = measure(case, options.messages, options.rounds)
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        print(
            f"{name_of(case):22}{row['k4_msgs_per_s']:>10,}{row['flat_msgs_per_s']:>12,}"
            f"{row['throughput_ratio']:>7.2f}{row['k4_cpu_us']:>9.2f}{row['flat_cpu_us']:>9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
