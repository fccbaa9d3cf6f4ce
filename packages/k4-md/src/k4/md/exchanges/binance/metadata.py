"""Binance's `exchangeInfo`: which symbols exist, with tick, lot and contract size.

One shape on spot, USD-M and COIN-M; one page. Source: the `exchangeInfo` pages of the three REST
references.
"""

from __future__ import annotations

import msgspec

from k4.md.feed import Instrument


class Filter(msgspec.Struct):
    filterType: str
    tickSize: str = ""
    stepSize: str = ""


class Listing(msgspec.Struct):
    """contractSize: COIN-M only, the value of one contract in USD."""

    symbol: str
    filters: list[Filter] = []
    contractSize: float | int | str = ""


class ExchangeInfo(msgspec.Struct):
    symbols: list[Listing]


_decode = msgspec.json.Decoder(ExchangeInfo).decode


def parse_instruments(body: bytes) -> tuple[list[Instrument], str]:
    """Every listed symbol, halted ones included, and no next page. Raises ValueError."""
    return [_instrument(listing) for listing in _decode(body).symbols], ""


def _instrument(listing: Listing) -> Instrument:
    tick = next((f.tickSize for f in listing.filters if f.filterType == "PRICE_FILTER"), "")
    lot = next((f.stepSize for f in listing.filters if f.filterType == "LOT_SIZE"), "")
    return Instrument(
        symbol=listing.symbol,
        venue_symbol=listing.symbol,
        tick=tick,
        lot=lot,
        contract_value=str(listing.contractSize),
    )
