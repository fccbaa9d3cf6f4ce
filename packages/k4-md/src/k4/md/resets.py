"""The cold side of arbitration: ids that are not above the last one (promises P3 and P5).

Everything here is called for the rare message: a copy that was decoded, a stale quote, a late
trade, and a sequence that began anew. `newer` judges quotes and books, `fresh` judges trades; both
answer whether the caller is to publish the message now.

A reset without evidence in one message (Binance) is proved by time: a line whose own ids dropped
and rise again, while for two seconds no line brings anything above the last id. What such a line
brings meanwhile is kept in its `Fallen` and published when the new generation opens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from k4.core.enums import Kind
from k4.core.window import WINDOW_IDS, Verdict
from k4.md.feed import Reset

if TYPE_CHECKING:
    from k4.md.arbiter import Arbiter, Port
    from k4.md.slots import Slot

TRADES = (Kind.TRADE, Kind.AGGTRADE)


class Held:
    """A message kept until the question of a reset is settled."""

    __slots__ = ("first_id", "id", "key", "local_ns", "published", "us", "values")

    def __init__(
        self,
        id: int,
        first_id: int,
        key: Any,
        us: int,
        values: tuple[Any, ...],
        local_ns: int,
        published: bool,
    ) -> None:
        self.id = id
        self.first_id = first_id
        self.key = key
        self.us = us
        self.values = values
        self.local_ns = local_ns
        self.published = published


class Fallen:
    """A line whose ids dropped on a slot: the newest of the small ids, how many rose, what it
    brought.
    """

    __slots__ = ("count", "held", "last")

    def __init__(self, id: int) -> None:
        self.last = id
        self.count = 1
        self.held: list[Held] = []

    def hold(self, held: Held, only_newest: bool) -> None:
        if only_newest:
            self.held.clear()
        if len(self.held) < WINDOW_IDS:
            self.held.append(held)


def newer(port: Port, s: Slot, id: int, us: int, values: tuple[Any, ...]) -> bool:
    """Judge a quote or a book that is not plainly the newest: its id is not above the last one, or
    the slot has seen a reset."""
    slot = s.slot
    port.calls += 1
    if s.gate and not admits(port, s, id, us):
        port.stale += 1
        port.own[slot] = id
        return False
    if id > s.last:
        port.fallen.pop(slot, None)
        return True
    own = port.own[slot]
    port.own[slot] = id
    if id == s.last:
        port.fallen.pop(slot, None)
        _copy(port, s, id)
        return False
    if s.channel.reset is Reset.SILENCE:
        fallen = _fall(port, slot, own, id)
        if fallen is None:
            _copy(port, s, id)
        else:
            port.stale += 1
            fallen.hold(Held(id, id, id, us, values, port.now, False), only_newest=True)
            consider(port.arbiter, s, port.now)
        return False
    if us and _proves_reset(port.arbiter, s, id, us):
        _open(port.arbiter, s, us, id)
        return True
    if s.gaps is not None:  # of this generation; a reset's id would look like a very late one
        s.gaps.offer(id, port.now)
    _copy(port, s, id)
    return False


def fresh(
    port: Port, s: Slot, id: int, first_id: int, us: int, values: tuple[Any, ...], key: Any
) -> bool:
    """Judge a trade that is not plainly the next one."""
    slot = s.slot
    port.calls += 1
    history = port.history.get(slot)
    if history is not None and id in history:
        port.duplicates += 1
        return False
    if s.gate and not admits(port, s, id, us):
        port.stale += 1
        port.own[slot] = id
        return False
    fallen = None
    if s.channel.reset is Reset.SILENCE:
        fallen = _fall(port, slot, port.own[slot], id) if id <= s.last else None
        port.own[slot] = id
    elif _is_ordered(s) and id < s.last and us and _proves_reset(port.arbiter, s, id, us):
        _open(port.arbiter, s, us, id)
    rank = us if s.window is not None and not s.window.ordered else id
    verdict = s.verdict(key, id, first_id, rank, port.now)
    publish = verdict is Verdict.NEW or verdict is Verdict.LATE
    if fallen is not None:
        held = Held(id, first_id, key, us, values, port.now, False)
        fallen.hold(held, only_newest=False)
        if consider(port.arbiter, s, port.now):
            return False
        held.published = publish
    if not publish:
        if verdict is Verdict.TOO_LATE:
            s.too_late += 1
        _copy(port, s, id)
        port.own[slot] = us if s.unordered else id
    return publish


def admits(port: Port, s: Slot, id: int, us: int) -> bool:
    """Whether a message belongs to the slot's generation (asked only after a reset)."""
    slot = s.slot
    if us and s.floor_us:
        # Trades of the reset's own millisecond are new ones if their ids continue it.
        belongs = us > s.floor_us or (
            us == s.floor_us
            and s.kind in TRADES
            and s.opened_with < id < min(s.opened_with + WINDOW_IDS, s.previous)
        )
    elif port.generation[slot] == s.generation:
        return True
    else:
        own = port.own[slot]
        belongs = id < own if own >= 0 else _is_nearer(port, s, id)
        belongs = belongs or id == s.last or (s.recent is not None and id in s.recent)
    if belongs and port.generation[slot] != s.generation:
        port.generation[slot] = s.generation
        port.own[slot] = -1  # that its ids dropped is no proof of yet another reset
    return belongs


def _is_nearer(port: Port, s: Slot, id: int) -> bool:
    """Whether an id of a line that brought nothing before the reset is of this generation rather
    than the former, by distance. It is asked only where no other line can tell."""
    slot = s.slot
    for other in port.arbiter.ports:
        if other is not port and other.serving_ns and other.generation[slot] == s.generation:
            return False
    return id <= s.last or id - s.last < s.previous - id


def consider(arbiter: Arbiter, s: Slot, now_ns: int) -> bool:
    """Open a new generation if silence has proved one; returns whether it did."""
    if s.channel.reset is not Reset.SILENCE or now_ns - s.advance_ns < arbiter.reset_ns:
        return False
    slot = s.slot
    fallen = []
    for port in arbiter.ports:
        if slot not in port.fallen:
            continue
        if port.own[slot] == port.fallen[slot].last < s.last:
            fallen.append(port)
        else:  # it caught up since
            del port.fallen[slot]
    if not any(port.fallen[slot].count >= 2 for port in fallen):
        return False
    first = min((h for port in fallen for h in port.fallen[slot].held), key=lambda h: h.local_ns)
    _open(arbiter, s, first.us, first.id)
    held: list[tuple[Port, Held]] = []
    for port in fallen:
        port.generation[slot] = s.generation
        held += [(port, h) for h in port.fallen.pop(slot).held]
    held.sort(key=lambda pair: (pair[1].id, pair[1].local_ns))
    for port, h in held:
        _publish_held(port, s, h)
    s.advance_ns = now_ns
    return True


def _publish_held(port: Port, s: Slot, h: Held) -> None:
    if s.kind in TRADES:
        verdict = s.verdict(h.key, h.id, h.first_id, h.id, h.local_ns)
        if verdict in (Verdict.NEW, Verdict.LATE):
            if h.id > s.last:
                s.last = h.id
                s.time_us = h.us
            if not h.published:
                port.publish(s, h.id, h.values, h.local_ns)
    elif h.id > s.last:
        s.last = h.id
        if s.kind is Kind.DEPTH5:
            port.publish_book(s, h.id, h.values, h.local_ns)
        else:
            port.publish(s, h.id, h.values, h.local_ns)
    else:
        port.duplicates += 1


def _fall(port: Port, slot: int, own: int, id: int) -> Fallen | None:
    """Follow a line on which ids drop: begins, continues or finds nothing to follow."""
    fallen = port.fallen.get(slot)
    if own >= 0 and id < own:
        fallen = port.fallen[slot] = Fallen(id)
    elif fallen is not None and id > fallen.last:
        fallen.last = id
        fallen.count += 1
    return fallen


def _is_ordered(s: Slot) -> bool:
    return s.window is not None and s.window.ordered


def _proves_reset(arbiter: Arbiter, s: Slot, id: int, us: int) -> bool:
    newest = s.newest_us()
    if s.channel.reset is Reset.ONE and id == 1:
        return us > newest
    return us > newest + arbiter.reset_ns // 1000


def _open(arbiter: Arbiter, s: Slot, us: int, id: int) -> None:
    arbiter.memo.clear()
    s.open_generation(us, id)
    for port in arbiter.ports:
        port.history.pop(s.slot, None)
    arbiter.on_reset(s)


def _copy(port: Port, s: Slot, id: int) -> None:
    """Count a message that brings nothing new: a copy of a published update, or older than that."""
    entry = s.recent.get(id) if s.recent is not None else None
    if entry is not None:
        port.copied(entry)
    elif id == s.last or s.kind in TRADES:
        port.duplicates += 1
    else:
        port.stale += 1
