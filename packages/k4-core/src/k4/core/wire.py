"""Records to datagrams and back: bytes alone, no socket and no clock.

    offset 0  u16 magic 0x344B
           2  u8  version 1
           3  u8  kind             of the records; 101 is a heartbeat, which carries none
           4  u16 channel          venue << 8 | product_type << 4 | kind
           6  u16 count            records in this datagram
           8  u64 sequence         of the first record, counted in records per channel from 1;
                                   a heartbeat carries the one that comes next
          16  u64 send_time_ns     sender's wall clock
          24  u32 session          random at each sender start
          28  u32 crc32            (zlib) of the records, 0 in a heartbeat
          32  count records of one kind
    then, where a key is shared, 16 bytes: BLAKE2b(digest_size=16, key=secret) of all before

Everything is little-endian. A datagram that cannot be used is a `Flaw`, never an exception.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from enum import Enum
from typing import NamedTuple

from k4.core.config import Secret
from k4.core.enums import Kind, MessageKind
from k4.core.errors import WireError
from k4.core.layout import LAYOUTS

HEADER = struct.Struct("<HBBHHQQII")
HEADER_SIZE = HEADER.size
MAGIC = 0x344B
VERSION = 1
HEARTBEAT = int(MessageKind.HEARTBEAT)
TAG_SIZE = 16
MAX_UDP_PAYLOAD = 65_507
MAX_KEY_BYTES = 64
"""BLAKE2b takes no longer key (RFC 7693, section 2.1)."""
MAX_CLOCK_OFFSET_NS = 30_000_000_000
_END_OF_SEQUENCES = 1 << 64
_SIZES = tuple(LAYOUTS[kind].size for kind in Kind)  # by kind, which counts from 0


class Flaw(Enum):
    """Why a datagram is not used."""

    SHORT = "short"
    MAGIC = "magic"
    VERSION = "version"
    KIND = "kind"  # not the channel's, or none that K4 sends
    LENGTH = "length"  # disagrees with the count, or records in a heartbeat, or no records
    SEQUENCE = "sequence"  # 0, or beyond 64 bits
    CRC = "crc"
    TAG = "tag"  # missing or wrong
    SEND_TIME = "send time"
    SOURCE = "source"  # not in `allow_from`

    @property
    def unauthorized(self) -> bool:
        """Whether the datagram counts as unauthorized; otherwise it is malformed."""
        return self in _UNAUTHORIZED


_UNAUTHORIZED = frozenset((Flaw.TAG, Flaw.SEND_TIME, Flaw.SOURCE))


class Header(NamedTuple):
    """The head of a sound datagram. `kind` 101: a heartbeat, `sequence` is the next record's."""

    kind: int
    channel: int
    records: int
    sequence: int
    send_time_ns: int
    session: int


class Key:
    """A shared secret as a tag maker. Raises WireError for a secret that BLAKE2b cannot take."""

    __slots__ = ("_state",)

    def __init__(self, secret: Secret) -> None:
        raw = secret.reveal().encode()
        if not 0 < len(raw) <= MAX_KEY_BYTES:
            raise WireError(
                f"a datagram key has {len(raw)} bytes",
                remedy=f"give a secret of 1 to {MAX_KEY_BYTES} bytes",
            )
        self._state = hashlib.blake2b(digest_size=TAG_SIZE, key=raw)

    def tag(self, data: memoryview) -> bytes:
        """The 16 bytes that follow `data`."""
        state = self._state.copy()
        state.update(data)
        return state.digest()


def channel_id(venue: int, product_type: int, kind: int) -> int:
    """The channel of one venue's records of one product type and kind.

    Raises WireError where a part does not fit (venue 1 to 254, the others 4 bits).
    """
    if not (1 <= venue <= 254 and 0 <= product_type <= 15 and 0 <= kind <= 15):
        raise WireError(
            f"no channel for venue {venue}, product type {product_type}, kind {kind}",
            remedy="a venue's code is 1 to 254",
        )
    return venue << 8 | product_type << 4 | kind


def split_channel(channel: int) -> tuple[int, int, int]:
    """(venue, product_type, kind) of a channel."""
    return channel >> 8, channel >> 4 & 15, channel & 15


def record_size(channel: int) -> int:
    """Bytes of one record of `channel`, whose kind is one that K4 sends."""
    return _SIZES[channel & 15]


class Datagram:
    """One channel's datagram being filled, in a buffer that is used again after each `seal`.

    channel: its low four bits are the kind. mtu: bytes at most, tag included. Raises WireError
    where not even one record fits.
    """

    __slots__ = ("_buffer", "_channel", "_end", "_key", "_size", "_tag_size", "capacity", "count")

    def __init__(self, channel: int, mtu: int, key: Key | None = None) -> None:
        self._channel = channel
        self._key = key
        self._size = _SIZES[channel & 15]
        self._tag_size = TAG_SIZE if key else 0
        smallest = HEADER_SIZE + self._size + self._tag_size
        if not smallest <= mtu <= MAX_UDP_PAYLOAD:
            raise WireError(
                f"a datagram of {mtu} bytes cannot carry {Kind(channel & 15).label} records",
                remedy=f"set mtu to {smallest} to {MAX_UDP_PAYLOAD}",
            )
        self._buffer = memoryview(bytearray(mtu))
        self._end = HEADER_SIZE
        self.capacity = (mtu - HEADER_SIZE - self._tag_size) // self._size
        self.count = 0

    def append(self, record: memoryview) -> bool:
        """Copy one packed record in; true when no further one fits."""
        end = self._end + self._size
        self._buffer[self._end : end] = record
        self._end = end
        self.count += 1
        return self.count == self.capacity

    def seal(self, sequence: int, session: int, send_time_ns: int) -> memoryview:
        """The finished datagram, valid until the next `append`; the buffer counts as empty again.

        sequence: of the first record in it.
        """
        crc = zlib.crc32(self._buffer[HEADER_SIZE : self._end])
        sealed = self._finish(
            self._channel & 15, self.count, sequence, session, send_time_ns, crc, self._end
        )
        self._end = HEADER_SIZE
        self.count = 0
        return sealed

    def heartbeat(self, sequence: int, session: int, send_time_ns: int) -> memoryview:
        """A heartbeat that announces `sequence` as the next record's. Only while empty."""
        return self._finish(HEARTBEAT, 0, sequence, session, send_time_ns, 0, HEADER_SIZE)

    def _finish(
        self, kind: int, count: int, sequence: int, session: int, now_ns: int, crc: int, end: int
    ) -> memoryview:
        buffer = self._buffer
        HEADER.pack_into(
            buffer,
            0,
            MAGIC,
            VERSION,
            kind,
            self._channel,
            count,
            sequence,
            now_ns,
            session,
            crc,
        )
        if self._key:
            buffer[end : end + TAG_SIZE] = self._key.tag(buffer[:end])
        return buffer[: end + self._tag_size]


def parse(datagram: memoryview, key: Key | None, now_ns: int) -> Header | Flaw:
    """Check a whole datagram; its records start at `HEADER_SIZE`. Never raises.

    Without a key a tag is surplus length. With one, damage (crc) is told from forgery (tag) in
    that order, and the send time must be within 30 s of `now_ns`, so that what was once recorded
    cannot be replayed later.
    """
    if len(datagram) < HEADER_SIZE:
        return Flaw.SHORT
    magic, version, kind, channel, count, sequence, sent_ns, session, crc = HEADER.unpack_from(
        datagram
    )
    if magic != MAGIC:
        return Flaw.MAGIC
    if version != VERSION:
        return Flaw.VERSION
    channel_kind = channel & 15
    if channel_kind >= len(_SIZES) or (kind != channel_kind and kind != HEARTBEAT):
        return Flaw.KIND
    if (kind == HEARTBEAT) != (count == 0):
        return Flaw.LENGTH
    end = HEADER_SIZE + count * _SIZES[channel_kind]
    if key and len(datagram) == end:
        return Flaw.TAG
    if len(datagram) != end + (TAG_SIZE if key else 0):
        return Flaw.LENGTH
    if sequence == 0 or sequence + count > _END_OF_SEQUENCES:
        return Flaw.SEQUENCE
    if zlib.crc32(datagram[HEADER_SIZE:end]) != crc:  # of nothing it is 0, as heartbeats have it
        return Flaw.CRC
    if key:
        if not hmac.compare_digest(key.tag(datagram[:end]), datagram[end:]):
            return Flaw.TAG
        if abs(now_ns - sent_ns) > MAX_CLOCK_OFFSET_NS:
            return Flaw.SEND_TIME
    return Header(kind, channel, count, sequence, sent_ns, session)
