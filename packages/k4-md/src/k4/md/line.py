"""One redundant line: a link, the session of its connection, and its port into the arbiter.

`message` is made anew for every connection. With siblings it first looks whether the very same
bytes stood for an update that another line brought: then the frame is a copy, known before anything
is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from k4.core.latency import BIN_NS
from k4.core.link import Link, LinkState
from k4.core.liveness import Watch
from k4.core.rotation import Sample, sample
from k4.core.transport import Closed
from k4.core.venue_clock import differences
from k4.md.arbiter import Arbiter
from k4.md.feed import Control, Feed, Sink
from k4.md.port import Port
from k4.md.slots import ID, MASK, NAME, NEXT, RECENT, SLOT, WAIT, no_entry


class LineOwner(Protocol):
    """Who hears about a line: its stream."""

    def line_up(self, line: Line, /) -> None: ...

    def line_down(self, line: Line, how: Closed, retry_in: float, /) -> None: ...

    def line_says(self, line: Line, event: Control, /) -> None: ...


class Line:
    """One line of a stream. `link` is set by the stream before it starts.

    message(payload, received_ns, opcode): what the transport calls. id: running number within the
    stream. born: monotonic seconds. acked_ns: wall clock when it was last subscribed, 0 while it is
    not. life: seconds after which it is to be renewed, 0 for never. differences: of its frames, see
    `venue_clock`. ended: when its link had ended, monotonic seconds, infinity while it is being
    closed. measured: when a round trip was last asked for. judge_at: when its silence is looked at
    next, monotonic seconds both. marked: wins and bins of `lag` when its sample began. wanted: why
    a successor is to be tried again, from `retry_at` on (monotonic seconds), after so many had
    `failed`. refused: topics that the venue refused to this connection.
    """

    message: Callable[[bytes, int, int], None]

    __slots__ = (
        "_arbiter",
        "_owner",
        "acked_ns",
        "born",
        "differences",
        "ended",
        "failed",
        "feed",
        "id",
        "judge_at",
        "life",
        "link",
        "marked",
        "measured",
        "message",
        "port",
        "reconnects",
        "refused",
        "retry_at",
        "wanted",
        "watch",
    )

    link: Link

    def __init__(
        self,
        id: int,
        feed: Feed,
        arbiter: Arbiter,
        owner: LineOwner,
        watch: Watch,
        heir_of: Line | None = None,
    ) -> None:
        self.id = id
        self.feed = feed
        self.port: Port = arbiter.port(
            f"{feed.name}#{id}",
            self._control,
            heir_of.port if heir_of else None,
            peer=self,
            carries=(channel.slot for channel in feed.channels),
        )
        self.watch = watch
        self.reconnects = 0
        self.acked_ns = 0
        self.born = 0.0
        self.life = 0.0
        self.differences = differences()
        self.measured = float("-inf")
        self.judge_at = 0.0
        self.ended = 0.0
        self.refused: set[str] = set()
        self.wanted = ""
        self.retry_at = 0.0
        self.failed = 0
        self.marked: tuple[int, list[float]] = (0, [])
        self._arbiter = arbiter
        self._owner = owner
        self._hear(_deaf)

    @property
    def last_message_ns(self) -> int:
        return self.port.latest_ns

    @property
    def up(self) -> bool:
        """Subscribed and open."""
        return self.link.state is LinkState.UP

    def mark(self) -> None:
        """Begin a new sample of how far this line is behind."""
        self.marked = (self.port.wins, self.port.lag.bins)

    def sample(self) -> Sample:
        """How far it was behind since the last mark."""
        wins, bins = self.marked
        return sample(self.port.wins - wins, self.port.lag.bins, bins)

    @property
    def messages(self) -> int:
        """Updates that it brought, published or not."""
        port = self.port
        return port.wins + port.duplicates + port.stale

    # The arbiter's peer

    def ask(self) -> bool:
        return self.link.measure()

    @property
    def answered_ns(self) -> int:
        return self.link.answered_ns

    @property
    def over(self) -> bool:
        return self.link.state is LinkState.STOPPED

    def _hear(self, receive: Callable[[bytes, int, Sink], None]) -> None:
        """Make `message`, the hot path's only stop between the transport and a session.

        Lines mostly bring updates in one order, so the next frame is compared with the update that
        followed on the line's last one, and only where it is another the memo is asked: that is a
        hash and a lookup less, and what is read lies side by side in memory.
        """
        port, arbiter = self.port, self._arbiter

        def alone(payload: bytes, received_ns: int, opcode: int, /) -> None:
            port.now = received_ns
            receive(payload, received_ns, port)

        memo, own, seen, bit = arbiter.memo, port.own, port.seen, port.bit
        lag_bins, head = port.lag.fine, slice(self.feed.head)
        tail = arbiter.tail(self.feed.name)
        last = no_entry()  # the update that came last here, as far as it was known

        def shared(payload: bytes, received_ns: int, opcode: int, /) -> None:
            nonlocal last
            entry = last[NEXT]
            if entry is not None:
                name, _, first_ns, wait_bins, mask, slot, id, _ = entry
                brought = mask | bit
                if name == payload[head] and brought != mask:
                    # `Port.copied`, written out: three of four messages end here. A clock set back
                    # by less than 30 ms puts the copies of that moment into wrong bins, no more.
                    own[slot] = id
                    seen[slot] = received_ns
                    entry[MASK] = brought
                    last = entry
                    try:
                        at = (received_ns - first_ns) // BIN_NS
                        lag_bins[at] += 1.0
                        if wait_bins is not None:
                            wait_bins[at] += 1.0
                            entry[WAIT] = None
                    except IndexError:
                        port.lagged(entry, received_ns - first_ns)
                    return
            port.now = received_ns
            name = payload[head]  # the payload itself, where it is not longer
            entry = memo.get(name)
            if entry is not None:
                slot, id = entry[SLOT], entry[ID]
                if not entry[MASK] & bit or (id == own[slot] and name is payload):
                    own[slot] = id
                    seen[slot] = received_ns
                    last = entry
                    port.copied(entry)
                    return
            port.entry = None
            port.calls = 0
            receive(payload, received_ns, port)
            new = port.entry
            if new is None or new is entry or port.calls != 1:
                return
            if entry is not None:  # of two updates of one name neither can be told by it
                arbiter.forget_frame(name)
                return
            memo[name] = new
            if new[NAME] is None:  # else it is an update of another feed, in bytes of this one
                new[NAME] = name
                tail[0][NEXT] = last = tail[0] = new
            if len(memo) > RECENT:
                arbiter.forget_frames()

        self.message = shared if arbiter.shared and not self.feed.stateful else alone

    # The link's owner

    def link_opened(self, link: Link, /) -> None:
        if link.opened_count > 1:
            self.reconnects += 1
            self._arbiter.reconnected(self.port)
            self.port.history.clear()
        self.port.seen[:] = [0] * len(self.port.seen)  # what is owed is owed anew
        self.refused.clear()
        self._hear(self.feed.session().receive)

    def link_up(self, link: Link, /) -> None:
        self._owner.line_up(self)

    def link_down(self, link: Link, how: Closed, retry_in: float, /) -> None:
        self.acked_ns = 0
        self._arbiter.depart(self.port)
        self._owner.line_down(self, how, retry_in)

    def _control(self, event: Control) -> None:
        self._owner.line_says(self, event)


def _deaf(payload: bytes, received_ns: int, out: Sink, /) -> None:
    """Between two connections there is no session."""
