"""What Binance's error codes mean, per product: a typed error with a remedy, or an outcome that is
not known.

Sources: Binance spot `errors.md` (July 2026), USD-M and COIN-M error code pages (November 2025,
changes to October 2026). COIN-M numbers parts of the 40xx and 41xx range differently, so codes are
looked up by product.
"""

from __future__ import annotations

from k4.core.trading import (
    VENUE_ERRORS,
    AccountType,
    DuplicateOrder,
    OrderError,
    OutcomeUnknown,
    VenueRefused,
)

_Meaning = tuple[str, str]  # second part of the `venue.*` code, remedy

_LIMIT = "wait as long as told; K4 holds requests back until then"
_PARAMETER = "a parameter is wrong as the message says; this is a defect unless you sent it"
_KEY = "check api_key, its permissions and its list of allowed addresses at the venue"

_COMMON: dict[int, _Meaning] = {
    -1002: ("auth", _KEY),
    -1003: ("limit", _LIMIT),
    -1008: ("busy", "the venue is overloaded: back off, then try again with a new order"),
    -1010: ("rule", "the venue gives the reason in its message"),
    -1013: ("filter", "change price or quantity so that the named filter passes"),
    -1014: ("request", "this combination of parameters is not supported for the symbol"),
    -1015: ("limit", "place fewer orders; cancels still work"),
    -1016: ("busy", "the service was moved or is shut down: check the endpoint"),
    -1020: ("request", "the venue does not support this operation here"),
    -1021: ("clock", "let the system clock be disciplined (NTP) or raise recv_window"),
    -1022: ("auth", "the secret or key file does not belong to api_key"),
    -1099: ("auth", _KEY),
    -1100: ("request", _PARAMETER),
    -1101: ("request", _PARAMETER),
    -1102: ("request", "a mandatory parameter is missing or wrong; recv_window is at most 60000"),
    -1103: ("request", _PARAMETER),
    -1104: ("request", _PARAMETER),
    -1105: ("request", _PARAMETER),
    -1106: ("request", _PARAMETER),
    -1108: ("request", "a figure is too large for the venue"),
    -1109: ("auth", "the account is not valid at the venue now"),
    -1110: ("request", "this symbol does not take this order type"),
    -1111: ("filter", "price or quantity has more decimals than the asset"),
    -1112: ("rule", "the book of this symbol is empty: no market order can fill"),
    -1114: ("request", "this order type takes no time in force"),
    -1115: ("request", "this time in force does not exist for the product"),
    -1116: ("request", "this order type does not exist for the product"),
    -1117: ("request", "the side must be buy or sell"),
    -1118: ("request", "the client order id is empty"),
    -1119: ("request", "the original client order id is empty"),
    -1121: ("request", "the venue does not list this symbol; see k4-runner symbols"),
    -1125: ("auth", "the listen key has expired; K4 makes a new one"),
    -1127: ("request", "the period between start and end is too long"),
    -1128: ("request", _PARAMETER),
    -1130: ("request", _PARAMETER),
    -1135: ("request", _PARAMETER),
    -1136: ("request", _PARAMETER),
    -1145: ("request", "cancel restrictions are ONLY_NEW or ONLY_PARTIALLY_FILLED"),
    -2010: ("rule", "the venue gives the reason in its message"),
    -2011: ("missing", "query the order: it may be final already, or never have existed"),
    -2013: ("missing", "the venue knows no such order, or it is older than what it keeps"),
    -2014: ("auth", "api_key is malformed: copy it again"),
    -2015: ("auth", _KEY),
    -2016: ("rule", "the symbol is not trading"),
    -2025: ("rule", "too many open orders: cancel some"),
    -2026: ("missing", "the order is archived: it was never filled and is older than 90 days"),
}

_SPOT: dict[int, _Meaning] = {
    -2021: ("rule", "the order was cancelled, the new one refused; query both"),
    -2022: ("rule", "neither was the order cancelled nor the new one placed"),
    -2035: ("request", "this connection is subscribed already"),
    -2036: ("request", "no such subscription on this connection"),
    -2038: ("amend", "new quantity must be above the filled and below the present one; at most 10"),
    -2039: ("request", "order id and client order id name different orders"),
    -2042: ("limit", "too many subscriptions on one connection: connect anew"),
}

_FUTURES: dict[int, _Meaning] = {
    -2012: ("missing", "query the orders: the batch cancel failed"),
    -2017: ("auth", "the key is locked at the venue"),
    -2018: ("balance", "deposit, or lower the quantity"),
    -2019: ("balance", "add margin, or lower quantity or leverage"),
    -2020: ("would_not_rest", "the order cannot be filled now"),
    -2021: ("would_not_rest", "the order would trigger at once: move the trigger price"),
    -2022: ("rule", "there is no position left that this reduce-only order could reduce"),
    -2023: ("rule", "the account is in liquidation"),
    -2024: ("balance", "the position is smaller than the order"),
    -2025: ("rule", "too many open orders: cancel some"),
    -2026: ("request", "this order type cannot be reduce-only"),
    -2027: ("rule", "the position exceeds what the leverage allows: lower leverage or quantity"),
    -2028: ("balance", "leverage is too small for the margin"),
    -4015: ("request", "client order ids have 1 to 36 of A-Z a-z 0-9 . : / _ -"),
    -4045: ("rule", "too many conditional orders: cancel some"),
    -4059: ("rule", "the position mode is what you asked for already"),
    -4061: ("rule", "give position_side long or short in hedge mode, both in one-way mode"),
    -4062: ("rule", "reduce_only does not exist in hedge mode: position_side decides"),
    -4067: ("rule", "close open orders before changing the position mode"),
    -4068: ("rule", "close positions before changing the position mode"),
    -4087: ("rule", "the account may only reduce positions now"),
    -4088: ("rule", "the account may not place orders now"),
    -4400: ("rule", "the venue's trading rules restrict the account to reducing positions"),
    -4401: ("rule", "the venue's trading rules restrict the account"),
    -4531: ("rule", "the position mode cannot be changed while portfolio margin is synchronised"),
    -5021: ("would_not_rest", "the fill-or-kill order could not be filled at once"),
    -5022: ("would_not_rest", "the post-only order would have taken: move its price"),
    -5024: ("amend", "the order cannot be changed now: query it"),
    -5025: ("amend", "only limit orders can be changed"),
    -5026: ("amend", "the order was changed too often: cancel it and place another"),
    -5027: ("amend", "nothing would change"),
    -5028: ("clock", "the request reached the engine outside of recv_window"),
    -5029: ("amend", "the order cannot be changed like that"),
    -5037: ("request", "this price match does not exist"),
    -5038: ("request", "price match goes with limit orders alone"),
    -5039: ("request", "this self-trade prevention mode does not exist"),
    -5040: ("request", "good_till_us must be more than 600 s ahead and before the year 10000"),
    -5041: ("rule", "there is no best price to match now"),
    -5043: ("amend", "an earlier change of this order is under way: wait for its answer"),
}

_BOUNDS: dict[int, _Meaning] = {
    code: ("filter", "change price or quantity as the message says")
    for code in (-4002, -4003, -4004, -4005, -4013, -4014, -4016, -4023, -4024)
}

_USD_M: dict[int, _Meaning] = {
    -4116: ("duplicate", "the client order id is in use by an open order"),
    -4118: ("rule", "the reduce-only order failed the margin check"),
    -4120: ("request", "conditional orders belong to the venue's algo endpoint"),
    -4131: ("filter", "the market order would move too far from the mark price"),
    -4164: ("filter", "raise the quantity: the notional is too small"),
}

TABLES: dict[AccountType, dict[int, _Meaning]] = {
    AccountType.SPOT: _COMMON | _SPOT,
    AccountType.UBASE: _COMMON | _FUTURES | _BOUNDS | _USD_M,
    AccountType.CBASE: _COMMON | _FUTURES | _BOUNDS,
}

# Texts that decide the meaning of -2010, -2011 and -2038 (spot), lower case, most specific first.
_TEXTS: tuple[tuple[str, _Meaning], ...] = (
    ("duplicate order", ("duplicate", "the earlier order with this id is live: query it")),
    ("insufficient balance", ("balance", "deposit, or lower the quantity")),
    ("immediately match", ("would_not_rest", "the post-only order would have taken")),
    ("trigger immediately", ("would_not_rest", "the stop would trigger at once")),
    (
        "max_num_order_amends",
        ("amend", "it was changed in place as often as allowed: cancel it and place another"),
    ),
    ("filter failure: max_num", ("filter", "too many open orders of this kind: cancel some")),
    ("filter failure: max_position", ("filter", "lower the quantity, or cancel open buys")),
    ("filter failure: max_asset", ("filter", "lower the quantity, or cancel open buys")),
    ("filter failure", ("filter", "change price or quantity so that the named filter passes")),
    ("market is closed", ("rule", "wait until the market opens")),
)

_UNKNOWN_CODES = frozenset({-1000, -1001, -1006, -1007})
UNKNOWN_REMEDY = "K4 asks the venue by client order id; do not send it again"


def interpret(
    account: AccountType, status: int, code: int, text: str, retry_after: float = 0.0
) -> OrderError:
    """The error that an answer of this HTTP (or WebSocket API) status means.

    code: the venue's, 0 where the body carried none. retry_after: seconds.
    """
    if _unknown(account, status, code, text):
        what = f"{text or 'no text'} [{status}/{code}]"
        return OutcomeUnknown("", what, remedy=UNKNOWN_REMEDY, venue_code=code or None)
    kind, remedy = _meaning(account, status, code, text)
    error = VENUE_ERRORS.get(kind, VenueRefused)(
        kind,
        f"{text or 'refused'} [{code or status}]",
        remedy=remedy,
        venue_code=code or None,
        retry_after=retry_after,
    )
    return error


def _unknown(account: AccountType, status: int, code: int, text: str) -> bool:
    """Whether the venue itself cannot say that it did not execute (sheet of ambiguous outcomes)."""
    futures = account is not AccountType.SPOT
    if futures and ("Service Unavailable" in text or "Please try again." in text):
        return False
    if futures and code == -1008:
        return False
    return status >= 500 or status == 408 or code in _UNKNOWN_CODES


def _meaning(account: AccountType, status: int, code: int, text: str) -> _Meaning:
    if status in (418, 429) and code != -1015:
        return "limit", _LIMIT
    if status == 403:
        return "request", "the venue's web firewall refused: look at symbols and client order ids"
    if code in (-1013, -2010, -2011, -2038, -2021):
        lowered = text.lower()
        for phrase, meaning in _TEXTS:
            if phrase in lowered:
                return meaning
    meaning_or_none = TABLES[account].get(code)
    if meaning_or_none is not None:
        return meaning_or_none
    if status >= 500:
        return "busy", "the venue did not execute: back off, then decide again"
    if status == 401:
        return "auth", _KEY
    if status == 404:
        return "request", "the endpoint does not exist: check the URL in the configuration"
    return "other", "the venue gives the reason in its message; do not send it unchanged"


def is_duplicate(error: VenueRefused) -> bool:
    """Whether the refusal proves that an earlier send of the same id is live."""
    return isinstance(error, DuplicateOrder)
