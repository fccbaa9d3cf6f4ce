"""Logging: one line an event, for a human on a terminal, as JSON elsewhere, never with a secret.

    log = get_logger("k4.md.engine")
    log.warning("line replaced", stream="okx.spot.public", line=2, reason="stall")

Loggers may be made at import. Until `configure` is called, as in a program that merely uses K4 as a
library, warnings and errors go to stderr. `configure` chooses the level and adds a file; a second
call replaces the first. Other libraries' records (standard `logging`, from WARNING up: below that
some print frames, and frames hold keys) take the same way.

structlog's own global configuration is left alone: it belongs to the program that embeds K4.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, MutableMapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger

from k4.core.clock import Clock, SystemClock
from k4.core.config import Secret
from k4.core.errors import K4Error
from k4.core.redact import Redactor

Event = MutableMapping[str, Any]

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_METHOD_LEVELS = {**LEVELS, "warn": logging.WARNING, "exception": logging.ERROR}


def _is_terminal() -> bool:
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


class DailyFile:
    """Appends lines to `<stem>.<date>.log`, a new file every day (UTC).

    One write a line, in append mode, so that lines of processes that share a file never mix.
    Raises OSError where the file cannot be written.
    """

    def __init__(self, directory: str | Path, stem: str) -> None:
        self._stem = Path(directory) / stem
        self._date = ""
        self._fd = -1

    def path(self, date: str) -> Path:
        """The file of a day, `2026-11-22`."""
        return self._stem.with_name(f"{self._stem.name}.{date}.log")

    def write(self, date: str, line: bytes) -> None:
        if date != self._date or self._fd < 0:
            self.close()
            self._stem.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self.path(date), flags, 0o640)
            self._date = date
        os.write(self._fd, line)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Output:
    """Where events end: stderr and, where there is one, the file of the day."""

    def __init__(
        self,
        level: int,
        *,
        file: DailyFile | None = None,
        about: dict[str, str] | None = None,
        redactor: Redactor | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.level = level
        self._file = file
        self._about = about or {}
        self._redactor = redactor or Redactor()
        self._clock = clock or SystemClock()
        self._file_failed = False
        self._human = structlog.dev.ConsoleRenderer(
            colors=_is_terminal(), exception_formatter=structlog.dev.plain_traceback
        )

    def emit(self, level: str, event: Event) -> None:
        """Render one event and write it. Never raises: a full disk must not stop the gateway."""
        now = datetime.fromtimestamp(self._clock.time_ns() / 1e9, UTC)
        stamp = now.isoformat(timespec="microseconds").replace("+00:00", "Z")
        text = self._redactor.value(event.pop("event", ""))
        head = {"timestamp": stamp, "level": level, "event": text, **self._about}
        line = {**head, **{k: self._redactor.named(k, v) for k, v in event.items()}}
        data = msgspec.json.encode(line) + b"\n"
        if self._file is not None:
            try:
                self._file.write(stamp[:10], data)
                self._file_failed = False
            except OSError as error:
                self._say_file_failed(error)
        self._to_stderr(self._human(None, level, line) + "\n" if _is_terminal() else data.decode())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _say_file_failed(self, error: OSError) -> None:
        if not self._file_failed:  # once, until it works again
            self._file_failed = True
            self._to_stderr(f"the log file cannot be written: {error}\n")

    def _to_stderr(self, text: str) -> None:
        if sys.stderr is None or sys.stderr.closed:
            return
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            return  # nobody reads stderr any more, and there is nowhere left to say so


class _Router:
    """The one thing that all loggers write to; its output can be exchanged."""

    def __init__(self) -> None:
        self.default = Output(logging.WARNING)
        self.output = self.default

    def __getattr__(self, method: str) -> Any:
        if method not in _METHOD_LEVELS:
            raise AttributeError(method)
        return lambda event: self.output.emit("error" if method == "exception" else method, event)


class _Bridge(logging.Handler):
    """Takes other libraries' records into the same output."""

    def emit(self, record: logging.LogRecord) -> None:
        event: dict[str, Any] = {"event": record.getMessage(), "logger": record.name}
        if record.exc_info:
            event["exception"] = logging.Formatter().formatException(record.exc_info)
        level = logging.getLevelName(record.levelno).lower()
        _router.output.emit(level if level in LEVELS else "warning", event)


_router = _Router()


class Logging:
    """What `configure` set up; `close` (or the end of `with`) undoes it."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._bridge = _Bridge(max(output.level, logging.WARNING))
        logging.getLogger().addHandler(self._bridge)
        _router.output = output

    def close(self) -> None:
        logging.getLogger().removeHandler(self._bridge)
        self._bridge.close()
        if _router.output is self._output:
            _router.output = _router.default
        self._output.close()

    def __enter__(self) -> Logging:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_current: Logging | None = None


def configure(
    level: str,
    *,
    log_dir: str = "",
    module_name: str,
    worker: str = "",
    secrets: Iterable[Secret] = (),
    clock: Clock | None = None,
) -> Logging:
    """Send this process's log to stderr and, with `log_dir`, to a daily file.

    level: debug, info, warning, error or critical. The file is
    `<log_dir>/<module_name>[.<worker>].<date>.log`, one JSON object a line, the date that of UTC;
    `worker` keeps the processes of one module apart. secrets: texts to be masked wherever they
    turn up. Raises K4Error for an unknown level, and where the directory cannot be made.
    """
    global _current
    if level.lower() not in LEVELS:
        raise K4Error(f"unknown log level {level!r}", remedy=f"use one of {', '.join(LEVELS)}")
    file = None
    if log_dir:
        try:
            Path(log_dir).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise K4Error(
                f"cannot make the log directory {log_dir!r}: {error}",
                remedy="set RazorTrade.log_path or --log-dir to a directory that can be written",
            ) from error
        file = DailyFile(log_dir, _stem(module_name, worker))
    about = {"module": module_name, **({"worker": worker} if worker else {})}
    if _current is not None:
        _current.close()
    _current = Logging(
        Output(
            LEVELS[level.lower()], file=file, about=about, redactor=Redactor(secrets), clock=clock
        )
    )
    return _current


Logger = FilteringBoundLogger
"""What `get_logger` gives."""


def get_logger(name: str) -> Logger:
    """A structlog logger; `name` appears as `logger`. Bind more with `.bind(stream=...)`."""
    logger = structlog.wrap_logger(
        _router,
        processors=[_drop_quiet, structlog.processors.ExceptionRenderer(), _as_argument],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast(FilteringBoundLogger, logger.bind(logger=name))


def _drop_quiet(_: Any, method: str, event: Event) -> Event:
    if _METHOD_LEVELS.get(method, logging.INFO) < _router.output.level:
        raise structlog.DropEvent
    return event


def _as_argument(_: Any, __: str, event: Event) -> tuple[tuple[Event], dict[str, Any]]:
    return (event,), {}


def _stem(module_name: str, worker: str) -> str:
    parts = (re.sub(r"[^\w.-]", "_", part) for part in (module_name, worker) if part)
    return ".".join(parts)
