"""Binance's SBE market data (schema 1, `spot_stream`): binary frames to values.

    0 u16 blockLength   2 u16 templateId   4 u16 schemaId = 1   6 u16 version     little endian
    8 root block (blockLength bytes), then groups, then the symbol (u8 length + UTF-8)

    10001 BestBidAsk     +0 i64 eventTime, +8 i64 bookUpdateId, +16 i8 priceExponent,
                         +17 i8 qtyExponent, +18 i64 bidPrice, +26 i64 bidQty,
                         +34 i64 askPrice, +42 i64 askQty   = 50
    10000 Trades         +0 i64 eventTime, +8 i64 transactTime, +16 i8 priceExponent,
                         +17 i8 qtyExponent   = 18
          group          u16 blockLength, u32 numInGroup; entry +0 i64 id, +8 i64 price,
                         +16 i64 qty, +24 u8 isBuyerMaker   = 25
    10002 DepthSnapshot  +0 i64 eventTime, +8 i64 bookUpdateId, +16 i8 priceExponent,
                         +17 i8 qtyExponent   = 18
          two groups     u16 blockLength, u16 numInGroup; entry +0 i64 price, +8 i64 qty   = 16
    10003 DepthDiff      not used by K4

A later version may lengthen the root and the entries, so both are skipped by the length that they
state; what follows the symbol is ignored. Control traffic on the same socket is JSON text, which
cannot be mistaken for SBE: its bytes 4 to 6 are never 1.

A figure is mantissa * 10**exponent. Python divides two integers with one correct rounding, whatever
their size, so `mantissa / 10**-exponent` equals the JSON stream's parsed decimal to the last bit;
`mantissa * 1e-2` would not. Sources: binance-spot-api-docs, `sbe-market-data-streams.md` and
`sbe/schemas/stream_1_0.xml` (2026-07-21).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from k4.core.enums import Kind
from k4.md.exchanges.binance.control import Requests
from k4.md.feed import Channel, Sink

TRADES, BEST_BID_ASK, DEPTH_SNAPSHOT, DEPTH_DIFF = 10000, 10001, 10002, 10003
SCHEMA = 1

HEADER = struct.Struct("<HHHH")
BEST_BID_ASK_ROOT = struct.Struct("<qqbbqqqq")
TRADES_ROOT = struct.Struct("<qqbb")
TRADES_GROUP = struct.Struct("<HI")
TRADE_ENTRY = struct.Struct("<qqqB")
DEPTH_ROOT = struct.Struct("<qqbb")
DEPTH_GROUP = struct.Struct("<HH")
LEVEL = struct.Struct("<qq")
BEST_LEVELS = struct.Struct("<HH10q")  # a group's head and its best five levels

SCHEMA_BYTES = SCHEMA.to_bytes(2, "little")
BEST_BID_ASK_END = HEADER.size + BEST_BID_ASK_ROOT.size
BEST_BID_ASK_HEADER = HEADER.pack(BEST_BID_ASK_ROOT.size, BEST_BID_ASK, SCHEMA, 0)
"""The header of nearly every frame of a live socket."""

_BEST_BID_ASK = BEST_BID_ASK_ROOT.unpack_from

HEAD = 72
"""A quote or a single trade is not longer. Of a book it holds the time, the update id and the first
levels, which together no other book has."""

LEVELS = 5  # of 20 that the venue sends

# By exponent, an i8 (a negative one counts from the end): what to multiply by, what to divide by.
SCALES: tuple[tuple[int, int], ...] = tuple(
    (10**e, 1) if e >= 0 else (1, 10**-e) for e in (*range(128), *range(-128, 0))
)


class SbeSession:
    """One SBE connection; it remembers nothing. symbols: the venue's spelling by slot."""

    __slots__ = ("_books", "_deals", "_quotes", "_receive_text", "_templates")

    def __init__(
        self, channels: Sequence[Channel], symbols: Mapping[int, str], requests: Requests
    ) -> None:
        self._receive_text = requests.receive_text
        slots: dict[Kind, dict[bytes, int]] = {kind: {} for kind in Kind}
        for channel in channels:
            slots[channel.kind][_var_string(symbols[channel.slot])] = channel.slot
        self._quotes = slots[Kind.BOOKTICKER]
        self._deals = slots[Kind.TRADE]
        self._books = slots[Kind.DEPTH5]
        self._templates: dict[int, tuple[int, Callable[[bytes, int, Sink], None]]] = {
            BEST_BID_ASK: (BEST_BID_ASK_ROOT.size, self._best_bid_ask),
            TRADES: (TRADES_ROOT.size, self._trades),
            DEPTH_SNAPSHOT: (DEPTH_ROOT.size, self._depth),
        }

    def receive(self, frame: bytes, received_ns: int, out: Sink) -> None:
        if frame[:8] == BEST_BID_ASK_HEADER:
            self._best_bid_ask(frame, BEST_BID_ASK_END, out)
        elif frame[4:6] == SCHEMA_BYTES:
            self._message(frame, out)
        elif frame[:1] == b"{":
            self._receive_text(frame, out)
        else:
            out.drop("schema" if len(frame) >= HEADER.size else "malformed")

    def _message(self, frame: bytes, out: Sink) -> None:
        """A message of any template and any length of its root."""
        if len(frame) < HEADER.size:
            out.drop("malformed")
            return
        length, template, _schema, _version = HEADER.unpack_from(frame)
        known = self._templates.get(template)
        if known is None:
            out.drop("template")
        elif length < known[0]:
            out.drop("malformed")
        else:
            known[1](frame, HEADER.size + length, out)

    def _best_bid_ask(self, frame: bytes, end: int, out: Sink) -> None:
        if len(frame) <= end:
            out.drop("malformed")
            return
        event, id, pe, qe, bid, bid_vol, ask, ask_vol = _BEST_BID_ASK(frame, 8)
        if bid < 0 or bid_vol < 0 or ask < 0 or ask_vol < 0:
            out.drop("price")
        elif event < 0 or id < 0:
            out.drop("malformed")
        else:
            slot = self._quotes.get(frame[end : end + 1 + frame[end]])
            if slot is None:
                out.drop(_why_no_slot(frame, end))
            else:
                times, over = SCALES[pe]
                vol_times, vol_over = SCALES[qe]
                out.bbo(
                    slot,
                    id,
                    event,
                    0,
                    bid * times / over,
                    bid_vol * vol_times / vol_over,
                    ask * times / over,
                    ask_vol * vol_times / vol_over,
                    0,
                    0,
                )

    def _trades(self, frame: bytes, end: int, out: Sink) -> None:
        first = end + TRADES_GROUP.size
        if len(frame) < first:
            out.drop("malformed")
            return
        event, transacted, pe, qe = TRADES_ROOT.unpack_from(frame, HEADER.size)
        step, count = TRADES_GROUP.unpack_from(frame, end)
        last = first + step * count  # the group's claim; proved before anything is read by it
        if event < 0 or transacted < 0 or step < TRADE_ENTRY.size or len(frame) <= last:
            out.drop("malformed")
            return
        slot = self._deals.get(frame[last : last + 1 + frame[last]])
        if slot is None:
            out.drop(_why_no_slot(frame, last))
            return
        times, over = SCALES[pe]
        vol_times, vol_over = SCALES[qe]
        for at in range(first, last, step):
            id, price, vol, maker = TRADE_ENTRY.unpack_from(frame, at)
            if price < 0 or vol < 0:
                out.drop("price")
            elif id < 0 or maker > 1:
                out.drop("malformed")
            else:
                out.trade(
                    slot,
                    id,
                    id,
                    event,
                    transacted,
                    price * times / over,
                    vol * vol_times / vol_over,
                    maker == 1,
                )

    def _depth(self, frame: bytes, end: int, out: Sink) -> None:
        bids_end = _group_end(frame, end)
        asks_end = _group_end(frame, bids_end)
        if len(frame) <= asks_end:
            out.drop("malformed")
            return
        event, id, pe, qe = DEPTH_ROOT.unpack_from(frame, HEADER.size)
        if event < 0 or id < 0:
            out.drop("malformed")
            return
        slot = self._books.get(frame[asks_end : asks_end + 1 + frame[asks_end]])
        if slot is None:
            out.drop(_why_no_slot(frame, asks_end))
            return
        bids, asks = _levels(frame, end, pe, qe), _levels(frame, bids_end, pe, qe)
        if bids is None or asks is None:
            out.drop("price")
        else:
            out.depth(slot, id, event, 0, bids, asks)


def _group_end(frame: bytes, at: int) -> int:
    """Where the group at `at` ends; beyond the frame where it overruns it."""
    beyond = len(frame) + 1
    if beyond <= at + DEPTH_GROUP.size:
        return beyond
    step, count = DEPTH_GROUP.unpack_from(frame, at)
    return beyond if step < LEVEL.size else int(at + DEPTH_GROUP.size + step * count)


def _levels(frame: bytes, at: int, pe: int, qe: int) -> Sequence[tuple[float, float]] | None:
    """The best levels of the group at `at`, which lies within the frame; None where one is
    negative."""
    times, over = SCALES[pe]
    vol_times, vol_over = SCALES[qe]
    step, count = DEPTH_GROUP.unpack_from(frame, at)
    if step == LEVEL.size and count >= LEVELS and times == vol_times == 1:
        # Nearly every book: both exponents at most 0, all levels unpacked at once.
        _, _, p0, v0, p1, v1, p2, v2, p3, v3, p4, v4 = best = BEST_LEVELS.unpack_from(frame, at)
        if min(best) < 0:
            return None
        return (
            (p0 / over, v0 / vol_over),
            (p1 / over, v1 / vol_over),
            (p2 / over, v2 / vol_over),
            (p3 / over, v3 / vol_over),
            (p4 / over, v4 / vol_over),
        )
    levels = []
    first = at + DEPTH_GROUP.size
    for start in range(first, first + step * min(count, LEVELS), step):
        price, vol = LEVEL.unpack_from(frame, start)
        if price < 0 or vol < 0:
            return None
        levels.append((price * times / over, vol * vol_times / vol_over))
    return levels


def _var_string(symbol: str) -> bytes:
    """A symbol as it stands in a frame, its length included: a cut one equals no other."""
    raw = symbol.encode()
    return bytes((len(raw),)) + raw


def _why_no_slot(frame: bytes, at: int) -> str:
    return "symbol" if len(frame) > at + frame[at] else "malformed"
