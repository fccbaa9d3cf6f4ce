"""The simulated OKX: handshakes, requests and answers of the public and business paths.

Facts: the API guide (v5) with its failure examples and tables of codes, and captured frames up to
2026-09. Where no source says what the venue does (a request with more than 64 KB of args, an
operation that a public path does not have) the choice is marked below.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from k4.md.exchanges.okx.feeds import CHANNELS, LIMITS, TRADES_ALL
from k4.md.exchanges.okx.session import topic_of
from k4.runner.sim import ws
from k4.runner.sim.client import Client
from k4.runner.sim.market import Instrument
from k4.runner.sim.okx_feeds import Desk, spec_of
from k4.runner.sim.venue import (
    CloseCode,
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

_PATHS = {"/ws/v5/public": "public", "/ws/v5/business": "business"}
_SERVED = {"public": frozenset(CHANNELS.values()), "business": frozenset((TRADES_ALL,))}
_DEFAULT = {"spot": ("BTCUSDT", "ETHUSDT"), "swap": ("BTCUSDT", "BTCUSD")}
_UPGRADE = "The connection will soon be closed for a service upgrade. Please reconnect."


class OkxError(Exception):
    """An answer with a code of the documented table."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OkxSim:
    """See `venue.VenueSim`. One host, `ws`, whose path decides which channels it has."""

    name = "okx"
    hosts = ("ws",)
    endpoints = {  # noqa: RUF012  a protocol member, never changed
        "public": Endpoint("ws", "/ws/v5/public"),
        "business": Endpoint("ws", "/ws/v5/business"),
    }
    limits = {"ws": LIMITS}  # noqa: RUF012
    close_codes = CloseCodes(
        idle=CloseCode(4004, "No data received in 30s"),
        slow=CloseCode(4005, "Buffer is full, cannot write data"),
    )
    data_is_life = True

    def __init__(self, hub: Hub, spec: VenueSpec, seed: int = 0) -> None:
        self._hub = hub
        self._requests: dict[Client, deque[float]] = {}
        self._desks: dict[str, Desk] = {}  # by topic
        self._all: list[Desk] = []
        products = spec.products or _DEFAULT
        for product, symbols in products.items():
            for symbol in symbols:
                instrument = Instrument(spec_of(product, symbol), seed, hub.clock)
                desk = Desk(hub, instrument, spec.scale)
                self._all.append(desk)
                self._desks.update(dict.fromkeys(desk.topics, desk))

    @property
    def instruments(self) -> Sequence[tuple[Instrument, Publisher]]:
        return [(desk.instrument, desk) for desk in self._all]

    # Connections.

    def admit(self, host: str, request: Request) -> str | Refusal:
        return _PATHS.get(request.path) or Refusal(404)

    def opened(self, client: Client) -> None:
        """Forget who is gone."""
        alive = set(self._hub.clients)
        self._requests = {c: times for c, times in self._requests.items() if c in alive}

    def shutdown_notice(self, client: Client) -> bytes | None:
        notice = {"event": "notice", "code": "64008", "msg": _UPGRADE, "connId": _conn_id(client)}
        return msgspec.json.encode(notice)

    # Requests.

    def receive(self, client: Client, opcode: int, payload: bytes) -> None:
        if payload == b"ping":
            if not client.withholds_pongs:
                client.send_text(b"pong")
            return
        request_id = ""
        try:
            if opcode != ws.TEXT:
                raise OkxError("60012", "Invalid request: a binary message")
            request = _parse(payload)
            request_id = _request_id(request)
            self._count(client)
            op, args = _operation(request)
        except OkxError as error:
            self._refuse(client, request_id, error)
            return
        for arg in args:
            self._execute(client, request_id, op, arg)

    def _count(self, client: Client) -> None:
        """480 requests an hour; a request counts once, however many args it has."""
        limits, now = client.limits, self._hub.clock.monotonic()
        times = self._requests.setdefault(client, deque())
        while times and times[0] <= now - limits.messages_period:
            times.popleft()
        times.append(now)
        if len(times) > limits.messages:
            raise OkxError("60014", "Requests too frequent")

    def _execute(self, client: Client, request_id: str, op: str, arg: dict[str, str]) -> None:
        channel, inst_id = arg["channel"], arg["instId"]
        name = topic_of(channel, inst_id)
        desk = self._desks.get(name)
        verdict = Verdict.SERVE
        if desk is not None and op == "subscribe":
            topic = desk.topics[name]
            verdict = self._hub.verdict(client, name, topic.product, topic.kind.label)
        if desk is None or channel not in _SERVED[client.endpoint] or verdict is Verdict.REFUSE:
            text = (
                f"Wrong URL or channel:{channel},instId:{inst_id} doesn't exist. Please use the"
                " correct URL, channel and parameters referring to API document."
            )
            self._refuse(client, request_id, OkxError("60018", text))
            return
        answer = {"event": op, "arg": arg, "connId": _conn_id(client)}
        client.send_text(msgspec.json.encode({"id": request_id} | answer if request_id else answer))
        if op == "unsubscribe":
            self._leave(client, name)
        elif name not in client.topics:
            self._join(client, desk, desk.topics[name], verdict)

    def _join(self, client: Client, desk: Desk, topic: Topic, verdict: Verdict) -> None:
        client.topics[topic.name] = topic if verdict is Verdict.SERVE else None
        if verdict is Verdict.SERVE:
            self._hub.join(client, topic, 0)
            desk.greet(client, topic)

    def _leave(self, client: Client, name: str) -> None:
        topic = client.topics.pop(name, None)
        if topic is not None:
            self._hub.leave(client, topic)

    def _refuse(self, client: Client, request_id: str, error: OkxError) -> None:
        answer = {
            "event": "error",
            "code": error.code,
            "msg": str(error),
            "connId": _conn_id(client),
        }
        client.send_text(msgspec.json.encode({"id": request_id} | answer if request_id else answer))

    # Replay, metadata.

    def replayed(self, client: Client, payload: bytes) -> bytes | None:
        """A recorded push, as it is, to who subscribed its arg; acks are nobody's."""
        try:
            frame = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
            arg = msgspec.json.decode(frame["arg"], type=dict[str, str])
        except (msgspec.DecodeError, KeyError):
            return None
        topic = topic_of(arg.get("channel", ""), arg.get("instId", ""))
        return payload if "data" in frame and client.topics.get(topic) is not None else None

    def routes(self) -> Sequence[tuple[str, str, RestHandler]]:
        return [("GET", "/api/v5/public/instruments", self._instruments)]

    async def _instruments(self, request: web.Request) -> web.StreamResponse:
        wanted = request.query.get("instType", "")
        found = [d.listing() for d in self._all if d.instrument.spec.product.upper() == wanted]
        answer: dict[str, Any] = {"code": "0", "msg": "", "data": found}
        if wanted not in ("SPOT", "SWAP"):
            answer = {"code": "51000", "msg": "Parameter instType error", "data": []}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def make(hub: Hub, spec: VenueSpec, seed: int = 0) -> OkxSim:
    return OkxSim(hub, spec, seed)


def _conn_id(client: Client) -> str:
    """Eight hexadecimal digits that stay the same for a connection."""
    number = client.log.index if client.log is not None else 0
    return f"{zlib.crc32(b'okx%d' % number):08x}"


def _parse(payload: bytes) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        request = None
    if not isinstance(request, dict):
        raise OkxError("60012", f"Invalid request: {payload.decode(errors='replace')}")
    return request


def _request_id(request: dict[str, Any]) -> str:
    found = request.get("id", "")
    plain = isinstance(found, str) and found.isascii() and len(found) <= 32
    if plain and (not found or found.isalnum()):
        return str(found)
    raise OkxError("60013", "Invalid args: id")


def _operation(request: dict[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """Operation and args. Raises OkxError for what the whole request is refused for."""
    op, args = request.get("op"), request.get("args")
    if op not in ("subscribe", "unsubscribe"):
        # `login` exists on private paths; the answer of a public one is not documented.
        raise OkxError("60019" if "op" in request else "60012", f"Invalid op: {op}")
    if not isinstance(args, list) or not args:
        text = msgspec.json.encode(request).decode()
        raise OkxError("60012", f"Invalid request: {text}")
    if len(msgspec.json.encode(args)) > LIMITS.request_bytes:
        raise OkxError("60013", "Invalid args: more than 64 KB")  # the code is not documented
    for arg in args:
        if not isinstance(arg, dict) or not all(
            isinstance(arg.get(key), str) and arg[key] for key in ("channel", "instId")
        ):
            raise OkxError("60013", "Invalid args")
    return op, [{"channel": arg["channel"], "instId": arg["instId"]} for arg in args]
