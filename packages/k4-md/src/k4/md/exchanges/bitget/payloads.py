"""The payloads of Bitget's classic v2 public channels, typed, and the decoders that read them.

Prices, sizes, trade ids and inner times are quoted, the outer time and `seq` are not; `seq` exceeds
2**53, so nothing passes through a double. `checksum` was sent until 2026, `pseq` since then; K4
needs neither, since the fixed-depth channels send whole books. Sources: official v2 channel pages
(mirror of 2025-11); captured frames of 2024-10 to 2026-09.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from k4.md.figures import Amount, Id, Levels, Milliseconds, decoder

NO_SEQ = -1


class Book(msgspec.Struct, gc=False):
    """books1 and books5: best first, a side may be empty. ts: of the engine. seq: since 2025-04."""

    asks: Levels
    bids: Levels
    ts: Milliseconds
    seq: Id = NO_SEQ


class BookPush(msgspec.Struct, gc=False):
    data: list[Book]
    ts: Milliseconds


class Deal(msgspec.Struct, gc=False):
    """trade. side: the taker's."""

    ts: Milliseconds
    price: Amount
    size: Amount
    side: Literal["buy", "sell"]
    tradeId: Id


class DealPush(msgspec.Struct, gc=False):
    """trade: newest first."""

    data: list[Deal]
    ts: Milliseconds


class Arg(msgspec.Struct):
    """What a push or an answer is about. topic: the v3 protocol's name of a channel."""

    instType: str = ""
    channel: str = ""
    instId: str = ""
    topic: str = ""


class Envelope(msgspec.Struct):
    """The outermost object of any text frame, data unread."""

    action: str = ""
    event: str = ""
    op: str = ""
    arg: Arg | None = None
    code: int | str = ""
    msg: str = ""


read_books = decoder(BookPush)
read_deals = decoder(DealPush)
read_envelope = msgspec.json.Decoder(Envelope).decode
