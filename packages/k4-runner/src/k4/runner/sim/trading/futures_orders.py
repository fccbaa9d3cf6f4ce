"""What the parameters of a futures order mean, and which of them the venue refuses.

Sources: Binance USD-M and COIN-M "New Order" and "New Algo Order" documentation (November 2025,
changes to October 2026).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from decimal import Decimal

from k4.runner.sim.matching import Book, Prevention
from k4.runner.sim.trading import algo, errors
from k4.runner.sim.trading.algo import AlgoOrder
from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.futures_shapes import PREVENTIONS
from k4.runner.sim.trading.orders import Order
from k4.runner.sim.trading.params import Params
from k4.runner.sim.trading.rules import Rules

ZERO = Decimal(0)
_CLIENT_ID = re.compile(r"[.A-Z:/a-z0-9_-]{1,36}")
_SIDES = ("BUY", "SELL")
_TIFS: Mapping[str, tuple[str, ...]] = {
    "ubase": ("GTC", "IOC", "FOK", "GTX", "GTD", "RPI"),
    "cbase": ("GTC", "IOC", "FOK", "GTX"),
}
_CONDITIONAL_ONLY = ("stopPrice", "activationPrice", "callbackRate", "closePosition")
_GTD_LEAD_MS, _GTD_LAST_MS = 600_000, 253_402_300_799_000
_MATCHES = re.compile(r"(OPPONENT|QUEUE)(_(5|10|20))?")
_WORKING = ("MARK_PRICE", "CONTRACT_PRICE")


def client_id_of(params: Params, name: str = "newClientOrderId") -> str:
    """The client's, or one of the venue's own making."""
    if name not in params:
        return secrets.token_hex(11)
    text = params.text(name)
    if not _CLIENT_ID.fullmatch(text):
        raise errors.futures(-4015)
    return text


def draft(
    params: Params,
    rules: Rules,
    book: Book,
    *,
    number: int,
    account: str,
    hedge: bool,
    now_ms: int,
    default_prevention: str,
) -> Order:
    """The order that the parameters describe. Filters and the book come later."""
    product = rules.spec.product
    kind = _kind(params, product)
    tif = params.text("timeInForce", "GTC")
    order = Order(
        number=number,
        product=product,
        account=account,
        symbol=rules.symbol,
        client_id=client_id_of(params),
        buy=params.need("side") == "BUY",
        kind=kind,
        tif=tif,
        price=params.decimal("price") or ZERO,
        quantity=params.need_decimal("quantity"),
        created_ms=now_ms,
        prevention=prevention_of(params, default_prevention),
        reduce_only=reduce_only_of(params, hedge),
        position_side=position_side_of(params, hedge),
        good_till_ms=_good_till(params, tif, now_ms),
        original_kind=kind,
    )
    match = params.text("priceMatch", "NONE")
    if match != "NONE":
        order.price_match, order.price = match, _matched(match, params, order, rules, book)
    elif kind == "LIMIT":
        params.need("price")
    return order


def _kind(params: Params, product: str) -> str:
    if params.need("side") not in _SIDES:
        raise errors.invalid_side()
    kind = params.need("type")
    if kind in algo.KINDS:
        # COIN-M has the algo endpoints too; whether it enforces this is not confirmed.
        raise errors.futures(-4120)
    if kind not in ("LIMIT", "MARKET"):
        raise errors.invalid_type()
    for name in _CONDITIONAL_ONLY:
        if name in params and params.text(name) != "false":
            raise errors.not_required(name)
    if kind == "LIMIT":
        if params.need("timeInForce") not in _TIFS[product]:
            raise errors.invalid_tif()
        return kind
    for name in ("timeInForce", "price", "priceMatch", "goodTillDate"):
        if name in params:
            raise errors.not_required(name)
    return kind


def _good_till(params: Params, tif: str, now_ms: int) -> int:
    if tif != "GTD":
        if "goodTillDate" in params and params.integer("goodTillDate"):
            raise errors.not_required("goodTillDate")
        return 0
    params.need("goodTillDate")
    date = params.integer("goodTillDate") or 0
    if not now_ms + _GTD_LEAD_MS < date < _GTD_LAST_MS:
        raise errors.futures(-5040)
    return date // 1000 * 1000


def _matched(match: str, params: Params, order: Order, rules: Rules, book: Book) -> Decimal:
    """The price of a place in the book."""
    if not _MATCHES.fullmatch(match):
        raise errors.futures(-5037)
    if order.kind != "LIMIT":
        raise errors.futures(-5038)
    if "price" in params:
        raise errors.not_required("price")
    name, _, place = match.partition("_")
    levels = book.levels(order.buy if name == "QUEUE" else not order.buy)
    for index, (price, _) in enumerate(levels, start=1):
        if index == int(place or 1):
            return rules.price(price)
    raise errors.futures(-5041)


def prevention_of(params: Params, default: str) -> Prevention:
    mode = params.text("selfTradePreventionMode", default)
    if mode not in [known.value for known in PREVENTIONS]:
        raise errors.futures(-5039)
    return Prevention(mode)


def position_side_of(params: Params, hedge: bool) -> str:
    side = params.text("positionSide", "BOTH")
    if side not in ("BOTH", "LONG", "SHORT"):
        raise errors.invalid_data("positionSide")
    if hedge == (side == "BOTH"):
        raise errors.futures(-4061)
    return side


def reduce_only_of(params: Params, hedge: bool) -> bool:
    if "reduceOnly" in params and hedge:
        raise errors.futures(-4062)
    return params.flag("reduceOnly")


def algo_draft(
    params: Params, rules: Rules, *, number: int, account: str, hedge: bool, now_ms: int
) -> AlgoOrder:
    """The conditional order that the parameters describe."""
    if params.need("algoType") != "CONDITIONAL":
        raise errors.invalid_data("algoType")
    if params.need("side") not in _SIDES:
        raise errors.invalid_side()
    kind = params.need("type")
    if kind not in algo.KINDS:
        raise errors.invalid_type()
    trailing, limit = kind == "TRAILING_STOP_MARKET", kind in ("STOP", "TAKE_PROFIT")
    closes = params.flag("closePosition")
    if closes and ("quantity" in params or "reduceOnly" in params):
        raise errors.invalid_combination()
    tif = params.text("timeInForce", "GTC")
    if tif not in _TIFS[rules.spec.product]:
        raise errors.invalid_tif()
    return AlgoOrder(
        number=number,
        account=account,
        symbol=rules.symbol,
        client_id=client_id_of(params, "clientAlgoId"),
        buy=params.need("side") == "BUY",
        kind=kind,
        tif=tif,
        quantity=ZERO if closes else params.need_decimal("quantity"),
        price=params.need_decimal("price") if limit else ZERO,
        trigger=ZERO if trailing else params.need_decimal("triggerPrice"),
        created_ms=now_ms,
        position_side=position_side_of(params, hedge),
        working_type=params.one_of("workingType", _WORKING, "CONTRACT_PRICE"),
        close_position=closes,
        reduce_only=reduce_only_of(params, hedge),
        price_protect=params.flag("priceProtect"),
        prevention=prevention_of(params, "EXPIRE_MAKER").value,
        callback=_callback(params) if trailing else ZERO,
        activate=params.decimal("activatePrice") or ZERO,
    )


def _callback(params: Params) -> Decimal:
    """Percent, 0.1 to 20 since 23 October 2026."""
    rate = params.need_decimal("callbackRate")
    if not Decimal("0.1") <= rate <= 20:
        raise VenueError(-2007, "Invalid callBack rate.")
    return rate
