"""Counters: a reader sees whole rows, of live writers and of dead ones, and space is used again."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.clock import SystemClock
from k4.core.counter_table import Extents, table_size
from k4.core.counters import (
    CounterRow,
    CountersReader,
    CountersView,
    CountersWriter,
    MemoryCounters,
    Row,
    list_counters,
)
from k4.core.errors import K4Error, StoreBusy, StoreFull, StoreMissing

WRITER = """
import sys
from k4.core.counters import CountersWriter
counters = CountersWriter(sys.argv[1])
row = counters.row("line", {"id": "1"}, [f"f{i}" for i in range(12)])
print("ready", flush=True)
n = 0
while True:
    n += 1
    row.write([n] * 12)
    if n % 7 == 0:
        counters.row("passing", {"n": str(n)}, ["a", "b"]).release()
    counters.heartbeat()
"""

READER = """
import sys
from k4.core.counters import CountersReader
with CountersReader(sys.argv[1]) as reader:
    seen = set()
    for _ in range(5000):
        for row in reader.rows():
            if row.type == "line":
                values = set(row.values.values())
                assert len(values) == 1, row
                seen |= values
            else:
                assert row.type == "passing", row
                assert row.values == {"a": 0, "b": 0}, row
    print(len(seen), reader.alive(), flush=True)
"""


class StillClock(SystemClock):
    """Wall time that a test sets."""

    now = 1_000

    def time_ns(self) -> int:
        return self.now


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{os.getpid()}"
    yield name
    for path in Path("/dev/shm").glob(f"k4c.{name}*"):
        path.unlink()


def start_writer(name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, name], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# -- the table ------------------------------------------------------------------------------------


def test_row_reads_back_with_type_labels_and_values() -> None:
    counters = MemoryCounters(clock=StillClock())
    row = counters.row("stream", {"id": "binance.spot.json", "größe": "≥"}, ["published", "lost"])
    row.write([12, -1])
    assert counters.rows() == [
        CounterRow(
            "stream",
            {"id": "binance.spot.json", "größe": "≥"},
            {"published": 12, "lost": -1},
            1,
        )
    ]
    row.set(1, 5)
    assert counters.rows()[0].values == {"published": 12, "lost": 5}


def test_values_that_do_not_fit_become_the_nearest() -> None:
    counters = MemoryCounters(clock=StillClock())
    row = counters.row("x", {}, ["a", "b", "c", "d", "e"])
    row.write([1 << 64, -(1 << 64), 2.9, math.inf, math.nan])
    top = (1 << 63) - 1
    assert list(counters.rows()[0].values.values()) == [top, -top - 1, 2, top, 0]


def test_wrong_number_of_values_is_refused() -> None:
    row = MemoryCounters(clock=StillClock()).row("x", {}, ["a", "b"])
    with pytest.raises(K4Error, match="2 fields, not 1"):
        row.write([1])
    with pytest.raises(K4Error, match="no number 2"):
        row.set(2, 1)


@pytest.mark.parametrize("fields", [[], ["a", "a"]])
def test_fields_are_named_once(fields: list[str]) -> None:
    with pytest.raises(K4Error, match="field names"):
        MemoryCounters(clock=StillClock()).row("x", {}, fields)


def test_released_row_is_gone_and_cannot_be_written() -> None:
    counters = MemoryCounters(clock=StillClock())
    row = counters.row("x", {}, ["a"])
    row.release()
    row.release()
    assert counters.rows() == []
    with pytest.raises(K4Error, match="released"):
        row.write([1])
    with pytest.raises(K4Error, match="released"):
        row.set(0, 1)


def test_space_is_used_again_for_ever() -> None:
    counters = MemoryCounters(rows=4, words=64, clock=StillClock())
    keep = counters.row("keep", {}, ["a"])
    keep.write([77])
    for i in range(5_000):
        rows = [counters.row("line", {"i": str(i)}, ["a"] * 1 + [f"b{j}"]) for j in range(2)]
        rows[i % 2].write([i, i])
        rows[i % 2].release()
        rows[1 - i % 2].release()
    assert [row.values for row in counters.rows()] == [{"a": 77}]


def test_full_table_says_what_to_do() -> None:
    counters = MemoryCounters(rows=2, words=1000, clock=StillClock())
    first = counters.row("x", {"n": "1"}, ["a"])
    counters.row("x", {"n": "2"}, ["a"])
    with pytest.raises(K4Error, match=r"full \(2 of 2 rows in use\).*release rows"):
        counters.row("x", {"n": "3"}, ["a"])
    first.release()
    counters.row("x", {"n": "3"}, ["a"])
    assert [row.labels["n"] for row in counters.rows()] == ["2", "3"]


def test_full_heap_says_what_to_do_and_loses_no_row() -> None:
    counters = MemoryCounters(rows=3, words=20, clock=StillClock())
    with pytest.raises(K4Error, match="full"):
        counters.row("x", {}, [f"field{i}" for i in range(20)])
    for _ in range(3):
        counters.row("x", {}, ["a"])
    assert len(counters.rows()) == 3


def test_heartbeat_is_the_clocks() -> None:
    clock = StillClock()
    counters = MemoryCounters(clock=clock)
    view = CountersView(counters._buffer)
    assert view.heartbeat_ns == view.started_ns == 1_000
    clock.now = 2_000
    counters.heartbeat()
    assert (view.heartbeat_ns, view.started_ns) == (2_000, 1_000)


def test_half_written_row_of_a_dead_writer_is_left_out() -> None:
    counters = MemoryCounters(clock=StillClock())
    counters.row("whole", {}, ["a"])
    counters.row("half", {}, ["a"])
    slot_of_half = 1
    counters._words[8 + slot_of_half * 4] += 1
    assert [row.type for row in counters.rows()] == ["whole"]


def test_closed_table_takes_no_rows() -> None:
    counters = MemoryCounters(clock=StillClock())
    row = counters.row("x", {}, ["a"])
    counters.close()
    counters.close()
    row.release()
    with pytest.raises(K4Error, match="closed"):
        row.write([1])
    with pytest.raises(K4Error, match="closed"):
        counters.row("x", {}, ["a"])
    assert CountersView(counters._buffer).closed


@given(st.binary(max_size=400))
def test_foreign_bytes_are_refused_or_read_without_harm(data: bytes) -> None:
    with pytest.raises(K4Error):
        CountersView(memoryview(data))
    table = bytearray(table_size(2, 40))
    good = MemoryCounters(rows=2, words=40, clock=StillClock())
    good.row("x", {}, ["a"])
    table[:] = good._buffer
    table[64 : 64 + len(data)] = data[: len(table) - 64]
    for row in CountersView(memoryview(table)).rows():
        assert isinstance(row, CounterRow)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=80))
def test_extents_never_overlap_and_merge_when_given_back(steps: list[tuple[bool, int]]) -> None:
    extents = Extents(32)
    taken: list[tuple[int, int]] = []
    for take, n in steps:
        if take or not taken:
            start = extents.take(n)
            if start is not None:
                taken.append((start, n))
        else:
            extents.give(*taken.pop(n % len(taken)))
        words = [w for start, length in taken + extents.free for w in range(start, start + length)]
        assert sorted(words) == list(range(32))
        runs = extents.free
        assert all(a + length < b for (a, length), (b, _) in itertools.pairwise(runs))


@given(
    st.lists(
        st.tuples(st.sampled_from(["make", "write", "drop"]), st.integers(0, 9), st.integers()),
        max_size=60,
    )
)
def test_table_shows_what_a_plain_dict_would(steps: list[tuple[str, int, int]]) -> None:
    counters = MemoryCounters(rows=6, words=200, clock=StillClock())
    rows: dict[int, Row] = {}
    model: dict[int, int] = {}
    top = (1 << 63) - 1
    for what, n, value in steps:
        if what == "make" and n not in rows and len(rows) < 6:
            rows[n] = counters.row("x", {"n": str(n)}, ["a"])
            model[n] = 0
        elif what == "write" and n in rows:
            rows[n].write([value])
            model[n] = max(-top - 1, min(top, value))
        elif what == "drop" and n in rows:
            rows.pop(n).release()
            del model[n]
    assert {int(row.labels["n"]): row.values["a"] for row in counters.rows()} == model


# -- the named object -----------------------------------------------------------------------------


def test_writer_and_reader_meet_by_name(name: str) -> None:
    writer = CountersWriter(name)
    writer.row("x", {"k": "v"}, ["a"]).write([3])
    with CountersReader(name) as reader:
        assert reader.pid == os.getpid()
        assert reader.alive()
        assert [row.values for row in reader.rows()] == [{"a": 3}]
        assert list_counters(name) == [name]
        writer.close()
        assert reader.closed
        assert not reader.alive()
        assert [row.values for row in reader.rows()] == [{"a": 3}]
    assert list_counters(name) == []
    with pytest.raises(StoreMissing):
        CountersReader(name)


def test_object_is_private(name: str) -> None:
    writer = CountersWriter(name)
    assert writer.path.stat().st_mode & 0o777 == 0o600
    writer.close()


def test_closing_may_leave_the_values_readable(name: str) -> None:
    writer = CountersWriter(name)
    writer.row("x", {}, ["a"]).write([9])
    writer.close(unlink=False)
    with CountersReader(name) as reader:
        assert reader.closed
        assert not reader.alive()
        assert reader.rows()[0].values == {"a": 9}


def test_second_live_writer_is_refused_with_the_firsts_pid(name: str) -> None:
    first = CountersWriter(name)
    with pytest.raises(StoreBusy, match=f"process {os.getpid()} "):
        CountersWriter(name)
    first.row("x", {}, ["a"]).write([1])
    first.close()
    assert not list(Path("/dev/shm").glob(f"k4c.{name}*"))


@pytest.mark.parametrize("bad", ["", "a/b", "..\0", "x" * 181, "a.new", "ü"])
def test_unusable_names_are_refused(bad: str) -> None:
    with pytest.raises(K4Error, match="cannot name counters"):
        CountersWriter(bad)


def test_object_of_something_else_is_refused(name: str) -> None:
    path = Path(f"/dev/shm/k4c.{name}")
    for content in (b"", b"short", b"x" * 10_000):
        path.write_bytes(content)
        with pytest.raises(K4Error, match="no K4 counters"):
            CountersReader(name)


def test_no_room_is_a_clear_error_and_leaves_nothing(name: str) -> None:
    whole = os.statvfs("/dev/shm")
    assert whole.f_blocks, "a /dev/shm without a limit cannot be full"
    with pytest.raises(StoreFull, match="no room"):
        CountersWriter(name, words=whole.f_blocks * whole.f_frsize // 8 + 1)
    assert not list(Path("/dev/shm").glob(f"k4c.{name}*"))


def test_reader_in_another_process_never_sees_a_torn_row(name: str) -> None:
    writer = start_writer(name)
    try:
        reader = subprocess.run(
            [sys.executable, "-c", READER, name], capture_output=True, text=True, check=False
        )
        assert reader.returncode == 0, reader.stderr
        seen, alive = reader.stdout.split()
        assert int(seen) > 100, "the writer was not writing meanwhile: nothing was tested"
        assert alive == "True"
    finally:
        kill(writer)


def test_killed_writer_is_dead_and_its_object_is_replaced(name: str) -> None:
    process = start_writer(name)
    with CountersReader(name) as old:
        assert old.alive()
        kill(process)
        assert not old.alive()
        assert old.pid == process.pid
        assert not old.closed

        writer = CountersWriter(name)
        writer.row("fresh", {}, ["a"])
        assert old.closed, "a reader of the dead one's object must learn to open the name again"
        with CountersReader(name) as new:
            assert new.alive()
            assert [row.type for row in new.rows()] == ["fresh"]
        writer.close()
    assert not list(Path("/dev/shm").glob(f"k4c.{name}*"))


def test_leftover_of_a_writer_killed_while_starting_is_swept(name: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for pid in (process.pid, os.getpid()):  # in a container a successor often has the same pid
        leftover = Path(f"/dev/shm/k4c.{name}.{pid}.new")
        leftover.write_bytes(b"")
        CountersWriter(name).close()
        assert not leftover.exists()


def test_readers_that_ask_for_life_do_not_keep_a_successor_out(name: str) -> None:
    CountersWriter(name).close(unlink=False)
    asking = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from k4.core.counters import CountersReader\n"
            "r = CountersReader(sys.argv[1]); print('ready', flush=True)\n"
            "while True: r.alive()",
            name,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "ready\n"
        for _ in range(200):
            CountersWriter(name).close(unlink=False)
    finally:
        kill(asking)
