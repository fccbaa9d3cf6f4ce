"""Binance's user-data events as values: spot over the WebSocket API, futures over private streams.

Pure. Sources: Binance user-data stream documentation, July 2026.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from k4.core.trading import ZERO, Balance, Fill, Position
from k4.td.exchanges.binance.protocol import Product
from k4.td.exchanges.binance.reports import (
    algo_id,
    algo_status,
    decode,
    direction_of,
    expiry,
    order_status,
    order_type,
    position_side,
)
from k4.td.venue import Report


class Ended(msgspec.Struct, frozen=True):
    """The stream brings nothing more: connect anew. key_expired: with a new listen key. announced:
    it still does, but the venue is about to close the connection."""

    reason: str
    key_expired: bool = False
    announced: bool = False


class Unused(msgspec.Struct, frozen=True):
    """An event that K4 does not use."""

    name: str


class Changes(msgspec.Struct, frozen=True):
    """Positions and balances that an event says changed; what is absent did not."""

    positions: tuple[Position, ...] = ()
    balances: tuple[Balance, ...] = ()


UserEvent = Report | Changes | Ended | Unused


class _Head(msgspec.Struct):
    e: str = ""
    stream: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")


def parse_event(product: Product, body: bytes | msgspec.Raw) -> UserEvent:
    """One event, with or without the `{stream, data}` wrapper. Raises reports.Malformed."""
    head = decode(body, _Head)
    if head.stream:
        body = head.data
        head = decode(body, _Head)
    match head.e:
        case "executionReport":
            return _spot_report(product, decode(body, _SpotExecution))
        case "outboundAccountPosition":
            return _spot_balances(product, decode(body, _SpotAccount))
        case "ORDER_TRADE_UPDATE":
            event = decode(body, _FuturesOrderEvent)
            return _futures_report(product, event.T, event.o)
        case "ALGO_UPDATE":
            change = decode(body, _AlgoEvent)
            return _algo_report(change.T, change.o)
        case "ACCOUNT_UPDATE":
            return _account_update(product, decode(body, _AccountEvent))
        case "listenKeyExpired":
            return Ended("the listen key expired", key_expired=True)
        case "eventStreamTerminated":
            return Ended(f"the venue announced {head.e}")
        case "serverShutdown":
            return Ended(f"the venue announced {head.e}", announced=True)
        case name:
            # TRADE_LITE is among these: the ORDER_TRADE_UPDATE that follows says the same, with
            # the commission, and a fill is reported once.
            return Unused(name)


class _SpotExecution(msgspec.Struct):
    s: str
    c: str
    S: str
    o: str
    f: str
    q: Decimal
    p: Decimal
    x: str
    X: str
    i: int
    z: Decimal
    l: Decimal = ZERO  # noqa: E741  # the venue's letter
    L: Decimal = ZERO
    Z: Decimal = ZERO
    C: str = ""
    r: str = ""
    n: Decimal = ZERO
    N: str | None = None
    t: int = -1
    T: int = 0
    m: bool = False
    eR: str = ""


def _spot_report(product: Product, event: _SpotExecution) -> Report:
    # A cancel carries its own id in `c` and the cancelled order's in `C`. K4 keeps the id of an
    # amended order, so whatever pairing the venue uses there, both name the same order.
    client = event.C if event.C and event.x in ("CANCELED", "REPLACED") else event.c
    fills: tuple[Fill, ...] = ()
    if event.x == "TRADE" and event.t >= 0:
        fills = (
            Fill(
                symbol=event.s,
                account_type=product.account,
                direction=direction_of(event.S),
                client_order_id=client,
                order_id=str(event.i),
                trade_id=str(event.t),
                price=event.L,
                quantity=event.l,
                commission=event.n,
                commission_asset=event.N or "",
                is_maker=event.m,
                trade_time_us=event.T * 1000,
            ),
        )
    status = order_status(event.X)
    refused = "" if event.r in ("", "NONE") else event.r
    prevented = "self-trade prevention" if event.X == "EXPIRED_IN_MATCH" else ""
    return Report(
        symbol=event.s,
        client_order_id=client,
        order_id=str(event.i),
        status=status,
        direction=direction_of(event.S),
        order_type=order_type(event.o, event.f),
        quantity=event.q,
        price=event.p,
        executed=event.z,
        average=event.Z / event.z if event.z > 0 else ZERO,
        time_us=event.T * 1000,
        reason=refused or expiry(event.eR, event.o) or prevented,
        fills=fills,
    )


class _SpotBalanceEntry(msgspec.Struct):
    a: str
    f: Decimal
    l: Decimal  # noqa: E741  # the venue's letter


class _SpotAccount(msgspec.Struct):
    B: list[_SpotBalanceEntry]
    u: int = 0


def _spot_balances(product: Product, event: _SpotAccount) -> Changes:
    return Changes(
        balances=tuple(
            Balance(
                asset=entry.a,
                account_type=product.account,
                free=entry.f,
                locked=entry.l,
                update_time_us=event.u * 1000,
            )
            for entry in event.B
        )
    )


class _FuturesOrder(msgspec.Struct):
    s: str
    c: str
    S: str
    o: str
    f: str
    q: Decimal
    x: str
    X: str
    i: int
    z: Decimal
    p: Decimal = ZERO
    ap: Decimal = ZERO
    l: Decimal = ZERO  # noqa: E741  # the venue's letter
    L: Decimal = ZERO
    n: Decimal = ZERO
    N: str | None = None
    T: int = 0
    t: int = 0
    m: bool = False
    R: bool = False
    ot: str = ""
    ps: str = ""
    gtd: int = 0
    er: str | int = ""


class _FuturesOrderEvent(msgspec.Struct):
    o: _FuturesOrder
    T: int = 0
    E: int | str = 0


def _futures_report(product: Product, time_ms: int, order: _FuturesOrder) -> Report:
    fills: tuple[Fill, ...] = ()
    # CALCULATED is a liquidation's execution; it has a trade id like any other.
    if order.x in ("TRADE", "CALCULATED") and order.t > 0:
        fills = (
            Fill(
                symbol=order.s,
                account_type=product.account,
                direction=direction_of(order.S),
                client_order_id=order.c,
                order_id=str(order.i),
                trade_id=str(order.t),
                price=order.L,
                quantity=order.l,
                commission=order.n,
                commission_asset=order.N or "",
                is_maker=order.m,
                trade_time_us=order.T * 1000,
            ),
        )
    prevented = "self-trade prevention" if order.X == "EXPIRED_IN_MATCH" else ""
    kind = order.ot or order.o
    return Report(
        symbol=order.s,
        client_order_id=order.c,
        order_id=str(order.i),
        status=order_status(order.X),
        direction=direction_of(order.S),
        order_type=order_type(kind, order.f),
        quantity=order.q,
        price=order.p,
        executed=order.z,
        average=order.ap,
        reduce_only=order.R,
        position_side=position_side(order.ps),
        good_till_us=order.gtd * 1000,
        time_us=(time_ms or order.T) * 1000,
        reason=expiry(str(order.er), kind) or prevented,
        fills=fills,
    )


class _AlgoOrder(msgspec.Struct):
    s: str
    S: str
    o: str
    X: str
    aid: int
    q: Decimal = ZERO
    p: Decimal = ZERO
    ps: str = ""
    R: bool = False
    ai: str | int = ""
    rm: str = ""


class _AlgoEvent(msgspec.Struct):
    o: _AlgoOrder
    T: int = 0


def _algo_report(time_ms: int, order: _AlgoOrder) -> Report:
    """A conditional order. What it becomes when it triggers is an order of its own."""
    became = f", became order {order.ai}" if order.ai else ""
    return Report(
        symbol=order.s,
        client_order_id="",
        order_id=algo_id(order.aid),
        status=algo_status(order.X),
        direction=direction_of(order.S),
        order_type=order_type(order.o, ""),
        quantity=order.q,
        price=order.p,
        reduce_only=order.R,
        position_side=position_side(order.ps),
        time_us=time_ms * 1000,
        reason=order.rm or f"venue type {order.o}{became}",
    )


class _FuturesBalanceEntry(msgspec.Struct):
    a: str
    wb: Decimal
    cw: Decimal = ZERO


class _FuturesPosition(msgspec.Struct):
    s: str
    pa: Decimal
    ep: Decimal = ZERO
    up: Decimal = ZERO
    ps: str = ""


class _AccountChange(msgspec.Struct):
    B: list[_FuturesBalanceEntry] = []
    P: list[_FuturesPosition] = []


class _AccountEvent(msgspec.Struct):
    a: _AccountChange
    T: int = 0


def _account_update(product: Product, event: _AccountEvent) -> Changes:
    time_us = event.T * 1000
    return Changes(
        positions=tuple(
            Position(
                symbol=entry.s,
                account_type=product.account,
                quantity=entry.pa,
                entry_price=entry.ep,
                unrealized_pnl=entry.up,
                position_side=position_side(entry.ps),
                update_time_us=time_us,
            )
            for entry in event.a.P
        ),
        balances=tuple(
            Balance(
                asset=entry.a,
                account_type=product.account,
                free=entry.cw,
                locked=entry.wb - entry.cw,
                update_time_us=time_us,
            )
            for entry in event.a.B
        ),
    )
