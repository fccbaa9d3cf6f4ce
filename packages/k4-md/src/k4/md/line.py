"""One redundant line: a link, the session of its connection, and its port into the arbiter.

`message` is the hot path's only stop between the transport and the session. With siblings it first
asks the arbiter's memo whether the very same bytes stood for a published update: then the frame is
a copy, known before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from k4.core.link import Link, LinkState
from k4.core.liveness import Watch
from k4.core.rotation import Sample, sample
from k4.core.transport import Closed
from k4.md.arbiter import Arbiter, Port
from k4.md.feed import Control, Feed, Sink


class LineOwner(Protocol):
    """Who hears about a line: its stream."""

    def line_up(self, line: Line, /) -> None: ...

    def line_down(self, line: Line, how: Closed, retry_in: float, /) -> None: ...

    def line_says(self, line: Line, event: Control, /) -> None: ...


class Line:
    """One line of a stream. `link` is set by the stream before it starts.

    id: running number within the stream. born: monotonic seconds. acked_ns: wall clock when it was
    last subscribed, 0 while it is not. life: seconds after which it is to be renewed, 0 for never.
    """

    __slots__ = (
        "_arbiter",
        "_memo",
        "_owner",
        "_receive",
        "acked_ns",
        "born",
        "feed",
        "id",
        "life",
        "link",
        "marked",
        "message",
        "messages",
        "port",
        "reconnects",
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
            f"{feed.name}#{id}", self._control, heir_of.port if heir_of else None
        )
        self.watch = watch
        self.messages = 0
        self.reconnects = 0
        self.acked_ns = 0
        self.born = 0.0
        self.life = 0.0
        self.marked: tuple[int, list[int]] = (0, [])
        self._arbiter = arbiter
        self._owner = owner
        self._memo = arbiter.memo
        self._receive: Callable[[bytes, int, Sink], None] = _deaf
        shared = arbiter.shared and not feed.stateful
        self.message: Callable[[bytes, int, int], None] = self._shared if shared else self._alone

    @property
    def last_message_ns(self) -> int:
        return self.port.now

    @property
    def up(self) -> bool:
        """Subscribed and open."""
        return self.link.state is LinkState.UP

    def mark(self) -> None:
        """Begin a new sample of how far this line is behind."""
        self.marked = (self.port.wins, list(self.port.lag.bins))

    def sample(self) -> Sample:
        """How far it was behind since the last mark."""
        wins, bins = self.marked
        return sample(self.port.wins - wins, self.port.lag.bins, bins)

    # The hot path

    def _alone(self, payload: bytes, received_ns: int, opcode: int, /) -> None:
        self.messages += 1
        port = self.port
        port.now = received_ns
        self._receive(payload, received_ns, port)

    def _shared(self, payload: bytes, received_ns: int, opcode: int, /) -> None:
        self.messages += 1
        port = self.port
        port.now = received_ns
        entry = self._memo.get(payload)
        if entry is not None:
            slot = entry[3]
            if entry[4] >= port.own[slot]:
                port.own[slot] = entry[4]
                port.seen[slot] = received_ns
                port.copied(entry)
                return
        port.entry = None
        port.calls = 0
        self._receive(payload, received_ns, port)
        entry = port.entry
        if entry is not None and port.calls == 1:
            self._arbiter.remember(payload, entry)

    # The link's owner

    def link_opened(self, link: Link, /) -> None:
        self._receive = self.feed.session().receive
        self.port.history.clear()
        if link.opened_count > 1:
            self.reconnects += 1

    def link_up(self, link: Link, /) -> None:
        self._owner.line_up(self)

    def link_down(self, link: Link, how: Closed, retry_in: float, /) -> None:
        self._receive = _deaf
        self.acked_ns = 0
        self.port.serving_ns = 0
        self._owner.line_down(self, how, retry_in)

    def _control(self, event: Control) -> None:
        self._owner.line_says(self, event)


def _deaf(payload: bytes, received_ns: int, out: Sink, /) -> None:
    """Between two connections there is no session."""
