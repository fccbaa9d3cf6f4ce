"""Bybit v5: spot, linear (USDT and USDC contracts) and inverse market data."""

from __future__ import annotations

from k4.core.enums import Kind, Venue
from k4.md.exchanges.bybit.feeds import DERIVATIVES_LIMITS, ENDPOINTS, PRODUCT_TYPES, feeds
from k4.md.exchanges.bybit.metadata import metadata_of
from k4.md.feed import Exchange, Product

__all__ = ["EXCHANGE"]


def same(symbol: str) -> str:
    """Spot and inverse ids are what users write; so are dated ones (`BTCUSDT-26SEP25`)."""
    return symbol


def linear(symbol: str) -> str:
    """The same, but a perpetual in USDC is called `BTCPERP`."""
    base = symbol.removesuffix("USDC")
    return f"{base}PERP" if base and base != symbol else symbol


EXCHANGE = Exchange(
    name="bybit",
    code=Venue.BYBIT,
    products=tuple(
        Product(
            name=name,
            product_type=product_type,
            kinds=(Kind.BOOKTICKER, Kind.TRADE, Kind.DEPTH5),
            rule=linear if name == "linear" else same,
            metadata=metadata_of(name),
        )
        for name, product_type in PRODUCT_TYPES.items()
    ),
    endpoints=ENDPOINTS,
    limits=DERIVATIVES_LIMITS,
    feeds=feeds,
)
