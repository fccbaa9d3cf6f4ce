"""Binance's JSON market data, spot and futures: text frames to values.

The shape of a frame is guessed by a cheap look and proved by a typed decode. A socket of one kind
needs no look. On a mixed one, the first bytes of a combined frame
(`{"stream":"btcusdt@bookTicker","data":{"`) are known before it arrives, so one dictionary look-up
names the decoder; measured on CPython 3.11 that is 65 ns, against 85 for a search for the `@` and
170 for a substring test. A guess that fails costs time, never a record: the frame is then taken
apart in full, whatever its key order.

The symbol is `s` where the payload has one. Books are placed by the stream's name: spot books carry
no symbol, and futures books look like the diff stream's, which must never be taken for full ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from k4.core.enums import Kind
from k4.md.exchanges.binance.control import UNREADABLE, Envelope, Requests, read_envelope
from k4.md.exchanges.binance.payloads import (
    COMBINED,
    COMBINED_BOOK,
    COMBINED_SPOT_BOOK,
    MICROSECONDS_FROM,
    MOST_TRADES,
    RAW,
    RAW_BOOK,
    RAW_SPOT_BOOK,
    Aggregate,
    Book,
    Codec,
    Combined,
    Deal,
    Named,
    Quote,
    SpotBook,
    reason_of,
)
from k4.md.feed import Channel, Sink

_HEAD = b'{"stream":"'
_DATA = b'","data":{"'

Receive = Callable[[bytes, int, Sink], None]
Otherwise = Callable[[bytes, int, Sink, Exception], None]
Slots = Mapping[str, int]


# -- handlers --------------------------------------------------------------------------------------
# One decoder each, everything of a frame in one call. Their common skeleton is written out three
# times on purpose: sharing it would cost every message one more call (about 40 of 450 ns).


def quotes(
    decode: Callable[[bytes], Combined[Quote]], slots: Slots, otherwise: Otherwise
) -> Receive:
    def receive(frame: bytes, received_ns: int, out: Sink) -> None:
        try:
            m = decode(frame).data
            slot = slots[m.s]
        except KeyError:
            out.drop("symbol")
            return
        except UNREADABLE as error:
            otherwise(frame, received_ns, out, error)
            return
        event, trade = m.E, m.T
        if event and event < MICROSECONDS_FROM:  # spot sends none
            event *= 1000
        if trade and trade < MICROSECONDS_FROM:
            trade *= 1000
        out.bbo(slot, m.u, event, trade, m.b, m.B, m.a, m.A, 0, 0)

    return receive


def deals(decode: Callable[[bytes], Combined[Deal]], slots: Slots, otherwise: Otherwise) -> Receive:
    def receive(frame: bytes, received_ns: int, out: Sink) -> None:
        try:
            m = decode(frame).data
            slot = slots[m.s]
        except KeyError:
            out.drop("symbol")
            return
        except UNREADABLE as error:
            otherwise(frame, received_ns, out, error)
            return
        if m.X == "NA":
            out.skip(slot, m.t)
            return
        event, trade = m.E, m.T
        if event < MICROSECONDS_FROM:
            event *= 1000
        if trade < MICROSECONDS_FROM:
            trade *= 1000
        out.trade(slot, m.t, m.t, event, trade, m.p, m.q, m.m)

    return receive


def aggregates(
    decode: Callable[[bytes], Combined[Aggregate]], slots: Slots, otherwise: Otherwise
) -> Receive:
    def receive(frame: bytes, received_ns: int, out: Sink) -> None:
        try:
            m = decode(frame).data
            slot = slots[m.s]
        except KeyError:
            out.drop("symbol")
            return
        except UNREADABLE as error:
            otherwise(frame, received_ns, out, error)
            return
        if not 0 <= m.l - m.f < MOST_TRADES:
            out.drop("malformed")
            return
        event, trade = m.E, m.T
        if event < MICROSECONDS_FROM:
            event *= 1000
        if trade < MICROSECONDS_FROM:
            trade *= 1000
        out.agg(slot, m.a, m.f, m.l, event, trade, m.p, m.q, m.m)

    return receive


def mixed(channels: Sequence[Channel], takers: Mapping[Kind, Receive], slow: Receive) -> Receive:
    """The handler of combined frames of several kinds: a look at the first bytes, then theirs.

    As many bytes as the shortest topic makes certain are looked up; a topic that does not fit into
    them whole is found by its closing quote.
    """
    texts = {_HEAD + c.topic.encode() + _DATA: takers[c.kind] for c in channels}
    width = min(map(len, texts), default=0)
    prefixes = {t[:width]: take for t, take in texts.items() if len(t) - len(_DATA) < width}
    names = {t[len(_HEAD) : -len(_DATA)]: take for t, take in texts.items()}
    start = len(_HEAD)
    stop = max(map(len, texts), default=0)

    def named(frame: bytes) -> Receive:
        if not frame.startswith(_HEAD):
            return slow
        return names.get(frame[start : frame.find(b'"', start, stop)], slow)

    def receive(frame: bytes, received_ns: int, out: Sink) -> None:
        take = prefixes.get(frame[:width]) or named(frame)
        take(frame, received_ns, out)

    return receive


class Books:
    """Full top-five books, placed by the name of their stream."""

    def __init__(self, topics: Mapping[str, int], slots: Slots, *, spot: bool) -> None:
        self._topics = dict(topics)
        self._slots = slots
        self._decode: Callable[[bytes], Named[Book] | Named[SpotBook]]
        self._decode_raw: Callable[[bytes], Book | SpotBook]
        if spot:
            self._decode, self._decode_raw = COMBINED_SPOT_BOOK, RAW_SPOT_BOOK
        else:
            self._decode, self._decode_raw = COMBINED_BOOK, RAW_BOOK

    def receiver(self, otherwise: Otherwise) -> Receive:
        """The handler of combined frames."""
        decode, give = self._decode, self._give

        def receive(frame: bytes, received_ns: int, out: Sink) -> None:
            try:
                m = decode(frame)
            except UNREADABLE as error:
                otherwise(frame, received_ns, out, error)
                return
            give(m.stream, m.data, out)

        return receive

    def receive_named(self, stream: str, payload: bytes, out: Sink) -> None:
        """A payload already unwrapped."""
        try:
            book = self._decode_raw(payload)
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        self._give(stream, book, out)

    def _give(self, stream: str, m: Book | SpotBook, out: Sink) -> None:
        slot = self._topics.get(stream)
        if slot is None:
            out.drop("stream" if "@" not in stream else _why_not(stream))
            return
        if m.s and self._slots.get(m.s) != slot:
            out.drop("symbol")
            return
        event, trade = m.E, m.T
        if event < MICROSECONDS_FROM:
            event *= 1000
        if trade < MICROSECONDS_FROM:
            trade *= 1000
        out.depth(slot, m.u, event, trade, m.b, m.a)


def _why_not(stream: str) -> str:
    """Why a book's stream is not ours: another symbol's, or no stream of full books."""
    return "symbol" if stream.partition("@")[2] in BOOK_SUFFIXES else "stream"


def drop(frame: bytes, received_ns: int, out: Sink, error: Exception) -> None:
    """The end of the line for a frame that nothing can read."""
    out.drop(reason_of(error))


# -- the session -----------------------------------------------------------------------------------

BOOK_SUFFIXES = ("depth5", "depth5@100ms", "depth5@250ms", "depth5@500ms")
_KIND_BY_SUFFIX = {
    "bookTicker": Kind.BOOKTICKER,
    "trade": Kind.TRADE,
    "aggTrade": Kind.AGGTRADE,
    **dict.fromkeys(BOOK_SUFFIXES, Kind.DEPTH5),
}
_KIND_BY_EVENT = {
    "bookTicker": Kind.BOOKTICKER,
    "trade": Kind.TRADE,
    "aggTrade": Kind.AGGTRADE,
}
_KIND_BY_START = {
    b'{"e":"b': Kind.BOOKTICKER,
    b'{"e":"t': Kind.TRADE,
    b'{"e":"a': Kind.AGGTRADE,
}


class JsonSession:
    """One JSON connection; it remembers nothing.

    symbols: the venue's spelling by slot. combined: the form that the connection was asked for;
    the other is read too, at a lower speed.
    """

    __slots__ = ("_books", "_control_of", "_last", "_raw", "receive")

    def __init__(
        self,
        channels: Sequence[Channel],
        symbols: Mapping[int, str],
        requests: Requests,
        *,
        spot: bool,
        combined: bool = True,
    ) -> None:
        self._control_of = requests.control_of
        slots: dict[Kind, dict[str, int]] = {kind: {} for kind in Kind}
        for channel in channels:
            slots[channel.kind][symbols[channel.slot]] = channel.slot
        kinds = {channel.kind for channel in channels}
        books = [c for c in channels if c.kind is Kind.DEPTH5]
        self._books = Books(_book_names(books), slots[Kind.DEPTH5], spot=spot)
        self._last = _handlers(RAW, slots, drop)
        self._raw = _handlers(RAW, slots, self._sort_out)
        takers = _handlers(COMBINED, slots, self._sort_out)
        takers[Kind.DEPTH5] = self._books.receiver(self._sort_out)
        self.receive: Receive
        if len(kinds) == 1:
            self.receive = (takers if combined else self._raw).get(kinds.pop(), self._any)
        else:
            self.receive = mixed(channels, takers, self._any) if combined else self._bare

    def _bare(self, frame: bytes, received_ns: int, out: Sink) -> None:
        kind = _KIND_BY_START.get(frame[:7])
        if kind is None:
            if not frame.startswith(b'{"u":'):
                self._any(frame, received_ns, out)
                return
            kind = Kind.BOOKTICKER
        self._raw[kind](frame, received_ns, out)

    def _sort_out(self, frame: bytes, received_ns: int, out: Sink, error: Exception) -> None:
        """A frame that is not what it looked like."""
        self._any(frame, received_ns, out)

    def _any(self, frame: bytes, received_ns: int, out: Sink) -> None:
        """Any text frame, in any form and key order."""
        try:
            envelope = read_envelope(frame)
            payload = bytes(envelope.data)
            inner = read_envelope(payload) if payload else envelope
        except UNREADABLE as error:
            out.drop(reason_of(error))
            return
        event = self._control_of(envelope)
        if event is not None:
            out.control(event)
        elif payload:
            self._payload(envelope.stream, payload, inner, received_ns, out)
        else:
            self._payload("", frame, inner, received_ns, out)

    def _payload(
        self, stream: str, payload: bytes, inner: Envelope, received_ns: int, out: Sink
    ) -> None:
        if stream:
            kind = _KIND_BY_SUFFIX.get(stream.partition("@")[2])
        elif inner.e:
            kind = _KIND_BY_EVENT.get(inner.e)
        else:
            kind = Kind.BOOKTICKER if bytes(inner.B) else None
        if kind is Kind.DEPTH5:
            self._books.receive_named(stream, payload, out)
        elif kind is not None:
            self._last[kind](payload, received_ns, out)
        elif stream or inner.e == "depthUpdate" or bytes(inner.lastUpdateId):
            out.drop("stream")
        else:
            out.drop("unknown")


def _handlers(
    codec: Codec, slots: Mapping[Kind, Slots], otherwise: Otherwise
) -> dict[Kind, Receive]:
    return {
        Kind.BOOKTICKER: quotes(codec.quote, slots[Kind.BOOKTICKER], otherwise),
        Kind.TRADE: deals(codec.deal, slots[Kind.TRADE], otherwise),
        Kind.AGGTRADE: aggregates(codec.aggregate, slots[Kind.AGGTRADE], otherwise),
    }


def _book_names(books: Sequence[Channel]) -> dict[str, int]:
    """Every name under which the venue may send the subscribed books."""
    return {
        f"{channel.topic.partition('@')[0]}@{suffix}": channel.slot
        for channel in books
        for suffix in BOOK_SUFFIXES
    }
