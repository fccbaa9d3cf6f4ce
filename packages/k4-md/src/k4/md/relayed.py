"""Arbitration of records that another gateway published: the same rules, on packed bytes.

A session (one start of one sender) is a line. Its records are copied as they are, so a store here
equals the sender's, `local_time_us` included: that is when the sending gateway's transport had the
frame, on the sending host's clock. How long the hop took is the datagram's send time against this
host's clock; a strategy that wants the age of a price needs both clocks disciplined, as it needs
them against the venue's.

What a session sends in order was judged by its sender already. So while a session is the one that
published last, a smaller id in sequence is the sender's reset and opens a generation at once. That
holds for quotes and books. A sender publishes trades as the union of its lines, late ones after
newer ones, so a smaller trade id is a reset only if its trade is newer than the newest.

Between sessions the arbiter's own rules hold: the newest quote wins, trades are taken once within
the window, a reset of a session that did not publish last is proved by time. A session that begins
with smaller ids may be a sender that was started again after a reset, or one that lags; where the
records have no time it proves something only when the last publisher is dead.
"""

from __future__ import annotations

from typing import Any

from k4.core.enums import Kind, Venue
from k4.core.ring import Lane
from k4.core.window import WINDOW_IDS, Verdict
from k4.md import resets
from k4.md.arbiter import Arbiter
from k4.md.fallen import TRADES
from k4.md.feed import Channel, Control, Ids, Reset
from k4.md.port import Port
from k4.md.slots import Slot

_EVENT_US, _TRADE_US = 5, 6  # 8-byte words of every record
_ID = {Kind.BOOKTICKER: 7, Kind.TRADE: 7, Kind.AGGTRADE: 9, Kind.DEPTH5: 7}
_TOP = slice(64, 280)  # of a Depth5: levels, prices, volumes, counts
_BYBIT_HASHED = (1, 3)  # product types whose trade ids are hashes of UUIDs
_U64 = (1 << 64) - 1

LIVE_NS = 3_000_000_000
"""A session that was heard within this, three heartbeats, is alive."""

Owner = tuple[int, int]
"""Venue code and product type of the channels that may write a cell."""


class Cell:
    """One (store, symbol): its lane, who owns it, and who published last.

    owner: the first channel that brought the symbol; None before. slot: None until then. conflicts:
    records of other owners that were not published. publisher: the line that published last, in
    which generation.
    """

    __slots__ = (
        "conflicts",
        "generation",
        "kind",
        "lane",
        "number",
        "owner",
        "publisher",
        "slot",
        "store",
        "symbol",
    )

    def __init__(self, kind: Kind, symbol: str, store: str, lane: Lane, number: int) -> None:
        self.kind = kind
        self.symbol = symbol
        self.store = store
        self.lane = lane
        self.number = number
        self.slot: Slot | None = None
        self.owner: Owner | None = None
        self.publisher: RelayedPort | None = None
        self.generation = 0
        self.conflicts = 0

    def claim(self, arbiter: Arbiter, owner: Owner, has_time: bool, now_ns: int) -> Slot:
        """Make the slot for the records of `owner`; what an attached store holds is taken over."""
        trades = self.kind in TRADES
        timed = trades or has_time
        channel = Channel(
            slot=self.number,
            kind=self.kind,
            symbol=self.symbol,
            topic=self.store,
            ids=_ids(self.kind, owner),
            reset=Reset.NEWER_TIME if timed else Reset.SILENCE,
        )
        window_ns = int(arbiter.limits.trade_window * 1e9)
        slot = Slot(channel, self.lane, owner[1], window_ns, shared=False)
        slot.advance_ns = now_ns
        if channel.ids is Ids.UNORDERED:
            _seed(slot)
        self.owner = owner
        self.slot = arbiter.slots[self.number] = slot
        return slot


def _ids(kind: Kind, owner: Owner) -> Ids:
    """What ids tell here. Gaps are counted by the datagrams' sequences, which miss nothing."""
    if kind not in TRADES:
        return Ids.NEWEST
    venue, product_type = owner
    if venue == Venue.BYBIT:
        return Ids.UNORDERED if product_type in _BYBIT_HASHED else Ids.RISING
    return Ids.RISING if venue in Venue.__members__.values() else Ids.UNORDERED


def _seed(slot: Slot) -> None:
    """Remember the hashed ids that an attached store holds."""
    lane, window = slot.lane, slot.window
    assert window is not None
    for i in range(max(0, lane.next - min(lane.size, WINDOW_IDS)), lane.next):
        word = (lane.base + i % lane.size * lane.stride) // 8
        us = lane.words[word + _TRADE_US] or lane.words[word + _EVENT_US]
        window.offer(lane.words[word + _ID[slot.kind]] & _U64, us, 0)


def _no_control(event: Control) -> None:
    """Datagrams carry no control events."""


class RelayedPort(Port):
    """One session's way into the arbiter, for records that are packed already.

    The values that a `Port` passes around are one element here: the record's bytes.

    heard_ns: when anything of the session last came, heartbeats included. behind: slots on which it
    has brought nothing but ids below the last.
    """

    __slots__ = ("behind", "heard_ns")

    def __init__(self, arbiter: Arbiter, name: str) -> None:
        super().__init__(arbiter, name, 0, _no_control)
        self.heard_ns = 0
        self.behind: set[int] = set()

    @property
    def serves(self) -> bool:
        """Whether the session is alive, as far as its heartbeats tell."""
        return self.arbiter.ticked_ns - self.heard_ns < LIVE_NS

    @property
    def answers(self) -> bool:
        return True

    def ask(self) -> bool:
        """A sender cannot be asked; it says every second that it is there."""
        return True

    def answered(self, since_ns: int) -> bool:
        """Whether it has been heard since then."""
        return self.heard_ns > since_ns

    def publish(self, s: Slot, id: int, values: tuple[Any, ...], local_ns: int) -> None:
        """Copy one record into its lane; `local_ns` is the record's own and not looked at."""
        lane = s.lane
        i = lane.next
        at = lane.base + i % lane.size * lane.stride
        lane.buffer[at : at + lane.stride] = values[0]
        lane.words[lane.index_word] = i
        lane.next = i + 1
        total = lane.total
        total.value = lane.words[0] = total.value + 1
        self.wins += 1
        if s.taps:
            self._tell(s)

    def publish_book(self, s: Slot, id: int, values: tuple[Any, ...], local_ns: int) -> None:
        """Publish a book if its top differs from the last published."""
        if not s.lane.next or s.lane.newest()[_TOP] != values[0][_TOP]:
            self.publish(s, id, values, local_ns)

    def offer(self, cell: Cell, s: Slot, record: memoryview, in_order: bool) -> None:
        """Judge one record. in_order: its sequence is above all that the session brought of this
        slot before."""
        words = record.cast("Q")
        id = words[_ID[cell.kind]]
        us = words[_TRADE_US] or words[_EVENT_US]
        self.seen[s.slot] = self.now
        leads = in_order and cell.publisher is self and cell.generation == s.generation
        self.heard_ns = self.now
        if cell.kind in TRADES:
            published = self._offer_trade(s, id, us, record, leads)
        else:
            published = self._offer_quote(cell, s, id, us, record, leads, in_order)
        if published:
            cell.publisher = self
            cell.generation = s.generation

    def _offer_quote(
        self,
        cell: Cell,
        s: Slot,
        id: int,
        us: int,
        record: memoryview,
        leads: bool,
        in_order: bool,
    ) -> bool:
        if not in_order and id != s.last:  # overtaken on its way by what its sender said later
            self.stale += 1
            return False
        if leads and id != s.last:
            if id < s.last:
                self._open(s, id, us)
        elif id < s.last and self._lags(cell, s, id):
            self.stale += 1
            return False
        elif (s.gate or id <= s.last) and not resets.newer(self, s, id, us, (bytes(record),)):
            return False
        self.behind.discard(s.slot)
        self.own[s.slot] = s.last = id
        s.advance_ns = self.now
        if s.kind is Kind.DEPTH5:
            self.publish_book(s, id, (record,), 0)
        else:
            self.publish(s, id, (record,), 0)
        return True

    def _offer_trade(self, s: Slot, id: int, us: int, record: memoryview, leads: bool) -> bool:
        ordered = s.channel.ids is Ids.RISING
        if leads and ordered and id < s.last and us > s.time_us:
            self._open(s, id, us)
            taken = s.verdict(id, id, id, id, self.now) is Verdict.NEW
        else:
            # A copy of the record: what cannot be judged yet is kept longer than the datagram.
            taken = resets.fresh(self, s, id, id, us, (bytes(record),), id)
        if not taken:
            return False
        self.own[s.slot] = id
        if id > s.last or not ordered:
            s.last = id
            s.time_us = us
            s.advance_ns = self.now
        self.publish(s, id, (record,), 0)
        return True

    def _lags(self, cell: Cell, s: Slot, id: int) -> bool:
        """Whether a session without times that began below the last id proves nothing yet."""
        slot = s.slot
        if s.channel.reset is not Reset.SILENCE:
            return False
        if self.own[slot] < 0 and (not s.gate or self.generation[slot] == s.generation):
            self.behind.add(slot)
        if slot not in self.behind:
            return False
        publisher = cell.publisher
        if publisher is not None and self.now - publisher.heard_ns < LIVE_NS:
            self.own[slot] = id
            return True
        self.behind.discard(slot)
        self.own[slot] = s.last  # as if it had followed the dead one: now its ids have dropped
        return False

    def _open(self, s: Slot, id: int, us: int) -> None:
        """The sender's ids began anew."""
        s.open_generation(us, id)
        self.generation[s.slot] = s.generation
        self.fallen.pop(s.slot, None)
        self.arbiter.on_reset(s)
