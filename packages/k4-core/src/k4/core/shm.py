"""Named stores in shared memory: one writer that outlives its restarts, readers that never disturb.

    store = ShmMdStore("binance_spot_bbo", Kind.BOOKTICKER, ["BTCUSDT"], 100_000)
    store.ring.lanes[0].publish(...)

    reader = ShmMdReader("binance_spot_bbo")
    reader.latest("BTCUSDT")

The bytes are in `layout.py`, what a ring does in `ring.py`, how the object comes under its name and
who may have it in `segment.py`. `posix_ipc` and `mmap` are used, and not
`multiprocessing.shared_memory`, whose resource tracker unlinks the object when a reader exits.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, NoReturn, Self

import msgspec

from k4.core import layout, segment
from k4.core.clock import Clock, SystemClock
from k4.core.enums import Kind
from k4.core.errors import (
    K4Error,
    StoreClosed,
    StoreError,
    StoreForeign,
    StoreMissing,
)
from k4.core.idle import waiter
from k4.core.records import Record
from k4.core.ring import Batch, LaneReader, RingReader, RingWriter
from k4.core.segment import Shape
from k4.core.trailer import Trailer

_TRIES = 100  # of opening or creating, while others create and remove the same name
_CHUNK = 256  # records that `follow` copies at a time
_LOOKS = {"spin": 1024, "yield": 256, "backoff": 32}  # empty looks between two of the slow checks


class ShmMdStore:
    """The writing end of a store, held by one process at a time.

    kind, symbols, buffer_size: what it stores; the records kept per symbol are buffer_size - 1.
    mode: permissions, the owner's read and write included. An object of the same shape is taken
    over as it is; a store of another shape, an object of the original layout (no trailer) and an
    empty one (whose maker died) are replaced, if they belong to this user and nobody locks them.

    Raises StoreBusy (another writer lives), StoreForeign (another owner, or no K4 store), StoreFull
    (no room), StoreError (arguments).

    ring: the lanes to publish through. attached: whether it goes on with a found object. epoch:
    writer starts on this object.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        symbols: Sequence[str],
        buffer_size: int,
        *,
        mode: int = 0o600,
        clock: Clock | None = None,
    ) -> None:
        self.name = segment.clean_name(name)
        segment.require_ordered_memory(self.name)
        self.kind = Kind(kind)
        self.symbols = tuple(symbols)
        self._clock = clock or SystemClock()
        shape = Shape(self.kind, self.symbols, buffer_size)
        _check(self.name, shape, mode)
        self._fd, self.attached = _acquire(self.name, shape, mode, self._clock)
        self._close_fd = weakref.finalize(self, os.close, self._fd)
        view = segment.map_writable(self._fd)
        self._trailer = Trailer(view[-layout.TRAILER_SIZE :])
        self.ring = RingWriter(view, self.kind)
        self.epoch = self._trailer.epoch
        if self.attached:
            self._trailer.writer_pid = os.getpid()
            self.epoch += 1
            self._trailer.epoch = self.epoch
        self.heartbeat()
        _stores.add(self)

    def heartbeat(self) -> None:
        """Say that the writer lives; call it at least once a second."""
        self._trailer.heartbeat_ns = self._clock.time_ns()

    def feed_ok(self, now_ns: int) -> None:
        """Say that at `now_ns` (wall clock) every stream of the store had a live line."""
        self._trailer.feed_ok_ns = now_ns

    def lines(self, up: int, configured: int) -> None:
        """Say how many lines feed the store, and how many should."""
        self._trailer.lines_up = up
        self._trailer.lines_configured = configured

    def close(self) -> None:
        """Stop writing: pid 0, locks given back, data left readable. More than once is no error.

        A lane used afterwards raises StoreClosed, for another process may hold the store by then.
        """
        if not self._close_fd.alive:
            return
        for lane in self.ring.lanes:
            lane.pack = self._refuse
        self._trailer.writer_pid = 0
        self._trailer.release()
        self.ring.words.release()
        self.ring.buffer.release()
        segment.unlock(self._fd)
        self._close_fd()

    def _refuse(self, *values: object) -> NoReturn:
        raise StoreClosed(self.name, "this writer was closed", remedy="make another")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# A forked child shares the locked descriptor and would keep the lock after its parent's death.
_stores: weakref.WeakSet[ShmMdStore] = weakref.WeakSet()


def _leave_stores_to_the_parent() -> None:
    for store in _stores:
        store._close_fd()


os.register_at_fork(after_in_child=_leave_stores_to_the_parent)


def _check(name: str, shape: Shape, mode: int) -> None:
    if not shape.symbols:
        raise StoreError(name, "no symbols", remedy="give at least one")
    seen: set[str] = set()
    for symbol in shape.symbols:
        layout.encode_symbol(symbol)
        if symbol in seen:
            raise StoreError(name, f"symbol {symbol!r} appears twice", remedy="name it once")
        seen.add(symbol)
    if not 2 <= shape.buffer_size < 1 << 32:
        raise StoreError(
            name,
            f"buffer_size {shape.buffer_size} is not within 2 to 2^32 - 1",
            remedy="see md_size",
        )
    if mode & ~0o777 or mode & 0o600 != 0o600:
        raise StoreError(
            name, f"mode {mode:#o} must let the owner read and write", remedy='such as "0600"'
        )


def _acquire(name: str, shape: Shape, mode: int, clock: Clock) -> tuple[int, bool]:
    """A locked descriptor of an object of that shape under that name, and whether it was found."""
    segment.sweep(name)
    for _ in range(_TRIES):
        fd = _find(name, shape)
        if fd is not None:
            os.fchmod(fd, mode)
            return fd, True
        fd = segment.build(name, shape, mode, clock.time_ns())
        if fd is not None:
            return fd, False
    raise StoreError(name, "other programs keep making and removing it")


def _find(name: str, shape: Shape) -> int | None:
    """Lock the object if it has the shape, take it away if it is ours to replace; None: make it."""
    try:
        fd = segment.open_object(name, write=True)
    except StoreMissing:
        return None
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise StoreForeign(
                name,
                f"it belongs to user {os.fstat(fd).st_uid}",
                remedy="run as that user, or choose another shm name or shm_prefix",
            )
        segment.lock(name, fd)
        if segment.names_it(name, fd):
            if segment.read_shape(fd) == shape and segment.state(fd) == layout.STATE_LIVE:
                return fd
            _take_away(name, fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _take_away(name: str, fd: int) -> None:
    """Close and unlink a locked object that K4 may replace. Raises StoreForeign for any other."""
    if segment.has_trailer(fd):
        segment.mark_closed(fd)
    elif os.fstat(fd).st_size and not any(segment.read_original_shape(fd, k) for k in Kind):
        raise StoreForeign(
            name,
            "it is not a K4 store",
            remedy=f"choose another name, or remove {segment.path_of(name)} if nothing needs it",
        )
    segment.unlink(name)


class _Mapping:
    """One opened object: its descriptor, its ring and its trailer."""

    def __init__(self, name: str, kind: Kind | None) -> None:
        fd = segment.open_object(name)
        self.close_fd = weakref.finalize(self, os.close, fd)
        shape = segment.read_shape(fd)
        if shape is None and kind is not None and not segment.has_trailer(fd):
            shape = segment.read_original_shape(fd, kind)
        if shape is None or kind not in (None, shape.kind):
            self.close_fd()
            raise StoreForeign(
                name,
                "it is not a K4 store" if shape is None else f"it holds {shape.kind.label} records",
                remedy="for an object of the original K4 name its kind"
                if kind is None
                else "open it without a kind",
            )
        self.fd = fd
        self.shape = shape
        view = segment.map_readable(fd)
        self.trailer = Trailer(view[-layout.TRAILER_SIZE :]) if shape.trailer else Trailer.absent()
        self.ring = RingReader(view, shape.kind)

    @property
    def closed(self) -> bool:
        return self.trailer.state == layout.STATE_CLOSED or os.fstat(self.fd).st_nlink == 0

    def release(self) -> None:
        self.trailer.release()
        self.ring.release()
        self.close_fd()


class ShmMdReader:
    """The reading end of a store. It maps read-only, takes no lock, and removes nothing.

    kind: only for an object of the original layout, which does not say it; its trailer properties
    are then 0. Raises StoreMissing, StoreForeign. Methods that take a symbol raise K4Error for one
    that the store does not have, and all raise StoreClosed after `close`.

    Not thread-safe in `follow`'s counters and `reopen`; several readers of one store are cheap.
    """

    def __init__(self, name: str, *, kind: Kind | None = None, clock: Clock | None = None) -> None:
        self.name = segment.clean_name(name)
        segment.require_ordered_memory(self.name)
        self._asked_kind = kind
        self._clock = clock or SystemClock()
        self._lost: dict[str, int] = {}
        self._open: _Mapping | None = _Mapping(self.name, kind)

    @property
    def _mapping(self) -> _Mapping:
        if self._open is None:
            raise StoreClosed(self.name, "this reader was closed", remedy="open another")
        return self._open

    @property
    def kind(self) -> Kind:
        return self._mapping.shape.kind

    @property
    def symbols(self) -> tuple[str, ...]:
        return self._mapping.shape.symbols

    @property
    def buffer_size(self) -> int:
        """Slots per symbol; one less is readable."""
        return self._mapping.shape.buffer_size

    # -- records

    def lane(self, symbol: str) -> LaneReader:
        """The ring of one symbol, for callers that read it over and over; `reopen` voids it."""
        return self._mapping.ring.lane(symbol)

    def latest(self, symbol: str) -> Record | None:
        """The newest record, None while there is none."""
        return self._mapping.ring.latest(symbol)

    def cursor(self, symbol: str) -> int:
        """The cursor for `since` and `follow` that reads only what comes from now on."""
        return self._mapping.ring.cursor(symbol)

    def generation(self, symbol: str) -> int:
        """Sequence resets of the symbol so far."""
        return self._mapping.ring.generation(symbol)

    def since(self, symbol: str, cursor: int, limit: int | None = None) -> Batch:
        """The records from `cursor` on (0: from the oldest there is), copied, oldest first.

        Batch(records, cursor, lost): a NumPy structured array, where to read on, and how many
        records were overwritten before this call could copy them. It works on a closed object too,
        whose data stay readable. Raises K4Error for a cursor ahead of the ring.
        """
        return self._mapping.ring.since(symbol, cursor, limit)

    def follow(
        self,
        symbol: str,
        idle: str = "backoff",
        *,
        start: Literal["latest", "oldest"] | int = "latest",
        timeout: float | None = None,
        on_lost: Callable[[int], object] | None = None,
    ) -> Iterator[Record]:
        """Every record, one after the other, waiting for the next.

        idle: "spin", "yield" or "backoff" (see `idle.py`). start: "latest" yields the newest record
        first, "oldest" all that are there; a cursor begins there. timeout: end after so many
        seconds without a record; None waits for ever.

        A consumer slower than the writer is lapped. What it missed is added to `lost(symbol)`, and
        on_lost(count) is called, before the first record after the gap is yielded.

        Raises StoreClosed, after the last record, when the writer replaced or removed the object
        (`reopen`, then follow again); K4Error for a bad symbol, idle or start.
        """
        mapping = self._mapping
        lane = mapping.ring.lane(symbol)
        wait, looks = waiter(idle), _LOOKS[idle]
        if isinstance(start, int):
            cursor = start
        elif start in ("latest", "oldest"):
            cursor = lane.oldest if start == "oldest" else max(0, lane.cursor - 1)
        else:
            raise K4Error(f"no start {start!r}", remedy='use "latest", "oldest" or a cursor')
        lane.since(cursor, 0)  # raises here, not at the first record, for a cursor out of range
        return self._follow(mapping, lane, cursor, wait, looks, timeout, on_lost)

    def _follow(
        self,
        mapping: _Mapping,
        lane: LaneReader,
        cursor: int,
        wait: Callable[[int], None],
        looks: int,
        timeout: float | None,
        on_lost: Callable[[int], object] | None,
    ) -> Iterator[Record]:
        rounds, since = 0, self._clock.monotonic()
        while self._open is mapping:
            if lane.cursor != cursor:
                records, cursor, lost = lane.read(cursor, _CHUNK)
                if lost:
                    self._lost[lane.symbol] = self._lost.get(lane.symbol, 0) + lost
                    if on_lost is not None:
                        on_lost(lost)
                yield from records
                rounds, since = 0, self._clock.monotonic()
                continue
            if rounds % looks == 0:
                if mapping.closed and lane.cursor == cursor:
                    raise StoreClosed(
                        self.name,
                        "its writer replaced or removed it",
                        remedy="reopen() and follow again",
                    )
                if timeout is not None and self._clock.monotonic() - since >= timeout:
                    return
            wait(rounds)
            rounds += 1
        raise StoreClosed(self.name, "this reader was closed or reopened", remedy="follow again")

    def lost(self, symbol: str) -> int:
        """Records of the symbol that `follow` was too slow for, in this reader's life."""
        self.lane(symbol)
        return self._lost.get(symbol, 0)

    # -- the store and its writer

    @property
    def update_num(self) -> int:
        """Records written since creation, all symbols."""
        return self._mapping.ring.update_num

    @property
    def state(self) -> int:
        """1 live, 2 closed; 0 for an object of the original layout."""
        return self._mapping.trailer.state

    @property
    def closed(self) -> bool:
        """Whether the object was replaced or removed; its data stay readable, nothing new comes."""
        return self._mapping.closed

    @property
    def writer_pid(self) -> int:
        """Pid of the last writer, 0 after an orderly stop; `writer_alive` says if it lives."""
        return self._mapping.trailer.writer_pid

    @property
    def epoch(self) -> int:
        """Writer starts on this object."""
        return self._mapping.trailer.epoch

    @property
    def heartbeat_ns(self) -> int:
        """Wall clock of the writer's last heartbeat, nanoseconds."""
        return self._mapping.trailer.heartbeat_ns

    @property
    def created_ns(self) -> int:
        """Wall clock of the object's creation, nanoseconds."""
        return self._mapping.trailer.created_ns

    @property
    def feed_ok_ns(self) -> int:
        """Wall clock when every stream of the store last had a live line: tells a quiet market
        from a dead feed.
        """
        return self._mapping.trailer.feed_ok_ns

    @property
    def lines_up(self) -> int:
        """Lines that feed the store now."""
        return self._mapping.trailer.lines_up

    @property
    def lines_configured(self) -> int:
        """Lines that should feed the store."""
        return self._mapping.trailer.lines_configured

    def writer_alive(self) -> bool:
        """Whether a writer holds the store, by its lock; takes no lock itself (a few µs)."""
        return segment.is_locked(self._mapping.fd)

    def reopen(self) -> None:
        """Open what has the name now; cursors of the old object mean nothing there.

        Raises StoreMissing or StoreForeign, and then keeps the old object.
        """
        old, self._open = self._mapping, _Mapping(self.name, self._asked_kind)
        old.release()

    def close(self) -> None:
        """Unmap. The store, its writer and batches already read are untouched."""
        if self._open is not None:
            self._open.release()
            self._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One store as `list_stores` found it. size: bytes. mode: permission bits. Times in ns."""

    name: str
    kind: Kind
    symbols: tuple[str, ...]
    buffer_size: int
    size: int
    uid: int
    mode: int
    update_num: int
    state: int
    writer_pid: int
    writer_alive: bool
    epoch: int
    created_ns: int
    heartbeat_ns: int
    feed_ok_ns: int
    lines_up: int
    lines_configured: int


def list_stores() -> list[StoreInfo]:
    """All stores that this user can read, by name; what is no K4 store is passed over."""
    found = []
    for name in sorted(os.listdir(segment.SHM_DIR)):
        if segment.is_temporary(name):
            continue
        try:
            with ShmMdReader(name) as reader:
                found.append(_info(reader))
        except StoreError:
            continue
    return found


def _info(reader: ShmMdReader) -> StoreInfo:
    status = os.fstat(reader._mapping.fd)
    return StoreInfo(
        name=reader.name,
        kind=reader.kind,
        symbols=reader.symbols,
        buffer_size=reader.buffer_size,
        size=status.st_size,
        uid=status.st_uid,
        mode=stat.S_IMODE(status.st_mode),
        update_num=reader.update_num,
        state=reader.state,
        writer_pid=reader.writer_pid,
        writer_alive=reader.writer_alive(),
        epoch=reader.epoch,
        created_ns=reader.created_ns,
        heartbeat_ns=reader.heartbeat_ns,
        feed_ok_ns=reader.feed_ok_ns,
        lines_up=reader.lines_up,
        lines_configured=reader.lines_configured,
    )


def remove_store(name: str) -> None:
    """Close a store (state 2) and take its name away; readers keep their mapping.

    Objects of the original layout and empty ones are removed too. Raises StoreMissing, StoreBusy (a
    writer lives), StoreForeign (another user's, unless root asks, or no K4 store).
    """
    bare = segment.clean_name(name)
    segment.sweep(bare)
    fd = segment.open_object(bare, write=True)
    try:
        owner = os.fstat(fd).st_uid
        if os.geteuid() not in (owner, 0):
            raise StoreForeign(bare, f"it belongs to user {owner}", remedy="ask that user")
        segment.lock(bare, fd)
        if segment.names_it(bare, fd):
            _take_away(bare, fd)
    finally:
        os.close(fd)
