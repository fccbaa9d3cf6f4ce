"""Kill a writer by SIGKILL before every single line (or bytecode) of what it does, in turn.

    shm_killpoints.py SCENARIO NAME

For n = 1, 2, 3 ... a forked child runs the scenario under a trace function that kills it at its
n-th step inside the modules of the store; the first child that survives ends the enumeration. After
each kill the parent checks, knowing the contract's bytes alone, that the name is absent or leads
to a complete object, that an attached reader still reads whole records, and that the next writer
starts, publishes, and leaves no debris. Prints {"points": n - 1} or the failed check.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from k4.core import ring, segment, shm, trailer
from k4.core.enums import Kind
from k4.core.shm import ShmMdReader, ShmMdStore, remove_store

FILES = {module.__file__ for module in (ring, segment, shm, trailer)}
KIND, SYMBOLS, SLOTS = Kind.TRADE, ("A", "B"), 4
BEFORE = 6  # records of A that are there before the scenarios that need an object
SHM = Path("/dev/shm")


def publish(store: ShmMdStore, n: int) -> None:
    store.ring.lanes[0].publish(0, n, n, n, float(n), float(n), 1, n)


def nothing(name: str) -> None:
    """No object of that name."""


def an_object(name: str) -> None:
    with ShmMdStore(name, KIND, SYMBOLS, SLOTS) as store:
        for n in range(BEFORE):
            publish(store, n)


def another_shape(name: str) -> None:
    with ShmMdStore(name, KIND, SYMBOLS, SLOTS + 1) as store:
        for n in range(BEFORE):
            publish(store, n)


def original(name: str) -> None:
    size = 48 + SLOTS * 96
    block = struct.pack("<32sqII", b"A", -1, SLOTS, 0).ljust(size, b"\0")
    (SHM / name).write_bytes(struct.pack("<QII", 0, 1, SLOTS) + block)


def start(name: str) -> None:
    ShmMdStore(name, KIND, SYMBOLS, SLOTS)


def write_three(name: str) -> None:
    store = ShmMdStore(name, KIND, SYMBOLS, SLOTS)
    publish(store, BEFORE)
    store.ring.lanes[0].open_generation()
    publish(store, BEFORE + 1)
    store.heartbeat()
    publish(store, BEFORE + 2)
    store.close()


SCENARIOS: dict[str, tuple[Callable[[str], None], Callable[[str], None], bool]] = {
    # what is there before, what the child does, step through bytecodes instead of lines
    "create": (nothing, start, False),
    "attach": (an_object, start, False),
    "replace": (another_shape, start, False),
    "replace-original": (original, start, False),
    "publish": (an_object, write_three, True),
    "remove": (an_object, remove_store, False),
}


def run_child(action: Callable[[str], None], name: str, point: int, opcodes: bool) -> None:
    left = point

    def step(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if event == ("opcode" if opcodes else "line"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return step

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if opcodes and frame.f_code.co_name not in ("publish", "open_generation", "close"):
            return None
        frame.f_trace_opcodes = opcodes
        return step

    sys.settrace(enter)
    action(name)
    sys.settrace(None)
    os._exit(0)


def complete(name: str) -> bool:
    """Whether the name is absent (False) or leads to an object that is whole, by its bytes."""
    try:
        data = (SHM / name).read_bytes()
    except FileNotFoundError:
        return False
    updates, count, slots = struct.unpack_from("<QII", data, 0)
    span = 48 + slots * 96
    if len(data) == 16 + count * span and count == 1:
        return True  # the original's, still untouched
    assert len(data) == 16 + count * span + 64, f"{len(data)} bytes"
    magic, kind, record_size, _, state, epoch = struct.unpack_from(
        "<8sIIIIQ", data, 16 + count * span
    )
    assert (magic, kind, record_size) == (b"K4SHM\0\0\1", KIND, 96), "trailer"
    assert state in (1, 2), "state"
    assert epoch >= 1, "epoch"
    written = 0
    for i in range(count):
        symbol, index, length, _ = struct.unpack_from("<32sqII", data, 16 + i * span)
        assert symbol.rstrip(b"\0").decode() == SYMBOLS[i], "symbol"
        assert length == slots, "buffer_len"
        assert index >= -1, "index"
        for n in range(max(0, index - slots + 2), index + 1):
            at = 16 + i * span + 48 + n % slots * 96
            name_, *values = struct.unpack_from("<32sB7xQQQddB7xQ", data, at)
            assert name_.rstrip(b"\0") == b"A", f"record {n}"
            assert values == [0, n, n, n, float(n), float(n), 1, n], f"record {n}"
        written += index + 1
    assert updates in (written, written - 1), "update_num is at most one behind"
    return True


def check(name: str, before: ShmMdReader | None, inode: int) -> None:
    there = complete(name)
    seen = before.since("A", 0) if before is not None else None
    if before is not None and seen is not None:
        assert seen.records["trade_id"].tolist() == list(
            range(max(0, seen.cursor - before.buffer_size + 1), seen.cursor)
        ), "an attached reader"
        assert there or before.closed, "a reader must learn that the object is gone"
    with ShmMdStore(name, KIND, SYMBOLS, SLOTS) as store:
        n = store.ring.lanes[0].next
        publish(store, n)
        assert complete(name), "the next writer's object"
        with ShmMdReader(name) as reader:
            assert reader.since("A", n).records["trade_id"].tolist() == [n], "the next record"
            assert reader.update_num == n + 1, "update_num after a start"
        if before is not None and seen is not None:
            same = (SHM / name).stat().st_ino == inode
            assert before.closed is not same, "closed or gone on with"
            if same:
                assert before.since("A", seen.cursor).records["trade_id"].tolist() == [n]
    debris = [entry for entry in os.listdir(SHM) if entry.startswith(f".k4-{name}.")]
    assert not debris, f"left behind: {debris}"


def main(scenario: str, name: str) -> None:
    prepare, action, opcodes = SCENARIOS[scenario]
    point = 0
    while True:
        point += 1
        prepare(name)
        before, inode = None, 0
        if prepare in (an_object, another_shape):
            before, inode = ShmMdReader(name), (SHM / name).stat().st_ino
        child = os.fork()
        if child == 0:
            run_child(action, name, point, opcodes)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, "the scenario itself failed"
        try:
            check(name, before, inode)
        except Exception as exc:
            raise AssertionError(f"{scenario} killed at step {point}: {exc}") from exc
        if before is not None:
            before.close()
        remove_store(name)
        if not os.WIFSIGNALED(status):
            print(json.dumps({"points": point - 1}))
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
