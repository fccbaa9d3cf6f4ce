"""What a request must pass before the product looks at it, in the order of the venue's checks.

Firewall and limits, then key, mandatory parameters, time, signature, unread parameters. No official
text confirms this order, so a client must not rely on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

import msgspec

from k4.core.clock import Clock
from k4.runner.sim.trading import errors
from k4.runner.sim.trading.catalog import KEY, NONE, SIGNED, Endpoint
from k4.runner.sim.trading.keys import Key, KeyRing
from k4.runner.sim.trading.limits import OrderCounts, Pool
from k4.runner.sim.trading.params import Params, suspicious

_WHOLE = re.compile(r"[0-9]{1,20}")
_WINDOW = re.compile(r"[0-9]{1,8}(\.[0-9]{1,3})?")
_MICROSECONDS = 10**14  # a timestamp above it counts in microseconds (spot)
_AHEAD_US = 1_000_000


class VenueClock:
    """The venue's two clocks: the one that checks times first, and the matching engine's. Offsets
    in microseconds against the injected clock."""

    def __init__(self, clock: Clock, offset_ms: float = 0.0) -> None:
        self._clock = clock
        self.gateway_us = int(offset_ms * 1000)
        self.engine_us = int(offset_ms * 1000)

    def now_us(self) -> int:
        return self._clock.time_ns() // 1000 + self.gateway_us

    def now_ms(self) -> int:
        return self.now_us() // 1000

    def engine_now_us(self) -> int:
        return self._clock.time_ns() // 1000 + self.engine_us

    def engine_now_ms(self) -> int:
        return self.engine_now_us() // 1000


class Request(msgspec.Struct, kw_only=True):
    """One request, whatever it came by. values: text by name, signature and key included. payload:
    what has to be signed. text: all of it as received, for the firewall. session: the key that this
    connection has logged on with. key: set by the gate."""

    product: str
    transport: str
    endpoint: Endpoint
    values: Mapping[str, str]
    payload: bytes = b""
    signature: str = ""
    api_key: str = ""
    text: str = ""
    session: Key | None = None
    key: Key | None = None

    @property
    def params(self) -> Params:
        return Params(self.values)

    @property
    def account(self) -> str:
        return self.key.account if self.key is not None else ""

    @property
    def symbol(self) -> str:
        return self.values.get("symbol", "")

    @property
    def order_client_id(self) -> str:
        """The client id of the order that it is about."""
        names: tuple[str, ...] = (
            "newClientOrderId",
            "clientAlgoId",
            "origClientOrderId",
            "cancelOrigClientOrderId",
        )
        if self.endpoint.op in ("order.cancel", "order.amend.keepPriority"):
            names = ("origClientOrderId",)
        return next((self.values[name] for name in names if self.values.get(name)), "")


class SessionRevoked(Exception):
    """The key that the connection logged on with is not valid any more."""


class Gate:
    """pools: by product (the futures share one). counts: by account and product."""

    def __init__(
        self,
        clock: VenueClock,
        keys: KeyRing,
        pools: Mapping[str, Pool],
        counts: Mapping[tuple[str, str], OrderCounts],
    ) -> None:
        self.clock = clock
        self.keys = keys
        self.pools = pools
        self.counts = counts

    def admit(self, request: Request) -> None:
        """Raises what the venue answers; sets `request.key`."""
        endpoint = request.endpoint
        if suspicious(request.text):
            raise errors.firewall()
        weight = endpoint.weight_of(request.values)
        self.pools[request.product].spend(weight, self.clock.now_ms())
        self._find_key(request)
        self._check_mandatory(request)
        if endpoint.security == SIGNED:
            self.check_time(request, self.clock.now_us())
            self._check_signature(request)
        self._check_unread(request)
        if endpoint.orders and request.key is not None:
            counts = self.counts[request.account, request.product]
            over = counts.exceeded(self.clock.now_ms(), endpoint.orders)
            if over is not None:
                raise over

    def check_again(self, request: Request) -> None:
        """Just before the matching engine, on its clock."""
        if request.endpoint.security != SIGNED or not request.endpoint.trades:
            return
        try:
            self.check_time(request, self.clock.engine_now_us())
        except errors.VenueError:
            counts = self.counts[request.account, request.product]
            counts.add(self.clock.now_ms(), request.endpoint.orders)
            if request.product == "spot":
                raise
            raise errors.late_at_engine() from None

    def _find_key(self, request: Request) -> None:
        security = request.endpoint.security
        if security == NONE:
            return
        if security == SIGNED and not request.api_key and request.session is not None:
            if request.session.revoked:
                raise SessionRevoked
            request.key = request.session
        else:
            request.key = self.keys.find(request.api_key)
        if request.endpoint.trades and not request.key.trades:
            raise errors.key_rejected()

    def _check_mandatory(self, request: Request) -> None:
        endpoint, values = request.endpoint, request.values
        for name in endpoint.need:
            if not values.get(name):
                raise errors.missing(name)
        if endpoint.one_of and not any(values.get(name) for name in endpoint.one_of):
            raise errors.one_of(endpoint.one_of[0], endpoint.one_of[1])
        if endpoint.security == SIGNED:
            if not values.get("timestamp"):
                raise errors.missing("timestamp")
            if request.key is not request.session and not request.signature:
                raise errors.missing("signature")

    def check_time(self, request: Request, now_us: int) -> None:
        """Raises what the venue answers to a time outside of the window."""
        stamp = request.values["timestamp"]
        if not _WHOLE.fullmatch(stamp):
            raise errors.illegal("timestamp", "^[0-9]{1,20}$")
        sent_us = int(stamp)
        if request.product != "spot" or sent_us < _MICROSECONDS:
            sent_us *= 1000
        window_us = self._window_us(request)
        if sent_us >= now_us + _AHEAD_US:
            raise errors.ahead()
        if now_us - sent_us > window_us:
            raise errors.outside_window()

    def _window_us(self, request: Request) -> int:
        text = request.values.get("recvWindow")
        if text is None:
            return 5_000_000
        if not _WINDOW.fullmatch(text) or (request.product != "spot" and "." in text):
            raise errors.illegal("recvWindow", r"^([0-9]{1,5})(\.[0-9]{1,3})?$")
        window = Decimal(text)
        if window > 60_000:
            raise errors.window_too_big()
        return int(window * 1000)

    def _check_signature(self, request: Request) -> None:
        key = request.key
        if key is None or (key is request.session and not request.signature):
            return
        if not key.verifier.accepts(request.payload, request.signature):
            raise errors.bad_signature()

    def _check_unread(self, request: Request) -> None:
        endpoint = request.endpoint
        known = {*endpoint.need, *endpoint.may}
        if endpoint.security == SIGNED:
            known |= {"timestamp", "recvWindow", "signature"}
        if request.transport == "ws":
            known.add("returnRateLimits")
            if endpoint.security in (SIGNED, KEY):
                known.add("apiKey")
        sent = set(request.values)
        if sent - known:
            raise errors.unread(len(sent & known), len(sent))
