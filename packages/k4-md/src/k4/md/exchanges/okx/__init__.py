"""OKX: spot and perpetual swaps over the public WebSocket (API v5)."""

from __future__ import annotations

from k4.core.enums import ProductType, Venue
from k4.md.exchanges.okx.feeds import ENDPOINTS, KINDS, LIMITS, feeds
from k4.md.exchanges.okx.instruments import parse_instruments, spot_rule, swap_rule
from k4.md.feed import Exchange, Metadata, Product

__all__ = ["EXCHANGE"]

_INSTRUMENTS = "/api/v5/public/instruments?instType="

EXCHANGE = Exchange(
    name="okx",
    code=Venue.OKX,
    products=(
        Product(
            name="spot",
            product_type=ProductType.SPOT,
            kinds=KINDS,
            rule=spot_rule,
            metadata=Metadata(path=f"{_INSTRUMENTS}SPOT", parse=parse_instruments),
        ),
        Product(
            name="swap",
            product_type=ProductType.FUTURES,
            kinds=KINDS,
            rule=swap_rule,
            metadata=Metadata(path=f"{_INSTRUMENTS}SWAP", parse=parse_instruments),
        ),
    ),
    endpoints=ENDPOINTS,
    limits=LIMITS,
    feeds=feeds,
)
