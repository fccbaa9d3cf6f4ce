"""The four market-data records: one definition each, from which bytes, dtype and class follow.

A record is written down once, as a typed class whose annotations name C types. `layout.py` derives
the C layout (offsets, struct format, NumPy dtype) from these annotations, so the three cannot
drift.

Units: times are microseconds since the Unix epoch; prices and volumes are in the venue's own unit
(contracts where the venue trades contracts). A field that the venue does not send is 0; an empty
side of a book is price 0, volume 0, level count 0.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from k4.core.enums import Kind


class CType(msgspec.Struct, frozen=True):
    """A C member: struct code, size and alignment in bytes, array length."""

    code: str
    size: int
    count: int = 1

    @property
    def align(self) -> int:
        return 1 if self.code == "s" else self.size


SYMBOL_BYTES = 32

Symbol = Annotated[str, CType("s", SYMBOL_BYTES)]
U8 = Annotated[int, CType("B", 1)]
U32 = Annotated[int, CType("I", 4)]
I32 = Annotated[int, CType("i", 4)]
U64 = Annotated[int, CType("Q", 8)]
F64 = Annotated[float, CType("d", 8)]
F64x5 = Annotated[tuple[float, ...], CType("d", 8, 5)]
I32x5 = Annotated[tuple[int, ...], CType("i", 4, 5)]


class Bookticker(msgspec.Struct, frozen=True, gc=False):
    """Best bid and offer (112 bytes)."""

    symbol: Symbol
    product_type: U8
    event_timestamp_us: U64
    trade_timestamp_us: U64
    update_id: U64
    bid_price: F64
    bid_vol: F64
    ask_price: F64
    ask_vol: F64
    bid_order_count: I32
    ask_order_count: I32
    local_time_us: U64


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One trade (96 bytes). `is_buyer_maker` 1: the taker sold."""

    symbol: Symbol
    product_type: U8
    event_timestamp_us: U64
    trade_timestamp_us: U64
    trade_id: U64
    price: F64
    vol: F64
    is_buyer_maker: U8
    local_time_us: U64


class AggTrade(msgspec.Struct, frozen=True, gc=False):
    """Trades of one taker order at one price (112 bytes); ids first to last, both included."""

    symbol: Symbol
    product_type: U8
    event_timestamp_us: U64
    trade_timestamp_us: U64
    first_trade_id: U64
    last_trade_id: U64
    agg_trade_id: U64
    price: F64
    vol: F64
    trade_count: I32
    is_buyer_maker: U8
    local_time_us: U64


class Depth5(msgspec.Struct, frozen=True, gc=False):
    """The five best levels of each side, best first (288 bytes); levels count those that exist."""

    symbol: Symbol
    product_type: U8
    event_timestamp_us: U64
    trade_timestamp_us: U64
    update_id: U64
    bid_level: U32
    ask_level: U32
    last_price: F64
    bid_prices: F64x5
    bid_vols: F64x5
    ask_prices: F64x5
    ask_vols: F64x5
    bid_order_counts: I32x5
    ask_order_counts: I32x5
    local_time_us: U64


Record = Bookticker | Trade | AggTrade | Depth5

RECORDS: dict[Kind, type[Bookticker] | type[Trade] | type[AggTrade] | type[Depth5]] = {
    Kind.BOOKTICKER: Bookticker,
    Kind.TRADE: Trade,
    Kind.AGGTRADE: AggTrade,
    Kind.DEPTH5: Depth5,
}
