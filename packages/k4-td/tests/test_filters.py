"""Filters in exact decimals, and the nearest value that passes."""

from __future__ import annotations

import json
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.errors import SymbolError
from k4.core.trading import (
    ZERO,
    AccountType,
    Direction,
    FilterRefused,
    InvalidOrder,
    NewOrder,
    OrderType,
)
from k4.td.exchanges.binance.info import parse_info
from k4.td.exchanges.binance.protocol import COIN_M, SPOT, USD_M
from k4.td.filters import Range, SymbolRules, check, check_range
from k4.td.symbols import SymbolBook

STEPS = st.sampled_from([Decimal(text) for text in ("0.00001", "0.01", "0.1", "0.5", "1", "5")])
VALUES = st.decimals(Decimal("-1000"), Decimal("100000"), places=7)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    step = draw(STEPS)
    low = draw(st.integers(0, 50)) * step
    high = low + draw(st.integers(1, 100_000)) * step
    base = draw(st.sampled_from([ZERO, low]))
    return Range(name="F", low=low, high=high, step=step, base=base)


@given(ranges(), VALUES)
def test_the_nearest_value_is_admitted_and_no_admitted_one_is_nearer(
    allowed: Range, value: Decimal
) -> None:
    nearest = allowed.nearest(value)
    assert nearest is not None
    assert allowed.admits(nearest)
    distance = abs(nearest - value)
    for other in (nearest - allowed.step, nearest + allowed.step):
        if allowed.admits(other):
            assert abs(other - value) >= distance
    if allowed.admits(value):
        assert nearest == value


@given(ranges(), VALUES)
def test_floor_and_ceiling_stay_on_their_side_within_the_bounds(
    allowed: Range, value: Decimal
) -> None:
    below, above = allowed.nearest(value, ROUND_FLOOR), allowed.nearest(value, ROUND_CEILING)
    assert below is not None
    assert above is not None
    if value >= allowed.low:
        assert below <= value
    if value <= allowed.high:
        assert above >= value


@given(ranges(), VALUES)
def test_a_refusal_names_the_filter_and_a_value_that_passes(allowed: Range, value: Decimal) -> None:
    if allowed.admits(value):
        check_range(allowed, value, "price", "X")
        return
    with pytest.raises(FilterRefused) as caught:
        check_range(allowed, value, "price", "X")
    assert caught.value.code == "filter.F"
    assert caught.value.nearest is not None
    check_range(allowed, caught.value.nearest, "price", "X")


def test_figures_that_floats_get_wrong_are_exact() -> None:
    tick = Range(name="PRICE_FILTER", step=Decimal("0.1"))
    assert tick.admits(Decimal("0.3"))
    assert not tick.admits(Decimal("0.30000000000000004"))
    tiny = Range(name="LOT_SIZE", step=Decimal("0.00000001"))
    assert tiny.admits(Decimal("98765432109876543210.12345678"))
    assert not tiny.admits(Decimal("98765432109876543210.123456785"))


def test_a_zero_bound_or_step_is_off() -> None:
    assert Range(name="F").admits(Decimal("-12.3456"))
    assert Range(name="F").nearest(Decimal("1.23")) == Decimal("1.23")


def rules(**more: Any) -> SymbolRules:
    values: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "unified": "BTC/USDT",
        "base": "BTC",
        "quote": "USDT",
        "price": Range(name="PRICE_FILTER", step=Decimal("0.1")),
        "lot": Range(name="LOT_SIZE", low=Decimal("0.001"), step=Decimal("0.001")),
    }
    return SymbolRules(**{**values, **more})


def order(**more: Any) -> NewOrder:
    values: dict[str, Any] = {
        "symbol": "BTCUSDT",
        "account_type": AccountType.UBASE,
        "direction": Direction.BUY,
        "order_type": OrderType.GTC,
        "quantity": Decimal("0.010"),
        "price": Decimal("100.0"),
    }
    return NewOrder(**{**values, **more})


def test_notional_says_the_quantity_that_would_do() -> None:
    low = rules(min_notional=Decimal(5), min_applies_to_market=True, reduce_only_exempt=True)
    with pytest.raises(FilterRefused) as caught:
        check(low, order(), ZERO, 0)
    assert caught.value.nearest == Decimal("0.050")
    check(low, order(quantity=Decimal("0.050")), ZERO, 0)
    check(low, order(reduce_only=True), ZERO, 0)
    high = rules(notional_name="NOTIONAL", max_notional=Decimal(5))
    with pytest.raises(FilterRefused) as caught:
        check(high, order(quantity=Decimal(1)), ZERO, 0)
    assert (caught.value.filter, caught.value.nearest) == ("NOTIONAL", Decimal("0.050"))


def test_a_market_order_uses_its_own_lot_and_the_price_it_expects() -> None:
    own = rules(
        market_lot=Range(name="MARKET_LOT_SIZE", high=Decimal(2)),
        min_notional=Decimal(5),
        min_applies_to_market=True,
    )
    market = {"order_type": OrderType.MARKET, "price": ZERO}
    with pytest.raises(FilterRefused, match="MARKET_LOT_SIZE"):
        check(own, order(**market, quantity=Decimal(3)), Decimal(100), 0)
    with pytest.raises(FilterRefused, match="is worth"):
        check(own, order(**market), Decimal(100), 0)
    check(own, order(**market), ZERO, 0)  # no price is known: the venue decides


def test_open_orders_and_closed_markets() -> None:
    with pytest.raises(FilterRefused, match="the venue allows 2"):
        check(rules(max_orders=2), order(), ZERO, 2)
    with pytest.raises(InvalidOrder, match="not trading"):
        check(rules(trading=False), order(), ZERO, 0)


def test_contracts_are_worth_their_size() -> None:
    contract = rules(contract_size=Decimal(100))
    assert contract.notional(Decimal(3), Decimal(50_000)) == Decimal(300)


def info(symbols: list[dict[str, Any]]) -> bytes:
    limits = [
        {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300},
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400},
    ]
    return json.dumps({"symbols": symbols, "rateLimits": limits, "timezone": "UTC"}).encode()


def symbol(name: str, base: str, quote: str, **more: Any) -> dict[str, Any]:
    return {"symbol": name, "status": "TRADING", "baseAsset": base, "quoteAsset": quote, **more}


def test_symbols_map_both_ways_and_dated_contracts_keep_their_date() -> None:
    book, windows = parse_info(
        USD_M,
        info(
            [
                symbol("BTCUSDT", "BTC", "USDT", contractType="PERPETUAL"),
                symbol("BTCUSDT_260925", "BTC", "USDT", contractType="CURRENT_QUARTER"),
                symbol("1000CATUSDT", "1000CAT", "USDT"),
                symbol("CATUSDT", "CAT", "USDT"),
                symbol("币安USDT", "币安", "USDT"),
            ]
        ),
    )
    for name, unified in (
        ("BTCUSDT", "BTC/USDT"),
        ("BTCUSDT_260925", "BTC/USDT-260925"),
        ("1000CATUSDT", "1000CAT/USDT"),
        ("CATUSDT", "CAT/USDT"),
        ("币安USDT", "币安/USDT"),
    ):
        assert book.find(name).unified == unified
        assert book.find(unified).symbol == name
    with pytest.raises(SymbolError) as caught:
        book.find("BTCUSD")
    assert "BTCUSDT" in caught.value.nearest
    assert [(window.kind, window.seconds, window.limit) for window in windows] == [
        ("ORDERS", 10, 300),
        ("REQUEST_WEIGHT", 60, 2400),
    ]
    coin, _ = parse_info(
        COIN_M,
        info([symbol("BTCUSD_PERP", "BTC", "USD", contractSize=100, contractStatus="TRADING")]),
    )
    assert coin.find("BTC/USD").contract_size == Decimal(100)


def test_a_name_that_two_symbols_share_belongs_to_neither() -> None:
    book = SymbolBook("x", [rules(symbol="A"), rules(symbol="B")])
    with pytest.raises(SymbolError):
        book.find("BTC/USDT")
    assert book.find("A").symbol == "A"


def test_steps_count_from_zero_on_spot_and_from_the_minimum_on_futures() -> None:
    filters = [
        {
            "filterType": "PRICE_FILTER",
            "minPrice": "0.05",
            "maxPrice": "10.00",
            "tickSize": "0.10",
        }
    ]
    entry = symbol("XY", "X", "Y", filters=filters)
    spot = parse_info(SPOT, info([entry]))[0].find("XY")
    futures = parse_info(USD_M, info([entry]))[0].find("XY")
    assert spot.price.admits(Decimal("0.10"))
    assert not spot.price.admits(Decimal("0.15"))
    assert futures.price.admits(Decimal("0.15"))
    assert not futures.price.admits(Decimal("0.10"))
