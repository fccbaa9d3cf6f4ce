"""The trading venue by commands, for whoever runs it in another process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from k4.core.errors import ConfigError, Problem
from k4.runner.sim.market import Pace
from k4.runner.sim.trading.ledger import plain
from k4.runner.sim.trading.venue import SimTrading


def trade(venue: SimTrading | None, request: Mapping[str, Any]) -> object:
    """Carry out `{"cmd": "trading", "do": ..., ...}` and return its result.

    config {account, folder, algorithm}: entries of a `trading` entry, keys in files there. inject
    {fault}. quote {product, symbol, side, price, quantity}. hit {the same}: how much. deposit
    {account, product, asset, amount}. emit {events}. pace {pace}. summary. report: the whole
    ledger. received {op, client_id, account}: requests. orders {account, product, client_id}.
    wealth. faults {fault}. Raises ConfigError, and KeyError for what is missing.
    """
    if venue is None:
        raise ConfigError([Problem("trading", "the specification has no trading venue")])
    do = request.get("do")
    ledger = venue.ledger
    match do:
        case "config":
            folder = Path(request["folder"])
            return venue.config_entries(
                request.get("account", "main"), folder, request.get("algorithm", "hmac")
            )
        case "inject":
            return venue.inject(request["fault"])
        case "quote":
            venue.quote(*_texts(request, "product", "symbol", "side", "price", "quantity"))
            return None
        case "hit":
            what = _texts(request, "product", "symbol", "side", "price", "quantity")
            return str(venue.hit(*what))
        case "deposit":
            venue.deposit(*_texts(request, "account", "product", "asset", "amount"))
            return None
        case "emit":
            venue.emit(int(request["events"]))
            return None
        case "pace":
            venue.set_pace(msgspec.convert(request["pace"], Pace))
            return None
        case "summary":
            return ledger.summary()
        case "report":
            return ledger.report()
        case "received":
            return plain(ledger.received(**_given(request, "op", "client_id", "account")))
        case "orders":
            return ledger.plain_orders(**_given(request, "account", "product", "client_id"))
        case "wealth":
            return ledger.wealth()
        case "faults":
            return plain(ledger.faults(str(request.get("fault", ""))))
    raise ConfigError([Problem("do", f"the trading venue does no {do!r}")])


def _texts(request: Mapping[str, Any], *names: str) -> list[str]:
    return [str(request[name]) for name in names]


def _given(request: Mapping[str, Any], *names: str) -> dict[str, str]:
    return {name: str(request[name]) for name in names if name in request}
