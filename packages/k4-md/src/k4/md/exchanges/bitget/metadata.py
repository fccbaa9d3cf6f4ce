"""Bitget's lists of instruments: which symbols exist, with tick and lot.

Spot: `/api/v2/spot/public/symbols`, digits after the point. Contracts:
`/api/v2/mix/market/contracts`, a price step in units of the last digit and a multiple for sizes,
which are in the base coin. One page each. Source: the official v2 REST pages.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation

import msgspec

from k4.md.feed import Instrument, Metadata

SPOT_PATH = "/api/v2/spot/public/symbols"
MIX_PATH = "/api/v2/mix/market/contracts"
OK = "00000"
_MOST_DIGITS = 30


class Listed(msgspec.Struct):
    """A symbol of either list. The first two figures are spot's, the others contracts'."""

    symbol: str
    baseCoin: str = ""
    symbolType: str = ""
    pricePrecision: str | int = ""
    quantityPrecision: str | int = ""
    pricePlace: str | int = ""
    priceEndStep: str | int | float = ""
    sizeMultiplier: str | int | float = ""


class Answer(msgspec.Struct):
    code: str | int
    msg: str = ""
    data: list[Listed] | None = None


def metadata_of(inst_type: str) -> Metadata:
    """Where the instruments of an `instType` are listed."""
    if inst_type == "SPOT":
        return Metadata(path=SPOT_PATH, parse=_parser(_spot))
    path = f"{MIX_PATH}?productType={inst_type}"
    return Metadata(path=path, parse=_parser(_usdc if inst_type == "USDC-FUTURES" else _contract))


def _parser(
    instrument: Callable[[Listed], Instrument],
) -> Callable[[bytes], tuple[list[Instrument], str]]:
    def parse(body: bytes) -> tuple[list[Instrument], str]:
        """All instruments, and no next page. Raises ValueError."""
        answer = msgspec.json.decode(body, type=Answer)
        if str(answer.code) != OK:
            raise ValueError(f"error {answer.code}: {answer.msg}")
        return [instrument(listed) for listed in answer.data or []], ""

    return parse


def _spot(listed: Listed) -> Instrument:
    return Instrument(
        symbol=listed.symbol,
        venue_symbol=listed.symbol,
        tick=step(listed.pricePrecision),
        lot=step(listed.quantityPrecision),
    )


def _contract(listed: Listed) -> Instrument:
    return Instrument(
        symbol=listed.symbol,
        venue_symbol=listed.symbol,
        tick=step(listed.pricePlace, listed.priceEndStep),
        lot=str(listed.sizeMultiplier),
    )


def _usdc(listed: Listed) -> Instrument:
    """A perpetual in USDC (`BTCPERP`) may be written as its pair (`BTCUSDC`)."""
    found = _contract(listed)
    if listed.symbolType == "perpetual" and listed.baseCoin:
        return msgspec.structs.replace(found, symbol=f"{listed.baseCoin}USDC")
    return found


def step(digits: str | int, units: str | int | float = 1) -> str:
    """`units` of the last of so many digits after the point, as plain decimal text; '' unknown."""
    try:
        places = int(digits)
        if not 0 <= places <= _MOST_DIGITS:
            return ""
        return f"{Decimal(str(units)).scaleb(-places):f}"
    except (ValueError, InvalidOperation):
        return ""
