"""Order round trip: how long from `insert_order` until the venue has acknowledged it.

    python benchmarks/order_round_trip.py [--orders N] [--rounds R] [--json]

One simulated Binance on loopback, which checks every signature, answers four clients in turn:

    floor       a flat loop: sign the order (HMAC), send it over one WebSocket, wait for the answer.
                No checks, no journal, no state: no gateway can do less.
    in process  `TdModule.insert_order`: filters, risk, journal, state machine, events.
    process     `TdClient.insert_order` through `k4-runner run` and its Unix socket, journal_sync
                `process` (survives the death of the process).
    full        the same with journal_sync `full` (survives power loss: one fsync an order).

Every order is an IOC far from the market, which the venue accepts and expires at once, so that
nothing piles up. The gateway socket's own cost is measured beside: a request that the worker
answers by itself. Rounds are interleaved; the figures are of all rounds together, in microseconds,
and what counts is their ratio within one run. Most of the time is the venue's own.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import picows
import uvloop

from k4.core.loading import parse
from k4.core.trading import AccountType, Direction, GatewayError, NewOrder, OrderStatus, OrderType
from k4.td import TdClient, TdModule

SYMBOL = "BTCUSDT"
PRICE, QUANTITY = "63000.00", "0.01000"
LIMITS = {
    "spot_orders": [[1_000_000_000, 10]],
    "spot_weight": 1_000_000_000,
    "raw_requests": 1_000_000_000,
}
WARM_UP = 50
READY_SEC = 20.0
Json = dict[str, Any]


class Venue:
    """The simulated venue, a process that takes commands."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.urls: dict[str, str] = self._read()["trading"]

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        request = {"cmd": "trading", "do": do, **arguments}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()["result"]

    def _read(self) -> Json:
        assert self._process.stdout is not None
        answer: Json = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def venue() -> Iterator[Venue]:
    # An account for each, or everybody would be told of everybody's orders.
    accounts = [{"name": name} for name in ("flat", "own", "process", "full")]
    trading = {"market": "manual", "limits": LIMITS, "accounts": accounts}
    spec = {"venues": [], "trading": trading}
    command = (sys.executable, "-m", "k4.runner.sim", "--json", json.dumps(spec), "--control")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            found = Venue(process)
            found.ask(
                "quote", product="spot", symbol=SYMBOL, side="sell", price="64010", quantity="100"
            )
            yield found
        finally:
            process.communicate()  # the end of its commands is its end


def entry(found: Venue, folder: Path, name: str, sync: str) -> Json:
    """A `trading` entry of the spot account."""
    return {
        **found.ask("config", account=name, folder=str(folder)),
        "ubase_enabled": False,
        "cbase_enabled": False,
        "name": name,
        "journal": str(folder / f"{name}.db"),
        "journal_sync": sync,
        "socket": str(folder / f"{name}.sock"),
        "risk": {"spot": {"symbols": [SYMBOL], "max_order_qty": "1", "max_open_orders": 100}},
    }


@contextmanager
def gateway(found: Venue, folder: Path, sync: str) -> Iterator[TdClient]:
    """A client of `k4-runner run`."""
    own = entry(found, folder, sync, sync)
    file = folder / f"{sync}.json"
    module = f"bench{os.getpid()}-{sync}"
    file.write_text(json.dumps({"RazorTrade": {"module_name": module}, "trading": [own]}))
    command = (sys.executable, "-m", "k4.runner.cli", "run", str(file), "--log-level", "warning")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with connected(own["socket"]) as client:
                yield client
        finally:
            process.terminate()


def connected(path: str) -> TdClient:
    deadline = time.monotonic() + READY_SEC
    while time.monotonic() < deadline:
        try:
            client = TdClient(path, "benchmark")
        except GatewayError:
            time.sleep(0.05)
            continue
        if client.info["connected"]:
            return client
        client.close()
    raise SystemExit("the gateway was not ready")


# -- what is measured -----------------------------------------------------------------------------


def order() -> NewOrder:
    return NewOrder(
        symbol=SYMBOL,
        account_type=AccountType.SPOT,
        direction=Direction.BUY,
        order_type=OrderType.IOC,
        quantity=Decimal(QUANTITY),
        price=Decimal(PRICE),
    )


def through_the_socket(client: TdClient, count: int) -> list[int]:
    def insert() -> None:
        update = client.insert_order(order())
        assert update.status is OrderStatus.EXPIRED, update

    return timed(insert, count)


def socket_alone(client: TdClient, count: int) -> list[int]:
    """A request that needs no venue: an unknown page, refused by the worker."""

    def refused() -> None:
        try:
            client._ask("more", {"next": "none-1"})
        except GatewayError:
            return
        raise AssertionError("there is no such page")

    return timed(refused, count)


def timed(act: Callable[[], None], count: int) -> list[int]:
    for _ in range(WARM_UP):
        act()
    found = []
    for _ in range(count):
        began = time.perf_counter_ns()
        act()
        found.append(time.perf_counter_ns() - began)
    return found


async def in_process(own: Json, count: int) -> list[int]:
    config = parse(json.dumps({"trading": [own]}).encode())
    module = TdModule(config.trading[0])
    found = []
    try:
        await module.login(READY_SEC)
        for number in range(WARM_UP + count):
            began = time.perf_counter_ns()
            update = await module.insert_order(order())
            if number >= WARM_UP:
                found.append(time.perf_counter_ns() - began)
            assert update.status is OrderStatus.EXPIRED, update
    finally:
        await module.stop()
    return found


class Answers(picows.WSListener):
    """One request is under way at a time; its answer is the next text frame."""

    def __init__(self) -> None:
        self.next: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == picows.WSMsgType.TEXT:
            self.next.set_result(frame.get_payload_as_bytes())


async def flat(url: str, key: str, secret: bytes, count: int) -> list[int]:
    """Sign, send, wait: the floor."""
    answers = Answers()
    transport, _ = await picows.ws_connect(lambda: answers, url)
    found = []
    try:
        for number in range(WARM_UP + count):
            answers.next = asyncio.get_running_loop().create_future()
            began = time.perf_counter_ns()
            params = {
                "apiKey": key,
                "newClientOrderId": f"flat-{os.getpid()}-{next(FLAT)}",
                "newOrderRespType": "RESULT",
                "price": PRICE,
                "quantity": QUANTITY,
                "recvWindow": 5000,
                "side": "BUY",
                "symbol": SYMBOL,
                "timeInForce": "IOC",
                "timestamp": time.time_ns() // 1_000_000,
                "type": "LIMIT",
            }
            payload = "&".join(f"{name}={value}" for name, value in params.items()).encode()
            params["signature"] = hmac.new(secret, payload, hashlib.sha256).hexdigest()
            request = {"id": number, "method": "order.place", "params": params}
            transport.send(picows.WSMsgType.TEXT, json.dumps(request).encode())
            answer = json.loads(await answers.next)
            if number >= WARM_UP:
                found.append(time.perf_counter_ns() - began)
            assert answer["result"]["status"] == "EXPIRED", answer
    finally:
        transport.disconnect()
        await transport.wait_disconnected()
    return found


FLAT = itertools.count()


# -- the run --------------------------------------------------------------------------------------


def figures(nanoseconds: list[int]) -> Json:
    """Microseconds."""
    values = np.array(nanoseconds) / 1e3
    p50, p99, p999 = np.percentile(values, (50, 99, 99.9))
    return {
        "orders": len(values),
        "p50_us": round(float(p50), 1),
        "p99_us": round(float(p99), 1),
        "p99_9_us": round(float(p999), 1),
    }


def measure(orders: int, rounds: int) -> dict[str, Json]:
    samples: dict[str, list[int]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="k4-bench-")))
        found = stack.enter_context(venue())
        clients = {
            sync: stack.enter_context(gateway(found, folder, sync)) for sync in ("process", "full")
        }
        own = entry(found, folder, "own", "process")
        flat_keys = entry(found, folder, "flat", "process")
        key = Path(flat_keys["api_key"]["file"]).read_text()
        secret = Path(flat_keys["secret_key"]["file"]).read_bytes()
        for _ in range(rounds):
            part = {
                "floor": uvloop.run(flat(found.urls["spot_ws_api_url"], key, secret, orders)),
                "in process": uvloop.run(in_process(own, orders)),
                "process": through_the_socket(clients["process"], orders),
                "full": through_the_socket(clients["full"], orders),
                "socket alone": socket_alone(clients["process"], orders),
            }
            for name, values in part.items():
                samples.setdefault(name, []).extend(values)
        summary = found.ask("summary")
    kinds = len(samples) - 1  # the socket alone places nothing
    if summary["sent_twice"] or summary["orders"] != kinds * rounds * (orders + WARM_UP):
        raise SystemExit(f"the venue's ledger does not agree: {summary}")
    return {name: figures(values) for name, values in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--orders", type=int, default=1000, help="of each kind and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = measure(options.orders, options.rounds)
    floor = table["floor"]["p50_us"]
    for row in table.values():
        row["over_floor_us"] = round(row["p50_us"] - floor, 1)
    if options.json:
        for name, row in table.items():
            print(json.dumps({"type": "order_round_trip", "name": name, **row}))
        return
    print(f"{'':14}{'p50 us':>10}{'p99':>10}{'p99.9':>10}{'p50 over the floor':>22}")
    for name, row in table.items():
        over = "" if name in ("floor", "socket alone") else f"{row['over_floor_us']:,.0f}"
        columns = (f"{row[key]:>10,.0f}" for key in ("p50_us", "p99_us", "p99_9_us"))
        print(f"{name:14}{''.join(columns)}{over:>22}")


if __name__ == "__main__":
    main()
