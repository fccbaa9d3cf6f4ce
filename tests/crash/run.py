"""One run: a venue, a gateway that dies by plan, strategies that go on, and the account of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from tests.chaos.clock import FastClock, Pace

from k4.core.trading import GatewayError, OrderError
from k4.runner.sim.trading.spec import AccountSpec, KeySpec, Limits, TradingSpec
from k4.runner.sim.trading.venue import SimTrading

from .account import ACCOUNT, Word, disagreements, judge, read_journal
from .faults import SCRIPTS
from .points import POINTS, RARE, TIMED, Death
from .traders import ASK, BID, SYMBOLS, Phone, Trader
from .worker import PLAN, Plan

ROOT = Path(__file__).parents[2]
JOURNAL = "journal.db"
DEEP = "1000000"  # of the market's own size at its bid and offer

ACTS = 25  # that every strategy does at least
MOST_SEC = 12.0  # of real time that a run waits for its deaths
SETTLE_SEC = 40.0  # of real time until everything must be settled
STOP_SEC = 10.0
KEY_REFRESH_SEC = 10.0  # of the venue's time: the keepalive's interval


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What one run does. seed: of everything in it. cancels: orders go with their strategy."""

    number: int
    seed: int
    deaths: tuple[Death, ...]
    script: str
    algorithm: str
    cancels: bool
    order: str
    sync: str


class Result(msgspec.Struct, kw_only=True):
    """What came of it. broken: a sentence for each broken promise."""

    case: Case
    died: int
    orders: int
    trades: int
    requests: int
    unknown: int
    faults: dict[str, int]
    broken: list[str]


def cases(runs: int, seed: int) -> Iterator[Case]:
    """Every point in turn, the fault scripts in turn beside them, out of step."""
    rng = Random(seed)
    places = [*POINTS, *[TIMED] * (len(POINTS) // 4)]
    scripts = list(SCRIPTS)
    rng.shuffle(places)
    rng.shuffle(scripts)
    for number in range(runs):
        own = Random(f"{seed}/{number}")
        deaths = [_death(places[number % len(places)], own)]
        while own.random() < 0.35 and len(deaths) < 3:
            deaths.append(_death(own.choice([TIMED, *POINTS]), own))
        yield Case(
            number=number,
            seed=own.randrange(1 << 30),
            deaths=tuple(deaths),
            script=scripts[(number + number // len(places)) % len(scripts)],
            algorithm=own.choice(("hmac", "ed25519")),
            cancels=own.random() < 0.25,
            order=own.choice(("answer", "event", "random")),
            sync=own.choice(("process", "process", "full")),
        )


def _death(point: str, rng: Random) -> Death:
    nth = 1 if point.startswith(RARE) else rng.randrange(1, 6)
    return Death(point=point, nth=nth, seconds=rng.uniform(0.0, 1.5), whole=rng.random() < 0.25)


class Gateway:
    """`k4-runner run`, started again when all of it was killed."""

    def __init__(self, config: Path, plan: Plan, log_level: str) -> None:
        self._config = config
        self._plan = plan
        self._log_level = log_level
        self._env = {
            **os.environ,
            PLAN: msgspec.json.encode(plan).decode(),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self._process: Process | None = None
        self._stopping = False
        self.starts = 0

    async def keep(self) -> None:
        """Run it until `stop`. Raises RuntimeError where it ends by itself."""
        while not self._stopping:
            self.starts += 1
            died = self._plan.died
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.crash.gateway",
                str(self._config),
                self._log_level,
                cwd=ROOT,
                env=self._env,
                stdout=DEVNULL,
                stderr=PIPE if self._log_level == "critical" else None,
                start_new_session=True,
            )
            _, err = await self._process.communicate()
            status = self._process.returncode
            # A worker that dies before all are ready ends the run; whoever runs it starts it again.
            early = status == 1 and self._plan.died > died
            if status not in (0, -signal.SIGKILL) and not early:
                raise RuntimeError(f"the gateway ended with {status}: {(err or b'').decode()}")
            if status == 0 and not self._stopping:
                raise RuntimeError("the gateway ended by itself")

    def stop(self) -> None:
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Whatever happens, no process is left."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()


def configuration(case: Case, venue: SimTrading, folder: Path, module: str) -> Path:
    entry = {
        **venue.config_entries(ACCOUNT, folder, case.algorithm),
        "name": "crash",
        "journal": str(folder / JOURNAL),
        "journal_sync": case.sync,
        "socket": str(folder / "td.sock"),
        "listen_key_refresh_secs": KEY_REFRESH_SEC,
    }
    path = folder / "config.json"
    path.write_text(json.dumps({"RazorTrade": {"module_name": module}, "trading": [entry]}))
    return path


async def run(case: Case, factor: float, log_level: str = "critical") -> Result:
    """Carry one case out."""
    pace = Pace.beginning_now(factor)
    clock = FastClock(pace)
    spec = TradingSpec(
        accounts=(AccountSpec(name=ACCOUNT, keys=(KeySpec(algorithm=case.algorithm),)),),
        market="manual",
        seed=case.seed,
        order=case.order,
        faults=SCRIPTS[case.script],
        limits=Limits(spot_orders=((10_000, 10),), futures_orders=((10_000, 10),)),
    )
    module = f"crash{os.getpid()}-{case.number}"
    with tempfile.TemporaryDirectory(prefix="k4-crash-") as name:
        folder = Path(name)
        async with SimTrading(spec, clock=clock) as venue:
            for account, symbol in SYMBOLS.items():
                venue.quote(account, symbol, "buy", str(BID), DEEP)
                venue.quote(account, symbol, "sell", str(ASK), DEEP)
            plan = Plan(pace=pace, deaths=case.deaths, marks=name)
            gateway = Gateway(configuration(case, venue, folder, module), plan, log_level)
            try:
                return await _play(case, venue, gateway, plan, folder, clock)
            finally:
                gateway.kill()
                _remove_counters(module)


def _remove_counters(module: str) -> None:
    """What gateways that were killed as a whole left in shared memory."""
    for left in Path("/dev/shm").glob(f"*{module}.*"):
        left.unlink(missing_ok=True)


async def _play(
    case: Case,
    venue: SimTrading,
    gateway: Gateway,
    plan: Plan,
    folder: Path,
    clock: FastClock,
) -> Result:
    loop = asyncio.get_running_loop()
    began, acts = loop.time(), 0

    def enough() -> bool:
        nonlocal acts
        acts += 1
        died = plan.died == len(plan.deaths)
        return acts > ACTS * len(SYMBOLS) and (died or loop.time() - began > MOST_SEC)

    phones = [
        Phone(str(folder / "td.sock"), f"mm-{account}", case.cancels, clock) for account in SYMBOLS
    ]
    traders = [
        Trader(account, venue, phone, case.seed, f"c{case.number}")
        for account, phone in zip(SYMBOLS, phones, strict=True)
    ]
    observer = Phone(str(folder / "td.sock"), "observer", False, clock)
    keeping = asyncio.ensure_future(gateway.keep())
    trading = asyncio.gather(*(trader.trade(enough) for trader in traders))
    broken: list[str] = []
    try:
        either: set[asyncio.Future[Any]] = {keeping, trading}
        done, _ = await asyncio.wait(
            either,
            timeout=MOST_SEC + SETTLE_SEC,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if keeping in done:
            keeping.result()
        if trading not in done:
            broken.append("strategies did not learn in time how their orders stand")
        else:
            trading.result()
            venue.injector.stop()
            for phone in phones:
                await phone.hang_up()  # and their orders go, where they go with their strategy
            broken += await _settled(observer, venue, folder / JOURNAL)
        gateway.stop()
        await asyncio.wait_for(keeping, STOP_SEC)
        told = [(t.account.value, told) for t in traders for told in t.book.values()]
        broken += judge(venue.ledger, read_journal(folder / JOURNAL), told)
    except Exception as error:
        broken.append(f"{type(error).__name__}: {error}")
    finally:
        for task in (trading, keeping):
            task.cancel()
        gateway.kill()
        await asyncio.gather(trading, keeping, return_exceptions=True)
        for phone in (*phones, observer):
            await phone.hang_up()
    summary = venue.ledger.summary()
    return Result(
        case=case,
        died=plan.died,
        orders=summary["orders"],
        trades=summary["trades"],
        requests=summary["requests"],
        unknown=sum(trader.unknown for trader in traders),
        faults=summary["faults"],
        broken=broken,
    )


async def _settled(phone: Phone, venue: SimTrading, journal: Path) -> list[str]:
    """Wait until the gateway and its journal agree with the venue: all accounts connected, nothing
    in doubt, and the orders gone that went with a strategy. What they still disagree about in the
    end."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_SEC
    found = ["the gateway did not answer"]
    while found and loop.time() < deadline:
        try:
            client = await phone.client()
            word = Word(
                await client.query_open_orders(),
                await client.query_positions(),
                await client.query_balances(),
            )
        except GatewayError:
            await phone.hang_up()
        except OrderError as error:
            found = [f"the gateway cannot say: {error.code} {error.message}"]
        else:
            found = disagreements(venue.ledger, word) or judge(
                venue.ledger, read_journal(journal), []
            )
        if found:
            await asyncio.sleep(0.05)
    return found
