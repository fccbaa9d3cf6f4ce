"""What to simulate, as values that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from k4.core.errors import ConfigError, Problem
from k4.runner.sim.market import Pace

PRODUCTS = ("spot", "ubase", "cbase")

_SYMBOLS: Mapping[str, tuple[str, ...]] = {
    "spot": ("BTCUSDT", "ETHUSDT"),
    "ubase": ("BTCUSDT", "ETHUSDT"),
    "cbase": ("BTCUSD_PERP",),
}
_FUNDS: Mapping[str, Mapping[str, str]] = {
    "spot": {"USDT": "1000000", "BTC": "100", "ETH": "1000"},
    "ubase": {"USDT": "1000000"},
    "cbase": {"BTC": "100", "ETH": "1000"},
}


class KeySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One API key. Where the key's parts are empty they are made from the seed (RSA: at random).

    algorithm: hmac, ed25519 or rsa. secret: HMAC's, text. private_pem: PKCS#8; public_pem: enough
    to verify, where nobody needs the private key from here. trades: may it place orders?
    """

    algorithm: str = "hmac"
    api_key: str = ""
    secret: str = ""
    private_pem: str = ""
    public_pem: str = ""
    trades: bool = True


class AccountSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One account with its three wallets. funds: by product and asset, decimal text."""

    name: str = "main"
    keys: tuple[KeySpec, ...] = (KeySpec(), KeySpec(algorithm="ed25519"))
    funds: Mapping[str, Mapping[str, str]] = msgspec.field(default_factory=lambda: _FUNDS)
    hedge: bool = False
    leverage: int = 20


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the venue allows. orders: (limit, seconds) windows. ban_after: how many requests may
    ignore a 429 before the ban of `ban_seconds`, which doubles each time up to three days."""

    spot_weight: int = 6000
    futures_weight: int = 2400
    spot_orders: tuple[tuple[int, int], ...] = ((50, 10), (160_000, 86_400))
    futures_orders: tuple[tuple[int, int], ...] = ((300, 10), (1200, 60))
    raw_requests: int = 300_000
    connections: int = 300
    ban_after: int = 10
    ban_seconds: float = 120.0


class TradingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A simulated Binance. symbols: by product. filters: by product, symbol and filter name, what
    replaces a part of a filter; null takes the filter away.

    market: `random` (the seeded market of `market.py`) or `manual` (empty books, moved by commands
    alone). pace: of the random market; it rests unless started. scale: waits of the venue (life of
    connections and listen keys, pings, its own timeout) are divided by it. order: what comes first
    after an order, `answer`, `event` or `random`. faults: a script, see `faults.py`. clock_ms: how
    far the venue's clock is off the machine's. ports: fixed ones by `api`, `ubase_stream`,
    `cbase_stream`.
    """

    accounts: tuple[AccountSpec, ...] = (AccountSpec(),)
    symbols: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=lambda: _SYMBOLS)
    filters: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any] | None]]] = {}
    market: str = "random"
    pace: Pace = Pace(rate=200.0, start=False)
    seed: int = 1
    scale: float = 1.0
    order: str = "answer"
    faults: tuple[dict[str, Any], ...] = ()
    clock_ms: float = 0.0
    limits: Limits = Limits()
    ports: Mapping[str, int] = {}


def check_spec(spec: TradingSpec) -> None:
    """Raises ConfigError with every problem that the types do not show."""
    problems = [
        Problem(f"symbols.{product}", f"products are {', '.join(PRODUCTS)}")
        for product in {*spec.symbols, *spec.filters} - set(PRODUCTS)
    ]
    if spec.market not in ("random", "manual"):
        problems.append(Problem("market", f"is random or manual, not {spec.market!r}"))
    if spec.order not in ("answer", "event", "random"):
        problems.append(Problem("order", f"is answer, event or random, not {spec.order!r}"))
    if spec.scale <= 0:
        problems.append(Problem("scale", "must be positive"))
    names = [account.name for account in spec.accounts]
    if not names or len(set(names)) != len(names):
        problems.append(Problem("accounts", "needs accounts of different names"))
    for index, account in enumerate(spec.accounts):
        for at, key in enumerate(account.keys):
            if key.algorithm not in ("hmac", "ed25519", "rsa"):
                path = f"accounts[{index}].keys[{at}].algorithm"
                problems.append(Problem(path, f"is hmac, ed25519 or rsa, not {key.algorithm!r}"))
    if problems:
        raise ConfigError(problems)


def decode_trading(source: bytes) -> TradingSpec:
    """A `TradingSpec` from JSON. Raises ConfigError."""
    try:
        spec = msgspec.json.decode(source, type=TradingSpec)
    except msgspec.DecodeError as error:
        raise ConfigError([Problem("trading", str(error))]) from error
    check_spec(spec)
    return spec
