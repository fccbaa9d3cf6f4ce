"""OKX's instruments: the venue's ids, its list of them, and the documented rules in its absence.

An id is `BASE-QUOTE` for spot and `BASE-QUOTE-SWAP` for a perpetual; K4 writes it without the
hyphens and the suffix (`BTCUSDT`, `BTCUSD` for the coin-margined swap, `BTCUSD_UM` for a swap
margined in several stablecoins). Source: API guide, "Get instruments".
"""

from __future__ import annotations

import msgspec

from k4.md.feed import Instrument

SWAP = "-SWAP"
QUOTES = (
    "USD_UM",
    "USDT",
    "USDC",
    "USD",
    "EUR",
    "TRY",
    "BRL",
    "AUD",
    "AED",
    "SGD",
    "BTC",
    "ETH",
)
"""Quote currencies of live instruments (2026-08), a longer one before what it ends with."""


class Listing(msgspec.Struct):
    """ctVal: value of one contract in its currency, empty for spot."""

    instId: str
    tickSz: str = ""
    lotSz: str = ""
    ctVal: str = ""


class Listings(msgspec.Struct):
    code: str = ""
    msg: str = ""
    data: list[Listing] = []


_decode = msgspec.json.Decoder(Listings).decode


def parse_instruments(body: bytes) -> tuple[list[Instrument], str]:
    """Every listed instrument, suspended ones included, and no next page. Raises ValueError."""
    answer = _decode(body)
    if answer.code != "0":
        raise ValueError(f"code {answer.code}: {answer.msg}")
    return [
        Instrument(
            symbol=symbol_of(listing.instId),
            venue_symbol=listing.instId,
            tick=listing.tickSz,
            lot=listing.lotSz,
            contract_value=listing.ctVal,
        )
        for listing in answer.data
    ], ""


def symbol_of(inst_id: str) -> str:
    """K4's spelling of an id."""
    return inst_id.removesuffix(SWAP).replace("-", "")


def spot_rule(symbol: str) -> str:
    """`BTCUSDT` to `BTC-USDT`, by the longest quote currency known; an id stays as it is."""
    symbol = symbol.upper()
    if "-" in symbol:
        return symbol
    for quote in QUOTES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            return f"{symbol.removesuffix(quote)}-{quote}"
    return symbol


def swap_rule(symbol: str) -> str:
    """`BTCUSDT` to `BTC-USDT-SWAP`."""
    pair = spot_rule(symbol)
    return pair if pair.endswith(SWAP) else pair + SWAP
