"""The supervisor: worker processes, signals and pipes under the policy of `supervision.py`.

It holds no venue socket and does no work of its own; it starts processes, reads their reports,
watches their heartbeats in shared memory and waits.

One process more than there are workers stands by, its modules imported and nothing else: when a
worker dies on a machine that is busy, starting Python is most of what its return would take.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from k4.core.clock import Clock, Timer
from k4.core.log import get_logger
from k4.runner.control import (
    MAX_LINE,
    Command,
    Failed,
    Handover,
    Ready,
    Receipt,
    Report,
    decode_report,
    encode,
)
from k4.runner.supervision import Action, End, Go, Kill, Spawn, Stop, Supervision, Timing

log = get_logger("k4.supervisor")

POLL_SEC = 0.25
SPARE_AFTER_SEC = 2.0  # not while a worker that just came back catches up


class Pulse(Protocol):
    """Reads the heartbeat that a worker leaves in its counters."""

    @property
    def heartbeat_ns(self) -> int:
        """Wall clock of the last heartbeat."""
        ...

    def close(self) -> None: ...


class Child:
    """One worker process and the supervisor's ends of its pipes.

    It imports the module `preload` and then waits for its handover. A worker keeps its pipe open
    until it dies, so the pipe's end is its death: no thread waits for it, and every report that it
    wrote is read first.
    """

    def __init__(self, preload: str, gone: Callable[[int], None]) -> None:
        self._heard: Callable[[Report], None] | None = None
        self._gone = gone
        self._pending = b""
        self._process = subprocess.Popen(
            (sys.executable, "-m", "k4.runner.worker", preload),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            process_group=0,  # a terminal's interrupt reaches the supervisor alone
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        asyncio.get_running_loop().add_reader(self._stdout.fileno(), self._readable)

    def hand_over(
        self,
        handover: Handover,
        heard: Callable[[Report], None],
        gone: Callable[[int], None],
    ) -> None:
        """Make it a worker."""
        self._heard = heard
        self._gone = gone
        self._send(handover)

    @property
    def pid(self) -> int:
        return self._process.pid

    def command(self, command: Command) -> None:
        self._send(command)

    def kill(self) -> None:
        self._process.kill()

    def _send(self, message: msgspec.Struct) -> None:
        """Write one line; a worker that is already dead is reported by its pipe's end."""
        line = encode(message)
        with contextlib.suppress(BrokenPipeError):
            while line:
                line = line[self._stdin.write(line) :]

    def _readable(self) -> None:
        data = os.read(self._stdout.fileno(), 1 << 16)
        if not data:
            self._buried()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            if self._heard is not None:
                self._heard(decode_report(line))
        if len(self._pending) > MAX_LINE:
            self.kill()

    def _buried(self) -> None:
        asyncio.get_running_loop().remove_reader(self._stdout.fileno())
        self._stdin.close()
        self._stdout.close()
        self._gone(self._process.wait())


class Supervisor:
    """Runs workers until a signal or a failed start.

    pulse(name of counters): opens a worker's heartbeat, or returns None while there is none.
    receipt: takes each stream's receipt. complain: takes a sentence for the user's eyes.
    """

    def __init__(
        self,
        handovers: Sequence[Handover],
        *,
        clock: Clock,
        backoff: Callable[[], Iterator[float]],
        pulse: Callable[[str], Pulse | None],
        receipt: Callable[[Receipt], None],
        complain: Callable[[str], None],
        timing: Timing | None = None,
    ) -> None:
        self._handovers = {handover.plan.name: handover for handover in handovers}
        self._clock = clock
        self._open_pulse = pulse
        self._receipt = receipt
        self._complain = complain
        self._policy = Supervision(list(self._handovers), backoff, timing)
        self._children: dict[str, Child] = {}
        self._owed_kill: set[str] = set()
        self._pulses: dict[str, Pulse] = {}
        self._beats: dict[str, int] = {}
        self._spare: Child | None = None
        self._preload = handovers[0].factory.partition(":")[0] if handovers else ""
        self._timer: Timer | None = None
        self._spare_timer: Timer | None = None
        self._end: asyncio.Future[int] | None = None
        self._dismissed: asyncio.Future[int] | None = None

    def pids(self) -> dict[str, int]:
        """The processes that are alive now, by worker."""
        return {name: child.pid for name, child in self._children.items()}

    @property
    def spare_pid(self) -> int:
        """The process that stands by, 0 while there is none."""
        return self._spare.pid if self._spare is not None else 0

    async def run(self) -> int:
        """Supervise until the end; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        handlers = {
            signal.SIGINT: self.stop,
            signal.SIGTERM: self.stop,
            signal.SIGUSR1: self.kill_trading,
        }
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
            handlers[signal.SIGHUP] = self.stop
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            self._act(self._policy.begin(self._clock.monotonic()))
            self._arm()
            status = await self._end
            await self._dismiss_spare()
            return status
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)
            for timer in (self._timer, self._spare_timer):
                if timer is not None:
                    timer.cancel()
            for name in list(self._pulses):
                self._forget(name)

    def stop(self) -> None:
        """What a signal does: stop in order, the second time at once."""
        log.info("stopping", workers=list(self._children))
        self._act(self._policy.stop(self._clock.monotonic()))
        self._arm()

    def kill_trading(self) -> None:
        """What SIGUSR1 does: every trading module cancels everything and refuses new orders. One
        that is down just now hears of it when it comes back.
        """
        trading = [
            name
            for name, handover in self._handovers.items()
            if any(part.role == "td" for part in handover.plan.parts)
        ]
        log.warning("killing trading", workers=trading)
        for name in trading:
            if name in self._children:
                self._children[name].command(Command("kill"))
            else:
                self._owed_kill.add(name)

    # -- doing what the policy says -------------------------------------------------------------

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(worker):
                    self._spawn(worker)
                case Go(worker):
                    self._children[worker].command(Command("start"))
                    self._want_spare()
                case Stop(worker):
                    self._children[worker].command(Command("stop"))
                case Kill(worker, why):
                    log.error("killing worker", worker=worker, why=why)
                    self._children[worker].kill()
                case End(status):
                    assert self._end is not None
                    self._end.set_result(status)

    def _spawn(self, name: str) -> None:
        def heard(report: Report) -> None:
            self._heard(name, report)

        def gone(status: int) -> None:
            self._gone(name, status)

        again = self._policy.workers[name].starts > 1
        handover = msgspec.structs.replace(self._handovers[name], again=again)
        child, self._spare = self._spare or self._child(), None
        child.hand_over(handover, heard, gone)
        self._children[name] = child
        if name in self._owed_kill:
            self._owed_kill.discard(name)
            child.command(Command("kill"))
        log.info("worker started", worker=name, pid=self._children[name].pid)

    # -- the process that stands by -------------------------------------------------------------

    def _child(self) -> Child:
        return Child(self._preload, self._spare_gone)

    def _want_spare(self) -> None:
        if self._spare is None and self._spare_timer is None:
            self._spare_timer = self._clock.call_later(SPARE_AFTER_SEC, self._make_spare)

    def _make_spare(self) -> None:
        self._spare_timer = None
        if not self._policy.stopping:
            self._spare = self._child()

    def _spare_gone(self, status: int) -> None:
        """It died or was dismissed; the next release of a worker asks for another."""
        self._spare = None
        if self._dismissed is not None and not self._dismissed.done():
            self._dismissed.set_result(status)

    async def _dismiss_spare(self) -> None:
        if self._spare is not None:
            self._dismissed = asyncio.get_running_loop().create_future()
            self._spare.kill()  # it holds nothing
            await self._dismissed

    # -- telling the policy what happens --------------------------------------------------------

    def _heard(self, name: str, report: Report) -> None:
        match report:
            case Ready():
                self._act(self._policy.ready(name, self._clock.monotonic()))
            case Failed(error, configuration):
                self._complain(f"{name}: {error}")
                self._policy.failed(name, 2 if configuration else 1)
            case Receipt():
                self._receipt(report)
        self._arm()

    def _gone(self, name: str, status: int) -> None:
        pid = self._children.pop(name).pid
        self._forget(name)
        say = log.info if self._policy.stopping else log.error
        say("worker ended", worker=name, pid=pid, status=status)
        self._act(self._policy.exited(name, self._clock.monotonic()))
        self._arm()

    def _poll(self) -> None:
        now = self._clock.monotonic()
        for name in self._children:
            if self._beats_anew(name):
                self._policy.beat(name, now)
        self._act(self._policy.tick(now))
        self._arm()

    def _beats_anew(self, name: str) -> bool:
        pulse = self._pulses.get(name) or self._open_pulse(self._handovers[name].counters)
        if pulse is None:
            return False
        self._pulses[name] = pulse
        before, self._beats[name] = self._beats.get(name, 0), pulse.heartbeat_ns
        return self._beats[name] != before

    def _forget(self, name: str) -> None:
        """Close the pulse of a process that is gone: its successor may use another object."""
        pulse = self._pulses.pop(name, None)
        if pulse is not None:
            pulse.close()

    def _arm(self) -> None:
        """Be back for the next heartbeats, or for a deadline that comes sooner."""
        if self._timer is not None:
            self._timer.cancel()
        due = self._policy.due()
        wait = POLL_SEC if due is None else due - self._clock.monotonic()
        self._timer = self._clock.call_later(min(max(wait, 0.0), POLL_SEC), self._poll)
