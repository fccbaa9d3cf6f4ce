"""Conditional futures orders: kept apart from the book until a price triggers them.

Source: Binance USD-M algo order documentation (December 2025, changes to October 2026).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import msgspec

from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.orders import Order

Json = dict[str, Any]
ZERO = Decimal(0)
KINDS = ("STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET")
MOST_OPEN = 200
_TRAILING = "TRAILING_STOP_MARKET"


class AlgoOrder(msgspec.Struct, eq=False, kw_only=True):
    """trigger: 0 for a trailing stop, which has `callback` (percent) and `activate` instead.
    extreme: the best price since it was activated."""

    number: int
    account: str
    symbol: str
    client_id: str
    buy: bool
    kind: str
    tif: str
    quantity: Decimal
    price: Decimal
    trigger: Decimal
    created_ms: int
    position_side: str = "BOTH"
    working_type: str = "CONTRACT_PRICE"
    close_position: bool = False
    reduce_only: bool = False
    price_protect: bool = False
    prevention: str = "EXPIRE_MAKER"
    callback: Decimal = ZERO
    activate: Decimal = ZERO
    extreme: Decimal = ZERO
    status: str = "NEW"
    updated_ms: int = 0
    triggered_ms: int = 0
    order: Order | None = None
    reject: str = ""

    @property
    def open(self) -> bool:
        return self.status == "NEW"

    def reached(self, price: Decimal) -> bool:
        """Does the price trigger it? A trailing stop remembers its best price on the way."""
        if self.kind == _TRAILING:
            return self._trails(price)
        rises = self.buy == self.kind.startswith("STOP")
        return price >= self.trigger if rises else price <= self.trigger

    def _trails(self, price: Decimal) -> bool:
        if not self.extreme:
            waits = price > self.activate if self.buy else price < self.activate
            if self.activate and waits:
                return False
            self.extreme = price
        best = min if self.buy else max
        self.extreme = best(self.extreme, price)
        share = self.callback / 100
        if self.buy:
            return price >= self.extreme * (1 + share)
        return price <= self.extreme * (1 - share)


class AlgoBook:
    """The conditional orders of one product. place: puts the order that follows into the market;
    told: hears of each change."""

    def __init__(
        self,
        place: Callable[[AlgoOrder], Order],
        told: Callable[[AlgoOrder], None],
        now_ms: Callable[[], int],
    ) -> None:
        self.orders: dict[int, AlgoOrder] = {}
        self._place = place
        self._told = told
        self._now_ms = now_ms

    def open(self, account: str, symbol: str = "") -> list[AlgoOrder]:
        return [
            order
            for order in self.orders.values()
            if order.open and order.account == account and symbol in ("", order.symbol)
        ]

    def find(self, account: str, number: int | None, client_id: str) -> AlgoOrder | None:
        for order in reversed(self.orders.values()):
            same = order.number == number if number is not None else order.client_id == client_id
            if order.account == account and same:
                return order
        return None

    def add(self, order: AlgoOrder) -> None:
        self.orders[order.number] = order
        self._change(order, "NEW")

    def cancel(self, order: AlgoOrder) -> None:
        self._change(order, "CANCELED")

    def check(self, symbol: str, price: Callable[[str], Decimal]) -> None:
        """Trigger what the price has reached. price(working_type): now."""
        for order in list(self.orders.values()):
            if order.open and order.symbol == symbol and order.reached(price(order.working_type)):
                self._trigger(order)

    def ended(self, orders: Iterable[Order]) -> None:
        """These orders are final: what they came from is finished."""
        numbers = {order.number for order in orders}
        for algo in self.orders.values():
            if algo.status == "TRIGGERED" and algo.order and algo.order.number in numbers:
                self._change(algo, "FINISHED")

    def _trigger(self, algo: AlgoOrder) -> None:
        algo.triggered_ms = self._now_ms()
        self._change(algo, "TRIGGERING")
        try:
            algo.order = self._place(algo)
        except VenueError as error:
            algo.reject = error.message
            self._change(algo, "REJECTED")
            return
        self._change(algo, "TRIGGERED")
        if not algo.order.open:
            self._change(algo, "FINISHED")

    def _change(self, algo: AlgoOrder, status: str) -> None:
        algo.status = status
        algo.updated_ms = self._now_ms()
        self._told(algo)


def answer(algo: AlgoOrder) -> Json:
    return {
        "algoId": algo.number,
        "clientAlgoId": algo.client_id,
        "algoType": "CONDITIONAL",
        "orderType": algo.kind,
        "symbol": algo.symbol,
        "side": "BUY" if algo.buy else "SELL",
        "positionSide": algo.position_side,
        "timeInForce": algo.tif,
        "quantity": f"{algo.quantity:f}",
        "algoStatus": algo.status,
        "triggerPrice": f"{algo.trigger:f}",
        "price": f"{algo.price:f}",
        "icebergQuantity": None,
        "selfTradePreventionMode": algo.prevention,
        "workingType": algo.working_type,
        "priceMatch": "NONE",
        "closePosition": algo.close_position,
        "priceProtect": algo.price_protect,
        "reduceOnly": algo.reduce_only,
        "activatePrice": f"{algo.activate:f}" if algo.activate else "",
        "callbackRate": f"{algo.callback:f}" if algo.callback else "",
        "createTime": algo.created_ms,
        "updateTime": algo.updated_ms,
        "triggerTime": algo.triggered_ms,
        "goodTillDate": 0,
    }


def event(algo: AlgoOrder, now_ms: int) -> Json:
    order = algo.order
    return {
        "e": "ALGO_UPDATE",
        "T": algo.updated_ms,
        "E": now_ms,
        "o": {
            "caid": algo.client_id,
            "aid": algo.number,
            "at": "CONDITIONAL",
            "o": algo.kind,
            "s": algo.symbol,
            "S": "BUY" if algo.buy else "SELL",
            "ps": algo.position_side,
            "f": algo.tif,
            "q": f"{algo.quantity:f}",
            "X": algo.status,
            "ai": str(order.number) if order else "",
            "ap": f"{order.average:f}" if order and order.executed else "0",
            "aq": f"{order.executed:f}" if order else "0",
            "act": order.kind if order else "",
            "tp": f"{algo.trigger:f}",
            "p": f"{algo.price:f}",
            "V": algo.prevention,
            "wt": algo.working_type,
            "pm": "NONE",
            "cp": algo.close_position,
            "pP": algo.price_protect,
            "R": algo.reduce_only,
            "tt": algo.triggered_ms,
            "gtd": 0,
            "rm": algo.reject,
        },
    }
