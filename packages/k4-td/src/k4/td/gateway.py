"""The order gateway: strategies in other processes trade through a Unix-domain socket.

The socket has mode 0600 and a peer must have this process's uid. A client says `hello` first. Its
requests run at once, each on its own; answers about one order keep the order of their requests. A
client that does not read its answers is dropped rather than buffered for ever.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import msgspec

from k4.core.clock import Clock
from k4.core.trading import (
    AccountType,
    Event,
    Fault,
    GatewayError,
    InvalidOrder,
    KeyRefreshed,
    NewOrder,
    OrderError,
    from_wire,
    parse_decimal,
    to_wire,
)
from k4.core.waiting import sleep
from k4.td.framing import (
    PAGE_BYTES,
    PROTOCOL,
    BadLine,
    Lines,
    Request,
    TooLong,
    answer,
    event_line,
    flag,
    only,
    pages,
    parse_request,
    refusal,
    text,
)

if TYPE_CHECKING:
    from k4.td.trading import TdModule

MAX_BUFFERED = 8 << 20
"""Bytes of answers and events that a client may leave unread."""
MAX_UNDER_WAY = 512
"""Requests of one client; no more are read until some are answered."""

_FORM = 'one object a line: {"id": 7, "method": "insert_order", "params": {...}}'
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Gateway:
    """The listening socket of one trading module, and its clients."""

    def __init__(self, module: TdModule, path: str, clock: Clock) -> None:
        self.module = module
        self._path = path
        self._clock = clock
        self._socket: socket.socket | None = None
        self._server: asyncio.AbstractServer | None = None
        self.clients: set[Client] = set()
        self.sequence = 0
        module.bus.listen(self._event)
        self.cancels: set[asyncio.Task[Any]] = set()
        self.closing = False

    def bind(self) -> None:
        """Take the path. Raises GatewayError where somebody else listens there."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            # Set before the file exists, so that it is never open to others, not for a moment.
            os.fchmod(listener.fileno(), 0o600)
            self._remove_stale()
            listener.bind(self._path)
            os.chmod(self._path, 0o600)
            listener.listen(64)
        except OSError as error:
            listener.close()
            raise GatewayError(
                "socket",
                f"socket {self._path}: {error.strerror or error}",
                remedy="give a short path in an existing directory of this user",
            ) from error
        except GatewayError:
            listener.close()
            raise
        self._socket = listener

    def _remove_stale(self) -> None:
        """Remove the socket that a process left behind, and nothing else."""
        try:
            found = os.lstat(self._path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise GatewayError(
                "socket",
                f"{self._path} exists and is no socket",
                remedy="remove it by hand, or give another path",
            )
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(self._path)
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise
            os.unlink(self._path)
            return
        finally:
            probe.close()
        raise GatewayError(
            "socket",
            f"another process listens on {self._path}",
            remedy="stop it, or give this module another socket",
        )

    def unbind(self) -> None:
        """Give the path back. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            if os.path.exists(self._path):
                os.unlink(self._path)

    async def serve(self) -> None:
        """Accept clients."""
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: Client(self), sock=self._socket
        )

    async def close(self, patience: float) -> None:
        """Disconnect everybody; orders that go with their strategies are cancelled first."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for client in list(self.clients):
            client.leave()
        deadline = self._clock.monotonic() + patience
        while (self.clients or self.cancels) and self._clock.monotonic() < deadline:
            await sleep(self._clock, 0.01)
        if self._server is not None:
            await self._server.wait_closed()
        self.unbind()

    def _event(self, sequence: int, event: Event) -> None:
        """To every client that wants events, encoded once, and not at all where nobody does. Listen
        keys are the gateway's own affair, and no event of the protocol."""
        if isinstance(event, KeyRefreshed):
            return
        self.sequence += 1
        listening = [client for client in self.clients if client.wants_events]
        if listening:
            line = event_line(self.sequence, event)
            for client in listening:
                client.tell(line)

    def cancel_for(self, key: str, account: AccountType) -> None:
        """Cancel an order whose strategy is gone."""
        task = self.module.accounts[account].cancel_soon(key)
        self.cancels.add(task)
        task.add_done_callback(self.cancels.discard)


class Client(asyncio.Protocol):
    """One connected strategy."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._module = gateway.module
        self._transport: asyncio.Transport | None = None
        self._lines = Lines()
        self._name = ""
        self._greeted = False
        self._cancels = gateway.module.config.cancel_on_disconnect
        self.wants_events = False
        self._tails: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._placed: dict[str, AccountType] = {}
        self._pages: dict[str, deque[list[dict[str, Any]]]] = {}
        self._page_number = 0
        self._gone = False

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast and no check: uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("socket")
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if self._gateway.closing or _CREDENTIALS.unpack(raw)[1] != os.geteuid():
            self._transport.abort()
            return
        self._gateway.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._gateway.clients.discard(self)
        if self._cancels:
            for key, account in self._placed.items():
                self._gateway.cancel_for(key, account)

    def leave(self) -> None:
        """The gateway closes. What the client is owed has been written."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            if isinstance(line, TooLong):
                self._refuse(
                    None,
                    GatewayError(
                        "line", "a line is longer than 64 KiB", remedy="send shorter ones"
                    ),
                )
                continue
            try:
                request = parse_request(line)
            except BadLine as error:
                self._refuse(error.id, GatewayError("request", str(error), remedy=_FORM))
                continue
            self._accept(request)

    def _write(self, line: bytes) -> None:
        transport = self._transport
        if transport is None or self._gone or transport.is_closing():
            return
        transport.write(line)
        if transport.get_write_buffer_size() > MAX_BUFFERED:
            self._gone = True
            transport.abort()
            fault = Fault(
                code="gateway.slow",
                message=f"client {self._name!r} does not read: dropped",
                remedy="read events as they come, or say events false in hello",
            )
            # Not from here: other clients are still being told of what came before it.
            asyncio.get_running_loop().call_soon(self._module.bus.emit, fault)

    def _refuse(self, request_id: int | str | None, error: OrderError) -> None:
        self._write(refusal(request_id, error))

    # Requests.

    def _accept(self, request: Request) -> None:
        if request.method != "hello" and not self._greeted:
            error = GatewayError(
                "hello",
                "the first request must be hello",
                remedy='say {"id": 1, "method": "hello", "params": {"client": "..."}} first',
            )
            self._refuse(request.id, error)
            return
        key = self._order_key(request)
        previous = self._tails.get(key) if key else None
        task = asyncio.get_running_loop().create_task(self._serve(request, previous))
        self._tasks.add(task)
        if key:
            self._tails[key] = task
        task.add_done_callback(lambda done: self._served(request, key, done))
        if len(self._tasks) >= MAX_UNDER_WAY and self._transport is not None:
            self._transport.pause_reading()

    def _served(self, request: Request, key: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (defect := task.exception()) is not None:
            what = f"{type(defect).__name__}: {defect}"
            self._module.bus.emit(Fault(code="gateway.internal", message=what))
            self._refuse(
                request.id,
                GatewayError(
                    "internal", what, remedy="query the order: it may have been sent; report this"
                ),
            )
        if self._tails.get(key) is task:
            del self._tails[key]
        transport = self._transport
        if transport is not None and not transport.is_closing() and not transport.is_reading():
            transport.resume_reading()

    def _order_key(self, request: Request) -> str:
        """Which order a request is about, '' for none."""
        params = request.params
        client_id, order_id = params.get("client_order_id"), params.get("order_id")
        if client_id or not order_id:
            return str(client_id or "")
        return self._module.name_of(str(order_id), str(params.get("symbol", "")))

    async def _serve(self, request: Request, previous: asyncio.Task[None] | None) -> None:
        try:
            handler = _HANDLERS.get(request.method)
            if handler is None:
                raise GatewayError(
                    "method",
                    f"no method {request.method[:60]!r}",
                    remedy=f"known: {', '.join(_HANDLERS)}",
                )
            line = answer(request.id, await handler(self, request.params))
        except OrderError as error:
            line = refusal(request.id, error)
        if previous is not None:
            await asyncio.wait({previous})
        self._write(line)

    async def _hello(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "client", "cancel_on_disconnect", "events", "protocol")
        name = text(params, "client")
        if not name or len(name) > 64:
            raise GatewayError(
                "params", "client must be a name of 1 to 64 characters", remedy="give your name"
            )
        if self._greeted:
            raise GatewayError("hello", "hello was said already", remedy="say it once a connection")
        self._cancels = flag(params, "cancel_on_disconnect", self._cancels)
        self.wants_events = flag(params, "events", False)
        self._name = name
        self._greeted = True
        symbols, complete = self._symbols()
        return {
            "protocol": PROTOCOL,
            "name": self._module.name,
            "accounts": [account.value for account in self._module.accounts],
            "connected": [
                account.value
                for account, entry in self._module.accounts.items()
                if entry.ready.is_set()
            ],
            "symbols": symbols,
            "symbols_complete": complete,
            "killed": self._module.killed,
            "seq": self._gateway.sequence,
        }

    def _symbols(self) -> tuple[dict[str, list[str]], bool]:
        """By account: those that risk allows, else all; as many as one line can hold."""
        found: dict[str, list[str]] = {}
        room, complete = PAGE_BYTES, True
        for account, entry in self._module.accounts.items():
            limits = self._module.config.risk.get(account.value)
            allowed = limits.symbols if limits is not None else ()
            names = allowed or tuple(rule.symbol for rule in entry.venue.symbols)
            kept = found.setdefault(account.value, [])
            for name in names:
                room -= len(name.encode()) + 3
                if room < 0:
                    complete = False
                    break
                kept.append(name)
        return found, complete

    def tell(self, line: bytes) -> None:
        """An event."""
        self._write(line)

    async def _insert(self, params: dict[str, Any]) -> dict[str, Any]:
        order = from_wire(NewOrder, params)
        if not order.client_order_id:
            # Made here, so that the order is this client's from before it is sent.
            made = self._module.accounts.get(order.account_type)
            if made is not None:
                order = msgspec.structs.replace(order, client_order_id=made.make_id())
        key = order.client_order_id
        try:
            update = await self._module.insert_order(
                order, owner=self._name, cancel_on_disconnect=self._cancels
            )
        except OrderError as error:
            if error.order is not None:
                self._own(key, order.account_type)
            raise
        self._own(key, order.account_type)
        return to_wire(update)

    def _own(self, key: str, account: AccountType) -> None:
        """This client's order; if the client has left meanwhile, the order goes too."""
        self._placed[key] = account
        if len(self._placed) % 1024 == 0:
            self._forget_final()
        if self._gone and self._cancels:
            self._gateway.cancel_for(key, account)

    def _forget_final(self) -> None:
        for key, account in list(self._placed.items()):
            state = self._module.accounts[account].book.orders.get(key)
            if state is None or state.final:
                del self._placed[key]

    async def _cancel(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "account_type", "client_order_id", "order_id", "symbol")
        update = await self._module.cancel_order(
            text(params, "client_order_id"),
            account_type=_account(params),
            order_id=text(params, "order_id"),
            symbol=text(params, "symbol"),
        )
        return to_wire(update)

    async def _amend(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "account_type", "client_order_id", "quantity", "price")
        update = await self._module.amend_order(
            text(params, "client_order_id"),
            account_type=_account(params),
            quantity=_decimal(params, "quantity"),
            price=_decimal(params, "price"),
            owner=self._name,
            cancel_on_disconnect=self._cancels,
        )
        if update.client_order_id != text(params, "client_order_id"):
            self._own(update.client_order_id, update.account_type)
        return to_wire(update)

    async def _query(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "account_type", "client_order_id", "order_id", "symbol")
        update = await self._module.query_order(
            text(params, "client_order_id"),
            account_type=_account(params),
            order_id=text(params, "order_id"),
            symbol=text(params, "symbol"),
        )
        return to_wire(update)

    async def _cancel_all(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "account_type", "symbol")
        found = await self._module.cancel_all_orders(_account(params), text(params, "symbol"))
        return self._paged("orders", [to_wire(entry) for entry in found])

    async def _open_orders(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "account_type", "symbol")
        found = await self._module.query_open_orders(_account(params), text(params, "symbol"))
        return self._paged("orders", [to_wire(entry) for entry in found])

    async def _positions(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "account_type")
        found = await self._module.query_positions(_account(params))
        return self._paged("positions", [to_wire(entry) for entry in found])

    async def _balances(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "account_type")
        found = await self._module.query_balances(_account(params))
        return self._paged("balances", [to_wire(entry) for entry in found])

    async def _kill(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "reason", "release")
        if flag(params, "release", False):
            self._module.release_kill()
            return {"killed": "", "orders": []}
        reason = text(params, "reason")[:200] or f"killed by client {self._name}"
        found = await self._module.kill(reason)
        paged = self._paged("orders", [to_wire(entry) for entry in found])
        return {"killed": self._module.killed, **paged}

    def _paged(self, name: str, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The first page, and under `next` what `more` wants for the following one."""
        queue = deque(pages(items))
        result: dict[str, Any] = {name: queue.popleft()}
        if queue:
            self._page_number += 1
            token = f"{name}-{self._page_number}"
            self._pages[token] = queue
            result["next"] = token
            if len(self._pages) > 16:
                del self._pages[next(iter(self._pages))]
        return result

    async def _more(self, params: dict[str, Any]) -> dict[str, Any]:
        only(params, "next")
        token = text(params, "next")
        queue = self._pages.get(token)
        if not queue:
            raise GatewayError("params", f"no page {token[:60]!r}", remedy="ask from the start")
        result: dict[str, Any] = {token.partition("-")[0]: queue.popleft()}
        if queue:
            result["next"] = token
        else:
            del self._pages[token]
        return result


_Handler = Callable[[Client, dict[str, Any]], Awaitable[dict[str, Any]]]

_HANDLERS: dict[str, _Handler] = {
    "hello": Client._hello,
    "insert_order": Client._insert,
    "cancel_order": Client._cancel,
    "amend_order": Client._amend,
    "cancel_all_orders": Client._cancel_all,
    "query_order": Client._query,
    "query_open_orders": Client._open_orders,
    "query_positions": Client._positions,
    "query_balances": Client._balances,
    "kill": Client._kill,
    "more": Client._more,
}


def _account(params: dict[str, Any]) -> AccountType | None:
    value = text(params, "account_type")
    if not value:
        return None
    try:
        return AccountType(value)
    except ValueError:
        raise InvalidOrder(
            "account_type", f"no account type {value[:60]!r}", remedy="spot, ubase or cbase"
        ) from None


def _decimal(params: dict[str, Any], name: str) -> Decimal | None:
    return parse_decimal(params[name], name) if name in params else None
