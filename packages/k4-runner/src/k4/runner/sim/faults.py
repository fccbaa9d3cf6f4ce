"""The fault script: what goes wrong, when, and for whom.

A script is a JSON list of rules, for example

    {"fault": "drop", "probability": 0.001, "target": {"line": 0, "topic": "*@trade"}}
    {"fault": "stall", "at": 5, "duration": 3, "target": {"pick": "all-but-one"}}
    {"fault": "close", "every": 10, "code": 1001, "target": {"pick": "one"}}

`at`: seconds after the start, once. `every`: seconds between two. `duration`: seconds that the
fault is in force from then on. `probability`, `nth`: of the opportunities (data frames, or
handshakes, requests, topics for the faults that concern those), always or within such a window.
`limit`: how often at most. Without any of these a rule applies to every opportunity; `at` or
`every` alone strike once each time.

Target: `venue`, `endpoint` (as in the configuration), `product`, `kind` (bbo, trade, aggtrade,
depth5), `topic` (a glob), `connection` (ordinal among the venue's connections), `line` (place among
the open connections of an endpoint; a place that becomes free is given to the next), `pick` (`all`,
`one` at random, `all-but-one`).

Parsing here is pure; `injector.py` commits the faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Any

import msgspec

from k4.core.errors import ConfigError, Problem

Value = str | int | float | bool


class Scope(Enum):
    """What a fault happens to, which is also what its opportunities are."""

    FRAME = "frame"
    CONNECTION = "connection"
    HANDSHAKE = "handshake"
    REQUEST = "request"
    TOPIC = "topic"
    VENUE = "venue"


class FaultKind(msgspec.Struct, frozen=True):
    """A fault's scope and its parameters with their defaults (a value's type is the type)."""

    scope: Scope
    parameters: Mapping[str, Value]
    choices: Mapping[str, tuple[str, ...]] = {}


FAULTS: Mapping[str, FaultKind] = {
    # ms before a frame leaves; ordered: later frames wait behind it
    "delay": FaultKind(
        Scope.FRAME,
        {"ms": 50.0, "distribution": "constant", "ordered": True},
        {"distribution": ("constant", "uniform", "exponential")},
    ),
    "jitter": FaultKind(Scope.FRAME, {"ms": 20.0, "ordered": True}),  # uniform from 0 to ms
    "drop": FaultKind(Scope.FRAME, {}),
    "duplicate": FaultKind(Scope.FRAME, {"copies": 1}),
    "reorder": FaultKind(Scope.FRAME, {"span": 3, "ms": 200.0}),  # overtaken by span frames
    "truncate": FaultKind(Scope.FRAME, {"keep": 0.5}),  # the share of the payload that is left
    "fragment": FaultKind(Scope.FRAME, {"parts": 3}),  # legal: one message in several frames
    "stall": FaultKind(Scope.CONNECTION, {}),  # no data; pings, pongs and acks as ever
    "half_open": FaultKind(Scope.CONNECTION, {}),  # nothing at all any more, not even a FIN
    "no_pong": FaultKind(Scope.CONNECTION, {}),  # the client's pings go unanswered
    "reset": FaultKind(Scope.CONNECTION, {}),  # TCP RST
    "close": FaultKind(Scope.CONNECTION, {"code": 1001, "reason": ""}),
    "garbage": FaultKind(
        Scope.CONNECTION,
        {"what": "json", "bytes": 64},
        {"what": ("text", "json", "types", "binary", "wire")},
    ),
    "oversize": FaultKind(Scope.CONNECTION, {"bytes": 2 << 20}),
    "shutdown": FaultKind(Scope.CONNECTION, {"grace": 1.0}),  # the venue's notice, then a close
    "refuse_handshake": FaultKind(
        Scope.HANDSHAKE, {"status": 503, "how": "http"}, {"how": ("http", "drop", "hang")}
    ),
    "slow_ack": FaultKind(Scope.REQUEST, {"seconds": 1.0}),
    "ack_without_data": FaultKind(Scope.TOPIC, {}),
    "refuse_topic": FaultKind(Scope.TOPIC, {}),
    "id_reset": FaultKind(Scope.VENUE, {}),  # every sequence of the matching products restarts
}

_PICKS = ("all", "one", "all-but-one")


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom a rule concerns; empty and None match everything."""

    venue: str = ""
    endpoint: str = ""
    product: str = ""
    kind: str = ""
    topic: str = ""
    connection: int | None = None
    line: int | None = None
    pick: str = "all"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One valid rule. index: its place in the script, -1 when injected by hand."""

    fault: str
    target: Target = Target()
    at: float | None = None
    every: float | None = None
    duration: float | None = None
    probability: float | None = None
    nth: int | None = None
    limit: int = 0
    parameters: Mapping[str, Value] = {}
    index: int = -1

    @property
    def scope(self) -> Scope:
        return FAULTS[self.fault].scope

    @property
    def timed(self) -> bool:
        """Does the clock strike it (alone, or to open a window)?"""
        return self.at is not None or self.every is not None

    def number(self, name: str) -> float:
        return float(self.parameters.get(name, FAULTS[self.fault].parameters[name]))

    def text(self, name: str) -> str:
        return str(self.parameters.get(name, FAULTS[self.fault].parameters[name]))


_TRIGGERS: Mapping[str, tuple[type, ...]] = {
    "at": (int, float),
    "every": (int, float),
    "duration": (int, float),
    "probability": (int, float),
    "nth": (int,),
    "limit": (int,),
}


def parse_script(source: object, *, path: str = "faults") -> tuple[Rule, ...]:
    """The rules of a decoded JSON list. Raises ConfigError with every problem at once."""
    if not isinstance(source, Sequence) or isinstance(source, str | bytes):
        raise ConfigError([Problem(path, "must be a list of rules")])
    problems: list[Problem] = []
    rules = [_rule(item, f"{path}[{index}]", index, problems) for index, item in enumerate(source)]
    if problems:
        raise ConfigError(problems)
    return tuple(rule for rule in rules if rule is not None)


def parse_fault(source: object) -> Rule:
    """One rule that is injected by hand: it strikes at once. Raises ConfigError."""
    problems: list[Problem] = []
    rule = _rule(source, "fault", -1, problems)
    if rule is None or problems:
        raise ConfigError(problems)
    return rule


def _rule(source: object, path: str, index: int, problems: list[Problem]) -> Rule | None:
    if not isinstance(source, Mapping):
        problems.append(Problem(path, "must be an object"))
        return None
    found = len(problems)
    fault = source.get("fault")
    if not isinstance(fault, str) or fault not in FAULTS:
        problems.append(Problem(f"{path}.fault", f"no fault {fault!r}{_nearest(fault, FAULTS)}"))
        return None
    kind = FAULTS[fault]
    known = {"fault", "target", *_TRIGGERS, *kind.parameters}
    for name in source:
        if name not in known:
            hint = _nearest(name, known)
            problems.append(Problem(f"{path}.{name}", f"unknown key of fault {fault!r}{hint}"))
    triggers: dict[str, Any] = {name: source[name] for name in _TRIGGERS if name in source}
    _check_triggers(triggers, path, kind.scope, problems)
    parameters = {name: source[name] for name in kind.parameters if name in source}
    _check_parameters(kind, parameters, path, problems)
    target = _target(source.get("target", {}), f"{path}.target", problems)
    if len(problems) > found:
        return None
    return Rule(fault=fault, target=target, parameters=parameters, index=index, **triggers)


def _check_triggers(
    triggers: Mapping[str, Any], path: str, scope: Scope, problems: list[Problem]
) -> None:
    for name, value in triggers.items():
        where = f"{path}.{name}"
        if type(value) not in _TRIGGERS[name]:
            what = "a whole number" if _TRIGGERS[name] == (int,) else "a number"
            problems.append(Problem(where, f"must be {what}, not {value!r}"))
        elif float(value) < 0 or (value == 0 and name in ("every", "nth")):
            problems.append(Problem(where, f"must be positive, not {value!r}"))
        elif name == "probability" and value > 1:
            problems.append(Problem(where, f"must be at most 1, not {value!r}"))
    chance = triggers.keys() & {"probability", "nth"}
    if scope is Scope.VENUE and chance:
        name = sorted(chance)[0]
        problems.append(Problem(f"{path}.{name}", "a fault of the whole venue takes at or every"))
    if (
        scope is Scope.CONNECTION
        and not triggers.keys() & {"at", "every", *chance}
        and (not path.startswith("fault.") and path != "fault")
    ):
        problems.append(Problem(path, "needs one of at, every, probability, nth"))


def _check_parameters(
    kind: FaultKind, parameters: Mapping[str, Any], path: str, problems: list[Problem]
) -> None:
    for name, value in parameters.items():
        wanted = type(kind.parameters[name])
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and wanted is not bool):
            problems.append(Problem(f"{path}.{name}", f"must be {wanted.__name__}, not {value!r}"))
        elif name in kind.choices and value not in kind.choices[name]:
            choices = ", ".join(kind.choices[name])
            problems.append(Problem(f"{path}.{name}", f"must be one of {choices}, not {value!r}"))
        elif wanted in (int, float) and value < 0:
            problems.append(Problem(f"{path}.{name}", f"must not be negative, not {value!r}"))


def _target(source: object, path: str, problems: list[Problem]) -> Target:
    try:
        target = msgspec.convert(source, Target)
    except msgspec.ValidationError as error:
        problems.append(Problem(path, str(error)))
        return Target()
    if target.pick not in _PICKS:
        choices = ", ".join(_PICKS)
        problems.append(Problem(f"{path}.pick", f"must be one of {choices}, not {target.pick!r}"))
    return target


def _nearest(name: object, known: Mapping[str, object] | set[str]) -> str:
    close = get_close_matches(str(name), list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
