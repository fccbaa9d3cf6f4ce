"""One line's way into the arbiter: the sink of its sessions, where updates are decided and packed.

The hot path of all market data: from here on there is nothing but the store's bytes. What is not
plainly the newest goes to `resets`, the cold side of arbitration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from k4.core.latency import Histogram
from k4.md import resets
from k4.md.fallen import Fallen
from k4.md.feed import NO_COUNTS, Control, Level
from k4.md.slots import FIRST_NS, MASK, RECENT, WAIT, WINNER, Entry, Slot

if TYPE_CHECKING:
    from k4.md.arbiter import Arbiter

NO_LEVELS = ((0.0, 0.0),) * 5


class Peer(Protocol):
    """Whom a port hears: a line to the venue."""

    def ask(self) -> bool:
        """Ask for an answer behind all data that is on its way; False where that has to wait."""
        ...

    @property
    def answered_ns(self) -> int:
        """When the newest question that was answered was asked, 0 before the first."""
        ...

    @property
    def over(self) -> bool:
        """Whether it will bring nothing any more."""
        ...


class Port:
    """One line's way into the arbiter: its Sink, and what this line has done.

    bit: this line's bit in the masks of entries. serving_ns: since when it is subscribed, 0 while
    it is not. now: wall clock of the frame under way, set by the line before it calls the session;
    copies that are known by their bytes leave it as it is. entry, calls: the update that the frame
    under way stood for, and how often its session called this sink, both set back by the line: a
    frame of exactly one call is known by its bytes from then on. on_control: hears control events.

    own[slot]: the line's last id, -1 before the first. seen[slot]: when it last brought anything,
    ns. generation[slot]: to which its ids belong. fallen: by slot, while its ids dropped.
    history[slot]: ids of its history snapshots. carries: the slots of its feed; a group may have
    several feeds.

    wins, stale, missed, alone: counts of updates. lag: behind the winner, of every copy that was a
    line's first. repeats: all other copies. wait: over this line's wins, until the second copy
    came; wait_bins are its fine bins. drops: unusable frames by reason.
    """

    __slots__ = (
        "_slots",
        "alone",
        "arbiter",
        "bit",
        "calls",
        "carries",
        "drops",
        "entry",
        "fallen",
        "generation",
        "history",
        "lag",
        "missed",
        "name",
        "now",
        "on_control",
        "own",
        "peer",
        "repeats",
        "seen",
        "serving_ns",
        "stale",
        "wait",
        "wait_bins",
        "wins",
    )

    def __init__(
        self,
        arbiter: Arbiter,
        name: str,
        bit: int,
        on_control: Callable[[Control], None],
        peer: Peer | None = None,
        carries: Iterable[int] | None = None,
    ) -> None:
        self.arbiter = arbiter
        self.peer = peer
        self.carries = frozenset(range(len(arbiter.slots)) if carries is None else carries)
        self._slots = cast(list[Slot], arbiter.slots)  # a session knows only slots that are filled
        self.name = name
        self.bit = bit
        self.on_control = on_control
        self.now = 0
        self.calls = 0
        self.entry: Entry | None = None
        self.serving_ns = 0
        size = len(arbiter.slots)
        self.own = [-1] * size
        self.seen = [0] * size
        self.generation = [slot.generation if slot else 0 for slot in arbiter.slots]
        self.fallen: dict[int, Fallen] = {}
        self.history: dict[int, set[int]] = {}
        self.drops: dict[str, int] = {}
        self.wins = self.repeats = self.stale = self.missed = self.alone = 0
        self.lag = Histogram()
        self.wait = Histogram()
        self.wait_bins = self.wait.fine

    @property
    def duplicates(self) -> int:
        """Copies of published updates that it brought. Some 10 µs: it adds up the bins of `lag`, so
        that no copy needs to be counted twice."""
        return self.repeats + self.lag.count

    @property
    def latest_ns(self) -> int:
        """When anything came last."""
        return max(self.now, *self.seen)

    # What a roll call wants to know

    @property
    def serves(self) -> bool:
        return self.serving_ns != 0

    @property
    def answers(self) -> bool:
        """Whether the peer is known to answer."""
        return self.peer is not None and self.peer.answered_ns > 0

    def ask(self) -> bool:
        """Ask the peer, see there."""
        return self.peer is not None and self.peer.ask()

    def answered(self, since_ns: int) -> bool:
        """Whether a question of `since_ns` or later was answered."""
        return self.peer is not None and self.peer.answered_ns >= since_ns

    @property
    def over(self) -> bool:
        """Whether nothing comes any more."""
        return self.peer is None or self.peer.over

    # Sink: the hot path

    def bbo(
        self,
        slot: int,
        id: int,
        event_us: int,
        trade_us: int,
        bid: float,
        bid_vol: float,
        ask: float,
        ask_vol: float,
        bid_count: int,
        ask_count: int,
    ) -> None:
        s = self._slots[slot]
        now = self.now
        self.seen[slot] = now
        if s.gate or id <= s.last:
            values = (event_us, trade_us, id, bid, bid_vol, ask, ask_vol, bid_count, ask_count)
            if not resets.newer(self, s, id, trade_us or event_us, values):
                return
        self.own[slot] = s.last = id
        s.advance_ns = now
        lane = s.lane
        i = lane.next
        lane.pack(
            lane.buffer,
            lane.base + i % lane.size * lane.stride,
            lane.name,
            s.product_type,
            event_us,
            trade_us,
            id,
            bid,
            bid_vol,
            ask,
            ask_vol,
            bid_count,
            ask_count,
            now // 1000,
        )
        words = lane.words
        words[lane.index_word] = i
        lane.next = i + 1
        total = lane.total
        total.value = words[0] = total.value + 1
        self.wins += 1
        if s.recent is not None:
            self.calls += 1
            self.entry = s.recent[id] = [None, None, now, self.wait_bins, self.bit, slot, id, self]
            if len(s.recent) > RECENT:
                s.retire_some()
        if s.taps:
            self._tell(s)

    def trade(
        self,
        slot: int,
        id: int,
        first_id: int,
        event_us: int,
        trade_us: int,
        price: float,
        vol: float,
        is_buyer_maker: bool,
        key: object = None,
    ) -> None:
        values = (event_us, trade_us, id, price, vol, is_buyer_maker)
        us = trade_us or event_us
        self._trade(slot, id, first_id, us, values, id if key is None else key)

    def agg(
        self,
        slot: int,
        id: int,
        first_id: int,
        last_id: int,
        event_us: int,
        trade_us: int,
        price: float,
        vol: float,
        is_buyer_maker: bool,
    ) -> None:
        count = last_id - first_id + 1
        values = (event_us, trade_us, first_id, last_id, id, price, vol, count, is_buyer_maker)
        self._trade(slot, id, id, trade_us or event_us, values, id)

    def _trade(
        self, slot: int, id: int, first_id: int, us: int, values: tuple[Any, ...], key: object
    ) -> None:
        s = self._slots[slot]
        now = self.now
        self.seen[slot] = now
        mark = us if s.unordered else id
        plain, window = s.plain, s.window
        if plain is not None:
            if id == plain.top + 1 and not self.history and (not s.gate or self._goes_on(s, us)):
                plain.top = id
            elif not resets.fresh(self, s, id, first_id, us, values, key):
                return
        elif (
            window is not None
            and mark >= s.last
            and not s.doubted
            and (not s.gate or self._goes_on(s, us))
            and not (self.history and id in self.history.get(slot, ()))
            and window.take(key, mark, now)
        ):
            gaps = s.gaps
            if gaps is not None:
                gaps.offer(id, now, first_id)
        elif not resets.fresh(self, s, id, first_id, us, values, key):
            return
        self.own[slot] = mark
        if mark > s.last:
            s.last = mark
            s.time_us = us
            s.advance_ns = now
        self.publish(s, id, values, now)

    def depth(
        self,
        slot: int,
        id: int,
        event_us: int,
        trade_us: int,
        bids: Sequence[Level],
        asks: Sequence[Level],
        bid_counts: Sequence[int] = NO_COUNTS,
        ask_counts: Sequence[int] = NO_COUNTS,
    ) -> None:
        s = self._slots[slot]
        now = self.now
        self.seen[slot] = now
        values = _flat(event_us, trade_us, id, bids, asks, bid_counts, ask_counts)
        us = trade_us or event_us
        if (s.gate or id <= s.last) and not resets.newer(self, s, id, us, values):
            return
        if s.gaps is not None:
            s.gaps.offer(id, now)
        self.own[slot] = s.last = id
        s.time_us = us
        s.advance_ns = now
        self.publish_book(s, id, values, now)

    def skip(self, slot: int, id: int) -> None:
        self.calls += 1
        self.seen[slot] = self.now
        resets.skipped(self, self._slots[slot], id)

    def seed(self, slot: int, id: int) -> None:
        self.calls += 1
        self.seen[slot] = self.now
        self.history.setdefault(slot, set()).add(id)

    def control(self, event: Control) -> None:
        self.calls += 1
        self.on_control(event)

    def drop(self, reason: str) -> None:
        self.calls += 1
        self.drops[reason] = self.drops.get(reason, 0) + 1

    # What the hot path shares with the cold one

    def publish(self, s: Slot, id: int, values: tuple[Any, ...], local_ns: int) -> None:
        """Pack one record into its lane and account for it."""
        lane = s.lane
        i = lane.next
        lane.pack(
            lane.buffer,
            lane.base + i % lane.size * lane.stride,
            lane.name,
            s.product_type,
            *values,
            local_ns // 1000,
        )
        words = lane.words
        words[lane.index_word] = i
        lane.next = i + 1
        total = lane.total
        total.value = words[0] = total.value + 1
        self.wins += 1
        if s.recent is not None:
            self.calls += 1
            mark = self.own[s.slot] if s.unordered else id
            bins, bit = self.wait_bins, self.bit
            self.entry = s.recent[id] = [None, None, local_ns, bins, bit, s.slot, mark, self]
            if len(s.recent) > RECENT:
                s.retire_some()
        if s.taps:
            self._tell(s)

    def publish_book(self, s: Slot, id: int, values: tuple[Any, ...], local_ns: int) -> None:
        """Publish the top of a book if it differs from the last published."""
        top = values[3:]
        if top != s.top:
            s.top = top
            self.publish(s, id, values, local_ns)
        elif s.recent is not None:
            self.calls += 1
            bins, bit = self.wait_bins, self.bit
            self.entry = s.recent[id] = [None, None, local_ns, bins, bit, s.slot, id, self]
            if len(s.recent) > RECENT:
                s.retire_some()

    def copied(self, entry: Entry) -> None:
        """A further copy of a published update came."""
        if entry[MASK] & self.bit:
            self.repeats += 1
            return
        entry[MASK] |= self.bit
        self.lagged(entry, self.now - entry[FIRST_NS])

    def lagged(self, entry: Entry, lag: int) -> None:
        """Count by how much its copy of an update came later than the first, in ns."""
        self.lag.add(lag)
        if entry[WAIT] is not None:  # the second copy of all
            entry[WINNER].wait.add(lag)
            entry[WAIT] = None

    def _goes_on(self, s: Slot, us: int) -> bool:
        """Whether a trade above the last one plainly is of the generation that a reset opened."""
        slot = s.slot
        joined = self.generation[slot] == s.generation and slot not in self.fallen
        return joined and us > s.floor_us > 0

    def _tell(self, s: Slot) -> None:
        record = s.lane.newest()
        for tap in s.taps:
            tap(s.slot, record)


def _flat(
    event_us: int,
    trade_us: int,
    id: int,
    bids: Sequence[Level],
    asks: Sequence[Level],
    bid_counts: Sequence[int],
    ask_counts: Sequence[int],
) -> tuple[Any, ...]:
    """The members of a Depth5 between product type and local time."""
    bid_level, ask_level = len(bids), len(asks)
    if bid_level != 5:
        bid_level = min(bid_level, 5)
        bids = (*bids[:5], *NO_LEVELS[bid_level:])
    if ask_level != 5:
        ask_level = min(ask_level, 5)
        asks = (*asks[:5], *NO_LEVELS[ask_level:])
    b0, b1, b2, b3, b4 = bids
    a0, a1, a2, a3, a4 = asks
    bid_prices = (b0[0], b1[0], b2[0], b3[0], b4[0])
    bid_vols = (b0[1], b1[1], b2[1], b3[1], b4[1])
    ask_prices = (a0[0], a1[0], a2[0], a3[0], a4[0])
    ask_vols = (a0[1], a1[1], a2[1], a3[1], a4[1])
    return (
        event_us,
        trade_us,
        id,
        bid_level,
        ask_level,
        0.0,
        *bid_prices,
        *bid_vols,
        *ask_prices,
        *ask_vols,
        *bid_counts,
        *ask_counts,
    )
