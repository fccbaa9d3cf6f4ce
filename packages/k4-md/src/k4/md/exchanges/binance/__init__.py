"""Binance: spot (JSON and SBE), USD-M (`ubase`) and COIN-M (`cbase`) market data."""

from __future__ import annotations

from k4.core.enums import Kind, ProductType, Venue
from k4.md.exchanges.binance.feeds import ENDPOINTS, SPOT_LIMITS, feeds
from k4.md.exchanges.binance.metadata import parse_instruments
from k4.md.feed import Exchange, Metadata, Product

__all__ = ["EXCHANGE"]


def same(symbol: str) -> str:
    """Binance's own ids are what users write."""
    return symbol


def _product(name: str, product_type: ProductType, path: str) -> Product:
    return Product(
        name=name,
        product_type=product_type,
        kinds=tuple(Kind),
        rule=same,
        metadata=Metadata(path=path, parse=parse_instruments),
    )


EXCHANGE = Exchange(
    name="binance",
    code=Venue.BINANCE,
    products=(
        # without the permission sets, which are most of the answer's bytes
        _product("spot", ProductType.SPOT, "/api/v3/exchangeInfo?showPermissionSets=false"),
        _product("ubase", ProductType.U_MARGIN, "/fapi/v1/exchangeInfo"),
        _product("cbase", ProductType.COIN_MARGIN, "/dapi/v1/exchangeInfo"),
    ),
    endpoints=ENDPOINTS,
    limits=SPOT_LIMITS,
    feeds=feeds,
)
