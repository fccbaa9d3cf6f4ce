"""One process of a shared-memory test: a writer, a reader, or a holder, steered through stdin.

    shm_writer.py write NAME KIND SLOTS COUNT      publish COUNT records at full speed, then report
    shm_writer.py write NAME KIND SLOTS 0          publish until killed
    shm_writer.py read NAME HOW LAST               read up to record LAST - 1 and check every one
    shm_writer.py attach-and-exit NAME             open, read, leave without closing
    shm_writer.py fork NAME                        make a store, fork, die by SIGKILL

Every field of record n follows from n, and `local_time_us` is a checksum over the others, so a
reader that knows n from its cursor finds any byte that does not belong.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import numpy as np
import numpy.typing as npt

from k4.core import layout
from k4.core.enums import Kind
from k4.core.records import Record
from k4.core.ring import Lane
from k4.core.shm import ShmMdReader, ShmMdStore

SYMBOLS = ("BTCUSDT", "ETHUSDT")
SALT = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def publish_bbo(lane: Lane, n: int) -> None:
    lane.publish(n & 7, n, n * 3, n + 1, n, n + 0.5, n + 0.75, n * 2, n, -n, n * SALT & MASK)


def publish_depth(lane: Lane, n: int) -> None:
    side = (n, n + 1, n + 2, n + 3, n + 4)
    head = (n & 7, n, n * 3, n + 1, 5, 5, n + 0.5)
    lane.publish(*head, *side, *side, *side, *side, *side, *side, n * SALT & MASK)


PUBLISH = {Kind.BOOKTICKER: publish_bbo, Kind.DEPTH5: publish_depth}


def torn(kind: Kind, records: npt.NDArray[np.void], first: int) -> int:
    """How many records differ in any byte from what record first, first + 1 ... must be."""
    n = np.arange(first, first + len(records), dtype=np.uint64)
    want = np.zeros(len(records), layout.LAYOUTS[kind].dtype)
    whole, signed = n.astype(np.float64), n.astype(np.int32)
    want["symbol"] = SYMBOLS[0].encode()
    want["product_type"] = n & np.uint64(7)
    want["event_timestamp_us"] = n
    want["trade_timestamp_us"] = n * np.uint64(3)
    want["update_id"] = n + np.uint64(1)
    want["local_time_us"] = n * np.uint64(SALT)
    if kind is Kind.BOOKTICKER:
        want["bid_price"], want["bid_vol"] = whole, whole + 0.5
        want["ask_price"], want["ask_vol"] = whole + 0.75, whole * 2
        want["bid_order_count"], want["ask_order_count"] = signed, -signed
    else:
        want["bid_level"] = want["ask_level"] = 5
        want["last_price"] = whole + 0.5
        for k in range(5):
            for field in ("bid_prices", "bid_vols", "ask_prices", "ask_vols"):
                want[field][:, k] = whole + k
            for field in ("bid_order_counts", "ask_order_counts"):
                want[field][:, k] = signed + k
    return int(np.sum([a.tobytes() != b.tobytes() for a, b in zip(records, want, strict=True)]))


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def write(name: str, kind: Kind, slots: int, count: int) -> None:
    with ShmMdStore(name, kind, SYMBOLS, slots) as store:
        lane, publish = store.ring.lanes[0], PUBLISH[kind]
        say(ready=True, attached=store.attached, epoch=store.epoch, next=lane.next)
        sys.stdin.readline()
        n = lane.next
        last = n + count
        while n != last or not count:
            publish(lane, n)
            n += 1
        say(written=n)


def read(name: str, how: str, last: int) -> None:
    reader = ShmMdReader(name)
    say(ready=True)
    sys.stdin.readline()
    print(json.dumps({"since": since, "follow": follow, "latest": latest}[how](reader, last)))


def since(reader: ShmMdReader, last: int) -> dict[str, int]:
    cursor = seen = lost = bad = gaps = 0
    while cursor < last:
        batch = reader.since(SYMBOLS[0], cursor, 4096)
        bad += torn(reader.kind, batch.records, batch.cursor - len(batch.records))
        seen, lost, gaps = seen + len(batch.records), lost + batch.lost, gaps + bool(batch.lost)
        cursor = batch.cursor
    return {"read": seen, "lost": lost, "torn": bad, "gaps": gaps}


def follow(reader: ShmMdReader, last: int) -> dict[str, int]:
    seen = bad = 0
    told: list[int] = []
    record_layout = layout.LAYOUTS[reader.kind]
    record: Record
    for record in reader.follow(SYMBOLS[0], "yield", start=0, on_lost=told.append):
        n = seen + sum(told)
        row = np.frombuffer(record_layout.pack(record), record_layout.dtype)
        bad += torn(reader.kind, row, n)
        seen += 1
        if n == last - 1:
            break
    assert reader.lost(SYMBOLS[0]) == sum(told)
    return {"read": seen, "lost": sum(told), "torn": bad, "gaps": len(told)}


def latest(reader: ShmMdReader, last: int) -> dict[str, int]:
    seen = bad = gaps = 0
    before, record_layout = -1, layout.LAYOUTS[reader.kind]
    while before < last - 1:
        record = reader.latest(SYMBOLS[0])
        if record is None:
            continue
        n = record.event_timestamp_us
        row = np.frombuffer(record_layout.pack(record), record_layout.dtype)
        bad += torn(reader.kind, row, n)
        bad += n < before
        gaps += n > before + 1
        seen += n != before
        before = n
    return {"read": seen, "lost": last - seen, "torn": bad, "gaps": gaps}


def attach_and_exit(name: str) -> None:
    reader = ShmMdReader(name)
    say(ready=True, latest=reader.latest(SYMBOLS[0]) is not None)
    sys.stdin.readline()


def fork(name: str) -> None:
    """The parent dies; its child, which shares every descriptor, lives until stdin ends."""
    store = ShmMdStore(name, Kind.BOOKTICKER, SYMBOLS, 8)
    parent = os.getpid()
    if os.fork() == 0:
        store.close()  # must neither unlock nor clear the parent's pid
        with ShmMdReader(name) as reader:
            alive, pid = reader.writer_alive(), reader.writer_pid
        say(ready=True, alive=alive, pid=pid, parent=parent, child=os.getpid())
        sys.stdin.readline()
        os._exit(0)
    signal.pause()


def main(command: str, name: str, *rest: str) -> None:
    if command == "write":
        write(name, Kind(int(rest[0])), int(rest[1]), int(rest[2]))
    elif command == "read":
        read(name, rest[0], int(rest[1]))
    elif command == "attach-and-exit":
        attach_and_exit(name)
    else:
        fork(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
