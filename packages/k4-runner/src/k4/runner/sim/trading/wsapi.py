"""The WebSocket APIs: frames to `Request`, `Outcome` to frames, sessions and subscriptions.

Sources: Binance spot `web-socket-api.md` (July 2026), USD-M and COIN-M WebSocket API general
information (November 2025).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from k4.runner.sim.trading import errors
from k4.runner.sim.trading.catalog import CATALOG, NONE, Endpoint, by_method
from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.gate import Request
from k4.runner.sim.trading.keys import Key
from k4.runner.sim.trading.service import Answer, Outcome, Service
from k4.runner.sim.trading.signatures import ws_payload, ws_values
from k4.runner.sim.trading.sockets import Connection
from k4.runner.sim.trading.streams import StreamHub

Json = dict[str, Any]
_ID = re.compile(r"[0-9A-Za-z_-]{1,36}")
_METHODS: Mapping[str, Mapping[str, Endpoint]] = {
    product: by_method(endpoints) for product, endpoints in CATALOG.items()
}


class ApiSession:
    """What one connection knows: who logged on, what it subscribed to, how it wants its answers.

    perform: carries out what does not concern the connection itself.
    """

    def __init__(
        self,
        connection: Connection,
        product: str,
        service: Service,
        streams: StreamHub,
        perform: Callable[[Request], Any],
        *,
        rate_limits: bool,
    ) -> None:
        self.connection = connection
        self.product = product
        self.key: Key | None = None
        self._service = service
        self._streams = streams
        self._perform = perform
        self._rate_limits = rate_limits
        self._connected_ms = service.gate.clock.now_ms()
        self._authorized_ms: int | None = None
        self._own_subscription: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._own: dict[str, Callable[[Request], Any]] = {
            "session.logon": self._logon,
            "session.status": lambda _: self._status(),
            "session.logout": self._logout,
            "session.subscriptions": lambda _: [
                {"subscriptionId": number} for number in streams.subscriptions(connection)
            ],
            "userDataStream.subscribe": self._subscribe,
            "userDataStream.subscribe.signature": self._subscribe_signed,
            "userDataStream.unsubscribe": self._unsubscribe,
        }

    def receive(self, text: str) -> None:
        """One frame. Each request is a task of its own: one that waits holds up no other."""
        task = asyncio.get_running_loop().create_task(self._handle(text))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """The connection is gone; what was received is carried out all the same."""
        self._streams.leave(self.connection)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _handle(self, text: str) -> None:
        request_id: Any = None
        try:
            frame = _decode(text)
            request_id = _request_id(frame)
            request = self._request(frame, text)
        except VenueError as error:
            body = {"id": request_id, "status": error.status, "error": error.body()}
            self.connection.send(msgspec.json.encode(body).decode())
            return
        outcome = await self._service.handle(request, self._execute)
        await self._finish(outcome, request, request_id)

    async def _finish(self, outcome: Outcome, request: Request, request_id: Any) -> None:
        answer = outcome.answer
        if answer is None:
            if outcome.abort:
                self.connection.abort(f"fault: {outcome.record.faults[-1]}")
            return
        try:
            if answer.detached:
                self.key, self._authorized_ms, request_id = None, None, None
            if self.connection.closing:
                return
            self.connection.send(self._encode(answer, request, request_id))
            await self.connection.drain()
        finally:
            gone = self.connection.closing
            outcome.sent()
            outcome.record.answered = not gone

    def _encode(self, answer: Answer, request: Request, request_id: Any) -> str:
        body: Json = {"id": request_id, "status": answer.status}
        if answer.error is None:
            body["result"] = answer.result
        else:
            body["error"] = answer.error.body()
        wanted = request.values.get("returnRateLimits")
        if wanted == "true" or (wanted is None and self._rate_limits):
            body["rateLimits"] = answer.limits
        return msgspec.json.encode(body).decode()

    def _request(self, frame: Mapping[str, msgspec.Raw], text: str) -> Request:
        method = _text(frame.get("method"))
        # Methods may carry the API's version, `v3/order.place`.
        endpoint = _METHODS[self.product].get(method.removeprefix("v3/"))
        if endpoint is None:
            raise VenueError(-1020, "This operation is not supported.")
        values = ws_values(_params(frame.get("params")))
        return Request(
            product=self.product,
            transport="ws",
            endpoint=endpoint,
            values=values,
            payload=ws_payload(values),
            signature=values.get("signature", ""),
            api_key=values.get("apiKey", "") if endpoint.security != NONE else "",
            text=text,
            session=self.key,
        )

    def _execute(self, request: Request) -> Any:
        own = self._own.get(request.endpoint.op)
        return own(request) if own is not None else self._perform(request)

    # -- sessions ---------------------------------------------------------------------------------

    def _logon(self, request: Request) -> Json:
        key = request.key
        if key is None or not key.verifier.sessions:
            raise errors.key_rejected()  # the text for other kinds of key is not documented
        self.key = key
        self._authorized_ms = self._service.gate.clock.now_ms()
        return self._status()

    def _logout(self, _: Request) -> Json:
        self.key, self._authorized_ms = None, None
        active = self._streams.subscriptions(self.connection)
        if self._own_subscription in active:
            self._streams.unsubscribe(self.connection, self._own_subscription)
        self._own_subscription = None
        return self._status()

    def _status(self) -> Json:
        spot = self.product == "spot"
        return {
            "apiKey": self.key.api_key if self.key is not None else None,
            "authorizedSince": self._authorized_ms,
            "connectedSince": self._connected_ms,
            "returnRateLimits": self._rate_limits,
            "serverTime": self._service.gate.clock.now_ms(),
            "userDataStream": bool(self._streams.subscriptions(self.connection)) if spot else None,
        }

    # -- user data (spot) -------------------------------------------------------------------------

    def _subscribe(self, _: Request) -> Json:
        if self.key is None:
            raise errors.key_rejected()  # the answer without a session is not documented
        self._own_subscription = self._streams.subscribe(self.connection, self.key.account)
        return {"subscriptionId": self._own_subscription}

    def _subscribe_signed(self, request: Request) -> Json:
        return {"subscriptionId": self._streams.subscribe(self.connection, request.account)}

    def _unsubscribe(self, request: Request) -> Json:
        self._streams.unsubscribe(self.connection, request.params.integer("subscriptionId"))
        return {}


def _decode(text: str) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise VenueError(-1135, "Invalid JSON Request") from None


def _request_id(frame: Mapping[str, msgspec.Raw]) -> Any:
    found = msgspec.json.decode(frame.get("id", msgspec.Raw(b"null")))
    whole = isinstance(found, int) and not isinstance(found, bool)
    if found is None or whole or (isinstance(found, str) and _ID.fullmatch(found)):
        return found
    raise VenueError(-1135, "Invalid 'id' in JSON request; expected an integer, string, or null")


def _text(raw: msgspec.Raw | None) -> str:
    try:
        return msgspec.json.decode(raw or b'""', type=str)
    except msgspec.ValidationError:
        raise VenueError(-1135, "Invalid 'method' in JSON request") from None


def _params(raw: msgspec.Raw | None) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(raw or b"{}", type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise VenueError(-1135, "Invalid 'params' in JSON request") from None
