"""The fault script of the trading venue: what goes wrong, when, and with which request or event.

A JSON list of rules in the style of the market-data simulation's `faults.py`, for example

    {"fault": "drop_reply", "nth": 3, "target": {"op": "order.place"}}
    {"fault": "unavailable", "what": "unknown", "executed": true, "probability": 0.05}
    {"fault": "event_delay", "ms": 200, "target": {"event": "executionReport"}}
    {"fault": "expire_listen_key", "at": 2.0, "target": {"product": "ubase"}}

`at`: seconds after the start, once. `every`: seconds between two. `duration`: seconds that it is in
force from then on. `probability`, `nth`: of the opportunities. `limit`: how often at most. A fault
of requests or events without `at` and `every` is in force from the start; one that is injected by
hand strikes the next opportunity (the next `limit` ones), or is in force for `duration`.

Target: `product`, `account`, `transport` (rest, ws), and globs: `op` (`order.place`, `order.*`),
`client_id`, `event` (`executionReport`). Empty matches everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import Any, Literal, get_args

import msgspec

from k4.core.clock import Clock, Timer
from k4.core.errors import ConfigError, Problem


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom a rule concerns."""

    product: str = ""
    account: str = ""
    transport: str = ""
    op: str = ""
    client_id: str = ""
    event: str = ""


class Fault(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="fault", forbid_unknown_fields=True
):
    """When and to whom; what, says the class."""

    target: Target = Target()
    at: float | None = None
    every: float | None = None
    duration: float | None = None
    probability: float | None = None
    nth: int | None = None
    limit: int = 0

    @property
    def name(self) -> str:
        return str(self.__struct_config__.tag)


# -- requests -------------------------------------------------------------------------------------


class Latency(Fault, frozen=True, kw_only=True, tag="latency"):
    """Time passes before the matching engine, or before the answer leaves."""

    ms: float = 50.0
    distribution: Literal["constant", "uniform", "exponential"] = "constant"
    where: Literal["before", "after"] = "before"


class DropRequest(Fault, frozen=True, kw_only=True, tag="drop_request"):
    """Not executed, never answered."""


class DropReply(Fault, frozen=True, kw_only=True, tag="drop_reply"):
    """Executed, never answered."""


class Unavailable(Fault, frozen=True, kw_only=True, tag="unavailable"):
    """503 with the text whose outcome is unknown, or with one that says failed. `executed` is for
    `unknown` alone: the others were not executed."""

    what: Literal["unknown", "service", "internal", "throttled"] = "unknown"
    executed: bool = False


class Timeout(Fault, frozen=True, kw_only=True, tag="timeout"):
    """The venue gives up waiting for its backend, which may have executed the request; not so with
    -1001 on futures, where that text means a failure."""

    seconds: float = 10.0
    code: Literal[-1007, -1006, -1001, -1000] = -1007
    executed: bool = False


class Disconnect(Fault, frozen=True, kw_only=True, tag="disconnect"):
    """The connection breaks instead of an answer."""

    when: Literal["before", "after"] = "after"


class Refuse(Fault, frozen=True, kw_only=True, tag="refuse"):
    """Not executed, for a reason that lies in the account or the venue (a closed market, an account
    in liquidation): this code, with its documented text where `msg` is empty."""

    code: int
    msg: str = ""
    status: int = 400


# -- events ---------------------------------------------------------------------------------------


class EventDelay(Fault, frozen=True, kw_only=True, tag="event_delay"):
    """ordered: later events wait behind it."""

    ms: float = 50.0
    ordered: bool = True


class EventDuplicate(Fault, frozen=True, kw_only=True, tag="event_duplicate"):
    copies: int = 1


class EventReorder(Fault, frozen=True, kw_only=True, tag="event_reorder"):
    """`span` later events overtake it, or `ms` pass."""

    span: int = 1
    ms: float = 200.0


class EventDrop(Fault, frozen=True, kw_only=True, tag="event_drop"):
    """The event is never delivered."""


# -- acts -----------------------------------------------------------------------------------------


class Close(Fault, frozen=True, kw_only=True, tag="close"):
    """WebSockets are closed in order. sockets: the API's, the private streams', or all."""

    sockets: Literal["api", "stream", "all"] = "all"
    code: int = 1001
    reason: str = ""


class Reset(Fault, frozen=True, kw_only=True, tag="reset"):
    """WebSockets break without a word."""

    sockets: Literal["api", "stream", "all"] = "all"


class EndOfLife(Fault, frozen=True, kw_only=True, tag="end_of_life"):
    """What happens at 24 hours, now."""

    sockets: Literal["api", "stream", "all"] = "all"


class Shutdown(Fault, frozen=True, kw_only=True, tag="shutdown"):
    """`serverShutdown` on the spot WebSocket API, and the end `grace` seconds later."""

    grace: float = 1.0


class ExpireListenKey(Fault, frozen=True, kw_only=True, tag="expire_listen_key"):
    """Every listen key of the target expires now; `announced`: with `listenKeyExpired`."""

    announced: bool = True


class TerminateStream(Fault, frozen=True, kw_only=True, tag="terminate_stream"):
    """Spot subscriptions end with `eventStreamTerminated`."""


class RevokeKey(Fault, frozen=True, kw_only=True, tag="revoke_key"):
    """Keys of the target account (one, or all) are no longer valid."""

    api_key: str = ""


class RestoreKey(Fault, frozen=True, kw_only=True, tag="restore_key"):
    """Revoked keys of the target account are valid again."""


class ClockSkew(Fault, frozen=True, kw_only=True, tag="clock_skew"):
    """The venue's clock steps. which: the one that checks times first, the engine's, or both."""

    ms: float = 0.0
    which: Literal["gateway", "engine", "both"] = "both"


class Limited(Fault, frozen=True, kw_only=True, tag="limited"):
    """The address has used up its weight (429), or is banned for `seconds` (418)."""

    status: Literal[429, 418] = 429
    seconds: float = 5.0


class Liquidate(Fault, frozen=True, kw_only=True, tag="liquidate"):
    """The venue closes positions of the target itself (`autoclose-` client ids)."""


RequestFault = Latency | DropRequest | DropReply | Unavailable | Timeout | Disconnect | Refuse
EventFault = EventDelay | EventDuplicate | EventReorder | EventDrop
Act = (
    Close
    | Reset
    | EndOfLife
    | Shutdown
    | ExpireListenKey
    | TerminateStream
    | RevokeKey
    | RestoreKey
    | ClockSkew
    | Limited
    | Liquidate
)
AnyFault = RequestFault | EventFault | Act
_ACTS = get_args(Act)
_REQUESTS = (Latency, DropRequest, DropReply, Unavailable, Timeout, Disconnect, Refuse)
_EVENTS = (EventDelay, EventDuplicate, EventReorder, EventDrop)


def examples() -> list[dict[str, Any]]:
    """Every fault of the script with its own parameters and their defaults."""
    found: list[dict[str, Any]] = []
    shared = set(Fault.__struct_fields__)
    for kind in (*_REQUESTS, *_EVENTS, *_ACTS):
        sample = kind(code=-2010) if kind is Refuse else kind()
        values = msgspec.to_builtins(sample)
        found.append({name: value for name, value in values.items() if name not in shared})
    return found


def parse_script(source: object, path: str = "faults") -> list[AnyFault]:
    """The rules of a decoded JSON list. Raises ConfigError."""
    if not isinstance(source, Sequence) or isinstance(source, str | bytes):
        raise ConfigError([Problem(path, "must be a list of rules")])
    rules: list[AnyFault] = []
    problems: list[Problem] = []
    for index, item in enumerate(source):
        try:
            rules.append(parse_fault(item, f"{path}[{index}]", scripted=True))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return rules


def parse_fault(source: object, path: str = "fault", *, scripted: bool = False) -> AnyFault:
    """One rule. scripted: it stands in a script, so an act needs a time. Raises ConfigError."""
    try:
        rule: AnyFault = msgspec.convert(source, AnyFault)
    except msgspec.ValidationError as error:
        raise ConfigError([Problem(path, str(error))]) from error
    problems = [
        Problem(f"{path}.{name}", f"must be positive, not {value!r}")
        for name in ("every", "nth", "duration")
        if (value := getattr(rule, name)) is not None and value <= 0
    ]
    if rule.probability is not None and not 0 <= rule.probability <= 1:
        problems.append(Problem(f"{path}.probability", "is from 0 to 1"))
    if not isinstance(rule, _REQUESTS + _EVENTS):
        if rule.probability is not None or rule.nth is not None:
            problems.append(Problem(path, f"{rule.name} happens at a time, not by chance"))
        if scripted and rule.at is None and rule.every is None:
            problems.append(Problem(path, f"{rule.name} needs at or every"))
    if isinstance(rule, Unavailable) and rule.executed and rule.what != "unknown":
        problems.append(Problem(f"{path}.executed", f"a 503 {rule.what!r} was never executed"))
    if problems:
        raise ConfigError(problems)
    return rule


class Occasion(msgspec.Struct, frozen=True, kw_only=True):
    """What a fault may strike: a request (op) or an event."""

    product: str
    account: str
    transport: str = ""
    op: str = ""
    client_id: str = ""
    event: str = ""


def concerns(target: Target, occasion: Occasion) -> bool:
    return (
        target.product in ("", occasion.product)
        and target.account in ("", occasion.account)
        and target.transport in ("", occasion.transport)
        and (not target.op or fnmatchcase(occasion.op, target.op))
        and (not target.client_id or fnmatchcase(occasion.client_id, target.client_id))
        and (not target.event or fnmatchcase(occasion.event, target.event))
    )


class Strike(msgspec.Struct, frozen=True):
    """A rule that strikes now. seconds: of a latency."""

    rule: AnyFault
    index: int
    seconds: float = 0.0


class _Active:
    """A rule at work. window: in force now; credit: strikes that wait for an opportunity."""

    def __init__(self, rule: AnyFault, index: int, seed: object) -> None:
        self.rule = rule
        self.index = index
        self.random = Random(f"{seed}/{index}/{rule.name}")
        timed = rule.at is not None or rule.every is not None
        self.window = index >= 0 and not timed
        self.credit = 0
        self.seen = 0
        self.done = 0
        self.timers: list[Timer] = []

    def strikes(self) -> bool:
        """One opportunity: does it happen?"""
        rule = self.rule
        if (rule.limit and self.done >= rule.limit) or not (self.window or self.credit):
            return False
        self.seen += 1
        if rule.nth is not None and self.seen % rule.nth:
            return False
        if rule.probability is not None and self.random.random() >= rule.probability:
            return False
        if not self.window:
            self.credit -= 1
        self.done += 1
        return True

    def strike(self) -> Strike:
        rule = self.rule
        seconds = 0.0
        if isinstance(rule, Latency):
            seconds = rule.ms / 1000
            if rule.distribution == "uniform":
                seconds *= self.random.random()
            elif rule.distribution == "exponential":
                seconds *= -math.log(1.0 - self.random.random())
        return Strike(rule, self.index, seconds)


class Injector:
    """The rules of a run. act: carries out what happens by the clock, with the rule's index."""

    def __init__(
        self,
        rules: Sequence[AnyFault],
        seed: int,
        clock: Clock,
        act: Callable[[Act, int], object],
    ) -> None:
        self._seed = seed
        self._clock = clock
        self._act = act
        self._rules = [_Active(rule, index, seed) for index, rule in enumerate(rules)]

    def start(self) -> None:
        """Begin to count seconds for `at` and `every`."""
        for active in self._rules:
            self._schedule(active)

    def stop(self) -> None:
        """Nothing goes wrong from now on, unless it is injected."""
        for active in self._rules:
            for timer in active.timers:
                timer.cancel()
        self._rules.clear()

    def inject(self, rule: AnyFault) -> object:
        """One fault by hand; returns what an act did, else None."""
        active = _Active(rule, -1, f"{self._seed}/{len(self._rules)}")
        self._rules.append(active)
        if rule.at is None and rule.every is None:
            return self._strike(active)
        self._schedule(active)
        return None

    def request(self, occasion: Occasion) -> list[Strike]:
        """What strikes this request: latencies, and at most one fault of another kind."""
        found: list[Strike] = []
        ends = False
        for active in self._rules:
            rule = active.rule
            if not isinstance(rule, _REQUESTS) or not concerns(rule.target, occasion):
                continue
            if ends and not isinstance(rule, Latency):
                continue
            if active.strikes():
                found.append(active.strike())
                ends = ends or not isinstance(rule, Latency)
        return found

    def event(self, occasion: Occasion) -> Strike | None:
        """What strikes this event on one connection; the first rule that does."""
        for active in self._rules:
            rule = active.rule
            if not isinstance(rule, _EVENTS) or not concerns(rule.target, occasion):
                continue
            if active.strikes():
                return active.strike()
        return None

    def _schedule(self, active: _Active) -> None:
        rule = active.rule
        first = rule.at if rule.at is not None else rule.every
        if first is not None:
            active.timers.append(self._clock.call_later(first, self._due, active))

    def _due(self, active: _Active) -> None:
        rule = active.rule
        active.timers.clear()
        if rule.limit and active.done >= rule.limit:
            return
        self._strike(active)
        if rule.every is not None:
            active.timers.append(self._clock.call_later(rule.every, self._due, active))

    def _strike(self, active: _Active) -> object:
        rule = active.rule
        if isinstance(rule, _REQUESTS + _EVENTS):
            chance = rule.probability is not None or rule.nth is not None
            if rule.duration is not None:
                active.window = True
                active.timers.append(self._clock.call_later(rule.duration, _close_window, active))
            elif chance and active.index < 0:
                active.window = True
            else:
                active.credit += rule.limit or 1 if active.index < 0 else 1
            return None
        active.done += 1
        return self._act(rule, active.index)


def _close_window(active: _Active) -> None:
    active.window = False
