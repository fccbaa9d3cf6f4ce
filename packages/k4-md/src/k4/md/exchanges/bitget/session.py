"""Bitget's classic v2 public channels: text frames to values.

A push begins with its action and its arg, so the bytes up to the arg's end are known before it
arrives, and one dictionary look-up names its taker. What begins differently is taken apart in full,
whatever its key order.

A `snapshot` of trades is history, sent after every subscription: its ids only tell what is none.
Books of recordings before 2025-04-30 have no `seq`, so nothing can be said of their order: they are
dropped as `id`. Frames of the v3 protocol, which this socket does not speak, are dropped as `v3`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from k4.core.enums import Kind
from k4.md.exchanges.bitget.payloads import NO_SEQ, Arg, Envelope, read_books, read_deals
from k4.md.exchanges.bitget.payloads import read_envelope as read_any
from k4.md.feed import Ack, Channel, Heartbeat, Refused, Sink
from k4.md.figures import UNREADABLE, reason_of

CHANNELS = {Kind.BOOKTICKER: "books1", Kind.TRADE: "trade", Kind.DEPTH5: "books5"}
SNAPSHOT, UPDATE = "snapshot", "update"

PONG = b"pong"
_ARG_FROM = len(b'{"action":"update","arg":{')
_ARG_WITHIN = 200  # longer than any action and arg
_NOTHING = (0.0, 0.0)

Take = Callable[[bytes, Sink], None]


def topic_of(inst_type: str, channel: str, inst_id: str) -> str:
    """The name of a subscription in acks, refusals and logs: `SPOT:books1:BTCUSDT`."""
    return f"{inst_type}:{channel}:{inst_id}"


# -- one taker for each channel and action ---------------------------------------------------------


def quotes(slot: int) -> Take:
    """books1."""

    def take(frame: bytes, out: Sink) -> None:
        try:
            m = read_books(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        event = m.ts * 1000
        for d in m.data:
            if d.seq == NO_SEQ:
                out.drop("id")
                continue
            bid, bid_vol = d.bids[0] if d.bids else _NOTHING
            ask, ask_vol = d.asks[0] if d.asks else _NOTHING
            out.bbo(slot, d.seq, event, d.ts * 1000, bid, bid_vol, ask, ask_vol, 0, 0)

    return take


def books(slot: int) -> Take:
    """books5: whole books."""

    def take(frame: bytes, out: Sink) -> None:
        try:
            m = read_books(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        event = m.ts * 1000
        for d in m.data:
            if d.seq == NO_SEQ:
                out.drop("id")
            else:
                out.depth(slot, d.seq, event, d.ts * 1000, d.bids, d.asks)

    return take


def deals(slot: int) -> Take:
    """trade, as it happens; the venue puts the newest first."""

    def take(frame: bytes, out: Sink) -> None:
        try:
            m = read_deals(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        event = m.ts * 1000
        for d in reversed(m.data):
            id = d.tradeId
            out.trade(slot, id, id, event, d.ts * 1000, d.price, d.size, d.side == "sell")

    return take


def history(slot: int) -> Take:
    """trade, as it happened before the subscription."""

    def take(frame: bytes, out: Sink) -> None:
        try:
            m = read_deals(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        for d in reversed(m.data):
            out.seed(slot, d.tradeId)

    return take


_MAKERS: dict[Kind, dict[str, Callable[[int], Take]]] = {
    Kind.BOOKTICKER: {SNAPSHOT: quotes},
    Kind.TRADE: {SNAPSHOT: history, UPDATE: deals},
    Kind.DEPTH5: {SNAPSHOT: books},
}


# -- the session -----------------------------------------------------------------------------------


class BitgetSession:
    """One connection; it remembers nothing but what was subscribed."""

    __slots__ = ("_names", "_takers", "_topics")

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._names = {name_of(channel) for channel in channels}
        self._topics: dict[tuple[str, str], Take] = {}
        self._takers: dict[bytes, Take] = {}
        for channel in channels:
            for action, make in _MAKERS[channel.kind].items():
                take = make(channel.slot)
                self._topics[channel.topic, action] = take
                self._takers[_beginning(channel.topic, action)] = take

    def receive(self, frame: bytes, received_ns: int, out: Sink) -> None:
        """One text frame: a push, an answer, or the bare `pong`."""
        take = self._takers.get(frame[: frame.find(b"}", _ARG_FROM, _ARG_WITHIN)])
        if take is not None:
            take(frame, out)
        elif frame == PONG:
            out.control(Heartbeat())
        else:
            self._any(frame, out)

    def _any(self, frame: bytes, out: Sink) -> None:
        """Any JSON frame, in any key order."""
        try:
            m = read_any(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        if m.event:
            _answer(m, out)
        elif m.arg is None or not m.action:
            out.drop("unknown")
        elif m.arg.topic:
            out.drop("v3")
        else:
            take = self._topics.get((_topic(m.arg), m.action))
            if take is not None:
                take(frame, out)
            else:
                out.drop(self._why_not(m.arg))

    def _why_not(self, arg: Arg) -> str:
        """Why nothing takes a push."""
        if arg.channel not in self._names:
            return "topic"
        known = any(topic == _topic(arg) for topic, _ in self._topics)
        return "action" if known else "symbol"


def name_of(channel: Channel) -> str:
    """The venue's channel in a topic."""
    return channel.topic.split(":")[1]


def _beginning(topic: str, action: str) -> bytes:
    inst_type, channel, inst_id = topic.split(":", 2)
    return (
        f'{{"action":"{action}","arg":{{"instType":"{inst_type}","channel":"{channel}",'
        f'"instId":"{inst_id}"'
    ).encode()


def _topic(arg: Arg) -> str:
    return topic_of(arg.instType, arg.channel, arg.instId)


def _answer(m: Envelope, out: Sink) -> None:
    """One answer comes for each arg. What concerns an unsubscription is nobody's business: the
    subscription that follows it is answered, too.
    """
    topic = _topic(m.arg) if m.arg is not None else ""
    if m.event == "subscribe":
        out.control(Ack(topic=topic))
    elif m.event == "error" and m.op != "unsubscribe":
        out.control(Refused(str(m.code), m.msg, topic=topic))
    elif m.event not in ("error", "unsubscribe"):
        out.drop("unknown")
