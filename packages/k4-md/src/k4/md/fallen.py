"""A line whose ids dropped: how far it fell, what it has brought since, and whether that proves a
reset (promise P5, the venues without evidence in one message).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from k4.core.enums import Kind
from k4.core.window import WINDOW_IDS, Figures

if TYPE_CHECKING:
    from k4.md.slots import Slot

TRADES = (Kind.TRADE, Kind.AGGTRADE)
PATIENCE = 5  # times the wait for a reset: so long may breaks postpone it where nobody answers


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
    """A line whose ids dropped on a slot.

    height: the id it fell from; a line that is above it again was merely out of order. drop: the
    deepest fall, after which everything here counts: smaller ones before it were disorder of the
    old generation, smaller ones after it are disorder of the new. A further fall that no disorder
    explains is another reset, and the drop is then how far all went. last: the highest id since.
    fell_ns: when the first of these came. rose_ns: when the last two that rose came, 0 before them.
    began_ns: the arbiter's `awake_ns` when its ids dropped first. held: what it brought. taken:
    what those messages did to the ledger of gaps of the generation that may be over. proves: False
    for a line that began below the last id: it may lag, so others have to prove the reset, but what
    it brought is held with theirs. See `proved` for where no such line is left.
    """

    __slots__ = (
        "began_ns",
        "drop",
        "fell_ns",
        "height",
        "held",
        "last",
        "proves",
        "rose_ns",
        "taken",
    )

    def __init__(
        self, height: int, id: int, now_ns: int, began_ns: int, proves: bool = True
    ) -> None:
        self.height = height
        self.proves = proves
        self.began_ns = began_ns
        self.held: list[Held]
        self.taken: Figures
        self.fall(height - id, id, now_ns)

    def fall(self, drop: int, id: int, now_ns: int) -> None:
        """The deepest fall so far."""
        self.drop = drop
        self.last = id
        self.fell_ns = now_ns
        self.rose_ns = (0, now_ns)
        self.held = []
        self.taken = (0, 0, 0)

    def follow(self, own: int, id: int, now_ns: int, keep: bool) -> None:
        """The line brought `id` after `own`. keep: of two resets what came between them."""
        if own - id > WINDOW_IDS:
            self._fall_again(id, now_ns, keep)
        elif own - id >= self.drop:
            self.fall(own - id, id, now_ns)
        elif id > self.last:
            self.last = id
            self.rose_ns = (self.rose_ns[1], now_ns)

    def _fall_again(self, id: int, now_ns: int, keep: bool) -> None:
        """Another reset, before the former one was proved."""
        held, taken, fell_ns = self.held, self.taken, self.fell_ns
        self.proves = True  # however it began: now its own ids have dropped
        was_disorder = self.drop <= WINDOW_IDS
        self.fall(self.height - id, id, now_ns)
        if keep and not was_disorder:
            self.held, self.taken, self.fell_ns = held, taken, fell_ns

    def resume(self, own: int, id: int, now_ns: int, keep: bool) -> None:
        """The line's ids dropped again, to where they were after the first fall: what came between
        was a late one of the old generation, and `own` the highest of these."""
        self.drop += own - self.height
        self.height = own
        self.follow(self.last, id, now_ns, keep)

    def is_later(self, other: Fallen) -> bool:
        """Of a quote or book each: whether it brought the later one, by the venue's time where both
        have one. That tells a higher id of the same generation from one of a former."""
        if self.held and other.held and self.held[0].us and other.held[0].us:
            return self.held[0].us > other.held[0].us
        return self.rose_ns[1] > other.rose_ns[1]

    def proved(self, s: Slot, reset_ns: int) -> bool:
        """Whether two ids rose while no line brought one above the last.

        A line that began below the last id says so only where no lag can explain it: far below, and
        when no line has brought anything above for long. Otherwise a slot whose last id no line
        remembers would be silent for ever.
        """
        if self.proves:
            return self.rose_ns[0] >= s.advance_ns
        is_far = s.last - self.last > WINDOW_IDS
        return is_far and self.rose_ns[0] - s.advance_ns >= PATIENCE * reset_ns

    def took(self, before: Figures, after: Figures) -> None:
        """The ledger of gaps went from `before` to `after` by one of its messages."""
        lost, healed, runs = self.taken
        self.taken = (
            lost + after[0] - before[0],
            healed + after[1] - before[1],
            runs + after[2] - before[2],
        )

    def hold(self, held: Held, only_newest: bool) -> None:
        if only_newest:
            if self.held and self.held[0].id > held.id:
                return
            self.held = []
        if len(self.held) < WINDOW_IDS:
            self.held.append(held)
