"""A small Binance on loopback that checks the rules: real sockets, signatures from raw bytes.

It serves REST, the WebSocket APIs and the private streams of all three products. Its verifier is
its own: it takes the signature out of the raw text that arrived and hashes the rest, with the
standard library and `cryptography` alone. `venue.ledger` holds what really happened.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, unquote

from aiohttp import WSMsgType, web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

Json = dict[str, Any]
PublicKey = ed25519.Ed25519PublicKey | rsa.RSAPublicKey

KEY = "venue-key"
SECRET = "venue-secret"

PRODUCTS = {"spot": "/api/v3", "ubase": "/fapi/v1", "cbase": "/dapi/v1"}
SYMBOL = {"spot": "BTCUSDT", "ubase": "BTCUSDT", "cbase": "BTCUSD_PERP"}
FINAL = ("FILLED", "CANCELED", "EXPIRED", "REJECTED", "EXPIRED_IN_MATCH")


class Refusal(Exception):
    """The venue's error."""

    def __init__(self, status: int, code: int, msg: str, data: Json | None = None) -> None:
        super().__init__(msg)
        self.status, self.code, self.msg, self.data = status, code, msg, data


class Gone(Exception):
    """Nobody gets an answer."""


@dataclass
class Fault:
    """Happens to the next request whose name matches: `before` it is executed, or `after`.

    what: drop (no answer), close (the connection), delay, or an error (status, code, text).
    """

    name: str
    what: str
    when: str = "before"
    status: int = 0
    code: int = 0
    text: str = ""
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Order:
    product: str
    symbol: str
    id: int
    client: str
    side: str
    type: str
    tif: str
    price: Decimal
    qty: Decimal
    reduce_only: str = "false"
    position_side: str = "BOTH"
    gtd: int = 0
    status: str = "NEW"
    done: Decimal = Decimal(0)
    quote: Decimal = Decimal(0)
    updated: int = 0
    params: Json = field(default_factory=dict)

    @property
    def open(self) -> bool:
        return self.status not in FINAL


class FakeVenue:
    """Everything of one account on all three products. Prices: bid 100, ask 101."""

    def __init__(self, public_key: PublicKey | None = None) -> None:
        self.public_key = public_key
        self.bid, self.ask = Decimal(100), Decimal(101)
        self.orders: list[Order] = []
        self.trades: list[Json] = []
        self.positions: dict[tuple[str, str], Decimal] = {}
        self.balances = {"BTC": Decimal(10), "USDT": Decimal(1_000_000)}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.placed: list[str] = []
        self.raw: list[str] = []
        self.unverified = 0
        self.clock_offset_ms = 0
        self.hedge = False
        self.silent = False
        self.algo: list[Json] | None = []
        self.weight = 0
        self.order_count = 0
        self.limits: Json | None = None
        self.keys: dict[str, str] = {}
        self.keys_made = 0
        self.keepalives = 0
        self.subscribers: dict[web.WebSocketResponse, str] = {}
        self.connections: set[web.WebSocketResponse] = set()
        self.logons = 0
        self.held: list[tuple[str, Json]] | None = None
        self.changed = asyncio.Event()
        self._ids = 9000
        self._trades = 500
        self._last_ms = 0
        self._runner: web.AppRunner | None = None
        self.port = 0

    # Life.

    async def start(self) -> None:
        app = web.Application()
        for product, api in PRODUCTS.items():
            for path in ("ws-api/v3", "ws-fapi/v1", "ws-dapi/v1"):
                if path.startswith({"spot": "ws-a", "ubase": "ws-f", "cbase": "ws-d"}[product]):
                    app.router.add_get(f"/{path}", self._ws_handler(product))
            app.router.add_route("*", f"{api}/{{name:.*}}", self._rest_handler(product))
        app.router.add_route("*", "/fapi/v3/{name:.*}", self._rest_handler("ubase"))
        app.router.add_get("/private/ws/{key}", self._stream_handler("ubase"))
        app.router.add_get("/dstream/ws/{key}", self._stream_handler("cbase"))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self.cut()
        assert self._runner is not None
        await self._runner.cleanup()

    async def cut(self) -> None:
        """Every WebSocket is closed, without a word."""
        for ws in list(self.connections):
            if ws._req is not None and ws._req.transport is not None:
                ws._req.transport.abort()
        self.connections.clear()
        self.subscribers.clear()
        await asyncio.sleep(0)

    def urls(self) -> Json:
        """`rest_url`, `ws_api_url` and `ws_url` of a TradingConfig."""
        http, ws = f"http://127.0.0.1:{self.port}", f"ws://127.0.0.1:{self.port}"
        return {
            "rest_url": dict.fromkeys(PRODUCTS, http),
            "ws_api_url": {
                "spot": f"{ws}/ws-api/v3",
                "ubase": f"{ws}/ws-fapi/v1",
                "cbase": f"{ws}/ws-dapi/v1",
            },
            "ws_url": {"ubase": f"{ws}/private", "cbase": f"{ws}/dstream"},
        }

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait for something to become true of the venue."""
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def now_ms(self) -> int:
        return int(time.time() * 1000) + self.clock_offset_ms

    def _stamp(self) -> int:
        """Venue time of a change; strictly increasing."""
        self._last_ms = max(self._last_ms + 1, self.now_ms())
        return self._last_ms

    # REST.

    def _rest_handler(self, product: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            raw_query = request.raw_path.partition("?")[2]
            body = (await request.read()).decode()
            name = f"{request.method} {request.match_info['name']}"
            fault = self._note(f"{product} {name}")
            headers = {
                "X-MBX-USED-WEIGHT-1M": str(self.weight),
                "X-MBX-ORDER-COUNT-10S": str(self.order_count),
            }
            try:
                await self._before(fault, request)
                params = dict(parse_qsl(body) + parse_qsl(raw_query))
                unsigned = ("exchangeInfo", "time", "listenKey")
                if not name.endswith(unsigned):
                    self._verify_rest(request, raw_query, body, params)
                elif "listenKey" in name:
                    self._know_key(request.headers.get("X-MBX-APIKEY", ""))
                result = self._execute(product, name, params)
                await self._after(fault, request)
            except Gone:
                self.changed.set()
                await asyncio.sleep(60)
                raise
            except Refusal as error:
                self.changed.set()
                payload: Json = {"code": error.code, "msg": error.msg}
                if error.data is not None:
                    payload["data"] = error.data
                extra = fault.headers if fault is not None else {}
                text = json.dumps(payload) if error.code else error.msg
                return web.Response(status=error.status, text=text, headers={**headers, **extra})
            self.changed.set()
            return web.json_response(result, headers=headers)

        return handle

    async def _before(self, fault: Fault | None, request: web.Request) -> None:
        if fault is not None and fault.when == "before":
            await self._suffer(fault, request)

    async def _after(self, fault: Fault | None, request: web.Request) -> None:
        if fault is not None and fault.when == "after":
            self.changed.set()
            await self._suffer(fault, request)

    async def _suffer(self, fault: Fault, request: web.Request) -> None:
        if fault.what == "delay":
            await asyncio.sleep(fault.seconds)
        elif fault.what in ("drop", "close"):
            if fault.what == "close" and request.transport is not None:
                request.transport.abort()
            raise Gone
        else:
            raise Refusal(fault.status, fault.code, fault.text)

    def _note(self, name: str) -> Fault | None:
        self.requests.append(name)
        for fault in self.faults:
            if re.search(fault.name, name):
                self.faults.remove(fault)
                return fault
        return None

    # Verification, from the raw text.

    def _verify_rest(self, request: web.Request, query: str, body: str, params: Json) -> None:
        self._know_key(request.headers.get("X-MBX-APIKEY", ""))
        raw = query + body
        found = re.search(r"(?:^|&)signature=([^&]*)", raw)
        if found is None:
            raise Refusal(400, -1102, "Mandatory parameter 'signature' was not sent.")
        self.raw.append(raw)
        self._check_time(params)
        payload = raw[: found.start()] + raw[found.end() :]
        self._check_signature(payload, unquote(found.group(1)))

    def _verify_ws(self, text: str, params: Json) -> None:
        self._know_key(str(params.get("apiKey", "")))
        self.raw.append(text)
        self._check_time(params)
        # Values as the JSON text prints them: numbers are kept as the text that arrived.
        printed = json.loads(text, parse_int=str, parse_float=str)["params"]
        signature = printed.pop("signature", None)
        if signature is None:
            raise Refusal(400, -1102, "Mandatory parameter 'signature' was not sent.")
        lines = []
        for name in sorted(printed):
            value = printed[name]
            lines.append(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
        self._check_signature("&".join(lines), signature)
        for name in ("timestamp", "recvWindow", "orderId"):
            if name in params and not isinstance(params[name], int | float):
                raise Refusal(400, -1102, f"'{name}' must be a number.")
        for name in ("price", "quantity", "newQty"):
            if name in params and not isinstance(params[name], str):
                raise Refusal(400, -1102, f"'{name}' must be a string.")

    def _know_key(self, key: str) -> None:
        if key != KEY:
            raise Refusal(401, -2015, "Invalid API-key, IP, or permissions for action.")

    def _check_time(self, params: Json) -> None:
        if "timestamp" not in params:
            raise Refusal(400, -1102, "Mandatory parameter 'timestamp' was not sent.")
        window, stamp = float(params.get("recvWindow", 5000)), int(params["timestamp"])
        now = self.now_ms()
        if stamp >= now + 1000:
            raise Refusal(400, -1021, "Timestamp for this request was 1000ms ahead.")
        if now - stamp > window:
            raise Refusal(400, -1021, "Timestamp for this request is outside of the recvWindow.")

    def _check_signature(self, payload: str, signature: str) -> None:
        try:
            if self.public_key is None:
                right = hmac.new(SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest()
                good = hmac.compare_digest(right, signature.lower())
            elif isinstance(self.public_key, rsa.RSAPublicKey):
                raw = base64.b64decode(signature, validate=True)
                self.public_key.verify(raw, payload.encode(), padding.PKCS1v15(), hashes.SHA256())
                good = True
            else:
                raw = base64.b64decode(signature, validate=True)
                self.public_key.verify(raw, payload.encode())
                good = True
        except (InvalidSignature, ValueError):
            good = False
        if not good:
            self.unverified += 1
            raise Refusal(400, -1022, "Signature for this request is not valid.")

    # WebSocket APIs and streams.

    def _ws_handler(self, product: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            self.connections.add(ws)
            logged_on = False
            async for message in ws:
                if message.type is not WSMsgType.TEXT:
                    break
                frame = json.loads(message.data)
                if frame["method"] == "session.logon":
                    logged_on = isinstance(self.public_key, ed25519.Ed25519PublicKey)
                asyncio.get_running_loop().create_task(
                    self._ws_request(ws, request, product, message.data, frame, logged_on)
                )
            self.connections.discard(ws)
            self.subscribers.pop(ws, None)
            return ws

        return handle

    async def _ws_request(
        self,
        ws: web.WebSocketResponse,
        request: web.Request,
        product: str,
        text: str,
        frame: Json,
        logged_on: bool,
    ) -> None:
        method, params = frame["method"], frame.get("params", {})
        fault = self._note(f"{product} {method}")
        answer: Json = {"id": frame["id"], "rateLimits": self._rate_limits()}
        try:
            await self._before(fault, request)
            if "signature" in params or (not logged_on and method != "userDataStream.subscribe"):
                self._verify_ws(text, params)
            elif method != "userDataStream.subscribe":
                self._check_time(params)
            if method == "session.logon":
                if not isinstance(self.public_key, ed25519.Ed25519PublicKey):
                    raise Refusal(400, -1022, "Ed25519 only.")
                self.logons += 1
                result: Any = {"apiKey": KEY, "authorizedSince": self.now_ms()}
            elif method.startswith("userDataStream.subscribe"):
                self.subscribers[ws] = product
                result = {"subscriptionId": 0}
            else:
                result = self._execute(product, _WS_NAMES[method], params)
            await self._after(fault, request)
            answer |= {"status": 200, "result": result}
        except Gone:
            self.changed.set()
            return
        except Refusal as error:
            body: Json = {"code": error.code, "msg": error.msg}
            if error.data is not None:
                body["data"] = error.data
            answer |= {"status": error.status, "error": body}
        self.changed.set()
        if not ws.closed:
            await ws.send_str(json.dumps(answer))

    def _stream_handler(self, product: str) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.StreamResponse:
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            self.connections.add(ws)
            if self.keys.get(product) == request.match_info["key"]:
                self.subscribers[ws] = product
            self.changed.set()
            async for _ in ws:
                pass
            self.connections.discard(ws)
            self.subscribers.pop(ws, None)
            return ws

        return handle

    def _rate_limits(self) -> list[Json]:
        return [
            {
                "rateLimitType": "REQUEST_WEIGHT",
                "interval": "MINUTE",
                "intervalNum": 1,
                "limit": 6000,
                "count": self.weight,
            }
        ]

    def emit(self, product: str, event: Json) -> None:
        """To everybody who is subscribed, unless the venue is silent; held if `held` is a list."""
        if self.silent:
            return
        if self.held is not None:
            self.held.append((product, event))
            return
        for ws, wanted in list(self.subscribers.items()):
            if wanted == product and not ws.closed:
                wrapped = {"subscriptionId": 0, "event": event} if product == "spot" else event
                asyncio.get_running_loop().create_task(_send(ws, json.dumps(wrapped)))

    def release(self, order: Callable[[list[Any]], list[Any]] = list) -> None:
        """Send what was held, in another order if wanted."""
        held, self.held = self.held or [], None
        for product, event in order(held):
            self.emit(product, event)

    # What requests do.

    def _execute(self, product: str, name: str, params: Json) -> Any:
        verb, _, path = name.partition(" ")
        self.weight += 1
        match verb, path:
            case "GET", "time":
                return {"serverTime": self.now_ms()}
            case "GET", "exchangeInfo":
                return exchange_info(product, self.limits)
            case "POST", "order":
                return self._answer(self._place(product, params), ack=True)
            case "GET", "order":
                return self._answer(self._lookup(product, params, -2013))
            case "DELETE", "order":
                return self._cancel(product, params)
            case "PUT", "order" | "order/amend/keepPriority":
                return self._amend(product, params)
            case "POST", "order/cancelReplace":
                return self._cancel_replace(product, params)
            case "DELETE", "openOrders" | "allOpenOrders":
                return self._cancel_all(product, params["symbol"])
            case "DELETE", "algoOpenOrders":
                self._algo_orders().clear()
                return {"code": 200, "msg": "done"}
            case "GET", "openAlgoOrders":
                return self._algo_orders()
            case "GET", "openOrders":
                wanted = params.get("symbol")
                return [
                    self._answer(order)
                    for order in self.orders
                    if order.product == product
                    and order.open
                    and (wanted is None or order.symbol == wanted)
                ]
            case "GET", "myTrades" | "userTrades":
                first = int(params.get("fromId", 0))
                only = int(params.get("orderId", 0))
                return [
                    {name: value for name, value in trade.items() if name != "product"}
                    for trade in self.trades
                    if trade["product"] == product
                    and trade["symbol"] == params["symbol"]
                    and trade["id"] >= first
                    and only in (0, trade["orderId"])
                ]
            case "GET", "positionRisk":
                return [
                    {
                        "symbol": symbol,
                        "positionAmt": str(amount),
                        "entryPrice": "100",
                        "unRealizedProfit": "0",
                        "positionSide": "BOTH",
                        "updateTime": self._stamp(),
                    }
                    for (kind, symbol), amount in self.positions.items()
                    if kind == product
                ]
            case "GET", "account":
                return {
                    "balances": [
                        {"asset": asset, "free": str(amount), "locked": "0"}
                        for asset, amount in self.balances.items()
                    ],
                    "updateTime": self._stamp(),
                }
            case "GET", "balance":
                return [
                    {
                        "asset": "USDT",
                        "balance": "1000",
                        "availableBalance": "900",
                        "updateTime": self._stamp(),
                    }
                ]
            case "GET", "positionSide/dual":
                return {"dualSidePosition": self.hedge}
            case "POST", "listenKey":
                if product not in self.keys:
                    self.keys_made += 1
                    self.keys[product] = f"{product}-listen-{self.keys_made}"
                return {"listenKey": self.keys[product]}
            case "PUT", "listenKey":
                if product not in self.keys:
                    raise Refusal(400, -1125, "This listenKey does not exist.")
                self.keepalives += 1
                return {}
        raise Refusal(404, 0, "<html>404</html>")

    def _algo_orders(self) -> list[Json]:
        if self.algo is None:
            raise Refusal(404, 0, "<html>404</html>")
        return self.algo

    def _place(self, product: str, params: Json) -> Order:
        self._check_order(product, params)
        self.order_count += 1
        self.placed.append(params["newClientOrderId"])
        self._ids += 1
        order = Order(
            product=product,
            symbol=params["symbol"],
            id=self._ids,
            client=params["newClientOrderId"],
            side=params["side"],
            type=params["type"],
            tif=params.get("timeInForce", "GTC"),
            price=Decimal(params.get("price", "0")),
            qty=Decimal(params["quantity"]),
            reduce_only=params.get("reduceOnly", "false"),
            position_side=params.get("positionSide", "BOTH"),
            gtd=int(params.get("goodTillDate", 0)),
            updated=self._stamp(),
            params=dict(params),
        )
        self.orders.append(order)
        self._event(order, "NEW")
        buy = order.side == "BUY"
        touch = self.ask if buy else self.bid
        crosses = order.price >= touch if buy else order.price <= touch
        if order.type == "MARKET" or crosses:
            self.fill(order, order.qty, touch)
        elif order.tif in ("IOC", "FOK"):
            order.status, order.updated = "EXPIRED", self._stamp()
            self._event(order, "EXPIRED")
        return order

    def _check_order(self, product: str, params: Json) -> None:
        kind, spot = params["type"], product == "spot"
        for name in ("price", "quantity"):
            if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", params.get(name, "1")):
                raise Refusal(400, -1100, f"Illegal characters found in parameter '{name}'.")
        if kind in ("MARKET", "LIMIT_MAKER") and "timeInForce" in params:
            raise Refusal(400, -1106, "Parameter 'timeInForce' sent when not required.")
        if kind == "MARKET" and "price" in params:
            raise Refusal(400, -1106, "Parameter 'price' sent when not required.")
        if kind == "LIMIT" and "timeInForce" not in params:
            raise Refusal(400, -1102, "Mandatory parameter 'timeInForce' was not sent.")
        if kind not in ({"LIMIT", "MARKET", "LIMIT_MAKER"} if spot else {"LIMIT", "MARKET"}):
            raise Refusal(400, -1116, "Invalid orderType.")
        if params.get("timeInForce") in (("GTX", "GTD") if spot else ()):
            raise Refusal(400, -1115, "Invalid timeInForce.")
        if "goodTillDate" in params and int(params["goodTillDate"]) % 1000:
            raise Refusal(400, -5040, "Invalid goodTillDate.")
        if not spot and self.hedge == (params.get("positionSide", "BOTH") == "BOTH"):
            raise Refusal(400, -4061, "Order's position side does not match user's setting.")
        if params["symbol"] != SYMBOL[product]:
            raise Refusal(400, -1121, "Invalid symbol.")
        price, qty = Decimal(params.get("price", "0")), Decimal(params["quantity"])
        if price % Decimal("0.1"):
            raise Refusal(400, -1013 if spot else -4014, "Filter failure: PRICE_FILTER")
        if qty % Decimal("0.001"):
            raise Refusal(400, -1013 if spot else -4023, "Filter failure: LOT_SIZE")
        maker = kind == "LIMIT_MAKER" or params.get("timeInForce") == "GTX"
        takes = price >= self.ask if params["side"] == "BUY" else price <= self.bid
        if maker and takes:
            code = -2010 if spot else -5022
            raise Refusal(400, code, "Order would immediately match and take.")
        client = params["newClientOrderId"]
        own = (order for order in self.orders if order.product == product)
        if any(order.open and order.client == client for order in own):
            code = -2010 if spot else -4116
            raise Refusal(400, code, "Duplicate order sent.")

    def fill(self, order: Order, qty: Decimal, price: Decimal | None = None) -> None:
        """Execute a part of an order, as the engine would."""
        at = order.price if price is None else price
        self._trades += 1
        order.done += qty
        order.quote += qty * at
        order.status = "FILLED" if order.done >= order.qty else "PARTIALLY_FILLED"
        order.updated = self._stamp()
        trade = {
            "product": order.product,
            "symbol": order.symbol,
            "id": self._trades,
            "orderId": order.id,
            "price": str(at),
            "qty": str(qty),
            "commission": "0.001",
            "commissionAsset": "BNB",
            "time": order.updated,
            "isBuyer": order.side == "BUY",
            "buyer": order.side == "BUY",
            "isMaker": False,
            "maker": False,
        }
        self.trades.append(trade)
        signed = qty if order.side == "BUY" else -qty
        if order.product != "spot":
            key = order.product, order.symbol
            self.positions[key] = self.positions.get(key, Decimal(0)) + signed
        else:
            self.balances["BTC"] += signed
        self._event(order, "TRADE", trade)

    def _lookup(self, product: str, params: Json, code: int) -> Order:
        client = params.get("origClientOrderId") or params.get("cancelOrigClientOrderId")
        for order in reversed(self.orders):
            same = order.client == client if client else order.id == int(params.get("orderId", 0))
            if order.product == product and same:
                return order
        text = "Order does not exist." if code == -2013 else "Unknown order sent."
        raise Refusal(400, code, text)

    def _cancel(self, product: str, params: Json) -> Json:
        order = self._lookup(product, params, -2011)
        if not order.open:
            raise Refusal(400, -2011, "Unknown order sent.")
        self.end(order, "CANCELED")
        answer = self._answer(order)
        if product == "spot":
            answer |= {"origClientOrderId": order.client, "clientOrderId": "cancel-1"}
        return answer

    def end(self, order: Order, status: str) -> None:
        """The venue ends an order."""
        order.status, order.updated = status, self._stamp()
        self._event(order, "EXPIRED" if status.startswith("EXPIRED") else "CANCELED")

    def _cancel_all(self, product: str, symbol: str) -> Any:
        found = [o for o in self.orders if o.product == product and o.symbol == symbol and o.open]
        if not found and product == "spot":
            raise Refusal(400, -2011, "Unknown order sent.")
        for order in found:
            self.end(order, "CANCELED")
        if product == "spot":
            return [self._answer(order) for order in found]
        return {"code": 200, "msg": "The operation of cancel all open order is done."}

    def _amend(self, product: str, params: Json) -> Json:
        order = self._lookup(product, params, -2013)
        if not order.open:
            raise Refusal(400, -2013, "Order does not exist.")
        if product == "spot":
            qty = Decimal(params["newQty"])
            if not order.done < qty < order.qty:
                raise Refusal(400, -2038, "Order amend rejected.")
        else:
            qty = Decimal(params["quantity"])
            order.price = Decimal(params["price"])
        order.qty, order.updated = qty, self._stamp()
        self._event(order, "REPLACED" if product == "spot" else "AMENDMENT")
        answer = self._answer(order)
        if product != "spot":
            return answer
        amended = {**answer, "qty": answer["origQty"], "origClientOrderId": order.client}
        return {"transactTime": order.updated, "executionId": 1, "amendedOrder": amended}

    def _cancel_replace(self, product: str, params: Json) -> Json:
        try:
            old = self._lookup(product, params, -2011)
            if params.get("cancelRestrictions") == "ONLY_NEW" and old.done:
                raise Refusal(400, -2011, "Order was not canceled due to cancel restrictions.")
            canceled = self._cancel(product, {"origClientOrderId": old.client})
        except Refusal as error:
            both = {
                "cancelResult": "FAILURE",
                "newOrderResult": "NOT_ATTEMPTED",
                "cancelResponse": {"code": error.code, "msg": error.msg},
                "newOrderResponse": None,
            }
            raise Refusal(400, -2022, "Order cancel-replace failed.", both) from None
        result = {"cancelResult": "SUCCESS", "cancelResponse": canceled}
        try:
            placed = self._answer(self._place(product, params), ack=True)
        except Refusal as error:
            half = {
                **result,
                "newOrderResult": "FAILURE",
                "newOrderResponse": {"code": error.code, "msg": error.msg},
            }
            raise Refusal(409, -2021, "Order cancel-replace partially failed.", half) from None
        return {**result, "newOrderResult": "SUCCESS", "newOrderResponse": placed}

    # Shapes.

    def _answer(self, order: Order, ack: bool = False) -> Json:
        shape: Json = {
            "symbol": order.symbol,
            "orderId": order.id,
            "clientOrderId": order.client,
            "price": str(order.price),
            "origQty": str(order.qty),
            "executedQty": str(order.done),
            "status": order.status,
            "timeInForce": order.tif,
            "type": order.type,
            "side": order.side,
        }
        if order.product == "spot":
            shape["cummulativeQuoteQty"] = str(order.quote)
            shape["transactTime" if ack else "updateTime"] = order.updated
            if ack:
                shape["fills"] = [
                    {
                        "price": trade["price"],
                        "qty": trade["qty"],
                        "commission": trade["commission"],
                        "commissionAsset": trade["commissionAsset"],
                        "tradeId": trade["id"],
                    }
                    for trade in self.trades
                    if trade["product"] == "spot" and trade["orderId"] == order.id
                ]
            return shape
        shape |= {
            "updateTime": order.updated,
            "positionSide": order.position_side,
            "reduceOnly": order.reduce_only == "true",
            "goodTillDate": order.gtd,
            "origType": order.type,
        }
        if not ack and order.done:
            shape["avgPrice"] = str(order.quote / order.done)
        return shape

    def _event(self, order: Order, kind: str, trade: Json | None = None) -> None:
        self.changed.set()
        if order.product == "spot":
            self.emit("spot", _execution_report(order, kind, trade))
            return
        self.emit(order.product, _order_trade_update(order, kind, trade))
        if trade is not None:
            amount = self.positions[order.product, order.symbol]
            position = {"s": order.symbol, "pa": str(amount), "ep": "100", "up": "0", "ps": "BOTH"}
            update = {"m": "ORDER", "B": [{"a": "USDT", "wb": "1000", "cw": "990"}]}
            event = {"e": "ACCOUNT_UPDATE", "E": order.updated, "T": order.updated}
            self.emit(order.product, {**event, "a": {**update, "P": [position]}})


async def _send(ws: web.WebSocketResponse, text: str) -> None:
    if not ws.closed:
        await ws.send_str(text)


_WS_NAMES = {
    "order.place": "POST order",
    "order.cancel": "DELETE order",
    "order.modify": "PUT order",
    "order.amend.keepPriority": "PUT order/amend/keepPriority",
    "order.cancelReplace": "POST order/cancelReplace",
    "order.status": "GET order",
    "openOrders.cancelAll": "DELETE openOrders",
}


def _execution_report(order: Order, kind: str, trade: Json | None) -> Json:
    canceled = kind == "CANCELED"
    report: Json = {
        "e": "executionReport",
        "E": order.updated,
        "s": order.symbol,
        "c": "cancel-1" if canceled else order.client,
        "C": order.client if canceled else "",
        "S": order.side,
        "o": order.type,
        "f": order.tif,
        "q": str(order.qty),
        "p": str(order.price),
        "x": kind,
        "X": order.status,
        "r": "NONE",
        "i": order.id,
        "l": "0",
        "z": str(order.done),
        "L": "0",
        "Z": str(order.quote),
        "n": "0",
        "N": None,
        "t": -1,
        "T": order.updated,
        "m": False,
    }
    if trade is not None:
        report |= {"l": trade["qty"], "L": trade["price"], "t": trade["id"]}
        report |= {"n": trade["commission"], "N": trade["commissionAsset"]}
    return report


def _order_trade_update(order: Order, kind: str, trade: Json | None) -> Json:
    body: Json = {
        "s": order.symbol,
        "c": order.client,
        "S": order.side,
        "o": order.type,
        "f": order.tif,
        "q": str(order.qty),
        "p": str(order.price),
        "ap": str(order.quote / order.done if order.done else 0),
        "x": kind,
        "X": order.status,
        "i": order.id,
        "l": "0",
        "z": str(order.done),
        "L": "0",
        "T": order.updated,
        "t": 0,
        "m": False,
        "R": order.reduce_only == "true",
        "ot": order.type,
        "ps": order.position_side,
        "gtd": order.gtd,
        "er": "0",
    }
    if trade is not None:
        body |= {"l": trade["qty"], "L": trade["price"], "t": trade["id"]}
        body |= {"n": trade["commission"], "N": trade["commissionAsset"]}
    return {"e": "ORDER_TRADE_UPDATE", "E": order.updated, "T": order.updated, "o": body}


def exchange_info(product: str, limits: Json | None) -> Json:
    """One symbol: tick 0.1, lot 0.001 from 0.001 to 1000, notional from 5."""
    symbol: Json = {
        "symbol": SYMBOL[product],
        "status": "TRADING",
        "baseAsset": "BTC",
        "quoteAsset": "USD" if product == "cbase" else "USDT",
        "amendAllowed": True,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": "0.1",
                "maxPrice": "100000.0",
                "tickSize": "0.1",
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": "0.001",
                "maxQty": "1000.000",
                "stepSize": "0.001",
            },
        ],
    }
    if product == "spot":
        symbol["filters"].append(
            {"filterType": "NOTIONAL", "minNotional": "5", "applyMinToMarket": True}
        )
    elif product == "ubase":
        symbol["filters"].append({"filterType": "MIN_NOTIONAL", "notional": "5"})
        symbol["contractType"] = "PERPETUAL"
    else:
        symbol |= {"contractStatus": "TRADING", "contractSize": 100, "contractType": "PERPETUAL"}
        del symbol["status"]
    rates = [limits] if limits is not None else []
    return {"symbols": [symbol], "rateLimits": rates}
