"""The orders of one account in memory: by client id, by the venue's id, and what they expose.

Orders that are final stay for a while, for their late fills; older ones are in the journal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from decimal import Decimal

from k4.core.trading import ZERO, Direction, PositionSide
from k4.td.state import OrderState

KEPT_FINAL = 10_000


class Orders:
    """The current state of every order. Exposure is kept as orders change, so that the risk gate
    does not add up all open orders for each new one."""

    def __init__(self) -> None:
        self._states: dict[str, OrderState] = {}
        self._final: OrderedDict[str, None] = OrderedDict()
        self._by_venue: dict[tuple[str, str], str] = {}
        self._exposure: dict[tuple[str, PositionSide, Direction], Decimal] = {}
        self._counts: dict[str, int] = {}
        self.open_count = 0

    def get(self, client_order_id: str) -> OrderState | None:
        return self._states.get(client_order_id)

    def by_venue_id(self, symbol: str, order_id: str) -> OrderState | None:
        key = self._by_venue.get((symbol, order_id))
        return self._states.get(key) if key is not None else None

    def open(self) -> Iterator[OrderState]:
        """Orders that are not final, foreign ones included."""
        return (state for state in list(self._states.values()) if not state.final)

    def put(self, state: OrderState) -> None:
        """Replace what is known about the order."""
        key = name_of(state)
        before = self._states.get(key)
        if before is not None and not before.final:
            self._count(before, -1)
        self._states[key] = state
        if state.order_id:
            self._by_venue[state.order.symbol, state.order_id] = key
        if not state.final:
            self._final.pop(key, None)
            self._count(state, 1)
            return
        self._final[key] = None
        if len(self._final) > KEPT_FINAL:
            self._forget(self._final.popitem(last=False)[0])

    def exposure(self, symbol: str, side: PositionSide, direction: Direction) -> Decimal:
        """What open orders may still trade that change this position in this direction."""
        return self._exposure.get((symbol, side, direction), ZERO)

    def open_on(self, symbol: str) -> int:
        return self._counts.get(symbol, 0)

    def _count(self, state: OrderState, sign: int) -> None:
        symbol = state.order.symbol
        key = symbol, state.order.position_side, state.order.direction
        self._exposure[key] = self._exposure.get(key, ZERO) + sign * state.exposure
        self._counts[symbol] = self._counts.get(symbol, 0) + sign
        self.open_count += sign

    def _forget(self, key: str) -> None:
        state = self._states.pop(key)
        self._by_venue.pop((state.order.symbol, state.order_id), None)


def name_of(state: OrderState) -> str:
    """What an order is found by: the client id; for foreign ones without, the venue's."""
    return state.order.client_order_id or f"#{state.order_id}"
