"""A trading module as a worker hosts it: what it reports is logged.

Orders and fills are in the journal and go to strategies; the log has what an operator must see
without either: connections, orders that somebody else placed, and everything that went wrong.
"""

from __future__ import annotations

import asyncio
from typing import Any

from k4.core.clock import Clock
from k4.core.config import TradingConfig
from k4.core.log import get_logger
from k4.core.trading import (
    Connected,
    Disconnected,
    Event,
    Fault,
    ForeignOrder,
    KeyRefreshed,
    OrderError,
    OrderUpdate,
)
from k4.td import TdModule, Timing

log = get_logger("k4.trading")


class Trading:
    """Implements `k4.core.module.Module`. timing: the waits of trading, shorter for tests."""

    def __init__(
        self, config: TradingConfig, *, clock: Clock, timing: Timing | None = None
    ) -> None:
        self.name = config.name
        self.td = TdModule(config, clock=clock, timing=timing)
        self.td.bus.listen(self._log)
        self._kills: set[asyncio.Task[list[OrderUpdate]]] = set()

    async def prepare(self) -> None:
        await self.td.prepare()
        if self.td.killed:
            log.warning("trading is killed", trading=self.name, reason=self.td.killed)

    def start(self) -> None:
        self.td.start()

    async def stop(self) -> None:
        await self.td.stop()

    def kill(self, reason: str) -> None:
        """Kill trading without anybody waiting for it; what could not be canceled is logged."""
        task = asyncio.get_running_loop().create_task(self.td.kill(reason))
        self._kills.add(task)
        task.add_done_callback(self._kill_ended)

    def _kill_ended(self, task: asyncio.Task[list[OrderUpdate]]) -> None:
        self._kills.discard(task)
        if task.cancelled():
            return
        failure = task.exception()
        if isinstance(failure, OrderError):
            log.error(
                "killed, but not everything is canceled",
                trading=self.name,
                code=failure.code,
                problem=failure.message,
            )
        elif failure is not None:
            raise failure
        else:
            left = [order.client_order_id for order in task.result() if not order.status.final]
            log.warning("trading is killed", trading=self.name, not_confirmed=left)

    def receipt(self) -> list[dict[str, Any]]:
        return self.td.receipt()

    def _log(self, sequence: int, event: Event) -> None:
        match event:
            case Connected(account_type=account):
                log.info("connected and reconciled", trading=self.name, account=account.value)
            case Disconnected(account_type=account, reason=reason):
                log.warning("disconnected", trading=self.name, account=account.value, why=reason)
            case KeyRefreshed(account_type=account, created=True):
                log.info("new listen key", trading=self.name, account=account.value)
            case ForeignOrder(update=order):
                log.warning(
                    "an order that is not in the journal",
                    trading=self.name,
                    account=order.account_type.value,
                    symbol=order.symbol,
                    order_id=order.order_id,
                    client_order_id=order.client_order_id,
                    status=order.status.value,
                )
            case Fault():
                log.error(
                    "something went wrong",
                    trading=self.name,
                    account=event.account_type,
                    code=event.code,
                    problem=event.message,
                    remedy=event.remedy,
                )
            case _:
                return
