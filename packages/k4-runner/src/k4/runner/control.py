"""What a supervisor and its workers say to each other: one JSON object per line over two pipes.

The first line to a worker is its `Handover`. It carries the configuration's text, so that a file
edited meanwhile cannot give two workers two truths, and so that nothing of it is ever visible in
an argument list or an environment. Afterwards the supervisor says `start`, `kill` and `stop`; the
end of its pipe means that it died, which a worker takes for `stop`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Literal

import msgspec


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One module of a worker. index: position in `connections` or `trading`; products: the
    connection's groups that this worker carries.
    """

    role: Literal["md", "udp", "td"]
    index: int
    products: tuple[str, ...] = ()


class WorkerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process: what it hosts, the cores it may use (none: any), how its loop waits."""

    name: str
    parts: tuple[Part, ...] = ()
    cores: tuple[int, ...] = ()
    busy_poll: bool = False


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs to know.

    factory: `module:function` that builds the worker's modules, called as
    `function(handover, services)`. config, config_path: the file's bytes, and where they came
    from. counters: name of the worker's counters object.
    budget: name of the attempt budget that all workers share. again: a process of this worker ran
    before, so what it left on disk (symbols) is fresh enough to come back without asking a venue.
    """

    plan: WorkerPlan
    factory: str
    config: bytes = b""
    config_path: str = ""
    counters: str = ""
    budget: str = ""
    again: bool = False
    module_name: str = "k4"
    log_level: str = "info"
    log_dir: str = ""


class Command(msgspec.Struct, frozen=True):
    """To a worker. `stop` is sent at most once and ends it, also before `start`. `kill` ends
    trading, not the worker.
    """

    do: Literal["start", "stop", "kill"]


class Ready(msgspec.Struct, frozen=True, tag_field="at", tag="ready"):
    """Prepared: everything that can fail before a socket is opened has not failed."""


class Failed(msgspec.Struct, frozen=True, tag_field="at", tag="failed"):
    """Preparation failed; the worker exits. configuration: the file is at fault."""

    error: str
    configuration: bool = False


class Receipt(msgspec.Struct, frozen=True, tag_field="at", tag="receipt"):
    """What one stream did in this worker's life; sent at its orderly end."""

    stream: dict[str, Any]


Report = Ready | Failed | Receipt

MAX_LINE = 1 << 24  # a configuration of thousands of symbols is well below a megabyte

decode_report = msgspec.json.Decoder(Report).decode
decode_command = msgspec.json.Decoder(Command).decode
decode_handover = msgspec.json.Decoder(Handover).decode


def encode(message: msgspec.Struct) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


class WorkerEnd:
    """The worker's end of the two pipes, taken over from stdin and stdout.

    Whatever the process prints later goes to stderr, so that a stray `print` cannot be mistaken
    for a report.
    """

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming = incoming
        self._outgoing = outgoing
        self._pending = b""

    @classmethod
    def take_stdio(cls) -> WorkerEnd:
        outgoing = os.dup(1)
        os.dup2(2, 1)
        return cls(0, outgoing)

    def handover(self) -> Handover:
        """The first line; blocks until it is there. Raises EOFError where the supervisor is
        gone.
        """
        while b"\n" not in self._pending:
            data = os.read(self.incoming, 1 << 16)
            if not data or len(self._pending) > MAX_LINE:
                raise EOFError("the supervisor closed its pipe before the handover")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return decode_handover(line)

    def pump(self, command: Callable[[Command], None]) -> None:
        """Read what is there and pass it on; the supervisor's death becomes `stop`."""
        data = os.read(self.incoming, 1 << 16)
        if not data:
            command(Command("stop"))
        self._pending += data
        self.settle(command)

    def settle(self, command: Callable[[Command], None]) -> None:
        """Pass on the commands that are already here, such as those that came with the handover."""
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            command(decode_command(line))

    def report(self, message: Report) -> None:
        """Tell the supervisor; silently lost where it died, since nobody is left to hear."""
        line = encode(message)
        with contextlib.suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._outgoing, line) :]
