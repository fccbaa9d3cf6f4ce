"""Bitget, classic v2 socket: spot, USDT-, USDC- and coin-margined futures market data."""

from __future__ import annotations

from k4.core.enums import Kind, Venue
from k4.md.exchanges.bitget.feeds import ENDPOINTS, LIMITS, MARKETS, feeds
from k4.md.exchanges.bitget.metadata import metadata_of
from k4.md.feed import Exchange, Product

__all__ = ["EXCHANGE"]


def same(symbol: str) -> str:
    """Ids are what users write: `BTCUSDT`, `BTCUSD`, `BTCUSDZ24`."""
    return symbol


def usdc(symbol: str) -> str:
    """The same, but a perpetual in USDC is called `BTCPERP`."""
    base = symbol.removesuffix("USDC")
    return f"{base}PERP" if base and base != symbol else symbol


EXCHANGE = Exchange(
    name="bitget",
    code=Venue.BITGET,
    products=tuple(
        Product(
            name=name,
            product_type=market.product_type,
            kinds=(Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5),
            rule=usdc if name == "usdc_futures" else same,
            metadata=metadata_of(market.inst_type),
        )
        for name, market in MARKETS.items()
    ),
    endpoints=ENDPOINTS,
    limits=LIMITS,
    feeds=feeds,
)
