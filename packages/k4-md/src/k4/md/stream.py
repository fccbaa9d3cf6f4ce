"""The lines of one feed: start them, replace the silent, the old and the slow, without a hole.

A replacement is made before the old line is broken: the successor connects, and the old line closes
only when the successor has delivered, for every (kind, symbol) that the old one delivered since the
successor's ack, an id not older than the old one's. Silent pairs do not count. Successors are
judged like lines: one that is silent itself is given up, and another one tried.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from k4.core.clock import Clock
from k4.core.enums import Kind
from k4.core.latency import Histogram
from k4.core.limits import Keepalive
from k4.core.link import Link, host_of
from k4.core.liveness import Duty, Silence, Watch
from k4.core.log import Logger, get_logger
from k4.core.retry import Budget
from k4.core.rotation import slowest, tells
from k4.core.transport import Closed, Dial, Transport
from k4.core.venue_clock import Age, VenueClock
from k4.md.arbiter import Arbiter
from k4.md.dials import spread
from k4.md.feed import Ack, Broken, Channel, Control, Feed, Notice, Refused
from k4.md.handover import Handover, Handovers
from k4.md.line import Line
from k4.md.slots import Slot

MOST_REFUSALS = 2048  # remembered by topic: what a venue sends must not fill the memory
MEASURE_EVERY = 15.0  # seconds between two measurements of a line's round trip
OVERLAP = 0.1  # of the stall timeout: what a successor serves beside its predecessor at least
HEARD = 10.0  # seconds that a closed line is heard at most: a venue that stands still answers later
REFUSED = (400, 401, 403, 404)  # handshake answers that time does not mend
MOST_DOUBLINGS = 30  # of a wait, which has a limit long before that
ASK_GAP = 0.2  # of the stall timeout: between two lines that subscribe quiet channels again
HELD_UP_NS = 1_000_000_000  # a tick that is so late: this process did not run, or the clock was set
URGENT = ("stall", "notice")  # what does not wait until other replacements are done


class Settings:
    """What a connection's configuration says about its lines. Times in seconds; 0 turns off."""

    def __init__(
        self,
        *,
        stall_timeout: float = 10.0,
        rotate_every: float = 0.0,
        rotate_after: int = 0,
        ping_interval: float | None = None,
    ) -> None:
        self.stall_timeout = stall_timeout
        self.rotate_every = rotate_every
        self.rotate_after = rotate_after
        self.ping_interval = ping_interval


class Succession:
    """A replacement under way. target: by slot, the generation and the id that the successor has to
    reach, None while both lines have not served long enough. noticed: the venue has announced that
    it will close the successor, too.
    """

    def __init__(self, old: Line, new: Line, reason: str, began: float) -> None:
        self.old = old
        self.new = new
        self.reason = reason
        self.began = began
        self.target: dict[int, tuple[int, int]] | None = None
        self.noticed = False


def _logger(feed: Feed) -> Logger:
    return get_logger("k4.md.stream").bind(stream=feed.name)


class Stream:
    """One feed with its N lines.

    counts: rotations, abandoned, stalls, unproven, resubscribed, notices, refused, broken,
    fallbacks; and of the rotations that are over, overlap_ms in all, rotation_lost and
    rotation_suspected: ids that no line brought while they took place.
    """

    def __init__(
        self,
        feed: Feed,
        arbiter: Arbiter,
        dials: Callable[[Feed], Sequence[Dial]],
        *,
        settings: Settings,
        transport: Transport,
        clock: Clock,
        budget: Budget,
        rng: random.Random,
    ) -> None:
        self.feed = feed
        self.arbiter = arbiter
        self.lines: list[Line] = []
        self.closing: list[Line] = []  # still heard, or with updates that are not accounted for yet
        self.gone: dict[str, int] = {}  # totals of lines that are no more
        self.lag = Histogram()  # theirs
        self.wait = Histogram()
        self.ages = VenueClock()
        self.counts = dict.fromkeys(
            (
                "rotations",
                "abandoned",
                "stalls",
                "unproven",
                "resubscribed",
                "notices",
                "refused",
                "broken",
                "fallbacks",
                "overlap_ms",
                "rotation_lost",
                "rotation_suspected",
            ),
            0,
        )
        self.refusals: dict[str, str] = {}  # topic to the venue's words
        self.successions: list[Succession] = []
        self.handovers = Handovers(self._states, self.counts, int(feed.limits.reset_wait * 1e9))
        self._ask_at = 0.0  # when the next line may subscribe quiet channels again
        self.log = _logger(feed)
        self._dials = dials
        self._settings = settings
        self._transport = transport
        self._clock = clock
        self._budget = budget
        self._rng = rng
        self._next_id = 0
        self._rotated = 0.0
        self._messages = 0
        self._slots = [channel.slot for channel in feed.channels]
        self._duties = duties(feed.channels)
        self._stopped = False
        self._up_at_end = 0
        self._ticked_ns = 0

    # Life

    def start(self) -> None:
        """Open all lines."""
        self._rotated = self._clock.monotonic()
        for _ in range(self.feed.lines):
            self.lines.append(self._open())

    def stop(self) -> None:
        """Close all lines in order; they are gone when each link has stopped."""
        self._up_at_end = self.lines_up
        self._stopped = True
        for succession in list(self.successions):
            self._give_up(succession)
        self.handovers.end(self._clock.time_ns(), self.log)
        for line in self.lines:
            line.link.stop()

    @property
    def stopped(self) -> bool:
        return all(line.over for line in self.lines)

    def live(self, line: Line) -> bool:
        """Whether a line is subscribed and not known to be silent (promise P4). None is where the
        venue has refused every topic to all of them."""
        topics = len(self.feed.channels)
        granted = any(len(other.refused) < topics for other in self.lines)
        return line.up and granted and not self._silent(line)

    def _silent(self, line: Line) -> bool:
        return any(s.old is line and s.reason == "stall" for s in self.successions)

    @property
    def all_lines(self) -> list[Line]:
        """The lines, and the successors that are not yet among them."""
        return [*self.lines, *(succession.new for succession in self.successions)]

    @property
    def counted(self) -> list[Line]:
        """All whose figures are not in `gone`."""
        return [*self.all_lines, *self.closing]

    @property
    def lines_up(self) -> int:
        """How many serve, at the end how many did."""
        return self._up_at_end if self._stopped else sum(self.live(line) for line in self.lines)

    def _open(self, heir_of: Line | None = None) -> Line:
        id = self._next_id
        self._next_id += 1
        feed = self.feed
        watch = Watch(self._duties, int(self._settings.stall_timeout * 1e9))
        if heir_of is not None:
            watch.adopt(heir_of.watch)
        line = Line(id, feed, self.arbiter, self, watch, heir_of)
        line.born = self._clock.monotonic()
        if feed.limits.max_life:
            # Ages are staggered, so that the venue's cut never takes two lines at once.
            line.life = feed.limits.max_life * (0.95 - 0.3 * self._rng.random())
        line.link = Link(
            name=f"{feed.name}#{id}",
            dials=spread(
                self._dials(feed),
                [other.link.dial for other in self.all_lines if other is not heir_of],
                heir_of.link.dial if heir_of is not None else None,
            ),
            transport=self._transport,
            clock=self._clock,
            budget=self._budget,
            hello=feed.hello,
            acks=feed.acks,
            limits=feed.limits,
            keepalive=self._keepalive(),
            owner=line,
            rng=self._rng,
        )
        line.link.start()
        return line

    def _keepalive(self) -> Keepalive | None:
        keepalive, interval = self.feed.keepalive, self._settings.ping_interval
        if keepalive is None or interval is None:
            return keepalive
        return Keepalive(min(interval, keepalive.interval), keepalive.text, keepalive.idle_only)

    def _close(self, line: Line) -> None:
        """A line is gone for good. It still counts until nothing of it is on its way any more."""
        line.link.stop(patience=HEARD)
        self.arbiter.close(line.port)
        line.ended = math.inf
        self.closing.append(line)

    def _let_go(self, now: float) -> None:
        """Keep the totals of closed lines that have nothing to add."""
        for line in list(self.closing):
            if line.ended == math.inf and line.over:
                line.ended = now
            if now - line.ended > self.feed.limits.trade_window + self.feed.limits.reset_wait:
                self.closing.remove(line)
                self.lag.merge(line.port.lag)
                self.wait.merge(line.port.wait)
                for name, value in totals(line).items():
                    self.gone[name] = self.gone.get(name, 0) + value

    # The lines' owner

    def line_up(self, line: Line, /) -> None:
        now_ns = self._clock.time_ns()
        line.acked_ns = line.port.serving_ns = now_ns
        line.wanted = ""  # what was announced to close has closed
        line.watch.begin(now_ns)
        self.log.info("line up", line=line.id, remote=line.link.remote)

    def line_down(self, line: Line, how: Closed, retry_in: float, /) -> None:
        if retry_in == math.inf:
            self.log.info("line closed", line=line.id, code=how.code, reason=how.reason)
            return
        if self._stopped:
            return
        self.log.warning(
            "line down", line=line.id, code=how.code, reason=how.reason, retry_in=round(retry_in, 3)
        )
        nobody = not any(other.up for other in self.all_lines)
        if how.status in REFUSED and self.feed.fallback is not None and nobody:
            self._fall_back(how)

    def line_says(self, line: Line, event: Control, /) -> None:
        if isinstance(event, Ack):
            line.link.acked()
        elif isinstance(event, Refused):
            self._refused(line, event)
            line.link.acked()
        elif isinstance(event, Notice):
            self.counts["notices"] += 1
            self.log.warning("venue will close the line", line=line.id, text=event.text)
            self.replace(line, "notice")
            for succession in self.successions:
                succession.noticed |= succession.new is line
        elif isinstance(event, Broken):
            self.counts["broken"] += 1
            self._resubscribe(line, [c for c in self.feed.channels if c.slot == event.slot])

    def _refused(self, line: Line, event: Refused) -> None:
        self.counts["refused"] += 1
        if event.alone:
            self.log.warning(
                "request refused, its topics are asked for one by one",
                line=line.id,
                request=event.request,
                text=event.text,
            )
            for channel in self.feed.channels:
                if channel.slot in event.alone:
                    for request in self.feed.requests("subscribe", (channel,)):
                        line.link.send(request)
            return
        what = event.topic or event.request
        if event.topic:
            line.refused.add(event.topic)
        if self.refusals.get(what) != event.text and len(self.refusals) < MOST_REFUSALS:
            self.refusals[what] = event.text
            self.log.error("refused", topic=what, code=event.code, text=event.text)

    def _fall_back(self, how: Closed) -> None:
        fallback = self.feed.fallback
        if fallback is None:
            return
        self.log.error(
            "handshake refused, falling back",
            status=how.status,
            reason=how.reason,
            to=fallback.name,
        )
        self.counts["fallbacks"] += 1
        self.handovers.end(self._clock.time_ns(), self.log)
        for line in self.all_lines:
            self._close(line)
        self.successions.clear()
        self.lines.clear()
        self.feed = fallback
        self.log = _logger(fallback)
        self._slots = [channel.slot for channel in fallback.channels]
        self._duties = duties(fallback.channels)
        self.start()

    def _resubscribe(self, line: Line, channels: Sequence[Channel]) -> None:
        for op in ("unsubscribe", "subscribe"):
            for request in self.feed.requests(op, channels):
                line.link.send(request)
        for channel in channels:
            line.watch.owe(self._slots.index(channel.slot), self._clock.time_ns())

    # Replacement

    def replace(self, line: Line, reason: str) -> bool:
        """Make a successor of `line`; whether anything was done.

        A silent line, and one that the venue is about to close, are replaced at once, however many
        they are. Other reasons have to come again when no replacement is under way.
        """
        if self._stopped or line not in self.lines:
            return False
        for succession in self.successions:
            if succession.old is line:
                if reason != "stall" or succession.reason == "stall":
                    return False
                succession.reason = reason
                return True
        if self._clock.monotonic() < line.retry_at:
            return False
        if self.successions and reason not in URGENT:
            return False
        line.wanted = ""
        new = self._open(heir_of=line)
        self.successions.append(Succession(line, new, reason, self._clock.monotonic()))
        self.log.info("replacing line", line=line.id, by=new.id, reason=reason)
        return True

    def tick(self, now_ns: int) -> None:
        """Judge all lines; called a few times a second."""
        if self._stopped:
            return
        gap_ns, self._ticked_ns = now_ns - (self._ticked_ns or now_ns), now_ns
        if not 0 <= gap_ns <= HELD_UP_NS:
            for line in self.all_lines:
                line.watch.excuse(gap_ns, now_ns)
                line.judge_at = max(line.judge_at, self._clock.monotonic() + OVERLAP)
        for succession in list(self.successions):
            self._succeed(succession)
        if self.handovers.pending:
            self.handovers.settle(now_ns, self.log)
        now = self._clock.monotonic()
        if self.closing:
            self._let_go(now)
        for line in list(self.lines):
            if line.wanted:
                self.replace(line, line.wanted)
            elif line.life and now - line.born > line.life and line.up:
                self.replace(line, "age")
        for line in self.all_lines:
            if line.up and now >= line.judge_at:
                line.judge_at = now + self._settings.stall_timeout / 20
                # Each in a turn of its own: with many symbols, all would hold up the messages.
                self._clock.call_later(0.0, functools.partial(self._look_at, line))
        self._rotate(now)

    def sample(self, now_ns: int) -> None:
        """Take the age of the newest updates as samples of the lines that have brought them."""
        now, ages = self._clock.monotonic(), self.ages
        for s in self._states():
            venue_us = s.newest_us()
            if s.last == s.sampled or not venue_us:
                continue
            s.sampled = s.last
            for line in self.lines:
                seen_us = line.port.seen[s.slot] // 1000
                if seen_us and line.port.own[s.slot] == s.last:
                    line.differences.append(ages.frame(venue_us, seen_us, now_ns))
        for line in self.lines:
            if line.link.round_trip_ns >= 0:
                ages.round_trip(line.link.round_trip_ns, now_ns)
            if now - line.measured >= MEASURE_EVERY and line.up:
                line.measured = now
                line.link.measure()

    def age(self, line: Line) -> Age | None:
        """How old a line's frames are on arrival; None before the first."""
        return self.ages.age(line.differences)

    def _states(self) -> list[Slot]:
        slots = self.arbiter.slots
        return [state for slot in self._slots if (state := slots[slot]) is not None]

    def _succeed(self, succession: Succession) -> None:
        old, new = succession.old, succession.new
        if not new.up:
            succession.target = None  # it has to serve beside the old line once more
        elif succession.target is not None:
            if self._reached(succession, succession.target):
                self._take_over(succession)
                return
        elif self._overlapped(succession):
            seen, own, slots = old.port.seen, old.port.own, self._states()
            succession.target = (
                {s.slot: (s.generation, own[s.slot]) for s in slots if seen[s.slot] > new.acked_ns}
                if old.up
                else {}
            )
        if self._clock.monotonic() - succession.began > self.feed.limits.rotation_deadline:
            self._abandon(succession)

    def _reached(self, succession: Succession, target: dict[int, tuple[int, int]]) -> bool:
        """Whether the successor has delivered what it has to. Where a reset began the ids anew,
        that is what the old line has delivered since, and ids of before say nothing."""
        old, new, reached = succession.old.port, succession.new.port, True
        for s in self._states():
            if s.slot not in target:
                continue
            generation, id = target[s.slot]
            if generation != s.generation:
                id = min(old.own[s.slot], s.last)
                target[s.slot] = s.generation, id
            # An heir begins with its predecessor's ids: it must have brought one itself.
            reached = reached and new.seen[s.slot] > 0 and id <= new.own[s.slot] <= s.last
        return reached

    def _overlapped(self, succession: Succession) -> bool:
        """Whether both have served long enough side by side for silence to tell something. A line
        that is down or silent is not waited for."""
        if succession.reason == "stall" or not succession.old.up:
            return True
        overlap = self._clock.time_ns() - succession.new.acked_ns
        return overlap >= self._settings.stall_timeout * OVERLAP * 1e9

    def _abandon(self, succession: Succession, why: str = "late") -> None:
        self.counts["abandoned"] += 1
        self.log.warning(
            "replacement abandoned", line=succession.old.id, by=succession.new.id, why=why
        )
        self._give_up(succession)

    def _give_up(self, succession: Succession) -> None:
        self.successions.remove(succession)
        self._close(succession.new)

    def _take_over(self, succession: Succession) -> None:
        self.successions.remove(succession)
        old, new = succession.old, succession.new
        overlap_ms = (self._clock.time_ns() - new.acked_ns) // 1_000_000
        self.lines[self.lines.index(old)] = new
        self.handovers.pending.append(Handover(old, new, overlap_ms))
        self._close(old)
        self.counts["rotations"] += 1
        self.log.info(
            "line replaced",
            line=old.id,
            by=new.id,
            reason=succession.reason,
            overlap_ms=overlap_ms,
            pairs=len(succession.target or ()),
        )
        if succession.noticed:
            self.replace(new, "notice")

    def _look_at(self, line: Line) -> None:
        if not self._stopped and line.up and line in self.all_lines:
            self._judge(line, self._clock.time_ns())

    def _judge(self, line: Line, now_ns: int) -> None:
        stall = self._settings.stall_timeout
        if (
            now_ns - max(line.port.latest_ns, line.link.last_control_ns, line.acked_ns)
            > stall * 0.4e9
        ):
            line.link.ping_probe(stall * 0.4)
        slots = self._states()
        findings = line.watch.look(
            now_ns,
            [line.port.seen[slot] for slot in self._slots],
            [slot.advance_ns for slot in slots],
            [slot.lane.next for slot in slots],
            may_ask=line.link.idle and self._clock.monotonic() >= self._ask_at,
        )
        quiet: list[Channel] = []
        for finding in findings:
            channel = self.feed.channels[finding.channel]
            if channel.topic in self.refusals and not self._served(line, channel):
                continue
            if finding.silence is Silence.RESUBSCRIBE:
                quiet.append(channel)
            elif finding.silence is Silence.UNPROVEN:
                if self.replace(line, "unproven"):
                    self.counts["unproven"] += 1
            elif self._renew(line):
                self.counts["stalls"] += 1
                self.log.warning(
                    "line is silent", line=line.id, topic=channel.topic, why=finding.silence.value
                )
        if quiet and line.up:
            # One line after the other: what the venue sends between the requests reaches none.
            self._ask_at = self._clock.monotonic() + stall * ASK_GAP
            self.counts["resubscribed"] += len(quiet)
            self._resubscribe(line, quiet)

    def _renew(self, line: Line) -> bool:
        """Replace a silent line. A successor is given up. The first time another one may follow at
        once, then after waits that double, since the fault may be the venue's."""
        for succession in self.successions:
            if succession.new is line:
                old, stall = succession.old, self._settings.stall_timeout
                self._abandon(succession, "silent")
                if old.failed:
                    doubled = stall * 2.0 ** min(old.failed - 1, MOST_DOUBLINGS)
                    wait = min(doubled, self.feed.limits.rotation_deadline)
                    old.retry_at = self._clock.monotonic() + wait
                old.failed += 1
                if succession.reason == "notice":  # nothing else asks again
                    old.wanted = succession.reason
                return True
        return self.replace(line, "stall")

    def _served(self, line: Line, channel: Channel) -> bool:
        """Whether siblings get what this line, perhaps, was refused: then the topic is the venue's
        after all, and silence counts again."""
        slot, since = channel.slot, max(line.port.seen[channel.slot], line.acked_ns)
        served = any(other.port.seen[slot] > since for other in self.lines if other is not line)
        if served:
            self.refusals.pop(channel.topic, None)
        return served

    def _rotate(self, now: float) -> None:
        every, after = self._settings.rotate_every, self._settings.rotate_after
        if len(self.lines) < 2 or self.successions or not (every or after):
            return
        messages = self._all_messages() if after else 0
        due = (every and now - self._rotated >= every) or (
            after and messages - self._messages >= after * len(self.lines)
        )
        if not due or not all(line.up for line in self.lines):
            return
        if not self._budget.spare(host_of(self.feed.urls[0]), now):
            return  # lines that are down or silent need the attempts more
        self._rotated, self._messages = now, messages
        samples = [line.sample() for line in self.lines]
        if not all(map(tells, samples)):
            return  # they go on gathering
        worst = slowest(samples)
        for line in self.lines:
            line.mark()
        if worst is not None:
            self.replace(self.lines[worst], "slow")

    def _all_messages(self) -> int:
        """Updates that all lines have ever brought."""
        known = sum(line.messages for line in (*self.lines, *self.closing))
        return known + self.gone.get("messages", 0)


def duties(channels: Sequence[Channel]) -> list[Duty]:
    """What each channel owes, and which others prove that it should have moved: a trade moves the
    quote and the book, and trades and aggregated trades come together.
    """
    position = {channel.slot: i for i, channel in enumerate(channels)}
    found = []
    for channel in channels:
        trades = [(channel.slot & ~3) | kind for kind in (Kind.TRADE, Kind.AGGTRADE)]
        found.append(
            Duty(
                channel.owes_snapshot,
                int(channel.repeats * 1e9),
                tuple(position[s] for s in trades if s in position and s != channel.slot),
            )
        )
    return found


def totals(line: Line) -> dict[str, int]:
    """What a line adds to its stream's figures."""
    port, duplicates = line.port, line.port.duplicates
    figures: dict[str, Any] = {
        "messages": port.wins + duplicates + port.stale,
        "published": port.wins,
        "duplicates": duplicates,
        "stale": port.stale,
        "missed": port.missed,
        "alone": port.alone,
        "reconnects": line.reconnects,
        "dropped": sum(port.drops.values()),
        "faults": line.link.faults,
    }
    return figures
