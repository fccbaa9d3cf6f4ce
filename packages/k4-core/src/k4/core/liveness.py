"""Is a line silent where it should speak? Judged per (line, channel) from what is known, never
guessed.

Pure: arrays of local times (ns) in, findings out. The rules are promise P4's:

- WITNESSED: another line, or another channel of the same symbol, proves that something was missed.
- OWED: the venue owes data that did not come: the snapshot after the ack, or its periodic repeat.
- UNPROVEN: nothing came, and nothing proves that anything should have. Such a channel is subscribed
  again once, then its line is replaced at intervals that double, since a quiet market looks the
  same. The intervals are the line's: of hundreds of symbols some are always quiet.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import msgspec

PROVED = 0.5  # of the stall timeout: what remains is for the successor to come up
WITNESS_TRADES = 3  # trades of a symbol that must have moved its quote
LONGEST_NS = 600_000_000_000


class Silence(Enum):
    """Why a channel of a line is called silent, or what is to be done where nothing proves it."""

    WITNESSED = "witnessed"
    OWED = "owed"
    RESUBSCRIBE = "resubscribe"
    UNPROVEN = "unproven"


class Finding(msgspec.Struct, frozen=True):
    """One silent channel. `channel` is its position in the watch."""

    channel: int
    silence: Silence


class Duty(msgspec.Struct, frozen=True):
    """What one channel owes. witnesses: positions of channels whose progress proves that this one
    should have moved.
    """

    owes_snapshot: bool
    repeats_ns: int
    witnesses: tuple[int, ...] = ()


class Watch:
    """The silence of one line, channel by channel. Feed it regularly with `look`."""

    def __init__(self, duties: Sequence[Duty], stall_ns: int) -> None:
        size = len(duties)
        self._duties = tuple(duties)
        self._stall = stall_ns
        self._proved = int(stall_ns * PROVED)
        self._seen = [0] * size
        self._since = [0] * size  # when it was last heard, or subscribed
        self._missed = [0] * size  # since when a witness is ahead, 0 while none is
        self._marks = [0] * size  # the witnesses' progress when it was last heard
        self._patience = 2 * stall_ns  # silence of any channel after which the line is replaced
        self._renewed = 0  # when it was last to be replaced for that
        self._asked = [False] * size
        self._owed = [0] * size  # when a book was asked for anew, 0 never

    def owe(self, channel: int, now_ns: int) -> None:
        """The channel was subscribed again: where its venue owes a snapshot, it owes another."""
        if self._duties[channel].owes_snapshot:
            self._owed[channel] = now_ns

    def begin(self, now_ns: int) -> None:
        """The line is subscribed from now on. Its patience with quiet channels stays."""
        for i in range(len(self._duties)):
            self._seen[i] = 0
            self._since[i] = now_ns
            self._missed[i] = 0
            self._marks[i] = -1
            self._owed[i] = 0

    def excuse(self, gap_ns: int, now_ns: int) -> None:
        """For `gap_ns` nobody could hear anything, or the clock was set by that much (back where it
        is negative): that time proves no silence."""
        for times in (self._since, self._missed, self._owed):
            for i, at in enumerate(times):
                if at:
                    times[i] = min(at + gap_ns, now_ns)

    def adopt(self, other: Watch) -> None:
        """Go on with the patience that a predecessor gained where nothing is proved."""
        self._patience = other._patience
        self._asked = list(other._asked)

    def look(
        self,
        now_ns: int,
        seen: Sequence[int],
        advanced: Sequence[int],
        progress: Sequence[int],
        may_ask: bool = True,
    ) -> list[Finding]:
        """Judge every channel.

        seen[i]: when this line last brought anything of channel i, 0 for never. advanced[i]: when
        any line last brought something new of it. progress[i]: how many records it has published.
        may_ask: whether channels can be subscribed again now; else that is found later.
        """
        findings = []
        for i, duty in enumerate(self._duties):
            total = 0
            for witness in duty.witnesses:
                total += progress[witness]
            if seen[i] != self._seen[i] or self._marks[i] < 0:
                if seen[i] > self._since[i]:
                    self._since[i] = seen[i]
                    self._asked[i] = False
                self._seen[i] = seen[i]
                self._marks[i] = total
                self._missed[i] = 0
            silence = self._judge(i, duty, now_ns, advanced[i], total, may_ask)
            if silence is not None:
                findings.append(Finding(i, silence))
        if not any(self._asked):
            self._patience = 2 * self._stall
        return findings

    def _judge(
        self, i: int, duty: Duty, now_ns: int, advanced_ns: int, total: int, may_ask: bool
    ) -> Silence | None:
        since = self._since[i]
        # What seems to be of the future came before the clock was set back.
        ahead = since < advanced_ns <= now_ns or (
            bool(duty.witnesses) and total - self._marks[i] >= WITNESS_TRADES
        )
        if ahead:
            if not self._missed[i]:
                self._missed[i] = now_ns
            if now_ns - self._missed[i] >= self._proved:
                return Silence.WITNESSED
            return None
        owed = self._owed[i]
        if duty.owes_snapshot and (not self._seen[i] or self._seen[i] < owed):
            return Silence.OWED if now_ns - max(since, owed) >= self._proved else None
        if duty.repeats_ns:
            due = since + duty.repeats_ns
            return Silence.OWED if now_ns - due >= self._proved else None
        if not self._asked[i]:
            if now_ns - since < self._stall or not may_ask:
                return None
            self._asked[i] = True
            return Silence.RESUBSCRIBE
        if now_ns - max(since, self._renewed) < self._patience:
            return None
        self._patience = min(2 * self._patience, LONGEST_NS)
        self._renewed = now_ns
        return Silence.UNPROVEN
