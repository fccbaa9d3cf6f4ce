"""Bybit's `instruments-info`: which symbols exist, with tick and lot, page by page.

Spot comes in one page; linear and inverse go on at `nextPageCursor` until that is empty. Symbols
are what users write; a USDC perpetual (`BTCPERP`) may also be written as its pair (`BTCUSDC`).
Source: bybit-exchange/docs, `docs/v5/market/instrument.mdx`.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import msgspec

from k4.md.feed import Instrument, Metadata

PATH = "/v5/market/instruments-info"
PER_PAGE = 1000
_INVERSE_CONTRACT = "1"  # USD; the endpoint does not say it


class PriceFilter(msgspec.Struct, frozen=True):
    tickSize: str = ""


class LotFilter(msgspec.Struct, frozen=True):
    """qtyStep: derivatives. basePrecision: spot, the step of a quantity in the base coin."""

    qtyStep: str = ""
    basePrecision: str = ""


class Listed(msgspec.Struct):
    symbol: str
    baseCoin: str = ""
    quoteCoin: str = ""
    contractType: str = ""
    priceFilter: PriceFilter = PriceFilter()
    lotSizeFilter: LotFilter = LotFilter()


class Page(msgspec.Struct):
    instruments: list[Listed] = msgspec.field(name="list")
    nextPageCursor: str | None = ""


class Answer(msgspec.Struct):
    retCode: int
    retMsg: str = ""
    result: msgspec.Raw = msgspec.Raw()


def metadata_of(category: str) -> Metadata:
    """Where a category's instruments are listed."""
    path = f"{PATH}?category={category}"
    if category != "spot":  # spot takes no paging
        path += f"&limit={PER_PAGE}"
    return Metadata(path=path, parse=_parser(category, path))


def _parser(category: str, path: str) -> Callable[[bytes], tuple[list[Instrument], str]]:
    def parse(body: bytes) -> tuple[list[Instrument], str]:
        """The instruments of a page and the path of the next. Raises ValueError."""
        answer = msgspec.json.decode(body, type=Answer)
        if answer.retCode != 0:
            raise ValueError(f"error {answer.retCode}: {answer.retMsg}")
        page = msgspec.json.decode(answer.result, type=Page)
        cursor = page.nextPageCursor
        following = f"{path}&cursor={quote(cursor, safe='')}" if cursor else ""
        return [_instrument(listed, category) for listed in page.instruments], following

    return parse


def _instrument(listed: Listed, category: str) -> Instrument:
    perpetual = listed.contractType == "LinearPerpetual" and listed.quoteCoin == "USDC"
    lot = listed.lotSizeFilter
    return Instrument(
        symbol=f"{listed.baseCoin}USDC" if perpetual else listed.symbol,
        venue_symbol=listed.symbol,
        tick=listed.priceFilter.tickSize,
        lot=lot.qtyStep or lot.basePrecision,
        contract_value=_INVERSE_CONTRACT if category == "inverse" else "",
    )
