"""Refusals with the documented codes and texts.

Sources: Binance spot `errors.md` (July 2026), USD-M and COIN-M error pages (November 2025, changes
to October 2026). Where the documentation gives no text, the choice is marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class VenueError(Exception):
    """An answer that is no success. status: HTTP status, also that of a WebSocket answer. data:
    what goes with it (a retry time, the halves of a cancel-and-replace). text: the whole body,
    where the venue's edge answers instead of its API."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        status: int = 400,
        data: Mapping[str, Any] | None = None,
        text: str = "",
    ) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message
        self.status = status
        self.data = data
        self.text = text

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = {"code": self.code, "msg": self.message}
        if self.data is not None:
            found["data"] = self.data
        return found


# -- parameters -----------------------------------------------------------------------------------


def missing(name: str) -> VenueError:
    return VenueError(
        -1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
    )


def one_of(first: str, second: str) -> VenueError:
    return VenueError(
        -1102,
        f"Param '{first}' or '{second}' must be sent, but both were empty/null!",
    )


def illegal(name: str, pattern: str) -> VenueError:
    return VenueError(
        -1100, f"Illegal characters found in parameter '{name}'; legal range is '{pattern}'."
    )


def duplicate_parameter() -> VenueError:
    return VenueError(-1101, "Duplicate values for a parameter detected.")


def unread(read: int, sent: int) -> VenueError:
    return VenueError(
        -1104,
        f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{sent}'.",
    )


def empty(name: str) -> VenueError:
    return VenueError(-1105, f"Parameter '{name}' was empty.")


def not_required(name: str) -> VenueError:
    return VenueError(-1106, f"Parameter '{name}' sent when not required.")


def overflowed(name: str) -> VenueError:
    return VenueError(-1108, f"Parameter '{name}' overflowed.")


def too_precise(name: str) -> VenueError:
    return VenueError(-1111, f"Parameter '{name}' has too much precision.")


def bad_precision() -> VenueError:
    """The same on futures."""
    return VenueError(-1111, "Precision is over the maximum defined for this asset.")


def invalid_data(name: str) -> VenueError:
    return VenueError(-1130, f"Data sent for parameter '{name}' is not valid.")


def invalid_symbol() -> VenueError:
    return VenueError(-1121, "Invalid symbol.")


def invalid_combination() -> VenueError:
    return VenueError(-1128, "Combination of optional parameters invalid.")


def invalid_tif() -> VenueError:
    return VenueError(-1115, "Invalid timeInForce.")


def invalid_type() -> VenueError:
    return VenueError(-1116, "Invalid orderType.")


def invalid_side() -> VenueError:
    return VenueError(-1117, "Invalid side.")


# -- keys, times, signatures ----------------------------------------------------------------------


def key_format() -> VenueError:
    return VenueError(-2014, "API-key format invalid.", status=401)


def key_rejected() -> VenueError:
    return VenueError(-2015, "Invalid API-key, IP, or permissions for action.", status=401)


def outside_window() -> VenueError:
    return VenueError(-1021, "Timestamp for this request is outside of the recvWindow.")


def ahead() -> VenueError:
    return VenueError(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")


def late_at_engine() -> VenueError:
    """The text is not documented."""
    return VenueError(
        -5028, "The requested timestamp is outside the recvWindow of the matching engine"
    )


def window_too_big() -> VenueError:
    return VenueError(
        -1102, "'recvWindow' contains unexpected value. Cannot be greater than 60000."
    )


def bad_signature() -> VenueError:
    return VenueError(-1022, "Signature for this request is not valid.")


def firewall() -> VenueError:
    page = "<html><head><title>403 Forbidden</title></head><body>Request blocked.</body></html>"
    return VenueError(0, "Forbidden", status=403, text=page)


# -- limits ---------------------------------------------------------------------------------------


def too_much_weight(limit: int, interval: str, retry_ms: int, now_ms: int) -> VenueError:
    return VenueError(
        -1003,
        f"Too much request weight used; current limit is {limit} request weight per {interval}."
        " Please use WebSocket Streams for live updates to avoid polling the API.",
        status=429,
        data={"serverTime": now_ms, "retryAfter": retry_ms},
    )


def banned(until_ms: int, now_ms: int) -> VenueError:
    return VenueError(
        -1003,
        f"Way too much request weight used; IP banned until {until_ms}."
        " Please use WebSocket Streams for live updates to avoid bans.",
        status=418,
        data={"serverTime": now_ms, "retryAfter": until_ms},
    )


def too_many_orders(limit: int, interval: str, retry_ms: int, now_ms: int) -> VenueError:
    return VenueError(
        -1015,
        f"Too many new orders; current limit is {limit} orders per {interval}.",
        status=429,
        data={"serverTime": now_ms, "retryAfter": retry_ms},
    )


# -- orders ---------------------------------------------------------------------------------------


def filter_failure(name: str) -> VenueError:
    return VenueError(-1013, f"Filter failure: {name}")


def too_many_open(name: str) -> VenueError:
    """Which code goes with the MAX_NUM filters is not confirmed."""
    return VenueError(-2010, f"Filter failure: {name}")


def refused(text: str) -> VenueError:
    return VenueError(-2010, text)


def insufficient_balance() -> VenueError:
    return refused("Account has insufficient balance for requested action.")


def would_match() -> VenueError:
    return refused("Order would immediately match and take.")


def duplicate_order() -> VenueError:
    return refused("Duplicate order sent.")


def unknown_order() -> VenueError:
    return VenueError(-2011, "Unknown order sent.")


def not_canceled_by_restriction() -> VenueError:
    return VenueError(-2011, "Order was not canceled due to cancel restrictions.")


def no_such_order() -> VenueError:
    return VenueError(-2013, "Order does not exist.")


def ids_disagree() -> VenueError:
    return VenueError(
        -2039, "Client order ID and order ID were not found to belong to the same order."
    )


def amend_refused(text: str) -> VenueError:
    return VenueError(-2038, text)


_FUTURES = {
    -1099: "Not found, authenticated, or authorized.",
    -2012: "Batch cancel failed.",
    -2018: "Balance is insufficient.",
    -2019: "Margin is insufficient.",
    -2020: "Unable to fill.",
    -2021: "Order would immediately trigger.",
    -2022: "ReduceOnly Order is rejected.",
    -2023: "User in liquidation mode now.",
    -2024: "Position is not sufficient.",
    -2025: "Reach max open order limit.",
    -2026: "This OrderType is not supported when reduceOnly.",
    -2027: "Exceeded the maximum allowable position at current leverage.",
    -2028: "Leverage is smaller than permitted: insufficient margin balance.",
    -4002: "Price greater than max price.",
    -4003: "Quantity less than or equal to zero.",
    -4004: "Quantity less than min quantity.",
    -4005: "Quantity greater than max quantity.",
    -4013: "Price less than min price.",
    -4014: "Price not increased by tick size.",
    -4015: "Client order id is not valid.",
    -4023: "Quantity not increased by step size.",
    -4045: "Reach max stop order limit.",
    -4059: "No need to change position side.",
    -4061: "Order's position side does not match user's setting.",
    -4062: "Invalid or improper reduceOnly value.",
    -4067: "Position side cannot be changed if there exists open orders.",
    -4068: "Position side cannot be changed if there exists position.",
    -4087: "User can only place reduce only order.",
    -4088: "User can not place order currently.",
    -4116: "ClientOrderId is duplicated.",
    -4118: "ReduceOnly Order Failed. Please check your existing position and open orders",
    -4120: "Order type not supported for this endpoint. Please use the Algo Order API endpoints"
    " instead.",
    -4131: "The counterparty's best price does not meet the PERCENT_PRICE filter limit.",
    -4400: "Futures Trading Quantitative Rules violated, only reduceOnly order is allowed.",
    -4401: "Compliance restricted account permission: can only place reduceOnly order.",
    -5021: "Due to the order could not be filled immediately, the FOK order has been rejected.",
    -5022: "Due to the order could not be executed as maker, the Post Only order will be rejected.",
    -5024: "Symbol is not in trading status. Order amendment is not permitted.",
    -5025: "Only limit order is supported.",
    -5026: "Exceed maximum modify order limit.",
    -5027: "No need to modify the order.",
    -5029: "Order's stopPrice can't be modified.",
    -5037: "Invalid price match",
    -5038: "Price match only supports order type: LIMIT, STOP AND TAKE_PROFIT",
    -5039: "Invalid self trade prevention mode",
    -5040: "The goodTillDate timestamp must be greater than the current time plus 600 seconds and"
    " smaller than 253402300799000",
    -5041: "No depth matches this BBO order",
    -5043: "A pending modification already exists for this order.",
    -1125: "This listenKey does not exist.",
}


_SPOT = {
    -1002: "You are not authorized to execute this request.",
    -1008: "Server is currently overloaded with other requests. Please try again in a few minutes.",
    -1016: "This service is no longer available.",
    -1103: "An unknown parameter was sent.",
    -1112: "No orders on book for symbol.",
    -1114: "TimeInForce parameter sent when not required.",
    -2010: "Market is closed.",
    -2016: "No trading window could be found for the symbol. Try ticker/24hrs instead.",
    -2026: "Order was canceled or expired with no executed qty over 90 days ago and has been"
    " archived.",
}


def futures(code: int) -> VenueError:
    """A futures refusal whose text has no figures."""
    return VenueError(code, _FUTURES[code])


def by_code(product: str, code: int, message: str, status: int) -> VenueError:
    """A refusal that the simulation has no state for; its documented text where none is given."""
    texts = _SPOT if product == "spot" else _FUTURES
    return VenueError(code, message or texts.get(code, "Refused."), status=status)


def percent_price(code: int, what: str, bound: str) -> VenueError:
    """-4016 above, -4024 below."""
    return VenueError(code, f"Limit price can't be {what} than {bound}.")


def min_notional(notional: str) -> VenueError:
    return VenueError(
        -4164,
        f"Order's notional must be no smaller than {notional} (unless you choose reduce only).",
    )


# -- outcomes that are not known, or not reached --------------------------------------------------

UNKNOWN_503 = "Unknown error, please check your request or try again later."
BUSY_503 = "Service Unavailable."
RETRY_503 = "Internal error; unable to process your request. Please try again."
THROTTLED = (
    "Request throttled by system-level protection. Reduce-only/close-position orders are exempt."
    " Please try again."
)
TIMEOUT = (
    "Timeout waiting for response from backend server. Send status unknown; execution status"
    " unknown."
)
_BACKEND = {
    -1000: "An unknown error occurred while processing the request.",
    -1001: "Internal error; unable to process your request. Please try again.",
    -1006: "An unexpected response was received from the message bus. Execution status unknown.",
    -1007: TIMEOUT,
}


def unavailable(what: str) -> VenueError:
    """503 as `unknown`, `service`, `internal` (bare bodies) or `throttled` (-1008)."""
    if what == "throttled":
        return VenueError(-1008, THROTTLED, status=503)
    text = {"unknown": UNKNOWN_503, "service": BUSY_503, "internal": RETRY_503}[what]
    # The bodies carry no code; -1000 stands where a WebSocket answer must have one.
    return VenueError(-1000, text, status=503, text=text)


def backend(code: int) -> VenueError:
    """The backend did not answer, or not as it should. -1007 comes as 408, as futures document."""
    return VenueError(code, _BACKEND[code], status=408 if code == -1007 else 500)
