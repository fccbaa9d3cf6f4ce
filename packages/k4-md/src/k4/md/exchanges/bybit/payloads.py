"""The payloads of Bybit's v5 public topics, typed, and the decoders that read them.

Prices and sizes are quoted, times and `u` are not. `cts`, `seq` and `RPI` are younger than the
topics, so they may lack; `seq`, `L`, `BT` and `RPI` name nothing that a record holds: block and
retail price improvement trades are trades like any other. Sources: bybit-exchange/docs,
`docs/v5/websocket/public/*` (2026-07-24); captured frames of 2023-04 to 2026-08.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

import msgspec

from k4.md.figures import Amount, Id, Levels, Milliseconds, decoder

_T = TypeVar("_T")
# 36 characters; bounded since a window keeps them, and no closer, since nothing reads their parts.
_Uuid = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Update(msgspec.Struct, gc=False):
    """A snapshot or a delta of any depth. b: descending, a: ascending; size 0 in a delta deletes.

    s: symbol. u: update id of this topic and depth.
    """

    s: str
    b: Levels
    a: Levels
    u: Id


class UpdatePush(msgspec.Struct, gc=False):
    """orderbook.1 and orderbook.50. ts: when the venue sent it; cts: when the engine did it."""

    type: Literal["snapshot", "delta"]
    ts: Milliseconds
    data: Update
    cts: Milliseconds = 0


class Deal(msgspec.Struct, Generic[_T], gc=False):
    """publicTrade. i: a number on spot, a UUID on linear and inverse. S: the taker's side."""

    T: Milliseconds
    s: str
    S: Literal["Buy", "Sell"]
    v: Amount
    p: Amount
    i: _T


class DealPush(msgspec.Struct, Generic[_T], gc=False):
    """publicTrade: 1 to 1024 trades, oldest first."""

    ts: Milliseconds
    data: list[Deal[_T]]


class Envelope(msgspec.Struct):
    """The outermost object of any text frame, data unread."""

    topic: str = ""
    op: str = ""
    success: bool | None = None
    ret_msg: str = ""
    req_id: str | int = ""


read_book = decoder(UpdatePush)
read_numbered_deals = decoder(DealPush[Id])
read_named_deals = decoder(DealPush[_Uuid])
read_envelope = msgspec.json.Decoder(Envelope).decode
