"""The truth: every request that arrived, every order with its history, every fill and fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from k4.runner.sim.trading.orders import Order, Trade


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request as it was received. number: order of arrival. account: '' until a key was
    recognized. client_id: the order's (of a cancel: the order to cancel). status, code: what was
    answered, or would have been; 0 while nothing is decided. executed: the handler ran and did what
    was asked. answered: the answer was written to the socket. faults: those that struck it.
    """

    number: int
    time_ms: int
    product: str
    transport: str
    op: str
    account: str = ""
    symbol: str = ""
    client_id: str = ""
    order_id: str = ""
    status: int = 0
    code: int = 0
    executed: bool = False
    answered: bool = False
    faults: list[str] = []


class FaultRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A fault that really happened. request: its number, 0 where it struck none. event: the kind of
    event that it struck. executed: what the request asked for was done. rule: place in the script,
    -1 when injected by hand."""

    time_ms: int
    fault: str
    rule: int = -1
    product: str = ""
    account: str = ""
    op: str = ""
    client_id: str = ""
    event: str = ""
    request: int = 0
    executed: bool = False
    detail: str = ""


class EventRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An event that the venue produced, once for an account, whoever was listening."""

    time_ms: int
    product: str
    account: str
    name: str
    client_id: str = ""
    listeners: int = 0


class ConnectionRecord(msgspec.Struct, kw_only=True):
    """One WebSocket. kind: api, stream or legacy (accepted, silent). ended: how."""

    number: int
    product: str
    kind: str
    opened_ms: int
    closed_ms: int = 0
    ended: str = ""
    received: int = 0
    sent: int = 0


class TradingLedger:
    """Written by the venue, read by tests; it outlives the venue."""

    def __init__(self) -> None:
        self.requests: list[RequestRecord] = []
        self.events: list[EventRecord] = []
        self.connections: list[ConnectionRecord] = []
        self._faults: list[FaultRecord] = []
        self._orders: list[dict[int, Order]] = []
        self._trades: list[list[Trade]] = []
        self._wealth: Callable[[], dict[str, Any]] = dict

    def attach(self, orders: dict[int, Order], trades: list[Trade]) -> None:
        """The living records of one product's exchange."""
        self._orders.append(orders)
        self._trades.append(trades)

    def attach_wealth(self, wealth: Callable[[], dict[str, Any]]) -> None:
        """What tells balances and positions by account and product."""
        self._wealth = wealth

    def fault(self, record: FaultRecord) -> None:
        self._faults.append(record)

    # -- asked by tests ---------------------------------------------------------------------------

    def faults(self, fault: str = "") -> list[FaultRecord]:
        return [record for record in self._faults if fault in ("", record.fault)]

    def received(self, op: str = "", client_id: str = "", account: str = "") -> list[RequestRecord]:
        """The requests, in order of arrival, that match what is given."""
        return [
            record
            for record in self.requests
            if op in ("", record.op)
            and client_id in ("", record.client_id)
            and account in ("", record.account)
        ]

    def orders(
        self, account: str = "", product: str = "", client_id: str = "", *, open_only: bool = False
    ) -> list[Order]:
        """Oldest first within a product. An amended order counts under its last client id."""
        found: Iterable[Order] = (o for orders in self._orders for o in orders.values())
        return [
            order
            for order in found
            if account in ("", order.account)
            and product in ("", order.product)
            and client_id in ("", order.client_id)
            and (order.open or not open_only)
        ]

    def trades(self, account: str = "", product: str = "", client_id: str = "") -> list[Trade]:
        return [
            trade
            for trades in self._trades
            for trade in trades
            if account in ("", trade.account)
            and product in ("", trade.product)
            and client_id in ("", trade.client_id)
        ]

    def sent_twice(self, account: str = "") -> list[str]:
        """Client ids with which more than one request to place an order arrived."""
        return _repeated(
            record.client_id
            for record in self.requests
            if record.op == "order.place" and record.client_id and account in ("", record.account)
        )

    def placed_twice(self, account: str = "") -> list[str]:
        """Client ids under which more than one order was accepted."""
        first = [
            (order.product, order.history[0].client_id)
            for order in self.orders(account)
            if order.history
        ]
        return _repeated(client_id for _, client_id in first)

    def wealth(self) -> dict[str, Any]:
        """Balances and positions now: {account: {product: {asset: {...}}, positions: [...]}}."""
        return self._wealth()

    def summary(self) -> dict[str, Any]:
        names = [record.fault for record in self._faults]
        return {
            "requests": len(self.requests),
            "orders": sum(map(len, self._orders)),
            "trades": sum(map(len, self._trades)),
            "events": len(self.events),
            "connections": len(self.connections),
            "sent_twice": self.sent_twice(),
            "placed_twice": self.placed_twice(),
            "faults": {name: names.count(name) for name in sorted(set(names))},
        }

    def plain_orders(
        self, account: str = "", product: str = "", client_id: str = ""
    ) -> list[dict[str, Any]]:
        """`orders`, as values that JSON can hold."""
        return [plain_order(order) for order in self.orders(account, product, client_id)]

    def report(self) -> dict[str, Any]:
        """Everything, as values that JSON can hold; decimals are text."""
        return {
            "summary": self.summary(),
            "orders": self.plain_orders(),
            "trades": plain(self.trades()),
            "requests": plain(self.requests),
            "faults": plain(self._faults),
            "connections": plain(self.connections),
            "wealth": self.wealth(),
        }


def plain(items: Sequence[Any]) -> list[Any]:
    """Records as dicts."""
    found: list[Any] = msgspec.to_builtins(items, enc_hook=str)
    return found


def plain_order(order: Order) -> dict[str, Any]:
    """An order as a dict, without its place in the book; its trades are a list of their own."""
    names = [name for name in order.__struct_fields__ if name not in ("resting", "trades")]
    return {
        name: msgspec.to_builtins(getattr(order, name), enc_hook=str)
        if not isinstance(getattr(order, name), Decimal)
        else format(getattr(order, name), "f")
        for name in names
    }


def _repeated(names: Iterable[str]) -> list[str]:
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return [name for name, count in seen.items() if count > 1]
