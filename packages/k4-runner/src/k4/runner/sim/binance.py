"""The simulated Binance: handshakes and control messages of spot JSON, spot SBE, USD-M and COIN-M.

Facts: binance-spot-api-docs `web-socket-streams.md` and `sbe-market-data-streams.md` (2026-07-21),
the USD-M routing notice of 2026-03-06, and captured frames up to 2026-09. Where no source says what
the venue does (HTTP status of a bad key, too many streams) the choice is marked below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import web

from k4.md.exchanges.binance.feeds import FUTURES_LIMITS, SPOT_LIMITS
from k4.runner.sim.binance_feeds import COMBINED, MICROSECONDS, Desk, specs
from k4.runner.sim.client import Client
from k4.runner.sim.market import Instrument
from k4.runner.sim.venue import (
    CloseCodes,
    Endpoint,
    Hub,
    Publisher,
    RestHandler,
    Topic,
    VenueSpec,
    Verdict,
)
from k4.runner.sim.ws import Refusal, Request

_METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_DEFAULT = {
    "spot": ("BTCUSDT", "ETHUSDT"),
    "ubase": ("BTCUSDT", "ETHUSDT"),
    "cbase": ("BTCUSD_PERP",),
}
_REQUEST_ID = re.compile(r"[0-9A-Za-z_-]{1,36}")


class BinanceError(Exception):
    """An answer with an error code of the documented table."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class BinanceSim:
    """See `venue.VenueSim`. Hosts: `spot`, `spot_sbe`, `ubase`, `cbase`, a port each."""

    name = "binance"
    hosts = ("spot", "spot_sbe", "ubase", "cbase")
    endpoints = {  # noqa: RUF012  a protocol member, never changed
        "spot": Endpoint("spot", "/stream"),
        "spot_sbe": Endpoint("spot_sbe", "/stream"),
        "ubase_public": Endpoint("ubase", "/public/stream"),
        "ubase_market": Endpoint("ubase", "/market/stream"),
        "cbase": Endpoint("cbase", "/stream"),
    }
    limits = {  # noqa: RUF012
        "spot": SPOT_LIMITS,
        "spot_sbe": SPOT_LIMITS,
        "ubase": FUTURES_LIMITS,
        "cbase": FUTURES_LIMITS,
    }
    close_codes = CloseCodes()
    data_is_life = False

    def __init__(self, hub: Hub, spec: VenueSpec, seed: int = 0) -> None:
        self._hub = hub
        self._keys = spec.api_keys
        self._topics: dict[tuple[str, str], Topic] = {}
        self._desks: list[Desk] = []
        products = spec.products or _DEFAULT
        for product, symbols in products.items():
            for item in specs(product, symbols):
                desk = Desk(hub, Instrument(item, seed, hub.clock))
                self._desks.append(desk)
                self._topics.update(desk.topics)

    @property
    def instruments(self) -> Sequence[tuple[Instrument, Publisher]]:
        return [(desk.instrument, desk) for desk in self._desks]

    # -- handshake --------------------------------------------------------------------------------

    def admit(self, host: str, request: Request) -> str | Refusal:
        route, path = _route(host, request.path)
        if not (path == "/stream" or path == "/ws" or path.startswith("/ws/")):
            return Refusal(404)
        if host == "spot_sbe":
            key = request.headers.get("x-mbx-apikey", "")
            if not key or (self._keys and key not in self._keys):
                return Refusal(401)  # the status of a missing or wrong key is not documented
        return host if route is None else f"{host}_{route}"

    def opened(self, client: Client) -> None:
        _, path = _route(client.host, client.request.path)
        query = client.request.query
        form = COMBINED if path == "/stream" else 0
        if client.host == "spot" and query.get("timeUnit", "").lower() == "microsecond":
            form |= MICROSECONDS
        client.form = form
        text = query.get("streams", "") if path == "/stream" else unquote(path[len("/ws/") :])
        for name in filter(None, text.split("/")):
            if self._verdict(client, name) is Verdict.SERVE:
                self._subscribe(client, name)
            else:
                client.topics[name] = None

    # -- control messages -------------------------------------------------------------------------

    def receive(self, client: Client, opcode: int, payload: bytes) -> None:
        request_id: object = None
        try:
            request = _parse(payload)
            request_id = _request_id(request)
            result = self._execute(client, request, len(payload))
            answer: dict[str, object] = {"result": result, "id": request_id}
        except BinanceError as error:
            answer = {"error": {"code": error.code, "msg": str(error)}, "id": request_id}
        client.send_text(msgspec.json.encode(answer))

    def _execute(self, client: Client, request: dict[str, Any], size: int) -> object:
        method = request.get("method")
        if method is None:
            raise BinanceError(
                2, f"Invalid request: missing field `method` at line 1 column {size}"
            )
        if method not in _METHODS:
            known = ", ".join(f"`{name}`" for name in _METHODS)
            raise BinanceError(
                2,
                f"Invalid request: unknown variant `{method}`, expected one of {known}"
                " at line 1 column 28",
            )
        params = request.get("params", [])
        if method == "LIST_SUBSCRIPTIONS":
            return list(client.topics)
        if method == "GET_PROPERTY":
            _property(params, 1)
            return bool(client.form & COMBINED)
        if method == "SET_PROPERTY":
            self._set_combined(client, _property(params, 2))
            return None
        names = _stream_names(params)
        if method == "SUBSCRIBE":
            self._check(client, names)
        for name in names:
            if method == "SUBSCRIBE":
                self._subscribe(client, name)
            else:
                self._unsubscribe(client, name)
        return None

    def _check(self, client: Client, names: list[str]) -> None:
        if any("@" not in name and not name.startswith("!") for name in names):
            raise BinanceError(2, "Invalid request: invalid stream")
        limit = client.limits.topics_per_connection
        if limit and len(client.topics.keys() | set(names)) > limit:
            # The documentation gives the limit, not the answer.
            raise BinanceError(2, "Invalid request: too many streams")
        verdicts = [self._verdict(client, name) for name in names]
        if Verdict.REFUSE in verdicts:
            raise BinanceError(2, "Invalid request: invalid stream")
        for name, verdict in zip(names, verdicts, strict=True):
            if verdict is Verdict.SILENT:
                client.topics[name] = None

    def _verdict(self, client: Client, name: str) -> Verdict:
        topic = self._topics.get((client.endpoint, name))
        if topic is None:
            return Verdict.SERVE
        return self._hub.verdict(client, name, topic.product, topic.kind.label)

    def _subscribe(self, client: Client, name: str) -> None:
        """An unknown stream, or one that another route carries, is taken and stays silent."""
        if name in client.topics:
            return
        topic = self._topics.get((client.endpoint, name))
        client.topics[name] = topic
        if topic is not None:
            self._hub.join(client, topic, client.form)

    def _unsubscribe(self, client: Client, name: str) -> None:
        topic = client.topics.pop(name, None)
        if topic is not None:
            self._hub.leave(client, topic)

    def _set_combined(self, client: Client, combined: bool) -> None:
        form = client.form | COMBINED if combined else client.form & ~COMBINED
        if form == client.form:
            return
        client.form = form
        for topic in client.topics.values():
            if topic is not None:
                self._hub.leave(client, topic)
                self._hub.join(client, topic, form)

    # -- notices, replay, metadata ----------------------------------------------------------------

    def shutdown_notice(self, client: Client) -> bytes | None:
        """`serverShutdown`; documented for spot only, sent on all so that it is heard on all."""
        data = b'{"e":"serverShutdown","E":%d}' % (self._hub.clock.time_ns() // 1_000_000)
        if client.form & COMBINED:
            return b'{"stream":"!serverShutdown","data":' + data + b"}"
        return data

    def replayed(self, client: Client, payload: bytes) -> bytes | None:
        name, data = _recorded(payload)
        if not name:
            return None
        wanted = next((topic for topic in client.topics if _same_stream(topic, name)), None)
        if wanted is None:
            return None
        if client.form & COMBINED:
            return b'{"stream":"' + wanted.encode() + b'","data":' + data + b"}"
        return data

    def routes(self) -> Sequence[tuple[str, str, RestHandler]]:
        return [
            ("GET", "/api/v3/exchangeInfo", self._listing("spot")),
            ("GET", "/fapi/v1/exchangeInfo", self._listing("ubase")),
            ("GET", "/dapi/v1/exchangeInfo", self._listing("cbase")),
        ]

    def _listing(self, product: str) -> RestHandler:
        async def exchange_info(request: web.Request) -> web.Response:
            desks = [desk for desk in self._desks if desk.instrument.spec.product == product]
            body = {
                "timezone": "UTC",
                "serverTime": self._hub.clock.time_ns() // 1_000_000,
                "rateLimits": [],
                "exchangeFilters": [],
                "symbols": [desk.listing() for desk in desks],
            }
            return web.Response(body=msgspec.json.encode(body), content_type="application/json")

        return exchange_info


def make(hub: Hub, spec: VenueSpec, seed: int = 0) -> BinanceSim:
    return BinanceSim(hub, spec, seed)


def _route(host: str, path: str) -> tuple[str | None, str]:
    """(USD-M route, rest of the path); a path without route behaves as `/public`."""
    if host != "ubase":
        return None, path
    for route in ("public", "market", "private"):
        if path.startswith(f"/{route}/"):
            return route, path[len(route) + 1 :]
    return "public", path


def _parse(payload: bytes) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BinanceError(3, "Invalid JSON: expected value at line 1 column 1") from None
    if not isinstance(request, dict):
        raise BinanceError(2, "Invalid request: missing field `method` at line 1 column 1")
    return request


def _request_id(request: dict[str, Any]) -> object:
    found = request.get("id")
    whole = isinstance(found, int) and not isinstance(found, bool) and -(2**63) <= found < 2**63
    if found is None or whole or (isinstance(found, str) and _REQUEST_ID.fullmatch(found)):
        return found
    raise BinanceError(2, "Invalid request: request ID must be an unsigned integer")


def _property(params: object, size: int) -> bool:
    if not isinstance(params, list) or not params or not isinstance(params[0], str):
        raise BinanceError(2, "Invalid request: property name must be a string")
    if len(params) > size:
        raise BinanceError(2, "Invalid request: too many parameters")
    if params[0] != "combined":
        raise BinanceError(0, "Unknown property")
    if size == 1:
        return False
    if len(params) < size or not isinstance(params[1], bool):
        raise BinanceError(1, "Invalid value type: expected Boolean")
    return params[1]


def _stream_names(params: object) -> list[str]:
    if not isinstance(params, list) or not all(isinstance(name, str) for name in params):
        raise BinanceError(2, "Invalid request: invalid stream")
    return params


def _recorded(payload: bytes) -> tuple[str, bytes]:
    """(stream, bare payload) of a recorded frame; ('', b'') for acks and what names no stream.

    A bare depth5 of spot names no symbol; it is given to every subscriber of such a stream.
    """
    try:
        frame = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
        if "stream" in frame:
            return msgspec.json.decode(frame["stream"], type=str), bytes(frame["data"])
        if "lastUpdateId" in frame:
            return "@depth", payload
        if "s" not in frame:
            return "", b""
        symbol = msgspec.json.decode(frame["s"], type=str).lower()
        event = msgspec.json.decode(frame["e"], type=str) if "e" in frame else "bookTicker"
    except (msgspec.DecodeError, KeyError):
        return "", b""
    return f"{symbol}@{'depth' if event == 'depthUpdate' else event}", payload


def _same_stream(topic: str, recorded: str) -> bool:
    """Is the subscribed stream the recorded one? Depth streams match by symbol, at any speed."""
    if topic == recorded:
        return True
    symbol, _, channel = recorded.partition("@")
    if not channel.startswith("depth"):
        return False
    mine, _, wanted = topic.partition("@")
    return wanted.startswith("depth") and symbol in ("", mine)
