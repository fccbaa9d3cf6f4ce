"""Configuration to workers, and a worker's plan to modules: the only file that sees md and td.

A group (all streams that write one set of stores; a product of a connection) is never split over
workers. Which groups share a worker is `runtime.processes`: `per-connection` puts an entry's groups
together unless they name different cores, `per-stream` gives each its own, `single` takes
everything into one. A trading entry has one journal, so it is one worker, or a part of the single
one. Trading starts after market data, whose quotes its price collar reads, and stops before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from k4.core.config import Config, ConnectionConfig, ProductConfig, Secret
from k4.core.errors import ConfigError, K4Error, Problem
from k4.core.loading import parse
from k4.core.module import Module
from k4.core.retry import SharedBudget
from k4.md.exchanges import find
from k4.md.module import MdModule
from k4.md.relay import UdpModule
from k4.runner.control import Handover, Part, WorkerPlan
from k4.runner.trading import Trading
from k4.runner.worker import Services, log_to
from k4.td.trading import find_exchange

FACTORY = "k4.runner.compose:modules"


def plan(config: Config) -> list[WorkerPlan]:
    """The workers of a configuration, in their order of start.

    Raises ConfigError for what this build cannot run.
    """
    problems: list[Problem] = []
    for account in config.trading:
        try:
            find_exchange(account.exchange)
        except K4Error as error:
            problems.append(Problem(f"{account.path}.exchange", str(error)))
    for connection in config.connections:
        if connection.udp_receiver is None:
            try:
                find(connection.exchange)
            except K4Error as error:
                problems.append(Problem(f"{connection.path}.exchange", str(error)))
    if problems:
        raise ConfigError(problems)
    workers = [
        worker
        for i, connection in enumerate(config.connections)
        for worker in _of_connection(i, connection, config.processes)
    ]
    workers += [
        WorkerPlan(name=f"td.{account.name}", parts=(Part(role="td", index=i),))
        for i, account in enumerate(config.trading)
    ]
    if config.processes == "single":
        workers = [_merged(config.module_name, workers)]
    return _named_apart(workers)


def modules(handover: Handover, services: Services) -> list[Module]:
    """The modules of one worker, not yet prepared."""
    config = parse(handover.config, handover.config_path)
    log_to(handover, secrets(config))
    return [_module(part, config, handover, services) for part in handover.plan.parts]


def secrets(value: object) -> Iterator[Secret]:
    """Every secret in a configuration, or in a part of it."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from secrets(getattr(value, name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from secrets(part)
    elif isinstance(value, tuple):
        for part in value:
            yield from secrets(part)


def counters_name(run: str, worker: str) -> str:
    """Counters of a worker: letters, digits, points, dashes and underscores only."""
    return re.sub(r"[^A-Za-z0-9_.\-]", "_", f"{run}.{worker}")


def _module(part: Part, config: Config, handover: Handover, services: Services) -> Module:
    if part.role == "td":
        return Trading(config.trading[part.index], clock=services.clock)
    connection = config.connections[part.index]
    if part.role == "udp":
        return UdpModule(connection, clock=services.clock, counters=services.counters)
    limits = find(connection.exchange).limits
    return MdModule(
        connection,
        part.products,
        clock=services.clock,
        counters=services.counters,
        budget=SharedBudget(handover.budget, limits.connect_attempts, limits.connect_period),
        rng=services.rng,
        offline_symbols=handover.again,
    )


def _of_connection(index: int, connection: ConnectionConfig, processes: str) -> list[WorkerPlan]:
    if connection.udp_receiver is not None:
        return [
            WorkerPlan(
                name=connection.exchange,
                parts=(Part(role="udp", index=index),),
                cores=connection.udp_receiver.cores,
                busy_poll=connection.busy_poll,
            )
        ]
    groups = _groups(connection.products, apart=processes == "per-stream")
    whole = len(groups) == 1 and processes != "per-stream"
    return [
        WorkerPlan(
            name=connection.exchange if whole else f"{connection.exchange}.{_names(products)}",
            parts=(Part(role="md", index=index, products=tuple(p.name for p in products)),),
            cores=_cores(products[0].cores, connection),
            busy_poll=connection.busy_poll,
        )
        for products in groups
    ]


def _cores(cores: tuple[int, ...], connection: ConnectionConfig) -> tuple[int, ...]:
    """Those of the groups, and those of the senders, which run on the same thread."""
    senders = (core for target in connection.udp_sender if target.enabled for core in target.cores)
    return tuple(sorted({*cores, *senders}))


def _groups(products: Sequence[ProductConfig], *, apart: bool) -> list[list[ProductConfig]]:
    """Products that share a worker: those with the same cores, or none."""
    if apart:
        return [[product] for product in products]
    by_cores: dict[tuple[int, ...], list[ProductConfig]] = {}
    for product in products:
        by_cores.setdefault(product.cores, []).append(product)
    return list(by_cores.values())


def _names(products: Sequence[ProductConfig]) -> str:
    return "-".join(product.name for product in products)


def _merged(name: str, workers: Sequence[WorkerPlan]) -> WorkerPlan:
    """All in one. It may use every core that any of them named."""
    return WorkerPlan(
        name=name,
        parts=tuple(part for worker in workers for part in worker.parts),
        cores=tuple(sorted({core for worker in workers for core in worker.cores})),
        busy_poll=any(worker.busy_poll for worker in workers),
    )


def _named_apart(workers: Sequence[WorkerPlan]) -> list[WorkerPlan]:
    """Number the workers of connections that would have the same name."""
    seen: dict[str, int] = {}
    named = []
    for worker in workers:
        number = seen[worker.name] = seen.get(worker.name, 0) + 1
        name = f"{worker.name}.{number}" if number > 1 else worker.name
        named.append(msgspec.structs.replace(worker, name=name))
    return named
