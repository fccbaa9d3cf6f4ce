"""A clock that a test moves: timers run in order, and a simulated day costs only its events."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class ManualTimer:
    """A pending call of a `ManualClock`."""

    __slots__ = ("args", "callback", "due_ns", "pending")

    def __init__(self, due_ns: int, callback: Callable[..., object], args: tuple[object, ...]):
        self.due_ns = due_ns
        self.callback = callback
        self.args = args
        self.pending = True

    def cancel(self) -> None:
        self.pending = False


class ManualClock:
    """A `Clock` that stands still between calls of `advance`.

    Wall time and monotonic time move together, in whole nanoseconds. Timers that are due at the
    same time run in the order in which they were set. Two runs of the same calls are identical.
    """

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self._start_ns = start_ns
        self._now_ns = start_ns
        self._step_ns = 0
        self._sequence = 0
        self._heap: list[tuple[int, int, ManualTimer]] = []

    def time_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return self._now_ns + self._step_ns

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return (self._now_ns - self._start_ns) / 1e9

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object
    ) -> ManualTimer:
        """Call `callback(*args)` when the clock was advanced by `delay` seconds; 0 needs an
        `advance(0)`.
        """
        # Rounded up, so that a caller never finds its time not yet come.
        due_ns = self._now_ns + max(0, -int(-delay * 1e9 // 1))
        timer = ManualTimer(due_ns, callback, args)
        self._sequence += 1
        heapq.heappush(self._heap, (due_ns, self._sequence, timer))
        return timer

    def pause(self, seconds: float) -> None:
        """Move on without running anything, as time does for a process that is stopped. Timers that
        fell due meanwhile run at the next `advance`."""
        self._now_ns += round(seconds * 1e9)

    def advance(self, seconds: float) -> None:
        """Move on, running every timer that falls due on the way, new ones included.

        An exception of a callback leaves the clock at that callback's time and reaches the caller.
        """
        target_ns = self._now_ns + round(seconds * 1e9)
        while self._heap and self._heap[0][0] <= target_ns:
            due_ns, _, timer = heapq.heappop(self._heap)
            if timer.pending:
                timer.pending = False
                self._now_ns = max(self._now_ns, due_ns)
                timer.callback(*timer.args)
        self._now_ns = max(self._now_ns, target_ns)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP would; timers do not care."""
        self._step_ns += round(seconds * 1e9)

    @property
    def pending(self) -> int:
        """How many timers are set and not cancelled."""
        return sum(timer.pending for _, _, timer in self._heap)

    @property
    def next_in(self) -> float | None:
        """Seconds to the next timer, None without one."""
        due = [due_ns for due_ns, _, timer in self._heap if timer.pending]
        return (min(due) - self._now_ns) / 1e9 if due else None
