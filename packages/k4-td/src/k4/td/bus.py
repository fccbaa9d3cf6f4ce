"""Events to whoever listens, numbered without a gap."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from k4.core.trading import Event

Listener = Callable[[int, Event], None]


class Bus:
    """Listeners are called at once and in order; they must not block or raise."""

    def __init__(self) -> None:
        self.sequence = 0
        self._listeners: list[Listener] = []
        self._streams: list[EventStream] = []
        self.closed = False

    def emit(self, event: Event) -> None:
        self.sequence += 1
        for listener in list(self._listeners):
            listener(self.sequence, event)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(seq, event)` from now on; the result takes it back."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    def stream(self) -> EventStream:
        stream = EventStream(self)
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        """No more events: streams end after what they still hold."""
        self.closed = True
        for stream in self._streams:
            stream.wake()


class EventStream:
    """Every event from its making on, as an async iterator; it ends when the module stops. Nothing
    is dropped: a consumer that does not read holds the events in memory."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._stop = bus.listen(self._push)
        self._open = True

    def _push(self, sequence: int, event: Event) -> None:
        self._events.append(event)
        self._ready.set()

    def wake(self) -> None:
        self._ready.set()

    def close(self) -> None:
        """Stop collecting."""
        self._open = False
        self._stop()
        self._ready.set()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._bus.closed or not self._open:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._events.popleft()
