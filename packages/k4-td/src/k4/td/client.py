"""Libraries for strategies: the order gateway from another process, blocking or with asyncio.

    with TdClient("/run/k4/td.sock", "mm1") as td:
        update = td.insert_order(NewOrder(symbol="BTCUSDT", ...))

Both raise what the gateway answers as the same typed errors that `TdModule` raises. When the
connection is lost while an answer is awaited, GatewayError says so: the order may be live, and its
client id, which these libraries make before they send, finds it after reconnecting.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from types import TracebackType
from typing import Any, Generic, TypeVar

import msgspec

from k4.core.clock import Clock, SystemClock
from k4.core.trading import (
    AccountType,
    Balance,
    Event,
    GatewayError,
    NewOrder,
    OrderUpdate,
    Position,
    decimal_text,
    error_from_wire,
    event_from_wire,
    from_wire,
    to_wire,
)
from k4.core.waiting import within
from k4.td.framing import Lines, TooLong, encode

_T = TypeVar("_T")
_S = TypeVar("_S", bound=msgspec.Struct)

_PEER = "it is no order gateway of K4, or another version of it: check the socket's path"
DEFAULT_TIMEOUT = 30.0
"""Seconds to wait for an answer; longer than the gateway waits for the venue."""


class Call(msgspec.Struct, Generic[_T], frozen=True):
    """One request and how to read its result. list_name: the result comes in pages of it."""

    method: str
    params: dict[str, Any]
    read: Callable[[dict[str, Any]], _T]
    list_name: str = ""


def insert(order: NewOrder) -> Call[OrderUpdate]:
    if not order.client_order_id:
        order = msgspec.structs.replace(order, client_order_id=f"k4-{secrets.token_hex(12)}")
    return Call("insert_order", to_wire(order), _update)


def by_id(
    method: str, client_order_id: str, account_type: AccountType | None, order_id: str, symbol: str
) -> Call[OrderUpdate]:
    params = {
        "client_order_id": client_order_id,
        "account_type": account_type.value if account_type else "",
        "order_id": order_id,
        "symbol": symbol,
    }
    return Call(method, _given(params), _update)


def amend(
    client_order_id: str,
    account_type: AccountType | None,
    quantity: Decimal | None,
    price: Decimal | None,
) -> Call[OrderUpdate]:
    params = {
        "client_order_id": client_order_id,
        "account_type": account_type.value if account_type else "",
        "quantity": decimal_text(quantity) if quantity is not None else "",
        "price": decimal_text(price) if price is not None else "",
    }
    return Call("amend_order", _given(params), _update)


def listing(
    method: str, name: str, kind: type[_S], account_type: AccountType | None, symbol: str = ""
) -> Call[list[_S]]:
    def read(result: dict[str, Any]) -> list[_S]:
        return [from_wire(kind, entry) for entry in result[name]]

    params = {"account_type": account_type.value if account_type else "", "symbol": symbol}
    return Call(method, _given(params), read, name)


def kill(reason: str, release: bool) -> Call[list[OrderUpdate]]:
    def read(result: dict[str, Any]) -> list[OrderUpdate]:
        return [from_wire(OrderUpdate, entry) for entry in result["orders"]]

    params: dict[str, Any] = {"release": True} if release else _given({"reason": reason})
    return Call("kill", params, read, "orders")


def hello(client: str, cancel_on_disconnect: bool | None, events: bool) -> Call[dict[str, Any]]:
    params: dict[str, Any] = {"client": client, "events": events}
    if cancel_on_disconnect is not None:
        params["cancel_on_disconnect"] = cancel_on_disconnect
    return Call("hello", params, lambda result: result)


def _update(result: dict[str, Any]) -> OrderUpdate:
    return from_wire(OrderUpdate, result)


def _given(params: dict[str, str]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value}


def _decoded(line: bytes | TooLong) -> dict[str, Any]:
    if isinstance(line, TooLong):
        raise GatewayError("line", "the gateway sent a line longer than 64 KiB", remedy=_PEER)
    try:
        data = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise GatewayError("line", f"the gateway sent no JSON: {error}", remedy=_PEER) from None
    if not isinstance(data, dict):
        raise GatewayError("line", "the gateway sent no JSON object", remedy=_PEER)
    return data


def _lost(path: str) -> GatewayError:
    return GatewayError(
        "lost",
        f"the connection to the order gateway {path} is lost",
        remedy="reconnect and query orders by client_order_id: those under way may be live",
    )


def _absent(path: str, error: OSError) -> GatewayError:
    return GatewayError(
        "absent",
        f"no order gateway at {path}: {error.strerror or error}",
        remedy="start k4-runner run with a trading entry that has this socket",
    )


class TdClient:
    """Blocking; for one thread. Events that arrive meanwhile are kept for `events`.

    timeout: seconds to wait for an answer; then GatewayError (gateway.timeout) is raised.
    cancel_on_disconnect: None takes the gateway's setting. Raises GatewayError where nobody
    listens.
    """

    def __init__(
        self,
        path: str,
        client: str,
        *,
        cancel_on_disconnect: bool | None = None,
        events: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._timeout = timeout
        self._lines = Lines()
        self._ids = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: deque[Event] = deque()
        self._abandoned: set[int] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise _absent(path, error) from None
        try:
            self.info = self._call(hello(client, cancel_on_disconnect, events))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> TdClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; orders are cancelled if that was asked for."""
        self._socket.close()

    def insert_order(self, order: NewOrder) -> OrderUpdate:
        """See `TdModule.insert_order`."""
        return self._call(insert(order))

    def cancel_order(
        self,
        client_order_id: str = "",
        *,
        account_type: AccountType | None = None,
        order_id: str = "",
        symbol: str = "",
    ) -> OrderUpdate:
        """See `TdModule.cancel_order`."""
        return self._call(by_id("cancel_order", client_order_id, account_type, order_id, symbol))

    def amend_order(
        self,
        client_order_id: str,
        *,
        account_type: AccountType | None = None,
        quantity: Decimal | None = None,
        price: Decimal | None = None,
    ) -> OrderUpdate:
        """See `TdModule.amend_order`."""
        return self._call(amend(client_order_id, account_type, quantity, price))

    def cancel_all_orders(
        self, account_type: AccountType | None = None, symbol: str = ""
    ) -> list[OrderUpdate]:
        """See `TdModule.cancel_all_orders`."""
        return self._call(listing("cancel_all_orders", "orders", OrderUpdate, account_type, symbol))

    def query_order(
        self,
        client_order_id: str = "",
        *,
        account_type: AccountType | None = None,
        order_id: str = "",
        symbol: str = "",
    ) -> OrderUpdate:
        """See `TdModule.query_order`."""
        return self._call(by_id("query_order", client_order_id, account_type, order_id, symbol))

    def query_open_orders(
        self, account_type: AccountType | None = None, symbol: str = ""
    ) -> list[OrderUpdate]:
        """See `TdModule.query_open_orders`."""
        return self._call(listing("query_open_orders", "orders", OrderUpdate, account_type, symbol))

    def query_positions(self, account_type: AccountType | None = None) -> list[Position]:
        return self._call(listing("query_positions", "positions", Position, account_type))

    def query_balances(self, account_type: AccountType | None = None) -> list[Balance]:
        return self._call(listing("query_balances", "balances", Balance, account_type))

    def kill(self, reason: str = "", *, release: bool = False) -> list[OrderUpdate]:
        """Kill trading, or release the kill switch. What was cancelled."""
        return self._call(kill(reason, release))

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Events as they come; ends when none came for `timeout` seconds (0: those that are here).
        Raises GatewayError when the gateway is gone."""
        while True:
            if self._events:
                yield self._events.popleft()
                continue
            if not self._read(timeout):
                return

    def _call(self, call: Call[_T]) -> _T:
        result = self._ask(call.method, call.params)
        following = result.pop("next", None)
        while following:
            page = self._ask("more", {"next": following})
            result[call.list_name] += page[call.list_name]
            following = page.get("next")
        return call.read(result)

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        request_id = next(self._ids)
        deadline = self._clock.monotonic() + self._timeout
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(encode({"id": request_id, "method": method, "params": params}))
        except OSError:
            raise _lost(self._path) from None
        while request_id not in self._answers:
            rest = deadline - self._clock.monotonic()
            if rest <= 0 or not self._read(rest):
                self._abandoned.add(request_id)
                raise GatewayError(
                    "timeout",
                    f"no answer to {method} within {self._timeout:g} s",
                    remedy="query by client_order_id: the request may still be executed",
                )
        answer = self._answers.pop(request_id)
        if "error" in answer:
            raise error_from_wire(answer["error"])
        return dict(answer["result"])

    def _read(self, timeout: float | None) -> bool:
        """Whether anything came."""
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(1 << 16)
        except (TimeoutError, BlockingIOError):  # the second one where timeout is 0
            return False
        except OSError:
            raise _lost(self._path) from None
        if not data:
            raise _lost(self._path)
        for line in self._lines.feed(data):
            message = _decoded(line)
            if "event" in message:
                self._events.append(event_from_wire(message["event"], message["data"]))
            elif message.get("id") in self._abandoned:
                self._abandoned.discard(message["id"])
            elif isinstance(message.get("id"), int):
                self._answers[message["id"]] = message
        return True


class AsyncTdClient:
    """The same with asyncio; any number of requests may be under way.

    Use it as `async with AsyncTdClient(path, "mm1") as td`, or call `connect` and `close`.
    """

    def __init__(
        self,
        path: str,
        client: str,
        *,
        cancel_on_disconnect: bool | None = None,
        events: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
        clock: Clock | None = None,
    ) -> None:
        self._path = path
        self._hello = hello(client, cancel_on_disconnect, events)
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self.info: dict[str, Any] = {}

    async def __aenter__(self) -> AsyncTdClient:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def connect(self) -> None:
        """Raises GatewayError where nobody listens."""
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path)
        except OSError as error:
            raise _absent(self._path, error) from None
        self._task = asyncio.get_running_loop().create_task(self._read(reader))
        try:
            self.info = await self._call(self._hello)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect; orders are cancelled if that was asked for. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._writer is not None:
            self._writer.close()
            try:
                await self._writer.wait_closed()
            except OSError:
                return  # the gateway was gone first
            finally:
                self._writer = None

    async def insert_order(self, order: NewOrder) -> OrderUpdate:
        """See `TdModule.insert_order`."""
        return await self._call(insert(order))

    async def cancel_order(
        self,
        client_order_id: str = "",
        *,
        account_type: AccountType | None = None,
        order_id: str = "",
        symbol: str = "",
    ) -> OrderUpdate:
        """See `TdModule.cancel_order`."""
        call = by_id("cancel_order", client_order_id, account_type, order_id, symbol)
        return await self._call(call)

    async def amend_order(
        self,
        client_order_id: str,
        *,
        account_type: AccountType | None = None,
        quantity: Decimal | None = None,
        price: Decimal | None = None,
    ) -> OrderUpdate:
        """See `TdModule.amend_order`."""
        return await self._call(amend(client_order_id, account_type, quantity, price))

    async def cancel_all_orders(
        self, account_type: AccountType | None = None, symbol: str = ""
    ) -> list[OrderUpdate]:
        """See `TdModule.cancel_all_orders`."""
        call = listing("cancel_all_orders", "orders", OrderUpdate, account_type, symbol)
        return await self._call(call)

    async def query_order(
        self,
        client_order_id: str = "",
        *,
        account_type: AccountType | None = None,
        order_id: str = "",
        symbol: str = "",
    ) -> OrderUpdate:
        """See `TdModule.query_order`."""
        call = by_id("query_order", client_order_id, account_type, order_id, symbol)
        return await self._call(call)

    async def query_open_orders(
        self, account_type: AccountType | None = None, symbol: str = ""
    ) -> list[OrderUpdate]:
        """See `TdModule.query_open_orders`."""
        call = listing("query_open_orders", "orders", OrderUpdate, account_type, symbol)
        return await self._call(call)

    async def query_positions(self, account_type: AccountType | None = None) -> list[Position]:
        return await self._call(listing("query_positions", "positions", Position, account_type))

    async def query_balances(self, account_type: AccountType | None = None) -> list[Balance]:
        return await self._call(listing("query_balances", "balances", Balance, account_type))

    async def kill(self, reason: str = "", *, release: bool = False) -> list[OrderUpdate]:
        """Kill trading, or release the kill switch. What was cancelled."""
        return await self._call(kill(reason, release))

    async def events(self) -> AsyncIterator[Event]:
        """Events as they come. Raises GatewayError when the gateway is gone."""
        while True:
            while self._events:
                yield self._events.popleft()
            if self._task is None or self._task.done():
                raise _lost(self._path)
            self._arrived.clear()
            await self._arrived.wait()

    async def _call(self, call: Call[_T]) -> _T:
        result = await self._ask(call.method, call.params)
        following = result.pop("next", None)
        while following:
            page = await self._ask("more", {"next": following})
            result[call.list_name] += page[call.list_name]
            following = page.get("next")
        return call.read(result)

    async def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if self._writer is None or self._task is None or self._task.done():
            raise _lost(self._path)
        request_id = next(self._ids)
        waiter: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = waiter
        self._writer.write(encode({"id": request_id, "method": method, "params": params}))

        async def answered() -> dict[str, Any]:
            return await waiter

        try:
            message = await within(self._clock, self._timeout, answered())
        except TimeoutError:
            raise GatewayError(
                "timeout",
                f"no answer to {method} within {self._timeout:g} s",
                remedy="query by client_order_id: the request may still be executed",
            ) from None
        finally:
            self._waiting.pop(request_id, None)
        if "error" in message:
            raise error_from_wire(message["error"])
        return dict(message["result"])

    async def _read(self, reader: asyncio.StreamReader) -> None:
        lines = Lines()
        try:
            while data := await reader.read(1 << 16):
                for line in lines.feed(data):
                    self._receive(_decoded(line))
        except (OSError, GatewayError):
            return  # said to those who wait, below
        finally:
            self._arrived.set()
            for waiter in self._waiting.values():
                if not waiter.done():
                    waiter.set_exception(_lost(self._path))

    def _receive(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._events.append(event_from_wire(message["event"], message["data"]))
            self._arrived.set()
            return
        waiter = self._waiting.get(message.get("id", 0))
        if waiter is not None and not waiter.done():
            waiter.set_result(message)
