"""One worker process: one thread, one event loop, the modules of its plan.

Started by the supervisor as `python -m k4.runner.worker MODULE`; `control.py` describes the
dialogue. In the order of its life: import the module, read the handover, pin, build and prepare the
modules, report, wait for `start`, freeze the heap, run; at `stop` (or SIGTERM, or the supervisor's
death) stop the modules in reverse order and hand in their receipts.

A worker that hangs must not outlive a supervisor that died, so it also winds an alarm clock of the
kernel (`ITIMER_REAL`) with every heartbeat: an event loop that no longer turns ends the process by
SIGALRM, whoever is left to see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, cast, runtime_checkable

import msgspec

from k4.core import affinity
from k4.core.clock import Clock, SystemClock, Timer
from k4.core.config import Secret
from k4.core.counters import CountersWriter
from k4.core.errors import ConfigError, K4Error
from k4.core.log import configure, get_logger
from k4.core.module import Module
from k4.runner.control import Command, Failed, Handover, Ready, Receipt, WorkerEnd

log = get_logger("k4.worker")

FAST = ("uvloop", "picows")  # used where installed; imported while there is time

BEAT_SEC = 0.25
ALARM_PREPARING_SEC = 90  # above the supervisor's own deadline, which has better words
ALARM_RUNNING_SEC = 7  # above the supervisor's deadline for heartbeats
ALARM_STOPPING_SEC = 6


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker lends to its modules."""

    clock: Clock
    counters: CountersWriter
    rng: random.Random


class Factory(Protocol):
    """What `Handover.factory` names."""

    def __call__(self, handover: Handover, services: Services) -> Sequence[Module]: ...


@runtime_checkable
class Killable(Protocol):
    """A module that trades."""

    def kill(self, reason: str) -> None:
        """Cancel everything and refuse new orders, until somebody releases it."""
        ...


class QuietCollector:
    """Collects garbage when the loop has nothing better to do.

    Automatic collection is off, since it would strike in the middle of a burst. A timer that fires
    late says that the loop is busy; collection then waits, though not for ever. Mostly what is
    young is looked through: updates whose copies are awaited live for half a minute, and to walk
    through a million of them takes a third of a second. What has become garbage later waits for the
    rare whole collection.

    collect(generation): `gc.collect`.
    """

    EVERY_SEC = 2.0
    LATE_SEC = 0.001
    LONGEST_WAIT_SEC = 30.0
    WHOLE_SEC = 600.0
    YOUNG, WHOLE = 0, 2

    def __init__(self, clock: Clock, collect: Callable[[int], object] = gc.collect) -> None:
        self._clock = clock
        self._collect = collect
        self._due = 0.0
        self._last = self._whole = clock.monotonic()
        self._timer: Timer | None = None

    def start(self) -> None:
        self._due = self._clock.monotonic() + self.EVERY_SEC
        self._timer = self._clock.call_later(self.EVERY_SEC, self._tick)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        now = self._clock.monotonic()
        if now - self._due < self.LATE_SEC or now - self._last >= self.LONGEST_WAIT_SEC:
            is_due = now - self._whole >= self.WHOLE_SEC
            self._collect(self.WHOLE if is_due else self.YOUNG)
            self._last = now
            self._whole = now if is_due else self._whole
        self.start()


def spin(loop: asyncio.AbstractEventLoop) -> None:
    """Keep the loop from sleeping in its poll: a core is spent on waking up without delay."""
    loop.call_soon(spin, loop)


class Worker:
    """The life of one worker on the running loop."""

    def __init__(self, handover: Handover, end: WorkerEnd, clock: Clock) -> None:
        self._handover = handover
        self._end = end
        self._clock = clock
        self._counters = CountersWriter(handover.counters)
        self._released = asyncio.Event()
        self._stopped = asyncio.Event()
        self._started: Sequence[Module] = ()
        self._killed = False
        self._alarm_sec = ALARM_PREPARING_SEC
        self._beat_timer: Timer | None = None

    async def run(self) -> int:
        """Returns the process's exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        loop.add_reader(self._end.incoming, self._end.pump, self._command)
        self._end.settle(self._command)
        signal.setitimer(signal.ITIMER_REAL, self._alarm_sec)
        self._beat()
        collector = QuietCollector(self._clock)
        modules: list[Module] = []
        try:
            if not await self._prepare(modules):
                return 1
            await self._first(self._released.wait())
            if self._released.is_set() and not self._stopped.is_set():
                self._go(loop, modules, collector)
            await self._stopped.wait()
            return 0
        finally:
            collector.stop()
            await self._finish(loop, modules)

    async def _prepare(self, modules: list[Module]) -> bool:
        """Build and prepare; True where there is something to start."""
        try:
            modules += build(self._handover, self._counters, self._clock)
            for module in modules:
                if not self._stopped.is_set():
                    await self._first(module.prepare())
        except K4Error as error:
            self._end.report(Failed(str(error), isinstance(error, ConfigError)))
            return False
        except Exception as error:  # a defect: the user hears of it, the traceback goes to stderr
            self._end.report(Failed(f"{type(error).__name__}: {error}"))
            raise
        if not self._stopped.is_set():
            self._end.report(Ready())
        return True

    async def _first(self, what: Awaitable[object]) -> None:
        """Wait for `what`, but no longer than until `stop`."""
        task = asyncio.ensure_future(what)
        stopped = asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        else:
            task.result()

    def _go(
        self,
        loop: asyncio.AbstractEventLoop,
        modules: Sequence[Module],
        collector: QuietCollector,
    ) -> None:
        self._alarm_sec = ALARM_RUNNING_SEC
        signal.setitimer(signal.ITIMER_REAL, self._alarm_sec)
        for module in modules:
            module.start()
        gc.collect()
        gc.freeze()
        gc.disable()
        collector.start()
        self._started = modules
        if self._killed:
            self._kill()
        if self._handover.plan.busy_poll:
            spin(loop)
        log.info("running", modules=[module.name for module in modules])

    async def _finish(self, loop: asyncio.AbstractEventLoop, modules: Sequence[Module]) -> None:
        signal.setitimer(signal.ITIMER_REAL, ALARM_STOPPING_SEC)
        self._alarm_sec = 0
        for module in reversed(modules):
            await module.stop()
        for module in modules:
            for stream in module.receipt():
                self._end.report(Receipt(stream))
        if self._beat_timer is not None:
            self._beat_timer.cancel()
        loop.remove_reader(self._end.incoming)
        self._counters.close()

    def _command(self, command: Command) -> None:
        if command.do == "start":
            self._released.set()
        elif command.do == "kill":
            self._killed = True
            self._kill()
        else:
            self._stopped.set()
            # After the supervisor's end of the pipe is closed it would be readable for ever.
            asyncio.get_running_loop().remove_reader(self._end.incoming)

    def _kill(self) -> None:
        """End trading; before the modules are started it is kept for then."""
        for module in self._started:
            if isinstance(module, Killable):
                module.kill("killed by a signal")

    def _beat(self) -> None:
        self._counters.heartbeat()
        if self._alarm_sec == ALARM_RUNNING_SEC:
            signal.setitimer(signal.ITIMER_REAL, self._alarm_sec)
        self._beat_timer = self._clock.call_later(BEAT_SEC, self._beat)


def build(handover: Handover, counters: CountersWriter, clock: Clock) -> Sequence[Module]:
    """The worker's modules, by the factory that the handover names."""
    module, _, function = handover.factory.partition(":")
    factory = cast(Factory, getattr(importlib.import_module(module), function))
    return factory(handover, Services(clock=clock, counters=counters, rng=random.Random()))


def log_to(handover: Handover, secrets: Iterable[Secret] = ()) -> None:
    """Log as the handover says; `secrets` are masked from now on."""
    configure(
        handover.log_level,
        log_dir=handover.log_dir,
        module_name=handover.module_name,
        worker=handover.plan.name,
        secrets=secrets,
    )


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, asyncio's own elsewhere."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def live(handover: Handover, end: WorkerEnd) -> int:
    return await Worker(handover, end, SystemClock()).run()


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides for all
    end = WorkerEnd.take_stdio()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for module in FAST:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    try:
        handover = end.handover()
    except EOFError:
        return 1
    try:
        log_to(handover)
        affinity.pin(handover.plan.cores)
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(live(handover, end))
    except K4Error as error:  # no room for counters, no directory for the log
        end.report(Failed(str(error)))
        return 1


if __name__ == "__main__":
    sys.exit(main())
