"""Every error code of Binance's lists that a client can cause, and what K4 makes of it.

Typed out from the venue's error pages (spot July 2026, futures November 2025 with changes to
October 2026), not derived from K4's own table.
"""

from __future__ import annotations

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
)

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
    -1008: VenueBusy,
    -1000: OutcomeUnknown,
    -1001: OutcomeUnknown,
    -1006: OutcomeUnknown,
    -1007: OutcomeUnknown,
    239999: VenueRefused,  # seen in the cut-over of June 2026
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
    -5047: VenueRefused,  # listed in September 2026, without a meaning
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
