"""Counters as Prometheus text over HTTP, for `runtime.metrics`.

Every row becomes one sample per value: `k4_<type>_<field>{labels, worker="..."}`. The figures are
read from shared memory at each scrape, so no worker does anything for it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from k4.core.config import MetricsConfig
from k4.core.counters import CounterRow, CountersReader, list_counters
from k4.core.errors import K4Error, StoreError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ODD = re.compile(r"[^a-zA-Z0-9_]")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def exposition(workers: Mapping[str, Iterable[CounterRow]]) -> str:
    """The text format of `workers` (worker's name: its rows).

    All samples of a metric stand together under one TYPE line, as the format demands. They are
    untyped: some are counts that restart with the worker, some are gauges.
    """
    metrics: dict[str, list[str]] = {}
    for worker, rows in workers.items():
        for row in rows:
            labels = ",".join(
                f'{_ODD.sub("_", name)}="{value.translate(_ESCAPES)}"'
                for name, value in {**row.labels, "worker": worker}.items()
            )
            for field, value in row.values.items():
                metric = _ODD.sub("_", f"k4_{row.type}_{field}")
                metrics.setdefault(metric, []).append(f"{metric}{{{labels}}} {value}")
    lines = [
        line
        for metric, samples in metrics.items()
        for line in (f"# TYPE {metric} untyped", *samples)
    ]
    return "\n".join([*lines, ""])


def scrape(run: str) -> str:
    """The exposition of all workers whose counters' names begin with `run` and a point."""
    workers: dict[str, list[CounterRow]] = {}
    for name in list_counters(f"{run}."):
        try:
            with CountersReader(name) as reader:
                workers[name.removeprefix(f"{run}.")] = reader.rows()
        except StoreError:  # the worker ended between the listing and the reading
            continue
    return exposition(workers)


@asynccontextmanager
async def serving(config: MetricsConfig, run: str) -> AsyncIterator[int]:
    """Serve `/metrics` while the block runs; yields the port.

    Raises K4Error where the address cannot be bound.
    """

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=scrape(run), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    # The supervisor has its own signals, and no scraper may hold its end up.
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.ip, config.port)
        try:
            await site.start()
        except OSError as error:
            raise K4Error(
                f"cannot serve metrics on {config.ip}:{config.port}: {error.strerror}",
                remedy="free the address or change runtime.metrics",
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
