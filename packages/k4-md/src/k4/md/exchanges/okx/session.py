"""OKX's public channels: text frames to values.

The first bytes of a push (`{"arg":{"channel":"bbo-tbt","instId":"BTC-USDT"}`) are known before it
arrives, so one dictionary look-up names slot and decoder. What does not begin so, or does not
decode, is taken apart in full, whatever its key order and however its levels have grown.

Prices, sizes, counts, ids and times are quoted, `seqId` is not; `strict=False` reads both. Levels
are `[price, size, "0", orders]`. Sizes are contracts on swaps. `ts` stands for both times of a
record; for `bbo-tbt` it is the time of the push. Books are always whole: `bbo-tbt` and `books5`
have neither `action` nor checksum. Source: API guide, "Order book channel", "Trades channel", "All
trades channel"; captured frames of 2026-08.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Generic, Literal, TypeVar

import msgspec

from k4.core.enums import Kind
from k4.md.feed import Ack, Channel, Control, Heartbeat, Notice, Refused, Sink
from k4.md.figures import UNREADABLE, Amount, Id, Milliseconds, decoder, reason_of

_T = TypeVar("_T")
_MOST_ORDERS = 2**31 - 1  # counts of a record are i32

_Orders = Annotated[int, msgspec.Meta(ge=0, le=_MOST_ORDERS)]
_Level = tuple[Amount, Amount, Amount, _Orders]
_AnyLevel = Annotated[tuple[Amount, ...], msgspec.Meta(min_length=2)]


class Book(msgspec.Struct, Generic[_T], gc=False):
    """bbo-tbt and books5: sides best first, one of them or both may be empty."""

    asks: list[_T]
    bids: list[_T]
    ts: Milliseconds
    seqId: Id = 0
    instId: str = ""


class Deal(msgspec.Struct, gc=False):
    """trades and trades-all. tradeId: the last of the fills that `count` merged into one."""

    tradeId: Id
    px: Amount
    sz: Amount
    side: Literal["buy", "sell"]
    ts: Milliseconds
    count: Annotated[int, msgspec.Meta(ge=1)] = 1
    instId: str = ""


class Push(msgspec.Struct, Generic[_T], gc=False):
    """What surrounds data; its `arg` was read from the frame's first bytes."""

    data: list[_T]


class Arg(msgspec.Struct):
    channel: str = ""
    instId: str = ""


class Envelope(msgspec.Struct):
    """Any text frame in full."""

    event: str = ""
    arg: Arg | None = None
    data: msgspec.Raw = msgspec.Raw()
    action: str = ""
    id: str = ""
    code: str | int = ""
    msg: str = ""


Receive = Callable[[bytes, Sink], None]


_read_books = decoder(Push[Book[_Level]])
_read_deals = decoder(Push[Deal])
_read_any_books = decoder(list[Book[_AnyLevel]])
_read_any_deals = decoder(list[Deal])
_read_envelope = msgspec.json.Decoder(Envelope).decode

PONG = b"pong"
_NO_ORDERS = (0.0, 0.0, 0.0, 0)
_ARG_END = b'"}'
_ARG_FROM = len(b'{"arg":{"channel":"')
_ARG_WITHIN = 120  # longer than any channel and id
_NO_SUCH = re.compile(r"channel:\s*([^,\s]+)\s*,\s*instId:\s*([^\s,]+)")
_trade_id = attrgetter("tradeId")


def topic_of(channel: str, inst_id: str) -> str:
    """The name of a subscription in acks, refusals and logs: `bbo-tbt:BTC-USDT`."""
    return f"{channel}:{inst_id}"


class OkxSession:
    """One connection; it remembers nothing but what was subscribed."""

    __slots__ = ("_names", "_slots", "_takers")

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._slots = {channel.topic: channel for channel in channels}
        self._names = {channel.topic.partition(":")[0] for channel in channels}
        self._takers = {_beginning(channel.topic): self._taker(channel) for channel in channels}

    def receive(self, frame: bytes, received_ns: int, out: Sink) -> None:
        """One text frame: a push, an answer, or the bare `pong`."""
        take = self._takers.get(frame[: frame.find(_ARG_END, _ARG_FROM, _ARG_WITHIN)])
        if take is not None:
            take(frame, out)
        elif frame == PONG:
            out.control(Heartbeat())
        else:
            self._any(frame, out)

    def _taker(self, channel: Channel) -> Receive:
        """The handler of one channel's pushes."""
        inst_id = channel.topic.partition(":")[2]
        if channel.kind is Kind.TRADE:
            return _taker(_read_deals, _give_deals, channel.slot, inst_id, self._any)
        give = _give_quotes if channel.kind is Kind.BOOKTICKER else _give_books
        return _taker(_read_books, give, channel.slot, inst_id, self._any)

    def _any(self, frame: bytes, out: Sink) -> None:
        try:
            envelope = _read_envelope(frame)
        except UNREADABLE:
            out.drop("malformed")
            return
        event = control_of(envelope)
        if event is not None:
            out.control(event)
        elif envelope.arg is not None and bytes(envelope.data) and not envelope.event:
            self._push(envelope.arg, bytes(envelope.data), out)
        else:
            out.drop("unknown")

    def _push(self, arg: Arg, data: bytes, out: Sink) -> None:
        channel = self._slots.get(topic_of(arg.channel, arg.instId))
        if channel is None:
            out.drop("symbol" if arg.channel in self._names else "stream")
            return
        try:
            if channel.kind is Kind.TRADE:
                _give_deals(channel.slot, arg.instId, _read_any_deals(data), out)
                return
            books = [_usual(book) for book in _read_any_books(data)]
        except (*UNREADABLE, OverflowError) as error:
            out.drop(reason_of(error))
            return
        give = _give_quotes if channel.kind is Kind.BOOKTICKER else _give_books
        give(channel.slot, arg.instId, books, out)


def _taker(
    read: Callable[[bytes], Push[_T]],
    give: Callable[[int, str, Sequence[_T], Sink], None],
    slot: int,
    inst_id: str,
    otherwise: Receive,
) -> Receive:
    """Decode and give; a guess that fails costs time, never a record."""

    def take(frame: bytes, out: Sink) -> None:
        try:
            data = read(frame).data
        except UNREADABLE:
            otherwise(frame, out)
            return
        give(slot, inst_id, data, out)

    return take


def _beginning(topic: str) -> bytes:
    channel, _, inst_id = topic.partition(":")
    return b'{"arg":{"channel":"%s","instId":"%s' % (channel.encode(), inst_id.encode())


# Payloads.


def _give_quotes(slot: int, inst_id: str, data: Sequence[Book[_Level]], out: Sink) -> None:
    for m in data:
        if m.instId and m.instId != inst_id:
            out.drop("symbol")
            continue
        us = m.ts * 1000
        bid, bid_vol, _, bids = m.bids[0] if m.bids else _NO_ORDERS
        ask, ask_vol, _, asks = m.asks[0] if m.asks else _NO_ORDERS
        out.bbo(slot, m.seqId, us, us, bid, bid_vol, ask, ask_vol, bids, asks)
    if not data:
        out.drop("empty")


def _give_books(slot: int, inst_id: str, data: Sequence[Book[_Level]], out: Sink) -> None:
    for m in data:
        if m.instId and m.instId != inst_id:
            out.drop("symbol")
            continue
        us = m.ts * 1000
        out.depth(slot, m.seqId, us, us, m.bids, m.asks, _counts(m.bids), _counts(m.asks))
    if not data:
        out.drop("empty")


def _counts(side: Sequence[_Level]) -> tuple[int, ...]:
    """Orders of the best five levels."""
    found = tuple([level[3] for level in side[:5]])
    return found if len(found) == 5 else found + (0,) * (5 - len(found))


def _give_deals(slot: int, inst_id: str, data: Sequence[Deal], out: Sink) -> None:
    if len(data) > 1:
        data = sorted(data, key=_trade_id)  # the order of a batch is not documented
    for m in data:
        if m.instId and m.instId != inst_id:
            out.drop("symbol")
            continue
        id, us = m.tradeId, m.ts * 1000
        first = id - m.count + 1
        out.trade(slot, id, first if first >= 0 else id, us, us, m.px, m.sz, m.side == "sell")
    if not data:
        out.drop("empty")


def _usual(book: Book[_AnyLevel]) -> Book[_Level]:
    """The same with levels of four; raises OverflowError for a count that no record holds."""
    return Book(
        [_four(level) for level in book.asks],
        [_four(level) for level in book.bids],
        book.ts,
        book.seqId,
        book.instId,
    )


def _four(level: tuple[float, ...]) -> _Level:
    orders = int(level[3]) if len(level) > 3 else 0
    if orders > _MOST_ORDERS:
        raise OverflowError("more orders than a record counts")
    return level[0], level[1], 0.0, orders


# Answers.


def control_of(envelope: Envelope) -> Control | None:
    """The event that a frame announces, None where it is none.

    A refusal names its arg in words alone (code 60018); what names none concerns its request.
    """
    match envelope.event:
        case "subscribe" | "unsubscribe" if envelope.arg is not None:
            topic = topic_of(envelope.arg.channel, envelope.arg.instId)
            return Ack(request=envelope.id, topic=topic)
        case "error":
            return Refused(
                str(envelope.code), envelope.msg, request=envelope.id, topic=_topic(envelope)
            )
        case "notice":
            return Notice(f"{envelope.msg} [{envelope.code}]")
    return None


def _topic(envelope: Envelope) -> str:
    if envelope.arg is not None:
        return topic_of(envelope.arg.channel, envelope.arg.instId)
    named = _NO_SUCH.search(envelope.msg)
    return topic_of(*named.groups()) if named else ""
