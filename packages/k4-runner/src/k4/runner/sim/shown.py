"""What a channel shows of a book: the state that it pushed last, and that state's ledger row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from k4.core.clock import Clock
from k4.core.enums import Kind
from k4.runner.sim.ledger import Series
from k4.runner.sim.market import Instrument, Level

Side = tuple[Level, ...]
_ROW_LEVELS = 5


class View(NamedTuple):
    """One state. number: its id. Times in ms; `engine_ms` differs between any two states."""

    generation: int
    number: int
    event_ms: int
    engine_ms: int
    bids: Side
    asks: Side


class Shown:
    """The best `levels` of an instrument's book, as a series of states.

    number(generation): the id of the next state, called once for each. view, row: of the state
    pushed last; a row may be sent often, to greet or to repeat.
    """

    def __init__(
        self,
        instrument: Instrument,
        series: Series,
        levels: int,
        clock: Clock,
        number: Callable[[int], int],
    ) -> None:
        self._instrument = instrument
        self._series = series
        self._levels = levels
        self._clock = clock
        self._number = number
        self.view = View(-1, 0, 0, 0, (), ())
        self.row = -1

    def advance(self) -> bool:
        """Go on to the book as it is now; False where it looks as it did."""
        book, last = self._instrument, self.view
        bids, asks = tuple(book.bids(self._levels)), tuple(book.asks(self._levels))
        if (book.generation, bids, asks) == (last.generation, last.bids, last.asks):
            return False
        now_ms = self._clock.time_ns() // 1_000_000
        engine_ms = max(book.engine_us // 1000 or now_ms, last.engine_ms + 1)
        self.view = View(
            book.generation,
            self._number(book.generation),
            max(now_ms, engine_ms),
            engine_ms,
            bids,
            asks,
        )
        self.row = self._add(self.view)
        return True

    def _add(self, view: View) -> int:
        head = (view.generation, view.number, view.event_ms * 1000, view.engine_ms * 1000)
        if self._series.key.kind is Kind.BOOKTICKER:
            return self._series.add(*head, *view.bids[0], *view.asks[0], 0, 0)
        figures = [
            level[part]
            for side in (view.bids, view.asks)
            for part in (0, 1)
            for level in side[:_ROW_LEVELS]
        ]
        return self._series.add(*head, *figures, *(0,) * (2 * _ROW_LEVELS))
