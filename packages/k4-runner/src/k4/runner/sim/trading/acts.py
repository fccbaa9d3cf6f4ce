"""Carries out what happens to the venue itself: closed connections, expired and revoked keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from k4.runner.sim.trading.faults import (
    Act,
    ClockSkew,
    Close,
    EndOfLife,
    ExpireListenKey,
    Limited,
    Liquidate,
    Reset,
    RestoreKey,
    RevokeKey,
    Shutdown,
    Target,
    TerminateStream,
)
from k4.runner.sim.trading.ledger import FaultRecord
from k4.runner.sim.trading.sockets import Connection

if TYPE_CHECKING:
    from k4.runner.sim.trading.venue import SimTrading


class Acts:
    """commit: what an `Injector` calls. What concerned nobody is not recorded as a fault."""

    def __init__(self, venue: SimTrading) -> None:
        self._venue = venue

    def commit(self, rule: Act, index: int) -> list[str]:
        """Returns what it struck: connections, accounts, keys, symbols."""
        struck = self._commit(rule)
        if struck:
            self._venue.ledger.fault(
                FaultRecord(
                    time_ms=self._venue.venue_clock.now_ms(),
                    fault=rule.name,
                    rule=index,
                    product=rule.target.product,
                    account=rule.target.account,
                    executed=True,
                    detail=", ".join(struck),
                )
            )
        return struck

    def _commit(self, rule: Act) -> list[str]:
        venue, target = self._venue, rule.target
        match rule:
            case Close():
                return self._end(target, rule.sockets, rule.code, rule.reason, "fault: close")
            case EndOfLife():
                return self._end(target, rule.sockets, 1001, "24 hours", "fault: end of life")
            case Reset():
                found = self._connections(target, rule.sockets)
                for connection in found:
                    connection.abort("fault: reset")
                return _names(found)
            case Shutdown():
                return self._shutdown(rule)
            case ExpireListenKey():
                return venue.streams.expire_keys(
                    target.product, target.account, announced=rule.announced
                )
            case TerminateStream():
                ended = venue.streams.subscribers(target.account)
                for outlet, number in ended:
                    venue.streams.terminate(outlet, number)
                return [f"subscription {number}" for _, number in ended]
            case RevokeKey():
                return self._revoke(target, rule.api_key, revoked=True)
            case RestoreKey():
                return self._revoke(target, "", revoked=False)
            case ClockSkew():
                return self._skew(rule)
            case Limited():
                return self._limit(rule)
            case Liquidate():
                return self._liquidate(target)

    def _connections(self, target: Target, sockets: str) -> list[Connection]:
        return [
            connection
            for connection in self._venue.front.connections
            if target.product in ("", connection.record.product)
            and (sockets == "all" or (connection.record.kind == "api") == (sockets == "api"))
            and not connection.closing
        ]

    def _end(self, target: Target, sockets: str, code: int, reason: str, why: str) -> list[str]:
        found = self._connections(target, sockets)
        for connection in found:
            connection.close(code, reason, why)
        return _names(found)

    def _shutdown(self, rule: Shutdown) -> list[str]:
        venue = self._venue
        body: dict[str, Any] = {"e": "serverShutdown", "E": venue.venue_clock.now_ms()}
        text = msgspec.json.encode({"event": body}).decode()
        found = [
            connection
            for connection in self._connections(rule.target, "api")
            if connection.record.product == "spot"
        ]
        for connection in found:
            connection.send(text)
            venue.clock.call_later(
                rule.grace, connection.close, 1001, "Going away", "fault: shutdown"
            )
        return _names(found)

    def _revoke(self, target: Target, api_key: str, *, revoked: bool) -> list[str]:
        found = [
            key
            for key in self._venue.keys
            if target.account in ("", key.account)
            and api_key in ("", key.api_key)
            and key.revoked != revoked
        ]
        for key in found:
            key.revoked = revoked
        return [f"{key.account}/{key.algorithm}" for key in found]

    def _skew(self, rule: ClockSkew) -> list[str]:
        clock, step = self._venue.venue_clock, int(rule.ms * 1000)
        if rule.which in ("gateway", "both"):
            clock.gateway_us += step
        if rule.which in ("engine", "both"):
            clock.engine_us += step
        return [f"{rule.ms:g} ms"]

    def _limit(self, rule: Limited) -> list[str]:
        venue, now = self._venue, self._venue.venue_clock.now_ms()
        pools = {"spot": venue.spot_pool, "futures": venue.futures_pool}
        product = rule.target.product
        wanted = [
            name for name in pools if product == "" or (product == "spot") == (name == "spot")
        ]
        for name in wanted:
            pools[name].block(rule.status, rule.seconds, now)
        return wanted

    def _liquidate(self, target: Target) -> list[str]:
        venue = self._venue
        return [
            f"{account.name}/{symbol}"
            for product, desk in venue.futures.items()
            if target.product in ("", product)
            for account in venue.spec.accounts
            if target.account in ("", account.name)
            for symbol in desk.liquidate(account.name)
        ]


def _names(connections: list[Connection]) -> list[str]:
    return [f"connection {connection.record.number}" for connection in connections]
