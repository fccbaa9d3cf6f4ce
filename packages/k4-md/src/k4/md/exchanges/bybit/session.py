"""Bybit's v5 public topics: text frames to values.

A push begins with `{"topic":"` whatever its category, so the bytes up to the next quote name the
one taker of the frame; the order of the other keys, which differs by category, does not matter to
a typed decode. What begins differently is taken apart in full.

Books are kept per connection: two lines never share one, and what they publish is merged behind
them by `u`. Block and retail price improvement trades are published like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from xxhash import xxh64_intdigest

from k4.core.enums import Kind
from k4.md.book import Book, BookBroken
from k4.md.exchanges.bybit.payloads import (
    Envelope,
    Update,
    read_book,
    read_envelope,
    read_named_deals,
    read_numbered_deals,
)
from k4.md.feed import Ack, Broken, Channel, Heartbeat, Refused, Sink
from k4.md.figures import UNREADABLE, Levels, reason_of

LEVELS = 50
TOPICS = {
    Kind.BOOKTICKER: "orderbook.1",
    Kind.TRADE: "publicTrade",
    Kind.DEPTH5: f"orderbook.{LEVELS}",
}

_TOPIC_FROM = len(b'{"topic":"')
_TOPIC_WITHIN = 120  # longer than any topic
_RESTARTED = 1  # the `u` of a full snapshot after a restart of the service, whatever its type
_NOTHING = (0.0, 0.0)
_KNOWN = tuple(f"{name}." for name in TOPICS.values())

Take = Callable[[bytes, Sink], None]


class Taker(Protocol):
    """Who reads the frames of one topic."""

    def receive(self, frame: bytes, out: Sink) -> None: ...


def topic_of(kind: Kind, symbol: str) -> str:
    """The venue's name of a subscription: `orderbook.1.BTCUSDT`."""
    return f"{TOPICS[kind]}.{symbol}"


def symbol_of(channel: Channel) -> str:
    """The venue's symbol in a channel's topic."""
    return channel.topic.removeprefix(f"{TOPICS[channel.kind]}.")


class Quotes:
    """orderbook.1 of one symbol.

    The venue sends snapshots only. The deltas of its former protocol are still read: they change a
    book as deep as the last snapshot; jumps of `u` are its merging, so nothing is broken by them.
    """

    __slots__ = ("_base", "_book", "_broken", "_slot", "_symbol")

    def __init__(self, slot: int, symbol: str) -> None:
        self._slot = slot
        self._symbol = symbol
        self._base: Update | None = None
        self._book: Book | None = None
        self._broken = False  # and told so

    def receive(self, frame: bytes, out: Sink) -> None:
        try:
            m = read_book(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        d = m.data
        if d.s != self._symbol:
            out.drop("symbol")
            return
        bids, asks = d.b, d.a
        if m.type == "snapshot" or d.u == _RESTARTED:
            self._base = d
            self._book = None
        else:
            changed = self._changed(d, out)
            if changed is None:
                return
            bids, asks = changed
        bid, bid_vol = bids[0] if bids else _NOTHING
        ask, ask_vol = asks[0] if asks else _NOTHING
        event = m.ts * 1000
        trade = m.cts * 1000 or event
        out.bbo(self._slot, d.u, event, trade, bid, bid_vol, ask, ask_vol, 0, 0)

    def _changed(self, d: Update, out: Sink) -> tuple[Levels, Levels] | None:
        """The best levels after a delta; None where it has no base or is older than that."""
        base, book = self._base, self._book
        if base is None:
            if self._broken:
                out.drop("broken")
            else:
                self._broken = True
                out.control(Broken(self._slot, f"update {d.u} without a snapshot"))
            return None
        if book is None:
            book = self._book = Book(max(len(base.b), len(base.a), 1))
            book.snapshot(base.u, base.b, base.a)
        if d.u <= book.id:
            out.drop("stale")
            return None
        book.change(d.b, d.a)
        book.id = d.u
        return book.depth5()


class Depths:
    """orderbook.50 of one symbol: an incremental book.

    Every applied update is told, whether or not it changed the top: its id proves that nothing is
    missing. A hole is told once; then everything is dropped until the snapshot of the new
    subscription. A delta that is not newer than the book, by id and by time, is a straggler of the
    former subscription and changes nothing.
    """

    __slots__ = ("_book", "_broken", "_ms", "_slot", "_symbol")

    def __init__(self, slot: int, symbol: str) -> None:
        self._slot = slot
        self._symbol = symbol
        self._book = Book(LEVELS)
        self._broken = False  # and told so
        self._ms = 0

    def receive(self, frame: bytes, out: Sink) -> None:
        try:
            m = read_book(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        d, book = m.data, self._book
        if d.s != self._symbol:
            out.drop("symbol")
            return
        ms = m.cts or m.ts
        if m.type == "snapshot" or d.u == _RESTARTED:
            book.snapshot(d.u, d.b, d.a)
            self._broken = False
        elif self._broken:
            out.drop("broken")
            return
        elif d.u <= book.id and ms <= self._ms:
            out.drop("stale")
            return
        else:
            try:
                book.delta(d.u, d.b, d.a)
            except BookBroken as error:
                self._broken = True
                out.control(Broken(self._slot, str(error)))
                return
        self._ms = ms
        out.depth(self._slot, d.u, m.ts * 1000, ms * 1000, *book.depth5())


class NumberedDeals:
    """publicTrade of one spot symbol: ids are numbers."""

    __slots__ = ("_slot", "_symbol")

    def __init__(self, slot: int, symbol: str) -> None:
        self._slot = slot
        self._symbol = symbol

    def receive(self, frame: bytes, out: Sink) -> None:
        try:
            m = read_numbered_deals(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        slot, symbol, event = self._slot, self._symbol, m.ts * 1000
        for d in m.data:
            if d.s == symbol:
                out.trade(slot, d.i, d.i, event, d.T * 1000, d.p, d.v, d.S == "Sell")
            else:
                out.drop("symbol")


class NamedDeals:
    """publicTrade of one derivative: ids are UUIDs, published as their hash and told apart whole.

    The hash is xxHash64, seed 0, of the UUID's text.
    """

    __slots__ = ("_slot", "_symbol")

    def __init__(self, slot: int, symbol: str) -> None:
        self._slot = slot
        self._symbol = symbol

    def receive(self, frame: bytes, out: Sink) -> None:
        try:
            m = read_named_deals(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        slot, symbol, event = self._slot, self._symbol, m.ts * 1000
        for d in m.data:
            if d.s == symbol:
                name = d.i
                id = xxh64_intdigest(name.encode())
                out.trade(slot, id, id, event, d.T * 1000, d.p, d.v, d.S == "Sell", name)
            else:
                out.drop("symbol")


class BybitSession:
    """One connection. requests: the slots that each request of the hello asks for."""

    __slots__ = ("_channels", "_requests", "_takers")

    def __init__(
        self,
        channels: Sequence[Channel],
        requests: Mapping[str, Sequence[Channel]],
        *,
        numbered: bool,
    ) -> None:
        makers: dict[Kind, Callable[[int, str], Taker]] = {
            Kind.BOOKTICKER: Quotes,
            Kind.TRADE: NumberedDeals if numbered else NamedDeals,
            Kind.DEPTH5: Depths,
        }
        self._channels = {channel.topic for channel in channels}
        self._requests = requests
        self._takers: dict[bytes, Take] = {
            c.topic.encode(): makers[c.kind](c.slot, symbol_of(c)).receive for c in channels
        }

    def receive(self, frame: bytes, received_ns: int, out: Sink) -> None:
        """One text frame: a push, or an answer."""
        take = self._takers.get(frame[_TOPIC_FROM : frame.find(b'"', _TOPIC_FROM, _TOPIC_WITHIN)])
        if take is not None:
            take(frame, out)
        else:
            self._any(frame, out)

    def _any(self, frame: bytes, out: Sink) -> None:
        """Any text frame, in any key order."""
        try:
            m = read_envelope(frame)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        if m.topic:
            take = self._takers.get(m.topic.encode())
            if take is not None:
                take(frame, out)
            else:
                out.drop("symbol" if m.topic.startswith(_KNOWN) else "topic")
        elif m.op in ("ping", "pong"):
            out.control(Heartbeat())
        elif m.op == "subscribe" and m.success is not None:
            self._answer(m, m.success, out)
        elif m.op == "unsubscribe" and m.success is not None:
            out.control(Heartbeat())  # an answer that changes nothing here, but a sign of life
        else:
            out.drop("unknown")

    def _answer(self, m: Envelope, success: bool, out: Sink) -> None:
        """One answer to a whole request. That to a later request of one topic, which bears the
        topic's name, is no part of the hello.
        """
        request = str(m.req_id)
        asked = self._requests.get(request, ())
        if success:
            if request in self._requests or request not in self._channels:
                out.control(Ack(request=request))
        elif len(asked) > 1:
            alone = tuple(channel.slot for channel in asked)
            out.control(Refused("", m.ret_msg, request=request, alone=alone))
        elif request in self._channels:
            out.control(Refused("", m.ret_msg, topic=request))
        else:
            out.control(Refused("", m.ret_msg, request=request))
