"""Requests that wait for an answer: request id to deadline. Pure: no timer, no future."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Pending(Generic[_T]):
    """What waits, in the order in which it was sent.

    An id is answered once. An answer to an id that nobody waits for (late after its deadline, or
    never sent) is counted in `strays`.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, tuple[float, _T]] = OrderedDict()
        self.strays = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request_id: str, deadline: float, waiter: _T) -> None:
        """`deadline` is monotonic. Raises KeyError for an id that waits already."""
        if request_id in self._waiting:
            raise KeyError(request_id)
        self._waiting[request_id] = (deadline, waiter)

    def take(self, request_id: str) -> _T | None:
        """Who waits for this answer; from now on nobody."""
        entry = self._waiting.pop(request_id, None)
        if entry is None:
            self.strays += 1
            return None
        return entry[1]

    def discard(self, request_id: str) -> None:
        """Nobody waits any more, whether or not somebody did."""
        self._waiting.pop(request_id, None)

    def expired(self, now: float) -> list[tuple[str, _T]]:
        """Who has waited past the deadline; they wait no more."""
        late = [(key, entry[1]) for key, entry in self._waiting.items() if entry[0] <= now]
        for key, _ in late:
            del self._waiting[key]
        return late

    def drain(self) -> list[tuple[str, _T]]:
        """Everybody, in the order sent: the connection is gone, and the outcome not known."""
        rest = [(key, entry[1]) for key, entry in self._waiting.items()]
        self._waiting.clear()
        return rest
