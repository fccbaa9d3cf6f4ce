"""From a configuration file to a supervised run: what `k4-runner run` does.

The file is read once, here. Workers get its text over their pipes.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from k4.core import counters
from k4.core.clock import SystemClock
from k4.core.config import Config
from k4.core.counters import CountersReader, list_counters
from k4.core.errors import ConfigError, Problem, StoreMissing
from k4.core.loading import parse
from k4.core.log import configure, get_logger
from k4.core.retry import SharedBudget, backoff
from k4.runner import compose
from k4.runner.control import Handover, Receipt
from k4.runner.supervise import Supervisor

log = get_logger("k4.gateway")

RESTART_CAP_SEC = 10.0


def run(path: Path, *, log_level: str = "info", log_dir: str = "") -> int:
    """Run the gateway of a configuration until a signal; returns the exit status."""
    try:
        text = path.read_bytes()
    except OSError as error:
        problem = Problem("", f"cannot read {str(path)!r}: {error.strerror}")
        raise ConfigError([problem]) from error
    config = parse(text, str(path))
    log_dir = log_dir or config.log_path
    plans = compose.plan(config)
    configure(
        log_level,
        log_dir=log_dir,
        module_name=config.module_name,
        secrets=compose.secrets(config),
    )
    for warning in config.warnings:
        log.warning("configuration", path=warning.path, problem=warning.message)
    name = compose.counters_name(config.module_name, str(os.getpid()))
    handovers = [
        Handover(
            plan=plan,
            factory=compose.FACTORY,
            config=text,
            config_path=str(path),
            counters=compose.counters_name(name, plan.name),
            budget=f"k4b.{name}",
            module_name=config.module_name,
            log_level=log_level,
            log_dir=log_dir,
        )
        for plan in plans
    ]
    try:
        return asyncio.run(_supervise(config, handovers, name))
    finally:
        SharedBudget.remove(f"k4b.{name}")
        for left in list_counters(name):  # by workers that had to be killed
            (counters.DIRECTORY / f"{counters.PREFIX}{left}").unlink(missing_ok=True)


async def _supervise(config: Config, handovers: Sequence[Handover], name: str) -> int:
    rng = random.Random()
    supervisor = Supervisor(
        handovers,
        clock=SystemClock(),
        backoff=lambda: backoff(rng, cap=RESTART_CAP_SEC),
        pulse=_pulse,
        receipt=_print_receipt,
        complain=_complain,
    )
    if config.metrics is None:
        return await supervisor.run()
    from k4.runner.metrics import serving  # an HTTP server, loaded where it is wanted

    async with serving(config.metrics, name):
        return await supervisor.run()


def _pulse(name: str) -> CountersReader | None:
    try:
        return CountersReader(name)
    except StoreMissing:
        return None


def _print_receipt(receipt: Receipt) -> None:
    try:
        sys.stdout.write(msgspec.json.encode(receipt.stream).decode() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads receipts; the stop goes on
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends, which is now


def _complain(text: str) -> None:
    sys.stderr.write(f"k4-runner: {text}\n")
    sys.stderr.flush()
