"""State of one (kind, symbol) of a group: its lane, what was published, what its ids have proved.

Slots hold state and cold decisions; the hot decisions stand in `port.Port`, which reads and
writes these members directly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from k4.core import layout
from k4.core.enums import Kind
from k4.core.records import Depth5
from k4.core.ring import Lane
from k4.core.window import WINDOW_IDS, Gaps, RecentIds, Verdict
from k4.md.feed import Channel, Ids

if TYPE_CHECKING:
    from k4.md.fallen import Held
    from k4.md.port import Port

RECENT = 16_384
"""Published updates of a slot whose further copies are still awaited: more than one read of a
socket brings, so that after a pause, when all lines have much to read, copies are still known."""
BATCH = 64
LAST_US = 60_000_000  # of an attached store: so far back a line may lag

Tap = Callable[[int, memoryview], None]
"""Called with (slot, the record's bytes) after every publication; the bytes are valid only then."""

_EVENT_US, _TRADE_US = 5, 6  # words of every record

# Of an update: [what names its frames, the entry that follows it in the chain of its feed (both
# None unless the frame is known by its bytes), first_ns, the fine bins of its winner's `wait` (None
# once a second copy came), mask of the ports that brought it, slot, id (where ids have no order:
# venue time), the winner's Port]
Entry = list[Any]
NAME, NEXT, FIRST_NS, WAIT, MASK, SLOT, ID, WINNER = range(8)


def no_entry() -> Entry:
    """One that is of no update, and that nothing follows."""
    return [None] * 8


class Slot:
    """What quotes, books and trades have in common.

    last: newest id taken in this generation, -1 before the first; where ids have no order, the
    newest venue time instead, also in every port's `own`. advance_ns: local time when `last` last
    rose. time_us: venue time of the newest trade or book, 0 before the first. top: figures of the
    book published last. taps: told of every publication. sampled: id of the update whose age was
    sampled last. too_late: trades that came after their ids had left the window.

    gaps: the ledger, None where ids prove nothing. window: of trades whose ids are not proved to be
    consecutive, None for all else. plain: `gaps` where there is no window, so that it alone tells
    which trades are new. unordered, suspected: what the channel's ids are, see `feed.Ids`. recent:
    published updates by id whose copies are awaited, None with a single line; retire: accounts for
    those that are not awaited any more.

    generation: sequence resets of the store so far; resets: those that this process saw. gate: set
    by a reset; messages then pass `resets.admits`, until `resets.lift_gate` takes it away.
    floor_us: venue time of the generation's first message, 0 where the stream has no time.
    opened_with: the first id. previous, former_us: the last id of the former generation, and its
    newest time. doubted: by key, trades of which it is not known yet whether they are of this
    generation, and who brought them. proved_ns: local time when silence had proved a reset, as far
    as what was read by then tells; 0 while it has not. before: ids of the trades that an attached
    store holds of its last minute, where the window cannot know them.
    """

    __slots__ = (
        "_found",
        "advance_ns",
        "before",
        "channel",
        "doubted",
        "floor_us",
        "former_us",
        "gaps",
        "gate",
        "generation",
        "kind",
        "lane",
        "last",
        "opened_with",
        "plain",
        "previous",
        "product_type",
        "proved_ns",
        "recent",
        "resets",
        "retire",
        "sampled",
        "slot",
        "suspected",
        "taps",
        "time_us",
        "too_late",
        "top",
        "unordered",
        "window",
    )

    def __init__(
        self, channel: Channel, lane: Lane, product_type: int, window_ns: int, shared: bool
    ) -> None:
        self.channel = channel
        self.slot = channel.slot
        self.kind = channel.kind
        self.lane = lane
        self.product_type = product_type
        self._found = lane.next
        self.last = -1
        self.advance_ns = 0
        self.proved_ns = 0
        self.gate = False
        self.floor_us = 0
        self.previous = -1
        self.former_us = 0
        self.opened_with = -1
        self.generation = 0
        self.resets = 0
        self.too_late = 0
        self.sampled = -1
        self.time_us = 0
        self.top: tuple[float, ...] = ()
        self.taps: tuple[Tap, ...] = ()
        self.recent: dict[int, Entry] | None = {} if shared else None
        self.doubted: dict[Hashable, tuple[Port, Held]] = {}
        self.before: set[int] = set()
        self.retire: Callable[[Sequence[Entry]], None] | None = None
        ids = channel.ids
        self.suspected = ids is Ids.SUSPECTED
        self.unordered = ids is Ids.UNORDERED
        proves = ids in (Ids.CONSECUTIVE, Ids.SUSPECTED, Ids.NEWEST_CONSECUTIVE)
        self.gaps: Gaps | None = Gaps(window_ns) if proves else None
        exact = ids in (Ids.SUSPECTED, Ids.RISING, Ids.UNORDERED)
        self.window: RecentIds | None = (
            RecentIds(window_ns, ordered=ids is not Ids.UNORDERED) if exact else None
        )
        self.plain = None if exact else self.gaps
        self._go_on()

    def _go_on(self) -> None:
        """Take over what an attached store already holds, so that nothing is published twice."""
        lane = self.lane
        held = min(lane.next, lane.size)
        if not held:
            return
        self.generation = lane.generation
        if self.kind not in (Kind.TRADE, Kind.AGGTRADE):
            record = layout.LAYOUTS[self.kind].unpack(lane.newest())
            self.last = record.update_id  # type: ignore[union-attr]
            if isinstance(record, Depth5):
                self.top = _top(record)
            if self.gaps is not None:
                self.gaps.go_on([self.last])
            return
        ids = self._stored_ids(min(held, WINDOW_IDS))
        if self.unordered:  # keys of the window are the venue's texts; these are only their hashes
            self.before = set(ids)
            return
        self.last = ids[-1] if lane.generation and self.gaps is None else max(ids)
        self.time_us = self._stored_us()
        if self.window is not None:
            self.window.go_on(ids)
        if self.gaps is not None:
            self.gaps.go_on(sorted(ids))

    def _stored_ids(self, count: int) -> list[int]:
        """The ids of the newest records, oldest first; after a reset only those of the newest
        generation, as far as times tell, and where ids are consecutive only those near the newest.
        """
        lane, of_kind = self.lane, layout.LAYOUTS[self.kind]
        records = np.ndarray((lane.size,), of_kind.dtype, lane.buffer, lane.base)
        name = "trade_id" if self.kind is Kind.TRADE else "agg_trade_id"
        at = np.arange(lane.next - count, lane.next) % lane.size
        ids: list[int] = records[name][at].tolist()
        if self.unordered:
            heard = records["local_time_us"][at]
            return ids[int((heard + LAST_US < heard[-1]).sum()) :]
        if lane.generation:
            traded, told = records["trade_timestamp_us"][at], records["event_timestamp_us"][at]
            ids = ids[_beginning(ids, np.where(traded, traded, told).tolist()) :]
        if lane.generation and self.gaps is not None:
            ids = [id for id in ids if abs(id - ids[-1]) <= WINDOW_IDS]
        return ids

    def _stored_us(self) -> int:
        lane = self.lane
        word = (lane.base + (lane.next - 1) % lane.size * lane.stride) // 8
        return int(lane.words[word + _TRADE_US] or lane.words[word + _EVENT_US])

    @property
    def published_here(self) -> bool:
        """Whether this process has published anything of it."""
        return self.lane.next != self._found

    @property
    def published(self) -> int:
        """Records that this process published."""
        return self.lane.next - self._found

    def newest_us(self) -> int:
        """Venue time of what was taken last, 0 where there is none: the newest trade's or book's
        (which may have been no news, so that no record has it), or the newest record's."""
        lane = self.lane
        if self.time_us or self.kind in (Kind.TRADE, Kind.AGGTRADE) or not lane.next:
            return self.time_us
        return self._stored_us()

    def retire_some(self) -> None:
        """Give up the copies of the oldest updates in `recent`, a batch of them."""
        recent = self.recent
        assert recent is not None
        self._retire(list(islice(recent, BATCH)))

    def forget(self, before_ns: int) -> None:
        """Give up the copies of updates published before `before_ns`."""
        recent = self.recent
        if not recent:
            return
        old = []
        for id, entry in recent.items():
            if entry[FIRST_NS] >= before_ns:
                break
            old.append(id)
        self._retire(old)

    def _retire(self, ids: Sequence[int]) -> None:
        assert self.recent is not None
        gone = [self.recent.pop(id) for id in ids]
        if self.retire is not None:
            self.retire(gone)

    def verdict(self, key: Any, id: int, first_id: int, rank: int, now_ns: int) -> Verdict:
        """What a trade's id is; takes note of it."""
        if self.window is not None:
            verdict = self.window.offer(key, rank, now_ns)
            if self.gaps is not None and verdict is Verdict.NEW:
                self.gaps.offer(id, now_ns, first_id)
            return verdict
        assert self.gaps is not None
        return self.gaps.offer(id, now_ns, first_id)

    def open_generation(self, first_us: int, first_id: int) -> None:
        """The venue's ids began anew with `first_id`, at venue time `first_us` (0: it has none)."""
        self.previous = self.last
        self.former_us = self.time_us
        self.last = -1
        self.floor_us = first_us
        self.opened_with = first_id
        self.gate = True
        self.doubted.clear()
        self.resets += 1
        self.generation = self.lane.open_generation()
        self.forget(1 << 62)
        if self.gaps is not None:
            self.gaps.reset()
        if self.window is not None:
            self.window.reset()


def _beginning(ids: Sequence[int], times: Sequence[int]) -> int:
    """Where the newest generation of stored trades begins: an id dropped, and its time is newer
    than all before. A late trade has a small id, too, but an old time."""
    begins, top, newest = 0, -1, 0
    for at, (id, us) in enumerate(zip(ids, times, strict=True)):
        if id < top and us > newest:
            begins, top, newest = at, id, us
        else:
            top, newest = max(top, id), max(newest, us)
    return begins


def _top(book: Depth5) -> tuple[float, ...]:
    """The figures of a stored book, as `top` has them."""
    return (
        book.bid_level,
        book.ask_level,
        book.last_price,
        *book.bid_prices,
        *book.bid_vols,
        *book.ask_prices,
        *book.ask_vols,
        *book.bid_order_counts,
        *book.ask_order_counts,
    )
