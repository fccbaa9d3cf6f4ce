"""The gateway as a user runs it: `k4-runner run` on a file, and what its stores hold afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plain_reader import Instrument, read_store, update_num
from plain_traffic import Channel

RUNNER = Path(sys.executable).parent / "k4-runner"

Record = tuple[object, ...]


@dataclass
class Product:
    """One section of the configuration, with what is sent for it: channels by kind and symbol.

    refused: symbols that the venue does not know. options: further keys of the section.
    """

    section: str
    channels: dict[str, dict[str, Channel]]
    lines: int = 1
    refused: tuple[str, ...] = ()
    options: dict[str, object] = field(default_factory=dict)
    name: str = ""  # in stream names, where it is not the section's

    def store(self, kind: str) -> str:
        return f"foreign_{os.getpid()}_{self.section}_{kind}"

    @property
    def stores(self) -> list[str]:
        return [self.store(kind) for kind in self.channels]

    @property
    def symbols(self) -> list[str]:
        return [*next(iter(self.channels.values())), *self.refused]

    def configuration(self) -> dict[str, object]:
        names = {f"{kind}_shm_name": self.store(kind) for kind in self.channels}
        lines = {"redun_conn_count": self.lines}
        return {"symbols": self.symbols, **lines, **names, **self.options}


@contextmanager
def gateway(
    folder: Path, connection: Mapping[str, object], env: Mapping[str, str] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """A gateway of one connection. At the end the list has the receipts of its streams."""
    config = folder / "gateway.json"
    config.write_text(json.dumps({"connections": [connection]}))
    receipts: list[dict[str, Any]] = []
    with subprocess.Popen(
        [RUNNER, "run", config, "--log-level", "warning"],
        stdout=subprocess.PIPE,
        env={**os.environ, **(env or {})},
    ) as process:
        try:
            yield receipts
        finally:
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=10)
            assert process.returncode == 0
    receipts += [json.loads(line) for line in out.splitlines()]


def wait_for(counts: Mapping[str, int], seconds: float = 90.0) -> None:
    """Wait until each store has so many records."""
    deadline = time.monotonic() + seconds
    while any(update_num(name) < count for name, count in counts.items()):
        found = {name: update_num(name) for name in counts}
        assert time.monotonic() < deadline, found
        os.sched_yield()


def without_local_time(instrument: Instrument) -> list[Record]:
    return [record[:-1] for record in instrument.records]


def remove(names: Iterable[str]) -> None:
    for name in names:
        Path("/dev/shm", name).unlink(missing_ok=True)


def play(
    folder: Path,
    products: list[Product],
    done: threading.Semaphore,
    connections: int,
    **connection: object,
) -> None:
    """Run a gateway until the venue said `done` once for each of the connections, and compare.

    done: released when a client has read everything.
    """
    sections = {product.section: product.configuration() for product in products}
    most = max(
        len(channel.expected)
        for product in products
        for channels in product.channels.values()
        for channel in channels.values()
    )
    try:
        whole = {"md_size": most + 2, "metadata": "off", **connection, **sections}
        with gateway(folder, whole) as receipts:
            for _ in range(connections):
                assert done.acquire(timeout=60)
        ledger = {
            (receipt["name"].split(".")[1], row["kind"], row["symbol"]): row
            for receipt in receipts
            for row in receipt["ledger"]
        }
        for product in products:
            for kind, channels in product.channels.items():
                rows = {
                    s: ledger[product.name or product.section, kind, s] for s in product.symbols
                }
                compare(read_store(product.store(kind)), channels, rows)
    finally:
        for product in products:
            remove(product.stores)


def compare(
    found: list[Instrument],
    channels: Mapping[str, Channel],
    ledger: Mapping[str, Mapping[str, object]],
) -> None:
    """One store against what was sent, field by field; symbols that were refused stay empty."""
    assert [instrument.symbol for instrument in found] == list(ledger)
    for instrument in found:
        symbol = instrument.symbol
        channel, row = channels.get(symbol, Channel()), ledger[symbol]
        held = without_local_time(instrument)
        pairs = enumerate(zip(held, channel.expected, strict=False))
        wrong = next(((i, *pair) for i, pair in pairs if pair[0] != pair[1]), None)
        assert wrong is None, symbol
        assert len(held) == len(channel.expected) == instrument.current_index + 1, symbol
        assert instrument.generation == row["resets"] == channel.resets, symbol
        local = [record[-1] for record in instrument.records]
        assert local == sorted(local)  # type: ignore[type-var]
        if row["state"] != "unknown":
            assert (row["lost"], row["healed"]) == (channel.lost, channel.healed), symbol
