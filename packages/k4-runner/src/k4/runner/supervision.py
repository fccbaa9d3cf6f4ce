"""Which worker to start, release, stop or kill, and when: the supervisor's policy, without a
process.

Time comes in as `now` (seconds of any steady clock), actions come out as values, so the whole life
of a gateway is tested with literals. The rules:

- Start: all workers prepare at once; only when the last is ready are all released (`Go`). One that
  fails or exits before that, or is not ready in time, ends the run with status 1.
- Afterwards a worker that exits is started again with backoff, and released as soon as it is ready;
  it may fail to prepare as often as it must, since the others are worth keeping. One that was
  released and stops beating is killed, and so joins those that exited. A worker that ran for
  `stable` seconds begins its backoff anew.
- Stop: in reverse order of start, each asked when the one before is gone or has had its share of
  the time; whoever is left at the deadline is killed. A second stop kills at once and makes the
  status 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum

import msgspec


class Spawn(msgspec.Struct, frozen=True):
    """Start a process for this worker."""

    worker: str


class Go(msgspec.Struct, frozen=True):
    """Let a prepared worker open its sockets."""

    worker: str


class Stop(msgspec.Struct, frozen=True):
    """Ask a worker to stop in order."""

    worker: str


class Kill(msgspec.Struct, frozen=True):
    """End a worker's process; `why` is for the log."""

    worker: str
    why: str


class End(msgspec.Struct, frozen=True):
    """Nothing is left to supervise: leave with this exit status."""

    status: int


Action = Spawn | Go | Stop | Kill | End


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. prepare: from spawn to ready. beat: without a heartbeat, from the release. stop:
    from the signal to the killing, below the five that a stop may take. stable: see the module.
    """

    prepare: float = 60.0
    beat: float = 5.0
    stop: float = 4.0
    stable: float = 60.0


class State(Enum):
    """Where one worker is in its life."""

    PREPARING = "preparing"
    READY = "ready"  # waits for the others
    RUNNING = "running"
    WAITING = "waiting"  # for its restart
    DYING = "dying"  # killed, not yet gone
    STOPPING = "stopping"  # asked to stop
    GONE = "gone"

    @property
    def alive(self) -> bool:
        """There is a process."""
        return self not in (State.WAITING, State.GONE)


class Worker:
    """One worker: its state, when that state is overdue, how often it was started."""

    def __init__(self, name: str, delays: Iterator[float]) -> None:
        self.name = name
        self.state = State.GONE
        self.deadline: float | None = None
        self.since = 0.0
        self.starts = 0
        self.delays = delays

    def enter(self, state: State, now: float, deadline: float | None) -> None:
        self.state = state
        self.since = now
        self.deadline = deadline


class Supervision:
    """The policy over `workers`, in their order of start.

    backoff: makes the endless sequence of restart delays of one worker.
    """

    def __init__(
        self,
        workers: Sequence[str],
        backoff: Callable[[], Iterator[float]],
        timing: Timing | None = None,
    ) -> None:
        self._backoff = backoff
        self._timing = timing or Timing()
        self.workers = {name: Worker(name, backoff()) for name in workers}
        self._released = False
        self._failure = 1
        self._status = 0
        self._stop_by: float | None = None
        self._ended = False

    @property
    def stopping(self) -> bool:
        return self._stop_by is not None

    def due(self) -> float | None:
        """When `tick` has something to do, None if never."""
        deadlines = [w.deadline for w in self.workers.values() if w.deadline is not None]
        return min(deadlines, default=None)

    # -- what happens ---------------------------------------------------------------------------

    def begin(self, now: float) -> list[Action]:
        return [self._spawn(worker, now) for worker in self.workers.values()]

    def ready(self, name: str, now: float) -> list[Action]:
        """The worker is prepared."""
        worker = self.workers[name]
        if worker.state is not State.PREPARING:
            return []
        worker.enter(State.READY, now, None)
        if self._released:
            return [self._go(worker, now)]
        if any(w.state is not State.READY for w in self.workers.values()):
            return []
        self._released = True
        return [self._go(w, now) for w in self.workers.values()]

    def beat(self, name: str, now: float) -> None:
        """The worker showed that its loop turns."""
        worker = self.workers[name]
        if worker.state is State.RUNNING:
            worker.deadline = now + self._timing.beat

    def failed(self, name: str, status: int) -> None:
        """The worker cannot be prepared and is about to exit; the run would end with `status`."""
        if self.workers[name].state is State.PREPARING:
            self._failure = max(self._failure, status)

    def exited(self, name: str, now: float) -> list[Action]:
        """The worker's process is gone."""
        worker = self.workers[name]
        if self.stopping:
            worker.enter(State.GONE, now, None)
            return self._stop_next(now)
        if not self._released:
            worker.enter(State.GONE, now, None)
            return self._fail(now)
        if worker.state is State.RUNNING and now - worker.since >= self._timing.stable:
            worker.delays = self._backoff()
        worker.enter(State.WAITING, now, now + next(worker.delays))
        return []

    def stop(self, now: float) -> list[Action]:
        """The first call stops in order, the second at once."""
        if self.stopping:
            self._status = 1
            return self._kill_all(now, "stopped twice")
        self._stop_by = now + self._timing.stop
        for worker in self.workers.values():
            if not worker.state.alive:
                worker.enter(State.GONE, now, None)
            else:
                worker.deadline = None
        return self._stop_next(now)

    def tick(self, now: float) -> list[Action]:
        """Act on every deadline that has passed."""
        if self._stop_by is not None and now >= self._stop_by:
            return self._kill_all(now, "did not stop in time")
        actions: list[Action] = []
        for worker in self.workers.values():
            if worker.deadline is not None and now >= worker.deadline:
                worker.deadline = None
                actions += self._overdue(worker, now)
        return actions

    # -- what follows from it -------------------------------------------------------------------

    def _overdue(self, worker: Worker, now: float) -> list[Action]:
        match worker.state:
            case State.WAITING:
                return [self._spawn(worker, now)]
            case State.PREPARING:
                worker.enter(State.DYING, now, None)
                why = f"was not ready in {self._timing.prepare:g} s"
                return [Kill(worker.name, why)]
            case State.RUNNING:
                worker.enter(State.DYING, now, None)
                return [Kill(worker.name, f"sent no heartbeat for {self._timing.beat:g} s")]
            case State.STOPPING:
                worker.deadline = self._stop_by
                return self._stop_next(now)
            case _:
                return []

    def _spawn(self, worker: Worker, now: float) -> Action:
        worker.starts += 1
        worker.enter(State.PREPARING, now, now + self._timing.prepare)
        return Spawn(worker.name)

    def _go(self, worker: Worker, now: float) -> Action:
        worker.enter(State.RUNNING, now, now + self._timing.beat)
        return Go(worker.name)

    def _fail(self, now: float) -> list[Action]:
        """Give the start up: nobody has opened a socket, so nobody needs an order to stop in."""
        self._status = self._failure
        self._stop_by = now + self._timing.stop
        actions: list[Action] = []
        for worker in self.workers.values():
            if worker.state.alive:
                worker.enter(State.STOPPING, now, self._stop_by)
                actions.append(Stop(worker.name))
        return actions or self._stop_next(now)

    def _stop_next(self, now: float) -> list[Action]:
        """Ask the last worker that is still to be asked, unless the one asked before has time."""
        assert self._stop_by is not None
        alive = [w for w in self.workers.values() if w.state.alive]
        if not alive:
            if self._ended:
                return []
            self._ended = True
            return [End(self._status)]
        if any(w.state is State.STOPPING and w.deadline != self._stop_by for w in alive):
            return []
        unasked = [w for w in alive if w.state not in (State.STOPPING, State.DYING)]
        if not unasked:
            return []
        share = (self._stop_by - now) / 2 / len(unasked)
        unasked[-1].enter(State.STOPPING, now, now + share)
        return [Stop(unasked[-1].name)]

    def _kill_all(self, now: float, why: str) -> list[Action]:
        actions: list[Action] = []
        for worker in self.workers.values():
            if worker.state.alive and worker.state is not State.DYING:
                worker.enter(State.DYING, now, None)
                actions.append(Kill(worker.name, why))
        return actions
