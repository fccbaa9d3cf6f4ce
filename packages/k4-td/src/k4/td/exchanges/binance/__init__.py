"""Binance: spot, USD-M and COIN-M. `EXCHANGE` is what the entry point names."""

from __future__ import annotations

from k4.core.clock import Clock
from k4.core.config import TradingConfig
from k4.core.trading import AccountType
from k4.td.exchanges.binance.rest import Http
from k4.td.exchanges.binance.venue import BinanceVenue
from k4.td.limits import ORDERS, RAW, WEIGHT, Limiter, Window
from k4.td.signing import load_signer
from k4.td.timing import Timing
from k4.td.venue import Exchange, Venue

# Until exchange information has said more (July 2026).
SPOT_WINDOWS = (
    Window(kind=WEIGHT, seconds=60, limit=6000),
    Window(kind=ORDERS, seconds=10, limit=50),
    Window(kind=ORDERS, seconds=86400, limit=160_000),
    Window(kind=RAW, seconds=300, limit=300_000),
)
FUTURES_WINDOWS = (
    Window(kind=WEIGHT, seconds=60, limit=2400),
    Window(kind=ORDERS, seconds=10, limit=300),
    Window(kind=ORDERS, seconds=60, limit=1200),
)


def make(config: TradingConfig, clock: Clock, timing: Timing) -> dict[AccountType, Venue]:
    """The enabled accounts. USD-M and COIN-M draw from one pool of limits since 30 June 2026."""
    signer = load_signer(config)
    http = Http()
    futures = Limiter(FUTURES_WINDOWS)
    venues: dict[AccountType, Venue] = {}
    for name in config.accounts:
        account = AccountType(name)
        limiter = Limiter(SPOT_WINDOWS) if account is AccountType.SPOT else futures
        venues[account] = BinanceVenue(config, account, signer, http, limiter, clock, timing)
    return venues


def client_id(nonce: str) -> str:
    """Letters, digits and dashes, which every product takes."""
    return f"k4-{nonce}"


EXCHANGE = Exchange(name="binance", make=make, client_id=client_id)
