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
from typing import NamedTuple

from k4.core.enums import Kind
from k4.core.limits import Limits
from k4.core.ring import RingWriter
from k4.md import resets
from k4.md.fallen import PATIENCE
from k4.md.feed import Channel, Control
from k4.md.port import Peer, Port
from k4.md.rollcall import RollCall
from k4.md.slots import BATCH, NAME, NEXT, SLOT, Entry, Slot, no_entry

MOST_LEAVING = 64
BITS = 60  # of ports; more are made where many exist at once
NEVER = 1 << 62  # ns


class Departed(NamedTuple):
    """A line that served from one time to another, ns; `bit` was its mark then."""

    port: Port
    bit: int
    since_ns: int
    until_ns: int


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
        self._departed: list[Departed] = []
        self._resting: deque[tuple[int, int]] = deque()  # since when, bits of closed ports
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

    def port(
        self,
        name: str,
        on_control: Callable[[Control], None],
        heir_of: Port | None = None,
        peer: Peer | None = None,
        carries: Iterable[int] | None = None,
    ) -> Port:
        """A new line's way in. An heir goes on with the ids that its predecessor brought; the first
        ports of all go on with those that an attached store holds. carries: the slots of its feed,
        None for all."""
        port = Port(self, name, self._bit(), on_control, peer, carries)
        if heir_of is not None:
            port.own = list(heir_of.own)
            port.generation = list(heir_of.generation)
            port.fallen = dict(heir_of.fallen)  # shared: one fall, whoever goes on with it
        else:
            for slot in self.live_slots():
                if not slot.published_here:
                    port.own[slot.slot] = slot.last
                    if slot.before:
                        port.history[slot.slot] = slot.before
        self.ports.append(port)
        return port

    def _bit(self) -> int:
        if not self._bits:
            self._bits.append(1 << self._made)
            self._made += 1
        return self._bits.popleft()

    def reconnected(self, port: Port) -> None:
        """What the line has brought before it may bring again, from a node that is behind: these
        are copies, and no ids that have dropped."""
        if port in self.ports:
            self._resting.append((self.ticked_ns, port.bit))
            port.bit = self._bit()

    def depart(self, port: Port) -> None:
        """The line stops serving. What it has missed by now is counted when these updates are
        retired, except of the last two seconds: copies of those may have been on their way."""
        if port.serving_ns:
            until = max(other.latest_ns for other in (*self.ports, port)) - self.reset_ns
            self._departed.append(Departed(port, port.bit, port.serving_ns, until))
            port.serving_ns = 0

    def close(self, port: Port) -> None:
        """The line serves no more. What it brings until its connection has ended counts all the
        same: of a reset it may be the only one."""
        self.depart(port)
        if port in self.ports:
            self.ports.remove(port)
            self._resting.append((self.ticked_ns, port.bit))
            self.leaving.append(port)

    def account(self, now_ns: int) -> None:
        """The end: account for all updates but those of which copies may still be on their way."""
        for slot in self.live_slots():
            slot.forget(now_ns - self.reset_ns)

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
        if now_ns < self.ticked_ns:
            self._set_back(now_ns)
        latest = max((port.now for port in self.ports), default=0)
        if max(latest - self._heard_ns, now_ns - latest) > self.reset_ns // 2:
            self.whole_ns = now_ns
        self._heard_ns = max(latest, self._heard_ns)
        self.awake_ns += max(0, min(now_ns - self.ticked_ns, self.reset_ns // 4))
        self.ticked_ns = now_ns
        forgotten_ns = now_ns - int(self.limits.trade_window * 1e9)
        for slot in self.live_slots():
            resets.consider(self, slot, now_ns)
            if slot.gate:
                resets.lift_gate(self, slot)
            slot.forget(forgotten_ns)
        for port in self.ports:
            if port.fallen:
                resets.tidy(port)
        if self.leaving:
            self._let_go()
        if self._resting or self._departed:
            self._forget_departed(forgotten_ns)

    def _set_back(self, now_ns: int) -> None:
        """The wall clock was: times that would lie ahead are taken back as far, so that a silence
        goes on from where it was."""
        by_ns = self.ticked_ns - now_ns

        def earlier(at_ns: int) -> int:
            return at_ns - by_ns if at_ns > now_ns else at_ns

        self.whole_ns, self._heard_ns = earlier(self.whole_ns), earlier(self._heard_ns)
        for slot in self.live_slots():
            slot.advance_ns = earlier(slot.advance_ns)
            slot.proved_ns = 0
        self._departed = [
            one._replace(since_ns=earlier(one.since_ns), until_ns=earlier(one.until_ns))
            for one in self._departed
        ]
        ports = (*self.ports, *self.leaving)
        for fallen in {id(f): f for port in ports for f in port.fallen.values()}.values():
            fallen.fell_ns = earlier(fallen.fell_ns)
            fallen.rose_ns = earlier(fallen.rose_ns[0]), earlier(fallen.rose_ns[1])

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
        """Account for updates of one slot of which no further copy is awaited."""
        if not entries:
            return
        slot = entries[0][SLOT]
        serving = (
            Departed(port, port.bit, port.serving_ns, NEVER)
            for port in self.ports
            if port.serving_ns
        )
        served = [one for one in (*serving, *self._departed) if slot in one.port.carries]
        everyone = 0
        for one in served:
            everyone |= one.bit
        for entry in entries:
            _, _, first_ns, _, mask, _, _, winner = entry
            if mask & everyone == everyone:
                continue
            others = 0
            for port, bit, since_ns, until_ns in served:
                if since_ns < first_ns < until_ns and not mask & bit:
                    port.missed += 1
                    others += 1
            if others and not mask & (mask - 1):  # one bit: nobody but the winner
                winner.alone += 1

    def _forget_departed(self, before_ns: int) -> None:
        """Forget who left before that time: all updates of then are retired. The bits can be used
        again."""
        self._departed = [one for one in self._departed if one.until_ns >= before_ns]
        while self._resting and self._resting[0][0] < before_ns:
            self._bits.append(self._resting.popleft()[1])
