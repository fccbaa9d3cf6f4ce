"""The spot product: what its requests mean, what they answer, which events follow.

Sources: Binance spot `rest-api.md`, `web-socket-api.md`, `user-data-stream.md` (July 2026).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from decimal import ROUND_DOWN, Decimal
from typing import Any, TypeVar

from k4.runner.sim.matching import Prevention
from k4.runner.sim.trading import errors, spot_shapes
from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.exchange import Exchange
from k4.runner.sim.trading.gate import Request, VenueClock
from k4.runner.sim.trading.limits import OrderCounts
from k4.runner.sim.trading.orders import Order, Trade
from k4.runner.sim.trading.params import Params
from k4.runner.sim.trading.rules import Rules, check_spot, served
from k4.runner.sim.trading.wallets import SpotWallet

Json = dict[str, Any]
Tell = Callable[[str, Json, str], None]
"""Tell an account of an event: account, body, the order's client id."""

_T = TypeVar("_T")
ZERO = Decimal(0)
_SIDES = ("BUY", "SELL")
_TIFS = ("GTC", "IOC", "FOK")
_NOT_OFFERED = {
    "STOP_LOSS": "Stop loss orders are not supported for this symbol.",
    "STOP_LOSS_LIMIT": "Stop loss limit orders are not supported for this symbol.",
    "TAKE_PROFIT": "Take profit orders are not supported for this symbol.",
    "TAKE_PROFIT_LIMIT": "Take profit limit orders are not supported for this symbol.",
}
_NEEDS = {
    "LIMIT": ("timeInForce", "quantity", "price"),
    "LIMIT_MAKER": ("quantity", "price"),
    "MARKET": (),
}
_REFUSES = {
    "LIMIT": ("quoteOrderQty", "stopPrice", "trailingDelta"),
    "LIMIT_MAKER": ("timeInForce", "quoteOrderQty", "stopPrice", "trailingDelta"),
    "MARKET": ("timeInForce", "price", "stopPrice", "trailingDelta", "icebergQty"),
}
_RESTRICTIONS = {"ONLY_NEW": "NEW", "ONLY_PARTIALLY_FILLED": "PARTIALLY_FILLED"}
_MAKER_CREDIT, _TAKER_CREDIT = 5, 1  # unfilled orders that a first fill gives back
_MAX_LIMIT = 1000
_REASON_OF = {
    "Account has insufficient balance for requested action.": "INSUFFICIENT_BALANCES",
    "Order would immediately match and take.": "WOULD_MATCH_IMMEDIATELY",
}


class SpotDesk:
    """See `Exchange` for what it acts on. counts: of orders, by account. tell: an event."""

    def __init__(
        self,
        exchange: Exchange,
        wallets: Mapping[str, SpotWallet],
        counts: Mapping[str, OrderCounts],
        clock: VenueClock,
        tell: Tell,
        info: Callable[[], Json],
    ) -> None:
        self.exchange = exchange
        self._wallets = wallets
        self._counts = counts
        self._clock = clock
        self._tell = tell
        self._info = info
        self._execution = exchange.new_number() * 2
        self._amendments: dict[int, list[Json]] = {}
        self._cancel_id = ""
        self._amended_from = ""
        self._uids = {account: 354_937_868 + at for at, account in enumerate(wallets)}
        self._handlers: dict[str, Callable[[Request], Any]] = {
            "ping": lambda _: {},
            "time": lambda _: {"serverTime": self._clock.now_ms()},
            "exchangeInfo": self._exchange_info,
            "order.place": self._place,
            "order.test": self._test,
            "order.cancel": self._cancel,
            "openOrders.cancelAll": self._cancel_all,
            "order.cancelReplace": self._cancel_replace,
            "order.amend.keepPriority": self._amend,
            "order.status": self._status,
            "openOrders.status": self._open_orders,
            "allOrders": self._all_orders,
            "myTrades": self._my_trades,
            "account.status": self._account,
            "account.rateLimits.orders": self._order_limits,
            "order.amendments": lambda request: self._amendments.get(
                request.params.integer("orderId") or 0, []
            ),
            "myFilters": self._my_filters,
        }

    def execute(self, request: Request) -> Any:
        """The result. Raises VenueError; then nothing has changed, but for half of a
        cancel-and-replace."""
        return self._handlers[request.endpoint.op](request)

    # -- orders -----------------------------------------------------------------------------------

    def _rules(self, params: Params) -> Rules:
        rules = self.exchange.rules.get(params.symbol())
        if rules is None:
            raise errors.invalid_symbol()
        return rules

    def _place(self, request: Request) -> Json:
        order = self._draft(request, request.params)
        self._count(request.account, 1)
        try:
            self.exchange.place(order)
        except VenueError:
            self._count(request.account, -1)
            raise
        return self._placed(order, request.params)

    def _test(self, request: Request) -> Json:
        order = self._draft(request, request.params)
        if not request.params.flag("computeCommissionRates"):
            return {}
        maker, taker = self._wallets[order.account].fees
        rates = {
            "maker": spot_shapes.text(maker),
            "taker": spot_shapes.text(taker),
            "buyer": spot_shapes.text(ZERO),
            "seller": spot_shapes.text(ZERO),
        }
        return {"standardCommissionForOrder": rates}

    def _placed(self, order: Order, params: Params) -> Json:
        default = "FULL" if order.kind in ("LIMIT", "MARKET") else "ACK"
        how = params.one_of("newOrderRespType", ("ACK", "RESULT", "FULL"), default)
        if how == "ACK":
            return spot_shapes.ack(order)
        if how == "RESULT":
            return spot_shapes.result(order)
        return spot_shapes.full(order, order.trades)

    def _draft(self, request: Request, params: Params) -> Order:
        """The order that the parameters describe, checked against everything but the book."""
        rules = self._rules(params)
        kind = _kind(params)
        order = Order(
            number=self.exchange.new_number(),
            product="spot",
            account=request.account,
            symbol=rules.symbol,
            client_id=params.text("newClientOrderId") or secrets.token_hex(11),
            buy=params.need("side") == "BUY",
            kind=kind,
            tif=params.text("timeInForce", "GTC"),
            price=params.decimal("price") or ZERO,
            quantity=params.decimal("quantity") or ZERO,
            created_ms=self._clock.engine_now_ms(),
            quote_quantity=params.decimal("quoteOrderQty") or ZERO,
            prevention=_prevention(params),
            strategy_id=params.integer("strategyId"),
            strategy_type=params.integer("strategyType"),
            original_kind=kind,
        )
        if order.strategy_type is not None and order.strategy_type < 1_000_000:
            raise errors.invalid_data("strategyType")
        if order.quote_quantity:
            order.quantity = self._for_quote(order, rules)
        price = None if kind == "MARKET" else order.price
        check_spot(rules, order.buy, price, order.quantity, self.exchange.mark(order.symbol))
        self._check_counts(order, rules)
        if self.exchange.is_duplicate(order.account, order.symbol, order.client_id):
            raise errors.duplicate_order()
        return order

    def _for_quote(self, order: Order, rules: Rules) -> Decimal:
        """How much base a quote amount stands for at the book's prices, in whole lots."""
        left, quantity = order.quote_quantity, ZERO
        for mantissa, size in self.exchange.books[order.symbol].levels(not order.buy):
            price = rules.price(mantissa)
            part = min(rules.size(size), left / price)
            quantity += part
            left -= part * price
            if left <= 0:
                break
        else:
            quantity += left / self.exchange.mark(order.symbol)
        return quantity.quantize(Decimal(1).scaleb(-rules.spec.size_scale), ROUND_DOWN)

    def _check_counts(self, order: Order, rules: Rules) -> None:
        most = int(rules.number("MAX_NUM_ORDERS", "maxNumOrders"))
        count = len(self.exchange.open_orders(order.account, order.symbol))
        if most and count >= most:
            raise errors.too_many_open("MAX_NUM_ORDERS")
        position = rules.number("MAX_POSITION", "maxPosition")
        if position and order.buy:
            held = self._wallets[order.account].holding(rules.spec.base)
            bids = [o for o in self.exchange.open_orders(order.account, order.symbol) if o.buy]
            coming = sum((other.left for other in bids), ZERO) + order.quantity
            if held.free + held.locked + coming > position:
                raise errors.too_many_open("MAX_POSITION")

    def _find(self, request: Request, id_name: str, client_name: str) -> Order | None:
        """The order that a request names. Raises -2039 where its two names disagree."""
        params = request.params
        number, client_id = params.integer(id_name), params.text(client_name)
        order = self.exchange.find(request.account, params.symbol(), number, client_id)
        if order is not None and number is not None and client_id and order.client_id != client_id:
            raise errors.ids_disagree()
        return order

    def _cancel(self, request: Request) -> Json:
        self._rules(request.params)
        return self._cancel_one(request, "orderId", "origClientOrderId", "newClientOrderId")

    def _cancel_one(self, request: Request, id_name: str, client_name: str, new_id: str) -> Json:
        restriction = request.params.text("cancelRestrictions")
        if restriction and restriction not in _RESTRICTIONS:
            raise VenueError(-1145, "Invalid cancelRestrictions")
        order = self._find(request, id_name, client_name)
        if order is None or not order.open:
            raise errors.unknown_order()
        if restriction and order.status != _RESTRICTIONS[restriction]:
            raise errors.not_canceled_by_restriction()
        return self._canceled(order, request.params.text(new_id) or secrets.token_hex(11))

    def _canceled(self, order: Order, cancel_id: str) -> Json:
        self._cancel_id = cancel_id
        self.exchange.cancel(order)
        self._cancel_id = ""
        return spot_shapes.canceled(order, cancel_id)

    def _cancel_all(self, request: Request) -> list[Json]:
        """With nothing open the venue answers -2011 in practice; no text says so."""
        rules = self._rules(request.params)
        orders = self.exchange.open_orders(request.account, rules.symbol)
        if not orders:
            raise errors.unknown_order()
        return [self._canceled(order, secrets.token_hex(11)) for order in orders]

    def _cancel_replace(self, request: Request) -> Json:
        """Not atomic: the cancel is done before the new order is looked at by the engine."""
        params = request.params
        mode = params.one_of("cancelReplaceMode", ("STOP_ON_FAILURE", "ALLOW_FAILURE"))
        exceeded = params.one_of(
            "orderRateLimitExceededMode", ("DO_NOTHING", "CANCEL_ONLY"), "DO_NOTHING"
        )
        order = self._draft_unchecked(request)
        counts = self._counts[request.account]
        over = counts.exceeded(self._clock.now_ms())
        if over is not None and exceeded == "DO_NOTHING":
            raise over
        counts.add(self._clock.now_ms(), 1)  # also for one that is not attempted
        cancel: Json = {"cancelResult": "SUCCESS"}
        try:
            cancel_response: Any = self._cancel_one(
                request, "cancelOrderId", "cancelOrigClientOrderId", "cancelNewClientOrderId"
            )
        except VenueError as error:
            cancel["cancelResult"], cancel_response = "FAILURE", error.body()
        body: Json = {**cancel, "newOrderResult": "NOT_ATTEMPTED"}
        body |= {"cancelResponse": cancel_response, "newOrderResponse": None}
        failed = body["cancelResult"] == "FAILURE"
        if over is not None:
            body["newOrderResult"], body["newOrderResponse"] = "FAILURE", over.body()
        elif not failed or mode == "ALLOW_FAILURE":
            self._replace(request, order, body)
        return self._replaced(body, over)

    def _draft_unchecked(self, request: Request) -> Callable[[], Order]:
        """What is wrong with the parameters shows before anything is cancelled; what is wrong with
        the order, only afterwards."""
        _kind(request.params)
        self._rules(request.params)
        return lambda: self._draft(request, request.params)

    def _replace(self, request: Request, draft: Callable[[], Order], body: Json) -> None:
        order: Order | None = None
        try:
            order = draft()
            self.exchange.place(order)
        except VenueError as error:
            body["newOrderResult"], body["newOrderResponse"] = "FAILURE", error.body()
            if order is not None:
                self._execution += 1
                why = _REASON_OF.get(error.message, "NONE")
                now = self._clock.now_ms()
                report = spot_shapes.rejection(order, now, self._execution, why)
                self._tell(order.account, report, order.client_id)
            return
        body["newOrderResult"] = "SUCCESS"
        body["newOrderResponse"] = self._placed(order, request.params)

    def _replaced(self, body: Json, over: VenueError | None) -> Json:
        results = body["cancelResult"], body["newOrderResult"]
        if results == ("SUCCESS", "SUCCESS"):
            return body
        if over is not None:
            data = {**body, **(over.data or {})}
            raise VenueError(over.code, over.message, status=429, data=data)
        if "SUCCESS" in results:
            text = "Order cancel-replace partially failed."
            raise VenueError(-2021, text, status=409, data=body)
        raise VenueError(-2022, "Order cancel-replace failed.", data=body)

    def _amend(self, request: Request) -> Json:
        params = request.params
        rules = self._rules(params)
        quantity = params.need_decimal("newQty")
        order = self._find(request, "orderId", "origClientOrderId")
        if order is None or not order.open:
            raise errors.no_such_order()
        if order.amends >= int(rules.number("MAX_NUM_ORDER_AMENDS", "maxNumOrderAmends")):
            text = "Filter failure: MAX_NUM_ORDER_AMENDS"
            raise errors.amend_refused(text)
        if quantity <= order.executed or quantity >= order.quantity:
            raise errors.amend_refused(
                "Order amend (quantity increase or no change) is not supported."
            )
        price = self.exchange.mark(order.symbol)
        check_spot(rules, order.buy, order.price, quantity, price)
        client_id = params.text("newClientOrderId") or secrets.token_hex(11)
        taken = self.exchange.is_duplicate(order.account, order.symbol, client_id)
        if taken and client_id != order.client_id:
            raise errors.duplicate_order()
        previous, before = order.client_id, order.quantity
        self._amended_from = previous
        self.exchange.amend(order, quantity, client_id)
        self._amended_from = ""
        self._amendments.setdefault(order.number, []).append(
            {
                "symbol": order.symbol,
                "orderId": order.number,
                "executionId": self._execution,
                "origClientOrderId": previous,
                "newClientOrderId": client_id,
                "origQty": spot_shapes.text(before),
                "newQty": spot_shapes.text(quantity),
                "time": order.updated_ms,
            }
        )
        return spot_shapes.amended(order, previous, self._execution)

    # -- queries ----------------------------------------------------------------------------------

    def _status(self, request: Request) -> Json:
        self._rules(request.params)
        order = self._find(request, "orderId", "origClientOrderId")
        if order is None:
            raise errors.no_such_order()
        return spot_shapes.queried(order)

    def _open_orders(self, request: Request) -> list[Json]:
        symbol = self._rules(request.params).symbol if "symbol" in request.params else ""
        orders = self.exchange.open_orders(request.account, symbol)
        return [spot_shapes.queried(order) for order in orders]

    def _all_orders(self, request: Request) -> list[Json]:
        params = request.params
        orders = self.exchange.all_orders(request.account, self._rules(params).symbol)
        first = params.integer("orderId")
        if first is not None:
            orders = [order for order in orders if order.number >= first]
        found = page(orders, params, lambda order: order.created_ms, newest=first is None)
        return [spot_shapes.queried(order) for order in found]

    def _my_trades(self, request: Request) -> list[Json]:
        symbol = self._rules(request.params).symbol
        found = trades_of(self.exchange, request.account, symbol, request.params)
        return [spot_shapes.my_trade(trade) for trade in found]

    def _account(self, request: Request) -> Json:
        omit = request.params.flag("omitZeroBalances")
        account = request.account
        return spot_shapes.account(self._wallets[account], self._uids[account], omit_zero=omit)

    def _order_limits(self, request: Request) -> list[Json]:
        now = self._clock.now_ms()
        return [window.counted(now) for window in self._counts[request.account].windows]

    def _my_filters(self, request: Request) -> Json:
        rules = self._rules(request.params)
        return {"exchangeFilters": [], "symbolFilters": served(rules), "assetFilters": []}

    def _exchange_info(self, request: Request) -> Json:
        params = request.params
        rules = list(self.exchange.rules.values())
        if "symbol" in params:
            rules = [self._rules(params)]
        return {**self._info(), "symbols": [spot_shapes.listing(item) for item in rules]}

    # -- Listener ---------------------------------------------------------------------------------

    def stepped(self, order: Order, event: str, trade: Trade | None) -> None:
        self._execution += 1
        client_id, original = order.client_id, ""
        if event == "CANCELED":
            client_id, original = self._cancel_id or secrets.token_hex(11), order.client_id
        elif event == "REPLACED":
            original = self._amended_from
        wallet = self._wallets[order.account]
        now = self._clock.now_ms()
        report = spot_shapes.execution_report(
            order,
            event,
            trade,
            now_ms=now,
            execution=self._execution,
            client_id=client_id,
            original_id=original,
        )
        if event == "TRADE_PREVENTION":
            report |= self._prevention(order)
        self._tell(order.account, report, order.client_id)
        wallet.updated_ms = order.updated_ms
        spec = self.exchange.rules[order.symbol].spec
        position = spot_shapes.account_position(wallet, (spec.base, spec.quote), now)
        self._tell(order.account, position, "")
        if trade is not None and not order.first_fill:
            order.first_fill = True
            credit = _MAKER_CREDIT if trade.maker else _TAKER_CREDIT
            self._count(order.account, -credit)

    def _prevention(self, order: Order) -> Json:
        meeting = self.exchange.meeting
        if meeting is None:
            return {}
        maker, taker, size = meeting
        counter = taker if order is maker else maker
        return spot_shapes.prevention_parts(order, counter, size, self._execution)

    def _count(self, account: str, orders: int) -> None:
        self._counts[account].add(self._clock.now_ms(), orders)

    # -- from outside -----------------------------------------------------------------------------

    def deposit(self, account: str, asset: str, amount: Decimal) -> None:
        """Negative: a withdrawal."""
        wallet, now = self._wallets[account], self._clock.now_ms()
        wallet.holding(asset).free += amount
        wallet.updated_ms = now
        self._tell(account, spot_shapes.balance_update(asset, amount, now), "")
        self._tell(account, spot_shapes.account_position(wallet, (asset,), now), "")


def _kind(params: Params) -> str:
    """The type, with the parameters that it needs and without those that it refuses."""
    if params.need("side") not in _SIDES:
        raise errors.invalid_side()
    kind = params.need("type")
    if kind in _NOT_OFFERED:
        raise errors.refused(_NOT_OFFERED[kind])
    if kind not in _NEEDS:
        raise errors.invalid_type()
    for name in _REFUSES[kind]:
        if name in params:
            raise errors.not_required(name)
    for name in _NEEDS[kind]:
        params.need(name)
    if kind == "MARKET" and ("quantity" in params) == ("quoteOrderQty" in params):
        if "quantity" in params:
            raise errors.invalid_combination()
        raise errors.one_of("quantity", "quoteOrderQty")
    if kind == "LIMIT" and params.need("timeInForce") not in _TIFS:
        raise errors.invalid_tif()
    if "icebergQty" in params:
        raise errors.refused("Iceberg orders are not supported for this symbol.")
    if {"pegPriceType", "pegOffsetValue", "pegOffsetType"} & params.names():
        raise VenueError(-1014, "Unsupported order combination.")
    return kind


def _prevention(params: Params) -> Prevention:
    modes = [mode.value for mode in Prevention]
    return Prevention(params.one_of("selfTradePreventionMode", modes, "EXPIRE_MAKER"))


def trades_of(exchange: Exchange, account: str, symbol: str, params: Params) -> list[Trade]:
    """An account's fills, as myTrades and userTrades select them."""
    number, first = params.integer("orderId"), params.integer("fromId")
    found = [
        trade
        for trade in exchange.trades
        if trade.account == account
        and symbol in ("", trade.symbol)
        and number in (None, trade.order)
        and (first is None or trade.id >= first)
    ]
    return page(found, params, lambda trade: trade.time_ms, newest=first is None)


def page(
    items: list[_T], params: Params, time_of: Callable[[_T], int], *, newest: bool
) -> list[_T]:
    """Those within startTime and endTime, at most `limit`: the newest, where a query gives neither
    a first id nor a start; else the oldest."""
    start, end = params.integer("startTime"), params.integer("endTime")
    limit = params.integer("limit")
    if limit is None:
        limit = 500
    if not 0 < limit <= _MAX_LIMIT:
        raise errors.invalid_data("limit")
    kept = [
        item
        for item in items
        if (start is None or time_of(item) >= start) and (end is None or time_of(item) <= end)
    ]
    return kept[-limit:] if newest and start is None else kept[:limit]
