"""Symbols and their filters: what `exchangeInfo` serves is what orders are checked against.

Sources: Binance spot `filters.md` (July 2026), futures "common definitions" (November 2025).
Compared as exact decimals. A bound or step of zero switches its part off.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from k4.core.errors import ConfigError, Problem
from k4.runner.sim.market import InstrumentSpec
from k4.runner.sim.trading import errors

ZERO = Decimal(0)
ASSET_PLACES = 8  # decimals of every asset

Filter = Mapping[str, Any]


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """One symbol. filters: by name, as served. contract: USD a contract (COIN-M), else 0."""

    spec: InstrumentSpec
    filters: Mapping[str, Filter]
    contract: Decimal = ZERO

    @property
    def symbol(self) -> str:
        return self.spec.symbol

    @property
    def margin_asset(self) -> str:
        return self.spec.base if self.contract else self.spec.quote

    def mantissas(self, price: Decimal, quantity: Decimal) -> tuple[int, int]:
        """The book's integers; the filters have passed, so nothing is cut."""
        return (
            int(price.scaleb(self.spec.price_scale)),
            int(quantity.scaleb(self.spec.size_scale)),
        )

    def price(self, mantissa: int) -> Decimal:
        return Decimal(mantissa).scaleb(-self.spec.price_scale)

    def size(self, mantissa: int) -> Decimal:
        return Decimal(mantissa).scaleb(-self.spec.size_scale)

    def value(self, price: Decimal, quantity: Decimal) -> Decimal:
        """What a trade is worth: in quote, or for inverse contracts in coin (16 decimals, so that
        an average price comes back to the cent)."""
        if self.contract:
            return (quantity * self.contract / price).quantize(Decimal("1e-16"))
        return price * quantity

    def number(self, name: str, key: str) -> Decimal:
        """A figure of a filter, 0 where there is none."""
        return Decimal(str(self.filters.get(name, {}).get(key, 0)))


def make_rules(
    spec: InstrumentSpec, overrides: Mapping[str, Mapping[str, Any] | None], path: str
) -> Rules:
    """The documented set of filters with figures like the venue's, changed by `overrides`. Raises
    ConfigError for a filter or a figure that does not exist."""
    filters = _spot_filters(spec) if spec.product == "spot" else _futures_filters(spec)
    optional = _OPTIONAL[spec.product]
    for name, change in overrides.items():
        if name not in filters and name not in optional:
            raise ConfigError([Problem(f"{path}.{name}", "no such filter")])
        if change is None:
            filters.pop(name, None)
            continue
        known = filters.get(name, optional.get(name, {}))
        for key in change:
            if key not in known:
                raise ConfigError([Problem(f"{path}.{name}.{key}", f"is no part of {name}")])
        filters[name] = {**known, **change}
    contract = ZERO
    if spec.product == "cbase":
        contract = Decimal(100 if spec.base == "BTC" else 10)
    return Rules(spec=spec, filters=filters, contract=contract)


def _text(value: Decimal, spot: bool) -> str:
    return f"{value:.8f}" if spot else f"{value:f}"


def _steps(spec: InstrumentSpec) -> tuple[str, str]:
    spot = spec.product == "spot"
    tick = Decimal(spec.tick).scaleb(-spec.price_scale)
    lot = Decimal(spec.lot).scaleb(-spec.size_scale)
    return _text(tick, spot), _text(lot, spot)


def _spot_filters(spec: InstrumentSpec) -> dict[str, Filter]:
    tick, lot = _steps(spec)
    return {
        "PRICE_FILTER": {"minPrice": tick, "maxPrice": "1000000.00000000", "tickSize": tick},
        "LOT_SIZE": {"minQty": lot, "maxQty": "9000000.00000000", "stepSize": lot},
        "MARKET_LOT_SIZE": {
            "minQty": "0.00000000",
            "maxQty": "1000000.00000000",
            "stepSize": "0.00000000",
        },
        "PERCENT_PRICE_BY_SIDE": {
            "bidMultiplierUp": "5",
            "bidMultiplierDown": "0.2",
            "askMultiplierUp": "5",
            "askMultiplierDown": "0.2",
            "avgPriceMins": 5,
        },
        "NOTIONAL": {
            "minNotional": "5.00000000",
            "applyMinToMarket": True,
            "maxNotional": "9000000.00000000",
            "applyMaxToMarket": False,
            "avgPriceMins": 5,
        },
        "MAX_NUM_ORDERS": {"maxNumOrders": 200},
        "MAX_NUM_ORDER_AMENDS": {"maxNumOrderAmends": 10},
    }


def _futures_filters(spec: InstrumentSpec) -> dict[str, Filter]:
    tick, lot = _steps(spec)
    filters: dict[str, Filter] = {
        "PRICE_FILTER": {"minPrice": tick, "maxPrice": "4529764", "tickSize": tick},
        "LOT_SIZE": {"minQty": lot, "maxQty": "1000000", "stepSize": lot},
        "MARKET_LOT_SIZE": {"minQty": lot, "maxQty": "100000", "stepSize": lot},
        "MAX_NUM_ORDERS": {"limit": 200},
        "PERCENT_PRICE": {
            "multiplierUp": "1.0500",
            "multiplierDown": "0.9500",
            "multiplierDecimal": "4",
        },
    }
    if spec.product == "ubase":
        filters["MIN_NOTIONAL"] = {"notional": "5"}
    return filters


_OPTIONAL: Mapping[str, Mapping[str, Filter]] = {
    "spot": {
        "MIN_NOTIONAL": {"minNotional": "5.00000000", "applyToMarket": True, "avgPriceMins": 5},
        "PERCENT_PRICE": {"multiplierUp": "5", "multiplierDown": "0.2", "avgPriceMins": 5},
        "MAX_POSITION": {"maxPosition": "10.00000000"},
    },
    "ubase": {},
    "cbase": {},
}


def served(rules: Rules) -> list[dict[str, Any]]:
    """The filters as `exchangeInfo` lists them."""
    return [{"filterType": name, **parts} for name, parts in rules.filters.items()]


# -- spot -----------------------------------------------------------------------------------------


def check_spot(
    rules: Rules, buy: bool, price: Decimal | None, quantity: Decimal, reference: Decimal
) -> None:
    """price: None for a market order. reference: the symbol's reference price. Raises what the
    venue answers."""
    check_spot_precision("quantity", quantity)
    if price is not None:
        check_spot_precision("price", price)
        _price_filter(rules, price)
        _percent(rules, buy, price, reference)
    _lot(rules, "LOT_SIZE", quantity)
    if price is None:
        _lot(rules, "MARKET_LOT_SIZE", quantity)
    _notional(rules, price, quantity, reference)


def check_spot_precision(name: str, value: Decimal) -> None:
    exponent = value.normalize().as_tuple().exponent
    if isinstance(exponent, int) and -exponent > ASSET_PLACES:
        raise errors.too_precise(name)


def _price_filter(rules: Rules, price: Decimal) -> None:
    low, high, tick = (
        rules.number("PRICE_FILTER", key) for key in ("minPrice", "maxPrice", "tickSize")
    )
    if _outside(price, low, high) or (tick and price % tick):
        raise errors.filter_failure("PRICE_FILTER")


def _lot(rules: Rules, name: str, quantity: Decimal) -> None:
    low, high, step = (rules.number(name, key) for key in ("minQty", "maxQty", "stepSize"))
    if _outside(quantity, low, high) or (step and quantity % step) or quantity <= 0:
        raise errors.filter_failure(name)


def _outside(value: Decimal, low: Decimal, high: Decimal) -> bool:
    return bool((low and value < low) or (high and value > high))


def _percent(rules: Rules, buy: bool, price: Decimal, reference: Decimal) -> None:
    for name, prefix in (
        ("PERCENT_PRICE", "multiplier"),
        ("PERCENT_PRICE_BY_SIDE", "bidMultiplier" if buy else "askMultiplier"),
    ):
        up, down = (rules.number(name, prefix + key) for key in ("Up", "Down"))
        if _outside(price, down * reference, up * reference):
            raise errors.filter_failure(name)


def _notional(rules: Rules, price: Decimal | None, quantity: Decimal, reference: Decimal) -> None:
    worth = (reference if price is None else price) * quantity
    least = rules.filters.get("MIN_NOTIONAL", {})
    if (price is not None or least.get("applyToMarket")) and worth < rules.number(
        "MIN_NOTIONAL", "minNotional"
    ):
        raise errors.filter_failure("MIN_NOTIONAL")
    both = rules.filters.get("NOTIONAL", {})
    low, high = (rules.number("NOTIONAL", key) for key in ("minNotional", "maxNotional"))
    too_small = (price is not None or both.get("applyMinToMarket")) and low and worth < low
    too_large = (price is not None or both.get("applyMaxToMarket")) and high and worth > high
    if too_small or too_large:
        raise errors.filter_failure("NOTIONAL")


# -- futures --------------------------------------------------------------------------------------


def check_futures(
    rules: Rules,
    buy: bool,
    price: Decimal | None,
    quantity: Decimal,
    mark: Decimal,
    *,
    reduces: bool,
) -> None:
    """price: None for a market order. reduces: exempt from the minimum notional (USD-M)."""
    _futures_quantity(rules, "LOT_SIZE" if price is not None else "MARKET_LOT_SIZE", quantity)
    if price is not None:
        _futures_price(rules, price, mark)
    least = rules.number("MIN_NOTIONAL", "notional")
    if least and not reduces and (mark if price is None else price) * quantity < least:
        raise errors.min_notional(f"{least:f}")


def _futures_quantity(rules: Rules, name: str, quantity: Decimal) -> None:
    low, high, step = (rules.number(name, key) for key in ("minQty", "maxQty", "stepSize"))
    if quantity <= 0:
        raise errors.futures(-4003)
    _places(quantity, rules.spec.size_scale)
    if low and quantity < low:
        raise errors.futures(-4004)
    if high and quantity > high:
        raise errors.futures(-4005)
    if step and (quantity - low) % step:
        raise errors.futures(-4023)


def _futures_price(rules: Rules, price: Decimal, mark: Decimal) -> None:
    low, high, tick = (
        rules.number("PRICE_FILTER", key) for key in ("minPrice", "maxPrice", "tickSize")
    )
    if low and price < low:
        raise errors.futures(-4013)
    if high and price > high:
        raise errors.futures(-4002)
    _places(price, rules.spec.price_scale)
    if tick and (price - low) % tick:
        raise errors.futures(-4014)
    up, down = (rules.number("PERCENT_PRICE", f"multiplier{key}") for key in ("Up", "Down"))
    places = Decimal(1).scaleb(-rules.spec.price_scale)
    if up and price > mark * up:
        raise errors.percent_price(-4016, "higher", f"{(mark * up).quantize(places)}")
    if down and price < mark * down:
        raise errors.percent_price(-4024, "lower", f"{(mark * down).quantize(places)}")


def check_market_reach(rules: Rules, buy: bool, best: Decimal, mark: Decimal) -> None:
    """A market order's first price, against the mark price."""
    up, down = (rules.number("PERCENT_PRICE", f"multiplier{key}") for key in ("Up", "Down"))
    if (buy and up and best > mark * up) or (not buy and down and best < mark * down):
        raise errors.futures(-4131)


def _places(value: Decimal, places: int) -> None:
    exponent = value.normalize().as_tuple().exponent
    if isinstance(exponent, int) and -exponent > places:
        raise errors.bad_precision()
