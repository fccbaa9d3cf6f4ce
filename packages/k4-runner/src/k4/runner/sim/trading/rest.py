"""The REST side: HTTP to `Request`, `Outcome` to HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from k4.runner.sim.trading.catalog import CATALOG, NONE, Endpoint, by_route
from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.gate import Request
from k4.runner.sim.trading.params import rest_values
from k4.runner.sim.trading.service import Answer, Outcome, Service
from k4.runner.sim.trading.signatures import rest_payload

_PREFIXES = {"/api/": "spot", "/fapi/": "ubase", "/dapi/": "cbase"}


class RestFront:
    """perform: carries out an admitted request. stopped: set when the venue stops."""

    def __init__(
        self, service: Service, perform: Callable[[Request], Any], stopped: asyncio.Event
    ) -> None:
        self._service = service
        self._perform = perform
        self._stopped = stopped
        self._routes: dict[str, Mapping[tuple[str, str], Endpoint]] = {
            product: by_route(endpoints) for product, endpoints in CATALOG.items()
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        product = next(
            (name for prefix, name in _PREFIXES.items() if request.path.startswith(prefix)), ""
        )
        endpoint = self._routes.get(product, {}).get((request.method, request.path))
        if endpoint is None:
            text = f"Path {request.path}, Method {request.method} is invalid"
            return _json(404, {"code": -5000, "msg": text}, {})
        # As received: the router's own decoding would not give back what was signed.
        query = request.raw_path.partition("?")[2]
        body = (await request.read()).decode("utf-8", "surrogateescape")
        try:
            asked = _request(product, endpoint, query, body, request.headers)
        except VenueError as error:
            return _json(error.status, error.body(), {})
        outcome = await self._service.handle(asked, self._perform)
        return await self._finish(request, outcome)

    async def _finish(self, request: web.Request, outcome: Outcome) -> web.StreamResponse:
        answer = outcome.answer
        if answer is None:
            if outcome.abort and request.transport is not None:
                request.transport.abort()
            elif not outcome.abort:
                await self._stopped.wait()  # never answered
            return web.Response(status=500)
        response = _response(answer)
        try:
            # Written here, so that what follows an answer does follow it.
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            outcome.record.answered = False
            return response
        finally:
            outcome.sent()
        return response


def _request(
    product: str, endpoint: Endpoint, query: str, body: str, headers: Mapping[str, str]
) -> Request:
    payload, signature = rest_payload(query, body)
    return Request(
        product=product,
        transport="rest",
        endpoint=endpoint,
        values=rest_values(query, body),
        payload=payload,
        signature=signature,
        api_key=headers.get("X-MBX-APIKEY", "") if endpoint.security != NONE else "",
        text=f"{query}\n{body}",
    )


def _response(answer: Answer) -> web.Response:
    error = answer.error
    if error is None:
        return _json(200, answer.result, answer.headers)
    if error.text:
        kind = "text/html" if error.text.startswith("<") else "text/plain"
        return web.Response(
            status=error.status, text=error.text, content_type=kind, headers=answer.headers
        )
    body = error.body()
    if "cancelResult" not in body.get("data", {}):
        body.pop("data", None)  # the times of a limit are in the headers
    return _json(error.status, body, answer.headers)


def _json(status: int, body: Any, headers: Mapping[str, str]) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers=headers,
    )
