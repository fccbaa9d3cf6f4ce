"""Promises: one live writer, restarts that readers do not notice, readers that disturb nothing."""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import resource
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from k4.core import layout, segment
from k4.core.enums import Kind
from k4.core.errors import (
    K4Error,
    StoreBusy,
    StoreClosed,
    StoreError,
    StoreForeign,
    StoreFull,
    StoreMissing,
)
from k4.core.idle import waiter
from k4.core.records import Bookticker, Record
from k4.core.shm import ShmMdReader, ShmMdStore, list_stores, remove_store

SHM = Path("/dev/shm")
B, T = Kind.BOOKTICKER, Kind.TRADE


class Stopped:
    """A clock that tells the time it was given and never moves by itself."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Stopped:
        raise AssertionError("a store sets no timer")

    def cancel(self) -> None:
        raise AssertionError("a store sets no timer")


@pytest.fixture
def name() -> Iterator[str]:
    name = f"k4test_shm_{os.getpid()}"
    yield name
    (SHM / name).unlink(missing_ok=True)
    left = [entry for entry in os.listdir(SHM) if name in entry]
    for entry in left:
        (SHM / entry).unlink()
    assert not left


def publish(store: ShmMdStore, symbol: str, *ids: int) -> None:
    lane = store.ring.lanes[store.symbols.index(symbol)]
    for n in ids:
        lane.publish(0, n, n, n, 1.0, 2.0, 3.0, 4.0, 5, 6, 7)


def ids(reader: ShmMdReader, symbol: str) -> list[int]:
    found: list[int] = reader.since(symbol, 0).records["update_id"].tolist()
    return found


def update_id(record: Record) -> int:
    assert isinstance(record, Bookticker)
    return record.update_id


def raw(name: str) -> bytes:
    return (SHM / name).read_bytes()


def original_layout(name: str, kind: Kind, symbol: str, slots: int) -> None:
    """An object as the original K4 makes it: no trailer."""
    blank = layout.HEADER.pack(0, 1, slots) + layout.INSTRUMENT.pack(symbol.encode(), -1, slots, 0)
    (SHM / name).write_bytes(blank + bytes(slots * layout.LAYOUTS[kind].size))


# -- creation


def test_a_new_store_is_the_contract_to_the_byte(name: str) -> None:
    with ShmMdStore(name, T, ["BTCUSDT", "币安人生USDT"], 3, clock=Stopped(12_345)) as store:
        assert (store.attached, store.epoch, store.name) == (False, 1, name)
        blocks = b"".join(
            symbol.encode().ljust(32, b"\0") + struct.pack("<qII", -1, 3, 0) + bytes(3 * 96)
            for symbol in store.symbols
        )
        trailer = struct.pack(
            "<8sIIIIQQQQHHI", b"K4SHM\0\0\1", 1, 96, os.getpid(), 1, 1, 12_345, 12_345, 0, 0, 0, 0
        )
        assert raw(name) == struct.pack("<QII", 0, 2, 3) + blocks + trailer


def test_a_published_record_is_where_the_contract_says(name: str) -> None:
    with ShmMdStore(name, T, ["A", "B"], 3) as store:
        for n in range(4):
            store.ring.lanes[1].publish(7, 10, 11, n, 1.5, 2.5, 1, 12)
        block = 16 + 48 + 3 * 96
        data = raw(name)
        assert struct.unpack_from("<Q", data, 0) == (4,)
        assert struct.unpack_from("<q", data, block + 32) == (3,)
        at = block + 48 + 3 % 3 * 96
        assert data[at : at + 96] == struct.pack(
            "<32sB7xQQQddB7xQ", b"B", 7, 10, 11, 3, 1.5, 2.5, 1, 12
        )


def test_the_slash_of_shm_open_is_optional(name: str) -> None:
    with ShmMdStore(f"/{name}", B, ["A"], 2) as store, ShmMdReader(f"/{name}") as reader:
        assert store.name == reader.name == name


@pytest.mark.parametrize(
    ("symbols", "size", "mode", "says"),
    [
        ([], 2, 0o600, "no symbols"),
        (["A", "B", "A"], 2, 0o600, "'A' appears twice"),
        (["A" * 33], 2, 0o600, "1 to 32 bytes"),
        ([""], 2, 0o600, "1 to 32 bytes"),
        (["A"], 1, 0o600, "buffer_size 1 "),
        (["A"], -5, 0o600, "buffer_size -5 "),
        (["A"], 1 << 32, 0o600, "buffer_size"),
        (["A"], 2, 0o444, "mode"),
        (["A"], 2, 0o10600, "mode"),
    ],
)
def test_bad_arguments(name: str, symbols: list[str], size: int, mode: int, says: str) -> None:
    with pytest.raises(K4Error, match=says):
        ShmMdStore(name, B, symbols, size, mode=mode)
    assert not (SHM / name).exists()


@pytest.mark.parametrize("bad", ["", "/", "a/b", "../x", ".hidden", "a\0b", "x" * 201])
def test_bad_names(bad: str) -> None:
    for attempt in (lambda: ShmMdStore(bad, B, ["A"], 2), lambda: ShmMdReader(bad)):
        with pytest.raises(StoreError, match="not a usable name"):
            attempt()


def test_a_processor_that_reorders_stores_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(StoreError, match="not ordered on aarch64"):
        ShmMdStore(name, B, ["A"], 2)
    with pytest.raises(StoreError, match="not ordered on aarch64"):
        ShmMdReader(name)


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_the_mode_does_not_depend_on_the_umask(name: str, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        for given in (mode, 0o644):  # at creation, and anew when a restart brings another
            with ShmMdStore(name, B, ["A"], 2, mode=given):
                assert (SHM / name).stat().st_mode & 0o7777 == given
    finally:
        os.umask(before)


# -- no room


def test_more_than_there_is_says_what_is_needed_and_free(name: str) -> None:
    disk = os.statvfs(SHM)
    slots = disk.f_blocks * disk.f_frsize // 288 + 1
    symbols = [f"S{k}" for k in range(slots // (2**32 - 1) + 1)]
    shape = segment.Shape(Kind.DEPTH5, tuple(symbols), slots // len(symbols) + 1)
    with pytest.raises(StoreFull, match=f"needs {shape.size:,} bytes .* are free") as caught:
        ShmMdStore(name, shape.kind, symbols, shape.buffer_size)
    assert "md_size" in caught.value.remedy
    assert not (SHM / name).exists()


def test_memory_is_refused_at_creation_and_not_at_first_use(name: str) -> None:
    """With RLIMIT_FSIZE the kernel refuses the allocation half-way, as a full tmpfs does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StoreFull, match=r"needs 112,\d+ bytes"):
            ShmMdStore(name, B, ["A"], 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with ShmMdStore(name, B, ["A"], 1000) as store:
        status = (SHM / name).stat()
        assert status.st_blocks * 512 >= status.st_size  # really there, not sparse
        assert not store.attached


# -- one writer


def test_a_second_writer_is_refused_with_the_first_ones_pid(name: str) -> None:
    with ShmMdStore(name, B, ["A"], 2) as store:
        publish(store, "A", 1)
        for shape in ((B, ["A"], 2), (T, ["B"], 9)):
            with pytest.raises(StoreBusy, match=f"process {os.getpid()} is writing") as caught:
                ShmMdStore(name, *shape)
            assert caught.value.pid == os.getpid()
        with ShmMdReader(name) as reader:
            assert (ids(reader, "A"), reader.state, reader.epoch) == ([1], 1, 1)


def test_a_lock_without_a_pid_is_a_live_writer_and_a_pid_without_a_lock_is_none(name: str) -> None:
    with ShmMdStore(name, B, ["A"], 2):
        pass
    with (SHM / name).open("r+b") as other, ShmMdReader(name) as reader:
        assert (reader.writer_pid, reader.writer_alive()) == (0, False)
        fcntl.flock(other, fcntl.LOCK_EX)  # a writer that knows the contract alone
        assert reader.writer_alive()
        with pytest.raises(StoreBusy):
            ShmMdStore(name, B, ["A"], 2)
        with pytest.raises(StoreBusy):
            remove_store(name)
        fcntl.flock(other, fcntl.LOCK_UN)
        other.seek(-layout.TRAILER_SIZE + layout.WRITER_PID, os.SEEK_END)
        other.write(struct.pack("<I", os.getpid()))
        other.flush()
        assert (reader.writer_pid, reader.writer_alive()) == (os.getpid(), False)
        with ShmMdStore(name, B, ["A"], 2) as store:
            assert store.attached


def test_asking_whether_the_writer_lives_takes_no_lock(name: str) -> None:
    with ShmMdStore(name, B, ["A"], 2):
        pass
    stop = threading.Event()

    def ask() -> None:
        with ShmMdReader(name) as reader:
            while not stop.is_set():
                reader.writer_alive()

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        fd = segment.open_object(name, write=True)
        refused = 0
        for _ in range(20_000):
            if segment.try_lock(fd):
                segment.unlock(fd)
            else:
                refused += 1
        os.close(fd)
    finally:
        stop.set()
        asker.join()
    assert refused == 0


def test_close_leaves_the_data_and_stops_the_lanes(name: str) -> None:
    store = ShmMdStore(name, B, ["A"], 4)
    publish(store, "A", 1, 2)
    store.close()
    store.close()
    with ShmMdReader(name) as reader:
        assert (reader.writer_pid, reader.writer_alive(), reader.state) == (0, False, 1)
        assert ids(reader, "A") == [1, 2]
    with pytest.raises(StoreClosed, match="this writer was closed"):
        publish(store, "A", 3)


# -- restart


def test_a_writer_of_the_same_shape_goes_on_under_its_readers(name: str) -> None:
    with ShmMdStore(name, B, ["A", "B"], 4, clock=Stopped(100)) as store:
        publish(store, "A", 1, 2)
        publish(store, "B", 7)
        assert store.ring.lanes[0].open_generation() == 1
    with (SHM / name).open("r+b") as file:  # as after a death between index and update_num
        file.write(struct.pack("<Q", 2))
    inode = (SHM / name).stat().st_ino
    reader = ShmMdReader(name)
    _, cursor, _ = reader.since("A", 0)
    with ShmMdStore(name, B, ["A", "B"], 4, clock=Stopped(200)) as store:
        assert (store.attached, store.epoch) == (True, 2)
        assert (SHM / name).stat().st_ino == inode
        assert (reader.created_ns, reader.heartbeat_ns, reader.epoch) == (100, 200, 2)
        assert (reader.update_num, reader.generation("A"), reader.closed) == (3, 1, False)
        publish(store, "A", 3)
        assert reader.since("A", cursor).records["update_id"].tolist() == [3]
        assert reader.since("A", cursor).lost == 0
    reader.close()


@pytest.mark.parametrize(
    ("kind", "symbols", "size"),
    [(Kind.AGGTRADE, ["A", "B"], 4), (B, ["B", "A"], 4), (B, ["A"], 4), (B, ["A", "B"], 5)],
    ids=["kind of the same size", "order", "fewer", "slots"],
)
def test_another_shape_makes_a_new_object(
    name: str, kind: Kind, symbols: list[str], size: int
) -> None:
    with ShmMdStore(name, B, ["A", "B"], 4) as store:
        publish(store, "A", 1)
    reader = ShmMdReader(name)
    with ShmMdStore(name, kind, symbols, size) as store:
        assert (store.attached, store.epoch) == (False, 1)
        assert reader.closed
        assert reader.state == 2
        assert ids(reader, "A") == [1]  # still readable
        follower = reader.follow("A")
        assert update_id(next(follower)) == 1
        with pytest.raises(StoreClosed, match="reopen"):
            next(follower)
        reader.reopen()
        assert (reader.kind, reader.symbols, reader.buffer_size) == (kind, tuple(symbols), size)
        assert (reader.closed, reader.update_num) == (False, 0)
    reader.close()


def test_a_closed_object_that_kept_its_name_is_replaced(name: str) -> None:
    """What a death between `state 2` and unlink leaves."""
    with ShmMdStore(name, B, ["A"], 4):
        pass
    fd = segment.open_object(name, write=True)
    segment.mark_closed(fd)
    os.close(fd)
    with ShmMdStore(name, B, ["A"], 4) as store, ShmMdReader(name) as reader:
        assert not store.attached
        assert reader.state == 1


def test_debris_of_a_killed_creator_is_swept_and_a_live_one_is_not(name: str) -> None:
    dead, live = (SHM / f".k4-{name}.{k}.0123abcd" for k in (1, 2))
    dead.write_bytes(b"half")
    live.write_bytes(b"half")
    longer = SHM / f".k4-{name}.b.1.0123abcd"  # of a store called NAME.b
    longer.write_bytes(b"half")
    with live.open("r+b") as creator:
        fcntl.flock(creator, fcntl.LOCK_EX)
        with ShmMdStore(name, B, ["A"], 4):
            assert not dead.exists()
            assert live.exists()
            assert longer.exists()
    live.unlink()
    longer.unlink()


def create_together(name: str, count: int) -> list[ShmMdStore | StoreBusy]:
    start = threading.Barrier(count)
    ends: list[ShmMdStore | StoreBusy] = []

    def create() -> None:
        start.wait()
        try:
            ends.append(ShmMdStore(name, B, ["A"], 4))
        except StoreBusy as exc:
            ends.append(exc)

    threads = [threading.Thread(target=create) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_creators_race_and_one_wins(name: str) -> None:
    for _ in range(10):
        ends = create_together(name, 4)
        (store,) = [end for end in ends if isinstance(end, ShmMdStore)]
        assert [end.pid for end in ends if isinstance(end, StoreBusy)] == [os.getpid()] * 3
        store.close()
        remove_store(name)


# -- what is not ours


def test_another_users_object_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShmMdStore(name, B, ["A"], 4, mode=0o666):
        pass
    before = raw(name)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(StoreForeign, match=f"belongs to user {os.getuid()}"):
        ShmMdStore(name, B, ["A"], 4)
    with pytest.raises(StoreForeign, match="belongs to user"):
        remove_store(name)
    assert raw(name) == before


def test_garbage_is_left_alone(name: str) -> None:
    for data in (b"x", bytes(10_000), b"\xff" * 4096, layout.HEADER.pack(0, 1, 4) + bytes(999)):
        (SHM / name).write_bytes(data)
        with pytest.raises(StoreForeign, match="not a K4 store") as caught:
            ShmMdStore(name, B, ["A"], 4)
        assert f"/dev/shm/{name}" in caught.value.remedy
        with pytest.raises(StoreForeign, match="not a K4 store"):
            ShmMdReader(name)
        with pytest.raises(StoreForeign, match="not a K4 store"):
            remove_store(name)
        assert raw(name) == data
        assert name not in [info.name for info in list_stores()]


@pytest.mark.parametrize("what", ["cut", "grown", "kind", "record size", "count", "slots"])
def test_a_store_whose_figures_disagree_is_no_store(name: str, what: str) -> None:
    with ShmMdStore(name, B, ["A", "B"], 4):
        pass
    data = bytearray(raw(name))
    end = len(data) - layout.TRAILER_SIZE
    if what == "cut":
        del data[500:612]
    elif what == "grown":
        data[500:500] = bytes(8)
    else:
        at = {
            "kind": end + layout.RECORD_KIND,
            "record size": end + layout.RECORD_SIZE,
            "count": layout.INSTRUMENT_COUNT,
            "slots": layout.HEADER_SIZE + layout.BUFFER_LEN,
        }[what]
        data[at] = 77
    (SHM / name).write_bytes(data)
    with pytest.raises(StoreForeign):
        ShmMdReader(name)
    with ShmMdStore(name, B, ["A", "B"], 4) as store:  # it carries our mark, so it is replaced
        assert not store.attached


def test_the_original_layout_is_read_with_a_kind_and_replaced_by_a_writer(name: str) -> None:
    original_layout(name, B, "A", 4)
    with pytest.raises(StoreForeign, match="name its kind"):
        ShmMdReader(name)
    with pytest.raises(StoreForeign, match="not a K4 store"):
        ShmMdReader(name, kind=T)
    with ShmMdReader(name, kind=B) as reader:
        assert (reader.symbols, reader.latest("A"), reader.closed) == (("A",), None, False)
        assert (reader.epoch, reader.state, reader.lines_up) == (0, 0, 0)
        assert not reader.writer_alive()
        with ShmMdStore(name, B, ["A"], 4) as store:
            assert not store.attached
            assert reader.closed
    with pytest.raises(StoreForeign, match="holds bbo records"):
        ShmMdReader(name, kind=T)
    with ShmMdReader(name, kind=B) as reader:
        assert reader.epoch == 1


def test_an_empty_object_is_replaced(name: str) -> None:
    (SHM / name).touch()
    with ShmMdStore(name, B, ["A"], 4) as store:
        assert not store.attached


def test_what_is_not_there_is_missing(name: str) -> None:
    with pytest.raises(StoreMissing, match="no such object"):
        ShmMdReader(name)
    with pytest.raises(StoreMissing):
        remove_store(name)


# -- readers


def test_the_trailer_tells_of_the_writer(name: str) -> None:
    clock = Stopped(1_000)
    with ShmMdStore(name, B, ["A"], 4, clock=clock) as store, ShmMdReader(name) as reader:
        assert (reader.lines_up, reader.lines_configured, reader.feed_ok_ns) == (0, 0, 0)
        clock.now_ns = 2**62
        store.heartbeat()
        store.feed_ok(1_700_000_000_000_000_001)
        store.lines(3, 70_000)
        assert (reader.heartbeat_ns, reader.created_ns) == (2**62, 1_000)
        assert reader.feed_ok_ns == 1_700_000_000_000_000_001
        assert (reader.lines_up, reader.lines_configured) == (3, 65_535)
        assert (reader.writer_pid, reader.state, reader.writer_alive()) == (os.getpid(), 1, True)


def test_follow_yields_all_and_ends_at_its_timeout(name: str) -> None:
    with ShmMdStore(name, B, ["A"], 8) as store, ShmMdReader(name) as reader:
        publish(store, "A", 0, 1, 2)

        def seen(start: int | str) -> list[int]:
            records = reader.follow("A", start=start, timeout=0)  # type: ignore[arg-type]
            return [update_id(record) for record in records]

        assert seen("latest") == [2]
        assert seen("oldest") == [0, 1, 2]
        assert seen(1) == [1, 2]
        assert seen(reader.cursor("A")) == []
        for bad in ("newest", 4, -1):
            with pytest.raises(K4Error):
                seen(bad)
        with pytest.raises(K4Error, match="no idle strategy 'busy'"):
            reader.follow("A", "busy")
        with pytest.raises(K4Error, match="no instrument 'C'"):
            reader.follow("C")


@pytest.mark.parametrize("idle", ["spin", "yield", "backoff"])
def test_follow_waits_for_the_next(name: str, idle: str) -> None:
    with ShmMdStore(name, B, ["A"], 64) as store, ShmMdReader(name) as reader:
        go = threading.Semaphore(0)

        def write() -> None:
            for n in range(50):
                go.acquire()
                publish(store, "A", n)

        writer = threading.Thread(target=write)
        writer.start()
        follower = reader.follow("A", idle)
        for n in range(50):
            go.release()
            assert update_id(next(follower)) == n
        writer.join()


def test_follow_announces_exactly_what_it_lost(name: str) -> None:
    with ShmMdStore(name, B, ["A"], 8) as store, ShmMdReader(name) as reader:
        publish(store, "A", 0)
        said: list[tuple[int, int]] = []
        seen: list[int] = []
        follower = reader.follow(
            "A", start="oldest", timeout=0, on_lost=lambda count: said.append((len(seen), count))
        )
        seen.append(update_id(next(follower)))
        publish(store, "A", *range(1, 30))
        seen += [update_id(record) for record in follower]
        assert seen == [0, *range(23, 30)]
        assert said == [(1, 22)]  # after the first record, before the next
        assert reader.lost("A") == 22


def test_follow_ends_when_the_object_is_removed_even_without_a_word(name: str) -> None:
    with ShmMdStore(name, B, ["A"], 8) as store, ShmMdReader(name) as reader:
        publish(store, "A", 1)
        follower = reader.follow("A", "spin")
        next(follower)
        (SHM / name).unlink()  # rm, not `shm rm`
        with pytest.raises(StoreClosed):
            next(follower)
        with pytest.raises(StoreMissing):
            reader.reopen()
        assert ids(reader, "A") == [1]  # a failed reopen keeps the old object


def test_a_reader_that_was_closed_says_so_and_its_batches_live_on(name: str) -> None:
    with ShmMdStore(name, B, ["A"], 8) as store:
        publish(store, "A", 1, 2)
        reader = ShmMdReader(name)
        records = reader.since("A", 0).records
        follower = reader.follow("A")
        next(follower)
        reader.close()
        reader.close()
        publish(store, "A", *range(3, 30))
        assert records["update_id"].tolist() == [1, 2]
        for attempt in (lambda: reader.latest("A"), lambda: reader.epoch, lambda: next(follower)):
            with pytest.raises(StoreClosed):
                attempt()


def test_a_readers_mapping_cannot_write(name: str) -> None:
    with ShmMdStore(name, B, ["A"], 8):
        fd = segment.open_object(name)
        view = segment.map_readable(fd)
        assert view.readonly
        assert isinstance(view.obj, mmap.mmap)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        view.release()
        os.close(fd)


def test_sleeping_readers_back_off() -> None:
    slept: list[float] = []
    wait = waiter("backoff", slept.append)
    for rounds in range(420):
        wait(rounds)
    assert slept[:7] == [50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1e-3, 1e-3]
    assert len(slept) == 20


# -- the operator


def test_list_and_remove(name: str) -> None:
    with ShmMdStore(name, B, ["A", "B"], 4, mode=0o640) as store:
        publish(store, "A", 1, 2)
        store.lines(2, 3)
        (info,) = [info for info in list_stores() if info.name == name]
        assert (info.kind, info.symbols, info.buffer_size) == (B, ("A", "B"), 4)
        assert (info.size, info.uid, info.mode) == (len(raw(name)), os.geteuid(), 0o640)
        assert (info.update_num, info.state, info.epoch) == (2, 1, 1)
        assert (info.writer_pid, info.writer_alive) == (os.getpid(), True)
        assert (info.lines_up, info.lines_configured) == (2, 3)
        with pytest.raises(StoreBusy, match=f"process {os.getpid()}"):
            remove_store(name)
        assert (SHM / name).exists()
    with ShmMdReader(name) as reader:
        remove_store(name)
        assert not (SHM / name).exists()
        assert (reader.state, reader.closed) == (2, True)
        assert ids(reader, "A") == [1, 2]
    assert name not in [info.name for info in list_stores()]
