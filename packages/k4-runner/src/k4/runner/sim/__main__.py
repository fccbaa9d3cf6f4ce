"""`k4-runner sim`, also `python -m k4.runner.sim`: simulated venues in a process of their own."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from k4.core.errors import ConfigError, Problem
from k4.runner.sim.faults import FAULTS, Target
from k4.runner.sim.market import Pace
from k4.runner.sim.process import run_sim
from k4.runner.sim.replay import ReplaySpec
from k4.runner.sim.trading import faults as trading_faults
from k4.runner.sim.trading.spec import TradingSpec
from k4.runner.sim.venue import VenueSpec
from k4.runner.sim.venues import SimSpec, decode_spec, venue_names

_DESCRIPTION = """Simulated venues on loopback. Prints one JSON line with their endpoints when they
listen, runs until SIGINT or --seconds, and ends with a JSON summary of the ledger."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 bad usage."""
    options = _parser().parse_args(arguments)
    try:
        return run_sim(_spec(options), control=options.control, trading_folder=options.trading)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="k4-runner sim",
        description=_DESCRIPTION,
        epilog=_fault_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("spec", nargs="?", default="", help="JSON file: a whole specification, see SimSpec")
    add("--json", default="", metavar="TEXT", help="the same as text")
    add("--venue", action="append", default=[], choices=venue_names(), help="default: all")
    add("--exchange", type=_names, default=[], metavar="A,B", help="the same, by commas")
    add("--symbol", action="append", default=[], metavar="PRODUCT:SYMBOL", help="default: a few")
    add("--rate", type=float, help="market events a second and venue; 0: as fast as they are read")
    add("--faults", default="", metavar="FILE", help="JSON fault script, see faults.py")
    text = "a Binance that trades, too; keys and a configuration for it go there"
    add("--trading", default="", metavar="FOLDER", help=text)
    add("--trading-faults", default="", metavar="FILE", help="fault script of the trading venue")
    add("--replay", default="", metavar="FILE", help="recorded frames instead of a market")
    add("--speed", type=float, default=1.0, help="of the replay; 2 is twice as fast")
    add("--seed", type=int)
    add("--seconds", type=float)
    add("--dump", metavar="FOLDER", help="write the ledger there at the end")
    add("--control", action="store_true", help="take commands on stdin, see process.py")
    return parser


def _names(text: str) -> list[str]:
    """Venue names by commas. Raises argparse's error for one that is not simulated."""
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in venue_names():
            known = ", ".join(venue_names())
            raise argparse.ArgumentTypeError(f"no simulated {name!r}; there are {known}")
    return names


def _fault_help() -> str:
    """Every fault of the script with its parameters and their defaults."""
    lines = ["A fault script is a JSON list of rules:"]
    lines += [
        f"  {json.dumps({'fault': name, **kind.parameters})}" for name, kind in FAULTS.items()
    ]
    when = "at, every, duration (seconds), probability, nth, limit"
    whom = ", ".join(Target.__struct_fields__)
    lines += [f"when: {when}", f"target: {whom}", "", "And one of the trading:"]
    lines += [f"  {json.dumps(rule)}" for rule in trading_faults.examples()]
    whom = ", ".join(trading_faults.Target.__struct_fields__)
    return "\n".join([*lines, f"when: the same; target: {whom}"])


def _spec(options: argparse.Namespace) -> SimSpec:
    """The specification, with what the options override."""
    if options.json:
        spec = decode_spec(options.json.encode())
    elif options.spec:
        spec = decode_spec(_read(options.spec, "sim"))
    else:
        spec = SimSpec(venues=_venues(options))
    changes: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("seed", "seconds", "dump")
        if getattr(options, name) is not None
    }
    if options.faults:
        changes["faults"] = _fault_list(options.faults)
    if options.trading or options.trading_faults:
        trading = spec.trading if spec.trading is not None else TradingSpec()
        rules = _fault_list(options.trading_faults) if options.trading_faults else trading.faults
        changes["trading"] = msgspec.structs.replace(trading, faults=rules)
    if options.replay:
        changes["replay"] = ReplaySpec(
            file=options.replay, venue=spec.venues[0].name, speed=options.speed
        )
    return msgspec.structs.replace(spec, **changes)


def _venues(options: argparse.Namespace) -> tuple[VenueSpec, ...]:
    names = (options.venue + options.exchange) or (["binance"] if options.replay else venue_names())
    products: dict[str, tuple[str, ...]] = {}
    for text in options.symbol:
        product, colon, symbol = text.partition(":")
        if not (product and colon and symbol):
            raise ConfigError([Problem("--symbol", f"{text!r} is not PRODUCT:SYMBOL")])
        products[product] = (*products.get(product, ()), symbol)
    if options.rate is not None and not 0 <= options.rate < math.inf:
        raise ConfigError([Problem("--rate", f"{options.rate} is no number of events a second")])
    pace = Pace() if options.rate is None else Pace(rate=options.rate)
    return tuple(VenueSpec(name=name, products=products, pace=pace) for name in names)


def _fault_list(file: str) -> tuple[dict[str, Any], ...]:
    try:
        rules = json.loads(_read(file, "--faults"))
    except ValueError as error:
        raise ConfigError([Problem(file, f"no JSON: {error}")]) from error
    if not isinstance(rules, list):
        raise ConfigError([Problem(file, "must be a list of rules")])
    return tuple(rules)


def _read(file: str, path: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError([Problem(path, f"cannot read {file}: {error}")]) from error


if __name__ == "__main__":
    sys.exit(main())
