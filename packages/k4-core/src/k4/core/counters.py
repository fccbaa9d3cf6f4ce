"""Counters in shared memory, in the manner of Aeron's CnC file: the named objects around the table.

A worker makes one object, `/dev/shm/k4c.<name>`, and writes its rows into it; `k4-runner watch`,
the supervisor and any other process of the same user read them while it runs, and afterwards what
it left behind. The bytes are `counter_table`'s.

The writer holds `flock(LOCK_EX)` while it lives; that lock, not the pid, proves it alive. The
object of a writer that died is marked closed and replaced in one step (rename), so the name always
leads to a whole table.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from k4.core.clock import Clock, SystemClock
from k4.core.counter_table import (
    PID,
    STATE,
    STATE_CLOSED,
    CounterRow,
    Counters,
    CountersView,
    MemoryCounters,
    Row,
    table_size,
)
from k4.core.errors import K4Error, StoreBusy, StoreForeign, StoreFull, StoreMissing
from k4.core.segment import SHM_DIR, names_it, require_ordered_memory

__all__ = [
    "CounterRow",
    "Counters",
    "CountersReader",
    "CountersView",
    "CountersWriter",
    "MemoryCounters",
    "Row",
    "list_counters",
]

DIRECTORY = Path(SHM_DIR)
PREFIX = "k4c."
_UNFINISHED = ".new"
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,180}")


class CountersWriter(Counters):
    """The counters of one process, `/dev/shm/k4c.<name>`, mode 0600.

    rows: most rows at a time. words: most words (8 bytes) of values and descriptions together; a
    row takes one for each value and some 20 to 60 for its description. Raises StoreBusy where
    another process writes counters of that name, StoreForeign where they belong to another user,
    StoreFull where /dev/shm has no room.
    """

    def __init__(
        self,
        name: str,
        *,
        rows: int = 4096,
        words: int = 131_072,
        clock: Clock | None = None,
    ) -> None:
        self.path = _path(name)
        require_ordered_memory(name)
        clock = clock or SystemClock()
        size = table_size(rows, words)
        _sweep(name)
        with _former(name) as former:
            self._fd, fresh = _create(name, size)
            try:
                self._map = mmap.mmap(self._fd, size)
                self._view = memoryview(self._map)
                super().__init__(
                    self._view, rows=rows, words=words, name=name, pid=os.getpid(), clock=clock
                )
                _put_in_place(name, fresh, self.path, former)
            except BaseException:
                fresh.unlink(missing_ok=True)
                os.close(self._fd)
                raise

    def close(self, unlink: bool = True) -> None:
        """Mark the table closed and let it go; `unlink` False leaves the last values readable."""
        if self.closed:
            return
        if unlink and names_it(self.path.name, self._fd):
            self.path.unlink(missing_ok=True)
        super().close()
        self._view.release()
        self._map.close()
        os.close(self._fd)


class CountersReader(CountersView):
    """The counters of another process, read-only. Raises StoreMissing where there are none."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._fd = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(name, error) from error
        try:
            self._map = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            os.close(self._fd)
            raise StoreForeign(name, "this object holds no K4 counters") from error
        self._view = memoryview(self._map)
        try:
            super().__init__(self._view)
        except K4Error:
            self._view.release()
            self._map.close()
            os.close(self._fd)
            raise

    def alive(self) -> bool:
        """A process holds the writer's lock. Says nothing about whether it still makes progress:
        for that look at `heartbeat_ns`.
        """
        return not _take(self._fd, fcntl.LOCK_SH, release=True)

    def close(self) -> None:
        """Unmap; the object stays. Safe to call twice."""
        if self._fd >= 0:
            self._words.release()
            self._view.release()
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> CountersReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def list_counters(prefix: str = "") -> list[str]:
    """The names of all counters on this machine that begin with `prefix`, sorted."""
    found = DIRECTORY.glob(f"{PREFIX}*")
    names = (path.name.removeprefix(PREFIX) for path in found if path.suffix != _UNFINISHED)
    return sorted(name for name in names if name.startswith(prefix))


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name) or name.endswith(_UNFINISHED):
        raise K4Error(
            f"{name!r} cannot name counters",
            remedy="use up to 180 letters, digits, points, dashes and underscores",
        )
    return DIRECTORY / f"{PREFIX}{name}"


def _take(fd: int, operation: int, *, release: bool = False) -> bool:
    """Take the lock without waiting; False where another has it."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if release:
        fcntl.flock(fd, fcntl.LOCK_UN)
    return True


@contextmanager
def _former(name: str) -> Iterator[int | None]:
    """The object that a dead writer left under this name, locked; None where there is none.

    While its lock is held nobody else can replace it. A reader that asks `alive` holds a shared
    lock for an instant, which is no writer: then try again.
    """
    fd = _lock_former(name)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _lock_former(name: str) -> int | None:
    path = _path(name)
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refusal(name, error) from error
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise StoreForeign(name, "these counters belong to another user")
            while not _take(fd, fcntl.LOCK_EX):
                if not _take(fd, fcntl.LOCK_SH):
                    raise StoreBusy(f"{PREFIX}{name}", _pid(fd))
            if names_it(path.name, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # replaced or removed meanwhile


def _create(name: str, size: int) -> tuple[int, Path]:
    """A locked object with all its memory, under a name that nobody looks at yet."""
    fresh = DIRECTORY / f"{PREFIX}{name}.{os.getpid()}{_UNFINISHED}"
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(fd, 0o600)
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        fresh.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise StoreFull(
                name,
                f"/dev/shm has no room for {size} bytes of counters",
                remedy="free some of it, or mount a larger /dev/shm",
            ) from error
        raise
    return fd, fresh


def _put_in_place(name: str, fresh: Path, path: Path, former: int | None) -> None:
    if former is not None:
        os.replace(fresh, path)
        os.pwrite(former, struct.pack("@I", STATE_CLOSED), STATE)
        return
    try:
        os.link(fresh, path)
    except FileExistsError as error:
        raise StoreBusy(f"{PREFIX}{name}", _pid_at(path)) from error
    fresh.unlink()


def _sweep(name: str) -> None:
    """Remove what a writer that died while it was starting left under a temporary name."""
    for path in DIRECTORY.glob(f"{PREFIX}{name}.*{_UNFINISHED}"):
        pid = path.name.removesuffix(_UNFINISHED).rpartition(".")[2]
        if pid != str(os.getpid()) and Path("/proc", pid).exists():
            continue  # it may be between making the object and locking it
        with suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _take(fd, fcntl.LOCK_EX) and names_it(path.name, fd):
                    path.unlink()
            finally:
                os.close(fd)


def _pid(fd: int) -> int:
    raw = os.pread(fd, 4, PID)
    return int.from_bytes(raw, "little") if len(raw) == 4 else 0


def _pid_at(path: Path) -> int:
    try:
        raw = path.read_bytes()[PID : PID + 4]
    except OSError:
        return 0
    return int.from_bytes(raw, "little")


def _refusal(name: str, error: OSError) -> K4Error:
    if error.errno == errno.ENOENT:
        return StoreMissing(name, "there are no counters of that name")
    return StoreForeign(name, f"its counters cannot be opened: {error.strerror}")
