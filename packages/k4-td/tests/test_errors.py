"""Every code of the venue's lists is a typed error with a remedy, or an outcome not known."""

from __future__ import annotations

import pytest

from k4.core.trading import (
    AccountType,
    AmendRefused,
    AuthRefused,
    BalanceRefused,
    ClockRefused,
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

SPOT, UBASE, CBASE = AccountType.SPOT, AccountType.UBASE, AccountType.CBASE

COMMON: dict[int, type[OrderError]] = {
    -1003: VenueLimit,
    -1013: FilterFailed,
    -1014: RequestRefused,
    -1015: VenueLimit,
    -1016: VenueBusy,
    -1020: RequestRefused,
    -1021: ClockRefused,
    -1022: AuthRefused,
    -1099: AuthRefused,
    -1100: RequestRefused,
    -1101: RequestRefused,
    -1102: RequestRefused,
    -1103: RequestRefused,
    -1104: RequestRefused,
    -1105: RequestRefused,
    -1106: RequestRefused,
    -1108: RequestRefused,
    -1109: AuthRefused,
    -1111: FilterFailed,
    -1114: RequestRefused,
    -1115: RequestRefused,
    -1116: RequestRefused,
    -1117: RequestRefused,
    -1121: RequestRefused,
    -1128: RequestRefused,
    -1130: RequestRefused,
    -1135: RequestRefused,
    -1145: RequestRefused,
    -2010: RuleRefused,
    -2011: OrderMissing,
    -2013: OrderMissing,
    -2014: AuthRefused,
    -2015: AuthRefused,
    -1000: OutcomeUnknown,
    -1001: OutcomeUnknown,
    -1006: OutcomeUnknown,
    -1007: OutcomeUnknown,
}
ONLY_SPOT: dict[int, type[OrderError]] = {
    -2021: RuleRefused,
    -2022: RuleRefused,
    -2026: OrderMissing,
    -2035: RequestRefused,
    -2036: RequestRefused,
    -2038: AmendRefused,
    -2039: RequestRefused,
    -2042: VenueLimit,
}
FUTURES: dict[int, type[OrderError]] = {
    -1125: AuthRefused,
    -2012: OrderMissing,
    -2018: BalanceRefused,
    -2019: BalanceRefused,
    -2020: WouldNotRest,
    -2021: WouldNotRest,
    -2022: RuleRefused,
    -2023: RuleRefused,
    -2024: BalanceRefused,
    -2025: RuleRefused,
    -2026: RequestRefused,
    -2027: RuleRefused,
    -2028: BalanceRefused,
    **dict.fromkeys((-4002, -4003, -4004, -4005, -4013, -4014, -4016, -4023, -4024), FilterFailed),
    -4015: RequestRefused,
    -4045: RuleRefused,
    -4059: RuleRefused,
    -4061: RuleRefused,
    -4062: RuleRefused,
    -4067: RuleRefused,
    -4068: RuleRefused,
    -4087: RuleRefused,
    -4088: RuleRefused,
    -4400: RuleRefused,
    -4401: RuleRefused,
    -4531: RuleRefused,
    -5021: WouldNotRest,
    -5022: WouldNotRest,
    -5024: AmendRefused,
    -5025: AmendRefused,
    -5026: AmendRefused,
    -5027: AmendRefused,
    -5028: ClockRefused,
    -5029: AmendRefused,
    -5037: RequestRefused,
    -5038: RequestRefused,
    -5039: RequestRefused,
    -5040: RequestRefused,
    -5041: RuleRefused,
    -5043: AmendRefused,
}
ONLY_USD_M: dict[int, type[OrderError]] = {
    -4116: DuplicateOrder,
    -4118: RuleRefused,
    -4120: RequestRefused,
    -4131: FilterFailed,
    -4164: FilterFailed,
}
CASES = [
    (account, code, kind)
    for account, table in (
        (SPOT, COMMON | ONLY_SPOT),
        (UBASE, COMMON | FUTURES | ONLY_USD_M),
        (CBASE, COMMON | FUTURES),
    )
    for code, kind in table.items()
]


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
        (-2011, "Unknown order sent.", OrderMissing),
    ],
)
def test_where_the_text_decides_it_does(code: int, text: str, kind: type[OrderError]) -> None:
    assert type(interpret(SPOT, 400, code, text)) is kind


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
