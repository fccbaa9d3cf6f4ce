"""What a configuration means before anything runs: `k4-runner check` and `k4-runner symbols`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec

from k4.core.clock import Clock
from k4.core.config import Config, ConnectionConfig, RiskLimits, TradingConfig
from k4.core.enums import Kind
from k4.core.errors import ConfigError, K4Error, Problem
from k4.core.layout import segment_size
from k4.core.loading import load
from k4.core.shm import list_stores
from k4.md.exchanges import find
from k4.md.feed import Exchange, Feed
from k4.md.module import plan
from k4.md.symbols import Resolution, resolve
from k4.runner import compose
from k4.runner.control import WorkerPlan

SHM = "/dev/shm"

Row = dict[str, Any]


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """One connection with everything that only its exchange can say."""

    config: ConnectionConfig
    exchange: Exchange | None = None  # None: market data from another host
    resolution: Resolution | None = None
    feeds: tuple[Feed, ...] = ()


async def check(
    path: Path,
    clock: Clock,
    out: TextIO,
    err: TextIO,
    *,
    offline: bool = False,
    as_json: bool = False,
) -> None:
    """Print the streams and stores of a configuration; nothing is opened.

    offline: ask no venue about symbols. Raises one ConfigError with all that is wrong.
    """
    config = load(path)
    connections = await _resolve(config, clock, offline)
    workers = compose.plan(config)
    rows = [
        *_streams(connections, workers),
        *_receivers(config),
        *_accounts(config, workers),
        *_stores(config),
    ]
    rows.append(memory([row for row in rows if row["type"] == "store"]))
    for warning in _warnings(config, connections):
        err.write(f"warning: {warning}\n")
    if rows[-1]["missing"]:
        err.write(f"warning: {SHM} lacks {rows[-1]['missing']:,} bytes for these stores\n")
    _write(rows, out, as_json, _text)


async def symbols(
    path: Path, clock: Clock, out: TextIO, *, offline: bool = False, as_json: bool = False
) -> None:
    """Print how each symbol maps, with what the venue says of it ('' where it says nothing)."""
    rows: list[Row] = []
    for connection in await _resolve(load(path), clock, offline):
        if connection.resolution is None:
            continue
        for (product, symbol), venue_symbol in connection.resolution.symbols.items():
            known = connection.resolution.instruments.get((product, symbol))
            source = connection.resolution.sources[product]
            rows.append(
                {
                    "type": "symbol",
                    "exchange": connection.config.exchange,
                    "product": product,
                    "symbol": symbol,
                    "venue_symbol": venue_symbol,
                    "tick": known.tick if known else "",
                    "lot": known.lot if known else "",
                    "contract_value": known.contract_value if known else "",
                    "source": source.kind,
                    "date": source.date,
                }
            )
    _write(rows, out, as_json, _symbol_text)


async def _resolve(config: Config, clock: Clock, offline: bool) -> list[Resolved]:
    """Every connection; raises one ConfigError for what is wrong with any of them."""
    found: list[Resolved] = []
    problems: list[Problem] = []
    for connection in config.connections:
        if connection.udp_receiver is not None:
            found.append(Resolved(config=connection))
            continue
        where = f"{connection.path}.exchange"
        try:
            exchange = find(connection.exchange)
            where = connection.path
            resolution = await resolve(exchange, connection, clock=clock, offline=offline)
            feeds = tuple(plan(exchange, connection, resolution))
        except ConfigError as error:
            problems += error.problems
        except K4Error as error:
            problems.append(Problem(where, str(error)))
        else:
            found.append(
                Resolved(config=connection, exchange=exchange, resolution=resolution, feeds=feeds)
            )
    if problems:
        raise ConfigError(problems)
    return found


def _warnings(config: Config, connections: Iterable[Resolved]) -> Iterator[str]:
    yield from map(str, config.warnings)
    for connection in connections:
        if connection.resolution is not None:
            yield from connection.resolution.warnings


def _streams(connections: Sequence[Resolved], workers: Sequence[WorkerPlan]) -> Iterator[Row]:
    for index, connection in enumerate(connections):
        for feed in connection.feeds:
            product = feed.group.partition(".")[2]
            worker = _worker_of(workers, index, product)
            yield {
                "type": "stream",
                "name": feed.name,
                "worker": worker.name,
                "cores": worker.cores,
                "busy_poll": worker.busy_poll,
                "urls": feed.urls,
                "lines": feed.lines,
                "symbols": tuple(dict.fromkeys(channel.symbol for channel in feed.channels)),
                "channels": [
                    {"kind": channel.kind.label, "symbol": channel.symbol, "topic": channel.topic}
                    for channel in feed.channels
                ],
                "fallback": feed.fallback.name if feed.fallback is not None else None,
                "udp": [
                    f"{target.ip}:{target.port}"
                    for target in connection.config.udp_sender
                    if target.enabled
                ],
            }


def _worker_of(workers: Sequence[WorkerPlan], index: int, product: str) -> WorkerPlan:
    return next(
        worker
        for worker in workers
        for part in worker.parts
        if part.role == "md" and part.index == index and product in part.products
    )


def _accounts(config: Config, workers: Sequence[WorkerPlan]) -> Iterator[Row]:
    """Trading: where orders go, under which limits; no key and no secret."""
    for index, entry in enumerate(config.trading):
        worker = next(
            worker
            for worker in workers
            for part in worker.parts
            if part.role == "td" and part.index == index
        )
        yield {
            "type": "trading",
            "name": entry.name,
            "exchange": entry.exchange,
            "worker": worker.name,
            "signs_with": _signer(entry),
            "recv_window": entry.recv_window,
            "socket": entry.socket,
            "cancel_on_disconnect": entry.cancel_on_disconnect,
            "journal": entry.journal,
            "journal_sync": entry.journal_sync,
            "kill_file": entry.kill_file,
            "accounts": [
                {
                    "account_type": account,
                    "rest_url": entry.rest_url.get(account, ""),
                    "ws_api_url": entry.ws_api_url.get(account, ""),
                    "ws_url": entry.ws_url.get(account, ""),
                    "limits": _limits(entry.risk.get(account)),
                }
                for account in entry.accounts
            ],
        }


def _signer(entry: TradingConfig) -> str:
    if entry.ed25519_key_path:
        return "ed25519"
    return "rsa" if entry.rsa_key_path else "hmac"


def _limits(limits: RiskLimits | None) -> Row:
    """Those that are set; none at all where the account trades without."""
    if limits is None:
        return {}
    return {name: value for name, value in msgspec.structs.asdict(limits).items() if value}


def _receivers(config: Config) -> Iterator[Row]:
    for connection in config.connections:
        receiver = connection.udp_receiver
        if receiver is not None:
            yield {
                "type": "receiver",
                "name": connection.exchange,
                "listen": [f"{address.ip}:{address.port}" for address in receiver.listen],
                "cores": receiver.cores,
                "allow_from": receiver.allow_from,
                "key": receiver.key is not None,
            }


def _stores(config: Config) -> Iterator[Row]:
    for connection in config.connections:
        for product in connection.products:
            for kind, name in product.stores.items():
                yield _store(name, kind, product.symbols, connection.md_size)
        if connection.udp_receiver is not None:
            for shelf in connection.udp_receiver.stores:
                for kind, name in shelf.stores.items():
                    yield _store(name, kind, shelf.symbols, connection.md_size)


def _store(name: str, kind: Kind, symbols: Sequence[str], slots: int) -> Row:
    return {
        "type": "store",
        "name": name,
        "kind": kind.label,
        "symbols": symbols,
        "slots": slots,
        "bytes": segment_size(kind, len(symbols), slots),
    }


def memory(stores: Sequence[Row]) -> Row:
    """How much of /dev/shm the stores need, have already, and lack."""
    there = {store.name: store.size for store in list_stores()}
    needed = sum(store["bytes"] for store in stores)
    held = sum(there.get(store["name"], 0) for store in stores)
    disk = os.statvfs(SHM)
    free = disk.f_bavail * disk.f_frsize
    return {
        "type": "memory",
        "needed": needed,
        "held": held,
        "free": free,
        "missing": max(0, needed - held - free),
    }


# -- output -------------------------------------------------------------------------------------


def _write(rows: Iterable[Row], out: TextIO, as_json: bool, text: Any) -> None:
    for row in rows:
        out.write(msgspec.json.encode(row).decode() + "\n" if as_json else text(row) + "\n")


def _text(row: Row) -> str:
    match row["type"]:
        case "stream":
            return _stream_text(row)
        case "receiver":
            cores = _cores(row["cores"])
            return f"receiver {row['name']}: {' '.join(row['listen'])}, {cores}"
        case "trading":
            return _trading_text(row)
        case "store":
            return (
                f"store {row['name']}: {row['kind']} of {' '.join(row['symbols'])}, "
                f"{row['slots']:,} slots, {row['bytes']:,} bytes"
            )
        case _:
            return (
                f"{SHM}: {row['needed']:,} bytes needed, {row['held']:,} of them allocated, "
                f"{row['free']:,} free"
            )


def _stream_text(row: Row) -> str:
    by_kind: dict[str, list[str]] = {}
    for channel in row["channels"]:
        by_kind.setdefault(channel["kind"], []).append(channel["topic"])
    lines = [
        f"stream {row['name']}: {row['lines']} lines, worker {row['worker']}, "
        f"{_cores(row['cores'])}{', busy poll' if row['busy_poll'] else ''}",
        *(f"  url {url}" for url in row["urls"]),
        f"  symbols {' '.join(row['symbols'])}",
        *(f"  {kind} {' '.join(topics)}" for kind, topics in by_kind.items()),
    ]
    if row["fallback"]:
        lines.append(f"  fallback {row['fallback']}")
    if row["udp"]:
        lines.append(f"  udp to {' '.join(row['udp'])}")
    return "\n".join(lines)


def _trading_text(row: Row) -> str:
    leaving = ", orders go with their strategy" if row["cancel_on_disconnect"] else ""
    lines = [
        f"trading {row['name']} on {row['exchange']}: worker {row['worker']}, "
        f"signs with {row['signs_with']}, recv_window {row['recv_window']:g} ms",
        f"  socket {row['socket'] or 'none: no strategy can reach it'}{leaving}",
        f"  journal {row['journal']}, {row['journal_sync']}",
    ]
    if row["kill_file"]:
        lines.append(f"  kill file {row['kill_file']}")
    for account in row["accounts"]:
        limits = ", ".join(
            f"{name} {' '.join(value) if name == 'symbols' else value}"
            for name, value in account["limits"].items()
        )
        urls = (account[name] for name in ("rest_url", "ws_api_url", "ws_url") if account[name])
        lines += [
            f"  {account['account_type']} {' '.join(urls)}",
            f"    limits: {limits or 'none'}",
        ]
    return "\n".join(lines)


def _cores(cores: Sequence[int]) -> str:
    return f"cores {' '.join(map(str, cores))}" if cores else "any core"


def _symbol_text(row: Row) -> str:
    known = ", ".join(
        f"{name} {row[name]}" for name in ("tick", "lot", "contract_value") if row[name]
    )
    source = f"{row['source']} {row['date']}".strip()
    return (
        f"{row['exchange']} {row['product']} {row['symbol']} = {row['venue_symbol']}"
        f"{f', {known}' if known else ''} ({source})"
    )
