"""Socket to store: how fast K4 is, against the floor for a Python gateway and the floor of the
machine.

    python benchmarks/socket_to_store.py [--messages N] [--rounds R] [--symbols 1,50] [--json]

One venue (this process) sends the same combined bookTicker frames over a plain WebSocket on
loopback to one program a time, interleaved over the rounds:

    flat    benchmarks/flat.py: picows, one typed decode, id check, pack. No gateway can do less.
    k4      `k4-runner run` with its default configuration: counters, liveness, heartbeats on.
    floor   benchmarks/floor.c: a C loop that counts frames (latency only), spinning and blocking.

Throughput: frames are prepared beforehand and sent as fast as the program takes them; the clock
runs from the first record in shared memory to the last, both seen from this process, which only
maps the store. CPU time is the worker's own, from /proc. Latency: paced frames, one at a time;
from just before the send until this process sees the new index. The program under test has a core
of its own; the venue, which also watches the store, has the other.

Figures are the median of the rounds; what counts is their ratio within one run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import mmap
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import posix_ipc

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))  # the last one is for the program under test
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CHUNK = 60_000
TARGET_THROUGHPUT = 0.75  # of the flat floor
TARGET_LATENCY = 1.3  # times the flat floor's


def symbols_of(count: int) -> list[str]:
    return ["BTCUSDT", *(f"C{i:03d}USDT" for i in range(1, count))]


def payload(symbol: str, id: int) -> bytes:
    return (
        f'{{"stream":"{symbol.lower()}@bookTicker","data":{{"u":{id},"s":"{symbol}",'
        f'"b":"{63000 + id % 997}.{id % 100:02d}000000","B":"4.77471000",'
        f'"a":"{63999 + id % 997}.01000000","A":"{1 + id % 7}.33198000"}}}}'
    ).encode()


def frame(data: bytes, binary: bool = False) -> bytes:
    first = 0x82 if binary else 0x81
    if len(data) < 126:
        return bytes([first, len(data)]) + data
    return bytes([first, 126]) + struct.pack(">H", len(data)) + data


class Venue:
    """A plain WebSocket server, with frames made in advance. ack: its answer to a request."""

    def __init__(self, ack: bytes = b'{"result":null,"id":1}') -> None:
        self.ack = ack
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(30)
        self.port = self.listener.getsockname()[1]

    def accept(self) -> socket.socket:
        """The next client, subscribed and acknowledged."""
        client, _ = self.listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(30)
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(4096)
        key = next(
            line.split(b":", 1)[1].strip()
            for line in request.split(b"\r\n")
            if line.lower().startswith(b"sec-websocket-key")
        )
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        client.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        client.recv(65_536)  # the SUBSCRIBE
        client.sendall(frame(self.ack))
        return client


def quotes(messages: int, symbols: Sequence[str], first: int) -> Iterator[bytes]:
    for i in range(messages):
        yield frame(payload(symbols[i % len(symbols)], first + i))


def chunks_of(frames: Iterable[bytes]) -> list[bytes]:
    """Frames joined into writes."""
    made, buffer = [], bytearray()
    for one in frames:
        buffer += one
        if len(buffer) > CHUNK:
            made.append(bytes(buffer))
            buffer.clear()
    made.append(bytes(buffer))
    return made


class Watched:
    """A store seen from outside: its update count, and the index of its first instrument."""

    def __init__(self, name: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                shm = posix_ipc.SharedMemory("/" + name)
                break
            except posix_ipc.ExistentialError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.map = mmap.mmap(shm.fd, shm.size, prot=mmap.PROT_READ)
        shm.close_fd()
        self.words = memoryview(self.map)[: len(self.map) // 8 * 8].cast("q")

    def close(self) -> None:
        self.words.release()
        self.map.close()


def cpu_seconds(pid: int) -> float:
    """Time that a process has used, to the nanosecond: Linux has a clock for every process."""
    return time.clock_gettime((~pid << 3) | 2)


@contextmanager
def flat(port: int, store: str, symbols: Sequence[str], spin: bool) -> Iterator[list[int]]:
    command = [sys.executable, str(HERE / "flat.py"), "--url", f"ws://127.0.0.1:{port}/stream"]
    command += ["--store", store, "--symbols", ",".join(symbols), "--keep"]
    command += ["--spin"] if spin else []
    with program([*pinned(), *command]) as process:
        yield [process.pid]
    posix_ipc.unlink_shared_memory("/" + store)


@contextmanager
def k4(port: int, store: str, symbols: Sequence[str], spin: bool) -> Iterator[list[int]]:
    connection = {
        "exchange": "binance",
        "endpoints": {"spot": f"ws://127.0.0.1:{port}/stream"},
        "busy_poll": spin,
    }
    with gateway(connection, "spot", {"symbols": list(symbols), "bbo_shm_name": store}) as pids:
        yield pids
    remove(store)


@contextmanager
def gateway(
    connection: dict[str, object], name: str, section: dict[str, object]
) -> Iterator[list[int]]:
    """`k4-runner run` with one product; its workers' ids."""
    if len(CORES) > 1:
        section["cpu_affinity_conn"] = [CORES[-1]]
    whole = {**connection, "metadata": "off", name: section}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "bench.json"
        config.write_text(json.dumps({"connections": [whole]}))
        free = ["taskset", "-c", ",".join(map(str, CORES))]  # to choose its cores by itself
        with program([*free, runner(), "run", str(config), "--log-level", "error"]) as process:
            yield worker_of(process.pid)


def runner() -> str:
    found = shutil.which("k4-runner", path=str(Path(sys.executable).parent))
    assert found is not None, "k4-runner is not installed beside this Python"
    return found


def remove(store: str) -> None:
    subprocess.run([runner(), "shm", "rm", store], check=True)


@contextmanager
def floor(port: int, store: str, symbols: Sequence[str], spin: bool) -> Iterator[list[int]]:
    binary = Path(tempfile.gettempdir()) / f"k4-floor-{os.getpid()}"
    if not binary.exists():
        subprocess.run(["cc", "-O2", str(HERE / "floor.c"), "-o", str(binary)], check=True)
    shm = posix_ipc.SharedMemory("/" + store, posix_ipc.O_CREX, mode=0o600, size=4096)
    os.pwrite(shm.fd, struct.pack("=q", -1), 48)
    shm.close_fd()
    mode = "spin" if spin else "block"
    command = [str(binary), mode, "127.0.0.1", str(port), "/stream", store]
    with program([*pinned(), *command]) as process:
        yield [process.pid]
    posix_ipc.unlink_shared_memory("/" + store)


def pinned() -> list[str]:
    return ["taskset", "-c", str(CORES[-1])] if len(CORES) > 1 else []


@contextmanager
def program(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def worker_of(pid: int) -> list[int]:
    """The child of the supervisor, once it is there."""
    while True:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return [int(child) for child in children]
        time.sleep(0.01)


PROGRAMS = {"flat": flat, "k4": k4, "floor": floor}


def throughput(name: str, symbols: Sequence[str], messages: int) -> tuple[float, float]:
    """(messages per second, CPU µs per message) of one run."""
    venue, store = Venue(), f"k4bench_{os.getpid()}_{name}"
    chunks = chunks_of(quotes(messages, symbols, first=10_000_000_000))
    with PROGRAMS[name](venue.port, store, symbols, False) as pids:
        return drive(venue, store, pids, chunks, messages)


def drive(
    venue: Venue, store: str, pids: Sequence[int], chunks: Sequence[bytes], messages: int
) -> tuple[float, float]:
    """Send everything to one client; (messages per second, CPU µs per message) until all of it is
    in the store."""
    client = venue.accept()
    watched = Watched(store)
    time.sleep(0.7)  # start-up is not what is measured
    cpu = sum(map(cpu_seconds, pids))
    words = watched.words
    begin = time.perf_counter()
    for chunk in chunks:
        client.sendall(chunk)
    while words[0] < messages:
        if time.perf_counter() - begin > 120:
            raise SystemExit(f"{store}: {words[0]} of {messages} records after 120 s")
    seconds = time.perf_counter() - begin
    used = sum(map(cpu_seconds, pids)) - cpu
    del words
    watched.close()
    client.close()
    venue.listener.close()
    return messages / seconds, used / messages * 1e6


def latency(name: str, spin: bool, messages: int, rate: float) -> list[float]:
    """Wire-to-store times of one run in µs."""
    venue, store = Venue(), f"k4bench_{os.getpid()}_{name}"
    frames = [frame(payload("BTCUSDT", 20_000_000_000 + i)) for i in range(messages)]
    found = []
    with PROGRAMS[name](venue.port, store, ["BTCUSDT"], spin) as _:
        client = venue.accept()
        watched = Watched(store)
        time.sleep(1.0)
        words, index = watched.words, (16 + 32) // 8
        due = time.perf_counter()
        for i, data in enumerate(frames):
            due += 1 / rate
            while time.perf_counter() < due:
                time.sleep(max(0.0, (due - time.perf_counter()) / 2))
            began = time.perf_counter_ns()
            client.sendall(data)
            while words[index] < i:
                if time.perf_counter_ns() - began > 2_000_000_000:
                    raise SystemExit(f"{name}: record {i} never came")
            found.append((time.perf_counter_ns() - began) / 1000)
        watched.close()
        client.close()
        venue.listener.close()
    return found[messages // 10 :]


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--symbols", default="1,50")
    parser.add_argument("--paced", type=int, default=3000, help="frames of one latency run")
    parser.add_argument("--rate", type=float, default=1000.0, help="paced frames per second")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, object] = {"type": "socket_to_store"}
    for count in map(int, options.symbols.split(",")):
        runs: dict[str, list[tuple[float, float]]] = {"flat": [], "k4": []}
        for _ in range(options.rounds):
            for name, found in runs.items():
                found.append(throughput(name, symbols_of(count), options.messages))
        for name, found in runs.items():
            results[f"{name}.{count}.msgs_per_s"] = round(statistics.median(r for r, _ in found))
            results[f"{name}.{count}.cpu_us"] = round(statistics.median(c for _, c in found), 3)
        ratios = [a[0] / b[0] for a, b in zip(runs["k4"], runs["flat"], strict=True)]
        results[f"throughput.{count}.ratio"] = round(statistics.median(ratios), 3)
    for spin in (False, True):
        times: dict[str, list[float]] = {"flat": [], "k4": [], "floor": []}
        for _ in range(options.rounds):
            for name in times:
                times[name].append(
                    statistics.median(latency(name, spin, options.paced, options.rate))
                )
        mode = "spin" if spin else "block"
        for name, medians in times.items():
            results[f"{name}.{mode}.p50_us"] = round(statistics.median(medians), 1)
        ratio = statistics.median(times["k4"]) / statistics.median(times["flat"])
        results[f"latency.{mode}.ratio"] = round(ratio, 3)
    results["targets"] = {"throughput": TARGET_THROUGHPUT, "latency": TARGET_LATENCY}
    if options.json:
        print(json.dumps(results))
    else:
        for key, value in results.items():
            print(f"{key:32} {value}")


if __name__ == "__main__":
    main()
