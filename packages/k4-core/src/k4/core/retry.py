"""When to try again, and how fast to talk: backoff, pacing, and the budget of connection attempts.

Everything here but `SharedBudget` is pure: times are floats in seconds of a monotonic clock, handed
in by the caller.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import mmap
import os
import random
import struct
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import posix_ipc

from k4.core.errors import StoreForeign, StoreFull


def backoff(rng: random.Random, base: float = 0.1, cap: float = 30.0) -> Iterator[float]:
    """Endless delays: uniform in [0, min(cap, base * 2**n)] for n = 0, 1, 2 ... ("full jitter").

    Full jitter spreads lines that fell together better than a fixed delay with a little noise.
    """
    ceiling = base
    while True:
        yield rng.uniform(0.0, min(cap, ceiling))
        ceiling = min(cap, ceiling * 2.0)


class Pace:
    """At most `count` events in any `period` seconds, by the times of the last `count` events.

    A sliding window and no token bucket, which would let twice the count through in one window.
    `count` or `period` of 0 means no limit.
    """

    def __init__(self, count: int, period: float) -> None:
        self._limited = count > 0 and period > 0
        self._period = period
        self._count = count
        self._times: deque[float] = deque(maxlen=max(count, 1))

    def wait(self, now: float, reserve: int = 0) -> float:
        """Seconds until one more event is allowed; 0 now. `reserve` events are left for others."""
        if not self._limited:
            return 0.0
        allowed = max(1, self._count - reserve)
        if len(self._times) < allowed:
            return 0.0
        return max(0.0, self._times[-allowed] + self._period - now)

    def note(self, now: float) -> None:
        """An event happened."""
        self._times.append(now)


class TokenBucket:
    """`attempts` in any `period`: half of them as a burst, the other half as a steady refill.

    Burst plus refill of one period never exceed `attempts`, which a bucket of full size would.
    """

    def __init__(self, attempts: int, period: float) -> None:
        self.capacity = float(max(1, attempts // 2))
        self.rate = max(1.0, attempts - self.capacity) / period
        self.tokens = self.capacity
        self.updated = -math.inf

    @property
    def plentiful(self) -> bool:
        """Whether more than half of the burst was left when it was looked at last."""
        return self.tokens > self.capacity / 2

    def refill(self, now: float) -> None:
        """Add what has come since it was looked at last."""
        elapsed = max(0.0, now - self.updated)
        self.tokens = min(self.capacity, self.tokens + elapsed * self.rate)
        self.updated = max(self.updated, now)

    def take(self, now: float) -> float:
        """Take one token: 0 where there was one, else the seconds until there will be."""
        self.refill(now)
        # The tolerance lets a caller who waited exactly as long as told find his token.
        if self.tokens >= 1.0 - 1e-9:
            self.tokens = max(0.0, self.tokens - 1.0)
            return 0.0
        return (1.0 - self.tokens) / self.rate


class Budget(Protocol):
    """Connection attempts that a venue allows, per host."""

    def take(self, host: str, now: float) -> float:
        """0 where an attempt is granted (and counted), else seconds to wait before asking again."""
        ...

    def spare(self, host: str, now: float) -> bool:
        """Whether there is enough for what can wait, too: it must not take what others need."""
        ...

    def pause(self, host: str, now: float, seconds: float) -> None:
        """Grant nothing for that long: the venue said so (429, 418) to the whole address."""
        ...


class Unlimited:
    """A budget that grants everything: for peers that are nobody's venue."""

    def take(self, host: str, now: float) -> float:
        return 0.0

    def spare(self, host: str, now: float) -> bool:
        return True

    def pause(self, host: str, now: float, seconds: float) -> None:
        return None


class LocalBudget:
    """A budget of this process. `attempts` in any `period` seconds per host; 0: no limit."""

    def __init__(self, attempts: int = 300, period: float = 300.0) -> None:
        self._attempts = attempts
        self._period = period
        self._buckets: dict[str, TokenBucket] = {}
        self._paused: dict[str, float] = {}

    def take(self, host: str, now: float) -> float:
        paused = self._paused.get(host, -math.inf) - now
        if paused > 0:
            return paused
        bucket = self._bucket(host)
        return bucket.take(now) if bucket is not None else 0.0

    def spare(self, host: str, now: float) -> bool:
        if self._paused.get(host, -math.inf) > now:
            return False
        bucket = self._bucket(host)
        if bucket is None:
            return True
        bucket.refill(now)
        return bucket.plentiful

    def _bucket(self, host: str) -> TokenBucket | None:
        """None: no limit."""
        if self._attempts <= 0 or self._period <= 0:
            return None
        bucket = self._buckets.get(host)
        if bucket is None:
            bucket = self._buckets[host] = TokenBucket(self._attempts, self._period)
        return bucket

    def pause(self, host: str, now: float, seconds: float) -> None:
        self._paused[host] = max(self._paused.get(host, -math.inf), now + seconds)


# One host in the shared table: BLAKE2b of its name (16 bytes, zero: free), then three doubles.
_ENTRY = struct.Struct("<16sddd")  # key, tokens, updated, paused until
_ENTRIES = 64
_FREE = bytes(16)
_CONTENDED = 0.01  # seconds; the lock is held for microseconds
_FUTURE = 60.0  # seconds
_LONGEST_PAUSE = 4 * 86_400.0  # seconds; longer than any that `retry_after` yields


class SharedBudget:
    """One budget per host for all workers of a run, in a small POSIX shared-memory object.

    Workers open the same `name` with their venue's `attempts` and `period`. An update is made under
    `flock`, which the kernel releases when its holder dies, and is never waited for: where the lock
    is taken, or its holder was stopped in the middle, `take` says to ask again in 10 ms. Figures
    that a killed writer left half written are recognized as impossible and count as an empty
    bucket. Open it after the fork: workers that inherit one descriptor share its lock.

    `now` must be CLOCK_MONOTONIC (`SystemClock.monotonic`), which all processes of a host share.
    Hosts beyond the 63rd share the last entry, which is stricter and never looser.
    Raises StoreForeign where the object is another user's, StoreFull where /dev/shm has no room.
    """

    def __init__(self, name: str, attempts: int = 300, period: float = 300.0) -> None:
        self.name = name
        self._attempts = attempts
        self._period = period
        self._pauses: dict[str, float] = {}  # not yet in the table: the lock was taken
        size = _ENTRY.size * _ENTRIES
        try:
            shared = posix_ipc.SharedMemory("/" + name, posix_ipc.O_CREAT, mode=0o600)
        except posix_ipc.PermissionsError as error:
            raise StoreForeign(name, "no permission to open the attempt budget") from error
        self._fd: int = shared.fd
        try:
            if os.fstat(self._fd).st_uid != os.geteuid():
                raise StoreForeign(name, "the attempt budget belongs to another user")
            os.posix_fallocate(self._fd, 0, size)
            self._table = mmap.mmap(self._fd, size)
        except OSError as error:
            os.close(self._fd)
            raise StoreFull(name, f"no room for the attempt budget: {error}") from error
        except StoreForeign:
            os.close(self._fd)
            raise

    def take(self, host: str, now: float) -> float:
        if not self._lock():
            return _CONTENDED
        try:
            offset, key, bucket, paused = self._load(host, now)
            wait = max(0.0, paused - now)
            if bucket is not None:
                wait = wait or bucket.take(now)
                self._save(offset, key, bucket, paused)
            return wait
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def spare(self, host: str, now: float) -> bool:
        if not self._lock():
            return False
        try:
            offset, key, bucket, paused = self._load(host, now)
            if bucket is None:
                return paused <= now
            bucket.refill(now)
            self._save(offset, key, bucket, paused)
            return paused <= now and bucket.plentiful
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def pause(self, host: str, now: float, seconds: float) -> None:
        self._pauses[host] = max(self._pauses.get(host, 0.0), now + seconds)
        if not self._lock():
            return  # this process's next `take` carries it over
        try:
            offset, key, bucket, paused = self._load(host, now)
            self._save(offset, key, bucket or TokenBucket(1, 1.0), paused)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of it; the object stays for the other workers."""
        self._table.close()
        os.close(self._fd)

    @staticmethod
    def remove(name: str) -> None:
        """Remove the object at the end of the run; no error where it is gone."""
        try:
            posix_ipc.unlink_shared_memory("/" + name)
        except posix_ipc.ExistentialError:
            return

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _load(self, host: str, now: float) -> tuple[int, bytes, TokenBucket | None, float]:
        """Offset and key of the host's entry, its bucket (None: no limit), its pause's end."""
        key = hashlib.blake2b(host.encode(), digest_size=16).digest()
        limited = self._attempts > 0 and self._period > 0
        bucket = TokenBucket(self._attempts, self._period) if limited else None
        offset, paused = 0, 0.0
        last = _ENTRY.size * (_ENTRIES - 1)
        for offset in range(0, last + 1, _ENTRY.size):
            found, tokens, updated, paused = _ENTRY.unpack_from(self._table, offset)
            if found == _FREE:
                paused = 0.0
                break
            if found == key or offset == last:
                if bucket is not None:
                    # Another process may have read the clock a little later than this one.
                    sound = 0.0 <= tokens <= bucket.capacity and updated <= now + _FUTURE
                    bucket.tokens, bucket.updated = (tokens, updated) if sound else (0.0, now)
                break
        if not 0.0 <= paused <= now + _LONGEST_PAUSE:
            paused = 0.0
        return offset, key, bucket, max(paused, self._pauses.pop(host, 0.0))

    def _save(self, offset: int, key: bytes, bucket: TokenBucket, paused: float) -> None:
        _ENTRY.pack_into(self._table, offset, key, bucket.tokens, bucket.updated, paused)
