"""The last 64 bytes of a store as attributes: who writes it, since when, and whether it is alive.

Every member is read and written in one piece through an aligned view, so a reader in another
process sees either the old value or the new one.
"""

from __future__ import annotations

from k4.core import layout
from k4.core.enums import Kind

_MAX_LINES = 0xFFFF


class Trailer:
    """View of a trailer. `buffer` is exactly 64 bytes, 8-byte aligned; writable for a writer."""

    __slots__ = ("_buffer", "_dwords", "_shorts", "_words")

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._words = buffer.cast("Q")
        self._dwords = buffer.cast("I")
        self._shorts = buffer.cast("H")

    @classmethod
    def absent(cls) -> Trailer:
        """What stands in where an object of the original layout has none: every figure is 0."""
        return cls(memoryview(bytes(layout.TRAILER_SIZE)))

    def format(self, kind: Kind, pid: int, created_ns: int) -> None:
        """Write the trailer of a new store: live, in its first epoch."""
        layout.TRAILER.pack_into(
            self._buffer,
            0,
            layout.MAGIC_BYTES,
            kind,
            layout.LAYOUTS[kind].size,
            pid,
            layout.STATE_LIVE,
            1,
            created_ns,
            created_ns,
            0,
            0,
            0,
            0,
        )

    def release(self) -> None:
        """Let go of the bytes; any later use raises ValueError."""
        for view in (self._words, self._dwords, self._shorts, self._buffer):
            view.release()

    @property
    def writer_pid(self) -> int:
        """Process id of the writer as it sees itself; 0 after an orderly stop."""
        return self._dwords[layout.WRITER_PID // 4]

    @writer_pid.setter
    def writer_pid(self, pid: int) -> None:
        self._dwords[layout.WRITER_PID // 4] = pid

    @property
    def state(self) -> int:
        """1 live, 2 closed: replaced or removed, open the name again."""
        return self._dwords[layout.STATE // 4]

    @property
    def epoch(self) -> int:
        """Writer starts on this object."""
        return self._words[layout.EPOCH // 8]

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._words[layout.EPOCH // 8] = epoch

    @property
    def heartbeat_ns(self) -> int:
        """Wall clock of the writer's last heartbeat, nanoseconds."""
        return self._words[layout.HEARTBEAT_NS // 8]

    @heartbeat_ns.setter
    def heartbeat_ns(self, now_ns: int) -> None:
        self._words[layout.HEARTBEAT_NS // 8] = now_ns

    @property
    def created_ns(self) -> int:
        """Wall clock of the object's creation, nanoseconds."""
        return self._words[layout.CREATED_NS // 8]

    @property
    def feed_ok_ns(self) -> int:
        """Wall clock when every stream of the store last had a live line, nanoseconds."""
        return self._words[layout.FEED_OK_NS // 8]

    @feed_ok_ns.setter
    def feed_ok_ns(self, now_ns: int) -> None:
        self._words[layout.FEED_OK_NS // 8] = now_ns

    @property
    def lines_up(self) -> int:
        return self._shorts[layout.LINES_UP // 2]

    @lines_up.setter
    def lines_up(self, lines: int) -> None:
        self._shorts[layout.LINES_UP // 2] = min(lines, _MAX_LINES)

    @property
    def lines_configured(self) -> int:
        return self._shorts[layout.LINES_CONFIGURED // 2]

    @lines_configured.setter
    def lines_configured(self, lines: int) -> None:
        self._shorts[layout.LINES_CONFIGURED // 2] = min(lines, _MAX_LINES)
