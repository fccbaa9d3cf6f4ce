"""Orders and events as JSON: decimals stay decimals, and every error comes back as itself."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k4.core.errors import TradingError
from k4.core.trading import (
    VENUE_ERRORS,
    AccountType,
    Balance,
    BalanceChanged,
    Connected,
    Direction,
    Disconnected,
    Event,
    Fault,
    Fill,
    Filled,
    FilterRefused,
    ForeignOrder,
    GatewayError,
    InvalidOrder,
    KeyRefreshed,
    NewOrder,
    OrderChanged,
    OrderError,
    OrderStatus,
    OrderType,
    OrderUpdate,
    OutcomeUnknown,
    Position,
    PositionChanged,
    RiskRefused,
    decimal_text,
    error_data,
    error_from_wire,
    event_data,
    event_from_wire,
    from_wire,
    parse_decimal,
    to_wire,
)

DECIMALS = st.decimals(Decimal("-1e15"), Decimal("1e15"), places=12)
TEXT = st.text(max_size=10)


def update(quantity: Decimal, price: Decimal, key: str) -> OrderUpdate:
    return OrderUpdate(
        symbol="BTCUSDT",
        account_type=AccountType.UBASE,
        direction=Direction.SELL,
        order_type=OrderType.POST_ONLY,
        quantity=quantity,
        price=price,
        client_order_id=key,
        status=OrderStatus.PARTIALLY_FILLED,
        filled_avg_price=price,
    )


@st.composite
def events(draw: st.DrawFn) -> Event:
    one, two, key = draw(DECIMALS), draw(DECIMALS), draw(TEXT)
    spot = AccountType.SPOT
    fill = Fill(
        symbol=key,
        account_type=spot,
        direction=Direction.BUY,
        client_order_id=key,
        order_id=key,
        trade_id="1",
        price=one,
        quantity=two,
    )
    choices: list[Event] = [
        OrderChanged(update(one, two, key)),
        ForeignOrder(update(one, two, key)),
        Filled(fill),
        PositionChanged(Position(symbol=key, account_type=spot, quantity=one)),
        BalanceChanged(Balance(asset=key, account_type=spot, free=one, locked=two)),
        Connected(account_type=spot),
        Disconnected(account_type=spot, reason=key),
        KeyRefreshed(account_type=spot, created=True),
        Fault(code="a.b", message=key),
    ]
    return draw(st.sampled_from(choices))


@given(events())
def test_every_event_survives_the_wire_and_no_number_is_a_float(event: Event) -> None:
    name, data = event_data(event)
    text = json.dumps(data)
    assert event_from_wire(name, json.loads(text)) == event
    assert not any(isinstance(value, float) and value for value in data.values())


@given(DECIMALS)
def test_decimal_text_has_no_exponent_and_keeps_the_value(value: Decimal) -> None:
    text = decimal_text(value)
    assert "e" not in text.lower()
    assert parse_decimal(text, "x") == value


@pytest.mark.parametrize("value", ["1E-12", "1e5", "0.10", "-3", "007"])
def test_plain_decimal_text_is_read(value: str) -> None:
    assert parse_decimal(value, "price") == Decimal(value)


@pytest.mark.parametrize(
    "value", [1, 0.1, None, True, "NaN", "Infinity", "-inf", "", "1,5", "0x1", "1e999999", "1e-999"]
)
def test_anything_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(InvalidOrder) as caught:
        parse_decimal(value, "price")
    assert caught.value.code == "order.price"


@given(
    st.dictionaries(
        st.sampled_from(["symbol", "price", "quantity", "direction", "account_type", "extra"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just({}),
    )
)
def test_any_object_is_an_order_or_an_invalid_one(data: dict[str, Any]) -> None:
    complete = {
        "symbol": "X",
        "account_type": "spot",
        "direction": "buy",
        "order_type": "gtc",
        "quantity": "1",
        **data,
    }
    try:
        order = from_wire(NewOrder, complete)
    except InvalidOrder:
        return
    assert isinstance(order.price, Decimal)
    assert from_wire(NewOrder, to_wire(order)) == order


def test_statuses_that_end_an_order() -> None:
    final = {status for status in OrderStatus if status.final}
    assert final == {
        OrderStatus.FILLED,
        OrderStatus.CANCELED,
        OrderStatus.REJECTED,
        OrderStatus.EXPIRED,
    }


def test_every_error_comes_back_as_its_own_class() -> None:
    errors: list[OrderError] = [
        FilterRefused("LOT_SIZE", "no", Decimal("0.10")),
        RiskRefused("symbols", "no", remedy="do"),
        OutcomeUnknown("", "no", venue_code=-1007),
        GatewayError("lost", "no"),
        *(kind(name, "no", venue_code=-1) for name, kind in VENUE_ERRORS.items()),
    ]
    for error in errors:
        error.order = update(Decimal(1), Decimal(2), "k")
        back = error_from_wire(json.loads(json.dumps(error_data(error))))
        assert type(back) is type(error)
        assert (back.code, back.message, back.remedy) == (error.code, error.message, error.remedy)
        assert (back.venue_code, back.order) == (error.venue_code, error.order)
        assert isinstance(back, TradingError)
    nearest = error_from_wire(error_data(errors[0]))
    assert isinstance(nearest, FilterRefused)
    assert nearest.nearest == Decimal("0.10")
    assert type(error_from_wire({"code": "new.kind", "message": "x"})) is GatewayError
