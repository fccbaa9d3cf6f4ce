"""User data: who listens to which account, by which subscription or listen key, and what reaches
him.

Spot: subscriptions on the WebSocket API, wrapped with their id. Futures: listen keys and private
streams. Sources: Binance `web-socket-api.md` (July 2026), futures user data streams documentation
(November 2025), the USD-M routing notice of 2026-03-06.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from k4.core.clock import Clock, Timer
from k4.runner.sim.trading import errors
from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.faults import (
    EventDelay,
    EventDrop,
    EventDuplicate,
    EventReorder,
    Injector,
    Occasion,
    Strike,
)
from k4.runner.sim.trading.gate import VenueClock
from k4.runner.sim.trading.ledger import EventRecord, FaultRecord, TradingLedger

Json = dict[str, Any]
KEY_LIFE = 3600.0  # seconds
MOST_ACTIVE, MOST_EVER = 1000, 65_535  # spot subscriptions of one connection


class Outlet(Protocol):
    """A connection that takes text."""

    def send(self, text: str) -> None: ...

    def close(self, code: int, reason: str, why: str) -> None: ...


class Delivery:
    """The way of one account's events to one connection, with the faults on it.

    wrap: the frame of an event. wanted: the kinds that it asked for, empty for all.
    """

    def __init__(
        self,
        hub: StreamHub,
        outlet: Outlet,
        product: str,
        account: str,
        wrap: Callable[[Json], Json],
        wanted: frozenset[str] = frozenset(),
    ) -> None:
        self.outlet = outlet
        self.product = product
        self.account = account
        self.open = True
        self._hub = hub
        self._wrap = wrap
        self._wanted = wanted
        self._queue: deque[tuple[float, str]] = deque()
        self._held: list[tuple[list[int], str]] = []

    def push(self, body: Json, client_id: str) -> None:
        name = str(body["e"])
        if self._wanted and name not in self._wanted:
            return
        text = msgspec.json.encode(self._wrap(body)).decode()
        occasion = Occasion(
            product=self.product, account=self.account, event=name, client_id=client_id
        )
        strike = self._hub.injector.event(occasion)
        if strike is None:
            self._after(0.0, text)
            return
        self._hub.struck(strike, occasion)
        self._suffer(strike, text)

    def _suffer(self, strike: Strike, text: str) -> None:
        rule = strike.rule
        if isinstance(rule, EventDrop):
            return
        if isinstance(rule, EventDuplicate):
            for _ in range(rule.copies + 1):
                self._after(0.0, text)
        elif isinstance(rule, EventReorder):
            held = [rule.span], text
            self._held.append(held)
            self._hub.clock.call_later(rule.ms / 1000, self._let_go, held)
        elif isinstance(rule, EventDelay):
            if rule.ordered:
                self._after(rule.ms / 1000, text)
            else:
                self._hub.clock.call_later(rule.ms / 1000, self._send, text)

    def _after(self, seconds: float, text: str) -> None:
        """Send in order, behind whatever is delayed."""
        if not seconds and not self._queue:
            self._send(text)
            return
        self._queue.append((self._hub.clock.monotonic() + seconds, text))
        if len(self._queue) == 1:
            self._hub.clock.call_later(seconds, self._next)

    def _next(self) -> None:
        """The first of the queue is due; the others follow, each no earlier than its own time."""
        self._send(self._queue.popleft()[1])
        if self._queue:
            wait = max(0.0, self._queue[0][0] - self._hub.clock.monotonic())
            self._hub.clock.call_later(wait, self._next)

    def _send(self, text: str) -> None:
        if not self.open:
            return
        self.outlet.send(text)
        for held in list(self._held):
            held[0][0] -= 1
            if held[0][0] <= 0:
                self._let_go(held)

    def _let_go(self, held: tuple[list[int], str]) -> None:
        if held in self._held:
            self._held.remove(held)
            if self.open:
                self.outlet.send(held[1])


class ListenKey:
    """One futures account's key, and the connections that use it."""

    def __init__(self, product: str, account: str) -> None:
        self.product = product
        self.account = account
        self.text = secrets.token_urlsafe(48)[:64].replace("-", "x").replace("_", "y")
        self.deliveries: list[Delivery] = []
        self.timer: Timer | None = None


class StreamHub:
    """All listeners of the venue."""

    def __init__(
        self,
        clock: Clock,
        venue_clock: VenueClock,
        injector: Injector,
        ledger: TradingLedger,
        scale: float,
    ) -> None:
        self.clock = clock
        self.injector = injector
        self._venue_clock = venue_clock
        self._ledger = ledger
        self._life = KEY_LIFE / scale
        self._keys: dict[str, ListenKey] = {}
        self._spot: dict[Outlet, dict[int, Delivery]] = {}
        self._ever: dict[Outlet, int] = {}
        self._holds: dict[tuple[str, str], int] = {}
        self._queues: dict[tuple[str, str], list[tuple[Json, str]]] = {}

    # -- events -----------------------------------------------------------------------------------

    def tell(self, product: str, account: str, body: Json, client_id: str) -> None:
        """An event of an account, to everybody who listens now, or when it is no longer held."""
        listeners = list(self._listeners(product, account))
        self._ledger.events.append(
            EventRecord(
                time_ms=self._venue_clock.now_ms(),
                product=product,
                account=account,
                name=str(body["e"]),
                client_id=client_id,
                listeners=len(listeners),
            )
        )
        if self._holds.get((product, account)):
            self._queues.setdefault((product, account), []).append((body, client_id))
            return
        for delivery in listeners:
            delivery.push(body, client_id)

    def hold(self, product: str, account: str) -> Callable[[], None]:
        """Keep an account's events back, until what is returned is called (once, or more)."""
        key = product, account
        self._holds[key] = self._holds.get(key, 0) + 1
        released = False

        def release() -> None:
            nonlocal released
            if released:
                return
            released = True
            self._holds[key] -= 1
            if not self._holds[key]:
                for body, client_id in self._queues.pop(key, []):
                    for delivery in list(self._listeners(product, account)):
                        delivery.push(body, client_id)

        return release

    def _listeners(self, product: str, account: str) -> Iterator[Delivery]:
        if product == "spot":
            for subscriptions in self._spot.values():
                for delivery in subscriptions.values():
                    if delivery.account == account:
                        yield delivery
            return
        for key in self._keys.values():
            if (key.product, key.account) == (product, account):
                yield from key.deliveries

    def struck(self, strike: Strike, occasion: Occasion) -> None:
        self._ledger.fault(
            FaultRecord(
                time_ms=self._venue_clock.now_ms(),
                fault=strike.rule.name,
                rule=strike.index,
                product=occasion.product,
                account=occasion.account,
                event=occasion.event,
                client_id=occasion.client_id,
            )
        )

    # -- spot -------------------------------------------------------------------------------------

    def subscribe(self, outlet: Outlet, account: str) -> int:
        """The subscription's id. Raises -2035 for a second one of the account, -2042."""
        active = self._spot.setdefault(outlet, {})
        if any(delivery.account == account for delivery in active.values()):
            raise VenueError(-2035, "User Data Stream subscription already active.")
        number = self._ever.get(outlet, 0)
        if len(active) >= MOST_ACTIVE or number >= MOST_EVER:
            raise VenueError(-2042, "Maximum subscription limit reached.")
        self._ever[outlet] = number + 1

        def wrap(body: Json) -> Json:
            return {"subscriptionId": number, "event": body}

        active[number] = Delivery(self, outlet, "spot", account, wrap)
        return number

    def unsubscribe(self, outlet: Outlet, number: int | None) -> None:
        """One subscription, or all. Raises -2036 for one that does not exist."""
        active = self._spot.get(outlet, {})
        if number is not None and number not in active:
            raise VenueError(-2036, "User Data Stream subscription not active.")
        for one in [number] if number is not None else list(active):
            self.terminate(outlet, one)

    def terminate(self, outlet: Outlet, number: int) -> None:
        """The subscription ends, and says so."""
        delivery = self._spot[outlet].pop(number)
        now = self._venue_clock.now_ms()
        delivery.push({"e": "eventStreamTerminated", "E": now}, "")

    def subscriptions(self, outlet: Outlet) -> list[int]:
        return list(self._spot.get(outlet, {}))

    def subscribers(self, account: str) -> list[tuple[Outlet, int]]:
        """Spot subscriptions of an account ('' for all)."""
        return [
            (outlet, number)
            for outlet, active in self._spot.items()
            for number, delivery in active.items()
            if account in ("", delivery.account)
        ]

    # -- listen keys ------------------------------------------------------------------------------

    def start_key(self, product: str, account: str) -> str:
        """A key of 60 minutes; while one is active, the same one extended."""
        key = self._active(product, account)
        if key is None:
            key = ListenKey(product, account)
            self._keys[key.text] = key
        self._extend(key)
        return key.text

    def extend_key(self, product: str, account: str) -> str:
        """Raises -1125 where none is active."""
        key = self._active(product, account)
        if key is None:
            raise errors.futures(-1125)
        self._extend(key)
        return key.text

    def stop_key(self, product: str, account: str) -> None:
        """The key ends, and its streams are closed."""
        key = self._active(product, account)
        if key is None:
            raise errors.futures(-1125)
        self._forget(key)
        for delivery in list(key.deliveries):
            delivery.outlet.close(1000, "listen key closed", "listen key deleted")

    def expire_keys(self, product: str, account: str, *, announced: bool) -> list[str]:
        """Expire what matches now; returns the accounts."""
        found = [
            key
            for key in self._keys.values()
            if product in ("", key.product) and account in ("", key.account)
        ]
        for key in found:
            self._expire(key, announced)
        return [f"{key.product}/{key.account}" for key in found]

    def listen(
        self, text: str, product: str, outlet: Outlet, wrapped: bool, wanted: frozenset[str]
    ) -> Delivery | None:
        """Bring a key's events to a connection; None for a key that is not active: such a
        connection is accepted, and silent."""
        key = self._keys.get(text)
        if key is None or key.product != product:
            return None

        def wrap(body: Json) -> Json:
            return {"stream": text, "data": body} if wrapped else body

        delivery = Delivery(self, outlet, product, key.account, wrap, wanted)
        key.deliveries.append(delivery)
        return delivery

    def leave(self, outlet: Outlet) -> None:
        """The connection is gone."""
        for delivery in self._spot.pop(outlet, {}).values():
            delivery.open = False
        self._ever.pop(outlet, None)
        for key in self._keys.values():
            for delivery in list(key.deliveries):
                if delivery.outlet is outlet:
                    delivery.open = False
                    key.deliveries.remove(delivery)

    def stop(self) -> None:
        for key in list(self._keys.values()):
            self._forget(key)

    def _active(self, product: str, account: str) -> ListenKey | None:
        for key in self._keys.values():
            if (key.product, key.account) == (product, account):
                return key
        return None

    def _extend(self, key: ListenKey) -> None:
        if key.timer is not None:
            key.timer.cancel()
        key.timer = self.clock.call_later(self._life, self._expire, key, True)

    def _expire(self, key: ListenKey, announced: bool) -> None:
        self._forget(key)
        now = self._venue_clock.now_ms()
        body = {"e": "listenKeyExpired", "E": now, "listenKey": key.text}
        for delivery in key.deliveries:
            if announced:
                delivery.push(body, "")

    def _forget(self, key: ListenKey) -> None:
        self._keys.pop(key.text, None)
        if key.timer is not None:
            key.timer.cancel()
