"""The configuration file: read, checked as a whole, and turned into a `Config`.

`load` and `parse` return a `Config` or raise one `ConfigError` with every problem at once, in file
order. Of the outside world only what a secret names (environment, files), a certificate file and
the mode of a key file are looked at; nothing else is opened before the whole file is valid.

    document      a JSON file whose values know where they stand
    values        what a single value means: cores, URLs, secrets, names, figures
    schema        the exchanges, their sections and endpoints
    connections, products, channels, trading      the parts of the file
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from k4.core.config import Config, ConnectionConfig, MetricsConfig, TradingConfig
from k4.core.errors import ConfigError, Problem
from k4.core.loading.connections import connection, logging
from k4.core.loading.document import Document, Rejected, Section, Value, each
from k4.core.loading.trading import trading
from k4.core.loading.values import choice, integer, ip

__all__ = ["load", "parse"]

PROCESSES = ("per-connection", "per-stream", "single")


def load(path: str | Path) -> Config:
    """The configuration in this file. Raises ConfigError, also where it cannot be read."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such path"
        raise ConfigError([Problem("", f"cannot read {str(path)!r}: {reason}")]) from error
    return parse(data, str(path))


def parse(data: bytes, path: str = "") -> Config:
    """The configuration in these bytes; `path` is where they came from. Raises ConfigError."""
    document = Document(data)
    try:
        section = document.root.section()
    except Rejected as rejected:
        raise ConfigError([Problem("", f"the file {rejected.message}")]) from None
    config = _config(section, path)
    document.raise_problems()
    warnings = document.sorted(document.findings.warnings)
    return msgspec.structs.replace(config, warnings=warnings)


def _config(section: Section, path: str) -> Config:
    name, log_path = logging(section, "k4", "")
    processes, metrics = section.read("runtime", by=_runtime, default=("per-connection", None))
    config = Config(
        path=path,
        module_name=name,
        log_path=log_path,
        processes=processes,
        metrics=metrics,
        connections=_connections(section, name, log_path),
        trading=_trading(section),
    )
    if all(section.raw.get(key, []) == [] for key in ("connections", "trading")):
        section.problem("has nothing to do: give connections or trading")
    section.close()
    return config


def _connections(section: Section, name: str, log_path: str) -> tuple[ConnectionConfig, ...]:
    return section.read(
        "connections",
        by=lambda v: tuple(each(v.items(), lambda item: connection(item, name, log_path))),
        default=(),
    )


def _trading(section: Section) -> tuple[TradingConfig, ...]:
    return section.read("trading", by=lambda v: tuple(each(v.items(), trading)), default=())


def _runtime(value: Value) -> tuple[str, MetricsConfig | None]:
    section = value.section()
    found = (
        section.read("processes", by=choice(*PROCESSES), default="per-connection"),
        section.read("metrics", by=_metrics, default=None),
    )
    section.close()
    return found


def _metrics(value: Value) -> MetricsConfig:
    section = value.section()
    found = MetricsConfig(
        section.read("ip", by=ip, default="127.0.0.1"),
        section.need("port", by=integer(1, 65_535), default=0),
    )
    section.close()
    return found
