"""The named object that holds a store: made, found, identified, locked and taken away.

An object appears under its name only complete. It is built under a temporary name
(`.k4-NAME.PID.TOKEN`), locked, filled and then linked into place; link(2) fails where the name
exists, so of two creators one wins and the other attaches. What a killed creator leaves is a
temporary that nobody locks; the next writer of the name removes it.

A live writer is proved by its lock, never by its pid. flock(2) is the lock that decides. It cannot
be asked about without taking it, which could make a starting writer fail; so a writer also holds an
open-file-description lock over the object, and `is_locked` asks for that one (F_OFD_GETLK), then
looks into /proc/locks for writers that hold the flock alone.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import platform
import re
import secrets
import struct
import time

import msgspec
import posix_ipc

from k4.core import layout
from k4.core.enums import Kind
from k4.core.errors import StoreBusy, StoreError, StoreForeign, StoreFull, StoreMissing
from k4.core.ring import format_segment
from k4.core.trailer import Trailer

SHM_DIR = "/dev/shm"
_LONGEST_NAME = 200  # of NAME_MAX 255: the temporary name needs the rest
_TEMPORARY = re.compile(r"\.k4-(?P<name>.+)\.\d+\.[0-9a-f]{8}")
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_LOCK_TRIES, _LOCK_PAUSE = 20, 0.005
_ORDERED = ("x86_64", "AMD64")


class Shape(msgspec.Struct, frozen=True):
    """What must be equal for a writer to go on with a found object. `trailer` False: an object of
    the original layout, which says nothing about its kind.
    """

    kind: Kind
    symbols: tuple[str, ...]
    buffer_size: int
    trailer: bool = True

    @property
    def size(self) -> int:
        """Bytes of the object."""
        size = layout.segment_size(self.kind, len(self.symbols), self.buffer_size)
        return size if self.trailer else size - layout.TRAILER_SIZE


def require_ordered_memory(name: str) -> None:
    """Raise StoreError on a processor that reorders stores or loads.

    The index must not become visible before the record, nor be loaded after it. x86-64 keeps both
    orders for ordinary memory. ARM and POWER need a release store and an acquire load, and
    CPython offers neither: K4 refuses there rather than print a torn price.
    """
    if platform.machine() not in _ORDERED:
        raise StoreError(
            name,
            f"shared memory is not ordered on {platform.machine()}",
            remedy="run on x86-64, or use k4.md.connect within one process",
        )


def clean_name(name: str) -> str:
    """The store's name without the leading slash of shm_open. Raises StoreError if unusable."""
    bare = name.removeprefix("/")
    if (
        not 0 < len(bare.encode()) <= _LONGEST_NAME
        or "/" in bare
        or "\0" in bare
        or bare.startswith(".")
    ):
        raise StoreError(
            name,
            "not a usable name",
            remedy=f"1 to {_LONGEST_NAME} bytes without '/', not starting with '.'",
        )
    return bare


def path_of(name: str) -> str:
    """Where the object is in the file system."""
    return f"{SHM_DIR}/{name}"


def is_temporary(name: str) -> bool:
    """Whether the name is that of an object under construction."""
    return _TEMPORARY.fullmatch(name) is not None


def open_object(name: str, *, write: bool = False) -> int:
    """A descriptor of the object. Raises StoreMissing, StoreForeign."""
    try:
        return int(posix_ipc.SharedMemory(f"/{name}", read_only=not write).fd)
    except posix_ipc.ExistentialError:
        raise StoreMissing(
            name, "there is no such object", remedy="start its writer, or look at `shm list`"
        ) from None
    except posix_ipc.PermissionsError:
        raise StoreForeign(
            name,
            "its owner does not let this user open it",
            remedy="set shm_mode in its writer's configuration, or run as its owner",
        ) from None
    except OSError as exc:
        raise StoreForeign(name, f"cannot be opened: {exc.strerror}") from exc


def names_it(name: str, fd: int) -> bool:
    """Whether the open object is still the one that the name leads to."""
    try:
        found = os.stat(path_of(name), follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(fd))


def unlink(name: str) -> None:
    """Take the name away, if it is there; mappings of the object live on."""
    try:
        posix_ipc.unlink_shared_memory(f"/{name}")
    except posix_ipc.ExistentialError:
        return


# Identification reads with pread(2): a foreign object may shrink at any time, and touching a
# mapping beyond its end would kill the process with SIGBUS.


def read_shape(fd: int) -> Shape | None:
    """The shape of a complete K4 store; None for anything else, whatever its bytes."""
    size = os.fstat(fd).st_size
    if not has_trailer(fd):
        return None
    _, kind, record_size, *_ = layout.TRAILER.unpack(
        os.pread(fd, layout.TRAILER_SIZE, size - layout.TRAILER_SIZE)
    )
    if kind not in layout.LAYOUTS or record_size != layout.LAYOUTS[Kind(kind)].size:
        return None
    return _read_instruments(fd, Kind(kind), size - layout.TRAILER_SIZE, trailer=True)


def read_original_shape(fd: int, kind: Kind) -> Shape | None:
    """The shape of an object of the original layout, taken to hold records of `kind`."""
    return _read_instruments(fd, kind, os.fstat(fd).st_size, trailer=False)


def has_trailer(fd: int) -> bool:
    """Whether the object ends in a K4 trailer, of whatever version and shape."""
    size = os.fstat(fd).st_size
    if size < layout.HEADER_SIZE + layout.TRAILER_SIZE:
        return False
    at = size - layout.TRAILER_SIZE + layout.MAGIC
    return os.pread(fd, len(layout.MAGIC_BYTES), at) == layout.MAGIC_BYTES


def _read_instruments(fd: int, kind: Kind, end: int, *, trailer: bool) -> Shape | None:
    """The shape, if header and instrument blocks agree with each other and fill `end` bytes."""
    header = os.pread(fd, layout.HEADER_SIZE, 0)
    if len(header) < layout.HEADER_SIZE:
        return None
    _, count, buffer_size = layout.HEADER.unpack(header)
    span = layout.instrument_size(kind, buffer_size)
    if not count or not buffer_size or layout.HEADER_SIZE + count * span != end:
        return None
    symbols = []
    for i in range(count):
        block = os.pread(fd, layout.INSTRUMENT_SIZE, layout.HEADER_SIZE + i * span)
        if len(block) < layout.INSTRUMENT_SIZE:
            return None
        raw, _, buffer_len, _ = layout.INSTRUMENT.unpack(block)
        if buffer_len != buffer_size:
            return None
        symbols.append(layout.decode_symbol(raw))
    return Shape(kind, tuple(symbols), buffer_size, trailer)


def state(fd: int) -> int:
    """The state word of a store."""
    return _read_dword(fd, layout.STATE)


def writer_pid(fd: int) -> int:
    """The pid in a store's trailer, 0 where there is no trailer."""
    return _read_dword(fd, layout.WRITER_PID) if has_trailer(fd) else 0


def _read_dword(fd: int, offset: int) -> int:
    raw = os.pread(fd, 4, os.fstat(fd).st_size - layout.TRAILER_SIZE + offset)
    return int.from_bytes(raw, "little")


def mark_closed(fd: int) -> None:
    """Tell readers that the object has no future."""
    at = os.fstat(fd).st_size - layout.TRAILER_SIZE + layout.STATE
    os.pwrite(fd, layout.STATE_CLOSED.to_bytes(4, "little"), at)


# -- locks


def try_lock(fd: int) -> bool:
    """Take the writer's locks on a descriptor that can write; False if somebody holds them."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def lock(name: str, fd: int) -> None:
    """Take the writer's locks. Raises StoreBusy.

    Tries for a tenth of a second: whoever removes or sweeps holds the lock for an instant, and a
    store must not fail to start for that.
    """
    for _ in range(_LOCK_TRIES):
        if try_lock(fd):
            return
        time.sleep(_LOCK_PAUSE)
    raise StoreBusy(name, writer_pid(fd))


def unlock(fd: int) -> None:
    """Give the writer's locks back, also where a copy of the descriptor lives on in a child."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_locked(fd: int) -> bool:
    """Whether a writer lives, found out without taking any lock. Read access is enough."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    if _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question))[0] != fcntl.F_UNLCK:
        return True
    found = os.fstat(fd)
    inode = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            rows = [line.split() for line in locks]
    except FileNotFoundError:  # sandboxed kernels hide it; K4's own writers were asked above
        return False
    return any(row[1:4:2] == ["FLOCK", "WRITE"] and inode in row for row in rows)


# -- construction


def build(name: str, shape: Shape, mode: int, created_ns: int) -> int | None:
    """Make an empty, locked store under its name and return its descriptor; None where another
    creator was first.

    Raises StoreFull if memory for all of it cannot be had now.
    """
    temporary = f".k4-{name}.{os.getpid()}.{secrets.token_hex(4)}"
    fd = int(posix_ipc.SharedMemory(f"/{temporary}", posix_ipc.O_CREX, mode=0o600).fd)
    linked = False
    try:
        if try_lock(fd):  # else a sweeper took it for an orphan before it was locked
            _allocate(name, fd, shape.size)
            _fill(fd, shape, created_ns)
            os.fchmod(fd, mode)
            linked = _link(temporary, name)
    finally:
        if not linked:
            os.close(fd)
        unlink(temporary)
    return fd if linked else None


def _link(temporary: str, name: str) -> bool:
    try:
        os.link(path_of(temporary), path_of(name))
    except (FileExistsError, FileNotFoundError):  # another creator; a sweeper
        return False
    return True


def _allocate(name: str, fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except (OSError, OverflowError) as exc:
        room = (errno.ENOSPC, errno.EFBIG, errno.ENOMEM, errno.EDQUOT, errno.EINVAL)
        if isinstance(exc, OSError) and exc.errno not in room:
            raise
        disk = os.statvfs(SHM_DIR)
        free = disk.f_bavail * disk.f_frsize
        raise StoreFull(
            name,
            f"needs {size:,} bytes of shared memory and {free:,} are free in {SHM_DIR}",
            remedy="lower md_size, remove unused stores, or enlarge it (mount option size)",
        ) from exc


def _fill(fd: int, shape: Shape, created_ns: int) -> None:
    view = map_writable(fd)
    try:
        format_segment(view, shape.kind, shape.symbols, shape.buffer_size)
        trailer = Trailer(view[-layout.TRAILER_SIZE :])
        trailer.format(shape.kind, os.getpid(), created_ns)
        trailer.release()
    finally:
        view.release()


def map_writable(fd: int) -> memoryview:
    """The object as writable memory, its pages present, so that the first lap does not fault.

    The mapping is made through a second open file description: CPython's mmap keeps a copy of the
    descriptor, and a copy of the locked one in a forked child would keep the lock alive.
    """
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        return memoryview(mmap.mmap(again, os.fstat(fd).st_size, flags=flags))
    finally:
        os.close(again)


def map_readable(fd: int) -> memoryview:
    """The object as read-only memory."""
    return memoryview(mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_READ))


def sweep(name: str) -> None:
    """Remove what killed creators of this name left behind."""
    for entry in os.listdir(SHM_DIR):
        match = _TEMPORARY.fullmatch(entry)
        if match is None or match["name"] != name:
            continue
        try:
            fd = open_object(entry, write=True)
        except (StoreMissing, StoreForeign):
            continue
        try:
            if os.fstat(fd).st_uid == os.geteuid() and try_lock(fd):
                unlink(entry)
        finally:
            os.close(fd)
