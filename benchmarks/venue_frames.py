"""Frames of every venue and kind for the benchmarks, and what a flat loop does with them.

A case has the venue's frames (every one an update that must be published), how K4 is told to take
them, and a floor: in the manner of `flat.py`, one function with the typed decode, the id check, the
record packed into its slot, the index and the update count, for exactly these frames and nothing
else. The text of that function is put together from `FLOOR` and the case's own lines, so that no
call is left in it that a hand-written loop would not make.
"""

from __future__ import annotations

import struct
import textwrap
import time
import uuid
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

import msgspec
from xxhash import xxh64_intdigest

SYMBOL = "BTCUSDT"
T0 = 1_790_000_000_000
BBO, TRADE, DEPTH5 = "bbo", "trade", "depth5"
RECORDS = {  # native order and alignment, as flat.py's
    BBO: struct.Struct("32sB7xQQQddddiiQ"),
    TRADE: struct.Struct("32sB7xQQQddB7xQ"),
    DEPTH5: struct.Struct("32sB7xQQQIId5d5d5d5d5i5iQ"),
}

FLOOR = """
def make(buffer, words, slots, product, decode, symbol):
    index, last, shown, base, name = 0, -1, None, 64, symbol.encode()

    def handle(frame):
        nonlocal index, last, shown
        received_us = now_ns() // 1000
        {each}
            {prepare}
            if {fresh}:
                last = {id}
                {remember}
                pack(buffer, base + index % slots * size, name, product, {values}, received_us)
                words[6] = index
                index += 1
                words[0] = index

    return handle
"""

Handle = Callable[[Any], None]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One venue, format and kind.

    payload(i): the i-th message. ack: the venue's answer to the subscription. connection, section:
    of K4's configuration, without endpoints and stores. each, prepare, fresh, id, remember, values:
    lines and expressions of the floor. names: what they use beside the decoder.
    """

    name: str
    kind: str
    endpoint: str
    product: str
    payload: Callable[[int], bytes]
    ack: bytes
    decode: Any
    each: str
    fresh: str
    id: str
    values: str
    prepare: str = "pass"
    remember: str = "pass"
    exchange: str = ""
    binary: bool = False
    product_type: int = 0
    section: dict[str, object] = {}
    names: dict[str, object] = {}

    def floor(self, buffer: Any, slots: int) -> Handle:
        """The flat loop's handler on a store of one symbol."""
        words = memoryview(buffer).cast("B")[: len(buffer) // 8 * 8].cast("q")
        record = RECORDS[self.kind]
        scope = {**self.names, "now_ns": time.time_ns, "pack": record.pack_into}
        scope["size"] = record.size
        indent = " " * 12
        text = FLOOR.format(
            each=self.each,
            prepare=textwrap.indent(self.prepare, indent).lstrip(),
            fresh=self.fresh,
            id=self.id,
            remember=self.remember,
            values=self.values,
        )
        exec(text, scope)
        make: Callable[..., Handle] = scope["make"]  # type: ignore[assignment]
        return make(buffer, words, slots, self.product_type, self.decode, SYMBOL)

    def store_size(self, slots: int) -> int:
        return 64 + slots * RECORDS[self.kind].size + 64


def price(i: int) -> str:
    return f"{63000 + i % 997}.{i % 100:02d}"


def size(i: int) -> str:
    return f"{1 + i % 7}.{33198 + i % 50_000:05d}"


def levels(i: int, tail: str = "") -> tuple[str, str]:
    """Five asks and five bids; `tail` is what follows price and size in a level."""
    sides = []
    for sign in (1, -1):
        side = (f'["{price(i + sign * (j + 1))}","{size(i + j)}"{tail}]' for j in range(5))
        sides.append("[" + ",".join(side) + "]")
    return sides[0], sides[1]


def decoder(cls: type) -> Callable[[Any], Any]:
    return msgspec.json.Decoder(cls, strict=False).decode


ONE = "m = decode(frame).data\n        if True:"
BOOK_TOP = (
    "top = (*[x[0] for x in {b}], *[x[1] for x in {b}], *[x[0] for x in {a}], *[x[1] for x in {a}])"
)
SHOWN = "shown = top"


# -- Binance ---------------------------------------------------------------------------------------


class BinanceQuote(msgspec.Struct, gc=False):
    u: int
    s: str
    b: float
    B: float
    a: float
    A: float
    E: int = 0
    T: int = 0


class BinanceTrade(msgspec.Struct, gc=False):
    E: int
    s: str
    t: int
    p: float
    q: float
    T: int
    m: bool


class BinanceBook(msgspec.Struct, gc=False):
    lastUpdateId: int
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]


class BinanceBookPush(msgspec.Struct, gc=False):
    stream: str
    data: BinanceBook


def combined(stream: str, data: str) -> bytes:
    return f'{{"stream":"btcusdt@{stream}","data":{{{data}}}}}'.encode()


def binance_quote(i: int) -> bytes:
    sides = f'"b":"{price(i)}","B":"{size(i)}","a":"{price(i + 1)}","A":"{size(i + 1)}"'
    return combined("bookTicker", f'"u":{10**10 + i},"s":"{SYMBOL}",{sides}')


def binance_trade(i: int) -> bytes:
    head = f'"e":"trade","E":{T0 + i},"s":"{SYMBOL}","t":{6 * 10**9 + i}'
    tail = f'"p":"{price(i)}","q":"{size(i)}","T":{T0 + i},"m":true,"M":true'
    return combined("trade", f"{head},{tail}")


def binance_book(i: int) -> bytes:
    asks, bids = levels(i)
    return combined("depth5@100ms", f'"lastUpdateId":{10**10 + i},"bids":{bids},"asks":{asks}')


BINANCE = {"exchange": "binance", "product": "spot", "ack": b'{"result":null,"id":1}'}
BINANCE_JSON: dict[str, Any] = {**BINANCE, "name": "binance.json", "endpoint": "spot"}


def wrapped(cls: Any) -> Callable[[Any], Any]:
    return decoder(msgspec.defstruct("Wrapped", [("data", cls)], gc=False))


# -- Binance SBE -----------------------------------------------------------------------------------

SBE_QUOTE = struct.Struct("<qqbbqqqq")
SBE_TRADE = struct.Struct("<qqbbHIqqqB")
SBE_DEPTH = struct.Struct("<qqbb")
SBE_LEVELS = struct.Struct("<HH" + "qq" * 20)
SBE_TOP = struct.Struct("<10q")
SBE_NAME = bytes([len(SYMBOL)]) + SYMBOL.encode()
EXPONENTS = {-e: 10**e for e in range(20)}


def sbe(template: int, length: int, *parts: bytes) -> bytes:
    return struct.pack("<HHHH", length, template, 1, 0) + b"".join(parts) + SBE_NAME


def sbe_quote(i: int) -> bytes:
    figures = (6_300_000 + i, 100_000 + i, 6_300_001 + i, 7 * i)
    return sbe(10001, 50, SBE_QUOTE.pack(T0 * 1000 + i, 10**10 + i, -2, -5, *figures))


def sbe_trade(i: int) -> bytes:
    us, entry = T0 * 1000 + i, (6 * 10**9 + i, 6_300_000 + i, 77 + i, i % 2)
    return sbe(10000, 18, SBE_TRADE.pack(us, us, -2, -5, 25, 1, *entry))


def sbe_book(i: int) -> bytes:
    sides = [
        SBE_LEVELS.pack(16, 20, *(x for j in range(20) for x in (6_300_000 + s * j, 100 + i + j)))
        for s in (-1, 1)
    ]
    return sbe(10002, 18, SBE_DEPTH.pack(T0 * 1000 + i, 10**10 + i, -2, -5), *sides)


SBE: dict[str, Any] = {
    **BINANCE,
    "name": "binance.sbe",
    "endpoint": "spot_sbe",
    "binary": True,
    "decode": None,
    "each": "if True:",
    "section": {"feed": "sbe"},
}
SBE_NAMES = {"E": EXPONENTS, "NAME": SBE_NAME}

# -- OKX -------------------------------------------------------------------------------------------


class OkxArg(msgspec.Struct, gc=False):
    instId: str


class OkxBook(msgspec.Struct, gc=False):
    asks: list[tuple[float, float, float, int]]
    bids: list[tuple[float, float, float, int]]
    ts: int
    seqId: int


class OkxBooks(msgspec.Struct, gc=False):
    arg: OkxArg
    data: list[OkxBook]


class OkxTrade(msgspec.Struct, gc=False):
    tradeId: int
    px: float
    sz: float
    side: str
    ts: int


class OkxTrades(msgspec.Struct, gc=False):
    arg: OkxArg
    data: list[OkxTrade]


OKX_ID = "BTC-USDT-SWAP"


def okx(channel: str, data: str) -> bytes:
    return f'{{"arg":{{"channel":"{channel}","instId":"{OKX_ID}"}},"data":[{{{data}}}]}}'.encode()


def okx_quote(i: int) -> bytes:
    asks, bids = f'["{price(i + 1)}","{size(i)}","0","10"]', f'["{price(i)}","{size(i)}","0","3"]'
    return okx("bbo-tbt", f'"asks":[{asks}],"bids":[{bids}],"ts":"{T0 + i}","seqId":{10**10 + i}')


def okx_trade(i: int) -> bytes:
    head = f'"instId":"{OKX_ID}","tradeId":"{10**9 + i}","px":"{price(i)}","sz":"{size(i)}"'
    tail = f'"side":"buy","ts":"{T0 + i}","count":"1","source":"0","seqId":{10**10 + i}'
    return okx("trades", f"{head},{tail}")


def okx_book(i: int) -> bytes:
    asks, bids = levels(i, ',"0","4"')
    tail = f'"instId":"{OKX_ID}","ts":"{T0 + i}","seqId":{10**10 + i}'
    return okx("books5", f'"asks":{asks},"bids":{bids},{tail}')


def okx_case(channel: str) -> dict[str, Any]:
    ack = f'{{"id":"1","event":"subscribe","arg":{{"channel":"{channel}","instId":"{OKX_ID}"}}}}'
    return {
        "name": "okx",
        "exchange": "okx",
        "product": "swap",
        "endpoint": "public",
        "product_type": 1,
        "ack": ack.encode(),
        "each": "p = decode(frame)\n        for m in p.data if p.arg.instId == inst_id else ():",
        "names": {"inst_id": OKX_ID},
    }


# -- Bybit -----------------------------------------------------------------------------------------


class BybitUpdate(msgspec.Struct, gc=False):
    s: str
    b: list[tuple[float, float]]
    a: list[tuple[float, float]]
    u: int


class BybitPush(msgspec.Struct, gc=False):
    type: str
    ts: int
    data: BybitUpdate
    cts: int = 0


class BybitTrade(msgspec.Struct, gc=False):
    T: int
    s: str
    S: str
    v: float
    p: float
    i: str


class BybitTrades(msgspec.Struct, gc=False):
    ts: int
    data: list[BybitTrade]


def bybit(topic: str, type: str, i: int, data: str) -> bytes:
    head = f'"topic":"{topic}.{SYMBOL}","type":"{type}","ts":{T0 + i}'
    return f'{{{head},"data":{data},"cts":{T0 + i - 2}}}'.encode()


def bybit_quote(i: int) -> bytes:
    sides = f'"b":[["{price(i)}","{size(i)}"]],"a":[["{price(i + 1)}","{size(i)}"]]'
    return bybit(
        "orderbook.1", "snapshot", i, f'{{"s":"{SYMBOL}",{sides},"u":{10**7 + i},"seq":{i}}}'
    )


def bybit_trade(i: int) -> bytes:
    name = uuid.UUID(int=(i + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128)
    deal = f'"T":{T0 + i},"s":"{SYMBOL}","S":"Buy","v":"{size(i)}","p":"{price(i)}"'
    tail = f'"L":"PlusTick","i":"{name}","BT":false,"RPI":false,"seq":{10**11 + i}'
    head = f'"topic":"publicTrade.{SYMBOL}","type":"snapshot","ts":{T0 + i}'
    return f'{{{head},"data":[{{{deal},{tail}}}]}}'.encode()


def bybit_book(i: int) -> bytes:
    """A snapshot of fifty levels a side, then deltas: the best bid, a deep bid, two asks."""
    if i == 0:
        bids = ",".join(f'["{63000 - j}.00","{size(j)}"]' for j in range(50))
        asks = ",".join(f'["{63001 + j}.00","{size(j)}"]' for j in range(50))
        type = "snapshot"
    else:
        bids = f'["63000.00","{size(i)}"],["{62990 - i % 30}.00","{size(i + 3)}"]'
        gone = f'["{63003 + i // 2 % 2}.00","{"0" if i % 2 else size(i)}"]'
        asks, type = f'["63001.00","{size(i + 1)}"],{gone}', "delta"
    data = f'{{"s":"{SYMBOL}","b":[{bids}],"a":[{asks}],"u":{10**7 + i},"seq":{10**11 + i}}}'
    return bybit("orderbook.50", type, i, data)


class FlatBook:
    """Prices in order, volumes by price: no incremental book can do with less."""

    def __init__(self) -> None:
        self.bids: list[float] = []
        self.asks: list[float] = []
        self.vols: tuple[dict[float, float], dict[float, float]] = ({}, {})

    def apply(self, m: BybitPush) -> None:
        if m.type == "snapshot":
            self.__init__()  # type: ignore[misc]
        for side, prices, vols in (
            (m.data.b, self.bids, self.vols[0]),
            (m.data.a, self.asks, self.vols[1]),
        ):
            for price, vol in side:
                if vol:
                    if price not in vols:
                        insort(prices, price)
                    vols[price] = vol
                elif price in vols:
                    del vols[price]
                    del prices[bisect_left(prices, price)]


def bybit_case(topic: str) -> dict[str, Any]:
    named = f'"conn_id":"x","req_id":"{topic}.{SYMBOL}","op":"subscribe"'
    ack = f'{{"success":true,"ret_msg":"",{named}}}'
    return {
        "name": "bybit",
        "exchange": "bybit",
        "product": "futures",
        "endpoint": "linear",
        "product_type": 1,
        "ack": ack.encode(),
        "each": "p = decode(frame)\n        m = p.data\n        if m.s == symbol:",
    }


# -- Bitget ----------------------------------------------------------------------------------------


class BitgetBook(msgspec.Struct, gc=False):
    asks: list[tuple[float, float]]
    bids: list[tuple[float, float]]
    ts: int
    seq: int


class BitgetBooks(msgspec.Struct, gc=False):
    arg: OkxArg
    data: list[BitgetBook]
    ts: int


class BitgetTrade(msgspec.Struct, gc=False):
    ts: int
    price: float
    size: float
    side: str
    tradeId: int


class BitgetTrades(msgspec.Struct, gc=False):
    arg: OkxArg
    data: list[BitgetTrade]
    ts: int


def bitget(action: str, channel: str, i: int, data: str) -> bytes:
    arg = f'{{"instType":"USDT-FUTURES","channel":"{channel}","instId":"{SYMBOL}"}}'
    return f'{{"action":"{action}","arg":{arg},"data":[{{{data}}}],"ts":{T0 + i + 2}}}'.encode()


def bitget_quote(i: int) -> bytes:
    sides = f'"asks":[["{price(i + 1)}","{size(i)}"]],"bids":[["{price(i)}","{size(i)}"]]'
    return bitget("snapshot", "books1", i, f'{sides},"ts":"{T0 + i}","seq":{10**18 + i},"pseq":0')


def bitget_trade(i: int) -> bytes:
    deal = f'"ts":"{T0 + i}","price":"{price(i)}","size":"{size(i)}","side":"buy"'
    return bitget("update", "trade", i, f'{deal},"tradeId":"{1471423027117572096 + i}"')


def bitget_book(i: int) -> bytes:
    asks, bids = levels(i)
    tail = f'"ts":"{T0 + i}","seq":{10**18 + i},"pseq":0'
    return bitget("snapshot", "books5", i, f'"asks":{asks},"bids":{bids},{tail}')


def bitget_case(channel: str) -> dict[str, Any]:
    arg = f'{{"instType":"USDT-FUTURES","channel":"{channel}","instId":"{SYMBOL}"}}'
    return {
        "name": "bitget",
        "exchange": "bitget",
        "product": "futures",
        "endpoint": "public",
        "product_type": 5,
        "ack": f'{{"event":"subscribe","arg":{arg}}}'.encode(),
        "each": "p = decode(frame)\n        for m in p.data if p.arg.instId == symbol else ():",
    }


# -- the cases -------------------------------------------------------------------------------------

COUNTS = "*[0] * 10"

CASES = [
    Case(
        **BINANCE_JSON,
        kind=BBO,
        payload=binance_quote,
        decode=wrapped(BinanceQuote),
        each=ONE,
        fresh="m.u > last and m.s == symbol",
        id="m.u",
        values="m.E * 1000, m.T * 1000, m.u, m.b, m.B, m.a, m.A, 0, 0",
    ),
    Case(
        **BINANCE_JSON,
        kind=TRADE,
        payload=binance_trade,
        decode=wrapped(BinanceTrade),
        each=ONE,
        fresh="m.t > last and m.s == symbol",
        id="m.t",
        values="m.E * 1000, m.T * 1000, m.t, m.p, m.q, m.m",
    ),
    Case(
        **BINANCE_JSON,
        kind=DEPTH5,
        payload=binance_book,
        decode=decoder(BinanceBookPush),
        each="p = decode(frame)\n        m = p.data\n        if p.stream == stream:",
        prepare=BOOK_TOP.format(b="m.bids", a="m.asks"),
        fresh="m.lastUpdateId > last and top != shown",
        id="m.lastUpdateId",
        remember=SHOWN,
        values=f"0, 0, last, len(m.bids), len(m.asks), 0.0, *top, {COUNTS}",
        names={"stream": "btcusdt@depth5@100ms"},
    ),
    Case(
        **SBE,
        kind=BBO,
        payload=sbe_quote,
        prepare="us, u, pe, qe, b, bv, a, av = unpack(frame, 8)",
        fresh="u > last and frame[58:] == NAME",
        id="u",
        values="us, 0, u, b / E[pe], bv / E[qe], a / E[pe], av / E[qe], 0, 0",
        names={**SBE_NAMES, "unpack": SBE_QUOTE.unpack_from},
    ),
    Case(
        **SBE,
        kind=TRADE,
        payload=sbe_trade,
        prepare="us, t, pe, qe, _, count, id, p, q, maker = unpack(frame, 8)",
        fresh="id > last and count == 1 and frame[57:] == NAME",
        id="id",
        values="us, t, id, p / E[pe], q / E[qe], maker",
        names={**SBE_NAMES, "unpack": SBE_TRADE.unpack_from},
    ),
    Case(
        **SBE,
        kind=DEPTH5,
        payload=sbe_book,
        prepare=(
            "us, u, pe, qe = unpack(frame, 8)\n"
            "b, a, pe, qe = top10(frame, 30), top10(frame, 354), E[pe], E[qe]\n"
            "top = (*[x / pe for x in b[::2]], *[x / qe for x in b[1::2]], "
            "*[x / pe for x in a[::2]], *[x / qe for x in a[1::2]])"
        ),
        fresh="u > last and top != shown and frame[674:] == NAME",
        id="u",
        remember=SHOWN,
        values=f"us, 0, u, 5, 5, 0.0, *top, {COUNTS}",
        names={**SBE_NAMES, "unpack": SBE_DEPTH.unpack_from, "top10": SBE_TOP.unpack_from},
    ),
    Case(
        **okx_case("bbo-tbt"),
        kind=BBO,
        payload=okx_quote,
        decode=decoder(OkxBooks),
        prepare="(b, bv, _, bn), (a, av, _, an), us = m.bids[0], m.asks[0], m.ts * 1000",
        fresh="m.seqId > last",
        id="m.seqId",
        values="us, us, last, b, bv, a, av, bn, an",
    ),
    Case(
        **okx_case("trades"),
        kind=TRADE,
        payload=okx_trade,
        decode=decoder(OkxTrades),
        prepare="us = m.ts * 1000",
        fresh="m.tradeId > last",
        id="m.tradeId",
        values="us, us, last, m.px, m.sz, m.side == 'sell'",
    ),
    Case(
        **okx_case("books5"),
        kind=DEPTH5,
        payload=okx_book,
        decode=decoder(OkxBooks),
        prepare=(
            BOOK_TOP.format(b="m.bids", a="m.asks")[:-1]
            + ", *[x[3] for x in m.bids], *[x[3] for x in m.asks])\n"
            + "us = m.ts * 1000"
        ),
        fresh="m.seqId > last and top != shown",
        id="m.seqId",
        remember=SHOWN,
        values="us, us, last, len(m.bids), len(m.asks), 0.0, *top",
    ),
    Case(
        **bybit_case("orderbook.1"),
        kind=BBO,
        payload=bybit_quote,
        decode=decoder(BybitPush),
        prepare="(b, bv), (a, av) = m.b[0], m.a[0]",
        fresh="m.u > last",
        id="m.u",
        values="p.ts * 1000, p.cts * 1000, last, b, bv, a, av, 0, 0",
    ),
    Case(
        **{
            **bybit_case("publicTrade"),
            "each": "p = decode(frame)\n        for m in p.data:",
        },
        kind=TRADE,
        payload=bybit_trade,
        decode=decoder(BybitTrades),
        fresh="m.i not in seen and m.s == symbol",
        id="m.i",
        remember="seen.add(last)",
        values="p.ts * 1000, m.T * 1000, xxh(last.encode()), m.p, m.v, m.S == 'Sell'",
        names={"seen": set(), "xxh": xxh64_intdigest},
    ),
    Case(
        **bybit_case("orderbook.50"),
        kind=DEPTH5,
        payload=bybit_book,
        decode=decoder(BybitPush),
        prepare=(
            "book.apply(p)\n"
            "bids, asks = book.bids[:-6:-1], book.asks[:5]\n"
            "top = (*bids, *[book.vols[0][x] for x in bids], "
            "*asks, *[book.vols[1][x] for x in asks])"
        ),
        fresh="(m.u == last + 1 or p.type == 'snapshot') and top != shown",
        id="m.u",
        remember=SHOWN,
        values=f"p.ts * 1000, p.cts * 1000, last, len(bids), len(asks), 0.0, *top, {COUNTS}",
        names={"book": FlatBook()},
    ),
    Case(
        **bitget_case("books1"),
        kind=BBO,
        payload=bitget_quote,
        decode=decoder(BitgetBooks),
        prepare="(b, bv), (a, av) = m.bids[0], m.asks[0]",
        fresh="m.seq > last",
        id="m.seq",
        values="p.ts * 1000, m.ts * 1000, last, b, bv, a, av, 0, 0",
    ),
    Case(
        **bitget_case("trade"),
        kind=TRADE,
        payload=bitget_trade,
        decode=decoder(BitgetTrades),
        fresh="m.tradeId > last",
        id="m.tradeId",
        values="p.ts * 1000, m.ts * 1000, last, m.price, m.size, m.side == 'sell'",
    ),
    Case(
        **bitget_case("books5"),
        kind=DEPTH5,
        payload=bitget_book,
        decode=decoder(BitgetBooks),
        prepare=BOOK_TOP.format(b="m.bids", a="m.asks"),
        fresh="m.seq > last and top != shown",
        id="m.seq",
        remember=SHOWN,
        values=f"p.ts * 1000, m.ts * 1000, last, len(m.bids), len(m.asks), 0.0, *top, {COUNTS}",
    ),
]
