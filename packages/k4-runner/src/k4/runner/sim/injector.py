"""Commits the faults of a script on one venue's connections, and records each that happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING

from k4.core.clock import Timer
from k4.runner.sim import ws
from k4.runner.sim.client import Client
from k4.runner.sim.faults import Rule, Scope
from k4.runner.sim.ledger import FaultRecord
from k4.runner.sim.venue import CloseCode, Topic, Verdict
from k4.runner.sim.ws import Refusal

if TYPE_CHECKING:
    from k4.runner.sim.server import SimServer


class _Active:
    """A rule at work. window: in force now; credit: single strikes that wait for an opportunity.

    chosen: the connections that a window concerns, None for all that match.
    """

    def __init__(self, rule: Rule, seed: object) -> None:
        self.rule = rule
        self.random = Random(f"{seed}/{rule.index}/{rule.fault}")
        self.window = not rule.timed and rule.index >= 0
        self.credit = 0
        self.seen = 0
        self.done = 0
        self.chosen: set[Client] | None = None
        self.noted: set[Client] = set()
        self.topics: dict[str, bool] = {}
        self.timers: list[Timer] = []

    @property
    def live(self) -> bool:
        spent = self.rule.limit and self.done >= self.rule.limit
        return not spent and (self.window or self.credit > 0)

    def strikes(self) -> bool:
        """One opportunity: does it happen?"""
        rule = self.rule
        self.seen += 1
        if rule.nth is not None and self.seen % rule.nth:
            return False
        if rule.probability is not None and self.random.random() >= rule.probability:
            return False
        if not self.window:
            self.credit -= 1
        self.done += 1
        return True


class _Fate:
    """What becomes of one frame. held: how many frames overtake it. lost: it does not go out."""

    __slots__ = ("copies", "delay", "frame", "held", "lost", "ordered")

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.copies = 1
        self.delay = 0.0
        self.ordered = True
        self.held = 0
        self.lost = False


class Injector:
    """The faults of one venue."""

    def __init__(self, server: SimServer, rules: Sequence[Rule], seed: int) -> None:
        self._server = server
        self._seed = seed
        self._rules: list[_Active] = []
        self._per_frame: list[_Active] = []
        self._stalls: dict[Client, list[_Active]] = {}
        for rule in rules:
            if rule.target.venue in ("", server.name):
                self._add(rule)

    def _add(self, rule: Rule) -> _Active:
        active = _Active(rule, f"{self._seed}/{self._server.name}/{len(self._rules)}")
        self._rules.append(active)
        chance = rule.probability is not None or rule.nth is not None
        if rule.scope is Scope.FRAME or (rule.scope is Scope.CONNECTION and chance):
            self._per_frame.append(active)
        return active

    def start(self) -> None:
        """Begin to count seconds for `at` and `every`."""
        for active in self._rules:
            rule = active.rule
            if rule.timed:
                first = rule.at if rule.at is not None else rule.every or 0.0
                self._wait(active, first, self._strike_time, active)
        self.refresh()

    def stop(self) -> None:
        for active in self._rules:
            for timer in active.timers:
                timer.cancel()
            active.timers.clear()

    def forget(self, client: Client) -> None:
        """The connection is gone."""
        self._stalls.pop(client, None)

    def inject(self, rule: Rule) -> int:
        """Commit one fault now; returns how many connections it concerns."""
        active = self._add(rule)
        if rule.timed:
            first = rule.at if rule.at is not None else rule.every or 0.0
            self._wait(active, first, self._strike_time, active)
            return 0
        return self._strike(active)

    def refresh(self) -> None:
        """Decide anew which connections take the fast path."""
        quiet = not any(active.live for active in self._per_frame)
        for client in self._server.clients:
            client.plain = quiet and not (self._stalls.get(client) or client.lagging or client.held)

    # -- the clock strikes ------------------------------------------------------------------------

    def _wait(self, active: _Active, delay: float, callback: object, *args: object) -> None:
        active.timers.append(self._server.clock.call_later(delay, callback, *args))  # type: ignore[arg-type]

    def _strike_time(self, active: _Active) -> None:
        active.timers.clear()
        rule = active.rule
        if rule.limit and active.done >= rule.limit:
            return
        self._strike(active)
        if rule.every is not None:
            self._wait(active, rule.every, self._strike_time, active)

    def _strike(self, active: _Active) -> int:
        rule = active.rule
        if rule.scope is Scope.VENUE:
            active.done += 1
            self._reset_ids(rule)
            return len(self._server.clients)
        if rule.scope is Scope.CONNECTION and active not in self._per_frame:
            chosen = self._choose(active)
            for client in chosen:
                active.done += 1
                self._afflict(active, client, None)
            return len(chosen)
        return self._open_window(active)

    def _open_window(self, active: _Active) -> int:
        rule, reach = active.rule, len(self._server.clients)
        if rule.scope in (Scope.FRAME, Scope.CONNECTION) and rule.target.pick != "all":
            active.chosen = set(self._choose(active))
            reach = len(active.chosen)
        active.noted.clear()
        if rule.duration is not None:
            active.window = True
            self._server.clock.call_later(rule.duration, self._close_window, active)
        elif rule.timed:
            active.credit += 1
        else:
            active.credit += max(1, rule.limit)
        self.refresh()
        return reach

    def _close_window(self, active: _Active) -> None:
        active.window = False
        active.chosen = None
        self.refresh()

    def _choose(self, active: _Active) -> list[Client]:
        """The open connections that the rule's target means."""
        clients = [client for client in self._server.clients if self._concerns(active, client)]
        if active.rule.target.pick == "one" and clients:
            return [active.random.choice(clients)]
        if active.rule.target.pick == "all-but-one" and clients:
            clients.remove(active.random.choice(clients))
        return clients

    def _concerns(self, active: _Active, client: Client) -> bool:
        target = active.rule.target
        if active.chosen is not None and client not in active.chosen:
            return False
        if target.endpoint and target.endpoint != client.endpoint:
            return False
        if target.line is not None and target.line != client.line:
            return False
        if target.connection is not None:
            log = client.log
            return log is not None and log.ordinal == target.connection
        return True

    def _concerns_topic(self, active: _Active, name: str, product: str, kind: str) -> bool:
        known = active.topics.get(name)
        if known is None:
            target = active.rule.target
            known = active.topics[name] = (
                target.product in ("", product)
                and target.kind in ("", kind)
                and (not target.topic or fnmatchcase(name, target.topic))
            )
        return known

    # -- data frames ------------------------------------------------------------------------------

    def pass_frame(self, client: Client, topic: Topic, frame: bytes, key: int) -> None:
        """What becomes of one data frame on one connection."""
        if not client.takes_data() or self._stalled(client, topic):
            return
        fate = _Fate(frame)
        for active in self._per_frame:
            if not active.live or not self._concerns(active, client):
                continue
            if not self._concerns_topic(active, topic.name, topic.product, topic.kind.label):
                continue
            if active.strikes():
                self._strike_frame(active, client, topic, key, fate)
                if fate.lost:
                    return
        self._deliver(client, key, fate)

    def _strike_frame(
        self, active: _Active, client: Client, topic: Topic, key: int, fate: _Fate
    ) -> None:
        rule = active.rule
        if rule.scope is Scope.CONNECTION:
            self._afflict(active, client, topic, key)
            fate.lost = not client.takes_data() or self._stalled(client, topic)
            return
        if rule.fault in ("delay", "jitter"):
            fate.delay += self._lateness(active)
            fate.ordered = fate.ordered and bool(rule.parameters.get("ordered", True))
            if client not in active.noted:
                active.noted.add(client)
                self._record(active, client, topic, key, "from this frame on")
            return
        self._record(active, client, topic, key)
        if rule.fault == "drop":
            fate.lost = True
        elif rule.fault == "truncate":
            self._truncated(client, rule, fate.frame)
            fate.lost = True
        elif rule.fault == "duplicate":
            fate.copies += int(rule.number("copies"))
        elif rule.fault == "fragment":
            fate.frame = _fragments(fate.frame, max(2, int(rule.number("parts"))))
        elif rule.fault == "reorder":
            fate.held = int(rule.number("span"))
            self._server.clock.call_later(rule.number("ms") / 1000, self._release_held, client)

    def _stalled(self, client: Client, topic: Topic) -> bool:
        return any(
            self._concerns_topic(active, topic.name, topic.product, topic.kind.label)
            for active in self._stalls.get(client, ())
        )

    def _deliver(self, client: Client, key: int, fate: _Fate) -> None:
        if fate.held:
            client.held.append((fate.frame, key, fate.held))
            return
        for _ in range(fate.copies):
            if fate.delay or (client.lagging and fate.ordered):
                client.queue_later(fate.delay, fate.frame, key, ordered=fate.ordered)
            else:
                client.queue(fate.frame, key)
        if client.held:
            waiting = [(late, name, left - 1) for late, name, left in client.held]
            client.held = [item for item in waiting if item[2] > 0]
            for late, name, left in waiting:
                if left <= 0:
                    _queue(client, late, name)

    def _release_held(self, client: Client) -> None:
        late, client.held = client.held, []
        for frame, key, _ in late:
            if client.takes_data():
                _queue(client, frame, key)
        self._server.touched(client)
        self.refresh()

    def _lateness(self, active: _Active) -> float:
        rule = active.rule
        seconds = rule.number("ms") / 1000
        how = "uniform" if rule.fault == "jitter" else rule.text("distribution")
        if how == "uniform":
            return seconds * active.random.random()
        if how == "exponential":
            return -seconds * math.log(1.0 - active.random.random())
        return seconds

    def _truncated(self, client: Client, rule: Rule, frame: bytes) -> None:
        """A whole WebSocket message whose payload was cut: it stands for a lost frame."""
        opcode, payload = ws.decode_own(frame)
        keep = min(len(payload) - 1, int(len(payload) * rule.number("keep")))
        client.send_raw(ws.encode(opcode, payload[: max(keep, 0)]))

    # -- connections ------------------------------------------------------------------------------

    def _afflict(
        self, active: _Active, client: Client, topic: Topic | None, key: int | None = None
    ) -> None:
        rule = active.rule
        fault = rule.fault
        self._record(active, client, topic, key)
        if fault == "stall":
            self._stalls.setdefault(client, []).append(active)
            client.plain = False
            self._after(rule, self._unstall, client, active)
        elif fault == "half_open":
            client.flush()
            client.mute = True
            if client.log is not None:
                client.log.ended = "half open"
        elif fault == "no_pong":
            client.withholds_pongs = True
            self._after(rule, _answer_pings, client)
        elif fault == "reset":
            client.reset("fault: reset")
        elif fault == "close":
            code = CloseCode(int(rule.number("code")), rule.text("reason"))
            client.end(code, "fault: close")
        elif fault == "garbage":
            what, size = rule.text("what"), int(rule.number("bytes"))
            client.send_raw(_garbage(what, size, active.random), breaks=what == "wire")
        elif fault == "oversize":
            text = b'"' + b"x" * int(rule.number("bytes")) + b'"'
            client.send_raw(ws.encode(ws.TEXT, text), breaks=True)
        elif fault == "shutdown":
            self._announce(client, rule.number("grace"))

    def _after(self, rule: Rule, callback: object, *args: object) -> None:
        if rule.duration is not None:
            self._server.clock.call_later(rule.duration, callback, *args)  # type: ignore[arg-type]

    def _unstall(self, client: Client, active: _Active) -> None:
        stalls = self._stalls.get(client, [])
        if active in stalls:
            stalls.remove(active)
        self.refresh()

    def _announce(self, client: Client, grace: float) -> None:
        notice = self._server.shutdown_notice(client)
        if notice is not None:
            client.send_text(notice)
        code = self._server.codes.shutdown
        self._server.clock.call_later(grace, client.end, code, "fault: shutdown")

    def _reset_ids(self, rule: Rule) -> None:
        products = self._server.reset_ids(rule.target.product)
        self._server.ledger.fault(
            FaultRecord(
                self._server.clock.time_ns(),
                rule.fault,
                self._server.name,
                rule=rule.index,
                detail=", ".join(products),
            )
        )

    # -- gates ------------------------------------------------------------------------------------

    def handshake(self, client: Client) -> Refusal | str:
        """'' to go on, 'drop' or 'hang', or the HTTP refusal."""
        for active in self._of(Scope.HANDSHAKE):
            if self._concerns(active, client) and active.strikes():
                self._record(active, client, None)
                how = active.rule.text("how")
                return Refusal(int(active.rule.number("status"))) if how == "http" else how
        return ""

    def ack_delay(self, client: Client) -> float:
        """Seconds that a request of this client has to wait for its answer."""
        for active in self._of(Scope.REQUEST):
            if self._concerns(active, client) and active.strikes():
                self._record(active, client, None)
                return active.rule.number("seconds")
        return 0.0

    def verdict(self, client: Client, topic: str, product: str, kind: str) -> Verdict:
        for active in self._of(Scope.TOPIC):
            if not self._concerns(active, client):
                continue
            if self._concerns_topic(active, topic, product, kind) and active.strikes():
                self._record(active, client, None, topic_name=topic)
                silent = active.rule.fault == "ack_without_data"
                return Verdict.SILENT if silent else Verdict.REFUSE
        return Verdict.SERVE

    def _of(self, scope: Scope) -> list[_Active]:
        return [active for active in self._rules if active.rule.scope is scope and active.live]

    def _record(
        self,
        active: _Active,
        client: Client,
        topic: Topic | None,
        key: int | None = None,
        detail: str = "",
        topic_name: str = "",
    ) -> None:
        ledger = self._server.ledger
        generation, number = ledger.first_of(key) if key is not None else (-1, -1)
        ledger.fault(
            FaultRecord(
                self._server.clock.time_ns(),
                active.rule.fault,
                self._server.name,
                client.log.index if client.log is not None else -1,
                topic.name if topic is not None else topic_name,
                str(topic.series.key) if topic is not None else "",
                generation,
                number,
                active.rule.index,
                detail,
            )
        )


def _queue(client: Client, frame: bytes, key: int) -> None:
    """Behind what it let pass, also where that is late itself."""
    if client.lagging:
        client.queue_later(0.0, frame, key, ordered=True)
    else:
        client.queue(frame, key)


def _answer_pings(client: Client) -> None:
    client.withholds_pongs = False


def _fragments(frame: bytes, parts: int) -> bytes:
    """The same message in several frames."""
    opcode, payload = ws.decode_own(frame)
    size = max(1, len(payload) // parts)
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
    frames = [
        ws.encode(ws.CONTINUATION if at else opcode, piece, final=at == len(pieces) - 1)
        for at, piece in enumerate(pieces)
    ]
    return b"".join(frames)


def _garbage(what: str, size: int, random: Random) -> bytes:
    noise = random.randbytes(max(size, 2))
    if what == "wire":
        return b"\xf3" + noise  # reserved bits and a reserved opcode: no WebSocket frame
    if what == "binary":
        return ws.encode(ws.BINARY, noise)
    if what == "text":
        return ws.encode(ws.TEXT, b"\xff\xfe" + noise)  # not UTF-8
    if what == "types":
        return ws.encode(ws.TEXT, b'{"stream":7,"data":[null,{"u":"x","s":{},"b":[[]],"a":-1}]}')
    return ws.encode(ws.TEXT, b'{"e":"trade","E":' + noise.hex().encode())
