"""Where a trading process dies: named points on the way of orders, and the death itself.

The points are put around the product's own functions, from outside: between them and what they are
called from lies every byte that is written to the journal, sent to the venue or heard from it.
`arm` makes a process die by SIGKILL when it passes one of them for the n-th time; nothing of the
process gets a chance to clean up.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import aiohttp
import msgspec

from k4.td.exchanges.binance.protocol import Call
from k4.td.exchanges.binance.rest import Rest
from k4.td.exchanges.binance.stream import ApiLine, Socket
from k4.td.exchanges.binance.venue import BinanceVenue
from k4.td.gateway import Client
from k4.td.journal import Journal
from k4.td.recovery import Recovery

TIMED = "timed"

_WHEN = ("before", "after")


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{when}" for name in names for when in _WHEN)


STEPS: Mapping[str, tuple[str, ...]] = {
    "place": (
        *_both("journal.place", "socket.place", "heard.place", "journal.save", "reply"),
        "rest.order.before",
        "rest.order.after",
    ),
    "cancel": _both("journal.cancel", "socket.cancel", "heard.cancel", "journal.outcome"),
    # Futures amend in place; spot amends less in place, and cancels and replaces for the rest.
    "amend": (
        *_both("journal.amend", "socket.amend", "heard.amend"),
        *_both("journal.swap", "journal.replace", "socket.replace", "heard.replace"),
    ),
    "fill": (*_both("heard.fill", "journal.fill"), "journal.fill.inside", "journal.commit.before"),
    "keepalive": _both(
        "rest.listen_key.post", "rest.listen_key.put", "socket.ping", "journal.checkpoint"
    ),
    "recovery": _both("recovery", "rest.open_orders", "rest.fills"),
}
POINTS = tuple(point for points in STEPS.values() for point in points)
"""Every point but `timed`, which is a moment and no place."""

RARE = ("rest.", "recovery.", "journal.swap", "journal.replace", "journal.checkpoint")
"""Points that a process passes too seldom to wait for the third time."""


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """How a process dies. point: of POINTS, or `timed`. nth: the passing that is the last one.
    seconds: of real time until a timed death. whole: the supervisor dies with it.
    """

    point: str
    nth: int = 1
    seconds: float = 0.0
    whole: bool = False


class Reaper:
    """Counts the passings of one point. mark: a file that proves the death."""

    def __init__(self, death: Death, mark: str) -> None:
        self._death = death
        self._mark = mark
        self._passed = 0
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """Begin to count the seconds of a timed death."""
        if self._death.point == TIMED:
            self._timer = threading.Timer(self._death.seconds, self.strike)
            self._timer.daemon = True
            self._timer.start()

    def reach(self, point: str) -> None:
        if point == self._death.point:
            self._passed += 1
            if self._passed == self._death.nth:
                self.strike()

    def strike(self) -> None:
        """The end: nothing runs after it."""
        os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if self._death.whole:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def arm(reaper: Reaper) -> None:
    """Put the points around the functions of this process."""
    around = partial(_around, reaper.reach)
    around(Journal, "intend_place", lambda *_: "journal.place")
    around(Journal, "intend", lambda _journal, _state, kind, *_: f"journal.{kind}")
    around(Journal, "intend_replace", lambda *_: "journal.swap")
    around(Journal, "outcome", lambda *_: "journal.outcome")
    around(Journal, "save", _saving)
    around(Journal, "_insert_fills", lambda _journal, fills: _filling(fills))
    around(Journal, "_commit", lambda *_: "journal.commit")
    around(Journal, "checkpoint", lambda *_: "journal.checkpoint")
    around(Client, "_write", lambda *_: "reply")
    around(ApiLine, "_receive", _answer)
    around(BinanceVenue, "_heard", _event)
    around_async = partial(_around_async, reaper.reach)
    around_async(Socket, "send", _request)
    around_async(Rest, "_send", _call)
    around_async(Recovery, "_reconcile", lambda *_: "recovery")
    around_async(aiohttp.ClientWebSocketResponse, "ping", lambda *_: "socket.ping")


# -- what is passed -------------------------------------------------------------------------------

_sent: dict[str, str] = {}  # what was asked, by the request's id: answers do not say

_METHODS = {
    "order.place": "place",
    "order.cancel": "cancel",
    "order.modify": "amend",
    "order.amend.keepPriority": "amend",
    "order.cancelReplace": "replace",
}
_PATHS = {
    ("POST", "listenKey"): "listen_key.post",
    ("PUT", "listenKey"): "listen_key.put",
    ("GET", "openOrders"): "open_orders",
    ("GET", "order"): "order",
    ("GET", "myTrades"): "fills",
    ("GET", "userTrades"): "fills",
}


def _request(_socket: object, text: str) -> str:
    frame = msgspec.json.decode(text)
    method = str(frame.get("method", ""))
    what = _METHODS.get(method, method)
    _sent[str(frame.get("id"))] = what
    return f"socket.{what}"


def _answer(_line: object, text: str) -> str:
    frame = msgspec.json.decode(text)
    return f"heard.{_sent.pop(str(frame.get('id')), 'frame')}"


def _event(_venue: object, _line: object, body: bytes) -> str:
    return "heard.fill" if b'"x":"TRADE"' in body else "heard.event"


def _saving(_journal: object, _state: object, fills: Sequence[object] = ()) -> str:
    return "journal.fill" if fills else "journal.save"


def _filling(fills: Sequence[object]) -> str:
    return "journal.fill.inside" if fills else "journal.nothing"


def _call(_rest: object, call: Call) -> str:
    name = call.path.rpartition("/")[2]
    return f"rest.{_PATHS.get((call.verb, name), name)}"


# -- how it is put there --------------------------------------------------------------------------


def _around(
    reach: Callable[[str], None], owner: type, name: str, point: Callable[..., str]
) -> None:
    function: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(function)
    def passing(*args: Any, **options: Any) -> Any:
        here = point(*args)
        reach(here)
        reach(f"{here}.before")
        result = function(*args, **options)
        reach(f"{here}.after")
        return result

    setattr(owner, name, passing)


def _around_async(
    reach: Callable[[str], None], owner: type, name: str, point: Callable[..., str]
) -> None:
    function: Callable[..., Awaitable[Any]] = getattr(owner, name)

    @functools.wraps(function)
    async def passing(*args: Any, **options: Any) -> Any:
        here = point(*args)
        reach(f"{here}.before")
        result = await function(*args, **options)
        reach(f"{here}.after")
        return result

    setattr(owner, name, passing)
