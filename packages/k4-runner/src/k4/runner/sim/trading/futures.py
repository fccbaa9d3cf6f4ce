"""The futures products: what their requests mean, what they answer, which events follow.

USD-M and COIN-M differ in paths, in units (contracts and coins against quantity and dollars) and in
some codes; a `FuturesDesk` is one of them. Sources: see `futures_shapes.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from k4.core.clock import Clock, Timer
from k4.runner.sim.trading import algo, errors, futures_orders
from k4.runner.sim.trading import futures_shapes as shapes
from k4.runner.sim.trading.algo import AlgoBook, AlgoOrder
from k4.runner.sim.trading.errors import VenueError
from k4.runner.sim.trading.exchange import Exchange
from k4.runner.sim.trading.futures_accounts import FuturesAccounts
from k4.runner.sim.trading.gate import Request, VenueClock
from k4.runner.sim.trading.limits import OrderCounts
from k4.runner.sim.trading.orders import Order, Trade
from k4.runner.sim.trading.params import Params
from k4.runner.sim.trading.rules import Rules, check_futures, check_market_reach
from k4.runner.sim.trading.spot import Tell, page, trades_of

Json = dict[str, Any]
ZERO = Decimal(0)
_MOST_MODIFICATIONS = 9_999
_MOST_IN_BATCH, _MOST_CANCELS = 5, 10
_AUTOCLOSE = "autoclose-"
_SOON = ("IOC", "FOK", "GTX")  # a RESULT waits for the fate of these


class FuturesDesk:
    """See `Exchange` for what it acts on. counts: of orders, by account, for both."""

    def __init__(
        self,
        exchange: Exchange,
        accounts: FuturesAccounts,
        counts: Mapping[str, OrderCounts],
        clock: VenueClock,
        timers: Clock,
        tell: Tell,
        info: Callable[[], Json],
    ) -> None:
        self.exchange = exchange
        self.accounts = accounts
        self._usd = exchange.product == "ubase"
        self._counts = counts
        self._clock = clock
        self._timers = timers
        self._tell = tell
        self._info = info
        self._modify_id: int | None = None
        self._countdowns: dict[tuple[str, str], Timer] = {}
        self.algos = AlgoBook(self._place_algo, self._tell_algo, clock.engine_now_ms)
        self._handlers: dict[str, Callable[[Request], Any]] = {
            "ping": lambda _: {},
            "time": lambda _: {"serverTime": self._clock.now_ms()},
            "exchangeInfo": self._exchange_info,
            "order.place": lambda request: self._place(request, request.params),
            "order.test": self._test,
            "order.modify": lambda request: self._modify(request, request.params),
            "order.cancel": self._cancel,
            "order.status": self._status,
            "batch.place": lambda request: self._batch(request, self._place),
            "batch.modify": lambda request: self._batch(request, self._modify),
            "batch.cancel": self._batch_cancel,
            "openOrders.cancelAll": self._cancel_all,
            "countdownCancelAll": self._countdown,
            "openOrder": self._open_order,
            "openOrders.status": self._open_orders,
            "allOrders": self._all_orders,
            "userTrades": self._user_trades,
            "forceOrders": self._force_orders,
            "algoOrder.place": self._algo_place,
            "algoOrder.cancel": self._algo_cancel,
            "algoOrder.status": lambda request: algo.answer(self._algo(request)),
            "algoOpenOrders.cancelAll": self._algo_cancel_all,
            "openAlgoOrders": self._open_algos,
            "allAlgoOrders": self._all_algos,
            "positionMode.set": self._set_position_mode,
            "leverage": self._set_leverage,
            **accounts.handlers,
        }

    def execute(self, request: Request) -> Any:
        """The result. Raises VenueError; then nothing has changed."""
        return self._handlers[request.endpoint.op](request)

    # -- orders -----------------------------------------------------------------------------------

    def _rules(self, params: Params) -> Rules:
        rules = self.exchange.rules.get(params.symbol())
        if rules is None:
            raise errors.invalid_symbol()
        return rules

    def _draft(self, request: Request, params: Params) -> Order:
        rules = self._rules(params)
        order = futures_orders.draft(
            params,
            rules,
            self.exchange.books[rules.symbol],
            number=self.exchange.new_number(),
            account=request.account,
            hedge=self.accounts.hedge[request.account],
            now_ms=self._clock.engine_now_ms(),
            # The REST text says EXPIRE_MAKER, that of the WebSocket API NONE.
            default_prevention="NONE" if request.transport == "ws" else "EXPIRE_MAKER",
        )
        self._check(order, rules)
        return order

    def _check(self, order: Order, rules: Rules) -> None:
        mark = self.exchange.mark(order.symbol)
        price = None if order.kind == "MARKET" else order.price
        reduces = order.reduce_only or order.close_position
        check_futures(rules, order.buy, price, order.quantity, mark, reduces=reduces)
        best = self.exchange.books[order.symbol].best(not order.buy)
        if price is None and best is not None:
            check_market_reach(rules, order.buy, rules.price(best), mark)
        most = int(rules.number("MAX_NUM_ORDERS", "limit"))
        if most and len(self.exchange.open_orders(order.account, order.symbol)) >= most:
            raise errors.futures(-2025)
        if self.exchange.is_duplicate(order.account, order.symbol, order.client_id):
            # COIN-M has no -4116; what it answers instead is not documented.
            raise errors.futures(-4116) if self._usd else errors.duplicate_order()

    def _place(self, request: Request, params: Params) -> Json:
        order = self._draft(request, params)
        self._count(request.account, 1)
        try:
            self.exchange.place(order)
        except VenueError:
            self._count(request.account, -1)
            raise
        how = params.one_of("newOrderRespType", ("ACK", "RESULT"), "ACK")
        final = how == "RESULT" and (order.kind == "MARKET" or order.tif in _SOON)
        rules = self.exchange.rules[order.symbol]
        return shapes.answer(order, rules, accepted_only=not final)

    def _test(self, request: Request) -> Json:
        order = self._draft(request, request.params)
        return shapes.answer(order, self.exchange.rules[order.symbol])

    def _named(self, request: Request, params: Params) -> Order | None:
        number, client_id = params.integer("orderId"), params.text("origClientOrderId")
        symbol = self._rules(params).symbol
        return self.exchange.find(request.account, symbol, number, client_id)

    def _modify(self, request: Request, params: Params) -> Json:
        rules, order = self._rules(params), self._named(request, params)
        if params.need("side") not in ("BUY", "SELL"):
            raise errors.invalid_side()
        price, quantity = params.need_decimal("price"), params.need_decimal("quantity")
        if order is None or not order.open:
            raise errors.no_such_order()
        if order.kind != "LIMIT":
            raise errors.futures(-5025)
        if order.side != params.need("side"):
            raise errors.invalid_data("side")
        if (price, quantity) == (order.price, order.quantity):
            raise errors.futures(-5027)
        if order.amends >= _MOST_MODIFICATIONS:
            raise errors.futures(-5026)
        mark = self.exchange.mark(order.symbol)
        check_futures(rules, order.buy, price, quantity, mark, reduces=order.reduce_only)
        self._count(request.account, 1)
        self._modify_id = params.integer("modifyId")
        try:
            self.exchange.modify(order, price, quantity)
        finally:
            self._modify_id = None
        return shapes.answer(order, rules)

    def _cancel(self, request: Request) -> Json:
        order = self._named(request, request.params)
        if order is None or not order.open:
            raise errors.unknown_order()
        self.exchange.cancel(order)
        return shapes.answer(order, self.exchange.rules[order.symbol])

    def _cancel_all(self, request: Request) -> Json:
        """Plain orders alone: conditional ones stay. With nothing open it succeeds as well."""
        self.cancel_symbol(request.account, self._rules(request.params).symbol)
        return {"code": 200, "msg": "The operation of cancel all open order is done."}

    def cancel_symbol(self, account: str, symbol: str) -> None:
        for order in self.exchange.open_orders(account, symbol):
            self.exchange.cancel(order)

    def _countdown(self, request: Request) -> Json:
        symbol = self._rules(request.params).symbol
        wait = request.params.integer("countdownTime") or 0
        timer = self._countdowns.pop((request.account, symbol), None)
        if timer is not None:
            timer.cancel()
        if wait:
            key = request.account, symbol
            self._countdowns[key] = self._timers.call_later(
                wait / 1000, self.cancel_symbol, request.account, symbol
            )
        return {"symbol": symbol, "countdownTime": str(wait)}

    def _batch(self, request: Request, one: Callable[[Request, Params], Json]) -> list[Json]:
        orders = _list(request.params.need("batchOrders"), _MOST_IN_BATCH, "batchOrders")
        answers = []
        for item in orders:
            if not isinstance(item, dict):
                raise errors.invalid_data("batchOrders")
            values = {name: _plain(value) for name, value in item.items()}
            answers.append(_either(partial(one, request, Params(values))))
        return answers

    def _batch_cancel(self, request: Request) -> list[Json]:
        params = request.params
        name, single = "orderIdList", "orderId"
        if name not in params:
            name, single = "origClientOrderIdList", "origClientOrderId"
        found = []
        for item in _list(params.need(name), _MOST_CANCELS, name):
            values = {"symbol": params.need("symbol"), single: _plain(item)}
            asked = msgspec.structs.replace(request, values=values)
            found.append(_either(partial(self._cancel, asked)))
        return found

    # -- queries ----------------------------------------------------------------------------------

    def _query(self, orders: Iterable[Order]) -> list[Json]:
        return [shapes.queried(order, self.exchange.rules[order.symbol]) for order in orders]

    def _status(self, request: Request) -> Json:
        order = self._named(request, request.params)
        if order is None:
            raise errors.no_such_order()
        return self._query([order])[0]

    def _open_order(self, request: Request) -> Json:
        order = self._named(request, request.params)
        if order is None or not order.open:
            raise errors.no_such_order()
        return self._query([order])[0]

    def _selected(self, request: Request) -> Callable[[str], bool]:
        """Which symbols `symbol` or `pair` select; all where neither is sent."""
        params = request.params
        if "symbol" in params:
            wanted = self._rules(params).symbol
            return lambda symbol: symbol == wanted
        pair = params.text("pair")
        return lambda symbol: not pair or symbol.partition("_")[0] == pair

    def _open_orders(self, request: Request) -> list[Json]:
        wanted = self._selected(request)
        orders = self.exchange.open_orders(request.account)
        return self._query(order for order in orders if wanted(order.symbol))

    def _all_orders(self, request: Request) -> list[Json]:
        params, wanted = request.params, self._selected(request)
        first = params.integer("orderId")
        orders = [
            order
            for order in self.exchange.all_orders(request.account)
            if wanted(order.symbol) and (first is None or order.number >= first)
        ]
        return self._query(
            page(orders, params, lambda order: order.created_ms, newest=first is None)
        )

    def _user_trades(self, request: Request) -> list[Json]:
        wanted = self._selected(request)
        found = trades_of(self.exchange, request.account, "", request.params)
        return [
            shapes.user_trade(trade, self.exchange.rules[trade.symbol])
            for trade in found
            if wanted(trade.symbol)
        ]

    def _force_orders(self, request: Request) -> list[Json]:
        wanted = self._selected(request)
        orders = self.exchange.all_orders(request.account)
        return self._query(
            order
            for order in orders
            if wanted(order.symbol) and order.client_id.startswith(_AUTOCLOSE)
        )

    def _exchange_info(self, request: Request) -> Json:
        listed = [shapes.listing(rules) for rules in self.exchange.rules.values()]
        return {**self._info(), "symbols": listed}

    # -- conditional orders -----------------------------------------------------------------------

    def _algo_place(self, request: Request) -> Json:
        rules = self._rules(request.params)
        order = futures_orders.algo_draft(
            request.params,
            rules,
            number=self.exchange.new_number(),
            account=request.account,
            hedge=self.accounts.hedge[request.account],
            now_ms=self._clock.engine_now_ms(),
        )
        if len(self.algos.open(request.account)) >= algo.MOST_OPEN:
            raise errors.futures(-4045)
        same = self.algos.find(request.account, None, order.client_id)
        if same is not None and same.open:
            raise errors.futures(-4116)
        if not order.close_position:
            price = order.price or None
            mark = self.exchange.mark(order.symbol)
            check_futures(rules, order.buy, None, order.quantity, mark, reduces=True)
            if price is not None:
                check_futures(rules, order.buy, price, order.quantity, price, reduces=True)
        if order.trigger and order.reached(self._price(order.symbol, order.working_type)):
            raise errors.futures(-2021)
        self._count(request.account, 1)
        self.algos.add(order)
        return algo.answer(order)

    def _algo(self, request: Request) -> AlgoOrder:
        params = request.params
        number, client_id = params.integer("algoId"), params.text("clientAlgoId")
        order = self.algos.find(request.account, number, client_id)
        if order is None:
            raise errors.no_such_order()
        return order

    def _algo_cancel(self, request: Request) -> Json:
        params = request.params
        number, client_id = params.integer("algoId"), params.text("clientAlgoId")
        order = self.algos.find(request.account, number, client_id)
        if order is None or not order.open:
            raise errors.unknown_order()
        self.algos.cancel(order)
        return {
            "algoId": order.number,
            "clientAlgoId": order.client_id,
            "code": "200",
            "msg": "success",
        }

    def _algo_cancel_all(self, request: Request) -> Json:
        for order in self.algos.open(request.account, self._rules(request.params).symbol):
            self.algos.cancel(order)
        return {"code": 200, "msg": "The operation of cancel all open order is done."}

    def _open_algos(self, request: Request) -> list[Json]:
        symbol = self._rules(request.params).symbol if "symbol" in request.params else ""
        return [algo.answer(order) for order in self.algos.open(request.account, symbol)]

    def _all_algos(self, request: Request) -> list[Json]:
        symbol = self._rules(request.params).symbol
        mine = [o for o in self.algos.orders.values() if o.account == request.account]
        found = [order for order in mine if order.symbol == symbol]
        params = request.params
        return [
            algo.answer(order)
            for order in page(found, params, lambda order: order.created_ms, newest=True)
        ]

    def check_triggers(self, symbol: str) -> None:
        """After the price may have moved."""
        self.algos.check(symbol, lambda working: self._price(symbol, working))

    def _price(self, symbol: str, working: str) -> Decimal:
        mark = working == "MARK_PRICE"
        return self.exchange.mark(symbol) if mark else self.exchange.last(symbol)

    def _place_algo(self, order: AlgoOrder) -> Order:
        """What a triggered order becomes. It has been counted when it was placed."""
        rules = self.exchange.rules[order.symbol]
        quantity = order.quantity
        if order.close_position:
            quantity = self.accounts.reducible(
                order.account, order.symbol, order.position_side, order.buy
            )
        placed = Order(
            number=self.exchange.new_number(),
            product=self.exchange.product,
            account=order.account,
            symbol=order.symbol,
            client_id=order.client_id,
            buy=order.buy,
            kind="LIMIT" if order.price else "MARKET",
            tif=order.tif,
            price=order.price,
            quantity=quantity,
            created_ms=self._clock.engine_now_ms(),
            prevention=futures_orders.prevention_of(
                Params({"selfTradePreventionMode": order.prevention}), order.prevention
            ),
            reduce_only=order.reduce_only,
            close_position=order.close_position,
            position_side=order.position_side,
            original_kind=order.kind,
        )
        self._check(placed, rules)
        self.exchange.place(placed)
        return placed

    def _tell_algo(self, order: AlgoOrder) -> None:
        body = algo.event(order, self._clock.now_ms())
        self._tell(order.account, body, order.client_id)

    # -- settings ---------------------------------------------------------------------------------

    def _set_position_mode(self, request: Request) -> Json:
        """One switch for both products; nothing may be open in either."""
        hedge = request.params.flag("dualSidePosition")
        self.accounts.set_hedge(request.account, hedge)
        return {"code": 200, "msg": "success"}

    def _set_leverage(self, request: Request) -> Json:
        symbol = self._rules(request.params).symbol
        leverage = request.params.integer("leverage") or 0
        if not 1 <= leverage <= 125:
            raise VenueError(-4028, f"Leverage {leverage} is not valid")
        self.accounts.wallets[request.account].leverage[symbol] = leverage
        update = shapes.leverage_update(symbol, leverage, self._clock.now_ms())
        self._tell(request.account, update, "")
        name = "maxNotionalValue" if self._usd else "maxQty"
        return {"leverage": leverage, name: "1000000", "symbol": symbol}

    # -- Listener ---------------------------------------------------------------------------------

    def stepped(self, order: Order, event: str, trade: Trade | None) -> None:
        now = self._clock.now_ms()
        rules = self.exchange.rules[order.symbol]
        liquidates = order.client_id.startswith(_AUTOCLOSE)
        if trade is not None:
            if self._usd and not liquidates:
                self._tell(order.account, shapes.trade_lite(order, trade, now), order.client_id)
            update = self.accounts.update_after(order, rules, now)
            self._tell(order.account, update, "")
        bids, asks = self.accounts.open_notional(order.account, order.symbol)
        body = shapes.order_trade_update(
            order,
            "CALCULATED" if liquidates and event == "TRADE" else event,
            trade,
            rules,
            now_ms=now,
            bids=bids,
            asks=asks,
            modify_id=self._modify_id,
        )
        self._tell(order.account, body, order.client_id)
        if not order.open:
            self.algos.ended([order])

    def _count(self, account: str, orders: int) -> None:
        self._counts[account].add(self._clock.now_ms(), orders)

    # -- from outside -----------------------------------------------------------------------------

    def liquidate(self, account: str) -> list[str]:
        """Close every position of the account at the market; returns the symbols."""
        closed = []
        for position in self.accounts.open_positions(account):
            buy = position.amount < 0
            order = Order(
                number=self.exchange.new_number(),
                product=self.exchange.product,
                account=account,
                symbol=position.symbol,
                client_id=f"{_AUTOCLOSE}{self._clock.now_us()}",
                buy=buy,
                kind="MARKET",
                tif="IOC",
                price=ZERO,
                quantity=abs(position.amount),
                created_ms=self._clock.engine_now_ms(),
                close_position=True,
                position_side=position.side,
                original_kind="LIQUIDATION",
            )
            self.exchange.place(order)
            closed.append(position.symbol)
        return closed

    def deposit(self, account: str, asset: str, amount: Decimal) -> None:
        """Negative: a withdrawal."""
        wallet = self.accounts.wallets[account]
        wallet.assets[asset] = wallet.assets.get(asset, ZERO) + amount
        wallet.updated_ms = now = self._clock.now_ms()
        reason = "DEPOSIT" if amount >= 0 else "WITHDRAW"
        entry = (asset, wallet.assets[asset], amount)
        self._tell(account, shapes.account_update(reason, [entry], [], now, now), "")

    def stop(self) -> None:
        for timer in self._countdowns.values():
            timer.cancel()
        self._countdowns.clear()


def _either(one: Callable[[], Json]) -> Json:
    try:
        return one()
    except VenueError as error:
        return error.body()


def _list(text: str, most: int, name: str) -> list[Any]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise errors.invalid_data(name) from None
    if not isinstance(found, list) or not 0 < len(found) <= most:
        raise errors.invalid_data(name)
    return found


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
