"""Every code of the venue's lists is a typed error with a remedy, or an outcome not known."""

from __future__ import annotations

import pytest
from td_codes import CASES, CBASE, ONLY_USD_M, SPOT, UBASE

from k4.core.trading import (
    AccountType,
    AmendRefused,
    AuthRefused,
    BalanceRefused,
    DuplicateOrder,
    FilterFailed,
    OrderError,
    OrderMissing,
    OutcomeUnknown,
    RequestRefused,
    RuleRefused,
    VenueBusy,
    VenueLimit,
    VenueRefused,
    WouldNotRest,
    error_data,
    error_from_wire,
)
from k4.td.exchanges.binance.errors import interpret


@pytest.mark.parametrize(("account", "code", "kind"), CASES)
def test_every_code_is_typed_and_says_what_to_do(
    account: AccountType, code: int, kind: type[OrderError]
) -> None:
    error = interpret(account, 400, code, "the venue's words")
    assert type(error) is kind
    assert error.venue_code == code
    assert len(error.remedy) > 10
    assert "the venue's words" in error.message
    back = error_from_wire(error_data(error))
    assert (type(back), back.code, back.venue_code) == (kind, error.code, code)
    assert back.remedy == error.remedy


def test_codes_that_coin_m_numbers_differently_are_not_taken_for_usd_m_s() -> None:
    for code in ONLY_USD_M:
        error = interpret(CBASE, 400, code, "something")
        assert (type(error), error.code) == (VenueRefused, "venue.other")
        assert error.remedy


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (-2010, "Duplicate order sent.", DuplicateOrder),
        (-2010, "Account has insufficient balance for requested action.", BalanceRefused),
        (-2010, "Order would immediately match and take.", WouldNotRest),
        (-2010, "Order would trigger immediately.", WouldNotRest),
        (-2010, "Market is closed.", RuleRefused),
        (-2010, "Filter failure: MAX_NUM_ORDERS", FilterFailed),
        (-1013, "Filter failure: MAX_POSITION", FilterFailed),
        (-2038, "Filter failure: MAX_NUM_ORDER_AMENDS", AmendRefused),
        (-2011, "Unknown order sent.", OrderMissing),
    ],
)
def test_where_the_text_decides_it_does(code: int, text: str, kind: type[OrderError]) -> None:
    error = interpret(SPOT, 400, code, text)
    assert type(error) is kind
    assert len(error.remedy) > 10


def test_a_filter_that_counts_orders_is_not_passed_by_another_price() -> None:
    remedies = {
        name: interpret(SPOT, 400, -1013, f"Filter failure: {name}").remedy
        for name in ("MAX_NUM_ORDERS", "MAX_NUM_ALGO_ORDERS", "MAX_POSITION", "LOT_SIZE")
    }
    assert "cancel some" in remedies["MAX_NUM_ORDERS"]
    assert remedies["MAX_NUM_ALGO_ORDERS"] == remedies["MAX_NUM_ORDERS"]
    assert "open buys" in remedies["MAX_POSITION"]
    assert "named filter" in remedies["LOT_SIZE"]


@pytest.mark.parametrize(
    ("account", "status", "code", "text", "kind"),
    [
        (SPOT, 503, 0, "", OutcomeUnknown),
        (SPOT, 504, -1007, "Timeout", OutcomeUnknown),
        (SPOT, 408, 0, "", OutcomeUnknown),
        (SPOT, 500, 0, "<html>", OutcomeUnknown),
        (SPOT, 503, -1008, "Server is currently overloaded", OutcomeUnknown),
        (UBASE, 503, 0, "Unknown error, please check your request", OutcomeUnknown),
        (UBASE, 503, 0, "Service Unavailable.", VenueBusy),
        (UBASE, 503, -1008, "Request throttled by system-level protection", VenueBusy),
        (
            UBASE,
            500,
            -1001,
            "Internal error; unable to process your request. Please try again.",
            VenueBusy,
        ),
        (UBASE, 500, -1001, "Internal error", OutcomeUnknown),
        (SPOT, 429, -1003, "Too much request weight used", VenueLimit),
        (SPOT, 429, -1015, "Too many new orders", VenueLimit),
        (SPOT, 418, -1003, "IP banned until 1795000030000", VenueLimit),
        (SPOT, 403, 0, "<html>", RequestRefused),
        (SPOT, 401, 0, "", AuthRefused),
        (SPOT, 404, 0, "<html>", RequestRefused),
        (SPOT, 400, -9999, "new code", VenueRefused),
    ],
)
def test_the_status_tells_failed_from_unknown(
    account: AccountType, status: int, code: int, text: str, kind: type[OrderError]
) -> None:
    error = interpret(account, status, code, text)
    assert type(error) is kind
    assert error.remedy
