"""The `k4-runner` command: arguments and exit codes, nothing else.

Exit status: 0 done, 1 failed at run time, 2 bad usage or configuration. What a command does is in
the module of its name, imported when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from k4.core.clock import SystemClock
from k4.core.errors import ConfigError, K4Error

if TYPE_CHECKING:
    from k4.runner.operate import Office

DONE, FAILED, MISUSED = 0, 1, 2

app = typer.Typer(
    name="k4-runner",
    help="Redundant market data into shared memory, and trading through one gateway.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
shm = typer.Typer(help="Look at and remove stores.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(shm, name="shm")

Config = Annotated[Path, typer.Argument(help="Configuration file (JSON).", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line on stdout.")]
Entry = Annotated[str, typer.Option("--name", help="One trading entry; default: all.")]
Store = Annotated[str, typer.Argument(help="Name of a store.", show_default=False)]
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def _level(text: str) -> str:
    if text.lower() not in LOG_LEVELS:
        raise typer.BadParameter(f"it is none of {', '.join(LOG_LEVELS)}")
    return text.lower()


LogLevel = Annotated[str, typer.Option(callback=_level, help=", ".join(LOG_LEVELS))]


@app.command()
def run(
    config: Config,
    log_level: LogLevel = "info",
    log_dir: Annotated[str, typer.Option(help="Where log files go, before log_path.")] = "",
) -> None:
    """Start all modules; SIGINT or SIGTERM stops them in order. `k4-runner CONFIG` is the same."""
    from k4.runner import gateway

    raise typer.Exit(gateway.run(config, log_level=log_level, log_dir=log_dir))


@app.command()
def check(
    config: Config,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no venue for symbols.")] = False,
    as_json: AsJson = False,
) -> None:
    """Validate a configuration and show the streams that it means."""
    from k4.runner import check as checking

    asyncio.run(
        checking.check(
            config, SystemClock(), sys.stdout, sys.stderr, offline=offline, as_json=as_json
        )
    )


@app.command()
def symbols(config: Config, offline: bool = False, as_json: AsJson = False) -> None:
    """Show how each symbol maps, with tick, lot and contract value where known."""
    from k4.runner import check as checking

    asyncio.run(
        checking.symbols(config, SystemClock(), sys.stdout, offline=offline, as_json=as_json)
    )


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=0, help="Stop after so long; 0: on Ctrl-C.")] = 0.0,
    headless: Annotated[bool, typer.Option("--headless", help="No live view.")] = False,
    as_json: AsJson = False,
    exchange: Annotated[str, typer.Option(help="Some venues, by commas; default: all.")] = "",
    trading: Annotated[
        bool, typer.Option("--trading", help="A strategy that trades on a simulated Binance.")
    ] = False,
) -> None:
    """Simulated venues, a gateway and a live view: no configuration, key or network."""
    if trading:
        from k4.runner import demo_trading

        quiet = headless or as_json
        raise typer.Exit(demo_trading.run(seconds=seconds, headless=quiet, as_json=as_json))
    from k4.runner import demo as show

    exchanges = [name for name in exchange.split(",") if name]
    unknown = [name for name in exchanges if name not in show.MARKETS]
    if unknown:
        known = ", ".join(show.MARKETS)
        raise typer.BadParameter(
            f"no simulated {unknown[0]!r}; there are {known}", param_hint="--exchange"
        )
    quiet = headless or as_json
    raise typer.Exit(
        show.run(seconds=seconds, headless=quiet, as_json=as_json, exchanges=exchanges)
    )


@app.command()
def watch(
    names: Annotated[list[str] | None, typer.Argument(help="Stores or streams; none: all.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One look instead of a live view.")] = False,
    as_json: AsJson = False,
) -> None:
    """Live table of stores: last record, rate, age, per-line wins and lag."""
    from k4.runner import watch as watching

    clock = SystemClock()
    if as_json and not once:
        raise typer.BadParameter("it goes with --once", param_hint="--json")
    if once:
        asyncio.run(watching.once(clock, names or (), sys.stdout, as_json=as_json))
        return
    try:
        asyncio.run(watching.live(clock, watching.Watcher(clock, names or ())))
    except KeyboardInterrupt:
        raise typer.Exit(DONE) from None


def _office(config: Path, name: str, as_json: bool) -> Office:
    from k4.runner.operate import Office

    return Office(config, sys.stdout, sys.stderr, name=name, as_json=as_json)


def _end(done: bool) -> NoReturn:
    raise typer.Exit(DONE if done else FAILED)


@app.command()
def orders(config: Config, name: Entry = "", as_json: AsJson = False) -> None:
    """Open orders of a running trading module, by the venue's word."""
    _end(_office(config, name, as_json).orders())


@app.command()
def positions(config: Config, name: Entry = "", as_json: AsJson = False) -> None:
    """Futures positions that are not flat."""
    _end(_office(config, name, as_json).positions())


@app.command()
def balances(config: Config, name: Entry = "", as_json: AsJson = False) -> None:
    """Balances of every account."""
    _end(_office(config, name, as_json).balances())


@app.command("cancel-all")
def cancel_all(config: Config, name: Entry = "", as_json: AsJson = False) -> None:
    """Cancel everything open, foreign orders too; status 0 only when the venue confirmed all."""
    _end(_office(config, name, as_json).cancel_all())


@app.command()
def kill(
    config: Config,
    release: Annotated[bool, typer.Option("--release", help="Allow orders again.")] = False,
    reason: Annotated[str, typer.Option(help="Why; shown with every refusal.")] = "",
    name: Entry = "",
    as_json: AsJson = False,
) -> None:
    """Cancel everything and refuse new orders, also after a restart, until --release."""
    office = _office(config, name, as_json)
    _end(office.release() if release else office.kill(reason or "k4-runner kill"))


@shm.command("list")
def shm_list(as_json: AsJson = False) -> None:
    """All stores that you can read."""
    from k4.runner import shmtool

    shmtool.show_list(sys.stdout, as_json=as_json)


@shm.command("dump")
def shm_dump(
    name: Store,
    symbol: Annotated[str, typer.Option(help="This symbol only.")] = "",
    last: Annotated[int | None, typer.Option(min=0, help="At most so many of each.")] = None,
    as_json: AsJson = False,
) -> None:
    """The records of a store, oldest first."""
    from k4.runner import shmtool

    shmtool.dump(name, sys.stdout, sys.stderr, symbol=symbol, last=last, as_json=as_json)


@shm.command("rm")
def shm_rm(name: Store) -> None:
    """Remove a store that nobody writes."""
    from k4.core.shm import remove_store

    remove_store(name)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def sim(context: typer.Context) -> None:
    """The simulated venues alone, with a fault script; `sim --help` shows its options."""
    from k4.runner.sim.__main__ import main as simulate

    raise typer.Exit(simulate(context.args))


def complete(arguments: list[str]) -> list[str]:
    """The arguments with `run` put in where a configuration stands in its place.

    A file that is called like a command is reached by `./demo` or `run demo`.
    """
    commands = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback is not None
    }
    groups = {group.name for group in app.registered_groups}
    if not arguments or arguments[0] in commands | groups | {"--help"}:
        return arguments
    return ["run", *arguments]


def main() -> None:
    """Entry point of the console script."""
    try:
        app(args=complete(sys.argv[1:]), prog_name="k4-runner")
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"k4-runner: {problem}\n")
        sys.exit(MISUSED)
    except K4Error as error:
        sys.stderr.write(f"k4-runner: {error.message}\n")
        if error.remedy:
            sys.stderr.write(f"           {error.remedy}\n")
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
