"""The simulated Bitget: requests and answers of the classic v2 public socket.

Facts: the official v2 introduction and channel pages (mirror of 2025-11), a live probe of
2026-09-15, and captured frames up to 2026-09. Where no source says what the venue does (words and
code of some refusals) the choice is marked below.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from k4.md.exchanges.bitget.feeds import LIMITS, MARKETS
from k4.md.exchanges.bitget.metadata import MIX_PATH, OK, SPOT_PATH
from k4.md.exchanges.bitget.session import CHANNELS, topic_of
from k4.runner.sim.bitget_feeds import Desk, spec_of
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

PATH = "/v2/ws/public"
MOST_CHANNELS = 1000  # of a connection; fewer than 50 is the venue's advice
WATCHES = 20  # looks at the pings within their deadline
_DEFAULT = {
    "spot": ("BTCUSDT", "ETHUSDT"),
    "futures": ("BTCUSDT",),
    "usdc_futures": ("BTCUSDC",),
    "coin_futures": ("BTCUSD",),
}
_INST_TYPES = frozenset(market.inst_type for market in MARKETS.values())

Arg = dict[str, str]


class BitgetError(Exception):
    """An answer with a code of the venue. arg: that it is about, None for a whole request."""

    def __init__(self, code: int, message: str, arg: Arg | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.arg = arg


class Manners:
    """How a client has behaved: its texts, its requests, its last `ping`."""

    def __init__(self, now: float, client: Client) -> None:
        limits = client.limits
        self.pinged = now
        self._texts = Window(limits.messages, limits.messages_period)
        self._requests = Window(limits.requests, limits.requests_period)

    def text(self, now: float) -> bool:
        """One more message, pings included; False where it is one too many."""
        return self._texts.take(now)

    def request(self, now: float) -> bool:
        return self._requests.take(now)


class Window:
    """At most `count` events in any `period` seconds."""

    def __init__(self, count: int, period: float) -> None:
        self._count = count
        self._period = period
        self._times: deque[float] = deque()

    def take(self, now: float) -> bool:
        times = self._times
        while times and times[0] <= now - self._period:
            times.popleft()
        times.append(now)
        return len(times) <= self._count


class BitgetSim:
    """See `venue.VenueSim`. One host and one path; the args name the product.

    Only text messages count against the rate, and only the text `ping` keeps a connection open, so
    both are watched here and not by the server.
    """

    name = "bitget"
    hosts = ("ws",)
    endpoints = {"public": Endpoint("ws", PATH)}  # noqa: RUF012  a protocol member, never changed
    limits = {  # noqa: RUF012
        "ws": msgspec.structs.replace(LIMITS, pings_count=False, idle_close=0.0)
    }
    close_codes = CloseCodes()
    data_is_life = False

    def __init__(self, hub: Hub, spec: VenueSpec, seed: int = 0) -> None:
        self._hub = hub
        self._deadline = LIMITS.idle_close / spec.scale
        self._manners: dict[Client, Manners] = {}
        self._desks: list[Desk] = []
        self._topics: dict[str, tuple[Desk, Topic]] = {}
        products = spec.products or _DEFAULT
        for product, symbols in products.items():
            for symbol in symbols:
                desk = Desk(hub, Instrument(spec_of(product, symbol), seed, hub.clock), symbol)
                self._desks.append(desk)
                for name, topic in desk.topics.items():
                    self._topics[name] = (desk, topic)
        self._symbols = {desk.symbol for desk in self._desks}
        hub.every(self._deadline / WATCHES * spec.cadence_scale, self._watch)

    @property
    def instruments(self) -> Sequence[tuple[Instrument, Publisher]]:
        return [(desk.instrument, desk) for desk in self._desks]

    # Connections.

    def admit(self, host: str, request: Request) -> str | Refusal:
        return "public" if request.path == PATH else Refusal(404)

    def opened(self, client: Client) -> None:
        """Remember when, and forget who is gone."""
        alive = set(self._hub.clients)
        self._manners = {c: manners for c, manners in self._manners.items() if c in alive}
        self._manners[client] = Manners(self._hub.clock.monotonic(), client)

    def shutdown_notice(self, client: Client) -> bytes | None:
        """None is documented."""
        return None

    def _watch(self) -> None:
        """Cut off, without a close frame, who sent no `ping` for two minutes."""
        late = self._hub.clock.monotonic() - self._deadline
        for client in list(self._hub.clients):
            if client in self._manners and self._manners[client].pinged < late:
                if client.log is not None:
                    client.log.ended = "no ping"
                client.abort()

    # Requests.

    def receive(self, client: Client, opcode: int, payload: bytes) -> None:
        now, manners = self._hub.clock.monotonic(), self._manners[client]
        if not manners.text(now):
            client.end(self.close_codes.messages, "too many messages")
            return
        if payload == b"ping":
            manners.pinged = now
            if not client.withholds_pongs:
                client.send_text(b"pong")
            return
        try:
            op, args = _operation(payload)
            if not manners.request(now):
                raise BitgetError(30006, "request too many")  # the words are not documented
        except BitgetError as error:
            self._refuse(client, "", error)
            return
        for arg in args:
            try:
                self._execute(client, op, arg)
            except BitgetError as error:
                self._refuse(client, op, error)

    def _execute(self, client: Client, op: str, arg: Arg) -> None:
        name = topic_of(arg["instType"], arg["channel"], arg["instId"])
        if op == "unsubscribe":
            self._answer(client, {"event": op, "arg": arg})
            self._leave(client, name)
            return
        if arg["instType"] not in _INST_TYPES or arg["channel"] not in CHANNELS.values():
            raise BitgetError(30016, "Param error", arg)
        verdict, found = Verdict.SERVE, self._topics.get(name)
        if found is not None:
            _, topic = found
            verdict = self._hub.verdict(client, name, topic.product, topic.kind.label)
        # A symbol of another product is acked, and stays silent.
        if verdict is Verdict.REFUSE or (found is None and arg["instId"] not in self._symbols):
            parts = (f"{key}:{value}" for key, value in arg.items())
            raise BitgetError(30001, f"{','.join(parts)},precision:null doesn't exist", arg)
        if len(client.topics.keys() | {name}) > MOST_CHANNELS:
            raise BitgetError(30016, "too many channels", arg)  # code and words: not documented
        self._answer(client, {"event": op, "arg": arg})
        if name not in client.topics:
            self._join(client, name, verdict)

    def _join(self, client: Client, name: str, verdict: Verdict) -> None:
        found = self._topics.get(name)
        if found is None or verdict is not Verdict.SERVE:
            client.topics[name] = None
            return
        desk, topic = found
        client.topics[name] = topic
        self._hub.join(client, topic, 0)
        desk.greet(client, topic)

    def _leave(self, client: Client, name: str) -> None:
        topic = client.topics.pop(name, None)
        if topic is not None:
            self._hub.leave(client, topic)

    def _refuse(self, client: Client, op: str, error: BitgetError) -> None:
        answer: dict[str, object] = {"event": "error"}
        if error.arg is not None:
            answer["arg"] = error.arg
        answer |= {"code": error.code, "msg": str(error)}
        self._answer(client, answer | ({"op": op} if op else {}))

    def _answer(self, client: Client, answer: dict[str, object]) -> None:
        client.send_text(msgspec.json.encode(answer))

    # Replay, metadata.

    def replayed(self, client: Client, payload: bytes) -> bytes | None:
        """A recorded push, as it is, to who subscribed its arg; acks are nobody's."""
        try:
            frame = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
            arg = msgspec.json.decode(frame["arg"], type=dict[str, str])
            name = topic_of(arg["instType"], arg["channel"], arg["instId"])
        except (msgspec.DecodeError, KeyError):
            return None
        return payload if "data" in frame and client.topics.get(name) is not None else None

    def routes(self) -> Sequence[tuple[str, str, RestHandler]]:
        return [("GET", SPOT_PATH, self._spot_symbols), ("GET", MIX_PATH, self._contracts)]

    async def _spot_symbols(self, request: web.Request) -> web.StreamResponse:
        return self._listed("spot")

    async def _contracts(self, request: web.Request) -> web.StreamResponse:
        wanted = request.query.get("productType", "").upper()
        for name, market in MARKETS.items():
            if market.inst_type == wanted and name != "spot":
                return self._listed(name)
        return _json({"code": "40034", "msg": "Parameter productType does not exist", "data": None})

    def _listed(self, product: str) -> web.Response:
        found = [d.listing() for d in self._desks if d.instrument.spec.product == product]
        now_ms = self._hub.clock.time_ns() // 1_000_000
        return _json({"code": OK, "msg": "success", "requestTime": now_ms, "data": found})


def make(hub: Hub, spec: VenueSpec, seed: int = 0) -> BitgetSim:
    return BitgetSim(hub, spec, seed)


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _operation(payload: bytes) -> tuple[str, list[Arg]]:
    """Operation and args. Raises BitgetError for what the whole request is refused for."""
    unread = BitgetError(30002, "Unrecognized request")
    try:
        request = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise unread from None
    if not isinstance(request, dict) or request.get("op") not in ("subscribe", "unsubscribe"):
        raise unread
    args = request.get("args")
    if not isinstance(args, list) or not args:
        raise unread
    if len(msgspec.json.encode(args)) > LIMITS.request_bytes:
        raise unread  # what the venue answers is not documented
    keys = ("instType", "channel", "instId")
    for arg in args:
        if not isinstance(arg, dict) or not all(isinstance(arg.get(key), str) for key in keys):
            raise unread
    return request["op"], [{key: arg[key] for key in keys} for arg in args]
