"""Exchange information: symbols, filters and rate limits as values. Pure."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from k4.core.trading import ZERO, AccountType
from k4.td.exchanges.binance.protocol import Product
from k4.td.filters import Range, SymbolRules
from k4.td.limits import Window
from k4.td.symbols import SymbolBook


class _Filter(msgspec.Struct, rename="camel"):
    filter_type: str
    min_price: Decimal = ZERO
    max_price: Decimal = ZERO
    tick_size: Decimal = ZERO
    min_qty: Decimal = ZERO
    max_qty: Decimal = ZERO
    step_size: Decimal = ZERO
    min_notional: Decimal = ZERO
    max_notional: Decimal = ZERO
    notional: Decimal = ZERO  # futures
    apply_to_market: bool = False
    apply_min_to_market: bool = False
    apply_max_to_market: bool = False
    max_num_orders: int = 0
    limit: int = 0  # futures


class _Symbol(msgspec.Struct, rename="camel"):
    symbol: str
    status: str = ""
    contract_status: str = ""  # COIN-M
    base_asset: str = ""
    quote_asset: str = ""
    margin_asset: str = ""
    contract_type: str = ""
    contract_size: Decimal = ZERO  # COIN-M, USD a contract
    amend_allowed: bool = False
    filters: list[_Filter] = []


class _RateLimit(msgspec.Struct, rename="camel"):
    rate_limit_type: str
    interval: str
    interval_num: int
    limit: int


class _Info(msgspec.Struct, rename="camel"):
    symbols: list[_Symbol]
    rate_limits: list[_RateLimit] = []


_SECONDS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400}
_decoder = msgspec.json.Decoder(_Info)


def parse_info(product: Product, body: bytes) -> tuple[SymbolBook, list[Window]]:
    """Symbols and rate limits. Raises msgspec.DecodeError for a body that is no such thing."""
    info = _decoder.decode(body)
    venue = f"binance {product.account}"
    book = SymbolBook(venue, [_rules(product, symbol) for symbol in info.symbols])
    windows = [
        Window(
            kind=limit.rate_limit_type,
            seconds=_SECONDS.get(limit.interval, 60) * limit.interval_num,
            limit=limit.limit,
        )
        for limit in info.rate_limits
    ]
    return book, windows


def _rules(product: Product, symbol: _Symbol) -> SymbolRules:
    filters = {entry.filter_type: entry for entry in symbol.filters}
    none = _Filter(filter_type="")
    price = filters.get("PRICE_FILTER", none)
    notional = filters.get("NOTIONAL", filters.get("MIN_NOTIONAL", none))
    orders = filters.get("MAX_NUM_ORDERS", none)
    spot = product.spot
    return SymbolRules(
        symbol=symbol.symbol,
        unified=_unified(symbol),
        base=symbol.base_asset,
        quote=symbol.quote_asset,
        margin_asset=symbol.margin_asset,
        trading=(symbol.status or symbol.contract_status) == "TRADING",
        contract_size=symbol.contract_size,
        price=Range(
            name="PRICE_FILTER",
            low=price.min_price,
            high=price.max_price,
            step=price.tick_size,
            base=ZERO if spot else price.min_price,
        ),
        lot=_lot("LOT_SIZE", filters.get("LOT_SIZE", none), spot),
        market_lot=_lot("MARKET_LOT_SIZE", filters["MARKET_LOT_SIZE"], spot)
        if "MARKET_LOT_SIZE" in filters
        else None,
        notional_name=notional.filter_type or "MIN_NOTIONAL",
        min_notional=notional.min_notional or notional.notional,
        max_notional=notional.max_notional,
        min_applies_to_market=notional.apply_to_market or notional.apply_min_to_market or not spot,
        max_applies_to_market=notional.apply_max_to_market,
        reduce_only_exempt=product.account is AccountType.UBASE,
        max_orders=orders.max_num_orders or orders.limit,
        amendable=symbol.amend_allowed,
    )


def _lot(name: str, entry: _Filter, spot: bool) -> Range:
    base = ZERO if spot else entry.min_qty
    return Range(name=name, low=entry.min_qty, high=entry.max_qty, step=entry.step_size, base=base)


def _unified(symbol: _Symbol) -> str:
    """`BTC/USDT`; a dated contract keeps its date, so that it is not taken for the perpetual."""
    pair = f"{symbol.base_asset}/{symbol.quote_asset}"
    _, _, tail = symbol.symbol.partition("_")
    return f"{pair}-{tail}" if tail and tail != "PERP" else pair
