"""Line arbitration: the first copy of every update wins, and is packed straight into its store.

An `Arbiter` holds the slots of one group. Every line writes through a `Port` of its own, which is
the `Sink` of that line's sessions. All ports of a group live on one thread.

Promises kept here: P1 (no duplicate, no backward id except at a counted reset), P2 (gaps as the ids
prove them), P3 (trades are the union of the lines, quotes the newest), P5 (resets).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, cast

from k4.core.enums import Kind
from k4.core.latency import Histogram
from k4.core.limits import Limits
from k4.core.ring import RingWriter
from k4.md import resets
from k4.md.fallen import PATIENCE, Fallen
from k4.md.feed import NO_COUNTS, Channel, Control, Level
from k4.md.rollcall import RollCall
from k4.md.slots import (
    BATCH,
    FIRST_NS,
    MASK,
    NAME,
    NEXT,
    RECENT,
    WAIT,
    WINNER,
    Entry,
    Slot,
    Tap,
    no_entry,
)

NO_LEVELS = ((0.0, 0.0),) * 5
MOST_LEAVING = 64
BITS = 60  # of ports; more are made where many exist at once
RESTING = 8  # of them at least: a bit rests before it is used again


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

    serving_ns: since when it is subscribed, 0 while it is not.
    now: wall clock of the frame under way, set by the line before it calls the session; copies that
    are known by their bytes leave it as it is.
    own[slot]: the line's last id, -1 before the first. seen[slot]: when it last brought anything,
    ns. wins, stale, missed, alone: counts of updates. lag: behind the winner, of every copy that
    was a line's first. repeats: all other copies. wait: over this line's wins, until the second
    copy came. fallen: by slot, while its ids dropped. generation[slot]: to which its ids belong.
    history[slot]: ids of its history snapshots.
    """

    __slots__ = (
        "_slots",
        "alone",
        "arbiter",
        "bit",
        "calls",
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
    ) -> None:
        self.arbiter = arbiter
        self.peer = peer
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


class Arbiter:
    """The slots of one group and the ports of all its lines.

    shared: whether any slot is fed by more than one line; then the copies of every update are
    followed. memo: frames that stood for exactly one update, or what names them, to that update:
    a line that brings the same bytes brings a copy, which is known before anything is decoded.
    These updates also make a chain per feed, in the order of their first copies; it leads to none
    that is not in `memo`. whole_ns: since when the group has been heard without a break, as far as
    ticks tell. awake_ns: for how long it has been ticked, less the pauses in which this process did
    not run. ticked_ns: when that was last. roll_call: the last one. called_ns: when the last one
    that was answered began.
    """

    def __init__(
        self,
        *,
        product_type: int,
        symbols: Sequence[str],
        channels: Iterable[Channel],
        rings: Mapping[Kind, RingWriter],
        limits: Limits,
        shared: bool,
        now_ns: int,
        on_reset: Callable[[Slot], None] = lambda slot: None,
    ) -> None:
        self.slots: list[Slot | None] = [None] * (len(symbols) << 2)
        self.shared = shared
        self.limits = limits
        self.reset_ns = int(limits.reset_wait * 1e9)
        self.whole_ns = now_ns
        self.awake_ns = 0
        self.roll_call: RollCall | None = None
        self.called_ns = 0
        self._heard_ns = self.ticked_ns = now_ns
        self.on_reset = on_reset
        self.ports: list[Port] = []
        self.leaving: list[Port] = []  # closed: still closing, or with a reset's messages held
        self.memo: dict[bytes, Entry] = {}
        self._tails: dict[str, list[Entry]] = {}
        self._bits = deque(1 << i for i in range(BITS))
        self._made = BITS
        self._missed: set[int] = set()  # identities of entries that lines missed before they left
        window_ns = int(limits.trade_window * 1e9)
        for channel in channels:
            if self.slots[channel.slot] is not None:
                continue  # a second feed of the same slot (JSON and SBE)
            lane = rings[channel.kind].lanes[channel.slot >> 2]
            slot = Slot(channel, lane, product_type, window_ns, shared)
            slot.retire = self._retire
            slot.advance_ns = now_ns
            self.slots[channel.slot] = slot

    def live_slots(self) -> list[Slot]:
        """The slots that some feed fills."""
        return [slot for slot in self.slots if slot is not None]

    def tap(self, tap: Tap) -> None:
        """Have every publication told to `tap`."""
        for slot in self.live_slots():
            slot.taps += (tap,)

    def port(
        self,
        name: str,
        on_control: Callable[[Control], None],
        heir_of: Port | None = None,
        peer: Peer | None = None,
    ) -> Port:
        """A new line's way in. An heir goes on with the ids that its predecessor brought; the first
        ports of all go on with those that an attached store holds."""
        if len(self._bits) <= RESTING:
            self._bits.append(1 << self._made)
            self._made += 1
        port = Port(self, name, self._bits.popleft(), on_control, peer)
        if heir_of is not None:
            port.own = list(heir_of.own)
            port.generation = list(heir_of.generation)
            port.fallen = dict(heir_of.fallen)  # shared: one fall, whoever goes on with it
        else:
            for slot in self.live_slots():
                if not slot.published_here:
                    port.own[slot.slot] = slot.last
        self.ports.append(port)
        return port

    def depart(self, port: Port) -> None:
        """The line stops serving: count what it has missed by now. Copies of the last two seconds
        may have been on their way."""
        if not port.serving_ns:
            return
        until = max(other.latest_ns for other in (*self.ports, port)) - self.reset_ns
        for slot in self.live_slots():
            for entry in (slot.recent or {}).values():
                if port.serving_ns < entry[FIRST_NS] < until and not entry[MASK] & port.bit:
                    port.missed += 1
                    self._missed.add(id(entry))
        port.serving_ns = 0

    def close(self, port: Port) -> None:
        """The line serves no more. What it brings until its connection has ended counts all the
        same: of a reset it may be the only one."""
        self.depart(port)
        if port in self.ports:
            self.ports.remove(port)
            self._bits.append(port.bit)
            self.leaving.append(port)

    def tail(self, feed: str) -> list[Entry]:
        """The end of a feed's chain: a list that holds the newest of its links."""
        return self._tails.setdefault(feed, [no_entry()])

    def forget_frame(self, name: bytes) -> None:
        """Copies of this frame are no longer known by its bytes."""
        entry = self.memo.pop(name, None)
        if entry is not None:
            entry[NAME] = entry[NEXT] = None
        self._cut()

    def forget_frames(self) -> None:
        """Make room in `memo`: the oldest frames' copies are no longer awaited. A line that stands
        at one of them, because it brings nothing, must not hold all that follows."""
        for old in list(islice(self.memo, BATCH)):
            self.memo.pop(old)[NEXT] = None
        self._cut()

    def forget_all_frames(self) -> None:
        """A generation opens: copies of former ones have to be judged."""
        for entry in self.memo.values():
            entry[NEXT] = None
        self.memo.clear()
        self._cut()

    def _cut(self) -> None:
        """Begin anew the chains whose newest link is forgotten: nothing may follow on that."""
        for tail in self._tails.values():
            if tail[0][NAME] not in self.memo:
                tail[0] = no_entry()

    def tick(self, now_ns: int) -> None:
        """What time alone decides: resets by silence, copies that will not come any more."""
        latest = max((port.now for port in self.ports), default=0)
        if max(latest - self._heard_ns, now_ns - latest) > self.reset_ns // 2:
            self.whole_ns = now_ns
        self._heard_ns = max(latest, self._heard_ns)
        self.awake_ns += max(0, min(now_ns - self.ticked_ns, self.reset_ns // 4))
        self.ticked_ns = now_ns
        for slot in self.live_slots():
            resets.consider(self, slot, now_ns)
            if slot.gate:
                resets.lift_gate(self, slot)
            slot.forget(now_ns - int(self.limits.trade_window * 1e9))
        for port in self.ports:
            if port.fallen:
                resets.tidy(port)
        if self.leaving:
            self._let_go()

    def _let_go(self) -> None:
        """Forget closed lines that have ended and whose last messages were no reset's: the old ids
        went on."""
        for port in self.leaving:
            for number, fallen in list(port.fallen.items()):
                slot = self.slots[number]
                if slot and slot.advance_ns - fallen.rose_ns[1] > PATIENCE * self.reset_ns:
                    del port.fallen[number]
        leaving = [port for port in self.leaving if port.fallen or not port.over]
        self.leaving = leaving[-MOST_LEAVING:]

    def _retire(self, entries: Sequence[Entry]) -> None:
        """Account for updates of which no further copy is awaited."""
        serving = [port for port in self.ports if port.serving_ns]
        everyone = sum(port.bit for port in serving)
        for entry in entries:
            _, _, first_ns, _, mask, _, _, winner = entry
            if mask & everyone == everyone and not self._missed:
                continue
            others = int(id(entry) in self._missed)
            if others:
                self._missed.remove(id(entry))
            for port in serving:
                if port.serving_ns < first_ns and not mask & port.bit:
                    port.missed += 1
                    others += 1
            if others and mask == winner.bit:
                winner.alone += 1
