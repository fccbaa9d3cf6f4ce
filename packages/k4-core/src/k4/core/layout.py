"""The bytes: of the four records (derived from `records.py`) and of a store segment.

    offset 0   u64 update_num       records written since creation, all instruments
    offset 8   u32 instrument_count
    offset 12  u32 buffer_size      slots per instrument
    offset 16  instrument[0], instrument[1], …     each 48 + buffer_size * record_size bytes:
                 +0  char symbol[32]
                 +32 i64 current_index   -1 while empty; slot of record i = i % buffer_size
                 +40 u32 buffer_len      = buffer_size
                 +44 u32 generation      0, +1 at each sequence reset
                 +48 record[buffer_size]
    then the trailer, 64 bytes:
                 +0  char magic[8]  +8 u32 record_kind  +12 u32 record_size
                 +16 u32 writer_pid +20 u32 state       +24 u64 epoch
                 +32 u64 heartbeat_ns  +40 u64 created_ns  +48 u64 feed_ok_ns
                 +56 u16 lines_up  +58 u16 lines_configured  +60 u32 0

Packers use native byte order with explicit padding: K4 runs on little-endian machines, and native
`q` stores an index in one piece, which the standard `<q` of CPython does not.
"""

from __future__ import annotations

import struct
import sys
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from k4.core.enums import Kind
from k4.core.errors import K4Error
from k4.core.records import RECORDS, SYMBOL_BYTES, CType, Record

if sys.byteorder != "little":
    raise K4Error("K4 stores are little-endian and this machine is not")

# -- segment ----------------------------------------------------------------------------------

HEADER_SIZE = 16
UPDATE_NUM = 0
INSTRUMENT_COUNT = 8
BUFFER_SIZE = 12

INSTRUMENT_SIZE = 48  # without the records
SYMBOL = 0
CURRENT_INDEX = 32
BUFFER_LEN = 40
GENERATION = 44

TRAILER_SIZE = 64
MAGIC = 0
RECORD_KIND = 8
RECORD_SIZE = 12
WRITER_PID = 16
STATE = 20
EPOCH = 24
HEARTBEAT_NS = 32
CREATED_NS = 40
FEED_OK_NS = 48
LINES_UP = 56
LINES_CONFIGURED = 58

MAGIC_BYTES = b"K4SHM\0\0\1"
STATE_LIVE = 1
STATE_CLOSED = 2

HEADER = struct.Struct("@QII")
INSTRUMENT = struct.Struct("@32sqII")
TRAILER = struct.Struct("@8sIIIIQQQQHHI")

# -- records ----------------------------------------------------------------------------------


class Field(msgspec.Struct, frozen=True):
    """One member of a record: where it is and what it is."""

    name: str
    offset: int
    ctype: CType


class RecordLayout:
    """C layout of one record kind.

    `packer` packs the members in order (arrays flattened, the symbol as bytes), `dtype` is the
    NumPy structured type, `fields` names the offsets; all derived from the record class.
    """

    def __init__(self, kind: Kind, cls: type[Record]) -> None:
        self.kind = kind
        self.cls = cls
        self.fields: tuple[Field, ...]
        fields: list[Field] = []
        fmt = "@"  # native: eight-byte members are stored in one piece
        offset = 0
        hints = get_type_hints(cls, include_extras=True)
        for name in cls.__struct_fields__:
            ctype = _ctype(hints[name])
            pad = -offset % ctype.align
            fmt += f"{pad}x" if pad else ""
            offset += pad
            fields.append(Field(name, offset, ctype))
            fmt += f"{ctype.size}s" if ctype.code == "s" else f"{ctype.count}{ctype.code}"
            offset += ctype.size * ctype.count
        pad = -offset % 8
        self.fields = tuple(fields)
        self.packer = struct.Struct(fmt + (f"{pad}x" if pad else ""))
        self.size = offset + pad
        self.dtype = np.dtype(
            {
                "names": [f.name for f in fields],
                "formats": [_numpy_format(f.ctype) for f in fields],
                "offsets": [f.offset for f in fields],
                "itemsize": self.size,
            }
        )

    def offset(self, name: str) -> int:
        """Offset in bytes of the member called `name`."""
        return next(f.offset for f in self.fields if f.name == name)

    def pack(self, record: Record) -> bytes:
        """The record's bytes."""
        flat: list[Any] = []
        for field in self.fields:
            value = getattr(record, field.name)
            if field.ctype.code == "s":
                flat.append(encode_symbol(value))
            elif field.ctype.count > 1:
                flat.extend(value)
            else:
                flat.append(value)
        return self.packer.pack(*flat)

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0) -> Record:
        """The record at `offset` of `data`."""
        flat = self.packer.unpack_from(data, offset)
        values: list[Any] = []
        at = 0
        for field in self.fields:
            if field.ctype.code == "s":
                values.append(decode_symbol(flat[at]))
                at += 1
            elif field.ctype.count > 1:
                values.append(flat[at : at + field.ctype.count])
                at += field.ctype.count
            else:
                values.append(flat[at])
                at += 1
        return self.cls(*values)


def encode_symbol(symbol: str) -> bytes:
    """UTF-8 of a symbol. Raises K4Error where it has more than 32 bytes (never a silent cut)."""
    raw = symbol.encode()
    if not 0 < len(raw) <= SYMBOL_BYTES or b"\0" in raw:
        raise K4Error(f"symbol {symbol!r} must have 1 to {SYMBOL_BYTES} bytes of UTF-8")
    return raw


def decode_symbol(raw: bytes) -> str:
    """The text of a NUL-padded symbol; bytes that are no UTF-8 become U+FFFD."""
    return raw.rstrip(b"\0").decode(errors="replace")


def _ctype(hint: Any) -> CType:
    if get_origin(hint) is Annotated:
        for extra in get_args(hint)[1:]:
            if isinstance(extra, CType):
                return extra
    raise TypeError(f"{hint!r} names no C type")


def _numpy_format(ctype: CType) -> Any:
    if ctype.code == "s":
        return f"S{ctype.size}"
    base = {"B": "u1", "I": "<u4", "i": "<i4", "Q": "<u8", "d": "<f8"}[ctype.code]
    return (base, (ctype.count,)) if ctype.count > 1 else base


LAYOUTS: dict[Kind, RecordLayout] = {kind: RecordLayout(kind, cls) for kind, cls in RECORDS.items()}


def segment_size(kind: Kind, instruments: int, buffer_size: int) -> int:
    """Bytes of a whole store: header, instruments, trailer."""
    return HEADER_SIZE + instruments * instrument_size(kind, buffer_size) + TRAILER_SIZE


def instrument_size(kind: Kind, buffer_size: int) -> int:
    """Bytes of one instrument with its records."""
    return INSTRUMENT_SIZE + buffer_size * LAYOUTS[kind].size
