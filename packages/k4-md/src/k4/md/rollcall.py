"""Has everything been heard that was sent before? Lines are asked, and their answers tell.

A silence that is to prove a reset (promise P5) proves nothing while this process, the network or
the venue stood still; an answer comes behind all that the venue had sent by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from k4.md.fallen import PATIENCE

if TYPE_CHECKING:
    from k4.md.arbiter import Arbiter


class RollCall:
    """All serving lines are asked for an answer, which comes behind everything that the venue sent
    before it. What none of them has brought by then was not merely late because this process, the
    network or the venue stood still.

    A line that does not answer is waited for as long as a reset is, once another one has answered.
    """

    def __init__(self, arbiter: Arbiter, now_ns: int) -> None:
        self.began_ns = now_ns
        self._arbiter = arbiter
        self._unasked = self._waiting = [port for port in arbiter.ports if port.serves]
        self._answered_ns = -1  # the arbiter's `awake_ns` when the first one had

    @property
    def answered(self) -> bool:
        """Whether any line has answered."""
        return self._answered_ns >= 0

    def look(self) -> bool:
        """Ask who has not been asked yet; whether it is over."""
        self._unasked = [port for port in self._unasked if not port.ask()]
        awake_ns, waiting = self._arbiter.awake_ns, []
        for port in self._waiting:
            if port.answered(self.began_ns):
                self._answered_ns = awake_ns if self._answered_ns < 0 else self._answered_ns
            elif port.serves:
                waiting.append(port)
        self._waiting = waiting
        patient = awake_ns - self._answered_ns < self._arbiter.reset_ns or not self.answered
        return not (waiting and patient)


def roll_called(arbiter: Arbiter, since_ns: int, now_ns: int) -> bool:
    """Whether lines have answered a roll call that began then or later; else one begins as soon as
    the former is over or too old, and no more often than the venue's rates stand.

    Many slots wait for the same calls, each since another time: the one that looks first and needs
    a new call must not take from the others what the former has told.
    """
    call = arbiter.roll_call
    age_ns = now_ns - call.began_ns if call is not None else -1
    under_way = call is not None and 0 <= age_ns < PATIENCE * arbiter.reset_ns
    if call is not None and under_way and call.look():
        under_way = False
        if call.answered:
            arbiter.called_ns = call.began_ns
    if since_ns <= arbiter.called_ns <= now_ns:
        return True
    if not under_way and (age_ns < 0 or age_ns >= arbiter.reset_ns // 4):
        arbiter.roll_call = RollCall(arbiter, now_ns)
        arbiter.roll_call.look()
    return False
