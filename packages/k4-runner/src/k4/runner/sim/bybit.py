"""The simulated Bybit: handshakes, requests and answers of the v5 public paths.

Facts: bybit-exchange/docs (2026-07-24), and captured frames up to 2026-09. Where no source says
what the venue does (no JSON, more than 21,000 characters of args, a topic that is subscribed
already) the choice is marked below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from k4.md.exchanges.bybit.feeds import DERIVATIVES_LIMITS, LIMITS
from k4.md.exchanges.bybit.metadata import PATH, PER_PAGE
from k4.md.exchanges.bybit.session import TOPICS
from k4.runner.sim.bybit_feeds import Desk, spec_of
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

_ROOT = "/v5/public/"
_DEFAULT = {
    "spot": ("BTCUSDT", "ETHUSDT"),
    "linear": ("BTCUSDT", "BTCUSDC"),
    "inverse": ("BTCUSD",),
}
_CHANNELS = tuple(f"{name}." for name in TOPICS.values())
_NO_HANDLER = "error:handler not found"
_FEWEST_PER_PAGE, _USUAL_PER_PAGE = 1, 500


class BybitError(Exception):
    """Why a whole request is refused, in the venue's words."""


class BybitSim:
    """See `venue.VenueSim`. One host, `ws`, whose path names the category."""

    name = "bybit"
    hosts = ("ws",)
    endpoints = {  # noqa: RUF012  a protocol member, never changed
        category: Endpoint("ws", _ROOT + category) for category in LIMITS
    }
    # The rate of messages is K4's own caution; the venue documents none.
    limits = {"ws": msgspec.structs.replace(DERIVATIVES_LIMITS, messages=0)}  # noqa: RUF012
    close_codes = CloseCodes()
    data_is_life = True

    def __init__(self, hub: Hub, spec: VenueSpec, seed: int = 0) -> None:
        self._hub = hub
        self._desks: list[Desk] = []
        self._topics: dict[tuple[str, str], tuple[Desk, Topic]] = {}  # by category and name
        products = spec.products or _DEFAULT
        for product, symbols in products.items():
            for symbol in symbols:
                instrument = Instrument(spec_of(product, symbol), seed, hub.clock)
                desk = Desk(hub, instrument, symbol, spec.scale)
                self._desks.append(desk)
                for name, topic in desk.topics.items():
                    self._topics[product, name] = (desk, topic)

    @property
    def instruments(self) -> Sequence[tuple[Instrument, Publisher]]:
        return [(desk.instrument, desk) for desk in self._desks]

    # Connections.

    def admit(self, host: str, request: Request) -> str | Refusal:
        category = request.path.removeprefix(_ROOT)
        known = request.path.startswith(_ROOT) and category in LIMITS
        return category if known else Refusal(404)

    def opened(self, client: Client) -> None:
        """Nothing is sent before a request."""

    def shutdown_notice(self, client: Client) -> bytes | None:
        """Plain disconnects are not announced."""
        return None

    # Requests.

    def receive(self, client: Client, opcode: int, payload: bytes) -> None:
        try:
            request = msgspec.json.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            request = None
        if not isinstance(request, dict):  # what the venue answers to no JSON is not documented
            self._answer(client, {}, success=False, text=_NO_HANDLER)
            return
        if request.get("op") == "ping":
            self._pong(client, request)
            return
        try:
            self._execute(client, request)
        except BybitError as error:
            self._answer(client, request, success=False, text=str(error))

    def _pong(self, client: Client, request: dict[str, Any]) -> None:
        if client.withholds_pongs:
            return
        if client.endpoint == "spot":
            request = {key: value for key, value in request.items() if key != "req_id"}
        self._answer(client, request, success=True, text="pong")

    def _execute(self, client: Client, request: dict[str, Any]) -> None:
        op, names = request.get("op"), request.get("args")
        if op not in ("subscribe", "unsubscribe") or not isinstance(names, list):
            raise BybitError(_NO_HANDLER)
        if not all(isinstance(name, str) for name in names):
            raise BybitError(_NO_HANDLER)
        if op == "unsubscribe":
            self._confirm(client, request)
            for name in names:
                self._leave(client, name)
            return
        verdicts = self._check(client, names)
        self._confirm(client, request)
        for name, verdict in verdicts.items():
            self._join(client, name, verdict)

    def _check(self, client: Client, names: list[str]) -> dict[str, Verdict]:
        """Every topic of a request and what becomes of it. One that is refused refuses all."""
        category = client.endpoint
        most = LIMITS[category].topics_per_request
        if most and len(names) > most:
            raise BybitError(f"args size >{most}")
        room = LIMITS[category].connection_bytes
        if len(msgspec.json.encode([*dict.fromkeys([*client.topics, *names])])) > room:
            raise BybitError(f"args length >{room}")  # the words are not documented
        verdicts: dict[str, Verdict] = {}
        for name in names:
            found = self._topics.get((category, name))
            if found is None:
                known = name.startswith(_CHANNELS)
                raise BybitError(f"Invalid symbol :[{name}]" if known else _NO_HANDLER)
            _, topic = found
            verdict = self._hub.verdict(client, name, topic.product, topic.kind.label)
            if verdict is Verdict.REFUSE:
                raise BybitError(f"Invalid symbol :[{name}]")
            verdicts[name] = verdict
        return verdicts

    def _join(self, client: Client, name: str, verdict: Verdict) -> None:
        """Subscribing again sends the book again; whether the venue does is not documented."""
        desk, topic = self._topics[client.endpoint, name]
        client.topics[name] = topic if verdict is Verdict.SERVE else None
        if verdict is Verdict.SERVE:
            self._hub.join(client, topic, 0)
            desk.greet(client, topic)

    def _leave(self, client: Client, name: str) -> None:
        topic = client.topics.pop(name, None)
        if topic is not None:
            self._hub.leave(client, topic)

    def _confirm(self, client: Client, request: dict[str, Any]) -> None:
        spot_subscribes = client.endpoint == "spot" and request["op"] == "subscribe"
        self._answer(client, request, success=True, text="subscribe" if spot_subscribes else "")

    def _answer(self, client: Client, request: dict[str, Any], *, success: bool, text: str) -> None:
        """One answer to a request. Its id comes back as text; spot's pong has none."""
        answer: dict[str, object] = {
            "success": success,
            "ret_msg": text,
            "conn_id": _conn_id(client),
        }
        if text != "pong" or client.endpoint != "spot":
            answer["req_id"] = str(request.get("req_id", ""))
        answer["op"] = str(request.get("op", ""))
        client.send_text(msgspec.json.encode(answer))

    # Replay, metadata.

    def replayed(self, client: Client, payload: bytes) -> bytes | None:
        """A recorded push, as it is, to who subscribed its topic; acks are nobody's."""
        try:
            frame = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
            topic = msgspec.json.decode(frame["topic"], type=str)
        except (msgspec.DecodeError, KeyError):
            return None
        return payload if client.topics.get(topic) is not None else None

    def routes(self) -> Sequence[tuple[str, str, RestHandler]]:
        return [("GET", PATH, self._instruments_info)]

    async def _instruments_info(self, request: web.Request) -> web.StreamResponse:
        category = request.query.get("category", "")
        listed = [d.listing() for d in self._desks if d.instrument.spec.product == category]
        answer: dict[str, Any] = {"retCode": 0, "retMsg": "OK"}
        try:
            start, stop = _page(request.query.get("cursor", ""), request.query.get("limit", ""))
        except ValueError:
            category = ""
        if category not in LIMITS:
            answer = {"retCode": 10001, "retMsg": "params error: category", "result": {}}
        elif category == "spot":
            answer["result"] = {"category": category, "list": listed}
        else:
            following = f"page%3D{stop}" if stop < len(listed) else ""
            answer["result"] = {
                "category": category,
                "list": listed[start:stop],
                "nextPageCursor": following,
            }
        answer["time"] = self._hub.clock.time_ns() // 1_000_000
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def make(hub: Hub, spec: VenueSpec, seed: int = 0) -> BybitSim:
    return BybitSim(hub, spec, seed)


def _conn_id(client: Client) -> str:
    """Stays the same for a connection."""
    number = client.log.index if client.log is not None else 0
    return f"d9avsh3fo0jvsls9d82g-{number:x}"


def _page(cursor: str, limit: str) -> tuple[int, int]:
    """Where a page of a listing begins and ends. Raises ValueError."""
    size = min(max(int(limit or _USUAL_PER_PAGE), _FEWEST_PER_PAGE), PER_PAGE)
    start = int(cursor.removeprefix("page%3D") or 0)
    return start, start + size
