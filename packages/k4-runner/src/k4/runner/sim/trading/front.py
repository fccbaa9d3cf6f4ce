"""The venue's ports on loopback: REST and WebSocket APIs on one, private streams on one each.

Private streams: USD-M under `/private` only; its unrouted path has been accepted and silent since
2026-04-23. A listen key that is not active is accepted and silent, too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from k4.core.errors import ConfigError, Problem
from k4.runner.sim.trading.ledger import ConnectionRecord
from k4.runner.sim.trading.limits import Attempts
from k4.runner.sim.trading.rest import RestFront
from k4.runner.sim.trading.sockets import FUTURES_PULSE, SPOT_PULSE, Connection
from k4.runner.sim.trading.wsapi import ApiSession

if TYPE_CHECKING:
    from k4.runner.sim.trading.venue import SimTrading

_HOST = "127.0.0.1"
_APIS = {"/ws-api/v3": "spot", "/ws-fapi/v1": "ubase", "/ws-dapi/v1": "cbase"}
_CONNECT_WEIGHT = {"spot": 2, "ubase": 5, "cbase": 5}
_PORTS = ("api", "ubase_stream", "cbase_stream")


class Front:
    """All sockets of one venue."""

    def __init__(self, venue: SimTrading) -> None:
        self._venue = venue
        self.connections: list[Connection] = []
        self.ports: dict[str, int] = {}
        self._runners: list[web.AppRunner] = []
        self._stopped = asyncio.Event()
        self._rest = RestFront(venue.service, venue.perform, self._stopped)
        self._attempts = {
            product: Attempts(venue.spec.limits.connections, venue.clock.monotonic)
            for product in _CONNECT_WEIGHT
        }

    async def start(self) -> None:
        """Raises ConfigError where a fixed port is taken; then nothing stays open."""
        apps = {name: web.Application(client_max_size=1 << 20) for name in _PORTS}
        for path in _APIS:
            apps["api"].router.add_get(path, self._api)
        apps["api"].router.add_route("*", "/{path:.*}", self._rest.handle)
        for product in ("ubase", "cbase"):
            apps[f"{product}_stream"].router.add_get("/{path:.*}", self._stream)
        try:
            for name, app in apps.items():
                app[_PRODUCT] = name.partition("_")[0]
                await self._listen(name, app)
        except BaseException:
            await self.stop()
            raise

    async def _listen(self, name: str, app: web.Application) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        port = self._venue.spec.ports.get(name, 0)
        try:
            await web.TCPSite(runner, _HOST, port).start()
        except OSError as error:
            problem = Problem(f"ports.{name}", f"cannot listen on {port}: {error}")
            raise ConfigError([problem]) from error
        self.ports[name] = runner.addresses[0][1]

    async def stop(self) -> None:
        self._stopped.set()
        for connection in list(self.connections):
            connection.close(1001, "Going away", "simulation ended")
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    def urls(self) -> dict[str, str]:
        api = f"{_HOST}:{self.ports['api']}"
        urls = {f"{product}_rest_url": f"http://{api}" for product in _APIS.values()}
        urls |= {f"{product}_ws_api_url": f"ws://{api}{path}" for path, product in _APIS.items()}
        urls["ubase_ws_url"] = f"ws://{_HOST}:{self.ports['ubase_stream']}/private"
        urls["cbase_ws_url"] = f"ws://{_HOST}:{self.ports['cbase_stream']}"
        return urls

    # -- WebSockets -------------------------------------------------------------------------------

    async def _api(self, request: web.Request) -> web.StreamResponse:
        venue, product = self._venue, _APIS[request.path]
        pool = venue.service.gate.pools[product]
        refusal = self._refuse(product)
        if refusal is not None:
            return refusal
        pool.weight.add(venue.venue_clock.now_ms(), _CONNECT_WEIGHT[product])
        connection = await self._accept(request, product, "api")
        session = ApiSession(
            connection,
            product,
            venue.service,
            venue.streams,
            venue.perform,
            rate_limits=request.query.get("returnRateLimits", "true") != "false",
        )
        try:
            await connection.serve(session.receive)
        finally:
            self.connections.remove(connection)
            await session.finish()
        return connection.socket

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        product = request.app[_PRODUCT]
        found = _listen_keys(product, request)
        if found is None:
            return web.Response(status=404)
        refusal = self._refuse(product)
        if refusal is not None:
            return refusal
        keys, wrapped, wanted, routed = found
        connection = await self._accept(request, product, "stream" if routed else "legacy")
        if routed:
            for text, kinds in zip(keys, wanted, strict=True):
                self._venue.streams.listen(text, product, connection, wrapped, kinds)
        try:
            await connection.serve(lambda _: None)
        finally:
            self.connections.remove(connection)
            self._venue.streams.leave(connection)
        return connection.socket

    def _refuse(self, product: str) -> web.Response | None:
        """Too many attempts; the status is not documented."""
        if self._attempts[product].admit():
            return None
        return web.Response(status=429, headers={"Retry-After": "300"})

    async def _accept(self, request: web.Request, product: str, kind: str) -> Connection:
        venue = self._venue
        socket = web.WebSocketResponse(autoping=False, compress=False, max_msg_size=1 << 20)
        await socket.prepare(request)
        record = ConnectionRecord(
            number=len(venue.ledger.connections) + 1,
            product=product,
            kind=kind,
            opened_ms=venue.venue_clock.now_ms(),
        )
        venue.ledger.connections.append(record)
        pulse = (SPOT_PULSE if product == "spot" else FUTURES_PULSE).scaled(venue.spec.scale)
        connection = Connection(
            request, socket, record, venue.clock, pulse, venue.venue_clock.now_ms
        )
        self.connections.append(connection)
        return connection


_PRODUCT = web.AppKey("product", str)
_Found = tuple[list[str], bool, list[frozenset[str]], bool]


def _listen_keys(product: str, request: web.Request) -> _Found | None:
    """(listen keys, wrapped, the kinds of events of each, routed), None for no such path.

    USD-M: `/private/ws/<key>`, `/private/ws?listenKey=..&events=..`, `/private/stream?listenKey=..`
    with several pairs. COIN-M: `/ws/<key>` and `/stream?streams=<key>/<key>`.
    """
    path, query = request.path, request.query
    routed = product == "cbase" or path.startswith("/private/")
    path = path.removeprefix("/private")
    if path.startswith("/ws/"):
        return [path.removeprefix("/ws/")], False, [frozenset()], routed
    if path not in ("/ws", "/stream"):
        return None
    keys = query.getall("listenKey", [])
    if "streams" in query:
        keys += query["streams"].split("/")
    events = query.getall("events", [])
    events += [""] * (len(keys) - len(events))
    wanted = [frozenset(filter(None, text.split("/"))) for text in events[: len(keys)]]
    return keys, path == "/stream", wanted, routed
