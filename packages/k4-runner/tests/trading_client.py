"""What the tests of the simulated trading venue share: clients that sign their own requests.

Nothing here comes from K4's trading package, nor from the venue's verifier.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import aiohttp
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from websockets.asyncio.client import ClientConnection, connect
from yarl import URL

from k4.runner.sim.trading.keys import Key
from k4.runner.sim.trading.spec import TradingSpec
from k4.runner.sim.trading.venue import SimTrading

Json = dict[str, Any]
PREFIX = {"spot": "/api/v3", "ubase": "/fapi/v1", "cbase": "/dapi/v1"}


def sign(key: Key, payload: bytes) -> str:
    """As the documentation says: hex for HMAC, base64 for the others."""
    if key.algorithm == "hmac":
        return hmac.new(key.private.encode(), payload, hashlib.sha256).hexdigest()
    private = serialization.load_pem_private_key(key.private.encode(), None)
    if isinstance(private, Ed25519PrivateKey):
        return base64.b64encode(private.sign(payload)).decode()
    assert isinstance(private, RSAPrivateKey)
    return base64.b64encode(private.sign(payload, padding.PKCS1v15(), hashes.SHA256())).decode()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Reply(NamedTuple):
    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> int:
        return int(self.body["code"])

    @property
    def msg(self) -> str:
        return str(self.body["msg"])


class RestClient:
    """REST of one product with one key."""

    def __init__(self, session: aiohttp.ClientSession, base: str, key: Key | None) -> None:
        self.session = session
        self.base = base
        self.key = key

    async def raw(
        self, verb: str, path: str, query: str = "", body: str = "", **headers: str
    ) -> Reply:
        """Exactly these bytes."""
        url = URL(f"{self.base}{path}{'?' + query if query else ''}", encoded=True)
        if self.key is not None:
            headers.setdefault("X-MBX-APIKEY", self.key.api_key)
        if body:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        async with self.session.request(
            verb, url, headers=headers, data=body.encode() or None
        ) as response:
            text = await response.text()
            kind = response.content_type
            found = json.loads(text) if kind == "application/json" else text
            return Reply(response.status, found, response.headers)

    async def signed(self, verb: str, path: str, **params: object) -> Reply:
        params.setdefault("timestamp", now_ms())
        text = urlencode({name: str(value) for name, value in params.items()}, quote_via=quote)
        assert self.key is not None
        signature = quote(sign(self.key, text.encode()), safe="")
        text = f"{text}&signature={signature}"
        return (
            await self.raw(verb, path, text)
            if verb == "GET"
            else await self.raw(verb, path, "", text)
        )

    async def ok(self, verb: str, path: str, **params: object) -> Any:
        reply = await self.signed(verb, path, **params)
        assert reply.status == 200, reply.body
        return reply.body


class WsClient:
    """A WebSocket API connection: answers by id, events apart."""

    def __init__(self, socket: ClientConnection, key: Key) -> None:
        self.socket = socket
        self.key = key
        self.logged_on = False
        self.events: list[Json] = []
        self._next = 0

    async def send(self, method: str, params: Json | None = None) -> int:
        self._next += 1
        frame: Json = {"id": self._next, "method": method}
        if params is not None:
            frame["params"] = params
        await self.socket.send(json.dumps(frame, ensure_ascii=False))
        return self._next

    def with_signature(self, params: Json) -> Json:
        values = {"timestamp": now_ms(), **params, "apiKey": self.key.api_key}
        text = "&".join(f"{name}={values[name]}" for name in sorted(values))
        return {**values, "signature": sign(self.key, text.encode())}

    async def ask(self, method: str, **params: Any) -> Json:
        return await self.answer(await self.send(method, params or None))

    async def signed(self, method: str, **params: Any) -> Json:
        full = {"timestamp": now_ms(), **params} if self.logged_on else self.with_signature(params)
        return await self.answer(await self.send(method, full))

    async def ok(self, method: str, **params: Any) -> Any:
        found = await self.signed(method, **params)
        assert found["status"] == 200, found
        return found["result"]

    async def logon(self) -> Json:
        found = await self.answer(await self.send("session.logon", self.with_signature({})))
        self.logged_on = found["status"] == 200
        return found

    async def frame(self) -> Json:
        found: Json = json.loads(await self.socket.recv())
        return found

    async def answer(self, number: int | None) -> Json:
        while True:
            found = await self.frame()
            if "status" in found and found["id"] == number:
                return found
            if "event" in found:
                self.events.append(found)

    async def event(self, name: str, **wanted: object) -> Json:
        """The next event of that kind whose fields are as given; others are passed over."""
        while True:
            for at, frame in enumerate(self.events):
                body = frame["event"]
                if body["e"] == name and all(body.get(key) == want for key, want in wanted.items()):
                    del self.events[: at + 1]
                    return dict(body)
            found = await self.frame()
            if "event" in found:
                self.events.append(found)


async def next_event(socket: ClientConnection, name: str, **wanted: object) -> Json:
    """The same on a private stream; fields of `o` count as the event's own."""
    while True:
        body: Json = json.loads(await socket.recv())
        flat = {**body, **(body["o"] if isinstance(body.get("o"), dict) else {})}
        if body["e"] == name and all(flat.get(key) == want for key, want in wanted.items()):
            return body


class Desk:
    """A venue and clients of its first account."""

    def __init__(self, venue: SimTrading, session: aiohttp.ClientSession) -> None:
        self.venue = venue
        self.session = session
        self.ledger = venue.ledger
        self._sockets: list[ClientConnection] = []

    def key(self, algorithm: str = "hmac", account: str = "main") -> Key:
        return self.venue.keys.of(account, algorithm)

    def rest(
        self, product: str = "spot", algorithm: str = "hmac", account: str = "main"
    ) -> RestClient:
        base = self.venue.urls()[f"{product}_rest_url"]
        return RestClient(self.session, base, self.key(algorithm, account))

    async def ws(
        self, product: str = "spot", algorithm: str = "hmac", account: str = "main", query: str = ""
    ) -> WsClient:
        url = self.venue.urls()[f"{product}_ws_api_url"] + query
        return WsClient(await self.open(url), self.key(algorithm, account))

    async def spot_events(self, account: str = "main") -> WsClient:
        client = await self.ws("spot", "hmac", account)
        assert (await client.signed("userDataStream.subscribe.signature"))["status"] == 200
        return client

    async def open(self, url: str) -> ClientConnection:
        socket = await connect(url, ping_interval=None, max_queue=None)
        self._sockets.append(socket)
        return socket

    async def stream(self, product: str = "ubase", account: str = "main") -> ClientConnection:
        reply = await self.rest(product, account=account).raw(
            "POST", f"{PREFIX[product]}/listenKey"
        )
        url = self.venue.urls()[f"{product}_ws_url"]
        return await self.open(f"{url}/ws/{reply.body['listenKey']}")

    async def place(self, product: str = "spot", account: str = "main", **params: object) -> Reply:
        """A limit order, unless the parameters say otherwise; None leaves one out."""
        values: Json = {
            "symbol": "BTCUSD_PERP" if product == "cbase" else "BTCUSDT",
            "side": "BUY",
            "type": "LIMIT",
            "timeInForce": "GTC",
            "quantity": "10" if product == "cbase" else "0.010",
            "price": "63000.0",
            **params,
        }
        values = {name: value for name, value in values.items() if value is not None}
        return await self.rest(product, account=account).signed(
            "POST", f"{PREFIX[product]}/order", **values
        )

    async def placed(self, product: str = "spot", account: str = "main", **params: object) -> Any:
        reply = await self.place(product, account, **params)
        assert reply.status == 200, reply.body
        return reply.body

    async def close(self) -> None:
        for socket in self._sockets:
            await socket.close()


@asynccontextmanager
async def trading(**changes: Any) -> AsyncIterator[Desk]:
    """A venue whose market is empty and moves by hand, unless told otherwise."""
    spec = TradingSpec(**{"market": "manual", **changes})
    async with SimTrading(spec) as venue, aiohttp.ClientSession() as session:
        desk = Desk(venue, session)
        try:
            yield desk
        finally:
            await desk.close()


def book(desk: Desk, product: str = "spot", symbol: str = "", size: str = "") -> None:
    """One bid at 63999 and one ask at 64001, and a second level a hundred further away."""
    symbol = symbol or ("BTCUSD_PERP" if product == "cbase" else "BTCUSDT")
    size = size or ("1000" if product == "cbase" else "1")
    for side, prices in (("buy", ("63999.0", "63900.0")), ("sell", ("64001.0", "64100.0"))):
        for price in prices:
            desk.venue.quote(product, symbol, side, price, size)


async def until(condition: Callable[[], object]) -> None:
    """Until it holds; client and venue share this loop, so each turn lets both go on."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
